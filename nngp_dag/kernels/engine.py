"""Evaluation of the kernels of a DAG from its normal form (THEORY section 3).

With s running over the sources of weighted edges (the stem, then the nodes) and C(s) = F(s) - mu(s) mu(s)^T:

    m(t) = sum_s B[t, s] mu(s)
    K(t) = sum_s A[t, s] C(s) + m(t) m(t)^T
    T(t) = sum_s A[t, s] Fd(s) * (K(s) + T(s))             linear-act edges
    T(t) = sum_s A[t, s] (F(s) + Fd(s) * T(s))             act-linear edges, for which mu = 0

The diagonals obey the same recursions on vectors and come first. Every entry of K and T is then a function of the same
entry of the input kernel and of those vectors, so the matrices are computed in blocks of rows and only the
results are ever N x N.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax import lax

from nngp_dag.errors import InputError
from nngp_dag.kernels.dual import Activation, get_activation

Order = Literal["linear-act", "act-linear"]
ORDERS: tuple[str, ...] = get_args(Order)

# Entries of a block of rows. A dozen such blocks are alive at once: small enough for caches, large enough to
# feed every core.
_BLOCK_ENTRIES = 1 << 18


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


def _weighted(
    order: str, dual: tuple[jax.Array, jax.Array], k: jax.Array, ntk: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Second moment and NTK of one weighted edge's output, given the dual activation at its source."""
    f, fd = dual
    return (f, fd * (k + ntk)) if order == "linear-act" else (f, f + fd * ntk)


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

    def field(k: jax.Array, ntk: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        mu = phi.mean(k) if order == "linear-act" else jnp.zeros_like(k)
        return (*_weighted(order, phi.dual_diagonal(k), k, ntk), mu)

    stem = field(q, ntk) if order == "linear-act" else (*_linear(q, ntk), jnp.zeros_like(q))
    f, g, mu = ([value] for value in stem)
    qs, ms, ntks = [], [], []
    for t in range(A.shape[0]):
        ms.append(sum(B[t, s] * mu[s] for s in range(t + 1)))
        qs.append(sum(A[t, s] * (f[s] - mu[s] ** 2) for s in range(t + 1)) + ms[t] ** 2)
        ntks.append(sum(A[t, s] * g[s] for s in range(t + 1)))
        for values, value in zip((f, g, mu), field(qs[t], ntks[t]), strict=True):
            values.append(value)
    return Diagonals(jnp.stack(qs), jnp.stack(ms), jnp.stack(mu[:-1]), jnp.stack(ntks))


def _propagate(
    A: jax.Array,
    B: jax.Array,
    k: jax.Array,
    ntk: jax.Array,
    q: tuple[jax.Array, jax.Array],
    d1: Diagonals,
    d2: Diagonals,
    order: str,
    phi: Activation,
    readout: bool,
) -> tuple[jax.Array, jax.Array]:
    """The recursion for entries of the kernel: all arrays broadcast, `q` holds the input's diagonals."""
    last = A.shape[0] - 1
    if order == "linear-act":
        f, g = _weighted(order, phi.dual(k, *q), k, ntk)
    else:
        f, g = _linear(k, ntk)
    c, gs = [f - d1.mu[0] * d2.mu[0]], [g]
    for t in range(last + 1):
        k = sum(A[t, s] * c[s] for s in range(t + 1)) + d1.m[t] * d2.m[t]
        ntk = sum((A[t, s] * gs[s] for s in range(t + 1)), start=jnp.zeros_like(k))
        if t < last:
            f, g = _weighted(order, phi.dual(k, d1.q[t], d2.q[t]), k, ntk)
            c.append(f - d1.mu[t + 1] * d2.mu[t + 1])
            gs.append(g)
    if not readout:
        return k, ntk
    if order == "linear-act":
        return _linear(k, ntk)
    return _weighted(order, phi.dual(k, d1.q[last], d2.q[last]), k, ntk)


def _read_out_diagonal(d: Diagonals, order: str, phi: Activation, readout: bool) -> tuple[jax.Array, jax.Array]:
    k, ntk = d.q[-1], d.ntk[-1]
    if not readout:
        return k, ntk
    if order == "linear-act":
        return _linear(k, ntk)
    return _weighted(order, phi.dual_diagonal(k), k, ntk)


def _by_rows(
    A: jax.Array,
    B: jax.Array,
    input_row: Callable[[Any], tuple[jax.Array, jax.Array]],
    rows: Any,
    q1: jax.Array,
    ntk1: jax.Array,
    q2: jax.Array | None,
    order: str,
    phi: Activation,
    readout: bool,
) -> tuple[jax.Array, jax.Array]:
    """Runs the recursion on blocks of rows.

    Args:
      A: Covariance weights of the normal form, (H + 1, H + 1).
      B: Mean weights, likewise.
      input_row: Turns one entry of `rows` into a row of the input's kernel and of its NTK, (N2,) each.
      rows: A pytree of arrays with leading axis N1.
      q1: Diagonal of the rows' input kernel, (N1,).
      ntk1: Diagonal of the rows' input NTK, (N1,); used where the kernel is symmetric.
      q2: Diagonal of the columns' input kernel, (N2,), or None where the columns are the rows.
      order: "linear-act" or "act-linear".
      phi: The activation.
      readout: Whether to apply the readout layer.
    """
    d1 = diagonals(A, B, q1, ntk1, order, phi)
    d2 = d1 if q2 is None else diagonals(A, B, q2, jnp.zeros_like(q2), order, phi)
    q_columns = q1 if q2 is None else q2
    exact = _read_out_diagonal(d1, order, phi, readout)

    def row(args: tuple) -> tuple[jax.Array, jax.Array]:
        i, entry, q, vectors, exact_i = args
        k, ntk = _propagate(A, B, *input_row(entry), (q, q_columns), vectors, d2, order, phi, readout)
        if q2 is not None:
            return k, ntk
        # The angle of an input with itself is 0 exactly; rounding in its input kernel would move it to sqrt(eps).
        diagonal = jnp.arange(q_columns.shape[0]) == i
        return jnp.where(diagonal, exact_i[0], k), jnp.where(diagonal, exact_i[1], ntk)

    # A map over rows hands out one input's vectors, so their input axis comes first.
    vectors = Diagonals(*(value.T for value in d1))
    arguments = (jnp.arange(q1.shape[0]), rows, q1, vectors, exact)
    return lax.map(row, arguments, batch_size=max(1, _BLOCK_ENTRIES // q_columns.shape[0]))


@functools.partial(jax.jit, static_argnames=("order", "activation", "readout"))
def kernel_of_inputs(
    A: jax.Array,
    B: jax.Array,
    x1: jax.Array,
    x2: jax.Array | None,
    *,
    order: str,
    activation: str,
    readout: bool,
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
    d = x1.shape[1]
    columns = x1 if x2 is None else x2

    def input_row(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        # A TF32 product would leave an error of 1e-3 in the correlations, and with it noise for lambda_min.
        k = jnp.matmul(columns, x, precision=lax.Precision.HIGHEST) / d
        return k, jnp.zeros_like(k)

    q1 = jnp.sum(x1**2, axis=1) / d
    q2 = None if x2 is None else jnp.sum(x2**2, axis=1) / d
    phi = get_activation(activation)
    return _by_rows(A, B, input_row, x1, q1, jnp.zeros_like(q1), q2, order, phi, readout)


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
    ntk1 = jnp.diagonal(ntk) if q2 is None else jnp.zeros_like(q1)
    phi = get_activation(activation)
    return _by_rows(A, B, lambda entry: entry, (k, ntk), q1, ntk1, q2, order, phi, readout=False)


@functools.partial(jax.jit, static_argnames=("order", "activation"))
def second_moments(A: jax.Array, B: jax.Array, q: jax.Array, *, order: str, activation: str) -> jax.Array:
    """Returns the diagonal of K(H), (N,), for inputs with second moments `q`, (N,)."""
    return diagonals(A, B, q, jnp.zeros_like(q), order, get_activation(activation)).q[-1]
