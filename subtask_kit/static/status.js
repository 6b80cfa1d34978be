// What is saved, and whether a kernel is there to save it. Asks only while somebody touches the widget.
const EVERY = 3000, PATIENCE = 4000;  // ms
export const SILENT = 'No answer from the kernel: it is busy or gone. Nothing you do here is saved until this line goes.';
export const GONE = 'The kernel was restarted or is gone: this view is dead and saves nothing. Run its cell again.';

function render({ model, el }) {
  const root = document.createElement('div'), [text, notice, banner] = ['status', 'alert', 'alert'].map(role => {
    const line = root.appendChild(document.createElement('div'));
    line.setAttribute('role', role);
    return line;
  });
  root.className = 'stk-status';
  notice.className = 'stk-notice';
  banner.className = 'stk-banner';
  el.append(root);
  const off = new AbortController();
  let widget = null, asked = -Infinity, waiting = 0, n = 0, dead = false;

  function show() {
    text.textContent = model.get('text') ?? '';
    notice.textContent = model.get('notice') ?? '';
  }
  function warn(words) {
    banner.textContent = words;
    widget?.classList.toggle('stk-dead', Boolean(words));
  }
  function settle(lost) {
    clearTimeout(waiting);
    [waiting, dead] = [0, lost];
    warn(lost ? GONE : '');
  }
  const alive = () => settle(false), gone = () => settle(true);
  function look() {
    if (dead || waiting || performance.now() - asked < EVERY) return;
    asked = performance.now();
    waiting = setTimeout(() => warn(SILENT), PATIENCE);
    try { model.send({ kind: 'look', n: ++n }); } catch { gone(); }  // a comm of a kernel that is no more throws
  }
  const changed = () => { show(); alive(); };
  // JupyterLab's own keys (a and b add cells, d d deletes one) are not meant for a widget that has the focus.
  const keep = e => { if (!e.ctrlKey && !e.metaKey) e.stopPropagation(); };

  // The element is attached after this function has run; it has a size then.
  const attached = new ResizeObserver(() => {
    widget = el.closest('.stk-widget');
    if (!widget) return;
    attached.disconnect();
    for (const name of ['pointerenter', 'focusin']) widget.addEventListener(name, look, { signal: off.signal });
    widget.addEventListener('keydown', keep, { signal: off.signal });
    warn(banner.textContent);  // what was said before there was a widget to mark
    if (el.closest('.jupyter-widgets-disconnected')) gone();
  });
  const watched = { change: changed, 'msg:custom': alive, comm_live_update: gone };
  show();
  attached.observe(root);
  for (const [name, f] of Object.entries(watched)) model.on(name, f);
  return () => {
    clearTimeout(waiting);
    attached.disconnect();
    off.abort();
    for (const [name, f] of Object.entries(watched)) model.off(name, f);
    widget?.classList.remove('stk-dead');
    root.remove();
  };
}

export default { render };
