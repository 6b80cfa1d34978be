"Jobs: the same bytes wherever they run, errors that keep their text, second and third attempts, workers that go with their parent, units that no two attempts spoil."
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from subtask_kit import artifacts, jobs
from subtask_kit.artifacts import keep_units, open_run, read_json, stage, unit, write_json
from subtask_kit.core import UserError
from subtask_kit.jobs import gpu_of, job, job_folder, run_jobs, visible_gpus

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
'''

LIGHT = '''
import ctypes, os, signal, sys, time
from threadpoolctl import threadpool_info
from subtask_kit.artifacts import unit
from subtask_kit.core import UserError

def note(run, name):
    if name: time.sleep(.5)
    (run/str(name)).write_text(f"{'torch' in sys.modules} {max(p['num_threads'] for p in threadpool_info())}")

def nap(run, name):
    (run/f'pid_{name}').write_text(str(os.getpid()))
    time.sleep(120)

def tell(run, name):
    with open(run/f'tries_{name}', 'a') as f: f.write('x')
    return len((run/f'tries_{name}').read_text())

def die(run, name, how, key):
    tell(run, name)
    if how == 'status': os._exit(3)
    if how == 'fault': ctypes.string_at(0)
    os.kill(os.getpid(), signal.SIGKILL)

class Odd(Exception):
    def __init__(self, a, b): super().__init__(f'{a} and {b}')

def odd(run, name): raise Odd(1, 2)

def moody(run, name, good=3):
    if tell(run, name) < good: raise OSError('the disk does not answer')
    note(run, name)

def sour(run, name):
    tell(run, name)
    raise UserError(f'picture {name} is odd', 'look at it')

def gpu(run, name):
    time.sleep(.3)
    (run/str(name)).write_text(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')} {'torch' in sys.modules}")

def build(run, name, seconds=0., key='k'):
    with unit(run/'units'/str(name), key) as work:
        if work is None: return
        if (run/f'broken_{name}').exists(): raise OSError('the disk does not answer')
        tell(run, name)
        (work/'half.txt').write_text('half')
        time.sleep(seconds)
        (work/'whole.txt').write_text(f'unit {name}')
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
def test_a_worker_that_dies_three_times_is_told_in_one_line(run, how, said):
    spec = job('light_tasks:die', run, name=7, how=how, key='k'*64)
    with pytest.raises(UserError) as e: run_jobs([job('light_tasks:note', run, name=1), spec], open_run(run, 2), 'working')
    assert str(e.value).startswith(f"the worker process of the job 'die name 7 how {how}' {said}; the same command goes on") and '\n' not in str(e.value)
    assert '1' in files(run) and (run/'tries_7').read_text() == 'xxx' and read_json(job_folder(spec)/'error.json')['attempt'] == 3


def test_what_nobody_had_begun_is_left_and_what_is_under_way_ends(run):
    specs = [job('light_tasks:note', run, name=1), job('light_tasks:sour', run, name=7), *(job('light_tasks:note', run, name=i) for i in (2, 3))]
    with pytest.raises(UserError, match='picture 7 is odd; look at it'): run_jobs(specs, open_run(run, 2), 'working')
    assert '3' not in files(run) and not [p for p in (run/'units').glob('*')]


@pytest.mark.parametrize('workers', [0, 2])
def test_what_fails_twice_and_works_the_third_time_is_done_and_forgotten(run, workers):
    assert run_jobs([job('light_tasks:moody', run, name=i) for i in (0, 1)], open_run(run, workers), 'working') == []
    assert set(files(run)) == {'0', '1'} and (run/'tries_0').read_text() == 'xxx' and not (run/'jobs').exists()


@pytest.mark.parametrize('workers', [0, 2])
def test_the_others_go_on_where_they_are_told_to(run, workers):
    "A mistake of the user is not tried again; what raised otherwise is, three times in all; each failure says what it was."
    specs = [job('light_tasks:sour', run, name=4), job('light_tasks:moody', run, name=5, good=9), *(job('light_tasks:note', run, name=i) for i in (0, 1, 2))]
    failed = run_jobs(specs, open_run(run, workers), 'working', keep_going=True)
    assert failed == [dict(index=0, job='sour name 4', error='picture 4 is odd; look at it', attempts=1),
                      dict(index=1, job='moody name 5 good 9', error='OSError: the disk does not answer', attempts=3)]
    assert set(files(run)) == {'0', '1', '2'} and [(run/f'tries_{i}').read_text() for i in (4, 5)] == ['x', 'xxx']
    record = read_json(job_folder(specs[1])/'error.json')
    assert record['attempt'] == 3 and 'light_tasks.py' in record['traceback'] and record['when'][:2] == '20' and read_json(job_folder(specs[1])/'spec.json') == specs[1]
    (run/'tries_5').write_text('x'*9)  # what was wrong is mended
    assert [f['index'] for f in run_jobs(specs[:2], open_run(run, workers), 'working', keep_going=True)] == [0]
    assert not job_folder(specs[1]).exists() and job_folder(specs[0]).exists()
    run_jobs([job('light_tasks:sour', run, name=4)][:0] + [job('light_tasks:note', run, name=0)], run, 'working')
    assert job_folder(specs[0]).exists(), 'another task\'s failures are not its business'
    with pytest.raises(UserError): run_jobs([job('light_tasks:sour', run, name=44)], run, 'working')
    assert not job_folder(specs[0]).exists(), 'a job that is no longer asked for leaves no record'


def test_workers_spread_evenly_over_the_gpus(run, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '5, 7')
    assert visible_gpus() == ['5', '7'] and [gpu_of(i, visible_gpus()) for i in (0, 3)] == [dict(CUDA_VISIBLE_DEVICES='5'), dict(CUDA_VISIBLE_DEVICES='7')]
    run_jobs([job('light_tasks:gpu', run, name=i) for i in range(6)], open_run(run, 4), 'working')
    seen = {tuple(f.decode().split()) for f in files(run).values()}
    assert {g for _, g, _ in seen} <= {'5', '7'} and {t for *_, t in seen} == {'False'} and len({p for p, *_ in seen}) == len({(p, g) for p, g, _ in seen}) > 1
    for none in ('', '-1'):
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', none)
        assert visible_gpus() == [] and gpu_of(3, []) == {}
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    monkeypatch.setattr(jobs.shutil, 'which', lambda name: None)
    assert visible_gpus() == []


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
run_jobs([job('light_tasks:nap', run, name=i) for i in range(3)], run, 'sleeping')'''
    parent = subprocess.Popen([sys.executable, '-c', code], start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler), # where the tests run in the background it is ignored
                              **dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) | options)
    deadline = time.time() + 180
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
        deadline = time.time() + 30
        while any(map(alive, pids)) and time.time() < deadline: time.sleep(.1)
        assert not any(map(alive, pids))
    finally:
        try: os.killpg(parent.pid, signal.SIGKILL)
        except ProcessLookupError: pass


def program(spec): return subprocess.run([sys.executable, '-m', 'subtask_kit.jobs', jobs._spec_file(spec)], capture_output=True, text=True)


def test_one_job_as_a_program(run):
    spec = job('tasks_of_a_test:draw', run, name=5)
    assert program(spec).returncode == 0
    alone = files(run)
    (run/'5').unlink()
    run_jobs([spec], run, 'drawing')
    assert alone == files(run) and alone['5'][-1] == 1


def test_a_program_that_fails_leaves_its_error_beside_the_spec(run):
    spec = job('light_tasks:sour', run, name=5)
    done = program(spec)
    record = read_json(job_folder(spec)/'error.json')
    assert done.returncode == 1 and 'picture 5 is odd' in done.stderr and (record['cause'], record['remedy'], record['again']) == ('picture 5 is odd', 'look at it', False)
    spec = job('light_tasks:moody', run, name=6, good=2)
    assert [program(spec).returncode for _ in range(2)] == [1, 0] and not (job_folder(spec)/'error.json').exists()
    gone = subprocess.run([sys.executable, '-m', 'subtask_kit.jobs', run/'nowhere/spec.json'], capture_output=True, text=True)
    assert gone.returncode == 1 and 'not there' in gone.stderr


def until(true, seconds=60):
    "Wait for something; says whether it came."
    deadline = time.time() + seconds
    while not true() and time.time() < deadline: time.sleep(.05)
    return bool(true())


def test_a_worker_whose_spec_is_taken_back_goes(run):
    spec = job('light_tasks:build', run, name=1, seconds=60)
    process = subprocess.Popen([sys.executable, '-m', 'subtask_kit.jobs', jobs._spec_file(spec)])
    try:
        assert until(lambda: list(run.path.glob('units/1.*.tmp/half.txt')))
        run_jobs([job('light_tasks:build', run, name=2)], run, 'working')  # a new command asks for other units of the same task
        assert process.wait(15) == 1 and not (run/'units/1').exists() and (run/'units/2/whole.txt').exists()
    finally: process.kill()


def test_an_unfinished_stage_does_what_is_missing(run):
    @stage('90_toys')
    def toys(cfg, run, out): return dict(unfinished=len(run_jobs([job('light_tasks:build', run, name=i) for i in range(3)], run, 'toys', keep_going=True)))
    (run/'broken_1').write_text('')
    first = toys(Toy(), run)
    assert first['metrics'] == {'unfinished': 1} and (run/'90_toys/manifest.json').exists() and not (run/'units/1').exists()
    assert toys(Toy(), run)['why'] == ['what was unfinished']
    (run/'broken_1').unlink()
    last = toys(Toy(), run)
    assert last['metrics'] == {'unfinished': 0} and last['key'] == first['key'] and {i: (run/f'tries_{i}').read_text() for i in range(3)} == {0: 'x', 1: 'x', 2: 'x'}
    assert toys(Toy(), run) == last


@dataclass
class Toy: pass


def leftover(run, name, key='k', owner=None, age=0.):
    "A work folder of another attempt."
    work = run/f'units/{name}.{owner or "elsewhere-1"}.tmp'
    work.mkdir(parents=True)
    (work/'epoch_3').write_text('saved')
    write_json({'key': key}, work/'unit.json')
    os.utime(work/'unit.json', (time.time()-age,)*2)
    return work

def dead_process():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def test_an_abandoned_work_folder_is_taken_over_and_another_key_is_not(run):
    here = f'{artifacts._host()}-{dead_process()}'
    leftover(run, 1, owner=here), leftover(run, 2, age=1000), leftover(run, 3, key='old', owner=here)
    for name, had in ((1, True), (2, True), (3, False)):
        with unit(run/f'units/{name}', 'k') as work: assert (work/'epoch_3').exists() == had
    assert sorted(p.name for p in (run/'units').iterdir()) == ['1', '2', '3']
    with unit(run/'units/1', 'k') as work: assert work is None


def test_who_finds_another_at_work_waits_for_it(run):
    process = subprocess.Popen([sys.executable, '-m', 'subtask_kit.jobs', jobs._spec_file(job('light_tasks:build', run, name=1, seconds=2))])
    assert until(lambda: list(run.path.glob('units/1.*.tmp/half.txt')))
    with unit(run/'units/1', 'k') as work: assert work is None
    assert process.wait() == 0 and (run/'tries_1').read_text() == 'x'
    killed = subprocess.Popen([sys.executable, '-m', 'subtask_kit.jobs', jobs._spec_file(job('light_tasks:build', run, name=2, seconds=60))])
    assert until(lambda: list(run.path.glob('units/2.*.tmp/half.txt')))
    killed.kill()
    killed.wait()
    with unit(run/'units/2', 'k') as work: assert (work/'half.txt').read_text() == 'half'


def test_many_attempts_at_one_unit_do_it_once(run):
    file = jobs._spec_file(job('light_tasks:build', run, name=1, seconds=.3))
    attempts = [subprocess.Popen([sys.executable, '-m', 'subtask_kit.jobs', file]) for _ in range(5)]
    assert [p.wait() for p in attempts] == [0]*5 and (run/'tries_1').read_text() == 'x' and [p.name for p in (run/'units').iterdir()] == ['1']


def test_who_was_silent_too_long_publishes_nothing(run, monkeypatch):
    monkeypatch.setattr(artifacts, 'STALE', .5)
    with pytest.raises(RuntimeError, match='took over'):
        with unit(run/'units/1', 'k') as work:
            (work/'mine').write_text('slow')
            os.utime(work/'unit.json', (time.time()-9,)*2)
            file = jobs._spec_file(job('light_tasks:build', run, name=1))
            subprocess.run([sys.executable, '-c', f"from subtask_kit import artifacts, jobs; artifacts.STALE = .5; assert jobs.attempt({file!r})"], check=True)
            write_json('late', work/'late.json')  # makes its folder anew
    assert sorted(p.name for p in (run/'units/1').iterdir()) == ['cost.json', 'half.txt', 'mine', 'unit.json', 'whole.txt']


def test_two_that_end_together_leave_one_whole_unit(run):
    with unit(run/'units/1', 'k') as work:
        (work/'a').write_text('a')
        other = leftover(run, 1)  # made before, ends first
        (other/'epoch_3').rename(other/'a')
        artifacts._publish(other, run/'units/1', 'k')
    assert (run/'units/1/a').read_text() == 'saved' and [p.name for p in (run/'units').iterdir()] == ['1']


def test_all_processes_of_a_torchrun_get_the_folder_and_the_first_publishes(run, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('RANK', '0')
    first, second = unit(run/'units/1', 'k'), unit(run/'units/1', 'k')
    work = first.__enter__()
    monkeypatch.setenv('RANK', '1')
    assert second.__enter__() == work
    (work/'weights').write_text('w')
    second.__exit__(None, None, None)
    assert not (run/'units/1').exists()
    monkeypatch.setenv('RANK', '0')
    first.__exit__(None, None, None)
    assert (run/'units/1/weights').exists()
    for rank in '01':
        monkeypatch.setenv('RANK', rank)
        with unit(run/'units/1', 'k') as work: assert work is None


def test_units_that_stay_keep_what_is_unfinished(run):
    for name in (1, 2): leftover(run, name)
    (run/'units/3').mkdir()
    keep_units(run/'units', ['1'])
    assert [p.name for p in (run/'units').iterdir()] == ['1.elsewhere-1.tmp']
