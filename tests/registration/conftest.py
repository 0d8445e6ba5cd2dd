"""Fixtures of the registration's tests."""

from __future__ import annotations

from collections.abc import Iterator

import numba
import pytest


@pytest.fixture
def two_threads() -> Iterator[None]:
    """At least two threads of numba, whose number is put back afterwards."""
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("numba has one thread only")
    before = numba.get_num_threads()
    yield
    numba.set_num_threads(before)
