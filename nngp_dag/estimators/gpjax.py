"""Kernels of a network as covariance functions of GPJax; `pip install "nngp-dag[gpjax]"` installs it."""

from typing import Any, ClassVar

from nngp_dag.architecture import Network
from nngp_dag.estimators._differentiable import kernel_at, missing, one_output

try:
    import equinox as eqx  # pyright: ignore[reportMissingImports]
    import lineax as lx  # pyright: ignore[reportMissingImports]
    from gpjax.kernels.base import AbstractKernel  # pyright: ignore[reportMissingImports]
    from gpjax.kernels.computations import AbstractKernelComputation  # pyright: ignore[reportMissingImports]
    from gpjax.parameters import PositiveReal, val  # pyright: ignore[reportMissingImports]
    from paramax import AbstractUnwrappable  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    raise missing("gpjax", ("equinox", "gpjax", "lineax", "paramax"), error) from None
import jax
import jax.numpy as jnp

__all__ = ["NNGP", "NTK"]


class _Computation(AbstractKernelComputation):
    """Whole matrices at once; GPJax would otherwise evaluate the kernel for each pair of inputs."""

    def _cross_covariance(self, kernel: Any, x: Any, y: Any) -> Any:
        return kernel.matrix(x, y)

    def _gram(self, kernel: Any, x: Any) -> Any:
        return kernel.matrix(x, None)

    def _diagonal(self, kernel: Any, inputs: Any) -> Any:
        entries = jax.vmap(lambda x: kernel.matrix(x[None], None)[0, 0])(inputs)
        return lx.TaggedLinearOperator(lx.DiagonalLinearOperator(entries), lx.positive_semidefinite_tag)


# One object for all kernels: it is part of their structure, which JAX compares.
_COMPUTATION = _Computation()


class _NetworkKernel(AbstractKernel):
    """The covariance function of a network, whose layer's numbers GPJax trains."""

    kind: ClassVar[str]

    w_std: Any
    b_std: Any
    network: Network = eqx.field(static=True)

    def __init__(
        self,
        network: Any = "2_21_112",
        w_std: Any = None,
        b_std: Any = None,
        active_dims: Any = None,
        n_dims: int | None = None,
        *,
        activation: Any = None,
        order: Any = None,
        aggregation: Any = None,
    ) -> None:
        """Reads the network; numbers that are not given are those of its layer."""
        plain = {
            name: None if isinstance(value, AbstractUnwrappable) else value
            for name, value in {"w_std": w_std, "b_std": b_std}.items()
        }
        if isinstance(b_std, AbstractUnwrappable):
            plain["b_std"] = 1.0  # the structure has biases, and the parameter their standard deviation
        self.network = one_output(network, activation=activation, order=order, aggregation=aggregation, **plain)
        layer = self.network.layer
        self.w_std = w_std if isinstance(w_std, AbstractUnwrappable) else PositiveReal(jnp.asarray(layer.w_std, float))
        if isinstance(b_std, AbstractUnwrappable) or layer.b_std is None:
            self.b_std = b_std
        else:
            self.b_std = PositiveReal(jnp.asarray(layer.b_std, float))
        super().__init__(active_dims, n_dims, _COMPUTATION)

    def matrix(self, x: Any, y: Any) -> Any:
        """Returns the kernel matrix.

        Args:
          x: Inputs, (N, d).
          y: Other inputs, (M, d), or None for `x`.

        Returns:
          The matrix, (N, M), or (N, N) without `y`.
        """
        others = None if y is None else self.slice_input(y)
        return kernel_at(self.network, self.slice_input(x), others, self.kind, val(self.w_std), val(self.b_std))

    def __call__(self, x: Any, y: Any) -> Any:
        """Returns the kernel of two inputs.

        Args:
          x: One input, (d,).
          y: Another input, (d,).

        Returns:
          The covariance of the outputs, a number.
        """
        return self.matrix(x[None], y[None])[0, 0]


class NNGP(_NetworkKernel):
    """The NNGP of a network as a kernel of GPJax.

    `w_std` and `b_std` are its parameters, which `gpjax.fit` trains. Set jax_enable_x64 for float64, as GPJax advises.

    Args:
      network: The network: a text such as "2_21_112", a `Dag` or a `Network`.
      w_std: Standard deviation of the layer's weights, as a positive number or a parameter of GPJax; None for that of
        `network`, by default that of He initialization.
      b_std: Standard deviation of the layer's biases, a positive number or a parameter of GPJax; None for that of
        `network`, by default no biases.
      active_dims: The columns of the inputs that the kernel reads, as for other kernels of GPJax.
      n_dims: The number of these columns.
      activation: The activation of the layer; None for that of `network`, by default ReLU.
      order: "linear-act" or "act-linear"; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.

    Attributes:
      w_std: The parameter of the weights.
      b_std: The parameter of the biases, or None.
      network: The network.

    Raises:
      GraphError: `network` is no graph.
      InputError: An option is refused.

    Examples:
      >>> import jax.numpy as jnp
      >>> NNGP("2", b_std=0.5).gram(jnp.eye(3)).as_matrix().shape
      (3, 3)

    Reference: Lee et al., ICLR 2018 (NNGP).
    """

    kind: ClassVar[str] = "nngp"
    name: ClassVar[str] = "NNGP"


class NTK(_NetworkKernel):
    """The NTK of a network as a kernel of GPJax.

    The covariance is that of a Gaussian process whose prior covariance is the NTK.

    Args:
      network: The network, as in `NNGP`.
      w_std: Standard deviation of the layer's weights, as in `NNGP`.
      b_std: Standard deviation of the layer's biases, as in `NNGP`.
      active_dims: The columns of the inputs that the kernel reads.
      n_dims: The number of these columns.
      activation: The activation of the layer; None for that of `network`, by default ReLU.
      order: "linear-act" or "act-linear"; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.

    Attributes:
      w_std: The parameter of the weights.
      b_std: The parameter of the biases, or None.
      network: The network.

    Raises:
      GraphError: `network` is no graph.
      InputError: An option is refused.

    Examples:
      >>> import jax.numpy as jnp
      >>> NTK("2").cross_covariance(jnp.eye(3), jnp.ones((1, 3))).shape
      (3, 1)

    Reference: Jacot et al., NeurIPS 2018 (NTK).
    """

    kind: ClassVar[str] = "ntk"
    name: ClassVar[str] = "NTK"
