"""The report's template. A package of its own, so that an edit of it counts as an edit of what renders it."""

from pathlib import Path

FOLDER = Path(__file__).parent
