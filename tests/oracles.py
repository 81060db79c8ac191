"""Second derivations and finite networks to test kernels against, and DAGs to test them on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from hypothesis import strategies as st

from nngp_dag.graph import Dag, Edge, Op
from nngp_dag.nets import DagNet, as_functions

ORDERS = ("linear-act", "act-linear")


@st.composite
def dags(draw, min_nodes: int = 2, max_nodes: int = 6, parallel: bool = True) -> Dag:
    """Connected DAGs of `min_nodes` to `max_nodes` nodes, dead nodes and (if asked) parallel edges included."""
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


def relu_dual(k: np.ndarray, q1: np.ndarray, q2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """2 E[relu(u) relu(v)] and 2 E[relu'(u) relu'(v)] by the arc-cosine formula, (N1, N2)."""
    r = np.sqrt(np.outer(q1, q2))
    safe = np.where(r > 0, r, 1)
    theta = np.arccos(np.clip(k / safe, -1, 1))
    return r * (np.sin(theta) + (np.pi - theta) * np.cos(theta)) / np.pi, (np.pi - theta) / np.pi


def joint_kernel(dag: Dag, x1: np.ndarray, x2: np.ndarray, order: str, readout: bool) -> tuple[np.ndarray, np.ndarray]:
    """NNGP and NTK by propagating the joint second moments of all pairs of nodes, edge by edge.

    Knows nothing of normal forms: E[X_t X_u] and the inner products of the gradients of X_t and X_u are sums over
    pairs of edges into t and u.
    """
    inputs = np.concatenate([x1, x2])
    k_in = inputs @ inputs.T / inputs.shape[1]
    n = len(inputs)

    def weighted(k, ntk):
        q = np.diag(k)
        f, fd = relu_dual(k, q, q)
        # The angle of an input with itself is zero; arccos would leave half of the digits.
        f[np.diag_indices(n)], fd[np.diag_indices(n)] = q, 1.0
        if order == "act-linear":
            return f, f + fd * ntk, np.zeros(n)
        return f, fd * (k + ntk), np.sqrt(q / np.pi)

    if order == "linear-act":
        k0, t0, m0 = weighted(k_in, np.zeros_like(k_in))
    else:
        k0, t0, m0 = 2 * k_in, 2 * k_in, np.zeros(n)
    K, T, m = {(0, 0): k0}, {(0, 0): t0}, [m0]
    zero = np.zeros((n, n))
    for t in range(1, dag.num_nodes):
        into = [e for e in dag.edges if e.target == t]
        laws = [weighted(K[e.source, e.source], T[e.source, e.source]) for e in into]
        means = [m[e.source] if e.op is Op.SKIP else law[2] for e, law in zip(into, laws, strict=True)]
        m.append(sum(means, np.zeros(n)))
        for u in range(t):
            # The weights of an edge into t are independent of X_u.
            cross = [
                K[e.source, u] if e.op is Op.SKIP else np.outer(mean, m[u]) for e, mean in zip(into, means, strict=True)
            ]
            K[t, u] = sum(cross, zero)
            T[t, u] = sum((T[e.source, u] for e in into if e.op is Op.SKIP), zero)
            K[u, t], T[u, t] = K[t, u].T, T[t, u].T
        K[t, t], T[t, t] = zero.copy(), zero.copy()
        for i, a in enumerate(into):
            for j, b in enumerate(into):
                if a.op is Op.SKIP and b.op is Op.SKIP:
                    K[t, t] += K[a.source, b.source]
                    T[t, t] += T[a.source, b.source]
                elif i == j:
                    K[t, t] += laws[i][0]
                    T[t, t] += laws[i][1]
                else:
                    K[t, t] += np.outer(means[i], means[j])
    k, ntk = K[dag.num_nodes - 1, dag.num_nodes - 1], T[dag.num_nodes - 1, dag.num_nodes - 1]
    if readout:
        k, ntk = (2 * k, 2 * (k + ntk)) if order == "linear-act" else weighted(k, ntk)[:2]
    return k[: len(x1), len(x1) :], ntk[: len(x1), len(x1) :]


@functools.lru_cache(maxsize=2)
def finite_kernels(dag: Dag, x_bytes: bytes, dim: int, order: str, width: int, draws: int, seed: int):
    """Empirical NNGP and NTK after the readout, of `draws` networks: two arrays (draws, N, N)."""
    x = jnp.asarray(np.frombuffer(x_bytes).reshape(-1, dim), jnp.float32)

    def create(rngs: nnx.Rngs) -> DagNet:
        return DagNet(dag, dim, 1, width=width, order=order, rngs=rngs)

    init, apply = as_functions(create)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))))

    def one(key):
        params = init(key)
        last = nnx.merge(graphdef, params).features(x)
        if order == "act-linear":
            last = jax.nn.relu(last)
        jacobian = jax.jacrev(lambda p: apply(p, x)[:, 0])(params)
        flat = [leaf.reshape(len(x), -1) for leaf in jax.tree.leaves(jacobian)]
        # Given the last node, the readout is Gaussian: its part of the average is taken exactly.
        return 2 * last @ last.T / width, sum(leaf @ leaf.T for leaf in flat)

    keys = jax.random.split(jax.random.key(seed), draws)
    nngp, ntk = jax.jit(lambda keys: jax.lax.map(one, keys, batch_size=32))(keys)
    return np.asarray(nngp, np.float64), np.asarray(ntk, np.float64)
