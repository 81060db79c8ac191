"""Exact kernels of supernets: means over cells, which for a single cell are the values of the cell."""

import itertools

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError
from nngp_dag.nas import Cell, Genotype, get_space
from nngp_dag.nas.pruning.expected_kernels import ExpectedKernels, wiring_dag
from nngp_dag.nas.scores.wiring import on_sphere

NASBENCH201, DARTS = get_space("nasbench201"), get_space("darts")
IMAGES = np.random.default_rng(0).normal(size=(6, 4, 4, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def kernels():
    return ExpectedKernels(NASBENCH201, IMAGES)


def lambda_min(dag):
    return nd.spectrum(nd.kernel(dag, on_sphere(IMAGES), get="ntk").ntk).lambda_min


def mixtures(space, *masks):
    return space.mixture(np.stack(masks))


@pytest.mark.slow
def test_a_single_cell_has_the_value_of_its_own_kernel(kernels):
    cells = [Cell.from_index(index) for index in (9502, 31, 15_624, 6012)]
    assert all(cell.dag.num_paths for cell in cells)
    found = kernels.lambda_min(mixtures(NASBENCH201, *map(NASBENCH201.mask_of, cells)), seed=0)
    assert found.reasons == ("",) * 4
    np.testing.assert_allclose(found.values, [lambda_min(cell.dag) for cell in cells], rtol=1e-10)


def test_a_supernet_has_the_mean_of_its_cells(kernels):
    mask = NASBENCH201.mask_of(Cell.from_index(9502))
    # Edge 0-1: one of two convolutions or a skip; edge 2-3: nothing or a convolution.
    mask[0, 0, [1, 2, 3]] = True
    mask[0, 5] = [True, False, False, True, False]
    mixture = NASBENCH201.mixture(mask)
    expected = 0.0
    for first, last in itertools.product(np.flatnonzero(mask[0, 0]), np.flatnonzero(mask[0, 5])):
        single = mask.copy()
        single[0, 0], single[0, 5] = np.eye(5, dtype=bool)[first], np.eye(5, dtype=bool)[last]
        cell = NASBENCH201.cell_of(single)
        expected += float(mixture[0, 0, first] * mixture[0, 5, last]) * (
            lambda_min(cell.dag) if cell.dag.num_paths else 0
        )
    found = kernels.lambda_min(mixture[None], seed=0)
    np.testing.assert_allclose(found.values, [expected], rtol=1e-6)
    nothing = kernels.lambda_min(np.zeros((1, *NASBENCH201.shape), np.float32), seed=0)
    assert nothing.values.tolist() == [0.0]


@pytest.mark.slow
def test_cells_of_darts_follow_one_another():
    normal = [("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_3x3", 1), ("max_pool_3x3", 2)] * 2
    reduce = [("skip_connect", 0), ("max_pool_3x3", 1), ("sep_conv_5x5", 0), ("avg_pool_3x3", 2)] * 2
    genotype = Genotype.from_pairs(normal, reduce)
    mask = DARTS.mask_of(genotype)
    skips, weighted = (np.asarray(mask[..., operations]).any(-1) for operations in (DARTS.skips, DARTS.weighted))
    dag = wiring_dag(DARTS, np.asarray(skips + 2 * weighted).tolist())
    assert dag.num_inputs == 3
    first, second = genotype.wiring("normal"), genotype.wiring("reduce")
    # Paths of the second cell from its two inputs apart: from a stem, and through the first cell and one more edge.
    apart = [nd.Dag(second.num_nodes, tuple(e for e in second.edges if e.source != other), True, 2) for other in (1, 0)]
    histogram = dict(apart[0].depth_histogram)
    for (d, n), (e, m) in itertools.product(first.depth_histogram.items(), apart[1].depth_histogram.items()):
        histogram[d + 1 + e] = histogram.get(d + 1 + e, 0) + n * m
    assert dag.depth_histogram == histogram
    kernels = ExpectedKernels(DARTS, IMAGES, draws=3)
    found = kernels.lambda_min(mixtures(DARTS, mask), seed=0)
    np.testing.assert_allclose(found.values, [lambda_min(dag)], rtol=1e-10)


def test_samples_are_shared_and_converge(kernels):
    listed = kernels._wirings(NASBENCH201.mixture(NASBENCH201.full_mask()), 0)
    assert list(listed.values()) == [pytest.approx(1 / 64)] * 64
    # The standard error of a share of the sample is 0.009.
    shares = {}
    wide = ExpectedKernels(DARTS, IMAGES, draws=3000)
    for wiring, share in wide._wirings(DARTS.mixture(DARTS.full_mask()), 1).items():
        shares[wiring[0][0]] = shares.get(wiring[0][0], 0) + share
    assert sum(shares.values()) == pytest.approx(1, rel=1e-12)
    assert shares == {1: pytest.approx(3 / 7, abs=0.035), 2: pytest.approx(4 / 7, abs=0.035)}
    # Two candidates that differ on one edge have equal draws on all other edges.
    few = ExpectedKernels(DARTS, IMAGES, draws=20)
    candidate = DARTS.full_mask()
    candidate[1, 3, 5] = False
    whole, other = (few._wirings(DARTS.mixture(m), 4) for m in (DARTS.full_mask(), candidate))
    differ = {
        (t, e) for a, b in zip(whole, other, strict=False) for t in range(2) for e in range(14) if a[t][e] != b[t][e]
    }
    assert differ <= {(1, 3)}


def test_what_is_not_resolved_has_a_reason():
    twice = ExpectedKernels(NASBENCH201, np.repeat(IMAGES[:3], 2, axis=0))
    found = twice.lambda_min(mixtures(NASBENCH201, NASBENCH201.full_mask()), seed=0)
    assert np.isnan(found.values[0])
    assert found.reasons[0].startswith("Expected a resolved λmin of the exact NTK, got < ")


def test_refusals():
    with pytest.raises(InputError, match="`images` to hold at least 2 images, got 1"):
        ExpectedKernels(NASBENCH201, IMAGES[:1])
    with pytest.raises(InputError, match="`draws` to be at least 1, got 0"):
        ExpectedKernels(NASBENCH201, IMAGES, draws=0)
    with pytest.raises(InputError, match="images that are not all zero, got image 0"):
        ExpectedKernels(NASBENCH201, np.zeros_like(IMAGES))
