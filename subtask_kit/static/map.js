// A map of points on a canvas: lasso, zoom, labels. Points arrive as uint16 pairs; what is selected travels as a bitset.
const SPAN = 65535;      // coordinates run from 0 to SPAN
const MARGIN = 14;       // css px left free around the whole map
const NEAR = 8;          // css px within which a click hits a point
const APART = 2;         // css px between two corners of a lasso
const MAX_ZOOM = 200;
const HINT = 'drag: lasso · alt+drag: add · shift+drag: move · ctrl+wheel, or wheel after a click: zoom · double click: whole map · Esc: clear';
const KEYS = 'Arrows move, plus and minus zoom, 0 shows the whole, brackets step through the clusters, Escape clears the selection.';

// A copy, because a message's bytes need not begin at an even address.
export const bytes = view => new Uint8Array(view?.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength) ?? 0);
export const words = view => new Uint16Array(bytes(view).buffer, 0, (view?.byteLength ?? 0) >> 1);
export const has = (bits, i) => bits[i >> 3] >> (i & 7) & 1;
export const radius = n => n < 3000 ? 4 : n < 50000 ? 2.5 : 1.5;

// screen x = ax * x + bx, and the same for y, which grows upwards in the data and downwards on the screen
export function frame(view, width, height) {
  const w = width - 2 * MARGIN, h = height - 2 * MARGIN;
  return { ax: w * view.k / SPAN, bx: MARGIN + w * view.x, ay: -h * view.k / SPAN, by: height - MARGIN - h * view.y };
}

// The view after zooming with the screen point (px, py) kept where it is; never smaller than the whole.
export function zoomed(view, by, px, py, width, height) {
  const k = Math.min(MAX_ZOOM, Math.max(1, view.k * by)), r = k / view.k;
  const u = (px - MARGIN) / (width - 2 * MARGIN), v = (height - MARGIN - py) / (height - 2 * MARGIN);
  return k === 1 ? { k: 1, x: 0, y: 0 } : { k, x: u - (u - view.x) * r, y: v - (v - view.y) * r };
}

// Bitset of the points inside a closed polygon by the even-odd rule, added to `bits`. Edges are sorted into bands of y
// first: a point meets the few edges of its own band only.
export function inside(xy, corners, bits) {
  const xs = corners.map(c => c[0]), ys = corners.map(c => c[1]), bands = Array.from({ length: 256 }, () => []);
  const x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
  const band = y => Math.min(255, (y - y0) / (y1 - y0) * 256 | 0);
  for (let i = 0, j = xs.length - 1; i < xs.length; j = i++) {
    const last = band(Math.max(ys[i], ys[j]));
    for (let b = band(Math.min(ys[i], ys[j])); b <= last; b++) bands[b].push(xs[i], ys[i], xs[j], ys[j]);
  }
  for (let i = 0; i < xy.length / 2; i++) {
    const x = xy[2 * i], y = xy[2 * i + 1];
    if (x < x0 || x > x1 || y < y0 || y > y1) continue;
    const edges = bands[band(y)];
    let odd = 0;
    for (let e = 0; e < edges.length; e += 4) {
      const xa = edges[e], ya = edges[e + 1], xb = edges[e + 2], yb = edges[e + 3];
      if (ya > y !== yb > y && x < (xb - xa) * (y - ya) / (yb - ya) + xa) odd ^= 1;
    }
    bits[i >> 3] |= odd << (i & 7);
  }
  return bits;
}

// Index of the point nearest to a screen position, -1 when none is near; of equals the last, which lies on top.
// Looking at every one of 200,000 takes a millisecond.
export function nearest(xy, f, px, py) {
  let best = NEAR * NEAR, found = -1;
  for (let i = 0; i < xy.length / 2; i++) {
    const dx = f.ax * xy[2 * i] + f.bx - px, dy = f.ay * xy[2 * i + 1] + f.by - py, d = dx * dx + dy * dy;
    if (d <= best) [best, found] = [d, i];
  }
  return found;
}

// Pixels of a disc as [offset in an image of that width, cover of 0..256, ...]
export function disc(r, width) {
  const out = [], far = Math.ceil(r);
  for (let y = -far; y <= far; y++) for (let x = -far; x <= far; x++) {
    const cover = Math.round(256 * Math.min(1, Math.max(0, r + .5 - Math.hypot(x, y))));
    if (cover) out.push(y * width + x, cover);
  }
  return Int32Array.from(out);
}

// Colours are 0xaabbggrr: an image's bytes r, g, b, a read on a little-endian machine.
export const pack = ([r, g, b]) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
export function mix(under, over, cover) {
  const rb = (under & 0xff00ff) * (256 - cover) + (over & 0xff00ff) * cover, g = (under & 0xff00) * (256 - cover) + (over & 0xff00) * cover;
  return (0xff000000 | rb >>> 8 & 0xff00ff | g >>> 8 & 0xff00) >>> 0;
}

// Any css colour as a packed one: the browser itself reads it.
function reader() {
  const ctx = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  return css => { ctx.fillStyle = css; ctx.fillRect(0, 0, 1, 1); return pack(ctx.getImageData(0, 0, 1, 1).data); };
}

// All points into an image with `pad` spare pixels on each side, so that no pixel need be tested against the border.
// Without `bits` dim groups lie below; with them what is selected lies above, and the rest is faint.
export function paint({ pixels, width, height, pad, scale, brush }, xy, code, bits, { full, faint, dim }, f) {
  for (let turn = 0; turn < 2; turn++) for (let i = 0; i < code.length; i++) {
    const g = code[i];
    if ((bits ? has(bits, i) : 1 - dim[g]) !== turn) continue;
    const x = Math.round((f.ax * xy[2 * i] + f.bx) * scale) + pad, y = Math.round((f.ay * xy[2 * i + 1] + f.by) * scale) + pad;
    if (x < pad / 2 || y < pad / 2 || x >= width - pad / 2 || y >= height - pad / 2) continue;
    const at = y * width + x, colour = bits && !turn ? faint[g] : full[g];
    for (let d = 0; d < brush.length; d += 2) {
      const p = at + brush[d], cover = brush[d + 1];
      pixels[p] = cover === 256 ? colour : mix(pixels[p], colour, cover);
    }
  }
}

// Groups' names at their places; one that would cover another goes a line up or down, or waits for a nearer view.
function label(ctx, groups, f, width, height) {
  const taken = [], free = r => taken.every(t => r[2] < t[0] || r[0] > t[2] || r[3] < t[1] || r[1] > t[3]);
  for (const g of groups.filter(g => g.at && g.label).sort((a, b) => a.dim - b.dim)) {
    const half = ctx.measureText(g.label).width / 2 + 3, x = f.ax * g.at[0] + f.bx, y = f.ay * g.at[1] + f.by;
    if (x < 0 || x > width || y < 0 || y > height) continue;
    const cx = Math.max(half, Math.min(x, width - half)), box = dy => [cx - half, y + dy - 8, cx + half, y + dy + 8];
    const dy = [0, -15, 15].find(d => free(box(d)));
    if (dy === undefined) continue;
    taken.push(box(dy));
    ctx.globalAlpha = g.dim ? .6 : 1;
    ctx.strokeText(g.label, cx, y + dy);
    ctx.fillText(g.label, cx, y + dy);
  }
  ctx.globalAlpha = 1;
}

function make(tag, cls, parent, text = '') {
  const node = Object.assign(document.createElement(tag), { className: cls, textContent: text });
  return parent.appendChild(node);
}

function render({ model, el }) {
  const root = make('div', 'stk-map', el), stage = make('div', 'stk-stage', root), points = make('canvas', 'stk-points', stage);
  const ink = make('canvas', 'stk-ink', stage), tip = make('div', 'stk-tip', stage), ctx = points.getContext('2d'), pen = ink.getContext('2d');
  const rgb = reader(), off = new AbortController();
  let xy, code, view, image = null, width = 0, height = 0, drag = null, mouse = null, stale = false, asked = 0;
  make('div', 'stk-hint', root, HINT);
  ink.tabIndex = 0;
  ink.setAttribute('role', 'application');
  tip.hidden = true;

  const groups = () => model.get('groups') ?? [];
  const now = () => frame(view, width, height);
  const later = () => { asked ||= requestAnimationFrame(tick); };
  const redraw = () => { stale = true; later(); };

  function read() {
    const before = xy?.length;
    xy = words(model.get('xy'));
    code = words(model.get('code')).subarray(0, xy.length / 2);  // one may arrive before the other
    if (before !== xy.length) [view, image] = [{ k: 1, x: 0, y: 0 }, null];
    redraw();
  }

  // All drawing happens here, once a frame at most: the points if they changed, the lasso's outline, the tooltip.
  function tick() {
    asked = 0;
    if (stale && width) draw();
    pen.clearRect(0, 0, width, height);
    if (drag?.tool === 'lasso') outline(drag.path);
    hover();
  }

  function prepare() {
    const scale = devicePixelRatio, w = Math.round(width * scale), h = Math.round(height * scale);
    const r = radius(code.length) * scale, pad = 2 * Math.ceil(r);
    for (const c of [points, ink]) Object.assign(c, { width: w, height: h }).getContext('2d').scale(scale, scale);
    const data = new ImageData(w + 2 * pad, h + 2 * pad);
    return { data, scale, pad, width: data.width, height: data.height, pixels: new Uint32Array(data.data.buffer), brush: disc(r, data.width) };
  }

  function draw() {
    if (image?.scale !== devicePixelRatio) image = prepare();
    const style = getComputedStyle(points), paper = rgb(style.backgroundColor), grey = mix(paper, rgb(style.color), 90), f = now();
    const full = groups().map(g => g.dim ? grey : rgb(g.colour));
    const look = { full, faint: full.map(c => mix(paper, c, 64)), dim: groups().map(g => g.dim ? 1 : 0) };
    const lasso = bytes(model.get('selected')), chosen = lasso.some(Boolean), bits = chosen ? lasso : bytes(model.get('lit')), some = bits.some(Boolean);
    stale = false;
    image.pixels.fill(paper);
    paint(image, xy, code, some ? bits : null, look, f);
    ctx.putImageData(image.data, -image.pad, -image.pad);
    Object.assign(ctx, { font: `600 12px ${style.fontFamily}`, textAlign: 'center', textBaseline: 'middle', lineJoin: 'round', lineWidth: 4 });
    Object.assign(ctx, { strokeStyle: style.backgroundColor, fillStyle: style.color });
    label(ctx, groups(), f, width, height);
    stage.dataset.frame = [f.ax, f.bx, f.ay, f.by].join(' ');  // where the data lie on the screen, for tests
    ink.setAttribute('aria-label', `Map of ${code.length} points in ${groups().length} groups${chosen ? ', some selected' : ''}. ${KEYS}`);
  }

  function outline(path) {
    const colour = getComputedStyle(ink).color;
    pen.beginPath();
    path.forEach(([x, y]) => pen.lineTo(x, y));
    pen.closePath();
    Object.assign(pen, { strokeStyle: colour, fillStyle: colour, lineWidth: 1.5, globalAlpha: 1 });
    pen.stroke();
    pen.globalAlpha = .12;
    pen.fill('evenodd');
  }

  function hover() {
    const text = mouse && !drag && groups()[code[nearest(xy, now(), ...mouse)]]?.label;
    tip.hidden = !text;
    if (!text) return;
    tip.textContent = text;
    tip.style.left = `${Math.max(0, Math.min(mouse[0] + 12, width - tip.offsetWidth))}px`;
    tip.style.top = `${mouse[1] + (mouse[1] > height - 40 ? -28 : 14)}px`;
  }

  const place = e => { const box = ink.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
  const move = to => { view = to; redraw(); };
  const whole = () => move({ k: 1, x: 0, y: 0 });
  const pan = (dx, dy) => move({ ...view, x: view.x + dx / (width - 2 * MARGIN), y: view.y - dy / (height - 2 * MARGIN) });
  const zoom = (by, x = width / 2, y = height / 2) => move(zoomed(view, by, x, y, width, height));
  const select = bits => { model.set('selected', new DataView(bits.buffer)); model.save_changes(); redraw(); };
  const step = by => model.send({ kind: 'step', by });

  function finish({ path, add }) {
    const f = now(), span = k => Math.max(...path.map(p => p[k])) - Math.min(...path.map(p => p[k]));
    if (path.length < 3 || Math.max(span(0), span(1)) < 5) {
      const index = nearest(xy, f, ...path[0]);
      return index < 0 || model.send({ kind: 'click', index });
    }
    const bits = new Uint8Array((code.length + 7) >> 3);
    if (add) bits.set(bytes(model.get('selected')).subarray(0, bits.length));
    inside(xy, path.map(([x, y]) => [(x - f.bx) / f.ax, (y - f.by) / f.ay]), bits);
    select(bits.some(Boolean) ? bits : new Uint8Array(0));
  }

  const keys = {
    ArrowLeft: () => pan(40, 0), ArrowRight: () => pan(-40, 0), ArrowUp: () => pan(0, 40), ArrowDown: () => pan(0, -40), 0: whole,
    '+': () => zoom(1.5), '=': () => zoom(1.5), '-': () => zoom(1 / 1.5), ']': () => step(1), '[': () => step(-1),
    Escape: () => { if (!drag) return select(new Uint8Array(0)); drag = null; later(); },
  };
  const on = {
    pointerdown(e) {
      if (e.button > 1) return;
      if (e.button) e.preventDefault();  // or the page begins to scroll by itself
      ink.focus({ preventScroll: true });
      ink.setPointerCapture(e.pointerId);
      drag = { tool: e.shiftKey || e.button ? 'pan' : 'lasso', add: e.altKey, path: [place(e)] };
    },
    pointermove(e) {
      mouse = place(e);
      later();
      if (!drag) return;
      const [x, y] = drag.path.at(-1), dx = mouse[0] - x, dy = mouse[1] - y;
      if (drag.tool === 'pan') { pan(dx, dy); drag.path = [mouse]; } else if (Math.hypot(dx, dy) >= APART) drag.path.push(mouse);
    },
    pointerup() { if (drag?.tool === 'lasso') finish(drag); drag = null; later(); },
    lostpointercapture() { drag = null; later(); },  // the browser took it away
    pointerleave() { mouse = null; later(); },
    dblclick: whole,
    wheel(e) {
      if (!e.ctrlKey && document.activeElement !== ink) return;  // the page scrolls on over a map that nobody uses
      e.preventDefault();
      zoom(Math.exp(-Math.max(-100, Math.min(100, e.deltaY)) / 400), ...place(e));
    },
    keydown(e) {
      if (e.ctrlKey || e.metaKey || !Object.hasOwn(keys, e.key)) return;
      e.preventDefault();
      e.stopPropagation();  // JupyterLab knows these keys too: 0 0 restarts the kernel
      keys[e.key]();
    },
  };

  const size = () => { stage.style.height = `${model.get('height') || 480}px`; };
  const resized = new ResizeObserver(() => { [width, height, image] = [stage.clientWidth, stage.clientHeight, null]; redraw(); });
  const themed = new MutationObserver(redraw);
  const watched = { 'change:xy': read, 'change:code': read, 'change:groups': redraw, 'change:selected': redraw, 'change:lit': redraw,
    'change:height': size };
  read();
  size();
  resized.observe(stage);
  themed.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light', 'data-jp-theme-name'] });
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw, { signal: off.signal });
  for (const [name, f] of Object.entries(on)) ink.addEventListener(name, f, { signal: off.signal, passive: false });
  for (const [name, f] of Object.entries(watched)) model.on(name, f);
  return () => {
    for (const [name, f] of Object.entries(watched)) model.off(name, f);
    for (const watcher of [resized, themed]) watcher.disconnect();
    cancelAnimationFrame(asked);
    off.abort();
    root.remove();
  };
}

export default { render };
