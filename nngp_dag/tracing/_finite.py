"""A traced model beside its limit: the part of the NTK of its readout, and its finite draws as trainable functions."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import ModelError
from nngp_dag.tracing._draws import apply_alike, drawn, gradient_factors
from nngp_dag.tracing.traced import Traced
from nngp_dag.tracing.values import heads


class _Readout(Traced):
    """The model with its readout trained alone; its NTK is the readout's part of the whole."""

    @property
    def _identity(self) -> tuple[Any, ...]:
        return (*super()._identity, "readout")

    def _seeds(self) -> Any:
        seed, keys = super()._seeds(), {head.weight.key for head in heads(self.program.output)}
        return lambda weight: seed(weight) if weight.key in keys else 0.0


def readout_kernel(traced: Traced, x: Any) -> np.ndarray:
    """Returns the part of the NTK that the weights of the readout contribute, (N, N) in float64.

    The NTK is this part plus those of all other parameters, which are positive semidefinite. Its smallest eigenvalue so
    bounds that of the NTK from below. For n hidden units h and weights of the model's own scale, the part is
    n E[h(x) h(x')]. In the parameterization "ntk" it has the variance of the weights as a factor. It then is
    `w_std`^2 K(H), with the NNGP K(H) at the last node of a `Network` with the order "linear-act".

    Args:
      traced: The model.
      x: Inputs, as `traced.read_inputs` returns them.

    Raises:
      ModelError: The NTK has no limit.

    Examples:
      >>> import nngp_dag as nd
      >>> traced = nd.trace(lambda rngs: nd.nets.DagNet("2_12", 3, 1, width=32, rngs=rngs), np.eye(3))
      >>> part = readout_kernel(traced, np.eye(3))
      >>> bool(np.allclose(part, 2 * nd.kernel("2_12", np.eye(3), readout=False).nngp))
      True
    """
    fields = {field.name: getattr(traced, field.name) for field in dataclasses.fields(Traced)}
    return np.asarray(_Readout(**fields).kernels(x)[1])


def check_centered(traced: Traced) -> None:
    """Refuses models whose outputs are not Gaussian with mean 0 at initialization.

    Raises:
      ModelError: They are not, so that NNGP and NTK do not determine the expected loss.
    """
    output = traced.program.output
    if not output.gaussian or output.offset != 0:
        got = "others" if not output.gaussian else "a mean that is not 0 or depends on the input"
        raise ModelError(
            f"Expected outputs of {traced.name} that are Gaussian with mean 0 at initialization, got {got}; NNGP and "
            "NTK do not determine its expected loss, so let a matrix product come last"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Trainable:
    """Draws of a model that share a function.

    Attributes:
      apply: Function of the trained arrays and inputs (N, ...) that returns the outputs, (N, C).
      params: The arrays before training; each has a leading axis of draws.
      places: The places of the draws among the seeds.
    """

    apply: Callable[[Any, Any], Any]
    params: list[Any]
    places: list[int]


def trainable(traced: Traced, seeds: Sequence[int], x: Any) -> list[Trainable]:
    """Returns finite draws of a model, in float32, to be trained in its parameterization.

    Gradient descent on the arrays is that on the model's own parameters. In the parameterization "ntk" it is descent on
    the parameters in units of their standard deviations. Parameters without one, such as biases of 0, stay.

    Args:
      traced: The model.
      seeds: Seeds of the draws, see `drawn`.
      x: Inputs.

    Raises:
      InputError: The parameters cannot be drawn again.
    """
    functions = drawn(traced.model, seeds)
    factors = gradient_factors(traced.model, traced.parameterization)
    groups = []
    for places in apply_alike(functions, x[:2] if traced.batch_axis == 0 else x):
        fn = functions[places[0]].fn
        values = zip(*(functions[place].values for place in places), strict=True)
        params = [
            jnp.stack([jnp.asarray(one, jnp.float32) for one in leaf]) / (factor or 1.0)
            for leaf, factor in zip(values, factors, strict=True)
        ]

        def apply(params: Any, x: Any, fn: Any = fn) -> Any:
            leaves = [p * f if f else jax.lax.stop_gradient(p) for p, f in zip(params, factors, strict=True)]
            return fn(leaves, x).reshape(len(x), -1)

        groups.append(Trainable(apply, params, places))
    return groups
