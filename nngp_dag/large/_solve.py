"""`solve`: kernel ridge regression beyond the memory of one device."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike

from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.distributed import together
from nngp_dag.errors import InputError, NumericalWarning, as_path, check_callable, warn
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_flag, check_number, check_option, check_whole
from nngp_dag.kernels.gram_files import describe_network
from nngp_dag.kernels.inputs import DTYPES
from nngp_dag.large._plan import Plan, planned, single_output
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.checkpoint import SOLUTION, opened
from nngp_dag.large.dense import solve_dense
from nngp_dag.large.iterative import check_fits, solve_by_iterations
from nngp_dag.large.landmarks import solve_by_landmarks
from nngp_dag.large.mesh import Team
from nngp_dag.large.result import HeldOut, Solution
from nngp_dag.large.rows import ArrayRows, Rows, Sampled, rows_of
from nngp_dag.large.uncertainty import Uncertain, check_variances, checked_test, digest_of
from nngp_dag.sharing import check_equal
from nngp_dag.theory import Posterior

# A share of the rows is held out to estimate the error of landmarks, but no more than so many.
_HELD_OUT, _MOST_HELD_OUT = 0.1, 2048
# Fields of a solution that are numbers and texts, in its file.
_NUMBERS = (
    "residual",
    "effective_dimension",
    "effective_dimension_std",
    "training_rmse",
    "unexplained",
    "iterations",
    "entries",
)


def solve(
    network: Network | Dag | str | NetworkSource,
    x: ArrayLike | str | Path | Iterable[Any],
    y: ArrayLike | str | Path | None,
    ridge: float,
    *,
    x_test: ArrayLike | None = None,
    kind: str = "ntk",
    method: str = "auto",
    landmarks: int | None = None,
    memory_budget: int | str = "4 GiB",
    mesh: Mesh | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    seed: int = 0,
    tolerance: float = 1e-6,
    max_iterations: int = 1000,
    dtype: str | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    **architecture: Unpack[Architecture],
) -> Solution:
    """Solves kernel ridge regression, also where the kernel of all rows does not fit into memory.

    The predictions are K_tx (K + ridge I)^-1 y for the kernel K of N training rows x, as in `posterior`, by one of
    three methods:

    - "dense": the whole kernel and its Cholesky factor, (8 + b) N^2 bytes for entries of b bytes, N^3 / 3 operations.
      Several devices of `mesh` share blocks of rows, 8 N^2 bytes in all.
    - "iterative": preconditioned conjugate gradients on the same kernel, whose entries are computed anew in every
      iteration: N^2 of them, and memory in proportion to N. The residual is recomputed at the end. The devices of
      `mesh` share the rows, and pass inputs around in a ring.
    - "landmarks": randomly pivoted Cholesky chooses m landmarks, and one pass over the rows sums K_mN K_Nm and K_mN y.
      It takes N m entries and N m^2 operations, and memory in proportion to m^2. Predictions combine the kernels of the
      landmarks alone. That is an approximation, whose error is estimated on rows that are held out.

    `plan` says which of them "auto" takes, and what it costs. Rows come from arrays, from memory maps, from files .npy,
    or from an iterable of batches (inputs, targets), such as a data set of tfds or grain. Such batches are read from
    their start in every pass, must be the same in each of them, and allow the method "landmarks" alone. More than 16 m
    rows are sampled uniformly before landmarks are chosen.

    With test inputs `x_test` the result has their `posterior`, too: mean and covariance, as in `nngp_dag.posterior`.
    Exact methods solve for one more right-hand side per test input, and compute the NNGP of all rows for the kind
    "ntk". Landmarks have the covariance of the deterministic training conditional, for the kind "nngp" alone. It takes
    the landmarks' kernel for the true one of the rows: where they explain it badly, variances are too small next to
    landmarks, and too large far from them.

    With `out`, landmarks, sums and the state of iterations are kept on disk. A process may be killed at any time; the
    same call then continues, to the same bits on the same mesh. A call whose work is finished returns its result. All
    rows are read and recognized first, so that other data are refused. Iterations that ended above `tolerance` go on if
    `max_iterations` or `tolerance` is raised.

    After `jax.distributed.initialize`, every process makes the same call with the same data. For landmarks, each reads
    the rows of its devices from arrays and files, and all of them from batches. All get the result, and the first one
    writes.

    Args:
      network: The network, as in `kernel`, with one output.
      x: Inputs, (N, features...), or the path of a file .npy; or, with `y` None, an iterable of batches.
      y: Targets, (N,) or (N, C), floats or one-hot vectors, or the path of a file .npy.
      ridge: The ridge, above 0; for "nngp", the variance of the noise.
      x_test: Test inputs, (Nt, features...), whose posterior is wanted; or None.
      kind: "ntk" or "nngp".
      method: "auto", "dense", "iterative" or "landmarks".
      landmarks: Number of landmarks m: of the solution, or of the preconditioner. `plan` states the defaults.
      memory_budget: Largest memory of the process, in bytes or as a text such as "6 GiB".
      mesh: Mesh of devices with one axis; None for one device, or for all of several processes.
      out: Directory for checkpoints and the result; None keeps them in memory.
      overwrite: Whether the result of another call in `out`, or a damaged file, is replaced.
      seed: Seed of all random draws.
      tolerance: Largest relative residual of the iterative method, for targets and test inputs.
      max_iterations: Largest number of iterations.
      dtype: Precision of kernel entries, as in `kernel`; by default that of the inputs. Sums and vectors are float64.
      on_progress: Function that is called with (task, done, total).
      **architecture: Options of the architecture, as in `kernel`.

    Returns:
      A `Solution`. A `NumericalWarning` is issued where the iterations end above the tolerance, the dense matrix is
      too ill-conditioned for the precision of its entries, or a variance may be off by more than a tenth.

    Raises:
      CheckpointError: `out` holds the work of another call, of other versions, or damaged files.
      DistributedError: Another process ended.
      GraphError: `kernel` would refuse the network.
      InputError: An argument is out of range, or the method does not fit into the memory budget. A row is not finite,
        or `y` holds class labels. Batches differ between passes.
      OutOfMemoryError: The dense method runs out of memory.
      OutputError: `out` cannot be written, or another process writes to it.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(400, 5))
      >>> exact = nd.solve("2_21_112", x, x[:, 0], ridge=0.1)
      >>> fewer = nd.solve("2_21_112", x, x[:, 0], ridge=0.1, method="landmarks", landmarks=100)
      >>> exact.method, fewer.method, fewer.held_out.rows
      ('dense', 'landmarks', 40)
      >>> nd.solve("2_21_112", x, x[:, 0], ridge=0.1, kind="nngp", x_test=x[:2]).posterior.std.shape
      (2,)

    Reference: Chen, Epperly, Tropp and Webber 2025, Algorithm 1, and Epperly, Tropp and Webber 2024, Algorithm 2.1
    (landmarks); Rudi, Carratino and Rosasco, NeurIPS 2017 (regression on landmarks); Quinonero-Candela and Rasmussen,
    JMLR 2005 (their covariance); Diaz, Epperly, Frangella, Tropp and Webber 2023 (preconditioner).
    """
    network = single_output(as_network(network, "network", solve, **architecture), solve)
    ridge, seed = check_number("ridge", ridge), check_whole("seed", seed, 0)
    if ridge <= 0:
        raise InputError(f"Expected `ridge` to be above 0, got {ridge:g}; 1e-6 of the mean kernel is small")
    tolerance, most = check_fits(check_number("tolerance", tolerance)), check_whole("max_iterations", max_iterations, 1)
    check_callable("on_progress", on_progress)
    overwrite = check_flag("overwrite", overwrite)
    if dtype is not None:
        check_option("dtype", dtype, DTYPES)
    team, report = Team(mesh), on_progress or (lambda task, done, total: None)
    path = None if out is None else as_path("out", out).resolve()
    with together():
        rows = rows_of(network, x, y, dtype)
        test = checked_test(x_test, rows)
        test_rows = 0 if test is None else len(test)
        made = _planned(rows, test_rows, kind, method, landmarks, memory_budget, team)
        if team.several:
            # Before any work, since what processes do together depends on it.
            options = {**describe_network(network), "kind": kind, "method": made.method, "ridge": ridge, "seed": seed}
            options |= {"dtype": str(rows.dtype), "landmarks": made.landmarks, "candidates": made.candidates}
            options |= {"rows": rows.count, "shape": rows.shape, "outputs": rows.columns, "out": str(path)}
            check_equal("a solution", {**options, "tolerance": tolerance, "max_iterations": most})
        sampled = _sampled(rows, made, team, seed, report)
        if rows.count is None or made.rows != sampled.total:
            made = _planned(rows, test_rows, kind, method, landmarks, memory_budget, team)
        kernel = BlockKernel(network, kind, rows.shape, rows.dtype, memory=made.budget // 4)
        settings = {
            **describe_network(network),
            "kind": kind,
            "method": made.method,
            "ridge": ridge,
            "seed": seed,
            "dtype": str(rows.dtype),
            "rows": sampled.total,
            "landmarks": made.landmarks,
            "candidates": len(sampled.x),
            "data": sampled.digest,
        }
        if test is not None:
            settings["x_test"] = digest_of(test)
        if team.several:
            check_equal("a solution", {"test": settings.get("x_test"), "data": [sampled.digest, sampled.drawn()]})
        with opened(path, SOLUTION, settings, overwrite, team) as store:
            # Iterations that ended too early go on where more of them, or a larger residual, are allowed now.
            limits = tolerance, most
            if (found := store.load("solution")) is not None and not _goes_on(found, *limits):
                return _warned(_read(found, network, rows, kind, ridge), tolerance)
            if made.method == "landmarks":
                m, block = made.landmarks, made.block
                result = solve_by_landmarks(team, kernel, rows, sampled, test, ridge, m, block, seed, store, report)
            else:
                assert isinstance(rows, ArrayRows)
                inputs, targets = rows.whole()
                if made.method == "dense":
                    result = solve_dense(team, kernel, inputs, targets, test, ridge, seed, report)
                else:
                    m = made.landmarks
                    result = solve_by_iterations(
                        team, kernel, inputs, targets, test, sampled, ridge, m, *limits, seed, store, report
                    )
            store.save("solution", {**_written(result), "limits": np.array(limits)})
            if result.residual <= tolerance:
                store.remove("iteration")
    return _warned(result, tolerance)


def _goes_on(found: dict[str, np.ndarray], tolerance: float, most: int) -> bool:
    """Whether the iterations of a solution on disk ended above the tolerance, and other limits are set now."""
    above = str(found["method"]) == "iterative" and float(found["residual"]) > tolerance
    return above and found["limits"].tolist() != [tolerance, most]


def _warned(result: Solution, tolerance: float) -> Solution:
    if result.method == "iterative" and result.residual > tolerance:
        warn(
            f"the iterations end with the relative residual {result.residual:.1e}, above {tolerance:.1e}, after "
            f"{result.iterations}; raise `ridge`, `landmarks` or `max_iterations`, or pass inputs of float64",
            NumericalWarning,
        )
    check_variances(Uncertain(result.posterior, result.variance_errors), result.method, result.basis.dtype)
    return result


def _planned(
    rows: Rows, test_rows: int, kind: str, method: str, landmarks: int | None, memory_budget: int | str, team: Team
) -> Plan:
    streamed = not isinstance(rows, ArrayRows)
    # The number of rows of batches is not known before the first pass; the memory for landmarks does not depend on it.
    count = rows.count or 2**31
    return planned(
        rows.network,
        count,
        rows.shape,
        rows.columns,
        test_rows,
        kind,
        method,
        landmarks,
        memory_budget,
        team,
        rows.dtype,
        streamed,
    )


def _sampled(rows: Rows, made: Plan, team: Team, seed: int, report: Callable[[str, int, int], None]) -> Sampled:
    """Draws the candidates for landmarks, and the rows held out."""
    share = _HELD_OUT if made.method == "landmarks" else 0.0
    # The dense method needs no candidates. One row keeps the arrays from being empty.
    candidates = max(1, made.candidates)
    report("sample", 0, 1)
    # Exact methods need all rows in every process, so that each recognizes all.
    found = rows.sampled(candidates, share, _MOST_HELD_OUT, seed, team.several and made.method == "landmarks")
    report("sample", 1, 1)
    return found


def _written(result: Solution) -> dict[str, Any]:
    """Returns the arrays of a solution's file. Inputs of exact solutions are not among them; the call has them."""
    arrays: dict[str, Any] = {name: getattr(result, name) for name in _NUMBERS}
    arrays |= {"method": result.method, "approximated": result.approximated, "rows": result.rows}
    arrays |= {"coefficients": result.coefficients}
    arrays |= {f"seconds {name}": value for name, value in result.seconds.items()}
    if result.approximated:
        arrays["basis"] = result.basis
    if (posterior := result.posterior) is not None:
        arrays |= {"test_mean": posterior.mean, "test_covariance": posterior.covariance}
        arrays["test_variance_errors"] = result.variance_errors
    if (held := result.held_out) is not None:
        accuracy = np.nan if held.accuracy is None else held.accuracy
        arrays["held_out"] = np.array([held.rows, held.rmse, held.rmse_std, accuracy])
    return arrays


def _read(found: dict[str, np.ndarray], network: Network, rows: Rows, kind: str, ridge: float) -> Solution:
    """Returns the solution in a file."""
    if "basis" in found:
        basis = found["basis"]
    else:
        assert isinstance(rows, ArrayRows)
        basis, _ = rows.whole()
    held_out = None
    if "held_out" in found:
        count, rmse, std, accuracy = found["held_out"].tolist()
        held_out = HeldOut(int(count), rmse, std, None if np.isnan(accuracy) else accuracy)
    posterior = None
    if "test_mean" in found:
        posterior = Posterior(found["test_mean"], found["test_covariance"], kind=kind)
    seconds = {name.partition(" ")[2]: float(v) for name, v in found.items() if name.startswith("seconds ")}
    numbers: dict[str, Any] = {name: found[name].item() for name in _NUMBERS}
    return Solution(
        method=str(found["method"]),
        kind=kind,
        ridge=ridge,
        network=network,
        rows=int(found["rows"]),
        basis=basis,
        coefficients=found["coefficients"],
        approximated=str(found["approximated"]),
        held_out=held_out,
        posterior=posterior,
        variance_errors=found.get("test_variance_errors"),
        seconds=seconds,
        **numbers,
    )
