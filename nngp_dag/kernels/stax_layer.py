"""`DagLayer`: a network as a layer of `neural_tangents.stax`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.activations import get_activation
from nngp_dag.architecture import Architecture, Network
from nngp_dag.architecture.reading import network_of
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import AvgPool, Dag, Dense, Pool
from nngp_dag.graph.operations import Operation
from nngp_dag.kernels.blocking import kernel_of_kernel, variances_of_outputs
from nngp_dag.kernels.choose import plan_of_layer
from nngp_dag.kernels.inputs import precision_of
from nngp_dag.kernels.neural_tangents import Kernel as StaxKernel
from nngp_dag.kernels.neural_tangents import stax
from nngp_dag.kernels.weights import weights_of

Shape = tuple[int, ...]
_NO_MASKS = "`DagLayer` does not support masking"


def _finite(op: Operation, width: int, parameterization: str) -> tuple[Any, Any]:
    """Returns `init_fn` and `apply_fn` of an edge's operation in the finite network."""
    if isinstance(op, Dense):
        return _finite_weighted(op, width, parameterization)
    init, apply = mix_pixels(op) if op.mixes_pixels else stax.Identity()[:2]
    return init, apply if op.factor == 1 else lambda params, x, **kwargs: float(op.factor) * apply(params, x, **kwargs)


@functools.singledispatch
def mix_pixels(op: Operation) -> tuple[Any, Any]:
    """Returns `init_fn` and `apply_fn` of an operation on pixels, without its factor; new classes register a rule here.

    Raises:
      InputError: No rule is registered for the class of `op`.
    """
    raise InputError(
        f"Expected an operation on pixels with a rule for stax, got {op!r}; register one with `mix_pixels`"
    )


@mix_pixels.register
def _pool(op: Pool) -> tuple[Any, Any]:
    return stax.AvgPool(*op.window)[:2]


@mix_pixels.register
def _pool_average(op: AvgPool) -> tuple[Any, Any]:
    return stax.AvgPool(*op.window, normalize_edges=op.normalize_edges)[:2]


def _finite_weighted(op: Dense, width: int, parameterization: str) -> tuple[Any, Any]:
    options = {"W_std": op.w_std, "b_std": op.b_std, "parameterization": parameterization}
    linear = stax.Conv(width, *op.window, **options) if op.window else stax.Dense(width, **options)
    phi = get_activation(op.activation)  # type: ignore[arg-type]
    activation = (lambda rng, shape: (shape, ())), (lambda params, x, **kwargs: phi(x))
    layers = [linear[:2], activation]
    if op.order == "act-linear":
        layers.reverse()
    if op.layer_norm:
        layers.insert(0, stax.LayerNorm(axis=-1)[:2])

    def init_fn(rng: jax.Array, shape: Shape) -> tuple[Any, tuple]:
        params = []
        # Only the linear layer draws random numbers, so all layers may share the key.
        for init, _ in layers:
            shape, drawn = init(rng, shape)
            params.append(drawn)
        return shape, tuple(params)

    def apply_fn(params: tuple, x: jax.Array, **kwargs: Any) -> jax.Array:
        for (_, apply), drawn in zip(layers, params, strict=True):
            x = apply(drawn, x)
        return x

    return init_fn, apply_fn


@stax.layer
def DagLayer(  # noqa: N802
    network: Network | Dag | str,
    *,
    has_stem: bool | None = None,
    **architecture: Unpack[Architecture],
) -> tuple[Any, Any, Any]:
    """Returns the stem and the nodes of a network as a layer of `neural_tangents.stax`.

    The layer computes X(H), the last node, and composes with other layers. In the order "linear-act" let
    `stax.Dense(k, W_std=2**0.5)` follow it; in the order "act-linear" let `stax.Relu()` and the same `Dense` follow it.
    The kernel is then that of `nngp_dag.kernel` with the readout.

    A graph with several inputs takes a list of inputs or kernels, such as `stax.FanOut` returns. A graph with several
    outputs returns a list. Each output must then pass through weights of its own before outputs are added up, because
    stax does not know their correlations. Other sums must be part of the graph.

    Unlike `stax.parallel` with `FanInSum`, the layer is exact for sums of activated branches and for skips that share
    an ancestor. Its cost does not grow with the number of paths.

    The angle of two inputs that nearly coincide is only as accurate as the rounding of the given kernel. Relative
    errors reach 1e-4 in a float32 NTK; `nngp_dag.kernel` has the inputs themselves and is accurate there. Masks are not
    supported.

    Args:
      network: The network, see `nngp_dag.kernel`. The layer ignores its readout; later layers define one.
      has_stem: Whether the layer starts with a stem. Without a stem, the input itself is node 0; it must then have
        `width` channels wherever skips add it to other nodes. By default the network decides.
      **architecture: Fields of `nngp_dag.Network` and of its layer. Among them is `width`, the number of units or
        channels of every node of the finite network.

    Returns:
      The functions `(init_fn, apply_fn, kernel_fn)`. The parameters are a tuple: first those of every input's stem,
      then those of every live edge in the order of `dag.live_edges`. Each of them is a tuple over the layers (layer
      norm, linear, activation) in the order of application, with `(W, b)` for the linear layer.

    Raises:
      GraphError: No path leads to an output, an activation acts on a node that is not Gaussian, or operations do not
        fit the images.
      InputError: `width` or another option is invalid, or inputs are masked or have the wrong shape. Or `width` is not
        the fan-in that the NTK of the standard parameterization needs.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> from neural_tangents import stax
      >>> dag = nd.Dag.from_code("2_21_112")
      >>> _, _, kernel_fn = stax.serial(nd.stax.DagLayer(dag), stax.Dense(1, W_std=2**0.5))
      >>> x = np.eye(3, dtype=np.float32)
      >>> bool(np.allclose(kernel_fn(x, None, "ntk"), nd.kernel(dag, x).ntk, rtol=1e-5))
      True

    Reference: Novak et al., ICLR 2020 (the stax language); Chen et al., NeurIPS 2022 (the architecture).
    """
    if not_here := [name for name in ("readout", "image_readout") if name in architecture]:
        raise InputError(
            f"Expected no `{not_here[0]}`, got one; a `DagLayer` ends with the last node: put layers after it"
        )
    network = network_of(network, "network", architecture, DagLayer, has_stem)
    network = dataclasses.replace(network, readout=False, image_readout="flatten")
    width, parameterization = network.width, network.parameterization
    dag = network.dag
    several_outputs = len(dag.outputs) > 1
    stems = [_finite(network.stem_op, width, parameterization)] * dag.num_inputs if network.has_stem else []
    edges = [_finite(edge.op, width, parameterization) for edge in network.edges]

    def init_fn(rng: jax.Array, input_shape: Any) -> tuple[Any, tuple]:
        shapes = [_shape(shape) for shape in _inputs(input_shape, network, _shape)]
        keys = list(jax.random.split(rng, len(stems) + len(edges)))
        params = []
        nodes: list[Shape | None] = [*shapes, *[None] * (dag.num_nodes - dag.num_inputs)]
        for node, (init, _) in enumerate(stems):
            shape, drawn = init(keys[node], nodes[node])
            nodes[node] = _shape(shape)
            params.append(drawn)
        for edge, (init, _), key in zip(network.edges, edges, keys[len(stems) :], strict=True):
            shape, drawn = init(key, nodes[edge.source])
            shape = _shape(shape)
            params.append(drawn)
            if nodes[edge.target] not in (None, shape):
                raise GraphError(
                    f"Expected all edges into node {edge.target} to output one shape, got {nodes[edge.target]} and "
                    f"{shape} from edge {edge}; give them equal strides, and inputs without stem `width` channels"
                )
            nodes[edge.target] = shape
        outputs = [nodes[output] for output in dag.outputs]
        return (outputs if several_outputs else outputs[0]), tuple(params)

    def apply_fn(params: tuple, inputs: ArrayLike | Sequence[ArrayLike], **kwargs: Any) -> Any:
        if kwargs.get("mask_constant") is not None:
            raise InputError(f"Expected no `mask_constant`, got {kwargs['mask_constant']}; {_NO_MASKS}")
        nodes: list[Any] = [jnp.asarray(x) for x in _inputs(inputs, network, jnp.shape)]
        nodes += [None] * (dag.num_nodes - dag.num_inputs)
        for node, (_, apply) in enumerate(stems):
            nodes[node] = apply(params[node], nodes[node])
        for edge, (_, apply), drawn in zip(network.edges, edges, params[len(stems) :], strict=True):
            x = network.factor(edge.target) * apply(drawn, nodes[edge.source])
            nodes[edge.target] = x if nodes[edge.target] is None else nodes[edge.target] + x
        outputs = [nodes[output] for output in dag.outputs]
        return outputs if several_outputs else outputs[0]

    # Pooling needs the covariances of different pixels; nothing else here does.
    spatial = stax.Diagonal(input=stax.Bool.NO) if network.pools else stax.Diagonal()

    @stax.requires(batch_axis=0, channel_axis=-1, diagonal_spatial=spatial)
    def kernel_fn(k: StaxKernel | list[StaxKernel], **kwargs: Any) -> Any:
        _inputs(k, network, lambda one: one.shape2)
        inputs = [_checked(one) for one in _inputs(k, network, lambda one: one.shape1)]
        first = inputs[0]
        if (
            not network.has_stem
            and parameterization == "standard"
            and first.ntk is not None
            and first.shape1[-1] != width
        ):
            raise InputError(
                f"Expected an input of `width`, {width}, channels for the NTK of parameterization 'standard' without "
                f"stem, got {first.shape1[-1]}; put a `Dense` before the layer, or give it a stem"
            )
        input_is_gaussian = all(one.is_gaussian for one in inputs)
        network.check_gaussian(input_is_gaussian=input_is_gaussian)
        plan = plan_of_layer(network, first.ntk is not None)
        layout = plan.layout._replace(
            ndim=len(first.shape1) - 2, full=not first.diagonal_spatial and len(first.shape1) > 2
        )
        options = {"spec": plan.spec, "layout": layout, "channels": tuple(one.shape1[-1] for one in inputs)}

        def own(which: str) -> list[jax.Array] | None:
            """Returns the covariances of inputs with themselves, for every input node."""
            covariances = [getattr(one, which) for one in inputs]
            if covariances[0] is None:
                return None
            return [c if one.diagonal_batch else _diagonal(c) for c, one in zip(covariances, inputs, strict=True)]

        own1, own2 = own("cov1"), own("cov2")
        with precision_of(np.dtype(first.nngp.dtype)):
            weights = weights_of(plan, np.dtype(first.nngp.dtype))
            # neural-tangents represents the NTK of raw inputs, which is zero, by a scalar.
            kernels = [
                (one.nngp, None if one.ntk is None else jnp.broadcast_to(one.ntk, one.nngp.shape)) for one in inputs
            ]
            results = kernel_of_kernel(weights, kernels, own1, own2, **options)

            def propagated(which: str, variances: list[jax.Array] | None) -> list[jax.Array | None]:
                if variances is None:
                    return [None] * len(dag.outputs)
                if first.diagonal_batch:
                    return list(variances_of_outputs(weights, variances, **options))
                whole = [(getattr(one, which), None) for one in inputs]
                options_without_ntk = options | {"spec": plan.spec._replace(with_ntk=False)}
                return [nngp for nngp, _ in kernel_of_kernel(weights, whole, variances, None, **options_without_ntk)]

            outputs = [
                first.replace(
                    nngp=nngp,
                    ntk=ntk,
                    cov1=cov1,
                    cov2=cov2,
                    is_gaussian=network.output_is_gaussian(output, input_is_gaussian=input_is_gaussian),
                    is_input=False,
                )
                for output, (nngp, ntk), cov1, cov2 in zip(
                    dag.outputs, results, propagated("cov1", own1), propagated("cov2", own2), strict=True
                )
            ]
        return outputs if several_outputs else outputs[0]

    return init_fn, apply_fn, kernel_fn


def _inputs(value: Any, network: Network, shape_of: Callable[[Any], Shape]) -> list:
    """Returns the inputs (or their shapes or kernels) as a list with one entry per input node, and checks shapes."""
    # A single shape is a tuple, too; its entries are numbers.
    several = isinstance(value, (list, tuple)) and len(value) > 0 and not isinstance(value[0], (int, np.integer))
    inputs, count = list(value) if several else [value], network.dag.num_inputs
    if len(inputs) != count:
        raise InputError(
            f"Expected a list of {count} inputs, one per input node, as after `stax.FanOut({count})`, got {len(inputs)}"
            if count > 1
            else f"Expected one input, got {len(inputs)}; the graph has one input node"
        )
    shapes = [shape_of(one) for one in inputs]
    for shape in shapes:
        _check_shape(shape, network)
    if len({tuple(shape[:-1]) for shape in shapes}) > 1:
        raise InputError(f"Expected inputs whose shapes differ in their channels only, got {shapes}")
    return inputs


def _shape(shape: Any) -> Shape:
    """Returns a shape as Python integers, since the convolutions of stax return NumPy's integers."""
    return tuple(int(size) for size in shape)


def _diagonal(covariance: jax.Array) -> jax.Array:
    """Returns the variances (N, *pixels) in covariances (N, N, *pixels)."""
    return jnp.moveaxis(jnp.diagonal(covariance), -1, 0)


def _checked(k: StaxKernel) -> StaxKernel:
    if k.mask1 is not None or k.mask2 is not None:
        raise InputError(f"Expected kernels without masks, got masked ones; {_NO_MASKS}")
    return k.reverse() if k.is_reversed else k


def _check_shape(shape: Shape, network: Network) -> None:
    if not network.image_operations:
        if len(shape) != 2:
            raise InputError(
                f"Expected the input of `DagLayer` to have shape (N, d), got {shape}; put `stax.Flatten()` before it, "
                "or give it convolutions"
            )
        return
    if len(shape) < 3:
        raise InputError(f"Expected the input of `DagLayer` to be images (N, *pixels, channels), got {shape}")
    network.pixels(tuple(shape[1:-1]))
