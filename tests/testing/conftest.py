"""One tiny digital block for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from histomri.testing import phantom


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, phantom.Truth]:
    folder = tmp_path_factory.mktemp("phantom") / "tiny"
    return folder, phantom.make(folder, phantom.TINY, output="../out")
