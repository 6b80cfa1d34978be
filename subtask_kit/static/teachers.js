// Every teacher with its interval, and the threshold T as a line that can be dragged. Python judges; this draws.
const LINE = 22, TOP = 30, BOTTOM = 40, LEFT = 118, RIGHT = 14;  // css px
const MARKS = {  // verdict -> shape around (0, 0)
  kept: 'M-5 0a5 5 0 1 0 10 0a5 5 0 1 0 -10 0', 'too close to call': 'M0 -6.5L6.5 0L0 6.5L-6.5 0Z', dropped: 'M-5 -5L5 5M-5 5L5 -5',
};

// Round numbers between `low` and 1 for the axis.
export function ticks(low) {
  const out = [];
  for (let t = Math.ceil(low * 5 - 1e-9); t <= 5; t++) out.push(t / 5);
  return out;
}
export const clip = (v, low) => Math.min(1, Math.max(low, Math.round(v * 100) / 100));

function draw(tag, parent, attributes = {}, text = '') {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
  node.textContent = text;
  parent.append(node);
  return node;
}

function render({ model, el }) {
  const svg = draw('svg', el, { class: 'stk-teachers' });
  let width = 0, rows = [], line = null, dragging = false;

  const low = () => model.get('low'), span = () => width - LEFT - RIGHT;
  const x = v => LEFT + (v - low()) / (1 - low()) * span();
  const value = e => low() + (e.clientX - svg.getBoundingClientRect().left - LEFT) / span() * (1 - low());

  // The parts that T does not move: axis, floor, intervals. Names are data: text, never markup.
  function redraw() {
    const table = model.get('rows') ?? [], height = TOP + LINE * table.length, held = svg.contains(document.activeElement) && document.activeElement.dataset.name;
    if (!width) return;
    svg.replaceChildren();
    svg.setAttribute('height', height + BOTTOM);
    for (const t of ticks(low())) {
      draw('path', svg, { class: 'stk-grid', d: `M${x(t)} ${TOP}V${height}` });
      draw('text', svg, { x: x(t), y: height + 16, 'text-anchor': 'middle' }, t.toFixed(1));
    }
    draw('text', svg, { x: x((1 + low()) / 2), y: height + 34, 'text-anchor': 'middle' }, model.get('axis'));
    draw('path', svg, { class: 'stk-floor', d: `M${x(model.get('floor'))} ${TOP - 8}V${height}` });
    draw('text', svg, { x: x(model.get('floor')) - 4, y: TOP - 12, 'text-anchor': 'end' }, 'floor');
    rows = table.map((r, i) => {
      const y = TOP + LINE * (i + .5), g = draw('g', svg, { class: 'stk-teacher', tabindex: 0, role: 'button', 'data-name': i });
      draw('rect', g, { class: 'stk-row', x: 0, y: y - LINE / 2, width, height: LINE });
      draw('text', g, { x: LEFT - 12, y: y + 4, 'text-anchor': 'end' }, r.label);
      draw('path', g, { class: 'stk-interval', d: `M${x(Math.max(low(), r.low))} ${y}H${x(Math.min(1, r.high))}` });
      const mark = draw('path', g, { transform: `translate(${x(Math.max(low(), r.at))} ${y})` });
      g.addEventListener('click', () => choose(i));
      g.addEventListener('keydown', e => { if (e.key === 'Enter' || e.key === ' ') { e.preventDefault(); choose(i); } });
      return { g, mark, tip: draw('title', g) };
    });
    line = draw('g', svg, { class: 'stk-T', tabindex: 0, role: 'slider', 'aria-label': 'T', 'aria-valuemax': 1, 'data-name': 'T' });
    draw('path', line, { class: 'stk-grip', d: `M0 ${TOP - 8}V${height}` });
    draw('path', line, { d: `M0 ${TOP - 8}V${height}` });
    draw('text', line, { x: 4, y: TOP - 12 });
    line.addEventListener('pointerdown', e => { dragging = true; line.setPointerCapture(e.pointerId); e.preventDefault(); line.focus(); });
    line.addEventListener('pointermove', e => { if (dragging) set(value(e)); });
    for (const end of ['pointerup', 'lostpointercapture']) line.addEventListener(end, () => { dragging = false; });
    line.addEventListener('keydown', key);
    if (held) svg.querySelector(`[data-name="${held}"]`)?.focus();
    mark();
  }

  // What a verdict looks like, which teacher is looked at, and where T is.
  function mark() {
    const verdicts = model.get('verdicts') ?? [], tips = model.get('tips') ?? [], T = model.get('T');
    rows.forEach(({ g, mark, tip }, i) => {
      const verdict = verdicts[i] in MARKS ? verdicts[i] : 'dropped';
      mark.setAttribute('d', MARKS[verdict]);
      g.setAttribute('class', `stk-teacher stk-is-${verdict.split(' ')[0]}${i === model.get('chosen') ? ' stk-chosen' : ''}`);
      g.setAttribute('aria-label', `${model.get('rows')[i].label}: ${verdict}`);
      tip.textContent = tips[i] ?? '';
    });
    line?.setAttribute('transform', `translate(${x(Math.max(low(), T))} 0)`);
    line?.setAttribute('aria-valuenow', T);
    line?.setAttribute('aria-valuemin', low());
    if (line) line.lastChild.textContent = `T = ${T.toFixed(2)}`;
    svg.dataset.stamp = model.get('stamp');
  }

  function set(T) {
    if (clip(T, low()) === model.get('T')) return;
    model.set('T', clip(T, low()));
    model.save_changes();
    mark();
  }
  function choose(i) {
    model.set('chosen', i);
    model.save_changes();
    mark();
  }
  function key(e) {
    const step = { ArrowLeft: -.01, ArrowDown: -.01, ArrowRight: .01, ArrowUp: .01, PageDown: -.1, PageUp: .1 }[e.key];
    if (!step) return;
    e.preventDefault();
    e.stopPropagation();
    set(model.get('T') + step);
  }

  const resized = new ResizeObserver(() => { if (el.clientWidth !== width) { width = el.clientWidth; redraw(); } });
  const watched = { 'change:rows': redraw, 'change:stamp': mark, 'change:chosen': mark, 'change:T': mark };
  resized.observe(el);
  for (const [name, f] of Object.entries(watched)) model.on(name, f);
  return () => {
    resized.disconnect();
    for (const [name, f] of Object.entries(watched)) model.off(name, f);
    svg.remove();
  };
}

export default { render };
