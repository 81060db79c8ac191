"""What the kernel says of a learning rate."""

import math

from nngp_dag.architecture import Network
from nngp_dag.data import Splits
from nngp_dag.kernels import kernel
from nngp_dag.theory import largest_stable_learning_rate
from nngp_dag.training.recipe import Recipe

_MOST_INPUTS = 256
# Entries of a kernel of images; averaging over pixels needs the covariances of all their pairs.
_MOST_ENTRIES = 1 << 26
# Eigenvalues of the Hessian of one example's loss in the outputs are at most this: 1 of 0.5 ||y - f||^2, 1/2 of the
# cross entropy, whose Hessian is diag(p) - p p^T (Boehning, Ann. Inst. Stat. Math. 1992).
_LARGEST_CURVATURE = {"squared": 1.0, "cross-entropy": 0.5}


def stable_learning_rate(network: Network, recipe: Recipe, data: Splits) -> float | None:
    """Returns the learning rate below which linearized training at infinite width cannot diverge on one batch.

    A step on the mean loss of n examples with NTK Theta multiplies deviations of the outputs by I - eta Theta H / n, H
    the Hessians of the examples' losses: stable while eta < 2 n / (h lambda_max(Theta)), h their largest eigenvalue,
    and with momentum as in `largest_stable_learning_rate`. The first n = min(batch size, 256) training examples stand
    for a batch; fewer images under convolutions, whose kernels are large, which makes the rate smaller. For the squared
    loss larger rates diverge; for cross entropy, flatter away from p = 1/2, some do not.

    Args:
      network: The architecture.
      recipe: How it is trained.
      data: What it trains on.

    Returns:
      The rate, or None with batch normalization, which no kernel here describes.

    Raises:
      GraphError: The network has no closed-form kernel.

    Example:
      >>> from nngp_dag.data import load_splits
      >>> rate = stable_learning_rate(Network("2_12"), Recipe(), load_splits("digits", subset=500))
      >>> 1e-2 < rate < 1
      True

    Reference: Lee et al., NeurIPS 2019, Section 2.2 (linearized training and its largest rate).
    """
    if recipe.batch_norm:
        return None
    inputs = min(recipe.batch_size, _MOST_INPUTS)
    if network.image_operations:
        pixels = math.prod(data.train.x.shape[1:3])
        entries = pixels**2 if network.pools or network.image_readout == "global-average" else pixels
        inputs = min(inputs, max(2, math.isqrt(_MOST_ENTRIES // entries)))
    x = data.train.x[:inputs]
    ntk = kernel(network, x if network.image_operations else x.reshape(len(x), -1), get="ntk").ntk
    curvature = _LARGEST_CURVATURE[recipe.loss] / len(x)
    return largest_stable_learning_rate(ntk, momentum=recipe.momentum, nesterov=recipe.nesterov) / curvature
