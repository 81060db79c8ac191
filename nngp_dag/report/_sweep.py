"""Whole spaces of architectures: kernels and spectra of many DAGs on the same data, one row each."""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.activations import Quadrature, get_activation
from nngp_dag.architecture import Architecture, Network, as_network
from nngp_dag.architecture.equivalence import KernelClasses
from nngp_dag.architecture.named import Given, named
from nngp_dag.errors import GraphError, InputError, NngpDagError, NumericalWarning, as_path, check_callable, shown
from nngp_dag.graph import Dag, Dense
from nngp_dag.graph.operations import IMAGE_READOUTS, check_flag, check_option
from nngp_dag.kernels import kernel
from nngp_dag.kernels._gram import bytes_of
from nngp_dag.kernels.batch import kernels_of_classes, new_kernel_classes
from nngp_dag.kernels.dual import dual
from nngp_dag.kernels.inputs import DTYPES, check_inputs, real_array
from nngp_dag.report.sweep_files import SweepDirectory
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
    """A network of the list: what it is called, and its class of equal kernels or why it has none."""

    name: str
    network: Network | None = None
    kernel_class: str = ""
    reason: str = ""


def sweep(
    networks: Iterable[Given] | Mapping[str, Given],
    x: ArrayLike | Sequence[Any],
    *,
    bounds: bool = False,
    dtype: str = "float64",
    memory_budget: int | str = "4 GiB",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress | None = None,
    **architecture: Unpack[Architecture],
) -> "pandas.DataFrame":
    """Computes exact kernels and their extreme eigenvalues for a whole list of networks.

    Graphs of equal normal form, up to nodes with equal kernels, have equal kernels: computed once, and reported as
    one `kernel_class`. What several kernels share, down to single nodes, is evaluated once too, and all of it by one
    compiled program. Networks with convolutions, pooling or `Quadrature` are evaluated one by one.

    Memory: besides the inputs, 34 N^2 bytes, and up to 8 MiB, for each of the kernels at once, whose number follows
    from `memory_budget`, and 512 MiB for JAX and its compiler. Not counted are large spectra, which take what
    `nngp_dag.spectrum` says, `bounds`, and covariances of pixels.

    Whatever the order of the networks and the number of kernels at once, results agree to rounding: eigenvalues to
    1e-12 of the largest one. (Two jumps, of `sign` or a step, turn rounding of the inputs into its root.)

    Args:
      networks: Networks, or their graphs as `nngp_dag.kernel` takes them, in a list, or by name. One that is no valid
        graph, or has no kernel, gets a row that says why.
      x: Inputs, (N, ...).
      bounds: Whether to add columns `lower` and `upper` from `lambda_min_bracket`, where it applies (ReLU, fully
        connected, no biases, NTK parameterization), else NaN. That costs as much again.
      dtype: Precision of the kernels, "float64" or "float32"; spectra are in float64.
      memory_budget: Bytes, or a text such as "6 GiB".
      out: Directory for the results: sweep.csv, sweep.parquet, classes.csv and config.json; None writes nothing.
      resume: Go on with the sweep in `out`: kernel classes that stand in its classes.csv are not computed again. Data,
        options and versions must be the same, the networks need not; where they and `memory_budget` are, so are the
        bits.
      overwrite: Replace the sweep in `out`.
      on_progress: Called with (what is done, kernel classes done, classes).
      **architecture: Options of all networks, see `nngp_dag.kernel`: `activation`, `order`, `layer`, `aggregation`,
        `readout` (without it kernels are those of X(H), which the rate bound uses), ...

    Returns:
      A table with a row for each network, in the given order: `dag` (its name), `code`, `valid`, `reason`, `num_paths`,
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
    if isinstance(networks, (str, Dag, Network)):
        raise InputError(
            f"Expected `networks` to be a list of graphs or networks, or a dict by name, got {shown(networks)}; "
            f"pass [{shown(networks)}]"
        )
    given = named(networks)
    check_option("dtype", dtype, DTYPES)
    bounds = check_flag("bounds", bounds)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    if resume and out is None:
        raise InputError("Expected `out` to name the sweep to resume, got None; pass its folder")
    # What would be wrong with every row is an error.
    plain, common = _common(architecture)
    data = _inputs(x, dtype, plain)
    batch = _batch(bytes_of(memory_budget), data)

    rows = list(_rows(given, architecture))
    if not rows:
        raise InputError("Expected at least one network to sweep, got none")
    spaces = _Spaces(common, data)
    classes: dict[str, Network] = {}
    for row in rows:
        if row.network is not None:
            row.kernel_class, row.reason = spaces.classify(row.network)
            if row.kernel_class:
                classes.setdefault(row.kernel_class, row.network)
    if resume and any(_is_quadrature(op) for network in classes.values() for op in _operations(network)):
        raise InputError(
            "Expected activations that a file can name, got a `Quadrature`, whose function cannot be compared with "
            "that of the sweep before; leave out `resume`"
        )

    settings = {
        "options": {name: repr(value) for name, value in common},
        "bounds": bounds,
        "dtype": dtype,
        "inputs": {"shape": list(data.shape), "sha256": hashlib.sha256(np.ascontiguousarray(data).data).hexdigest()},
    }
    directory = None if out is None else SweepDirectory(as_path("out", out), _class_fields(bounds))
    check_callable("on_progress", on_progress)
    report = on_progress or (lambda task, done, total: None)
    with contextlib.ExitStack() as stack:
        found: dict[str, dict[str, Any]] = {}
        if directory is not None:
            found = stack.enter_context(directory.opened(settings, resume=resume, overwrite=overwrite))
        known = frozenset(found)
        alone = {key for key, network in classes.items() if _is_alone(network)}

        def pairs() -> Iterator[tuple[str, Sequence[np.ndarray] | str]]:
            for kernel_classes, group in spaces.groups(key for key in classes if key not in alone):
                if known.issuperset(group.values()):
                    continue
                network = classes[next(iter(group.values()))]
                for stack in kernels_of_classes(
                    kernel_classes,
                    list(group),
                    network,
                    data,
                    batch=batch,
                    known=frozenset(digest for digest, key in group.items() if key in known),
                ):
                    for digest, *matrices in zip(stack.digests, stack.nngp, stack.ntk, strict=True):
                        yield group[digest], matrices
            for key in (key for key in classes if key in alone and key not in known):
                yield key, _one_kernel(classes[key], data)

        done = sum(key in known for key in classes)
        report("kernels and spectra", done, len(classes))
        for key, matrices in pairs():
            if key in known:
                continue
            result = {"reason": matrices} if isinstance(matrices, str) else _spectra(matrices)
            if bounds:
                result |= _bounds(classes[key], data)
            found[key] = result
            if directory is not None:
                directory.add(key, result)
            done += 1
            report("kernels and spectra", done, len(classes))

        table = _table(rows, found, bounds)
        if directory is not None:
            directory.finish(table)
    return table


# `Network.kernel_options`, hashable.
Options = tuple[tuple[str, Any], ...]


def _common(architecture: Architecture) -> tuple[Network, Options]:
    """Returns a network of a single node, and the options of all networks; they are checked."""
    options: Architecture = {**architecture}
    # That needs images, which a single node may be without.
    image_readout = options.pop("image_readout", "flatten")
    check_option("image_readout", image_readout, IMAGE_READOUTS)
    network = as_network(Dag.from_code("1"), "network", sweep, **options)
    return network, tuple((network.kernel_options | {"image_readout": image_readout}).items())


def _rows(networks: Iterable[tuple[str, str, Given]], architecture: Architecture) -> Iterator[_Row]:
    known: dict[Hashable, tuple[Network | None, str]] = {}
    for name, _, given in networks:
        # A stem that is given stays, and equal networks without one get that of another layer.
        key = given, getattr(given, "stem", None)
        if key not in known:
            try:
                known[key] = as_network(given, **architecture), ""
            except NngpDagError as error:
                known[key] = None, str(error)
        network, reason = known[key]
        yield _Row(name, network, reason=reason)


def _inputs(x: ArrayLike | Sequence[Any], dtype: str, network: Network) -> np.ndarray:
    if isinstance(x, (list, tuple)) and any(np.ndim(part) > 1 for part in x):
        raise InputError("Expected `x` to be one array, which all inputs of a graph read, got a list; pass one of them")
    given = real_array("x", x)
    check_inputs("x", given, network, dtype)
    return np.asarray(given).astype(dtype)


class _Spaces:
    """Classes of networks with equal kernels, among those that agree in all but the graph."""

    def __init__(self, common: Options, x: np.ndarray) -> None:
        """`common` are the options of the sweep, `x` the inputs."""
        self._common, self._x = common, x
        self._of_options: dict[Options, KernelClasses] = {}
        self._known: dict[Network, tuple[str, str]] = {}
        # Of a key: what its networks agree in, and their digest there.
        self._places: dict[str, tuple[Options, int, str]] = {}

    def classify(self, network: Network) -> tuple[str, str]:
        """Returns the key of the class of a network's kernels, or why it has none."""
        if network not in self._known:
            try:
                self._known[network] = self._key(network), ""
            except NngpDagError as error:
                self._known[network] = "", str(error)
        return self._known[network]

    def _key(self, network: Network) -> str:
        if network.image_operations:
            check_inputs("x", self._x, network)
        network.check_gaussian(input_is_gaussian=True, reads_out=True)
        if len(network.dag.outputs) > 1:
            raise GraphError(f"Expected one output, got {len(network.dag.outputs)}; sweep a graph for each of them")
        options = tuple(network.kernel_options.items())
        kernel_classes = self._of_options.setdefault(options, new_kernel_classes())
        if network.pools:
            digest = kernel_classes.digest_of_edges(network)
        else:
            digest = kernel_classes.add(network)
            if kernel_classes.largest_weight(digest) > float(np.finfo(self._x.dtype).max):
                raise GraphError(f"Expected multiplicities of skips whose squares {self._x.dtype} can hold, got larger")
        key = digest if options == self._common else hashlib.sha256(f"{digest} {options!r}".encode()).hexdigest()
        self._places[key] = options, network.dag.num_inputs, digest
        return key

    def groups(self, keys: Iterable[str]) -> Iterator[tuple[KernelClasses, dict[str, str]]]:
        """Yields what is evaluated together: classes, and {digest: key} of those that are wanted.

        Networks of several inputs have other scales; beside them the others would round otherwise.
        """
        found: dict[tuple[Options, int], dict[str, str]] = {}
        for key in keys:
            options, num_inputs, digest = self._places[key]
            found.setdefault((options, num_inputs), {})[digest] = key
        order = list(self._of_options)
        for (options, _), group in sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
            yield self._of_options[options], group


def _operations(network: Network) -> tuple[Dense, ...]:
    return *network.weighted_operations, network.layer


def _is_quadrature(op: Dense) -> bool:
    return isinstance(get_activation(op.activation), Quadrature)


def _is_alone(network: Network) -> bool:
    """Whether a network is evaluated by itself."""
    operations = _operations(network)
    if network.image_operations or any(map(_is_quadrature, operations)):
        return True
    # Of an activation without a dual `kernel` says so.
    return any(dual.dispatch(type(get_activation(op.activation))) is dual.dispatch(object) for op in operations)


def _one_kernel(network: Network, x: np.ndarray) -> Sequence[np.ndarray] | str:
    """Returns both kernels, or why they cannot be trusted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NumericalWarning)
        try:
            k = kernel(network, x)
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


def _bounds(network: Network, x: np.ndarray) -> dict[str, float]:
    """Returns brackets on lambda_min, or nothing where they do not apply."""
    try:
        brackets = lambda_min_bracket(network, x)
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
        dag, result = row.network and row.network.dag, found.get(row.kernel_class, {})
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
