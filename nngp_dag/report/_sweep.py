"""Whole spaces of architectures: kernels and spectra of many DAGs on the same data, one row each."""

import contextlib
import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.architecture import Architecture, Network, as_network
from nngp_dag.architecture.named import Given, named
from nngp_dag.errors import InputError, NngpDagError, as_path, check_callable, shown
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import IMAGE_READOUTS, check_flag, check_option
from nngp_dag.kernels._gram import bytes_of
from nngp_dag.kernels.batch import kernels_of_classes
from nngp_dag.kernels.inputs import DTYPES, check_inputs, real_array
from nngp_dag.report.sweep_classes import KernelSpaces, Options, is_alone, is_quadrature, one_kernel, operations_of
from nngp_dag.report.sweep_files import SweepDirectory
from nngp_dag.report.sweep_table import Row, bounds_of, class_fields, spectra_of, table_of

if TYPE_CHECKING:
    import pandas

Progress = Callable[[str, int, int], None]

# Kernels that are evaluated at once, at most; more gain nothing.
_MOST_KERNELS = 128
# As in `nngp_dag.gram`, for the interpreter, JAX and its compiler.
_RESERVE = 512 * 2**20


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
    spaces = KernelSpaces(common, data)
    classes: dict[str, Network] = {}
    for row in rows:
        if row.network is not None:
            row.kernel_class, row.reason = spaces.classify(row.network)
            if row.kernel_class:
                classes.setdefault(row.kernel_class, row.network)
    if resume and any(is_quadrature(op) for network in classes.values() for op in operations_of(network)):
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
    directory = None if out is None else SweepDirectory(as_path("out", out), class_fields(bounds))
    check_callable("on_progress", on_progress)
    report = on_progress or (lambda task, done, total: None)
    with contextlib.ExitStack() as stack:
        found: dict[str, dict[str, Any]] = {}
        if directory is not None:
            found = stack.enter_context(directory.opened(settings, resume=resume, overwrite=overwrite))
        known = frozenset(found)
        alone = {key for key, network in classes.items() if is_alone(network)}

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
                yield key, one_kernel(classes[key], data)

        done = sum(key in known for key in classes)
        report("kernels and spectra", done, len(classes))
        for key, matrices in pairs():
            if key in known:
                continue
            result = {"reason": matrices} if isinstance(matrices, str) else spectra_of(matrices)
            if bounds:
                result |= bounds_of(classes[key], data)
            found[key] = result
            if directory is not None:
                directory.add(key, result)
            done += 1
            report("kernels and spectra", done, len(classes))

        table = table_of(rows, found, bounds)
        if directory is not None:
            directory.finish(table)
    return table


def _common(architecture: Architecture) -> tuple[Network, Options]:
    """Returns a network of a single node, and the options of all networks; they are checked."""
    options: Architecture = {**architecture}
    # That needs images, which a single node may be without.
    image_readout = options.pop("image_readout", "flatten")
    check_option("image_readout", image_readout, IMAGE_READOUTS)
    network = as_network(Dag.from_code("1"), "network", sweep, **options)
    return network, tuple((network.kernel_options | {"image_readout": image_readout}).items())


def _rows(networks: Iterable[tuple[str, str, Given]], architecture: Architecture) -> Iterator[Row]:
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
        yield Row(name, network, reason=reason)


def _inputs(x: ArrayLike | Sequence[Any], dtype: str, network: Network) -> np.ndarray:
    if isinstance(x, (list, tuple)) and any(np.ndim(part) > 1 for part in x):
        raise InputError("Expected `x` to be one array, which all inputs of a graph read, got a list; pass one of them")
    given = real_array("x", x)
    check_inputs("x", given, network, dtype)
    return np.asarray(given).astype(dtype)


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
