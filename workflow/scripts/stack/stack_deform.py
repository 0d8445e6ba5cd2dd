"""One block without an MRI: rigid placements -> placements with affine maps and deformations."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import section_from_dict
    from histomri.stages.stack import StackSettings
    from histomri.stages.stack_deform import deform

    deform(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        Path(snakemake.input.placements),
        Path(snakemake.output.placements),
        StackSettings(**snakemake.params.settings),
    )
