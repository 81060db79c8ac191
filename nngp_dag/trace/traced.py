"""A traced model: its program at infinite width, and its kernels."""

import dataclasses
import functools
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.errors import InputError, ModelError
from nngp_dag.trace.arrays import Channels, Rand
from nngp_dag.trace.functions import Function, recognize
from nngp_dag.trace.models import ModelFunction
from nngp_dag.trace.moments import Moments
from nngp_dag.trace.parameters import Weight
from nngp_dag.trace.reader import Reader
from nngp_dag.trace.values import Linear, Node, Nonlinear, Number, Product, operands


@dataclass(frozen=True, eq=False)
class Program:
    """A model's program at infinite width.

    Attributes:
      output: The node of one output unit.
      nodes: The nodes on which the output depends, operands first.
      numbers: The numbers on which it depends.
      functions: The functions of the nodes that are functions of Gaussian ones, by the numbers of the nodes.
    """

    output: Node
    nodes: tuple[Node, ...]
    numbers: tuple[Number, ...]
    functions: dict[int, Function]

    def moments(self, x1: jax.Array, x2: jax.Array, seeds: Any, *, ntk: bool) -> tuple[Any, Any]:
        """Returns the second moments and the NTK of the output at two inputs."""
        moments = Moments((x1, x2), seeds, with_tangents=ntk, functions=self.functions)
        # In the order of the nodes, so that no recursion goes deep.
        for node in self.nodes:
            for operand in operands(node) if isinstance(node, (Product, Nonlinear)) else ():
                for sides in ((0, 0), (1, 1), (0, 1)):
                    moments.pair(operand, operand, *sides)
        m, t = moments.pair(self.output, self.output, 0, 1)
        zero = jnp.zeros((*self.output.shape, *self.output.shape))
        return zero if m is None else m, (zero if t is None else t) if ntk else None


def program_of(output: Rand) -> Program:
    """Returns the program of a model's output."""
    node = output.node
    nodes: dict[int, Node] = {}
    numbers: dict[int, Number] = {}
    waiting: list[Node | Number] = [node]
    while waiting:
        one = waiting.pop()
        if one.id in nodes or one.id in numbers:
            continue
        if isinstance(one, Number):
            numbers[one.id] = one
            waiting += one.arguments
            waiting += [one.mean] if one.mean is not None else []
            waiting += list(one.pair or ())
        else:
            nodes[one.id] = one
            waiting += operands(one)
            if isinstance(one, Product):
                waiting += [o for _, o in one.operands]
            waiting += one.numbers if isinstance(one, Linear) else ()
            waiting += [one.number] if hasattr(one, "number") else []  # type: ignore[attr-defined]
    ordered = tuple(nodes[i] for i in sorted(nodes))
    functions = {n.id: _function_of(n) for n in ordered if isinstance(n, Nonlinear)}
    return Program(node, ordered, tuple(numbers.values()), functions)


def _function_of(node: Nonlinear) -> Function:
    """Returns the function of a node, shifted by the mean of its operand."""
    shift, plain = node.node.offset, node.function
    return recognize((lambda t: plain(t + shift)) if shift else plain, node.place)
