"""Does the order of the sheet agree with the images? Swapped neighbours, repeated sections, and sections that belong elsewhere.

Likeness falls with distance, so of two sections the farther one should be the less alike. Every test is held against the stack's
own spread of the same number (median and MAD), because how fast likeness falls, and how noisy it is, differs between studies;
figures for two whole brains are in ``docs/decisions/order.md``. Sections are only compared where their stains are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Likeness = Callable[[str, str], float]
LEAST_SECTIONS = 6
SWAPPED_Z, SWAPPED_LEAD = 4.0, 0.01
REPEATED_Z, REPEATED_LEAST_Z, REPEATED_BOTH_Z, MOST_Z, REPEATED_SCORE = 4.5, 1.5, 3.0, 6.0, 0.8
LEAST_SPREAD = 0.01
ELSEWHERE_LEAD = 0.15
USUAL = 0.75  # of the likeness of neighbours: two sections that are less alike than this are not neighbours
PROBES = 16


@dataclass(frozen=True)
class Remark:
    """What the images say against a section's place in the sheet."""

    section: str
    text: str


@dataclass(frozen=True, eq=False)
class Ordered:
    """Ids in the sheet's order, their stains, and the measured likeness of pairs, each in both directions."""

    ids: tuple[str, ...]
    stains: Mapping[str, str]
    scores: Mapping[tuple[str, str], float]

    def alike(self, a: str, b: str) -> float:
        """The measured likeness, NaN for a pair that was not measured."""
        return self.scores.get((a, b), float("nan"))

    def neighbours(self) -> list[tuple[str, str]]:
        """Each section and the next one of its stain."""
        by_stain: dict[str, list[str]] = {}
        for i in self.ids:
            by_stain.setdefault(self.stains[i], []).append(i)
        return [pair for ids in by_stain.values() for pair in pairwise(ids)]

    def around(self, a: str, b: str) -> tuple[list[str], list[str]]:
        """The sections before ``a`` and after ``b`` that were compared with both."""
        places = {i: n for n, i in enumerate(self.ids)}
        both = [k for k in self.ids if np.isfinite(self.alike(k, a)) and np.isfinite(self.alike(k, b))]
        return [k for k in both if places[k] < places[a]], [k for k in both if places[k] > places[b]]


def robust_z(values: Float) -> Float:
    """Robust standard deviations above the median, NaN where the value is."""
    if not np.isfinite(values).any():
        return np.full(values.shape, np.nan)
    middle = np.nanmedian(values)
    spread = max(1.4826 * float(np.nanmedian(np.abs(values - middle))), LEAST_SPREAD)
    return np.asarray((values - middle) / spread)


def swapped_lead(stack: Ordered, a: str, b: str) -> float:
    """By how much the sections before are more like ``b`` than like ``a``, and those after more like ``a``: below 0 in order.

    Both sides count the same, so that a pale or torn section, less like everything, does not matter. NaN with one side only.
    """
    before, after = stack.around(a, b)
    if not before or not after:
        return float("nan")
    left = np.mean([stack.alike(k, b) - stack.alike(k, a) for k in before])
    right = np.mean([stack.alike(k, a) - stack.alike(k, b) for k in after])
    return float((left + right) / 2)


def swapped(stack: Ordered) -> Iterator[Remark]:
    """Neighbours of one stain that stand in the wrong order."""
    pairs = stack.neighbours()
    lead = np.array([swapped_lead(stack, a, b) for a, b in pairs])
    for (a, b), d, z in zip(pairs, lead, robust_z(lead), strict=True):
        if d > SWAPPED_LEAD and z > SWAPPED_Z:
            yield Remark(a, f"the order in the sheet contradicts the images: it seems to be swapped with section {b}")
            yield Remark(b, f"the order in the sheet contradicts the images: it seems to be swapped with section {a}")


def repeated(stack: Ordered) -> Iterator[Remark]:
    """Sections so alike, for their distance, that both show one section.

    Two neighbours that are one section have the same likeness to all others too (``swapped_lead`` near 0, not below); both pieces
    of evidence together tell a second scan from two sections that are merely alike.
    """
    lead = {pair: swapped_lead(stack, *pair) for pair in stack.neighbours()}
    level = dict(zip(lead, robust_z(np.array(list(lead.values()))), strict=True))
    for (a, b), above in _likeness_z(stack).items():
        both = (above + min(level[a, b], MOST_Z)) / np.sqrt(2) if np.isfinite(level.get((a, b), np.nan)) else 0.0
        is_one = above > REPEATED_Z or (above > REPEATED_LEAST_Z and both > REPEATED_BOTH_Z)
        if is_one and stack.alike(a, b) > REPEATED_SCORE:
            text = "shows the same tissue as section {} (likeness {:.2f}): one section seems to be in the sheet twice"
            yield Remark(a, text.format(b, stack.alike(a, b)))
            yield Remark(b, text.format(a, stack.alike(a, b)))


def _likeness_z(stack: Ordered) -> dict[tuple[str, str], float]:
    """How far each measured pair of one stain, in order, lies above the pairs that are as many places apart."""
    places = {i: n for n, i in enumerate(stack.ids)}
    pairs = sorted((a, b) for a, b in stack.scores if places[a] < places[b] and stack.stains[a] == stack.stains[b])
    steps = np.array([places[b] - places[a] for a, b in pairs])
    # likeness near 1 is squeezed together
    scores = np.arctanh(np.clip([stack.alike(*p) for p in pairs], -0.99, 0.9999))
    z = np.full(len(pairs), np.nan)
    for step in np.unique(steps):
        z[steps == step] = robust_z(scores[steps == step])
    return dict(zip(pairs, z.tolist(), strict=True))


def strays(stack: Ordered, most: int) -> list[str]:
    """The sections that their neighbours are least like, at most ``most``: the neighbours resemble each other more than them."""
    lead = {}
    for n, i in enumerate(stack.ids):
        before, after = stack.ids[max(n - 1, 0) : n], stack.ids[n + 1 : n + 2]
        beside = [stack.alike(i, k) for k in (*before, *after)]
        across = [stack.alike(a, b) for a in before for b in after]
        own = np.nanmax([-1.0, *beside])
        # at the ends there is no bridge: the likeness that is usual for neighbours stands for it
        lead[i] = own - (across[0] if across and np.isfinite(across[0]) else _usual(stack))
    doubtful = [i for i in sorted(lead, key=lambda k: (lead[k], k)) if lead[i] < 0]
    return doubtful[:most]


def _usual(stack: Ordered) -> float:
    values = [stack.alike(a, b) for a, b in pairwise(stack.ids)]
    return USUAL * float(np.nanmedian(values)) if np.isfinite(values).any() else 0.0


def best_place(section: str, ids: Sequence[str], own: int, alike: Likeness, probes: int = PROBES) -> tuple[int, float, float]:
    """Where among ``ids`` (of its stain, in order, itself left out) a section belongs.

    ``own`` is the number of sections before it. Looks at ``probes`` places spread evenly, then ever closer to the best one, as
    likeness falls with distance. Returns the most alike place, its likeness, and the best likeness at the section's own place.
    """
    found = {n: alike(section, ids[n]) for n in range(max(own - 1, 0), min(own + 1, len(ids)))}
    here = max(found.values(), default=-1.0)
    step = max(len(ids) / probes, 1.0)
    found |= {
        n: alike(section, ids[n]) for n in np.unique(np.arange(step / 2, len(ids), step).astype(int)).tolist() if n not in found
    }
    while step > 1:
        step /= 2
        best = max(found, key=lambda n: (found[n], -n))
        for n in {max(best - round(step), 0), min(best + round(step), len(ids) - 1)} - set(found):
            found[n] = alike(section, ids[n])
    best = max(found, key=lambda n: (found[n], -n))
    return best, found[best], here


def elsewhere(stack: Ordered, most: int, measure: Likeness) -> Iterator[Remark]:
    """Strays that resemble a section of another place as neighbours do, and clearly more than their own."""
    for section in strays(stack, most):
        ids = [i for i in stack.ids if stack.stains[i] == stack.stains[section] and i != section]
        own = sum(stack.ids.index(i) < stack.ids.index(section) for i in ids)
        if len(ids) < LEAST_SECTIONS:
            continue
        place, score, here = best_place(section, ids, own, measure)
        if abs(place + 0.5 - own) > 1 and score > max(here + ELSEWHERE_LEAD, _usual(stack)):
            where = f"it resembles section {ids[place]} (likeness {score:.2f}) far more than its neighbours here ({here:.2f})"
            yield Remark(section, f"the order in the sheet contradicts the images: {where}")
