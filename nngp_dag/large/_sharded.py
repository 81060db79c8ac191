"""`sharded_kernel`: a kernel whose rows lie on several devices."""

import functools
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import ArrayLike

from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError, within_memory
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_option
from nngp_dag.kernels.inputs import check_inputs, compute_dtype, precision_of
from nngp_dag.large._plan import KINDS, single_output
from nngp_dag.large.blocks import BlockKernel, Entries
from nngp_dag.large.mesh import ROWS, Team


def sharded_kernel(
    network: Network | Dag | str | NetworkSource,
    x1: ArrayLike,
    x2: ArrayLike | None = None,
    *,
    kind: str = "ntk",
    mesh: Mesh | None = None,
    dtype: str | None = None,
    **architecture: Unpack[Architecture],
) -> jax.Array:
    """Computes a kernel on several devices, each of which holds its share of the rows, and no more.

    Each device has a copy of the columns' inputs, and computes N1 N2 / P entries for P devices. (`kernel` also takes
    inputs that are sharded, but JAX then gathers whole matrices on every device.) After `jax.distributed.initialize`
    every process makes the same call with the same inputs.

    Args:
      network: The network, as in `kernel`, with one output.
      x1: Inputs of the rows, (N1, features...); N1 is a multiple of the number of devices.
      x2: Inputs of the columns, (N2, features...), or None for `x1`.
      kind: "ntk" or "nngp".
      mesh: Mesh of devices with one axis; None for all devices of all processes.
      dtype: Precision of the entries, as in `kernel`.
      **architecture: Options of the architecture, as in `kernel`.

    Returns:
      The kernel, (N1, N2), as a JAX array whose rows are dealt to the devices in order.

    Raises:
      GraphError: `kernel` would refuse the network.
      InputError: An argument is out of range. The number of rows is no multiple of the number of devices. Or entries of
        float64 are asked for while `jax_enable_x64` is off.
      OutOfMemoryError: A device cannot hold its rows.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
      >>> k = nd.sharded_kernel("2_21_112", x)
      >>> k.shape, bool(np.allclose(k, nd.kernel("2_21_112", x).ntk, rtol=1e-5))
      ((8, 8), True)
    """
    network = single_output(as_network(network, "network", sharded_kernel, **architecture), sharded_kernel)
    check_option("kind", kind, KINDS)
    team = Team(Mesh(np.array(jax.devices()), (ROWS,)) if mesh is None else mesh)
    rows = check_inputs("x1", x1, network, dtype)[0]
    columns = rows if x2 is None else check_inputs("x2", x2, network, dtype)[0]
    if rows.shape[1:] != columns.shape[1:]:
        raise InputError(f"Expected `x2` to have rows of shape {rows.shape[1:]}, got {columns.shape[1:]}")
    if len(rows) % team.size:
        raise InputError(
            f"Expected `x1` to have a multiple of {team.size} rows, one share per device, got {len(rows)}; drop "
            f"{len(rows) % team.size}, or pass a smaller `mesh`"
        )
    precision = compute_dtype(rows, columns, dtype=dtype)
    if precision == np.float64 and not jax.config.read("jax_enable_x64"):
        raise InputError(
            "Expected float32 inputs while `jax_enable_x64` is off, got float64; pass `dtype='float32'`, or turn it on"
        )
    kernel = BlockKernel(network, kind, rows.shape[1:], precision)
    given, across = np.asarray(rows, precision), np.asarray(columns, precision)
    kernel.check(given)
    what = f"{len(rows) // team.size:,} x {len(columns):,} kernel entries on every device"
    with within_memory(what, "take fewer inputs or more devices"), precision_of(precision):
        weights = jax.tree.map(team.everywhere, kernel.weights)
        program = _program(team, kernel.entries, x2 is None)
        return program(weights, team.dealt(given), team.everywhere(across))


@functools.lru_cache(maxsize=16)
def _program(team: Team, entries: Entries, symmetric: bool) -> Any:
    """Returns the compiled function of the weights, the rows of every device, and all columns."""

    def share(weights: Any, rows: jax.Array, columns: jax.Array) -> jax.Array:
        found = entries.between(weights, rows, columns)
        if symmetric:
            # Inputs have angle 0 with themselves, whatever the rounding of their products.
            own = entries.within(weights, rows)
            zero = jnp.zeros((), lax.axis_index(ROWS).dtype)
            found = lax.dynamic_update_slice(found, own, (zero, lax.axis_index(ROWS) * len(rows)))
        return found

    return team.shard(share, (P(), P(ROWS), P()), P(ROWS))
