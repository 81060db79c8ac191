"""Which networks of a sweep have equal kernels, and which of them are evaluated together."""

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

# `Network.kernel_options`, hashable.
Options = tuple[tuple[str, Any], ...]


class KernelSpaces:
    """Classes of networks with equal kernels, among those that agree in all but the graph."""

    def __init__(self, common: Options, x: np.ndarray) -> None:
        """`common` are the options of the sweep, `x` the inputs."""
        self._common, self._x = common, x
        self._of_options: dict[Options, KernelClasses] = {}
        self._known: dict[Network, tuple[str, str]] = {}
        # Of a key: what its networks agree in, and their digest there.
        self._places: dict[str, tuple[Options, int, str]] = {}

    def classify(self, network: Network) -> tuple[str, str]:
        """Returns the key of the class of a network's kernels, or why it has none."""
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
        """Yields what is evaluated together: classes, and {digest: key} of those that are wanted.

        Networks of several inputs have other scales; beside them the others would round otherwise.
        """
        found: dict[tuple[Options, int], dict[str, str]] = {}
        for key in keys:
            options, num_inputs, digest = self._places[key]
            found.setdefault((options, num_inputs), {})[digest] = key
        order = list(self._of_options)
        for (options, _), group in sorted(found.items(), key=lambda item: (order.index(item[0][0]), item[0][1])):
            yield self._of_options[options], group


def operations_of(network: Network) -> tuple[Dense, ...]:
    """Returns what a network applies, and what its readout is made of."""
    return *network.weighted_operations, network.layer


def is_quadrature(op: Dense) -> bool:
    """Whether an operation has an activation without a formula."""
    return isinstance(get_activation(op.activation), Quadrature)


def is_alone(network: Network) -> bool:
    """Whether a network is evaluated by itself."""
    operations = operations_of(network)
    if network.image_operations or any(map(is_quadrature, operations)):
        return True
    # Of an activation without a dual `kernel` says so.
    return any(dual.dispatch(type(get_activation(op.activation))) is dual.dispatch(object) for op in operations)


def one_kernel(network: Network, x: np.ndarray) -> Sequence[np.ndarray] | str:
    """Returns both kernels, or why they cannot be trusted."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", NumericalWarning)
        try:
            k = kernel(network, x)
        except (NngpDagError, NumericalWarning) as error:
            return str(error)
    return np.asarray(k.nngp), np.asarray(k.ntk)
