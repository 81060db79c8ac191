"""Nodes as functions of one Gaussian node, whose expectations then have a closed form."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from nngp_dag.tracing.reader import Reader
from nngp_dag.tracing.values import Fixed, Linear, Node, Nonlinear, Parameter, Sum, Times


class Base(NamedTuple):
    """A node as a function of a Gaussian node.

    Attributes:
      node: The Gaussian node.
      function: The function of one array, and of the values of `tuned` by their keys; None for those at the start.
      key: A hashable value that stands for the function.
      tuned: Trained numbers on which the function depends, such as the slope of PReLU.
    """

    node: Node | None
    function: Callable[..., Any]
    key: Hashable
    tuned: tuple[Parameter, ...] = ()


def _value(p: Mapping[Hashable, Any] | None, parameter: Parameter) -> Any:
    """Returns the value of a trained number: a given one, or that at the start."""
    start = parameter.weight.distribution.mean
    return start if p is None else p.get(parameter.weight.key, start)


def constant(value: float | bool) -> Base:
    """Returns a number as a function of any node."""
    return Base(
        None, lambda t, p=None: jnp.asarray(value, bool if isinstance(value, bool) else t.dtype), ("constant", value)
    )


def bases(reader: Reader, node: Node) -> list[Base]:
    """Returns the Gaussian nodes of which a node is a function, the node itself first."""
    memo = reader.values.made.setdefault("bases", {})
    if node.id in memo:
        return memo[node.id]
    found: list[Base] = []
    if isinstance(node, Fixed):
        if node.offset is not None:
            found = [constant(node.offset)]
    else:
        if node.gaussian and node.offset is not None and node.random:
            found.append(Base(node, lambda t, p=None: t, "x"))
        if isinstance(node, Nonlinear):
            for base in bases(reader, node.node):
                found.append(_after(node, base))
        if isinstance(node, Sum):
            found += _bases_of_sum(reader, node)
        if isinstance(node, Times):
            found += _tuned(reader, node)
    memo[node.id] = found
    return found


def _after(node: Nonlinear, base: Base) -> Base:
    """Returns a function of a Gaussian node as a function of the one that this node is a function of."""
    if base.node is node.node and base.key == "x":
        return Base(node.node, node.apply, node.key, node.tuned)
    return Base(
        base.node,
        lambda t, p=None: node.apply(base.function(t, p), p),
        ("after", node.key, base.key),
        (*base.tuned, *node.tuned),
    )


def _tuned(reader: Reader, node: Times) -> list[Base]:
    """Returns a value times a trained number as functions of what the value is a function of."""
    found = []
    for one, other in ((node.left, node.right), (node.right, node.left)):
        parameter, scale = _trained_number(one)
        if parameter is None:
            continue
        for base in bases(reader, other):
            if base.node is None:
                continue

            def times(t: Any, p: Any = None, base: Base = base, scale: float = scale, one: Any = parameter) -> Any:
                return scale * _value(p, one) * base.function(t, p)

            key = ("tuned", parameter.weight.key, scale, base.key)
            found.append(Base(base.node, times, key, (*base.tuned, parameter)))
    return found


def _trained_number(node: Node) -> tuple[Parameter | None, float]:
    """Returns the parameter of which a node is a multiple, the same at all positions, and the factor."""
    match node:
        case Parameter() if not node.random and node.weight.trained and math.prod(node.shape) == 1:
            return node, 1.0
        case Sum() if len(node.terms) == 1:
            ((c, child),) = node.terms
            parameter, scale = _trained_number(child)
            return parameter, c * scale
        case Linear() if not node.random and not node.numbers and node.offset == node.node.offset:
            # Repeated along axes; other maps of a number of one position have other offsets.
            return _trained_number(node.node)
        case _:
            return None, 1.0


def _bases_of_sum(reader: Reader, node: Sum) -> list[Base]:
    choices = [bases(reader, child) for _, child in node.terms]
    if not all(choices):
        return []
    found = []
    random = [choice for choice in choices if any(b.node is not None for b in choice)]
    for one in random[0] if random else ():
        if one.node is None:
            continue
        terms = []
        for (c, _), choice in zip(node.terms, choices, strict=True):
            match = next((b for b in choice if b.node is None or b.node is one.node), None)
            if match is None:
                break
            terms.append((c, match))
        else:

            def total(t: Any, p: Any = None, terms: Any = tuple(terms)) -> Any:
                return sum(c * b.function(t, p) for c, b in terms)

            key = ("sum", tuple((c, b.key) for c, b in terms))
            found.append(Base(one.node, total, key, tuple(q for _, b in terms for q in b.tuned)))
    return found


def common_base(choices: Sequence[Sequence[Base]]) -> list[Base] | None:
    """Returns for every argument the function of one common Gaussian node, or None."""
    if not all(choices):
        return None
    random = [choice for choice in choices if any(b.node is not None for b in choice)]
    for one in random[0] if random else ():
        picked = []
        for choice in choices:
            match = next((b for b in choice if b.node is None or b.node is one.node), None)
            if match is None:
                break
            picked.append(match)
        else:
            return picked
    return None if random else [choice[0] for choice in choices]
