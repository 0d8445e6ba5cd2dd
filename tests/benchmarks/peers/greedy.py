"""greedy (picsl_greedy): ``python -m peers.greedy JOB.json ...``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import SimpleITK
from picsl_greedy import Greedy2D, Greedy3D

from peers.job import Clock, Job, main, read_image

IMAGES = "-i fixed moving"
MASKS = "-i fixed_mask moving_mask"


@dataclass(frozen=True)
class Recipe:
    """Command-line options of the linear stages (the mode too), one after the other, and of the deformable one."""

    linear: tuple[str, ...]
    deformable: str


RECIPES = {
    "pairs": Recipe(
        linear=(
            f"-a {IMAGES} -dof 6 -m NCC 16x16 -n 100x40x10x0 -search 4000 20 50 -ia-image-centers",
            f"-a {IMAGES} -dof 12 -m NCC 16x16 -n 100x40x10",
        ),
        deformable=f"{IMAGES} -m NCC 8x8 -n 200x100x50x10 -s 6vox 2vox",
    ),
    # the masks alone find the affine; -gm would hide their outline from it
    "planes": Recipe(
        linear=(f"-moments 1 {MASKS}", f"-a {MASKS} -dof 12 -m SSD -n 100x50x10"),
        deformable=f"{IMAGES} {MASKS} -gm fixed_mask -m NCC 4x4 -n 100x50x10 -s 2vox 1vox",
    ),
    "volumes": Recipe(
        linear=(f"-a {IMAGES} -dof 12 -m NMI -n 100x50x10 -ia-identity",), deformable=f"{IMAGES} -m NCC 2x2x2 -n 100x50x10"
    ),
    # NCC and WNCC end 8 mm off where contrasts differ
    "contrasts": Recipe(
        linear=(f"-a {IMAGES} -dof 12 -m NMI -n 100x50x10 -ia-identity",), deformable=f"{IMAGES} -m NMI -n 100x50x10"
    ),
}


def read_all(job: Job) -> dict[str, SimpleITK.Image]:
    """The images and those masks that there are, by the names that the options use."""
    names = ("fixed", "moving", "fixed_mask", "moving_mask")
    return {name: read_image(getattr(job, name)) for name in names if getattr(job, name)}


def run_stages(greedy: Any, recipe: Recipe, images: dict[str, SimpleITK.Image], general: str) -> str:
    """Leaves ``warp`` and the last linear transform in ``greedy``; returns the name of the latter."""
    start = ""
    for i, options in enumerate(recipe.linear):
        greedy.execute(f"{options} {general} {start} -o linear{i}", **({} if i else images), **{f"linear{i}": None})
        start = f"-ia linear{i}"
    last = f"linear{len(recipe.linear) - 1}"
    greedy.execute(f"{recipe.deformable} {general} -it {last} -o warp", warp=None)
    return last


def register(job: Job, clock: Clock) -> SimpleITK.Image:
    """The linear stages and the deformable one, composed into one field."""
    with clock.part("read"):
        images = read_all(job)
    greedy = (Greedy2D if images["fixed"].GetDimension() == 2 else Greedy3D)()
    threads = f"-threads {job.threads} -V 0"
    with clock.part("register"):
        last = run_stages(greedy, RECIPES[job.task], images, threads)
    with clock.part("resample"):
        greedy.execute(f"-rf fixed -rm moving resliced -r warp {last} {threads}", resliced=None)
        SimpleITK.WriteImage(greedy["resliced"], str(job.output / "registered.mha"))
    with clock.part("export"):
        greedy.execute(f"-rf fixed -r warp {last} -rc field {threads}", field=None)
        return greedy["field"]


if __name__ == "__main__":
    main(register)
