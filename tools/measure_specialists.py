"""Measure specialists: heads on a shared trunk against networks of their own; CPU seconds of one thread, ratios within one run.

    python tools/measure_specialists.py RUN              # all of it, into nbs/benchmarks/results/specialists_*.csv; RUN is a finished run of the built-in data and is only read
    python tools/measure_specialists.py RUN quality cost # some of its parts
    python tools/measure_specialists.py RUN cnn --clusters 0 1 2   # some of the networks: slow, each is kept when it is done
    python tools/measure_specialists.py RUN --cache FOLDER         # where copies and trained networks are kept between calls

cnn       a pretrained EfficientNet-Lite0 for each of the run's clusters, trained on pixels
quality   the run's heads and those networks: cost, AUC of each cluster's own defects, lift
students  what students distilled from either are worth on test, three model seeds
cost      heads at the paper's size (2,500 + 15,000 ads, 1,280 features): minutes and memory by K, hidden layer, threads
peers     the same heads against a loop over scikit-learn's models
balance   what is done about few defects and many acceptable ads, in heads
views     what transforming pictures anew costs a network's training
"""
import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # read when numpy is imported
import numpy as np
import pandas as pd
import torch

from subtask_kit.artifacts import open_run, read_json, read_table, read_tensors
from subtask_kit.backbones import PACKAGED
from subtask_kit.device import one_thread
from subtask_kit.distill import Distill
from subtask_kit.evaluate import gather, wide
from subtask_kit.features import source, view_pixels
from subtask_kit.metrics import bootstrap_npv, interval, lift, npv_at, npv_floor, paired_gain
from subtask_kit.pipeline import configure, load_stage
from subtask_kit.specialists import (BALANCE, PixelTeacher, Specialists, Task, _statistics, all_margins, build_heads, load_task, standardised, teacher_key,
                                     train_margins, train_teacher, write_routing)

OUT = Path(__file__).parents[1]/'nbs/benchmarks/results'
CPU = torch.device('cpu')
# What somebody would take who has no GPU: a small pretrained network, fine-tuned. Untuned.
CNN = Specialists(mode='independent', model=PACKAGED, balance='sample', ratio=5., batch=32, epochs=6, lr=2e-3, lr_encoder=1e-3, device='cpu')


def copy_of(run, cache, name):
    "A copy of what the stages up to the clusters wrote, to work in."
    folder = cache/name
    if not folder.exists():
        for stage in ('13_curate', '25_features', '31_selflabel', '32_clusters'): shutil.copytree(run/stage, folder/stage)
    (folder/'33_specialists').mkdir(exist_ok=True)
    copy = open_run(folder)
    write_routing(copy, folder/'33_specialists')
    return copy


def part_cnn(run, cache, clusters):
    "Train networks for the asked clusters; one JSON file a cluster says what it cost."
    copy = copy_of(run, cache, 'cnn')
    task = load_task(copy)
    for c in clusters or task.names:
        told = cache/f'cnn_{c:03d}.json'
        if told.exists(): continue
        began = time.process_time()
        with one_thread(): train_teacher(copy, vars(CNN), c, teacher_key(copy, CNN, task, task.names.index(c)))
        told.write_text(json.dumps(dict(cluster=c, cpu=time.process_time() - began)))
        print('cnn', c, round(time.process_time() - began), flush=True)


def judged(task):
    "Audited ads of teacher_test: positions, verdicts, most probable cluster (of the defective ones)."
    at = np.flatnonzero((task.rows.split == 'teacher_test') & task.rows.label.notna())
    return at, task.rows.label.values[at].astype(int)


def worth(run, task, margins, c):
    "AUC of a teacher's own defects (by true sub-defect: the cluster's most frequent one) against acceptable ads, and its lift at 2 % of them."
    at, y = judged(task)
    ads = read_table(run/'13_curate/ads.parquet').set_index('ad_id').loc[task.rows.ad_id.values]
    kinds = ads.sub_defect.values[np.flatnonzero((task.member[:, task.names.index(c)] > .5) & (task.rows.split == 'train').values)]
    kind = pd.Series(kinds[~pd.isna(kinds)]).mode()
    own = np.zeros(len(at), bool) if kind.empty else (ads.sub_defect.values[at] == kind.iloc[0])
    x, good = margins.astype(float), y == 1
    auc = np.nan if not own.any() else ((x[own][:, None] < x[good]) + .5*(x[own][:, None] == x[good])).mean()
    return dict(cluster=c, own=int(own.sum()), auc=auc, lift=float(lift(npv_at(x, y, .02, 'acceptable'), npv_floor((y == 0).mean(), .02, 'acceptable'))))


def heads_of(run, cfg, task, columns):
    "Heads trained in one pass on the run's features; the model, its reader and what it cost."
    began = time.process_time()
    mean, std = _statistics(read := source(run, 'pooled', CPU), task)
    read, names = standardised(read, mean, std), [*task.names, -1]
    model = build_heads([names[c] for c in columns], len(mean), cfg, CPU)
    with one_thread(): train_margins(model, read, task, columns, cfg, ('specialists', cfg.seed), None, CPU, True)
    return model, read, time.process_time() - began


def part_quality(run, cache, clusters):
    "Heads and networks, teacher by teacher, for the clusters whose network is trained."
    copy = copy_of(run, cache, 'cnn')
    task, (at, _) = load_task(copy), judged(load_task(copy))
    model, read, cpu = heads_of(copy, Specialists(device='cpu'), task, list(range(len(task.names)+1)))
    with one_thread(): heads = all_margins(model, read, at, np.zeros(len(at), int)).numpy()
    for i, c in enumerate(task.names):
        told = cache/f'cnn_{c:03d}.json'
        yield worth(copy, task, heads[:, i], c) | dict(teacher='head', cpu=cpu/(len(task.names)+1))
        if told.exists():
            own = read_tensors(copy/f'33_specialists/teachers/{c:03d}/margins.safetensors')['margins'][at, 0]
            yield worth(copy, task, own, c) | dict(teacher='network', cpu=json.loads(told.read_text())['cpu'])


def part_students(run, cache, clusters):
    "Students of the row ft_sd, each with the clusters that its own teachers' figures keep; the last row is the paired difference."
    found, labels = {}, read_table(run/'13_curate/ads.parquet').set_index('ad_id').label
    for name, cfg in dict(head=Specialists(device='cpu'), network=CNN).items():
        copy, configs = copy_of(run, cache, 'cnn' if name == 'network' else 'heads'), configure() | dict(specialists=cfg, distill=Distill(rows=('ft_sd',), device='cpu'))
        for stage in ('specialists', 'select', 'curriculum', 'unlabelled', 'distill'): told = load_stage(stage)[1](configs[stage], copy)
        matrices, y = wide(gather(copy), labels, 'test')
        found[name] = matrices['ft_sd']
        low, high = interval(bootstrap_npv(found[name], y, .05).mean(1))
        kept = read_table(copy/'34_select/competence.parquet')
        yield dict(teacher=name, kept=int(kept.kept.sum()), clusters=len(kept), seeds=found[name].shape[1], value=npv_at(found[name], y, .05).mean(), low=low, high=high)
    yield dict(teacher='head - network', seeds=found['head'].shape[1]) | dict(zip(('value', 'low', 'high'), paired_gain(found['head'], found['network'], y, .05)))


def part_balance(run, cache, clusters, seeds=3):
    "What is done about few defects, in heads; lift apart for clusters of mostly real and of mostly wrong verdicts."
    copy = copy_of(run, cache, 'cnn')
    task, (at, y) = load_task(copy), judged(load_task(copy))
    noise = read_table(copy/'13_curate/ads.parquet').set_index('ad_id').is_noise
    wrong = read_table(copy/'32_clusters/partition.parquet').assign(wrong=lambda t: noise[t.ad_id].astype(float).values).groupby('cluster').wrong.mean()
    for balance, seed in [(b, s) for b in BALANCE for s in range(seeds)]:
        model, read, cpu = heads_of(copy, Specialists(balance=balance, seed=seed, device='cpu'), task, list(range(len(task.names)+1)))
        with one_thread(): margins = all_margins(model, read, at, np.zeros(len(at), int)).numpy()
        rows = pd.DataFrame([worth(copy, task, margins[:, i], c) for i, c in enumerate(task.names)]).assign(wrong=wrong[task.names].values > .5)
        yield dict(balance=balance, seed=seed, cpu=cpu, auc=rows.auc[~rows.wrong].mean(), lift_real=rows.lift[~rows.wrong].mean(), lift_wrong=rows.lift[rows.wrong].mean())


def made_up(k, d=1280, bad=2500, good=15000, judging=1120):
    "A task of the paper's size with made-up features: k kinds of defect, each moved its own way."
    rng = np.random.default_rng(0)
    kind = np.r_[np.arange(bad) % k, np.full(good, k), rng.integers(0, k, judging//7), np.full(judging - judging//7, k)]
    split = np.repeat(['train', 'teacher_val'], [bad+good, judging])
    x = torch.from_numpy(rng.standard_normal((len(kind), d), 'float32'))
    x[:, :128] += torch.from_numpy(np.r_[rng.standard_normal((k, 128)), np.zeros((1, 128))].astype('float32')[kind])
    rows = pd.DataFrame(dict(ad_id=[str(i) for i in range(len(kind))], label=(kind == k).astype(int), split=split, views=1))
    return Task(rows, list(range(k)), np.c_[np.eye(k+1, dtype='float32')[kind][:, :k], kind < k]), x


def cost_of(k, hidden, threads, epochs):
    "CPU and wall seconds of one wide pass, and the process's largest memory; run in a process of its own."
    torch.set_num_threads(threads)
    task, x = made_up(k)
    cfg = Specialists(hidden=hidden, epochs=epochs, device='cpu')
    model = build_heads([*task.names, -1], x.shape[1], cfg, CPU)
    before, cpu, wall = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time(), time.time()
    train_margins(model, lambda which, view: x[which], task, list(range(k+1)), cfg, ('cost',), None, CPU, True)
    return dict(k=k, hidden=hidden, threads=threads, epochs=epochs, cpu=time.process_time() - cpu, wall=time.time() - wall, features_mb=before/1024, peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/1024)


def part_cost(run, cache, clusters, epochs=2):
    "Two epochs timed; the page multiplies. Epochs are alike."
    for k, hidden, threads in [(k, h, t) for k in (100, 500) for h in (0, 32) for t in (1, 2)]:
        code = f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); from measure_specialists import cost_of; import json; print(json.dumps(cost_of({k}, {hidden}, {threads}, {epochs})))'
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=os.environ | dict(OMP_NUM_THREADS=str(threads)), check=True)
        yield json.loads(done.stdout.splitlines()[-1])


def part_peers(run, cache, clusters, k=100, sample=3):
    "A loop over scikit-learn's models, `sample` of k trained and timed, beside the same number of epochs of heads."
    from sklearn.linear_model import LogisticRegression
    from sklearn.neural_network import MLPClassifier
    task, x = made_up(k)
    train, kind = (task.rows.split == 'train').values, task.member
    for name, make in dict(LogisticRegression=lambda: LogisticRegression(max_iter=100, class_weight='balanced'), MLPClassifier=lambda: MLPClassifier(32, max_iter=20, batch_size=256)).items():
        for c in range(sample):
            part = train & ((task.rows.label == 1).values | (kind[:, c] > 0))
            began = time.process_time()
            make().fit(x[part].numpy(), task.rows.label.values[part])
            yield dict(peer=name, cluster=c, k=k, cpu=time.process_time() - began)
    for hidden in (0, 32): yield dict(peer=f'heads, hidden {hidden}', cluster=-1, k=k, cpu=10*cost_of(k, hidden, 1, 2)['cpu'])


def part_views(run, cache, clusters, n=128):
    "Images a CPU second: transforming them anew, and a training step of the network that reads them."
    rows, cfg, images = read_table(run/'25_features/rows.parquet'), read_json(run/'25_features/manifest.json')['spec']['config'], np.load(run/'13_curate/images.npy', mmap_mode='r')
    which = np.flatnonzero(rows['views'] > 1)[:n]
    def rate(f):
        f()
        began = time.process_time()
        f()
        return n/(time.process_time() - began)
    pixels = view_pixels(images, rows, which, np.ones(n, int), cfg['seed'], cfg['ops'], cfg['magnitude'])
    yield dict(what='transformed view', px=pixels.shape[-1], rate=rate(lambda: view_pixels(images, rows, which, np.ones(n, int), cfg['seed'], cfg['ops'], cfg['magnitude'])))
    yield dict(what='clean view', px=pixels.shape[-1], rate=rate(lambda: view_pixels(images, rows, which, np.zeros(n, int), cfg['seed'], cfg['ops'], cfg['magnitude'])))
    for name, pretrained in ((PACKAGED, True), ('resnet50', False)):
        model = PixelTeacher(name, pretrained, .1).train()
        x = pixels.float()/255
        yield dict(what=f'training {name}', px=pixels.shape[-1], rate=rate(lambda: [model(part).sum().backward() for part in x.split(32)]))


PARTS = dict(cnn=part_cnn, quality=part_quality, students=part_students, cost=part_cost, peers=part_peers, balance=part_balance, views=part_views)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run')
    parser.add_argument('parts', nargs='*', help='some of '+' '.join(PARTS))
    parser.add_argument('--clusters', nargs='*', type=int, default=[])
    parser.add_argument('--cache', default=str(Path(tempfile.gettempdir())/'specialists_measured'))
    args = parser.parse_args()
    run, cache = open_run(args.run), Path(args.cache)
    cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for part in args.parts or PARTS:
        rows = []
        for row in PARTS[part](run, cache, args.clusters) or ():
            rows.append(row)
            pd.DataFrame(rows).to_csv(OUT/f'specialists_{part}.csv', index=False) # as they come, so that a stop loses nothing
            print(part, row, flush=True)


if __name__ == '__main__': main()
