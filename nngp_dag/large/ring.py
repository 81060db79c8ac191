"""Products of the kernel of all rows with vectors, whose entries are computed anew in every product.

Every device holds its share of the inputs. In a product K V the inputs and vectors of the columns pass half around a
ring of devices. Each device multiplies the entries between its rows and those that pass with the vectors of both, since
the kernel is symmetric; sums for the rows that pass go with them, and at last back to their device. Entries have the
precision of the inputs; vectors are float64.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec as P

from nngp_dag.large.blocks import BlockKernel, Entries
from nngp_dag.large.mesh import ROWS, Team, padded

# Rows and columns of a tile of the kernel.
_TILE = 512


class _Products:
    """The compiled products of every device with the rows."""

    def __init__(self, team: Team, kernel: Entries, share: int, tile: int) -> None:
        starts = np.arange(0, share, tile)
        # Tiles below the diagonal are those above it, transposed.
        upper = np.stack(np.triu_indices(len(starts)), axis=1) * tile
        every = np.stack(np.meshgrid(starts, starts, indexing="ij"), axis=-1).reshape(-1, 2)
        # Shares come from up to half of the ring ahead. With an even number of them, two devices face each other at
        # last. One takes the tiles of the first half of its rows, and the other the rest.
        turns, facing, half = (team.size - 1) // 2, team.size % 2 == 0, len(starts) // 2 * tile
        first, rest = every[every[:, 0] < half], every[every[:, 1] >= half]

        def passed(by: int, *values: jax.Array) -> list[jax.Array]:
            ring = [(j, (j + by) % team.size) for j in range(team.size)]
            return [lax.ppermute(v, ROWS, ring) for v in values]

        def at(values: jax.Array, i: jax.Array) -> jax.Array:
            return lax.dynamic_slice_in_dim(values, i, tile)

        def added(sums: jax.Array, i: jax.Array, more: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice_in_dim(sums, at(sums, i) + more, i, 0)

        def own(weights: Any, x: jax.Array, v: jax.Array) -> jax.Array:
            pairs = jnp.asarray(upper)

            def pair(k: jax.Array, sums: jax.Array) -> jax.Array:
                i, j = pairs[k, 0], pairs[k, 1]
                found = kernel.tile(weights, at(x, i), at(x, j), i == j)
                sums = added(sums, i, found @ at(v, j))
                return lax.cond(i == j, lambda: sums, lambda: added(sums, j, found.T @ at(v, i)))

            return lax.fori_loop(0, len(upper), pair, jnp.zeros_like(v))

        def others(weights: Any, at_hand: tuple, pairs: jax.Array, count: Any) -> tuple[jax.Array, jax.Array]:
            """Returns the sums of the first tiles for the own rows, and for those at hand."""
            x, v, x2, v2 = at_hand

            def pair(k: jax.Array, sums: tuple) -> tuple:
                i, j = pairs[k, 0], pairs[k, 1]
                found = kernel.between(weights, at(x, i), at(x2, j)).astype(jnp.float64)
                return added(sums[0], i, found @ at(v2, j)), added(sums[1], j, found.T @ at(v, i))

            return lax.fori_loop(0, count, pair, (jnp.zeros_like(v), jnp.zeros_like(v2)))

        def product(weights: Any, ridge: jax.Array, x: jax.Array, v: jax.Array, mask: jax.Array) -> jax.Array:
            v = v * mask

            def turn(_: jax.Array, state: tuple) -> tuple:
                sums, *passing = state
                x2, v2, sums2 = passed(1, *passing)
                more, more2 = others(weights, (x, v, x2, v2), jnp.asarray(every), len(every))
                return sums + more, x2, v2, sums2 + more2

            sums, x2, v2 = own(weights, x, v), x, v
            if turns:
                sums, x2, v2, sums2 = lax.fori_loop(0, turns, turn, (sums, x, v, jnp.zeros_like(v)))
                sums += passed(-turns, sums2)[0]
            if facing:
                x2, v2 = passed(1, x2, v2)
                one = lax.axis_index(ROWS) < team.size // 2
                pairs = jnp.where(one, np.resize(first, rest.shape), rest)
                more, more2 = others(weights, (x, v, x2, v2), pairs, jnp.where(one, len(first), len(rest)))
                sums += more + passed(team.size // 2, more2)[0]
            return (sums + ridge * v) * mask

        local, all_ = P(ROWS), P()
        self.product = team.shard(product, (all_, all_, local, local, local), local)
        self.sums = jax.jit(lambda u, v: jnp.sum(u * v, axis=0), out_shardings=team.whole)


_products = functools.lru_cache(maxsize=16)(_Products)


class Ring:
    """The kernel of all rows plus a ridge, as an operator on columns that are dealt to the devices.

    Attributes:
      team: The devices.
      kernel: The kernel.
      count: Number of inputs N.
      rows: Number of rows of columns, with those that fill up the shares of devices.
      x: The inputs of every device.
      weights: The numbers of the compiled kernel, on every device.
      mask: 1 for rows, 0 for those that fill up the shares, (rows, 1).
      ridge: The ridge, on every device.
      entries: Number of kernel entries that were computed.
    """

    def __init__(self, team: Team, kernel: BlockKernel, x: np.ndarray, ridge: float) -> None:
        """Deals the inputs, (N, ...), to the devices; must be called where float64 is on."""
        self.team, self.kernel, self.count = team, kernel, len(x)
        share = -(-len(x) // team.size)
        tile = min(share, kernel.entries.columns if kernel.bytes_of_block else _TILE)
        share = -(-share // tile) * tile
        self.rows, self.entries, parts = share * team.size, 0, share // tile
        # Every pair of shares once, and the tiles of every share on and above its diagonal.
        pairs = team.size * (team.size - 1) // 2
        self._of_product = pairs * share**2 + team.size * tile**2 * parts * (parts + 1) // 2
        self._products = _products(team, kernel.entries, share, tile)
        self.x, self.weights = team.dealt(padded(x, self.rows)), jax.tree.map(team.everywhere, kernel.weights)
        self.mask = team.dealt((np.arange(self.rows) < len(x)).astype(np.float64)[:, None])
        self.ridge = team.everywhere(np.float64(ridge))

    def product(self, v: jax.Array) -> jax.Array:
        """Returns (K + ridge I) V."""
        self.entries += self._of_product
        return self._products.product(self.weights, self.ridge, self.x, v, self.mask)

    def compiled_product(self, v: jax.Array) -> Any:
        """Returns the compiled program of a product, which says what it sends between devices."""
        return self._products.product.lower(self.weights, self.ridge, self.x, v, self.mask).compile()

    def sums(self, u: jax.Array, v: jax.Array) -> jax.Array:
        """Returns the sums over rows of U V, (C,)."""
        return self._products.sums(u, v)

    def dealt(self, values: np.ndarray) -> jax.Array:
        """Returns columns (N, C) with zeros in the rows that fill up the shares."""
        missing = self.rows - len(values)
        return self.team.dealt(np.concatenate([values, np.zeros((missing, values.shape[1]))]))

    def fetched(self, values: jax.Array) -> np.ndarray:
        """Returns columns (N, C), or sums over rows, on the host."""
        found = self.team.fetched(values)
        return found[: self.count] if found.ndim > 1 else found
