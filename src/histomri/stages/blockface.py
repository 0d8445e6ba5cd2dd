"""blockface: photographs of the block become one calibrated volume, and each section finds its own photograph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histomri.core import Block, Grid, Image, InputError, Section
from histomri.core.errors import Problem

if TYPE_CHECKING:
    from histomri.io.volumes import VolumeStore
    from histomri.registration.photographs import Alignment
    from histomri.transforms.placement import Placement


@dataclass(frozen=True)
class BlockfaceSettings:
    """The ``blockface`` key of the config; see ``config/README.md`` for each field."""

    max_photograph_px: int = 1 << 27
    align_px: int = 400
    max_motion_mm: float = 5.0
    even_light: bool = True
    surface_threshold: float = 0.0
    search_px: int = 60
    fine_px: int = 220
    min_score: float = 0.0
    deformable: bool = True
    stiffness: float = 0.5
    chunk_px: int = 512
    codec: str = "zstd"


def build_volume(sections: Sequence[Section], block: Block, store: Path, manifest: Path, settings: BlockfaceSettings) -> None:
    """Photographs -> blockface volume (z, y, x, c) with the cut surface as a label, one plane per section position.

    Two passes over the photographs, one in memory at a time: at low resolution to align them and find light and surface, then
    at full resolution to write them, each interpolated once. A photograph that cannot be read leaves its plane empty and listed.
    """
    from histomri.io.atomic import write_json
    from histomri.io.publish import content_sha256, whole

    shown = [s for s in sorted(sections, key=lambda s: s.position_mm) if s.blockface is not None]
    pixel = block.blockface_pixel_size_mm
    if pixel is None:
        raise InputError(
            Problem(
                f"block {block.id!r}",
                "has photographs but no blockface_pixel_size_mm",
                "add the size of their pixels in mm to blocks.tsv",
            )
        )
    small, failed, size = _read_small(shown, pixel, settings)
    if not small:
        raise InputError(
            Problem(f"block {block.id!r}", "none of its photographs can be read", "check the column blockface in sections.tsv")
        )
    plan = _plan(small, settings)
    grid, planes = _volume_grid(shown, size, pixel)
    with whole(store) as partial:
        volume = _create(partial, block.id, grid, settings)
        for number, s in enumerate(shown, 1):
            if s.id in plan.alignments:
                _write_plane(volume, planes[s.id], s, plan, settings)
                print(f"photograph {number} of {len(shown)}: {s.id}, moved {plan.moved_mm(s.id):.3f} mm", flush=True)
        volume.make_levels()
    photographs = {s.id: _record(s, planes[s.id], plan) for s in shown if s.id in plan.alignments}
    write_json(
        manifest,
        {
            "block": block.id,
            "store": str(store),
            "shape": list(grid.shape),
            "spacing_mm": grid.spacing_mm.tolist(),
            "origin_mm": grid.origin_mm.tolist(),
            "photographs": photographs,
            "unreadable": failed,
            "content_sha256": content_sha256(store),
        },
    )


def _record(section: Section, plane: int, plan: Plan) -> dict[str, Any]:
    alignment = plan.alignments[section.id]
    return {
        "plane": plane,
        "position_mm": section.position_mm,
        "frame_to_photograph": alignment.matrix.tolist(),
        "gain": round(alignment.gain, 4),
        "tissue_area_mm2": round(plan.areas[section.id], 4),
    }


def _read_small(
    sections: Sequence[Section], pixel: float, settings: BlockfaceSettings
) -> tuple[dict[str, Image], list[dict[str, str]], tuple[int, int]]:
    """Photographs at about ``align_px`` along their long side, what could not be read or differs in size, and their full size."""
    import cv2

    from histomri.io.photographs import read_photograph

    out: dict[str, Image] = {}
    failed, size = [], (0, 0)
    for s in sections:
        assert s.blockface is not None
        try:
            photo = read_photograph(s.blockface, settings.max_photograph_px)
        except InputError as error:
            failed.append({"section": s.id, "reason": str(error)})
            continue
        size = size if out else photo.shape[:2]
        if photo.shape[:2] != size:
            failed.append({"section": s.id, "reason": f"photograph of {photo.shape[:2]} pixels among photographs of {size}"})
            continue
        factor = max(1, round(max(size) / settings.align_px))
        shape = (-(-size[0] // factor), -(-size[1] // factor))
        padded = np.pad(photo, [(0, shape[0] * factor - size[0]), (0, shape[1] * factor - size[1]), (0, 0)], mode="edge")
        data = cv2.resize(padded, shape[::-1], interpolation=cv2.INTER_AREA) if factor > 1 else photo
        out[s.id] = Image(Grid(size, np.array([pixel, pixel])).downsample(factor), data, ("red", "green", "blue"))
    return out, failed, size


@dataclass(frozen=True, eq=False)
class Plan:
    """What the first pass found: motion, background colour, threshold of the cue, tissue areas, and where the background is."""

    alignments: dict[str, Alignment]
    chroma: Any
    threshold: float
    areas: dict[str, float]
    background: Image

    def moved_mm(self, section: str) -> float:
        """How far the middle of the frame moved in a photograph."""
        middle = np.append(self.background.grid.centre_mm, 1.0)
        return float(np.linalg.norm((self.alignments[section].matrix @ middle - middle)[:2]))


def _plan(small: dict[str, Image], settings: BlockfaceSettings) -> Plan:
    """Align all photographs to the middle one by what is not tissue, and learn the background's colour and the threshold."""
    from histomri.registration.photographs import (
        align_photograph,
        background_chroma,
        cut_surface,
        frame_levels,
        surface_threshold,
        tissue_cue,
    )

    ids = list(small)
    chroma = np.median([background_chroma(p.data) for p in small.values()], axis=0)
    cues = {i: tissue_cue(p.data, chroma) for i, p in small.items()}
    threshold = settings.surface_threshold or surface_threshold(list(cues.values()))
    surfaces = {i: cut_surface(c, threshold) for i, c in cues.items()}
    reference = ids[len(ids) // 2]
    grid = small[reference].grid
    # whatever is tissue in any photograph is no frame
    ever = np.any(list(surfaces.values()), axis=0)
    fixed = frame_levels(small[reference].data, ever, grid)
    alignments = {i: align_photograph(fixed, frame_levels(p.data, ever, grid), settings.max_motion_mm) for i, p in small.items()}
    pixel = float(np.prod(grid.spacing_mm))
    return Plan(
        alignments,
        chroma,
        threshold,
        {i: float(m.sum()) * pixel for i, m in surfaces.items()},
        Image(grid, _background(small, ever)),
    )


def _background(small: dict[str, Image], ever: Any) -> Any:
    """Where the even material (paraffin) is: what is never tissue and about as bright as the tissue's surroundings."""
    from scipy import ndimage

    median = np.median([p.data.mean(axis=-1) for p in list(small.values())[:: max(1, len(small) // 15)]], axis=0)
    near = ndimage.binary_dilation(ever, iterations=8) & ~ndimage.binary_dilation(ever, iterations=3)
    if near.sum() < 100:
        return ~ever
    level = float(np.median(median[near]))
    return ~ever & (median > 0.55 * level) & (median < 1.6 * level)


def _volume_grid(shown: Sequence[Section], size: tuple[int, int], pixel: float) -> tuple[Grid, dict[str, int]]:
    """The volume's grid over all positions at their usual spacing, and each section's plane in it."""
    positions = np.array([s.position_mm for s in shown])
    steps = np.diff(np.unique(positions))
    step = float(np.median(steps)) if len(steps) else 1.0
    planes = {s.id: round((s.position_mm - positions.min()) / step) for s in shown}
    grid = Grid((max(planes.values()) + 1, *size), np.array([step, pixel, pixel]), np.array([positions.min(), 0.0, 0.0]))
    return grid, planes


def _create(folder: Path, name: str, grid: Grid, settings: BlockfaceSettings) -> VolumeStore:
    from histomri.io.volumes import VolumeSpec, VolumeStore

    chunk = (1, settings.chunk_px, settings.chunk_px)
    return VolumeStore(folder, VolumeSpec(name, grid, ("red", "green", "blue"), "uint8", chunk, settings.codec, label="surface"))


def _write_plane(volume: VolumeStore, plane: int, section: Section, plan: Plan, settings: BlockfaceSettings) -> None:
    """One photograph on the common frame, its light evened, and its cut surface: one interpolation of its pixels."""
    import cv2

    from histomri.io.photographs import read_photograph
    from histomri.registration.photographs import cut_surface, even_light, tissue_cue

    assert section.blockface is not None
    photo = read_photograph(section.blockface, settings.max_photograph_px)
    shape = photo.shape[:2]
    grid = Grid(shape, volume.spec.grid.spacing_mm[1:])
    matrix = grid.world_to_index @ plan.alignments[section.id].matrix @ grid.index_to_world
    swap = np.eye(3)[[1, 0, 2]]
    photo = _warped(photo, (swap @ matrix @ swap)[:2], shape)
    surface = cut_surface(tissue_cue(photo, plan.chroma), plan.threshold)
    if settings.even_light:
        background = cv2.resize(plan.background.data.astype(np.uint8), shape[::-1], interpolation=cv2.INTER_NEAREST) > 0
        photo = even_light(photo, surface, background)
    data = np.clip(photo * 255 + 0.5, 0, 255).astype(np.uint8)
    volume.write(0, (slice(plane, plane + 1), slice(0, shape[0]), slice(0, shape[1])), data[None], surface[None].astype(np.uint8))


def _warped(data: Any, matrix: Any, shape: tuple[int, int]) -> Any:
    """Linear interpolation by a (2, 3) matrix of output to input indices in (x, y), edges replicated."""
    import cv2

    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(data, matrix, shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def place_sections(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    blockface_manifest: Path,
    placements: Path,
    settings: BlockfaceSettings,
) -> None:
    """Each section on its own photograph: any angle, either face, one scale for all, then rigid, affine and deformable.

    A section whose scale or score is out of line with the others is flagged and left to its neighbours (confidence below 0.5).
    """
    import json

    from histomri.io.placements import write_placements
    from histomri.io.sections import read_manifest
    from histomri.transforms.placement import Placements

    record = json.loads(Path(blockface_manifest).read_text(encoding="utf-8"))
    folder = Path(blockface_manifest).absolute().parents[2]
    read = {s.id: read_manifest(manifests[s.id]) for s in sections if s.id in manifests}
    usable = {s.id: s for s in sections if s.id in read and read[s.id].is_usable and s.id in record["photographs"]}
    ratios = [(record["photographs"][i]["tissue_area_mm2"] / read[i].tissue_area_mm2) ** 0.5 for i in usable]
    scale = float(np.median(ratios)) if ratios else 1.0
    size = 1.6 * float(np.median([record["photographs"][i]["tissue_area_mm2"] for i in usable])) ** 0.5 if usable else 1.0
    found: dict[str, Placement] = {}
    others: list[float] = []
    for number, (i, s) in enumerate(usable.items(), 1):
        found[i], other = _place(s, read[i], record, folder, (size, scale), settings)
        others.append(other)
        print(f"section {number} of {len(usable)}: {i}: score {found[i].quality['score']:.3f}", flush=True)
    judged = _judge(found, others, settings)
    block = record["block"]
    rest = {s.id: judged.get(s.id, _unplaced(s)) for s in sorted(sections, key=lambda s: (s.position_mm, s.id))}
    write_placements(placements, Placements(block, rest, None, {"scale": round(scale, 5), "placed": len(judged)}))


def _unplaced(section: Section) -> Placement:
    from histomri.transforms.placement import Placement

    return Placement(section.id, section.position_mm, None, None, ("not placed: no tissue or no photograph",), 0.0)


def photograph_of(record: Mapping[str, Any], folder: Path, section: str, spacing_mm: float) -> tuple[Image, Image]:
    """Contrast (tissue bright) and cut surface of one section's photograph, on the block's plane at about ``spacing_mm``."""
    import cv2

    from histomri.io.omezarr import open_array

    store = folder / record["store"]
    plane = record["photographs"][section]["plane"]
    pixel = float(record["spacing_mm"][1])
    level0 = Grid(tuple(record["shape"][1:]), np.array([pixel, pixel]), np.array(record["origin_mm"][1:]))
    rgb = np.moveaxis(np.asarray(open_array(store, "0")[:, plane]), 0, -1).astype(np.float32)
    surface = np.asarray(open_array(store, "labels/surface/0")[plane]).astype(np.float32)
    grid = level0.with_spacing(max(spacing_mm, pixel))
    # the photograph's luminance serves; structure channels do not care whether tissue is bright or dark
    light = rgb.mean(axis=-1) / 255
    blur = 0.45 * float(grid.spacing_mm[0]) / pixel
    onto = level0.world_to_index @ grid.index_to_world
    swap = np.eye(3)[[1, 0, 2]]
    out = []
    for data in (light, surface):
        soft = cv2.GaussianBlur(data, (0, 0), blur) if blur > 0.6 else data
        out.append(_warped(soft, (swap @ onto @ swap)[:2], (grid.shape[0], grid.shape[1])))
    return Image(grid, out[0].astype(np.float32)), Image(grid, out[1] >= 0.5)


def _place(
    section: Section,
    manifest: Any,
    record: Mapping[str, Any],
    folder: Path,
    size: tuple[float, float],
    settings: BlockfaceSettings,
) -> tuple[Placement, float]:
    """One section on its photograph, and the score of its wrong face."""
    from histomri.io.sections import registration_image
    from histomri.registration.bending import TO_PHOTOGRAPH
    from histomri.registration.pair import deform_pair, prepare, register_pair, scaled
    from histomri.transforms import Affine
    from histomri.transforms.placement import Placement

    length, scale = size
    fine = length / settings.fine_px
    photo = photograph_of(record, folder, section.id, fine)
    fixed = prepare(*photo, length / settings.search_px, max(fine, float(photo[0].grid.spacing_mm.max())))
    tissue = registration_image(manifest, fine / scale)
    image, mask = scaled(tissue[0], scale), scaled(tissue[1], scale)
    moving = prepare(image, mask, length / settings.search_px, max(fine, float(image.grid.spacing_mm.max())))
    hints = () if section.rotation_deg is None else ((section.rotation_deg, 30.0),)
    result = register_pair(fixed, moving, section.faces, hints_deg=hints, models=("rigid", "affine"))
    field, score = (None, result.score)
    if settings.deformable:
        field, score = deform_pair(fixed, moving, result.matrix, TO_PHOTOGRAPH.with_stiffness(settings.stiffness))
    shrink = np.diag([1 / scale, 1 / scale, 1.0])
    affine = Affine(shrink @ result.matrix, f"block:{section.block}", f"section:{section.id}")
    quality = {
        "source": "blockface",
        "score": round(score, 4),
        "affine_score": round(result.score, 4),
        "margin": round(result.margin, 4),
    }
    return Placement(section.id, section.position_mm, affine, field, (), 1.0, quality), result.other_face


def _judge(found: dict[str, Placement], others: list[float], settings: BlockfaceSettings) -> dict[str, Placement]:
    """Confidence of each section against the null distribution of wrong faces and against its peers' scale."""
    import dataclasses

    from histomri.registration.section_graph import threshold_of

    threshold = settings.min_score or threshold_of(others)
    scales = {i: np.linalg.svd(p.affine.linear, compute_uv=False) for i, p in found.items() if p.affine is not None}
    usual = np.median(list(scales.values()), axis=0) if scales else np.ones(2)
    out = {}
    for i, p in found.items():
        score = p.quality["affine_score"]
        sure = float(np.clip((score - threshold) / (0.5 * max(threshold, 0.1)), 0, 1))
        flags: tuple[str, ...] = ()
        if score <= threshold:
            flags = (f"does not resemble its photograph (score {score:.2f}, needed {threshold:.2f})",)
        odd = float(np.abs(np.log(scales[i] / usual)).max())
        if odd > 0.15:
            flags += (f"scale differs by {100 * odd:.0f} % from the other sections'",)
            sure = min(sure, 0.3)
        out[i] = dataclasses.replace(p, flags=flags, confidence=round(sure, 4))
    return out
