"""A coarse block volume from placed sections, for registration only (``resample`` makes the published ones)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.kernels.interpolate import warp_2d
from histomri.registration.recolouring import Curve, conditional_mean
from histomri.transforms.displacement import DisplacementField
from histomri.transforms.placement import Placement

Float = NDArray[np.float64]
LEAST_EXPLAINED = 0.1
# of fewer pixels, a curve of 64 levels explains that share by chance
LEAST_PIXELS = 1000


@dataclass(frozen=True, eq=False)
class SectionPixels:
    """Coarse image and tissue mask of one section, in section mm, and its stain."""

    image: Image
    mask: Image
    stain: str = "histology"


def block_grid(
    pixels: Mapping[str, SectionPixels], placements: Mapping[str, Placement], spacing_mm: float, margin: int = 3
) -> Grid:
    """The (z, y, x) grid over all placed tissue at an isotropic spacing, with a margin in voxels.

    Raises ``ValueError`` when nothing is placed.
    """
    boxes = [_tissue_box(pixels[k].mask, p) for k, p in placements.items() if k in pixels and p.affine is not None]
    ends = [box for box in boxes if box is not None]
    if not ends:
        raise ValueError("No placed section has tissue.")
    # sections far off their peers (a wrong placement) must not blow the grid up
    low = np.percentile([e[0] for e in ends], 2, axis=0)
    high = np.percentile([e[1] for e in ends], 98, axis=0)
    z = [p.position_mm for k, p in placements.items() if k in pixels and p.affine is not None]
    first = np.array([min(z), *low]) - margin * spacing_mm
    last = np.array([max(z), *high]) + margin * spacing_mm
    shape = tuple(np.ceil((last - first) / spacing_mm).astype(int) + 1)
    return Grid(shape, np.full(3, spacing_mm), first)


def _tissue_box(mask: Image, placement: Placement) -> tuple[Float, Float] | None:
    nodes = np.argwhere(mask.data)
    if not len(nodes) or placement.affine is None:
        return None
    ends = np.array([nodes.min(axis=0), nodes.max(axis=0)])
    corners = np.array([[ends[i, 0], ends[j, 1]] for i in (0, 1) for j in (0, 1)], float)
    points = placement.affine.inverse().map(mask.grid.to_world(corners))
    return points.min(axis=0), points.max(axis=0)


def plane_grid(grid: Grid) -> Grid:
    """The in-plane (y, x) grid of a block grid."""
    return Grid(grid.shape[1:], grid.spacing_mm[1:], grid.origin_mm[1:])


def on_plane(pixels: SectionPixels, placement: Placement, plane: Grid) -> NDArray[np.float32]:
    """Image and mask of one section on a block-plane grid: (y, x, 2); the placement's deformation included."""
    if placement.affine is None:
        raise ValueError(f"Section {placement.section!r} is not placed.")
    both = np.stack([np.asarray(pixels.image.data, np.float32), np.asarray(pixels.mask.data, np.float32)], axis=-1)
    matrix = pixels.image.grid.world_to_index @ placement.affine.matrix @ plane.index_to_world
    return warp_2d(both, matrix, (plane.shape[0], plane.shape[1]), field_pixels(placement.field, plane))


def field_pixels(field: DisplacementField | None, plane: Grid) -> NDArray[np.float32] | None:
    """A displacement field on the nodes of another plane grid, in pixels of that grid."""
    if field is None:
        return None
    values = field.values if field.grid == plane else field.at(plane.points())
    return np.ascontiguousarray(values / plane.spacing_mm, np.float32)


def reconstruct(
    pixels: Mapping[str, SectionPixels], placements: Mapping[str, Placement], grid: Grid, max_gap_mm: float
) -> tuple[Image, Image]:
    """Volume of intensities (each section over its own mean) in the tones of the leading stain, and of the mask, (z, y, x).

    Each section stands for the slab up to the midpoints to its neighbours, at most ``max_gap_mm`` thick; a voxel is the average
    of the slabs over its depth. A stain that says nothing about the leading one (:func:`stain_tones`) is in the mask alone.
    """
    used = [k for k, p in placements.items() if p.is_placed and k in pixels]
    plane = plane_grid(grid)
    tones = stain_tones(pixels, {k: placements[k] for k in used}, plane, max_gap_mm)
    image, weight = np.zeros(grid.shape, np.float32), np.zeros(grid.shape[0])
    mask, mask_weight = np.zeros(grid.shape, np.float32), np.zeros(grid.shape[0])
    seen = [k for k in used if pixels[k].stain in tones]
    image_slabs = slabs(np.array([placements[k].position_mm for k in seen]), grid, max_gap_mm)
    mask_slabs = slabs(np.array([placements[k].position_mm for k in used]), grid, max_gap_mm)
    shares = dict(zip(seen, image_slabs, strict=True))
    for k, mask_share in zip(used, mask_slabs, strict=True):
        tone, cover = _over_mean(on_plane(pixels[k], placements[k], plane))
        for z in np.flatnonzero(mask_share):
            mask[z] += np.float32(mask_share[z]) * cover
            mask_weight[z] += mask_share[z]
        if k in shares:
            tone = _in_tones(tone, cover, tones[pixels[k].stain])
            for z in np.flatnonzero(shares[k]):
                image[z] += np.float32(shares[k][z]) * tone
                weight[z] += shares[k][z]
    image /= np.maximum(weight, 1e-6)[:, None, None].astype(np.float32)
    mask /= np.maximum(mask_weight, 1e-6)[:, None, None].astype(np.float32)
    return Image(grid, image), Image(grid, mask >= 0.5)


def stain_tones(
    pixels: Mapping[str, SectionPixels], placements: Mapping[str, Placement], plane: Grid, max_gap_mm: float
) -> dict[str, Curve | None]:
    """How each stain shows in the tones of the leading one, the one of most sections (None): the conditional mean.

    Asked of each section of another stain and the nearest one of the leading stain, where both show tissue. A stain of which it
    explains less than ``LEAST_EXPLAINED`` of the variance is left out: a marker of few cells is no tone of the tissue.
    """
    stains = [pixels[k].stain for k in placements]
    leading = max(sorted(set(stains)), key=stains.count)
    lead = [k for k in placements if pixels[k].stain == leading]
    tones: dict[str, Curve | None] = {leading: None}
    for stain in sorted(set(stains) - {leading}):
        pairs = [_tissue_of_both(pixels, placements, k, lead, plane, max_gap_mm) for k in placements if pixels[k].stain == stain]
        given, wanted = (np.concatenate([p[i] for p in pairs]) for i in (0, 1))
        if len(given) < LEAST_PIXELS:
            continue
        curve = conditional_mean(given, wanted)
        if curve.ratio >= LEAST_EXPLAINED:
            tones[stain] = curve
    return tones


def _tissue_of_both(
    pixels: Mapping[str, SectionPixels],
    placements: Mapping[str, Placement],
    key: str,
    lead: list[str],
    plane: Grid,
    max_gap_mm: float,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """What a section and the nearest of ``lead`` show of the tissue in both, (n,) each; nothing where that one is too far."""
    position = placements[key].position_mm
    near = min(lead, key=lambda k: (abs(placements[k].position_mm - position), k))
    if abs(placements[near].position_mm - position) > max_gap_mm:
        return np.zeros(0, np.float32), np.zeros(0, np.float32)
    shown = [_over_mean(on_plane(pixels[k], placements[k], plane)) for k in (key, near)]
    inside = (shown[0][1] > 0.5) & (shown[1][1] > 0.5)
    return shown[0][0][inside], shown[1][0][inside]


def _over_mean(here: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Image over its mean within the mask, and the mask, of (y, x, 2)."""
    inside = here[..., 1] > 0.5
    level = float(here[..., 0][inside].mean()) if inside.any() else 1.0
    return here[..., 0] / np.float32(max(level, 1e-6)), here[..., 1]


def _in_tones(tone: NDArray[np.float32], cover: NDArray[np.float32], curve: Curve | None) -> NDArray[np.float32]:
    """A section in the tones of the leading stain within its mask, as it is beside it."""
    if curve is None:
        return tone
    share = np.clip(cover, 0, 1)
    return np.asarray(share * curve.apply(tone) + (1 - share) * tone, np.float32)


def slabs(positions_mm: Float, grid: Grid, max_gap_mm: float) -> list[Float]:
    """Share of each z voxel's depth that each section stands for: one array (nz,) per section."""
    order = np.argsort(positions_mm, kind="stable")
    z = positions_mm[order]
    middle = (z[1:] + z[:-1]) / 2
    usual = float(np.median(np.diff(z))) if len(z) > 1 else max_gap_mm
    low = np.maximum(np.concatenate([[z[0] - usual / 2], middle]), z - max_gap_mm / 2)
    high = np.minimum(np.concatenate([middle, [z[-1] + usual / 2]]), z + max_gap_mm / 2)
    spacing = float(grid.spacing_mm[0])
    edges = grid.origin_mm[0] + (np.arange(grid.shape[0] + 1) - 0.5) * spacing
    out: list[Float] = [np.zeros(0)] * len(z)
    for rank, k in enumerate(order):
        out[k] = np.clip(np.minimum(high[rank], edges[1:]) - np.maximum(low[rank], edges[:-1]), 0, None) / spacing
    return out
