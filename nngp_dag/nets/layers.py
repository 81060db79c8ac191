"""Operations on the edges of a finite network: layers with weights, and operations without."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from nngp_dag.activations import get_activation
from nngp_dag.errors import InputError
from nngp_dag.graph.operations import AvgPool, Dense, Operation, Pool

Observer = Callable[["WeightedLayer", Array, Array], Array]


class WeightedLayer(nnx.Module):
    """A `Dense` or `Conv` operation with weights: layer norm if any, then phi(W x + b) or W phi(x) + b.

    With `batch_norm`, batch normalization follows the linear map. Its scale and shift are trained; evaluation uses
    running averages.

    The weights W have variance w_std^2 / fan_in and the biases b have variance b_std^2. The fan-in is the number of
    input channels times the number of pixels of the filter. In the parameterization "ntk", W = w_std / sqrt(fan_in)
    omega and b = b_std beta; omega and beta, both N(0, 1), are trained. In "standard", W and b themselves are trained.

    Args:
      op: The operation.
      in_features: Number of input channels.
      out_features: Number of output channels.
      parameterization: "ntk" or "standard".
      batch_norm: Whether batch normalization follows the linear map.
      rngs: Random number streams; the weights come from `rngs.params`.

    Attributes:
      op: The operation.
      linear: Trained parameters, omega and beta or W and b. `linear.kernel` is (*filter_shape, channels in, channels
        out); `linear.bias` is (channels out,), or None where b_std is None.
      norm: The batch normalization, or None.
      observer: None, or a function of the layer, its inputs x and W x + b that returns what takes the place of the
        latter; see `empirical_ntk`.

    Raises:
      InputError: The activation is unknown.

    Examples:
      >>> layer = WeightedLayer(Dense(b_std=None), 3, 5, "ntk", rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 3))).shape
      (2, 5)

    Reference: He et al., ICCV 2015 (w_std^2 = 2 for ReLU); Jacot et al., NeurIPS 2018, Section 3 ("ntk").
    """

    def __init__(
        self,
        op: Dense,
        in_features: int,
        out_features: int,
        parameterization: str,
        *,
        batch_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        """Draws the weights, then the biases."""
        self.op = op
        self.activation = None if op.activation is None else get_activation(op.activation)  # type: ignore[arg-type]
        filter_shape = op.window.shape if op.window else ()
        # A NumPy float64 would turn float32 arrays into float64 where x64 is enabled; a Python float does not.
        w_std, b_std = float(op.w_std) / (in_features * math.prod(filter_shape)) ** 0.5, float(op.b_std or 0)
        if parameterization == "ntk":
            self.w_scale, self.b_scale, w_std, b_std = w_std, b_std, 1.0, 1.0
        else:
            self.w_scale, self.b_scale = 1.0, 1.0
        options = {
            "use_bias": op.b_std is not None,
            "kernel_init": nnx.initializers.normal(w_std),
            "bias_init": nnx.initializers.normal(b_std),
            "rngs": rngs,
        }
        self.linear = (
            nnx.Conv(in_features, out_features, *op.window[:2], padding=op.window.padding, **options)
            if op.window
            else nnx.Linear(in_features, out_features, **options)
        )
        # These are PyTorch's defaults. Its momentum of 0.1 is the weight of the new value, flax's that of the old.
        self.norm = nnx.BatchNorm(out_features, momentum=0.9, epsilon=1e-5, rngs=rngs) if batch_norm else None
        self.observer: Observer | None = None

    def __call__(self, x: Float[Array, "n *pixels c_in"]) -> Float[Array, "n *pixels_out c_out"]:
        """Applies the layer."""
        if self.op.layer_norm:
            centered = x - x.mean(axis=-1, keepdims=True)
            x = centered / jnp.sqrt(jnp.square(centered).mean(axis=-1, keepdims=True) + 1e-12)
        if self.activation is None:
            return self._normalized(x)
        if self.op.order == "act-linear":
            return self._normalized(self.activation(x))
        return self.activation(self._normalized(x))

    def _normalized(self, x: Array) -> Array:
        y = self._affine(x)
        if self.observer is not None:
            y = self.observer(self, x, y)
        return y if self.norm is None else self.norm(y)

    def _affine(self, x: Array) -> Array:
        """Returns W x + b."""
        # Not by calling `linear`, which adds beta to omega x before their two scales can be applied.
        y = self.w_scale * self._product(x, self.linear.kernel[...])
        if self.linear.bias is None:
            return y
        bias = self.b_scale * self.linear.bias[...].astype(y.dtype)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def _product(self, x: Array, kernel: Array) -> Array:
        if self.op.window is None:
            return x @ kernel
        dtype = jnp.result_type(x, kernel)
        axes = "".join(map(str, range(x.ndim - 2)))
        channels_last = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
        return jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            self.op.window.strides,
            self.op.window.padding,
            dimension_numbers=channels_last,
        )


def without_weights(op: Operation, x: Float[Array, "n *pixels c"]) -> Float[Array, "n *pixels_out c"]:
    """Applies an operation that draws no weights."""
    mixed = mix_pixels(op, x) if op.mixes_pixels else x
    return mixed if op.factor == 1 else float(op.factor) * mixed


@functools.singledispatch
def mix_pixels(op: Operation, x: Float[Array, "n *pixels c"]) -> Float[Array, "n *pixels_out c"]:
    """Applies an operation on pixels, without its factor.

    A new operation registers its rule with `mix_pixels.register`.

    Raises:
      InputError: No rule is registered for the class of `op`.
    """
    raise InputError(
        f"Expected an operation on pixels with a rule for networks, got {op!r}; add one by `mix_pixels.register`"
    )


@mix_pixels.register
def _pool(op: Pool, x: Float[Array, "n *pixels c"]) -> Float[Array, "n *pixels_out c"]:
    return nnx.avg_pool(x, *op.window)


@mix_pixels.register
def _pool_average(op: AvgPool, x: Float[Array, "n *pixels c"]) -> Float[Array, "n *pixels_out c"]:
    return nnx.avg_pool(x, *op.window, count_include_pad=not op.normalize_edges)
