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

LIGHT = '''
import ctypes, os, signal, sys, time
from threadpoolctl import threadpool_info

def note(run, name):
    if name: time.sleep(.5)
    (run/str(name)).write_text(f"{'torch' in sys.modules} {max(p['num_threads'] for p in threadpool_info())}")

def die(run, name, how, key):
    time.sleep(.1)
    if how == 'status': os._exit(3)
    if how == 'fault': ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)

class Odd(Exception):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')

def odd(run, name): raise Odd(1, 2)
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A run, and tasks that workers can import."
    (tmp_path/'tasks_of_a_test.py').write_text(TASKS)
    (tmp_path/'light_tasks.py').write_text(LIGHT)
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


@pytest.mark.parametrize('how, said', [('kill', 'was ended by SIGKILL'), ('fault', 'was ended by SIGSEGV'), ('status', 'ended with status 3')])
def test_a_worker_that_dies_is_told_in_one_line(run, how, said):
    "What had ended stays, what another worker had under way is finished, what nobody had begun is left."
    specs = [job('light_tasks:note', run, name=1), job('light_tasks:die', run, name=7, how=how, key='k'*64), *(job('light_tasks:note', run, name=i) for i in (2, 3))]
    with pytest.raises(UserError) as e: run_jobs(specs, open_run(run, 2), 'working')
    assert str(e.value).startswith(f"the worker process of the job 'die name 7 how {how}' {said}; the same command goes on") and '\n' not in str(e.value)
    assert '1' in files(run) and '3' not in files(run)


def test_a_job_has_one_thread_and_no_torch_it_did_not_ask_for(run):
    run_jobs([job('light_tasks:note', run, name=i) for i in (0, 1)], open_run(run, 2), 'working')
    assert set(files(run).values()) == {b'False 1'}


def test_an_error_that_cannot_travel(run):
    with pytest.raises(RuntimeError, match='Odd: 1 and 2') as e: run_jobs([job('light_tasks:odd', run, name=i) for i in (0, 1)], open_run(run, 2), 'working')
    assert e.value.__cause__ is None and 'light_tasks.py' in str(e.value)  # where it happened is said


def alive(pid):
    try: state = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0]
    except FileNotFoundError: return False
    return state != 'Z'


def napping(run, **options):
    "A process with two workers, both asleep at their jobs; its workers' ids."
    code = f'''from subtask_kit.artifacts import open_run
from subtask_kit.jobs import job, run_jobs
run = open_run({str(run.path)!r}, 2)
run_jobs([job('tasks_of_a_test:nap', run, name=i) for i in range(3)], run, 'sleeping')'''
    parent = subprocess.Popen([sys.executable, '-c', code], start_new_session=True, **dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) | options)
    deadline = time.time() + 60
    while len(list(run.path.glob('pid_*'))) < 2 and time.time() < deadline: time.sleep(.2)
    time.sleep(.2)
    return parent, [int(p.read_text()) for p in run.path.glob('pid_*')]


@pytest.mark.skipif(not Path('/proc').exists(), reason='looks at processes through /proc')
@pytest.mark.parametrize('ctrl_c', [False, True])
def test_workers_go_with_their_parent(run, ctrl_c):
    parent, pids = napping(run, stderr=subprocess.PIPE, text=True)
    try:
        assert len(pids) == 2 and all(map(alive, pids))
        (os.killpg if ctrl_c else os.kill)(parent.pid, signal.SIGINT if ctrl_c else signal.SIGKILL)
        said = parent.communicate(timeout=30)[1]
        assert said.count('Traceback') == ctrl_c and ('KeyboardInterrupt' in said) == ctrl_c  # the workers say nothing of it
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
