"""On what cells are scored: data, and the sizes of their networks."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from nngp_dag.errors import InputError
from nngp_dag.graph.operations import check_whole
from nngp_dag.kernels.device import on_cpu
from nngp_dag.nas.networks.macro_net import MacroNet

# A GPU is idle for most of one small network; so many empirical NTKs of 32 images take some 10 GB.
_AT_ONCE_ON_GPU = 16


@dataclass(frozen=True, eq=False)
class Setting:
    """Data and sizes that all cells of one run share, so that their scores compare.

    Attributes:
      images: A batch, (n, height, width, channels), normalized.
      labels: Its classes, (n,), for scores that need a loss; None for none.
      channels: C of the macro network.
      cells: N, cells of a stage.
      classes: Outputs of the network.
      seed: Seed of the one draw of weights.
      ntk_images: How many of the images the empirical NTK takes, the first ones, as a batch of their own.
      cells_at_once: Cells whose networks are computed in one call, of which each then computes all operations and
        selects; memory grows with their number. None for 16 on a GPU and 1 elsewhere. Scores are the same up to
        rounding.

    Raises:
      InputError: Shapes do not fit.

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
    # Networks, and kernels that several cells share.
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses what no network could take."""
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
            raise InputError(f"Expected `labels` to be {len(self.images)} numbers in 0 to {self.classes - 1}")
        for name in ("channels", "cells", "classes"):
            check_whole(name, getattr(self, name), 1)
        if check_whole("seed", self.seed, 0) >= 2**32:
            raise InputError(f"Expected `seed` in 0 to {2**32 - 1}, got {self.seed}")
        if len(self.images) < 2:
            raise InputError("Expected `images` to hold at least 2, which scores tell apart, got 1")
        check_whole("ntk_images", self.ntk_images, 2)
        if self.cells_at_once is not None and self.cells_at_once < 1:
            raise InputError(f"Expected `cells_at_once` to be at least 1, got {self.cells_at_once}")

    @property
    def at_once(self) -> int:
        """How many cells one call computes."""
        return self.cells_at_once or (1 if on_cpu() else _AT_ONCE_ON_GPU)

    def network(self, *, batch_norm: bool = True) -> MacroNet:
        """Returns the network from which all cells take their weights; the same one whenever asked."""
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
