"""Mistaken arguments: the function that was called refuses them, or warns of them, in one line."""

import dataclasses
import functools
import re
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import nngp_dag as nd
from nngp_dag.errors import (
    GraphError,
    InputError,
    InputWarning,
    NngpDagError,
    NumericalWarning,
    OutOfMemoryError,
    shown,
)
from nngp_dag.graph import as_dag
from nngp_dag.report.tables import dag_table

# Users do not have the type checker of the tests.
pytestmark = pytest.mark.usefixtures("unchecked")

X = np.random.default_rng(0).normal(size=(6, 5))
IMAGES = np.random.default_rng(1).normal(size=(2, 6, 6, 3))
DAG = nd.Dag.from_code("2_12")
UNIT = nd.Kernel(np.eye(2), np.eye(2))
SKIP = nd.Op.SKIP
CONV = nd.Conv(filter_shape=(3, 3))
RNGS = nnx.Rngs(0)
PART = nd.data.Part(X.astype(np.float32), np.arange(6) % 2)
SPLITS = nd.data.Splits("mine", PART, PART, PART, num_classes=2)


@functools.cache
def stem():
    x = X / np.linalg.norm(X, axis=1, keepdims=True)
    return nd.kernel("1", x, readout=False)


ENTRIES = {
    "kernel": lambda dag: nd.kernel(dag, X).ntk,
    "gram": lambda dag: nd.gram(dag, X).ntk,
    "lambda_min_bracket": lambda dag: nd.lambda_min_bracket(dag, X).ntk.upper,
    "path_bound": lambda dag: nd.path_bound(dag, stem().nngp).value,
    "ntk_path_bound": lambda dag: nd.ntk_path_bound(dag, stem()).value,
    "DagNet": lambda dag: nd.nets.DagNet(dag, 5, 1, width=3, rngs=nnx.Rngs(0))(X),
    "DagLayer": lambda dag: nd.stax.DagLayer(dag, width=3)[0](jax.random.key(0), (6, 5))[0][1],
    "dag_table": lambda dag: dag_table(dag) is not None,
}


# Functions that depend on the graph alone.
OF_GRAPHS = ("path_bound", "ntk_path_bound", "dag_table")


@pytest.mark.parametrize("entry", ENTRIES)
def test_entry_points_take_texts_and_refuse_what_is_no_graph(entry):
    np.testing.assert_array_equal(ENTRIES[entry](" dag#1 "), ENTRIES[entry](nd.zoo.named("DAG#1")))
    kinds = "`dag` to be a `Dag`" if entry in OF_GRAPHS else "`network` to be a `Network`, a `Dag`"
    with pytest.raises(GraphError, match=rf"Expected {kinds}.*got an array of shape \(6, 5\); the graph"):
        ENTRIES[entry](X)


LAYER: dict[str, Any] = {"activation": "erf", "order": "act-linear", "w_std": 1.25, "b_std": 0.25}
OPTIONS: dict[str, Any] = {"aggregation": "mean", "parameterization": "standard", "width": 3}


def _kernels(k):
    return np.stack([k.nngp, k.ntk])


def _outputs(init, apply):
    return apply(init(jax.random.key(0), X.shape)[1], jnp.asarray(X, jnp.float32))


# Each result is an array of numbers that depend on every option above.
NETWORKS = {
    "kernel": lambda network, **options: _kernels(nd.kernel(network, X, **options)),
    "gram": lambda network, **options: _kernels(nd.gram(network, X, **options)),
    "sweep": lambda network, **options: nd.sweep([network], X, **options).select_dtypes(float).to_numpy(),
    "DagNet": lambda network, **options: nd.nets.DagNet(network, 5, 1, rngs=nnx.Rngs(0), **options)(X),
    "DagLayer": lambda network, **options: _outputs(*nd.stax.DagLayer(network, **options)[:2]),
    "compare": lambda network, **options: np.stack(
        [
            (c.curves[0], c.expected.mean, c.bound)
            for c in nd.compare(network, X, X, seeds=1, steps=2, predict_width=False, **options)
        ]
    ),
}


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("entry", NETWORKS)
def test_a_network_a_dag_and_a_text_give_the_same_bits(entry):
    call, layer = NETWORKS[entry], nd.Dense(**LAYER)
    expected = call(nd.Network(DAG, layer, **OPTIONS))
    given = {
        "a dag and options": (DAG, LAYER | OPTIONS),
        "a text and options": (" 2_12", LAYER | OPTIONS),
        "a text and a layer": ("2_12", {"layer": layer, **OPTIONS}),
        "another network and options": (nd.Network("2_12", width=9), LAYER | OPTIONS),
    }
    for network, options in given.values():
        jax.tree.map(np.testing.assert_array_equal, call(network, **options), expected)
    # Every option changes the numbers.
    for option in ("w_std", "aggregation", "width"):
        changed = nd.Network(DAG, layer, **OPTIONS)
        if option == "w_std":
            changed = dataclasses.replace(changed, layer=nd.Dense(**{**LAYER, "w_std": 1.5}))
        else:
            changed = dataclasses.replace(changed, **{option: {"aggregation": "sum", "width": 4}[option]})
        with pytest.raises(AssertionError):
            jax.tree.map(np.testing.assert_array_equal, call(changed), expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (7, "got 7; pass `Dag.from_code"),
        (X, r"an array of shape \(6, 5\); the graph comes first"),
        (jnp.ones(3), r"an array of shape \(3,\)"),
        (nnx.Linear(2, 3, rngs=RNGS), r"a model, Linear; `nngp_dag.trace\(model, x\)` reads it"),
        (nd.nets.DagNet(DAG, 5, 1, width=2, rngs=RNGS), "a DagNet; pass its `.dag`"),
        (DAG.to_networkx(), "`Dag.from_networkx` reads it"),
        ([(0, 1, "skip")], "`Dag.from_edges` reads"),
        ("DGA#1", "did you mean 'DAG#1'"),
        ("2_3", "block 2 of `code`"),
        ("  ", "Expected `text` to be a code"),
    ],
)
def test_what_is_no_graph_is_named_with_a_remedy(value, message):
    with pytest.raises(GraphError, match=message):
        as_dag(value)


def test_any_text_form_is_read_and_blanks_are_no_part_of_it():
    cell = "|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|"
    texts = (" 2_21_112\n", "DAG#3", "dag#3 ", "2_21_121 ", f"{cell}\n")
    assert [nd.Dag.parse(text).code for text in texts] == ["2_21_112"] * 3 + ["2_21_121"] * 2
    assert nd.Dag.from_code("2_21_112 ") == nd.Dag.parse("DAG#3")
    with pytest.raises(GraphError, match=r"`Dag\.parse` reads names and cells too"):
        nd.Dag.from_code("DAG#1")
    with pytest.raises(GraphError, match=r"got '2_12'; `Dag\.parse` reads codes"):
        nd.Dag("2_12")  # type: ignore[arg-type]


def test_arrays_are_no_splits_and_numbers_are_no_streams():
    with pytest.raises(
        InputError, match=r"`data` to be `nngp_dag\.data\.Splits`, got an array of shape \(6, 5\); build"
    ):
        nd.train(DAG, X, nd.Recipe(epochs=1))  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"Expected `networks` to be a `Network`, a `Dag`.*an array of shape \(6, 5\)"):
        nd.train(X, DAG)  # type: ignore[arg-type]
    for networks, argument in (([DAG, X], r"networks\[1\]"), ({"a": DAG, "b": X}, r"networks\['b'\]")):
        with pytest.raises(GraphError, match=rf"Expected `{argument}` to be a `Network`, a `Dag`.*an array of shape"):
            nd.compare(networks, X, np.eye(6))  # type: ignore[arg-type]
    for call in (nd.sweep, nd.compare, nd.train):
        for networks, message in (
            (X, "`networks` to be .*an array of shape .*; the graph comes first"),
            (DAG.to_networkx(), "`networks` to be .*; `Dag.from_networkx` reads it"),
            ([(0, 1, "weighted")], r"`networks\[0\]` to be .*; `Dag\.from_edges` reads"),
            (["2", 3], r"`networks\[1\]` to be .*, got 3"),
        ):
            with pytest.raises(GraphError, match=f"Expected {message}"):
                call(networks, *[X] * (1 + (call is nd.compare)))  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"`networks` before `data`, got the data first; pass train\(networks, data\)"):
        nd.train(SPLITS, "2_12")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"names of `networks` to be text, got 1; pass str\(name\)"):
        nd.train({1: "2"}, SPLITS)  # type: ignore[dict-item]
    for first in (nd.Network("2"), DAG, "2"):
        with pytest.raises(InputError, match=r"Expected `x1` to be an array, got .*; one network comes first"):
            nd.kernel("2_12", first)  # type: ignore[arg-type]
    with pytest.raises(GraphError, match=r"got a DagNet; pass its `\.network`"):
        nd.kernel(nd.nets.DagNet(DAG, 5, 1, width=2, rngs=RNGS), X)
    with pytest.raises(InputError, match=r"`rngs` to be `flax\.nnx\.Rngs`, got None"):
        nd.nets.DagNet(DAG, 5, 1, width=3)
    with pytest.raises(InputError, match=r"`rngs` to be `flax\.nnx\.Rngs`, got 0; pass nnx\.Rngs\(0\)"):
        nd.nets.DagNet(DAG, 5, 1, width=3, rngs=0)  # type: ignore[arg-type]
    calls = (
        nd.kernel,
        nd.gram,
        nd.lambda_min_bracket,
        lambda dag, x, **typo: nd.sweep([dag], x, **typo),
        lambda dag, x, **typo: nd.compare(dag, x, np.eye(6), **typo),
        lambda dag, x, **typo: nd.train(dag, SPLITS, **typo),
        lambda dag, x, **typo: nd.nets.DagNet(dag, 5, 1, rngs=RNGS, **typo),
        lambda dag, x, **typo: nd.stax.DagLayer(dag, **typo),
    )
    for call in calls:
        message = r"Expected options of the network \(activation, .*\), got `activatn`; did you mean 'activation'\?"
        with pytest.raises(InputError, match=message):
            call(DAG, X, activatn="erf")  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize(
    ("call", "given", "meant"),
    [
        (lambda **typo: nd.kernel(DAG, X, **typo), "gett", "get"),
        (lambda **typo: nd.explain(DAG, X, **typo), "dytpe", "dtype"),
        (lambda **typo: nd.gram(DAG, X, **typo), "memory_buget", "memory_budget"),
        (lambda **typo: nd.sweep([DAG], X, **typo), "bnds", "bounds"),
        (lambda **typo: nd.train(DAG, SPLITS, **typo), "seed", "seeds"),
        (lambda **typo: nd.compare(DAG, X, np.eye(6), **typo), "step", "steps"),
        (lambda **typo: nd.nets.DagNet(DAG, 5, 1, rngs=RNGS, **typo), "batchnorm", "batch_norm"),
        (lambda **typo: nd.stax.DagLayer(DAG, **typo), "has_sten", "has_stem"),
    ],
)
def test_typos_of_an_entry_points_own_arguments_are_named(call, given, meant):
    with pytest.raises(
        InputError, match=rf"other arguments \(.*\b{meant}\b.*\), got `{given}`; did you mean '{meant}'\?"
    ):
        call(**{given: 3})


# Kernels of one network.


def test_kernels_of_different_networks_are_refused_together():
    train, test = X[:4], X[4:]
    y = np.arange(4.0)

    def kernels(**options):
        return nd.kernel(DAG, train, **options), nd.kernel(DAG, test, train, **options), nd.kernel(DAG, test, **options)

    tt, xt, xx = kernels()
    expected = nd.posterior(tt, xt, xx, y, noise=0.1)
    gram = nd.gram(DAG, test, train), nd.gram(DAG, test)
    np.testing.assert_allclose(nd.posterior(tt, *gram, y, noise=0.1).mean, expected.mean, rtol=1e-12)
    for i, (options, name) in enumerate(
        [({"w_std": 1.0}, "layer"), ({"aggregation": "mean"}, "aggregation"), ({"readout": False}, "readout")]
    ):
        other = kernels(**options)
        with pytest.raises(
            InputError, match=f"`k_train_train` and `k_test.*` to be kernels of one network, got `{name}`"
        ):
            nd.posterior(tt, *((other[1], xx) if i % 2 else (xt, other[2])), y, noise=0.1)
    other = nd.kernel("2_02", test, train)
    with pytest.raises(InputError, match="got `dag` 2_12 and 2_02; compute them with"):
        nd.kernel_regression_accuracy(tt, other, np.array([0, 1, 0, 1]), np.array([0, 1]), 2, noise=0.1)
    with pytest.raises(InputError, match="got `dag` 2_12 and 2_02"):
        nd.loss_curve(tt, y, 0.1, 2, k_test_train=other, k_test_test=xx, y_test=np.arange(2.0))
    with pytest.raises(InputError, match="Expected `k_test_train` to be a `Kernel`, got ndarray"):
        nd.posterior(tt, np.asarray(xt.nngp), xx, y)  # type: ignore[arg-type]
    # Kernels that are built by hand, or by a transformation, have no network, and share one compilation.
    by_hand = nd.Kernel(xt.nngp, xt.ntk), jax.tree.map(np.asarray, xx)
    np.testing.assert_array_equal(nd.posterior(tt, *by_hand, y, noise=0.1).mean, expected.mean)
    difference = jax.tree.map(lambda a, b: a - b, xt, other)
    assert difference.network is None
    assert jax.tree.structure(xt) == jax.tree.structure(other)


def test_kernels_are_of_one_network_whatever_edges_are_dead():
    one, other = (
        nd.Network(nd.Dag(3, edges)) for edges in ((nd.Edge(0, 2, SKIP),), (nd.Edge(0, 1, SKIP), nd.Edge(0, 2, SKIP)))
    )
    assert one != other
    assert nd.Kernel(X, X, network=one).difference(nd.Kernel(X, X, network=other)) == ""
    with pytest.raises(InputError, match="Expected `network` to be a `Network`, a traced model or None, got '2_12'"):
        nd.Kernel(X, X, network="2_12")  # type: ignore[arg-type]


def test_what_is_not_used_of_a_kernel_may_be_missing():
    k, y = nd.kernel(DAG, X), np.arange(6.0)
    nngp, ntk = nd.Kernel(k.nngp, None), nd.Kernel(None, k.ntk)
    for kind, few in (("nngp", nngp), ("ntk", k)):
        expected = nd.posterior(k, k, k, y, kind=kind, noise=0.1).mean
        np.testing.assert_array_equal(nd.posterior(few, few, nngp, y, kind=kind, noise=0.1).mean, expected)
    nd.loss_curve(k, y, 1e-3, 1, k_test_train=k, k_test_test=nngp, y_test=y)
    nd.kernel_regression_accuracy(ntk, ntk, [0, 1] * 3, [0, 1] * 3, 2, kind="ntk", noise=0.1)  # type: ignore[arg-type]
    for call, message in (
        (lambda: nd.posterior(nngp, k, k, y, kind="ntk"), "`k_train_train` to hold both kernels, got the NNGP alone"),
        (lambda: nd.posterior(k, k, ntk, y), "`k_test_test` to hold the NNGP, got the NTK alone; call"),
        (lambda: nd.largest_stable_learning_rate(nngp), "`ntk` to hold the NTK, got the NNGP alone; call"),
        (lambda: nd.expected_loss((k, k), y, 0.1, 1), r"`k` to be one `Kernel`, got 2; pick that of one output"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.spectra(k), r"`matrices` to be a list of matrices, got Kernel\(.*; pass \[k\.nngp, k\.ntk\]"),
        (lambda: nd.spectra(3), "`matrices` to be a list of matrices, got 3"),
    ):
        with pytest.raises(InputError, match=f"Expected {message}"):
            call()


# Targets.


@pytest.mark.parametrize("y", [np.array([0, 1, 2, 0]), [3, 1, 0, 2], np.array([[0], [1], [1], [0]]), [True, False] * 2])
def test_integers_that_look_like_labels_are_no_targets(y):
    k = nd.Kernel(nngp=np.eye(4), ntk=np.eye(4))
    calls = [
        lambda y: nd.expected_loss(k, y, 0.1, 1),
        lambda y: nd.loss_curve(k, y, 0.1, 1).mean,
        lambda y: nd.modes(k, y).losses,
        lambda y: nd.posterior(k, k, k, y).mean,
        lambda y: nd.log_marginal_likelihood(k, y, 0.1),
        lambda y: nd.leave_one_out(k, y, 0.1).mean,
        lambda y: nd.linearized_prediction(k, k, k, y, 0.1, 1).mean,
    ]
    largest = int(np.max(y))
    message = rf"`y` to be numbers to regress on, got integers from 0 to {largest}, .*one_hot\(y, {largest + 1}\) for"
    for call in calls:
        with pytest.raises(InputError, match=message):
            call(y)
        call(np.asarray(y, np.float64))
        call(nd.data.one_hot(np.ravel(y).astype(int), largest + 1).astype(int))
        call(np.array([-1, 1, 1, -1]))


def test_a_single_number_is_no_list_of_targets():
    with pytest.raises(InputError, match=r"Expected `y` to have shape \(4,\) or \(4, C\), got \(\)"):
        nd.expected_loss(nd.Kernel(nngp=np.eye(4), ntk=np.eye(4)), 3, 0.1, 1)


# Comparisons.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 2.5}, "`width` to be a whole number, at least 1, got 2.5"),
        ({"width": "2"}, "`width` to be a finite number, got '2'"),
        ({"steps": True}, "`steps` to be a finite number, got True"),
        ({"seeds": 1.5}, "`seeds` to be a number or a list of whole numbers, got 1.5"),
        ({"learning_rate": "fast"}, "`learning_rate` to be 'auto', 'shared' or a number, got 'fast'"),
        ({"learning_rate": None}, "`learning_rate` to be a finite number, got None"),
        ({"learning_rate": np.float32(-1)}, "`learning_rate` to be finite and above 0, got"),
        ({"order": 3}, "`order` to be one of"),
        ({"networks": {7: "2", "b": "1"}}, r"names of `networks` to be text, got 7; pass str\(name\)"),
        ({"config": [1]}, r"`config` to be a dict with names that are text, got \[1\]"),
        ({"config": {1: 2}}, "`config` to be a dict with names that are text"),
        ({"config": {"x": X}}, "`config` to hold what JSON can"),
        ({"out": 7}, "`out` to be a path, got 7"),
        ({"on_progress": "bar"}, "`on_progress` to be a function, got 'bar'"),
    ],
)
def test_wrong_types_are_found_before_a_comparison_begins(change, message):
    arguments = {"networks": "2", "x": X, "y": np.eye(6), "on_progress": lambda task, *_: pytest.fail(task), **change}
    with pytest.raises(InputError, match=f"Expected {message}"):
        nd.compare(**arguments)


@pytest.mark.slow
def test_scalars_of_numpy_and_targets_in_one_row_are_compared(tmp_path):
    y = np.arange(6.0)
    sizes = {"width": np.int64(2), "steps": np.int64(1), "seeds": np.int64(1), "learning_rate": np.float32(0.125)}
    found = nd.compare("2", X / 9, y, out=tmp_path / "out", **sizes)[0]
    expected = nd.compare("2", X / 9, y[:, None], width=2, steps=1, seeds=1, learning_rate=0.125)[0]
    np.testing.assert_array_equal(found.curves, expected.curves)
    assert type(found.learning_rate) is float


# Inputs.


@pytest.mark.nightly
def test_images_whose_channels_come_first_are_named():
    first = np.moveaxis(IMAGES, -1, 1)
    for call in (nd.kernel, nd.gram):
        with pytest.warns(
            InputWarning, match=r"got \(2, 3, 6, 6\), which reads as 3 x 6 pixels of 6 channels"
        ) as caught:
            call(DAG, first, layer=CONV)
        assert len(caught) == 1
    # There is no warning where the argument may be intended, or does not matter.
    nd.kernel(DAG, first)
    nd.kernel(DAG, IMAGES, layer=CONV)
    nd.kernel(DAG, np.ones((2, 3, 6, 5)), layer=CONV)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=InputWarning)
        nd.kernel(DAG, first, layer=CONV)


def test_raw_bytes_are_named():
    raw = np.linspace(0, 255, 30).reshape(6, 5).astype(np.uint8)
    for call in (nd.kernel, nd.gram, lambda dag, x: nd.sweep([dag], x)):
        with pytest.warns(InputWarning, match=r"to be scaled, got bytes up to 255.*astype\(np\.float32\) if they are"):
            call(DAG, raw)
    nd.kernel(DAG, raw.astype(np.float32))
    nd.kernel(DAG, (raw > 99).astype(np.uint8))


@pytest.mark.parametrize("call", [nd.kernel, nd.gram, nd.lambda_min_bracket, lambda dag, x: nd.sweep([dag], x)])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ma.masked_greater(X, 1), "without masked entries, got 3 of them"),
        ([[1.0, 2.0], [3.0]], "to be an array, got a list that NumPy cannot read"),
        (X + 1j, "real numbers, got dtype complex128"),
    ],
)
def test_no_input_is_changed_silently(call, x, message):
    with pytest.raises(InputError, match=message):
        call(DAG, x)


def test_masked_targets_and_kernels_are_refused():
    k = nd.Kernel(nngp=np.eye(2), ntk=np.eye(2))
    with pytest.raises(InputError, match="`y` without masked entries, got 1"):
        nd.expected_loss(k, np.ma.masked_equal([0.5, 1.0], 1), 0.1, 1)
    with pytest.raises(InputError, match="`matrix` without masked entries, got 2"):
        nd.spectrum(np.ma.masked_equal(np.eye(2), 1))
    with pytest.raises(
        InputError, match=r"`matrices\[0\]` to be an array, got .*Tracer.* inside a transformation of JAX"
    ):
        jax.jit(nd.spectra)(np.eye(2)[None])


@pytest.mark.parametrize("dtype", [">f8", np.longdouble, ">f4", np.float16])
def test_precision_does_not_depend_on_byte_order(dtype):
    x = X.astype(dtype)
    native = x.astype(np.float64 if x.dtype.itemsize >= 8 else np.float32)
    k, expected = nd.kernel(DAG, x), nd.kernel(DAG, native)
    assert k.ntk.dtype == native.dtype
    np.testing.assert_array_equal(k.ntk, expected.ntk)


def test_the_precision_may_be_named():
    single = X.astype(np.float32)
    expected = nd.kernel(DAG, single.astype(np.float64)).ntk
    for x in (single, jnp.asarray(single)):
        for call in (nd.kernel, nd.gram):
            k = call(DAG, x, dtype="float64")
            assert k.ntk.dtype == np.float64
            np.testing.assert_allclose(k.ntk, expected, rtol=1e-14)
    assert nd.kernel(DAG, X, dtype="float32").ntk.dtype == np.float32
    with pytest.raises(InputError, match="`dtype` to be one of 'float32', 'float64', got 'float16'"):
        nd.kernel(DAG, X, dtype="float16")
    with pytest.raises(InputError, match="rescale the inputs, or pass dtype='float64'"):
        nd.kernel(DAG, 1e30 * X, dtype="float32")
    with pytest.raises(InputError, match="'float32' inside a transformation of JAX"):
        jax.grad(lambda x: nd.kernel(DAG, x, dtype="float64").ntk.sum())(jnp.asarray(single))


@pytest.mark.sample(1)
@pytest.mark.parametrize("b_std", [None, 0.1])
def test_a_transfer_guard_of_the_caller_does_not_reach_inside(b_std):
    x, y = jnp.asarray(X, jnp.float32), np.arange(6.0)
    with jax.transfer_guard("disallow"):
        k = nd.kernel(DAG, x, b_std=b_std, dtype="float64")
        nd.expected_loss(k, y, 1e-3, 1)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (
            lambda k: nd.posterior(k, k, k, np.arange(6.0), noise=0.1),
            "scipy.linalg.cho_factor",
        ),
        (lambda k: nd.expected_loss(k, np.arange(6.0), 1e-3, 1), "jax.numpy.linalg.eigh"),
        (lambda k: nd.sweep([DAG], X), "nngp_dag.kernels.batch.kernel_of_inputs"),
    ],
)
def test_what_does_not_fit_into_memory_is_named(monkeypatch, call, part):
    k = nd.kernel(DAG, X)

    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(part, full)
    with pytest.raises(OutOfMemoryError, match=r"Expected .* to fit into memory, got: .*take fewer inputs"):
        call(k)


def test_inputs_on_explicit_axes_of_a_mesh_are_named():
    mesh = jax.make_mesh((1,), ("i",), axis_types=(jax.sharding.AxisType.Explicit,))
    x = jax.device_put(X, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("i")))
    for call in (lambda v: nd.kernel(DAG, v), jax.jit(lambda v: nd.kernel(DAG, v).ntk)):
        with pytest.raises(InputError, match=r"axes are of type Auto, got float32\[6@i,5\] on explicit axes"):
            call(x)


# Networks.


@pytest.mark.nightly
def test_dense_layers_beside_convolutions_are_named():
    mixed = nd.Dag.from_edges([("in", "a", CONV), ("a", "out", "weighted"), ("in", "out", "skip")])
    own = nd.Dag.from_edges([("in", "a", CONV), ("a", "out", nd.Dense())])
    message = "`layer` for a graph whose edges have convolutions of their own, got none: the stem"
    for dag, what in ((mixed, f"{message} and the plain weighted edges 1->2"), (own, f"{message} will")):
        with pytest.warns(InputWarning, match=what):
            default = nd.kernel(dag, IMAGES).ntk
        # The warning is right about the computation.
        np.testing.assert_array_equal(default, nd.kernel(dag, IMAGES, layer=nd.Dense()).ntk)
    with pytest.warns(InputWarning, match="got none: the plain weighted edges 1->2 will"):
        nd.kernel(mixed, IMAGES, stem=CONV)
    nd.kernel(mixed, IMAGES, layer=CONV)
    nd.kernel(own, IMAGES, stem=CONV)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda v: nd.Dense(layer_norm=v), "layer_norm"),
        (lambda v: nd.AvgPool((2, 2), normalize_edges=v), "normalize_edges"),
        (lambda v: nd.kernel(DAG, X, readout=v), "readout"),
        (lambda v: nd.gram(DAG, X, overwrite=v), "overwrite"),
        (lambda v: nd.ntk_path_bound(DAG, stem(), readout=v), "readout"),
        (lambda v: nd.sweep([DAG], X, resume=v), "resume"),
        (lambda v: nd.compare(DAG, X, np.eye(6), width=2, steps=1, seeds=1, resume=v), "resume"),
        (lambda v: nd.compare(DAG, X, np.eye(6), width=2, steps=1, seeds=1, overwrite=v), "overwrite"),
        (lambda v: nd.spectrum(np.eye(2), eigenvalues=v), "eigenvalues"),
        (lambda v: nd.largest_stable_learning_rate(np.eye(2), nesterov=v), "nesterov"),
        (lambda v: nd.expected_loss(nd.Kernel(np.eye(2), np.eye(2)), np.ones(2), 0.1, 1, flow=v), "flow"),
        (lambda v: nd.Recipe(batch_norm=v), "batch_norm"),
        (lambda v: nd.nets.DagNet(DAG, 5, 1, width=2, batch_norm=v, rngs=nnx.Rngs(0)), "batch_norm"),
    ],
)
def test_texts_and_numbers_are_no_truth_values(call, name):
    for value in ("false", 0, None):
        with pytest.raises(InputError, match=f"Expected `{name}` to be True or False, got {value!r}"):
            call(value)
    call(np.bool_(False))


@pytest.mark.parametrize(
    "number", [jnp.float32(1.5), np.array(1.5), np.float32(1.5), np.float64(1.5), jnp.asarray(1.5)]
)
def test_scalars_of_numpy_and_jax_are_numbers(number):
    assert nd.Dense(w_std=number, b_std=number) == nd.Dense(w_std=1.5, b_std=1.5)
    assert nd.Scale(number) == nd.Scale(1.5)
    assert nd.activations.Erf(number) == nd.activations.Erf(1.5)
    assert type(nd.Dense(w_std=number).w_std) is float


@pytest.mark.parametrize(
    "use",
    [
        lambda v: nd.Network(DAG, layer=nd.Dense(w_std=v)),
        lambda v: nd.Scale(v),
        lambda v: nd.activations.rbf(v),
        lambda v: nd.activations.Polynomial((1.0, v)),
        lambda v: nd.Recipe(learning_rate=v),
        lambda v: nd.largest_stable_learning_rate(np.eye(2), momentum=v),
        lambda v: nd.rate_bound(0.1, v, 1, 1.0),
        lambda v: nd.modes(UNIT, np.ones(2), v),
    ],
)
def test_gradients_in_parameters_are_refused_in_one_line(use):
    for transform in (jax.grad, jax.jit):
        with pytest.raises(InputError, match="inside a transformation of JAX; pass a number from outside"):
            transform(use)(0.5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nd.kernel(DAG, X, get=[["nngp"], ["ntk"]]), "`get` to be 'nngp', 'ntk' or both of them, got"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.evaluate(None), "`checkpoint` to be a path, got None"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.nets.summarize(nd.Network("2")), "`model` to be a `DagNet`, got Network"),
        (lambda: nd.lambda_min_bracket("2", X[0]), "`x` to have shape"),
        (lambda: nd.gram(DAG, X, tile=1.5), "`tile` to be a whole number, at least 1, got 1.5"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.gram(DAG, X, tile=True), "`tile` to be a finite number, got True"),
        (lambda: nd.gram(DAG, X, out="a\0b"), "`out` to be a path"),
        (lambda: nd.gram(DAG, X, on_progress=3), "`on_progress` to be a function, got 3"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.sweep([DAG], X, out=3), "`out` to be a path, got 3"),  # pyright: ignore[reportArgumentType]
        (lambda: nd.sweep([DAG], X, on_progress=3), "`on_progress` to be a function"),  # pyright: ignore[reportArgumentType]
        (
            lambda: nd.kernel_regression_accuracy(stem(), stem(), [0] * 6, [0] * 6, "3"),  # pyright: ignore[reportArgumentType]
            "`num_classes` to be a",
        ),
        (
            lambda: nd.linearized_sgd(stem(), [0, 1] * 3, 0.1, batch_size="2", epochs=1),  # pyright: ignore[reportArgumentType]
            "`batch_size` to be a",
        ),
        (lambda: nd.nas.sample_cells("3", 0), "`count` to be a finite number"),
        (lambda: nd.nas.Setting(IMAGES[:, :4, :4], channels="2"), "`channels` to be a finite number"),
        (lambda: list(nd.nas.score_cells(["|x|"], [], nd.nas.Setting(IMAGES[:, :4, :4]))), "of type `Cell`, got"),
    ],
)
def test_numbers_paths_and_functions_of_another_type(call, message):
    with pytest.raises(InputError, match=message):
        call()


# Memory and overflow.


def test_kernels_beyond_memory_name_their_size_and_gram():
    with pytest.raises(OutOfMemoryError, match=r"2 x 596 GiB of kernels of 400,000 x 400,000 inputs.*`nngp_dag\.gram`"):
        nd.kernel(DAG, np.ones((400_000, 2), np.float32))


@pytest.mark.sample(2, slow=1)
@pytest.mark.parametrize(
    ("dag", "x", "options", "message"),
    [
        (nd.zoo.chain(5), 10 * X, {"activation": "exp"}, "the activation exp grows faster than its input"),
        (nd.zoo.ladder(1000), X, {}, r"an NNGP and an NTK with .*10\^209 paths, .* add up: aggregation='mean'"),
        (nd.Dag.from_edges([(0, 1, 2), (1, 2, nd.Scale(1e12)), (2, 3, nd.Scale(1e12))]), X.astype(np.float32), {},
         r"the factors of its edges \(`Scale`\) multiply: smaller factors, or dtype='float64'"),
        (nd.zoo.chain(1000), X, {"activation": "erf", "w_std": 3.0}, r"an NTK with.*1,000 weighted edges in a row"),
        (nd.zoo.chain(3), 1e16 * X.astype(np.float32), {"w_std": 1e4}, r"inputs reach .*or dtype='float64'"),
    ],
)  # fmt: skip
def test_an_overflow_names_a_cause_that_the_graph_has(dag, x, options, message):
    with pytest.raises(InputError, match=message) as caught:
        nd.kernel(dag, x, **options)
    assert ("skips" in str(caught.value)) == (dag == nd.zoo.ladder(1000))


@dataclasses.dataclass(frozen=True)
class Roll(nd.graph.EdgeOperation):
    """An operation that mixes pixels, but does not define how sizes change."""

    mixes_pixels = True


@dataclasses.dataclass(frozen=True)
class Shapeless(nd.graph.EdgeOperation):
    """An operation whose scale is not a number."""

    factor = None


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (Roll(), r"Expected a `window` of `Roll`, which mixes pixels, got None; say how sizes change"),
        (Shapeless(), "Expected `factor` of `Shapeless` to be a finite number, got None"),
    ],
)
def test_operations_that_lack_something_are_refused_when_a_network_is_made(op, message):
    with pytest.raises(InputError, match=message):
        nd.Network([(0, 1, op), (1, 2, "weighted")])


def test_windows_of_more_than_twice_the_image_are_refused():
    network = nd.Network([(0, 1, nd.SumPool((10**60, 3))), (1, 2, "weighted")], nd.Conv(filter_shape=(3, 3)))
    with pytest.raises(GraphError, match="Expected windows of at most twice the image"):
        nd.kernel(network, IMAGES[:2])
    with pytest.raises(InputError, match="Expected an `AvgPool` or a `SumPool`, got a `Pool`"):
        nd.graph.operations.Pool((2, 2))


def test_an_unknown_dtype_is_refused():
    with pytest.raises(InputError, match=r"`dtype` to be one of 'float32', 'float64', got 'float33'; did you mean"):
        nd.kernel("2", X, dtype="float33")


# Messages.


def test_values_in_messages_are_short():
    assert shown(10**5000) == "an integer of 16610 bits"
    assert len(shown([[10**5000]])) < 100
    assert len(shown("2" * 10**6)) < 200
    values: tuple[Any, ...] = ("2_" * 50_000, 10**5000, 10**400, [1.0] * 10**5)
    for bad in values:
        for call in (nd.Dag.parse, lambda v: nd.Dense(w_std=v), lambda v: nd.kernel(DAG, X, order=v), as_dag):
            with pytest.raises(NngpDagError) as caught:
                call(bad)
            assert len(str(caught.value)) < 800
    # A message keeps its remedy, however long the values in it are.
    error = NngpDagError(f"Expected little, got {'x' * 10**5}; take less")
    assert len(str(error)) < 2100
    assert re.match(r"Expected little, got x+ \.\.\. x+; take less$", str(error))


def test_a_long_range_is_no_list_of_nodes():
    cell = [("sep_conv_3x3", 0), ("skip_connect", 1)] * 4
    text = f"Genotype(normal={cell}, normal_concat=range(0, {10**9}), reduce={cell}, reduce_concat=range(2, 6))"
    with pytest.raises(GraphError, match=r"`normal_concat` to be nodes 2 to 5, got range\(0, 1000000000\)"):
        nd.nas.Genotype.from_text(text)
    with pytest.raises(GraphError, match="normal"):
        nd.nas.Genotype.from_text(text.replace("range(0, 1000000000)", "0x" + "f" * 5000))


# A cause gives one warning, and the remedy that it names works.


def test_warnings_of_resolution_name_the_noise_that_resolves():
    data = nd.data.load_dataset("digits", subset=160)
    x = nd.data.normalize(data).reshape(160, -1)
    k = nd.kernel(DAG, x[:120])
    singular = nd.Kernel(*(np.asarray(v) @ np.asarray(v).T / 1e3 for v in (k.nngp, k.ntk)))

    def call(noise):
        nd.spectrum(np.asarray(singular.ntk) + np.float32(noise) * np.eye(120, dtype=np.float32))

    with pytest.warns(NumericalWarning, match="not resolved.*dtype='float64'") as caught:
        call(1e-4)
    assert len(caught) == 1
    named = re.search(r"noise`? of (?:about )?([0-9.e+-]+) or more", str(caught[0].message))
    assert named
    call(float(named[1]))


def test_spectra_warn_once_of_all_that_is_not_resolved():
    with pytest.warns(NumericalWarning, match=r"^matrices\[1\] and 1 others: lambda_min is not") as caught:
        nd.spectra(np.stack([np.eye(3), np.ones((3, 3)), np.ones((3, 3))]))
    assert len(caught) == 1
