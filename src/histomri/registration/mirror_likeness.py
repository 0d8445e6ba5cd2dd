"""Specimens that resemble their own mirror image, as a coronal brain does: what a wrong face scores is then no chance.

There a pair is judged by its lead over its own wrong faces and angles, not by what wrong faces score all over the study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from histomri.registration.along_stack import running_median

if TYPE_CHECKING:
    from histomri.registration.section_graph import Edge

Float = NDArray[np.float64]
# sections that have nothing to do with each other score 0.08 to 0.2: docs/decisions/registration.md
CHANCE = 0.3
WINDOW = 15
LEAST_WIDTH = 0.05


def least_lead(edges: list[Edge], names: list[str], alpha: float) -> float:
    """The lead (``margin``) that an unrelated pair reaches with probability ``alpha``; infinite where wrong faces are chance.

    An unrelated pair's two best scores are two draws from what this pair of sections scores by chance, so that their difference
    spreads by the root of two times as much as wrong faces do about their running median along the stack, in order of ``names``.
    """
    place = {n: i for i, n in enumerate(names)}
    known = sorted(
        (e for e in edges if np.isfinite(e.other_face) and e.other_face > -1), key=lambda e: (place[e.fixed], place[e.moving])
    )
    wrong = np.array([e.other_face for e in known])
    if len(wrong) < 2 * WINDOW or np.median(wrong) <= CHANCE:
        return np.inf
    spread = 1.4826 * float(np.median(np.abs(wrong - running_median(wrong, WINDOW)))) + 1e-3
    return float(norm.isf(alpha) * np.sqrt(2.0) * spread)


def sureness(score: float, threshold: float, lead: float, least: float) -> float:
    """How surely a section is placed, 0 to 1, from its best accepted pair's ``score`` and the largest ``lead`` of its pairs.

    0 at the threshold of either and 1 well above it; 0 where no pair was accepted.
    """
    if score <= 0:
        return 0.0
    by_score = (score - threshold) / (1e-9 + 0.5 * max(threshold, 0.1))
    by_lead = (lead - least) / (2 * max(least, LEAST_WIDTH)) if np.isfinite(least) else 0.0
    return float(min(1.0, max(0.0, by_score, by_lead)))
