"""The joint solve of a stack: exact where the pairs are, and not led astray by those that are not."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from synthetic import apart, rigid

from histomri.registration.mirror_likeness import least_lead
from histomri.registration.section_graph import FLIP, Edge, edge_cost, edge_variance, inverse, null_threshold, solve_stack
from histomri.transforms.placement import DOUBTFUL

SPACING = 0.5
Matrix = np.ndarray
Sections = dict[str, tuple[np.ndarray, bool | None]]


def stack_of(n: int, seed: int = 0, mirrored: float = 0.3) -> tuple[dict[str, Matrix], Sections]:
    """True ``block_to_section`` and (centroid, declared face) of sections s0, s1, ...: any angle, some mirrored."""
    random = np.random.default_rng(seed)
    flips = random.permutation(n) < mirrored * n
    truth, sections = {}, {}
    for i in range(n):
        shift = tuple(random.uniform(5, 15, 2))
        truth[f"s{i}"] = rigid(random.uniform(0, 360), bool(flips[i]), shift)
        sections[f"s{i}"] = (np.array(shift) + random.normal(size=2) * 0.2, None)
    return truth, sections


def edge(truth: dict[str, Matrix], i: int, j: int, score: float = 0.6, wrong: Matrix | None = None, rank: int = 0) -> Edge:
    """The true pair of sections i and j, or one that is off by ``wrong``."""
    matrix = truth[f"s{j}"] @ (np.eye(3) if wrong is None else wrong) @ np.linalg.inv(truth[f"s{i}"])
    null = 0.05 + 0.03 * np.sin(7.0 * i + 3.0 * j + rank)
    return Edge(f"s{i}", f"s{j}", matrix, score, score - null, null, np.full((3, 3), np.nan), abs(i - j) * SPACING)


def all_edges(truth: dict[str, Matrix], reach: int = 3) -> list[Edge]:
    n = len(truth)
    return [edge(truth, i, j) for i in range(n) for j in range(i + 1, min(n, i + 1 + reach))]


def errors(found: dict[str, Matrix], truth: dict[str, Matrix], reference: str) -> dict[str, float]:
    """Rms distance in mm of each section from its true place relative to ``reference``: the block's own frame is free."""
    gauge = np.linalg.inv(truth[reference]) @ found[reference]
    return {n: apart(np.linalg.inv(found[n]), np.linalg.inv(truth[n] @ gauge), 3.0) for n in found}


def test_mirrored_section_or_not_noiseless_pairs_give_the_exact_stack() -> None:
    truth, sections = stack_of(20)
    solution = solve_stack(all_edges(truth), sections, SPACING)
    assert set(solution.block_to_section) == set(truth)
    assert max(errors(solution.block_to_section, truth, "s7").values()) < 1e-6
    assert max(solution.misfit_mm.values()) < 1e-6
    assert solution.accepted == len(all_edges(truth))


@pytest.mark.parametrize("seed", range(4))
def test_a_fifth_of_gross_errors_moves_nothing(seed: int) -> None:
    truth, sections = stack_of(40, seed)
    random = np.random.default_rng(seed)
    edges = all_edges(truth)
    for k in random.permutation(len(edges))[: len(edges) // 5]:
        i, j = int(edges[k].fixed[1:]), int(edges[k].moving[1:])
        wrong = rigid(random.uniform(30, 330), False, tuple(random.uniform(-5, 5, 2)))
        edges[k] = edge(truth, i, j, random.uniform(0.3, 0.6), wrong)  # nearly as high as the true pairs
    assert min(e.score for e in edges) > null_threshold(edges), "the errors must pass the threshold, or nothing is tested"
    solution = solve_stack(edges, sections, SPACING)
    assert max(errors(solution.block_to_section, truth, "s20").values()) < 0.02


def test_pairs_on_the_wrong_face_turn_nothing_over() -> None:
    truth, sections = stack_of(30, 5)
    random = np.random.default_rng(5)
    edges = all_edges(truth)
    for k in random.permutation(len(edges))[: len(edges) // 5]:
        i, j = int(edges[k].fixed[1:]), int(edges[k].moving[1:])
        edges[k] = edge(truth, i, j, 0.4, rigid(random.uniform(0, 360), True, (1.0, 2.0)))
    solution = solve_stack(edges, sections, SPACING)
    assert max(errors(solution.block_to_section, truth, "s15").values()) < 0.02


def test_noise_averages_out_instead_of_adding_up() -> None:
    """With a reach of three, each section has up to six pairs; a chain would use one."""
    truth, sections = stack_of(40, 2)
    random = np.random.default_rng(2)
    jitter = lambda: rigid(random.normal() * 1.0, False, tuple(random.normal(size=2) * 0.05))  # noqa: E731
    noisy = [edge(truth, int(e.fixed[1:]), int(e.moving[1:]), 0.6, jitter()) for e in all_edges(truth)]
    chain = [e for e in noisy if e.distance_mm == SPACING]
    joint, single = (solve_stack(e, sections, SPACING).block_to_section for e in (noisy, chain))
    steps = [f"s{i}" for i in range(40)]

    def roughness(found: dict[str, Matrix]) -> float:
        return float(np.mean([errors({b: found[b], a: found[a]}, truth, a)[b] for a, b in pairwise(steps)]))

    assert roughness(joint) < 0.8 * roughness(single)


def test_a_bad_section_is_a_leaf_and_never_a_bridge() -> None:
    truth, sections = stack_of(15, 3)
    random = np.random.default_rng(3)
    edges = []
    for e in all_edges(truth):
        i, j = int(e.fixed[1:]), int(e.moving[1:])
        wrong = rigid(random.uniform(40, 320), False, tuple(random.uniform(-4, 4, 2)))
        edges.append(edge(truth, i, j, 0.2, wrong) if 7 in (i, j) else e)
    solution = solve_stack(edges, sections, SPACING)
    off = errors(solution.block_to_section, truth, "s0")
    assert "s7" in off, "it was accepted, so it is placed somewhere"
    assert max(v for n, v in off.items() if n != "s7") < 0.02
    assert solution.misfit_mm["s7"] > 10 * max(solution.misfit_mm["s0"], 1e-3)


def test_a_lost_section_is_bridged_and_stays_out() -> None:
    truth, sections = stack_of(12, 4)
    edges = [e for e in all_edges(truth) if "s5" not in (e.fixed, e.moving) and "s6" not in (e.fixed, e.moving)]
    solution = solve_stack(edges, sections, SPACING)
    assert set(truth) - set(solution.block_to_section) == {"s5", "s6"}
    assert max(errors(solution.block_to_section, truth, "s0").values()) < 1e-6
    assert solution.component["s5"] != 0 != solution.component["s6"]
    assert solution.score["s5"] == 0.0


def test_a_part_that_hangs_together_only_with_itself_is_not_placed() -> None:
    truth, sections = stack_of(12, 5)
    edges = [e for e in all_edges(truth) if (int(e.fixed[1:]) < 8) == (int(e.moving[1:]) < 8)]
    solution = solve_stack(edges, sections, SPACING)
    assert set(solution.block_to_section) == {f"s{i}" for i in range(8)}
    assert {solution.component[f"s{i}"] for i in range(8, 12)} == {1}


def in_two_pieces(truth: dict[str, Matrix], at: int) -> list[Edge]:
    """The pairs of a stack without those across a gap before section ``at``."""
    return [e for e in all_edges(truth) if (int(e.fixed[1:]) < at) == (int(e.moving[1:]) < at)]


def test_weak_pairs_that_agree_join_two_pieces() -> None:
    truth, sections = stack_of(16, 5)
    across = [e for e in all_edges(truth) if int(e.fixed[1:]) < 8 <= int(e.moving[1:])]
    weak = [edge(truth, int(e.fixed[1:]), int(e.moving[1:]), 0.09, rigid(2.0 * (-1) ** k)) for k, e in enumerate(across)]
    edges = in_two_pieces(truth, 8) + weak
    assert null_threshold(edges) > 0.09  # none of them would be accepted by itself
    solution = solve_stack(edges, sections, SPACING)
    assert set(solution.block_to_section) == set(truth)
    assert max(errors(solution.block_to_section, truth, "s0").values()) < 1.0


def test_weak_pairs_by_chance_hardly_ever_join_two_pieces() -> None:
    joined = 0
    for seed in range(40):
        truth, sections = stack_of(16, seed)
        random = np.random.default_rng(100 + seed)
        wild = [
            edge(truth, i, j, 0.09, rigid(random.uniform(0, 360), bool(random.integers(2))))
            for i in range(5, 8)
            for j in range(8, min(16, i + 4))
        ]
        solution = solve_stack(in_two_pieces(truth, 8) + wild, sections, SPACING)
        joined += len(solution.block_to_section) == 16
    assert joined <= 2


def test_pairs_below_the_null_are_not_accepted() -> None:
    truth, sections = stack_of(10, 6)
    edges = [e for e in all_edges(truth) if e.distance_mm == SPACING]
    wild = [edge(truth, i, i + 2, 0.08, rigid(100.0)) for i in range(8)]
    solution = solve_stack(edges + wild, sections, SPACING)
    assert solution.accepted == len(edges)
    assert max(errors(solution.block_to_section, truth, "s0").values()) < 1e-6


@pytest.mark.parametrize(
    ("share", "declared", "turned"), [(0.2, None, False), (0.8, None, True), (0.2, True, True), (0.8, False, False)]
)
def test_the_stack_lies_as_most_sections_do_unless_one_is_declared(share: float, declared: bool | None, turned: bool) -> None:
    """``declared`` says of one section, truly upright, whether it is mirrored; ``turned``: true faces change over."""
    truth, sections = stack_of(10, 7, mirrored=share)
    upright = next(n for n, m in truth.items() if np.linalg.det(m[:2, :2]) > 0)
    sections[upright] = (sections[upright][0], declared)
    found = solve_stack(all_edges(truth), sections, SPACING).block_to_section
    for n, m in truth.items():
        assert np.sign(np.linalg.det(found[n][:2, :2])) == np.sign(np.linalg.det(m[:2, :2])) * (-1 if turned else 1)
    assert max(errors(found, truth, "s0").values()) < 1e-6


def test_places_known_from_photographs_are_kept_and_hold_the_others() -> None:
    truth, sections = stack_of(14, 8)
    fixed = {n: truth[n] for n in ("s1", "s6", "s12")}
    found = solve_stack(all_edges(truth), sections, SPACING, fixed).block_to_section
    for n, matrix in fixed.items():
        np.testing.assert_array_equal(found[n], matrix)
    for n, matrix in truth.items():  # in the block's own frame: nothing is free any more
        assert apart(np.linalg.inv(found[n]), np.linalg.inv(matrix), 3.0) < 1e-6


def test_what_is_tied_to_the_block_is_the_stack_however_small() -> None:
    truth, sections = stack_of(12, 9)
    edges = [e for e in all_edges(truth) if (int(e.fixed[1:]) < 9) == (int(e.moving[1:]) < 9)]
    solution = solve_stack(edges, sections, SPACING, {"s10": truth["s10"]})
    assert set(solution.block_to_section) == {"s9", "s10", "s11"}


def test_parts_without_a_pair_between_them_join_through_their_photographs() -> None:
    truth, sections = stack_of(12, 10)
    edges = [e for e in all_edges(truth) if (int(e.fixed[1:]) < 6) == (int(e.moving[1:]) < 6)]
    found = solve_stack(edges, sections, SPACING, {"s2": truth["s2"], "s9": truth["s9"]}).block_to_section
    assert set(found) == set(truth)
    assert max(apart(np.linalg.inv(found[n]), np.linalg.inv(truth[n]), 3.0) for n in truth) < 1e-6


def test_one_section_alone_and_none_at_all() -> None:
    _, sections = stack_of(1)
    solution = solve_stack([], sections, SPACING)
    np.testing.assert_allclose((solution.block_to_section["s0"] @ [0, 0, 1])[:2], sections["s0"][0])
    assert solve_stack([], {}, SPACING).block_to_section == {}


def test_the_order_of_pairs_does_not_matter() -> None:
    truth, sections = stack_of(20, 11)
    edges = all_edges(truth)
    one, two = (solve_stack(e, sections, SPACING).block_to_section for e in (edges, edges[::-1]))
    assert max(apart(one[n], two[n], 3.0) for n in truth) < 1e-6


def test_null_threshold_lets_through_one_unrelated_pair_in_a_hundred() -> None:
    random = np.random.default_rng(0)
    truth, _ = stack_of(2)
    base = edge(truth, 0, 1)

    def with_null(value: float) -> Edge:
        return Edge(base.fixed, base.moving, base.matrix, 0.6, 0.5, value, base.other_matrix, base.distance_mm)

    threshold = null_threshold([with_null(v) for v in random.normal(0.1, 0.05, 4000)], alpha=0.01)
    assert 0.006 < (random.normal(0.1, 0.05, 100_000) > threshold).mean() < 0.014
    # a few good scores among them and pairs of which one face was tried do not shift it
    mixed = [with_null(v) for v in [*random.normal(0.1, 0.05, 400), *[0.7] * 20, *[-1.0] * 100, np.nan]]
    assert null_threshold(mixed, alpha=0.01) == pytest.approx(threshold, abs=0.02)
    assert null_threshold([with_null(0.9)] * 3) == 0.25


def test_short_good_pairs_are_cheap_and_sure() -> None:
    assert edge_cost(0.8, 0.5, 0.5) < edge_cost(0.6, 0.5, 0.5) < edge_cost(0.6, 1.0, 0.5)
    assert np.isfinite(edge_cost(-1.0, 1e9, 0.5))
    truth, _ = stack_of(4)
    assert edge_variance(edge(truth, 0, 1, 0.8), SPACING) < edge_variance(edge(truth, 0, 1, 0.4), SPACING)
    assert edge_variance(edge(truth, 0, 1), SPACING) < edge_variance(edge(truth, 0, 3), SPACING)


def test_flip_is_its_own_inverse_and_turns_x() -> None:
    np.testing.assert_array_equal(FLIP @ FLIP, np.eye(3))
    assert edge({"s0": np.eye(3), "s1": FLIP}, 0, 1).mirrored


def symmetric_edges(truth: dict[str, Matrix], lead: float) -> list[Edge]:
    """Pairs of a specimen whose mirror image scores nearly as high, and the more the further on in the stack."""
    out = []
    for e in all_edges(truth):
        level = 0.35 + 0.25 * int(e.fixed[1:]) / len(truth) + e.other_face
        out.append(replace(e, score=level + lead, other_face=level, margin=lead))
    return out


def test_symmetric_specimen_is_placed_by_the_lead_over_its_mirror_image() -> None:
    truth, sections = stack_of(40)
    edges = symmetric_edges(truth, 0.18)
    assert sum(e.score > null_threshold(edges) for e in edges) < 0.75 * len(edges)
    solution = solve_stack(edges, sections, SPACING)
    assert set(solution.block_to_section) == set(truth)
    assert max(errors(solution.block_to_section, truth, "s7").values()) < 1e-6
    assert min(solution.sure.values()) > 0.3, "doubtful"


@pytest.mark.parametrize("seed", range(6))
def test_symmetric_specimen_of_which_nothing_tells_the_face_reports_low_confidence(seed: int) -> None:
    truth, sections = stack_of(40)
    random = np.random.default_rng(seed)
    edges = symmetric_edges(truth, 0.02)
    # either face scores the same, so that chance decides between them
    edges = [replace(e, matrix=truth[e.moving] @ FLIP @ inverse(truth[e.fixed])) if random.random() < 0.5 else e for e in edges]
    assert least_lead(edges, list(sections), 0.01) > 0.02
    solution = solve_stack(edges, sections, SPACING)
    assert solution.accepted < 0.1 * len(edges)
    assert sum(sure >= DOUBTFUL for n, sure in solution.sure.items() if n in solution.block_to_section) <= 4


def test_symmetric_specimen_whose_weak_pairs_all_agree_is_placed_and_not_doubtful() -> None:
    truth, sections = stack_of(40)
    edges = symmetric_edges(truth, 0.02)
    assert least_lead(edges, list(sections), 0.01) > 0.02
    solution = solve_stack(edges, sections, SPACING)
    assert max(errors(solution.block_to_section, truth, "s7").values()) < 1e-6 and len(solution.block_to_section) == 40
    assert all(DOUBTFUL <= sure < 0.9 for sure in solution.sure.values())


def test_foreign_sections_whose_outlines_line_up_are_not_placed_by_pairs_that_agree() -> None:
    """Angle and face of one of four, as an oval lies on an oval; what they score is chance."""
    truth, sections = stack_of(40)
    random = np.random.default_rng(2)
    foreign = {f"s{i}" for i in (5, 12, 20, 29, 35)}
    ways = [np.eye(3), FLIP, rigid(180), rigid(180, True)]
    edges = [
        edge(truth, int(e.fixed[1:]), int(e.moving[1:]), float(random.normal(0.06, 0.02)), ways[random.integers(4)])
        if foreign & {e.fixed, e.moving}
        else e
        for e in all_edges(truth)
    ]
    solution = solve_stack(edges, sections, SPACING)
    found = errors({n: m for n, m in solution.block_to_section.items() if n not in foreign}, truth, "s7")
    assert len(found) == 35 and max(found.values()) < 0.01
    assert all(solution.sure[n] < DOUBTFUL for n in foreign & set(solution.block_to_section))


def test_a_specimen_unlike_its_mirror_image_is_judged_by_the_null_distribution_alone() -> None:
    truth, sections = stack_of(20)
    assert least_lead(all_edges(truth), list(sections), 0.01) == np.inf


def test_sections_of_which_no_pair_was_accepted_are_not_sure_and_neither_is_the_first() -> None:
    truth, sections = stack_of(5)
    edges = [replace(e, score=0.03, margin=-0.02) for e in all_edges(truth)]
    solution = solve_stack(edges, sections, SPACING)
    assert solution.accepted == 0 and len(solution.block_to_section) == 1
    assert set(solution.sure.values()) == {0.0}


def test_a_section_with_nothing_to_be_compared_with_is_sure() -> None:
    _, sections = stack_of(1)
    assert solve_stack([], sections, SPACING).sure == {"s0": 1.0}
