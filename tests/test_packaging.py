"""What a fresh machine installs: one set of versions in every file that names them, and no host."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", re.sub(r"\[.*?\]", "", name)).lower()


@pytest.fixture(scope="module")
def lock(checkout: Path) -> dict[str, str]:
    text = (checkout / "envs" / "requirements.lock").read_text()
    return {canonical(name): version for name, version in re.findall(r"^([\w.-]+)==([^\s;\\]+)", text, re.MULTILINE)}


@pytest.fixture(scope="module")
def project(checkout: Path) -> dict[str, Any]:
    described: dict[str, Any] = tomllib.loads((checkout / "pyproject.toml").read_text())["project"]
    return described


def split(requirement: str) -> tuple[str, str | None]:
    name, _, version = requirement.partition("==")
    return canonical(name), version or None


def test_lock_holds_every_dependency_at_its_version(project: dict[str, Any], lock: dict[str, str]) -> None:
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"] + ["hatchling", "editables"]:
        name, version = split(requirement)
        assert name in lock and version in (None, lock[name]), requirement


def test_lock_was_made_from_these_dependencies(checkout: Path, project: dict[str, Any]) -> None:
    lines = (checkout / "envs" / "requirements.in").read_text().splitlines()
    asked = {line for line in lines if line and not line.startswith("#")}
    assert asked == {*project["dependencies"], *project["optional-dependencies"]["test"], "hatchling", "editables"}


@pytest.mark.parametrize("name", ["histomri.yaml", "histomri-gpu.yaml"])
def test_conda_files_and_lock_agree(checkout: Path, project: dict[str, Any], lock: dict[str, str], name: str) -> None:
    packages = next(
        d["pip"] for d in yaml.safe_load((checkout / "envs" / name).read_text())["dependencies"] if isinstance(d, dict)
    )
    held = dict(split(p) for p in packages)
    gpu = dict(split(p) for p in project["optional-dependencies"]["gpu"]) if "gpu" in name else {}
    needed = {split(r)[0] for r in project["dependencies"] if not r.startswith("snakemake")}
    assert held == {n: lock[n] for n in needed} | gpu


def test_lock_is_hashed_and_names_no_host(checkout: Path, lock: dict[str, str]) -> None:
    text = (checkout / "envs" / "requirements.lock").read_text()
    assert "://" not in text and not re.search(r"^\s*(-i|--|-f)\b", text.replace("--hash=", ""), re.MULTILINE)
    entries = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(entries) >= len(lock) and all("--hash=sha256:" in entry for entry in entries)


def test_the_two_gpu_extras_stay_apart(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    assert [e for e, packages in extras.items() for p in packages if p.startswith("cupy")] == ["gpu", "gpu-cuda13"]
    assert not any(p.startswith("cupy") for p in project["dependencies"])


def test_a_wheel_carries_the_workflow_and_finds_it(checkout: Path, tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "-qq", "--disable-pip-version-check"]
    build = ["wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", str(tmp_path), str(checkout)]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from histomri.io.resources import workflow_root; print(workflow_root())"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    root = Path(found.stdout.strip())
    assert root == tmp_path / "site" / "histomri" / "_workflow"
    for part in (
        "Snakefile",
        "config/config.yaml",
        "workflow/rules/ingest.smk",
        "workflow/profiles/default/config.yaml",
        "envs/histomri.yaml",
    ):
        assert (root / part).is_file(), part
