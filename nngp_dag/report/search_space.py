"""The graphs of a search: all codes of some nodes as the corners of one continuous space.

The complete graph has a skip and a weighted edge between every pair of nodes s < t. A pair's state is none, skip or
weighted, with probabilities p that sum to 1. Let m be the largest 1 - p_none of the pairs into a node. Their skips have
the weights p_skip / m, and their weighted edges sqrt(p_weighted / m), so that variances count with p_weighted.

The division by m keeps one edge into every node at full strength. Without it the kernel could shrink to any scale while
all probabilities stay away from 0 and 1. No code has such a kernel, but some objectives prefer it. Where each pair has
one state with p = 1, m is 1 at every node with edges, and this is the network of a code.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.architecture import Network
from nngp_dag.graph import Dag

STATES = ("none", "skip", "weighted")
"""States of a pair of nodes, in the order of the digits of a code."""

Digits = tuple[int, ...]


@dataclass(frozen=True)
class SearchSpace:
    """All codes of a number of nodes, and the relaxation whose corners they are.

    Attributes:
      network: The network of the complete graph, with a skip and a weighted edge for every pair of nodes.
    """

    network: Network

    @staticmethod
    def complete_graph(num_nodes: int) -> Dag:
        """Returns the graph with a skip and a weighted edge for every pair of nodes.

        Examples:
          >>> [str(edge) for edge in SearchSpace.complete_graph(2).edges]
          ['0->1:skip', '0->1:weighted']
        """
        pairs = itertools.combinations(range(num_nodes), 2)
        return Dag.from_edges([(s, t, state) for s, t in pairs for state in STATES[1:]])

    @functools.cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs (s, t) of nodes in the order of the digits of a code."""
        return tuple((s, t) for t in range(1, self.network.dag.num_nodes) for s in range(t))

    def shares(self, log_p: jax.Array) -> jax.Array:
        """Returns the logarithms of p_skip / m and p_weighted / m for log probabilities, (pairs, 3) -> (pairs, 2)."""
        log_m = []
        for t in range(1, self.network.dag.num_nodes):
            into = log_p[t * (t - 1) // 2 : t * (t + 1) // 2, 1:]
            largest = jax.nn.logsumexp(into, axis=1).max()
            # A node of a code without edges has m = 0; its shares stay 0.
            log_m += [jnp.where(jnp.isfinite(largest), largest, 0.0)] * t
        return log_p[:, 1:] - jnp.stack(log_m)[:, None]

    def parameters(self, log_p: jax.Array) -> dict[str, Any]:
        """Returns the numbers of `network` for log probabilities of the states, (pairs, 3)."""
        edges = {}
        for (s, t), (skip, weighted) in zip(self.pairs, self.shares(log_p), strict=True):
            edges[f"{s}->{t}:skip"] = {"weight": jnp.exp(skip)}
            # The root is taken of the logarithm, so that its derivative is finite at p = 0.
            edges[f"{s}->{t}:weighted"] = {"weight": jnp.exp(0.5 * weighted)}
        return {"edges": edges}

    def weights(self, log_p: jax.Array) -> jax.Array:
        """Returns the shares of none, skip and weighted, which sum to 1 for every pair, (pairs, 3)."""
        present = jnp.exp(self.shares(log_p))
        return jnp.concatenate([jnp.maximum(0, 1 - present.sum(axis=1, keepdims=True)), present], axis=1)

    def corner(self, digits: Digits) -> np.ndarray:
        """Returns the log probabilities of a code, (pairs, 3): 0 for its states, and -inf for all others."""
        return np.where(np.arange(3) == np.array(digits)[:, None], 0.0, -np.inf)

    def code(self, digits: Digits) -> str:
        """Returns the code with some digits."""
        left = iter(map(str, digits))
        return "_".join("".join(itertools.islice(left, t)) for t in range(1, self.network.dag.num_nodes))

    def is_valid(self, digits: Digits) -> bool:
        """Whether a path of a code leads from node 0 to the last node."""
        reached = {0}
        for (s, t), digit in zip(self.pairs, digits, strict=True):
            if digit and s in reached:
                reached.add(t)
        return self.network.dag.num_nodes - 1 in reached

    def valid(self) -> Iterator[Digits]:
        """Yields the digits of every code with a path from node 0 to the last node."""
        return filter(self.is_valid, itertools.product(range(3), repeat=len(self.pairs)))

    def neighbors(self, digits: Digits) -> Iterator[Digits]:
        """Yields the valid codes that differ in the state of one pair, and those that are one layer deeper.

        A weighted edge becomes two, with a node in the middle that was on no path. A single change cannot do that: it
        needs an edge into that node, an edge out of it, and the removal of the old edge.
        """
        for i, digit in enumerate(digits):
            for other in range(3):
                changed = (*digits[:i], other, *digits[i + 1 :])
                if other != digit and self.is_valid(changed):
                    yield changed
        state = dict(zip(self.pairs, digits, strict=True))
        for node in self._idle(state):
            for (s, t), digit in state.items():
                if digit == 2 and s < node < t:
                    deeper = {pair: 0 if node in pair or pair == (s, t) else one for pair, one in state.items()}
                    yield tuple({**deeper, (s, node): 2, (node, t): 2}.values())

    def _idle(self, state: Mapping[tuple[int, int], int]) -> list[int]:
        """Returns the nodes on no path from node 0 to the last node."""
        last = self.network.dag.num_nodes - 1
        reached, reaching = {0}, {last}
        for (s, t), digit in state.items():
            if digit and s in reached:
                reached.add(t)
        for (s, t), digit in sorted(state.items(), reverse=True):
            if digit and t in reaching:
                reaching.add(s)
        return [node for node in range(1, last) if node not in reached & reaching]

    def rounded(self, weights: np.ndarray) -> Digits:
        """Returns the code of the largest share of every pair, (pairs, 3), with an edge into every node.

        So there is a path from node 0 to every other node.
        """
        digits = weights.argmax(axis=1)
        for t in range(1, self.network.dag.num_nodes):
            into = slice(t * (t - 1) // 2, t * (t + 1) // 2)
            if not digits[into].any():
                strongest = into.start + int(weights[into, 0].argmin())
                digits[strongest] = 1 + int(weights[strongest, 1:].argmax())
        return tuple(map(int, digits))
