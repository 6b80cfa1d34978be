"By time, by lot, as given: nothing torn, nothing unaccounted for, and what was published stays as it was."
from collections import Counter
from itertools import product

import numpy as np
import pandas as pd
import pytest

from subtask_kit import splits
from subtask_kit.core import ACCEPTABLE, DEFECTIVE, UserError, rng_for
from subtask_kit.splits import (GIVEN_SPLITS, SPLITS, STUDENT_TEACHER, by_date, check_splits, choose_sides, count_splits, deal, deal_units, divide_val, find_cuts, find_units, regular,
                                split_ads, tally)

LOTS = dict(train=splits.TRAIN_SHARE, val=splits.VAL_SHARE, test=None)
DAY = pd.Timedelta(days=1)


def world(n=400, seed=0, dated=1., labelled=1., advertisers=20, groups=None, given=False):
    r = np.random.default_rng(seed)
    ids = [f'{i:05}' for i in r.permutation(n)]
    dates = pd.Series(pd.Timestamp('2024-01-01', tz='UTC')+pd.to_timedelta(r.integers(0, 300*24, n), 'h')).where(r.random(n) < dated)
    return pd.DataFrame(dict(ad_id=ids, label=pd.array(np.where(r.random(n) < labelled, (r.random(n) > .3)*1., np.nan), 'Int8'), submitted_at=dates,
                             advertiser=[f's{i}' if i else '' for i in r.integers(0, advertisers+1, n)], group=ids if groups is None else [f'g{i}' for i in r.integers(0, groups, n)],
                             split=r.choice(['train', 'val', 'test', ''], n, p=[.5, .25, .2, .05]) if given else ''))


# What curation did before this room was built, for data in which every ad is its own group.

def old_deal(names, shares, *seed):
    names = rng_for(*seed).permutation(sorted(names)).tolist()
    enough = len(names) >= len(shares)
    sizes = {p: max(round(s*len(names)), int(enough)) for p, s in shares.items() if s is not None}
    if enough: sizes[max(sizes, key=sizes.get)] -= max(0, sum(sizes.values())+1-len(names))
    piles = [p for p, n in sizes.items() for _ in range(n)]
    rest = next(p for p, s in shares.items() if s is None)
    return dict(zip(names, piles+[rest]*(len(names)-len(piles))))


def old_divide_val(ads, split, seed):
    for label in (DEFECTIVE, ACCEPTABLE):
        ids = ads.ad_id[(split == 'val') & (ads.label == label)]
        split = split.where(~split.index.isin(ids.index), ids.map(old_deal(ids, STUDENT_TEACHER, 'student-teacher', seed, label)).reindex(split.index))
    return split


def old_split(ads, cuts, embargo_days, seed):
    def by_date(dates, days=0):
        split = pd.Series(np.select([dates < at['val'], dates < at['test'], dates.notna()], ['train', 'val', 'test'], ''), index=dates.index)
        for cut in at.values(): split[(dates < cut) & (dates >= cut-pd.Timedelta(days=days))] = ''
        return split.astype(str)
    labelled = ads[ads.label.notna()]
    embargoed, dates = pd.Series(False, index=labelled.index), labelled.submitted_at
    if (labelled.split != '').any(): split = labelled.split
    elif not cuts and dates.notna().mean() < .5:
        first, pile = labelled.drop_duplicates('group').set_index('group').label, {}
        for label in (DEFECTIVE, ACCEPTABLE): pile |= old_deal(first.index[first == label], dict(train=.613, val=.196, test=None), 'split', seed, label)
        split = labelled.group.map(pile).astype(str)
    else:
        ordered = dates.dropna().sort_values()
        at = {k: pd.to_datetime(v, utc=True) for k, v in cuts.items()} or {k: ordered.iloc[int(s*len(ordered))] for k, s in (('val', .613), ('test', .613+.196))}
        split = by_date(dates, embargo_days)
        embargoed = (split == '') & (by_date(dates) != '')
    return old_divide_val(labelled, split, seed).reindex(ads.index, fill_value='').astype(str), embargoed.reindex(ads.index, fill_value=False)


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('how', [{}, dict(dated=.9), dict(dated=.2), dict(dated=0.), dict(given=True)], ids=str)
def test_published_results_stay(how, seed):
    for n in (12, 40, 700):
        ads = world(n, seed, labelled=.8, **how)
        for cuts in ({}, dict(val='2024-05-01', test='2024-08-01')):
            if cuts and not ads.submitted_at[ads.label.notna()].notna().any() and not how.get('given'): continue
            try: plan = split_ads(ads, cuts, 15, seed)
            except UserError as e:
                assert 'would be empty' in str(e) and n < 700 # the old code split these, and refused them a little later
                continue
            split, embargoed = old_split(ads, cuts, 15, seed)
            assert plan.split.equals(split) and (plan.why == 'embargo').equals(embargoed)


@pytest.mark.parametrize('n', [*range(1, 30), 101])
@pytest.mark.parametrize('shares', [STUDENT_TEACHER, LOTS], ids=['val', 'all'])
def test_single_ads_are_dealt_as_before(n, shares):
    names = [f'{i:03}' for i in np.random.default_rng(n).permutation(n)]
    assert deal(names, shares, 'x', n) == old_deal(names, shares, 'x', n)
    for label in (0, 1):
        dealt = deal_units(pd.Series(names), pd.Series(label, index=range(n)), shares, 'y', n)
        assert dict(zip(names, dealt)) == old_deal(names, shares, 'y', n, label)


def test_regular():
    assert regular(pd.Series([*GIVEN_SPLITS, ''])).tolist() == ['train', 'val', 'val', 'val', 'test', 'val', '']


def test_tally_against_crosstab():
    r = np.random.default_rng(0)
    a, b, c = (pd.Series(r.choice(list('wxyz'), 200)) for _ in range(3))
    assert (tally(a, b).to_numpy() == pd.crosstab(a, b).to_numpy()).all() and (tally(a, b, c).to_numpy() == pd.crosstab(a, [b, c]).to_numpy()).all()
    assert tally(a[:0], b[:0]).empty


@pytest.mark.parametrize('seed', range(5))
def test_units_against_a_flood(seed):
    ads = world(60, seed, advertisers=25, groups=45)
    for keep, columns in (('group', ['group']), ('advertiser', ['group', 'advertiser'])):
        left, unit = set(ads.index), {}
        while left:
            inside, grown = set(), {min(left)}
            while grown - inside:
                inside = grown
                grown = {j for j in ads.index for i in inside if i == j or any(ads[c][i] == ads[c][j] != '' for c in columns)}
            unit |= {i: min(ads.ad_id[i] for i in inside) for i in inside}
            left -= inside
        assert find_units(ads, keep).tolist() == [unit[i] for i in ads.index]
    with pytest.raises(UserError, match='keep_together'): find_units(ads, 'nobody')


def test_unknown_advertisers_join_nothing():
    ads = world(30).assign(advertiser='')
    assert find_units(ads, 'advertiser').tolist() == ads.ad_id.tolist()


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('shares', [STUDENT_TEACHER, LOTS], ids=['val', 'all'])
def test_units_are_dealt_whole(seed, shares):
    r = np.random.default_rng(seed)
    unit = pd.Series([f'u{i}' for i in r.zipf(1.5, 1500) % 400])
    label = pd.Series((r.random(1500) > .3).astype(int))
    pile = deal_units(unit, label, shares, seed)
    assert pile.groupby(unit).nunique().max() == 1 and set(pile) <= set(shares)
    moved = r.permutation(1500)
    assert deal_units(unit[moved], label[moved], shares, seed).sort_index().equals(pile)
    rest = 1-sum(s for s in shares.values() if s)
    want = pd.DataFrame({l: {p: (rest if s is None else s)*(label == l).sum() for p, s in shares.items()} for l in (0, 1)})
    def miss(pile): return float((((pd.crosstab(pile, label).reindex(want.index, fill_value=0)-want)**2)/want).to_numpy().sum())
    lots = [miss(unit.map(dict(zip(u := unit.unique(), r.choice(list(shares), len(u), p=[rest if s is None else s for s in shares.values()]))))) for _ in range(50)]
    assert miss(pile) <= min(lots)  # plain lots for units are never nearer to the shares


@pytest.mark.parametrize('sizes', [[10, 10, 10], [50, 2, 2], [9, 1, 1], [5, 5, 4, 4, 3, 3], [1, 1, 1], [30, 1, 1, 1]])
def test_no_pile_stays_empty_while_units_suffice(sizes):
    for shares in (STUDENT_TEACHER, LOTS):
        unit = pd.Series([f'{label}{i}' for label in (0, 1) for i, n in enumerate(sizes) for _ in range(n)])
        label = unit.str[0].astype(int)
        assert (pd.crosstab(deal_units(unit, label, shares, 0), label).reindex(list(shares), fill_value=0) > 0).all(axis=None)


def test_fill_is_optimal():
    r = np.random.default_rng(0)
    for _ in range(60):
        want, n = r.integers(1, 8, 3), int(r.integers(0, 10))
        have = r.integers(0, 6, 3)
        take = splits._fill(have, want, n)
        lacking = min(n, int((have == 0).sum()))
        def cost(t): return sum((h+x-w)**2/w for h, x, w in zip(have, t, want))
        every = [t for t in product(range(n+1), repeat=3) if sum(t) == n and sum(x > 0 and h == 0 for x, h in zip(t, have)) >= lacking]
        assert take.sum() == n and np.isclose(cost(take), min(map(cost, every)))


@pytest.mark.parametrize('mode', ['group', 'advertiser'])
@pytest.mark.parametrize('how', [{}, dict(dated=.8), dict(dated=0.), dict(given=True)], ids=str)
def test_every_labelled_ad_has_a_split_or_a_reason(mode, how):
    for seed in range(3):
        ads = world(600, seed, labelled=.9, advertisers=40, groups=550, **how).sample(frac=1, random_state=seed)
        if mode == 'advertiser': ads['group'] = ads.ad_id
        plan = split_ads(ads, {}, 15, seed, mode)
        labelled = ads.label.notna()
        assert plan.split.index.equals(ads.index) and set(plan.split) <= {*SPLITS, ''}
        assert ((plan.split != '') ^ (plan.why != ''))[labelled].all() and (plan.split[~labelled] == '').all() and (plan.why[~labelled] == '').all()
        key = find_units(ads[labelled], mode)
        used = plan.split[labelled] != ''
        if not how.get('given'): assert regular(plan.split)[labelled][used].groupby(key[used]).nunique().max() == 1
        # val's parts divide no unit either, whatever the manifest gave
        parts = plan.split[labelled][regular(plan.split)[labelled] == 'val']
        assert parts.groupby(key[parts.index]).nunique().max() == 1


@pytest.mark.parametrize('mode', ['group', 'advertiser'])
def test_no_ad_changes_its_side(mode):
    ads = world(900, 3, advertisers=30, groups=800)
    if mode == 'advertiser': ads['group'] = ads.ad_id
    plan = split_ads(ads, dict(val='2024-06-01', test='2024-09-01'), 10, 0, mode)
    side = by_date(ads.submitted_at, plan.cuts, 10)
    stays = plan.split != ''
    assert (regular(plan.split)[stays] == side[stays]).all() and (plan.why[side == ''] == 'embargo').all()
    left = plan.why.str.contains('belong')
    assert left.any() and (left == ((side != '') & ~stays)).all()
    who = dict(group='duplicates belong to ', advertiser='advertiser belongs to ')[mode]
    home = plan.split[stays].pipe(regular).groupby(find_units(ads, mode)[stays]).first()
    with_company = left & find_units(ads, mode).isin(home.index)
    named = with_company & ((ads.advertiser != '') | (mode == 'group'))
    assert (plan.why[named] == who + find_units(ads, mode)[named].map(home)).all()
    assert sum(w.startswith(f'{left.sum()} labelled ads are left out') for w in plan.warnings) == 1


def test_sides_of_units():
    split = pd.Series(['train']*6 + ['val']*6 + ['test']*6 + [''])
    label, alone = pd.Series([0, 1]*9 + [0]), [f'{i:02}' for i in range(19)]
    assert choose_sides(split, label, pd.Series(alone)).tolist() == split.tolist()
    unit = pd.Series(alone).replace({'04': '99', '05': '99', '06': '99', '18': '98'})  # two ads in train, one in val
    side = choose_sides(split, label, unit)
    assert side[[4, 5, 6]].tolist() == ['train']*3 and side[18] == '' and (side.drop([4, 5, 6, 18]) == split.drop([4, 5, 6, 18])).all()
    order = np.random.default_rng(0).permutation(19)
    assert choose_sides(split[order], label[order], unit[order]).sort_index().equals(side)


def test_advertisers_that_are_always_there_leave_no_side_empty():
    ads = world(3000, 0, advertisers=60).query("advertiser != ''").reset_index(drop=True)
    plan = split_ads(ads, {}, 15, 0, 'advertiser')
    side = by_date(ads.submitted_at, plan.cuts, 15)
    assert (pd.crosstab(side[side != ''], ads.advertiser) > 0).all(axis=None)
    kept = (plan.split != '')[side != ''].groupby(side).mean()
    assert kept.min() > .2 and min(n for c in count_splits(ads.assign(split=plan.split)).values() for n in c.values()) > 0


def test_given_splits_are_honoured_and_tears_counted():
    ads = world(300, 1, given=True, groups=100)
    plan = split_ads(ads, dict(val='2030-01-01', test='2031-01-01'), 15, 0)
    assert plan.by == 'given' and plan.cuts == {} and regular(plan.split).tolist() == ads.split.tolist() and (plan.why == 'no given split').equals(ads.split == '')
    torn = int((ads[ads.split != ''].groupby('group').split.nunique() > 1).sum())
    assert any(w.startswith(f'{torn} duplicate groups') for w in plan.warnings) and torn
    fine = ads.assign(split=[SPLITS[i % 5] for i in range(300)], group=ads.ad_id)
    assert split_ads(fine, {}, 15, 0).split.tolist() == fine.split.tolist() and not split_ads(fine, {}, 15, 0).warnings


def test_seeds():
    for how in ({}, dict(dated=0.)):
        ads = world(300, 0, groups=280, **how)
        a, b, other = (split_ads(ads, {}, 0, seed).split for seed in (0, 0, 1))
        assert a.equals(b) and not a.equals(other) and Counter(regular(a)) == Counter(regular(other))


def refused(match, *args, **kw):
    with pytest.raises(UserError, match=match) as e: split_ads(*args, source='ads.csv', **kw)
    assert str(e.value).startswith('ads.csv: ') and e.value.remedy and '\n' not in str(e.value)
    return str(e.value)


def test_cuts_that_cannot_be():
    ads = world(200)
    first, last = ads.submitted_at.min().date(), ads.submitted_at.max().date()
    def cuts(val, test): return dict(val=val, test=test)
    assert f'from {first} to {last}' in refused(r'the cut of test \(2042-02-01\).*so that test would be empty', ads, cuts('2024-05-01', '2042-02-01'), 0, 0)
    refused(r'the cut of val \(2014-05-01\).*so that train would', ads, cuts('2014-05-01', '2024-06-01'), 0, 0)
    refused(r'of val \(2014-05-01\) and of test \(2014-06-01\).*train and val', ads, cuts('2014-05-01', '2014-06-01'), 0, 0)
    refused(r'of val \(2014-05-01\) and of test \(2034-06-01\).*train and test', ads, cuts('2014-05-01', '2034-06-01'), 0, 0)
    refused(r'the cut of val \(\S+\) leaves.*so that train would', ads, cuts(ads.submitted_at.min(), '2024-06-01'), 0, 0)  # val would begin with the first ad
    refused(r'no ad lies between the cuts', ads, cuts('2024-05-01T00:30', '2024-05-01T00:40'), 0, 0)
    refused('bear one date', ads.assign(submitted_at=ads.submitted_at[0]), {}, 0, 0)
    refused('no ad has a date', ads.assign(submitted_at=pd.Series(pd.NaT, index=ads.index, dtype='datetime64[ns, UTC]')), cuts('2024-05-01', '2024-06-01'), 0, 0)
    refused('no ad has a verdict', ads.assign(label=pd.array([None]*200, 'Int8')), {}, 0, 0)


def test_embargo_may_empty_a_split_and_is_then_named():
    ads = world(200)
    plan = split_ads(ads, {}, 400, 0)
    with pytest.raises(UserError, match='no defective ad in train') as e: check_splits(count_splits(ads.assign(split=plan.split)), plan.by, 400, source='ads.csv', settings='ads.csv.settings.json')
    assert 'curate_embargo_days lower (now 400)' in e.value.remedy and 'ads.csv.settings.json' in e.value.remedy and 'train 0+0' in str(e.value)


def test_splits_that_lack_a_class():
    counts = {s: dict(defective=5, acceptable=0 if s == 'test' else 5) for s in SPLITS}
    for by, said, not_said in (('date', 'move the cuts', 'column split'), ('lot', 'bring more verdicts', 'cuts'), ('given', 'mend the column split', 'cuts')):
        with pytest.raises(UserError, match='no acceptable ad in test; ') as e: check_splits(counts, by)
        assert said in e.value.remedy and not_said not in e.value.remedy and 'advertisers' not in e.value.remedy
    with pytest.raises(UserError, match='not advertisers'): check_splits(counts, 'lot', keep_together='advertiser')
    counts['test']['acceptable'] = 1
    check_splits(counts)


def test_ties_stay_on_one_side():
    days = pd.Series(pd.to_datetime(['2024-01-01']*60+['2024-02-01']*60+['2024-03-01']*20, utc=True))
    assert by_date(days, find_cuts(days)).groupby(days).nunique().max() == 1


@pytest.mark.parametrize('days', [0, 1, 15, 40])
def test_embargo(days):
    ads = world(500, 2)
    plan = split_ads(ads, {}, days, 0)
    t, side = ads.submitted_at, regular(plan.split)
    for earlier, cut in (('train', plan.cuts['val']), ('val', plan.cuts['test'])):
        assert t[side == earlier].max() < cut - days*DAY and not ((t >= cut - days*DAY) & (t < cut) & (side != '')).any()
    assert (side == 'test').equals(t >= plan.cuts['test']) and plan.why[t >= plan.cuts['test']].eq('').all()
