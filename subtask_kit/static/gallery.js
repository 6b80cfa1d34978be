// A page of pictures to look at and to pick from. Python sets everything and raises `stamp` last: one redraw, all of it consistent.
const MARKS = { good: '✓', bad: '✗', open: '?' };

// What is picked after a click or a key on `id`; a range begins at `anchor`.
export function pick(picked, ids, id, { toggle, range, anchor }) {
  if (range && ids.includes(anchor)) {
    const [a, b] = [ids.indexOf(anchor), ids.indexOf(id)].sort((p, q) => p - q);
    return ids.slice(a, b + 1);
  }
  if (toggle) return picked.includes(id) ? picked.filter(p => p !== id) : [...picked, id];
  return [id];
}

// Items cut where the group changes.
export function cut(items) {
  const blocks = [];
  for (const item of items) {
    if (blocks.at(-1)?.group !== item.group) blocks.push({ group: item.group, items: [] });
    blocks.at(-1).items.push(item);
  }
  return blocks;
}

// Index of the box straight above or below box `i`: in the nearest row that way the one with the nearest middle.
export function vertical(boxes, i, down) {
  const beyond = boxes.map((b, k) => k).filter(k => down ? boxes[k].top > boxes[i].top + 1 : boxes[k].top < boxes[i].top - 1);
  const rows = beyond.map(k => boxes[k].top), row = down ? Math.min(...rows) : Math.max(...rows);
  const off = k => Math.abs(boxes[k].left - boxes[i].left);
  return beyond.filter(k => Math.abs(boxes[k].top - row) < 1).reduce((a, b) => off(b) < off(a) ? b : a, beyond[0] ?? i);
}

// A data: URL: 48 of them are painted in half the time of 48 blob: URLs, and none is left to revoke.
export function url(sheet, { at, size }) {
  const part = new Uint8Array(sheet.buffer, sheet.byteOffset + at, size);
  let text = '';
  for (let i = 0; i < size; i += 4096) text += String.fromCharCode(...part.subarray(i, i + 4096));
  return `data:image/jpeg;base64,${btoa(text)}`;
}

function make(tag, cls, parent, text = '') {
  const node = Object.assign(document.createElement(tag), { className: cls, textContent: text });
  return parent.appendChild(node);
}

function cell({ tone, alt, caption }, src, role, strip) {
  const known = Object.hasOwn(MARKS, tone), figure = make('figure', known ? `stk-cell stk-${tone}` : 'stk-cell', strip);
  Object.assign(make('img', '', figure), { alt, title: alt, src, draggable: false });
  if (known) make('span', 'stk-mark', figure, MARKS[tone]).title = tone;
  if (caption) make('span', 'stk-caption', figure, caption);
  if (role) figure.setAttribute('role', role);
  return figure;
}

function render({ model, el }) {
  const root = make('section', 'stk-gallery', el), head = make('div', 'stk-title', root), body = make('div', 'stk-pictures', root);
  const nav = make('nav', 'stk-pages', root), back = make('button', '', nav, '‹ previous'), where = make('span', '', nav);
  const next = make('button', '', nav, 'next ›'), off = new AbortController();
  let cells = [], ids = [], anchor = null, active = 0, drawn = null;
  nav.setAttribute('aria-label', 'pages');
  where.setAttribute('aria-live', 'polite');

  function draw() {
    const { items, title, page, pages, px, rows, pickable, stamp, sheet, empty } = new Proxy({}, { get: (_, name) => model.get(name) });
    const held = body.contains(document.activeElement), frame = document.createDocumentFragment();
    drawn = stamp;
    head.textContent = title;
    nav.hidden = !(pages > 1);
    where.textContent = `page ${page + 1} of ${pages}`;
    back.setAttribute('aria-disabled', page <= 0);
    next.setAttribute('aria-disabled', page >= pages - 1);
    root.style.setProperty('--stk-px', `${px || 96}px`);
    root.classList.toggle('stk-rows', Boolean(rows));
    const roles = pickable ? { role: 'listbox', 'aria-multiselectable': 'true', 'aria-label': title || 'pictures' } : {};
    for (const name of ['role', 'aria-multiselectable', 'aria-label']) body.removeAttribute(name);
    for (const name in roles) body.setAttribute(name, roles[name]);
    ids = items.map(x => x.id);
    cells = [];
    for (const { group, items: some } of cut(items)) {
      const block = make('div', 'stk-block', frame);
      if (group) make('div', 'stk-group', block, group);
      if (pickable) block.setAttribute('role', 'group');
      if (group) block.setAttribute('aria-label', group);
      const strip = make('div', 'stk-strip', block);
      for (const item of some) cells.push(cell(item, url(sheet, item), pickable && 'option', strip));
    }
    if (!cells.length) make('p', 'stk-empty', frame, empty);
    body.replaceChildren(frame);
    active = Math.max(0, Math.min(active, cells.length - 1));
    mark();
    if (held && pickable) cells[active]?.focus({ preventScroll: true });
    // painted: all are decoded, then a frame that shows them has begun and another has followed
    const painted = () => { if (drawn === stamp) root.dataset.painted = stamp; };
    const pictures = [...body.querySelectorAll('img')].map(i => i.decode());
    Promise.allSettled(pictures).then(() => requestAnimationFrame(() => requestAnimationFrame(painted)));
  }

  function mark() {
    const chosen = new Set(model.get('picked'));
    if (model.get('pickable')) cells.forEach((c, i) => {
      c.classList.toggle('stk-picked', chosen.has(ids[i]));
      c.setAttribute('aria-selected', chosen.has(ids[i]));
      c.tabIndex = i === active ? 0 : -1;
    });
  }

  function put(name, value) {
    model.set(name, value);
    model.save_changes();
    mark();
  }
  function choose(i, how) {
    put('picked', pick(model.get('picked') ?? [], ids, ids[i], { ...how, anchor }));
    if (!how.range) anchor = ids[i];
  }
  function turn(by) {
    const page = model.get('page') + by;
    if (page >= 0 && page < model.get('pages')) put('page', page);
  }
  const go = i => cells[Math.max(0, Math.min(cells.length - 1, i))]?.focus();
  const open = i => model.send({ kind: 'open', id: ids[i] });
  const leap = down => go(vertical(cells.map(c => c.getBoundingClientRect()), active, down));
  const index = e => cells.indexOf(e.target.closest('.stk-cell'));
  const keys = {
    ArrowLeft: () => go(active - 1), ArrowRight: () => go(active + 1), ArrowUp: () => leap(false), ArrowDown: () => leap(true),
    Home: () => go(0), End: () => go(cells.length - 1), Enter: () => open(active), Escape: () => put('picked', []),
    ' ': e => choose(active, e.shiftKey ? { range: true } : { toggle: true }),
  };
  const on = {
    click(e) {
      const i = index(e);
      if (e.target === back) turn(-1);
      if (e.target === next) turn(1);
      if (i < 0 || !model.get('pickable')) return;
      go(i);
      choose(i, { toggle: e.ctrlKey || e.metaKey, range: e.shiftKey });
    },
    dblclick(e) { if (index(e) >= 0) open(index(e)); },
    focusin(e) { if (index(e) >= 0) { active = index(e); mark(); } },
    keydown(e) {
      const by = { PageUp: -1, PageDown: 1 }[e.key], act = index(e) >= 0 && !e.ctrlKey && !e.metaKey && keys[e.key];
      if (!act && !(by && model.get('pages') > 1)) return;
      e.preventDefault();
      e.stopPropagation();  // JupyterLab would move from cell to cell
      if (act) act(e); else turn(by);
    },
  };

  draw();
  model.on('change:stamp', draw);
  model.on('change:picked', mark);
  for (const [name, f] of Object.entries(on)) root.addEventListener(name, f, { signal: off.signal });
  return () => {
    drawn = null;
    model.off('change:stamp', draw);
    model.off('change:picked', mark);
    off.abort();
    root.remove();
  };
}

export default { render };
