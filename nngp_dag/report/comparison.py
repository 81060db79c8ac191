"""The comparison of theory and experiment for one network."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from jaxtyping import Float

from nngp_dag import forms
from nngp_dag.architecture import Network
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.theory import Bracket, LossCurve, PathBound, Spectrum
from nngp_dag.tracing import Traced
from nngp_dag.width import Deviation, WidthEffects
from nngp_dag.width.effects_result import resolved

if TYPE_CHECKING:
    import pandas

# Relative rounding error of losses, which are float32 sums. Smaller violations of the bound do not count.
_ROUNDING = 1e-5


@dataclass(frozen=True, repr=False)
class Comparison(Described):
    """Theory of one network, and measured training of S finite networks.

    Losses are L = 0.5 ||y - f||^2, summed over the training set and the output columns.

    Attributes:
      name: Name of the network, as the user gave it.
      network: The network, or the traced model; `dag` is its graph.
      nngp: Spectrum of K(H), which the rate bound uses: the NNGP at the last node. For a traced model it is the part of
        the NTK that the readout's weights contribute, in the model's parameterization.
      ntk: Spectrum of the NTK after the readout, which governs linearized training.
      nngp_bracket: Bracket on lambda_min(K(H)) that holds for every graph.
      ntk_bracket: Bracket on lambda_min(NTK) that holds for every graph. The lower ends are 0 for networks that
        `lambda_min_bracket` does not cover, such as those in the standard parameterization.
      path_bound: Published path formula for lambda_min(K(H)). It is None for layers other than ReLU without biases, and
        for nodes that are not plain sums.
      ntk_path_bound: Published path formula for lambda_min(NTK). It is None in the standard parameterization, too.
      learning_rate: Learning rate eta of gradient descent on L.
      conditions_met: Whether the rate bound is a theorem for linearized training at this eta; if not, `unmet` holds the
        reason.
      bound: Rate bound from the mean initial loss, (steps + 1,).
      expected: Exact mean and standard deviation of the loss of linearized training at infinite width.
      curves: Measured losses before the first step and after each one, (S, steps + 1).
      width_effects: Mean loss at the network's width, predicted from smaller networks; None if there is no prediction.
      unpredicted: Reason why there is none; empty if there is one, or none was asked for.
      readout_noise: The part of every measured loss that the draw of the readout explains, with mean 0, (S, steps + 1).
        Without it measured deviations are more precise. None without a prediction, and for traced models.
    """

    name: str
    network: Network | Traced
    nngp: Spectrum
    ntk: Spectrum
    nngp_bracket: Bracket
    ntk_bracket: Bracket
    path_bound: PathBound | None
    ntk_path_bound: PathBound | None
    learning_rate: float
    conditions_met: bool
    bound: Float[np.ndarray, " steps"]
    expected: LossCurve
    curves: Float[np.ndarray, "seeds steps"]
    width_effects: WidthEffects | None = None
    unpredicted: str = ""
    readout_noise: Float[np.ndarray, "seeds steps"] | None = None

    @property
    def dag(self) -> Dag | None:
        """The connectivity; None for a traced model that is no `Network`."""
        return self.network.dag

    @property
    def code(self) -> str:
        """The text of the graph; empty where there is none."""
        return "" if self.dag is None else str(self.dag)

    @property
    def remark(self) -> str:
        """A remark on a traced model, and on the prediction at the network's width, or an empty text."""
        remarks = []
        if isinstance(self.network, Traced):
            missing = "" if self.dag is not None else f"; no graph, since {self.network.reason}"
            remarks.append(f"a traced model; its K(H) is the part of the NTK from the readout's weights{missing}")
        if self.unpredicted:
            remarks.append(f"no prediction at its width: {self.unpredicted}")
        if (effects := self.width_effects) is not None:
            small = ", ".join(f"{count} of width {width}" for width, count in effects.trained.items())
            remarks.append(
                f"predicted from trained networks, {small}, and {effects.drawn} drawn at width {effects.width:,}, in "
                f"{effects.seconds:.0f} s"
            )
        return f"{self.name}: {'; '.join(remarks)}" if remarks else ""

    @property
    def bound_rate(self) -> float:
        """Factor of the bound per step: 1 - eta lambda_min / 2, or 1 where lambda_min is not resolved."""
        return 1 - self.learning_rate * lower_end(self.nngp) / 2

    @property
    def mean(self) -> Float[np.ndarray, " steps"]:
        """Mean of the measured loss over seeds, (steps + 1,)."""
        return self.curves.mean(axis=0)

    @property
    def std(self) -> Float[np.ndarray, " steps"]:
        """Standard deviation of the measured loss over seeds, (steps + 1,), with denominator S - 1; 0 for one seed."""
        return self.curves.std(axis=0, ddof=1) if len(self.curves) > 1 else np.zeros(self.curves.shape[1])

    @property
    def bound_violations(self) -> int:
        """Number of pairs (seed, step) at which a network's loss exceeds its own bound, rate^k times its first loss."""
        decay = self.bound_rate ** np.arange(self.curves.shape[1])
        return int((self.curves > self.curves[:, :1] * decay * (1 + _ROUNDING)).sum())

    @property
    def gaps(self) -> Float[np.ndarray, " steps"]:
        """Relative gap of the measured mean to the expectation, mean / expectation - 1, (steps + 1,).

        It is NaN where the expectation has fallen below 1e-8 of its start, which float32 does not resolve.
        """
        mean = np.asarray(self.expected.mean)
        return np.divide(self.mean, mean, out=np.full(len(mean), math.nan), where=resolved(mean)) - 1

    @property
    def unmet(self) -> str:
        """Reason why the rate bound is not a theorem here, in a few words; empty where it is one."""
        if self.conditions_met:
            return ""
        # Then no eta helps. To first order a step multiplies the loss of the slowest mode by 1 - 2 eta lambda_min(NTK).
        # It multiplies the bound by 1 - eta lambda_min(K(H)) / 2.
        if 4 * lower_end(self.ntk) <= lower_end(self.nngp):
            return "λmin(NTK) too small for the rate bound"
        return "η too large for the rate bound"

    @property
    def verdict(self) -> str:
        """Summary in one line: conditions of the bound, number of its violations, largest gap to the expectation."""
        conditions = self.unmet or "conditions of the rate bound met"
        violations = f"{self.bound_violations} violation{'' if self.bound_violations == 1 else 's'}"
        worst = int(np.nanargmax(np.abs(self.gaps)))
        error = self.expected.std[worst] / len(self.curves) ** 0.5 / self.expected.mean[worst]
        gap = f"largest gap to the expectation {self.gaps[worst]:+.1%} at step {worst} (sampling error {error:.1%})"
        return f"{conditions}, {violations}, {gap}"

    def deviation(self, step: int) -> Deviation | None:
        """Returns predicted and measured deviation from infinite width after some steps; None without a prediction.

        The measured one is that of the mean loss without `readout_noise`, with the standard error over networks. For
        one network, or where that noise is not known, the error is the predicted standard deviation over the square
        root of S.
        """
        effects, networks = self.width_effects, len(self.curves)
        if effects is None:
            return None
        if self.readout_noise is None or networks < 2:
            return effects.deviation(step, float(self.mean[step]), float(effects.std[step]) / networks**0.5)
        losses = self.curves[:, step] - self.readout_noise[:, step]
        return effects.deviation(step, float(losses.mean()), float(losses.std(ddof=1)) / networks**0.5, networks)

    @property
    def width_verdict(self) -> str:
        """Whether the prediction at the network's width holds, at the last trusted step."""
        if self.width_effects is None:
            return ""
        last = self.width_effects.last_trusted
        at = self.deviation(len(self.bound) - 1 if last is None else last)
        assert at is not None
        trusted = [self.deviation(int(step)) for step in np.flatnonzero(self.width_effects.trusted) if step]
        verdicts = [one.verdict for one in trusted if one is not None]
        if math.isnan(at.predicted):
            return (
                f"at width {self.width_effects.width:,} nothing is predicted: the loss falls to rounding level at once"
            )
        outcome = f"{'is ' if at.verdict.startswith('not') else ''}{at.verdict}"
        return (
            f"at width {self.width_effects.width:,} the mean loss after step {at.step} deviates from infinite width by "
            f"{at.predicted:+.1%} (90 % interval {at.low:+.1%} to {at.high:+.1%}), measured {at.measured:+.1%} ± "
            f"{at.error:.1%}: the prediction {outcome}; of {len(verdicts)} trusted steps it holds at "
            f"{verdicts.count('holds')} and fails at {verdicts.count('fails')}"
        )

    def curve_columns(self) -> dict[str, Float[np.ndarray, " steps"]]:
        """Returns the curves by the names that curves.csv gives them, one number for every step."""
        return {
            "bound": self.bound,
            "expected": np.asarray(self.expected.mean),
            "empirical_mean": self.mean,
            "empirical_std": self.std,
            "expected_std": np.asarray(self.expected.std),
            **{f"predicted_{name}": values for name, values in self._predicted().items()},
        }

    def _predicted(self) -> dict[str, Float[np.ndarray, " steps"]]:
        """Returns the prediction at the network's width; NaN without one."""
        names = ("mean", "low", "high", "std", "frozen", "trusted")
        if self.width_effects is None:
            return dict.fromkeys(names, np.full(len(self.bound), math.nan))
        return {name: np.asarray(getattr(self.width_effects, name), float) for name in names}

    def to_frame(self) -> "pandas.DataFrame":
        """Returns the curves as a table with the columns of curves.csv, a row for every step."""
        import pandas

        steps = np.arange(len(self.bound))
        return pandas.DataFrame({"name": self.name, "dag": self.code, "step": steps} | self.curve_columns())

    def _facts(self) -> dict[str, str]:
        expected, std = self.expected, self.std
        return {
            "": repr(self.name),
            "network": repr(self.network),
            "learning_rate": f"{self.learning_rate:.3g}",
            "expected_loss": forms.spread(expected.mean[-1], expected.std[-1]),
            "measured_loss": forms.spread(self.mean[-1], std[-1]),
            "bound_violations": str(self.bound_violations),
        }

    def as_row(self) -> dict[str, Any]:
        """Returns the row of compare.json; an eigenvalue that is not resolved, and a fact of no graph, is None."""
        dag = self.dag
        return {
            "name": self.name,
            "dag": self.code,
            "num_paths": None if dag is None else dag.num_paths,
            "effective_depth": None if dag is None else dag.effective_depth,
            "effective_width": None if dag is None else dag.effective_width,
            "nngp_lambda_min": self.nngp.lambda_min if self.nngp.resolved else None,
            "ntk_lambda_min": self.ntk.lambda_min if self.ntk.resolved else None,
            "ntk_lambda_max": self.ntk.lambda_max,
            "nngp_lambda_min_bracket": [self.nngp_bracket.lower, self.nngp_bracket.upper],
            "ntk_lambda_min_bracket": [self.ntk_bracket.lower, self.ntk_bracket.upper],
            "path_bound": self.path_bound.value if self.path_bound else None,
            "path_bound_violated_assumptions": (
                list(self.path_bound.violated_assumptions) if self.path_bound else None
            ),
            "ntk_path_bound": self.ntk_path_bound.value if self.ntk_path_bound else None,
            "ntk_path_bound_violated_assumptions": (
                list(self.ntk_path_bound.violated_assumptions) if self.ntk_path_bound else None
            ),
            "learning_rate": self.learning_rate,
            "bound_rate": self.bound_rate,
            "bound_conditions_met": self.conditions_met,
            "bound_violations": self.bound_violations,
            "loss_initial_mean": float(self.mean[0]),
            "loss_final_mean": float(self.mean[-1]),
            "loss_final_std": float(self.std[-1]),
            "loss_initial_expected": float(self.expected.mean[0]),
            "loss_final_expected": float(self.expected.mean[-1]),
            "loss_final_expected_std": float(self.expected.std[-1]),
            "largest_relative_gap": float(np.nanmax(np.abs(self.gaps))),
            "verdict": self.verdict,
            **self._width_row(),
        }

    def _width_row(self) -> dict[str, Any]:
        """Returns the entries of compare.json on the prediction at the network's width."""
        effects = self.width_effects
        last = None if effects is None else effects.last_trusted
        at = None if last is None else self.deviation(last)
        return {
            "predicted_step": last,
            "predicted_deviation": at and at.predicted,
            "predicted_deviation_low": at and at.low,
            "predicted_deviation_high": at and at.high,
            "measured_deviation": at and at.measured,
            "measured_deviation_error": at and at.error,
            "prediction": at and at.verdict,
            "prediction_seconds": effects and effects.seconds,
            "prediction_verdict": self.width_verdict or self.unpredicted or None,
        }


class Comparisons(list[Comparison]):
    """The result of `compare`: a list with one `Comparison` per network.

    Notebooks show it as a table. Its slices and copies are `Comparisons`, too.
    """

    @overload
    def __getitem__(self, index: SupportsIndex, /) -> Comparison: ...
    @overload
    def __getitem__(self, index: slice, /) -> "Comparisons": ...
    def __getitem__(self, index: Any, /) -> Any:
        """Returns one result, or for a slice the `Comparisons` of several."""
        found = super().__getitem__(index)
        return Comparisons(found) if isinstance(index, slice) else found

    def copy(self) -> "Comparisons":
        """Returns a new list of the same results."""
        return Comparisons(self)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with a row for each network.

        Its columns are the entries of compare.json, made flat. Brackets take two columns each, as in a sweep:
        `nngp_lower`, `nngp_upper`, `ntk_lower` and `ntk_upper`. Violated assumptions are joined to one text. Values
        that compare.json leaves null are NaN.

        Examples:
          >>> import nngp_dag as nd
          >>> x = np.random.default_rng(0).normal(size=(4, 6))
          >>> rows = nd.compare(["2_02", "DAG#3"], x, np.eye(4), width=32, seeds=2, steps=3)
          >>> rows.to_frame()[["name", "num_paths", "bound_violations"]]
              name  num_paths  bound_violations
          0   2_02          1                 0
          1  DAG#3          4                 0
          >>> rows[0].to_frame()[["name", "step"]].tail(1)
             name  step
          3  2_02     3
        """
        import pandas

        return pandas.DataFrame.from_records([dict(_flat(result.as_row())) for result in self])

    def __repr__(self) -> str:
        """Returns the names, in one or two lines."""
        return forms.call("Comparisons", {"": ", ".join(repr(result.name) for result in self)})

    def _repr_html_(self) -> str:
        headings = ("network", "η", "λmin K(H)", "λmin NTK", "bound", "expected loss", "measured loss", "verdict")
        steps = len(self[0].bound) - 1 if self else 0
        rows = (
            (
                result.name if result.name == result.code else f"{result.name} {result.code}".strip(),
                f"{result.learning_rate:.2g}",
                forms.eigenvalue(result.nngp.lambda_min, result.nngp.floor, result.nngp.resolved),
                forms.eigenvalue(result.ntk.lambda_min, result.ntk.floor, result.ntk.resolved),
                f"{result.bound[-1]:.4g}",
                forms.spread(result.expected.mean[-1], result.expected.std[-1]),
                forms.spread(result.mean[-1], result.std[-1]),
                result.verdict,
            )
            for result in self
        )
        return forms.rows_html(f"Training loss ½‖y − f‖² after {steps} steps", headings, rows)


def _flat(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields the entries of a row of compare.json with one value each."""
    for name, value in row.items():
        if name.endswith("_lambda_min_bracket"):
            kernel = name.removesuffix("_lambda_min_bracket")
            yield from zip((f"{kernel}_lower", f"{kernel}_upper"), value, strict=True)
        elif name.endswith("_violated_assumptions"):
            yield name, math.nan if value is None else "; ".join(value)
        else:
            yield name, math.nan if value is None else value


def lower_end(s: Spectrum) -> float:
    """Returns lambda_min, or 0 where it is not resolved."""
    return s.lambda_min if s.resolved else 0.0
