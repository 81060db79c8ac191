"""Trained parameters with one entry for all channels, whose share in the NTK is not that of independent entries."""

from collections.abc import Sequence

from nngp_dag.tracing.values import Node, Number, Parameter, Product, heads, operands


def without_ntk(nodes: Sequence[Node], numbers: Sequence[Number]) -> str:
    """Returns the reason for which a program has no NTK here because of a parameter that all channels share, or "".

    The gradient of such a parameter sums over all channels. It is that of independent entries, in the mean, as long as
    the channels' own gradients are independent with mean 0. That fails where a mean over channels depends on the
    parameter, since all channels depend on that mean; and where the parameter is used at two depths, since gradients
    then meet with themselves.
    """
    shared = [n for n in nodes if isinstance(n, Parameter) and n.weight.trained and n.weight.entries.shape[-1] == 1]
    for parameter in shared:
        below = _depending(nodes, parameter)
        averaged = [n.mean for n in numbers if n.mean is not None] + [u for n in numbers for u in n.pair or ()]
        problem = ""
        if any(node.id in below for node in averaged):
            problem = "a mean over channels depends on it"
        elif any(_deeper(node, below) and node.sources & parameter.sources for node in nodes):
            problem = "it is used at two depths"
        if problem and _has_channels(nodes, parameter):
            return (
                f"{parameter.weight.place}: Expected trained parameters with an entry for each channel, got "
                f"`{parameter.weight.name}`, which all channels share, while {problem}; its share in the NTK has no "
                "closed form here: give it one entry per channel, or ask for the NNGP alone (get='nngp')"
            )
    return ""


def _depending(nodes: Sequence[Node], parameter: Parameter) -> set[int]:
    """Returns the numbers of the nodes that depend on a parameter, also through products."""
    found: set[int] = set()
    for node in nodes:
        if node.sources & parameter.sources or any(one.id in found for one in operands(node)):
            found.add(node.id)
    return found


def _deeper(node: Node, below: set[int]) -> bool:
    """Whether a node contains a product whose operand depends on the parameter."""
    return any(o.id in below for head in heads(node) for o in operands(head))


def _has_channels(nodes: Sequence[Node], parameter: Parameter) -> bool:
    """Whether the parameter acts below another product, and not on the single units of the output alone."""
    below = _depending(nodes, parameter)
    return any(isinstance(node, Product) and any(o.id in below for o in operands(node)) for node in nodes)
