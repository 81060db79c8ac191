"""Kernels of a network as covariance functions of `sklearn.gaussian_process`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.gaussian_process.kernels import Hyperparameter, Kernel

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError
from nngp_dag.estimators._differentiable import kernel_at, one_output
from nngp_dag.estimators._matrices import diagonal, matrix, padded

BOUNDS = (1e-2, 1e2)


@functools.lru_cache(maxsize=64)
def _gradient(network: Network, kind: str, free: tuple[str, ...]) -> Callable[..., Any]:
    """Returns a compiled function for a kernel's derivatives with respect to logarithms of free numbers, (N, N, P)."""

    def of_logarithms(logs: Any, fixed: dict[str, Any], x: Any) -> Any:
        numbers = fixed | {name: jnp.exp(logs[i]) for i, name in enumerate(free)}
        return kernel_at(network, x, None, kind, numbers["w_std"], numbers.get("b_std"))

    return jax.jit(jax.jacfwd(of_logarithms))


class _NetworkKernel(Kernel):
    """The covariance function of a network, with the numbers of its layer as hyperparameters."""

    _kind: ClassVar[str]

    def __init__(
        self,
        network: Any = "2_21_112",
        w_std: Any = None,
        b_std: Any = None,
        w_std_bounds: Any = BOUNDS,
        b_std_bounds: Any = BOUNDS,
        activation: Any = None,
        order: Any = None,
        aggregation: Any = None,
    ) -> None:
        """Reads the network, and takes numbers that are not given from its layer."""
        layer = one_output(network, activation=activation, order=order, w_std=w_std, b_std=b_std).layer
        self.network = network
        self.w_std = layer.w_std if w_std is None else w_std
        self.b_std = layer.b_std if b_std is None else b_std
        self.w_std_bounds = w_std_bounds
        self.b_std_bounds = b_std_bounds
        self.activation = activation
        self.order = order
        self.aggregation = aggregation
        if self.b_std == 0 and not isinstance(b_std_bounds, str):
            raise InputError(
                "Expected `b_std` to be positive, since its logarithm is the hyperparameter, got 0; pass "
                "b_std_bounds='fixed', or None for no biases"
            )

    @property
    def hyperparameter_w_std(self) -> Hyperparameter:
        """The standard deviation of the weights, on a logarithmic scale."""
        return Hyperparameter("w_std", "numeric", self.w_std_bounds)

    @property
    def hyperparameter_b_std(self) -> Hyperparameter:
        """The standard deviation of the biases, on a logarithmic scale; fixed for a network without biases."""
        return Hyperparameter("b_std", "numeric", "fixed" if self.b_std is None else self.b_std_bounds)

    def _network(self) -> Network:
        numbers = {"w_std": self.w_std, "b_std": self.b_std}
        return one_output(
            self.network, activation=self.activation, order=self.order, aggregation=self.aggregation, **numbers
        )

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Returns the kernel matrix, and on request its gradient.

        Args:
          X: Inputs, (N, d).
          Y: Other inputs, (M, d), or None for `X`.
          eval_gradient: Whether the gradient is returned, too; only without `Y`.

        Returns:
          The matrix in float64, (N, M). With `eval_gradient` a tuple of it and of its derivatives with respect to
          `theta`, the logarithms of the hyperparameters that are not fixed, (N, N, P).

        Raises:
          InputError: The inputs are refused, or a gradient is asked for together with `Y`.
        """
        x = np.asarray(X)
        # Callers add to the diagonal in place, so it is a copy of what JAX computed.
        values = np.array(matrix(self._network(), x, None if Y is None else np.asarray(Y), self._kind, "float64"))
        if not eval_gradient:
            return values
        if Y is not None:
            raise InputError("Expected `Y` to be None where `eval_gradient` is true, got inputs; leave one of them out")
        return values, self._derivatives(x)

    def _derivatives(self, x: np.ndarray) -> np.ndarray:
        free = tuple(one.name for one in self.hyperparameters if not one.fixed)
        if not free:
            return np.empty((len(x), len(x), 0))
        fixed = {name: getattr(self, name) for name in ("w_std", "b_std") if getattr(self, name) is not None}
        network = self._network()
        # All values of the hyperparameters share one compiled function, which is kept under the layer's plain numbers.
        plain = dataclasses.replace(network.layer, w_std=1.0, b_std=None if self.b_std is None else 1.0)
        network = dataclasses.replace(network, layer=plain)
        with jax.enable_x64(True):
            logs = jnp.asarray(np.log([fixed[name] for name in free]), jnp.float64)
            found = _gradient(network, self._kind, free)(
                logs, {name: v for name, v in fixed.items() if name not in free}, jnp.asarray(padded(x), jnp.float64)
            )
            return np.asarray(found)[: len(x), : len(x)]

    def diag(self, X: Any) -> Any:
        """Returns the diagonal of the kernel matrix of `X`, (N,), in memory and time of order N."""
        return diagonal(self._network(), np.asarray(X), self._kind, "float64")

    def is_stationary(self) -> Any:
        """Whether the kernel depends on differences of inputs alone, which it does not."""
        return False

    def __repr__(self) -> str:
        """Returns the network and the hyperparameters."""
        biases = "" if self.b_std is None else f", b_std={self.b_std:.3g}"
        network = repr(self.network) if isinstance(self.network, str) else str(self.network)
        return f"{type(self).__name__}({network}, w_std={self.w_std:.3g}{biases})"


class NNGPKernel(_NetworkKernel):
    """The NNGP of a network as a kernel of `sklearn.gaussian_process`.

    It works in `GaussianProcessRegressor` with its optimizer, and in sums and products with other kernels. Gradients
    are exact: JAX computes them through the kernel.

    Args:
      network: The network: a text such as "2_21_112", a `Dag` or a `Network`.
      w_std: Standard deviation of the layer's weights, a hyperparameter; None for that of `network`, by default that of
        He initialization.
      b_std: Standard deviation of the layer's biases, a hyperparameter; None for that of `network`, by default no
        biases.
      w_std_bounds: Smallest and largest `w_std` for the optimizer, or "fixed".
      b_std_bounds: Smallest and largest `b_std` for the optimizer, or "fixed".
      activation: The activation of the layer; None for that of `network`, by default ReLU.
      order: "linear-act" or "act-linear"; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.

    Raises:
      GraphError: `network` is no graph.
      InputError: An option is refused, or `b_std` is 0 and not fixed.

    Examples:
      >>> import numpy as np
      >>> from sklearn.gaussian_process import GaussianProcessRegressor
      >>> from sklearn.gaussian_process.kernels import WhiteKernel
      >>> X = np.linspace(-1, 1, 15)[:, None]
      >>> kernel = NNGPKernel("2_21_112", activation="erf", b_std=0.5) + WhiteKernel(1e-4)
      >>> model = GaussianProcessRegressor(kernel, optimizer=None).fit(X, np.sin(3 * X[:, 0]))
      >>> bool(abs(model.predict([[0.5]])[0] - np.sin(1.5)) < 0.02)
      True

    Reference: Lee et al., ICLR 2018 (NNGP); Rasmussen and Williams 2006, equation 5.9 (the use of gradients).
    """

    _kind = "nngp"


class NTKKernel(_NetworkKernel):
    """The NTK of a network as a kernel of `sklearn.gaussian_process`.

    The posterior mean is that of `NTKRegressor`. The covariance is that of a Gaussian process whose prior covariance is
    the NTK, not the spread of trained networks, for which there is `NTKRegressor`.

    Args:
      network: The network, as in `NNGPKernel`.
      w_std: Standard deviation of the layer's weights, a hyperparameter; None for that of `network`.
      b_std: Standard deviation of the layer's biases, a hyperparameter; None for that of `network`.
      w_std_bounds: Smallest and largest `w_std` for the optimizer, or "fixed".
      b_std_bounds: Smallest and largest `b_std` for the optimizer, or "fixed".
      activation: The activation of the layer; None for that of `network`, by default ReLU.
      order: "linear-act" or "act-linear"; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.

    Raises:
      GraphError: `network` is no graph.
      InputError: An option is refused, or `b_std` is 0 and not fixed.

    Examples:
      >>> import numpy as np
      >>> NTKKernel("2")(np.eye(2)).shape, NTKKernel("2", w_std=1.0).theta
      ((2, 2), array([0.]))

    Reference: Jacot et al., NeurIPS 2018 (NTK).
    """

    _kind = "ntk"
