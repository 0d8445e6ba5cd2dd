"""From any image to the one channel and mask that registration compares, checked for what no registration can use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from histomri.core import Grid, Image, InputError
from histomri.core.errors import Problem
from histomri.kernels.pieces import pieces_of
from histomri.kernels.tissue import DARK_MEDIAN, Tissue, find_background, find_tissue, tissue_bright
from histomri.registration.alignment import View

Array = NDArray[np.float32]
Bool = NDArray[np.bool_]

WORKING_PX = 1536
MASK_PX = 512
STRIP_BYTES = 64 << 20
LEAST_MASK_PX = 64
LEAST_TISSUE = 0.002
MOST_TISSUE = 0.98
CONSTANT = 1e-6
RIM_SHARE = 0.1
LEAST_FILLER = 0.002
# of an extracted image: rim of one value, pixels in specks, brightness just inside the outline and its spread there, over the
# brightest; glass beside a filler has at most 0.04 and 0.1 (or 1 and 0), brains at least 0.09 and 0.17
EVEN_RIM = 0.95
MOST_SPECKS = 0.02
ABRUPT = 0.08
UNEVEN = 0.12
# of the rectangle that a picture would be without its filler: what JPEG or a ragged edge may take away from it
PICTURE_SHARE = 0.985


def problem(name: str, what: str, remedy: str) -> InputError:
    """The error for one image, by the name that the user gave it."""
    return InputError(Problem(name, what, remedy))


def make_view(image: Image, mask: Image | None, name: str, longest_px: int = WORKING_PX) -> tuple[View, list[str]]:
    """The view of an image of any type and any number of channels, and notes in words.

    In 2D the image is averaged by whole pixels to about ``longest_px`` along its longer side, strip by strip, so that it need not
    fit into memory; without a ``mask`` the tissue is found. In 3D the voxels stay as they are and the mask is what is finite.
    A pixel that is not finite is outside the mask; in 2D it and the filler around a picture count as not imaged.

    Raises
    ------
    InputError
        Where the image holds nothing finite or one value only, or the mask nothing.
    """
    small, valid = _reduced(image, longest_px) if image.grid.ndim == 2 else _whole(image)
    notes = _check_content(small, valid, name)
    chosen = None if mask is None else _mask_on(mask, small.grid) & valid
    if chosen is not None:
        _check_mask(chosen, small.data, name)
    if image.grid.ndim == 3:
        return View(Image(small.grid, _grey(small.data)), Image(small.grid, valid if chosen is None else chosen)), notes
    filler = _filler(small.data, valid)
    if filler.any():
        notes.append(f"{name}: {filler.mean():.1%} is filler around the picture, which counts as not imaged")
    valid &= ~filler
    extracted = _extracted(small.data, valid) if chosen is None and not filler.any() else None
    chosen = chosen if extracted is None else extracted
    channel, tissue = _contrast(small.data, valid, np.dtype(image.data.dtype), chosen)
    if chosen is None:
        chosen, said = _usable(tissue & valid)
        notes += [f"{name}: {said}"] if said else []
    imaged = None if valid.all() else Image(small.grid, valid)
    return View(Image(small.grid, channel), Image(small.grid, chosen & valid), imaged, extracted is not None), notes


def _filler(data: Array, valid: Bool) -> Bool:
    """What surrounds a picture that was turned or padded: of one value exactly from a corner on, around a rectangle.

    Anything else around which there is one value, such as an extracted brain, is no rectangle. (y, x) of (y, x, c) pixels.
    """
    height, width = valid.shape
    corners = [(0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1)]
    found = np.zeros_like(valid)
    for value in {tuple(data[c].tolist()) for c in corners if valid[c] and _is_even(data, c)}:
        same = np.logical_and.reduce([data[..., k] == np.float32(v) for k, v in enumerate(value)]) & valid
        _, labels = cv2.connectedComponents(same.astype(np.uint8), connectivity=4)
        for label in {int(labels[c]) for c in corners if same[c]}:
            found |= labels == label
    if not LEAST_FILLER < found.mean() < 1 - LEAST_FILLER:
        return np.zeros_like(valid)
    # along its edge a picture is mixed with the filler
    grown = np.asarray(cv2.dilate(found.astype(np.uint8), np.ones((3, 3), np.uint8)), bool)
    return grown if _is_rectangle(~found) else np.zeros_like(valid)


def _extracted(data: Array, valid: Bool) -> Bool | None:
    """What one value exactly surrounds, if it ends there as an extracted brain does; None for any other image.

    There it is bright at once, and not everywhere alike: where dark was cut to 0 tissue fades into the background, and where a
    scanner filled what it did not scan even glass follows.
    """
    rim = _border(data)
    background = np.median(rim, axis=0)
    if (rim == background).all(axis=-1).mean() < EVEN_RIM:
        return None
    inside = ~_touching_rim((data == background).all(axis=-1)) & valid
    outline = _eroded(inside, 1) & ~_eroded(inside, 2)
    if not outline.any() or not LEAST_TISSUE <= inside.mean() <= MOST_TISSUE or _in_specks(inside) > MOST_SPECKS:
        return None
    contrast = np.abs(data - background).mean(axis=-1)
    dark, middle, bright = np.percentile(contrast[outline], (10, 50, 90)) / np.percentile(contrast[inside], 99.5)
    ends = middle >= ABRUPT and bright - dark >= UNEVEN and not _is_rectangle(inside)
    return inside if ends else None


def _touching_rim(mask: Bool) -> Bool:
    """The pieces of a mask that reach the image's border."""
    labels, _ = pieces_of(mask, connectivity=4)
    rim = np.unique(_border(labels))
    return np.asarray(np.isin(labels, rim[rim > 0]))


def _in_specks(mask: Bool) -> float:
    """Share of a mask in pieces of less than a hundredth of it."""
    sizes = pieces_of(mask)[1][1:, 4]
    return float(sizes[sizes < 0.01 * sizes.sum()].sum() / sizes.sum())


def _eroded(mask: Bool, times: int) -> Bool:
    return np.asarray(cv2.erode(mask.astype(np.uint8), np.ones((3, 3), np.uint8), iterations=times), bool)


def _is_even(data: Array, corner: tuple[int, int]) -> bool:
    """Whether the four pixels at a corner (row and column, 0 or the last) are of one value."""
    y, x = (min(c, n - 2) for c, n in zip(corner, data.shape[:2], strict=True))
    return bool((np.ptp(data[y : y + 2, x : x + 2].reshape(4, -1), axis=0) == 0).all())


def _is_rectangle(shown: Bool) -> bool:
    """Whether pixels fill their smallest rectangle, at any angle, as far as it lies in the image."""
    outlines, _ = cv2.findContours(shown.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    box = cv2.boxPoints(cv2.minAreaRect(np.concatenate(outlines)))
    whole = cv2.fillConvexPoly(np.zeros(shown.shape, np.uint8), np.round(box).astype(np.int32), 1)
    return bool((shown & (whole > 0)).sum() >= PICTURE_SHARE * whole.sum())


def _whole(image: Image) -> tuple[Image, Bool]:
    data = np.asarray(image.data)
    data = (data if image.channels else data[..., None]).astype(np.float32)
    valid = np.isfinite(data).all(axis=-1)
    data[~valid] = 0
    return Image(image.grid, data, image.channels or ("intensity",)), valid


def _reduced(image: Image, longest_px: int) -> tuple[Image, Bool]:
    """Averages over whole blocks of pixels, (y, x, c) float32, and where at least half of a block is finite."""
    grid = image.grid
    factor = max(1, round(max(grid.shape) / longest_px))
    coarse = grid.downsample(factor)
    count = len(image.channels) or 1
    data, valid = np.empty((*coarse.shape, count), np.float32), np.empty(coarse.shape, bool)
    for top, strip in _strips(image, factor, count):
        mean, share = _block_mean(strip.reshape(*strip.shape[:2], -1), factor)
        data[top : top + len(mean)], valid[top : top + len(mean)] = mean, share >= 0.5
    return Image(coarse, data, image.channels or ("intensity",)), valid


def _strips(image: Image, factor: int, count: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Whole rows of blocks of at most 64 MB, and the row of blocks at which each starts."""
    height, width = image.grid.shape
    rows = max(1, STRIP_BYTES // (4 * width * count * factor))
    for top in range(0, -(-height // factor), rows):
        yield top, np.asarray(image.data[top * factor : (top + rows) * factor])


def _block_mean(strip: NDArray[Any], factor: int) -> tuple[Array, Array]:
    """Mean over blocks of what is finite, and its share; a ragged last block is averaged over what it has."""
    values = strip.astype(np.float32)
    finite = np.asarray(np.isfinite(values).all(axis=-1))
    if factor == 1:
        return np.asarray(np.where(finite[..., None], values, 0), np.float32), finite.astype(np.float32)
    values[~finite] = 0
    rows, columns = (np.arange(0, n, factor) for n in strip.shape[:2])
    total = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    found = np.add.reduceat(np.add.reduceat(finite.astype(np.float32), rows, axis=0), columns, axis=1)
    size = np.outer(np.diff(np.append(rows, strip.shape[0])), np.diff(np.append(columns, strip.shape[1])))
    return np.asarray(total / np.maximum(found, 1)[..., None], np.float32), np.asarray(found / size, np.float32)


def _check_content(image: Image, valid: Bool, name: str) -> list[str]:
    if not valid.any():
        raise problem(name, "holds no finite pixel, all are NaN or infinite", "export the image again")
    inside = image.data[valid]
    low, high = float(inside.min()), float(inside.max())
    if high - low <= CONSTANT * max(abs(low), abs(high)):
        raise problem(name, f"is constant: every pixel is {low:g}, so there is nothing to register", "choose the right file")
    if min(image.grid.shape) < 8:
        sizes = " x ".join(map(str, image.grid.shape[::-1]))
        raise problem(
            name, f"is too small to register: {sizes} pixels, at least 8 along each axis are needed", "use a finer image"
        )
    lost = 1 - float(valid.mean())
    return [f"{name}: {lost:.2%} of the pixels are not finite and were masked out"] if lost else []


def _mask_on(mask: Image, grid: Grid) -> Bool:
    """A mask of the image's full size on the working grid: where at least half of a block is set."""
    if mask.grid.shape == grid.shape:
        return np.asarray(mask.data) > 0
    factor = round(float((grid.spacing_mm / mask.grid.spacing_mm).max()))
    shares = [_block_mean((strip > 0)[..., None], factor)[0][..., 0] for _, strip in _strips(mask, factor, 1)]
    return np.asarray(np.concatenate(shares) >= 0.5)


def _check_mask(mask: Bool, data: Array, name: str) -> None:
    set_px = int(mask.sum())
    if set_px < LEAST_MASK_PX:
        what = f"its mask is empty: {set_px} usable pixels are set, at least {LEAST_MASK_PX} are needed"
        raise problem(name, what, "set the mask to 1 where the tissue is, or leave it out")
    inside = data[mask]
    if float(np.ptp(inside, axis=0).max()) <= CONSTANT * float(np.abs(inside).max()):
        raise problem(name, "is constant inside its mask", "correct the mask, or leave it out")


def _grey(data: Array) -> Array:
    return data[..., 0] if data.shape[-1] == 1 else data.mean(axis=-1, dtype=np.float32)


def _contrast(data: Array, valid: Bool, dtype: np.dtype[Any], mask: Bool | None) -> tuple[Array, Bool]:
    """One channel, tissue bright on a background of 0, and where tissue was found."""
    if dtype != np.uint8:
        low, high = np.percentile(data[valid], (0.1, 99.9))
        data = (np.clip((data - low) / max(high - low, 1e-30), 0, 1) * 255).astype(np.float32)
    if not valid.all():
        data = np.where(valid[..., None], data, np.median(_rim(data, valid), axis=0)).astype(np.float32)
    if _has_dark_rim(data):
        # the finder takes an image that is half bright for brightfield: shown its negative, it is right
        tissue = _tissue(255 - data, mask)
        background = tuple(255 - b for b in tissue.background)
        channel = tissue_bright(data, background, True, 255.0)
    else:
        tissue = _tissue(data, mask)
        channel = tissue_bright(data, tissue.background, tissue.inverted, 255.0)
    used = valid if mask is None else mask
    return channel if np.ptp(channel[used]) > 0 else _grey(data) / np.float32(255), tissue.mask


def _tissue(data: Array, mask: Bool | None) -> Tissue:
    """Tissue in (y, x, c) of 0 to 255, found at the size for which the finder is made; only its background where it is known."""
    factor = max(1, round(max(data.shape[:2]) / MASK_PX))
    small = np.rint(_block_mean(data, factor)[0]).astype(np.uint8)
    if mask is not None:
        return Tissue(mask, *find_background(small))
    found = find_tissue(small)
    if factor == 1:
        return found
    size = (small.shape[1] * factor, small.shape[0] * factor)
    soft = cv2.resize(found.mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR)
    return replace(found, mask=soft[: data.shape[0], : data.shape[1]] >= 0.5)


def _has_dark_rim(data: Array) -> bool:
    """Whether the border is the darkest that there is, but not most of the image: an MRI that fills its slice."""
    grey = _grey(data)
    low, middle, high = (float(v) for v in np.percentile(grey, (1, 50, 99.5)))
    is_dark = float(np.percentile(_border(grey), 75)) - low < RIM_SHARE * (high - low)
    return is_dark and middle - low >= DARK_MEDIAN * (high - low)


def _border(data: NDArray[Any]) -> NDArray[Any]:
    """The pixels of the first and last row and column, (n, ...) of (y, x, ...)."""
    return np.concatenate([data[0], data[-1], data[:, 0], data[:, -1]])


def _rim(data: Array, valid: Bool) -> Array:
    """Valid pixels along the border, all valid ones where it has none: what fills the gaps."""
    edge = np.zeros_like(valid)
    edge[[0, -1]] = edge[:, [0, -1]] = True
    return data[edge & valid] if (edge & valid).any() else data[valid]


def _usable(tissue: Bool) -> tuple[Bool, str]:
    """The tissue mask, or the whole image where no tissue stands out from a background."""
    share = float(tissue.mean())
    if LEAST_TISSUE <= share <= MOST_TISSUE:
        return tissue, ""
    return np.ones_like(tissue), f"no tissue stands out from a background ({share:.1%} found); all of the image is used"
