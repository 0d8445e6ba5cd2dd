"""One block, stain and grid: sections through their placements -> volume, coverage, manifest."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import block_from_dict, section_from_dict
    from histomri.stages.parts import Parts
    from histomri.stages.resample import ResampleSettings, resample_volume

    # there where jobs of their own filled the store
    done = tuple(map(Path, snakemake.input.parts))

    resample_volume(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        block_from_dict(snakemake.params.block),
        Path(snakemake.input.placements),
        snakemake.wildcards.grid,
        snakemake.wildcards.stain,
        ResampleSettings(**snakemake.params.settings, max_memory_mb=snakemake.resources.max_memory_mb),
        Path(snakemake.output.store),
        Path(snakemake.output.nifti),
        Path(snakemake.output.coverage),
        Path(snakemake.output.manifest),
        Parts(Path(snakemake.input.working), done) if done else None,
    )
