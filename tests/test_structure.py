"""The house rules: generated files are what a fresh export gives, modules import only lower numbers, rooms open without what they do not need."""
import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT/'nbs').glob('[0-9]*.ipynb'))
NUMBER = {p.stem[3:]: int(p.stem[:2]) for p in SOURCES}
# Rooms that a serving image, or a laptop that only looks, opens without torch.
TORCH_FREE = [m for m, n in NUMBER.items() if n < 20 or n in (29, 32, 34, 35, *range(50, 60), 60, 61, 62, 71)]
NOTEBOOK_PACKAGES = 'jupyterlab ipykernel ipywidgets IPython anywidget plotly umap papermill nbdev fastcore execnb nbformat nbclient ot'.split()


@pytest.fixture(scope='module')
def fresh(tmp_path_factory):
    "A copy of the notebooks, exported, cleaned and turned into a README from scratch."
    folder = tmp_path_factory.mktemp('fresh')
    for name in ('settings.ini', 'setup.py', 'pyproject.toml'): shutil.copy(ROOT/name, folder)
    shutil.copytree(ROOT/'nbs', folder/'nbs', ignore=shutil.ignore_patterns('.ipynb_checkpoints', '*.tmp'))
    shutil.copytree(ROOT/'tools', folder/'tools')
    (folder/'subtask_kit').mkdir()
    env = {k: v for k, v in os.environ.items() if k != 'IN_TEST'} # nbdev exports nothing while it believes that a notebook is being tested
    for code in ('from nbdev.export import nb_export\nfrom nbdev.doclinks import nbdev_export\nnbdev_export()', 'from nbdev.clean import nbdev_clean\nnbdev_clean()'):
        subprocess.run([sys.executable, '-c', code], cwd=folder, check=True, env=env)
    subprocess.run([sys.executable, 'tools/readme.py'], cwd=folder, check=True, env=env)
    return folder


def test_generated_modules_are_up_to_date(fresh):
    ours = {p.name: p.read_text() for p in (ROOT/'subtask_kit').glob('*.py')}
    theirs = {p.name: p.read_text() for p in (fresh/'subtask_kit').glob('*.py')}
    assert ours.keys() == theirs.keys()
    stale = [name for name in ours if ours[name] != theirs[name]]
    assert not stale, f'run nbdev_export: {stale}'


def test_notebooks_are_clean(fresh):
    unclean = [p.name for p in (ROOT/'nbs').rglob('*.ipynb') if '.ipynb_checkpoints' not in p.parts and p.read_text() != (fresh/p.relative_to(ROOT)).read_text()]
    assert not unclean, f'run nbdev_clean: {unclean}'


def test_readme_is_up_to_date(fresh):
    assert (ROOT/'README.md').read_text() == (fresh/'README.md').read_text(), 'run python tools/readme.py'


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: p.stem)
def test_each_notebook_exports_one_module_of_its_name(path):
    cells = json.loads(path.read_text())['cells']
    exports = [m[1] for c in cells if c['cell_type'] == 'code' for m in re.finditer(r'^#\| *default_exp +(\S+)', ''.join(c['source']), re.M)]
    assert exports == [path.stem[3:]]


def _kit_imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            name = node.module or ''
            if node.level: yield from [name] if name else [a.name for a in node.names]
            elif name.startswith('subtask_kit.'): yield name.split('.')[1]
        elif isinstance(node, ast.Import): yield from (a.name.split('.')[1] for a in node.names if a.name.startswith('subtask_kit.'))


@pytest.mark.parametrize('name', NUMBER)
def test_modules_import_only_lower_numbers(name):
    tree = ast.parse((ROOT/'subtask_kit'/f'{name}.py').read_text())
    backward = [m for m in _kit_imports(tree) if NUMBER[m] >= NUMBER[name]]
    assert not backward


def _import_blocked(modules, blocked):
    code = f'''
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {blocked!r}: raise ModuleNotFoundError('blocked: ' + name, name=name)
sys.meta_path.insert(0, Block())
for m in {modules!r}: importlib.import_module('subtask_kit.' + m)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rooms_without_torch_open_without_torch():
    _import_blocked([m for m in TORCH_FREE if m in NUMBER], ['torch', 'torchvision', 'timm', 'accelerate'])


def test_everything_under_60_opens_without_notebook_packages():
    _import_blocked([m for m, n in NUMBER.items() if n < 60], NOTEBOOK_PACKAGES)


def test_the_command_line_opens_with_neither():
    _import_blocked(['pipeline', 'cli'], NOTEBOOK_PACKAGES + ['torch', 'torchvision', 'timm', 'accelerate'])


def test_notebooks_are_small():
    large = {p.name: p.stat().st_size for p in (ROOT/'nbs').rglob('*.ipynb') if p.stat().st_size > 500_000}
    assert not large


def test_no_notebook_keeps_an_error():
    for p in (ROOT/'nbs').rglob('*.ipynb'):
        for cell in json.loads(p.read_text())['cells']:
            assert not any(o['output_type'] == 'error' for o in cell.get('outputs', [])), p.name


def test_parameters_cell_matches_the_configurations():
    from subtask_kit.pipeline import parameter_cell
    cells = json.loads((ROOT/'nbs/pipeline/pipeline.ipynb').read_text())['cells']
    tagged = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    assert tagged == [parameter_cell()]


@pytest.mark.parametrize('path', SOURCES, ids=lambda p: p.stem)
def test_export_cells_are_short(path):
    cells = [c['source'] for c in json.loads(path.read_text())['cells'] if c['cell_type'] == 'code' and re.match(r'#\| *exporti?\b', ''.join(c['source']))]
    lengths = sorted(len(''.join(s).splitlines()) for s in cells)
    assert lengths[-1] <= 50
