"Duplicates: the search equals brute force, windows are found again, copies are copies and look-alikes are not."
import io
import tracemalloc
from functools import cache

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from subtask_kit import duplicates, storefront
from subtask_kit.core import rng_for
from subtask_kit.duplicates import (CLOSE, FLAT, LIMITS, SIDE, SURE, TURNS, WIDE, align, centred, compare, find_copies, fourth_worst, group_rows, measure, near_pairs,
                                    pool, propose, residual, score_of, thumbnails, turned, unclipped, unlike, window, without_frame)
from subtask_kit.phash import INSETS, LUMA, MIN_QUALITY, RADIUS, distance, pdq, pdq_insets, pdq_turns

GOODS, WORDS = sorted(storefront.GOODS), storefront.headlines(600, rng_for('duplicates', 'headlines'))


# Pictures and what happens to them

def ad(i, px=64, **other):
    "The i-th advert of a fixed list."
    r = rng_for('duplicates', 'ad', i)
    given = dict(kind=GOODS[r.integers(len(GOODS))], seed=0, advertiser=int(r.integers(50)), headline=WORDS[i], u=r.random(12)) | other
    return storefront.draw_ad(**given, px=px)

def jpeg(im, quality):
    file = io.BytesIO()
    im.save(file, 'JPEG', quality=quality, subsampling=0)
    return Image.open(file).convert('RGB')

def cropped(im, k):
    "k tenths of a per cent off three edges, less off the fourth: neither centred nor square."
    n = im.width
    return im.crop((round(k*n/1000), round(.4*k*n/1000), n-round(k*n/1000), n-round(k*n/1000))).resize(im.size, Image.Resampling.BICUBIC)

def bordered(im, k, colour):
    w = max(1, round(k*im.width/1000))
    out = Image.new('RGB', (im.width+2*w,)*2, colour)
    out.paste(im, (w, w))
    return out.resize(im.size, Image.Resampling.BICUBIC)

def captioned(im, place, ground, ink, text='SALE NOW ONLY', share=.19):
    "A strip with some text pasted over the picture."
    out, n = im.copy(), im.width
    h = round(n*share)
    y = 0 if place == 'top' else n-h
    ImageDraw.Draw(out).rectangle((0, y, n, y+h-1), fill=ground)
    ImageDraw.Draw(out).text((n*.06, y+h*.2), text, fill=ink, font=ImageFont.load_default(h*.5))
    return out

def toned(im, gain, lift): return im.point([int(min(255, max(0, v*gain+lift))) for v in range(256)]*3)
def stacked(images): return np.stack([np.asarray(im.convert('RGB') if isinstance(im, Image.Image) else im) for im in images])

def listed(rows, images):
    "Rows (a, b, inset, turn) as `propose` would give them."
    pairs = pd.DataFrame(rows, columns=['a', 'b', 'inset', 'turn'])
    turns, insets = pdq_turns(images), pdq_insets(images)
    forms = [insets[a, INSETS.index(inset)] if inset else turns[a, turn] for a, inset, turn in zip(pairs.a, pairs.inset, pairs.turn)]
    return pairs.assign(distance=distance(np.stack(forms), turns[pairs.b.to_numpy(), 0]))

def looks(xs, ys, turn=0):
    "Best score of each picture of `xs` with that of `ys`, over every form that `propose` could have chosen; `inf` = far off."
    n, images = len(xs), stacked([*xs, *ys])
    pairs = listed([(a, b, inset, turn) for k in range(n) for a, b in ((k, n+k), (n+k, k)) for inset in ((0., *INSETS) if turn == 0 else (0.,))], images)
    return compare(pairs, images).score.to_numpy().reshape(n, -1).min(1)


# The search

def bits(codes): return np.unpackbits(np.ascontiguousarray(codes).view('uint8').reshape(len(codes), 8*codes.shape[1]), axis=1)

def brute(codes, radius, queries=None):
    "All distances, then a choice."
    d = (bits(codes if queries is None else queries)[:, None] != bits(codes)[None]).sum(2)
    near = d <= radius
    if queries is None: near &= np.arange(len(codes))[:, None] < np.arange(len(codes))
    a, b = np.nonzero(near)
    return np.stack([a, b, d[a, b]], 1)

def clumped(n, words, seed):
    "Hashes with everything: equal ones, near ones, inverted ones, strangers."
    r = rng_for('clumped', n, words, seed)
    codes = r.integers(0, 2**64, (max(n//3, 1), words), dtype='uint64')[r.integers(0, max(n//3, 1), n)]
    codes[r.random(n) < .2] ^= np.uint64(0b1011 << 7)
    inverted = r.random(n) < .15
    codes[inverted] = ~codes[inverted]
    return codes

@pytest.fixture(params=['numpy', 'faiss'])
def way(request, monkeypatch):
    if request.param == 'faiss': pytest.importorskip('faiss')
    monkeypatch.setattr(duplicates, 'LARGE', -1 if request.param == 'faiss' else 10**9)
    used, plain = [], getattr(duplicates, f'_by_{request.param}')
    monkeypatch.setattr(duplicates, f'_by_{request.param}', lambda *a: used.append(1) or plain(*a))
    return used

@pytest.mark.parametrize('words', [1, 4])
@pytest.mark.parametrize('n', [0, 1, 2, 60, 300])
def test_pairs_are_those_of_brute_force(way, n, words, monkeypatch):
    "Blocks smaller and larger than the data, ties, distance 0 and 256; the order of rows is that of the positions."
    codes = clumped(n, words, 0)
    for radius in (0, 8, 31, 60) if n == 300 else (0, 3, 31, 63, 64, 127, 255, 256, 300):
        for m in (None, 0, 1, 70):
            queries = None if m is None else np.concatenate([codes[:m//2], clumped(m-len(codes[:m//2]), words, 1)])
            for block in (256, 7):
                monkeypatch.setattr(duplicates, 'BLOCK', block)
                found = near_pairs(codes, radius, queries)
                assert found.dtype == 'int64' and np.array_equal(found, brute(codes, radius, queries)), (radius, m, block)
    assert way or n == 0

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**64-1) | st.sampled_from([0, 1, 3, 2**63, 2**64-1]), max_size=30), st.integers(0, 64), st.integers(1, 40))
def test_pairs_of_any_64_bit_hashes(values, radius, block):
    codes = np.array(values, 'uint64').reshape(-1, 1)
    before, duplicates.BLOCK = duplicates.BLOCK, block
    try: assert near_pairs(codes, radius).tolist() == [[i, j, (a^b).bit_count()] for i, a in enumerate(values) for j, b in enumerate(values) if i < j and (a^b).bit_count() <= radius]
    finally: duplicates.BLOCK = before

def test_threads_do_not_matter(way, monkeypatch):
    monkeypatch.setattr(duplicates, 'BLOCK', 16)
    codes = clumped(300, 4, 2)
    one = near_pairs(codes, 60)
    assert len(one) > 100 and len(way) > 1
    for workers in (0, 2, 3, 8): assert np.array_equal(near_pairs(codes, 60, workers=workers), one)
    assert np.array_equal(near_pairs(codes, 60, codes[::-1], 3), brute(codes, 60, codes[::-1]))

def test_codes_need_not_be_contiguous(way):
    wide = clumped(60, 8, 3)
    for codes in (wide[:, ::2], wide[::2, :4], np.asfortranarray(wide[:, :4])):
        assert np.array_equal(near_pairs(codes, 40), brute(codes, 40)) and np.array_equal(near_pairs(codes, 40, codes[3:9]), brute(codes, 40, codes[3:9]))

def test_inverted_hashes_are_far_apart(way):
    "256 differing bits are 0 in 8 bits."
    code = rng_for('inverted').integers(0, 2**64, (1, 4), dtype='uint64')
    assert len(near_pairs(np.concatenate([code, ~code]), 255)) == 0
    assert near_pairs(np.concatenate([code, ~code]), 256).tolist() == [[0, 1, 256]]

def test_no_table_of_all_pairs():
    "The 400 million distances of 20,000 hashes are never held at once."
    codes = rng_for('many').integers(0, 2**64, (20_000, 4), dtype='uint64')
    codes[-5:] = codes[:5] ^ np.uint64(7)
    tracemalloc.start()
    try: found, peak = near_pairs(codes, WIDE), tracemalloc.get_traced_memory()[1]
    finally: tracemalloc.stop()
    assert found.tolist() == [[i, 19_995+i, 12] for i in range(5)] and peak < 1.5e8, peak


# Candidates

def proposed(n=240, seed=0, workers=1):
    codes, r = clumped(n, 4, seed), rng_for('proposed', seed)
    forms = [(inset, turn, clumped(n, 4, seed+k)^codes[r.permutation(n)]^codes) for k, (inset, turn) in enumerate([(1/32, 0), (1/16, 0), (0., 1), (0., 5)], 1)]
    for _, _, q in forms: q[r.integers(0, n, n//2)] = codes[r.integers(0, n, n//2)] ^ np.uint64(1 << int(r.integers(60)))
    usable, anchored = r.random(n) < .8, r.random(n) < .5
    return codes, forms, usable, anchored, propose(codes, forms, usable, anchored, workers)

@pytest.mark.parametrize('seed', range(3))
def test_candidates_are_those_of_brute_force(seed):
    "Every pair that any form brings within reach, once, at its least distance; the form that was chosen has that distance and belongs to `a`."
    codes, forms, usable, anchored, table = proposed(seed=seed)
    least = {}
    for q in (codes, *(f[2] for f in forms)):
        for a, b, d in brute(codes, WIDE, q).tolist():
            if a != b and usable[a] and usable[b] and (anchored[a] or anchored[b]): least[min(a, b), max(a, b)] = min(d, least.get((min(a, b), max(a, b)), 999))
    assert len(least) > 100 and not (usable.all() or anchored.all())
    assert {(min(a, b), max(a, b)): d for a, b, d in table[['a', 'b', 'distance']].to_numpy().tolist()} == least and len(table) == len(least)
    of = {(0., 0): codes} | {(inset, turn): q for inset, turn, q in forms}
    own = np.stack([of[row.inset, row.turn][row.a] for row in table.itertuples()])
    assert np.array_equal(distance(own, codes[table.b]), table.distance) and len(table.groupby(['inset', 'turn'])) > 2
    assert table.index.tolist() == list(range(len(table))) and table.distance.is_monotonic_increasing

def test_the_plainest_form_is_chosen_of_equals():
    codes = clumped(1, 4, 0).repeat(4, 0)
    table = propose(codes, [(1/16, 0, codes), (0., 3, codes)], np.ones(4, bool), np.ones(4, bool))
    assert len(table) == 6 and (table.inset == 0).all() and (table.turn == 0).all() and (table.a < table.b).all()

def test_candidates_need_a_usable_pair_and_an_anchor():
    codes, forms, yes, no = clumped(30, 4, 1), [(1/32, 0, clumped(30, 4, 1))], np.ones(30, bool), np.zeros(30, bool)
    assert len(propose(codes, forms, yes, yes)) and not len(propose(codes, forms, no, yes)) and not len(propose(codes, forms, yes, no))
    empty = propose(codes[:0], [(1/32, 0, codes[:0])], no[:0], no[:0])
    assert empty.columns.tolist() == ['a', 'b', 'distance', 'inset', 'turn'] and len(empty) == 0 and len(propose(codes[:1], [(1/32, 0, codes[:1])], yes[:1], yes[:1])) == 0
    one = np.arange(30) == 7
    table = propose(codes, forms, yes, one)
    assert len(table) and ((table.a == 7) | (table.b == 7)).all()

def test_candidates_do_not_depend_on_threads_or_on_the_way(way, monkeypatch):
    monkeypatch.setattr(duplicates, 'BLOCK', 16)
    first = proposed(seed=4)[-1]
    for workers in (2, 5): pd.testing.assert_frame_equal(proposed(seed=4, workers=workers)[-1], first)
    monkeypatch.setattr(duplicates, 'LARGE', 10**9)
    pd.testing.assert_frame_equal(proposed(seed=4)[-1], first)


# Thumbnails, windows, alignment

@pytest.mark.parametrize('px', [32, 64, 100, 224])
def test_thumbnails(px):
    images, rows = stacked(ad(i, px) for i in range(5)), np.array([3, 0, 3])
    small = thumbnails(images, rows)
    assert {g: (x.shape, x.dtype) for g, x in small.items()} == {g: ((3, g, g, 3), np.dtype('uint8')) for g in (16, 32, SIDE)}
    for x in small.values(): assert np.array_equal(x[0], x[2])
    for g, x in small.items(): assert abs(x.astype(float).mean() - images[rows].astype(float).mean()) < 2
    want = images[rows] if px == SIDE else stacked(Image.fromarray(images[r]).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for r in rows)
    assert np.array_equal(small[SIDE], want)
    for g in (16, 32): assert np.array_equal(small[g], np.round(want.reshape(3, g, SIDE//g, g, SIDE//g, 3).mean((2, 4))).astype('uint8'))
    assert all(x.shape == (0, g, g, 3) for g, x in thumbnails(images, rows[:0]).items())

@pytest.mark.parametrize('shape, g', [((2, 64, 64, 3), 16), ((2, 64, 64, 1), 64), ((1, 8, 8, 3), 2)])
def test_pooling_is_the_mean_of_cells(shape, g):
    x, k = rng_for('pool').integers(0, 256, shape).astype('uint8'), shape[1]//g
    assert np.allclose(pool(x, g), x.reshape(shape[0], g, k, g, k, shape[3]).mean((2, 4)), atol=1e-3)
    assert np.array_equal(pool(x > 128, shape[1]), x > 128)

def pattern(p, g=32, seed=0):
    "A smooth picture of its own for each of the windows `p`, seen through it: the truth that windows and alignment are held against."
    v = (np.arange(g)+.5)*2/g - 1
    out = []
    for k, (sy, ty, sx, tx) in enumerate(np.asarray(p, float)):
        y, x, r = (sy*v+ty)[:, None], (sx*v+tx)[None], rng_for('pattern', seed, k)
        waves = [r.uniform(8, 25)*np.sin(fy*y+fx*x+c) for fy, fx, c in r.uniform(-5, 5, (8, 3))]
        out.append(128+sum(waves))
    return np.stack(out).astype('float32')

STILL = np.array([[1., 0, 1., 0]], 'float32')

def test_a_window_shows_what_a_drawing_of_it_shows():
    r = rng_for('window')
    p = np.c_[r.uniform(.8, 1.2, 40), r.uniform(-.15, .15, 40), r.uniform(.8, 1.2, 40), r.uniform(-.15, .15, 40)].astype('float32')
    seen, inside = window(pattern(STILL.repeat(40, 0), 64), p)
    # half a pixel from the edge is the last value that is known: beyond, the edge is repeated
    within = np.abs(np.where(inside, seen-pattern(p, 64), 0))
    assert within[:, 2:-2, 2:-2].max() < 3 and within.mean() < .3
    v = (np.arange(64)+.5)/32 - 1
    for k in range(40):
        y, x = (np.abs(p[k, i]*v+p[k, i+1]) <= 1+1e-6 for i in (0, 2))
        assert np.array_equal(inside[k], y[:, None] & x[None])

def test_windows_of_colours_are_windows_of_channels():
    r = rng_for('channels')
    a, p = r.random((4, 16, 16, 3)).astype('float32'), np.c_[r.uniform(.8, 1.2, 4), r.uniform(-.1, .1, 4), r.uniform(.8, 1.2, 4), r.uniform(-.1, .1, 4)].astype('float32')
    whole, inside = window(a, p)
    assert whole.shape == a.shape and inside.shape == (4, 16, 16)
    for c in range(3): assert np.allclose(window(a[..., c], p)[0], whole[..., c])
    for k in range(4): assert np.allclose(window(a[k:k+1], p[k:k+1])[0][0], whole[k])

def test_the_whole_is_itself_and_views_are_cuts():
    a = stacked([ad(0)]).astype('float32')
    assert np.abs(window(a, STILL)[0]-a).max() < .5 and window(a, STILL)[1].all()
    assert centred(np.array([0., 1/32])).tolist() == [[1, 0, 1, 0], [1-1/16, 0, 1-1/16, 0]] and centred(np.zeros(0)).shape == (0, 4)
    for inset in INSETS:
        seen, inside = window(a, centred(np.array([inset])))
        cut = round(64*inset)
        want = np.asarray(Image.fromarray(a[0, cut:64-cut, cut:64-cut].astype('uint8')).resize((64, 64), Image.Resampling.BILINEAR)).astype(float)
        assert inside.all() and np.abs(seen[0]-want)[1:-1, 1:-1].mean() < 2

def off(p, q): return np.abs(p-q).max(1)

def test_known_windows_are_found():
    "Also through a gain and an offset; in a batch as alone."
    r = rng_for('align')
    p = np.c_[r.uniform(.85, 1.15, 60), r.uniform(-.1, .1, 60), r.uniform(.85, 1.15, 60), r.uniform(-.1, .1, 60)]
    b, m = pattern(STILL.repeat(60, 0)), np.ones((60, 32, 32), bool)
    t = pattern(p)
    found = align(t, b, m, centred(np.zeros(60)), 12)
    assert np.median(off(found, p)) < .01 and (off(found, p) < .03).mean() > .9
    other = align(.7*t+25, b, m, centred(np.zeros(60)), 12)
    assert np.median(off(other, found)) < .005 and (off(other, p) < .03).mean() > .9
    for k in range(3): assert np.allclose(align(t[k:k+1], b[k:k+1], m[:1], STILL, 12), found[k:k+1], atol=1e-3)
    assert np.allclose(align(b, b, m, centred(np.zeros(60)), 12), STILL, atol=2e-3)

def test_what_is_masked_does_not_count():
    r = rng_for('masked')
    p = np.c_[r.uniform(.92, 1.08, 30), r.uniform(-.05, .05, 30), r.uniform(.92, 1.08, 30), r.uniform(-.05, .05, 30)]
    t, b, m = pattern(p), pattern(STILL.repeat(30, 0)), np.ones((30, 32, 32), bool)
    m[:, :8] = False
    plain, spoilt = align(t, b, m, centred(np.zeros(30)), 12), t.copy()
    spoilt[:, :7] = r.integers(0, 256, (30, 7, 32)) # the row beside the mask still has a slope that sees it
    assert (off(align(spoilt, b, m, centred(np.zeros(30)), 12), p) < .03).mean() > .9 and (off(plain, p) < .03).mean() > .9

def test_alignment_stays_in_bounds_and_still_where_there_is_nothing_to_see():
    t, b, m, start = pattern(STILL.repeat(8, 0)), pattern(STILL.repeat(8, 0), seed=1), np.ones((8, 32, 32), bool), centred(np.zeros(8))
    p = align(t, b, m, start, 30)
    assert np.isfinite(p).all() and (p[:, ::2] >= .7).all() and (p[:, ::2] <= 1.45).all() and (np.abs(p[:, 1::2]) <= .35).all() and np.array_equal(start, centred(np.zeros(8)))
    flat = np.full_like(t, 200)
    for x, y in ((flat, flat), (flat, t)): assert np.array_equal(align(x, y, m, start, 12), start)
    assert np.isfinite(align(t, flat, m, start, 12)).all() and np.array_equal(align(t, t, np.zeros_like(m), start, 12), start)
    assert align(t[:0], b[:0], m[:0], start[:0], 5).shape == (0, 4)


# Measures

def test_residual_is_a_least_squares_fit():
    "Against numpy's solver, under a mask, one gain and offset for three channels."
    r = rng_for('residual')
    w, m = r.uniform(0, 255, (20, 8, 8, 3)).astype('float32'), (r.random((20, 8, 8, 1)) < .7).astype('float32')
    t = (r.uniform(.4, 2, (20, 1, 1, 1))*w + 9 + r.normal(0, 20, w.shape)).astype('float32')
    left = residual(w, t, m)
    for k in range(20):
        at = np.broadcast_to(m[k] > 0, w[k].shape)
        A = np.c_[w[k][at], np.ones(at.sum())]
        assert np.allclose(left[k][at], t[k][at]-A@np.linalg.lstsq(A, t[k][at], rcond=None)[0], atol=.02) and (left[k][~at] == 0).all()

def test_gain_and_offset_leave_nothing_but_an_inverted_picture_does():
    w = stacked(ad(i) for i in range(6)).astype('float32')
    one = np.ones((6, 64, 64, 1), 'float32')
    for gain, lift in ((.5, 20), (1., 0), (1.7, -60)): assert np.abs(residual(w, gain*w+lift, one)).max() < .1
    assert (np.abs(residual(w, 255-w, one)).mean((1, 2, 3)) > np.abs(w-w.mean((1, 2, 3), keepdims=True)).mean((1, 2, 3))).all()
    assert np.isfinite(residual(w, w, 0*one)).all() and np.abs(residual(0*w, w, one)-(w-w.mean((1, 2, 3), keepdims=True))).max() < .1

def framed(top, bottom, left, right, colour, g=64, grain=0):
    x = rng_for('framed', top, left).integers(0, 256, (g, g, 3)).astype('int16')
    inner = np.zeros((g, g), bool)
    inner[top:g-bottom, left:g-right] = True
    x[~inner] = colour
    return x + rng_for('grain').integers(-grain, grain+1, x.shape).astype('int16'), inner

@pytest.mark.parametrize('colour', [(0, 0, 0), (255, 255, 255), (200, 30, 30)])
@pytest.mark.parametrize('sides', [(0, 0, 0, 0), (3, 3, 3, 3), (2, 9, 1, 5), (8, 0, 0, 0), (0, 6, 0, 0), (0, 0, 4, 0), (0, 0, 0, 9), (9, 9, 0, 0), (1, 1, 1, 1)])
def test_frames_are_left_out(sides, colour):
    "All of the frame, and of the picture no more than the row beside it."
    x, inner = framed(*sides, colour, grain=6)
    found = without_frame(x[None])[0]
    beside = inner.copy()
    beside[sides[0]:sides[0]+(sides[0] > 0)] = beside[64-sides[1]-(sides[1] > 0):64-sides[1]] = False
    beside[:, sides[2]:sides[2]+(sides[2] > 0)] = beside[:, 64-sides[3]-(sides[3] > 0):64-sides[3]] = False
    assert np.array_equal(found, beside)

def test_frames_of_a_batch_and_of_flat_pictures():
    batch = [framed(*s, 255)[0] for s in ((3, 3, 3, 3), (0, 0, 0, 0), (0, 5, 0, 2))] + [np.full((64, 64, 3), 90, 'int16')]
    whole = without_frame(np.stack(batch))
    for x, found in zip(batch, whole): assert np.array_equal(without_frame(x[None])[0], found)
    assert whole[3].sum() == 44*44 and whole[1].all()
    assert all(without_frame(np.stack(batch).astype(kind)).tolist() == whole.tolist() for kind in ('uint8', 'float32'))
    for g in (16, 32): assert without_frame(np.full((1, g, g, 3), 7, 'uint8'))[0, g//4:-(g//4), g//4:-(g//4)].all()
    assert without_frame(np.zeros((0, 64, 64, 3), 'uint8')).shape == (0, 64, 64)

@pytest.mark.parametrize('g, colours', [(64, 3), (16, 0), (32, 0)])
def test_the_fourth_worst_cell(g, colours):
    "A plain loop over cells; those of which less than half counts are skipped."
    r, k = rng_for('cells', g), g//8
    m = (r.random((6, g, g)) < r.choice([0, .4, .6, 1], (6, 8, 8)).repeat(k, 1).repeat(k, 2)).astype('float32')
    x = (r.normal(0, 30, (6, 8, 8)).repeat(k, 1).repeat(k, 2) + r.normal(0, 5, (6, g, g))).astype('float32')*m
    x = x[..., None]*r.random((6, 1, 1, 3)).astype('float32') if colours else x
    for n in range(6):
        levels = []
        for i in range(8):
            for j in range(8):
                at = np.s_[n, i*k:(i+1)*k, j*k:(j+1)*k]
                levels.append(np.abs(x[at].reshape(k*k, -1).sum(0)).max()/m[at].sum() if m[at].sum() >= k*k/2 else 0)
        assert np.isclose(fourth_worst(x, m)[n], sorted(levels)[-4], atol=1e-3)

def test_three_cells_may_differ_and_no_fourth():
    r, m = np.zeros((2, 64, 64, 3), 'float32'), np.ones((2, 64, 64), 'float32')
    r[:, :8, :24], r[1, 40:48, 40:48] = 90, -50
    assert fourth_worst(r, m).tolist() == [0, 50]

def test_clipping_is_forgiven_and_other_differences_are_not():
    w = stacked(ad(i) for i in range(8)).astype('float32')
    m = np.ones(w.shape[:3], bool)
    for gain, lift in ((1.25, 10), (1.4, -60), (.8, 0), (1.5, -20)):
        t = np.clip(gain*w+lift, 0, 255)
        assert np.abs(unclipped(w, t, m)).max() < 1.5 and np.abs(unclipped(t, w, m)).max() < 1.5, (gain, lift)
    t = np.clip(1.25*w+10, 0, 255)
    t[:, 20:30, 20:30] = 255-t[:, 20:30, 20:30]
    assert (np.abs(unclipped(w, t, m))[:, 20:30, 20:30].mean((1, 2, 3)) > 30).all()
    for flat in (0, 255, 128): assert np.abs(unclipped(np.full_like(w, flat), np.full_like(w, flat), m)).max() < 1e-3
    assert np.isfinite(unclipped(w, t, ~m)).all()

def test_white_text_on_white_paper_is_no_excuse():
    "Where ground is clipped and text is not, other text is a difference."
    def paper(text):
        im = Image.new('RGB', (256, 256), 'white')
        for k, line in enumerate(text.split()): ImageDraw.Draw(im).text((16, 20+70*k), line, fill='black', font=ImageFont.load_default(52))
        return np.asarray(im.resize((64, 64), Image.Resampling.LANCZOS), 'float32')[None]
    a, b, m = paper('BIG SALE NOW'), paper('TODAY ONLY FREE'), np.ones((1, 32, 32), bool)
    def of(x, y): return unlike(pool(unclipped(x, y, np.ones((1, 64, 64), bool)), 32)@LUMA, pool(y, 32)@LUMA, m)[0]
    assert of(a, a) < .01 and of(a, b) > LIMITS['detail'] and of(b, a) > LIMITS['detail']

def test_unlike_is_a_loop_over_cells():
    r = rng_for('unlike')
    t, left = (r.uniform(0, 255, (12, 1, 1))*(r.random((12, 8, 8)) < .7).repeat(4, 1).repeat(4, 2)*r.random((12, 32, 32)) for _ in range(2))
    t[:6] *= (r.random((6, 8, 8)) < .4).repeat(4, 1).repeat(4, 2)
    m, few, many = r.random((12, 32, 32)) < .9, 0, 0
    for n in range(12):
        rich = []
        for i in range(0, 32, 4):
            for j in range(0, 32, 4):
                at = np.s_[n, i:i+4, j:j+4]
                spread = t[at][m[at]].std()
                if spread > 8: rich.append(np.sqrt((left[at][m[at]]**2).mean())/(spread+10))
        down = sorted(rich, reverse=True) + [0]
        worst, typical = down[len(rich)//20], down[len(rich)//2]
        want = max(worst*(1.6 if len(rich) < FLAT else 1)/.75, worst/(.1 + 5*typical))
        few, many = few + (0 < len(rich) < FLAT), many + (len(rich) >= FLAT)
        assert np.isclose(unlike(left, t, m)[n], want, rtol=1e-4)
    assert few and many
    assert unlike(np.full((1, 32, 32), 99.), np.full((1, 32, 32), 7.), np.ones((1, 32, 32), bool)).tolist() == [0]

def test_measures_of_a_picture_with_itself_and_with_others():
    a = stacked(ad(i) for i in range(8)).astype('float32')
    m, still = np.ones((8, 64, 64), bool), STILL.repeat(8, 0)
    own, far = measure(a, a, still, m), np.full(8, WIDE)
    assert max(own[k].max() for k in ('residual', 'detail', 'colour')) < .1 and (own['structure'] > .999).all() and (own['overlap'] == 1).all()
    toned = measure(.8*a+20, a, still, m)
    assert max(toned[k].max() for k in ('residual', 'detail', 'colour')) < .2 and (toned['structure'] > .999).all()
    other = measure(a, np.roll(a, 1, 0), still, m)
    assert (score_of(own, LIMITS, far) < .02).all() and (score_of(toned, LIMITS, far) < .05).all() and (score_of(other, LIMITS, 0*far) > 1).all()
    tinted = np.clip(a, 30, 200)
    assert np.allclose(measure(tinted + np.float32([0, 0, 24]), tinted, still, m)['colour'], 16, atol=3) # the common offset takes a third
    half = measure(a, a, np.array([[1, .5, 1, 0]], 'float32').repeat(8, 0), m)
    assert np.allclose(half['overlap'], .75) and np.allclose(measure(a, a, still, m & (np.arange(64) < 16))['overlap'], .25)
    assert np.isinf(score_of(measure(a, a, still, m & (np.arange(64) < 16)), LIMITS, 0*far)).all() and np.isinf(score_of(measure(a, a, still, ~m), LIMITS, 0*far)).all()
    assert all(v.shape == (0,) for v in measure(a[:0], a[:0], still[:0], m[:0]).values())

def test_a_score_is_the_worst_measure():
    "A quarter wider where the hashes agree."
    r = rng_for('score')
    x = {k: r.uniform(0, 20, 50) for k in ('residual', 'detail', 'colour')} | dict(structure=r.uniform(0, 1, 50), overlap=r.uniform(.3, 1, 50))
    want = [max(x['residual'][i]/10, x['detail'][i]/.75, x['colour'][i]/6, (1-x['structure'][i])/.07) if x['overlap'][i] >= .4 else np.inf for i in range(50)]
    assert np.allclose(score_of(x, dict(residual=10, structure=.07, detail=.75, colour=6), np.full(50, SURE+1)), want)
    assert np.allclose(score_of(x, dict(residual=12.5, structure=.0875, detail=.9375, colour=7.5), np.full(50, SURE+1)),
                       score_of(x, dict(residual=10, structure=.07, detail=.75, colour=6), np.full(50, SURE)))

def test_turned_pictures_have_the_hashes_of_their_turns():
    images = stacked(ad(i) for i in range(4))
    turns, hashes = np.arange(8).repeat(4), pdq_turns(images)
    forms = turned(np.concatenate([images]*8), turns)
    for k in range(8): assert (distance(hashes[:, k], pdq(forms[turns == k])[0]) <= 2).all() and (distance(hashes[:, (k+1)%8], pdq(forms[turns == k])[0]) > RADIUS).all()
    assert np.array_equal(forms[:4], images) and np.array_equal(turned(images, np.array([0, 1, 2, 3])), [turned(images[[k]], np.array([k]))[0] for k in range(4)])
    assert np.array_equal(images, stacked(ad(i) for i in range(4))) and len(TURNS) == 8
    assert turned(images[..., :1] > 99, np.arange(4)+4).dtype == bool


# The second look

EDITS = dict(
    same=lambda im, k: im, crop=lambda im, k: cropped(im, 30+8*k), border=lambda im, k: bordered(im, 30+8*k, ['black', 'white', 'red'][k%3]),
    lighter=lambda im, k: toned(im, 1.1+.02*k, 8), darker=lambda im, k: toned(im, .9-.02*k, -10), jpeg=lambda im, k: jpeg(im, 75-5*k),
    resize=lambda im, k: im.resize((48+8*k,)*2, Image.Resampling.BICUBIC).resize(im.size, Image.Resampling.BICUBIC),
    top=lambda im, k: captioned(im, 'top', ['black', 'yellow'][k%2], ['white', 'black'][k%2]),
    bottom=lambda im, k: captioned(im, 'bottom', ['black', 'yellow'][k%2], ['white', 'black'][k%2]))

@pytest.mark.parametrize('kind', EDITS)
def test_copies_are_seen_as_copies(kind):
    "Most of them: what an edit took may be what mattered."
    xs = [ad(100+i) for i in range(14)]
    scores = looks(xs, [EDITS[kind](im, i%7) for i, im in enumerate(xs)])
    assert (scores <= 1).mean() >= .7 and (kind != 'same' or scores.max() < .01), scores.round(2)

@pytest.mark.parametrize('turn', range(1, 8))
def test_mirrored_and_turned_copies(turn):
    xs = stacked(ad(120+i) for i in range(4))
    assert looks(xs, turned(xs, np.full(4, turn)), 0).min() > 1
    images = np.concatenate([xs, turned(xs, np.full(4, turn))])
    seen = compare(listed([(k, 4+k, 0., turn) for k in range(4)], images), images)
    assert seen.score.max() < .01 and (seen.how == 'aligned').all()

def poster(lines, ground, ink, px=64):
    "Text on a flat ground."
    im = Image.new('RGB', (256, 256), ground)
    for k, line in enumerate(lines.split()): ImageDraw.Draw(im).text((16, 16+80*k), line, fill=ink, font=ImageFont.load_default(52))
    return im.resize((px, px), Image.Resampling.LANCZOS)

@pytest.mark.parametrize('ground, ink', [('white', 'black'), ((30, 90, 60), 'white'), ((240, 240, 235), (20, 20, 60)), ('black', 'yellow')])
def test_other_text_on_the_same_flat_ground_is_another_ad(ground, ink):
    texts = ['BIG SALE NOW', 'TODAY ONLY FREE', 'Garden shoes here', 'WIN A TRIP', 'New noble lamps', 'Cheap winter gear', 'OPEN LATE AGAIN', 'Kitchen for you']
    xs = [poster(t, ground, ink) for t in texts]
    assert looks(xs, xs[1:]+xs[:1]).min() > 1 and looks(xs, [jpeg(x, 80) for x in xs]).max() <= 1

def test_inverted_pictures_and_other_colours_are_other_ads():
    xs = [ad(140+i, kind='mug', advertiser=-1) for i in range(6)]
    assert looks(xs, [toned(x, -1, 255) for x in xs]).min() > 1
    def product(colour, ground=(225, 222, 214)):
        im = Image.new('RGB', (128, 128), ground)
        ImageDraw.Draw(im).rounded_rectangle((34, 30, 88, 100), 12, fill=colour)
        ImageDraw.Draw(im).arc((76, 44, 110, 84), -90, 90, fill=colour, width=8)
        return im.resize((64, 64), Image.Resampling.BICUBIC)
    colours = [(200, 40, 40), (40, 150, 60), (40, 70, 190), (190, 140, 20), (120, 40, 130)] # about as bright as each other
    mugs = [product(c) for c in colours]
    assert looks(mugs, mugs[1:]+mugs[:1]).min() > 1 and looks(mugs, [jpeg(m, 80) for m in mugs]).max() <= 1

def test_a_ground_without_its_product_is_another_ad():
    "Both ways round, also for a product of a twentieth of the picture."
    grounds = [storefront.backdrop(0, i, 128).resize((64, 64), Image.Resampling.BICUBIC) for i in range(10)]
    with_product = []
    for i, im in enumerate(grounds):
        out = im.copy()
        ImageDraw.Draw(out).ellipse((18+i, 40-i, 35+i, 57-i), fill=[(20, 20, 20), (250, 250, 250)][int(np.asarray(im).mean() > 128) ^ 1])
        with_product.append(out)
    assert looks(grounds, with_product).min() > 1
    goods = [(ad(160+i), ad(160+i, kind='blank')) for i in range(8)]
    assert looks(*zip(*goods)).min() > 1

def test_other_goods_of_one_advertiser_are_other_ads():
    pairs = [(ad(180+i, kind=a, advertiser=i), ad(180+i, kind=b, advertiser=i)) for i, (a, b) in enumerate([('dice', 'gift'), ('bottle', 'vase'), ('pills', 'buttons'), ('mug', 'lamp')]*2)]
    assert looks(*zip(*pairs)).min() > 1

def test_two_captions_of_one_template_are_two_ads():
    "The text is small, so that most of the strip is ground."
    xs = [ad(200+i) for i in range(8)]
    one, two = ([captioned(x, 'bottom', 'black', 'white', text, .25) for x in xs] for text in ('SALE NOW', 'GIFTS FREE'))
    assert looks(one, two).min() > 1 and looks(one, one).max() < .01

def test_two_headlines_of_one_template_are_two_ads():
    "As above with storefront's own headlines, which fill their strip."
    xs, ys = ([ad(220+i, headline=WORDS[220+i+k]) for i in range(30)] for k in (0, 100))
    images = stacked([*xs, *ys])
    seen = compare(listed([(k, 30+k, 0., 0) for k in range(30)], images), images)
    assert not ((seen.score <= 1) & seen.how.isin(['top', 'bottom'])).any()

def test_looks_do_not_depend_on_threads_order_or_company(monkeypatch):
    xs = [ad(240+i) for i in range(8)]
    images = stacked([*xs, *(cropped(x, 50) for x in xs)])
    pairs = listed([(a, b, inset, 0) for a in range(8) for b in (a+8, (a+1)%8) for inset in (0., *INSETS)], images)
    whole = compare(pairs, images)
    assert whole[pairs.columns].equals(pairs) and len(whole) == len(pairs)
    monkeypatch.setattr(duplicates, 'BLOCK', 5)
    for workers in (1, 2, 4): pd.testing.assert_frame_equal(compare(pairs, images, workers), whole, rtol=1e-3, atol=1e-3)
    order = rng_for('order').permutation(len(pairs))
    pd.testing.assert_frame_equal(compare(pairs.iloc[order].reset_index(drop=True), images).iloc[np.argsort(order)].reset_index(drop=True), whole, rtol=1e-3, atol=1e-3)

def test_pairs_may_have_any_index():
    "Somebody who looks at some of the candidates only must not get the scores of others."
    xs = [ad(240+i) for i in range(6)]
    images = stacked([*xs, *(cropped(x, 50) for x in xs)])
    pairs = listed([(a, b, 1/32, 0) for a, b in enumerate([6, 7, 2, 9, 10, 0])], images)
    whole = compare(pairs, images)
    for some in (pairs.iloc[::-1], pairs[pairs.a > 2], pairs.set_index(pd.Index(list('uvwxyz'))), pairs.iloc[:0]):
        seen = compare(some, images)
        assert seen.index.equals(some.index) and seen.columns.tolist() == whole.columns.tolist()
        assert np.allclose(seen.score, whole.score.to_numpy()[some.a], atol=1e-3)

@pytest.mark.parametrize('value', [0, 128, 255])
def test_flat_pictures_are_looked_at_without_trouble(value):
    images = np.stack([np.full((64, 64, 3), value, 'uint8'), np.full((64, 64, 3), value, 'uint8'), np.asarray(ad(0))])
    with np.errstate(all='raise', under='ignore'):
        seen = compare(listed([(a, b, inset, 0) for a, b in ((0, 1), (0, 2), (2, 0)) for inset in (0., *INSETS)], images), images)
    assert seen.score.notna().all() and (seen.score[3:] > 1).all()


# Groups

def union_find(n, pairs):
    of = list(range(n))
    for a, b in pairs:
        low, high = sorted((of[a], of[b]))
        of = [low if k == high else k for k in of]
    return of

@settings(max_examples=100, deadline=None)
@given(st.data(), st.integers(0, 25))
def test_groups_are_those_of_union_find(data, n):
    row = st.integers(0, max(n-1, 0))
    pairs = data.draw(st.lists(st.tuples(row, row), max_size=30 if n else 0))
    found = group_rows(n, pairs)
    assert found.tolist() == union_find(n, pairs) and found.dtype == 'int64'
    assert group_rows(n, np.array(pairs, int).reshape(-1, 2)[::-1, ::-1]).tolist() == found.tolist()

def test_a_long_chain_is_one_group():
    assert not group_rows(50_000, np.c_[np.arange(49_999), np.arange(1, 50_000)]).any()


# All of it

PLANTED = dict(crop=6, tone=6, jpeg=6, resize=6, border=6, top=5, bottom=5)

@cache
def world(px, n=100, seed=0):
    "Adverts, planted copies of some (storefront's own edits and those of this file), and which of which."
    r, images = rng_for('planted', seed), [ad(300*seed+i, px) for i in range(n)]
    of, kinds = [], [k for k, count in PLANTED.items() for _ in range(count)]
    for j, kind in enumerate(kinds):
        if kind in storefront.EDITS:
            im, quality = storefront.EDITS[kind](images[j], r)
            im = jpeg(im, quality).resize((px, px), Image.Resampling.BICUBIC)
        else: im = EDITS[kind](images[j], j%7)
        images.append(im)
        of.append((j, n+j))
    return stacked(images), of, np.array(kinds)

@cache
def known(px, seed=0):
    images = world(px, seed=seed)[0]
    codes, quality = pdq(images)
    return images, codes, pdq_insets(images), quality

def unordered(table): return {tuple(sorted(p)) for p in table[['a', 'b']].to_numpy().tolist()}

@pytest.mark.parametrize('px', [64, 100, 224])
def test_planted_copies_are_found_and_no_original_is_lost(px):
    args, (images, of, kinds) = known(px), world(px)
    table = find_copies(*args, np.ones(len(images), bool))
    copies = unordered(table[table.score <= 1])
    assert copies <= set(of)
    found = pd.Series([pair in copies for pair in of]).groupby(kinds).mean()
    assert (found >= .5).all() and found.mean() >= .7, found
    assert len(unordered(table)) == len(table) and (table.score <= CLOSE).all() and table.index.tolist() == list(range(len(table)))

def test_small_pictures_lose_copies_but_no_original():
    "At 32 pixels much of what is compared has been made up by enlarging."
    images, of, _ = world(32)
    copies = find_copies(*known(32), np.ones(len(images), bool)).query('score <= 1')
    assert unordered(copies) <= set(of) and len(copies) >= len(of)/4

def test_threads_change_no_bit(monkeypatch):
    monkeypatch.setattr(duplicates, 'BLOCK', 32)
    args = known(64)
    yes = np.ones(len(args[0]), bool)
    one = find_copies(*args, yes, mirrors=True)
    for workers in (2, 4): pd.testing.assert_frame_equal(find_copies(*args, yes, mirrors=True, workers=workers), one, check_exact=True)

def test_the_order_of_ads_changes_no_clear_case():
    "Which of two is laid upon the other follows from their order, and moves scores a little."
    args = known(64)
    yes = np.ones(len(args[0]), bool)
    def scores(rows):
        t = find_copies(*(x[rows] for x in args), yes)
        return {tuple(sorted((rows[a], rows[b]))): s for a, b, s in zip(t.a, t.b, t.score)}
    plain = scores(np.arange(len(yes)))
    for rows in (np.arange(len(yes))[::-1], rng_for('shuffled').permutation(len(yes))):
        other = scores(rows)
        for one, two in ((plain, other), (other, plain)):
            assert all(two.get(pair, 99) <= 1 for pair, s in one.items() if s <= .6) and len(one) > 30

def test_mirrors_only_where_asked_for():
    images = stacked([*(ad(400+i) for i in range(20)), *(ad(400+i).transpose(Image.Transpose.FLIP_LEFT_RIGHT) for i in range(6)), ad(407).transpose(Image.Transpose.ROTATE_90)])
    codes, quality = pdq(images)
    args = images, codes, pdq_insets(images), quality, np.ones(27, bool)
    assert not (find_copies(*args).score <= 1).any()
    table = find_copies(*args, mirrors=True).query('score <= 1')
    assert unordered(table) == {(i, 20+i) for i in range(6)} | {(7, 26)} and set(table.turn[table[['a', 'b']].max(axis=1) < 26]) == {1}
    one = turned(images[table.a.to_numpy()], table.turn.to_numpy())
    assert np.array_equal(one, images[table.b])

def test_a_pool_is_compared_with_the_anchored_only():
    args, (images, of, _) = known(64), world(64)
    everyone = find_copies(*args, np.ones(len(images), bool))
    anchored = np.arange(len(images)) < 20
    some = find_copies(*args, anchored)
    assert unordered(some) == {p for p in unordered(everyone) if anchored[list(p)].any()} and 5 < len(some) < len(everyone)
    assert len(find_copies(*args, ~np.ones(len(images), bool))) == 0

def test_flat_pictures_are_left_out():
    images = np.concatenate([np.full((3, 64, 64, 3), 240, 'uint8'), stacked([ad(0), ad(0)])])
    codes, quality = pdq(images)
    assert (quality[:3] < MIN_QUALITY).all()
    assert unordered(find_copies(images, codes, pdq_insets(images), quality, np.ones(5, bool), mirrors=True)) == {(3, 4)}
    for low, left in ((MIN_QUALITY-1, 0), (MIN_QUALITY, 1)): assert len(find_copies(images[3:], codes[3:], pdq_insets(images[3:]), np.array([100, low]), np.ones(2, bool))) == left

@pytest.mark.parametrize('mirrors', [False, True])
@pytest.mark.parametrize('n', [0, 1, 2])
def test_few_pictures(n, mirrors):
    images = stacked([ad(0), ad(1)])[:n]
    codes, quality = pdq(images)
    table = find_copies(images, codes, pdq_insets(images), quality, np.ones(n, bool), mirrors)
    assert len(table) == 0 and table.columns.tolist() == 'a b distance inset turn score residual structure detail colour overlap how'.split()

def test_a_memory_map_serves(tmp_path):
    "As the cache of pictures is one."
    args = known(64)
    np.save(tmp_path/'images.npy', args[0])
    yes = np.ones(len(args[0]), bool)
    pd.testing.assert_frame_equal(find_copies(np.load(tmp_path/'images.npy', mmap_mode='r'), *args[1:], yes), find_copies(*args, yes), check_exact=True)


def test_a_thousand_runs_of_one_banner_take_few_looks(monkeypatch):
    "Pairs within a group that is known already are not looked at again."
    looked = []
    from subtask_kit import duplicates as kit
    monkeypatch.setattr(kit, 'ROUND', 64)
    inner = kit._compare
    monkeypatch.setattr(kit, '_compare', lambda pairs, *rest: looked.append(len(pairs)) or inner(pairs, *rest))
    one = np.asarray(Image.fromarray(np.random.default_rng(3).integers(0, 256, (6, 6, 3), 'uint8')).resize((64, 64)))
    noise = np.random.default_rng(4).integers(-3, 4, (120, 64, 64, 3))
    images = np.clip(one.astype(int)+noise, 0, 255).astype('uint8')
    codes, quality = pdq(images)
    found = find_copies(images, codes, pdq_insets(images), quality, np.ones(120, bool))
    assert (group_rows(120, found.loc[found.score <= 1, ['a', 'b']].to_numpy()) == 0).all()
    assert sum(looked) <= 120*119//2//5


def cover(seed):
    "A text cover: one template, other words."
    rng = np.random.default_rng(seed)
    im = Image.new('RGB', (256, 192), (238, 244, 250))
    draw = ImageDraw.Draw(im)
    draw.rectangle((8, 8, 247, 183), outline='navy', width=2)
    for k in range(4): draw.text((24, 24+38*k), ' '.join(rng.choice('SALE NEW FRESH TODAY ONLY BEST LAMPS SHOES TOYS BOOKS FROM FREE EUR 12 49 99 7'.split(), 3)), fill='navy', font=ImageFont.load_default(26))
    return np.asarray(im.resize((64, 64), Image.Resampling.BICUBIC))


def test_text_covers_of_one_template_are_many_ads():
    images = np.stack([cover(s) for s in range(24)] + [np.asarray(Image.fromarray(cover(s)).resize((48, 48)).resize((64, 64))) for s in range(4)])
    codes, quality = pdq(images)
    found = find_copies(images, codes, pdq_insets(images), quality, np.ones(len(images), bool))
    merged = found.loc[found.score <= 1, ['a', 'b']].to_numpy()
    assert sum(max(p) < 24 for p in merged) <= 2  # covers taken for one, of 276 pairs
    assert sum(sorted(p) == [s, 24+s] for s in range(4) for p in merged.tolist()) >= 3
