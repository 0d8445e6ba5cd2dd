"""Sections to their MRI planes and to each other, and the block's pose again, in turns.

Each section is registered to the weighted mean of the structure of its MRI plane and of its neighbours (stack_greedy's voliter
with its two terms; since the moving image is the same in both, their weighted sum of squares is the distance to the weighted
mean). Even and odd places take turns (red and black), so the order within a turn does not matter. The deformation always restarts
from the affine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image
from histomri.registration.bending import TO_VOLUME, Goal, Plan, bend_plane, masked_pyramid
from histomri.registration.by_hand import MriGuides, is_locked, reach_mm
from histomri.registration.channels import make_channels
from histomri.registration.depth import depth_correction, section_depths
from histomri.registration.pair import align, structure_score
from histomri.registration.placed_sections import PlacedSections, with_much_tissue
from histomri.registration.plane_bend import LEAST_SECTIONS, PARTS, bend_data, find_bend
from histomri.registration.pose import Scaled, expected_strain, refine_pose
from histomri.registration.rescue import mri_plane
from histomri.registration.samples import Channels
from histomri.registration.volume import SectionPixels, block_grid, field_pixels, plane_grid, reconstruct
from histomri.transforms import Affine, DisplacementField
from histomri.transforms.placement import Placement, Placements

Float = NDArray[np.float64]
VOLUME_SWEEPS = 2
DEPTH_SECTIONS = 60


@dataclass(frozen=True)
class Refinement:
    """Sweeps and weights of the refinement; lengths in mm. ``spacing_mm`` is the working in-plane pixel, ``volume_mm`` the voxel
    of the 3D step, ``neighbours`` how many on each side.
    """

    spacing_mm: float
    volume_mm: float
    affine_sweeps: int = 4
    deformable_sweeps: int = 2
    mri_weight: float = 4.0
    neighbour_weight: float = 1.0
    neighbours: int = 2
    max_gap_mm: float = 3.0
    max_scale_change: float = 0.25
    hold_blockface: bool = True
    hold_pose: bool = False
    plane_bend: bool = True
    bending: Plan = TO_VOLUME


class SliceToVolume:
    """The state of the refinement: sections' pixels, their placements, the block's pose, and the MRI (image and mask).

    ``bend``: the planes' bend that goes with the pose, if any is known.
    """

    def __init__(
        self,
        pixels: Mapping[str, SectionPixels],
        placements: Mapping[str, Placement],
        block_to_mri: Float,
        mri: tuple[Image, Image],
        settings: Refinement,
        guides: Mapping[str, MriGuides] | None = None,
        bend: DisplacementField | None = None,
    ):
        self.pixels = {k: p for k, p in pixels.items() if k in placements and placements[k].is_placed}
        self.placements = dict(placements)
        self.block_to_mri = block_to_mri
        self.bend, self.bend_record = bend, dict[str, float]()
        self.settings = settings
        self.mri_grid = mri[0].grid
        self.mri_data = np.stack([np.asarray(mri[0].data, np.float32), np.asarray(mri[1].data, np.float32)], axis=-1)
        self.mri = Scaled(*mri)
        self.order = sorted(self.pixels, key=lambda k: (placements[k].position_mm, k))
        self.first = {k: placements[k].affine for k in self.order}
        self.large = with_much_tissue(self.pixels)
        self.guides = {k: g for k, g in (guides or {}).items() if k in self.pixels}
        self.near_mm = {k: reach_mm(self.pixels[k].mask, self._missed_mm(placements[k])) for k in self.guides}
        self.plane = plane_grid(block_grid(self.pixels, {k: placements[k] for k in self.order}, settings.spacing_mm, margin=8))
        self.shown = PlacedSections(self.pixels, self.plane)

    def run(self, progress: Callable[[str], None] = lambda _: None) -> None:
        """Affine sweeps, each followed by the 3D step, then deformable sweeps."""
        for sweep in range(self.settings.affine_sweeps):
            # the volume finds the way; once it has, single planes are the better judge of depth
            if sweep < VOLUME_SWEEPS:
                self.update_pose()
            if sweep > 0:
                self.update_depth(progress)
            for turn in (0, 1):
                self._turn(turn, self._affine)
            progress(f"affine sweep {sweep + 1} of {self.settings.affine_sweeps}: mean score {self.mean_score():.4f}")
        self.update_depth(progress)
        if self.update_bend(progress):
            for turn in (0, 1):
                self._turn(turn, self._affine)
            self.update_bend(progress)
        for sweep in range(self.settings.deformable_sweeps):
            for turn in (0, 1):
                self._turn(turn, self._deform)
            progress(f"deformable sweep {sweep + 1} of {self.settings.deformable_sweeps}: mean score {self.mean_score():.4f}")

    def _turn(self, turn: int, step: Callable[[int], Placement]) -> None:
        changed = {k: step(i) for i, k in enumerate(self.order) if i % 2 == turn}
        self.placements.update(changed)

    def mri_plane(self, position_mm: float, plane: Grid | None = None) -> tuple[Image, Image]:
        """The MRI and its mask on the block plane at ``position_mm``."""
        to_index = self.mri_grid.world_to_index @ self.block_to_mri
        return mri_plane(self.mri_data, to_index, plane or self.plane, position_mm, self.bend)

    def target(self, place: int) -> Channels:
        """What the section at ``place`` in the order should look like: the MRI plane and its neighbours, weighted."""
        position = self.placements[self.order[place]].position_mm
        goal = make_channels(*self.mri_plane(position), "structure")
        data, weight, total = self.settings.mri_weight * goal.data, goal.weight, self.settings.mri_weight
        for key, share in self._neighbours(place):
            here = self.section_channels(key)
            data = data + share * here.data
            weight = np.maximum(weight, here.weight)
            total += share
        return Channels(self.plane, np.ascontiguousarray(data / np.float32(total), np.float32), weight)

    def goals(self, place: int) -> list[Goal]:
        """The same images as in :meth:`target`, each by itself."""
        plane = masked_pyramid(*self.mri_plane(self.placements[self.order[place]].position_mm))
        near = [Goal(self.shown.pyramid(self.placements[key]), share) for key, share in self._neighbours(place)]
        return [Goal(plane, self.settings.mri_weight), *near]

    def _neighbours(self, place: int) -> list[tuple[str, float]]:
        """The neighbours of a place and their weights by closeness, ``neighbour_weight`` together, less where they are far."""
        reach, order = self.settings.neighbours, self.order
        nearby = [order[n] for n in range(max(0, place - reach), min(len(order), place + reach + 1)) if n != place]
        position = self.placements[order[place]].position_mm
        distance = [abs(self.placements[k].position_mm - position) for k in nearby]
        near = [max(0.0, 1 - d / self.settings.max_gap_mm) for d in distance]
        unit = self.settings.neighbour_weight / max(sum(near), 1.0)
        return [(k, unit * v) for k, v in zip(nearby, near, strict=True) if v > 0]

    def section_channels(self, key: str) -> Channels:
        """Structure channels of a section as it now lies on the block plane."""
        return self.shown.channels(self.placements[key])

    def _affine(self, place: int) -> Placement:
        """One affine step of one section; kept only where it scores higher and stays possible."""
        key, target = self.order[place], self.target(place)
        old = self.placements[key]
        assert old.affine is not None
        if self._is_held(old):
            return self._scored(old, self._score_on(target, key))
        step = self.shown.linear_step(old, target, "affine" if key in self.large else "rigid")
        if step is None:
            return old
        matrix, before, after = step
        if after <= before or not self._possible(key, matrix):
            return self._scored(old, before)
        return self._scored(dataclasses.replace(old, affine=Affine(matrix, old.affine.from_space, old.affine.to_space)), after)

    def _is_held(self, placement: Placement) -> bool:
        """A section that lies well on its own photograph knows its place better than the coarser MRI does; a locked one stays."""
        return is_locked(placement) or (self.settings.hold_blockface and placement.is_on_photograph)

    def _score_on(self, target: Channels, key: str) -> float:
        """Structure score of a section as it lies, its deformation included."""
        return structure_score(target, self.section_channels(key), np.eye(3))

    def _possible(self, key: str, matrix: Float) -> bool:
        """Whether the linear part keeps its face and scales, relative to where the section came in, within the limits."""
        first = self.first[key]
        assert first is not None
        change = np.linalg.svd(matrix[:2, :2] @ np.linalg.inv(first.linear), compute_uv=False)
        limit = 1 + self.settings.max_scale_change
        is_near = self._is_near(dataclasses.replace(self.placements[key], affine=Affine(matrix), field=None))
        same_face = np.linalg.det(matrix[:2, :2]) * np.linalg.det(first.linear) > 0
        return bool(is_near and same_face and (change < limit).all() and (change > 1 / limit).all())

    def _missed_mm(self, placement: Placement) -> float:
        return self.guides[placement.section].missed_mm(placement.block_to_section, self.block_to_mri)

    def _is_near(self, placement: Placement) -> bool:
        """Whether a section lies near the points that a person gave for it, if any."""
        return placement.section not in self.guides or self._missed_mm(placement) <= self.near_mm[placement.section]

    def _scored(self, placement: Placement, score: float) -> Placement:
        return dataclasses.replace(placement, quality={**placement.quality, "score": round(score, 5)})

    def _deform(self, place: int) -> Placement:
        """The deformation of one section, from its affine; left out where the section looks no more like its target with it."""
        key = self.order[place]
        if self._is_held(self.placements[key]):
            return self.placements[key]
        old = dataclasses.replace(self.placements[key], field=None)
        if key not in self.large:
            return old
        assert old.affine is not None
        shown, matrix = self.pixels[key], old.affine.matrix
        own = masked_pyramid(shown.image, shown.mask)
        field = bend_plane(self.goals(place), own, matrix, self.plane, self.settings.bending)
        target, (_, moving) = self.target(place), align(shown.image, shown.mask, matrix, self.plane)
        before = structure_score(target, moving, np.eye(3))
        after = structure_score(target, moving, np.eye(3), field_pixels(field, self.plane))
        if after <= before:
            return dataclasses.replace(old, quality={**old.quality, "deformable": "left out: no better"})
        bent = dataclasses.replace(old, field=field, quality={**old.quality, "deformable": "yes"})
        if not self._is_near(bent):
            return dataclasses.replace(old, quality={**old.quality, "deformable": "left out: away from its guides"})
        return bent

    def update_pose(self) -> None:
        """The block's pose again, from the sections as they now lie; kept only where the structure score rises."""
        if self.settings.hold_pose:
            return
        voxel = self.settings.volume_mm
        current = {k: self.placements[k] for k in self.order}
        grid = block_grid(self.pixels, current, voxel)
        stack = Scaled(*reconstruct(self.pixels, current, grid, self.settings.max_gap_mm), len(current))
        before = refine_pose(stack, self.mri, self.block_to_mri, (voxel,), models=())
        after = refine_pose(stack, self.mri, self.block_to_mri, (2 * voxel, voxel), models=("affine",))
        if after is not None and (before is None or after.score > before.score):
            self.block_to_mri = after.block_to_mri

    def update_depth(self, progress: Callable[[str], None]) -> None:
        """Offset, scale and tilt along the cutting axis from the sections' best MRI planes (see ``registration.depth``).

        Kept only where the mean structure score of the sections asked rises.
        """
        if self.settings.hold_pose:
            return
        asked = self._asked()
        found = [v for k in asked for v in self._depths(k)]
        if not found:
            return
        change = depth_correction(
            np.array([p for p, _ in found]), np.array([d for _, d in found]), expected_strain(self.block_to_mri)
        )
        if change is None:
            return
        before, kept = self._plane_score(asked), self.block_to_mri
        self.block_to_mri = kept @ change
        after = self._plane_score(asked)
        if after < before:
            self.block_to_mri = kept
        ends = [change[0, 3] + (change[0, 0] - 1) * self.placements[k].position_mm for k in (self.order[0], self.order[-1])]
        progress(
            f"depth: {ends[0]:+.3f} mm at the first section, {ends[1]:+.3f} mm at the last, score {before:.4f} -> {after:.4f}"
        )

    def update_bend(self, progress: Callable[[str], None]) -> bool:
        """The bend of the planes from the sections' best MRI planes (see ``registration.plane_bend``), and whether it changed.

        Kept only where it explains sections left out, and the mean structure score of the sections asked rises.
        """
        if self.settings.hold_pose or not self.settings.plane_bend:
            return False
        asked = self._asked()
        if len(asked) < LEAST_SECTIONS:
            return False
        found = [(i, *v) for i, k in enumerate(asked) for v in self._depths(k, PARTS)]
        bend = find_bend(bend_data(found, self.bend), self._box(), self.bend)
        if bend is None:
            return False
        before, kept = self._plane_score(asked), self.bend
        self.bend = bend.field
        after = self._plane_score(asked)
        if after < before:
            self.bend = kept
        else:
            self.bend_record = bend.record()
        progress(f"planes: {bend.in_words()}, score {before:.4f} -> {after:.4f}")
        return after >= before

    def _box(self) -> tuple[Float, Float]:
        """The ends of the block's tissue, (3,) and (3,) in mm."""
        ends = [self.placements[k].position_mm for k in (self.order[0], self.order[-1])]
        corners = self.plane.corners()
        return np.array([ends[0], *corners.min(axis=0)]), np.array([ends[1], *corners.max(axis=0)])

    def _asked(self) -> list[str]:
        """The sections that are asked for their depths: at most about ``DEPTH_SECTIONS``, none of them doubtful."""
        sure = [k for k in self.order if k in self.large and not self.placements[k].is_doubtful]
        return sure[:: max(1, len(sure) // DEPTH_SECTIONS)]

    def _plane_channels(self, position_mm: float) -> Channels:
        return make_channels(*self.mri_plane(position_mm), "structure")

    def _depths(self, key: str, parts: int = 2) -> list[tuple[Float, float]]:
        step = max(2 * self.settings.spacing_mm, float(self.mri_grid.spacing_mm.max()))
        offsets = np.asarray(step * np.arange(-3, 4), np.float64)
        position = self.placements[key].position_mm
        return section_depths(position, self.section_channels(key), self._plane_channels, offsets, parts)

    def _plane_score(self, asked: list[str]) -> float:
        planes = ((self._plane_channels(self.placements[k].position_mm), k) for k in asked)
        return float(np.mean([structure_score(plane, self.section_channels(k), np.eye(3)) for plane, k in planes]))

    def mean_score(self) -> float:
        """Mean of the sections' last structure scores."""
        return float(np.mean([self.placements[k].quality.get("score", 0.0) for k in self.order]))

    def result(self, block: str, quality: dict[str, Any]) -> Placements:
        """All placements and the pose as MRI to block."""
        pose, bend = Affine(np.asarray(np.linalg.inv(self.block_to_mri), np.float64), "mri", f"block:{block}"), self.bend
        named = None if bend is None else DisplacementField(bend.grid, bend.values, f"block:{block}", f"block:{block}")
        return Placements(block, self.placements, pose, quality | self.bend_record, named)
