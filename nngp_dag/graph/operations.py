"""What an edge may do: operations without weights, and weighted ones.

Operations without weights (`Op.SKIP`, `Scale`, `AvgPool`, `SumPool`) are linear maps; weighted ones (`Dense`, `Conv`)
draw weights of their own. `Op.SKIP` and `Op.WEIGHTED` are the digits of the paper's codes: a skip is the identity, and
a weighted edge without a description of its own applies the layer that the call names (`activation`, `order`,
`layer`).
"""

import dataclasses
import enum
import math
import numbers
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nngp_dag.errors import GraphError, InputError, did_you_mean, shown

ORDERS = ("linear-act", "act-linear")
PADDINGS = ("SAME", "VALID")
PARAMETERIZATIONS = ("ntk", "standard")
IMAGE_READOUTS = ("flatten", "global-average")
HE_STD = 2**0.5
"""The weight standard deviation of He initialization, times sqrt(fan-in)."""
LARGEST = 1e150
"""Of numbers whose squares count: float64 holds no squares of much larger ones, nor of ones below 1 / LARGEST."""


def name_of_class(cls: type) -> str:
    """Returns the name of a class in files: with its module, unless that is one of this package."""
    inside = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if inside else f"{cls.__module__}.{cls.__qualname__}"


class Window(NamedTuple):
    """How an operation moves over an image: pixels of its window and strides along every axis, and the padding."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str


@dataclasses.dataclass(frozen=True)
class EdgeOperation:
    """What the operations with options of their own have in common.

    Attributes:
      factor: What an operation without weights multiplies its output by, beside what it does to pixels.
      window: How it moves over an image, or None where every pixel is by itself. What mixes pixels has one.
      mixes_pixels: Whether it is a linear map of pixels without weights, which `kernels.pixel_layout.pool`,
        `nets.layers.mix_pixels` and `kernels.stax_layer.mix_pixels` have rules for.
    """

    factor = 1
    mixes_pixels: ClassVar[bool] = False
    known: ClassVar[dict[str, type["EdgeOperation"]]] = {}

    def __init_subclass__(cls) -> None:
        """Makes the class known by its name, to files that hold networks."""
        EdgeOperation.known[name_of_class(cls)] = cls

    @property
    def window(self) -> Window | None:
        """None: images pass pixel by pixel."""
        return None

    def describe(self) -> str:
        """Names the operation, shortly, for messages and tables; by default by its class."""
        return type(self).__name__


class Op(enum.IntEnum):
    """The operation on a present edge of a paper code; the value is its digit (0 marks an absent edge)."""

    SKIP = 1
    WEIGHTED = 2

    @property
    def factor(self) -> int:
        """1."""
        return 1

    @property
    def mixes_pixels(self) -> bool:
        """False."""
        return False

    @property
    def window(self) -> None:
        """None."""
        return None

    def describe(self) -> str:
        """Returns the name, in small letters."""
        return self.name.lower()

    @classmethod
    def parse(cls, value: object) -> "Op":
        """Reads an operation given as an `Op`, a digit (1, "2") or a name ("skip", "weighted").

        Raises:
          GraphError: `value` names no operation.

        Example:
          >>> Op.parse("weighted")
          <Op.WEIGHTED: 2>
        """
        text = str(int(value)) if isinstance(value, (int, Op)) else str(value).lower()
        for op in cls:
            if text in (str(op.value), op.name.lower()):
                return op
        raise GraphError(
            "Expected an edge's operation `op` to be 'skip' (1) or 'weighted' (2), or a `Scale`, `AvgPool`, `SumPool`, "
            f"`Dense` or `Conv`, got {shown(value)}"
            f"{did_you_mean(value, ('skip', 'weighted')) or '; leave absent edges out'}"
        )


@dataclasses.dataclass(frozen=True)
class Scale(EdgeOperation):
    """x -> factor * x, without weights."""

    factor: float | int = dataclasses.field()

    def describe(self) -> str:
        """As in "scale(0.5)"."""
        return f"scale({self.factor:g})"

    def __post_init__(self) -> None:
        """Validates the factor."""
        object.__setattr__(self, "factor", check_number("factor", self.factor))


@dataclasses.dataclass(frozen=True)
class Pool(EdgeOperation):
    """A mean over windows of an image's pixels, times `factor`, without weights.

    Attributes:
      window_shape: Pixels of a window, one number per spatial axis.
      strides: Steps between windows; all 1 by default.
      padding: "SAME" (zeros around the image) or "VALID".
    """

    window_shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str = "SAME"
    mixes_pixels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Validates the window."""
        if type(self) is Pool:
            raise InputError("Expected an `AvgPool` or a `SumPool`, got a `Pool`, which is what these have in common")
        object.__setattr__(self, "window_shape", check_window("window_shape", self.window_shape))
        object.__setattr__(self, "strides", _strides(self.strides, self.window_shape))
        check_option("padding", self.padding, PADDINGS)

    @property
    def window(self) -> Window:
        """How the windows lie."""
        return Window(self.window_shape, self.strides or (), self.padding)

    def describe(self) -> str:
        """As in "avg_pool(2x2)"."""
        kind = type(self).__name__.removesuffix("Pool").lower()
        return f"{kind}_pool({'x'.join(map(str, self.window_shape))})"


@dataclasses.dataclass(frozen=True)
class AvgPool(Pool):
    """The mean over windows of an image's pixels, without weights; options as in `Pool`, and one more.

    Attributes:
      normalize_edges: Whether windows that reach over the edge divide by the pixels inside the image; otherwise by
        those of the window.
    """

    normalize_edges: bool = False

    def __post_init__(self) -> None:
        """Validates the options."""
        super().__post_init__()
        object.__setattr__(self, "normalize_edges", check_flag("normalize_edges", self.normalize_edges))


@dataclasses.dataclass(frozen=True)
class SumPool(Pool):
    """The sum over windows of an image's pixels, without weights; options as in `Pool`."""

    def __post_init__(self) -> None:
        """Validates the window; a sum is as many means as a window has pixels."""
        super().__post_init__()
        object.__setattr__(self, "factor", math.prod(self.window_shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(EdgeOperation):
    """A fully connected layer with an activation: phi(W x + b) or W phi(x) + b, fresh weights for every edge.

    Weights have variance w_std^2 / fan-in, biases b_std^2. On an image it acts on every pixel alike.

    Attributes:
      activation: The nonlinearity phi: a name such as "relu", an `nngp_dag.activations.Activation`, or None for none.
      order: "linear-act", phi(W x + b), or "act-linear", W phi(x) + b.
      w_std: Standard deviation of the weights, times sqrt(fan-in).
      b_std: Standard deviation of the biases, or None for a layer without.
      layer_norm: Whether x is first normalized over its channels to mean 0 and variance 1.
    """

    activation: Any = "relu"
    order: str = "linear-act"
    w_std: float = HE_STD
    b_std: float | None = None
    layer_norm: bool = False

    def __post_init__(self) -> None:
        """Validates the options."""
        check_option("order", self.order, ORDERS)
        object.__setattr__(self, "layer_norm", check_flag("layer_norm", self.layer_norm))
        object.__setattr__(self, "w_std", check_number("w_std", self.w_std))
        if self.w_std <= 0:
            raise InputError(f"Expected `w_std` to be positive, got {self.w_std}; leave the edge out instead")
        if self.b_std is not None:
            object.__setattr__(self, "b_std", check_number("b_std", self.b_std))
            if self.b_std < 0:
                raise InputError(f"Expected `b_std` to be at least 0, got {self.b_std}; leave it out for no bias")
        try:
            hash(self.activation)
        except TypeError:
            raise InputError(
                f"Expected `activation` to be a name or an `Activation`, got {shown(self.activation)}"
            ) from None
        # An `Activation` that has a name is kept by it, so that layers of equal activations are equal.
        if isinstance(key := getattr(self.activation, "key", self.activation), str):
            object.__setattr__(self, "activation", None if key == "identity" else key)

    @property
    def output_is_gaussian(self) -> bool:
        """Whether the output is a centered Gaussian process at infinite width, whatever comes in."""
        return self.order == "act-linear" or self.activation is None

    def describe(self) -> str:
        """As in "relu-conv(3x3)", in the order of what is applied."""
        linear = f"conv({'x'.join(map(str, self.window.shape))})" if self.window else "dense"
        activation = getattr(self.activation, "name", self.activation)
        steps = [linear] if activation is None else [linear, str(activation)]
        if self.order == "act-linear":
            steps.reverse()
        return "-".join(["layer_norm"] * self.layer_norm + steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv(Dense):
    """A convolution with an activation, before or after it; otherwise like `Dense`.

    The fan-in is the number of channels times that of the filter's pixels.

    Attributes:
      filter_shape: Pixels of the filter, one number per spatial axis.
      strides: Steps between applications; all 1 by default.
      padding: "SAME" (zeros around the image) or "VALID".
    """

    filter_shape: tuple[int, ...]
    strides: tuple[int, ...] | None = None
    padding: str = "SAME"

    def __post_init__(self) -> None:
        """Validates the options."""
        super().__post_init__()
        object.__setattr__(self, "filter_shape", check_window("filter_shape", self.filter_shape))
        object.__setattr__(self, "strides", _strides(self.strides, self.filter_shape))
        check_option("padding", self.padding, PADDINGS)

    @property
    def window(self) -> Window:
        """How the filter moves."""
        return Window(self.filter_shape, self.strides or (), self.padding)


Operation = Op | EdgeOperation
"""Anything that an edge may carry."""


def parse(value: object) -> Operation:
    """Returns `value` if it is an operation, else reads it as an `Op`."""
    return value if isinstance(value, EdgeOperation) else Op.parse(value)


def is_weighted(op: Operation) -> bool:
    """Whether `op` draws weights."""
    return op is Op.WEIGHTED or isinstance(op, Dense)


def check_option(name: str, value: object, known: tuple[str, ...]) -> None:
    """Raises an `InputError` unless `value` is one of `known`."""
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known)
        raise InputError(f"Expected `{name}` to be one of {', '.join(map(repr, known))}, got {shown(value)}{hint}")


def check_flag(name: str, value: object) -> bool:
    """Returns `value` as a `bool`; raises an `InputError` where it is none, such as the text "false"."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"Expected `{name}` to be True or False, got {shown(value)}")
    return bool(value)


def check_number(name: str, value: object) -> float:
    """Returns `value` as a float; raises an `InputError` where float64 does not hold its square."""
    number = float(as_number(name, value))
    if number and not 1 / LARGEST <= abs(number) <= LARGEST:
        raise InputError(
            f"Expected `{name}` to be 0 or of a size between {1 / LARGEST:g} and {LARGEST:g}, got {shown(value)}"
        )
    return number


def as_number(name: str, value: Any) -> float | int:
    """Returns a finite real number, also a scalar of NumPy or JAX, as one of Python.

    Raises:
      InputError: It is none, or a value inside a transformation of JAX, which is not known yet.
    """
    check_not_traced(name, value)
    number = value.item() if getattr(value, "shape", None) == () else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not _is_finite(number):
        raise InputError(f"Expected `{name}` to be a finite number, got {shown(value)}")
    return number if isinstance(number, int) else float(number)


def check_whole(name: str, value: Any, least: int) -> int:
    """Returns a whole number of at least `least`, also a scalar of NumPy or JAX, as an `int`."""
    number = as_number(name, value)
    if number < least or number != int(number):
        raise InputError(f"Expected `{name}` to be a whole number, at least {least}, got {shown(value)}")
    return int(number)


def check_not_traced(name: str, value: object) -> None:
    """Raises an `InputError` where `value` is one inside a transformation of JAX, such as `jax.grad`."""
    if any(base.__name__ == "Tracer" and base.__module__.startswith("jax.") for base in type(value).__mro__):
        raise InputError(
            f"Expected `{name}` to be a number, got {shown(value)} inside a transformation of JAX; gradients and "
            "other transformations are supported in inputs only: pass a number from outside"
        )


def _is_finite(number: numbers.Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that float64 does not hold
        return False


def check_window(name: str, value: object) -> tuple[int, ...]:
    """Returns `value` as a tuple of positive whole numbers."""
    try:
        sizes = tuple(int(size) for size in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        sizes = ()
    if not sizes or min(sizes) < 1 or sizes != tuple(value):  # type: ignore[arg-type]
        raise InputError(f"Expected `{name}` to hold one positive whole number per spatial axis, got {shown(value)}")
    return sizes


def _strides(strides: object, window: tuple[int, ...]) -> tuple[int, ...]:
    if strides is None:
        return (1,) * len(window)
    sizes = check_window("strides", strides)
    if len(sizes) != len(window):
        raise InputError(
            f"Expected `strides` to hold {len(window)} numbers, as many as the window, got {shown(strides)}"
        )
    return sizes
