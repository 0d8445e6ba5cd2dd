"""One block: each section onto its own photograph -> placements."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import section_from_dict
    from histomri.stages.blockface import BlockfaceSettings, place_sections

    place_sections(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        Path(snakemake.input.blockface),
        Path(snakemake.output.placements),
        BlockfaceSettings(**snakemake.params.settings),
    )
