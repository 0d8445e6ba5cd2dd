"""mri: pose of the block in the ex vivo MRI, then sections and MRI refined together, in-plane and through-plane."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from histomri.core import Block, Image, RegistrationError, Section

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from histomri.io.sections import SectionManifest
    from histomri.io.sheets import SectionGuide
    from histomri.registration.by_hand import MriGuides
    from histomri.registration.pose import PoseCandidate, PoseResult, Scaled
    from histomri.registration.slice_to_volume import Refinement
    from histomri.registration.volume import SectionPixels
    from histomri.transforms.placement import Placement, Placements

RESCUE_TURNS = 2
MOUNTED = 0.31
MOUNTED_FLAG = "no neighbour resembles it"


@dataclass(frozen=True)
class MriSettings:
    """The ``mri`` key of the config; see ``config/README.md`` for each field."""

    rotations: int = 2000
    candidates: int = 12
    min_confidence: float = 0.0
    work_px: int = 160
    volume_px: int = 72
    affine_sweeps: int = 4
    deformable_sweeps: int = 2
    mri_weight: float = 4.0
    neighbour_weight: float = 1.0
    neighbours: int = 2
    max_gap_mm: float = 0.0
    max_scale_change: float = 0.25
    hold_blockface: bool = True
    plane_bend: bool = True
    stiffness: float = 0.1


def find_pose(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    block: Block,
    placements_in: Path,
    pose: Path,
    settings: MriSettings,
    guides: Sequence[SectionGuide] = (),
) -> None:
    """The block's pose in its MRI with no initial guess; ``pose`` gets it with its confidence and the other candidates.

    Where a person gave a pose, by a lock, the block's file or ``guides``, that one is refined instead, or kept for a lock.
    Pictures of the best candidates are beside ``pose`` under its name with ``.png``.

    Raises ``RegistrationError`` when there is no pose that is anatomically possible, or none sure enough for ``min_confidence``;
    the candidates are then in ``pose_refused.json`` and ``.png`` beside ``pose``, because Snakemake removes what a failed job was
    to make. Those of an earlier run are removed.
    """
    from histomri.io.atomic import write_json
    from histomri.io.placements import read_placements
    from histomri.stages.by_hand import given_pose, mri_guides

    refused = pose.with_name("pose_refused.json")
    for file in (refused, refused.with_suffix(".png")):
        file.unlink(missing_ok=True)
    placements = read_placements(placements_in)
    given = given_pose(block, placements, mri_guides(guides, read_manifests_of(manifests, guides)))
    if given is not None:
        record, search = _given_record(sections, manifests, block, placements, given, settings)
        search.draw(pose.with_suffix(".png"))
        write_json(pose, record)
        return
    found = _search_poses(sections, manifests, block, placements, settings)
    if not found:
        raise RegistrationError(
            f"Block {block.id!r}: no pose in the MRI is anatomically possible; check pixel sizes and positions."
        )
    chosen = max(found, key=lambda name: (found[name].result.confidence, name))
    record = {**_pose_record(block, found[chosen].result), "sections_as": chosen}
    confidence = found[chosen].result.confidence
    if confidence < settings.min_confidence:
        write_json(refused, record)
        found[chosen].draw(refused.with_suffix(".png"))
        raise RegistrationError(
            f"Block {block.id!r}: the pose in the MRI has confidence {confidence:.2f}, less than mri.min_confidence = "
            f"{settings.min_confidence}; look at the candidates in {refused.with_suffix('.png')}, then give a pose (guides, or "
            "the column pose of blocks.tsv), or lower mri.min_confidence to go on with the best one."
        )
    found[chosen].draw(pose.with_suffix(".png"))
    write_json(pose, record)


@dataclass(frozen=True, eq=False)
class _Search:
    """What was found for one way in which the sections may lie, and the volumes that were compared."""

    result: PoseResult
    stack: Scaled
    mri: Scaled
    voxel_mm: float

    def draw(self, path: Path) -> None:
        from histomri.stages.pose_pictures import write_pose_pictures

        write_pose_pictures(path, self.stack, self.mri, self.result.candidates, self.voxel_mm)


def read_manifests_of(manifests: Mapping[str, Path], guides: Sequence[SectionGuide]) -> dict[str, SectionManifest]:
    """The manifests of the guided sections that hold tissue."""
    from histomri.io.sections import read_manifest

    read = {k: read_manifest(manifests[k]) for k in dict.fromkeys(g.section for g in guides) if k in manifests}
    return {k: m for k, m in read.items() if m.is_usable and m.tissue_area_mm2 > 0}


def _given_record(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    block: Block,
    placements: Placements,
    given: tuple[NDArray[np.float64], str],
    settings: MriSettings,
) -> tuple[dict[str, Any], _Search]:
    """A pose that a person gave, refined while it stays the same pose; a locked one as it is."""
    from histomri.registration.by_hand import LOCKED
    from histomri.registration.pose import refine_given

    start, how = given
    voxel_mm, hypotheses, pixels, mri = _pose_inputs(sections, manifests, block, placements, settings)
    stack = _reconstructed(pixels, hypotheses["neighbours"][0], voxel_mm, gap_mm(placements, settings))
    result = refine_given(stack, mri, start, keep=how == LOCKED)
    _say(f"pose given by {how}: quality {result.best.quality:.3f}")
    record = {**_pose_record(block, result), "sections_as": "neighbours", "given_by": how}
    return record, _Search(result, stack, mri, voxel_mm)


def _pose_inputs(
    sections: Sequence[Section], manifests: Mapping[str, Path], block: Block, placements: Placements, settings: MriSettings
) -> tuple[float, dict[str, tuple[Mapping[str, Placement], float]], dict[str, SectionPixels], Scaled]:
    """The voxel of the pose in mm, the ways in which the sections may lie, their pixels, and the MRI."""
    from histomri.registration.pose import Scaled

    size = tissue_size_mm(sections, manifests)
    voxel_mm = size / settings.volume_px
    return voxel_mm, *_hypotheses(sections, manifests, placements, size / settings.work_px), Scaled(*load_mri(block, voxel_mm))


def _reconstructed(pixels: Mapping[str, SectionPixels], placed: Mapping[str, Placement], voxel_mm: float, gap: float) -> Scaled:
    from histomri.registration.pose import Scaled
    from histomri.registration.volume import block_grid, reconstruct

    return Scaled(*reconstruct(pixels, placed, block_grid(pixels, placed, voxel_mm), gap), len(placed))


def _search_poses(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    block: Block,
    placements: Placements,
    settings: MriSettings,
) -> dict[str, _Search]:
    """The best pose of the stack as its neighbours place it and, where many are in doubt, of the sections as they are mounted."""
    from histomri.registration.pose import find_pose as search

    voxel_mm, hypotheses, pixels, mri = _pose_inputs(sections, manifests, block, placements, settings)
    results: dict[str, _Search] = {}
    for name, (placed, weight) in hypotheses.items():
        stack = _reconstructed(pixels, placed, voxel_mm, gap_mm(placements, settings))
        try:
            found = search(stack, mri, block.hands, settings.rotations, settings.candidates, progress=_say)
        except RegistrationError as error:
            _say(f"sections as by {name}: {error}")
            continue
        found = dataclasses.replace(found, confidence=found.confidence * weight)
        results[name] = _Search(found, stack, mri, voxel_mm)
        _say(f"sections as by {name}: quality {found.best.quality:.3f}, confidence {found.confidence:.2f}")
    return results


def _hypotheses(
    sections: Sequence[Section], manifests: Mapping[str, Path], placements: Placements, spacing_mm: float
) -> tuple[dict[str, tuple[Mapping[str, Placement], float]], dict[str, SectionPixels]]:
    """Ways in which the sections may lie to each other, each with the share of its confidence that counts; and their pixels."""
    pixels = load_pixels(sections, manifests, placements, spacing_mm)
    sure = {k: p for k, p in placements.placed.items() if not p.is_doubtful}
    # a pose from a few of the sections speaks for the others less, and one from guesses for none
    share = min(1.0, 2 * len(sure) / max(len(placements.sections), 1))
    hypotheses: dict[str, tuple[Mapping[str, Placement], float]] = {"neighbours": (sure or placements.placed, share)}
    if share < 1:
        pixels |= _doubtful_pixels(sections, manifests, placements, spacing_mm)
        hypotheses["mounted"] = (as_mounted(placements, pixels), 1.0)
    return hypotheses, pixels


def as_mounted(placements: Placements, pixels: Mapping[str, SectionPixels]) -> dict[str, Placement]:
    """All sections upright as on their slides, their tissue centred: what is left where neighbours do not resemble each other.

    Most laboratories mount sections the same way up; the MRI planes decide in the end.
    """
    import numpy as np

    from histomri.transforms import Affine

    out = {}
    for key, shown in pixels.items():
        nodes = np.argwhere(shown.mask.data)
        if len(nodes):
            centre = shown.mask.grid.to_world(nodes.mean(axis=0))
            affine = Affine.from_parts(np.eye(2), centre, f"block:{placements.block}", f"section:{key}")
            flags = (f"{MOUNTED_FLAG}, taken as it is mounted on its slide",)
            out[key] = dataclasses.replace(placements.sections[key], affine=affine, field=None, flags=flags, confidence=MOUNTED)
    return out


def _say(text: str) -> None:
    print(text, flush=True)


def _pose_record(block: Block, result: PoseResult) -> dict[str, Any]:
    import numpy as np

    def record(candidate: PoseCandidate) -> dict[str, Any]:
        return {
            "mri_to_block": np.linalg.inv(candidate.block_to_mri).tolist(),
            "score": round(candidate.score, 5),
            "nmi": round(candidate.nmi, 5),
            "mask_dice": round(candidate.dice, 5),
            "quality": round(candidate.quality, 5),
            "mirrored": candidate.mirrored,
        }

    best = record(result.best)
    return {
        "block": block.id,
        "mri_to_block": best.pop("mri_to_block"),
        "confidence": round(result.confidence, 5),
        "metrics": best,
        "candidates": [record(c) for c in result.candidates],
    }


def load_pixels(
    sections: Sequence[Section], manifests: Mapping[str, Path], placements: Placements, spacing_mm: float
) -> dict[str, SectionPixels]:
    """Coarse pixels of all placed sections."""
    from histomri.io.sections import read_manifest, registration_image
    from histomri.registration.volume import SectionPixels

    stains = {s.id: s.stain for s in sections}
    out = {}
    for key in placements.placed:
        image, mask = registration_image(read_manifest(manifests[key]), spacing_mm)
        out[key] = SectionPixels(image, mask, stains.get(key, ""))
    return out


def tissue_size_mm(sections: Sequence[Section], manifests: Mapping[str, Path]) -> float:
    """Typical length of a section's tissue in mm, from the manifests."""
    from histomri.io.sections import read_manifest
    from histomri.stages.stack import typical_size_mm

    read = [read_manifest(manifests[s.id]) for s in sections if s.id in manifests]
    areas = [m.tissue_area_mm2 for m in read if m.is_usable and m.tissue_area_mm2 > 0]
    if not areas:
        raise RegistrationError("No section of the block holds tissue, so there is nothing to place in the MRI.")
    return typical_size_mm(areas)


def load_mri(block: Block, spacing_mm: float) -> tuple[Image, Image]:
    """The MRI and its tissue mask (given, or from its intensities) on one grid, not much finer than ``spacing_mm``.

    Registration at a coarser pixel gains nothing from finer voxels, and a whole brain at 0.1 mm would not fit the memory.
    """
    import numpy as np

    from histomri.io.nifti import read_nifti
    from histomri.registration.pose import resample_3d

    assert block.mri is not None
    image = read_nifti(block.mri)
    image = image.with_data(np.asarray(image.data, np.float32))
    if float(image.grid.spacing_mm.max()) < 0.7 * spacing_mm:
        image = resample_3d(image, 0.8 * spacing_mm)
    if block.mri_mask is None:
        return image, tissue_of_mri(image)
    mask = read_nifti(block.mri_mask)
    return image, _on_grid(Image(mask.grid, np.asarray(mask.data) > 0), image)


def tissue_of_mri(image: Image) -> Image:
    """What is brighter than Otsu's threshold, pieces below 1 % of the largest left out.

    Sulci and ventricles stay open, as they are in the sections' masks.
    """
    import numpy as np
    from scipy import ndimage

    from histomri.evaluation.overlap import best_threshold

    bright = ndimage.binary_opening(image.data > best_threshold(image.data))
    labels, count = ndimage.label(bright)
    if count == 0:
        return image.with_data(bright)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    return image.with_data((sizes > 0.01 * sizes.max())[labels])


def _on_grid(mask: Image, image: Image) -> Image:
    """A mask that may lie on a grid of its own, nearest on the image's grid."""
    import numpy as np
    from scipy import ndimage

    if mask.grid == image.grid:
        return mask
    matrix = mask.grid.world_to_index @ image.grid.index_to_world
    data = ndimage.affine_transform(
        mask.data.astype(np.uint8), matrix[:3, :3], matrix[:3, 3], output_shape=image.grid.shape, order=0
    )
    return Image(image.grid, data > 0)


def gap_mm(placements: Placements, settings: MriSettings) -> float:
    """The largest gap that neighbours may fill: as configured, or four usual spacings."""
    import numpy as np

    if settings.max_gap_mm > 0:
        return settings.max_gap_mm
    steps = np.diff(np.unique([p.position_mm for p in placements.placed.values()]))
    return 4 * float(np.median(steps)) if len(steps) else 1.0


def refine(
    sections: Sequence[Section],
    manifests: Mapping[str, Path],
    block: Block,
    placements_in: Path,
    pose: Path,
    placements_out: Path,
    settings: MriSettings,
    guides: Sequence[SectionGuide] = (),
) -> None:
    """Sections to their MRI planes and to each other, and the pose again, in turns; the refined placements of the block.

    Sections with ``guides`` to the MRI start from these and stay near them.
    """
    import numpy as np

    from histomri.io.placements import read_placements, write_placements
    from histomri.io.records import read_pose_record
    from histomri.registration.bending import TO_VOLUME
    from histomri.registration.slice_to_volume import Refinement, SliceToVolume
    from histomri.stages.by_hand import mri_guides

    placements = read_placements(placements_in)
    found = read_pose_record(Path(pose))
    size = tissue_size_mm(sections, manifests)
    spacing = size / settings.work_px
    shared = {f.name: getattr(settings, f.name) for f in dataclasses.fields(Refinement) if hasattr(settings, f.name)}
    shared["max_gap_mm"] = gap_mm(placements, settings)
    plan = Refinement(
        **shared,
        spacing_mm=spacing,
        volume_mm=size / settings.volume_px,
        bending=TO_VOLUME.with_stiffness(settings.stiffness),
        hold_pose=placements.mri_to_block is not None,
    )
    pixels = load_pixels(sections, manifests, placements, spacing)
    start = np.linalg.inv(np.array(found["mri_to_block"]))
    mri = load_mri(block, spacing)
    unsure = _doubtful_pixels(sections, manifests, placements, spacing)
    pixels |= unsure
    if found["sections_as"] == "mounted":
        placements = dataclasses.replace(placements, sections={**placements.sections, **as_mounted(placements, pixels)})
    points = mri_guides(guides, read_manifests_of(manifests, guides))
    placements = _with_guides(sections, placements, pixels, points, mri, start, plan)
    if unsure and found["sections_as"] != "mounted":
        placements, start = _rescue(sections, placements, pixels, mri, start, plan)
        # the pose has become better
        placements = _with_guides(sections, placements, pixels, points, mri, start, plan)
    work = SliceToVolume(pixels, placements.sections, start, mri, plan, points, placements.plane_bend)
    work.run(progress=_say)
    quality = {**placements.quality, "pose_confidence": found["confidence"], "mean_score": round(work.mean_score(), 5)}
    result = work.result(block.id, quality)
    if plan.hold_pose:
        # to the last bit, which two inversions lose
        result = dataclasses.replace(result, mri_to_block=placements.mri_to_block)
    write_placements(placements_out, result)


def _doubtful_pixels(
    sections: Sequence[Section], manifests: Mapping[str, Path], placements: Placements, spacing_mm: float
) -> dict[str, SectionPixels]:
    """Coarse pixels of the sections with tissue that the stack could not place, or not surely."""
    from histomri.io.sections import read_manifest, registration_image
    from histomri.registration.volume import SectionPixels

    out = {}
    for section in sections:
        if section.id not in manifests or not placements.sections[section.id].is_doubtful:
            continue
        manifest = read_manifest(manifests[section.id])
        if not manifest.is_usable or manifest.tissue_area_mm2 <= 0:
            continue
        pixels = SectionPixels(*registration_image(manifest, spacing_mm), section.stain)
        if pixels.mask.data.sum() >= 16:
            out[section.id] = pixels
    return out


def _with_guides(
    sections: Sequence[Section],
    placements: Placements,
    pixels: Mapping[str, SectionPixels],
    guides: Mapping[str, MriGuides],
    mri: tuple[Image, Image],
    block_to_mri: NDArray[np.float64],
    plan: Refinement,
) -> Placements:
    """The placements with the guided sections where their points in the MRI put them."""
    from histomri.registration.by_hand import place_guided
    from histomri.registration.rescue import MriPlanes

    if not guides:
        return placements
    planes = MriPlanes.for_pixels(mri, plan.spacing_mm, placements.plane_bend)
    faces = {s.id: s.faces for s in sections}
    changed = place_guided(placements.sections, pixels, guides, faces, planes, block_to_mri, placements.block)
    for key, placement in changed.items():
        _say(f"{key}: {placement.flags[-1]}")
    for key in sorted(set(guides) - set(changed)):
        _say(f"{key}: its guides to the MRI could not be used: too little tissue was found in it")
    return dataclasses.replace(placements, sections={**placements.sections, **changed})


def _rescue(
    sections: Sequence[Section],
    placements: Placements,
    pixels: Mapping[str, SectionPixels],
    mri: tuple[Image, Image],
    block_to_mri: NDArray[np.float64],
    plan: Refinement,
) -> tuple[Placements, NDArray[np.float64]]:
    """Doubtful sections found on their MRI planes, and the pose from all that are sure then, in turns: each helps the other."""
    from functools import partial

    from histomri.registration.rescue import MriPlanes, rescue
    from histomri.registration.slice_to_volume import SliceToVolume

    faces = {s.id: s.faces for s in sections}
    planes = MriPlanes.for_pixels(mri, plan.spacing_mm, placements.plane_bend)
    for turn in range(RESCUE_TURNS):
        plane_at = partial(planes.at, block_to_mri=block_to_mri)
        changed = rescue(placements.sections, pixels, faces, plane_at, placements.block)
        placements = dataclasses.replace(placements, sections={**placements.sections, **changed})
        sure = {k: p for k, p in placements.placed.items() if not p.is_doubtful}
        _say(f"turn {turn + 1} of {RESCUE_TURNS}: {len(changed)} sections found on their MRI planes, {len(sure)} sure in all")
        if not changed or len(sure) < 2:
            break
        work = SliceToVolume(pixels, sure, block_to_mri, mri, plan, bend=placements.plane_bend)
        work.update_pose()
        block_to_mri = work.block_to_mri
    return placements, block_to_mri
