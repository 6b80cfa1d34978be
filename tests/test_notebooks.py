"""Every source notebook runs from the first cell to the last."""
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_notebook

NBS = Path(__file__).parent.parent/'nbs'


@pytest.mark.parametrize('path', sorted(NBS.glob('[0-9]*.ipynb')), ids=lambda p: p.stem)
def test_notebook(path, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    ok, seconds = run_notebook(path, skip_flags=['slow', 'gpu'], basepath=NBS)
    assert ok
