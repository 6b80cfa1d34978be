"SWSL and Noisy Student: who is chosen, what is learnt, and what is left when one is killed."
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from stages import copy_of
from subtask_kit import baselines as room
from subtask_kit.artifacts import COST, open_run, read_json, read_table, read_tensors, write_table
from subtask_kit.backbones import SmallStudent
from subtask_kit.baselines import RECIPES, Bench, balance_classes, blocks_of, deal, pool_scores, recipe_jobs, skip_blocks, teacher, top_per_class, train_network, verdicts
from subtask_kit.core import UserError
from subtask_kit.distill import Distill
from subtask_kit.jobs import run_jobs
from torch.nn import functional as F

CFG = Distill(dim=16, layers=1, epochs=2)
FEW = dict(swsl=dict(shares=(.1, .25)), noisy_student=dict(iterations=2))


def probabilities(seed, n=40, classes=3):
    "Rounded, so that many are equal."
    x = np.random.default_rng(seed).dirichlet(np.ones(classes), n).round(1)
    return x/x.sum(1, keepdims=True)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('k,p', [(1, 1), (4, 1), (4, 2), (30, 3), (99, 2)])
def test_swsl_takes_what_its_two_sentences_say(seed, k, p):
    "Each image keeps its p best classes; each class takes the k best of those that kept it."
    scores, found = probabilities(seed), []
    kept = [sorted(range(3), key=lambda c: (-row[c], c))[:p] for row in scores]
    for c in range(3): found += [(i, c) for i in sorted((i for i in range(40) if c in kept[i]), key=lambda i: (-scores[i, c], i))[:k]]
    assert list(zip(*(a.tolist() for a in top_per_class(scores, k, p)))) == found


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('threshold,n', [(.3, 5), (.6, 20), (.3, 40)])
def test_noisy_student_takes_as_many_in_each_class(seed, threshold, n):
    scores = probabilities(seed)
    image, label = balance_classes(scores, threshold, n)
    for c in range(3):
        able = sorted((i for i in range(40) if scores[i].argmax() == c and scores[i, c] >= threshold), key=lambda i: (-scores[i, c], i))
        here = image[label == c].tolist()
        assert len(here) == (n if able else 0) and set(here) == set(able[:n])
        counts = [here.count(i) for i in able[:n]]
        assert not counts or max(counts) - min(counts) <= 1 and counts == sorted(counts, reverse=True), 'duplicates go round, the best first'


def test_a_class_that_nobody_has_gets_nothing():
    scores = np.array([[.1, .9], [.2, .8]])
    assert balance_classes(scores, .3, 4)[1].tolist() == [1]*4 and len(balance_classes(scores, .95, 4)[0]) == 0 and len(top_per_class(scores[:0], 3, 1)[0]) == 0


@pytest.mark.parametrize('k,p', [(0, 1), (1, 0), (1, 3)])
def test_a_choice_that_is_none_is_refused(k, p):
    with pytest.raises(UserError): top_per_class(np.ones((4, 2))/2, k, p)


def test_blocks_are_skipped_for_whole_ads_and_the_last_most_often():
    model, given, out = SmallStudent(4, 8, 16, 3, dropout=0.).train(), [], []
    handles = skip_blocks(model, .6)
    for block in blocks_of(model): block.register_forward_hook(lambda b, x, y: (given.append(x[0].detach()), out.append(y.detach()))[0]) # sees what the first hook left
    torch.manual_seed(0)
    model(torch.randn(4000, 4, 8))
    assert len(handles) == len(out) == 3
    for i, (block, x, y) in enumerate(zip(blocks_of(model), given, out)):
        skipped, share = (x == y).flatten(1).all(1), .6*(i+1)/3
        assert abs(skipped.float().mean() - share) < .04, 'about four standard deviations'
        for h in list(block._forward_hooks): del block._forward_hooks[h]
        assert torch.allclose(y[~skipped], (x + (block(x) - x)/(1 - share))[~skipped], atol=1e-5)


def test_depth_is_for_training_only_and_is_taken_off():
    model, x = SmallStudent(4, 8, 16, 2).eval(), torch.randn(5, 4, 8)
    before = model(x)[0]
    handles = skip_blocks(model, .9)
    assert torch.allclose(model(x)[0], before, atol=1e-5)
    for h in handles: h.remove()
    assert torch.equal(model(x)[0], before) and not any(b._forward_hooks for b in blocks_of(model))
    assert skip_blocks(model, 0.) == [] and skip_blocks(torch.nn.Linear(2, 2), .5) == []


@pytest.mark.parametrize('n,batch', [(1, 64), (64, 64), (65, 64), (1000, 7)])
def test_an_epoch_shows_everything_once(n, batch):
    dealt = deal(n, batch, 'a')
    sizes = [len(b) for b in dealt]
    assert sorted(np.concatenate(dealt)) == list(range(n)) and len(dealt) == math.ceil(n/batch) and max(sizes) - min(sizes) <= 1
    assert n == 1 or not np.array_equal(np.concatenate(deal(n, batch, 'b')), np.concatenate(dealt))


@pytest.fixture(scope='module')
def run(micro_run, tmp_path_factory): return copy_of(micro_run, tmp_path_factory.mktemp('baselines')/'run')


def cook(run, name, parent, seeds=(0, 1), **changes):
    folders, specs = recipe_jobs(run, CFG, name, seeds, parent, **FEW[name] | changes)
    run_jobs(specs, run, name)
    return folders


@pytest.fixture(scope='module')
def made(run, tmp_path_factory):
    "Both recipes with two seeds, never disturbed."
    parent = tmp_path_factory.mktemp('made')
    return parent, {k: v for name in RECIPES for k, v in cook(run, name, parent).items()}


def contents(folder): return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != COST} # no two attempts take the same time


def test_a_verdict_is_taught_as_everybodys_is(run):
    which, target = verdicts(Bench(run, CFG, run.path))
    rows = read_table(run/'25_features/rows.parquet')
    assert rows.ad_id[which].tolist() == rows.ad_id[(rows.split == 'train') & rows.label.notna()].tolist()
    logits, label = torch.randn(len(which), 2), torch.tensor(rows.label[which].astype(int).values)
    assert torch.allclose(F.cross_entropy(logits, torch.from_numpy(target)), F.cross_entropy(logits, label, label_smoothing=CFG.smoothing))


def test_a_student_is_what_every_student_is(run, made):
    parent, folders = made
    vit = read_table(run/'37_distill/vit/0/student_scores.parquet')
    assert set(folders) == {(name, s) for name in RECIPES for s in (0, 1)} and len(set(folders.values())) == 4
    for (name, seed), folder in folders.items():
        scores, lines = read_table(folder/'student_scores.parquet'), read_table(folder/'networks.parquet')
        assert scores.ad_id.tolist() == vit.ad_id.tolist() and scores.columns.tolist() == vit.columns.tolist() and scores.p_acceptable.between(0, 1).all()
        last = lines.iloc[-1]
        assert last.seed == seed and last.val_loss == read_table(folder/'history.parquet').val_loss.min() and (lines.epochs == CFG.epochs).all()
        pool, p = pool_scores(Bench(run, CFG, parent), folder)
        assert read_table(run/'25_features/rows.parquet').pool[pool].all() and np.allclose(p.sum(1), 1)
    assert not list(parent.rglob('*.tmp')) and not list(parent.rglob('state.pt'))


def test_the_first_teacher_is_the_runs_own(run, made):
    own, bench = run/'37_distill/vit/0', Bench(run, Distill(**read_json(run/'37_distill/manifest.json')['spec']['config']), made[0])
    found = teacher(bench, 0)
    assert found.parent == made[0] and contents(found) == contents(own)


def test_swsl_pretrains_on_its_choice_and_fine_tunes_from_there(run, made, tmp_path, monkeypatch):
    bench, seen = Bench(run, CFG, tmp_path), []
    monkeypatch.setattr(room, 'train_network', lambda bench, seed, name, lesson, start=None, depth=0.: seen.append((name, lesson, start, depth)) or train_network(bench, seed, name, lesson, start, depth))
    room.swsl(bench, 3, (.1,), (2,))
    (a, early, none, _), (b, judged, start, depth) = seen
    pool, scores = pool_scores(bench, teacher(bench, 3))
    image, label = top_per_class(scores, round(.1*len(pool)), 2)
    assert (a, b, none, depth) == ('pretrained', 'student', None, 0.) and early[0].tolist() == pool[image].tolist() and early[1].argmax(1).tolist() == label.tolist()
    assert all(np.array_equal(x, y) for x, y in zip(judged, verdicts(bench))) and read_json(start/'unit.json')['key']


def test_a_network_starts_where_it_is_told(run, made, tmp_path, monkeypatch):
    bench, seen, fit = Bench(run, CFG, tmp_path), {}, room.fit
    def caught(model, *a, **k): seen.update({n: v.clone() for n, v in model.state_dict().items()}); return fit(model, *a, **k)
    first = train_network(bench, 0, 'a', verdicts(bench))
    monkeypatch.setattr(room, 'fit', caught)
    train_network(bench, 0, 'b', verdicts(bench), start=first)
    stored = read_tensors(first/'student.safetensors')
    assert seen.keys() == stored.keys() and all(np.array_equal(seen[n].numpy(), stored[n]) for n in seen)


def test_noisy_student_learns_verdicts_and_soft_opinions_of_the_one_before(run, tmp_path, monkeypatch):
    bench, seen = Bench(run, CFG, tmp_path), []
    def caught(bench, seed, name, lesson, start=None, depth=0.):
        seen.append((name, lesson, start, depth, folder := train_network(bench, seed, name, lesson, start, depth)))
        return folder
    monkeypatch.setattr(room, 'train_network', caught)
    room.noisy_student(bench, 0, threshold=.3, share=.5, iterations=2, depth=.2)
    before, (which, target) = teacher(bench, 0), verdicts(bench)
    assert [s[0] for s in seen] == ['student 1', 'student 2']
    for name, lesson, start, depth, folder in seen:
        pool, scores = pool_scores(bench, before)
        n, soft = len(which), pd.DataFrame(scores.astype('float32'), pool)
        assert start is None and depth == .2, 'from the beginning, under noise'
        assert lesson[0][:n].tolist() == which.tolist() and np.array_equal(lesson[1][:n], target) and np.array_equal(lesson[1][n:], soft.loc[lesson[0][n:]].values)
        counts = np.bincount(lesson[1][n:].argmax(1), minlength=2)
        assert set(counts) <= {0, round(.5*len(pool))}
        before = folder


def test_the_search_is_seed_0s_and_is_done_once(run, made):
    "Whoever comes first; the pair with the lowest loss on student_val is everybody's."
    parent, folders = made
    tables = {s: read_table(folders['swsl', s]/'networks.parquet') for s in (0, 1)}
    students = {s: t[t.network == 'student'] for s, t in tables.items()}
    def tried(t): return t[t.seed == 0].set_index(['share', 'p']).val_loss.sort_index()
    assert tried(students[0]).equals(tried(students[1])) and len(tried(students[0])) == 4
    best = tried(students[0]).idxmin()
    assert all((t.iloc[-1].share, t.iloc[-1].p) == best for t in students.values()) and students[0].iloc[-1].val_loss == tried(students[0]).min()
    networks = pd.concat([t[t.network != 'teacher'] for t in tables.values()] + [read_table(folders['noisy_student', s]/'networks.parquet').query('network != "teacher"') for s in (0, 1)])
    assert len(list((parent/'networks').iterdir())) == len(networks.drop_duplicates('folder')), 'equal lessons are one network'


def test_a_student_costs_what_its_networks_cost(made):
    parent, folders = made
    for (name, seed), folder in folders.items():
        lines = read_table(folder/'networks.parquet')
        found = {p.parent.name: read_json(p)['cpu'] for p in [*parent.glob(f'*/{COST}'), *parent.glob(f'networks/*/{COST}')]}
        assert math.isclose(read_json(folder/COST)['cpu'], sum(found[f] for f in lines.folder.unique())) and all(found[f] > 0 for f in lines.folder)


def test_nothing_is_trained_twice(run, made, monkeypatch):
    parent, folders = made
    before = {k: contents(f) for k, f in folders.items()}
    monkeypatch.setattr(room, 'fit', lambda *a, **k: pytest.fail('trained again'))
    for name in RECIPES: assert cook(run, name, parent).items() <= folders.items()
    assert {k: contents(f) for k, f in folders.items()} == before


def test_the_key_holds_what_matters(run, tmp_path):
    def folder(cfg=CFG, name='noisy_student', seed=0, **changes): return recipe_jobs(run, cfg, name, (seed,), tmp_path, **changes)[0][name, seed].name
    others = [folder(seed=1), folder(name='swsl'), folder(depth=.1), folder(iterations=2), folder(share=.4), folder(replace(CFG, lr=1e-3)), folder(replace(CFG, epochs=3))]
    assert len({folder(), *others}) == len(others) + 1
    assert folder(replace(CFG, processes=2, rows=('vit',))) == folder() == folder(threshold=.3)


KILL = 'import sys; from test_baselines import cook; from subtask_kit.artifacts import open_run; cook(open_run(sys.argv[1]), "swsl", sys.argv[2])'


def test_a_recipe_that_is_killed_goes_on_and_ends_with_the_same_bytes(run, made, tmp_path):
    "Two workers finish what one began."
    parent, networks = tmp_path/'killed', tmp_path/'killed/networks'
    def whole(): return {p.name: (p/'unit.json').stat().st_mtime_ns for p in networks.glob('*') if p.suffix != '.tmp'}
    process = subprocess.Popen([sys.executable, '-c', KILL, run.path, parent], cwd=os.path.dirname(__file__))
    deadline = time.time() + 120
    while len(whole()) < 3 and process.poll() is None and time.time() < deadline: time.sleep(.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = whole()
    folders = cook(open_run(run, workers=2), 'swsl', parent)
    assert 3 <= len(done) < len(whole()) and done.items() <= whole().items(), 'what was finished is not trained again'
    assert {k: contents(f) for k, f in folders.items()} == {k: contents(made[1][k]) for k in folders} and not list(parent.rglob('*.tmp'))


def test_two_processes_train_what_one_trains(run, tmp_path):
    "Through torch's launcher; the first teacher is taken over, and both processes choose the same ads."
    run, cfg = copy_of(run.path, tmp_path/'run'), replace(CFG, dropout=0., device='cpu') # masks are drawn in each process
    def scores(cfg, name):
        folders, specs = recipe_jobs(run, cfg, 'noisy_student', (0,), tmp_path/name, iterations=1, depth=0.)
        run_jobs(specs, run, name)
        return read_table(folders['noisy_student', 0]/'student_scores.parquet')
    one = scores(cfg, 'one')
    shutil.copytree(teacher(Bench(run, cfg, tmp_path/'one'), 0), run/'37_distill/plain/0')
    two = scores(replace(cfg, processes=2), 'two')
    assert one.ad_id.equals(two.ad_id) and np.allclose(one.p_acceptable, two.p_acceptable, atol=1e-4)
    assert {p.name for p in (tmp_path/'one/networks').iterdir()} == {p.name for p in (tmp_path/'two/networks').iterdir()} and not list(tmp_path.rglob('two/**/*.tmp'))


def test_without_a_pool_it_says_so(run, tmp_path):
    bare = copy_of(run.path, tmp_path/'run')
    rows = read_table(bare/'25_features/rows.parquet')
    write_table(rows.assign(pool=False), bare/'25_features/rows.parquet')
    with pytest.raises(UserError, match='unlabelled'): recipe_jobs(bare, CFG, 'swsl', (0,), tmp_path/'x')


@pytest.mark.parametrize('name,changes', [('nothing', {}), ('swsl', dict(shares=())), ('swsl', dict(shares=(0.,))), ('swsl', dict(ps=(3,))), ('swsl', dict(iterations=1)), ('noisy_student', dict(threshold=1.5)),
                                          ('noisy_student', dict(share=0.)), ('noisy_student', dict(iterations=0)), ('noisy_student', dict(depth=1.))])
def test_settings_that_mean_nothing_are_refused_before_anything_is_trained(run, tmp_path, name, changes):
    with pytest.raises(UserError): recipe_jobs(run, CFG, name, (0,), tmp_path/'x', **changes)
    assert not (tmp_path/'x').exists()
