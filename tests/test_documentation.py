"""Every example in the README, in the pages of the documentation and in the docstrings runs and prints what it says."""

import ast
import doctest
import importlib
import operator
import pkgutil
import re
import warnings
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import typer
from cli_cases import arguments_of, check_options

import nngp_dag
import nngp_dag.cli
from nngp_dag.cli import main
from nngp_dag.nas.scores import registry

README = Path(__file__).resolve().parents[1] / "README.md"
DOCS = README.parent / "docs"
MODULES = sorted(module.name for module in pkgutil.walk_packages(nngp_dag.__path__, "nngp_dag."))


# Their examples compile networks of cells or gradients of kernels, which takes up to half a minute each.
HEAVY = {
    *(f"nngp_dag.nas.networks.{name}" for name in ("cell_supernet", "darts_macro_net", "darts_net", "darts_supernet")),
    "nngp_dag.nas.pruning.measures",
    "nngp_dag.nas.scores.gradients",
    "nngp_dag.report._search",
    "nngp_dag.report.search_result",
    "nngp_dag.theory._fit",
    "nngp_dag.training.cells",
    *(f"nngp_dag.width.{name}" for name in ("_effects", "_spread", "effects_result")),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.nightly] * (name in HEAVY)) for name in MODULES]
)
@pytest.mark.slow
def test_docstring_examples(name):
    try:
        module = importlib.import_module(name)
    except nngp_dag.errors.MissingLibraryError as error:
        pytest.skip(str(error))
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(module, optionflags=options, extraglobs={"nd": nngp_dag})
    assert failed == 0


def test_every_public_name_has_a_docstring_with_an_example_or_fields():
    for name in nngp_dag.__all__:
        item = getattr(nngp_dag, name)
        assert item.__doc__, name
        if callable(item) and not isinstance(item, type):
            assert ">>>" in item.__doc__, name


@pytest.mark.parametrize("folder", ["nngp_dag", "experiments", "benchmarks"])
def test_entries_of_docstrings_are_noun_phrases(folder):
    for path in (README.parent / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node) or ""
                assert "likewise" not in docstring.lower(), path
                found = re.search(
                    r"^ +\*{0,2}\w+(?:, \*{0,2}\w+)*: (?:Of|As|What|Those|Which)\b.*", docstring, re.MULTILINE
                )
                assert not found, (path, found and found[0])


@pytest.mark.slow
def test_the_examples_of_the_readme_run_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    examples = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`FanIn` layers assume independent inputs")  # from neural-tangents
        for example in examples:
            exec(compile(example, str(README), "exec"), names)
        # Both sides describe the same network, for several inputs too.
        x = np.random.default_rng(0).normal(size=(3, 4))
        ours = nngp_dag.kernel("1_11", x, activation="identity", w_std=1.0, readout=False).nngp
        np.testing.assert_allclose(ours, 2 * names["kernel_fn"](x, None, "nngp"), rtol=1e-6)
    wrong, right, numbers = capsys.readouterr().out.splitlines()
    assert (wrong, right) == ("[[2.]]", "[[4.]]")
    condition_number, first, last = map(float, numbers.split())
    assert condition_number == names["spectrum"].lambda_max / names["spectrum"].lambda_min
    assert last < 0.1 * first


def test_the_readme_is_one_screen_whose_links_lead_somewhere():
    text = README.read_text()
    assert len(text.split()) <= 450
    assert max(map(len, re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0].splitlines())) <= 80
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        page = README.parent / name
        for link in re.findall(r"\]\(([^)#]+)", page.read_text()):
            assert link.startswith("https://") or (page.parent / link).is_file(), (name, link)


PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
# Pages whose examples compile networks.
SLOW_PAGES = {
    "choose.md",
    "extending.md",
    "faq.md",
    "migrating.md",
    "start.md",
    *(
        f"guides/{name}.md"
        for name in (
            "gaussian_processes",
            "graph_search",
            "kernels",
            "large",
            "networks",
            "prediction",
            "scikit_learn",
            "sweeps",
            "theory",
            "trace",
            "training",
            "width",
        )
    ),
}


# Pages that take longest.
NIGHTLY_PAGES = {
    "migrating.md",
    *(
        f"guides/{name}.md"
        for name in ("gaussian_processes", "graph_search", "kernels", "prediction", "scikit_learn", "trace", "training")
    ),
}


def marks_of(page):
    return pytest.mark.nightly if page in NIGHTLY_PAGES else pytest.mark.slow if page in SLOW_PAGES else ()


@pytest.mark.parametrize("page", [pytest.param(page, marks=marks_of(page)) for page in PAGES])
def test_examples_of_the_docs_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))  # an example registers one more
    monkeypatch.setattr(registry, "SCORES", MappingProxyType(registry._registered))
    names = {}  # Later examples of a page use what earlier ones define.
    for example in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        exec(compile(example, page, "exec"), names)


@pytest.mark.parametrize("page", PAGES)
def test_names_in_the_examples_of_the_docs_exist(page):
    for example in re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.DOTALL):
        for node in ast.walk(ast.parse(example)):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"nd(\.\w+)+", name := ast.unparse(node)):
                operator.attrgetter(name.removeprefix("nd."))(nngp_dag)


def test_every_slow_page_has_examples():
    for page in SLOW_PAGES:
        assert "```python\n" in (DOCS / page).read_text(), page


@pytest.mark.parametrize("page", [README, *(DOCS / page for page in PAGES)], ids=["README.md", *PAGES])
def test_pictures_of_the_docs_exist(page):
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", page.read_text())
    assert pictures or page != README
    for picture in (picture for picture in pictures if not picture.startswith("https://")):
        assert (page.parent / picture).is_file(), picture


def commands_in(page):
    """Returns the indented and fenced lines of a page that call nngp-dag; a backslash continues a line."""
    text = page.read_text().replace("\\\n", " ")
    return re.findall(r"^(?:    )?(nngp-dag .*)", text, re.MULTILINE)


@pytest.mark.parametrize("page", [README, *(DOCS / page for page in PAGES)], ids=["README.md", *PAGES])
def test_commands_of_the_docs_have_known_options(page):
    for line in commands_in(page):
        check_options(line)


# Several processes at once run in other tests.
COMMANDS = [line for line in commands_in(DOCS / "guides" / "command_line.md") if "--distributed" not in line]
# What keeps the work of a command small; the last value of an option counts.
SMALL = {
    "show": (),
    "list": (),
    "kernel": ("--subset", "16"),
    "gram": ("--subset", "40"),
    "plan": ("--no-calibrate",),
    "solve": ("--subset", "200", "--landmarks", "30"),
    "compare": ("--subset", "8", "--width", "16", "--seeds", "2", "--steps", "3"),
    "sweep": ("--subset", "8"),
    "search": ("--subset", "8", "--num-nodes", "3", "--starts", "2", "--steps", "3"),
    "train": ("--subset", "40", "--eval-subset", "20", "--batch-size", "16", "--width", "8", "--epochs", "1"),
    "nas score": ("--sample", "2", "--batch", "8", "--channels", "4", "--cells", "1"),
    "nas tenas": ("--measure", "exact", "--batch", "8", "--repeats", "1"),
    "nas train": ("--subset", "32", "--eval-subset", "20", "--epochs", "1", "--channels", "2", "--layers", "1"),
}


def run_command(line, *more):
    """Runs a line of the guide to the command line at a small size."""
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


def test_the_guide_lists_every_command():
    listed = {" ".join(arguments_of(line)[:2]) if " nas " in line else arguments_of(line)[0] for line in COMMANDS}
    assert listed == {*SMALL}
    app: Any = typer.main.get_command(nngp_dag.cli.app)
    nas = app.commands["nas"].commands
    # `nas search` and `nas plot` are named beside `nas score`.
    assert listed | {"nas search", "nas plot"} == {*app.commands} - {"nas"} | {f"nas {name}" for name in nas}


@pytest.mark.slow
def test_commands_of_the_guide_without_training_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS[:4]:
        run_command(line)
    made = {"graph.png"} | {f"nngp-dag-kernel{i}.{kind}" for i in ("", "-2") for kind in ("npz", "png")}
    assert {path.name for path in tmp_path.iterdir()} == made


@pytest.mark.nightly
def test_all_commands_of_the_guide_run_in_order(tmp_path, monkeypatch, tfds_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DATA").symlink_to(tfds_dir)
    x = np.random.default_rng(0).normal(size=(20, 4))
    np.savez("my.npz", x=x, y=(x[:, 0] > 0).astype(int))
    for line in COMMANDS:
        run_command(line)
