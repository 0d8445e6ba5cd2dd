"""All blocks: final placements -> the graph of spaces and ITK's transform files."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import block_from_dict, section_from_dict
    from histomri.stages.transforms import publish_transforms

    blocks = tuple(map(block_from_dict, snakemake.params.blocks))
    publish_transforms(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        blocks,
        files_of([b.id for b in blocks], snakemake.input.placements),
        Path(snakemake.output.graph).parent,
    )
