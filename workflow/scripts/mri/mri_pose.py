"""One block: its sections, stacked, and its MRI -> pose."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import block_from_dict, guide_from_dict, section_from_dict
    from histomri.stages.mri import MriSettings, find_pose

    find_pose(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        block_from_dict(snakemake.params.block),
        Path(snakemake.input.placements),
        Path(snakemake.output.pose),
        MriSettings(**snakemake.params.settings),
        tuple(map(guide_from_dict, snakemake.params.guides)),
    )
