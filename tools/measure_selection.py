"""Measure which clusters selection drops and what that does to the student, on worlds whose truth is known; CPU seconds of one thread.

    python tools/measure_selection.py                       # all of it, into nbs/benchmarks/results/selection_*.csv
    python tools/measure_selection.py clusters students     # some of its parts
    python tools/measure_selection.py students --only fashion_0 fashion_1   # some of its worlds; several processes may share the work
    python tools/measure_selection.py --cache FOLDER        # where worlds, features and students are kept between calls

clusters   per cluster the true clean share, competence under both readings, support, and the stage's verdict
many       the same with K = 32 and 100, and on features of an untrained trunk
images     cleanlab per image, and the dropped clusters as if they were verdicts on images; a strong and two weak models
students   students from other lessons: the rule's clusters dropped in four ways, other rules, cleanlab, and perfect cleaning

Each row is written as it comes, and rows that are there are not measured again; delete a file to begin anew.
"""
import argparse
import fcntl
import os
import shutil
import tempfile
import time
from itertools import product
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # read when numpy is imported
import numpy as np
import pandas as pd
import torch
from measure_selflabel import ROLES, drawer, fashion_photographs, jpeg
from PIL import Image

from subtask_kit import storefront as sf
from subtask_kit.artifacts import lock, open_run, read_json, read_table, read_tensors, write_json, write_table
from subtask_kit.augment import augment
from subtask_kit.backbones import PACKAGED, trunk
from subtask_kit.clusters import Clusters, clusters, leading, out_of_fold, suspected
from subtask_kit.core import UserError, hash_file, rng_for, seed_for
from subtask_kit.curate import Curate, curate
from subtask_kit.curriculum import Curriculum, order
from subtask_kit.distill import Distill, train_variants
from subtask_kit.features import Features, features
from subtask_kit.metrics import bootstrap_npv, interval, lift, npv_at, npv_floor, plausible_npv
from subtask_kit.selection import DROPPED, Select, select
from subtask_kit.selflabel import SelfLabel, selflabel
from subtask_kit.specialists import Specialists, specialists

OUT = Path(__file__).parents[1]/'nbs/benchmarks/results'
CACHE = Path(tempfile.gettempdir())/'selection_worlds'
torch.set_num_threads(1)


# Worlds: the kit's own, and the same with other wrong verdicts in train

HOWS = ('both', 'clustered', 'scattered')
SEEN = [('storefront', 10), ('fashion_a', 10), ('storefront', 0), ('fashion', 0)]
HELD = [(name, seed) for seed in range(1, 6) for name in ('storefront', 'fashion')]
UNTRAINED = [(f'{name}_untrained', seed) for seed in (1, 2) for name in ('storefront', 'fashion')] # features of a trunk that has learned nothing


def world_of(name): return sf.STOREFRONT if name.startswith('storefront') else ROLES[name.removesuffix('_untrained')]


def trained(name): return not name.endswith('_untrained')


def base_run(name, seed):
    "The kit's own world without its pool, curated, with features; and its plan."
    run = open_run(CACHE/f'{name}_{seed}_base', create=True)
    plan, pool = sf.plan_world(world_of(name), 'tiny', seed)
    if not (run/'data/manifest.csv').exists():
        shutil.rmtree(run/'data', ignore_errors=True)
        sf.write_world(run/'data', dict(name=name, size='tiny', px=64, seed=seed, val_noise=0., version=sf.VERSION), plan, pool[:0], drawer(name, plan, pool, seed, 64))
    (run/'human').mkdir(exist_ok=True)
    curate(Curate(data=str(run/'data/manifest.csv')), run)
    features(Features(device='cpu', pretrained=trained(name)), run)
    return run, plan, pool


def recomposed(plan, world, how, rng):
    "The wrongly judged train ads that are to show something else, as they will be. 'clustered': all by the two misjudged advertisers; 'scattered': all like harmless ads, by anybody."
    noisy = plan[(plan.is_noise == 1) & (plan.label == 0)]
    if how == 'both': return noisy[:0]
    if how == 'clustered':
        moved = noisy[~noisy.seller.isin([0, 1])]
        seller = rng.integers(0, 2, len(moved))
        return moved.assign(seller=seller, kind=[rng.choice(world['misjudged'][i]) for i in seller])
    harmless = {k: v for k, v in world['harmless'].items() if k not in ('blank', 'glitch')}
    shares = np.array(list(harmless.values()), float)
    sellers = 2 + 3*len(world['defects']) + sf.OTHER_SELLERS
    return noisy.assign(seller=rng.integers(2, sellers, len(noisy)), kind=rng.choice(list(harmless), len(noisy), p=shares/shares.sum()))


def drawn(name, seed, moved, plan, pool):
    "Pictures of the ads in `moved`; photographs that no other ad shows."
    if name.startswith('storefront'): return np.stack([jpeg(drawer(name, plan, pool, seed, 64)(ad)) for ad in moved.itertuples()])
    images, labels = fashion_photographs()
    used, of = set(sf.photograph_of(plan, pool, labels, seed).values()), {}
    for kind, group in moved.groupby('kind'):
        choice = rng_for('selection', 'photographs', seed, kind).permutation(np.flatnonzero(labels == sf.KINDS.index(kind)))
        of |= dict(zip(group.ad_id, (i for i in choice if i not in used)))
    return np.stack([jpeg(Image.fromarray(images[of[a]]).resize((64, 64), Image.BICUBIC).convert('RGB')) for a in moved.ad_id])


def signed_anew(run, *files):
    "Tell the manifests of stages that their files have changed."
    for file in files:
        part, name = file.split('/')
        m = read_json(run/part/'manifest.json')
        m['outputs'][name] = dict(sha256=hash_file(run/file), bytes=(run/file).stat().st_size)
        (run/part/'manifest.json').unlink() # it may be linked to that of another run
        write_json(m, run/part/'manifest.json')


def shown_anew(run, rows, moved, pictures, pretrained):
    "Put other pictures, and their features, into a run."
    where, cfg = rows.set_index('ad_id').loc[moved.ad_id], Features()
    cache = np.load(run/'13_curate/images.npy', mmap_mode='r+')
    cache[where.image_row.to_numpy()] = pictures
    cache.flush()
    run_trunk, pixels = trunk(PACKAGED, pretrained, torch.device('cpu')), torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()
    stores = {kind: np.load(run/f'25_features/{kind}.npy', mmap_mode='r+') for kind in ('tokens', 'pooled')}
    for v in range(int(rows['views'].max())):
        seen = augment(pixels.clone(), [seed_for('view', a, v, cfg.seed) for a in moved.ad_id], cfg.ops, cfg.magnitude) if v else pixels
        for store, values in zip(stores.values(), run_trunk(seen)): store[where['first'].to_numpy() + v] = values.numpy()
    for store in stores.values(): store.flush()


def composed_run(name, seed, how):
    "The base with other wrong verdicts, clustered; `truth.parquet` says what the train ads show."
    run = open_run(CACHE/f'{name}_{seed}_{how}', create=True)
    with lock(run, 'study', wait=7200): # another process may want the same
        if not (run/'32_clusters/manifest.json').exists(): compose(run, name, seed, how)
    return run


def compose(run, name, seed, how):
    with lock(open_run(CACHE/f'{name}_{seed}_base', create=True), 'study', wait=7200): base, plan, pool = base_run(name, seed)
    for part in ('13_curate', '25_features'): shutil.copytree(base/part, run/part, dirs_exist_ok=True)
    (run/'human').mkdir(exist_ok=True)
    rows, ads = (read_table(run/f) for f in ('25_features/rows.parquet', '13_curate/ads.parquet'))
    inside = plan[plan.ad_id.isin(rows.ad_id[rows.split == 'train'])]
    moved = recomposed(inside, world_of(name), how, rng_for('selection', 'noise', name.removesuffix('_untrained'), how, seed))
    truth = inside.set_index('ad_id')[['kind', 'seller', 'label', 'is_noise']]
    truth.loc[moved.ad_id, ['kind', 'seller']] = moved[['kind', 'seller']].to_numpy()
    write_table(truth.reset_index(), run/'truth.parquet')
    if len(moved):
        shown_anew(run, rows, moved, drawn(name, seed, moved, plan, pool), trained(name))
        by = moved.set_index('ad_id').seller.map(plan.drop_duplicates('seller').set_index('seller').advertiser)
        write_table(ads.assign(advertiser=ads.ad_id.map(by).fillna(ads.advertiser)), run/'13_curate/ads.parquet')
        signed_anew(run, '13_curate/ads.parquet', '13_curate/images.npy', '25_features/tokens.npy', '25_features/pooled.npy')
    selflabel(SelfLabel(device='cpu'), run)
    clusters(Clusters(map='pca'), run)


def linked(run, ending, parts):
    "A run that shares some stages with another."
    out = open_run(Path(f'{run.path}_{ending}'), create=True)
    for part in parts: shutil.copytree(run/part, out/part, dirs_exist_ok=True, copy_function=lambda a, b: Path(b).exists() or os.link(a, b))
    (out/'human').mkdir(exist_ok=True)
    shutil.copy(run/'truth.parquet', out/'truth.parquet')
    return out


def audited_wrongly(run, name, seed, how, share=.1):
    "A copy in which `share` of the audited defects are harmless ads, composed as in train; test stays as it is."
    if (done := open_run(Path(f'{run.path}_val'), create=True))/'audited' and (done/'audited').exists(): return done
    out = linked(run, 'val', ('13_curate', '25_features', '31_selflabel', '32_clusters'))
    rows, ads = (read_table(run/f) for f in ('25_features/rows.parquet', '13_curate/ads.parquet'))
    seller, rng, wrong = sf.plan_world(world_of(name), 'tiny', seed)[0].set_index('ad_id').seller, rng_for('selection', 'val', name, how, seed), []
    for split in ('teacher_val', 'student_val', 'teacher_test'):
        r = rows[rows.split == split]
        good = r.ad_id[r.label == 1]
        misjudged = seller[good].isin([0, 1]).to_numpy()
        n = round((r.label == 0).sum()*share/(1-share))
        m = min(int(misjudged.sum()), {'both': round(n*16/22), 'clustered': n, 'scattered': 0}[how])
        wrong += [*rng.choice(good[misjudged], m, replace=False), *rng.choice(good[~misjudged], n-m, replace=False)]
    for file, table in (('25_features/rows.parquet', rows), ('13_curate/ads.parquet', ads)):
        (out/file).unlink()
        write_table(table.assign(label=table.label.mask(table.ad_id.isin(wrong), 0)), out/file)
        signed_anew(out, file)
    (out/'audited').touch()
    return out


def with_k(run, k):
    "A copy with another number of clusters."
    out = linked(run, f'k{k}', ('13_curate', '25_features'))
    selflabel(SelfLabel(k=k, device='cpu'), out)
    clusters(Clusters(map='pca'), out)
    return out


def selected(name, seed, how, val=0, k=16):
    "A run of a world up to its curriculum."
    run = composed_run(name, seed, how)
    if val: run = audited_wrongly(run, name, seed, how)
    if k != 16: run = with_k(run, k)
    with lock(run, 'study', wait=7200): # another process may want the same
        specialists(Specialists(device='cpu'), run)
        select(Select(), run)
        order(Curriculum(), run)
    return run


def members_of(run):
    "The defective train ads: cluster, truth, and what the out-of-fold classifier says."
    found = read_table(run/'32_clusters/partition.parquet')[['ad_id', 'cluster']].merge(read_table(run/'truth.parquet')[['ad_id', 'kind', 'is_noise']], on='ad_id', validate='1:1')
    return found.merge(read_table(run/'32_clusters/suspects.parquet')[['ad_id', 'p_defective', 'suspect']], on='ad_id', validate='1:1')


# What is looked at

def judged_on(run, split):
    "Margins of all teachers on an audited split, and its verdicts."
    rows = read_table(run/'33_specialists/rows.parquet')
    rows = rows[(rows.split == split) & rows.label.notna()]
    return read_tensors(run/'33_specialists/margins.safetensors')['margins'][rows.row.to_numpy(), 0].astype(float), rows.label.to_numpy(int)


EVIDENCE = 'kept shrunken shrunken_low shrunken_high below kept_share support support_low support_high agreement'.split()


def measured(run):
    "A row a cluster that has a teacher: both readings of competence, intervals of two kinds, truth."
    (margins, labels), members = judged_on(run, 'teacher_test'), members_of(run)
    teachers = read_table(run/'33_specialists/clusters.parquet').sort_values('position').cluster.to_numpy()
    floor, table = float((labels == 0).mean()), pd.DataFrame(dict(cluster=teachers))
    for name, (level, rate_of) in dict(lift=(.02, 'acceptable'), literal=(.01, 'defective')).items():
        table[f'{name}_npv'], least = npv_at(margins, labels, level, rate_of), npv_floor(floor, level, rate_of)
        table[f'{name}'] = lift(table[f'{name}_npv'], least)
        for how, draws in (('boot', bootstrap_npv), ('plausible', plausible_npv)):
            table[f'{name}_{how}_low'], table[f'{name}_{how}_high'] = lift(interval(draws(margins, labels, level, rate_of, 500)), least)
    truth = members.groupby('cluster').agg(ads=('ad_id', 'size'), wrong=('is_noise', 'sum'), suspects=('suspect', 'mean'), kinds=('kind', 'nunique'))
    stage = read_table(run/'34_select/competence.parquet').set_index('cluster')[EVIDENCE]
    return table.join(truth, on='cluster').join(stage, on='cluster').assign(floor=floor)


TS = (0., .1, .2, .3, .4, .5)
RULES = dict(default=lambda t: t.kept, literal=lambda t: t.literal_npv >= .1) | {f'lift {T:g}': lambda t, T=T: t.lift >= T for T in TS} | \
    {f'upper {T:g}': lambda t, T=T: t.lift_plausible_high >= T for T in (*TS, .6)} | {'boot upper 0.1': lambda t: t.lift_boot_high >= .1} | \
    {f'{share:g} of median': lambda t, share=share: t.lift >= share*t.lift.median() for share in (.4, .5, .6)} | \
    {f'support {S:g}': lambda t, S=S: t.support >= S for S in (.3, .5, .7)} | {'lift 0.4 or support 0.5': lambda t: (t.lift >= .4) | (t.support >= .5)} | \
    {'suspects': lambda t: t.suspects < .5, 'oracle': lambda t: t.wrong/t.ads <= .5} # name -> table of `measured` -> which clusters it keeps


def part_clusters(only):
    "A row a cluster: truth, and competence under both readings."
    plans = [('held', s, h, v, 16) for v in (0, .1) for s in HELD for h in HOWS] + [('seen', s, h, v, 16) for v in (0, .1) for s in SEEN for h in HOWS]
    yield from each_cluster(plans, only)


def part_many(only):
    "The same with more clusters, and on features of a trunk that has learned nothing."
    yield from each_cluster([('held', s, h, 0, k) for s in HELD[:4] for h in HOWS for k in (100, 32)] + [('untrained', s, h, 0, 16) for s in UNTRAINED for h in HOWS], only)


def each_cluster(plans, only):
    for plan, (name, seed), how, val, k in plans:
        of = dict(plan=plan, world=name, seed=seed, how=how, val=val, k=k)
        if wanted(of, only): yield of, lambda: cluster_rows(selected(name, seed, how, val, k))


def cluster_rows(run):
    "What `measured` says, and competence over teacher_val and teacher_test."
    copy = linked(run, 'crossfit', ('13_curate', '25_features', '31_selflabel', '32_clusters', '33_specialists'))
    select(Select(on='crossfit', rule='none'), copy)
    cross = read_table(copy/'34_select/competence.parquet').set_index('cluster')[['lift', 'lift_low', 'lift_high']].add_prefix('cross_')
    return measured(run).join(cross, on='cluster').to_dict('records')


def part_images(only):
    "A row a model: how right it is about single images, over the ads that were judged defective."
    for (name, seed), how in product(HELD + UNTRAINED, HOWS):
        of = dict(plan='held', world=name, seed=seed, how=how)
        if wanted(of, only): yield of, lambda: image_rows(selected(name, seed, how))


def image_rows(run):
    members, table, found = members_of(run), measured(run), {}
    for dims in (8, 2): found[f'cleanlab, {dims} dims'] = suspects_with(run, dims).reindex(members.ad_id).to_numpy()
    found['cleanlab'] = members.suspect.to_numpy(bool)
    for rule in ('default', 'upper 0.1', 'oracle'): found[f'clusters, {rule}'] = members.cluster.isin(table.cluster[~RULES[rule](table)]).to_numpy()
    found['suspects in clusters, default'] = found['cleanlab'] & found['clusters, default']
    wrong = members.is_noise.to_numpy() == 1
    return [dict(model=m, ads=len(members), wrong=int(wrong.sum()), found=int(f.sum()), right=int((f & wrong).sum())) for m, f in found.items()]


def suspects_with(run, dims):
    "cleanlab's opinion of the train ads, from a classifier that sees `dims` leading directions of the pooled features."
    rows, ads = read_table(run/'25_features/rows.parquet'), read_table(run/'13_curate/ads.parquet')
    rows = rows[(rows.split == 'train') & rows.label.notna()]
    x, label = np.load(run/'25_features/pooled.npy', mmap_mode='r')[rows['first'].to_numpy()].astype('float32'), rows.label.to_numpy('int64')
    p = out_of_fold(leading(x, dims), label, ads.set_index('ad_id').group[rows.ad_id].to_numpy(str), 0)
    return pd.Series(suspected(label, p), rows.ad_id.to_numpy())


def variants_of(run):
    "Name -> what `train_variants` is told."
    table, members = measured(run), members_of(run)
    every, good = table.cluster.tolist(), members[members.is_noise == 0]
    write_table(pd.DataFrame(dict(ad_id=good.ad_id, cluster=good.cluster, teacher=good.cluster, verdict=pd.array([0]*len(good), 'Int8'), weight=1.)).sort_values('ad_id'), run/'spotless.parquet')
    kept = {rule: table.cluster[keeps(table)].tolist() or every for rule, keeps in RULES.items()}
    found = {f'{rule}, {how}': dict(kept=kept[rule], dropped=how) for rule, how in product(kept, DROPPED)}
    whole = dict(vit=dict(method='vit'), vit_cleanlab=dict(method='vit_cleanlab'), vit_spotless=dict(method='vit', lessons=str(run/'spotless.parquet')))
    return found | dict(all=dict(kept=every), spotless=dict(lessons=str(run/'spotless.parquet')), cleanlab=dict(kept=every, cleaned='cleanlab')) | whole


FIRST = ('all', 'spotless', 'default, left_out', 'default, weighted')
THEN = ('cleanlab', 'default, by_image', 'default, unlabelled', 'upper 0.1, left_out', 'oracle, left_out', 'vit', 'vit_cleanlab', 'vit_spotless')


DEVELOPED = ('all', 'spotless', *(f'support 0.5, {how}' for how in ('left_out', 'weighted', 'unlabelled', 'by_image')), 'upper 0.1, left_out', 'upper 0.1, weighted', 'cleanlab')


def part_students(only):
    "A row a student. The cells that matter most come first, so that a stop leaves a whole table of them."
    plans = [('seen', 0, 0, DEVELOPED, SEEN[:2]), ('held', 0, 0, FIRST, HELD[:8]), ('held', 0, 0, THEN[:1], HELD[:4]), ('held', .1, 0, FIRST, HELD[:2]), ('held', 0, 0, FIRST, HELD), ('held', .1, 0, FIRST, HELD), ('held', 0, 0, THEN[:2], HELD),
             ('held', 0, 1, FIRST, HELD), ('held', 0, 0, THEN, HELD), ('held', .1, 1, FIRST, HELD)]
    for plan, val, model_seed, names, worlds in plans:
        for (name, seed), how, variant in product(worlds, HOWS, names):
            of = dict(plan=plan, world=name, seed=seed, how=how, val=val, variant=variant, model_seed=model_seed)
            if wanted(of, only): yield of, lambda: student_rows(name, seed, how, val, variant, model_seed)


def student_rows(name, seed, how, val, variant, model_seed):
    began = time.process_time()
    run = selected(name, seed, how, val)
    told = variants_of(run)[variant]
    scores = train_variants(run, Distill(device='cpu'), 'ft_sd', {variant: told}, run/'students', (model_seed,))
    truth = read_table(run/'25_features/rows.parquet').set_index('ad_id').label
    at = {f'{s}@{level:g}': npv_at(g.p_acceptable, truth[g.ad_id].to_numpy(int), level) for s, g in scores.groupby('split') if s != 'teacher_test' for level in (.01, .05)}
    members = members_of(run)
    out = ~members.cluster.isin(told['kept']) if 'kept' in told else pd.Series(False, members.index)
    return [dict(dropped=members.cluster[out].nunique(), ads_real=int((members.is_noise == 0).sum()), real_dropped=int((out & (members.is_noise == 0)).sum()), noise_dropped=int((out & (members.is_noise == 1)).sum()), n_defective=int((truth[scores.ad_id[scores.split == 'test']] == 0).sum()), **at, cpu_s=round(time.process_time() - began, 1))]


PARTS = dict(clusters=part_clusters, many=part_many, images=part_images, students=part_students)
WHERE = ['plan', 'world', 'seed', 'how']
KEYS = dict(clusters=[*WHERE, 'val', 'k'], many=[*WHERE, 'val', 'k'], images=WHERE, students=[*WHERE, 'val', 'variant', 'model_seed'])
DONE = set()


def wanted(of, only): return (not only or f'{of["world"]}_{of["seed"]}' in only) and tuple(map(str, of.values())) not in DONE


def added(file, rows):
    "Append rows in one piece: several processes may write."
    table = pd.DataFrame(rows)
    if not file.exists(): file.touch() # whoever comes first writes the header
    with open(file, 'a') as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        f.write(table.to_csv(index=False, header=not file.stat().st_size))


def measure(part, only):
    file = OUT/f'selection_{part}.csv'
    DONE.clear()
    if file.exists(): DONE.update(map(tuple, pd.read_csv(file, dtype=str)[KEYS[part]].values))
    for of, work in PARTS[part](only):
        began = time.process_time()
        try: added(file, [of | row for row in work()])
        except UserError as e: print(part, of, 'failed:', e, flush=True)
        print(part, of, round(time.process_time() - began), flush=True)


def main():
    global CACHE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', help='some of '+' '.join(PARTS))
    parser.add_argument('--only', nargs='*', default=[], help='worlds, such as storefront_0')
    parser.add_argument('--cache', default=str(CACHE))
    args = parser.parse_args()
    CACHE = Path(args.cache)
    CACHE.mkdir(parents=True, exist_ok=True)
    for part in args.parts or PARTS: measure(part, args.only)


if __name__ == '__main__': main()
