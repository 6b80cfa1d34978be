"Jobs: the same bytes wherever they run, errors that keep their text, workers that go with their parent."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from subtask_kit.artifacts import open_run
from subtask_kit.core import UserError
from subtask_kit.jobs import job, run_jobs

TASKS = '''
import os, time
from pathlib import Path
import torch
from subtask_kit.core import UserError

def draw(run, name):
    torch.manual_seed(name)
    x = torch.randn(301, 203)
    (run/str(name)).write_bytes((x @ x.T).sum(1).numpy().tobytes() + bytes([torch.get_num_threads()]))

def refuse(run, name, error):
    if error == 'user': raise UserError(f'picture {name} is odd', 'look at it')
    raise ZeroDivisionError(f'job {name}')

def nap(run, name):
    (run/f'pid_{name}').write_text(str(os.getpid()))
    time.sleep(120)
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A run, and tasks that workers can import."
    (tmp_path/'tasks_of_a_test.py').write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    return open_run(tmp_path/'run', create=True)


def files(run): return {p.name: p.read_bytes() for p in run.path.iterdir() if p.name.isdigit()}


def test_two_workers_write_what_none_writes_and_an_error_comes_back_as_it_was(run):
    "One pool for both, because starting workers is what takes time."
    specs = [job('tasks_of_a_test:draw', run, name=i) for i in range(4)]
    run_jobs(specs, open_run(run, 1), 'drawing')
    alone = files(run)
    for name in alone: (run/name).unlink()
    with pytest.raises(UserError) as e: run_jobs([*specs, job('tasks_of_a_test:refuse', run, name=7, error='user')], open_run(run, 2), 'drawing')
    assert str(e.value) == 'picture 7 is odd; look at it' and e.value.remedy == 'look at it'
    assert files(run) == alone and len(alone) == 4


def test_an_error_in_this_process(run):
    with pytest.raises(ZeroDivisionError, match='job 7'): run_jobs([job('tasks_of_a_test:draw', run, name=1), job('tasks_of_a_test:refuse', run, name=7, error='other')], run, 'drawing')
    assert set(files(run)) == {'1'}


def alive(pid):
    try: state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError: return False
    return state != 'Z'


@pytest.mark.skipif(not Path('/proc').exists(), reason='looks at processes through /proc')
def test_workers_of_a_killed_parent_go_away(run):
    code = f'''from subtask_kit.artifacts import open_run
from subtask_kit.jobs import job, run_jobs
run = open_run({str(run.path)!r}, 2)
run_jobs([job('tasks_of_a_test:nap', run, name=i) for i in range(3)], run, 'sleeping')'''
    parent = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.time() + 60
        while len(list(run.path.glob('pid_*'))) < 2 and time.time() < deadline: time.sleep(.2)
        time.sleep(.2)
        pids = [int(p.read_text()) for p in run.path.glob('pid_*')]
        assert len(pids) == 2 and all(map(alive, pids))
        parent.kill()
        parent.wait()
        deadline = time.time() + 5
        while any(map(alive, pids)) and time.time() < deadline: time.sleep(.1)
        assert not any(map(alive, pids))
    finally:
        try: os.killpg(parent.pid, signal.SIGKILL)
        except ProcessLookupError: pass


def test_one_job_as_a_program(run):
    spec = json.dumps(job('tasks_of_a_test:draw', run, name=5))
    subprocess.run([sys.executable, '-m', 'subtask_kit.jobs', spec], check=True)
    program = files(run)
    (run/'5').unlink()
    run_jobs([json.loads(spec)], run, 'drawing')
    assert program == files(run) and program['5'][-1] == 1
