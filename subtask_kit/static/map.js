// A map of points on a canvas: lasso, zoom, labels. One uint16 pair a point; what is selected travels as a bitset.
const SPAN = 65535;      // coordinates run from 0 to SPAN
const MARGIN = 14;       // css px left free around the whole map
const NEAR = 8;          // css px within which a click hits a point
const APART = 2;         // css px between two corners of a lasso
const MAX_ZOOM = 200;
const KEYS = 'Arrows move, plus and minus zoom, 0 shows the whole, brackets step through the clusters, Escape clears the selection.';
const HINT = 'drag: lasso · alt+drag: add · shift+drag: move · ctrl+wheel: zoom (once clicked, the wheel alone) · double click: whole map · Esc: clear';

// ---- pure functions ----

// A copy, because a message's bytes need not begin at an even address.
export function bytes(view) {
  return view ? new Uint8Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength)) : new Uint8Array(0);
}
export const words = view => { const u8 = bytes(view); return new Uint16Array(u8.buffer, 0, u8.length >> 1); };
export const has = (bits, i) => bits[i >> 3] >> (i & 7) & 1;

// screen x = ax * x + bx, the same for y, which grows upwards in the data and downwards on the screen
export function frame(view, width, height) {
  const w = Math.max(1, width - 2 * MARGIN), h = Math.max(1, height - 2 * MARGIN);
  return { ax: w * view.k / SPAN, bx: MARGIN + w * view.x, ay: -h * view.k / SPAN, by: height - MARGIN - h * view.y };
}

// The view after zooming by `by` with the screen point (px, py) kept where it is; never smaller than the whole.
export function zoomed(view, by, px, py, width, height) {
  const k = Math.min(MAX_ZOOM, Math.max(1, view.k * by)), r = k / view.k;
  const u = (px - MARGIN) / Math.max(1, width - 2 * MARGIN), v = (height - MARGIN - py) / Math.max(1, height - 2 * MARGIN);
  return k === 1 ? { k: 1, x: 0, y: 0 } : { k, x: u - (u - view.x) * r, y: v - (v - view.y) * r };
}

// Bitset of the points inside a closed polygon by the even-odd rule. Edges are sorted into bands of y first: a point
// meets the few edges of its own band only.
export function inside(xy, corners, bits = new Uint8Array((xy.length / 2 + 7) >> 3)) {
  const n = corners.length, bands = Array.from({ length: 256 }, () => []);
  const xs = corners.map(c => c[0]), ys = corners.map(c => c[1]);
  const x0 = Math.min(...xs), x1 = Math.max(...xs), y0 = Math.min(...ys), y1 = Math.max(...ys);
  const band = y => Math.min(255, (y - y0) / (y1 - y0) * 256 | 0);
  for (let i = 0, j = n - 1; i < n; j = i++) {
    if (ys[i] === ys[j]) continue;
    const last = band(Math.max(ys[i], ys[j]));
    for (let b = band(Math.min(ys[i], ys[j])); b <= last; b++) bands[b].push(xs[i], ys[i], xs[j], ys[j]);
  }
  for (let i = 0; i < xy.length / 2; i++) {
    const x = xy[2 * i], y = xy[2 * i + 1];
    if (x < x0 || x > x1 || y < y0 || y > y1) continue;
    const edges = bands[band(y)];
    let odd = false;
    for (let e = 0; e < edges.length; e += 4) {
      if (edges[e + 1] > y !== edges[e + 3] > y && x < (edges[e + 2] - edges[e]) * (y - edges[e + 1]) / (edges[e + 3] - edges[e + 1]) + edges[e]) odd = !odd;
    }
    if (odd) bits[i >> 3] |= 1 << (i & 7);
  }
  return bits;
}

// Index of the point nearest to a screen position, -1 when none is near. The last drawn of equals wins: it lies on top.
export function nearest(xy, f, px, py, reach = NEAR) {
  let best = reach * reach, found = -1;
  for (let i = 0; i < xy.length / 2; i++) {
    const dx = f.ax * xy[2 * i] + f.bx - px, dy = f.ay * xy[2 * i + 1] + f.by - py, d = dx * dx + dy * dy;
    if (d <= best) { best = d; found = i; }
  }
  return found;
}

export const radius = n => n < 3000 ? 4 : n < 50000 ? 2.5 : 1.5;

// Pixels of a disc as [offset in an image of that width, cover of 0..256, ...]: soft edges at the price of a few blends
export function disc(r, width) {
  const out = [], far = Math.ceil(r);
  for (let y = -far; y <= far; y++) for (let x = -far; x <= far; x++) {
    const cover = Math.round(256 * Math.min(1, Math.max(0, r + .5 - Math.hypot(x, y))));
    if (cover) out.push(y * width + x, cover);
  }
  return Int32Array.from(out);
}

// Colours are 0xaabbggrr, as the bytes r, g, b, a of an image read on a little-endian machine.
export const pack = (r, g, b) => (255 << 24 | b << 16 | g << 8 | r) >>> 0;
export function mix(under, over, cover) {
  const rb = (under & 0xff00ff) * (256 - cover) + (over & 0xff00ff) * cover, g = (under & 0xff00) * (256 - cover) + (over & 0xff00) * cover;
  return (0xff000000 | rb >>> 8 & 0xff00ff | g >>> 8 & 0xff00) >>> 0;
}

// Every point into an image with `pad` spare pixels on each side, which spare the test of every pixel against the border.
// `bits` null: nothing is selected, and dim groups lie below. Else what is selected lies above, and the rest is faint.
export function paint({ pixels, width, height, pad }, xy, code, bits, { full, faint, dim }, f, scale, brush) {
  for (let turn = 0; turn < 2; turn++) for (let i = 0; i < code.length; i++) {
    const g = code[i], above = bits ? has(bits, i) : 1 - dim[g];
    if (above !== turn) continue;
    const x = Math.round((f.ax * xy[2 * i] + f.bx) * scale) + pad, y = Math.round((f.ay * xy[2 * i + 1] + f.by) * scale) + pad;
    if (x < pad / 2 || y < pad / 2 || x >= width - pad / 2 || y >= height - pad / 2) continue;
    const at = y * width + x, colour = bits && !turn ? faint[g] : full[g];
    for (let d = 0; d < brush.length; d += 2) {
      const p = at + brush[d], cover = brush[d + 1];
      pixels[p] = cover === 256 ? colour : mix(pixels[p], colour, cover);
    }
  }
}

// Any css colour as a packed one: the browser itself reads it.
function reader() {
  const ctx = Object.assign(document.createElement('canvas'), { width: 1, height: 1 }).getContext('2d', { willReadFrequently: true });
  return css => { ctx.fillStyle = css; ctx.fillRect(0, 0, 1, 1); return pack(...ctx.getImageData(0, 0, 1, 1).data); };
}

// Groups' names at their places; one that would cover another goes a line up or down, or waits until there is room.
function label(ctx, groups, f, width, height, { ink, paper, font }) {
  const taken = [], free = r => taken.every(t => r[2] < t[0] || r[0] > t[2] || r[3] < t[1] || r[1] > t[3]);
  Object.assign(ctx, { font, textAlign: 'center', textBaseline: 'middle', lineJoin: 'round', lineWidth: 4, strokeStyle: paper, fillStyle: ink });
  for (const g of [...groups].sort((a, b) => a.dim - b.dim)) {
    if (!g.at || !g.label) continue;
    const half = ctx.measureText(g.label).width / 2 + 3, x = f.ax * g.at[0] + f.bx, y = f.ay * g.at[1] + f.by;
    if (x < 0 || x > width || y < 0 || y > height) continue;
    const cx = Math.min(Math.max(x, half), Math.max(half, width - half));
    const dy = [0, -15, 15].find(d => free([cx - half, y + d - 8, cx + half, y + d + 8]));
    if (dy === undefined) continue;
    taken.push([cx - half, y + dy - 8, cx + half, y + dy + 8]);
    ctx.globalAlpha = g.dim ? .6 : 1;
    ctx.strokeText(g.label, cx, y + dy);
    ctx.fillText(g.label, cx, y + dy);
  }
  ctx.globalAlpha = 1;
}

function make(tag, cls, parent, text = '') {
  const node = Object.assign(document.createElement(tag), { className: cls, textContent: text });
  parent.append(node);
  return node;
}

// ---- the view ----

function render({ model, el }) {
  const root = make('div', 'stk-map', el), stage = make('div', 'stk-stage', root);
  const points = make('canvas', 'stk-points', stage), ink = make('canvas', 'stk-ink', stage), tip = make('div', 'stk-tip', stage);
  make('div', 'stk-hint', root, HINT);
  ink.tabIndex = 0;
  ink.setAttribute('role', 'application');
  tip.hidden = true;
  const ctx = points.getContext('2d'), pen = ink.getContext('2d'), rgb = reader();
  let xy, code, view, image, brush, width = 0, height = 0, drag = null, mouse = null, stale = false, asked = 0;

  const groups = () => model.get('groups') ?? [];
  const now = () => frame(view, width, height);
  const later = () => { asked ||= requestAnimationFrame(tick); };
  const redraw = () => { stale = true; later(); };

  function read() {
    const before = xy?.length;
    xy = words(model.get('xy'));
    code = words(model.get('code'));
    if (code.length * 2 !== xy.length) code = code.slice(0, xy.length / 2);  // between two messages
    if (before !== xy.length) view = { k: 1, x: 0, y: 0 };
    redraw();
  }

  // All drawing happens here, once a frame at most: the points if they changed, the lasso's outline, the tooltip.
  function tick() {
    asked = 0;
    if (stale && width) { stale = false; draw(); }
    pen.clearRect(0, 0, width, height);
    if (drag?.path.length > 1 && drag.tool === 'lasso') outline(drag.path);
    hover();
  }

  function draw() {
    const scale = devicePixelRatio || 1, w = Math.round(width * scale), h = Math.round(height * scale), f = now();
    const style = getComputedStyle(points), back = rgb(style.backgroundColor), grey = mix(back, rgb(style.color), 90);
    if (points.width !== w || points.height !== h || !image) {
      for (const c of [points, ink]) Object.assign(c, { width: w, height: h });
      pen.scale(scale, scale);
      image = null;
    }
    const r = radius(code.length) * scale, pad = 2 * Math.ceil(r);
    if (image?.pad !== pad) {
      const data = new ImageData(w + 2 * pad, h + 2 * pad);
      image = { data, pad, width: data.width, height: data.height, pixels: new Uint32Array(data.data.buffer) };
      brush = disc(r, data.width);
    }
    const full = groups().map(g => g.dim ? grey : rgb(g.colour)), bits = bytes(model.get('selected'));
    const look = { full: Uint32Array.from(full), faint: Uint32Array.from(full, c => mix(back, c, 40)), dim: Uint8Array.from(groups(), g => g.dim ? 1 : 0) };
    const some = bits.some(b => b);
    image.pixels.fill(back);
    paint(image, xy, code, some ? bits : null, look, f, scale, brush);
    ctx.setTransform(1, 0, 0, 1, 0, 0);
    ctx.putImageData(image.data, -pad, -pad);
    ctx.scale(scale, scale);
    label(ctx, groups(), f, width, height, { ink: style.color, paper: style.backgroundColor, font: `600 12px ${style.fontFamily}` });
    stage.dataset.frame = [f.ax, f.bx, f.ay, f.by].join(' ');  // where data lie on the screen, for tests
    ink.setAttribute('aria-label', `Map of ${code.length} points in ${groups().length} groups${some ? ', some selected' : ''}. ${KEYS}`);
  }

  function outline(path) {
    pen.beginPath();
    path.forEach(([x, y]) => pen.lineTo(x, y));
    pen.closePath();
    Object.assign(pen, { strokeStyle: getComputedStyle(ink).borderColor, lineWidth: 1.5 });
    pen.stroke();
    pen.globalAlpha = .12;
    pen.fillStyle = pen.strokeStyle;
    pen.fill('evenodd');
    pen.globalAlpha = 1;
  }

  function hover() {
    const i = mouse && !drag ? nearest(xy, now(), ...mouse) : -1;
    tip.hidden = i < 0;
    if (i < 0) return;
    tip.textContent = groups()[code[i]]?.label ?? '';
    tip.style.left = `${Math.max(0, Math.min(mouse[0] + 12, width - tip.offsetWidth))}px`;
    tip.style.top = `${mouse[1] > height - 40 ? mouse[1] - 28 : mouse[1] + 14}px`;
  }

  function select(bits) {
    model.set('selected', new DataView(bits.buffer));
    model.save_changes();
    redraw();
  }

  function move(to) { view = to; redraw(); }
  const whole = () => move({ k: 1, x: 0, y: 0 });
  const pan = (dx, dy) => move({ ...view, x: view.x + dx / (width - 2 * MARGIN), y: view.y - dy / (height - 2 * MARGIN) });
  const zoom = (by, x = width / 2, y = height / 2) => move(zoomed(view, by, x, y, width, height));
  const place = e => { const box = ink.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };

  function finish({ path, add }) {
    const span = k => Math.max(...path.map(p => p[k])) - Math.min(...path.map(p => p[k]));
    if (path.length < 3 || Math.max(span(0), span(1)) < 5) {
      const index = nearest(xy, now(), ...path[0]);
      if (index >= 0) model.send({ kind: 'click', index });
      return;
    }
    const f = now(), corners = path.map(([x, y]) => [(x - f.bx) / f.ax, (y - f.by) / f.ay]);
    const old = bytes(model.get('selected')), start = new Uint8Array((code.length + 7) >> 3);
    if (add) start.set(old.subarray(0, start.length));
    const bits = inside(xy, corners, start);
    select(bits.some(b => b) ? bits : new Uint8Array(0));
  }

  const on = {
    pointerdown(e) {
      if (e.button > 1) return;
      if (e.button) e.preventDefault();  // or the page scrolls by itself
      ink.focus({ preventScroll: true });
      ink.setPointerCapture(e.pointerId);
      drag = { tool: e.shiftKey || e.button ? 'pan' : 'lasso', add: e.altKey, path: [place(e)] };
    },
    pointermove(e) {
      mouse = place(e);
      later();
      if (!drag) return;
      const [x, y] = drag.path.at(-1), [dx, dy] = [mouse[0] - x, mouse[1] - y];
      if (drag.tool === 'pan') { pan(dx, dy); drag.path = [mouse]; } else if (Math.hypot(dx, dy) >= APART) drag.path.push(mouse);
    },
    pointerup() {
      const done = drag;
      drag = null;
      if (done?.tool === 'lasso') finish(done);
      later();
    },
    lostpointercapture() { drag = null; later(); },  // the browser took it away
    pointerleave() { mouse = null; later(); },
    dblclick: whole,
    wheel(e) {
      if (!e.ctrlKey && document.activeElement !== ink) return;  // the page scrolls on over a map that nobody uses
      e.preventDefault();
      zoom(Math.exp(-Math.max(-100, Math.min(100, e.deltaY)) / 400), ...place(e));
    },
    keydown(e) {
      if (e.ctrlKey || e.metaKey || e.altKey || !keys[e.key]) return;
      e.preventDefault();
      e.stopPropagation();  // JupyterLab knows these keys too: 0 0 restarts the kernel
      keys[e.key]();
    },
  };
  const keys = {
    ArrowLeft: () => pan(40, 0), ArrowRight: () => pan(-40, 0), ArrowUp: () => pan(0, 40), ArrowDown: () => pan(0, -40),
    '+': () => zoom(1.5), '=': () => zoom(1.5), '-': () => zoom(1 / 1.5), 0: whole,
    Escape: () => select(new Uint8Array(0)), ']': () => model.send({ kind: 'step', by: 1 }), '[': () => model.send({ kind: 'step', by: -1 }),
  };

  const size = () => { stage.style.height = `${model.get('height') || 480}px`; };
  const resized = new ResizeObserver(() => { [width, height] = [stage.clientWidth, stage.clientHeight]; image = null; redraw(); });
  const themed = new MutationObserver(redraw), dark = matchMedia('(prefers-color-scheme: dark)');
  const watched = { 'change:xy': read, 'change:code': read, 'change:groups': redraw, 'change:selected': redraw, 'change:height': size };
  read();
  size();
  resized.observe(stage);
  themed.observe(document.body, { attributes: true, attributeFilter: ['data-jp-theme-light', 'data-jp-theme-name'] });
  dark.addEventListener('change', redraw);
  for (const [name, f] of Object.entries(watched)) model.on(name, f);
  for (const [name, f] of Object.entries(on)) ink.addEventListener(name, f, name === 'wheel' ? { passive: false } : undefined);
  return () => {
    cancelAnimationFrame(asked);
    resized.disconnect();
    themed.disconnect();
    dark.removeEventListener('change', redraw);
    for (const [name, f] of Object.entries(watched)) model.off(name, f);
    for (const [name, f] of Object.entries(on)) ink.removeEventListener(name, f);
    root.remove();
  };
}

export default { render };
