"""Which sections are suspicious, and why: thresholds on evidence, and outliers among peers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from histomri.evaluation.neighbours import NeighbourEvidence
from histomri.evaluation.regularity import TransformParts
from histomri.evaluation.summary import peer_trend, robust_z

Float = NDArray[np.float64]
NAN = float("nan")


@dataclass(frozen=True)
class Flag:
    """One reason to look at a section: a short stable ``code`` and the reason in words."""

    code: str
    reason: str

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


@dataclass(frozen=True)
class Evidence:
    """All that is known of one section when it is judged. NaN and None mean not measured.

    ``sheet_status`` and ``ingest_status`` are the words of the sections' sheet and of ingest's manifest; ``density`` is
    the median staining of the tissue and ``background`` the brightness of the glass (1 = white); ``folding`` is the
    folded share of the tissue and ``strain`` how much its deformation changes areas; ``sharpness``, ``soft_share`` (of its
    tiles) and ``saturation`` are ingest's measures; ``remarks`` are flags of earlier stages.
    """

    section: str
    stain: str
    sheet_status: str = "ok"
    ingest_status: str = "ok"
    placed: bool = True
    confidence: float = NAN
    density: float = NAN
    background: float = NAN
    mask_dice: float = NAN
    nmi_before: float = NAN
    nmi_after: float = NAN
    folding: float = 0.0
    strain: float = NAN
    neighbours: NeighbourEvidence = field(default_factory=NeighbourEvidence)
    sharpness: float = NAN
    soft_share: float = NAN
    saturation: float = NAN
    parts: TransformParts | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Thresholds:
    """When a section is suspicious. ``outlier_z`` is in robust standard deviations among ``peer_window`` peers on either side."""

    outlier_z: float = 4.0
    peer_window: int = 8
    min_mask_dice: float = 0.6
    min_confidence: float = 0.3
    min_pose_confidence: float = 0.75
    max_folding: float = 0.0
    max_nmi_loss: float = 0.01
    min_missing: float = 0.006
    min_extra: float = 0.04
    min_blotch: float = 0.08
    min_stain_change: float = 0.25
    min_blur: float = 0.2

    @property
    def log_stain_change(self) -> float:
        """``min_stain_change`` as a difference of logarithms."""
        return float(np.log1p(self.min_stain_change))

    @property
    def log_blur(self) -> float:
        """``min_blur``, a share of the sharpness that is lost, as a difference of logarithms."""
        return float(-np.log(1 - self.min_blur))


@dataclass(frozen=True)
class _OutlierRule:
    """A section is flagged when ``measure`` stands out from its peers on one ``side`` (+1 high, -1 low), by ``least`` or more.

    ``floor`` is the least robust sigma; ``least`` a difference in the measure's unit, or the name of a threshold; with
    ``same_stain`` only sections of its stain are its peers. ``reason`` may name ``value``, ``peers`` and ``ratio``.
    """

    code: str
    measure: Callable[[Evidence], float]
    side: int
    floor: float
    least: float | str
    reason: str
    same_stain: bool = False
    strictness: float = 1.0  # of outlier_z; less where ``least`` alone keeps good sections out


def _log(value: float) -> float:
    return float(np.log(value)) if value > 0 else NAN


def _log_size(e: Evidence) -> float:
    return _log(e.parts.scale_x * e.parts.scale_y) / 2 if e.parts else NAN


def _log_stretch(e: Evidence) -> float:
    return _log(e.parts.stretch) if e.parts else NAN


def _shear(e: Evidence) -> float:
    return abs(e.parts.shear) if e.parts else NAN


_RULES = (
    _OutlierRule(
        "mri_overlap",
        lambda e: e.mask_dice,
        -1,
        0.015,
        0.05,
        "it fits the MRI worse than its peers (Dice {value:.2f}, {peers:.2f})",
    ),
    _OutlierRule(
        "neighbour_overlap",
        lambda e: NAN if e.neighbours.one_sided else e.neighbours.overlap,
        -1,
        0.01,
        0.04,
        "its outline differs from its neighbours' (Dice {value:.2f}, peers {peers:.2f})",
    ),
    _OutlierRule(
        "similarity",
        lambda e: NAN if e.neighbours.one_sided else e.neighbours.similarity,
        -1,
        0.02,
        0.06,
        "its texture agrees less with its neighbours' than usual ({value:.2f}, peers {peers:.2f})",
        same_stain=True,
    ),
    _OutlierRule(
        "missing_tissue",
        lambda e: e.neighbours.missing,
        1,
        0.002,
        "min_missing",
        "{value:.1%} of the tissue that its neighbours have is missing (peers {peers:.1%}): torn, cracked or lost",
        strictness=0.5,
    ),
    _OutlierRule(
        "extra_tissue",
        lambda e: e.neighbours.extra,
        1,
        0.005,
        "min_extra",
        "{value:.1%} of its tissue is where no neighbour has any (peers {peers:.1%}): folded, displaced or dirt",
    ),
    _OutlierRule(
        "blotch",
        lambda e: e.neighbours.blotch,
        1,
        0.01,
        "min_blotch",
        "{value:.1%} of it is stained otherwise than its neighbours (peers {peers:.1%})",
        same_stain=True,
    ),
    _OutlierRule(
        "dark",
        lambda e: _log(e.density),
        1,
        0.04,
        "log_stain_change",
        "stained more strongly than its peers (ratio {ratio:.2f})",
        same_stain=True,
    ),
    _OutlierRule(
        "pale",
        lambda e: _log(e.density),
        -1,
        0.04,
        "log_stain_change",
        "stained more weakly than its peers (ratio {ratio:.2f})",
        same_stain=True,
    ),
    _OutlierRule(
        "background",
        lambda e: e.background,
        -1,
        0.01,
        0.05,
        "its glass is darker than its peers' ({value:.2f}, peers {peers:.2f})",
        same_stain=True,
    ),
    _OutlierRule(
        "focus",
        lambda e: _log(e.sharpness),
        -1,
        0.05,
        "log_blur",
        "less sharp than its peers (ratio {ratio:.2f}): out of focus",
        same_stain=True,
        strictness=0.5,
    ),
    _OutlierRule(
        "focus",
        lambda e: e.soft_share,
        1,
        0.04,
        0.2,
        "{value:.0%} of its tissue is out of focus (peers {peers:.0%})",
        same_stain=True,
    ),
    _OutlierRule(
        "colour",
        lambda e: _log(e.saturation),
        -1,
        0.05,
        0.4,
        "less coloured than its peers (ratio {ratio:.2f})",
        same_stain=True,
    ),
    _OutlierRule("scale", _log_size, 1, 0.015, 0.06, "larger than its peers (ratio {ratio:.2f})"),
    _OutlierRule("scale", _log_size, -1, 0.015, 0.06, "smaller than its peers (ratio {ratio:.2f})"),
    _OutlierRule("stretch", _log_stretch, 1, 0.015, 0.06, "more stretched than its peers (ratio {ratio:.2f})"),
    _OutlierRule(
        "strain",
        lambda e: e.strain,
        1,
        0.03,
        0.15,
        "deformed more than its peers (change of area {value:.2f}, peers {peers:.2f})",
    ),
    _OutlierRule("shear", _shear, 1, 0.015, 0.06, "sheared by {value:.2f} (peers {peers:.2f})"),
)


def _outliers(rule: _OutlierRule, evidence: Sequence[Evidence], t: Thresholds) -> dict[str, Flag]:
    """Section id -> flag, for the sections that a rule finds among these peers."""
    values = np.array([rule.measure(e) if e.placed else NAN for e in evidence])
    if np.isfinite(values).sum() < 4:
        return {}
    sigmas = robust_z(values, t.peer_window, rule.floor)
    differences = values - peer_trend(values, t.peer_window)
    least = getattr(t, rule.least) if isinstance(rule.least, str) else rule.least
    found = (rule.side * sigmas > rule.strictness * t.outlier_z) & (rule.side * differences > least)
    return {
        evidence[i].section: Flag(
            rule.code,
            rule.reason.format(value=values[i], peers=values[i] - differences[i], ratio=np.exp(differences[i])),
        )
        for i in np.flatnonzero(found).tolist()
    }


def _groups(evidence: Sequence[Evidence], same_stain: bool) -> list[list[Evidence]]:
    if not same_stain:
        return [list(evidence)]
    return [[e for e in evidence if e.stain == stain] for stain in sorted({e.stain for e in evidence})]


def _absolute_flags(e: Evidence, t: Thresholds) -> list[Flag]:
    """What is wrong with a section whatever its peers are like."""
    states = {
        "missing": Flag("missing", "the sheet says that this section is missing"),
        "excluded": Flag("excluded", "the sheet excludes this section"),
        "damaged": Flag("damaged", "the sheet says that this section is damaged"),
        "empty": Flag("no_tissue", "no tissue was found on it"),
        "unreadable": Flag("unreadable", "its file could not be read"),
    }
    found = [states[s] for s in dict.fromkeys((e.sheet_status, e.ingest_status)) if s in states]
    found += [Flag("remark", text) for text in e.remarks]
    if not e.placed:
        lost = [] if e.sheet_status in ("missing", "excluded") else [Flag("not_placed", "no place in the block was found")]
        return found + lost
    if e.confidence < t.min_confidence:
        found.append(Flag("confidence", f"the confidence in its place is {e.confidence:.2f}, less than {t.min_confidence:g}"))
    if e.mask_dice < t.min_mask_dice:
        found.append(Flag("mri_overlap", f"Dice with the MRI is {e.mask_dice:.2f}, less than {t.min_mask_dice:g}"))
    if e.nmi_after < e.nmi_before - t.max_nmi_loss:
        found.append(Flag("nmi", f"refinement lowered the NMI with the MRI from {e.nmi_before:.3f} to {e.nmi_after:.3f}"))
    if e.folding > t.max_folding:
        found.append(Flag("folding", f"its deformation folds over {e.folding:.2%} of its tissue"))
    return found


def _rotation_flags(evidence: Sequence[Evidence], t: Thresholds) -> dict[str, Flag]:
    """Sections turned against their peers, in a stack that is mounted evenly; where more than a tenth jump, mounting is free.

    Mirrored sections are left out: one turned over has no rotation that could be compared.
    """
    turns = np.array([e.parts.rotation_deg if e.placed and e.parts and not e.parts.mirrored else NAN for e in evidence])
    known = np.isfinite(turns)
    if known.sum() < 10:
        return {}
    unit = np.exp(1j * np.radians(turns))
    middle = np.median(unit[known].real) + 1j * np.median(unit[known].imag)
    difference = np.degrees(np.angle(unit / middle)) if abs(middle) > 0.1 else np.full(len(turns), NAN)
    jumps = np.flatnonzero(np.abs(robust_z(difference, t.peer_window, 5.0)) > 2 * t.outlier_z).tolist()
    if len(jumps) > 0.1 * known.sum():
        return {}
    return {evidence[i].section: Flag("rotation", f"turned {difference[i]:.0f} degrees against the stack") for i in jumps}


def _once(flags: Sequence[Flag]) -> tuple[Flag, ...]:
    """The first flag of each code, and every remark."""
    codes = [f.code for f in flags]
    return tuple(f for i, f in enumerate(flags) if f.code == "remark" or f.code not in codes[:i])


def pose_warning(confidence: float | None, least: float) -> str | None:
    """What must be said of a block's pose in the MRI where it is less sure than ``least``, None where it is sure or unknown."""
    if confidence is None or confidence >= least:
        return None
    return (
        f"the pose in the MRI is in doubt (confidence {confidence:.2f}, where 0.5 means that another pose fits as well). "
        "All its sections may lie wrong in the MRI, whatever is said of each"
    )


def flag_sections(evidence: Sequence[Evidence], thresholds: Thresholds) -> list[tuple[Flag, ...]]:
    """The flags of each section of one block, given in order of position: an empty tuple for one that raises no suspicion.

    A section is judged against its peers (see :func:`~histomri.evaluation.summary.robust_z`) in each measure, those of
    its own stain where staining matters; fewer than four peers judge nobody.
    """
    found: dict[str, list[Flag]] = {e.section: _absolute_flags(e, thresholds) for e in evidence}
    for rule in _RULES:
        for peers in _groups(evidence, rule.same_stain):
            for section, flag in _outliers(rule, peers, thresholds).items():
                found[section].append(flag)
    for section, flag in _rotation_flags(evidence, thresholds).items():
        found[section].append(flag)
    return [_once(found[e.section]) for e in evidence]
