"""The order of shuffled sections comes back, and where it is a guess that is said."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.registration.seriation import seriate, weak_links


def likeness(places: np.ndarray, seed: int = 0, noise: float = 0.015, pale: tuple[int, ...] = ()) -> np.ndarray:
    """As between sections of BigBrain: falling to a third over five places, on chance of 0.15; ``pale`` ones half as alike."""
    random = np.random.default_rng(seed)
    jitter = random.normal(size=(len(places),) * 2) * noise
    value = 0.15 + 0.6 * np.exp(-np.abs(places[:, None] - places) / 5) + jitter + jitter.T
    for k in pale:
        value[k], value[:, k] = 0.5 * value[k], 0.5 * value[:, k]
    np.fill_diagonal(value, 1)
    return value


@pytest.mark.parametrize("seed", range(4))
def test_shuffled_sections_come_back_in_order(seed: int) -> None:
    shuffled = np.random.default_rng(seed).permutation(30)
    found = shuffled[seriate(likeness(shuffled.astype(float), seed))]
    assert found.tolist() in (list(range(30)), list(range(29, -1, -1)))


def test_pale_sections_keep_their_place() -> None:
    shuffled = np.random.default_rng(1).permutation(30)
    pale = tuple(int(np.flatnonzero(shuffled == k)[0]) for k in (7, 19))
    found = shuffled[seriate(likeness(shuffled.astype(float), 1, pale=pale))]
    assert np.abs(np.diff(found)).max() == 1


def test_the_sheets_direction_is_kept() -> None:
    places = np.arange(20.0)
    assert seriate(likeness(places)).tolist() == list(range(20))
    assert seriate(likeness(places[::-1])).tolist() == list(range(20))


def test_a_gap_that_no_likeness_bridges_is_told() -> None:
    places = np.arange(24.0)
    places[12:] += 100
    order = seriate(likeness(places))
    (weak,) = weak_links(order, likeness(places))
    assert {int(order[weak]) // 12, int(order[weak + 1]) // 12} == {0, 1}
    assert weak_links(np.arange(24), likeness(np.arange(24.0))) == []


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_sections_have_an_order_too(n: int) -> None:
    assert sorted(seriate(likeness(np.arange(float(n)))).tolist()) == list(range(n))
    assert weak_links(np.arange(n), likeness(np.arange(float(n)))) == []
