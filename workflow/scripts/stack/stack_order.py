"""One block: measured edges -> what the images say against the order in the sheet, or the order itself where it is unknown."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.order import UNKNOWN
    from histomri.io.sheets import section_from_dict
    from histomri.stages.order import check_order, seriate_sections
    from histomri.stages.stack import StackSettings

    settings = StackSettings(**snakemake.params.settings)
    do = seriate_sections if settings.order == UNKNOWN else check_order
    do(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        [Path(p) for p in snakemake.input.edges],
        Path(snakemake.output.remarks),
        settings,
    )
