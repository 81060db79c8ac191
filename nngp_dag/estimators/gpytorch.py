"""Kernels of a network as covariance functions of GPyTorch; `pip install "nngp-dag[gpytorch]"` installs it.

JAX computes the kernels and their derivatives, in float64 on its default device. Tensors are copied there and back.
"""

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError
from nngp_dag.estimators._differentiable import kernel_at, missing, one_output
from nngp_dag.estimators._matrices import few_sizes

try:
    import torch  # pyright: ignore[reportMissingImports]
    from gpytorch import constraints, kernels  # pyright: ignore
    from torch.autograd.function import once_differentiable  # pyright: ignore[reportMissingImports]
except ModuleNotFoundError as error:
    raise missing("gpytorch", ("gpytorch", "linear_operator", "torch"), error) from None

__all__ = ["NNGP", "NTK"]

# Up to so many rows, programs are compiled for powers of two.
_FEW_ROWS = 256


@functools.lru_cache(maxsize=64)
def _value(network: Network, kind: str, form: str) -> Callable[..., Any]:
    """Returns a compiled function of (x1, x2, w_std, b_std), for batches of inputs (B, N, d).

    Its results are matrices of pairs, (B, N, M), for the form "pairs". The form "same" takes `x1` for both sides. The
    form "diagonal" pairs rows with equal numbers, (B, N).
    """

    def one(x1: Any, x2: Any, w_std: Any, b_std: Any) -> Any:
        if form == "diagonal":
            return jax.vmap(lambda a, b: kernel_at(network, a[None], b[None], kind, w_std, b_std)[0, 0])(x1, x2)
        return kernel_at(network, x1, x2 if form == "pairs" else None, kind, w_std, b_std)

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))


@functools.lru_cache(maxsize=64)
def _pullback(network: Network, kind: str, form: str, of_inputs: bool) -> Callable[..., Any]:
    """Returns a compiled function of (x1, x2, w_std, b_std, cotangent): the derivatives, without unneeded ones."""
    value = _value(network, kind, form)

    def pulled(x1: Any, x2: Any, w_std: Any, b_std: Any, cotangent: Any) -> Any:
        if of_inputs:
            return jax.vjp(value, x1, x2, w_std, b_std)[1](cotangent)
        return None, None, *jax.vjp(lambda w, b: value(x1, x2, w, b), w_std, b_std)[1](cotangent)

    return jax.jit(pulled)


def _array(tensor: Any) -> Any:
    return jnp.asarray(tensor.detach().cpu().numpy(), jnp.float64)


def _sizes(batch: int, rows: int) -> tuple[int, int]:
    """Returns the sizes for which a program is compiled, at least those given.

    Loops of BoTorch add a row in every round, and evaluate batches of many sizes. A program takes seconds to compile,
    and a small one a millisecond to run, so that there are few of them.

    Examples:
      >>> _sizes(1, 1), _sizes(3, 6), _sizes(64, 33), _sizes(1, 3000)
      ((1, 1), (8, 16), (64, 64), (1, 3072))
    """
    of_rows = few_sizes(rows) if rows > _FEW_ROWS else _power(rows) if rows <= 4 else max(16, _power(rows))
    return batch if batch == 1 else max(8, _power(batch)), of_rows


def _power(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _filled(tensor: Any) -> Any:
    """Returns inputs (B, N, d) as an array with copies of the first row, and of the first batch, behind them."""
    batch, rows = _sizes(*tensor.shape[:2])
    wide = torch.cat([tensor, tensor[:, :1].expand(-1, rows - tensor.shape[1], -1)], dim=1)
    return _array(torch.cat([wide, wide[:1].expand(batch - len(wide), -1, -1)]))


class _Covariance(torch.autograd.Function):
    """The kernel as a differentiable function of tensors."""

    @staticmethod
    def forward(ctx: Any, x1: Any, x2: Any, w_std: Any, b_std: Any, network: Network, kind: str, diag: bool) -> Any:
        of_inputs = any(ctx.needs_input_grad[:2])
        # Where only numbers are differentiated, equal inputs need half of the entries.
        form = "diagonal" if diag else "same" if not of_inputs and torch.equal(x1, x2) else "pairs"
        ctx.save_for_backward(x1, x2, w_std, b_std)
        ctx.what = network, kind, form
        with jax.enable_x64(True):
            numbers = _array(w_std).reshape(()), None if b_std is None else _array(b_std).reshape(())
            found = np.array(_value(network, kind, form)(_filled(x1), _filled(x2), *numbers))
        found = found[: len(x1), : x1.shape[1]] if diag else found[: len(x1), : x1.shape[1], : x2.shape[1]]
        return torch.from_numpy(np.ascontiguousarray(found)).to(x1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangent: Any) -> Any:
        x1, x2, w_std, b_std = ctx.saved_tensors
        network, kind, form = ctx.what
        sizes = [_sizes(*x.shape[:2]) for x in ((x1,) if form == "diagonal" else (x1, x2))]
        # Rows and batches that only fill up the size have no influence, so their cotangents are 0.
        filled = cotangent.new_zeros((sizes[0][0], *(rows for _, rows in sizes)))
        filled[tuple(map(slice, cotangent.shape))] = cotangent
        with jax.enable_x64(True):
            numbers = _array(w_std).reshape(()), None if b_std is None else _array(b_std).reshape(())
            pulled = _pullback(network, kind, form, any(ctx.needs_input_grad[:2]))
            found = pulled(_filled(x1), _filled(x2), *numbers, _array(filled))
            arrays = [None if one is None else np.array(one) for one in found]
        tensors = []
        given: tuple[Any, ...] = (x1, x2, w_std, b_std)
        for array, like in zip(arrays, given, strict=True):
            if array is not None and array.ndim == 3:
                # What was copied is the first one; its copies have cotangent 0, so nothing is lost.
                array = array[: len(like), : like.shape[1]]
            tensors.append(None if array is None else torch.from_numpy(array).to(like).reshape(like.shape))
        return *tensors, None, None, None


class _NetworkKernel(kernels.Kernel):  # pyright: ignore[reportAttributeAccessIssue]
    """The covariance function of a network, with the numbers of its layer as parameters of GPyTorch."""

    _kind: ClassVar[str]

    def __init__(
        self,
        network: Any = "2_21_112",
        w_std: Any = None,
        b_std: Any = None,
        *,
        activation: Any = None,
        order: Any = None,
        aggregation: Any = None,
        active_dims: Any = None,
        w_std_constraint: Any = None,
        b_std_constraint: Any = None,
        w_std_prior: Any = None,
        b_std_prior: Any = None,
    ) -> None:
        """Reads the network; numbers that are not given are those of its layer."""
        super().__init__(active_dims=active_dims)
        self.network = one_output(
            network, w_std=w_std, b_std=b_std, activation=activation, order=order, aggregation=aggregation
        )
        layer = self.network.layer
        self._add("w_std", layer.w_std, w_std_constraint, w_std_prior)
        if layer.b_std is not None:
            self._add("b_std", layer.b_std, b_std_constraint, b_std_prior)

    def _add(self, name: str, value: float, constraint: Any, prior: Any) -> None:
        raw = f"raw_{name}"
        self.register_parameter(raw, torch.nn.Parameter(torch.zeros(1)))
        positive = constraints.Positive  # pyright: ignore[reportAttributeAccessIssue]
        self.register_constraint(raw, positive() if constraint is None else constraint)
        if prior is not None:
            self.register_prior(f"{name}_prior", prior, lambda m: getattr(m, name), lambda m, v: m._set(name, v))
        self._set(name, value)

    def _get(self, name: str) -> Any:
        return getattr(self, f"raw_{name}_constraint").transform(getattr(self, f"raw_{name}"))

    def _set(self, name: str, value: Any) -> None:
        raw = getattr(self, f"raw_{name}")
        inverse = getattr(self, f"raw_{name}_constraint").inverse_transform
        given = torch.as_tensor(value, dtype=raw.dtype, device=raw.device).expand_as(raw)
        self.initialize(**{f"raw_{name}": inverse(given)})

    @property
    def w_std(self) -> Any:
        """The standard deviation of the layer's weights, (1,)."""
        return self._get("w_std")

    @w_std.setter
    def w_std(self, value: Any) -> None:
        self._set("w_std", value)

    @property
    def b_std(self) -> Any:
        """The standard deviation of the layer's biases, (1,), or None for a network without biases."""
        return None if self.network.layer.b_std is None else self._get("b_std")

    @b_std.setter
    def b_std(self, value: Any) -> None:
        if self.network.layer.b_std is None:
            raise InputError(
                "Expected a kernel with biases to set `b_std`, got one without; pass `b_std` when it is made"
            )
        self._set("b_std", value)

    def forward(self, x1: Any, x2: Any, diag: bool = False, last_dim_is_batch: bool = False, **_: Any) -> Any:
        """Returns the kernel matrix; GPyTorch calls this.

        Args:
          x1: Inputs, (..., N, d).
          x2: Other inputs, (..., M, d).
          diag: Whether rows with equal numbers are paired instead.
          last_dim_is_batch: False; sums over single features are not supported.

        Returns:
          The matrix, (..., N, M), or with `diag` its diagonal, (..., N).

        Raises:
          InputError: `last_dim_is_batch` is true.
        """
        if last_dim_is_batch:
            raise InputError(
                "Expected `last_dim_is_batch` to be False, got True; a network reads all features together"
            )
        batch = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        sides = [x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (x1, x2)]
        found = _Covariance.apply(*sides, self.w_std, self.b_std, self.network, self._kind, diag)
        return found.reshape(*batch, *found.shape[1:])


class NNGP(_NetworkKernel):
    """The NNGP of a network as a kernel of GPyTorch, and so of BoTorch.

    `w_std` and `b_std` are parameters that an optimizer of PyTorch trains. The kernel can be differentiated once in
    them and in the inputs, as BoTorch needs. A batch of inputs shares them.

    Args:
      network: The network: a text such as "2_21_112", a `Dag` or a `Network`.
      w_std: Standard deviation of the layer's weights at the start; None for that of `network`, by default that of He
        initialization.
      b_std: Standard deviation of the layer's biases at the start; None for that of `network`, by default no biases.
      activation: The activation of the layer; None for that of `network`, by default ReLU.
      order: "linear-act" or "act-linear"; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.
      active_dims: The columns of the inputs that the kernel reads, as for other kernels of GPyTorch.
      w_std_constraint: The constraint on `w_std`; by default it is positive.
      b_std_constraint: The constraint on `b_std`; by default it is positive.
      w_std_prior: A prior of GPyTorch on `w_std`, or None.
      b_std_prior: A prior of GPyTorch on `b_std`, or None.

    Raises:
      GraphError: `network` is no graph.
      InputError: An option is refused.

    Examples:
      >>> import torch
      >>> NNGP("2", b_std=0.5)(torch.eye(3, dtype=torch.float64)).to_dense().shape
      torch.Size([3, 3])

    Reference: Lee et al., ICLR 2018 (NNGP).
    """

    _kind = "nngp"


class NTK(_NetworkKernel):
    """The NTK of a network as a kernel of GPyTorch, and so of BoTorch.

    The covariance is that of a Gaussian process whose prior covariance is the NTK.

    Args:
      network: The network, as in `NNGP`.
      w_std: Standard deviation of the layer's weights at the start, as in `NNGP`.
      b_std: Standard deviation of the layer's biases at the start, as in `NNGP`.
      activation: The activation of the layer; None for that of `network`, by default ReLU.
      order: "linear-act" or "act-linear"; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.
      active_dims: The columns of the inputs that the kernel reads.
      w_std_constraint: The constraint on `w_std`; by default it is positive.
      b_std_constraint: The constraint on `b_std`; by default it is positive.
      w_std_prior: A prior of GPyTorch on `w_std`, or None.
      b_std_prior: A prior of GPyTorch on `b_std`, or None.

    Raises:
      GraphError: `network` is no graph.
      InputError: An option is refused.

    Examples:
      >>> import torch
      >>> NTK("2")(torch.eye(3, dtype=torch.float64), torch.ones(1, 3, dtype=torch.float64)).to_dense().shape
      torch.Size([3, 1])

    Reference: Jacot et al., NeurIPS 2018 (NTK).
    """

    _kind = "ntk"
