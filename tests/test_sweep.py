"Students for every T: distinct kept sets once, gains on the same draws, nothing when nothing is asked."
import json

import numpy as np
import pandas as pd
import pytest
from stages import copy_of
from subtask_kit import distill as room
from subtask_kit.artifacts import read_json, read_manifest, read_table, write_table
from subtask_kit.core import UserError
from subtask_kit.distill import train_variants
from subtask_kit.metrics import npv_at, paired_gain
from subtask_kit.selection import Select
from subtask_kit.selection import sweep as kept_sets
from subtask_kit.sweep import ALL, LEVELS, SPLITS, Sweep, curve, plan, sweep

LABELS = pd.Series([0]*40 + [1]*160, index=[f'ad{i:03d}' for i in range(200)])
COLUMNS = 'T clusters share kept split metric value low high gain gain_low gain_high seeds'.split()


def fake(variant, strength, seeds=(0, 1)):
    rng = np.random.default_rng(int(10*strength))
    return pd.concat([pd.DataFrame(dict(variant=variant, seed=s, ad_id=LABELS.index, split=split, p_acceptable=rng.normal(strength*LABELS, 1))) for s in seeds for split in SPLITS])


def matrix(scores, variant, split): return scores[(scores.variant == variant) & (scores.split == split)].pivot(index='ad_id', columns='seed', values='p_acceptable').values


def test_the_curve_is_the_metrics_own():
    scores, cfg = pd.concat([fake(ALL, 1.), fake('0 2', 2.)]), Sweep(draws=200)
    table = curve(scores.sample(frac=1, random_state=0), LABELS, cfg)
    assert len(table) == 2*len(SPLITS)*len(LEVELS) and (table.seeds == 2).all() and ((table.low <= table.value) & (table.value <= table.high)).all()
    for r in table.itertuples():
        level, of = float(r.metric[4:-1])/100, {v: matrix(scores, v, r.split) for v in (ALL, r.variant)}
        assert r.value == pytest.approx(np.mean(npv_at(of[r.variant], LABELS.values, level)))
        gain, low, high = paired_gain(of[r.variant], of[ALL], LABELS.values, level, draws=cfg.draws)
        assert r.gain == pytest.approx(gain)
        # the metrics draw their seeds by other names, so the ends agree only nearly
        if r.variant != ALL: assert r.gain_low == pytest.approx(low, abs=.1) and r.gain_high == pytest.approx(high, abs=.1) and r.gain_low < r.gain < r.gain_high


def test_keeping_all_gains_nothing_over_itself_whatever_it_is_called():
    scores = fake(ALL, 1.5)
    table = curve(pd.concat([scores, scores.assign(variant='0 1')]), LABELS, Sweep(draws=50))
    assert (table[['gain', 'gain_low', 'gain_high']] == 0).all(axis=None)


@pytest.fixture
def run(micro_run, tmp_path):
    "Four teachers of four competences, so that T decides."
    run = copy_of(micro_run, tmp_path/'run')
    table = read_table(path := run/'34_select/competence.parquet')
    write_table(table.assign(lift=[0., .3, .3, .6], lift_low=0., lift_high=[.1, .4, .4, .7]), path)
    m = read_json(manifest := run/'34_select/manifest.json')
    m['spec']['config'] |= dict(rule='estimate')
    manifest.write_text(json.dumps(m))
    return run


def folders(run): return {p.name: p.stat().st_mtime_ns for p in (run/'39_sweep').iterdir() if p.is_dir()}


def test_nothing_is_done_unless_it_is_asked_for(run):
    manifest = sweep(Sweep(), run)
    assert manifest['metrics'] == dict(students=0) and sorted(p.name for p in (run/'39_sweep').iterdir()) == ['manifest.json', 'metrics.json']


def test_distinct_kept_sets_are_trained_once(run, monkeypatch):
    "Seven Ts, three sets that keep somebody; the run's own student, which keeps all, is taken over."
    trained, fit = [], room.fit
    monkeypatch.setattr(room, 'fit', lambda *a, **k: trained.append(1) or fit(*a, **k))
    cfg = Sweep(T=(-.1, 0., .1, .2, .3, .5, .9), seeds=(0,), draws=50)
    metrics = sweep(cfg, run)['metrics']
    assert len(trained) == 2 and metrics['sets'] == 3 and metrics['nobody_kept'] == [.9] and metrics['method'] == 'ft_sd'
    table, before = read_table(run/'39_sweep/sweep.parquet'), folders(run)
    assert table.columns.tolist() == COLUMNS and len(before) == 3
    sets = {t: g.kept.iloc[0].tolist() for t, g in table.groupby('T')}
    assert sets == {-.1: [0, 1, 2, 3], 0.: [0, 1, 2, 3], .1: [1, 2, 3], .2: [1, 2, 3], .3: [1, 2, 3], .5: [3]}
    of = table.assign(name=table.kept.map(str)).groupby(['name', 'split', 'metric'])[COLUMNS[6:12]]
    assert (of.nunique() == 1).all(axis=None), 'Ts of one set have one student'
    assert (table[table.clusters == 4][['gain', 'gain_low', 'gain_high']] == 0).all(axis=None) and table.groupby(['T', 'split', 'metric']).size().eq(1).all()
    assert (table.clusters == table.kept.map(len)).all() and (table.seeds == 1).all()
    sweep(cfg, run)
    assert len(trained) == 2, 'fresh'
    sweep(Sweep(T=(.1, .2, .95), seeds=(0,), draws=50), run)
    assert len(trained) == 2 and set(folders(run).items()) <= set(before.items()) and len(folders(run)) == 2, 'what a shorter list needs is there, the rest goes'


def test_the_students_are_those_of_the_kept_sets(run, tmp_path):
    "Against variants trained by hand, elsewhere."
    sweep(Sweep(T=(.2, .5), seeds=(0, 1), draws=50), run)
    table, student = read_table(run/'39_sweep/sweep.parquet'), room.Distill(**read_json(run/'37_distill/manifest.json')['spec']['config'])
    scores = train_variants(run, student, 'ft_sd', {'a': dict(kept=[1, 2, 3]), 'b': dict(kept=[3]), 'all': dict(kept=[0, 1, 2, 3])}, tmp_path/'by_hand', (0, 1))
    label = read_table(run/'13_curate/ads.parquet').set_index('ad_id').label
    for r in table.itertuples():
        s = scores[scores.split == r.split]
        y = label[np.unique(s.ad_id)].to_numpy(int)
        value = {v: np.mean(npv_at(matrix(s, v, r.split), y, float(r.metric[4:-1])/100)) for v in ('a', 'b', 'all')}
        assert r.value == pytest.approx(value['a' if r.T == .2 else 'b']) and r.gain == pytest.approx(r.value - value['all'])


def test_the_rule_of_the_run_decides(run):
    table = read_table(run/'34_select/competence.parquet')
    for rule in ('upper', 'estimate', 'none'):
        m = read_json(path := run/'34_select/manifest.json')
        m['spec']['config'] |= dict(rule=rule)
        path.write_text(json.dumps(m))
        kept, variants, _ = plan(run, (.35, .5))
        assert kept.kept.tolist() == kept_sets(table, Select(rule=rule), np.array([.35, .5])).kept.tolist()
        assert {tuple(v['kept']) for v in variants.values()} == {(0, 1, 2, 3), *map(tuple, kept.kept)}


def test_a_sweep_is_taken_back(run):
    sweep(Sweep(T=(.2,), seeds=(0,), draws=50), run)
    assert (run/'39_sweep/sweep.parquet').exists()
    sweep(Sweep(), run)
    assert not (run/'39_sweep/sweep.parquet').exists() and not folders(run) and set(read_manifest(run/'39_sweep')['outputs']) == {'metrics.json'}


@pytest.mark.parametrize('values', [dict(T=(.1, .1)), dict(T=(float('nan'),)), dict(seeds=()), dict(seeds=(1, 1)), dict(draws=0), dict(coverage=2)])
def test_what_means_nothing_is_refused(values):
    with pytest.raises(UserError, match='sweep_'): Sweep(**values)
