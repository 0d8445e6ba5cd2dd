"""``histomri register``: one image onto another."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from histomri.cli.coordinates import RAS_LPS
from histomri.core.errors import HistomriError, InputError, Problem

if TYPE_CHECKING:
    from histomri.io.images import OpenImage
    from histomri.io.points import PointTable
    from histomri.registration.register import Registration

Float = NDArray[np.float64]

HELP = "bring one image onto another: two sections, a photograph, two volumes"
DESCRIPTION = """\
Finds the transform that brings MOVING onto FIXED from no initial guess, deformation included, and writes to DIR:
registered.* (MOVING on the grid of FIXED), fixed_to_moving and moving_to_fixed (ITK, .tfm or .h5), points.csv with --points,
and result.json (status, reason, metric, folding, seconds of the registration and in all, peak memory). FIXED and MOVING: PNG,
JPEG, TIFF, a slide file, an OME-Zarr image or a level of it (image.ome.zarr/1), or two NIfTI volumes. An image without a
spacing counts in pixels. Exit status: 0 when it converged or stopped, 1 when it failed."""
POINTS_HELP = (
    "CSV of points of FIXED to map into MOVING; columns x,y: pixels from the centre of the top left one; NIfTI: x,y,z in RAS mm"
)
LANDMARKS_HELP = "CSV of points of {0}, columns as for --points, that lie on those of {1} row by row; they guide the registration"
BAR = 24


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the command to the parser of ``histomri``."""
    from histomri.registration.choices import METRICS, OPTIMISERS, REGULARISERS, TRANSFORMS

    parser: argparse.ArgumentParser = subparsers.add_parser("register", help=HELP, description=DESCRIPTION)
    parser.add_argument("fixed", type=Path, metavar="FIXED", help="the image that stays")
    parser.add_argument("moving", type=Path, metavar="MOVING", help="the image that is brought onto it")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for the results")
    models = f"models fitted one after another, of {', '.join(TRANSFORMS)} (default: affine,diffeomorphic)"
    parser.add_argument("--transform", type=_transforms, metavar="NAME,...", help=models)
    parser.add_argument("--metric", choices=METRICS, help="how likeness is measured (default: what suits the images)")
    terms = f"what a deformation pays for, of {', '.join(REGULARISERS)}, each with its weight: bending=0.1,volume=0.5"
    parser.add_argument("--regularisation", type=_weights, metavar="NAME=WEIGHT,...", help=terms)
    parser.add_argument("--optimiser", choices=OPTIMISERS, help="how it is found (default: what suits metric and transform)")
    for name, other in (("fixed", "moving"), ("moving", "fixed")):
        mask = f"image as large as {name.upper()}: nonzero where to look (default: the tissue is found)"
        parser.add_argument(f"--{name}-mask", type=Path, metavar="MASK", help=mask)
        landmarks = LANDMARKS_HELP.format(name.upper(), other.upper())
        parser.add_argument(f"--{name}-landmarks", type=Path, metavar="CSV", help=landmarks)
    parser.add_argument("--points", type=Path, metavar="CSV", help=POINTS_HELP)
    parser.add_argument("--no-search", action="store_true", help="the images lie about right: refine that, search no rotation")
    parser.add_argument("--ignore-spacing", action="store_true", help="count both images in pixels, whatever spacing they state")
    parser.add_argument("--device", choices=("auto", "cpu", "gpu"), default="auto", help="where to compute (default: auto)")
    parser.add_argument("--threads", type=_count, metavar="N", help="threads to use (default: all cores)")
    parser.set_defaults(run=run)
    return parser


def _transforms(text: str) -> tuple[str, ...]:
    from histomri.registration.choices import TRANSFORMS

    names = tuple(text.split(","))
    wrong = [n for n in names if n not in TRANSFORMS]
    if wrong:
        raise argparse.ArgumentTypeError(f"there is no transform {wrong[0]!r}; choose from {', '.join(TRANSFORMS)}")
    return names


def _weights(text: str) -> dict[str, float]:
    from histomri.registration.choices import REGULARISERS

    weights = {}
    for item in text.split(","):
        name, _, weight = item.partition("=")
        if name not in REGULARISERS:
            raise argparse.ArgumentTypeError(f"there is no regulariser in {item!r}; choose from {', '.join(REGULARISERS)}")
        try:
            weights[name] = float(weight)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {name}=WEIGHT with a number, found {item!r}") from None
    return weights


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, found {text!r}")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Register, write and say in a line what came out; what cannot be used is said on standard error, with status 1."""
    bar = ProgressBar()
    args.started = time.perf_counter()
    try:
        return _register(args, bar)
    except HistomriError as error:
        bar.end()
        print(error, file=sys.stderr)
        return 1


def _register(args: argparse.Namespace, bar: ProgressBar) -> int:
    _grant_threads(args.threads)
    from histomri.registration.alignment import part
    from histomri.registration.register import register

    _check_output(args.output)
    fixed, moving, notes = _open_both(args)
    table = _read_table(args.points)
    points = None if table is None else (table, to_world(fixed, _coordinates(table, fixed)))
    result = register(
        fixed.image,
        moving.image,
        transforms=args.transform,
        metric=args.metric,
        regularisation=args.regularisation,
        optimiser=args.optimiser,
        fixed_mask=_mask(args.fixed_mask, fixed),
        moving_mask=_mask(args.moving_mask, moving),
        fixed_landmarks=_landmarks(args.fixed_landmarks, fixed),
        moving_landmarks=_landmarks(args.moving_landmarks, moving),
        search=not args.no_search,
        device=args.device,
        names=(str(args.fixed), str(args.moving)),
        progress=part(bar, 0.0, 0.8),
    )
    record = _record(args, fixed, moving, result, [*notes, *result.notes])
    _write(args, record, (fixed, moving), result, points, part(bar, 0.8, 1.0))
    bar.end()
    _say(args, result, record["notes"])
    return 0 if result.is_trusted else 1


def _grant_threads(threads: int | None) -> None:
    if threads is not None:
        from histomri.stages.adapter import use_threads

        use_threads(threads)


def _check_output(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise InputError(Problem(str(folder), "is a file, not a folder", "name another folder"))
    parent = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not parent.is_dir() or not _is_writable(parent):
        raise InputError(Problem(str(folder), f"cannot be written: {parent} is no folder, or not yours", "name another folder"))


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK)


def _open_both(args: argparse.Namespace) -> tuple[OpenImage, OpenImage, list[str]]:
    """Both images; where only one states its spacing, both are counted in pixels."""
    from histomri.io.images import counted_in_pixels, open_image

    fixed, moving = (open_image(path, args.ignore_spacing) for path in (args.fixed, args.moving))
    notes = [f"{image.path}: {note}" for image in (fixed, moving) for note in image.notes]
    if fixed.unit != moving.unit:
        silent_one, other = (fixed, moving) if fixed.unit == "px" else (moving, fixed)
        notes.append(f"{silent_one.path} states no pixel size, {other.path} does: both are counted in pixels")
        fixed, moving = counted_in_pixels(fixed), counted_in_pixels(moving)
    return fixed, moving, notes


def _mask(path: Path | None, image: OpenImage) -> Any:
    if path is None:
        return None
    from histomri.io.images import open_image

    mask = open_image(path).image
    shapes = [" x ".join(map(str, i.grid.shape[::-1])) for i in (image.image, mask)]
    if shapes[0] != shapes[1]:
        what = f"{shapes[0]} pixels were expected, as {image.path} has, found {shapes[1]}"
        raise InputError(Problem(str(path), what, "make a mask of that size"))
    data = np.asarray(mask.data[...])
    return (data.max(axis=-1) if mask.channels else data) > (127 if path.suffix.lower() in (".jpg", ".jpeg") else 0)


def _read_table(path: Path | None) -> PointTable | None:
    from histomri.io.points import read_points

    return None if path is None else read_points(path)


def _coordinates(table: PointTable, image: OpenImage) -> Float:
    return table.coordinates(image.image.grid.ndim)


def _landmarks(path: Path | None, image: OpenImage) -> Float | None:
    table = _read_table(path)
    return None if table is None else to_world(image, _coordinates(table, image))


def to_world(image: OpenImage, points: Float) -> Float:
    """Points as the command line counts them, (n, ndim) as x, y[, z], in the image's mm and array order."""
    if points.shape[1] == 3 and image.kind == "nifti":
        return (points * RAS_LPS)[:, ::-1] if image.unit == "mm" else points[:, ::-1]
    return image.image.grid.to_world(points[:, ::-1])


def from_world(image: OpenImage, points: Float) -> Float:
    """The inverse of :func:`to_world`."""
    if points.shape[1] == 3 and image.kind == "nifti":
        return points[:, ::-1] * RAS_LPS if image.unit == "mm" else points[:, ::-1]
    return image.image.grid.to_index(points)[:, ::-1]


def _record(
    args: argparse.Namespace, fixed: OpenImage, moving: OpenImage, result: Registration, notes: list[str]
) -> dict[str, Any]:
    """What ``result.json`` says; sizes, spacings and matrices in the order x, y[, z]."""
    import histomri

    record: dict[str, Any] = {
        "status": result.status,
        "reason": result.reason,
        "metric": {"name": result.metric, "before": result.before, "after": result.after},
        "folding": result.folding,
    }
    if result.landmark_error is not None:
        record["landmark_error"] = dict(zip(("before", "after"), result.landmark_error, strict=True))
    return record | {
        "unit": fixed.unit,
        "fixed": _image_record(fixed),
        "moving": _image_record(moving),
        "transform": list(args.transform or ()) or "default",
        "regularisation": args.regularisation or "default",
        "optimiser": args.optimiser or "default",
        "search": not args.no_search,
        "device": args.device,
        "notes": notes,
        "trace": list(result.trace),
        "histomri": histomri.__version__,
    }


def _image_record(image: OpenImage) -> dict[str, Any]:
    grid = image.image.grid
    return {
        "file": image.path,
        "size": grid.shape[::-1],
        "spacing": grid.spacing_mm[::-1],
        "channels": list(image.image.channels),
    }


def _write(
    args: argparse.Namespace,
    record: dict[str, Any],
    images: tuple[OpenImage, OpenImage],
    result: Registration,
    points: tuple[PointTable, Float] | None,
    progress: Any,
) -> None:
    """All results, or ``result.json`` alone where the registration failed; those of an earlier run go in either case."""
    from histomri.io import registered
    from histomri.io.atomic import write_json
    from histomri.io.memory import peak_memory_mb

    fixed, moving = images
    with registered.results(args.output) as folder:
        if result.is_trusted:
            forward, backward = registered.write_transforms(folder, result.transform, fixed.image.grid, moving.image.grid)
            image = registered.write_registered(folder, fixed, moving, result.transform, progress)
            record["files"] = {"registered": image.name, "fixed_to_moving": forward.name, "moving_to_fixed": backward.name}
            if points is not None:
                _write_points(folder / registered.POINTS, moving, result, *points)
        record["registration_seconds"] = round(result.seconds, 3)
        record["seconds"] = round(time.perf_counter() - args.started, 3)
        record["peak_memory_mb"] = round(peak_memory_mb(), 1)
        write_json(folder / registered.RESULT, record)


def _write_points(path: Path, moving: OpenImage, result: Registration, table: PointTable, points: Float) -> None:
    from histomri.io.points import write_points

    mapped = from_world(moving, result.map(points))
    inside = result.fixed.grid.contains(points)
    known = np.asarray(np.isfinite(points).all(axis=1))
    reasons = np.where(known, np.where(inside, "", "outside of the fixed image"), "no coordinates").tolist()
    write_points(path, table, mapped, reasons)


def _say(args: argparse.Namespace, result: Registration, notes: list[str]) -> None:
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    what = f"{args.moving} onto {args.fixed}: {result.status} ({result.reason})"
    if result.is_trusted:
        print(f"{what}; {result.metric} {result.before:.4f} -> {result.after:.4f}; results in {args.output}")
    else:
        print(f"error: {what}; only {args.output / 'result.json'} was written", file=sys.stderr)


class ProgressBar:
    """A bar on a terminal's standard error, a line for each step elsewhere."""

    def __init__(self) -> None:
        self._is_terminal = sys.stderr.isatty()
        self._doing = ""
        self._is_open = False

    def __call__(self, share: float, doing: str) -> None:
        """Show that ``share``, 0 to 1, is done, and what is being done."""
        if self._is_terminal:
            done = round(BAR * min(max(share, 0.0), 1.0))
            print(f"\r[{'#' * done}{'.' * (BAR - done)}] {share:4.0%} {doing:<40.40}", end="", file=sys.stderr, flush=True)
            self._is_open = True
        elif doing != self._doing:
            print(f"{share:4.0%} {doing}", file=sys.stderr, flush=True)
        self._doing = doing

    def end(self) -> None:
        """Leave the bar's line."""
        if self._is_open:
            print(file=sys.stderr)
        self._is_open = False
