"""Exact loss curves of linearised training at infinite width."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float

from nngp_dag.errors import InputError
from nngp_dag.kernels import Kernel
from nngp_dag.theory.bounds import check_steps
from nngp_dag.theory.spectrum import check_symmetric


def expected_loss(k: Kernel, y: ArrayLike, learning_rate: float, steps: int) -> Float[np.ndarray, "{steps}+1"]:
    """Returns the mean training loss over random initialisations, exact for linearised gradient descent.

    L(k) = 0.5 ||y - f(k)||^2, summed over samples and output columns, under full-batch gradient descent on L in the NTK
    parameterisation: f(k + 1) = f(k) - eta NTK (f(k) - y), f(0) ~ N(0, NNGP) independently per column. Hence per column

        E ||y - f(k)||^2 = sum_i (1 - eta lambda_i)^(2k) ((v_i . y)^2 + v_i^T NNGP v_i),

    (lambda_i, v_i) the eigenpairs of the NTK. It is computed in float64, in O(N^3) time and O(N^2) memory.

    Args:
      k: The kernel of the training inputs, after the readout, (N, N).
      y: Targets, (N,) or (N, C).
      learning_rate: eta, of gradient descent on L as above (not on a mean over samples).
      steps: Number of steps.

    Returns:
      The mean of L before the first step and after each one, (steps + 1,).

    Raises:
      InputError: Shapes do not match, `y` is not finite, or eta is not in (0, 2 / lambda_max), outside of which
        training diverges.

    Example:
      >>> import numpy as np, nngp_dag as nd
      >>> k = nd.Kernel(nngp=np.eye(2), ntk=np.diag([1.0, 0.5]))
      >>> nd.expected_loss(k, np.array([1.0, 0.0]), learning_rate=1.0, steps=2)
      array([1.5    , 0.125  , 0.03125])

    Reference: Lee et al., NeurIPS 2019 (linearised training); the mean over f(0) is elementary.
    """
    ntk, nngp = check_symmetric("k.ntk", k.ntk), check_symmetric("k.nngp", k.nngp)
    if nngp.shape != ntk.shape:
        raise InputError(f"Expected `k.nngp` and `k.ntk` of one shape, got {nngp.shape} and {ntk.shape}")
    targets = np.asarray(y, np.float64)
    if targets.ndim == 1:
        targets = targets[:, None]
    if targets.ndim != 2 or targets.shape[0] != len(ntk) or targets.shape[1] < 1:
        raise InputError(f"Expected `y` to have shape ({len(ntk)},) or ({len(ntk)}, C), got {np.shape(y)}")
    if not np.isfinite(targets).all():
        raise InputError("Expected `y` to be finite, got NaN or infinity")
    check_steps(steps)
    with jax.enable_x64(True):
        eigenvalues, vectors = jnp.linalg.eigh(jnp.asarray(ntk, jnp.float64))
        from_targets = jnp.sum((vectors.T @ targets) ** 2, axis=1)
        from_start = targets.shape[1] * jnp.sum(vectors * (jnp.asarray(nngp, jnp.float64) @ vectors), axis=0)
        lambda_max = float(eigenvalues[-1])
        limit = 2 / lambda_max if lambda_max > 0 else float("inf")
        if not 0 < learning_rate < limit:
            raise InputError(
                f"Expected `learning_rate` between 0 and 2 / lambda_max(NTK) = {limit:.4g}, got "
                f"{learning_rate}; gradient descent diverges beyond"
            )
        decay = (1 - learning_rate * eigenvalues[None, :]) ** (2 * jnp.arange(steps + 1)[:, None])
        return np.asarray(0.5 * decay @ (from_targets + from_start))
