"Teachers: weights of a sub-task, heads against networks of their own, margins, what an edit costs, and teachers that fail."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from stages import again, copy_of, hashes, manifests
import subtask_kit.specialists as rooms
from subtask_kit.artifacts import open_run, read_json, read_manifest, read_table, read_tensors
from subtask_kit.core import UserError
from subtask_kit.device import one_thread
from subtask_kit.specialists import (BALANCE, Heads, Specialists, Task, all_margins, build_heads, epoch_batches, epoch_weights, half, judging_ads, load_heads, load_task, margin_loss, margin_table,
                                     routed_ads, routing, specialists, subtask_weights, train_margins)

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


def fit_toy(toy, model, columns, wide=True, names=('toy',), **options):
    x, _, task = toy
    cfg = Specialists(**dict(epochs=12, lr=.03, batch=40, hidden=16, dropout=0.) | options)
    with one_thread(): history, _ = train_margins(model, lambda which, view: x[which], task, columns, cfg, names, None, CPU, wide)
    return all_margins(model, lambda which, view: x[which], np.arange(len(x)), np.zeros(len(x), int)).numpy(), history


def separates(margin, kind, c):
    "Share of pairs of a defect of kind c and an acceptable ad that the teacher puts in order."
    return (margin[kind == c][:, None] < margin[kind == 3]).mean()


def test_heads_and_networks_of_their_own_both_separate(toy):
    wide, history = fit_toy(toy, Heads(range(4), 2, 16, 0.), [0, 1, 2, 3])
    for c in range(3):
        alone, _ = fit_toy(toy, Heads([c], 2, 16, 0.), [c], wide=False, names=('toy', c))
        assert separates(wide[:, c], toy[1], c) > .97 and separates(alone[:, 0], toy[1], c) > .97
        others = [k for k in range(3) if k != c]
        assert max(np.median(wide[toy[1] == k, c]) for k in others) > np.median(wide[toy[1] == c, c]) + 1, 'a specialist does not flag other kinds as surely as its own'
    assert len(history) == 12 and all(len(h['val_losses']) == 4 for h in history)


def test_balance_is_what_lets_a_rare_kind_speak(toy):
    def median(balance, wide): return np.median(fit_toy(toy, Heads([0], 2, 16, 0.), [0], wide, balance=balance)[0][toy[1] == 3])
    for wide in (True, False): assert median('none', wide) > max(median('weight', wide), median('sample', wide)), 'without balance the many acceptable ads push every margin up'


def weights_of(balance):
    label, member = np.array([0, 0, 0, 0, 1, 1]), np.array([[1, 0], [1, 0], [0, 1], [0, .5], [0, 0], [0, 0]])
    return subtask_weights(label, member, balance), label


@pytest.mark.parametrize('balance', BALANCE)
def test_weights_of_a_sub_task(balance):
    w, label = weights_of(balance)
    assert np.allclose(w.sum(0), len(label)) and (w[2:4, 0] == 0).all() and (w[:2, 1] == 0).all() and (w[4:] > 0).all()
    assert np.allclose(w[2, 1], 2*w[3, 1]), 'half a member counts half'
    if balance != 'none': assert np.allclose(w[label == 0].sum(0), w[label == 1].sum(0)), 'nothing is drawn without generators'
    else: assert np.allclose(w[0, 0], w[4, 0])


def crowd(k=3, defects=(4, 9, 1), acceptable=50):
    "Memberships of a few defects among many acceptable ads."
    kind = np.repeat([*range(k), k], [*defects, acceptable])
    return (kind == k).astype(int), np.eye(k+1)[kind][:, :k]


@pytest.mark.parametrize('ratio', [.5, 1., 3., 100.])
def test_a_draw_takes_so_many_acceptable_ads_for_each_defect(ratio):
    label, member = crowd()
    w = subtask_weights(label, member, 'sample', ratio, [np.random.default_rng(c) for c in range(3)])
    assert (w[label == 1] > 0).sum(0).tolist() == [min(50, int(np.ceil(ratio*n))) for n in (4, 9, 1)]
    assert ((w[label == 0] > 0) == (member[label == 0] > 0)).all() and np.allclose(w.sum(0), len(label)) and np.allclose(w[label == 1].sum(0), w[label == 0].sum(0))


def test_draws_are_new_each_epoch_and_their_mean_is_the_weighting():
    label, member = crowd()
    draws = np.array([subtask_weights(label, member, 'sample', 2., [np.random.default_rng((c, e)) for c in range(3)]) for e in range(2000)])
    assert (draws[0] != draws[1]).any(0).all()
    wanted, error = subtask_weights(label, member, 'weight'), draws.std(0)/len(draws)**.5
    assert (np.abs(draws.mean(0) - wanted) <= 5*error + 1e-4).all()


def test_a_network_of_its_own_passes_over_its_draw_only(toy):
    _, kind, task = toy
    cfg = Specialists(balance='sample', ratio=2., batch=16)
    train = task.rows.split.values == 'train'
    for c in range(3):
        n, seen = ((kind == c) & train).sum(), [np.concatenate([b[0] for b in epoch_batches(task, [c], cfg, ('x', c), e, False)]) for e in (0, 1)]
        for at in seen: assert len(set(at)) == len(at) == 3*n and set(at[kind[at] != 3]) == set(np.flatnonzero((kind == c) & train)) and train[at].all()
        assert set(seen[0]) != set(seen[1])
        weighed = np.concatenate([b[0] for b in epoch_batches(task, [c], Specialists(batch=16), ('x', c), 0, False)])
        assert set(weighed) == set(np.flatnonzero(np.isin(kind, [c, 3]) & train))


def test_a_draw_hangs_on_its_own_cluster_alone(toy):
    task, cfg = toy[2], Specialists(balance='sample', ratio=1.)
    all_of = epoch_weights(task, [0, 1, 2, 3], cfg, ('x',), 5)
    fewer = Task(task.rows, [0, 2], task.member[:, [0, 2, 3]])
    assert np.allclose(epoch_weights(fewer, [0, 1, 2], cfg, ('x',), 5), all_of[:, [0, 2, 3]])


# A product of matrices is blocked by their shapes, so that other neighbours may move a last bit: hence a tolerance.
@pytest.mark.parametrize('hidden', [0, 16])
@pytest.mark.parametrize('balance', BALANCE)
@pytest.mark.parametrize('left', [[2], [0, 3], [3, 1, 0]])
def test_a_head_is_the_same_among_other_heads(toy, hidden, balance, left):
    options = dict(hidden=hidden, balance=balance, dropout=.2, clip=.5, epochs=4)
    def trained(columns):
        model = Heads([100+c for c in columns], 2, hidden, .2)
        margins, history = fit_toy(toy, model, columns, **options)
        return margins, model.state_dict(), np.array([h['val_losses'] for h in history])
    (margins, weights, losses), (fewer, fewer_weights, fewer_losses) = trained([0, 1, 2, 3]), trained(left)
    assert np.allclose(margins[:, left], fewer, atol=1e-4) and np.allclose(losses[:, left], fewer_losses, atol=1e-4)
    for n, w in weights.items(): assert torch.allclose(w[left], fewer_weights[n], atol=1e-5)


def test_heads_begin_with_their_clusters_own_weights():
    cfg = Specialists(hidden=4)
    many, few = build_heads([0, 1, 5, -1], 6, cfg, CPU), build_heads([5], 6, cfg, CPU)
    for n, w in few.state_dict().items(): assert torch.equal(w[0], many.state_dict()[n][2])
    assert not torch.equal(many.hidden_weight[0], many.hidden_weight[1])
    other = build_heads([5], 6, Specialists(hidden=4, seed=1), CPU)
    assert not torch.equal(other.hidden_weight, few.hidden_weight)


def test_a_linear_head_is_a_logistic_regression(toy):
    "Without decay, dropout and smoothing the balanced linear head finds scikit-learn's direction."
    from sklearn.linear_model import LogisticRegression
    x, kind, _ = toy
    model = Heads([0], 2, 0, 0.)
    fit_toy(toy, model, [0], epochs=300, lr=.1, hidden=0, weight_decay=0., smoothing=0., batch=300, clip=0.)
    part = np.isin(kind, [0, 3]) & (np.arange(360) % 3 > 0)
    other = LogisticRegression(C=np.inf, class_weight='balanced').fit(x[part], kind[part] == 3).decision_function(x)
    with torch.no_grad(): ours = model(x)[:, 0].numpy()
    assert np.corrcoef(ours, other)[0, 1] > .98


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


def test_half_precision_is_never_infinite():
    margins = torch.tensor([1e9, -1e9, float('inf'), -float('inf'), 70000., 1.5])
    assert half(margins).tolist() == [65504, -65504, 65504, -65504, 65504, 1.5] and half(margins).dtype == torch.float16


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


def test_routing_is_kept_of_all_who_judge(run):
    rows, routed = read_table(run/'25_features/rows.parquet'), read_tensors(run/'33_specialists/routing.safetensors')
    clusters = read_table(run/'33_specialists/clusters.parquet')
    at = rows.iloc[routed['rows']]
    assert at.label.notna().all() and routed['rows'].dtype == np.int64 and routed['probability'].dtype == np.float32 and routed['probability'].shape == (len(at), len(clusters))
    assert set(at.split) == {'train', 'teacher_val', 'student_val', 'teacher_test'} and (at.label[at.split == 'train'] == 0).all()
    assert len(at) == (rows.split.isin(['teacher_val', 'student_val', 'teacher_test']) & rows.label.notna()).sum() + ((rows.split == 'train') & (rows.label == 0)).sum()
    assert np.allclose(routed['probability'].sum(1), 1, atol=1e-5) and (routed['rows'] == routed_ads(rows)).all()


def test_margins_of_every_epoch(run):
    rows, epochs = read_table(run/'33_specialists/rows.parquet'), read_tensors(run/'33_specialists/epochs.safetensors')
    k = len(read_table(run/'33_specialists/clusters.parquet'))
    assert epochs['margins'].shape == (4, len(epochs['rows']), k) and epochs['margins'].dtype == np.float16 and np.isfinite(epochs['margins']).all()
    at = rows.set_index('row').loc[epochs['rows']]
    assert set(at.split) == {'teacher_val', 'teacher_test'} and at.label.notna().all() and len(at) == (rows.split.isin(['teacher_val', 'teacher_test']) & rows.label.notna()).sum()
    best = [read_table(run/f'33_specialists/teachers/{c:03d}/history.parquet').val_loss.idxmin() for c in range(k)]
    stored = read_tensors(run/'33_specialists/margins.safetensors')['margins'][epochs['rows'], 0]
    assert np.allclose(stored, epochs['margins'][best, :, range(k)].T, atol=1e-2), 'the teacher is that of its best epoch'


def test_what_the_stage_counts(run):
    metrics, clusters = read_json(run/'33_specialists/metrics.json'), read_table(run/'33_specialists/clusters.parquet')
    assert clusters.columns.tolist() == ['position', 'cluster', 'error'] and (clusters.error == '').all()
    assert (metrics['teachers'], metrics['wanted'], metrics['unfinished']) == (4, 4, 0)


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


def files_of(run, *teachers): return {p.relative_to(run.path): p.read_bytes() for t in teachers for p in sorted((run/'33_specialists/teachers'/t).iterdir())}


def test_a_merge_elsewhere_leaves_a_head_as_it_is(micro_run, tmp_path):
    "Neither trained again, nor another one when all are trained anew."
    run = copy_of(micro_run, tmp_path/'run')
    before, stored = files_of(run, '001', '003', 'whole_task'), read_tensors(run/'33_specialists/margins.safetensors')
    edit(run, dict(op='merge', clusters=[2, 0]))
    again(run, 'specialists')
    assert files_of(run, '001', '003', 'whole_task') == before
    now = read_tensors(run/'33_specialists/margins.safetensors')
    assert np.array_equal(now['whole_task'], stored['whole_task'], equal_nan=True) and np.array_equal(now['margins'][..., [0, 2]], stored['margins'][..., [1, 3]], equal_nan=True)
    assert not np.array_equal(now['margins'][..., 1], stored['margins'][..., 2], equal_nan=True)
    for t in ('001', '002', '003', 'whole_task'): (run/f'33_specialists/teachers/{t}/weights.safetensors').unlink()
    again(run, 'specialists')
    anew = read_tensors(run/'33_specialists/margins.safetensors')
    for name in now: assert np.allclose(now[name], anew[name], atol=2e-3, equal_nan=True)


class Killed(BaseException): pass


@pytest.mark.parametrize('when', ['after an epoch', 'between two teachers', 'before the tables'])
def test_a_pass_that_was_killed_ends_with_the_same_bytes(micro_run, tmp_path, monkeypatch, when):
    run, original = copy_of(micro_run, tmp_path/'run'), hashes(open_run(micro_run), 'specialists')
    cfg = Specialists(**read_json(run/'33_specialists/manifest.json')['spec']['config'])
    for p in (run/'33_specialists').rglob('*'):
        if p.is_file(): p.unlink()
    wanted, calls = dict(zip(('after an epoch', 'between two teachers', 'before the tables'), ('write_status', 'write_teacher', 'gather')))[when], []
    real = getattr(rooms, wanted)
    def dying(*args, **kw):
        calls.append(1)
        if len(calls) == (1 if wanted == 'gather' else 3): raise Killed
        return real(*args, **kw)
    monkeypatch.setattr(rooms, wanted, dying)
    with pytest.raises(Killed): specialists(cfg, run)
    monkeypatch.undo()
    specialists(cfg, run)
    assert hashes(run, 'specialists') == original


@pytest.fixture
def ailing(micro_run, tmp_path, monkeypatch):
    "A run whose independent teachers fail on demand: cluster -> error. Training itself is replaced."
    run, ill, made = copy_of(micro_run, tmp_path/'run'), {}, []
    def train(run, cfg, cluster, key):
        with rooms.unit(run/'33_specialists/teachers'/rooms.folder(cluster), key) as work:
            if work is None: return
            made.append(cluster)
            if cluster in ill: raise ill[cluster]
            task = load_task(run)
            n = len(judging_ads(task.rows))
            rooms.write_teacher(work, {'w': np.ones(1)}, [dict(epoch=e, losses=[1.], val_losses=[1.]) for e in range(2)], np.full((2, n, 1), cluster, 'float16'),
                                np.where(np.arange(2) < task.rows['views'].values[:, None], cluster, np.nan)[..., None].astype('float16'))
    monkeypatch.setattr(rooms, 'train_teacher', train)
    return run, Specialists(mode='independent', epochs=2), ill, made


def test_a_teacher_that_fails_is_recorded_and_only_it_is_made_again(ailing):
    run, cfg, ill, made = ailing
    ill[2] = UserError('training diverged', 'lower the learning rate')
    metrics = specialists(cfg, run)['metrics']
    assert (metrics['teachers'], metrics['wanted'], metrics['unfinished']) == (3, 4, 1)
    clusters = read_table(run/'33_specialists/clusters.parquet').set_index('cluster')
    assert 'diverged' in clusters.error[2] and (clusters.error.drop(2) == '').all()
    margins, epochs = read_tensors(run/'33_specialists/margins.safetensors'), read_tensors(run/'33_specialists/epochs.safetensors')['margins']
    assert np.isnan(margins['margins'][..., 2]).all() and np.isnan(epochs[..., 2]).all() and np.isfinite(np.delete(epochs, 2, 2)).all() and np.isfinite(margins['whole_task'][:, 0]).all()
    ill.clear()
    made.clear()
    metrics = specialists(cfg, run)['metrics']
    assert made == [2] and (metrics['teachers'], metrics['unfinished']) == (4, 0)
    assert (read_tensors(run/'33_specialists/margins.safetensors')['margins'][:, 0] == np.arange(4)).all()
    made.clear()
    specialists(cfg, run)
    assert made == []


def test_without_the_whole_tasks_teacher_the_stage_is_not_finished(ailing):
    run, cfg, ill, _ = ailing
    ill[-1] = UserError('training diverged')
    metrics = specialists(cfg, run)['metrics']
    assert (metrics['teachers'], metrics['unfinished']) == (4, 1) and np.isnan(read_tensors(run/'33_specialists/margins.safetensors')['whole_task']).all()


def test_a_stage_without_any_teacher_raises(ailing):
    run, cfg, ill, _ = ailing
    ill.update({c: UserError('timm cannot make the model') for c in range(4)})
    with pytest.raises(UserError, match='no teacher could be trained.*timm cannot make'): specialists(cfg, run)
    assert read_manifest(run/'33_specialists') is None


def test_what_means_nothing_is_refused():
    for wrong in (dict(hidden=-1), dict(balance='perhaps'), dict(ratio=0.), dict(processes=0)):
        with pytest.raises(UserError, match=f'specialists_{next(iter(wrong))}'): Specialists(**wrong)


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
        assert sorted(p.name for p in folder.iterdir()) == ['cost.json', 'history.parquet', 'margins.safetensors', 'unit.json', 'weights.safetensors']
        assert len(read_table(folder/'history.parquet')) == 2
        assert read_tensors(folder/'margins.safetensors')['epochs'].shape[0] == 2
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
