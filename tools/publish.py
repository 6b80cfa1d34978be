"""Bring a finished run's results into the repository: a table for the benchmark page, and the README's pictures.

    python tools/publish.py runs/demo storefront --pictures
    python tools/publish.py runs/fashion fashion
    python tools/publish.py runs/fashion1 fashion_1      (the world drawn with data seed 1)

Where `subtask-kit table2` has run, its results and claims come along (table2_NAME.csv).
"""
import argparse
from html import escape
from pathlib import Path

import pandas as pd
from PIL import Image

from subtask_kit.artifacts import open_run, read_json, read_table
from subtask_kit.report import contact_sheet
from subtask_kit.view import read_run

NBS = Path(__file__).parent.parent/'nbs'


def results_svg(table: pd.DataFrame, metric: str) -> str:
    "The gain over `vit` of every row, with its interval, as a small picture."
    t = table[(table.metric == metric) & table.gain.notna()].reset_index(drop=True)
    low, high = min(0, t.gain_low.min()) - .02, max(0, t.gain_high.max()) + .02
    x = lambda v: 110 + 400*(v - low)/(high - low)
    rows = ''.join(f'<text x="100" y="{34+26*i}" text-anchor="end">{escape(r.method)}</text>'
                   f'<path d="M{x(r.gain_low):.1f} {30+26*i}H{x(r.gain_high):.1f}" stroke="#0072b2" stroke-width="2"/><circle cx="{x(r.gain):.1f}" cy="{30+26*i}" r="4.5" fill="#0072b2"/>'
                   f'<text x="520" y="{34+26*i}">{r.gain:+.3f} ({r.gain_low:+.3f} to {r.gain_high:+.3f})</text>' for i, r in t.iterrows())
    height = 50 + 26*len(t)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="{height}" font-family="sans-serif" font-size="13">'
            f'<rect width="720" height="{height}" fill="white"/><path d="M{x(0):.1f} 14V{height-28}" stroke="#999"/>'
            f'<text x="{x(0):.1f}" y="{height-10}" text-anchor="middle" fill="#555">gain over vit in {escape(metric)}</text>{rows}</svg>\n')


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('run')
    p.add_argument('name')
    p.add_argument('--pictures', action='store_true', help="also renew the README's pictures")
    args = p.parse_args()
    run = open_run(args.run)
    t = read_json(run/'34_select/metrics.json')
    table = read_table(run/'41_evaluate/results.parquet').round(4).assign(kept=t['kept'], clusters=t['clusters'])
    table.to_csv(NBS/'benchmarks/results'/f'{args.name}.csv', index=False)
    read_table(run/'41_evaluate/claims.parquet').round(4).to_csv(NBS/'benchmarks/results'/f'{args.name}_claims.csv', index=False)
    clusters = read_table(run/'34_select/competence.parquet')[['cluster', 'size', 'lift', 'kept']].merge(read_table(run/'32_clusters/clusters.parquet')[['cluster', 'noise_share', 'top_sub_defect']], on='cluster')
    clusters.round(3).to_csv(NBS/'benchmarks/results'/f'{args.name}_clusters.csv', index=False)
    if (run/'43_table2/manifest.json').exists():
        for table, name in (('results', ''), ('claims', '_claims')): read_table(run/f'43_table2/{table}.parquet').round(4).to_csv(NBS/'benchmarks/results'/f'table2_{args.name}{name}.csv', index=False)
    print(f"{args.name}: {t['kept']} of {t['clusters']} clusters kept")
    if args.pictures:
        Image.fromarray(contact_sheet(read_run(run), 12)).save(NBS/'images/clusters.jpg', quality=85)
        (NBS/'images/results.svg').write_text(results_svg(table, 'npv@5%'))


if __name__ == '__main__': main()
