"""What every job of a study depends on, for many configs in one process: Snakemake starts slowly.

``python plan.py SNAKEFILE CONFIG...`` prints, as JSON, one list of jobs for each config. A job has the name of its rule, its
wildcards, its params as Snakemake compares them (a text each), and its inputs and outputs. With ``--effort`` it prints what
planning took instead.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from cProfile import Profile
from pathlib import Path
from typing import Any

from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, Quietness, ResourceSettings


def jobs(snakefile: Path, config: Path) -> list[dict[str, Any]]:
    """All jobs of a study, whether they are due or not."""
    with SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api:
        loaded = api.workflow(ResourceSettings(cores=1), ConfigSettings(configfiles=[config]), snakefile=snakefile)
        loaded.dag(DAGSettings(forceall=True))
        workflow = loaded._workflow
        workflow._prepare_dag(forceall=True, ignore_incomplete=True, lock_warn_only=True)
        workflow._build_dag()
        return [_record(job) for job in workflow.dag.jobs if job.rule.name != "all"]


def _record(job: Any) -> dict[str, Any]:
    return {
        "rule": job.rule.name,
        "wildcards": dict(job.wildcards_dict),
        "params": {name: json.dumps(value, default=str, sort_keys=True) for name, value in job.params.items()},
        "input": sorted(map(str, job.input)),
        "output": sorted(map(str, job.output)),
    }


def effort(snakefile: Path, config: Path) -> dict[str, int]:
    """How many calls of functions of ours it takes to plan a study, and how often the slides beside its config are opened."""
    profile, opened = Profile(), Counter()
    sys.addaudithook(lambda event, given: opened.update([str(given[0])] if event == "open" else []))
    profile.enable()
    count = len(jobs(snakefile, config))
    profile.disable()
    calls = sum(entry.callcount for entry in profile.getstats() if "histomri" in _file(entry) or _file(entry).endswith(".smk"))
    own = [n for name, n in opened.items() if name.startswith(str(config.parent)) and name.endswith(".tif")]
    return {"jobs": count, "calls": calls, "slides": len(own), "reads": sum(own)}


def _file(entry: Any) -> str:
    """The file of a profiled function; none for those of C."""
    return str(getattr(entry.code, "co_filename", ""))


if __name__ == "__main__":
    own = os.dup(1)
    os.dup2(2, 1)  # Snakemake's own words
    ask = effort if sys.argv[1] == "--effort" else jobs
    snakefile, *configs = (Path(name).absolute() for name in sys.argv[1:] if name != "--effort")
    answer = [ask(snakefile, config) for config in configs]
    with os.fdopen(own, "w") as stream:
        json.dump(answer, stream)
