"""Search spaces as supernets, and masks that say which operations of a supernet are live."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Shaped

from nngp_dag.errors import InputError, did_you_mean
from nngp_dag.graph.codes import DARTS_OPS, NASBENCH201_OPS
from nngp_dag.graph.operations import Op
from nngp_dag.nas.spaces import darts
from nngp_dag.nas.spaces.cells import EDGES, OPERATIONS, Cell
from nngp_dag.nas.spaces.darts import Genotype

Mask = Bool[np.ndarray, "types edges operations"]


@dataclass(frozen=True)
class SearchSpace:
    """A search space of cells, as the supernet that contains them all.

    A mask, (cell types, edges, operations), says which operations are live. An edge without live operations is absent.

    Attributes:
      name: Name of the space.
      operations: Operations that an edge may carry.
      cell_types: Names of the cells that are searched together.
      edges: (source, target) of every edge, those into the first node first.
      num_inputs: Number of inputs of a cell, which are its first nodes.
      outputs: Nodes that form the output of the cell.
      inputs_per_node: Number of edges into a node that a cell keeps. None for all.

    Examples:
      >>> space = get_space("nasbench201")
      >>> space.expected_depth_and_width(space.full_mask())
      array([[1.   , 2.875]])

    Reference: Chen, Gong, Wang, TE-NAS, ICLR 2021, Section 3.2.
    """

    name: str
    operations: tuple[str, ...]
    cell_types: tuple[str, ...]
    edges: tuple[tuple[int, int], ...]
    num_inputs: int
    outputs: tuple[int, ...]
    inputs_per_node: int | None = None

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """The range of the edges into each node, as (first, one past the last)."""
        targets = [target for _, target in self.edges]
        return tuple((targets.index(t), targets.index(t) + targets.count(t)) for t in sorted(set(targets)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of masks: (cell types, edges, operations)."""
        return len(self.cell_types), len(self.edges), len(self.operations)

    @property
    def weighted(self) -> Bool[np.ndarray, " operations"]:
        """The operations that are weighted edges, which effective depth counts."""
        return self._carry(Op.WEIGHTED)

    @property
    def skips(self) -> Bool[np.ndarray, " operations"]:
        """The operations that are skips: the identity, and pooling."""
        return self._carry(Op.SKIP)

    def _carry(self, op: Op) -> Bool[np.ndarray, " operations"]:
        known = NASBENCH201_OPS | DARTS_OPS
        return np.array([known[name] is op for name in self.operations])

    def full_mask(self, *, without_none: bool = True) -> Mask:
        """Returns the mask of the whole supernet, by default without `none`, which is where a search starts."""
        mask = np.ones(self.shape, bool)
        mask[..., self.operations.index("none")] = not without_none
        return mask

    def mixture(
        self, mask: Bool[np.ndarray, "*batch edges operations"]
    ) -> Float[np.ndarray, "*batch edges operations"]:
        """Returns the weights of the operations, float32: equal for the live operations of an edge, 0 for others.

        Args:
          mask: Masks of the live operations, (..., edges, operations).
        """
        return _shares(mask).astype(np.float32)

    def expected_depth_and_width(
        self, weights: Shaped[np.ndarray, "*batch edges operations"]
    ) -> Float[np.ndarray, "*batch 2"]:
        """Returns effective depth and width of a cell whose edges each carry one operation at random.

        The probability of a path is the product of the probabilities of its edges. The depth is the mean number of
        weighted edges on a path, with these probabilities, over the paths from all inputs. The width is the expected
        number of paths with a weighted edge, divided by the depth. Both are 0 where there is no path. A mask with one
        operation per edge gives the effective depth and width of that cell exactly.

        The released code weights the two inputs of DARTS by their numbers of distinct paths instead. It agrees for
        single cells, and where both inputs have the same edges.

        Args:
          weights: Masks, or weights proportional to the probabilities of the operations, (..., edges, operations).

        Returns:
          Pairs (depth, width), (..., 2), float64.

        Examples:
          >>> space = get_space("darts")
          >>> space.expected_depth_and_width(space.full_mask()).round(8).tolist()
          [[1.21904762, 19.41690962], [1.21904762, 19.41690962]]

        Reference: Chen et al., NeurIPS 2022, Section 5.
        """
        total, slope, flat = self._sweep(weights)
        depth = np.divide(slope, total, out=np.zeros_like(total), where=total > 0)
        width = np.divide(total - flat, depth, out=np.zeros_like(total), where=depth > 0)
        return np.stack([depth, width], -1)

    def has_paths(self, weights: Shaped[np.ndarray, "*batch edges operations"]) -> Bool[np.ndarray, "*batch"]:
        """Returns whether a path of live operations leads through a cell."""
        return self._sweep(weights)[0] > 0

    def _sweep(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns expected numbers: of paths, of weighted edges on all paths, and of paths without a weighted edge."""
        # Let P(z) be the polynomial of a node whose coefficient of z^k is the expected number of paths to it with k
        # weighted edges. An edge multiplies P by (s + w z). The three numbers are P(1), P'(1) and P(0), and one sweep
        # over the edges carries them without listing paths.
        shares = _shares(weights)
        weighted, skips = (shares[..., kind].sum(-1) for kind in (self.weighted, self.skips))
        nodes = 1 + max(target for _, target in self.edges)
        paths, slopes, unweighted = np.zeros((3, nodes, *shares.shape[:-2]))
        paths[: self.num_inputs] = unweighted[: self.num_inputs] = 1
        for i, (source, target) in enumerate(self.edges):
            w, s = weighted[..., i], skips[..., i]
            paths[target] += (w + s) * paths[source]
            slopes[target] += (w + s) * slopes[source] + w * paths[source]
            unweighted[target] += s * unweighted[source]
        total, slope, flat = (values[list(self.outputs)].sum(0) for values in (paths, slopes, unweighted))
        return total, slope, flat

    def cell_of(self, mask: Mask) -> Cell | Genotype:
        """Returns the cell of a mask: a `Cell`, or a `Genotype`.

        Args:
          mask: A mask with at most one live operation per edge, (cell types, edges, operations).

        Raises:
          InputError: An edge has several operations, or a node does not have the number of edges that its cell keeps.
        """
        self.check(mask)
        live = mask.sum(-1)
        if live.max() > 1:
            raise InputError(f"Expected `mask` to leave at most one operation on every edge, got {live.max()}")
        chosen = mask.argmax(-1)
        if self.inputs_per_node is None:
            none = self.operations.index("none")
            return Cell(tuple(self.operations[op if on else none] for op, on in zip(chosen[0], live[0], strict=True)))
        kept = np.array([live[:, first:last].sum(-1) for first, last in self.groups])
        if (kept != self.inputs_per_node).any():
            raise InputError(f"Expected `mask` to leave {self.inputs_per_node} edges into every node, got {kept.T}")
        pairs = (
            tuple((self.operations[op], source) for op, on, (source, _) in zip(*each, self.edges, strict=True) if on)
            for each in zip(chosen, live, strict=True)
        )
        return Genotype(*pairs)

    def mask_of(self, cell: Cell | Genotype) -> Mask:
        """Returns the mask of a cell; this is the inverse of `cell_of`.

        Raises:
          InputError: The cell is from another space, or a node reads one input twice, which a mask cannot express.
        """
        mask = np.zeros(self.shape, bool)
        if isinstance(cell, Cell) == (self.inputs_per_node is None):
            if isinstance(cell, Cell):
                mask[0, range(len(self.edges)), cell.codes] = True
                return mask
            for t, name in enumerate(self.cell_types):
                for i, (operation, source) in enumerate(getattr(cell, name)):
                    edge = self.edges.index((source, i // 2 + self.num_inputs))
                    if mask[t, edge].any():
                        raise InputError(f"Expected every node to read an input once, got edge {edge} twice in {cell}")
                    mask[t, edge, self.operations.index(operation)] = True
            return mask
        raise InputError(f"Expected a cell of {self.name}, got {cell}")

    def check(self, mask: np.ndarray) -> None:
        """Refuses a mask that is not one of this space.

        Raises:
          InputError: The mask has another shape or dtype.
        """
        if mask.shape != self.shape or mask.dtype != bool:
            raise InputError(f"Expected `mask` to be bool, {self.shape}, got {mask.dtype}, {mask.shape}")


def _shares(weights: np.ndarray) -> np.ndarray:
    weights = np.asarray(weights, np.float64)
    total = weights.sum(-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


SPACES = {
    space.name: space
    for space in (
        SearchSpace("nasbench201", OPERATIONS, ("cell",), EDGES, 1, (3,)),
        SearchSpace("darts", darts.OPERATIONS, darts.CELL_TYPES, darts.EDGES, 2, darts.CONCAT, 2),
    )
}
"""The search spaces by name."""


def get_space(name: str) -> SearchSpace:
    """Returns a search space by its name, "nasbench201" or "darts".

    Raises:
      InputError: No search space has this name.

    Examples:
      >>> get_space("darts").shape
      (2, 14, 8)
    """
    if name not in SPACES:
        raise InputError(f"Expected `space` to be one of {', '.join(SPACES)}, got {name!r}{did_you_mean(name, SPACES)}")
    return SPACES[name]
