"Routing the pool: gates, verdicts, edits, and no pool at all."
import json

import numpy as np
import pandas as pd
import pytest
from stages import again, copy_of
from subtask_kit.artifacts import open_run, read_json, read_manifest, read_table, read_tensors, write_table, write_tensors
from subtask_kit.pipeline import configure, run_stages
from subtask_kit.selflabel import route
from subtask_kit.unlabelled import Unlabelled, edited_cluster, judge, mean_margin, unlabelled

TRAIN = pd.DataFrame(dict(cluster=[0]*101 + [1]*101, confidence=[*np.linspace(0, 1, 101), *np.linspace(.5, 1, 101)]))


def routed(*rows): return pd.DataFrame([dict(ad_id=str(i), cluster=c, confidence=p, margin=m) for i, (c, p, m) in enumerate(rows)])
def answers(table): return list(zip(table.used, table.verdict.fillna(9), table.why))


def test_gate_and_verdict():
    table = judge(routed((0, .06, -3.), (0, .04, -3.), (0, .9, -1.9), (0, .9, -2.1), (1, .51, -3.), (1, .53, 3.), (2, .99, -9.)), [0, 1], TRAIN, Unlabelled())
    sure, unsure, far, out = 'the teacher is sure of a defect', 'the teacher is not sure', 'too far from its cluster', 'its cluster is not kept'
    assert answers(table) == [(True, 0, sure), (False, 9, far), (True, 9, unsure), (True, 0, sure), (False, 9, far), (True, 9, unsure), (False, 9, out)]


def test_each_cluster_has_its_own_gate():
    assert judge(routed((0, .3, 0.), (1, .3, 0.)), [0, 1], TRAIN, Unlabelled()).used.tolist() == [True, False]


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


@pytest.mark.parametrize('values', [dict(unlabelled_quantile=2)])
def test_a_quantile_that_is_none_is_refused(micro_run, tmp_path, values):
    from subtask_kit.core import UserError
    with pytest.raises(UserError): again(copy_of(micro_run, tmp_path/'run'), 'unlabelled', **values)
