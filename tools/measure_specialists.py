"""Measure specialists: heads on a shared trunk against networks of their own; CPU seconds of one thread, ratios within one run.

    python tools/measure_specialists.py RUN              # all of it, into nbs/benchmarks/results/specialists_*.csv; RUN is a finished run of the built-in data and is only read
    python tools/measure_specialists.py RUN quality cost # some of its parts
    python tools/measure_specialists.py RUN cnn --clusters 0 1 2   # some of the networks: slow, each is kept when it is done
    python tools/measure_specialists.py RUN --cache FOLDER         # where copies and trained networks are kept between calls

cnn       a pretrained EfficientNet-Lite0 for each of the run's clusters and one for the whole task (--clusters -1), trained on pixels
longer    for every fourth cluster by size, a network of four times as many steps
quality   the run's heads and those networks: cost, AUC of each cluster's own defects, lift
students  what students distilled from either are worth on test, three model seeds
hundred   the run clustered anew with K = 100: a hundred heads, and networks for every tenth cluster by size
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
from dataclasses import replace
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
from subtask_kit.metrics import bootstrap_npv, interval, lift, mean_over_seeds, npv_at, npv_floor, paired_gain
from subtask_kit.pipeline import configure, load_stage
from subtask_kit.power import level_for
from subtask_kit.specialists import (BALANCE, PixelTeacher, Specialists, Task, _statistics, all_margins, build_heads, folder, load_task, margin_table, standardised,
                                     teacher_key, train_margins, train_teacher, write_routing)

OUT = Path(__file__).parents[1]/'nbs/benchmarks/results'
CPU = torch.device('cpu')
# What somebody would take who has no GPU: a small pretrained network, fine-tuned. Untuned.
CNN = Specialists(mode='independent', model=PACKAGED, balance='sample', ratio=5., batch=32, epochs=6, lr=2e-3, lr_encoder=1e-3, device='cpu')
HEADS = Specialists(device='cpu')
STAGES = '13_curate', '25_features', '31_selflabel', '32_clusters'


def copy_of(run, cache, name):
    "A copy of what the stages up to the clusters wrote, to work in."
    copy = cache/name
    if not copy.exists():
        for stage in STAGES: shutil.copytree(run/stage, cache/f'{name}.tmp'/stage, dirs_exist_ok=True)
        (cache/f'{name}.tmp').rename(copy)
    (copy/'33_specialists').mkdir(exist_ok=True)
    copy = open_run(copy)
    write_routing(copy, copy/'33_specialists')
    return copy


def train_networks(copy, cfg, clusters):
    "Train the networks that are missing; beside each, a JSON file says what it cost."
    task = load_task(copy)
    for c in clusters:
        told = copy/f'cost_{folder(c)}.json'
        if told.exists(): continue
        began = time.process_time()
        with one_thread(): train_teacher(copy, vars(cfg), c, teacher_key(copy, cfg, task, [*task.names, -1].index(c)))
        told.write_text(json.dumps(dict(cpu=time.process_time() - began)))
        print(copy.path.name, c, round(time.process_time() - began), flush=True)


def part_cnn(run, cache, clusters):
    "Train networks for the asked clusters, or for all and for the whole task."
    copy = copy_of(run, cache, 'cnn')
    train_networks(copy, CNN, clusters or [*load_task(copy).names, -1])


def every(run, n, first):
    "Every n-th cluster in the order of size, beginning with number `first` of the largest; equal sizes in the order of their numbers."
    return read_table(run/'32_clusters/clusters.parquet').sort_values(['size', 'cluster'], ascending=[False, True]).cluster.tolist()[first-1::n]


def steps(times):
    "The network's settings for `times` as many steps: with more acceptable ads for each defect."
    return replace(CNN, ratio=(1+CNN.ratio)*times - 1)


def part_longer(run, cache, clusters):
    "Are the networks only trained too briefly? A few of them with four times as many steps."
    copy = copy_of(run, cache, 'longer')
    train_networks(copy, steps(4), clusters or every(copy, 4, 2))


def judged(task):
    "Audited ads of teacher_test: positions and verdicts."
    at = np.flatnonzero((task.rows.split == 'teacher_test') & task.rows.label.notna())
    return at, task.rows.label.values[at].astype(int)


def worth(run, task, margins, c):
    "AUC of a teacher's own defects (the cluster's most frequent true sub-defect; none where most of its verdicts are wrong) against acceptable ads, and its lift at the kit's level."
    (at, y), members = judged(task), (task.member[:, task.names.index(c)] > .5) & (task.rows.split == 'train').values
    kinds = read_table(run/'13_curate/ads.parquet').set_index('ad_id').sub_defect.fillna('').loc[task.rows.ad_id.values].values
    kind, level = pd.Series(kinds[members]).mode().iloc[0], level_for(len(task.names), int((y == 1).sum()))
    own, x = (y == 0) & (kinds[at] == kind) & (kind != ''), margins.astype(float)
    auc = ((x[own][:, None] < x[y == 1]) + .5*(x[own][:, None] == x[y == 1])).mean() if own.any() else np.nan
    return dict(cluster=c, size=int(members.sum()), own=int(own.sum()), auc=auc, level=level, lift=float(lift(npv_at(x, y, level, 'acceptable'), npv_floor((y == 0).mean(), level, 'acceptable'))))


def heads_of(run, cfg, task):
    "Margins of all heads on the clean views, trained in one pass on the run's features; and CPU seconds for training them and scoring all views."
    began = time.process_time()
    mean, std = _statistics(read := source(run, 'pooled', CPU), task)
    read, model = standardised(read, mean, std), build_heads([*task.names, -1], len(mean), cfg, CPU)
    with one_thread():
        train_margins(model, read, task, list(range(len(task.names)+1)), cfg, ('specialists', cfg.seed), None, CPU, True)
        table = margin_table(model, read, task.rows, len(task.names)+1, cfg.batch)
    return table[:, 0], time.process_time() - began


def features_cost(run, cache):
    "CPU seconds of one thread for the features of all views."
    shutil.rmtree(cache/'features', ignore_errors=True)
    shutil.copytree(run/'13_curate', cache/'features/13_curate')
    cfg, stage = load_stage('features')
    began = time.process_time()
    with one_thread(): stage(cfg(device='cpu'), open_run(cache/'features'))
    return time.process_time() - began


def compared(copy, clusters, networks):
    "Heads, teacher by teacher, and of each kind of `networks` (name -> run) those that are trained."
    task = load_task(copy)
    at, _ = judged(task)
    heads, cpu = heads_of(copy, HEADS, task)
    for c in clusters or task.names:
        yield worth(copy, task, heads[at, task.names.index(c)], c) | dict(teacher='head', cpu=cpu/(len(task.names)+1))
        for name, trained in networks.items():
            if not (told := trained/f'cost_{folder(c)}.json').exists(): continue
            own = read_tensors(trained/f'33_specialists/teachers/{folder(c)}/margins.safetensors')['margins'][at, 0]
            yield worth(copy, task, own, c) | dict(teacher=name, cpu=json.loads(told.read_text())['cpu'])


def part_quality(run, cache, clusters):
    "Heads and networks, teacher by teacher; and what the features cost that all heads share."
    copy = copy_of(run, cache, 'cnn')
    yield from compared(copy, [], {'network': copy, 'network, 4 x steps': copy_of(run, cache, 'longer')})
    yield dict(cluster=-1, teacher='features', cpu=features_cost(run, cache))


def part_students(run, cache, clusters, rows=('ft', 'ft_sd', 'at_sd')):
    "Students of the clusters that their own teachers' figures keep, without (ft) and with those teachers (ft_sd), and of all clusters (at_sd); then the paired differences."
    found, labels = {}, read_table(run/'13_curate/ads.parquet').set_index('ad_id').label
    for name, cfg in dict(head=HEADS, network=CNN).items():
        copy, configs = copy_of(run, cache, 'cnn' if name == 'network' else 'heads'), configure() | dict(specialists=cfg, distill=Distill(rows=rows, device='cpu'))
        for stage in ('specialists', 'select', 'curriculum', 'unlabelled', 'distill'): load_stage(stage)[1](configs[stage], copy)
        matrices, y = wide(gather(copy), labels, 'test')
        kept = read_table(copy/'34_select/competence.parquet').kept
        for row in rows:
            x = found[name, row] = matrices[row]
            low, high = interval(mean_over_seeds(bootstrap_npv(x, y, .05)))
            values = npv_at(x, y, .05)
            yield dict(teacher=name, row=row, taught=len(kept) if row == 'at_sd' else int(kept.sum()), clusters=len(kept), seeds=x.shape[1], value=values.mean(), sd=values.std(ddof=1), low=low, high=high)
    for row in rows: yield dict(teacher='head - network', row=row, seeds=x.shape[1]) | dict(zip(('value', 'low', 'high'), paired_gain(found['head', row], found['network', row], y, .05)))


def with_hundred(run, cache):
    "The run clustered anew with K = 100."
    many, configs = open_run(cache/'hundred', create=True), configure('tiny', dict(selflabel_k=100, selflabel_device='cpu', clusters_map='pca'))
    for stage in STAGES[:2]: shutil.copytree(run/stage, many/stage, dirs_exist_ok=True)
    for stage in ('selflabel', 'clusters'): load_stage(stage)[1](configs[stage], many)
    return many


def part_hundred(run, cache, clusters):
    "K = 100: all heads in one pass, networks with the settings of K = 16 and with as many steps, for ten clusters."
    many = with_hundred(run, cache)
    copies, ten = {'network': copy_of(many, cache, 'hundred_cnn'), 'network, more steps': copy_of(many, cache, 'hundred_longer')}, every(many, 10, 5)
    # A cluster of a hundred has a sixth of the defects of one of sixteen.
    for copy, times in zip(copies.values(), (1, 100/16)): train_networks(copy, steps(times), ten)
    yield from compared(copies['network'], ten, copies)


def part_balance(run, cache, clusters, seeds=3):
    "What is done about few defects, in heads; lift apart for clusters of mostly real and of mostly wrong verdicts."
    copy = copy_of(run, cache, 'cnn')
    task, (at, _) = load_task(copy), judged(load_task(copy))
    noise = read_table(copy/'13_curate/ads.parquet').set_index('ad_id').is_noise
    wrong = read_table(copy/'32_clusters/partition.parquet').assign(wrong=lambda t: noise[t.ad_id].astype(float).values).groupby('cluster').wrong.mean()
    for balance, seed in [(b, s) for b in BALANCE for s in range(seeds)]:
        margins, cpu = heads_of(copy, replace(HEADS, balance=balance, seed=seed), task)
        rows = pd.DataFrame([worth(copy, task, margins[at, i], c) for i, c in enumerate(task.names)]).assign(wrong=wrong[task.names].values > .5)
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
    model = PixelTeacher(PACKAGED, True, .1)
    yield dict(what=f'scoring with {PACKAGED}', px=pixels.shape[-1], rate=rate(lambda: all_margins(model, lambda which, view: x[which], np.arange(n), np.zeros(n, int), 32)))


PARTS = dict(cnn=part_cnn, longer=part_longer, quality=part_quality, students=part_students, hundred=part_hundred, cost=part_cost, peers=part_peers, balance=part_balance, views=part_views)


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
