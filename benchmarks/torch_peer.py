"""Networks of NAS-Bench-201 in PyTorch, with the weights of a network of this package.

PyTorch is not a dependency.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from nngp_dag.nas.spaces.cells import CONVOLUTIONS, EDGES, OPERATIONS


def one_thread() -> Any:
    """Returns the module `torch`, set to one thread."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    return torch


def images(x: np.ndarray) -> Any:
    """Returns images, (n, height, width, channels), in the layout of PyTorch."""
    return one_thread().tensor(np.ascontiguousarray(np.moveaxis(x, 3, 1)))


class Network:
    """A network around one cell or one mixture.

    Attributes:
      trained: Kernels and scales, which require gradients.
      others: Shifts and biases, which require gradients too.
      on_relu: Function that is called with the output of every ReLU.
    """

    def __init__(self, net: Any, mixture: np.ndarray) -> None:
        """Copies the weights.

        Args:
          net: The network of this package with the weights.
          mixture: The weights of operations on edges, (6, 5). Operations with weight 0 are left out.
        """
        self._torch = one_thread()
        self.trained: list[Any] = []
        self.others: list[Any] = []
        self.on_relu: Callable[[Any], None] = lambda x: None
        self._mixture = mixture
        parts = [self._conv_norm(net.stem)]
        for i, stage in enumerate(net.stages):
            if i:
                parts.append(self._residual(net.reductions[i - 1]))
            parts += [self._cell(stage, k) for k in range(len(stage.scale[...]))]
        parts += [self._normed(net.scale[...], net.shift[...]), self._relu, lambda x: x.mean(dim=(2, 3))]
        kernel, bias = self._leaf(net.kernel[...], self.trained), self._leaf(net.bias[...], self.others)
        self._parts = (*parts, lambda x: x @ kernel + bias)

    def __call__(self, x: Any) -> Any:
        """Returns the logits."""
        return _chain(*self._parts)(x)

    def _leaf(self, value: Any, among: list[Any]) -> Any:
        value = np.array(value)
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        among.append(self._torch.tensor(value, requires_grad=True))
        return among[-1]

    def _relu(self, x: Any) -> Any:
        x = self._torch.relu(x)
        self.on_relu(x)
        return x

    def _convolved(self, kernel: Any, stride: int = 1) -> Callable:
        weight = self._leaf(kernel, self.trained)
        conv2d = self._torch.nn.functional.conv2d
        return lambda x: conv2d(x, weight, stride=stride, padding=weight.shape[2] // 2)

    def _normed(self, scale: Any, shift: Any) -> Callable:
        weight, bias = self._leaf(scale, self.trained), self._leaf(shift, self.others)
        batch_norm = self._torch.nn.functional.batch_norm
        return lambda x: batch_norm(x, None, None, weight, bias, training=True, eps=1e-5)

    def _conv_norm(self, layer: Any, stride: int = 1) -> Callable:
        return _chain(self._convolved(layer.kernel[...], stride), self._normed(layer.scale[...], layer.shift[...]))

    def _residual(self, block: Any) -> Callable:
        first = _chain(self._relu, self._conv_norm(block.conv_a, 2))
        second = _chain(self._relu, self._conv_norm(block.conv_b))
        shortcut, avg_pool2d = self._convolved(block.shortcut[...]), self._torch.nn.functional.avg_pool2d
        return lambda x: second(first(x)) + shortcut(avg_pool2d(x, 2, 2))

    def _operation(self, name: str, stage: Any, k: int, edge: int) -> Callable:
        if name == "skip_connect":
            return lambda x: x
        if name == "avg_pool_3x3":
            avg_pool2d = self._torch.nn.functional.avg_pool2d
            return lambda x: avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        kernel = {"nor_conv_1x1": stage.conv1, "nor_conv_3x3": stage.conv3}[name][k, edge]
        # A supernet has a batch norm for each of the two convolutions of an edge.
        place = (k, edge) if stage.scale[...].ndim == 3 else (k, edge, CONVOLUTIONS.index(name))
        return _chain(
            self._relu, self._convolved(kernel), self._normed(stage.scale[...][place], stage.shift[...][place])
        )

    def _cell(self, stage: Any, k: int) -> Callable:
        chosen = [
            (source, target, float(self._mixture[edge, i]), self._operation(name, stage, k, edge))
            for edge, (source, target) in enumerate(EDGES)
            for i, name in enumerate(OPERATIONS)
            if name != "none" and self._mixture[edge, i]
        ]

        def call(x: Any) -> Any:
            nodes = [x, 0, 0, 0]
            for source, target, weight, apply in chosen:
                value = apply(nodes[source])
                nodes[target] = nodes[target] + (value if weight == 1 else weight * value)
            return nodes[3]

        return call


def _chain(*parts: Callable) -> Callable:
    return lambda x: functools.reduce(lambda value, part: part(value), parts, x)
