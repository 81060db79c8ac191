"""The logistic function as a mixture of normal distribution functions, and sums over pairs of its terms.

The logistic distribution is a mixture of centered normal distributions (Andrews and Mallows 1974; Stefanski 1991). So

    1 / (1 + exp(-x)) = sum_n p_n Phi(x / s_n)

with the normal distribution function Phi. A sum of few terms has a small error. By this formula, tanh is a sum of erf.
In the same way, silu is a sum of x Phi(a x), and softplus is a sum of x Phi(a x) + Phi'(a x) / a. Their duals are
double sums of closed forms. All weights are positive, so nothing cancels.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.kernels.dual.base import Pair, Triple

# Pairs (s_n, p_n) of the Gauss rules, in log(s), of the mixing density; s is twice Kolmogorov's variable. They were
# computed in 50 digits. At variances from 1e-6 to 1e6, errors of duals relative to the roots of their diagonals are at
# most 6e-8 and 5e-15.
_FLOAT32 = (
    (0.76751295449921118, 0.0074847151422980195),
    (1.0458260195885156, 0.13130282973515148),
    (1.4394128684692153, 0.39785672379425119),
    (2.0114754080268566, 0.35767481797947936),
    (2.8063576421270335, 0.10042087022320553),
    (3.8871781307111989, 0.0052600431256144229),
)
_FLOAT64 = (
    (0.51600692168542837, 6.0775626104046542e-7),
    (0.61868800972798052, 8.8321811746525573e-5),
    (0.73596762312652394, 0.0022546957763316194),
    (0.87783263793738627, 0.01999636656279343),
    (1.053944905585888, 0.082395070724233213),
    (1.2753185367241906, 0.18642697624914542),
    (1.5540625329432308, 0.25860690022766324),
    (1.9015900319288742, 0.23582944281054695),
    (2.3257007211070489, 0.14417290208627051),
    (2.8301713476475674, 0.056300471662034294),
    (3.4193237275246329, 0.012541675176245237),
    (4.1038467437260319, 0.0013357624113994549),
    (4.9108093722662207, 5.0466588562658288e-5),
    (5.9219916364899005, 3.4015676639666448e-7),
)


def mixture(dtype: np.dtype) -> tuple[tuple[float, float], ...]:
    """Returns the pairs (s_n, p_n) for a precision."""
    return _FLOAT32 if dtype.itemsize <= 4 else _FLOAT64


def double_sum(
    formula: Callable[[jax.Array, jax.Array, Pair], Triple], factor: float | jax.Array, pair: Pair
) -> Triple:
    """Sums a formula of (a, b, pair) over all pairs of terms, with a = factor / s_m and b = factor / s_n."""
    s, _ = np.transpose(mixture(pair.k.dtype))
    return _double_sum(formula, jnp.asarray(factor / s, pair.k.dtype), pair)


# `jit` traces the sum once for given shapes, also in calls outside other compiled functions.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _double_sum(formula: Callable[[jax.Array, jax.Array, Pair], Triple], slopes: jax.Array, pair: Pair) -> Triple:
    dtype, count = pair.k.dtype, len(slopes)
    _, p = np.transpose(mixture(dtype))
    weights = jnp.asarray(np.outer(p, p).ravel(), dtype)

    @jax.checkpoint  # otherwise gradients would keep the values of all pairs of terms
    def of_terms(n: jax.Array, pair: Pair) -> Triple:
        c, distance, slope = formula(slopes[n // count], slopes[n % count], pair)
        return weights[n] * c, weights[n] * distance, weights[n] * slope

    # A loop, because hundreds of unrolled pairs would take long to compile.
    def add(n: jax.Array, sums: Triple) -> Triple:
        c, distance, slope = of_terms(n, pair)
        return sums[0] + c, sums[1] + distance, sums[2] + slope

    zero = jnp.zeros_like(pair.k)
    return lax.fori_loop(0, len(weights), add, (zero, zero, zero))
