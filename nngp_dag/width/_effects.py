"""Gradient descent of networks of finite width beside the exact expectation: `width_effects`."""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import scipy.stats
from jaxtyping import ArrayLike

from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError, NumericalWarning, check_callable, warn
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_whole
from nngp_dag.kernels import kernel
from nngp_dag.theory import loss_curve
from nngp_dag.width.arguments import check_network, checked_data, checked_widths, learning_rate_of
from nngp_dag.width.effects_result import TOLERANCE, WidthEffects, resolved
from nngp_dag.width.extrapolation import (
    Mean,
    anchored,
    controlled,
    inverse_width,
    left_out_score,
    log_ratio,
    mean_of,
    power_law,
)
from nngp_dag.width.sampling import Sample, Training, sample

Progress = Callable[[str, int, int], None]

# Confidence of the interval.
_CONFIDENCE = 0.9
# Means of first order fall as 1 / n up to this share of them. Small networks near their stability limit miss most.
_FIRST_ORDER = 0.25
# Of the networks of the largest small width, no more than this share may be left out.
_MOST_UNSTABLE = 0.5
# Widths beside the default ones, as shares of the largest, where many networks of these are left out.
_MORE = 0.875, 0.625
# Small networks are left out from this eta lambda_max on, or from half way between that at infinite width and 2.
_STABLE = 1.6
# Fewer networks of a width tell no error. How many were left out matters little: of those of one width, the calm third
# has nearly the same q as all.
_FEWEST = 6
# Exponents at a bound do not matter where the motion of the NTK changes the loss by less than this.
_NO_MOTION = 0.01
# Laws that are evaluated far from their data may become negative, which no loss is. Then their interval is huge.
_LEAST, _MOST_HALF = 1e-6, 50.0
# Each network is trained.
_MOST_NETWORKS = 100_000


def width_effects(
    network: Network | Dag | str | NetworkSource,
    x: ArrayLike,
    y: ArrayLike,
    *,
    steps: int = 100,
    learning_rate: float | str = "auto",
    widths: Sequence[int] | None = None,
    networks: int = 16,
    seed: int = 0,
    on_progress: Progress | None = None,
    **architecture: Unpack[Architecture],
) -> WidthEffects:
    """Predicts full-batch gradient descent of networks of finite width n, from networks that are smaller.

    The loss is L = 0.5 ||y - f||^2, summed over samples and output columns. Its mean over initializations differs from
    that at infinite width, `nngp_dag.loss_curve`, for two reasons. The NTK of a finite network deviates at
    initialization, and it moves during training:

        mean at width n = (mean with frozen NTKs at width n) * exp(q(n))

    The first factor comes from `networks` networks that are drawn at width n, but not trained. Each is compared with
    linearized training at infinite width from its own f(0), whose mean over readouts is known. Its response to the
    deviation of the NTK is a second control variate. Means of first order fall as 1 / n, and come from all networks.

    The second factor comes from small networks that are trained: q is the logarithm of trained over frozen mean loss.
    It is extrapolated by a power law whose exponent may drift towards 1, the exponent of very large widths.

    Small networks whose eta lambda_max at initialization is 1.6 or more, or nearer to 2 than at infinite width, are
    left out of q: with a frozen NTK they would not train, while training shrinks their NTK at once.

    The interval holds the sampling errors of both factors, and the uncertainty of exponent and drift. It is widened
    where the power law of all but the largest small width misses that one by more than a standard deviation.

    The cost grows as width^2 and with the square of the number N C of outputs. By default the small networks take about
    a twelfth of the operations of training 24 networks of width 1,024, and those of width n half of that. In time, with
    all compilations, it was 17 % over 20 cases, and 4 to 75 % of one (docs/guides/width.md).

    Args:
      network: The network, see `nngp_dag.kernel`; its layers are fully connected, in the parameterization "ntk".
      x: Inputs, (N, d) with N >= 2.
      y: Targets, (N, C) or (N,); `nngp_dag.data.one_hot` turns labels into targets. N C is at most 4,096.
      steps: Number K of steps of gradient descent.
      learning_rate: Learning rate eta on L; "auto" for 1 / lambda_max of the NTK at infinite width.
      widths: Widths of the networks that are trained, at least 3 below `width`. By default 3/8, 1/2, 3/4 and 1 times a
        quarter of `width`, but no more than 256, and 96 where a quarter is less; and one or two more, where many
        networks of these are left out.
      networks: Number of networks drawn at `width`. Of a small width m, 3/4 of this number times M / m networks are
        trained, with the largest M of `widths`, but at least 8.
      seed: Seed of all draws. They differ from those of `nngp_dag.compare` and `nngp_dag.train`.
      on_progress: Function that is called with (name of the stage, networks done, networks in all).
      **architecture: Options of the network, see `nngp_dag.kernel`, among them `width`, 1,024 by default.

    Returns:
      A `WidthEffects`. Steps that are not trusted are flagged. A `NumericalWarning` says that none is, where too many
      small networks, or one of width n, lie beyond their own stability limit.

    Raises:
      InputError: The network has convolutions or pooling, lacks a readout, or is in another parameterization. Shapes
        do not match, N C is too large, an option is out of range, or training diverges at the learning rate. Fewer than
        2 of `widths` have networks within their stability limit.
      GraphError: The network has several inputs or outputs.
      ModelError: A traced model is no `Network`, for example since it has a layer norm.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(4, 6))
      >>> effects = nd.width_effects("2", x, np.eye(4), width=128, steps=10, networks=8, learning_rate=0.05)
      >>> effects.trained, bool(abs(effects.bias[10]) < 0.2)
      ({36: 16, 48: 12, 72: 8, 96: 8}, True)

    Reference: Jacot et al., NeurIPS 2018, and Lee et al., NeurIPS 2019 (the limit); Huang and Yau, ICML 2020 (motion of
    the NTK of order 1 / n).
    """
    network = as_network(network, "network", width_effects, **architecture)
    check_network(network)
    n, steps = network.width, check_whole("steps", steps, 1)
    networks, seed = check_whole("networks", networks, 8), check_whole("seed", seed, 0)
    if networks > _MOST_NETWORKS:
        raise InputError(f"Expected `networks` to be at most {_MOST_NETWORKS:,}, got {networks}; take fewer networks")
    small = checked_widths(widths, n)
    check_callable("on_progress", on_progress)
    report = on_progress or (lambda stage, done, total: None)
    x, y = checked_data(network, x, y)
    report("kernels", 0, 1)
    k = kernel(network, x, dtype="float64")
    ntk = np.asarray(k.ntk)
    largest = float(np.linalg.eigvalsh(ntk)[-1])
    eta = learning_rate_of(learning_rate, largest)
    exact = loss_curve(k, y, eta, steps)
    infinite, infinite_std = np.asarray(exact.mean), np.asarray(exact.std)
    report("kernels", 1, 1)

    start = time.perf_counter()
    training = Training(network, x.astype(np.float32), y, ntk, eta, steps)

    def draw(width: int, count: int, train: bool) -> Sample:
        stage = f"{'training' if train else 'drawing'} networks of width {width:,}"
        limit = max(_STABLE, 1 + eta * largest / 2) if train else 2.0
        progress = functools.partial(report, stage)
        return sample(training, width, count, seed, limit=limit, train=train, on_progress=progress)

    def trained(m: int) -> Sample:
        return draw(m, max(8, round(0.75 * networks * small[-1] / m)), True)

    samples = [trained(m) for m in small]
    # Where narrow networks are left out, another width takes their place.
    for m in () if widths is not None else _MORE:
        if sum(s.stable.sum() >= _FEWEST for s in samples) < 3:
            samples.append(trained(round(m * small[-1])))
    samples.sort(key=lambda of: of.width)
    wide = draw(n, networks, False)
    seconds = time.perf_counter() - start

    stable = {s.width: int(s.stable.sum()) for s in (*samples, wide)}
    left_out = {s.width: len(s.stable) - stable[s.width] for s in (*samples, wide)}
    used = [s for s in samples if stable[s.width] >= _FEWEST]
    if len(used) < 2 or stable[n] < _FEWEST:
        raise InputError(
            f"Expected at least {_FEWEST} networks within their stability limit at two of the small widths and at {n}, "
            f"got {stable} by width; lower `learning_rate`, now {eta:.3g}, or take wider networks"
        )
    most = _MOST_UNSTABLE * len(used[-1].stable)
    reliable = len(used) >= 3 and left_out[used[-1].width] <= most and not left_out[n]

    # Losses that have fallen to 0 are left out below.
    with np.errstate(divide="ignore", invalid="ignore"):
        frozen = _frozen_mean(wide, samples, infinite)
        at = np.unique(np.geomspace(used[0].width, 4 * n, 65).round().astype(int))
        motion = _motion(used, np.array([n, *at]))
        law = _frozen_fit(used, frozen, n, infinite, at)
        q, q_error = motion.mean[0], motion.error[0]
        relative = np.hypot(frozen.error / frozen.mean, q_error)
        quantile = float(scipy.stats.t.ppf(0.5 + _CONFIDENCE / 2, stable[n] - 2))
        mean = frozen.mean * np.exp(q)
        # The same at the other widths, as shares of the mean at infinite width.
        base = np.maximum(1 + law.mean, _LEAST)
        fit = base * np.exp(motion.mean[1:])
        half = np.minimum(_MOST_HALF, quantile * np.hypot(law.error / base, motion.error[1:]))
        std = mean * _relative_std(used, infinite_std / infinite, n)
        trusted = reliable & (quantile * relative <= TOLERANCE) & ~(motion.at_bound & (np.abs(q) > _NO_MOTION))
        trusted &= resolved(infinite)
    result = WidthEffects(
        width=n,
        learning_rate=eta,
        infinite=infinite,
        infinite_std=infinite_std,
        mean=mean,
        low=mean * np.exp(-quantile * relative),
        high=mean * np.exp(quantile * relative),
        std=std,
        frozen=frozen.mean,
        frozen_error=frozen.error,
        motion=q,
        motion_error=q_error,
        exponent=motion.exponent,
        trusted=trusted,
        drawn=networks,
        trained={s.width: stable[s.width] for s in samples},
        left_out=left_out,
        seconds=seconds,
        fit_widths=at,
        fit_bias=fit - 1,
        fit_low=fit * np.exp(-half) - 1,
        fit_high=fit * np.exp(half) - 1,
    )
    if not reliable:
        left = {width: count for width, count in left_out.items() if count}
        warn(
            f"Expected networks within their stability limit, got {left} beyond it by width; no step is trusted, lower "
            "`learning_rate`",
            NumericalWarning,
        )
    return result


def _frozen_mean(wide: Sample, samples: Sequence[Sample], infinite: np.ndarray) -> Mean:
    """Returns the mean of the frozen curves at the width of `wide`."""
    n, part = wide.width, wide.stable
    found = controlled(
        (wide.frozen - wide.control)[part], wide.response[part], _first_order(samples, n, [s.response for s in samples])
    )
    shift = _first_order([*samples, wide], n, [s.readouts - infinite for s in (*samples, wide)])
    return Mean(infinite + found.mean + shift.mean, np.hypot(found.error, shift.error))


def _first_order(samples: Sequence[Sample], n: int, values: Sequence[np.ndarray]) -> Mean:
    """Returns the mean at width n of values of first order in the deviations of kernels, from several widths."""
    widths, counts = np.array([s.width for s in samples], float), np.array([len(s.stable) for s in samples])
    means = [mean_of(of_width) for of_width in values]
    # Values of one network vary as m^-1/2 about c / m, so that each network tells c equally well. These weights do not
    # depend on the values, which have long tails in deep networks.
    weights = counts
    total = (weights / widths).sum()
    size = (weights[:, None] * np.array([m.mean for m in means])).sum(axis=0) / total
    error = np.sqrt(((weights[:, None] * np.array([m.error for m in means])) ** 2).sum(axis=0)) / total
    return Mean(size / n, np.hypot(error, _FIRST_ORDER * np.abs(size)) / n)


@dataclass(frozen=True)
class _Motion:
    """The logarithm of trained over frozen mean loss at some widths, (widths, points), and its errors."""

    mean: np.ndarray
    error: np.ndarray
    exponent: np.ndarray
    at_bound: np.ndarray


def _motion(samples: Sequence[Sample], at: np.ndarray) -> _Motion:
    widths = np.array([s.width for s in samples], float)
    ratios = [log_ratio(s.trained, s.frozen[s.stable]) for s in samples if s.trained is not None]
    values, errors = np.array([r.mean for r in ratios]), np.array([r.error for r in ratios])
    law = power_law(widths, values, errors, at)
    inflation = np.ones(values.shape[1])
    if len(samples) >= 3:
        inflation = np.maximum(1, left_out_score(widths, values, errors))
    return _Motion(law.mean, law.std * inflation, law.exponent, law.at_bound)


def _frozen_fit(samples: Sequence[Sample], frozen: Mean, n: int, infinite: np.ndarray, at: np.ndarray) -> Mean:
    """Returns the relative bias of frozen networks at other widths, (widths, points); at n it is the measured one."""
    gaps = [(s.frozen - s.control + s.readouts - infinite)[s.stable] for s in samples]
    means = [*map(mean_of, gaps), Mean(frozen.mean - infinite, frozen.error)]
    widths = np.array([s.width for s in samples] + [n], float)
    values, errors = np.array([m.mean for m in means]) / infinite, np.array([m.error for m in means]) / infinite
    return anchored(widths, values, errors, at)


def _relative_std(samples: Sequence[Sample], infinite: np.ndarray, n: int) -> np.ndarray:
    """Returns standard deviation over mean at width n, from trained networks; that at infinite width is known."""
    trained = [s.trained for s in samples if s.trained is not None]
    excess = np.array([curves.var(axis=0, ddof=1) / curves.mean(axis=0) ** 2 for curves in trained]) - infinite**2
    errors = np.array([np.full(len(infinite), len(curves) ** -0.5) for curves in trained])
    coefficient = inverse_width(np.array([s.width for s in samples]), excess, errors)
    # Where the spread of small networks is much smaller, its extrapolation may not become negative.
    return np.sqrt(np.maximum(infinite**2 + coefficient / n, infinite**2 / 4))
