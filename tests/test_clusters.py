"Edits replayed, clusters described, maps drawn."
import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stages import again, copy_of, hashes
from subtask_kit.artifacts import open_run, read_json, read_table
from subtask_kit.clusters import coordinates, current, describe, replay, save_edit, standing
from subtask_kit.core import UserError
from subtask_kit.selection import save_choice

RAW = pd.DataFrame(dict(ad_id=list('abcdefgh'), cluster=[0, 0, 1, 1, 2, 2, 3, 3], confidence=np.linspace(.2, .9, 8)))


def op(kind, **arguments): return dict(op=kind, **arguments)
def labels(*edits): return replay(RAW, list(edits)).table.cluster.tolist()


def test_each_edit_does_what_it_says():
    assert labels(op('merge', clusters=[1, 0])) == [1, 1, 1, 1, 2, 2, 3, 3]
    assert labels(op('move', ads=['a', 'h'], cluster=2)) == [2, 0, 1, 1, 2, 2, 3, 2]
    assert labels(op('split', cluster=1, ads=['c'])) == [0, 0, 4, 1, 2, 2, 3, 3]
    assert labels(op('split', cluster=1, ads=['c', 'a'])) == [0, 0, 4, 1, 2, 2, 3, 3], 'an ad of another cluster stays where it is'
    p = replay(RAW, [op('drop', cluster=1), op('rename', cluster=2, name='knives', author='me', at='now')])
    assert p.dropped == {1} and p.names == {2: 'knives'} and p.table.equals(RAW)


edits = st.lists(st.one_of(
    st.builds(lambda c: op('drop', cluster=c), st.integers(0, 3)), st.builds(lambda a, b: op('merge', clusters=[a, b]), st.integers(0, 3), st.integers(0, 3)),
    st.builds(lambda a, c: op('move', ads=a, cluster=c), st.lists(st.sampled_from('abcdefgh'), max_size=3), st.integers(0, 3)), st.just(op('undo'))), max_size=8)


@settings(max_examples=60, deadline=None)
@given(edits)
def test_no_edit_loses_an_ad_or_changes_what_it_was_given(some):
    before = RAW.copy()
    try: p = replay(RAW, some)
    except UserError as e:
        assert 'line' in str(e)
        return
    assert RAW.equals(before) and p.table.ad_id.tolist() == RAW.ad_id.tolist() and p.table.confidence.equals(RAW.confidence)
    assert p.dropped <= set(p.table.cluster)


@settings(max_examples=60, deadline=None)
@given(edits, edits)
def test_undo_takes_back_the_last_edit_that_stands(some, more):
    undone = [*some, op('drop', cluster=0), op('undo'), *more]
    assert [e for _, e in standing(undone)] == [e for _, e in standing([*some, *more])]


def test_an_edit_survives_a_relabelling():
    relabelled = RAW.assign(cluster=[3, 3, 2, 2, 1, 1, 0, 0])
    assert replay(relabelled, [op('move', ads=['a'], cluster=0)]).table.cluster.tolist() == [0, 3, 2, 2, 1, 1, 0, 0]


@pytest.mark.parametrize('edit', [op('drop', cluster=9), op('drop', cluster='1'), op('drop', cluster=[1]), op('drop'), op('merge', clusters=[]), op('merge', clusters=[0, 9]), op('move', ads=['zz'], cluster=1),
                                  op('move', ads=['a'], cluster=9), op('split', cluster=0, ads=['c']), op('split', cluster=0, ads=[]), op('eat', cluster=1), op('rename', cluster=1), op('drop', cluster=1, why='x'),
                                  {'cluster': 1},
                                  *[(v) for v in (5, ['drop', 1], 'drop', None)]])
def test_an_edit_that_cannot_be_done_names_its_line(edit):
    with pytest.raises(UserError, match='edits.jsonl line 2'): replay(RAW, [op('drop', cluster=0), edit])


def test_a_new_cluster_inherits_nothing_from_a_number_that_was_used_before():
    p = replay(RAW, [op('rename', cluster=3, name='vases'), op('drop', cluster=3), op('merge', clusters=[0, 3]), op('split', cluster=0, ads=['a'])])
    new = p.table.cluster[0]
    assert new not in p.dropped and new not in p.names


def edit_file(run, *lines):
    (run/'human').mkdir(exist_ok=True)
    (run/'human/edits.jsonl').write_text('\n'.join(x if isinstance(x, str) else json.dumps(x) for x in lines) + '\n')


def test_a_line_that_is_no_json_is_named(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    edit_file(run, op('drop', cluster=0), '{"op": "drop",')
    with pytest.raises(UserError, match='edits.jsonl line 2'): current(run)


def test_empty_lines_do_no_harm(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    edit_file(run, op('drop', cluster=0), '', op('drop', cluster=1), '')
    assert current(run).dropped == {0, 1}


def test_what_a_person_decides_shows_in_the_stage(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    edit_file(run, op('merge', clusters=[0, 1]), op('rename', cluster=0, name='vases'), op('drop', cluster=2))
    assert again(run, 'clusters') == ['clusters']
    table, partition = read_table(run/'32_clusters/clusters.parquet'), read_table(run/'32_clusters/partition.parquet')
    assert table.cluster.tolist() == [0, 2, 3] and table.name.tolist() == ['vases', '', ''] and table.dropped.tolist() == [False, True, False]
    assert table.set_index('cluster')['size'].to_dict() == partition.cluster.value_counts().to_dict()
    raw = read_table(run/'31_selflabel/assignments.parquet')
    assert set(raw.cluster) == {0, 1, 2, 3} and raw.ad_id.tolist() == partition.ad_id.tolist()


def test_the_runs_description_agrees_with_its_parts(micro_run):
    run = open_run(micro_run)
    table, partition, ads = read_table(run/'32_clusters/clusters.parquet'), read_table(run/'32_clusters/partition.parquet'), read_table(run/'13_curate/ads.parquet')
    members = partition.merge(ads, on='ad_id')
    for row in table.itertuples():
        inside = members[members.cluster == row.cluster]
        assert row.size == len(inside) and row.confidence == pytest.approx(inside.confidence.mean()) and row.medoid in set(inside.ad_id)
        assert row.noise_share == pytest.approx(inside.is_noise.mean()) and row.purity == pytest.approx(inside.sub_defect.replace('', 'noise').value_counts().iloc[0]/len(inside))
        assert row.advertisers == inside.advertiser.replace('', pd.NA).nunique()


def test_the_medoid_is_the_member_in_the_middle():
    points = np.array([[0., 0], [1, 0], [5, 0], [0, 0], [0, 1], [0, 2], [9, 9], [9, 9]])
    ads = pd.DataFrame(dict(ad_id=list('abcdefgh'), advertiser=['x', '', 'x', None, '', '', 'y', 'z']))
    table = describe(replay(RAW.assign(cluster=[0, 0, 0, 1, 1, 1, 2, 2]), []), ads, points)
    assert table.medoid.tolist()[:2] == ['b', 'e'] and table.advertisers.tolist() == [1, 0, 2]
    assert table.top_advertiser_share[0] == 1 and np.isnan(table.top_advertiser_share[1]) and 'purity' not in table


def test_a_map_keeps_distances_of_a_plane():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(20, 2)) @ np.linalg.qr(rng.normal(size=(5, 2)))[0].T
    xy, method = coordinates(plane, 'pca')
    def distances(v): return np.linalg.norm(v[:, None] - v, axis=2)
    assert method == 'pca' and np.allclose(distances(xy), distances(plane))
    assert coordinates(plane, 'auto')[1] == 'pca', 'too few points for UMAP'


def test_an_unknown_map_is_refused():
    with pytest.raises(UserError, match='treasure'): coordinates(np.eye(4), 'treasure')


def test_restore_takes_back_a_drop_and_nothing_else():
    p = replay(RAW, [op('drop', cluster=1), op('drop', cluster=2), op('rename', cluster=1, name='x'), op('restore', cluster=1), op('restore', cluster=0)])
    assert p.dropped == {2} and p.names == {1: 'x'} and p.table.equals(RAW)
    assert replay(RAW, [op('drop', cluster=1), op('restore', cluster=1), op('undo')]).dropped == {1}
    with pytest.raises(UserError, match='line 1'): replay(RAW, [op('restore', cluster=9)])


def kept(run): return read_table(run/'34_select/competence.parquet').set_index('cluster')


def test_the_next_run_honours_what_was_decided_and_forgets_what_was_taken_back(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    stages = ('selflabel', 'specialists', 'select', 'curriculum')
    before, first = {s: hashes(run, s) for s in stages}, kept(run)
    c = int(first.index[first.kept][0])
    save_edit(run, dict(op='drop', cluster=c))
    ran = again(run, 'curriculum', clusters_map='pca')
    assert ran[0] == 'clusters' and ran[-1] == 'curriculum' and 'selflabel' not in ran and 'specialists' not in ran, 'a drop trains no teacher anew'
    table = kept(run)
    assert not table.kept[c] and table.by[c] == 'person' and (table.by.drop(c) == 'rule').all() and table.kept.drop(c).equals(first.kept.drop(c))
    assert c not in read_json(run/'35_curriculum/curriculum.json')['order'] and read_json(run/'34_select/manifest.json')['metrics']['by'] == 'person'
    save_edit(run, dict(op='restore', cluster=c))
    again(run, 'curriculum', clusters_map='pca')
    assert {s: hashes(run, s) for s in stages} == before
    save_choice(run, curriculum='cc')
    again(run, 'curriculum', clusters_map='pca')
    written = read_json(run/'35_curriculum/curriculum.json')
    assert (written['method'], written['by']) == ('cc', 'person') and written['order'] == first[first.kept].reset_index().sort_values(['confidence', 'cluster']).cluster.tolist()
    save_choice(run, curriculum=None)
    again(run, 'curriculum', clusters_map='pca')
    assert {s: hashes(run, s) for s in stages} == before, 'with nothing chosen the rule decides again'
