"What audited ads say of many teachers: levels, shrinkage, support, folds, second looks."
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, betabinom

from subtask_kit.core import ACCEPTABLE, DEFECTIVE
from subtask_kit.evidence import (SUPPORTED, agreement, chance_wrong, clearing, copies, crossfit, fit_beta, flipped, fold_losses, greedy, hits, places, prior_weights, rate_behind, reasons, shrink,
                                  support, weighted_quantiles)
from subtask_kit.metrics import counts_at, npv_at, operating_point, plausible_npv
from subtask_kit.power import best_npv, level_for


def sets(max_size=40, values=st.integers(-6, 6)):
    "Scores with many ties, and labels with both classes."
    return st.lists(st.tuples(values, st.booleans()), min_size=4, max_size=max_size).filter(lambda x: len({b for _, b in x}) == 2).map(lambda x: (np.array([float(v) for v, _ in x]), np.array([int(b) for _, b in x])))


# The level

def test_the_level_is_what_it_was_up_to_sixteen_clusters_and_shrinks_then():
    assert all(level_for(K, m) == .02 for K in range(1, 17) for m in (50, 960, 30_000))
    levels = [level_for(K, 30_000) for K in range(16, 600)]
    assert all(a > b for a, b in zip(levels, levels[1:])) and all(level_for(K, m)*m >= 1 - 1e-9 for K in (16, 100, 500) for m in (50, 300, 5000))
    assert level_for(4, 20) == .02, 'where even that allows none, it is not raised'


def test_at_every_number_of_clusters_a_perfect_specialist_clears_T():
    for K in (2, 16, 32, 100, 500):
        for p in (1/7, .25):
            best = (best_npv(K, p, level_for(K, 30_000)) - p)/(1-p)
            assert best > .25
    assert (best_npv(100, 1/7, .02) - 1/7)*7/6 < .1, 'at a fixed level it does not'


# Shrinkage

@settings(max_examples=200, deadline=None)
@given(sets(), st.sampled_from([0, .02, .1, .3, .6]), st.sampled_from(['acceptable', 'defective']))
def test_hits_are_what_the_operating_point_flags(given, level, rate_of):
    scores, labels = given
    x, n = hits(np.c_[scores, scores[::-1]], labels, level, rate_of)
    counts = counts_at(operating_point(scores, labels, level, rate_of), scores, labels)
    assert x[0] == counts['tn' if rate_of == 'acceptable' else 'fn'] and n == (labels == (DEFECTIVE if rate_of == 'acceptable' else ACCEPTABLE)).sum() and x.shape == (2,)


@pytest.mark.parametrize('shape', [(.6, 4.), (2., 30.), (8., 300.)])
def test_the_prior_is_the_likeliest_one(shape):
    "Against scipy's beta-binomial on a grid around it, and against the truth."
    rng = np.random.default_rng(0)
    x = rng.binomial(160, rng.beta(*shape, 3000))
    a, b = fit_beta(x, 160)
    best = betabinom.logpmf(x, 160, a, b).sum()
    assert all(betabinom.logpmf(x, 160, a*f, b*g).sum() <= best + 1e-3 for f in (.9, 1, 1.1) for g in (.9, 1, 1.1))
    assert a/(a+b) == pytest.approx(shape[0]/sum(shape), rel=.1) and np.log((a+b)/sum(shape)) == pytest.approx(0, abs=.4)


def test_a_prior_of_equal_or_empty_counts_is_finite():
    for x in (np.zeros(5), np.full(5, 160), np.full(7, 3), [4]):
        a, b = fit_beta(x, 160)
        assert np.isfinite([a, b]).all() and a > 0 and b > 0 and .49 < a+b < 1601


@pytest.mark.parametrize('x, prior', [(0, (1., 20.)), (3, (2., 60.)), (40, (5., 5.))])
@pytest.mark.parametrize('rate_of', ['acceptable', 'defective'])
def test_reweighted_draws_are_the_conjugate_posterior(x, prior, rate_of):
    "The oracle: Beta(a + hits, b + misses) of scipy."
    n, p, level = 160, 1/7, .02
    q = beta.rvs(x+.5, n-x+.5, size=(40_000, 1), random_state=0)
    caught, flagged = (q, level) if rate_of == 'acceptable' else (1-level, q)
    npv = p*caught/(p*caught + (1-p)*flagged)
    assert np.allclose(rate_behind(npv, p, level, rate_of), np.clip(q, 1e-9, 1), atol=1e-8)
    w = prior_weights(npv, prior, p, level, rate_of)
    truth = beta(prior[0]+x, prior[1]+n-x)
    assert w.sum() == pytest.approx(1) and (w*q).sum() == pytest.approx(truth.mean(), rel=.05)
    assert weighted_quantiles(q, w, [.05, .5, .95])[:, 0] == pytest.approx(truth.ppf([.05, .5, .95]), rel=.12, abs=2e-4)


@settings(max_examples=50, deadline=None)
@given(st.integers(20, 400), st.integers(1, 4), st.integers(0, 9))
def test_quantiles_of_equal_weights_are_quantiles(draws, K, seed):
    x = np.random.default_rng(seed).normal(size=(draws, K))
    found = weighted_quantiles(x, np.full(x.shape, 1/draws), [.1, .5, .9])
    assert np.allclose(found, np.quantile(x, [.1, .5, .9], axis=0, method='hazen'))
    order = np.random.default_rng(seed).permutation(draws)
    assert np.array_equal(weighted_quantiles(x[order], np.full(x.shape, 1/draws), [.1, .5, .9]), found)


def world(K, n, m, seed, noise=.25, push=4.):
    "Margins of K specialists; the first quarter flags a harmless kind; truth: which."
    rng, bad = np.random.default_rng(seed), int(noise*K)
    margins, kind, harmless = rng.normal(size=(n+m, K)), rng.integers(bad, K, n), rng.integers(0, 8*K, m)
    margins[np.arange(n), kind] -= push
    for i in np.flatnonzero(harmless < bad): margins[n+i, harmless[i]] -= push
    return margins, np.repeat([0, 1], [n, m]), np.arange(K) < bad


def test_shrunken_figures_lie_between_and_nearer_to_each_other():
    for seed in range(3):
        margins, labels, bad = world(16, 160, 960, seed)
        draws = plausible_npv(margins, labels, .02, 'acceptable', 2000)
        t = shrink(draws, margins, labels, .02, 'acceptable', .1)
        lifts = (draws.mean(0) - 1/7)*7/6
        assert np.ptp(t.shrunken) < np.ptp(lifts) and (t.shrunken_low <= t.shrunken).all() and (t.shrunken <= t.shrunken_high).all()
        assert t.below.between(0, 1 + 1e-9).all() and t.below[bad].min() > t.below[~bad].median()
        more = shrink(draws, margins, labels, .02, 'acceptable', .3)
        assert (more.below >= t.below).all(), 'more lies below a higher T'
        assert np.allclose(shrink(draws, margins, labels, .02, 'acceptable', 1/7 + .1*6/7, 'npv').below, t.below), 'the same T on the other scale'


def test_below_means_what_it_says():
    "Over 60 sets of 16 teachers, of those given a probability around q to lie below T about q do; a false alarm in less than one of a thousand such tests."
    T, told, truth = .1, [], []
    level, p = .02, 1/7
    for seed in range(60):
        rng = np.random.default_rng(seed)
        share = rng.beta(.5, 8, 16) # of the defects that each teacher surely flags
        margins, labels = rng.normal(size=(1120, 16)), np.repeat([0, 1], [160, 960])
        margins[:160] -= 20*(rng.random((160, 16)) < share)
        caught = share + (1-share)*level
        npv = p*caught/(p*caught + (1-p)*level)
        told += shrink(plausible_npv(margins, labels, level, 'acceptable', 1000, seed), margins, labels, level, 'acceptable', T).below.tolist()
        truth += ((npv-p)/(1-p) < T).tolist()
    told, truth = np.array(told), np.array(truth)
    for low, high in ((0, .2), (.2, .7), (.7, 1.01)):
        here = (low <= told) & (told < high)
        assert here.sum() > 40 and abs(truth[here].mean() - told[here].mean()) < .05 + 3.3*np.sqrt(.25/here.sum())


# Support

def one_hot(counts): return np.eye(len(counts))[np.repeat(np.arange(len(counts)), counts)]


def test_support_of_whole_ads_is_a_ratio_of_counts():
    found = support(one_hot([100, 50, 30]), one_hot([40, 20, 1]))
    for k, (t, s) in enumerate(((100, 40), (50, 20), (30, 1))):
        low, high = beta.ppf([.05, .95], s+.5, t+.5)
        assert found.loc[k, ['support', 'support_low', 'support_high']].tolist() == pytest.approx([s/61/(t/180), 180/61*low/(1-low), 180/61*high/(1-high)])
        cut = SUPPORTED*61/(SUPPORTED*61+180)
        assert found.unsupported[k] == pytest.approx(beta.cdf(cut, s+.5, t+.5))
    assert ((found.support_high < SUPPORTED) == (found.unsupported > .95)).all()


def test_support_does_not_hang_on_order_or_number():
    rng = np.random.default_rng(0)
    train, audited = rng.dirichlet(np.full(5, .3), 200), rng.dirichlet(np.full(5, .3), 90)
    found, order = support(train, audited), [3, 0, 4, 1, 2]
    assert np.allclose(support(train[::-1], audited[::-1]), found) and np.allclose(support(train[:, order], audited[:, order]), found.iloc[order])
    twice = support(np.tile(train, (2, 1)), np.tile(audited, (2, 1)))
    assert np.allclose(twice.support, found.support) and (twice.support_high - twice.support_low < found.support_high - found.support_low).all()
    assert (support(train, train).support == 1).all()


def test_support_without_audited_defects_knows_nothing():
    found = support(one_hot([5, 40]), np.zeros((0, 2)))
    assert not (found.support_high < SUPPORTED).any()


@pytest.mark.parametrize('spread, power', [(0, .9), (.25, .4)])
def test_support_drops_real_clusters_rarely_and_noisy_ones_often(spread, power):
    "Twenty clusters, four of them noise; routing that falls anywhere for a part of each ad hides noise, but loses no real cluster."
    lost, dropped, rng = [], [], np.random.default_rng(0)
    for _ in range(100):
        def routed(kind): return (1-spread)*np.eye(20)[kind] + spread*rng.dirichlet(np.full(20, .2), len(kind))
        drop = (support(routed(rng.integers(0, 20, 500)), routed(rng.integers(4, 20, 300))).support_high < SUPPORTED).to_numpy()
        lost += drop[4:].tolist(); dropped += drop[:4].tolist()
    assert np.mean(lost) < .02 and np.mean(dropped) > power


def test_a_cluster_at_the_limit_is_dropped_as_rarely_as_promised():
    "True support exactly at the limit: 5 % of such clusters are dropped, or fewer; with 1,600 of them 8 % is passed by chance in less than one of a million tests."
    rng, p = np.random.default_rng(1), np.repeat([.5, 1.125], [4, 16])/20
    dropped = [support(one_hot(rng.multinomial(1000, np.full(20, .05))), one_hot(rng.multinomial(400, p))).support_high[:4] < SUPPORTED for _ in range(400)]
    assert np.mean(dropped) < .08


# Folds

def brute_epochs(margins, labels, member, fold):
    out = np.empty((fold.max()+1, margins.shape[2]), int)
    for f in range(len(out)):
        for k in range(out.shape[1]):
            losses = []
            for m in margins[:, :, k]:
                d, a = (fold != f) & (labels == 0), (fold != f) & (labels == 1)
                losses.append(np.average(np.log1p(np.exp(m[d])), weights=member[d, k]) + np.log1p(np.exp(-m[a])).mean())
            out[f, k] = int(np.argmin(losses))
    return out


def folded(seed, E=4, n=80, K=3):
    rng = np.random.default_rng(seed)
    labels, fold = rng.permutation(np.repeat([0, 1], [n//4, n-n//4])), rng.permutation(np.arange(n) % 5)
    return rng.normal(size=(E, n, K)) + (2*labels[:, None]-1)*rng.random((E, 1, 1)), labels, rng.random((n, K)) + .01, fold


@pytest.mark.parametrize('seed', range(4))
def test_each_fold_is_measured_at_the_epoch_of_the_others(seed):
    margins, labels, member, fold = folded(seed)
    scores, epochs = crossfit(margins, labels, member, fold)
    assert np.array_equal(epochs, brute_epochs(margins, labels, member, fold))
    for f in range(5):
        for k in range(3):
            inside, m = fold == f, margins[epochs[f, k], :, k]
            assert np.array_equal(scores[inside, k], places(m, labels)[inside])
    spoilt = margins.copy()
    spoilt[:, fold == 2] = np.random.default_rng(9).normal(0, 9, spoilt[:, fold == 2].shape)
    assert np.array_equal(crossfit(spoilt, labels, member, fold)[1][2], epochs[2]), 'what a fold holds does not choose its epoch'
    assert np.array_equal(crossfit(margins.astype('float16'), labels, member, fold)[1].shape, epochs.shape)


def test_one_epoch_is_its_own_order():
    margins, labels, member, fold = folded(1)
    scores, epochs = crossfit(margins[:1], labels, member, fold)
    assert (epochs == 0).all()
    for level in (0, .02, .1, .3): assert np.array_equal(npv_at(scores, labels, level, 'acceptable'), npv_at(margins[0], labels, level, 'acceptable'))


@settings(max_examples=100, deadline=None)
@given(sets(), st.sampled_from([0, .05, .2, .5]))
def test_places_keep_the_operating_point_with_ties(given, level):
    scores, labels = given
    assert npv_at(places(scores, labels), labels, level, 'acceptable') == npv_at(scores, labels, level, 'acceptable')


def test_equal_losses_go_to_the_earlier_epoch():
    margins, labels, member, fold = folded(2)
    same = np.repeat(margins[:1], 3, 0)
    assert fold_losses(same, labels, member, fold).shape == (3, 5, 3) and (crossfit(same, labels, member, fold)[1] == 0).all()


# Second looks

@settings(max_examples=300, deadline=None)
@given(sets(), st.sampled_from([.06, .13, .21, .34]))
def test_flipping_one_verdict_is_measured_anew(given, level):
    "Against npv_at with that one label changed; where the number of ads that may be flagged changes with the label, there is nothing to compare."
    scores, labels = given
    found, m = flipped(scores, labels, level), int((labels == 1).sum())
    allowed = lambda m: int(level*m + 1e-9)
    for i in range(len(labels)):
        other = labels.copy()
        other[i] = 1-other[i]
        if len(set(other)) < 2 or allowed(m) != allowed(m + (1 if other[i] else -1)) or allowed(m) + 1 >= m: continue
        wanted = npv_at(scores, other, level, 'acceptable')
        nothing = wanted == (other == 0).mean() and found[i] == (labels == 0).mean() # nothing is flagged: the prevalence, which the verdict changes
        assert found[i] == pytest.approx(wanted) or nothing


def test_ads_beyond_the_threshold_clear_nothing():
    margins, labels, _ = world(4, 40, 300, 0)
    base = npv_at(margins, labels, .02, 'acceptable')
    shares = clearing(margins, labels, .02, base-.2, base+.2, base.mean(), np.full(len(labels), .5))
    bar = np.sort(margins[labels == 1], 0)[6]
    assert (shares[margins > bar] == 0).all() and (shares >= 0).all() and (shares <= .5).all() and shares.max() > 0


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 99))
def test_greedy_takes_the_best_each_time(n, U, seed):
    shares = np.random.default_rng(seed).random((n, U))*(np.random.default_rng(seed+1).random((n, U)) < .5)
    rows, gains = greedy(shares, 8)
    left, free = np.ones(U), set(range(n))
    for row, gain in zip(rows, gains):
        worth = {i: np.minimum(shares[i], left).sum() for i in free}
        assert gain == pytest.approx(max(worth.values())) == pytest.approx(worth[row])
        left -= np.minimum(shares[row], left); free.remove(row)
    assert len(rows) == len(set(rows)) <= 8 and all(a >= b - 1e-12 for a, b in zip(gains, gains[1:])) and sum(gains) <= U + 1e-9
    assert len(rows) == min(8, n) or max((np.minimum(shares[i], left).sum() for i in free), default=0) <= 1e-9


def test_chances_add_up_to_the_defects_there_are():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [50, 250])
    margins = rng.normal(3*labels - 1, 1)
    wrong = chance_wrong(margins, labels)
    p = np.where(labels == 0, 1-wrong, wrong)
    assert p.mean() == pytest.approx(1/6) and np.allclose(chance_wrong(margins + 5, labels), wrong), 'a shift of all margins says nothing'
    assert wrong[labels == 1][margins[labels == 1].argmin()] == wrong[labels == 1].max()


# Noise told in words

def test_agreement_is_of_other_kept_teachers():
    flags, cluster = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 1]], bool), np.array([0, 0, 1, 2])
    assert agreement(flags, cluster, np.arange(3), {0, 1, 2}).tolist() == [1, 0, 0]
    assert agreement(flags, cluster, np.arange(3), {0}).tolist()[1:] == [0, 0] and np.isnan(agreement(flags, cluster, np.arange(3), {0})[0])
    assert agreement(flags[:, ::-1], cluster, np.array([2, 1, 0]), {0, 1, 2}).tolist() == [0, 0, 1]


def test_copies_count_what_was_removed():
    members = pd.DataFrame(dict(ad_id=list('abcd'), cluster=[0, 0, 1, 2]))
    assert copies(pd.Series(['a', 'a', 'c', 'x', None]), members).to_dict() == {0: .5, 1: .5, 2: 0}


def test_reasons_begin_with_what_decided():
    row = dict(size=40, npv=.3, low=.2, high=.4, lift=.18, lift_low=.05, lift_high=.33, below=.2, why='kept by a person', by='rule', support=1., support_low=.6, support_high=1.7, suspects=.1, agreement=.1, busiest=.3, duplicates=0)
    assert reasons(row, .1, 'lift')[0].startswith('its teacher') and len(reasons(row, .1, 'lift')) == 2
    assert 'audited defects' in reasons(row | dict(support_high=.4), .1, 'lift')[0] and reasons(row | dict(by='person'), .1, 'lift')[0] == 'kept by a person'
    noisy = reasons(row | dict(size=4, suspects=.7, agreement=.9, busiest=.8, duplicates=.5), .1, 'lift')
    assert len(noisy) == 7 and any('4 ads' in r for r in noisy) and any('cleanlab' in r for r in noisy) and any('advertiser' in r for r in noisy)
    bare = reasons(dict(size=40, npv=np.nan, why='there is no teacher for it', support=np.nan), .1, 'lift')
    assert bare == ['there is no teacher for it']
