"""What a job depends on beyond its files: the code that it runs, the packages it computes with, the content of the user's files.

Snakemake sees neither an edit under ``src/``, nor another version of numba, nor a slide that an older file replaced, so the
rules hand it all three as params.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO

PACKAGE = Path(__file__).resolve().parents[1]
NAME = PACKAGE.name
# these carry a job, they do not compute its result
CARRIERS = (f"{NAME}.stages.adapter", f"{NAME}.io.lock", f"{NAME}.io.fingerprint", f"{NAME}.io.resources")
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
# what results are computed and written with: the distributions behind a name that is imported, as far as they are installed
COMPUTING = {
    "PIL": ("pillow",),
    "SimpleITK": ("SimpleITK",),
    "cmaes": ("cmaes",),
    "cv2": ("opencv-python-headless", "opencv-python", "opencv-contrib-python-headless", "opencv-contrib-python"),
    "imagecodecs": ("imagecodecs",),
    "jinja2": ("jinja2",),
    "llvmlite": ("llvmlite",),
    "nibabel": ("nibabel",),
    "numba": ("numba", "llvmlite"),
    "numcodecs": ("numcodecs",),
    "numpy": ("numpy",),
    "openslide": ("openslide-python", "openslide-bin"),
    "scipy": ("scipy",),
    "tifffile": ("tifffile",),
    "zarr": ("zarr", "numcodecs"),
}
# settings, checksums: what these say is the same in every version, or reaches the rules by itself. No stage runs on a GPU
NOT_COMPUTING = ("cupy", "google_crc32c", "jsonschema", "yaml")
# a file, or a folder as a whole, of up to so many bytes is read whole; it must be quick for thousands of slides
WHOLE_BYTES = 1 << 24
SAMPLE_BYTES = 1 << 16
SAMPLES = 33
# of a larger folder so many files are sampled, two places in each
SAMPLED_FILES = 256
METADATA = ("zarr.json", ".zattrs", ".zgroup", ".zarray", ".zmetadata")
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


@cache
def code_and_packages(script: Path) -> str:
    """:func:`code_fingerprint` and the versions of what that code computes with, as ``"3f1c.. numba 0.68.1, numpy 2.4.6"``."""
    listed = ", ".join(f"{name} {number}" for name, number in packages_of(script).items())
    return f"{code_fingerprint(script)} {listed}".rstrip()


def packages_of(script: Path) -> dict[str, str]:
    """The versions of :data:`COMPUTING`, by distribution, as far as a script or one of its :func:`modules_of` names them."""
    named = set(_names(_tree(script), "")).union(*(_module_names(module) for module in modules_of(script)))
    wanted = {name for module in {n.partition(".")[0] for n in named} for name in COMPUTING.get(module, ())}
    return {name: number for name in sorted(wanted, key=str.lower) if (number := installed_version(name))}


@cache
def installed_version(distribution: str) -> str | None:
    """The version of an installed distribution, None where it is not installed."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def modules_of(script: Path) -> set[str]:
    """The names of the ``histomri`` modules that a script reaches through its imports, those inside functions included."""
    found: set[str] = set()
    waiting = list(_own(_names(_tree(script), package="")))
    while waiting:
        module = waiting.pop()
        if module not in found and module not in CARRIERS:
            found.add(module)
            waiting += _module_imports(module)
    return found


@cache
def _module_imports(module: str) -> tuple[str, ...]:
    return tuple(_own(_module_names(module)))


@cache
def _module_names(module: str) -> tuple[str, ...]:
    file = _file(module)
    assert file is not None
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    return tuple(_names(_tree(file), package))


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


def _own(names: Iterable[str]) -> Iterator[str]:
    """The package's modules among names; importing ``a.b`` runs ``a`` too."""
    for name in names:
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
    """Size and checksum of a file's content, so that another file under the same name shows, whatever its times.

    Up to ``WHOLE_BYTES`` it is read whole, a larger one at ``SAMPLES`` places, both ends among them: another length shows, and a
    change of a 32nd of it at one place. Of a folder (OME-Zarr) it is the names and sizes of all files, the content of its
    metadata, and that of all its files or of samples of them. Returns ``"no file"`` where there is none.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return _folder_fingerprint(path)
        size = path.stat().st_size
        return f"{size}:{_sampled(path, _sample_starts(size))}"
    except OSError:
        return NO_FILE


def _sampled(path: Path, starts: Sequence[int]) -> str:
    """Checksum of the blocks of a file that start at these bytes: SHA-256 of one, else of the CRC-32C of each."""
    from histomri.io.publish import digest_of, digest_of_blocks

    with path.open("rb") as stream:
        return digest_of_blocks(_block(stream, s) for s in starts) if len(starts) > 1 else digest_of(_block(stream, 0))


def _block(stream: IO[bytes], start: int) -> bytes:
    stream.seek(start)
    return stream.read(SAMPLE_BYTES)


def _sample_starts(size: int) -> Sequence[int]:
    if size <= WHOLE_BYTES:
        return range(0, size, SAMPLE_BYTES)
    return [(size - SAMPLE_BYTES) * i // (SAMPLES - 1) for i in range(SAMPLES)]


def _folder_fingerprint(folder: Path) -> str:
    from histomri.io.publish import content_files

    files = [(name, file, file.stat().st_size) for name, file in content_files(folder)]
    size, digest = sum(own for _, _, own in files), hashlib.sha256()
    # which are sampled is a matter of their number alone, so that the folder may move
    step = 1 if size <= WHOLE_BYTES else -(-len(files) // SAMPLED_FILES)
    for i, (name, file, own) in enumerate(files):
        is_whole = size <= WHOLE_BYTES or file.name in METADATA
        starts = range(0, own, SAMPLE_BYTES) if is_whole else _two_places(own, i / len(files)) if i % step == 0 else ()
        digest.update(f"{name}\0{own}\0{_sampled(file, starts) if starts else ''}\0".encode())
    return f"{size}:{digest.hexdigest()}"


def _two_places(size: int, at: float) -> Sequence[int]:
    """The end of a chunk or shard, where its index and checksum stand, and a place that is another one in each file."""
    last = max(size - SAMPLE_BYTES, 0)
    return sorted({int(last * at), last})
