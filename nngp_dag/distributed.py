"""Processes and devices that work on one task, on JAX's own runtime.

Every process runs the same program. `join` connects them, and all devices form a mesh of one axis, `AXIS`. Arrays that
all devices hold are made by `replicated`, batches by `spread`. Process 0 alone writes files.
"""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from nngp_dag.errors import DistributedError, InputError, NngpDagError, shown

__all__ = [
    "AXIS",
    "check_mesh",
    "first_does",
    "from_first",
    "is_first",
    "join",
    "leave",
    "mesh",
    "replicated",
    "rows_here",
    "rows_spec",
    "spread",
    "together",
]

AXIS = "devices"
"""Name of the only axis of a mesh of all devices."""

_JOIN_SECONDS = 120
_NEVER_SECONDS = 100_000
# A process that is gone is missed after half of this time to all of it, and the others end. JAX's default is 100
# seconds. `sharing` notices it before, and says so in one line.
_MISSED_SECONDS = 56

# Parts of the messages of gloo, NCCL and JAX's coordination service when a process is gone.
_LOST = ("gloo", "nccl", "connection", "socket", "heartbeat", "unavailable", "barrier", "coordination")

# Whether this process has asked for others that have not all joined.
_joining = False

Tree = TypeVar("Tree")


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: int = _JOIN_SECONDS,
) -> Mesh:
    """Connects this process with the others, and returns the mesh of all devices.

    Without arguments JAX reads them from SLURM, Open MPI, Kubernetes or a TPU pod. Where there is none of these, this
    process works alone, on all of its devices. It must be called before any computation, since JAX then starts its
    devices.

    Args:
      coordinator: Address of process 0, as HOST:PORT, which all processes can reach.
      processes: Number of processes.
      process_id: Number of this process, from 0.
      timeout: Seconds within which all processes must join.

    Returns:
      The mesh of all devices of all processes, with one axis, `AXIS`.

    Raises:
      InputError: Only some of the three arguments are given, or one is out of range.
      DistributedError: A process did not join in time, or JAX already runs.

    Examples:
      >>> join().axis_names
      ('devices',)

    Reference: the documentation of `jax.distributed.initialize`.
    """
    given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(
            f"Expected `coordinator`, `processes` and `process_id` together, got no `{missing[0]}`; pass it too, or "
            "none of them on a cluster that JAX detects"
        )
    if coordinator is not None and processes is not None and process_id is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal():
            raise InputError(f"Expected `coordinator` to be HOST:PORT, got {shown(coordinator)}")
        if not 0 <= process_id < processes:
            raise InputError(
                f"Expected `process_id` from 0 to {processes - 1}, for {processes} processes, got {process_id}"
            )
    global _joining
    if not jax.distributed.is_initialized():
        _joining = True
        _initialize(coordinator, processes, process_id, timeout)
        _joining = False
        # The first message between processes, during which gloo prints a line of its own.
        with _output_as_errors():
            from_first(np.zeros(1))
    return mesh()


def _initialize(coordinator: str | None, processes: int | None, process_id: int | None, timeout: int) -> None:
    try:
        _initialize_within(timeout, coordinator, processes, process_id)
    # JAX raises errors of several types, some of them from C++.
    except Exception as error:
        text = " ".join(str(error).split())
        if coordinator is None and "must be called before" in text and jax.process_count() == 1:
            return
        if "must be called before" in text:
            raise DistributedError(
                "Expected to join the other processes before any computation, got devices that already run; call "
                "`nngp_dag.distributed.join` first"
            ) from None
        # Without a cluster there is no address to be found.
        if coordinator is None and isinstance(error, ValueError):
            return
        where = f"{processes} processes at {coordinator}" if coordinator else "the processes of the cluster"
        late = isinstance(error, TimeoutError)
        reason = f"not all of them within {timeout} s" if late else f"an error: {text[:200]}"
        raise DistributedError(
            f"Expected {where} to join, got {reason}; start each with its own `process_id`, and check that all of them "
            "reach that address"
        ) from None


def _initialize_within(timeout: int, *arguments: Any) -> None:
    """Calls `jax.distributed.initialize`; raises a `TimeoutError` if that takes longer."""
    errors: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(
                *arguments,
                initialization_timeout=_NEVER_SECONDS,
                heartbeat_timeout_seconds=_MISSED_SECONDS,
                shutdown_timeout_seconds=_MISSED_SECONDS,
            )
        except Exception as error:
            errors.append(error)

    # JAX would take SIGTERM for the notice of a cluster, and keep it from ending this process.
    jax.config.update("jax_enable_preemption_service", False)
    # At its own time limit JAX aborts the process from C++, with a stack trace in place of a message. So it has none,
    # and this thread waits instead.
    thread = threading.Thread(target=initialize, daemon=True, name="nngp-dag join")
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise TimeoutError
    if errors:
        raise errors[0]


@contextlib.contextmanager
def _output_as_errors() -> Iterator[None]:
    """Sends what C++ prints on the output stream to the error stream, since results are read from the former."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def mesh() -> Mesh:
    """Returns the mesh of all devices of all processes, with one axis, `AXIS`.

    Examples:
      >>> mesh().axis_names
      ('devices',)
    """
    return Mesh(np.array(jax.devices()), (AXIS,))


def check_mesh(mesh: Any) -> Mesh:
    """Returns a mesh that has one axis, whatever its name.

    Raises:
      InputError: `mesh` is no mesh, or has several axes.
    """
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) != 1:
        got = f"one with axes {mesh.axis_names}" if isinstance(mesh, Mesh) else shown(mesh)
        raise InputError(
            f"Expected `mesh` to be a `jax.sharding.Mesh` with one axis, got {got}; pass `nngp_dag.distributed.mesh()`"
        )
    return mesh


def is_first() -> bool:
    """Returns whether this is process 0, which writes files and messages.

    Examples:
      >>> is_first()
      True
    """
    # Devices start with the first question about processes, so a process that works alone does not ask.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def first_does(action: Callable[[], object]) -> None:
    """Runs an action in process 0, for which the others wait; its error stops all of them.

    Raises:
      DistributedError: The action failed, and this is another process.

    Examples:
      >>> first_does(lambda: print("once"))
      once
    """
    error: BaseException | None = None
    if is_first():
        try:
            action()
        except BaseException as caught:
            error = caught
    [failed] = from_first([np.array([error is not None])])
    if error is not None:
        raise error
    if failed.any():
        raise DistributedError("Expected process 0 to go on, got an error there; see its message")


def leave(status: int) -> None:
    """Ends this process at once if it works with others, after an error.

    At a usual end JAX waits for all processes, and aborts with a stack trace if one of them is gone.

    Examples:
      >>> leave(2)  # alone
    """
    if _joining or jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        # The end of process 0 aborts the others, which may be about to print their message. Where not all have joined,
        # JAX aborts this process before long.
        if not _joining and is_first():
            time.sleep(1)
        os._exit(status)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Turns the error of JAX that another process is gone into one line.

    Raises:
      DistributedError: Another process ended inside the block.

    Examples:
      >>> with together():
      ...     print("at work")
      at work
    """
    try:
        yield
    # JAX turns some failures of the runtime into a ValueError.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        if isinstance(error, NngpDagError) or not jax.distributed.is_initialized():
            raise
        if not any(word in text.lower() for word in _LOST):
            raise
        raise DistributedError(
            f"Expected all {jax.process_count()} processes to go on, got one that ended ({text[:100]}); see its "
            "message, and start all of them again"
        ) from None


def from_first(tree: Tree) -> Tree:
    """Returns the arrays of process 0, bit by bit, in all processes.

    Args:
      tree: Arrays. In other processes only their shapes and dtypes matter.

    Returns:
      The tree of process 0 with NumPy arrays; the tree itself if this process works alone.

    Examples:
      >>> from_first({"a": np.ones(2)})
      {'a': array([1., 1.])}
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        return tree
    from jax.experimental.multihost_utils import broadcast_one_to_all

    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    # JAX would round float64, and add a zero to a negative one. Whole numbers arrive as they are.
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)
    words = np.frombuffer(data + bytes(-len(data) % 4), np.uint32)
    data, at, found = np.asarray(broadcast_one_to_all(words)).tobytes(), 0, []
    for array in arrays:
        found.append(np.frombuffer(data, array.dtype, array.size, at).reshape(array.shape))
        at += array.nbytes
    return jax.tree.unflatten(structure, found)


def replicated(tree: Tree, mesh: Mesh) -> Tree:
    """Returns arrays that every device of a mesh holds.

    Args:
      tree: Arrays, equal in all processes.
      mesh: The mesh.

    Examples:
      >>> replicated(np.ones(2), mesh()).is_fully_replicated
      True
    """
    sharding = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _whole(np.asarray(leaf), sharding), tree)


def _whole(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def rows_here(mesh: Mesh, count: int) -> slice:
    """Returns the rows of an array of `count` rows that the devices of this process hold, when `spread` makes it.

    Rows that cannot be divided among the devices are held by all of them.

    Raises:
      InputError: The devices of this process do not stand side by side in the mesh.

    Examples:
      >>> rows_here(mesh(), 8)
      slice(0, 8, None)
    """
    if count % mesh.size:
        return slice(0, count)
    each = count // mesh.size
    here = [i for i, device in enumerate(mesh.devices.flat) if device.process_index == jax.process_index()]
    if not here or here != list(range(here[0], here[-1] + 1)):
        raise InputError(
            "Expected the devices of every process side by side in `mesh`, got another order; pass "
            "`nngp_dag.distributed.mesh()`"
        )
    return slice(here[0] * each, (here[-1] + 1) * each)


def spread(array: np.ndarray, mesh: Mesh, count: int, axis: int = 0) -> jax.Array:
    """Returns an array whose rows are divided among the devices, made of the rows that each process holds.

    Args:
      array: The rows of `rows_here`.
      mesh: The mesh.
      count: Number of rows of all processes together.
      axis: Axis of the rows.

    Examples:
      >>> spread(np.ones((8, 3)), mesh(), 8).shape
      (8, 3)
    """
    shape = (*array.shape[:axis], count, *array.shape[axis + 1 :])
    sharding = NamedSharding(mesh, rows_spec(mesh, count, axis))
    return jax.make_array_from_process_local_data(sharding, array, shape)


def rows_spec(mesh: Mesh, count: int, axis: int = 0) -> PartitionSpec:
    """Returns how an axis of `count` rows is divided: among all devices, or not at all if it cannot be."""
    return PartitionSpec() if count % mesh.size else PartitionSpec(*[None] * axis, mesh.axis_names[0])
