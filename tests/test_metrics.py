"NPV at a fixed error share: oracles (scikit-learn, scipy, brute force, explicit resampling) and properties."
import time

import numpy as np
import pytest
from scipy.stats import binom, binomtest, ks_2samp, norm
from sklearn.metrics import precision_recall_curve

from subtask_kit.core import UserError
from subtask_kit.metrics import (_npv, _prepared, _thresholds, _weight_blocks, at_prevalence, auc, bootstrap_npv, counts_at, gain_draws, interval, lift, npv_at, npv_floor,
                                 operating_point, paired_gain, plausible_npv, recall_at, wfpr, wilson)


def world(seed, ties=True, n=60):
    "Random scores, with many ties unless told otherwise, and labels that hold both classes."
    rng = np.random.default_rng(seed)
    labels = np.r_[0, 1, rng.integers(0, 2, rng.integers(2, n))]
    scores = rng.integers(0, rng.integers(1, 12), len(labels)) if ties else rng.normal(labels, 1)
    return scores.astype(float), labels


def brute(scores, labels, level, rate_of):
    "Try every threshold; lowest that holds the level for the defective, highest for the acceptable."
    found = []
    for t in [-np.inf, *np.unique(scores)]:
        passed = ((scores > t) & (labels == 0)).sum()/(labels == 0).sum()
        hit = ((scores <= t) & (labels == 1)).sum()/(labels == 1).sum()
        if (passed if rate_of == 'defective' else hit) <= level + 1e-9: found.append(t)
    t = min(found) if rate_of == 'defective' else max(found)
    flagged = scores <= t
    return t, (labels[flagged] == 0).mean() if flagged.any() else (labels == 0).mean()


@pytest.mark.parametrize('rate_of', ['defective', 'acceptable'])
def test_operating_point_and_npv_against_a_scan_of_all_thresholds(rate_of):
    for seed in range(150):
        scores, labels = world(seed, ties=seed % 3 > 0)
        for level in (0, .01, .1, .3, .9):
            t, npv = brute(scores, labels, level, rate_of)
            assert operating_point(scores, labels, level, rate_of) == t
            assert npv_at(scores, labels, level, rate_of) == pytest.approx(npv, abs=1e-12)


def test_against_scikit_learn():
    for seed in range(100):
        scores, labels = world(seed, ties=seed % 2)
        for level in (.01, .05, .25):
            precision, recall, thresholds = precision_recall_curve(labels == 0, 1-scores)
            enough = recall[:-1] >= 1-level-1e-9
            best = thresholds[enough].max() # the strictest flag that still has the recall
            assert npv_at(scores, labels, level) == pytest.approx(precision[:-1][thresholds == best].item())
            assert 1-operating_point(scores, labels, level) == pytest.approx(best)


def test_counts_agree_with_the_operating_point():
    for seed in range(30):
        scores, labels = world(seed)
        t = operating_point(scores, labels, .1)
        c = counts_at(t, scores, labels)
        assert sum(c.values()) == len(labels) and c['fp'] <= .1*(labels == 0).sum()
        assert c['tn']/(c['tn']+c['fn']) == npv_at(scores, labels, .1)
        assert recall_at(t, scores[labels == 0]) == pytest.approx(1-c['fp']/(c['fp']+c['tn']))


def test_the_allowed_number_is_whole_and_survives_rounding():
    d = np.arange(100.)
    labels = np.r_[np.zeros(100, int), 1]
    for level, allowed in ((.29, 29), (.57, 57), (.1, 10), (.019, 1), (.0, 0)): # .29*100 and .57*100 lie below the whole number
        assert counts_at(operating_point(np.r_[d, 1e3], labels, level), np.r_[d, 1e3], labels)['fp'] == allowed


def test_ties_go_against_the_model():
    scores, labels = np.array([0., 0, 0, 1]), np.array([0, 1, 1, 1])
    assert npv_at(scores, labels, .01) == pytest.approx(1/3)
    assert operating_point(scores, labels, .3, 'acceptable') == -np.inf # one more flagged ad would be two
    assert npv_at(scores, labels, .3, 'acceptable') == .25              # nothing flagged: the prevalence


def test_floor_holds_for_every_scorer_and_is_reached():
    rng = np.random.default_rng(0)
    for seed in range(100):
        scores, labels = world(seed)
        for level in (.01, .2): assert npv_at(scores, labels, level) >= npv_floor((labels == 0).mean(), level) - 1e-12
    labels = np.repeat([0, 1], [100, 300])
    worst = np.r_[np.full(99, 1.), 2., np.zeros(300)] # every acceptable ad below the defects, one defect allowed to pass
    assert npv_at(worst, labels, .01) == pytest.approx(npv_floor(.25, .01))
    assert npv_at(np.zeros(400), labels, .01) == npv_at(np.zeros(400), labels, .01, 'acceptable') == .25
    assert npv_at(rng.random((400, 500)), labels, .05).mean() == pytest.approx(.25, abs=.01)
    assert npv_at(rng.random((400, 500)), labels, .05, 'acceptable').mean() == pytest.approx(npv_floor(.25, .05, 'acceptable'), abs=.02)


def test_published_floor_and_lift():
    floor = npv_floor(160/1120, .01)
    assert floor == pytest.approx(.1416, abs=1e-4) and lift(.1, floor) < 0
    assert npv_floor(.2, .3, 'acceptable') == .2
    assert lift(floor, floor) == 0 and lift(1., floor) == 1


def test_a_looser_level_never_raises_the_threshold_of_the_flag():
    for seed in range(30):
        scores, labels = world(seed)
        ts = [operating_point(scores, labels, level) for level in (0, .05, .2, .5)]
        us = [operating_point(scores, labels, level, 'acceptable') for level in (0, .05, .2, .5)]
        assert ts == sorted(ts, reverse=True) and us == sorted(us)


def test_npv_hangs_on_the_order_alone_and_falls_with_every_worse_ad():
    for seed in range(30):
        scores, labels = world(seed)
        for rate_of in ('defective', 'acceptable'):
            npv = npv_at(scores, labels, .1, rate_of)
            assert npv_at(np.exp(scores/5), labels, .1, rate_of) == npv
            better = scores - 20.*(labels == 0) # pushing all defects below everything else catches them all
            assert npv_at(better, labels, .1) == 1 if rate_of == 'defective' else npv_at(better, labels, .1, rate_of) >= npv
        assert npv_at(scores + 1.*(labels == 1), labels, .1) >= npv_at(scores, labels, .1)


def test_prevalence():
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(np.repeat([0, 2], [200, 200]), 1), np.repeat([0, 1], [200, 200])
    thin = np.r_[np.arange(200), 200 + np.tile(np.arange(200), 9)] # each acceptable ad nine times: prevalence .1
    npv = npv_at(scores, labels, .05)
    assert at_prevalence(npv, .5, .1) == pytest.approx(npv_at(scores[thin], labels[thin], .05))
    assert at_prevalence(npv, .5, .5) == pytest.approx(npv) and at_prevalence(at_prevalence(npv, .5, .02), .02, .5) == pytest.approx(npv)
    assert at_prevalence(1., .5, .01) == 1 and at_prevalence(0., .5, .01) == 0


@pytest.mark.parametrize('rate_of', ['defective', 'acceptable'])
def test_bootstrap_weights_equal_explicit_resampling(rate_of):
    rng = np.random.default_rng(2)
    for seed in range(60):
        scores, labels = world(seed, ties=seed % 3 > 0)
        d, a = scores[labels == 0], scores[labels == 1]
        pick_d, pick_a = rng.integers(0, len(d), (5, len(d))), rng.integers(0, len(a), (5, len(a)))
        w_d, w_a = (np.stack([np.bincount(p, minlength=len(x)) for p in pick]).astype(np.int32) for pick, x in ((pick_d, d), (pick_a, a)))
        drawn = _npv([_prepared(d, a, rate_of)], w_d, w_a, .1, rate_of)[:, 0]
        for i in range(5):
            again = np.r_[d[pick_d[i]], a[pick_a[i]]], np.r_[np.zeros(len(d), int), np.ones(len(a), int)]
            assert drawn[i] == pytest.approx(npv_at(*again, .1, rate_of))


def test_bootstrap_columns_draws_and_seeds(monkeypatch):
    rng = np.random.default_rng(3)
    labels = np.repeat([0, 1], [50, 150])
    scores = rng.normal(labels[:, None], 1, (200, 3))
    draws = bootstrap_npv(scores, labels, .05, draws=120)
    assert draws.shape == (120, 3) and bootstrap_npv(scores[:, 0], labels, .05, draws=120).shape == (120,)
    for j in range(3): assert np.array_equal(draws[:, j], bootstrap_npv(scores[:, j], labels, .05, draws=120))
    shuffled = rng.permutation(200)
    assert np.allclose(bootstrap_npv(scores[shuffled], labels[shuffled], .05, draws=500).mean(0), bootstrap_npv(scores, labels, .05, draws=500).mean(0), atol=.05)
    assert not np.array_equal(draws, bootstrap_npv(scores, labels, .05, draws=120, seed=1))
    monkeypatch.setattr('subtask_kit.metrics.CELLS', 1000) # in blocks of five draws
    assert np.array_equal(bootstrap_npv(scores, labels, .05, draws=120), draws)


def test_bootstrap_centre_and_spread():
    "The sd over draws resembles the sd over fresh sets."
    rng = np.random.default_rng(4)
    labels = np.repeat([0, 1], [400, 1200])
    sets = rng.normal(3*labels[:, None], 1, (1600, 200))
    truth = npv_at(sets, labels, .05)
    sds = bootstrap_npv(sets[:, :20], labels, .05, draws=200).std(0)
    assert sds.mean() == pytest.approx(truth.std(), rel=.35)
    low, high = interval(bootstrap_npv(sets[:, :100], labels, .05, draws=200))
    assert .8 < ((low <= np.median(truth)) & (np.median(truth) <= high)).mean() <= 1


def test_a_hundred_teachers_in_seconds():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], [160, 960])
    scores, start = rng.normal(2*labels[:, None], 1, (1120, 100)), time.process_time()
    bootstrap_npv(scores, labels, .01, draws=1000)
    assert time.process_time()-start < 6 # about half a second on an idle core


def test_gain_is_paired():
    rng = np.random.default_rng(6)
    labels = np.repeat([0, 1], [200, 600])
    b = rng.normal(2*labels, 1)[:, None] + rng.normal(0, .1, (800, 3))
    assert (gain_draws(b[:, :1], b[:, :1], labels, .05, draws=100) == 0).all()
    a = b + .5*labels[:, None]
    gain, low, high = paired_gain(a, b, labels, .05, draws=300)
    assert 0 < low < gain < high and gain == pytest.approx(npv_at(a, labels, .05).mean() - npv_at(b, labels, .05).mean())
    flipped = paired_gain(b, a, labels, .05, draws=300)
    assert flipped[0] == pytest.approx(-gain) and flipped[2] < 0
    alone = interval(bootstrap_npv(a, labels, .05, draws=300).mean(1))
    assert high-low < alone[1]-alone[0]
    assert paired_gain(a, b[:, 0], labels, .05, draws=50, rate_of='acceptable', seed=3)[0] == pytest.approx(
        npv_at(a, labels, .05, 'acceptable').mean() - npv_at(b[:, 0], labels, .05, 'acceptable'))


def test_gain_draws_carry_the_luck_of_seeds():
    rng = np.random.default_rng(7)
    labels = np.repeat([0, 1], [200, 600])
    base = rng.normal(2*labels, 1)
    steady, moody = np.stack([base]*4, 1), np.stack([base + s*labels for s in (-1, -.3, .3, 1)], 1)
    reference = base[:, None]
    gain = npv_at(moody, labels, .05).mean() - npv_at(base, labels, .05)
    assert gain_draws(moody, reference, labels, .05, draws=300).mean() == pytest.approx(gain, abs=.03)
    assert gain_draws(moody, reference, labels, .05, draws=300).std() > 2*gain_draws(steady, reference, labels, .05, draws=300).std()


def test_interval_and_wilson():
    draws = np.arange(101)/100
    assert interval(draws).tolist() == pytest.approx([.05, .95]) and interval(np.stack([draws]*3, 1), .5).shape == (2, 3)
    for k, n in ((0, 10), (1, 8), (7, 7), (40, 100)):
        for coverage in (.9, .95):
            expected = binomtest(k, n).proportion_ci(coverage, method='wilson')
            assert wilson(k, n, coverage) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert wilson(0, 0) == (0, 1)
    low, high = wilson(np.array([1, 0]), np.array([10, 0]))
    assert low.shape == (2,) and (low[1], high[1]) == (0, 1)


def test_auc_counts_pairs():
    scores, labels = world(8)
    pairs = [(a > d) + .5*(a == d) for a in scores[labels == 1] for d in scores[labels == 0]]
    assert auc(scores, labels) == pytest.approx(np.mean(pairs))


def test_wfpr():
    assert wfpr([1, 0, 0, 0]) == .25 and wfpr([1, 0], [1, 3]) == .25
    assert wfpr([1, 0, 1], [5, 5, 0]) == wfpr([1, 0])
    rng = np.random.default_rng(9) # drawing in proportion to impressions estimates the weighted share
    bad, seen = rng.random(1000) < .1, rng.lognormal(0, 1, 1000)
    drawn = rng.choice(1000, 200_000, p=seen/seen.sum())
    assert wfpr(bad[drawn]) == pytest.approx(wfpr(bad, seen), abs=.005)
    for wrong in ([-1, 1], [np.nan, 1], [0, 0]):
        with pytest.raises(UserError): wfpr([1, 0], wrong)


def test_mistakes_are_named():
    with pytest.raises(UserError, match='0 defective and 2 acceptable'): npv_at([.1, .2], [1, 1], .01)
    with pytest.raises(UserError, match='not a number'): npv_at([.1, np.nan], [0, 1], .01)
    for level in (1, -.1, 5):
        with pytest.raises(UserError, match='not a share'): npv_at([.1, .2], [0, 1], level)
    for f in (npv_at, operating_point, bootstrap_npv):
        with pytest.raises(UserError, match='not known'): f([.1, .2], [0, 1], .01, 'harmless')
    with pytest.raises(UserError, match='not known'): npv_floor(.1, .01, 'harmless')
    with pytest.raises(ValueError): npv_at([.1, .2], [0, 2], .01)
    with pytest.raises(ValueError): operating_point([.1], [0, 1], .01)


def test_small_floats_keep_their_order():
    rng = np.random.default_rng(10)
    scores, labels = rng.normal(size=300).astype('float16'), rng.integers(0, 2, 300)
    assert npv_at(scores, labels, .1) == npv_at(scores.astype(float), labels, .1)


def slow_bootstrap(scores, labels, level, rate_of, draws, seed):
    "Repeat every ad as often as it was drawn, and measure."
    d, a = scores[labels == 0], scores[labels == 1]
    out = []
    for w_d, w_a in _weight_blocks(len(d), len(a), draws, seed):
        for i, j in zip(w_d, w_a): out.append(npv_at(np.r_[np.repeat(d, i), np.repeat(a, j)], np.repeat([0, 1], [len(d), len(a)]), level, rate_of))
    return np.array(out)


@pytest.mark.parametrize('rate_of', ['defective', 'acceptable'])
def test_bootstrap_is_the_plain_one(rate_of):
    for seed in range(40): # few distinct scores, one ad of a class, levels that allow none or nearly all
        scores, labels = world(seed, ties=seed % 3 > 0, n=[4, 60, 300][seed % 3])
        for level in (0, .02, .3, .95): assert np.array_equal(bootstrap_npv(scores, labels, level, rate_of, draws=8, seed=seed), slow_bootstrap(scores, labels, level, rate_of, 8, seed))


def population(n, m, npv, level, rate_of, sets, rng):
    "Normal scores whose true NPV at exactly the level is known."
    if rate_of == 'defective': passing, flagged = level, n*(1-level)/m*(1-npv)/npv
    else: passing, flagged = 1 - level*m/n*npv/(1-npv), level
    return np.concatenate([rng.normal(size=(n, sets)), rng.normal(size=(m, sets)) + norm.ppf(1-passing) - norm.ppf(flagged)]), np.repeat([0, 1], [n, m])


def misses(draws, truth, coverage=.95):
    "How many intervals lie above the truth, and how many below it."
    low, high = interval(draws, coverage)
    return int((low > truth).sum()), int((high < truth).sum())


@pytest.mark.parametrize('n, m, npv, level, rate_of', [(160, 960, .17, .01, 'defective'), (160, 960, .4, .01, 'defective'), (776, 4656, .4, .01, 'defective'), (160, 960, .8, .02, 'acceptable'),
                                                       (160, 960, .4, .02, 'acceptable')])
def test_plausible_intervals_hold_the_truth(n, m, npv, level, rate_of):
    """An interval that misses 2.5 % of the time on each side misses more than 18 of 300 on one with a probability of 3e-4; over the five worlds and two sides the false alarm rate is .003.
    The percentile bootstrap misses 15 % on one side at 160 defects, and is caught nearly always."""
    rng = np.random.default_rng(11)
    draws, bound = [], binom.isf(3e-4, 300, .025)
    for seed in range(6): # each with its own thresholds
        scores, labels = population(n, m, npv, level, rate_of, 50, rng)
        draws.append(plausible_npv(scores, labels, level, rate_of, draws=600, seed=seed))
    above, below = misses(np.hstack(draws), npv)
    assert above <= bound and below <= bound
    low, high = interval(np.hstack(draws), .95)
    assert (high-low).mean() < {.17: .08, .4: .4, .8: .2}[npv] # nor is it safe by being empty of meaning


def test_the_bound_of_the_coverage_test_catches_the_percentile_bootstrap():
    scores, labels = population(160, 960, .4, .01, 'defective', 300, np.random.default_rng(11))
    assert misses(bootstrap_npv(scores, labels, .01, draws=200), .4)[0] > binom.isf(3e-4, 300, .025)
    with pytest.MonkeyPatch.context() as patch: # and so are thresholds that never lie past the last defect
        patch.setattr('subtask_kit.metrics._past', lambda counts, m, share, rng: np.full(len(share), float(counts[-1])))
        assert misses(plausible_npv(scores, labels, .01, draws=200), .4)[0] > binom.isf(3e-4, 300, .025)


def test_thresholds_are_drawn_as_order_statistics_say():
    "Against uniform held ads: how many lie before the threshold, and the shares beyond its two neighbours, as a simulation has them."
    rng = np.random.default_rng(12)
    for n, level in ((20, .1), (160, .01), (5, .5)):
        x = np.sort(1-rng.random((20_000, n)), axis=1)[:, ::-1] # shares beyond each ad, falling
        near = (x > level).sum(1)
        last = np.where(near > 0, np.take_along_axis(x, np.maximum(near-1, 0)[:, None], 1)[:, 0], 1)
        following = np.where(near < n, np.take_along_axis(x, np.minimum(near, n-1)[:, None], 1)[:, 0], np.nan)
        drawn_near, between, share = _thresholds(n, level, 20_000, 0)
        assert ks_2samp(near, drawn_near).pvalue > 1e-3 and ks_2samp(last/level, share).pvalue > 1e-3
        inside = near < n
        assert ks_2samp(((last-level)/(last-following))[inside], between[drawn_near < n]).pvalue > 1e-3
        assert ((0 <= between) & (between <= 1)).all() and (share >= 1).all()


@pytest.mark.parametrize('rate_of', ['defective', 'acceptable'])
def test_plausible_draws_follow_order_columns_and_seeds(rate_of):
    rng = np.random.default_rng(13)
    for labels, scores in ((np.repeat([0, 1], [50, 300]), rng.normal(size=(350, 3))), (rng.permutation(np.repeat([0, 1], [30, 30])), rng.integers(0, 6, (60, 3)).astype(float))):
        draws = plausible_npv(scores, labels, .05, rate_of, draws=150)
        assert draws.shape == (150, 3) and ((0 <= draws) & (draws <= 1)).all()
        for j in range(3): assert np.array_equal(draws[:, j], plausible_npv(scores[:, j], labels, .05, rate_of, draws=150))
        shuffled = rng.permutation(len(labels))
        assert np.array_equal(draws, plausible_npv(scores[shuffled], labels[shuffled], .05, rate_of, draws=150))
        for same in (np.exp(scores), 3*scores-7, scores**3, scores.astype('float32')): assert np.array_equal(draws, plausible_npv(same, labels, .05, rate_of, draws=150))
        assert not np.array_equal(draws, plausible_npv(scores, labels, .05, rate_of, draws=150, seed=1))
        assert np.array_equal(draws, plausible_npv(scores.tolist(), labels.tolist(), .05, rate_of, draws=150))


def test_plausible_limits():
    def bounds(d, a, level, rate_of='defective', coverage=.95):
        return interval(plausible_npv(np.r_[d, a], np.repeat([0, 1], [len(d), len(a)]), level, rate_of), coverage)
    few, many = np.arange(160), 1000+np.arange(960)
    for rate_of, best in (('defective', 1), ('acceptable', 1/(1 + 6*.05))): # no defect out of place; one acceptable ad in twenty is flagged all the same
        low, high = bounds(few, many, .05, rate_of)
        assert best - .03 < low < best - .002 and best - .001 < high <= best
        for n, m in ((1, 1), (1, 50), (50, 1), (2, 3)):
            for level in (0, .01, .3, .99): # one ad of a class; levels that allow nothing or everything
                for scores in (np.zeros(n+m), np.arange(n+m), -np.arange(n+m)):
                    low, high = bounds(scores[:n], scores[n:], level, rate_of)
                    assert 0 <= low <= high <= 1
    low, high = bounds(few, many, .0001) # 160 defects cannot say where the threshold of one in ten thousand lies
    assert low == pytest.approx(npv_floor(1/7, .0001), abs=.01) and high > .9
    hitless, wide = bounds(500+np.arange(30), np.arange(180), .02, 'acceptable')
    assert hitless < .01 and wide > .2 # three acceptable ads flagged and no defect: nothing is certain
    assert bounds(5000+np.arange(3000), np.arange(18000), .02, 'acceptable')[1] < .05 # until there are defects enough
    tied = bounds(np.zeros(160), np.zeros(960), .01)
    assert tied == pytest.approx([1/7, 1/7], abs=.005) # flags everything, as `npv_at` does
    low, high = bounds(np.zeros(160), np.zeros(960), .02, 'acceptable')
    assert low < 1/7 < high and high-low > .5 # may flag nothing: not measured
    assert np.array_equal(bounds(few, many, 0), bounds(few, many, .5/160))


def test_plausible_draws_settle_on_the_truth():
    rng = np.random.default_rng(14)
    for rate_of, npv, level in (('defective', .4, .01), ('acceptable', .8, .02)):
        scores, labels = population(20_000, 120_000, npv, level, rate_of, 1, rng)
        draws = plausible_npv(scores[:, 0], labels, level, rate_of)
        assert np.abs(draws-npv).max() < .1 and draws.mean() == pytest.approx(npv_at(scores[:, 0], labels, level, rate_of), abs=.01)
    ties = np.round(scores[:, 0], 1) # with ties it is the NPV of a threshold on the grid
    assert plausible_npv(ties, labels, .02, 'acceptable').mean() == pytest.approx(npv_at(ties, labels, .02, 'acceptable'), abs=.03)


def test_plausible_mistakes_are_named():
    with pytest.raises(UserError, match='0 defective and 2 acceptable'): plausible_npv([.1, .2], [1, 1], .01)
    with pytest.raises(UserError, match='not a number'): plausible_npv([.1, np.nan], [0, 1], .01)
    with pytest.raises(UserError, match='not a share'): plausible_npv([.1, .2], [0, 1], 1)
    with pytest.raises(UserError, match='not known'): plausible_npv([.1, .2], [0, 1], .01, 'harmless')


def test_a_hundred_teachers_have_plausible_intervals_at_once():
    rng = np.random.default_rng(15)
    labels = np.repeat([0, 1], [160, 960])
    scores, start = rng.normal(2*labels[:, None], 1, (1120, 100)), time.process_time()
    plausible_npv(scores, labels, .01, draws=1000)
    assert time.process_time()-start < 1 # about .03 s on an idle core
