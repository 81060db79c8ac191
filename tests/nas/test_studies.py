"""Scores on disk, tables of searches, pictures and the commands."""

import csv

import numpy as np
import pytest

from nngp_dag.cli import main
from nngp_dag.errors import CheckpointError, DataError, InputError, OutputError
from nngp_dag.nas import SCORES, AccuracyTable, Cell, Score, Setting, register, sample_cells
from nngp_dag.nas.scores import files, registry
from nngp_dag.nas.scores.files import ScoreDirectory, read_scores
from nngp_dag.nas.studies.plots import plot_depth_and_width, plot_scores
from nngp_dag.nas.studies.tables import accuracy_correlations, search_table

CELLS = sample_cells(60, seed=0)
NAMES = ("parameters", "effective_depth")


@pytest.fixture
def setting():
    images = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
    return Setting(images, np.arange(4), channels=4, cells=1)


@pytest.fixture
def table_of_parameters():
    """Returns a table whose accuracy grows with the parameters: a search by parameters finds the best of a sample."""
    from nngp_dag.nas import parameters

    return AccuracyTable(tuple(CELLS), {"accuracy": np.array([parameters(cell) / 1e5 for cell in CELLS])})


def test_scores_grow_on_disk_and_are_not_computed_again(setting, tmp_path, monkeypatch):
    out = tmp_path / "scores"
    list(ScoreDirectory(out, setting).score(CELLS[:3], NAMES))
    asked = []
    original = files.score_cells

    def counted(cells, *rest, **options):
        asked.extend(cells)
        yield from original(cells, *rest, **options)

    monkeypatch.setattr(files, "score_cells", counted)
    # A kill in the middle of a line leaves the file in this state.
    file = out / "scores-paths_and_costs.csv"
    file.write_bytes(file.read_bytes()[:-9])
    *_, last = ScoreDirectory(out, setting).score(CELLS[:5], NAMES)
    assert last == ("paths_and_costs", 5, 5)
    assert asked == CELLS[2:5]
    table = read_scores(out)
    assert list(table.cell) == list(map(str, CELLS[:5]))
    assert list(table["index"]) == [cell.index for cell in CELLS[:5]]
    assert table.effective_depth[0] == CELLS[0].dag.effective_depth
    assert (table.seconds_paths_and_costs > 0).all()
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_a_second_score_of_few_cells_hides_no_other(setting, tmp_path):
    out = tmp_path / "s"
    list(ScoreDirectory(out, setting).score(CELLS[:5], ["parameters"]))
    list(ScoreDirectory(out, setting).score(CELLS[4:6], ["ntk_lambda_min_exact"]))
    table = read_scores(out)
    assert len(table) == 6
    assert table.parameters.notna().sum() == 5
    assert table.seconds_exact_kernels.notna().sum() == 2


@pytest.mark.parametrize("change", [("cell", "call"), (",0.", ",zero."), (",0.", ",1."), (",0.", ",\udcff.")])
def test_damaged_scores_are_one_line(change, setting, tmp_path):
    list(ScoreDirectory(tmp_path / "s", setting).score(CELLS[:2], ["parameters"]))
    file = tmp_path / "s" / "scores-paths_and_costs.csv"
    file.write_bytes(file.read_text().replace(*change).encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=r"Expected .*costs.csv to hold what was written there, got .*; delete"):
        read_scores(tmp_path / "s")


def test_a_cell_that_is_asked_twice_is_scored_once(setting, tmp_path):
    *_, last = ScoreDirectory(tmp_path / "s", setting).score([CELLS[0], CELLS[1], CELLS[0]], ["parameters"])
    assert last == ("paths_and_costs", 2, 2)
    assert len((tmp_path / "s" / "scores-paths_and_costs.csv").read_text().splitlines()) == 3


def test_files_of_other_scores_or_cells_are_damaged(setting, tmp_path):
    folder = ScoreDirectory(tmp_path / "s", setting)
    list(folder.score(CELLS[:2], ["parameters"]))
    file = tmp_path / "s" / "scores-paths_and_costs.csv"
    text = file.read_text()
    file.write_text(text.replace("flops", "flips"))
    with pytest.raises(CheckpointError, match=r"got columns cell, parameters, flips, .*; delete"):
        list(folder.score(CELLS[:3], ["parameters"]))
    assert "flips" in file.read_text()
    file.write_text(text.replace("~0|", "~9|"))
    with pytest.raises(CheckpointError, match=r"got row 1 that does not match its checksum; delete that row"):
        read_scores(tmp_path / "s")


def test_scores_of_a_measure_that_has_changed_are_refused(setting, tmp_path, monkeypatch):
    for factor in (1, 2):
        monkeypatch.setattr(registry, "_registered", {})
        monkeypatch.setattr(registry, "SCORES", registry._registered)
        monkeypatch.setattr(files, "SCORES", registry._registered)

        def length(cells, setting, factor=factor):
            return ({"length": float(factor * len(str(cell)))} for cell in cells)

        register(Score("length", higher_is_better=True, cost="wiring", reference="counted", measure=length))
        if factor == 1:
            list(ScoreDirectory(tmp_path / "scores", setting).score(CELLS[:2], ["length"]))
    with pytest.raises(CheckpointError, match=r"scores of `length` as it is now in .*; delete that file"):
        list(ScoreDirectory(tmp_path / "scores", setting).score(CELLS, ["length"]))


def test_failures_are_kept_with_their_reason(setting, tmp_path):
    nothing = Cell.from_index(0)
    list(ScoreDirectory(tmp_path / "s", setting).score([nothing, CELLS[0]], ["ntk_logdet_exact"]))
    table = read_scores(tmp_path / "s")
    assert list(table.status) == ["disconnected", CELLS[0].status]
    assert np.isnan(table.ntk_logdet_exact[0])
    assert str(nothing) in table.reason[0]
    assert "path from node 0" in table.reason[0]
    assert table.reason[1] == ""


def test_a_folder_of_something_else_is_refused(setting, tmp_path):
    ScoreDirectory(tmp_path / "s", setting)
    other = Setting(setting.images, setting.labels, channels=4, cells=1, seed=1)
    with pytest.raises(
        CheckpointError, match=r"the same settings as .*, got others: settings\.seed 0 before, 1 now; pass"
    ):
        ScoreDirectory(tmp_path / "s", other)
    with pytest.raises(CheckpointError, match="at least one cell"):
        read_scores(tmp_path / "s")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(OutputError, match="to be new, empty or hold scores, got other files; choose another"):
        ScoreDirectory(tmp_path / "full", setting)
    with pytest.raises(CheckpointError, match="to describe scores, got none; make them with nngp-dag nas score"):
        read_scores(tmp_path / "absent")


def test_the_table_of_searches(setting, tmp_path, table_of_parameters):
    list(ScoreDirectory(tmp_path / "s", setting).score(CELLS, ["parameters"]))
    scores = read_scores(tmp_path / "s")
    found = search_table(scores, table_of_parameters, ["parameters"], sample=10, repeats=40).set_index(
        ["method", "filter"]
    )
    best, random, top = (found.loc[(name, "")] for name in ("best of the sample", "random", "best of all"))
    mine, filtered = found.loc[("parameters", "")], found.loc[("parameters", "paper")]
    assert mine["mean"] == pytest.approx(best["mean"])
    assert random["mean"] < mine["mean"] <= top["mean"]
    assert mine["skipped"] == 0
    assert 0.4 < filtered["skipped"] < 0.8
    assert filtered["seconds"] < mine["seconds"]
    # The mean accuracy of the first drawn cells is that of all cells, within 4 standard errors.
    accuracy = table_of_parameters.column()
    assert abs(random["mean"] - accuracy.mean()) < 4 * accuracy.std() / 40**0.5
    with pytest.raises(InputError, match="scores that were computed, got 'naswot'"):
        search_table(scores, table_of_parameters, ["naswot"], sample=10)


def test_searches_are_over_cells_with_an_accuracy(setting, tmp_path, table_of_parameters):
    list(ScoreDirectory(tmp_path / "s", setting).score(CELLS, ["parameters"]))
    scores = read_scores(tmp_path / "s")
    accuracy = table_of_parameters.column().copy()
    accuracy[::7] = np.nan
    # Some cells have no accuracy, and the last is not in the table.
    table = AccuracyTable(tuple(CELLS[:-1]), {"a": accuracy[:-1], "b": table_of_parameters.column()[:-1]})
    found = search_table(scores, table, ["parameters"], column="a", sample=10, repeats=40)
    assert np.isfinite(np.asarray(found[["mean", "std"]])).all()
    assert set(found.left_out) == {9 + 1}
    assert set(found.cells) == {50}
    assert set(found.column) == {"a"}
    assert set(search_table(scores, table, ["parameters"], column="b", sample=10, repeats=2).left_out) == {1}
    ranks = accuracy_correlations(scores, table, column="a").set_index("first")
    assert ranks.spearman["parameters"] == pytest.approx(1)
    known = [cell for cell, value in zip(CELLS, accuracy, strict=True) if np.isfinite(value)][:50]
    assert ranks.loc["parameters", "rows"] == sum(cell.status != "disconnected" for cell in known)
    plot_scores(scores, table, ["parameters"], tmp_path / "a.png", column="a")
    plot_depth_and_width(table, tmp_path / "b.png", column="a")
    nothing = AccuracyTable((Cell.from_index(0),), {"a": np.ones(1)})
    for ask in (
        lambda: search_table(scores, nothing, ["parameters"]),
        lambda: plot_scores(scores, nothing, ["parameters"], tmp_path / "c.png"),
    ):
        with pytest.raises(DataError, match="accuracy table with scored cells, got none of the 60"):
            ask()
    with pytest.raises(DataError, match="a cell that has a path and an accuracy, got none"):
        plot_depth_and_width(nothing, tmp_path / "d.png")


def test_correlations_have_the_sign_of_the_direction(setting, tmp_path, table_of_parameters):
    list(ScoreDirectory(tmp_path / "s", setting).score(CELLS, ["parameters"]))
    scores = read_scores(tmp_path / "s")
    scores["ntk_condition"] = -scores["parameters"]
    found = accuracy_correlations(scores, table_of_parameters).set_index("first")
    # Cells without a weighted edge count, as in published correlations.
    sound = sum(cell.status != "disconnected" for cell in CELLS)
    assert sound > sum(cell.status == "connected" for cell in CELLS)
    for name in ("parameters", "ntk_condition"):
        assert found.spearman[name] == pytest.approx(1)
        assert found.rows[name] == sound
    assert set(found.index) == {name for name in SCORES if name in scores}


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["nas", *map(str, arguments)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


@pytest.mark.slow
def test_the_commands(capsys, tmp_path):
    out, table = tmp_path / "scores", tmp_path / "accuracy.csv"
    options = ("--dataset", "digits", "--batch", 16, "--channels", 4, "--cells", 1, "--sample", 20, "--out", out)
    score = ("score", "--score", "parameters", "--score", "nngp_lambda_min_exact", *options)
    assert run(capsys, *score)[0] == 0
    first = (out / "scores-exact_kernels.csv").read_bytes()
    assert run(capsys, *score)[0] == 0
    assert (out / "scores-exact_kernels.csv").read_bytes() == first
    with table.open("w", newline="") as file:
        csv.writer(file).writerows(
            [
                ("arch_str", "c10", "c100"),
                *((cell, 90 + i / 10, i or "") for i, cell in enumerate(read_scores(out).cell)),
            ]
        )
    search = ("search", "--accuracies", table, "--scores", out, "--score", "parameters", "--sample", 5, "--repeats", 20)
    assert "Expected --column to be one of c10, c100, got None" in run(capsys, *search)[2]
    search = (*search, "--column", "c10", "--column", "c100")
    status, text, _ = run(capsys, *search)
    assert status == 0
    assert text.count("best of the sample") == 2
    assert "left out 1 scored cells without c100" in text
    rows = list(csv.DictReader((out / "search.csv").read_text().splitlines()))
    assert [row["column"] for row in rows] == ["c10"] * 5 + ["c100"] * 5
    status, _, error = run(capsys, *search)
    assert status == 2
    assert "--overwrite" in error
    assert run(capsys, "plot", "--accuracies", table, "--scores", out, "--column", "c100")[0] == 0
    for picture in ("depth-width.png", "scores.png"):
        assert (out / picture).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    status, _, error = run(capsys, "score", "--score", "best", *options)
    assert status == 2
    assert error.count("\n") == 1
    assert "a score out of naswot" in error
    assert run(capsys, "score", "--cell", "x", *options)[2].count("Expected --sample or --cell, got both") == 1
