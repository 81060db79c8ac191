"""Whole spaces of architectures: kernels and spectra of many DAGs on the same data, one row each."""

import contextlib
import hashlib
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.activations import Quadrature, get_activation
from nngp_dag.architecture import Network, build_network
from nngp_dag.architecture.equivalence import KernelClasses
from nngp_dag.errors import GraphError, InputError, NngpDagError, NumericalWarning, as_path, check_callable, shown
from nngp_dag.graph import Dag, Dense
from nngp_dag.graph.operations import IMAGE_READOUTS, check_flag, check_option
from nngp_dag.kernels import kernel
from nngp_dag.kernels._gram import bytes_of
from nngp_dag.kernels._kernel import make_rules
from nngp_dag.kernels.batch import kernels_of_classes, new_kernel_classes
from nngp_dag.kernels.dual import dual
from nngp_dag.kernels.inputs import DTYPES, check_inputs, real_array
from nngp_dag.report.sweep_files import SweepDirectory
from nngp_dag.storage import claimed
from nngp_dag.theory import lambda_min_bracket, spectrum

if TYPE_CHECKING:
    import pandas

Progress = Callable[[str, int, int], None]

KERNELS = ("nngp", "ntk")
# Of each kernel.
SPECTRUM = ("lambda_min", "lambda_max", "condition_number", "trace", "floor", "resolved")
BOUNDS = ("lower", "upper")
# Kernels that are evaluated at once, at most; more gain nothing.
_MOST_KERNELS = 128
# As in `nngp_dag.gram`, for the interpreter, JAX and its compiler.
_RESERVE = 512 * 2**20


@dataclass
class _Row:
    """A DAG of the list: what it is called, and its class of equal kernels or why it has none."""

    name: str
    dag: Dag | None = None
    kernel_class: str = ""
    reason: str = ""


def sweep(
    dags: Iterable[Dag | str] | Mapping[str, Dag | str],
    x: ArrayLike | Sequence[Any],
    *,
    readout: bool = True,
    bounds: bool = False,
    dtype: str = "float64",
    memory_budget: int | str = "4 GiB",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    **options: Any,
) -> "pandas.DataFrame":
    """Computes exact kernels and their extreme eigenvalues for a whole list of DAGs.

    DAGs of equal normal form, up to nodes with equal kernels, have equal kernels: computed once, and reported as
    one `kernel_class`. What several kernels share, down to single nodes, is evaluated once too, and all of it by one
    compiled program. Networks with convolutions, pooling or `Quadrature` are evaluated one by one.

    Memory: besides the inputs, 34 N^2 bytes, and up to 8 MiB, for each of the kernels at once, whose number follows
    from `memory_budget`, and 512 MiB for JAX and its compiler. Not counted are large spectra, which take what
    `nngp_dag.spectrum` says, `bounds`, and covariances of pixels.

    Whatever the order of the DAGs and the number of kernels at once, results agree to rounding: eigenvalues to 1e-12 of
    the largest one. (Two jumps, of `sign` or a step, turn rounding of the inputs into its root.)

    Args:
      dags: DAGs, or texts that `Dag.parse` reads, in a list, or by name. One that is no valid DAG, or has no kernel,
        gets a row that says why.
      x: Inputs, (N, ...).
      readout: Whether kernels are those after the readout, or those of X(H), which the rate bound uses.
      bounds: Whether to add columns `lower` and `upper` from `lambda_min_bracket`, where it applies (ReLU, fully
        connected, no biases, NTK parameterization), else NaN. That costs as much again.
      dtype: Precision of the kernels, "float64" or "float32"; spectra are in float64.
      memory_budget: Bytes, or a text such as "6 GiB".
      out: Directory for the results: sweep.csv, sweep.parquet, classes.csv and config.json; None writes nothing.
      resume: Go on with the sweep in `out`: kernel classes that stand in its classes.csv are not computed again. Data,
        options and versions must be the same, the DAGs need not; where they and `memory_budget` are, so are the bits.
      overwrite: Replace the sweep in `out`.
      on_progress: Called with (what is done, kernel classes done, classes).
      **options: Those of `nngp_dag.kernel`: `activation`, `order`, `layer`, `aggregation`, `parameterization`, ...

    Returns:
      A table with a row for each DAG, in the given order: `dag` (its name), `code`, `valid`, `reason`, `num_paths`,
      `effective_depth`, `effective_width`, `kernel_class`, `class_size`, and for `nngp_` and `ntk_`: `lambda_min`,
      `lambda_max`, `condition_number`, `trace`, `floor`, `resolved`. A smallest eigenvalue that the precision does not
      resolve is NaN, its condition number infinite.

    Raises:
      InputError: The inputs, an option or the budget does not fit.
      OutputError: `out` holds something else, cannot be written, or another process writes it.
      CheckpointError: There is no sweep to resume, or one of other data, options or versions, or a damaged one.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(6, 10))
      >>> table = nd.sweep(["2_02_002", "2_21_112", "0_00_000"], x)
      >>> list(table.valid), table.reason[2].split(";")[0][:35]
      ([True, True, False], 'Expected a path from node 0 to the ')
      >>> alone = nd.spectrum(nd.kernel(nd.Dag.from_code("2_02_002"), x).ntk).lambda_min
      >>> bool(np.isclose(table.ntk_lambda_min[0], alone, rtol=1e-12))
      True

    Reference: Chen, Huang, Wang, "No Free Lunch" in Neural Architectures?, AutoML 2023 (ranking spaces by lambda_min).
    """
    if isinstance(dags, (str, Dag)):
        raise InputError(
            f"Expected `dags` to be a list of DAGs, or a dict of them by name, got {shown(dags)}; pass [{shown(dags)}]"
        )
    if not isinstance(dags, Iterable) or getattr(getattr(dags, "dtype", None), "kind", "O") in "biufc":
        raise InputError(
            f"Expected `dags` to be a list of DAGs, or a dict of them by name, got {shown(dags)}; the graphs come "
            "first, and then the data"
        )
    check_option("dtype", dtype, DTYPES)
    readout, bounds = check_flag("readout", readout), check_flag("bounds", bounds)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    if resume and out is None:
        raise InputError("Expected `out` to name the sweep to resume, got None; pass its folder")
    if "get" in options:
        raise InputError("Expected options of the network, got `get`; leave it out, a sweep takes both kernels")
    parameterization, width = options.pop("parameterization", "ntk"), options.pop("width", None)
    rules = make_rules(parameterization, width)
    image_readout = options.pop("image_readout", "flatten")
    check_option("image_readout", image_readout, IMAGE_READOUTS)
    # What would be wrong with every row is an error.
    plain = build_network(Dag.from_code("1"), **options)
    for op in (plain.layer, plain.stem_op):
        get_activation(op.activation)
    data = _inputs(x, dtype, plain)
    batch = _batch(bytes_of(memory_budget), data)

    rows = list(_rows(dags))
    kernel_classes, classes = new_kernel_classes(), {}
    networks: dict[Dag, tuple[str, str]] = {}
    for row in rows:
        if row.dag is None:
            continue
        if row.dag not in networks:
            networks[row.dag] = _classify(row.dag, kernel_classes, options, readout, image_readout, data)
        row.kernel_class, row.reason = networks[row.dag]
        if row.kernel_class:
            classes.setdefault(row.kernel_class, row.dag)
    if not rows:
        raise InputError("Expected at least one DAG to sweep, got none")
    if resume and any(_is_quadrature(op) for dag in classes.values() for op in _operations(dag, options)):
        raise InputError(
            "Expected activations that a file can name, got a `Quadrature`, whose function cannot be compared with "
            "that of the sweep before; leave out `resume`"
        )

    settings = {
        "options": {name: repr(value) for name, value in sorted(options.items())},
        "parameterization": parameterization,
        "width": None if width is None else int(width),
        "image_readout": image_readout,
        "readout": readout,
        "bounds": bounds,
        "dtype": dtype,
        "inputs": {"shape": list(data.shape), "sha256": hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()},
    }
    directory = None if out is None else SweepDirectory(as_path("out", out), _class_fields(bounds))
    check_callable("on_progress", on_progress)
    report = on_progress or (lambda task, done, total: None)
    found: dict[str, dict[str, Any]] = {}
    with contextlib.nullcontext() if directory is None else claimed(directory.path):
        if directory is not None:
            found = directory.prepare(settings, resume=resume, overwrite=overwrite)
        known = frozenset(found)
        alone = {digest for digest in classes if _is_alone(build_network(classes[digest], **options))}
        together = [digest for digest in classes if digest not in alone]

        def num_inputs(digest: str) -> int:
            return classes[digest].num_inputs

        def pairs() -> Iterator[tuple[str, Sequence[np.ndarray] | str]]:
            # Networks of several inputs have other scales; beside them the others would round otherwise.
            for _, listed in itertools.groupby(sorted(together, key=num_inputs), num_inputs):
                group = [*listed]
                if known.issuperset(group):
                    continue
                for stack in kernels_of_classes(
                    kernel_classes, group, plain, data, readout=readout, rules=rules, batch=batch, known=known
                ):
                    yield from zip(stack.digests, zip(stack.nngp, stack.ntk, strict=True), strict=True)
            for digest in (digest for digest in classes if digest in alone and digest not in known):
                yield (
                    digest,
                    _one_kernel(
                        classes[digest],
                        data,
                        readout=readout,
                        image_readout=image_readout,
                        parameterization=parameterization,
                        width=width,
                        **options,
                    ),
                )

        done = sum(digest in known for digest in classes)
        report("kernels and spectra", done, len(classes))
        for digest, matrices in pairs():
            if digest in known:
                continue
            result = {"reason": matrices} if isinstance(matrices, str) else _spectra(matrices)
            if bounds:
                result |= _bounds(classes[digest], data, readout, options, parameterization)
            found[digest] = result
            if directory is not None:
                directory.add(digest, result)
            done += 1
            report("kernels and spectra", done, len(classes))

        table = _table(rows, found, bounds)
        if directory is not None:
            directory.finish(table)
    return table


def _rows(dags: Iterable[Dag | str] | Mapping[str, Dag | str]) -> Iterator[_Row]:
    named: Any = dags.items() if isinstance(dags, Mapping) else ((str(dag), dag) for dag in dags)
    parsed: dict[str, Dag | str] = {}
    for name, given in named:
        if isinstance(given, str):
            if given not in parsed:
                try:
                    parsed[given] = Dag.parse(given)
                except GraphError as error:
                    parsed[given] = str(error)
            given = parsed[given]
            if isinstance(given, str):
                yield _Row(name, reason=given)
                continue
        if isinstance(given, Dag):
            yield _Row(name, given)
        else:
            yield _Row(name, reason=f"Expected a `Dag`, a code or a cell, got {shown(given)}")


def _inputs(x: ArrayLike | Sequence[Any], dtype: str, network: Network) -> np.ndarray:
    if isinstance(x, (list, tuple)) and any(np.ndim(part) > 1 for part in x):
        raise InputError("Expected `x` to be one array, which all inputs of a graph read, got a list; pass one of them")
    given = real_array("x", x)
    check_inputs("x", given, network, dtype)
    return np.asarray(given).astype(dtype)


def _classify(
    dag: Dag,
    kernel_classes: KernelClasses,
    options: Mapping[str, Any],
    readout: bool,
    image_readout: str,
    x: np.ndarray,
) -> tuple[str, str]:
    """Returns the class of a DAG's kernels, or why it has none."""
    try:
        network = build_network(dag, **options)
        for op in _operations(dag, options):
            get_activation(op.activation)
        if network.image_operations:
            check_inputs("x", x, network)
        elif image_readout != "flatten":
            raise GraphError(f"Expected convolutions or pooling with `image_readout` {image_readout!r}, got none")
        network.check_gaussian(input_is_gaussian=True, reads_out=readout)
        if len(dag.outputs) > 1:
            raise GraphError(f"Expected one output, got {len(dag.outputs)}; sweep a graph for each of them")
        if network.pools:
            return kernel_classes.digest_of_edges(network), ""
        digest = kernel_classes.add(network)
        if kernel_classes.largest_weight(digest) > float(np.finfo(x.dtype).max):
            raise GraphError(f"Expected multiplicities of skips whose squares {x.dtype} can hold, got larger ones")
        return digest, ""
    except NngpDagError as error:
        return "", str(error)


def _operations(dag: Dag, options: Mapping[str, Any]) -> tuple[Dense, ...]:
    network = build_network(dag, **options)
    return *network.weighted_operations, network.layer


def _is_quadrature(op: Dense) -> bool:
    return isinstance(get_activation(op.activation), Quadrature)


def _is_alone(network: Network) -> bool:
    """Whether a network is evaluated by itself."""
    operations = (*network.weighted_operations, network.layer)
    if network.image_operations or any(map(_is_quadrature, operations)):
        return True
    # Of an activation without a dual `kernel` says so.
    return any(dual.dispatch(type(get_activation(op.activation))) is dual.dispatch(object) for op in operations)


def _one_kernel(dag: Dag, x: np.ndarray, **options: Any) -> Sequence[np.ndarray] | str:
    """Returns both kernels, or why they cannot be trusted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NumericalWarning)
        try:
            k = kernel(dag, x, **options)
        except (NngpDagError, NumericalWarning) as error:
            return str(error)
    return np.asarray(k.nngp), np.asarray(k.ntk)


def _spectra(matrices: Sequence[np.ndarray]) -> dict[str, Any]:
    result: dict[str, Any] = {"reason": ""}
    with warnings.catch_warnings():
        # What is not resolved is marked as such.
        warnings.simplefilter("ignore", NumericalWarning)
        for name, matrix in zip(KERNELS, matrices, strict=True):
            try:
                s = spectrum(matrix)
            except InputError as error:
                # Of one kernel out of many.
                result["reason"] = str(error).replace("`matrix`", f"the {name.upper()}")
                continue
            values = (
                s.lambda_min if s.resolved else math.nan,
                s.lambda_max,
                s.condition_number,
                s.trace,
                s.floor,
                s.resolved,
            )
            result |= {f"{name}_{field}": value for field, value in zip(SPECTRUM, values, strict=True)}
    return result


def _bounds(
    dag: Dag, x: np.ndarray, readout: bool, options: Mapping[str, Any], parameterization: str
) -> dict[str, float]:
    known = {name: value for name, value in options.items() if name in ("order", "w_std", "layer", "aggregation")}
    others = {name: value for name, value in options.items() if name not in known}
    defaults = {"activation": "relu", "b_std": None, "stem": None}
    if parameterization != "ntk" or any(defaults.get(name, ...) != value for name, value in others.items()):
        return {}
    try:
        brackets = lambda_min_bracket(dag, x, readout=readout, **known)
    except NngpDagError:
        return {}
    return {f"{name}_{end}": getattr(getattr(brackets, name), end) for name in KERNELS for end in BOUNDS}


def _class_fields(bounds: bool) -> tuple[str, ...]:
    """Columns of what is known of a class."""
    fields = (*SPECTRUM, *(BOUNDS if bounds else ()))
    return "reason", *(f"{name}_{field}" for name in KERNELS for field in fields)


def _table(rows: Sequence[_Row], found: Mapping[str, Mapping[str, Any]], bounds: bool) -> "pandas.DataFrame":
    import pandas

    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.kernel_class] = sizes.get(row.kernel_class, 0) + 1
    facts: dict[Dag, tuple[Any, ...]] = {}
    records = []
    for row in rows:
        dag, result = row.dag, found.get(row.kernel_class, {})
        if dag is not None and dag not in facts:
            facts[dag] = str(dag), _number(dag.num_paths), dag.effective_depth, dag.effective_width
        code, *statistics = facts[dag] if dag is not None else ("", math.nan, math.nan, math.nan)
        reason = row.reason or result.get("reason", "")
        record = {"dag": row.name, "code": code, "valid": bool(row.kernel_class) and not reason, "reason": reason}
        record |= dict(zip(("num_paths", "effective_depth", "effective_width"), statistics, strict=True))
        record |= {
            "kernel_class": row.kernel_class[:16],
            "class_size": sizes[row.kernel_class] if row.kernel_class else 0,
        }
        for field in _class_fields(bounds)[1:]:
            record[field] = result.get(field, False if field.endswith("resolved") else math.nan)
        records.append(record)
    table = pandas.DataFrame.from_records(records)
    if not (table.num_paths > 2**53).any():
        table["num_paths"] = table.num_paths.astype("Int64")
    return table


def _number(count: int) -> float:
    """An exact count as float64."""
    try:
        return float(count)
    except OverflowError:
        return math.inf


def _batch(budget: int, x: np.ndarray) -> int:
    """How many kernels fit into the budget at once."""
    # Two batches, this one and the one before; in either kernel what a block of rows holds; a copy for its spectrum.
    each = x.dtype.itemsize * (4 * len(x) ** 2 + 2 * min(len(x) ** 2, 1 << 19)) + 8 * len(x) ** 2 // 4
    fitting = (budget - _RESERVE) // each
    if fitting < 1:
        raise InputError(
            f"Expected `memory_budget` to hold the kernels of {len(x)} inputs, {each + _RESERVE:,} bytes, got "
            f"{budget:,}; raise it or take fewer inputs"
        )
    return min(fitting, _MOST_KERNELS)
