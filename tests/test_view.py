"A run as plain tables: numbers against pandas, pictures against arrays, orders and scores against the stages."
import io

import numpy as np
import pandas as pd
import pytest
from fake_run import finish, make_fake_run
from hypothesis import given, settings
from hypothesis import strategies as st
from looking import change, copied, make_looked
from PIL import Image
from stages import again, copy_of

from subtask_kit import view
from subtask_kit.artifacts import open_run, read_json, read_table, read_tensors, write_json, write_table
from subtask_kit.clusters import current, save_edit
from subtask_kit.core import UserError
from subtask_kit.curriculum import ORDERS, order_clusters
from subtask_kit.metrics import operating_point
from subtask_kit.selection import save_choice
from subtask_kit.view import CLASHES, clash, defective_ads, fed, finished, judged_by, listed, missing_teachers, numbers, outdated, possible_orders, read_run, scored, sheet, sight, thumbnail, to_grid, two_cleanings, veiled, worth_judging


@pytest.fixture(scope='module')
def base(tmp_path_factory): return make_looked(tmp_path_factory.mktemp('view')/'run', 5)


@pytest.fixture
def run(base, tmp_path): return copied(base, tmp_path/'run')


# Tables

def test_a_finished_run_gives_all_and_a_wanted_one_gives_what_is_wanted(run):
    d = read_run(run)
    assert set(view.TABLES) <= set(d) and set(d['manifests']) == set(finished(run)) and d['images'].shape[0] == len(d['ads'])
    some = read_run(run, 'ads', 'claims?')
    assert set(some) == {'run', 'manifests', 'images', 'ads', 'claims'}
    (run/'41_evaluate/manifest.json').unlink()
    assert 'claims' not in read_run(run, 'ads', 'claims?') and 'results' not in read_run(run)
    with pytest.raises(UserError, match='41_evaluate'): read_run(run, 'results')


@pytest.mark.parametrize('name', view.TABLES)
def test_a_stage_whose_file_is_gone_counts_as_unfinished(run, name):
    (run/view.TABLES[name]).unlink()
    assert name not in read_run(run)
    with pytest.raises(UserError, match=view.TABLES[name].partition('/')[0]): read_run(run, name)


def test_the_numbers_are_those_of_the_stage(micro_run):
    d = read_run(micro_run, 'ads', 'assignments', 'map', 'partition', 'clusters', 'competence')
    mine = numbers(defective_ads(d), d['partition'].cluster.to_numpy(), d['competence'], d['partition'].cluster.to_numpy())
    stage = d['clusters'].set_index('cluster')
    for c in ('size', 'confidence', 'advertisers', 'top_advertiser_share', 'noise_share', 'purity'): assert np.allclose(mine[c].astype(float), stage[c].astype(float), equal_nan=True), c
    judged = d['competence'].set_index('cluster')
    for c in ('lift', 'lift_low', 'lift_high', 'npv'): assert np.allclose(mine[c], judged[c], equal_nan=True)
    assert mine.verdict.tolist() == judged.verdict.tolist()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=30))
def test_a_cluster_has_changed_when_its_members_have(pairs):
    then, now = (np.array(x) for x in zip(*pairs))
    changed = view.members_changed(then, now)
    for c in {*then, *now}: assert (c in changed) == (set(np.flatnonzero(then == c)) != set(np.flatnonzero(now == c)))


def test_ads_on_no_map_are_an_error_of_the_run(run):
    change(run, '32_clusters/map.parquet', lambda t: t[2:])
    with pytest.raises(UserError, match='2 ads are on no map'): defective_ads(read_run(run, 'ads', 'assignments', 'map'))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(*[st.floats(-1e6, 1e6)]*2), min_size=1, max_size=30))
def test_a_grid_keeps_order_and_fills_both_directions(points):
    grid, xy = to_grid(points), np.array(points)
    assert grid.dtype == np.uint16 and len(grid) == len(xy)
    for k in (0, 1):
        assert (np.diff(grid[np.argsort(xy[:, k], kind='stable'), k].astype(int)) >= 0).all()
        if np.ptp(xy[:, k]) > 1e-6: assert grid[:, k].min() == 0 and grid[:, k].max() == view.SIDE


# Pictures

@settings(max_examples=25, deadline=None)
@given(st.integers(6, 130), st.integers(6, 100), st.integers(0, 5))
def test_a_thumbnail_averages_and_a_veil_leaves_36_colours(side, px, seed):
    image = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype='uint8')
    t, v = thumbnail(image, px), veiled(image)
    step = max(1, side//px)
    assert t.dtype == v.dtype == np.uint8 and v.shape == (6, 6, 3) and t.shape == (side//step, side//step, 3)
    inner = image[:side//step*step, :side//step*step].astype(float)
    assert abs(t.mean() - inner.mean()) < 1 and (side % 6 or abs(v.mean() - image.mean()) < 1)
    assert np.abs(t[0, 0] - inner[:step, :step].mean((0, 1))).max() <= .5


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=20), st.booleans())
def test_every_row_of_a_sheet_is_its_picture_and_is_sent_once(rows, sharp):
    images = np.random.default_rng(1).integers(0, 256, (7, 24, 24, 3), dtype='uint8')
    data, spans = sheet(images, rows, sharp)
    assert len(spans) == len(rows) and len(data) == sum({r: n for r, (_, n) in zip(rows, spans)}.values())
    for r, (a, n) in zip(rows, spans):
        picture = Image.open(io.BytesIO(data[a:a+n]))
        assert picture.format == 'JPEG' and picture.size == ((24, 24) if sharp else (6, 6))
        assert sheet(images, [r], sharp)[0] == data[a:a+n]


# What is out of date

def test_a_finished_run_is_up_to_date_and_decisions_make_it_old(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    assert outdated(read_run(run)) == []
    save_edit(run, dict(op='drop', cluster=0))
    assert '32_clusters' in outdated(read_run(run))
    (run/'human/edits.jsonl').unlink()
    assert outdated(read_run(run)) == []


def test_a_choice_makes_old_what_reads_it(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    save_choice(run, curriculum='cc')
    said = outdated(read_run(run))
    ran = again(run, 'curriculum')
    assert set(ran) <= {s.partition('_')[2] for s in said}, 'the stage of the curriculum reads the choice too'
    assert [s for s in outdated(read_run(run)) if s < '36'] == []


# Teachers

@pytest.mark.parametrize('cluster', [0, 3])
def test_what_a_teacher_says_is_in_its_column(run, cluster):
    d = read_run(run, 'ads')
    judged = judged_by(d, cluster)
    rows, teachers = (read_table(run/f'33_specialists/{n}.parquet') for n in ('rows', 'clusters'))
    margins = read_tensors(run/'33_specialists/margins.safetensors')['margins']
    at = int(teachers.set_index('cluster').position[cluster])
    for r in judged.itertuples(): assert r.margin == margins[rows.row[rows.ad_id == r.ad_id].item(), 0, at] and r.p_acceptable == pytest.approx(1/(1+np.exp(-r.margin)))
    want = d['ads'][(d['ads'].split == 'teacher_test') & d['ads'].label.notna()]
    assert set(judged.ad_id) == set(want.ad_id) and judged.set_index('ad_id').label.equals(want.set_index('ad_id').label.astype(int)[judged.ad_id])


def test_a_teacher_that_is_not_there_is_named(run):
    with pytest.raises(UserError, match='no teacher for cluster 77'): judged_by(read_run(run, 'ads'), 77)


@pytest.mark.parametrize('level, rate_of', [(.02, 'acceptable'), (.2, 'acceptable'), (.01, 'defective')])
def test_sights_are_selections_of_what_was_judged(run, level, rate_of):
    judged = judged_by(read_run(run, 'ads'), 1)
    judged.loc[::7, 'impressions'] = np.nan
    best, worst, cost = (sight(judged, k, level, rate_of) for k in ('best', 'worst', 'costliest'))
    assert len(best) == (judged.label == 0).sum() and best.margin.is_monotonic_increasing and len(worst) == (judged.label == 1).sum() and worst.margin.is_monotonic_increasing
    point = operating_point(judged.margin, judged.label, level, rate_of)
    assert set(cost.ad_id) == set(judged.ad_id[(judged.label == 1) & (judged.margin <= point)])
    known = cost.impressions.dropna()
    assert known.is_monotonic_decreasing and cost.impressions[len(known):].isna().all(), 'ads whose impressions are unknown come last'


# Orders and scores

@settings(max_examples=25, deadline=None)
@given(st.integers(1, 8), st.integers(0, 9), st.booleans(), st.booleans())
def test_orders_that_can_be_had_are_those_of_the_stage(k, seed, hole, hand):
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(dict(cluster=rng.permutation(20)[:k], kept=rng.random(k) < .7, confidence=rng.random(k), teacher_val_npv=rng.random(k).round(1)))
    if hole: table.loc[0, 'teacher_val_npv'] = np.nan
    own = rng.permutation(table.cluster[table.kept].to_numpy().copy()).tolist() if hand else None
    found = possible_orders(table, own)
    for name in ORDERS:
        try: want = order_clusters(name, table, own)
        except UserError: assert name not in found
        else: assert found.get(name, []) == want and sorted(want) == sorted(table.cluster[table.kept])


def test_neighbours_are_runs_of_the_same_ads(tmp_path):
    here, twin, other = (make_fake_run(tmp_path/n, 4, seed=s) for n, s in (('here', 0), ('twin', 0), ('other', 0)))
    change(other, '13_curate/ads.parquet', lambda t: t.assign(ad_id='x' + t.ad_id))
    make_fake_run(tmp_path/'young', 4, until='34_select')
    (tmp_path/'empty').mkdir()
    (tmp_path/'file.txt').write_text('x')
    change(twin, '13_curate/ads.parquet', lambda t: t[::-1])
    t = scored(here.path)
    assert t.run.drop_duplicates().tolist() == ['here', 'twin'] and t.order.tolist() == ['interleaved', 'cc']*2
    results = read_table(here/'41_evaluate/results.parquet')
    for r in t[t.run == 'here'].itertuples():
        want = results[(results.method == r.method) & (results.metric == 'npv@5%')].iloc[0]
        assert (r.value, r.gain, r.seeds) == (want.value, want.gain, want.seeds) and r.clusters == read_table(here/'34_select/competence.parquet').kept.sum()
    assert len(scored(tmp_path/'young')) == 0 or 'young' not in set(scored(tmp_path/'young').run)
    assert list(scored(tmp_path/'young').columns) == list(t.columns)
    assert fed(tmp_path/'empty') is None and fed(here).tolist() == sorted(read_table(here/'13_curate/ads.parquet').ad_id)


@pytest.mark.parametrize('file', ['41_evaluate/results.parquet', '34_select/competence.parquet', '13_curate/ads.parquet'])
@pytest.mark.parametrize('how', ['garbage', 'gone'])
def test_a_broken_neighbour_does_not_keep_one_from_looking(tmp_path, file, how):
    here, twin = (make_fake_run(tmp_path/n, 4) for n in ('here', 'twin'))
    (twin/file).unlink() if how == 'gone' else (twin/file).write_bytes(b'garbage')
    assert scored(here).run.drop_duplicates().tolist() == ['here']


def test_scores_of_an_evaluation_that_was_not_finished_are_not_shown(tmp_path):
    run = make_fake_run(tmp_path/'run', 4)
    (run/'41_evaluate/manifest.json').unlink()
    assert scored(run).empty


def test_a_run_may_lie_at_the_working_directory(run, monkeypatch):
    monkeypatch.chdir(run.path)
    assert scored('.').run.drop_duplicates().tolist() == ['run'] and open_run('.').path.exists()


# A few edits and what a stage makes of them

def test_a_cell_holds_a_list_or_nothing(tmp_path):
    write_table(pd.DataFrame(dict(words=[['a', 'b'], []])), tmp_path/'x.parquet')
    assert [listed(x) for x in (*read_table(tmp_path/'x.parquet').words, np.nan, None, ('a',), 'ab')] == [['a', 'b'], [], [], [], ['a'], []]


def test_numbers_after_an_edit_are_numbers_of_the_edited_clusters(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    d = read_run(run, 'ads', 'assignments', 'map', 'partition', 'competence')
    save_edit(run, dict(op='merge', clusters=[0, 1]))
    save_edit(run, dict(op='split', cluster=2, ads=d['assignments'].ad_id[d['assignments'].cluster == 2].tolist()[:3]))
    now = current(run).table.cluster.to_numpy()
    live = numbers(defective_ads(d), now, d['competence'], d['partition'].cluster.to_numpy())
    assert live.lift.isna().to_dict() == {c: c != 3 for c in live.index}
    assert again(run, 'clusters', clusters_map='pca') == ['clusters']
    stage = read_table(run/'32_clusters/clusters.parquet').set_index('cluster')
    assert live.index.tolist() == stage.index.tolist()
    for c in ('size', 'confidence', 'advertisers', 'top_advertiser_share', 'noise_share', 'purity'): assert np.allclose(live[c].astype(float), stage[c].astype(float), equal_nan=True), c


def test_manifests_are_read_as_they_are(run):
    manifest = read_json(run/'34_select/manifest.json')
    assert read_run(run, 'competence')['manifests']['34_select'] == manifest
    write_json({'outputs': {}}, run/'62_report/manifest.json')
    finish(run, '13_curate')
    write_table(read_table(run/'13_curate/ads.parquet'), run/'13_curate/ads.parquet')
    assert '62_report' not in finished(run) and '13_curate' in finished(run)


# What is known beyond a teacher's own figures

@pytest.mark.parametrize('older', [False, True])
def test_missing_teachers_are_named_and_cannot_be_asked(tmp_path, older):
    run = make_fake_run(tmp_path, 6, failed=2)
    if older: # an earlier version left them out of the table and did not say why
        change(run, '33_specialists/clusters.parquet', lambda t: t[t.error == ''].drop(columns='error'))
    lost = missing_teachers(read_run(run))
    assert lost.cluster.tolist() == [2, 3] and lost.error.tolist() == (['not recorded']*2 if older else ['MemoryError: out of memory']*2)
    with pytest.raises(UserError, match='no teacher for cluster 3'): judged_by(read_run(run), 3)
    assert missing_teachers(read_run(make_fake_run(tmp_path/'all', 4))).empty and missing_teachers({}).empty


def test_disagreements_are_those_that_pandas_finds(run):
    d = read_run(run)
    t = two_cleanings(d)
    assert sorted(t.ad_id) == sorted(d['partition'].ad_id)
    kept, out = d['competence'].set_index('cluster').kept, d['suspects'].set_index('ad_id')
    for kind, (inside, suspect, _) in CLASHES.items():
        some = clash(t, kind)
        assert set(some.ad_id) == {a for a,c in zip(d['partition'].ad_id, d['partition'].cluster) if kept[c] == inside and out.suspect[a] == suspect}
        assert some.p_defective.is_monotonic_increasing if inside else some.p_defective.is_monotonic_decreasing


def test_the_worklist_of_a_teacher_is_what_bears_on_it(run):
    d = read_run(run)
    whole = worth_judging(d)
    assert whole['rank'].tolist() == sorted(d['worklist']['rank']) and whole.image_row.notna().all()
    for c in range(5): assert worth_judging(d, c).ad_id.tolist() == [r.ad_id for r in whole.itertuples() if c in list(r.clusters)]
    change(run, '34_select/worklist.parquet', lambda t: pd.DataFrame(columns=t.columns))
    assert worth_judging(read_run(run)).empty and worth_judging(read_run(run), 0).empty
