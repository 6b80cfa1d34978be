"""Why a strict order of sub-tasks loses to interleaving: the same students, interleaved and in blocks, one setting changed at a time.

    python tools/measure_curricula.py RUN RUN RUN           # all of it, into nbs/benchmarks/results/curricula_*.csv; the runs are finished, of data seeds 0, 1, 2 of one world, and are only read
    python tools/measure_curricula.py RUN RUN RUN paces     # some of its parts

paces       the default settings: every pace, CC and ACC, and `scattered`, the batches of a strict order in a drawn one
settings    interleaved and strict CC at other schedules, learning rates, batch sizes and numbers of epochs, and with all acceptable ads for each sub-task
forgetting  what each block does to the student's ranking of every sub-task's defects on student_val, block by block
gradients   how far the gradients of a strict order's batches scatter, and those of interleaved ones, at the same weights

A student of a data seed, a model seed and a setting is one unit: its rows are written when it is done, and another call goes on with those that are missing.
"""
import argparse
import os
import time
from functools import lru_cache
from itertools import groupby, product
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # read when numpy is imported
import numpy as np
import pandas as pd
import torch

from subtask_kit.artifacts import open_run, read_table, read_tensors
from subtask_kit.core import rng_for, seed_for
from subtask_kit.curriculum import batches
from subtask_kit.device import one_thread
from subtask_kit.distill import ROWS, Distill, build_student, epoch_batches, load_lessons, score, student_loss, validation
from subtask_kit.losses import mixed
from subtask_kit.metrics import auc, npv_at
from subtask_kit.train import fit

OUT = Path(__file__).parents[1]/'nbs/benchmarks/results'
CPU = torch.device('cpu')
DEFAULT = dict(pace='strict', order='cc', acceptable='shared', batch=64, epochs=12, lr=2e-3, schedule='one_cycle')
INTERLEAVED = DEFAULT | dict(pace='mixed', order='interleaved')
PACES = [INTERLEAVED, DEFAULT, *(DEFAULT | dict(pace=p) for p in ('scattered', 'shuffled')), DEFAULT | dict(order='acc'), *(DEFAULT | dict(pace=p) for p in ('paced', 'rehearsed'))]
# A repeated epoch is about as long as ten to sixteen shared ones, so that one is all there is to compare with.
CHANGES = [dict(schedule='constant'), dict(batch=256), dict(batch=16), dict(lr=2e-3/3), dict(epochs=4), dict(acceptable='repeated', epochs=1), dict(lr=6e-3), dict(epochs=36)]
WATCHED = [DEFAULT, INTERLEAVED, DEFAULT | dict(schedule='constant')]


# One student

def config(setting):
    "The kit's defaults with what a setting changes."
    return Distill(device='cpu', batch=setting['batch'], epochs=setting['epochs'], lr=setting['lr'], lr_encoder=setting['lr'], schedule=setting['schedule'])


def lessons_of(run, setting):
    "What the run's kept teachers teach, in the setting's order."
    return load_lessons(run, ROWS['ft_sd' if setting['order'] == 'interleaved' else f'ft_sd_{setting["order"]}'])


def fed(lessons, setting, seed, epoch):
    "The batches of one epoch; `scattered`: those of a strict order, one after another as a draw says."
    pace = 'strict' if setting['pace'] == 'scattered' else setting['pace']
    found = epoch_batches(lessons, setting['batch'], seed, epoch, setting['acceptable'], pace, setting['epochs'])
    if setting['pace'] != 'scattered': return found
    return [found[i] for i in rng_for('curricula', 'scattered', seed, epoch).permutation(len(found))]


def untrained(run, cfg, lessons, seed):
    "A student, its reader and its loss, as the stage `distill` begins."
    torch.manual_seed(seed_for('distill', seed, 'weights'))
    model, read = build_student(cfg, run, 2)
    return model, read, student_loss(cfg, ROWS['ft_sd'], read, torch.from_numpy(lessons.verdict), None if lessons.weight is None else torch.from_numpy(lessons.weight))[0]


def adding(loss, sums, wanted):
    "The loss, which adds up the weights that it meets while `wanted()`."
    def added(model, batch):
        if wanted():
            for k, v in model.state_dict().items(): sums.setdefault(k, []).append(v.clone())
        return loss(model, batch)
    return added


def worth(model, read, rows):
    "NPV and AUC of the prediction on student_val and test, and the AUC of each head on test."
    found = {}
    for split in ('student_val', 'test'):
        at = np.flatnonzero((rows.split == split) & rows.label.notna())
        y, heads = rows.label.values[at].astype(int), score(model, read, at)
        p = {name: logits.softmax(1)[:, 1].double().numpy() for name, logits in dict(both=mixed(*heads), cls=heads[0], dist=heads[1]).items()}
        found |= {f'{split}_npv5': npv_at(p['both'], y, .05), f'{split}_npv1': npv_at(p['both'], y, .01)} | {f'{split}_auc' + ('' if name == 'both' else f'_{name}'): auc(v, y) for name, v in p.items() if split == 'test' or name == 'both'}
    return found


def taught(run, setting, seed):
    "Train one student; a row for the weights of its best epoch, of its last, and averaged over the steps of the last."
    began, cfg, lessons = time.process_time(), config(setting), lessons_of(run, setting)
    model, read, loss = untrained(run, cfg, lessons, seed)
    sums, last, now = {}, {}, {}
    def feed(epoch):
        now.update(epoch=epoch, steps=now.get('steps', 0) + len(b := fed(lessons, setting, seed, epoch)))
        return b
    history = fit(model, feed, adding(loss, sums, lambda: now['epoch'] == cfg.epochs - 1), validation(lessons.rows, read, CPU), cfg.epochs, cfg.lr, cfg.lr_encoder, cfg.weight_decay, cfg.clip,
                  schedule=cfg.schedule, seed=('distill', seed), device=CPU, after_epoch=lambda row: last.update({k: v.clone() for k, v in model.state_dict().items()}))
    best = min(history, key=lambda row: row['val_loss'])['epoch']
    states, rows = dict(best={k: v.clone() for k, v in model.state_dict().items()}, last=last, averaged={k: torch.stack(v).float().mean(0) for k, v in sums.items()}), []
    for weights, state in states.items():
        model.load_state_dict(state)
        found = rows[0] if weights == 'last' and best == cfg.epochs - 1 else worth(model, read, lessons.rows)
        rows.append(found | dict(weights=weights, best=best, steps=now['steps']))
    return [row | dict(cpu=round(time.process_time() - began, 1)) for row in rows]


# Block by block

def blocks(lessons, setting, seed, epoch):
    "The batches of an epoch in as many groups as there are sub-tasks: its blocks, or equal parts of an interleaved epoch."
    found, n = fed(lessons, setting, seed, epoch), len(lessons.order)
    if setting['pace'] == 'mixed': return [found[part[0]:part[-1]+1] for part in np.array_split(np.arange(len(found)), n)]
    tasks = [t[0] for _, t in batches(lessons.order, lessons.cluster, lessons.defective, lessons.acceptable, setting['batch'], seed, epoch, setting['acceptable'], setting['pace'], setting['epochs'])]
    return [[found[i] for i, _ in group] for _, group in groupby(enumerate(tasks), key=lambda it: it[1])]


def audience(run, rows, clusters, good=225, least=5):
    "Defects of student_val by the cluster that the latent discriminator finds most likely, where there are enough, and acceptable ads beside them: positions."
    routed, names = read_tensors(run/'33_specialists/routing.safetensors'), read_table(run/'33_specialists/clusters.parquet').sort_values('position').cluster.values
    nearest = pd.Series(names[routed['probability'].argmax(1)], routed['rows'])
    val = (rows.split == 'student_val') & rows.label.notna()
    bad, fine = np.flatnonzero(val & (rows.label == 0)), np.flatnonzero(val & (rows.label == 1))
    of = {c: bad[nearest[bad].values == c] for c in clusters}
    return {c: at for c, at in of.items() if len(at) >= least}, fine[rng_for('curricula', 'audience').permutation(len(fine))[:good]]


def watched(run, setting, seed, when=(0, 5, 10, 11)):
    "Train one student and look at it after every block of some epochs and of those after them: a row for every sub-task and epoch, for the placebo of an interleaved epoch as well."
    cfg, lessons, order = config(setting), lessons_of(run, setting), lessons_of(run, DEFAULT).order
    model, read, loss = untrained(run, cfg, lessons, seed)
    defects, fine = audience(run, lessons.rows, order)
    at, seen, n = np.concatenate([*defects.values(), fine]), [], len(order)
    ends = np.cumsum([len(v) for v in defects.values()])
    def asked(model):
        logits = mixed(*score(model, read, at))
        *each, ok = np.split((logits[:, 1] - logits[:, 0]).double().numpy(), ends)
        return [(auc(np.r_[x, ok], np.r_[np.zeros(len(x)), np.ones(len(ok))]), ok.mean() - x.mean()) for x in each]
    def look(model):
        needed = {len(seen)//n, (len(seen) - 1)//n, len(seen)//n - 1} & {*when} # looks are counted from the one before training
        seen.append(asked(model) if needed else [(np.nan, np.nan)]*len(defects))
        return torch.tensor(-float(len(seen)))
    grouped = lru_cache(1)(lambda epoch: blocks(lessons, setting, seed, epoch))
    with torch.no_grad(): look(model)
    fit(model, lambda b: grouped(b//n)[b%n], loss, look, cfg.epochs*n, cfg.lr, cfg.lr_encoder, cfg.weight_decay, cfg.clip, schedule=cfg.schedule, seed=('distill', seed), device=CPU)
    seen = np.array(seen)
    seen = np.concatenate([seen, seen[:, :, 1:] - seen[:, :, 1:].mean(1, keepdims=True)], 2)
    learnt = dict(zip(defects, on_train(model, read, lessons, defects)))
    return [dict(epoch=epoch, cluster=c, position=order.index(c), defects=len(defects[c])) | moments(seen[:, i], epoch*n + order.index(c), (epoch+1)*n, n) | (learnt[c] if epoch == cfg.epochs - 1 else {}) for epoch in when for i, c in enumerate(defects)]


def on_train(model, read, lessons, clusters):
    "AUC and gap of each cluster's train defects, those it was taught, against all acceptable train ads."
    at = np.r_[lessons.defective, lessons.acceptable]
    logits = mixed(*score(model, read, at))
    margin = (logits[:, 1] - logits[:, 0]).double().numpy()
    ok, bad = margin[len(lessons.defective):], {c: margin[:len(lessons.defective)][lessons.cluster == c] for c in clusters}
    return [dict(train_auc=round(auc(np.r_[x, ok], np.r_[np.zeros(len(x)), np.ones(len(ok))]), 4), train_gap=round(float(ok.mean() - x.mean()), 4)) for x in bad.values()]


def moments(values, own, end, n):
    "AUC, gap, and gap less the mean gap of the clusters at the same time: before a cluster's own block, after it, half an epoch later, at the end of the epoch, and just before its next block; `values` begins before the first block."
    when = dict(before=own, own=own+1, half=own+1+n//2, end=end, next=own+n)
    return {f'{what}_{name}': round(float(values[i, j]), 4) if i < len(values) else np.nan for j, what in enumerate(('auc', 'gap', 'own_gap')) for name, i in when.items()}


# Gradients

def scatter(model, loss, groups):
    "Of the gradients of an epoch's batches, without dropout: how they scatter about their mean (trace of the covariance over the squared mean), their length, and how a batch's agrees with that of the next."
    parameters = [p for p in model.parameters() if p.requires_grad]
    g = torch.stack([torch.cat([v.flatten() for v in torch.autograd.grad(loss(model, b)[0], parameters, allow_unused=True, materialize_grads=True)]) for b in groups])
    norm, mean = g.norm(dim=1), g.mean(0)
    return dict(batches=len(g), ads=np.mean([len(b[0]) for b in groups]), noise=((g - mean).square().sum()/(len(g) - 1)/mean.square().sum()).item(), norm=norm.mean().item(), mean_norm=mean.norm().item(), clipped=(norm > 2.).float().mean().item(),
                next_cosine=torch.nn.functional.cosine_similarity(g[:-1], g[1:]).mean().item(), against=((g @ g.mean(0)) < 0).float().mean().item())


def graded(run, setting, seed, when=(0, 2, 5, 11)):
    "Train one student; after some epochs a row for the batches of a strict order and one for interleaved ones."
    cfg, lessons = config(setting), lessons_of(run, setting)
    (model, read, loss), rows = untrained(run, cfg, lessons, seed), []
    groups = {base['pace']: fed(lessons_of(run, base), base, seed, cfg.epochs) for base in (DEFAULT, INTERLEAVED)}
    def after(row):
        if row['epoch'] not in when: return
        model.eval()
        rows.extend(dict(epoch=row['epoch'], batches_of=name) | scatter(model, loss, g) for name, g in groups.items())
    fit(model, lambda epoch: fed(lessons, setting, seed, epoch), loss, None, cfg.epochs, cfg.lr, cfg.lr_encoder, cfg.weight_decay, cfg.clip, schedule=cfg.schedule, seed=('distill', seed), device=CPU, after_epoch=after)
    return rows


# Parts: (setting, model seed) in the order of importance, and what is done for each

def part_paces(): return [(s, 0) for s in PACES] + [(s, 1) for s in PACES[:4]], taught
def part_forgetting(): return [(s, 0) for s in WATCHED], watched
def part_gradients(): return [(INTERLEAVED, 0)], graded
def part_settings(): return [(base | change, seed) for seed in range(2) for change in CHANGES for base in (INTERLEAVED, DEFAULT)], taught

PARTS = dict(paces=part_paces, forgetting=part_forgetting, gradients=part_gradients, settings=part_settings)


def measure(part, runs):
    "Work through a part; each unit's rows are appended when it is done."
    file, (units, work) = OUT/f'curricula_{part}.csv', PARTS[part]()
    keys = ['data_seed', 'model_seed', *DEFAULT]
    done = set(pd.read_csv(file)[keys].itertuples(index=False, name=None)) if file.exists() else set()
    for (setting, seed), (data_seed, run) in product(units, enumerate(runs)):
        key = dict(data_seed=data_seed, model_seed=seed) | setting
        if tuple(key.values()) in done: continue
        with one_thread(): rows = work(run, setting, seed)
        pd.DataFrame([key | row for row in rows]).to_csv(file, mode='a', header=not file.exists(), index=False)
        print(part, key, {k: v for k, v in rows[0].items() if k in ('test_npv5', 'test_auc', 'cpu')}, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('given', nargs='+', metavar='RUN|PART', help='finished runs, in the order of their data seeds; then some of '+' '.join(PARTS))
    args = parser.parse_args()
    runs, parts = [open_run(g) for g in args.given if g not in PARTS], [g for g in args.given if g in PARTS]
    for part in parts or PARTS: measure(part, runs)


if __name__ == '__main__': main()
