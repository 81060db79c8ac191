"""The empirical NTK of a network of dense layers, contracted layer by layer.

The derivative of an output in the weights of a layer is the product of two vectors, the layer's input a and the
derivative d of the output in W a + b. So kernels of all pairs of outputs need no derivatives in single weights:

    NTK[ic, jd] = sum over layers of (w^2 a_i . a_j + b^2) d_ic . d_jd,

with the scales w and b of the parameterization, which are 1 in "standard". This takes one backward pass per output
unit, and products of (N C, width) matrices.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nngp_dag.errors import InputError
from nngp_dag.nets.layers import WeightedLayer
from nngp_dag.nets.model import DagNet

Params = Any


def empirical_ntk(
    create: Callable[[nnx.Rngs], DagNet],
) -> Callable[[Params, Array], tuple[Float[Array, "n c"], Float[Array, "n n"], Float[Array, "n c n c"]]]:
    """Returns a function of parameters and inputs that returns outputs, their NNGP, and the empirical NTK.

    The NNGP is the covariance of an output unit over the readout's weights, given those of all other layers.

    The NTK is that of the training inputs and of all pairs of output units, in the parameterization of the network.
    `nngp_dag.empirical` computes it for any model, by derivatives in single weights.

    Args:
      create: Function that builds the network from random number streams. The network has one input, one output node,
        and no convolutions, pooling or batch normalization.

    Returns:
      A function of parameters, see `as_functions`, and inputs (N, d) that returns the outputs, (N, C), the NNGP,
      (N, N), and the NTK, (N, C, N, C). It can be compiled and vmapped.

    Raises:
      InputError: The network is of another kind.

    Examples:
      >>> from nngp_dag.nets import as_functions
      >>> create = lambda rngs: DagNet("2", 3, 2, width=8, rngs=rngs)
      >>> init, _ = as_functions(create)
      >>> f, nngp, ntk = empirical_ntk(create)(init(jax.random.key(0)), jnp.eye(3))
      >>> f.shape, nngp.shape, ntk.shape
      ((3, 2), (3, 3), (3, 2, 3, 2))

    Reference: Novak, Sohl-Dickstein, Schoenholz, ICML 2022, Section 3.3 (structured derivatives).
    """
    model = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    _check(model)
    graphdef, _ = nnx.split(model)

    def observed(params: Params, x: Array, probes: list[Array] | None) -> tuple[Any, tuple[list[Array], list[Array]]]:
        """Returns the outputs with probes added to W a + b of every layer, the layers' inputs, and W a + b."""
        network = nnx.merge(graphdef, params, copy=True)
        inputs, affine = [], []

        def observer(_: WeightedLayer, a: Array, y: Array) -> Array:
            affine.append(y)
            inputs.append(a)
            return y if probes is None else y + probes[len(inputs) - 1]

        for layer in _layers(network):
            layer.observer = observer
        return network(x), (inputs, affine)

    def of_scales(layer: WeightedLayer) -> tuple[float, float]:
        return layer.w_scale**2, 0.0 if layer.linear.bias is None else layer.b_scale**2

    # Layers are called in this order: stems, edges, readouts.
    scales = [of_scales(layer) for layer in _layers(model)]

    def outputs_and_kernels(params: Params, x: Array) -> tuple[Array, Array, Array]:
        _, (_, affine) = jax.eval_shape(lambda p, x: observed(p, x, None), params, x)
        probes = [jnp.zeros(y.shape, y.dtype) for y in affine]
        f, pull, (inputs, _) = jax.vjp(lambda probes: observed(params, x, probes), probes, has_aux=True)
        n, c = f.shape
        # An output depends on its own input alone, so one pass serves all inputs.
        (found,) = jax.vmap(lambda unit: pull(jnp.broadcast_to(unit, f.shape)))(jnp.eye(c, dtype=f.dtype))
        read, op = inputs[-1], model.readout.op
        nngp = op.w_std**2 / read.shape[1] * jnp.matmul(read, read.T, precision="highest") + (op.b_std or 0) ** 2
        total = jnp.zeros((n, c, n, c), f.dtype)
        for a, d, (weight, bias) in zip(inputs, found, scales, strict=True):
            rows = d.transpose(1, 0, 2).reshape(n * c, -1)
            products = jnp.matmul(rows, rows.T, precision="highest").reshape(n, c, n, c)
            moments = weight * jnp.matmul(a, a.T, precision="highest") + bias
            total = total + moments[:, None, :, None] * products
        return f, nngp, total

    return outputs_and_kernels


def _layers(model: DagNet) -> Iterator[WeightedLayer]:
    return itertools.chain(model.stems, model.edges, model.readouts)


def _check(model: Any) -> None:
    if not isinstance(model, DagNet):
        raise InputError(f"Expected `create` to return a DagNet, got {type(model).__name__}; use `nngp_dag.empirical`")
    if model.network.image_operations or len(model.stems) > 1 or len(model.readouts) > 1:
        raise InputError(
            "Expected a network of dense layers with one input and one output node, got another; use "
            "`nngp_dag.empirical`"
        )
    if any(layer.norm is not None for layer in _layers(model)):
        raise InputError(
            "Expected a network without batch normalization, got one with it; its outputs depend on the other inputs"
        )
    known = sum(1 + (layer.linear.bias is not None) for layer in _layers(model))
    if known != len(jax.tree.leaves(nnx.state(model, nnx.Param))):
        raise InputError("Expected no parameters but weights and biases, got others; use `nngp_dag.empirical`")
