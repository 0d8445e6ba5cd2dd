"""One block: measured edges (and the photographs' placements) -> placements."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import guide_from_dict, section_from_dict
    from histomri.stages.stack import StackSettings, solve

    solve(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        [Path(p) for p in snakemake.input.edges],
        Path(snakemake.output.placements),
        StackSettings(**snakemake.params.settings),
        blockface_placements=Path(snakemake.input.blockface[0]) if snakemake.input.blockface else None,
        remarks=Path(snakemake.input.remarks),
        guides=tuple(map(guide_from_dict, snakemake.params.guides)),
    )
