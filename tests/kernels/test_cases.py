"""Every combination of graph, activation, order, aggregation, dtype and parameterization against a second derivation.

The default run takes a selection in which every two values of different factors occur together, with about one
compilation per activation and structure. `-m nightly` takes the rest of the product.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from oracles import ORDERS, joint_kernels

import nngp_dag as nd
from nngp_dag.activations import Polynomial, Quadrature, hermite, leaky_relu
from nngp_dag.architecture import as_network
from nngp_dag.architecture.network import AGGREGATIONS
from nngp_dag.graph import AvgPool, Conv, Dag, Dense, Edge, Op, Scale, SumPool
from nngp_dag.graph.operations import PARAMETERIZATIONS

X, Z = np.random.default_rng(0).normal(size=(3, 6)), np.random.default_rng(1).normal(size=(3, 4))
WIDTH = 16
SKIP, WEIGHTED = Op.SKIP, Op.WEIGHTED


def dag_of(num_nodes, edges, **ends):
    return Dag(num_nodes, tuple(Edge(*edge) for edge in edges), **ends)


ENDS = {"num_inputs": 2, "outputs": (4, 3)}

# A chain of weighted edges out of the second input, and skips over one node.
LADDER = [(t, t + 1, WEIGHTED) for t in range(1, 7)] + [(t, t + 2, SKIP) for t in range(6)]


def wave(x):
    # An entire function, so that a series with few terms is enough; tanh has poles near the real line.
    return jnp.cos(x) + x / 2


# The graphs by structure; graphs of one structure share their compilations.
STRUCTURES = {
    "four nodes": {
        "chain": nd.zoo.chain(3),
        "DAG#3": nd.zoo.named("DAG#3"),
        "shared skips": Dag.from_code("1_11_212"),
        "parallel": dag_of(
            4, [(0, 1, WEIGHTED), (0, 1, WEIGHTED), (0, 2, SKIP), (1, 2, WEIGHTED), (1, 3, SKIP), (2, 3, WEIGHTED)]
        ),
    },
    "loop": {
        "two inputs, two outputs": dag_of(
            5,
            [(0, 2, WEIGHTED), (1, 2, WEIGHTED), (1, 2, SKIP), (2, 3, WEIGHTED), (0, 4, SKIP), (2, 4, SKIP)],
            **ENDS,
        ),
        "ladder": dag_of(8, LADDER, num_inputs=2, outputs=(7, 6)),
    },
}
ACTIVATIONS = {
    "relu": "relu",
    "leaky": leaky_relu(0.2),
    "abs": "abs",
    "erf": "erf",
    "gelu": "gelu",
    "sin": "sin",
    "rbf": "rbf",
    "gaussian": "gaussian",
    "hermite": hermite(2),
    "polynomial": Polynomial((0.2, 0.7, 0.1, -0.05)),
    "quadrature": Quadrature(wave, degree=32),
}
DTYPES = {"float64": 1e-10, "float32": 2e-5}


def compilations():
    """Returns one choice of order, dtype and parameterization per activation and structure."""
    for (i, activation), (j, structure) in itertools.product(enumerate(ACTIVATIONS), enumerate(STRUCTURES)):
        # All three differ from one structure to the other, and the pattern differs between activations.
        values = zip((ORDERS, tuple(DTYPES), PARAMETERIZATIONS), (0, 1, 2), strict=True)
        yield structure, activation, *(of[(i >> bit & 1) ^ j] for of, bit in values)


def selection():
    for i, (structure, activation, order, dtype, parameterization) in enumerate(compilations()):
        for j, dag in enumerate(STRUCTURES[structure]):
            yield structure, dag, activation, order, AGGREGATIONS[(i + j + i // 6) % 3], dtype, parameterization


DEFAULT = set(selection())
PRODUCT = [
    (structure, dag, *rest)
    for structure, graphs in STRUCTURES.items()
    for *rest, dag, aggregation in itertools.product(
        ACTIVATIONS, ORDERS, DTYPES, PARAMETERIZATIONS, graphs, AGGREGATIONS
    )
    for rest in [(rest[0], rest[1], aggregation, *rest[2:])]
]


def test_the_selection_covers_all_pairs():
    assert set(PRODUCT) >= DEFAULT
    # The structure says nothing beyond the graph.
    for a, b in itertools.combinations(range(1, 7), 2):
        assert {(case[a], case[b]) for case in DEFAULT} == {(case[a], case[b]) for case in PRODUCT}


def assert_equal(kernels, references, tolerance):
    """Compares every output to `tolerance`, relative to the roots of the diagonals."""
    for k, (nngp, ntk) in zip(kernels if isinstance(kernels, tuple) else [kernels], references, strict=True):
        for value, reference in ((k.nngp, nngp), (k.ntk, ntk)):
            scale = np.sqrt(np.outer(np.diag(reference), np.diag(reference)))
            error = np.abs(np.asarray(value) - reference) / scale
            assert error.max() < tolerance, f"off by {error.max():.1e}"


def compare(dag, inputs, tolerance, *, parameterization="ntk", image_readout="flatten", **options):
    """Compares the kernels of a network with its second derivation."""
    inputs = inputs[: dag.num_inputs]
    rules = {"parameterization": parameterization, "image_readout": image_readout}
    given = inputs if dag.num_inputs > 1 else inputs[0]
    kernels = nd.kernel(dag, given, width=WIDTH, **rules, **options)
    exact = [x.astype(np.float64) for x in inputs]
    assert_equal(kernels, joint_kernels(as_network(dag, **options), exact, width=WIDTH, **rules), tolerance)


@pytest.mark.sample(3, slow=1)
@pytest.mark.parametrize(
    ("structure", "dag", "activation", "order", "aggregation", "dtype", "parameterization"),
    [case if case in DEFAULT else pytest.param(*case, marks=pytest.mark.nightly) for case in PRODUCT],
)
def test_case(structure, dag, activation, order, aggregation, dtype, parameterization):
    # Squares and cubes explode with depth unless weights are small.
    w_std = 0.6 if isinstance(ACTIVATIONS[activation], Polynomial) else 1.1
    compare(
        STRUCTURES[structure][dag],
        [X.astype(dtype), Z.astype(dtype)],
        DTYPES[dtype],
        activation=ACTIVATIONS[activation],
        order=order,
        aggregation=aggregation,
        parameterization=parameterization,
        w_std=w_std,
        b_std=0.3,
    )


MIXED = [
    Edge(0, 1, Dense(activation="sin", order="act-linear", b_std=0.5)),
    Edge(0, 1, Scale(-0.5)),
    Edge(1, 2, Dense(activation="erf", w_std=1.2, b_std=0.3, layer_norm=True)),
    Edge(0, 2, SKIP),
    Edge(1, 3, Dense(activation="gelu", order="act-linear", layer_norm=True)),
    Edge(2, 3, WEIGHTED),
    Edge(0, 3, Scale(2.0)),
    Edge(2, 4, Dense(activation=None, w_std=0.7)),
    Edge(3, 4, Dense(activation="relu", layer_norm=True)),
    Edge(1, 4, SKIP),
]


def test_layer_norm():
    compare(Dag.from_code("2_12"), [X], 1e-10, layer=Dense(activation="erf", layer_norm=True, b_std=0.3))


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_mixed_operations(parameterization):
    stem = Dense(activation=None, b_std=0.1)
    for aggregation in AGGREGATIONS:
        options = {"stem": stem, "aggregation": aggregation, "parameterization": parameterization}
        compare(Dag(5, tuple(MIXED)), [X], 1e-10, **options)


CONV = {"filter_shape": (2, 3), "b_std": 0.3, "w_std": 1.2}
IMAGES = {
    # The norms of images are divided out, but those of pixels differ.
    "homogeneous convolutions": (
        [(0, 1, WEIGHTED), (0, 2, SKIP), (1, 2, WEIGHTED)],
        {"layer": Conv(filter_shape=(2, 3), activation="relu")},
    ),
    "convolutions": ([(0, 1, WEIGHTED), (0, 2, SKIP), (1, 2, WEIGHTED)], {"layer": Conv(**CONV, activation="relu")}),
    "valid, strided, averaged": (
        [(0, 1, WEIGHTED), (1, 2, Conv(filter_shape=(2, 1), padding="VALID", activation="erf"))],
        {
            "layer": Conv(**CONV, strides=(1, 2), activation="erf", layer_norm=True),
            "stem": Dense(activation="erf"),
            "image_readout": "global-average",
        },
    ),
    "pooling": (
        [
            (0, 1, AvgPool((2, 3), strides=(1, 2), normalize_edges=True)),
            (0, 1, AvgPool((2, 3), strides=(1, 2))),
            (0, 1, SumPool((2, 3), strides=(1, 2))),
            (0, 1, Conv(**CONV, strides=(1, 2), activation="abs")),
            (1, 2, AvgPool((2, 2), padding="VALID", normalize_edges=True)),
            (1, 2, AvgPool((2, 2), padding="VALID")),
            (1, 2, SumPool((2, 2), padding="VALID")),
            (2, 3, Dense(activation="relu", b_std=0.2)),
            (2, 3, Scale(-0.5)),
        ],
        {"aggregation": "mean", "layer": Dense()},
    ),
    "activation first, pooling, averaged": (
        [(0, 1, WEIGHTED), (0, 1, AvgPool((2, 2))), (1, 2, AvgPool((3, 1))), (0, 2, SKIP)],
        {
            "layer": Conv(**CONV, order="act-linear", activation="relu"),
            "aggregation": "scaled-sum",
            "image_readout": "global-average",
        },
    ),
    "lines": (
        [(0, 1, Conv(filter_shape=(3,), strides=(2,), activation="relu")), (0, 1, AvgPool((3,), strides=(2,)))],
        {"stem": Dense(activation="relu")},
    ),
}


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize("parameterization", ["ntk", pytest.param("standard", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(of, marks=pytest.mark.nightly)
        if of in ("valid, strided, averaged", "activation first, pooling, averaged", "pooling")
        else of
        for of in IMAGES
    ],
)
def test_images(name, parameterization):
    edges, options = IMAGES[name]
    shape = (7, 2) if name == "lines" else (3, 4, 2)
    x = np.random.default_rng(2).normal(size=(2, *shape))
    compare(
        dag_of(max(target for _, target, _ in edges) + 1, edges),
        [x],
        1e-8,  # the root of the precision, to which angles are known where covariances of all pixels are kept
        parameterization=parameterization,
        **options,
    )


@pytest.mark.nightly
@pytest.mark.parametrize("image_readout", ["flatten", "global-average"])
def test_images_of_two_inputs(image_readout):
    edges = [(0, 2, WEIGHTED), (1, 2, WEIGHTED), (1, 2, SKIP), (2, 3, WEIGHTED), (0, 3, AvgPool((3, 3)))]
    images = [np.random.default_rng(seed).normal(size=(3, 3, 4, seed + 1)) for seed in (0, 1)]
    dag = dag_of(4, edges, num_inputs=2)
    compare(dag, images, 1e-10, layer=Conv(**CONV, activation="relu"), image_readout=image_readout)
