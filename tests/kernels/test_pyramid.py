"""The compiled kernels of pyramids give what the formulas give, bit for bit, whichever of the two a section gets."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from histomri.kernels import native, planes, pyramid, pyramid_compiled

RNG = np.random.default_rng(5)


@pytest.mark.parametrize("box", [(0, 0, 8, 8), (1, 2, 7, 9), (3, 0, 1, 1), (2, 3, 1, 6), (0, 1, 5, 2)])
@pytest.mark.parametrize(("kind", "level"), [("u1", 1), ("u2", 1), ("u1", 4), ("f4", 1), ("i2", 2)])
def test_sums_of_four_are_the_same_for_odd_boxes_and_all_types(box: tuple[int, int, int, int], kind: str, level: int) -> None:
    below = RNG.integers(0, 200, (2, 9, 12)) if kind != "f4" else RNG.normal(size=(2, 9, 12)) * 1e3
    below = below.astype(pyramid.sum_type(kind, level - 1) if level > 1 else kind)
    found, wanted = (np.full((2, 6, 8), 7, pyramid.sum_type(kind, level)) for _ in range(2))
    pyramid.add_quads(below, box, found, (1, 1))
    pyramid.add_quads(below, box, wanted, (1, 1), compiled=True)
    assert np.array_equal(found, wanted) and (found != 7).sum() == 2 * -(-box[2] // 2) * -(-box[3] // 2)


@pytest.mark.parametrize("level", [1, 2, 5])
def test_rounding_is_the_same(level: int) -> None:
    sums = RNG.integers(0, 255 * 4**level, (3, 7, 9)).astype(pyramid.sum_type("u1", level))
    sums[0, 0, :4] = 4**level // 2 * np.array([1, 3, 5, 7])  # halves go to the even side
    found, wanted = np.zeros((3, 7, 9), np.uint8), np.zeros((3, 7, 9), np.uint8)
    pyramid.round_sums(sums, (0, 0, 6, 9), 2 * level, found)
    pyramid.round_sums(sums, (0, 0, 6, 9), 2 * level, wanted, compiled=True)
    assert np.array_equal(found, wanted)
    assert np.array_equal(found[:, :6], np.rint(sums[:, :6] / 4.0**level))


@pytest.mark.parametrize("kind", ["u1", "u2", "f4", "i2"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("compiled", [False, True])
def test_planes_hold_each_channel_in_its_place(kind: str, channels: int, compiled: bool) -> None:
    pixels = RNG.integers(0, 256, (9, 8, channels)).astype(kind)
    for source in (pixels, np.repeat(pixels, 2, axis=1)[:, ::2]):
        found = np.full((channels, 7, 7), 3, kind)
        planes.split_planes(source, (2, 1, 6, 5), found, (1, 2), compiled)
        wanted = np.full((channels, 7, 7), 3, kind)
        for c in range(channels):
            wanted[c, 1:7, 2:7] = pixels[2:8, 1:6, c]
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize(("low", "high", "level"), [("u1", "u2", 1), ("u2", "u2", 3), ("u2", "u4", 5), ("u4", "u4", 6)])
def test_compiled_code_is_there_for_all_sums_of_bytes_and_exact_at_their_brightest(low: str, high: str, level: int) -> None:
    brightest = 255 * 4 ** (level - 1)
    below, sums, pixels = np.full((3, 9, 140), brightest, low), np.zeros((3, 5, 71), high), np.zeros((3, 6, 72), np.uint8)
    assert pyramid_compiled.can_add(below, sums) and pyramid_compiled.can_round(sums, pixels)
    pyramid_compiled.add_quads(below, (0, 0, 9, 139), sums, (0, 1))
    assert (sums[:, :, 1:] == 4 * brightest).all() and not sums[:, :, 0].any()
    pyramid_compiled.round_sums(sums, (0, 1, 5, 70), 2 * level, pixels)
    assert (pixels[:, :5, :70] == 255).all() and not pixels[:, 5:].any() and not pixels[:, :, 70:].any()


@pytest.mark.parametrize(
    ("box", "corner"), [((0, 0, 9, 8), (0, 0)), ((1, 0, 8, 8), (0, 0)), ((0, 0, 8, 8), (1, 0)), ((0, 0, 8, 8), (0, -1))]
)
def test_a_box_beyond_the_memory_is_an_error(box: tuple[int, int, int, int], corner: tuple[int, int]) -> None:
    below, sums = np.zeros((2, 8, 8), np.uint8), np.zeros((2, 4, 4), np.uint16)
    with pytest.raises(IndexError, match="leaves"):
        pyramid_compiled.add_quads(below, box, sums, corner)
    with pytest.raises(IndexError, match="leaves"):
        pyramid_compiled.split_rgb(np.zeros((8, 8, 3), np.uint8), box, np.zeros((3, 8, 8), np.uint8), corner)
    with pytest.raises(IndexError, match="leaves"):
        pyramid_compiled.add_quads(below, (0, 0, 8, 8), sums[:1], (0, 0))


def test_only_large_images_load_the_compiled_code() -> None:
    assert not pyramid.worth_compiling(20_000_000) and pyramid.worth_compiling(100_000_000)


NATIVE = """
import sys
from pathlib import Path
import numpy as np
from histomri.kernels import native, pyramid_compiled
native._places = lambda: [Path(place) for place in sys.argv[1:]]
add = native.load({"add": pyramid_compiled.KERNELS["add_uint8_uint16"]})["add"]
below, sums = np.full((4, 4), 200, np.uint8), np.zeros((2, 2), np.uint16)
add(below.ctypes.data, 16, 4, 1, 4, 4, sums.ctypes.data, 4, 2)
assert (sums == 800).all()
print("numba" in sys.modules)
"""


def test_kept_code_is_used_without_numba_and_an_unwritable_folder_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "blocked").write_text("a file where the folder should be")
    for expected in ("True", "False"):
        command = [sys.executable, "-c", NATIVE, str(tmp_path / "blocked"), str(tmp_path / "kept")]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == expected
    assert [file.suffix for file in (tmp_path / "kept").iterdir()] == [".o"]


def test_a_kernel_that_needs_numba_at_run_time_is_refused_and_does_not_end_the_process() -> None:
    def allocates(out: Any, n: int) -> None:
        out[0] = np.empty(n).sum()

    with pytest.raises(RuntimeError, match="which is not there without numba"):
        native._compiled({"allocates": (allocates, ("uint8", "i"))})


@pytest.mark.parametrize("kind", ["u1", "u2", "f4", "i2"])
@pytest.mark.parametrize(("level", "size"), [(1, (8, 8)), (3, (7, 9)), (5, (1, 6)), (4, (5, 1))])
def test_rounding_and_adding_at_once_is_rounding_and_adding(kind: str, level: int, size: tuple[int, int]) -> None:
    most = 255 if kind in ("u1", "f4") else 30_000
    sums = RNG.integers(0, most * 4**level + 1, (3, *size)).astype(pyramid.sum_type(kind, level))
    made = []
    for way in ("apart", "formulas", "compiled"):
        pixels, above = np.full((3, 9, 9), 5, kind), np.full((3, 6, 7), 5, pyramid.sum_type(kind, level + 1))
        if way == "apart":
            pyramid.to_pixels(sums, (0, 0, *size), level, pixels)
            pyramid.add_quads(sums, (0, 0, *size), above, (1, 2))
        else:
            pyramid.to_pixels_and_above(sums, level, pixels, above, (1, 2), compiled=way == "compiled")
        made.append((pixels, above))
    for pixels, above in made[1:]:
        assert np.array_equal(pixels, made[0][0]) and np.array_equal(above, made[0][1])
