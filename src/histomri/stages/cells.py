"""Several texts in one cell of ``sections.tsv``: a section's flags, its notes."""

from __future__ import annotations

from collections.abc import Iterable

BETWEEN = "; "


def joined(texts: Iterable[object]) -> str:
    """Texts as one cell; what stands between them is taken out of each, so that :func:`listed` takes them apart again."""
    return BETWEEN.join(str(text).replace(BETWEEN, ", ") for text in texts)


def listed(cell: str) -> list[str]:
    """The texts of a cell."""
    return [text for text in cell.split(BETWEEN) if text]
