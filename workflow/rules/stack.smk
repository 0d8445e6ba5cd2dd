"""stack: pairs of sections in batches, then one consistent placement of all sections of a block."""


rule stack_edges:
    input:
        manifests=lambda w: [manifest(i) for i in batch_sections(w.block, w.batch)],
    output:
        edges="stack/{block}/edges/{batch}.json",
    params:
        sections=lambda w: [r for r in rows(w.block) if r["id"] in batch_sections(w.block, w.batch)],
        manifest_sections=lambda w: batch_sections(w.block, w.batch),
        pairs=lambda w: batch_pairs(w.block, w.batch),
        # reach and batch are in the pairs already
        settings=only("stack", "search_px", "fine_px", "hint_deg"),
        code=code("stack", "stack_edges"),
    log:
        "logs/stack/{block}/edges/{batch}.log",
    benchmark:
        "benchmarks/stack/{block}/edges/{batch}.tsv"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: grown(attempt, 1500, 50, len(batch_sections(w.block, w.batch))),
        runtime=lambda w: 30 + 2 * len(batch_pairs(w.block, w.batch)),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/stack/stack_edges.py"


rule stack_solve:
    input:
        manifests=lambda w: manifests(w.block),
        edges=lambda w: edges(w.block),
        blockface=lambda w: blockface_placements(w.block),
    output:
        placements="stack/{block}/placements.json",
        fields="stack/{block}/placements.fields.npy",
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block),
        settings=only("stack", "alpha", "search_px", "min_tissue"),
        code=code("stack", "stack_solve"),
    log:
        "logs/stack/{block}/solve.log",
    benchmark:
        "benchmarks/stack/{block}/solve.tsv"
    threads: 4
    resources:
        mem_mb=lambda w, attempt: grown(attempt, 2000, 10, len(manifests(w.block))),
        runtime=lambda w: 30 + len(manifests(w.block)),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/stack/stack_solve.py"


# only for blocks without an MRI, which shows each section its place
rule stack_deform:
    input:
        manifests=lambda w: manifests(w.block),
        placements="stack/{block}/placements.json",
        fields="stack/{block}/placements.fields.npy",
    output:
        placements="stack/{block}/deformed.json",
        fields="stack/{block}/deformed.fields.npy",
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block),
        settings=only("stack", "affine_sweeps", "deformable_sweeps", "work_px", "shape_sections"),
        code=code("stack", "stack_deform"),
    log:
        "logs/stack/{block}/deform.log",
    benchmark:
        "benchmarks/stack/{block}/deform.tsv"
    threads: 2
    resources:
        mem_mb=lambda w, attempt: grown(attempt, 2000, 10, len(manifests(w.block))),
        runtime=lambda w: 60 + len(manifests(w.block)),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/stack/stack_deform.py"
