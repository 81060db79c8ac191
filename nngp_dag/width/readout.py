"""The part of a network's loss that the draw of its readout explains: `readout_noise`."""

from collections.abc import Sequence
from typing import SupportsIndex, Unpack

import numpy as np
from jaxtyping import ArrayLike, Float

from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_whole
from nngp_dag.kernels import kernel
from nngp_dag.nets import chosen_seeds
from nngp_dag.width.arguments import check_network, checked_data, learning_rate_of
from nngp_dag.width.sampling import Training, noise_of_readouts


def readout_noise(
    network: Network | Dag | str | NetworkSource,
    x: ArrayLike,
    y: ArrayLike,
    *,
    steps: int,
    learning_rate: float | str,
    seeds: SupportsIndex | Sequence[int],
    **architecture: Unpack[Architecture],
) -> Float[np.ndarray, "seeds points"]:
    """Returns the part of each network's loss that the draw of its readout explains, after 0 to K steps.

    It is linearized training at infinite width from the network's own f(0), minus its mean over readouts, which has a
    closed form. So its own mean is 0 at every width. Losses minus this part have the same mean, and much less spread.

    Args:
      network: The network, as for `nngp_dag.width_effects`.
      x: Inputs, (N, d) with N >= 2.
      y: Targets, (N, C) or (N,).
      steps: Number K of steps of gradient descent.
      learning_rate: Learning rate eta on L = 0.5 ||y - f||^2; "auto" for 1 / lambda_max of the NTK.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves. They name the same networks as in
        `nngp_dag.nets.descend` and `nngp_dag.compare`.
      **architecture: Options of the network, see `nngp_dag.kernel`, among them `width`.

    Returns:
      The noise, (S, K + 1).

    Raises:
      InputError: `nngp_dag.width_effects` would refuse the network, the data, or an option, or `seeds` are not distinct
        whole numbers.
      GraphError: The network has several inputs or outputs.
      ModelError: A traced model is no `Network`.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> from nngp_dag.width import readout_noise
      >>> x = np.random.default_rng(0).normal(size=(4, 6))
      >>> result = nd.compare("2", x, np.eye(4), width=256, seeds=16, steps=3)[0]
      >>> noise = readout_noise("2", x, np.eye(4), width=256, seeds=16, steps=3, learning_rate=result.learning_rate)
      >>> noise.shape, bool((result.curves - noise)[:, 0].std() < 0.5 * result.curves[:, 0].std())
      ((16, 4), True)
    """
    network = as_network(network, "network", readout_noise, **architecture)
    check_network(network)
    steps, chosen = check_whole("steps", steps, 1), chosen_seeds(seeds)
    x, y = checked_data(network, x, y)
    ntk = np.asarray(kernel(network, x, get="ntk", dtype="float64").ntk)
    eta = learning_rate_of(learning_rate, float(np.linalg.eigvalsh(ntk)[-1]))
    training = Training(network, x.astype(np.float32), y, ntk, eta, steps)
    return noise_of_readouts(training, network.width, chosen)
