"""Models that compute their own kernels, such as a traced one; `kernel` and `gram` take them like networks."""

import abc
from typing import Any

from nngp_dag.architecture import NetworkSource
from nngp_dag.kernels.result import Kernel, OfKernel


class KernelSource(OfKernel, NetworkSource):
    """A model that computes its own kernels."""

    @abc.abstractmethod
    def kernel(self, x1: Any, x2: Any = None, *, get: tuple[str, ...], dtype: str | None, **options: Any) -> Kernel:
        """Returns the kernels of inputs; the arguments are those of `nngp_dag.kernel`."""

    @abc.abstractmethod
    def with_options(self, **options: Any) -> "KernelSource":
        """Returns the model with other options, such as a parameterization.

        Raises:
          InputError: An option is unknown.
        """

    @abc.abstractmethod
    def read_inputs(self, name: str, x: Any) -> Any:
        """Returns checked inputs as a NumPy array.

        Args:
          name: The name of the argument in messages.
          x: The inputs.

        Raises:
          InputError: They do not fit the model, or are not finite.
        """

    @property
    @abc.abstractmethod
    def covariances(self) -> int:
        """The number of float64 covariances that exist at once for one pair of inputs."""

    @abc.abstractmethod
    def description(self) -> dict[str, Any]:
        """Returns everything that the kernels depend on beside the inputs, in a form that JSON can hold."""
