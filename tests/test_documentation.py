"""Every example in the README and in the docstrings runs, and prints the output that it shows."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import typer
from cli_cases import arguments_of, check_options

import nngp_dag
import nngp_dag.cli
from nngp_dag.cli import main
from nngp_dag.nas.scores import registry

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


@pytest.mark.slow
def test_readme_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(examples) == 1
    assert len([line for line in examples[0].splitlines() if line.strip()]) <= 15
    exec(compile(examples[0], str(README), "exec"), {})


PAGES = sorted(path.name for path in (README.parent / "docs").glob("*.md"))


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in ("extending.md", "training.md"))) for page in PAGES]
)
def test_examples_of_the_docs_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))  # an example registers one more
    monkeypatch.setattr(registry, "SCORES", MappingProxyType(registry._registered))
    for example in re.findall(r"```python\n(.*?)```", (README.parent / "docs" / page).read_text(), re.DOTALL):
        exec(compile(example, page, "exec"), {})


def test_readme_pictures_exist():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README.read_text())
    assert pictures
    for picture in pictures:
        assert (README.parent / picture).is_file(), picture


COMMANDS = re.findall(r"^    (nngp-dag .*)", README.read_text(), re.MULTILINE)
# Options that keep the work of a command small. The last value of a repeated option counts.
SMALL = {
    "show": (),
    "list": (),
    "kernel": ("--subset", "16"),
    "gram": ("--subset", "40"),
    "compare": ("--subset", "8", "--width", "16", "--seeds", "2", "--steps", "3"),
    "sweep": ("--subset", "8"),
    "train": ("--subset", "40", "--eval-subset", "20", "--batch-size", "16", "--width", "8", "--epochs", "1"),
    "nas score": ("--sample", "2", "--batch", "8", "--channels", "4", "--cells", "1"),
    "nas tenas": ("--measure", "exact", "--batch", "8", "--repeats", "1"),
    "nas train": ("--subset", "32", "--eval-subset", "20", "--epochs", "1", "--channels", "2", "--layers", "1"),
}


def run_command(line, *more):
    """Runs a command line of the README at a small size."""
    arguments = arguments_of(line)
    name = " ".join(arguments[: 2 if arguments[0] == "nas" else 1])
    small = () if "--resume" in arguments else SMALL[name]
    if name == "sweep" and "--nodes" in arguments:
        small = (*small, "--nodes", "2")
    if name == "nas train":
        small = (*small, "--batch-size", "16")
    with pytest.raises(SystemExit) as stop:
        main([*arguments, *small, *more])
    assert stop.value.code == 0, line


def test_the_readme_lists_every_command():
    listed = {" ".join(arguments_of(line)[:2]) if " nas " in line else arguments_of(line)[0] for line in COMMANDS}
    assert listed == {*SMALL}
    app = typer.main.get_command(nngp_dag.cli.app)
    nas = app.commands["nas"].commands
    # `nas search` and `nas plot` are named beside `nas score`.
    assert listed | {"nas search", "nas plot"} == {*app.commands} - {"nas"} | {f"nas {name}" for name in nas}
    for line in COMMANDS:
        check_options(line)


@pytest.mark.slow
def test_commands_of_the_readme_without_training_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS[:4]:
        run_command(line)
    made = {"graph.png"} | {f"nngp-dag-kernel{i}.{kind}" for i in ("", "-2") for kind in ("npz", "png")}
    assert {path.name for path in tmp_path.iterdir()} == made


@pytest.mark.slow
def test_all_commands_of_the_readme_run_in_order(tmp_path, monkeypatch, tfds_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DATA").symlink_to(tfds_dir)
    x = np.random.default_rng(0).normal(size=(20, 4))
    np.savez("my.npz", x=x, y=(x[:, 0] > 0).astype(int))
    for line in COMMANDS:
        run_command(line)
