"A finished micro run, copied and changed in this process, for tests of single stages."
import shutil

from subtask_kit.artifacts import open_run, read_json
from subtask_kit.pipeline import configure, run_stages


def copy_of(micro_run, folder):
    "A copy that a test may change."
    return open_run(shutil.copytree(micro_run, folder, ignore=shutil.ignore_patterns('.*.lock', '.status.json')))


def manifests(run):
    "The bytes of every manifest; a stage that ran again has other ones, if only for its times."
    return {p.parent.name.partition('_')[2]: p.stat().st_mtime_ns for p in sorted(run.path.glob('[0-9]*/manifest.json'))}


def again(run, until='evaluate', **given):
    "Run the stages up to `until` with changed parameters; the names of those that did not find their work done."
    before = manifests(run)
    run_stages(run, configure('micro', read_json(run/'run.json')['parameters'] | given), until)
    return [name for name, time in manifests(run).items() if before.get(name) != time]


def hashes(run, stage):
    "What a stage wrote: file -> sha256."
    return {name: o['sha256'] for name, o in read_json(next(run.path.glob(f'[0-9]*_{stage}'))/'manifest.json')['outputs'].items()}
