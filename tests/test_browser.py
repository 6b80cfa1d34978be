"One story in real JupyterLab: look at a run, decide, reload, restart; then the next run does what was decided."
import json
import re
import shutil

import pandas as pd
import pytest
from conftest import kit

pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
import lab
from playwright.sync_api import TimeoutError, expect

pytestmark = [pytest.mark.browser, pytest.mark.skipif(not lab.CHROMIUM, reason='there is no chromium on this machine (apt-get install chromium)')]

expect.set_options(timeout=20_000) # a busy machine is slow
WHOLE = [(.02, .02), (.98, .02), (.98, .98), (.02, .98)]


class Widgets:
    "The three widgets of the notebook, as a person finds them."
    def __init__(self, page):
        self.page = page
        self.browser, self.inspector, self.picker = (page.locator('.stk-widget').nth(i) for i in range(3))
        self.map, self.list, self.gallery = self.browser.locator('.stk-ink'), self.browser.locator('.stk-pick select'), self.browser.locator('.stk-gallery').first

    def button(self, widget, name): return widget.locator('button', has_text=re.compile(rf'^\s*{re.escape(name)}\s*$'))
    def press(self, widget, name): self.button(widget, name).click()
    def says(self, widget, words): expect(widget.locator('.stk-status')).to_contain_text(words)
    def widths(self): return self.gallery.locator('img').evaluate_all('all => all.map(i => i.naturalWidth)')


@pytest.fixture
def run(micro_run, tmp_path): return shutil.copytree(micro_run, tmp_path/'run')


def watch(page):
    "What must not be: (errors of the page, addresses of other machines)."
    errors, strangers = [], []
    page.on('pageerror', lambda e: None if 'Failed to initialize model' in str(e) else errors.append(str(e))) # see `come_back`
    page.on('request', lambda r: None if re.match(r'https?://127\.0\.0\.1[:/]|data:|blob:', r.url) else strangers.append(r.url))
    return errors, strangers


def look_and_drop(w, run):
    "A lasso, the switch, a cluster of the list, its button; returns the cluster."
    n = lab.painted(w.page, w.gallery)
    assert set(w.widths()) == {6}, 'pictures are not veiled'
    w.map.scroll_into_view_if_needed()
    lab.lasso(w.page, w.map, WHOLE)
    expect(w.gallery).to_contain_text('lasso: ')
    n = lab.painted(w.page, w.gallery, n)
    w.press(w.browser, 'Show pictures')
    n = lab.painted(w.page, w.gallery, n)
    assert min(w.widths()) == 32, 'pictures are not sharp'
    cluster = int(w.list.locator('option').nth(1).text_content().split()[0])
    w.list.select_option(index=1)
    expect(w.gallery).to_contain_text(f'cluster {cluster}')
    lab.painted(w.page, w.gallery, n)
    cells = 'jupyterapp.shell.currentWidget.content.widgets.length'
    before = w.page.evaluate(cells)
    for key in 'ab': w.list.press(key)
    assert w.page.evaluate(cells) == before, 'a key meant for the widget added a cell'
    w.press(w.browser, f'Drop cluster {cluster}')
    w.says(w.browser, f'saved, operation 1: cluster {cluster} dropped')
    edits = [json.loads(line) for line in (run/'human/edits.jsonl').read_text().splitlines()]
    assert [(e['op'], e['cluster']) for e in edits] == [('drop', cluster)]
    return cluster


ALIVE = """() => { const all = n => document.querySelectorAll('.stk-widget ' + n).length;
    return document.body.textContent.includes('Error displaying widget') ? 'lost' : all('.stk-status') === 3 && all('.stk-ink') === 1 && all('.stk-gallery') === 7 && 'alive' }"""


def come_back(page):
    "Load the page anew. JupyterLab does not always find all widgets again: anywidget gives them two seconds. A person runs the cells again then."
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    page.reload()
    lab.idle(page)
    try: alive = page.wait_for_function(ALIVE, timeout=15_000).json_value() == 'alive'
    except TimeoutError: alive = False
    if not alive: lab.run_all(page)


def reload(w, cluster):
    "After a reload the edit is still there, and the widgets answer."
    come_back(w.page)
    expect(w.list.locator('option', has_text='✗')).to_have_count(1)
    w.list.select_option(index=0)
    expect(w.gallery).not_to_contain_text(f'cluster {cluster},')
    w.list.select_option(index=1)
    expect(w.button(w.browser, f'Restore cluster {cluster}')).to_be_visible()


def drag(w):
    "T moves, and with it the sentence about what is kept."
    before, slider = w.inspector.locator('.stk-kept').inner_text(), w.inspector.get_by_role('slider').first
    slider.focus()
    for T in ('0.11', '0.12', '0.13', '0.14', '0.15'): # one step after the other: on a busy machine an echo of the last one may come late
        slider.press('ArrowRight')
        expect(w.inspector.locator('.stk-kept')).to_contain_text(f'T = {T}')
    expect(w.inspector.locator('.stk-kept')).not_to_have_text(before)


def test_what_is_decided_in_jupyterlab_the_next_run_does(run, tmp_path):
    with lab.jupyterlab(run, tmp_path) as address, lab.chromium(viewport=dict(width=1400, height=1000)) as page:
        errors, strangers = watch(page)
        lab.open_notebook(page, address)
        lab.run_all(page)
        w = Widgets(page)
        cluster = look_and_drop(w, run)
        reload(w, cluster)
        drag(w)
        w.press(w.picker, 'cc')
        w.press(w.picker, 'Use this order')
        w.says(w.picker, 'saved, operation 1: the order is cc')
        lab.restart(page)
        for widget in (w.browser, w.inspector, w.picker): w.says(widget, 'this view is dead')
        assert (errors, strangers) == ([], [])
    kit('run', run, '--workers', 1)
    competence, curriculum = pd.read_parquet(run/'34_select/competence.parquet').set_index('cluster'), json.loads((run/'35_curriculum/curriculum.json').read_text())
    assert not competence.kept[cluster] and competence.by[cluster] == 'person'
    assert (curriculum['method'], curriculum['by']) == ('cc', 'person') and cluster not in curriculum['order']
    report = (run/'report.html').read_text()
    assert 'cc, strict <span class=tiny>(chosen by a person)' in report and 'a person decided</span>' in report
