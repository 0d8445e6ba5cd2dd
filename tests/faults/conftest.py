"""The tiny digital block, to be disturbed; what the tests measured is printed at their end."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))
from disturbed import results, run
from runs import make_quick_block

FIGURES = pytest.StashKey[dict[str, Any]]()


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the tests of this folder measured, for the end."""
    return request.config.stash.setdefault(FIGURES, {})


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the figures."""
    for name, value in config.stash.get(FIGURES, {}).items():
        terminalreporter.write_line(f"faults: {name}: {json.dumps(value)}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The kills first and the fuzzer last: of a run that is cut short the most is known."""
    items.sort(key=lambda item: ("random_kills" not in item.nodeid, "hostile" in item.nodeid))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny digital block, not run; volumes of a second grid outgrow a job."""
    folder = make_quick_block(tmp_path_factory.mktemp("faults") / "tiny")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["resample"] = {"grids": ["mri", {"name": "fine", "spacing_mm": 0.15}], "max_job_mvox": 1}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@pytest.fixture(scope="session")
def undisturbed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same after a run that nothing disturbed and that compiled its kernels itself; all later runs have them from it."""
    folder = tmp_path_factory.mktemp("faults") / "undisturbed"
    shutil.copytree(tiny, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NUMBA_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        done = run(folder, folder.with_suffix(".log"))
        assert done.process.returncode == 0, done.text
        yield folder


@pytest.fixture(scope="session")
def expected(undisturbed: Path) -> dict[str, Any]:
    """Its results."""
    return results(undisturbed / "out")


@pytest.fixture
def study(tiny: Path, tmp_path: Path) -> Path:
    """A study of the test's own, not run."""
    return Path(shutil.copytree(tiny, tmp_path / "study"))
