"""What tests of whole runs have in common: a study that is quick, and what Snakemake said of its jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

BLOCK = re.compile(r"^(?:local)?rule (\w+):\n((?:    .*\n)*)", re.MULTILINE)
FINISHED = re.compile(r"^Finished jobid: (\d+)", re.MULTILINE)


def make_quick_block(folder: Path) -> Path:
    """Make the tiny digital block: a folder with ``config.yaml`` whose output ``out`` lies inside it."""
    from histomri.testing import phantom

    phantom.make(folder, phantom.TINY)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["output"] = "out"
    # several batches of pairs, so that a rerun can leave some of them alone
    config["stack"] = {"batch": 2}
    # what a run finds does not matter here, how long it takes does
    config["mri"] = {
        "rotations": 100,
        "candidates": 2,
        "work_px": 80,
        "volume_px": 48,
        "affine_sweeps": 1,
        "deformable_sweeps": 0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


@dataclass(frozen=True)
class Outcome:
    """What a run said and did: its jobs as ``rule`` or ``rule:wildcard values``."""

    status: int
    text: str

    @property
    def jobs(self) -> list[str]:
        """The jobs that were started (of a dry run: planned), in order, without ``all``."""
        return [name for _, name in self._blocks() if name != "all"]

    @property
    def started(self) -> dict[str, str]:
        """The same, by Snakemake's number of the job."""
        return {number: name for number, name in self._blocks() if name != "all"}

    @property
    def finished(self) -> set[str]:
        """The jobs that Snakemake reported as done."""
        names = dict(self._blocks())
        return {names[i] for i in FINISHED.findall(self.text)} - {"all"}

    def _blocks(self) -> list[tuple[str, str]]:
        return [(_value(body, "jobid"), _name(rule, _value(body, "wildcards"))) for rule, body in BLOCK.findall(self.text)]


def _value(body: str, key: str) -> str:
    found = re.search(rf"^    {key}: (.*)$", body, re.MULTILINE)
    return found[1] if found else ""


def _name(rule: str, wildcards: str) -> str:
    values = [w.partition("=")[2] for w in wildcards.split(", ") if w]
    return ":".join([rule, *values])
