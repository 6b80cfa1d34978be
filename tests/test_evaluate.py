"Results against the metrics themselves; thresholds that never see the test ads."
import json
import re
import sys
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from stages import again, copy_of
from subtask_kit import evaluate as module
from subtask_kit.artifacts import open_run, read_json, read_table, write_json
from subtask_kit.core import DEFECTIVE, UserError
from subtask_kit.evaluate import (CLAIMS, Evaluate, claims, corrected, difference, evaluate_table2, export_results, filter_table, filter_warning, holm, latex_table, measure, month_slice,
                                  operating_table, over_seeds, pool_claims, pool_results, recall_table, results, size_slice, slice_table, thirds, too_few_draws, two_sided, verdict, wide, with_holm)
from subtask_kit.metrics import at_prevalence, auc, bootstrap_npv, interval, mean_over_seeds, npv_at, operating_point, paired_gain, wilson
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
    table2 = pytest.importorskip('subtask_kit.table2')
    assert {m for _, a, b in CLAIMS for m in (a, b)} <= {*ROWS, *table2.TABLE2}


def test_verdicts():
    assert [verdict(*v) for v in ((.1, .2), (-.2, -.1), (-.1, .1), (0., .1), (-.1, 0.))] == ['holds', 'does not', 'cannot tell', 'cannot tell', 'cannot tell']


def test_no_claim_is_made_twice_or_against_itself():
    assert len({text for text, _, _ in CLAIMS}) == len({(a, b) for _, a, b in CLAIMS}) == len(CLAIMS)
    assert all(a != b and (b, a) not in {(x, y) for _, x, y in CLAIMS} for _, a, b in CLAIMS)


# Many claims at once

def test_the_p_value_counts_draws_on_the_far_side():
    assert two_sided(np.r_[np.ones(99)]) == 2/100 and two_sided(-np.ones(99)) == 2/100, 'never 0'
    assert two_sided(np.r_[np.ones(95), -np.ones(4)]) == 2*5/100 and two_sided(np.zeros(50)) == 1 and two_sided(np.r_[-1., 1.]) == 1


@given(st.integers(0, 10_000), st.floats(-.3, .3))
def test_the_p_value_and_the_interval_tell_the_same(seed, shift):
    "But for a draw at the edge, where either may be a hair within."
    draws = np.random.default_rng(seed).normal(shift, .1, 999)
    low, high = interval(draws, .9)
    far = min((draws <= 0).sum(), (draws >= 0).sum())
    if abs(far - 49) > 1: assert (two_sided(draws) < .1) == (low > 0 or high < 0)


def test_holm_by_hand():
    assert np.allclose(holm([.01, .04, .03, .005]), [.03, .06, .06, .02])
    assert np.allclose(holm([.5, .5, .9]), [1, 1, 1]) and holm([.2]).tolist() == [.2] and holm([]).tolist() == []
    assert np.allclose(holm([.01, np.nan, .02]), [.02, np.nan, .02], equal_nan=True), 'what was not tested is not counted'


def stepped(p, level):
    "Holm's procedure as he wrote it: reject the smallest p while p <= level / (how many are left), stop at the first that is larger."
    rejected = np.zeros(len(p), bool)
    for k, i in enumerate(np.argsort(p, kind='stable')):
        if p[i] > level/(len(p)-k): break
        rejected[i] = True
    return rejected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.floats(.001, .5))
def test_corrected_p_values_reject_what_holms_procedure_rejects(p, level):
    p = np.array(p)
    near = np.isclose(np.outer(p, np.arange(1, len(p)+1)), level, rtol=1e-9).any() # a product in place of a quotient may round otherwise
    if not near: assert ((holm(p) <= level) == stepped(p, level)).all()
    assert (holm(p) >= p).all() and (holm(p) <= np.minimum(1, len(p)*p)).all()


def test_claims_are_corrected_within_a_metric(measured):
    table = claims(measured, CFG)
    for metric, part in table.groupby('metric'): assert np.array_equal(part.p_holm, holm(part.p))
    for r in table.itertuples(): assert r.p == two_sided(measured[r.metric][r.a][1] - measured[r.metric][r.b][1])
    assert len(with_holm(table.head(0))) == 0 and 'p_holm' in with_holm(table.head(0))


def test_corrected_verdicts_follow_the_p_value_and_the_sign():
    table = pd.DataFrame(dict(gain=[.1, -.1, .1, 0., .1], p_holm=[.05, .05, .2, .05, np.nan]))
    assert corrected(table, CFG).verdict.tolist() == ['holds', 'does not', 'cannot tell', 'cannot tell', 'cannot tell']


def test_draws_that_cannot_tell_are_counted():
    for m, draws in ((1, 19), (1, 20), (40, 799), (40, 800), (39, 1000)):
        table = pd.DataFrame(dict(metric='npv@5%', p=[2/(1+draws)]*m, gain=.1))
        possible = (corrected(with_holm(table), CFG).verdict == 'holds').all()
        assert (too_few_draws(table, Evaluate(draws=draws)) == '') == possible, (m, draws)
    assert too_few_draws(pd.DataFrame(dict(metric=[], p=[])), CFG) == ''


# Several data seeds

@given(st.lists(st.floats(-1, 1), min_size=2, max_size=8, unique=True))
def test_intervals_over_data_seeds_are_student_s(gains):
    x = np.array(gains)
    if np.ptp(x) < 1e-6: return
    said, half = over_seeds(gains, .9), stats.t.ppf(.95, len(x)-1)*x.std(ddof=1)/np.sqrt(len(x))
    assert (said['low'], said['high']) == (pytest.approx(x.mean()-half, abs=1e-9), pytest.approx(x.mean()+half, abs=1e-9)) and said['won'] == (x > 0).sum()
    assert said['p'] == pytest.approx(2*stats.t.sf(abs(x.mean())/(x.std(ddof=1)/np.sqrt(len(x))), len(x)-1), abs=1e-9) and said['data_seeds'] == len(x)


def test_few_or_equal_gains_are_not_certain():
    one, same, coarse = over_seeds([.3], .9), over_seeds([0., 0., 0.], .9), over_seeds([.1, .1, .1], .9)
    assert one['gain'] == .3 and np.isnan([one['sd'], one['low'], one['high'], one['p']]).all()
    assert (same['low'], same['high'], same['p'], same['won']) == (0, 0, 1, 0), 'one student under two names'
    assert np.isnan(coarse['p']) and np.isnan(coarse['low']) and coarse['sd'] == 0
    assert np.isnan(over_seeds([.1, np.nan], .9)['gain'])


def test_claims_are_pooled_over_worlds(measured):
    first = claims(measured, CFG)
    others = [first.assign(gain=first.gain + shift) for shift in (.01, -.02)]
    table = pool_claims([first, *others], CFG)
    assert table[['claim', 'a', 'b', 'metric']].equals(first[['claim', 'a', 'b', 'metric']]) and (table.data_seeds == 3).all()
    assert np.allclose(table.gain, first.gain - .01/3) and np.allclose(table.sd, np.std([0, .01, -.02], ddof=1))
    for metric, part in table.groupby('metric'): assert np.array_equal(part.p_holm, holm(part.p))
    assert (table.verdict == corrected(table, CFG).verdict).all() and (pool_claims([first], CFG).verdict == 'cannot tell').all()
    part = pool_claims([first, first[first.a == 'at_sd']], CFG)
    assert (part.data_seeds == np.where(part.a == 'at_sd', 2, 1)).all() and len(pool_claims([first.head(0)], CFG)) == 0


def test_results_are_pooled_over_worlds(measured):
    costs = pd.DataFrame(dict(method=['vit', 'vit', 'ft_sd'], seed=[0, 1, 0], cpu_minutes=[1., 3., 5.]))
    first = results(measured, CFG, costs)
    assert first.set_index('method').cpu_minutes.dropna().groupby('method').first().to_dict() == dict(vit=2, ft_sd=5)
    table = pool_results([first, first.assign(value=first.value + .02, gain=first.gain + .01, cpu_minutes=first.cpu_minutes*3)], CFG)
    assert table[['method', 'metric']].equals(first[['method', 'metric']]) and np.allclose(table.value, first.value + .01)
    assert np.allclose(table.gain, first.gain + .005, equal_nan=True) and np.allclose(table.cpu_minutes, first.cpu_minutes*2, equal_nan=True)
    assert np.allclose(table.sd, .02/np.sqrt(2)) and np.allclose(table.gain_sd.dropna(), .01/np.sqrt(2)) and (table.low < table.value).all()
    assert (table.gain.isna() == (table.method == 'vit')).all() and 'cpu_minutes' not in pool_results([results(measured, CFG)], CFG)


# A stream with fewer defects

def test_npv_at_a_production_prevalence(scores, measured):
    again = measure(wide(scores, LABELS, 'test')[0], LABELS.values, Evaluate(draws=200, prevalence=.01))
    assert {*again} == {*measured, *(f'{m} at p=0.01' for m in measured if m != 'auc')}
    for m in measured:
        for method in measured[m]:
            for here, there in zip(measured[m][method], again[m][method]): assert np.array_equal(here, there), 'what the set itself says stays'
    for method, (values, _) in again['npv@5% at p=0.01'].items(): assert np.allclose(values, at_prevalence(measured['npv@5%'][method][0], .2, .01)) and (values < measured['npv@5%'][method][0]).all()
    assert set(claims(again, CFG).metric) == {'npv@1%', 'npv@5%', 'npv@10%'}, 'a claim is not made twice'
    same = measure(wide(scores, LABELS, 'test')[0], LABELS.values, Evaluate(draws=200, prevalence=.2))
    assert np.allclose(same['npv@5% at p=0.2']['ft_sd'][1], same['npv@5%']['ft_sd'][1]), 'the share of the set itself changes nothing'


# For whom and when

def adverts(**columns): return pd.DataFrame(dict(ad_id=LABELS.index, label=LABELS.values) | columns)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=60))
def test_thirds_keep_order_and_equal_ones_together(sizes):
    size = pd.Series(sizes)
    third = thirds(size)
    assert third.notna().all() and 1 <= third.nunique() <= 3
    for a in size.index[:20]:
        for b in size.index[:20]: assert third.cat.codes[a] <= third.cat.codes[b] if size[a] <= size[b] else third.cat.codes[a] >= third.cat.codes[b]
        if size[a] == size.min(): assert third[a] == third.iloc[size.argmin()]
    for name, inside in size.groupby(third, observed=True): assert name in (f'{inside.min()} to {inside.max()} ads', f'{inside.min()} ads')
    if size.is_unique and len(size) % 3 == 0: assert (third.value_counts() == len(size)//3).all()


def test_sizes_count_all_ads_of_an_advertiser_and_months_are_utc():
    ads = pd.DataFrame(dict(ad_id=list('abcdef'), advertiser=['x', 'x', 'x', 'y', '', None], submitted_at=['2024-01-31T23:30:00-05:00', '2024-01-31T23:30:00+00:00', 'soon', None, '2024-03-01T00:00:00+00:00', '2024-03-02T00:00:00+00:00']))
    assert size_slice(ads).to_dict() == dict(a=3, b=3, c=3, d=1) and month_slice(ads).astype(str).to_dict() == dict(a='2024-02', b='2024-01', e='2024-03', f='2024-03')
    assert len(size_slice(ads[['ad_id']])) == len(month_slice(ads[['ad_id']])) == 0


def test_slices_are_recall_at_the_thresholds_of_the_whole_set(scores):
    matrices, y = wide(scores, LABELS, 'test')
    rng = np.random.default_rng(0)
    ads = adverts(advertiser=rng.choice(['big']*8 + ['one', 'two', ''], 200), submitted_at=np.where(rng.random(200) < .2, None, pd.Series(pd.date_range('2024-01-01', periods=200, freq='12h')).astype(str)))
    table = slice_table(matrices, y, LABELS.index, ads.sample(frac=1, random_state=0), CFG)
    month, defective = month_slice(ads).astype(str).reindex(LABELS.index), y == DEFECTIVE
    assert set(table.slice) == {'advertiser size', 'month'} and set(table.value[table.slice == 'month']) == set(month[defective].dropna())
    for r in table[table.slice == 'month'].itertuples():
        inside = defective & (month == r.value).to_numpy()
        caught = np.mean([(c[inside] <= operating_point(c, y, r.level)).mean() for c in matrices[r.method].T])
        assert r.n == inside.sum() and r.recall == pytest.approx(caught) and (r.low, r.high) == pytest.approx(wilson(caught*inside.sum(), inside.sum(), CFG.coverage))
    known = (ads.advertiser != '').to_numpy() & defective
    assert (table[table.slice == 'advertiser size'].groupby(['method', 'level']).n.sum() == known.sum()).all() and known.sum() < defective.sum()


def test_without_dates_and_advertisers_there_are_no_slices(scores):
    matrices, y = wide(scores, LABELS, 'test')
    for ads in (adverts(), adverts(advertiser='', submitted_at=None), adverts(advertiser=np.where(y == 0, '', 'x'), submitted_at='some day')):
        table = slice_table(matrices, y, LABELS.index, ads, CFG)
        assert len(table) == 0 and 'recall' in table, 'advertisers of acceptable ads alone say nothing of defective ones'


# Taken elsewhere

NAMES = pd.DataFrame(dict(method=['ft_sd', 'vit', 'at_sd', 'swsl'], category=['Filtered & kept', 'Plain', 'Plain', 'Semi'], paper=['K_100 + 50% #1 $x$ {a} ~ ^ \\\\', 'ViT', 'AT', 'SWSL'], paper_gain5=[.1, 0, np.nan, .2]))


def cells_of(tex):
    "Rows of a tabular; ampersands that are escaped part nothing."
    lines = [line for line in tex.splitlines() if line.endswith(r'\\')]
    return [[c.strip() for c in re.split(r'(?<!\\)&', line.removesuffix(r'\\'))] for line in lines]


def test_the_tabular_is_balanced_and_in_the_paper_s_order(measured):
    table = results(measured, CFG)
    tex = latex_table(table, NAMES)
    head, *rows = cells_of(tex)
    assert re.findall(r'\\(begin|end)\{(\w+)\}', tex) == [('begin', 'tabular'), ('end', 'tabular')] and re.search(r'\{tabular\}\{(\w+)\}', tex)[1] == 'llrrr'
    assert {len(r) for r in (head, *rows)} == {5} and head == ['Model Category', 'Method', r'@5\% FPR', r'@1\% FPR', r'@10\% FPR']
    assert [r[1] for r in rows][1:] == ['ViT', 'AT'] and [r[0] for r in rows] == [r'Filtered \& kept', 'Plain', ''], 'a category is named once; a row that was not trained is not there'
    bare = re.sub(r'\\[a-z]+(\{\w*\})?|\\[&%$#_{}]', '', ' '.join(r[1] for r in rows))
    assert not set(bare) & set('&%$#_~^\\'), 'nothing that LaTeX would read as its own is left'
    g = table.set_index(['method', 'metric']).loc[('ft_sd', 'npv@5%')]
    assert rows[0][2] == f'{100*g.gain:+.1f} ({100*g.gain_low:+.1f} to {100*g.gain_high:+.1f})' and rows[1][2:] == ['-']*3


def test_without_intervals_or_names_there_is_still_a_tabular(measured):
    pooled = pool_results([results(measured, CFG)], CFG)
    head, *rows = cells_of(latex_table(pooled))
    assert [r[1] for r in rows] == ['vit', r'at\_sd', r'ft\_sd', r'ft\_sd\_cc'] and '(' not in rows[1][2] and rows[1][2][0] in '+-'


def test_exports_can_be_read_back_and_are_the_same_twice(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    table = results(measured, CFG)
    for folder in ('a', 'b'): assert export_results(table, tmp_path/folder, NAMES) == ['results.csv', 'results.tex', 'metrics.jsonl']
    assert all((tmp_path/'a'/name).read_bytes() == (tmp_path/'b'/name).read_bytes() for name in ('results.csv', 'results.tex', 'metrics.jsonl')) and len([*(tmp_path/'a').iterdir()]) == 3
    back = pd.read_csv(tmp_path/'a/results.csv')
    assert back.method.tolist() == ['ft_sd']*4 + ['vit']*4 + ['at_sd']*4, 'rows in the given order, and none that the names lack'
    pd.testing.assert_frame_equal(back, NAMES.merge(table, on='method'), check_exact=True, check_dtype=False)
    lines = [json.loads(line) for line in (tmp_path/'a/metrics.jsonl').read_text().splitlines()]
    pd.testing.assert_frame_equal(pd.DataFrame(lines).astype(dict(gain=float, gain_low=float, gain_high=float, sd=float)), table, check_dtype=False, atol=1e-14)


def test_scalars_go_to_tensorboard_where_there_is_one(measured, tmp_path, monkeypatch):
    written = {}
    class SummaryWriter:
        def __init__(self, folder): written['folder'] = folder
        def __enter__(self): return self
        def __exit__(self, *error): return False
        def add_scalar(self, tag, value): written[tag] = value
    fake = ModuleType('torch.utils.tensorboard')
    fake.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', fake)
    monkeypatch.setattr(module, 'find_spec', lambda name: name == 'tensorboard')
    table = results(measured, CFG).set_index(['method', 'metric'])
    (tmp_path/'tensorboard').mkdir()
    (tmp_path/'tensorboard/of another time').touch()
    assert export_results(table.reset_index(), tmp_path)[-1] == 'tensorboard' and written.pop('folder') == tmp_path/'tensorboard' and not (tmp_path/'tensorboard').exists()
    assert written['npv_5/ft_sd'] == table.value['ft_sd', 'npv@5%'] and written['npv_5_gain/ft_sd'] == table.gain['ft_sd', 'npv@5%'] and 'npv_5_gain/vit' not in written
    assert len(written) == 4*4 + 3*4 and all(re.fullmatch(r'[\w.]+/\w+', tag) for tag in written)


# The paper's table

def test_the_table_of_the_paper(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    ads = adverts(advertiser='x', submitted_at='2024-01-01', sub_defect=np.where(LABELS == 0, 'knife', ''))
    costs = pd.DataFrame(dict(method=['vit', 'vit', 'ft_sd'], seed=[0, 1, 0], cpu_minutes=[1., 3., 5.]))
    said = evaluate_table2(scores, ads, NAMES, costs, CFG, tmp_path/'a')
    files = {p.name for p in (tmp_path/'a').iterdir()}
    assert files == {'results.parquet', 'claims.parquet', 'slices.parquet', 'recall.parquet', 'results.csv', 'results.tex', 'metrics.jsonl'}
    table, found = read_table(tmp_path/'a/results.parquet'), read_table(tmp_path/'a/claims.parquet')
    plain = measure(wide(scores, LABELS, 'test')[0], LABELS.values, CFG)
    pd.testing.assert_frame_equal(table.drop(columns=['cpu_minutes', 'config_hash']), results(plain, CFG))
    assert table.groupby('method').cpu_minutes.first().to_dict() == pytest.approx(dict(at_sd=np.nan, ft_sd=5, ft_sd_cc=np.nan, vit=2), nan_ok=True)
    pd.testing.assert_frame_equal(found, corrected(claims(plain, CFG), CFG))
    assert said['rows'] == 4 and said['test_defects'] == 40 and sum(n for k, n in said.items() if ': ' in k) == len(found) and said['warning'] == ''
    assert evaluate_table2(scores, ads.drop(columns='sub_defect'), NAMES, costs, Evaluate(draws=50), tmp_path/'c')['warning'] == too_few_draws(found, Evaluate(draws=50)) != ''
    assert not (tmp_path/'c/recall.parquet').exists() and (read_table(tmp_path/'c/claims.parquet').verdict == 'cannot tell').all(), '50 draws cannot tell four claims from luck'
    with pytest.raises(UserError, match='swin'): evaluate_table2(scores, ads, NAMES, costs, Evaluate(baseline='swin'), tmp_path/'d')


def test_the_order_of_scores_within_a_row_changes_nothing(scores, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'find_spec', lambda name: None)
    mixed = pd.concat([part.sample(frac=1, random_state=0) for _, part in scores.groupby('method', sort=False)])
    for folder, s in (('a', scores), ('b', mixed)): evaluate_table2(s, adverts(), NAMES, pd.DataFrame(dict(method=['vit'], seed=0, cpu_minutes=1.)), CFG, tmp_path/folder)
    for p in (tmp_path/'a').iterdir(): assert p.read_bytes() == (tmp_path/'b'/p.name).read_bytes(), p.name


def test_a_run_leaves_slices_and_corrected_p_values(micro_run):
    run = open_run(micro_run)
    found, slices, ads = read_table(run/'41_evaluate/claims.parquet'), read_table(run/'41_evaluate/slices.parquet'), read_table(run/'13_curate/ads.parquet')
    assert (found.verdict == [verdict(l, h) for l, h in zip(found.low, found.high)]).all() and (found.p_holm >= found.p).all()
    defects = ((ads.split == 'test') & (ads.label == 0)).sum()
    assert set(slices.slice) == {'advertiser size', 'month'} and (slices.groupby(['method', 'slice', 'level']).n.sum() <= defects).all()


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
