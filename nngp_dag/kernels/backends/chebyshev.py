"""Chebyshev series in the angle, for networks with ReLU-type activations, without biases, on one input array.

If every operation is homogeneous, then so is the network: K_ij = s_i s_j kappa(theta_ij), with the norms s of the
inputs and the angle theta between them. The NTK has the same form. For one layer that is Cho and Saul 2009, eq. (6);
for any graph it follows by induction over the nodes. Both functions of theta have rapidly converging Chebyshev series,
Equation (11) of docs/mathematics.md: forty terms suffice for ten layers in float64. Once they are known, no pair of
inputs needs the recursion over the graph.

The coefficients come from that recursion at a few hundred angles, in float64 for inputs of any precision. For two
inputs with the same second moment q it carries

    D = q - K,  E = q + K       half the mean squares of the difference and of the sum of the outputs,
    theta = 2 atan(sqrt(D / E)).

The arctangent of this ratio keeps all digits of angles near 0 and near pi. An arccosine of K / q would lose half of
them.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.polynomial import chebyshev

from nngp_dag.activations import IDENTITY, ABRelu
from nngp_dag.architecture.interpreter import Algebra, Sum, run
from nngp_dag.architecture.program import Program, Step, Structure
from nngp_dag.kernels.backends.unrolled import Kernels, Spec
from nngp_dag.kernels.device import BlockSizes
from nngp_dag.kernels.dual import root
from nngp_dag.kernels.dual.arcsine import double_arcsine
from nngp_dag.kernels.layer_rules import Layer, Layers, Rules

# The number of Chebyshev points. If a series needs more than half as many terms, aliasing may have spoiled its
# coefficients, so it is not used.
_ANGLES = 256
# Angles close to 0, and to pi by symmetry, at which series are tested. Branch points at the ends of the interval may
# escape all Chebyshev points.
_NEAR = np.pi * np.logspace(-12, -2, 21)
# Series are padded with zeros to a multiple of this number of terms, so that networks of about equal depth share a
# compiled program.
_MULTIPLE = 8


class _Field(NamedTuple):
    """Second moments, or covariances, of a node or a field at every angle; the first angle is 0.

    Attributes:
      d: The difference D = q - K, (M,).
      e: The sum E = q + K, (M,).
      t: The NTK, (M,).
    """

    d: np.ndarray
    e: np.ndarray
    t: np.ndarray

    def plus(self, square: float) -> "_Field":
        """Adds a constant to K at all angles, and hence to q; the difference D does not change."""
        return self._replace(e=self.e + 2 * square)


def _activated(phi: ABRelu, x: _Field) -> tuple[_Field, float]:
    """Returns the second moments of an activation's output, and its mean.

    The formulas are those of `nngp_dag.kernels.dual.kinked`, with h(t) = (sin(t) - t cos(t)) / pi.
    """
    # All inputs have the norm sqrt(q), so q is E / 2 at the angle 0, where D = 0. Beyond pi / 2 the formulas use pi -
    # theta in place of theta, and E in place of D. So angles near 0 and near pi keep the absolute precision of float64.
    a, b = phi.a, phi.b
    straight, bent, q = (a**2 + b**2) / 2, (b - a) ** 2 / 2, np.maximum(x.e[0], 0) / 2
    theta = 2 * np.arctan2(np.sqrt(np.maximum(x.d, 0)), np.sqrt(np.maximum(x.e, 0)))
    obtuse = theta > np.pi / 2
    t = np.where(obtuse, np.pi - theta, theta)
    h = bent * q * (np.sin(t) - t * np.cos(t)) / np.pi
    d = np.where(obtuse, (a + b) ** 2 / 2 * q - a * b * x.e, straight * x.d) - h
    e = np.where(obtuse, bent * q + a * b * x.e, straight * (2 * q - x.d)) + h
    return _Field(d, e, (a * b + bent * (1 - theta / np.pi)) * x.t), (b - a) * np.sqrt(q / (2 * np.pi))


def _applied(layer: Layer, x: _Field, rules: Rules, fan_in: int | None = None) -> tuple[_Field, float]:
    """Applies a weighted operation to second moments; returns covariances of its output, and its mean.

    They are NaN if the operation is not homogeneous. NaN then spreads to all outputs that depend on the operation, and
    `_series` returns None for these.
    """
    phi, mean = layer.activation or IDENTITY, 0.0
    if not isinstance(phi, ABRelu) or layer.bias is not None or layer.layer_norm:
        return _Field(*(np.full_like(x.d, np.nan),) * 3), np.nan
    if layer.order == "act-linear":
        x, _ = _activated(phi, x)
    variance, (a_w, _) = layer.variance, rules.tangent_weights(layer, fan_in)
    x = _Field(variance * x.d, variance * x.e, a_w * (x.e - x.d) / 2 + variance * x.t)
    if layer.order == "linear-act":
        x, mean = _activated(phi, x)
    return x.plus(-np.square(mean)), mean


class _AtAngles(Algebra):
    """The algebra of second moments at angles, for `run`."""

    def __init__(self, layers: Layers) -> None:
        """Keeps the operations."""
        self._layers = layers

    def add(self, of: Sum) -> _Field:
        """Adds up covariances, Equation (6) of docs/mathematics.md; D and E are linear in K."""
        terms = zip(of.weights, of.values, strict=True)
        parts = zip(*([weight * v for v in field] for weight, field in terms), strict=True)
        return _Field(*(functools.reduce(operator.add, part) for part in parts))

    def at_node(self, step: Step, total: _Field, mean: float | None) -> _Field:
        """Returns second moments: covariances plus the squared mean."""
        del step
        return total if mean is None else total.plus(np.square(mean))

    def apply(self, operation: int, slot: int, of: Sum, node: _Field, mean: float | None) -> tuple[_Field, float]:
        """Applies a weighted operation."""
        del slot, of, mean
        return _applied(self._layers.edges[operation], node, self._layers.rules)


def at_angles(program: Program, layers: Layers, channels: int, theta: np.ndarray) -> np.ndarray:
    """Computes the kernels of inputs with mean square 1, as functions of the angle.

    Args:
      program: The network's program; all its input nodes read the same data.
      layers: The network's operations.
      channels: Number of features of the data.
      theta: Angles between two inputs in radians, (M,).

    Returns:
      NNGP and NTK of every output, (outputs, 2, M).
    """
    half = np.concatenate([[0], theta]) / 2
    data = _Field(2 * np.sin(half) ** 2, 2 * np.cos(half) ** 2, np.zeros_like(half))
    stem, mean = (data, None) if layers.stem is None else _applied(layers.stem, data, layers.rules, channels)
    structure, inputs = program.structure, program.structure.num_inputs
    weights, mean_weights = program.weights.tolist(), program.mean_weights.tolist()
    nodes = run(structure, weights, mean_weights, [stem] * inputs, [mean] * inputs, _AtAngles(layers))
    results = []
    for output in structure.outputs:
        value = nodes[output]
        if layers.readout is not None:
            value, _ = _applied(layers.readout, value, layers.rules)
        results.append([(value.e - value.d) / 2, value.t])
    return np.array(results)[..., 1:]


@functools.cache
def _cosines() -> np.ndarray:
    """Returns cos(j phi_i) for the Chebyshev points cos(phi_i), (terms, points).

    Arguments are reduced as whole multiples of pi / 512, before they are rounded.
    """
    return np.cos(np.pi / (2 * _ANGLES) * (np.outer(np.arange(_ANGLES), 2 * np.arange(_ANGLES) + 1) % (4 * _ANGLES)))


def series_of(program: Program, layers: Layers, channels: int, dtype: np.dtype) -> list[np.ndarray | None]:
    """Returns the Chebyshev coefficients of a network's kernels as functions of 2 theta / pi - 1.

    Args:
      program: The network's program, as in `at_angles`.
      layers: The network's operations.
      channels: Number of features of the data.
      dtype: The precision that series must reach.

    Returns:
      The coefficients of NNGP and NTK of every output, for inputs with mean square 1: float64, (2, terms). None
      replaces them if a series is too long or fails the test near the ends, or if an operation is not homogeneous.
    """
    cosines = _cosines()
    near = np.concatenate([_NEAR, np.pi - _NEAR])
    with np.errstate(all="ignore"):
        values = at_angles(program, layers, channels, np.concatenate([np.pi * (cosines[1] + 1) / 2, near]))
        return [_series(of_output, 2 * near / np.pi - 1, dtype) for of_output in values]


def _series(values: np.ndarray, near: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Returns the series of NNGP and NTK, or None if one fails.

    Args:
      values: Values at the Chebyshev points, and then at the points near the ends, (2, points).
      near: The arguments of the series near the ends.
      dtype: The precision that series must reach.
    """
    if not np.isfinite(values).all():
        return None
    cosines = _cosines()
    coefficients = 2 / _ANGLES * values[:, :_ANGLES] @ cosines.T
    coefficients[:, 0] /= 2
    scale = np.abs(values).max(axis=1, keepdims=True)
    # At the ends of the interval all polynomials are 1 or -1, so omitted terms may add up there. The sum of their sizes
    # must be negligible. Coefficients of the size of the values' rounding carry no information and are omitted, too.
    tails = np.cumsum(np.abs(coefficients[:, ::-1]), axis=1)[:, ::-1]
    rounding = np.abs(coefficients) <= 2 * np.finfo(np.float64).eps * scale
    negligible = rounding | (tails <= np.finfo(dtype).eps / 4 * scale)
    needed = np.where(negligible.all(axis=1), 0, _ANGLES - np.argmin(negligible[:, ::-1], axis=1))
    if needed.max() > _ANGLES // 2:
        return None
    terms = _MULTIPLE * max(1, -(-int(needed.max()) // _MULTIPLE))
    series = np.where(np.arange(terms) < needed[:, None], coefficients[:, :terms], 0)
    gaps = np.abs(chebyshev.chebval(near, series.T) - values[:, _ANGLES:])
    return series if (gaps <= max(np.finfo(dtype).eps / 2, 1e-13) * scale).all() else None


def together(series: Sequence[np.ndarray]) -> np.ndarray:
    """Returns several series as one array, padded with zeros, (outputs, 2, terms)."""
    terms = max(v.shape[1] for v in series)
    return np.stack([np.pad(v, ((0, 0), (0, terms - v.shape[1]))) for v in series])


def spec_of_series(outputs: int, with_ntk: bool, blocks: BlockSizes, stacked: bool = False) -> Spec:
    """Returns the structure of a compiled program without steps, whose outputs are Chebyshev series in the angle."""
    return Spec(
        structure=Structure(1, 1, (), (), tuple(range(outputs))),
        layers=jax.tree.structure(Layers(None, (), None, Rules())),
        pixels=None,
        with_ntk=with_ntk,
        homogeneous=True,
        loop=False,
        blocks=blocks,
        stacked=stacked,
    )


def position(half_distance: jax.Array) -> jax.Array:
    """Returns 4 theta / pi - 2, twice the argument of the series.

    Args:
      half_distance: Half the mean squared difference of two inputs with mean square 1, which is 1 - cos(theta).
    """
    # `square` is sin^2(t / 2) for t = min(theta, pi - theta). The arcsine of its root keeps the digits of small t.
    square = jnp.minimum(half_distance, 2 - half_distance) / 2
    t = double_arcsine(square, root(square)) * (4 / math.pi)
    return jnp.where(half_distance > 1, 2 - t, t - 2)


def kernels(series: jax.Array | np.ndarray, twice: jax.Array, factor: jax.Array, spec: Spec) -> Kernels:
    """Evaluates series at each position, and multiplies the values by a factor.

    Args:
      series: The coefficients of every output, (outputs, 2, terms), see `series_of`.
      twice: The positions, (N1, N2), see `position`.
      factor: The product of both inputs' norms at each position, (N1, N2).
      spec: The structure of the compiled program, see `spec_of_series`.

    Returns:
      NNGP and NTK of every output, (N1, N2) each; stacked, one pair of arrays (outputs, N1, N2).
    """

    def both(of: Callable[[int], jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        return of(0), of(1) if spec.with_ntk else None

    if spec.stacked:
        polynomials = _polynomials(series.shape[-1], twice) * factor[None]
        product = functools.partial(jnp.einsum, "st,tij->sij", precision=lax.Precision.HIGHEST)
        return [both(lambda i: product(series[:, i], polynomials))]
    return [both(lambda i, of=of: _summed(of[i], twice) * factor) for of in series]


def _summed(coefficients: jax.Array | np.ndarray, twice: jax.Array) -> jax.Array:
    """Sums a series by Clenshaw's recurrence, which needs no polynomials in memory."""
    *others, last = coefficients
    value, before = last, jnp.zeros_like(last)
    for c in reversed(others[1:]):
        value, before = c + twice * value - before, value
    return others[0] + twice / 2 * value - before


def _polynomials(terms: int, twice: jax.Array) -> jax.Array:
    """Returns the first Chebyshev polynomials at every position, (terms, N1, N2).

    The identity T_(k+j) = 2 T_k T_j - T_(k-j) doubles their number in every step, so the program has few operations.
    """
    found = jnp.stack([jnp.ones_like(twice), twice / 2])
    while (k := len(found) - 1) < terms - 1:
        found = jnp.concatenate([found, 2 * found[k : k + 1] * found[1:] - found[k - 1 :: -1]])[:terms]
    return found
