"""Everything given and everything made -> provenance.json."""

from pathlib import Path

from histomri.stages.adapter import files_of, job

with job(snakemake):
    from histomri.stages.evaluate import write_provenance

    write_provenance(
        snakemake.params.study,
        snakemake.params.config,
        files_of(snakemake.params.names, snakemake.input.given),
        [Path(f) for f in (*snakemake.input.made, *snakemake.params.folders)],
        Path(snakemake.output.provenance),
        threads=snakemake.threads,
        study_folder=snakemake.params.study_folder,
        code=snakemake.params.rules,
    )
