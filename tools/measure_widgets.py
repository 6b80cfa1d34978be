"""Measure the widgets in a real JupyterLab, on made-up runs of several sizes; a row a size in nbs/benchmarks/results/widgets.csv.

    python tools/measure_widgets.py                 # 2,500, 26,000 and 200,000 defective training ads, 100 clusters
    python tools/measure_widgets.py 26000 --keep /tmp/runs --say   # one size; keep the made-up runs; say every measurement

Latencies are taken inside the page: from the browser's own event to the second frame after what was awaited is there
(a gallery says itself when the second frame after its last picture has begun).
Beside each stands where the time goes: `there` until the page sends its message, `kernel` what the kernel computes, `wire` the
rest until the largest message of its answer has arrived (both ways, through JupyterLab's server; less than nothing where the
kernel goes on computing after that), `draw` from there to the painted frame. `load`: processes that wanted a core meanwhile.
"""
import argparse
import json
import os
import statistics
import struct
import sys
import tempfile
from pathlib import Path

import nbformat
import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT/'tests'))
import lab
from fake_run import make_fake_run

SIDES = (.2, .3, .4, .5, .6, .7, .8, .95) # of a lasso, as a share of the map
PAGES, STEPS, CLUSTERS = 12, 16, 100

# In every page, before anything else: when did it speak, when did it hear, when was something drawn.
WATCH = '''(() => {
  window.seen = { sent: [], heard: [] };
  const send = WebSocket.prototype.send;
  WebSocket.prototype.send = function (data) { seen.sent.push([performance.now(), data.byteLength ?? data.length]); return send.call(this, data); };
  window.WebSocket = new Proxy(WebSocket, { construct(target, args) {
    const socket = new target(...args);
    socket.addEventListener('message', e => seen.heard.push([performance.now(), e.data.byteLength ?? e.data.length]));
    return socket;
  } });
  // From the next `event` until `ready(element)` is true, and so many frames; how the time divides.
  window.stopwatch = (element, event, ready, frames) => {
    const at = {};
    window.lap = new Promise(done => {
      addEventListener(event, () => { at.begin = performance.now(); }, { capture: true, once: true });
      const look = new MutationObserver(() => {
        if (at.begin === undefined || at.ready !== undefined || !ready(element)) return;
        at.ready = performance.now();
        look.disconnect();
        const wait = n => n ? requestAnimationFrame(() => wait(n - 1)) : done({ ...at, end: performance.now() });
        wait(frames);
      });
      look.observe(element, { attributes: true, childList: true, subtree: true, characterData: true });
    }).then(at => {
      const between = list => list.filter(([t]) => t >= at.begin && t <= at.ready), said = between(seen.sent), heard = between(seen.heard);
      return { ...at, there: said.length ? said[0][0] - at.begin : 0, heard: Math.max(0, (heard.reduce((a, b) => b[1] > a[1] ? b : a, [at.begin, 0]))[0] - at.begin),
               up: said.reduce((n, x) => n + x[1], 0), down: heard.reduce((n, x) => n + x[1], 0) };
    });
  };
})();'''

CELLS = '''import json, time
wall, cpu = time.perf_counter, time.process_time
began = cpu()
import numpy as np
from subtask_kit.widgets import *
from subtask_kit.editor import Editor
from subtask_kit.view import to_grid
imports = cpu() - began

editor = Editor('.')
def map_and_gallery():
    "What a `ClusterBrowser` does for its map and its pictures, the tables read."
    began = cpu()
    grid, map = to_grid(editor.ads[['x', 'y']]), Map()
    groups, code = groups_of(editor, grid)
    map.xy, map.groups, map.code = grid.tobytes(), groups, code.tobytes()
    album = Album(editor.d['images'])
    album.show([members_set(editor, 'one', np.flatnonzero(editor.cluster == 0), False)])
    return cpu() - began
---
built = [map_and_gallery() for _ in range(5)]
---
grid = to_grid(editor.ads[['x', 'y']])
groups, code = groups_of(editor, grid)
---
only = Map(xy=grid.tobytes(), groups=groups, code=code.tobytes())
---
began = cpu()
browser = ClusterBrowser('.')
whole = cpu() - began
---
browser
---
began = cpu()
inspector = TeacherInspector('.')
inspecting = cpu() - began
---
inspector
---
worked = []
def timed(owner, name):
    "Write down how long each call takes."
    plain = getattr(owner, name)
    def call(*args):
        began = wall()
        try: return plain(*args)
        finally: worked.append((name, 1000*(wall() - began)))
    setattr(owner, name, call)
timed(browser, '_drawn'), timed(browser.albums[0], 'paint'), timed(inspector, 'drag')'''


def notebook(run):
    "The page that is measured, where `subtask-kit lab` looks for it."
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.split('\n---\n')]
    kernel = dict(display_name='python3', language='python', name='python3')
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), run/'explore.ipynb')


class Wire:
    "What the kernel sends: (kind of message, widget, bytes)."
    def __init__(self, page):
        self.frames = []
        page.on('websocket', lambda socket: socket.on('framereceived', self.take))

    def take(self, data):
        if not isinstance(data, bytes): return
        n, = struct.unpack_from('<Q', data)
        offsets = struct.unpack_from(f'<{n}Q', data, 8)
        parts = [data[a:b] for a, b in zip(offsets, [*offsets[1:], len(data)])] # channel, header, parent, metadata, content, buffers
        kind, content = json.loads(parts[1])['msg_type'], json.loads(parts[4])
        name = content.get('data', {}).get('state', {}).get('_anywidget_id', '') if kind == 'comm_open' else ''
        self.frames.append((kind, name.rpartition('.')[2], len(data)))

    def cut(self):
        "What has come since one last asked."
        frames, self.frames = self.frames, []
        return frames


def ask(page, expression):
    "The value of an expression in the notebook's kernel."
    return page.evaluate('''async code => {
      const kernel = jupyterapp.shell.currentWidget.sessionContext.session.kernel, future = kernel.requestExecute({ code });
      let text = '', wrong = '';
      future.onIOPub = m => { text += m.content.text ?? ''; wrong ||= m.content.evalue; };
      await future.done;
      if (wrong) throw Error(wrong);
      return JSON.parse(text);
    }''', f'print(json.dumps({expression}))')


def run_cells(page, wire):
    "Run the cells one by one; what the kernel sent for each."
    page.evaluate("jupyterapp.shell.currentWidget.content.activeCellIndex = 0")
    sent = []
    for i in range(len(CELLS.split('\n---\n'))):
        page.evaluate("jupyterapp.commands.execute('notebook:run-cell-and-select-next')")
        page.wait_for_function('i => { const c = jupyterapp.shell.currentWidget.content.model.sharedModel.cells[i]; return c.execution_count > 0 && c.executionState !== "running" }', arg=i, timeout=120_000)
        ask(page, '0') # everything before has come
        wrong = page.evaluate('i => jupyterapp.shell.currentWidget.content.model.sharedModel.cells[i].outputs.filter(o => o.output_type === "error").map(o => o.evalue)', i)
        assert not wrong, (i, wrong)
        sent.append(wire.cut())
    return sent


def timing(page, element, event, ready, act, kernel, frames=0):
    "One measurement: ms from the event to the painted frame, and its parts."
    page.evaluate(f'element => stopwatch(element, "{event}", {ready}, {frames})', element.element_handle())
    ask(page, 'worked.clear()')
    act()
    t = page.evaluate('window.lap')
    work = [ms for name, ms in ask(page, 'worked') if name == kernel]
    kernel_ms = work[-1] if work else 0
    return dict(ms=t['end']-t['begin'], there=t['there'], kernel=kernel_ms, wire=t['heard']-t['there']-kernel_ms, draw=t['end']-t['begin']-t['heard'], up=t['up'], down=t['down'])


def lassos(page, browser, gallery):
    "Lassos of growing size, each around another middle."
    ink, out = browser.locator('.stk-ink'), []
    for i, side in enumerate(SIDES):
        x, y = (.03 + (.94-side)*(.5 + .5*s) for s in ((-1)**i*(i % 3)/2, (-1)**(i//2)*(i % 2)/2)) if side < .94 else (.02, .02)
        n = lab.painted(page, gallery)
        ready = f'g => Number(g.dataset.painted) > {n} && g.querySelectorAll("img").length === 48'
        corners = [(x, y), (x+side, y), (x+side, y+side), (x, y+side)]
        out.append(timing(page, gallery, 'pointerup', ready, lambda: lab.lasso(page, ink, corners), '_drawn') | dict(side=side))
        assert 'lasso' in gallery.text_content()
        out[-1]['ads'] = ask(page, 'len(browser.lassoed)')
    return out


def pages(page, gallery):
    "From page to page of the last, largest lasso."
    following, out = gallery.locator('.stk-pages button').last, []
    for _ in range(PAGES):
        n = lab.painted(page, gallery)
        out.append(timing(page, gallery, 'click', f'g => Number(g.dataset.painted) > {n}', following.click, 'paint'))
    return out


def threshold(page, inspector):
    "T by the keyboard, step by step: the sentence says the new T and the chart has the verdicts of it."
    slider, out = inspector.get_by_role('slider').first, []
    lab.still(page, slider)
    slider.focus()
    T = ask(page, 'inspector.T.value')
    for i in range(STEPS):
        T = round(T + .01, 2)
        n = int(inspector.locator('.stk-teachers').get_attribute('data-stamp'))
        ready = f'''w => w.querySelector('.stk-kept')?.textContent.includes('T = {T:.2f}') && Number(w.querySelector('.stk-teachers').dataset.stamp) > {n}'''
        out.append(timing(page, inspector, 'keydown', ready, lambda: slider.press('ArrowRight'), 'drag', frames=2))
    return out


def heap(page):
    "MB of JavaScript's heap after its rubbish has been collected; array buffers and pictures lie elsewhere."
    cdp = page.context.new_cdp_session(page)
    cdp.send('HeapProfiler.collectGarbage')
    return cdp.send('Runtime.getHeapUsage')['usedSize']/1e6


def measure(ads, home, say=False):
    "All measurements at one size."
    run = home/f'run{ads}'
    if not run.exists(): make_fake_run(run, k=CLUSTERS, px=96, defective=ads, pictures=1500, until='35_curriculum')
    notebook(run)
    with tempfile.TemporaryDirectory() as folder, lab.jupyterlab(run, Path(folder)) as address, lab.chromium(viewport=dict(width=1400, height=1000)) as page:
        page.add_init_script(WATCH)
        wire = Wire(page)
        lab.open_notebook(page, address)
        empty = heap(page)
        sent = run_cells(page, wire)
        browser, inspector = (page.locator('.stk-widget').nth(i) for i in range(2))
        gallery = browser.locator('.stk-gallery').first
        n = lab.painted(page, gallery)
        browser.locator('button', has_text='Show pictures').click()
        lab.painted(page, gallery, n)
        found = dict(lasso=lassos(page, browser, gallery), page=pages(page, gallery), T=threshold(page, inspector))
        kernel = ask(page, 'dict(imports=imports, built=built, whole=whole, inspecting=inspecting)')
        full = heap(page)
    if say:
        for name, rows in found.items(): print(name, pd.DataFrame(rows).round(1).to_string(), sep='\n')
        for frames in sent: print(pd.DataFrame(frames, columns=['kind', 'widget', 'bytes']).groupby(['kind', 'widget']).bytes.agg(['count', 'sum']).to_string())
        print(kernel)
    row = dict(ads=ads, clusters=CLUSTERS, cores=os.cpu_count(), load=os.getloadavg()[0])
    for name, rows in found.items():
        ms = [r['ms'] for r in rows]
        row |= {f'{name}_ms': statistics.median(ms), f'{name}_max_ms': max(ms), f'{name}_n': len(ms)}
        row |= {f'{name}_{part}_ms': statistics.median([r[part] for r in rows]) for part in ('there', 'kernel', 'wire', 'draw')}
        row |= {f'{name}_{way}_kb': statistics.median([r[way] for r in rows])/1e3 for way in ('up', 'down')}
    total = lambda frames, *kinds: sum(n for kind, _, n in frames if not kinds or kind in kinds)/1e6
    row |= dict(lasso_largest_up_kb=max(r['up'] for r in found['lasso'])/1e3, map_mb=total(sent[3], 'comm_open'), browser_mb=total(sent[4] + sent[5]), inspector_mb=total(sent[6] + sent[7]),
                built_first_s=kernel['built'][0], built_s=statistics.median(kernel['built'][1:]), browser_s=kernel['whole'], inspector_s=kernel['inspecting'], imports_s=kernel['imports'],
                heap_before_mb=empty, heap_mb=full)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('sizes', nargs='*', type=int, default=[2500, 26000, 200000])
    p.add_argument('--out', type=Path, default=ROOT/'nbs/benchmarks/results/widgets.csv')
    p.add_argument('--keep', type=Path, help='a folder for the made-up runs; what is there is used again')
    p.add_argument('--say', action='store_true')
    args = p.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = args.keep or Path(folder)
        home.mkdir(parents=True, exist_ok=True)
        rows = pd.DataFrame([measure(ads, home, args.say) for ads in args.sizes])
    if args.out.exists():
        before = pd.read_csv(args.out)
        rows = pd.concat([before[~before.ads.isin(rows.ads)], rows]).sort_values('ads')
    rows.round(4).to_csv(args.out, index=False)
    print(rows.T.round(3).to_string())


if __name__ == '__main__': main()
