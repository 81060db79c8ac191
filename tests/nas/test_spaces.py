"""Search spaces and DARTS genotypes: masks, cells, text forms, and expected effective depth and width."""

import csv
import json
import random
from fractions import Fraction

import numpy as np
import pytest

from nngp_dag.errors import GraphError, InputError
from nngp_dag.nas import Cell, Genotype, cells, get_space
from nngp_dag.nas.spaces.cells import EDGES
from nngp_dag.nas.spaces.darts import OPERATIONS as DARTS

PATHS = [[(0, 3)], [(0, 1), (1, 3)], [(0, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]]
NASBENCH201, DARTS_SPACE = get_space("nasbench201"), get_space("darts")


def genotype_of(cell, reduce=None):
    return Genotype.from_pairs(cell, reduce or cell)


def random_genotype(seed):
    """Returns a genotype with two operations per node, from two different inputs."""
    rng = random.Random(seed)
    draws = [sorted(rng.sample(range(node), 2)) for _ in range(2) for node in range(2, 6)]
    pairs = [(rng.choice(DARTS), source) for pair in draws for source in pair]
    return genotype_of(pairs[:8], pairs[8:])


def expectation_by_paths(space, shares):
    """Returns depth and width from a list of all paths, with skips and weighted edges as separate edges."""
    found = []

    def walk(node, probability, depth):
        if node in space.outputs:
            found.append((probability, depth))
        for i, (source, target) in enumerate(space.edges):
            if source == node:
                for op, name in enumerate(space.operations):
                    if name != "none" and shares[i][op]:
                        walk(target, probability * shares[i][op], depth + ("conv" in name))

    for node in range(space.num_inputs):
        walk(node, Fraction(1), 0)
    total = sum(p for p, _ in found)
    depth = sum(p * d for p, d in found) / total if total else Fraction(0)
    return depth, sum(p for p, d in found if d) / depth if depth else Fraction(0)


def test_depth_and_width_of_genotypes_are_the_authors(golden_dir):
    rows = list(csv.DictReader((golden_dir / "darts_effective_depth_width.csv").read_text().splitlines()))
    assert len(rows) == 80
    for row in rows:
        genotype = genotype_of(json.loads(row["genotype_json"]))
        expected = pytest.approx((float(row["depth"]), float(row["width"])), abs=1e-12)
        there = genotype.wiring(duplicates="reference")
        assert (there.effective_depth, there.effective_width) == expected
        twice = row["has_duplicate_input"] == "1"
        assert ((genotype.dag.effective_depth, genotype.dag.effective_width) == expected) is not twice
        if not twice:
            found = DARTS_SPACE.expected_depth_and_width(DARTS_SPACE.mask_of(genotype))
            assert found[0].tolist() == pytest.approx((float(row["depth"]), float(row["width"])), abs=1e-12)


def test_edge_cases_of_genotypes_are_the_authors(golden_dir):
    cases = json.loads((golden_dir / "darts_effective_depth_width_edge_cases.json").read_text())
    assert len(cases) == 9
    for case in cases:
        dag = genotype_of(case["normal"]).wiring(duplicates="reference")
        assert (dag.effective_depth, dag.effective_width) == pytest.approx(case["depth_width"], abs=1e-12), case["name"]


def test_an_input_that_is_read_twice_counts_twice_unless_asked():
    genotype = genotype_of([("sep_conv_3x3", 0), ("skip_connect", 0)] + [("none", 0), ("none", 1)] * 3)
    assert genotype.dag.depth_histogram == {0: 1, 1: 1}
    assert genotype.wiring(duplicates="reference").depth_histogram == {0: 1}
    with pytest.raises(InputError, match="every node to read an input once"):
        DARTS_SPACE.mask_of(genotype)
    with pytest.raises(InputError, match="`duplicates` to be 'kept' or 'reference', got 'first'"):
        genotype.wiring(duplicates="first")
    with pytest.raises(InputError, match="`cell` to be 'normal' or 'reduce', got 'other'"):
        genotype.wiring("other")


def test_expectations_of_single_cells_are_their_values(golden_dir):
    every = list(cells())
    masks = np.array([cell.codes for cell in every])[..., None] == np.arange(len(NASBENCH201.operations))
    found = NASBENCH201.expected_depth_and_width(masks)
    assert found.shape == (15_625, 2)
    # The four paths of a cell, one by one.
    present, weighted = masks[..., 1:].any(-1), masks[..., 2:4].any(-1)
    paths = [[EDGES.index(edge) for edge in path] for path in PATHS]
    alive = np.stack([present[:, path].all(-1) for path in paths], -1)
    depths = np.stack([weighted[:, path].sum(-1) for path in paths], -1)
    total = np.maximum(alive.sum(-1), 1)
    depth = (alive * depths).sum(-1) / total
    width = np.divide((alive & (depths > 0)).sum(-1), depth, out=np.zeros(len(every)), where=depth > 0)
    np.testing.assert_array_equal(found, np.stack([depth, width], -1))
    with (golden_dir / "nb201_effective_depth_width.csv").open() as file:
        theirs = [(float(row["depth"]), float(row["width"])) for row in csv.DictReader(file)]
    np.testing.assert_allclose(found[::10], theirs, rtol=1e-14)
    for number in range(0, len(every), 97):
        cell, mask = every[number], masks[number : number + 1]
        assert found[number].tolist() == pytest.approx((cell.dag.effective_depth, cell.dag.effective_width), rel=1e-14)
        np.testing.assert_array_equal(NASBENCH201.mask_of(cell), mask)
        assert NASBENCH201.cell_of(mask) == cell


def test_expectations_of_whole_supernets():
    np.testing.assert_allclose(
        NASBENCH201.expected_depth_and_width(NASBENCH201.full_mask()), [[1.0, 2.875]], rtol=1e-14
    )
    found = DARTS_SPACE.expected_depth_and_width(DARTS_SPACE.full_mask())
    np.testing.assert_allclose(found, [[1.21904762, 19.41690962]] * 2, rtol=0, atol=5e-9)


@pytest.mark.parametrize("space", [NASBENCH201, DARTS_SPACE], ids=["nasbench201", "darts"])
def test_expectations_are_sums_over_paths(space):
    rng = np.random.default_rng(0)
    for density in (0.2, 0.4):
        mask = rng.random(space.shape) < density
        found = space.expected_depth_and_width(mask)
        for cell, value in zip(mask, found, strict=True):
            shares = [[Fraction(int(on), max(1, int(edge.sum()))) for on in edge] for edge in cell]
            assert value.tolist() == pytest.approx([float(v) for v in expectation_by_paths(space, shares)], rel=1e-13)
    np.testing.assert_allclose(space.expected_depth_and_width(space.mixture(mask)), found, rtol=1e-6)
    assert not space.expected_depth_and_width(np.zeros(space.shape, bool)).any()


def test_mixtures_are_equal_shares_of_the_live_operations():
    mask = NASBENCH201.full_mask()
    mask[0, 2] = False
    mixture = NASBENCH201.mixture(mask)
    assert mixture.dtype == np.float32
    np.testing.assert_array_equal(mixture[0, 0], [0, 0.25, 0.25, 0.25, 0.25])
    np.testing.assert_array_equal(mixture[0, 2], np.zeros(5))
    assert NASBENCH201.mixture(np.stack([mask, mask])).shape == (2, 1, 6, 5)
    assert NASBENCH201.full_mask(without_none=False).all()


def test_spaces_know_their_edges():
    assert NASBENCH201.edges == EDGES
    assert NASBENCH201.shape == (1, 6, 5)
    assert DARTS_SPACE.shape == (2, 14, 8)
    assert DARTS_SPACE.groups == ((0, 2), (2, 5), (5, 9), (9, 14))
    assert DARTS_SPACE.edges[:5] == ((0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
    with pytest.raises(InputError, match="`space` to be one of nasbench201, darts, got 'nats'"):
        get_space("nats")


def test_masks_and_cells_are_inverse():
    for seed in range(20):
        genotype = random_genotype(seed)
        assert DARTS_SPACE.cell_of(DARTS_SPACE.mask_of(genotype)) == genotype
    # An edge without live operations is `none` in the cell.
    assert NASBENCH201.cell_of(np.zeros((1, 6, 5), bool)) == Cell.from_index(0)
    with pytest.raises(InputError, match="at most one operation on every edge, got 4"):
        NASBENCH201.cell_of(NASBENCH201.full_mask())
    mask = DARTS_SPACE.mask_of(random_genotype(0))
    mask[1, 0] = False
    with pytest.raises(InputError, match="leave 2 edges into every node"):
        DARTS_SPACE.cell_of(mask)
    for bad in (mask[:1], mask.astype(int)):
        with pytest.raises(InputError, match=r"`mask` to be bool, \(2, 14, 8\), got"):
            DARTS_SPACE.check(bad)
    with pytest.raises(InputError, match="a cell of darts, got"):
        DARTS_SPACE.mask_of(Cell.from_index(7))
    with pytest.raises(InputError, match="a cell of nasbench201, got"):
        NASBENCH201.mask_of(random_genotype(0))


def test_genotypes_as_text():
    genotype = random_genotype(3)
    assert Genotype.from_text(str(genotype)) == genotype
    assert Genotype.from_json(genotype.to_json()) == genotype
    assert str(genotype).startswith(f"Genotype(normal=[('{genotype.normal[0][0]}', {genotype.normal[0][1]}), ")
    # DARTS (second order) as published, with a list of nodes, and with tuples, as other programs print them.
    published = """Genotype(
        normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1),
                ('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)],
        normal_concat=[2, 3, 4, 5],
        reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1),
                ('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)],
        reduce_concat=(2, 3, 4, 5))"""
    found = Genotype.from_text(published)
    assert found.normal[4:6] == (("sep_conv_3x3", 1), ("skip_connect", 0))
    assert Genotype.from_text(str(found)) == found


PAIRS = "[('none', 0), ('none', 1)] * 4"
CELL = str([("none", 0), ("none", 1)] * 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "to be a genotype"),
        ("Genotype(", "to be a genotype"),
        ("[1]", "no `Genotype"),
        (f"Genotype({CELL}, {CELL})", "arguments without a name"),
        (f"Genotype(normal={CELL})", "other fields than"),
        (f"Genotype(normal={CELL}, reduce={CELL}, other=1)", "other fields than"),
        (f"Genotype(normal={CELL}, **{{'reduce': 1}})", "other fields than"),
        (f"Genotype(normal={PAIRS}, reduce={CELL})", "to be a genotype"),
        (f"Genotype(normal={CELL}, reduce=__import__('os'))", "to be a genotype"),
        (f"Genotype(normal={CELL}, reduce={CELL}, normal_concat=range())", "to be a genotype"),
        (f"Genotype(normal={CELL}, reduce={CELL}, normal_concat=range(2, 5))", "`normal_concat` to be nodes 2 to 5"),
        (f"Genotype(normal={CELL}, reduce={CELL}, reduce_concat=3)", "`reduce_concat` to be nodes 2 to 5, got 3"),
        (f"Genotype(normal={CELL}, reduce=3)", "`reduce` to hold pairs such as"),
        (f"Genotype(normal={CELL}, reduce=[('none', '0')] * 8)", "to be a genotype"),
        (f"Genotype(normal={CELL}, reduce=[('none', '0')])", "`reduce` to hold pairs such as"),
        (f"Genotype(normal={CELL}, reduce=[('none', True)])", "`reduce` to hold pairs such as"),
        (f"Genotype(normal={CELL}, reduce=[('none', 0)])", "`reduce` to hold 8 pairs, got 1"),
        (f"Genotype(normal={CELL}, reduce={CELL.replace('none', 'conv')})", "operations of `cell` out of"),
        (f"Genotype(normal={CELL}, reduce={CELL.replace('1', '4')})", r"inputs of node 2 of `cell` out of 0\.\.1"),
    ],
)
def test_malformed_genotypes(text, message):
    with pytest.raises(GraphError, match=message):
        Genotype.from_text(text)


@pytest.mark.parametrize(
    "text", ["", "[", "[]", "{}", '{"normal": []}', '{"normal": [], "reduce": [], "x": 1}', "[" * 9999]
)
def test_malformed_json(text):
    with pytest.raises(GraphError, match="to be a genotype"):
        Genotype.from_json(text)
    with pytest.raises(GraphError, match="to be a genotype"):
        Genotype.from_text("(" * 9999)
