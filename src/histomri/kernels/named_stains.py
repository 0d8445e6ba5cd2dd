"""Stains by name: which dyes a section holds, and about which colour each has.

The vectors are optical densities in red, green, blue. They are where :func:`histomri.kernels.stains.estimate_colours` starts to
look and what it falls back to; scanners and laboratories differ by 10 to 20 degrees. Sources: R = Ruifrok & Johnston 2001 (*Anal
Quant Cytol Histol* 23:291), L = G. Landini's measurements in ImageJ's Colour Deconvolution. For cresyl violet, thionin and Luxol
fast blue no measured vector was found in print: the Nissl dyes start from hematoxylin's, which is as blue-violet as they are, and
Luxol fast blue, a copper phthalocyanine, from that of Alcian blue, which is another.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Vector = tuple[float, float, float]

HEMATOXYLIN_R: Vector = (0.650, 0.704, 0.286)
HEMATOXYLIN_L: Vector = (0.644, 0.717, 0.267)
EOSIN_R: Vector = (0.072, 0.990, 0.105)
EOSIN_L: Vector = (0.093, 0.954, 0.283)
DAB_R: Vector = (0.268, 0.570, 0.776)
ALCIAN_BLUE_L: Vector = (0.875, 0.458, 0.158)
PAS_L: Vector = (0.175, 0.972, 0.155)
BLACK: Vector = (0.577, 0.577, 0.577)


@dataclass(frozen=True)
class StainKind:
    """The dyes of a way to stain, by name, with their unit vectors of density; none where light comes from the tissue.

    ``structure`` is the dye that shows the tissue whatever else was stained: what ``registration_channel: auto`` takes. Without
    it (or without dyes) that is the mean of all channels.
    """

    names: tuple[str, ...] = ()
    vectors: tuple[Vector, ...] = ()
    structure: str | None = None


def _with_hematoxylin(name: str, vector: Vector, hematoxylin: Vector = HEMATOXYLIN_L) -> StainKind:
    return StainKind(("hematoxylin", name), (hematoxylin, vector), "hematoxylin")


KINDS: dict[str, StainKind] = {
    "hematoxylin-eosin": StainKind(("hematoxylin", "eosin"), (HEMATOXYLIN_L, EOSIN_L)),
    "hematoxylin-dab": _with_hematoxylin("dab", DAB_R, HEMATOXYLIN_R),
    "hematoxylin-eosin-dab": StainKind(("hematoxylin", "eosin", "dab"), (HEMATOXYLIN_R, EOSIN_R, DAB_R), "hematoxylin"),
    "hematoxylin-aec": _with_hematoxylin("aec", (0.274, 0.680, 0.680), HEMATOXYLIN_R),
    "hematoxylin-pas": _with_hematoxylin("pas", PAS_L),
    "hematoxylin-alcian-blue": _with_hematoxylin("alcian-blue", ALCIAN_BLUE_L, (0.553, 0.754, 0.354)),
    "hematoxylin": StainKind(("hematoxylin",), (HEMATOXYLIN_L,)),
    "dab": StainKind(("dab",), (DAB_R,)),
    "nissl": StainKind(("nissl",), (HEMATOXYLIN_L,)),
    "luxol-fast-blue": StainKind(("luxol-fast-blue",), (ALCIAN_BLUE_L,)),
    "luxol-fast-blue-nissl": StainKind(("luxol-fast-blue", "nissl"), (ALCIAN_BLUE_L, HEMATOXYLIN_L)),
    "luxol-fast-blue-eosin": StainKind(("luxol-fast-blue", "eosin"), (ALCIAN_BLUE_L, EOSIN_L)),
    "luxol-fast-blue-pas": StainKind(("luxol-fast-blue", "pas"), (ALCIAN_BLUE_L, PAS_L)),
    "masson-trichrome": StainKind(("methyl-blue", "ponceau"), ((0.800, 0.591, 0.105), (0.100, 0.737, 0.668))),
    "giemsa": StainKind(("methylene-blue", "eosin"), ((0.835, 0.514, 0.196), EOSIN_L)),
    "silver": StainKind(("silver",), (BLACK,)),
    "fluorescence": StainKind(),
}

ALIASES: dict[str, str] = {
    **dict.fromkeys(("he", "hande", "hematoxylineosin", "haematoxylineosin", "hematoxylinandeosin"), "hematoxylin-eosin"),
    **dict.fromkeys(("hdab", "hematoxylindab", "dabh", "ihc", "ihcdab"), "hematoxylin-dab"),
    **dict.fromkeys(("hedab",), "hematoxylin-eosin-dab"),
    **dict.fromkeys(("haec", "aec"), "hematoxylin-aec"),
    **dict.fromkeys(("hpas", "pas", "pash", "periodicacidschiff"), "hematoxylin-pas"),
    **dict.fromkeys(("hematoxylin", "haematoxylin"), "hematoxylin"),
    **dict.fromkeys(("nissl", "cresylviolet", "cv", "thionin", "thionine", "toluidineblue"), "nissl"),
    **dict.fromkeys(("lfb", "luxol", "luxolfastblue", "kluver"), "luxol-fast-blue"),
    **dict.fromkeys(("lfbcv", "lfbnissl", "luxolfastbluecresylviolet", "kluverbarrera"), "luxol-fast-blue-nissl"),
    **dict.fromkeys(("lfbhe", "lfbeosin"), "luxol-fast-blue-eosin"),
    **dict.fromkeys(("lfbpas",), "luxol-fast-blue-pas"),
    **dict.fromkeys(("masson", "trichrome", "massontrichrome"), "masson-trichrome"),
    **dict.fromkeys(("silver", "merker", "gallyas", "bielschowsky", "bodian"), "silver"),
    **dict.fromkeys(("dapi", "hoechst", "fluorescence", "fluo", "if"), "fluorescence"),
}

# sine of the angle of about 3 degrees
LEAST_INDEPENDENT = 0.05
NUCLEI = ("dapi", "hoechst", "draq5", "nuclei", "nuclear", "sytox", "neurotrace")


def kind_of(stain: str) -> str | None:
    """The kind that a stain's name in the sheet stands for (``H&E``, ``h_e``, ``Cresyl Violet``); None for an unknown name.

    >>> kind_of("H&E"), kind_of("LFB+CV"), kind_of("Iba1")
    ('hematoxylin-eosin', 'luxol-fast-blue-nissl', None)
    """
    plain = re.sub(r"[^a-z0-9]", "", stain.lower().replace("ü", "u"))
    by_kind = {re.sub(r"[^a-z0-9]", "", kind): kind for kind in KINDS}
    return ALIASES.get(plain) or by_kind.get(plain)


def nuclear_channel(channels: tuple[str, ...]) -> str | None:
    """The channel of a fluorescence image that shows the nuclei, by its name."""
    return next((c for c in channels if any(n in c.lower().replace(" ", "") for n in NUCLEI)), None)


def stain_problems(entries: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """What is wrong with the config's ``ingest.stains``: the stain, what, and what to do."""
    found = []
    for stain, entry in entries.items():
        vectors, names = entry.get("vectors") or [], entry.get("names") or []
        if names and len(names) != len(vectors):
            found.append((stain, f"{len(vectors)} vectors have {len(names)} names", "give one name for each vector"))
        if vectors and not _are_independent(vectors):
            what = f"the vectors {vectors} are not independent: the stains could not be told apart"
            found.append((stain, what, "give each stain a direction of its own, none of them 0"))
    return found


def _are_independent(vectors: list[list[float]]) -> bool:
    import numpy as np

    rows = np.asarray(vectors, float)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return bool(length.min() > 0 and np.linalg.matrix_rank(rows / length, tol=LEAST_INDEPENDENT) == len(rows))
