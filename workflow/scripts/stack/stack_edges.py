"""One batch of pairs of sections -> measured edges."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.io.sheets import section_from_dict
    from histomri.stages.stack import StackSettings, measure_edges

    measure_edges(
        tuple(map(section_from_dict, snakemake.params.sections)),
        files_of(snakemake.params.manifest_sections, snakemake.input.manifests),
        [tuple(pair) for pair in snakemake.params.pairs],
        Path(snakemake.output.edges),
        StackSettings(**snakemake.params.settings),
    )
