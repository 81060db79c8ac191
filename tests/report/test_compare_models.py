"""Traced models beside networks: in comparisons, in theory, and in functions of networks."""

import csv
import functools
import io
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from rich.console import Console

import nngp_dag as nd
from nngp_dag.errors import CheckpointError, InputError, ModelError, NumericalWarning
from nngp_dag.nets import DagNet, descend
from nngp_dag.report.tables import compare_table
from nngp_dag.tracing._finite import readout_kernel, trainable

X = np.random.default_rng(0).normal(size=(6, 5))
Y = np.random.default_rng(1).normal(size=(6, 2))
LABELS = np.arange(6) % 2
compare: Any = nd.compare
# The five features of the input have truncated normal weights.
pytestmark = pytest.mark.filterwarnings("ignore:values at:nngp_dag.errors.NumericalWarning")


def dag_net(width=32, *, rngs):
    return DagNet("2_12", 5, 2, width=width, rngs=rngs)


class Tied(nnx.Module):
    """A hidden layer that is used twice, which no `Network` has."""

    def __init__(self, width=48, *, rngs):
        self.stem = nnx.Linear(5, width, rngs=rngs)
        self.hidden = nnx.Linear(width, width, rngs=rngs)
        self.readout = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        h = jnp.tanh(self.stem(x))
        return self.readout(jnp.tanh(self.hidden(jnp.tanh(self.hidden(h)))))


@functools.cache
def traced(model=Tied, **options):
    return nd.trace(model, X, **options)


@functools.cache
def results():
    return compare({"net": nd.Network("2_12", width=32), "twin": traced(dag_net), "tied": traced()}, X, Y, steps=4)


def text_of(renderable):
    file = io.StringIO()
    Console(width=160, file=file).print(renderable)
    return file.getvalue()


@pytest.mark.slow
def test_a_traced_network_has_the_theory_of_the_network():
    net, twin, _ = results()
    assert twin.ntk.lambda_max == pytest.approx(net.ntk.lambda_max, rel=1e-5)
    assert twin.learning_rate == pytest.approx(net.learning_rate, rel=1e-5)
    np.testing.assert_allclose(twin.expected.mean, net.expected.mean, rtol=1e-5)
    np.testing.assert_allclose(twin.expected.std, net.expected.std, rtol=1e-5)
    # He variance 2 of the readout is a factor of its part of the NTK.
    assert twin.nngp.lambda_min == pytest.approx(2 * net.nngp.lambda_min, rel=1e-5)
    assert (twin.dag.num_paths, twin.code) == (net.dag.num_paths, str(traced(dag_net).dag))
    assert twin.ntk_bracket.lower == pytest.approx(net.ntk_bracket.lower, rel=1e-4)
    assert 0 < twin.nngp.lambda_min <= twin.ntk.lambda_min
    assert twin.conditions_met
    assert twin.path_bound is None


@pytest.mark.slow
def test_the_finite_networks_are_draws_of_the_model_itself():
    twin = results()[1]
    run = descend(lambda rngs: dag_net(rngs=rngs), X, Y, optimizer=optax.sgd(1.0), steps=1, seeds=[0])
    assert twin.curves.shape == (5, 5)
    assert not np.isclose(twin.curves[0, 0], run.curve[0, 0], rtol=1e-3)  # seeds name other draws
    for seed in (0, 3):
        model = dag_net(rngs=nnx.Rngs(jax.random.key(seed)))
        graph, state = nnx.split(model, nnx.Param)
        loss = lambda state, graph=graph: 0.5 * jnp.sum((nnx.merge(graph, state)(jnp.asarray(X)) - Y) ** 2)  # noqa: E731
        for step in range(5):
            value, gradient = jax.value_and_grad(loss)(state)
            assert float(value) == pytest.approx(twin.curves[seed, step], rel=2e-4)
            state = jax.tree.map(lambda p, g, eta=twin.learning_rate: p - eta * g, state, gradient)


@pytest.mark.slow
@pytest.mark.parametrize("parameterization", ["own", "ntk"])
def test_wide_models_train_as_expected(parameterization):
    model = traced(width=512).with_options(parameterization=parameterization)
    (result,) = compare([model], X, Y, seeds=12, steps=12)
    error = result.expected.std / math.sqrt(12)
    assert np.all(np.abs(result.mean - result.expected.mean) <= 4 * error + 0.02 * result.expected.mean)
    assert result.bound_violations == 0
    assert result.conditions_met
    # Both sides are sharp: the loss falls by much more than what is allowed here.
    assert result.mean[-1] + 4 * error[-1] < 0.7 * result.mean[0]


@pytest.mark.slow
def test_the_part_of_the_readout_is_what_its_weights_contribute():
    for parameterization in ("own", "ntk"):
        model = traced(width=48).with_options(parameterization=parameterization)
        part = readout_kernel(model, X)
        eigenvalues = np.linalg.eigvalsh(np.asarray(nd.kernel(model, X).ntk) - part)
        assert eigenvalues[0] > 0
        hidden = nd.trace(
            lambda p, x: jnp.tanh(jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[1]) @ p[2],
            X,
            init=lambda key: [
                jax.random.normal(k, s) / s[0] ** 0.5
                for k, s in zip(jax.random.split(key, 3), ((5, 48), (48, 48), (48, 1)), strict=True)
            ],
        )
        # The NNGP of a linear readout of variance 1 / 48 is the mean product of hidden values. Biases of Tied are 0,
        # and the bias of its readout is no part.
        factor = 48 if parameterization == "own" else 1
        np.testing.assert_allclose(part, factor * np.asarray(nd.kernel(hidden, X).nngp), rtol=1e-5)
        assert not np.allclose(nd.kernel(model, X).ntk, part, rtol=0.05)


@pytest.mark.slow
def test_descent_in_the_ntk_parameterization_is_that_in_units_of_the_standard_deviations():
    own, ntk = (traced().with_options(parameterization=p) for p in ("own", "ntk"))
    (one,), (two,) = (trainable(model, [0, 1], X) for model in (own, ntk))
    np.testing.assert_allclose(
        jax.vmap(one.apply, (0, None))(one.params, X), jax.vmap(two.apply, (0, None))(two.params, X), atol=1e-5
    )
    names = [leaf.name for leaf in own.model.leaves]
    stds = [leaf.distribution.std for leaf in own.model.leaves]
    gradients = []
    for group in (one, two):
        loss = lambda params, group=group: jnp.sum(group.apply(params, X) ** 2)  # noqa: E731
        gradients.append(jax.grad(loss)([p[0] for p in group.params]))
    for name, std, first, second in zip(names, stds, *gradients, strict=True):
        assert (std == 0) == name.endswith("bias")
        np.testing.assert_allclose(np.asarray(second), std * np.asarray(first), rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_models_without_a_graph_leave_what_needs_one_empty(tmp_path):
    net, twin, tied = results()
    assert tied.dag is None
    assert (tied.code, tied.as_row()["dag"], tied.as_row()["num_paths"]) == ("", "", None)
    assert not net.remark
    assert "a traced model; its K(H) is the part of the NTK from the readout's weights; no graph, since" in tied.remark
    assert "no graph" not in twin.remark
    text = text_of(compare_table(results()))
    assert tied.remark in " ".join(text.split())
    frame = results().to_frame()
    assert np.isnan(frame["num_paths"][2])
    assert frame["num_paths"][1] == 2
    assert "tied" in results()._repr_html_()
    assert "Tied" in repr(tied)
    assert set(tied.to_frame()["dag"]) == {""}


@pytest.mark.slow
def test_results_are_written_and_resumed(tmp_path):
    models = {"net": nd.Network("2_12", width=32), "tied": traced()}
    folder, stops = tmp_path / "out", []

    def stop(task, done, total):
        if task == "training tied":
            stops.append(task)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(models, X, Y, seeds=2, steps=3, out=folder, on_progress=stop)
    # Another trace of the same model is the same model.
    again = {"net": models["net"], "tied": nd.trace(Tied, X)}
    found = compare(again, X, Y, seeds=2, steps=3, out=folder, resume=True)
    whole = compare(models, X, Y, seeds=2, steps=3)
    for one, two in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one.curves, two.curves)
    document = json.loads((folder / "compare.json").read_text())
    assert [row["dag"] for row in document["rows"]] == ["2_12", ""]
    assert document["config"]["networks"]["tied"]["model"] == "Tied"
    rows = list(csv.DictReader(io.StringIO((folder / "curves.csv").read_text())))
    assert [row["dag"] for row in rows if row["name"] == "tied"] == [""] * 4
    assert (folder / "compare.png").stat().st_size > 1000
    other = models | {"tied": traced().with_options(parameterization="ntk")}
    with pytest.raises(KeyboardInterrupt):
        compare(models, X, Y, seeds=2, steps=3, out=tmp_path / "two", on_progress=stop)
    with pytest.raises(CheckpointError, match="another"):
        compare(other, X, Y, seeds=2, steps=3, out=tmp_path / "two", resume=True)


@pytest.mark.nightly
def test_images_of_a_model_are_flat_for_a_network():
    images = np.random.default_rng(2).normal(size=(4, 3, 3, 2))

    class Conv(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(2, 16, (3, 3), padding="CIRCULAR", rngs=rngs)
            self.readout = nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x):
            return self.readout(nnx.relu(self.conv(x)).mean((1, 2)))

    conv, net = compare({"conv": nd.trace(Conv, images), "net": "2_12"}, images, Y[:4], seeds=2, steps=2)
    flat = compare("2_12", images.reshape(4, -1), Y[:4], seeds=2, steps=2)[0]
    np.testing.assert_array_equal(net.curves, flat.curves)
    assert conv.dag is None
    with pytest.raises(InputError, match=r"Expected `x` to have the shape \(N, 3, 3, 2\)"):
        compare(nd.trace(Conv, images), images.reshape(4, -1), Y[:4])


@pytest.mark.slow
def test_a_model_that_was_given_with_its_numbers_is_drawn_again():
    (factory,) = compare(traced(), X, Y, seeds=3, steps=2)
    (instance,) = compare(nd.trace(Tied(48, rngs=nnx.Rngs(0)), X, distributions=GIVEN), X, Y, seeds=3, steps=2)
    np.testing.assert_allclose(instance.expected.mean, factory.expected.mean, rtol=1e-5)
    assert len(set(instance.curves[:, 0])) == 3
    assert 0.3 < instance.mean[0] / instance.expected.mean[0] < 3
    given = GIVEN | {"stem.kernel": ("orthogonal", 5**-0.5)}
    square = Tied(48, rngs=nnx.Rngs(0))
    square.stem.kernel[...] = jax.nn.initializers.orthogonal(48**0.5 / 5**0.5)(jax.random.key(0), (5, 48))
    with pytest.raises(InputError, match=r"`stem.kernel` \(orthogonal.*pass a factory"):
        compare(nd.trace(square, X, distributions=given), X, Y, seeds=2, steps=2)


GIVEN = {
    "stem.kernel": ("truncated normal", 5**-0.5),
    "*.kernel": ("truncated normal", 48**-0.5),
    "*.bias": ("constant", 0.0),
}


def test_what_does_not_fit_is_refused():
    shifted = nd.trace(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"] + 1.0, X, init=INIT)
    squashed = nd.trace(lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"]), X, init=INIT)
    for model, message in (
        (shifted, "a mean that is not 0"),
        (squashed, "Gaussian with mean 0 at initialization, got"),
    ):
        with pytest.raises(ModelError, match=message):
            compare(model, X, Y[:, :1])
    with pytest.raises(InputError, match="Expected `y` with 2 columns, the outputs of the model Tied, got 1"):
        compare(traced(), X, Y[:, 0])
    with pytest.raises(InputError, match=r"no options of networks beside traced models alone, got `width`"):
        compare(traced(), X, Y, width=3)
    with pytest.raises(InputError, match="Expected distinct networks, got a, b"):
        compare({"a": traced(), "b": nd.trace(Tied, X)}, X, Y)
    with pytest.raises(InputError, match="Expected networks whose texts differ, got Tied, Tied"):
        compare([traced(), traced().with_options(parameterization="ntk")], X, Y)


def INIT(key):  # noqa: N802
    keys = jax.random.split(key)
    return {"w": jax.random.normal(keys[0], (5, 64)) / 5**0.5, "v": jax.random.normal(keys[1], (64, 1)) / 8}


@pytest.mark.slow
def test_theory_takes_kernels_of_traced_models():
    test = np.random.default_rng(5).normal(size=(3, 5))
    for model in (traced(dag_net), traced()):
        k, cross, own = nd.kernel(model, X), nd.kernel(model, test, X), nd.kernel(model, test)
        plain = [nd.Kernel(nngp=np.asarray(one.nngp), ntk=np.asarray(one.ntk)) for one in (k, cross, own)]
        eta = 1 / nd.spectrum(k.ntk).lambda_max
        for call in (
            lambda a, b, c, eta=eta: nd.loss_curve(a, Y, eta, 5).mean,
            lambda a, b, c, eta=eta: nd.expected_loss(a, Y, eta, 5),
            lambda a, b, c: nd.posterior(a, b, c, Y, noise=0.1).mean,
            lambda a, b, c: nd.posterior(a, b, c, Y, noise=0.1).covariance,
            lambda a, b, c: nd.leave_one_out(a, Y, noise=0.1).mean,
            lambda a, b, c, eta=eta: nd.linearized_sgd(a, LABELS, eta, batch_size=2, epochs=2).losses,
            lambda a, b, c: nd.spectrum(a.ntk).lambda_min,
            lambda a, b, c, eta=eta: nd.modes(a, Y, eta).losses,
        ):
            np.testing.assert_array_equal(np.asarray(call(k, cross, own)), np.asarray(call(*plain)))
        with pytest.raises(InputError):
            nd.posterior(k, nd.kernel("2_12", test, X), own, Y, noise=0.1)


@pytest.mark.slow
def test_functions_of_networks_take_models_that_are_networks():
    twin, net = traced(dag_net), nd.Network("2_12", width=32)
    for one, two in zip(nd.lambda_min_bracket(twin, X), nd.lambda_min_bracket(net, X), strict=True):
        np.testing.assert_allclose([one.lower, one.upper], [two.lower, two.upper], rtol=1e-5)
    assert nd.explain(twin, X) == nd.explain(net, X)
    one, two = nd.sweep({"a": twin, "b": net}, X).to_dict("records")
    assert one["nngp_lambda_min"] == pytest.approx(two["nngp_lambda_min"], rel=1e-5)
    assert [row["dag"] for row in nd.sweep([twin], X).to_dict("records")] == ["DagNet"]
    with pytest.warns(NumericalWarning, match="not converged"):
        fitted = nd.fit(twin, X, Y, steps=1)
    assert np.isfinite(fitted.value)
    (row,) = nd.sweep([traced()], X).to_dict("records")
    assert not row["valid"]
    assert "got the model Tied, which is none" in row["reason"]


@pytest.mark.parametrize(
    "call",
    [
        lambda model: nd.lambda_min_bracket(model, X),
        lambda model: nd.explain(model, X),
        lambda model: nd.fit(model, X, Y),
        lambda model: nd.train(model, nd.data.load_splits("digits", subset=50)),
        lambda model: DagNet(model, 5, 2, rngs=nnx.Rngs(0)),
    ],
)
def test_functions_of_networks_say_why_a_model_is_none(call):
    with pytest.raises(ModelError, match=r"to be a network of dense layers on a graph, got the model Tied, which is"):
        call(traced())
