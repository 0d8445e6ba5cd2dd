"""ITK's text transforms, looked at before ITK reads them: some classes read beyond the numbers where there are too few."""

from __future__ import annotations

import re
from pathlib import Path

TEXT_FILES = (".tfm", ".txt")
KIND = re.compile(r"(\w+?)_(?:double|float)_(\d)_\2", re.ASCII)
NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
# how many parameters a class has, by its dimensions (`tests/io/test_transform_files.py` asks ITK)
COUNTS = {
    "AffineTransform": {2: 6, 3: 12},
    "MatrixOffsetTransformBase": {2: 6, 3: 12},
    "TranslationTransform": {2: 2, 3: 3},
    "ScaleTransform": {2: 2, 3: 3},
    "IdentityTransform": {2: 0, 3: 0},
    "Rigid2DTransform": {2: 3},
    "Euler2DTransform": {2: 3},
    "Similarity2DTransform": {2: 4},
    "Euler3DTransform": {3: 6},
    "VersorTransform": {3: 3},
    "VersorRigid3DTransform": {3: 6},
    "Similarity3DTransform": {3: 7},
    "ScaleVersor3DTransform": {3: 9},
    "ScaleSkewVersor3DTransform": {3: 15},
}
# these compare the numbers with their grid themselves, or have none
UNCHECKED = ("CompositeTransform", "DisplacementFieldTransform", "BSplineTransform")


def check_text(path: Path) -> None:
    """Raise ``ValueError`` for a text file of transforms with lines or numbers that do not belong there; other files pass."""
    if path.suffix.lower() not in TEXT_FILES or not path.is_file():
        return
    count: int | None = None
    for line in path.read_text(encoding="latin-1").split("\n"):
        key, _, value = (part.strip() for part in line.partition(":"))
        if not key or key.startswith("#"):
            continue
        if key == "Transform":
            count = _parameters_of(value)
        elif key == "Parameters" and count is not None:
            _check_numbers(value.split(), count)
        elif key not in ("Parameters", "FixedParameters"):
            # among them the names of other files
            raise ValueError(f"transforms and their parameters were expected, found {key[:40]!a}")


def _parameters_of(name: str) -> int | None:
    """How many parameters a class has; None where it checks them itself. Raises ``ValueError`` for one that is not known."""
    found = KIND.fullmatch(name)
    kind, dimensions = (found[1], int(found[2])) if found else (name, 0)
    if kind in UNCHECKED:
        return None
    if dimensions not in COUNTS.get(kind, {}):
        raise ValueError(f"{name[:60]!a} is no transform that is read here; one of {', '.join(COUNTS)} was expected")
    return COUNTS[kind][dimensions]


def _check_numbers(words: list[str], count: int) -> None:
    wrong = next((word for word in words if not NUMBER.fullmatch(word)), None)
    if wrong is not None:
        raise ValueError(f"a number was expected, found {wrong[:40]!a}")
    if len(words) != count:
        raise ValueError(f"{count} parameters were expected, found {len(words)}")
