"""The reading of an argument as a `Dag`, with a message of one line where that is impossible."""

from typing import Any

from nngp_dag.errors import GraphError, shown
from nngp_dag.graph.codes import EXAMPLE
from nngp_dag.graph.dag import Dag

# Libraries whose models describe networks.
_MODELS = ("flax", "torch", "equinox", "haiku", "keras", "tensorflow")


def as_dag(value: Any, name: str = "dag", kinds: str = "a `Dag`") -> Dag:
    """Returns the graph that an argument stands for: a `Dag`, or a text that `Dag.parse` reads.

    Args:
      value: The value of the argument.
      name: The name of the argument in messages.
      kinds: The accepted types beside a text, as messages call them.

    Raises:
      GraphError: `value` is neither, or the text describes no graph; the message names a remedy.

    Examples:
      >>> as_dag("2_21_112")
      Dag('2_21_112')
    """
    if isinstance(value, Dag):
        return value
    if isinstance(value, str):
        return Dag.parse(value)
    origins = {base.__module__.partition(".")[0] for base in type(value).__mro__}
    if isinstance(getattr(value, "dag", None), Dag):
        whole = "`Network`" in kinds and hasattr(value, "network")
        got = f"a {type(value).__name__}"
        remedy = "pass its `.network`" if whole else "pass its `.dag`, and the options of its layers beside it"
    elif hasattr(value, "shape") and hasattr(value, "dtype"):
        got, remedy = f"an array of shape {value.shape}", f"the graph comes first, and then the data: ({EXAMPLE!r}, x)"
    elif origins.intersection(_MODELS):
        got = f"a model, {type(value).__name__}"
        remedy = "`nngp_dag.trace(model, x)` reads it, for kernels and, where it is a network, for other functions"
    elif "networkx" in origins:
        got, remedy = f"a {type(value).__name__}", "`Dag.from_networkx` reads it"
    elif isinstance(value, (list, tuple)):
        got, remedy = shown(value), "`Dag.from_edges` reads (source, target, op) triples; this takes one graph"
    else:
        got, remedy = shown(value), f"pass `Dag.from_code({EXAMPLE!r})`, or that text"
    raise GraphError(f"Expected `{name}` to be {kinds}, or a code, name or cell as text, got {got}; {remedy}")
