"""The device and the versions of packages with which results were computed."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from nngp_dag.errors import CheckpointError

# Another version of these packages may compute other bits.
_COMPUTING = ("nngp-dag", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def environment() -> dict[str, str]:
    """Returns the device, and the versions of Python and of the packages that compute results."""
    import jax

    return {
        "device": str(jax.devices()[0].device_kind),
        "python": platform.python_version(),
        **{name: version(name) for name in (*_COMPUTING, "orbax-checkpoint")},
    }


def environments(before: Mapping[str, Any] | None, path: Path) -> dict[str, Any]:
    """Returns the entries of a configuration for the environments in which results began and were resumed.

    Args:
      before: Configuration of the results to resume, or None for new results.
      path: Folder of the results, for messages.

    Raises:
      CheckpointError: The results were computed by other versions, which may compute other bits.
    """
    now = environment()
    if before is None:
        return {"environment": now}
    began, later = before["environment"], before.get("resumed_in", [])
    for name in _COMPUTING:
        if began.get(name) != now[name]:
            raise CheckpointError(
                f"Expected {name} {began.get(name)}, by which the results in {path} were computed, got {now[name]}, "
                "which may compute other bits; install that version, or start anew in another output"
            )
    if now != began and now not in later:
        later = [*later, now]
    return {"environment": began, "resumed_in": later}
