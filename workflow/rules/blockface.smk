"""blockface: photographs of the block become a calibrated volume, and each section finds its own photograph."""


rule blockface_volume:
    input:
        photographs=lambda w: [s["blockface"] for s in photographed(w.block)],
    output:
        store=directory("blockface/{block}.ome.zarr"),
        manifest="blockface/{block}/manifest.json",
    params:
        sections=lambda w: photographed(w.block),
        block=lambda w: block_for_blockface(w.block),
        photographs=lambda w: [content(s["blockface"]) for s in photographed(w.block)],
        settings=only("blockface", "max_photograph_px", "align_px", "max_motion_mm", "even_light", "surface_threshold", "chunk_px", "codec"),
        code=code("blockface", "blockface_volume"),
    log:
        "logs/blockface/{block}/volume.log",
    benchmark:
        "benchmarks/blockface/{block}/volume.tsv"
    threads: 8
    resources:
        mem_mb=lambda w, attempt: memory_mb("blockface_volume", photographs_size(w.block), photograph_kept_mb(w.block), attempt=attempt),
        runtime=lambda w, attempt: minutes("blockface_volume", photographs_size(w.block), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/blockface/blockface_volume.py"


rule blockface_place:
    input:
        manifests=lambda w: manifests(w.block),
        blockface="blockface/{block}/manifest.json",
    output:
        placements="blockface/{block}/placements.json",
        fields="blockface/{block}/placements.fields.npy",
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block),
        settings=only("blockface", "search_px", "fine_px", "min_score", "deformable", "stiffness"),
        code=code("blockface", "blockface_place"),
    log:
        "logs/blockface/{block}/place.log",
    benchmark:
        "benchmarks/blockface/{block}/place.tsv"
    threads: 8
    resources:
        mem_mb=lambda w, attempt: memory_mb("blockface_place", block_size(w.block), attempt=attempt),
        runtime=lambda w, attempt: minutes("blockface_place", block_size(w.block), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/blockface/blockface_place.py"
