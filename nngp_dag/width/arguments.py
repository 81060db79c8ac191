"""Checks of what is asked of gradient descent at finite width: network, data, widths and learning rate."""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import ArrayLike

from nngp_dag.architecture import Network
from nngp_dag.errors import GraphError, InputError, shown
from nngp_dag.graph.operations import as_number, check_whole
from nngp_dag.kernels.inputs import check_inputs, host_array
from nngp_dag.theory.symmetric import check_targets

# The empirical NTK has so many rows at most.
_MOST_ROWS = 4096
# Each width has networks of its own, which are trained.
_MOST_WIDTHS = 100
# The widest of the networks that are trained by default.
_WIDEST = 256


def checked_data(network: Network, x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs, (N, d), and targets, (N, C), in float64."""
    x = np.asarray(check_inputs("x", host_array("x", x), network, "float64")[0], np.float64)
    x = x.reshape(len(x), -1)
    if len(x) < 2:
        raise InputError(f"Expected at least 2 inputs, got {len(x)}; take a larger subset")
    y = np.asarray(check_targets("y", y, len(x)))
    if y.size > _MOST_ROWS:
        raise InputError(
            f"Expected at most {_MOST_ROWS:,} outputs, N times C, got {y.size:,}; take a subset of the inputs"
        )
    return x, y


def checked_widths(widths: Sequence[int] | None, n: int) -> list[int]:
    """Returns widths of small networks for the width n, checked, or the default ones."""
    if n < 32:
        raise InputError(
            f"Expected `width` to be at least 32, got {n}; train networks that small, by `nngp_dag.compare`"
        )
    if widths is None:
        largest = min(_WIDEST, max(n // 4, min(96, 3 * n // 4)))
        return [round(largest * share) for share in (0.375, 0.5, 0.75, 1)]
    # Texts and bytes have elements, too, which would be blamed one by one.
    listed = isinstance(widths, Iterable) and not isinstance(widths, (str, bytes)) and getattr(widths, "ndim", 1)
    given = list(itertools.islice(widths, _MOST_WIDTHS + 1)) if listed else []
    if not given or len(given) > _MOST_WIDTHS or not all(map(_is_whole, given)):
        raise InputError(
            f"Expected `widths` to be a list of at most {_MOST_WIDTHS} whole numbers, got {shown(widths)}; leave it "
            "out for the default"
        )
    chosen = sorted({int(width) for width in given})
    if len(chosen) < 3 or chosen[0] < 8 or chosen[-1] >= n:
        raise InputError(
            f"Expected `widths` to hold at least 3 different widths from 8 to {n - 1}, got {shown(widths)}; leave it "
            "out for the default"
        )
    return chosen


def _is_whole(value: Any) -> bool:
    """Returns whether a value is a whole number; those of NumPy and JAX are such, and booleans are not."""
    try:
        check_whole("widths", value, 0)
    except InputError:
        return False
    return True


def learning_rate_of(learning_rate: float | str, largest: float) -> float:
    """Returns a learning rate below 2 / lambda_max(NTK), checked; "auto" for 1 / lambda_max."""
    if largest <= 0:
        raise InputError("Expected lambda_max(NTK) above 0, got 0, at which nothing trains; rescale the inputs")
    if isinstance(learning_rate, str):
        if learning_rate != "auto":
            raise InputError(f"Expected `learning_rate` to be 'auto' or a number, got {shown(learning_rate)}")
        return 1 / largest
    eta = float(as_number("learning_rate", learning_rate))
    if not 0 < eta < 2 / largest:
        raise InputError(
            f"Expected `learning_rate` between 0 and 2 / lambda_max(NTK) = {2 / largest:.4g}, got {eta}; gradient "
            "descent diverges beyond"
        )
    return eta


def check_network(network: Network) -> None:
    """Refuses networks for which no effects of the width are known."""
    inputs, outputs = network.dag.num_inputs, len(network.dag.outputs)
    if inputs > 1 or outputs > 1:
        raise GraphError(f"Expected a graph with one input and one output, got {inputs} and {outputs}")
    if network.image_operations:
        raise InputError(
            "Expected a network without convolutions and pooling, got "
            f"{network.image_operations[0].describe()}; no effects of the width are known for it"
        )
    if not network.readout:
        raise InputError("Expected a network with a readout, got one without; leave `readout` True")
    if network.parameterization != "ntk":
        raise InputError(
            f"Expected the parameterization 'ntk', got {network.parameterization!r}; in others the learning rates of "
            "layers depend on the width"
        )
