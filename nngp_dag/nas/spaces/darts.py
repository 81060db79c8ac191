"""The cells of DARTS: genotypes as text, JSON and wiring."""

import ast
import itertools
import json
import random
from dataclasses import dataclass

from nngp_dag.errors import GraphError, InputError, shown
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_whole

OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
"""The operations that an edge of a cell may carry, in the order of the authors' code."""

CELL_TYPES = ("normal", "reduce")

CONCAT = (2, 3, 4, 5)
"""The nodes that a cell concatenates: all but the two inputs."""

EDGES = tuple((source, target) for target in CONCAT for source in range(target))
"""(source, target) of the 14 edges of a cell, before two per node are chosen."""

Pairs = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Genotype:
    """The two cells of a DARTS architecture.

    A cell has two (operation, input) pairs for each of nodes 2 to 5, node 2 first. Nodes 0 and 1 are the outputs of the
    two cells before, and the output concatenates nodes 2 to 5. A node may read one input twice, through two operations
    with weights of their own.

    Attributes:
      normal: The eight pairs of the cell that keeps the size of the images.
      reduce: The eight pairs of the cell that halves the sides of the images.

    Raises:
      GraphError: A cell does not have eight pairs, an operation is unknown, or a node reads a later node.

    Examples:
      >>> cell = [("sep_conv_3x3", 0), ("skip_connect", 1)] * 4
      >>> genotype = Genotype.from_pairs(cell, cell)
      >>> Genotype.from_text(str(genotype)) == Genotype.from_json(genotype.to_json()) == genotype
      True
      >>> genotype.dag.effective_depth, genotype.dag.effective_width
      (0.5, 8.0)

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Section 3.1.
    """

    normal: Pairs
    reduce: Pairs

    def __post_init__(self) -> None:
        """Refuses another number of pairs, unknown operations, and inputs that come later."""
        for name in CELL_TYPES:
            pairs = getattr(self, name)
            if len(pairs) != 2 * len(CONCAT):
                raise GraphError(f"Expected `{name}` to hold {2 * len(CONCAT)} pairs, got {len(pairs)}")
            # The wiring refuses unknown operations and inputs.
            Dag.from_darts(pairs)

    @classmethod
    def from_pairs(cls, normal: object, reduce: object) -> "Genotype":
        """Returns a genotype from pairs in lists or tuples, such as lists read from JSON.

        Args:
          normal: The eight pairs of the normal cell.
          reduce: The eight pairs of the reduction cell.

        Raises:
          GraphError: The pairs are not those of a cell.
        """
        return cls(*(_pairs(name, value) for name, value in zip(CELL_TYPES, (normal, reduce), strict=True)))

    @classmethod
    def from_text(cls, text: str) -> "Genotype":
        """Reads `Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], ...)`.

        The text is parsed, never executed.

        Raises:
          GraphError: The text does not have this form, or it concatenates other nodes than 2 to 5.
        """
        try:
            call = ast.parse(text.strip(), mode="eval").body
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Genotype"):
                raise ValueError("no `Genotype(...)`")
            if call.args:
                raise ValueError("arguments without a name")
            fields = {str(keyword.arg): _literal(keyword.value) for keyword in call.keywords}
        except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
            raise _no_genotype("text", text, error) from None
        return cls._from_fields("text", fields)

    @classmethod
    def from_json(cls, text: str) -> "Genotype":
        """Reads the output of `to_json`.

        Raises:
          GraphError: The text is not a genotype in JSON.
        """
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise _no_genotype("text", text, error) from None
        return cls._from_fields("text", fields)

    @classmethod
    def _from_fields(cls, name: str, fields: object) -> "Genotype":
        known = {*CELL_TYPES, *(f"{cell}_concat" for cell in CELL_TYPES)}
        if not isinstance(fields, dict) or not set(CELL_TYPES) <= set(fields) <= known:
            raise _no_genotype(name, fields, f"other fields than {', '.join(sorted(known))}")
        for cell in CELL_TYPES:
            concat = fields.get(f"{cell}_concat", CONCAT)
            if not isinstance(concat, (list, tuple, range)) or len(concat) != len(CONCAT) or tuple(concat) != CONCAT:
                raise GraphError(f"Expected `{cell}_concat` to be nodes 2 to 5, got {shown(concat)}")
        return cls.from_pairs(fields["normal"], fields["reduce"])

    def to_json(self) -> str:
        """Returns the genotype as JSON, with the pairs as lists, and the concatenated nodes."""
        return json.dumps(
            {
                "normal": self.normal,
                "normal_concat": CONCAT,
                "reduce": self.reduce,
                "reduce_concat": CONCAT,
            }
        )

    def wiring(self, cell: str = "normal", *, duplicates: str = "kept") -> Dag:
        """Returns the wiring of one cell, with two inputs and with skips from nodes 2 to 5 to the output.

        Args:
          cell: "normal" or "reduce".
          duplicates: Treatment of a node that reads one input twice. "kept" has two edges, as the network does.
            "reference" has the later edge only, even if it is `none`, as in the code of Chen et al. for effective depth
            and width.

        Raises:
          InputError: An option is unknown.

        Reference: Chen et al., NeurIPS 2022, Section 3 (convolutions are weighted, pooling is a skip).
        """
        for name, value, known in (("cell", cell, CELL_TYPES), ("duplicates", duplicates, ("kept", "reference"))):
            if value not in known:
                raise InputError(f"Expected `{name}` to be {' or '.join(map(repr, known))}, got {shown(value)}")
        pairs = getattr(self, cell)
        if duplicates == "reference":
            nodes = zip(pairs[::2], pairs[1::2], strict=True)
            pairs = list(itertools.chain(*((("none", a[1]) if a[1] == b[1] else a, b) for a, b in nodes)))
        return Dag.from_darts(pairs)

    @property
    def dag(self) -> Dag:
        """The wiring of the normal cell; Chen et al. take its effective depth and width for those of the genotype."""
        return self.wiring()

    @property
    def status(self) -> str:
        """The status of the wiring of the normal cell.

        It is "disconnected" without a path, "unweighted" if no path has a weighted edge, and otherwise "connected".
        """
        if not self.dag.num_paths:
            return "disconnected"
        return "connected" if self.dag.effective_depth else "unweighted"

    @property
    def codes(self) -> tuple[int, ...]:
        """The genotype as 32 numbers.

        They are the operations of the normal cell, as positions in `OPERATIONS`, and its inputs, then those of the
        reduction cell.
        """
        found: list[int] = []
        for name in CELL_TYPES:
            operations, inputs = zip(*getattr(self, name), strict=True)
            found += [*map(OPERATIONS.index, operations), *inputs]
        return tuple(found)

    def __str__(self) -> str:
        """Returns the genotype in the notation of the authors' code."""
        cells = (f"{cell}={list(getattr(self, cell))}, {cell}_concat=range(2, 6)" for cell in CELL_TYPES)
        return f"Genotype({', '.join(cells)})"


def sample_genotypes(count: int, seed: int) -> list[Genotype]:
    """Draws distinct genotypes, all equally likely.

    Every node reads two different inputs. No operation is `none`.

    Args:
      count: Number of genotypes.
      seed: Seed of the draw. A larger sample with the same seed begins with the smaller one.

    Raises:
      GraphError: `count` is below 1.

    Examples:
      >>> sample_genotypes(2, seed=0) == sample_genotypes(3, seed=0)[:2]
      True

    Reference: Liu, Simonyan, Yang, DARTS, ICLR 2019, Section 3.1 (the space).
    """
    if check_whole("count", count, 0) < 1:
        raise GraphError(f"Expected `count` to be at least 1, got {count}")
    rng, found = random.Random(seed), {}
    while len(found) < count:
        cells = []
        for _ in CELL_TYPES:
            inputs = [source for node in CONCAT for source in sorted(rng.sample(range(node), 2))]
            cells.append(tuple((rng.choice(OPERATIONS[1:]), source) for source in inputs))
        found[Genotype(*cells)] = None
    return list(found)


def _pairs(name: str, value: object) -> Pairs:
    pairs = []
    for pair in value if isinstance(value, (list, tuple)) else [value]:
        match pair:
            case [str(operation), int(source)] if not isinstance(source, bool):
                pairs.append((operation, source))
            case _:
                raise GraphError(f"Expected `{name}` to hold pairs such as ('sep_conv_3x3', 0), got {shown(pair)}")
    return tuple(pairs)


def _literal(node: ast.expr) -> object:
    """Returns the value of a literal, or of `range` of literals."""
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range" and not node.keywords:
        bounds = [ast.literal_eval(argument) for argument in node.args]
        return range(*bounds)
    return ast.literal_eval(node)


def _no_genotype(name: str, text: object, reason: object) -> GraphError:
    return GraphError(
        f"Expected `{name}` to be a genotype, Genotype(normal=[('sep_conv_3x3', 0), ...], ...) or its JSON, got "
        f"{shown(text)}: {reason}"
    )
