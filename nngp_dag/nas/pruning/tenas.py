"""The measures of TE-NAS for its two spaces, with the sizes of its networks."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from nngp_dag.errors import InputError
from nngp_dag.graph.operations import check_option
from nngp_dag.nas.pruning.expected_kernels import ExpectedKernels
from nngp_dag.nas.pruning.measures import BATCH_NORMS, GRADIENTS, darts_measures, nasbench201_measures
from nngp_dag.nas.pruning.regions import patches
from nngp_dag.nas.pruning.rounds import Measure
from nngp_dag.nas.spaces.search_space import SearchSpace

MEASURES = ("ntk", "regions", "exact")
"""Condition number of the NTK, number of linear regions, and mean λmin of the exact NTK of the wiring."""

BATCH = {"nasbench201": 32, "darts": 14}
"""Images per batch of the NTK: 32 as in the paper, and 14 for DARTS as in the released code for CIFAR-10."""

EXACT_BATCH = 64
"""Images per batch of the exact NTK. With 32 the search of NAS-Bench-201 ends in cells of skips only."""

PER_ROUND = {"nasbench201": 1, "darts": 3}
"""Number of operations that an edge loses in a round, as in the released code for CIFAR-10."""


def batch_sizes(space: SearchSpace, measures: Sequence[str], batch: int | None = None) -> dict[str, int]:
    """Returns the number of images of each measure.

    Args:
      space: The search space.
      measures: Names of measures; see `tenas_measures`.
      batch: Number of images per measure. None for the defaults: 64 for "exact", and for the other measures 32 on
        NAS-Bench-201 and 14 on DARTS.

    Returns:
      The number of images by the name of the measure.

    Examples:
      >>> from nngp_dag.nas import batch_sizes, get_space
      >>> batch_sizes(get_space("darts"), ["ntk", "exact"])
      {'ntk': 14, 'exact': 64}
    """
    defaults = {name: EXACT_BATCH if name == "exact" else BATCH[space.name] for name in measures}
    return defaults if batch is None else dict.fromkeys(defaults, batch)


def tenas_measures(
    space: SearchSpace,
    images: Float[np.ndarray, "n *shape"],
    measures: Sequence[str],
    *,
    batch: int | None = None,
    seed: int = 0,
    classes: int = 10,
    gradients: str = "all",
    batch_norm: str = "frozen",
) -> list[Measure]:
    """Returns the measures that compare the supernets of a search.

    The NTK is that of a supernet with a stem. On NAS-Bench-201 the supernet has 3 channels and three stages of one
    cell. On DARTS it has 1 channel, a normal and a reduction cell. Linear regions are counted on supernets with one
    channel and without a stem: one cell of NAS-Bench-201, or the same two cells of DARTS. The inputs are 3 batches of
    1,000 patches of 3 x 3 pixels.

    Args:
      space: The search space.
      images: Images, (n, height, width, channels), or (n, ...) for "exact" alone. Each measure takes the first of them;
        patches are cut out of those of the NTK.
      measures: Names out of "ntk" (condition number of the NTK), "regions" (number of linear regions) and "exact" (mean
        λmin of the exact NTK).
      batch: Number of images per measure. None for the defaults; see `batch_sizes`.
      seed: Seed of the patches.
      classes: Number of outputs of the network whose NTK is measured.
      gradients: Weights that the gradients are taken with respect to, as for `Measures`.
      batch_norm: Batch statistics, as for `Measures`. "live" is TE-NAS's choice, and takes one backward pass per image.
        "frozen" takes one backward pass in all.

    Returns:
      One `Measure` per name, in the order of `measures`.

    Raises:
      InputError: A name is unknown or occurs twice, or images or options do not fit.

    Examples:
      >>> from nngp_dag.nas import get_space, tenas_measures
      >>> x = np.random.default_rng(0).normal(size=(64, 8, 8, 3))
      >>> [(m.name, m.higher) for m in tenas_measures(get_space("darts"), x, ["ntk", "exact"])]
      [('ntk', False), ('exact', True)]

    Reference: Chen, Gong, Wang, TE-NAS, ICLR 2021, Section 4 and released code.
    """
    if not measures:
        raise InputError(f"Expected `measures` out of {', '.join(MEASURES)}, got none")
    for name in measures:
        check_option("measures", name, MEASURES)
    if len(set(measures)) < len(measures):
        raise InputError(f"Expected `measures` to be different ones, got {', '.join(measures)}")
    check_option("gradients", gradients, GRADIENTS)
    check_option("batch_norm", batch_norm, BATCH_NORMS)
    sizes = batch_sizes(space, MEASURES, batch)
    found = []
    if {"ntk", "regions"} & set(measures):
        if images.ndim != 4:
            raise InputError(f"Expected `images` to be (n, height, width, channels) for networks, got {images.shape}")
        of_space = {"nasbench201": nasbench201_measures, "darts": darts_measures}[space.name]
        first = images[: sizes["ntk"]]
        small = patches(first, seed)
        networks = of_space(first, small, classes=classes, gradients=gradients, batch_norm=batch_norm)
        found += [Measure("ntk", networks.ntk_conditions, False), Measure("regions", networks.linear_regions, True)]
    if "exact" in measures:
        found.append(Measure("exact", ExpectedKernels(space, images[: sizes["exact"]]).lambda_min, True))
    return [next(measure for measure in found if measure.name == name) for name in measures]
