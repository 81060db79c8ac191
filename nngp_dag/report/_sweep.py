"""`sweep`: kernels and spectra of many networks on the same data, a table with one row each."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag import sharing
from nngp_dag.architecture import Architecture, Network, as_network
from nngp_dag.architecture.named import Given, named
from nngp_dag.distributed import first_does
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

# Largest number of kernels evaluated at once; more are not faster.
_MOST_KERNELS = 128
# Bytes for the interpreter, JAX and its compiler, the same as in `nngp_dag.gram`.
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

    Networks with equal kernels form a class, and its kernel is computed once. The classes are found by the normal forms
    of the graphs, where nodes with equal kernels count as equal. Parts that several kernels share, down to single
    nodes, are also evaluated once, all by one compiled program. Networks with convolutions, pooling or `Quadrature` are
    evaluated one by one.

    The number of kernels evaluated at once follows from `memory_budget`. Each takes 34 N^2 bytes and up to 8 MiB; JAX
    and its compiler take 512 MiB. The budget does not include the inputs, large spectra (see `nngp_dag.spectrum`),
    `bounds`, and covariances of pixels.

    Results do not depend on the order of the networks or on the number of kernels at once, up to rounding. Eigenvalues
    agree to 1e-12 of the largest one. Networks with two layers whose activation jumps (`sign` or a step) are an
    exception. They turn a rounding error of eps in the inputs into one of sqrt(eps).

    Where `jax.distributed` connects several processes, all of them must call this function, with equal arguments. They
    share the classes, on the devices of each, and all return the whole table. `out` must then be a folder that all of
    them see. Process 0 writes the files, and the rows of others are in files part-NUMBER-classes.csv until the end. A
    sweep of which a process was killed resumes on any number of processes.

    Args:
      networks: Networks, or their graphs in a form that `nngp_dag.kernel` takes, in a list or by name. A network that
        is not valid, or has no kernel, has a row with the reason, and so has a traced model that is no network.
      x: Inputs, (N, ...).
      bounds: Whether to add columns `lower` and `upper` from `lambda_min_bracket`. They are NaN unless a network is
        fully connected with ReLU, without biases, in the NTK parameterization. This about doubles the time.
      dtype: Precision of the kernels, "float64" or "float32"; spectra are computed in float64.
      memory_budget: Memory in bytes, or a text such as "6 GiB".
      out: Directory for sweep.csv, sweep.parquet, classes.csv and config.json; None writes nothing.
      resume: Whether to resume the sweep in `out`, without computing the classes in its classes.csv again. Data,
        options and versions must be the same; the networks may differ. If they, `memory_budget` and the number of
        processes are the same, the results are equal in every bit to those of an uninterrupted sweep.
      overwrite: Whether to replace the sweep in `out`.
      on_progress: Function that is called with (name of the stage, classes done, classes in all).
      **architecture: Options of all networks, see `nngp_dag.kernel`: `activation`, `order`, `layer`, `aggregation`,
        `readout`, ... With `readout=False` kernels are those of X(H), which the rate bound uses.

    Returns:
      A table with a row for each network, in the given order. Its columns are `dag` (the name), `code`, `valid`,
      `reason`, `num_paths`, `effective_depth`, `effective_width`, `kernel_class` and `class_size`. Further columns are
      `lambda_min`, `lambda_max`, `condition_number`, `trace`, `floor` and `resolved`, each once with the prefix `nngp_`
      and once with `ntk_`. Where the smallest eigenvalue is not resolved, it is NaN and the condition number infinite.

    Raises:
      InputError: The inputs, an option or the budget is out of range.
      OutputError: `out` holds other files, cannot be written, or another process writes it.
      CheckpointError: There is no sweep to resume, it has other data, options or versions, or it is damaged.
      DistributedError: Another process failed, or ended.

    Examples:
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
    # An option that is wrong for every network raises an error here, instead of a reason in every row.
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
    named_classes = json.dumps([[row.name, row.kernel_class] for row in rows]).encode()
    sharing.check_equal("a sweep", settings | {"networks": hashlib.sha256(named_classes).hexdigest()})
    with contextlib.ExitStack() as stack:
        found = {} if directory is None else _opened(directory, stack, settings, resume, overwrite)
        known = frozenset(found)
        done = sum(key in known for key in classes)
        alone = {key for key, network in classes.items() if is_alone(network)}
        # The classes that all processes together compute, in the order of a single process.
        order: list[str] = []
        computed: dict[str, dict[str, Any]] = {}
        report("kernels and spectra", done, len(classes))
        with sharing.at_work(lambda new: report("kernels and spectra", done + new, len(classes))) as crew:
            if directory is not None and crew.process > 0:
                directory.share(crew.process)

            def pairs() -> Iterator[tuple[str, Sequence[np.ndarray] | str]]:
                for kernel_classes, group in spaces.groups(key for key in classes if key not in alone):
                    if known.issuperset(group.values()):
                        continue
                    network = classes[next(iter(group.values()))]

                    def takes(digests: Sequence[str], group: Mapping[str, str] = group) -> bool:
                        order.extend(group[digest] for digest in digests)
                        return crew.takes_next()

                    for stack in kernels_of_classes(
                        kernel_classes,
                        list(group),
                        network,
                        data,
                        batch=min(batch, -(-len(group) // crew.processes)),
                        known=frozenset(digest for digest, key in group.items() if key in known),
                        takes=takes,
                    ):
                        for digest, *matrices in zip(stack.digests, stack.nngp, stack.ntk, strict=True):
                            yield group[digest], matrices
                for key in (key for key in classes if key in alone and key not in known):
                    order.append(key)
                    if crew.takes_next():
                        yield key, one_kernel(classes[key], data)

            for key, matrices in pairs():
                if key in known:
                    continue
                result = {"reason": matrices} if isinstance(matrices, str) else spectra_of(matrices)
                if bounds:
                    result |= bounds_of(classes[key], data)
                computed[key] = result
                if directory is not None:
                    directory.add(key, result)
                crew.finished()

        if crew.processes > 1:
            computed = {key: row for part in sharing.gather_json(computed) for key, row in part.items()}
        found |= {key: computed[key] for key in order if key not in known}
        table = table_of(rows, found, bounds)

        def finish() -> None:
            assert directory is not None
            if crew.processes > 1:
                directory.merge(found)
            directory.finish(table)

        if directory is not None:
            first_does(finish)
    return table


def _opened(
    directory: SweepDirectory,
    stack: contextlib.ExitStack,
    settings: Mapping[str, Any],
    resume: bool,
    overwrite: bool,
) -> dict[str, dict[str, Any]]:
    """Opens the folder of a sweep in process 0, and returns its rows by class in all processes."""
    found: dict[str, dict[str, Any]] = {}

    def opened() -> None:
        found.update(stack.enter_context(directory.opened(settings, resume=resume, overwrite=overwrite)))

    first_does(opened)
    return found if sharing.place()[1] == 1 else sharing.gather_json(found)[0]


def _common(architecture: Architecture) -> tuple[Network, Options]:
    """Returns a network of a single node, and the checked options of all networks."""
    options: Architecture = {**architecture}
    # An image readout needs images, which a network of a single node does not have.
    image_readout = options.pop("image_readout", "flatten")
    check_option("image_readout", image_readout, IMAGE_READOUTS)
    network = as_network(Dag.from_code("1"), "network", sweep, **options)
    return network, tuple((network.kernel_options | {"image_readout": image_readout}).items())


def _rows(networks: Iterable[tuple[str, str, Given]], architecture: Architecture) -> Iterator[Row]:
    known: dict[Hashable, tuple[Network | None, str]] = {}
    for name, _, given in networks:
        # `Network` compares equal with its default stem and with the same stem given, but another `layer` replaces only
        # the default.
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
    """Returns the number of kernels that fit into the budget at once."""
    # Both kernels of two batches, the current one and the one before; a block of rows for either kernel; and a copy for
    # the spectrum.
    each = x.dtype.itemsize * (4 * len(x) ** 2 + 2 * min(len(x) ** 2, 1 << 19)) + 8 * len(x) ** 2 // 4
    fitting = (budget - _RESERVE) // each
    if fitting < 1:
        raise InputError(
            f"Expected `memory_budget` to hold the kernels of {len(x)} inputs, {each + _RESERVE:,} bytes, got "
            f"{budget:,}; raise it or take fewer inputs"
        )
    return min(fitting, _MOST_KERNELS)
