"""The setting in which cells are scored: data, and the sizes of their networks."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from nngp_dag.errors import InputError, did_you_mean, shown
from nngp_dag.graph.operations import check_whole
from nngp_dag.kernels.device import on_cpu
from nngp_dag.nas.networks.darts_macro_net import DartsMacroNet
from nngp_dag.nas.networks.macro_net import MacroNet

# One small network leaves a GPU mostly idle. 16 empirical NTKs of 32 images take about 10 GB.
_AT_ONCE_ON_GPU = 16
# The network of each space, and the number N of cells per stage of which it has 5 in NAS-Bench-201 and 2 in the search
# of DARTS.
_NETWORKS = {"nasbench201": (MacroNet, 5), "darts": (DartsMacroNet, 2)}
# Distinguishes the draw of shuffled labels from other draws with the same seed.
_SHUFFLE = 0x5AFF1E


@dataclass(frozen=True, eq=False)
class Setting:
    """Data and network sizes that all cells of one run share, so that their scores are comparable.

    Attributes:
      images: Batch of normalized images, (n, height, width, channels). Both sides are multiples of 4.
      labels: Classes of the images, (n,), for scores that need a loss. None where no score needs them.
      channels: Channels C of the first stage of the network; see `MacroNet` and `DartsMacroNet`.
      cells: Number N of cells per stage. None for 5, in DARTS 2.
      classes: Number of outputs of the network.
      seed: Seed of the weights, which are drawn once for all cells, and of the shuffled labels.
      ntk_images: Number of images of the empirical NTK. They are the first of `images`, and form a batch of their own.
      cells_at_once: Number of cells per call. With several, every cell computes all operations and selects, and memory
        grows with the number. None for 1 on CPU and 16 elsewhere. Scores do not depend on it, but for rounding.
      space: Name of the space of the cells, "nasbench201" or "darts".

    Raises:
      InputError: Shapes do not fit, a size is too small, images or labels are out of range, or the space is unknown.

    Examples:
      >>> from nngp_dag.nas import Setting
      >>> setting = Setting(np.zeros((4, 8, 8, 3), np.float32), channels=4, cells=1)
      >>> setting.network() is setting.network()
      True

    Reference: Dong and Yang, ICLR 2020 (C = 16, N = 5); Liu, Simonyan, Yang, DARTS, ICLR 2019, Section 3.2 (C = 16, 8
      cells, so that N = 2); Chen, Gong, Wang, TE-NAS, ICLR 2021 (32 images).
    """

    images: Float[np.ndarray, "n h w c"]
    labels: Int[np.ndarray, " n"] | None = None
    channels: int = 16
    cells: int | None = None
    classes: int = 10
    seed: int = 0
    ntk_images: int = 32
    cells_at_once: int | None = None
    space: str = "nasbench201"
    # Networks, and numbers of kernels that several cells share. Those that depend on the labels are stored by labels,
    # because the setting with shuffled labels shares this.
    memo: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses data and sizes that no network can take."""
        if self.space not in _NETWORKS:
            raise InputError(
                f"Expected `space` to be one of {', '.join(_NETWORKS)}, got {self.space!r}"
                f"{did_you_mean(self.space, _NETWORKS)}"
            )
        if self.cells is None:
            object.__setattr__(self, "cells", _NETWORKS[self.space][1])
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
    def sizes(self) -> dict[str, int]:
        """The arguments `channels`, `cells` and `classes` of the networks."""
        assert self.cells is not None
        return {"channels": self.channels, "cells": self.cells, "classes": self.classes}

    @property
    def at_once(self) -> int:
        """The number of cells that one call computes."""
        return self.cells_at_once or (1 if on_cpu() else _AT_ONCE_ON_GPU)

    def with_shuffled_labels(self) -> "Setting":
        """Returns the same setting with the labels in another order, drawn by `seed`.

        The order differs from the given one in at least one label. The networks are shared.

        Raises:
          InputError: There are no labels, or all are equal.

        Examples:
          >>> from nngp_dag.nas import Setting
          >>> setting = Setting(np.zeros((4, 8, 8, 3), np.float32), np.array([0, 0, 1, 1]))
          >>> setting.with_shuffled_labels().labels
          array([1, 0, 0, 1])
        """
        labels = self.labels
        if labels is None or (labels == labels[0]).all():
            raise InputError(
                "Expected `labels` in the setting to hold at least two classes, got "
                f"{'None' if labels is None else 'one class'}; scores that read labels need a control with shuffled "
                "labels"
            )
        rng, shuffled = np.random.default_rng([self.seed, _SHUFFLE]), labels
        while (shuffled == labels).all():
            shuffled = rng.permutation(labels)
        found = replace(self, labels=shuffled)
        object.__setattr__(found, "memo", self.memo)
        return found

    def network(self, *, batch_norm: bool = True) -> MacroNet | DartsMacroNet:
        """Returns the network whose weights all cells share; every call returns the same object.

        Args:
          batch_norm: Whether the network has batch norm.
        """
        name = f"network {batch_norm}"
        if name not in self.memo:
            self.memo[name] = _NETWORKS[self.space][0](
                **self.sizes, in_channels=self.images.shape[-1], batch_norm=batch_norm, rngs=nnx.Rngs(self.seed)
            )
        return self.memo[name]
