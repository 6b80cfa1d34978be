"Decisions: what is acknowledged is on the disk, once and whole, whoever writes, kills, or fills the disk."
import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looking import RAW, bare_run
from stages import copy_of

from subtask_kit import clusters
from subtask_kit.artifacts import read_table, write_json, write_table
from subtask_kit.clusters import Elsewhere, append_line, base_of, current, read_base, read_edits, replay, save_edit, standing
from subtask_kit.core import UserError
from subtask_kit.selection import choices, chosen, read_choice, save_choice, translated, undo_choice

EDITOR = '''
import sys
from subtask_kit.clusters import Elsewhere, read_edits, save_edit
run, me, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
known = len(read_edits(run_ := __import__('subtask_kit.artifacts', fromlist=['x']).open_run(run)))
for i in range(times):
    while True:
        try: known, _ = save_edit(run, dict(op='rename', cluster=0, name=f'{me}{i}'), known); break
        except Elsewhere: known = len(read_edits(run_))
    print(known, f'{me}{i}', flush=True)
'''
CHOOSER = '''
import sys
from subtask_kit.artifacts import open_run
from subtask_kit.clusters import Elsewhere
from subtask_kit.selection import read_choice, save_choice
run, me, times = open_run(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
known = read_choice(run)
for i in range(times):
    while True:
        try: n, known = save_choice(run, known, T=me+i); break
        except Elsewhere: known = read_choice(run)
    print(n, me+i, flush=True)
'''


def start(script, run, *words): return subprocess.Popen([sys.executable, '-c', script, run.path, *map(str, words)], stdout=subprocess.PIPE, text=True)
def acknowledged(text): return [tuple(line.split()) for line in text.splitlines()]
def lines_of(run): return [json.loads(x) for x in (run/'human/edits.jsonl').read_bytes().decode().split('\n')[:-1]]


@contextmanager
def no_room(limit):
    "No file of this process may become longer."
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def one_line(e): return 'not saved' in str(e.value) and '\n' not in str(e.value)


# Two writers, and a writer that is killed

def test_two_processes_lose_no_edit_and_write_none_twice(tmp_path):
    run = bare_run(tmp_path/'run')
    writers = [start(EDITOR, run, me, 50) for me in 'ab']
    said = [acknowledged(w.communicate(timeout=60)[0]) for w in writers]
    lines = lines_of(run)
    assert [w.returncode for w in writers] == [0, 0] and [len(s) for s in said] == [50, 50]
    assert [e['name'] for e in lines] == [name for _, name in sorted(said[0] + said[1], key=lambda s: int(s[0]))], 'the operation n is line n'
    assert len(lines) == 100 and all(set(e) == {'op', 'cluster', 'name', 'author', 'at', 'base'} for e in lines)
    assert current(run).names == {0: lines[-1]['name']}


def test_two_processes_lose_no_choice(tmp_path):
    run = bare_run(tmp_path/'run')
    writers = [start(CHOOSER, run, me, 50) for me in (0, 1000)]
    said = sum((acknowledged(w.communicate(timeout=60)[0]) for w in writers), [])
    choice = read_choice(run)
    made = [c['T'] for c in [*choice['before'], choice]]
    assert [w.returncode for w in writers] == [0, 0] and len(said) == choices(choice) == 100
    assert made == [float(T) for _, T in sorted(said, key=lambda s: int(s[0]))]


@pytest.mark.parametrize('script, first', [(EDITOR, 'a'), (CHOOSER, 0)])
def test_what_a_killed_process_acknowledged_is_there(tmp_path, script, first):
    run = bare_run(tmp_path/'run')
    writer = start(script, run, first, 100_000)
    seen = [writer.stdout.readline()] # it has begun
    time.sleep(np.random.default_rng().uniform(0, .3))
    writer.send_signal(signal.SIGKILL)
    said = acknowledged(seen[0] + writer.stdout.read())
    writer.wait()
    if script is EDITOR:
        lines = lines_of(run)
        assert [e['name'] for e in lines][:len(said)] == [name for _, name in said] and len(lines) - len(said) in (0, 1)
        assert current(run).names and save_edit(run, dict(op='undo'))[0] == len(lines)+1
    else:
        choice = read_choice(run)
        made = [c['T'] for c in [*choice['before'], choice]]
        assert made[:len(said)] == [float(T) for _, T in said] and len(made) - len(said) in (0, 1)
        assert save_choice(run, T=.5)[0] == len(made)+1
    assert len(said) >= 1


# No room, no newline, broken lines

@pytest.mark.parametrize('room', [0, 1, 30])
def test_a_full_disk_leaves_the_edits_as_they_were(tmp_path, room):
    run = bare_run(tmp_path/'run')
    for c in (0, 1): save_edit(run, dict(op='drop', cluster=c))
    before = (run/'human/edits.jsonl').read_bytes()
    with no_room(len(before) + room), pytest.raises(UserError) as e: save_edit(run, dict(op='drop', cluster=2))
    assert one_line(e) and (run/'human/edits.jsonl').read_bytes() == before and current(run).dropped == {0, 1}
    assert save_edit(run, dict(op='drop', cluster=2), known=2)[0] == 3, 'with room again it is saved'


def test_a_full_disk_leaves_the_choice_as_it_was(tmp_path):
    run = bare_run(tmp_path/'run')
    save_choice(run, T=.25)
    before = (run/'human/choice.json').read_bytes()
    for act in (lambda: save_choice(run, T=.5), lambda: undo_choice(run)):
        with no_room(1), pytest.raises(UserError) as e: act()
        assert one_line(e) and (run/'human/choice.json').read_bytes() == before
    assert not [p for p in (run/'human').iterdir() if 'tmp' in p.name]


def test_a_full_disk_at_the_first_edit_is_no_edit(tmp_path):
    run = bare_run(tmp_path/'run')
    with no_room(5), pytest.raises(UserError) as e: save_edit(run, dict(op='drop', cluster=2))
    assert one_line(e) and read_edits(run) == [] and save_edit(run, dict(op='drop', cluster=2), known=0)[0] == 1


def test_a_file_without_a_final_newline_is_continued(tmp_path):
    run = bare_run(tmp_path/'run')
    (run/'human').mkdir()
    (run/'human/edits.jsonl').write_text('{"op": "drop", "cluster": 1}')
    n, p = save_edit(run, dict(op='drop', cluster=2), known=1)
    assert n == 2 and p.dropped == current(run).dropped == {1, 2} and len(lines_of(run)) == 2


def test_a_torn_last_line_without_newline_is_named_and_nothing_is_added(tmp_path):
    run = bare_run(tmp_path/'run')
    (run/'human').mkdir()
    (run/'human/edits.jsonl').write_text('{"op": "drop", "cluster": 1}\n{"op": "dr')
    with pytest.raises(UserError, match='line 2'): save_edit(run, dict(op='drop', cluster=2))
    assert (run/'human/edits.jsonl').read_text().endswith('"dr')


@pytest.mark.parametrize('data', [b'\xff\xfe{"op": "drop"}\n', 'Größe'.encode('latin-1') + b'\n'])
def test_edits_that_are_no_utf8_are_the_users_mistake(tmp_path, data):
    run = bare_run(tmp_path/'run')
    (run/'human').mkdir()
    for name, read in (('edits.jsonl', read_edits), ('choice.json', read_choice)):
        (run/'human'/name).write_bytes(data)
        with pytest.raises(UserError, match=name): read(run)


NAMES = st.text(st.characters(exclude_categories=('Cs',)), max_size=30)


@settings(max_examples=20, deadline=None)
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_any_name_comes_back_as_it_was_given(tmp_path_factory, names):
    run = bare_run(tmp_path_factory.mktemp('names'))
    for i, name in enumerate(names, 1): assert save_edit(run, dict(op='rename', cluster=0, name=name))[0] == i
    assert len(read_edits(run)) == len(names) and current(run).names == {0: names[-1]}


@pytest.mark.parametrize('end', ['\u2028', '\u2029', '\x85', '\x1c', '\x0b', '\r', '\n', '\x00'])
def test_a_name_with_an_exotic_end_of_line_does_not_break_the_file(tmp_path, end):
    run = bare_run(tmp_path/'run')
    save_edit(run, dict(op='rename', cluster=0, name=f'a{end}b'))
    assert len(read_edits(run)) == 1 and current(run).names == {0: f'a{end}b'}


def test_a_folder_where_the_lock_cannot_be_made_is_said_in_one_line(tmp_path):
    "As on a run that may only be read: nothing is saved, and it is said as a mistake that the widgets show."
    run = bare_run(tmp_path/'run')
    (run/'.human.lock').mkdir()
    for act in (lambda: save_edit(run, dict(op='drop', cluster=2)), lambda: save_choice(run, T=.5)):
        with pytest.raises(UserError) as e: act()
        assert one_line(e)


def test_a_file_that_cannot_be_opened_is_said_in_one_line(tmp_path):
    run = bare_run(tmp_path/'run')
    (run/'human').write_text('a file where a folder should be')
    for act in (lambda: save_edit(run, dict(op='drop', cluster=2)), lambda: save_choice(run, T=.5)):
        with pytest.raises(UserError): act()


# Refusals

@pytest.mark.parametrize('edit', [dict(op='drop', cluster=9), dict(op='rename', cluster=0), dict(op='move', ads=['zz'], cluster=0), dict(op='split', cluster=0, ads=['c']), dict(op='merge', clusters=[0, 9]),
                                  dict(op='eat'), dict(op='undo'), {}])
def test_a_refused_edit_is_not_written(tmp_path, edit):
    run = bare_run(tmp_path/'run')
    with pytest.raises(UserError): save_edit(run, edit)
    assert not (run/'human/edits.jsonl').exists()


def test_undo_with_nothing_left_to_undo(tmp_path):
    run = bare_run(tmp_path/'run')
    save_edit(run, dict(op='drop', cluster=0))
    assert save_edit(run, dict(op='undo'))[1].dropped == set()
    with pytest.raises(UserError, match='nothing to undo'): save_edit(run, dict(op='undo'))
    assert len(lines_of(run)) == 2
    with pytest.raises(UserError, match='no choice'): undo_choice(run)
    assert not (run/'human/choice.json').exists()


def test_what_one_has_not_seen_is_not_overwritten(tmp_path):
    run = bare_run(tmp_path/'run')
    for c in (0, 1): save_edit(run, dict(op='drop', cluster=c))
    with pytest.raises(Elsewhere, match='elsewhere'): save_edit(run, dict(op='undo'), known=0)
    (run/'human/edits.jsonl').write_text('')
    with pytest.raises(Elsewhere) as e: save_edit(run, dict(op='drop', cluster=2), known=2)
    assert '-2' not in str(e.value), 'lines that were taken out are no negative number of operations'


def relabel(run, cluster, **other): write_table(RAW.assign(cluster=np.array(cluster), **other), run/'31_selflabel/assignments.parquet')


def test_edits_are_carried_to_other_clusters_and_those_of_the_old_ones_saved_no_more(tmp_path):
    run, old = bare_run(tmp_path/'run'), base_of(RAW)
    save_edit(run, dict(op='drop', cluster=1))
    assert read_base(run, old).equals(RAW[['ad_id', 'cluster']])
    relabel(run, [3, 3, 2, 2, 1, 1, 0, 0])
    assert current(run).dropped == {2} and current(run).carried == {old: 1}
    with pytest.raises(Elsewhere, match='anew'): save_edit(run, dict(op='drop', cluster=2), base=old)
    assert save_edit(run, dict(op='drop', cluster=0), known=1)[1].dropped == {0, 2} and len(list((run/'human/bases').iterdir())) == 2
    write_table(RAW, run/'31_selflabel/assignments.parquet')
    assert current(run).dropped == {1, 3}, 'the old clusters are back, and both edits speak of them'


def test_a_conflict_is_refused_with_its_line_until_undone(tmp_path):
    run = bare_run(tmp_path/'run')
    for c in (1, 0): save_edit(run, dict(op='drop', cluster=c))
    relabel(run, [0, 1, 2, 2, 0, 1, 3, 3])
    before = (run/'human/edits.jsonl').read_bytes()
    with pytest.raises(UserError, match=r'edits.jsonl line 2: .* cluster 0 \(2 ads\) has scattered: its ads lie in clusters 0 \(1\), 1 \(1\)'): current(run)
    with pytest.raises(UserError, match='not saved: .*line 2'): save_edit(run, dict(op='drop', cluster=2))
    assert (run/'human/edits.jsonl').read_bytes() == before
    assert save_edit(run, dict(op='undo'))[1].dropped == {2}


@pytest.mark.parametrize('how', ['missing', 'none', 'no text', 'a path'])
def test_edits_of_clusters_that_nobody_kept_are_refused(tmp_path, how):
    run = bare_run(tmp_path/'run')
    save_edit(run, dict(op='drop', cluster=1))
    line, (kept,) = lines_of(run)[0], (run/'human/bases').iterdir()
    relabel(run, [3, 3, 2, 2, 1, 1, 0, 0])
    if how == 'missing': kept.unlink()
    else: (run/'human/edits.jsonl').write_text(json.dumps(line | dict(base={'none': None, 'no text': [1], 'a path': f'../bases/{line["base"]}'}[how])) + '\n')
    with pytest.raises(UserError, match='line 1 was written for other clusters'): current(run)
    with pytest.raises(UserError, match='line 1'): save_edit(run, dict(op='drop', cluster=2))
    assert len(lines_of(run)) == 1


@pytest.mark.parametrize('data', [b'', b'PAR1', 'other'])
def test_damaged_assignments_are_named_and_not_believed(tmp_path, data):
    run = bare_run(tmp_path/'run')
    save_edit(run, dict(op='drop', cluster=1))
    (kept,) = (run/'human/bases').iterdir()
    if data == 'other': write_table(RAW.assign(cluster=0), kept)
    else: kept.write_bytes(data)
    assert current(run).dropped == {1}, 'on the same clusters they are not needed'
    relabel(run, [3, 3, 2, 2, 1, 1, 0, 0])
    with pytest.raises(UserError, match=kept.name): current(run)


def test_a_crash_between_assignments_and_line_is_no_edit(tmp_path, monkeypatch):
    "And one before the assignments are kept neither; what is left behind does no harm."
    run = bare_run(tmp_path/'run')
    def crash(*given): raise KeyboardInterrupt
    for name, left in (('write_table', 0), ('append_line', 1)):
        with monkeypatch.context() as m:
            m.setattr(clusters, name, crash)
            with pytest.raises(KeyboardInterrupt): save_edit(run, dict(op='drop', cluster=1))
        assert read_edits(run) == [] and len(list((run/'human').glob('bases/*'))) == left and current(run).dropped == set()
    (run/f'human/bases/{base_of(RAW)}.parquet.7.tmp').write_bytes(b'half')
    assert save_edit(run, dict(op='drop', cluster=1), known=0)[0] == 1
    relabel(run, [3, 3, 2, 2, 1, 1, 0, 0])
    assert current(run).dropped == {2}


def test_without_room_for_the_assignments_nothing_is_saved(tmp_path):
    run = bare_run(tmp_path/'run')
    with no_room(300), pytest.raises(UserError) as e: save_edit(run, dict(op='drop', cluster=1))
    assert one_line(e) and not (run/'human/edits.jsonl').exists() and not list((run/'human/bases').iterdir())


def test_a_killed_writer_leaves_edits_that_can_be_carried_over(tmp_path):
    run = bare_run(tmp_path/'run')
    writer = start(EDITOR, run, 'a', 100_000)
    writer.stdout.readline()
    time.sleep(np.random.default_rng().uniform(0, .1))
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    relabel(run, [3, 3, 2, 2, 1, 1, 0, 0])
    assert current(run).names == {3: lines_of(run)[-1]['name']}


def test_the_base_names_ids_and_clusters_and_nothing_else():
    assert base_of(RAW) == base_of(RAW.assign(confidence=0.).astype({'cluster': 'int64'})) == base_of(RAW.astype({'cluster': 'int16'}))
    for other in (RAW[::-1], RAW.assign(cluster=0), RAW.assign(ad_id=list('abcdefgi')), RAW[:7]): assert base_of(other) != base_of(RAW)


# Whatever somebody does: what is saved is what is replayed

EDITS = st.one_of(st.builds(lambda o, c: dict(op=o, cluster=c), st.sampled_from(['drop', 'restore']), st.integers(0, 6)), st.builds(lambda c, n: dict(op='rename', cluster=c, name=n), st.integers(0, 6), NAMES),
                  st.builds(lambda a, b: dict(op='merge', clusters=[a, b]), st.integers(0, 6), st.integers(0, 6)), st.builds(lambda a, c: dict(op='move', ads=a, cluster=c), st.lists(st.sampled_from('abcdefgh')), st.integers(0, 6)),
                  st.builds(lambda a, c: dict(op='split', ads=a, cluster=c), st.lists(st.sampled_from('abcdefgh')), st.integers(0, 6)), st.just(dict(op='undo')))


@settings(max_examples=20, deadline=None)
@given(st.lists(EDITS, max_size=8))
def test_the_file_says_what_the_saver_said(tmp_path_factory, edits):
    run, accepted = bare_run(tmp_path_factory.mktemp('edits')), []
    for edit in edits:
        try: n, p = save_edit(run, edit, known=len(accepted))
        except UserError: continue
        accepted.append(edit)
        now = current(run)
        assert n == len(accepted) and p.table.equals(now.table) and (p.names, p.dropped) == (now.names, now.dropped)
        assert p.table.ad_id.tolist() == RAW.ad_id.tolist()
    bare = replay(RAW, accepted)
    assert current(run).table.equals(bare.table) and len(standing(accepted)) == len(standing(read_edits(run)))


@settings(max_examples=20, deadline=None)
@given(st.lists(st.one_of(st.just(None), st.dictionaries(st.sampled_from(['T', 'kept', 'order', 'curriculum']), st.none() | st.sampled_from([1, 2]), min_size=1)), max_size=7))
def test_choices_go_back_one_by_one(tmp_path_factory, acts):
    "None takes back; the oracle is a stack."
    values = dict(T=lambda v: v/10, kept=lambda v: [v], order=lambda v: [v, 0], curriculum='cc pc'.split()[0:2].__getitem__)
    run, stack = bare_run(tmp_path_factory.mktemp('choices')), [{}]
    for act in acts:
        if act is None:
            if len(stack) == 1:
                with pytest.raises(UserError): undo_choice(run)
                continue
            stack.pop()
            n, now = undo_choice(run, read_choice(run))
        else:
            new = {k: None if v is None else values[k](v if k != 'curriculum' else v-1) for k, v in act.items()}
            stack.append({k: v for k, v in (stack[-1] | new).items() if v is not None})
            n, now = save_choice(run, read_choice(run), **new)
        assert now == read_choice(run) and n == len(stack)-1 and {k: v for k, v in now.items() if k not in ('author', 'at', 'before', 'base', 'partition')} == stack[-1]


def test_a_choice_that_one_has_not_seen_is_not_replaced(tmp_path):
    run = bare_run(tmp_path/'run')
    _, seen = save_choice(run, {}, T=.2)
    _, now = save_choice(run, seen, T=.3)
    for act in (lambda: save_choice(run, seen, T=.4), lambda: undo_choice(run, seen), lambda: save_choice(run, {}, T=.4)):
        with pytest.raises(Elsewhere): act()
    assert read_choice(run) == now


def test_a_choice_of_a_hand_can_be_undone(tmp_path):
    run = bare_run(tmp_path/'run')
    write_json({'order': [1, 0], 'kept': None}, run/'human/choice.json')
    assert save_choice(run, T=.2)[0] == 2 and undo_choice(run)[1] == {'order': [1, 0]} and undo_choice(run) == (0, {}) and read_choice(run) == {}


@pytest.mark.parametrize('before', [[5], [{'kept': 'x'}], ['{}']])
def test_a_broken_past_is_named_and_not_restored(tmp_path, before):
    run = bare_run(tmp_path/'run')
    write_json({'T': .2, 'before': before}, run/'human/choice.json')
    with pytest.raises(UserError, match='choice.json'): undo_choice(run)
    assert json.loads((run/'human/choice.json').read_text())['T'] == .2


def test_fifty_thousand_ads_are_moved_within_seconds(tmp_path):
    ids = [f'{i:016x}' for i in range(60_000)]
    run, began = bare_run(tmp_path/'run', pd.DataFrame(dict(ad_id=ids, cluster=np.arange(60_000) % 50, confidence=.5))), time.process_time()
    n, p = save_edit(run, dict(op='move', ads=ids[:50_000], cluster=7))
    assert n == 1 and (p.table.cluster[:50_000] == 7).all() and current(run).table.equals(p.table) and time.process_time()-began < 4


def test_append_line_is_durable_when_it_returns(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, 'fsync', lambda fd: synced.append(os.fstat(fd).st_size))
    append_line(tmp_path/'x.jsonl', dict(a='é'))
    assert synced == [len('{"a": "é"}\n'.encode())]


def test_numbers_of_numpy_are_numbers(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    ads = read_table(run/'31_selflabel/assignments.parquet')
    lines, p = save_edit(run, dict(op='drop', cluster=ads.cluster.values[0]))
    lines, p = save_edit(run, dict(op='move', ads=ads.ad_id.values[:2], cluster=ads.cluster.values[-1]))
    assert lines == 2 and p.table.cluster[0] == ads.cluster.values[-1] and json.loads((run/'human/edits.jsonl').read_text().splitlines()[0])['cluster'] == ads.cluster[0]


# A choice and another self-labelling

def label(run, cluster):
    "Another self-labelling of the run, and the clusters that follow from it and the edits."
    relabel(run, cluster)
    write_table(current(run).table, run/'32_clusters/partition.parquet')


def test_a_choice_notes_the_clusters_that_it_speaks_of(tmp_path):
    run = bare_run(tmp_path/'run')
    assert not {'base', 'partition'} & set(save_choice(run, T=.3)[1]), 'a threshold speaks of none'
    save_edit(run, dict(op='merge', clusters=[0, 1]))
    _, choice = save_choice(run, kept=[0, 3])
    assert choice['base'] == base_of(RAW) and choice['partition'] == base_of(current(run).table) != choice['base'] and choice['T'] == .3
    assert read_base(run, choice['partition']).cluster.tolist() == [0, 0, 0, 0, 2, 2, 3, 3] and not {'base', 'partition'} & set(save_choice(run, kept=None)[1])


def test_a_choice_is_carried_to_other_clusters_and_back(tmp_path):
    run = bare_run(tmp_path/'run')
    save_choice(run, kept=[0, 3], order=[3, 0])
    write_table(RAW, run/'32_clusters/partition.parquet')
    assert chosen(run) == read_choice(run), 'on the same clusters nothing changes'
    label(run, [2, 2, 3, 3, 0, 0, 1, 1])
    assert (chosen(run)['kept'], chosen(run)['order']) == ([2, 1], [1, 2]) and read_choice(run)['kept'] == [0, 3], 'the file says what was written'
    _, now = save_choice(run, T=.2)
    assert (now['kept'], now['order'], now['T']) == ([2, 1], [1, 2], .2) and now['base'] == base_of(read_table(run/'31_selflabel/assignments.parquet')) and chosen(run) == now
    assert undo_choice(run)[1]['kept'] == [0, 3] and chosen(run)['kept'] == [2, 1], 'the choice before speaks of the clusters of its time'


def test_an_edit_after_the_choice_changes_no_number(tmp_path):
    run = bare_run(tmp_path/'run')
    save_choice(run, kept=[0, 3])
    save_edit(run, dict(op='move', ads=['c', 'd'], cluster=0))
    write_table(current(run).table, run/'32_clusters/partition.parquet')
    assert chosen(run)['kept'] == [0, 3]


@pytest.mark.parametrize('key', ['kept', 'order'])
def test_a_number_without_counterpart_is_named(tmp_path, key):
    run = bare_run(tmp_path/'run')
    save_choice(run, **{key: [0, 3]})
    before = (run/'human/choice.json').read_bytes()
    label(run, [0, 1, 1, 2, 2, 3, 3, 3]) # cluster 0's two ads lie apart
    for act in (lambda: chosen(run), lambda: save_choice(run, T=.5)):
        with pytest.raises(UserError, match=f'"{key}" names 0: cluster 0 .* scattered.*choose "{key}" again') as e: act()
        assert '\n' not in str(e.value)
    assert (run/'human/choice.json').read_bytes() == before, 'nothing is lost'
    assert save_choice(run, **{key: [3]})[1][key] == [3] == chosen(run)[key]


def test_a_choice_of_a_hand_without_base_keeps_its_numbers(tmp_path):
    run = bare_run(tmp_path/'run')
    write_json(dict(kept=[0, 3]), run/'human/choice.json')
    assert chosen(run) == dict(kept=[0, 3])
    label(run, [2, 2, 3, 3, 0, 0, 1, 1])
    assert chosen(run) == dict(kept=[0, 3])


@pytest.mark.parametrize('how', ['missing', 'damaged', 'a path', 'none'])
def test_clusters_that_nobody_kept_are_named(tmp_path, how):
    run = bare_run(tmp_path/'run')
    _, choice = save_choice(run, kept=[0, 3])
    kept = run/f'human/bases/{choice["partition"]}.parquet'
    label(run, [2, 2, 3, 3, 0, 0, 1, 1])
    if how == 'missing': kept.unlink()
    elif how == 'damaged': kept.write_bytes(b'PAR1')
    else: write_json({k: v for k, v in (choice | dict(partition='../bases/x')).items() if how == 'a path' or k != 'partition'}, run/'human/choice.json')
    with pytest.raises(UserError, match='damaged' if how == 'damaged' else 'those were not kept; choose again'): chosen(run)


def by_hand(c, old, new):
    "The cluster that holds most of c's ads that are left, when these are most of its own; None where there is none."
    left = [new[ad] for ad, cluster in old.items() if cluster == c and ad in new]
    for now in set(left):
        if 2*left.count(now) > len(left) and 2*left.count(now) > list(new.values()).count(now): return now


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.booleans()), min_size=1, max_size=30), st.permutations(range(5)), st.data())
def test_numbers_are_carried_as_by_hand(ads, names, data):
    "Each ad: its cluster then, whether it stays there or goes anywhere; clusters get other names."
    old = {f'a{i}': c for i, (c, _, _) in enumerate(ads)}
    new = {f'a{i}': names[other if moved and i % 3 == 0 else c] for i, (c, other, moved) in enumerate(ads) if i % 7}
    if not new: return
    kept = data.draw(st.lists(st.sampled_from(sorted(set(old.values()))), min_size=1, unique=True))
    wanted, table = [by_hand(c, old, new) for c in kept], pd.DataFrame(dict(ad_id=list(new), cluster=list(new.values())))
    then = pd.DataFrame(dict(ad_id=list(old), cluster=list(old.values())))
    def carry(): return translated(dict(kept=kept, T=.2, base='then', partition='p'), 'now', table, dict(p=then).get)
    if None in wanted:
        with pytest.raises(UserError, match=f'"kept" names {kept[wanted.index(None)]}: '): carry()
    else: assert carry() == dict(kept=wanted, T=.2, base='then', partition='p') and len(set(wanted)) == len(wanted)
