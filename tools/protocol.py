"""A public protocol: a world of photographs with hidden sub-defects and planted noise, three data seeds, the rows of Table 2 on each, one table over them.

    python tools/protocol.py OUT --source FOLDER                                        # CIFAR-100, out of cifar-100-python.tar.gz
    python tools/protocol.py OUT --world fashion --source /usr/share/datasets/fashion-mnist
    python tools/protocol.py OUT --source FOLDER --size paper --px 224 --preset paper   # the paper's sizes: for a GPU
    python tools/protocol.py OUT --source FOLDER --plan                                 # say what would be done

The world (which superclasses are defects, which advertisers are misjudged, how much noise) is fixed in `storefront.CIFAR`; `subtask-kit synth` makes it, `run` and
`table2` do the rest. Every command goes on where it was stopped, and so does this one. Left in OUT: a folder a data seed (`world_0`, `run_0`, ...), results.csv and claims.csv.

Rules for whoever reports figures: test is clean and is looked at once, at the end; every choice (epochs, T, curriculum) is made on student_val; data seeds 0, 1, 2 and model
seeds 0, 1, 2; NPV at 5 % and 1 % FPR as difference to the row `vit`, mean and interval over data seeds; say size, width, preset, backbone and the kit's version.
"""
import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd

from subtask_kit.artifacts import read_table
from subtask_kit.core import UserError
from subtask_kit.evaluate import Evaluate, pool_claims, pool_results

TABLE = '43_table2'


def commands(out, world, source, size, px, val_noise, preset, data_seeds, model_seeds, rows=(), given=())->list[list[str]]:
    "What to run: words after `subtask-kit`."
    out, found = Path(out), []
    for s in data_seeds:
        made, run = out/f'world_{s}', out/f'run_{s}'
        found.append(['synth', made, '--world', world, *(['--source', source] if source else []), '--size', size, '--px', px, '--seed', s, '--val-noise', val_noise])
        found.append(['run', run, '--data', made/'manifest.csv', '--unlabelled', made/'unlabelled.csv', '--preset', preset, *(w for g in given for w in ('-p', *g.split('=', 1)))])
        found.append(['table2', run, '--seeds', model_seeds, *(['--rows', *rows] if rows else [])])
    return [[str(w) for w in words] for words in found]


def gathered(out, data_seeds)->tuple[pd.DataFrame,pd.DataFrame]: # results and claims over data seeds
    "One table from those of all data seeds."
    folders = [Path(out)/f'run_{s}'/TABLE for s in data_seeds]
    if lacks := [f for f in folders if not all((f/n).exists() for n in ('results.parquet', 'claims.parquet'))]:
        raise UserError(f'{lacks[0]} holds no finished table', 'run the command again, it goes on')
    results, claims = ([read_table(f/f'{n}.parquet') for f in folders] for n in ('results', 'claims'))
    return pool_results(results, Evaluate()), pool_claims(claims, Evaluate())


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('out', help='folder for worlds, runs and tables')
    p.add_argument('--world', choices=('cifar', 'fashion', 'storefront'), default='cifar')
    p.add_argument('--source', help='folder of the photographs')
    p.add_argument('--size', choices=('micro', 'tiny', 'paper'), default='tiny')
    p.add_argument('--px', type=int, default=64)
    p.add_argument('--val-noise', type=float, default=0., help='share of wrong verdicts among the defective ads of val')
    p.add_argument('--preset', default='tiny')
    p.add_argument('--data-seeds', type=int, nargs='+', default=[0, 1, 2])
    p.add_argument('--model-seeds', type=int, default=3)
    p.add_argument('--rows', nargs='+', default=[], help='some rows of Table 2')
    p.add_argument('-p', dest='given', metavar='NAME=VALUE', action='append', default=[], help='a parameter of the runs')
    p.add_argument('--plan', action='store_true', help='print the commands and end')
    args = p.parse_args(argv)
    todo = commands(args.out, args.world, args.source, args.size, args.px, args.val_noise, args.preset, args.data_seeds, args.model_seeds, args.rows, args.given)
    for words in todo:
        print('subtask-kit', shlex.join(words), flush=True)
        if not args.plan and (code := subprocess.run([Path(sys.executable).with_name('subtask-kit'), *words]).returncode): sys.exit(code)
    if args.plan: return
    try: tables = dict(zip(('results', 'claims'), gathered(args.out, args.data_seeds)))
    except UserError as e: sys.exit(str(e))
    for name, table in tables.items():
        table.to_csv(Path(args.out)/f'{name}.csv', index=False)
        print(table.to_string(index=False), flush=True)


if __name__ == '__main__': main()
