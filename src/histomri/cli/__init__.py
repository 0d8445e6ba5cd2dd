"""The command ``histomri``: one small module per subcommand.

Each module has ``add_parser(subparsers)`` and ``run(args) -> int``, and is imported only when its command is called, so that
``histomri --help`` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

import histomri
from histomri.core.errors import HistomriError

COMMANDS = {
    "new": "write a commented config and sheets for a study, filled from the slides found",
    "check": "find everything that is wrong with a study, before anything is computed",
    "regions": "list and draw the sections that are found on slides with several",
    "run": "run the whole workflow on a study",
    "reproduce": "run a study again from its provenance.json and say what came out differently",
    "why": "say which jobs a run would do now, and why",
    "lock": "keep sections where a finished run has them, whatever runs later",
    "summary": "print a finished study's results in a few lines",
    "map": "map points between sections, slides, blocks and the MRI",
    "register": "bring one image onto another: two sections, a photograph, two volumes",
    "transfer": "bring a volume in the MRI's world onto a section",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand; the exit status is its own, and 2 where histomri refuses its input."""
    given = list(sys.argv[1:] if argv is None else argv)
    called = next((word for word in given if not word.startswith("-")), "")
    arguments = _parser(called).parse_args(given)
    try:
        return int(import_module(f"{__name__}.{called}").run(arguments))
    except HistomriError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader (head, say) has left: nothing to tell anybody
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser(called: str) -> argparse.ArgumentParser:
    """A parser that knows every command by name and the arguments of the one that is called."""
    parser = argparse.ArgumentParser(prog="histomri", description="From whole-slide files to a 3D histology volume in MRI space.")
    parser.add_argument("--version", action="version", version=f"histomri {histomri.__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if name == called:
            import_module(f"{__name__}.{name}").add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text)
    return parser
