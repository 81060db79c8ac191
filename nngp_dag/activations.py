"""Pointwise nonlinearities phi, as frozen values that the kernels and the finite networks share.

An activation is a function of arrays and says nothing of infinite width; its Gaussian expectations are in
`nngp_dag.kernels.dual`. Equal parameters make equal, equally hashed activations. They are pytrees of JAX, whose leaves
are the parameters: a compiled program takes them as inputs, and serves all their values. Parameters of -1, 0 and 1 are
part of the structure instead, since formulas are shorter there: those of relu need not multiply by them.
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

# What a parameter may be given as; it is kept as a float.
Number = float | int


@dataclass(frozen=True)
class Activation:
    """A nonlinearity phi: R -> R, applied elementwise; the dtype of the array is kept."""

    known: ClassVar[dict[str, type["Activation"]]] = {}
    compiles_slowly: ClassVar[bool] = False
    """Whether its kernels take long to compile, so that a loop over the layers, which holds them once, is better."""

    def __init_subclass__(cls) -> None:
        """Registers the class as a pytree, and makes it known by its name, to files that hold networks."""
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
        """Returns an activation of parameters that cannot be checked, such as those that a formula gets from JAX.

        Example:
          >>> ABRelu.unchecked(0.1, 1.0) == ABRelu(0.1, 1.0)
          True
        """
        phi = object.__new__(cls)
        for f, value in zip(fields(cls), parameters, strict=True):
            object.__setattr__(phi, f.name, value)
        return phi

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns phi(x), of the shape and dtype of `x`."""
        return self._apply(x)

    @property
    def key(self) -> str | None:
        """The first name that `get_activation` knows it by, if there is one."""
        return next((key for key, value in ACTIVATIONS.items() if value == self), None)

    @property
    def name(self) -> str:
        """Its key, else its class and parameters, as in "erf(1.0,2.0,0.0)"."""
        return self.key or f"{type(self).__name__.lower()}({','.join(str(v) for v in self._parameters())})"

    @property
    def homogeneous(self) -> bool:
        """Whether phi(c x) = c phi(x) for every c > 0, so that kernels need only angles."""
        return False

    @property
    def is_identity(self) -> bool:
        """Whether phi(x) = x."""
        return False

    def _parameters(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f.name) for f in fields(self))

    def _split(self) -> tuple[list[Any], "_Structure"]:
        """Returns the numbers that programs take as inputs, and the fields with `_NUMBER` in the place of those."""
        numbers, structure = [], []
        for f in fields(self):
            value = getattr(self, f.name)
            parts = value if isinstance(value, tuple) else (value,)
            marked = tuple(part if self._is_fixed(f.name, part) else _NUMBER for part in parts)
            numbers += [part for part, mark in zip(parts, marked, strict=True) if mark is _NUMBER]
            structure.append((f.name, marked if isinstance(value, tuple) else marked[0]))
        return numbers, tuple(structure)

    def _is_fixed(self, name: str, value: Any) -> bool:
        """Whether a value belongs to the structure: what is no number, and numbers for which formulas are shorter."""
        del name
        if isinstance(value, float):
            return value in (-1.0, 0.0, 1.0)
        return value is None or callable(value) or isinstance(value, (int, str))

    def _apply(self, x: jax.Array) -> jax.Array:
        raise NotImplementedError

    def _check(self) -> None:
        """Turns every field into a finite float; activations with other fields have their own."""
        for f in fields(self):
            object.__setattr__(self, f.name, _number(f"{f.name}` of `{type(self).__name__}", getattr(self, f.name)))


_Structure = tuple[tuple[str, Any], ...]
_NUMBER = object()


def _joined(cls: type[Activation], structure: _Structure, numbers: Sequence[Any]) -> Any:
    """Undoes `Activation._split`; numbers may be those of a compiled program, which cannot be validated."""
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
    """a min(x, 0) + b max(x, 0): relu is (0, 1), leaky_relu(alpha) (alpha, 1), abs (-1, 1), the identity (1, 1)."""

    a: Number
    b: Number

    def _apply(self, x: jax.Array) -> jax.Array:
        # The derivative at 0 is a, so relu has 0 there, as `jax.nn.relu` does.
        return jnp.where(x > 0, self.b * x, self.a * x)

    @property
    def name(self) -> str:
        """As for every activation, but that leaky_relu always shows its slope."""
        named = {(0.0, 1.0): "relu", (-1.0, 1.0): "abs", (1.0, 1.0): "identity"}.get((self.a, self.b))
        return named or (f"leaky_relu({self.a})" if self.b == 1 else f"abrelu({self.a},{self.b})")

    @property
    def homogeneous(self) -> bool:
        """True."""
        return True

    @property
    def is_identity(self) -> bool:
        """Whether both slopes are 1."""
        return self.a == self.b == 1


@dataclass(frozen=True)
class Erf(Activation):
    """a erf(b x) + c."""

    a: Number = 1.0
    b: Number = 1.0
    c: Number = 0.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jax.lax.erf(self.b * x) + self.c


@dataclass(frozen=True)
class Gelu(Activation):
    """x Phi(x) with the normal distribution function Phi, without the approximation by tanh."""

    def _apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)


@dataclass(frozen=True)
class Tanh(Activation):
    """a tanh(b x) + c; the sigmoid is (0.5, 0.5, 0.5)."""

    compiles_slowly = True

    a: Number = 1.0
    b: Number = 1.0
    c: Number = 0.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jnp.tanh(self.b * x) + self.c


@dataclass(frozen=True)
class Silu(Activation):
    """x / (1 + exp(-x)), also known as swish."""

    compiles_slowly = True

    def _apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.silu(x)


@dataclass(frozen=True)
class Softplus(Activation):
    """log(1 + exp(x))."""

    compiles_slowly = True

    def _apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.softplus(x)


@dataclass(frozen=True)
class Elu(Activation):
    """x where x > 0, else alpha (exp(x) - 1)."""

    compiles_slowly = True

    alpha: Number = 1.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return jax.nn.elu(x, self.alpha)


@dataclass(frozen=True)
class Sin(Activation):
    """a sin(b x + c)."""

    a: Number = 1.0
    b: Number = 1.0
    c: Number = 0.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jnp.sin(self.b * x + self.c)

    @property
    def parity(self) -> int:
        """1 where the function is odd, -1 where it is even, else 0."""
        if not isinstance(self.c, float):  # in a compiled program, which knows the phases of odd and even ones
            return 0
        return 1 if abs(math.sin(self.c)) < 1e-15 else -1 if abs(math.cos(self.c)) < 1e-15 else 0

    def _is_fixed(self, name: str, value: Any) -> bool:
        return super()._is_fixed(name, value) or (name == "c" and isinstance(value, float) and self.parity != 0)


@dataclass(frozen=True)
class Gaussian(Activation):
    """a exp(b x^2) with b <= 0; the sign of b is that of neural-tangents."""

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
    """a exp(b x)."""

    a: Number = 1.0
    b: Number = 1.0

    def _apply(self, x: jax.Array) -> jax.Array:
        return self.a * jnp.exp(self.b * x)


@dataclass(frozen=True)
class Gabor(Activation):
    """exp(-x^2) sin(x)."""

    def _apply(self, x: jax.Array) -> jax.Array:
        return jnp.exp(-(x**2)) * jnp.sin(x)


@dataclass(frozen=True)
class Polynomial(Activation):
    """coefficients[0] + coefficients[1] x + ... + coefficients[n] x^n.

    Attributes:
      coefficients: Any sequence of numbers, kept as a tuple of floats.
      label: Its name in messages; by default its coefficients.
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
        """The label, else the coefficients, as in "polynomial(0.0,1.0,2.0)"."""
        return self.label or f"polynomial({','.join(map(str, self.coefficients))})"


@dataclass(frozen=True)
class Sign(Activation):
    """-1, 0 or 1; its derivative is taken to be 0, as autodiff and neural-tangents have it."""

    def _apply(self, x: jax.Array) -> jax.Array:
        return jnp.sign(x)


@dataclass(frozen=True)
class RectifiedMonomial(Activation):
    """x^degree where x >= 0, else 0; for degree 0 the step, with 1 at 0 and a derivative taken to be 0."""

    degree: int

    def _check(self) -> None:
        object.__setattr__(self, "degree", check_whole("degree` of `RectifiedMonomial", self.degree, 0))

    def _apply(self, x: jax.Array) -> jax.Array:
        return jnp.where(x >= 0, x**self.degree, 0)

    @property
    def name(self) -> str:
        """As in "rectified_monomial(2)"."""
        return f"rectified_monomial({self.degree})"


@dataclass(frozen=True)
class Quadrature(Activation):
    """Any other function; its kernels come from one-dimensional quadrature and a Hermite series (see `kernels.dual`).

    `kernel` warns where they are off by more than 1e-6, as close to a kink, and refuses those off by a quarter or more;
    inside transformations such as `jax.jit`, and in a `DagLayer`, where variances are not known, it can do neither.

    Two of them are equal when `fn` is the same object, so keep one lambda and use it again: a new one recompiles.

    Attributes:
      fn: An elementwise JAX function of an array with a derivative, both finite on the real line.
      label: Its name in messages; by default that of `fn`.
      degree: Number of terms of the series, 1 to 128; cost and accuracy grow with it.
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
        """The same in every process, unlike that of a function: jobs that continue compare it, see `fingerprint`."""
        fn = getattr(self.fn, "__wrapped__", self.fn)
        origin = f"{getattr(fn, '__module__', '')}.{getattr(fn, '__qualname__', type(fn).__qualname__)}"
        return f"Quadrature({origin}, {fingerprint(self.fn)}, label={self.label!r}, degree={self.degree})"

    @property
    def name(self) -> str:
        """As in "quadrature(tanh)"."""
        return f"quadrature({self.label or getattr(self.fn, '__name__', type(self.fn).__name__)})"


def leaky_relu(alpha: Number = 0.01) -> ABRelu:
    """Returns alpha min(x, 0) + max(x, 0)."""
    return ABRelu(alpha, 1.0)


def rbf(gamma: Number = 1.0) -> Sin:
    """Returns sqrt(2) sin(sqrt(2 gamma) x + pi / 4), whose dual is exp(-gamma E[(u - v)^2])."""
    gamma = _number("gamma", gamma)
    if gamma <= 0:
        raise InputError(f"Expected `gamma` to be greater than 0, got {gamma}")
    return Sin(math.sqrt(2), math.sqrt(2 * gamma), math.pi / 4)


def monomial(n: int) -> Polynomial:
    """Returns x^n."""
    n = check_whole("n", n, 0)
    return Polynomial((0.0,) * n + (1.0,), f"monomial({n})")


def hermite(n: int) -> Polynomial:
    """Returns the probabilists' Hermite polynomial He_n(x) / sqrt(n!), whose dual at unit variances is k^n."""
    n = check_whole("n", n, 0)
    coefficients = np.polynomial.hermite_e.herme2poly([0.0] * n + [1.0]) / math.sqrt(math.factorial(n))
    return Polynomial(tuple(coefficients.tolist()), f"hermite({n})")


RELU = ABRelu(0.0, 1.0)
ABS = ABRelu(-1.0, 1.0)
IDENTITY = ABRelu(1.0, 1.0)
# The multiple of erf nearest to the sigmoid in squared error over [-5, 5]; the constant is that of neural-tangents.
SIGMOID_LIKE = Erf(0.5, 1 / 2.4020563531719796, 0.5)
COS = Sin(1.0, 1.0, math.pi / 2)

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
    """Returns the activation that `spec` means.

    Args:
      spec: A key of `ACTIVATIONS`, an activation, or None for the identity.

    Raises:
      InputError: An unknown name, or something that is not an activation.
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
