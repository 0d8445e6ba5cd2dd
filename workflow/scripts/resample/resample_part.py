"""One part of a block's volume: sections through their placements -> chunks of a store that is there."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.placements import read_placements
    from histomri.io.sheets import block_from_dict, section_from_dict
    from histomri.stages.resample import ResampleSettings, plan_volume
    from histomri.stages.resample_parts import write_part

    choice = (snakemake.wildcards.grid, snakemake.wildcards.stain)
    plan = plan_volume(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        block_from_dict(snakemake.params.block),
        read_placements(Path(snakemake.input.placements)),
        choice,
        ResampleSettings(**snakemake.params.settings, max_memory_mb=snakemake.resources.max_memory_mb),
    )
    part = (int(snakemake.wildcards.part), snakemake.params.parts)
    write_part(plan, choice, Path(snakemake.input.working), part, Path(snakemake.output.done))
