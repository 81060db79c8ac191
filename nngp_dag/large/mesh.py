"""The devices that share the rows: a mesh with one axis, on one process or on several."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from nngp_dag.distributed import check_mesh
from nngp_dag.errors import InputError

ROWS = "rows"


class Team:
    """The devices of a mesh. Rows are dealt to them in equal parts, in order.

    Attributes:
      mesh: The mesh, whose only axis is `ROWS`.
      size: Number of devices.
      whole: The sharding of arrays of which every device has a copy.
      is_first: Whether this process writes the results.
      several: Whether several processes take part.
    """

    def __init__(self, mesh: Mesh | None = None) -> None:
        """Takes one device by default; after `jax.distributed.initialize`, all devices of all processes.

        Raises:
          InputError: The mesh has several axes, or lacks devices of this process.
        """
        if mesh is None:
            devices = np.array(jax.devices() if jax.process_count() > 1 else jax.local_devices()[:1])
        else:
            devices = check_mesh(mesh).devices
        processes = sorted({device.process_index for device in devices.flat})
        if jax.process_index() not in processes:
            raise InputError("Expected `mesh` to hold a device of every process, got none of this one")
        self.mesh, self.size = Mesh(devices.reshape(-1), (ROWS,)), devices.size
        self.whole = NamedSharding(self.mesh, P())
        self.is_first, self.several = jax.process_index() == processes[0], len(processes) > 1

    def __eq__(self, other: object) -> bool:
        """Whether both have the same devices."""
        return isinstance(other, Team) and self.mesh == other.mesh

    def __hash__(self) -> int:
        """Returns a hash of the mesh."""
        return hash(self.mesh)

    @property
    def factors(self) -> bool:
        """Whether the devices compute factors of the whole kernel; LAPACK does it for a single CPU."""
        return self.size > 1 or self.mesh.devices.flat[0].platform != "cpu"

    def shard(self, function: Callable[..., Any], in_specs: Any, out_specs: Any, donate: Sequence[int] = ()) -> Any:
        """Returns the compiled function of what every device holds."""
        mapped = jax.shard_map(function, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return jax.jit(mapped, donate_argnums=tuple(donate))

    def dealt(self, array: np.ndarray) -> jax.Array:
        """Returns an array whose first axis, a multiple of the number of devices, is dealt to them."""
        sharding = NamedSharding(self.mesh, P(ROWS))
        return jax.make_array_from_callback(array.shape, sharding, lambda index: np.ascontiguousarray(array[index]))

    def zeros(self, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """Returns zeros, whose first axis is dealt to the devices."""

        def part(index: Any) -> np.ndarray:
            return np.zeros([len(range(*at.indices(size))) for at, size in zip(index, shape, strict=True)], dtype)

        return jax.make_array_from_callback(shape, NamedSharding(self.mesh, P(ROWS)), part)

    def everywhere(self, array: Any) -> jax.Array:
        """Returns an array of which every device has a copy."""
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, self.whole, lambda index: array[index])

    def fetched(self, array: jax.Array) -> np.ndarray:
        """Returns an array on the host: one of which every device has a copy, or one that is dealt out."""
        if array.is_fully_addressable:
            return np.asarray(array)
        if not array.is_fully_replicated:
            array = _copied(self.whole)(array)
        return np.asarray(array.addressable_data(0))

    def wait(self, name: str) -> None:
        """Waits until all processes have come here."""
        if self.several:
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices(name)


@functools.lru_cache(maxsize=16)
def _copied(to: NamedSharding) -> Any:
    return jax.jit(lambda v: v, out_shardings=to)


def padded(array: np.ndarray, rows: int) -> np.ndarray:
    """Returns an array with copies of its last row at the end, (rows, ...), or with zeros if it has no row."""
    if not len(array):
        return np.zeros((rows, *array.shape[1:]), array.dtype)
    return array[np.minimum(np.arange(rows), len(array) - 1)]
