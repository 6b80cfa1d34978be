"Engines on other machines and torchrun: what they are handed, what they are asked, what a failure or an interruption leaves. Ray is never started here."
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from subtask_kit import cli, jobs
from subtask_kit.artifacts import open_run, process_lives, read_json, write_json
from subtask_kit.core import UserError
from subtask_kit.jobs import job, job_folder, need_engine, run_jobs

TASKS = '''
import os, time
from subtask_kit.artifacts import rank, unit
from subtask_kit.core import UserError

def write(run, name, cfg=None):
    with unit(run/'units'/str(name), 'k') as work:
        if work: (work/'text').write_text(f'job {name}')

def sour(run, name): raise UserError('the picture is odd', 'look at it')

def moody(run, name):
    with open(run/f'tries_{name}', 'a') as f: f.write('x')
    if len((run/f'tries_{name}').read_text()) < 3: raise OSError('the disk does not answer')

def total(run, name):
    import torch, torch.distributed as dist
    with unit(run/'units'/str(name), 'k') as work:
        dist.init_process_group('gloo')
        x = torch.tensor([rank()+1.])
        dist.all_reduce(x)
        if rank() == 0: (work/'sum').write_text(f'{x.item():g} of {os.environ["WORLD_SIZE"]}, {torch.get_num_threads()} thread')

def torn(run, name):
    if rank() == 1: raise UserError('this rank is odd', 'use an even one')
    time.sleep(100)

def nap(run, name):
    (run/f'pid_{rank()}').write_text(str(os.getpid()))
    time.sleep(200)
'''


@pytest.fixture
def run(tmp_path, monkeypatch):
    "A run, and tasks that workers can import."
    (tmp_path/'tasks_elsewhere.py').write_text(TASKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join([str(tmp_path), os.environ.get('PYTHONPATH', '')]))
    return open_run(tmp_path/'run', create=True)

def specs(run): return [job('tasks_elsewhere:write', run, name=i) for i in range(3)] + [job(f'tasks_elsewhere:{task}', run, name=9) for task in ('sour', 'moody')]
def units(run): return {p.parent.name: p.read_text() for p in run.path.glob('units/*/text')}
ALL = {str(i): f'job {i}' for i in range(3)}


# -- Ray, of which the shape is what we call ---------------------------------------------------------------------------------------------------------

class RayError(Exception): pass

@pytest.fixture
def ray(monkeypatch):
    "A stand-in for Ray: tasks run when they are waited for, the last one first; `lost` files lose their worker."
    fake = ModuleType('ray')
    fake.__spec__ = ModuleSpec('ray', None)
    fake.options, fake.cancelled, fake.lost, fake.asked, fake.on = [], [], set(), [], False
    def init(**given): fake.asked.append(given); fake.on = True
    class Remote:
        def __init__(self, function): self.function = function
        def options(self, **given): fake.options.append(given); return self
        def remote(self, *args): return Handle(self.function, args)
    class Handle:
        def __init__(self, function, args): self.function, self.args = function, args
    def wait(handles): return handles[-1:], handles[:-1]
    def get(handle):
        if Path(handle.args[0]).parent.name in fake.lost: raise RayError('The worker died.\nMore than one needs to know.')
        return handle.function(*handle.args)
    fake.init, fake.remote, fake.wait, fake.get, fake.is_initialized = init, Remote, wait, get, lambda: fake.on
    fake.cluster_resources, fake.cancel, fake.exceptions = lambda: {'CPU': 4.}, lambda h, force: fake.cancelled.append(h), SimpleNamespace(RayError=RayError)
    monkeypatch.setitem(sys.modules, 'ray', fake)
    return fake


def test_ray_is_joined_and_handed_files(run, ray):
    failed = run_jobs(specs(run), open_run(run, 'ray'), 'working', keep_going=True)
    assert [(f['index'], f['error'], f['attempts']) for f in failed] == [(3, 'the picture is odd; look at it', 1)] and units(run) == ALL
    assert ray.asked == [dict(address='auto', log_to_driver=False, logging_level='error')], 'a cluster is joined, never started'
    assert (run/'tries_9').read_text() == 'xxx' and [p.name for p in (run/'jobs').iterdir()] == [job_folder(specs(run)[3]).name]
    assert {tuple(o.items()) for o in ray.options} == {(('num_cpus', 1), ('num_gpus', 0), ('max_retries', 2))}
    run_jobs(specs(run)[:1], open_run(run, 'ray'), 'working')
    assert len(ray.asked) == 1


def test_ray_is_asked_for_gpus_where_a_job_wants_one_and_there_are_some(run, ray):
    ray.cluster_resources = lambda: {'CPU': 4., 'GPU': 2.}
    for cfg in (dict(device='auto'), dict(device='cpu'), {}): run_jobs([job('tasks_elsewhere:write', run, name=1, cfg=cfg)], open_run(run, 'ray'), 'working')
    write_json(dict(num_gpus=.25, resources={'fast': 1}), run/'ray.json')
    run_jobs([job('tasks_elsewhere:write', run, name=1, cfg=dict(device='cuda'))], open_run(run, 'ray'), 'working')
    assert [o['num_gpus'] for o in ray.options] == [1, 0, 0, .25] and ray.options[-1]['resources'] == {'fast': 1}


def test_what_ray_has_lost_after_its_own_attempts_is_not_tried_again(run, ray):
    ray.lost.add(job_folder(specs(run)[1]).name)
    failed = run_jobs(specs(run)[:3], open_run(run, 'ray'), 'working', keep_going=True)
    assert [(f['index'], f['attempts']) for f in failed] == [(1, 3)] and 'was lost (The worker died.)' in failed[0]['error'] and len(ray.options) == 3
    assert read_json(job_folder(specs(run)[1])/'error.json')['attempt'] == 3 and set(units(run)) == {'0', '2'}


def test_an_interruption_takes_back_what_has_not_ended(run, ray):
    def interrupted(handles): raise KeyboardInterrupt
    ray.wait = interrupted
    with pytest.raises(KeyboardInterrupt): run_jobs(specs(run), open_run(run, 'ray'), 'working')
    assert len(ray.cancelled) == 5 and not (run/'jobs').exists()
    assert not jobs.attempt(ray.cancelled[0].args[0]) and units(run) == {}


def test_no_cluster_and_no_package_are_one_clear_line(run, ray, monkeypatch):
    def init(**given): raise ConnectionError('Could not find any running Ray instance.\nPlease specify one.')
    ray.init = init
    with pytest.raises(UserError, match=r'no Ray cluster answers \(Could not find any running Ray instance.\); start one: `ray start'): run_jobs(specs(run), open_run(run, 'ray'), 'working')
    monkeypatch.setattr(jobs.importlib.util, 'find_spec', lambda name: None)
    for where, package in (('ray', 'ray'), ('slurm', 'submitit')):
        with pytest.raises(UserError, match=rf'--workers {where} needs the package {package}; pip install "subtask_kit\[{where}\]"'): run_jobs(specs(run), open_run(run, where), 'working')
    for where in (None, 2): need_engine(where)


def test_where_is_kept_and_a_number_brings_jobs_home(run):
    far = open_run(run, 'slurm')
    assert (far.where, open_run(far).where, open_run(far, 0).where, open_run(far, 0).workers) == ('slurm', 'slurm', 'local', 0) and far.workers >= 1
    with pytest.raises(UserError, match='a number, ray or slurm'): open_run(run, 'moon')


def test_the_command_line_names_an_engine(run, monkeypatch, capsys):
    monkeypatch.setattr(jobs.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit) as e: cli.main(['run', str(run/'new'), '--workers', 'ray'])
    assert e.value.code == 2 and 'subtask_kit[ray]' in capsys.readouterr().err and not (run/'new').exists()


def test_a_reader_that_has_seen_enough_is_no_error():
    kit = subprocess.Popen([sys.executable, '-c', 'from subtask_kit.cli import main; main(["run", "--help"])'], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    kit.stdout.close()
    assert kit.stderr.read() == b'' and kit.wait() == 128+signal.SIGPIPE


# -- Slurm ------------------------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def submitit(monkeypatch):
    "A stand-in for submitit: a job runs when it is first looked at."
    fake = ModuleType('submitit')
    fake.__spec__ = ModuleSpec('submitit', None)
    fake.arrays, fake.cancelled, fake.lost = [], [], {}
    class Job:
        def __init__(self, function, file): self.function, self.file, self.ended = function, file, False
        def done(self): return True
        def cancel(self, check): fake.cancelled.append(self.file)
        def result(self):
            name = Path(self.file).parent.name
            if fake.lost.get(name, 0): fake.lost[name] -= 1; raise RuntimeError('Job 7 has not produced any output (state: OUT_OF_MEMORY)\nand so on')
            return self.function(self.file)
    class AutoExecutor:
        def __init__(self, folder, cluster):
            if cluster == 'slurm' and not fake.slurm: raise RuntimeError('Could not detect "slurm", are you indeed on a slurm cluster?')
            self.cluster = cluster
        def update_parameters(self, **given): fake.parameters = given
        def batch(self): fake.arrays.append([]); return nullcontext()
        def submit(self, function, file): fake.arrays[-1].append(file); return Job(function, file)
    fake.AutoExecutor, fake.slurm = AutoExecutor, True
    monkeypatch.setitem(sys.modules, 'submitit', fake)
    return fake


def test_slurm_gets_one_array_and_another_attempt_where_it_helps(run, submitit):
    write_json(dict(slurm_partition='gpu', timeout_min=30), run/'slurm.json')
    submitit.lost[job_folder(specs(run)[0]).name] = 1
    failed = run_jobs(specs(run), open_run(run, 'slurm'), 'working', keep_going=True)
    assert [(f['index'], f['attempts']) for f in failed] == [(3, 1)] and units(run) == ALL and (run/'tries_9').read_text() == 'xxx'
    assert [len(a) for a in submitit.arrays] == [5, 2, 1] and submitit.parameters == dict(name='subtask_kit', timeout_min=30, slurm_array_parallelism=256, slurm_partition='gpu')


def test_what_slurm_loses_three_times_fails_with_its_words(run, submitit):
    submitit.lost[job_folder(specs(run)[0]).name] = 9
    with pytest.raises(UserError, match=r'was lost \(Job 7 has not produced any output \(state: OUT_OF_MEMORY\); its logs are in .*jobs/slurm\)'): run_jobs(specs(run)[:1], open_run(run, 'slurm'), 'working')
    assert len(submitit.arrays) == 3


def test_without_slurm(run, submitit):
    submitit.slurm = False
    with pytest.raises(UserError, match='no Slurm answers .*sbatch'): run_jobs(specs(run), open_run(run, 'slurm'), 'working')


def test_submitits_own_local_executor(run):
    pytest.importorskip('submitit')
    write_json(dict(cluster='local'), run/'slurm.json')
    failed = run_jobs(specs(run)[1:4], open_run(run, 'slurm'), 'working', keep_going=True)
    assert [f['index'] for f in failed] == [2] and set(units(run)) == {'1', '2'}


@pytest.mark.skipif(not os.environ.get('RAY_ADDRESS'), reason='joins the Ray cluster that RAY_ADDRESS names; starts none')
def test_a_real_ray(run):
    pytest.importorskip('ray')
    failed = run_jobs(specs(run), open_run(run, 'ray'), 'working', keep_going=True)
    assert [f['index'] for f in failed] == [3] and units(run) == ALL


# -- torchrun ---------------------------------------------------------------------------------------------------------------------------------------

def test_two_processes_work_at_one_job_and_the_first_writes(run):
    run_jobs([job('tasks_elsewhere:total', run, processes=2, name=1)], open_run(run, 2), 'working')
    assert (run/'units/1/sum').read_text() == '3 of 2, 1 thread' and not (run/'jobs').exists() and 'torch.distributed' not in str(os.environ.get('RANK'))


def test_the_first_process_to_fail_says_why(run):
    spec = job('tasks_elsewhere:torn', run, processes=2, name=1)
    with pytest.raises(UserError, match='this rank is odd; use an even one'): run_jobs([spec], run, 'working')
    assert 'this rank is odd' in (job_folder(spec)/'log.txt').read_text()


@pytest.mark.skipif(not Path('/proc').exists(), reason='looks at processes through /proc')
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_a_torchrun_goes_with_the_command_that_started_it(run, how):
    code = f'''from subtask_kit.artifacts import open_run
from subtask_kit.jobs import job, run_jobs
run = open_run({str(run.path)!r})
run_jobs([job('tasks_elsewhere:nap', run, processes=2, name=1)], run, 'sleeping')'''
    parent = subprocess.Popen([sys.executable, '-c', code], start_new_session=True, stderr=subprocess.DEVNULL, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    pids = lambda: [int(p.read_text() or 0) for p in run.path.glob('pid_*')]
    deadline = time.time() + 240
    while len(pids()) < 2 and parent.poll() is None and time.time() < deadline: time.sleep(.2)
    time.sleep(.2)
    assert len(pids()) == 2 and all(map(process_lives, pids()))
    os.kill(parent.pid, how)
    parent.wait(60)
    deadline = time.time() + 60
    while any(map(process_lives, pids())) and time.time() < deadline: time.sleep(.1)
    assert not any(map(process_lives, pids())) and parent.returncode
