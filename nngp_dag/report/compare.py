"""Theory beside experiment: bound, exact expectation and measured training of several DAGs on one data set."""

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optax
from jaxtyping import Float

from nngp_dag.errors import InputError
from nngp_dag.graph import Dag
from nngp_dag.kernels import Kernel, kernel
from nngp_dag.nets import DagNet, descend
from nngp_dag.theory import (
    Bracket,
    LossCurve,
    PathBound,
    Spectrum,
    lambda_min_bracket,
    loss_curve,
    ntk_path_bound,
    path_bound,
    principal_minor_bound,
    rate_bound,
    rate_bound_holds_for,
    spectrum,
)

LearningRate = float | str
Progress = Callable[[str, int, int], None]

# Losses are float32 sums; a violation smaller than their rounding is none.
_ROUNDING = 1e-5


@dataclass(frozen=True)
class Comparison:
    """What theory says of one DAG, and what S networks did. Losses are L = 0.5 ||y - f||^2 over the training set.

    Attributes:
      name: How the user calls the DAG.
      dag: The DAG.
      nngp: Spectrum of K(H), the NNGP at the last node, which the rate bound uses.
      ntk: Spectrum of the NTK after the readout, which training follows.
      nngp_bracket: What always bounds lambda_min(K(H)).
      ntk_bracket: What always bounds lambda_min(NTK); its lower end is 0 in the standard parameterisation.
      path_bound: The published formula for lambda_min(K(H)).
      ntk_path_bound: That for lambda_min(NTK), or None in the standard parameterisation.
      learning_rate: eta of gradient descent on L.
      conditions_met: Whether the rate bound is a theorem for linearised training at this eta.
      bound: Rate bound from the mean initial loss, (steps + 1,).
      expected: Exact mean and standard deviation of the loss of linearised training at infinite width.
      curves: Measured losses, (S, steps + 1).
    """

    name: str
    dag: Dag
    nngp: Spectrum
    ntk: Spectrum
    nngp_bracket: Bracket
    ntk_bracket: Bracket
    path_bound: PathBound
    ntk_path_bound: PathBound | None
    learning_rate: float
    conditions_met: bool
    bound: Float[np.ndarray, " steps"]
    expected: LossCurve
    curves: Float[np.ndarray, "seeds steps"]

    @property
    def bound_rate(self) -> float:
        """Factor by which the bound shrinks a step: 1 - eta lambda_min / 2, or 1 where lambda_min is not resolved."""
        return 1 - self.learning_rate * _lower(self.nngp) / 2

    @property
    def mean(self) -> Float[np.ndarray, " steps"]:
        """Measured loss, mean over seeds, (steps + 1,)."""
        return self.curves.mean(axis=0)

    @property
    def std(self) -> Float[np.ndarray, " steps"]:
        """Measured loss, standard deviation over seeds (S - 1 in the denominator; 0 for one seed), (steps + 1,)."""
        return self.curves.std(axis=0, ddof=1) if len(self.curves) > 1 else np.zeros(self.curves.shape[1])

    @property
    def bound_violations(self) -> int:
        """Number of (seed, step) at which a network lies above its own bound, rate^k times its initial loss."""
        decay = self.bound_rate ** np.arange(self.curves.shape[1])
        return int((self.curves > self.curves[:, :1] * decay * (1 + _ROUNDING)).sum())

    @property
    def gaps(self) -> Float[np.ndarray, " steps"]:
        """Measured mean over expectation, minus 1, (steps + 1,)."""
        return self.mean / self.expected.mean - 1

    @property
    def verdict(self) -> str:
        """One line: whether the bound's conditions are met, how often it is broken, how far off the expectation is."""
        conditions = "conditions of the rate bound met" if self.conditions_met else "η too large for the rate bound"
        violations = f"{self.bound_violations} violation{'' if self.bound_violations == 1 else 's'}"
        worst = int(np.abs(self.gaps).argmax())
        error = self.expected.std[worst] / len(self.curves) ** 0.5 / self.expected.mean[worst]
        gap = f"largest gap to the expectation {self.gaps[worst]:+.1%} at step {worst} (sampling error {error:.1%})"
        return f"{conditions}, {violations}, {gap}"

    def as_row(self) -> dict[str, Any]:
        """Returns the row of compare.json; an eigenvalue that is not resolved is None."""
        return {
            "dag": str(self.dag),
            "num_paths": self.dag.num_paths,
            "effective_depth": self.dag.effective_depth,
            "effective_width": self.dag.effective_width,
            "nngp_lambda_min": self.nngp.lambda_min if self.nngp.resolved else None,
            "ntk_lambda_min": self.ntk.lambda_min if self.ntk.resolved else None,
            "ntk_lambda_max": self.ntk.lambda_max,
            "nngp_lambda_min_bracket": [self.nngp_bracket.lower, self.nngp_bracket.upper],
            "ntk_lambda_min_bracket": [self.ntk_bracket.lower, self.ntk_bracket.upper],
            "path_bound": self.path_bound.value,
            "path_bound_violated_assumptions": list(self.path_bound.violated_assumptions),
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
            "largest_relative_gap": float(np.abs(self.gaps).max()),
            "verdict": self.verdict,
        }


def _lower(s: Spectrum) -> float:
    return s.lambda_min if s.resolved else 0.0


def compare(
    dags: Mapping[str, Dag],
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n c"],
    *,
    width: int = 1024,
    seeds: Sequence[int] = range(5),
    steps: int = 100,
    learning_rate: LearningRate = "auto",
    order: str = "linear-act",
    parameterisation: str = "ntk",
    on_progress: Progress | None = None,
) -> list[Comparison]:
    """Puts bounds, exact expectation and measurement of full-batch gradient descent side by side.

    Networks train in float32 on L = 0.5 ||y - f||^2; kernels, spectra and expectations are in float64. Memory: a few
    N x N matrices per DAG.

    Args:
      dags: Distinct DAGs by name.
      x: Inputs, (N, d), N >= 2.
      y: Targets, (N, C).
      width: Units of every node.
      seeds: One network each.
      steps: Steps of gradient descent.
      learning_rate: eta; "auto" for 1 / lambda_max(NTK) of each DAG, "shared" for the smallest of these for all.
      order: "linear-act" or "act-linear".
      parameterisation: "ntk", or "standard", in which the NTK grows with the width.
      on_progress: Called with (what is being done, steps done, steps in all).

    Returns:
      One `Comparison` for each DAG, in the given order.

    Raises:
      InputError: Fewer than 2 inputs, equal DAGs, a learning rate at which training diverges, or any bad argument.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(4, 6))
      >>> (row,) = nd.report.compare({"chain": nd.zoo.chain(2)}, x, np.eye(4), width=32, seeds=[0], steps=3)
      >>> row.curves.shape
      (1, 4)
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not dags or len(set(dags.values())) < len(dags):
        raise InputError(f"Expected distinct DAGs, at least one, got {', '.join(dags) or 'none'}")
    if len(x) < 2:
        raise InputError(f"Expected at least 2 inputs to compare, got {len(x)}; take a larger subset")
    for name, value in (("width", width), ("steps", steps), ("number of seeds", len(seeds))):
        if value < 1:
            raise InputError(f"Expected the {name} to be at least 1, got {value}")
    if isinstance(learning_rate, str) and learning_rate not in ("auto", "shared"):
        raise InputError(f"Expected `learning_rate` to be 'auto', 'shared' or a number, got {learning_rate!r}")
    if not isinstance(learning_rate, str) and not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"Expected `learning_rate` to be finite and above 0, got {learning_rate}")
    report = on_progress or (lambda task, done, total: None)

    gradients = {"parameterisation": parameterisation, "width": width}
    nodes: dict[str, Kernel] = {}
    outputs: dict[str, Kernel] = {}
    spectra: dict[str, tuple[Spectrum, Spectrum]] = {}
    for i, (name, dag) in enumerate(dags.items()):
        report("kernels", i, len(dags))
        nodes[name] = kernel(dag, x, order=order, readout=False)
        outputs[name] = kernel(dag, x, order=order, **gradients)
        spectra[name] = spectrum(nodes[name].nngp), spectrum(outputs[name].ntk)
    report("kernels", len(dags), len(dags))
    rates = learning_rates({name: ntk for name, (_, ntk) in spectra.items()}, learning_rate)
    stem = kernel(Dag.from_code("1"), x, order=order, readout=False)

    results = []
    for name, dag in dags.items():
        nngp, ntk = spectra[name]
        eta = rates[name]
        if eta >= 2 / ntk.lambda_max:
            raise InputError(
                f"Expected `learning_rate` between 0 and 2 / lambda_max(NTK) = {2 / ntk.lambda_max:.4g} of {name}, got "
                f"{eta}; gradient descent diverges beyond"
            )
        run = descend(
            lambda rngs, dag=dag: DagNet(
                dag, x.shape[1], y.shape[1], width=width, order=order, parameterisation=parameterisation, rngs=rngs
            ),
            x.astype(np.float32),
            y.astype(np.float32),
            optimiser=optax.sgd(eta),
            steps=steps,
            seeds=list(seeds),
            on_progress=lambda done, total, name=name: report(f"training {name}", done, total),
        )
        curves = run.curve.astype(np.float64)
        results.append(
            Comparison(
                name=name,
                dag=dag,
                nngp=nngp,
                ntk=ntk,
                nngp_bracket=lambda_min_bracket(dag, x, order=order, readout=False).nngp,
                ntk_bracket=(
                    lambda_min_bracket(dag, x, order=order).ntk
                    if parameterisation == "ntk"
                    else Bracket(0.0, principal_minor_bound(outputs[name].ntk))
                ),
                path_bound=path_bound(dag, stem.nngp, order=order),
                ntk_path_bound=ntk_path_bound(dag, stem, order=order) if parameterisation == "ntk" else None,
                learning_rate=eta,
                conditions_met=rate_bound_holds_for(_lower(nngp), _lower(ntk), ntk.lambda_max, eta),
                bound=rate_bound(_lower(nngp), eta, steps, float(curves[:, 0].mean())),
                expected=loss_curve(outputs[name], y, eta, steps),
                curves=curves,
            )
        )
    return results


def learning_rates(spectra: Mapping[str, Spectrum], learning_rate: LearningRate) -> dict[str, float]:
    """Returns eta of every DAG: its own 1 / lambda_max(NTK), the smallest of these for all, or the number given."""
    if learning_rate == "auto":
        return {name: 1 / s.lambda_max for name, s in spectra.items()}
    if learning_rate == "shared":
        return dict.fromkeys(spectra, min(1 / s.lambda_max for s in spectra.values()))
    return dict.fromkeys(spectra, float(learning_rate))


def write_json(path: Path, results: Sequence[Comparison], config: Mapping[str, Any]) -> None:
    """Writes {"config": ..., "rows": [...]}."""
    rows = [result.as_row() for result in results]
    path.write_text(json.dumps({"config": dict(config), "rows": rows}, indent=2, allow_nan=False) + "\n")


def write_curves(path: Path, results: Sequence[Comparison]) -> None:
    """Writes the curves as CSV: dag, step, bound, expected, empirical_mean, empirical_std, expected_std."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["dag", "step", "bound", "expected", "empirical_mean", "empirical_std", "expected_std"])
        for result in results:
            expected = result.expected
            columns = zip(result.bound, expected.mean, result.mean, result.std, expected.std, strict=True)
            for step, values in enumerate(columns):
                writer.writerow([str(result.dag), step, *(f"{value:.9g}" for value in values)])
