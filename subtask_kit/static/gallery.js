// A page of pictures to look at and to pick from. Python sets everything, then raises `stamp`: one redraw, all of it consistent.
const MARKS = { good: '✓', bad: '✗', open: '?' };

// ---- pure functions ----

// What is picked after a click or a key on `id`; `anchor` is where a range begins.
export function pick(picked, ids, id, { toggle = false, range = false, anchor = null } = {}) {
  if (range && ids.includes(anchor)) {
    const [a, b] = [ids.indexOf(anchor), ids.indexOf(id)].sort((p, q) => p - q);
    return ids.slice(a, b + 1);
  }
  if (toggle) return picked.includes(id) ? picked.filter(p => p !== id) : [...picked, id];
  return [id];
}

// Items cut where the group changes.
export function cut(items) {
  const strips = [];
  for (const item of items) {
    if (!strips.length || strips.at(-1).group !== item.group) strips.push({ group: item.group, items: [] });
    strips.at(-1).items.push(item);
  }
  return strips;
}

// Index of the box straight above or below the box `i`: the nearest row that way, in it the nearest middle.
export function vertical(boxes, i, down) {
  const middle = b => b.left + b.width / 2, here = boxes[i];
  const beyond = boxes.map((b, k) => k).filter(k => down ? boxes[k].top > here.top + 1 : boxes[k].top < here.top - 1);
  if (!beyond.length) return i;
  const row = beyond.map(k => boxes[k].top).reduce((a, b) => down ? Math.min(a, b) : Math.max(a, b));
  const off = k => Math.abs(middle(boxes[k]) - middle(here));
  return beyond.filter(k => Math.abs(boxes[k].top - row) < 1).reduce((a, b) => off(b) < off(a) ? b : a);
}

function make(tag, cls, parent, text = '') {
  const node = Object.assign(document.createElement(tag), { className: cls, textContent: text });
  parent.append(node);
  return node;
}

// ---- the view ----

function render({ model, el }) {
  const root = make('section', 'stk-gallery', el), head = make('h4', 'stk-title', root), body = make('div', 'stk-pictures', root);
  const nav = make('nav', 'stk-pages', root), back = make('button', '', nav, '‹ previous'), where = make('span', '', nav), next = make('button', '', nav, 'next ›');
  let cells = [], urls = new Map(), anchor = null, active = 0, drawn = 0;
  nav.setAttribute('aria-label', 'pages');
  where.setAttribute('aria-live', 'polite');

  const items = () => model.get('items') ?? [];
  const picked = () => model.get('picked') ?? [];
  const forget = () => { urls.forEach(u => URL.revokeObjectURL(u)); urls = new Map(); };

  function url({ at, size }) {
    const sheet = model.get('sheet'), key = `${at} ${size}`;
    if (sheet && !urls.has(key)) urls.set(key, URL.createObjectURL(new Blob([new Uint8Array(sheet.buffer, sheet.byteOffset + at, size)], { type: 'image/jpeg' })));
    return urls.get(key) ?? '';
  }

  function cell(item, strip) {
    const figure = make('figure', `stk-cell ${item.tone in MARKS ? `stk-${item.tone}` : ''}`, strip), img = make('img', '', figure);
    Object.assign(img, { alt: item.alt, title: item.alt, draggable: false, src: url(item) });
    if (item.tone in MARKS) make('span', 'stk-mark', figure, MARKS[item.tone]).title = item.tone;
    if (item.caption) make('span', 'stk-caption', figure, item.caption);
    if (model.get('pickable')) figure.setAttribute('role', 'option');
    return figure;
  }

  function draw() {
    const stamp = model.get('stamp') ?? 0, pages = model.get('pages') ?? 1, page = model.get('page') ?? 0, pickable = model.get('pickable');
    const held = body.contains(document.activeElement), title = model.get('title') ?? '';
    drawn = stamp;
    forget();
    cells = [];
    head.textContent = title;
    head.hidden = !title;
    nav.hidden = pages <= 1;
    where.textContent = `page ${page + 1} of ${pages}`;
    back.setAttribute('aria-disabled', page <= 0);
    next.setAttribute('aria-disabled', page >= pages - 1);
    root.style.setProperty('--stk-px', `${model.get('px') || 96}px`);
    root.classList.toggle('stk-rows', Boolean(model.get('rows')));
    body.replaceChildren();
    for (const name of ['role', 'aria-multiselectable', 'aria-label']) body.removeAttribute(name);
    if (pickable) for (const [k, v] of [['role', 'listbox'], ['aria-multiselectable', 'true'], ['aria-label', title || 'pictures']]) body.setAttribute(k, v);
    for (const { group, items: some } of cut(items())) {
      const block = make('div', 'stk-block', body);
      if (group) make('div', 'stk-group', block, group);
      if (pickable) block.setAttribute('role', 'group');
      if (group) block.setAttribute('aria-label', group);
      const strip = make('div', 'stk-strip', block);
      cells.push(...some.map(item => cell(item, strip)));
    }
    if (!cells.length) make('p', 'stk-empty', body, model.get('empty') ?? '');
    active = Math.min(active, Math.max(0, cells.length - 1));
    mark();
    if (held && pickable) cells[active]?.focus({ preventScroll: true });
    // "painted": all decoded, then a frame that shows them has begun and another has followed
    Promise.allSettled([...body.querySelectorAll('img')].map(i => i.decode())).then(() => requestAnimationFrame(() => requestAnimationFrame(() => {
      if (drawn === stamp) root.dataset.painted = stamp;
    })));
  }

  function mark() {
    const chosen = new Set(picked()), all = items();
    if (model.get('pickable')) cells.forEach((c, i) => {
      c.classList.toggle('stk-picked', chosen.has(all[i]?.id));
      c.setAttribute('aria-selected', chosen.has(all[i]?.id));
      c.tabIndex = i === active ? 0 : -1;
    });
  }

  function choose(i, how) {
    const ids = items().map(x => x.id), id = ids[i];
    model.set('picked', id === undefined ? [] : pick(picked(), ids, id, { ...how, anchor }));
    model.save_changes();
    if (!how.range) anchor = id ?? null;
    mark();
  }

  function turn(by) {
    const page = (model.get('page') ?? 0) + by;
    if (page < 0 || page >= (model.get('pages') ?? 1)) return;
    model.set('page', page);
    model.save_changes();
  }

  function go(i) {
    active = Math.max(0, Math.min(cells.length - 1, i));
    mark();
    cells[active]?.focus();
  }

  const open = i => items()[i] && model.send({ kind: 'open', id: items()[i].id });
  const index = e => cells.indexOf(e.target.closest('.stk-cell'));
  const up = down => go(vertical(cells.map(c => c.getBoundingClientRect()), active, down));
  const keys = {
    ArrowLeft: () => go(active - 1), ArrowRight: () => go(active + 1), ArrowUp: () => up(false), ArrowDown: () => up(true),
    Home: () => go(0), End: () => go(cells.length - 1), Enter: () => open(active), Escape: () => choose(-1, {}),
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
    keydown(e) {
      const paging = { PageUp: -1, PageDown: 1 }[e.key], act = index(e) >= 0 && model.get('pickable') && !e.ctrlKey && !e.metaKey && keys[e.key];
      if (!act && !(paging && model.get('pages') > 1)) return;
      e.preventDefault();
      e.stopPropagation();  // JupyterLab would move from cell to cell
      if (paging) turn(paging); else act(e);
    },
  };

  draw();
  model.on('change:stamp', draw);
  model.on('change:picked', mark);
  for (const [name, f] of Object.entries(on)) root.addEventListener(name, f);
  return () => {
    drawn = null;
    forget();
    model.off('change:stamp', draw);
    model.off('change:picked', mark);
    for (const [name, f] of Object.entries(on)) root.removeEventListener(name, f);
    root.remove();
  };
}

export default { render };
