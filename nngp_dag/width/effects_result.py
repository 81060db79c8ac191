"""The result of `width_effects`: predicted curves, their trust, and the smallest width that is wide enough."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from nngp_dag.errors import InputError, shown
from nngp_dag.forms import Described
from nngp_dag.graph.operations import as_number, check_whole

if TYPE_CHECKING:
    import pandas


TOLERANCE = 0.05
"""Largest half of an interval, as a share of the mean, with which a predicted mean is trusted."""

# Losses that have fallen further are not resolved by training in float32.
_RESOLVED = 1e-8

# Of a normal distribution, 90 % lie within so many standard deviations.
_QUANTILE = 1.645


def resolved(mean: Float[np.ndarray, " points"]) -> Bool[np.ndarray, " points"]:
    """Returns whether a mean loss lies above what training in float32 resolves, (points,)."""
    return mean > _RESOLVED * mean[0]


class Deviation(NamedTuple):
    """A predicted and a measured mean loss, as shares of the mean at infinite width, minus 1.

    Attributes:
      step: Number of steps taken.
      predicted: The prediction.
      low: Lower end of its 90 % interval.
      high: Upper end.
      frozen: The part of the prediction that NTKs at initialization explain.
      measured: The measured deviation.
      error: Standard error of `measured`.
      trusted: Whether the prediction is trusted.
      quantile: Number of standard errors that hold 90 % of measurements.
    """

    step: int
    predicted: float
    low: float
    high: float
    frozen: float
    measured: float
    error: float
    trusted: bool
    quantile: float = _QUANTILE

    @property
    def holds(self) -> bool:
        """Whether the two differ by no more than their 90 % intervals together; one in ten does not by chance."""
        miss = self.measured - self.predicted
        side = self.high - self.predicted if miss > 0 else self.predicted - self.low
        return abs(miss) <= math.hypot(side, self.quantile * self.error)

    @property
    def verdict(self) -> str:
        """One of "holds", "fails", "not trusted" and "not tested".

        A prediction is not tested if it holds only because the measurement is less precise than an interval that is
        trusted may be.
        """
        if not self.trusted:
            return "not trusted"
        if not self.holds:
            return "fails"
        precise = self.quantile * self.error <= max(TOLERANCE, (self.high - self.low) / 2)
        return "holds" if precise else "not tested"


# The share of the bias that tables and texts speak of.
_SHARE = 0.1


class WideEnough(NamedTuple):
    """The smallest width whose bias stays below a share until a step, and the widths that the bias's interval allows.

    A number is None if no width up to 4 n will do, and all are if a step is not trusted. No width below the smallest
    trained one is looked at, so a number that is equal to it is an upper end.

    Attributes:
      share: Largest |bias|, as a share of the loss at infinite width.
      step: Last step.
      width: The smallest width whose predicted bias is below the share at all steps, from it to 4 n.
      low: The smallest width whose 90 % intervals of the bias reach below the share at all steps, from it to 4 n.
      high: The smallest width whose 90 % intervals lie below the share at all steps, from it to 4 n. If it is None, the
        intervals do not exclude that a wider network is needed.
      trusted: Whether the bias at width n is trusted at all steps.

    Examples:
      >>> found = WideEnough(share=0.1, step=20, width=512, low=400, high=None, trusted=True)
      >>> str(found)
      '512 (90 % interval from 400, no upper end)'
    """

    share: float
    step: int
    width: int | None
    low: int | None
    high: int | None
    trusted: bool

    def __str__(self) -> str:
        """Returns width and interval."""
        if not self.trusted:
            return "not trusted"
        if self.low is None:
            return "none up to 4 times the width"
        interval = f"from {self.low}, no upper end" if self.high is None else f"{self.low} to {self.high}"
        return f"{'none up to 4 times the width' if self.width is None else self.width} (90 % interval {interval})"


@dataclass(frozen=True, repr=False)
class WidthEffects(Described):
    """Gradient descent of networks of width n, predicted from small ones, for steps 0 to K.

    Attributes:
      width: Neurons n of every node.
      learning_rate: Learning rate eta.
      infinite: Mean loss at infinite width, `nngp_dag.loss_curve`, (K + 1,).
      infinite_std: Standard deviation of the loss at infinite width, (K + 1,).
      mean: Predicted mean loss at width n, (K + 1,).
      low: Lower end of the 90 % interval of `mean`, (K + 1,).
      high: Upper end, (K + 1,).
      std: Predicted standard deviation over initializations, (K + 1,), from the trained networks. The
        difference of their relative variance from that at infinite width is extrapolated as 1 / n.
      frozen: Mean loss at width n if every network's NTK stayed at its initial value, (K + 1,), from networks drawn at
        this width. It is that of networks with eta lambda_max below 2: with a frozen NTK the others diverge, so that
        the mean over all networks is infinite after many steps, at any width.
      frozen_error: Standard error of `frozen`, (K + 1,), by the jackknife.
      motion: Logarithm of the mean loss over `frozen`, the effect of the NTK's motion, (K + 1,).
      motion_error: Standard error of `motion`, (K + 1,).
      exponent: Exponent with which `motion` falls among the small widths, (K + 1,).
      trusted: Whether half the interval is at most 5 % of `mean` and the exponent is not at a bound, (K + 1,).
      drawn: Number of networks drawn at width n.
      trained: Number of trained networks by width.
      left_out: Number of networks by width whose NTK is too large for eta: eta lambda_max is 2 or more at n, and 1.6 or
        more for the small ones. They were not trained.
      seconds: Time that all these networks took.
      fit_widths: Widths that the fit is evaluated at, (W,).
      fit_bias: Mean loss by the fit over `infinite`, minus 1, (W, K + 1).
      fit_low: Lower end of the 90 % interval of `fit_bias`, (W, K + 1).
      fit_high: Upper end, (W, K + 1).

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(4, 6))
      >>> effects = nd.width_effects("2", x, np.eye(4), width=64, steps=5, networks=8, learning_rate=0.05)
      >>> bool((effects.low <= effects.mean).all()), effects.bias.shape
      (True, (6,))
    """

    width: int
    learning_rate: float
    infinite: Float[np.ndarray, " points"]
    infinite_std: Float[np.ndarray, " points"]
    mean: Float[np.ndarray, " points"]
    low: Float[np.ndarray, " points"]
    high: Float[np.ndarray, " points"]
    std: Float[np.ndarray, " points"]
    frozen: Float[np.ndarray, " points"]
    frozen_error: Float[np.ndarray, " points"]
    motion: Float[np.ndarray, " points"]
    motion_error: Float[np.ndarray, " points"]
    exponent: Float[np.ndarray, " points"]
    trusted: Bool[np.ndarray, " points"]
    drawn: int
    trained: dict[int, int]
    left_out: dict[int, int]
    seconds: float
    fit_widths: Int[np.ndarray, " widths"]
    fit_bias: Float[np.ndarray, "widths points"]
    fit_low: Float[np.ndarray, "widths points"]
    fit_high: Float[np.ndarray, "widths points"]

    @property
    def steps(self) -> Int[np.ndarray, " points"]:
        """Number of steps taken, 0, 1, ..., K, (K + 1,)."""
        return np.arange(len(self.mean))

    @property
    def bias(self) -> Float[np.ndarray, " points"]:
        """Predicted mean minus that at infinite width, as a share of the latter, (K + 1,).

        It is NaN where the latter has fallen below 1e-8 of its start.
        """
        return self._deviations(self.mean)

    @property
    def frozen_bias(self) -> Float[np.ndarray, " points"]:
        """The part of `bias` that the NTK at initialization explains, (K + 1,); the rest is its motion."""
        return self._deviations(self.frozen)

    def _deviations(self, losses: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        found = np.full(len(losses), math.nan)
        return np.divide(losses, self.infinite, out=found, where=resolved(self.infinite)) - 1

    @property
    def last_trusted(self) -> int | None:
        """The last step after the start whose prediction is trusted; None if there is none."""
        steps = np.flatnonzero(self.trusted[1:])
        return int(steps[-1]) + 1 if len(steps) else None

    def deviation(self, step: int, mean: float, error: float, networks: int | None = None) -> Deviation:
        """Returns prediction and measured mean loss after some steps, as deviations from infinite width.

        Args:
          step: Number of steps taken.
          mean: Measured mean loss of networks of this width.
          error: Its standard error.
          networks: Number of networks that the error was estimated from; None for very many.

        Raises:
          InputError: `step` is beyond K, `mean` or `error` is not finite, `error` is below 0, or `networks` below 2.

        Examples:
          >>> import numpy as np, nngp_dag as nd
          >>> x = np.random.default_rng(0).normal(size=(4, 6))
          >>> effects = nd.width_effects("2", x, np.eye(4), width=64, steps=5, networks=8, learning_rate=0.05)
          >>> far = effects.deviation(5, mean=2 * effects.infinite[5], error=0.0)
          >>> round(far.measured, 12), far.holds
          (1.0, False)
        """
        step = self._step(step)
        mean, error = as_number("mean", mean), as_number("error", error)
        if error < 0:
            raise InputError(f"Expected `error` to be a standard error, at least 0, got {shown(error)}")
        networks = None if networks is None else check_whole("networks", networks, 2)
        infinite = self.infinite[step] if resolved(self.infinite)[step] else math.nan
        return Deviation(
            step=step,
            predicted=float(self.mean[step] / infinite - 1),
            low=float(self.low[step] / infinite - 1),
            high=float(self.high[step] / infinite - 1),
            frozen=float(self.frozen[step] / infinite - 1),
            measured=float(mean / infinite - 1),
            error=float(error / infinite),
            trusted=bool(self.trusted[step]),
            quantile=_QUANTILE if networks is None else float(scipy.stats.t.ppf(0.95, networks - 1)),
        )

    def wide_enough(self, share: float, step: int | None = None) -> WideEnough:
        """Returns the smallest width whose bias stays below a share until a step, by the fit over widths.

        The fit holds the small networks and those of width n. It is evaluated from the smallest trained width to 4 n,
        so that no smaller width is returned.

        The range holds the widths that the 90 % intervals of the bias allow, step by step: sampling errors of all
        networks, and the uncertainty of exponent, drift, and of the law of frozen networks. It is not known where a
        step is not trusted, and then neither is the width.

        Args:
          share: Largest |bias|, as a share of the loss at infinite width.
          step: Last step; K by default.

        Returns:
          A `WideEnough`, the width with its range.

        Raises:
          InputError: `share` is not above 0, or `step` is beyond K.

        Examples:
          >>> import numpy as np, nngp_dag as nd
          >>> x = np.random.default_rng(0).normal(size=(4, 6))
          >>> effects = nd.width_effects("2", x, np.eye(4), width=128, steps=3, networks=32, learning_rate=0.05)
          >>> found = effects.wide_enough(0.1, 1)
          >>> 36 <= found.low < found.width < found.high, effects.wide_enough(1e-9).width
          (True, None)
        """
        if (share := float(as_number("share", share))) <= 0:
            raise InputError(f"Expected `share` to be above 0, got {share}; 0.05 stands for 5 %")
        step = len(self.mean) - 1 if step is None else self._step(step)
        if not self.trusted[: step + 1].all():
            return WideEnough(share, step, None, None, None, trusted=False)
        bias, low, high = (of[:, : step + 1] for of in (self.fit_bias, self.fit_low, self.fit_high))
        # Of all biases in an interval, the one nearest to 0 allows the smallest width, the farthest the largest one.
        nearest = np.maximum(0, np.maximum(low, -high))
        sizes = np.abs(bias), nearest, np.maximum(np.abs(low), np.abs(high))
        width, least, most = (self._smallest(size.max(axis=1), share) for size in sizes)
        return WideEnough(share, step, width, least, most, trusted=True)

    def _smallest(self, worst: Float[np.ndarray, " widths"], share: float) -> int | None:
        """Returns the smallest width from which on a size stays below a share; None if it does not."""
        # What is not a number is not below.
        above = np.flatnonzero(~(worst < share))
        if not above.size:
            return int(self.fit_widths[0])
        if (first := above[-1]) == len(worst) - 1:
            return None
        # Between two widths of the grid, the size is taken to be a power of the width.
        n, w = np.log(self.fit_widths[first : first + 2]), np.log(np.maximum(worst[first : first + 2], 1e-300))
        if not np.isfinite(w[0]):
            return int(self.fit_widths[first + 1])
        return math.ceil(np.exp(n[0] + (n[1] - n[0]) * (math.log(share) - w[0]) / (w[1] - w[0])))

    def _step(self, step: int) -> int:
        last = len(self.mean) - 1
        if (step := check_whole("step", step, 0)) > last:
            raise InputError(f"Expected `step` to be at most {last}, got {shown(step)}; take more `steps`")
        return step

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with a row for every step.

        The columns `wide_enough`, `wide_low` and `wide_high` are those of `wide_enough` for a share of 10 % until that
        step, and NaN where it has None.

        Examples:
          >>> import numpy as np, nngp_dag as nd
          >>> effects = nd.width_effects("2", np.eye(4), np.eye(4), width=64, steps=5, networks=8, learning_rate=0.05)
          >>> list(effects.to_frame())[:6]
          ['step', 'infinite', 'mean', 'low', 'high', 'std']
        """
        import pandas

        names = ["infinite", "mean", "low", "high", "std", "frozen", "motion", "bias", "frozen_bias", "trusted"]
        table = pandas.DataFrame({"step": self.steps} | {name: getattr(self, name) for name in names})
        found = [self.wide_enough(_SHARE, step) for step in range(len(table))]
        for name, field in (("wide_enough", "width"), ("wide_low", "low"), ("wide_high", "high")):
            table[name] = np.array([getattr(one, field) for one in found], float)
        return table

    def _facts(self) -> dict[str, str]:
        half = (self.high[-1] - self.low[-1]) / 2
        # Until the last step up to which all are trusted.
        untrusted = np.flatnonzero(~self.trusted)
        until = int(untrusted[0]) - 1 if len(untrusted) else len(self.trusted) - 1
        wide = self.wide_enough(_SHARE, max(until, 0))
        return {
            "width": str(self.width),
            "steps": str(len(self.mean) - 1),
            "loss": f"{self.mean[0]:.4g} → {self.mean[-1]:.4g} ± {half:.2g}",
            "bias": f"{self.bias[-1]:+.1%}",
            "frozen_bias": f"{self.frozen_bias[-1]:+.1%}",
            "trusted": f"{self.trusted.sum()} of {len(self.trusted)} steps",
            "wide_enough": f"{_SHARE:.0%} until step {wide.step}: {wide}" if wide.trusted else str(wide),
            "trained": ", ".join(f"{count} x {width}" for width, count in self.trained.items()),
            "seconds": f"{self.seconds:.3g}",
        }
