"""`gram`: kernels of large data, tile by tile within a stated memory budget, on disk and resumable where asked."""

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

from nngp_dag.architecture import Architecture, Network, as_network
from nngp_dag.errors import InputError, InputWarning, as_path, check_callable, shown, within_memory
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_flag, check_whole
from nngp_dag.kernels._kernel import kernel
from nngp_dag.kernels.gram_files import GramFiles, Tile, describe, load_finished, unfinished
from nngp_dag.kernels.inputs import compute_dtype, real_array, warn_of_likely_mistakes
from nngp_dag.kernels.result import Kernel

# The interpreter with JAX (160 MB), the compiler's work on both programs (up to 240 MB) and the temporaries of the
# engine (tens of MB), as measured, and some room.
_RESERVE = 512 * 2**20
# Beyond 2048 rows a tile gains no more speed, and loses more when the process is killed.
_TILES = (2048, 1024, 512, 256, 128, 64)
# Covariances of all pixels with all others take so much that fewer rows may be all that fits.
_SMALL_TILES = (32, 16, 8, 4, 2, 1)
# Arrays of covariances of pixels that are there at once: those of inputs with themselves and what convolutions, dual
# activations and readouts make of one of them, and three for every node that is still needed; as measured on a CPU.
_ARRAYS, _ARRAYS_OF_A_NODE = 14, 3


class _Plan(NamedTuple):
    """How the work is cut up; a tile is (rows, columns)."""

    shape: tuple[int, int]
    tile: tuple[int, int]
    symmetric: bool
    dtype: np.dtype

    def corners(self) -> list[tuple[int, int]]:
        """Returns the first row and column of every tile, in the order of computation."""
        (n1, n2), (rows, columns) = self.shape, self.tile
        return [(i, j) for i in range(0, n1, rows) for j in range(i if self.symmetric else 0, n2, columns)]

    def tiles(self) -> list[Tile]:
        """Returns the blocks that every tile fills, in the order in which they are written."""
        (n1, n2), (rows, columns) = self.shape, self.tile
        sized = [(i, j, min(rows, n1 - i), min(columns, n2 - j)) for i, j in self.corners()]
        return [
            [(i, j, height, width), (j, i, width, height)] if self.symmetric and i != j else [(i, j, height, width)]
            for i, j, height, width in sized
        ]


class _Memory:
    """Both matrices in memory, with the methods of `GramFiles` that fill them."""

    tiles_done = 0

    def __init__(self, shape: tuple[int, int], dtype: np.dtype) -> None:
        self.matrices = {name: np.empty(shape, dtype) for name in ("nngp", "ntk")}

    def put(self, name: str, i: int, j: int, block: np.ndarray) -> None:
        self.matrices[name][i : i + block.shape[0], j : j + block.shape[1]] = block

    def commit(self) -> None:
        self.tiles_done += 1


def gram(
    network: Network | Dag | str,
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

    The results equal those of `kernel` up to rounding. Without `x2` only the tiles on and above the diagonal are
    computed, and both matrices are exactly symmetric. All tiles have one shape: N is cut into equal parts, and the last
    part filled up with repeated inputs. So one program is compiled for the diagonal and one for all other tiles.

    Memory, for results of b bytes an entry (4, or 8 in float64), tiles of T rows (2048 or the largest smaller power of
    2 that the budget allows, then evened out) and d features:

        512 MiB               the interpreter, JAX, the compiler, the temporaries of `kernel`; as measured on a CPU
        b (6 T^2 + 8 T d)     a tile: both results, their copies, and its inputs
        b (14 + 3 L) T P      covariances of pixels, for L nodes that are needed at once and P pixels, or all P^2 pairs
                              of them in networks with pooling or a "global-average" readout, whose tiles may be smaller
        2 b N1 N2             both matrices, unless they are written to disk

    Not counted are the inputs, and what else the process holds.

    On disk (on POSIX systems) `out` becomes a directory of nngp.npy, ntk.npy, gram.json, which states the call: graph,
    options, shapes, dtype, tile, versions, and the SHA-256 of the inputs; and tiles.crc, a checksum of every tile. It
    appears when everything is done. Until then a directory `.<name>.partial` beside it takes up the same layout. Killed
    at any time and called again with the same arguments, by the same versions on the same kind of device, `gram`
    continues after the last tile that reached the disk, and the files have the bits of an unbroken run. Called again
    when `out` is finished, it returns what is there. Either way it reads all tiles that are there first, and refuses
    any that differ from what was written: about 3 s for 20,000 inputs in float32, once the disk has them in memory.

    Args:
      network: As in `kernel`; with one output.
      x1: Inputs, (N1, features...). For a graph with several inputs a list of such arrays.
      x2: Inputs, (N2, features...), or None for x1.
      memory_budget: Bytes, or a text such as "6 GiB" or "500 MB".
      out: Directory for the results; None keeps them in memory.
      overwrite: Whether the result of another call, finished or not, is deleted where it is in the way.
      progress: Whether to show a bar with the time left on the error stream, if that is a terminal.
      on_progress: Called with ("tiles", tiles done, tiles) instead.
      tile: Rows of a tile at most; None for what the budget allows.
      dtype: As in `kernel`.
      **architecture: As in `kernel`: `activation`, `order`, `readout` and so on.

    Returns:
      A `Kernel` with `nngp` and `ntk`, (N1, N2) each: NumPy arrays, or read-only memory maps of the files in `out`.

    Raises:
      GraphError: As `kernel`.
      InputError: The budget cannot be read or is too small, or as `kernel`.
      OutputError: `out` cannot be written, is being computed by another process, or holds something else or damaged
        tiles; or the unfinished result of another call is in the way.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(5, 8))
      >>> k = gram(nd.Dag.from_code("2_21_112"), x, memory_budget="1 GiB", order="act-linear")
      >>> k.ntk.shape, bool((k.ntk == k.ntk.T).all())
      ((5, 5), True)
    """
    overwrite, progress = check_flag("overwrite", overwrite), check_flag("progress", progress)
    network = as_network(network, "network", gram, **architecture)
    if len(network.dag.outputs) > 1:
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
    per_column = _numbers_per_column(network, arrays1[0].shape[1:-1])
    plan = _plan(arrays1, arrays2, precision, tile, budget, in_memory=path is None, per_column=per_column)
    if path is None:
        with within_memory(f"two matrices of {plan.shape[0]:,} x {plan.shape[1]:,} entries", "pass `out`"):
            memory = _Memory(plan.shape, plan.dtype)
        _fill(memory, plan, network, arrays1, arrays2, dtype, progress, on_progress)
        return Kernel(memory.matrices["nngp"], memory.matrices["ntk"], network=network)
    configuration = describe(network, arrays1, arrays2, plan.shape, plan.tile, plan.dtype)
    tiles = plan.tiles()
    done = load_finished(path, configuration, overwrite, tiles)
    if done is None:
        with unfinished(path, configuration, overwrite, tiles) as files:
            _fill(files, plan, network, arrays1, arrays2, dtype, progress, on_progress)
            files.finish()
        done = load_finished(path, configuration)
    assert done is not None
    nngp, ntk = done
    return Kernel(nngp, ntk, network=network)


def _fill(
    results: _Memory | GramFiles,
    plan: _Plan,
    network: Network,
    arrays1: list[np.ndarray],
    arrays2: list[np.ndarray] | None,
    dtype: str | None,
    progress: bool,
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    """Computes the tiles that are not there yet."""
    corners = plan.corners()
    report = on_progress or (lambda task, done, total: None)
    report("tiles", results.tiles_done, len(corners))
    with _progress_bar(len(corners), results.tiles_done, progress and on_progress is None) as advance:
        for i, j in corners[results.tiles_done :]:
            for name, block in _compute(network, arrays1, arrays2, i, j, plan, dtype).items():
                results.put(name, i, j, block)
                if plan.symmetric and i != j:
                    results.put(name, j, i, block.T)
            results.commit()
            advance()
            report("tiles", results.tiles_done, len(corners))


def _compute(
    network: Network,
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
        # What looks like a mistake was said of all inputs.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InputWarning)
            tile = kernel(network, _as_given(rows), None if columns is None else _as_given(columns), dtype=dtype)
    except InputError as error:
        if i == j == 0:
            raise
        raise InputError(
            f"{error} (in the tile whose rows begin with input {i} and whose columns, `x2` there, with input {j})"
        ) from error
    height, width = min(plan.tile[0], plan.shape[0] - i), min(plan.tile[1], plan.shape[1] - j)
    blocks = {name: np.asarray(getattr(tile, name), plan.dtype)[:height, :width] for name in ("nngp", "ntk")}
    if diagonal:
        # Rounding may differ on the two sides of the diagonal.
        blocks = {name: np.where(np.tri(height, k=-1, dtype=bool), v.T, v) for name, v in blocks.items()}
    return blocks


def _take(arrays: list[np.ndarray], start: int, size: int) -> list[np.ndarray]:
    """Returns the inputs of a tile; behind the last input it is repeated."""
    rows = np.minimum(np.arange(start, start + size), len(arrays[0]) - 1)
    return [array[rows] for array in arrays]


def _as_given(arrays: list[np.ndarray]) -> Any:
    return arrays if len(arrays) > 1 else arrays[0]


def _arrays(name: str, x: ArrayLike | Sequence[ArrayLike], network: Network) -> list[np.ndarray]:
    """Returns one array per input node, with what `kernel` would find in a tile only, and name a row of that tile."""
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
        # Equal parts, so that little of the last one is filled up.
        return -(-n1 // -(-n1 // size)), -(-n2 // -(-n2 // size))

    def needed(size: int) -> int:
        rows = max(parts(size))
        return _RESERVE + matrices + dtype.itemsize * (6 * rows**2 + (8 * features + per_column) * rows)

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


def _numbers_per_column(network: Network, pixels: Sequence[int]) -> int:
    """Returns how many covariances of pixels are there at once for each column of a tile, if for a single row."""
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
    """Returns a budget in bytes: of a number, or of a text such as "6 GiB".

    Raises:
      InputError: It cannot be read, or is none that a machine can have.
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
def _progress_bar(total: int, done: int, progress: bool) -> Iterator[Callable[[], None]]:
    """Shows tiles and the time left on the error stream, if that is a terminal; yields what counts one more tile."""
    if not (progress and sys.stderr.isatty()):
        yield lambda: None
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
        yield lambda: bars.advance(task)
