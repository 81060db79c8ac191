"""Pointwise nonlinearities phi, as frozen values that the kernels and the finite networks share.

An activation is a function of arrays and knows nothing of infinite width. Its Gaussian expectations, Equation (4) of
docs/mathematics.md, are in `nngp_dag.kernels.dual`. Activations with equal parameters are equal and have equal hashes.

Activations are JAX pytrees whose leaves are the parameters. A compiled program takes the parameters as inputs, so it
serves all their values. Parameters equal to -1, 0 or 1 belong to the structure instead: formulas are shorter there, and
relu need not multiply by them.

Examples:
  >>> import jax.numpy as jnp
  >>> get_activation("relu") == ABRelu(0.0, 1.0)
  True
  >>> leaky_relu(0.5)(jnp.array([-2.0, 3.0])).tolist()
  [-1.0, 3.0]
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.elementwise import check_elementwise
from nngp_dag.errors import InputError, did_you_mean, shown
from nngp_dag.fingerprint import fingerprint
from nngp_dag.graph.operations import LARGEST, as_number, check_whole, name_of_class

__all__ = [
    "ACTIVATIONS",
    "ABRelu",
    "Activation",
    "Elu",
    "Erf",
    "Exp",
    "Gabor",
    "Gaussian",
    "Gelu",
    "Polynomial",
    "Quadrature",
    "RectifiedMonomial",
    "Sign",
    "Silu",
    "Sin",
    "Softplus",
    "Tanh",
    "get_activation",
    "hermite",
    "leaky_relu",
    "monomial",
    "rbf",
]

# The types that a parameter may have when it is passed; it is kept as a float.
Number = float | int


@dataclass(frozen=True)
class Activation:
    """A nonlinearity phi: R -> R, applied elementwise; the result has the shape and dtype of its argument.

    Raises:
      InputError: A parameter is not a number of at most 1e150 in size, or is out of its range.

    Examples:
      >>> import jax.numpy as jnp
      >>> Erf(b=0.5)(jnp.zeros(2)).shape
      (2,)
    """

    known: ClassVar[dict[str, type["Activation"]]] = {}
    compiles_slowly: ClassVar[bool] = False
    """Whether the dual takes long to compile; the planner then prefers a loop, which compiles each dual only once."""

    def __init_subclass__(cls) -> None:
        """Registers the class as a pytree, and its name for files that hold networks."""
        Activation.known[name_of_class(cls)] = cls
        jax.tree_util.register_pytree_node(cls, cls._split, functools.partial(_joined, cls))

    def __post_init__(self) -> None:
        """Validates the parameters.

        Raises:
          InputError: A parameter is not finite or out of its range.
        """
        self._check()

    @classmethod
    def unchecked(cls, *parameters: Any) -> Any:
        """Returns an activation without checks of its parameters, which may be values that JAX traces.

        Examples:
          >>> ABRelu.unchecked(0.1, 1.0) == ABRelu(0.1, 1.0)
          True
        """
        phi = object.__new__(cls)
        for f, value in zip(fields(cls), parameters, strict=True):
            object.__setattr__(phi, f.name, value)
        return phi

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns phi(x), an array of the shape and dtype of `x`."""
        return self._apply(x)

    @property
    def key(self) -> str | None:
        """The first name by which `get_activation` finds the activation, or None."""
        return next((key for key, value in ACTIVATIONS.items() if value == self), None)

    @property
    def name(self) -> str:
        """The key if there is one, else class and parameters, such as "erf(1.0,2.0,0.0)"."""
        return self.key or f"{type(self).__name__.lower()}({','.join(str(v) for v in self._parameters())})"

    @property
    def homogeneous(self) -> bool:
        """Whether phi(c x) = c phi(x) for every c > 0, so that kernels need only angles."""
        return False

    @property
    def is_identity(self) -> bool:
        """Whether phi(x) = x."""
        return False

    @property
    def numbers(self) -> dict[str, float | tuple[float, ...]]:
        """The real parameters by name, in which kernels can be differentiated; a whole number, such as a degree, is none.

        Examples:
          >>> leaky_relu(0.1).numbers
          {'a': 0.1, 'b': 1.0}
        """
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: value
            for name, value in found.items()
            if isinstance(value, float) or (isinstance(value, tuple) and value and isinstance(value[0], float))
        }

    def _parameters(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    def _split(self) -> tuple[list[Any], "_Structure"]:
        """Returns the parameters that programs take as inputs, and the structure with `_NUMBER` in their places."""
        numbers, structure = [], []
        for f in fields(self):
            value = getattr(self, f.name)
            parts = value if isinstance(value, tuple) else (value,)
            marked = tuple(part if self._is_fixed(f.name, part) else _NUMBER for part in parts)
            numbers += [part for part, mark in zip(parts, marked, strict=True) if mark is _NUMBER]
            structure.append((f.name, marked if isinstance(value, tuple) else marked[0]))
        return numbers, tuple(structure)

    def _is_fixed(self, name: str, value: Any) -> bool:
        """Whether a value belongs to the structure: anything but a number, or a number that shortens the formulas."""
        del name
        if isinstance(value, float):
            return value in (-1.0, 0.0, 1.0)
        return value is None or callable(value) or isinstance(value, (int, str))

    def _apply(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def _check(self) -> None:
        """Turns every field into a finite float; classes with fields of other types override this."""
        for f in fields(self):
            object.__setattr__(self, f.name, _number(f"{f.name}` of `{type(self).__name__}", getattr(self, f.name)))


_Structure = tuple[tuple[str, Any], ...]
_NUMBER = object()


def _joined(cls: type[Activation], structure: _Structure, numbers: Sequence[Any]) -> Any:
    """Undoes `Activation._split`; it does not validate the numbers, which JAX may trace."""
    following, parameters = iter(numbers), []
    for _, value in structure:
        parts = value if isinstance(value, tuple) else (value,)
        parts = tuple(next(following) if part is _NUMBER else part for part in parts)
        parameters.append(parts if isinstance(value, tuple) else parts[0])
    return cls.unchecked(*parameters)


def _number(what: str, value: Number) -> float:
    number = as_number(what, value)
    if abs(number) > LARGEST:
        raise InputError(f"Expected `{what}` to be at most {LARGEST:g} in size, got {shown(value)}")
    return float(number)


@dataclass(frozen=True)
class ABRelu(Activation):
    """The ReLU-type activation a min(x, 0) + b max(x, 0).

    relu has (a, b) = (0, 1), leaky_relu(alpha) has (alpha, 1), abs has (-1, 1), and the identity has (1, 1).

    Attributes:
      a: Slope for x < 0, and the derivative at 0.
      b: Slope for x > 0.

    Raises:
      InputError: A parameter is not a number of at most 1e150 in size.

    Examples:
      >>> ABRelu(0.0, 1.0).name, ABRelu(-1.0, 1.0).name
      ('relu', 'abs')

    Reference: Cho and Saul, NeurIPS 2009, eq. (6) (the dual of relu).
    """

    a: Number
    b: Number

    def _apply(self, x: jax.Array) -> jax.Array:
        # The strict comparison makes the derivative at 0 equal to a, so that relu agrees with `jax.nn.relu`.
        return jnp.where(x > 0, self.b * x, self.a * x)

    @property
    def name(self) -> str:
        """The name in messages; that of leaky_relu always shows its slope, such as "leaky_relu(0.01)"."""
        named = {(0.0, 1.0): "relu", (-1.0, 1.0): "abs", (1.0, 1.0): "identity"}.get((self.a, self.b))
        return named or (f"leaky_relu({self.a})" if self.b == 1 else f"abrelu({self.a},{self.b})")

    @property
    def homogeneous(self) -> bool:
        """Whether phi(c x) = c phi(x) for every c > 0: always."""
        return True

    @property
    def is_identity(self) -> bool:
        """Whether both slopes are 1."""
        return self.a == self.b == 1


@dataclass(frozen=True)
class Erf(Activation):
    """The error function a erf(b x) + c.

    Attributes:
      a: Factor of the output.
      b: Factor of the input.
      c: Constant that is added.

    Raises:
      InputError: A parameter is not a number of at most 1e150 in size.

    Examples:
      >>> get_activation("erf") == Erf(1.0, 1.0, 0.0)
      True

    Reference: Williams, 1997, eq. (11) (the dual).
    """

    a: Number = 1.0
    b: Number = 1.0
    c: Number = 0.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jax.lax.erf(self.b * x) + self.c


@dataclass(frozen=True)
class Gelu(Activation):
    """x Phi(x) with the normal distribution function Phi, exact and not approximated by tanh.

    Examples:
      >>> Gelu().name
      'gelu'

    Reference: Hendrycks and Gimpel, 2016, arXiv 1606.08415; Tsuchida et al., 2021, arXiv 2002.08517 (the dual).
    """

    def _apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)


@dataclass(frozen=True)
class Tanh(Activation):
    """The hyperbolic tangent a tanh(b x) + c; the sigmoid has a = b = c = 0.5.

    Attributes:
      a: Factor of the output.
      b: Factor of the input.
      c: Constant that is added.

    Raises:
      InputError: A parameter is not a number of at most 1e150 in size.

    Examples:
      >>> Tanh(0.5, 0.5, 0.5).name  # the sigmoid
      'tanh(0.5,0.5,0.5)'

    Reference: Stefanski, 1991 (the mixture of normal distributions behind the dual).
    """

    compiles_slowly = True

    a: Number = 1.0
    b: Number = 1.0
    c: Number = 0.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jnp.tanh(self.b * x) + self.c


@dataclass(frozen=True)
class Silu(Activation):
    """x / (1 + exp(-x)), also known as swish.

    Examples:
      >>> get_activation("swish").name
      'silu'

    Reference: Stefanski, 1991 (the mixture of normal distributions behind the dual).
    """

    compiles_slowly = True

    def _apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(x)


@dataclass(frozen=True)
class Softplus(Activation):
    """The smooth approximation log(1 + exp(x)) of relu.

    Examples:
      >>> Softplus().name
      'softplus'

    Reference: Stefanski, 1991 (the mixture of normal distributions behind the dual).
    """

    compiles_slowly = True

    def _apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.softplus(x)


@dataclass(frozen=True)
class Elu(Activation):
    """The exponential linear unit: x where x > 0, else alpha (exp(x) - 1).

    Attributes:
      alpha: Minus the limit at -infinity.

    Raises:
      InputError: A parameter is not a number of at most 1e150 in size.

    Examples:
      >>> Elu(0.5).name
      'elu(0.5)'

    Reference: Clevert et al., ICLR 2016.
    """

    compiles_slowly = True

    alpha: Number = 1.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.elu(x, self.alpha)


@dataclass(frozen=True)
class Sin(Activation):
    """The sine a sin(b x + c).

    Attributes:
      a: Amplitude.
      b: Frequency.
      c: Phase, in radians.

    Raises:
      InputError: A parameter is not a number of at most 1e150 in size.

    Examples:
      >>> COS == Sin(1.0, 1.0, math.pi / 2)
      True
    """

    a: Number = 1.0
    b: Number = 1.0
    c: Number = 0.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jnp.sin(self.b * x + self.c)

    @property
    def parity(self) -> int:
        """1 where the function is odd, -1 where it is even, else 0."""
        if not isinstance(self.c, float):  # a traced phase: those of odd and even functions belong to the structure
            return 0
        return 1 if abs(math.sin(self.c)) < 1e-15 else -1 if abs(math.cos(self.c)) < 1e-15 else 0

    def _is_fixed(self, name: str, value: Any) -> bool:
        return super()._is_fixed(name, value) or (name == "c" and isinstance(value, float) and self.parity != 0)


@dataclass(frozen=True)
class Gaussian(Activation):
    """The Gaussian a exp(b x^2) with b <= 0; neural-tangents has the same sign of b.

    Attributes:
      a: Value at 0.
      b: Factor in the exponent, at most 0.

    Raises:
      InputError: A parameter is not a number of at most 1e150 in size, or `b` is positive.

    Examples:
      >>> Gaussian(b=-0.5).name
      'gaussian(1.0,-0.5)'
    """

    a: Number = 1.0
    b: Number = -1.0

    def _check(self) -> None:
        super()._check()
        if self.b > 0:
            raise InputError(
                f"Expected `b` of `Gaussian` to be at most 0, got {self.b}; "
                f"E[phi(u)^2] would be infinite from the variance 1 / (4 b) = {1 / (4 * self.b):.3g} on"
            )

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jnp.exp(self.b * x**2)


@dataclass(frozen=True)
class Exp(Activation):
    """The exponential a exp(b x).

    Attributes:
      a: Factor of the output.
      b: Factor of the input.

    Raises:
      InputError: A parameter is not a number of at most 1e150 in size.

    Examples:
      >>> Exp(b=0.5).name
      'exp(1.0,0.5)'
    """

    a: Number = 1.0
    b: Number = 1.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jnp.exp(self.b * x)


@dataclass(frozen=True)
class Gabor(Activation):
    """The Gabor function exp(-x^2) sin(x).

    Examples:
      >>> Gabor().name
      'gabor'
    """

    def _apply(self, x: jax.Array) -> jax.Array:
        return jnp.exp(-(x**2)) * jnp.sin(x)


@dataclass(frozen=True)
class Polynomial(Activation):
    """The polynomial coefficients[0] + coefficients[1] x + ... + coefficients[n] x^n.

    Attributes:
      coefficients: A sequence of numbers, kept as a tuple of floats.
      label: The name in messages; by default the coefficients.

    Raises:
      InputError: There is no coefficient, or one is not a finite number.

    Examples:
      >>> Polynomial([0.0, 1.0, 2.0]).name
      'polynomial(0.0,1.0,2.0)'

    Reference: Price, 1958 (the series of the dual).
    """

    coefficients: Sequence[Number]
    label: str | None = field(default=None, compare=False)

    def _check(self) -> None:
        given = tuple(self.coefficients)
        if not given:
            raise InputError("Expected `coefficients` of `Polynomial` to hold at least one number, got none")
        numbers = tuple(_number("coefficients` of `Polynomial", c) for c in given)
        object.__setattr__(self, "coefficients", numbers)

    def _apply(self, x: jax.Array) -> jax.Array:
        value = jnp.full_like(x, self.coefficients[-1])
        for c in self.coefficients[-2::-1]:
            value = value * x + c
        return value

    @property
    def name(self) -> str:
        """The label if there is one, else the coefficients, such as "polynomial(0.0,1.0,2.0)"."""
        return self.label or f"polynomial({','.join(map(str, self.coefficients))})"


@dataclass(frozen=True)
class Sign(Activation):
    """The sign of x: -1, 0 or 1; its derivative counts as 0, as in automatic differentiation and neural-tangents.

    Examples:
      >>> Sign().name
      'sign'

    Reference: Cho and Saul, NeurIPS 2009, eq. (6) (the dual of the step).
    """

    def _apply(self, x: jax.Array) -> jax.Array:
        return jnp.sign(x)


@dataclass(frozen=True)
class RectifiedMonomial(Activation):
    """The rectified monomial: x^degree where x >= 0, else 0.

    Degree 0 is the step function, which is 1 at 0 and whose derivative counts as 0.

    Attributes:
      degree: The exponent, a whole number of at least 0.

    Raises:
      InputError: `degree` is no such number.

    Examples:
      >>> RectifiedMonomial(2).name
      'rectified_monomial(2)'

    Reference: Cho and Saul, NeurIPS 2009, eq. (4) (the dual).
    """

    degree: int

    def _check(self) -> None:
        object.__setattr__(self, "degree", check_whole("degree` of `RectifiedMonomial", self.degree, 0))

    def _apply(self, x: jax.Array) -> jax.Array:
        return jnp.where(x >= 0, x**self.degree, 0)

    @property
    def name(self) -> str:
        """The name in messages, such as "rectified_monomial(2)"."""
        return f"rectified_monomial({self.degree})"


@dataclass(frozen=True)
class Quadrature(Activation):
    """Any other function; its dual is a Hermite series whose coefficients come from quadrature (see `kernels.dual`).

    `nngp_dag.kernel` bounds the relative error at the variances that the network reaches. It warns of errors above
    1e-6, which kinks cause, and refuses errors above a quarter. Inside transformations such as `jax.jit`, and in a
    `DagLayer`, the variances are unknown, so it can do neither.

    Two of these activations are equal if `fn` is the same object. So define a function once and use it again: a new
    lambda compiles anew.

    Attributes:
      fn: An elementwise, differentiable JAX function; value and slope are finite on the real line.
      label: The name in messages; by default that of `fn`.
      degree: Number of terms of the series, 1 to 128; cost and accuracy grow with it.

    Raises:
      InputError: `fn` fails one of these conditions, or `degree` is out of range.

    Examples:
      >>> import jax.numpy as jnp, numpy as np, nngp_dag as nd
      >>> bounded = Quadrature(lambda x: x / jnp.sqrt(1 + x**2), label="bounded")
      >>> nd.kernel("2_12", np.eye(3), activation=bounded, w_std=0.5).ntk.shape
      (3, 3)

    Reference: Golub and Welsch, 1969 (the quadrature); Mehler, 1866 (the series).
    """

    compiles_slowly = True

    fn: Any
    label: str | None = None
    degree: int = 64

    def _check(self) -> None:
        if not callable(self.fn):
            raise InputError(f"Expected `fn` of `Quadrature` to be a function of an array, got {self.fn!r}")
        degree = check_whole("degree` of `Quadrature", self.degree, 0)
        if not 1 <= degree <= 128:
            raise InputError(f"Expected `degree` of `Quadrature` to be between 1 and 128, got {degree}")
        object.__setattr__(self, "degree", degree)
        check_elementwise("`fn` of `Quadrature`", self.fn, self.name)

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.fn(x)

    def __repr__(self) -> str:
        """Returns a text that is the same in every process, because resumed jobs compare it; see `fingerprint`."""
        fn = getattr(self.fn, "__wrapped__", self.fn)
        origin = f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"
        return f"Quadrature({origin}, {fingerprint(self.fn)}, label={self.label!r}, degree={self.degree})"

    @property
    def name(self) -> str:
        """The name in messages, such as "quadrature(tanh)"."""
        return f"quadrature({self.label or getattr(self.fn, '__name__', type(self.fn).__name__)})"


def leaky_relu(alpha: Number = 0.01) -> ABRelu:
    """Returns the leaky ReLU alpha min(x, 0) + max(x, 0).

    Examples:
      >>> leaky_relu(0.1)
      ABRelu(a=0.1, b=1.0)
    """
    return ABRelu(alpha, 1.0)


def rbf(gamma: Number = 1.0) -> Sin:
    """Returns sqrt(2) sin(sqrt(2 gamma) x + pi / 4), whose dual is the kernel exp(-gamma E[(u - v)^2]).

    Raises:
      InputError: `gamma` is not positive.

    Examples:
      >>> rbf() == get_activation("rbf")
      True

    Reference: Rahimi and Recht, NeurIPS 2007 (random features of this kernel).
    """
    gamma = _number("gamma", gamma)
    if gamma <= 0:
        raise InputError(f"Expected `gamma` to be greater than 0, got {gamma}")
    return Sin(math.sqrt(2), math.sqrt(2 * gamma), math.pi / 4)


def monomial(n: int) -> Polynomial:
    """Returns the monomial x^n.

    Raises:
      InputError: `n` is not a whole number of at least 0.

    Examples:
      >>> monomial(2).coefficients
      (0.0, 0.0, 1.0)
    """
    n = check_whole("n", n, 0)
    return Polynomial((0.0,) * n + (1.0,), f"monomial({n})")


def hermite(n: int) -> Polynomial:
    """Returns the probabilists' Hermite polynomial He_n(x) / sqrt(n!), whose dual at unit variances is k^n.

    Raises:
      InputError: `n` is not a whole number of at least 0.

    Examples:
      >>> hermite(1).coefficients
      (0.0, 1.0)
    """
    n = check_whole("n", n, 0)
    coefficients = np.polynomial.hermite_e.herme2poly([0.0] * n + [1.0]) / math.sqrt(math.factorial(n))
    return Polynomial(tuple(coefficients.tolist()), f"hermite({n})")


RELU = ABRelu(0.0, 1.0)
ABS = ABRelu(-1.0, 1.0)
IDENTITY = ABRelu(1.0, 1.0)
# The multiple of erf nearest to the sigmoid in squared error over [-5, 5]; the constant is that of neural-tangents.
SIGMOID_LIKE = Erf(0.5, 1 / 2.4020563531719796, 0.5)
COS = Sin(1.0, 1.0, math.pi / 2)

# The names that `get_activation` reads.
ACTIVATIONS: dict[str, Activation] = {
    "relu": RELU,
    "leaky_relu": leaky_relu(),
    "abs": ABS,
    "identity": IDENTITY,
    "erf": Erf(),
    "sigmoid_like": SIGMOID_LIKE,
    "gelu": Gelu(),
    "tanh": Tanh(),
    "silu": Silu(),
    "swish": Silu(),
    "softplus": Softplus(),
    "elu": Elu(),
    "sin": Sin(),
    "cos": COS,
    "rbf": rbf(),
    "gaussian": Gaussian(),
    "exp": Exp(),
    "gabor": Gabor(),
    "sign": Sign(),
}
"""The activations that have names, by name."""


def get_activation(spec: str | Activation | Callable[..., Any] | None) -> Activation:
    """Returns the activation that `spec` stands for.

    Args:
      spec: A key of `ACTIVATIONS`, an activation, or None for the identity.

    Raises:
      InputError: `spec` is an unknown name, or not an activation.

    Examples:
      >>> get_activation("leaky_relu")
      ABRelu(a=0.01, b=1.0)
    """
    if spec is None:
        return IDENTITY
    if isinstance(spec, Activation) and type(spec) is not Activation:
        return spec
    if isinstance(spec, str):
        if spec in ACTIVATIONS:
            return ACTIVATIONS[spec]
        names = ", ".join(ACTIVATIONS)
        remedy = did_you_mean(spec, ACTIVATIONS) or "; any other function goes in as `activations.Quadrature(fn)`"
        raise InputError(f"Expected `activation` to be one of {names}, got {shown(spec)}{remedy}")
    if isinstance(spec, type) and issubclass(spec, Activation):
        raise InputError(f"Expected `activation` to be an activation, got the class {spec.__name__}; call it first")
    raise InputError(
        f"Expected `activation` to be a name or an `Activation`, got {getattr(spec, '__name__', None) or shown(spec)}; "
        "wrap an elementwise function: `activations.Quadrature(fn)`"
    )
