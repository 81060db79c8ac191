"""Short texts, HTML and tables of results: short, well-formed, and the same numbers as the arrays."""

import dataclasses
import math
import pickle
import xml.etree.ElementTree as ET

import jax
import jax.numpy as jnp
import numpy as np
import pandas
import pytest
from flax import nnx

import nngp_dag as nd
from nngp_dag import forms
from nngp_dag.data import Dataset, Part, Splits
from nngp_dag.errors import InputError
from nngp_dag.graph import AvgPool, Conv, Dense
from nngp_dag.nas import AccuracyTable, Cell
from nngp_dag.nas.scores.registry import Scored
from nngp_dag.nets.summary import LayerSummary, ModelSummary
from nngp_dag.report import Comparisons
from nngp_dag.report.comparison import Comparison
from nngp_dag.training import History, evaluation, history
from nngp_dag.training.run import Trained

ERF = nd.Network("2_21_112", layer=Dense(activation="erf", order="act-linear"), aggregation="mean", width=64)
LARGE = nd.Dag.from_edges([(i, i + 1, 2) for i in range(300)])
MATRIX = np.diag([1.0, 2.0, 4.0])
STEPS = np.arange(5)
CURVE = nd.LossCurve(STEPS, 2.0**-STEPS, 0.1 * 2.0**-STEPS, None, None, 0.5, 1.0)
TESTED = dataclasses.replace(CURVE, test_mean=3.0 - STEPS / 4, test_std=STEPS / 8)
SPECTRUM = nd.spectrum(MATRIX, eigenvalues=True)
UNRESOLVED = nd.Spectrum(1e-20, 1.0, 1e-13)
CELL = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
TABLE = AccuracyTable((Cell.parse(CELL), Cell.from_index(0)), {"a": np.array([88.5, math.nan]), "b": np.arange(2.0)})
PART = Part(np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1]))
SUMMARY = ModelSummary(
    (LayerSummary("stem", "dense-relu", (8,), 40, 80), LayerSummary("readout", "dense", (2,), 16, 32))
)


def curves(name="<b>", seeds=2):
    values = np.random.default_rng(0).uniform(size=(4, 3, 3, seeds))
    return History(name, tuple(range(seeds)), 5, np.array([0.1, 0.05, 0.01]), values)


def evaluated():
    return evaluation.Evaluation("<b>", (3, 0), (2, 1), np.random.default_rng(1).uniform(size=(3, 3, 2)))


def compared(name="<b>", network=ERF, formula=None):
    return Comparison(
        name=name, network=network, nngp=SPECTRUM, ntk=UNRESOLVED, nngp_bracket=nd.Bracket(0.1, 0.5),
        ntk_bracket=nd.Bracket(0.0, 3.0), path_bound=formula, ntk_path_bound=None, learning_rate=0.5,
        conditions_met=True, bound=2.0 - STEPS / 4, expected=CURVE, curves=np.stack([CURVE.mean, 2 * CURVE.mean]),
    )  # fmt: skip


def trained(folder=None):
    params = nnx.State({"w": np.zeros((2, 1000))})
    return Trained(
        name="<b>", parameters=1000, history=curves(), params=params, stats=params, best_params=params,
        best_stats=params, best_epoch=np.array([1, 3]), folder=folder, network=ERF, summary=SUMMARY,
    )  # fmt: skip


RESULTS = {
    "kernel": nd.Kernel(nngp=np.ones((500, 500)), ntk=np.ones((500, 500)), network=ERF, output=1),
    "spectrum": SPECTRUM,
    "unresolved": UNRESOLVED,
    "bracket": nd.Bracket(0.1, 0.5),
    "brackets": nd.theory.Brackets(nd.Bracket(0.1, 0.5), nd.Bracket(1 / 3, 2e9)),
    "path bound": nd.PathBound(math.inf, ("skips share an ancestor", "means of activated branches add up")),
    "posterior": nd.Posterior(np.zeros((300, 10)), np.eye(300), kind="ntk"),
    "leave one out": nd.leave_one_out(np.eye(3), np.eye(3), 0.5),
    "loss curve": CURVE,
    "test curve": TESTED,
    "modes": nd.Modes(np.arange(3.0), np.ones(3), 0.5),
    "linearized": nd.LinearizedRuns(np.ones((5, 3)), np.zeros((5, 3))),
    "history": curves(),
    "started": History("<b>", (0,), 5, np.ones(2), np.full((3, 3, 3, 1), np.nan)),
    "evaluation": evaluated(),
    "trained": trained(),
    "summary": SUMMARY,
    "comparison": compared(),
    "comparisons": Comparisons([compared(), compared("x" * 200)]),
    "none compared": Comparisons(),
    "table": TABLE,
    "scored": Scored(Cell.parse(CELL), {"naswot": 1.5, "synflow": math.nan}, {"synflow": "no weights"}, 0.1),
    "part": PART,
    "splits": Splits("<b>", PART, PART, PART, 2),
    "dataset": Dataset("<b>", PART.x, PART.labels, 2),
    "network": nd.Network(LARGE, layer=Dense(w_std=1.0)),
    "graph": LARGE,
}


@pytest.mark.parametrize("name", RESULTS)
def test_texts_are_short(name):
    lines = repr(RESULTS[name]).splitlines()
    assert 1 <= len(lines) <= 2
    assert max(map(len, lines)) <= forms.WIDTH
    assert lines[0].startswith(type(RESULTS[name]).__name__ + "(")
    assert lines[-1].endswith(")")


@pytest.mark.parametrize("name", RESULTS)
def test_html_is_well_formed_and_small(name):
    text = RESULTS[name]._repr_html_()
    tree = ET.fromstring(text)
    assert tree.tag == "table"
    caption = tree.find("caption")
    assert caption is not None
    assert caption.text
    assert not tree.findall(".//b")
    assert len(text) < 6000
    assert ("&lt;b&gt;" in text) == ("<b>" in repr(RESULTS[name]))


def test_html_says_what_the_text_says():
    cells = [[cell.text for cell in row] for row in ET.fromstring(CURVE._repr_html_()).findall("tr")]
    assert cells == [[name, text] for name, text in CURVE._facts().items()]
    assert ["loss", "1 ± 0.1 → 0.0625 ± 0.0063"] in cells
    assert [row[0].text for row in ET.fromstring(curves()._repr_html_()).findall("tr")][:2] == ["name", "seeds"]


def test_no_dataclass_has_a_text_of_its_own():
    classes = forms.Described.__subclasses__()
    for cls in classes:
        classes += cls.__subclasses__()
    assert {nd.Kernel, History, Trained} <= set(classes)
    for cls in classes:
        assert cls.__repr__ is forms.Described.__repr__, cls


def test_texts_of_values():
    assert repr(SPECTRUM).startswith("Spectrum(lambda_min=1, lambda_max=4, condition_number=4, floor=")
    assert "lambda_min=< 1.0e-13 (not resolved)" in repr(UNRESOLVED)
    assert repr(nd.Bracket(0.1, 1 / 3)) == "Bracket(lower=0.1, upper=0.333333)"
    assert repr(nd.PathBound(0.25, ())) == "PathBound(value=0.25, violated_assumptions=())"
    assert "test_loss=3 ± 0 → 2 ± 0.5" in repr(TESTED)
    assert "diverges=True" in repr(dataclasses.replace(CURVE, learning_rate=2.0))
    assert repr(nd.Posterior(np.zeros((2, 1)), np.diag([1.0, 4.0]))) == "Posterior(mean=float64[2,1], std=1 to 2)"
    assert repr(TABLE) == "AccuracyTable(cells=2, a=88.5, b=0 to 1)"
    assert repr(Comparisons([compared("one"), compared("two")])) == "Comparisons('one', 'two')"
    accuracy = curves().of("test", "accuracy")
    assert f"test_accuracy={forms.over(accuracy[3])}, at_best_epoch={forms.over(accuracy[[1, 3], [0, 1]])}" in repr(
        trained()
    ).replace("\n    ", " ")
    assert "epochs=0 of 2" in repr(RESULTS["started"])


def test_integers_are_written_in_full():
    for value in (12345678, np.int64(12345678), np.int32(12345678)):
        assert forms.number(value) == "12345678"
    assert forms.number(np.float32(12345678)) == "1.23457e+07"


@pytest.mark.parametrize(("value", "floor"), [(math.nan, 1e-13), (1.0, math.nan), (math.nan, math.nan)])
def test_eigenvalues_without_a_number(value, floor):
    assert forms.eigenvalue(value, floor, resolved=False) == "not resolved"


def test_a_run_names_its_folder(tmp_path):
    rows = {row[0].text: row[1].text for row in ET.fromstring(trained(tmp_path)._repr_html_()).findall("tr")}
    assert rows["folder"] == repr(str(tmp_path))
    assert "folder" not in repr(trained())


def test_networks_state_what_is_not_at_its_default():
    assert repr(nd.Network("2_12")) == "Network('2_12')"
    assert repr(ERF) == (
        "Network('2_21_112', layer=Dense(activation='erf', order='act-linear'), aggregation='mean', width=64)"
    )
    assert eval(repr(ERF), {"Network": nd.Network, "Dense": Dense}) == ERF
    # The stem of a layer is no option.
    assert repr(nd.Network("2_12", stem=Dense())) == "Network('2_12')"
    own = nd.Network(
        [(0, 1, "weighted"), (1, 2, Conv(filter_shape=(3, 3)))], Conv(filter_shape=(5, 5), padding="VALID")
    )
    assert repr(own).splitlines()[0].startswith("Network(Dag('0->1:weighted,1->2:conv(3x3)-relu'), layer=Conv(")
    assert "strides" not in repr(own)


def test_constructors_of_operations():
    assert forms.constructor(Dense()) == "Dense()"
    assert forms.constructor(AvgPool((2, 2))) == "AvgPool(window_shape=(2, 2))"
    assert forms.constructor(AvgPool((2, 2), (2, 2))) == "AvgPool(window_shape=(2, 2), strides=(2, 2))"

    @dataclasses.dataclass
    class Refuses:
        needed: int
        given: int = 1

        def __post_init__(self):
            if self.given == 1:
                raise ValueError

    assert forms.constructor(Refuses(0, 2)).endswith("Refuses(needed=0, given=2)")


def test_texts_within_transformations():
    k = nd.Kernel(nngp=jnp.ones((2, 3)), ntk=jnp.ones((2, 3)), network=nd.Network("2_12"))
    assert repr(k) == "Kernel(nngp=float32[2,3], ntk=float32[2,3], network=Network('2_12'))"

    def seen(transformation):
        found = []
        transformation(lambda k: (found.extend([repr(k), k._repr_html_()]), k)[1])(k)
        assert ET.fromstring(found[1]).tag == "table"
        return found[0]

    assert seen(jax.jit) == "Kernel(nngp=float32[2,3], ntk=float32[2,3])"
    assert seen(jax.vmap) == "Kernel(nngp=float32[3], ntk=float32[3])"
    assert repr(jax.eval_shape(lambda k: k, k)) == "Kernel(nngp=float32[2,3], ntk=float32[2,3])"
    assert repr(jax.tree.map(lambda _: None, k)) == "Kernel(nngp=None, ntk=None)"


def test_values_behave_as_before():
    k = nd.Kernel(nngp=1.0, ntk=None)
    assert jax.tree.leaves(k) == [1.0]
    assert k == nd.Kernel(nngp=1.0, ntk=None)
    assert pickle.loads(pickle.dumps(RESULTS["brackets"])) == RESULTS["brackets"]
    assert hash(nd.Bracket(0.0, 1.0)) == hash(nd.Bracket(0.0, 1.0))
    nngp, ntk = RESULTS["brackets"]
    assert (nngp, ntk) == RESULTS["brackets"]


# --- tables ---------------------------------------------------------------------------------------


def test_curves_as_tables():
    table = CURVE.to_frame()
    assert list(table) == ["step", "mean", "std"]
    np.testing.assert_array_equal(table.to_numpy(), np.stack([STEPS, CURVE.mean, CURVE.std], axis=1))
    table = TESTED.to_frame()
    assert list(table) == ["step", "mean", "std", "test_mean", "test_std"]
    np.testing.assert_array_equal(table.test_std, TESTED.test_std)


def test_eigenvalues_as_a_table():
    np.testing.assert_array_equal(SPECTRUM.to_frame().eigenvalue, [1.0, 2.0, 4.0])
    with pytest.raises(InputError, match=r"all `eigenvalues`, got one with the extreme ones only; pass `eigenvalues="):
        UNRESOLVED.to_frame()


def test_modes_as_a_table():
    found = nd.Modes(np.array([2.0, 0.5]), np.array([1.0, 3.0]), 0.5)
    table = found.to_frame()
    assert list(table) == ["eigenvalue", "loss", "factor", "half_life"]
    expected = np.stack([found.eigenvalues, found.losses, found.factors, found.half_lives], axis=1)
    np.testing.assert_array_equal(table.to_numpy(), expected)


def test_linearized_runs_as_a_table():
    rng = np.random.default_rng(0)
    runs = nd.LinearizedRuns(rng.uniform(size=(3, 2)), rng.uniform(size=(3, 2)))
    table = runs.to_frame()
    assert list(table) == ["draw", "epoch", "train_loss", "train_accuracy"]
    # The names of the curves of trained networks.
    assert {"train_loss", "train_accuracy", "epoch"} <= set(history.FIELDS)
    for name, values in (("train_loss", runs.losses), ("train_accuracy", runs.accuracies)):
        pandas.testing.assert_frame_equal(
            table.pivot(index="epoch", columns="draw", values=name), pandas.DataFrame(values), check_names=False,
            check_index_type=False, check_column_type=False,
        )  # fmt: skip


def test_histories_are_tables_as_in_their_file(tmp_path):
    found = curves("one")
    history.write_csv([found], tmp_path / "curves.csv")
    table = found.to_frame()
    pandas.testing.assert_frame_equal(table, pandas.read_csv(tmp_path / "curves.csv"))
    assert list(table) == list(history.FIELDS)
    np.testing.assert_array_equal(table.validation_loss, found.of("validation", "loss").ravel())
    np.testing.assert_array_equal(table.learning_rate, np.repeat([np.nan, 0.1, 0.05, 0.01], 2))
    pandas.testing.assert_frame_equal(trained().to_frame(), curves().to_frame())
    assert list(RESULTS["started"].to_frame()) == list(history.FIELDS)
    assert len(RESULTS["started"].to_frame()) == 0


def test_evaluations_as_tables():
    found = evaluated()
    table = found.to_frame()
    assert table.columns.tolist() == ["dag", "seed", "epoch", "part", "loss", "accuracy", "class_accuracy"]
    row = table[(table.seed == 3) & (table.part == "test")].iloc[0]
    assert row.epoch == 2
    assert row.accuracy == found.of("test", "accuracy")[0]


def test_models_as_tables():
    table = SUMMARY.to_frame()
    assert list(table) == [field.name for field in dataclasses.fields(LayerSummary)]
    assert (table.parameters.sum(), table.flops.sum()) == (SUMMARY.parameters, SUMMARY.flops)


def test_accuracy_tables_come_back_from_a_file(tmp_path):
    TABLE.to_frame().to_csv(tmp_path / "table.csv", index=False)
    back = AccuracyTable.load(tmp_path / "table.csv")
    assert back.cells == TABLE.cells
    assert list(back.accuracies) == ["a", "b"]
    for name, column in TABLE.accuracies.items():
        np.testing.assert_array_equal(back.column(name), column)


def test_comparisons_as_a_table():
    formula = nd.PathBound(0.3, ("one", "two"))
    rows = Comparisons([compared("first", formula=formula), compared("second")])
    assert isinstance(rows, list)
    table = rows.to_frame()
    document = rows[0].as_row()
    brackets = [name for name in document if name.endswith("_bracket")]
    assert set(table) == (document.keys() - set(brackets)) | {"nngp_lower", "nngp_upper", "ntk_lower", "ntk_upper"}
    first = table.iloc[0]
    for name in document.keys() & {"name", "dag", "num_paths", "nngp_lambda_min", "loss_final_mean", "verdict"}:
        assert first[name] == document[name]
    assert (first.nngp_lower, first.nngp_upper, first.ntk_lower, first.ntk_upper) == (0.1, 0.5, 0.0, 3.0)
    assert first.path_bound_violated_assumptions == "one; two"
    assert table.ntk_lambda_min.dtype == table.path_bound.dtype == np.float64
    assert math.isnan(first.ntk_lambda_min)
    assert math.isnan(table.iloc[1].path_bound)


def test_parts_and_copies_of_comparisons_are_tables():
    rows = Comparisons([compared("first"), compared("second"), compared("third")])
    for part, names in ((rows[1:], ["second", "third"]), (rows.copy(), ["first", "second", "third"]), (rows[:0], [])):
        assert type(part) is Comparisons
        assert [row.name for row in part] == names
    assert rows[1] is rows[1:][0]
    assert rows.copy() == rows
    assert rows.copy() is not rows
    assert list(rows[::-1].to_frame().name) == ["third", "second", "first"]


def test_path_bounds_as_a_table():
    frames = pandas.concat([nd.PathBound(0.5, ()).to_frame(), RESULTS["path bound"].to_frame()])
    assert list(frames) == ["value", "is_bound", "violated_assumptions"]
    assert frames.values.tolist() == [
        [0.5, True, ""],
        [math.inf, False, "skips share an ancestor; means of activated branches add up"],
    ]


def test_posteriors_as_a_table():
    mean = np.random.default_rng(0).normal(size=(3, 2))
    found = nd.Posterior(mean, np.diag([1.0, 4.0, 9.0]))
    table = found.to_frame()
    assert list(table) == ["input", "output", "mean", "std"]
    np.testing.assert_array_equal(table.pivot(index="input", columns="output", values="mean"), mean)
    np.testing.assert_array_equal(table["std"], np.repeat(found.std, 2))


def test_leave_one_out_as_a_table():
    targets = np.random.default_rng(0).normal(size=(3, 2))
    for kind in ("nngp", "ntk"):
        found = nd.leave_one_out(np.diag([1.0, 2.0, 3.0]), targets, 0.5, kind=kind)
        table = found.to_frame()
        assert list(table) == ["input", "output", "mean", "error", *(["std"] if kind == "nngp" else [])]
        np.testing.assert_allclose(table.pivot(index="input", columns="output", values="error"), targets, rtol=1e-14)
    np.testing.assert_allclose(nd.leave_one_out(np.eye(1), np.ones(1), 3.0).to_frame()["std"], 2)


def test_a_comparison_as_the_table_of_its_file(tmp_path):
    from nngp_dag.report.compare_files import write_curves

    rows = Comparisons([compared("first"), compared("second")])
    write_curves(tmp_path / "curves.csv", rows)
    tables = pandas.concat([row.to_frame() for row in rows], ignore_index=True)
    pandas.testing.assert_frame_equal(tables, pandas.read_csv(tmp_path / "curves.csv"), rtol=1e-8)
    np.testing.assert_array_equal(tables.empirical_mean[:5], rows[0].curves.mean(axis=0))
