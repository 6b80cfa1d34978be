"""Measure where jobs run: the same 40 jobs by four engines, and 20 kills -9. Writes nbs/benchmarks/results/jobs_*.csv.

    python tools/measure_jobs.py            (an environment with the extras ray and slurm; about 15 minutes on two cores)

A two-node Ray cluster is started on this machine, on fixed ports, and ended afterwards; Slurm is stood for by submitit's local executor. A job has
four steps, each saved when it ends, so that what a kill costs can be counted: steps done again, units finished twice, folders that are not whole.
"""
import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

from subtask_kit.artifacts import open_run, process_lives, read_json, unit
from subtask_kit.core import rng_for
from subtask_kit.jobs import job, run_jobs

RESULTS = Path(__file__).parent.parent/'nbs'/'benchmarks'/'results'
JOBS, STEPS, SECONDS = 40, 4, .25


# -- the jobs -------------------------------------------------------------------------------------------------------------------------------------

def build(run, name, key='k'):
    "Job: a unit of four steps, which goes on after the last one that was saved."
    with unit(run/'units'/f'{name:02d}', key) as work:
        if work is None: return
        for step in range(STEPS):
            if (work/f'{step}.npy').exists(): continue
            tell(run, name, f'begins {step}')
            time.sleep(SECONDS)
            np.save(work/f'{step}.tmp.npy', rng_for('measure', name, step).normal(size=10_000))
            os.replace(work/f'{step}.tmp.npy', work/f'{step}.npy')
            tell(run, name, f'ends {step}')
        for p in work.glob('*.tmp.npy'): p.unlink()
    tell(run, name, 'done')

def tell(run, name, what):
    with open(run/'log.txt', 'a') as f: f.write(json.dumps([name, what, os.getpid(), os.environ.get('RAY_NODE_ID', '') or _ray_node()]) + '\n')

def _ray_node():
    ray = sys.modules.get('ray')
    return ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else ''

def drive(folder, where):
    "What the measured command does."
    run = open_run(folder, int(where) if where.isdigit() else where)
    run_jobs([job('measure_jobs:build', run, name=i) for i in range(JOBS)], run, 'jobs')


# -- what is left -----------------------------------------------------------------------------------------------------------------------------------

def log(run): return [json.loads(line) for line in (run/'log.txt').read_text().splitlines()] if (run/'log.txt').exists() else []

def digest(run):
    "Hash of every file of every unit."
    return {str(p.relative_to(run)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted((run/'units').rglob('*.npy'))}

def account(run, reference):
    "What happened in a run."
    told, units = log(run), sorted((run/'units').iterdir())
    ends, done = Counter((n, w) for n, w, *_ in told if w.startswith('ends')), Counter(n for n, w, *_ in told if w == 'done')
    whole = [p for p in units if not p.name.endswith('.tmp') and set(read_json(p/'unit.json', {}).get('bytes', {})) == {f'{s}.npy' for s in range(STEPS)}]
    return dict(same_bytes=digest(run) == reference, broken=sum(not p.name.endswith('.tmp') for p in units) - len(whole), left_over=sum(p.name.endswith('.tmp') for p in units),
                steps_cut=sum(w.startswith('begins') for _, w, *_ in told) - sum(ends.values()), steps_again=sum(n-1 for n in ends.values()), jobs_twice=sum(n-1 for n in done.values()))


# -- Ray --------------------------------------------------------------------------------------------------------------------------------------------

TEMP, PORTS = Path(tempfile.gettempdir())/'measure_ray', (6390, 6440)

def ray_processes():
    "Process id -> command line of our cluster."
    found = {}
    for p in Path('/proc').glob('[0-9]*/cmdline'):
        try: line = p.read_bytes().decode().replace('\0', ' ')
        except OSError: continue
        if str(TEMP) in line and int(p.parent.name) != os.getpid(): found[int(p.parent.name)] = line
    return found

def raylet(port): return next((pid for pid, line in ray_processes().items() if '/raylet/raylet ' in line and f'--node_manager_port={port+6} ' in line), None)

def tell_ports(stop):
    "A raylet gives up when its agents have not told their ports within 15 s (ray-project/ray 65983); on a busy machine we tell them, for they are fixed."
    while not stop.wait(.2):
        for line in ray_processes().values():
            args = dict(w.lstrip('-').split('=', 1) for w in line.split() if w.startswith('--') and '=' in w)
            if '/raylet/raylet ' not in line or 'metrics_export_port' not in args: continue
            base = int(args['metrics_export_port']) - 1
            for name, port in dict(metrics_export_port=base+1, metrics_agent_port=base+2, dashboard_agent_listen_port=base+3, runtime_env_agent_port=base+4).items():
                file = Path(args['session_dir'])/f'{name}_{args["node_id"]}'
                if not file.exists(): file.write_text(str(port))

def start_node(base):
    "Start a node of the cluster, the head first, with every port fixed."
    if raylet(base): return
    where = ['--head', '--port', base, '--include-dashboard', 'false', '--temp-dir', TEMP] if base == PORTS[0] else ['--address', f'127.0.0.1:{PORTS[0]}']
    names = 'metrics-export dashboard-agent-grpc dashboard-agent-listen runtime-env-agent'.split()
    ports = [w for i, n in enumerate(names) for w in (f'--{n}-port', base+1+i)] + ['--node-manager-port', base+6, '--object-manager-port', base+7]
    words = [Path(sys.executable).with_name('ray'), 'start', *where, *ports, '--min-worker-port', base+15_000, '--max-worker-port', base+15_040, '--num-cpus', 2,
             '--object-store-memory', 100_000_000, '--disable-usage-stats']
    stop = threading.Event()
    threading.Thread(target=tell_ports, args=(stop,), daemon=True).start()
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(Path(__file__).parent), RAY_worker_register_timeout_seconds='600'))
    stop.set()
    if not raylet(base): sys.exit(f'Ray did not start:\n{done.stdout[-2000:]}{done.stderr[-2000:]}')

def stop_ray():
    for pid in ray_processes(): kill(pid)

def kill(pid):
    try: os.kill(pid, signal.SIGKILL)
    except ProcessLookupError: pass


# -- kills ------------------------------------------------------------------------------------------------------------------------------------------

def start(run, where):
    (run/'slurm.json').write_text('{"cluster": "local"}')
    # Ray's own log lines go nowhere; a command of our own session, so that a kill is a kill of one process
    return subprocess.Popen([sys.executable, __file__, '--drive', str(run), where], start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

def fresh(folder, name):
    run = folder/name
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    return run

def at_work(run, parent):
    "Processes that have begun a step and not ended it, and still live."
    last = {}
    for _, what, pid, node in log(run): last[pid] = what, node
    return [(pid, node) for pid, (what, node) in last.items() if what.startswith('begins') and pid != parent and process_lives(pid)]

def strike(run, process, target, moments, rng):
    "Kill `target` once, some time after more has been done; says whether there was anything to kill."
    before = len(log(run))
    while process.poll() is None and len(log(run)) < before + 2 + rng.randrange(moments): time.sleep(.02)
    while process.poll() is None and not (busy := at_work(run, process.pid)): time.sleep(.02)
    if process.poll() is not None: return False
    kill(process.pid if target == 'parent' else raylet(PORTS[1]) if target == 'node' else rng.choice(busy)[0])
    return True

def killing(folder, where, target, kills, reference, rng):
    "A run that is disturbed `kills` times and then ends; its account."
    run, struck = fresh(folder, f'{where}_{target}'), 0
    process, rounds = start(run, where), 1
    for _ in range(kills):
        struck += strike(run, process, target, JOBS*STEPS//kills//2, rng)
        if target == 'parent':
            process.wait()
            process, rounds = start(run, where), rounds+1
    code = process.wait()
    if code: code, rounds = start(run, where).wait(), rounds+1 # three attempts were not enough
    row = dict(engine=where, killed=target, kills=struck, commands=rounds, exit=code) | account(run, reference)
    print(row, flush=True)
    return row


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--drive', nargs=2, metavar=('RUN', 'WHERE'), help=argparse.SUPPRESS)
    p.add_argument('--seed', type=int, default=0, help='of the moments of the kills')
    p.add_argument('--only', choices=('engines', 'kills'))
    args = p.parse_args()
    if args.drive: return drive(*args.drive)
    os.environ.update(OMP_NUM_THREADS='1', PYTHONPATH=str(Path(__file__).parent))
    folder, rng = Path(tempfile.gettempdir())/'measure_jobs', random.Random(args.seed)
    for base in PORTS: start_node(base)
    try:
        reference, rows = None, []
        for where in ('0', '2', 'ray', 'slurm') if args.only != 'kills' else ('2',):
            run, began = fresh(folder, f'engine_{where}'), time.time()
            code = start(run, where).wait()
            reference = reference or digest(run)
            rows.append(dict(engine=where, jobs=JOBS, exit=code, processes=len({pid for *_, pid, _ in log(run)}), nodes=len({node for *_, node in log(run) if node}), seconds=round(time.time()-began, 1), load=round(os.getloadavg()[0], 1)) | account(run, reference))
            print(rows[-1], flush=True)
        if args.only != 'kills': pd.DataFrame(rows).to_csv(RESULTS/'jobs_engines.csv', index=False)
        if args.only == 'engines': return
        rows = []
        for where, target, kills in (('2', 'worker', 6), ('2', 'parent', 4), ('ray', 'worker', 3), ('ray', 'parent', 2), ('slurm', 'worker', 2), ('slurm', 'parent', 1), ('ray', 'node', 1), ('ray', 'node', 1)):
            for base in PORTS: start_node(base) # a node that was killed comes back
            rows.append(killing(folder, where, target, kills, reference, rng))
            pd.DataFrame(rows).to_csv(RESULTS/'jobs_kills.csv', index=False)
    finally: stop_ray()


if __name__ == '__main__': main()
