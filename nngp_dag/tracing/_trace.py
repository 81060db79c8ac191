"""`trace` reads a model."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import InputError, ModelError, shorten, shown
from nngp_dag.tracing import jaxprs, rules
from nngp_dag.tracing.arrays import Num, Par, Rand, size_of
from nngp_dag.tracing.models import ModelFunction, read_model
from nngp_dag.tracing.program import Program, program_of
from nngp_dag.tracing.reader import Reader, described
from nngp_dag.tracing.rules.standardization import check_norms
from nngp_dag.tracing.traced import Traced
from nngp_dag.tracing.values import Product, heads, operands

del rules  # imported so that they register themselves

# Number of inputs on which models are tested to treat inputs one by one, and the tolerance relative to the output.
_TESTED = 3
_TOLERANCE = 1e-3


def trace(
    model: Any,
    x: Any,
    *,
    params: Any = None,
    init: Callable[..., Any] | None = None,
    width: int | None = None,
    distributions: Mapping[str, Any] | None = None,
    batch_axis: int | None = 0,
    seed: int = 0,
) -> Traced:
    """Reads the exact infinite-width kernels of a model off its program.

    The program (jaxpr) of a model is a Tensor Program: products with fresh Gaussian weights, elementwise functions,
    sums and means. Its second moments at infinite width follow from rules, also where weights are shared, and the NTK
    is a tangent of them (`nngp_dag.tracing.moments`). The infinite axes are those over which matrix products sum,
    except for the features of the input. `print` shows them, and all that was assumed. A model outside the calculus is
    refused with the file and line.

    The kernels are those of the model's own parameterization at its own width: the NTK is the mean of the empirical
    NTK up to 1 / width.

    Args:
      model: An `nnx.Module`, a linen module, an equinox module (of one example), a function `f(params, x)`, or a
        factory of one of these with parameters among `width`, `rngs` and `key`. It is read in inference mode.
      x: Inputs of the shapes and types that the model takes, (N, ...); two or more let it be tested that the model
        treats them one by one.
      params: Parameters of a function, or variables of a linen module, before training.
      init: The function of a key that returns the parameters of a function.
      width: The width for a factory. The model of twice the width is built, too, so that it is known which axes grow.
      distributions: Distributions of parameters by name or pattern, such as `{"*.kernel": ("normal", 0.1)}`, where no
        initializer tells them.
      batch_axis: 0 if the first axis counts inputs. None if the whole array is one input, such as the nodes of a graph;
        the kernels are then those between positions of the output.
      seed: The seed of the parameters that a factory draws.

    Returns:
      The traced model. `nngp_dag.kernel` takes it like a network.

    Raises:
      ModelError: The model is outside the calculus; the message names file, line and reason.
      InputError: An argument is wrong, or a parameter's distribution is not known.

    Examples:
      >>> import numpy as np, jax, jax.numpy as jnp, nngp_dag as nd
      >>> def model(params, x):
      ...     h = jnp.tanh(x @ params["w"])
      ...     return jnp.tanh(h @ params["u"]) @ params["u"] @ params["v"]  # u is used twice
      >>> def init(key):
      ...     keys = jax.random.split(key, 3)
      ...     shapes = {"w": (3, 64), "u": (64, 64), "v": (64, 1)}
      ...     return {n: jax.random.normal(k, s) / s[0]**0.5 for k, (n, s) in zip(keys, shapes.items())}
      >>> traced = nd.trace(model, np.eye(3), init=init)
      >>> nd.kernel(traced, np.eye(3)).nngp.shape
      (3, 3)

    Reference: Yang 2019, 2020, "Tensor Programs" I and II (the limit, and its conditions).
    """
    if batch_axis not in (0, None):
        raise InputError(f"Expected `batch_axis` to be 0 or None, got {shown(batch_axis)}; move the axis to the front")
    x = np.asarray(x)
    if x.ndim < 1 or x.size == 0:
        raise InputError(f"Expected `x` to hold inputs (N, ...), got shape {x.shape}")
    function = read_model(model, x, params=params, init=init, width=width, distributions=distributions, seed=seed)
    one = x[:1] if batch_axis == 0 else x
    with jax.enable_x64(True):
        reader, output, digest = _read(function, one)
        output = _checked_output(output, batch_axis, function.name)
        program = program_of(output, reader.values, reader.no_ntk)
        _check_averages(reader, program)
        check_norms(reader)
    if batch_axis == 0:
        _check_batch(function, x)
    return Traced(function, program, one.shape, _is_discrete(one), batch_axis, output.channels, reader.infinite, digest)


def _jaxpr(fn: Callable[..., Any], shapes: Sequence[tuple[int, ...]], one: np.ndarray) -> Any:
    """Returns the program of a function of parameters and of one input."""

    def made(dtype: Any, of_input: jax.ShapeDtypeStruct) -> Any:
        return jax.make_jaxpr(fn)([jax.ShapeDtypeStruct(shape, dtype) for shape in shapes], of_input)

    return _in_float64(made, one)


def _in_float64(made: Callable[[Any, jax.ShapeDtypeStruct], Any], one: np.ndarray) -> Any:
    """Returns a program for a type of floats and an input like `one`, in float64 if the model can run in it."""

    def in_type(dtype: Any) -> Any:
        return made(dtype, jax.ShapeDtypeStruct(one.shape, one.dtype if _is_discrete(one) else dtype))

    try:
        return in_type(np.float64)
    except TypeError:
        # Some models hold arrays of float32, such as the first state of a recurrent cell, which must keep their type.
        return in_type(np.float32)


def _is_discrete(one: np.ndarray) -> bool:
    return one.dtype.kind in "iub"


def _shapes_at_twice_the_width(function: ModelFunction, closed: Any, one: np.ndarray) -> Any:
    """Returns the shapes of a program's results at twice the width, or None for a model without a width."""
    if function.width is None or function.twice is None:
        return None
    twice = function.twice
    # Inside a program of JAX no numbers are drawn; keys that the model uses may make it another program then.
    for opened in (lambda: _drawn_in_a_program(twice, one), twice):
        found: dict[int, list[tuple[int, ...]]] = {}
        drawn = opened()
        wide = drawn if hasattr(drawn, "eqns") else _jaxpr(drawn.fn, [np.shape(v) for v in drawn.values], one).jaxpr
        differing = jaxprs.shapes_beside(closed.jaxpr, wide, found)
        if differing is None:
            return found
    raise ModelError(
        f"{differing}: Expected one program at all widths, got another one at width {2 * function.width} than at "
        f"{function.width}; let the width change sizes only"
    )


def _drawn_in_a_program(twice: Callable[[], Any], one: np.ndarray) -> Any:
    """Returns the program of a model whose parameters are drawn inside an outer program."""

    def made(dtype: Any, of_input: jax.ShapeDtypeStruct) -> Any:
        def drawn_and_applied(x: jax.Array) -> Any:
            opened = twice()
            return jax.jit(opened.fn)([jnp.asarray(value, dtype) for value in opened.values], x)

        outer = jax.make_jaxpr(drawn_and_applied)(of_input)
        (applied,) = [e for e in outer.jaxpr.eqns if set(e.outvars) & set(outer.jaxpr.outvars)]
        return (jaxprs.body(applied) or (outer.jaxpr, []))[0]

    return _in_float64(made, one)


def _read(function: ModelFunction, one: np.ndarray) -> tuple[Reader, Any, str]:
    """Returns the reader, the output, and a digest of a model's program at one input."""
    closed = _jaxpr(function.fn, [leaf.shape for leaf in function.leaves], one)
    if len(closed.out_avals) != 1:
        raise ModelError(
            f"Expected `model` to return one array, got {len(closed.out_avals)}; wrap it in a function that returns one"
        )
    reader = Reader(function.leaves, wider=_shapes_at_twice_the_width(function, closed, one))
    (output,) = reader.read(closed.jaxpr, closed.consts, [*reader.parameters(), reader.input(one.shape)])
    text = f"{closed.jaxpr} {[_bytes(c) for c in closed.consts]} {function.leaves}"
    return reader, output, hashlib.sha256(text.encode()).hexdigest()


def _bytes(constant: Any) -> bytes:
    """Returns the bytes of a constant of a program, which may be a key of random numbers."""
    dtype = getattr(constant, "dtype", None)
    is_key = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(constant) if is_key else constant).tobytes()


def _checked_output(output: Any, batch_axis: int | None, name: str) -> Rand:
    if isinstance(output, Num):
        raise ModelError(
            f"Expected {name} to be random, got an output whose limit is a number, such as a mean over units"
        )
    if not isinstance(output, Rand):
        got = "a parameter" if isinstance(output, Par) else described([output])
        raise ModelError(f"Expected {name} to return a value, got {got}; apply a matrix to a value")
    if len(output.parts) > 1:
        raise ModelError(
            f"Expected the units of the output of {name} to be alike, got a concatenation; return one part"
        )
    if batch_axis == 0:
        rest = [size_of(dim) for dim in output.dims]
        positions = int(np.prod(output.finite))
        if positions > 1:
            raise ModelError(
                f"Expected one output per input and unit, got outputs {tuple(rest)[1:]} at {positions} positions, such "
                "as pixels or tokens; average them, select one, or pass `batch_axis=None` for the kernel between them"
            )
    return output


def _check_averages(reader: Reader, program: Program) -> None:
    """Refuses means over units that no matrix product sums over, which may be a few output units."""
    products = [node for node in program.nodes if isinstance(node, Product)]
    summed = {head for node in products for o in operands(node) for head in heads(o)}
    for place, averaged in reader.averaged:
        if averaged & set(products) and not averaged & summed:
            raise ModelError(
                f"{place}: Expected means over infinite axes, got one over units that no matrix product sums over, "
                "such as output units; pass a factory of the model with `width`, which tells the axes that grow"
            )


def _check_batch(function: ModelFunction, x: np.ndarray) -> None:
    """Refuses models whose output for one input depends on the other inputs of a batch."""
    several = x[:_TESTED]
    if len(several) < _TESTED and several.dtype.kind == "f":
        random = np.random.default_rng(0).normal(size=(_TESTED - len(several), *x.shape[1:]))
        several = np.concatenate([several, (random * (several.std() or 1.0)).astype(x.dtype)])
    if len(several) < 2:
        return
    compiled = jax.jit(function.fn)
    blocks = [several, *(several[i : i + 1] for i in range(len(several)))]
    try:
        together, *ones = (np.asarray(compiled(function.values, jnp.asarray(block))) for block in blocks)
    except (TypeError, ValueError) as error:  # the model is the caller's code
        text = shorten(" ".join(str(error).split()), 200)
        raise ModelError(
            f"Expected {function.name} to take any number of inputs, got {type(error).__name__}: {text}; "
            "pass `batch_axis=None` if the whole array is one input"
        ) from error
    if together.ndim == 0 or len(together) != len(several):
        raise ModelError(
            f"Expected {function.name} to return one output per input, got shape {together.shape} for {len(several)} "
            "inputs; pass `batch_axis=None` if the whole array is one input"
        )
    alone = np.concatenate(ones)
    scale = float(np.abs(together).max()) or 1.0
    if not np.allclose(alone, together, rtol=0, atol=_TOLERANCE * scale):
        raise ModelError(
            f"Expected {function.name} to treat inputs one by one, got outputs that depend on the other inputs of a "
            "batch, such as by batch statistics; use running statistics or layer norm, or pass `batch_axis=None` if "
            "the whole array is one input"
        )
