"""An order in the sheet that contradicts the images is told; damage, other stains and an even stack are not taken for it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from histomri.registration.order import Ordered, best_place, elsewhere, repeated, strays, swapped

N = 40


def likeness(a: float, b: float, decay: float = 12.0) -> float:
    """Of sections at the places a and b: as of BigBrain, 0.75 beside each other, 0.65 two apart, 0.1 far away."""
    return 0.1 + 0.7 * np.exp(-abs(a - b) / decay)


def stack(
    places: Sequence[float], seed: int = 0, reach: int = 3, noise: float = 0.015, pale: dict[int, float] | None = None
) -> Ordered:
    """Sections s0, s1, ... of the sheet, cut at these true places; the sheet's pairs within reach are measured."""
    random = np.random.default_rng(seed)
    pale = pale or {}
    ids = tuple(f"s{i}" for i in range(len(places)))
    scores = {}
    for i, a in enumerate(places):
        for j in range(i + 1, min(len(places), i + 1 + reach)):
            value = likeness(a, places[j]) * pale.get(i, 1) * pale.get(j, 1) + random.normal() * noise
            scores[ids[i], ids[j]] = scores[ids[j], ids[i]] = float(value)
    return Ordered(ids, dict.fromkeys(ids, "nissl"), scores)


def order(*moves: tuple[int, int]) -> list[float]:
    """0, 1, 2, ... with the entries of each move exchanged."""
    out = [float(i) for i in range(N)]
    for a, b in moves:
        out[a], out[b] = out[b], out[a]
    return out


@pytest.mark.parametrize("seed", range(10))
def test_a_swapped_pair_is_found_and_nothing_else(seed: int) -> None:
    found = {r.section for r in swapped(stack(order((17, 18)), seed))}
    assert found == {"s17", "s18"}
    assert not list(swapped(stack(order(), seed)))


def test_the_reason_names_the_other_section() -> None:
    first, second = swapped(stack(order((17, 18))))
    assert "contradicts the images" in first.text and "swapped with section s18" in first.text
    assert "swapped with section s17" in second.text


def test_damaged_sections_are_not_taken_for_swapped_ones() -> None:
    for seed in range(10):
        assert not list(swapped(stack(order(), seed, pale={9: 0.4, 10: 0.7, 25: 0.2, 31: 0.6})))


def test_another_stain_between_does_not_count_as_swapped() -> None:
    base = stack(order())
    stains = {i: "he" if n % 2 else "nissl" for n, i in enumerate(base.ids)}
    scores = {(a, b): v - 0.3 * (stains[a] != stains[b]) for (a, b), v in base.scores.items()}
    assert not list(swapped(Ordered(base.ids, stains, scores)))


def test_repeated_section_in_the_sheet_is_told_on_both_rows() -> None:
    base = stack(order())
    scores = {**base.scores, ("s8", "s9"): 0.97, ("s9", "s8"): 0.97}
    found = list(repeated(Ordered(base.ids, base.stains, scores)))
    assert [r.section for r in found] == ["s8", "s9"]
    assert "same tissue as section s9 (likeness 0.97)" in found[0].text
    assert not list(repeated(base))


@pytest.mark.parametrize("seed", range(10))
def test_a_second_scan_hardly_more_alike_than_neighbours_is_told_by_the_others(seed: int) -> None:
    """Its likeness alone, 0.8 where neighbours have 0.74, would not do; but all others see the two at one place."""
    places = sorted([*range(N - 1), 20])
    base = stack([float(p) for p in places], seed)
    twice = {**base.scores, ("s20", "s21"): 0.81, ("s21", "s20"): 0.81}
    assert {r.section for r in repeated(Ordered(base.ids, base.stains, twice))} == {"s20", "s21"}
    alone = {**stack(order(), seed).scores, ("s20", "s21"): 0.79, ("s21", "s20"): 0.79}
    assert not list(repeated(Ordered(base.ids, base.stains, alone)))


def test_a_stack_of_nearly_equal_sections_repeats_nothing() -> None:
    base = stack(order())
    alike = {pair: 0.94 + 0.1 * (v - 0.6) for pair, v in base.scores.items()}
    assert not list(repeated(Ordered(base.ids, base.stains, alike)))


def measure(places: Sequence[float], asked: list[tuple[str, str]], pale: dict[int, float] | None = None):
    """Compares any two sections of :func:`stack`, and notes which were asked for."""

    def alike(a: str, b: str) -> float:
        asked.append((a, b))
        i, j = int(a[1:]), int(b[1:])
        return likeness(places[i], places[j]) * (pale or {}).get(i, 1) * (pale or {}).get(j, 1)

    return alike


@pytest.mark.parametrize(("here", "there"), [(8, 30), (0, 25), (39, 12)])
def test_two_sections_in_each_others_places_are_told_where_they_belong(here: int, there: int) -> None:
    places = order((here, there))
    found = {r.section: r.text for r in elsewhere(stack(places), 12, measure(places, []))}
    assert set(found) == {f"s{here}", f"s{there}"}
    beside = [f"section s{there + step}" for step in (-1, 1)]
    assert any(b in found[f"s{here}"] for b in beside)


def test_damaged_and_foreign_sections_belong_nowhere_else() -> None:
    places = order()
    places[14] = 1000.0
    pale = {9: 0.4, 25: 0.2}
    base = stack(places, pale=pale)
    assert {"s9", "s14", "s25"} <= set(strays(base, 12))
    assert not list(elsewhere(base, 12, measure(places, [], pale)))


def test_few_pairs_find_a_place_among_many() -> None:
    places, asked = [float(i) for i in range(400)], []
    found, score, here = best_place("s7", [f"s{i}" for i in range(400) if i != 7], 300, measure([*places], asked))
    assert abs(found - 7) <= 1 and score > 0.7 > here
    assert len(asked) < 32


def test_only_so_many_are_sought() -> None:
    pale = dict.fromkeys(range(2, 38, 3), 0.3)
    assert len(strays(stack(order(), pale=pale), 5)) == 5
    assert strays(stack(order(), pale=pale), 0) == []
