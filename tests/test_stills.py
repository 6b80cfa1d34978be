"Static pictures: the right size, the right colours in the right places, and any text at all."
import numpy as np
import pandas as pd
import pytest
from fake_run import HOSTILE, make_competence
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from subtask_kit import stills
from subtask_kit.view import SIDE, veiled

IMAGES = np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), dtype='uint8')
TEXTS = ['', HOSTILE, 'x'*300, '猫 🐈 \u202e', 'two\nlines', '\x00', ' \t ']


def plain(w, h, colour='#ff0000'): return Image.new('RGB', (w, h), colour)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=5), st.integers(0, 20))
def test_pictures_stand_beside_and_below_each_other(sizes, gap):
    some = [plain(w, h) for w, h in sizes]
    for join, along, across in ((stills.beside, 0, 1), (stills.below, 1, 0)):
        out = join(some, gap)
        assert out.size[along] == sum(s[along] for s in sizes) + gap*(len(sizes)-1) and out.size[across] == max(s[across] for s in sizes)
        assert (np.asarray(out) == (255, 0, 0)).all(2).sum() == sum(w*h for w, h in sizes), 'every pixel is there, turned nor mirrored away'


def test_below_keeps_pictures_upright():
    out = stills.below([Image.fromarray(i) for i in IMAGES[:3]], 5)
    for k in range(3): assert (np.asarray(out)[29*k:29*k+24] == IMAGES[k]).all()


@pytest.mark.parametrize('text', TEXTS)
def test_any_text_can_be_written(text):
    image = plain(80, 30, stills.PAPER)
    stills.write(image, (2, 2), text)
    groups = [dict(label=text, colour='#0072B2', at=[9, 9], dim=False), dict(label=text, colour='#0072B2', at=None, dim=True)]
    stills.map_still(np.array([[0, 0], [SIDE, SIDE]]), np.array([0, 1]), groups)
    stills.rows_still([(text, [IMAGES[0]], [text])])
    stills.teachers_still(make_competence(np.random.default_rng(0), pd.DataFrame(dict(cluster=range(4), size=9, confidence=.5))), ['lift', 'lift_low', 'lift_high'], .1, {0: text, 1: None})


def colour_at(image, x, y): return '#%02X%02X%02X' % image.getpixel((round(x), round(y)))


def test_points_lie_where_the_grid_says_and_y_grows_upwards():
    grid, groups = np.array([[0, 0], [SIDE, SIDE], [0, SIDE]]), [dict(label='', colour=c, at=None, dim=False) for c in ('#0072B2', '#E69F00', '#009E73')]
    image = stills.map_still(grid, np.arange(3), groups, side=200)
    assert [colour_at(image, *p) for p in ((14, 186), (186, 14), (14, 14), (186, 186))] == ['#0072B2', '#E69F00', '#009E73', '#FFFFFF']
    lit = stills.map_still(grid, np.arange(3), groups, np.array([True, False, False]), 200)
    assert colour_at(lit, 14, 186) == '#0072B2' and colour_at(lit, 186, 14) == '#DFE3E8'
    dim = stills.map_still(grid, np.arange(3), [g | dict(dim=True) for g in groups], np.zeros(3, bool), 200)
    assert colour_at(dim, 14, 186) == stills.SOFT.upper()


@pytest.mark.parametrize('n, columns', [(0, 4), (1, 4), (4, 4), (9, 4)])
def test_rows_hold_every_picture_once(n, columns):
    image = stills.rows_still([('a', list(IMAGES[:n]), ['c']*n)], True, px=24, columns=columns)
    assert image.width == columns*28
    for k in range(n):
        x, y = k % columns*28, 22 + k//columns*48
        assert np.abs(np.asarray(image)[y:y+24, x:x+24].astype(int) - IMAGES[k]).mean() < 2


def test_veiled_rows_show_nothing_but_the_veil():
    smooth = [np.kron(veiled(i), np.ones((4, 4, 1), 'uint8')) for i in IMAGES]
    a, b = (stills.rows_still([('x', list(p), ['']*9)]) for p in (IMAGES, smooth))
    assert a.tobytes() == b.tobytes() and a.tobytes() != stills.rows_still([('x', list(IMAGES), ['']*9)], True).tobytes()


@pytest.mark.parametrize('scale', [['lift', 'lift_low', 'lift_high'], ['npv', 'low', 'high']])
def test_teachers_are_drawn_once_and_in_their_colour(scale):
    table = make_competence(np.random.default_rng(0), pd.DataFrame(dict(cluster=range(6), size=9, confidence=.5)))
    table.loc[2, scale] = np.nan
    image = stills.teachers_still(table, scale, .1)
    assert image.height == 20*5 + 24
    ranked = table[table[scale[0]].notna()].sort_values(scale[0], ascending=False)
    for i, r in enumerate(ranked.itertuples()):
        strip = np.asarray(image)[25+20*i:36+20*i].reshape(-1, 3).tolist()
        assert ([0, 114, 178] in strip) == bool(r.kept) and ([213, 94, 0] in strip) == (not r.kept)


def test_a_hundred_teachers_stand_side_by_side():
    table = make_competence(np.random.default_rng(0), pd.DataFrame(dict(cluster=range(100), size=9, confidence=.5)))
    one, many = (stills.teachers_still(t, ['lift', 'lift_low', 'lift_high'], .1, width=200) for t in (table.head(40), table))
    assert many.height == one.height == 20*40 + 24 and many.width == 3*200 + 2*16
    assert (np.asarray(stills.teachers_still(table.head(4), ['lift', 'lift_low', 'lift_high'], 2.)) != np.asarray(stills.teachers_still(table.head(4).drop(columns='shrunken'), ['lift', 'lift_low', 'lift_high'], 2.))).any()


def test_no_teacher_and_no_picture_are_no_error():
    table = make_competence(np.random.default_rng(0), pd.DataFrame(dict(cluster=range(3), size=9, confidence=.5)))
    assert stills.teachers_still(table.assign(lift=np.nan), ['lift', 'lift_low', 'lift_high'], .1).height >= 1
