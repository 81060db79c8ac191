"""Operations on edges, and their refusals."""

import dataclasses
import math

import pytest

from nngp_dag.activations import IDENTITY, ABRelu, Erf, leaky_relu
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import AvgPool, Conv, Dense, Op, Scale, SumPool
from nngp_dag.graph.operations import is_weighted, parse


@pytest.mark.parametrize(
    ("op", "text", "weighted"),
    [
        (Op.SKIP, "skip", False),
        (Op.WEIGHTED, "weighted", True),
        (Scale(0.5), "scale(0.5)", False),
        (AvgPool((2, 3)), "avg_pool(2x3)", False),
        (SumPool((2, 3)), "sum_pool(2x3)", False),
        (Dense(), "dense-relu", True),
        (Dense(activation=None), "dense", True),
        (Dense(activation="erf", order="act-linear", layer_norm=True), "layer_norm-erf-dense", True),
        (Conv(filter_shape=(3, 3)), "conv(3x3)-relu", True),
    ],
)
def test_operations_are_named_and_kept_as_they_are(op, text, weighted):
    assert op.describe() == text
    assert is_weighted(op) is weighted
    assert parse(op) is op


@pytest.mark.parametrize("make", [lambda **of: AvgPool((2, 3), **of), lambda **of: Conv(filter_shape=(2, 3), **of)])
def test_windows_move_by_one_pixel_by_default(make):
    assert make().strides == (1, 1)
    assert make() == make(strides=(1, 1))
    assert make(strides=(2, 1)) != make()


def test_equal_operations_are_one():
    assert Dense(activation="identity") == Dense(activation=None)
    assert len({Dense(), Dense(w_std=2**0.5), Conv(filter_shape=(1,)), Dense(b_std=0.0)}) == 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        Scale(1.0).factor = 2.0  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("order", "activation", "gaussian"),
    [("linear-act", "relu", False), ("act-linear", "relu", True), ("linear-act", None, True)],
)
def test_weights_that_come_last_make_a_gaussian(order, activation, gaussian):
    assert Dense(activation=activation, order=order).output_is_gaussian is gaussian


@pytest.mark.parametrize("value", [0, 3, "conv", None, 1.0])
def test_an_unknown_operation_is_refused(value):
    with pytest.raises(GraphError, match=r"`op` to be 'skip' \(1\) or 'weighted' \(2\), or a `Scale`, .*leave absent"):
        parse(value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scale(math.inf), r"Expected `factor` to be a finite number, got inf"),
        (lambda: Scale("2"), r"Expected `factor` to be a finite number, got '2'"),  # pyright: ignore[reportArgumentType]
        (lambda: Scale(True), r"Expected `factor` to be a finite number, got True"),
        (lambda: Dense(w_std=math.nan), r"Expected `w_std` to be a finite number, got nan"),
        (lambda: Dense(w_std=0), r"Expected `w_std` to be positive, got 0.0; leave the edge out instead"),
        (lambda: Dense(w_std=-1.0), r"Expected `w_std` to be positive, got -1"),
        (lambda: Dense(b_std=math.inf), r"Expected `b_std` to be a finite number, got inf"),
        (lambda: Dense(w_std=1e155), r"`w_std` to be 0 or of a size between 1e-150 and 1e\+150, got 1e\+155"),
        (lambda: Dense(b_std=1e-200), r"Expected `b_std` to be 0 or of a size"),
        (lambda: Dense(b_std=-0.1), r"Expected `b_std` to be at least 0, got -0.1; leave it out for no bias"),
        (lambda: Dense(order="other"), r"Expected `order` to be one of 'linear-act', 'act-linear', got 'other'"),
        (lambda: AvgPool((2, 2), padding="same"), r"Expected `padding` to be one of 'SAME', 'VALID', got 'same'"),
        (lambda: Conv(filter_shape=(3, 3), padding="CIRCULAR"), r"Expected `padding` to be one of .* got 'CIRCULAR'"),
        (lambda: AvgPool(()), r"Expected `window_shape` to hold one positive whole number per spatial axis, got \(\)"),
        (lambda: AvgPool((2, 0)), r"Expected `window_shape` to hold one positive whole number .* got \(2, 0\)"),
        (lambda: AvgPool(2), r"Expected `window_shape` to hold one positive whole number .* got 2"),  # pyright: ignore[reportArgumentType]
        (lambda: Conv(filter_shape=(2.5, 2)), r"Expected `filter_shape` to hold one positive whole .* got \(2.5, 2\)"),  # pyright: ignore[reportArgumentType]
        (lambda: AvgPool((2, 2), strides=(1, -1)), r"Expected `strides` to hold one positive whole number"),
        (lambda: AvgPool((2, 2), strides=(1,)), r"Expected `strides` to hold 2 numbers, as many as the window, got"),
        (lambda: Conv(filter_shape=(2,), strides=(1, 1)), r"Expected `strides` to hold 1 numbers, as many as the"),
    ],
)
def test_bad_options_are_refused(make, message, unchecked):
    with pytest.raises(InputError, match=message):
        make()


def test_an_activation_can_be_hashed():
    with pytest.raises(InputError, match="Expected `activation` to be a name or an `Activation`, got "):
        Dense(activation=["relu"])


def test_numbers_are_floats_and_known_activations_names(unchecked):
    assert [type(v) for v in (Dense(w_std=1).w_std, Dense(b_std=0).b_std, Scale(2).factor)] == [float] * 3
    assert repr(Dense(w_std=1, b_std=0)) == repr(Dense(w_std=1.0, b_std=0.0))
    for activation, name in ((ABRelu(0, 1), "relu"), (Erf(), "erf"), (leaky_relu(), "leaky_relu"), (IDENTITY, None)):
        assert Dense(activation=activation).activation == name
    assert Dense(activation=Erf(2.0)).activation == Erf(2.0)
