"""The compiled kernels of pyramids give what the formulas give, bit for bit, whichever of the two a section gets."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.kernels import planes, pyramid, pyramid_compiled

RNG = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def few_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The formulas, not the compiled forms, are called through the module."""
    monkeypatch.setattr(pyramid, "_met", [-(1 << 40)])


@pytest.mark.parametrize("box", [(0, 0, 8, 8), (1, 2, 7, 9), (3, 0, 1, 1), (2, 3, 1, 6), (0, 1, 5, 2)])
@pytest.mark.parametrize(("kind", "level"), [("u1", 1), ("u2", 1), ("u1", 4), ("f4", 1), ("i2", 2)])
def test_sums_of_four_are_the_same_for_odd_boxes_and_all_types(box: tuple[int, int, int, int], kind: str, level: int) -> None:
    below = RNG.integers(0, 200, (2, 9, 12)) if kind != "f4" else RNG.normal(size=(2, 9, 12)) * 1e3
    below = below.astype(pyramid.sum_type(kind, level - 1) if level > 1 else kind)
    found, wanted = (np.full((2, 6, 8), 7, pyramid.sum_type(kind, level)) for _ in range(2))
    pyramid.add_quads(below, box, found, (1, 1))
    pyramid_compiled.add_quads(below, box, wanted, (1, 1))
    assert np.array_equal(found, wanted) and (found != 7).sum() == 2 * -(-box[2] // 2) * -(-box[3] // 2)


@pytest.mark.parametrize("level", [1, 2, 5])
def test_rounding_is_the_same(level: int) -> None:
    sums = RNG.integers(0, 255 * 4**level, (3, 7, 9)).astype(pyramid.sum_type("u1", level))
    sums[0, 0, :4] = 4**level // 2 * np.array([1, 3, 5, 7])  # halves go to the even side
    found, wanted = np.zeros((3, 7, 9), np.uint8), np.zeros((3, 7, 9), np.uint8)
    pyramid.round_sums(sums, (0, 0, 6, 9), 2 * level, found)
    pyramid_compiled.round_sums(sums, (0, 0, 6, 9), 2 * level, wanted)
    assert np.array_equal(found, wanted)
    assert np.array_equal(found[:, :6], np.rint(sums[:, :6] / 4.0**level))


def test_planes_are_the_same() -> None:
    pixels = RNG.integers(0, 256, (9, 8, 3)).astype(np.uint8)
    found, wanted = np.zeros((3, 7, 7), np.uint8), np.zeros((3, 7, 7), np.uint8)
    planes.split_planes(pixels, (2, 1, 6, 5), found, (1, 2))
    pyramid_compiled.split_rgb(pixels, (2, 1, 6, 5), wanted, (1, 2))
    assert np.array_equal(found, wanted) and found.any()


def test_compiled_forms_take_over_after_a_few_megapixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyramid, "_met", [0])
    assert not pyramid.many_pixels(1 << 22) and pyramid.many_pixels(1)
