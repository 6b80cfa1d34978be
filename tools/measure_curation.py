"""Measure curation on generated data, beside what a user would do without the kit; ratios within one run, CPU seconds of one thread.

    python tools/measure_curation.py                     # all of it, into nbs/benchmarks/results/curation_*.csv
    python tools/measure_curation.py planted pairs       # some of its parts
    python tools/measure_curation.py --oracle PYTHON     # with the peers, which lie in an environment of their own:
        python3 -m venv /tmp/oracle && /tmp/oracle/bin/pip install imagededup pdqhash imagehash     # PYTHON is /tmp/oracle/bin/python

search   all pairs of 64-bit hashes, beside imagededup's brute force (needs --oracle)
pairs    all pairs of many PDQ hashes, by numpy and by faiss
hashing  pictures per core-second, beside pdqhash and imagehash (with --oracle), and the bits that differ from them
planted  edited copies of drawn ads and of photographs: how many are found, how many originals are lost, beside PDQ and pHash alone
decode   decoding once into the cache, a plain Pillow loop, a loader that decodes every epoch
"""
import argparse
import io
import os
import platform
import resource
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from unittest import mock

os.environ.setdefault('OMP_NUM_THREADS', '1') # read when numpy is imported
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.fft import dctn

from subtask_kit import duplicates, storefront
from subtask_kit.artifacts import open_run
from subtask_kit.core import hash_file, rng_for
from subtask_kit.duplicates import WIDE, find_copies, group_rows, near_pairs, propose
from subtask_kit.images import build_cache
from subtask_kit.phash import INSETS, MIN_QUALITY, distance, pdq, pdq_insets

OUT = Path(__file__).parents[1]/'nbs/benchmarks/results'
BATCH = 256
KIT = hash_file(duplicates.__file__)[:8] # as it is imported: tells whether a table is older than the second look


# Clocks and the peers

def now():
    "CPU seconds of this process and of its children that have ended."
    return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])


def seconds(work):
    "CPU seconds of this process and its children."
    before = now()
    work()
    return now()-before


def typical(work, times):
    "CPU seconds of what is short: the median of some runs."
    return float(np.median([seconds(work) for _ in range(times)]))


def ask(oracle, script, **arrays):
    "Run a script in the peers' environment on some arrays; the arrays that it saves."
    with tempfile.TemporaryDirectory() as tmp:
        np.savez(f'{tmp}/in.npz', **arrays)
        subprocess.run([oracle, '-W', 'ignore', '-c', script, tmp], check=True, stderr=subprocess.DEVNULL)
        return dict(np.load(f'{tmp}/out.npz'))


# What the scripts begin with: arrays in `given`, CPU seconds by `now` (imagededup always starts a process).
THERE = '''import resource, sys, time
import numpy as np
given = np.load(sys.argv[1] + '/in.npz')
def now(): return time.process_time() + sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
def save(**arrays): np.savez(sys.argv[1] + '/out.npz', **arrays)
'''

VERSIONS = THERE + '''from importlib.metadata import version
save(**{name: version(name) for name in ('imagededup', 'pdqhash', 'imagehash')})
'''


# Pictures

def ads(n, seed, px):
    "Drawn ads of the size of the paper's data, none a copy of another."
    plan, pool = storefront.plan_world(storefront.STOREFRONT, 'paper', seed)
    chance = rng_for('storefront', 'art', 'paper', seed).random((1+max(plan.art.max(), pool.art.max()), 12))
    both = pd.concat([plan[plan.dup_of == ''], pool.sample(3000, random_state=seed)]).sample(n, random_state=seed)
    return [storefront.draw_ad(a.kind, seed, a.seller, a.written, chance[a.art], px) for a in both.itertuples()]


def photographs(n, seed, px, folder):
    "Photographs of 28 x 28 grey pixels, enlarged."
    images, _ = storefront.read_fashion(folder)
    rows = rng_for('bench', 'fashion', seed).choice(len(images), n, replace=False)
    return [Image.fromarray(images[r]).resize((px, px), Image.Resampling.BICUBIC).convert('RGB') for r in rows]


def phash(image):
    "The common 64-bit hash, as imagehash has it."
    small = np.asarray(image.convert('L').resize((32, 32), Image.Resampling.LANCZOS), float)
    low = dctn(small)[:8, :8]
    return np.packbits(low > np.median(low)).view('uint64')


def phashes(images): return np.stack([phash(image) for image in images])


# Search

SEARCH = THERE + '''from imagededup.methods import PHash
from imagededup.handlers.search.retrieval import HashEval
hashes, peer = {str(i): f'{v:016x}' for i, v in enumerate(given['codes'].tolist())}, PHash(verbose=False)
radius, some = int(given['radius']), int(given['some'])
t = now()
found = peer.find_duplicates(encoding_map=hashes, max_distance_threshold=radius, scores=True, search_method='brute_force_cython', num_dist_workers=0)
cython = now()-t
pairs = sorted((int(a), int(b), d) for a, near in found.items() for b, d in near if int(a) < int(b))
t = now()
HashEval(test=hashes, queries=dict(list(hashes.items())[:some]), distance_function=peer.hamming_distance, verbose=False, threshold=radius, search_method='brute_force', num_dist_workers=0)
save(pairs=np.array(pairs, 'int64').reshape(-1, 3), cython=cython, plain=(now()-t)*len(hashes)/some)
'''


def search(args, radius=10, some=100):
    "The same pairs of 64-bit hashes, ours and imagededup's; its plain search is measured on `some` queries and multiplied."
    if not args.oracle: return print('search is left out: it needs --oracle')
    codes, rows = phashes(ads(6000, 0, 64)), []
    for n in (3000, 6000):
        there, ours = ask(args.oracle, SEARCH, codes=codes[:n, 0], radius=radius, some=some), near_pairs(codes[:n], radius)
        s = typical(lambda: near_pairs(codes[:n], radius), 10)
        same = np.array_equal(ours[np.lexsort((ours[:, 1], ours[:, 0]))], there['pairs'])
        rows.append(dict(hashes=n, radius=radius, pairs=len(ours), same_pairs=same, ours_s=s, cython_s=there['cython'], plain_s=there['plain'], cython_ratio=there['cython']/s, plain_ratio=there['plain']/s))
    return pd.DataFrame(rows)


def planted_codes(n, most=60, seed=0):
    "Random PDQ hashes; every twentieth repeats an earlier one but for 0 to `most` bits. The hashes; the distances that must be found."
    rng = rng_for('codes', n, seed)
    bits, copies = rng.integers(0, 2, (n, 256), 'uint8'), np.arange(n-n//20, n)
    bits[copies] = bits[:len(copies)]
    flips = rng.integers(0, most+1, len(copies))
    for row, k in zip(copies, flips): bits[row, rng.choice(256, k, replace=False)] ^= 1
    return np.packbits(bits, axis=1).view('uint64'), flips


def pairs(args):
    "All pairs of PDQ hashes: as many as are planted must be found."
    rows = []
    for n, ways in {26_000: ('numpy', 'faiss'), 100_000: ('faiss', 'numpy')}.items():
        codes, flips = planted_codes(n)
        for way in ways:
            if way == 'faiss' and not duplicates._has_faiss(): print('faiss is left out: it comes with the extra [dedupe]'); continue
            for radius in (31, 60):
                found = []
                with mock.patch.object(duplicates, '_has_faiss', lambda: way == 'faiss'): s = seconds(lambda: found.append(near_pairs(codes, radius)))
                rows.append(dict(hashes=n, way=way, radius=radius, cpu_s=s, planted=int((flips <= radius).sum()), found=len(found[0])))
    return pd.DataFrame(rows)


# Hashing

HASHING = THERE + '''import imagehash, pdqhash
from PIL import Image
def batches():
    for px in (64, 256):
        x = given[f'speed{px}']
        for name, work in dict(pdqhash=pdqhash.compute, imagehash=lambda image: imagehash.phash(Image.fromarray(image))).items():
            work(x[0])
            t = now()
            for image in x: work(image)
            yield f'{name}_{px}', len(x)/(now()-t)
shapes = [given[k] for k in given.files if k.startswith('shape')]
save(**dict(batches()), pdq=np.stack([np.packbits(pdqhash.compute(im)[0][::-1]) for x in shapes for im in x]), quality=np.array([pdqhash.compute(im)[1] for x in shapes for im in x]),
     phash=np.stack([np.packbits(imagehash.phash(Image.fromarray(im)).hash) for x in shapes for im in x]))
'''
SHAPES = (64, 64), (256, 256), (200, 313), (512, 130), (640, 427), (129, 127) # height and width


def shaped(args, n=50):
    "A few hundred pictures of several shapes, ads and photographs in turn: one array a shape."
    half = n//2
    some = ads(half*len(SHAPES), 7, 256) + (photographs((n-half)*len(SHAPES), 7, 256, args.fashion) if args.fashion else [])
    return [np.stack([np.asarray(im.resize(shape[::-1], Image.Resampling.BICUBIC)) for im in some[k::len(SHAPES)]]) for k, shape in enumerate(SHAPES)]


def hashing(args):
    "Pictures per core-second, in batches as curation has them; bits that differ from the reference."
    x = {px: np.stack([np.asarray(im) for im in ads(n, 0, px)]) for px, n in {64: 2000, 256: 500}.items()}
    ways = {'PDQ': pdq, 'PDQ and its views': lambda b: (pdq(b), pdq_insets(b)), 'pHash of this tool': lambda b: phashes(map(Image.fromarray, b))}
    def rate(work, images): return len(images)/typical(lambda: [work(images[i:i+BATCH]) for i in range(0, len(images), BATCH)], 3)
    rows = [dict(what=name, **{f'per_s_{px}': rate(work, images) for px, images in x.items()}) for name, work in ways.items()]
    if not args.oracle: print('pdqhash and imagehash are left out: they need --oracle'); return pd.DataFrame(rows)
    shapes = shaped(args)
    there = ask(args.oracle, HASHING, **{f'speed{px}': images for px, images in x.items()}, **{f'shape{i}': s for i, s in enumerate(shapes)})
    def unlike(codes, theirs): return dict(compared=len(theirs), unlike=int((codes.view('uint8') != theirs).any(1).sum()), most_bits=int(np.bitwise_count(codes.view('uint8')^theirs).sum(1).max()))
    hashes, quality = (np.concatenate(v) for v in zip(*map(pdq, shapes)))
    rows[0] |= unlike(hashes, there['pdq']) | dict(quality_unlike=int((quality != there['quality']).sum()))
    rows[2] |= unlike(phashes(Image.fromarray(im) for s in shapes for im in s), there['phash'])
    rows += [dict(what=name, **{f'per_s_{px}': float(there[f'{name}_{px}']) for px in x}) for name in ('pdqhash', 'imagehash')]
    return pd.DataFrame(rows)


# Planted copies. Each edit takes a picture and a random generator and ends in a JPEG; the ranges are all there is to choose.

def jpeg(im, quality=90):
    "The picture as a JPEG shows it."
    file = io.BytesIO()
    im.save(file, 'JPEG', quality=quality, subsampling=0)
    return Image.open(io.BytesIO(file.getvalue())).convert('RGB')


def resized(im, r):
    "To between half and one and a half of its side."
    return jpeg(im.resize([max(16, round(im.width*r.choice([.5, .75, .875, 1.25, 1.5])))]*2, Image.Resampling.BICUBIC))


def recompressed(im, r):
    "JPEG of quality 20 to 59."
    return jpeg(im, int(r.integers(20, 60)))


def cropped(im, r):
    "Up to a tenth off each edge, each for itself, then stretched to the old size."
    edges = [round(im.width*v) for v in (*r.uniform(0, .1, 2), *r.uniform(.9, 1, 2))]
    return jpeg(im.crop(edges).resize(im.size, Image.Resampling.BICUBIC))


def toned(im, r):
    "Brightness times .75 to .93 or 1.07 to 1.25, plus up to 12 levels either way."
    gain, plus = r.choice([r.uniform(.75, .93), r.uniform(1.07, 1.25)]), r.uniform(-12, 12)
    return jpeg(im.point([int(min(255, max(0, v*gain+plus))) for v in range(256)]*3))


def bordered(im, r):
    "A flat frame, 3 to 10 % of the side, in one of four colours, round the whole picture."
    wide, colour = round(im.width*r.uniform(.03, .1)), tuple(r.choice([(0, 0, 0), (255, 255, 255), (200, 30, 30), (30, 60, 160)]).tolist())
    out = Image.new('RGB', [im.width+2*wide]*2, colour)
    out.paste(im, (wide, wide))
    return jpeg(out.resize(im.size, Image.Resampling.BICUBIC))


def captioned(im, r):
    "A strip with three words, 10 to 20 % of the height, over the top or the bottom."
    high, top = round(im.width*r.uniform(.1, .2)), r.random() < .5
    ink, ground = ((255, 255, 255), (0, 0, 0)) if r.random() < .5 else ((20, 20, 20), (250, 230, 90))
    strip = Image.new('RGB', (im.width*2, high*2), ground)
    words = ' '.join(r.choice('SALE NOW BIG OFFER TODAY ONLY BEST PRICE FREE NEW'.split(), 3))
    ImageDraw.Draw(strip).text((4, 1), words, fill=ink, font=ImageFont.load_default(high*1.4))
    out = im.copy()
    out.paste(strip.resize((im.width, high), Image.Resampling.BICUBIC), (0, 0 if top else im.height-high))
    return jpeg(out)


EDITS = dict(resize=resized, jpeg=recompressed, crop=cropped, tone=toned, border=bordered, caption=captioned)
ORIGINALS, EACH, SEEDS, PX = 3000, 200, range(10), 64


def plant(originals, r):
    "Pictures, the root of each (an original is its own), and the kind of each copy ('' for an original)."
    n, kinds = len(originals), list(EDITS)
    of = r.permutation(n)[:EACH*len(kinds)]
    kind = [kinds[k%len(kinds)] for k in range(len(of))]
    copies = [EDITS[k](originals[i], r).resize((PX, PX), Image.Resampling.BICUBIC) for i, k in zip(of, kind)]
    return np.stack([np.asarray(im) for im in [*map(jpeg, originals), *copies]]), np.r_[np.arange(n), of], np.array(['']*n + kind)


def by_kind(found, kind):
    "The share of copies that were found, of each kind and in all."
    found = pd.Series(found[kind != ''])
    return dict(found.groupby(kind[kind != '']).mean()[list(EDITS)]) | dict(all=found.mean())


def outcome(groups, root, kind):
    "Copies found (in the group of their original) and originals lost (an earlier original is in their group), in %."
    originals = groups[kind == '']
    return by_kind(groups == groups[root], kind) | dict(lost=100*(1-len(np.unique(originals))/len(originals)))


def least(limits, groups_at, recall, root, kind):
    "The least of sorted limits that finds as large a share of all copies; None where none does."
    low, high = 0, len(limits)
    while low < high:
        middle = (low+high)//2
        if outcome(groups_at(limits[middle]), root, kind)['all'] >= recall: high = middle
        else: low = middle+1
    return limits[low] if low < len(limits) else None


def groups_of_hashes(codes):
    "Radius -> groups: single linkage joins whatever a chain of pairs within the radius joins."
    tree = linkage(np.concatenate([distance(c, codes[i+1:]) for i, c in enumerate(codes)]).astype(float), 'single')
    return lambda radius: fcluster(tree, radius, 'distance')


def against_hashes(images, root, kind):
    "One row a method and limit, for one world and seed."
    t = [now()]
    codes, quality = (np.concatenate(v) for v in zip(*(pdq(images[i:i+BATCH]) for i in range(0, len(images), BATCH))))
    views = np.concatenate([pdq_insets(images[i:i+BATCH]) for i in range(0, len(images), BATCH)])
    t.append(now())
    candidates = propose(codes, [(k, 0, views[:, i]) for i, k in enumerate(INSETS)], quality >= MIN_QUALITY, np.ones(len(images), bool))
    t.append(now())
    found = find_copies(images, codes, views, quality, np.ones(len(images), bool))
    t.append(now())
    hash_s, search_s, both_s = np.diff(t)
    def ours_at(limit): return group_rows(len(images), found.loc[found.score <= limit, ['a', 'b']])
    scores = np.sort(found.score.unique())
    ours = outcome(ours_at(1), root, kind)
    pairs = set(map(tuple, np.sort(candidates[['a', 'b']], axis=1).tolist()))
    proposed = np.array([pair in pairs for pair in zip(root.tolist(), range(len(root)))])
    rows = [dict(method='ours', limit=1, **ours, pairs=len(pairs), hash_s=hash_s, search_s=search_s, look_s=both_s-search_s), dict(method='proposed', limit=WIDE, **by_kind(proposed, kind))]
    for method, hashes, limits in (('PDQ', codes, (31, 60)), ('pHash', phashes(map(Image.fromarray, images)), (4, 8, 10))):
        groups_at = groups_of_hashes(hashes)
        equal = least(range(64*hashes.shape[1]+1), groups_at, ours['all'], root, kind)
        for limit in (*limits, equal):
            row = outcome(groups_at(limit), root, kind)
            strict = least(scores, ours_at, row['all'], root, kind)
            rows.append(dict(method=method, limit=limit, equal=limit == equal, **row, ours_lost=np.nan if strict is None else outcome(ours_at(strict), root, kind)['lost']))
    return rows


def planted(args):
    "Copies of six kinds among drawn ads and photographs."
    worlds, rows = dict(storefront=ads, fashion=lambda *a: photographs(*a, args.fashion)), []
    if not args.fashion: print('the photographs are left out: --fashion FOLDER has none'); worlds.pop('fashion')
    for world, originals in worlds.items():
        for seed in SEEDS:
            images, root, kind = plant(originals(ORIGINALS, seed, PX), rng_for('edits', world, seed))
            rows += [dict(world=world, seed=seed) | row for row in against_hashes(images, root, kind)]
            print(world, seed, *('{method} {limit}: {all:.3f}'.format(**row) for row in rows[-9:] if row['method'] in ('ours', 'proposed')), sep='  ', flush=True)
    return pd.DataFrame(rows)


# Decoding

SIZES = {(64, 64): 2000, (640, 427): 600, (1280, 854): 200} # of a JPEG -> how many


def paint(folder, size, n):
    "JPEGs that compress as photographs do: soft shapes, some grain, a caption."
    rng, files = np.random.default_rng(size[0]), []
    for i in range(n):
        soft = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype='uint8')).resize(size, Image.Resampling.BICUBIC)
        image = Image.fromarray((np.asarray(soft) + rng.normal(0, 6, (*size[::-1], 3))).clip(0, 255).astype('uint8'))
        ImageDraw.Draw(image).text((size[0]//8, size[1]//2), f'Offer {i}', fill='white')
        files.append(folder/f'{i}.jpg')
        image.save(files[-1], quality=85)
    return files


def plain(files, px):
    "What a user writes first."
    for file in files: np.asarray(Image.open(file).convert('RGB').resize((px, px)))


def gather(images, batch=256):
    "One epoch from the cache, in batches, shuffled."
    for rows in np.array_split(np.random.default_rng(0).permutation(len(images)), max(len(images)//batch, 1)): images[rows]


def decode_throughput(px=64, epochs=10):
    "One row a size of JPEG: pictures per core-second of each way, and how the cache compares with decoding in every epoch."
    rows = []
    for size, n in SIZES.items():
        with tempfile.TemporaryDirectory() as tmp:
            files = paint(Path(tmp), size, n)
            run, hashes = open_run(tmp), []
            plain(files[:20], px) # what is imported at the first call is imported now
            build_cache(files[:20], list(map(hash_file, files[:20])), run, Path(tmp)/'warm', px)
            loop = seconds(lambda: plain(files, px))
            hashing = seconds(lambda: hashes.extend(map(hash_file, files)))
            build = seconds(lambda: build_cache(files, hashes, run, Path(tmp)/'cache', px))
            images = np.load(Path(tmp)/'cache/images.npy', mmap_mode='r')
            epoch = seconds(lambda: [gather(images) for _ in range(50)])/50
            rows.append(dict(size='{}x{}'.format(*size), pictures=n, kB=round(sum(f.stat().st_size for f in files)/n/1000, 1), hash_per_s=n/hashing, plain_per_s=n/loop, build_per_s=n/build,
                             build_over_plain=loop/build, gather_per_s=n/epoch, epoch_ratio=loop/epoch, ratio_of_all_epochs=epochs*loop/(hashing+build+epochs*epoch)))
    return pd.DataFrame(rows)


PARTS = dict(search=search, pairs=pairs, hashing=hashing, planted=planted, decode=lambda args: decode_throughput())


def about(args, part, wall):
    "What a part was measured with."
    own = {name: version(name) for name in ('numpy', 'pillow', 'scipy')} | (dict(faiss=version('faiss-cpu')) if duplicates._has_faiss() else {})
    return dict(part=part, wall_s=wall, load=os.getloadavg()[0], cores=os.cpu_count(), python=platform.python_version(), kit=KIT) | own | ({k: str(v) for k, v in ask(args.oracle, VERSIONS).items()} if args.oracle else {})


def put(rows, file, key):
    "Write a table; rows of a key that are there already are replaced."
    if file.exists(): rows = pd.concat([(before := pd.read_csv(file))[~before[key].isin(rows[key])], rows])
    rows.round(4).to_csv(file, index=False)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('parts', nargs='*', help='default: all of them')
    p.add_argument('--oracle', metavar='PYTHON', help='the python of an environment that has the peers')
    p.add_argument('--fashion', metavar='FOLDER', type=Path, default=Path('/usr/share/datasets/fashion-mnist'), help='Fashion-MNIST (default: %(default)s)')
    p.add_argument('--out', type=Path, default=OUT, help='a folder for the tables (default: %(default)s)')
    args = p.parse_args()
    if unknown := set(args.parts)-set(PARTS): p.error(f'no such part: {", ".join(unknown)}; there are {", ".join(PARTS)}')
    if not args.fashion.exists(): args.fashion = None
    for part in args.parts or PARTS:
        start, table = time.time(), PARTS[part](args)
        if table is None: continue
        table.round(4).to_csv(args.out/f'curation_{part}.csv', index=False)
        put(pd.DataFrame([about(args, part, time.time()-start)]), args.out/'curation.csv', 'part')
        print(table.round(3).to_string(index=False), f'({part}: {time.time()-start:.0f} s)', sep='\n', flush=True)


if __name__ == '__main__': main()
