"""Effects of importing the package on the process, each in a fresh interpreter."""

import re
import subprocess
import sys
import textwrap
from importlib.metadata import version
from pathlib import Path

import pytest

import nngp_dag

ROOT = Path(__file__).resolve().parents[1]


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_leaves_tensorflow_and_neural_tangents_alone():
    run("""
        import sys
        import nngp_dag
        heavy = {"tensorflow", "tensorflow_datasets", "neural_tangents", "flax", "optax", "matplotlib", "sklearn"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
    """)


SNAPSHOT = """
    import sys, types
    import jax, jax.core, jax.extend.core, jax.interpreters.ad

    def snapshot():
        names = {}
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] == "jax" and module is not None:
                # Submodules that something imports for itself become attributes; that is how Python works.
                names[name] = {k: id(v) for k, v in vars(module).items() if not isinstance(v, types.ModuleType)}
        return names

    def assert_unchanged(before):
        after = snapshot()
        for name, attributes in before.items():
            changed = {k for k in attributes.keys() ^ after[name].keys()}
            changed |= {k for k in attributes.keys() & after[name].keys() if attributes[k] != after[name][k]}
            assert not changed - {"__warningregistry__"}, (name, changed)

    before, config = snapshot(), dict(jax.config.values)
"""


@pytest.mark.slow
def test_import_leaves_jax_as_it_was():
    run(SNAPSHOT + "    import nngp_dag\n    assert_unchanged(before)\n    assert config == dict(jax.config.values)\n")


@pytest.mark.slow
def test_the_stax_layer_leaves_jax_as_it_was_and_needs_no_tensorflow():
    run(
        SNAPSHOT
        + """
    import nngp_dag
    layer = nngp_dag.stax.DagLayer
    assert "neural_tangents" in sys.modules
    assert "tensorflow" not in sys.modules
    assert "jax.util" not in sys.modules
    assert "neural_tangents.experimental" not in sys.modules
    assert not hasattr(jax.core, "Jaxpr")
    assert_unchanged(before)
    assert config == dict(jax.config.values)
    """
    )


def test_an_unknown_attribute_is_an_attribute_error():
    run("""
        import nngp_dag
        try:
            nngp_dag.nothing
        except AttributeError as error:
            assert "nngp_dag" in str(error) and "nothing" in str(error)
        else:
            raise SystemExit("no error")
    """)


def test_the_version_costs_no_import():
    run("""
        import sys
        import nngp_dag
        before = set(sys.modules)
        assert isinstance(nngp_dag.__version__, str)
        assert set(sys.modules) == before
    """)


def test_one_version_is_named_everywhere():
    assert re.fullmatch(r"\d+\.\d+\.\d+", nngp_dag.__version__)
    assert nngp_dag.__version__ == version("nngp-dag")
    [cited] = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited == nngp_dag.__version__
    logged = re.findall(r"^## \[(\d.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert logged[0] == nngp_dag.__version__


def test_type_checkers_find_the_mark_of_a_typed_package():
    assert (Path(nngp_dag.__file__).parent / "py.typed").is_file()
