"""Oracles for kernels: second derivations and finite networks; and random DAGs to test them on."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import strategies as st

from nngp_dag.activations import ABRelu, get_activation
from nngp_dag.architecture import Network, as_network
from nngp_dag.graph import AvgPool, Conv, Dag, Dense, Edge, Op, Scale, SumPool
from nngp_dag.nets import DagNet, as_functions

ORDERS = ("linear-act", "act-linear")


@st.composite
def dags(draw, min_nodes: int = 2, max_nodes: int = 6, parallel: bool = True) -> Dag:
    """Draws connected DAGs of `min_nodes` to `max_nodes` nodes, with dead nodes and (optionally) parallel edges."""
    num_nodes = draw(st.integers(min_nodes, max_nodes))
    choices = [(), (Op.SKIP,), (Op.WEIGHTED,)]
    if parallel:
        choices += [(Op.WEIGHTED, Op.WEIGHTED), (Op.SKIP, Op.WEIGHTED)]
    edges = []
    for target in range(1, num_nodes):
        for source in range(target):
            edges += [Edge(source, target, op) for op in draw(st.sampled_from(choices))]
    dag = Dag(num_nodes, tuple(edges), allow_disconnected=True)
    if dag.num_paths == 0:
        dag = Dag(num_nodes, (*edges, Edge(0, num_nodes - 1, Op.WEIGHTED)))
    return dag


# The trapezoidal rule converges exponentially for an analytic function times a Gaussian.
_Z = np.linspace(-9.6, 9.6, 181)
_DENSITY = np.exp(-(_Z**2) / 2) * (_Z[1] - _Z[0]) / math.sqrt(2 * math.pi)


def expectations(activation: Any, k: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns E[phi(u) phi(v)], E[phi'(u) phi'(v)] and E[phi(u)] for all pairs of N(0, k), one by one.

    The formula of piecewise linear phi uses arccos; others use quadrature in the plane. Both are independent of
    `nngp_dag.kernels`.
    """
    phi = get_activation(activation)
    std = np.sqrt(np.diag(k))
    r = np.outer(std, std)
    rho = np.clip(k / np.where(r > 0, r, 1), -1, 1)
    # Without this, arccos would lose half of the digits of the angle between an input and itself.
    np.fill_diagonal(rho, 1)
    if isinstance(phi, ABRelu):
        # A piecewise linear phi is s x + d |x|.
        s, d, theta = (phi.b + phi.a) / 2, (phi.b - phi.a) / 2, np.arccos(rho)
        absolute = 2 * r / np.pi * (np.sin(theta) + (np.pi / 2 - theta) * rho)
        return s**2 * r * rho + d**2 * absolute, s**2 + d**2 * (1 - 2 * theta / np.pi), d * std * math.sqrt(2 / np.pi)
    i, j = np.triu_indices(len(k))
    results, means = [], []
    with jax.enable_x64(True):
        for fn in (phi, jax.vmap(jax.vmap(jax.grad(phi)))):

            def values(u, fn=fn):
                return np.asarray(fn(jnp.asarray(u.reshape(len(u), -1)))).reshape(u.shape)

            first = values(np.outer(std, _Z))
            full = np.zeros_like(k)
            for pairs in np.array_split(np.arange(len(i)), -(-len(i) // 64)):
                along = rho[i, j][pairs, None, None]
                second = std[j][pairs, None, None] * (along * _Z[:, None] + np.sqrt(1 - along**2) * _Z)
                full[i[pairs], j[pairs]] = ((values(second) @ _DENSITY) * first[i][pairs]) @ _DENSITY
            results.append(np.triu(full) + np.triu(full, 1).T)
            means.append(first @ _DENSITY)
    return results[0], results[1], means[0]


def window_maps(image: Sequence[int], op: Conv | AvgPool | SumPool) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns one 0-1 matrix (positions, pixels) per offset of a window, and the number of pixels inside the image."""
    window, strides = op.filter_shape if isinstance(op, Conv) else op.window_shape, op.strides
    assert strides is not None
    axes = []
    for size, of, step in zip(image, window, strides, strict=True):
        count = -(-size // step) if op.padding == "SAME" else (size - of) // step + 1
        low = max((count - 1) * step + of - size, 0) // 2 if op.padding == "SAME" else 0
        at = np.arange(count)[:, None] * step - low
        axes.append([(at + offset == np.arange(size)).astype(float) for offset in range(of)])
    maps = [functools.reduce(np.kron, chosen) for chosen in itertools.product(*axes)]
    return maps, np.sum(maps, axis=(0, 2))


def joint_kernels(
    network: Network, inputs: Sequence[np.ndarray], **options: object
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns NNGP and NTK of every output, (N, N), by propagating the moments of all pairs of nodes, edge by edge.

    This derivation does not use normal forms, programs or pixel layouts. E[X_t X_u] and the products of the gradients
    of X_t and X_u are sums over the edges into t. Rows and columns are (input, pixel) pairs, on which every operation
    is a matrix.

    Args:
      network: The network.
      inputs: One array per input node.
      **options: Fields of the network to replace.
    """
    network = dataclasses.replace(network, **options)
    dag, width, n = network.dag, network.width, len(inputs[0])
    image = inputs[0].shape[1:-1] if network.image_operations else ()

    def over_inputs(pixel_map: np.ndarray) -> np.ndarray:
        return np.kron(np.eye(n), pixel_map)

    def weigh(op: Dense, k, t, image, fan_in):
        maps = [over_inputs(m) for m in window_maps(image, op)[0]] if isinstance(op, Conv) else [np.eye(len(k))]
        k, t = (np.sum([m @ v @ m.T for m in maps], axis=0) / len(maps) for v in (k, t))
        b = op.b_std or 0
        standard = network.parameterization == "standard"
        a_w, a_b = (fan_in * len(maps), op.b_std is not None) if standard else (op.w_std**2, b**2)
        return op.w_std**2 * k + b**2, a_w * k + a_b + op.w_std**2 * t

    def law(op: Dense, k, t, m, image, fan_in):
        """Returns second moments, NTK and means of the output of an edge."""
        if op.layer_norm:
            k, std = k - np.outer(m, m), np.sqrt(np.diag(k) - m**2)
            k, t = k / np.outer(std, std), t / np.outer(std, std)
        if op.activation is None:
            k, t = weigh(op, k, t, image, fan_in)
            return k, t, np.zeros(len(k))
        if op.order == "act-linear":
            f, fd, _ = expectations(op.activation, k)
            k, t = weigh(op, f, fd * t, image, fan_in)
            return k, t, np.zeros(len(k))
        k, t = weigh(op, k, t, image, fan_in)
        f, fd, m = expectations(op.activation, k)
        return f, fd * t, m

    def without_weights(op: object, image) -> np.ndarray:
        if not isinstance(op, (AvgPool, SumPool)):
            return np.eye(n * math.prod(image)) * (op.factor if isinstance(op, Scale) else 1)
        maps, inside = window_maps(image, op)
        if isinstance(op, SumPool):
            return over_inputs(np.sum(maps, axis=0))
        return over_inputs(np.sum(maps, axis=0) / (inside[:, None] if op.normalize_edges else len(maps)))

    def shape_after(op: object, image) -> tuple[int, ...]:
        if not isinstance(op, (Conv, AvgPool, SumPool)):
            return image
        window, strides = op.filter_shape if isinstance(op, Conv) else op.window_shape, op.strides
        assert strides is not None
        of = (1,) * len(window) if op.padding == "SAME" else window
        return tuple((size - w) // step + 1 for size, w, step in zip(image, of, strides, strict=True))

    K, T, M, pixels = {}, {}, {}, {}
    for node, x in enumerate(inputs):
        x = x.reshape(n * math.prod(image), -1)
        k = x @ x.T / x.shape[1]
        K[node, node], T[node, node], M[node] = law(network.stem_op, k, 0 * k, np.zeros(len(k)), image, x.shape[1])
        pixels[node] = shape_after(network.stem_op, image)
        for other in range(node):
            K[node, other], K[other, node] = np.outer(M[node], M[other]), np.outer(M[other], M[node])
            T[node, other], T[other, node] = np.zeros((2, len(k), len(k)))
    into = {}
    for edge in dag.live_edges:
        op = network.layer if edge.op is Op.WEIGHTED else edge.op
        into.setdefault(edge.target, []).append((edge.source, op))
    for node in sorted(into):
        degree = len(into[node])
        a = {"sum": 1, "scaled-sum": degree**-0.5, "mean": 1 / degree}[network.aggregation]
        linear, weighted = [], []
        for source, op in into[node]:
            pixels[node] = shape_after(op, pixels[source])
            if isinstance(op, Dense):
                weighted.append(law(op, K[source, source], T[source, source], M[source], pixels[source], width))
            else:
                linear.append((source, a * without_weights(op, pixels[source])))
        means = [a * m for _, _, m in weighted]
        M[node] = sum([p @ M[source] for source, p in linear] + means)
        earlier = list(M)[:-1]
        for u in [*earlier, node]:
            # The weights of this edge are independent of X_u, unless X_u depends on them.
            nothing = np.zeros((len(M[node]), len(M[u])))
            k = sum([p @ K[source, u] for source, p in linear] + [np.outer(m, M[u]) for m in means], nothing)
            t = sum([p @ T[source, u] for source, p in linear], nothing)
            if u == node:
                k = k + sum(a**2 * (f - np.outer(m, m)) for f, _, m in weighted)
                t = t + sum(a**2 * of for _, of, _ in weighted)
            K[node, u], K[u, node], T[node, u], T[u, node] = k, k.T, t, t.T
    results = []
    for output in dag.outputs:
        k, t = K[output, output], T[output, output]
        if network.readout and network.layer.order == "act-linear" and network.layer.activation is not None:
            k, fd, _ = expectations(network.layer.activation, k)
            t = fd * t
        size = math.prod(pixels[output])
        equal = np.eye(size) / size if network.image_readout == "flatten" else np.ones((size, size)) / size**2
        k, t = (np.einsum("ipjq,pq->ij", v.reshape(n, size, n, size), equal) for v in (k, t))
        if network.readout:
            plain = dataclasses.replace(Dense(), activation=None, w_std=network.layer.w_std, b_std=network.layer.b_std)
            k, t = weigh(plain, k, t, (), width * (size if network.image_readout == "flatten" else 1))
        results.append((k, t))
    return results


def joint_kernel(dag: Dag, x1: np.ndarray, x2: np.ndarray, order: str, readout: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the blocks (x1, x2) of `joint_kernels` for ReLU. If x1 is x2, there is one set of inputs."""
    inputs = x1 if x1 is x2 else np.concatenate([x1, x2])
    [(k, ntk)] = joint_kernels(as_network(dag, order=order, readout=readout), [inputs])
    return k[: len(x1), -len(x2) :], ntk[: len(x1), -len(x2) :]


def empirical_kernels(create, inputs: Sequence[np.ndarray], draws: int, seed: int = 1, batch: int | None = 32):
    """Returns the empirical NNGP and NTK after the readouts of `draws` networks: two arrays (draws, N, N) per output.

    Args:
      create: Function of `rngs` that builds a `DagNet` with one output unit.
      inputs: One array per input node.
      draws: Number of networks.
      seed: Seed of the weights.
      batch: Number of networks that are computed at once.
    """
    x = [jnp.asarray(of, jnp.float32) for of in inputs]
    argument = x if len(x) > 1 else x[0]
    init, apply = as_functions(create)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))))

    def listed(values):
        return values if isinstance(values, list) else [values]

    def one(key):
        params = init(key)
        model = nnx.merge(graphdef, params)
        layer = model.network.layer
        jacobians = jax.jacrev(lambda p: [of[:, 0] for of in listed(apply(p, argument))])(params)
        results = []
        for last, jacobian in zip(listed(model.features(argument)), jacobians, strict=True):
            if model.readout_activation is not None:
                last = model.readout_activation(last)
            if model.network.image_readout == "global-average":
                last = last.mean(axis=tuple(range(1, last.ndim - 1)))
            last = last.reshape(len(last), -1)
            # Given the last node, the readout is Gaussian, so that the average over its weights is exact.
            nngp = layer.w_std**2 * last @ last.T / last.shape[1] + (layer.b_std or 0) ** 2
            flat = [leaf.reshape(len(last), -1) for leaf in jax.tree.leaves(jacobian)]
            results.append((nngp, sum(leaf @ leaf.T for leaf in flat)))
        return results

    keys = jax.random.split(jax.random.key(seed), draws)
    results = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=batch))(keys)
    return [(np.asarray(nngp, np.float64), np.asarray(ntk, np.float64)) for nngp, ntk in results]


@functools.lru_cache(maxsize=2)
def finite_kernels(dag: Dag, x_bytes: bytes, dim: int, order: str, width: int, draws: int, seed: int):
    """Returns `empirical_kernels` of a ReLU network with default options."""

    def create(rngs: nnx.Rngs) -> DagNet:
        return DagNet(dag, dim, 1, width=width, order=order, rngs=rngs)

    [kernels] = empirical_kernels(create, [np.frombuffer(x_bytes).reshape(-1, dim)], draws, seed)
    return kernels
