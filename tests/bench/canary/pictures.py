"""A table as a picture: cells coloured by a share from 0 to 1, as SVG that needs no font or script."""

from collections.abc import Collection, Sequence
from xml.sax.saxutils import escape

ROW, LABEL, CELL, HEAD = 26, 230, 96, 58


def draw_table(title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[tuple[float, str]]]], *, bad: Collection[str]) -> str:
    """`rows`: a label, and for each column a share and what is written on it. `bad`: the columns in which a high share is a bad one."""
    width, height = LABEL + CELL * len(columns) + 10, HEAD + ROW * len(rows) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="8" y="20" font-size="15" font-weight="bold" fill="#222222">{escape(title)}</text>',
    ]
    for number, column in enumerate(columns):
        parts.append(_text(LABEL + CELL * number + CELL / 2, HEAD - 8, column, size=11))
    for line, (label, cells) in enumerate(rows):
        top = HEAD + ROW * line
        weight = ' font-weight="bold"' if label.startswith("edgefleet") else ""
        parts.append(f'<text x="8" y="{top + 17}" fill="#222222"{weight}>{escape(label)}</text>')
        for number, (share, text) in enumerate(cells):
            left = LABEL + CELL * number
            parts.append(
                f'<rect x="{left}" y="{top}" width="{CELL - 2}" height="{ROW - 2}" fill="{_colour(share, columns[number] in bad)}"/>'
            )
            parts.append(_text(left + CELL / 2 - 1, top + 17, text))
    return "\n".join([*parts, "</svg>", ""])


def _text(x: float, y: float, text: str, size: int = 12) -> str:
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="middle" fill="#222222">{escape(text)}</text>'


def _colour(share: float, bad: bool) -> str:
    """From white to red where a high share is bad, to green where it is good; a few percent already show."""
    depth = min(1.0, max(0.0, share)) ** 0.5 if bad else min(1.0, max(0.0, share)) ** 2
    full = (226, 92, 80) if bad else (88, 176, 110)
    return "#" + "".join(f"{round(255 + (one - 255) * depth):02x}" for one in full)
