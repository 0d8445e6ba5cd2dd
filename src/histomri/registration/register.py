"""Two images in, one transform out: the function behind ``histomri register``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from histomri.backend import resolve_device
from histomri.core import Grid, Image, InputError, Landmarks, RegistrationError
from histomri.core.errors import Problem
from histomri.registration.alignment import Alignment, Guide, Progress, View, part, silent
from histomri.registration.choices import METRICS, OPTIMISERS, REGULARISERS, TRANSFORMS, Choice, register_chosen
from histomri.registration.pair import scaled
from histomri.registration.resemblance import LEAST_LEAD, resemblance
from histomri.registration.sanity import folded_share, landmarks_missed, refusal, tissue_size
from histomri.registration.together import together
from histomri.registration.views import make_view
from histomri.registration.warp import warped
from histomri.transforms import Affine, Chain, Transform

Float = NDArray[np.float64]
AnyImage = Image | NDArray[Any]
AnyPoints = Landmarks | ArrayLike

SPACING_RATIO = 500.0
SEARCHED = 1.6
EXTENT_RATIO = 100.0
CPU_ONLY = "the default pipeline computed on the CPU: to use the GPU, choose a transform or a metric"


@dataclass(frozen=True, eq=False)
class Registration:
    """What :func:`register` found.

    ``transform`` maps points of the fixed image to the moving image, in mm and array order, (y, x) or (z, y, x); in pixels where
    the images were given as arrays. ``status`` is ``converged``, ``stopped`` (still improving when the iterations ran out) or
    ``failed`` (not to be trusted: nothing can be resampled with it); ``reason`` says why. ``before`` and ``after`` are the
    dissimilarity ``metric`` of the images as they lay and as they lie now, lower is better. ``folding`` is the share of the fixed
    mask in which the transform folds, ``landmark_error`` the median distance of the landmarks before and after (moving mm).
    """

    transform: Transform
    fixed: Image
    moving: Image
    status: str
    reason: str
    metric: str
    before: float
    after: float
    folding: float
    seconds: float
    landmark_error: tuple[float, float] | None = None
    notes: tuple[str, ...] = ()
    trace: tuple[float, ...] = ()

    @property
    def is_trusted(self) -> bool:
        """Whether the registration converged or stopped, and did not fail."""
        return self.status != "failed"

    def map(self, points: ArrayLike) -> Float:
        """Points of the fixed image, (..., ndim) in mm and array order, in the moving image."""
        return self.transform.map(points)

    def inverse(self) -> Transform:
        """The transform from the moving image to the fixed one."""
        return self.transform.inverse()

    def registered(self, image: Image | None = None, nearest: bool = False) -> Image:
        """The moving image, or another one that lies as it does (labels: ``nearest``), on the fixed image's grid; 0 outside.

        Raises ``RegistrationError`` when the registration failed.
        """
        if not self.is_trusted:
            raise RegistrationError(f"The registration failed ({self.reason}): nothing is resampled with its transform.")
        source = self.moving if image is None else image
        return source.__class__(self.fixed.grid, warped(source, self.transform, self.fixed.grid, nearest), source.channels)


def register(
    fixed: AnyImage,
    moving: AnyImage,
    *,
    transforms: Sequence[str] | None = None,
    metric: str | None = None,
    regularisation: Mapping[str, float] | None = None,
    optimiser: str | None = None,
    fixed_mask: AnyImage | None = None,
    moving_mask: AnyImage | None = None,
    fixed_landmarks: AnyPoints | None = None,
    moving_landmarks: AnyPoints | None = None,
    search: bool = True,
    device: str = "auto",
    names: tuple[str, str] = ("fixed", "moving"),
    progress: Progress = silent,
) -> Registration:
    """Find the transform that brings ``moving`` onto ``fixed``, from no initial guess: sections, photographs, MRI.

    With nothing but the two images it searches every rotation, both faces and a range of scales (2D) or the orientation (3D),
    then fits an affine transform and a smooth deformation without folds.

    >>> from histomri.registration.register import register
    >>> result = register(fixed, moving)                   # two NumPy arrays, or two Images with their spacing
    >>> result.status, result.reason
    ('converged', '...')
    >>> picture = result.registered().data                 # moving as fixed lies
    >>> result.map([[10.0, 20.0]])                         # a fixed point (y, x), where it is in moving

    Parameters
    ----------
    fixed, moving
        ``Image`` (geometry in mm), or a NumPy array: (y, x), (y, x, 3 or 4) in colour, or a volume (z, y, x); an array counts in
        pixels. Any number type and any channels; pixels that are NaN are masked out.
    transforms
        Models fitted one after another, such as ``("rigid",)`` or ``("affine", "bspline")``: names of
        ``choices.TRANSFORMS``. By default affine, then a diffeomorphic deformation.
    metric
        Name of ``choices.METRICS``. By default what suits the images.
    regularisation
        Weight of each term for deformable models, such as ``{"bending": 0.1}``: names of ``choices.REGULARISERS``.
    optimiser
        Name of ``choices.OPTIMISERS``. By default the one that suits metric and transform.
    fixed_mask, moving_mask
        Where to look, of the size of their image (nonzero = use). By default the tissue is found (2D), or all is used (3D).
    fixed_landmarks, moving_landmarks
        Corresponding points, (n, ndim) in mm and array order (pixels for arrays), at least 3 (2D) or 4 (3D). They guide.
    search
        False where the images lie about right already: then only that start is refined.
    device
        ``auto``, ``cpu`` or ``gpu``: where the engine computes once a transform, metric, regulariser or optimiser was chosen.
        The search and the default pipelines stay on the CPU; the notes say what else does.
    names
        What to call the two images in errors.
    progress
        Called as ``progress(share, doing)``, 0 to 1 and a few words.

    Raises
    ------
    InputError
        For input that no registration can use: empty, constant, of different dimensions, spacings that cannot both be right,
        landmarks that do not match, an unknown name.
    RegistrationError
        Where nothing could be found at all. A transform that was found but is not to be trusted is returned as ``failed``.
    """
    started = time.perf_counter()
    pair = (_as_image(fixed, names[0]), _as_image(moving, names[1]))
    choice = Choice(None if transforms is None else tuple(transforms), metric, regularisation, optimiser, device)
    _check_choices(choice)
    _check_geometry(pair, names)
    landmarks = _landmarks(fixed_landmarks, moving_landmarks, pair[0].grid.ndim)
    masks = (_as_mask(fixed_mask, pair[0], names[0]), _as_mask(moving_mask, pair[1], names[1]))
    progress(0.0, "reading")
    views = together([partial(make_view, *one) for one in zip(pair, masks, names, strict=True)])
    (fixed_view, said), (moving_view, more) = views
    given = fixed_mask is not None and moving_mask is not None
    guide = Guide(search, landmarks, given or fixed_view.extracted or moving_view.extracted)
    found = _at_one_scale(fixed_view, moving_view, choice, guide, part(progress, 0.1, 1.0))
    found = _judged(found, fixed_view, moving_view)
    if guide.landmarks is not None and found.status != "failed":
        why = landmarks_missed(found.transform, guide.landmarks, moving_view.image.grid)
        found = replace(found, status="failed", reason=why) if why else found
    progress(1.0, "registered")
    return Registration(
        found.transform,
        *pair,
        found.status,
        found.reason,
        found.metric,
        found.before,
        found.after,
        folded_share(found.transform, fixed_view.mask),
        time.perf_counter() - started,
        _landmark_error(found.transform, guide),
        (*said, *more, *found.notes),
        found.trace,
    )


def _at_one_scale(fixed: View, moving: View, choice: Choice, guide: Guide, progress: Progress) -> Alignment:
    """The alignment, sought with the moving image as large as the fixed tissue where 2D images count in pixels and differ much.

    Pixels of a scan and of a photograph say nothing of true sizes, and the search reaches about half to twice the size only.
    """
    ratio = tissue_size(fixed.mask) / tissue_size(moving.mask)
    in_pixels = all((view.image.grid.spacing_mm % 1 == 0).all() and view.image.grid.ndim == 2 for view in (fixed, moving))
    if not (guide.search and in_pixels) or 1 / SEARCHED < ratio < SEARCHED:
        return _aligned(fixed, moving, choice, guide, progress)
    imaged = moving.imaged and scaled(moving.imaged, ratio)
    larger = replace(moving, image=scaled(moving.image, ratio), mask=scaled(moving.mask, ratio), imaged=imaged)
    points = guide.landmarks and (guide.landmarks[0], guide.landmarks[1] * ratio)
    found = _aligned(fixed, larger, choice, replace(guide, landmarks=points), progress)
    *before, last = Chain.steps_of(found.transform)
    assert isinstance(last, Affine)
    last = Affine.from_parts(last.linear / ratio, last.translation / ratio)
    return replace(found, transform=Chain((*before, last)) if before else last)


def _aligned(fixed: View, moving: View, choice: Choice, guide: Guide, progress: Progress) -> Alignment:
    """The default pipeline of these dimensions, or the engine with the user's choice."""
    if not choice.is_none:
        return register_chosen(fixed, moving, choice, guide, progress)
    found = _by_default(fixed, moving, guide, progress)
    return replace(found, notes=(*found.notes, CPU_ONLY)) if choice.device == "gpu" else found


def _by_default(fixed: View, moving: View, guide: Guide, progress: Progress) -> Alignment:
    if fixed.image.grid.ndim == 3:
        from histomri.registration.volumetric import register_volumes

        return register_volumes(fixed, moving, guide, progress)
    from histomri.registration.planar import register_planar

    return register_planar(fixed, moving, guide, progress)


def _judged(found: Alignment, fixed: View, moving: View) -> Alignment:
    """The alignment, marked failed where its transform is beyond the limits of ``sanity`` or brings no likeness."""
    why = refusal(found.transform, fixed.mask, moving.mask)
    if why:
        return replace(found, status="failed", reason=f"refused: {why}")
    if fixed.image.grid.ndim == 3:
        return found
    likeness = resemblance(fixed, moving, found.transform)
    if found.metric == "mind":
        found = replace(found, before=1 - likeness.before, after=1 - likeness.after)
    if likeness.lead >= LEAST_LEAD or found.status == "failed":
        return found
    chance = f"{likeness.linear:.2f} where turned copies reach {likeness.chance:.2f} by chance"
    why = f"{chance}, a lead of {likeness.lead:.1f} deviations (limit {LEAST_LEAD:g})"
    return replace(found, status="failed", reason=f"the images hardly resemble each other as they were brought to lie: {why}")


def _error(where: str, what: str, remedy: str) -> InputError:
    return InputError(Problem(where, what, remedy))


def _as_image(given: AnyImage, name: str) -> Image:
    """An array gets a grid of 1: it counts in pixels."""
    if isinstance(given, Image):
        return given
    data = np.asarray(given)
    if data.ndim == 3 and data.shape[2] in (3, 4):
        return Image(Grid(data.shape[:2], 1.0), data[..., :3], ("red", "green", "blue"))  # type: ignore[arg-type]
    if data.ndim not in (2, 3) or not data.size:
        raise _error(name, f"an array (y, x), (y, x, 3) or (z, y, x) was expected, found {data.shape}", "pass another array")
    return Image(Grid(data.shape, 1.0), data)  # type: ignore[arg-type]


def _as_mask(given: AnyImage | None, image: Image, name: str) -> Image | None:
    if given is None:
        return None
    data = given.data if isinstance(given, Image) else np.asarray(given)
    if isinstance(given, Image) and given.channels:
        data = np.asarray(data).max(axis=-1)
    if tuple(data.shape) != image.grid.shape:
        found, wanted = (" x ".join(map(str, s[::-1])) for s in (data.shape, image.grid.shape))
        raise _error(
            f"mask of {name}", f"{wanted} pixels were expected, as the image has, found {found}", "make a mask of that size"
        )
    return Image(image.grid, data)


def _check_choices(choice: Choice) -> None:
    names = () if choice.transforms is None else choice.transforms or ("",)
    _check_names("transforms", "transform", names, TRANSFORMS)
    _check_names("metric", "metric", () if choice.metric is None else (choice.metric,), METRICS)
    _check_names("regularisation", "regulariser", choice.regularisation or (), REGULARISERS)
    _check_names("optimiser", "optimiser", () if choice.optimiser is None else (choice.optimiser,), OPTIMISERS)
    _check_names("device", "device", (choice.device,), ("auto", "cpu", "gpu"))
    try:
        resolve_device(choice.device)
    except RuntimeError as reason:
        raise _error("device", "gpu was asked for, but no working GPU is found", "use auto or cpu") from reason


def _check_names(where: str, kind: str, names: Iterable[str], menu: tuple[str, ...]) -> None:
    for name in names:
        if name not in menu:
            raise _error(where, f"there is no {kind} {name!r}", f"choose from {', '.join(menu)}")


def _check_geometry(pair: tuple[Image, Image], names: tuple[str, str]) -> None:
    fixed, moving = (image.grid for image in pair)
    where = f"{names[0]} and {names[1]}"
    if fixed.ndim != moving.ndim:
        what = f"a {fixed.ndim}D image cannot be registered with a {moving.ndim}D one"
        raise _error(where, what, "give two of the same kind: extract a slice, or stack the slices")
    ratios = moving.spacing_mm.max() / fixed.spacing_mm.min(), fixed.spacing_mm.max() / moving.spacing_mm.min()
    sizes = np.linalg.norm(fixed.extent_mm), np.linalg.norm(moving.extent_mm)
    if max(ratios) > SPACING_RATIO or not 1 / EXTENT_RATIO < sizes[0] / sizes[1] < EXTENT_RATIO:
        both = " and ".join("(" + ", ".join(f"{s:g}" for s in g.spacing_mm[::-1]) + ") mm" for g in (fixed, moving))
        what = f"their spacings, {both} (x, y..), do not go together: the images are {sizes[0]:.4g} and {sizes[1]:.4g} mm across"
        raise _error(where, what, "correct the spacing in the file that is wrong, or count both in pixels (--ignore-spacing)")


def _landmarks(fixed: AnyPoints | None, moving: AnyPoints | None, ndim: int) -> tuple[Float, Float] | None:
    if fixed is None and moving is None:
        return None
    if fixed is None or moving is None:
        raise _error("landmarks", "were given for one image only", "give those of the other image too, in the same order")
    points = tuple(np.asarray(p.points if isinstance(p, Landmarks) else p, float) for p in (fixed, moving))
    if points[0].shape != points[1].shape or points[0].ndim != 2 or points[0].shape[1] != ndim:
        what = f"two lists of as many points (n, {ndim}) were expected, found {points[0].shape} and {points[1].shape}"
        raise _error("landmarks", what, "each row must be the same point in both images")
    known = np.isfinite(points[0]).all(axis=1) & np.isfinite(points[1]).all(axis=1)
    if known.sum() <= ndim:
        what = f"at least {ndim + 1} points with coordinates in both images were expected, found {known.sum()}"
        raise _error("landmarks", what, "add points, or leave the landmarks out")
    spread = np.linalg.svd(points[0][known] - points[0][known].mean(axis=0), compute_uv=False)
    if spread[-1] < 1e-3 * spread[0]:
        raise _error("landmarks", "all points lie on a line or in a plane", "add points away from it")
    return points[0][known], points[1][known]


def _landmark_error(transform: Transform, guide: Guide) -> tuple[float, float] | None:
    """Median distance of the landmarks as the images lie in their world, and under the transform."""
    if guide.landmarks is None:
        return None
    fixed, moving = guide.landmarks
    before, after = (np.median(np.linalg.norm(p - moving, axis=1)) for p in (fixed, transform.map(fixed)))
    return float(before), float(after)
