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
"""Condition number of the NTK, linear regions, and lambda_min of the exact NTK of the wiring."""

BATCH = {"nasbench201": 32, "darts": 14}
"""Images for the NTK: as in the paper; of DARTS as in the released code for CIFAR-10."""

EXACT_BATCH = 64
"""Images for the exact NTK: with 32 the search of NAS-Bench-201 ends in cells of skips."""

PER_ROUND = {"nasbench201": 1, "darts": 3}
"""Operations that an edge loses in a round, as in the released code for CIFAR-10."""


def batch_sizes(space: SearchSpace, measures: Sequence[str], batch: int | None = None) -> dict[str, int]:
    """Returns how many images each measure gets: `batch`, or by default as many as suit it."""
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
    """Returns measures that supernets are pruned by.

    The NTK is that of a supernet with a stem, of NAS-Bench-201 with 3 channels and three stages of one cell, of DARTS
    with 1 channel, a normal and a reduction cell. Regions are counted of supernets of one channel without a stem, one
    stage of NAS-Bench-201 and the same two cells of DARTS, on 3 batches of 1,000 patches of 3 x 3 pixels.

    Args:
      space: The space.
      images: Images, of which each measure takes the first; patches are cut out of those of the NTK.
      measures: Out of `MEASURES`.
      batch: Images of every measure; None for `BATCH`, and for "exact" `EXACT_BATCH`.
      seed: Seed of the patches.
      classes: Outputs of the network whose NTK is taken.
      gradients: As for `Measures`.
      batch_norm: As for `Measures`; "live" is TE-NAS's, "frozen" takes one backward pass instead of one for every
        image.

    Raises:
      InputError: A name is unknown or there twice, or images or options do not fit.

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
