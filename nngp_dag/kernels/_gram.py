"""`gram`: kernels of large data, tile by tile within a stated memory budget; optionally on disk and resumable."""

import contextlib
import math
import operator
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex, Unpack

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag import sharing
from nngp_dag.architecture import Architecture, Network, as_network
from nngp_dag.distributed import first_does
from nngp_dag.errors import InputError, InputWarning, as_path, check_callable, shown, within_memory
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_flag, check_whole
from nngp_dag.kernels._kernel import kernel
from nngp_dag.kernels.gram_files import GramFiles, Tile, describe, load_finished, unfinished
from nngp_dag.kernels.inputs import compute_dtype, real_array, warn_of_likely_mistakes
from nngp_dag.kernels.result import Kernel
from nngp_dag.kernels.source import KernelSource

# Measured: the interpreter with JAX takes 160 MB, the compiler up to 240 MB for both programs, and temporaries of
# `kernel` tens of MB. The rest is a margin.
RESERVE = 512 * 2**20
# Tiles of more than 2048 rows are no faster, and more work is lost when the process is killed.
_TILES = (2048, 1024, 512, 256, 128, 64)
# Covariances of all pairs of pixels take so much memory that only tiles of few rows may fit.
_SMALL_TILES = (32, 16, 8, 4, 2, 1)
# The number of arrays of pixel covariances that exist at once, measured on a CPU. The inputs with themselves and an
# operation at work (a convolution, a dual activation, a readout) take 14. Every node that is still needed adds three.
_ARRAYS, _ARRAYS_OF_A_NODE = 14, 3


class _Plan(NamedTuple):
    """The division of the work into tiles.

    Attributes:
      shape: Shape of the results, (N1, N2).
      tile: Rows and columns of a tile.
      symmetric: Whether only tiles on and above the diagonal are computed.
      dtype: Dtype of the results.
    """

    shape: tuple[int, int]
    tile: tuple[int, int]
    symmetric: bool
    dtype: np.dtype

    def corners(self) -> list[tuple[int, int]]:
        """Returns the first row and column of every tile, in the order of computation."""
        (n1, n2), (rows, columns) = self.shape, self.tile
        return [(i, j) for i in range(0, n1, rows) for j in range(i if self.symmetric else 0, n2, columns)]

    def tiles(self) -> list[Tile]:
        """Returns the blocks of the results that every tile fills, in the order of writing."""
        (n1, n2), (rows, columns) = self.shape, self.tile
        sized = [(i, j, min(rows, n1 - i), min(columns, n2 - j)) for i, j in self.corners()]
        return [
            [(i, j, height, width), (j, i, width, height)] if self.symmetric and i != j else [(i, j, height, width)]
            for i, j, height, width in sized
        ]


class _Memory:
    """Both matrices in memory, with the same methods for filling them as `GramFiles`."""

    def __init__(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.done: set[int] = set()
        self.matrices = {name: np.empty(shape, dtype) for name in ("nngp", "ntk")}

    def put(self, name: str, i: int, j: int, block: np.ndarray) -> None:
        self.matrices[name][i : i + block.shape[0], j : j + block.shape[1]] = block

    def commit(self, number: int) -> None:
        self.done.add(number)


def gram(
    network: Network | Dag | str | KernelSource,
    x1: ArrayLike | Sequence[ArrayLike],
    x2: ArrayLike | Sequence[ArrayLike] | None = None,
    *,
    memory_budget: int | str = "4 GiB",
    out: str | Path | None = None,
    overwrite: bool = False,
    progress: bool = True,
    on_progress: Callable[[str, int, int], None] | None = None,
    tile: int | None = None,
    dtype: str | None = None,
    **architecture: Unpack[Architecture],
) -> Kernel:
    """Computes the NNGP and NTK of `kernel` for many inputs, tile by tile, within a memory budget.

    The results equal those of `kernel` up to rounding. Without `x2`, only the tiles on and above the diagonal are
    computed, and both matrices are exactly symmetric. All tiles have one shape: N is divided into equal parts, and
    repeated inputs fill up the last part. So one program is compiled for tiles on the diagonal, and one for all others.

    An entry of the results has b bytes: 4 in float32, and 8 in float64. A tile has T rows: 2048, or the largest smaller
    power of 2 that the budget allows, then reduced to equal parts. An input has d features. The memory is

        512 MiB               the interpreter, JAX, the compiler, temporaries of `kernel`; measured on a CPU
        b (6 T^2 + 8 T d)     a tile: both results, their copies, and its inputs
        b (14 + 3 L) T P      covariances of P pixels, where L nodes are needed at once
        2 b N1 N2             both matrices, unless they are written to disk

    The third row applies to convolutions and pooling. With pooling, or with a "global-average" readout, it counts the
    P^2 pairs of pixels in place of P, and tiles may be smaller. The inputs are not counted.

    On disk (on POSIX systems), `out` becomes a directory with four files. The matrices are in nngp.npy and ntk.npy. The
    file gram.json describes the call: graph, options, shapes, dtype, tile, versions, and the SHA-256 of the inputs. The
    file tiles.crc holds a checksum of every tile. The directory appears once the work is done; until then, the files
    are in `.<name>.partial` beside it. The process may be killed at any time. A call with the same arguments, versions
    and kind of device then continues after the last tile on disk. The files equal those of an unbroken run bit by bit.
    A call for which `out` is finished returns its content. In both cases all finished tiles are read first, and a tile
    whose checksum differs is refused. Reading takes about 3 s for 20,000 inputs in float32 if the files are cached.

    Where `jax.distributed` connects several processes, a call with `out` must be made by all of them. They share the
    tiles, on the devices of each, and `out` must be on a file system that all of them see. The files are those of one
    process. If a process is killed, any number of processes goes on. Without `out`, each process computes alone.

    Args:
      network: The network, as in `kernel`; it must have one output.
      x1: Inputs, (N1, features...). For a graph with several inputs, a list of such arrays.
      x2: Inputs, (N2, features...), or None for `x1`.
      memory_budget: The budget in bytes, or a text such as "6 GiB" or "500 MB".
      out: The directory for the results; None keeps them in memory.
      overwrite: Whether the result of another call, finished or not, is deleted if it is in the way.
      progress: Whether a bar shows the time left on the error stream, if that is a terminal.
      on_progress: A function that is called with ("tiles", tiles done, tiles) instead of the bar.
      tile: The largest number of rows of a tile; None leaves it to the budget.
      dtype: The precision of the computation, as in `kernel`.
      **architecture: Options of the architecture, as in `kernel`: `activation`, `order`, `readout` and so on.

    Returns:
      A `Kernel` with `nngp` and `ntk`, (N1, N2) each: NumPy arrays, or read-only memory maps of the files in `out`.

    Raises:
      GraphError: `kernel` would refuse the network.
      InputError: The budget cannot be read or is too small, the network has several outputs, or `kernel` would refuse
        an argument.
      OutputError: `out` cannot be written, another process computes it, or it holds other files or damaged tiles. Or
        the unfinished result of another call is in the way.
      OutOfMemoryError: The matrices do not fit into memory.
      DistributedError: Another process that shares the tiles failed, or ended.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(5, 8))
      >>> k = gram(nd.Dag.from_code("2_21_112"), x, memory_budget="1 GiB", order="act-linear")
      >>> k.ntk.shape, bool((k.ntk == k.ntk.T).all())
      ((5, 5), True)

    Reference: See `nngp_dag.kernel`.
    """
    overwrite, progress = check_flag("overwrite", overwrite), check_flag("progress", progress)
    if isinstance(network, KernelSource):
        network = network.with_options(**architecture)
    else:
        network = as_network(network, "network", gram, **architecture)
    if isinstance(network, Network) and len(network.dag.outputs) > 1:
        raise InputError(
            f"Expected a graph with one output, got {len(network.dag.outputs)}; call `gram` for each of them"
        )
    check_callable("on_progress", on_progress)
    tile = None if tile is None else check_whole("tile", tile, 1)
    path = None if out is None else as_path("out", out).resolve()
    budget = bytes_of(memory_budget)
    arrays1 = _arrays("x1", x1, network)
    arrays2 = None if x2 is None else _arrays("x2", x2, network)
    precision = compute_dtype(*arrays1, *(arrays2 or ()), dtype=dtype)
    if isinstance(network, Network):
        per_column = numbers_per_column(network, arrays1[0].shape[1:-1])
    else:
        per_column = network.covariances
    plan = _plan(arrays1, arrays2, precision, tile, budget, in_memory=path is None, per_column=per_column)
    if path is None:
        with within_memory(f"two matrices of {plan.shape[0]:,} x {plan.shape[1]:,} entries", "pass `out`"):
            memory = _Memory(plan.shape, plan.dtype)
        _fill(memory, plan, network, arrays1, arrays2, dtype, progress, on_progress)
        return Kernel(memory.matrices["nngp"], memory.matrices["ntk"], network=network)
    configuration = describe(network, arrays1, arrays2, plan.shape, plan.tile, plan.dtype)
    tiles = plan.tiles()
    process, processes = sharing.place()
    if processes == 1:
        done = load_finished(path, configuration, overwrite, tiles)
        if done is None:
            with unfinished(path, configuration, overwrite, tiles) as files:
                _fill(files, plan, network, arrays1, arrays2, dtype, progress, on_progress)
                files.finish(tiles)
    else:
        sharing.check_equal("kernels", configuration)
        known: list[bool] = []
        first_does(lambda: known.append(load_finished(path, configuration, overwrite, tiles) is not None))
        if sharing.gather_json(known)[0] == [False]:
            with contextlib.ExitStack() as stack:
                opened = unfinished(path, configuration, overwrite, tiles, process)
                entered: list[GramFiles] = []
                # The others open the files that process 0 has made.
                first_does(lambda: entered.append(stack.enter_context(opened)))
                files = entered[0] if entered else stack.enter_context(opened)
                with sharing.at_work() as crew:
                    _fill(files, plan, network, arrays1, arrays2, dtype, progress and process == 0, on_progress, crew)
                first_does(lambda: files.finish(tiles))
    done = load_finished(path, configuration)
    assert done is not None
    nngp, ntk = done
    return Kernel(nngp, ntk, network=network)


def _fill(
    results: _Memory | GramFiles,
    plan: _Plan,
    network: Network | KernelSource,
    arrays1: list[np.ndarray],
    arrays2: list[np.ndarray] | None,
    dtype: str | None,
    progress: bool,
    on_progress: Callable[[str, int, int], None] | None,
    crew: sharing.Crew | None = None,
) -> None:
    """Computes the tiles that are not yet among the results; those of a crew are shared by several processes."""
    corners = plan.corners()
    report = on_progress or (lambda task, done, total: None)
    before = len(results.done)
    report("tiles", before, len(corners))
    with _progress_bar(len(corners), before, progress and on_progress is None) as show:

        def count(new: int) -> None:
            show(before + new)
            report("tiles", before + new, len(corners))

        if crew is not None:
            crew.on_progress = count
        for number in sorted(set(range(len(corners))) - results.done):
            if crew is not None and not crew.takes_next():
                continue
            i, j = corners[number]
            for name, block in _compute(network, arrays1, arrays2, i, j, plan, dtype).items():
                results.put(name, i, j, block)
                if plan.symmetric and i != j:
                    results.put(name, j, i, block.T)
            results.commit(number)
            if crew is None:
                count(len(results.done) - before)
            else:
                crew.finished()
        if crew is not None:
            crew.wait()


def _compute(
    network: Network | KernelSource,
    arrays1: list[np.ndarray],
    arrays2: list[np.ndarray] | None,
    i: int,
    j: int,
    plan: _Plan,
    dtype: str | None,
) -> dict[str, np.ndarray]:
    """Returns the blocks of both matrices from row i and column j on, cropped at the edges of the matrices."""
    diagonal = plan.symmetric and i == j
    rows = _take(arrays1, i, plan.tile[0])
    columns = None if diagonal else _take(arrays2 or arrays1, j, plan.tile[1])
    try:
        # `_arrays` has warned of likely mistakes in all inputs; a tile must not warn again.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            tile = kernel(network, _as_given(rows), None if columns is None else _as_given(columns), dtype=dtype)
    except InputError as error:
        if i == j == 0:
            raise
        raise InputError(
            f"{error} (in the tile whose rows begin with input {i} and whose columns, its `x2`, with input {j})"
        ) from error
    height, width = min(plan.tile[0], plan.shape[0] - i), min(plan.tile[1], plan.shape[1] - j)
    blocks = {name: np.asarray(getattr(tile, name), plan.dtype)[:height, :width] for name in ("nngp", "ntk")}
    if diagonal:
        # Rounding may differ above and below the diagonal.
        blocks = {name: np.where(np.tri(height, k=-1, dtype=bool), v.T, v) for name, v in blocks.items()}
    return blocks


def _take(arrays: list[np.ndarray], start: int, size: int) -> list[np.ndarray]:
    """Returns the inputs of a tile; copies of the last input fill up the last tile."""
    rows = np.minimum(np.arange(start, start + size), len(arrays[0]) - 1)
    return [array[rows] for array in arrays]


def _as_given(arrays: list[np.ndarray]) -> Any:
    return arrays if len(arrays) > 1 else arrays[0]


def _arrays(name: str, x: ArrayLike | Sequence[ArrayLike], network: Network | KernelSource) -> list[np.ndarray]:
    """Returns one array per input node after checks of all rows; `kernel` would name a row of a tile only."""
    if isinstance(network, KernelSource):
        return [network.read_inputs(name, x)]
    several = isinstance(x, (list, tuple)) and network.dag.num_inputs > 1
    arrays = [np.asarray(real_array(name, array)) for array in (x if several else [x])]  # type: ignore[union-attr]
    for array in arrays:
        if array.ndim < 2 or array.size == 0:
            raise InputError(
                f"Expected `{name}` to have shape (N, features...) with N >= 1 and a feature, got {array.shape}"
            )
        warn_of_likely_mistakes(name, array, network)
        for start in range(0, len(array), _TILES[0]):
            finite = np.isfinite(array[start : start + _TILES[0]]).reshape(-1, array[0].size).all(axis=1)
            if not finite.all():
                row = start + int(np.flatnonzero(~finite)[0])
                raise InputError(
                    f"Expected `{name}` to be finite, got NaN or infinity in row {row}; drop or repair that input"
                )
    if len({len(array) for array in arrays}) > 1:
        raise InputError(f"Expected all arrays of `{name}` to hold equally many inputs, got {[*map(len, arrays)]}")
    return arrays


def _plan(
    arrays1: list[np.ndarray],
    arrays2: list[np.ndarray] | None,
    dtype: np.dtype,
    tile: int | None,
    budget: int,
    in_memory: bool,
    per_column: int = 0,
) -> _Plan:
    """Chooses the largest tile that the budget allows."""
    n1, n2 = shape = len(arrays1[0]), len((arrays2 or arrays1)[0])
    features = sum(math.prod(array.shape[1:]) for array in arrays1)
    matrices = 2 * n1 * n2 * dtype.itemsize if in_memory else 0

    def parts(size: int) -> tuple[int, int]:
        # Equal parts keep the number of repeated inputs in the last part small.
        return -(-n1 // -(-n1 // size)), -(-n2 // -(-n2 // size))

    def needed(size: int) -> int:
        rows = max(parts(size))
        return RESERVE + matrices + dtype.itemsize * (6 * rows**2 + (8 * features + per_column) * rows)

    sizes = (*_TILES, *(_SMALL_TILES if per_column else ())) if tile is None else (tile,)
    fitting = [size for size in sizes if needed(size) <= budget]
    if not fitting:
        least = needed(sizes[-1])
        what = f"both {n1} x {n2} matrices and the work on a tile" if in_memory else "the work on a tile"
        remedy = "raise it" if tile is None else "raise it or lower `tile`"
        if in_memory:
            remedy += f", or pass `out=` to write the matrices to disk, which takes {least - matrices:,} bytes"
        raise InputError(f"Expected `memory_budget` to hold {what}, {least:,} bytes, got {budget:,}; {remedy}")
    return _Plan(shape, parts(fitting[0]), arrays2 is None, dtype)


def numbers_per_column(network: Network, pixels: Sequence[int]) -> int:
    """Returns the number of pixel covariances that exist at once, for each column and one row of a tile."""
    dag = network.dag
    if not network.image_operations:
        return 0
    last = dict.fromkeys(dag.outputs, dag.num_nodes)
    for edge in dag.edges:
        last[edge.source] = max(last.get(edge.source, 0), edge.target)
    live = max(sum(node <= at <= end for node, end in last.items()) for at in range(dag.num_nodes))
    pairs = math.prod(pixels) ** (2 if network.pools or network.image_readout == "global-average" else 1)
    return (_ARRAYS + _ARRAYS_OF_A_NODE * live) * pairs


def bytes_of(memory_budget: Any) -> int:
    """Returns a budget in bytes from a number or from a text such as "6 GiB".

    Raises:
      InputError: The budget cannot be read, or is not between 1 and 2^63 bytes.
    """
    number: float | None = None
    if isinstance(memory_budget, str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:([kmgt])(i?))?b", memory_budget.strip().lower(), re.ASCII)
        if match is not None:
            size, prefix, binary = match.groups()
            number = float(size) * (1024 if binary else 1000) ** " kmgt".index(prefix or " ")
    elif isinstance(memory_budget, SupportsIndex) and not isinstance(memory_budget, bool):
        number = operator.index(memory_budget)
    if number is None or not 0 < number < 2**63:
        raise InputError(
            "Expected `memory_budget` to be bytes, from 1 to 2^63, or a text such as '6 GiB' or '500 MB', got "
            f"{shown(memory_budget, 20)}"
        )
    return int(number)


@contextlib.contextmanager
def _progress_bar(total: int, done: int, progress: bool) -> Iterator[Callable[[int], None]]:
    """Shows tiles and the time left if the error stream is a terminal; yields a function of the tiles done."""
    if not (progress and sys.stderr.isatty()):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} tiles"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("gram", total=total, completed=done)
        yield lambda done: bars.update(task, completed=done)
