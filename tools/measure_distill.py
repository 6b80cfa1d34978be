"""Measure how quick distillation from cached targets is, beside the bare student and beside teachers that run in the loop; CPU seconds of one thread, ratios within one run.

    python tools/measure_distill.py RUN               # all of it, into nbs/benchmarks/results/distill_*.csv; RUN is a finished run and is only read
    python tools/measure_distill.py RUN pixels curve  # some of its parts

tokens  the kit's small student over a run's cached tokens, with the run's cached targets and without
pixels  DeiT-Ti/16 on pixels: bare, with cached targets, with one and with eight teachers in the loop, by timm's TokenDistillationTask and by hand
base    the paper's sizes of network: DeiT-B/16 and ResNet-50
curve   losses of timm's task and of eq. 8, step by step, from the same weights, batches and teacher
teacher what a teacher's forward pass costs, which a store of targets pays once
extra   what cached targets add to an epoch of the small student, taken apart

Every way goes through the kit's own training loop, so that ways differ in what is compared only. Weights are random: a rate does not depend on them.
"""
import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # read when numpy is imported
import numpy as np
import pandas as pd
import timm
import torch
from timm.task import TokenDistillationTask
from torch import nn

from subtask_kit.artifacts import open_run
from subtask_kit.backbones import TimmStudent
from subtask_kit.distill import ROWS, Distill, build_student, epoch_batches, load_lessons
from subtask_kit.losses import eq8
from subtask_kit.train import fit

OUT = Path(__file__).parents[1]/'nbs/benchmarks/results'
CPU = torch.device('cpu')
TINY, BASE = 'deit_tiny_distilled_patch16_224', 'deit_base_distilled_patch16_224'
K, VIEWS, PX, SMOOTHING = 8, 2, 64, .05


def fitted(model, batches, loss, lr=1e-4):
    "CPU seconds from the making of an epoch's batches to its last step."
    stamps = []
    def begin(epoch):
        stamps.append(time.process_time())
        return batches(epoch)
    def end(model):
        stamps.append(time.process_time())
        return torch.tensor(0.)
    fit(model, begin, loss, end, 1, lr, device=CPU)
    return stamps[1] - stamps[0]


def alternated(ways, rounds):
    "Train each way (name -> (model, batches, loss, images an epoch)) for an epoch, in turn; a first round warms up and is not told."
    names = list(ways)
    for r in range(-1, rounds):
        for name in names[max(r, 0) % len(names):] + names[:max(r, 0) % len(names)]:
            model, batches, loss, images = ways[name]
            cpu = fitted(model, batches, loss)
            if r >= 0: yield dict(way=name, round=r, images=images, cpu=cpu)


def teacher(name, seed=0):
    torch.manual_seed(seed)
    return timm.create_model(name, num_classes=2).eval().requires_grad_(False)


class Mean(nn.Module):
    "Teachers that all answer, averaged."
    def __init__(self, teachers):
        super().__init__()
        self.teachers = nn.ModuleList(teachers)
    def forward(self, x): return torch.stack([t(x) for t in self.teachers]).mean(0)


def task_of(name, teachers, px, state=None):
    "timm's task with teachers in the loop: T = 1, both weights 1, the kit's smoothing."
    model = timm.create_model(name, num_classes=2, img_size=px)
    if state is not None: model.load_state_dict(state)
    return TokenDistillationTask(model, teachers, nn.CrossEntropyLoss(label_smoothing=SMOOTHING), verbose=False)


def as_timm(student):
    "The weights of a `TimmStudent` under timm's names."
    names = dict(cls_head='head', dist_head='head_dist')
    return {k.removeprefix('net.') if k.startswith('net.') else f'{names[k.split(".")[0]]}.{k.split(".")[1]}': v.clone() for k, v in student.state_dict().items()}


def made_up(steps, batch, px):
    "Pictures as a network wants them, verdicts, the teacher of each, and its cached margin in half precision."
    rng = np.random.default_rng(0)
    n = steps*batch
    return dict(x=torch.from_numpy(rng.standard_normal((n, 3, px, px), 'float32')), y=torch.from_numpy(rng.integers(0, 2, n)), cluster=rng.integers(0, K, n),
                margins=rng.normal(0, 2, (n, VIEWS, K)).astype('float16'), batches=[b.reshape(-1) for b in np.array_split(rng.permutation(n), steps)])


def from_pictures(data, name, teachers, px):
    "The ways of a student on pixels; `teachers` is a list of networks."
    x, y, cluster, margins, n = data['x'], data['y'], data['cluster'], data['margins'], len(data['x'])
    def make(distilled=True, of=name):
        torch.manual_seed(0)
        return TimmStudent(of, 2*distilled, False, 0., img_size=px)
    def bare(model, which): return eq8(model(x[which])[0], None, y[which], None, SMOOTHING), {}
    def cached(model, which):
        margin = torch.from_numpy(margins[which, 0, cluster[which]].astype('float32'))
        return eq8(*model(x[which]), y[which], margin, SMOOTHING), {}
    def routed(model, which):
        margin = torch.empty(len(which))
        with torch.no_grad():
            for c in range(K):
                own = np.flatnonzero(cluster[which] == c)
                if len(own): margin[own] = teachers[c](x[which[own]]).diff(dim=1)[:, 0]
        return eq8(*model(x[which]), y[which], margin, SMOOTHING), {}
    def live(task, which): return task(x[which], y[which])['loss'], {}
    ways = {'bare': (make(), bare), 'bare, without [DIST]': (make(False, name.replace('_distilled', '')), bare), 'cached targets': (make(), cached),
            'timm, 1 teacher': (task_of(name, teachers[0], px), live), f'timm, {K} teachers': (task_of(name, Mean(teachers), px), live),
            f'by hand, each picture by its own of {K}': (make(), routed)}
    return {w: (model, lambda epoch: data['batches'], loss, n) for w, (model, loss) in ways.items()}


def part_tokens(run, rounds=30):
    "The small student over cached tokens: an epoch with the run's cached targets, and the same batches without."
    lessons, cfg = load_lessons(run, ROWS['ft_sd']), Distill(device='cpu')
    verdict = torch.from_numpy(lessons.verdict)
    def batches(told): return lambda epoch: epoch_batches(told, cfg.batch, 0, epoch, 'shared', 'mixed')
    def made(distilled):
        torch.manual_seed(0)
        return build_student(cfg, run, 2*distilled)
    (model, read), (twin, _), (single, _) = made(True), made(True), made(False)
    def cached(model, batch):
        which, view, margin = batch
        return eq8(*model(read(which, view)), verdict[torch.from_numpy(which)], torch.from_numpy(margin), cfg.smoothing), {}
    def bare(model, batch):
        which, view, _ = batch
        return eq8(model(read(which, view))[0], None, verdict[torch.from_numpy(which)], None, cfg.smoothing), {}
    without, n = replace(lessons, margins=None), len(lessons.defective) + len(lessons.acceptable)
    ways = {'bare': (twin, batches(without), bare, n), 'bare, without [DIST]': (single, batches(without), bare, n), 'cached targets': (model, batches(lessons), cached, n)}
    for row in alternated(ways, rounds): yield row | dict(student='small', teacher='', px=0, batch=cfg.batch)


def part_pixels(run, steps=2, batch=32, rounds=20):
    "DeiT-Ti/16 with ResNet-18 teachers, and one of ResNet-50."
    data, small = made_up(steps, batch, PX), [teacher('resnet18', i) for i in range(K)]
    ways = from_pictures(data, TINY, small, PX)
    large = task_of(TINY, teacher('resnet50'), PX)
    ways['timm, 1 teacher (resnet50)'] = large, lambda epoch: data['batches'], ways['timm, 1 teacher'][2], len(data['x'])
    for row in alternated(ways, rounds): yield row | dict(student=TINY, teacher='resnet18', px=PX, batch=batch)


def part_base(run, steps=3, batch=16, rounds=4):
    "DeiT-B/16 with ResNet-50 teachers."
    ways = from_pictures(made_up(steps, batch, PX), BASE, [teacher('resnet50', i) for i in range(K)], PX)
    chosen = {w: ways[w] for w in ('bare', 'cached targets', 'timm, 1 teacher', f'timm, {K} teachers')}
    for row in alternated(chosen, rounds): yield row | dict(student=BASE, teacher='resnet50', px=PX, batch=batch)


def part_teacher(run, n=256, rounds=3):
    "Forward passes of a teacher."
    x = made_up(1, n, PX)['x']
    for name in ('resnet18', 'resnet50'):
        model = teacher(name)
        for r in range(-1, rounds):
            began = time.process_time()
            with torch.inference_mode(): [model(part) for part in x.split(32)]
            if r >= 0: yield dict(teacher=name, px=PX, round=r, images=n, cpu=time.process_time() - began)


def part_curve(run, steps=40, batch=32):
    "Losses step by step: timm's, and eq. 8's less the teacher's entropy, with margins as they are and as the store keeps them."
    data, net = made_up(steps, batch, PX), teacher('resnet18')
    with torch.inference_mode(): logits = torch.cat([net(part) for part in data['x'].split(batch)])
    scale = 2/(logits[:, 1] - logits[:, 0]).std() # an untrained teacher hardly answers: its last layer is stretched until its margins spread as trained ones do
    net.fc.weight.mul_(scale), net.fc.bias.mul_(scale)
    with torch.inference_mode(): logits = torch.cat([net(part) for part in data['x'].split(batch)])
    margin, curves = (logits[:, 1] - logits[:, 0]).clone(), {}
    p = logits.clone().softmax(1)
    entropy = -(p*p.log()).sum(1)
    torch.manual_seed(0)
    start = TimmStudent(TINY, 2, False, 0., img_size=PX)
    def told(name, loss):
        curves[name] = []
        def tell(model, which):
            value = loss(model, which)
            curves[name].append(value.item() - (0 if name == 'timm' else entropy[which].mean().item()))
            return value, {}
        return tell
    def eq(margins): return lambda model, which: eq8(*model(data['x'][which]), data['y'][which], margins[which], SMOOTHING)
    task, weights = task_of(TINY, net, PX, as_timm(start)), {}
    fitted(task, lambda epoch: data['batches'], told('timm', lambda m, which: m(data['x'][which], data['y'][which])['loss']), 5e-4)
    weights['timm'] = task.trainable_module.state_dict()
    for name, margins in (('eq8', margin), ('eq8_half', margin.half().float())):
        torch.manual_seed(0)
        model = TimmStudent(TINY, 2, False, 0., img_size=PX)
        fitted(model, lambda epoch: data['batches'], told(name, eq(margins)), 5e-4)
        weights[name] = as_timm(model)
    apart = {name: max((weights[name][k] - v).abs().max().item() for k, v in weights['timm'].items()) for name in ('eq8', 'eq8_half')}
    print('largest difference of a weight from timm:', apart)
    for step in range(steps): yield dict(step=step, **{name: c[step] for name, c in curves.items()}, **{f'weights_{n}': apart[n] if step == steps-1 else np.nan for n in apart})


def part_extra(run, turns=40):
    "The two places where cached targets cost something: dealing an epoch's batches, and the loss with its gradient on the logits."
    lessons, cfg = load_lessons(run, ROWS['ft_sd']), Distill(device='cpu')
    without, dealt = replace(lessons, margins=None), epoch_batches(lessons, cfg.batch, 0, 0, 'shared', 'mixed')
    n, y = len(dealt[0][0]), torch.from_numpy(lessons.verdict[dealt[0][0]])
    cls, dist = (torch.randn(n, 2, requires_grad=True) for _ in range(2))
    ways = {('batches', True): lambda: epoch_batches(lessons, cfg.batch, 0, 0, 'shared', 'mixed'), ('batches', False): lambda: epoch_batches(without, cfg.batch, 0, 0, 'shared', 'mixed'),
            ('loss', True): lambda: [eq8(cls, dist, y, torch.from_numpy(dealt[0][2]), cfg.smoothing).backward() for _ in dealt],
            ('loss', False): lambda: [eq8(cls, None, y, None, cfg.smoothing).backward() for _ in dealt]}
    for r in range(-1, turns):
        for (what, cached), call in ways.items():
            began = time.process_time()
            call()
            if r >= 0: yield dict(what=what, cached=cached, round=r, batches=len(dealt), cpu=time.process_time() - began)


PARTS = dict(tokens=part_tokens, pixels=part_pixels, base=part_base, curve=part_curve, teacher=part_teacher, extra=part_extra)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('run')
    parser.add_argument('parts', nargs='*', help='some of '+' '.join(PARTS))
    args = parser.parse_args()
    run = open_run(args.run)
    torch.set_num_threads(1)
    for part in args.parts or PARTS:
        began, rows = time.process_time(), []
        for row in PARTS[part](run):
            rows.append(row)
            pd.DataFrame(rows).to_csv(OUT/f'distill_{part}.csv', index=False) # as they come, so that a stop loses nothing
        print(f'{part}: {len(rows)} rows, {time.process_time() - began:.0f} CPU s', flush=True)


if __name__ == '__main__': main()
