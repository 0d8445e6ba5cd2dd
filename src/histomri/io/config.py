"""The config of a study: defaults, checked against the closed schema, with the sheets it names."""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator, ValidationError

from histomri.core.errors import InputError, Problem
from histomri.core.section import Block, Section, Stack
from histomri.io.by_hand import block_problems, guide_problems, section_problems
from histomri.io.resources import workflow_root
from histomri.io.sheets import Parsed, SectionGuide, parse_guides, read_blocks, read_sections
from histomri.io.tables import absolute

MOST_ALIASES, MOST_VALUES = 20, 100_000
STAGES = ("ingest", "blockface", "stack", "mri", "resample", "evaluate")


@dataclass(frozen=True)
class Study:
    """A study as configured: every path absolute, every default filled in.

    ``sections`` and ``blocks`` keep the order of their sheets; ``config`` is the merged config, its paths as they were written.
    """

    name: str
    config_path: Path | None
    sections_path: Path
    blocks_path: Path | None
    sections: tuple[Section, ...]
    blocks: tuple[Block, ...]
    landmarks: Path | None
    guides: tuple[SectionGuide, ...]
    output: Path
    device: str
    pixel_size_mm: float | None
    section_spacing_mm: float | None
    config: dict[str, Any]

    def stage(self, name: str) -> dict[str, Any]:
        """The settings of a stage, a copy."""
        settings: dict[str, Any] = deepcopy(self.config[name])
        return settings

    def section(self, section_id: str) -> Section:
        """The section of that id (KeyError where there is none)."""
        return self._by_id[section_id]

    @cached_property
    def _by_id(self) -> dict[str, Section]:
        return {s.id: s for s in self.sections}

    def block(self, block_id: str) -> Block:
        """The block of that id (KeyError where there is none)."""
        return {b.id: b for b in self.blocks}[block_id]

    @property
    def stacks(self) -> dict[str, Stack]:
        """The sections of each block, ordered by position, by block id."""
        return {b.id: Stack(b.id, tuple(s for s in self.sections if s.block == b.id)) for b in self.blocks}

    def stains(self, block_id: str) -> tuple[str, ...]:
        """The stains among the used sections of a block, sorted."""
        return tuple(sorted({s.stain for s in self.stacks[block_id].used}))

    def has_mri(self, block_id: str) -> bool:
        """Whether the block has an MRI."""
        return self.block(block_id).mri is not None

    def final_placements(self, block_id: str) -> str:
        """The placements that everything after registration uses, as a path in ``output``."""
        return f"mri/{block_id}/placements.json" if self.has_mri(block_id) else f"stack/{block_id}/deformed.json"

    def has_blockface(self, block_id: str) -> bool:
        """Whether any section of the block names a photograph of the block."""
        return any(s.blockface is not None for s in self.stacks[block_id].sections)


def load_study(config: Path | str | Mapping[str, Any], base: Path | str | None = None) -> Study:
    """Read a study: its config over the defaults, its sheets, all checked against the schema.

    ``config`` is the path of a config file, or a config already read (Snakemake's, say); then ``base`` is the config file that
    its relative paths belong to, or that file's folder.

    Raises
    ------
    InputError
        With every problem of the config, or of the sheets.
    """
    if isinstance(config, Mapping):
        folder = absolute(base or ".", Path.cwd())
        path = None if folder.is_dir() else folder
        given = deepcopy(dict(config))
    else:
        path = absolute(config, Path.cwd())
        given = read_config(path)
    where = str(path) if path else "config"
    problems = config_problems(given, where)
    if problems:
        raise InputError(*problems)
    return _study(merge(default_config(), given), path, path.parent if path else folder)


def read_config(path: Path) -> dict[str, Any]:
    """The mapping that a config file holds, as written.

    Raises
    ------
    InputError
        When the file cannot be read, is not YAML, repeats a key or is not a mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), _StrictLoader)
        if _is_vast(content):
            raise ValueError(f"it unfolds to more than {MOST_VALUES} values, or holds itself")
    except OSError as error:
        raise InputError(Problem(str(path), f"the config cannot be read ({error.strerror})", "correct its path")) from error
    except UnicodeDecodeError as error:
        raise InputError(Problem(str(path), "text in UTF-8 was expected", "save the config as UTF-8")) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else str(path)
        what = f"this is not YAML: {getattr(error, 'problem', None) or error}"
        raise InputError(Problem(where, what, "correct the line, mind its indentation")) from error
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        # PyYAML's own, over dates that no calendar has and the like
        what = f"this cannot be read as YAML ({type(error).__name__}: {error})"
        raise InputError(Problem(str(path), what, "correct it; put text in quotes")) from error
    if not isinstance(content, dict):
        raise InputError(Problem(str(path), "keys and values were expected", "write at least study, sections, blocks and output"))
    return content


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key given twice, where PyYAML would silently take the last, and aliases of aliases without end."""

    aliases = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """As PyYAML's, which unfolds what few lines of aliases make of each other until memory is full."""
        if self.check_event(yaml.AliasEvent):
            self.aliases += 1
        if self.aliases > MOST_ALIASES:
            raise yaml.composer.ComposerError(None, None, f"it has more than {MOST_ALIASES} aliases", None)
        return super().compose_node(parent, index)


def _is_vast(content: Any) -> bool:
    """Whether more values than any config has are there once aliases are unfolded."""
    waiting, seen = [content], 0
    while waiting and seen <= MOST_VALUES:
        value = waiting.pop()
        seen += 1
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list | set | tuple) else []
    return seen > MOST_VALUES


def _unique_mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    for (key, _), count in Counter((k.value, k.tag) for k, _ in node.value if k.tag.endswith(":str")).items():
        if count > 1:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} stands there twice", node.start_mark)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


@cache
def read_schema(name: str) -> dict[str, Any]:
    """``config/schema/<name>.yaml``; treat it as read-only."""
    schema: dict[str, Any] = yaml.safe_load((workflow_root() / "config" / "schema" / f"{name}.yaml").read_text(encoding="utf-8"))
    return schema


@cache
def config_schema() -> dict[str, Any]:
    """The whole schema: the top level with one property per stage; treat it as read-only."""
    schema = deepcopy(read_schema("config"))
    for stage in STAGES:
        if (workflow_root() / "config" / "schema" / f"{stage}.yaml").is_file():
            schema["properties"][stage] = read_schema(stage)
    return schema


def schema_defaults(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of an object's properties; a nested object without a default of its own is filled in turn."""
    defaults = {}
    for key, part in schema.get("properties", {}).items():
        if "default" in part:
            defaults[key] = deepcopy(part["default"])
        elif part.get("type") == "object":
            defaults[key] = schema_defaults(part)
    return defaults


def default_config() -> dict[str, Any]:
    """Every default; the keys that have none (study, sections, output) are left out."""
    return schema_defaults(config_schema())


def merge(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` over ``defaults``: mappings key by key, everything else (lists too) as a whole."""
    merged = dict(defaults)
    for key, value in given.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def config_problems(config: Mapping[str, Any], where: str) -> list[Problem]:
    """Everything in a config (as the user wrote it) that the closed schema does not allow."""
    errors = sorted(Draft202012Validator(config_schema()).iter_errors(config), key=lambda e: [str(p) for p in e.absolute_path])
    problems = [problem for error in errors for problem in _schema_problems(error, where)]
    endless = [(key, f"a finite number was expected, found {value}") for key, value in _not_finite(config)]
    return problems + [Problem(f"{where}, key {key}", what, "write a number") for key, what in endless]


def _schema_problems(error: ValidationError, where: str) -> Iterator[Problem]:
    if error.validator in ("oneOf", "anyOf") and error.context:
        error = _closest(error)
    schema: Any = error.schema
    required: Any = error.validator_value
    instance: Any = error.instance
    key = ".".join(str(p) for p in error.absolute_path)
    prefix = f"{key}." if key else ""
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = list(schema.get("properties", {}))
        for name in error.instance:
            if name not in known:
                yield Problem(f"{where}, key {prefix}{name}", "this key is not known", _suggestion(str(name), known))
    elif error.validator == "required":
        missing = [name for name in required if name not in instance]
        # jsonschema reports each missing name by itself; its message begins with the name
        for name in (m for m in missing if error.message.startswith(repr(m))):
            yield Problem(f"{where}, key {prefix}{name}", "this key is needed and missing", _meaning(schema, name))
    else:
        yield Problem(f"{where}, key {key or '(top level)'}", _value_text(error), _value_remedy(error))


def _closest(error: ValidationError) -> ValidationError:
    """Of a value with several allowed forms, what keeps it from the form that it comes nearest to: the one of its own type."""
    right_type = [
        e for e in error.context or () if e.validator != "type" and not (e.validator == "enum" and _is_nested(e.instance))
    ]
    return max(right_type or [error], key=lambda e: len(e.absolute_path))


def _is_nested(value: object) -> bool:
    return isinstance(value, dict | list)


def _suggestion(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"write {close[0]!r}?" if close else f"remove it; known here: {', '.join(known)}"


def _meaning(schema: Mapping[str, Any], name: str) -> str:
    description = schema.get("properties", {}).get(name, {}).get("description", "")
    return f"add it: {description}" if description else "add it"


def _value_text(error: ValidationError) -> str:
    limit: Any = error.validator_value
    expected: dict[str, Callable[[Any], str]] = {
        "enum": lambda v: f"one of {', '.join(map(str, v))}",
        "const": lambda v: f"{v!r}",
        "type": lambda v: " or ".join(v) if isinstance(v, list) else str(v),
        "minimum": lambda v: f"at least {v:g}",
        "maximum": lambda v: f"at most {v:g}",
        "exclusiveMinimum": lambda v: f"more than {v:g}",
        "exclusiveMaximum": lambda v: f"less than {v:g}",
        "minLength": lambda _: "some text",
        "minItems": lambda v: f"a list of at least {v}",
        "maxItems": lambda v: f"a list of at most {v}",
    }
    say = expected.get(str(error.validator))
    return f"{say(limit)} was expected, found {error.instance!r}" if say else str(error.message)


def _value_remedy(error: ValidationError) -> str:
    if error.validator == "type" and isinstance(error.instance, str) and _is_number(error.instance):
        return f"write {float(error.instance)!r} (YAML takes {error.instance} for text)"
    default = error.schema.get("default") if isinstance(error.schema, dict) else None
    return "correct the value" if default is None else f"correct the value (default: {default})"


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _not_finite(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    items: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list):
        items = iter(enumerate(value))
    elif isinstance(value, float) and not math.isfinite(value):
        yield key, value
    for name, part in items:
        yield from _not_finite(part, f"{key}.{name}" if key else str(name))


def _study(config: dict[str, Any], path: Path | None, folder: Path) -> Study:
    sections_path = absolute(config["sections"], folder)
    blocks_path = absolute(config["blocks"], folder) if config["blocks"] else None
    sections, blocks = _sheets(sections_path, blocks_path, config["section_spacing_mm"])
    guides_path = absolute(config["guides"], folder) if config["guides"] else None
    return Study(
        name=config["study"],
        config_path=path,
        sections_path=sections_path,
        blocks_path=blocks_path,
        sections=sections,
        blocks=blocks,
        landmarks=absolute(config["landmarks"], folder) if config["landmarks"] else None,
        guides=_by_hand(guides_path, sections, blocks, (sections_path, blocks_path), config["stack"]["order"]),
        output=absolute(config["output"], folder),
        device=config["device"],
        pixel_size_mm=config["pixel_size_mm"],
        section_spacing_mm=config["section_spacing_mm"],
        config=config,
    )


def _sheets(
    sections_path: Path, blocks_path: Path | None, spacing_mm: float | None
) -> tuple[tuple[Section, ...], tuple[Block, ...]]:
    """Both sheets, with the problems of both in one error."""
    problems: list[Problem] = []
    sections: tuple[Section, ...] = ()
    blocks: tuple[Block, ...] = ()
    try:
        sections = read_sections(sections_path, spacing_mm)
    except InputError as error:
        problems += error.problems
    try:
        blocks = read_blocks(blocks_path) if blocks_path else tuple(Block(b) for b in dict.fromkeys(s.block for s in sections))
    except InputError as error:
        problems += error.problems
    if sections and blocks:
        problems += unmatched_blocks(sections, blocks, (sections_path, blocks_path))
    if problems:
        raise InputError(*problems)
    return sections, blocks


def _by_hand(
    path: Path | None, sections: Sequence[Section], blocks: Sequence[Block], sheets: tuple[Path, Path | None], order: str
) -> tuple[SectionGuide, ...]:
    """The guides, with every problem of what is given by hand in one error."""
    guides: Parsed[SectionGuide] = parse_guides(path) if path else Parsed()
    problems = list(guides.problems)
    if path and not problems:
        problems += guide_problems(guides, sections, blocks, path)
    problems += section_problems(sections, guides.items, sheets[0], order)
    problems += block_problems(blocks, sheets[1]) if sheets[1] else ()
    if problems:
        raise InputError(*problems)
    return guides.items


def unmatched_blocks(sections: Sequence[Section], blocks: Sequence[Block], sheets: tuple[Path, Path | None]) -> Iterator[Problem]:
    """Blocks that only one of the two sheets knows."""
    named, known = dict.fromkeys(s.block for s in sections), dict.fromkeys(b.id for b in blocks)
    for block in named:
        if block not in known:
            what = f"{sheets[1]} has no block {block!r}"
            yield Problem(f"{sheets[0]}, block {block}", what, "add it there, or correct the name")
    for block in known:
        if block not in named:
            yield Problem(f"{sheets[1]}, block {block}", "no section belongs to this block", "remove it, or correct its name")
