"""elastix (itk-elastix): ``python -m peers.elastix JOB.json ...``."""

from __future__ import annotations

import os
from typing import Any

import itk
import numpy as np
import SimpleITK

from peers.job import Clock, Job, main

# stages and what is changed of elastix's default parameter maps
RECIPES: dict[str, list[tuple[str, dict[str, list[str]]]]] = {
    "pairs": [
        ("rigid", {"AutomaticTransformInitialization": ["true"], "AutomaticTransformInitializationMethod": ["CenterOfGravity"]}),
        ("affine", {}),
        ("bspline", {"FinalGridSpacingInPhysicalUnits": ["32"], "MaximumNumberOfIterations": ["500"]}),
    ],
    "planes": [("affine", {}), ("bspline", {})],
    "volumes": [("affine", {}), ("bspline", {"FinalGridSpacingInPhysicalUnits": ["10"]})],
    "contrasts": [("affine", {}), ("bspline", {"FinalGridSpacingInPhysicalUnits": ["10"]})],
}


def parameters(task: str) -> Any:
    """The task's stages as elastix's parameter object."""
    given = itk.ParameterObject.New()
    for name, changes in RECIPES[task]:
        stage = given.GetDefaultParameterMap(name, 5 if task == "pairs" else 4)
        for key, value in changes.items():
            stage[key] = value
        given.AddParameterMap(stage)
    return given


def as_field(image: Any, like: SimpleITK.Image) -> SimpleITK.Image:
    """elastix's deformation field as a SimpleITK image on the grid of ``like``."""
    out = SimpleITK.GetImageFromArray(np.asarray(itk.array_from_image(image), np.float32), isVector=True)
    out.CopyInformation(like)
    return out


def register(job: Job, clock: Clock) -> SimpleITK.Image:
    """All stages, as one field."""
    with clock.part("read"):
        images = [itk.imread(str(path), itk.F) for path in (job.fixed, job.moving)]
        masks = {
            key: itk.imread(str(path), itk.UC)
            for key, path in (("fixed_mask", job.fixed_mask), ("moving_mask", job.moving_mask))
            if path
        }
    # its own argument number_of_threads ends in a segmentation fault at the B-spline stage (itk-elastix 0.25.4)
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(job.threads)
    with clock.part("register"):
        registered, found = itk.elastix_registration_method(*images, parameter_object=parameters(job.task), **masks)
    with clock.part("resample"):
        itk.imwrite(registered, str(job.output / "registered.mha"))
    os.chdir(job.output)  # transformix leaves a file where it runs
    with clock.part("export"):
        return as_field(itk.transformix_deformation_field(images[1], found), SimpleITK.ReadImage(str(job.fixed)))


if __name__ == "__main__":
    main(register)
