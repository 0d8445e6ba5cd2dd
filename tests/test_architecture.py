"""The layers of docs/architecture.md: imports only point down."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "src" / "histomri"
LAYERS = {
    "backend": 0,
    "core": 1,
    "kernels": 1,
    "transforms": 2,
    "tiling": 3,
    "io": 4,
    "registration": 4,
    "evaluation": 4,
    "testing": 5,
    "stages": 6,
    "cli": 7,
}
MODULES = sorted(p for p in PACKAGE.rglob("*.py") if len(p.relative_to(PACKAGE).parts) > 1)


def imported(path: Path) -> Iterator[str]:
    """Absolute names of everything a module imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the layer"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    own = layer(path)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] == "histomri" and len(parts) > 1 and parts[1] in LAYERS and parts[1] != own:
            assert LAYERS[parts[1]] <= LAYERS[own], f"{own} must not import {name}"
            assert (own, parts[1]) != ("cli", "testing"), "what users run must not need the phantom"
        assert parts[0] != "snakemake", "only the Snakefile knows Snakemake; cli runs it as a program"
        assert parts[0] != "cupy" or own == "backend", "only backend imports cupy"


def test_every_package_has_its_layer() -> None:
    packages = {p.parent.name for p in PACKAGE.glob("*/__init__.py")}
    assert packages <= set(LAYERS), f"without a layer: {packages - set(LAYERS)}"


def test_the_check_sees_imports(tmp_path: Path) -> None:
    module = tmp_path / "m.py"
    module.write_text("import a.b\ndef f():\n    from c import d\n")
    assert list(imported(module)) == ["a.b", "c.d"]
