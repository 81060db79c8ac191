"""The cells of NAS-Bench-201: text, numbers, samples, wiring, and isomorphism."""

import functools
import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from nngp_dag.errors import GraphError, shorten
from nngp_dag.graph import Dag
from nngp_dag.graph.codes import NASBENCH201_OPS, format_nasbench201, nasbench201_operations
from nngp_dag.graph.operations import check_whole
from nngp_dag.graph.topology import live_edges

OPERATIONS = tuple(NASBENCH201_OPS)
"""The operations that an edge of a cell may carry, in the order in which cells are numbered."""

CONVOLUTIONS = ("nor_conv_1x1", "nor_conv_3x3")

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source, target) of the edges of every cell, in the order of its text."""

NUM_CELLS = len(OPERATIONS) ** len(EDGES)

# The value of a node as a sum of terms ((number of the convolution or -1 for the input, poolings after it),
# multiplicity), sorted.
_Value = tuple[tuple[tuple[int, int], int], ...]


@dataclass(frozen=True)
class Cell:
    """A cell of NAS-Bench-201: one operation on each of six edges between four nodes.

    Attributes:
      operations: Names of the operations on the edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3: "none", "skip_connect",
        "nor_conv_1x1", "nor_conv_3x3" or "avg_pool_3x3".

    Raises:
      GraphError: There are not six operations, or one is unknown.

    Examples:
      >>> cell = Cell.parse("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|")
      >>> cell.index, cell == Cell.from_index(9502), cell.dag.code
      (9502, True, '2_01_002')
      >>> cell.canonical_form
      'a = 3x3(x), b = 1x1(a): b'

    Reference: Dong and Yang, NAS-Bench-201, ICLR 2020, Section 2.1.
    """

    operations: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuses another number of operations, and unknown operations."""
        if len(self.operations) != len(EDGES) or not set(self.operations) <= set(OPERATIONS):
            raise GraphError(
                f"Expected `operations` to name {len(EDGES)} out of {', '.join(OPERATIONS)}, got {self.operations}"
            )

    @classmethod
    def parse(cls, text: str) -> "Cell":
        """Reads a cell such as `|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|`.

        Raises:
          GraphError: `text` is malformed, names an unknown operation, or does not have four nodes.
        """
        blocks = nasbench201_operations(text)
        if len(blocks) != 3:
            raise GraphError(f"Expected `text` to be a cell of 3 blocks, got {len(blocks)} in {shorten(text)!r}")
        return cls(tuple(itertools.chain(*blocks)))

    @classmethod
    def from_index(cls, index: int) -> "Cell":
        """Returns the cell with a number; this is the inverse of `index`.

        Raises:
          GraphError: `index` is not in 0 to 15,624.
        """
        if not 0 <= index < NUM_CELLS:
            raise GraphError(f"Expected `index` in 0 to {NUM_CELLS - 1:,}, got {index}")
        digits = []
        for _ in EDGES:
            index, digit = divmod(index, len(OPERATIONS))
            digits.append(OPERATIONS[digit])
        return cls(tuple(reversed(digits)))

    @property
    def index(self) -> int:
        """The number of the cell in `cells()`: its operations as digits of base 5, edge 0-1 first.

        NAS-Bench-201 numbers its cells in a shuffled order. `AccuracyTable.index` returns that number for a table in
        the order of NAS-Bench-201.
        """
        return functools.reduce(lambda value, digit: value * len(OPERATIONS) + digit, self.codes)

    @property
    def codes(self) -> tuple[int, ...]:
        """The operations as numbers: their positions in `OPERATIONS`."""
        return tuple(map(OPERATIONS.index, self.operations))

    @functools.cached_property
    def dag(self) -> Dag:
        """The wiring, with convolutions as weighted edges, and identity and pooling as skips.

        It has no path from input to output where the cell has none.
        """
        return Dag.from_nasbench201(str(self))

    @property
    def status(self) -> str:
        """The status of the wiring.

        It is "disconnected" without a path, "unweighted" if no path has a weighted edge, and otherwise "connected".
        """
        if not self.dag.num_paths:
            return "disconnected"
        return "connected" if self.dag.effective_depth else "unweighted"

    @functools.cached_property
    def live(self) -> "Cell":
        """The cell with `none` on every edge that lies on no path from input to output; it is the same function."""
        kept = {(edge.source, edge.target) for edge in live_edges(self.dag.num_nodes, self.dag.edges)}
        return Cell(tuple(name if edge in kept else "none" for edge, name in zip(EDGES, self.operations, strict=True)))

    @functools.cached_property
    def canonical_form(self) -> str:
        """The function of the cell as a formula in its input x; isomorphic cells, and no others, have equal formulas.

        Two cells are isomorphic if they are the same function of the same weights, up to the names of nodes and
        weights. Dead edges drop out, skips and poolings are linear, and one convolution that is read twice differs from
        two convolutions. There are 5,044 classes. Dong and Yang count 6,466, because they compare texts of unrolled
        trees.
        """
        convolutions = [edge for edge, name in enumerate(self.live.operations) if name in CONVOLUTIONS]
        orders = itertools.permutations(range(len(convolutions)))
        numbered = (_network(self.live, dict(zip(convolutions, order, strict=True))) for order in orders)
        layers, output = min(filter(_reads_backwards, numbered))
        defined = (f"{_letter(i)} = {OPERATIONS[op][-3:]}({_words(value)})" for i, (op, value) in enumerate(layers))
        return f"{', '.join(defined)}: {_words(output)}" if layers else _words(output)

    def __str__(self) -> str:
        """Returns the text of NAS-Bench-201."""
        return format_nasbench201(self.operations)


def cells() -> Iterator[Cell]:
    """Yields all 15,625 cells in the order of their numbers, which is that of `nngp_dag.zoo.nasbench201`.

    Examples:
      >>> sum(cell.operations.count("none") == 5 for cell in cells())
      24
    """
    return map(Cell, itertools.product(OPERATIONS, repeat=len(EDGES)))


def sample_cells(count: int, seed: int) -> list[Cell]:
    """Draws distinct cells, all equally likely.

    Args:
      count: Number of cells.
      seed: Seed of the draw. A larger sample with the same seed begins with the smaller one.

    Raises:
      GraphError: `count` is not in 1 to 15,625.

    Examples:
      >>> sample_cells(2, seed=0) == sample_cells(3, seed=0)[:2]
      True
    """
    count = check_whole("count", count, 0)
    if not 1 <= count <= NUM_CELLS:
        raise GraphError(f"Expected `count` in 1 to {NUM_CELLS:,}, got {count}")
    numbers = list(range(NUM_CELLS))
    random.Random(seed).shuffle(numbers)
    return [Cell.from_index(number) for number in numbers[:count]]


def _network(cell: Cell, number: dict[int, int]) -> tuple[tuple[tuple[int, _Value], ...], _Value]:
    """Returns the inputs of each convolution, and the output, as sums of terms, for given numbers of convolutions."""
    nodes: list[Counter[tuple[int, int]]] = [Counter({(-1, 0): 1}), Counter(), Counter(), Counter()]
    layers: list[tuple[int, _Value]] = [(0, ())] * len(number)
    for edge, (name, (source, target)) in enumerate(zip(cell.operations, EDGES, strict=True)):
        if name in CONVOLUTIONS:
            layers[number[edge]] = OPERATIONS.index(name), tuple(sorted(nodes[source].items()))
            nodes[target][number[edge], 0] += 1
        elif name != "none":
            for (atom, poolings), times in nodes[source].items():
                nodes[target][atom, poolings + (name == "avg_pool_3x3")] += times
    return tuple(layers), tuple(sorted(nodes[3].items()))


def _reads_backwards(network: tuple[tuple[tuple[int, _Value], ...], _Value]) -> bool:
    """Returns whether every convolution reads only convolutions with lower numbers."""
    return all(atom < i for i, (_, value) in enumerate(network[0]) for (atom, _), _ in value)


def _words(value: _Value) -> str:
    texts = []
    for (atom, poolings), times in value:
        text = "pool(" * poolings + _letter(atom) + ")" * poolings
        texts.append(text if times == 1 else f"{times} {text}")
    return " + ".join(texts) or "0"


def _letter(atom: int) -> str:
    return "x" if atom < 0 else "abcdef"[atom]
