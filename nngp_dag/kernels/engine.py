"""Evaluation of the kernels of a DAG from its normal form (THEORY section 3).

With s running over the sources of weighted edges (the stem, then the nodes) and C(s) = F(s) - mu(s) mu(s)^T:

    m(t) = sum_s B[t, s] mu(s)
    K(t) = sum_s A[t, s] C(s) + m(t) m(t)^T
    T(t) = sum_s A[t, s] Fd(s) * (K(s) + T(s))             linear-act edges
    T(t) = sum_s A[t, s] (F(s) + Fd(s) * T(s))             act-linear edges, for which mu = 0

The diagonals obey the same recursions on vectors and come first. Every entry of K and T is then a function of the same
entry of the input kernel and of those vectors, so the matrices are computed in blocks of rows and only the
results are ever N x N.

ReLU networks without biases are homogeneous: scaling x_i scales row i of K and T. So inputs are scaled to K(in)_ii = 1
first and the results back last, and only angles matter in between.

Beside K goes D(t)_ij = (q_i(t) + q_j(t)) / 2 - K(t)_ij, half the mean squared distance of two inputs at node t, by a
recursion of its own, D(t) = sum_s A[t, s] (D_F(s) - (mu_i(s) - mu_j(s))^2 / 2) + (m_i(t) - m_j(t))^2 / 2, which
keeps the angle of inputs that nearly coincide: K alone would lose half of its digits, and the NTK is linear in it.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from nngp_dag.errors import InputError
from nngp_dag.kernels.dual import Activation, get_activation, root

ORDERS = ("linear-act", "act-linear")

# Entries of a block of rows, for all nodes together: a few MB, small enough for caches, large enough for every core.
_BLOCK_ENTRIES = 1 << 20


class Diagonals(NamedTuple):
    """The vector recursion for N inputs.

    Attributes:
      q: Second moments E[X(t)_k(x_i)^2], (H + 1, N).
      m: Means E[X(t)_k(x_i)], (H + 1, N).
      mu: Means of one field from each source, (H + 1, N); source 0 is the stem, source s + 1 is node s.
      ntk: Diagonal of T(t), (H + 1, N).
    """

    q: jax.Array
    m: jax.Array
    mu: jax.Array
    ntk: jax.Array


def check_order(order: str) -> None:
    """Raises an `InputError` unless `order` is known."""
    if order not in ORDERS:
        raise InputError(f"Expected `order` to be one of {', '.join(map(repr, ORDERS))}, got {order!r}")


def _linear(k: jax.Array, ntk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights of He variance without an activation: the act-linear stem, the linear-act readout."""
    return 2 * k, 2 * (k + ntk)


def _ntk_of_edge(order: str, f: jax.Array, fd: jax.Array, k: jax.Array, ntk: jax.Array) -> jax.Array:
    """NTK of one weighted edge's output, given the dual activation and the kernels at its source."""
    return fd * (k + ntk) if order == "linear-act" else f + fd * ntk


def diagonals(A: jax.Array, B: jax.Array, q: jax.Array, ntk: jax.Array, order: str, phi: Activation) -> Diagonals:
    """Runs the recursion on the diagonal alone.

    Args:
      A: Covariance weights of the normal form, (H + 1, H + 1).
      B: Mean weights, likewise.
      q: Diagonal of the input kernel, (N,).
      ntk: Diagonal of the input's NTK, (N,).
      order: "linear-act" or "act-linear".
      phi: The activation.
    """

    def field(k: jax.Array, ntk: jax.Array) -> tuple[jax.Array, ...]:
        f, fd = phi.dual_diagonal(k)
        mu = phi.mean(k) if order == "linear-act" else jnp.zeros_like(k)
        return f - mu**2, mu, _ntk_of_edge(order, f, fd, k, ntk)

    def node(t: jax.Array | int, state: tuple) -> tuple:
        fields, source, nodes = state
        fields = _store(fields, source, t)
        variance, m, tangent = (_weigh(weights[t], of) for weights, of in zip((A, B, A), fields, strict=True))
        q = variance + m**2
        return fields, field(q, tangent), _store(nodes, (q, m, tangent), t)

    stem = field(q, ntk) if order == "linear-act" else (2 * q, jnp.zeros_like(q), 2 * (q + ntk))
    empty = (jnp.zeros((A.shape[0], *q.shape), q.dtype),) * 3
    (_, mu, _), _, (q, m, tangent) = lax.fori_loop(0, A.shape[0], node, (empty, stem, empty))
    return Diagonals(q, m, mu, tangent)


# Up to so many nodes the recursion is written out, which runs five to eight times as fast; beyond, it is a loop, or
# the time to compile would grow with the square of the nodes.
_WRITTEN_OUT = 8

# Three quantities, of one source or stacked for every source: tuples of arrays while the recursion is written out, else
# arrays with one more axis.
_Stacks = tuple[Any, Any, Any]


def _stacks(rows: int, like: jax.Array) -> _Stacks:
    if rows <= _WRITTEN_OUT:
        return (), (), ()
    empty = jnp.zeros((rows, *like.shape), like.dtype)
    return empty, empty, empty


def _store(stacks: _Stacks, values: tuple[jax.Array, jax.Array, jax.Array], t: jax.Array | int) -> _Stacks:
    """Appends one value to each stack, as row t."""
    pairs = zip(stacks, values, strict=True)
    first, second, third = (
        (*s, v) if isinstance(s, tuple) else lax.dynamic_update_index_in_dim(s, v, t, 0) for s, v in pairs
    )
    return first, second, third


def _weigh(weights: jax.Array, stack: Any) -> jax.Array:
    """Returns sum_s weights[s] stack[s], as a loop that fuses: a matrix product might run in TF32."""
    if isinstance(stack, tuple):
        return functools.reduce(operator.add, (weights[s] * v for s, v in enumerate(stack)))
    return jnp.sum(weights.reshape(-1, *[1] * (stack.ndim - 1)) * stack, axis=0)


def _loop(steps: int, body: Callable[[Any, Any], Any], state: Any) -> Any:
    if steps >= _WRITTEN_OUT:
        return lax.fori_loop(0, steps, body, state)
    for t in range(steps):
        state = body(t, state)
    return state


def _propagate(
    A: jax.Array,
    B: jax.Array,
    k: jax.Array,
    half_distance: jax.Array,
    ntk: jax.Array,
    q1: jax.Array,
    q2: jax.Array,
    d1: Diagonals,
    d2: Diagonals,
    order: str,
    phi: Activation,
    readout: bool,
) -> tuple[jax.Array, jax.Array]:
    """The recursion for a block of the kernel, (N1, N2); of the vectors, `q1` and `d1` are columns, the others rows."""
    last = A.shape[0] - 1

    def field(k, half_distance, ntk, q1, q2):
        f, half_distance_f, fd = phi.dual(k, half_distance, q1, q2)
        return f, half_distance_f, _ntk_of_edge(order, f, fd, k, ntk)

    def node(t: jax.Array | int, fields: _Stacks, source: _Stacks) -> tuple[_Stacks, _Stacks]:
        f, half_distance, tangent = source
        mu1, mu2, m1, m2 = d1.mu[t], d2.mu[t], d1.m[t], d2.m[t]
        fields = _store(fields, (f - mu1 * mu2, half_distance - (mu1 - mu2) ** 2 / 2, tangent), t)
        k, half_distance, ntk = (_weigh(A[t], of) for of in fields)
        return fields, (k + m1 * m2, half_distance + (m1 - m2) ** 2 / 2, ntk)

    def node_and_field(t: jax.Array | int, state: tuple) -> tuple:
        fields, moments = node(t, *state)
        return fields, field(*moments, d1.q[t], d2.q[t])

    stem = field(k, half_distance, ntk, q1, q2)
    if order == "act-linear":
        k, ntk = _linear(k, ntk)
        stem = k, 2 * half_distance, ntk
    empty = _stacks(last + 1, k)
    k, _, ntk = moments = node(last, *_loop(last, node_and_field, (empty, stem)))[1]
    if not readout:
        return k, ntk
    if order == "linear-act":
        return _linear(k, ntk)
    f, _, g = field(*moments, d1.q[last], d2.q[last])
    return f, g


def _read_out_diagonal(d: Diagonals, order: str, phi: Activation, readout: bool) -> tuple[jax.Array, jax.Array]:
    k, ntk = d.q[-1], d.ntk[-1]
    if not readout:
        return k, ntk
    if order == "linear-act":
        return _linear(k, ntk)
    f, fd = phi.dual_diagonal(k)
    return f, _ntk_of_edge(order, f, fd, k, ntk)


def _by_rows(
    A: jax.Array,
    B: jax.Array,
    input_block: Callable[[Any, jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
    rows: Any,
    s1: jax.Array,
    ntk1: jax.Array,
    s2: jax.Array | None,
    order: str,
    phi: Activation,
    readout: bool,
) -> tuple[jax.Array, jax.Array]:
    """Runs the recursion on blocks of rows, for inputs scaled to K(in)_ii = 1, and scales the results back.

    Args:
      A: Covariance weights of the normal form, (H + 1, H + 1).
      B: Mean weights, likewise.
      input_block: Turns a block of `rows` and the mask of its diagonal, (b, N2), into that block of the scaled input's
        kernel, half distances and NTK, (b, N2) each.
      rows: A pytree of arrays with leading axis N1.
      s1: Roots of the rows' input variances, sqrt(K(in)_ii), (N1,); may be 0.
      ntk1: Diagonal of the rows' scaled input NTK, (N1,); used where the kernel is symmetric.
      s2: Roots of the columns' input variances, (N2,), or None where the columns are the rows.
      order: "linear-act" or "act-linear".
      phi: The activation.
      readout: Whether to apply the readout layer.
    """
    symmetric = s2 is None
    scale = s1 if symmetric else s2
    q1, q2 = (jnp.where(s > 0, jnp.ones_like(s), 0) for s in (s1, scale))
    d1 = diagonals(A, B, q1, ntk1, order, phi)
    d2 = d1 if symmetric else diagonals(A, B, q2, jnp.zeros_like(q2), order, phi)
    exact = _read_out_diagonal(d1, order, phi, readout)
    n1, n2 = q1.shape[0], q2.shape[0]
    size = min(n1, max(1, _BLOCK_ENTRIES // (A.shape[0] * n2)))
    d2_rows = jax.tree.map(lambda v: v[..., None, :], d2)

    def block(start: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        def take(v: jax.Array, axis: int = 0) -> jax.Array:
            return lax.dynamic_slice_in_dim(v, start, size, axis)

        diagonal = (jnp.arange(n2)[None, :] == (start + jnp.arange(size))[:, None]) & symmetric
        k, half_distance, ntk = input_block(jax.tree.map(take, rows), diagonal)
        d1_columns = jax.tree.map(lambda v: take(v, 1)[..., None], d1)
        results = _propagate(
            A, B, k, half_distance, ntk, take(q1)[:, None], q2[None, :], d1_columns, d2_rows, order, phi, readout
        )
        if symmetric:
            # The angle of an input with itself is 0 exactly; rounding in its kernel would move it to sqrt(eps).
            results = (jnp.where(diagonal, take(e)[:, None], v) for e, v in zip(exact, results, strict=True))
        nngp, ntk = (take(s1)[:, None] * scale[None, :] * v for v in results)
        return nngp, ntk

    if size == n1:
        return block(0)

    def step(i: jax.Array, results: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        # The last block overlaps the one before where the size does not divide N: no padding, no copy.
        start = jnp.minimum(i * size, n1 - size)
        nngp, ntk = (
            lax.dynamic_update_slice_in_dim(whole, part, start, 0)
            for whole, part in zip(results, block(start), strict=True)
        )
        return nngp, ntk

    return lax.fori_loop(0, -(-n1 // size), step, (jnp.zeros((n1, n2), s1.dtype),) * 2)


@functools.partial(jax.jit, static_argnames=("order", "activation", "readout"))
def kernel_of_inputs(
    A: jax.Array, B: jax.Array, x1: jax.Array, x2: jax.Array | None, *, order: str, activation: str, readout: bool
) -> tuple[jax.Array, jax.Array]:
    """Computes NNGP and NTK of inputs; the input kernel K(in) = x1 x2^T / d never exists as a whole.

    Args:
      A: Covariance weights of the normal form, (H + 1, H + 1).
      B: Mean weights, likewise.
      x1: Inputs, (N1, d).
      x2: Inputs, (N2, d), or None for x1.
      order: "linear-act" or "act-linear".
      activation: A key of `ACTIVATIONS`.
      readout: Whether to apply the readout layer.

    Returns:
      NNGP and NTK, (N1, N2) each.
    """
    columns = x1 if x2 is None else x2
    norm1 = root(jnp.sum(x1**2, axis=1))
    norm2 = norm1 if x2 is None else root(jnp.sum(x2**2, axis=1))
    inverse1, inverse2 = (jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0) for norm in (norm1, norm2))
    closeness = jnp.finfo(x1.dtype).eps ** 0.5

    def input_block(rows: tuple[jax.Array, jax.Array], diagonal: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, inverse = rows
        # A TF32 product would leave an error of 1e-3 in the correlations, and with it noise for lambda_min.
        products = jnp.matmul(x, columns.T, precision=lax.Precision.HIGHEST)
        k = products * inverse[:, None] * inverse2[None, :]
        # Smaller distances come out of the subtraction with a relative error over sqrt(eps). Then, and only then, the
        # block's distances are summed directly, which costs more than a matrix product.
        close = (1 - k < closeness) & ~diagonal
        half_distance = lax.cond(
            jnp.any(close),
            lambda: lax.map(distances_to, (x, inverse)) / 2,
            lambda: 1 - k,
        )
        return k, half_distance, jnp.zeros_like(k)

    def distances_to(row: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, inverse = row
        return jnp.sum((columns * inverse2[:, None] - (x * inverse)[None, :]) ** 2, axis=1)

    s1, s2 = (norm / x1.shape[1] ** 0.5 for norm in (norm1, norm2))
    phi = get_activation(activation)
    return _by_rows(
        A, B, input_block, (x1, inverse1), s1, jnp.zeros_like(s1), None if x2 is None else s2, order, phi, readout
    )


@functools.partial(jax.jit, static_argnames=("order", "activation"))
def kernel_of_kernel(
    A: jax.Array,
    B: jax.Array,
    k: jax.Array,
    ntk: jax.Array,
    q1: jax.Array,
    q2: jax.Array | None,
    *,
    order: str,
    activation: str,
) -> tuple[jax.Array, jax.Array]:
    """Computes NNGP and NTK at the last node from the kernel and the NTK of the input.

    The angle of inputs that nearly coincide is only as good as the rounding of `k`.

    Args:
      A: Covariance weights of the normal form, (H + 1, H + 1).
      B: Mean weights, likewise.
      k: NNGP of the input, (N1, N2).
      ntk: NTK of the input, (N1, N2).
      q1: Second moments of the rows' inputs, (N1,).
      q2: Second moments of the columns' inputs, (N2,), or None where the columns are the rows.
      order: "linear-act" or "act-linear".
      activation: A key of `ACTIVATIONS`.

    Returns:
      NNGP and NTK, (N1, N2) each.
    """
    s1, s2 = root(q1), None if q2 is None else root(q2)
    safe1, safe2 = (jnp.where(s > 0, s, 1) for s in (s1, s1 if s2 is None else s2))

    def input_block(rows: tuple[jax.Array, ...], diagonal: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        k, ntk, s = rows
        scale = s[:, None] * safe2[None, :]
        return k / scale, 1 - k / scale, ntk / scale

    ntk1 = jnp.diagonal(ntk) / safe1**2 if q2 is None else jnp.zeros_like(q1)
    phi = get_activation(activation)
    return _by_rows(A, B, input_block, (k, ntk, safe1), s1, ntk1, s2, order, phi, readout=False)


@functools.partial(jax.jit, static_argnames=("order", "activation"))
def second_moments(A: jax.Array, B: jax.Array, q: jax.Array, *, order: str, activation: str) -> jax.Array:
    """Returns the diagonal of K(H), (N,), for inputs with second moments `q`, (N,)."""
    return diagonals(A, B, q, jnp.zeros_like(q), order, get_activation(activation)).q[-1]
