"""The preset `paper` on one GPU: measures the rates that decide and does the arithmetic for the whole recipe.

    python tools/recipe_paper.py                                              # one GPU, 224 px, bfloat16, about five minutes
    python tools/recipe_paper.py --save nbs/benchmarks/results                # and write distill_recipe_rates.csv and distill_recipe.csv
    python tools/recipe_paper.py --px 32 --device cpu --batch 4 --steps 2 --student deit_tiny_distilled_patch16_224 --teacher resnet18 --no-compile   # that it runs

Rates are those of the kit's own training loop (`train.fit`: bfloat16 where the GPU has it) on made-up pictures that lie in memory as bytes: moving to the device and normalising are
included, transforming a view is a rate of its own, because the loop does not overlap it. Weights are random: a rate does not depend on them. Seconds are wall time on a
GPU and CPU time elsewhere.
"""
import argparse
import math
import os
import time
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # read when numpy is imported
import numpy as np
import pandas as pd
import torch

from subtask_kit.augment import augment, normalise
from subtask_kit.backbones import PACKAGED, TimmStudent, trunk
from subtask_kit.device import pick_device
from subtask_kit.losses import eq8
from subtask_kit.pipeline import configure
from subtask_kit.specialists import PixelTeacher, margin_loss
from subtask_kit.train import fit
from subtask_kit.transport import assign

PAPER = dict(defective=2500, acceptable=15000, teacher_val=160+960, student_val=480+2880, teacher_test=160+960, test=776+4656) # Table 1; no pool
RECIPES = { # name -> (preset, what is changed)
    'literal': ('literal', {}),
    'paper': ('paper', {}),
    'paper, five acceptable ads a defect': ('paper', dict(specialists_balance='sample')),
    'the same, two views': ('paper', dict(specialists_balance='sample', features_views=2)),
    'paper, heads on frozen features': ('paper', dict(specialists_mode='heads')),
}


# -- what there is to do ----------------------------------------------------------------------------------------------------------------------------

def work(preset:str, given:dict, n:dict=PAPER)->pd.DataFrame: # stage, network, trained, scored, transformed: pictures of the whole stage; labellings
    "Count the pictures that go through each network in each stage, for one student."
    c = configure(preset, given)
    judging, views, train = n['teacher_val'] + n['teacher_test'], c['features'].views, n['defective'] + n['acceptable']
    new = 1 - 1/views # share of the reads of a train ad that are transformed views
    every = train*views + judging + n['student_val'] + n['test'] # views of all ads
    label, teach, distil = c['selflabel'], c['specialists'], c['distill']
    rows = [dict(stage='features', network='trunk', scored=every, transformed=train*(views-1))]
    turns = label.epochs if label.relabel == 'every_epoch' else label.rounds
    rows.append(dict(stage='selflabel', network='teacher', trained=label.epochs*n['defective'], scored=(turns + 8)*n['defective'],
                     transformed=(label.epochs + turns + 7)*n['defective'], labellings=turns + 1) if label.model != 'head' else dict(stage='selflabel', network='trunk'))
    if teach.mode == 'independent':
        drawn = lambda bad: bad + (min(n['acceptable'], math.ceil(teach.ratio*bad)) if teach.balance == 'sample' else n['acceptable'])
        trained = teach.epochs*(label.k*drawn(n['defective']/label.k) + drawn(n['defective']))
        rows.append(dict(stage='specialists', network='teacher', trained=trained, scored=(label.k + 1)*(every + teach.epochs*judging), transformed=trained*new + (label.k + 1)*train*(views-1)))
    else: rows.append(dict(stage='specialists', network='trunk'))
    # in strict order, each of K kept sub-tasks sees its share of the acceptable ads, or all of them
    good = n['acceptable']*(label.k if c['curriculum'].acceptable == 'repeated' else 1)
    trained = distil.epochs*(n['defective'] + good)
    rows.append(dict(stage='distill', network='student', trained=trained, scored=distil.epochs*n['student_val'] + judging/2 + n['student_val'] + n['test'], transformed=trained*new))
    return pd.DataFrame(rows).reindex(columns=['stage', 'network', 'trained', 'scored', 'transformed', 'labellings']).fillna(0)


def arithmetic(rates:dict, # images/s: '<network> trained', '<network> scored', 'transformed'; 'labelling' is seconds for one
               todo:pd.DataFrame)->pd.DataFrame: # stage, minutes of each kind, minutes
    "Minutes of each stage, one thing after the other."
    def minutes(kind): return np.array([0. if not v else v/rates[f'{net} {kind}']/60 for net, v in zip(todo.network, todo[kind])])
    t = pd.DataFrame(dict(stage=todo.stage, training=minutes('trained'), scoring=minutes('scored'), views=todo.transformed/rates['transformed']/60, transport=todo.labellings*rates['labelling']/60))
    return t.assign(minutes=t.drop(columns='stage').sum(axis=1))


# -- how quickly it is done -------------------------------------------------------------------------------------------------------------------------

def now(device):
    if device.type != 'cuda': return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def fitted(model, loss, steps, device):
    "Seconds of an epoch of `steps` batches, after one that warms up and compiles."
    stamps = []
    def begin(epoch):
        stamps.append(now(device))
        return list(range(steps))
    def end(model):
        stamps.append(now(device))
        return torch.tensor(0.)
    fit(model, begin, loss, end, 2, 1e-6, device=device)
    return stamps[3] - stamps[2]


def forward(model, read, steps, device):
    "Seconds of `steps` batches without gradients, after one that warms up."
    model.eval()
    with torch.no_grad():
        model(read(0))
        began = now(device)
        for i in range(steps): model(read(i))
    return now(device) - began


def measure(px, batch, steps, device, student, teacher, compiled)->dict: # images/s, and 'labelling' in seconds
    "All rates."
    rng, rates = np.random.default_rng(0), {}
    images = torch.from_numpy(rng.integers(0, 256, (4, batch, 3, px, px), 'uint8')) # four batches are enough to read from
    if device.type == 'cuda': images = images.pin_memory()
    y, margin = torch.from_numpy(rng.integers(0, 2, batch)).to(device), torch.from_numpy(rng.normal(0, 2, (steps, batch)).astype('float16').astype('float32'))
    def read(i): return normalise(images[i % 4].to(device)).contiguous(memory_format=torch.channels_last)
    def bare(model, i): return eq8(model(read(i))[0], None, y, None), {}
    def cached(model, i): return eq8(*model(read(i)), y, margin[i].to(device)), {}
    for name, loss in (('bare', bare), ('cached targets', cached)):
        for fast in (False, True) if compiled else (False,):
            torch.manual_seed(0)
            model = TimmStudent(student, 2, False, img_size=px).to(device)
            if fast: model.to(memory_format=torch.channels_last).compile()
            rates[f'student, {name}{", compiled" if fast else ""}'] = steps*batch/fitted(model, loss, steps, device)
    rates |= {'student trained': rates[f'student, cached targets{", compiled" if compiled else ""}'], 'student scored': steps*batch/forward(model, read, steps, device)}
    for fast in (False, True) if compiled else (False,):
        model = PixelTeacher(teacher, False, .1).to(device)
        if fast: model.compile()
        def judged(model, i): return margin_loss(model(read(i)), y, torch.ones(batch, 1, device=device), .05).sum(), {}
        rates['teacher trained'] = rates[f'teacher{", compiled" if fast else ""}'] = steps*batch/fitted(model, judged, steps, device)
    rates['teacher scored'] = steps*batch/forward(model, read, steps, device)
    run_trunk = trunk(PACKAGED, False, device)
    run_trunk(images[0])
    began = now(device)
    for i in range(steps): run_trunk(images[i % 4])
    rates['trunk scored'] = steps*batch/(now(device) - began)
    seeds, moved = list(range(batch)), images[0].to(device)
    augment(moved, seeds, 4, 8)
    began = now(device)
    augment(moved, seeds, 4, 8)
    rates['transformed'] = batch/(now(device) - began)
    logits = rng.standard_normal((PAPER['defective'], 100), 'float32') # on the CPU in any case; each ad has a cluster that it resembles
    logits[np.arange(len(logits)), rng.integers(0, 100, len(logits))] += 4
    began = time.process_time()
    assign(torch.from_numpy(logits), 250.)
    return rates | dict(labelling=time.process_time() - began)


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--px', type=int, default=224)
    p.add_argument('--device', default='cuda', help='cuda or cpu')
    p.add_argument('--batch', type=int, default=256)
    p.add_argument('--steps', type=int, default=30)
    p.add_argument('--student', default='deit_base_distilled_patch16_224')
    p.add_argument('--teacher', default='resnet50')
    p.add_argument('--no-compile', action='store_true', help='leave torch.compile out, which takes minutes on a CPU')
    p.add_argument('--save', type=Path, help='folder for distill_recipe_rates.csv and distill_recipe.csv')
    args = p.parse_args(argv)
    if args.device == 'cuda' and not torch.cuda.is_available(): p.error('no GPU is at hand; --device cpu only shows that the script runs')
    if args.device == 'cpu': torch.set_num_threads(1) # CPU time of several threads is not the time that passes
    device, what = pick_device(args.device), torch.cuda.get_device_name() if args.device == 'cuda' else 'CPU'
    rates = measure(args.px, args.batch, args.steps, device, args.student, args.teacher, not args.no_compile)
    told = pd.DataFrame(dict(rate=rates)).rename_axis('what').reset_index().assign(device=what, px=args.px, batch=args.batch, student=args.student, teacher=args.teacher, torch=torch.__version__)
    print(f'{what}, {args.px} px, batches of {args.batch}: images/s (labelling: seconds)\n{told[["what", "rate"]].round(3).to_string(index=False)}\n')
    ends = [e for e in ('', ', compiled') if f'student, bare{e}' in rates]
    for e in ends: print(f'student with cached targets{e}: {rates[f"student, cached targets{e}"]/rates[f"student, bare{e}"]:.3f} of the bare one')
    tables = []
    for name, (preset, given) in RECIPES.items():
        t = arithmetic(rates, work(preset, given)).assign(recipe=name)
        tables.append(t)
        print(f'\n{name}: {t.minutes.sum():,.1f} minutes for K = 100 and one student (the aim: 30)\n{t.drop(columns="recipe").round(2).to_string(index=False)}', flush=True)
    if args.save:
        told.to_csv(args.save/'distill_recipe_rates.csv', index=False)
        pd.concat(tables).to_csv(args.save/'distill_recipe.csv', index=False)


if __name__ == '__main__': main()
