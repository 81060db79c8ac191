"""Kernels of many networks at once against those of each alone."""

import numpy as np
import pytest
from compiled import programs

import nngp_dag as nd
from nngp_dag.architecture import as_network
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import Dag, zoo
from nngp_dag.kernels import choose
from nngp_dag.kernels.batch import kernels_of_classes, new_kernel_classes
from nngp_dag.kernels.device import block_sizes

X = np.random.default_rng(0).normal(size=(12, 7))


def together(dags, x: np.ndarray = X, *, batch=4, **options):
    """Returns NNGP and NTK of every DAG."""
    kernel_classes = new_kernel_classes()
    networks = [as_network(dag, **options) for dag in dags]
    of_dag = [kernel_classes.add(network) for network in networks]
    stacks = kernels_of_classes(kernel_classes, list(dict.fromkeys(of_dag)), networks[0], x, batch=batch)
    found = {}
    for stack in stacks:
        assert stack.nngp.shape == stack.ntk.shape == (len(stack.digests), len(x), len(x))
        assert len(stack.digests) <= batch
        found |= {digest: (k, t) for digest, k, t in zip(stack.digests, stack.nngp, stack.ntk, strict=True)}
    return [found[digest] for digest in of_dag]


RANDOM = [zoo.random_dag(6, seed=seed) for seed in range(9)]


@pytest.mark.sample(0, slow=3)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"activation": "erf", "b_std": 0.3, "w_std": 1.2, "readout": False},
        {"order": "act-linear", "parameterization": "standard", "width": 64, "b_std": 0.0},
        {"readout": False},
        {"activation": "gelu", "order": "act-linear", "b_std": 0.1},
        {"aggregation": "mean"},
        {"aggregation": "scaled-sum", "readout": False},
        {"layer": nd.Dense(layer_norm=True, order="act-linear")},
        {"stem": nd.Dense(activation="erf")},
    ],
    ids=str,
)
def test_they_equal_kernels_one_by_one(options):
    for dag, (nngp, ntk) in zip(RANDOM, together(RANDOM, **options), strict=True):
        alone = nd.kernel(dag, X, **options)
        np.testing.assert_allclose(nngp, alone.nngp, rtol=0, atol=1e-13 * np.abs(alone.nngp).max())
        np.testing.assert_allclose(ntk, alone.ntk, rtol=0, atol=1e-13 * np.abs(alone.ntk).max())


ERF = nd.Dense(activation="erf", b_std=0.2)


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize(
    "other", [Dag.from_edges([(0, 1, ERF), (1, 2, "weighted")]), zoo.chain(200)], ids=["erf", "deep"]
)
def test_one_without_series_changes_no_other(other):
    """A network without a Chebyshev series takes the recursion, in a batch of its own."""
    some = [zoo.chain(3), *RANDOM[:2]]
    for pair, alone in zip(together([*some, other])[:3], together(some), strict=True):
        np.testing.assert_array_equal(pair, alone)
    expected = nd.kernel(other, X)
    np.testing.assert_allclose(together([other, *some])[0], [expected.nngp, expected.ntk], rtol=1e-12)


@pytest.mark.slow
def test_neither_batch_nor_order_matters():
    reference = together(RANDOM, batch=1)
    for found in (together(RANDOM, batch=5), together(RANDOM, batch=100), together(RANDOM[::-1], batch=2)[::-1]):
        for pair, expected in zip(found, reference, strict=True):
            for matrix, alone in zip(pair, expected, strict=True):
                np.testing.assert_allclose(matrix, alone, rtol=0, atol=1e-14 * np.abs(alone).max())


@pytest.mark.slow
def test_tiles_agree_with_one_by_one(monkeypatch):
    """The inputs fill two tiles and a remainder. Two of them, in different tiles, nearly coincide, and one is zero."""
    x = np.random.default_rng(4).normal(size=(20, 200))
    x[15], x[3] = x[1] + 1e-9, 0
    small = block_sizes()._replace(stacked_tile=4, loop=256)
    monkeypatch.setattr(choose, "block_sizes", lambda: small)
    found = together(RANDOM, x, b_std=0.2)
    for dag, (nngp, ntk) in zip(RANDOM, found, strict=True):
        alone = nd.kernel(dag, x, b_std=0.2)
        np.testing.assert_allclose(nngp, alone.nngp, rtol=1e-12, atol=1e-13 * np.abs(alone.nngp).max())
        np.testing.assert_allclose(ntk, alone.ntk, rtol=1e-12, atol=1e-13 * np.abs(alone.ntk).max())
        np.testing.assert_allclose(nngp, nngp.T, rtol=1e-14)


def test_all_batches_share_one_program():
    from nngp_dag.kernels.blocking import kernel_of_inputs

    x = np.random.default_rng(1).normal(size=(5, 3))
    before = programs(kernel_of_inputs)
    together(RANDOM, x, batch=2)
    assert programs(kernel_of_inputs) == before + 1


@pytest.mark.slow
def test_blocks_of_rows():
    """There are more inputs than one block holds."""
    x = np.random.default_rng(2).normal(size=(150, 4))
    dags = [Dag.from_code(code) for code in ("2_21_112", "2_02_002", "1_01_222")]
    for dag, (nngp, ntk) in zip(dags, together(dags, x), strict=True):
        alone = nd.kernel(dag, x)
        np.testing.assert_allclose(nngp, alone.nngp, rtol=0, atol=1e-13 * np.abs(alone.nngp).max())
        np.testing.assert_allclose(ntk, alone.ntk, rtol=0, atol=1e-13 * np.abs(alone.ntk).max())


def test_float32_stays_float32():
    [(nngp, ntk)] = together(RANDOM[:1], X.astype(np.float32))
    assert nngp.dtype == ntk.dtype == np.float32
    np.testing.assert_allclose(nngp, nd.kernel(RANDOM[0], X).nngp, rtol=1e-5)


@pytest.mark.slow
def test_several_inputs_read_the_same_data():
    dag = Dag.from_edges(
        [(0, 2, "weighted"), (1, 2, "skip"), (2, 3, "weighted"), (1, 3, "skip")], source=[0, 1], output=3
    )
    [(nngp, ntk), _] = together([dag, RANDOM[0]])
    alone = nd.kernel(dag, X)
    np.testing.assert_allclose(nngp, alone.nngp, rtol=1e-13)
    np.testing.assert_allclose(ntk, alone.ntk, rtol=1e-13)


def test_bad_inputs_and_multiplicities():
    with pytest.raises(InputError, match=r"`x` to be finite, got NaN or infinity in row 2"):
        together(RANDOM[:1], np.where(np.arange(12)[:, None] == 2, np.nan, X))
    doubled = Dag.from_edges([(s, s + 1, "skip") for s in range(70) for _ in range(2)])
    with pytest.raises(GraphError, match="whose squares float32 can hold"):
        together([doubled], X.astype(np.float32))


@pytest.mark.slow
def test_the_classes_of_a_space_are_its_different_kernels():
    x = np.random.default_rng(0).normal(size=(4, 6))
    kernel_classes, classes = new_kernel_classes(), {}
    for code in zoo.codes(3):
        try:
            network = as_network(Dag.from_code(code))
        except GraphError:
            continue
        classes.setdefault(kernel_classes.add(network), []).append(network)
    assert len(classes) == 77
    first = next(iter(classes.values()))[0]
    stacks = list(kernels_of_classes(kernel_classes, list(classes), first, x, batch=77))
    found = {digest: ntk for stack in stacks for digest, ntk in zip(stack.digests, stack.ntk, strict=True)}
    for digest, networks in classes.items():
        for network in {networks[0], networks[-1]}:
            np.testing.assert_allclose(found[digest], nd.kernel(network.dag, x, get="ntk").ntk, rtol=1e-12)
    different = np.stack(list(found.values())).reshape(77, -1)
    gaps = np.abs(different[:, None] / different[None] - 1).max(axis=2)
    assert gaps[~np.eye(77, dtype=bool)].min() > 1e-4
