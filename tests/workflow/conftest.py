"""Snakemake for real: run the workflow on a study, and say which jobs it ran."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from runs import Outcome, make_quick_block

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 600


class Workflow:
    """Runs Snakemake from a checkout, with that checkout's code."""

    @staticmethod
    def command(config: Path, *arguments: str) -> list[str]:
        """The command line that the README gives."""
        return [sys.executable, "-m", "snakemake", "--configfile", str(config), "--cores", "2", *arguments]

    @staticmethod
    def surroundings(root: Path = ROOT) -> dict[str, str]:
        """The environment in which ``histomri`` comes from that checkout."""
        return {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONSAFEPATH": "1"}

    def run(self, config: Path, *arguments: str, root: Path = ROOT) -> Outcome:
        """Run to the end."""
        done = subprocess.run(
            self.command(config, *arguments),
            cwd=root,
            env=self.surroundings(root),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        return Outcome(done.returncode, done.stdout + done.stderr)

    def start(self, config: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start in a process group of its own, everything said going to ``log``."""
        with log.open("wb") as file:
            return subprocess.Popen(
                self.command(config),
                cwd=ROOT,
                env=self.surroundings(),
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @staticmethod
    def outcome(status: int, log: Path) -> Outcome:
        """What a started run said so far."""
        return Outcome(status, log.read_text())

    @staticmethod
    def set_key(config: Path, stage: str, key: str, value: object) -> None:
        """Set one key of a stage in the config."""
        content = yaml.safe_load(config.read_text())
        content.setdefault(stage, {})[key] = value
        config.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="session")
def workflow() -> Workflow:
    """The way to run it."""
    return Workflow()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny digital block, not run: a folder with ``config.yaml`` whose output lies inside it."""
    return make_quick_block(tmp_path_factory.mktemp("workflow") / "tiny")


@pytest.fixture(scope="session")
def finished(tiny: Path, workflow: Workflow) -> Path:
    """The tiny digital block after a whole run. Not to be changed: see ``study``."""
    outcome = workflow.run(tiny / "config.yaml")
    assert outcome.status == 0, outcome.text
    return tiny


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """A finished study of the test's own, in another place than where it was run."""
    return Path(shutil.copytree(finished, tmp_path / "moved" / "study"))


@pytest.fixture
def fresh(tiny: Path, tmp_path: Path) -> Path:
    """A study of the test's own that was never run."""
    return Path(shutil.copytree(tiny, tmp_path / "fresh", ignore=shutil.ignore_patterns("out")))


@pytest.fixture
def own_checkout(tmp_path: Path) -> Path:
    """A copy of the code and the workflow, to edit."""
    copy = tmp_path / "checkout"
    for name in ("src", "workflow", "config", "envs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "_workflow"))
    shutil.copy(ROOT / "Snakefile", copy / "Snakefile")
    (copy / "profiles").symlink_to(Path("workflow") / "profiles")
    return copy


@pytest.fixture
def sheets(tmp_path: Path) -> Callable[..., Path]:
    """Writes a study of empty files, enough for a dry run: ``sheets(blocks={"a": True}, stains=(...), blockface=...)``."""

    def write(blocks: dict[str, bool], stains: tuple[str, ...] = ("nissl",), blockface: bool = False, sections: int = 6) -> Path:
        lines = ["section\tfile\tblock\tposition_mm\tstain\tstatus\tblockface"]
        for block in blocks:
            for i in range(sections):
                slide, photograph = tmp_path / f"{block}{i}.tif", tmp_path / f"{block}{i}.jpg"
                slide.touch()
                photograph.touch()
                # one lost section: no slide, and the block was photographed all the same
                file, status = ("", "missing") if i == 2 else (slide.name, "")
                photo = photograph.name if blockface else ""
                lines.append(f"{block}{i}\t{file}\t{block}\t{i * 0.5}\t{stains[i % len(stains)]}\t{status}\t{photo}")
        (tmp_path / "mri.nii.gz").touch()
        (tmp_path / "sections.tsv").write_text("\n".join(lines) + "\n")
        rows = [f"{b}\t{'mri.nii.gz' if has_mri else ''}" for b, has_mri in blocks.items()]
        (tmp_path / "blocks.tsv").write_text("\n".join(["block\tmri", *rows]) + "\n")
        config = tmp_path / "config.yaml"
        config.write_text("study: modes\nsections: sections.tsv\nblocks: blocks.tsv\noutput: out\nstack: {reach: 2, batch: 2}\n")
        return config

    return write
