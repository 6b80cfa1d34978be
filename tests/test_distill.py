"What a student learns, what its key holds, and a person's choices."
import json

import numpy as np
import pandas as pd
import pytest
import torch
from stages import again, copy_of, hashes
from subtask_kit import distill as room
from subtask_kit.artifacts import open_run, read_json, read_table, read_tensors, write_table, write_tensors
from subtask_kit.core import UserError
from subtask_kit.distill import (ROWS, WHOLE, Distill, Row, build_student, digest, epoch_batches, feeding, load_lessons, own_row, rows_of, student_key, suspects, train_student, train_variants,
                                 variant_jobs, verdict_classes)
from subtask_kit.jobs import do


@pytest.fixture(scope='module')
def run(micro_run): return open_run(micro_run)


def test_the_own_row_follows_the_curriculum():
    for method in ('cc', 'acc', 'pc', 'apc', 'hand'):
        row = own_row(dict(method=method))
        assert ROWS[row].order == method and ROWS[row].kept and not ROWS[row].unlabelled and ROWS[row].loss == 'soft'
    assert own_row(dict(method='interleaved')) == 'ft_sd'


def test_the_margin_of_the_view_that_the_student_sees_is_looked_up(run):
    lessons = load_lessons(run, ROWS['ft_sd_ul'])
    margins = read_tensors(run/'33_specialists/margins.safetensors')['margins']
    table, where = read_table(run/'32_clusters/partition.parquet'), lessons.rows.ad_id
    own = dict(zip(table.ad_id, table.cluster)) | dict(zip(*read_table(run/'36_unlabelled/routed.parquet')[['ad_id', 'cluster']].values.T))
    seen, views = [], set()
    for which, view, margin in epoch_batches(lessons, 32, 0, 0, 'shared', 'mixed'):
        assert len(which) <= 32 and not np.isnan(margin).any() and (view < lessons.rows['views'].values[which]).all()
        for w, v, m in zip(which, view, margin):
            if where[w] in own: assert m == np.float32(margins[w, v, own[where[w]]])
            else: assert m in margins[w, v].astype('float32')
        seen += which.tolist()
        views |= set(view)
    routed = read_table(run/'36_unlabelled/routed.parquet')
    train = lessons.rows[(lessons.rows.split == 'train')].ad_id
    assert sorted(where[seen]) == sorted([*train, *routed.ad_id[routed.used]]) and views == {0, 1}
    assert epoch_batches(lessons, 32, 0, 1, 'shared', 'mixed')[0][0].tolist() != seen[:32]


def test_verdicts_of_unlabelled_ads_come_from_the_gate(run):
    lessons, routed = load_lessons(run, ROWS['ft_sd_ul']), read_table(run/'36_unlabelled/routed.parquet')
    verdict = pd.Series(lessons.verdict, lessons.rows.ad_id)[routed.ad_id].values
    assert (verdict == np.where(routed.used & routed.verdict.notna(), 0, -1)).all()
    plain = load_lessons(run, ROWS['ft_sd'])
    judged = plain.rows.label.notna().values
    assert (plain.verdict[judged] == plain.rows.label[judged]).all() and (plain.verdict[~judged] == -1).all()


def test_the_whole_teacher_answers_for_every_cluster(run):
    lessons, stored = load_lessons(run, ROWS['deit_1']), read_tensors(run/'33_specialists/margins.safetensors')['whole_task']
    for which, view, margin in epoch_batches(lessons, 64, 0, 0, 'shared', 'mixed'): assert np.array_equal(margin, stored[which, view].astype('float32'))
    assert load_lessons(run, ROWS['vit']).margins is None


def of(run, row):
    "What a row learns, by ad: teacher, verdict and weight of those that are not acceptable."
    l = load_lessons(run, row)
    return pd.DataFrame(dict(teacher=l.cluster, verdict=l.verdict[l.defective], weight=1. if l.weight is None else l.weight[l.defective]), l.rows.ad_id.values[l.defective]), l


def some_dropped(run):
    "The lessons of a run that keeps the clusters 0 and 2: others have a weight, no verdict, or are left out."
    part = read_table(run/'32_clusters/partition.parquet').sort_values('ad_id', ignore_index=True)
    table = part[['ad_id', 'cluster']].assign(teacher=part.cluster.where(part.cluster.isin([0, 2]), 2), verdict=pd.array(np.zeros(len(part), int), 'Int8'), weight=1.)
    table.loc[table.cluster == 1, 'weight'] = .2
    table.loc[table.cluster == 3, 'verdict'] = pd.NA
    return table[(table.cluster != 3) | (table.index % 2 == 0)]


def test_lessons_carry_weights_verdicts_and_who_answers(run, monkeypatch):
    table, asked = some_dropped(run), []
    monkeypatch.setattr(room, 'lessons_of', lambda run, how=None, kept=None, weight=None: asked.append((how, kept)) or table)
    found, lessons = of(run, Row('', dropped='weighted'))
    assert asked == [('weighted', sorted(lessons.order))] and found.index.tolist() == table.ad_id.tolist()
    assert (found.teacher == table.teacher.values).all() and (found.verdict == table.verdict.fillna(-1).values).all() and np.allclose(found.weight, table.weight)
    margins, where = read_tensors(run/'33_specialists/margins.safetensors')['margins'], lessons.rows.ad_id
    teacher = dict(zip(table.ad_id, table.teacher))
    for which, view, margin in epoch_batches(lessons, 32, 0, 0, 'shared', 'mixed'):
        for w, v, m in zip(which, view, margin): assert where[w] not in teacher or m == np.float32(margins[w, v, teacher[where[w]]])
    of(run, Row(''))
    assert asked[1] == (None, asked[0][1]), "the run's own way"
    nobody, _ = of(run, ROWS['ft'])
    assert nobody.index.tolist() == table.ad_id[table.verdict.notna()].tolist(), 'with neither verdict nor teacher there is nothing to learn'


def test_a_curriculum_feeds_an_ad_with_the_sub_task_of_its_teacher(run, monkeypatch):
    table = some_dropped(run)
    monkeypatch.setattr(room, 'lessons_of', lambda *a, **k: table)
    monkeypatch.setattr(room, 'sub_tasks', lambda *a: [2, 0])
    lessons = load_lessons(run, ROWS['ft_sd_cc'])
    teacher, seen = pd.Series(table.teacher.values, table.ad_id), []
    for which, *_ in epoch_batches(lessons, 32, 0, 0, 'shared', 'strict'): seen += [teacher[a] for a in lessons.rows.ad_id[which] if a in teacher]
    assert seen == sorted(seen, reverse=True) and len(seen) == len(table)


def test_weights_of_one_are_no_weights(run, monkeypatch):
    before = digest(load_lessons(run, ROWS['at_sd']))
    table = room.lessons_of(run, 'left_out', kept=[0, 1, 2, 3])
    monkeypatch.setattr(room, 'lessons_of', lambda *a, **k: table.assign(weight=1))
    assert load_lessons(run, ROWS['at_sd']).weight is None and digest(load_lessons(run, ROWS['at_sd'])) == before
    monkeypatch.setattr(room, 'lessons_of', lambda *a, **k: table.assign(weight=[.2, *[1.]*(len(table)-1)]))
    assert digest(load_lessons(run, ROWS['at_sd'])) != before


def test_an_ad_of_no_weight_trains_the_student_as_an_unseen_one(run):
    "Weights reach the gradient: scores hang on the weight, and a weight of 1 is no weight."
    table = room.lessons_of(run, 'left_out', kept=[0, 1, 2, 3])
    def scores(**columns):
        write_table(table.assign(**columns), path := run.path.parent/'lessons.parquet')
        return train_variants(run, CFG, 'ft_sd', {'v': dict(lessons=path)}, run.path.parent/'weights', (0,)).p_acceptable.values
    half = np.where(np.arange(len(table)) % 2, 1., .1)
    assert np.array_equal(scores(weight=1.), train_variants(run, CFG, 'at_sd', {'v': {}}, run.path.parent/'weights', (0,)).p_acceptable.values)
    assert not np.allclose(scores(weight=half), scores(weight=1.), atol=1e-3)


def test_without_clusters_there_is_one_sub_task(run):
    for method in ('vit', 'deit_1'):
        found, lessons = of(run, ROWS[method])
        assert lessons.order == [WHOLE] and set(found.teacher) == {WHOLE} and lessons.weight is None
        train = lessons.rows[(lessons.rows.split == 'train')]
        assert found.index.tolist() == train.ad_id[train.label == 0].tolist() and (found.verdict == 0).all()
        which = np.concatenate([b[0] for b in epoch_batches(lessons, 32, 0, 0, 'shared', 'mixed')])
        assert sorted(which) == sorted(train.index), 'every ad once'


def test_cleanlabs_suspects_are_left_out_of_both_classes(run):
    _, lessons = of(run, ROWS['vit_cleanlab'])
    doubted = suspects(run)
    train = lessons.rows[(lessons.rows.split == 'train') & ~lessons.rows.ad_id.isin(doubted)]
    assert sorted(np.r_[lessons.defective, lessons.acceptable]) == train.index.tolist() and set(train.label) == {0, 1}
    everyone = load_lessons(run, ROWS['vit'])
    gone = everyone.rows.loc[sorted({*everyone.defective, *everyone.acceptable} - {*lessons.defective, *lessons.acceptable})]
    assert set(gone.label) == {0, 1} and set(gone.ad_id) <= set(doubted)


@pytest.mark.parametrize('how', ['no file', 'no cleanlab'])
def test_without_cleanlab_its_row_is_left_out_with_words_or_refused(micro_run, tmp_path, how):
    run = copy_of(micro_run, tmp_path/'run')
    path = run/'32_clusters/suspects.parquet'
    if how == 'no file': path.unlink()
    else: write_table(read_table(path).drop(columns='suspect'), path)
    methods, out = rows_of(run, Distill())
    assert 'vit_cleanlab' not in methods and 'cleanlab' in out['vit_cleanlab'] and 'vit' in methods
    assert rows_of(run, Distill(rows=('vit',)))[1] == {}
    with pytest.raises(UserError, match='pip install cleanlab'): rows_of(run, Distill(rows=('vit', 'vit_cleanlab')))


@pytest.mark.parametrize('lost', ['own', 'whole'])
def test_a_missing_teacher_breaks_no_student(micro_run, tmp_path, lost):
    "Its margins are not a number; its cluster is dropped, and `at_sd` asks the most probable other teacher."
    run = copy_of(micro_run, tmp_path/'run')
    stored, table = read_tensors(path := run/'33_specialists/margins.safetensors'), read_table(run/'34_select/competence.parquet')
    if lost == 'whole': stored['whole_task'][:] = np.nan
    else:
        stored['margins'][..., 1] = np.nan
        table.loc[table.cluster == 1, ['npv', 'kept']] = [np.nan, False]
        write_table(table, run/'34_select/competence.parquet')
    write_tensors(stored, path)
    if lost == 'whole':
        methods, out = rows_of(run, Distill(rows=('vit', 'deit_1')))
        assert methods == ['vit', 'ft_sd'] and 'missing' in out['deit_1']
        return
    found, lessons = of(run, ROWS['at_sd'])
    own = read_table(run/'32_clusters/partition.parquet').set_index('ad_id').cluster[found.index]
    assert 1 not in lessons.order and len(found) == len(own) and (found.teacher[own != 1] == own[own != 1]).all() and found.teacher.isin([0, 2, 3]).all() and (found.weight == 1).all()
    assert all(np.isfinite(m).all() for _, _, m in epoch_batches(lessons, 32, 0, 0, 'shared', 'mixed'))
    with pytest.raises(UserError, match='no teacher'): load_lessons(run, ROWS['ft_sd'], kept=[0, 1])


@pytest.mark.parametrize('wrong, match', [(lambda t: t.drop(columns='weight'), 'no column weight'), (lambda t: t.assign(ad_id=['nosuchad', *t.ad_id[1:]]), 'nosuchad'), (lambda t: pd.concat([t, t.iloc[:1]]), 'twice'),
                                          (lambda t: t.assign(teacher=[77, *t.teacher[1:]]), '77'), (lambda t: t.assign(weight=-1.), 'weight'), (lambda t: t.assign(weight=np.nan), 'weight'),
                                          (lambda t: t.assign(verdict=2), 'verdict'), (lambda t: t.iloc[:0], 'no ad')])
def test_lessons_that_nobody_can_give_are_refused(run, tmp_path, wrong, match):
    table = room.lessons_of(run, 'left_out', kept=[0, 1, 2, 3])
    write_table(wrong(table.reset_index(drop=True)), tmp_path/'lessons.parquet')
    with pytest.raises(UserError, match=match): load_lessons(run, ROWS['ft_sd'], table=tmp_path/'lessons.parquet')


def test_lessons_about_audited_ads_are_refused(run, tmp_path):
    "An oracle may clean what is trained on, not what is measured on."
    ads = read_table(run/'13_curate/ads.parquet')
    test = ads.ad_id[(ads.split == 'test') & (ads.label == 0)].iloc[0]
    table = room.lessons_of(run, 'left_out', kept=[0, 1, 2, 3])
    write_table(table.assign(ad_id=[test, *table.ad_id[1:]]), tmp_path/'lessons.parquet')
    with pytest.raises(UserError, match=test): load_lessons(run, ROWS['ft_sd'], table=tmp_path/'lessons.parquet')


def test_scores_of_the_run_can_be_reproduced_from_the_weights(run):
    cfg = Distill(**read_json(run/'37_distill/manifest.json')['spec']['config'])
    for method in ('vit', 'ft_sd'):
        model, read = build_student(cfg, run, 2*(ROWS[method].teacher != 'none'))
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


def trained(run): return {f'{p.parent.parent.name}': (p.stat().st_ino, p.stat().st_mtime_ns) for p in (run/'37_distill').glob('*/0/student.safetensors')} # a number alone may be given out again


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
    pool = read_table(run/'36_unlabelled/routed.parquet').used.any()
    assert {m for m, file in trained(run).items() if before[m] != file} == {'ft_sd', *(['ft_sd_ul'] if pool else [])} and ('ft_sd_ul' in trained(run)) == pool


def test_a_threshold_that_keeps_the_same_set_trains_nothing(four, tmp_path):
    run = copy_of(four.path, tmp_path/'run')
    before = trained(run)
    assert 'distill' in again(run, 'distill', distill_rows=ROWS_OF_TEST, select_rule='estimate', select_T=-1000.) and trained(run) == before


@pytest.fixture(scope='module')
def rows_without(micro_run, tmp_path_factory):
    "Rows that know nothing of clusters, and one that does."
    run = copy_of(micro_run, tmp_path_factory.mktemp('without')/'run')
    again(run, 'distill', distill_rows='vit,deit_1,at_sd')
    return run


@pytest.mark.parametrize('how', ['merge', 'another K', 'another self-labelling'])
def test_rows_without_clusters_survive_another_partition(rows_without, tmp_path, how):
    "Not trained again; and trained again from scratch they come out the same."
    run = copy_of(rows_without.path, tmp_path/'run')
    before, scores, values = trained(run), hashes(run, 'distill'), dict(distill_rows='vit,deit_1,at_sd')
    if how == 'merge': human(run, 'edits.jsonl', dict(op='merge', clusters=[3, 1]))
    else: values |= dict(selflabel_k=3) if how == 'another K' else dict(selflabel_seed=7)
    again(run, 'distill', **values)
    assert {m for m, file in trained(run).items() if before[m] != file} == {'at_sd', 'ft_sd'}
    for m in ('vit', 'deit_1'): (run/f'37_distill/{m}/0/student.safetensors').unlink()
    again(run, 'distill', **values)
    assert {n: h for n, h in hashes(run, 'distill').items() if n.startswith(('vit/', 'deit_1/'))} == {n: h for n, h in scores.items() if n.startswith(('vit/', 'deit_1/'))}


def test_students_of_the_same_lessons_are_trained_once(rows_without):
    "Where all teachers are kept, `ft_sd` is `at_sd`."
    run = rows_without
    assert read_table(run/'34_select/competence.parquet').kept.all()
    metrics, written = read_json(run/'37_distill/metrics.json'), hashes(run, 'distill')
    assert metrics['students'] == 4 and metrics['trained'] == 3
    assert {n.partition('/')[2]: h for n, h in written.items() if n.startswith('ft_sd/')} == {n.partition('/')[2]: h for n, h in written.items() if n.startswith('at_sd/')}


def test_an_edit_of_clusters_that_a_row_never_looked_at_leaves_it(four, tmp_path):
    "1 and 3 are dropped, then merged: what `ft_sd` learns stays what it was."
    run = copy_of(four.path, tmp_path/'run')
    human(run, 'choice.json', dict(kept=[0, 2]))
    again(run, 'distill', distill_rows='vit,ft_sd')
    before = trained(run)
    human(run, 'edits.jsonl', dict(op='merge', clusters=[3, 1]))
    assert 'specialists' in again(run, 'distill', distill_rows='vit,ft_sd') and trained(run) == before


def test_ways_to_treat_dropped_ads_are_rows(four, tmp_path):
    run, part = copy_of(four.path, tmp_path/'run'), read_table(four/'32_clusters/partition.parquet')
    human(run, 'choice.json', dict(kept=[0, 2]))
    again(run, 'distill', distill_rows='ft_sd,ft_sd_weighted,ft_sd_unlabelled,ft_sd_by_image,ft_sd_ul')
    kept = part.cluster.isin([0, 2]).values
    tables = {m: of(run, ROWS[m])[0] for m in ('ft_sd', 'ft_sd_weighted', 'ft_sd_unlabelled', 'ft_sd_by_image')}
    assert set(tables['ft_sd'].index) == set(part.ad_id[kept]) and (tables['ft_sd'].weight == 1).all()
    for m in ('ft_sd_weighted', 'ft_sd_unlabelled'):
        t = tables[m].loc[part.ad_id]
        assert len(t) == len(part) and (t.teacher[kept] == part.cluster.values[kept]).all() and t.teacher.isin([0, 2]).all()
    assert np.allclose(tables['ft_sd_weighted'].loc[part.ad_id].weight, np.where(kept, 1, .2)) and (tables['ft_sd_weighted'].verdict == 0).all()
    assert (tables['ft_sd_unlabelled'].loc[part.ad_id].verdict == np.where(kept, 0, -1)).all() and (tables['ft_sd_unlabelled'].weight == 1).all()
    assert set(part.ad_id[kept]) <= set(tables['ft_sd_by_image'].index) <= set(part.ad_id) and (tables['ft_sd_by_image'].weight == 1).all()
    scores = {m: read_table(run/f'37_distill/{m}/0/student_scores.parquet').p_acceptable.values for m in (*tables, 'ft_sd_ul')}
    assert all(np.isfinite(v).all() for v in scores.values()) and not np.allclose(scores['ft_sd'], scores['ft_sd_weighted']) and not np.allclose(scores['ft_sd_unlabelled'], scores['ft_sd_weighted'])
    own = of(run, ROWS['ft_sd_ul'])[0]
    routed = read_table(run/'36_unlabelled/routed.parquet')
    assert set(own.index) == set(part.ad_id[kept]) | set(routed.ad_id[routed.used]) and routed.cluster[routed.used].isin([0, 2]).all()


def test_the_runs_own_way_is_the_own_rows_way(four, tmp_path):
    run = copy_of(four.path, tmp_path/'run')
    human(run, 'choice.json', dict(kept=[0, 2]))
    again(run, 'select')
    own = digest(load_lessons(run, ROWS['ft_sd']))
    from dataclasses import replace

    from subtask_kit.pipeline import configure
    from subtask_kit.selection import select
    cfg = configure('micro', read_json(run/'run.json')['parameters'])['select']
    select(replace(cfg, dropped='weighted'), run)
    assert digest(load_lessons(run, ROWS['ft_sd'])) == digest(load_lessons(run, ROWS['ft_sd_weighted'])) != own


CFG = Distill(dim=16, layers=1, epochs=2)


def test_variants_of_one_lesson_are_one_student(run, tmp_path):
    "By clusters, as a table, under two names: one folder a seed; other lessons are another."
    write_table(room.lessons_of(run, 'left_out', kept=[0, 2]), tmp_path/'lessons.parquet')
    variants = {'kept': dict(kept=[2, 0]), 'again': dict(kept=[0, 2], dropped='left_out'), 'table': dict(lessons=tmp_path/'lessons.parquet'), 'weighted': dict(kept=[0, 2], dropped='weighted'), 'verdicts': dict(method='vit')}
    scores = train_variants(run, CFG, 'ft_sd', variants, tmp_path/'students', (0, 1))
    assert len(list((tmp_path/'students').iterdir())) == 6 and scores.columns.tolist() == ['variant', 'seed', 'ad_id', 'split', 'p_acceptable']
    wide = scores.pivot(index='ad_id', columns=['variant', 'seed'], values='p_acceptable')
    assert not wide.isna().any(axis=None)
    for s in (0, 1):
        assert wide['kept', s].equals(wide['again', s].rename(('kept', s))) and wide['kept', s].equals(wide['table', s].rename(('kept', s)))
        assert not np.allclose(wide['kept', s], wide['weighted', s]) and not np.allclose(wide['kept', s], wide['verdicts', s])
    assert not np.allclose(wide['kept', 0], wide['kept', 1])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path/'students').rglob('*')}
    assert train_variants(run, CFG, 'ft_sd', variants, tmp_path/'students', (0, 1)).equals(scores) and {p: p.stat().st_mtime_ns for p in (tmp_path/'students').rglob('*')} == before


def test_a_variant_that_the_run_has_is_taken_over(run, tmp_path, monkeypatch):
    "And it is the run's own student, to the bit."
    cfg = Distill(**read_json(run/'37_distill/manifest.json')['spec']['config'])
    monkeypatch.setattr(room, 'fit', lambda *a, **k: pytest.fail('it was trained'))
    scores = train_variants(run, cfg, 'ft_sd', {'own': {}, 'plain': dict(method='vit')}, tmp_path/'students', (0,))
    for variant, method in (('own', 'ft_sd'), ('plain', 'vit')):
        own = read_table(run/f'37_distill/{method}/0/student_scores.parquet')
        assert np.array_equal(scores.p_acceptable[scores.variant == variant], own.p_acceptable)


@pytest.mark.parametrize('variant, match', [(dict(keep=[1]), 'keep'), (dict(kept=[99]), '99'), (dict(dropped='nosuchway'), 'nosuchway')])
def test_variants_that_cannot_be_are_refused(run, tmp_path, variant, match):
    with pytest.raises(UserError, match=match): train_variants(run, CFG, 'ft_sd', {'v': dict(kept=[0, 2]) | variant}, tmp_path/'students', (0,))


def test_a_variant_that_was_interrupted_goes_on_where_it_was(run, tmp_path, monkeypatch):
    "To the bit, and without an epoch twice."
    variant, epochs, batches_of = {'v': dict(kept=[0, 2])}, [], room.epoch_batches
    def counted(lessons, batch, seed, epoch, *rest):
        if epoch == 1 and 'killed' not in epochs: raise KeyboardInterrupt
        epochs.append(epoch)
        return batches_of(lessons, batch, seed, epoch, *rest)
    calm = train_variants(run, CFG, 'ft_sd', variant, tmp_path/'calm', (0,))
    monkeypatch.setattr(room, 'epoch_batches', counted)
    with pytest.raises(KeyboardInterrupt): train_variants(run, CFG, 'ft_sd', variant, tmp_path/'students', (0,))
    epochs.append('killed')
    assert train_variants(run, CFG, 'ft_sd', variant, tmp_path/'students', (0,)).equals(calm) and epochs == [0, 0, 'killed', 0, 1] # the first of each time is where the gradients' batch comes from


def test_two_processes_train_the_student_that_one_trains(run, tmp_path):
    "Through torch's launcher, on the CPU; how many they are is no part of the key."
    cfg = Distill(**vars(CFG) | dict(dropout=0., device='cpu'))
    two = Distill(**vars(cfg) | dict(processes=2))
    assert student_key(run, two, 'ft_sd', 0) == student_key(run, cfg, 'ft_sd', 0)
    a, b = (train_variants(run, c, 'ft_sd', {'v': dict(kept=[0, 2], dropped='weighted')}, tmp_path/f'{c.processes}', (0,)) for c in (cfg, two))
    assert a.ad_id.equals(b.ad_id) and np.allclose(a.p_acceptable, b.p_acceptable, atol=1e-4)
    one, other = (next((tmp_path/n).iterdir()) for n in '12')
    assert {p.name for p in one.iterdir()} == {p.name for p in other.iterdir()} and not list((tmp_path/'2').glob('*.tmp'))


def test_a_pixel_students_key_knows_how_views_are_made(micro_run, tmp_path):
    "Other transformations of the same pictures are other lessons."
    run = copy_of(micro_run, tmp_path/'run')
    pixels, tokens = Distill(model='deit_tiny_distilled_patch16_224'), Distill()
    before = [student_key(run, c, 'vit', 0) for c in (pixels, tokens)]
    path = run/'25_features/manifest.json'
    m = read_json(path)
    m['spec']['config']['magnitude'] += 1
    path.write_text(json.dumps(m))
    assert student_key(run, pixels, 'vit', 0) != before[0] and student_key(run, tokens, 'vit', 0) == before[1]


def test_an_order_by_hand_becomes_the_runs_student(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    human(run, 'choice.json', dict(order=[2, 0, 3, 1]))
    assert again(run) == ['select', 'curriculum', 'distill', 'sweep', 'evaluate']
    assert read_json(run/'37_distill/student.json') == dict(method='ft_sd_hand', seed=0, by='person')
    order, batches = [], epoch_batches(load_lessons(run, ROWS['ft_sd_hand']), 32, 0, 0, 'shared', 'strict')
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
    again(run, distill_model='deit_tiny_distilled_patch16_224', distill_vit='deit_tiny_distilled_patch16_224', distill_pretrained=False, distill_epochs=1, distill_rows='vit')
    assert set(read_table(run/'41_evaluate/results.parquet').method) == {'vit', 'ft_sd'}
    scores = read_table(run/'37_distill/ft_sd/0/student_scores.parquet')
    assert scores.p_acceptable.between(0, 1).all() and scores.p_acceptable.nunique() > 10


@pytest.mark.parametrize('rows', ['vit,nosuchrow', ('vit,vit')])
def test_rows_that_cannot_be_are_refused(micro_run, tmp_path, rows):
    with pytest.raises(UserError, match='row'): again(copy_of(micro_run, tmp_path/'run'), distill_rows=rows)


@pytest.mark.parametrize('seeds', ['', '0,0'])
def test_seeds_that_cannot_be_are_refused(micro_run, tmp_path, seeds):
    with pytest.raises(UserError, match='seed'): again(copy_of(micro_run, tmp_path/'run'), distill_seeds=seeds)


@pytest.fixture(scope='module')
def kinds(run, tmp_path_factory):
    "A student of every kind, with the folders that they are in."
    names = ('resnext', 'coatnet', 'swin', 'mc', 'ft_swin', 'ft_js', 'ft_deit', 'ft_deit_hard', 'ft_bernoulli', 'ft_sd_fitted', 'ft_sd_shuffled', 'ft_sd_cc_paced', 'ft_sd_cc_rehearsed', 'ft_sd')
    folders, specs = variant_jobs(run, CFG, 'ft_sd', {n: dict(method=n) for n in names}, tmp_path_factory.mktemp('kinds'), (0,))
    assert len(specs) == len(names), 'each is another student'
    for s in specs: do(s)
    return {n: folder for (n, _), folder in folders.items()}


def test_every_row_trains_scores_and_logs(kinds, run):
    judged = read_table(run/'25_features/rows.parquet').split.isin(['student_val', 'teacher_test', 'test']).sum()
    seen = {}
    for name, folder in kinds.items():
        scores, history = read_table(folder/'student_scores.parquet'), read_table(folder/'history.parquet')
        assert len(scores) == judged and scores.p_acceptable.between(0, 1).all() and history.val_loss.notna().all(), name
        taught = ROWS[name].teacher != 'none'
        assert ('dist_logit0' in scores) == ('cosine' in history) == ('gradient_cosine' in history) == taught, name
        if taught: assert history[['cosine', 'gradient_cosine']].abs().le(1 + 1e-6).all().all(), name
        seen[name] = scores.p_acceptable.round(6).to_numpy().tobytes()
    assert len(set(seen.values())) == len(seen), 'no two of them are the same'


@pytest.mark.parametrize('name, cls, dist', [('mc', 'K+1', 0), ('ft_bernoulli', 2, 'K+1'), ('ft_js', 2, 2), ('swin', 2, 0)])
def test_heads_have_the_classes_that_the_row_asks_for(kinds, run, name, cls, dist):
    state, n = read_tensors(kinds[name]/'student.safetensors'), len(load_lessons(run, ROWS[name]).order) + 1
    for head, classes in (('cls_head', cls), ('dist_head', dist)):
        if classes == 0: assert f'{head}.weight' not in state
        else: assert len(state[f'{head}.weight']) == (n if classes == 'K+1' else classes)


def test_k_plus_one_classes_are_numbered_by_cluster(run):
    lessons = load_lessons(run, ROWS['mc'])
    classes, n = verdict_classes(lessons, ROWS['mc'])
    part = read_table(run/'32_clusters/partition.parquet').set_index('ad_id').cluster
    assert n == part.nunique() + 1
    number = {c: i for i, c in enumerate(sorted(part.unique()))}
    assert [number[c] for c in part[lessons.rows.ad_id[lessons.defective]]] == classes[lessons.defective].tolist() and set(classes[lessons.acceptable]) == {n-1}
    plain, two = verdict_classes(load_lessons(run, ROWS['vit']), ROWS['vit'])
    assert two == 2 and set(plain) <= {-1, 0, 1}


def test_a_loss_on_sub_tasks_hears_every_teacher(run):
    lessons, margins = load_lessons(run, ROWS['ft_bernoulli']), read_tensors(run/'33_specialists/margins.safetensors')['margins']
    position = read_table(run/'33_specialists/clusters.parquet').set_index('cluster').position
    for which, view, margin in epoch_batches(lessons, 32, 0, 0, 'shared', 'mixed', axis='sub_tasks'):
        assert np.array_equal(margin, margins[which, view][:, position[sorted(lessons.order)].values].astype('float32'))


def test_the_mean_of_the_heads_is_the_prediction_unless_it_is_fitted(kinds, run):
    label = read_table(run/'13_curate/ads.parquet').set_index('ad_id').label
    def heads(name):
        t = read_table(kinds[name]/'student_scores.parquet')
        return t, *(torch.tensor(t[[f'{h}_logit0', f'{h}_logit1']].values) for h in ('cls', 'dist'))
    t, cls, dist = heads('ft_sd')
    assert np.allclose(t.p_acceptable, ((cls + dist)/2).softmax(1)[:, 1], atol=1e-5) and not (kinds['ft_sd']/'mix.json').exists()
    t, a, b = heads('ft_sd_fitted')
    assert torch.equal(a, cls) and torch.equal(b, dist), 'it is the same student'
    w = read_json(kinds['ft_sd_fitted']/'mix.json')
    assert np.allclose(t.p_acceptable, (w['cls']*a + w['dist']*b).softmax(1)[:, 1], atol=1e-5)
    val = (t.split == 'student_val').values
    y = label[t.ad_id[val]].values.astype(int)
    def loss(p): return -np.log(np.where(y == 1, p, 1-p)).mean()
    assert loss(t.p_acceptable[val].values) <= loss(((a + b)/2).softmax(1)[:, 1].numpy()[val]) + 1e-6


def test_a_row_follows_its_own_pace_or_that_of_the_run(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    assert feeding(run, ROWS['ft_sd']) == ('shared', 'mixed') and feeding(run, ROWS['ft_sd_cc']) == ('shared', 'strict') and feeding(run, ROWS['ft_sd_shuffled'])[1] == 'shuffled'
    before = {r: student_key(run, CFG, r, 0) for r in ('vit', 'ft_sd', 'ft_sd_cc', 'ft_sd_cc_rehearsed')}
    again(run, 'curriculum', curriculum_method='cc', curriculum_pace='paced', curriculum_acceptable='repeated')
    assert feeding(run, ROWS['ft_sd']) == ('shared', 'mixed') and feeding(run, ROWS['ft_sd_cc']) == ('repeated', 'paced') and feeding(run, ROWS['ft_sd_cc_rehearsed']) == ('repeated', 'rehearsed')
    changed = {r for r, k in before.items() if student_key(run, CFG, r, 0) != k}
    assert changed == {'ft_sd_cc', 'ft_sd_cc_rehearsed'}


def test_architectures_beside_a_timm_student_are_timm_models(micro_run, tmp_path):
    cfg = Distill(**vars(CFG) | dict(model='deit_tiny_distilled_patch16_224', vit='test_vit', resnext='test_resnet', pretrained=False, epochs=1))
    run = open_run(micro_run)
    assert type(build_student(cfg, run, network='resnext')[0]).__name__ == 'TimmNet'
    for row, field in (('vit', 'vit'), ('resnext', 'resnext')):
        other = Distill(**vars(cfg) | {field: 'test_efficientnet'})
        assert student_key(run, cfg, row, 0) != student_key(run, other, row, 0) and student_key(run, cfg, 'ft_sd', 0) == student_key(run, other, 'ft_sd', 0)
    folders, specs = variant_jobs(run, cfg, 'resnext', {'v': {}}, tmp_path/'students', (0,))
    train_student(run, **specs[0]['args'])
    assert read_table(folders['v', 0]/'student_scores.parquet').p_acceptable.between(0, 1).all()


def test_a_temperature_is_warned_of_where_teachers_are_soft(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    assert read_json(run/'37_distill/metrics.json')['warning'] is None
    again(run, 'distill', distill_rows='vit', distill_temperature=4.)
    assert 'flattens' in read_json(run/'37_distill/metrics.json')['warning']
