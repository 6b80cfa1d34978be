"Power before training: the short draw against plain simulation through `metrics`, exact oracles, and what a person is told."
import time
import warnings
from functools import cache

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import beta, betabinom, binom, ks_2samp, norm

from subtask_kit.core import UserError, rng_for
from subtask_kit.metrics import lift, npv_at, npv_floor
from subtask_kit.power import (COLUMNS, TEACHER_COLUMNS, TRUTHS, best_lift, best_npv, draw_lift, draw_npv, drop_share, level_for, needed_defects, power_table, power_warnings,
                               power_words, separation, teacher_table, teacher_words, try_rule)

PAPER = dict(train=dict(defective=2500, acceptable=15000), teacher_test=dict(defective=160, acceptable=960), test=dict(defective=776, acceptable=4656))


@cache
def paper_teachers(): return teacher_table(PAPER)


def simulated(npv, n, m, level, sets):
    "Draw every score, sort, measure with the kit's own NPV."
    labels = np.repeat([0, 1], [n, m])
    scores = rng_for('test_power', n, m, level).normal(size=(n+m, sets)) + (separation(npv, n/(n+m), level)*labels)[:, None]
    return npv_at(scores, labels, level)


@pytest.mark.parametrize('n, m, level, npv', [(160, 960, .01, .4), (160, 960, .05, .8), (30, 40, .05, .6), (7, 50, .01, .3), (100, 300, .29, .5), (1, 4, .01, .5)])
def test_the_short_draw_has_the_distribution_of_plain_simulation(n, m, level, npv):
    short, plain = draw_npv(npv, n, m, level, draws=4000), simulated(npv, n, m, level, 1500)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # scipy on many ties
        assert ks_2samp(short, plain).pvalue > 1e-3
    assert set(np.round(plain, 9)) <= set(np.round([(n-k)/(n-k+f) for f in range(m+1) for k in [int(level*n+1e-9)]], 9)) # n-k defects flagged, whatever the draw


def test_a_draw_that_is_one_defect_off_would_be_noticed(monkeypatch):
    plain = simulated(.4, 160, 960, .01, 1500)
    for allowed in (0, 2):
        monkeypatch.setattr('subtask_kit.power._allowed', lambda level, n: allowed)
        assert ks_2samp(draw_npv(.4, 160, 960, .01, draws=4000), plain).pvalue < 1e-30


def test_against_the_exact_distribution():
    n, m, level, npv = 60, 200, .05, .6
    apart, draws = separation(npv, n/(n+m), level), draw_npv(npv, n, m, level, draws=20_000)
    for f in (5, 15, 30, 60): # at most f acceptable ads flagged: a Beta mixture of binomials
        exact = quad(lambda u: beta.pdf(u, n-3, 4)*binom.cdf(f, m, norm.cdf(norm.ppf(u)-apart)), .5, 1, limit=200)[0]
        assert (draws >= (n-3)/(n-3+f) - 1e-12).mean() == pytest.approx(exact, abs=.015)


def test_separation_gives_back_the_npv_and_keeps_to_its_range():
    for p in (.02, 1/7, .5):
        for level in (.01, .05, .3):
            floor = npv_floor(p, level)
            for npv in floor + (1-floor)*np.array([.01, .3, .9]):
                flagged = norm.cdf(norm.ppf(1-level) - separation(npv, p, level))
                assert p*(1-level)/(p*(1-level) + (1-p)*flagged) == pytest.approx(npv)
            assert separation(p, p, level) == pytest.approx(0, abs=1e-9) and separation(1, p, level) == np.inf
            for bad in (floor, floor/2, 1.1):
                with pytest.raises(UserError): separation(bad, p, level)
    for level in (0, 1, -1): # at 0 normal scores have no threshold
        with pytest.raises(UserError): separation(.5, .1, level)


def test_estimates_settle_on_the_truth_with_many_ads():
    for npv in (.2, .4, .8):
        for level in (.01, .05): assert np.median(draw_npv(npv, 100_000, 600_000, level, draws=2000)) == pytest.approx(npv, abs=.004)
    assert (draw_npv(1., 20, 50, .05, draws=50) == 1).all()


def test_table_has_every_row_and_its_columns_agree():
    table = power_table(PAPER)
    assert table.columns.tolist() == COLUMNS
    assert table[['split', 'level', 'npv']].to_records(index=False).tolist() == [(s, l, t) for s in ('teacher_test', 'test') for l in (.01, .05) for t in TRUTHS]
    assert table.groupby(['split', 'level']).allowed.first().tolist() == [1, 8, 7, 38]
    assert np.allclose(table.width, table.high-table.low) and (table.low <= table['median']).all() and (table['median'] <= table.high).all()
    assert (table.floor < table.npv).all() and table.floor.iloc[0] == npv_floor(160/1120, .01)
    wide = table.pivot(index=['level', 'npv'], columns='split', values='width')
    assert (wide.teacher_test > wide.test).all() # the same model on fewer ads
    row = table.iloc[1]
    assert [row.low, row['median'], row.high] == np.quantile(draw_npv(.4, 160, 960, .01), [.05, .5, .95]).tolist()


def test_only_truths_above_the_floor_are_asked_for():
    half = power_table(dict(test=dict(defective=500, acceptable=500)))
    assert set(half.npv) == {.6, .8} and (half.floor < half.npv).all()
    most = power_table(dict(test=dict(defective=950, acceptable=50)), levels=(.01,)) # the floor is above every one of them
    assert len(most) == 1 and most.floor[0] > .8 and most.npv[0] == (1+most.floor[0])/2 and most.low[0] <= most.npv[0] <= most.high[0]


def test_needed_is_about_the_size_at_which_the_width_is_reached():
    for level in (.01, .05):
        n = needed_defects(.6, 160, 960, level)
        width = {size: np.ptp(np.quantile(draw_npv(.6, size, 6*size, level, seed=5), [.05, .95])) for size in (n//2, n, 2*n)}
        assert width[n//2] > .12 > .11 > width[n] > .09 and width[2*n] < .08
        assert (level*n) == pytest.approx(round(level*n)) # a whole number may pass
    assert needed_defects(.6, 776, 4656, .01) == needed_defects(.6, 160, 960, .01) # hangs on the proportion, not on what is there
    assert needed_defects(.999, 3, 11, .01) is not None # proportions that rounding changes


def test_the_seed_names_the_draws():
    assert power_table(PAPER).equals(power_table(PAPER)) and teacher_table(PAPER).equals(paper_teachers())
    assert not power_table(PAPER, seed=1).equals(power_table(PAPER))
    alone = power_table(dict(test=PAPER['test']), levels=(.05,)) # other splits and levels do not shift it
    table = power_table(PAPER)
    assert alone.equals(table[(table.split == 'test') & (table.level == .05)].reset_index(drop=True))
    counts = {s: {k: np.int64(v) for k, v in c.items()} for s, c in PAPER.items()}
    assert power_table(counts).equals(table) and teacher_table(counts).equals(paper_teachers())


def test_degenerate_counts_give_rows_and_words():
    for n in (0, 1, 2, 49):
        for m in (0, 1, 2, 49):
            counts = {s: dict(defective=n, acceptable=m) for s in ('teacher_test', 'test')}
            table, teachers = power_table(counts, draws=200), teacher_table(counts, draws=200)
            assert set(table.split) == {'teacher_test', 'test'} and set(table.level) == {.01, .05} and len(teachers) == 3
            assert table.npv.isna().all() == teachers.lift.isna().all() == (not n or not m)
            if n and m: assert table[COLUMNS[:-1]].notna().all(axis=None) and table.low.ge(0).all() and table.high.le(1).all()
            words = power_words(table) + teacher_words(teachers)
            assert len(words) == 2 + 4 + 3 and not any('nan' in w or 'NA' in w for w in words)
            assert all('cannot be measured' in w for w in power_words(table)[2:]) == (not n or not m)
    assert power_table({}).columns.tolist() == COLUMNS and power_words(power_table({})) == []
    assert power_table(dict(test=dict(defective=1, acceptable=10**6)), draws=200).low.notna().all()


def test_a_warning_stands_exactly_where_one_per_cent_is_less_than_three_ads():
    for n in (0, 1, 99, 100, 199, 200, 299, 300, 301, 776):
        counts = dict(teacher_test=dict(defective=n, acceptable=900), test=PAPER['test'])
        for levels in ((.01, .05), (.05,)):
            table = power_table(counts, levels, draws=100)
            said = power_warnings(table)
            assert len(said) == (n < 300) and [w for w in power_words(table) if w.startswith('warning')] == said
            for w in said: assert 'teacher_test' in w and f'{n} defective ad' in w and '300 audited' in w and f'is {n//100} ad' in w


def test_words_carry_the_figures_of_the_table():
    table = power_table(PAPER)
    warning, *sentences = power_words(table)
    row = table.iloc[1]
    for w in (warning, sentences[0]): assert f'{row.low:.2f}' in w and f'{row.high:.2f}' in w and '0.40' in w
    assert [w.split(':')[0] for w in sentences] == [f'{s} ({n} defective, {m} acceptable), NPV@{l}%FPR' for s,n,m in (('teacher_test', 160, 960), ('test', 776, 4656)) for l in (1, 5)]
    assert '1 defective ad may' in sentences[0] and '8 defective ads may' in sentences[1]


@pytest.mark.parametrize('share, n, m', [(0, 160, 960), (1/16, 160, 960), (1/4, 40, 30), (.5, 5, 200)])
def test_the_lift_of_a_teacher_against_plain_simulation(share, n, m):
    rng, labels = rng_for('test_power', 'teacher', n, m), np.repeat([0, 1], [n, m])
    scores = rng.normal(size=(n+m, 1500))
    scores[:n] -= 20*(rng.random((n, 1500)) < share)
    plain, short = lift(npv_at(scores, labels, .02, 'acceptable'), n/(n+m)), draw_lift(share, n, m, .02, draws=4000)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        assert ks_2samp(short.round(9), plain.round(9)).pvalue > 1e-3


def test_hits_of_noise_are_beta_binomial():
    n, m, j = 160, 960, 19
    npv = draw_lift(0, n, m, .02, draws=20_000)*(1-1/7) + 1/7
    hits = np.round(j*npv/(1-npv))
    exact = betabinom(n, j+1, m-j)
    for h in (0, 2, 4, 8): assert (hits <= h).mean() == pytest.approx(exact.cdf(h), abs=.012)
    assert hits.mean() == pytest.approx(exact.mean(), abs=.06) # 3.33; one acceptable ad off would be .17 more


def test_the_best_specialist_is_the_limit_of_many_ads():
    for K in (1, 4, 100): assert np.median(draw_lift(1/K, 100_000, 600_000, .02, draws=500)) == pytest.approx(lift(best_npv(K, 1/7, .02), 1/7), abs=.005)
    assert best_npv(10**9, .2, .02) == pytest.approx(.2) # knows nothing: the prevalence
    assert best_npv(1, .2, .02) == pytest.approx(.2/(.2+.8*.02))


def test_drop_share_is_the_rule():
    assert drop_share(np.full(10, .05), .1) == 1 and drop_share(np.full(10, .1), .1) == 0
    lifts = np.linspace(-1, 1, 2001) # the arm is .9
    assert drop_share(lifts, .1) == pytest.approx(.1, abs=.002) # below -.8


def test_the_best_lift_and_the_level_that_keeps_it():
    for p in (.02, 1/7, .5):
        for level in (.003, .02): assert best_lift(1/16, p, level) == pytest.approx(lift(best_npv(16, p, level), p)) and best_lift(1, p, level) == pytest.approx(lift(p/(p+(1-p)*level), p))
        lifts = [best_lift(1/K, p, level_for(K, 10**6)) for K in (16, 32, 100, 1000)]
        assert np.ptp(lifts) < .05*lifts[0] and best_lift(1/100, p, .02) < .4*lifts[0]
    assert best_lift(1e-9, .2, .02) == pytest.approx(0, abs=1e-6) and best_lift(1/100, 1/7, .02) < .1 < best_lift(1/100, 1/7, level_for(100, 960))
    assert [level_for(K, 960) for K in (1, 4, 16)] == [.02]*3 and level_for(500, 960) == 1/960 and level_for(500, 10) == .02 # one ad, as far as 2 % allow it


def test_the_rule_that_is_tried_is_the_rule_of_selection():
    from subtask_kit.selection import Select, competence, judge
    n, m, rng = 150, 600, rng_for('power', 'rule', 150, 600, .01, 0)
    scores = rng.normal(size=(n+m, 300))
    scores[:n] -= 20*(rng.random((n, 300)) < .01)
    cfg = Select(level=.02, draws=1000)
    judged = judge(competence(scores, np.repeat([0, 1], [n, m]), cfg), cfg)
    assert try_rule(.01, n, m, cfg.level, cfg.T) == pytest.approx((judged.verdict == 'dropped').mean()) and judged.kept.any() and not judged.kept.all()


def test_nobody_is_dropped_who_was_never_measured():
    """Of perfect specialists with 15 or 30 defects the percentile bootstrap loses one in ten to one in three."""
    for n in (15, 30):
        for share in (1/16, 1/100): assert try_rule(share, n, 6*n, .02, .1) <= .02
    assert try_rule(0, 15, 90, .02, .1) <= .02 # nor noise: nothing speaks against it
    assert try_rule(0, 640, 3840, .02, .1) > .4 and try_rule(1/16, 640, 3840, .02, .1) == 0


def test_both_ways_to_the_share_that_is_dropped_agree_where_one_takes_over():
    for share in (0, 1/16, 1/100): assert try_rule(share, 1000, 6000, .02, .1) == pytest.approx(drop_share(draw_lift(share, 1000, 6000, .02), .1), abs=.25)
    assert try_rule(0, 60, 200, .02, -1) == 0 and try_rule(0, 60, 200, .02, 1.01) == 1


def test_teacher_table():
    table = teacher_table(PAPER, level=.02)
    assert table.columns.tolist() == TEACHER_COLUMNS and table.clusters.tolist() == [4, 16, 100] and table.per_cluster.tolist() == [40, 10, 1.6]
    assert np.allclose(table.width, table.high-table.low) and np.allclose(table.noise_width, table.noise_high-table.noise_low)
    assert table[['noise_low', 'noise_high', 'noise_dropped', 'needed']].nunique().eq(1).all() # noise knows no cluster
    assert (np.diff(table.lift) < 0).all() and (np.diff(table.lost) >= 0).all() and (np.diff(table.apart) > 0).all()
    n = int(table.needed[0]) # there, and not at half of it, nine of ten are dropped
    assert drop_share(draw_lift(0, n, 6*n, .02, seed=3), .1) > .85 > drop_share(draw_lift(0, n//2, 3*n, .02, seed=3), .1)
    n = int(table.apart[1])
    for size, told in ((n//2, False), (2*n, True)):
        assert (np.quantile(draw_lift(1/16, size, 6*size, .02, seed=3), .05) > np.quantile(draw_lift(0, size, 6*size, .02, seed=3), .95)) == told
    loose = teacher_table(PAPER, clusters=(16,), T=.3)
    assert loose.noise_dropped[0] > table.noise_dropped[1] and loose.lost[0] > table.lost[1] and loose.needed[0] < table.needed[1]


def test_the_level_of_the_table_follows_the_clusters():
    table = paper_teachers()
    assert table.level.tolist() == [level_for(K, 960) for K in (4, 16, 100)] and (table.lift > .1).all()
    fixed = teacher_table(PAPER, level=.02)
    assert table[:2].equals(fixed[:2]) and table.apart[2] < fixed.apart[2] # a smaller flag tells the best of a hundred from noise sooner


def test_teacher_words_say_where_T_lies_above_the_best():
    for table in (paper_teachers(), teacher_table(PAPER, level=.02)):
        words = teacher_words(table)
        assert [w.split(':')[0] for w in words] == ['K = 4', 'K = 16', 'K = 100'] and all(f'{100*level:.2g} %' in w for level, w in zip(table.level, words))
        assert ['below T' in w for w in words] == (table.lift < .1).tolist()


def test_the_table_takes_less_than_a_second():
    def seconds(f):
        start = time.process_time()
        f(PAPER)
        return time.process_time() - start
    assert min(seconds(power_table) for _ in range(3)) < 1 and seconds(teacher_table) < 3
