"""Training of cells: the networks in both modes, runs that learn, exact resumption, and refusals."""

import csv
import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cli_cases import run
from flax import nnx
from training_cases import assert_same_bits

from nngp_dag.cli import main
from nngp_dag.data import load_splits
from nngp_dag.errors import CheckpointError, DivergenceError, GraphError, InputError, NngpDagError, OutputError
from nngp_dag.nas import Cell, MacroNet
from nngp_dag.nas.networks.bench_net import BenchNet
from nngp_dag.nas.networks.darts_net import DartsImageNetNet, DartsNet
from nngp_dag.nas.networks.running_norms import RunningNorms
from nngp_dag.nas.spaces.any_cell import read_cell
from nngp_dag.nas.spaces.darts import Genotype
from nngp_dag.training import Recipe, checkpoints, evaluate
from nngp_dag.training.cell_recipe import CellRecipe
from nngp_dag.training.cells import train_cell
from nngp_dag.training.tasks import augmented

CELL = Cell.parse("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|avg_pool_3x3~1|nor_conv_1x1~2|")
NORMAL = [("sep_conv_3x3", 0), ("skip_connect", 1), ("max_pool_3x3", 0), ("dil_conv_5x5", 2)]
GENOTYPE = Genotype.from_pairs(NORMAL * 2, [("avg_pool_3x3", 0), ("skip_connect", 1)] * 4)
SMALL = {"channels": 2, "layers": 1, "epochs": 2, "batch_size": 40, "augment": False}


@pytest.fixture(scope="module")
def digits():
    return load_splits("digits", subset=120)


@pytest.mark.slow
def test_the_network_of_a_bench_cell_is_the_macro_network():
    x = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
    net, macro = (
        BenchNet(CELL, (8, 8, 3), channels=4, cells=1, rngs=nnx.Rngs(0)),
        MacroNet(channels=4, cells=1, rngs=nnx.Rngs(1)),
    )
    for name in ("stem", "reductions"):
        nnx.update(getattr(macro, name), nnx.state(getattr(net, name)))
    for name in ("scale", "shift", "kernel", "bias"):
        getattr(macro, name)[...] = getattr(net, name)[...]
    for theirs, [edges] in zip(macro.stages, net.stages, strict=True):
        for edge, block in enumerate(edges):
            if block is not None:
                kernel = theirs.conv1 if block.kernel.shape[0] == 1 else theirs.conv3
                kernel[...] = kernel[...].at[0, edge].set(block.kernel[...])
    logits, _ = nnx.jit(lambda net, x: net.train_step(x, jax.random.key(0)))(net, x)
    np.testing.assert_allclose(logits, nnx.jit(MacroNet.__call__)(macro, x, jnp.array(CELL.live.codes)), atol=1e-5)


@pytest.mark.slow
def test_kernels_start_as_pytorch_draws_them():
    nets = (
        DartsNet(GENOTYPE, (32, 32, 3), channels=2, layers=3, auxiliary=True, rngs=nnx.Rngs(0)),
        DartsImageNetNet(GENOTYPE, (32, 32, 3), channels=2, layers=3, auxiliary=False, rngs=nnx.Rngs(0)),
        BenchNet(CELL, (8, 8, 3), channels=4, cells=1, rngs=nnx.Rngs(0)),
    )
    for net in nets:
        weights = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(net, nnx.Param))]
        assert {float(value) for w in weights if w.ndim == 1 for value in w} == {0.0, 1.0}
        # A kernel of k outputs has size / k numbers per output, which is its fan-in.
        kernels = [w for w in weights if w.ndim > 1]
        assert len({round(float(w.flat[0]) * (w.size / w.shape[-1]) ** 0.5, 5) for w in kernels}) == len(kernels)
        shares = np.concatenate([np.ravel(w * (w.size / w.shape[-1]) ** 0.5) for w in kernels])
        assert 0.99 < abs(shares).max() <= 1
        assert (shares**2).mean() == pytest.approx(1 / 3, rel=0.03)
        assert max(abs((w**2).mean() * 3 * w.size / w.shape[-1] - 1) * w.size**0.5 for w in kernels) < 4


@pytest.mark.nightly
def test_running_statistics_approach_those_of_the_batch_and_evaluation_reads_them():
    net = DartsNet(GENOTYPE, (32, 32, 3), channels=2, layers=3, auxiliary=True, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (6, 32, 32, 3))
    step = nnx.jit(lambda net, x: net.train_step(x, jax.random.key(0)))
    for _ in range(99):
        step(net, x)
    logits, auxiliary = step(net, x)
    assert auxiliary.shape == (6, 10)
    # The running variance is the unbiased estimate, which differs where images have few pixels.
    np.testing.assert_allclose(nnx.jit(lambda net, x: net(x))(net, x), logits, rtol=0.02, atol=0.02)


class _Plain(RunningNorms):
    def __init__(self):
        self.mean, self.variance = nnx.BatchStat(jnp.zeros(1)), nnx.BatchStat(jnp.ones(1))

    def _forward(self, x, normalize, drop, training):
        normalize(x, jnp.ones(1), jnp.zeros(1))
        return drop(x)[:, 0, 0], drop(x)[:, 0, 0]


def test_drop_path_drops_whole_images_and_keeps_the_mean():
    first, second = _Plain().train_step(jnp.ones((4000, 2, 2, 1)), jax.random.key(0), 0.2)
    for values in (first, second):
        assert values is not None
        assert set(np.unique(values)) == {0.0, np.float32(1.25)}
        # The tolerance is 4 standard errors.
        assert np.mean(values) == pytest.approx(1, abs=4 * 0.5 / 4000**0.5)
    assert (np.asarray(first) != np.asarray(second)).any()


def test_a_step_keeps_nine_tenths_of_the_running_statistics():
    net = _Plain()
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 1))
    net.train_step(jnp.asarray(x, jnp.float32), jax.random.key(0))
    assert float(net.mean[0]) == pytest.approx(0.1 * x.mean(), rel=1e-5)
    assert float(net.variance[0]) == pytest.approx(0.9 + 0.1 * x.var(ddof=1), rel=1e-5)


class _Noting(nnx.Module):
    """A network that records the probability of drop path of the last step."""

    def __init__(self):
        self.logits, self.noted = nnx.Param(jnp.zeros(10)), nnx.BatchStat(jnp.array(-1.0))

    def __call__(self, x):
        return jnp.broadcast_to(self.logits[...], (len(x), 10))

    def train_step(self, x, key, drop_path):
        self.noted[...] = drop_path
        return self(x), None


@pytest.mark.parametrize(
    ("epochs", "last"), [pytest.param(1, 0.0, marks=pytest.mark.nightly), pytest.param(4, 0.15, marks=pytest.mark.slow)]
)
def test_drop_path_grows_from_0_by_the_same_step_every_epoch(digits, monkeypatch, epochs, last):
    monkeypatch.setattr(CellRecipe, "network", lambda *arguments: _Noting())
    found = train_cell(CELL, digits, **SMALL | {"epochs": epochs}, drop_path=0.2)
    [[noted]] = jax.tree.leaves(found.stats)
    assert float(noted) == pytest.approx(last, rel=1e-6, abs=1e-9)


def test_augmentation_moves_and_mirrors():
    images = jnp.arange(1.0, 1 + 64 * 6 * 6).reshape(64, 6, 6, 1)
    found, padded = augmented(jax.random.key(0), images, 0), np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    places = set()
    for image, before in zip(np.asarray(found), padded, strict=True):
        at = {
            (i, j, step)
            for i in range(9)
            for j in range(9)
            for step in (1, -1)
            if (before[i : i + 6, j : j + 6][:, ::step] == image).all()
        }
        assert at
        places |= at
    assert {step for *_, step in places} == {1, -1}
    assert {i for i, *_ in places} == {j for _, j, _ in places} == set(range(9))


def test_cutout_puts_squares_of_zeros():
    found = np.asarray(augmented(jax.random.key(0), jnp.ones((200, 24, 24, 1)), 4))
    bare = np.asarray(augmented(jax.random.key(0), jnp.ones((200, 24, 24, 1)), 0))
    cut = ((found == 0) & (bare == 1)).sum(axis=(1, 2, 3))
    assert cut.max() == 16
    assert (cut > 0).mean() > 0.9
    np.testing.assert_array_equal(found[found != 0], bare[found != 0])


def test_cells_are_read_from_text_json_and_files(tmp_path):
    file = tmp_path / "cell.json"
    for cell, texts in (
        (GENOTYPE, [GENOTYPE.to_json(), f"DARTS = {GENOTYPE}", json.dumps({"cell": str(GENOTYPE), "rounds": 5})]),
        (CELL, [str(CELL), json.dumps({"cell": str(CELL), "genotype": None}, indent=2)]),
    ):
        for text in (str(cell), *texts):
            file.write_text(text + "\n")
            assert read_cell(text) == read_cell(str(file)) == cell


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nowhere.json", r"'nowhere.json': no such file$"),
        ("x" * 300, r"got 'x{60}': File name too long$"),
        ("bytes", r"can't decode byte 0xff"),
        ("a\0b", r"null"),
        (".", r"Is a directory$"),
        ('{"cell": 3}', r"other fields than"),
    ],
)
def test_what_is_no_cell_is_refused_in_one_line(monkeypatch, tmp_path, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(GraphError, match=message) as refused:
        read_cell(text)
    assert "\n" not in str(refused.value)


def test_recipes_follow_the_kind_of_cell():
    bench, darts, small = (
        CellRecipe.of(cell, (side, side, 3), epochs=2) for cell, side in ((CELL, 32), (GENOTYPE, 29), (GENOTYPE, 28))
    )
    assert (bench.channels, bench.layers, bench.auxiliary, bench.drop_path, bench.epochs) == (16, 5, 0, 0, 2)
    assert (darts.channels, darts.layers, darts.auxiliary, darts.drop_path, darts.epochs) == (36, 20, 0.4, 0.2, 2)
    assert small == dataclasses.replace(darts, auxiliary=0.0)


def test_gradients_are_clipped_and_a_clip_of_0_is_none():
    gradient = np.array([30.0, 40.0], np.float32)
    for clip, expected in ((5.0, [3.0, 4.0]), (60.0, gradient), (0.0, gradient)):
        optimizer = CellRecipe(2, 1, gradient_clip=clip, weight_decay=0.0).optimizer(1)
        step, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
        assert isinstance(step, jax.Array)
        np.testing.assert_allclose(step, -0.025 * np.asarray(expected), rtol=1e-6)


@pytest.mark.slow
def test_a_run_learns_resumes_to_the_bit_and_refuses(digits, tmp_path):
    whole = train_cell(CELL, digits, **SMALL, out=tmp_path / "whole")
    rows = list(csv.DictReader((tmp_path / "whole" / "curves.csv").read_text().splitlines()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert (tmp_path / "whole" / "curves.png").read_bytes()[1:4] == b"PNG"
    losses = whole.history.of("train", "loss")[:, 0]
    assert losses[2] < losses[0]
    assert whole.history.learning_rates == pytest.approx([0.025, 0.0125])
    best = checkpoints.describe(tmp_path / "whole" / "checkpoints" / "cell" / "best")["description"]
    assert (best["kind"], best["network"], best["seeds"]) == ("best", {"cell": str(CELL)}, [0])
    again = evaluate(tmp_path / "whole" / "checkpoints" / "cell" / "best", digits)
    np.testing.assert_array_equal(again.of("test", "loss"), whole.history.of("test", "loss")[whole.best_epoch, [0]])
    assert whole.best_epoch == 1 + whole.history.of("validation", "accuracy")[1:].argmax(axis=0)

    def stop(_, done, *__):
        if done == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_cell(CELL, digits, **SMALL, out=tmp_path / "cut", on_progress=stop)
    resumed = train_cell(CELL, digits, **SMALL, out=tmp_path / "cut", resume=True)
    np.testing.assert_array_equal(resumed.history.values, whole.history.values)
    assert_same_bits(
        (resumed.params, resumed.stats, resumed.best_params), (whole.params, whole.stats, whole.best_params)
    )
    with pytest.raises(OutputError, match="new or empty"):
        train_cell(CELL, digits, **SMALL, out=tmp_path / "cut")
    with pytest.raises(
        CheckpointError,
        match=rf'networks\.cell\.cell "\|nor_.* before, "{re.escape(str(Cell.from_index(9502)))}" now',
    ):
        train_cell(Cell.from_index(9502), digits, **SMALL, out=tmp_path / "cut", resume=True)
    with pytest.raises(CheckpointError, match="learning_rate"):
        train_cell(CELL, digits, **SMALL, learning_rate=0.1, out=tmp_path / "cut", resume=True)


@pytest.mark.nightly
def test_seeds_together_equal_seeds_alone(digits):
    options = SMALL | {"augment": True, "cutout": 3, "drop_path": 0.2}
    together, alone = (train_cell(CELL, digits, **options, seeds=seeds) for seeds in ([3, 1], [1]))
    assert together.history.seeds == (3, 1)
    np.testing.assert_allclose(together.history.values[..., 1:], alone.history.values, rtol=1e-3)
    assert np.abs(together.history.of("train", "loss") - alone.history.of("train", "loss")).max(axis=0)[0] > 0.01
    assert together.parameters == alone.parameters


@pytest.mark.nightly
def test_divergence_stops(digits):
    with pytest.raises(
        DivergenceError,
        match=r"(nan|inf) at step \d+ \(epoch \d\) of cell, seed 0, at learning rate 1e\+30; lower `learning_rate`$",
    ):
        train_cell(CELL, digits, **SMALL, learning_rate=1e30)


@pytest.mark.nightly
def test_a_darts_cell_learns_with_drop_path_where_images_are_too_small_for_a_head(tfds_dir):
    data = load_splits("mnist", subset=600, data_dir=tfds_dir)
    with pytest.raises(InputError, match="29 x 29"):
        train_cell(GENOTYPE, data, channels=2, layers=3, epochs=1, batch_size=60, auxiliary=0.4)
    found = train_cell(GENOTYPE, data, channels=4, layers=3, epochs=4, batch_size=30, drop_path=0.1, augment=False)
    # Guessing has an accuracy of 0.1, with a standard error of 0.012.
    assert found.history.of("train", "accuracy")[-1, 0] > 0.3


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"drop_path": 1.0}, "`drop_path` below 1, got 1.0"),
        ({"epochs": 0}, "`epochs` to be a whole number, at least 1, got 0"),
        ({"weight_decay": -1.0}, "`weight_decay` to be at least 0, got -1.0"),
        ({"batch_size": 200}, "`batch_size` to be at most the 120 training examples, got 200"),
        ({"auxiliary": 0.4}, "`auxiliary` to be 0 for a cell of NAS-Bench-201"),
        ({"cutout": 9}, "`cutout` to be at most the side"),
        ({"width": 3}, r"Expected fields of `CellRecipe` \(channels, .*\) or other arguments .*, got `width`$"),
        ({"epoch": 1}, r"got `epoch`; did you mean 'epochs'\?$"),
        ({"seed": 1}, r"got `seed`; did you mean 'seeds'\?$"),
        ({"seeds": [-1]}, "at least one seed, all distinct and from 0"),
        ({"resume": True}, "`out` to name the run to resume"),
    ],
)
def test_options_that_do_not_fit_are_refused(digits, choices, message):
    with pytest.raises(InputError, match=message):
        train_cell(CELL, digits, **{**SMALL, **choices})


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": "2_12"}, r"Expected a cell of NAS-Bench-201, .*, got '2_12': no such file"),
        ({"cell": 5}, "Expected `cell` to be a `Cell`, a `Genotype` or its text, got 5"),
        (
            {"recipe": Recipe()},
            "Expected `recipe` to be a `CellRecipe`, got a `Recipe`; pass its fields, such as",
        ),
        ({"config": {"a": np.ones(2)}}, "Expected `config` to hold what JSON can, got .*; pass plain numbers"),
        ({"config": 5}, "Expected `config` to be a dict with names that are text, got 5"),
    ],
)
def test_arguments_of_another_type_are_refused(digits, change, message):
    with pytest.raises(NngpDagError, match=message) as refused:
        train_cell(**{"cell": CELL, "data": digits, **SMALL, **change})
    assert "\n" not in str(refused.value)


def test_cells_are_read_from_texts(digits):
    assert CellRecipe.of(str(GENOTYPE), (8, 8, 1)) == CellRecipe.of(GENOTYPE, (8, 8, 1))
    # The network refuses the cell, after its text has been read.
    with pytest.raises(InputError, match="got a disconnected cell"):
        train_cell(str(Cell.from_index(0)), digits, **SMALL)
    with pytest.raises(InputError, match=r"got `epoch`; did you mean 'epochs'\?$"):
        CellRecipe.of(CELL, (8, 8, 1), epoch=1)


def test_networks_that_do_not_fit_are_refused(digits):
    with pytest.raises(InputError, match="at least 3, for two reduction cells, got 2"):
        train_cell(GENOTYPE, digits, **{**SMALL, "layers": 2})
    with pytest.raises(InputError, match="at least 29 x 29 pixels"):
        CellRecipe(channels=2, layers=3, auxiliary=0.4).network(GENOTYPE, (8, 8, 3), 10, nnx.Rngs(0))
    with pytest.raises(InputError, match="images"):
        CellRecipe.of(CELL, (4,)).network(CELL, (4,), 10, nnx.Rngs(0))


def test_disconnected_cells_are_refused(digits):
    severed = dataclasses.replace(GENOTYPE, reduce=(("none", 0), ("none", 1)) * 4)
    for cell, name in ((Cell.from_index(0), "cell"), (severed, "reduce cell")):
        with pytest.raises(InputError, match=f"got a disconnected {name}, whose network would not see") as refused:
            train_cell(cell, digits, **SMALL)
        assert "\n" not in str(refused.value)


def test_the_command_refuses_in_one_line(capsys, tmp_path):
    for arguments, message in (
        (["nonsense"], "Genotype"),
        ([], "Expected a cell of NAS-Bench-201, a genotype or a file with one, got none; pass it as CELL"),
        (["--resume"], "run/config.json to describe a run, got none; leave out --resume to start one"),
        ([str(CELL), "--resume", "--overwrite"], "leave one out"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["nas", "train", *arguments, "--out", str(tmp_path / "run")])
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert message in error
        assert error.count("\n") == 1


@pytest.mark.nightly
def test_a_head_in_the_middle_teaches_the_network(tfds_dir):
    data = load_splits("cifar10", subset=120, data_dir=tfds_dir)
    sizes = {"channels": 2, "layers": 3, "epochs": 1, "batch_size": 30, "augment": False, "drop_path": 0.0}
    heavy, light = (train_cell(GENOTYPE, data, **sizes, auxiliary=weight, cutout=16) for weight in (0.4, 1e-6))
    assert heavy.parameters == light.parameters
    first, last = zip(*(run.history.of("train", "loss")[:, 0] for run in (heavy, light)), strict=True)
    assert first[0] == first[1]
    assert np.isfinite(last).all()
    # Rounding is of order 1e-6.
    assert abs(last[0] - last[1]) > 1e-4


@pytest.mark.nightly
def test_the_command_goes_on_without_cell_and_options(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cell.txt").write_text(str(CELL))
    small = ("--dataset", "digits", "--subset", "32", "--eval-subset", "16", "--batch-size", "16", "--epochs", "1")
    status, *_ = run(capsys, "nas", "train", "cell.txt", *small, "--channels", "2", "--layers", "1", "--out", "c1")
    assert status == 0
    (tmp_path / "cell.txt").unlink()
    resume = ("nas", "train", "--resume", "--out", "c1")
    curves, config = (tmp_path / "c1" / name for name in ("curves.csv", "config.json"))
    before, options = curves.read_bytes(), json.loads(config.read_text())["options"]
    assert (options["cell"], options["subset"], options["drop_path"]) == (str(CELL), 32, None)
    for more in ((), (str(CELL), "--channels", "2")):
        status, _, err = run(capsys, *resume, *more)
        assert (status, err) == (0, "")
        assert curves.read_bytes() == before
        assert json.loads(config.read_text())["options"] == options
    for more, message in (
        ((str(Cell.from_index(9502)),), "got others: networks.cell.cell"),
        (("--channels", "3"), "got others: recipe.channels 2 before, 3 now"),
        (("--epochs", "2"), "got others: recipe.epochs 1 before, 2 now"),
        (("--subset", "16"), "got others: data.train 32 before, 16 now"),
    ):
        assert message in run(capsys, *resume, *more)[2]
    got = "Expected the run in c1 to be one of nngp-dag train, got another; resume it in Python"
    assert got in run(capsys, "train", "--resume", "--out", "c1")[2]
    earlier = json.loads(config.read_text())
    del earlier["options"]["warmup"]
    config.write_text(json.dumps(earlier))
    got = "nas train, got one of another version, without warmup; start again with --overwrite"
    assert got in run(capsys, *resume)[2]
    earlier["options"] = {**options, "cutout": "0"}
    config.write_text(json.dumps(earlier))
    assert 'hold options of nngp-dag nas train, got "0" for options.cutout, not an integer' in run(capsys, *resume)[2]
