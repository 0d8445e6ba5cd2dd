"""mri: the pose of the block in its MRI, each section to its plane of the MRI, and the transforms for everybody else."""


rule mri_pose:
    input:
        manifests=lambda w: manifests(w.block),
        placements="stack/{block}/placements.json",
        mri=lambda w: mri_files(w.block),
        by_hand=lambda w: pose_files(w.block),
    output:
        pose="mri/{block}/pose.json",
        pictures="mri/{block}/pose.png",
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block),
        block=lambda w: block_row_with_pose(w.block),
        guides=lambda w: pose_guides(w.block),
        mri=lambda w: [content(f) for f in mri_files(w.block)],
        by_hand=lambda w: [content(f) for f in pose_files(w.block)],
        settings=only("mri", "rotations", "candidates", "min_confidence", "work_px", "volume_px", "max_gap_mm"),
        code=code("mri", "mri_pose"),
    log:
        "logs/mri/{block}/pose.log",
    benchmark:
        "benchmarks/mri/{block}/pose.tsv"
    threads: 8
    resources:
        mem_mb=lambda w, attempt: memory_mb("mri_pose", block_size(w.block), attempt=attempt),
        runtime=lambda w, attempt: minutes("mri_pose", block_size(w.block), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/mri/mri_pose.py"


rule mri_refine:
    input:
        manifests=lambda w: manifests(w.block),
        placements="stack/{block}/placements.json",
        pose="mri/{block}/pose.json",
        mri=lambda w: mri_files(w.block),
    output:
        placements="mri/{block}/refined.json",
        fields="mri/{block}/refined.fields.npy",
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block),
        block=lambda w: block_row(w.block),
        guides=lambda w: guides(w.block, to_mri=True),
        mri=lambda w: [content(f) for f in mri_files(w.block)],
        settings=settings("mri", "rotations", "candidates", "min_confidence"),
        code=code("mri", "mri_refine"),
    log:
        "logs/mri/{block}/refine.log",
    benchmark:
        "benchmarks/mri/{block}/refine.tsv"
    threads: 8
    resources:
        mem_mb=lambda w, attempt: memory_mb("mri_refine", block_size(w.block), attempt=attempt),
        runtime=lambda w, attempt: minutes("mri_refine", block_size(w.block), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/mri/mri_refine.py"


rule mri_verify:
    input:
        manifests=lambda w: manifests(w.block),
        placements="mri/{block}/refined.json",
        fields="mri/{block}/refined.fields.npy",
        mri=lambda w: mri_files(w.block),
    output:
        placements="mri/{block}/placements.json",
        fields="mri/{block}/placements.fields.npy",
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block),
        block=lambda w: block_row(w.block),
        mri=lambda w: [content(f) for f in mri_files(w.block)],
        settings=only("mri", "work_px"),
        code=code("mri", "mri_verify"),
    log:
        "logs/mri/{block}/verify.log",
    benchmark:
        "benchmarks/mri/{block}/verify.tsv"
    threads: 8
    resources:
        mem_mb=lambda w, attempt: memory_mb("mri_verify", block_size(w.block), attempt=attempt),
        runtime=lambda w, attempt: minutes("mri_verify", block_size(w.block), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/mri/mri_verify.py"


rule mri_transforms:
    input:
        manifests=lambda w: manifests(),
        placements=[final_placements(b) for b in BLOCKS],
    output:
        graph="transforms/graph.json",
        sums="transforms/SHA256SUMS",
        blocks=[directory(f"transforms/{b}") for b in BLOCKS],
    params:
        sections=lambda w: rows(),
        manifest_sections=lambda w: manifest_sections(),
        blocks=block_names(),
        code=code("mri", "mri_transforms"),
    log:
        "logs/mri/transforms.log",
    benchmark:
        "benchmarks/mri/transforms.tsv"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: memory_mb("mri_transforms", study_size(), attempt=attempt),
        runtime=lambda w, attempt: minutes("mri_transforms", study_size(), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/mri/mri_transforms.py"
