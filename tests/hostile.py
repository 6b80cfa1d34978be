"""A folder of pictures that somebody made with bad intent or that a tired machine broke, and manifests of the same kind; each with what has to come of it.

`pictures` and `places` give (path as the manifest says it, how to make the file, the outcome); an outcome is 'used' or a regular expression of the reason in drops.parquet.
`manifests` gives (name, how to make it, a regular expression of the one line that refuses it).
"""
import io
import json
import os
import random
import signal
import socket
import stat
import struct
import zlib
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
from PIL import Image, features

from subtask_kit.images import FORMATS

MAX_PIXELS = 3_000_000 # the limit that the tests set, so that what lies above it stays small
ALIEN = 'unusable picture: not a picture of a known format'
BROKEN = 'unusable picture: (cannot be decoded|.*(truncated|damaged|broken))'
LARGE = 'unusable picture: (too large|more pixels)'


@contextmanager
def in_time(seconds=60):
    "End what waits for a pipe or reads a device without end."
    def late(*_): pytest.fail('it hangs') # no Exception, which somebody might catch
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try: yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Bytes of pictures

def noise(seed, size=(40, 30), mode='RGB'):
    "A picture that resembles no other."
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype='uint8')).convert(mode)


def encoded(image, form, **how):
    b = io.BytesIO()
    image.save(b, form, **how)
    return b.getvalue()


def chunk(name, data, crc=None): return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name+data) if crc is None else crc)


def png(w, h, rows=None, depth=8, colour=2, before=b'', after=b'', end=chunk(b'IEND', b''), crc=None, seed=0):
    "A PNG whose header says what we like; noise unless `rows` are given."
    if rows is None:
        line = (w*depth*{0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]+7)//8
        rows = b''.join(b'\0'+random.Random(f'{seed}{y}').randbytes(line) for y in range(h))
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, depth, colour, 0, 0, 0)) + before + chunk(b'IDAT', zlib.compress(rows), crc) + after + end


def spliced(data, at, new): return data[:at] + new + data[at+len(new):]


def segment(marker, data): return b'\xff' + bytes([marker]) + struct.pack('>H', len(data)+2) + data


def with_segments(jpeg, *segments): return jpeg[:2] + b''.join(segments) + jpeg[2:]


def exif(*entries, following=0):
    "An EXIF segment of one IFD; entries are (tag, type, count, value)."
    ifd = struct.pack('<H', len(entries)) + b''.join(struct.pack('<HHII', *e) for e in entries) + struct.pack('<I', following)
    return segment(0xe1, b'Exif\0\0' + b'II*\0' + struct.pack('<I', 8) + ifd)


def scans(jpeg): return [i for i in range(len(jpeg)-1) if jpeg[i:i+2] == b'\xff\xda']


def restarts_shuffled(jpeg):
    out, start = bytearray(jpeg), scans(jpeg)[0]
    for i in range(start, len(out)-1):
        if out[i] == 0xff and 0xd0 <= out[i+1] <= 0xd7: out[i+1] = 0xd0 + (out[i+1]*5+3) % 8
    return bytes(out)


def ycck(jpeg):
    "A CMYK JPEG that says it is YCCK."
    return spliced(jpeg, jpeg.index(b'Adobe')+11, b'\x02')


def rle(deltas):
    "A BMP of run lengths that jumps about instead of drawing."
    body = b'\0\2\1\1'*deltas + b'\0\1'
    head = struct.pack('<IiiHHIIiiII', 40, 16, 16, 1, 8, 1, len(body), 0, 0, 256, 0)
    return b'BM' + struct.pack('<IHHI', 14+40+1024+len(body), 0, 0, 14+40+1024) + head + bytes(range(256))*4 + body


def deep(value, mode): return Image.fromarray(np.random.default_rng(value).integers(0, 65536, (20, 20)).astype('uint16'))


def interlaced():
    "A PNG of one pixel that comes in seven passes."
    data = bytearray(png(1, 1, seed=81))
    data[28] = 1
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    return bytes(data)


def frame(gif):
    "Where the first frame of a plain GIF begins."
    at = 13 + 3*2**((gif[10] & 7)+1)*(gif[10] >> 7)
    while gif[at:at+1] == b'!': at = gif.index(b'\0', at+2)+1
    assert gif[at:at+1] == b','
    return at


def palette(seed):
    image = noise(seed).quantize(16)
    image.info['transparency'] = 3
    return image


def pictures():
    "Files whose content is the trouble, all called .jpg."
    J, P, G, W, B = (lambda seed, form=form, **how: encoded(noise(seed), form, **how) for form in ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP'))
    frames = [noise(s) for s in (900, 901, 902)]
    def animated(form, first): return encoded(noise(first), form, save_all=True, append_images=frames, duration=50)
    flip = lambda data, at: spliced(data, at, bytes([data[at] ^ 255]))
    progressive = encoded(noise(1, (96, 96)), 'JPEG', progressive=True)
    big_text = zlib.compress(bytes(50_000_000))
    yield from {
        # cut off
        'jpeg, 3 bytes': (J(2)[:3], ALIEN+'|'+BROKEN), 'jpeg, header only': (J(3)[:200], ALIEN+'|'+BROKEN), 'jpeg, half': (J(4)[:len(J(4))//2], BROKEN), 'jpeg, no end marker': (J(5)[:-2], 'used|'+BROKEN),
        'jpeg, last 40 bytes lost': (J(6)[:-40], BROKEN), 'png, signature only': (P(7)[:8], BROKEN+'|'+ALIEN), 'png, half': (P(8)[:len(P(8))//2], BROKEN), 'png, no IEND': (png(20, 20, end=b'', seed=9), 'used'),
        'gif, header only': (G(10)[:13], BROKEN+'|'+ALIEN), 'gif, half': (G(11)[:len(G(11))//2], BROKEN), 'webp, half': (W(12)[:len(W(12))//2], BROKEN+'|'+ALIEN), 'webp, header only': (W(13)[:16], BROKEN+'|'+ALIEN),
        'bmp, half': (B(14)[:len(B(14))//2], BROKEN), 'progressive jpeg, cut': (progressive[:scans(progressive)[4]], BROKEN), 'empty': (b'', 'unusable picture: the file is empty'),
        # something else
        'zeros': (bytes(5000), ALIEN), 'text': (b'hello', ALIEN), 'html': (b'<!DOCTYPE html><html><body>404</body></html>', ALIEN), 'svg': (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', ALIEN),
        'svg with entities': (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg>&x;</svg>', ALIEN), 'pdf': (b'%PDF-1.7\n1 0 obj\n<</Type/Catalog>>\nendobj\n', ALIEN),
        'zip': (b'PK\3\4'+bytes(60), ALIEN), 'exe': (b'MZ'+bytes(200), ALIEN), 'elf': (b'\x7fELF'+bytes(200), ALIEN), 'script': (b'#!/bin/sh\ntouch /tmp/owned\n', ALIEN), 'pickle': (b'\x80\x04c__builtin__\nexit\n.', ALIEN), 'json': (b'{}', ALIEN),
        'tiff': (encoded(noise(20), 'TIFF'), ALIEN), 'ico': (encoded(noise(21), 'ICO'), ALIEN), 'ppm': (encoded(noise(22), 'PPM'), ALIEN), 'tga': (encoded(noise(23), 'TGA'), ALIEN), 'jpeg 2000': (encoded(noise(24), 'JPEG2000'), ALIEN),
        'eps': (b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(/tmp/owned) (w) file closefile\n', ALIEN), 'psd': (b'8BPS\0\1'+bytes(6)+struct.pack('>HIIHH', 3, 9, 9, 8, 3)+bytes(400), ALIEN),
        'pcx': (encoded(noise(25), 'PCX'), ALIEN), 'avif, header only': (b'\0\0\0\x20ftypavif'+bytes(60), ALIEN+'|'+BROKEN), 'wmf': (b'\xd7\xcd\xc6\x9a'+bytes(60), ALIEN), 'dds': (b'DDS '+bytes(150), ALIEN), 'heic': (b'\0\0\0\x20ftypheic'+bytes(60), ALIEN),
        # a wrong name, or a right one of another kind
        'a png': (P(30), 'used'), 'a webp': (W(31), 'used'), 'a gif': (G(32), 'used'), 'a bmp': (B(33), 'used'), 'an avif': (encoded(noise(29), 'AVIF') if features.check('avif') else b'', 'used' if 'AVIF' in FORMATS else ALIEN), 'jpeg and zip': (J(34)+b'PK\3\4'+bytes(300), 'used'), 'jpeg and php': (with_segments(J(35), segment(0xfe, b'<?php system($_GET[0]); ?>')), 'used'),
        'junk before a jpeg': (b'\r\n'+J(36), ALIEN), 'two jpegs in one': (J(37)+J(38), 'used'), 'png and html': (P(39)+b'<script>alert(1)</script>', 'used'),
        # more than it says
        'png 60000 x 60000': (png(60000, 60000, b'\0'), LARGE), 'png 2**31 wide': (png(2**31-1, 1, b'\0'), LARGE), 'just above the limit': (encoded(Image.new('1', (2000, 1501)), 'PNG'), LARGE), 'just at the limit': (encoded(Image.new('1', (2000, 1500)), 'PNG'), 'used'),
        'gif of a giant screen': (spliced(G(40), 6, struct.pack('<HH', 65535, 65535)), LARGE), 'jpeg 65500 x 65500': (spliced(J(41), J(41).index(b'\xff\xc0')+5, struct.pack('>HH', 65500, 65500)), LARGE),
        'bmp of 2**30': (spliced(B(42), 18, struct.pack('<ii', 2**30, 2**30)), LARGE), 'webp of a giant canvas': (b'RIFF'+struct.pack('<I', 22)+b'WEBPVP8X'+struct.pack('<I', 10)+b'\0\0\0\0'+b'\xff\xff\xff'*2, LARGE+'|'+BROKEN+'|'+ALIEN),
        'png, zTXt bomb': (png(20, 20, before=chunk(b'zTXt', b'k\0\0'+big_text), seed=43), 'unusable picture: more text than is safe'), 'png, iCCP bomb': (png(20, 20, before=chunk(b'iCCP', b'k\0\0'+big_text), seed=44), f'{BROKEN}|unusable picture: more text than is safe'), 'png, iTXt bomb': (png(20, 20, before=chunk(b'iTXt', b'k\0\1\0\0\0'+big_text), seed=45), f'{BROKEN}|unusable picture: more text than is safe'),
        'png, IDAT bomb': (png(20, 20, bytes(50_000_000)), 'used'), 'png, 20,000 texts': (png(20, 20, before=chunk(b'tEXt', b'k\0v')*20_000, seed=46), 'used'), 'jpeg of 5,000 scans': (progressive[:scans(progressive)[-1]] + progressive[scans(progressive)[-1]:-2]*5000 + b'\xff\xd9', 'unusable picture: .*scans'), 'png, no pixels': (png(0, 5, b''), BROKEN+'|unusable picture: no pixels|'+ALIEN),
        # EXIF and its kin
        'exif of rubbish': (with_segments(J(50), segment(0xe1, b'Exif\0\0'+os.urandom(500))), 'used'), 'exif of a megabyte': (with_segments(J(51), *[segment(0xe1, b'Exif\0\0'+bytes(65000))]*16), 'used'),
        'exif that claims 4 GB': (with_segments(J(52), exif((0x010e, 2, 2**32-1, 8), (0x0112, 3, 2**32-1, 8))), 'used'), 'exif in a circle': (with_segments(J(53), exif((0x8769, 4, 1, 8), (0x8825, 4, 1, 8), following=8)), 'used'),
        'orientation 9': (with_segments(J(54), exif((0x0112, 3, 1, 9))), 'used'), 'orientation of text': (with_segments(J(55), exif((0x0112, 2, 4, 0x41414141))), 'used'), 'mpo': (encoded(noise(56), 'MPO', save_all=True, append_images=frames), 'used'),
        'mpo of rubbish': (with_segments(J(57), segment(0xe2, b'MPF\0'+os.urandom(90))), 'used'), 'mpo in a circle': (with_segments(J(58), segment(0xe2, b'MPF\0II*\0'+struct.pack('<IHHHIIHHIII', 8, 2, 0xb001, 4, 1, 2, 0xb002, 7, 32, 8, 8)+bytes(40))), 'used'),
        'icc of rubbish': (with_segments(J(59), segment(0xe2, b'ICC_PROFILE\0\1\1'+os.urandom(300))), 'used'), 'photoshop of rubbish': (with_segments(J(60), segment(0xed, b'Photoshop 3.0\x008BIM\x04\x04\0\0\xff\xff\xff\xff')), 'used'), 'png, exif of rubbish': (png(20, 20, before=chunk(b'eXIf', os.urandom(100)), seed=61), 'used'),
        # other modes
        'cmyk jpeg': (encoded(noise(70, mode='CMYK'), 'JPEG'), 'used'), 'ycck jpeg': (ycck(encoded(noise(71, mode='CMYK'), 'JPEG')), 'used'), 'grey jpeg': (encoded(noise(72, mode='L'), 'JPEG'), 'used'), 'png, 16 bit grey': (encoded(deep(73, 'L'), 'PNG'), 'used'),
        'png, 16 bit colour': (png(20, 20, depth=16, seed=74), 'used'), 'png, 16 bit with alpha': (png(20, 20, depth=16, colour=6, seed=75), 'used'), 'png, 1 bit': (encoded(noise(76, mode='1'), 'PNG'), 'used'), 'png, palette with transparency': (encoded(palette(77), 'PNG'), 'used'),
        'png, grey with alpha': (encoded(noise(78, mode='LA'), 'PNG'), 'used'), 'png, transparent': (encoded(noise(79, mode='RGBA'), 'PNG'), 'used'), 'png, one transparent colour': (png(20, 20, before=chunk(b'tRNS', bytes(6)), seed=80), 'used'), 'png, interlaced': (interlaced(), 'used'),
        'png, 16 bit grey with a transparent one': (png(20, 20, depth=16, colour=0, before=chunk(b'tRNS', b'\0\0'), seed=82), 'used'), 'webp, transparent': (encoded(noise(83, mode='RGBA'), 'WEBP', lossless=True), 'used'),
        'gif, animated': (animated('GIF', 84), 'used'), 'webp, animated': (animated('WEBP', 85), 'used'), 'png, animated': (animated('PNG', 86), 'used'), 'one pixel': (encoded(noise(87, (1, 1)), 'PNG'), 'used'), 'a column': (encoded(noise(88, (1, 20000)), 'PNG'), 'used'), 'a line': (encoded(noise(89, (20000, 1)), 'JPEG'), 'used'),
        # damaged inside
        'progressive jpeg, scans missing': (progressive[:scans(progressive)[2]]+b'\xff\xd9', 'used'), 'jpeg, wrong restarts': (restarts_shuffled(encoded(noise(90, (96, 96)), 'JPEG', restart_marker_blocks=4)), 'used|'+BROKEN), 'jpeg, no tables': (J(91).replace(b'\xff\xc4', b'\xff\xfe'), 'used'),
        'jpeg, 5 components': (spliced(J(92), J(92).index(b'\xff\xc0')+9, b'\5'), BROKEN+'|'+ALIEN), 'jpeg, 12 bit': (spliced(J(93), J(93).index(b'\xff\xc0')+4, b'\x0c'), BROKEN+'|'+ALIEN), 'jpeg, height 0': (spliced(J(94), J(94).index(b'\xff\xc0')+5, b'\0\0'), BROKEN+'|unusable picture: no pixels|'+ALIEN),
        'jpeg, endless marker': (J(95)[:20]+b'\xff'*100_000, BROKEN+'|'+ALIEN), 'jpeg, segment of no length': (J(96)[:2]+b'\xff\xe0\0\0'+J(96)[2:], 'used'),
        'png, bad CRC of pixels': (png(20, 20, crc=7, seed=97), 'used'), 'png, bad CRC of the header': (flip(png(20, 20, seed=98), 30), BROKEN+'|'+ALIEN), 'png, flipped pixel bit': (flip(P(99), len(P(99))//2), BROKEN), 'png, no palette': (png(20, 20, colour=3, seed=100), BROKEN+'|used'), 'png, depth 3': (png(20, 20, bytes(2000), depth=3), BROKEN+'|'+ALIEN),
        'png, no pixels at all': (png(20, 20, b''), BROKEN), 'png, IDAT is no zlib': (b'\x89PNG\r\n\x1a\n'+chunk(b'IHDR', struct.pack('>IIBBBBB', 20, 20, 8, 2, 0, 0, 0))+chunk(b'IDAT', b'rubbish'*20)+chunk(b'IEND', b''), BROKEN),
        'png, chunk of 2 GB': (png(20, 20, seed=101)[:33]+struct.pack('>I', 2**31-1)+b'tEXtk\0v', BROKEN), 'png, two headers': (png(20, 20, before=chunk(b'IHDR', struct.pack('>IIBBBBB', 60000, 60000, 8, 2, 0, 0, 0)), seed=102), BROKEN+'|'+LARGE), 'png, 2**31 frames': (png(20, 20, before=chunk(b'acTL', struct.pack('>II', 2**31-1, 0)), seed=103), 'used'),
        'png of an apple': (b'\x89PNG\r\n\x1a\n'+chunk(b'CgBI', b'\x50\0\x20\2')+png(20, 20, seed=104)[8:], BROKEN+'|used'), 'webp, size too large': (spliced(W(105), 4, struct.pack('<I', 2**31)), BROKEN+'|'+ALIEN+'|used'), 'webp, size too small': (spliced(W(106), 4, struct.pack('<I', 20)), BROKEN+'|'+ALIEN),
        'bmp, top down': (spliced(B(107), 22, struct.pack('<i', -30)), 'used'), 'bmp, larger than its data': (spliced(B(108), 18, struct.pack('<ii', 400, 300)), BROKEN), 'bmp, no pixels': (spliced(B(109), 18, struct.pack('<ii', 0, 0)), BROKEN+'|unusable picture: no pixels|'+ALIEN), 'bmp, width below 0': (spliced(B(110), 18, struct.pack('<i', -40)), LARGE),
        'bmp, pixels far away': (spliced(B(111), 10, struct.pack('<I', 2**31)), BROKEN), 'bmp, odd header': (spliced(B(112), 14, struct.pack('<I', 7)), BROKEN+'|'+ALIEN), 'bmp, 3 bits': (spliced(B(113), 28, struct.pack('<H', 3)), BROKEN+'|'+ALIEN), 'bmp, runs that jump': (rle(50_000), BROKEN+'|used'), 'bmp, 2**31 colours': (spliced(B(114), 46, struct.pack('<I', 2**31)), BROKEN+'|'+ALIEN+'|used'),
        'gif, no frame': (b'GIF89a'+struct.pack('<HHBBB', 9, 9, 0, 0, 0)+b';', BROKEN+'|'+ALIEN), 'gif, frame outside': (spliced(G(115), frame(G(115))+1, struct.pack('<HH', 60000, 60000)), LARGE), 'gif, endless comment': (G(116)[:frame(G(116))]+b'!\xfe'+(b'\xff'+b'a'*255)*4000+b'\0;', BROKEN+'|'+ALIEN),
        'gif, code size 200': (spliced(G(117), frame(G(117))+10, b'\xc8'), BROKEN+'|'+ALIEN)}.items()


# Places and names

ESC = '\x1b[2J\x1b[31m'


def socket_at(path):
    here = os.getcwd()
    os.chdir(path.parent) # an address has 108 bytes
    try: socket.socket(socket.AF_UNIX).bind(path.name)
    finally: os.chdir(here)


def device_at(path): os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 5)) # an endless one: /dev/zero


def unreadable(path):
    noise(5000).save(path, 'PNG')
    path.chmod(0)


def sparse(path, size=2**41):
    path.touch()
    os.truncate(path, size)


def places(home, out):
    "Where the trouble lies in the name, or in what stands there: (path as the manifest says it, what makes it or None, outcome)."
    def picture(seed): return lambda path: path.write_bytes(encoded(noise(seed), 'PNG'))
    def link(to): return lambda path: os.symlink(to, path)
    good = ["=cmd|' C'!A0.png", '+1.png', '-rf.png', '@sum.png', '<img src=x onerror=alert(1)>.png', '$(touch owned).png', "';drop table ads;--.png", '%2e%2e%2fa.png', '%s%n.png', 'a b.png', 'x;=1+1.png', 'two, three.png', '"quoted".png', 'emoji 🙂.png',
            '広告.png', 'zalgo' + 'e\u0301\u0302\u0303'*9 + '.png', '\u202egnp.exe', 'no ending', '.hidden.png', 'con.png', 'n'*250+'.png', '...png', 'trailing.', '--help', '#1.png', '{x}.png', "o'clock.png", 'deep/'*40+'x.png']
    yield from ((name, picture(1000+i), 'used') for i, name in enumerate(good))
    yield 'caf\u00e9.png', lambda path: picture(1100)(path.with_name('cafe\u0301.png')), 'used' # as a Mac writes it
    yield 'link inside.png', lambda path: (picture(1101)(home/'its target.png'), os.symlink('its target.png', path)), 'used'
    yield 'hard link.png', lambda path: (picture(1102)(home/'its twin.png'), os.link(home/'its twin.png', path)), 'used'
    yield './hard link.png', None, 'same bytes'
    yield 'deep/../hard link.png', None, "bad row: path leaves the manifest's folder"
    for name in ('two\nlines.png', 'escape\x1b[2J.png', 'csi\x9b2J.png', 'tab\t.png', 'delete\x7f.png'): yield name, picture(1103), 'bad row: path holds a control character'
    yield 'back\\slash.png', picture(1104), 'bad row: path holds a backslash'
    for path in ('../outside/secret.png', '/etc/passwd', '~/.ssh/id_rsa', 'C:/boot.ini', 'file:///etc/passwd', 'http://127.0.0.1:1/x.png', 'data:image/png;base64,AAAA'): yield path, None, 'bad row: path '
    for i, to in enumerate((out/'secret.png', out/'fifo', '/etc/passwd', '/dev/zero', '/proc/self/mem', '../outside/secret.png')): yield f'link {i}.png', link(to), "bad row: a link leads out of the manifest's folder"
    yield 'folder link/secret.png', lambda path: (path.parent.rmdir(), os.symlink(out, path.parent)), "bad row: a link leads out of the manifest's folder"
    yield 'loop.png', link('loop.png'), 'unusable picture: the file cannot be read: Too many levels'
    yield 'dangling.png', link('nowhere.png'), 'unusable picture: there is no such file'
    yield 'gone.png', None, 'unusable picture: there is no such file'
    yield 'hard link.png/below.png', None, 'unusable picture: the file cannot be read: Not a directory'
    yield '.', None, "unusable picture: this is the manifest's folder"
    yield 'm'*300+'.png', None, 'unusable picture: the file cannot be read: File name too long'
    yield 'a folder.jpg', lambda path: path.mkdir(), 'unusable picture: this is not a file'
    yield 'fifo.jpg', lambda path: os.mkfifo(path), 'unusable picture: this is not a file'
    yield 'socket.jpg', socket_at, 'unusable picture: this is not a file'
    yield 'device.jpg', device_at, 'unusable picture: this is not a file'
    yield 'sparse.jpg', sparse, 'unusable picture: the file is too large'
    if os.geteuid(): yield 'unreadable.png', unreadable, 'unusable picture: the file cannot be read: Permission denied'


HEADLINES = ['=HYPERLINK("http://x.y")', '+1', '-2', '@SUM(A1)', f'{ESC}all is well', '<script>alert(1)</script>', '&lt;b&gt;', '\u202eright to left', 'two\nlines', 'nul\0nul', 'a'*100_000, '\ufdfa'*5000, 'e'+'\u0301'*5000, '🙂', '${x}', "'; drop table ads", '%n%s', '\u200b']


def make_folder(home, out, good=60):
    "Fill `home` with good and hostile ads and their manifest, `out` with what must not be opened; returns a table of row, path, want."
    for folder in (home, out): folder.mkdir(parents=True)
    noise(6000).save(out/'secret.png')
    os.mkfifo(out/'fifo') # whoever opens it waits for ever
    rows = []
    for i in range(good):
        (home/f'good {i}.png').write_bytes(encoded(noise(7000+i), 'PNG'))
        rows.append((f'good {i}.png', 'used'))
    for i, (_, (data, want)) in enumerate(pictures()):
        (home/f'{i}.jpg').write_bytes(data)
        rows.append((f'{i}.jpg', want))
    for path, make, want in places(home, out):
        if make:
            (home/path).parent.mkdir(parents=True, exist_ok=True)
            try: make(home/path)
            except PermissionError: continue # a device needs rights that few have
        rows.append((path, want))
    table = pd.DataFrame(rows, columns=['path', 'want'])
    table.insert(0, 'row', range(1, len(table)+1))
    headlines = [HEADLINES[i] if i < len(HEADLINES) else '' for i in range(len(table))]
    labels = [str(i % 2) if path != './hard link.png' else '1' for i, path in enumerate(table.path)]
    labels[table.path.tolist().index('hard link.png')] = '1' # one file, one verdict
    table[['path']].assign(label=labels, headline=headlines).to_csv(home/'ads.csv', index=False)
    return table


# Manifests

def manifests():
    "(name, what writes it into a folder with 0.png ... 5.png and says which path to check, a regular expression of the refusal)."
    good = 'path,label\n0.png,0\n1.png,1\n'
    def text(content, name='ads.csv', encoding='utf-8'):
        def make(home):
            (home/name).write_bytes(content if isinstance(content, bytes) else content.encode(encoding))
            return home/name
        return make
    def settings(content, rows=good):
        def make(home):
            (home/'ads.csv.settings.json').write_text(content if isinstance(content, str) else json.dumps(content))
            return text(rows)(home)
        return make
    def special(make, name='ads.csv', rows=None):
        def build(home):
            if rows: text(rows)(home)
            make(home/name)
            return home/'ads.csv'
        return build
    def parquet(keep=1., name='ads.parquet', **columns):
        def make(home):
            b = io.BytesIO()
            pd.DataFrame(dict(path=[f'{i}.png' for i in range(6)], label=[0, 1]*3) | columns).to_parquet(b)
            return text(b.getvalue()[:int(keep*len(b.getvalue()))], name)(home)
        return make
    def nested(home):
        deep = home/'ads.csv'
        deep.mkdir()
        fd = os.open(deep, os.O_RDONLY)
        for _ in range(1100):
            os.mkdir('d', dir_fd=fd)
            inner = os.open('d', os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = inner
        os.close(fd)
        return deep
    yield 'none', lambda home: home/'ads.csv', 'there is no such manifest'
    yield 'a name with NUL', lambda home: home/'a\0b.csv', 'no such manifest'
    yield 'a name of escapes', text('', f'{ESC}.csv'), 'no rows'
    yield 'a name too long', lambda home: home/('x'*300), 'no such manifest|cannot be read'
    yield 'below a file', lambda home: text(good)(home)/'ads.csv', 'no such manifest|cannot be read'
    yield 'a dangling link', special(lambda p: os.symlink('nowhere.csv', p)), 'cannot be read'
    yield 'a link in a circle', special(lambda p: os.symlink('ads.csv', p)), 'cannot be read'
    yield 'a folder called ads.csv', special(lambda p: p.mkdir()), 'no sub-folders named defective'
    yield 'folders 1,100 deep', nested, 'too deep|cannot be read|no sub-folders'
    yield 'a pipe', special(os.mkfifo), 'no ordinary file'
    yield 'a socket', special(socket_at), 'no ordinary file'
    yield 'an endless device', lambda home: os.symlink('/dev/zero', home/'ads.csv') or home/'ads.csv', 'no ordinary file'
    yield 'three terabytes', special(lambda p: sparse(p, 3*2**40)), 'bytes are more than'
    yield 'empty', text(''), 'no rows'
    yield 'blank lines', text('\n\n  \n,,,\n'), 'no rows'
    yield 'a header only', text('path,label\n'), 'no rows'
    yield 'zeros', text(bytes(5000)), 'no text file'
    yield 'a picture', text(encoded(noise(1), 'PNG')), 'no text file'
    yield 'an Excel workbook', text(b'PK\3\4\x14\0\6\0[Content_Types].xml'), 'an Excel workbook'
    yield 'an old Excel workbook', text(b'\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1'+bytes(500)), 'an Excel workbook'
    yield 'gzip', text(b'\x1f\x8b\x08'+bytes(50)), 'compressed'
    yield 'a web page', text('<html>\n<body>log in</body>\n</html>\n'), "no column 'path'"
    yield 'JSON lines', text('{"path": "0.png"}\n{"path": "1.png"}\n'), "no column 'path'"
    yield 'no header', text('0.png,0\n1.png,1\n'), "no column 'path'; it has '0.png', '0'"
    yield 'a header of escapes', text(f'{ESC}path,label\n0.png,0\n'), "no column 'path'"
    yield 'no verdict column', text('path\n0.png\n'), "no column 'label'"
    yield 'a column twice', text('path,label,label\n0.png,0,1\n'), "2 columns are called 'label'"
    yield 'a separator too many', text(good+'2.png,1,\n'), 'line 4: 3 cells where the header has 2'
    yield 'a cell too few, below two lines in one', text('path,label,headline\n0.png,0,"a\nb"\n1.png,1\n'), 'line 4: 2 cells'
    yield 'a quote left open', text(good+'"2.png,1\n3.png,1\n'), 'line 5: unexpected end of data'
    yield 'a quote in the middle', text(good+'"2".png,1\n'), 'line 4: .*expected after'
    yield 'a cell of 200,000', text(good+'x'*200_000+',1\n'), 'line 4: field larger than'
    yield 'one line of 20 MB', text('path,label,'+'x'*20_000_000), 'line 1: 20,000,011 characters in one line'
    yield '20 MB of separators', text(good+','*20_000_000), 'line 4: 20,000,000 characters in one line'
    yield 'a line that ends in a megabyte', text(good+'2.png,1'+','*1_000_000), 'line 4: 1000002 cells'
    yield 'UTF-16 cut in two', text(good.encode('utf-16')[:-1]), 'is not utf-16'
    yield 'UTF-8 that says so and is not', text(b'\xef\xbb\xbfpath,label\n0.png,0\n\xff.png,1\n'), 'line 3 is not utf-8'
    yield 'a label outside', text(good+'2.png,maybe\n'), r"1 bad row \(row 3: label 'maybe' is not one of"
    yield 'escapes in cells', text(f'path,label,ad_id\n0.png,{ESC}0,a\n{ESC},1,b\n2.png,1,{ESC}\n3.png,1,{ESC}\n'), r'4 bad rows'
    yield 'impressions with a comma', text('path;label;impressions\n0.png;0;1,5\n1.png;1;2\n'), "impressions '1,5' is no finite number"
    yield 'dates out of range', text('path,label,submitted_at\n0.png,0,0001-01-01\n1.png,1,9999-12-31\n2.png,1,2024-02-30\n'), '3 bad rows'
    yield 'one class', text('path,label\n0.png,0\n1.png,0\n'), 'one class only'
    yield 'no verdicts', text('path,label\n0.png,\n1.png,\n'), 'no verdicts'
    yield 'one picture with two verdicts', text('path,label\n'+'0.png,0\n./0.png,1\n'*20), '40 bad rows.*two verdicts'
    yield 'one picture only', text('path,label\n'+'0.png,0\n'*20+'1.png,1\n'*20), 'no defective ad in'
    yield 'all outside', text('path,label\n../outside/secret.png,0\n/etc/passwd,1\n'), '2 bad rows'
    yield 'nothing there', text('path,label\nx.png,0\ny.png,1\n'), 'no usable row of 2'
    yield 'Parquet, cut', parquet(.6), 'cannot be read as Parquet'
    yield 'Parquet, four bytes', text('PAR1'), 'cannot be read as Parquet'
    yield 'Parquet, its end overwritten', lambda home: text(spliced((data := parquet()(home).read_bytes()), len(data)-8, b'\xff\xff\xff\x7f'))(home), 'cannot be read as Parquet'
    yield 'CSV called Parquet', text(good, 'ads.parquet'), 'cannot be read as Parquet'
    yield 'Parquet, no rows', parquet(path=[], label=[]), 'no rows'
    yield 'Parquet, nested paths', parquet(path=[[f'{i}.png'] for i in range(6)]), 'no usable row of 6|bad rows'
    yield 'Parquet, true and false', parquet(label=[True, False]*3), "6 bad rows.*'True' is not one of"
    yield 'settings, no JSON', settings('{'), 'cannot be read as JSON'
    yield 'settings, a list', settings([]), 'settings are not objects'
    yield 'settings, deep', settings('['*100_000), 'cannot be read as JSON'
    yield 'settings, a pipe', special(os.mkfifo, 'ads.csv.settings.json', good), 'no ordinary file'
    yield 'settings, an endless device', special(lambda p: os.symlink('/dev/zero', p), 'ads.csv.settings.json', good), 'no ordinary file'
    yield 'settings, a dangling link', special(lambda p: os.symlink('nowhere', p), 'ads.csv.settings.json', good), 'cannot be read'
    yield 'settings, large', special(lambda p: sparse(p, 2**30), 'ads.csv.settings.json', good), 'bytes are more than'
    yield 'settings, a key twice', settings('{"labels": {"bad": 0, "bad": 1}}'), "'bad' is given twice"
    yield 'settings, misspelt', settings({'colums': {'path': 'file'}}), "'colums' is no setting; did you mean 'columns'"
    yield 'settings, an unknown column', settings({'columns': {ESC: 'x'}}), 'is not one the kit knows'
    yield 'settings, a column that is not there', settings({'columns': {'headline': f'title{ESC}'}}), 'no column'
    yield 'settings, labels of escapes', settings({'labels': {ESC: 0}}), '2 bad rows'
    yield 'settings, a label that is true', settings({'labels': {'bad': True}}), "'bad' has no known meaning"
    yield 'settings, no cut of test', settings({'cuts': {'val': '2024-01-01'}}), 'cuts need two ISO 8601 dates'
    yield 'settings, a cut on no day', settings({'cuts': {'val': '2024-02-30', 'test': '2024-03-01'}}), "cuts need two .*'2024-02-30'"
    yield 'settings, cuts exchanged', settings({'cuts': {'val': '2024-03-01', 'test': '2024-02-01'}}), 'does not lie before'
    yield 'settings, cuts without dates', settings({'cuts': {'val': '2024-02-01', 'test': '2024-03-01'}}), 'no ad has a date'
    yield 'settings, no encoding', settings({'encoding': 'klingon'}), "'klingon' is not known"
    yield 'settings, an encoding of no text', settings({'encoding': 'rot13'}), "'rot13' is not known"
    yield 'settings, the wrong encoding', settings({'encoding': 'ascii'}, good+'été.png,1\n'), 'line 4 is not ascii'
