"""How the error of linearized training moves: factors of modes for known kernels, matrices for traced ones.

After k steps the error is P_k e(0), and the outputs on test inputs have moved by Theta_tx H_k e(0), with
H_k = (P_k - I) Theta^-1. Both are functions of the NTK. For a known NTK they are the factors p_k and h_k of its modes.
Eigenvectors have no derivatives where eigenvalues repeat, while P_k and H_k have them everywhere. So for a traced NTK
the same recursions run on matrices.
"""

import math
import operator
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from jax import lax

# The default bound of 16 on the number of squarings would refuse times beyond 3e5 / lambda_max.
_SQUARINGS = 40


class State(NamedTuple):
    """Where training stands: P_k, H_k, and the memory M_(k-1) of the momentum; None for a part that is not needed."""

    p: Any
    h: Any
    m: Any


def _descended(
    state: State, x: Any, learning_rate: Any, momentum: float, nesterov: bool, one: Any, times: Any
) -> State:
    """Returns the state after another step of gradient descent, where x is eta times the NTK or its eigenvalues.

    Equation (17a) of docs/mathematics.md. Step k moves along a P_k + b M_(k-1), and M_k = P_k + mu M_(k-1), as in
    `optax.trace`.
    """
    # H has a recursion of its own. The division would lose all digits for small lambda, where p_k is close to 1, and
    # fail for lambda = 0.
    a, b = (1 + momentum, momentum**2) if nesterov else (1.0, momentum)
    p, h, m = state
    if m is None:
        return State(times(one - a * x, p), None if h is None else h - learning_rate * (a * p), None)
    moved = None if h is None else h - learning_rate * (a * p + b * m)
    return State(times(one - a * x, p) - times(b * x, m), moved, p + momentum * m)


def descent_factors(
    eigenvalues: np.ndarray, learning_rate: float, steps: int, momentum: float, nesterov: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Returns p_k and h_k = (p_k - 1) / lambda of every mode, (steps + 1, N) each."""
    p, h = np.ones((steps + 1, len(eigenvalues))), np.zeros((steps + 1, len(eigenvalues)))
    for i, state in enumerate(_states(eigenvalues, learning_rate, steps, momentum, nesterov)):
        p[i + 1], h[i + 1] = state.p, state.h
    return p, h


def moved_after(
    eigenvalues: np.ndarray, learning_rate: float, steps: int, *, momentum: float, nesterov: bool, flow: bool
) -> np.ndarray:
    """Returns h = (p - 1) / lambda of every mode after some steps, or after gradient flow for as long, (N,)."""
    if flow:
        return flow_factors(eigenvalues, np.array([learning_rate * steps]))[1][0]
    h = np.zeros(len(eigenvalues))
    for state in _states(eigenvalues, learning_rate, steps, momentum, nesterov):
        h = state.h
    return h


def _states(
    eigenvalues: np.ndarray, learning_rate: float, steps: int, momentum: float, nesterov: bool
) -> Iterator[State]:
    """Yields the factors of all modes after 1, 2, ..., `steps` steps of gradient descent."""
    x, zeros = learning_rate * eigenvalues, np.zeros(len(eigenvalues))
    state = State(np.ones(len(eigenvalues)), zeros, zeros)
    for _ in range(steps):
        state = _descended(state, x, learning_rate, momentum, nesterov, 1, operator.mul)
        yield state


def flow_factors(eigenvalues: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns p and h = (p - 1) / lambda of every mode at every time, (times, N) each."""
    # expm1 keeps the digits of exp(z) - 1 where z is small; the limit of (exp(z) - 1) / z at 0 is 1.
    z = -eigenvalues[None, :] * times[:, None]
    return np.exp(z), -times[:, None] * np.divide(np.expm1(z), z, out=np.ones_like(z), where=z != 0)


def training_step(
    ntk: jax.Array, learning_rate: Any, *, momentum: float, nesterov: bool, flow: bool, moving: bool
) -> tuple[State, Callable[[State], State]]:
    """Returns the state before training, and the map of a state to that after another step, or another time eta.

    Args:
      ntk: A traced NTK, (N, N).
      learning_rate: Learning rate eta, a scalar in the dtype of the NTK.
      momentum: Coefficient of the momentum.
      nesterov: Whether momentum is Nesterov's.
      flow: Whether to follow gradient flow.
      moving: Whether H is needed.
    """
    one = jnp.eye(len(ntk), dtype=ntk.dtype)
    none = jnp.zeros_like(one)
    start = State(one, none if moving else None, none if momentum else None)
    if flow:
        e, integral = _flowed(ntk, learning_rate, moving)
        return start, lambda s: State(e @ s.p, s.h + s.p @ integral if moving else None, None)
    x = learning_rate * ntk
    return start, lambda s: _descended(s, x, learning_rate, momentum, nesterov, one, jnp.matmul)


def propagated(start: State, step: Callable[[State], State], steps: int, observe: Callable[[State], Any]) -> Any:
    """Returns what `observe` says of the states after 0, 1, ..., `steps` steps, stacked, and the last state.

    Reverse-mode derivatives keep about 2 sqrt(steps) states, and compute the others once more.
    """

    def run(state: State, length: int) -> tuple[State, Any]:
        def body(state: State, _: None) -> tuple[State, Any]:
            new = step(state)
            return new, observe(new)

        return lax.scan(jax.checkpoint(body, prevent_cse=False), state, length=length)

    chunk = max(1, math.isqrt(steps))
    chunks, rest = divmod(steps, chunk)
    segment = jax.checkpoint(lambda state, _: run(state, chunk), prevent_cse=False)
    state, whole = lax.scan(segment, start, length=chunks)
    state, last = run(state, rest)
    first = jax.tree.map(lambda value: jnp.asarray(value)[None], observe(start))
    flat = jax.tree.map(lambda values: values.reshape((chunks * chunk, *values.shape[2:])), whole)
    return state, jax.tree.map(lambda *parts: jnp.concatenate(parts), first, flat, last)


def moved_after_traced(
    ntk: jax.Array, learning_rate: Any, steps: int, *, momentum: float, nesterov: bool, flow: bool
) -> jax.Array:
    """Returns H after some steps, or after gradient flow for as long, for a traced NTK, (N, N)."""
    if flow:
        return _flowed(ntk, learning_rate * steps, moving=True)[1]
    options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "flow": flow}
    start, step = training_step(ntk, learning_rate, **options, moving=True)
    return propagated(start, step, steps, lambda _: jnp.zeros(()))[0].h


def _flowed(ntk: jax.Array, time: Any, moving: bool) -> tuple[jax.Array, Any]:
    """Returns P and H after gradient flow for a time; None for H unless it is needed."""
    exponent, n = -time * ntk, len(ntk)
    if not moving:
        return jax.scipy.linalg.expm(exponent, max_squarings=_SQUARINGS), None
    # The exponential of [[-t Theta, -t I], [0, 0]] is [[P, H], [0, I]], with H = -t times the mean of P over the time.
    zero = jnp.zeros_like(ntk)
    above = jnp.concatenate([exponent, -time * jnp.eye(n, dtype=ntk.dtype)], axis=1)
    both = jax.scipy.linalg.expm(
        jnp.concatenate([above, jnp.concatenate([zero, zero], axis=1)]), max_squarings=_SQUARINGS
    )
    return both[:n, :n], both[:n, n:]
