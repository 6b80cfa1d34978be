"The browser halves of the widgets, in Debian's chromium with a model that only remembers."
import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sync_api = pytest.importorskip('playwright.sync_api', reason='playwright is not installed')
CHROMIUM = shutil.which('chromium')
pytestmark = [pytest.mark.browser, pytest.mark.skipif(not CHROMIUM, reason="there is no chromium on this machine (apt-get install chromium)")]

STATIC = Path(__file__).parents[1]/'subtask_kit/static'
FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
PAGE = '''<!doctype html><meta charset=utf-8><link rel=stylesheet href=widgets.css>
<style>:root { color-scheme: light dark } body { margin: 0 } #el { width: 700px }
[data-jp-theme-light=true] { --jp-layout-color1: white; --jp-ui-font-color1: black } [data-jp-theme-light=false] { --jp-layout-color1: #111; --jp-ui-font-color1: white }
</style><body data-jp-theme-light=true><div class=stk-widget><div id=el></div><div class=stk-edits><button>drop</button></div></div><script>
const bytes = text => {  // at an odd address, as a message's may be
  const raw = Uint8Array.from(atob(text), c => c.charCodeAt(0)), b = new Uint8Array(raw.length + 1);
  b.set(raw, 1);
  return new DataView(b.buffer, 1);
};
const wire = traits => Object.fromEntries(Object.entries(traits).map(([k, v]) => [k, v?.bytes === undefined ? v : bytes(v.bytes)]));
function fake(traits) {
  const heard = {}, state = wire(traits), fire = (name, ...a) => [...heard[name] ?? []].forEach(f => f(...a));
  const set = (k, v) => { if (state[k] !== v) { state[k] = v; fire('change:' + k); fire('change'); } };
  return { sent: [], saved: 0, state, fire, heard, set, get: k => state[k], save_changes() { this.saved++; }, send(m) { this.sent.push(m); },
    update: some => { const w = wire(some); Object.assign(state, w); for (const k in w) fire('change:' + k); fire('change'); },
    on: (n, f) => { (heard[n] ??= new Set()).add(f); }, off: (n, f) => { heard[n]?.delete(f); },
    listeners: () => Object.values(heard).reduce((s, x) => s + x.size, 0) };
}
async function show(name, traits, el = document.querySelector('#el')) {
  window.view = await import('/' + name + '.js');
  window.model ??= fake(traits);
  return window.close_view = await view.default.render({ model, el });
}
const settled = () => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)));
</script>'''


def as_bytes(data): return dict(bytes=base64.b64encode(bytes(data)).decode())


@pytest.fixture(scope='module')
def browser():
    with sync_api.sync_playwright() as p:
        b = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield b
        b.close()


def open_page(browser):
    "A page that can reach nothing but the three views, and that remembers its errors."
    p = browser.new_page(viewport=dict(width=800, height=700))
    p.set_default_timeout(5000)
    p.errors = []
    p.on('pageerror', lambda e: p.errors.append(str(e)))

    def serve(route):
        name = route.request.url.rsplit('/', 1)[1]
        kind = dict(js='text/javascript', css='text/css').get(name.rpartition('.')[2], 'text/html')
        route.fulfill(body=PAGE if kind == 'text/html' else (STATIC/name).read_text(), content_type=kind)
    p.route('**/*', serve)
    return p


@pytest.fixture(scope='module')
def tab(browser): return open_page(browser)


@pytest.fixture
def page(tab):
    "The page as new: everything in it goes when it is loaded again."
    tab.goto('http://kit.test/')
    yield tab
    errors, tab.errors = tab.errors, []
    tab.emulate_media(color_scheme='light')
    assert not errors


@pytest.fixture
def clocked(browser):
    "A page whose clock the test winds."
    p = open_page(browser)
    p.goto('http://kit.test/')
    p.clock.install()
    yield p
    assert not p.errors
    p.close()


def start(page, name, /, **traits): page.evaluate('([n, t]) => show(n, t).then(settled)', [name, traits])
def settle(page): page.evaluate('settled()')
def sent(page): return page.evaluate('model.sent')
def get(page, trait): return page.evaluate(f'model.get({trait!r})')
def update(page, /, **traits): page.evaluate('t => { model.update(t); return settled(); }', traits)


# ---- map

GROUPS = [dict(label='knives', colour='#cc2222', at=[16000, 16000], dim=False), dict(label='<b>pills</b>', colour='#2222cc', at=[48000, 48000], dim=False),
          dict(label='rest', colour='#22cc22', at=None, dim=True)]


def world(n, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 65536, (n, 2)).astype('<u2'), rng.integers(0, len(GROUPS), n).astype('<u2')


def show_map(page, n, **more):
    xy, code = world(n)
    start(page, 'map', **{**dict(xy=as_bytes(xy), code=as_bytes(code), groups=GROUPS, selected=as_bytes(b''), height=400), **more})
    return xy


def picked(page, n):
    "What is selected, as the Python half would unpack it."
    raw = bytes(page.evaluate('[...new Uint8Array(model.get("selected").buffer, model.get("selected").byteOffset, model.get("selected").byteLength)]'))
    assert len(raw) in (0, (n + 7)//8)
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder='little')
    assert not bits[n:].any(), 'bits beyond the last point'
    return np.flatnonzero(bits[:n])


def on_screen(page, xy):
    "Where the points lie, in the viewport's pixels."
    ax, bx, ay, by = map(float, page.get_attribute('.stk-stage', 'data-frame').split())
    box = page.locator('.stk-ink').bounding_box()
    return xy.astype(float)*[ax, ay] + [bx + box['x'], by + box['y']]


def drag(page, corners, button='left', *, modifier=None):
    if modifier: page.keyboard.down(modifier)
    page.mouse.move(*corners[0])
    page.mouse.down(button=button)
    for c in corners[1:]: page.mouse.move(*c)
    page.mouse.up(button=button)
    if modifier: page.keyboard.up(modifier)
    settle(page)


def even_odd(points, corners):
    "The textbook rule, edge by edge."
    odd = np.zeros(len(points), bool)
    x, y = points.T
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, 1, 0)):
        with np.errstate(divide='ignore', invalid='ignore'): odd ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0)*(y - y0)/(y1 - y0) + x0)
    return odd


def shape(rng, k, centre=(350, 200), reach=170):
    "A polygon that crosses itself, with whole pixels for corners."
    return (np.array(centre) + rng.uniform(-reach, reach, (k, 2))).round().astype(int).tolist()


def test_lasso_picks_what_the_oracle_picks(page):
    n = 4001
    xy, rng = show_map(page, n), np.random.default_rng(n)
    for k in (3, 4, 7, 12, 30):     # one over another: each is a new lasso
        corners = shape(rng, k)
        drag(page, corners)
        assert picked(page, n).tolist() == np.flatnonzero(even_odd(on_screen(page, xy), corners)).tolist()
    assert page.evaluate('model.saved') == 5 and not sent(page)


def test_lasso_after_zoom_and_pan(page):
    xy, rng = show_map(page, 4000), np.random.default_rng(1)
    before = on_screen(page, xy)
    page.mouse.move(200, 150)
    page.mouse.wheel(0, -100)
    settle(page)
    assert np.allclose(on_screen(page, xy), before), 'without the focus the page scrolls, not the map'
    page.focus('.stk-ink')
    page.mouse.wheel(0, -100)
    page.mouse.wheel(0, -100)
    settle(page)
    nearer = on_screen(page, xy)
    grown = (nearer - [200, 150])/(before - [200, 150])
    assert grown.min() > 1.3 and np.ptp(grown) < 1e-6, 'about the pointer'
    drag(page, [(100, 100), (130, 80)], modifier='Shift')
    assert np.allclose(on_screen(page, xy), nearer + [30, -20])
    drag(page, [(100, 100), (90, 110)], 'middle')
    assert np.allclose(on_screen(page, xy), nearer + [20, -10]) and not picked(page, 4000).size
    for _ in range(3):
        corners = shape(rng, 9)
        drag(page, corners)
        assert picked(page, 4000).tolist() == np.flatnonzero(even_odd(on_screen(page, xy), corners)).tolist()
    page.mouse.dblclick(350, 200)
    settle(page)
    assert np.allclose(on_screen(page, xy), before)
    page.evaluate('document.activeElement.blur()')
    page.keyboard.down('Control')
    page.mouse.wheel(0, -100)
    page.keyboard.up('Control')
    settle(page)
    assert not np.allclose(on_screen(page, xy), before)


def test_alt_adds_and_an_empty_lasso_clears(page):
    xy = show_map(page, 2000)
    one, two, nothing = [(100, 100), (200, 100), (200, 200), (100, 200)], [(180, 180), (300, 180), (300, 300), (180, 300)], [(1, 1), (9, 1), (9, 9), (1, 9)]
    drag(page, one)
    drag(page, two, modifier='Alt')
    where = on_screen(page, xy)
    assert picked(page, 2000).tolist() == np.flatnonzero(even_odd(where, one) | even_odd(where, two)).tolist()
    drag(page, nothing, modifier='Alt')
    assert picked(page, 2000).size
    page.mouse.move(*one[0])
    page.mouse.down()
    for c in one[1:]: page.mouse.move(*c)
    page.keyboard.press('Escape')
    page.mouse.up()
    assert picked(page, 2000).size and not sent(page), 'Escape gives up the lasso under way'
    drag(page, nothing)
    assert page.evaluate('model.get("selected").byteLength') == 0


def test_a_short_drag_is_a_click(page):
    xy = show_map(page, 60)
    where = on_screen(page, xy)
    for i in (3, 17):
        near = np.round(where[i])
        best = int(np.argmin(np.hypot(*(where - near).T)))
        drag(page, [near, near + 1])
        assert sent(page)[-1] == dict(kind='click', index=best)
    away = next((x, y) for x in range(20, 680, 10) for y in range(20, 380, 10) if np.hypot(*(where - [x, y]).T).min() > 12)
    page.mouse.click(*away)
    assert len(sent(page)) == 2 and not picked(page, 60).size, 'nothing lies there'


def test_bits_of_a_last_byte_that_is_not_full(page):
    show_map(page, 1)
    for n in (1, 7, 8, 13):
        xy, code = world(n)
        update(page, xy=as_bytes(xy), code=as_bytes(code), selected=as_bytes(b''))
        drag(page, [(2, 2), (698, 2), (698, 398), (2, 398)])
        assert picked(page, n).tolist() == list(range(n))


def test_keys(page):
    xy = show_map(page, 500, selected=as_bytes(np.packbits(np.ones(500, np.uint8), bitorder='little')))
    leaked = page.evaluate('(window.leaked = [], document.addEventListener("keydown", e => leaked.push(e.key)), leaked)')
    whole = on_screen(page, xy)
    page.focus('.stk-ink')
    assert '500 points in 3 groups' in page.get_attribute('.stk-ink', 'aria-label') and page.get_attribute('.stk-ink', 'tabindex') == '0'
    assert page.evaluate('getComputedStyle(document.querySelector(".stk-ink")).outlineStyle') == 'solid', 'the focus is visible'

    def press(*some):
        for key in some: page.keyboard.press(key)
        settle(page)
        return on_screen(page, xy)
    right = press('ArrowRight') - whole
    assert (right[:, 0] < 0).all() and (right[:, 1] == 0).all()
    assert np.allclose(press('ArrowLeft', 'ArrowUp', 'ArrowDown'), whole)
    assert np.ptp(press('+')[:, 0]) > 1.2*np.ptp(whole[:, 0])
    assert np.allclose(press('-'), whole) and np.allclose(press('+', 'ArrowUp', '0'), whole)
    press(']', '[')
    assert sent(page) == [dict(kind='step', by=1), dict(kind='step', by=-1)]
    assert picked(page, 500).size == 500
    press('Escape', 'x')
    assert not picked(page, 500).size and page.evaluate('leaked') == ['x'], 'JupyterLab must not see keys that the map has used'
    assert leaked == []


def pixels(page):
    "The canvas of the points, rows x columns x 3."
    png = page.evaluate('document.querySelector(".stk-points").toDataURL("image/png")').split(',')[1]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert('RGB')).astype(int)


def test_what_is_drawn(page):
    xy, code = np.array([[10000, 30000], [30000, 30000], [50000, 30000]], '<u2'), np.array([0, 1, 2], '<u2')
    start(page, 'map', xy=as_bytes(xy), code=as_bytes(code), groups=[dict(g, label='') for g in GROUPS], selected=None, height=400)

    def colours():
        image, at = pixels(page), np.round(on_screen(page, xy)).astype(int) - 1     # the frame's border
        return [image[y, x].tolist() for x, y in at], image[200, 5].tolist()
    (red, blue, dim), paper = colours()
    assert red == [0xcc, 0x22, 0x22] and blue == [0x22, 0x22, 0xcc] and paper == [255]*3
    assert dim[0] == dim[1] == dim[2] < 255, 'a dim group is grey'
    update(page, selected=as_bytes([2]))
    (red, blue, _), _ = colours()
    assert min(red) > 150 and red != paper and blue == [0x22, 0x22, 0xcc], 'what is not selected is faint'
    page.evaluate('document.body.dataset.jpThemeLight = "false"')
    settle(page)
    (red, blue, _), dark = colours()
    assert dark == [0x11]*3 and max(red) < 100 and blue == [0x22, 0x22, 0xcc]
    update(page, xy=as_bytes(xy[::-1].copy()), selected=as_bytes(b''))
    assert colours()[0][2] == [0xcc, 0x22, 0x22], 'other points, another picture'


def test_without_jupyter_the_browsers_own_theme_counts(page):
    show_map(page, 3)
    page.evaluate('delete document.body.dataset.jpThemeLight')
    seen = []
    for scheme in ('light', 'dark'):
        page.emulate_media(color_scheme=scheme)
        settle(page)
        seen.append(pixels(page)[200, 5].tolist())
    assert seen[0] != seen[1]


def test_labels_and_tooltips_are_text(page):
    xy = np.array([[16000, 50000], [48000, 20000]], '<u2')
    start(page, 'map', xy=as_bytes(xy), code=as_bytes(np.array([0, 1], '<u2')), groups=GROUPS, selected=as_bytes(b''), height=400)
    where = on_screen(page, xy)
    page.mouse.move(*where[1])
    settle(page)
    assert page.locator('.stk-tip').text_content() == '<b>pills</b>' and page.locator('.stk-map b').count() == 0
    page.mouse.move(5, 5)
    settle(page)
    assert not page.locator('.stk-tip').is_visible()


def test_two_views_of_one_model(page):
    xy = show_map(page, 100)
    page.evaluate('show("map", {}, document.body.appendChild(document.createElement("div"))).then(settled)')
    drag(page, [(2, 2), (698, 2), (698, 398), (2, 398)])
    shots = page.evaluate('[...document.querySelectorAll(".stk-points")].map(c => c.getContext("2d").getImageData(0, 0, 690, 390).data.join())')
    assert len(shots) == 2 and picked(page, 100).size == len(xy)
    page.evaluate('close_view()')
    assert page.locator('.stk-map').count() == 1


def test_two_hundred_thousand_points(page):
    n = 200_000
    page.evaluate('''() => { const real = requestAnimationFrame; window.frames_ms = [];
        window.requestAnimationFrame = f => real(t => { const t0 = performance.now(); f(t); if (f.name === 'tick') frames_ms.push(performance.now() - t0); }); }''')
    xy = show_map(page, n)
    for _ in range(8):
        page.evaluate('model.fire("change:groups"), settled()')
    whole = page.evaluate('frames_ms.splice(0)')
    t = np.linspace(0, 2*np.pi, 120, endpoint=False)
    ring = np.c_[350 + (150 + 20*np.sin(9*t))*np.cos(t), 200 + (150 + 20*np.sin(9*t))*np.sin(t)]
    page.evaluate('''() => { window.up_ms = []; const send = HTMLElement.prototype;
        document.querySelector('.stk-ink').addEventListener('pointerup', () => { window.t_up = performance.now(); }, true);
        model.on('change:selected', () => up_ms.push(performance.now() - t_up)); }''')
    drag(page, ring.tolist())
    drawn = page.evaluate('frames_ms.splice(0)')
    got, want = picked(page, n), np.flatnonzero(even_odd(on_screen(page, xy), ring))
    assert len(np.setxor1d(got, want)) <= 2 and got.size > 30_000     # two roundings on the way
    hit = page.evaluate('(() => { const t0 = performance.now(); for (let i = 0; i < 10; i++) view.nearest(%s, {ax: .01, bx: 0, ay: .01, by: 0}, 300, 300); '
                        'return (performance.now() - t0) / 10; })()' % 'view.words(model.get("xy"))')
    lasso = page.evaluate('up_ms')[0]
    print(f'\n200,000 points: redraw median {np.median(whole):.0f} ms (max {max(whole):.0f}), frames during a lasso median {np.median(drawn[:-1]):.1f} ms, '
          f'lasso of 120 corners {lasso:.0f} ms, redraw after it {drawn[-1]:.0f} ms, nearest point {hit:.1f} ms')
    assert max(whole) < 1000 and lasso < 1000 and np.median(drawn[:-1]) < 50


# ---- gallery

def jpeg(i, px=96):
    rng, out = np.random.default_rng(i), io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((px, px), Image.Resampling.BICUBIC).save(out, 'JPEG', quality=90)
    return out.getvalue()


def sheet_of(n, seed=0, **more):
    "Bytes and items of n pictures."
    parts, items, at = [jpeg(seed*1000 + i) for i in range(n)], [], 0
    for i, part in enumerate(parts):
        item = dict(id=f'p{seed}.{i}', at=at, size=len(part), caption=f'no {i}', alt=f'ad {i}', tone='', group='')
        items.append({**item, **{k: v(i) for k, v in more.items()}})
        at += len(part)
    return dict(sheet=as_bytes(b''.join(parts)), items=items)


def show_gallery(page, n=10, traits={}, **more):
    start(page, 'gallery', **{**sheet_of(n, **more), **dict(title='', empty='nothing here', px=64, rows=False, picked=[], pickable=True, page=0, pages=1, stamp=1), **traits})
    page.wait_for_selector('.stk-gallery[data-painted="1"]', state='attached')


def cell(page, i): return page.locator('.stk-cell').nth(i)
def chosen(page): return page.evaluate('[...document.querySelectorAll("[aria-selected=true]")].map(c => c.querySelector("img").alt)')


def test_pictures_are_shown_as_they_are(page):
    tones = ['', 'good', 'bad', 'open']
    show_gallery(page, 8, dict(title='cluster 3'), tone=lambda i: tones[i % 4], group=lambda i: '' if i < 4 else 'second')
    assert page.evaluate('[...document.querySelectorAll(".stk-cell img")].map(i => [i.naturalWidth, i.clientWidth, i.alt, i.title, i.src.slice(0, 5)])') \
        == [[96, 64, f'ad {i}', f'ad {i}', 'data:'] for i in range(8)]
    assert page.locator('.stk-mark').all_text_contents() == ['✓', '✗', '?']*2, 'a colour never alone'
    borders = page.evaluate('[...document.querySelectorAll(".stk-cell img")].slice(0, 4).map(i => getComputedStyle(i).borderTopColor)')
    assert len(set(borders)) == 4
    assert page.locator('.stk-title').text_content() == 'cluster 3' and page.locator('.stk-group').all_text_contents() == ['second']
    tops = page.evaluate('[...document.querySelectorAll(".stk-cell")].map(c => c.getBoundingClientRect().top)')
    assert len({*tops[:4]}) == 1 and min(tops[4:]) > tops[0], 'a group begins a row'
    assert page.locator('.stk-pages').is_hidden()
    update(page, items=[], stamp=2)
    assert page.locator('.stk-pictures').text_content() == 'nothing here'


def test_rows_scroll_sideways(page):
    show_gallery(page, 40, dict(rows=True), group=lambda i: 'ab'[i//20])
    strips = page.evaluate('[...document.querySelectorAll(".stk-strip")].map(s => [s.scrollWidth > s.clientWidth, s.clientHeight])')
    assert [wide for wide, _ in strips] == [True, True] and max(h for _, h in strips) < 130


def test_picking_with_the_mouse(page):
    show_gallery(page)
    cell(page, 2).click()
    assert get(page, 'picked') == ['p0.2'] and chosen(page) == ['ad 2']
    cell(page, 5).click(modifiers=['Shift'])
    assert get(page, 'picked') == ['p0.2', 'p0.3', 'p0.4', 'p0.5']
    cell(page, 1).click(modifiers=['Shift'])
    assert get(page, 'picked') == ['p0.1', 'p0.2'], 'from the last picked alone'
    cell(page, 7).click(modifiers=['Control'])
    cell(page, 1).click(modifiers=['Meta'])
    assert get(page, 'picked') == ['p0.2', 'p0.7']
    cell(page, 8).click()
    assert get(page, 'picked') == ['p0.8'] and page.evaluate('model.saved') == 6
    cell(page, 4).dblclick()
    assert sent(page) == [dict(kind='open', id='p0.4')]
    before = page.locator('.stk-cell').first.element_handle()
    update(page, picked=['p0.0', 'p0.9'])
    assert chosen(page) == ['ad 0', 'ad 9'] and before.is_visible(), 'only the marks change'


def test_picking_with_the_keyboard(page):
    show_gallery(page, 20)
    page.evaluate('(window.leaked = [], document.addEventListener("keydown", e => leaked.push(e.key)))')
    assert page.evaluate('[...document.querySelectorAll("[tabindex]")].map(c => c.tabIndex).filter(t => t === 0).length') == 1, 'one stop for Tab'
    cell(page, 0).focus()
    across = page.evaluate('(() => { const t = [...document.querySelectorAll(".stk-cell")].map(c => c.offsetTop); return t.filter(x => x === t[0]).length; })()')
    for key in ('ArrowRight', 'ArrowRight', 'ArrowLeft', ' ', 'ArrowDown', ' '): page.keyboard.press(key)
    assert get(page, 'picked') == ['p0.1', f'p0.{1 + across}']
    page.keyboard.press(' ')
    assert get(page, 'picked') == ['p0.1']
    for key in ('ArrowUp', 'ArrowUp', 'Enter', 'End'): page.keyboard.press(key)
    assert sent(page) == [dict(kind='open', id='p0.1')] and page.evaluate('document.activeElement.querySelector("img").alt') == 'ad 19'
    assert page.evaluate('getComputedStyle(document.activeElement).outlineStyle') == 'solid'
    page.keyboard.press('Escape')
    assert get(page, 'picked') == [] and chosen(page) == []
    page.keyboard.press('x')
    assert page.evaluate('leaked') == ['x']


def test_not_pickable(page):
    show_gallery(page, traits=dict(pickable=False))
    cell(page, 2).click()
    assert get(page, 'picked') == [] and page.locator('[tabindex], [role=option], [role=listbox]').count() == 0


def test_pages(page):
    show_gallery(page, traits=dict(pages=3))
    back, forth = page.locator('.stk-pages button').all()
    assert page.locator('.stk-pages span').text_content() == 'page 1 of 3'
    back.click(force=True)
    assert get(page, 'page') == 0 and page.evaluate('model.saved') == 0
    forth.click()
    assert get(page, 'page') == 1 and page.locator('.stk-pages span').text_content() == 'page 1 of 3', 'what is shown changes with the stamp'
    update(page, **sheet_of(10, 1), stamp=2)
    assert page.locator('.stk-pages span').text_content() == 'page 2 of 3'
    cell(page, 4).focus()
    page.keyboard.press('PageDown')
    update(page, **sheet_of(3, 2), stamp=3)
    assert get(page, 'page') == 2 and page.evaluate('document.activeElement.querySelector("img").alt') == 'ad 2', 'the focus stays in the gallery'
    page.keyboard.press('PageDown')
    assert get(page, 'page') == 2
    page.keyboard.press('PageUp')
    assert get(page, 'page') == 1 and page.evaluate('model.saved') == 3


def test_redraws_with_the_stamp_alone_and_leaves_no_urls(page):
    page.evaluate("""() => { window.urls = 0; const make = URL.createObjectURL, drop = URL.revokeObjectURL;
        URL.createObjectURL = b => { urls++; return make.call(URL, b); }; URL.revokeObjectURL = u => { urls--; drop.call(URL, u); }; }""")
    show_gallery(page, 6)
    update(page, **sheet_of(4, 1), title='later')
    assert page.locator('.stk-cell').count() == 6 and page.locator('.stk-title').is_hidden()
    one = sheet_of(1, 2)
    update(page, sheet=one['sheet'], items=[dict(one['items'][0], id=str(i)) for i in range(5)], stamp=7)
    page.wait_for_selector('.stk-gallery[data-painted="7"]', state='attached')
    assert page.evaluate('[...document.querySelectorAll(".stk-cell img")].map(i => i.naturalWidth)') == [96]*5, 'five items share the bytes'
    update(page, sheet=as_bytes(b'no picture'), items=[dict(one['items'][0], at=0, size=10)], stamp=8)
    page.wait_for_selector('.stk-gallery[data-painted="8"]', state='attached')
    big = b'\xff\xd8' + bytes(300_000)
    update(page, sheet=as_bytes(big), items=[dict(one['items'][0], at=0, size=len(big))], stamp=9)
    page.wait_for_selector('.stk-gallery[data-painted="9"]', state='attached')
    page.evaluate('close_view()')
    assert page.evaluate('urls') == 0


HOSTILE = '<img src=x onerror="window.hacked = true">'


def test_data_is_shown_as_text(page):
    show_gallery(page, 2, dict(title=HOSTILE, pages=2), caption=lambda i: HOSTILE, alt=lambda i: HOSTILE, group=lambda i: HOSTILE, tone=lambda i: 'constructor')
    assert page.locator('.stk-caption').first.text_content() == HOSTILE == page.locator('.stk-title').text_content() == page.locator('.stk-group').text_content()
    assert page.locator('img').count() == 2 and page.evaluate('window.hacked === undefined') and page.locator('.stk-mark').count() == 0


def test_a_page_of_48_is_painted_at_once(page):
    show_gallery(page, 48)
    pages = [dict(sheet_of(48, 1 + k), stamp=2 + k) for k in range(5)]
    times = page.evaluate("""async pages => { const root = document.querySelector('.stk-gallery'), out = [];
        for (const p of pages) { const w = wire(p); await settled(); const t0 = performance.now(); Object.assign(model.state, w); model.fire('change:stamp');
            const t1 = performance.now(); while (root.dataset.painted !== String(p.stamp)) await new Promise(r => setTimeout(r));
            out.push([t1 - t0, performance.now() - t0]); }
        return out; }""", pages)
    work, painted = np.array(times).T
    print(f'\n48 pictures: script median {np.median(work):.1f} ms, stamp to painted median {np.median(painted):.0f} ms (max {painted.max():.0f})')
    assert np.median(painted) < 1000


# ---- teachers

TEACHERS = [dict(label='9', at=.8, low=.6, high=.9), dict(label='<img src=x onerror=alert(1)>', at=.3, low=.0, high=.5), dict(label='6', at=-.2, low=-.9, high=.1)]


def start_teachers(page, **more):
    start(page, 'teachers', **dict(rows=TEACHERS, verdicts=['kept', 'too close to call', 'dropped'], tips=['20 ads', '<b>tip</b>', ''], T=.1, floor=0., low=-.5, axis='lift', chosen=0, stamp=1) | more)


def across(page, value, low=-.5):
    "Where a value lies on the screen, by the axis' own lines."
    box = page.locator('.stk-teachers').bounding_box()
    return box['x'] + 118 + (value-low)/(1-low)*(box['width']-118-14)


def test_teachers_are_rows_with_text_and_a_shape_for_every_verdict(page):
    start_teachers(page)
    rows = page.locator('.stk-teacher')
    assert rows.count() == 3 and rows.locator('text').all_text_contents() == [t['label'] for t in TEACHERS] and page.locator('img').count() == 0
    assert rows.locator('title').all_text_contents() == ['20 ads', '<b>tip</b>', '']
    assert len({page.evaluate('i => document.querySelectorAll(".stk-teacher")[i].lastElementChild.previousElementSibling.getAttribute("d")', i) for i in range(3)}) == 3
    assert page.locator('.stk-T text').text_content() == 'T = 0.10'
    update(page, verdicts=['dropped']*3, stamp=2)
    assert rows.nth(0).get_attribute('class').split()[1] == 'stk-is-dropped' and 'dropped' in rows.nth(0).get_attribute('aria-label')
    assert page.locator('.stk-teachers').get_attribute('data-stamp') == '2'


def test_T_is_dragged_by_hand_and_by_keys(page):
    start_teachers(page)
    y = page.locator('.stk-teacher').nth(1).bounding_box()['y']
    page.mouse.move(across(page, .1), y)
    page.mouse.down()
    for T in (.2, .35, .42): page.mouse.move(across(page, T), y+3)
    page.mouse.up()
    assert get(page, 'T') == pytest.approx(.42, abs=.011) and page.locator('.stk-T text').text_content() == f'T = {get(page, "T"):.2f}'
    page.mouse.move(across(page, .9), y)
    assert get(page, 'T') == pytest.approx(.42, abs=.011), 'let go'
    before, line = get(page, 'T'), page.locator('.stk-T')
    for key in ('ArrowRight', 'ArrowUp', 'ArrowLeft', 'PageUp'): line.press(key)
    assert get(page, 'T') == pytest.approx(before + .11) and line.get_attribute('aria-valuenow') == str(get(page, 'T'))
    for _ in range(9): line.press('PageUp')
    assert get(page, 'T') == 1
    for _ in range(20): line.press('PageDown')
    assert get(page, 'T') == -.5 and page.evaluate('model.saved') > 10


def test_a_teacher_is_chosen_by_click_and_by_key(page):
    start_teachers(page)
    page.locator('.stk-teacher text').nth(2).click()
    assert get(page, 'chosen') == 2 and page.locator('.stk-chosen').count() == 1
    page.locator('.stk-teacher').nth(1).press('Enter')
    assert get(page, 'chosen') == 1
    update(page, rows=TEACHERS[::-1])
    assert page.evaluate('document.activeElement.dataset.name') == '1', 'focus stays where it was'


# ---- status

def show_status(page, **more):
    page.evaluate('t => show("status", t)', {**dict(text='saved, operation 17: cluster 3 dropped', notice=''), **more})
    page.clock.run_for(100)
    page.screenshot()  # a real frame: the view finds its widget when it is laid out, and the clock of the test winds no frames


def touch(page):
    page.mouse.move(790, 690)
    page.mouse.move(100, 5)


def banner(page): return page.locator('.stk-banner').text_content()
def barred(page): return page.evaluate('document.querySelector(".stk-widget").classList.contains("stk-dead")')


def test_what_is_saved_is_said(clocked):
    page = clocked
    show_status(page, notice='map of 20,000 of 31,000')
    said = page.locator('[role=status]').text_content(), page.locator('.stk-notice[role=alert]').text_content()
    assert said == ('saved, operation 17: cluster 3 dropped', 'map of 20,000 of 31,000') and not banner(page) and not sent(page)
    page.evaluate('model.update({text: "<b>x</b>", notice: ""})')
    assert page.locator('[role=status]').text_content() == '<b>x</b>' and page.locator('.stk-notice').is_hidden()


def test_it_asks_while_somebody_works_and_not_otherwise(clocked):
    page = clocked
    show_status(page)
    page.clock.run_for(60_000)
    assert not sent(page)
    touch(page)
    assert sent(page) == [dict(kind='look', n=1)]
    page.evaluate('model.fire("msg:custom", {kind: "here", n: 1})')
    touch(page)
    assert len(sent(page)) == 1, 'at most once in three seconds'
    page.clock.run_for(3100)
    page.focus('.stk-edits button')
    assert sent(page)[-1] == dict(kind='look', n=2)
    page.evaluate('model.fire("msg:custom", {kind: "here", n: 2})')
    page.clock.run_for(10_000)
    assert not banner(page)


def test_silence_is_told_and_taken_back(clocked):
    page = clocked
    show_status(page)
    touch(page)
    page.clock.run_for(3000)
    assert not banner(page) and not barred(page)
    page.clock.run_for(1200)
    assert banner(page).startswith('No answer from the kernel') and barred(page)
    assert page.evaluate('getComputedStyle(document.querySelector(".stk-edits button")).cursor') == 'not-allowed'
    for _ in range(3):
        page.clock.run_for(5000)
        touch(page)
    assert len(sent(page)) == 1, 'one question at a time'
    page.evaluate('model.fire("msg:custom", {kind: "other"})')
    assert not banner(page) and not barred(page), 'any answer will do'
    touch(page)
    page.clock.run_for(5000)
    assert len(sent(page)) == 2 and banner(page)
    page.evaluate('model.update({text: "saved, operation 18"})')
    assert not banner(page) and not barred(page)


@pytest.mark.parametrize('how', ['model.fire("comm_live_update")', 'void (model.send = () => { throw new Error("Cannot send"); })'])
def test_a_lost_comm_is_told_at_once(clocked, how):
    page = clocked
    show_status(page)
    page.evaluate(how)
    touch(page)
    assert banner(page).startswith('The kernel was restarted or is gone') and barred(page)
    page.clock.run_for(10_000)
    touch(page)
    assert banner(page).startswith('The kernel was restarted') and not sent(page)


# ---- all three

EMPTY = dict(map=dict(xy=None, code=None, groups=[], selected=None, height=300), gallery=dict(sheet=None, items=[], picked=[], pages=1, page=0, pickable=True, stamp=1), status=dict(text='', notice=''))


@pytest.mark.parametrize('name', EMPTY)
def test_nothing_to_show_and_nothing_left_behind(page, name):
    page.evaluate("""() => { window.left = 0;
        const add = EventTarget.prototype.addEventListener, remove = EventTarget.prototype.removeEventListener;
        EventTarget.prototype.addEventListener = function (n, f, o) { left++; if (o?.signal) add.call(o.signal, 'abort', () => left--); return add.call(this, n, f, o); };
        EventTarget.prototype.removeEventListener = function (...a) { left--; return remove.apply(this, a); };
        for (const kind of [ResizeObserver, MutationObserver]) { const { observe, disconnect } = kind.prototype;
            kind.prototype.observe = function (...a) { if (!this.on) left++; this.on = true; return observe.apply(this, a); };
            kind.prototype.disconnect = function () { if (this.on) left--; this.on = false; return disconnect.call(this); }; } }""")
    start(page, name, **EMPTY[name])
    assert page.locator(f'.stk-{name}').count() == 1 and page.evaluate('left') > 0
    page.evaluate('close_view()')
    settle(page)
    assert page.evaluate('[left, model.listeners(), document.querySelector("#el").childElementCount]') == [0, 0, 0]
