"""resample: the sections of a stain, through the whole chain in one interpolation, onto a grid."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Block, Grid, Image, Section
from histomri.io.atomic import write_json
from histomri.io.nifti import read_geometry, write_nifti
from histomri.io.placements import read_placements
from histomri.io.publish import content_sha256, whole
from histomri.io.sections import SectionManifest, open_level, read_manifest
from histomri.io.volumes import COVERAGE, Planes, VolumeSpec, VolumeStore, tiles
from histomri.kernels.resample import FLAT, PlaneBend, PlaneWeight, SectionSource, accumulate, finished, needed_box
from histomri.kernels.stains import Look
from histomri.stages.grids import GridEntry, grid_entry
from histomri.stages.parts import Parts, take_over
from histomri.stages.stains import normalised_image, study_look
from histomri.transforms.placement import Placement, Placements

Float = NDArray[np.float64]
Tile = tuple[slice, ...]

MB = 1 << 20
# a section narrower than this share of the memory granted is read once and kept
KEPT_SHARE = 0.25


@dataclass(frozen=True)
class ResampleSettings:
    """Settings of ``resample``; see ``config/schema/resample.yaml``."""

    grids: list[Any] = field(default_factory=lambda: ["mri"])
    interpolation: str = "linear"
    through_plane: str = "linear"
    normalise_stain: bool = False
    max_gap_spacings: float = 3.0
    block_spacing_mm: float | None = None
    chunk_px: int = 64
    plane_chunk_px: int = 1024
    codec: str = "zstd"
    max_memory_mb: int = 2000
    max_job_mvox: int = 4000
    max_nifti_mb: int = 4000


@dataclass(frozen=True)
class PlacedSection:
    """A section that goes into the volume: where its pixels are and how the block finds them."""

    manifest: SectionManifest
    placement: Placement

    @property
    def scale(self) -> float:
        """Millimetres in the section per millimetre in the block's plane."""
        assert self.placement.affine is not None
        return float(np.sqrt(abs(np.linalg.det(self.placement.affine.linear))))

    @property
    def spacing_mm(self) -> float:
        """Pixel size of level 0 in mm of the block."""
        return min(self.manifest.pixel_size_mm) / self.scale

    def corners(self) -> Float:
        """The image's corners in the block's plane, (4, 2) in mm."""
        return self.placement.block_to_section.inverse().map(self.manifest.grid.corners())

    def level_for(self, spacing_mm: float) -> int:
        """The coarsest level whose pixels are not larger than ``spacing_mm`` in the block: its averages prevent aliasing."""
        ratio = spacing_mm / self.spacing_mm * 1.001
        return int(np.clip(np.floor(np.log2(max(ratio, 1.0))), 0, self.manifest.levels - 1))


class SectionPixels:
    """Boxes of the pixels of sections, (h, w, c); whole levels are kept as long as the memory granted allows it."""

    def __init__(self, max_memory_mb: int):
        self._budget = max_memory_mb * MB // 2
        self._kept: OrderedDict[str, NDArray[Any]] = OrderedDict()

    def box(self, level: Image, name: str, first: NDArray[np.int64], until: NDArray[np.int64]) -> NDArray[Any]:
        """Pixels ``first`` to ``until`` (y, x) of a level."""
        rows, columns = (slice(int(a), int(b)) for a, b in zip(first, until, strict=True))
        size = int(np.prod(level.data.shape)) * level.data.dtype.itemsize
        if size > self._budget * KEPT_SHARE:
            return _with_channels(level.data[rows, columns])
        if name not in self._kept:
            while self._kept and sum(a.nbytes for a in self._kept.values()) + size > self._budget:
                self._kept.popitem(last=False)
            self._kept[name] = _with_channels(level.data[...])
        self._kept.move_to_end(name)
        return np.ascontiguousarray(self._kept[name][rows, columns])


def _with_channels(pixels: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(pixels if pixels.ndim == 3 else pixels[..., None])


@dataclass(frozen=True)
class VolumePlan:
    """Everything that says what a volume will be: its grid, the way to the block, its sections by position, pixel type, notes.

    ``to_block`` (3, 4) takes the grid's indices to block mm, ``bend`` these to the sections' planes.
    """

    grid: Grid
    to_block: Float
    space: str
    sections: tuple[PlacedSection, ...]
    channels: tuple[str, ...]
    dtype: str
    settings: ResampleSettings
    chunk: tuple[int, int, int]
    notes: tuple[str, ...] = ()
    look: Look | None = None
    bend: PlaneBend = FLAT

    def section_spacing_mm(self) -> float:
        """The usual distance of neighbouring sections of this stain."""
        return _usual_spacing([s.placement.position_mm for s in self.sections])

    def in_plane_spacing_mm(self) -> float:
        """The finest step of the grid among the axes that lie more in the sections' plane than across it, in mm of the block."""
        steps = self.to_block[:, :3]
        lengths = np.linalg.norm(steps, axis=0)
        in_plane = np.linalg.norm(steps[1:], axis=0) > 0.5 * lengths
        return float(lengths[in_plane].min())

    def weight(self, i: int) -> PlaneWeight:
        """How far section ``i`` speaks for the block."""
        positions = [-np.inf, *(s.placement.position_mm for s in self.sections), np.inf]
        spacing, before, after = self.section_spacing_mm(), positions[i], positions[i + 2]
        max_gap = self.settings.max_gap_spacings * spacing
        nearest = self.settings.through_plane == "nearest"
        return PlaneWeight(float(positions[i + 1]), float(before), float(after), max_gap, spacing / 2, nearest)


def _usual_spacing(positions: Sequence[float]) -> float:
    gaps = np.diff(np.unique(positions))
    return float(np.median(gaps)) if len(gaps) else 1.0


def _in_use(
    sections: Sequence[Section], manifests: Mapping[str, Path], placements: Placements, stain: str
) -> tuple[list[PlacedSection], list[str]]:
    """The placed sections of a stain by position, and why others are left out."""
    found, notes = [], []
    for section in sections:
        if section.block != placements.block or section.stain != stain or section.id not in manifests:
            continue
        manifest, placement = read_manifest(manifests[section.id]), placements.placed.get(section.id)
        if not manifest.is_usable or placement is None:
            notes.append(f"section {section.id} is left out: it is {'not placed' if manifest.is_usable else manifest.status}")
            continue
        found.append(PlacedSection(manifest, placement))
    found.sort(key=lambda s: (s.placement.position_mm, s.manifest.section))
    return _of_one_kind(found, notes)


def _of_one_kind(found: list[PlacedSection], notes: list[str]) -> tuple[list[PlacedSection], list[str]]:
    """Those with the most common channels and type, one per position: others cannot be blended with them."""
    kinds = Counter((s.manifest.channels, s.manifest.dtype) for s in found)
    kept: list[PlacedSection] = []
    for s in found:
        name = s.manifest.section
        if (s.manifest.channels, s.manifest.dtype) != kinds.most_common(1)[0][0]:
            notes.append(f"section {name} is left out: its channels or pixel type differ from those of the other sections")
        elif kept and s.placement.position_mm == kept[-1].placement.position_mm:
            notes.append(f"section {name} is left out: section {kept[-1].manifest.section} lies at the same position")
        else:
            kept.append(s)
    return kept, notes


def _block_grid(sections: Sequence[PlacedSection], in_plane_mm: float) -> Grid:
    """A grid in the block's frame over all sections: their spacing along z, ``in_plane_mm`` along y and x."""
    if not sections:
        return Grid((1, 1, 1), np.ones(3))
    positions = [s.placement.position_mm for s in sections]
    corners = np.concatenate([s.corners() for s in sections])
    low, high, dz = corners.min(0), corners.max(0), _usual_spacing(positions)
    depth = round((positions[-1] - positions[0]) / dz) + 1
    in_plane = np.ceil((high - low) / in_plane_mm).astype(int) + 1
    return Grid((depth, *in_plane), np.array([dz, in_plane_mm, in_plane_mm]), np.array([positions[0], *low]))


def _default_in_plane_mm(sections: Sequence[PlacedSection], settings: ResampleSettings) -> float:
    finest = min((s.spacing_mm for s in sections), default=1.0)
    quarter = _usual_spacing([s.placement.position_mm for s in sections]) / 4
    return settings.block_spacing_mm or max(finest, quarter)


def _grid(
    entry: GridEntry, block: Block, placements: Placements, sections: Sequence[PlacedSection], settings: ResampleSettings
) -> tuple[Grid, Float, str]:
    """The grid of an entry, its (3, 4) matrix from indices to block mm, and its space."""
    space = f"block:{block.id}"
    if entry == "sections":
        grid = _block_grid(sections, min((s.spacing_mm for s in sections), default=1.0))
    elif entry == "block" or block.mri is None or placements.mri_to_block is None:
        grid = _block_grid(sections, _default_in_plane_mm(sections, settings))
        if not isinstance(entry, str):
            grid = grid.with_spacing(entry["spacing_mm"])
    else:
        mri, _ = read_geometry(block.mri)
        grid = mri if isinstance(entry, str) else mri.with_spacing(entry["spacing_mm"])
        return grid, (placements.mri_to_block.matrix @ grid.index_to_world)[:3], "mri"
    return grid, grid.index_to_world[:3], space


def plan_volume(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    block: Block,
    placements: Placements,
    choice: tuple[str, str],
    settings: ResampleSettings,
) -> VolumePlan:
    """What the volume of ``choice`` = (grid name, stain) will be. Nothing is computed but geometry."""
    grid_name, stain = choice
    used, notes = _in_use(sections, manifests, placements, stain)
    entry = grid_entry(settings.grids, grid_name)
    grid, to_block, space = _grid(entry, block, placements, used, settings)
    if not used:
        notes.append(f"no section of stain {stain} was placed: the volume is empty")
    first = used[0].manifest if used else None
    chunk = (1, settings.plane_chunk_px, settings.plane_chunk_px) if entry == "sections" else (settings.chunk_px,) * 3
    return VolumePlan(
        grid=grid,
        to_block=to_block,
        space=space,
        sections=tuple(used),
        channels=first.channels if first else ("grey",),
        dtype=first.dtype if first else "uint8",
        settings=settings,
        chunk=chunk,
        notes=tuple(notes),
        look=study_look([s.manifest for s in used]) if settings.normalise_stain else None,
        bend=_bend(placements) if space == "mri" else FLAT,
    )


def _bend(placements: Placements) -> PlaneBend:
    field = placements.plane_bend
    if field is None:
        return FLAT
    along = np.ascontiguousarray(field.values[..., 0], np.float64)
    return PlaneBend(along, np.stack([field.grid.origin_mm, field.grid.spacing_mm]), float(along.min()), float(along.max()))


@dataclass(frozen=True)
class _Feed:
    """One section, ready to be drawn from: its level, the transform to that level's pixels, and its weight."""

    name: str
    image: Image
    empty: SectionSource
    weight: PlaneWeight

    def reach(self) -> tuple[float, float]:
        """Positions between which the section counts."""
        w = self.weight
        low = w.before if w.position - w.before <= w.max_gap else w.position - w.half_spacing * 1.001
        high = w.after if w.after - w.position <= w.max_gap else w.position + w.half_spacing * 1.001
        return low, high


def _feed(plan: VolumePlan, i: int) -> _Feed:
    placed = plan.sections[i]
    level = open_level(placed.manifest, placed.level_for(plan.in_plane_spacing_mm()))
    image = normalised_image(level, placed.manifest, plan.look)
    affine, u = placed.placement.affine, placed.placement.field
    assert affine is not None
    source = SectionSource(
        pixels=np.zeros((0, 0, len(plan.channels)), plan.dtype),
        origin=np.zeros(2, np.int64),
        shape=np.asarray(image.grid.shape, np.int64),
        to_index=np.ascontiguousarray((image.grid.world_to_index @ affine.matrix)[:2]),
        field=np.zeros((0, 0, 2)) if u is None else np.ascontiguousarray(u.values, np.float64),
        field_frame=np.ones((2, 2)) if u is None else np.stack([u.grid.origin_mm, u.grid.spacing_mm]),
        nearest=plan.settings.interpolation == "nearest",
    )
    return _Feed(placed.manifest.section, image, source, plan.weight(i))


def resample_tile(
    plan: VolumePlan, feeds: Sequence[_Feed], pixels: SectionPixels, box: Tile
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """One tile of the volume: pixels (z, y, x, c) and coverage (z, y, x). The same values whatever the tiling."""
    shape = tuple(b.stop - b.start for b in box)
    start = np.array([b.start for b in box], np.int64)
    ends = np.stack(np.meshgrid(*[(0, n - 1) for n in shape], indexing="ij"), -1).reshape(-1, 3) + start
    corners = ends @ plan.to_block[:, :3].T + plan.to_block[:, 3]
    low, high = corners[:, 0].min() + plan.bend.low, corners[:, 0].max() + plan.bend.high
    sums = np.zeros((*shape, len(plan.channels) + 1), np.float32)
    for feed in feeds:
        reach = feed.reach()
        if reach[1] < low - 1e-9 or reach[0] > high + 1e-9:
            continue
        first, until = needed_box(corners, feed.empty)
        if (until > first).all():
            source = feed.empty._replace(pixels=pixels.box(feed.image, feed.name, first, until), origin=first)
            accumulate(sums, start, plan.to_block, feed.weight, source, plan.bend)
    return finished(sums, plan.dtype)


def spec_of(plan: VolumePlan, choice: tuple[str, str]) -> VolumeSpec:
    """What the store of ``choice`` = (grid name, stain) holds."""
    grid_name, stain = choice
    return VolumeSpec(f"{stain} in {grid_name}", plan.grid, plan.channels, plan.dtype, plan.chunk, plan.settings.codec)


def fill(volume: VolumeStore, plan: VolumePlan, boxes: Iterable[Tile]) -> int:
    """Compute and write these tiles of level 0; returns the number of covered voxels among them."""
    feeds = [_feed(plan, i) for i in range(len(plan.sections))]
    pixels, covered = SectionPixels(plan.settings.max_memory_mb), 0
    for box in boxes:
        values, coverage = resample_tile(plan, feeds, pixels, box)
        volume.write(0, box, values, coverage)
        covered += int(coverage.sum(dtype=np.int64))
    return covered


def _write_store(store: Path, spec: VolumeSpec, plan: VolumePlan, parts: Parts | None) -> tuple[list[Grid], int]:
    """Write the whole store, or take over what jobs wrote; returns the grids of its levels and the number of covered voxels."""
    with whole(store) as partial:
        if parts:
            covered = take_over(parts, partial)
            volume = VolumeStore(partial, spec, is_there=True)
        else:
            volume = VolumeStore(partial, spec)
            covered = fill(volume, plan, tiles(plan.grid.shape, plan.chunk))
        volume.make_levels()
    return volume.grids, covered


def _nifti_level(grids: Sequence[Grid], plan: VolumePlan) -> int:
    """The finest level that is not larger than a NIfTI may become; the last where none is."""
    voxel = len(plan.channels) * np.dtype(plan.dtype).itemsize
    sizes = [float(np.prod(np.asarray(g.shape, float))) * voxel for g in grids]
    return next((i for i, s in enumerate(sizes) if s <= plan.settings.max_nifti_mb * MB), len(grids) - 1)


def _write_niftis(store: Path, nifti: Path, coverage: Path, grid: Grid, level: int, plan: VolumePlan) -> None:
    from histomri.io.omezarr import open_array

    planes = Planes(open_array(store, str(level)))
    write_nifti(nifti, Image(grid, planes, plan.channels if len(plan.channels) > 1 else ()))
    write_nifti(coverage, Image(grid, Planes(open_array(store, f"{COVERAGE}/{level}"))))


def resample_volume(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    block: Block,
    placements: Path,
    grid_name: str,
    stain: str,
    settings: ResampleSettings,
    store: Path,
    nifti: Path,
    coverage: Path,
    manifest: Path,
    parts: Parts | None = None,
) -> None:
    """Interpolate the sections of a stain once, from their pixels to a grid, and write the volume and its coverage.

    Between two sections up to ``max_gap_spacings`` apart their values are blended by distance; elsewhere a section fills half of
    its spacing. Coverage is 1 where the nearer section's image holds the voxel, 0 (and value 0) elsewhere. Without an MRI the
    grid ``mri`` is the block's own. ``manifest`` is written last. Where jobs of their own wrote level 0
    (``parts``), it is taken over.
    """
    record = read_placements(placements)
    plan = plan_volume(sections, manifests, block, record, (grid_name, stain), settings)
    grids, covered = _write_store(store, spec_of(plan, (grid_name, stain)), plan, parts)
    level = _nifti_level(grids, plan)
    _write_niftis(store, nifti, coverage, grids[level], level, plan)
    notes = list(plan.notes)
    if level:
        notes.append(
            f"the NIfTI files hold level {level} of the volume: level 0 would exceed max_nifti_mb = {settings.max_nifti_mb}"
        )
    content = _manifest(plan, grids, covered, notes)
    names = {"store": store.name, "nifti": nifti.name, "coverage": coverage.name, "nifti_level": level}
    ids = {"block": block.id, "stain": stain, "grid": grid_name, "content_sha256": content_sha256(store)}
    write_json(manifest, {**ids, **names, **content})


def _manifest(plan: VolumePlan, grids: Sequence[Grid], covered: int, notes: list[str]) -> dict[str, Any]:
    spacing = plan.in_plane_spacing_mm()
    return {
        "space": plan.space,
        "shape": list(plan.grid.shape),
        "spacing_mm": plan.grid.spacing_mm.tolist(),
        "index_to_world": plan.grid.index_to_world.tolist(),
        "levels": len(grids),
        "channels": list(plan.channels),
        "dtype": plan.dtype,
        "normalised_stain": plan.look is not None,
        "coverage_fraction": covered / float(np.prod(np.asarray(plan.grid.shape, float))),
        "sections": {
            s.manifest.section: {"level": s.level_for(spacing), "content_sha256": s.manifest.content_sha256}
            for s in plan.sections
        },
        "notes": notes,
    }
