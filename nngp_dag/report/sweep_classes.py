"""Classes of networks with equal kernels in a sweep, and groups of classes that are evaluated together."""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from nngp_dag.activations import Quadrature, get_activation
from nngp_dag.architecture import Network
from nngp_dag.architecture.equivalence import KernelClasses
from nngp_dag.errors import GraphError, NngpDagError, NumericalWarning
from nngp_dag.graph import Dense
from nngp_dag.kernels import kernel
from nngp_dag.kernels.batch import new_kernel_classes
from nngp_dag.kernels.dual import dual
from nngp_dag.kernels.inputs import check_inputs

# `Network.kernel_options` in a hashable form.
Options = tuple[tuple[str, Any], ...]


class KernelSpaces:
    """Classes of networks with equal kernels, found among networks that differ only in the graph.

    Args:
      common: Options of the sweep, which most networks have.
      x: Inputs.
    """

    def __init__(self, common: Options, x: np.ndarray) -> None:
        """Starts without classes."""
        self._common, self._x = common, x
        self._of_options: dict[Options, KernelClasses] = {}
        self._known: dict[Network, tuple[str, str]] = {}
        # For every key of a class: options, number of inputs, and digest among networks with these options.
        self._places: dict[str, tuple[Options, int, str]] = {}

    def classify(self, network: Network) -> tuple[str, str]:
        """Returns the key of a network's class and "", or "" and the reason why it has no kernel."""
        if network not in self._known:
            try:
                self._known[network] = self._key(network), ""
            except NngpDagError as error:
                self._known[network] = "", str(error)
        return self._known[network]

    def _key(self, network: Network) -> str:
        if network.image_operations:
            check_inputs("x", self._x, network)
        network.check_gaussian(input_is_gaussian=True, reads_out=True)
        if len(network.dag.outputs) > 1:
            raise GraphError(f"Expected one output, got {len(network.dag.outputs)}; sweep a graph for each of them")
        options = tuple(network.kernel_options.items())
        kernel_classes = self._of_options.setdefault(options, new_kernel_classes())
        if network.pools:
            digest = kernel_classes.digest_of_edges(network)
        else:
            digest = kernel_classes.add(network)
            if kernel_classes.largest_weight(digest) > float(np.finfo(self._x.dtype).max):
                raise GraphError(f"Expected multiplicities of skips whose squares {self._x.dtype} can hold, got larger")
        key = digest if options == self._common else hashlib.sha256(f"{digest} {options!r}".encode()).hexdigest()
        self._places[key] = options, network.dag.num_inputs, digest
        return key

    def groups(self, keys: Iterable[str]) -> Iterator[tuple[KernelClasses, dict[str, str]]]:
        """Yields groups of classes that are evaluated together, each with the keys of its wanted classes by digest.

        Networks with several inputs form groups of their own. Their scales would change the rounding of the others.
        """
        found: dict[tuple[Options, int], dict[str, str]] = {}
        for key in keys:
            options, num_inputs, digest = self._places[key]
            found.setdefault((options, num_inputs), {})[digest] = key
        order = list(self._of_options)
        for (options, _), group in sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
            yield self._of_options[options], group


def operations_of(network: Network) -> tuple[Dense, ...]:
    """Returns the weighted operations of a network and its layer, of which the readout is made."""
    return *network.weighted_operations, network.layer


def is_quadrature(op: Dense) -> bool:
    """Whether the activation of an operation is integrated numerically, without a closed form."""
    return isinstance(get_activation(op.activation), Quadrature)


def is_alone(network: Network) -> bool:
    """Whether a network must be evaluated by itself."""
    operations = operations_of(network)
    if network.image_operations or any(map(is_quadrature, operations)):
        return True
    # For an activation without a dual `kernel` raises the error that becomes the reason in the table.
    return any(dual.dispatch(type(get_activation(op.activation))) is dual.dispatch(object) for op in operations)


def one_kernel(network: Network, x: np.ndarray) -> Sequence[np.ndarray] | str:
    """Returns both kernels, or the error or warning that they raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NumericalWarning)
        try:
            k = kernel(network, x)
        except (NngpDagError, NumericalWarning) as error:
            return str(error)
    return np.asarray(k.nngp), np.asarray(k.ntk)
