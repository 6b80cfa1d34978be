"""Measure how often intervals for NPV hold the truth, how wide they are, what they take, and what the rule of selection makes of them; CPU seconds of one thread.

    python tools/measure_intervals.py                    # all of it, into nbs/benchmarks/results/intervals_*.csv
    python tools/measure_intervals.py coverage rule      # some of its parts; rows of `coverage` that are there are not measured again: delete its file to begin anew

coverage  the interval of one scorer, on simulated test sets whose true NPV is known
tails     what is assumed about thresholds past the last ad: the choices, on worlds that the kit's was chosen on
rule      what the rule of selection drops, with the bootstrap's interval and with the kit's
levels    the best specialist's lift at a level that is fixed and at one that shrinks with K
speed     CPU seconds beside torchmetrics (left out where it is not installed) and a loop over scikit-learn
"""
import argparse
import os
import resource
import time
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # read when numpy is imported
import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import norm
from scipy.stats import t as student

from subtask_kit import metrics
from subtask_kit.core import rng_for
from subtask_kit.metrics import _allowed, _far, _prepared, _weight_blocks, bootstrap_npv, interval, lift, npv_at, plausible_npv
from subtask_kit.power import best_lift, level_for

OUT = Path(__file__).parents[1]/'nbs/benchmarks/results'
SETS, DRAWS, CHUNK = 2000, 1000, 100 # test sets of a row; draws of each interval; sets that share a seed
NAMES = 'rate_of', 'level', 'defective', 'acceptable', 'world', 'npv'


# Worlds: scores of n defective and m acceptable ads in `sets` columns, with a true NPV at exactly the level

def wrong_shares(npv, n, m, level, rate_of):
    "True shares of defects that pass and of acceptable ads that are flagged."
    if rate_of == 'defective': return level, n*(1-level)/m*(1-npv)/npv
    return 1 - level*m/n*npv/(1-npv), level

def placed(dist, width=1.):
    "Scores of one shape, `width` times as wide for the acceptable ads, so far apart that the NPV is true."
    def draw(npv, n, m, level, rate_of, sets, rng):
        passing, flagged = wrong_shares(npv, n, m, level, rate_of)
        d, a = (dist.rvs(size=(k, sets), random_state=rng) for k in (n, m))
        return d, dist.ppf(1-passing) + width*(a-dist.ppf(flagged)), npv
    return draw

def misjudged(npv, n, m, level, rate_of, sets, rng, share=.005):
    "Normal scores; half a per cent of the defects are acceptable ads in truth and look like them."
    passing, flagged = wrong_shares(npv, n, m, level, rate_of)
    apart = brentq(lambda x: (1-share)*ndtr(-x-ndtri(flagged)) + share*(1-flagged) - passing, -20, 40)
    return rng.normal(size=(n, sets)) + apart*(rng.random((n, sets)) < share), apart + rng.normal(size=(m, sets)), npv

def tied(npv, n, m, level, rate_of, sets, rng, grid=.25):
    "Normal scores, rounded; the true NPV is that of the threshold on the grid which keeps the level."
    d, a, _ = placed(norm)(npv, n, m, level, rate_of, sets, rng)
    passing, flagged = wrong_shares(npv, n, m, level, rate_of)
    at, apart = ndtri(1-passing), ndtri(1-passing) - ndtri(flagged)
    t = (np.ceil(at/grid - .5 - 1e-9) if rate_of == 'defective' else np.floor(at/grid - .5 + 1e-9))*grid + grid/2 # an edge between two values
    tn, fn = n*ndtr(t), m*ndtr(t-apart)
    return np.round(d/grid)*grid, np.round(a/grid)*grid, tn/(tn+fn)

def specialist(share):
    "A teacher that surely flags a share of the defects and to which the others are like any ad."
    def draw(npv, n, m, level, rate_of, sets, rng):
        caught = n*(share + (1-share)*level)
        return rng.normal(size=(n, sets)) - 20*(rng.random((n, sets)) < share), rng.normal(size=(m, sets)), caught/(caught + m*level)
    return draw

WORLDS = {'normal': placed(norm), 'acceptable ads wider': placed(norm, 1.7), 'defects wider': placed(norm, .6), 'heavy tails': placed(student(3)), 'misjudged': misjudged,
          'ties': tied, 'noise': specialist(0), 'best of 16': specialist(1/16), 'best of 100': specialist(1/100)}

def drawn(name, npv, n, m, level, rate_of, sets, *seed):
    "Scores (ads x sets), labels, true NPV."
    d, a, truth = WORLDS[name](npv, n, m, level, rate_of, sets, rng_for('intervals', name, str(npv), n, m, level, rate_of, *seed))
    return np.concatenate([d, a]), np.repeat([0, 1], [n, m]), truth


# Methods: (scores, labels, level, rate_of, seed) -> {coverage: (low, high)}

COVERAGES = .95, .9

def from_draws(f):
    def method(scores, labels, level, rate_of, seed):
        draws = f(scores, labels, level, rate_of, draws=DRAWS, seed=seed)
        return {c: interval(draws, c) for c in COVERAGES}
    return method

def npv_of(wrong, n, m, level, rate_of):
    "NPV at exactly the level, from the other class's share on the wrong side."
    caught, flagged = (1-level, wrong) if rate_of == 'defective' else (1-wrong, level)
    return n*caught/np.maximum(n*caught + m*flagged, 1e-300)

def smoothed(scores, labels, level, rate_of, draws, seed):
    "Bootstrap whose ads are moved by a normal kernel of Silverman's width."
    rng, out = rng_for('smoothed', seed), []
    d, a = scores[labels == 0], scores[labels == 1]
    def width(x): return .9*np.minimum(x.std(ddof=1), np.subtract(*np.quantile(x, [.75, .25]))/1.34)*len(x)**-.2
    for x, y in zip(d.T, a.T):
        x, y = (v[rng.integers(0, len(v), (draws, len(v)))] + width(v)*rng.standard_normal((draws, len(v)), np.float32) for v in (x, y))
        n, m = x.shape[1], y.shape[1]
        k = n-1-_allowed(level, n) if rate_of == 'defective' else _allowed(level, m)
        t = np.partition(x if rate_of == 'defective' else y, k, axis=1)[:, [k]]
        tn, fn = ((x <= t).sum(1), (y <= t).sum(1)) if rate_of == 'defective' else ((x < t).sum(1), (y < t).sum(1))
        out.append(np.where(tn+fn > 0, tn/np.maximum(tn+fn, 1), n/(n+m)))
    return np.array(out).T

def left_out(d, a, level, rate_of):
    "NPV without each defective and without each acceptable ad (no ties)."
    d, a = np.sort(d), np.sort(a)
    def npv(tn, fn): return tn/(tn+fn) if tn+fn else len(d)/(len(d)+len(a))
    def at(held, k): return npv(*((np.searchsorted(d, held[k], 'right'), np.searchsorted(a, held[k], 'right')) if rate_of == 'defective' else
                                  (np.searchsorted(d, held[k]), np.searchsorted(a, held[k]))))
    held = d if rate_of == 'defective' else a
    def without(i): # of the held class: the threshold moves
        rest = np.delete(held, i)
        k = len(rest)-1-_allowed(level, len(rest)) if rate_of == 'defective' else _allowed(level, len(rest))
        x, y = (rest, a) if rate_of == 'defective' else (d, rest)
        side = 'right' if rate_of == 'defective' else 'left'
        return npv(np.searchsorted(x, rest[k], side), np.searchsorted(y, rest[k], side))
    k = len(held)-2-_allowed(level, len(held)-1) if rate_of == 'defective' else _allowed(level, len(held)-1)
    of_held = np.where(np.arange(len(held)) <= k, without(0), without(len(held)-1)) # only the side matters
    t = held[len(held)-1-_allowed(level, len(held))] if rate_of == 'defective' else held[_allowed(level, len(held))]
    other, side = (a, 'right') if rate_of == 'defective' else (d, 'left')
    inside = np.searchsorted(other, t, side)
    tn, fn = (np.searchsorted(d, t, side), np.searchsorted(a, t, side))
    fewer = npv(tn, fn-1) if rate_of == 'defective' and inside else npv(tn-1, fn) if inside else npv(tn, fn)
    of_other = np.where(np.arange(len(other)) < inside, fewer, npv(tn, fn))
    return of_held, of_other

def bca(scores, labels, level, rate_of, seed):
    "Bias-corrected and accelerated bootstrap (Efron 1987; two samples as in Davison and Hinkley, 5.3)."
    draws, estimate, n, m = bootstrap_npv(scores, labels, level, rate_of, DRAWS, seed), npv_at(scores, labels, level, rate_of), *np.bincount(labels)
    z0 = ndtri(np.clip((draws < estimate).mean(0) + (draws == estimate).mean(0)/2, .5/DRAWS, 1-.5/DRAWS))
    def acceleration(x):
        influence = [(len(v)-1)*(v.mean()-v) for v in left_out(x[labels == 0], x[labels == 1], level, rate_of)]
        square, cube = (sum((v**k).sum()/len(v)**k for v in influence) for k in (2, 3))
        return cube/(6*square**1.5) if square else 0
    speed, found = np.array([acceleration(x) for x in scores.T]), {}
    for c in COVERAGES:
        at = np.array([ndtr(z0 + (z0+z)/(1-speed*(z0+z))) for z in ndtri([(1-c)/2, (1+c)/2])])
        found[c] = np.array([np.quantile(v, q) for v, q in zip(draws.T, at.T)]).T
    return found

def bt2(scores, labels, level, rate_of, seed):
    "BTII of Zhou and Qin (2005): bootstrap mean and deviation of the other class's share, with the centre of Agresti and Coull."
    d, a = scores[labels == 0], scores[labels == 1]
    n, m, prepared, far = len(d), len(a), [_prepared(x, y, rate_of) for x, y in zip(d.T, a.T)], []
    for w_d, w_a in _weight_blocks(n, m, DRAWS, seed):
        far.append(m - _far(prepared, w_d, w_a, _allowed(level, n))[1] if rate_of == 'defective' else n - _far(prepared, w_a, w_d, _allowed(level, m))[1])
    wrong, size, found = np.concatenate(far, axis=1), m if rate_of == 'defective' else n, {}
    for c in COVERAGES:
        z = ndtri((1+c)/2)
        share = (wrong + z*z/2)/(size + z*z)
        found[c] = npv_of(np.clip(share.mean(1) + np.array([[z], [-z]])*share.std(1, ddof=1), 0, 1), n, m, level, rate_of)
    return found

def inside_only(scores, labels, level, rate_of, draws, seed):
    "The kit's, with thresholds never past the last ad."
    with assumed(_past=lambda counts, m, share, rng: np.full(len(share), float(counts[-1]))): return plausible_npv(scores, labels, level, rate_of, draws, seed)

def anything(scores, labels, level, rate_of, draws, seed):
    "The kit's, with thresholds past the last ad anywhere among the ads of the other class."
    with assumed(_past=lambda counts, m, share, rng: counts[-1] + (m-counts[-1])*rng.random(len(share))): return plausible_npv(scores, labels, level, rate_of, draws, seed)

def mid_rank(scores, labels, level, rate_of, draws, seed):
    "The kit's, halfway between the two ads around the threshold."
    original = metrics._thresholds
    def halfway(*args):
        near, between, share = original(*args)
        return near, np.full(len(near), .5), share
    with assumed(_thresholds=halfway): return plausible_npv(scores, labels, level, rate_of, draws, seed)

@contextmanager
def assumed(**names):
    "Let the kit's functions or constants be others for a while."
    before = {k: getattr(metrics, k) for k in names}
    for k, v in names.items(): setattr(metrics, k, v)
    try: yield
    finally:
        for k, v in before.items(): setattr(metrics, k, v)

METHODS = {'plausible_npv': from_draws(plausible_npv), 'percentile bootstrap': from_draws(bootstrap_npv), 'smoothed bootstrap': from_draws(smoothed), 'BCa bootstrap': bca, 'BTII': bt2,
           'as plausible_npv, mid-rank': from_draws(mid_rank), 'as plausible_npv, never past the last ad': from_draws(inside_only), 'as plausible_npv, past it anything': from_draws(anything)}


def told(name, cell, sets, *seed, method=None):
    "One row: how often the intervals hold the truth, on which side they miss, how wide they are."
    rate_of, level, n, m, world, npv = cell
    held, began = {c: [] for c in COVERAGES}, time.process_time()
    for chunk in range(0, sets, CHUNK):
        scores, labels, truth = drawn(world, npv, n, m, level, rate_of, min(CHUNK, sets-chunk), chunk, *seed)
        for c, (low, high) in (method or METHODS[name])(scores, labels, level, rate_of, seed=chunk).items(): held[c].append([low, high])
    row = dict(zip(NAMES, cell)) | dict(npv=truth, method=name, sets=sets)
    for c, found in held.items():
        low, high = np.concatenate(found, axis=1)
        above, below = low > truth + 1e-12, high < truth - 1e-12
        row |= {f'{k}_{100*c:g}': v for k, v in dict(holds=1-(above | below).mean(), above=above.mean(), below=below.mean(), width=(high-low).mean()).items()}
    return row | dict(cpu_s=time.process_time()-began)


# Parts

def there(part):
    "Rows that were measured before."
    path = OUT/f'intervals_{part}.csv'
    return pd.read_csv(path).to_dict('records') if path.exists() else []

def done(part, key): return any(all(r[k] == v or (v is None and pd.isna(r['asked'])) for k, v in (key | dict(asked=key['npv'])).items() if k != 'npv') for r in there(part))

SMALL, LARGE = (160, 960), (776, 4656)
ASKED = [('defective', .01, *size, 'normal', npv) for size in (SMALL, LARGE) for npv in (.17, .4)] # by every method
ALSO = [('acceptable', .02, *SMALL, 'normal', .8), ('defective', .01, *SMALL, 'heavy tails', .4)]  # so are these
OTHERS = [*[('defective', .01, *SMALL, world, npv) for world in ('acceptable ads wider', 'defects wider', 'heavy tails', 'misjudged', 'ties') for npv in (.4, .17) if (world, npv) != ('heavy tails', .4)],
          *[('acceptable', .02, n, 6*n, world, np.nan) for n in (15, 30, 160, 776) for world in ('noise', 'best of 16', 'best of 100')],
          *[('acceptable', .02, *SMALL, world, npv) for world in ('normal', 'heavy tails', 'ties') for npv in (.4, .8) if (world, npv) != ('normal', .8)],
          *[('acceptable', .0032, *SMALL, world, np.nan) for world in ('noise', 'best of 100')],
          *[('defective', .01, n, 6*n, 'normal', .4) for n in (15, 30, 60, 300)], *[('defective', .01, *size, 'normal', .8) for size in (SMALL, LARGE)],
          *[('defective', .05, *SMALL, 'normal', npv) for npv in (.4, .8)],
          *[('defective', .01, *LARGE, world, .4) for world in ('acceptable ads wider', 'defects wider', 'heavy tails', 'misjudged', 'ties')]]
def part_coverage():
    "What takes longest comes last."
    tasks = [(cell, 'plausible_npv', SETS) for cell in ASKED + ALSO] + [(cell, 'plausible_npv', SETS//2) for cell in OTHERS]
    tasks += [(cell, name, SETS//4) for cell in OTHERS for name in ('as plausible_npv, past it anything', 'percentile bootstrap') if cell[0] == 'defective' or name == 'percentile bootstrap']
    tasks += [(cell, name, SETS) for cell in sorted(ASKED + ALSO, key=lambda c: c[2]) for name in METHODS if name != 'smoothed bootstrap']
    tasks += [(cell, 'smoothed bootstrap', SETS//4) for cell in sorted(ASKED + ALSO, key=lambda c: c[2])]
    for cell, name, sets in tasks:
        key = dict(zip(NAMES[:5], cell)) | dict(npv=None if np.isnan(cell[5]) else cell[5], method=name)
        if not done('coverage', key): yield told(name, cell, sets) | dict(asked=cell[5])

TAILS = [dict(zip(('TAIL', 'SPREAD', 'pareto'), t)) for t in ((20, .3, 1), (20, 0, 1), (10, .3, 1), (40, .3, 1), (20, .2, 1), (20, .5, 1), (20, .3, .5), (20, .3, 0), (20, 0, 0))]

def past(counts, m, share, rng, pareto):
    "As in `metrics`, with another tail: its index (1: the kit's; 0: exponential)."
    return metrics_past(counts, m, 1 + (np.log(share) if not pareto else (share**pareto-1)/pareto), rng)

metrics_past = metrics._past

def part_tails():
    for world in ('normal', 'acceptable ads wider', 'defects wider', 'heavy tails', 'misjudged'):
        for n in (60, 160, 300):
            for npv in (.17, .4, .8):
                for t in TAILS:
                    def tried(*args, pareto=t['pareto'], **more):
                        with assumed(TAIL=t['TAIL'], SPREAD=t['SPREAD'], _past=lambda *a: past(*a, pareto)): return plausible_npv(*args, **more)
                    yield told('plausible_npv', ('defective', .01, n, 6*n, world, npv), 500, 'seen', method=from_draws(tried)) | t

def part_rule():
    "What the rule drops (upper end of the 90 % interval of the lift below .1), before and after."
    for n in (15, 30, 150, 800):
        m, teachers = 6*n, 1000 if n < 800 else 200
        for K in (16, 100):
            for level in sorted({.02, level_for(K, m)}, reverse=True):
                for kind, share in (('noise', 0), ('best specialist', 1/K)):
                    scores, labels, truth = drawn('noise' if kind == 'noise' else f'best of {K}', np.nan, n, m, level, 'acceptable', teachers)
                    for name, f in (('percentile bootstrap', bootstrap_npv), ('plausible_npv', plausible_npv)):
                        low, high = lift(interval(f(scores, labels, level, 'acceptable', draws=500)), n/(n+m))
                        yield dict(defective=n, acceptable=m, clusters=K, level=level, teacher=kind, teachers=teachers, true_lift=lift(truth, n/(n+m)), interval=name, dropped=(high < .1).mean(),
                                   close=((low < .1) & (high >= .1)).mean(), width=(high-low).mean())

def part_levels():
    "The lift of a specialist that finds all of its cluster and nothing else."
    for p in (160/1120, .5, .05, .02):
        for K in (4, 16, 32, 100, 300, 500):
            for words, level in (('2 %', .02), ('.32/K', level_for(K, 10**6))):
                yield dict(prevalence=p, clusters=K, rule=words, level=level, best_lift=best_lift(1/K, p, level))

def timed(f, *args, **more):
    began = time.process_time()
    f(*args, **more)
    return time.process_time()-began

def by_torchmetrics(scores, labels, level, draws):
    import torch
    from torchmetrics.functional.classification import binary_precision_at_fixed_recall
    p, y, (n, m) = 1/(1+np.exp(scores)), labels == 0, np.bincount(labels) # its positive class is the flagged one
    rng, d, a, out = rng_for('peer'), np.flatnonzero(y), np.flatnonzero(~y), []
    for _ in range(draws):
        i = torch.from_numpy(np.r_[rng.choice(d, n), rng.choice(a, m)])
        out.append([float(binary_precision_at_fixed_recall(x[i], torch.from_numpy(y)[i], min_recall=1-level)[0]) for x in torch.from_numpy(p.T)])
    return np.array(out)

def by_sklearn(scores, labels, level, draws):
    from sklearn.metrics import precision_recall_curve
    (n, m), y = np.bincount(labels), labels == 0
    rng, d, a, out = rng_for('peer'), np.flatnonzero(y), np.flatnonzero(~y), []
    for _ in range(draws):
        i = np.r_[rng.choice(d, n), rng.choice(a, m)]
        for x in scores.T:
            precision, recall, _ = precision_recall_curve(y[i], -x[i])
            out.append(precision[np.flatnonzero(recall >= 1-level-1e-9)[-1]])
    return np.array(out)

WAYS = {'plausible_npv': (plausible_npv, 1), 'bootstrap_npv': (bootstrap_npv, 1), 'torchmetrics in a loop': (by_torchmetrics, 100), 'scikit-learn in a loop': (by_sklearn, 100)}

def part_speed():
    "1,000 draws; a loop is timed on ten of them, and the largest set on a hundred."
    for n, m, columns in ((*SMALL, 100), (*LARGE, 100), (4286, 25714, 500)):
        labels, rng = np.repeat([0, 1], [n, m]), rng_for('speed', n)
        scores = rng.normal(size=(n+m, columns)) + 2.5*labels[:, None]
        for name, (f, part) in WAYS.items():
            if part > 1 and n > SMALL[0]: continue
            try: by_torchmetrics(scores[:, :1], labels, .01, 1) if 'torch' in name else f(scores[:, :1], labels, .01, draws=2) # what is loaded once is nobody's cost
            except ImportError: continue
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            draws = 1000//part if n < 1000 or f is plausible_npv else 100 # its time is mostly the sort
            took = min(timed(f, scores, labels, .01, draws=draws) for _ in range(3 if part == 1 and n < 1000 else 1))
            yield dict(way=name, defective=n, acceptable=m, columns=columns, draws=draws, cpu_s=took, cpu_s_1000=took*1000/draws, scores_mib=scores.nbytes/2**20,
                       more_mib=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss-before)/1024)

PARTS = dict(coverage=part_coverage, tails=part_tails, rule=part_rule, levels=part_levels, speed=part_speed)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', help='some of '+' '.join(PARTS))
    for part in parser.parse_args().parts or PARTS:
        rows = there(part) if part == 'coverage' else []
        for row in PARTS[part](): # written as it comes, so that a stop loses nothing
            rows.append(row)
            pd.DataFrame(rows).to_csv(OUT/f'intervals_{part}.csv', index=False)
            print(part, len(rows), {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True)


if __name__ == '__main__': main()
