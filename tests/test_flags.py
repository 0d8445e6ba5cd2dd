"""The texts of flags: tables and the report take them apart at "; ", so that none may hold it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "histomri"
# where placements, remarks on the order and the evaluation get their flags
WRITERS = [
    *("registration/by_hand.py", "registration/order.py", "registration/rescue.py", "registration/verification.py"),
    *("stages/blockface.py", "stages/by_hand.py", "stages/mri.py", "stages/order.py", "stages/stack.py"),
    *("stages/stack_deform.py", "stages/verification.py", "evaluation/acceptance.py"),
]
SPEAKERS = {"print", "_say", "Problem"}  # what these are given is for the log and for errors


def texts(source: str) -> list[str]:
    """The strings of a module, the pieces of f-strings too, without docstrings, log lines, errors, and "; " by itself."""
    tree, left_out = ast.parse(source), set()
    for node in ast.walk(tree):
        is_said = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in SPEAKERS
        if is_said or isinstance(node, ast.Raise) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            left_out |= {id(inner) for inner in ast.walk(node)}
    found = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in left_out]
    return [text for text in found if isinstance(text, str) and text != "; "]


@pytest.mark.parametrize("module", WRITERS)
def test_no_flag_holds_what_stands_between_flags(module: str) -> None:
    assert [text for text in texts((PACKAGE / module).read_text(encoding="utf-8")) if "; " in text] == []


def test_every_module_that_flags_placements_is_looked_at() -> None:
    flagging = {str(p.relative_to(PACKAGE)) for p in PACKAGE.rglob("*.py") if _gives_flags(p.read_text(encoding="utf-8"))}
    # tables, files and tissue: what they pass on was written elsewhere, and ingest's flags are notes
    passing = {"io/graph.py", "io/placements.py"}
    ingest = {"stages/ingest.py", "stages/tissue.py", "stages/stains.py"}
    assert {m for m in flagging if not m.startswith("testing/")} - passing - ingest <= set(WRITERS)


def _gives_flags(source: str) -> bool:
    if "flags=" not in source:
        return False
    calls = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)]
    return any(k.arg == "flags" and not _is_option(k.value) for n in calls for k in n.keywords)


def _is_option(value: ast.expr) -> bool:
    """``cv2.warpAffine(..., flags=cv2.INTER_LINEAR)``, or a name given to it."""
    return isinstance(value, ast.Attribute) or (isinstance(value, ast.BinOp) and isinstance(value.op, ast.BitOr))
