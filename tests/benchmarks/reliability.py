"""What a section's confidence is worth: ``python tests/benchmarks/reliability.py OUT.svg NAME=TRUTH.json ...``.

Each ``TRUTH.json`` is what ``bigbrain_truth.py --json`` wrote of one study. The picture has, for each range of confidence, the
share of all their sections that are right (plane within 1 mm, Dice at least 0.9), its 95 % interval (Wilson 1927) and their
number; on the dashed line a confidence is what it says. Below it each study's sections with a confidence of 0.9 or more.
Sections whose own truth is not sound are left out, as in ``of_confidence`` there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bigbrain_truth import SURE, by_confidence, judged

COLOUR = "#1b6ca8"
SIDE, LEFT, TOP = 420, 60, 44
Z = 1.96
Bin = tuple[float, int, int]  # mean confidence, right, all


def shown(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The sections that were measured, and that their truth can judge; foreign ones are wrong wherever they lie."""
    return judged([r for r in rows if r["dice"] == r["dice"] or r["fate"] == "foreign"])


def bins(rows: list[dict[str, Any]]) -> list[Bin]:
    """Mean confidence, right ones and all of them in each range that has any."""
    found = [some for some in by_confidence(rows) if some]
    return [(sum(r["confidence"] for r in some) / len(some), sum(r["right"] for r in some), len(some)) for some in found]


def interval(right: int, count: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson)."""
    share, spread = right / count, Z * Z / count
    middle = share + spread / 2
    half = Z * (share * (1 - share) / count + Z * Z / (4 * count * count)) ** 0.5
    return (middle - half) / (1 + spread), (middle + half) / (1 + spread)


def place(x: float, y: float) -> tuple[float, float]:
    """Confidence and share in the picture."""
    return LEFT + SIDE * x, TOP + SIDE * (1 - y)


def drawn(found: Sequence[Bin]) -> list[str]:
    """Points, their intervals, and the numbers behind them."""
    out = []
    for k, (confidence, right, count) in enumerate(found):
        low, high = interval(right, count)
        (x, y), (_, bottom), (_, top) = (place(confidence, v) for v in (right / count, low, high))
        out.append(f'<path d="M{x:.1f} {bottom:.1f}V{top:.1f}" stroke="{COLOUR}" stroke-width="1.5"/>')
        out.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{COLOUR}"/>')
        # above the frame, in two lines, where nothing is in their way
        out.append(f'<text x="{x:.1f}" y="{TOP - 8 - 16 * (k % 2)}" text-anchor="middle">{right} of {count}</text>')
    return out


def axes() -> list[str]:
    """Frame, ticks, titles, and the line on which a confidence is what it says."""
    (x0, y0), (x1, y1) = place(0, 0), place(1, 1)
    out = [
        f'<rect x="{x0}" y="{y1}" width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>',
        f'<path d="M{x0} {y0}L{x1} {y1}" stroke="#888" stroke-dasharray="5 4"/>',
        f'<text x="{x0 + SIDE / 2}" y="{y0 + 38}" text-anchor="middle">confidence that was given</text>',
        f'<text transform="translate({x0 - 42} {y0 - SIDE / 2}) rotate(-90)" text-anchor="middle">share that is right</text>',
    ]
    for tick in range(0, 11, 2):
        x, y = place(tick / 10, tick / 10)
        out.append(f'<text x="{x}" y="{y0 + 18}" text-anchor="middle">{tick / 10:g}</text>')
        out.append(f'<text x="{x0 - 8}" y="{y + 4}" text-anchor="end">{tick / 10:g}</text>')
    return out


def picture(studies: Sequence[tuple[str, list[dict[str, Any]]]]) -> str:
    """The whole as SVG."""
    body = axes() + drawn(bins([row for _, rows in studies for row in rows]))
    for k, (name, rows) in enumerate(studies):
        sure = [row["right"] for row in rows if row["confidence"] >= SURE]
        y = TOP + SIDE + 62 + 17 * k
        body.append(f'<text x="{LEFT}" y="{y}">{name}: {sum(sure)} of {len(sure)} given 0.9 or more are right</text>')
    width, height = LEFT + SIDE + 80, TOP + SIDE + 62 + 17 * len(studies)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    style = 'font-family="sans-serif" font-size="12" fill="#222"'
    return "\n".join([f"{head} {style}>", f'<rect width="{width}" height="{height}" fill="#fff"/>', *body, "</svg>"]) + "\n"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("studies", nargs="+", help="NAME=FILE, what bigbrain_truth.py --json wrote")
    given = parser.parse_args()
    studies = []
    for study in given.studies:
        name, _, file = study.partition("=")
        rows = shown(json.loads(Path(file).read_text())["rows"])
        print(name, ", ".join(f"{c:.2f}: {right}/{count}" for c, right, count in bins(rows)))
        studies.append((name, rows))
    given.output.write_text(picture(studies))


if __name__ == "__main__":
    main()
