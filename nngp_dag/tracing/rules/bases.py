"""Nodes as functions of one Gaussian node, whose expectations then have a closed form."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from nngp_dag.tracing.reader import Reader
from nngp_dag.tracing.values import Fixed, Node, Nonlinear, Sum


class Base(NamedTuple):
    """A node as a function of a Gaussian node.

    Attributes:
      node: The Gaussian node.
      function: The function of one array.
      key: A hashable value that stands for the function.
    """

    node: Node | None
    function: Callable[[Any], Any]
    key: Hashable


def constant(value: float | bool) -> Base:
    """Returns a number as a function of any node."""
    return Base(None, lambda t: jnp.asarray(value, bool if isinstance(value, bool) else t.dtype), ("constant", value))


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
            found.append(Base(node, lambda t: t, "x"))
        if isinstance(node, Nonlinear):
            for base in bases(reader, node.node):
                found.append(_after(node, base))
        if isinstance(node, Sum):
            found += _bases_of_sum(reader, node)
    memo[node.id] = found
    return found


def _after(node: Nonlinear, base: Base) -> Base:
    """Returns a function of a Gaussian node as a function of the one that this node is a function of."""
    if base.node is node.node and base.key == "x":
        return Base(node.node, node.function, node.key)
    return Base(base.node, lambda t: node.function(base.function(t)), ("after", node.key, base.key))


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

            def total(t: Any, terms: Any = tuple(terms)) -> Any:
                return sum(c * b.function(t) for c, b in terms)

            found.append(Base(one.node, total, ("sum", tuple((c, b.key) for c, b in terms))))
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
