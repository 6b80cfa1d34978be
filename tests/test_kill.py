"""A run that is killed with -9 again and again ends with the same bytes as one that never was."""
import json
import os
import random
import signal
import subprocess
import time

from conftest import KIT, kit

from subtask_kit.core import read_status

KILLS = 5
STAGES = ['13_curate', '25_features', '31_selflabel', '33_specialists', '37_distill', '37_distill', '41_evaluate', '62_report'] # students are most of the work


def outputs(run):
    "Hash of everything the stages wrote, the report excepted (it tells times)."
    found = {}
    for manifest in sorted(run.glob('[0-9]*/manifest.json')):
        m = json.loads(manifest.read_text())
        if manifest.parent.name != '62_report': found |= {f'{manifest.parent.name}/{k}': v['sha256'] for k, v in m['outputs'].items()}
    return found


def start(run, micro, *more, **options):
    words = [KIT, 'run', run, '--data', micro/'manifest.csv', '--unlabelled', micro/'unlabelled.csv', '--preset', 'micro', '--workers', '1', *more]
    return subprocess.Popen(words, **dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True) | options)


def strike(process, run, target, seconds, whole_group):
    "Kill a run `seconds` after it has reached the stage `target`; says in which stage it was, None where it was quicker."
    while process.poll() is None and read_status(run/'.status.json').get('stage', '') < target: time.sleep(.02)
    try: process.wait(seconds)
    except subprocess.TimeoutExpired: pass
    if process.poll() is not None: return None
    stage = read_status(run/'.status.json').get('stage')
    # The command alone, whose kernel lives on for some seconds, or everything that it started.
    (os.killpg if whole_group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()
    return stage


def test_killed_runs_end_with_the_same_bytes(micro, micro_run, tmp_path):
    run, rng, killed = tmp_path/'killed', random.Random(os.urandom(8)), []
    for i, target in enumerate(sorted(rng.choices(STAGES, k=KILLS))): killed.append(strike(start(run, micro), run, target, rng.uniform(0, .6), whole_group=i%2 == 0))
    kit('run', run)
    print(f'killed in the stages {killed}')
    assert outputs(run) == outputs(micro_run), f'killed in the stages {killed}'
    assert not list(run.rglob('*.tmp')), 'temporary files are left behind'


def test_a_second_command_on_a_running_run_stops(micro, tmp_path):
    run = tmp_path/'busy'
    first = start(run, micro, '-p', 'distill_epochs', '2000') # long enough to be still at it
    try:
        deadline = time.time() + 60
        while not read_status(run/'.status.json') and time.time() < deadline: time.sleep(.1)
        second = kit('run', run, check=False)
        assert second.returncode == 2 and 'in use' in second.stderr and len(second.stderr.splitlines()) == 1
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_ctrl_c_is_one_line_and_the_run_goes_on(micro, tmp_path):
    "A terminal sends SIGINT to the whole group. Where these tests are started with SIGINT ignored, as by a shell in the background, the run is not."
    run = tmp_path/'interrupted'
    process = start(run, micro, '-p', 'distill_epochs', '2000', stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    try:
        deadline = time.time() + 120
        while process.poll() is None and read_status(run/'.status.json').get('stage', '') < '25_features' and time.time() < deadline: time.sleep(.1)
        assert process.poll() is None, process.stderr.read()
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        if process.poll() is None: os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 1 and [x for x in said.splitlines() if not x.startswith('[')] == ['error: interrupted; run the same command to go on']


def test_a_finished_run_starts_nothing_again(micro_run):
    before = {p: p.stat().st_mtime_ns for p in micro_run.glob('[0-9]*/manifest.json')}
    kit('run', micro_run)
    assert {p: p.stat().st_mtime_ns for p in micro_run.glob('[0-9]*/manifest.json')} == before
