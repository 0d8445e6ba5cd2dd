"""What ``stack.order: unknown`` asks of a study."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from histomri.core import Section, Stack
from histomri.core.errors import Problem

UNKNOWN = "unknown"
MOST_UNKNOWN = 200  # sections of unknown order: 20,000 pairs, an hour and a half on one core


def order_problems(order: object, sections: Iterable[Section]) -> Iterator[Problem]:
    """Blocks that cannot be put in order: too many sections to compare all with all, or several stains.

    ``order`` is the config's ``stack.order``, right or wrong.
    """
    if order != UNKNOWN:
        return
    blocks: dict[str, list[Section]] = {}
    for section in sections:
        blocks.setdefault(section.block, []).append(section)
    for name, members in blocks.items():
        used = Stack(name, tuple(members)).used
        yield from (Problem("config, key stack.order", f"block {name} has {what}", remedy) for what, remedy in _limits(used))


def _limits(used: tuple[Section, ...]) -> Iterator[tuple[str, str]]:
    """What is too much of a block's sections, and the remedy."""
    remedy = "fill in position_mm or index as far as it is known, and write order: sheet"
    if len(used) > MOST_UNKNOWN:
        limit = f"unknown is for {MOST_UNKNOWN} at most, because each is compared with all others"
        yield f"{len(used)} sections; {limit}", remedy
    stains = sorted({s.stain for s in used})
    if len(stains) > 1:
        reason = "unknown is for one, because likeness across stains says little of the order"
        yield (
            f"{len(stains)} stains ({', '.join(stains)}); {reason}",
            f"{remedy}; or set the sections of all stains but one to excluded",
        )
