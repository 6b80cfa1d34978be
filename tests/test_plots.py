"Figures say what the tables say, and none of them leaves the machine."
import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from fake_run import HOSTILE, losses, make_ads, make_clusters, make_competence, make_results, make_sensitivity, make_sweep, make_table2

from subtask_kit import plots
from subtask_kit.curriculum import PACES, batches, composition

ADS = make_ads(np.random.default_rng(0), truth=True)
PART, CLUSTERS, POINTS = make_clusters(np.random.default_rng(1), ADS, 9)
COMPETENCE = make_competence(np.random.default_rng(2), CLUSTERS)
RESULTS, _ = make_results(np.random.default_rng(3))
ROWS, TABLE2 = make_table2(np.random.default_rng(4))
RECALL = pd.DataFrame([dict(method=m, sub_defect=k, n=n, level=.05, recall=n/100, low=.5, high=1.) for m in ('vit', 'ft_sd') for k,n in (('dice', 20), ('knife', 90))])
HISTORY = pd.concat([losses(np.random.default_rng(i), panel=p, line=str(s)) for i,p in enumerate('abcde') for s in range(2)], ignore_index=True)
SENSITIVITY = make_sensitivity(COMPETENCE)
ROUNDS = pd.DataFrame(dict(round=range(4), agreement=[None, .5, .8, .9], confidence=.6, marginal_error=[0., 1e-7, 1e-3, 1e-9]))

FIGURES = dict(map=lambda: plots.cluster_map(POINTS.merge(PART, on='ad_id'), {0: 'vases'}), teachers=lambda: plots.teacher_plot(COMPETENCE), results=lambda: plots.results_plot(RESULTS), table2=lambda: plots.table2_plot(TABLE2, ROWS),
               recall=lambda: plots.recall_plot(RECALL), curves=lambda: plots.curves(HISTORY), rounds=lambda: plots.selflabel_plot(ROUNDS),
               sensitivity=lambda: plots.sensitivity_plot(SENSITIVITY, .1, .02), sweep=lambda: plots.sweep_plot(make_sweep(COMPETENCE)), many=lambda: plots.teacher_plot(hundred()), scores=lambda: plots.score_plot(np.linspace(0, 1, 40), np.arange(40) % 2, .4))


@pytest.mark.parametrize('name', FIGURES)
def test_no_figure_offers_to_upload_or_to_fetch(name):
    page = plots.to_html(FIGURES[name](), 'x')
    assert '"showSendToCloud": false' in page and '"displaylogo": false' in page and '"responsive": true' in page
    assert 'src=' not in page and 'cdn' not in page


@pytest.mark.parametrize('name', FIGURES)
def test_every_figure_is_readable_on_light_and_dark(name):
    layout = FIGURES[name]().layout
    assert layout.template.layout.paper_bgcolor == layout.template.layout.plot_bgcolor == 'rgba(0,0,0,0)'
    grey = int(layout.template.layout.font.color[1:3], 16)/255
    luminance = ((grey + .055)/1.055)**2.4
    assert 1.05/(luminance+.05) > 4 and (luminance+.05)/(.0085+.05) > 3.5  # WCAG contrast on white, and on a dark page


def test_a_figure_that_ends_a_notebook_cell_has_the_settings_too():
    import plotly.io as pio
    for name in ('plotly_mimetype', 'notebook', 'browser', 'colab'):
        assert pio.renderers[name].config['showSendToCloud'] is False, name


def test_show_stores_data_and_not_the_library(monkeypatch):
    shown = []
    monkeypatch.delenv('PLOTLY_RENDERER', raising=False)
    monkeypatch.setattr('IPython.display.display', lambda bundle, **k: shown.append(bundle))
    monkeypatch.setattr('plotly.io._renderers.ipython_display.display', lambda bundle, **k: shown.append(bundle))
    plots.show(FIGURES['teachers']())
    bundle, = shown
    assert list(bundle) == ['application/vnd.plotly.v1+json'] and len(json.dumps(bundle)) < 30_000
    assert bundle['application/vnd.plotly.v1+json']['config']['showSendToCloud'] is False


def test_teacher_rows_are_in_order_and_bars_end_where_the_interval_ends():
    fig = FIGURES['teachers']()
    t, pooled, *legend = fig.data
    drawn = {y: (x, x-minus, x+plus, (colour, symbol)) for x,y,minus,plus,colour,symbol in zip(t.x, t.y, t.error_x.arrayminus, t.error_x.array, t.marker.color, t.marker.symbol)}
    assert len(drawn) == len(COMPETENCE)
    for r in COMPETENCE.itertuples(): assert drawn[str(r.cluster)] == (pytest.approx(r.lift), pytest.approx(r.lift_low), pytest.approx(r.lift_high), plots.VERDICTS[r.verdict])
    assert {t.name: (t.marker.color, t.marker.symbol) for t in legend[:-1]} == plots.VERDICTS and legend[-1].name == plots.SHRUNKEN
    assert dict(zip(pooled.y, pooled.x)) == pytest.approx(dict(zip(COMPETENCE.cluster.astype(str), COMPETENCE.shrunken)))
    ordered = COMPETENCE.sort_values('lift').cluster.astype(str).tolist()
    assert list(fig.layout.yaxis.categoryarray) == ordered
    assert sorted(s.x0 for s in fig.layout.shapes) == [0, .1]


def test_on_the_npv_scale_the_floor_is_the_tables():
    fig = plots.teacher_plot(COMPETENCE, T=.1, scale='npv')
    assert sorted(s.x0 for s in fig.layout.shapes) == [.1, .25]
    assert sorted(fig.data[0].x) == pytest.approx(sorted(COMPETENCE.npv))


def test_a_teacher_that_does_not_exist_is_not_drawn():
    table = COMPETENCE.copy()
    table.loc[0, ['lift', 'lift_low', 'lift_high']] = np.nan
    assert len(plots.teacher_plot(table).data[0].x) == len(table)-1


def test_gains_are_points_at_their_method_and_never_of_the_baseline():
    fig = FIGURES['results']()
    assert all(t.mode == 'markers' for t in fig.data) and len(fig.data) == 3
    ticks = dict(zip(fig.layout.yaxis.tickvals, fig.layout.yaxis.ticktext))
    assert set(ticks.values()) == {'deit_1', 'at_sd', 'ft_sd', 'ft_sd_cc', 'ft_sd_ul', 'vit_cleanlab', 'ft_sd_weighted'}
    want = RESULTS.set_index(['method', 'metric']).gain
    for t, metric in zip(fig.data, ('npv@1%', 'npv@5%', 'npv@10%')):
        for x, y in zip(t.x, t.y): assert x == pytest.approx(want[ticks[round(y)], metric])


def test_every_row_of_the_paper_stands_beside_ours():
    fig = FIGURES['table2']()
    ticks = dict(zip(fig.layout.yaxis.tickvals, fig.layout.yaxis.ticktext))
    assert [ticks[y] for y in sorted(ticks, reverse=True)] == [m for m in ROWS.method if m != 'vit'] and {t.yaxis for t in fig.data} == {'y', 'y2'}
    ours, theirs = TABLE2.set_index(['method', 'metric']), ROWS.set_index('method')
    for metric, column, part in (('npv@5%', 'paper_gain5', fig.data[:3]), ('npv@1%', 'paper_gain1', fig.data[3:])):
        drawn = [{ticks[y]: (x, i) for i, (x, y) in enumerate(zip(t.x, t.y)) if pd.notna(x)} for t in part]
        assert {m: x for m, (x, _) in drawn[0].items()} == theirs[column].dropna().drop('vit', errors='ignore').to_dict()
        trained = {m for m, _ in ours.index} - {'vit'}
        assert set(drawn[1]) == {m for m in trained if not theirs.stand_in[m]} and set(drawn[2]) == {m for m in trained if theirs.stand_in[m]}
        for t, marks in zip(part[1:], drawn[1:]):
            for m, (x, i) in marks.items():
                r = ours.loc[(m, metric)]
                assert (x, x-t.error_x.arrayminus[i], x+t.error_x.array[i]) == (pytest.approx(r.gain), pytest.approx(r.gain_low), pytest.approx(r.gain_high))
                assert f'{r.gain:+.3f}' in t.text[i] and f'the paper {theirs[column][m]:+.3f}' in t.text[i]
    assert [t.name for t in fig.data if t.showlegend] == ['the paper', 'here', 'here, by a stand-in']
    lost = set(theirs.index) - {m for m, _ in ours.index}
    assert lost and any('not trained' in said for said in fig.data[0].text), 'a row that is left out is there with the paper\'s figure alone'


def test_recall_cells_are_where_their_names_say():
    heat = FIGURES['recall']().data[0]
    assert list(heat.y) == ['dice (20)', 'knife (90)'] and list(heat.x) == ['vit', 'ft_sd'] and np.array(heat.z)[:, 0].tolist() == [.2, .9]


def test_kept_epoch_is_the_lowest_of_each_line():
    marks = [(t.x[0], t.y[0]) for t in FIGURES['curves']().data if t.mode == 'markers']
    want = [(g.epoch[g.val_loss.idxmin()], g.val_loss.min()) for _,g in HISTORY.groupby(['panel', 'line'], sort=False)]
    assert marks == [(e, pytest.approx(v)) for e,v in want]


def test_score_shares_sum_to_one_in_each_class_and_the_edges_count():
    rng = np.random.default_rng(0)
    p, y = np.r_[0, 1, rng.random(98)], np.repeat([0, 1], 50)
    for t in plots.score_plot(p, y).data: assert sum(t.customdata[:-1]) == pytest.approx(1)


def test_map_draws_every_point_once_and_many_points_by_the_graphics_card():
    points = POINTS.merge(PART, on='ad_id')
    assert sum(len(t.x) for t in plots.cluster_map(points).data) == len(points)
    many = pd.DataFrame(np.random.default_rng(0).normal(size=(6000, 2)), columns=['x', 'y']).assign(cluster=np.arange(6000) % 100)
    assert all(isinstance(t, go.Scattergl) for t in plots.cluster_map(many).data)


def test_names_cannot_bring_markup_into_a_figure():
    names = {c: HOSTILE for c in range(9)}
    recall = RECALL.assign(sub_defect=HOSTILE+RECALL.sub_defect, method=HOSTILE+RECALL.method)
    for fig in (plots.cluster_map(POINTS.merge(PART, on='ad_id'), names), plots.teacher_plot(COMPETENCE.assign(why=HOSTILE), names=names), plots.recall_plot(recall),
                plots.curves(HISTORY.assign(panel=HOSTILE+HISTORY.panel)), plots.results_plot(RESULTS.assign(method=HOSTILE+RESULTS.method), baseline=HOSTILE),
                plots.table2_plot(TABLE2.assign(method=HOSTILE+TABLE2.method), ROWS.assign(method=HOSTILE+ROWS.method, paper=HOSTILE, category=HOSTILE), HOSTILE)):
        said = json.dumps(fig.to_dict(), default=lambda v: np.asarray(v).tolist())
        assert '<script' not in said and '<img' not in said and '&lt;script' in said
        assert '<script>alert' not in plots.to_html(fig, 'x') and '</script>' not in plots.to_html(fig, 'x').replace('</script>', '', 1).rstrip().removesuffix('</script>')


def fed(order=(3, 0, 1), pace='strict'):
    defective = np.arange(90)
    return composition(batches(list(order), np.arange(90) % 5, defective, np.arange(90, 200), 16, 0, 0, pace=pace, epochs=6), defective)


def test_an_epoch_is_drawn_batch_by_batch():
    feed = fed()
    fig = plots.feed_plot(feed, [3, 0, 1], {3: HOSTILE})
    up, down = fig.data
    assert list(up.x) == list(down.x) == list(range(1, feed.batch.nunique()+1))
    assert list(up.y) == feed.defective.tolist() and list(down.y) == (-feed.acceptable).tolist()
    assert list(up.marker.color) == [plots.COLOURS[[3, 0, 1].index(c)] for c in feed.cluster] and '<script' not in ''.join(up.text) and '1. cluster 3' in up.text[0]


def test_mixed_batches_are_grey_and_whole():
    feed = fed(pace='mixed')
    fig = plots.feed_plot(feed, [0, 1, 3])
    assert set(fig.data[0].marker.color) == {plots.GREY} and sum(fig.data[0].y) == feed.defective.sum() and sum(fig.data[1].y) == -feed.acceptable.sum()
    assert len(fig.data[0].x) == feed.batch.nunique()


def test_repeated_ads_are_grey_beside_their_block():
    feed = fed(pace='rehearsed')
    fig = plots.feed_plot(feed, [3, 0, 1])
    own = feed[feed.acceptable > 0]
    assert set(fig.data[0].marker.color) == {plots.GREY, *plots.COLOURS[:3]} and sum(fig.data[0].y) == feed.defective.sum() == 18*5
    coloured = [(x, y) for x, y, c in zip(fig.data[0].x, fig.data[0].y, fig.data[0].marker.color) if c != plots.GREY]
    assert coloured == list(zip(own.batch+1, own.defective)) and any('of 2 sub-tasks, mixed' in said for said in fig.data[0].text)


def test_sub_tasks_that_have_joined_are_counted():
    assert set(plots.feed_plot(fed(pace='paced'), [3, 0, 1]).data[0].marker.color) == {plots.COLOURS[0]} # the first of them alone
    assert 'of 3 sub-tasks, mixed' in plots.feed_plot(fed(pace='mixed'), [3, 0, 1]).data[0].text[0]


@pytest.mark.parametrize('pace', PACES)
def test_a_feed_of_one_sub_task_or_of_a_hundred(pace):
    for k in (1, 100):
        feed = composition(batches(list(range(k)), np.arange(200) % k, np.arange(200), np.arange(200, 500), 64, 0, 0, pace=pace), np.arange(200))
        page = plots.to_html(plots.feed_plot(feed, list(range(k))), 'x')
        assert '"showSendToCloud": false' in page and len(page) < 400_000


def hundred(k=100):
    return make_competence(np.random.default_rng(0), pd.DataFrame(dict(cluster=range(k), size=9, confidence=.5)))


@pytest.mark.parametrize('k', [3, 30, 31, 60, 61, 100, 500])
def test_every_teacher_is_drawn_once_however_many_there_are(k):
    table = hundred(k)
    fig = plots.teacher_plot(table)
    panels, pooled = ([t for t in fig.data if t.name == name and t.text is not None] for name in (None, plots.SHRUNKEN))
    assert fig.layout.height <= (840 if k <= 30 else 1110) and len(panels) == len(pooled) == plots.side_by_side(k)
    assert [int(c) for t in panels for c in reversed(t.y)] == table.sort_values('lift', ascending=False).cluster.tolist(), 'the best come first'
    assert all(tuple(a.y) == tuple(b.y) and tuple(a.text) == tuple(b.text) for a,b in zip(panels, pooled)) and len([s for s in fig.layout.shapes if s.x0 == .1]) == len(panels)
    for t in panels: # a trace names its axis; the layout's own order of axes changes with the process
        low, high = fig.layout[t.yaxis.replace('y', 'yaxis')].range
        assert high - low == pytest.approx(max(4, -(-k//len(panels)))+.9) and len(t.y) <= high
    assert 'below T with probability' in panels[0].text[0] and 'after' not in plots.teacher_plot(table.drop(columns='shrunken')).data[-1].name


def test_cells_of_the_sensitivity_count_kept_clusters():
    fig = FIGURES['sensitivity']()
    heat = fig.data[0]
    for i, level in enumerate(sorted(SENSITIVITY.level.unique())):
        for k, T in enumerate(sorted(SENSITIVITY['T'].unique())):
            t = SENSITIVITY[(SENSITIVITY.level == level) & (SENSITIVITY['T'] == T)]
            assert heat.z[i][k] == t.kept.sum() and heat.customdata[i][k].startswith(f'{t.kept.sum()} of 9 kept<br>out: ' + ', '.join(map(str, t.cluster[~t.kept])))
    frame, = fig.layout.shapes
    assert (round((frame.x0+frame.x1)/2), round((frame.y0+frame.y1)/2)) == (1, 1) and not plots.sensitivity_plot(SENSITIVITY, .15, .02).layout.shapes and (heat.zmin, heat.zmax) == (0, 9)


def test_the_sweep_draws_each_split_and_the_clusters_below():
    table = make_sweep(COMPETENCE).sample(frac=1, random_state=0).assign(split=lambda t: t.split + HOSTILE)
    fig = plots.sweep_plot(table)
    lines = [t for t in fig.data if t.error_y.array is not None]
    want = table.sort_values('T').groupby(['split', 'metric'])
    assert len(lines) == 4 and {tuple(np.round(t.y, 6)) for t in lines} == {tuple(np.round(g.value, 6)) for _,g in want}
    for t in lines: assert list(t.x) == sorted(t.x) and np.allclose(np.array(t.y) + t.error_y.array - (np.array(t.y) - t.error_y.arrayminus), .2) and 'against keeping all' in t.text[0]
    kept = [t for t in fig.data if t.error_y.array is None]
    assert all(list(t.y) == table.drop_duplicates('T').sort_values('T').clusters.tolist() for t in kept) and len(kept) == 2
    assert '<script' not in json.dumps(fig.to_dict(), default=lambda v: np.asarray(v).tolist())
