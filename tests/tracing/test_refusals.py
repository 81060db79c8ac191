"""Models outside the calculus are refused, with the model's line and the reason."""

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from zoo import drawn, numbers

from nngp_dag.errors import InputError, ModelError
from nngp_dag.tracing import trace

X = numbers(3, 4)
SEQUENCE, IMAGES = numbers(3, 4, 5), numbers(3, 4, 4, 2)
N = 64
REFUSED: list[Any] = []


@dataclass(frozen=True)
class Refused:
    """A model, and why it is refused.

    Attributes:
      function: The model.
      table: Its parameters: shapes, or pairs of shapes and how they are drawn.
      x: Its input.
      match: A pattern of the message.
      line: A text in the line of the model that the message names; None if no line is to blame.
      options: Other arguments of `trace`.
    """

    function: Callable[..., Any]
    table: dict[str, Any]
    x: np.ndarray
    match: str
    line: str | None
    options: dict[str, Any]


def refused(match: str, line: str | None, x: np.ndarray = X, options: Any = None, **table: Any) -> Any:
    """Registers a model; parameters default to a stem `w`, a square `u` and a readout `v`."""
    full = {"w": (x.shape[-1], N), "u": (N, N), "v": (N, 1)} | table

    def register(function: Any) -> Any:
        case = Refused(function, full, x, match, line, options or {})
        REFUSED.append(pytest.param(case, id=function.__name__))
        return function

    return register


def traced(case: Refused) -> None:
    """Reads a model and computes its kernels."""
    full: dict[str, Any] = {name: one if isinstance(one[0], tuple) else (one, None) for name, one in case.table.items()}

    def init(key: Any) -> Any:
        return {
            name: drawn(k, *one) for k, (name, one) in zip(jax.random.split(key, len(full)), full.items(), strict=True)
        }

    trace(case.function, case.x, init=init, **case.options).kernels(case.x)


def lines_of(function: Any, text: str) -> list[int]:
    """Returns the lines of a function's source that hold a text."""
    source, first = inspect.getsourcelines(function)
    found = [first + i for i, line in enumerate(source) if text in line and not line.lstrip().startswith("@refused")]
    assert found, text
    return found


MATRIX = np.random.default_rng(0).normal(size=(N, N)) / N**0.5


@refused("a known matrix, or features of the input, on an infinite axis", "@ MATRIX")
def known_matrix(p, x):
    h = jax.nn.relu(x @ p["w"])
    return jax.nn.relu(h @ MATRIX) @ p["v"]


@refused("another order|two orders|not Gaussian", "jnp.tanh(h + ")
def shifted_channels(p, x):
    h = jax.nn.relu(x @ p["w"])
    return jnp.tanh(h + jnp.roll(h, 1, axis=1)) @ p["v"]


@refused("numbers that are the same for all channels|array that differs between them", "linspace")
def graded_channels(p, x):
    h = jax.nn.relu(x @ p["w"])
    h = h * jnp.linspace(0.0, 1.0, N)
    return h @ p["v"]


@refused("a value that is not Gaussian", "jnp.tanh(h + jnp")
def nonlinearity_of_activations(p, x):
    h = jnp.sin(x @ p["w"])
    h = jnp.tanh(h + jnp.cos(h @ p["u"]))
    return h @ p["v"]


@refused("a value that is not Gaussian", "jax.nn.relu(h + ")
def post_activation_residual(p, x):
    h = jax.nn.relu(x @ p["w"])
    h = jax.nn.relu(h + h @ p["u"])
    return h @ p["v"]


@refused("`max` of 2 random values", "jnp.maximum", w2=(4, N))
def maxout(p, x):
    h = jnp.maximum(x @ p["w"], x @ p["w2"])
    return h @ p["v"]


@refused("random values", "/ (1")
def quotient_of_two(p, x):
    h = x @ p["w"]
    h = h / (1 + jnp.exp(h @ p["u"]))
    return jnp.tanh(h) @ p["v"]


@refused("1 / sqrt\\(d\\)", None, SEQUENCE, q=(N, N), k=(N, N))
def attention_by_root(p, x):
    h = x @ p["w"]
    scores = jnp.einsum("bsd,btd->bst", h @ p["q"], h @ p["k"])
    return (jax.nn.softmax(scores / N**0.5, axis=-1) @ (h @ p["u"])).mean(axis=1) @ p["v"]


@refused("1 / sqrt\\(d\\)|divided by its size", None, SEQUENCE, q=(N, N))
def linear_attention_by_root(p, x):
    h = x @ p["w"]
    q = h @ p["q"]
    scores = jnp.einsum("bsd,btd->bst", q, q) / N**0.5
    return (scores @ h).mean(axis=1) @ p["v"]


@refused("sum over an infinite axis", None)
def sum_over_channels(p, x):
    h = jax.nn.relu(x @ p["w"])
    return (h * h.sum(axis=1, keepdims=True)) @ p["v"]


@refused("max pooling", "max(axis=1)", SEQUENCE)
def max_over_tokens(p, x):
    h = jax.nn.relu(x @ p["w"])
    return h.max(axis=1) @ p["v"]


@refused("max pooling", "reduce_window", IMAGES, w=(3, 3, 2, N))
def max_pooling(p, x):
    h = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    h = jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return h.mean(axis=(1, 2)) @ p["v"]


@refused("depends? on the other inputs|not Gaussian", None)
def batch_statistics(p, x):
    h = x @ p["w"]
    h = (h - h.mean(axis=0)) / jnp.sqrt(h.var(axis=0) + 1e-5)
    return jax.nn.relu(h) @ p["v"]


@refused("random values|not Gaussian|several", "/ jnp.sqrt", SEQUENCE)
def instance_norm(p, x):
    """Statistics of each channel over tokens are random."""
    h = x @ p["w"]
    h = (h - h.mean(axis=1, keepdims=True)) / jnp.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
    return jax.nn.relu(h).mean(axis=1) @ p["v"]


@refused("transpose", ".T")
def transposed_weights(p, x):
    h = jnp.tanh(x @ p["w"])
    h = jnp.tanh(h @ p["u"])
    return jnp.tanh(h @ p["u"].T) @ p["v"]


@refused("transpose", "jnp.einsum")
def autoencoder_tied(p, x):
    h = jnp.tanh(jnp.tanh(x @ p["w"]) @ p["u"])
    g = jnp.einsum("bi,ji->bj", h, p["u"])
    return g @ p["v"]


@refused("two uses|used once|two orders", None, v=(N, N))
def readout_used_twice(p, x):
    h = jnp.tanh(x @ p["w"])
    return jnp.tanh(h @ p["v"]) @ p["v"]


@refused("data|while", "while_loop")
def data_dependent_loop(p, x):
    h = jnp.tanh(x @ p["w"])
    h = jax.lax.while_loop(lambda h: jnp.mean(h**2) > 0.1, lambda h: jnp.tanh(h @ p["u"]), h)
    return h @ p["v"]


@refused("control flow that depends on the data", "lax.cond")
def data_dependent_branch(p, x):
    h = jnp.tanh(x @ p["w"])
    h = jax.lax.cond(x[0, 0] > 0, lambda h: jnp.tanh(h @ p["u"]), lambda h: h, h)
    return h @ p["v"]


@refused("random", "jax.random.normal")
def noise_at_run_time(p, x):
    h = jnp.tanh(x @ p["w"])
    h = h + jax.random.normal(jax.random.key(jnp.sum(x).astype(int)), h.shape)
    return h @ p["v"]


@refused("stop_gradient", "stop_gradient")
def gradient_stopped(p, x):
    h = jnp.tanh(x @ p["w"])
    h = h + jax.lax.stop_gradient(jnp.tanh(h @ p["u"]))
    return h @ p["v"]


@refused("stop_gradient", "stop_gradient")
def weights_stopped(p, x):
    h = jnp.tanh(x @ jax.lax.stop_gradient(p["w"]))
    return h @ p["v"]


@refused("one random unit that", 'p["g"]) *', g=(4, 1))
def unit_for_all_channels(p, x):
    h = jnp.tanh(x @ p["w"])
    h = (x @ p["g"]) * jnp.sin(h @ p["u"])
    return h @ p["v"]


@refused("one entry that all", 'p["c"]', c=((), 1.0))
def random_scalar(p, x):
    h = jnp.tanh(x @ p["w"])
    h = h * p["c"]
    return jnp.tanh(h @ p["u"]) @ p["v"]


@refused("not Gaussian", "relu", IMAGES, w=(3, 3, 2, N), d=(3, 3, 1, N))
def depthwise_convolution(p, x):
    dimensions = ("NHWC", "HWIO", "NHWC")
    h = jax.lax.conv_general_dilated(x, p["w"], (1, 1), "SAME", dimension_numbers=dimensions)
    h = jax.lax.conv_general_dilated(h, p["d"], (1, 1), "SAME", dimension_numbers=dimensions, feature_group_count=N)
    return jax.nn.relu(h).mean(axis=(1, 2)) @ p["v"]


@refused("same for all channels", "+ x", numbers(3, N))
def input_added_to_channels(p, x):
    h = jnp.tanh(x @ p["w"])
    h = h + x
    return jnp.tanh(h @ p["u"]) @ p["v"]


@refused("infinite axis|input, beside channels", "concatenate", v=(N + 4, 1))
def input_beside_channels(p, x):
    h = jnp.tanh(x @ p["w"])
    h = jnp.concatenate([h, x], axis=1)
    return h @ p["v"]


@refused("output|sum", None, v=(N, 8))
def output_units_summed(p, x):
    h = jnp.tanh(x @ p["w"])
    return jnp.sum(h @ p["v"], axis=1, keepdims=True)


@refused("output|random|number", None)
def output_without_readout(p, x):
    h = jnp.tanh(x @ p["w"])
    return h.mean(axis=1)


@refused("several|softmax|random values|sum|infinite", None, g=(4, 3), e=((3, N, N), N**-0.5))
def mixture_of_experts(p, x):
    h = jnp.tanh(x @ p["w"])
    gates = jax.nn.softmax(x @ p["g"], axis=-1)
    return jnp.einsum("bg,gij,bi->bj", gates, p["e"], h) @ p["v"]


@refused("product of two parameters", '@ p["u"]')
def low_rank_weights(p, x):
    weights = p["w"] @ p["u"]
    return jnp.tanh(x @ weights) @ p["v"]


@refused("`tanh` of `u`|apply functions to values", 'jnp.tanh(p["u"])')
def function_of_weights(p, x):
    h = jnp.tanh(x @ p["w"])
    return jnp.tanh(h @ jnp.tanh(p["u"])) @ p["v"]


@refused("not mix channels|tokens", "jnp.einsum", SEQUENCE, t=(4, 4))
def token_mixing_weights(p, x):
    """A random matrix over finitely many tokens, as in an MLP-mixer: its products are not Gaussian."""
    h = jax.nn.relu(x @ p["w"])
    h = jnp.einsum("st,btd->bsd", p["t"], h)
    return jnp.tanh(h @ p["u"]).mean(axis=1) @ p["v"]


@refused("mean 0|constant matrix", '@ p["u"]', u=((N, N), ("constant", 0.1)))
def constant_matrix(p, x):
    h = jnp.tanh(x @ p["w"])
    h = h @ p["u"]
    return h @ p["v"]


@refused("sort", "jnp.sort", SEQUENCE)
def sorted_tokens(p, x):
    h = jnp.tanh(x @ p["w"])
    h = jnp.sort(h, axis=1)
    return h.mean(axis=1) @ p["v"]


@refused("converted to", "astype(int)")
def rounded_to_integers(p, x):
    h = x @ p["w"]
    h = h.astype(int)
    return h.astype(float) @ p["v"]


@refused("depends on the input|data|random", None)
def argmax_of_channels(p, x):
    h = x @ p["w"]
    return jax.nn.one_hot(jnp.argmax(h, axis=1), N) @ p["v"]


@refused("dependent ones", None)
def product_of_dependent_functions(p, x):
    a, b = x @ p["w"], jnp.roll(x, 1, axis=1) @ p["w"]
    return (jnp.tanh(a) * jnp.tanh(b)) @ p["v"]


@refused("one output per input and unit", None, SEQUENCE)
def outputs_at_tokens(p, x):
    return jnp.tanh(x @ p["w"]) @ p["v"]


@refused("a concatenation", None, v2=(N, 1))
def outputs_concatenated(p, x):
    h = jnp.tanh(x @ p["w"])
    return jnp.concatenate([h @ p["v"], jnp.tanh(h @ p["u"]) @ p["v2"]], axis=1)


@refused("one array", None)
def two_outputs(p, x):
    h = jnp.tanh(x @ p["w"])
    return h @ p["v"], h


@refused("mean differs|not Gaussian", "jnp.tanh(h + ")
def shifted_by_positions(p, x):
    h = x @ p["w"]
    h = jnp.tanh(h + x[:, :1])
    return h @ p["v"]


@refused("outer product", "tanh", SEQUENCE)
def outer_product_of_channels(p, x):
    h = x @ p["w"]
    state = jnp.einsum("btd,bte->bde", h, h @ p["u"]) / 4
    state = jnp.tanh(state)
    return jnp.einsum("bd,bde->be", h[:, -1], state) / N @ p["v"]


@pytest.mark.sample(22, slow=len(REFUSED))
@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    with jax.numpy_rank_promotion("allow"), pytest.raises((ModelError, InputError), match=case.match) as caught:
        traced(case)
    if case.line is not None:
        found = re.match(rf"{re.escape(Path(__file__).name)}:(\d+): ", str(caught.value))
        assert found, f"no file and line in: {caught.value}"
        assert int(found[1]) in lines_of(case.function, case.line)
    assert len(str(caught.value).splitlines()) == 1


def with_bottleneck(width, key):
    """A factory whose model has an axis of fixed width between infinite ones."""
    a, b, c, d = jax.random.split(key, 4)
    params = {
        "w": drawn(a, (4, width), None),
        "narrow": drawn(b, (width, 2), None),
        "wide": drawn(c, (2, width), None),
        "v": drawn(d, (width, 1), None),
    }

    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        h = jnp.tanh(h @ p["narrow"])
        h = h @ p["wide"]
        return h @ p["v"]

    return apply, params


def with_fixed_mean(width, key):
    """A factory whose model averages over an axis that does not grow."""
    a, b, c = jax.random.split(key, 3)
    params = {"w": drawn(a, (4, width), None), "k": drawn(b, (width, 8), None), "v": drawn(c, (width, 1), None)}

    def apply(p, x):
        h = jnp.tanh(x @ p["w"])
        gate = jnp.tanh(h @ p["k"]).mean(axis=1, keepdims=True)
        return (gate * h) @ p["v"]

    return apply, params


@pytest.mark.parametrize(("factory", "line"), [(with_bottleneck, 'p["wide"]'), (with_fixed_mean, "mean(axis=1")])
def test_axes_that_do_not_grow(factory, line):
    with jax.numpy_rank_promotion("allow"), pytest.raises(ModelError, match="axes that grow with the width") as caught:
        trace(factory, X, width=N)
    found = re.match(rf"{re.escape(Path(__file__).name)}:(\d+): ", str(caught.value))
    assert found, str(caught.value)
    assert int(found[1]) in lines_of(factory, line)


def test_trained_weights():
    def init(key):
        return {"w": drawn(key, (4, N), None), "v": drawn(jax.random.fold_in(key, 1), (N, 1), None)}

    params = init(jax.random.key(3))
    step = np.outer(np.sin(np.arange(4)), np.cos(np.arange(N)))
    with pytest.raises(InputError, match="Expected leaf `w` to be a fresh draw"):
        trace(lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"], X, params=params | {"w": params["w"] + step}, init=init)


@pytest.mark.filterwarnings("ignore:scatter inputs have incompatible types")
def test_training_mode_batch_norm():
    class Net(nnx.Module):
        def __init__(self, width, *, rngs):
            self.hidden = nnx.Linear(4, width, rngs=rngs)
            self.norm = nnx.BatchNorm(width, rngs=rngs)
            self.readout = nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, x):
            return self.readout(nnx.relu(self.norm(self.hidden(x), use_running_average=False)))

    with pytest.raises((ModelError, InputError), match=r"batch|inference mode|mutate|not Gaussian"):
        trace(Net, X.astype(np.float32), width=N)


def test_orthogonal_weights_are_flagged():
    class Net(nnx.Module):
        def __init__(self, width, *, rngs):
            self.hidden = nnx.Linear(4, width, rngs=rngs)
            self.second = nnx.Linear(width, width, kernel_init=nnx.initializers.orthogonal(), rngs=rngs)
            self.readout = nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, x):
            return self.readout(nnx.relu(self.second(nnx.relu(self.hidden(x)))))

    shown = str(trace(Net, X.astype(np.float32), width=N))
    assert "orthogonal" in shown


def test_multi_head_attention_of_flax():
    class Net(nnx.Module):
        def __init__(self, width, *, rngs):
            self.embed = nnx.Linear(5, width, rngs=rngs)
            self.attend = nnx.MultiHeadAttention(2, width, decode=False, rngs=rngs)
            self.readout = nnx.Linear(width, 1, rngs=rngs)

        def __call__(self, x):
            return self.readout(self.attend(self.embed(x)).mean(axis=1))

    with pytest.raises(ModelError, match=r"1 / sqrt\(d\)"):
        trace(Net, SEQUENCE.astype(np.float32), width=N)


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.GRUCell])
def test_gated_recurrent_cells(cell):
    """Products of gates that share weights with the state have no closed form."""

    class Net(nnx.Module):
        def __init__(self, width, *, rngs):
            self.cell = cell(5, width, recurrent_kernel_init=nnx.initializers.lecun_normal(), rngs=rngs)
            self.readout = nnx.Linear(width, 1, rngs=rngs)
            self.width = width

        def __call__(self, x):
            carry = jnp.zeros((len(x), self.width))
            carry = (carry, carry) if cell is nnx.LSTMCell else carry
            h: Any = None
            for t in range(3):
                carry, h = self.cell(carry, x[:, t])
            return self.readout(h)

    with pytest.raises(ModelError, match=r"^[a-z_]+\.py:\d+: Expected"):
        trace(Net, SEQUENCE.astype(np.float32), width=N).kernels(SEQUENCE)
