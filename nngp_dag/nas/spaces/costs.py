"""Numbers of parameters and FLOPs of a network of NAS-Bench-201, counted from its cell."""

from collections.abc import Iterator
from math import prod

from nngp_dag.nas.spaces.cells import Cell

_SIDES = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}


def parameters(cell: Cell, *, channels: int = 16, cells: int = 5, classes: int = 10, in_channels: int = 3) -> int:
    """Returns the number of parameters of a network, without those on dead edges, which do not affect the output.

    Args:
      cell: The cell.
      channels: Channels C of the first stage.
      cells: Number N of cells per stage.
      classes: Number of outputs.
      in_channels: Channels of the images.

    Examples:
      >>> from nngp_dag.nas import Cell
      >>> parameters(Cell.from_index(0)), parameters(Cell(("nor_conv_3x3",) * 6))
      (73306, 1531546)
    """
    count = sum(
        prod(kernel) + 2 * kernel[-1] * normed for kernel, normed, _ in _kernels(cell, channels, cells, in_channels)
    )
    return count + 2 * 4 * channels + (4 * channels + 1) * classes


def flops(
    cell: Cell, image_shape: tuple[int, ...] = (32, 32, 3), *, channels: int = 16, cells: int = 5, classes: int = 10
) -> int:
    """Returns the FLOPs of the forward pass of one image: two for every weight at every pixel that it is applied to.

    Convolutions on dead edges do not count. NAS-Bench-201 lists multiply-adds, half of this number, in millions, with
    convolutions on dead edges.

    Args:
      cell: The cell.
      image_shape: Shape of one image, (height, width, channels).
      channels: Channels C of the first stage.
      cells: Number N of cells per stage.
      classes: Number of outputs.

    Examples:
      >>> from nngp_dag.nas import Cell
      >>> [round(flops(cell) / 2e6, 2) for cell in (Cell.from_index(0), Cell(("nor_conv_3x3",) * 6))]
      [7.78, 220.12]
    """
    height, width, in_channels = image_shape
    kernels = _kernels(cell, channels, cells, in_channels)
    convolutions = sum(prod(kernel) * (height >> halved) * (width >> halved) for kernel, _, halved in kernels)
    return 2 * (convolutions + 4 * channels * classes) + classes


def _kernels(
    cell: Cell, channels: int, cells: int, in_channels: int
) -> Iterator[tuple[tuple[int, int, int, int], bool, int]]:
    """Yields, for each convolution, its kernel shape, whether batch norm follows, and the halvings of the image."""
    yield (3, 3, in_channels, channels), True, 0
    sides = [_SIDES[name] for name in cell.live.operations if name in _SIDES]
    for stage in range(3):
        wide = channels << stage
        if stage:
            yield (3, 3, wide // 2, wide), True, stage
            yield (3, 3, wide, wide), True, stage
            yield (1, 1, wide // 2, wide), False, stage
        for side in sides * cells:
            yield (side, side, wide, wide), True, stage
