"""Classes of nodes with equal kernels, over many networks, and one program for all of them.

A node's kernels depend on its row of the normal form, {(source, operation): (A, B)}, and on the kernels of its sources.
First, sources of one class are merged: the entries A of their columns are added, and so are the entries B. Two nodes,
of one network or of two, then have equal kernels if their merged rows agree. B matters only for operations whose output
has a mean; elsewhere it is set to 0.

Operations may be homogeneous, such as W relu(x) without biases: scaling the kernels of a node by c scales those of the
field by c. A row is therefore divided by the sum of its entries A before it is compared. That sum multiplies
the entries of every later row that reads the node, so that no factor is lost. Two equal skips before a layer thus lead
to the same class as two equal skips after it.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from nngp_dag.architecture._normal_form import rows
from nngp_dag.architecture.network import Network
from nngp_dag.architecture.program import Field, MeanTerm, Program, Step, Structure, Term
from nngp_dag.errors import GraphError
from nngp_dag.graph.operations import Dense


class Summand(NamedTuple):
    """The contribution of one kind of weighted edges to a node.

    Attributes:
      source: The digest of the class of the source node, or the number of an input.
      op: The operation of the edges; None for the stem of an input.
      a: The weight of the field's covariance, A.
      b: The weight of the field's mean, B.
    """

    source: str | int
    op: Dense | None
    a: float
    b: float


class KernelClasses:
    """Classes of nodes with equal kernels, over many networks, each identified by a digest.

    Equal digests mean equal kernels, for any networks in any order. All networks must have the same stem and readout.
    They must not pool: pooling mixes pixels, and no table of A and B describes it.

    Examples:
      >>> from nngp_dag.graph import Dag
      >>> classes = KernelClasses()
      >>> one, other, third = (classes.add(Network(Dag.from_code(c))) for c in ("2_02_001", "1_02_002", "2_02_002"))
      >>> one == other, one == third
      (True, False)
    """

    def __init__(self, homogeneous: Callable[[Dense], bool] = lambda op: False) -> None:
        """Starts without networks; `homogeneous` says whether an operation, with its activation, is homogeneous."""
        self._homogeneous = homogeneous
        # Insertion order: the sources of a row come before it.
        self._rows: dict[str, tuple[Summand, ...]] = {}
        self._texts: dict[Dense, str] = {}

    def add(self, network: Network) -> str:
        """Adds the nodes of a network and returns the digest of its output's class.

        Raises:
          GraphError: The network has several outputs or pools, or a skip multiplicity exceeds float64.
        """
        if len(network.dag.outputs) > 1 or network.pools:
            what = "pooling" if network.pools else f"{len(network.dag.outputs)} outputs"
            raise GraphError(f"Expected a network with one output and no pooling, got {what}; use `nngp_dag.kernel`")
        table, _ = rows(network)
        output = max(network.dag.outputs)
        ops = {network.stem_op, *(op for a, _ in table.values() for _, op in a if op is not None)}
        scales = all(map(self._homogeneous, ops))
        # For every node its class, and the factor c with (kernels of the node) = c (kernels of the class).
        known: dict[int, tuple[str, float]] = {}
        for node in sorted(table):
            a, b = table[node]
            summed: dict[tuple[str | int, Dense | None], tuple[float, float]] = {}
            for (source, op), weight in a.items():
                digest, factor = (source, 1.0) if op is None else known[source]
                has_mean = not (network.stem_op if op is None else op).output_is_gaussian
                before = summed.get((digest, op), (0.0, 0.0))
                mean_weight = float(b[source, op]) * math.sqrt(factor) if has_mean else 0.0
                summed[digest, op] = before[0] + float(weight) * factor, before[1] + mean_weight
            factor = sum(weight for weight, _ in summed.values()) if scales else 1.0
            if factor <= 0 or not math.isfinite(factor):
                factor = 1.0
            known[node] = self._digest(summed, factor), factor
            if node == output and factor != 1:
                return self._digest(summed, 1.0)
        return known[output][0]

    def _digest(self, summed: dict[tuple[str | int, Dense | None], tuple[float, float]], factor: float) -> str:
        """Stores a row, divided by a factor, and returns its digest."""
        texts = {}
        for (source, op), (a, b) in summed.items():
            # Means scale by the root of the factor, which may be rounded: 13 digits of B are compared.
            a, b = (a, b) if factor == 1 else (a / factor, b / math.sqrt(factor))
            texts[f"{source} {self._text(op)} {a!r} {b:.13g}"] = Summand(source, op, a, b)
        digest = hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()
        self._rows.setdefault(digest, tuple(texts[text] for text in sorted(texts)))
        return digest

    def digest_of_edges(self, network: Network) -> str:
        """Returns a digest of a network that pools; it covers the edges as they are, without a normal form."""
        ends = [f"{network.dag.num_nodes} {network.dag.num_inputs} {network.dag.outputs}"]
        edges = (
            f"{edge.source} {edge.target} {self._text(edge.op) if isinstance(edge.op, Dense) else repr(edge.op)}"
            for edge in network.edges
        )
        return hashlib.sha256("\n".join([*ends, *edges]).encode()).hexdigest()

    def largest_weight(self, output: str) -> float:
        """Returns the largest entry of A or B, in absolute value, on which a class depends."""
        return max(
            abs(weight) for digest in self._needed([output]) for s in self._rows[digest] for weight in (s.a, s.b)
        )

    def program(self, outputs: Sequence[str], readout: Dense | None = None) -> Program:
        """Returns one program for the kernels of several networks, in which every class is evaluated once.

        Args:
          outputs: The digests of the networks' output classes.
          readout: The operation of a readout, which the program holds as a weighted edge to one more node; None for no
            readout.
        """
        order = self._needed(outputs)
        number = {digest: i for i, digest in enumerate(order)}
        leaving: dict[str, dict[Dense, None]] = {digest: {} for digest in order}
        for digest in order:
            for summand in self._rows[digest]:
                if summand.op is not None:
                    leaving[summand.source][summand.op] = None  # type: ignore[index]
        for digest in outputs if readout is not None else ():
            leaving[digest][readout] = None  # type: ignore[index]
        num_inputs = 1 + max(
            (s.source for digest in order for s in self._rows[digest] if isinstance(s.source, int)), default=0
        )
        slots: dict[tuple[str | int, Dense | None], int] = {(i, None): i for i in range(num_inputs)}
        count = num_inputs
        steps: list[Step] = []
        means: list[tuple[MeanTerm, ...]] = []
        weights: list[float] = []
        mean_weights: list[float] = []
        operations: dict[Dense, int] = {}
        for digest in order:
            terms = tuple(Term(slots[summand.source, summand.op]) for summand in self._rows[digest])
            weights += [summand.a for summand in self._rows[digest]]
            with_mean = [summand for summand in self._rows[digest] if summand.b]
            means.append(tuple(MeanTerm(slots[summand.source, summand.op], None) for summand in with_mean))
            mean_weights += [summand.b for summand in with_mean]
            fields = []
            for i, op in enumerate(leaving[digest], start=count + 1):
                slots[digest, op] = i
                fields.append(Field(operations.setdefault(op, len(operations)), i))
            steps.append(Step(terms, count, number[digest], tuple(fields)))
            count += 1 + len(fields)
        ends = {digest: number[digest] for digest in outputs}
        if readout is not None:
            for digest in ends:
                ends[digest] = len(steps)
                steps.append(Step((Term(slots[digest, readout]),), count, ends[digest], ()))
                weights.append(1.0)
                means.append(())
                count += 1
        structure = Structure(
            num_inputs,
            count,
            tuple(steps),
            tuple(means) if mean_weights else (),
            tuple(ends[digest] for digest in outputs),
        )
        return Program(structure, np.array(weights, float), np.array(mean_weights, float), tuple(operations))

    def _needed(self, outputs: Iterable[str]) -> list[str]:
        """Returns the given classes and all that they depend on, sources first."""
        needed = set(outputs)
        order = []
        for digest in reversed(self._rows):
            if digest in needed:
                order.append(digest)
                needed.update(str(summand.source) for summand in self._rows[digest] if summand.op is not None)
        return order[::-1]

    def _text(self, op: Dense | None) -> str:
        """Returns an operation's text in digests: its `repr`, with a number where different operations share one."""
        if op is None:
            return "stem"
        if op not in self._texts:
            text, taken = repr(op), set(self._texts.values())
            self._texts[op] = next(t for i in range(len(taken) + 1) if (t := text + f" #{i}" * (i > 0)) not in taken)
        return self._texts[op]
