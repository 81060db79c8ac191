"""Theory inside transformations of JAX: the values of known kernels, and derivatives against central differences."""

import math
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError

ND: Any = nd  # unpacked lists of kernels have lengths that a type checker does not know
N, NT, C = 4, 2, 2
RNG = np.random.default_rng(0)
Y, Y_TEST, F, F_TEST, MEAN = (RNG.normal(size=(rows, C)) for rows in (N, NT, N, NT, N))
ROWS = RNG.uniform(0.5, 1.5, N)
# Each has features of NNGP and NTK, and their slopes in a parameter. Duplicate inputs and an input of zeros make the
# kernels singular, with repeated eigenvalues, for every parameter.
INPUTS = {}
for name in ("regular", "degenerate"):
    features = np.random.default_rng(1).normal(size=(2, 2, N + NT, 8)) / 3
    if name == "degenerate":
        features[..., 1, :] = features[..., 0, :]
        features[..., 3, :] = 0
        features[..., N, :] = features[..., 0, :]
    INPUTS[name] = features


def kernels(theta, inputs) -> Any:
    """Returns the kernels train-train, test-train and test-test, smooth in theta; they are of NumPy if theta is."""
    nngp, ntk = ((a + theta * b) @ (a + theta * b).T for a, b in INPUTS[inputs])
    parts = [(slice(N), slice(N)), (slice(N, None), slice(N)), (slice(N, None), slice(N, None))]
    return [nd.Kernel(nngp[part], ntk[part]) for part in parts]


def with_test(of_test, scale):
    return {"k_test_train": of_test[0], "k_test_test": of_test[1], "y_test": scale * Y_TEST}


def curve(k: Any, scale, rate, of_test, **options):
    return ND.loss_curve(k, scale * Y, rate, 5, **options, **with_test(of_test, scale))


def predicted(k: Any, scale, rate, steps, **options):
    return ND.linearized_prediction(*k, scale * Y, rate, steps, **options)


# Functions of the kernels and of three numbers: a scale of the targets, a noise, and a learning rate.
CALLS: dict[str, Any] = {
    "posterior": lambda k, s, v, _: ND.posterior(*k, s * Y, noise=v),
    "posterior ntk": lambda k, s, v, _: ND.posterior(*k, s * Y, kind="ntk", noise=v * ROWS, mean=s, mean_test=0.5 * s),
    "likelihood": lambda k, s, v, _: nd.log_marginal_likelihood(k[0], s * Y, v * ROWS, mean=MEAN),
    "leave one out": lambda k, s, v, _: nd.leave_one_out(k[0], s * Y, v),
    "leave one out ntk": lambda k, s, v, _: nd.leave_one_out(k[0].ntk, Y, v * ROWS, kind="ntk", mean=s * MEAN),
    "expected loss": lambda k, s, _, r: nd.expected_loss(k[0], s * Y, r, 6),
    "curve": lambda k, s, _, r: curve(k[0], s, r, k[1:]),
    "momentum": lambda k, s, _, r: curve(k[0], s, r, k[1:], momentum=0.5),
    "nesterov": lambda k, s, _, r: curve(k[0], s, r, k[1:], momentum=0.5, nesterov=True),
    "flow": lambda k, s, _, r: curve(k[0], s, r, k[1:], flow=True),
    "flow without a test": lambda k, s, _, r: nd.expected_loss(k[0], s * Y, r, 3, flow=True),
    "prediction": lambda k, s, _, r: predicted(k, s, r, 6, momentum=0.5),
    "prediction by flow": lambda k, s, _, r: predicted(k, s, r, 6, flow=True),
    "from an output": lambda k, s, _, r: predicted((*k[:2], None), 1.0, r, 6, initial=(s * F, F_TEST)),
    "end of training": lambda k, s, v, r: predicted(
        (nd.Kernel(k[0].nngp, k[0].ntk + v * np.eye(N)), *k[1:]), s, r, math.inf, flow=True
    ),
    "stable rate": lambda k, *_: nd.largest_stable_learning_rate(k[0], momentum=0.5),
    "spectrum": lambda k, _, v, __: nd.spectrum(k[0].ntk + v * np.diag(ROWS), eigenvalues=True),
}
THETA = np.array([0.3, 1.5, 0.2, 0.4])  # the kernels' parameter and the three numbers
# Differ on purpose: residuals are not measured, and flags are known, only for traced matrices.
LEFT_OUT = ("residual_min", "residual_max", "simple_min", "simple_max", "floor", "steps", "learning_rate", "kind")


def outputs(call, inputs, theta):
    """Returns all numbers of a result in one vector."""
    result = CALLS[call](kernels(theta[0], inputs), *theta[1:])
    if not isinstance(result, (float, np.ndarray, jax.Array)):
        properties = {"Spectrum": ("condition_number",), "LeaveOneOut": ("mean_squared_error",), "Posterior": ("std",)}
        fields = {name: value for name, value in vars(result).items() if name not in LEFT_OUT}
        fields |= {name: getattr(result, name) for name in properties.get(type(result).__name__, ())}
        if getattr(result, "variance", None) is not None and hasattr(result, "log_predictive_density"):
            fields["density"] = result.log_predictive_density
        result = [value for value in fields.values() if value is not None]
    xp = jnp if isinstance(theta, jax.Array) else np
    values = xp.concatenate([xp.ravel(xp.asarray(value)) for value in jax.tree.leaves(result)])
    # A stability limit may be infinite, the accuracy of targets that are not one-hot NaN, in both ways.
    return xp.where(xp.isfinite(values), values, 0)


def differences(function, theta, step=1e-4):
    """Returns the Jacobian by central differences of fourth order."""
    columns = []
    for direction in np.eye(len(theta)) * step:
        near, far = (function(theta + i * direction) - function(theta - i * direction) for i in (1, 2))
        columns.append((8 * near - far) / (12 * step))
    return np.stack(columns, axis=-1)


@cache
def traced(call, inputs):
    """Returns the value and the Jacobian of the compiled function at THETA."""
    with jax.enable_x64(True):
        both = jax.jit(lambda t: (outputs(call, inputs, t), jax.jacfwd(lambda u: outputs(call, inputs, u))(t)))
        value, jacobian = both(jnp.asarray(THETA))
        assert value.dtype == np.float64
        return np.asarray(value), np.asarray(jacobian)


CASES = [(call, inputs) for call in CALLS for inputs in INPUTS if (call, inputs) != ("spectrum", "degenerate")]


@pytest.mark.sample(3, slow=4)
@pytest.mark.parametrize(("call", "inputs"), CASES)
def test_values_and_first_derivatives(call, inputs):
    value, jacobian = traced(call, inputs)
    expected = outputs(call, inputs, THETA)
    np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    slopes = differences(lambda theta: outputs(call, inputs, theta), THETA)
    assert np.abs(slopes).max() > 1e-3
    # Standard deviations of 0 have no derivative, and are 0 for all parameters here.
    np.testing.assert_allclose(jacobian, slopes, rtol=1e-6, atol=1e-6 * np.abs(slopes).max())


@pytest.mark.sample(1, slow=5)
@pytest.mark.parametrize(("call", "inputs"), CASES)
def test_reverse_mode_is_forward_mode(call, inputs):
    with jax.enable_x64(True):
        weights = np.random.default_rng(2).normal(size=len(traced(call, inputs)[0]))
        gradient = jax.jit(jax.grad(lambda t: weights @ outputs(call, inputs, t)))(jnp.asarray(THETA))
        np.testing.assert_allclose(gradient, weights @ traced(call, inputs)[1], rtol=1e-9, atol=1e-10)


@pytest.mark.sample(1, slow=5)
@pytest.mark.parametrize(("call", "inputs"), CASES)
def test_second_derivatives(call, inputs):
    with jax.enable_x64(True):
        weights = np.random.default_rng(3).normal(size=len(traced(call, inputs)[0]))
        gradient = jax.jit(jax.grad(lambda t: weights @ outputs(call, inputs, t)))
        hessian = jax.jit(jax.hessian(lambda t: weights @ outputs(call, inputs, t)))(jnp.asarray(THETA))
        slopes = differences(lambda theta: np.asarray(gradient(theta)), THETA)
    np.testing.assert_allclose(hessian, slopes, rtol=1e-6, atol=1e-6 * max(1, np.abs(slopes).max()))


@pytest.mark.sample(1, slow=3)
@pytest.mark.parametrize(("call", "inputs"), CASES)
def test_vmap_is_a_loop_and_results_are_pytrees(call, inputs):
    thetas = np.stack([THETA, 0.9 * THETA, 1.1 * THETA])
    with jax.enable_x64(True):
        batch = jax.jit(jax.vmap(lambda t: CALLS[call](kernels(t[0], inputs), *t[1:])))(thetas)
        vectors = jax.jit(jax.vmap(lambda t: outputs(call, inputs, t)))(thetas)
        one = jax.tree.map(lambda values: values[1], batch)
    for vector, theta in zip(vectors, thetas, strict=True):
        expected = outputs(call, inputs, theta)
        np.testing.assert_allclose(vector, expected, rtol=1e-10, atol=1e-10 * np.abs(expected).max())
    expected = CALLS[call](kernels(thetas[1, 0], inputs), *thetas[1, 1:])
    assert type(one) is type(expected) or isinstance(one, jax.Array)
    for name in ("mean", "lambda_max", "kare", "test_std"):
        if getattr(expected, name, None) is not None and not isinstance(expected, np.ndarray):
            np.testing.assert_allclose(getattr(one, name), getattr(expected, name), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize(
    "call",
    ["spectrum", *(pytest.param(name, marks=pytest.mark.slow) for name in ("leave one out", "curve", "posterior"))],
)
def test_results_show_themselves_whatever_jax_does_with_them(call):
    seen = []

    def show(theta):
        result = CALLS[call](kernels(theta, "regular"), *THETA[1:])
        seen.append(repr(result))
        assert result._repr_html_().startswith("<table>")
        return result

    for result in (jax.jit(show)(0.3), jax.vmap(show)(jnp.ones(2)), jax.eval_shape(show, 0.3)):
        assert repr(result).startswith(type(result).__name__ + "(")
        seen.append(repr(jax.tree.map(lambda _: None, result)))
    assert "float32[" in seen[0]
    assert len(seen) >= 5


def test_traced_float32_gives_float32_and_concrete_values_stay_float64():
    k: Any = [nd.Kernel(*(np.asarray(v, np.float32) for v in (k.nngp, k.ntk))) for k in kernels(0.3, "regular")]
    for call in ("leave one out", "nesterov", "prediction by flow", "spectrum"):
        result = jax.jit(lambda k, of=CALLS[call]: of(k, *THETA[1:]))(k)
        assert {leaf.dtype for leaf in jax.tree.leaves(result)} <= {np.dtype(v) for v in ("f4", "i4", "bool")}, call
    with jax.enable_x64(True):  # the traced kernels decide, whatever the targets are
        result = jax.jit(lambda k: ND.posterior(*k, Y, noise=0.1))(k)
        assert result.mean.dtype == np.float32
        result = jax.jit(lambda noise: ND.posterior(*kernels(0.3, "regular"), Y, noise=noise))(0.1)
        assert result.mean.dtype == np.float64
    assert ND.posterior(*k, Y, noise=0.1).mean.dtype == np.float64


def test_long_training_keeps_few_states():
    """Reverse mode keeps in the order of sqrt(steps) states, not all of them."""
    k, steps = kernels(0.3, "regular")[0], 400
    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(lambda r: nd.expected_loss(k, Y, r, steps).sum()))
        memory: Any = gradient.lower(0.1).compile().memory_analysis()
        found = gradient(0.1)
    assert memory.temp_size_in_bytes < steps * 8 * N**2 / 2
    expected = differences(lambda r: nd.expected_loss(k, Y, float(r[0]), steps).sum(keepdims=True), np.array([0.1]))
    assert float(found) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("quantity", ["likelihood", "leave one out", "loss", "prediction", "spectrum"])
def test_gradients_reach_the_inputs_of_networks(quantity):
    x, z = np.random.default_rng(5).normal(size=(N, 3)), np.random.default_rng(6).normal(size=(NT, 3))
    of: Any = {
        "likelihood": lambda k, _: nd.log_marginal_likelihood(k, Y, 0.1),
        "leave one out": lambda k, _: nd.leave_one_out(k, Y, 0.1, kind="ntk").mean_squared_error,
        "loss": lambda k, _: nd.expected_loss(k, Y, 0.01, 8)[-1],
        "prediction": lambda k, others: ND.linearized_prediction(k, *others, Y, 0.01, 8).mean.sum(),
        "spectrum": lambda k, _: nd.spectrum(k.ntk).lambda_min,
    }[quantity]

    def function(flat):
        x = flat.reshape(N, 3)
        others = (nd.kernel("2_12", z, x), nd.kernel("2_12", z)) if quantity == "prediction" else ()
        return of(nd.kernel("2_12", x), others)

    with jax.enable_x64(True):
        gradient = jax.jit(jax.grad(function))(jnp.asarray(x.ravel()))
    # Along three directions that mix all numbers: a wrong entry of the gradient shows in each.
    along = np.random.default_rng(7).normal(size=(x.size, 3))
    expected = differences(lambda t: np.array([function(x.ravel() + along @ t)]), np.zeros(3))[0]
    np.testing.assert_allclose(np.asarray(gradient) @ along, expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


# Eigenvalues that are not simple


def test_flags_say_where_the_derivative_of_an_eigenvalue_is_right():
    def of(a, b, c):
        return nd.spectrum(jnp.diag(jnp.stack([a, b, c])))

    with jax.enable_x64(True):
        for values, simple in (
            ((1.0, 2.0, 3.0), (True, True)),
            ((1.0, 1.0, 3.0), (False, True)),
            ((1.0, 3.0, 3.0), (True, False)),
            ((2.0, 2.0, 2.0), (False, False)),
            ((1.0, 1.0 + 1e-15, 3.0), (False, True)),
        ):
            result = jax.jit(of)(*values)
            assert (bool(result.simple_min), bool(result.simple_max)) == simple
        slope = jax.grad(lambda a: nd.spectrum(jnp.diag(jnp.stack([a, 2.0, 2.0, 3.0]))).lambda_min)(1.0)
        assert slope == pytest.approx(1, rel=1e-12)
        alone = jax.jit(lambda a: nd.spectrum(a[None, None]))(2.0)
        assert bool(alone.simple_min)
        assert bool(alone.simple_max)
    known = nd.spectrum(np.diag([1.0, 2.0]))
    assert known.simple_min is known.simple_max is None


def test_the_largest_eigenvalue_of_a_singular_kernel_has_its_derivative():
    def largest(theta):
        return nd.spectrum(kernels(theta, "degenerate")[0].ntk).lambda_max

    # A known matrix that is singular would be warned of.
    expected = differences(
        lambda theta: np.linalg.eigvalsh(kernels(theta[0], "degenerate")[0].ntk)[-1:], THETA[:1]
    ).item()
    with jax.enable_x64(True):
        for derivative in (jax.jit(jax.grad(largest)), jax.jit(jax.jacfwd(largest))):
            assert float(derivative(THETA[0])) == pytest.approx(expected, rel=1e-6)
        found = jax.jit(lambda theta: nd.spectrum(kernels(theta, "degenerate")[0].ntk))(THETA[0])
    assert not bool(found.simple_min)
    assert bool(found.simple_max)


def test_properties_of_a_traced_spectrum_are_arrays():
    with jax.enable_x64(True):
        result = jax.jit(lambda a: nd.spectrum(jnp.diag(jnp.stack([a, 2.0]))))(0.0)
        assert not bool(result.resolved)
        assert math.isinf(float(result.condition_number))
        assert float(result.residual) == 0
        slope = jax.grad(lambda a: nd.spectrum(jnp.diag(jnp.stack([a, 2.0]))).condition_number)
        assert float(slope(0.0)) == 0
        assert float(slope(0.5)) == pytest.approx(-8, rel=1e-12)
        zero = jax.jit(nd.spectrum)(np.zeros((2, 2)))
        assert float(zero.effective_rank) == 0
    single = jax.jit(nd.spectrum)(np.eye(2, dtype=np.float32))
    assert float(single.floor) > float(nd.spectrum(np.eye(2, dtype=np.float32)).floor)


# Errors: values are checked where they are known, shapes and kinds always


def test_what_is_known_is_checked_beside_what_is_traced(unchecked):
    k = nd.Kernel(np.eye(2), np.eye(2))
    indefinite = nd.Kernel(np.eye(2), np.diag([1.0, -1.0]))
    ones = np.ones(2)
    for function, message in (
        (lambda t: ND.posterior(k, k, k, t * ones, noise=-1.0), "`noise` to be finite and at least 0, got -1.0"),
        (lambda t: ND.posterior(k, k, k, np.full(2, np.nan), noise=t), "`y` to be finite"),
        (
            lambda t: ND.posterior(k, k, k, ones, noise=t * np.ones(3)),
            r"`noise` to be a number or to have shape \(2,\)",
        ),
        (lambda t: nd.log_marginal_likelihood(np.full((2, 2), np.nan), ones, t), "`k` to be finite"),
        (lambda t: nd.log_marginal_likelihood(t * np.ones((2, 3)), ones, t), "`k` to be a square matrix"),
        (lambda t: nd.leave_one_out(k, t * np.ones(3), t), r"`y` to have shape \(2,\) or \(2, C\), got \(3,\)"),
        (lambda t: nd.leave_one_out(k, ones, t, mean=t * np.ones(3)), "`mean` to be a number or to have shape"),
        (lambda t: nd.expected_loss(k, ones, t * ones, 2), r"`learning_rate` to be one number, got shape \(2,\)"),
        (lambda t: nd.expected_loss(indefinite, ones, t, 2), r"`k\.ntk` to be positive semi-definite, got a negative"),
        (lambda t: ND.linearized_prediction(indefinite, k, k, ones, t, 2), r"`k_train_train\.ntk` to be positive semi"),
        (lambda t: nd.expected_loss(k, t * ones, -1.0, 2), "`learning_rate` to be finite and above 0, got -1.0"),
        (
            lambda t: nd.expected_loss(k, (t * ones).astype(int), 0.1, 2),
            "`y` to be numbers to regress on, got integers",
        ),
        (lambda t: nd.leave_one_out(k, (t * ones).astype(int), 0.1), "`y` to be numbers to regress on, got integers"),
        (
            lambda t: nd.spectrum(t * np.eye(2), method="iterative"),
            "`method` 'dense' or 'auto' inside a transformation",
        ),
        (lambda t: nd.spectrum(t * np.ones((2, 3))), "`matrix` to be a square matrix"),
        (lambda t: nd.expected_loss(k, ones, 0.1, t), "`steps` to be a number, got .* inside a transformation"),
    ):
        with pytest.raises(InputError, match=f"Expected {message}"):
            jax.jit(function)(1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda k, y: nd.modes(k, y).losses,
        lambda k, _: nd.linearized_sgd(k, np.array([0, 1]), 0.1, batch_size=1, epochs=1),
        lambda k, _: nd.kernel_regression_accuracy(k, k, np.array([0, 1]), np.array([0, 1]), 2, noise=0.1),
        lambda k, _: nd.spectra([k.ntk]),
    ],
)
def test_other_functions_compute_outside_of_transformations(call, unchecked):
    k = nd.Kernel(np.eye(2), np.eye(2))
    with pytest.raises(InputError, match="inside a transformation of JAX; this function computes outside of them"):
        jax.jit(call)(k, np.ones(2))


def test_singular_matrices_give_nan_inside_transformations():
    value = jax.jit(lambda k: nd.log_marginal_likelihood(k, np.ones(2), 0.0))(-np.eye(2))
    assert np.isnan(value)
