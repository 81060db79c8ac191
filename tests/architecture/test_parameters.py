"""The numbers of a network by name."""

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.activations import Polynomial
from nngp_dag.architecture.document import from_document, to_document
from nngp_dag.errors import InputError

NET = nd.Network("2_12", layer=nd.Dense(activation="erf", b_std=0.1))
OWN = nd.Network(
    [(0, 1, "weighted"), (0, 1, "skip"), (0, 2, nd.Scale(0.5)), (1, 2, nd.Dense(w_std=1.2, activation=None))],
    stem=nd.Dense(w_std=1.1, activation=None),
)


def test_names_follow_the_fields_of_a_network():
    assert NET.parameters() == {
        "layer": {"w_std": 2**0.5, "b_std": 0.1, "activation": {"a": 1.0, "b": 1.0, "c": 0.0}},
        "edges": {"0->1": {"weight": 1.0}, "0->2": {"weight": 1.0}, "1->2": {"weight": 1.0}},
    }
    found = OWN.parameters()
    assert found["stem"] == {"w_std": 1.1}
    assert found["edges"] == {
        "0->1:skip": {"weight": 1.0},
        "0->1:weighted": {"weight": 1.0},
        "0->2": {"factor": 0.5},
        "1->2": {"weight": 1.0, "w_std": 1.2},
    }


def test_parallel_edges_are_numbered():
    net = nd.Network([(0, 1, "weighted"), (0, 1, "weighted"), (1, 2, "weighted")])
    assert list(net.parameters()["edges"]) == ["0->1:weighted#1", "0->1:weighted#2", "1->2"]


@pytest.mark.parametrize("net", [NET, OWN], ids=["plain", "own"])
def test_its_own_numbers_leave_a_network_as_it_is(net):
    assert net.with_parameters(net.parameters()) == net
    assert net.with_parameters({}) == net


def test_numbers_of_the_layer_hold_for_stem_and_readout():
    net = NET.with_parameters({"layer": {"w_std": 1.3, "activation": {"b": 0.5}}})
    assert net.layer == nd.Dense(activation=nd.activations.Erf(b=0.5), w_std=1.3, b_std=0.1)
    assert (net.stem_op.w_std, net.readout_op.w_std, net.readout_op.b_std) == (1.3, 1.3, 0.1)
    net = NET.with_parameters({"layer": {"w_std": 1.3}, "readout": {"w_std": 0.7}, "stem": {"b_std": 0.2}})
    assert (net.stem_op.w_std, net.stem_op.b_std, net.readout_op.w_std) == (1.3, 0.2, 0.7)


def test_weights_of_edges_become_scales():
    net = nd.Network("2_12").with_parameters({"edges": {"0->2": {"weight": 0.5}, "1->2": {"weight": 2.0}}})
    assert [str(edge) for edge in net.dag.edges] == [
        "0->1:weighted",
        "0->3:scale(0.5)",
        "1->2:weighted",
        "2->3:scale(2)",
    ]


def test_coefficients_are_a_sequence():
    net = nd.Network("2", layer=nd.Dense(activation=Polynomial([0.0, 1.0])))
    assert net.parameters()["layer"]["activation"] == {"coefficients": (0.0, 1.0)}
    changed = net.with_parameters({"layer": {"activation": {"coefficients": [0.5, 1.0]}}})
    assert changed.layer.activation == Polynomial([0.5, 1.0])


@pytest.mark.slow
def test_a_readout_of_its_own():
    own = nd.Network("2_12", readout=nd.Dense(activation=None, w_std=0.5, b_std=0.2))
    assert own != nd.Network("2_12")
    assert own.parameters()["readout"] == {"w_std": 0.5, "b_std": 0.2}
    assert from_document(to_document(own)) == own
    same = nd.Network("2_12", readout=nd.Dense(activation=None))
    assert same == nd.Network("2_12")
    assert hash(same) == hash(nd.Network("2_12"))
    assert to_document(same) == to_document(nd.Network("2_12"))
    x = np.eye(3)
    hidden = nd.kernel("2_12", x, readout=False)
    np.testing.assert_allclose(nd.kernel(own, x).nngp, 0.25 * hidden.nngp + 0.04, rtol=1e-13)
    for wrong, message in (
        (nd.Conv(filter_shape=(3, 3)), "got a `Conv`"),
        (nd.Dense(), "order 'linear-act'"),
        (nd.Dense(activation=None, layer_norm=True), "without `layer_norm`"),
    ):
        with pytest.raises(InputError, match=message):
            nd.Network("2_12", readout=wrong)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"layers": {}}, r"got `layers`; did you mean 'layer'\?"),
        ({"layer": {"w_sdt": 1.0}}, r"got `w_sdt`; did you mean 'w_std'\?"),
        ({"layer": {"activation": {"z": 1.0}}}, "got `z`"),
        ({"edges": {"0->3": {"weight": 1.0}}}, "got `0->3`"),
        ({"edges": {"0->1": 2.0}}, r"Expected `parameters\['edges'\]\['0->1'\]` to be a dictionary"),
        ({"layer": {"activation": 0.0}}, r"`parameters\['layer'\]\['activation'\]` to be a dictionary"),
        ({"layer": {"w_std": [1.0, 2.0]}}, r"`parameters\['layer'\]\['w_std'\]` to be one number"),
        ({"layer": {"w_std": -1.0}}, "`w_std` to be positive"),
        ([1.0], "Expected `parameters` to be a dictionary"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_wrong_names_and_numbers_are_refused(parameters, message):
    with pytest.raises(InputError, match=message):
        NET.with_parameters(parameters)
    with pytest.raises(InputError, match="`b_std`"):
        nd.Network("2_12").with_parameters({"layer": {"b_std": 0.1}})
