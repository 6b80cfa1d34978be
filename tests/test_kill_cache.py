"A cache of pictures whose making is killed with -9, the parent or a worker, ends with the same bytes and does nothing twice but what was under way."
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

PICTURES, CHUNK = 240, 8

# Spawned workers load the program that started them too, so that they keep the same log of what is decoded.
PROGRAM = f'''
import os, sys, time
from pathlib import Path
from subtask_kit import images as kit
from subtask_kit.artifacts import open_run
from subtask_kit.core import hash_file

home, load = Path(__file__).parent, kit.load_image
kit.CHUNK, kit.PARALLEL_FROM = {CHUNK}, 0

def told(file, *args):
    with open(home/'log', 'a') as f: f.write(f'{{os.getpid()}}\\n')
    time.sleep(.004)
    return load(file, *args)

kit.load_image = told
if __name__ == '__main__':
    files = sorted(home.glob('*.png'))
    run = open_run(home/sys.argv[1], int(sys.argv[2]), create=True)
    kit.build_cache(files, list(map(hash_file, files)), run, run/'cache', 16)
'''


@pytest.fixture(scope='module')
def home(tmp_path_factory):
    "Tiny pictures, a program that caches them, and the cache that an undisturbed run makes."
    home, rng = tmp_path_factory.mktemp('home'), np.random.default_rng(0)
    for i in range(PICTURES): Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype='uint8')).save(home/f'{i:03d}.png')
    for i in (7, 50): (home/f'{i:03d}.png').write_text(f'junk {i}')
    (home/'program.py').write_text(PROGRAM)
    start(home, 'whole', 0).communicate()
    assert len(log(home)) == PICTURES and cached(home, 'whole')
    return home


def start(home, name, workers):
    return subprocess.Popen([sys.executable, home/'program.py', name, str(workers)], stderr=subprocess.PIPE, text=True, start_new_session=True)

def log(home): return (home/'log').read_text().split() if (home/'log').exists() else []
def cached(home, name): return [(home/name/'cache'/f).read_bytes() for f in ('images.npy', 'images.parquet')]

def alive(pid):
    try: os.kill(int(pid), 0)
    except ProcessLookupError: return False
    return True

def decode_some(home, process, n):
    "Wait until `n` more pictures have been decoded, or all is done."
    begun = len(log(home))
    while len(log(home)) < begun+n and process.poll() is None: time.sleep(.01)

def wait_until_gone(home):
    "Workers outlive a killed parent by half a second; in the pipeline the run's lock makes the next command wait for them."
    deadline = time.time()+10
    while any(map(alive, set(log(home)))) and time.time() < deadline: time.sleep(.05)


@pytest.mark.parametrize('workers', [0, 2])
def test_killed_again_and_again(home, workers):
    name, kills, moments = f'killed_{workers}', 4, random.Random(os.urandom(8))
    (home/'log').unlink(missing_ok=True)
    for i in range(kills):
        process = start(home, name, workers)
        decode_some(home, process, moments.randrange(1, 60))
        (os.killpg if i % 2 else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
        wait_until_gone(home)
    seen = len(log(home))
    process = start(home, name, workers)
    assert (process.communicate()[1], process.returncode) == ('', 0) and seen < PICTURES
    assert cached(home, name) == cached(home, 'whole')
    assert PICTURES <= len(log(home)) <= PICTURES + kills*CHUNK*max(workers, 1), 'more was decoded twice than what was under way'
    assert sorted(p.name for p in (home/name).rglob('*') if p.is_file() and p.suffix != '.lock') == ['images.npy', 'images.parquet']


def test_a_killed_worker(home):
    (home/'log').unlink(missing_ok=True)
    process = start(home, 'worker', 2)
    decode_some(home, process, 70)
    os.kill(int(log(home)[-1]), signal.SIGKILL)
    assert process.communicate(timeout=300)[1] == '' and process.returncode == 0, 'another worker takes its chunk'
    assert cached(home, 'worker') == cached(home, 'whole') and PICTURES <= len(log(home)) <= PICTURES + CHUNK
    assert not (home/'worker/jobs').exists()



DIE = dict(array="kit.np.memmap.flush = lambda array: os.kill(os.getpid(), 9)", table="kit.write_json = lambda *a: os.kill(os.getpid(), 9)",
           move="replace, os.replace = os.replace, lambda a, b: os.kill(os.getpid(), 9) if str(b).endswith('cache/images.parquet') else replace(a, b)")


@pytest.mark.parametrize('moment', DIE)
def test_killed_while_it_is_put_together(home, moment):
    "After the last picture: in the midst of the new array, before the mark that it and its table are whole, and between their moves."
    (home/'log').unlink(missing_ok=True)
    (home/'dying.py').write_text(PROGRAM.replace('if __name__', f'{DIE[moment]}\nif __name__'))
    assert subprocess.run([sys.executable, home/'dying.py', moment, '0']).returncode == -signal.SIGKILL
    assert len(log(home)) == PICTURES and not (home/moment/'cache/images.parquet').exists() and (home/moment/'cache/images.npy').exists() == (moment == 'move')
    assert start(home, moment, 0).wait() == 0
    assert cached(home, moment) == cached(home, 'whole') and len(log(home)) == PICTURES
