"Files and manifests made with bad intent, or broken: each has its outcome, none is lost, nothing outside is opened."
import os
import re
import sys

import hostile
import numpy as np
import pandas as pd
import pytest

from subtask_kit import cli
from subtask_kit.artifacts import open_run, read_table
from subtask_kit.curate import Curate, ads_of, curate, images_of
from subtask_kit.manifest import scan

OPENED, GOING, LOCKED = [], {}, set() # what was opened; a file -> at which opening it vanishes; files that may not be read
WATCH = [False]


def _watch(event, args):
    if not WATCH[0] or event != 'open' or not isinstance(args[0], (str, bytes)): return
    path = os.fsdecode(args[0])
    OPENED.append(path)
    if os.path.realpath(path) == '/dev/zero': raise AssertionError('an endless device was opened')
    name = os.path.basename(path)
    if name in LOCKED: raise PermissionError(13, 'Permission denied')
    if name in GOING:
        GOING[name] -= 1
        if not GOING[name]: os.unlink(path)


sys.addaudithook(_watch)


@pytest.fixture(autouse=True)
def watch():
    "Record what is opened, and end what hangs."
    OPENED.clear()
    GOING.clear()
    LOCKED.clear()
    WATCH[0] = True
    with hostile.in_time(): yield
    WATCH[0] = False


def opened_outside(home):
    "What was opened beside `home` and its neighbours that the kit makes."
    return [p for p in OPENED if os.path.realpath(p).startswith((str(home.parent/'outside'), '/etc/passwd', '/dev/zero', f'/proc/{os.getpid()}/mem')) or os.path.basename(p) in ('fifo.jpg', 'device.jpg', 'sparse.jpg')]


def command(capsys, *words):
    "Exit code, screen, errors of the command line."
    code = 0
    try: cli.main([*map(str, words)])
    except SystemExit as e: code = e.code
    screen = capsys.readouterr()
    return code, screen.out, screen.err


def harmless(text): return all(c.isprintable() or c == '\n' for c in text)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp('hostile')/'home'
    return home, hostile.make_folder(home, home.parent/'outside')


@pytest.fixture(scope='module')
def outcome(folder):
    "The stage over everything: row -> 'used' or the reason in drops.parquet, and what was opened."
    home, table = folder
    for n, name in enumerate(('going 1.png', 'going 2.png'), 1): # gone between listing and hashing; between hashing and decoding
        (home/name).write_bytes(hostile.encoded(hostile.noise(8000+n), 'PNG'))
        GOING[name] = n
    (home/'locked.png').write_bytes(hostile.encoded(hostile.noise(8003), 'PNG'))
    LOCKED.add('locked.png')
    with open(home/'ads.csv', 'a') as f: f.write('going 1.png,1,\ngoing 2.png,1,\nlocked.png,1,\n')
    run = open_run(home.parent/'run', create=True)
    OPENED.clear()
    WATCH[0] = True
    try:
        with hostile.in_time(): manifest = curate(Curate(str(home/'ads.csv'), px=16, skip_bad_rows=True, max_pixels=hostile.MAX_PIXELS), run)
    finally: WATCH[0] = False
    LOCKED.clear()
    bad, opened = opened_outside(home), len(OPENED)
    drops, ads = read_table(run/'13_curate/drops.parquet'), ads_of(run)
    return run, manifest, ads, drops, bad, opened


def kinds():
    "Names of the kinds, in the order of the folder."
    return [name for name, _ in hostile.pictures()]


def test_there_are_enough():
    assert len(kinds()) >= 45 and len(set(kinds())) == len(kinds()) and len(list(hostile.manifests())) >= 20


def test_every_hostile_file_has_its_outcome(folder, outcome):
    home, table = folder
    run, manifest, ads, drops, bad, opened = outcome
    reasons = dict(zip(drops.row, drops.reason))
    got = [reasons.get(r, 'used') for r in table.row]
    names = dict(zip((f'{i}.jpg' for i in range(1000)), kinds()))
    wrong = [(names.get(p, p), want, g) for p, want, g in zip(table.path, table.want, got) if not re.match(want, g)]
    assert not wrong
    assert reasons[len(table)+1].startswith('unusable picture: ') and reasons[len(table)+2].startswith('unusable picture: ') # those that went while it ran
    assert reasons[len(table)+3] == 'unusable picture: the file cannot be read: Permission denied'
    for reason in drops.reason: assert harmless(reason) and '\n' not in reason and str(home.parent) not in reason and len(reason) < 300


def test_no_hostile_row_is_lost(folder, outcome):
    run, manifest, ads, drops, bad, opened = outcome
    n = len(folder[1])+3
    assert manifest['metrics']['rows'] == n == len(ads)+len(drops) and drops.row.is_unique and set(drops.row) <= set(range(1, n+1))
    used = set(range(1, n+1))-set(drops.row)
    paths = folder[1].set_index('row').path
    assert {paths[r].replace('\u00e9', 'e\u0301') for r in used} == set(ads.path) # each row itself, not only their number
    assert images_of(run).shape[1:] == (16, 16, 3) and ads.image_row.is_unique


def test_used_pictures_are_those_of_their_files(folder, outcome):
    run, _, ads, *_ = outcome
    pictures = dict(zip(ads.path, images_of(run)[ads.image_row]))
    numbers = {name: f'{i}.jpg' for i, name in enumerate(kinds())}
    flat = {p for p, a in pictures.items() if np.ptp(a, (0, 1)).max() == 0}
    assert flat == {numbers[n] for n in ('just at the limit', 'png, IDAT bomb', 'one pixel', 'png, interlaced', 'bmp, runs that jump') if numbers[n] in pictures} # no other became black or white


def test_nothing_outside_is_opened(outcome):
    *_, bad, opened = outcome
    assert not bad and opened > 200


def test_check_tells_what_the_stage_does(folder, outcome, capsys, tmp_path):
    home, table = folder
    WATCH[0] = True
    code, out, err = command(capsys, 'check', home/'ads.csv', '--rows', tmp_path/'rows.csv')
    assert code == 2 and err.count('\n') == 1 and re.match(r'error: .*ads.csv: \d+ bad rows .*--skip-bad-rows', err)
    told = pd.read_csv(tmp_path/'rows.csv', keep_default_na=False)
    dropped = dict(zip(outcome[3].row, outcome[3].reason))
    assert set(told.row) <= set(dropped) and set(told.row[told.kind == 'row']) == {r for r, reason in dropped.items() if reason.startswith('bad row')} # a header tells less than decoding, and nothing else
    assert len(told) > 60 and out.count('row ') == 20 and f'and {len(told)-20} more' in out
    assert harmless(out) and harmless(err) and harmless((tmp_path/'rows.csv').read_text())
    cells = [c for column in ('path', 'reason') for cell in told[column] for c in re.split('[;\t]', cell)]
    assert not [c for c in cells if c.lstrip().startswith(('=', '+', '-', '@'))]
    assert not opened_outside(home)
    code, out, err = command(capsys, 'check', home/'ads.csv', '--skip-bad-rows')
    assert code == 0 and not err and ': usable' in out and 'refused' not in out and harmless(out)


def test_a_folder_of_them(folder, capsys, tmp_path):
    home = tmp_path/'home'
    hostile.make_folder(home/'defective', tmp_path/'outside', good=30)
    (home/'defective/ads.csv').unlink()
    (home/'acceptable').mkdir()
    for i in range(30): (home/f'acceptable/{i}.png').write_bytes(hostile.encoded(hostile.noise(9000+i), 'PNG'))
    with open(os.fsencode(home/'acceptable')+b'/\xff\xfe.png', 'wb') as f: f.write(hostile.encoded(hostile.noise(9999), 'PNG'))
    OPENED.clear()
    ads, problems, _, _ = scan(home)
    files = sum(len(files)+sum(os.path.islink(os.path.join(folder, n)) for n in names) for folder, names, files in os.walk(home))
    assert sorted([*ads.row, *problems.row]) == list(range(1, files+1))
    assert problems.reason[problems.path.str.contains('udcff')].tolist() == ["the file's name is not UTF-8: rename it"]
    code, out, err = command(capsys, 'check', home, '--rows', tmp_path/'rows.csv')
    assert code == 2 and err.count('\n') == 1 and harmless(out+err+(tmp_path/'rows.csv').read_text()) and not opened_outside(home)


@pytest.mark.parametrize('name', ['ads.csv', 'ads.csv.settings.json'])
def test_what_may_not_be_read(tmp_path, capsys, name):
    (tmp_path/'ads.csv').write_text('path,label\n0.png,0\n')
    (tmp_path/'ads.csv.settings.json').write_text('{}')
    LOCKED.add(name)
    code, out, err = command(capsys, 'check', tmp_path/'ads.csv')
    assert code == 2 and f'{name}: cannot be read (Permission denied)' in err and err.count('\n') == 1


MANIFESTS = list(hostile.manifests())


@pytest.mark.parametrize('name,make,want', MANIFESTS, ids=[m[0] for m in MANIFESTS])
def test_broken_manifests(tmp_path, capsys, name, make, want):
    home = tmp_path/'home'
    for folder in (home, tmp_path/'outside'): folder.mkdir()
    for i in range(6): hostile.noise(i).save(home/f'{i}.png')
    hostile.noise(99).save(tmp_path/'outside/secret.png')
    path = make(home)
    OPENED.clear()
    code, out, err = command(capsys, 'check', path, '--rows', tmp_path/'rows.csv')
    assert code == 2 and err.startswith('error: ') and err.count('\n') == 1 and re.search(want, err), (code, err)
    assert harmless(out+err) and len(err) < 1000 and 'Traceback' not in err and '; ' in err # a remedy follows
    assert (tmp_path/'rows.csv').read_text().startswith('row,path,kind,reason\n') and not opened_outside(home)
    assert not [p for p in OPENED if p.startswith('/dev/zero')]
    if name == 'folders 1,100 deep': os.system(f'rm -r {path}') # too deep for pytest's own cleaning
