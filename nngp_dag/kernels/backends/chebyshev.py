"""Networks of ReLU type without biases on one input: their kernels are functions of the angle between two inputs.

Where every operation is homogeneous, so is the network: K_ij = s_i s_j kappa(theta_ij), with the norms s of the inputs
and the angle theta between them. The NTK has this form too. For one layer that is Cho and Saul 2009, eq. (6); for any
graph it follows by induction over its nodes. Both functions are analytic on [0, pi], so that their Chebyshev series
end, for ten layers in float64 after forty terms, while the recursion over the graph would run for every pair of inputs.
The series come from that recursion at a few hundred angles, in float64 whatever the precision of the inputs. It keeps,
of two inputs of second moment q,

    D = q - K,  E = q + K       half the mean squares of their difference and of their sum
    theta = 2 atan(sqrt(D / E)),

which has the digits of angles near 0 and near pi.
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

# Angles at which kernels are computed. Series that have not ended after half as many terms are not trusted.
_ANGLES = 256
# These lie so close to 0 and pi, where branch points may hide from all others, that series are tried there.
_NEAR = np.pi * np.logspace(-12, -2, 21)
# Series are filled up with zeros to a multiple of so many terms: networks of about equal depth share a compilation.
_MULTIPLE = 8


class _Field(NamedTuple):
    """A node's or a field's second moments or covariances at every angle, the first of which is 0.

    Attributes:
      d: q - K.
      e: q + K.
      t: The NTK.
    """

    d: np.ndarray
    e: np.ndarray
    t: np.ndarray

    def plus(self, square: float) -> "_Field":
        """Adds to K, and so to q, what is the same for all inputs."""
        return self._replace(e=self.e + 2 * square)


def _activated(phi: ABRelu, x: _Field) -> tuple[_Field, float]:
    """Returns the second moments of an activation's output, and its mean.

    As `nngp_dag.kernels.dual.kinked` has them, with h(t) = (sin(t) - t cos(t)) / pi.
    """
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

    They are NaN where the operation is not homogeneous, and so is all that reads them.
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
        """`layers` are the operations."""
        self._layers = layers

    def add(self, of: Sum) -> _Field:
        """Adds up covariances."""
        terms = zip(of.weights, of.values, strict=True)
        parts = zip(*([weight * v for v in field] for weight, field in terms), strict=True)
        return _Field(*(functools.reduce(operator.add, part) for part in parts))

    def at_node(self, step: Step, total: _Field, mean: float | None) -> _Field:
        """Returns second moments."""
        del step
        return total if mean is None else total.plus(np.square(mean))

    def apply(self, operation: int, slot: int, of: Sum, node: _Field, mean: float | None) -> tuple[_Field, float]:
        """Applies a weighted operation."""
        del slot, of, mean
        return _applied(self._layers.edges[operation], node, self._layers.rules)


def at_angles(program: Program, layers: Layers, channels: int, theta: np.ndarray) -> np.ndarray:
    """Computes kernels of inputs whose squares have mean 1.

    Args:
      program: The network's program; all its input nodes read the same data.
      layers: Its operations.
      channels: Features of the data.
      theta: Angles, (M,).

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
    """cos(j phi_i) for the Chebyshev points cos(phi_i), (terms, points); arguments are reduced before they round."""
    return np.cos(np.pi / (2 * _ANGLES) * (np.outer(np.arange(_ANGLES), 2 * np.arange(_ANGLES) + 1) % (4 * _ANGLES)))


def series_of(program: Program, layers: Layers, channels: int, dtype: np.dtype) -> list[np.ndarray | None]:
    """Returns the Chebyshev coefficients of a network's kernels as functions of 2 theta / pi - 1.

    Args:
      program: As in `at_angles`.
      layers: The program's operations.
      channels: Features of the data.
      dtype: The precision to which series are to hold.

    Returns:
      For every output those of NNGP and NTK for inputs whose squares have mean 1, (2, terms), float64; None where one
      of the two series does not end or does not hold, or the output reads an operation that is not homogeneous.
    """
    cosines = _cosines()
    near = np.concatenate([_NEAR, np.pi - _NEAR])
    with np.errstate(all="ignore"):
        values = at_angles(program, layers, channels, np.concatenate([np.pi * (cosines[1] + 1) / 2, near]))
        return [_series(of_output, 2 * near / np.pi - 1, dtype) for of_output in values]


def _series(values: np.ndarray, near: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Returns the series of NNGP and NTK from their values at the Chebyshev points and, to try it, near the ends."""
    if not np.isfinite(values).all():
        return None
    cosines = _cosines()
    coefficients = 2 / _ANGLES * values[:, :_ANGLES] @ cosines.T
    coefficients[:, 0] /= 2
    scale = np.abs(values).max(axis=1, keepdims=True)
    # What is left out adds up near the ends. Behind a series of float64 comes the rounding of the values, at about half
    # of its epsilon.
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
    """Returns series as one array, filled up with zeros, (outputs, 2, terms)."""
    terms = max(v.shape[1] for v in series)
    return np.stack([np.pad(v, ((0, 0), (0, terms - v.shape[1]))) for v in series])


def spec_of_series(outputs: int, with_ntk: bool, blocks: BlockSizes, stacked: bool = False) -> Spec:
    """Returns the program that has no steps, since its outputs are series in the angle."""
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
    """Returns 4 theta / pi - 2, twice the argument of the series, for inputs whose squares have mean 1."""
    # sin^2(t / 2) of t = min(theta, pi - theta).
    square = jnp.minimum(half_distance, 2 - half_distance) / 2
    t = double_arcsine(square, root(square)) * (4 / math.pi)
    return jnp.where(half_distance > 1, 2 - t, t - 2)


def kernels(series: jax.Array | np.ndarray, twice: jax.Array, factor: jax.Array, spec: Spec) -> Kernels:
    """Returns series at each of the positions, (N1, N2), times a factor.

    Args:
      series: As `series_of` returns them.
      twice: As `position` returns it.
      factor: A factor for each of the positions.
      spec: As `spec_of_series` returns it.
    """

    def both(of: Callable[[int], jax.Array]) -> tuple[jax.Array, jax.Array | None]:
        return of(0), of(1) if spec.with_ntk else None

    if spec.stacked:
        polynomials = _polynomials(series.shape[-1], twice) * factor[None]
        product = functools.partial(jnp.einsum, "st,tij->sij", precision=lax.Precision.HIGHEST)
        return [both(lambda i: product(series[:, i], polynomials))]
    return [both(lambda i, of=of: _summed(of[i], twice) * factor) for of in series]


def _summed(coefficients: jax.Array | np.ndarray, twice: jax.Array) -> jax.Array:
    """Sums a series by Clenshaw's recurrence."""
    *others, last = coefficients
    value, before = last, jnp.zeros_like(last)
    for c in reversed(others[1:]):
        value, before = c + twice * value - before, value
    return others[0] + twice / 2 * value - before


def _polynomials(terms: int, twice: jax.Array) -> jax.Array:
    """Returns the first Chebyshev polynomials at every position, (terms, N1, N2): T_(k+j) = 2 T_k T_j - T_(k-j)."""
    found = jnp.stack([jnp.ones_like(twice), twice / 2])
    while (k := len(found) - 1) < terms - 1:
        found = jnp.concatenate([found, 2 * found[k : k + 1] * found[1:] - found[k - 1 :: -1]])[:terms]
    return found
