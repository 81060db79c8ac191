"""Strict JAX for every test, and the paths of the shared reference data."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Every compiled program takes memory mappings, of which Linux gives a process 65,530: beyond, the compiler crashes.
_MAPPINGS, _LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_counted = time.monotonic()


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Forgets compiled programs when half of the mappings are taken, which is looked up every ten seconds."""
    global _counted
    yield
    if time.monotonic() - _counted > 10 and _LIMIT.exists():
        _counted = time.monotonic()
        if _MAPPINGS.read_bytes().count(b"\n") > int(_LIMIT.read_text()) // 2:
            jax.clear_caches()


def _require(path: Path) -> Path:
    if not path.exists():
        if os.environ.get("NNGP_DAG_REQUIRE_SHARED"):
            pytest.fail(f"NNGP_DAG_REQUIRE_SHARED is set, and {path} is absent")
        pytest.skip(f"reference data absent: expected {path.relative_to(SHARED.parent)} beside the project")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of independent float64 reference values."""
    return _require(SHARED / "golden")


@pytest.fixture(scope="session")
def golden_kernels(golden_dir: Path) -> dict:
    return json.loads((golden_dir / "fc_kernels_h3.json").read_text())


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """A tensorflow-datasets data_dir that holds mnist and cifar10."""
    return _require(SHARED / "data" / "tfds")
