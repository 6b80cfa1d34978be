"""Execute notebooks in place, keep their outputs, clean them, and export the modules they own.

    python tools/refresh.py nbs/00_core.ipynb ...      (no names: every source notebook)
    python tools/refresh.py --from scratch.py ...      first carry py:percent files into nbs/ (outputs, ids and tags survive)
"""
import argparse
import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.export import nb_export

ROOT = Path(__file__).parent.parent


def carry(script: Path) -> Path:
    "Bring a py:percent `script` into the notebook of the same name under nbs/."
    nb = next((ROOT/'nbs').rglob(f'{script.stem}.ipynb'), ROOT/'nbs'/f'{script.stem}.ipynb')
    update = ['--update'] if nb.exists() else []
    subprocess.run([sys.executable, '-m', 'jupytext', '--quiet', '--to', 'ipynb', *update, '-o', nb, script], check=True)
    return nb


def lighten(nb):
    "Keep what a page without a kernel can show, once: the still instead of a widget, the smaller of two forms of a picture."
    for cell in nb.cells:
        for output in cell.get('outputs', []):
            data = output.get('data', {})
            data.pop('application/vnd.jupyter.widget-view+json', None)
            if {'image/png', 'image/jpeg'} <= data.keys(): data.pop(max('image/png', 'image/jpeg', key=lambda form: len(data[form])))


def refresh(path: Path, timeout: int):
    "Export `path`, run it from its own folder, write its outputs back and clean it."
    # Exported first: a notebook imports its package's own modules, itself never.
    if path.parent == ROOT/'nbs' and path.name != 'index.ipynb': nb_export(path, ROOT/'subtask_kit')
    nb = nbformat.read(path, as_version=4)
    NotebookClient(nb, timeout=timeout, kernel_name='python3', resources={'metadata': {'path': str(path.parent)}}).execute()
    lighten(nb)
    nb.metadata = {'kernelspec': {'display_name': 'python3', 'language': 'python', 'name': 'python3'}}
    nbformat.write(nb, path)
    nbdev_clean(str(path))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('paths', nargs='*', type=Path)
    p.add_argument('--from', dest='scripts', nargs='*', type=Path, default=[])
    p.add_argument('--timeout', type=int, default=600)
    args = p.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    os.environ['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}' # for cells that call the command line
    paths = args.paths + [carry(s) for s in args.scripts]
    for path in paths or sorted((ROOT/'nbs').glob('[0-9]*.ipynb')):
        print(path)
        refresh(path.resolve(), args.timeout)


if __name__ == '__main__': main()
