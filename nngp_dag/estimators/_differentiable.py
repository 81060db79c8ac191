"""What covariance functions of all libraries share: kernels as functions of numbers, and a word on absent libraries."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.core

from nngp_dag.architecture import Network, as_network
from nngp_dag.errors import InputError, MissingLibraryError
from nngp_dag.kernels import kernel


def one_output(network: Any, **architecture: Any) -> Network:
    """Returns the network that an argument and the given options stand for; options that are None are left out.

    Raises:
      GraphError: `network` is no graph.
      InputError: An option is refused, or the network has several outputs.
    """
    found = as_network(network, "network", **{name: v for name, v in architecture.items() if v is not None})
    if (outputs := len(found.dag.outputs)) > 1:
        raise InputError(f"Expected `network` to have one output node, got {outputs}; take one network per output")
    return found


def kernel_at(network: Network, x1: Any, x2: Any, kind: str, w_std: Any, b_std: Any) -> Any:
    """Returns the NNGP or NTK at other numbers of the layer, which JAX may trace, (N1, N2).

    Args:
      network: The network.
      x1: Inputs, (N1, d).
      x2: Other inputs, (N2, d), or None for `x1`.
      kind: "nngp" or "ntk".
      w_std: Standard deviation of the weights of the layer.
      b_std: Standard deviation of its biases; None for a layer without biases.
    """
    given = {"w_std": w_std} if b_std is None else {"w_std": w_std, "b_std": b_std}
    numbers = {name: v if isinstance(v, jax.core.Tracer) else float(v) for name, v in given.items()}
    return getattr(kernel(network, x1, x2, get=kind, parameters={"layer": numbers}), kind)


def missing(extra: str, libraries: Iterable[str], error: ModuleNotFoundError) -> ImportError:
    """Returns the error to raise for a module that is absent: one with a remedy if it belongs to these libraries."""
    if (error.name or "").partition(".")[0] not in libraries:
        return error
    return MissingLibraryError(
        f"Expected `{error.name}` to be installed for `nngp_dag.estimators.{extra}`, got no such library; install it "
        f"by pip install 'nngp-dag[{extra}]'"
    )
