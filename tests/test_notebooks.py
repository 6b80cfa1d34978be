"""Every source notebook runs from the first cell to the last."""
import os
import sys
from pathlib import Path

import papermill
import pytest
from nbdev.test import test_nb as run_notebook

NBS = Path(__file__).parent.parent/'nbs'


@pytest.mark.parametrize('path', sorted(NBS.glob('[0-9]*.ipynb')), ids=lambda p: p.stem)
def test_notebook(path, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    ok, seconds = run_notebook(path, skip_flags=['slow', 'gpu'], basepath=NBS)
    assert ok


@pytest.mark.parametrize('path', sorted((NBS/'tutorials').glob('*.ipynb')), ids=lambda p: p.stem)
def test_tutorial(path, micro_run, tmp_path, monkeypatch):
    "A tutorial is meant for the demo run; the smallest run must do too."
    monkeypatch.setenv('PATH', f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}')
    papermill.execute_notebook(str(path), str(tmp_path/'out.ipynb'), dict(run_path=str(micro_run), mine=str(tmp_path/'mine')), cwd=str(path.parent), kernel_name='python3', progress_bar=False)
