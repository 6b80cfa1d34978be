"Pictures of strangers: decoded safely, once."
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from subtask_kit import images as kit
from subtask_kit.artifacts import open_run, read_table, write_table
from subtask_kit.core import UserError, hash_file
from subtask_kit.images import Absent, BadPicture, build_cache, load_image, many_scans, open_picture, read_picture, to_jpeg, to_rgb
from subtask_kit.phash import pdq, to_hex


def noise(size=(40, 30), seed=0): return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype='uint8'))


def encoded(image, **how):
    b = io.BytesIO()
    image.save(b, **how)
    return b.getvalue()


def png(w, h, rows=b'', depth=8, colour=2, extra=b''):
    "A PNG whose header says what we like."
    def chunk(name, data): return struct.pack('>I', len(data))+name+data+struct.pack('>I', zlib.crc32(name+data))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0)) + extra + chunk(b'IDAT', zlib.compress(rows)) + chunk(b'IEND', b'')


JPEG, PNG, GIF, WEBP, BMP = (encoded(noise(), format=f) for f in ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP'))
flipped = bytearray(PNG)
flipped[60] ^= 255
BAD = {
    'text': b'hello', 'html': b'<html></html>', 'svg': b'<svg xmlns="http://www.w3.org/2000/svg"/>', 'pdf': b'%PDF-1.4', 'zeros': b'\0'*500, 'magic only': JPEG[:3], 'png magic only': PNG[:8],
    'half jpeg': JPEG[:len(JPEG)//2], 'half png': PNG[:len(PNG)//2], 'half gif': GIF[:30], 'half webp': WEBP[:len(WEBP)//2], 'half bmp': BMP[:60], 'flipped bit': bytes(flipped),
    'tiff': encoded(noise(), format='TIFF'), 'ico': encoded(noise(), format='ICO'), 'ppm': encoded(noise(), format='PPM'), 'tga': encoded(noise(), format='TGA'), 'eps': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n',
    'wide bomb': png(100_000, 100_000), 'just over': png(8000, 7000), 'no pixels': png(0, 5), 'gif bomb': GIF[:6]+struct.pack('<HH', 65535, 65535)+GIF[10:], 'bmp bomb': BMP[:18]+struct.pack('<ii', 2**30, 2**30)+BMP[26:],
    'no data': png(20, 20), 'odd depth': png(20, 20, depth=3), 'text bomb': png(4, 4, b'\0'*64, extra=b''.join(
        struct.pack('>I', len(d))+b'zTXt'+d+struct.pack('>I', zlib.crc32(b'zTXt'+d)) for d in [b'k\0\0'+zlib.compress(b'a'*50_000_000)]))}


@pytest.mark.parametrize('name', BAD)
def test_hostile_pictures(tmp_path, name):
    (tmp_path/'x.jpg').write_bytes(BAD[name])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        with pytest.raises(BadPicture) as e: load_image(tmp_path/'x.jpg', 16)
    assert str(e.value) and str(tmp_path) not in str(e.value) and '0x' not in str(e.value) and '\n' not in str(e.value)


def test_size_is_judged_before_decoding(tmp_path, monkeypatch):
    (tmp_path/'x.png').write_bytes(PNG)
    monkeypatch.setattr(Image.Image, 'load', lambda self: pytest.fail('decoded'))
    with pytest.raises(BadPicture, match='40 x 30 pixels, more than 1,199'): load_image(tmp_path/'x.png', 16, max_pixels=1199)
    open_picture(tmp_path/'x.png', 1200).close()


def test_not_a_file(tmp_path):
    for path in (tmp_path, tmp_path/'none.png', '/dev/zero'):
        with pytest.raises(BadPicture, match='no such file'): load_image(path, 16)


def test_plain_formats_agree(tmp_path):
    want = np.asarray(noise().resize((16, 16), Image.Resampling.BICUBIC)).astype(int)
    for name, data, close in (('x.png', PNG, 0), ('x.bmp', BMP, 0), ('x.jpg', encoded(noise(), format='JPEG', quality=98, subsampling=0), 2), ('x.webp', encoded(noise(), format='WEBP', lossless=True), 0)):
        (tmp_path/name).write_bytes(data)
        got = load_image(tmp_path/name, 16)
        assert got.dtype == np.uint8 and got.shape == (16, 16, 3) and np.abs(got-want).mean() <= close


def test_content_decides_not_the_name(tmp_path):
    (tmp_path/'x.jpg').write_bytes(PNG)
    (tmp_path/'x.png').write_bytes(PNG)
    assert (load_image(tmp_path/'x.jpg', 16) == load_image(tmp_path/'x.png', 16)).all()


@pytest.mark.parametrize('orientation', range(1, 9))
def test_orientation(tmp_path, orientation):
    from PIL import ImageOps
    exif = Image.Exif()
    exif[0x0112] = orientation
    noise((32, 32)).save(tmp_path/'x.png', exif=exif)
    want = ImageOps.exif_transpose(Image.open(tmp_path/'x.png')).convert('RGB')
    assert (load_image(tmp_path/'x.png', 32) == np.asarray(want)).all()


def test_broken_exif_is_no_reason(tmp_path):
    noise().save(tmp_path/'x.jpg', exif=b'Exif\0\0garbage')
    assert load_image(tmp_path/'x.jpg', 8).shape == (8, 8, 3)


def test_transparency_is_white():
    clear = Image.new('RGBA', (4, 4), (0, 0, 0, 0))
    palette = Image.new('P', (4, 4), 0)
    palette.putpalette([0, 0, 0, 255, 0, 0])
    palette.info['transparency'] = 0
    grey = Image.new('LA', (4, 4), (0, 0))
    for image in (clear, palette, grey): assert np.asarray(to_rgb(image)).min() == 255
    half = np.asarray(to_rgb(Image.new('RGBA', (1, 1), (0, 0, 0, 128))))
    assert (abs(half.astype(int)-127) <= 1).all()


def test_modes(tmp_path):
    deep = Image.fromarray(np.full((8, 8), 200*257, 'uint16'))
    deep.save(tmp_path/'deep.png')
    Image.new('CMYK', (8, 8), (0, 255, 255, 0)).save(tmp_path/'cmyk.jpg', quality=95)
    Image.new('1', (8, 8), 1).save(tmp_path/'bit.png')
    Image.new('P', (8, 8), 0).save(tmp_path/'p.gif')
    assert (load_image(tmp_path/'deep.png', 4) == 200).all() and (load_image(tmp_path/'bit.png', 4) == 255).all() and load_image(tmp_path/'p.gif', 4).shape == (4, 4, 3)
    r, g, b = load_image(tmp_path/'cmyk.jpg', 4)[0, 0].astype(int)
    assert r > 200 and g < 60 and b < 60


@pytest.mark.parametrize('name', ['x.gif', 'x.webp', 'x.png'])
def test_first_frame(tmp_path, name):
    frames = [Image.new('RGB', (8, 8), c) for c in ('red', 'blue')]
    frames[0].save(tmp_path/name, save_all=True, append_images=frames[1:])
    r, _, b = load_image(tmp_path/name, 4)[0, 0]
    assert r > 200 and b < 60


def read(path): return load_image(read_picture(path, hash_file(path)), 16)


def test_a_jpeg_of_thousands_of_scans_is_refused_unread(tmp_path, monkeypatch):
    "Few bytes and many passes over a large picture; what follows the picture, as a phone's film does, does not count."
    whole = encoded(Image.new('L', (64, 64), 128), format='JPEG', progressive=True)
    scan = whole[whole.rindex(b'\xff\xda'):-2]
    n = whole.count(b'\xff\xda')
    for k, bad in ((kit.MAX_SCANS-n, False), (kit.MAX_SCANS-n+1, True), (5000, True)):
        (tmp_path/'x.jpg').write_bytes(whole[:-2]+scan*k+whole[-2:])
        if not bad: assert read(tmp_path/'x.jpg').shape == (16, 16, 3)
        else:
            with pytest.raises(BadPicture, match='more than 100 scans'): read(tmp_path/'x.jpg')
    plain = encoded(noise((300, 200)), format='JPEG')
    comments = b'\xff\xfe\x00\x04\xff\xda'
    assert not many_scans(plain+b'\xff\xda'*1000) and not many_scans(plain[:2]+comments*200+plain[2:]) and many_scans(plain[:2]+comments*10_000+plain[2:])
    for cut in range(len(plain)): assert not many_scans(plain[:cut])  # wherever a file ends


def test_bombs_that_a_size_does_not_show(tmp_path):
    frames = [noise((8, 8), i) for i in range(30)]
    gif = encoded(frames[0], format='GIF', save_all=True, append_images=frames[1:])
    at = GIF.index(b',', 13+3*2**((GIF[10] & 7)+1))  # behind the palette
    outside = GIF[:6]+struct.pack('<HH', 1, 1)+GIF[10:at+5]+struct.pack('<HH', 60_000, 60_000)+GIF[at+9:]  # a frame larger than its screen
    (tmp_path/'x').write_bytes(outside)
    with pytest.raises(BadPicture, match='pixels'): read(tmp_path/'x')
    first = JPEG[:2]+b''.join(b'\xff\xe2'+struct.pack('>H', 60_016)+b'ICC_PROFILE\0'+bytes([i, 99])+b'x'*60_000 for i in range(1, 100))+JPEG[2:]
    body = png(4, 4, b''.join(b'\0'+b'\x80'*12 for _ in range(4))+bytes(50_000_000))  # its stream goes on after the last row
    for data in (gif, first, body, JPEG+bytes(1_000_000)):
        (tmp_path/'x').write_bytes(data)
        assert read(tmp_path/'x').shape == (16, 16, 3)


def test_pictures_of_phones(tmp_path):
    pair = [Image.new('RGB', (32, 32), c) for c in ('red', 'blue')]
    (tmp_path/'x').write_bytes(encoded(pair[0], format='MPO', save_all=True, append_images=pair[1:]))
    assert read(tmp_path/'x')[0, 0, 0] > 200
    if 'AVIF' in kit.FORMATS:
        (tmp_path/'x').write_bytes(encoded(pair[1], format='AVIF'))
        assert read(tmp_path/'x')[0, 0, 2] > 200
        with pytest.raises(BadPicture, match='32 x 32 pixels, more than 1,000'): open_picture(tmp_path/'x', 1000)
        (tmp_path/'x').write_bytes((tmp_path/'x').read_bytes()[:-20])
        with pytest.raises(BadPicture): read(tmp_path/'x')


def test_thin_pictures(tmp_path):
    Image.new('RGB', (4000, 1), 'green').save(tmp_path/'x.png')
    assert load_image(tmp_path/'x.png', 8).shape == (8, 8, 3)


@pytest.fixture
def run(tmp_path): return open_run(tmp_path/'run', create=True)


def folder(home, n):
    "Files of `n` distinct pictures, every fiftieth broken."
    files = []
    for i in range(n):
        files.append(home/f'{i}.png')
        files[-1].write_bytes(encoded(Image.new('RGB', (4, 4), (i%256, i//256, 7)), format='PNG') if i % 50 != 3 else b'junk %d' % i)
    return files


def build(run, files, out='c', px=4, hashes=None, **options): return build_cache(files, hashes or list(map(hash_file, files)), run, run/out, px, **options)
def array(run, out='c'): return np.load(run/out/'images.npy', mmap_mode='r')
def both(run, out='c'): return [(run/out/name).read_bytes() for name in ('images.npy', 'images.parquet')]


@pytest.fixture
def decoded(monkeypatch):
    "Numbers of the pictures (their red) that were decoded since; broken ones as None."
    calls, load = [], kit.load_image
    def counting(file, *args):
        calls.append(None)
        image = load(file, *args)
        calls[-1] = int(image[0, 0, 0])
        return image
    monkeypatch.setattr(kit, 'load_image', counting)
    return calls


def test_cache_is_what_one_picture_after_another_gives(tmp_path, run, monkeypatch):
    monkeypatch.setattr(kit, 'CHUNK', 16)
    files = folder(tmp_path, 100)
    noise((70, 90), 1).save(files[5])
    table = build(run, files, px=64)
    assert table.columns.tolist() == ['row', 'sha256', 'reason', 'phash', 'quality', 'check'] and table.equals(read_table(run/'c/images.parquet'))
    assert table.row.tolist() == list(range(100)) and table.sha256.tolist() == list(map(hash_file, files)) and [bool(r) for r in table.reason] == [i % 50 == 3 for i in range(100)]
    images, bad = array(run), table.reason != ''
    assert images.shape == (100, 64, 64, 3) and images.dtype == np.uint8 and (images[bad] == 0).all()
    assert all((images[i] == load_image(files[i], 64)).all() for i in np.flatnonzero(~bad))
    codes, quality = pdq(images[~bad]) # from the cached bytes, all at once
    assert table.phash[~bad].tolist() == to_hex(codes) and table.quality[~bad].tolist() == quality.tolist() and table.quality[5] > 0
    assert set(table.phash[bad]) == {''} and set(table.quality[bad]) == {0}
    assert [p.name for p in sorted((run/'c').rglob('*')) if p.is_file()] == ['images.npy', 'images.parquet']


def test_only_what_is_new_is_decoded(tmp_path, run, decoded):
    files = folder(tmp_path, 60)
    first = build(run, files)
    whole, before = array(run)[:], (run/'c/images.npy').stat().st_mtime_ns
    assert len(decoded) == 60
    decoded.clear()
    assert build(run, files).equals(first) and (run/'c/images.npy').stat().st_mtime_ns == before and not decoded
    Image.new('RGB', (4, 4), (200, 0, 0)).save(tmp_path/'new.png')
    changed = build(run, [tmp_path/'new.png', *files])                          # a row in front
    assert decoded == [200] and (array(run)[1:] == whole).all() and changed.reason[1:].tolist() == first.reason.tolist() and (array(run)[0] == [200, 0, 0]).all()
    order = np.random.default_rng(0).permutation(60)[:40]                       # other rows, and files that have gone meanwhile
    picked = build(run, ['gone']*40, hashes=[first.sha256[i] for i in order])
    assert decoded == [200] and (array(run) == whole[order]).all()
    for name in ('reason', 'phash', 'quality', 'check'): assert picked[name].tolist() == first[name][order].tolist()


def test_a_hash_twice_is_decoded_once(tmp_path, run, decoded):
    files = folder(tmp_path, 3)
    twice = build(run, [*files, *files[::-1]])
    assert decoded == [0, 1, 2] and (array(run)[3:] == array(run)[2::-1]).all() and twice.phash.tolist() == [*twice.phash[:3], *twice.phash[2::-1]]
    build(run, [*files, *files[::-1]])
    assert len(decoded) == 3


def test_no_pictures(run): assert build(run, [], px=8).empty and array(run).shape == (0, 8, 8, 3)


def test_an_interrupted_build_keeps_its_chunks(tmp_path, run, monkeypatch):
    monkeypatch.setattr(kit, 'CHUNK', 16)
    files, calls, load = folder(tmp_path, 100), [], load_image
    build(run, files, 'whole')
    def dying(file, *args):
        if len(calls) == 41: raise KeyboardInterrupt
        calls.append(file)
        return load(file, *args)
    monkeypatch.setattr(kit, 'load_image', dying)
    with pytest.raises(KeyboardInterrupt): build(run, files)
    monkeypatch.setattr(kit, 'load_image', lambda file, *args: (calls.append(file), load(file, *args))[1])
    build(run, [files[99], *files[:99]], 'c') # in another order than before
    assert len(calls) == 41+100-32            # two finished chunks were kept
    build(run, files)
    assert both(run) == both(run, 'whole') and len(calls) == 41+100-32


@pytest.mark.parametrize('moved', [(), ('images.npy',), ('images.npy', 'images.parquet')])
def test_killed_between_array_and_table(tmp_path, run, monkeypatch, decoded, moved):
    "Once all is written, a kill at any of the last steps costs nothing and mixes nothing."
    files = folder(tmp_path, 40)
    build(run, files[:20])
    build(run, files[::-1], 'whole')
    decoded.clear()
    with monkeypatch.context() as m:
        m.setattr(kit, '_settle', lambda out: None)
        build(run, files[::-1])
    assert len(decoded) == 20 and (run/'c/work/images/whole.json').exists()
    for name in moved: (run/'c/work/images'/name).rename(run/'c'/name)
    build(run, files[::-1])
    assert len(decoded) == 20 and both(run) == both(run, 'whole') and not (run/'c/work/images').exists()


def torn(data): return data[:len(data)//2]
def swapped(data): return data[:-96]+data[-48:]+data[-96:-48] # the last two pictures of 4 x 4
def zeroed(data): return data[:-480]+bytes(480)               # the last ten never reached the disk
DAMAGE = {'torn': (torn, 40), 'empty': (lambda data: b'', 40), 'junk': (lambda data: b'junk', 40), 'swapped': (swapped, 2), 'zeroed': (zeroed, 10), 'another': (lambda data: data[:-1920]+data[-1920:][::-1], 40)}


@pytest.mark.parametrize('how', DAMAGE)
def test_a_damaged_array_is_not_believed(tmp_path, run, decoded, how):
    files, (damage, n) = folder(tmp_path, 41)[1:], DAMAGE[how] # none of them black
    files[2].write_bytes(PNG)
    build(run, files)
    whole = both(run)
    (run/'c/images.npy').write_bytes(damage(whole[0]))
    assert both(run) != whole
    decoded.clear()
    build(run, files)
    assert both(run) == whole and len(decoded) == n


@pytest.mark.parametrize('damage', [lambda f: f.write_bytes(f.read_bytes()[:-9]), lambda f: f.unlink(), lambda f: write_table(read_table(f)[:-1], f), lambda f: write_table(read_table(f)[['row', 'sha256']], f)])
def test_a_damaged_table_is_not_believed(tmp_path, run, decoded, damage):
    files = folder(tmp_path, 20)
    build(run, files)
    whole = both(run)
    damage(run/'c/images.parquet')
    build(run, files)
    assert both(run) == whole and len(decoded) == 40


def test_a_table_of_another_array_is_not_believed(tmp_path, run, decoded):
    files = folder(tmp_path, 20)
    build(run, files)
    build(run, [*files[1:], files[0]], 'other')
    (run/'c/images.parquet').write_bytes((run/'other/images.parquet').read_bytes())
    decoded.clear()
    build(run, files)
    assert len(decoded) == 20 and (array(run)[[0, 19], 0, 0, 0] == [0, 19]).all()


def test_cache_depends_on_what_shapes_it(tmp_path, run, monkeypatch):
    files = folder(tmp_path, 3)
    build(run, files)
    build(run, files, px=8)
    assert array(run).shape == (3, 8, 8, 3)
    assert build(run, files, px=8, max_pixels=15).reason[0].startswith('too large')
    assert build(run, files[:2], px=8).reason.tolist() == ['', ''] and len(array(run)) == 2
    monkeypatch.setattr(kit, 'DECODER', 'another')
    monkeypatch.setattr(kit, 'load_image', lambda *a: np.full((8, 8, 3), 77, 'uint8'))
    build(run, files[:2], px=8)
    assert (array(run) == 77).all()


def test_processes_give_the_same(tmp_path, run, monkeypatch):
    files = folder(tmp_path, 60)
    monkeypatch.setattr(kit, 'CHUNK', 16)
    monkeypatch.setattr(kit, 'PARALLEL_FROM', 50)
    build(run, files, 'here')
    monkeypatch.setattr(kit, 'CHUNK', 7)
    build(open_run(run, 2), files, 'there')
    assert both(run, 'here') == both(run, 'there')


def test_what_changed_since_it_was_hashed_lends_its_picture_to_nobody(tmp_path, run, monkeypatch):
    files = folder(tmp_path, 4)
    hashes = list(map(hash_file, files))
    files[0].write_bytes(files[1].read_bytes())
    files[2].unlink()
    files[3].write_bytes(b'junk')
    table = build(run, files, hashes=hashes)
    assert table.reason.tolist() == ['changed while it was read', '', 'there is no such file', 'changed while it was read'] and (array(run)[[0, 2, 3]] == 0).all() and (array(run)[1] == [1, 0, 7]).all()
    folder(tmp_path, 3) # the first three are back
    again = build(run, files, hashes=hashes)
    assert again.reason.tolist() == ['', '', '', 'changed while it was read'] and (array(run)[:3, 0, 0, 0] == [0, 1, 2]).all()
    monkeypatch.setattr(kit, 'MAX_BYTES', 50)
    assert build(run, files[:1], 'small').reason[0] == f'too large: {files[0].stat().st_size} bytes, more than 50'


def test_files_that_cannot_be_read(tmp_path, run):
    import os
    os.mkfifo(tmp_path/'pipe')
    (tmp_path/'loop').symlink_to('loop')
    assert set(build(run, [tmp_path, tmp_path/'pipe', tmp_path/'loop', '/dev/zero', 'nul\0'], hashes=[*'abcde']).reason) == {'there is no such file'}


def test_a_gather_decodes_nothing(tmp_path, run, monkeypatch):
    files = folder(tmp_path, 300)
    build(run, files)
    monkeypatch.setattr(Image, 'open', lambda *a, **k: pytest.fail('decoded'))
    rows = np.random.default_rng(0).permutation(300)[:256]
    got = array(run)[rows]
    assert isinstance(array(run), np.memmap) and [tuple(p) for p in got[:, 0, 0]] == [(i%256, i//256, 7) if i % 50 != 3 else (0, 0, 0) for i in rows]


def test_a_full_disk_is_said(tmp_path, run, monkeypatch):
    monkeypatch.setattr(kit.shutil, 'disk_usage', lambda path: type('Usage', (), dict(free=100)))
    with pytest.raises(UserError, match='needs .* GB'): build(run, folder(tmp_path, 4))


def test_jpeg():
    array = np.asarray(noise())
    back = Image.open(io.BytesIO(to_jpeg(array, 95)))
    assert back.format == 'JPEG' and back.size == (40, 30) and len(to_jpeg(array, 20)) < len(to_jpeg(array, 95))
