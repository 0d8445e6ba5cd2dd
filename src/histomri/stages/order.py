"""Part of the stage ``stack``: what the images say against the order in the sheet."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from histomri.core import Section, Stack
from histomri.stages.stack import Preparation, StackSettings, faces_to_try, read_edges

if TYPE_CHECKING:
    from histomri.registration.order import Remark
    from histomri.registration.section_graph import Edge


def check_order(
    sections: Sequence[Section], manifests: Mapping[str, Path], edges: Sequence[Path], remarks: Path, settings: StackSettings
) -> None:
    """Hold the order in the sheet against the measured pairs, and seek the sections that fit least in other places.

    ``remarks`` is JSON: the texts by section, and how many pairs were measured for it.
    """
    from histomri.io.atomic import write_json
    from histomri.registration.order import LEAST_SECTIONS, Ordered, elsewhere, repeated, swapped

    measured = [e for path in edges for e in read_edges(path)]
    scores = {pair: e.score for e in measured for pair in ((e.fixed, e.moving), (e.moving, e.fixed))}
    known = {i for pair in scores for i in pair}
    used = [s for s in Stack("", tuple(sections)).used if s.id in known]
    found: list[Remark] = []
    compare = _Comparison({s.id: s for s in used}, manifests, settings, scores)
    if len(used) >= LEAST_SECTIONS:
        stack = Ordered(tuple(s.id for s in used), {s.id: s.stain for s in used}, scores)
        found = [*swapped(stack), *repeated(stack)]
        found += elsewhere(stack, settings.strays, compare.alike)
    out: dict[str, list[str]] = {}
    for remark in found:
        out.setdefault(remark.section, []).append(remark.text)
        print(f"{remark.section}: {remark.text}", flush=True)
    print(f"{len(used)} sections in order held against {len(measured)} pairs and {compare.count} more", flush=True)
    write_json(remarks, {"flags": out, "pairs": compare.count})


def seriate_sections(
    sections: Sequence[Section], manifests: Mapping[str, Path], edges: Sequence[Path], remarks: Path, settings: StackSettings
) -> None:
    """The order of the sections from all their pairs: the positions in the sheet, given to them in that order.

    Which end comes first, pairs cannot tell: it is that of the sheet. ``remarks`` is JSON: the positions by section.
    """
    import numpy as np

    from histomri.io.atomic import write_json
    from histomri.registration.seriation import seriate, weak_links

    measured = [e for path in edges for e in read_edges(path)]
    known = {i for e in measured for i in (e.fixed, e.moving)}
    used = [s for s in Stack("", tuple(sections)).used if s.id in known]
    place = {s.id: n for n, s in enumerate(used)}
    likeness = np.full((len(used), len(used)), np.nan)
    np.fill_diagonal(likeness, 1.0)
    for e in measured:
        likeness[place[e.fixed], place[e.moving]] = likeness[place[e.moving], place[e.fixed]] = e.score
    order = seriate(likeness)
    positions = {used[k].id: slot.position_mm for k, slot in zip(order, used, strict=True)}
    flags: dict[str, list[str]] = {}
    for n in weak_links(order, likeness):
        for here, other in ((order[n], order[n + 1]), (order[n + 1], order[n])):
            text = f"the order found is a guess here: section {used[other].id} beside it is no more like it than those far away"
            flags.setdefault(used[here].id, []).append(text)
    print("order:", " ".join(used[k].id for k in order), f"({len(flags)} sections in doubt)", flush=True)
    write_json(remarks, {"flags": flags, "pairs": 0, "positions": positions})


def with_positions(sections: Sequence[Section], remarks: Path | None) -> tuple[Section, ...]:
    """The sections at the positions of a file that :func:`seriate_sections` wrote; as they are for any other."""
    record = json.loads(remarks.read_text(encoding="utf-8")) if remarks else {}
    found = record.get("positions", {})
    return tuple(dataclasses.replace(s, position_mm=found.get(s.id, s.position_mm)) for s in sections)


def edges_within(reach: int, edges: Sequence[Edge], sections: Sequence[Section]) -> list[Edge]:
    """The edges between sections at most ``reach`` places apart, with the distances that they have now."""
    where = {s.id: (n, s.position_mm) for n, s in enumerate(Stack("", tuple(sections)).used)}
    near = [e for e in edges if abs(where[e.fixed][0] - where[e.moving][0]) <= reach]
    return [dataclasses.replace(e, distance_mm=abs(where[e.fixed][1] - where[e.moving][1])) for e in near]


def read_remarks(path: Path | None) -> dict[str, tuple[str, ...]]:
    """The texts by section of a file that :func:`check_order` wrote."""
    record = json.loads(path.read_text(encoding="utf-8"))["flags"] if path else {}
    return {section: tuple(texts) for section, texts in record.items()}


KEPT = 64


class _Comparison:
    """Compares sections far apart; what is measured or prepared once is kept."""

    def __init__(
        self,
        sections: Mapping[str, Section],
        manifests: Mapping[str, Path],
        settings: StackSettings,
        scores: Mapping[tuple[str, str], float],
    ):
        self.sections, self.count = sections, 0
        self.scores = dict(scores)
        # a section takes megabytes, and a stray meets the same few others again
        self.prepared = lru_cache(KEPT)(Preparation(manifests, set(sections), settings).of)

    def alike(self, a: str, b: str) -> float:
        """The structure score of a pair, measured now where it was not before; -1 where one of them cannot be read."""
        from histomri.registration.pair import register_pair

        if (a, b) not in self.scores:
            first, second = self.prepared(a), self.prepared(b)
            if first is None or second is None:
                return -1.0
            faces = faces_to_try(self.sections[a], self.sections[b])
            self.count += 1
            self.scores[a, b] = self.scores[b, a] = register_pair(first, second, mirrors=faces).score
        return self.scores[a, b]
