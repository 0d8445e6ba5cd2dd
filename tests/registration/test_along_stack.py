"""What is slow along a stack and what is jitter: told apart exactly where it can be."""

from __future__ import annotations

import numpy as np

from histomri.registration.along_stack import slow_part

POSITIONS = np.concatenate([np.arange(0, 4, 0.25), np.arange(6, 10, 0.25), [10.1, 10.2]])


def test_drift_an_even_change_is_slow_whole_at_the_ends_and_across_a_missing_run_too() -> None:
    line = np.stack([0.3 * POSITIONS - 1, 2 - 0.7 * POSITIONS], axis=-1)[:, None]
    np.testing.assert_allclose(slow_part(POSITIONS, line, np.ones(len(POSITIONS)), 1.25), line, atol=1e-4)


def test_banana_is_slow() -> None:
    z = np.arange(40) * 0.25
    banana = np.stack([0.02 * (z - 5) ** 2, 0 * z], axis=-1)[:, None]
    off = slow_part(z, banana, np.ones(40), 1.25) - banana
    assert np.abs(off).max() < 0.08
    assert np.ptp(banana) == 0.5


def test_jitter_is_not_slow() -> None:
    jump = np.tile([[1.0, -1.0], [-1.0, 1.0]], (20, 1))[:, None]
    slow = slow_part(np.arange(40) * 0.25, jump, np.ones(40), 1.25)
    assert np.abs(slow[5:-5]).max() < 0.06
    assert np.abs(slow).max() < 0.5


def test_torn_section_one_vector_far_off_drags_nothing_whether_it_is_known_or_not() -> None:
    z = np.arange(30) * 0.25
    values = 0.02 * np.random.default_rng(0).normal(size=(30, 3, 2))
    calm = slow_part(z, values, np.ones(30), 1.25)
    values[12, 1] = 5
    trust = np.ones(30)
    moved = slow_part(z, values, trust, 1.25)
    assert np.abs((moved - calm)[[k for k in range(30) if k != 12]]).max() < 0.01
    np.testing.assert_allclose(moved[:, [0, 2]], calm[:, [0, 2]])
    trust[12] = 0
    assert np.abs(slow_part(z, values, trust, 1.25) - calm).max() < 0.01


def test_a_single_place_keeps_its_value() -> None:
    np.testing.assert_allclose(slow_part(np.zeros(1), np.full((1, 1, 2), 3.0), np.ones(1), 1.0), 3.0)
