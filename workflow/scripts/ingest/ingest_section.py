"""One section: slide file -> store, manifest."""

from pathlib import Path

from histomri.stages.adapter import job

with job(snakemake):
    from histomri.io.sheets import section_from_dict
    from histomri.stages.ingest import IngestSettings, ingest_section

    ingest_section(
        section_from_dict(snakemake.params.section),
        Path(snakemake.output.store),
        Path(snakemake.output.manifest),
        IngestSettings(**snakemake.params.settings, max_memory_mb=snakemake.resources.max_memory_mb),
        pixel_size_mm=snakemake.params.pixel_size_mm,
        threads=snakemake.threads,
    )
