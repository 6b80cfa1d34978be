"""Build README.md from nbs/index.ipynb, without quarto: markdown as it is, code fenced, text outputs indented, pictures by path."""
import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parent.parent


def cell_markdown(cell) -> str:
    "One cell of the index as markdown."
    if cell.cell_type == 'markdown': return cell.source
    if cell.source.startswith('#| hide'): return ''
    # Code that makes a table is of no interest here; its table is.
    shows = any('text/markdown' in out.get('data', {}) for out in cell.outputs)
    parts = [] if shows else [f'``` python\n{cell.source}\n```']
    for out in cell.outputs:
        data = out.get('data', {})
        text = data.get('text/markdown') or data.get('text/html') or out.get('text') or data.get('text/plain')
        if text: parts.append(text if 'text/markdown' in data or 'text/html' in data else '\n'.join('    '+line for line in text.splitlines()))
    return '\n\n'.join(parts)


def main():
    nb = nbformat.read(ROOT/'nbs/index.ipynb', as_version=4)
    body = '\n\n'.join(t for t in map(cell_markdown, nb.cells) if t.strip())
    body = body.replace('](images/', '](nbs/images/').replace('](benchmarks/', '](nbs/benchmarks/').replace('](tutorials/', '](nbs/tutorials/').replace('](../', '](')
    (ROOT/'README.md').write_text('<!-- Made from nbs/index.ipynb by tools/readme.py: edit there. -->\n\n' + body.rstrip() + '\n')


if __name__ == '__main__': sys.exit(main())
