"""The study, and what rules ask about it: which files a job needs, and what else it depends on."""

import os
import re
import shlex
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from snakemake.exceptions import WorkflowError

from histomri.core import Block, Section
from histomri.core.errors import HistomriError, InputError, Problem
from histomri.io.by_hand import tell_pose
from histomri.io.config import STAGES, Study, default_config, load_study
from histomri.io.fingerprint import code_fingerprint, file_fingerprint
from histomri.io.cluster import forget_runs, record_run
from histomri.io.given import future_problems, given_names, study_folder
from histomri.io.links import link_problems
from histomri.io.lock import hold_job
from histomri.io.lock import hold_run as hold_run_of
from histomri.io.order import order_problems
from histomri.io.placements import fields_file
from histomri.io.resources import PACKAGE
from histomri.io.sheets import block_to_dict, guide_to_dict, section_to_dict
from histomri.kernels.named_stains import stain_problems
from histomri.stages.grids import grid_entry, grid_names, grid_problems

# jobs use the histomri of this process, in an environment of --sdm conda too, which has no histomri of its own; beside an installed one
# lie other packages, and Snakemake makes those known to its jobs itself
if PACKAGE.parent.name == "src":
    shell.prefix(f"export PYTHONPATH={shlex.quote(os.pathsep.join([str(PACKAGE.parent), *filter(None, [os.environ.get('PYTHONPATH')])]))}; ")

SCRIPTS = Path(workflow.basedir) / "workflow" / "scripts"
# what only ingest and blockface read of a section's row; a change of it reaches the later stages through the manifests
SLIDE_COLUMNS = {"file": None, "blockface": None, "channel": None, "pixel_size_mm": None}
# what a person gave to mend a section: only the solve of its stack, and what follows that, reads it
HAND_COLUMNS = {"transform": None, "transform_from": None, "lock": None}
# what ingest does not read
PLACE_COLUMNS = {"position_mm": 0.0, "block": "block", "thickness_mm": None, "status": "ok", "flip": "auto", "rotation_deg": None}
HAND_FILES = ("transform", "lock")
# the keys that the report's methods paragraph names; all of them change results
NAMED_IN_METHODS = [("stack", key) for key in ("reach", "search_px", "fine_px", "alpha")]
NAMED_IN_METHODS += [
    ("mri", key)
    for key in ("rotations", "candidates", "work_px", "neighbours", "affine_sweeps", "deformable_sweeps", "mri_weight")
]
VOLUME_FILES = (".json", ".nii.gz", "_coverage.nii.gz")


# ---------------------------------------------------------------- the study


def empty_study():
    """No sections at all, for `snakemake --lint` without a config."""
    here = Path.cwd()
    return Study("none", None, here, None, (), (), None, (), here, "auto", None, None, default_config())


def find_study():
    """The study of the one config file that the command line names."""
    files = workflow.overwrite_configfiles
    if not files and "--lint" in sys.argv:
        return empty_study()
    if len(files) != 1:
        raise WorkflowError("Name the study's config file: snakemake --configfile CONFIG --cores 8 (one file, found %d)." % len(files))
    if workflow.config_settings.config:
        raise WorkflowError("--config is not read here: write the key into the config file, so that it is there when the study is run again.")
    try:
        study = load_study(files[0])
        if workflow.is_main_process:
            check_files(study)
        else:
            # before Snakemake touches the job's outputs: it may be one of a run that was killed while it waited in a queue
            hold_job(study.output)
        return study
    except HistomriError as error:
        raise WorkflowError(str(error)) from None


def check_files(study):
    """Refuse at once what would stop a run in the middle; `histomri check` says far more."""
    remedy = "correct the path, or set the section's status to missing"
    problems = [
        Problem(f"{study.sections_path}, section {s.id}", f"there is no file {f}", remedy)
        for s in study.sections
        for f in (s.file if s.is_used else None, s.blockface)
        if f and not f.exists()  # an OME-Zarr image is a folder
    ]
    problems += [
        Problem(f"{study.blocks_path}, block {b.id}", f"there is no file {f}", "correct the path")
        for b in study.blocks
        for f in (b.mri, b.mri_mask)
        if f and not f.is_file()
    ]
    problems += future_problems(study)
    problems += link_problems(study.output)
    for what in grid_problems(study.stage("resample")["grids"]):
        problems.append(Problem("config, key resample.grids", what, "give each grid a name of its own"))
    for stain, what, remedy in stain_problems(study.stage("ingest")["stains"]):
        problems.append(Problem(f"config, key ingest.stains.{stain}", what, remedy))
    if study.landmarks and not study.landmarks.is_file():
        problems.append(Problem("config, key landmarks", f"there is no file {study.landmarks}", "correct the path"))
    problems += order_problems(study.stage("stack")["order"], study.sections)
    if problems:
        raise InputError(*problems)


STUDY = find_study()
STACKS = STUDY.stacks
USED = {s.id: s for stack in STACKS.values() for s in stack.used}
BLOCKS = {b.id: b for b in STUDY.blocks}
MRI_BLOCKS = [b for b in BLOCKS if STUDY.has_mri(b)]


def hold_run(folder):
    """Refuse a second run of the study, until this process ends however it ends; on a cluster, note what its jobs are called."""
    try:
        hold_run_of(Path(folder))
        if workflow.executor_plugin.name == "slurm":
            record_run(Path(folder), workflow.scheduler._executor.run_uuid)
    except HistomriError as error:
        raise WorkflowError(str(error)) from None


# ---------------------------------------------------------------- the user's files


def portable(path):
    """A user's file as the jobs see it.

    Where the file and the output folder lie below one folder with the config, it is relative to the output folder, so that the
    whole may move without a rerun; elsewhere it is absolute, so that the study may move while its slides stay.
    """
    config = STUDY.config_path.parent if STUDY.config_path else STUDY.output
    home = Path(os.path.commonpath([config, STUDY.output]))
    if home == Path(home.anchor) or not path.is_relative_to(home):
        return path
    # `..` of a linked output folder leads elsewhere than its name says
    real = (home.resolve() / path.relative_to(home), STUDY.output.resolve())
    return Path(os.path.relpath(*real)) if real[1].is_relative_to(home.resolve()) else path


def portable_files(record, *columns):
    """The section or block with its files as the jobs see them."""
    given = {c: getattr(record, c) for c in columns}
    return replace(record, **{c: portable(f) for c, f in given.items() if f})


@cache
def content(path):
    """What a user's file holds, in short; Snakemake alone would miss a slide that an older file replaced."""
    return file_fingerprint(STUDY.output / path)


def ingest_threads(section):
    """One: a study's many slides keep all cores busy. Two for a file of gigabytes, so that the last one does not keep all waiting."""
    file = USED[section].file
    return 2 if file.is_file() and file.stat().st_size > 1 << 30 else 1


# ---------------------------------------------------------------- params


# stage and name of every rule, as far as the rules are read
CODE_OF = []


def code(stage, rule_name):
    """The logic of a rule, found when a job of it is planned (every job loads all rules and needs one of them)."""
    CODE_OF.append((stage, rule_name))
    return lambda wildcards: code_of(stage, rule_name)


def code_of(stage, rule_name):
    """The same, at once."""
    return code_fingerprint(SCRIPTS / stage / f"{rule_name}.py")


def all_code(wildcards):
    """The logic of every rule, for the provenance."""
    return {f"{stage}/{name}": code_of(stage, name) for stage, name in CODE_OF}


def settings(stage, *left_out):
    """The settings of a stage without those that the rule does not use."""
    return {k: v for k, v in STUDY.stage(stage).items() if k not in left_out}


def only(stage, *names):
    """These settings of a stage."""
    return {name: STUDY.stage(stage)[name] for name in names}


def ingested(section_id):
    """What ingest reads of a section's row, so that another place or face of it makes nothing anew."""
    row = replace(STUDY.section(section_id), **PLACE_COLUMNS, **HAND_COLUMNS, blockface=None, extra={})
    return section_to_dict(portable_files(row, "file"))


def ingest_settings(section_id):
    """The settings of a section's ingestion, of the stains its own alone, so that what is said of another leaves it."""
    found, stain = settings("ingest", "max_memory_mb"), USED[section_id].stain
    return {**found, "stains": {k: v for k, v in found["stains"].items() if k == stain}}


def photographed(block_id):
    """The sections of a block that name a photograph, lost ones too (the block was there all the same), and where they lay."""
    found = [portable_files(s, "blockface") for s in STACKS[block_id].sections if s.blockface]
    return [section_to_dict(Section(s.id, None, s.position_mm, s.block, blockface=s.blockface)) for s in found]


@cache
def rows(block_id=None, extra=False):
    """The rows of a block's sections (or of all), lost ones too, without what only ingest reads and what was given by hand."""
    found = STUDY.sections if block_id is None else STACKS[block_id].sections
    return [section_to_dict(replace(s, **SLIDE_COLUMNS, **HAND_COLUMNS, **({} if extra else {"extra": {}}))) for s in found]


def rows_by_hand(block_id):
    """As `rows`, with the rough transforms and locks."""
    found = [portable_files(s, *HAND_FILES) for s in STACKS[block_id].sections]
    return [section_to_dict(replace(s, **SLIDE_COLUMNS, extra={})) for s in found]


def hand_files(block_id):
    """The rough transforms and locks of a block."""
    found = [portable_files(s, *HAND_FILES) for s in STACKS[block_id].sections if s.is_used]
    locks = [s.lock for s in found if s.lock]
    return [*(s.transform for s in found if s.transform), *locks, *(fields_file(lock) for lock in locks)]


def guides_of(block_id, to_mri):
    """What guides the sections of a block to the MRI, or to each other."""
    return [g for g in STUDY.guides if STUDY.section(g.section).block == block_id and (g.mri_mm is not None) == to_mri]


def guides(block_id, to_mri):
    """The same for the params of a rule."""
    return list(map(guide_to_dict, guides_of(block_id, to_mri)))


def pose_guides(block_id):
    """What guides the block as a whole to its MRI; guides that mend a section or two leave the pose alone."""
    return guides(block_id, to_mri=True) if tell_pose(guides_of(block_id, to_mri=True)) else []


def block_row(block_id):
    """A block's row without what only the search of the pose reads, and without what only the photographs' volume does."""
    row = replace(BLOCKS[block_id], pose=None, mirror="no", blockface_pixel_size_mm=None)
    return block_to_dict(portable_files(row, "mri", "mri_mask"))


def block_row_with_pose(block_id):
    """A block's row without what only the photographs' volume reads."""
    return block_to_dict(portable_files(replace(BLOCKS[block_id], blockface_pixel_size_mm=None), "mri", "mri_mask", "pose"))


def pose_files(block_id):
    """The rough pose of a block, as far as it is there."""
    row = portable_files(BLOCKS[block_id], "pose")
    return [row.pose] if row.pose else []


def block_for_blockface(block_id):
    """A block's row without its MRI, which photographs know nothing of."""
    return block_to_dict(replace(BLOCKS[block_id], mri=None, mri_mask=None, mirror="no", pose=None))


def block_names():
    """The rows of all blocks without anything but their names."""
    return [block_to_dict(Block(b)) for b in BLOCKS]


def block_rows():
    """The rows of all blocks."""
    return [block_row(b) for b in BLOCKS]


# ---------------------------------------------------------------- files of the stages


def manifest(section_id):
    """What stands for an ingested section."""
    return f"ingest/{section_id}/manifest.json"


@cache
def manifests(block_id=None, stain=None):
    """The manifests of a block's used sections (of all), of one stain where it is given."""
    found = [s for s in USED.values() if block_id in (None, s.block) and stain in (None, s.stain)]
    return [manifest(s.id) for s in found]


@cache
def manifest_sections(block_id=None, stain=None):
    """The ids that belong to `manifests`, in its order."""
    return [s.id for s in USED.values() if block_id in (None, s.block) and stain in (None, s.stain)]


@cache
def batches(block_id):
    """The pairs of sections that are compared, in batches of a job each."""
    # not at the top: it loads the numerical libraries, and most jobs plan nothing
    from histomri.stages.stack import plan_pairs

    stack = STUDY.stage("stack")
    return plan_pairs(STACKS[block_id].sections, stack["reach"], stack["batch"], stack["order"])


def batch_pairs(block_id, batch):
    """The pairs of one batch, as lists, as JSON would have them."""
    return [list(pair) for pair in batches(block_id)[int(batch)]]


@cache
def batch_sections(block_id, batch):
    """The sections that a batch compares, in the order of the stack."""
    wanted = {i for pair in batches(block_id)[int(batch)] for i in pair}
    return [s.id for s in STACKS[block_id].sections if s.id in wanted]


def batch_rows(block_id, batch):
    """The rows of the sections that a batch compares."""
    wanted = set(batch_sections(block_id, batch))
    return [row for row in rows(block_id) if row["id"] in wanted]


def edges(block_id):
    """All measured pairs of a block."""
    return [f"stack/{block_id}/edges/{n}.json" for n in range(len(batches(block_id)))]


def blockface_placements(block_id):
    """Where the photographs say that the sections lie; nothing without photographs."""
    return [f"blockface/{block_id}/placements.json"] if STUDY.has_blockface(block_id) else []


def mri_files(block_id):
    """The block's MRI and its mask, as far as they are there."""
    row = portable_files(BLOCKS[block_id], "mri", "mri_mask")
    return [f for f in (row.mri, row.mri_mask) if f]


def final_placements(block_id):
    """The placements that everything after registration uses."""
    return STUDY.final_placements(block_id)


def any_of(values):
    """A wildcard constraint: exactly these values, whatever characters they hold."""
    return "|".join(map(re.escape, sorted(values))) or "(?!)"


def landmarks():
    """The sheet of landmarks, as far as it is there."""
    return [portable(STUDY.landmarks)] if STUDY.landmarks else []


def grids(block_id):
    """The names of the grids that a block's volumes are made on."""
    return grid_names(STUDY.stage("resample")["grids"], STUDY.has_mri(block_id))


def resample_settings(grid):
    """The settings that this grid's volumes depend on, with it alone, so that another grid's change leaves them."""
    entry = grid_entry(STUDY.stage("resample")["grids"], grid)
    unused = ("chunk_px", "block_spacing_mm") if entry == "sections" else ("plane_chunk_px",)
    return {**settings("resample", "max_memory_mb", "max_job_mvox", *unused), "grids": [entry]}


def volume_keys():
    """Block, stain and grid of every volume that is asked for."""
    return [[b, stain, grid] for b in BLOCKS for stain in STUDY.stains(b) for grid in grids(b)]


def volumes():
    """Every volume that is asked for, without its ending, in the order of `volume_keys`."""
    return [f"volumes/{block}/{stain}_in_{grid}" for block, stain, grid in volume_keys()]


@cache
def given():
    """Everything that the user gave, by the names that a record knows it by."""
    return {name: portable(file) for name, file in given_names(STUDY).items()}


def made():
    """What the record says of the results: files, and manifests for the stores behind them."""
    return [
        *manifests(),
        *(f"blockface/{b}/{name}.json" for b in BLOCKS if STUDY.has_blockface(b) for name in ("manifest", "placements")),
        *(f"blockface/{b}/placements.fields.npy" for b in BLOCKS if STUDY.has_blockface(b)),
        *(f"mri/{b}/pose.json" for b in MRI_BLOCKS),
        *(f for b in BLOCKS for p in (f"stack/{b}/placements.json", final_placements(b)) for f in (p, fields_file(p))),
        "transforms/graph.json",
        *(f"{v}{ending}" for v in volumes() for ending in VOLUME_FILES),
        "evaluation/metrics.json",
        "evaluation/sections.tsv",
        "evaluation/landmarks.tsv",
        "report/index.html",
        "report/sections.html",
    ]


def folder_of_study():
    """The config's folder from the output's, None where they share no folder."""
    folder = portable(study_folder(STUDY))
    return None if folder.is_absolute() else folder.as_posix()


def command_line():
    """The command of this run, its paths as a record may tell them: from the checkout, from the output folder, or the name alone."""
    root = Path(workflow.basedir)
    return shlex.join(["snakemake", *(told(word, root) for word in sys.argv[1:])])


def told(word, root):
    """A word of the command line without the machine in it."""
    option, joined, value = word.rpartition("=")
    if not os.path.isabs(value) or not Path(value).exists():
        return word
    path = Path(value)
    within = path.relative_to(root) if path.is_relative_to(root) else portable(path)
    return option + joined + (Path(within.name) if within.is_absolute() else within).as_posix()


def results():
    """The public results, and the manifests that stand for the stores among them."""
    return [
        *(f"sections/{i}.ome.zarr" for i in USED),
        *manifests(),
        *(f"blockface/{b}.ome.zarr" for b in BLOCKS if STUDY.has_blockface(b)),
        "transforms/graph.json",
        "transforms/SHA256SUMS",
        *(f"transforms/{b}" for b in BLOCKS),
        *(f"{v}{ending}" for v in volumes() for ending in (".ome.zarr", *VOLUME_FILES)),
        "evaluation/metrics.json",
        "evaluation/sections.tsv",
        "evaluation/landmarks.tsv",
        "report/index.html",
        "report/sections.html",
        "provenance.json",
    ]


wildcard_constraints:
    section=any_of(USED),
    block=any_of(BLOCKS),
    batch=r"\d+",
    part=r"\d+",
    stain=any_of({s.stain for s in USED.values()}),
    grid=any_of({grid for block, stain, grid in volume_keys()}),
