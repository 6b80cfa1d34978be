"Tools for other people's machines. The public protocol: its commands are commands, and its table is that of all data seeds. The paper's recipe: it counts what the kit would do."
import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from subtask_kit.artifacts import write_table
from subtask_kit.cli import parser
from subtask_kit.core import UserError
from subtask_kit.curriculum import batches
from subtask_kit.specialists import Specialists, Task, epoch_batches

ROOT = Path(__file__).parent.parent


def tool(name):
    spec = importlib.util.spec_from_file_location(name, ROOT/f'tools/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def protocol(): return tool('protocol')


@pytest.fixture(scope='module')
def recipe(): return tool('recipe_paper')


@pytest.mark.parametrize('world', ['cifar', 'fashion', 'storefront'])
def test_commands_are_understood(protocol, world, tmp_path):
    words = protocol.commands(tmp_path, world, 'photographs', 'paper', 96, .1, 'tiny', [0, 1, 2], 3, ['vit', 'ft_sd'], ['selflabel_k=20', 'features_views=3'])
    assert [w[0] for w in words] == ['synth', 'run', 'table2']*3
    told = [parser().parse_args(w) for w in words]
    for seed, (synth, run, table2) in enumerate(zip(told[::3], told[1::3], told[2::3])):
        assert (synth.world, synth.source, synth.size, synth.px, synth.seed, synth.val_noise) == (world, 'photographs', 'paper', 96, seed, .1)
        assert Path(run.data).parent == Path(run.unlabelled).parent == Path(synth.out) and run.p == [('selflabel_k', '20'), ('features_views', '3')]
        assert run.run == table2.run and not run.until
    assert len({w.out for w in told[::3]}) == len({w.run for w in told[1::3]}) == 3


def fake_table(folder, shift):
    "What `table2` leaves, of one data seed."
    metrics, none = ['npv@5%', 'auc'], np.nan
    results = [dict(method=m, metric=k, value=.5+gain, low=.4, high=.6, gain=gain, gain_low=0., gain_high=0., seeds=3, sd=.1) for k in metrics for m, gain in (('vit', 0.), ('ft_sd', .1+shift))]
    claims = [dict(claim='filter', a='ft_sd', b='vit', metric=k, gain=.1+shift, low=0., high=0., p=.5, p_holm=none, verdict='') for k in metrics]
    for name, rows in (('results', results), ('claims', claims)): write_table(pd.DataFrame(rows), folder/f'{name}.parquet')


def test_one_table_over_data_seeds(protocol, tmp_path):
    shifts = [-.02, 0., .05]
    for s, shift in enumerate(shifts): fake_table(tmp_path/f'run_{s}'/protocol.TABLE, shift)
    results, claims = protocol.gathered(tmp_path, [0, 1, 2])
    one = results.set_index(['method', 'metric']).loc[('ft_sd', 'npv@5%')]
    gains = np.array(shifts) + .1
    assert one.data_seeds == 3 and one.gain == pytest.approx(gains.mean()) and one.gain_sd == pytest.approx(gains.std(ddof=1))
    assert (claims.won == 3).all() and np.allclose(claims.gain, gains.mean()) and (claims.p_holm >= claims.p).all()
    two, _ = protocol.gathered(tmp_path, [0, 2])
    assert two.set_index(['method', 'metric']).gain['ft_sd', 'auc'] == pytest.approx(gains[[0, 2]].mean())


def test_an_unfinished_data_seed_is_no_table(protocol, tmp_path):
    fake_table(tmp_path/'run_0'/protocol.TABLE, 0.)
    with pytest.raises(UserError, match='run_1'): protocol.gathered(tmp_path, [0, 1])


def test_plan_does_nothing(protocol, tmp_path, capsys):
    protocol.main([str(tmp_path/'out'), '--source', 'x y', '--plan'])
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 9 and said[0].startswith('subtask-kit synth') and "'x y'" in said[0] and not (tmp_path/'out').exists()


def test_a_command_that_fails_ends_it(protocol, tmp_path, capfd):
    with pytest.raises(SystemExit) as e: protocol.main([str(tmp_path/'out'), '--world', 'fashion', '--source', str(tmp_path/'nowhere')])
    assert e.value.code == 2 and 'nowhere' in capfd.readouterr().err and not (tmp_path/'out/run_0').exists()


SMALL = dict(defective=40, acceptable=90, teacher_val=10, student_val=30, teacher_test=10, test=20)


@pytest.mark.parametrize('balance', ['weight', 'sample'])
def test_the_recipe_counts_what_specialists_read(recipe, balance):
    bad, good = SMALL['defective'], SMALL['acceptable']
    member = np.zeros((bad + good, 5), 'float32')
    member[np.arange(bad), np.arange(bad) % 4] = member[:bad, -1] = 1
    rows = pd.DataFrame(dict(split='train', label=[0]*bad + [1]*good, views=3))
    cfg = Specialists(mode='independent', balance=balance, ratio=2.)
    read = sum(len(b[0]) for c in range(5) for b in epoch_batches(Task(rows, [0, 1, 2, 3], member), [c], cfg, ('x',), 0, False))
    todo = recipe.work('paper', dict(selflabel_k=4, specialists_balance=balance, specialists_ratio=2.), SMALL).set_index('stage')
    assert todo.trained['specialists'] == cfg.epochs*read > 0


@pytest.mark.parametrize('acceptable', ['shared', 'repeated'])
def test_the_recipe_counts_what_a_student_reads(recipe, acceptable):
    bad = SMALL['defective']
    fed = batches([0, 1, 2, 3], np.arange(bad) % 4, np.arange(bad), bad + np.arange(SMALL['acceptable']), 8, 0, 0, acceptable)
    todo = recipe.work('paper', dict(selflabel_k=4, curriculum_acceptable=acceptable, distill_epochs=7), SMALL).set_index('stage')
    assert todo.trained['distill'] == 7*sum(len(b[0]) for b in fed)


def test_the_recipe_of_the_paper_by_hand(recipe):
    literal, heads = (recipe.work(*recipe.RECIPES[n]).set_index('stage') for n in ('literal', 'paper, heads on frozen features'))
    assert literal.trained['selflabel'] == 300*2500 and literal.labellings['selflabel'] == 301
    assert literal.trained['specialists'] == 20*(100*(25 + 15000) + 17500) and literal.trained['distill'] == 20*(2500 + 100*15000)
    assert heads.trained['specialists'] == 0 and heads.trained['distill'] == 20*17500
    rates = {k: 100. for k in ('student trained', 'student scored', 'teacher trained', 'teacher scored', 'trunk scored', 'transformed')} | dict(labelling=.1)
    minutes = recipe.arithmetic(rates, heads.reset_index()).set_index('stage')
    assert minutes.training['distill'] == pytest.approx(350_000/100/60) and minutes.transport['selflabel'] == pytest.approx(30.1/60)
    assert np.allclose(minutes.minutes, minutes.drop(columns='minutes').sum(axis=1))
    faster = recipe.arithmetic(rates | {'student trained': 200.}, heads.reset_index()).set_index('stage')
    assert faster.training['distill'] == pytest.approx(minutes.training['distill']/2)


def test_the_recipe_runs_without_a_gpu(recipe, tmp_path, capsys):
    recipe.main('--px 32 --device cpu --batch 2 --steps 1 --student deit_tiny_distilled_patch16_224 --teacher resnet10t --no-compile --save'.split() + [str(tmp_path)])
    rates, minutes = pd.read_csv(tmp_path/'distill_recipe_rates.csv').set_index('what').rate, pd.read_csv(tmp_path/'distill_recipe.csv')
    assert (rates > 0).all() and {'student, bare', 'student, cached targets', 'teacher trained', 'transformed'} <= set(rates.index)
    assert set(minutes.recipe) == set(recipe.RECIPES) and 'minutes for K = 100' in capsys.readouterr().out
