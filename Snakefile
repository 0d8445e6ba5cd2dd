"""From slide files to a histology volume in MRI space: `snakemake --configfile CONFIG --cores 8`.

The working directory is the study's output folder: paths of results are relative to it, so that the folder can move.
"""

from snakemake.utils import min_version

min_version("9.0")


include: "workflow/rules/common.smk"


workdir: STUDY.output


localrules:
    all,


onstart:
    hold_run(STUDY.output)
    # the jobs inherit it
    os.environ.update(HISTOMRI_COMMAND=command_line())


include: "workflow/rules/demand.smk"
include: "workflow/rules/ingest.smk"
include: "workflow/rules/blockface.smk"
include: "workflow/rules/stack.smk"
include: "workflow/rules/mri.smk"
include: "workflow/rules/resample.smk"
include: "workflow/rules/evaluate.smk"


rule all:
    default_target: True
    input:
        results(),


onsuccess:
    # all its jobs have ended
    forget_runs(STUDY.output)
