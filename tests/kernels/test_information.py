"""One joint histogram behind both signs of the normalised mutual information."""

from __future__ import annotations

import numpy as np
import pytest

from histomri.evaluation.overlap import nmi as similarity
from histomri.kernels.information import entropy, joint_histogram, levels, shared_information
from histomri.registration.similarity import nmi as dissimilarity

RANDOM = np.random.default_rng(2)
A, B = RANDOM.normal(size=(2, 20_000))


def test_entropy_of_equal_shares_is_the_log_of_their_number() -> None:
    assert entropy(np.full(8, 1 / 8)) == pytest.approx(np.log(8))
    assert entropy(np.array([1.0, 0.0])) == 0.0


def test_histogram_counts_pairs_and_clips_the_tails() -> None:
    a, b = np.array([0.0, 1, 2, 3]), np.array([3.0, 3, 0, 0])
    expected = np.zeros((2, 2))
    expected[0, 1] = expected[1, 0] = 0.5
    np.testing.assert_array_equal(joint_histogram(a, b, 2, 0.0), expected)
    assert levels(np.append(A, 1e6), 32, 1.0)[-1] == 31
    assert np.ptp(levels(np.append(A, 1e6), 32, 1.0)[:-1]) == 31


def test_unrelated_images_share_nothing_and_equal_or_inverted_ones_all() -> None:
    assert shared_information(A, B) == pytest.approx(1.0, abs=0.01)
    assert shared_information(A, A) == pytest.approx(2.0, abs=1e-9)
    assert shared_information(A, -A) == pytest.approx(2.0, abs=0.02)


def test_reports_say_higher_is_better_and_metrics_lower() -> None:
    near, far = A + 0.3 * B, A + 3 * B
    everywhere = np.ones(len(A), bool)
    assert similarity(A, near, everywhere) > similarity(A, far, everywhere)
    assert dissimilarity(A, near) < dissimilarity(A, far)
    assert dissimilarity(A, A) == pytest.approx(-1.0)


def test_images_that_do_not_vary_are_no_match() -> None:
    flat = np.ones(1000)
    assert np.isnan(shared_information(flat, flat))
    assert dissimilarity(flat, flat) == 0.0
    assert dissimilarity(np.zeros(0), np.zeros(0)) == 0.0
