"The report: one offline file that shows what there is and says what it cannot tell."
import re
from html.parser import HTMLParser

import nbformat
import numpy as np
import pytest
from fake_run import HOSTILE, METHODS, make_fake_run
from plotly.offline import get_plotlyjs

from subtask_kit import report as module
from subtask_kit.artifacts import read_json, read_table, write_json, write_table
from subtask_kit.core import UserError
from subtask_kit.report import Report, page, report
from subtask_kit.view import outdated, read_run

STAGES = ['13_curate', '25_features', '31_selflabel', '32_clusters', '33_specialists', '34_select', '35_curriculum', '36_unlabelled', '37_distill', '41_evaluate']


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
    assert 4 < first['metrics']['megabytes'] < 8 and first['metrics']['sections'] == 12
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
    assert without_library(text).count('"showSendToCloud": false') == without_library(text).count('Plotly.newPlot(') == 8


def test_ids_are_unique_and_every_entry_of_the_contents_leads_somewhere(text):
    p = Page(text)
    ids = p.ids()
    assert len(ids) == len(set(ids))
    links = [a['href'][1:] for t,a in p.tags if t == 'a']
    assert len(links) > 12 and set(links) <= set(ids)


def test_sections_come_in_the_order_of_the_story(text):
    heads = [a['id'] for t,a in Page(text).tags if t == 'section']
    assert heads == ['headline', 'data', 'clusters', 'teachers', 'curriculum', 'unlabelled', 'results', 'recall', 'training', 'operating', 'card', 'limits']


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
    assert len([t for t,_ in p.tags if t == 'script']) == 1 + 8 and plain.count('<script') == 1 + 8
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
    assert f'unlabelled 0 0 {ads.label.isna().sum()}' in said and 'left out (embargo) 5 5' in said
    assert 'same headline 2' in said and 'cannot be decoded 1' in said


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
    assert p.count('a person decided') == 1 and 'cluster 2 dropped' in p and '(line 3)' in p and '(line 1)' not in p


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


def test_the_papermill_notebook_tells_a_runs_story(run, tmp_path):
    import papermill
    from pathlib import Path
    source = Path(module.__file__).parent.parent/'nbs/pipeline/report.ipynb'
    nb = nbformat.read(source, 4)
    assert not any(c.get('outputs') for c in nb.cells) and list(papermill.inspect_notebook(str(source))) == ['run_path']
    papermill.execute_notebook(str(source), str(tmp_path/'story.ipynb'), dict(run_path=str(run.path)), kernel_name='python3', progress_bar=False)
    data = [o.data for c in nbformat.read(tmp_path/'story.ipynb', 4).cells for o in c.get('outputs', []) if 'data' in o]
    figures = [d['application/vnd.plotly.v1+json'] for d in data if 'application/vnd.plotly.v1+json' in d]
    assert any('image/jpeg' in d for d in data) and len(figures) == 4 and all(f['config']['showSendToCloud'] is False for f in figures)
    assert (tmp_path/'story.ipynb').stat().st_size < 500_000
