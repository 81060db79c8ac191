"""Scores that read labels: the leave-one-out error, controls with shuffled labels, and what is said about them."""

from dataclasses import replace

import numpy as np
import pandas
import pytest
from rich.console import Console

import nngp_dag as nd
from nngp_dag.errors import InputError
from nngp_dag.nas import (
    BUILT_IN,
    SCORES,
    AccuracyTable,
    Cell,
    Score,
    ScoreDirectory,
    Setting,
    accuracy_correlations,
    accuracy_correlations_table,
    control_correlations,
    control_remarks,
    get_score,
    read_scores,
    register,
    sample_cells,
    score_cells,
    search_table,
)
from nngp_dag.nas.scores import registry, wiring
from nngp_dag.nas.scores.registry import measures_of, with_controls
from nngp_dag.nas.scores.wiring import centered_targets, leave_one_out_error, on_sphere
from nngp_dag.nas.studies.controls import difference_error

CELLS = sample_cells(8, seed=1)
CHAIN = Cell.parse("|nor_conv_3x3~0|+|none~0|nor_conv_3x3~1|+|none~0|none~1|skip_connect~2|")


def clusters(n=24, seed=0):
    """Returns images in three groups, and the groups as labels: what the labels are can be learned."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    centers = rng.normal(size=(3, 4, 4, 3))
    return (centers[labels] + 0.2 * rng.normal(size=(n, 4, 4, 3))).astype(np.float32), labels


@pytest.fixture
def setting():
    return Setting(*clusters(), channels=4, cells=1, classes=3)


@pytest.fixture
def empty_registry(monkeypatch):
    monkeypatch.setattr(registry, "_registered", {})


def test_shuffled_labels_are_the_labels_in_another_order_that_the_seed_fixes(setting):
    shuffled = setting.with_shuffled_labels()
    assert sorted(shuffled.labels) == sorted(setting.labels)
    assert (shuffled.labels != setting.labels).any()
    np.testing.assert_array_equal(shuffled.labels, replace(setting).with_shuffled_labels().labels)
    assert (shuffled.labels != replace(setting, seed=1).with_shuffled_labels().labels).any()
    np.testing.assert_array_equal(shuffled.images, setting.images)
    assert shuffled.network() is setting.network()
    # With two labels, one of the two orders is the given one.
    for seed in range(6):
        two = Setting(setting.images[:2], np.array([0, 1]), seed=seed)
        assert np.asarray(two.with_shuffled_labels().labels).tolist() == [1, 0]


@pytest.mark.parametrize(("labels", "got"), [(None, "None"), (np.array([1, 1, 1]), "one class")])
def test_a_control_needs_two_classes(labels, got):
    with pytest.raises(InputError, match=f"`labels` in the setting to hold at least two classes, got {got}"):
        Setting(np.ones((3, 4, 4, 3), np.float32), labels).with_shuffled_labels()


def test_labels_are_checked_before_anything_is_computed(setting, tmp_path):
    for labels, message in ((None, "for leave_one_out, got None"), (np.zeros(24, int), "got one class")):
        running = ScoreDirectory(tmp_path / f"{labels is None}", Setting(setting.images, labels))
        with pytest.raises(InputError, match=message):
            next(running.score([CHAIN], ["parameters", "leave_one_out"]))


def test_leave_one_out_is_the_error_of_n_fits_without_one_image(setting):
    k = np.asarray(nd.kernel(CHAIN.dag, on_sphere(setting.images)).ntk)
    y, n = centered_targets(setting), len(k)
    ridge, errors = 1e-3 * np.trace(k) / n, []
    for i in range(n):
        left = np.delete(np.arange(n), i)
        fitted = np.linalg.solve(k[np.ix_(left, left)] + ridge * np.eye(n - 1), y[left])
        errors.append(((y[i] - k[i, left] @ fitted) ** 2).sum())
    assert leave_one_out_error(k, y) == pytest.approx(np.mean(errors), rel=1e-9)
    [scored] = score_cells([CHAIN], ["leave_one_out"], setting)
    assert scored.values["leave_one_out"] == pytest.approx(np.mean(errors), rel=1e-9)
    np.testing.assert_allclose(y.sum(axis=0), 0, atol=1e-12)
    with pytest.raises(InputError, match="to be positive definite"):
        leave_one_out_error(k - 0.9 * np.trace(k) / n * np.eye(n), y)


def test_where_labels_can_be_learned_the_control_is_far_worse(setting):
    [scored] = score_cells([CHAIN], ["leave_one_out"], setting)
    error, control = scored.values["leave_one_out"], scored.values["leave_one_out_shuffled"]
    # A constant prediction has the error 2/3 of one-hot targets of three equal classes.
    assert error < 0.1
    assert control > 0.5
    # The control is the score of the shuffled labels, ...
    [alone] = score_cells([CHAIN], ["leave_one_out"], replace(setting, labels=setting.with_shuffled_labels().labels))
    assert alone.values["leave_one_out"] == pytest.approx(control, rel=1e-12)
    # ... and the same in every run.
    [again] = score_cells([CHAIN], ["leave_one_out"], replace(setting))
    assert again.values == scored.values


def test_each_kernel_is_computed_once_for_both(setting, monkeypatch):
    batches, original = [], wiring.kernels_of_classes

    def counted(classes, left, *rest, **options):
        batches.append(left)
        return original(classes, left, *rest, **options)

    monkeypatch.setattr(wiring, "kernels_of_classes", counted)
    # Two cells whose kernels are equal, one cell without a kernel, and others.
    twin = Cell.parse("|nor_conv_1x1~0|+|none~0|nor_conv_1x1~1|+|none~0|none~1|avg_pool_3x3~2|")
    found = list(score_cells([CHAIN, twin, Cell.from_index(0)], ["leave_one_out"], setting))
    assert [len(left) for left in batches] == [1]
    assert found[0].values == found[1].values
    assert "Expected a path from node 0" in found[2].reasons["leave_one_out_shuffled"]
    list(score_cells([twin], ["leave_one_out"], setting))
    assert len(batches) == 1


@pytest.mark.slow
def test_many_images_take_fewer_kernels_at_once(setting, monkeypatch):
    asked, original = [], wiring.kernels_of_classes

    def counted(*rest, batch):
        asked.append(batch)
        return original(*rest, batch=batch)

    monkeypatch.setattr(wiring, "kernels_of_classes", counted)
    monkeypatch.setattr(wiring, "_MEMORY", 3 * 34 * len(setting.images) ** 2)
    few = list(score_cells(CELLS, ["leave_one_out"], setting))
    monkeypatch.setattr(wiring, "_MEMORY", 1)
    one = list(score_cells(CELLS, ["leave_one_out"], replace(setting)))
    assert asked == [3, 1]
    for a, b in zip(few, one, strict=True):
        assert list(a.values.values()) == pytest.approx(list(b.values.values()), rel=1e-10, nan_ok=True)


def test_every_score_that_reads_labels_has_its_control_and_no_other_has_one():
    read = {name for name in BUILT_IN if SCORES[name].reads_labels}
    assert read == {"grad_norm", "leave_one_out"}
    assert {score.control_of for score in SCORES.values() if score.control_of} >= read
    for name in read:
        control = get_score(f"{name}_shuffled")
        assert (control.measure, control.cost) == (SCORES[name].measure, SCORES[name].cost)
        assert control.higher_is_better is SCORES[name].higher_is_better
    assert with_controls(["leave_one_out_shuffled", "flops", "leave_one_out"]) == [
        *("leave_one_out", "leave_one_out_shuffled", "flops"),
    ]


@pytest.mark.parametrize(
    "cost",
    ["wiring", "kernel", *(pytest.param(of, marks=pytest.mark.nightly) for of in ("forward", "backward", "jacobian"))],
)
def test_scores_that_do_not_read_labels_do_not_change_with_them(setting, cost):
    names = [name for name in BUILT_IN if SCORES[name].cost == cost and not SCORES[name].reads_labels]
    assert names
    [one] = score_cells([CHAIN], names, Setting(setting.images, channels=4, cells=1, ntk_images=4))
    [two] = score_cells([CHAIN], names, replace(setting, ntk_images=4, classes=10))
    assert one.values == two.values


@pytest.mark.nightly
def test_the_gradient_norm_and_its_control_are_those_of_two_settings(setting):
    [scored] = score_cells([CHAIN], ["grad_norm"], setting)
    [other] = score_cells([CHAIN], ["grad_norm"], replace(setting, labels=setting.with_shuffled_labels().labels))
    assert scored.values["grad_norm_shuffled"] == pytest.approx(other.values["grad_norm"], rel=1e-6)
    assert scored.values["grad_norm_shuffled"] != pytest.approx(scored.values["grad_norm"], rel=1e-4)


def test_a_score_of_your_own_that_reads_labels_gets_its_control(setting, empty_registry):
    asked = []

    def first_label(cells, setting):
        for cell in cells:
            asked.append(setting.labels)
            yield {"first": float(10 * cell.index + (setting.labels @ np.arange(len(setting.labels)))), "number": 1.0}

    score = register(Score("first", True, "forward", "", first_label, reads_labels=True))
    register(Score("number", True, "forward", "", first_label))
    assert (score.name, list(registry._registered)) == ("first", ["first", "first_shuffled", "number"])
    assert get_score("first_shuffled").reference == "control of first: the same with shuffled labels"
    found = list(score_cells(CELLS[:2], ["number", "first"], setting))
    shuffled = setting.with_shuffled_labels().labels
    for scored in found:
        assert list(scored.values) == ["number", "first", "first_shuffled"]
        difference = scored.values["first"] - scored.values["first_shuffled"]
        assert difference == (setting.labels - shuffled) @ np.arange(24) != 0
        assert scored.values["number"] == 1
    for name in ("first", "first_shuffled"):
        with pytest.raises(InputError, match=f"a new name for a score, got '{name}', which is taken"):
            register(Score(name, True, "wiring", "", first_label))
    with pytest.raises(InputError, match="Expected `labels` in the setting for first, got None; pass those"):
        list(score_cells(CELLS[:1], ["first"], Setting(setting.images)))


def test_seconds_are_those_of_the_score_alone(setting, empty_registry):
    import time

    def slow_with_shuffled(cells, setting, usual=setting.labels):
        for _ in cells:
            time.sleep(0.2 if (setting.labels != usual).any() else 0.0)
            yield {"mine": 1.0}

    register(Score("mine", True, "forward", "", slow_with_shuffled, reads_labels=True))
    assert all(scored.seconds < 0.1 for scored in score_cells(CELLS[:2], ["mine"], setting))


def test_a_killed_run_goes_on_to_the_same_table(setting, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    list(ScoreDirectory(whole, setting).score(CELLS, ["leave_one_out"]))
    list(ScoreDirectory(cut, replace(setting)).score(CELLS[:5], ["leave_one_out"]))
    file = cut / "scores-exact_leave_one_out.csv"
    # A kill in the middle of a line leaves the file in this state.
    file.write_bytes(file.read_bytes()[:-7])
    *_, last = ScoreDirectory(cut, replace(setting)).score(CELLS, ["leave_one_out_shuffled"])
    assert last == ("exact_leave_one_out", 8, 8)
    one, two = (read_scores(path).drop(columns="seconds_exact_leave_one_out") for path in (whole, cut))
    assert "leave_one_out_shuffled" in one
    pandas.testing.assert_frame_equal(one, two, rtol=1e-9)


def frame_of(score, control, name="leave_one_out"):
    cells = [cell for cell in sample_cells(60, seed=0) if cell.status == "connected"][: len(score)]
    table = pandas.DataFrame({"cell": list(map(str, cells)), "status": "connected"})
    return table.assign(**{name: score, f"{name}_shuffled": control, "seconds_exact_leave_one_out": 0.0}), cells


def test_correlations_stand_beside_those_of_the_control():
    accuracy = np.linspace(80, 94, 12)
    rng = np.random.default_rng(0)
    # The error is lower the better; the control is noise.
    scores, cells = frame_of(-accuracy, rng.normal(size=12))
    scores["flops"] = accuracy
    table = AccuracyTable(tuple(cells), {"a": accuracy})
    found = accuracy_correlations(scores, table)
    assert list(found["first"]) == ["flops", "leave_one_out"]
    expected = pandas.Series(accuracy).corr(-scores.leave_one_out_shuffled, method="spearman")
    assert found.spearman.tolist() == pytest.approx([1, 1])
    assert found.spearman_control[1] == pytest.approx(expected)
    assert found.kendall_control[1] == pytest.approx(
        -pandas.Series(accuracy).corr(scores.leave_one_out_shuffled, "kendall")
    )
    assert np.isnan(found.spearman_control[0])
    console = Console(width=100)
    with console.capture() as captured:
        console.print(accuracy_correlations_table(found))
    [flops, mine] = [line.split() for line in captured.get().splitlines() if "+1.000" in line]
    assert (flops[3], mine[3]) == ("–", f"{expected:+.3f}")
    between = control_correlations(scores)
    assert (between["first"].tolist(), between["second"].tolist()) == (["leave_one_out"], ["leave_one_out_shuffled"])
    assert between.spearman[0] == pytest.approx(scores.leave_one_out.corr(scores.leave_one_out_shuffled, "spearman"))
    searches = search_table(scores, table, ["leave_one_out"], filters=(), sample=4, repeats=5)
    assert {"leave_one_out", "leave_one_out_shuffled"} <= set(searches["method"])


@pytest.mark.parametrize(
    ("score", "control", "error", "words"),
    [
        (0.770, 0.765, 0.001, "ranks no better than its control: rank correlation with the accuracy 0.770, with "
         "shuffled labels 0.765, 1,000 cells. It measures the shape of the kernel, not learning from the labels."),
        (0.770, 0.40, 0.1, "ranks better than its control: rank correlation with the accuracy 0.770, with shuffled "
         "labels 0.400, 1,000 cells. The difference comes from the labels."),
        (0.770, 0.40, 0.2, "ranks hardly better than its control: rank correlation with the accuracy 0.770, with "
         "shuffled labels 0.400, 1,000 cells. This difference is below two of its standard errors, 0.200 each"),
        (-0.2, 0.1, 0.1, "does not rank these cells: rank correlation with the accuracy −0.200"),
    ],
)  # fmt: skip
def test_a_sentence_says_what_follows_from_the_control(score, control, error, words):
    columns = {"first": "leave_one_out", "spearman": score, "spearman_control": control, "difference_error": error}
    found = pandas.DataFrame([columns | {"rows": 1000}])
    [remark] = control_remarks(found)
    assert remark.startswith(f"leave_one_out {words}")


def test_the_error_of_a_difference_is_its_spread_over_draws_of_cells():
    def draw(rng, cells=60):
        accuracy = rng.normal(size=cells)
        return accuracy + 0.5 * rng.normal(size=cells), accuracy + 1.5 * rng.normal(size=cells), accuracy

    rng = np.random.default_rng(0)
    spearman = lambda a, b: pandas.Series(a).corr(pandas.Series(b), "spearman")  # noqa: E731
    draws = [draw(rng) for _ in range(150)]
    true = np.std([spearman(a, c) - spearman(b, c) for a, b, c in draws])
    found = np.mean([difference_error(*each) for each in draws[:20]])
    # The spread of 150 draws has a relative error of 6 %. A bootstrap of 60 ranks is a little off as well.
    assert found == pytest.approx(true, rel=0.25)
    assert np.isnan(difference_error(np.ones(9), np.arange(9.0), np.arange(9.0)))
    assert np.isnan(difference_error(*np.full((3, 9), np.nan)))


def test_without_accuracies_the_two_orders_are_compared():
    scores, _ = frame_of(np.arange(12.0), np.arange(12.0) ** 2)
    [remark] = control_remarks(control_correlations(scores))
    assert "orders the cells alike with shuffled labels: rank correlation 1.000. It measures the shape of" in remark
    scores["leave_one_out_shuffled"] = np.arange(12.0)[::-1]
    [remark] = control_remarks(control_correlations(scores))
    assert "orders the cells differently with shuffled labels: rank correlation −1.000. Accuracies tell" in remark
    # A score that was not computed, or has too few cells, causes no sentence.
    assert control_remarks(control_correlations(scores.drop(columns="leave_one_out"))) == []
    assert control_remarks(control_correlations(scores.head(2))) == []
    named, _ = frame_of(np.arange(12.0), np.arange(12.0), "grad_norm")
    assert "a property of the network" in control_remarks(control_correlations(named))[0]


def test_measures_are_listed_for_a_space(empty_registry):
    def mine(cells, setting):
        return iter(())

    register(Score("mine", True, "wiring", "", mine))
    assert list(measures_of(["mine"])) == [mine]
    with pytest.raises(InputError, match="scores of darts, got 'mine', which takes cells of nasbench201 only"):
        measures_of(["mine"], "darts")
