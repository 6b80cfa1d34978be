"Teachers: weights of a sub-task, heads against networks of their own, margins, and what an edit costs."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from stages import again, copy_of, hashes, manifests
from subtask_kit.artifacts import open_run, read_json, read_table, read_tensors
from subtask_kit.core import UserError
from subtask_kit.device import one_thread
from subtask_kit.specialists import Heads, Specialists, Task, all_margins, load_heads, load_task, margin_loss, margin_table, routing, subtask_weights, train_margins

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def run(micro_run): return open_run(micro_run)


@pytest.fixture(scope='module')
def toy():
    "Three kinds of defect around the acceptable ads in the middle; every third ad judges."
    rng, kind = np.random.default_rng(0), np.repeat([0, 1, 2, 3], [40, 40, 40, 240])
    x = torch.tensor(rng.normal(size=(360, 2)) + 5*np.array([[-1, 0], [1, 0], [0, 1], [0, 0]])[kind], dtype=torch.float32)
    rows = pd.DataFrame(dict(ad_id=[f'{i:03d}' for i in range(360)], label=pd.array(kind == 3).astype('Int8'), split=np.where(np.arange(360) % 3 == 0, 'teacher_val', 'train'), views=1))
    return x, kind, Task(rows, [0, 1, 2], np.c_[np.eye(4)[kind][:, :3], kind < 3].astype('float32'))


def fit_toy(toy, model, columns, **options):
    x, _, task = toy
    cfg = Specialists(epochs=12, lr=.03, lr_encoder=.03, batch=40, hidden=16, dropout=0., **options)
    with one_thread(): history = train_margins(model, lambda which, view: x[which], task, columns, cfg, ('toy', str(columns)), None, CPU)
    return all_margins(model, lambda which, view: x[which], np.arange(len(x)), np.zeros(len(x), int)).numpy(), history


def separates(margin, kind, c):
    "Share of pairs of a defect of kind c and an acceptable ad that the teacher puts in order."
    return (margin[kind == c][:, None] < margin[kind == 3]).mean()


def test_heads_and_networks_of_their_own_both_separate(toy):
    torch.manual_seed(0)
    wide, history = fit_toy(toy, Heads(4, 2, 16, 0.), [0, 1, 2, 3])
    for c in range(3):
        torch.manual_seed(c)
        alone, _ = fit_toy(toy, Heads(1, 2, 16, 0.), [c])
        assert separates(wide[:, c], toy[1], c) > .97 and separates(alone[:, 0], toy[1], c) > .97
        others = [k for k in range(3) if k != c]
        assert max(np.median(wide[toy[1] == k, c]) for k in others) > np.median(wide[toy[1] == c, c]) + 1, 'a specialist does not flag other kinds as surely as its own'
    assert len(history) == 12 and all(len(h['val_losses']) == 4 for h in history)


def test_balance_is_what_lets_a_rare_kind_speak(toy):
    def median(balance):
        torch.manual_seed(0)
        return np.median(fit_toy(toy, Heads(1, 2, 16, 0.), [0], balance=balance)[0][toy[1] == 3])
    assert median(False) > median(True), 'without balance the many acceptable ads push every margin up'


def weights_of(balance):
    label, member = np.array([0, 0, 0, 0, 1, 1]), np.array([[1, 0], [1, 0], [0, 1], [0, .5], [0, 0], [0, 0]])
    return subtask_weights(label, member, balance), label


@pytest.mark.parametrize('balance', [True, False])
def test_weights_of_a_sub_task(balance):
    w, label = weights_of(balance)
    assert np.allclose(w.sum(0), len(label)) and (w[2:4, 0] == 0).all() and (w[:2, 1] == 0).all() and (w[4:] > 0).all()
    assert np.allclose(w[2, 1], 2*w[3, 1]), 'half a member counts half'
    if balance: assert np.allclose(w[label == 0].sum(0), w[label == 1].sum(0))
    else: assert np.allclose(w[0, 0], w[4, 0])


def test_margin_loss_is_weighted_cross_entropy_of_two_logits():
    g = torch.Generator().manual_seed(0)
    margins, label, w = torch.randn(7, 3, generator=g), torch.tensor([0, 1, 0, 1, 1, 0, 0]), torch.rand(7, 3, generator=g)
    for smoothing in (0., .05, .3):
        for c in range(3):
            two = torch.stack([-margins[:, c]/2, margins[:, c]/2], 1)
            reference = (torch.nn.functional.cross_entropy(two, label, label_smoothing=smoothing, reduction='none')*w[:, c]).mean()
            assert torch.allclose(margin_loss(margins, label, w, smoothing)[c], reference, atol=1e-6)


def test_routing_keeps_all_probability():
    rng = np.random.default_rng(0)
    raw, edited = pd.Series(rng.integers(0, 5, 200)), pd.Series(rng.choice([0, 2, 7], 200))
    flow = routing(raw, edited, 5, [0, 2, 7])
    assert np.allclose(flow.sum(1), 1)
    assert np.allclose(flow, pd.crosstab(raw, edited, normalize='index').values)


def test_margins_have_holes_exactly_where_there_is_no_view(run):
    margins, rows = read_tensors(run/'33_specialists/margins.safetensors'), read_table(run/'25_features/rows.parquet')
    here = np.arange(margins['margins'].shape[1]) < rows['views'].values[:, None]
    assert (np.isnan(margins['margins']) == ~here[:, :, None]).all() and (np.isnan(margins['whole_task']) == ~here).all()
    assert read_table(run/'33_specialists/rows.parquet').ad_id.tolist() == rows.ad_id.tolist() and margins['margins'].dtype == np.float16


def test_margin_table_asks_only_for_views_that_exist():
    rows, asked = pd.DataFrame(dict(views=[1, 3, 2])), []
    def read(which, view):
        asked.extend(zip(which.tolist(), view.tolist()))
        return torch.tensor(10.*which + view)[:, None].float()
    table = margin_table(torch.nn.Identity(), read, rows, 1)[..., 0]
    assert sorted(asked) == [(0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]
    assert np.array_equal(table, [[0, np.nan, np.nan], [10, 11, 12], [20, 21, np.nan]], equal_nan=True)


def test_stored_teachers_give_the_stored_margins(run):
    from subtask_kit.features import source
    cfg = Specialists(**read_json(run/'33_specialists/manifest.json')['spec']['config'])
    names = read_table(run/'33_specialists/clusters.parquet').sort_values('position').cluster.tolist()
    with one_thread():
        state = read_tensors(run/'33_specialists/teachers/000/weights.safetensors')
        x = (source(run, 'pooled', CPU)(np.arange(0, 300, 50), np.zeros(6, int)) - torch.from_numpy(state['mean']))/torch.from_numpy(state['std'])
        with torch.no_grad(): margins = load_heads(run/'33_specialists/teachers', names, cfg, CPU)(x).numpy()
    stored = read_tensors(run/'33_specialists/margins.safetensors')
    assert np.allclose(margins[:, :-1], stored['margins'][0:300:50, 0], atol=2e-2) and np.allclose(margins[:, -1], stored['whole_task'][0:300:50, 0], atol=2e-2)


def test_who_learns_from_whom(run):
    task, ads = load_task(run), read_table(run/'13_curate/ads.parquet').set_index('ad_id')
    split, bad = task.rows.split, (task.rows.label == 0).fillna(False).values
    assert (task.member[split == 'train', :-1].sum(1) == bad[split == 'train']).all(), 'each train defect has one sub-task'
    assert np.allclose(task.member[(split == 'teacher_val') & bad, :-1].sum(1), 1, atol=1e-5), 'each defect of teacher_val is shared out whole'
    assert not task.member[~bad].any() and (task.member[:, -1] == bad).all()
    assert not task.member[task.rows.pool.values].any() and ads.label[task.rows.ad_id[bad]].eq(0).all()


def edit(run, *edits):
    (run/'human').mkdir(exist_ok=True)
    (run/'human/edits.jsonl').write_text(''.join(json.dumps(e) + '\n' for e in edits))


def test_dropping_and_renaming_train_nothing_again(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    edit(run, dict(op='drop', cluster=1), dict(op='rename', cluster=0, name='vases'))
    assert again(run, 'select') == ['clusters', 'select']
    assert read_table(run/'34_select/competence.parquet').set_index('cluster').kept[1] == False


def test_merging_and_moving_train_again(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    edit(run, dict(op='merge', clusters=[2, 0]))
    assert again(run, 'select') == ['clusters', 'specialists', 'select']
    assert read_table(run/'33_specialists/clusters.parquet').cluster.tolist() == [1, 2, 3]
    assert sorted(p.name for p in (run/'33_specialists/teachers').iterdir()) == ['001', '002', '003', 'whole_task']
    task = load_task(run)
    assert task.names == [1, 2, 3] and np.allclose(task.member[(task.rows.split == 'teacher_val') & (task.rows.label == 0), :-1].sum(1), 1, atol=1e-5)
    ad = read_table(run/'32_clusters/partition.parquet').query('cluster == 1').ad_id.iloc[0]
    edit(run, dict(op='merge', clusters=[2, 0]), dict(op='move', ads=[ad], cluster=3))
    assert 'specialists' in again(run, 'specialists')


def test_the_teachers_learning_rate_reaches_the_heads(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    again(run, 'specialists', specialists_lr=.05)
    assert hashes(run, 'specialists')['margins.safetensors'] != hashes(open_run(micro_run), 'specialists')['margins.safetensors']


def test_the_encoders_learning_rate_does_not(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    again(run, 'specialists', specialists_lr_encoder=.05)
    assert hashes(run, 'specialists')['margins.safetensors'] == hashes(open_run(micro_run), 'specialists')['margins.safetensors']


@pytest.fixture(scope='module')
def independent(micro_run, tmp_path_factory):
    "The chain with a small network a teacher, trained on pixels from scratch."
    run = copy_of(micro_run, tmp_path_factory.mktemp('independent')/'run')
    ran = again(run, 'distill', specialists_mode='independent', specialists_model='test_resnet', specialists_pretrained=False, specialists_epochs=2)
    return run, ran


def test_independent_teachers_serve_the_whole_chain(independent):
    run, ran = independent
    assert ran[0] == 'specialists' and 'distill' in ran
    for folder in (run/'33_specialists/teachers').iterdir():
        assert sorted(p.name for p in folder.iterdir()) == ['history.parquet', 'margins.safetensors', 'unit.json', 'weights.safetensors']
        assert len(read_table(folder/'history.parquet')) == 2
    margins = read_tensors(run/'33_specialists/margins.safetensors')['margins']
    own = read_tensors(run/'33_specialists/teachers/002/margins.safetensors')['margins']
    assert np.array_equal(margins[:, :, 2], own, equal_nan=True) and np.isfinite(margins[:, 0]).all()


def test_a_lost_teacher_is_made_again(independent):
    "The stage notices that a file is gone; running it again must bring the file back, the same as before."
    run, _ = independent
    before = hashes(run, 'specialists')
    (run/'33_specialists/teachers/001/weights.safetensors').unlink()
    again(run, 'specialists', specialists_mode='independent', specialists_model='test_resnet', specialists_pretrained=False, specialists_epochs=2)
    assert (run/'33_specialists/teachers/001/weights.safetensors').exists() and hashes(run, 'specialists') == before


def test_an_unknown_mode_is_refused(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    before = manifests(run)
    with pytest.raises(UserError, match='choir'): again(run, 'specialists', specialists_mode='choir')
    assert manifests(run) == before, 'refused before anything was touched'
