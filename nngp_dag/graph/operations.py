"""The operations of edges, with and without weights.

Operations without weights (`Op.SKIP`, `Scale`, `AvgPool`, `SumPool`) are linear maps. Weighted operations (`Dense`,
`Conv`) draw weights of their own. `Op.SKIP` and `Op.WEIGHTED` are the digits of paper codes. A skip is the identity. An
edge marked `Op.WEIGHTED` applies the layer of its network, which `layer`, or `activation` and `order`, describe.
"""

import dataclasses
import enum
import math
import numbers
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np

from nngp_dag.errors import GraphError, InputError, did_you_mean, shown

ORDERS = ("linear-act", "act-linear")
PADDINGS = ("SAME", "VALID")
PARAMETERIZATIONS = ("ntk", "standard")
IMAGE_READOUTS = ("flatten", "global-average")
HE_STD = 2**0.5
"""The standard deviation of weights in He initialization, times sqrt(fan-in)."""
LARGEST = 1e150
"""The largest size of numbers that are squared. Float64 cannot hold the squares of much larger numbers, nor those of
numbers much smaller than 1 / LARGEST."""


def name_of_class(cls: type) -> str:
    """Returns the name of a class in files; classes of other packages are named with their module."""
    inside = cls.__module__.partition(".")[0] == __name__.partition(".")[0]
    return cls.__name__ if inside else f"{cls.__module__}.{cls.__qualname__}"


class Window(NamedTuple):
    """The window of an operation on images.

    Attributes:
      shape: Pixels of the window along every spatial axis.
      strides: Steps between windows along every spatial axis.
      padding: "SAME" (zeros around the image) or "VALID".
    """

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str


@dataclasses.dataclass(frozen=True)
class EdgeOperation:
    """The base class of operations with options of their own.

    Attributes:
      factor: The number by which an operation without weights multiplies its output, after its map of pixels.
      window: The window that moves over an image; None if the operation acts on every pixel by itself. An operation
        that mixes pixels has a window.
      mixes_pixels: Whether the operation is a linear map of pixels without weights. Such an operation needs rules in
        `kernels.pixel_layout.pool`, `nets.layers.mix_pixels` and `kernels.stax_layer.mix_pixels`.
    """

    factor = 1
    # An annotation would make type checkers refuse subclasses in which the window is a property.
    window = cast("Window | None", None)
    mixes_pixels: ClassVar[bool] = False
    known: ClassVar[dict[str, type["EdgeOperation"]]] = {}

    def __init_subclass__(cls) -> None:
        """Registers the name of the class for files that hold networks."""
        EdgeOperation.known[name_of_class(cls)] = cls

    def describe(self) -> str:
        """Returns a short name for messages and tables; by default that of the class."""
        return type(self).__name__


class Op(enum.IntEnum):
    """The operation on a present edge of a paper code; its value is the digit of the code (0 marks an absent edge).

    Attributes:
      SKIP: The identity.
      WEIGHTED: The layer of the network, with fresh weights.

    Examples:
      >>> Op(2), Op.parse("skip")
      (<Op.WEIGHTED: 2>, <Op.SKIP: 1>)

    Reference: Chen et al., NeurIPS 2022, Section 3.
    """

    SKIP = 1
    WEIGHTED = 2

    @property
    def factor(self) -> int:
        """The factor of the output, which is 1."""
        return 1

    @property
    def mixes_pixels(self) -> bool:
        """Whether the operation mixes pixels without weights: it never does."""
        return False

    @property
    def window(self) -> None:
        """The window over images, which is None."""
        return None

    def describe(self) -> str:
        """Returns the name in lower case."""
        return self.name.lower()

    @classmethod
    def parse(cls, value: object) -> "Op":
        """Reads an operation given as an `Op`, a digit (1, "2") or a name ("skip", "weighted").

        Raises:
          GraphError: `value` names no operation.

        Examples:
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
    """Multiplication by a number: x -> factor * x, without weights.

    Attributes:
      factor: The number; 0, or between 1e-150 and 1e150 in size.

    Raises:
      InputError: `factor` is not such a number.

    Examples:
      >>> Scale(0.5).describe()
      'scale(0.5)'
    """

    factor: float | int = dataclasses.field()

    def describe(self) -> str:
        """Returns a short name, such as "scale(0.5)"."""
        return f"scale({self.factor:g})"

    def __post_init__(self) -> None:
        """Validates the factor."""
        object.__setattr__(self, "factor", check_number("factor", self.factor))


@dataclasses.dataclass(frozen=True)
class Pool(EdgeOperation):
    """The base class of pooling: a mean over windows of pixels, times `factor`, without weights.

    Attributes:
      window_shape: Pixels of a window, one number per spatial axis.
      strides: Steps between windows, one number per spatial axis; all 1 by default.
      padding: "SAME" (zeros around the image) or "VALID".

    Raises:
      InputError: An option is invalid, or the class is not one of `AvgPool` and `SumPool`.
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
        """The windows over which the operation pools."""
        return Window(self.window_shape, self.strides or (), self.padding)

    def describe(self) -> str:
        """Returns a short name, such as "avg_pool(2x2)"."""
        kind = type(self).__name__.removesuffix("Pool").lower()
        return f"{kind}_pool({'x'.join(map(str, self.window_shape))})"


@dataclasses.dataclass(frozen=True)
class AvgPool(Pool):
    """Average pooling: the mean over windows of an image's pixels, without weights.

    Attributes:
      window_shape: Pixels of a window, one number per spatial axis.
      strides: Steps between windows, one number per spatial axis; all 1 by default.
      padding: "SAME" (zeros around the image) or "VALID".
      normalize_edges: Whether a window that reaches beyond the image divides by its number of pixels inside the image.
        Otherwise every window divides by its full number of pixels.

    Raises:
      InputError: An option is invalid.

    Examples:
      >>> AvgPool((2, 2), strides=(2, 2)).describe()
      'avg_pool(2x2)'

    Reference: Novak et al., ICLR 2019 (pooling at infinite width).
    """

    normalize_edges: bool = False

    def __post_init__(self) -> None:
        """Validates the options."""
        super().__post_init__()
        object.__setattr__(self, "normalize_edges", check_flag("normalize_edges", self.normalize_edges))


@dataclasses.dataclass(frozen=True)
class SumPool(Pool):
    """Sum pooling: the sum over windows of an image's pixels, without weights.

    Attributes:
      window_shape: Pixels of a window, one number per spatial axis.
      strides: Steps between windows, one number per spatial axis; all 1 by default.
      padding: "SAME" (zeros around the image) or "VALID".

    Raises:
      InputError: An option is invalid.

    Examples:
      >>> SumPool((3, 3)).factor
      9
    """

    def __post_init__(self) -> None:
        """Validates the window; a sum is the mean times the number of pixels of a window."""
        super().__post_init__()
        object.__setattr__(self, "factor", math.prod(self.window_shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dense(EdgeOperation):
    """A fully connected layer with an activation, phi(W x + b) or W phi(x) + b, and fresh weights on every edge.

    Weights have variance w_std^2 / fan-in, and biases have variance b_std^2. On an image, the same weights act on every
    pixel.

    Attributes:
      activation: The nonlinearity phi: a name such as "relu", an `nngp_dag.activations.Activation`, or None for the
        identity.
      order: "linear-act" for phi(W x + b), or "act-linear" for W phi(x) + b.
      w_std: Standard deviation of the weights, times sqrt(fan-in); by default that of He initialization, sqrt(2).
      b_std: Standard deviation of the biases, or None for a layer without biases.
      layer_norm: Whether x is first normalized over its channels to mean 0 and variance 1.

    Raises:
      InputError: An option is unknown or out of its range.

    Examples:
      >>> Dense(activation="erf", order="act-linear").describe()
      'erf-dense'

    Reference: He et al., ICCV 2015 (the default variance); Ba et al., 2016, arXiv 1607.06450 (layer norm).
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
        # An `Activation` with a key is kept by its key, so that layers with equal activations are equal.
        if isinstance(key := getattr(self.activation, "key", self.activation), str):
            object.__setattr__(self, "activation", None if key == "identity" else key)

    @property
    def output_is_gaussian(self) -> bool:
        """Whether the output is a centered Gaussian process at infinite width, for every input."""
        return self.order == "act-linear" or self.activation is None

    def describe(self) -> str:
        """Returns a short name in the order of application, such as "conv(3x3)-relu"."""
        linear = f"conv({'x'.join(map(str, self.window.shape))})" if self.window else "dense"
        activation = getattr(self.activation, "name", self.activation)
        steps = [linear] if activation is None else [linear, str(activation)]
        if self.order == "act-linear":
            steps.reverse()
        return "-".join(["layer_norm"] * self.layer_norm + steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conv(Dense):
    """A convolution with an activation after or before it, and fresh weights on every edge.

    The fan-in is the number of channels times the number of pixels of the filter.

    Attributes:
      activation: The nonlinearity, as in `Dense`.
      order: "linear-act", with the activation last, or "act-linear", with the activation first.
      w_std: Standard deviation of the weights, times sqrt(fan-in).
      b_std: Standard deviation of the biases, or None for a layer without biases.
      layer_norm: Whether every pixel is first normalized over its channels to mean 0 and variance 1.
      filter_shape: Pixels of the filter, one number per spatial axis.
      strides: Steps between applications, one number per spatial axis; all 1 by default.
      padding: "SAME" (zeros around the image) or "VALID".

    Raises:
      InputError: An option is unknown or out of its range.

    Examples:
      >>> Conv(filter_shape=(3, 3)).describe()
      'conv(3x3)-relu'

    Reference: Novak et al., ICLR 2019 (convolutions at infinite width).
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
        """The filter as a window that moves over the image."""
        return Window(self.filter_shape, self.strides or (), self.padding)


Operation = Op | EdgeOperation
"""The type of everything that an edge may carry."""


def parse(value: object) -> Operation:
    """Returns `value` if it is an operation, else reads it as an `Op`.

    Raises:
      GraphError: `value` is neither.
    """
    return value if isinstance(value, EdgeOperation) else Op.parse(value)


def is_weighted(op: Operation) -> bool:
    """Whether an operation draws weights."""
    return op is Op.WEIGHTED or isinstance(op, Dense)


def check_option(name: str, value: object, known: tuple[str, ...]) -> None:
    """Checks that an option is one of the known texts.

    Raises:
      InputError: `value` is not one of `known`.
    """
    if not isinstance(value, str) or value not in known:
        hint = did_you_mean(value, known)
        raise InputError(f"Expected `{name}` to be one of {', '.join(map(repr, known))}, got {shown(value)}{hint}")


def check_flag(name: str, value: object) -> bool:
    """Returns a flag as a `bool`.

    Raises:
      InputError: `value` is not one; so the text "false" is refused.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"Expected `{name}` to be True or False, got {shown(value)}")
    return bool(value)


def check_number(name: str, value: object) -> float:
    """Returns a number as a float.

    Raises:
      InputError: `value` is not a finite number, or float64 cannot hold its square.
    """
    number = float(as_number(name, value))
    if number and not 1 / LARGEST <= abs(number) <= LARGEST:
        raise InputError(
            f"Expected `{name}` to be 0 or of a size between {1 / LARGEST:g} and {LARGEST:g}, got {shown(value)}"
        )
    return number


def as_number(name: str, value: Any) -> float | int:
    """Returns a finite real number as a Python number; scalars of NumPy and JAX are accepted.

    Raises:
      InputError: `value` is not such a number, or a transformation of JAX traces it.
    """
    check_not_traced(name, value)
    number = value.item() if getattr(value, "shape", None) == () else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not _is_finite(number):
        raise InputError(f"Expected `{name}` to be a finite number, got {shown(value)}")
    return number if isinstance(number, int) else float(number)


def check_whole(name: str, value: Any, least: int) -> int:
    """Returns a whole number as an `int`; scalars of NumPy and JAX are accepted.

    Raises:
      InputError: `value` is not a whole number, or less than `least`.
    """
    number = as_number(name, value)
    if number < least or number != int(number):
        raise InputError(f"Expected `{name}` to be a whole number, at least {least}, got {shown(value)}")
    return int(number)


def check_not_traced(name: str, value: object) -> None:
    """Checks that no transformation of JAX, such as `jax.grad`, traces a value.

    Raises:
      InputError: One does.
    """
    if any(base.__name__ == "Tracer" and base.__module__.startswith("jax.") for base in type(value).__mro__):
        raise InputError(
            f"Expected `{name}` to be a number, got {shown(value)} inside a transformation of JAX; pass a number from "
            "outside, and the numbers of a network that JAX traces as `parameters` of `nngp_dag.kernel`"
        )


def _is_finite(number: numbers.Real) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # an integer that exceeds float64
        return False


def check_window(name: str, value: object) -> tuple[int, ...]:
    """Returns the sizes of a window as a tuple of positive whole numbers.

    Raises:
      InputError: `value` is no sequence of such numbers, or it is empty.
    """
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
