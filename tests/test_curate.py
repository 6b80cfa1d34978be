"From verdicts to splits: nothing lost, nothing twice, time in order."
import json
import os
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from subtask_kit import images as images_kit
from subtask_kit.artifacts import open_run, read_json, read_table
from subtask_kit.core import UserError
from subtask_kit.curate import Curate, ads_of, check_manifest, curate, drop_copies, files_of, find_known, fold_headline, images_of, inspect_manifest, same_key
from subtask_kit.manifest import settings_path
from subtask_kit.splits import SPLITS, STUDENT_TEACHER, by_date, deal, divide_val, find_cuts

SHADES = [(r, g, b) for r in range(0, 250, 25) for g in range(0, 250, 25) for b in range(0, 250, 25)]
STAGE = '13_curate'


def world(home, n=120, dated=True, settings=None, **columns):
    "A manifest of `n` distinct pictures, one a day, every third defective; `columns` replace or add columns."
    (home/'images').mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.new('RGB', (8, 8), SHADES[i]).save(home/f'images/{i}.bmp')
    table = dict(path=[f'images/{i}.bmp' for i in range(n)], label=[int(i % 3 > 0) for i in range(n)], headline=[f'Headline {i}' for i in range(n)])
    if dated: table['submitted_at'] = pd.date_range('2024-01-01', periods=n).strftime('%Y-%m-%d')
    pd.DataFrame(table | columns).to_csv(home/'ads.csv', index=False)
    if settings: settings_path(home/'ads.csv').write_text(json.dumps(settings))
    return home/'ads.csv'


def pool(home, n=10, first=500, **columns):
    (home/'pool').mkdir(parents=True, exist_ok=True)
    for i in range(n): Image.new('RGB', (8, 8), SHADES[first+i]).save(home/f'pool/{i}.bmp')
    pd.DataFrame(dict(path=[f'pool/{i}.bmp' for i in range(n)]) | columns).to_csv(home/'pool.csv', index=False)
    return str(home/'pool.csv')


def go(home, manifest, name='run', **cfg):
    run = open_run(home/name, create=True)
    manifest = curate(Curate(str(manifest), **{'px': 8, 'embargo_days': 0} | cfg), run)
    return run, ads_of(run), read_table(run/f'{STAGE}/drops.parquet'), manifest


def test_every_row_ends_somewhere(tmp_path):
    n = 130
    path = world(tmp_path, n)
    table = pd.read_csv(path, dtype=str)
    shutil.copy(tmp_path/'images/20.bmp', tmp_path/'copy.bmp')
    table.loc[21, ['path', 'label']] = 'copy.bmp', table.label[20]            # same bytes
    table.loc[31, 'headline'] = ' HEADLINE  30!'                               # same headline
    table.loc[40, 'label'] = 'dunno'                                           # bad row
    table.loc[41, 'path'] = '../x.bmp'                                         # bad row
    table.loc[50, 'path'] = 'images/none.bmp'                                  # no picture
    (tmp_path/'images/51.bmp').write_bytes((tmp_path/'images/51.bmp').read_bytes()[:70])  # truncated
    table.loc[60, 'label'] = ''                                                # unlabelled
    table.loc[61, ['label', 'headline']] = '', 'headline 62'                   # unlabelled copy of a later, labelled ad
    table.to_csv(path, index=False)
    unlabelled = pool(tmp_path, 6, headline=['Headline 70', '', '', 'same', 'SAME', 'x'])
    shutil.copy(tmp_path/'images/71.bmp', tmp_path/'pool/1.bmp')
    with pytest.raises(UserError, match='2 bad rows'): go(tmp_path, path, unlabelled=unlabelled)
    run, ads, drops, manifest = go(tmp_path, path, unlabelled=unlabelled, skip_bad_rows=True)
    assert len(ads)+len(drops) == n+6 == manifest['metrics']['rows']
    rows = [*zip(drops.source, drops.row), *zip(ads.pool.map({True: 'unlabelled', False: 'data'}), [int(p.split('/')[1].split('.')[0])+1 for p in ads.path])]
    assert sorted(rows) == [*(('data', i) for i in range(1, n+1)), *(('unlabelled', i) for i in range(1, 7))]
    why = {(s, r): reason for s, r, reason in zip(drops.source, drops.row, drops.reason)}
    assert why[('data', 22)] == 'same bytes' and why[('data', 32)] == 'same headline' and why[('data', 41)].startswith('bad row: label') and why[('data', 42)].startswith('bad row: path')
    assert why[('data', 51)].startswith('unusable picture: there is no') and why[('data', 52)].startswith('unusable picture: cannot be decoded') and why[('data', 62)] == 'duplicate of a labelled ad: same headline'
    assert why[('unlabelled', 1)].startswith('duplicate of a labelled ad') and why[('unlabelled', 2)] == 'duplicate of a labelled ad: same bytes' and why[('unlabelled', 5)] == 'same headline'
    assert len(why) == 10 and sum(manifest['metrics']['drops'].values()) == 10
    kept = set(ads.ad_id)
    assert set(drops.of[drops.of != '']) <= kept and (drops.of != '').sum() == 6
    assert ads.ad_id.is_unique and (ads.split[ads.label.isna()] == '').all() and ads.label[ads.pool].isna().all()


def test_columns_and_pictures(tmp_path):
    path = world(tmp_path, sub_defect=['x']*120, is_noise=[1, 0, '']*40, impressions=['3.5']*120, advertiser=['A & B']*120, policy='p', reviewer='r')
    run, ads, _, _ = go(tmp_path, path, unlabelled=pool(tmp_path))
    assert ads.columns.tolist() == 'ad_id path label headline submitted_at advertiser impressions phash quality group split regular pool policy reviewer image_row sub_defect is_noise'.split()
    assert str(ads.label.dtype) == 'Int8' and str(ads.submitted_at.dtype) == 'datetime64[ns, UTC]' and str(ads.is_noise.dtype) == 'boolean' and ads.pool.dtype == bool and ads.impressions.dtype == float
    images, files = images_of(run), files_of(run, ads)
    assert isinstance(images, np.memmap) and images.dtype == np.uint8
    for i in (0, 7, 119, 125): assert (images[ads.image_row[i]] == np.asarray(Image.open(files[i]))).all()
    assert ads_of(run, 'train', 0).equals(ads[(ads.split == 'train') & (ads.label == 0)].reset_index(drop=True)) and len(ads_of(run, ['train', 'test'])) == (ads.split.isin(['train', 'test'])).sum()
    assert (ads_of(run, label=1).label == 1).all() and set(ads.split) == {*SPLITS, ''}


def test_cuts_and_embargo(tmp_path):
    cuts = {'val': '2024-03-01', 'test': '2024-04-01'}
    path = world(tmp_path, 120, settings=dict(cuts=cuts))
    _, ads, _, manifest = go(tmp_path, path, embargo_days=7)
    day = ads.submitted_at
    val, test = (pd.Timestamp(cuts[k], tz='UTC') for k in ('val', 'test'))
    want = np.where(day < val-pd.Timedelta(days=7), 'train', np.where((day >= val) & (day < test-pd.Timedelta(days=7)), 'val', np.where(day >= test, 'test', '')))
    assert (ads.split.where(ads.split.isin(['train', 'test', '']), 'val') == want).all()
    assert (want == '').sum() == 14 == manifest['metrics']['embargoed'] and len(ads) == 120  # embargoed ads stay in the table
    assert manifest['metrics']['splits']['train'] == {'defective': 18, 'acceptable': 35}


def test_proportions_without_cuts(tmp_path):
    _, ads, _, _ = go(tmp_path, world(tmp_path, 200))
    assert (ads.split == 'train').sum() == 122 and (ads.split == 'test').sum() == 39 # the shares of Table 1
    assert ads.submitted_at[ads.split == 'train'].max() < ads.submitted_at[ads.split.str.contains('teacher|student')].min() < ads.submitted_at[ads.split == 'test'].min()


def test_ties_stay_on_one_side():
    days = pd.Series(pd.to_datetime(['2024-01-01']*60+['2024-02-01']*60+['2024-03-01']*20, utc=True))
    split = by_date(days, find_cuts(days))
    assert split.groupby(days).nunique().max() == 1


@pytest.mark.parametrize('n', [800, 4800])
def test_table_1(n):
    ads = pd.DataFrame(dict(ad_id=[str(i) for i in range(n)], label=0))
    split = divide_val(ads, pd.Series('val', index=ads.index), 0)
    assert split.value_counts().to_dict() == {'teacher_val': n//5, 'student_val': 3*n//5, 'teacher_test': n//5}
    other = divide_val(ads, pd.Series('val', index=ads.index), 1)
    assert (split != other).any() and other.value_counts().to_dict() == split.value_counts().to_dict()
    shuffled = ads.sample(frac=1, random_state=0)
    assert divide_val(shuffled, pd.Series('val', index=shuffled.index), 0).sort_index().equals(split)


@pytest.mark.parametrize('n', range(1, 40))
def test_deal_leaves_no_pile_empty(n):
    for shares in (STUDENT_TEACHER, dict(train=.675, val=.21, test=None)):
        piles = deal(map(str, range(n)), shares, 'x')
        assert sorted(piles) == sorted(map(str, range(n)))
        if n >= 3: assert len(set(piles.values())) == 3


def test_undated_by_lot(tmp_path, capsys):
    path = world(tmp_path, 90, dated=False)
    _, ads, _, manifest = go(tmp_path, path)
    assert manifest['metrics']['split_by'] == 'lot' and 'random' in manifest['metrics']['warnings'][0] and 'random' in capsys.readouterr().err
    assert (ads.split != '').all() and {s: c['defective'] for s, c in manifest['metrics']['splits'].items()} == dict(train=18, teacher_val=1, student_val=4, teacher_test=1, test=6)
    _, other, _, _ = go(tmp_path, path, 'other', seed=1)
    assert (other.split != ads.split).any()
    table = pd.read_csv(path).sample(frac=1, random_state=0)
    table.to_csv(path, index=False)
    _, moved, _, _ = go(tmp_path, path, 'moved')
    assert dict(zip(moved.ad_id, moved.split)) == dict(zip(ads.ad_id, ads.split))  # the order of rows decides nothing


def test_given_splits_are_honoured(tmp_path):
    given = [['train', 'val', 'test'][i//3 % 3] for i in range(120)]
    given[119] = ''
    _, ads, _, manifest = go(tmp_path, world(tmp_path, split=given))
    coarse = ads.split.replace({s: 'val' for s in ('teacher_val', 'student_val', 'teacher_test')})
    assert coarse.tolist() == given and 'no split' in manifest['metrics']['warnings'][0]
    given = [SPLITS[i//3 % 5] for i in range(120)]
    _, ads, _, _ = go(tmp_path/'b', world(tmp_path/'b', split=given))
    assert ads.split.tolist() == given


def test_few_dates_missing(tmp_path):
    days = pd.date_range('2024-01-01', periods=120).strftime('%Y-%m-%d').tolist()
    days[5] = days[6] = ''
    _, ads, _, manifest = go(tmp_path, world(tmp_path, submitted_at=days))
    assert manifest['metrics']['split_by'] == 'date' and (ads.split == '').tolist() == [i in (5, 6) for i in range(120)] and '2 labelled ads have no date' in manifest['metrics']['warnings'][0]


def test_splits_without_a_class_are_refused(tmp_path):
    path = world(tmp_path, 30, label=[0]*15+[1]*15)
    with pytest.raises(UserError) as e: go(tmp_path, path)
    assert 'no acceptable ad in train' not in str(e.value) and 'no defective ad in test' in str(e.value) and 'train 15+3' in str(e.value) and 'embargo_days' in e.value.remedy
    with pytest.raises(UserError, match='no ad has a date'): go(tmp_path/'b', world(tmp_path/'b', dated=False, settings=dict(cuts=dict(val='2024-02-01', test='2024-03-01'))))
    with pytest.raises(UserError, match='no manifest is given'): go(tmp_path, '')


def test_earliest_stays_across_verdicts(tmp_path):
    headlines = [f'h{i}' for i in range(120)]
    headlines[10] = headlines[90] = 'Twice'
    days = pd.date_range('2024-01-01', periods=120).strftime('%Y-%m-%d').tolist()
    days[10], days[90] = days[90], days[10]
    _, ads, drops, _ = go(tmp_path, world(tmp_path, headline=headlines, submitted_at=days))
    assert drops.row.tolist() == [11] and ads[ads.path == 'images/90.bmp'].ad_id.tolist() == drops.of.tolist()
    leak = read_json(tmp_path/f'run/{STAGE}/leakage.json')
    assert leak['duplicates']['same headline']['before'] == 1


def test_unreadable_original_does_not_take_its_copy_along(tmp_path):
    path = world(tmp_path, headline=['twice' if i in (3, 4) else f'h{i}' for i in range(120)])
    (tmp_path/'images/3.bmp').write_text('junk')
    _, ads, drops, _ = go(tmp_path, path)
    assert drops.row.tolist() == [4] and 'images/4.bmp' in ads.path.tolist()


def test_headlines():
    same = ['Crème brûlée, 50 % off', 'creme\u0301'.replace('creme\u0301', 'crème')+'  BRU\u0302LE\u0301E 50% Off!!', 'ＣＲÈＭＥ-BRÛLÉE 50％ OFF ✨']
    assert len(set(map(fold_headline, same))) == 1
    assert [fold_headline(t) for t in ('', ' ', '!?', '🔥❤️')] == ['']*4
    assert fold_headline('Model 10') != fold_headline('Model 11') and fold_headline('数') != fold_headline('数学')


def test_empty_headlines_never_match(tmp_path):
    _, ads, drops, _ = go(tmp_path, world(tmp_path, headline=['', '!'] * 60))
    assert len(ads) == 120 and drops.empty


def test_drop_copies_against_a_plain_loop():
    rng = np.random.default_rng(0)
    n = 400
    ads = pd.DataFrame(dict(ad_id=[str(i) for i in range(n)], row=np.arange(1, n+1), path='', source='data', pool=rng.random(n) < .3, label=pd.array(rng.choice([0, 1, None], n), 'Int8'),
                            submitted_at=pd.Series(pd.to_datetime('2024-01-01', utc=True)+pd.to_timedelta(rng.integers(0, 30, n), 'D')).where(rng.random(n) < .8)))
    key = pd.Series(rng.choice([*'abcdefgh', ''], n))
    kept, gone = drop_copies(ads, same_key(ads, key, 'same bytes'))
    def rank(i): return pd.isna(ads.label[i]), pd.isna(ads.submitted_at[i]), ads.submitted_at[i] if pd.notna(ads.submitted_at[i]) else 0, ads.pool[i], i
    best = {k: min((i for i in range(n) if key[i] == k), key=rank) for k in 'abcdefgh'}
    assert kept.index.tolist() == [i for i in range(n) if key[i] == '' or best[key[i]] == i]
    assert gone.of.tolist() == [str(best[key[i]]) for i in gone.index]
    assert [r.startswith('duplicate of a labelled') for r in gone.reason] == [bool(pd.isna(ads.label[i]) and pd.notna(ads.label[best[key[i]]])) for i in gone.index]


def test_pool_ids(tmp_path):
    path = world(tmp_path, ad_id=[f'a{i}' for i in range(120)])
    unlabelled = pool(tmp_path, 4, ad_id=['a0', 'a1', 'p', ''])
    shutil.copy(tmp_path/'images/1.bmp', tmp_path/'pool/1.bmp')
    with pytest.raises(UserError, match='pool.csv: 1 bad row .row 1: ad_id'): go(tmp_path, path, unlabelled=unlabelled)
    _, ads, drops, _ = go(tmp_path, path, unlabelled=unlabelled, skip_bad_rows=True)
    assert drops.row.tolist() == [1, 2] and ads.ad_id[:3].tolist() == ['a0', 'a1', 'a2'] and ads.ad_id.is_unique


def bytes_of(run): return {p.name: p.read_bytes() for p in (run/STAGE).iterdir() if p.name != 'manifest.json'}


def test_same_bytes_twice_and_elsewhere(tmp_path):
    path = world(tmp_path/'a')
    a = go(tmp_path/'a', path, unlabelled=pool(tmp_path/'a'))[0]
    b = go(tmp_path/'a', path, 'again', unlabelled=str(tmp_path/'a/pool.csv'))[0]
    for name in ('images', 'pool'): shutil.copytree(tmp_path/'a'/name, tmp_path/'b'/name)
    for name in ('ads.csv', 'pool.csv'): shutil.copy(tmp_path/'a'/name, tmp_path/'b'/name)
    c = go(tmp_path/'b', tmp_path/'b/ads.csv', unlabelled=str(tmp_path/'b/pool.csv'))[0]
    assert bytes_of(a) == bytes_of(b) == bytes_of(c) and {'ads.parquet', 'drops.parquet', 'images.npy', 'leakage.json', 'metrics.json'} <= set(bytes_of(a))


def test_fresh_until_content_changes(tmp_path, monkeypatch):
    path = world(tmp_path)
    first = go(tmp_path, path)[3]
    os.utime(path)
    os.utime(tmp_path/'images/5.bmp')
    assert go(tmp_path, path)[3] == first
    decoded = []
    load = images_kit.load_image
    monkeypatch.setattr(images_kit, 'load_image', lambda p, *a: (decoded.append(p), load(p, *a))[1])
    assert go(tmp_path, path, embargo_days=3)[3]['why'] == ['config.embargo_days'] and not decoded  # another split costs no decoding
    Image.new('RGB', (8, 8), (1, 2, 3)).save(tmp_path/'images/5.bmp')
    assert go(tmp_path, path, embargo_days=3)[3]['why'] == ['inputs.data.pictures'] and decoded
    settings_path(path).write_text('{"cuts": {"val": "2024-03-01", "test": "2024-04-01"}}')
    assert go(tmp_path, path, embargo_days=3)[3]['why'] == ['inputs.data.settings']
    os.remove(tmp_path/'images/6.bmp')
    assert go(tmp_path, path, embargo_days=3)[3]['why'] == ['inputs.data.pictures']


def test_killed_while_decoding(tmp_path, monkeypatch):
    path = world(tmp_path)
    monkeypatch.setattr(images_kit, 'CHUNK', 16)
    whole = go(tmp_path, path)[0]
    load, calls = images_kit.load_image, []
    def dying(p, *a):
        calls.append(p)
        if len(calls) == 70: raise KeyboardInterrupt
        return load(p, *a)
    monkeypatch.setattr(images_kit, 'load_image', dying)
    with pytest.raises(KeyboardInterrupt): go(tmp_path, path, 'killed')
    assert bytes_of(go(tmp_path, path, 'killed')[0]) == bytes_of(whole) and len(calls) == 70+120-64


def test_hashed_once(tmp_path, monkeypatch):
    from subtask_kit import manifest as manifest_kit
    path, hashed = world(tmp_path), []
    hash_file = manifest_kit.hash_file
    monkeypatch.setattr(manifest_kit, 'hash_file', lambda p: (hashed.append(p), hash_file(p))[1])
    go(tmp_path, path)
    assert len(hashed) == len(set(hashed)) == 120


def test_folder_manifest(tmp_path):
    world(tmp_path, 90)
    for i in range(90):
        to = tmp_path/'f'/['defective', 'acceptable', 'acceptable'][i % 3]
        to.mkdir(parents=True, exist_ok=True)
        os.replace(tmp_path/f'images/{i}.bmp', to/f'{i}.bmp')
    run, ads, drops, manifest = go(tmp_path, tmp_path/'f')
    assert len(ads) == 90 and drops.empty and manifest['metrics']['split_by'] == 'lot' and (ads.label == 0).sum() == 30
    assert all(f.exists() for f in files_of(run, ads))


def test_check_agrees_with_the_stage(tmp_path):
    path = world(tmp_path, 200)
    (tmp_path/'images/50.bmp').write_text('=junk')
    unlabelled = pool(tmp_path)
    (tmp_path/'pool/2.bmp').write_text('junk')
    checked = check_manifest(path, unlabelled, rows_out=tmp_path/'rows.csv')
    metrics = curate(Curate(str(path), unlabelled), open_run(tmp_path/'run', create=True))['metrics']
    assert {k: checked[k] for k in metrics} == metrics and checked['bad_pictures'] == 2 and checked['bad_rows'] == 0
    rows = pd.read_csv(tmp_path/'rows.csv')
    assert rows.row.tolist() == [51, 3] and rows.kind.tolist() == ['picture']*2 and 'pool.csv' in rows.reason[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ads.csv', 'images', 'pool', 'pool.csv', 'rows.csv', 'run']


def test_check_of_a_bad_manifest(tmp_path):
    path = world(tmp_path, label=['?']+[int(i % 3 > 0) for i in range(119)])
    with pytest.raises(UserError, match='1 bad row'): check_manifest(path, rows_out=tmp_path/'rows.csv')
    assert pd.read_csv(tmp_path/'rows.csv').row.tolist() == [1]  # written although the manifest is refused
    assert check_manifest(path, skip_bad_rows=True)['bad_rows'] == 1
    found = inspect_manifest(path)
    assert 'bad row' in str(found['trouble']) and found['problems'].kind.tolist() == ['row']
    with pytest.raises(UserError, match='no such manifest'): check_manifest(tmp_path/'none.csv')


def test_refused_before_anything_is_written(tmp_path):
    path = world(tmp_path, label=[1]*120)
    with pytest.raises(UserError, match='one class only'): go(tmp_path, path)
    assert not (tmp_path/'run'/STAGE).exists()


def test_readers_name_the_stage(tmp_path):
    run = open_run(tmp_path/'run', create=True)
    for reader in (ads_of, images_of):
        with pytest.raises(UserError, match='run the stage'): reader(run)


def advert(seed, px=64):
    "A picture with something in it: coloured tiles."
    tiles = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), 'uint8')
    return Image.fromarray(tiles).resize((px, px), Image.Resampling.BICUBIC)


def adverts(home, n=120, **columns):
    "As `world`, but of pictures that can be told apart."
    path = world(home, n, **columns)
    for i in range(n): advert(i).save(home/f'images/{i}.bmp')
    return path


def crop(im): return im.crop((2, 1, 62, 63)).resize((64, 64))


def test_near_duplicates_go_and_are_accounted_for(tmp_path):
    path = adverts(tmp_path)
    crop(advert(4)).save(tmp_path/'images/50.bmp')           # of an earlier ad
    crop(advert(50)).save(tmp_path/'images/51.bmp')          # the picture that 50 had: nothing is like it any more
    advert(7).point(lambda v: int(.8*v)).save(tmp_path/'images/110.bmp')
    unlabelled = pool(tmp_path, 6)
    for i in range(6): advert(900+i).save(tmp_path/f'pool/{i}.bmp')
    crop(advert(119)).save(tmp_path/'pool/2.bmp')            # of a labelled ad
    crop(advert(904)).save(tmp_path/'pool/5.bmp')            # within the pool: stays
    run, ads, drops, manifest = go(tmp_path, path, unlabelled=unlabelled, px=64)
    assert sorted(zip(drops.source, drops.row, drops.reason)) == [('data', 51, 'near-duplicate'), ('data', 111, 'near-duplicate'),
                                                                 ('unlabelled', 3, 'duplicate of a labelled ad: near-duplicate')]
    by_path = ads.set_index('path').ad_id
    assert drops.set_index('path').of.to_dict() == {'images/50.bmp': by_path['images/4.bmp'], 'images/110.bmp': by_path['images/7.bmp'], 'pool/2.bmp': by_path['images/119.bmp']}
    assert (ads.group == ads.ad_id).all() and drops.label.astype(object).where(drops.label.notna(), None).tolist() == [1, 1, None]
    assert manifest['metrics']['dropped'] == {'duplicate of a labelled ad': {'no verdict': 1}, 'near-duplicate': {'acceptable': 2}}
    pairs = read_table(run/f'{STAGE}/pairs.parquet')
    assert len(pairs[pairs.merged]) == 3 and (pairs.merged == (pairs.score <= 1)).all() and set(pairs.a) | set(pairs.b) <= set(ads.ad_id) | set(drops.ad_id)
    images = images_of(run)
    for p in pairs[pairs.merged].itertuples(): assert np.abs(images[p.row_a].astype(int)-images[p.row_b]).mean() < 60
    leak = read_json(run/f'{STAGE}/leakage.json')
    assert leak['duplicates']['near-duplicate']['before'] == 1 and leak['duplicates']['near-duplicate']['after'] == 0  # 4 and 50 lie in train, 7 in train and 110 in test
    assert read_table(run/f'{STAGE}/power.parquet').split.unique().tolist() == ['teacher_test', 'test']


@pytest.mark.parametrize('dedupe,gone', [('both', [21, 51]), ('headline', [21]), ('picture', [51]), ('none', [])])
def test_which_duplicates_go(tmp_path, dedupe, gone):
    path = adverts(tmp_path, headline=['h9' if i == 20 else f'h{i}' for i in range(120)])
    crop(advert(4)).save(tmp_path/'images/50.bmp')
    assert go(tmp_path, path, dedupe=dedupe, px=64)[2].row.tolist() == gone


def test_a_chain_of_copies_is_one_group(tmp_path):
    path = adverts(tmp_path, headline=['h4' if i == 70 else 'h50' if i == 90 else f'h{i}' for i in range(120)])
    crop(advert(4)).save(tmp_path/'images/50.bmp')           # 4 = 70 by headline, 4 = 50 by picture, 50 = 90 by headline
    _, ads, drops, _ = go(tmp_path, path, px=64)
    assert drops.row.tolist() == [51, 71, 91] and drops.of.nunique() == 1 and drops.reason.tolist() == ['same headline', 'same headline', 'same headline']


def test_same_bytes_follow_their_group(tmp_path):
    path = adverts(tmp_path)
    crop(advert(4)).save(tmp_path/'images/50.bmp')
    shutil.copy(tmp_path/'images/50.bmp', tmp_path/'images/92.bmp')
    run, ads, drops, _ = go(tmp_path, path, px=64)
    assert drops.row.tolist() == [51, 93] and drops.reason.tolist() == ['near-duplicate', 'same bytes']
    assert drops.of.tolist() == [ads.set_index('path').ad_id['images/4.bmp']]*2
    assert {k: v['before'] for k, v in read_json(run/f'{STAGE}/leakage.json')['duplicates'].items()} == {'same bytes': 1, 'same headline': 0, 'near-duplicate': 0}


def test_mirrors_are_an_option(tmp_path):
    path = adverts(tmp_path)
    advert(4).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path/'images/50.bmp')
    assert go(tmp_path, path, px=64)[2].empty
    assert go(tmp_path, path, 'again', mirrors=True, px=64)[2].row.tolist() == [51]


def test_advertisers_stay_whole_on_request(tmp_path):
    who = [f'shop {i%40 if i < 100 else i}' for i in range(120)]
    run, ads, drops, manifest = go(tmp_path, adverts(tmp_path, advertiser=who), keep_together='advertiser')
    used = ads[ads.split != '']
    assert (used.groupby('advertiser').split.nunique() == 1).all() and manifest['metrics']['left_out'] > 0
    assert ads.groupby(['regular', 'split']).size().index.tolist() == [(r, s) for r, s in sorted({('train', 'train'), ('test', 'test'), ('', ''), *(('val', s) for s in STUDENT_TEACHER)})]
    with pytest.raises(UserError, match='keep_together'): Curate('x', keep_together='shop')


def test_processes_and_threads_change_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(images_kit, 'PARALLEL_FROM', 10)
    path = adverts(tmp_path)
    crop(advert(4)).save(tmp_path/'images/50.bmp')
    runs = [open_run(tmp_path/f'run{n}', workers=n, create=True) for n in (0, 2)]
    for run in runs: curate(Curate(str(path), px=64, embargo_days=0), run)
    assert bytes_of(runs[0]) == bytes_of(runs[1])


def test_new_data_against_a_run(tmp_path):
    run, ads, _, _ = go(tmp_path, adverts(tmp_path), px=64)
    new = tmp_path/'new'
    (new/'deep').mkdir(parents=True)
    shutil.copy(tmp_path/'images/3.bmp', new/'a.bmp')
    crop(advert(100)).save(new/'deep/b.bmp')
    for name, seed in (('c.bmp', 700), ('d.bmp', 701), ('e.bmp', 702)): advert(seed).save(new/name)
    crop(advert(700)).save(new/'f.bmp')                      # a copy within the new ads is not the run's business
    (new/'g.bmp').write_text('no picture')
    pd.DataFrame(dict(path=['a.bmp', 'deep/b.bmp', 'c.bmp', 'd.bmp', 'e.bmp', 'f.bmp', 'g.bmp'], headline=['', '', '', ' HEADLINE 70 !', '', '', 'Headline 71'])).to_csv(new/'ads.csv', index=False)
    known = find_known(run, new/'ads.csv')
    where = ads.set_index('path').loc[['images/3.bmp', 'images/100.bmp', 'images/70.bmp']]
    assert known.row.tolist() == [1, 2, 4] and known.kind.tolist() == ['same bytes', 'near-duplicate', 'same headline']
    assert known.ad_id.tolist() == where.ad_id.tolist() and known.split.tolist() == where.split.tolist()
    assert find_known(run, tmp_path/'ads.csv').row.tolist() == list(range(1, 121))  # the run's own data are all known
    (tmp_path/'none').mkdir()
    (tmp_path/'none/x.bmp').write_text('junk')
    assert find_known(run, tmp_path/'none').empty
