"Parameters, what a run remembers, what runs again, and what a failure leaves."
import json
import shutil

import numpy as np
import pytest
from stages import again, copy_of, manifests
from subtask_kit.artifacts import open_run, read_json, read_manifest
from subtask_kit.core import UserError
from subtask_kit.pipeline import PRESETS, STAGES, cast, configure, documented, from_notebook, load_stage, parameters, remember, run_stages, until_stage


def test_every_field_of_every_stage_is_a_parameter_with_its_type():
    known = documented()
    for stage in STAGES:
        for name, value in vars(load_stage(stage)[0]()).items():
            default = known[f'{stage}_{name}'][0]
            assert default == (list(value) if isinstance(value, tuple) else value) and type(default) is (list if isinstance(value, tuple) else type(value))
    assert len(known) == sum(len(vars(load_stage(s)[0]())) for s in STAGES)


def test_the_graph_runs_in_the_order_of_the_numbers():
    folders = [load_stage(s)[1].stage for s in STAGES]
    assert folders == sorted(folders)


@pytest.mark.parametrize('preset', PRESETS)
def test_presets_are_configurations(preset):
    for stage, config in configure(preset).items():
        for name, value in vars(config).items():
            default = getattr(load_stage(stage)[0](), name)
            assert type(value) is type(default), (stage, name)
            if isinstance(value, tuple): assert {type(v) for v in value} == {type(v) for v in default[:1]}


def test_the_papers_values():
    for preset in ('paper', 'literal'):
        c = configure(preset)
        assert (c['selflabel'].k, c['selflabel'].lam, c['selflabel'].epochs, c['selflabel'].lr, c['selflabel'].weight_decay, c['selflabel'].schedule, c['selflabel'].model) == (100, 250., 300, .03, .1, 'quarters', 'resnet50')
        for s in ('specialists', 'distill'):
            assert (c[s].lr_encoder, c[s].lr, c[s].weight_decay, c[s].clip, c[s].dropout, c[s].smoothing, c[s].epochs) == (8e-7, 3e-4, .01, 2., .1, .05, 20)
        assert (c['specialists'].mode, c['specialists'].model, c['distill'].model) == ('independent', 'resnet50', 'deit_base_distilled_patch16_224')
        assert (c['features'].ops, c['features'].magnitude, c['select'].T, c['curate'].px, c['curate'].embargo_days) == (4, 8, .1, 224, 15)
    literal = configure('literal')
    assert (literal['select'].rate_of, literal['select'].level, literal['select'].scale, literal['select'].rule) == ('defective', .01, 'npv', 'estimate')
    assert literal['curriculum'].acceptable == 'repeated' and literal['selflabel'].init == 'random'


@pytest.mark.parametrize('value, default, wanted', [('8', 1, 8), ('8.0', 1, 8), ('1e3', 1, 1000), (3, 1., 3.), ('.5', 1., .5), ('1e-7', 1., 1e-7), ('yes', False, True), ('False', True, False), ('0', True, False), (True, False, True),
                                                    ('a', 'b', 'a'), ('', 'b', ''), ('1,2', [0], [1, 2]), ('[1, 2]', [0], [1, 2]), ('(1,)', [0], [1]), ((1, 2), [0], [1, 2]), ('.01,.05', [.1], [.01, .05]), ('vit, ft_sd', ['x'], ['vit', 'ft_sd']),
                                                    ("['vit', 'ft_sd']", ['x'], ['vit', 'ft_sd'])])
def test_words_become_values(value, default, wanted):
    got = cast('x', value, default)
    assert got == wanted and type(got) is type(wanted)


@pytest.mark.parametrize('value, default', [('many', 1), ('1.5', 1), (1.5, 1), (True, 1), (True, 1.), (None, 1), ('', 1), ('nan', 1), ('inf', 1), ('nan', 1.),
                                            ('maybe', True), (2, True), (5, 'a'), (None, 'a'), (3, [0]), ('a', [0]), ('1,x', [0]), ([[1]], [0]), ({}, 1)])
def test_values_of_another_type_are_refused(value, default):
    with pytest.raises(UserError, match='parameter x'): cast('x', value, default)


def test_unknown_names_are_refused_with_a_guess():
    with pytest.raises(UserError, match='did you mean selflabel_epochs'): parameters(given={'selflabel_epoch': 3})
    with pytest.raises(UserError, match='nonsense'): parameters(given={'nonsense': 3})
    with pytest.raises(UserError, match='no preset'): parameters('huge')
    with pytest.raises(UserError, match='no stage'): until_stage('31_selflabel')


def test_a_notebooks_variables_are_collected():
    c = from_notebook(dict(distill_epochs=3, distill_seeds=[4], selflabel_lam=9, features_pretrained=False, x=1, distill=configure, run_path='a'))
    assert c['distill'].epochs == 3 and c['distill'].seeds == (4,) and c['selflabel'].lam == 9. and not c['features'].pretrained and c['curate'] == configure()['curate']


@pytest.mark.parametrize('variables', [dict(distill_epoch=3), dict(selflabel_K=3), dict(distill_epochs='many')])
def test_a_notebooks_mistakes_are_refused(variables):
    with pytest.raises(UserError): from_notebook(variables)


@pytest.mark.parametrize('variables', [dict(distill_epochs=np.float64(2.5)), *[(dict(distill_epochs=v)) for v in (None, {})]])
def test_a_parameter_of_a_strange_type_is_not_passed_over(variables):
    with pytest.raises(UserError): from_notebook(variables)


def test_a_number_of_numpy_is_a_number(): assert from_notebook(dict(distill_epochs=np.int64(3)))['distill'].epochs == 3


def test_what_a_run_remembers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('ads.csv', 'pool.csv'): (tmp_path/name).touch()
    run = open_run(tmp_path/'run', create=True)
    def told(): return read_json(run/'run.json')
    remember(run, 'ads.csv', 'pool.csv', 'micro', {'distill_epochs': '3'}, True)
    assert told()['preset'] == 'micro' and told()['parameters']['distill_epochs'] == 3 and told()['parameters']['curate_data'].startswith('/')
    values = remember(run, given={'select_T': '.2'})
    assert values['distill_epochs'] == 3 and values['select_T'] == .2 and values['curate_unlabelled'].endswith('pool.csv') and values['selflabel_k'] == 4 and values['curate_skip_bad_rows']
    values = remember(run, given={'distill_epochs': 5})
    assert values['distill_epochs'] == 5 and values['select_T'] == .2
    before = told()
    for bad in (dict(given={'nonsense': 1}), dict(given={'select_T': 'x'}), dict(preset='huge')):
        with pytest.raises(UserError): remember(run, **bad)
        assert told() == before
    values = remember(run, preset='tiny')
    assert values['distill_epochs'] == 12 and values['curate_data'].endswith('ads.csv'), 'another preset begins anew, on the same data'


def test_a_run_needs_data(tmp_path):
    run = open_run(tmp_path/'run', create=True)
    with pytest.raises(UserError, match='--data'): remember(run, preset='micro')
    assert not (run/'run.json').exists()


def test_a_damaged_memory_is_the_users_to_mend(tmp_path):
    run = open_run(tmp_path/'run', create=True)
    (run/'run.json').write_text('{"preset": "mic')
    with pytest.raises(UserError, match='run.json'): remember(run, 'ads.csv')


@pytest.mark.parametrize('values, ran', [
    (dict(), []), (dict(evaluate_draws=50), ['evaluate']), (dict(distill_lr=.001), ['distill', 'sweep', 'evaluate']), (dict(clusters_seed=1), ['clusters']),
    (dict(select_draws=90), ['select', 'unlabelled', 'curriculum', 'distill', 'sweep']), (dict(unlabelled_sure=1.), ['unlabelled', 'distill', 'sweep', 'evaluate']), (dict(curriculum_acceptable='repeated'), ['curriculum', 'distill', 'sweep'])])
def test_only_what_depends_on_a_parameter_runs_again(micro_run, tmp_path, values, ran):
    assert set(again(copy_of(micro_run, tmp_path/'run'), **values)) <= set(ran) and (not ran or ran[0] in again(copy_of(micro_run, tmp_path/'second'), **values))


def test_back_again_is_as_before(micro_run, tmp_path):
    "A parameter turned there and back: the stages end with the manifests' keys that they had."
    run = copy_of(micro_run, tmp_path/'run')
    def keys(): return {p.parent.name: json.loads(p.read_text())['key'] for p in run.path.glob('[1-4]*/manifest.json')}
    before = keys()
    again(run, selflabel_seed=7)
    assert keys() != before
    again(run)
    assert keys() == before


def test_until_stops_there(micro, tmp_path):
    run = open_run(tmp_path/'run', create=True)
    assert list(run_stages(run, configure('micro', {'curate_data': str(micro/'manifest.csv')}), 'features')) == ['curate', 'features'] == list(manifests(run))


def test_a_manifest_tells_why_its_stage_ran(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    again(run, evaluate_draws=50)
    assert read_manifest(run/'41_evaluate')['why'] == ['config.draws']
    again(run, evaluate_draws=50, distill_lr=.001)
    assert read_manifest(run/'41_evaluate')['why'] == ['inputs.37_distill']


@pytest.mark.parametrize('file', ['13_curate/images.npy', '25_features/pooled.npy', '31_selflabel/assignments.parquet', '33_specialists/margins.safetensors', '34_select/competence.parquet', '41_evaluate/results.parquet'])
@pytest.mark.parametrize('how', ['gone', 'cut'])
def test_a_run_mends_a_file_that_was_lost_or_cut(micro_run, tmp_path, file, how):
    run = copy_of(micro_run, tmp_path/'run')
    whole = (run/file).read_bytes()
    if how == 'gone': (run/file).unlink()
    else: (run/file).write_bytes(whole[:len(whole)//2])
    again(run)
    assert (run/file).read_bytes() == whole


def test_a_stage_that_fails_leaves_no_manifest_and_then_runs(micro_run, tmp_path, monkeypatch):
    import subtask_kit.evaluate as room
    run, plain = copy_of(micro_run, tmp_path/'run'), room.claims
    monkeypatch.setattr(room, 'claims', lambda *args: 1/0)
    with pytest.raises(ZeroDivisionError): again(run, evaluate_draws=50)
    assert 'evaluate' not in manifests(run)
    monkeypatch.setattr(room, 'claims', plain)
    assert again(run, evaluate_draws=50) == ['evaluate']


def test_a_moved_run_is_still_fresh(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'a')
    shutil.move(run.path, tmp_path/'b')
    assert again(open_run(tmp_path/'b')) == []
