"Routing the pool: gates, verdicts, edits, and no pool at all."
import json

import numpy as np
import pandas as pd
import pytest
from stages import again, copy_of
from subtask_kit.artifacts import open_run, read_json, read_manifest, read_table, read_tensors, write_table, write_tensors
from subtask_kit.core import UserError
from subtask_kit.pipeline import configure, run_stages
from subtask_kit.selflabel import load_labeller, route
from subtask_kit.unlabelled import (GATES, Unlabelled, edited_cluster, energy, gate_table, gated, imports, judge, main_defects, mean_margin, off_centre, price, routed_pool, sight, too_far,
                                    unlabelled)

TRAIN = pd.DataFrame(dict(cluster=[0]*101 + [1]*101, distance=-np.r_[np.linspace(0, 1, 101), np.linspace(.5, 1, 101)]))


def routed(*rows): return pd.DataFrame([dict(ad_id=str(i), cluster=c, confidence=p, distance=-p, margin=m) for i, (c, p, m) in enumerate(rows)])
def answers(table): return list(zip(table.used, table.verdict.fillna(9), table.why))


def test_gate_and_verdict():
    table = judge(routed((0, .06, -3.), (0, .04, -3.), (0, .9, -1.9), (0, .9, -2.1), (1, .51, -3.), (1, .53, 3.), (2, .99, -9.)), [0, 1], TRAIN, Unlabelled())
    sure, unsure, far, out = 'the teacher is sure of a defect', 'the teacher is not sure', 'too far from its cluster', 'its cluster is not kept'
    assert answers(table) == [(True, 0, sure), (False, 9, far), (True, 9, unsure), (True, 0, sure), (False, 9, far), (True, 9, unsure), (False, 9, out)]


def test_each_cluster_has_its_own_gate():
    assert judge(routed((0, .3, 0.), (1, .3, 0.)), [0, 1], TRAIN, Unlabelled()).used.tolist() == [True, False]


@pytest.mark.parametrize('q', [0., .05, .37, 1.])
def test_the_gate_on_confidence_is_a_quantile_of_the_members_confidences(q):
    "To the bit: an ad is out below it."
    rng = np.random.default_rng(0)
    own, ads = (pd.DataFrame(dict(cluster=rng.integers(0, 5, n), confidence=rng.random(n).astype('float32').astype('float64'))) for n in (120, 2000))
    ads.loc[:199] = own.sample(200, replace=True, random_state=0).values # right on a member
    ads = ads.astype(dict(cluster=int))
    near = own.groupby('cluster').confidence.quantile(q)
    found = too_far(*(t.assign(distance=GATES['confidence'](None, t, own)) for t in (ads, own)), q)
    assert found.equals(ads.confidence < ads.cluster.map(near)) and (q == 1 or 0 < found.sum() < 2000)


def test_a_cluster_without_members_shuts_nobody_out():
    assert not too_far(pd.DataFrame(dict(cluster=[7], distance=[1e9])), TRAIN, .5).any()


def test_options_of_the_gate():
    ads = routed((0, .04, -3.), (0, .5, 3.))
    assert judge(ads, [0], TRAIN, Unlabelled(quantile=0.)).used.all()
    assert judge(ads, [0], TRAIN, Unlabelled(quantile=1.)).used.sum() == 0
    assert judge(ads, [0], TRAIN, Unlabelled(hard=True)).verdict.fillna(9).tolist() == [9, 0], 'a hard verdict for every ad that is used, and for no other'
    assert judge(ads, [0], TRAIN, Unlabelled(sure=4., quantile=0.)).verdict.isna().all()


def test_an_ad_whose_cluster_has_no_teacher_is_not_used():
    for hard in (False, True):
        table = judge(routed((0, .5, np.nan), (0, .5, -3.)), [0], TRAIN, Unlabelled(hard=hard))
        assert answers(table) == [(False, 9, 'its cluster has no teacher'), (True, 0, 'the teacher is sure of a defect')]


def test_the_mean_margin_is_that_of_the_views_that_are_there():
    rng = np.random.default_rng(0)
    x = np.where(rng.random((50, 3)) < .3, np.nan, rng.normal(size=(50, 3)))
    x[:3] = np.nan
    assert np.isnan(mean_margin(x)[:3]).all() and np.allclose(mean_margin(x), pd.DataFrame(x).mean(axis=1), equal_nan=True) and mean_margin(x[:0]).shape == (0,)


def test_distances_are_what_they_are_called():
    "Against scipy, and against every member by hand."
    from scipy.special import log_softmax, logsumexp
    rng = np.random.default_rng(0)
    z, v, points, own, c, own_c = rng.normal(size=(30, 4))*300, rng.normal(size=4), rng.normal(size=(30, 6)), rng.normal(size=(50, 6)), rng.integers(0, 4, 30), rng.integers(0, 4, 50)
    assert np.allclose(energy(z), -logsumexp(z, 1)) and np.allclose(price(z, v), (-log_softmax(z, 1) - v).min(1)) and np.isfinite(energy(z)).all()
    assert np.allclose(off_centre(points, c, own, own_c), [np.sqrt(sum((x - own[own_c == k].sum(0)/sum(own_c == k))**2)) for x, k in zip(points, c)])
    assert np.isnan(off_centre(points[:1], [9], own, own_c)).all()


def test_what_is_added_to_all_logits_is_seen_by_the_energy_alone():
    z, v = np.random.default_rng(0).normal(size=(30, 4)), np.arange(4.)
    assert np.allclose(price(z + 7, v), price(z, v)) and np.allclose(energy(z + 7), energy(z) - 7)


def test_nothing_routed_is_no_trouble():
    table = judge(routed((0, .5, 0.)).iloc[:0], [0], TRAIN, Unlabelled())
    assert len(table) == 0 and {'used', 'verdict', 'why'} <= set(table)


def test_an_ad_follows_the_majority_of_its_cluster():
    raw, edited = pd.DataFrame(dict(ad_id=list('abcdef'), cluster=[0, 0, 0, 1, 1, 1])), pd.DataFrame(dict(ad_id=list('fedcba'), cluster=[0, 0, 0, 5, 5, 0]))
    assert edited_cluster(raw, edited) == {0: 5, 1: 0}


def test_the_runs_pool_is_routed_as_the_discriminator_says(micro_run):
    run = open_run(micro_run)
    table, rows = read_table(run/'36_unlabelled/routed.parquet'), read_table(run/'25_features/rows.parquet')
    pool = np.flatnonzero(rows.pool)
    p, cluster = (a.numpy() for a in route(run, pool).max(1))
    assert table.ad_id.tolist() == rows.ad_id[pool].tolist() and table.cluster.tolist() == cluster.tolist() and np.allclose(table.confidence, p)
    margins = read_tensors(run/'33_specialists/margins.safetensors')['margins'].astype(float)
    assert np.allclose(table.margin, [np.nanmean(margins[at, :, c]) for at, c in zip(pool, cluster)], atol=1e-6)
    metrics = read_json(run/'36_unlabelled/metrics.json')
    assert metrics['pool'] == len(pool) and metrics['used'] == table.used.sum() and not table.verdict[~table.used].notna().any()


def test_a_dropped_cluster_gives_nothing_and_a_merged_one_all(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    before = read_table(run/'36_unlabelled/routed.parquet')
    (run/'human').mkdir(exist_ok=True)
    (run/'human/edits.jsonl').write_text(json.dumps(dict(op='drop', cluster=1)) + '\n')
    again(run, 'unlabelled')
    table = read_table(run/'36_unlabelled/routed.parquet')
    assert not table.used[table.cluster == 1].any() and table.used[table.cluster != 1].equals(before.used[before.cluster != 1])
    (run/'human/edits.jsonl').write_text(json.dumps(dict(op='merge', clusters=[3, 1])) + '\n')
    again(run, 'unlabelled')
    assert read_table(run/'36_unlabelled/routed.parquet').cluster.tolist() == before.cluster.replace(1, 3).tolist()


@pytest.mark.filterwarnings('error')
def test_a_missing_teacher_gives_nothing_and_disturbs_nobody(micro_run, tmp_path):
    run, cfg = copy_of(micro_run, tmp_path/'run'), Unlabelled()
    before = read_table(run/'36_unlabelled/routed.parquet')
    stored, table = read_tensors(run/'33_specialists/margins.safetensors'), read_table(run/'34_select/competence.parquet')
    gone = int(before.cluster[before.used].mode()[0])
    stored['margins'][..., table.cluster.tolist().index(gone)] = np.nan
    write_tensors(stored, run/'33_specialists/margins.safetensors')
    (run/'36_unlabelled/manifest.json').unlink()
    unlabelled(cfg, run)
    after = read_table(run/'36_unlabelled/routed.parquet')
    assert not after.used[after.cluster == gone].any() and after.margin[after.cluster == gone].isna().all()
    pd.testing.assert_frame_equal(after[after.cluster != gone], before[before.cluster != gone])


def test_all_that_routing_can_read_is_named(micro_run):
    "Pooled features, tokens, or pixels, as the latent discriminator does; else a change of them went unseen."
    inputs = set(read_manifest(open_run(micro_run)/'36_unlabelled')['spec']['inputs'])
    assert {'25_features/pooled.npy', '25_features/tokens.npy', '13_curate/images.npy', '25_features/rows.parquet', '31_selflabel/latent_discriminator.safetensors'} <= inputs


def test_without_a_pool_the_chain_runs(micro, tmp_path):
    "Rows that want unlabelled ads then learn what the rows without them learn."
    run = open_run(tmp_path/'run', create=True)
    run_stages(run, configure('micro', {'curate_data': str(micro/'manifest.csv')}))
    assert len(read_table(run/'36_unlabelled/routed.parquet')) == 0 and (run/'report.html').exists()
    assert (run/'37_distill/ft_sd').exists() and not (run/'37_distill/ft_sd_ul').exists(), 'without a pool the row has nothing of its own'


@pytest.mark.parametrize('values', [dict(quantile=2), dict(quantile=-.1), dict(gate='door')])
def test_a_gate_that_is_none_is_refused(values):
    with pytest.raises(UserError): Unlabelled(**values)


@pytest.mark.parametrize('gate', GATES)
def test_every_gate_measures_the_pool_as_it_measures_the_members(micro_run, tmp_path, gate):
    run = copy_of(micro_run, tmp_path/'run')
    unlabelled(Unlabelled(gate=gate, quantile=.2), run)
    table, own, labeller = read_table(run/'36_unlabelled/routed.parquet'), read_table(run/'32_clusters/partition.parquet'), load_labeller(run.path)
    pool, members = (sight(run, t, gate == 'distance') for t in (table, own))
    if gate == 'confidence': expected = -table.confidence, -own.confidence
    elif gate == 'energy': expected = energy(pool), energy(members)
    elif gate == 'cost': expected = price(pool, labeller.duals.numpy()), price(members, labeller.duals.numpy())
    else: expected = off_centre(pool, table.cluster, members, own.cluster), off_centre(members, own.cluster, members, own.cluster)
    assert np.allclose(table.distance, expected[0])
    far = too_far(table.assign(distance=np.asarray(expected[0])), own.assign(distance=np.asarray(expected[1])), .2)
    assert far.any() and not far.all() and not table.used[far].any() and (table.why[~table.used] == 'too far from its cluster').any()


def test_the_gate_sees_what_routing_sees(micro_run):
    "The logits' softmax are the routing's probabilities; members' embeddings are the stored ones."
    run = open_run(micro_run)
    rows, own, table = read_table(run/'25_features/rows.parquet'), read_table(run/'31_selflabel/assignments.parquet'), read_table(run/'36_unlabelled/routed.parquet')
    z = sight(run, table)
    assert np.allclose(np.exp(z + energy(z)[:, None]), route(run, np.flatnonzero(rows.pool)).numpy(), atol=1e-6)
    assert np.allclose(sight(run, own, True), read_tensors(run/'31_selflabel/embeddings.safetensors')['embeddings'].astype(float), atol=1e-3)
    assert np.array_equal(sight(run, table.iloc[::-1])[::-1], z), 'by name and not by place'


@pytest.mark.parametrize('gate', GATES)
def test_no_pool_passes_every_gate(micro_run, gate):
    run = open_run(micro_run)
    assert len(gated(run, routed_pool(run).iloc[:0], Unlabelled(gate=gate))) == 0


def test_imports_are_counted_by_hand():
    why = dict(k='its cluster is not kept', f='too far from its cluster', u='the teacher is not sure', s='the teacher is sure of a defect')
    rows = [('right', 0, 's', 'drugs'), ('right lost', 0, 'f', 'drugs'), ('harmless', 0, 's', ''), ('harmless unsure', 0, 'u', ''), ('other', 0, 'u', 'guns'), ('harmless lost', 0, 'f', ''), ('not kept', 1, 'k', 'guns'),
            ('noise', 2, 's', ''), ('of noise', 2, 'u', 'guns')]
    judged = pd.DataFrame([dict(ad_id=a, cluster=c, margin=0., used=w in 'us', verdict=0 if w == 's' else pd.NA, why=why[w]) for a, c, w, _ in rows])
    truth, main = pd.Series({a: t for a, *_, t in rows}), pd.Series({0: 'drugs', 1: 'guns', 2: ''})
    found = imports(judged, truth, main)
    assert found == dict(reached=8, used=6, wrong=5/6, acceptable=3/6, other_defect=2/6, right=2, lost=1/2, verdicts=3, wrong_verdicts=2/3)
    nothing = imports(judged.assign(used=False, verdict=pd.NA), truth, main)
    assert nothing['used'] == 0 and np.isnan(nothing['wrong']) and nothing['lost'] == 1


def test_a_clusters_main_defect_is_its_most_frequent_truth():
    members = pd.DataFrame(dict(ad_id=list('abcdef'), cluster=[0, 0, 0, 4, 4, 4]))
    assert main_defects(members, pd.Series(dict(zip('fedcbax', ['', '', 'x', 'y', 'x', 'y', 'z'])))).to_dict() == {0: 'y', 4: ''}


def test_gates_are_compared_where_the_truth_is_known(micro_run, tmp_path):
    "With a made-up truth: every cluster is a sub-defect, and so is every other ad that is routed to it."
    run = copy_of(micro_run, tmp_path/'run')
    ads, stored, own = (read_table(run/f) for f in ('13_curate/ads.parquet', '36_unlabelled/routed.parquet', '32_clusters/partition.parquet'))
    kinds = pd.concat([own, stored.iloc[::2]]).set_index('ad_id').cluster.map('kind {}'.format)
    write_table(ads.assign(sub_defect=ads.ad_id.map(kinds).fillna('')), run/'13_curate/ads.parquet')
    table = gate_table(run).set_index('gate')
    assert table.index.tolist() == ['none', *GATES] and table.used['confidence'] == stored.used.sum() and table.verdicts['confidence'] == stored.verdict.notna().sum()
    there = stored.why != 'its cluster is not kept'
    assert (table.reached == there.sum()).all() and (table.right == there[::2].sum()).all() and (table.used <= table.used['none']).all()
    assert table.lost['none'] == 0 and np.isclose(table.lost['confidence'], (~stored.used & there)[::2].sum()/there[::2].sum()) and table.lost['confidence'] > 0
    assert (table.other_defect == 0).all() and np.allclose(table.wrong, table.acceptable) and np.isclose(table.wrong['confidence'], stored.used[1::2].sum()/stored.used.sum())
    for unknown in (ads.assign(sub_defect=''), ads.drop(columns='sub_defect')):
        write_table(unknown, run/'13_curate/ads.parquet')
        with pytest.raises(UserError, match='truth'): gate_table(run)
