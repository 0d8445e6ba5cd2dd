"""What the jobs ask of a cluster, from sizes that are known before anything runs (`histomri.stages.demand`)."""

from contextlib import suppress
from math import ceil, prod

from histomri.stages.demand import Size, memory_mb, minutes

# how much larger a slide's pixels are than its file, about; and how many times fewer voxels the block's own grid has than the sections'
COMPRESSED = 12
COARSER = 16
MB = 1 << 20


def file_bytes(path):
    """Bytes of a user's file; of a folder (OME-Zarr) or a file that is not there nothing."""
    return path.stat().st_size if path and path.is_file() else 0


def as_key(spacing_mm):
    """A spacing of one number or three as a cache takes it."""
    return tuple(spacing_mm) if isinstance(spacing_mm, list) else spacing_mm


def resample_parts(block_id, stain, grid):
    """How many jobs fill a volume: by its size as far as it is known beforehand. The result is the same for any number."""
    mvox = expected_mvox(block_id, stain, grid)
    return max(1, ceil(mvox / STUDY.stage("resample")["max_job_mvox"]))


@cache
def mri_mvox(block_id, spacing_mm=None):
    """Millions of voxels of a block's MRI, at its own spacing or another; nothing where there is none that can be read."""
    if not STUDY.has_mri(block_id):
        return 0.0
    # not at the top: it loads nibabel, and most jobs plan nothing
    from histomri.io.nifti import read_geometry

    # one that cannot be read fails in its own job, which says why
    with suppress(HistomriError, OSError):
        grid = read_geometry(STUDY.output / mri_files(block_id)[0])[0]
        return prod((grid if spacing_mm is None else grid.with_spacing(spacing_mm)).shape) / 1e6
    return 0.0


@cache
def expected_mvox(block_id, stain, grid):
    """Millions of voxels that a volume will have: of the MRI's grid exactly, of the sections' own as many as their files may hold."""
    entry = grid_entry(STUDY.stage("resample")["grids"], grid)
    if entry != "sections" and STUDY.has_mri(block_id):
        return mri_mvox(block_id, None if isinstance(entry, str) else as_key(entry["spacing_mm"]))
    pixels_mb = sum(file_bytes(s.file) for s in STACKS[block_id].used if s.stain == stain) * COMPRESSED / 3e6
    # a block's own grid has a quarter of the sections' spacing in plane unless the config says otherwise: far fewer voxels
    return pixels_mb if entry == "sections" else pixels_mb / COARSER


def working_store(w):
    """Where several jobs fill a store."""
    return f"volumes/{w.block}/{w.stain}_in_{w.grid}.filling"


def parts_done(w):
    """What each of those jobs leaves when it is done."""
    parts = range(resample_parts(w.block, w.stain, w.grid))
    return [f"volumes/{w.block}/{w.stain}_in_{w.grid}.part{n}.json" for n in parts]


# ---------------------------------------------------------------- sizes


def section_size(section_id):
    """A slide."""
    return Size(sections=1, file_bytes=file_bytes(USED[section_id].file))


def ingest_kept_mb(section_id):
    """What the ingestion of a slide may keep in memory: no more than the config allows, less where the whole file is small."""
    most, file = STUDY.stage("ingest")["max_memory_mb"], USED[section_id].file
    return min(most, 100 + 100 * file_bytes(file) / MB) if file.is_file() else most


def photographs_size(block_id):
    """The photographs of a block."""
    return Size(sections=len(photographed(block_id)))


def photograph_kept_mb(block_id):
    """What the pixels of its largest photograph take, and their copies."""
    return 60 * max((file_bytes(s.blockface) / MB for s in STACKS[block_id].sections if s.blockface), default=0)


def pairs_size(block_id, batch):
    """A batch of pairs."""
    return Size(sections=len(batch_sections(block_id, batch)))


def block_size(block_id):
    """A block's sections, and its MRI."""
    return Size(sections=len(manifests(block_id)), mvox=mri_mvox(block_id))


def study_size():
    """All sections, and the MRIs."""
    return Size(sections=len(USED), mvox=sum(map(mri_mvox, MRI_BLOCKS)))


def volume_size(w):
    """The sections of a stain and the voxels that one job makes of them."""
    mvox = expected_mvox(w.block, w.stain, w.grid)
    return Size(sections=len(manifests(w.block, w.stain)), mvox=min(mvox, STUDY.stage("resample")["max_job_mvox"]))


def resample_kept_mb():
    """What making a volume may keep in memory."""
    return STUDY.stage("resample")["max_memory_mb"]


def nifti_kept_mb(w):
    """What writing a volume as NIfTI may keep in memory: rows of its chunks, no more than the NIfTI itself."""
    return min(STUDY.stage("resample")["max_nifti_mb"], 4 * expected_mvox(w.block, w.stain, w.grid))
