"Orders, dealing and batches: what every epoch must and must not feed."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subtask_kit.artifacts import open_run, read_json, write_json, write_table
from subtask_kit.core import UserError
from subtask_kit.curriculum import ORDERS, PACES, Curriculum, batches, composition, deal, order, order_clusters

TABLE = pd.DataFrame(dict(cluster=[4, 0, 7, 2], size=[9, 9, 9, 9], kept=[True, True, False, True], confidence=[.2, .9, .1, .5], teacher_val_npv=[.7, .6, .9, .8]))


def feed(order, cluster_of, defective, acceptable, batch=8, seed=0, epoch=0, how='shared', pace='strict', epochs=1):
    return batches(order, cluster_of, defective, acceptable, batch, seed, epoch, how, pace, epochs)


def as_pairs(epoch): return [(int(r), int(c)) for rows, clusters in epoch for r, c in zip(rows, clusters, strict=True)]


@st.composite
def worlds(draw):
    "Kept clusters in some order; defective rows, a few of them in clusters that are not kept; rows in no order."
    order = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6, unique=True))
    cluster_of = np.array([order[0], *draw(st.lists(st.integers(0, 9), max_size=40))])
    n_a = draw(st.integers(0, 60))
    rows = np.random.default_rng(draw(st.integers(0, 99))).permutation(1000)[:len(cluster_of)+n_a]
    return order, cluster_of, rows[:len(cluster_of)], rows[len(cluster_of):]


@settings(max_examples=150, deadline=None)
@given(worlds(), st.sampled_from(['mixed', 'strict', 'shuffled', 'paced']), st.integers(1, 20), st.integers(0, 3))
def test_shared_feeds_every_row_once(world, pace, batch, epoch):
    order, cluster_of, defective, acceptable = world
    pairs = as_pairs(feed(*world, batch=batch, epoch=epoch, pace=pace)) # of one epoch: in `paced` all have joined
    own = dict(zip(defective.tolist(), cluster_of.tolist()))
    wanted = [r for r, c in own.items() if c in order] + acceptable.tolist()
    assert sorted(r for r, c in pairs) == sorted(wanted)
    assert all(c == own[r] for r, c in pairs if r in own) and all(c in order for r, c in pairs)


@settings(max_examples=100, deadline=None)
@given(worlds(), st.sampled_from(['mixed', 'strict', 'shuffled', 'paced']), st.integers(1, 20))
def test_repeated_feeds_acceptable_rows_once_a_sub_task(world, pace, batch):
    order, cluster_of, defective, acceptable = world
    pairs = as_pairs(feed(*world, batch=batch, how='repeated', pace=pace))
    assert sorted((r, c) for r, c in pairs if r in set(acceptable.tolist())) == sorted((r, c) for r in acceptable.tolist() for c in order)
    assert sorted(r for r, c in pairs if r in set(defective.tolist())) == sorted(defective[np.isin(cluster_of, order)].tolist())


@settings(max_examples=100, deadline=None)
@given(worlds(), st.integers(1, 20), st.sampled_from(['shared', 'repeated']))
def test_strict_order_and_batch_sizes(world, batch, how):
    epoch = feed(*world, batch=batch, how=how)
    assert all(len(set(clusters.tolist())) == 1 for _, clusters in epoch) # a batch belongs to one sub-task
    seen = list(dict.fromkeys(c for _, c in as_pairs(epoch)))
    assert seen == [c for c in world[0] if c in seen]
    runs = [clusters[0] for _, clusters in epoch]
    assert sum(a != b for a, b in zip(runs, runs[1:])) == len(seen)-1 # no sub-task comes back
    for c in seen:
        sizes = [len(rows) for rows, clusters in epoch if clusters[0] == c]
        assert max(sizes) <= batch and max(sizes)-min(sizes) <= 1 and len(sizes) == -(-sum(sizes)//batch)


@settings(max_examples=50, deadline=None)
@given(worlds(), st.integers(1, 20), st.sampled_from(['shared', 'repeated']), st.sampled_from(['mixed', 'paced']))
def test_interleaved_batches_are_even(world, batch, how, pace):
    sizes = [len(rows) for rows, _ in feed(*world, batch=batch, how=how, pace=pace, epochs=5)]
    assert max(sizes) <= batch and max(sizes)-min(sizes) <= 1 and len(sizes) == -(-sum(sizes)//batch)


WORLD = [3, 0, 5], np.repeat([0, 3, 5, 8], 50), np.arange(200), np.arange(200, 800)


def same(a, b): return len(a) == len(b) and all(np.array_equal(x, y) for p, q in zip(a, b) for x, y in zip(p, q))


@pytest.mark.parametrize('pace', PACES)
@pytest.mark.parametrize('how', ['shared', 'repeated'])
def test_seed_and_epoch_decide(pace, how):
    epoch = feed(*WORLD, how=how, pace=pace)
    assert same(epoch, feed(*WORLD, how=how, pace=pace))
    assert not same(epoch, feed(*WORLD, how=how, pace=pace, epoch=1)) and not same(epoch, feed(*WORLD, how=how, pace=pace, seed=1))


def test_the_global_random_state_is_left_alone():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    feed(*WORLD)
    assert np.array_equal(before, np.random.get_state()[1])


def test_a_reversed_order_feeds_the_same_batches():
    forth, back = feed(*WORLD), feed(WORLD[0][::-1], *WORLD[1:])
    assert not same(forth, back) and {r.tobytes() for r, c in forth} == {r.tobytes() for r, c in back}


def test_shuffled_feeds_the_blocks_of_a_strict_order_in_ever_new_orders():
    def seen(epoch): return list(dict.fromkeys(c for _, c in as_pairs(epoch)))
    found = set()
    for e in range(30):
        strict, shuffled = feed(*WORLD, epoch=e), feed(*WORLD, pace='shuffled', epoch=e)
        assert {r.tobytes() for r, c in strict} == {r.tobytes() for r, c in shuffled} and len(strict) == len(shuffled)
        tasks = [c[0] for _, c in shuffled]
        assert sum(a != b for a, b in zip(tasks, tasks[1:])) == 2
        found.add(tuple(seen(shuffled)))
    assert len(found) == 6


@settings(max_examples=100, deadline=None)
@given(worlds(), st.integers(1, 9), st.integers(1, 20))
def test_in_paced_sub_tasks_join_in_order_and_stay(world, epochs, batch):
    whole = {c for _, c in as_pairs(feed(*world))}
    order, before = [c for c in world[0] if c in whole], 0
    for epoch in range(epochs):
        pairs = as_pairs(feed(*world, batch=batch, epoch=epoch, pace='paced', epochs=epochs))
        joined = {c for _, c in pairs}
        assert joined == set(order[:len(joined)]) and len(joined) >= max(1, before)
        assert sorted(pairs) == sorted(p for p in as_pairs(feed(*world, epoch=epoch)) if p[1] in joined) # what a strict order gives them
        assert len(joined) == len(order) or 2*(epoch+1) < epochs
        before = len(joined)
    assert before == len(order)


def test_paced_joins_evenly_and_mixes():
    world = list(range(6)), np.repeat(np.arange(6), 20), np.arange(120), np.arange(120, 480)
    joined = [len({c for _, c in as_pairs(feed(*world, epoch=e, pace='paced', epochs=12))}) for e in range(12)]
    assert joined == [1, 2, 3, 4, 5, 6, 6, 6, 6, 6, 6, 6]
    assert all(len(set(clusters.tolist())) == 3 for _, clusters in feed(*world, batch=60, epoch=2, pace='paced', epochs=12))


@settings(max_examples=100, deadline=None)
@given(worlds(), st.integers(1, 20), st.integers(0, 3))
def test_rehearsed_repeats_defective_ads_of_earlier_blocks_with_their_own_teacher(world, batch, epoch):
    order, cluster_of, defective, acceptable = world
    own, size = dict(zip(defective.tolist(), cluster_of.tolist())), {c: int((cluster_of == c).sum()) for c in order}
    fed = feed(*world, batch=batch, epoch=epoch, pace='rehearsed')
    once, fed_defective = {r for r, c in own.items() if c in order}, [(r, c) for r, c in as_pairs(fed) if r in own]
    assert {r for r, _ in fed_defective} == once and all(c == own[r] for r, c in fed_defective)
    assert sorted(r for r, c in as_pairs(fed) if r not in own) == sorted(acceptable.tolist())
    sizes = [size[c] for c in order]
    assert len(fed_defective) == len(once) + sum(min(s, sum(sizes[:i])) for i, s in enumerate(sizes))


def test_rehearsed_blocks_keep_their_balance():
    for how in ('shared', 'repeated'):
        fed = composition(feed(*WORLD, batch=10**6, how=how, pace='rehearsed'), WORLD[2])
        t = fed.assign(block=fed.batch).groupby('block')[['defective', 'acceptable']].sum()
        assert t.defective.tolist() == [50, 100, 100] and t.acceptable.tolist() == ([120, 240, 240] if how == 'shared' else [600]*3)
        assert fed.groupby('batch').cluster.agg(set).tolist() == [{3}, {3, 0}, {0, 3, 5}]
        assert fed[(fed.batch == 1) & (fed.cluster == 3)].acceptable.tolist() == [0] # an acceptable ad is judged by the block's own teacher


@pytest.mark.parametrize('pace', PACES)
def test_no_batch_is_empty(pace):
    world = [1, 2, 3], np.array([2, 2, 3]), np.array([7, 9, 8]), np.array([4]) # nothing is in the first sub-task
    for epoch in range(4): assert all(len(rows) for rows, _ in feed(*world, batch=2, epoch=epoch, pace=pace, epochs=4)) and feed(*world, epoch=epoch, pace=pace, epochs=4)


def test_interleaving_mixes_sub_tasks_and_classes():
    epoch = feed(*WORLD, batch=50, pace='mixed')
    assert all(set(clusters.tolist()) == {0, 3, 5} for _, clusters in epoch)
    assert all(2 < (rows < 200).sum() < 25 for rows, _ in epoch) # a fifth of each batch, give or take


def test_dealing_changes_by_epoch_and_visits_all_sub_tasks():
    tasks = np.zeros((20, 600), int)
    for epoch in range(20):
        for c, rows in deal(np.arange(600), {0: 50, 3: 50, 5: 50}, 0, epoch).items(): tasks[epoch, rows] = c
    assert np.mean([len(set(t)) for t in tasks.T]) > 2.9
    assert np.abs((tasks == 3).mean(0)-1/3).mean() < .15


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(0, 30), st.integers(0, 50), min_size=1, max_size=8), st.integers(0, 200), st.integers(0, 5))
def test_dealing_is_a_partition_in_proportion(sizes, n, epoch):
    if not sum(sizes.values()):
        with pytest.raises(UserError): deal(np.arange(n), sizes, 0, epoch)
        return
    dealt = deal(np.arange(n), sizes, 0, epoch)
    assert sorted(np.concatenate(list(dealt.values())).tolist()) == list(range(n)) and set(dealt) == set(sizes)
    assert all(abs(len(dealt[c])-n*s/sum(sizes.values())) <= 1 for c, s in sizes.items())
    reverse = dict(reversed(sizes.items()))
    assert all(np.array_equal(dealt[c], r) for c, r in deal(np.arange(n), reverse, 0, epoch).items())


def test_edges():
    one = feed([2], np.array([2, 2]), np.array([7, 9]), np.array([1, 3, 5]), batch=2)
    assert sorted(as_pairs(one)) == [(1, 2), (3, 2), (5, 2), (7, 2), (9, 2)] and [len(r) for r, c in one] == [2, 2, 1]
    assert as_pairs(feed([2], np.array([2]), np.array([7]), np.array([], int))) == [(7, 2)]
    empty = feed([1, 2], np.array([2, 2]), np.array([7, 9]), np.array([4]))
    assert {c for _, c in as_pairs(empty)} == {2} # a sub-task without ads gets no batch
    assert sorted(as_pairs(feed([1, 2], np.array([2]), np.array([7]), np.array([4]), how='repeated'))) == [(4, 1), (4, 2), (7, 2)]
    for wrong in ([], [2, 2]):
        with pytest.raises(UserError, match='not an order'): feed(wrong, np.array([2]), np.array([7]), np.array([4]))
    with pytest.raises(UserError, match='no defective ad'): feed([1], np.array([2]), np.array([7]), np.array([4]))
    with pytest.raises(UserError, match='shared or repeated'): feed([2], np.array([2]), np.array([7]), np.array([4]), how='all')
    with pytest.raises(UserError, match='use one of mixed, strict'): feed([2], np.array([2]), np.array([7]), np.array([4]), pace='slow')


def test_paper_size_is_quick():
    import time
    rng, start = np.random.default_rng(0), time.process_time()
    for pace in PACES: feed(list(range(100)), rng.integers(0, 100, 2500), np.arange(2500), np.arange(2500, 17500), batch=64, pace=pace)
    assert time.process_time()-start < 2


def test_orders():
    assert order_clusters('cc', TABLE) == [4, 2, 0] and order_clusters('acc', TABLE) == [0, 2, 4]  # section 5.3: CC increases
    assert order_clusters('pc', TABLE) == [0, 4, 2] and order_clusters('apc', TABLE) == [2, 4, 0]
    assert order_clusters('interleaved', TABLE) == [0, 2, 4]
    assert order_clusters('hand', TABLE, [7, 2, 0, 4]) == [2, 0, 4] # what is no longer kept is passed over
    assert all(type(c) is int for name in ORDERS for c in order_clusters(name, TABLE, [0, 2, 4]))
    ties = TABLE.assign(confidence=.5)
    assert order_clusters('cc', ties) == order_clusters('cc', ties.sample(frac=1, random_state=1)) == [0, 2, 4]


def test_orders_that_cannot_be():
    with pytest.raises(UserError, match='not known'): order_clusters('random', TABLE)
    with pytest.raises(UserError, match='needs an order'): order_clusters('hand', TABLE)
    with pytest.raises(UserError, match=r'lacks the kept clusters \[0, 2\]'): order_clusters('hand', TABLE, [4])
    holes = TABLE.assign(confidence=[.1, None, None, .2])
    with pytest.raises(UserError, match=r'\[0\] have no confidence'): order_clusters('cc', holes) # 7 is not kept: its hole does not matter
    assert order_clusters('pc', holes) == [0, 4, 2]


@pytest.fixture
def run(tmp_path):
    run = open_run(tmp_path)
    write_table(TABLE, run/'34_select/competence.parquet')
    write_json({'outputs': {'competence.parquet': {'sha256': 'x'}}}, run/'34_select/manifest.json')
    return run


def test_stage(run):
    for method in ('interleaved', 'cc', 'apc'):
        order(Curriculum(method=method), run)
        written = read_json(run/'35_curriculum/curriculum.json')
        assert written['order'] == order_clusters(method, TABLE) and (written['method'], written['by']) == (method, 'rule')
    assert written['scores'] == {'2': .8, '4': .7, '0': .6}
    assert written['pace'] == 'strict'
    order(Curriculum(acceptable="repeated"), run)
    assert read_json(run/'35_curriculum/curriculum.json') == dict(method='interleaved', order=[0, 2, 4], scores={}, by='rule', acceptable="repeated", pace='mixed')
    for pace in PACES:
        order(Curriculum(method='cc', pace=pace), run)
        assert read_json(run/'35_curriculum/curriculum.json')['pace'] == pace


def test_a_persons_order_goes_first(run):
    order(Curriculum(method='cc'), run)
    write_json({'order': [2, 4, 0]}, run/'human/choice.json')
    assert order(Curriculum(method='cc'), run)['why'] == ['inputs.human/choice.json']
    assert read_json(run/'35_curriculum/curriculum.json') == dict(method='hand', order=[2, 4, 0], scores={}, by='person', acceptable='shared', pace='strict')
    for wrong, match in (([2, 4], 'lacks'), ([2, 4, 0, 99], 'do not exist')):
        write_json({'order': wrong}, run/'human/choice.json')
        with pytest.raises(UserError, match=match): order(Curriculum(), run)


def test_stage_refuses_unknown_names(run):
    for cfg in (Curriculum(method='random'), Curriculum(method='hand'), Curriculum(acceptable='all'), Curriculum(method='cc', pace='slow')):
        with pytest.raises(UserError): order(cfg, run)


def test_a_pace_needs_an_order(run):
    with pytest.raises(UserError, match='there is no order'): order(Curriculum(pace='paced'), run)
    for choice, pace in ((dict(curriculum='pc'), 'paced'), (dict(curriculum='interleaved'), 'mixed')): # the order is a person's, the pace the configuration's
        write_json(choice, run/'human/choice.json')
        order(Curriculum(pace='paced'), run)
        assert read_json(run/'35_curriculum/curriculum.json')['pace'] == pace


@settings(max_examples=100, deadline=None)
@given(worlds(), st.sampled_from(list(PACES)), st.integers(1, 20), st.sampled_from(['shared', 'repeated']))
def test_composition_counts_what_is_fed(world, pace, batch, how):
    epoch = feed(*world, batch=batch, how=how, pace=pace, epochs=4)
    t, bad = composition(epoch, world[2]), set(world[2].tolist())
    assert list(t.columns) == ['batch', 'cluster', 'defective', 'acceptable'] and not t.duplicated(['batch', 'cluster']).any()
    want = {}
    for b, (rows, clusters) in enumerate(epoch):
        for r, c in zip(rows.tolist(), clusters.tolist()): want.setdefault((b, c), [0, 0])[r not in bad] += 1
    assert {(b, c): [d, a] for b, c, d, a in t.itertuples(index=False)} == want
    assert t.groupby('batch')[['defective', 'acceptable']].sum().sum(axis=1).tolist() == [len(rows) for rows, _ in epoch]


def test_a_persons_curriculum_outweighs_an_order_and_the_parameters(run):
    for choice, method, clusters in ((dict(curriculum='cc'), 'cc', [4, 2, 0]), (dict(curriculum='pc', order=[4, 0, 2]), 'pc', [0, 4, 2]), (dict(curriculum='hand', order=[4, 0, 2]), 'hand', [4, 0, 2]),
                                     (dict(order=[4, 0, 2]), 'hand', [4, 0, 2]), (dict(curriculum='interleaved'), 'interleaved', [0, 2, 4])):
        write_json(choice, run/'human/choice.json')
        order(Curriculum(method='apc'), run)
        written = read_json(run/'35_curriculum/curriculum.json')
        assert (written['method'], written['order'], written['by']) == (method, clusters, 'person')
    for wrong in (dict(curriculum='random'), dict(curriculum='hand')):
        write_json(wrong, run/'human/choice.json')
        with pytest.raises(UserError): order(Curriculum(), run)
