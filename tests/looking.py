"Runs that the widgets can be opened on, and what a widget shows as plain values."
import io
import shutil

import numpy as np
import pandas as pd
from fake_run import finish, make_fake_run
from PIL import Image

from subtask_kit.artifacts import open_run, read_json, read_table, write_json, write_table, write_tensors

RAW = pd.DataFrame(dict(ad_id=list('abcdefgh'), cluster=[0, 0, 1, 1, 2, 2, 3, 3], confidence=np.linspace(.2, .9, 8)))


def bare_run(path, raw=RAW):
    "Just enough of a run to be edited."
    run = open_run(path, create=True)
    write_table(raw, run/'31_selflabel/assignments.parquet')
    return run


def teach(run, k, seed=0):
    "What k teachers say of every ad, in 33_specialists; the rows are in no order."
    ads, rng = read_table(run/'13_curate/ads.parquet'), np.random.default_rng(seed)
    rows = pd.DataFrame(dict(row=rng.permutation(len(ads)), ad_id=ads.ad_id, split=ads.split, label=ads.label))
    margins = np.full((len(ads), 2, k), np.nan, 'float16')
    margins[rows.row, 0] = rng.normal(0, 2, (len(ads), k)) + 2*ads.label.fillna(0).to_numpy(float)[:, None]
    write_table(rows.sample(frac=1, random_state=seed), run/'33_specialists/rows.parquet')
    write_table(pd.DataFrame(dict(position=range(k), cluster=range(k))).sample(frac=1, random_state=seed), run/'33_specialists/clusters.parquet')
    write_tensors({'margins': margins}, run/'33_specialists/margins.safetensors')
    finish(run, '33_specialists', config=dict(seed=0))


def make_looked(path, k=5, px=36, **more):
    "A fake run whose teachers speak."
    run = make_fake_run(path, k, px, **more)
    if (run/'34_select').exists(): teach(run, k)
    return run


def copied(run, folder): return open_run(shutil.copytree(open_run(run).path, folder))


def change(run, file, f):
    "Replace a table of a stage by f(table); the manifest goes with it."
    stage, path = file.partition('/')[0], run/file
    write_table(f(read_table(path)), path)
    old = read_json(run/stage/'manifest.json')
    finish(run, stage, old['metrics'], config=old['spec']['config'], inputs=old['spec']['inputs'])


def configure(run, stage, **config):
    "Give a stage other parameters in its manifest."
    manifest = read_json(run/stage/'manifest.json')
    manifest['spec']['config'] |= config
    write_json(manifest, run/stage/'manifest.json')


def jpegs(gallery):
    "The pictures of a gallery's sheet."
    return [Image.open(io.BytesIO(gallery.sheet[i['at']:i['at']+i['size']])) for i in gallery.items]


def galleries(widget):
    "Every gallery of one of the three widgets, hidden ones too."
    return [g for a in widget.albums for g in a.galleries] + ([widget.gallery] if hasattr(widget, 'gallery') else [])


def click(box, text):
    "Press the button that begins so."
    found = [b for b in walk(box) if type(b).__name__ == 'Button' and b.description.startswith(text)]
    assert len(found) == 1, f'{text}: {[b.description for b in found]}'
    found[0].click()


def walk(widget):
    yield widget
    for child in getattr(widget, 'children', ()): yield from walk(child)
