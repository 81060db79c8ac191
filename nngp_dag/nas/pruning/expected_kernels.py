"""Measures supernets by exact kernels: the mean of λmin of the exact NTK over the wirings of their cells."""

import itertools
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from nngp_dag.architecture import Network, as_network
from nngp_dag.errors import InputError, NumericalWarning
from nngp_dag.graph import Dag
from nngp_dag.graph.edge import Edge
from nngp_dag.graph.operations import Op
from nngp_dag.kernels.batch import kernels_of_classes, new_kernel_classes
from nngp_dag.nas.pruning.measures import Found
from nngp_dag.nas.scores.wiring import on_sphere
from nngp_dag.nas.spaces.search_space import SearchSpace
from nngp_dag.theory import spectrum

# Kernels per compiled program.
_BATCH = 8
# Largest number of wirings for an exact mean. Where there are more, a sample is drawn.
_LISTED = 1024

_KINDS = (None, Op.SKIP, Op.WEIGHTED)

Wiring = tuple[tuple[int, ...], ...]
"""A number for every cell type and edge: 0 for no edge, 1 for a skip, 2 for a weighted edge."""


def wiring_dag(space: SearchSpace, wiring: Sequence[Sequence[int]]) -> Dag:
    """Returns the graph of a chain of cells, one of each type, as in the supernets of TE-NAS.

    The last input of a cell that follows another is a weighted edge from the output of the cell before. It stands for
    the convolution in front of a DARTS cell. All other inputs are inputs of the graph, which read the same data through
    weights of their own. The output of a cell is the sum of its output nodes, as in `Dag.from_darts`. Where no path
    leads through the cells, the graph is disconnected.

    Args:
      space: The search space.
      wiring: One sequence for each cell type, with one number for each edge; see `Wiring`.

    Examples:
      >>> from nngp_dag.nas import get_space
      >>> wiring_dag(get_space("nasbench201"), [[2, 0, 2, 0, 1, 1]]).depth_histogram
      {1: 1, 2: 1}
    """
    stems = space.num_inputs + (len(wiring) - 1) * (space.num_inputs - 1)
    edges: list[Edge] = []
    count, taken = stems, 0
    output: int | None = None
    for kinds in wiring:
        place = dict(enumerate(range(taken, taken + space.num_inputs)))
        taken += space.num_inputs - (output is not None)
        if output is not None:
            place[space.num_inputs - 1] = count
            edges.append(Edge(output, count, Op.WEIGHTED))
            count += 1
        for node in range(space.num_inputs, 1 + max(target for _, target in space.edges)):
            place[node], count = count, count + 1
        for (source, target), kind in zip(space.edges, kinds, strict=True):
            op = _KINDS[kind]
            edges += [Edge(place[source], place[target], op)] if op else []
        output, count = count, count + 1
        edges += [Edge(place[node], output, Op.SKIP) for node in space.outputs]
    return Dag(count, tuple(edges), allow_disconnected=True, num_inputs=stems)


class ExpectedKernels:
    """The mean of λmin of the exact NTK over the cells of a supernet.

    A random cell of the supernet carries one live operation on each edge, drawn by the weights of the mixture. Its
    wiring stands for a fully connected ReLU network of infinite width, on images scaled to |x|^2 = d. The mean is
    exact over up to 1,024 wirings. Beyond that, it is the mean over a sample whose random numbers all candidates share.
    A wiring without a path has λmin = 0. A search computes each distinct kernel once.

    Args:
      space: The search space.
      images: Images, (n, ...); each is flattened to a row of d numbers.
      draws: Size of the sample, where there are more than 1,024 wirings.

    Raises:
      InputError: There are fewer than two images, no draws, or an image is all zero.

    Examples:
      >>> from nngp_dag.nas import ExpectedKernels, get_space
      >>> space = get_space("nasbench201")
      >>> expected = ExpectedKernels(space, np.eye(3).reshape(3, 3, 1, 1))
      >>> one_skip = np.zeros((1, 1, 6, 5))
      >>> one_skip[0, 0, 3, space.operations.index("skip_connect")] = 1  # input to output
      >>> expected.lambda_min(one_skip, seed=0).values.round(2)
      array([3.36])
    """

    def __init__(self, space: SearchSpace, images: Float[np.ndarray, "n *shape"], draws: int = 32) -> None:
        """Scales the images."""
        if len(images) < 2:
            raise InputError(f"Expected `images` to hold at least 2 images, got {len(images)}")
        if draws < 1:
            raise InputError(f"Expected `draws` to be at least 1, got {draws}")
        self._space, self._inputs, self._draws = space, on_sphere(images), draws
        self._kernel_classes = new_kernel_classes()
        self._class_of: dict[Wiring, str | None] = {}
        # By class: lambda_min, or why there is none.
        self._known: dict[str | None, float | str] = {None: 0.0}

    def lambda_min(self, mixtures: Float[np.ndarray, "candidates types edges operations"], seed: int) -> Found:
        """Returns the mean of λmin for every supernet.

        Args:
          mixtures: Weights of the operations on every edge, (candidates, cell types, edges, operations).
          seed: Seed of the sample, where there is one.

        Returns:
          A `Found` with one mean per candidate. It is NaN, with a reason, where λmin of some wiring is not resolved.
        """
        wirings = [self._wirings(mixture, seed) for mixture in mixtures]
        self._measure({wiring for found in wirings for wiring in found})
        values, reasons = [], []
        for found in wirings:
            numbers = [(self._known[self._class_of[wiring]], p) for wiring, p in found.items()]
            reason = next((number for number, _ in numbers if isinstance(number, str)), "")
            values.append(np.nan if reason else sum(float(number) * p for number, p in numbers))
            reasons.append(reason)
        return Found(np.array(values), tuple(reasons))

    def _wirings(self, mixture: np.ndarray, seed: int) -> dict[Wiring, float]:
        """Returns the wirings of a supernet, with their probabilities or their shares of the sample."""
        mixture = np.asarray(mixture, np.float64)
        # A kernel depends on the kind of an edge only. Operations of one kind are one event: far fewer wirings remain.
        kinds = np.stack([mixture[..., self._space.skips].sum(-1), mixture[..., self._space.weighted].sum(-1)], -1)
        # An edge without live operations is absent with probability 1. Live weights are float32 and need not sum to 1;
        # the rest is rounding, not a probability of absence, so that they are normalized below.
        nothing = mixture[..., [self._space.operations.index("none")]] + (mixture.sum(-1, keepdims=True) == 0)
        kinds = np.concatenate([nothing, kinds], -1).reshape(-1, len(_KINDS))
        kinds /= kinds.sum(-1, keepdims=True)
        shape = mixture.shape[:2]
        found: dict[Wiring, float] = {}
        if np.prod((kinds > 0).sum(-1), dtype=float) <= _LISTED:
            for codes in itertools.product(*(np.flatnonzero(edge) for edge in kinds)):
                p = float(np.prod(kinds[range(len(kinds)), codes]))
                found[_wiring(np.array(codes).reshape(shape))] = p
            return found
        # Common random numbers: a draw is the same quantile for every candidate, so that equal edges carry equal
        # operations. Two candidates then differ by the edge in question only, and the noise of the sample cancels.
        quantiles = np.random.default_rng(seed).random((self._draws, len(kinds), 1))
        for codes in (quantiles > kinds.cumsum(-1)[..., :-1]).sum(-1):
            wiring = _wiring(codes.reshape(shape))
            found[wiring] = found.get(wiring, 0.0) + 1 / self._draws
        return found

    def _measure(self, wirings: set[Wiring]) -> None:
        left = {}
        for wiring in sorted(wirings - self._class_of.keys()):
            dag = wiring_dag(self._space, wiring)
            if not dag.num_paths:
                self._class_of[wiring] = None
                continue
            network = as_network(dag)
            self._class_of[wiring] = digest = self._kernel_classes.add(network)
            if digest not in self._known:
                left[digest] = network
        if left:
            for digest, ntk in zip(left, self._ntks(list(left), next(iter(left.values()))), strict=True):
                self._known[digest] = _lambda_min(ntk)

    def _ntks(self, digests: list[str], network: Network) -> Iterator[np.ndarray]:
        stacks = kernels_of_classes(self._kernel_classes, digests, network, self._inputs, batch=_BATCH)
        for stack in stacks:
            yield from stack.ntk


def _wiring(codes: Int[np.ndarray, "types edges"]) -> Wiring:
    return tuple(map(tuple, codes.tolist()))


def _lambda_min(ntk: np.ndarray) -> float | str:
    """Returns λmin, or the reason why it is below the resolution floor."""
    with warnings.catch_warnings():
        # An unresolved λmin becomes a reason instead of a warning.
        warnings.simplefilter("ignore", NumericalWarning)
        found = spectrum(ntk)
    return found.lambda_min if found.resolved else f"Expected a resolved λmin of the exact NTK, got < {found.floor:.2g}"
