"""The option --model: models in files of the user."""

import json
import sys

import numpy as np
import pytest
from cli_cases import run
from flax import nnx

import nngp_dag as nd

# The four features of the input have truncated normal weights.
pytestmark = pytest.mark.filterwarnings("ignore:values at:nngp_dag.errors.NumericalWarning")

FILE = """
import jax
import jax.numpy as jnp
from flax import linen, nnx

WIDTH = 24


class Net(nnx.Module):
    def __init__(self, width=WIDTH, *, rngs):
        self.hidden = nnx.Linear(4, width, rngs=rngs)
        self.readout = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, x):
        return self.readout(jnp.tanh(self.hidden(x)))


class Linen(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        h = jnp.tanh(linen.Dense(self.width)(x))
        return linen.Dense(2)(h)


def build():
    return Net(256, rngs=nnx.Rngs(3))


def pair():
    return apply, init(jax.random.key(1), 256)


def init(key, width=WIDTH):
    keys = jax.random.split(key)
    return {"w": jax.random.normal(keys[0], (4, width)) / 2, "v": jax.random.normal(keys[1], (width, 2)) / width**0.5}


def apply(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def softmax(params, x):
    return jax.nn.softmax(x @ params["w"], axis=-1) @ params["v"]


instance = build()
linen_model = Linen(WIDTH)


def broken(width, rngs):
    return undefined_name


def images(rngs):
    return nnx.Sequential(nnx.Conv(1, WIDTH, (2, 2), rngs=rngs), jnp.tanh, lambda h: h.mean((1, 2)),
                          nnx.Linear(WIDTH, 2, rngs=rngs))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "model.py").write_text(FILE)
    random = np.random.default_rng(0)
    np.savez("data.npz", x=random.normal(size=(6, 4)), y=random.normal(size=(6, 2)))
    np.savez("images.npz", x=random.normal(size=(4, 3, 3, 1)), y=random.normal(size=(4, 2)))
    return tmp_path


def reference(x, **options):
    class Net(nnx.Module):
        def __init__(self, width=24, *, rngs):
            self.hidden = nnx.Linear(4, width, rngs=rngs)
            self.readout = nnx.Linear(width, 2, rngs=rngs)

        def __call__(self, x):
            return self.readout(nnx.tanh(self.hidden(x)))

    return nd.trace(Net, x, **options)


@pytest.mark.sample(1, slow=1)
@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("Net", 24),
        pytest.param("build", 256, marks=pytest.mark.slow),
        pytest.param("instance", 256, marks=pytest.mark.slow),
        pytest.param("linen_model", 24, marks=pytest.mark.slow),
    ],
)
def test_kernel_of_a_model(capsys, folder, name, width):
    x = np.load("data.npz")["x"]
    exact = nd.kernel(reference(x, width=width), x)
    status, out, err = run(capsys, "kernel", "--model", f"model.py:{name}", "--data", "data.npz", "--out", "k.npz")
    assert status == 0, err
    assert f"nngp-dag: note: running model.py for its `{name}`\n" in err
    assert "matrix products" in out
    assert "assumed" in out
    with np.load("k.npz", allow_pickle=False) as saved:
        assert str(saved["model"]) == f"model.py:{name}"
        assert "dag" not in saved
        np.testing.assert_allclose(saved["nngp"], exact.nngp, rtol=1e-6)
        np.testing.assert_allclose(saved["ntk"], exact.ntk, rtol=1e-6)
    assert (folder / "k.png").stat().st_size > 1000


@pytest.mark.slow
def test_width_parameterization_and_scaled_inputs_reach_the_model(capsys, folder):
    x = np.load("data.npz")["x"]
    options = ("kernel", "--model", "model.py:Net", "--data", "data.npz", "--overwrite", "--out", "k.npz")
    run(capsys, *options, "--width", "40")
    wide = nd.kernel(reference(x, width=40), x).ntk
    np.testing.assert_allclose(np.load("k.npz")["ntk"], wide, rtol=1e-6)
    run(capsys, *options, "--parameterization", "ntk", "--scale-inputs")
    scaled = nd.data.scale_to_sphere(x)
    exact = nd.kernel(reference(x).with_options(parameterization="ntk"), scaled).ntk
    np.testing.assert_allclose(np.load("k.npz")["ntk"], exact, rtol=1e-6)
    assert not np.allclose(exact, nd.kernel(reference(x), x).ntk, rtol=0.05)


@pytest.mark.slow
def test_functions_with_init_and_pairs(capsys, folder):
    found = {}
    for name in ("apply", "pair"):
        options = ("--data", "data.npz", "--out", f"{name}.npz", "--json")
        status, out, err = run(capsys, "kernel", "--model", f"model.py:{name}", *options)
        assert status == 0, err
        document = json.loads(out)
        assert document["model"] == f"model.py:{name}"
        assert "x 2), normal" in document["assumptions"]
        found[name] = np.load(f"{name}.npz")["nngp"]
    np.testing.assert_allclose(found["apply"], found["pair"], rtol=1e-6)


@pytest.mark.slow
def test_gram_of_a_model_resumes_and_keeps_images(capsys, folder):
    options = ("gram", "--model", "model.py:images", "--data", "images.npz", "--tile", "3", "--out", "g")
    assert run(capsys, *options)[0] == 0
    with np.load("images.npz") as data:
        x = data["x"].astype(np.float32)
    status, out, err = run(capsys, *options)
    assert status == 0, err
    assert "NTK, 4 x 4" in out
    ntk = np.load(folder / "g" / "ntk.npy")
    np.testing.assert_allclose(ntk, ntk.T, rtol=1e-6)
    assert json.loads((folder / "g" / "gram.json").read_text())
    assert x.shape == (4, 3, 3, 1)


@pytest.mark.slow
def test_compare_trains_the_model(capsys, folder):
    options = ("--data", "data.npz", "--seeds", "2", "--steps", "3", "--out", "c", "--overwrite")
    status, out, err = run(capsys, "compare", "--model", "model.py:Net", "--dag", "2", "--width", "16", *options)
    assert status == 0, err
    rows = json.loads((folder / "c" / "compare.json").read_text())["rows"]
    assert [(row["name"], row["num_paths"]) for row in rows] == [("2", 1), ("model.py:Net", None)]
    assert "a traced model; its K(H)" in out
    x = np.load("data.npz")
    (one,) = nd.compare(reference(x["x"], width=16), x["x"], x["y"], seeds=2, steps=3)
    assert rows[1]["loss_final_mean"] == pytest.approx(one.mean[-1], rel=1e-4)
    assert run(capsys, "compare", "--model", "model.py:Net", *options)[0] == 0
    assert len(json.loads((folder / "c" / "compare.json").read_text())["rows"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Expected --dag or --model, got neither"),
        (("--dag", "2", "--model", "model.py:Net"), "Expected --dag or --model, got both"),
        (("--model", "model.py"), "Expected --model to be FILE:NAME, such as model.py:build, got 'model.py'"),
        (("--model", "model.txt:Net"), "Expected --model to name a file .py, got 'model.txt'"),
        (("--model", "models.py:Net"), "got no models.py; did you mean 'model.py'?"),
        (("--model", "nowhere/model.py:Net"), "Expected --model to name a file, got no nowhere/model.py"),
        (("--model", "model.py:Nett"), "Expected model.py to define `Nett`, got no such name; did you mean 'Net'?"),
        (("--model", "model.py:zzz"), "got no such name; it defines Net, Linen, build"),
        (("--model", "model.py:WIDTH"), "Expected `--model` to be a module of nnx, linen, equinox or PyTorch"),
        (
            ("--model", "bad.py:Net"),
            "Expected bad.py to run, got ModuleNotFoundError in line 2: No module named 'nowher'",
        ),
        (("--model", "syntax.py:Net"), "Expected syntax.py to run, got SyntaxError in line 1"),
        (("--model", "alone.py:apply"), "Expected alone.py to define `init`, a function of a key"),
        (
            ("--model", "model.py:broken", "--width", "8"),
            "got NameError in line 53: name 'undefined_name' is not defined",
        ),
        (("--model", "model.py:broken"), "Expected --width for the factory broken"),
        (("--model", "model.py:softmax"), "model.py:45: Expected"),
        (("--model", "model.py:Net", "--activation", "erf"), "Expected no --activation with --model"),
        (("--model", "model.py:Net", "--no-readout"), "Expected no --readout with --model"),
        (("--model", "model.py:Net", "--parameterization", "standard"), "Expected --parameterization ntk with --model"),
        (("--model", "model.py:apply", "--width", "8"), "Expected a factory with a parameter"),
        (("--model", "model.py:images"), "Expected the model Sequential to run on `x`"),
    ],
)
def test_wrong_models_are_one_line(capsys, folder, arguments, message):
    (folder / "bad.py").write_text("\nimport nowher\n")
    (folder / "syntax.py").write_text("def f(:\n")
    (folder / "alone.py").write_text("def apply(params, x):\n    return x @ params\n")
    status, _, err = run(capsys, "kernel", *arguments, "--data", "data.npz")
    assert status == 2
    lines = [line for line in err.splitlines() if not line.startswith("nngp-dag: note")]
    assert len(lines) == 1
    assert message.replace("`--model`", "--model") in lines[0].replace("`--model`", "--model")
    assert not (folder / "nngp-dag-kernel.npz").exists()


def test_compare_refuses_options_of_graphs_beside_models_alone(capsys, folder):
    status, _, err = run(capsys, "compare", "--model", "model.py:Net", "--order", "act-linear", "--data", "data.npz")
    assert status == 2
    assert "Expected no --order with --model" in err
    status, _, err = run(capsys, "compare", "--model", "model.py:Net", "--model", "model.py:Net", "--data", "data.npz")
    assert "Expected every --model once" in err
