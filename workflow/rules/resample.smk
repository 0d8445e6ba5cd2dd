"""resample: the sections of a stain, through the whole chain in one interpolation, onto a grid."""


# A volume of more than max_job_mvox: one job makes the empty store, several fill chunks that are their own, resample_volume ends it.
rule resample_begin:
    input:
        manifests=lambda w: manifests(w.block, w.stain),
        placements=lambda w: final_placements(w.block),
        mri=lambda w: mri_files(w.block)[:1],
    output:
        working=temp(directory("volumes/{block}/{stain}_in_{grid}.filling")),
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block, w.stain),
        block=lambda w: block_row(w.block),
        mri=lambda w: [content(f) for f in mri_files(w.block)[:1]],
        settings=lambda w: resample_settings(w.grid),
        code=code("resample", "resample_begin"),
    log:
        "logs/resample/{block}/{stain}_in_{grid}.begin.log",
    benchmark:
        "benchmarks/resample/{block}/{stain}_in_{grid}.begin.tsv"
    threads: 1
    resources:
        mem_mb=lambda w, attempt: memory_mb("resample_begin", volume_size(w), attempt=attempt),
        max_memory_mb=STUDY.stage("resample")["max_memory_mb"],
        runtime=lambda w, attempt: minutes("resample_begin", volume_size(w), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/resample/resample_begin.py"


rule resample_part:
    input:
        manifests=lambda w: manifests(w.block, w.stain),
        placements=lambda w: final_placements(w.block),
        mri=lambda w: mri_files(w.block)[:1],
        working="volumes/{block}/{stain}_in_{grid}.filling",
    output:
        done=temp("volumes/{block}/{stain}_in_{grid}.part{part}.json"),
    params:
        sections=lambda w: rows(w.block),
        manifest_sections=lambda w: manifest_sections(w.block, w.stain),
        block=lambda w: block_row(w.block),
        mri=lambda w: [content(f) for f in mri_files(w.block)[:1]],
        settings=lambda w: resample_settings(w.grid),
        parts=lambda w: resample_parts(w.block, w.stain, w.grid),
        code=code("resample", "resample_part"),
    log:
        "logs/resample/{block}/{stain}_in_{grid}.part{part}.log",
    benchmark:
        "benchmarks/resample/{block}/{stain}_in_{grid}.part{part}.tsv"
    threads: 8
    resources:
        mem_mb=lambda w, attempt: memory_mb("resample_part", volume_size(w), resample_kept_mb(), attempt=attempt),
        max_memory_mb=STUDY.stage("resample")["max_memory_mb"],
        runtime=lambda w, attempt: minutes("resample_part", volume_size(w), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/resample/resample_part.py"


rule resample_volume:
    input:
        manifests=lambda w: manifests(w.block, w.stain),
        placements=lambda w: final_placements(w.block),
        mri=lambda w: mri_files(w.block)[:1],
        # where the volume outgrows a job
        working=lambda w: working_store(w) if resample_parts(w.block, w.stain, w.grid) > 1 else [],
        parts=lambda w: parts_done(w) if resample_parts(w.block, w.stain, w.grid) > 1 else [],
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
        mem_mb=lambda w, attempt: memory_mb("resample_volume", volume_size(w), resample_kept_mb() + nifti_kept_mb(w), attempt=attempt),
        # not among the params: it changes no result
        max_memory_mb=STUDY.stage("resample")["max_memory_mb"],
        runtime=lambda w, attempt: minutes("resample_volume", volume_size(w), attempt),
    conda:
        "../../envs/histomri.yaml"
    script:
        "../scripts/resample/resample_volume.py"
