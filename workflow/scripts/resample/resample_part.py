"""One part of a block's volume: sections through their placements -> chunks of a store that is there."""

from pathlib import Path

from histomri.stages.adapter import job

with job(snakemake):
    from histomri.stages.resample_parts import planned_by, write_part

    part = (int(snakemake.wildcards.part), snakemake.params.parts)
    write_part(*planned_by(snakemake), Path(snakemake.input.working), part, Path(snakemake.output.done))
