"""What a job depends on beyond its files: the code that it runs, and the content of the user's files.

Snakemake sees neither an edit under ``src/`` nor a slide that was replaced by an older file, so the rules hand it both as params.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
NAME = PACKAGE.name
# these carry a job, they do not compute its result
CARRIERS = (f"{NAME}.stages.adapter", f"{NAME}.io.lock", f"{NAME}.io.fingerprint", f"{NAME}.io.resources")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
SAMPLES = 5
SAMPLE_BYTES = 1 << 16
NO_FILE = "no file"


@cache
def code_fingerprint(script: Path) -> str:
    """SHA-256, in hex, of the logic of a script and of every ``histomri`` module that it imports, directly or not.

    Docstrings, comments and layout do not count. Files beside a module that it names in a string (a template, say) count whole.
    """
    digest = hashlib.sha256(_logic(script).encode())
    for module in sorted(modules_of(script)):
        digest.update(f"\0{module}\0{_module_logic(module)}".encode())
    return digest.hexdigest()


def modules_of(script: Path) -> set[str]:
    """The names of the ``histomri`` modules that a script reaches through its imports, those inside functions included."""
    found: set[str] = set()
    waiting = list(_imports(script, package=""))
    while waiting:
        module = waiting.pop()
        if module not in found and module not in CARRIERS:
            found.add(module)
            waiting += _module_imports(module)
    return found


@cache
def _module_imports(module: str) -> tuple[str, ...]:
    file = _file(module)
    assert file is not None
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(_imports(file, package))


@cache
def _module_logic(module: str) -> str:
    file = _file(module)
    assert file is not None
    return "\0".join([_logic(file), *(f"{p.name} {hashlib.sha256(p.read_bytes()).hexdigest()}" for p in _data(file))])


def _data(file: Path) -> list[Path]:
    """The files beside a module, or in a folder beside it, that are not Python and that the module names in a string."""
    named = {n.value for n in ast.walk(_tree(file)) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    beside = [p for p in file.parent.iterdir() if p.name in named - {"__pycache__"} and p.suffix != ".py"]
    found = [f for p in beside for f in ([p] if p.is_file() else p.rglob("*"))]
    # what Python and numba compiled is no data, wherever it lies
    return sorted(f for f in found if f.is_file() and "__pycache__" not in f.parts)


def _file(module: str) -> Path | None:
    """The file of a module's name, None where there is no such module in the package."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    candidates = (path / "__init__.py", path.with_suffix(".py"))
    return next((c for c in candidates if c.is_file()), None)


def _imports(file: Path, package: str) -> Iterator[str]:
    """The package's modules that a file names; importing ``a.b`` runs ``a`` too."""
    for name in _names(_tree(file), package):
        parts = name.split(".")
        if parts[0] == NAME:
            yield from (m for m in (".".join(parts[: i + 1]) for i in range(len(parts))) if _file(m))


def _names(tree: ast.Module, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (base, node.module)))
            # what is imported may be a module itself; names that are none are dropped by the caller
            yield from (f"{origin}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(f"{NAME}."):
            # a module named in a string, for importlib
            yield node.value


def _logic(file: Path) -> str:
    return ast.dump(_tree(file))


@cache
def _tree(file: Path) -> ast.Module:
    """The syntax tree without docstrings and without the version, which names the code and is not part of it."""
    tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    tree.body = [node for node in tree.body if not _is_version(node)]
    return tree


def _is_version(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__version__" for t in node.targets)


def file_fingerprint(path: Path | str) -> str:
    """Size and SHA-256 of samples spread over a file, so that another file under the same name shows, whatever its times.

    Small files are read whole, large ones at five places: it must be quick for thousands of slides. Of a folder (OME-Zarr) it is
    the names and sizes of all files, and the content of its metadata. Returns ``"no file"`` where there is none.
    """
    if Path(path).is_dir():
        return _folder_fingerprint(Path(path))
    try:
        size = Path(path).stat().st_size
        with Path(path).open("rb") as stream:
            digest = hashlib.sha256()
            for start in _sample_starts(size):
                stream.seek(start)
                digest.update(stream.read(SAMPLE_BYTES))
    except OSError:
        return NO_FILE
    return f"{size}:{digest.hexdigest()}"


def _folder_fingerprint(folder: Path) -> str:
    digest, size = hashlib.sha256(), 0
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        own = file.stat().st_size
        is_metadata = file.name in ("zarr.json", ".zattrs", ".zgroup", ".zarray", ".zmetadata")
        digest.update(f"{file.relative_to(folder).as_posix()}\0{own}\0".encode() + (file.read_bytes() if is_metadata else b""))
        size += own
    return f"{size}:{digest.hexdigest()}"


def _sample_starts(size: int) -> list[int]:
    if size <= SAMPLES * SAMPLE_BYTES:
        return list(range(0, size, SAMPLE_BYTES))
    return [(size - SAMPLE_BYTES) * i // (SAMPLES - 1) for i in range(SAMPLES)]
