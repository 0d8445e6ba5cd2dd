"""Where the workflow, the schemas and the default config lie: in the checkout, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def workflow_root() -> Path:
    """The folder that holds ``Snakefile``, ``config/`` and ``workflow/``.

    Raises
    ------
    FileNotFoundError
        When neither the checkout nor the installed package has it.
    """
    for root in (PACKAGE / "_workflow", PACKAGE.parents[1]):
        if (root / "config" / "schema" / "config.yaml").is_file():
            return root
    raise FileNotFoundError(f"The workflow's files are missing beside {PACKAGE}: install histomri again.")
