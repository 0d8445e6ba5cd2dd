"""What every job of a study depends on, for many configs in one process: Snakemake starts slowly.

``python plan.py SNAKEFILE CONFIG...`` prints, as JSON, one list of jobs for each config. A job has the name of its rule, its
wildcards, its params as Snakemake compares them (a text each), and its inputs and outputs.
"""

from __future__ import annotations

import json
import os
import sys
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


if __name__ == "__main__":
    own = os.dup(1)
    os.dup2(2, 1)  # Snakemake's own words
    answer = [jobs(Path(sys.argv[1]).absolute(), Path(config).absolute()) for config in sys.argv[2:]]
    with os.fdopen(own, "w") as stream:
        json.dump(answer, stream)
