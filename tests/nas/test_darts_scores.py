"""Genotypes of DARTS: samples, filters, accuracy tables, scores, searches, pictures and the command."""

import csv
import io
import itertools
import json
from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from flax import nnx
from test_darts_macro_net import EVERY, single

import nngp_dag as nd
from nngp_dag.cli import main
from nngp_dag.errors import DataError, GraphError, InputError
from nngp_dag.nas import (
    BUILT_IN,
    FILTERS,
    SCORES,
    AccuracyTable,
    Cell,
    Genotype,
    ScoreDirectory,
    Setting,
    get_filter,
    goodness,
    parse_cell,
    plot_depth_and_width,
    plot_scores,
    read_scores,
    sample_cells,
    sample_genotypes,
    score_cells,
    search_table,
)
from nngp_dag.nas.networks.layers import normalized
from nngp_dag.nas.scores.wiring import on_sphere

GENOTYPES = sample_genotypes(12, seed=0)
CELL = "|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|"


@pytest.fixture
def setting():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(6, 8, 8, 3)).astype(np.float32)
    return Setting(images, rng.integers(0, 10, 6), channels=2, cells=1, ntk_images=6, space="darts")


def depth_and_width(pairs):
    """Returns the effective depth and width from a list of all paths through a normal cell."""
    depths = []

    def walk(node, depth):
        if node < 2:
            depths.append(depth)
            return
        for name, source in pairs[2 * (node - 2) : 2 * (node - 2) + 2]:
            if name != "none":
                walk(source, depth + ("conv" in name))

    for node in range(2, 6):
        walk(node, 0)
    depth = Fraction(sum(depths), len(depths)) if depths else Fraction(0)
    return depth, sum(each > 0 for each in depths) / depth if depth else Fraction(0)


def test_samples_are_genotypes_of_the_space_and_every_choice_occurs():
    many = sample_genotypes(100, seed=1)
    assert len(set(many)) == 100
    assert sample_genotypes(99, seed=1) == many[:99] != sample_genotypes(99, seed=2)
    for genotype in many:
        for pairs in (genotype.normal, genotype.reduce):
            assert all(a[1] < b[1] for a, b in zip(pairs[::2], pairs[1::2], strict=True))
    chosen = {(place, name) for genotype in many for place, (name, _) in enumerate(genotype.normal)}
    assert len(chosen) == 8 * 7
    inputs = {pair for genotype in many for pair in [(genotype.reduce[6][1], genotype.reduce[7][1])]}
    assert inputs == set(itertools.combinations(range(5), 2))
    with pytest.raises(GraphError, match="`count` to be at least 1, got 0"):
        sample_genotypes(0, seed=0)


def test_the_filter_is_that_of_depths_and_widths_counted_path_by_path():
    kept = get_filter("released-code", "darts")
    decided = set()
    for genotype in sample_genotypes(60, seed=3):
        depth, width = depth_and_width(genotype.normal)
        assert kept.keeps(genotype.dag) is (0.5 <= depth <= Fraction(16, 10) and 4 <= width <= 12)
        decided.add(kept.keeps(genotype.dag))
    assert decided == {True, False}


@pytest.mark.parametrize(
    ("normal", "keeps"),
    [
        # By hand: d = 1/2 and w = 4/(1/2) = 8, at the edge of the range of depths.
        ([("sep_conv_3x3", 0), ("skip_connect", 1)] * 4, True),
        # d = 1 and w = 8.
        ([("sep_conv_3x3", 0), ("dil_conv_5x5", 1)] * 4, True),
        # Of 8 paths, 3 have one convolution: d = 3/8 is too small.
        ([("sep_conv_3x3", 0), ("skip_connect", 1)] * 3 + [("max_pool_3x3", 0), ("avg_pool_3x3", 1)], False),
        # No convolution: d = 0.
        ([("skip_connect", 0), ("skip_connect", 1)] * 4, False),
        # A chain reads the node before and an input: d = 1/30 (2 1 + 3 ...) is above 1.6.
        ([("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2), ("none", 0), ("sep_conv_3x3", 3), ("none", 0),
          ("sep_conv_3x3", 4), ("none", 0)], False),
        # Four paths of one convolution: d = 1 and w = 4, at the edge of the range of widths.
        ([("sep_conv_3x3", 0), ("none", 1)] * 4, True),
        # Three paths: w = 3 is too small.
        ([("sep_conv_3x3", 0), ("none", 1)] * 3 + [("none", 0), ("none", 1)], False),
    ],
)  # fmt: skip
def test_the_filter_by_hand(normal, keeps):
    genotype = Genotype.from_pairs(normal, EVERY.reduce)
    assert get_filter("released-code", "darts").keeps(genotype.dag) is keeps


def test_the_filter_is_that_of_the_authors_depths_and_widths(golden_dir):
    rows = list(csv.DictReader((golden_dir / "darts_effective_depth_width.csv").read_text().splitlines()))
    kept = []
    for row in rows:
        pairs = json.loads(row["genotype_json"])
        if row["has_duplicate_input"] == "0":
            depth, width = (round(float(row[name]), 9) for name in ("depth", "width"))
            kept.append(get_filter("released-code", "darts").keeps(Genotype.from_pairs(pairs, pairs).dag))
            assert kept[-1] is (0.5 <= depth <= 1.6 and 4 <= width <= 12)
    assert set(kept) == {True, False}


def test_filters_belong_to_spaces():
    assert list(FILTERS["darts"]) == ["released-code"]
    with pytest.raises(InputError, match="one of released-code, got 'paper'; these are the filters of darts"):
        get_filter("paper", "darts")
    with pytest.raises(InputError, match="`space` to be one of nasbench201, darts, got 'dart'; did you mean 'darts'"):
        get_filter("paper", "dart")


def csv_of(rows):
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def test_accuracies_of_genotypes_from_csv_and_json(tmp_path):
    one, two = GENOTYPES[:2]
    fields = json.loads(two.to_json())
    tables = {
        "t.csv": csv_of([("genotype", "c10", "c100"), (one, 97.2, 80), (two.to_json(), "96.9", "")]),
        "named.csv": csv_of([("arch", "c10", "c100"), (f"DARTS_V2 = {one}", 97.2, 80), (two, 96.9, "NA")]),
        "list.json": json.dumps([{"genotype": str(one), "c10": 97.2, "c100": 80}, {"genotype": fields, "c10": 96.9}]),
        "map.json": json.dumps({str(one): {"c10": 97.2, "c100": 80}, two.to_json(): {"c10": 96.9}}),
    }
    loaded = []
    for name, text in tables.items():
        (tmp_path / name).write_text(text)
        table = AccuracyTable.load(tmp_path / name)
        loaded.append(table)
        assert (table.space, table.cells) == ("darts", (one, two)), name
        assert (table.accuracy(one, "c100"), table.accuracy(str(two), "c10")) == (80, 96.9)
        assert np.isnan(table.accuracy(1, "c100"))
    table = loaded[-1]
    table.to_frame().to_csv(tmp_path / "again.csv", index=False)
    assert AccuracyTable.load(tmp_path / "again.csv").cells == (one, two)
    with pytest.raises(DataError, match="a table of cells of NAS-Bench-201, got one of darts"):
        table.isomorphic(CELL)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("Genotype(normal=[])", 1)], r"a cell in row 1 of .*t.csv: Expected `text` to be a genotype"),
        ([("sep_conv_3x3", 1)], r"row 1 of .*: Expected `text` to be a cell of NAS-Bench-201, .*, or a genotype"),
        ([("Genotype(normal=[('sep_conv_9x9', 0)]*8)", 1)], r"row 1 of .*: Expected `text` to be a genotype"),
        ([(str(GENOTYPES[1]).replace("reduce=", "reduced="), 1)], r"row 1 of .*: other fields than"),
        ([(GENOTYPES[0], 1)], r"every cell once, got Genotype\(.*\) in rows 0 and 1"),
        ([(CELL, 1)], r"cells of one space, got cells of darts and nasbench201; give one space at a time"),
        ([(GENOTYPES[1], "high")], r"column 'c10' of .* to hold numbers, got 'high' in row 1"),
        ([(GENOTYPES[1], 101)], r"column 'c10' to hold accuracies in per cent, from 0 to 100, got 101 in row 1"),
        ([(GENOTYPES[1],)], r"got 1 fields in row 1 under a header of 2"),
    ],
)
def test_malformed_rows_are_refused_in_one_line(tmp_path, rows, message):
    (tmp_path / "t.csv").write_text(csv_of([("genotype", "c10"), (GENOTYPES[0], 97), *rows]))
    with pytest.raises(DataError, match=message) as refused:
        AccuracyTable.load(tmp_path / "t.csv")
    assert "\n" not in str(refused.value)


def test_the_status_of_a_genotype_is_that_of_its_normal_cell():
    skips, nothing = ([(name, 0), (name, 1)] * 4 for name in ("skip_connect", "none"))
    some = [Genotype.from_pairs(normal, EVERY.reduce) for normal in (EVERY.normal, skips, nothing)]
    assert [genotype.status for genotype in some] == ["connected", "unweighted", "disconnected"]
    found = goodness(SCORES["leave_one_out"], [3.0, 1.0, np.nan], some)
    assert found.tolist() == [-3, -np.inf, -np.inf]
    assert parse_cell(str(some[0])) == parse_cell(f"NAME = {some[0]}") == parse_cell(some[0].to_json()) == some[0]


def test_exact_kernels_are_those_of_the_normal_cell(setting):
    names = ["ntk_lambda_min_exact", "leave_one_out", "effective_width", "parameters"]
    found = list(score_cells(GENOTYPES[:3], names, setting))
    for genotype, scored in zip(GENOTYPES, found, strict=False):
        k = nd.kernel(genotype.dag, on_sphere(setting.images))
        expected = np.linalg.eigvalsh(np.asarray(k.ntk))[0]
        assert scored.values["ntk_lambda_min_exact"] == pytest.approx(expected, rel=1e-6)
        assert scored.values["effective_width"] == float(depth_and_width(genotype.normal)[1])
        assert list(scored.values) == [names[0], names[1], "leave_one_out_shuffled", *names[2:]]


def test_cells_of_another_space_are_refused(setting):
    with pytest.raises(InputError, match="cells of darts, got cells of nasbench201; set `space` of the setting"):
        list(score_cells(sample_cells(1, seed=0), ["parameters"], setting))
    with pytest.raises(InputError, match="cells of one space, got cells of darts and nasbench201"):
        list(score_cells([*sample_cells(1, seed=0), GENOTYPES[0]], ["parameters"], setting))
    with pytest.raises(InputError, match="`space` to be one of nasbench201, darts, got 'nats'"):
        Setting(setting.images, space="nats")
    assert (Setting(setting.images, space="darts").cells, Setting(setting.images).cells) == (2, 5)


@pytest.mark.parametrize("name", ["jacob_cov", "ntk_condition"])
def test_scores_that_do_not_exist_for_genotypes_are_refused_in_one_line(setting, name, capsys, tmp_path):
    with pytest.raises(InputError, match=f"scores of darts, got '{name}', which takes cells of nasbench201 only"):
        list(score_cells(GENOTYPES[:1], [name], setting))
    status, _, error = run(capsys, "score", "--score", name, *TINY, "--sample", 1, "--out", tmp_path / "s")
    assert (status, error.count("\n")) == (2, 1)
    assert f"got '{name}', which takes cells of nasbench201 only; choose out of naswot" in error


@pytest.mark.nightly
def test_most_scores_exist_for_genotypes(setting):
    names = [name for name in BUILT_IN if "darts" in SCORES[name].spaces]
    found = list(score_cells([EVERY, GENOTYPES[0]], names, setting))
    assert not found[1].reasons
    for name in ("naswot", "grad_norm", "synflow", "leave_one_out_shuffled"):
        assert found[0].values[name] != found[1].values[name]
    # The gradient norm, from the network of the one genotype.
    one = single(setting.network(), EVERY)
    graph, params = nnx.split(one)
    labels = jax.nn.one_hot(setting.labels, 10)

    def loss(params):
        logits, _ = nnx.merge(graph, params)._forward(jnp.asarray(setting.images), normalized, lambda x: x, False)
        return -(labels * jax.nn.log_softmax(logits)).sum(axis=1).mean()

    kernels = ("kernel", "depthwise", "pointwise", "even", "odd")
    gradients = jax.tree_util.tree_leaves_with_path(jax.grad(loss)(params))
    norms = [float(jnp.linalg.norm(g)) for path, g in gradients if any(f"'{name}'" in str(path) for name in kernels)]
    assert found[0].values["grad_norm"] == pytest.approx(sum(norms), rel=1e-3)


@pytest.mark.nightly
def test_several_genotypes_at_once_score_as_one_by_one(setting):
    some = [EVERY, *GENOTYPES[:2]]
    one = list(score_cells(some, ["naswot", "synflow"], setting))
    two = list(score_cells(some, ["naswot", "synflow"], replace(setting, cells_at_once=2)))
    for a, b in zip(one, two, strict=True):
        assert dict(a.values) == pytest.approx(dict(b.values), rel=1e-4)


@pytest.fixture
def scored(setting, tmp_path):
    """Returns the table of scores of the genotypes, and accuracies that grow with the number of parameters."""
    list(ScoreDirectory(tmp_path / "s", setting).score(GENOTYPES, ["parameters", "leave_one_out"]))
    table = read_scores(tmp_path / "s")
    accuracy = np.asarray(table.parameters)
    return table, AccuracyTable(tuple(GENOTYPES), {"c10": 90 + accuracy / accuracy.max()})


@pytest.mark.slow
def test_searches_and_pictures_of_genotypes(scored, tmp_path):
    table, accuracies = scored
    assert list(table.cell) == list(map(str, GENOTYPES))
    assert "index" not in table
    found = search_table(table, accuracies, ["parameters"], sample=6, repeats=20).set_index(["method", "filter"])
    assert found.loc[("parameters", ""), "mean"] == pytest.approx(found.loc[("best of the sample", ""), "mean"])
    skipped = np.mean([not get_filter("released-code", "darts").keeps(genotype.dag) for genotype in GENOTYPES])
    assert found.loc[("parameters", "released-code"), "skipped"] == pytest.approx(skipped, abs=0.15)
    plot_scores(table, accuracies, ["parameters", "leave_one_out"], tmp_path / "a.png")
    plot_depth_and_width(accuracies, tmp_path / "b.png")
    for name in ("a.png", "b.png"):
        assert (tmp_path / name).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["nas", *map(str, arguments)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


TINY = ("--dataset", "digits", "--batch", 16, "--channels", 2, "--cells", 1, "--space", "darts")
CHEAP = ("--score", "parameters", "--score", "leave_one_out")


@pytest.mark.slow
def test_the_command_scores_samples_and_goes_on(capsys, tmp_path):
    out = ("--out", tmp_path / "s")
    status, text, error = run(capsys, "score", *CHEAP, *TINY, "--sample", 8, "--filter", "released-code", *out)
    assert status == 0, error
    kept = [each for each in sample_genotypes(8, 0) if get_filter("released-code", "darts").keeps(each.dag)]
    assert f"the filter keeps {len(kept)} of 8 cells; the others are not scored" in text
    assert "leave_one_out orders the cells" in text
    table = read_scores(tmp_path / "s")
    assert list(table.cell) == list(map(str, kept))
    file = tmp_path / "s" / "scores-exact_leave_one_out.csv"
    before = file.read_bytes()
    file.write_bytes(before[:-5])
    status, text, _ = run(capsys, "score", *CHEAP, *TINY, "--sample", 8, "--resume", "--json", *out)
    assert status == 0
    found = json.loads(text)
    assert [row["cell"] for row in found["rows"] if row["cell"] in set(map(str, kept))] == list(map(str, kept))
    assert {row["first"] for row in found["controls"]} == {"leave_one_out"}
    assert len(found["remarks"]) == 1
    again = read_scores(tmp_path / "s").set_index("cell").loc[list(map(str, kept))].reset_index()
    drop = [name for name in table if name.startswith("seconds")]
    pandas.testing.assert_frame_equal(again.drop(columns=drop), table.drop(columns=drop), rtol=1e-9)


@pytest.mark.slow
def test_the_command_takes_genotypes_from_a_table_or_a_file(capsys, tmp_path):
    rows = [("genotype", "c10"), *((genotype, 90 + i / 10) for i, genotype in enumerate(GENOTYPES))]
    (tmp_path / "t.csv").write_text(csv_of(rows))
    table = ("--accuracies", tmp_path / "t.csv")
    status, text, error = run(capsys, "score", *CHEAP, *TINY, *table, "--json", "--out", tmp_path / "a")
    assert status == 0, error
    found = json.loads(text)
    assert [row["cell"] for row in found["rows"]] == list(map(str, GENOTYPES))
    ranks = {row["first"]: row for row in found["correlations"]}
    assert np.isfinite(ranks["leave_one_out"]["spearman_control"])
    assert ranks["parameters"]["spearman_control"] is None
    status, text, _ = run(capsys, "score", *CHEAP, *TINY, *table, "--sample", 3, "--json", "--out", tmp_path / "b")
    assert {row["cell"] for row in json.loads(text)["rows"]} < set(map(str, GENOTYPES))
    (tmp_path / "one.json").write_text(EVERY.to_json())
    one = ("score", *CHEAP, *TINY, "--cell", tmp_path / "one.json", "--json", "--out", tmp_path / "c")
    assert json.loads(run(capsys, *one)[1])["rows"][0]["cell"] == str(EVERY)
    for arguments, message in [
        ((*TINY,), "Expected --sample, --cell or --accuracies for DARTS, got none"),
        ((*TINY, "--sample", 0), "Expected --sample to be at least 1, got 0"),
        ((*TINY, *table, "--sample", 13), "Expected --sample in 1 to 12, the number of cells, got 13"),
        ((*TINY, "--cell", CELL), "Expected --cell of darts, got cells of nasbench201; pass --space nasbench201"),
        ((*TINY[:-2], *table), "Expected --accuracies of cells of nasbench201, got cells of darts; pass --space"),
        ((*TINY, "--sample", 2, "--filter", "paper"), "Expected --filter to be one of released-code, got 'paper'"),
        ((*TINY, *table, "--column", "c100"), "Expected --column to be one of c10, got 'c100'"),
    ]:
        status, _, error = run(capsys, "score", *CHEAP, *arguments, "--out", tmp_path / "d")
        assert (status, error.count("\n")) == (2, 1)
        assert message in error
    assert not (tmp_path / "d").exists()


@pytest.mark.nightly
def test_search_and_plot_of_genotypes(capsys, tmp_path):
    (tmp_path / "t.csv").write_text(
        csv_of([("genotype", "c10"), *((each, 90 + i) for i, each in enumerate(GENOTYPES[:8]))])
    )
    table, scores = ("--accuracies", tmp_path / "t.csv"), ("--scores", tmp_path / "s")
    assert run(capsys, "score", *CHEAP, *TINY, *table, "--out", tmp_path / "s")[0] == 0
    status, text, error = run(capsys, "search", *table, *scores, *CHEAP, "--sample", 4, "--repeats", 3)
    assert status == 0, error
    assert "leave_one_out ranks" in text or "does not rank" in text
    rows = list(csv.DictReader((tmp_path / "s" / "search.csv").read_text().splitlines()))
    assert {row["filter"] for row in rows} == {"", "released-code"}
    assert run(capsys, "plot", *table, *scores)[0] == 0
    assert (tmp_path / "s" / "depth-width.png").exists()


def test_texts_are_not_cells(setting, unchecked):
    with pytest.raises(InputError, match="`cells` to be of type `Cell`"):
        list(score_cells([str(GENOTYPES[0])], ["parameters"], setting))  # type: ignore[list-item]
    assert isinstance(parse_cell(CELL), Cell)
