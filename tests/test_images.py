"Pictures of strangers: decoded safely, once."
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from subtask_kit import images as kit
from subtask_kit.images import BadPicture, build_cache, load_image, open_picture, to_jpeg, to_rgb


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


def test_thin_pictures(tmp_path):
    Image.new('RGB', (4000, 1), 'green').save(tmp_path/'x.png')
    assert load_image(tmp_path/'x.png', 8).shape == (8, 8, 3)


def folder(tmp_path, n):
    files = []
    for i in range(n):
        files.append(tmp_path/f'{i}.png')
        files[-1].write_bytes(encoded(Image.new('RGB', (4, 4), (i%256, i//256, 7)), format='PNG') if i % 50 != 3 else b'junk')
    return files


def test_cache_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(kit, 'CHUNK', 16)
    files = folder(tmp_path, 100)
    whole = build_cache(files, tmp_path/'whole', 4)
    assert [bool(r) for r in whole] == [i % 50 == 3 for i in range(100)]
    calls, load = [], load_image
    def dying(path, *args):
        if len(calls) == 41: raise KeyboardInterrupt
        calls.append(path)
        return load(path, *args)
    monkeypatch.setattr(kit, 'load_image', dying)
    with pytest.raises(KeyboardInterrupt): build_cache(files, tmp_path/'killed', 4)
    monkeypatch.setattr(kit, 'load_image', lambda path, *args: (calls.append(path), load(path, *args))[1])
    assert build_cache(files, tmp_path/'killed', 4) == whole
    assert len(calls) == 41+100-32 and calls[41] == files[32]  # two finished chunks were kept
    for name in ('images.npy', 'images.json'): assert (tmp_path/'whole'/name).read_bytes() == (tmp_path/'killed'/name).read_bytes()
    calls.clear()
    assert build_cache(files, tmp_path/'killed', 4) == whole and not calls
    files[20].write_bytes(PNG)
    build_cache(files, tmp_path/'killed', 4)
    assert calls == files[16:32]  # only the chunk that changed
    (tmp_path/'killed/images.npy').write_bytes(b'torn')
    calls.clear()
    build_cache(files, tmp_path/'killed', 4)
    assert len(calls) == 100


def test_cache_depends_on_what_shapes_it(tmp_path):
    files = folder(tmp_path, 3)
    build_cache(files, tmp_path/'c', 4)
    build_cache(files, tmp_path/'c', 8)
    assert np.load(tmp_path/'c/images.npy', mmap_mode='r').shape == (3, 8, 8, 3)
    assert build_cache(files, tmp_path/'c', 8, max_pixels=15)[0].startswith('too large')
    assert build_cache(files[:2], tmp_path/'c', 8) == ['', ''] and len(np.load(tmp_path/'c/images.npy')) == 2


def test_processes_give_the_same(tmp_path, monkeypatch):
    files = folder(tmp_path, 60)
    monkeypatch.setattr(kit, 'CHUNK', 16)
    monkeypatch.setattr(kit, 'PARALLEL_FROM', 50)
    here, there = (build_cache(files, tmp_path/str(w), 4, workers=w) for w in (0, 2))
    assert here == there and (tmp_path/'0/images.npy').read_bytes() == (tmp_path/'2/images.npy').read_bytes()


def test_jpeg():
    array = np.asarray(noise())
    back = Image.open(io.BytesIO(to_jpeg(array, 95)))
    assert back.format == 'JPEG' and back.size == (40, 30) and len(to_jpeg(array, 20)) < len(to_jpeg(array, 95))
