"""Errors that say what was expected, what was found and what to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


class HistomriError(Exception):
    """Base class of every error that histomri raises on purpose."""


class RegistrationError(HistomriError):
    """A registration could not produce a transform that is safe to use."""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with the input: where, what, and the remedy.

    ``where`` names the file (and row or key), ``what`` says what was expected and what was found,
    ``remedy`` says what to do. ``severity`` is ``error`` or ``warning``.
    """

    where: str
    what: str
    remedy: str
    severity: str = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.where}: {self.what} -> {self.remedy}"


class InputError(HistomriError):
    """Bad input, with every problem that was found.

    Raised with one or more :class:`Problem`; its text lists them one per line.
    """

    def __init__(self, *problems: Problem):
        self.problems = problems
        super().__init__("\n".join(str(p) for p in problems))


def named(error: InputError, where: str) -> Iterator[Problem]:
    """A file's own problems, as those of the place that names it."""
    for problem in error.problems:
        yield Problem(where, f"{problem.where}: {problem.what}", problem.remedy, problem.severity)
