"""Networks as JSON: a written document is read back as the same network, or refused."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ORDERS, dags

import nngp_dag as nd
from nngp_dag.activations import (
    ACTIVATIONS,
    Activation,
    Erf,
    Polynomial,
    Quadrature,
    Tanh,
    hermite,
    leaky_relu,
    monomial,
    rbf,
)
from nngp_dag.architecture import Network
from nngp_dag.architecture.document import from_document, to_document
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import AvgPool, Conv, Dag, Dense, Scale

CELL = "|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|none~2|"
CONV = Conv(filter_shape=(3, 2), strides=(2, 1), padding="VALID", activation="gelu", order="act-linear", b_std=0.1)
IMAGES = Dag.from_edges(
    [
        ("x", "a", CONV),
        ("z", "a", CONV),
        ("a", "b", AvgPool((2, 3), strides=(1, 1), padding="SAME", normalize_edges=True)),
        ("a", "b", Scale(-0.5)),
        ("b", "out", Dense(activation=Erf(1, 2, 0), order="act-linear", layer_norm=True)),
        ("a", "out", "weighted"),
        ("b", "aux", "skip"),
    ],
    source=["x", "z"],
    output=["out", "aux"],
)


def round_trip(network):
    """Returns the network after a round trip through JSON, and checks that its document is the same."""
    document = json.loads(json.dumps(to_document(network), allow_nan=False))
    found = from_document(document)
    assert json.loads(json.dumps(to_document(found))) == document
    return found


@pytest.mark.parametrize("code", ["1", "2", "2_12", "2_21_112", "1_02_002", nd.Dag.parse(CELL).code])
def test_codes(code):
    network = Network(code)
    assert to_document(network)["dag"] == code
    assert round_trip(network) == network


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    dag=dags(),
    order=st.sampled_from(ORDERS),
    aggregation=st.sampled_from(["sum", "scaled-sum", "mean"]),
    b_std=st.sampled_from([None, 0.0, 0.25]),
    readout=st.booleans(),
)
def test_random_graphs(dag, order, aggregation, b_std, readout):
    network = Network(dag, Dense(order=order, b_std=b_std), aggregation, readout=readout, width=7)
    assert round_trip(network) == network


def test_every_field_of_a_network_and_of_its_edges():
    fields = {
        "layer": Conv(filter_shape=(5, 5), activation="erf", w_std=1.25, b_std=0.5),
        "aggregation": "scaled-sum",
        "stem": Conv(filter_shape=(1, 1), activation=None),
        "readout": False,
        "image_readout": "global-average",
        "parameterization": "standard",
        "width": 3,
    }
    network = Network(IMAGES, **fields)
    # No field has its default value.
    assert all(getattr(network, name) != getattr(Network("2"), name) for name in fields)
    found = round_trip(network)
    assert found == network
    assert found.dag == IMAGES
    assert (found.dag.num_inputs, found.dag.outputs) == (IMAGES.num_inputs, IMAGES.outputs)
    assert len(found.dag.outputs) == found.dag.num_inputs == 2
    assert [edge.op for edge in found.dag.edges] == [edge.op for edge in IMAGES.edges]
    assert found.edges == network.edges
    alone = Network("2_12", has_stem=False)
    assert round_trip(alone) == alone
    assert not round_trip(alone).has_stem


@pytest.mark.slow
def test_the_network_that_is_read_back_computes_the_same():
    network = Network(IMAGES, Conv(filter_shape=(2, 1), order="act-linear"), width=5, parameterization="standard")
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 3))
    for one, other in zip(nd.kernel(network, x), nd.kernel(round_trip(network), x), strict=True):
        np.testing.assert_array_equal(one.nngp, other.nngp)
        np.testing.assert_array_equal(one.ntk, other.ntk)


@pytest.mark.parametrize("name", [None, *ACTIVATIONS])
def test_activations_by_name(name):
    network = Network("2_12", Dense(activation=name))
    assert to_document(network)["layer"]["Dense"]["activation"] == (None if name == "identity" else name)
    assert round_trip(network) == network


@pytest.mark.parametrize(
    "activation",
    [Erf(1, 2, 0), Tanh(0.5, 1, 0.25), leaky_relu(0.3), rbf(2.0), Polynomial((1.0, 2.0, 0.5)), monomial(3), hermite(2)],
    ids=str,
)
def test_activations_by_class_and_parameters(activation):
    network = Network("2_12", Dense(activation=activation, order="act-linear"))
    assert [*to_document(network)["layer"]["Dense"]["activation"]] == [type(activation).__name__]
    found = round_trip(network)
    assert found == network
    assert type(found.layer.activation) is type(activation)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_that_has_a_name_is_kept_by_name(name):
    edge = Dense(activation=ACTIVATIONS[name], order="act-linear")
    network = Network(Dag.from_edges([(0, 1, edge)]), edge)
    assert network == round_trip(network)
    assert to_document(network)["layer"]["Dense"]["activation"] in (name if name != "identity" else None, "silu")


def test_equal_networks_are_described_equally(unchecked):
    assert to_document(Network("2", stem=Dense(w_std=2**0.5))) == to_document(Network("2"))
    assert to_document(Network("2", Dense(w_std=1))) == to_document(Network("2", Dense(w_std=1.0)))


def test_functions_are_described_and_refused_when_read_back():
    sine, other = (Quadrature(fn, degree=80) for fn in (jnp.sin, jnp.tanh))
    networks = [Network("2", Dense(activation=activation)) for activation in (sine, other)]
    document, different = map(to_document, networks)
    assert document == json.loads(json.dumps(document)) == to_document(Network("2", Dense(activation=sine)))
    assert document != different
    assert document["layer"]["Dense"]["activation"] == {"Quadrature": repr(sine)}
    with pytest.raises(InputError, match=r"an activation that a file can hold, got .*Quadrature\(.*; pass the network"):
        from_document(document)


def test_classes_of_others_are_told_from_the_packages_own():
    @dataclasses.dataclass(frozen=True)
    class Sin(Activation):  # the package has one of that name
        gain: float = 2.0

    network = Network("2", Dense(activation=Sin()))
    assert round_trip(network) == network
    assert to_document(network) != to_document(Network("2", Dense(activation=nd.activations.Sin(2.0, 1.0, 0.0))))


DOCUMENT = to_document(Network("2_12"))


@pytest.mark.parametrize(
    ("document", "error", "message"),
    [
        (None, InputError, "Expected the description of a network, got None"),
        ([1], InputError, r"Expected the description of a network, got \[1\]"),
        ({k: v for k, v in DOCUMENT.items() if k != "dag"}, InputError, "the description of a network, .*'dag'"),
        ({k: v for k, v in DOCUMENT.items() if k != "stem"}, InputError, "the description of a network, .*'stem'"),
        (DOCUMENT | {"more": 1}, InputError, r"options of `Network` \(.*\), got `more`"),
        (DOCUMENT | {"dag": "2_2x"}, GraphError, "Expected block 2 of `code`"),
        (DOCUMENT | {"dag": 7}, InputError, "Expected the description of a network"),
        (DOCUMENT | {"layer": "skip"}, InputError, "Expected `layer` to be a `Dense` or a `Conv`"),
        (
            DOCUMENT | {"layer": {"Deep": {}}},
            InputError,
            "an operation whose class .*'Deep'; import its module",
        ),
        (DOCUMENT | {"layer": {"Dense": {"gain": 1}}}, InputError, "the description of a network, .*'gain'"),
        (
            DOCUMENT | {"layer": {"Dense": {"activation": {"Cubic": {}}}}},
            InputError,
            "an activation whose class is defined in this process, got 'Cubic'; import its module first",
        ),
        (DOCUMENT | {"layer": {"Dense": {"activation": [1]}}}, InputError, r"`activation` to be a name .*, got \(1,\)"),
        (DOCUMENT | {"width": "wide"}, InputError, "`width` to be a finite number, got 'wide'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_what_describes_no_network_is_refused(document, error, message):
    with pytest.raises(error, match=message):
        from_document(document)


def test_only_activations_are_read_as_such():
    document = to_document(Network("2_12"))
    for name in ("get_activation", "math", "Activation2", "Activation"):
        document["layer"]["Dense"]["activation"] = {name: {"spec": "relu"}}
        with pytest.raises(InputError, match="Expected an activation whose class is defined in this process"):
            from_document(document)


def test_the_width_counts_where_kernels_depend_on_it():
    for parameterization, counts in (("ntk", False), ("standard", True)):
        one, two = (Network("2_12", parameterization=parameterization, width=width) for width in (8, 16))
        assert (one.kernel_options != two.kernel_options) is counts
        assert ("width" in one.kernel_options) is counts
