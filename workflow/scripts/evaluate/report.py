"""The evaluation and the volumes -> report."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import block_from_dict, section_from_dict
    from histomri.stages.evaluate import EvaluateSettings, write_report

    write_report(
        snakemake.params.study,
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        tuple(map(block_from_dict, snakemake.params.blocks)),
        files_of(snakemake.params.block_ids, snakemake.input.placements),
        files_of([tuple(key) for key in snakemake.params.volumes], snakemake.input.volumes),
        Path(snakemake.input.evaluation[0]).parent,
        EvaluateSettings(**snakemake.params.settings),
        Path(snakemake.output.report),
        files_of(snakemake.params.mri_blocks, snakemake.input.poses),
        snakemake.params.parameters,
    )
