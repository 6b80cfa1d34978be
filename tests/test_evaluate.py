"Results against the metrics themselves; thresholds that never see the test ads."
import numpy as np
import pandas as pd
import pytest
from stages import again, copy_of
from subtask_kit.artifacts import open_run, read_json, read_table, write_json
from subtask_kit.core import DEFECTIVE, UserError
from subtask_kit.evaluate import CLAIMS, Evaluate, claims, difference, filter_table, filter_warning, measure, operating_table, recall_table, results, verdict, wide
from subtask_kit.metrics import auc, bootstrap_npv, interval, mean_over_seeds, npv_at, operating_point, paired_gain
from subtask_kit.distill import ROWS

CFG = Evaluate(draws=200)
LABELS = pd.Series([0]*40 + [1]*160, index=[f'ad{i:03d}' for i in range(200)])


def table_of(method, strength, seeds=(0, 1), split='test', seed=0):
    rng = np.random.default_rng([seed, len(method), int(10*strength)])
    return pd.concat([pd.DataFrame(dict(method=method, seed=s, ad_id=LABELS.index, split=split, p_acceptable=rng.normal(strength*LABELS, 1))) for s in seeds])


@pytest.fixture(scope='module')
def scores(): return pd.concat([table_of('vit', 1.), table_of('at_sd', 2.), table_of('ft_sd', 3., (0, 1, 2)), table_of('ft_sd_cc', 3., (0,))])


@pytest.fixture(scope='module')
def measured(scores): return measure(wide(scores, LABELS, 'test')[0], LABELS.values, CFG)


def test_wide_does_not_hang_on_the_order_of_rows(scores):
    a, y = wide(scores, LABELS, 'test')
    b, z = wide(scores.sample(frac=1, random_state=0), LABELS.sample(frac=1, random_state=1), 'test')
    assert a.keys() == b.keys() and all(np.array_equal(a[m], b[m]) for m in a) and np.array_equal(y, z)


def test_methods_that_scored_other_ads_are_refused(scores):
    with pytest.raises(UserError, match='ft_sd_cc'): wide(scores[~((scores.method == 'ft_sd_cc') & (scores.ad_id == 'ad007'))], LABELS, 'test')
    with pytest.raises(UserError, match='at_sd'): wide(scores[~((scores.method == 'at_sd') & (scores.ad_id == 'ad007') & (scores.seed == 1))], LABELS, 'test')


def test_values_are_the_metrics_means(scores, measured):
    table = results(measured, CFG).set_index(['method', 'metric'])
    for m, matrix in wide(scores, LABELS, 'test')[0].items():
        for level in CFG.levels:
            each = [npv_at(c, LABELS.values, level) for c in matrix.T]
            row = table.loc[m, f'npv@{100*level:g}%']
            assert row.value == pytest.approx(np.mean(each)) and row.seeds == len(each)
            assert np.isnan(row.sd) if len(each) == 1 else row.sd == pytest.approx(np.std(each, ddof=1))
        assert table.loc[m, 'auc'].value == pytest.approx(np.mean([auc(c, LABELS.values) for c in matrix.T]))


def test_intervals_hold_the_value_and_gains_are_differences(measured):
    table = results(measured, CFG)
    assert ((table.low <= table.value) & (table.value <= table.high)).mean() > .9 and (table.low < table.high).all()
    for metric, part in table.groupby('metric'):
        base = part[part.method == 'vit']
        assert base.gain.isna().all()
        rest = part[part.method != 'vit']
        assert np.allclose(rest.gain, rest.value - base.value.iloc[0]) and ((rest.gain_low < rest.gain) & (rest.gain < rest.gain_high)).all()


def test_a_method_against_itself_gains_nothing(measured):
    for of in measured.values():
        for m in of: assert difference(of, m, m, CFG) == dict(gain=0, low=0, high=0)


def test_two_names_of_the_same_scores_with_one_seed_gain_nothing():
    one = table_of('vit', 2., (0,))
    m = measure(wide(pd.concat([one, one.assign(method='ft_sd')]), LABELS, 'test')[0], LABELS.values, CFG)
    for of in m.values(): assert difference(of, 'ft_sd', 'vit', CFG) == dict(gain=0, low=0, high=0)


def test_gains_agree_with_the_paired_gain_of_the_metrics(scores, measured):
    "Seeds are drawn by other names there, so the ends agree only nearly."
    matrices = wide(scores, LABELS, 'test')[0]
    for level in (.01, .1):
        ours = difference(measured[f'npv@{100*level:g}%'], 'ft_sd', 'vit', CFG)
        gain, low, high = paired_gain(matrices['ft_sd'], matrices['vit'], LABELS.values, level, draws=CFG.draws)
        assert ours['gain'] == pytest.approx(gain) and ours['low'] == pytest.approx(low, abs=.08) and ours['high'] == pytest.approx(high, abs=.08)


def test_a_better_order_gains(measured):
    assert difference(measured['auc'], 'ft_sd', 'vit', CFG)['low'] > 0 > difference(measured['auc'], 'vit', 'ft_sd', CFG)['high']


def test_claims_are_made_only_where_both_rows_are_there(measured):
    table = claims(measured, CFG)
    assert {(r.a, r.b) for r in table.itertuples()} == {('at_sd', 'vit'), ('ft_sd', 'vit'), ('ft_sd', 'at_sd'), ('ft_sd_cc', 'ft_sd')}
    assert len(table) == 4*len(CFG.levels) and (table.verdict == [verdict(l, h) for l, h in zip(table.low, table.high)]).all()
    alone = claims({metric: {'vit': of['vit']} for metric, of in measured.items()}, CFG)
    assert len(alone) == 0 and alone.columns.tolist() == table.columns.tolist()


def test_claims_name_rows_that_exist():
    assert {m for _, a, b in CLAIMS for m in (a, b)} <= set(ROWS)


def test_verdicts():
    assert [verdict(*v) for v in ((.1, .2), (-.2, -.1), (-.1, .1), (0., .1), (-.1, 0.))] == ['holds', 'does not', 'cannot tell', 'cannot tell', 'cannot tell']


# First, do no harm

def pair(better, worse, seed=3):
    "Measured on student_val: the filtered student's strength, and the unfiltered one's."
    s = pd.concat([table_of('ft_sd', better, split='student_val', seed=seed), table_of('at_sd', worse, split='student_val', seed=seed)])
    return wide(s, LABELS, 'student_val')[0]


def test_the_filter_against_a_hand_computation():
    matrices = pair(2., 1.5)
    table = filter_table(measure(matrices, LABELS.values, CFG), CFG)
    assert table.columns.tolist() == ['split', 'metric', 'filtered', 'unfiltered', 'gain', 'low', 'high', 'better'] and (table.split == 'student_val').all()
    assert table.metric.tolist() == ['npv@1%', 'npv@5%', 'npv@10%', 'auc'] and set(table.filtered) == {'ft_sd'} and set(table.unfiltered) == {'at_sd'}
    for r, level in zip(table.itertuples(), CFG.levels):
        draws = {m: mean_over_seeds(bootstrap_npv(v, LABELS.values, level, draws=CFG.draws, seed=CFG.seed), CFG.seed) for m, v in matrices.items()}
        low, high = interval(draws['ft_sd'] - draws['at_sd'], CFG.coverage)
        assert r.gain == pytest.approx(np.mean(npv_at(matrices['ft_sd'], LABELS.values, level)) - np.mean(npv_at(matrices['at_sd'], LABELS.values, level)))
        assert (r.low, r.high) == (pytest.approx(low), pytest.approx(high)) and r.better == (low > 0)


@pytest.mark.parametrize('better, worse, says', [(4., .5, ''), (.5, 4., 'is worse'), (2., 2., 'is not better')])
def test_the_warning_follows_the_interval(better, worse, says):
    table = filter_table(measure(pair(better, worse), LABELS.values, CFG), CFG)
    words = filter_warning(table)
    assert (words == '') == (says == '') and says in words
    if words: assert all(w in words for w in ('student_val', 'ft_sd', 'at_sd', '-p select_rule none', '-p select_dropped weighted', 'npv@5%')) and 'auc' not in words
    assert filter_warning(table, dropped=False) == '', 'nothing was filtered'


def test_worse_at_one_level_is_warned_of_though_better_at_another():
    table = pd.DataFrame(dict(metric=['npv@1%', 'npv@5%', 'auc'], gain=[.1, -.1, .1], low=[.05, -.2, .05], high=[.2, -.05, .2], better=[True, False, True]))
    assert 'is worse' in filter_warning(table) and filter_warning(table.assign(high=[.2, .1, .2])) == ''


def test_without_both_students_the_filter_is_not_judged(measured):
    table = filter_table({metric: {'ft_sd': of['ft_sd']} for metric, of in measured.items()}, CFG)
    assert len(table) == 0 and table.better.dtype == bool and 'at_sd' in (words := filter_warning(table)) and '-p distill_rows' in words


def test_a_run_says_whether_its_filter_helps(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    assert read_json(run/'41_evaluate/metrics.json')['warning'] == '' and len(read_table(run/'41_evaluate/filter.parquet')) == 0, 'nothing was dropped, and at_sd not trained'
    write_json(dict(kept=[0, 1]), run/'human/choice.json')
    again(run)
    assert 'not measured' in read_json(run/'41_evaluate/metrics.json')['warning']
    again(run, distill_rows='vit,at_sd,ft_sd')
    table, scores = read_table(run/'41_evaluate/filter.parquet'), read_table(run/'41_evaluate/scores.parquet')
    ads = read_table(run/'13_curate/ads.parquet').set_index('ad_id').label
    val = {m: t.sort_values('ad_id') for m, t in scores[scores.split == 'student_val'].groupby('method')}
    npv = {m: npv_at(t.p_acceptable.values, ads[t.ad_id].to_numpy(int), .05) for m, t in val.items()}
    assert table.set_index('metric').gain['npv@5%'] == pytest.approx(npv['ft_sd'] - npv['at_sd'])
    assert read_json(run/'41_evaluate/metrics.json')['warning'] == filter_warning(table)


def test_recall_of_kinds_adds_up_to_the_level(scores):
    matrices, y = wide(scores, LABELS, 'test')
    kinds = np.where(np.arange(200) % 3 == 0, 'knife', 'dice')
    table = recall_table(matrices, y, kinds, CFG)
    for (m, level), part in table.groupby(['method', 'level']):
        caught = np.mean([(c[y == DEFECTIVE] <= operating_point(c, y, level)).mean() for c in matrices[m].T])
        assert part.n.sum() == 40 and np.average(part.recall, weights=part.n) == pytest.approx(caught) and caught >= 1-level-1e-9
    assert ((table.low <= table.recall) & (table.recall <= table.high)).all()


def test_thresholds_do_not_see_the_test_ads(micro_run, tmp_path):
    "Other test scores, the same thresholds; other student_val scores, others."
    run = copy_of(micro_run, tmp_path/'run')
    before = read_table(run/'41_evaluate/operating.parquet')
    test = table_of('vit', 1., (0,))
    val = table_of('vit', 1., (0,), 'student_val', seed=5)
    def table(val, test): return operating_table(*wide(val, LABELS, 'student_val'), *wide(test, LABELS, 'test'), {'vit': [0]}, CFG)
    a, b = table(val, test), table(val, test.assign(p_acceptable=test.p_acceptable.sample(frac=1, random_state=0).values))
    assert a.threshold.equals(b.threshold) and a.student_val_fpr.equals(b.student_val_fpr) and not a.test_npv.equals(b.test_npv)
    assert not table(val.assign(p_acceptable=-val.p_acceptable), test).threshold.equals(a.threshold)
    assert (a.student_val_fpr <= a.level).all() and (before.student_val_fpr <= before.level).all() and (before.low <= before.test_npv).all() and (before.test_npv <= before.high).all()


def test_the_runs_tables_agree_with_the_students(micro_run):
    run = open_run(micro_run)
    scores, ads = read_table(run/'41_evaluate/scores.parquet'), read_table(run/'13_curate/ads.parquet').set_index('ad_id')
    table = read_table(run/'41_evaluate/results.parquet').set_index(['method', 'metric'])
    for method in ('vit', 'ft_sd', 'ft_sd_ul'):
        own = read_table(run/f'37_distill/{method}/0/student_scores.parquet')
        pd.testing.assert_frame_equal(scores[scores.method == method][['ad_id', 'split', 'p_acceptable']].reset_index(drop=True), own[['ad_id', 'split', 'p_acceptable']])
        test = own[own.split == 'test']
        assert table.loc[method, 'npv@5%'].value == pytest.approx(npv_at(test.p_acceptable.values, ads.label[test.ad_id].values.astype(int), .05))


@pytest.mark.parametrize('values', [dict(evaluate_levels='2'), *[(v)
                                                                for v in (dict(evaluate_baseline='nosuchrow'), dict(evaluate_coverage=2), dict(evaluate_draws=0))]])
def test_what_means_nothing_is_refused(micro_run, tmp_path, values):
    with pytest.raises(UserError): again(copy_of(micro_run, tmp_path/'run'), **values)
