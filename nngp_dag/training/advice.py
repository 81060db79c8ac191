"""The largest stable learning rate of a recipe, from the kernel."""

import math

from nngp_dag.architecture import Network
from nngp_dag.data import Splits
from nngp_dag.kernels import kernel
from nngp_dag.theory import largest_stable_learning_rate
from nngp_dag.training.recipe import Recipe

_MOST_INPUTS = 256
# Largest number of entries in a kernel of images. Averaging over pixels needs the covariances of all pairs of pixels.
_MOST_ENTRIES = 1 << 26
# Largest eigenvalue of the Hessian of one example's loss in the outputs. It is 1 for 0.5 ||y - f||^2, and at most 1/2
# for the cross-entropy, whose Hessian is diag(p) - p p^T (Boehning, Ann. Inst. Stat. Math. 1992).
_LARGEST_CURVATURE = {"squared": 1.0, "cross-entropy": 0.5}


def stable_learning_rate(network: Network, recipe: Recipe, data: Splits) -> float | None:
    """Returns the learning rate below which linearized training at infinite width cannot diverge on one batch.

    A step on the mean loss of n examples multiplies deviations of the outputs by I - eta Theta H / n. Here Theta is the
    NTK, and H holds the Hessians of the examples' losses, whose largest eigenvalue is h. Without momentum training is
    stable while

        eta < 2 n / (h lambda_max(Theta));

    `largest_stable_learning_rate` derives the factor for momentum. The first n = min(batch size, 256) training examples
    stand for a batch. With convolutions, whose kernels are large, n is smaller, and so is the rate. Larger rates
    diverge for the squared loss. For the cross-entropy some do not, since it is flatter away from p = 1/2.

    Args:
      network: The architecture.
      recipe: The recipe of training.
      data: The data, whose training part is used.

    Returns:
      The learning rate, or None with batch normalization, whose live batch statistics no kernel here describes.

    Raises:
      GraphError: The network has no closed-form kernel.

    Examples:
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
