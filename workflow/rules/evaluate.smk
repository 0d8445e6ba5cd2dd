"""evaluate: numbers, flags with reasons, the report, and what everything came from."""


rule evaluate:
    input:
        manifests=lambda w: manifests(),
        placements=[final_placements(b) for b in BLOCKS],
        initial=[f"stack/{b}/placements.json" for b in BLOCKS],
        poses=[f"mri/{b}/pose.json" for b in MRI_BLOCKS],
        graph="transforms/graph.json",
        mri=[f for b in MRI_BLOCKS for f in mri_files(b)],
        landmarks=landmarks(),
    output:
        metrics="evaluation/metrics.json",
        sections="evaluation/sections.tsv",
        landmarks="evaluation/landmarks.tsv",
    params:
        study=lambda w: STUDY.name,
        sections=lambda w: rows(extra=True),
        manifest_sections=lambda w: manifest_sections(),
        blocks=block_rows(),
        block_ids=list(BLOCKS),
        mri_blocks=MRI_BLOCKS,
        landmarks=lambda w: [content(f) for f in landmarks()],
        mri=lambda w: [content(f) for b in MRI_BLOCKS for f in mri_files(b)],
        settings=settings("evaluate", "report_pixels", "report_max_mb"),
        code=code("evaluate", "evaluate"),
    log:
        "logs/evaluate/evaluate.log",
    benchmark:
        "benchmarks/evaluate/evaluate.tsv"
    threads: 8
    resources:
        mem_mb=lambda w, attempt: memory_mb("evaluate", study_size(), attempt=attempt),
        runtime=lambda w, attempt: minutes("evaluate", study_size(), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/evaluate/evaluate.py"


rule report:
    input:
        manifests=lambda w: manifests(),
        placements=[final_placements(b) for b in BLOCKS],
        mri=[f for b in MRI_BLOCKS for f in mri_files(b)],
        volumes=[f"{v}.json" for v in volumes()],
        niftis=[f"{v}.nii.gz" for v in volumes()],
        poses=[f"mri/{b}/pose.png" for b in MRI_BLOCKS],
        evaluation=["evaluation/metrics.json", "evaluation/sections.tsv", "evaluation/landmarks.tsv"],
    output:
        report="report/index.html",
        sheets="report/sections.html",
    params:
        study=lambda w: STUDY.name,
        sections=lambda w: rows(),
        manifest_sections=lambda w: manifest_sections(),
        blocks=block_rows(),
        block_ids=list(BLOCKS),
        volumes=volume_keys(),
        mri_blocks=MRI_BLOCKS,
        settings=only("evaluate", "spacing_mm", "max_pixels", "report_pixels", "report_max_mb"),
        parameters={f"{stage}.{key}": STUDY.stage(stage)[key] for stage, key in NAMED_IN_METHODS},
        code=code("evaluate", "report"),
    log:
        "logs/evaluate/report.log",
    benchmark:
        "benchmarks/evaluate/report.tsv"
    threads: 4
    resources:
        mem_mb=lambda w, attempt: memory_mb("report", study_size(), attempt=attempt),
        runtime=lambda w, attempt: minutes("report", study_size(), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/evaluate/report.py"


rule provenance:
    input:
        given=lambda w: list(given().values()),
        made=lambda w: made(),
    output:
        provenance="provenance.json",
    params:
        study=lambda w: STUDY.name,
        config=STUDY.config,
        names=lambda w: list(given()),
        study_folder=lambda w: folder_of_study(),
        rules=all_code,
        # not among the inputs: a folder has no checksum, and a copied one would pass for a new one
        folders=[f"transforms/{b}" for b in BLOCKS],
        code=code("evaluate", "provenance"),
    log:
        "logs/evaluate/provenance.log",
    benchmark:
        "benchmarks/evaluate/provenance.tsv"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: memory_mb("provenance", study_size(), attempt=attempt),
        runtime=lambda w, attempt: minutes("provenance", study_size(), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/evaluate/provenance.py"
