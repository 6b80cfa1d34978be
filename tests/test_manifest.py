"What a user may bring, and what is said about it."
import json
import os
import sys

import pandas as pd
import pytest
from PIL import Image

from subtask_kit.core import UserError
from subtask_kit.manifest import (LABELS, parse_dates, parse_numbers, parse_values, path_trouble, pick_columns, read_manifest, read_settings, row_trouble, scan, settings_path,
                                  tame, write_problems)

OPENED = []
WATCH = [False]
sys.addaudithook(lambda event, args: OPENED.append(os.fsdecode(args[0])) if WATCH[0] and event == 'open' and isinstance(args[0], (str, bytes)) else None)


@pytest.fixture
def home(tmp_path):
    "A folder with six pictures, and a secret beside it."
    (tmp_path/'secret.png').write_bytes(b'secret')
    home = tmp_path/'home'
    (home/'images').mkdir(parents=True)
    for i in range(6): Image.new('RGB', (6, 6), (40*i, 9, 9)).save(home/f'images/{i}.png')
    return home


def write(home, rows, header='path,label', name='ads.csv', **settings):
    (home/name).write_text('\n'.join([header, *rows])+'\n', encoding='utf-8')
    if settings: settings_path(home/name).write_text(json.dumps(settings))
    return home/name


GOOD = ['images/0.png,0', 'images/1.png,1']


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'cp1252'])
@pytest.mark.parametrize('sep', [',', ';', '\t'])
@pytest.mark.parametrize('end', ['\n', '\r\n'])
def test_csv_dialects(home, encoding, sep, end):
    lines = [sep.join(cells) for cells in (['path', 'label', 'headline'], ['images/0.png', '0', 'Crème – 50 €'], ['images/1.png', '1', f'"a{sep} b"'])]
    (home/'ads.csv').write_bytes((end.join(lines)+end).encode(encoding))
    ads, problems, _ = read_manifest(home/'ads.csv')
    assert ads.headline.tolist() == ['Crème – 50 €', f'a{sep} b'] and ads.label.tolist() == [0, 1] and problems.empty


def test_parquet_and_csv_agree(home):
    table = pd.DataFrame({'path': [f'images/{i}.png' for i in range(4)], 'label': [0., 1., None, 1.], 'impressions': [1.5, None, 3, 0],
                          'submitted_at': pd.to_datetime(['2024-01-01 10:00', None, '2024-03-01', '2024-04-01'], format='ISO8601'), 'is_noise': [True, False, None, None], 'ad_id': [7, 8, 9, 10]})
    table.to_csv(home/'ads.csv', index=False)
    table.to_parquet(home/'ads.parquet')
    a, b = read_manifest(home/'ads.csv').ads, read_manifest(home/'ads.parquet').ads
    pd.testing.assert_frame_equal(a, b)
    assert a.label.isna().tolist() == [False, False, True, False] and a.submitted_at[0] == pd.Timestamp('2024-01-01 10:00', tz='UTC') and a.ad_id[0] == '7'


def test_folder(home):
    for name in ('defective/a', 'acceptable', 'unlabelled'): (home/'f'/name).mkdir(parents=True)
    os.replace(home/'images/0.png', home/'f/defective/a/0.png')
    for i, name in ((1, 'acceptable'), (2, 'acceptable'), (3, 'unlabelled')): os.replace(home/f'images/{i}.png', home/f'f/{name}/{i}.png')
    (home/'f/README.txt').write_text('not part of it')
    ads, problems, _ = read_manifest(home/'f')
    assert dict(zip(ads.path, ads.label.fillna(-1))) == {'defective/a/0.png': 0, 'acceptable/1.png': 1, 'acceptable/2.png': 1, 'unlabelled/3.png': -1} and problems.empty
    os.symlink(home/'images', home/'f/defective/link')
    os.mkdir(home/'f/thumbs')
    os.replace(home/'images/4.png', home/'f/thumbs/4.png')
    problems = read_manifest(home/'f', skip_bad_rows=True).problems
    assert set(zip(problems.path, problems.kind)) == {('defective/link', 'row'), ('thumbs/4.png', 'row')}
    assert len(read_manifest(home/'f', labelled=False, skip_bad_rows=True).ads) == 6  # a pool may be any folder, README.txt is found out later


ROWS = [  # header, rows that are wrong, the kind, part of the reason
    ('path,label', ['images/2.png,maybe'], 'row', 'is not one of'),
    ('path,label', ['images/2.png,2'], 'row', 'is not one of'),
    ('path,label', [',1'], 'row', 'path is empty'),
    ('path,label', ['../secret.png,1'], 'row', "'..'"),
    ('path,label', ['images/../images/2.png,1'], 'row', "'..'"),
    ('path,label', ['/etc/passwd,1'], 'row', 'not relative'),
    ('path,label', ['~/x.png,1'], 'row', 'not relative'),
    ('path,label', ['C:/x.png,1'], 'row', 'not relative'),
    ('path,label', ['images\\2.png,1'], 'row', 'backslash'),
    ('path,label', ['..\\secret.png,1'], 'row', 'backslash'),
    ('path,label', ['https://example.com/x.png,1'], 'row', 'URL'),
    ('path,label', ['file:///etc/passwd,1'], 'row', 'URL'),
    ('path,label', ['data:image/png;base64\x01,1'], 'row', 'control'),
    ('path,label', ['DATA:image/png,1'], 'row', 'URL'),
    ('path,label', ['out.png,1'], 'row', 'link leads out'),
    ('path,label', ['outdir/secret.png,1'], 'row', 'link leads out'),
    ('path,label,submitted_at', ['images/2.png,1,03/04/2024'], 'row', 'ISO 8601'),
    ('path,label,submitted_at', ['images/2.png,1,2024-02-30'], 'row', 'ISO 8601'),
    ('path,label,submitted_at', ['images/2.png,1,now'], 'row', 'ISO 8601'),
    ('path,label,submitted_at', ['images/2.png,1,9999-01-01'], 'row', 'ISO 8601'),
    ('path,label,impressions', ['images/2.png,1,-1'], 'row', 'finite'),
    ('path,label,impressions', ['images/2.png,1,inf'], 'row', 'finite'),
    ('path,label,impressions', ['images/2.png,1,many'], 'row', 'finite'),
    ('path,label,split', ['images/2.png,1,dev'], 'row', 'is not one of'),
    ('path,label,is_noise', ['images/2.png,1,perhaps'], 'row', 'is not 0 or 1'),
    ('path,label,ad_id', ['images/2.png,1,x', 'images/3.png,0,x'], 'row', 'also stands in'),
    ('path,label', ['images/2.png,1', './images/2.png,0', 'images//2.png,'], 'row', 'two verdicts'),
    ('path,label', ['images/2.png,1', 'copy.png,0'], 'row', 'two verdicts'),
    ('path,label', ['gone.png,1', './gone.png,0'], 'row', 'two verdicts'),
    ('path,label', ['gone.png,1'], 'picture', 'no such file'),
    ('path,label', ['images,1'], 'picture', 'not a file'),
    ('path,label', ['fifo,1'], 'picture', 'not a file'),
    ('path,label', ['empty.png,1'], 'picture', 'empty'),
    ('path,label', ['loop.png,1'], 'picture', ''),
    ('path,label', ['x'*300+'.png,1'], 'picture', 'cannot be read'),
]


@pytest.mark.parametrize('header,wrong,kind,reason', ROWS)
def test_bad_rows(home, header, wrong, kind, reason):
    os.symlink(home.parent/'secret.png', home/'out.png')
    os.symlink(home.parent, home/'outdir')
    os.symlink('loop.png', home/'loop.png')
    os.mkfifo(home/'fifo')
    (home/'empty.png').touch()
    (home/'copy.png').write_bytes((home/'images/2.png').read_bytes())
    pad = ','*(header.count(',')-1)
    path = write(home, [r+pad for r in GOOD]+wrong, header)
    OPENED.clear()
    WATCH[0] = True
    try: ads, problems, _ = read_manifest(path, skip_bad_rows=True)
    finally: WATCH[0] = False
    assert problems.row.tolist() == [3+i for i in range(len(wrong))] and len(ads) == 2
    assert set(problems.kind) == {kind} and problems.reason.str.contains(reason, regex=False).all()
    assert str(home/'images/0.png') in OPENED and all(os.path.realpath(p).startswith(str(home)) for p in OPENED if 'site-packages' not in p)
    if kind == 'picture': assert len(read_manifest(path).ads) == 2
    else:
        with pytest.raises(UserError, match=r'ads.csv: \d bad row.*row 3.*--skip-bad-rows'): read_manifest(path)


def test_links_inside_are_followed(home):
    os.symlink(home/'images/2.png', home/'inside.png')
    assert len(read_manifest(write(home, [*GOOD, 'inside.png,1'])).ads) == 3


def test_empty_cells_match_nothing(home):
    header = 'path,label,ad_id,headline,submitted_at,advertiser,impressions,split,policy,reviewer,sub_defect,is_noise'
    ads, problems, _ = read_manifest(write(home, [f'images/{i}.png,{i%2},,,,,,,,,,' for i in range(4)], header))
    assert problems.empty and len(ads) == 4 and ads.submitted_at.isna().all() and ads.impressions.isna().all() and ads.is_noise.isna().all()


REFUSED = [
    ('', 'no rows'), ('path,label\n', 'no rows'), ('label\n1\n', "no column 'path'"), ('path\nimages/0.png\n', "no column 'label'"),
    ('path,label\nimages/0.png,0\nimages/1.png,1,9\n', 'line 3: 3 cells'), ('path,label\nimages/0.png\n', 'line 2: 1 cells'), ('path,label\n"images/0.png,0\n', 'line 2'),
    ('path,label,label\nimages/0.png,0,1\n', "2 columns are called 'label'"), ('path,label\nimages/0.png,0\nimages/1.png,0\n', 'one class only'),
    ('path,label\nimages/0.png,\n', 'no verdicts'), ('path,label\nx.png,0\ny.png,1\n', 'no usable row of 2'), ('\0\1\2\3', 'no text file'), ('PAR1 broken', 'as Parquet'),
    ('path,label\nimages/0.png,0\n' + '"' + 'x'*200_000 + '",1\n', 'line 3')]


@pytest.mark.parametrize('content,cause', REFUSED)
def test_refused_manifests(home, content, cause):
    (home/'ads.csv').write_text(content)
    with pytest.raises(UserError) as e: read_manifest(home/'ads.csv')
    assert cause in str(e.value) and 'ads.csv' in str(e.value) and e.value.remedy and '\n' not in str(e.value)


def test_missing_manifest_and_empty_folder(home):
    with pytest.raises(UserError, match='no such manifest'): read_manifest(home/'none.csv')
    (home/'void').mkdir()
    with pytest.raises(UserError, match='sub-folders named defective'): read_manifest(home/'void')


def test_settings_map_columns_and_labels(home):
    path = write(home, ['images/0.png;bad;2024-01-01', 'images/1.png;ok;', 'images/2.png;?;', 'images/3.png;1;'], 'file;verdict;day', columns={'path': 'file', 'label': 'verdict', 'submitted_at': 'day'},
                 labels={'bad': 0, 'ok': 1, '?': None}, cuts={'val': '2024-02-01', 'test': '2024-03-01T12:00:00+01:00'}, world={'name': 'left alone'})
    ads, problems, settings = read_manifest(path, skip_bad_rows=True)
    assert ads.label.fillna(-1).tolist() == [0, 1, -1] and ads.submitted_at.notna().tolist() == [True, False, False] and settings['cuts']['val'] == '2024-02-01'
    assert problems.row.tolist() == [4]  # with spellings of one's own, 1 is not one of them


@pytest.mark.parametrize('text,cause', [
    ('{', 'as JSON'), ('[]', 'not objects'), ('{"columns": []}', 'not objects'), ('{"columns": {"colour": "c"}}', "'colour'"), ('{"columns": {"label": 3}}', "'label'"),
    ('{"labels": {"bad": 2}}', "'bad'"), ('{"labels": {"bad": true}}', "'bad'"), ('{"labels": {"bad": "0"}}', "'bad'"), ('{"cuts": {"val": "2024-01-01"}}', 'two ISO'),
    ('{"cuts": {"val": "soon", "test": "2024-01-01"}}', 'two ISO'), ('{"cuts": {"val": "2024-02-01", "test": "2024-01-01"}}', 'before')])
def test_refused_settings(home, text, cause):
    path = write(home, GOOD)
    settings_path(path).write_text(text)
    with pytest.raises(UserError) as e: read_manifest(path)
    assert cause in str(e.value) and 'ads.csv.settings.json' in str(e.value)


def test_mapped_column_must_exist(home):
    with pytest.raises(UserError, match="no column 'day'"): read_manifest(write(home, GOOD, columns={'submitted_at': 'day'}))


def test_rows_add_up_and_several_reasons_are_told(home):
    path = write(home, ['images/0.png,0,,', '../x.png,9,-3,bad', 'gone.png,1,1,', 'images/1.png,1,2,2024-01-01', 'images/2.png,,,'], 'path,label,impressions,submitted_at')
    ads, problems, _ = scan(path)
    assert sorted([*ads.row, *problems.row]) == [1, 2, 3, 4, 5]
    assert problems.reason[0].count(';') == 3
    cause, remedy = row_trouble(problems, path)
    assert '1 bad row (row 2' in cause and '--skip-bad-rows' in remedy and 'subtask-kit check' in remedy


def test_many_contradictions_stay_quick(home):
    ads = scan(write(home, [f'images/0.png,{i%2}' for i in range(3000)]))
    assert len(ads.problems) == 3000 and ads.problems.reason.str.len().max() < 200


def test_pool_ignores_labels(home):
    ads, problems, _ = read_manifest(write(home, ['images/0.png,whatever,dev'], 'path,label,split'), labelled=False)
    assert ads.label.isna().all() and (ads.split == '').all() and problems.empty


def test_values():
    assert parse_dates(pd.Series(['2024-01-01', '20240102', '2024-01-01T00:00:00-05:00', '12'])).isna().tolist() == [False, False, False, True]
    assert parse_dates(pd.Series(['2024-01-01T00:00:00-05:00']))[0] == pd.Timestamp('2024-01-01T05:00', tz='UTC')
    assert parse_numbers(pd.Series(['', 'nan', '1e400', '0'])).isna().tolist() == [True, True, True, False]
    text = pick_columns(pd.DataFrame({'path': ['a'], 'label': ['1.0']}), {}, ['path'], 'x')
    assert parse_values(text, LABELS)[0].label[0] == 1
    assert path_trouble('a:b/c.png') == "path is not relative to the manifest's folder" and path_trouble('ab:c.png') == '' and path_trouble('..a/b..png') == ''


def test_no_formula_reaches_a_spreadsheet(tmp_path):
    cells = ['=1+1', '+1', '-1', '@x', '\t=1', 'fine', '']
    assert [tame(c)[:1] for c in cells] == ["'"]*5 + ['f', '']
    write_problems(pd.DataFrame({'row': 1, 'path': cells, 'kind': 'row', 'reason': cells}), tmp_path/'rows.csv')
    back = pd.read_csv(tmp_path/'rows.csv', keep_default_na=False)
    assert back.columns.tolist() == ['row', 'path', 'kind', 'reason'] and not back[['path', 'reason']].map(lambda c: c.startswith(('=', '+', '-', '@', '\t'))).any(axis=None)


def test_settings_lie_beside(tmp_path):
    assert settings_path(tmp_path/'ads.csv').name == 'ads.csv.settings.json' and settings_path(f'{tmp_path}/ads/').name == 'ads.settings.json'
    assert read_settings(tmp_path/'ads.csv') == {'columns': {}, 'labels': {}, 'cuts': {}}
