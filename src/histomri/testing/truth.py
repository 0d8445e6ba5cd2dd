"""The exact truth of a digital block: drawn from the seed, written beside the data, and read back without loss."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histomri.core import Grid
from histomri.testing.distortion import Distortion, Tear
from histomri.testing.spec import PhantomSpec
from histomri.testing.specimen import N_CHANNELS, Specimen
from histomri.transforms import Affine

Float = NDArray[np.float64]
BAD_KINDS = ("torn", "lost", "pale", "blotch")


@dataclass(frozen=True, eq=False)
class SectionTruth:
    """One section: where it was cut, what was done to it, and the size of its slide in pixels (y, x).

    ``rotation_deg`` turns the block's plane to the slide (from x to y, after mirroring x); ``shrink`` is (y, x);
    ``bad`` is None or one of ``BAD_KINDS``. ``camera`` maps photograph points (y, x) in mm to the block's plane, 3 x 3.
    """

    id: str
    position_mm: float
    stain: str
    mirrored: bool
    rotation_deg: float
    shrink: tuple[float, float]
    bad: str | None
    shape: tuple[int, int]
    pixel_size_mm: float
    distortion: Distortion
    camera: Float

    def to_dict(self) -> dict[str, Any]:
        """For JSON, without loss."""
        record = {k: v for k, v in vars(self).items() if k not in ("distortion", "camera")}
        return record | {"camera": self.camera.tolist(), "distortion": self.distortion.to_dict()}

    @staticmethod
    def from_dict(record: dict[str, Any]) -> SectionTruth:
        """The inverse of :meth:`to_dict`."""
        return SectionTruth(
            **{
                **record,
                "shrink": tuple(record["shrink"]),
                "shape": tuple(record["shape"]),
                "camera": np.array(record["camera"]),
                "distortion": Distortion.from_dict(record["distortion"]),
            }
        )


@dataclass(frozen=True, eq=False)
class Truth:
    """The truth of a block: its specimen, its sections by id, and ``mri_to_block`` (LPS mm, z, y, x)."""

    spec: PhantomSpec
    sections: dict[str, SectionTruth]
    mri_to_block: Affine
    mri_grid: Grid
    specimen: Specimen

    def section_to_block(self, section: str, points_mm: ArrayLike) -> Float:
        """Points (..., 2) (y, x) in mm of a section, from the centre of its top left pixel, in the block: (..., 3) (z, y, x).

        NaN inside a tear. Raises ``KeyError`` for an unknown section.
        """
        record = self.sections[section]
        plane = record.distortion.to_block(points_mm)
        return np.concatenate([np.full((*plane.shape[:-1], 1), record.position_mm), plane], axis=-1)

    def block_to_section(self, section: str, points_mm: ArrayLike) -> Float:
        """Points (..., 2) (y, x) or (..., 3) (z, y, x) in mm of the block in a section, (..., 2); z is not looked at."""
        return self.sections[section].distortion.to_section(np.asarray(points_mm, float)[..., -2:])

    def section_to_mri(self, section: str, points_mm: ArrayLike) -> Float:
        """Points (..., 2) (y, x) in mm of a section in the MRI: (..., 3) (z, y, x), LPS mm."""
        return self.mri_to_block.inverse().map(self.section_to_block(section, points_mm))


def random_rotation(rng: np.random.Generator) -> Float:
    """A proper rotation, (3, 3), uniform over all rotations."""
    q = rng.normal(size=4)
    w, x, y, z = q / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def _small_rotation(rng: np.random.Generator, degrees: float) -> Float:
    """A rotation by up to ``degrees`` about each axis."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.deg2rad(rng.uniform(-degrees, degrees, 3))):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = matrix @ turn
    return matrix


def _draw_mri(spec: PhantomSpec) -> tuple[Affine, Grid]:
    """The block's pose in the MRI and the MRI's oblique grid around it. The grid's axes may be left-handed, as scanners write."""
    rng = np.random.default_rng([spec.seed, 2])
    rotation = random_rotation(rng)  # block to MRI; in (z, y, x) order proper stays proper
    size = np.array(spec.size_mm)
    middle = size * (0.5, 0, 0)
    block_to_mri = Affine.from_parts(rotation, rng.uniform(-30, 30, 3) - rotation @ middle, "block:block", "mri")
    half = size * (0.52, 0.57, 0.57) + 0.5
    corners = np.array(np.meshgrid(*[(-h, h) for h in half], indexing="ij")).reshape(3, -1).T + middle
    direction = _small_rotation(rng, 25) @ np.diag(rng.choice([-1.0, 1.0], 3))
    local = block_to_mri.map(corners) @ direction
    low, high = local.min(axis=0) - 1.0, local.max(axis=0) + 1.0
    shape = np.ceil((high - low) / spec.mri_spacing_mm).astype(int)
    grid = Grid(tuple(shape), np.full(3, spec.mri_spacing_mm), direction @ low, direction)
    return block_to_mri.inverse(), grid


def _bad_kinds(spec: PhantomSpec, rng: np.random.Generator) -> list[str | None]:
    """Which sections are bad: spread over the stack, never its ends, so that each keeps a good neighbour."""
    kinds: list[str | None] = [None] * spec.n_sections
    n = min(int(np.ceil(spec.bad_fraction * spec.n_sections)), spec.n_sections // 2)
    for i, slot in enumerate(np.array_split(np.arange(1, spec.n_sections - 1), n) if n else []):
        kinds[int(rng.choice(slot[: max(1, len(slot) - 1)]))] = BAD_KINDS[i % len(BAD_KINDS)]
    return kinds


def _waves(spec: PhantomSpec, z: float, shared: Float, rng: np.random.Generator) -> Float:
    """Bend of one section: waves that drift along the block and waves of its own; rms of the displacement is ``bend_mm``."""
    width = spec.size_mm[1]
    own = np.column_stack([rng.uniform(-1, 1, (2, 2)), rng.uniform(0, 2 * np.pi, (2, 1)), rng.normal(size=(2, 2))])
    common = shared[:, :5].copy()
    common[:, 2] += shared[:, 5] * z
    waves = np.vstack([common, own])
    lengths = np.linalg.norm(waves[:, :2], axis=1, keepdims=True)
    waves[:, :2] *= 2 * np.pi / (width * np.linspace(0.7, 1.3, len(waves))[:, None]) / lengths
    waves[:, 3:] /= np.linalg.norm(waves[:, 3:], axis=1, keepdims=True)
    waves[:, 3:] *= spec.bend_mm * np.sqrt(2 / len(waves))
    return waves


def draw_tear(width: float, rng: np.random.Generator) -> Tear:
    """A crack from outside of a tissue ``width`` mm across past its middle, which lies at the origin."""
    angle = rng.uniform(0, 2 * np.pi)
    inward = np.array([np.cos(angle), np.sin(angle)])
    aside = np.array([-inward[1], inward[0]]) * rng.uniform(-0.1, 0.1) * width
    start = -0.5 * width * inward + aside
    length, half, sway = (width * rng.uniform(a, b) for a, b in ((0.65, 0.8), (0.025, 0.035), (0.01, 0.02)))
    return Tear((float(start[0]), float(start[1])), float(angle), float(length), float(half), float(sway))


def _linear(rotation_deg: float, mirrored: bool, shrink: tuple[float, float]) -> Float:
    """Block's plane to slide, (2, 2) on (y, x): shrink, then mirror x, then turn from x to y."""
    a = np.deg2rad(rotation_deg)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    return turn @ np.diag([1.0, -1.0 if mirrored else 1.0]) @ np.diag(shrink)


def _fit_slide(
    distortion: Distortion, z: float, specimen: Specimen, spec: PhantomSpec, rng: np.random.Generator
) -> tuple[Distortion, tuple[int, int]]:
    """Lay the section on a slide just large enough, with a margin of its own on each side."""
    width = max(spec.size_mm[1:])
    step = width / 120
    axis = np.arange(-0.9 * width, 0.9 * width, step)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1)
    plane = distortion.to_block(points)
    block = np.concatenate([np.full((*plane.shape[:-1], 1), z), plane], axis=-1)
    inside = specimen.mix(block, np.eye(N_CHANNELS, 5), step).sum(axis=-1) > 0.02
    rows, columns = np.nonzero(inside.any(axis=1))[0], np.nonzero(inside.any(axis=0))[0]
    low = np.array([axis[rows[0]], axis[columns[0]]]) - step - rng.uniform(0.03, 0.075, 2) * width
    high = np.array([axis[rows[-1]], axis[columns[-1]]]) + step + rng.uniform(0.03, 0.075, 2) * width
    shape = np.ceil((high - low) / spec.pixel_size_mm).astype(int)
    return distortion.moved(low), (int(shape[0]), int(shape[1]))


def _camera(spec: PhantomSpec, rng: np.random.Generator) -> Float:
    """Photograph (y, x) in mm to the block's plane: the frame centred, jittered by up to half a millimetre and a degree."""
    scale = min(1.0, spec.size_mm[1] / 25)
    a = np.deg2rad(rng.uniform(-1, 1))
    matrix = np.eye(3)
    matrix[:2, :2] = [[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]
    half = np.array(photograph_shape(spec)) * spec.blockface_pixel_mm / 2
    matrix[:2, 2] = rng.uniform(-0.5, 0.5, 2) * scale - matrix[:2, :2] @ half
    return matrix


def photograph_shape(spec: PhantomSpec) -> tuple[int, int]:
    """Pixels (y, x) of a photograph: the block, its paraffin and the frame."""
    return int(1.42 * spec.size_mm[1] / spec.blockface_pixel_mm), int(1.5 * spec.size_mm[2] / spec.blockface_pixel_mm)


def _shared_waves(rng: np.random.Generator) -> Float:
    """Three waves of the bend that all sections share, (3, 6): direction, phase, amplitude and drift of the phase per mm of z."""
    directions, phases = rng.normal(size=(3, 2)), rng.uniform(0, 2 * np.pi, (3, 1))
    return np.column_stack([directions, phases, rng.normal(size=(3, 2)), rng.uniform(-0.2, 0.2, 3)])


def _draw_mirrored(spec: PhantomSpec, bad: list[str | None], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which sections lie face down, (n_sections,); never a lost one, which could not be told."""
    mirrored = np.zeros(spec.n_sections, bool)
    kept = [i for i, kind in enumerate(bad) if kind != "lost"]
    n = min(len(kept), int(np.ceil(spec.mirrored_fraction * spec.n_sections)))
    mirrored[rng.choice(kept, n, replace=False)] = True
    return mirrored


def draw_truth(spec: PhantomSpec) -> Truth:
    """Everything about a block that chance decides, from its seed alone."""
    specimen = Specimen(spec.seed, spec.size_mm)
    rng = np.random.default_rng([spec.seed, 3])
    bad = _bad_kinds(spec, rng)
    mirrored = _draw_mirrored(spec, bad, rng)
    common = (rng.uniform(0.78, 0.86), rng.uniform(0.87, 0.93))[:: 1 if rng.random() < 0.5 else -1]
    shared = _shared_waves(rng)
    sections = {}
    for i, z in enumerate(spec.positions_mm):
        own = np.random.default_rng([spec.seed, 4, i])
        shrink_y, shrink_x = (float(np.clip(s * own.uniform(0.985, 1.015), 0.75, 0.95)) for s in common)
        angle = float(own.uniform(0, 360))
        linear = np.asarray(np.linalg.inv(_linear(angle, bool(mirrored[i]), (shrink_y, shrink_x))), float)
        tear = draw_tear(spec.size_mm[1], own) if bad[i] == "torn" else None
        free = Distortion(linear, np.zeros(2), _waves(spec, z, shared, own), tear)
        distortion, shape = _fit_slide(free, z, specimen, spec, own)
        name = f"s{i + 1:03d}"
        sections[name] = SectionTruth(
            id=name,
            position_mm=z,
            stain=spec.stains[i % len(spec.stains)],
            mirrored=bool(mirrored[i]),
            rotation_deg=angle,
            shrink=(shrink_y, shrink_x),
            bad=bad[i],
            shape=shape,
            pixel_size_mm=spec.pixel_size_mm,
            distortion=distortion,
            camera=_camera(spec, own),
        )
    return Truth(spec, sections, *_draw_mri(spec), specimen)


def write_truth(truth: Truth, path: Path) -> None:
    """Write ``truth.json``; floats survive exactly."""
    grid = truth.mri_grid
    record = {
        "spec": asdict(truth.spec),
        "mri_to_block": truth.mri_to_block.matrix.tolist(),
        "mri_to_block_maps": "MRI points (z, y, x) in LPS mm to block points (z, y, x) in mm",
        "mri_grid": {
            "shape": grid.shape,
            "spacing_mm": grid.spacing_mm.tolist(),
            "origin_mm": grid.origin_mm.tolist(),
            "direction": grid.direction.tolist(),
        },
        "sections": {name: section.to_dict() for name, section in truth.sections.items()},
    }
    path.write_text(json.dumps(record, indent=1))


def load_truth(folder: str | Path) -> Truth:
    """The truth of the block in ``folder``, rebuilt from its stored parameters.

    Raises ``FileNotFoundError`` when the folder holds no ``truth/truth.json``.
    """
    record = json.loads((Path(folder) / "truth" / "truth.json").read_text())
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in record["spec"].items()}
    spec = PhantomSpec(**fields)
    grid = record["mri_grid"]
    return Truth(
        spec,
        {name: SectionTruth.from_dict(section) for name, section in record["sections"].items()},
        Affine(np.array(record["mri_to_block"]), "mri", "block:block"),
        Grid(tuple(grid["shape"]), np.array(grid["spacing_mm"]), np.array(grid["origin_mm"]), np.array(grid["direction"])),
        Specimen(spec.seed, spec.size_mm),
    )
