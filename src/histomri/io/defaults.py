"""Writes ``config/config.yaml`` and ``config/README.md`` from the schemas: ``python -m histomri.io.defaults [--check]``."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from histomri.io.config import STAGES, config_schema, read_schema
from histomri.io.resources import workflow_root

WIDTH = 110
SHEETS = ("sections", "blocks", "landmarks", "guides")
CONFIG_HEADER = """\
# The defaults of every study, which its own config overrides. Written by `make config` from config/schema: do not edit.
# The keys `study`, `sections`, `blocks`, `landmarks`, `guides` and `output` belong to a study and have no default here.
"""
README_HEADER = """\
# The config and the sheets of a study

Written by `make config` from [`schema/`](schema), which is what `histomri check` and the workflow hold a study against.
An unknown key or value is an error. Relative paths are relative to the file that names them. The smallest config:

```yaml
study: my specimen
sections: sections.tsv
blocks: blocks.tsv
output: results
```

`histomri new STUDY_DIR --slides FOLDER` writes one, with sheets filled from the slides it finds. Give a key only to change it:
what a config does not name keeps its default from [`config.yaml`](config.yaml).
"""


def default_yaml() -> str:
    """The text of ``config/config.yaml``: every default with its meaning as a comment."""
    keys = {k: p for k, p in config_schema()["properties"].items() if "default" in p and k not in SHEETS}
    return "\n".join([CONFIG_HEADER, *(_yaml_key(key, part, 0) for key, part in keys.items()), stage_yaml()])


def stage_yaml(*, commented: bool = False) -> str:
    """The stages' part of the defaults; ``commented`` turns the values into comments too, for a study's own config."""
    parts = config_schema()["properties"]
    text = "\n".join(_yaml_key(stage, parts[stage], 0) for stage in STAGES if stage in parts)
    if not commented:
        return text
    return "".join(line if line.lstrip().startswith("#") or not line.strip() else f"# {line}" for line in text.splitlines(True))


def _yaml_key(key: str, part: Mapping[str, Any], indent: int) -> str:
    comment = textwrap.indent(textwrap.fill(_meaning(part), WIDTH - indent), " " * indent + "# ")
    if "default" not in part and part.get("properties"):
        inner = "".join(_yaml_key(name, sub, indent + 2) for name, sub in part["properties"].items())
        return f"{comment}\n{' ' * indent}{key}:\n{inner}"
    return f"{comment}\n{' ' * indent}{key}: {_literal(part['default'])}\n"


def _meaning(part: Mapping[str, Any]) -> str:
    values = f" One of {', '.join(map(str, part['enum']))}." if "enum" in part else ""
    return " ".join(str(part.get("description", "")).split()) + values


def readme() -> str:
    """The text of ``config/README.md``: every key of the config and every column of the sheets."""
    schema = config_schema()
    general = {k: p for k, p in schema["properties"].items() if k not in STAGES}
    parts = [README_HEADER, "## Study\n", _table(_key_rows(general, schema["required"]), "key")]
    for stage in STAGES:
        if stage in schema["properties"]:
            part = schema["properties"][stage]
            parts += [f"## `{stage}`\n", f"{_meaning(part)}\n", _table(_key_rows(part.get("properties", {}), ()), "key")]
    for sheet in SHEETS:
        part = read_schema(sheet)
        parts += [f"## `{part['title']}`\n", f"{_meaning(part)}\n", _table(_column_rows(part), "column")]
    return "\n".join(parts)


def _table(rows: Iterator[tuple[str, str, str]], first: str) -> str:
    lines = [f"| {first} | default | meaning |", "|---|---|---|"]
    lines += [f"| `{name}` | {default} | {text.replace('|', chr(92) + '|')} |" for name, default, text in rows]
    return "\n".join(lines) + "\n"


def _key_rows(properties: Mapping[str, Any], required: Sequence[str], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    for key, part in properties.items():
        if "default" not in part and part.get("properties"):
            yield from _key_rows(part["properties"], (), f"{prefix}{key}.")
            continue
        default = "required" if key in required else _cell(part.get("default"))
        yield f"{prefix}{key}", default, _meaning(part) + _limits(part)


def _column_rows(sheet: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    for column, part in sheet["properties"].items():
        default = "required" if column in sheet["required"] else _cell(part.get("default"))
        unit = f" In {part['unit']}." if "unit" in part else ""
        yield column, default, _meaning(part) + unit


def _literal(value: Any) -> str:
    """One line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).removesuffix("...\n").strip()


def _cell(value: Any) -> str:
    return "none" if value is None else f"`{_literal(value)}`"


def _limits(part: Mapping[str, Any]) -> str:
    words = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most", "exclusiveMaximum": "less than"}
    limits = [f"{word} {part[key]:g}" for key, word in words.items() if key in part]
    return f" ({', '.join(limits)})" if limits else ""


def main() -> int:
    """Write both files, or with ``--check`` only say which of them is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where a file is out of date")
    check = parser.parse_args().check
    stale = [path for path, text in outputs().items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{path} {'is out of date: run make config' if check else 'written'}")
        if not check:
            path.write_text(outputs()[path], encoding="utf-8")
    return 1 if check and stale else 0


def outputs() -> dict[Path, str]:
    """The files that this module writes, and their text."""
    folder = workflow_root() / "config"
    return {folder / "config.yaml": default_yaml(), folder / "README.md": readme()}


if __name__ == "__main__":
    raise SystemExit(main())
