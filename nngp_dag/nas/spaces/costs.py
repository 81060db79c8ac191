"""Numbers of parameters and FLOPs of a network, counted from its cell."""

from collections.abc import Iterator
from math import prod

from nngp_dag.errors import InputError
from nngp_dag.graph.operations import check_option
from nngp_dag.nas.spaces.any_cell import AnyCell
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.nas.spaces.darts import Genotype

STEMS = ("cifar", "imagenet")
"""The stems of networks: one convolution for small images, or three that halve the sides of images."""

_SIDES = {"nor_conv_1x1": 1, "nor_conv_3x3": 3}

# A kernel's shape, whether batch norm follows, and how often the images that it writes were halved.
_Kernel = tuple[tuple[int, int, int, int], bool, int]


def parameters(
    cell: AnyCell,
    *,
    channels: int = 16,
    cells: int = 5,
    classes: int = 10,
    in_channels: int = 3,
    stem: str = "cifar",
) -> int:
    """Returns the number of parameters of a network.

    Those on dead edges of a cell of NAS-Bench-201, which do not affect the output, do not count. The network of a
    genotype has 3N + 2 cells, and all of its parameters count; it has no auxiliary head.

    Args:
      cell: The cell, or a genotype.
      channels: Channels C of the first stage.
      cells: Number N of cells per stage.
      classes: Number of outputs.
      in_channels: Channels of the images.
      stem: "cifar", or "imagenet" for the network of a genotype that is `DartsImageNetNet`.

    Raises:
      InputError: The stem is unknown, or is "imagenet" for a cell of NAS-Bench-201.

    Examples:
      >>> from nngp_dag.nas import Cell
      >>> parameters(Cell.from_index(0)), parameters(Cell(("nor_conv_3x3",) * 6))
      (73306, 1531546)
    """
    kernels = _kernels(cell, channels, cells, in_channels, stem)
    count = sum(prod(kernel) + 2 * kernel[-1] * normed for kernel, normed, _ in kernels)
    # The networks of NAS-Bench-201 end in a batch norm of their own.
    last = _last(cell, channels)
    return count + (2 * last if isinstance(cell, Cell) else 0) + (last + 1) * classes


def flops(
    cell: AnyCell,
    image_shape: tuple[int, ...] = (32, 32, 3),
    *,
    channels: int = 16,
    cells: int = 5,
    classes: int = 10,
    stem: str = "cifar",
) -> int:
    """Returns the FLOPs of the forward pass of one image: two for every weight at every pixel that it is applied to.

    Convolutions on dead edges of a cell of NAS-Bench-201 do not count. NAS-Bench-201 lists multiply-adds, half of this
    number, in millions, with convolutions on dead edges.

    Args:
      cell: The cell, or a genotype; see `parameters`.
      image_shape: Shape of one image, (height, width, channels).
      channels: Channels C of the first stage.
      cells: Number N of cells per stage.
      classes: Number of outputs.
      stem: See `parameters`.

    Raises:
      InputError: See `parameters`.

    Examples:
      >>> from nngp_dag.nas import Cell
      >>> [round(flops(cell) / 2e6, 2) for cell in (Cell.from_index(0), Cell(("nor_conv_3x3",) * 6))]
      [7.78, 220.12]
    """
    height, width, in_channels = image_shape
    kernels = _kernels(cell, channels, cells, in_channels, stem)
    # A halved side is rounded up.
    convolutions = sum(prod(kernel) * -(-height >> halved) * -(-width >> halved) for kernel, _, halved in kernels)
    return 2 * (convolutions + _last(cell, channels) * classes) + classes


def _last(cell: AnyCell, channels: int) -> int:
    """Returns the number of inputs of the classifier."""
    return 4 * channels * (1 if isinstance(cell, Cell) else 4)


def _kernels(cell: AnyCell, channels: int, cells: int, in_channels: int, stem: str) -> Iterator[_Kernel]:
    """Yields, for each convolution, its kernel shape, whether batch norm follows, and the halvings of the image."""
    check_option("stem", stem, STEMS)
    if isinstance(cell, Genotype):
        yield from _darts_kernels(cell, channels, cells, in_channels, stem)
        return
    if stem != "cifar":
        raise InputError(f"Expected `stem` to be 'cifar' for a cell of NAS-Bench-201, got {stem!r}; leave it out")
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


def _darts_kernels(genotype: Genotype, channels: int, cells: int, in_channels: int, stem: str) -> Iterator[_Kernel]:
    wide = channels
    if stem == "imagenet":
        for halved, ends in enumerate(((in_channels, channels // 2), (channels // 2, channels), (channels, channels))):
            yield (3, 3, *ends), True, halved + 1
        before, halved, late = (channels, channels), 3, True
    else:
        yield (3, 3, in_channels, 3 * channels), True, 0
        before, halved, late = (3 * channels, 3 * channels), 0, False

    def reduced(c_in: int, c_out: int, halved: int) -> Iterator[_Kernel]:
        for half in (c_out // 2, c_out - c_out // 2):
            yield (1, 1, c_in, half), True, halved

    for i in range(3 * cells + 2):
        reduction = i in (cells, 2 * cells + 1)
        wide *= 2 if reduction else 1
        # The inputs are brought to the channels of the cell before a reduction cell halves them.
        if late:
            yield from reduced(before[0], wide, halved)
        else:
            yield (1, 1, before[0], wide), True, halved
        yield (1, 1, before[1], wide), True, halved
        halved += reduction
        for name, source in genotype.reduce if reduction else genotype.normal:
            if name == "skip_connect" and reduction and source < 2:
                yield from reduced(wide, wide, halved)
            elif "conv" in name:
                for _ in range(2 if name.startswith("sep") else 1):
                    yield (int(name[-1]), int(name[-1]), 1, wide), False, halved
                    yield (1, 1, wide, wide), True, halved
        before, late = (before[1], 4 * wide), reduction
