"""stack: pairs of sections in batches, then one consistent placement of all sections of a block."""


rule stack_edges:
    input:
        manifests=lambda w: [manifest(i) for i in batch_sections(w.block, w.batch)],
    output:
        edges="stack/{block}/edges/{batch}.json",
    params:
        sections=lambda w: batch_rows(w.block, w.batch),
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
        mem_mb=lambda w, attempt: memory_mb("stack_edges", pairs_size(w.block, w.batch), attempt=attempt),
        runtime=lambda w, attempt: minutes("stack_edges", pairs_size(w.block, w.batch), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/stack/stack_edges.py"


rule stack_order:
    input:
        manifests=lambda w: manifests(w.block),
        edges=lambda w: edges(w.block),
    output:
        remarks="stack/{block}/order.json",
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block),
        settings=only("stack", "search_px", "fine_px", "strays", "order"),
        code=code("stack", "stack_order"),
    log:
        "logs/stack/{block}/order.log",
    benchmark:
        "benchmarks/stack/{block}/order.tsv"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: memory_mb("stack_order", block_size(w.block), attempt=attempt),
        runtime=lambda w, attempt: minutes("stack_order", block_size(w.block), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/stack/stack_order.py"


rule stack_solve:
    input:
        manifests=lambda w: manifests(w.block),
        edges=lambda w: edges(w.block),
        blockface=lambda w: blockface_placements(w.block),
        remarks="stack/{block}/order.json",
        by_hand=lambda w: hand_files(w.block),
    output:
        placements="stack/{block}/placements.json",
        fields="stack/{block}/placements.fields.npy",
    params:
        sections=lambda w: rows_by_hand(w.block),
        manifest_sections=lambda w: manifest_sections(w.block),
        guides=lambda w: guides(w.block, to_mri=False),
        by_hand=lambda w: [content(f) for f in hand_files(w.block)],
        settings=only("stack", "alpha", "search_px", "fine_px", "min_tissue", "reach", "order"),
        code=code("stack", "stack_solve"),
    log:
        "logs/stack/{block}/solve.log",
    benchmark:
        "benchmarks/stack/{block}/solve.tsv"
    threads: 4
    resources:
        mem_mb=lambda w, attempt: memory_mb("stack_solve", block_size(w.block), attempt=attempt),
        runtime=lambda w, attempt: minutes("stack_solve", block_size(w.block), attempt),
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
        mem_mb=lambda w, attempt: memory_mb("stack_deform", block_size(w.block), attempt=attempt),
        runtime=lambda w, attempt: minutes("stack_deform", block_size(w.block), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/stack/stack_deform.py"
