"Eq. 8 against torch, what a student's key holds, and a person's choices."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from stages import again, copy_of, hashes
from subtask_kit.artifacts import open_run, read_json, read_table, read_tensors
from subtask_kit.core import UserError
from subtask_kit.distill import ROWS, Distill, build_student, epoch_batches, eq8, hard_target, load_lessons, own_row, soft_target, student_key
from torch.nn import functional as F


@pytest.fixture(scope='module')
def run(micro_run): return open_run(micro_run)


def logits(seed, n=9): return torch.randn(n, 2, generator=torch.Generator().manual_seed(seed))


VERDICT, MARGIN = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 1]), torch.linspace(-4, 4, 9)


@pytest.mark.parametrize('smoothing', [0., .05])
def test_eq8_is_two_cross_entropies(smoothing):
    cls, dist = logits(0), logits(1)
    reference = F.cross_entropy(cls, VERDICT, label_smoothing=smoothing) + F.cross_entropy(dist, (MARGIN > 0).long())
    assert torch.allclose(eq8(cls, dist, VERDICT, hard_target(MARGIN), smoothing), reference)
    assert torch.allclose(eq8(cls, None, VERDICT, None, smoothing), F.cross_entropy(cls, VERDICT, label_smoothing=smoothing))


def test_soft_targets_are_the_teachers_softmax():
    two = torch.stack([torch.zeros(9), MARGIN], 1)
    assert torch.allclose(soft_target(MARGIN), two.softmax(1), atol=1e-6)
    assert torch.equal(hard_target(MARGIN).argmax(1), (MARGIN > 0).long()) and hard_target(MARGIN).sum(1).eq(1).all()
    dist, none = logits(1), torch.full((9,), -1)
    ours = eq8(logits(0), dist, none, soft_target(MARGIN))
    p = two.softmax(1)
    kl = F.kl_div(dist.log_softmax(1), p, reduction='batchmean')
    assert torch.allclose(ours, kl - (p*p.log()).sum(1).mean(), atol=1e-6), 'without verdicts [CLS] adds nothing'


def test_an_ad_without_verdict_moves_cls_not_at_all_and_the_others_as_before():
    cls = logits(0).requires_grad_()
    missing = VERDICT.clone()
    missing[2:5] = -1
    g, = torch.autograd.grad(eq8(cls, logits(1), missing, soft_target(MARGIN)), cls)
    whole, = torch.autograd.grad(eq8(cls, logits(1), VERDICT, soft_target(MARGIN)), cls)
    assert not g[2:5].any() and torch.allclose(g[[0, 1, 5, 6, 7, 8]], whole[[0, 1, 5, 6, 7, 8]])


def test_the_own_row_follows_the_curriculum():
    for method in ('cc', 'acc', 'pc', 'apc', 'hand'):
        row = own_row(dict(method=method))
        assert ROWS[row].order == method and ROWS[row].kept and not ROWS[row].unlabelled and ROWS[row].targets == 'soft'
    assert own_row(dict(method='interleaved')) == 'ft_sd'


def test_the_margin_of_the_view_that_the_student_sees_is_looked_up(run):
    lessons = load_lessons(run, ROWS['ft_sd_ul'])
    margins = read_tensors(run/'33_specialists/margins.safetensors')['margins']
    table, where = read_table(run/'32_clusters/partition.parquet'), lessons.rows.ad_id
    own = dict(zip(table.ad_id, table.cluster)) | dict(zip(*read_table(run/'36_unlabelled/routed.parquet')[['ad_id', 'cluster']].values.T))
    seen, views = [], set()
    for which, view, margin in epoch_batches(lessons, 32, 0, 0, 'shared', False):
        assert len(which) <= 32 and not np.isnan(margin).any() and (view < lessons.rows['views'].values[which]).all()
        for w, v, m in zip(which, view, margin):
            if where[w] in own: assert m == np.float32(margins[w, v, own[where[w]]])
            else: assert m in margins[w, v].astype('float32')
        seen += which.tolist()
        views |= set(view)
    routed = read_table(run/'36_unlabelled/routed.parquet')
    train = lessons.rows[(lessons.rows.split == 'train')].ad_id
    assert sorted(where[seen]) == sorted([*train, *routed.ad_id[routed.used]]) and views == {0, 1}
    assert epoch_batches(lessons, 32, 0, 1, 'shared', False)[0][0].tolist() != seen[:32]


def test_verdicts_of_unlabelled_ads_come_from_the_gate(run):
    lessons, routed = load_lessons(run, ROWS['ft_sd_ul']), read_table(run/'36_unlabelled/routed.parquet')
    verdict = pd.Series(lessons.verdict, lessons.rows.ad_id)[routed.ad_id].values
    assert (verdict == np.where(routed.used & routed.verdict.notna(), 0, -1)).all()
    plain = load_lessons(run, ROWS['ft_sd'])
    judged = plain.rows.label.notna().values
    assert (plain.verdict[judged] == plain.rows.label[judged]).all() and (plain.verdict[~judged] == -1).all()


def test_the_whole_teacher_answers_for_every_cluster(run):
    lessons, stored = load_lessons(run, ROWS['deit_1']), read_tensors(run/'33_specialists/margins.safetensors')['whole_task']
    for which, view, margin in epoch_batches(lessons, 64, 0, 0, 'shared', False): assert np.array_equal(margin, stored[which, view].astype('float32'))
    assert load_lessons(run, ROWS['vit']).margins is None


def test_scores_of_the_run_can_be_reproduced_from_the_weights(run):
    cfg = Distill(**read_json(run/'37_distill/manifest.json')['spec']['config'])
    for method in ('vit', 'ft_sd'):
        model, read = build_student(cfg, ROWS[method].teacher != 'none', run)
        folder = run/'37_distill'/method/'0'
        model.load_state_dict({k: torch.from_numpy(v) for k, v in read_tensors(folder/'student.safetensors').items()})
        table, rows = read_table(folder/'student_scores.parquet'), read_table(run/'25_features/rows.parquet')
        assert sorted(table.ad_id) == sorted(rows.ad_id[rows.split.isin(['student_val', 'teacher_test', 'test'])])
        at = pd.Series(np.arange(len(rows)), rows.ad_id)[table.ad_id[:40]].values
        with torch.no_grad(): cls, dist = model.eval()(read(at, np.zeros(40, int)))
        mean = cls if dist is None else (cls + dist)/2
        assert np.allclose(table.p_acceptable[:40], mean.softmax(1)[:, 1], atol=1e-4) and ('dist_logit0' in table) == (method != 'vit')


def test_the_checkpoint_is_the_epoch_with_the_lowest_loss(run):
    "Loss of the averaged prediction on student_val, computed again from the scores."
    table, ads = read_table(run/'37_distill/ft_sd/0/student_scores.parquet'), read_table(run/'13_curate/ads.parquet').set_index('ad_id')
    val = table[table.split == 'student_val']
    p, y = val.p_acceptable.values, ads.label[val.ad_id].values.astype(int)
    loss = -np.log(np.where(y == 1, p, 1-p)).mean()
    assert loss == pytest.approx(read_table(run/'37_distill/ft_sd/0/history.parquet').val_loss.min(), abs=1e-4)


def human(run, name, value):
    (run/'human').mkdir(exist_ok=True)
    (run/'human'/name).write_text(json.dumps(value) + '\n')


def trained(run): return {f'{p.parent.parent.name}': p.stat().st_ino for p in (run/'37_distill').glob('*/0/student.safetensors')}


ROWS_OF_TEST = 'vit,at_sd,ft_sd,ft_sd_ul'


@pytest.fixture(scope='module')
def four(micro_run, tmp_path_factory):
    "Rows that look at the choice and rows that do not."
    run = copy_of(micro_run, tmp_path_factory.mktemp('four')/'run')
    again(run, 'distill', distill_rows=ROWS_OF_TEST)
    return run


@pytest.mark.parametrize('how', ['select_T', 'edit'])
def test_another_kept_set_trains_only_the_rows_that_look_at_it(four, tmp_path, how):
    run = copy_of(four.path, tmp_path/'run')
    before, values = trained(run), dict(distill_rows=ROWS_OF_TEST)
    if how == 'edit': human(run, 'edits.jsonl', dict(op='drop', cluster=2))
    else:
        lift = read_table(run/'34_select/competence.parquet').lift
        values |= dict(select_rule='estimate', select_T=float(lift.min() + lift.max())/2)
    again(run, 'distill', **values)
    kept = read_table(run/'34_select/competence.parquet').kept
    assert 0 < kept.sum() < 4
    assert {m for m, inode in trained(run).items() if before[m] != inode} == {'ft_sd', 'ft_sd_ul'}


def test_a_threshold_that_keeps_the_same_set_trains_nothing(four, tmp_path):
    run = copy_of(four.path, tmp_path/'run')
    before = trained(run)
    assert 'distill' in again(run, 'distill', distill_rows=ROWS_OF_TEST, select_rule='estimate', select_T=-1000.) and trained(run) == before


def test_an_order_by_hand_becomes_the_runs_student(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    human(run, 'choice.json', dict(order=[2, 0, 3, 1]))
    assert again(run) == ['select', 'curriculum', 'distill', 'evaluate']
    assert read_json(run/'37_distill/student.json') == dict(method='ft_sd_hand', seed=0, by='person')
    order, batches = [], epoch_batches(load_lessons(run, ROWS['ft_sd_hand']), 32, 0, 0, 'shared', True)
    table = read_table(run/'32_clusters/partition.parquet').set_index('ad_id').cluster
    rows = read_table(run/'25_features/rows.parquet').ad_id
    for which, _, _ in batches: order += [c for c in table.reindex(rows[which]).dropna().unique() if c not in order]
    assert order == [2, 0, 3, 1]
    assert 'ft_sd_hand' in set(read_table(run/'41_evaluate/results.parquet').method) and read_json(open_run(micro_run)/'37_distill/student.json')['by'] == 'rule'


def test_rows_that_are_no_longer_asked_for_go(four, tmp_path):
    run = copy_of(four.path, tmp_path/'run')
    again(run, 'evaluate', distill_rows='vit')
    assert sorted(p.name for p in (run/'37_distill').iterdir() if p.is_dir()) == ['ft_sd', 'vit'] == sorted(set(read_table(run/'41_evaluate/scores.parquet').method))


def test_a_key_knows_what_a_student_depends_on(run):
    cfg = Distill(dim=16, layers=1, epochs=2)
    key = student_key(run, cfg, 'ft_sd', 0)
    assert key == student_key(run, Distill(**vars(cfg) | dict(rows=('vit',), seeds=(5,))), 'ft_sd', 0), 'not on the other rows'
    others = [student_key(run, cfg, 'ft_sd', 1), student_key(run, cfg, 'vit', 0), student_key(run, Distill(**vars(cfg) | dict(lr=.1)), 'ft_sd', 0)]
    assert len({key, *others}) == 4


def test_a_lost_file_of_a_student_comes_back(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    before = hashes(run, 'distill')
    (run/'37_distill/vit/0/student_scores.parquet').unlink()
    again(run)
    assert hashes(run, 'distill') == before


def test_a_deit_student_from_scratch(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    again(run, distill_model='deit_tiny_distilled_patch16_224', distill_pretrained=False, distill_epochs=1, distill_rows='vit')
    assert set(read_table(run/'41_evaluate/results.parquet').method) == {'vit', 'ft_sd'}
    scores = read_table(run/'37_distill/ft_sd/0/student_scores.parquet')
    assert scores.p_acceptable.between(0, 1).all() and scores.p_acceptable.nunique() > 10


@pytest.mark.parametrize('rows', ['vit,nosuchrow', ('vit,vit')])
def test_rows_that_cannot_be_are_refused(micro_run, tmp_path, rows):
    with pytest.raises(UserError, match='row'): again(copy_of(micro_run, tmp_path/'run'), distill_rows=rows)


@pytest.mark.parametrize('seeds', ['', '0,0'])
def test_seeds_that_cannot_be_are_refused(micro_run, tmp_path, seeds):
    with pytest.raises(UserError, match='seed'): again(copy_of(micro_run, tmp_path/'run'), distill_seeds=seeds)
