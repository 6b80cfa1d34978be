"The report: one offline file that shows what there is and says what it cannot tell."
import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from fake_run import HOSTILE, LEFT_OUT, METHODS, PAPER_ROWS, finish, make_fake_run, make_features, table2
from hypothesis import given, settings
from hypothesis import strategies as st
from looking import change
from plotly.offline import get_plotlyjs

from subtask_kit import cli, duplicates, stills
from subtask_kit import report as module
from subtask_kit.artifacts import read_json, read_table, write_json, write_table
from subtask_kit.core import UserError
from subtask_kit.leakage import leakage_report, leakage_words
from subtask_kit.power import power_words
from subtask_kit.report import Report, page, report
from subtask_kit.splits import split_ads
from subtask_kit.selection import DROPPED
from subtask_kit.view import outdated, read_run


class Page(HTMLParser):
    "Tags, attributes and text of a page, without scripts and styles."
    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self.inside, self.errors = [], [], [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag in ('script', 'style'): self.inside.append(tag)
    def handle_endtag(self, tag):
        if tag in ('script', 'style'): self.inside.pop()
    def handle_data(self, data):
        if not self.inside: self.words.append(data)
    def ids(self): return [a['id'] for _,a in self.tags if 'id' in a]
    def text(self): return ' '.join(' '.join(self.words).split())


def without_library(text): return text.replace(get_plotlyjs(), '')
def built(run, **cfg): return page(read_run(run) | dict(cfg=Report(**cfg)))


@pytest.fixture(scope='module')
def run(tmp_path_factory): return make_fake_run(tmp_path_factory.mktemp('run')/'demo')

@pytest.fixture(scope='module')
def text(run): return built(run)


def test_the_stage_writes_one_file_and_a_copy_and_skips_what_is_fresh(run):
    first = report(Report(), run)
    assert (run/'report.html').read_bytes() == (run/'62_report/report.html').read_bytes()
    assert 4 < first['metrics']['megabytes'] < 8 and first['metrics']['sections'] == 17
    (run/'report.html').unlink()
    stamp = (run/'62_report/report.html').stat().st_mtime_ns
    assert report(Report(), run) == first and (run/'report.html').exists() and (run/'62_report/report.html').stat().st_mtime_ns == stamp
    assert report(Report(title='Another'), run)['why'] == ['config.title'] and '<h1>Another</h1>' in (run/'report.html').read_text()


def test_nothing_is_fetched_and_nothing_is_offered_for_upload(text):
    assert text.count(get_plotlyjs()) == 1
    for tag, attrs in Page(text).tags:
        for key in ('src', 'href', 'action', 'srcset', 'data', 'poster'):
            assert attrs.get(key, '#').startswith(('#', 'data:')), (tag, attrs)
    assert "default-src 'none'" in text and '@import' not in text and 'url(' not in without_library(text)
    assert without_library(text).count('"showSendToCloud": false') == without_library(text).count('Plotly.newPlot(') == 11


def test_ids_are_unique_and_every_entry_of_the_contents_leads_somewhere(text):
    p = Page(text)
    ids = p.ids()
    assert len(ids) == len(set(ids))
    links = [a['href'][1:] for t,a in p.tags if t == 'a' and 'download' not in a]
    assert len(links) > 12 and set(links) <= set(ids)


def test_sections_come_in_the_order_of_the_story(text):
    heads = [a['id'] for t,a in Page(text).tags if t == 'section']
    assert heads == ['headline', 'data', 'duplicates', 'trust', 'clusters', 'teachers', 'cleanings', 'worklist', 'curriculum', 'unlabelled', 'results', 'recall', 'slices', 'training', 'operating', 'card', 'limits']


@pytest.mark.parametrize('until, there, absent', [('13_curate', 'data', 'clusters'), ('32_clusters', 'clusters', 'teachers'), ('34_select', 'teachers', 'curriculum'), ('37_distill', 'unlabelled', 'results')])
def test_a_run_that_stopped_early_is_told_as_far_as_it_goes(tmp_path, until, there, absent):
    run = make_fake_run(tmp_path, until=until)
    report(Report(), run)
    p = Page((run/'report.html').read_text())
    assert there in p.ids() and absent not in p.ids() and 'This run has not finished' in p.text()
    assert {'headline', 'card', 'limits'} <= set(p.ids())


def test_an_unfinished_stage_is_not_shown(tmp_path):
    run = make_fake_run(tmp_path)
    (run/'41_evaluate/manifest.json').unlink()
    assert 'results' not in read_run(run) and 'id=results' not in built(run)


def test_without_curated_data_there_is_no_report(tmp_path):
    with pytest.raises(UserError, match='run the stage 13_curate first'): report(Report(), tmp_path)


def test_hostile_data_is_text(tmp_path):
    run = make_fake_run(tmp_path, hostile=True)
    (run/'human').mkdir()
    write_json({'T': .2, 'note': HOSTILE}, run/'human/choice.json')
    (run/'human/edits.jsonl').write_text('{"op": "rename", "cluster": 0, "name": "</script><script>alert(3)</script>"}\n')
    p, plain = Page(page(read_run(run) | dict(cfg=Report()), title=HOSTILE)), without_library(page(read_run(run) | dict(cfg=Report())))
    assert len([t for t,_ in p.tags if t == 'script']) == 1 + 11 and plain.count('<script') == 1 + 11
    assert '<script>alert' not in plain and not any(k.startswith('on') for _,a in p.tags for k in a)
    assert all(a['src'].startswith('data:image/jpeg;base64,') for t,a in p.tags if t == 'img')
    alts = [a['alt'] for t,a in p.tags if t == 'img']
    assert any(a.startswith(HOSTILE) for a in alts) and HOSTILE in p.text()


def test_every_picture_waits_and_says_what_it_is(text):
    pictures = [a for t,a in Page(text).tags if t == 'img']
    assert len(pictures) > 60 and all(a['loading'] == 'lazy' and a['alt'] and a['src'].startswith('data:image/jpeg;base64,/9j/') for a in pictures)


@pytest.mark.parametrize('truth', [True, False])
def test_pictures_start_blurred_unless_the_truth_is_known(tmp_path, truth):
    p = Page(built(make_fake_run(tmp_path, truth=truth)))
    box, = [a for t,a in p.tags if t == 'input']
    assert ('checked' in box) is not truth
    assert ('start sharp' if truth else 'start blurred') in p.text() and ('recall' in p.ids()) is truth


def test_a_gallery_shows_the_surest_and_the_least_sure(run):
    d = read_run(run)
    inside = d['partition'][d['partition'].cluster == 0].sort_values('confidence', ascending=False)
    assert len(inside) > 6
    shown = [float(v) for v in re.findall(r'alt="[^"]*confidence ([0-9.]+)"', module.gallery(d, 0, 6))]
    assert shown == [round(v, 2) for v in [*inside.confidence[:4], *inside.confidence[-2:]]]
    assert len(re.findall('<img', module.gallery(d, 0, 1000))) == len(inside)


@pytest.mark.parametrize('low, high, words', [(.02, .2, 'it is better'), (-.1, .2, 'this run cannot tell'), (-.3, -.1, 'it is worse'), (0., .2, 'this run cannot tell')])
def test_the_headline_is_honest_about_the_interval(tmp_path, low, high, words):
    run = make_fake_run(tmp_path)
    d = read_run(run)
    mine = d['results'].method == 'ft_sd'
    d['results'].loc[mine, ['gain', 'gain_low', 'gain_high']] = [(low+high)/2, low, high]
    said = Page(module.gain_sentence(d, 'npv@5%')).text()
    assert words in said and f'{low:+.3f} to {high:+.3f}' in said


def test_all_numbers_of_the_results_are_in_the_page(run, text):
    said = Page(text).text()
    for r in read_table(run/'41_evaluate/results.parquet').itertuples():
        assert f'{r.value:.3f}' in said and f'{r.low:.3f} to {r.high:.3f}' in said
        if r.gain == r.gain: assert f'{r.gain:+.3f}' in said and f'{r.gain_low:+.3f} to {r.gain_high:+.3f}' in said
    assert all(m in said for m in METHODS)
    assert said.count('cannot tell at this n') >= 3 and 'does not' in said


def test_a_run_of_one_seed_says_so(run):
    d = read_run(run) | dict(cfg=Report())
    assert 'one seed only' not in module.headline(d)
    d['results']['seeds'] = 1
    assert 'one seed only' in module.headline(d)


def test_where_nothing_was_dropped_nothing_is_claimed_of_dropping(run):
    d = read_run(run) | dict(cfg=Report())
    assert 'nothing about the worth of dropping' not in Page(module.headline(d)).text()
    d['competence']['kept'] = True
    assert 'nothing about the worth of dropping' in Page(module.headline(d)).text()


def test_counts_add_up(run, text):
    said, ads = Page(text).text(), read_table(run/'13_curate/ads.parquet')
    for split, g in ads[ads.label.notna() & (ads.split != '')].groupby('split'):
        assert f'{split} {(g.label == 0).sum()} {(g.label == 1).sum()}' in said
    assert f'unlabelled 0 0 {ads.label.isna().sum()}' in said and 'left out 5 5' in said
    assert 'same headline 1 1 0 2' in said and 'unusable picture 0 0 1 1' in said and 'all 2 2 1 5' in said
    assert f'{len(ads)+5:,} rows came in; {len(ads):,} ads stay, 5 rows were dropped.' in said


def test_a_person_is_named_where_a_person_decided(tmp_path):
    run = make_fake_run(tmp_path)
    t = read_table(run/'34_select/competence.parquet')
    t.loc[t.cluster == 2, ['kept', 'verdict', 'why', 'by']] = [False, 'dropped', 'dropped by a person', 'person']
    write_table(t, run/'34_select/competence.parquet')
    manifest = read_json(run/'34_select/manifest.json')
    manifest['outputs']['competence.parquet']['bytes'] = (run/'34_select/competence.parquet').stat().st_size
    write_json(manifest, run/'34_select/manifest.json')
    (run/'human').mkdir()
    (run/'human/edits.jsonl').write_text('{"op": "drop", "cluster": 1}\n{"op": "undo"}\n{"op": "drop", "cluster": 2}\n')
    p = Page(built(run)).text()
    assert p.count('a person decided') == 2 and 'A person decided on 1 of 6 clusters (2), the rule on the others.' in p and 'cluster 2 dropped' in p and '(line 3)' in p and '(line 1)' not in p


def test_what_speaks_against_a_cluster_is_on_its_card(tmp_path):
    run = make_fake_run(tmp_path, older=True)
    plain = Page(built(run)).text()
    assert 'Look closely' not in plain and 'cleanlab' not in plain and 'carried over' not in plain, 'a run of an older version has none of it'
    d = read_run(run) | dict(cfg=Report())
    d['clusters'] = d['clusters'].assign(suspects=[.6] + [np.nan]*(len(d['clusters'])-1), words=[['vase', 'blue']] + [[]]*(len(d['clusters'])-1), warnings=[[]]*(len(d['clusters'])-1) + [[HOSTILE, 'all within 3 days']])
    html = page(d)
    p = Page(html).text()
    assert p.count('Look closely') == 1 and f'{HOSTILE}, all within 3 days.' in p and '<script>alert' not in without_library(html)
    assert p.count('of its verdicts look wrong to cleanlab') == 1 and 'words of its headlines: vase, blue' in p


def test_edits_that_were_carried_over_are_counted(tmp_path):
    run = make_fake_run(tmp_path)
    (run/'human').mkdir()
    (run/'human/edits.jsonl').write_text('{"op": "drop", "cluster": 1}\n{"op": "drop", "cluster": 2}\n')
    manifest = read_json(run/'32_clusters/manifest.json')
    write_json(manifest | dict(metrics=dict(carried_from={'0123456789ab': 1})), run/'32_clusters/manifest.json')
    assert '1 of them decided on earlier clusters and carried over to these' in Page(built(run)).text()


def test_what_is_out_of_date_is_said(tmp_path):
    run = make_fake_run(tmp_path)
    manifest = read_json(run/'34_select/manifest.json')
    sha = read_json(run/'32_clusters/manifest.json')['outputs']['clusters.parquet']['sha256']
    manifest['spec']['inputs'] = {'32_clusters/clusters.parquet': sha}
    write_json(manifest, run/'34_select/manifest.json')
    assert outdated(read_run(run)) == []
    manifest['spec']['inputs'] = {'32_clusters/clusters.parquet': 'older'}
    write_json(manifest, run/'34_select/manifest.json')
    assert outdated(read_run(run)) == ['34_select'] and 'have changed since: 34_select' in built(run)
    (run/'human').mkdir()
    (run/'human/edits.jsonl').write_text('{"op": "drop", "cluster": 2}\n')
    assert outdated(read_run(run)) == ['32_clusters', '34_select']


@pytest.mark.parametrize('px', [16, 96, 191, 224])
def test_thumbnails_are_small_and_keep_their_colour(px):
    image = np.zeros((px, px, 3), 'uint8')
    image[:, :, 0] = 200
    small = module.thumbnail(image)
    assert len(small) < 192 and small.dtype == np.uint8 and (small[..., 0] == 200).all() and (small[..., 1:] == 0).all()


def test_many_clusters_and_missing_cells(tmp_path):
    run = make_fake_run(tmp_path, k=60)
    d = read_run(run) | dict(cfg=Report(thumbs=4))
    d['competence'].loc[0, ['npv', 'low', 'high', 'lift', 'lift_low', 'lift_high', 'teacher_val_npv']] = np.nan
    d['competence'].loc[0, ['kept', 'verdict', 'why']] = [False, 'dropped', 'there is no teacher for it']
    d['clusters'].loc[1, 'top_advertiser_share'] = np.nan
    d['drops'] = d['drops'].head(0)
    text = page(d)
    assert text.count('<article') == len(d['clusters']) and 'there is no teacher for it' in text and 'Nothing was dropped' in text and '>nan' not in text


# What curation did

LABELS = st.sampled_from([0, 1, None])
REASONS = st.sampled_from(['same headline', 'near-duplicate', 'unusable picture: truncated', 'bad row: no label', 'duplicate of a labelled ad: same bytes'])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(REASONS, LABELS), min_size=1, max_size=30))
def test_every_drop_is_counted_once_under_its_reason_and_verdict(rows):
    reason, label = zip(*rows)
    drops = pd.DataFrame(dict(row=range(len(rows)), path='p', of='', reason=reason, label=pd.array(label, 'Int8')))
    counts, wanted = module.count_drops(drops), Counter((r.partition(':')[0], module.VERDICT.get(x, 'no verdict')) for r,x in rows)
    assert {(r, v): n for r in counts.index for v in counts if (n := counts.loc[r, v])} == wanted
    said = Page(module.dropped_rows(drops).partition('<details>')[0]).text()
    assert (f'all {" ".join(map(str, counts.sum()))} {len(rows)}' in said) == (len(counts) > 1)
    assert module.count_drops(drops.drop(columns='label')).to_numpy().sum() == len(rows)


def test_a_real_runs_drops_are_those_the_stage_counted(micro_run):
    d = read_run(micro_run)
    counts, m = module.count_drops(d['drops']), d['manifests']['13_curate']['metrics']
    assert {r: {v: int(n) for v,n in counts.loc[r].items() if n} for r in counts.index} == m['dropped'] and len(d['ads']) + counts.to_numpy().sum() == m['rows']
    groups = module.duplicate_groups(d['ads'], d['drops'])
    assert (groups['size']-1).sum() == (d['drops'].of != '').sum() and (groups.ad_id == groups.group).all()
    said = Page(built(micro_run)).text()
    assert all(w in said for w in leakage_words(d['leakage'] | dict(embargoes=None))) and all(w in said for w in power_words(d['power']) if not w.startswith('warning'))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.lists(st.integers(0, 40), max_size=20), st.lists(st.integers(0, 40), max_size=20))
def test_every_copy_belongs_to_the_ad_that_stayed(kept, first, second):
    "Bytes first: copies of ads that may go; then the copies of ads that stay."
    ads = pd.DataFrame(dict(ad_id=[f'k{i}' for i in range(kept)], headline=''))
    later = {f'l{i}': f'k{n % kept}' for i,n in enumerate(second)}
    targets = [*ads.ad_id, *later]
    early = {f'e{i}': targets[n % len(targets)] for i,n in enumerate(first)}
    of = early | later
    drops = pd.DataFrame(dict(ad_id=[*of, ''], of=[*of.values(), ''], reason=['copy']*len(of) + ['bad row']))
    home = module.homes(ads, drops)
    def root(i): return root(of[i]) if i in of else i
    assert home.to_dict() == {i: root(i) for i in [*ads.ad_id, *of]} and len(home) == kept + len(of)
    sizes = Counter(map(root, of))
    groups = module.duplicate_groups(ads, drops)
    assert dict(zip(groups.ad_id, groups['size']-1)) == sizes and groups['size'].is_monotonic_decreasing


def sheet_of(text): return re.findall(r'src="([^"]+)"', text)

@pytest.mark.parametrize('n', [1, 3, 50])
def test_the_sheet_shows_the_pairs_nearest_to_the_limit(run, n):
    d = read_run(run)
    p, home = d['pairs'], module.homes(d['ads'], d['drops']).to_dict()
    merged = sorted((r for r in p.itertuples() if r.score <= 1), key=lambda r: -r.score)[:n]
    apart = sorted((r for r in p.itertuples() if r.score > 1 and home[r.a] != home[r.b]), key=lambda r: r.score)[:n]
    found, text = module.nearest_pairs(d, n), module.pairs_sheet(d, n)
    assert [*found['merged'].b] == [r.b for r in merged] and [*found['apart'].b] == [r.b for r in apart] and len(merged) and len(apart)
    assert sheet_of(text) == [s for r in [*merged, *apart] for row in (r.row_a, r.row_b) for s in sheet_of(module.picture(d['images'][row], ''))]
    assert re.findall(r'<b>([0-9.]+)</b>', text) == [f'{r.score:.3f}' for r in [*merged, *apart]]


def test_pairs_that_are_one_ad_by_way_of_another_are_no_strangers(run):
    d = read_run(run)
    two = d['drops'][d['drops'].of == 'ad00000'].ad_id.tolist() # copies of one ad
    d['pairs'] = pd.concat([d['pairs'], d['pairs'].tail(1).assign(a=two[0], b=two[1], score=1.0001, merged=False)], ignore_index=True)
    assert two[0] not in module.nearest_pairs(d)['apart'].a.tolist()


@settings(max_examples=50, deadline=None)
@given(*[st.floats(.01, 1.5)]*4, st.sampled_from(['aligned', 'top', 'bottom']), st.integers(0, 60))
def test_the_measure_named_is_the_one_that_made_the_score(residual, structure, detail, colour, how, bits):
    limits = duplicates.LIMITS if how == 'aligned' else duplicates.CAPTION
    share = dict(zip(('residual', 'structure', 'detail', 'colour'), (residual, structure, detail, colour)))
    measures = {k: v*limits[k] for k,v in share.items()}
    measures['structure'] = 1-measures['structure']
    score = duplicates.score_of({k: np.array([v]) for k,v in measures.items()} | dict(overlap=np.ones(1)), limits, np.array([bits]))[0]
    name, value, limit = re.fullmatch(r'([\w ]+): (\S+) of (\S+)', module.decides(pd.Series(measures | dict(how=how, score=score)))).groups()
    worst = {v: k for k,v in module.DIFFERS.items()}[name]
    assert share[worst] == pytest.approx(max(share.values())) and float(value)/float(limit) == pytest.approx(score, rel=.02)
    assert float(value) == pytest.approx(share[worst]*limits[worst], rel=.01) and float(limit) == pytest.approx(limits[worst], rel=.3)


def test_verdicts_that_differ_are_said_of_a_pair(run):
    d = read_run(run)
    label = module.labels_of(d)
    pair = d['pairs'].iloc[0].copy()
    for a, b, said in ((0, 1, True), (1, 1, False), (0, pd.NA, False)):
        label[[pair.a, pair.b]] = [a, b]
        assert ('two verdicts' in module.pair_lines(pair, label)) is said


def test_without_pairs_or_copies_the_section_says_so(run):
    d = read_run(run)
    d['pairs'] = d['pairs'].head(0).astype(object)
    assert '<img' not in module.duplicates_section(d)
    d['drops'] = d['drops'][d['drops'].of == '']
    assert 'No ad had a copy' in module.duplicates_section(d)
    d['pairs'] = read_run(run)['pairs'].query('merged')
    assert 'Kept apart: no pair' in module.pairs_sheet(d)


def badges(d): return [r[1] for r in (module.check_copies(d['leakage'], 'both'), module.check_time(d['leakage']), module.check_advertisers(d['leakage']), module.check_verdicts(d['leakage']))]

def test_what_speaks_against_the_test_set_is_said(run):
    d = read_run(run)
    leak = d['leakage']
    assert module.check_copies(leak, 'both')[1] == 'holds' and module.check_copies(leak, 'headline')[1] == 'not known'
    for broken in (leak | dict(groups_across=1), leak | dict(duplicates=leak['duplicates'] | {'near-duplicate': leak['duplicates']['near-duplicate'] | dict(after=1)})):
        assert module.check_copies(broken, 'both')[1] == module.check_copies(broken, 'headline')[1] == 'does not'
    def dated(**more): return module.check_time(leak | dict(dates={k: x | dict(undated=0) for k,x in leak['dates'].items()} | more))
    first = leak['dates']['test']['first']
    late, early = ((pd.Timestamp(first) + pd.Timedelta(hours=h)).isoformat() for h in (1, -36))
    none = dict(first=None, last=None, undated=3)
    ends = {k: dict(first=early, last=early, undated=0) for k in leak['dates'] if k != 'test'}
    assert dated(**ends)[1:] == ['holds', 'It begins 1.5 days after the others end.']
    assert dated(**ends | dict(train=dict(first=early, last=late, undated=0)))[1] == 'does not'
    assert dated(test=none)[1] == dated(**ends | dict(train=none))[1] == 'not known'
    assert module.check_verdicts(leak | dict(conflicts=dict(disagreement=dict(pairs=0))))[1] == 'not known'


@pytest.mark.parametrize('allowed, verdict', [(0, 'does not'), (2, 'does not'), (3, 'holds')])
def test_a_set_where_chance_decides_is_named(run, allowed, verdict):
    power = read_run(run)['power']
    power.loc[power.level == .01, 'allowed'] = allowed
    assert [module.check_size(power, s)[1] for s in ('test', 'teacher_test')] == [verdict]*2
    empty = power.assign(defective=0, npv=np.nan)
    assert module.check_size(empty, 'test')[1] == 'does not' and module.check_size(power.head(0), 'test')[1] == 'not known' and module.power_grid(empty)


@pytest.mark.parametrize('how', ['lot', 'given', 'few'])
def test_a_report_on_any_kind_of_split_is_shown(run, how):
    "Without dates, with given splits, with hardly any ads: nothing is said that is not known."
    d, n, rng = read_run(run), 9 if how == 'few' else 600, np.random.default_rng(0)
    ads = pd.DataFrame(dict(ad_id=[f'{i}' for i in range(n)], label=pd.array(rng.random(n) > .3, 'Int8'), submitted_at=pd.to_datetime([None]*n, utc=True), advertiser='', group=[f'{i}' for i in range(n)],
                            headline='', split=rng.choice(['train', 'val', 'test'], n) if how == 'given' else ''))
    if how == 'few': ads['submitted_at'] = pd.date_range('2024-01-01', periods=n, freq='9D', tz='UTC')
    plan = split_ads(ads, {}, 15, 0)
    d['leakage'] = leakage_report(ads, ads, plan, pd.DataFrame(dict(a=[], b=[], kind=[]), dtype=str), 15)
    text = module.trust_section(d)
    assert ('What an embargo' in text) == ('fig_drift' in text) == (how == 'few') and 'nan' not in Page(text).text().split()
    assert how == 'few' or badges(d) == ['holds', 'not known', 'not known', 'not known']


def test_ids_with_markup_are_text(tmp_path):
    run = make_fake_run(tmp_path, hostile=True, until='13_curate')
    for name, columns in (('ads', ['ad_id', 'group']), ('drops', ['of']), ('pairs', ['a', 'b'])):
        t = read_table(run/f'13_curate/{name}.parquet')
        write_table(t.assign(**{c: t[c].replace('ad00000', HOSTILE) for c in columns}), run/f'13_curate/{name}.parquet')
    finish(run, '13_curate', dict(warnings=[HOSTILE]))
    d = read_run(run) | dict(cfg=Report())
    text = without_library(page(d))
    assert '<script>alert' not in text and '<img src=x' not in text and any(a['alt'].startswith(HOSTILE) for t,a in Page(text).tags if t == 'img' and 'alt' in a)
    assert any(b['of'].startswith(HOSTILE) for b in d['leakage']['bursts']['advertiser']['largest']), 'a burst of theirs is in a table'


@pytest.mark.parametrize('hostile', [False, True])
def test_a_run_of_an_older_version_is_still_told(tmp_path, hostile):
    run = make_fake_run(tmp_path, older=True, hostile=hostile)
    text = built(run)
    p = Page(text)
    assert {'data', 'duplicates', 'trust'} <= set(p.ids()) and 'advertisers_across_splits' in p.text() and 'same headline 2' in p.text() and '<script>alert' not in text
    assert '2 ads had copies' in p.text() and 'nearest to the limit' not in p.text() and 'fig_drift' not in p.ids()


def test_stills_hold_every_pair_and_hide_what_is_not_to_be_seen(run):
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 256, (2, 64, 64, 3), dtype='uint8')
    pair = a, b, ['0.9', 'a part']
    heights = [stills.pairs_still([('x', [pair]*n)], columns=2).height for n in (1, 2, 3)]
    assert heights[0] == heights[1] < heights[2]
    sharp, veiled = (np.asarray(stills.pairs_still([('x', [pair])], s, px=64)).astype(int) for s in (True, False))
    assert (sharp[26:90, :64] == a).all() and (sharp[26:90, 66:130] == b).all() and np.abs(veiled[26:90, :64]-a).mean() > 30
    months = [dict(of='2024-01', share=.2, low=.1, high=.3), dict(of='2024-02', share=None, low=0, high=1)]
    assert stills.shares_still(months, dict(test='2024-02'), 300, 100).size == stills.shares_still([], {}, 300, 100).size == (300, 100)


# Leakage by embedding

def test_leaks_by_embedding_are_found_among_clean_views(tmp_path):
    run = make_fake_run(tmp_path, until='13_curate')
    clean, why = module.embedding_leakage(read_run(run))
    assert clean is None and 'has not run' in why
    make_features(run, leaking=40)
    d = read_run(run)
    found, why = module.embedding_leakage(d)
    rows = read_table(run/'25_features/rows.parquet')
    train, test = (rows.ad_id[rows.split == s].tolist() for s in ('train', 'test'))
    assert why == '' and {(c['test'], c['train']) for c in found['closest'][:40]} == set(zip(test[:40], train[:40])) and found['closer'] >= 40
    assert (found['test'], found['train']) == (len(test), len(train)) and 'Test ads closer by embedding' in module.embedding_words(found)[0]
    assert len(module.closest_picture(d, found, 3).getcolors(1 << 20)) > 10
    make_features(run)
    assert module.embedding_leakage(read_run(run))[0]['share'] < .15
    write_table(read_table(run/'13_curate/ads.parquet').head(300), run/'13_curate/ads.parquet')
    manifest = read_json(run/'13_curate/manifest.json')
    manifest['outputs']['ads.parquet'] = dict(sha256='new', bytes=(run/'13_curate/ads.parquet').stat().st_size)
    write_json(manifest, run/'13_curate/manifest.json')
    found, why = module.embedding_leakage(read_run(run))
    assert found is None and 'older curation' in why


# Notebooks for a person

PAGES = Path(module.__file__).parent.parent/'nbs/pipeline'

def test_the_lab_has_the_page_beside_the_other_and_keeps_what_somebody_made_of_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cli.os, 'execv', lambda *args: None)
    run = make_fake_run(tmp_path/'run', 4, until='32_clusters')
    cli.main(['lab', str(run.path)])
    for name in ('explore', 'curation'): assert (run/f'{name}.ipynb').read_bytes() == (PAGES/f'{name}.ipynb').read_bytes() and (run/f'{name}.ipynb').stat().st_mode & 0o200
    (run/'curation.ipynb').write_text('mine')
    cli.main(['lab', str(run.path)])
    assert (run/'curation.ipynb').read_text() == 'mine'


@pytest.mark.parametrize('older', [False, True])
def test_the_page_on_curation_runs_without_torch(tmp_path, monkeypatch, older):
    import papermill
    source = PAGES/'curation.ipynb'
    nb = nbformat.read(source, 4)
    assert not any(c.get('outputs') for c in nb.cells) and list(papermill.inspect_notebook(str(source))) == ['run_path', 'show_pictures']
    (tmp_path/'blocked').mkdir()
    for name in ('torch', 'timm'): (tmp_path/f'blocked/{name}.py').write_text('raise ModuleNotFoundError("blocked")')
    monkeypatch.setenv('PYTHONPATH', str(tmp_path/'blocked'))
    run = make_fake_run(tmp_path/'run', truth=False, hostile=True, older=older, until='13_curate')
    if not older: make_features(run, leaking=30)
    papermill.execute_notebook(str(source), str(tmp_path/'out.ipynb'), dict(run_path=str(run.path)), kernel_name='python3', progress_bar=False)
    outputs = [o for c in nbformat.read(tmp_path/'out.ipynb', 4).cells for o in c.get('outputs', [])]
    data = [o.data for o in outputs if 'data' in o]
    said = ' '.join([*(o.text for o in outputs if 'text' in o), *(Page(x['text/html']).text() for x in data if 'text/html' in x)])
    figures = [x for x in data if 'application/vnd.plotly.v1+json' in x]
    assert all('<script>alert' not in x.get('text/html', '') for x in data) and (tmp_path/'out.ipynb').stat().st_size < 500_000
    if older:
        assert not figures and 'An older version' in said and 'has not run' in said
        return
    assert len(figures) == 1 and 'image/png' in figures[0] and figures[0]['application/vnd.plotly.v1+json']['config']['showSendToCloud'] is False
    assert sum('image/jpeg' in x for x in data) == 2, 'pairs and closest pairs can be seen without a kernel'
    assert all(w in said for w in power_words(read_run(run)['power'])) and 'Test ads closer by embedding' in said


def test_the_papermill_notebook_tells_a_runs_story(run, tmp_path):
    import papermill
    source = PAGES/'report.ipynb'
    nb = nbformat.read(source, 4)
    assert not any(c.get('outputs') for c in nb.cells) and list(papermill.inspect_notebook(str(source))) == ['run_path']
    papermill.execute_notebook(str(source), str(tmp_path/'story.ipynb'), dict(run_path=str(run.path)), kernel_name='python3', progress_bar=False)
    data = [o.data for c in nbformat.read(tmp_path/'story.ipynb', 4).cells for o in c.get('outputs', []) if 'data' in o]
    figures = [d['application/vnd.plotly.v1+json'] for d in data if 'application/vnd.plotly.v1+json' in d]
    assert any('image/jpeg' in d for d in data) and len(figures) == 6 and all(f['config']['showSendToCloud'] is False for f in figures)
    assert (tmp_path/'story.ipynb').stat().st_size < 500_000


def test_what_was_tried_to_begin_with_is_told():
    tried = pd.DataFrame(dict(strength=[0., .5], told=[.1, .3], told_sd=.01, halves=[.5, .6], halves_sd=.02, chosen=[False, True]))
    html = module.starts_table(dict(starts=tried))
    assert html.count('taken') == 1 + module.WORDS['starts'].count('taken') and '0.3' in html.replace('.30', '0.3') and module.starts_table({}) == ''


# Which teachers to believe

def said(html): return Page(html).text()


def test_every_verdict_is_told_with_its_reasons_and_its_evidence(run, text):
    t, p = read_table(run/'34_select/competence.parquet'), said(text)
    rows = {int(re.match(r'\d+', Page(r).text())[0]): Page(r).text() for r in re.findall(r'<tr><td><a href="#cluster.*?</tr>', module.verdicts_part(read_run(run) | dict(cfg=Report())))}
    assert set(rows) == set(t.cluster)
    for r in t.to_dict('records'):
        row = rows[r['cluster']]
        assert r['verdict'] in row and all(reason in row for reason in r['reasons']) and f'{r["lift"]:.2f} {r["lift_low"]:.2f} to {r["lift_high"]:.2f}' in row
        assert f'{r["shrunken"]:.2f} {r["shrunken_low"]:.2f} to {r["shrunken_high"]:.2f}' in row and f'{100*r["below"]:.0f} %' in row.replace('\N{NO-BREAK SPACE}', ' ')
    assert 'All 6 teachers are there' in p and 'The rule decided on all 6 clusters' in p


@pytest.mark.parametrize('k', [16, 100])
def test_plain_verdicts_fold_away_and_doubtful_ones_come_first(tmp_path, k):
    run = make_fake_run(tmp_path, k=k, defective=10*k)
    shown, _, folded = module.verdicts_part(read_run(run)).partition('<details>')
    assert said(shown).count('too close to call') == 1 and shown.count('<tr>') == 3 and f'The {k-2} clusters that are plainly kept' in folded and folded.count('<tr>') == k-1
    assert shown.index('dropped') < shown.index('too close to call'), 'the least likely to deserve its place comes first'


@pytest.mark.parametrize('failed', [1, 3])
def test_missing_teachers_are_counted_and_their_errors_shown(tmp_path, failed):
    run = make_fake_run(tmp_path, k=8, failed=failed, hostile=True)
    html = built(run)
    p = said(html)
    assert f'{8-failed} of 8 teachers are there.' in p and p.count('MemoryError: out of memory'+HOSTILE) == failed and '<script>alert' not in without_library(html)
    lost = module.missing_teachers(read_run(run))
    assert lost.cluster.tolist() == list(range(2, 2+failed)) and not any(c in lost.cluster.tolist() for c in module.by_luck(read_run(run)['competence']).cluster)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=12))
def test_luck_is_what_a_tenth_of_the_draws_would_change(rows):
    t = pd.DataFrame(dict(cluster=range(len(rows)), kept_share=[s for s,_ in rows], by=['person' if p else 'rule' for _,p in rows]))
    d = dict(competence=t, manifests={'34_select': dict(metrics=dict(expected_false_keeps=1.23, expected_false_drops=.04))})
    want = {i for i,(s,p) in enumerate(rows) if .1 <= s <= .9 and not p}
    assert set(module.by_luck(t).cluster) == want
    first, second = module.luck_words(d)
    assert '1.2 are expected not to deserve it' in first and '0.0 to have deserved' in first and ('No cluster is in or out by luck' in second) == (not want)
    assert module.luck_words(dict(competence=t.drop(columns='kept_share'), manifests={})) == []


def test_the_kept_set_at_other_thresholds_is_counted(run, text):
    t, p = read_table(run/'34_select/sensitivity.parquet'), said(text)
    often = t.groupby('cluster').kept.agg(['all', 'any'])
    assert f'{often["all"].sum()} clusters are kept everywhere in this table, {(~often["any"]).sum()} nowhere; {(often["any"] & ~often["all"]).sum()} come and go' in p


# First, do no harm

@pytest.mark.parametrize('how', DROPPED)
def test_what_became_of_the_ads_of_dropped_clusters_is_said(run, how):
    d = read_run(run)
    d['manifests']['34_select']['spec']['config'] |= dict(dropped=how, weight=.35)
    gone = d['competence'][~d['competence'].kept]
    words = module.dropped_words(d)
    assert how in module.DROPPED and f'The {gone["size"].sum()} training ads of the dropped cluster ' in words and ('.35' in words) == (how == 'weighted') and ('0 of them teach' in words) == (how != 'left_out')
    d['lessons'] = pd.concat([d['lessons'], d['lessons'].head(3).assign(cluster=gone.cluster.iloc[0])])
    assert '3 of them teach' in module.dropped_words(d) or how == 'left_out'
    d['competence']['kept'] = True
    assert module.dropped_words(d) == 'No cluster was dropped.'


@pytest.mark.parametrize('hostile', [False, True])
def test_a_filter_that_does_not_help_is_warned_of_with_its_interval(tmp_path, hostile):
    run = make_fake_run(tmp_path, hostile=hostile)
    html = built(run)
    head, p = said(html[html.index('<section id=headline'):html.index('<section id=data')]), said(html)
    assert 'First, do no harm: the filtered student is not better at npv@1%' in head and '-0.030 (-0.080 to +0.020)' in head and '<script>alert' not in without_library(html)
    assert 'better' in p and 'AUC' in p
    manifest = read_json(run/'41_evaluate/manifest.json')
    manifest['metrics']['warning'] = ''
    write_json(manifest, run/'41_evaluate/manifest.json')
    assert 'First, do no harm:' not in said(built(run)) and 'the filtered student is' in said(built(run))
    manifest['metrics']['warning'] = 'npv@1% -0.030 (x); npv@5% +0.080 (y)'
    write_json(manifest, run/'41_evaluate/manifest.json')
    assert 'On student_val' not in module.harm_warning(read_run(run)), 'figures that the warning holds are not said twice'


def test_the_sweep_is_shown_or_how_to_get_it(tmp_path, run, text):
    assert 'fig_sweep' in text and '2 model seeds each' in said(text)
    for r in read_table(run/'39_sweep/sweep.parquet').itertuples(): assert f'{r.value:.3f} {r.low:.3f} to {r.high:.3f}' in said(text)
    d = read_run(run)
    for without in ({k: v for k,v in d.items() if k != 'sweep'}, d | dict(sweep=d['sweep'].head(0))):
        assert 'fig_sweep' not in module.sweep_part(without) and '-p sweep_T 0,.1,.3' in module.sweep_part(without)


# Clusters and pictures

def test_both_ways_of_cleaning_are_counted(run):
    d = read_run(run) | dict(cfg=Report(thumbs=5))
    t = d['partition'].merge(d['suspects'], on='ad_id').merge(d['ads'][['ad_id', 'is_noise']], on='ad_id')
    t['kept'] = t.cluster.map(d['competence'].set_index('cluster').kept)
    numbers = [int(x) for x in re.findall(r'\b\d+\b', said(module.cleaning_counts(module.two_cleanings(d))))]
    want = [n for kept in (True, False) for suspect in (False, True) for g in [t[(t.kept == kept) & (t.suspect == suspect)]] for n in (len(g), int(g.is_noise.sum()))]
    assert numbers == want and sum(want[::2]) == len(d['partition'])
    truth = [int(x) for x in re.findall(r'\b\d+\b', said(module.cleaning_truth(module.two_cleanings(d))))]
    noise = t.is_noise.astype(bool)
    assert truth == [n for out in (~t.kept, t.suspect) for n in ((out & noise).sum(), noise.sum(), (out & ~noise).sum(), (~noise).sum())]
    html = module.cleanings_section(d)
    shown = re.findall(r'alt="([^"]*), cluster (\d+), defective with probability ([\d.]+)', html)
    inside = [float(p) for _,c,p in shown if t.kept[t.cluster == int(c)].all()]
    assert inside == sorted(inside) == [round(p, 2) for p in sorted(t.p_defective[t.kept & t.suspect])[:5]] and len(shown) <= 10
    assert 'vit_cleanlab' in html and 'ft_sd_weighted' in html and 'deit_1' not in html


def test_without_truth_or_students_less_is_said(tmp_path):
    run = make_fake_run(tmp_path, truth=False, until='34_select')
    d = read_run(run) | dict(cfg=Report())
    html = module.cleanings_section(d)
    assert 'Truth:' not in html and 'truth:' not in html and 'What the student makes of it' not in html and html.count('<img') > 12


# What to judge again

def table_in(html):
    data, = re.findall(r'download="worklist.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)
    return pd.read_csv(io.BytesIO(base64.b64decode(data)), dtype=str, keep_default_na=False)


@pytest.mark.parametrize('hostile', [False, True])
def test_the_worklist_can_be_taken_along(tmp_path, hostile):
    run = make_fake_run(tmp_path, hostile=hostile)
    want, html = read_table(run/'34_select/worklist.parquet').sort_values('rank'), module.worklist_section(read_run(run) | dict(cfg=Report()), 5)
    got = table_in(html)
    assert got.ad_id.tolist() == want.ad_id.tolist() and got['rank'].astype(int).tolist() == want['rank'].tolist() and got.clusters.tolist() == [' '.join(map(str, c)) for c in want.clusters]
    assert got.verdict.tolist() == [('defective', 'acceptable')[x] for x in want.label] and all(p.startswith('./') for p in got.path) and got.why.tolist() == want.why.tolist()
    assert html.count('<img') == 5 and html.count('<tr>') == 6 and '<script>alert' not in html and 'The first 5 of 12' in html


def test_an_empty_worklist_says_so(tmp_path):
    run = make_fake_run(tmp_path)
    change(run, '34_select/worklist.parquet', lambda t: pd.DataFrame(columns=t.columns))
    assert 'The list is empty' in built(run)


def test_stills_of_disagreements_and_worklist(run):
    d = read_run(run)
    assert module.clash_still(d, 3).height < module.clash_still(d, 30).height and module.worklist_still(d, 12).width == module.worklist_still(d, 1).width
    assert module.clash_still(d, 3).tobytes() != module.clash_still(d, 3, True).tobytes()


# The paper's table

@pytest.fixture(scope='module')
def paper_run(tmp_path_factory):
    run = make_fake_run(tmp_path_factory.mktemp('paper')/'demo', px=16)
    table2(run)
    return run

@pytest.fixture(scope='module')
def paper_text(paper_run): return built(paper_run)


def section(html, name): return re.search(rf'<section id={name}>.*?</section>', html, re.S)[0]
def table_rows(html): return [[said(c) for c in re.findall(r'<t[dh].*?</t[dh]>', r, re.S)] for r in re.findall(r'<tr>.*?</tr>', html, re.S)]
def of_table2(run): return module.paper_tables(read_run(run))['table2']


def test_the_paper_s_table_is_there_only_where_it_was_finished(run, text, paper_run, paper_text, tmp_path):
    assert 'id=table2' not in text and [a['id'] for t,a in Page(paper_text).tags if t == 'section'][12:14] == ['slices', 'table2']
    half = make_fake_run(tmp_path, px=16)
    table2(half)
    (half/'43_table2/manifest.json').unlink()
    assert 'table2' not in module.paper_tables(read_run(half)) and 'id=table2' not in built(half)
    assert without_library(paper_text).count('"showSendToCloud": false') == without_library(paper_text).count('Plotly.newPlot(') == 12 and len(Page(paper_text).ids()) == len({*Page(paper_text).ids()})


def test_a_later_table_makes_the_report_anew(tmp_path):
    run = make_fake_run(tmp_path, px=16)
    report(Report(), run)
    table2(run)
    assert any('43_table2' in w for w in report(Report(), run)['why']) and 'id=table2' in (run/'report.html').read_text()


def test_rows_of_the_paper_come_in_its_order_with_every_number(paper_run):
    t = of_table2(paper_run)
    head, *rows = table_rows(module.table2_rows(t))
    assert head == ['category', 'method', 'NPV at 5 % FPR', 'NPV at 1 % FPR', 'AUC', 'kinds', 'CPU min']
    assert len(rows) == len(PAPER_ROWS) and [r[0] for r in rows if r[0]] == list(dict.fromkeys(p[1] for p in PAPER_ROWS))
    r, recall = t['results'].set_index(['method', 'metric']), t['recall'][np.isclose(t['recall'].level, .05)]
    for row, (method, _, paper, *_, stand_in, _, _) in zip(rows, PAPER_ROWS):
        assert row[1].startswith(method + ' *'*stand_in + ' ' + paper)
        if method == 'noisy_student':
            assert row[2:] == ['', '', '', '', '–'] and LEFT_OUT[method] in row[1]
            continue
        for cell, metric in zip(row[2:5], ('npv@5%', 'npv@1%', 'auc')):
            x = r.loc[(method, metric)]
            assert f'{x.value:.3f} {x.low:.3f} to {x.high:.3f}' in cell and (pd.isna(x.gain) or f'{x.gain:+.3f} {x.gain_low:+.3f} to {x.gain_high:+.3f}' in cell)
        kinds = recall[recall.method == method]
        worst = kinds.sort_values('recall').iloc[0]
        assert row[5] == f'{kinds.recall.mean():.2f} {worst.sub_defect} ({worst.n}) {worst.recall:.2f} {worst.low:.2f} to {worst.high:.2f}' and row[6] == '1.50'


def test_what_was_left_out_is_said_once_with_why(paper_run, paper_text):
    p = said(section(paper_text, 'table2'))
    assert all(p.count(why) == 1 for why in LEFT_OUT.values()) and 'Left out: ft_sd_cc_ul (no unlabelled ad is used).' in p
    t = of_table2(paper_run)
    assert module.left_out_words(t | dict(left_out={})) == '' and 'not trained' in module.table2_rows(t | dict(left_out={}))


def test_stand_ins_are_called_so(paper_run, paper_text):
    assert 'stand-ins' in said(section(paper_text, 'table2')) and 'it has K 6 and 12 epochs, and the others in proportion' in said(section(paper_text, 'table2')) and 'share that trunk' in said(section(paper_text, 'table2'))
    d = read_run(paper_run)
    d |= module.paper_tables(d)
    d['table2']['rows'] = d['table2']['rows'].assign(stand_in=False)
    assert 'stand-ins' not in module.table2_section(d) and '*' not in said(module.table2_rows(d['table2']))


def test_every_claim_is_a_paragraph_with_its_evidence(paper_run, paper_text):
    t, html = of_table2(paper_run), section(paper_text, 'table2')
    paragraphs = {said(re.search('<b>(.*?)</b>', x)[1]): said(x) for x in re.findall(r'<p><b>.*?</p>', html)}
    claims = t['claims']
    assert {k.rstrip('.').lower() for k in paragraphs} == {c.lower() for c in claims.claim} and len(paragraphs) == 4
    for r in claims[claims.metric != 'npv@10%'].itertuples():
        x = next(text for k, text in paragraphs.items() if k.rstrip('.').lower() == r.claim.lower())
        assert f'{r.a} {"gains" if r.gain > 0 else "loses"} {abs(r.gain):.3f} against {r.b} ({r.low:+.3f} to {r.high:+.3f}), p = {r.p_holm:.3f} after correction' in x
        assert {'holds': 'it holds :', 'does not': 'it does not hold:', 'cannot tell': 'this run cannot tell at this n :'}[r.verdict] in x and x.endswith('80 defective test ads, 3 seeds of each row.')
        assert ('excludes zero' in x) == (r.verdict == 'cannot tell' and (r.low > 0 or r.high < 0))
    assert 'Of 4 claims at 5 % FPR, 1 holds, 1 does not, and 2 cannot be told at this n. Of 4 claims at 1 % FPR' in said(html).replace('\N{NO-BREAK SPACE}', ' ') and 'npv@10' not in html


def test_other_levels_and_uneven_seeds_are_told_too(paper_run):
    t = of_table2(paper_run)
    only = t | dict(claims=t['claims'][t['claims'].metric == 'npv@10%'])
    assert said(module.claims_part(only, .1, 80)).count('At 10') == 4
    uneven = t['results'].assign(seeds=np.where(t['results'].method == 'vit', 1, 3))
    p = said(module.claims_part(t | dict(results=uneven), .1, 80))
    assert '3 and 1 seeds' in p and '1 and 3 seeds' in p and '3 seeds of each row' in p and module.claims_part(t | dict(claims=t['claims'].head(0)), .1, 80) == ''


def test_draws_that_cannot_tell_are_warned_of(paper_run):
    d = read_run(paper_run)
    d |= module.paper_tables(d)
    assert 'too few' not in module.table2_section(d)
    d['manifests']['43_table2']['metrics']['warning'] = '50 bootstrap draws are too few <b>'
    assert '50 bootstrap draws are too few &lt;b&gt;' in module.table2_section(d)


def test_slices_of_the_run_and_of_the_table(run, text, paper_run):
    for slices, html in ((read_table(run/'41_evaluate/slices.parquet'), section(text, 'slices')), (of_table2(paper_run)['slices'], module.table2_section(read_run(paper_run) | module.paper_tables(read_run(paper_run))))):
        p = said(html)
        for name in ('advertiser size', 'month'): assert f'Recall by {name}' in p
        for r in slices[np.isclose(slices.level, .05)].itertuples():
            row = next(x for x in table_rows(html) if x[0] == r.method and f'{r.recall:.2f} {r.low:.2f} to {r.high:.2f}' in x)
            assert len(row) == 3 and f'{r.value} ({r.n})' in p


def test_without_slices_there_is_no_section_of_them(tmp_path):
    run = make_fake_run(tmp_path, px=16)
    change(run, '41_evaluate/slices.parquet', lambda t: t.head(0))
    assert 'id=slices' not in built(run)
    assert 'slices' not in module.paper_tables(read_run(make_fake_run(tmp_path/'older', px=16, older=True)))


def test_names_in_the_table_are_text_and_without_truth_no_kinds_are_told(tmp_path):
    run = make_fake_run(tmp_path, px=16, truth=False)
    table2(run, truth=False, mark=HOSTILE)
    html = built(run)
    assert '<script>alert' not in without_library(html) and HOSTILE in said(section(html, 'table2')) and not any(k.startswith('on') for _,a in Page(html).tags for k in a)
    assert 'kinds' not in table_rows(section(html, 'table2'))[0] and 'Kinds:' not in said(section(html, 'table2'))


def test_every_row_has_a_label():
    from subtask_kit import report as room
    from subtask_kit.distill import ROWS
    assert set(ROWS) <= set(room.METHODS)
