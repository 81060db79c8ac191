"""Programs and a run that tests share, since compiling takes seconds."""

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
    """Lets `train` and `evaluate` compile equal programs once for all modules that ask for this."""

    def build(task, num_seeds):
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
    """Evaluates 4 examples at once, so that no part of the tests' data is a multiple."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "_EVALUATION_BATCH", 4)
        yield


@pytest.fixture(scope="session")
def _finished():
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory, shared_programs, compilation_cache, _finished):
    """The folder of a run of the command with `OPTIONS`, which nothing stopped."""
    if not _finished:
        out = tmp_path_factory.mktemp("finished") / "run"
        with pytest.raises(SystemExit) as stop, writing_to(compilation_cache):
            main([*OPTIONS, "--out", str(out)])
        assert stop.value.code == 0
        _finished.append(out)
    return _finished[0]


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory):
    """A folder in which processes keep compiled programs for one another."""
    return tmp_path_factory.mktemp("compiled")


@contextlib.contextmanager
def writing_to(cache):
    """Keeps what is compiled in this process."""
    names = {
        "jax_compilation_cache_dir": str(cache),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in names}
    for name, value in names.items():
        jax.config.update(name, value)
    # Whether there is a cache is found once.
    reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        reset_cache()
