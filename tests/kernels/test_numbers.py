"""Numbers of a network are inputs of compiled programs: another value compiles nothing."""

import numpy as np
import pytest
from compiled import programs

import nngp_dag as nd
from nngp_dag.activations import ABRelu, Erf, Exp, Gaussian, Polynomial, Sin, Tanh, rbf
from nngp_dag.graph import Conv, Dag, Dense, Edge, Op, Scale
from nngp_dag.kernels import blocking, choose

X = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
IMAGES = np.random.default_rng(1).normal(size=(2, 4, 4, 2)).astype(np.float32)
VALUES = np.linspace(0.31, 1.87, 50)


def graph_with(op):
    return Dag(4, (Edge(0, 1, op), Edge(0, 2, Op.SKIP), Edge(1, 2, Op.WEIGHTED), Edge(2, 3, Op.WEIGHTED)))


SCANS = {
    "w_std": lambda v: nd.Network("2_21_112", Dense(activation="erf", w_std=v, b_std=0.1)),
    "w_std of ReLU": lambda v: nd.Network("2_21_112", Dense(w_std=v)),
    "b_std": lambda v: nd.Network("2_21_112", Dense(activation="erf", b_std=v - 0.31)),
    "of one edge": lambda v: nd.Network(graph_with(Dense(activation="abs", w_std=v, b_std=v)), Dense(b_std=0.1)),
    "scale": lambda v: nd.Network(graph_with(Scale(v)), Dense(activation="erf")),
    "width": lambda v: nd.Network("2_21_112", Dense(b_std=0.1), parameterization="standard", width=int(100 * v)),
    "slope": lambda v: nd.Network("2_21_112", Dense(activation=ABRelu(-v, 1.0), b_std=0.1)),
}
ACTIVATIONS = {
    "Erf": lambda v: Erf(v, 2 * v, v - 3),
    "Tanh": lambda v: Tanh(v, 2 * v, v - 3),
    "Sin": lambda v: Sin(v, 2 * v, v - 0.2),
    "rbf": rbf,
    "Exp": lambda v: Exp(v, v / 9),
    "Gaussian": lambda v: Gaussian(v, -v / 2),
    "Polynomial": lambda v: Polynomial((v, -v, 0.0, v / 3)),
}
SCANS |= {name: lambda v, of=of: nd.Network("2_02", Dense(activation=of(v))) for name, of in ACTIVATIONS.items()}
SCANS["convolution"] = lambda v: nd.Network("2_12", Conv(filter_shape=(3, 3), activation="erf", w_std=v))


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize("name", SCANS)
def test_a_scan_over_values_compiles_once(name):
    x = IMAGES if name == "convolution" else X
    first = nd.kernel(SCANS[name](VALUES[0]), x)
    compiled = programs(blocking.kernel_of_inputs)
    others = VALUES[1:] if name == "w_std" else VALUES[1:3]
    found = [np.asarray(nd.kernel(SCANS[name](v), x).ntk) for v in others]
    assert programs(blocking.kernel_of_inputs) == compiled
    assert len({matrix.tobytes() for matrix in [np.asarray(first.ntk), *found]}) == 1 + len(others)


@pytest.mark.slow
def test_a_scan_of_unrolled_steps_compiles_once(monkeypatch):
    monkeypatch.setattr(choose, "_UNROLLED_ENTRIES", 0)
    nd.kernel(SCANS["w_std"](VALUES[0]), X)
    compiled = programs(blocking.kernel_of_inputs)
    nd.kernel(SCANS["w_std"](VALUES[1]), X)
    assert programs(blocking.kernel_of_inputs) == compiled


@pytest.mark.parametrize("phi", [of(0.7) for of in ACTIVATIONS.values()], ids=str)
def test_activations_are_pytrees(phi):
    import jax

    numbers, structure = jax.tree.flatten(phi)
    assert jax.tree.unflatten(structure, numbers) == phi
    assert hash(structure) == hash(jax.tree.structure(phi))
    assert all(isinstance(v, float) for v in numbers)
    assert not {-1.0, 0.0, 1.0} & set(numbers)


def test_parities_survive_compilation():
    import jax

    for phi, parity in ((Sin(c=np.pi / 2), -1), (Sin(c=np.pi), 1), (Sin(c=0.3), 0), (Sin(2.0, 3.0), 1)):
        found = []
        jax.jit(lambda phi, found=found: found.append(phi.parity) or 0)(phi)
        assert found == [parity]
