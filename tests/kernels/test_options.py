"""Options that `kernel` accepts and refuses; test_cases.py tests the values of kernels with options."""

import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.architecture import as_network
from nngp_dag.errors import GraphError, InputError, NumericalWarning
from nngp_dag.kernels import pixel_layout

X = np.random.default_rng(0).normal(size=(4, 6))
IMAGES = np.random.default_rng(1).normal(size=(3, 4, 4, 2))
DAG = nd.Dag.from_code("2_12")
CONV = nd.Conv(filter_shape=(3, 3))
TWO_INPUTS = nd.Dag.from_edges([("a", "c", 2), ("b", "c", 1), ("c", "out", 2)], source=["a", "b"])
TWO_OUTPUTS = nd.Dag.from_edges([("in", "a", 2), ("in", "b", 1), ("a", "b", 2)], output=["a", "b"])


def test_get():
    both = nd.kernel(DAG, X)
    assert isinstance(both, nd.Kernel)
    np.testing.assert_array_equal(nd.kernel(DAG, X, get=("ntk", "nngp")).ntk, both.ntk)
    np.testing.assert_allclose(nd.kernel(DAG, X, get="nngp").nngp, both.nngp, rtol=1e-15)
    alone = nd.kernel(DAG, X, get="ntk")
    np.testing.assert_allclose(alone.ntk, both.ntk, rtol=1e-15)
    assert alone.nngp is None


@pytest.mark.slow
def test_several_inputs_read_one_array_or_one_each():
    shared = nd.kernel(TWO_INPUTS, X)
    np.testing.assert_array_equal(shared.ntk, nd.kernel(TWO_INPUTS, [X, X]).ntk)
    other = nd.kernel(TWO_INPUTS, [X, IMAGES.reshape(3, -1)[[0, 1, 2, 0]]])
    assert not np.allclose(other.ntk, shared.ntk)
    half = nd.kernel(TWO_INPUTS, [X, X], [X[:2], X[:2]])
    np.testing.assert_allclose(half.ntk, shared.ntk[:, :2], rtol=1e-6)


def test_several_outputs_give_a_tuple():
    first, second = nd.kernel(TWO_OUTPUTS, X)
    np.testing.assert_allclose(first.ntk, nd.kernel(nd.Dag.from_code("2"), X).ntk, rtol=1e-14)
    np.testing.assert_allclose(second.ntk, nd.kernel(nd.Dag.from_code("2_12"), X).ntk, rtol=1e-14)


def test_a_graph_on_an_edge_is_put_in_its_place():
    inner = nd.Dag.from_code("2_12")
    nested = nd.Dag.from_edges([("in", "mid", inner), ("in", "mid", "skip"), ("mid", "out", inner)])
    flat = nd.Dag.from_edges(
        [(0, 1, 2), (0, 2, 1), (1, 2, 2), (2, 3, 1), (0, 3, 1), (3, 4, 2), (3, 5, 1), (4, 5, 2), (5, 6, 1)]
    )
    np.testing.assert_allclose(nd.kernel(nested, X).ntk, nd.kernel(flat, X).ntk, rtol=1e-13)


@pytest.mark.slow
def test_the_standard_parameterization_grows_with_the_width():
    narrow, wide = (nd.kernel(DAG, X, parameterization="standard", width=w) for w in (64, 128))
    np.testing.assert_allclose(narrow.nngp, nd.kernel(DAG, X).nngp, rtol=1e-14)
    # All layers double, except the stem, whose fan-in is the size of the inputs.
    difference = np.asarray(wide.ntk) - np.asarray(narrow.ntk)
    quadruple = nd.kernel(DAG, X, parameterization="standard", width=256)
    np.testing.assert_allclose(np.asarray(quadruple.ntk) - np.asarray(wide.ntk), 2 * difference, rtol=1e-12)


@pytest.mark.nightly
def test_a_quadrature_that_is_not_accurate_warns():
    tanh = nd.activations.Quadrature(jnp.tanh)
    with pytest.warns(
        NumericalWarning, match=r"quadrature of quadrature\(tanh\) at the stem .* an error of up to 0.\d of"
    ):
        nd.kernel(DAG, X, activation=tanh, w_std=5.0)
    edge = nd.Dag.from_edges([(0, 1, nd.Dense(activation=tanh, w_std=9.0, order="act-linear")), (1, 2, 1)])
    with pytest.warns(NumericalWarning, match=r"at edge 0->1:quadrature\(tanh\)-dense"):
        nd.kernel(edge, X, order="act-linear", w_std=3.0)


@pytest.mark.slow
def test_the_readouts_activation_counts():
    # The activation is on no edge, but it decides whether kernels scale with their inputs.
    dag = nd.Dag.from_edges([(0, 1, nd.Dense(order="act-linear"))])
    k = nd.kernel(dag, X, activation="erf", order="act-linear")
    last = nd.kernel(dag, X, activation="erf", order="act-linear", readout=False).nngp
    e = np.sqrt(1 + 2 * np.diag(last))
    np.testing.assert_allclose(k.nngp, 2 * 2 / np.pi * np.arcsin(2 * last / np.outer(e, e)), rtol=1e-12)
    sign = nd.activations.Quadrature(jnp.sign)
    with pytest.warns(NumericalWarning, match="at the readout"):
        nd.kernel(dag, X, activation=sign, order="act-linear")


@pytest.mark.slow
def test_scales_that_cancel_are_exact():
    # X3 - X0 of a residual chain with small branches is a millionth of either.
    small = nd.Dense(w_std=1e-3, order="act-linear")
    edges = [(t, t + 1, op) for t in range(3) for op in ("skip", small)]
    dag = nd.Dag.from_edges([*edges, (3, 4, "skip"), (0, 4, nd.Scale(-1.0))])
    single = nd.kernel(dag, X.astype(np.float32), order="act-linear", readout=False)
    double = nd.kernel(dag, X.astype(np.float32).astype(np.float64), order="act-linear", readout=False)
    np.testing.assert_allclose(single.nngp, double.nngp, rtol=1e-5, atol=1e-6 * np.abs(double.nngp).max())


@pytest.mark.slow
def test_inputs_of_zeros_are_inputs():
    zeros = np.zeros((1, 6))
    assert not nd.kernel(DAG, X, zeros).ntk.any()
    k = nd.kernel(DAG, zeros, b_std=1.0)
    assert k.nngp[0, 0] > 0


def test_cells_with_dead_nodes_can_be_nested():
    cell = nd.Dag.from_nasbench201("|none~0|+|nor_conv_3x3~0|none~1|+|none~0|nor_conv_3x3~1|skip_connect~2|")
    nested = nd.Dag.from_edges([("a", "b", cell), ("b", "c", "weighted")])
    np.testing.assert_allclose(nd.kernel(nested, X).ntk, nd.kernel(nd.zoo.chain(2), X).ntk, rtol=1e-13)


def test_an_identity_is_no_activation():
    assert nd.Dense(activation=nd.activations.IDENTITY) == nd.Dense(activation=None)
    assert nd.Dense(activation=nd.activations.leaky_relu(1.0)).output_is_gaussian


@pytest.mark.parametrize(
    ("dag", "x", "options", "error", "match"),
    [
        (DAG, X, {"get": "cov"}, InputError, "Expected `get` to be 'nngp', 'ntk' or both of them, got 'cov'"),
        (DAG, X, {"get": ()}, InputError, "Expected `get` to be 'nngp', 'ntk' or both"),
        (DAG, X, {"parameterization": "mup"}, InputError, "Expected `parameterization` to be one of 'ntk', 'standard'"),
        (DAG, X, {"aggregation": "max"}, InputError, "Expected `aggregation` to be one of 'sum', 'scaled-sum', 'mean'"),
        (DAG, X, {"layer": CONV, "b_std": 1.0}, InputError, "Expected either `layer` or `activation`, .*, got both"),
        (DAG, IMAGES, {"layer": CONV, "image_readout": "max"}, InputError, "Expected `image_readout` to be one of"),
        (DAG, X, {"layer": CONV}, InputError, r"Expected `x1` to hold images \(N, \*pixels, channels\)"),
        (DAG, IMAGES[..., 0], {"layer": CONV}, GraphError, "Expected images with 2 spatial axes for the stem, got 1"),
        (TWO_INPUTS, [X, X, X], {}, InputError, "Expected `x1` to list 2 arrays, one per input node, got 3"),
        (TWO_INPUTS, [X, X[:2]], {}, InputError, "Expected all arrays of `x1` to hold equally many inputs, got"),
        (TWO_INPUTS, [IMAGES, IMAGES[:, :2]], {"layer": CONV}, InputError, "to hold images of one shape, got"),
        (TWO_INPUTS, [X, np.inf * X], {}, InputError, r"Expected `x1\[1\]` to be finite"),
        (DAG, X, {"width": 0}, InputError, "Expected `width` to be a whole number, at least 1"),
        (
            DAG,
            X,
            {"image_readout": "global-average"},
            InputError,
            "Expected `image_readout` 'flatten' for a network",
        ),
        (DAG, 30 * X.astype(np.float32), {"activation": "exp"}, InputError, "Expected kernels that float32 can hold"),
        (nd.Dag.from_edges([(0, 1, nd.AvgPool((2,)))]), IMAGES, {"layer": CONV}, GraphError, "with 1 spatial axes for"),
    ],
)
def test_bad_options(dag, x, options, error, match):
    with pytest.raises(error, match=match):
        nd.kernel(dag, x, **options)


def test_a_layer_is_an_operation():
    # Not through `kernel`, whose annotations the type checker of the tests enforces.
    with pytest.raises(InputError, match="Expected `layer` to be a `Dense` or a `Conv`, got 'conv'"):
        as_network(DAG, layer="conv")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("normalize_edges", [True, False])
def test_windows_that_reach_over_the_edge_divide_by_the_pixels_inside_or_by_all(normalize_edges):
    v = np.random.default_rng(0).normal(size=(2, 5, 4))
    found = pixel_layout.pool(nd.AvgPool((3, 2), normalize_edges=normalize_edges), jnp.asarray(v), (1, 2))
    for i in range(5):
        for j in range(4):
            window = v[:, max(i - 1, 0) : i + 2, j : j + 2]
            expected = window.mean(axis=(1, 2)) if normalize_edges else window.sum(axis=(1, 2)) / 6
            np.testing.assert_allclose(found[:, i, j], expected, atol=1e-6)
