"What is said about leakage is what a plain loop would count, and nothing is said where nothing can be."
import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import chi2_contingency

from subtask_kit import leakage
from subtask_kit.leakage import (EMBARGOES, across, closeness, conflicts, count_bursts, count_duplicates, cut_bursts, drift, find_bursts, later_of, leakage_report, leakage_words, nearest_across,
                                 overlaps, reach, shared, sides_before, strangers, what_if)
from subtask_kit.metrics import wilson
from subtask_kit.splits import SIDES, SPLITS, Plan, by_date, regular, split_ads

START, DAY = pd.Timestamp('2024-01-01', tz='UTC'), pd.Timedelta(days=1)
RANK = {s: i for i, s in enumerate(SIDES)}
KINDS = ['same bytes', 'same headline', 'near-duplicate']


def world(n=240, seed=0, dated=1., labelled=.9, given=False):
    "Bursts, copies of the first ads, headlines that come again: everything, those that stay, pairs."
    r = np.random.default_rng(seed)
    m = n//5
    whose = np.r_[np.arange(n), r.choice(n, m, replace=False)]
    burst = r.integers(0, n//8, n)[whose]
    day = r.uniform(0, 300, n//8)[burst] + r.exponential(4, n+m) + np.r_[np.zeros(n), r.exponential(40, m)]
    everything = pd.DataFrame(dict(ad_id=[f'{i:04}' for i in range(n+m)], label=pd.array(np.where(r.random(n+m) < labelled, (r.random(n+m) > .3)*1., np.nan), 'Int8'),
                                   submitted_at=pd.Series(START+pd.to_timedelta(day, 'D')).where(r.random(n+m) < dated), advertiser=[f's{b//3}' if b % 7 else '' for b in burst],
                                   headline=[f'h{i}' if i % 5 else '' for i in r.integers(0, n, n+m)], group=[f'{i:04}' for i in whose], split=r.choice(['train', 'val', 'test'], n+m) if given else ''))
    pairs = pd.DataFrame(dict(a=everything.group[n:].to_numpy(), b=everything.ad_id[n:].to_numpy(), kind=r.choice(KINDS, m)))
    return everything, everything[:n].sample(frac=1, random_state=seed), pairs


WORLDS = [{}, dict(dated=.7), dict(dated=0.), dict(given=True), dict(labelled=.4)]


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('how', WORLDS[:2] + WORLDS[3:], ids=str)
def test_duplicates_against_a_loop(how, seed):
    everything, ads, pairs = world(600, seed, **how)
    plan = split_ads(ads, {}, 15, 0)
    side = sides_before(everything, plan).set_axis(everything.ad_id)
    at = everything.set_index('ad_id')
    for i, s in side.items():
        t = at.submitted_at[i]
        if pd.isna(at.label[i]) or (plan.by == 'date' and pd.isna(t)): want = ''
        elif plan.by == 'given': want = at.split[i]
        else: want = 'train' if t < plan.cuts['val'] else 'val' if t < plan.cuts['test'] else 'test'
        assert s == want
    want = [side[a] != side[b] and '' not in (side[a], side[b]) for a, b in zip(pairs.a, pairs.b)]
    assert across(pairs, side).tolist() == want and any(want)
    late = {b if RANK[side[b]] > RANK[side[a]] else a for a, b, w in zip(pairs.a, pairs.b, want) if w}
    assert later_of(pairs, side).to_dict() == {i: side[i] for i in late} and 'train' not in set(later_of(pairs, side))
    after = plan.split.set_axis(ads.ad_id)
    counted = count_duplicates(pairs, side, after, set())
    assert {k: c['before'] for k, c in counted.items()} == {k: sum(w for w, kind in zip(want, pairs.kind) if kind == k) for k in KINDS} and all(c['after'] == 0 for c in counted.values())


def test_what_is_left_is_counted():
    after = pd.Series(dict(a='train', b='test', c='teacher_val', d='student_val', e='', f='test'))
    pairs = pd.DataFrame(dict(a=list('abcde'), b=list('bfdeu'), kind=['x', 'near-duplicate', 'same bytes', 'same bytes', 'near-duplicate']))
    counted = count_duplicates(pairs, None, after, {'u', 'e'})
    assert {k: (c['pairs'], c['before'], c['after']) for k, c in counted.items()} == {'same bytes': (2, None, 1), 'same headline': (0, None, 0), 'near-duplicate': (2, None, 0), 'x': (1, None, 1)}
    assert count_duplicates(pd.DataFrame(dict(a=['u', 'f'], b=['b', 'a'], kind='near-duplicate')), None, after, {'u'})['near-duplicate']['test_and_unlabelled'] == 1


def test_shared():
    names = pd.Series(['x', 'x', 'x', 'y', 'y', '', '', 'z', 'w', 'w'])
    split = pd.Series(['train', 'test', 'test', 'teacher_val', 'student_val', 'train', 'test', 'test', 'train', ''])
    assert shared(names, split) == dict(known=4, shared=1, in_train_and_test=1, test=4, test_named=3, test_in_train=2)
    assert shared(names.where(names == '', ''), split) == dict(known=0, shared=0, in_train_and_test=0, test=4, test_named=0, test_in_train=0)


def slow_bursts(key, dates, days):
    "Sets of row labels: grown from each ad by whoever is near any of them, until nobody is."
    at = {i: (key[i], dates[i]) for i in key.index if key[i] != '' and pd.notna(dates[i])}
    sets, left = set(), set(at)
    while left:
        inside = new = {left.pop()}
        while new:
            new = {j for j in left for i in new if at[i][0] == at[j][0] and abs(at[i][1]-at[j][1]) <= days*DAY}
            inside, left = inside | new, left - new
        sets.add(frozenset(inside))
    return {s for s in sets if len(s) > 1}


@pytest.mark.parametrize('seed', range(3))
def test_bursts_against_a_loop(seed):
    everything, ads, _ = world(60, seed, dated=.9)
    everything = everything.sample(frac=1, random_state=seed)
    plan = split_ads(ads, {}, 5, 0)
    for key in ('advertiser', 'group'):
        k, t = everything[key], everything.submitted_at
        burst = find_bursts(k, t, 3)
        want = slow_bursts(k, t, 3)
        assert {frozenset(g) for b, g in burst.groupby(burst).groups.items() if b >= 0} == want and set(burst.index[burst < 0]) == set(k.index) - {i for s in want for i in s}
        for days in (0, 5, 20):
            free, split = by_date(t, plan.cuts), by_date(t, plan.cuts, days)
            cut = {s for s in want if len({free[i] for i in s}) > 1}
            severed = {s for s in cut if len({split[i] for i in s} - {''}) < 2}
            got = count_bursts(k, t, plan.cuts, days, 3)
            assert (got['bursts'], got['ads'], got['cut'], got['cut_ads'], got['severed']) == (len(want), sum(map(len, want)), len(cut), sum(map(len, cut)), len(severed))
            assert sorted(cut_bursts(burst, t, plan.cuts, days).ads) == sorted(map(len, cut)) and [x['ads'] for x in got['largest']] == sorted(map(len, cut), reverse=True)[:10]


def test_a_burst_by_hand():
    dates = pd.Series(START + np.array([0, 3, 6, 9.1, 50, 60, 62])*DAY)
    cuts = dict(val=START+5*DAY, test=START+61*DAY)
    key = pd.Series(['a', 'a', 'a', 'a', 'a', 'b', 'b'])
    assert find_bursts(key, dates, 3).groupby(find_bursts(key, dates, 3)).size().drop(-1).tolist() == [3, 2]  # 3 days still follow, 3.1 do not
    got = count_bursts(key, dates, cuts, 4, 3)
    assert (got['bursts'], got['cut'], got['severed'], got['median']) == (2, 2, 1, 2.5)  # the first reaches back beyond four days
    assert got['largest'][0] == dict(of='a', ads=3, train=2, val=1, test=0, severed=False)


def test_dates():
    dates = START + pd.Series(pd.to_timedelta([0, 5, 5, 8, 9, np.nan], 'D'))
    split = pd.Series(['train', 'train', 'teacher_val', 'student_val', 'test', 'test'])
    assert overlaps(dates, split) == [dict(earlier='train', later='val', gap_days=0., not_later=1), dict(earlier='val', later='test', gap_days=1., not_later=0)]
    said = reach(dates, split)
    assert said['train'] == dict(first='2024-01-01T00:00:00+00:00', last='2024-01-06T00:00:00+00:00', undated=0) and said['teacher_test'] == dict(first=None, last=None, undated=0) and said['test']['undated'] == 1


def test_drift():
    everything, ads, _ = world(400, dated=.9)
    plan = split_ads(ads, {}, 15, 0)
    found = drift(ads.label, ads.submitted_at, plan.split)
    known = ads[ads.label.notna()]
    assert sum(m['ads'] for m in found['months']) == known.submitted_at.notna().sum() and [m['of'] for m in found['months']] == sorted(known.submitted_at.dropna().dt.strftime('%Y-%m').unique())
    for row in found['months']:
        d = (known.label == 0)[known.submitted_at.dt.strftime('%Y-%m') == row['of']]
        assert row['defective'] == d.sum() and row['share'] == d.mean() and (row['low'], row['high']) == pytest.approx(wilson(d.sum(), len(d)))
    side = regular(plan.split)[known.index]
    table = [[int(((side == s) & (known.label == l)).sum()) for l in (0, 1)] for s in SIDES]
    assert found['p'] == pytest.approx(chi2_contingency(table, correction=False).pvalue) and [s['of'] for s in found['splits']] == SPLITS
    assert drift(ads.label.where(ads.label != 0), ads.submitted_at, plan.split)['p'] is None
    same = pd.Series([0, 1]*30)
    assert drift(same, pd.Series(START, index=same.index), pd.Series(['train']*20+['student_val']*20+['test']*20))['p'] == pytest.approx(1)


def test_conflicts_by_hand():
    label = pd.Series(dict(a=0, b=1, c=1, d=0, e=0, f=1, g=None, h=1), dtype='Int8')
    pairs = pd.DataFrame([('a', 'b', 'near-duplicate'), ('b', 'c', 'near-duplicate'), ('d', 'e', 'near-duplicate'), ('e', 'f', 'same headline'), ('f', 'g', 'near-duplicate'), ('c', 'h', 'same bytes')],
                         columns=['a', 'b', 'kind'])
    got = conflicts(pairs, label)
    assert (got['groups'], got['conflicts'], got['ads']) == (2, 1, 4)  # a b c h with both verdicts, d e with one; f and g are not both judged
    assert got['kinds']['near-duplicate'] | dict(low=0, high=0) == dict(pairs=3, differ=1, share=1/3, low=0, high=0) and got['kinds']['same headline']['differ'] == 1
    d = got['disagreement']
    assert (d['pairs'], d['differ'], d['share']) == (2, 1, .5) and d['wrong'] == .5 and (d['low'], d['high']) == pytest.approx(wilson(1, 2))  # one pair a group
    none = conflicts(pairs[:0], label)
    assert none['groups'] == none['conflicts'] == 0 and none['disagreement']['share'] is None and none['disagreement']['wrong'] is None


def test_disagreement_finds_the_rate_of_mistakes():
    r = np.random.default_rng(0)
    n, truth = 20000, np.random.default_rng(1).random(20000) < .5
    label = pd.Series(np.r_[truth ^ (r.random(n) < .1), truth ^ (r.random(n) < .1)].astype(int), index=[f'{i:05}' for i in range(2*n)])
    got = conflicts(pd.DataFrame(dict(a=label.index[:n], b=label.index[n:], kind='near-duplicate')), label)['disagreement']
    assert abs(got['wrong']-.1) < .01 and got['high']-got['low'] < .01 and got['low'] < got['share'] < got['high']


@pytest.mark.parametrize('how', [{}, dict(dated=.7), dict(labelled=.4)], ids=str)
def test_what_if_against_a_loop(how):
    everything, ads, pairs = world(160, **how)
    plan = split_ads(ads, {}, 15, 0)
    known = everything[everything.label.notna()].set_index('ad_id')
    rows = what_if(everything, ads, pairs, plan.cuts)
    assert [row['days'] for row in rows] == EMBARGOES
    bursts = slow_bursts(known.advertiser, known.submitted_at, 3)
    for row in rows:
        split = by_date(known.submitted_at, plan.cuts, row['days'])
        late = set()
        for a, b in zip(pairs.a, pairs.b):
            if a in split.index and b in split.index and split[a] and split[b] and split[a] != split[b]: late.add(max((a, b), key=lambda i: RANK[split[i]]))
        assert row['duplicates'] == len(late) and row['test_duplicates'] == sum(split[i] == 'test' for i in late)
        assert row['bursts'] == sum(len({split[i] for i in s} - {''}) > 1 for s in bursts)
        test = [i for i in known.index if split[i] == 'test' and known.advertiser[i]]
        def others(i): return [j for j in known.index if known.advertiser[j] == known.advertiser[i] and known.submitted_at[j] < plan.cuts['test']]
        assert row['test_known'] == sum(any(split[j] in ('train', 'val') for j in others(i)) for i in test)
        assert row['test_recent'] == sum(any(known.submitted_at[i]-known.submitted_at[j] <= row['days']*DAY for j in others(i)) for i in test)
        kept = ads[ads.label.notna()]
        side, left = by_date(kept.submitted_at, plan.cuts), by_date(kept.submitted_at, plan.cuts, row['days'])
        assert row['train_lost'] == ((side == 'train') & (left == '')).sum() and row['val_lost'] == ((side == 'val') & (left == '')).sum()
    assert rows[0]['train_lost'] == rows[0]['val_lost'] == 0 and rows[2]['train_lost']+rows[2]['val_lost'] == (plan.why == 'embargo').sum()
    assert rows[0]['test_duplicates'] == (later_of(pairs, by_date(known.submitted_at, plan.cuts)) == 'test').sum() > 0


def test_company_in_val_is_company_too():
    days = pd.to_timedelta([0, 10, 20, 30, 31, 32], 'D')
    ads = pd.DataFrame(dict(ad_id=list('abcdef'), label=pd.array([0, 1]*3, 'Int8'), submitted_at=START+days, advertiser=['x', 'w', 'y', 'y', 'x', 'z']))
    rows = what_if(ads, ads, pd.DataFrame(dict(a=['c'], b=['d'])), dict(val=START+15*DAY, test=START+25*DAY), 1)
    assert [tuple(r[k] for k in ('days', 'test_known', 'test_recent', 'test_duplicates', 'train_lost', 'val_lost')) for r in rows] == [(0, 2, 0, 1, 0, 0), (7, 1, 0, 0, 1, 1), (15, 0, 1, 0, 2, 1), (30, 0, 1, 0, 2, 1)]


def test_nearest_across_against_all_pairs():
    r = np.random.default_rng(0)
    a, b = r.normal(size=(70, 5)), r.normal(size=(2**23//16, 5)).astype(np.float32)[:90]
    a[3] = 0
    cosine = a @ b.T / np.maximum(np.linalg.norm(a, axis=1), 1e-12)[:, None] / np.linalg.norm(b, axis=1)
    where, near = nearest_across(a, b)
    assert np.allclose(near, cosine.max(axis=1), atol=1e-5) and (where[np.arange(70) != 3] == cosine.argmax(axis=1)[np.arange(70) != 3]).all() and near[3] == 0
    mask = r.random((70, 90)) < .1
    mask[5] = False
    where, near = nearest_across(a, b, lambda rows: mask[rows])
    assert where[5] == -1 and np.isnan(near[5]) and np.allclose(np.delete(near, 5), np.where(mask, cosine, -np.inf).max(axis=1)[np.arange(70) != 5], atol=1e-5)
    assert nearest_across(a, b[:0])[0].tolist() == [-1]*70 and len(nearest_across(a[:0], b)[0]) == 0


def test_nearest_across_in_blocks():
    r = np.random.default_rng(1)
    b, seen = r.normal(size=(2**21, 2)).astype(np.float32), []
    where, _ = nearest_across(b[:10], b, lambda rows: (seen.append(len(rows)), np.arange(len(b)) != rows[:, None])[1])
    assert seen == [4, 4, 2] and (where != np.arange(10)).all()  # never more than 8 million similarities at once


def test_strangers_against_a_loop():
    ads = world(80, dated=.8)[0]
    got = strangers(ads, 15)(np.arange(len(ads)))
    rows = list(ads.itertuples())
    for i, x in enumerate(rows):
        for j, y in enumerate(rows):
            near = pd.notna(x.submitted_at) and pd.notna(y.submitted_at) and abs(x.submitted_at-y.submitted_at) <= 15*DAY
            assert got[i, j] == (not near and x.group != y.group and (x.advertiser == '' or x.advertiser != y.advertiser) and i != j)


def test_closeness_finds_what_was_planted():
    _, ads, _ = world(1500)
    split = split_ads(ads, {}, 15, 0).split.reset_index(drop=True)
    ads = ads.reset_index(drop=True)
    r = np.random.default_rng(0)
    features = r.normal(size=(len(ads), 12))
    train, test = np.flatnonzero(split == 'train'), np.flatnonzero(split == 'test')
    clean = closeness(features, ads, split, 15)
    assert clean['test'] == len(test) and clean['train'] == len(train) and clean['low'] <= .01 <= clean['high'] and abs(clean['nearer']-.5) < .1
    assert clean['closest'] == sorted(clean['closest'], key=lambda x: -x['similarity']) and len(clean['closest']) == 50
    planted = test[:40]
    features[planted] = features[train[:40]]*3
    found = closeness(features, ads, split, 15, top=40)
    assert found['closer'] >= 40 and found['low'] > .01 and found['nearer'] > clean['nearer']
    assert {(c['test'], c['train']) for c in found['closest']} == set(zip(ads.ad_id[planted], ads.ad_id[train[:40]])) and found['closest'][-1]['similarity'] > .9999


def test_nearer_is_a_probability_of_order():
    r = np.random.default_rng(0)
    near, reference = r.integers(0, 9, 60).astype(float), r.integers(0, 9, 40).astype(float)
    want = np.mean([(x > y) + .5*(x == y) for x in near for y in reference])
    assert leakage._compare(near, reference)['nearer'] == pytest.approx(want)


@pytest.mark.parametrize('how', WORLDS, ids=str)
def test_report_is_plain_json_and_says_it_in_words(how):
    everything, ads, pairs = world(**how)
    plan = split_ads(ads, {}, 15, 0)
    report = leakage_report(everything, ads, plan, pairs, 15, features=np.random.default_rng(0).normal(size=(len(ads), 4)))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert sum(report['ads'].values()) + sum(report['left_out'].values()) == ads.label.notna().sum()
    assert report['groups_across'] == 0 and all(d['after'] == 0 for d in report['duplicates'].values())
    timed = plan.by == 'date'
    assert (report['bursts'] is not None) == (report['embargoes'] is not None) == timed == (how.get('dated') != 0. and not how.get('given'))
    assert (report['test_duplicates'] is None) == (plan.by == 'lot') == (report['duplicates']['same bytes']['before'] is None)
    words = leakage_words(report)
    assert all(isinstance(w, str) and w.endswith('.') and 'None' not in w and 'nan' not in w for w in words) and len(words) == len(set(words))
    assert any(f'{report["advertisers"]["test_in_train"]:,} of {report["advertisers"]["test"]:,}' in w for w in words) and any('as it must be' in w for w in words)
    twice = leakage_report(pd.concat([everything, everything[:30]]), ads, plan, pairs, 15)
    assert twice | dict(embedding=0) == report | dict(embedding=0)  # one file named in two rows is one ad
    again = leakage_report(everything.sample(frac=1, random_state=1), ads, plan, pairs.sample(frac=1, random_state=1), 15)
    assert again | dict(embedding=0) == report | dict(embedding=0)  # the order of rows decides nothing


def test_report_where_little_is_known():
    everything, ads, pairs = world()
    none = pairs[:0]
    dated = split_ads(ads, {}, 15, 0)
    def said(everything, ads, plan, pairs=none, **kw):
        report = leakage_report(everything, ads, plan, pairs, 15, **kw)
        json.dumps(report, allow_nan=False)
        return report, ' '.join(leakage_words(report))
    assert 'No duplicates were found' in said(everything, ads, dated)[1] and 'No duplicates' in said(everything, ads, dated, pd.DataFrame(columns=['a', 'b', 'kind']))[1]
    one, nobody = (t.assign(advertiser='one') for t in (everything, ads)), (t.assign(advertiser='', headline='') for t in (everything, ads))
    report, words = said(*one, dated)
    assert report['advertisers']['known'] == report['advertisers']['shared'] == 1 and report['advertisers']['test_in_train'] == report['advertisers']['test']
    report, words = said(*nobody, dated)
    assert 'No ad in the splits has an advertiser' in words and 'No ad in the splits has a headline' in words and report['bursts']['advertiser']['bursts'] == 0
    blind = [t.assign(label=pd.array([None]*len(t), 'Int8')) for t in (everything, ads)]
    empty = pd.Series('', index=ads.index)
    for by, cuts in (('lot', {}), ('date', dated.cuts), ('given', {})):
        report, words = said(*blind, Plan(empty, by, cuts, empty, []), pairs, features=np.ones((len(ads), 2)))
        assert report['drift']['p'] is None and report['drift']['months'] == [] and report['conflicts']['groups'] == 0 and report['embedding']['share'] is None and 'By embedding nothing can be said' in words
    alone = [t.assign(advertiser='one', group='g') for t in (everything, ads)]
    assert said(*alone, dated, features=np.ones((len(ads), 2)))[0]['embedding']['share'] is None
    undated = [t.assign(submitted_at=pd.Series(pd.NaT, index=t.index, dtype='datetime64[ns, UTC]')) for t in (everything, ads)]
    report, words = said(*undated, split_ads(undated[1], {}, 15, 0), pairs)
    assert report['overlaps'] == [] and report['embargo_days'] is None and 'drawn by lot' in words


def test_a_duplicate_that_stays_is_named():
    everything, ads, pairs = world()
    plan = split_ads(ads, {}, 15, 0)
    a, b = ads.ad_id[plan.split == 'train'].iloc[0], ads.ad_id[plan.split == 'test'].iloc[0]
    report = leakage_report(everything, ads, plan, pd.concat([pairs, pd.DataFrame([dict(a=a, b=b, kind='near-duplicate')])]), 15)
    assert report['duplicates']['near-duplicate']['after'] == 1 and any(w == 'Duplicates in two splits now: 1 pair, 0 groups.' for w in leakage_words(report))
