"""``histomri run`` hands on what it is given, from wherever it stands."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from histomri.cli import run
from histomri.core import InputError


def parsed(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run.add_parser(parser.add_subparsers())
    return parser.parse_args(["run", *arguments])


def line(*arguments: str) -> list[str]:
    return run.command(parsed(*arguments))


def test_the_defaults_are_the_default_profile_and_all_cores():
    words = line("study/config.yaml")
    assert words[words.index("--configfile") + 1] == str(Path("study/config.yaml").absolute())
    assert Path(words[words.index("--workflow-profile") + 1], "config.yaml").is_file()
    assert Path(words[words.index("--snakefile") + 1]).is_file()
    assert words[words.index("--cores") + 1] == "all"


@pytest.mark.parametrize(
    "arguments", [("--cores", "2", "c.yaml"), ("c.yaml", "--cores", "2"), ("c.yaml", "-c2"), ("c.yaml", "-j", "2")]
)
def test_cores_are_taken_before_and_after_the_config(arguments: tuple[str, ...]):
    words = line(*arguments)
    assert "all" not in words
    assert "2" in words or "-c2" in words


def test_a_dry_run_is_a_dry_run_on_either_side_of_the_config():
    assert "--dry-run" in line("-n", "c.yaml")
    assert "-n" in line("c.yaml", "-n")


@pytest.mark.parametrize("arguments", [("--workflow-profile", "slurm"), ("--workflow-profile=slurm",)])
def test_the_users_profile_takes_the_place_of_ours(arguments: tuple[str, ...]):
    words = line("c.yaml", *arguments)
    given = [w for w in words if "workflow-profile" in w]
    assert len(given) == 1
    # by its whole path: an installed wheel has it elsewhere, and Snakemake starts in another folder
    assert Path(words[-1].rpartition("=")[2], "config.yaml").is_file()
    assert words[-1].endswith("slurm")
    # the login node's cores would bound the threads of every job
    assert "--cores" not in words


def test_options_of_snakemake_go_through():
    assert line("c.yaml", "--forcerun", "evaluate", "--quiet")[-3:] == ["--forcerun", "evaluate", "--quiet"]


def test_a_missing_config_is_refused_before_anything_starts(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.yaml"):
        run.run(parsed(str(tmp_path / "none.yaml")))


def test_it_runs_from_any_folder_and_leaves_nothing_there(tmp_path: Path):
    here, study = tmp_path / "here", tmp_path / "study"
    here.mkdir()
    study.mkdir()
    # a module of the user's must not shadow one of ours
    (here / "yaml.py").write_text("raise RuntimeError('shadowed')\n")
    (study / "a.tif").touch()
    (study / "sections.tsv").write_text("section\tfile\tposition_mm\na\ta.tif\t0\n")
    (study / "config.yaml").write_text("study: s\nsections: sections.tsv\noutput: out\n")
    words = [sys.executable, "-P", "-m", "histomri", "run", "../study/config.yaml", "-n"]
    done = subprocess.run(words, cwd=here, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ingest_section" in done.stdout + done.stderr
    assert [f.name for f in here.iterdir()] == ["yaml.py"]
