"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def pytest_configure() -> None:
    """A terminated run ends as an interrupted one does, so that the studies it started are ended too."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole runs first: they take minutes each, and what is left over at the end should be small."""
    items.sort(key=lambda item: not {"studies", "workflow"} & set(item.path.relative_to(ROOT / "tests").parts))


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data: ``HISTOMRI_DATA``, or ``../shared/data`` beside the checkout. Skips where it is missing."""
    folder = Path(os.environ.get("HISTOMRI_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data are not in {folder} (set HISTOMRI_DATA)")
    return folder
