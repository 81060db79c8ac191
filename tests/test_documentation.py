"""Every example in the README and in the docstrings runs and prints what it says."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import nngp_dag

README = Path(__file__).resolve().parents[1] / "README.md"
MODULES = sorted(module.name for module in pkgutil.walk_packages(nngp_dag.__path__, "nngp_dag."))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.slow
def test_docstring_examples(name):
    module = importlib.import_module(name)
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(module, optionflags=options, extraglobs={"nd": nngp_dag})
    assert failed == 0


def test_every_public_name_has_a_docstring_with_an_example_or_fields():
    for name in nngp_dag.__all__:
        item = getattr(nngp_dag, name)
        assert item.__doc__, name
        if callable(item) and not isinstance(item, type):
            assert ">>>" in item.__doc__, name


def test_readme_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 1
    assert len([line for line in examples[0].splitlines() if line.strip()]) <= 15
    exec(compile(examples[0], str(README), "exec"), {})


PAGES = sorted(path.name for path in (README.parent / "docs").glob("*.md"))


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page == "training.md" else page for page in PAGES]
)
def test_examples_of_the_docs_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for example in re.findall(r"```python\n(.*?)```", (README.parent / "docs" / page).read_text(), re.DOTALL):
        exec(compile(example, page, "exec"), {})


def test_readme_pictures_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text())
    assert pictures
    for picture in pictures:
        assert (README.parent / picture).is_file(), picture
