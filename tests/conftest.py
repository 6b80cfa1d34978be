"""Settings and data that every test shares."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

# One thread a process: results agree to the bit, and two cores are not fought over.
os.environ.setdefault('OMP_NUM_THREADS', '1')

KIT = str(Path(sys.executable).parent/'subtask-kit')


def kit(*words, check=True, **options):
    "Run the command line as a user does."
    done = subprocess.run([KIT, *map(str, words)], capture_output=True, text=True, **options)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope='session')
def micro(tmp_path_factory):
    "The built-in world at its smallest."
    out = tmp_path_factory.mktemp('micro')/'world'
    kit('synth', out, '--size', 'micro', '--px', 32)
    return out


@pytest.fixture(scope='session')
def micro_run(micro, tmp_path_factory):
    "A finished micro run that was never disturbed; tests only read it."
    run = tmp_path_factory.mktemp('runs')/'micro'
    kit('run', run, '--data', micro/'manifest.csv', '--unlabelled', micro/'unlabelled.csv', '--preset', 'micro', '--workers', 1)
    return run
