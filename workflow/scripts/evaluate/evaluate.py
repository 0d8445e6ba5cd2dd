"""The finished study -> metrics, sections.tsv, landmarks.tsv."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import block_from_dict, section_from_dict
    from histomri.stages.evaluate import EvaluateSettings, evaluate

    evaluate(
        snakemake.params.study,
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        tuple(map(block_from_dict, snakemake.params.blocks)),
        files_of(snakemake.params.block_ids, snakemake.input.placements),
        files_of(snakemake.params.block_ids, snakemake.input.initial),
        files_of(snakemake.params.mri_blocks, snakemake.input.poses),
        Path(snakemake.input.graph),
        Path(snakemake.input.landmarks[0]) if snakemake.input.landmarks else None,
        EvaluateSettings(**snakemake.params.settings),
        Path(snakemake.output.metrics).parent,
        threads=snakemake.threads,
    )
