"""`empirical` computes the kernels of finite models, and `linearize` their first-order models."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from nngp_dag.errors import InputError, ModelError, shown, within_memory
from nngp_dag.graph.operations import check_flag, check_option
from nngp_dag.kernels._gram import bytes_of
from nngp_dag.kernels.inputs import DTYPES, compute_dtype, real_array
from nngp_dag.tracing._draws import apply_alike, drawn, gradient_factors
from nngp_dag.tracing._trace import _check_batch
from nngp_dag.tracing.frontends import framework, name_of, open_model
from nngp_dag.tracing.models import ModelFunction, _check_call, _source, read_model
from nngp_dag.tracing.traced import Traced

_OUTPUTS = ("mean", "sum", "each", "pairs")
# The letters that name the output units of two sides in a contraction, and the resulting units.
_UNITS = {"mean": ("c", "c", ""), "sum": ("c", "c", ""), "each": ("c", "c", "c"), "pairs": ("c", "d", "cd")}
# Rows of a block are no more than this, whatever the budget.
_MOST_ROWS = 512

Apply = Callable[[Sequence[Any], Any], Any]


def empirical(
    model: Any,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    kind: str = "ntk",
    outputs: str = "mean",
    params: Any = None,
    init: Callable[..., Any] | None = None,
    width: int | None = None,
    seed: int | None = None,
    seeds: SupportsIndex | Sequence[int] | None = None,
    average: bool = True,
    parameterization: str = "own",
    batch_axis: int | None = 0,
    dtype: str | None = None,
    memory_budget: int | str = "1 GiB",
) -> Float[np.ndarray, "..."]:
    """Computes the empirical NTK or NNGP of a finite model at its own parameters, trained or not.

    With J(x) the derivatives of the C output units f(x) in all parameters, the kernels of two output units are

        NTK:   J_c(x1) . J_d(x2)        NNGP:   f_c(x1) f_d(x2)

    By default the mean over c = d is taken. This is the convention of neural-tangents, whose empirical kernels have
    `trace_axes=(-1,)`. The mean over draws of the parameters then tends to `nngp_dag.kernel` of the traced model as the
    width grows. The NNGP is that of the outputs; that of hidden values follows from a model that returns them.

    Derivatives are taken in blocks of inputs, one backward pass for each output unit, by one compiled program. Products
    of derivatives take a time of N1 N2 C times the number of parameters. Temporary arrays stay within the budget;
    results are extra. A smaller budget takes more time, since derivatives of blocks are not kept.

    Args:
      model: An `nnx.Module`, a linen module, an equinox module (of one example), a function `f(params, x)`, a factory
        of one of these, or a model that `nngp_dag.trace` has read. It is evaluated in inference mode.
      x1: Inputs of the model, (N1, ...).
      x2: Inputs, (N2, ...), or None for `x1`.
      kind: "ntk" or "nngp".
      outputs: "mean" or "sum" over output units, which traces over them, (N1, N2); "each" for every output unit,
        (N1, N2, C); "pairs" for all pairs of them, (N1, N2, C, C).
      params: Parameters of a function, or variables of a linen module.
      init: The function of a key that returns the parameters of a function.
      width: The width for a factory.
      seed: Seed of the parameters. A model that was given with its numbers, and a traced one, has its own by default.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves; the kernels of these draws are averaged.
        The parameters of a model that was given with its numbers are drawn from their distributions.
      average: Whether to average over `seeds`. Otherwise results have a leading axis of S draws.
      parameterization: "own", or "ntk" for derivatives in units of the parameters' standard deviations at
        initialization. A traced model has its own parameterization.
      batch_axis: 0 if the first axis counts inputs. None if the whole array is one input; the kernels are then those
        between positions of the output, (positions, channels). A traced model has its own.
      dtype: "float32" or "float64" for inputs, parameters and derivatives; by default float64 if the inputs are.
      memory_budget: Largest size of temporary arrays, in bytes or as a text such as "2 GiB".

    Returns:
      The kernel, a NumPy array.

    Raises:
      InputError: An argument is wrong, or does not fit the model. The budget does not hold the derivatives for one
        input. Parameters cannot be drawn again, or their distributions are unknown.
      ModelError: The output for an input depends on the other inputs of a batch.
      OutOfMemoryError: The kernels do not fit into memory.

    Examples:
      >>> import jax, numpy as np, nngp_dag as nd
      >>> def model(params, x):
      ...     return jax.nn.relu(x @ params["w"]) @ params["v"]
      >>> params = {"w": np.ones((3, 4)), "v": np.ones((4, 2))}
      >>> nd.empirical(model, np.eye(3), params=params)
      array([[8., 4., 4.],
             [4., 8., 4.],
             [4., 4., 8.]])

    Reference: Jacot et al., NeurIPS 2018 (NTK); Novak, Sohl-Dickstein, Schoenholz, ICML 2022 (its computation).
    """
    # Flax is imported with it, which `trace` does without.
    from nngp_dag.nets import chosen_seeds

    check_option("kind", kind, ("ntk", "nngp"))
    check_option("outputs", outputs, _OUTPUTS)
    check_option("parameterization", parameterization, ("own", "ntk"))
    average = check_flag("average", average)
    if dtype is not None:
        check_option("dtype", dtype, DTYPES)
    if seed is not None and seeds is not None:
        raise InputError("Expected `seed` or `seeds`, got both; `seeds` averages over several draws")
    budget = bytes_of(memory_budget)
    wanted = seeds if seed is None else [seed]
    chosen = None if wanted is None else chosen_seeds(wanted)
    if isinstance(model, Traced):
        if any(given is not None for given in (params, init, width)) or parameterization != "own":
            raise InputError(
                "Expected no `params`, `init`, `width` and `parameterization` for a traced model, got some; "
                "pass them to `nngp_dag.trace`, or call `with_options`"
            )
        first, second = model.read_inputs("x1", x1), None if x2 is None else model.read_inputs("x2", x2)
        batch_axis, parameterization = model.batch_axis, model.parameterization
    else:
        if batch_axis not in (0, None):
            raise InputError(f"Expected `batch_axis` to be 0 or None, got {shown(batch_axis)}; move the axis")
        first, second = _inputs("x1", x1), None if x2 is None else _inputs("x2", x2)
    both = [first] if second is None else [first, second]
    if len({one.shape[1:] if batch_axis == 0 else one.ndim for one in both}) > 1:
        raise InputError(f"Expected inputs of one shape, got {first.shape} for `x1` and {both[-1].shape} for `x2`")
    functions = _functions(model, first, params, init, width, chosen, parameterization)
    if batch_axis == 0 and not isinstance(model, Traced):
        _check_batch(functions[0], np.asarray(first))
    precision = (
        np.dtype(np.float32) if first.dtype.kind in "iub" and dtype is None else compute_dtype(*both, dtype=dtype)
    )
    # Parameters that are at their own values are all trained.
    factors = gradient_factors(functions[0], parameterization) if functions[0].leaves else None
    what = f"kernels of {len(first):,} x {len(both[-1]):,} inputs"
    with jax.enable_x64(bool(precision == np.float64)), within_memory(what, "pass fewer inputs at a time"):
        found: list[Any] = [None] * len(functions)
        total: Any = 0.0
        for members in apply_alike(functions, first[:2] if batch_axis == 0 else first):
            work = _Blocks(functions[members[0]].fn, kind, outputs, batch_axis, precision, budget, factors)
            for place in members:
                one = work.kernel(functions[place].values, first, second)
                if average:
                    total = total + one
                else:
                    found[place] = one
        if average:
            return total / len(functions)
        return found[0] if seeds is None else np.stack(found)


def _inputs(name: str, x: Any) -> np.ndarray:
    array = np.asarray(real_array(name, x))
    if array.ndim == 0 or array.size == 0:
        raise InputError(f"Expected `{name}` to hold inputs (N, ...), got shape {array.shape}")
    if not np.isfinite(array).all():
        raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; drop or repair these inputs")
    return array


def _functions(
    model: Any, x: Any, params: Any, init: Any, width: int | None, seeds: list[int] | None, parameterization: str
) -> list[ModelFunction]:
    """Returns the model at its own parameters, or its draws."""
    if isinstance(model, Traced):
        return [model.model] if seeds is None else drawn(model.model, seeds)
    if seeds is not None or parameterization != "own":
        read = read_model(model, x, params=params, init=init, width=width)
        return [read] if seeds is None else drawn(read, seeds)
    # Trained parameters have no distribution that could be read.
    opened = _source(model, x, params, init, width).open(0)
    if not opened.names:
        raise InputError(f"Expected `model` to have parameters, got {name_of(model)} without any")
    _check_call(opened, x)
    return [ModelFunction(opened.fn, (), opened.values, opened.name)]


class _Blocks:
    """The kernels of one function of parameters and input, block by block.

    Args:
      fn: The function of a list of parameters and the inputs.
      kind: "ntk" or "nngp".
      outputs: See `empirical`.
      batch_axis: 0, or None for one input.
      precision: The type of the computation.
      budget: The bytes of temporary arrays.
      factors: The factor of the derivative in each parameter; None for 1.
    """

    def __init__(
        self,
        fn: Apply,
        kind: str,
        outputs: str,
        batch_axis: int | None,
        precision: np.dtype,
        budget: int,
        factors: list[float] | None,
    ) -> None:
        self.kind, self.outputs, self.batch_axis = kind, outputs, batch_axis
        self.precision, self.budget, self.factors = precision, budget, factors

        def rows(values: Sequence[Any], x: Any) -> Any:
            """Returns the outputs, (inputs or positions, C)."""
            out = fn(values, x)
            if not isinstance(out, (jax.Array, np.ndarray)):
                raise ModelError(f"Expected the model to return one array, got {shown(type(out).__name__)}")
            # The last axis counts units, except where there is no other than that of inputs.
            units = out.shape[-1] if out.ndim > 1 else 1
            if batch_axis == 0 and (out.ndim == 0 or len(out) != len(x)):
                raise ModelError(
                    f"Expected the model to return one output per input, got shape {out.shape} for {len(x)} inputs; "
                    "pass `batch_axis=None` if the whole array is one input"
                )
            return out.reshape(len(x), -1) if batch_axis == 0 else out.reshape(-1, units)

        self._rows = rows
        self._derivatives = jax.jit(self._derivatives_of_rows)
        self._outputs = jax.jit(rows)
        self._contracted = jax.jit(self._contract)

    def kernel(self, values: Sequence[Any], x1: Any, x2: Any) -> np.ndarray:
        """Returns the kernel at the given parameters."""
        values = [jnp.asarray(v, self.precision) for v in values]
        x1 = self._cast(x1)
        x2 = None if x2 is None else self._cast(x2)
        if self.kind == "nngp":
            one = self._outputs(values, x1)
            return np.asarray(self._contracted([one], [one if x2 is None else self._outputs(values, x2)]))
        if self.batch_axis is None:
            # One input holds all positions.
            one = self._derivatives(values, x1, None)
            return np.asarray(self._contracted(one, one if x2 is None else self._derivatives(values, x2, None)))
        return self._in_blocks(values, x1, x2)

    def _cast(self, x: Any) -> Any:
        return jnp.asarray(x) if x.dtype.kind in "iub" else jnp.asarray(x, self.precision)

    def _in_blocks(self, values: Sequence[Any], x1: Any, x2: Any) -> np.ndarray:
        units = jax.eval_shape(self._rows, values, x1[:1]).shape[1]
        most = min(_MOST_ROWS, max(len(x1), len(x2) if x2 is not None else 0))
        # Two blocks of derivatives, and once more their temporaries.
        per_unit = 4 * sum(v.size for v in values) * self.precision.itemsize
        # Derivatives of a block are computed anew for each block of the other side. Large blocks of one unit at a time
        # so take less time than small blocks of all units.
        chunk = units if self.outputs == "pairs" or self.budget // (per_unit * units) >= most else 1
        rows = min(most, self.budget // (per_unit * chunk))
        if rows < 1:
            raise InputError(
                f"Expected `memory_budget` to hold the derivatives of {chunk} output{'s' * (chunk > 1)} for one input, "
                f"{per_unit * chunk:,} bytes, got {self.budget:,}; raise it"
            )
        parts = [self._of_units(values, x1, x2, rows, np.arange(u, u + chunk)) for u in range(0, units, chunk)]
        if len(parts) == 1:
            return parts[0]
        if self.outputs == "each":
            return np.concatenate(parts, axis=2)
        total = np.sum(parts, axis=0)
        return total / len(parts) if self.outputs == "mean" else total

    def _of_units(self, values: Sequence[Any], x1: Any, x2: Any, rows: int, which: np.ndarray) -> np.ndarray:
        """Returns the kernel of some output units, in blocks of inputs."""
        symmetric = x2 is None
        x2 = x1 if symmetric else x2
        result = np.empty((len(x1), len(x2), *(len(which),) * len(_UNITS[self.outputs][2])), self.precision)
        for i in range(0, len(x1), rows):
            left = self._derivatives(values, _padded(x1[i : i + rows], rows), which)
            for j in range(i if symmetric else 0, len(x2), rows):
                same = symmetric and i == j
                right = left if same else self._derivatives(values, _padded(x2[j : j + rows], rows), which)
                a, b = min(rows, len(x1) - i), min(rows, len(x2) - j)
                block = np.asarray(self._contracted(left, right))[:a, :b]
                result[i : i + rows, j : j + rows] = block
                if symmetric and j > i:
                    # The kernel of x2 and x1 is the transpose in inputs and in units.
                    turned = (1, 0, 3, 2) if block.ndim == 4 else (1, 0, 2)[: block.ndim]
                    result[j : j + rows, i : i + rows] = block.transpose(turned)
        return result

    def _derivatives_of_rows(self, values: Sequence[Any], x: Any, which: Any) -> list[Any]:
        """Returns the derivatives of some units, or all, in each parameter, (inputs or positions, units, size)."""

        def of_one(one: Any) -> list[Any]:
            fn = lambda values: self._rows(values, one if self.batch_axis is None else one[None])  # noqa: E731
            out, pullback = jax.vjp(fn, values)
            units = jnp.eye(out.size, dtype=out.dtype)
            units = units if which is None else units[which]
            (found,) = jax.lax.map(pullback, units.reshape(-1, *out.shape))
            lead = out.shape if self.batch_axis is None else (len(units),)
            return [d.reshape(*lead, -1) for d in found]

        found = of_one(x) if self.batch_axis is None else jax.vmap(of_one)(x)
        return found if self.factors is None else [d * f for d, f in zip(found, self.factors, strict=True)]

    def _contract(self, left: list[Any], right: list[Any]) -> Any:
        """Returns the sum of products over parameters."""
        first, second, units = _UNITS[self.outputs]
        axes = "p" if self.kind == "ntk" else ""
        form = f"i{first}{axes},j{second}{axes}->ij{units}"
        pairs = zip(left, right, strict=True)
        total = functools.reduce(
            jnp.add, [jnp.einsum(form, a, b, precision=jax.lax.Precision.HIGHEST) for a, b in pairs]
        )
        return total / left[0].shape[1] if self.outputs == "mean" else total


def _padded(x: Any, rows: int) -> Any:
    """Returns `rows` inputs, the last one repeated, so that all blocks share a compiled program."""
    return x if len(x) == rows else jnp.concatenate([x, jnp.repeat(x[-1:], rows - len(x), axis=0)])


@dataclasses.dataclass(frozen=True, eq=False)
class Linearized:
    """A model's linearization at its parameters: f_lin(p, x) = f(p0, x) + df/dp(p0, x) (p - p0).

    Attributes:
      fn: The model as a function of parameters and input.
      params: The parameters p0. Those of a function have the form in which they were given; those of other models are
        a list of arrays.
      names: Names of the arrays, in the order of `jax.tree.leaves(params)`.
    """

    fn: Callable[[Any, Any], Any]
    params: Any
    names: tuple[str, ...]

    def __call__(self, params: Any, x: Any) -> Any:
        """Returns the outputs of the linear model at other parameters of the same form as `params`."""
        if jax.tree.structure(params) != jax.tree.structure(self.params):
            raise InputError(
                f"Expected `params` in the form of the linearization's own, {shown(jax.tree.structure(self.params))}, "
                f"got {shown(jax.tree.structure(params))}"
            )
        change = jax.tree.map(lambda p, p0: (p - p0).astype(p0.dtype), params, self.params)
        value, slope = jax.jvp(lambda p: self.fn(p, x), (self.params,), (change,))
        return value + slope


def linearize(
    model: Any,
    x: ArrayLike | None = None,
    *,
    params: Any = None,
    init: Callable[..., Any] | None = None,
    width: int | None = None,
    seed: int = 0,
) -> Linearized:
    """Returns a model's first-order model at its parameters, a function f_lin(params, x).

    It is what an infinitely wide model is in training (Lee et al. 2019). Its training can be computed in closed form,
    with the empirical NTK, and its distance to the model shows how far that is from the infinite width. All
    transformations of JAX apply to it.

    Args:
      model: A model, as in `nngp_dag.empirical`.
      x: One or more inputs; needed for linen modules and factories of them, whose parameters take shape with it.
      params: Parameters of a function, or variables of a linen module.
      init: The function of a key that returns the parameters of a function.
      width: The width for a factory.
      seed: Seed of the parameters of a factory or `init`.

    Returns:
      A `Linearized`, to be called with parameters and inputs. Its `params` are those of the model: in their own form
      for a function that was given with `params`, and else a list of arrays, named by `names`.

    Raises:
      InputError: An argument is wrong, or does not belong to the model.

    Examples:
      >>> import jax, numpy as np
      >>> from nngp_dag.tracing import linearize
      >>> lin = linearize(lambda p, x: jax.numpy.sin(x @ p["w"]), params={"w": np.zeros((2, 1))})
      >>> lin({"w": np.ones((2, 1))}, np.array([[1.0, 2.0]]))  # sin(0) + cos(0) * 3
      Array([[3.]], dtype=float32)

    Reference: Lee et al., NeurIPS 2019 (wide networks evolve as linear models).
    """
    if isinstance(model, Traced):
        if any(given is not None for given in (params, init, width)):
            raise InputError("Expected no `params`, `init` and `width` for a traced model, got some")
        read = model.model if seed == 0 else drawn(model.model, [seed])[0]
        values: Any = [jnp.asarray(v) for v in read.values]
        return Linearized(read.fn, values, tuple(leaf.name for leaf in read.leaves))
    opened = _source(model, x, params, init, width).open(seed)
    values = [jnp.asarray(v) for v in opened.values]
    if framework(model) == "function" and params is not None:
        return _of_tree(model, params)
    return Linearized(opened.fn, values, opened.names)


def _of_tree(model: Any, params: Any) -> Linearized:
    """Returns the linearization of a function in the form of its own parameters."""
    opened = open_model(model, params)
    leaves, structure = jax.tree.flatten(params)
    if len(leaves) != len(opened.values):
        # Whole numbers among the parameters have no derivative; the list holds the others.
        return Linearized(opened.fn, [jnp.asarray(v) for v in opened.values], opened.names)
    tree = jax.tree.unflatten(structure, [jnp.asarray(v) for v in opened.values])
    return Linearized(lambda p, x: opened.fn(jax.tree.leaves(p), x), tree, opened.names)
