"""Theory beside experiment: bound, exact expectation and measured training of several DAGs on one data set."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
import optax
from jaxtyping import ArrayLike, Float

from nngp_dag.errors import InputError, OutputError, as_path, check_callable, shown
from nngp_dag.graph import Dag, as_dag
from nngp_dag.graph.operations import ORDERS, PARAMETERIZATIONS, as_number, check_flag, check_option, check_whole
from nngp_dag.kernels import Kernel, kernel
from nngp_dag.kernels.inputs import host_array
from nngp_dag.nets import DagNet, chosen_seeds, descend
from nngp_dag.report.compare_files import CompareDirectory
from nngp_dag.storage import claimed, environment
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
from nngp_dag.theory.symmetric import check_targets

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
      ntk_bracket: What always bounds lambda_min(NTK); its lower end is 0 in the standard parameterization.
      path_bound: The published formula for lambda_min(K(H)).
      ntk_path_bound: That for lambda_min(NTK), or None in the standard parameterization.
      learning_rate: eta of gradient descent on L.
      conditions_met: Whether the rate bound is a theorem for linearized training at this eta.
      bound: Rate bound from the mean initial loss, (steps + 1,).
      expected: Exact mean and standard deviation of the loss of linearized training at infinite width.
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
    dags: Dag | str | Iterable[Dag | str] | Mapping[str, Dag | str],
    x: ArrayLike,
    y: ArrayLike,
    *,
    width: int = 1024,
    seeds: SupportsIndex | Sequence[int] = 5,
    steps: int = 100,
    learning_rate: LearningRate = "auto",
    order: str = "linear-act",
    parameterization: str = "ntk",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    config: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
) -> list[Comparison]:
    """Puts bounds, exact expectation and measurement of full-batch gradient descent side by side.

    Networks train in float32 on L = 0.5 ||y - f||^2; kernels, spectra and expectations are in float64. Memory: a few
    N x N matrices per DAG.

    Args:
      dags: One DAG, several, or several by name, each a `Dag`, a code, a name of `zoo.FIGURE3` or a NAS-Bench-201
        cell; without names they are called by their texts.
      x: Inputs, (N, d), N >= 2.
      y: Targets, (N, C) or (N,), such as `nngp_dag.data.one_hot` makes of labels.
      width: Units of every node.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves; one network each.
      steps: Steps of gradient descent.
      learning_rate: eta; "auto" for 1 / lambda_max(NTK) of each DAG, "shared" for the smallest of these for all.
      order: "linear-act" or "act-linear".
      parameterization: "ntk", or "standard", in which the NTK grows with the width.
      out: Folder for compare.json, curves.csv and compare.png; None writes nothing. Until all DAGs are done, those
        that are lie in its folder `unfinished`.
      resume: Go on with the unfinished comparison in `out`, of the same arguments, device and versions; the results
        are those of one that was not interrupted.
      overwrite: Replace the comparison in `out`; a folder that holds something else is refused.
      config: Entries to add to the configuration in compare.json, of JSON's types; "dataset" names the data in the
        picture.
      on_progress: Called with (what is being done, steps done, steps in all).

    Returns:
      One `Comparison` for each DAG, in the given order.

    Raises:
      GraphError: A text is no DAG.
      InputError: Fewer than 2 inputs, inputs that are all 0, equal DAGs, a learning rate at which training diverges,
        or any bad argument.
      OutputError: `out` is not free, or cannot be written.
      CheckpointError: There is nothing to resume, or another comparison.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(4, 6))
      >>> chain, mixed = nd.compare(["2_02", "DAG#3"], x, np.eye(4), width=32, seeds=2, steps=3)
      >>> mixed.name, mixed.curves.shape, chain.learning_rate > mixed.learning_rate
      ('DAG#3', (2, 4), True)
    """
    named = _named(dags)
    x = _inputs(x)
    y = check_targets("y", y, len(x))
    width, steps = check_whole("width", width, 1), check_whole("steps", steps, 1)
    chosen = chosen_seeds(seeds)
    learning_rate = _rate(learning_rate)
    check_option("order", order, ORDERS)
    check_option("parameterization", parameterization, PARAMETERIZATIONS)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    folder = None if out is None else as_path("out", out)
    _check_config(config)
    check_callable("on_progress", on_progress)
    if resume and (folder is None or overwrite):
        raise InputError(
            "Expected `resume` beside `out`, the folder of the comparison, and without `overwrite`, got "
            + ("no `out`" if folder is None else "both")
        )
    report = on_progress or (lambda task, done, total: None)

    settings = {
        **(config or {}),
        "dags": {name: str(dag) for name, dag in named.items()},
        "width": width,
        "seeds": chosen,
        "steps": steps,
        "learning_rate": learning_rate,
        "order": order,
        "parameterization": parameterization,
        **environment(),
    }
    directory = None if folder is None else CompareDirectory(folder, settings["dags"])
    with contextlib.nullcontext() if directory is None else claimed(directory.path):
        found: dict[str, Comparison] = {}
        if directory is not None:
            digests = {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in (("x", x), ("y", y))}
            kept = directory.prepare({**settings, "sha256": digests}, resume=resume, overwrite=overwrite)
            found = {name: Comparison(dag=named[name], **fields) for name, fields in kept.items()}
        try:
            options = {"width": width, "order": order, "parameterization": parameterization}
            for result in _compared(named, found, x, y, chosen, steps, learning_rate, options, report):
                found[result.name] = result
                if directory is not None:
                    directory.add(result)
        except BaseException:
            if directory is not None and not resume and not found:
                # The error at hand says more than what follows from it.
                with contextlib.suppress(OutputError):
                    directory.discard()
            raise
        results = [found[name] for name in named]
        if directory is not None:
            networks = f"{len(chosen)} network{'s' if len(chosen) > 1 else ''} of width {width}"
            what = f"{len(x)} inputs" + (f" of {settings['dataset']}" if "dataset" in settings else "")
            directory.finish(results, settings, f"{what}: bound, exact expectation, and {networks}")
    return results


def _compared(
    dags: Mapping[str, Dag],
    found: Mapping[str, Comparison],
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n c"],
    seeds: list[int],
    steps: int,
    learning_rate: LearningRate,
    options: Mapping[str, Any],
    report: Progress,
) -> Iterator[Comparison]:
    """Yields the DAGs that are not found."""
    order, parameterization = options["order"], options["parameterization"]
    left = {name: dag for name, dag in dags.items() if name not in found}
    nodes: dict[str, Kernel] = {}
    outputs: dict[str, Kernel] = {}
    spectra = {name: (result.nngp, result.ntk) for name, result in found.items()}
    for i, (name, dag) in enumerate(left.items()):
        report("kernels", i, len(left))
        nodes[name] = kernel(dag, x, order=order, readout=False)
        outputs[name] = kernel(dag, x, **options)
        spectra[name] = spectrum(nodes[name].nngp), spectrum(outputs[name].ntk)
    report("kernels", len(left), len(left))
    rates = learning_rates({name: ntk for name, (_, ntk) in spectra.items()}, learning_rate)
    for name, eta in rates.items():
        limit = 2 / spectra[name][1].lambda_max
        if eta >= limit:
            raise InputError(
                f"Expected `learning_rate` between 0 and 2 / lambda_max(NTK) = {limit:.4g} of {name}, got {eta}; "
                "gradient descent diverges beyond"
            )
    stem = kernel(Dag.from_code("1"), x, order=order, readout=False)

    for i, (name, dag) in enumerate(left.items(), start=1):
        nngp, ntk = spectra[name]
        eta = rates[name]
        report(f"training {name}", 0, steps)
        run = descend(
            lambda rngs, dag=dag: DagNet(dag, x.shape[1], y.shape[1], rngs=rngs, **options),
            x.astype(np.float32),
            y.astype(np.float32),
            optimizer=optax.sgd(eta),
            steps=steps,
            seeds=seeds,
            on_progress=lambda done, total, name=name: report(f"training {name}", done, total),
        )
        curves = run.curve.astype(np.float64)
        report("bounds and expectations", i - 1, len(left))
        yield Comparison(
            name=name,
            dag=dag,
            nngp=nngp,
            ntk=ntk,
            nngp_bracket=lambda_min_bracket(dag, x, order=order, readout=False).nngp,
            ntk_bracket=(
                lambda_min_bracket(dag, x, order=order).ntk
                if parameterization == "ntk"
                else Bracket(0.0, principal_minor_bound(outputs[name].ntk))
            ),
            path_bound=path_bound(dag, stem.nngp, order=order),
            ntk_path_bound=ntk_path_bound(dag, stem, order=order) if parameterization == "ntk" else None,
            learning_rate=eta,
            conditions_met=rate_bound_holds_for(_lower(nngp), _lower(ntk), ntk.lambda_max, eta),
            bound=rate_bound(_lower(nngp), eta, steps, float(curves[:, 0].mean())),
            expected=loss_curve(outputs[name], y, eta, steps),
            curves=curves,
        )
        report("bounds and expectations", i, len(left))


def learning_rates(spectra: Mapping[str, Spectrum], learning_rate: LearningRate) -> dict[str, float]:
    """Returns eta of every DAG: its own 1 / lambda_max(NTK), the smallest of these for all, or the number given.

    Raises:
      InputError: An NTK is 0.
    """
    if zero := [name for name, s in spectra.items() if s.lambda_max == 0]:
        raise InputError(
            f"Expected lambda_max(NTK) of {zero[0]} above 0, got 0, at which nothing trains; rescale the inputs"
        )
    if learning_rate == "auto":
        return {name: 1 / s.lambda_max for name, s in spectra.items()}
    if learning_rate == "shared":
        return dict.fromkeys(spectra, min(1 / s.lambda_max for s in spectra.values()))
    return dict.fromkeys(spectra, float(learning_rate))


def _named(dags: Dag | str | Iterable[Dag | str] | Mapping[str, Dag | str]) -> dict[str, Dag]:
    if isinstance(dags, (Dag, str)):
        dags = [dags]
    if not isinstance(dags, Iterable):
        raise InputError(f"Expected `dags` to be a list of DAGs, or a dict of them by name, got {type(dags).__name__}")
    given: Any = dags.items() if isinstance(dags, Mapping) else [(str(dag), dag) for dag in dags]
    for name, _ in given:
        if not isinstance(name, str):
            raise InputError(f"Expected names of `dags` to be text, got {shown(name)}; pass str(name)")
    parsed = [(name, as_dag(dag)) for name, dag in given]
    if not parsed or len({dag for _, dag in parsed}) < len(parsed):
        names = ", ".join(name for name, _ in parsed)
        raise InputError(f"Expected distinct DAGs, at least one, got {names or 'none'}; name every graph once")
    return dict(parsed)


def _inputs(x: ArrayLike) -> Float[np.ndarray, "n d"]:
    """Returns inputs in float64."""
    array = host_array("x", x).astype(np.float64)
    if array.ndim != 2 or not array.shape[1]:
        raise InputError(
            f"Expected `x` to have shape (N, d), got {array.shape}; flatten images to x.reshape(len(x), -1)"
        )
    if len(array) < 2:
        raise InputError(f"Expected at least 2 inputs to compare, got {len(array)}; take a larger subset")
    if not np.isfinite(array).all():
        raise InputError("Expected `x` to be finite, got NaN or infinity; drop or repair those inputs")
    if not array.any():
        raise InputError("Expected `x` to hold an input that is not 0, got only zeros; check how it was read")
    return array


def _rate(learning_rate: LearningRate) -> LearningRate:
    if isinstance(learning_rate, str):
        if learning_rate not in ("auto", "shared"):
            raise InputError(f"Expected `learning_rate` to be 'auto', 'shared' or a number, got {shown(learning_rate)}")
        return str(learning_rate)
    if (rate := as_number("learning_rate", learning_rate)) <= 0:
        raise InputError(f"Expected `learning_rate` to be finite and above 0, got {shown(learning_rate)}")
    return float(rate)


def _check_config(config: Mapping[str, Any] | None) -> None:
    """Raises an `InputError` unless JSON can hold `config` as it is."""
    if config is not None and not (isinstance(config, Mapping) and all(isinstance(name, str) for name in config)):
        raise InputError(f"Expected `config` to be a dict with names that are text, got {shown(config)}")
    try:
        json.dumps(dict(config or {}), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"Expected `config` to hold what JSON can, got {shown(config)}: {shown(str(error))}; pass plain numbers, "
            "texts, lists and dicts"
        ) from None
