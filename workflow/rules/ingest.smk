"""ingest: a slide file becomes a pyramid, a tissue mask and a manifest that stands for both."""


rule ingest_section:
    input:
        slide=lambda w: portable(USED[w.section].file),
    output:
        store=directory("sections/{section}.ome.zarr"),
        manifest="ingest/{section}/manifest.json",
    params:
        section=lambda w: ingested(w.section),
        slide=lambda w: content(portable(USED[w.section].file)),
        pixel_size_mm=STUDY.pixel_size_mm,
        settings=lambda w: ingest_settings(w.section),
        code=code("ingest", "ingest_section"),
    log:
        "logs/ingest/{section}.log",
    benchmark:
        "benchmarks/ingest/{section}.tsv"
    threads: lambda w: ingest_threads(w.section)
    resources:
        mem_mb=lambda w, attempt: memory_mb("ingest_section", section_size(w.section), ingest_kept_mb(w.section), attempt=attempt),
        # not among the params: it changes no result
        max_memory_mb=STUDY.stage("ingest")["max_memory_mb"],
        runtime=lambda w, attempt: minutes("ingest_section", section_size(w.section), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/ingest/ingest_section.py"
