"""One block: photographs -> calibrated volume, manifest."""

from pathlib import Path

from histomri.stages.adapter import job

with job(snakemake):
    from histomri.io.sheets import block_from_dict, section_from_dict
    from histomri.stages.blockface import BlockfaceSettings, build_volume

    build_volume(
        tuple(map(section_from_dict, snakemake.params.sections)),
        block_from_dict(snakemake.params.block),
        Path(snakemake.output.store),
        Path(snakemake.output.manifest),
        BlockfaceSettings(**snakemake.params.settings),
    )
