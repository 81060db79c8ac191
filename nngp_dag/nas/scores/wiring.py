"""Scores from the wiring of a cell alone: its exact kernels, its paths, and its cost."""

import warnings
from collections.abc import Iterator, Sequence

import numpy as np

from nngp_dag.architecture import as_network
from nngp_dag.errors import GraphError, InputError, NumericalWarning
from nngp_dag.graph import Dag
from nngp_dag.kernels.batch import kernels_of_classes, new_kernel_classes
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.nas.spaces.costs import flops, parameters
from nngp_dag.theory import spectrum

KERNELS = ("nngp", "ntk")
KERNEL_SCORES = ("lambda_min", "condition", "logdet")
# Kernels per call, at 34 N^2 bytes each: 70 MB for N = 128 images.
_BATCH = 128

Measured = Iterator[dict[str, float | str]]


def exact_kernels(cells: Sequence[Cell], setting: Setting) -> Measured:
    """Yields λmin, condition number and log-determinant of the exact NNGP and NTK of each cell's wiring.

    The network is the fully connected ReLU network of infinite width with the connectivity of the cell, on images
    scaled to |x|^2 = d. All 15,625 cells have 77 distinct kernels, and each is computed once.
    """
    kernel_classes, networks, refused = new_kernel_classes(), {}, {}
    classes: dict[Dag, str] = {}
    for cell in cells:
        if cell.dag in classes or cell.dag in refused:
            continue
        try:
            network = as_network(cell.dag)
        except GraphError as error:
            refused[cell.dag] = str(error)
            continue
        classes[cell.dag] = kernel_classes.add(network)
        networks.setdefault(classes[cell.dag], network)
    left = [digest for digest in networks if digest not in setting.memo]
    if left:
        inputs = on_sphere(setting.images)
        stacks = kernels_of_classes(kernel_classes, left, networks[left[0]], inputs, batch=_BATCH)
        for stack in stacks:
            for digest, *matrices in zip(stack.digests, stack.nngp, stack.ntk, strict=True):
                setting.memo[digest] = _spectra(matrices)
    for cell in cells:
        if cell.dag in refused:
            yield {f"{kernel}_{name}_exact": refused[cell.dag] for kernel in KERNELS for name in KERNEL_SCORES}
        else:
            yield setting.memo[classes[cell.dag]]


def paths_and_costs(cells: Sequence[Cell], setting: Setting) -> Measured:
    """Yields effective depth, effective width, number of parameters and FLOPs of each cell's network."""
    sizes = {"channels": setting.channels, "cells": setting.cells, "classes": setting.classes}
    for cell in cells:
        yield {
            "effective_depth": cell.dag.effective_depth,
            "effective_width": cell.dag.effective_width,
            "parameters": float(parameters(cell, in_channels=setting.images.shape[-1], **sizes)),
            "flops": float(flops(cell, setting.images.shape[1:], **sizes)),
        }


def on_sphere(images: np.ndarray) -> np.ndarray:
    """Returns images as rows of d numbers, float64, scaled to |x|^2 = d.

    Raises:
      InputError: An image is all zero.
    """
    rows = images.reshape(len(images), -1).astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not norms.all():
        raise InputError(f"Expected images that are not all zero, got image {int(norms.argmin())}; drop it")
    return rows * (rows.shape[1] ** 0.5 / norms)


def _spectra(matrices: Sequence[np.ndarray]) -> dict[str, float | str]:
    found: dict[str, float | str] = {}
    for kernel, matrix in zip(KERNELS, matrices, strict=True):
        with warnings.catch_warnings():
            # An unresolved λmin becomes a reason instead of a warning.
            warnings.simplefilter("ignore", NumericalWarning)
            s = spectrum(matrix, eigenvalues=True)
        assert s.eigenvalues is not None
        values: Sequence[float | str] = s.lambda_min, s.condition_number, float(np.log(abs(s.eigenvalues)).sum())
        if not s.resolved:
            values = [f"Expected a resolved λmin of the {kernel.upper()}, got one below {s.floor:.2g}"] * 3
        found |= {f"{kernel}_{name}_exact": value for name, value in zip(KERNEL_SCORES, values, strict=True)}
    return found
