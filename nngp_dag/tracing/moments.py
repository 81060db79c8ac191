"""Second moments and tangents of the nodes of a program, for one pair of inputs.

M(u, v) is the second moment E[u v] of one channel of two nodes, and T(u, v) the tangent of it along the covariances of
the two inputs, with a seed at every parameter. By Price's theorem T is the neural tangent kernel. For weights W with
entries of variance s^2, n channels, and seeds a (1 for the model's own parameterization, s^2 for the NTK's):

    products      M(Wu, Wv) = s^2 n M(u, v)        T(Wu, Wv) = a n M(u, v) + s^2 n T(u, v);  0 for different weights
    functions     M(f(u), g(v)) = E f(a) g(b)      T(f(u), g(v)) = E f'(a) g'(b) T(u, v),  (a, b) ~ N(0, M)
    Stein         M(Wu, f(v)) = M(Wu, v) E f'      T(Wu, f(v)) = T(Wu, v) E f'
    linear maps   both are bilinear
    products      M(u v, u' v') = M(u, u') M(v, v') for independent factors, Isserlis' theorem for Gaussian ones

Source: Yang 2020, "Tensor Programs II" (the limit of any program, and the conditions); Price 1958.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import ModelError
from nngp_dag.tracing import expectations
from nngp_dag.tracing.functions import Function
from nngp_dag.tracing.geometry import contract, window_sum
from nngp_dag.tracing.tails import fourth_cumulant
from nngp_dag.tracing.values import Fixed, Linear, Node, Nonlinear, Number, Parameter, Product, Sum, Times

# Programs that are too long to be compiled as a whole run step by step; then these are compiled once for each function.
_second_moment = expectations.compiled_second_moment
_mean, _slope, _mean_slope = (
    jax.jit(f, static_argnums=0) for f in (expectations.mean, expectations.slope, expectations.mean_slope)
)

# M and T; None stands for 0.
Pair = tuple[jax.Array | None, jax.Array | None]
_NOTHING: Pair = (None, None)


class OneInput:
    """What one input alone determines: numbers, means and variances of nodes. Each is computed once."""

    def __init__(self, x: jax.Array, functions: dict[int, Function]) -> None:
        """Takes the input, of the shape that the program was read at, and the functions of nodes by their numbers."""
        self.x = x
        self.functions = functions
        self.numbers: dict[int, jax.Array] = {}
        self.means: dict[int, jax.Array] = {}
        self.variances: dict[int, jax.Array] = {}
        self.moments = Moments((self, self), lambda weight: 0.0, with_tangents=False, functions=functions)

    def number(self, number: Number) -> jax.Array:
        """Returns a number."""
        if number.id not in self.numbers:
            if number.known is not None:
                value = jnp.asarray(number.known)
            elif number.mean is not None:
                value = self.mean(number.mean)
            elif number.pair is not None:
                value = self._second_moment(*number.pair)
            elif number.function is None:
                value = self.x
            else:
                value = number.function(*map(self.number, number.arguments))
            self.numbers[number.id] = value
        return self.numbers[number.id]

    def _second_moment(self, u: Node, v: Node) -> jax.Array:
        m, _ = self.moments.pair(u, v, 0, 0)
        return jnp.zeros((*u.shape, *v.shape)) if m is None else m

    def mean(self, node: Node) -> jax.Array:
        """Returns the mean of a node over its channels, of the node's shape."""
        if node.id not in self.means:
            self.means[node.id] = self._mean(node)
        return self.means[node.id]

    def _mean(self, node: Node) -> jax.Array:
        if node.offset is not None:
            return jnp.full(node.shape, node.offset, float)
        match node:
            case Sum():
                return sum((c * self.mean(child) for c, child in node.terms), jnp.zeros(node.shape))
            case Linear():
                return node.map(self.mean(node.node), *map(self.number, node.numbers))
            case Fixed():
                return jnp.broadcast_to(self.number(node.number), node.shape).astype(float)
            case Nonlinear():
                return _mean(self.functions[node.id], self.variance(node.node))
            case Times():
                return _diagonal(self._second_moment(node.left, node.right), node.shape)
        raise TypeError(type(node))

    def variance(self, node: Node) -> jax.Array:
        """Returns the variances of a Gaussian node, of its shape."""
        if node.id not in self.variances:
            value = _diagonal(self._second_moment(node, node), node.shape)
            if node.offset:
                value = value - node.offset**2
            self.variances[node.id] = jnp.where(value < 0, 0, value)
        return self.variances[node.id]

    def kurtosis(self, node: Node) -> jax.Array:
        """Returns a bound on the size of the excess kurtosis of a node that counts as Gaussian, of its shape."""

        def fourth_powers(product: Product) -> jax.Array:
            ((_, number),) = product.operands
            assert isinstance(number, Number)
            squares = jnp.square(self.number(number).astype(float))
            sums = _contracted(product, product, _gram(squares, squares, (product.features, product.features)))
            return _diagonal(sums, product.shape)

        q = self.variance(node)
        return fourth_cumulant(node, fourth_powers) / jnp.where(q == 0, 1, q) ** 2


class Recorded:
    """Values of one input that were computed before, by kind and by the number of the node or number."""

    def __init__(self, values: dict[str, jax.Array], source: OneInput | None = None) -> None:
        """Takes the values; those that are absent come from `source`, and are added."""
        self.values = values
        self.source = source

    def number(self, number: Number) -> jax.Array:
        """Returns a number."""
        return jnp.asarray(number.known) if number.known is not None else self._get("number", number)

    def mean(self, node: Node) -> jax.Array:
        """Returns the mean of a node."""
        return jnp.full(node.shape, node.offset, float) if node.offset is not None else self._get("mean", node)

    def variance(self, node: Node) -> jax.Array:
        """Returns the variances of a node."""
        return self._get("variance", node)

    def _get(self, kind: str, of: Any) -> jax.Array:
        key = f"{kind} {of.id}"
        if key not in self.values:
            assert self.source is not None
            self.values[key] = getattr(self.source, kind)(of)
        return self.values[key]


class Moments:
    """Computes second moments and tangents of nodes for one pair of inputs, each only once."""

    def __init__(
        self,
        sides: tuple[OneInput | Recorded, OneInput | Recorded],
        seeds: Callable[[Any], float],
        *,
        with_tangents: bool,
        functions: dict[int, Function],
        gains: Mapping[int, Sequence[tuple[Hashable, float, Node]]] = MappingProxyType({}),
        tuned: Mapping[int, Mapping[Hashable, tuple[float, Function]]] = MappingProxyType({}),
    ) -> None:
        """Takes the two inputs.

        Args:
          sides: The values that each input determines.
          seeds: The seed of the tangent at a weight, in units of the model's own parameterization.
          with_tangents: Whether to compute T.
          functions: The functions of nodes that are functions of Gaussian ones, by the numbers of the nodes.
          gains: For the number of each operand, the keys of trained gains, their seeds, and the derivatives in them.
          tuned: For the number of a node, the seeds of trained numbers on which its function depends, and the
            derivatives of the function in them, by their keys.
        """
        self.tuned = tuned
        self.sides = sides
        self.gains = gains
        self.seeds = seeds
        self.with_tangents = with_tangents
        self.functions = functions
        self.pairs: dict[tuple[int, int, int, int], Pair] = {}

    def number(self, number: Number, side: int) -> jax.Array:
        """Returns a number at the input of a side."""
        return self.sides[side].number(number)

    def mean(self, node: Node, side: int) -> jax.Array:
        """Returns the mean of a node at the input of a side."""
        return self.sides[side].mean(node)

    def variance(self, node: Node, side: int) -> jax.Array:
        """Returns the variances of a Gaussian node at the input of a side."""
        return self.sides[side].variance(node)

    def with_gains(self, u: Node, v: Node, side_u: int, side_v: int) -> Pair:
        """Returns M and T of two operands of products, with the shares of trained gains."""
        m, t = self.pair(u, v, side_u, side_v)
        if self.with_tangents and side_u != side_v:
            others = {key: e for key, _, e in self.gains.get(v.id, ())}
            for key, seed, d in self.gains.get(u.id, ()):
                if key in others:
                    share, _ = self.pair(d, others[key], side_u, side_v)
                    m, t = _added((m, t), (None, None if share is None else seed * share))
        return m, t

    def pair(self, u: Node, v: Node, side_u: int, side_v: int) -> Pair:
        """Returns M(u, v) and T(u, v), (*shape of u, *shape of v), for u and v at the inputs of two sides."""
        if (u.id, side_v) < (v.id, side_u):
            return _transposed(self.pair(v, u, side_v, side_u), len(v.shape))
        key = (u.id, v.id, side_u, side_v)
        if key not in self.pairs:
            self.pairs[key] = self._pair(u, v, side_u, side_v)
        return self.pairs[key]

    def _pair(self, u: Node, v: Node, side_u: int, side_v: int) -> Pair:
        """Returns M and T for u not before v."""
        if isinstance(u, (Sum, Linear)):
            return self._expanded(u, v, side_u, side_v)
        if isinstance(v, (Sum, Linear)):
            return _transposed(self._expanded(v, u, side_v, side_u), len(v.shape))
        for one, other, side_one, side_other, turned in ((u, v, side_u, side_v, False), (v, u, side_v, side_u, True)):
            rule = _RULES.get((type(one), type(other)))
            if rule is not None:
                found = rule(self, one, other, side_one, side_other)
                return _transposed(found, len(one.shape)) if turned else found
        raise TypeError((type(u), type(v)))

    def _expanded(self, u: Sum | Linear, v: Node, side_u: int, side_v: int) -> Pair:
        if isinstance(u, Sum):
            total = _NOTHING
            for c, child in u.terms:
                total = _added(total, _scaled(self.pair(child, v, side_u, side_v), c))
            return total
        numbers = [self.number(n, side_u) for n in u.numbers]

        def mapped(block: jax.Array | None) -> jax.Array | None:
            if block is None:
                return None
            flat = block.reshape(*u.node.shape, -1)
            done = jax.vmap(lambda a: u.map(a, *numbers), in_axes=-1, out_axes=-1)(flat)
            return done.reshape(*u.shape, *v.shape)

        m, t = self.pair(u.node, v, side_u, side_v)
        return mapped(m), mapped(t)

    # The rules of nodes that are no linear combination of others.

    def fixed(self, u: Fixed, v: Node, side_u: int, side_v: int) -> Pair:
        """Returns the pair of a number and a node: the product of their means."""
        if u.offset == 0 or v.offset == 0:
            return _NOTHING
        return _outer(self.mean(u, side_u), self.mean(v, side_v)), None

    def independent(self, u: Node, v: Node, side_u: int, side_v: int) -> Pair:
        """Returns the pair of two independent nodes: the product of their means."""
        if u.offset == 0 or v.offset == 0:
            return _NOTHING
        return _outer(self.mean(u, side_u), self.mean(v, side_v)), None

    def products(self, u: Product, v: Product, side_u: int, side_v: int) -> Pair:
        """Returns the pair of two products: 0 unless they have the same weight."""
        if u.weight.key != v.weight.key:
            return _NOTHING
        variance = u.weight.distribution.std**2
        seed = self.seeds(u.weight)
        (n, a), (_, b) = *u.operands, *v.operands
        if isinstance(a, Number) != isinstance(b, Number):
            raise ModelError(
                f"Expected `{u.weight.name}` to multiply either features of the input or channels, got both; use two "
                "parameters"
            )
        if isinstance(a, Number) and isinstance(b, Number):
            m, t = _gram(self.number(a, side_u), self.number(b, side_v), (u.features, v.features)), None
        else:
            m, t = self.with_gains(a, b, side_u, side_v)  # type: ignore[arg-type]
        if u.own != v.own:
            raise ModelError(
                f"Expected `{u.weight.name}` to be used by products of one kind, got one with weights of its own along "
                "other axes; use a parameter of its own for one of them"
            )
        own = _same_entries(u.shape, v.shape, u.own)
        found_m = None if m is None else n * own * _contracted(u, v, m)
        if found_m is not None and (u.centered or v.centered):
            # Weights minus their mean act on values minus their mean over all that is summed.
            (one, count), (other, _) = self._summed(u, side_u), self._summed(v, side_v)
            found_m = found_m - n * own * _outer(one, other) / count
        found_t = None if t is None else n * variance * own * _contracted(u, v, t)
        if self.with_tangents and side_u != side_v and found_m is not None:
            seeded = seed * found_m
            found_t = seeded if found_t is None else found_t + seeded
        return None if found_m is None else variance * found_m, found_t

    def _summed(self, node: Product, side: int) -> tuple[jax.Array, int]:
        """Returns the sums of an operand's means over what a product sums, and the number of entries of a channel."""
        (_, operand), *_ = node.operands
        if isinstance(operand, Node):
            means = self.mean(operand, side)
            return window_sum(means, node.geometry), node.geometry.count(means.shape)
        array = self.number(operand, side).astype(float)
        features = math.prod(array.shape[i] for i in node.features)
        sums = array.sum(axis=node.features)
        return window_sum(sums, node.geometry), features * node.geometry.count(sums.shape)

    def parameters(self, u: Parameter, v: Parameter, side_u: int, side_v: int) -> Pair:
        """Returns the pair of two elementwise parameters."""
        if u.weight.key != v.weight.key:
            return self.independent(u, v, side_u, side_v)
        same = _same_entries(u.shape, v.shape, tuple(range(len(u.shape))))
        same = jnp.broadcast_to(same, (*u.shape, *v.shape))
        spec = u.weight.distribution
        m = spec.std**2 * same + spec.mean**2
        wanted = self.with_tangents and side_u != side_v
        return (m if spec.std or spec.mean else None), (self.seeds(u.weight) * same if wanted else None)

    def stein(self, u: Node, v: Nonlinear, side_u: int, side_v: int) -> Pair:
        """Returns the pair of a Gaussian node and a function of another one (Stein's lemma)."""
        if not u.sources & v.sources:
            return self.independent(u, v, side_u, side_v)
        f, q = self.functions[v.id], self.variance(v.node, side_v)
        m, t = self._centered(u, v.node, side_u, side_v)
        found = None if m is None else m * _slope(f, q)
        if u.offset:
            shift = u.offset * _mean(f, q)
            found = jnp.broadcast_to(shift, (*u.shape, *v.shape)) + (0 if found is None else found)
        return found, None if t is None else t * _slope_in_gradients(f, q)

    def functions_of(self, u: Nonlinear, v: Nonlinear, side_u: int, side_v: int) -> Pair:
        """Returns the pair of two functions of Gaussian nodes."""
        if not u.sources & v.sources:
            return self.independent(u, v, side_u, side_v)
        k, t = self._centered(u.node, v.node, side_u, side_v)
        rank = (len(u.shape), len(v.shape))
        q1 = self.variance(u.node, side_u).reshape(*u.shape, *(1,) * rank[1])
        q2 = self.variance(v.node, side_v).reshape(*(1,) * rank[0], *v.shape)
        if k is None:
            k = jnp.zeros((*u.shape, *v.shape))
        f, g = self.functions[u.id], self.functions[v.id]
        m, factor = _second_moment(f, g, k, q1, q2)
        own = self._of_tuned(u, v, k, q1, q2) if self.with_tangents and side_u != side_v else None
        if t is None:
            return m, own
        # At variance 0 the slope of a kinked function is the one that gradients have there.
        at_zero = (q1 == 0) | (q2 == 0)
        t = t * jnp.where(at_zero, _slope_in_gradients(f, q1) * _slope_in_gradients(g, q2), factor)
        return m, t if own is None else t + own

    def _of_tuned(self, u: Nonlinear, v: Nonlinear, k: jax.Array, q1: jax.Array, q2: jax.Array) -> jax.Array | None:
        """Returns the share of trained numbers on which both functions depend, such as the slope of PReLU."""
        first, second = self.tuned.get(u.id, {}), self.tuned.get(v.id, {})
        shares = [
            seed * _second_moment(first[key][1], second[key][1], k, q1, q2)[0]
            for key, (seed, _) in first.items()
            if key in second
        ]
        return sum(shares[1:], shares[0]) if shares else None

    def _centered(self, u: Node, v: Node, side_u: int, side_v: int) -> Pair:
        """Returns the covariance of two Gaussian nodes, and T."""
        m, t = self.pair(u, v, side_u, side_v)
        if m is not None and u.offset and v.offset:
            m = m - u.offset * v.offset
        return m, t

    def times(self, u: Times, v: Node, side_u: int, side_v: int) -> Pair:
        """Returns the pair of a product of two nodes and a third one."""
        if not u.sources & v.sources:
            return self.independent(u, v, side_u, side_v)
        if u.gaussian and u.offset is not None and isinstance(v, Nonlinear):
            return self.stein(u, v, side_u, side_v)
        for one, other in ((u.left, u.right), (u.right, u.left)):
            if not other.sources & (one.sources | v.sources):
                if other.offset == 0:
                    return _NOTHING
                m, t = self.pair(one, v, side_u, side_v)
                factor = self.mean(other, side_u).reshape(*u.shape, *(1,) * len(v.shape))
                return (None if m is None else factor * m), (None if t is None else factor * t)
        if u.left.gaussian and u.right.gaussian and v.gaussian and {u.left.offset, u.right.offset, v.offset} == {0.0}:
            return _NOTHING
        raise _dependent(u)

    def products_of_two(self, u: Times, v: Times, side_u: int, side_v: int) -> Pair:
        """Returns the pair of two products of two nodes each."""
        if not u.sources & v.sources:
            return self.independent(u, v, side_u, side_v)
        for a, b in ((v.left, v.right), (v.right, v.left)):
            # u = p q and v = a b, where (p, a) are independent of (q, b).
            if not (u.left.sources | a.sources) & (u.right.sources | b.sources):
                return _product_rule(self.pair(u.left, a, side_u, side_v), self.pair(u.right, b, side_u, side_v))
        four = (u.left, u.right, v.left, v.right)
        if all(x.gaussian and x.offset == 0 for x in four):
            return self._isserlis(u, v, side_u, side_v)
        raise _dependent(u)

    def _isserlis(self, u: Times, v: Times, side_u: int, side_v: int) -> Pair:
        total = _NOTHING
        for a, b in ((v.left, v.right), (v.right, v.left)):
            total = _added(
                total,
                _product_rule(self.pair(u.left, a, side_u, side_v), self.pair(u.right, b, side_u, side_v)),
            )
        m = _outer(self.mean(u, side_u), self.mean(v, side_v))
        return _added(total, (m, None))


def _slope_in_gradients(f: Function, q: jax.Array) -> jax.Array:
    """Returns E f'(a) for a ~ N(0, q), and f'(0) as JAX has it where q is 0."""
    zero = jnp.zeros(())
    at_zero = jax.jvp(f.fn, (zero,), (jnp.ones(()),))[1]
    return jnp.where(q == 0, at_zero, _mean_slope(f, q))


def _dependent(node: Times) -> ModelError:
    return ModelError(
        f"{node.place}: Expected factors that are independent or Gaussian, got a product of dependent ones; multiply "
        "values of different weights, or functions of one Gaussian value"
    )


_RULES: dict[tuple[type, type], Any] = {
    **{(Fixed, kind): Moments.fixed for kind in (Fixed, Product, Parameter, Nonlinear, Times)},
    (Product, Product): Moments.products,
    (Product, Parameter): Moments.independent,
    (Parameter, Parameter): Moments.parameters,
    (Product, Nonlinear): Moments.stein,
    (Parameter, Nonlinear): Moments.stein,
    (Nonlinear, Nonlinear): Moments.functions_of,
    (Times, Times): Moments.products_of_two,
    **{(Times, kind): Moments.times for kind in (Product, Parameter, Nonlinear)},
}


def _transposed(pair: Pair, rank: int) -> Pair:
    """Returns a pair whose first `rank` axes come last."""

    def turn(a: jax.Array | None) -> jax.Array | None:
        return None if a is None else jnp.moveaxis(a, range(rank), range(a.ndim - rank, a.ndim))

    return turn(pair[0]), turn(pair[1])


def _added(one: Pair, other: Pair) -> Pair:
    m, t = (a if b is None else b if a is None else a + b for a, b in zip(one, other, strict=True))
    return m, t


def _scaled(pair: Pair, c: float) -> Pair:
    if c == 0:
        return _NOTHING
    m, t = (a if a is None or c == 1 else c * a for a in pair)
    return m, t


def _product_rule(one: Pair, other: Pair) -> Pair:
    (m, t), (k, s) = one, other
    product = None if m is None or k is None else m * k
    first = None if t is None or k is None else t * k
    second = None if m is None or s is None else m * s
    return product, first if second is None else second if first is None else first + second


def _outer(a: jax.Array, b: jax.Array) -> jax.Array:
    return a.reshape(*a.shape, *(1,) * b.ndim) * b.reshape(*(1,) * a.ndim, *b.shape)


def _gram(a: jax.Array, b: jax.Array, features: tuple[tuple[int, ...], tuple[int, ...]]) -> jax.Array:
    """Returns the sums over features of products of two numbers, (*other axes of a, *other axes of b)."""
    return jnp.tensordot(a.astype(float), b.astype(float), features, precision=jax.lax.Precision.HIGHEST)


def _contracted(u: Product, v: Product, m: jax.Array) -> jax.Array:
    ranks = [len(node.operands[0][1].shape) if isinstance(node.operands[0][1], Node) else None for node in (u, v)]
    first = ranks[0] if ranks[0] is not None else len(u.shape)
    return contract(m, u.geometry, v.geometry, (first, m.ndim - first), u.weight.name)


def _same_entries(first: tuple[int, ...], second: tuple[int, ...], own: tuple[int, ...]) -> Any:
    """Returns 1 where both sides have the same entry of the axes whose entries are independent, else 0."""
    mask: Any = np.ones((1,) * (len(first) + len(second)))
    for axis in own:
        shape = [1] * mask.ndim
        shape[axis], shape[len(first) + axis] = first[axis], second[axis]
        mask = mask * np.eye(first[axis], second[axis]).reshape(shape)
    return jnp.asarray(mask)


def _diagonal(block: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    size = int(np.prod(shape))
    return jnp.diagonal(block.reshape(size, size)).reshape(shape)
