"""histomri, run like the peers but in its own environment: ``python -m peers.ours JOB.json ...``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK

from histomri.core import Grid, Image
from histomri.registration.register import register as histomri_register
from peers.job import Clock, Job, main

SLAB = 16


def read(path: Path) -> Image:
    """A file that ITK reads as an ``Image``."""
    image = SimpleITK.ReadImage(str(path))
    direction = np.array(image.GetDirection()).reshape(image.GetDimension(), -1)
    grid = Grid(image.GetSize()[::-1], image.GetSpacing()[::-1], image.GetOrigin()[::-1], direction[::-1, ::-1])
    return Image(grid, SimpleITK.GetArrayFromImage(image))


def field_of(found: object, grid: Grid) -> np.ndarray:
    """The displacement (z, y, x, 3) or (y, x, 2) at each point of a grid, its vectors (x, y[, z]) in mm."""
    out = np.empty((*grid.shape, grid.ndim), np.float32)
    for start in range(0, grid.shape[0], SLAB):
        index = np.stack(np.meshgrid(*(np.arange(n) for n in out[start : start + SLAB].shape[:-1]), indexing="ij"), axis=-1)
        index[..., 0] += start
        points = grid.to_world(index)
        out[start : start + SLAB] = (found.map(points) - points)[..., ::-1]  # type: ignore[attr-defined]
    return out


def register(job: Job, clock: Clock) -> SimpleITK.Image:
    """Our registration with its defaults, as a field."""
    with clock.part("read"):
        fixed, moving = read(job.fixed), read(job.moving)
        masks = {name: read(path) for name in ("fixed_mask", "moving_mask") if (path := getattr(job, name))}
    with clock.part("register"):
        found = histomri_register(fixed, moving, **masks)
    with clock.part("resample"):
        if found.is_trusted:
            SimpleITK.WriteImage(SimpleITK.GetImageFromArray(found.registered().data), str(job.output / "registered.mha"))
    with clock.part("export"):
        field = SimpleITK.GetImageFromArray(field_of(found, fixed.grid), isVector=True)
        field.CopyInformation(SimpleITK.ReadImage(str(job.fixed)))
        return field


if __name__ == "__main__":
    main(register)
