"""The methods paragraph for a paper: what was done to this study, with versions, parameters and what to cite."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import histomri

# what does the work, as a paper would name it, by its distribution
PROGRAMS = {
    "snakemake": "Snakemake",
    "numpy": "NumPy",
    "scipy": "SciPy",
    "numba": "Numba",
    "opencv-python-headless": "OpenCV",
    "SimpleITK": "SimpleITK",
    "zarr": "Zarr-Python",
    "openslide-python": "OpenSlide Python",
    "tifffile": "tifffile",
}
# what this program's own methods and formats stand on
REFERENCES = {
    "snakemake": "Mölder F et al. Sustainable data analysis with Snakemake. F1000Research 10:33 (2021).",
    "slides": "Goode A et al. OpenSlide: a vendor-neutral software foundation for digital pathology. "
    "J Pathol Inform 4:27 (2013).",
    "store": "Moore J et al. OME-Zarr: a cloud-optimized bioimaging file format. Histochem Cell Biol 160:223-251 (2023).",
    "itk": "Lowekamp BC et al. The design of SimpleITK. Front Neuroinform 7:45 (2013).",
    "diffeomorphism": "Christensen GE, Rabbitt RD, Miller MI. Deformable templates using large deformation kinematics. "
    "IEEE Trans Image Process 5:1435-1447 (1996).",
    "features": "Heinrich MP et al. MIND: modality independent neighbourhood descriptor. Med Image Anal 16:1423-1435 (2012).",
    "step": "Lucas BD, Kanade T. An iterative image registration technique. Proc IJCAI 674-679 (1981).",
    "nmi": "Studholme C, Hill DLG, Hawkes DJ. An overlap invariant entropy measure of 3D medical image alignment. "
    "Pattern Recognit 32:71-86 (1999).",
}
ALWAYS = ("snakemake", "slides", "store", "itk", "diffeomorphism", "features", "step")


@dataclass(frozen=True)
class Methods:
    """A paragraph in plain words, and the references that it names by number."""

    text: str
    references: tuple[str, ...]


def methods_of(sections: Sequence[Any], stains: Sequence[str], has_mri: bool, parameters: Mapping[str, Any]) -> Methods:
    """The paragraph for a study of these sections and stains; ``parameters`` are keys of its config, by ``stage.key``."""
    keys = [key for key in REFERENCES if key in ALWAYS or (has_mri and key == "nmi")]
    cite = {key: f"[{number}]" for number, key in enumerate(keys, 1)}
    sentences = [
        f"{len(sections)} histological sections ({', '.join(stains)}) were processed with histomri {histomri.__version__} "
        f"(Python {platform.python_version()}; {', '.join(_versions())}; workflow {cite['snakemake']}).",
        f"Slides {cite['slides']} were converted to OME-Zarr pyramids {cite['store']} with a mask of the tissue.",
        _stack(parameters, cite),
        _mri(parameters, cite) if has_mri else "",
        f"All transforms were joined (file formats of ITK {cite['itk']}) and each section's pixels interpolated once, from the "
        "slide to the output grid.",
        "Every other parameter, the checksums of inputs and results, the code's revision and the exact environment are recorded "
        "in provenance.json; the result can be repeated with the command histomri reproduce.",
    ]
    return Methods(" ".join(filter(None, sentences)), tuple(REFERENCES[key] for key in keys))


def _stack(parameters: Mapping[str, Any], cite: Mapping[str, str]) -> str:
    reach, search, fine, alpha = (parameters[f"stack.{key}"] for key in ("reach", "search_px", "fine_px", "alpha"))
    return (
        f"Each section was compared with the {reach} that follow it over all in-plane rotations and both faces, at {search} and "
        f"then {fine} pixels along the tissue; one rigid placement of all sections was solved from the pairs accepted at a "
        f"false-acceptance probability of {alpha:g}. Deformations followed local self-similarity {cite['features']} by "
        f"Gauss-Newton steps {cite['step']} that are composed {cite['diffeomorphism']}."
    )


def _mri(parameters: Mapping[str, Any], cite: Mapping[str, str]) -> str:
    of = {key.partition(".")[2]: value for key, value in parameters.items() if key.startswith("mri.")}
    return (
        f"The pose of the block in the MRI was searched over {of['rotations']} rotations without an initial guess, "
        f"{of['candidates']} candidates being refined; each section was then registered to its plane of the MRI at "
        f"{of['work_px']} pixels along the tissue, held by {of['neighbours']} neighbours on each side ({of['affine_sweeps']} "
        f"affine and {of['deformable_sweeps']} deformable sweeps; weight of the MRI {of['mri_weight']:g}). Agreement with the "
        f"MRI is reported as normalised mutual information {cite['nmi']}."
    )


def _versions() -> list[str]:
    found = []
    for distribution, name in PROGRAMS.items():
        try:
            found.append(f"{name} {version(distribution)}")
        except PackageNotFoundError:
            continue
    return found
