"Drive a real JupyterLab in Debian's chromium: for the browser test and for the benchmark of the widgets."
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

CHROMIUM = shutil.which('chromium')
FLAGS = '--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync'.split()
TOKEN = 'test'


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def environment(home, theme='JupyterLab Light'):
    "Nothing of the user's own settings: fresh folders, no news, a theme, no check whether JupyterLab should be built anew (seconds of work)."
    folders = {name: home/name for name in ('JUPYTER_CONFIG_DIR', 'JUPYTER_DATA_DIR', 'JUPYTER_RUNTIME_DIR', 'JUPYTERLAB_SETTINGS_DIR', 'JUPYTERLAB_WORKSPACES_DIR', 'IPYTHONDIR')}
    settings = folders['JUPYTERLAB_SETTINGS_DIR']/'@jupyterlab/apputils-extension'
    settings.mkdir(parents=True, exist_ok=True)
    (settings/'notification.jupyterlab-settings').write_text('{"fetchNews": "false", "checkForUpdates": false}')
    (settings/'themes.jupyterlab-settings').write_text(f'{{"theme": "{theme}"}}')
    page = folders['JUPYTER_CONFIG_DIR']/'labconfig/page_config.json'
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text('{"buildCheck": false, "buildAvailable": false}')
    return os.environ | {k: str(v) for k, v in folders.items()} | dict(OMP_NUM_THREADS='1')


@contextmanager
def jupyterlab(run, home, theme='JupyterLab Light'):
    "`subtask-kit lab RUN` on a free port; yields the address of its notebook."
    port = free_port()
    options = ['--no-browser', '--ip=127.0.0.1', f'--port={port}', '--ServerApp.port_retries=0', f'--IdentityProvider.token={TOKEN}',
               '--LabApp.expose_app_in_browser=True', '--LabApp.extension_manager=readonly']
    with open(Path(home)/'lab.log', 'w') as log:
        server = subprocess.Popen([Path(sys.executable).parent/'subtask-kit', 'lab', run, *options], env=environment(Path(home), theme), stdout=log, stderr=log, start_new_session=True)
    try:
        for _ in range(300):
            try: urllib.request.urlopen(f'http://127.0.0.1:{port}/api/status?token={TOKEN}', timeout=1).close(); break
            except OSError:
                assert server.poll() is None, (Path(home)/'lab.log').read_text()[-2000:]
                time.sleep(.1)
        yield f'http://127.0.0.1:{port}/lab/tree/explore.ipynb?token={TOKEN}&reset'
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try: server.wait(20)
        except subprocess.TimeoutExpired: server.kill(); server.wait() # its kernels end by themselves


@contextmanager
def chromium(**page):
    "A fresh browser page."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        try: yield browser.new_page(**page)
        finally: browser.close()


def idle(page):
    "Wait until the notebook's kernel has nothing to do."
    page.wait_for_function("window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'", timeout=60_000)


def open_notebook(page, address):
    "Open the notebook and wait until its kernel is idle."
    page.goto(address)
    idle(page)


def restart(page):
    "Restart the notebook's kernel, as the menu does, and wait until it is back: a server that is stopped meanwhile never ends."
    page.evaluate("window.restarted = false; jupyterapp.commands.execute('notebook:restart-kernel').then(() => window.restarted = true); 0")
    page.locator('.jp-Dialog .jp-mod-accept').click()
    page.wait_for_function('window.restarted', timeout=60_000)
    idle(page)


def run_all(page, timeout=60):
    "Run all cells and wait until each has a new number and none is running."
    before = page.evaluate("Math.max(0, ...jupyterapp.shell.currentWidget.content.model.sharedModel.cells.map(c => c.execution_count ?? 0))")
    page.evaluate("jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("""before => { const cells = jupyterapp.shell.currentWidget.content.model.sharedModel.cells.filter(c => c.cell_type === 'code');
        return cells.every(c => c.execution_count > before) && jupyterapp.shell.currentWidget.sessionContext.session.kernel.status === 'idle' }""", arg=before, timeout=timeout*1000)


def painted(page, gallery, beyond=-1, timeout=20):
    "Wait until the gallery shows a later stamp than `beyond`; returns it."
    page.wait_for_function('([g, n]) => Number(g.dataset.painted ?? -1) > n', arg=[gallery.element_handle(), beyond], timeout=timeout*1000)
    return int(gallery.get_attribute('data-painted'))


def still(page, element, frames=10):
    "Wait until the element has kept its place for some frames: JupyterLab scrolls and lays out a while after a run."
    element.scroll_into_view_if_needed()
    element.evaluate("""(e, frames) => new Promise(done => { let before = '', n = 0;
        const look = () => { const now = JSON.stringify(e.getBoundingClientRect()); n = now === before ? n + 1 : 0; before = now; n < frames ? requestAnimationFrame(look) : done() }; look() })""", frames)


def lasso(page, ink, corners):
    "Draw a lasso on the map through corners given as shares of its width and height."
    still(page, ink)
    box = ink.bounding_box()
    places = [(box['x'] + x*box['width'], box['y'] + y*box['height']) for x, y in corners]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in [*places[1:], places[0]]: page.mouse.move(*place, steps=4)
    page.mouse.up()
