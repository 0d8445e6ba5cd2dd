"""Is a section where it was put? Evidence that the refinement did not use, and what it says.

Sections that their neighbours could not place were found by the same search (``registration.rescue``): for those it speaks only
for what the refinement made of its answer, and the rest of the evidence has to do.

The refinement follows structure and tone from where it starts. Here each section is sought once more on its MRI plane from no
initial guess (every rotation, both faces); its intensities are compared with the MRI's by NMI, beside copies of the MRI that are
turned or turned over, which say what chance gives in this very section; and its structure is held against the planes before and
behind its own. A logistic regression makes one probability of it; its weights were fitted to sections whose truth is known
(``docs/decisions/confidence.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.kernels.interpolate import warp_2d
from histomri.registration.channels import make_channels
from histomri.registration.depth import peak
from histomri.registration.pair import structure_score
from histomri.registration.rescue import CLEAR_MARGIN, MriPlanes, PlaneOfMri
from histomri.registration.resemblance import LEAST_LEAD, above_chance, turns
from histomri.registration.sanity import long_side_mm
from histomri.registration.similarity import nmi
from histomri.registration.together import together
from histomri.registration.volume import SectionPixels, on_plane
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement

Float = NDArray[np.float64]
Array = NDArray[np.float32]
DEPTHS = 4  # planes on either side
AGREES = 0.02  # of a section's size: two placements closer than this are the same
UNSEEN = 0.2  # where nothing can be compared, nothing speaks for a place
SETTLED = 0.5  # a section surer than this needs no remark on how it was placed
NEAR = 4  # sections on either side that share in a section's depth error
LEAST_DICE = 0.85
WRONG = 0.25  # of a section's size: how far off a section is that lies wrong
STEP = 0.0125  # of a section's size: two pixels that it was registered at
BIAS, WEIGHTS = -4.4, {"apart": -0.1, "margin": 1.2, "dice": 1.8, "lead": 1.1, "relief": 3.8, "depth": -2.9}
LEAST_PIXELS = 50
LEAST_TISSUE_PX = 16
LEAST_SPREAD = 0.001  # of the NMI of turned copies, which is near 0 where much is compared


@dataclass(frozen=True)
class Evidence:
    """What speaks for a section's place.

    ``search_mm``: rms distance between its tissue as placed and as a search from no initial guess places it (affine parts);
    ``search_score`` and ``margin``: that search's structure cosine and its lead over every other face and angle; ``dice`` with
    the MRI's mask; ``nmi`` with the MRI, 0 to 1, and ``lead``, how many robust standard deviations that lies above turned copies;
    ``depth_mm``: by how much the plane that its structure fits best lies behind its own (NaN where there is no peak);
    ``relief``: how far the structure cosine on its own plane rises above that on the farthest planes; ``size_mm``, of its tissue.
    """

    search_mm: float
    search_score: float
    margin: float
    dice: float
    nmi: float
    lead: float
    depth_mm: float
    relief: float
    size_mm: float


class Verifier:
    """Collects the evidence; ``pixels``, ``mri`` (image and mask), ``block_to_mri`` and ``bend`` are those of the refinement."""

    def __init__(
        self,
        pixels: Mapping[str, SectionPixels],
        mri: tuple[Image, Image],
        block_to_mri: Float,
        spacing_mm: float,
        bend: DisplacementField | None = None,
    ) -> None:
        self.pixels, self.block_to_mri = pixels, block_to_mri
        self.planes = MriPlanes.for_pixels(mri, spacing_mm, bend)
        self.step_mm = max(2 * spacing_mm, float(mri[0].grid.spacing_mm.max()))

    def all(self, placements: Mapping[str, Placement]) -> dict[str, Evidence]:
        """The evidence for each placed section whose plane meets the MRI's tissue; it does not depend on other sections."""
        keys = [k for k, p in placements.items() if p.is_placed and k in self.pixels]
        found = together([partial(self.of, placements[k]) for k in keys])
        return {k: e for k, e in zip(keys, found, strict=True) if e is not None}

    def of(self, placement: Placement) -> Evidence | None:
        """The evidence for one placed section; None where the MRI shows no tissue on its plane, or the section hardly any."""
        plane = self.planes.at(placement.position_mm, self.block_to_mri)
        if plane is None or placement.affine is None or int(self.pixels[placement.section].mask.data.sum()) < LEAST_TISSUE_PX:
            return None
        here, tissue = self._section_on(plane.image.grid, placement)
        own, lead = _likeness(plane, here, tissue)
        both = int((tissue & plane.mask.data).sum())
        depth, relief = self._depth(plane.image.grid, placement, here, tissue)
        pixels = self.pixels[placement.section]
        matrix, score, margin = plane.find(pixels, (False, True))
        return Evidence(
            search_mm=apart_mm(placement.affine.matrix, matrix, pixels.mask),
            search_score=score,
            margin=margin,
            dice=2 * both / max(int(tissue.sum()) + int(plane.mask.data.sum()), 1),
            nmi=own,
            lead=lead,
            depth_mm=depth,
            relief=relief,
            size_mm=long_side_mm(pixels.mask),
        )

    def missing(self, placement: Placement) -> str:
        """Why there is no evidence for a placed section, in words."""
        if self.planes.at(placement.position_mm, self.block_to_mri) is None:
            return "the MRI shows no tissue on its plane, so that nothing in the MRI speaks for its place"
        return "it holds too little tissue to be compared with the MRI"

    def _section_on(self, grid: Grid, placement: Placement) -> tuple[Array, NDArray[np.bool_]]:
        both = on_plane(self.pixels[placement.section], placement, grid)
        return np.ascontiguousarray(both[..., 0]), both[..., 1] >= 0.5

    def _depth(self, grid: Grid, placement: Placement, here: Array, tissue: NDArray[np.bool_]) -> tuple[float, float]:
        """``depth_mm`` and ``relief`` (see :class:`Evidence`)."""
        section = make_channels(Image(grid, here), Image(grid, tissue), "structure")
        offsets = self.step_mm * np.arange(-DEPTHS, DEPTHS + 1, dtype=float)
        images = [self.planes.on(grid, placement.position_mm + d, self.block_to_mri) for d in offsets]
        scores = np.array([structure_score(make_channels(*i, "structure"), section, np.eye(3)) for i in images])
        return peak(offsets, scores), float(scores[DEPTHS] - (scores[0] + scores[-1]) / 2)


def apart_mm(a: Float, b: Float, mask: Image, n: int = 500) -> float:
    """Rms distance in the block between a section's tissue under two affine placements (3, 3), block to section."""
    nodes = np.argwhere(mask.data)
    points = mask.grid.to_world(nodes[:: max(1, len(nodes) // n)])
    there = [Affine(m).inverse().map(points) for m in (a, b)]
    return float(np.sqrt(((there[0] - there[1]) ** 2).sum(axis=1).mean()))


def _likeness(plane: PlaneOfMri, here: Array, tissue: NDArray[np.bool_]) -> tuple[float, float]:
    """NMI of the section and its plane, and its lead over copies of the plane turned about the section's middle."""
    if not tissue.any():
        return 0.0, 0.0
    grid = plane.image.grid
    both = np.stack([np.asarray(plane.image.data, np.float32), np.asarray(plane.mask.data, np.float32)], axis=-1)
    own = _shared(both, here, tissue)
    shape = (grid.shape[0], grid.shape[1])
    turned = (warp_2d(both, grid.world_to_index @ t.matrix @ grid.index_to_world, shape) for t in turns(Image(grid, tissue)))
    return own, above_chance(own, [_shared(copy, here, tissue) for copy in turned], LEAST_SPREAD)[1]


def _shared(plane: Array, here: Array, tissue: NDArray[np.bool_]) -> float:
    """NMI where both have tissue, 0 (nothing shared) to 1."""
    inside = tissue & (plane[..., 1] >= 0.5)
    return -nmi(plane[..., 0][inside], here[inside]) if int(inside.sum()) >= LEAST_PIXELS else 0.0


def confidence(evidence: Evidence) -> float:
    """Probability that the section lies right: logistic in the evidence (weights: ``docs/decisions/confidence.md``)."""
    terms = features(evidence)
    return float(1 / (1 + np.exp(-(BIAS + sum(WEIGHTS[name] * value for name, value in terms.items())))))


def features(evidence: Evidence) -> dict[str, float]:
    """What the regression sees, each bounded, so that no single piece of evidence says more than it can."""
    apart = float(np.clip(np.log10(max(evidence.search_mm / max(evidence.size_mm, 1e-9), 1e-6) / AGREES), -1, 1))
    depth = abs(evidence.depth_mm) / max(STEP * evidence.size_mm, 1e-9) if np.isfinite(evidence.depth_mm) else 3.0
    return {
        "apart": apart,
        # a search that is sure speaks for the place where it agrees with it, and against it where it does not
        "margin": -apart * float(np.clip(evidence.margin, 0, 0.3)) / 0.3,
        "dice": float(np.clip((evidence.dice - 0.8) / 0.15, -1, 1)),
        "lead": float(np.clip(evidence.lead, 0, 10)) / 10,
        "relief": float(np.clip(evidence.relief, 0, 0.3)) / 0.3,
        "depth": min(depth, 3.0) / 3,
    }


@dataclass(frozen=True)
class Verdict:
    """``confidence`` that the section lies right, the expected error of its points in mm, and why it is low, in words."""

    confidence: float
    error_mm: float
    reasons: tuple[str, ...]
    record: dict[str, float]


def verdicts(evidence: Mapping[str, Evidence], positions_mm: Mapping[str, float], spacing_mm: float) -> dict[str, Verdict]:
    """What the evidence says of each section; ``spacing_mm`` is the pixel that the sections were registered at."""
    order = sorted(evidence, key=lambda k: (positions_mm[k], k))
    sure = {k: confidence(evidence[k]) for k in order}
    out = {}
    for place, key in enumerate(order):
        near = order[max(0, place - NEAR) : place + NEAR + 1]
        depths = [evidence[k].depth_mm for k in near if np.isfinite(evidence[k].depth_mm) and sure[k] >= SETTLED]
        # one section's peak is noisy; planes err together
        depth = abs(float(np.median(depths))) if depths else spacing_mm
        error = expected_error_mm(evidence[key], sure[key], depth, spacing_mm)
        record = {f"verified_{name}": round(float(value), 4) for name, value in vars(evidence[key]).items() if name != "size_mm"}
        out[key] = Verdict(sure[key], error, reasons(evidence[key], sure[key]), record)
    return out


def expected_error_mm(evidence: Evidence, sure: float, depth_mm: float, spacing_mm: float) -> float:
    """``c e + (1 - c) w``: c the confidence, ``e^2 = search^2 + depth^2 + spacing^2`` where the section is right, ``w`` a
    quarter of its size where it is not."""
    right = min(float(np.sqrt(evidence.search_mm**2 + depth_mm**2 + spacing_mm**2)), WRONG * evidence.size_mm)
    return sure * right + (1 - sure) * WRONG * evidence.size_mm


def reasons(evidence: Evidence, sure: float) -> tuple[str, ...]:
    """What speaks against the section's place, in words; nothing where it is sure enough."""
    if sure >= SETTLED:
        return ()
    found = []
    if evidence.search_mm > AGREES * evidence.size_mm:
        found.append(f"a search from no initial guess places it elsewhere ({evidence.search_mm:.1f} mm away)")
    if evidence.margin < CLEAR_MARGIN:
        found.append("another face or angle fits its MRI plane as well")
    if evidence.lead < LEAST_LEAD:
        found.append("it resembles its MRI plane little more than turned copies of it do")
    if evidence.dice < LEAST_DICE:
        found.append(f"its outline is not that of its MRI plane (Dice {evidence.dice:.2f})")
    if not abs(evidence.depth_mm) <= 2 * STEP * evidence.size_mm:
        found.append("planes before or behind its own fit it better")
    return tuple(found) or ("what speaks for its place is weak all round",)
