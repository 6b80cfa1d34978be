"""A run that is killed with -9 again and again ends with the same bytes as one that never was."""
import json
import os
import random
import signal
import subprocess
import time

from conftest import KIT, kit

KILLS = 5


def outputs(run):
    "Hash of everything the stages wrote, the report excepted (it tells times)."
    found = {}
    for manifest in sorted(run.glob('[0-9]*/manifest.json')):
        m = json.loads(manifest.read_text())
        if manifest.parent.name != '62_report': found |= {f'{manifest.parent.name}/{k}': v['sha256'] for k, v in m['outputs'].items()}
    return found


def start(run, micro):
    return subprocess.Popen([KIT, 'run', run, '--data', micro/'manifest.csv', '--unlabelled', micro/'unlabelled.csv', '--preset', 'micro'],
                            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def test_killed_runs_end_with_the_same_bytes(micro, micro_run, tmp_path):
    run, rng = tmp_path/'killed', random.Random(os.urandom(8))
    moments = []
    for i in range(KILLS):
        process, moment = start(run, micro), rng.uniform(3, 20)
        try: process.wait(moment)
        except subprocess.TimeoutExpired: pass
        moments.append(round(moment, 1))
        if process.poll() is None:
            # By turns the command alone, whose kernel and workers live on for a while, and everything it started.
            (os.kill if i % 2 else os.killpg)(process.pid, signal.SIGKILL)
            process.wait()
    done = kit('run', run)
    assert outputs(run) == outputs(micro_run), f'killed after {moments} s'
    assert done.returncode == 0
    assert not list(run.rglob('*.tmp')), 'temporary files are left behind'


def test_a_second_command_on_a_running_run_stops(micro, tmp_path):
    run = tmp_path/'busy'
    first = start(run, micro)
    try:
        deadline = time.time() + 60
        while not (run/'.run.lock').exists() and time.time() < deadline: time.sleep(.1)
        time.sleep(1)
        second = kit('run', run, check=False)
        assert second.returncode == 2 and 'in use' in second.stderr
    finally:
        os.killpg(first.pid, signal.SIGKILL)
        first.wait()


def test_a_finished_run_starts_nothing_again(micro_run):
    before = {p: p.stat().st_mtime_ns for p in micro_run.glob('[0-9]*/manifest.json')}
    kit('run', micro_run)
    assert {p: p.stat().st_mtime_ns for p in micro_run.glob('[0-9]*/manifest.json')} == before
