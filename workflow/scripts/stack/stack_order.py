"""One block: measured edges -> what the images say against the order in the sheet."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import section_from_dict
    from histomri.stages.order import check_order
    from histomri.stages.stack import StackSettings

    check_order(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        [Path(p) for p in snakemake.input.edges],
        Path(snakemake.output.remarks),
        StackSettings(**snakemake.params.settings),
    )
