"""Measure views made group by group beside torchvision's RandAugment called on every image, in turn within one run.

    python tools/measure_augment.py                 # both parts, into nbs/benchmarks/results/augment*.csv; CPU seconds of one thread
    python tools/measure_augment.py --device cuda   # the same on a GPU: seconds on the clock, the images lying there already

whole   images a second, by picture size, batch and operations; bytes that differ from torchvision on one image on the CPU; how many of 16 equal images differ
ops     microseconds an image for each operation, one image and 16 in a call; how far a device is from the CPU

A device's rows replace its own and leave those of the others.
"""
import argparse
import os
import platform
import time
from itertools import product
from pathlib import Path

os.environ.setdefault('OMP_NUM_THREADS', '1') # read when numpy is imported
import numpy as np
import pandas as pd
import torch
from torchvision.transforms import v2

from subtask_kit import storefront as sf
from subtask_kit.augment import SIGNED, TOP, augment, draw, strength, transform
from subtask_kit.core import rng_for, seed_for

OUT = Path(__file__).parents[1]/'nbs/benchmarks/results'
TIMES = 5


def photographs(n, px):
    "Bytes n x 3 x px x px: drawn ads, eight of them again and again, each with noise of its own."
    drawn = np.stack([np.asarray(sf.draw_ad(kind, 0, seller, 'Sale', rng_for('augment', seller).random(12), px)) for seller, kind in enumerate(list(sf.GOODS)[:8])])
    noise = rng_for('augment', px).integers(-6, 7, (n, px, px, 3))
    return torch.from_numpy((drawn[np.arange(n)%8] + noise).clip(0, 255).astype('uint8')).permute(0, 3, 1, 2).contiguous()


def one_by_one(images, seeds, ops, magnitude):
    "torchvision on every image alone, after its own seed."
    policy = v2.RandAugment(num_ops=ops, magnitude=magnitude, interpolation=v2.InterpolationMode.BILINEAR, fill=128)
    with torch.random.fork_rng(devices=[]):
        return torch.stack([(torch.default_generator.manual_seed(seed), policy(image))[1] for image, seed in zip(images, seeds, strict=True)])


def seconds(work, device):
    "CPU seconds on a CPU, seconds on the clock on a GPU."
    if device.type == 'cpu':
        start = time.process_time()
        work()
        return time.process_time()-start
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter()-start


def in_turn(works, device, times=TIMES):
    "Seconds of each work, one row a round, after one round that does not count."
    return pd.DataFrame([{name: seconds(work, device) for name, work in works.items()} for _ in range(times+1)]).iloc[1:]


def whole(device):
    "One row a picture size, batch and number of operations."
    rows = []
    for px, batch, ops in product((64, 224), (64, 512), (2, 4)):
        plain = photographs(batch, px)
        images, seeds = plain.to(device), [seed_for('augment', i) for i in range(batch)]
        took = in_turn(dict(alone=lambda: one_by_one(images, seeds, ops, 8), batched=lambda: augment(images, seeds, ops, 8), draw=lambda: draw(seeds, ops, 8, px, px)), device)
        ratio, seen = took.alone/took.batched, augment(images, seeds, ops, 8).cpu()
        equal = augment(images[:1].repeat(16, 1, 1, 1), seeds[:16], ops, 8).cpu()
        rows.append(dict(device=device.type, px=px, batch=batch, ops=ops, n=TIMES, alone_images_s=batch/took.alone.median(), images_s=batch/took.batched.median(), ratio=ratio.median(), ratio_min=ratio.min(), ratio_max=ratio.max(),
                         draws_s=batch/took.draw.median(), draw_share=(took.draw/took.batched).median(), bytes_off=(seen != one_by_one(plain, seeds, ops, 8)).float().mean().item(), unlike_of_16=len({v.numpy().tobytes() for v in equal})))
    return pd.DataFrame(rows)


def ops(device, px=224, batch=16):
    "One row an operation and direction."
    rows, plain = [], photographs(batch, px)
    images = plain.to(device)
    for operation in TOP:
        for sign in (1, -1) if operation in SIGNED else (1,):
            value = sign*strength(operation, 8, px, px)
            took = in_turn(dict(alone=lambda: [transform(i, operation, value) for i in images.split(1)], batched=lambda: transform(images, operation, value)), device)/batch*1e6
            off = (transform(images, operation, value).cpu().int()-transform(plain, operation, value).int()).abs()
            rows.append(dict(device=device.type, operation=operation, value=value, n=TIMES, alone_us=took.alone.median(), batched_us=took.batched.median(), bytes_off=(off > 0).float().mean().item(), levels_off=off.max().item()))
    return pd.DataFrame(rows)


def write(table, file):
    "Put a device's rows in place of its old ones."
    if file.exists(): table = pd.concat([(old := pd.read_csv(file))[old.device != table.device.iloc[0]], table])
    table.to_csv(file, index=False, float_format='%.6g')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--device', default='cpu', help='cpu or cuda (default: %(default)s)')
    p.add_argument('--out', type=Path, default=OUT, help='a folder for the tables (default: %(default)s)')
    args = p.parse_args()
    torch.set_num_threads(1)
    device = torch.device(args.device)
    about = dict(load=round(os.getloadavg()[0], 2), cores=os.cpu_count(), python=platform.python_version(), torch=torch.__version__, on=torch.cuda.get_device_name() if device.type == 'cuda' else platform.machine())
    for table, name in (ops(device), 'augment_ops.csv'), (whole(device).assign(**about), 'augment.csv'):
        write(table, args.out/name)
        print(table.round(4).to_string(), flush=True)


if __name__ == '__main__': main()
