"""Strict JAX for every test, and the paths of the shared reference data."""

import gc
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

# Compilation takes most of the time, and these tests check values, not speed. So XLA optimizes little, and compiled
# code is kept between runs. The variables are set before JAX is imported, and hold for the commands that tests start
# too. With NNGP_DAG_TEST_XLA=default XLA has the options that users have.
if os.environ.get("NNGP_DAG_TEST_XLA") != "default":
    os.environ.setdefault(
        "XLA_FLAGS",
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_enable_concurrency_optimized_scheduler=false "
        "--xla_cpu_parallel_codegen_split_count=2",
    )
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import jaxtyping
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# The collection of thousands of tests leaves little to free, and the garbage collector takes a third of its time.
gc.disable()

SHARED = Path(__file__).resolve().parents[2] / "shared"

# Every compiled program takes memory mappings. Linux allows a process 65,530 of them; the compiler crashes beyond.
_MAPPINGS, _LIMIT = Path("/proc/self/maps"), Path("/proc/sys/vm/max_map_count")
_counted = time.monotonic()


# Files and folders whose tests compile no network. With `-m unit` the others are not even imported.
_UNIT = (
    "architecture/test_equivalence.py",
    "architecture/test_network.py",
    "data/test_files.py",
    "data/test_splits.py",
    "graph",
    "nas/test_accuracy_table.py",
    "nas/test_cells.py",
    "nas/test_spaces.py",
    "report/test_pictures.py",
    "storage/test_outputs.py",
    "storage/test_result_directory.py",
    "test_package.py",
    "test_screen.py",
    "training/test_step.py",
)


_UNITS = tuple(str(Path(__file__).parent / name) for name in _UNIT)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves out all files without unit tests if only unit tests are wanted."""
    others = collection_path.suffix == ".py" and not str(collection_path).startswith(_UNITS)
    return True if others and config.option.markexpr == "unit" else None


def pytest_collection_finish() -> None:
    """Turns the garbage collector on again. It looks at new objects only, and more rarely than by default."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000, 20, 20)


def _spread(items: list[pytest.Item], count: int) -> list[pytest.Item]:
    """Returns `count` items at equal distances, so that every kind of case is among them; all if there are no more."""
    return items if len(items) <= count else [items[i * len(items) // count] for i in range(count)]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks by rule. `sample(n, slow=m)`: n cases of a test stay, m others are slow, the rest nightly. And `unit`."""
    cases: dict[tuple, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sample") and not any(map(item.get_closest_marker, ("slow", "nightly"))):
            cases.setdefault((item.path, item.nodeid.partition("[")[0]), []).append(item)
    for of_test in cases.values():
        marker = next(of_test[0].iter_markers("sample"))
        default = _spread(of_test, *marker.args)
        others = [item for item in of_test if item not in default]
        slow = _spread(others, marker.kwargs.get("slow", *marker.args))
        for item in others:
            item.add_marker("slow" if item in slow else "nightly")
    for item in items:
        if str(item.path).startswith(_UNITS) and not any(map(item.get_closest_marker, ("slow", "nightly"))):
            item.add_marker("unit")


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Clears the caches of compiled programs when half of the mappings are in use; checks every ten seconds."""
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
    """Returns the folder of independent reference values."""
    return Path(__file__).parent / "golden"


@pytest.fixture(scope="session")
def nasbench201() -> Path:
    """Returns the published accuracies of all cells of NAS-Bench-201."""
    return _require(SHARED / "data" / "nasbench201_cifar10.csv")


@pytest.fixture(scope="session")
def golden_kernels(golden_dir: Path) -> dict:
    return json.loads((golden_dir / "fc_kernels_h3.json").read_text())


@pytest.fixture(scope="session")
def tfds_dir() -> Path:
    """Returns a tensorflow-datasets data_dir that holds mnist and cifar10."""
    return _require(SHARED / "data" / "tfds")


@pytest.fixture
def unchecked(monkeypatch):
    """Turns the type checker of the tests off. Users do not have it, so that the package must refuse wrong types."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def drawn_inputs() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 4))
