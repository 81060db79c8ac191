"""The kernel of a DAG as a layer of `neural_tangents.stax`."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from nngp_dag.errors import InputError
from nngp_dag.graph import Dag, Op, normal_form
from nngp_dag.kernels.engine import check_order, kernel_of_kernel, second_moments
from nngp_dag.kernels.kernel import precision_of
from nngp_dag.kernels.neural_tangents import Kernel as StaxKernel
from nngp_dag.kernels.neural_tangents import stax


def _dense_relu(weights: jax.Array, x: jax.Array, order: str) -> jax.Array:
    scale = (2 / x.shape[-1]) ** 0.5
    if order == "linear-act":
        return jax.nn.relu(scale * (x @ weights))
    return scale * (jax.nn.relu(x) @ weights)


@stax.layer
def DagLayer(dag: Dag, width: int, *, order: str = "linear-act") -> tuple[Any, Any, Any]:  # noqa: N802
    """The stem and the nodes of a DAG of fully connected ReLU layers, as a `neural_tangents.stax` layer.

    It computes X(H), the last node, and composes with other layers: followed by
    `stax.Dense(k, W_std=2**0.5)` ("linear-act"), or by `stax.Relu()` and the same `Dense` ("act-linear"), its kernel is
    that of `nngp_dag.kernel` with the readout. Parameters follow the NTK parameterisation with He
    variance and no bias.

    Unlike `stax.parallel` with `FanInSum`, it is exact for sums of activated branches and for skips that share an
    ancestor, and its cost does not grow with the number of paths.

    The angle of two inputs that nearly coincide is only as good as the rounding of the kernel that comes in (relative
    errors of 1e-4 in a float32 NTK); `nngp_dag.kernel` sees the inputs themselves and keeps it.

    Args:
      dag: The connectivity.
      width: Number of units of every node of the finite network.
      order: "linear-act", phi(W x) on edges and the stem Linear + ReLU; or "act-linear", W phi(x) and the stem Linear.

    Returns:
      `(init_fn, apply_fn, kernel_fn)`. `params` is a tuple: the stem's weights (d, width), then those of every weighted
      edge in the order of `dag.live_edges`, (width, width) each.

    Raises:
      GraphError: No path leads through `dag`.
      InputError: `width` or `order` is invalid, or inputs are not of shape (N, d).

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> from neural_tangents import stax
      >>> dag = nd.Dag.from_code("2_21_112")
      >>> _, _, kernel_fn = stax.serial(nd.stax.DagLayer(dag, 512), stax.Dense(1, W_std=2**0.5))
      >>> x = np.eye(3, dtype=np.float32)
      >>> bool(np.allclose(kernel_fn(x, None, "ntk"), nd.kernel(dag, x).ntk, rtol=1e-5))
      True

    Reference: Novak et al., ICLR 2020 (the stax language); Chen et al., NeurIPS 2022 (the architecture).
    """
    check_order(order)
    if width < 1:
        raise InputError(f"Expected `width` to be at least 1, got {width}")
    tables = normal_form(dag)
    weighted = [edge for edge in dag.live_edges if edge.op is Op.WEIGHTED]

    def init_fn(rng: jax.Array, input_shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[jax.Array, ...]]:
        _check_shape(input_shape)
        keys = jax.random.split(rng, 1 + len(weighted))
        fan_in = [input_shape[-1]] + [width] * len(weighted)
        params = tuple(jax.random.normal(key, (n, width)) for key, n in zip(keys, fan_in, strict=True))
        return (*input_shape[:-1], width), params

    def apply_fn(params: tuple[jax.Array, ...], inputs: ArrayLike, **kwargs: Any) -> jax.Array:
        stem, *edge_weights = params
        inputs = jnp.asarray(inputs)
        _check_shape(inputs.shape)
        if order == "linear-act":
            node0 = _dense_relu(stem, inputs, order)
        else:
            node0 = (2 / inputs.shape[-1]) ** 0.5 * (inputs @ stem)
        nodes = [node0] + [jnp.zeros_like(node0)] * (dag.num_nodes - 1)
        remaining = iter(edge_weights)
        for edge in dag.live_edges:
            x = nodes[edge.source]
            x = _dense_relu(next(remaining), x, order) if edge.op is Op.WEIGHTED else x
            nodes[edge.target] = nodes[edge.target] + x
        return nodes[-1]

    @stax.requires(batch_axis=0, channel_axis=-1)
    def kernel_fn(k: StaxKernel, **kwargs: Any) -> StaxKernel:
        _check_shape(k.shape1)
        q1 = k.cov1 if k.diagonal_batch else jnp.diagonal(k.cov1)
        q2 = None if k.cov2 is None else k.cov2 if k.diagonal_batch else jnp.diagonal(k.cov2)
        # neural-tangents marks the NTK of raw inputs, which is zero, by a scalar.
        ntk_in = k.ntk if k.ntk is not None and k.ntk.ndim else jnp.zeros_like(k.nngp)
        options = {"order": order, "activation": "relu"}
        with precision_of(k.nngp.dtype):
            A, B = jnp.asarray(tables.A, k.nngp.dtype), jnp.asarray(tables.B, k.nngp.dtype)
            nngp, ntk = kernel_of_kernel(A, B, k.nngp, ntk_in, q1, q2, **options)

            def propagate(cov: jax.Array | None, q: jax.Array | None) -> jax.Array | None:
                if cov is None or q is None:
                    return None
                if k.diagonal_batch:
                    return second_moments(A, B, q, **options)
                return kernel_of_kernel(A, B, cov, jnp.zeros_like(cov), q, None, **options)[0]

            return k.replace(
                nngp=nngp,
                ntk=None if k.ntk is None else ntk,
                cov1=propagate(k.cov1, q1),
                cov2=propagate(k.cov2, q2),
                is_gaussian=order == "act-linear",
                is_input=False,
            )

    return init_fn, apply_fn, kernel_fn


def _check_shape(shape: tuple[int, ...]) -> None:
    if len(shape) != 2:
        raise InputError(
            f"Expected the input of `DagLayer` to have shape (N, d), got {shape}; put `stax.Flatten()` before it"
        )
