"""resample: the sections of a stain, through the whole chain in one interpolation, onto a grid."""


rule resample_volume:
    input:
        manifests=lambda w: manifests(w.block, w.stain),
        placements=lambda w: final_placements(w.block),
        mri=lambda w: mri_files(w.block)[:1],
    output:
        store=directory("volumes/{block}/{stain}_in_{grid}.ome.zarr"),
        nifti="volumes/{block}/{stain}_in_{grid}.nii.gz",
        coverage="volumes/{block}/{stain}_in_{grid}_coverage.nii.gz",
        manifest="volumes/{block}/{stain}_in_{grid}.json",
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block, w.stain),
        block=lambda w: block_row(w.block),
        mri=lambda w: [content(f) for f in mri_files(w.block)[:1]],
        settings=lambda w: resample_settings(w.grid),
        code=code("resample", "resample_volume"),
    log:
        "logs/resample/{block}/{stain}_in_{grid}.log",
    benchmark:
        "benchmarks/resample/{block}/{stain}_in_{grid}.tsv"
    threads: 8
    resources:
        mem_mb=lambda w, attempt: grown(attempt, 1500 + STUDY.stage("resample")["max_memory_mb"]),
        # not among the params: it changes no result
        max_memory_mb=STUDY.stage("resample")["max_memory_mb"],
        runtime=lambda w: 120 + 2 * len(manifests(w.block, w.stain)),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/resample/resample_volume.py"
