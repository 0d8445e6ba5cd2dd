"""ANTs (antspyx): ``python -m peers.ants JOB.json ...``."""

from __future__ import annotations

from typing import Any

import ants
import SimpleITK

from peers.job import Clock, Job, main

# of ants.registration; the threads are ITK's, from the environment
RECIPES: dict[str, dict[str, Any]] = {
    "pairs": {"type_of_transform": "SyNRA", "reg_iterations": (100, 70, 50, 20)},
    "planes": {"type_of_transform": "SyN"},
    "volumes": {"type_of_transform": "SyN"},
    "contrasts": {"type_of_transform": "SyN"},
}


def register(job: Job, clock: Clock) -> SimpleITK.Image:
    """Affine and SyN, composed into one field."""
    with clock.part("read"):
        fixed, moving = (ants.image_read(str(path), pixeltype="float") for path in (job.fixed, job.moving))
        masks = {
            key: ants.image_read(str(path), pixeltype="float")
            for key, path in (("mask", job.fixed_mask), ("moving_mask", job.moving_mask))
            if path
        }
    prefix = str(job.output / "ants_")
    with clock.part("register"):
        found = ants.registration(fixed, moving, outprefix=prefix, random_seed=1, **masks, **RECIPES[job.task])
    with clock.part("resample"):
        ants.image_write(found["warpedmovout"], str(job.output / "registered.mha"))
    with clock.part("export"):
        composed = ants.apply_transforms(fixed, moving, found["fwdtransforms"], compose=prefix)
        return SimpleITK.ReadImage(composed)


if __name__ == "__main__":
    main(register)
