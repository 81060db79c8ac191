"""A list of independent work that several processes share, each on its own devices.

All processes run the same program, go through the same list, and take turns. While they work, a thread in each of them
tells the others that it lives, by the coordination service of `jax.distributed`. So the end of one ends all of them.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from nngp_dag.distributed import together
from nngp_dag.errors import DistributedError, InputError

__all__ = ["Crew", "at_work", "check_equal", "gather", "gather_json", "place"]

_SIGN_SECONDS = 0.3
# A process without a sign of life for this time is gone. JAX itself ends all processes after 28 to 56 seconds, with a
# stack trace in place of a message.
_GONE_SECONDS = 25
# A process that is busy with one item for longer is then ended from its thread.
_GRACE_SECONDS = 2

_blocks = 0


def place() -> tuple[int, int]:
    """Returns the number of this process and the number of processes, (0, 1) if it works alone.

    Examples:
      >>> place()
      (0, 1)
    """
    # Devices start with the first question about processes, so a process that works alone does not ask.
    return (jax.process_index(), jax.process_count()) if jax.distributed.is_initialized() else (0, 1)


def gather(data: bytes) -> list[bytes]:
    """Returns the bytes that every process passes, in the order of the processes.

    Raises:
      DistributedError: Another process ended.

    Examples:
      >>> gather(b"alone")
      [b'alone']
    """
    if place()[1] == 1:
        return [data]
    from jax.experimental.multihost_utils import process_allgather

    with together():
        sizes = np.asarray(process_allgather(np.array(len(data), np.uint32)))
        # Whole numbers arrive as they are. All processes must pass equal shapes.
        words = np.frombuffer(data.ljust(-(-int(sizes.max()) // 4) * 4, b"\0"), np.uint32)
        # An array without entries does not travel.
        found = np.asarray(process_allgather(words)) if words.size else np.zeros((len(sizes), 0), np.uint32)
    return [row.tobytes()[:size] for row, size in zip(found, sizes.tolist(), strict=True)]


def gather_json(value: Any) -> list[Any]:
    """Returns the values that every process passes, in the order of the processes; numbers keep all bits.

    Args:
      value: Dictionaries, lists, texts and numbers, which may be NumPy's.

    Examples:
      >>> gather_json({"a": [0.1, float("inf")]})
      [{'a': [0.1, inf]}]
    """
    return [json.loads(text) for text in gather(json.dumps(value, default=lambda number: number.item()).encode())]


def check_equal(what: str, document: Mapping[str, Any]) -> None:
    """Checks that all processes were given the same work.

    Args:
      what: The work, for the message.
      document: Everything on which the results depend, in types that JSON has.

    Raises:
      InputError: The documents differ.

    Examples:
      >>> check_equal("a sweep", {"inputs": [3, 4]})
    """
    first, *others = gather_json(dict(document))
    for number, other in enumerate(others, start=1):
        if other != first:
            names = [name for name in {**first, **other} if first.get(name) != other.get(name)]
            raise InputError(
                f"Expected {what} with the same inputs and options in all processes, got other {', '.join(names)} in "
                f"process {number} than in process 0; start all of them with the same command"
            )


class Crew:
    """The processes that share a list of work, see `at_work`.

    Attributes:
      process: Number of this process.
      processes: Number of processes.
      on_progress: Function that is called with the number of items that all processes have finished.
    """

    def __init__(self, on_progress: Callable[[int], None]) -> None:
        """Starts before the first item."""
        self.process, self.processes = place()
        self.on_progress = on_progress
        self._next = 0
        self._states: dict[int, list[Any]] = {}
        self._own: list[Any] = ["work", 0]
        self._lost: str | None = None
        self._stop, self._changed = threading.Event(), threading.Event()

    def takes_next(self) -> bool:
        """Returns whether the next item of the list is for this process; processes take turns.

        Raises:
          DistributedError: Another process ended.
        """
        self.check()
        number, self._next = self._next, (self._next + 1) % self.processes
        return number == self.process

    def finished(self, count: int = 1) -> None:
        """Counts finished items of this process.

        Raises:
          DistributedError: Another process ended.
        """
        self._own[1] += count
        self.check()
        self._report()

    def _report(self) -> None:
        others = [done for number, (_, done) in [*self._states.items()] if number != self.process]
        self.on_progress(self._own[1] + sum(others))

    def wait(self) -> None:
        """Waits until all processes have finished their items.

        Raises:
          DistributedError: Another process ended.
        """
        if self.processes > 1:
            self._wait("done", ("done",))
            self.check()

    def check(self) -> None:
        """Raises a `DistributedError` if another process ended."""
        if self._lost is not None:
            raise DistributedError(self._lost)

    def _watch(self, folder: str) -> None:
        """Gives signs of life and reads those of the others, in a thread of its own."""
        # JAX has no public name for its coordination service; its own checkpointing library, orbax, uses this one.
        from jax._src import distributed

        client: Any = distributed.global_state.client
        last = dict.fromkeys(range(self.processes), ("", time.monotonic()))
        beat, going, lost_at = 0, True, 0.0
        while going:
            # After the last state is set, it is told once more.
            going = not self._stop.wait(_SIGN_SECONDS if beat else 0)
            beat += 1
            try:
                client.key_value_set(f"{folder}/{self.process}", json.dumps([beat, *self._own]), allow_overwrite=True)
                found = client.key_value_dir_get(folder)
            except jax.errors.JaxRuntimeError:
                found, got = [], "process 0 that ended without a message"
            else:
                got = ""
            now = time.monotonic()
            for key, text in found:
                number = int(key.rsplit("/", 1)[-1])
                _, *self._states[number] = json.loads(text)
                if text != last[number][0]:
                    last[number] = text, now
            for number, (_, since) in last.items():
                state = self._states.get(number, ["work"])[0]
                if number != self.process and state.startswith("error"):
                    got = f"process {number} that ended with an {state}"
                elif now - since > _GONE_SECONDS:
                    got = got or f"process {number} that ended without a message"
            if got and self._lost is None:
                lost_at = now
                self._lost = (
                    f"Expected all {self.processes} processes to go on, got {got}; start all of them again to go on "
                    "from what is finished"
                )
            self._changed.set()
            if self._lost and self._own[0] == "work" and now - lost_at > _GRACE_SECONDS:
                print(f"nngp-dag: error: {self._lost}", file=sys.stderr, flush=True)
                os._exit(2)

    def _wait(self, state: str, until: tuple[str, ...], seconds: float = float("inf")) -> None:
        """Tells the others a new state, and waits until the states of all of them begin with one of `until`."""
        self._own[0] = state
        end = time.monotonic() + seconds
        others = [number for number in range(self.processes) if number != self.process]
        while not all(self._states.get(number, ["work"])[0].startswith(until) for number in others):
            if time.monotonic() > end or (state == "done" and self._lost is not None):
                break
            self._changed.wait(_SIGN_SECONDS)
            self._changed.clear()
            self._report()


@contextlib.contextmanager
def at_work(on_progress: Callable[[int], None] = lambda done: None) -> Iterator[Crew]:
    """Yields the processes that share the work of the block; it ends when all of them have finished theirs.

    All processes must enter the block. An error in one of them becomes a `DistributedError` in the others, within a
    second after their current item, or ends them 2 seconds later. The loss of a process is noticed within 26 seconds.

    Args:
      on_progress: Function that is called with the number of items that all processes have finished.

    Raises:
      DistributedError: Another process ended.

    Examples:
      >>> with at_work() as crew:
      ...     [item for item in range(4) if crew.takes_next()]
      [0, 1, 2, 3]
    """
    global _blocks
    crew = Crew(on_progress)
    if crew.processes == 1:
        yield crew
        return
    # Nobody is missed before all have come.
    gather(b"")
    _blocks += 1
    thread = threading.Thread(target=crew._watch, args=(f"nngp_dag/{_blocks}",), daemon=True, name="nngp-dag signs")
    thread.start()
    try:
        yield crew
        crew.wait()
    except BaseException as error:
        if crew._lost is not None:
            crew._own[0] = "stopped"
        else:
            # The end of process 0 would abort the others before their message.
            crew.on_progress = lambda done: None
            text = " ".join(str(error).split())[:200] or type(error).__name__
            crew._wait(f"error: {text}", ("error", "stopped"), 5 * _GRACE_SECONDS)
            if crew.process == 0:
                # Its end aborts the others, which may be about to print their message.
                time.sleep(_GRACE_SECONDS)
        raise
    finally:
        crew._stop.set()
        thread.join(5 * _GRACE_SECONDS)
