"""Compiled programs and a run that tests share, because compilation takes seconds."""

import contextlib

import jax
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from training_cases import OPTIONS

from nngp_dag.cli import main
from nngp_dag.training import evaluation, tasks, trainer
from nngp_dag.training.program import Program


@pytest.fixture(scope="session")
def _compiled():
    return {}


@pytest.fixture(scope="module")
def shared_programs(_compiled):
    """Lets `train` and `evaluate` compile equal programs once for all modules that use this fixture."""

    def build(task, num_seeds, mesh=None):
        if mesh is not None:
            return Program(task, num_seeds, mesh)
        shapes = tuple((part.x.shape, len(part.labels)) for part in task.data.parts.values())
        key = (task.key, task.recipe, shapes, task.data.num_classes, num_seeds, task.evaluation_batch)
        if key not in _compiled:
            _compiled[key] = Program(task, num_seeds)
        return _compiled[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "Program", build)
        patch.setattr(evaluation, "Program", build)
        yield build


@pytest.fixture(scope="module")
def small_blocks():
    """Evaluates 4 examples at once. No part of the data of the tests is a multiple of that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_EVALUATION_BATCH", 4)
        yield


@pytest.fixture(scope="session")
def _finished():
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared_programs, compilation_cache, _finished):
    """Returns the folder of a complete run of the command with `OPTIONS`."""
    if not _finished:
        out = tmp_path_factory.mktemp("finished") / "run"
        with pytest.raises(SystemExit) as stop, writing_to(compilation_cache):
            main([*OPTIONS, "--out", str(out)])
        assert stop.value.code == 0
        _finished.append(out)
    return _finished[0]


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """Returns a folder in which processes share compiled programs."""
    return tmp_path_factory.mktemp("compiled")


@contextlib.contextmanager
def writing_to(cache):
    """Stores the programs that this process compiles in a folder."""
    names = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    # JAX looks for a cache only once, unless it is reset.
    reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
