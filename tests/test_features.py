"Cached features: rows, views, and units of work."
import numpy as np
import pandas as pd
import pytest
import subtask_kit.features as room
import torch
from stages import again, copy_of, hashes
from subtask_kit.artifacts import open_run, read_json, read_table
from subtask_kit.augment import normalise
from subtask_kit.backbones import PACKAGED, trunk
from subtask_kit.curate import images_of
from subtask_kit.features import source, view_pixels, view_table

CPU, STAGE = torch.device('cpu'), room.features.stage


@pytest.fixture(scope='module')
def run(micro_run): return open_run(micro_run)


@pytest.fixture(scope='module')
def rows(run): return read_table(run/STAGE/'rows.parquet')


def test_rows_hold_every_ad_that_later_stages_need_and_no_other(run, rows):
    ads = read_table(run/'13_curate/ads.parquet').set_index('ad_id')
    needed = ads[(ads.split != '') | ads.pool]
    assert rows.ad_id.tolist() == needed.index.tolist() and rows.image_row.tolist() == needed.image_row.tolist()
    assert (rows['views'] == np.where((rows.split == 'train') | rows.pool, 2, 1)).all()
    taken = np.concatenate([np.arange(f, f+v) for f, v in zip(rows['first'], rows['views'])])
    assert taken.tolist() == list(range(rows['views'].sum()))
    for kind in ('tokens', 'pooled'): assert len(np.load(run/STAGE/f'{kind}.npy', mmap_mode='r')) == len(taken)


def test_ads_outside_every_split_are_left_out():
    ads = pd.DataFrame(dict(ad_id=list('abcd'), split=['train', '', '', 'test'], label=pd.array([0, 1, pd.NA, 1], 'Int8'), image_row=[0, 1, 2, 3], pool=[False, False, True, False]))
    table = view_table(ads, 3)
    assert table.ad_id.tolist() == ['a', 'c', 'd'] and table['views'].tolist() == [3, 3, 1] and table['first'].tolist() == [0, 3, 6]


def test_view_0_is_the_picture_itself(run, rows):
    images, which = images_of(run), np.arange(0, len(rows), 97)
    pixels = view_pixels(images, rows, which, np.zeros(len(which), int), 0, 2, 8)
    assert (pixels.permute(0, 2, 3, 1).numpy() == images[rows.image_row.values[which]]).all()


def test_a_view_hangs_on_ad_view_and_seed_alone(run, rows):
    images, which, view = images_of(run), np.array([0, 5, 5, 9]), np.array([1, 1, 2, 0])
    asked = view_pixels(images, rows, which, view, 0, 2, 8)
    assert torch.equal(view_pixels(images, rows, which[::-1].copy(), view[::-1].copy(), 0, 2, 8), asked.flip(0))
    shuffled = rows.iloc[::-1].reset_index(drop=True)
    assert torch.equal(view_pixels(images, shuffled, len(rows)-1-which, view, 0, 2, 8), asked)
    other = view_pixels(images, rows, which, view, 1, 2, 8)
    assert torch.equal(other[3], asked[3]) and not torch.equal(other[:3], asked[:3]) and not torch.equal(asked[1], asked[2])


def test_all_sources_show_the_same_views(run, rows):
    "Pixels as a model gets them, put through the trunk, give the tokens and pooled vectors of the same ads and views."
    train = np.flatnonzero(rows['views'] == 2)
    which = np.r_[train[[0, 7, 7, -1]], np.flatnonzero(rows.split == 'test')[[0, -1]]]
    view = np.array([1, 0, 1, 1, 0, 0])
    x = source(run, 'pixels', CPU, (0., 0., 0.), (1., 1., 1.))(which, view)
    tokens, pooled = trunk(PACKAGED, True, CPU)((x*255).round().to(torch.uint8))
    assert torch.allclose(source(run, 'tokens', CPU)(which, view), tokens.float(), atol=2e-2, rtol=2e-2)
    assert torch.allclose(source(run, 'pooled', CPU)(which, view), pooled.float(), atol=2e-2, rtol=2e-2)


def test_pixels_are_standardised_as_asked(run):
    which, view = np.array([0, 1]), np.array([0, 1])
    plain = source(run, 'pixels', CPU, (0., 0., 0.), (1., 1., 1.))(which, view)
    asked = source(run, 'pixels', CPU, (.4, .5, .6), (.2, .3, .4))(which, view)
    assert torch.allclose(asked, normalise((plain*255).round().to(torch.uint8), (.4, .5, .6), (.2, .3, .4)), atol=1e-6)


def test_features_do_not_depend_on_the_chunks(micro_run, tmp_path):
    run = copy_of(micro_run, tmp_path/'run')
    assert again(run, 'features', features_chunk=150) == ['features']
    assert hashes(run, 'features') == hashes(open_run(micro_run), 'features')


def interrupt(monkeypatch, calls):
    "Let the stage die when it asks for the pixels of its n-th chunk."
    plain, left = room.view_pixels, [calls]
    def dying(*args):
        left[0] -= 1
        if left[0] < 0: raise InterruptedError
        return plain(*args)
    monkeypatch.setattr(room, 'view_pixels', dying)
    return lambda: monkeypatch.setattr(room, 'view_pixels', plain)


def test_finished_chunks_of_a_killed_stage_are_kept(micro_run, tmp_path, monkeypatch):
    run = copy_of(micro_run, tmp_path/'run')
    (run/STAGE/'manifest.json').unlink()
    restore = interrupt(monkeypatch, 1)
    with pytest.raises(InterruptedError): again(run, 'features')
    restore()
    made = []
    plain = room.view_pixels
    monkeypatch.setattr(room, 'view_pixels', lambda *args: made.append(1) or plain(*args))
    again(run, 'features')
    chunks = -(-read_json(run/STAGE/'manifest.json')['metrics']['views']//512)
    assert len(made) == chunks-1 and hashes(run, 'features') == hashes(open_run(micro_run), 'features')


def test_chunks_of_other_pictures_are_not_taken_over(micro_run, tmp_path, monkeypatch):
    "A stage that was killed on one set of pictures and is run again on another, with the same ads."
    run, whole = copy_of(micro_run, tmp_path/'run'), copy_of(micro_run, tmp_path/'whole')
    (run/STAGE/'manifest.json').unlink()
    restore = interrupt(monkeypatch, 1)
    with pytest.raises(InterruptedError): again(run, 'features')
    restore()
    for r in (run, whole): again(r, 'features', curate_px=48)
    assert hashes(run, 'features') == hashes(whole, 'features')
