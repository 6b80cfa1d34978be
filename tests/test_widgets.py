"The three widgets without a browser: traits, buttons, messages; whatever one does, the widget shows what a fresh one would."
import json

import ipywidgets as w
import numpy as np
import pandas as pd
import pytest
from fake_run import HOSTILE, finish, make_fake_run
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from looking import change, click, configure, copied, galleries, jpegs, make_looked, walk
from PIL import Image

from subtask_kit import widgets as W
from subtask_kit.artifacts import read_json, read_table, write_json, write_table
from subtask_kit.clusters import current, read_edits, save_edit
from subtask_kit.core import UserError
from subtask_kit.curriculum import order_clusters
from subtask_kit.selection import Select, judge, read_choice, save_choice
from subtask_kit.view import veiled

THREE = [W.ClusterBrowser, W.TeacherInspector, W.CurriculumPicker]
K = 5


@pytest.fixture(scope='module')
def base(tmp_path_factory): return make_looked(tmp_path_factory.mktemp('base')/'run', K)


@pytest.fixture
def run(base, tmp_path): return copied(base, tmp_path/'run')


def plain(outputs): return json.loads(json.dumps(outputs))


def shown(widget):
    "All that a person sees, as plain values."
    pictures = [[(i['caption'], i['alt'], i['tone'], i['group'], i['id']) for i in g.items] for g in galleries(widget)]
    if isinstance(widget, W.ClusterBrowser):
        return dict(list=widget.list.options, at=widget.list.value, groups=widget.map.groups, code=bytes(widget.map.code), xy=bytes(widget.map.xy), facts=widget.facts.value, beside=widget.beside.options,
                    other=widget.edits.other.options, drop=widget.edits.dropping.description, titles=widget.albums[0].galleries[0].title, pictures=pictures[0])
    if isinstance(widget, W.TeacherInspector):
        chart = widget.chart
        return dict(teachers=sorted(widget.teacher.options), T=widget.T.value, kept=widget.kept.value, facts=widget.facts.value, scores=plain(widget.scores.outputs), drop=widget.decisions.dropping.description,
                    chart=[chart.rows, chart.verdicts, chart.tips, chart.chosen], lines=[chart.T, chart.floor], titles=[g.title for g in galleries(widget)], pictures=pictures)
    return dict(method=widget.method.value, own=widget.own, text=widget.decisions.text.value, orders=widget.orders, feed=plain(widget.feed.outputs), scores=widget.scores.value, pictures=pictures)


def like(widget):
    "A fresh widget that looks at the same thing."
    fresh = type(widget)(widget.editor.run)
    if isinstance(widget, W.ClusterBrowser):
        fresh.rank.value, fresh.sort.value = widget.rank.value, widget.sort.value
        fresh.show(widget.list.value, widget.beside.value)
    elif isinstance(widget, W.TeacherInspector): fresh.lineup.value, fresh.teacher.value, fresh.kind.value = widget.lineup.value, widget.teacher.value, widget.kind.value
    else: fresh.epoch.value = widget.epoch.value
    return fresh


def agrees(widget):
    mine, fresh = shown(widget), shown(like(widget))
    assert not (wrong := {k: (mine[k], fresh[k]) for k in mine if mine[k] != fresh[k]}), wrong


def ids_of(b, cluster): return b.editor.ads.ad_id[b.editor.cluster == cluster].tolist()
def said(widget): return widget.status.text, widget.status.notice
def from_browser(widget, **state): widget.set_state({k: memoryview(v) if isinstance(v, bytes) else v for k, v in state.items()})
def message(widget, content): widget._handle_custom_msg(content, [])


# Opening

@pytest.mark.parametrize('kind', THREE)
def test_a_run_may_be_a_path_a_string_or_opened(run, kind):
    assert shown(kind(run)) == shown(kind(run.path)) == shown(kind(str(run.path)))
    assert isinstance(kind(run), w.DOMWidget) and repr(kind(run)) == f'{kind.__name__}({str(run.path)!r})'


@pytest.mark.parametrize('kind, needs', list(zip(THREE, (['13_curate', '31_selflabel', '32_clusters'], ['13_curate', '31_selflabel', '32_clusters', '34_select'], ['13_curate', '31_selflabel', '32_clusters', '34_select', '35_curriculum']))))
def test_a_run_that_is_not_finished_is_one_clear_mistake(run, kind, needs):
    for stage in needs:
        file = run/stage/'manifest.json'
        file.rename(run/'away')
        with pytest.raises(UserError, match=stage) as e: kind(run)
        assert '\n' not in str(e.value) and 'subtask-kit run' in str(e.value)
        (run/'away').rename(file)
    kind(run)


@pytest.mark.parametrize('kind', THREE)
def test_a_path_that_is_no_run(kind, tmp_path):
    (tmp_path/'file').write_text('')
    for path in (tmp_path/'nowhere', tmp_path/'file', tmp_path):
        with pytest.raises(UserError): kind(path)


def test_a_browser_opens_as_soon_as_there_are_clusters(tmp_path):
    b = W.ClusterBrowser(make_fake_run(tmp_path/'run', 4, until='32_clusters', truth=False))
    click(b, 'Drop')
    agrees(b)
    assert 'lift of its teacher' in b.facts.value and 'truth' not in b.facts.value


# Pictures are veiled until asked

def veils(widget): return all(max(p.size) <= 6 for g in galleries(widget) for p in jpegs(g))


@pytest.mark.parametrize('kind', THREE)
def test_no_picture_is_sharp_before_one_asks(run, kind):
    widget = kind(run)
    acts = [lambda: widget.redraw(), lambda: widget.look(), lambda: save_edit(run, dict(op='drop', cluster=1)), lambda: widget.look()]
    if kind is W.ClusterBrowser:
        acts += [lambda: widget.show(2, 3), lambda: from_browser(widget.albums[0].galleries[0], page=1), lambda: widget.lasso(widget.editor.ads.ad_id[:30]), lambda: setattr(widget.sort, 'value', 'least sure first'),
                 lambda: click(widget, 'Undo'), lambda: click(widget, 'Rename')]
    elif kind is W.TeacherInspector: acts += [lambda: setattr(widget.kind, 'value', k) for k in W.VIEWS.values()] + [lambda n=n: setattr(widget.lineup, 'value', n) for n in widget.lineup.options] + [lambda: setattr(widget.kind, 'value', 'again')] + [lambda: setattr(widget.T, 'value', .5), lambda: click(widget, 'Save this T'), lambda: click(widget, 'Drop')]
    else: acts += [lambda: from_browser(widget.gallery, picked=['cc:0']), lambda: click(widget, 'Later'), lambda: click(widget, 'Use this'), lambda: click(widget, 'Undo')]
    for act in acts:
        act()
        assert galleries(widget) and veils(widget)
    widget.sharp.value = True
    assert any(p.size == (36, 36) for g in galleries(widget) for p in jpegs(g)) and not veils(widget)
    widget.sharp.value = False
    assert veils(widget)


def test_veiling_again_takes_back_what_a_hidden_gallery_holds(run):
    b = W.ClusterBrowser(run)
    b.sharp.value = True
    b.show(1, beside=2)
    b.show(1)
    b.sharp.value = False
    assert veils(b)


@pytest.mark.parametrize('kind', THREE)
def test_the_static_picture_is_made_of_veiled_pictures(run, kind):
    "A run whose pictures hold nothing but what the veil leaves has the same still."
    def still(): return np.asarray(kind(run).still())
    images = np.load(run/'13_curate/images.npy')
    before = still()
    assert still().tobytes() == before.tobytes()
    np.save(run/'13_curate/images.npy', np.stack([np.kron(veiled(i), np.ones((6, 6, 1), 'uint8')) for i in images]))
    assert still().tobytes() == before.tobytes()
    np.save(run/'13_curate/images.npy', 255-images)
    assert still().tobytes() != before.tobytes(), 'the pictures are in it at all'


@pytest.mark.parametrize('kind', THREE)
def test_a_widget_brings_a_picture_for_where_no_kernel_runs(run, kind):
    bundle = kind(run)._repr_mimebundle_()
    assert bundle['image/jpeg'][:4] == '/9j/' and bundle['text/plain'].startswith(kind.__name__) and 'application/vnd.jupyter.widget-view+json' in bundle
    assert len(bundle['image/jpeg']) < 400_000


# ClusterBrowser

ACTS = ['drop', 'rename', 'merge', 'move', 'split', 'undo']


def do(b, act, pick):
    "One edit by its button; pictures are picked as the browser picks them."
    ids = [i['id'] for i in b.albums[0].galleries[0].items]
    if act == 'rename': b.edits.name.value = f'name {pick}'
    if act in ('move', 'split'): from_browser(b.albums[0].galleries[0], picked=ids[:1+pick % max(1, len(ids))])
    if act in ('move', 'merge'): b.edits.other.value = b.edits.other.options[pick % len(b.edits.other.options)][1]
    click(b.edits, act.capitalize() if act != 'drop' else 'Restore' if b.list.value in b.editor.dropped else 'Drop')


@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=6))
def test_after_any_edits_a_browser_is_like_a_fresh_one(base, tmp_path_factory, acts):
    run = copied(base, tmp_path_factory.mktemp('acts')/'run')
    b = W.ClusterBrowser(run)
    for act, where, pick in acts:
        b.show(b.list.options[where % len(b.list.options)][1])
        do(b, act, pick)
        assert b.editor.lines == len(read_edits(run)) and (b.editor.cluster == current(run).table.cluster).all()
        assert b.status.text.startswith(f'saved, operation {b.editor.lines}') or b.status.notice or b.editor.lines == 0
    agrees(b)


def test_every_button_says_what_it_did(run):
    b = W.ClusterBrowser(run)
    b.show(2)
    click(b, 'Drop')
    assert said(b) == ('saved, operation 1: cluster 2 dropped', '') and b.edits.dropping.description == 'Restore cluster 2'
    click(b, 'Restore')
    assert said(b) == ('saved, operation 2: cluster 2 restored', '') and b.editor.dropped == set()
    b.edits.name.value = ' vases '
    click(b, 'Rename')
    assert said(b) == ('saved, operation 3: cluster 2 is called "vases"', '') and b.edits.name.value == 'vases' and b.editor.names == {2: 'vases'}
    b.edits.other.value = 4
    click(b, 'Merge')
    assert said(b) == ('saved, operation 4: cluster 2 joined cluster 4', '') and b.list.value == 4
    click(b, 'Merge')
    assert 'choose another one' in b.status.notice and len(read_edits(run)) == 4
    b.show(0)
    first = [i['id'] for i in b.albums[0].galleries[0].items][:3]
    from_browser(b.albums[0].galleries[0], picked=first)
    assert b.edits.moving.description == 'Move 3 pictures to 4'
    b.edits.other.value = 1
    click(b, 'Move')
    assert said(b) == ('saved, operation 5: 3 pictures moved to cluster 1', '') and set(first) <= set(ids_of(b, 1))
    from_browser(b.albums[0].galleries[0], picked=[i['id'] for i in b.albums[0].galleries[0].items][:2])
    click(b, 'Split')
    assert said(b) == ('saved, operation 6: 2 pictures of cluster 0 split off', '') and b.list.value == 5 and len(ids_of(b, 5)) == 2
    for n in range(7, 13):
        click(b, 'Undo')
        assert said(b)[0].startswith(f'saved, operation {n}: taken back: ') and said(b)[1] == ''
    click(b, 'Undo')
    assert b.status.notice == 'there is nothing to undo' and b.editor.lines == 12
    agrees(b)


def test_pictures_split_off_are_counted_as_what_was_split(run):
    "A lasso over two clusters: a split takes those of the cluster that is chosen."
    b = W.ClusterBrowser(run)
    b.show(1)
    b.lasso(ids_of(b, 1)[:2] + ids_of(b, 2)[:3])
    click(b, 'Split')
    assert len(ids_of(b, 5)) == 2 and '2 pictures' in b.status.text


def test_what_is_lit_on_the_map_is_what_is_looked_at(run):
    b = W.ClusterBrowser(run)
    b.show(1)
    lit = lambda: set(b.editor.ads.ad_id[W.from_bits(b.map.lit, len(b.editor.ads))])
    assert lit() == set(ids_of(b, 1))
    from_browser(b.albums[0].galleries[0], picked=ids_of(b, 1)[:2])
    b.edits.other.value = 3
    click(b, 'Move')
    assert b.list.value == 1 and lit() == set(ids_of(b, 1)), 'what has been moved away is no longer lit'


def test_an_ad_that_led_and_was_moved_away_leads_no_more(run):
    b = W.ClusterBrowser(run)
    ad = ids_of(b, 1)[3]
    message(b.map, dict(kind='click', index=int(b.editor.place.get_loc(ad))))
    g = b.albums[0].galleries[0]
    assert b.list.value == 1 and g.items[0]['id'] == ad
    from_browser(g, picked=[ad])
    b.edits.other.value = 2
    click(b, 'Move')
    assert ad not in [i['id'] for i in g.items] and g.title == f'cluster 1, {len(ids_of(b, 1))} ads'


def test_an_ad_leads_only_in_its_own_cluster(run):
    b = W.ClusterBrowser(run)
    b.show(1, beside=2, first=int(b.editor.place.get_loc(ids_of(b, 1)[0])))
    assert {i['id'] for i in b.albums[0].galleries[1].items} == set(ids_of(b, 2))


def test_a_lasso_of_the_browser_and_one_of_python(run):
    b = W.ClusterBrowser(run)
    some = [3, 5, 40, 77]
    from_browser(b.map, selected=W.to_bits(np.isin(np.arange(len(b.editor.ads)), some)))
    assert sorted(i['id'] for i in b.albums[0].galleries[0].items) == sorted(b.editor.ads.ad_id.iloc[some]) and b.albums[0].galleries[0].title.startswith('lasso: ')
    assert b.edits.pictures() and b.edits.moving.description == 'Move 4 pictures to 0' and not b.edits.moving.disabled
    from_browser(b.map, selected=b'')
    assert b.lassoed is None and b.edits.moving.disabled and b.albums[0].galleries[0].title.startswith('cluster')
    b.lasso(b.editor.ads.ad_id.iloc[some])
    assert b.edits.pictures() == b.editor.ads.ad_id.iloc[some].tolist()
    with pytest.raises(UserError, match='nobody'): b.lasso(['nobody'])
    b.lasso(b.editor.ads.ad_id)
    assert len(b.edits.pictures()) == len(b.editor.ads) and b.albums[0].galleries[0].pages == -(-len(b.editor.ads)//W.PAGE)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_are_the_browsers(mask):
    bits, oracle = W.to_bits(np.array(mask)), bytearray(-(-len(mask)//8))
    for i, m in enumerate(mask): oracle[i >> 3] |= m << (i & 7)
    assert bits == (bytes(oracle) if any(mask) else b'')
    for sent in (bits, memoryview(bits), b'' if not any(mask) else bytes(oracle)): assert W.from_bits(sent, len(mask)).tolist() == mask


def test_pages_hold_every_ad_once_and_a_page_beyond_holds_none(run):
    b = W.ClusterBrowser(run)
    b.lasso(b.editor.ads.ad_id)
    g, seen = b.albums[0].galleries[0], []
    for page in range(g.pages):
        from_browser(g, page=page)
        seen += [i['id'] for i in g.items]
    assert sorted(seen) == sorted(b.editor.ads.ad_id) and len(seen) == len(set(seen))
    confidence = b.editor.ads.set_index('ad_id').confidence[seen]
    assert confidence.is_monotonic_decreasing
    from_browser(g, page=99)
    assert g.items == []


def test_steps_go_through_the_list_and_round(run):
    b = W.ClusterBrowser(run)
    order, seen = [c for _, c in b.list.options], [b.list.value]
    for _ in order:
        message(b.map, dict(kind='step', by=1))
        seen.append(b.list.value)
    assert seen == [*order, order[0]]
    message(b.map, dict(kind='step', by=-1))
    assert b.list.value == order[-1]


def test_the_list_is_ranked_as_it_says(run):
    b = W.ClusterBrowser(run)
    for name, (column, rising) in W.RANKS.items():
        b.rank.value = name
        values = b.table.reset_index().set_index('cluster', drop=False)[column][[c for _, c in b.list.options]]
        assert values.is_monotonic_increasing if rising else values.is_monotonic_decreasing
    b.show(3)
    b.rank.value = 'by number'
    assert b.list.value == 3, 'ranking anew keeps what one looks at'


def test_merging_all_into_one_and_splitting_everything(run):
    b = W.ClusterBrowser(run)
    for c in range(1, K):
        b.show(c)
        b.edits.other.value = 0
        click(b, 'Merge')
    assert [c for _, c in b.list.options] == [0] and len(ids_of(b, 0)) == len(b.editor.ads)
    agrees(b)
    click(b, 'Merge')
    assert 'already' in b.status.notice
    save_edit(run, dict(op='split', cluster=0, ads=b.editor.ads.ad_id.tolist()))
    b.look()
    assert [c for _, c in b.list.options] == [K] and b.list.value == K
    agrees(b)


def test_a_lasso_of_exactly_the_cluster_that_is_looked_at_is_a_lasso(run):
    b = W.ClusterBrowser(run)
    b.show(1)
    b.lasso(ids_of(b, 1))
    assert sorted(b.edits.pictures()) == sorted(ids_of(b, 1)) and not b.edits.moving.disabled


def test_an_edit_marks_the_numbers_of_the_last_run(run):
    b = W.ClusterBrowser(run)
    b.show(1)
    from_browser(b.albums[0].galleries[0], picked=ids_of(b, 1)[:1])
    b.edits.other.value = 2
    click(b, 'Move')
    assert b.table.changed.to_dict() == {0: False, 1: True, 2: True, 3: False, 4: False} and b.table.lift.isna().tolist() == [False, True, True, False, False]
    assert 'edited since; run again' in b.facts.value
    click(b, 'Undo')
    assert not b.table.changed.any() and 'edited since' not in b.facts.value


def test_what_the_stage_says_of_a_cluster_is_shown_until_it_is_edited(run):
    said = {1: ['one advertiser has <83> %']}
    change(run, '32_clusters/clusters.parquet', lambda t: t.assign(suspects=.25, words=[['vase', 'blue'] if c == 1 else [] for c in t.cluster], warnings=[said.get(c, []) for c in t.cluster]))
    b = W.ClusterBrowser(run)
    b.show(1)
    for words in ('one advertiser has &lt;83&gt; %', 'vase, blue', '25 %, by cleanlab'): assert words in b.facts.value
    b.show(0)
    assert 'advertiser has' not in b.facts.value and 'nan' not in b.facts.value
    b.show(1)
    from_browser(b.albums[0].galleries[0], picked=ids_of(b, 1)[:1])
    b.edits.other.value = 2
    click(b, 'Move')
    b.show(1)
    assert 'advertiser has' not in b.facts.value and 'vase' not in b.facts.value and 'cleanlab' not in b.facts.value and 'nan' not in b.facts.value


def test_numbers_of_teachers_that_knew_other_clusters_are_not_shown(run):
    "As after `run --until clusters`, or a run that was interrupted: clusters are new, the verdicts on teachers are old."
    save_edit(run, dict(op='merge', clusters=[0, 1]))
    part = current(run).table
    change(run, '32_clusters/partition.parquet', lambda t: part)
    old = read_json(run/'33_specialists/manifest.json')
    old['spec']['inputs'] = {'32_clusters/partition.parquet': 'what it was before'}
    write_json(old, run/'33_specialists/manifest.json')
    b = W.ClusterBrowser(run)
    assert pd.isna(b.table.loc[0].get('lift')), 'the teacher of cluster 0 has never seen the ads of cluster 1'


# TeacherInspector

def test_dragging_T_is_judging_anew(run):
    i, table = W.TeacherInspector(run), read_table(run/'34_select/competence.parquet')
    for T in (-.3, .1, .35, .5, .97):
        i.T.value = T
        want = judge(table, Select(T=T))
        assert i.table.sort_values('cluster').kept.tolist() == want.kept.tolist() and f'<b>{want.kept.sum()} of {K} teachers are kept</b>' in i.kept.value
        share = table['size'][want.kept].sum()/table['size'].sum()
        assert f'{100*share:.0f} %' in i.kept.value
        assert dict(zip([r['label'] for r in i.chart.rows], i.chart.verdicts)) == {str(c): v for c, v in zip(want.cluster, want.verdict)}
        assert i.chart.T == T and len(i.chart.tips) == len(i.chart.rows)


def test_a_T_is_saved_restored_and_undone(run):
    i = W.TeacherInspector(run)
    for n, T in enumerate((.3, .55), 1):
        i.T.value = T
        click(i, 'Save this T')
        assert said(i) == (f'saved, operation {n}: T = {T:.2f}', '') and read_choice(run)['T'] == T
        agrees(i)
    click(i, 'Undo')
    assert i.T.value == .3 == read_choice(run)['T']
    click(i, 'Undo')
    assert i.T.value == .1 and read_choice(run) == {}
    click(i, 'Undo')
    assert 'no choice' in i.status.notice
    agrees(i)


def test_undo_T_takes_back_no_order(run):
    "The button names T: an order that was chosen since stays, or it says what it would take back."
    i, p = W.TeacherInspector(run), W.CurriculumPicker(run)
    i.T.value = .3
    click(i, 'Save this T')
    p.look()
    p.method.value = 'cc'
    click(p, 'Use this')
    i.look()
    click(i, 'Undo')
    assert read_choice(run).get('curriculum') == 'cc' or 'order' in (i.status.text + i.status.notice)


def test_a_dropped_teacher_and_back(run):
    i = W.TeacherInspector(run)
    i.teacher.value = 1
    click(i, 'Drop cluster 1')
    assert i.decisions.dropping.description == 'Restore cluster 1' and not i.table.set_index('cluster').kept[1] and 'dropped by a person' in i.facts.value and said(i)[0] == 'saved, operation 1: cluster 1 dropped'
    agrees(i)
    click(i, 'Restore cluster 1')
    assert i.table.set_index('cluster').kept[1]
    agrees(i)


def test_each_sight_of_a_teacher_is_a_sorted_selection(run):
    i = W.TeacherInspector(run)
    ads = read_table(run/'13_curate/ads.parquet').set_index('ad_id')
    for c in range(K):
        i.teacher.value = c
        judged = W.judged_by(i.editor.d, c).set_index('ad_id')
        assert set(judged.index) == set(ads.index[(ads.split == 'teacher_test') & ads.label.notna()])
        for kind, (label, column, rising) in dict(best=(0, 'margin', True), worst=(1, 'margin', True), costliest=(1, 'impressions', False)).items():
            i.kind.value = kind
            ids = [x['id'] for x in i.albums[0].galleries[0].items]
            assert (judged.label[ids] == label).all() and (judged[column][ids].is_monotonic_increasing if rising else judged[column][ids].is_monotonic_decreasing)
        assert f'its cluster {c}' in i.albums[1].galleries[0].title


@pytest.mark.parametrize('name', W.LINEUPS)
def test_teachers_can_be_put_in_another_order(run, name):
    i, table = W.TeacherInspector(run), read_table(run/'34_select/competence.parquet').set_index('cluster')
    i.teacher.value = 1
    i.lineup.value = name
    key = {'best first': -table.lift, 'most likely below T first': -table.below, 'most by luck first': (table.kept_share-.5).abs()}[name]
    labels = [int(r['label']) for r in i.chart.rows]
    assert labels == i.order == i.table.cluster.tolist() and key[labels].is_monotonic_increasing and i.teacher.value == 1 and i.chart.rows[i.chart.chosen]['label'] == '1'
    assert all(f'shrunken {table.shrunken[c]:.2f}' in tip for c, tip in zip(labels, i.chart.tips)) and i.chart.verdicts == table.verdict[labels].tolist()
    from_browser(i.chart, chosen=0)
    assert i.teacher.value == labels[0]
    i.T.value = .5
    assert [r['label'] for r in i.chart.rows] == [str(c) for c in i.table.cluster] == [str(c) for c in labels]
    i.T.value = .1
    agrees(i)


def test_the_evidence_on_a_teacher_is_told(run):
    change(run, '34_select/competence.parquet', lambda t: t.assign(reasons=[[*r, HOSTILE] for r in t.reasons]))
    i, table = W.TeacherInspector(run), read_table(run/'34_select/competence.parquet').set_index('cluster')
    for c, r in table.iterrows():
        i.teacher.value = c
        said = i.facts.value
        assert all(W.escape(x) in said for x in r.reasons) and f'Shrunken lift {r.shrunken:.2f} ({r.shrunken_low:.2f} to {r.shrunken_high:.2f})' in said and f'probability {r.below:.2f}' in said and '<script' not in said
        assert f'support {100*r.support:.0f} % ({100*r.support_low:.0f} % to {100*r.support_high:.0f} %)' in said


def test_ads_to_judge_again_are_those_that_bear_on_the_teacher(run):
    i, worklist = W.TeacherInspector(run), read_table(run/'34_select/worklist.parquet').sort_values('rank')
    i.kind.value = 'again'
    for c in range(K):
        i.teacher.value = c
        want = [r.ad_id for r in worklist.itertuples() if c in list(r.clusters)]
        assert [x['id'] for x in i.albums[0].galleries[0].items] == want and f'teacher {c}: ads to judge again, {len(want)} on the worklist' in i.albums[0].galleries[0].title
    i.still()
    agrees(i)


def test_the_level_is_the_one_that_was_used(run):
    configure(run, '34_select', level=0)
    assert W.TeacherInspector(run).cfg.level == read_json(run/'34_select/manifest.json')['metrics']['level'] == .02


def test_a_run_of_an_earlier_version_opens_without_what_it_lacks(tmp_path):
    run = make_looked(tmp_path/'run', K, older=True)
    i = W.TeacherInspector(run)
    assert i.lineup.options == ('best first',) and 'again' not in [v for _, v in i.kind.options] and 'hrunken' not in i.facts.value and 'hrunken' not in ''.join(i.chart.tips)
    agrees(i)
    for kind in THREE: kind(run).still()


def test_a_choice_in_the_numbers_of_earlier_clusters_is_shown_in_those_of_today(run):
    "Clusters keep their members and change their numbers."
    save_choice(run, kept=[0, 2], order=[2, 0], T=.3)
    new = {0: 3, 1: 4, 2: 1, 3: 0, 4: 2}
    change(run, '31_selflabel/assignments.parquet', lambda t: t.assign(cluster=t.cluster.map(new)))
    change(run, '32_clusters/partition.parquet', lambda t: t.assign(cluster=t.cluster.map(new)))
    i, p = W.TeacherInspector(run), W.CurriculumPicker(run)
    assert sorted(i.table.cluster[i.table.kept]) == [1, 3] and i.T.value == .3 and p.own[:2] == [1, 3] and 'order [1, 3]' in i.status.text
    change(run, '31_selflabel/assignments.parquet', lambda t: t.assign(cluster=np.arange(len(t)) % K))
    change(run, '32_clusters/partition.parquet', lambda t: t.assign(cluster=np.arange(len(t)) % K))
    i = W.TeacherInspector(run)
    assert i.T.value == .3 and 'kept' not in i.status.text and set(i.table.by) == {'rule'}, 'scattered: the widget opens, and the next run says what is lost'


def test_a_click_on_the_chart_picks_the_teacher(run):
    for c in range(K): save_edit(run, dict(op='rename', cluster=c, name=HOSTILE*3))
    i = W.TeacherInspector(run)
    for at, row in enumerate(i.chart.rows):
        from_browser(i.chart, chosen=at)
        assert row['label'].startswith(f'{i.teacher.value} <script') and len(row['label']) <= 18
    i.teacher.value = i.order[0]
    assert i.chart.chosen == 0


def test_T_can_be_dragged_in_the_chart(run):
    i = W.TeacherInspector(run)
    from_browser(i.chart, T=.42)
    assert i.T.value == .42 and 'At T = 0.42' in i.kept.value and i.chart.stamp


@pytest.mark.parametrize('choice', [dict(kept=[0, 4]), dict(T=.6), dict(order=[4, 2, 0, 1, 3]), dict(kept=[1], T=.2, order=[1, 0, 2, 3, 4], curriculum='hand'), dict(curriculum='apc')])
def test_a_choice_of_a_hand_is_honoured(run, choice):
    write_json(choice, run/'human/choice.json')
    i, p = W.TeacherInspector(run), W.CurriculumPicker(run)
    if 'kept' in choice: assert sorted(i.table.cluster[i.table.kept]) == choice['kept']
    assert i.T.value == choice.get('T', .1) and p.method.value == choice.get('curriculum', 'hand' if 'order' in choice else p.standing())
    if 'order' in choice: assert p.own == [c for c in choice['order'] if c in p.own] and p.orders['hand'] == p.own


@pytest.mark.parametrize('choice', [dict(kept=[0, 77]), dict(order=[77, 0]), dict(curriculum='nonsense'), dict(T=3), dict(T=-3)])
@pytest.mark.parametrize('kind', THREE)
def test_a_choice_that_names_what_is_not_there_opens_or_is_a_clear_mistake(run, kind, choice):
    write_json(choice, run/'human/choice.json')
    try: widget = kind(run)
    except UserError as e: assert 'choice.json' in str(e)
    else: agrees(widget)


@pytest.mark.parametrize('choice', ['{"kept": [0, 77]}', '{"curriculum": "nonsense"}', '{"T": "x"}', '{', '{"T": 3}'])
@pytest.mark.parametrize('kind', THREE)
def test_a_choice_broken_elsewhere_is_said_and_does_not_break_an_open_widget(run, kind, choice):
    widget = kind(run)
    (run/'human').mkdir(exist_ok=True)
    (run/'human/choice.json').write_text(choice)
    message(widget.status, dict(kind='look', n=1))
    assert widget.status.notice


def test_literal_settings_are_looked_at_on_their_scale(run):
    configure(run, '34_select', scale='npv', rate_of='defective', level=.01, rule='estimate', T=.5)
    manifest = read_json(run/'34_select/manifest.json')
    write_json(manifest | dict(metrics=manifest['metrics'] | dict(T=.5)), run/'34_select/manifest.json')
    i = W.TeacherInspector(run)
    assert (i.T.min, i.T.value) == (0, .5)
    assert i.table.kept.tolist() == (i.table.npv >= .5).tolist() and i.chart.axis == 'NPV'
    i.T.value = .8
    assert i.table.kept.tolist() == (i.table.npv >= .8).tolist()
    click(i, 'Save this T')
    agrees(i)
    i.still()


def test_a_cluster_without_a_teacher(run):
    change(run, '33_specialists/clusters.parquet', lambda t: t[t.cluster != 2])
    gone = 'npv low high floor lift lift_low lift_high literal_npv literal_floor teacher_val_npv'.split()
    change(run, '34_select/competence.parquet', lambda t: t.assign(**{c: t[c].where(t.cluster != 2) for c in gone}, kept=t.kept & (t.cluster != 2), verdict=t.verdict.where(t.cluster != 2, 'dropped')))
    i, b, p = W.TeacherInspector(run), W.ClusterBrowser(run), W.CurriculumPicker(run)
    assert 2 not in [c for _, c in i.teacher.options] and 2 not in p.own
    b.show(2)
    assert '–' in b.facts.value
    for widget in (i, b, p): agrees(widget)


# CurriculumPicker

def test_orders_are_those_of_the_stage(run):
    p, table = W.CurriculumPicker(run), read_table(run/'34_select/competence.parquet')
    assert set(p.orders) == set(W.ORDER_NAMES)
    for name, order in p.orders.items(): assert order == order_clusters(name, table, p.own)
    shown = [i['id'] for i in p.gallery.items]
    assert shown == [f'{m}:{c}' for m, order in p.orders.items() for c in order]


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(st.sampled_from(['Use this', 'Earlier', 'Later', 'Undo']), st.tuples(st.just('pick'), st.integers(0, 40)), st.tuples(st.just('type'), st.permutations([0, 1, 2, 3])), st.tuples(st.just('method'), st.sampled_from(list(W.ORDER_NAMES)))), max_size=7))
def test_whatever_is_done_an_order_is_whole_and_the_saved_one_is_marked(base, tmp_path_factory, acts):
    run = copied(base, tmp_path_factory.mktemp('orders')/'run')
    p = W.CurriculumPicker(run)
    for act in acts:
        if act in ('Use this', 'Earlier', 'Later', 'Undo'): click(p, act)
        elif act[0] == 'pick': from_browser(p.gallery, picked=[p.gallery.items[act[1] % len(p.gallery.items)]['id']])
        elif act[0] == 'type': from_browser(p.decisions.text, value=' '.join(map(str, act[1])))
        else: p.method.value = act[1]
        assert sorted(p.own) == [0, 1, 2, 3] and all(sorted(o) == sorted(p.own) for o in p.orders.values())
        choice, chosen = read_choice(run), {i['group'] for i in p.gallery.items if i['group'].endswith('chosen')}
        assert chosen == {W.ORDER_NAMES[p.standing()] + ' - chosen'}
        assert choice.get('order') is None or choice['curriculum'] == 'hand'


def test_an_order_of_ones_own_is_saved_and_undone(run):
    p = W.CurriculumPicker(run)
    from_browser(p.decisions.text, value='3, 1 0 2')
    assert p.own == [3, 1, 0, 2] and p.method.value == 'hand'
    click(p, 'Use this')
    assert said(p) == ('saved, operation 1: the order is your own', '') and read_choice(run)['order'] == [3, 1, 0, 2] and read_choice(run)['curriculum'] == 'hand'
    agrees(p)
    p.method.value = 'cc'
    click(p, 'Use this')
    assert said(p)[0] == 'saved, operation 2: the order is cc' and 'order' not in read_choice(run)
    click(p, 'Undo')
    assert read_choice(run)['order'] == [3, 1, 0, 2] and p.method.value == 'hand'
    agrees(p)


def test_the_order_that_is_marked_as_chosen_is_the_one_that_is_saved(run):
    p = W.CurriculumPicker(run)
    for order in ('3 1 0 2', '0 1 2 3'):
        from_browser(p.decisions.text, value=order)
        click(p, 'Use this')
    click(p, 'Undo')
    assert read_choice(run)['order'] == [3, 1, 0, 2]
    assert [i['id'] for i in p.gallery.items if i['group'].endswith('chosen')] == ['hand:3', 'hand:1', 'hand:0', 'hand:2']


@pytest.mark.parametrize('text', ['', '0', '0 1 2', '0 1 2 2', '0 1 2 3 4 5', 'a b', '-1 0 1 2', '0 1 2 3 x', '--1', '²', '1.5', '9'*400])
def test_an_order_that_is_none_is_refused_in_words(run, text):
    p = W.CurriculumPicker(run)
    before = p.own
    from_browser(p.decisions.text, value=text)
    assert p.own == before and p.status.notice.startswith('not taken: an order names each of') and p.decisions.text.value == ', '.join(map(str, before))


def test_a_picked_cluster_is_moved_in_ones_own_order(run):
    p = W.CurriculumPicker(run)
    click(p, 'Later')
    assert p.status.notice == 'pick a cluster first'
    order = list(p.orders['cc'])
    from_browser(p.gallery, picked=[f'cc:{order[0]}'])
    assert p.method.value == 'cc'
    for at in (1, 2, 3, 3):
        click(p, 'Later')
        assert p.own.index(order[0]) == at and p.method.value == 'hand' and p.gallery.picked == [f'hand:{order[0]}']
    for at in (2, 1, 0, 0):
        click(p, 'Earlier')
        assert p.own.index(order[0]) == at
    assert p.own == order


def test_an_order_that_cannot_be_had_cannot_be_chosen(run):
    change(run, '34_select/competence.parquet', lambda t: t.assign(teacher_val_npv=t.teacher_val_npv.where(t.cluster != 1)))
    p = W.CurriculumPicker(run)
    assert 'pc' not in p.orders
    p.method.value = 'pc'
    click(p, 'Use this')
    assert read_choice(run).get('curriculum') != 'pc' and p.status.notice


@pytest.mark.parametrize('method', ['interleaved', 'cc', 'hand'])
def test_an_epoch_feeds_every_ad_once(run, method):
    p, ads = W.CurriculumPicker(run), read_table(run/'13_curate/ads.parquet')
    part = read_table(run/'32_clusters/partition.parquet')
    for epoch in (0, 3):
        feed = W.epoch_feed(p.editor, method, p.orders[method], epoch)
        assert feed.groupby('cluster').defective.sum().to_dict() == part.cluster[part.cluster.isin(p.own)].value_counts().to_dict()
        assert feed.acceptable.sum() == ((ads.split == 'train') & (ads.label == 1)).sum()
        if method != 'interleaved': assert feed.cluster.drop_duplicates().tolist() == p.orders[method]


def test_interleaved_feeds_acceptable_ads_once_under_algorithm_1_too(run):
    "37_distill repeats acceptable ads only where sub-tasks come one after another."
    configure(run, '35_curriculum', acceptable='repeated')
    p, n = W.CurriculumPicker(run), ((read_table(run/'13_curate/ads.parquet').split == 'train') & (read_table(run/'13_curate/ads.parquet').label == 1)).sum()
    assert W.epoch_feed(p.editor, 'cc', p.orders['cc'], 0).acceptable.sum() == n*len(p.own)
    assert W.epoch_feed(p.editor, 'interleaved', p.orders['interleaved'], 0).acceptable.sum() == n


@pytest.mark.parametrize('method', ['interleaved', 'cc', 'hand'])
@pytest.mark.parametrize('acceptable', ['shared', 'repeated'])
def test_the_feed_is_what_distill_feeds(micro_run, tmp_path, method, acceptable):
    from stages import copy_of

    from subtask_kit.distill import ROWS, Row, epoch_batches, load_lessons, own_row
    run = copy_of(micro_run, tmp_path/'run')
    order = order_clusters(method, read_table(run/'34_select/competence.parquet'), [2, 0, 3, 1])
    write_json(dict(method=method, order=order, scores={}, by='rule', acceptable=acceptable), run/'35_curriculum/curriculum.json')
    finish(run, '35_curriculum', config=dict(method=method, acceptable=acceptable))
    e, row = W.Editor(run, 'competence', 'curriculum', 'clusters'), ROWS[own_row(dict(method=method))]
    assert isinstance(row, Row)
    lessons = load_lessons(run, row)
    strict, cfg = row.order != 'interleaved', e.d['manifests']['37_distill']['spec']['config']
    bad = set(lessons.defective.tolist())
    for epoch in (0, 1):
        real = [(b, sum(int(r) in bad for r in rows), len(rows)) for b, (rows, *_) in enumerate(epoch_batches(lessons, cfg['batch'], cfg['seeds'][0], epoch, acceptable if strict else 'shared', 'strict' if strict else 'mixed'))]
        feed = W.epoch_feed(e, method, order, epoch).groupby('batch')[['defective', 'acceptable']].sum()
        assert [(b, d, d+a) for b, d, a in feed.itertuples()] == real


# Two widgets, and decisions elsewhere

@pytest.mark.parametrize('kind', THREE)
def test_edits_elsewhere_are_taken_over_at_a_look(run, kind):
    widget = kind(run)
    save_edit(run, dict(op='rename', cluster=0, name='vases'))
    save_edit(run, dict(op='drop', cluster=1))
    message(widget.status, dict(kind='look', n=4))
    assert widget.status.notice.startswith(W.ELSEWHERE[:40])
    agrees(widget)


@pytest.mark.parametrize('kind', THREE)
def test_choices_elsewhere_are_taken_over_at_a_look(run, kind):
    widget = kind(run)
    save_choice(run, T=.55, curriculum='hand', order=[3, 2, 1, 0])
    message(widget.status, dict(kind='look', n=4))
    assert widget.status.notice.startswith(W.ELSEWHERE[:40])
    agrees(widget)


@pytest.mark.parametrize('kind', THREE)
def test_a_run_that_ran_again_is_said(run, kind):
    widget = kind(run)
    change(run, '34_select/competence.parquet', lambda t: t)
    message(widget.status, dict(kind='look', n=4))
    assert widget.status.notice == W.AGAIN
    kind(run).look()


def test_a_look_without_changes_says_nothing(run):
    for kind in THREE:
        widget = kind(run)
        message(widget.status, {'kind': 'look'})
        assert said(widget) == ('', '')


def test_two_browsers_do_not_undo_each_other(run):
    a, b = W.ClusterBrowser(run), W.ClusterBrowser(run)
    a.show(1)
    click(a, 'Drop')
    b.show(2)
    click(b, 'Drop')
    assert 'edited elsewhere' in b.status.notice and len(read_edits(run)) == 1 and b.editor.dropped == {1}
    click(b, 'Drop')
    assert said(b)[0].startswith('saved, operation 2') and b.editor.dropped == {1, 2} == current(run).dropped
    a.look()
    for widget in (a, b): agrees(widget)


def test_an_edit_does_not_hide_a_choice_made_elsewhere(run):
    "The inspector saves both; after its own edit it still has to notice the other's choice."
    i = W.TeacherInspector(run)
    save_choice(run, T=.6)
    click(i, 'Drop')
    i.look()
    assert i.editor.choice == read_choice(run)
    i.T.value = .3
    click(i, 'Save this T')
    assert read_choice(run)['T'] == .3, i.status.notice


def test_one_refusal_is_enough_to_learn_what_was_chosen_elsewhere(run):
    i = W.TeacherInspector(run)
    save_choice(run, T=.6)
    click(i, 'Drop')
    for _ in range(3): click(i, 'Save this T')
    assert choices_in(run) == 3, 'refused once, then saved twice'


def choices_in(run): return len(read_choice(run).get('before', [])) + 1


@pytest.mark.parametrize('kind, act', [(W.ClusterBrowser, 'Drop'), (W.TeacherInspector, 'Drop'), (W.TeacherInspector, 'Save this T'), (W.CurriculumPicker, 'Use this')])
def test_a_decision_does_not_hide_that_the_run_ran_again(run, kind, act):
    widget = kind(run)
    change(run, '34_select/competence.parquet', lambda t: t.assign(lift=-.9, kept=False))
    click(widget, act)
    widget.look()
    assert widget.status.notice == W.AGAIN


def test_dropping_all_teachers_elsewhere_leaves_a_picker_standing(run):
    p = W.CurriculumPicker(run)
    for c in range(K): save_edit(run, dict(op='drop', cluster=c))
    message(p.status, dict(kind='look', n=1))
    assert p.status.notice
    with pytest.raises(UserError): W.CurriculumPicker(run)


def test_dropping_all_clusters_in_a_browser_and_an_inspector(run):
    b, i = W.ClusterBrowser(run), W.TeacherInspector(run)
    for c in range(1, K): save_edit(run, dict(op='drop', cluster=c))
    b.look()
    b.show(0)
    click(b, 'Drop')
    i.look()
    assert f'0 of {K} teachers' in i.kept.value
    for widget in (b, i): agrees(widget)


@pytest.mark.parametrize('kind', THREE)
def test_a_broken_line_elsewhere_is_said_and_gone_when_it_is_mended(run, kind):
    widget = kind(run)
    save_edit(run, dict(op='drop', cluster=0))
    good = (run/'human/edits.jsonl').read_text()
    (run/'human/edits.jsonl').write_text(good + '{"op": "dr\n')
    widget.look()
    assert 'edits.jsonl line 2' in widget.status.notice
    if kind is W.ClusterBrowser:
        click(widget, 'Drop')
        assert 'line 2' in widget.status.notice
    (run/'human/edits.jsonl').write_text(good)
    widget.look()
    assert widget.status.notice.startswith(W.ELSEWHERE[:40])
    agrees(widget)


@pytest.mark.parametrize('kind, act', [(W.ClusterBrowser, 'Drop'), (W.TeacherInspector, 'Drop'), (W.TeacherInspector, 'Save this T'), (W.CurriculumPicker, 'Use this')])
def test_what_cannot_be_written_is_said(run, kind, act):
    "As on a run that one may only read."
    widget = kind(run)
    (run/'.human.lock').mkdir()
    click(widget, act)
    assert widget.status.notice and not widget.status.text


def test_clusters_edited_and_run_relabelled(run):
    b = W.ClusterBrowser(run)
    change(run, '31_selflabel/assignments.parquet', lambda t: t.assign(cluster=t.cluster.to_numpy()[::-1].copy()))
    click(b, 'Drop')
    assert 'anew' in b.status.notice and not (run/'human/edits.jsonl').exists() and b.status.text == ''
    b.look()
    assert b.status.notice == W.AGAIN


# Hard data

LONG = 'ein sehr langer Name, 猫カフェ 🐈 ' * 12


@pytest.mark.parametrize('name', [HOSTILE + '</table><b>', LONG + '𝓪\u202e\u0301', ' \t'])
def test_any_name_is_shown_as_text(run, name):
    for c in range(K): save_edit(run, dict(op='rename', cluster=c, name=name))
    for kind in THREE:
        widget = kind(run)
        pages = [x.value for x in walk(widget) if isinstance(x, w.HTML)] + [json.dumps(x.outputs) for x in walk(widget) if isinstance(x, w.Output)]
        for page in pages: assert not any(t in page for t in ('<script', '<img', '</table><b>')), page[:300]
        widget._repr_mimebundle_()
        agrees(widget)


def test_hostile_data_is_shown_as_text(tmp_path):
    run = make_looked(tmp_path/'<b>run', K, hostile=True)
    change(run, '34_select/competence.parquet', lambda t: t.assign(why=HOSTILE))
    for kind in THREE:
        widget = kind(run)
        pages = [x.value for x in walk(widget) if isinstance(x, w.HTML)] + [json.dumps(x.outputs) for x in walk(widget) if isinstance(x, w.Output)]
        for page in pages: assert not any(t in page for t in ('<script', '<img', '<b>run'))
        widget._repr_mimebundle_()


def test_ads_without_anything_but_a_picture(run):
    bare = dict(headline='', advertiser='', impressions=np.nan, sub_defect='', is_noise=pd.NA)
    change(run, '13_curate/ads.parquet', lambda t: t.assign(**bare).astype({'is_noise': 'boolean'}))
    for kind in THREE:
        widget = kind(run)
        if kind is W.TeacherInspector: widget.kind.value = 'costliest'
        alts = [i['alt'] for g in galleries(widget) for i in g.items]
        assert not any(a.startswith(('nan', 'None', 'NaN', '<NA>')) for a in alts), alts[0]
        html = ' '.join(x.value for x in walk(widget) if isinstance(x, w.HTML))
        assert 'nan' not in html and 'None' not in html and 'truth' not in html
        agrees(widget)


def test_a_column_of_truth_that_is_partly_empty(run):
    change(run, '13_curate/ads.parquet', lambda t: t.assign(is_noise=t.is_noise.where(np.arange(len(t)) % 2 == 0), sub_defect=t.sub_defect.where(np.arange(len(t)) % 3 == 0)))
    b = W.ClusterBrowser(run)
    assert 'nan' not in b.facts.value
    agrees(b)


def test_without_truth_columns(tmp_path):
    run = make_looked(tmp_path/'run', K, truth=False)
    for kind in THREE: kind(run).look()


def test_a_run_with_one_cluster(run):
    change(run, '31_selflabel/assignments.parquet', lambda t: t.assign(cluster=0))
    change(run, '32_clusters/partition.parquet', lambda t: t.assign(cluster=0))
    for file in ('32_clusters/clusters.parquet', '34_select/competence.parquet', '33_specialists/clusters.parquet'): change(run, file, lambda t: t[t.cluster == 0])
    for kind in THREE:
        widget = kind(run)
        agrees(widget)
        widget.still()
    p = W.CurriculumPicker(run)
    from_browser(p.gallery, picked=['cc:0'])
    click(p, 'Later')
    assert p.own == [0]


def test_a_map_of_one_place(run):
    change(run, '32_clusters/map.parquet', lambda t: t.assign(x=1.5, y=-2.))
    b = W.ClusterBrowser(run)
    assert set(np.frombuffer(b.map.xy, 'uint16')) == {0}
    b.still()


def test_a_hundred_clusters(tmp_path):
    run = make_looked(tmp_path/'run', 100)
    for kind in THREE: kind(run)._repr_mimebundle_()
    b = W.ClusterBrowser(run)
    assert len(b.list.options) == len(b.map.groups) == 100 and np.frombuffer(b.map.code, 'uint16').max() == 99


def test_clusters_edited_after_the_run(run):
    ads = read_table(run/'31_selflabel/assignments.parquet').ad_id
    for edit in (dict(op='merge', clusters=[0, 1]), dict(op='split', cluster=2, ads=ads[60:70].tolist()), dict(op='move', ads=ads[100:103].tolist(), cluster=3), dict(op='rename', cluster=3, name='x')): save_edit(run, edit)
    for kind in THREE:
        widget = kind(run)
        agrees(widget)
        widget.still()


# Charts

@pytest.mark.parametrize('kind', THREE)
def test_no_chart_offers_an_upload_and_every_message_is_plain(run, kind):
    widget = kind(run)
    found = 0
    for x in walk(widget):
        if isinstance(x, w.Output):
            for o in x.outputs:
                found += 1
                assert o['data']['application/vnd.plotly.v1+json']['config']['showSendToCloud'] is False
                assert json.loads(json.dumps(o, allow_nan=False)) == json.loads(json.dumps(o))
        assert type(x).__name__ != 'FigureWidget', 'five megabytes, and a page that forgets its widgets'
    assert found == {W.ClusterBrowser: 0, W.TeacherInspector: 1, W.CurriculumPicker: 1}[kind]


def test_a_chart_is_put_as_plain_values(run):
    import plotly.graph_objects as go
    out = w.Output()
    W.put(out, go.Figure(go.Scatter(x=np.arange(3), y=[np.nan, np.float32(1), np.inf], text=[HOSTILE]*3)))
    json.dumps(out.outputs, allow_nan=False)
    assert out.outputs[0]['data']['application/vnd.plotly.v1+json']['config']['showSendToCloud'] is False


@pytest.mark.parametrize('kind', THREE)
def test_what_is_sent_of_a_widget_is_plain(run, kind):
    for x in walk(kind(run)):
        state = x.get_state()
        json.dumps({k: v for k, v in state.items() if not isinstance(v, (bytes, memoryview)) and 'model_id' not in k and k not in ('children', 'layout', 'style', '_data', '_layout')}, default=lambda v: None if isinstance(v, w.Widget) else 1/0)


def test_pictures_are_pictures(run):
    b = W.ClusterBrowser(run)
    b.sharp.value = True
    g, images = b.albums[0].galleries[0], np.load(run/'13_curate/images.npy')
    place = read_table(run/'13_curate/ads.parquet').set_index('ad_id').image_row
    assert sum(i['size'] for i in g.items) <= len(g.sheet)
    for picture, item in zip(jpegs(g), g.items): assert np.abs(np.asarray(picture, int) - images[place[item['id']]]).mean() < 12
    assert isinstance(Image.fromarray(images[0]), Image.Image)
