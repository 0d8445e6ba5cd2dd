"""One block, stain and grid: the empty store that several jobs are to fill."""

from pathlib import Path

from histomri.stages.adapter import job

with job(snakemake):
    from histomri.stages.resample_parts import make_empty, planned_by

    make_empty(*planned_by(snakemake), Path(snakemake.output.working))
