"""The setting in which cells are scored: data, and the sizes of their networks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from nngp_dag.errors import InputError, shown
from nngp_dag.graph.operations import check_whole
from nngp_dag.kernels.device import on_cpu
from nngp_dag.nas.networks.macro_net import MacroNet

# One small network leaves a GPU mostly idle. 16 empirical NTKs of 32 images take about 10 GB.
_AT_ONCE_ON_GPU = 16


@dataclass(frozen=True, eq=False)
class Setting:
    """Data and network sizes that all cells of one run share, so that their scores are comparable.

    Attributes:
      images: Batch of normalized images, (n, height, width, channels). Both sides are multiples of 4.
      labels: Classes of the images, (n,), for scores that need a loss. None where no score needs them.
      channels: Channels C of the first stage of the network; see `MacroNet`.
      cells: Number N of cells per stage.
      classes: Number of outputs of the network.
      seed: Seed of the weights, which are drawn once for all cells.
      ntk_images: Number of images of the empirical NTK. They are the first of `images`, and form a batch of their own.
      cells_at_once: Number of cells per call. With several, every cell computes all operations and selects, and memory
        grows with the number. None for 1 on CPU and 16 elsewhere. Scores do not depend on it, but for rounding.

    Raises:
      InputError: Shapes do not fit, a size is too small, or images or labels are out of range.

    Examples:
      >>> from nngp_dag.nas import Setting
      >>> setting = Setting(np.zeros((4, 8, 8, 3), np.float32), channels=4, cells=1)
      >>> setting.network() is setting.network()
      True

    Reference: Dong and Yang, ICLR 2020 (C = 16, N = 5); Chen, Gong, Wang, TE-NAS, ICLR 2021 (32 images).
    """

    images: Float[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"] | None = None
    channels: int = 16
    cells: int = 5
    classes: int = 10
    seed: int = 0
    ntk_images: int = 32
    cells_at_once: int | None = None
    # Networks, and numbers of kernels that several cells share.
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses data and sizes that no network can take."""
        shape = self.images.shape
        if (
            len(shape) != 4
            or not len(self.images)
            or shape[1] % 4
            or shape[2] % 4
            or not np.isfinite(self.images).all()
        ):
            raise InputError(
                f"Expected `images` to be finite, of shape (N, height, width, channels), with sides that are multiples "
                f"of 4, got {shape}"
            )
        if self.labels is not None and (
            self.labels.shape != shape[:1] or self.labels.min() < 0 or self.labels.max() >= self.classes
        ):
            raise InputError(
                f"Expected `labels` to be {len(self.images)} numbers in 0 to {self.classes - 1}, "
                f"got {shown(self.labels)}"
            )
        for name in ("channels", "cells", "classes"):
            check_whole(name, getattr(self, name), 1)
        if check_whole("seed", self.seed, 0) >= 2**32:
            raise InputError(f"Expected `seed` in 0 to {2**32 - 1}, got {self.seed}")
        if len(self.images) < 2:
            raise InputError("Expected `images` to hold at least 2 images, got 1")
        check_whole("ntk_images", self.ntk_images, 2)
        if self.cells_at_once is not None and self.cells_at_once < 1:
            raise InputError(f"Expected `cells_at_once` to be at least 1, got {self.cells_at_once}")

    @property
    def at_once(self) -> int:
        """The number of cells that one call computes."""
        return self.cells_at_once or (1 if on_cpu() else _AT_ONCE_ON_GPU)

    def network(self, *, batch_norm: bool = True) -> MacroNet:
        """Returns the network whose weights all cells share; every call returns the same object.

        Args:
          batch_norm: Whether the network has batch norm.
        """
        name = f"network {batch_norm}"
        if name not in self.memo:
            self.memo[name] = MacroNet(
                channels=self.channels,
                cells=self.cells,
                classes=self.classes,
                in_channels=self.images.shape[-1],
                batch_norm=batch_norm,
                rngs=nnx.Rngs(self.seed),
            )
        return self.memo[name]
