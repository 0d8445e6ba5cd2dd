"""``histomri reproduce PROVENANCE``: the same study again, held against the record of its first run."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHOWN = 20


def add_parser(subparsers: Any) -> None:
    """Describe the command's arguments."""
    parser = subparsers.add_parser(
        "reproduce",
        help="run a study again from its provenance.json and say what came out differently",
        description="Checks the inputs, the code and the versions against the record, runs the study with the recorded config "
        "into a new folder, and compares the checksum of every decoded array and transform, of arrays above 2 GiB that of the "
        "bytes that hold them. Exit status: 0 when all is equal, 1 when anything differs.",
    )
    parser.add_argument("provenance", type=Path, help="the provenance.json of a finished study")
    parser.add_argument(
        "--inputs", type=Path, metavar="FOLDER", help="the study's folder, which holds its sheets (default: as recorded)"
    )
    parser.add_argument(
        "--output", type=Path, metavar="FOLDER", help="folder of the new result (default: beside the old one, -reproduced)"
    )
    parser.add_argument("--cores", metavar="N", default="all", help="cores to use (default: all)")
    parser.add_argument("--check-only", action="store_true", help="compare inputs and programs; run nothing")


def run(args: argparse.Namespace) -> int:
    """Check, run, compare, and say what differs. Raises ``InputError`` for a record or study that cannot be read."""
    from histomri.stages import reproduction as r

    record = r.read_record(args.provenance)
    folder = _study_folder(args, record)
    if differ := list(r.input_differences(record, r.recorded_study(record, folder))):
        _say(f"inputs: {len(differ)} differ from the record of {len(record['inputs'])}; nothing is run", differ)
        return 1
    print(f"inputs: all {len(record['inputs'])} as recorded", flush=True)
    programs = list(r.program_differences(record))
    _say("programs: " + (f"{len(programs)} differ" if programs else "code, Python and packages as recorded"), programs)
    if args.check_only:
        return 1 if programs else 0
    before = args.provenance.absolute().parent
    output = args.output or before.with_name(before.name + "-reproduced")
    status = _run_again(r.config_from(record, folder, output / "results"), output, args.cores)
    if status:
        print(f"the run into {output} failed, exit status {status}", file=sys.stderr)
        return 1
    other = r.read_record(output / "results" / "provenance.json")
    _say("machine: " + ("another, see below" if (m := r.machine_differences(record, other)) else "as recorded"), m)
    differ = list(r.result_differences(record, other, (before, output / "results")))
    arrays, large = {**r.arrays_in(record), **r.arrays_in(other)}, r.compared_by_bytes(record, other)
    count = f"{len(arrays)} arrays in {len({file for file, _ in arrays})} files"
    by_bytes = f" ({len(large)} too large to decode, compared by the bytes of their files)" if large else ""
    if differ:
        _say(f"results: {len(differ)} of {count} differ{by_bytes}", differ)
    else:
        print(f"results: all {count} are equal, bit for bit{by_bytes}")
    return 1 if differ or programs else 0


def _study_folder(args: argparse.Namespace, record: dict[str, Any]) -> Path:
    """The folder with the sheets. Raises ``InputError`` where neither the record nor the user says it."""
    from histomri.core import InputError
    from histomri.core.errors import Problem

    if args.inputs:
        return Path(args.inputs).absolute()
    if not record.get("study_folder"):
        what = "the record does not say where the study's folder is, because it shared none with the output"
        raise InputError(Problem(str(args.provenance), what, "name the folder: --inputs FOLDER"))
    return Path(args.provenance.absolute().parent, record["study_folder"]).resolve()


def _run_again(config: dict[str, Any], output: Path, cores: str) -> int:
    """Run the workflow on this config in a process of its own; its exit status."""
    import yaml

    from histomri.core import InputError
    from histomri.core.errors import Problem

    if output.exists() and any(output.iterdir()):
        remedy = "remove it, or name another: --output FOLDER"
        raise InputError(Problem(str(output), "the new result needs an empty folder", remedy))
    output.mkdir(parents=True, exist_ok=True)
    path = output / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    print(f"running into {output}", flush=True)
    log = output / "run.log"
    with log.open("wb") as file:
        line = [sys.executable, "-P", "-m", "histomri", "run", "--cores", cores, str(path)]
        status = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if status:
        print("\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-SHOWN:]), file=sys.stderr)
    return status


def _say(headline: str, lines: Sequence[str]) -> None:
    print(headline, flush=True)
    for line in lines[:SHOWN]:
        print(f"  {line}")
    if len(lines) > SHOWN:
        print(f"  ... and {len(lines) - SHOWN} more")
