"What a user may bring, and what is said about it."
import codecs
import csv
import datetime
import decimal
import io
import json
import os
import random
import shutil
import sys
import unicodedata

import hostile
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from subtask_kit import cli
from subtask_kit.core import UserError
from subtask_kit.manifest import (LABELS, decode_text, list_folder, parse_dates, parse_numbers, parse_values, path_trouble, pick_columns, printable, read_manifest, read_settings, row_trouble, scan, settings_path,
                                  tame, write_problems)

OPENED = []
WATCH = [False]
sys.addaudithook(lambda event, args: OPENED.append(os.fsdecode(args[0])) if WATCH[0] and event == 'open' and isinstance(args[0], (str, bytes)) else None)


@pytest.fixture(autouse=True)
def nothing_hangs():
    with hostile.in_time(): yield


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


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16', 'utf-16-le', 'utf-16-be', 'utf-32', 'utf-32-be', 'cp1252'])
@pytest.mark.parametrize('sep', [',', ';', '\t'])
@pytest.mark.parametrize('end', ['\n', '\r\n', '\r'])
def test_csv_dialects(home, encoding, sep, end):
    lines = [sep.join(cells) for cells in (['path', 'label', 'headline'], ['images/0.png', '0', 'Crème – 50 €'], ['images/1.png', '1', f'"a{sep} b"'])]
    (home/'ads.csv').write_bytes((end.join(lines)+end).encode(encoding))
    ads, problems, _, warnings = read_manifest(home/'ads.csv')
    assert ads.headline.tolist() == ['Crème – 50 €', f'a{sep} b'] and ads.label.tolist() == [0, 1] and problems.empty
    assert bool(warnings) == (encoding == 'cp1252') # a guess is told
    (home/'ads.csv').write_bytes((f'sep={sep}{end}' + end.join(lines) + end*3 + sep*2 + end).encode(encoding)) # as Excel writes it
    pd.testing.assert_frame_equal(read_manifest(home/'ads.csv').ads, ads)


@pytest.mark.parametrize('encoding,word', [('shift_jis', '新発売の靴'), ('gb18030', '春季新品🙂'), ('koi8-r', 'Новинка'), ('cp1250', 'Zażółć'), ('big5', '新品'), ('utf-16-le', 'Crème')])
def test_encoding_of_the_settings(home, encoding, word):
    text = f'path,label,headline\nimages/0.png,0,{word}\nimages/1.png,1,b\n'
    (home/'ads.csv').write_bytes(text.encode(encoding))
    settings_path(home/'ads.csv').write_text(json.dumps({'encoding': encoding}))
    ads, _, settings, warnings = read_manifest(home/'ads.csv')
    assert ads.headline[0] == word and settings['encoding'] == encoding and not warnings
    settings_path(home/'ads.csv').write_text('{"encoding": "ascii"}')
    with pytest.raises(UserError, match='ads.csv: line [12] is not ascii.*"encoding" in ads.csv.settings.json'): read_manifest(home/'ads.csv')


def test_a_guessed_encoding_is_told(home):
    (home/'ads.csv').write_bytes('path,label,headline\nimages/0.png,0,a\nimages/1.png,1,été\n'.encode('cp1252'))
    [warning] = read_manifest(home/'ads.csv').warnings
    assert 'ads.csv: line 3 is not utf-8; it was read as cp1252' in warning and 'settings.json' in warning and '\n' not in warning
    assert 'latin-1' in decode_text(b'path\n\x81\n', 'x')[1] and decode_text(b'path\n', 'x') == ('path\n', '')
    for mark in (codecs.BOM_UTF8, codecs.BOM_UTF8*2): assert decode_text(mark+b'path\n', 'x')[0] == 'path\n'


def test_the_person_hears_of_it(tmp_path, capsys):
    "From `check` as well as from the stage, which `run` quotes."
    from subtask_kit.artifacts import open_run
    from subtask_kit.curate import Curate, curate
    rng = np.random.default_rng(0)
    for i in range(60): Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype='uint8')).save(tmp_path/f'{i}.png')
    (tmp_path/'ads.csv').write_bytes(('path,label,headline\n' + ''.join(f'{i}.png,{i%2},été {i}\n' for i in range(60))).encode('cp1252'))
    cli.main(['check', str(tmp_path/'ads.csv')])
    assert 'warning: ' in (out := capsys.readouterr().out) and 'line 2 is not utf-8; it was read as cp1252' in out and ': usable' in out
    manifest = curate(Curate(str(tmp_path/'ads.csv'), px=8), open_run(tmp_path/'run', create=True))
    assert [w for w in manifest['metrics']['warnings'] if 'it was read as cp1252' in w]


def test_what_joining_files_leaves(home):
    "A mark in the middle, blank lines, invisible spaces, a second header."
    write(home, ['images/0.png,0', '', '   ', ',', '\ufeffimages/1.png,1', ' images/2.png\u200b ,\xa01 ', '\ufeffpath,label', '"images/3.png","1"'], '\ufeff path , label')
    ads, problems, _, _ = read_manifest(home/'ads.csv', skip_bad_rows=True)
    assert ads.path.tolist() == [f'images/{i}.png' for i in range(4)] and problems.row.tolist() == [4] and "label 'label'" in problems.reason[0]


def test_cells_of_all_kinds_are_data(home):
    cells = ['two\nlines', 'a\rb', 'nul\0', '=1+1', '\x1b[2J', '<b>', 'x'*131_000, '🙂'*1000, 'tab\t', '"quoted"']
    table = pd.DataFrame({'path': [f'images/{i%6}.png' for i in range(len(cells))], 'label': [i%2 for i in range(len(cells))], 'headline': cells})
    table.to_csv(home/'ads.csv', index=False, lineterminator='\n', quoting=csv.QUOTE_ALL)
    table.to_parquet(home/'ads.parquet')
    for name in ('ads.csv', 'ads.parquet'): assert read_manifest(home/name).ads.headline.tolist() == [c.strip() for c in cells]


def test_parquet_and_csv_agree(home):
    table = pd.DataFrame({'path': [f'images/{i}.png' for i in range(4)], 'label': [0., 1., None, 1.], 'impressions': [1.5, None, 3, 0],
                          'submitted_at': pd.to_datetime(['2024-01-01 10:00', None, '2024-03-01', '2024-04-01'], format='ISO8601'), 'is_noise': [True, False, None, None], 'ad_id': [7, 8, 9, 10]})
    table.to_csv(home/'ads.csv', index=False)
    table.to_parquet(home/'ads.parquet')
    a, b = read_manifest(home/'ads.csv').ads, read_manifest(home/'ads.parquet').ads
    pd.testing.assert_frame_equal(a, b)
    assert a.label.isna().tolist() == [False, False, True, False] and a.submitted_at[0] == pd.Timestamp('2024-01-01 10:00', tz='UTC') and a.ad_id[0] == '7'


def parquet(home, **columns):
    pa.parquet.write_table(pa.table({'path': [f'images/{i}.png' for i in range(4)], 'label': [0, 1, 0, 1]} | columns), home/'ads.parquet')
    return read_manifest(home/'ads.parquet', skip_bad_rows=True)


@pytest.mark.parametrize('path', [pa.array([f'images/{i}.png' for i in range(4)], pa.large_string()), pa.array([f'images/{i}.png'.encode() for i in range(4)], pa.binary()), pa.array([f'images/{i}.png' for i in range(4)]).dictionary_encode()], ids=['large', 'binary', 'categories'])
@pytest.mark.parametrize('label', [pa.array([0., 1., None, 1.]), pa.array([decimal.Decimal('0.00'), decimal.Decimal('1.00'), None, decimal.Decimal('1')], pa.decimal128(9, 2)), pa.array(['0', '1', '', '1']).dictionary_encode(), pa.array([0, 1, None, 1], pa.uint8())], ids=['floats', 'decimals', 'categories', 'bytes'])
def test_parquet_types(home, path, label):
    day = datetime.datetime(2024, 3, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))
    ads, problems, _, _ = parquet(home, path=path, label=label, submitted_at=pa.array([day, None, day, day], pa.timestamp('us', 'Asia/Tokyo')), impressions=pa.array([decimal.Decimal('1.5'), None, 2, 3], pa.decimal128(9, 1)),
                                  embedding=pa.array([[1., 2.]]*4), thumbnail=pa.array([b'\xff\xd8']*4), nested=pa.array([{'a': 1}]*4))
    assert problems.empty and ads.label.fillna(-1).tolist() == [0, 1, -1, 1] and ads.submitted_at[0] == pd.Timestamp(day) and ads.impressions[0] == 1.5 and len(ads) == 4


def test_parquet_traps(home):
    folder = home/'label=1'
    shutil.copytree(home/'images', folder/'images')
    table = pd.DataFrame({'path': [f'images/{i}.png' for i in range(4)], 'verdict': [0, 1, 0, 1]}).set_index('path') # the index is a column too
    table.to_parquet(folder/'ads.parquet')
    with pytest.raises(UserError, match="no column 'label'; it has 'path', 'verdict'"): read_manifest(folder/'ads.parquet') # and a folder's name is none
    settings_path(folder/'ads.parquet').write_text('{"columns": {"label": "verdict"}}')
    assert read_manifest(folder/'ads.parquet').ads.label.tolist() == [0, 1, 0, 1]
    for label, reason in (([[0], [1], [0], [1]], 'is not one of'), ([True, False]*2, 'is not one of'), ([{'a': 1}]*4, 'is not one of')):
        pa.parquet.write_table(pa.table({'path': [f'images/{i}.png' for i in range(4)], 'label': label}), home/'ads.parquet')
        problems = scan(home/'ads.parquet').problems
        assert len(problems) == 4 and problems.reason.str.contains(reason).all()


def test_damaged_parquet_is_refused_or_read(home):
    whole, rng = (parquet(home, headline=['a', 'b', 'c', 'd']), (home/'ads.parquet').read_bytes())[1], random.Random(0)
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 3, 20))): data[rng.randrange(len(data))] = rng.randrange(256)
        (home/'ads.parquet').write_bytes(data[:rng.choice((None, None, rng.randrange(len(data))))])
        try: ads, problems, _, _ = read_manifest(home/'ads.parquet', skip_bad_rows=True)
        except UserError as e: assert '\n' not in str(e) and str(e).isprintable() and len(str(e)) < 700
        else: assert len(ads)+len(problems) > 0


def test_damaged_text_is_refused_or_read(home):
    rng, base = random.Random(1), 'path,label,headline,submitted_at\nimages/0.png,0,"a, b",2024-01-01\nimages/1.png,1,Crème,\n'
    for i in range(300):
        data = bytearray(base.encode(rng.choice(('utf-8', 'utf-16', 'cp1252', 'utf-32'))))
        for _ in range(rng.choice((1, 2, 8))): data[rng.randrange(len(data))] = rng.choice([*b'\0\r\n",;\t\xff\xfe\x1b=', rng.randrange(256)])
        (home/'ads.csv').write_bytes(data[:rng.choice((None, rng.randrange(len(data))))])
        try: ads, problems, _, _ = scan(home/'ads.csv')
        except UserError as e: assert str(e).isprintable() and e.remedy
        else: assert sorted([*ads.row, *problems.row]) == list(range(1, len(ads)+len(problems)+1)) and problems.reason.map(str.isprintable).all()


def test_unicode_forms_of_a_name(home):
    for name in ('café.png', 'ﬁ.png'): os.replace(home/f'images/{len(name)%2+1}.png', home/unicodedata.normalize('NFD', name))
    table = ['images/0.png,0', 'café.png,1', 'cafe\u0301.png,1', 'ﬁ.png,1', 'fi.png,1']
    ads, problems, _, _ = read_manifest(write(home, table))
    assert ads.path.tolist() == ['images/0.png', 'cafe\u0301.png', 'cafe\u0301.png', 'ﬁ.png'] and problems.row.tolist() == [5] # as on disk; letters that only look alike stay apart
    assert [(home/p).exists() for p in ads.path] == [True]*4


def test_ways_to_say_one_file(home):
    "Spellings, links inside and hard links are one file: one verdict for all."
    os.link(home/'images/2.png', home/'hard.png')
    os.symlink('images', home/'dir')
    rows = ['images/2.png,1', './images/2.png,1', 'images//2.png,1', 'images/./2.png,1', 'dir/2.png,1', 'hard.png,1']
    ads = read_manifest(write(home, [*GOOD, *rows])).ads
    assert ads.sha256[2:].nunique() == 1 and len(ads) == 8
    assert len(scan(write(home, [*GOOD, *rows, 'hard.png,0'])).problems) == 7


def test_a_link_to_a_manifest(home):
    write(home, GOOD)
    (home.parent/'other').mkdir()
    os.symlink(home/'ads.csv', home.parent/'other/ads.csv')
    with pytest.raises(UserError, match='no usable row.*relative to the manifest'): read_manifest(home.parent/'other/ads.csv') # where the link lies
    os.symlink(home, home.parent/'linked')
    assert len(read_manifest(home.parent/'linked/ads.csv').ads) == 2


def test_a_folder_is_told_whole(home, monkeypatch):
    for name in ('defective', 'acceptable'): (home/'f'/name).mkdir(parents=True)
    for i, name in enumerate(('defective/a.png', 'defective/b.png ', 'acceptable/c.png', 'd.png', 'e.JPG')): os.replace(home/f'images/{i}.png', home/'f'/name)
    ads, problems, _, warnings = read_manifest(home/'f')
    assert problems.empty and ads.path.tolist() == ['acceptable/c.png', 'defective/a.png', 'defective/b.png '] # a name keeps its spaces
    assert len(warnings) == 1 and '2 pictures lie beside the sub-folders' in warnings[0]
    def locked(path, onerror=None): onerror(PermissionError(13, 'Permission denied', f'{path}/defective')); yield from ()
    monkeypatch.setattr(os, 'walk', locked)
    with pytest.raises(UserError, match='defective: this folder cannot be read .Permission denied'): list_folder(home/'f')


def test_folder(home):
    for name in ('defective/a', 'acceptable', 'unlabelled'): (home/'f'/name).mkdir(parents=True)
    os.replace(home/'images/0.png', home/'f/defective/a/0.png')
    for i, name in ((1, 'acceptable'), (2, 'acceptable'), (3, 'unlabelled')): os.replace(home/f'images/{i}.png', home/f'f/{name}/{i}.png')
    (home/'f/README.txt').write_text('not part of it')
    ads, problems, _, _ = read_manifest(home/'f')
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
    ('path,label', ['.,1'], 'picture', "manifest's folder itself"),
    ('path,label', ['giant.png,1'], 'picture', 'too large'),
    ('path,label', ['images/2.png/x.png,1'], 'picture', 'cannot be read'),
    ('path,label', ['a\x7f.png,1', 'a\x9b2J.png,1'], 'row', 'control'),
    ('path,label,submitted_at', ['images/2.png,1,0001-01-01', 'images/3.png,1,2300-01-01', 'images/4.png,1,1709251200', 'images/5.png,1,45352'], 'row', 'ISO 8601'),
    ('path,label,submitted_at', ['images/2.png,1,٢٠٢٤-٠١-٠١', 'images/3.png,1,2024-01-01T25:00', 'images/4.png,1,2024-01-01T00:00+99:00', 'images/5.png,1,2024-01-01 10 PM'], 'row', 'ISO 8601'),
    ('path,label,impressions', ['images/2.png,1,"1,5"', 'images/3.png,1,'+'9'*400, 'images/4.png,1,0x10', 'images/5.png,1,1_000'], 'row', 'such as 1234.5'),
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
    with open(home/'giant.png', 'wb') as f: f.truncate(2**40)
    (home/'copy.png').write_bytes((home/'images/2.png').read_bytes())
    pad = ','*(header.count(',')-1)
    path = write(home, [r+pad for r in GOOD]+wrong, header)
    OPENED.clear()
    WATCH[0] = True
    try: ads, problems, _, _ = read_manifest(path, skip_bad_rows=True)
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
    ads, problems, _, _ = read_manifest(write(home, [f'images/{i}.png,{i%2},,,,,,,,,,' for i in range(4)], header))
    assert problems.empty and len(ads) == 4 and ads.submitted_at.isna().all() and ads.impressions.isna().all() and ads.is_noise.isna().all()


REFUSED = [
    ('', 'no rows'), ('path,label\n', 'no rows'), ('label\n1\n', "no column 'path'"), ('path\nimages/0.png\n', "no column 'label'"),
    ('path,label\nimages/0.png,0\nimages/1.png,1,9\n', 'line 3: 3 cells'), ('path,label\nimages/0.png\n', 'line 2: 1 cells'), ('path,label\n"images/0.png,0\n', 'line 2'),
    ('path,label,label\nimages/0.png,0,1\n', "2 columns are called 'label'"), ('path,label\nimages/0.png,0\nimages/1.png,0\n', 'one class only'),
    ('path,label\nimages/0.png,\n', 'no verdicts'), ('path,label\nx.png,0\ny.png,1\n', 'no usable row of 2'), ('\0\1\2\3', 'no text file'), ('PAR1 broken', 'as Parquet'),
    ('path,label\nimages/0.png,0\n' + '"' + 'x'*200_000 + '",1\n', 'line 3'), ('sep=;\npath;label\nimages/0.png;0;1\n', 'line 3: 3 cells'), ('path,label\nimages/0.png,0\n"a"b,1\n', 'line 3'),
    ('path,label,\nimages/0.png,0\n', 'line 2: 2 cells'), ('x'*200_000, 'line 1'), ('path,label\n' + 'x'*11_000_000, 'line 2: 11,000,000 characters'), ('PK\3\4', 'Excel workbook'), (' label , label,path\n1,1,x\n', "2 columns are called 'label'")]


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
    ads, problems, settings, _ = read_manifest(path, skip_bad_rows=True)
    assert ads.label.fillna(-1).tolist() == [0, 1, -1] and ads.submitted_at.notna().tolist() == [True, False, False] and settings['cuts']['val'] == '2024-02-01'
    assert problems.row.tolist() == [4]  # with spellings of one's own, 1 is not one of them


@pytest.mark.parametrize('text,cause', [
    ('{', 'as JSON'), ('[]', 'not objects'), ('{"columns": []}', 'not objects'), ('{"columns": {"colour": "c"}}', "'colour'"), ('{"columns": {"label": 3}}', "'label'"),
    ('{"labels": {"bad": 2}}', "'bad'"), ('{"labels": {"bad": true}}', "'bad'"), ('{"labels": {"bad": "0"}}', "'bad'"), ('{"cuts": {"val": "2024-01-01"}}', 'two ISO'),
    ('{"cuts": {"val": "2024-01-01", "test": "2024-02-01", "train": "2023-01-01"}}', 'two ISO'), ('{"cuts": {"val": "2024-01-01", "test": 20240201.5}}', 'two ISO'), ('{"cuts": {"val": "03/04/2024", "test": "2024-05-01"}}', "'03/04/2024'"),
    ('{"cuts": {"val": null, "test": "2024-05-01"}}', 'two ISO'), ('{"colums": {"path": "file"}}', "did you mean 'columns'"), ('{"Labels": {}}', "did you mean 'labels'"), ('{"label": {}}', "did you mean 'labels'"), ('{"cut": {}}', "did you mean 'cuts'"),
    ('{"encodings": "utf-8"}', "did you mean 'encoding'"), ('{"encoding": 8}', "'encoding' is 8"), ('{"encoding": "klingon"}', "'klingon'"), ('{"encoding": "base64"}', "'base64'"), ('{"encoding": "utf-8\\u0000"}', 'is not known'),
    ('{"labels": {"a": 0, "a": 1}}', "'a' is given twice"), ('{"labels": {"a": NaN}}', "'a'"), ('{"labels": {"\\u001b[2J": 2}}', r"'\x1b[2J'"), ('{"columns": null}', "'columns' is null"),
    ('{"cuts": {"val": "soon", "test": "2024-01-01"}}', 'two ISO'), ('{"cuts": {"val": "2024-02-01", "test": "2024-01-01"}}', 'before')])
def test_refused_settings(home, text, cause):
    path = write(home, GOOD)
    settings_path(path).write_text(text)
    with pytest.raises(UserError) as e: read_manifest(path)
    assert cause in str(e.value) and 'ads.csv.settings.json' in str(e.value) and str(e.value).isprintable()


def test_spaces_in_settings_mean_nothing(home):
    path = write(home, ['images/0.png,bad', 'images/1.png,ok'], ' file , verdict', columns={'path': 'file ', 'label': ' verdict'}, labels={' bad': 0, 'ok ': 1})
    assert read_manifest(path).ads.label.tolist() == [0, 1]


def test_more_rows_and_longer_cells_than_can_be_dealt_with(home, monkeypatch):
    parquet(home, headline=['a', 'b', 'x'*131_073, 'd'])
    problems = scan(home/'ads.parquet').problems
    assert problems.row.tolist() == [3] and 'is longer than 131,072 characters' in problems.reason[0] and len(problems.reason[0]) < 200
    monkeypatch.setattr('subtask_kit.manifest.MAX_ROWS', 3)
    monkeypatch.setattr(pa.parquet.ParquetFile, 'read', lambda *_: pytest.fail('unpacked'))
    for path in (home/'ads.parquet', write(home, GOOD*2)):
        with pytest.raises(UserError, match='4 rows are more than the 3'): read_manifest(path)


def test_other_keys_are_left_alone(home):
    path = write(home, GOOD, counts={'train': 1}, world={'name': 'x'}, comment='mine', owner='me', version=2, encoding='')
    assert read_manifest(path).settings == {'columns': {}, 'labels': {}, 'cuts': {}, 'encoding': ''}


@pytest.mark.parametrize('make', [os.mkfifo, lambda p: os.symlink('nowhere', p), lambda p: p.mkdir(), lambda p: (p.touch(), os.truncate(p, 2**40))], ids=['pipe', 'dangling', 'folder', 'sparse'])
@pytest.mark.parametrize('name', ['ads.csv', 'ads.csv.settings.json'])
def test_what_is_no_file_is_not_waited_for(home, name, make):
    if name != 'ads.csv': write(home, GOOD)
    make(home/name)
    with pytest.raises(UserError, match='this is no ordinary file|cannot be read .No such file|bytes are more|no sub-folders'): read_manifest(home/'ads.csv')


def test_mapped_column_must_exist(home):
    with pytest.raises(UserError, match="no column 'day'"): read_manifest(write(home, GOOD, columns={'submitted_at': 'day'}))


def test_rows_add_up_and_several_reasons_are_told(home):
    path = write(home, ['images/0.png,0,,', '../x.png,9,-3,bad', 'gone.png,1,1,', 'images/1.png,1,2,2024-01-01', 'images/2.png,,,'], 'path,label,impressions,submitted_at')
    ads, problems, _, _ = scan(path)
    assert sorted([*ads.row, *problems.row]) == [1, 2, 3, 4, 5]
    assert problems.reason[0].count(';') == 3
    cause, remedy = row_trouble(problems, path)
    assert '1 bad row (row 2' in cause and '--skip-bad-rows' in remedy and 'subtask-kit check' in remedy


def test_many_contradictions_stay_quick(home):
    ads = scan(write(home, [f'images/0.png,{i%2}' for i in range(3000)]))
    assert len(ads.problems) == 3000 and ads.problems.reason.str.len().max() < 200


def test_pool_ignores_labels(home):
    ads, problems, _, _ = read_manifest(write(home, ['images/0.png,whatever,dev'], 'path,label,split'), labelled=False)
    assert ads.label.isna().all() and (ads.split == '').all() and problems.empty


def test_values():
    assert parse_dates(pd.Series(['2024-01-01', '20240102', '2024-01-01T00:00:00-05:00', '12'])).isna().tolist() == [False, False, False, True]
    assert parse_dates(pd.Series(['2024-01-01T00:00:00-05:00']))[0] == pd.Timestamp('2024-01-01T05:00', tz='UTC')
    assert parse_numbers(pd.Series(['', 'nan', '1e400', '0'])).isna().tolist() == [True, True, True, False]
    text = pick_columns(pd.DataFrame({'path': ['a'], 'label': ['1.0']}), {}, ['path'], 'x')
    assert parse_values(text, LABELS)[0].label[0] == 1
    assert path_trouble('a:b/c.png') == "path is not relative to the manifest's folder" and path_trouble('ab:c.png') == '' and path_trouble('..a/b..png') == ''


def test_no_formula_reaches_a_spreadsheet(tmp_path):
    cells = ['=1+1', '+1', '-1', '@x', '\t=1', ' =1', '＝1', 'fine', '']
    assert [tame(c)[:1] for c in cells] == ["'"]*7 + ['f', ''] and tame('a;=1') == "a;'=1" and tame('a-b=c@d+e;f.png') == 'a-b=c@d+e;f.png'
    write_problems(pd.DataFrame({'row': 1, 'path': cells, 'kind': 'row', 'reason': cells}), tmp_path/'rows.csv')
    back = pd.read_csv(tmp_path/'rows.csv', keep_default_na=False)
    assert back.columns.tolist() == ['row', 'path', 'kind', 'reason'] and not back[['path', 'reason']].map(lambda c: c.startswith(('=', '+', '-', '@', '\t'))).any(axis=None)


def test_settings_lie_beside(tmp_path):
    assert settings_path(tmp_path/'ads.csv').name == 'ads.csv.settings.json' and settings_path(f'{tmp_path}/ads/').name == 'ads.settings.json'
    assert read_settings(tmp_path/'ads.csv') == {'columns': {}, 'labels': {}, 'cuts': {}, 'encoding': ''}


def test_nothing_of_a_stranger_commands_the_terminal(home, capsys):
    evil = '\x1b[2J\x9b31m\u202e\x07'
    rows = [f'"{evil}{i}.png\n=1",{evil},{evil}' for i in range(30)]
    path = write(home, ['images/0.png,0,', 'images/1.png,1,', *rows], 'path,label,ad_id')
    with pytest.raises(SystemExit) as e: cli.main(['check', str(path), '--rows', str(home/'rows.csv')])
    out, err = capsys.readouterr()
    assert e.value.code == 2 and err.count('\n') == 1 and len(out.splitlines()) == 21 and 'and 10 more' in out
    for text in (out, err, (home/'rows.csv').read_text()): assert all(c.isprintable() or c == '\n' for c in text)
    told = pd.read_csv(home/'rows.csv')
    assert told.row.tolist() == list(range(3, 33)) and told.path[0] == r"\x1b[2J\x9b31m\u202e\x070.png\n=1" and set(told.kind) == {'row'}
    assert printable('a'*20, 10) == 'a'*9+'…' and printable('é🙂') == 'é🙂'


def test_check_overwrites_no_other_file(home, capsys):
    path = write(home, [*GOOD, 'images/2.png,x'])
    before = path.read_bytes()
    for out in (path, home/'images/0.png', home/'nowhere/rows.csv', home):
        with pytest.raises(SystemExit) as e: cli.main(['check', str(path), '--rows', str(out)])
        assert e.value.code == 2 and 'name a' in capsys.readouterr().err
    assert path.read_bytes() == before and Image.open(home/'images/0.png').size == (6, 6)
    for _ in range(2): # its own list of last time is replaced
        with pytest.raises(SystemExit): cli.main(['check', str(path), '--rows', str(home/'rows.csv')])
    assert len((home/'rows.csv').read_text().splitlines()) == 2


def test_check_on_a_narrow_terminal(home, monkeypatch):
    "What the terminal's encoding lacks is shown as an escape."
    path = write(home, [*GOOD, '広告🙂.png,1'])
    screen = io.TextIOWrapper(io.BytesIO(), 'ascii')
    monkeypatch.setattr(sys, 'stdout', screen)
    with pytest.raises(SystemExit): cli.main(['check', str(path)])
    screen.flush()
    assert rb'\u5e83\u544a\U0001f642.png' in screen.buffer.getvalue()
