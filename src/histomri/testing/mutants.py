"""Files gone wrong, by chance but repeatably: bits, numbers, lines and structures changed as bad luck or malice would."""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NUMBERS = (0, 1, 2, 3, 7, 255, 256, 32767, 65535, 65536, 100_000, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
WORDS = (
    "", " ", "nan", "inf", "-inf", "1e999", "-1", "0", "1e-320", "9" * 400, "0x10", "1_0", "１２", "null", "true", "[]", "{}",
    "~", "a/b", "..", "../../x", "/etc/passwd", "-rf", "--help", "é", "\u202e", "\ufeff", "\0", "x" * 5000, "<script>x</script>",
    "a b", "%s", "{0}", "auto", "auto:9999999999/3", "auto:1/99999999999999", "1,2,3,4", "0,0,99999999999,99999999999",
    "&a [*a,*a]", "*x", "!!python/object/apply:os.system ['true']", "!!binary =", "!!timestamp 2001-99-99", "!!int x", "=1+1",
    "#", '"', "'", "a\tb", "|", ">", "2001-01-01", "12:30:45", "0o17", "0b1", "? x", "- x", "<<", ".inf", ".nan",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1e308, -1e308, 1e-320, 2**31, 2**63, 2**70, "", "x", "..", "NaN", [], {}, [[]], [None], [1, 2],
    {"a": 1}, "x" * 2000, [0] * 50, float("nan"), float("inf"), "\ud800", 100_000, [100_000, 100_000], [[[[1]]]],
)  # fmt: skip
TOKEN = re.compile(r"[^\s,:;=\[\]{}\"']+")
DEPTH = 5000


def mutated_bytes(data: bytes, rng: random.Random) -> bytes:
    """One to six changes of bytes, most of them where headers are: at either end."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(BYTE_CHANGES)(found, rng)
    return bytes(found)


def _place(data: bytearray, rng: random.Random) -> int:
    size = max(1, len(data))
    near = rng.randrange(min(size, 600))
    return rng.choice((near, size - 1 - near, rng.randrange(size)))


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] ^= 1 << rng.randrange(8)


def _byte(data: bytearray, rng: random.Random) -> None:
    if data:
        data[_place(data, rng)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def _number(data: bytearray, rng: random.Random) -> None:
    kind, at = rng.choice(("H", "I", "Q", "f", "d")), _place(data, rng)
    number = rng.choice(NUMBERS)
    value = float(number) * rng.choice((1, -1)) if kind in "fd" else number % 2 ** (8 * struct.calcsize(kind))
    packed = struct.pack(rng.choice("<>") + kind, value)
    data[at : at + len(packed)] = packed


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[_place(data, rng) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    del data[at : at + rng.choice((1, 2, 4, 16, 200))]


def _insert(data: bytearray, rng: random.Random) -> None:
    at = _place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 2, 4, 16, 200)))


def _repeat(data: bytearray, rng: random.Random) -> None:
    start, at = _place(data, rng), _place(data, rng)
    data[at:at] = data[start : start + rng.choice((4, 12, 100))]


def _blank(data: bytearray, rng: random.Random) -> None:
    at, length = _place(data, rng), rng.choice((2, 12, 100))
    data[at : at + length] = bytes([rng.choice((0, 255))]) * len(data[at : at + length])


def _swap(data: bytearray, rng: random.Random) -> None:
    a, b, length = _place(data, rng), _place(data, rng), rng.choice((2, 4, 12))
    first, second = data[a : a + length], data[b : b + length]
    if len(first) == len(second) and abs(a - b) >= length:
        data[a : a + length], data[b : b + length] = second, first


BYTE_CHANGES = (_flip, _byte, _byte, _number, _number, _number, _cut, _remove, _insert, _repeat, _blank, _swap)


def mutated_text(text: str, rng: random.Random) -> bytes:
    """Words replaced, lines lost, doubled, swapped; now and then bytes changed or another encoding."""
    for _ in range(rng.choice((1, 1, 2, 4))):
        text = rng.choice((_word, _word, _word, _line))(text, rng)
    raw = text.encode(rng.choice(("utf-8",) * 6 + ("utf-16", "latin-1", "utf-8-sig")), "replace")
    return mutated_bytes(raw, rng) if rng.random() < 0.25 else raw


def _word(text: str, rng: random.Random) -> str:
    tokens = list(TOKEN.finditer(text))
    if not tokens:
        return rng.choice(WORDS)
    token = rng.choice(tokens)
    return text[: token.start()] + rng.choice(WORDS) + text[token.end() :]


def _line(text: str, rng: random.Random) -> str:
    lines = text.split("\n")
    i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
    changed = rng.choice(
        (
            [],
            [lines[j], lines[i]],
            [lines[j]],
            [lines[i] + rng.choice("\t,: ") + rng.choice(WORDS)],
            ["  " * rng.randrange(3) + rng.choice(WORDS)],
        )
    )
    return "\n".join([*lines[:i], *changed, *lines[i + 1 :]])


def mutated_json(text: str, rng: random.Random) -> bytes:
    """A value somewhere in the document replaced, removed or nested; else as text."""
    if rng.random() < 0.25:
        return mutated_text(text, rng)
    if rng.random() < 0.02:
        return ("[" * DEPTH + "]" * rng.choice((0, DEPTH))).encode()
    try:
        document = json.loads(text)
    except ValueError:  # changed before
        return mutated_text(text, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        document = _replaced(document, rng)
    return json.dumps(document).encode()


def _replaced(value: Any, rng: random.Random) -> Any:
    """A copy with one value at some depth changed."""
    if not isinstance(value, dict | list) or not value or rng.random() < 0.12:
        return rng.choice(VALUES)
    found: Any = dict(value) if isinstance(value, dict) else list(value)
    key: Any = rng.choice(list(found)) if isinstance(found, dict) else rng.randrange(len(found))
    if rng.random() < 0.1:
        del found[key]
    elif rng.random() < 0.05 and isinstance(found, dict):
        found[rng.choice(WORDS)] = found.pop(key)
    else:
        found[key] = _replaced(found[key], rng)
    return found


def _changed(data: bytes, name: str, rng: random.Random) -> bytes:
    """A file's bytes changed in the way that suits its kind, by its name."""
    if name.endswith(".gz") and rng.random() < 0.8:
        return gzip.compress(mutated_bytes(gzip.decompress(data), rng), 1, mtime=0)
    if name.endswith((".json", ".geojson", ".zattrs", ".zarray", ".zgroup", ".zmetadata")):
        return mutated_json(data.decode("utf-8", "replace"), rng)
    if name.endswith((".tsv", ".csv", ".yaml", ".tfm")):
        return mutated_text(data.decode("utf-8", "replace"), rng)
    return mutated_bytes(data, rng)


def write_mutant(seed: Path, target: Path, rng: random.Random) -> None:
    """A changed copy of the file or folder ``seed`` as ``target``; what stood there is removed."""
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    if not seed.is_dir():
        target.write_bytes(_changed(seed.read_bytes(), seed.name, rng))
        return
    shutil.copytree(seed, target)
    files = sorted(f for f in target.rglob("*") if f.is_file())
    for file in _chosen(files, rng):
        _change_inside(file, rng)


def _chosen(files: Sequence[Path], rng: random.Random) -> Sequence[Path]:
    metadata = [f for f in files if f.suffix == ".json" or f.name.startswith(".z")]
    return [rng.choice(metadata if metadata and rng.random() < 0.6 else list(files)) for _ in range(rng.choice((1, 1, 2)))]


def _change_inside(file: Path, rng: random.Random) -> None:
    if not file.is_file() or file.is_symlink():
        return
    way = rng.random()
    if way < 0.9:
        file.write_bytes(_changed(file.read_bytes(), file.name, rng))
        return
    file.unlink()
    if way > 0.97:
        file.mkdir()
    elif way > 0.94:
        file.symlink_to(rng.choice((file.name, "/dev/null", "/etc/hostname", "..")))
