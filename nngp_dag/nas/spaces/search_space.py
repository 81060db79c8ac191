"""Search spaces as supernets: which operation may lie on which edge, and what is left of them."""

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
    """A space of cells, as the supernet that holds them all.

    A mask says which operations are live, (cell types, edges, operations); an edge without one is off.

    Attributes:
      name: Name of the space.
      operations: What an edge may carry.
      cell_types: Cells that are searched together.
      edges: (source, target) of every edge, those into the first node first.
      num_inputs: Nodes that hold a cell's inputs, the first ones.
      outputs: Nodes that make the cell's output.
      inputs_per_node: How many of a node's edges stay in the end; None for all.

    Example:
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
        """The edges into each node, as (first, one past the last)."""
        targets = [target for _, target in self.edges]
        return tuple((targets.index(t), targets.index(t) + targets.count(t)) for t in sorted(set(targets)))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of masks: cell types, edges, operations."""
        return len(self.cell_types), len(self.edges), len(self.operations)

    @property
    def weighted(self) -> Bool[np.ndarray, " operations"]:
        """Which operations have weights, as effective depth counts them."""
        return self._carry(Op.WEIGHTED)

    @property
    def skips(self) -> Bool[np.ndarray, " operations"]:
        """Which operations count as skips: the identity, and pooling."""
        return self._carry(Op.SKIP)

    def _carry(self, op: Op) -> Bool[np.ndarray, " operations"]:
        known = NASBENCH201_OPS | DARTS_OPS
        return np.array([known[name] is op for name in self.operations])

    def full_mask(self, *, without_none: bool = True) -> Mask:
        """Returns the mask of the whole supernet, by default without `none`, as the search starts."""
        mask = np.ones(self.shape, bool)
        mask[..., self.operations.index("none")] = not without_none
        return mask

    def mixture(
        self, mask: Bool[np.ndarray, "*batch edges operations"]
    ) -> Float[np.ndarray, "*batch edges operations"]:
        """Returns the weights of the live operations, equal on every edge, float32; zero where an edge is off."""
        return _shares(mask).astype(np.float32)

    def expected_depth_and_width(
        self, weights: Shaped[np.ndarray, "*batch edges operations"]
    ) -> Float[np.ndarray, "*batch 2"]:
        """Returns effective depth and width of a cell whose every edge carries one operation at random.

        A path's probability is the product of those of its edges. The depth is the mean depth of a path under these,
        both inputs pooled; the width is the expected number of paths with a weighted edge, over the depth; both are 0
        where there is no path. A mask of one operation per edge gives the cell's effective depth and width exactly.
        One sweep over the edges carries, of the polynomial in z of every node whose coefficient of z^k is the expected
        number of paths of depth k, its value and slope at z = 1 and its value at z = 0.

        The released code weights the two inputs of DARTS by their numbers of different paths instead; it agrees on
        single cells and where both inputs have the same edges.

        Args:
          weights: Masks, or numbers in proportion to the probabilities of the operations.

        Returns:
          (depth, width), float64.

        Example:
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
        """Returns whether some path of live operations leads through a cell."""
        return self._sweep(weights)[0] > 0

    def _sweep(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Expected numbers of paths, of weighted edges on them, and of paths without a weighted edge."""
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
        """Returns the cell that is left: a `Cell`, or a `Genotype` of the two edges that each node keeps.

        Raises:
          InputError: An edge has several operations, or a node not as many edges as its cell has.
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
        """Returns the mask that leaves this cell alone, the inverse of `cell_of`.

        Raises:
          InputError: The cell is of another space, or a node of it reads one input twice, which no mask says.
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
                        raise InputError(f"Expected every node to read an input once, got twice {edge} in {cell}")
                    mask[t, edge, self.operations.index(operation)] = True
            return mask
        raise InputError(f"Expected a cell of {self.name}, got {cell}")

    def check(self, mask: np.ndarray) -> None:
        """Raises an `InputError` unless `mask` is one of this space."""
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
"""The spaces by name."""


def get_space(name: str) -> SearchSpace:
    """Returns a space by its name.

    Raises:
      InputError: There is none of that name.
    """
    if name not in SPACES:
        raise InputError(f"Expected `space` to be one of {', '.join(SPACES)}, got {name!r}{did_you_mean(name, SPACES)}")
    return SPACES[name]
