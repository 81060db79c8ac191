"""A traced model in words: what was read, what is infinite, what is shared, and what was assumed."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from nngp_dag.errors import shorten
from nngp_dag.tracing.values import Linear, Node, Nonlinear, Number, Parameter, Product, Sum, Times

if TYPE_CHECKING:
    from nngp_dag.tracing.traced import Traced

# Rows of a list that are shown.
_MOST = 40


def summary(traced: "Traced") -> str:
    """Returns what a trace has read and assumed, in lines."""
    nodes = traced.program.nodes
    products = [node for node in nodes if isinstance(node, Product)]
    inputs = traced.shape[1:] if traced.batch_axis == 0 else traced.shape
    sizes = " x ".join(map(str, inputs)) or "one number"
    lines = [f"{traced.model.name}: inputs of {sizes}, {_count(traced.units, 'output unit')}"]
    lines += _section("matrix products", _products(products))
    parameters = [node for node in nodes if isinstance(node, Parameter)]
    lines += _section("added or multiplied parameters", [_parameter(node) for node in parameters])
    lines += _section("functions of Gaussian values", _functions(traced))
    others = Counter(_kind(node) for node in nodes if isinstance(node, (Sum, Linear, Times)))
    lines += _section("other operations", [", ".join(f"{kind}: {n}" for kind, n in sorted(others.items()))])
    lines += _section("taken to be infinite", [f"{what} {n} entries" for what, n in traced.infinite.items()])
    lines += _section("assumed", _assumptions(traced))
    network = traced.network
    lowered = f"yes, {network}" if network is not None else f"no: {traced.reason}"
    return "\n".join([*lines, f"a Network: {lowered}"])


def _section(title: str, rows: Sequence[str]) -> list[str]:
    rows = [row for row in rows if row]
    if not rows:
        return []
    more = [f"... and {len(rows) - _MOST} more"] if len(rows) > _MOST else []
    return [title, *(f"  {row}" for row in [*rows[:_MOST], *more])]


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'s' if n != 1 else ''}"


def _products(nodes: Sequence[Product]) -> list[str]:
    """Returns the products by weight; a weight that several products share is stated once."""
    uses = Counter(node.weight.key for node in nodes)
    weights = {node.weight.key: node.weight for node in nodes}
    rows = []
    for key, count in uses.items():
        weight = weights[key]
        shape = " x ".join(map(str, weight.entries.shape))
        shared = f", shared by {count} products" if count > 1 else ""
        rows.append(f"{weight.name} ({shape}), {weight.distribution}{shared}{_place(weight.place)}")
    return rows


def _parameter(node: Parameter) -> str:
    return f"{node.weight.name}, {node.weight.distribution}{_place(node.weight.place)}"


def _place(place: str) -> str:
    return f", at {place}" if place else ""


def _functions(traced: "Traced") -> list[str]:
    functions = traced.program.functions
    nodes = [node for node in traced.program.nodes if isinstance(node, Nonlinear)]
    found = Counter((functions[node.id].name, node.place) for node in nodes)
    return [f"{name}{f' ({n} times)' if n > 1 else ''}{_place(place)}" for (name, place), n in found.items()]


def _kind(node: Node) -> str:
    return {Sum: "sum", Linear: "linear map of finite axes", Times: "product of values"}[type(node)]


def _assumptions(traced: "Traced") -> list[str]:
    model = traced.model
    sources: dict[str, list[str]] = {}
    for leaf in model.leaves:
        sources.setdefault(leaf.distribution.source, []).append(leaf.name)
    rows = [f"distributions by {source}: {shorten(', '.join(names), 200)}" for source, names in sources.items()]
    if model.width is None:
        rows.append("every axis that a matrix product or a mean of channels sums over is infinite")
    orthogonal = [leaf.name for leaf in model.leaves if leaf.distribution.kind == "orthogonal"]
    if orthogonal:
        rows.append(f"orthogonal matrices as wide as Gaussian ones of equal variance: {', '.join(orthogonal)}")
    if traced.program.approximate:
        rows.append(f"approximate shares in the NTK, of order 1 / width: {', '.join(traced.program.approximate)}")
    rows += _neglected(traced)
    if traced.parameterization == "own":
        rows.append("the NTK is that of the model's own parameters at its own width")
    else:
        rows.append("the NTK is that of parameters in units of their standard deviations")
    return rows


def _neglected(traced: "Traced") -> list[str]:
    """Returns what counts as Gaussian and is not: sums over finitely many weights, and added parameters."""
    rows = []
    for node in traced.program.nodes:
        distribution = node.weight.distribution if isinstance(node, (Product, Parameter)) else None
        if distribution is None or distribution.std == 0 or distribution.kind == "normal":
            continue
        if isinstance(node, Product) and any(isinstance(o, Number) for _, o in node.operands):
            terms = int(np.prod(node.weight.entries.shape[:-1]))
            size = abs(distribution.excess_kurtosis) / max(terms, 1)
            rows.append(
                f"sums of {terms} {distribution.kind} weights of {node.weight.name} count as Gaussian: their second "
                f"moments are exact, but functions of them neglect an excess kurtosis of {size:.2g} (inputs of equal "
                "size; more for sparse ones); kernels warn if that matters"
            )
        elif isinstance(node, Parameter):
            rows.append(f"the {distribution.kind} parameter {node.weight.name} counts as Gaussian, too")
    return rows
