"""Models of PyTorch, which torchax makes functions of JAX; `pip install "nngp-dag[torch]"` installs it."""

import importlib.util
import sys

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError, MissingLibraryError, ModelError
from nngp_dag.tracing.frontends import framework

X = np.random.default_rng(0).normal(size=(4, 60)).astype(np.float32)
with_torch = pytest.mark.skipif(importlib.util.find_spec("torchax") is None, reason="torchax is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore:values at:nngp_dag.errors.NumericalWarning"),
    pytest.mark.usefixtures("promotion"),
]


def test_models_of_pytorch_need_torchax(monkeypatch):
    base = type("Module", (), {"__module__": "torch.nn.modules.module", "__call__": lambda self, x: x})
    monkeypatch.setitem(sys.modules, "torchax", None)
    assert framework(base()) == "torch"
    with pytest.raises(MissingLibraryError, match=r"pip install 'nngp-dag\[torch\]'"):
        nd.trace(base(), X)


@with_torch
def test_a_sequential_model_is_a_network():
    """Its kernels are those of equinox's network, which has the same distributions."""
    import equinox as eqx

    nn = pytest.importorskip("torch").nn

    def model(width):
        layers = nn.Linear(60, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1)
        return nn.Sequential(*layers)

    expected = nd.kernel(nd.trace(lambda key, width=64: eqx.nn.MLP(60, 1, width, 2, key=key), X), X)
    for traced in (nd.trace(model(64).double(), X), nd.trace(model, X, width=64)):
        assert traced.network is not None
        found = nd.kernel(traced, X)
        np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-6)
        np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-6)


@with_torch
def test_norms_ties_and_width():
    """Group norm of a tied network, whose axes are known from two widths, beside the empirical NTK."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Model(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.stem, self.norm = nn.Linear(60, width), nn.GroupNorm(4, width)
            self.hidden, self.readout = nn.Linear(width, width, bias=False), nn.Linear(width, 1)

        def forward(self, x):
            h = torch.tanh(self.hidden(self.norm(self.stem(x))))
            return self.readout(torch.tanh(self.hidden(h)))

    traced = nd.trace(Model, X, width=128)
    exact = np.asarray(nd.kernel(traced, X).ntk)
    draws = nd.empirical(traced, X, seeds=range(400), average=False)
    error = draws.std(axis=0) / len(draws) ** 0.5
    assert (error < 0.01 * exact.max()).all()
    np.testing.assert_allclose(draws.mean(axis=0), exact, atol=3 * error.max() + 0.015 * exact.max())


@with_torch
def test_refusals_name_the_line():
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.readout = nn.Conv1d(1, 64, 3), nn.Linear(64, 1)

        def forward(self, x):
            h = torch.relu(self.conv(x[:, None]))
            h = torch.nn.functional.max_pool1d(h, 2)
            return self.readout(h.mean(2))

    with pytest.raises(ModelError, match=r"^test_torch.py:\d+: .*max pooling"):
        nd.trace(Pooled(), X)


@with_torch
def test_what_is_not_trained_has_no_share():
    """A frozen first layer, and arrays that the model makes itself."""
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Model(nn.Module):
        def __init__(self, frozen):
            super().__init__()
            self.stem, self.readout = nn.Linear(60, 64, bias=False), nn.Linear(64, 1, bias=False)
            self.stem.weight.requires_grad_(not frozen)

        def forward(self, x):
            return self.readout(torch.relu(self.stem(x)) * torch.ones(64) * 2)

    whole, part = (nd.kernel(nd.trace(Model(frozen), X), X) for frozen in (False, True))
    np.testing.assert_allclose(part.nngp, whole.nngp, rtol=1e-6)
    # The readout's part of the NTK is the NNGP over the variance of its weights, 1 / (3 x 64).
    np.testing.assert_allclose(part.ntk, 192 * np.asarray(part.nngp), rtol=1e-5)
    assert (np.diag(whole.ntk) > 1.5 * np.diag(part.ntk)).all()


@with_torch
@pytest.mark.parametrize("kind", ["no_grad", "dropout", "lazy"])
def test_models_that_cannot_be_read_say_why(kind):
    torch = pytest.importorskip("torch")
    nn = torch.nn

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.LazyLinear(64) if kind == "lazy" else nn.Linear(60, 64)
            self.readout = nn.Linear(64, 1)

        def forward(self, x):
            h = torch.relu(self.stem(x))
            if kind == "dropout":
                h = nn.functional.dropout(h, 0.5)
            if kind == "no_grad":
                with torch.no_grad():
                    h = 2 * h
            return self.readout(h)

    messages = {
        "no_grad": r"^test_torch.py:\d+: Expected values through which gradients flow",
        "dropout": "got one that draws random numbers",
        "lazy": "Expected a model of PyTorch that torchax can read",
    }
    with pytest.raises((ModelError, InputError), match=messages[kind]):
        nd.trace(Model(), X)


@with_torch
def test_factories_leave_the_users_generator_alone():
    torch = pytest.importorskip("torch")
    nn = torch.nn

    state = torch.random.get_rng_state()
    nd.trace(lambda width: nn.Sequential(nn.Linear(60, width), nn.ReLU(), nn.Linear(width, 1)), X, width=64)
    assert torch.equal(torch.random.get_rng_state(), state)
