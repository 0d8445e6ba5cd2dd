"""Several sections on one slide: found, kept whole, told from debris, and read in order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from histomri.kernels.groups import box_of, reading_order, section_groups
from histomri.kernels.tissue import find_tissue
from histomri.testing.many import draw_sections


def found_order(labels: Any, groups: list[Any], order: str = "row-major") -> list[int]:
    """The true number of each group, in the order found."""
    boxes = [box_of(g) for g in groups]
    return [int(np.bincount(labels[groups[i]], minlength=2)[1:].argmax()) + 1 for i in reading_order(boxes, order)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("expected", [6, None])
def test_six_sections_in_rows_that_are_not_straight(seed: int, expected: int | None) -> None:
    slide = draw_sections(seed=seed, jitter=0.07)
    groups = section_groups(find_tissue(slide.pixels).mask, expected)
    assert found_order(slide.labels, groups) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("expected", [6, None])
@pytest.mark.parametrize("split", [2, 4])
def test_a_section_in_pieces_stays_one(split: int, expected: int | None) -> None:
    slide = draw_sections(seed=5, split=split, jitter=0.03)
    groups = section_groups(find_tissue(slide.pixels).mask, expected)
    assert found_order(slide.labels, groups) == [1, 2, 3, 4, 5, 6]
    whole = groups[[int(np.bincount(slide.labels[g], minlength=2)[1:].argmax()) + 1 for g in groups].index(split)]
    truth = slide.labels == split
    assert 2 * (whole & truth).sum() / (whole.sum() + truth.sum()) > 0.94


def test_debris_makes_no_section() -> None:
    slide = draw_sections(rows=1, columns=3, seed=1, debris=60)
    assert len(section_groups(find_tissue(slide.pixels).mask)) == 3


def test_two_hemispheres_are_one_section_if_one_is_expected_and_two_if_two_are() -> None:
    mask = np.zeros((200, 300), bool)
    mask[40:160, 40:140] = mask[40:160, 150:250] = True
    assert [len(section_groups(mask, n)) for n in (1, 2)] == [1, 2]


def test_fewer_pieces_than_sections_are_not_invented() -> None:
    mask = np.zeros((100, 100), bool)
    assert section_groups(mask, 3) == []
    mask[20:60, 20:60] = True
    assert len(section_groups(mask, 3)) == 1


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("row-major", [0, 1, 2, 3, 4, 5]),
        ("row-major-rtl", [2, 1, 0, 5, 4, 3]),
        ("column-major", [0, 3, 1, 4, 2, 5]),
        ("column-major-rtl", [2, 5, 1, 4, 0, 3]),
        ("snake", [0, 1, 2, 5, 4, 3]),
        ("snake-rtl", [2, 1, 0, 3, 4, 5]),
    ],
)
def test_reading_orders(order: str, expected: list[int]) -> None:
    boxes = [(10, 0, 50, 40), (0, 45, 60, 40), (14, 90, 40, 40), (70, 0, 50, 40), (62, 50, 60, 40), (72, 95, 50, 40)]
    assert reading_order(boxes, order) == expected


def test_boxes_that_touch_are_still_two_rows() -> None:
    # the lower left one reaches up beside the upper right one
    boxes = [(0, 0, 50, 50), (5, 60, 50, 50), (45, 10, 50, 50), (54, 60, 50, 50)]
    assert reading_order(boxes) == [0, 1, 2, 3]


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ValueError, match="row-major"):
        reading_order([], "zigzag")
