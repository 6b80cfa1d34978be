"Jobs: the same bytes wherever they run, errors that keep their text, workers that go with their parent."
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stages import again, copy_of, hashes
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


def test_two_workers_write_what_none_writes(run):
    specs = [job('tasks_of_a_test:draw', run, name=i) for i in range(4)]
    seen = []
    for workers in (0, 1, 2):
        run_jobs(specs, open_run(run, workers), 'drawing')
        seen.append(files(run))
        for name in seen[-1]: (run/name).unlink()
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 4


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('error, kind, text', [('user', UserError, 'picture 7 is odd; look at it'), ('other', ZeroDivisionError, 'job 7')])
def test_a_failing_job_raises_its_own_error_and_what_was_done_stays(run, workers, error, kind, text):
    specs = [job('tasks_of_a_test:draw', run, name=i) for i in range(3)] + [job('tasks_of_a_test:refuse', run, name=7, error=error)]
    with pytest.raises(kind) as e: run_jobs(specs, open_run(run, workers), 'drawing')
    assert str(e.value) == text and set(files(run)) == {'0', '1', '2'}


def test_students_and_features_do_not_depend_on_the_number_of_workers(micro_run, tmp_path):
    "The micro run was made in one process."
    run = open_run(copy_of(micro_run, tmp_path/'run'), workers=2)
    for folder in ('25_features', '37_distill'):
        for p in sorted((run/folder).rglob('*'), reverse=True): p.unlink() if p.is_file() else p.rmdir()
    assert again(run, 'distill') == ['features', 'distill']
    for stage in ('features', 'distill'): assert hashes(run, stage) == hashes(open_run(micro_run), stage)


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


def test_a_script_without_a_guard_may_use_workers(run, tmp_path):
    "Five lines in a file, as the documentation shows them: workers must not run the script again."
    script = tmp_path/'script.py'
    script.write_text(f'''from subtask_kit.artifacts import open_run
from subtask_kit.jobs import job, run_jobs
print('started', flush=True)
run = open_run({str(run.path)!r}, workers=2)
run_jobs([job('tasks_of_a_test:draw', run, name=i) for i in range(3)], run, 'drawing')''')
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.count('started') == 1, done.stderr[-300:]
