"""Scores from the wiring of a cell alone: its exact kernels, its paths, and its cost."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from nngp_dag.architecture import as_network
from nngp_dag.errors import GraphError, InputError, NumericalWarning
from nngp_dag.graph import Dag
from nngp_dag.kernels.batch import kernels_of_classes, new_kernel_classes
from nngp_dag.nas.scores.setting import Setting
from nngp_dag.nas.spaces.any_cell import AnyCell
from nngp_dag.nas.spaces.costs import flops, parameters
from nngp_dag.theory import leave_one_out, spectrum

KERNELS = ("nngp", "ntk")
KERNEL_SCORES = ("lambda_min", "condition", "logdet")
# Kernels per call, at 34 N^2 bytes each: 70 MB for N = 128 images. With many images it is fewer.
_BATCH, _BYTES, _MEMORY = 128, 34, 1 << 30
# The ridge of leave-one-out errors, in units of the mean of the kernel's diagonal.
_RIDGE = 1e-3

Found = dict[str, float | str]
Measured = Iterator[Found]


def exact_kernels(cells: Sequence[AnyCell], setting: Setting) -> Measured:
    """Yields λmin, condition number and log-determinant of the exact NNGP and NTK of each cell's wiring.

    The network is the fully connected ReLU network of infinite width with the connectivity of the cell, on images
    scaled to |x|^2 = d. All 15,625 cells of NAS-Bench-201 have 77 distinct kernels, and each is computed once. The
    wiring of a genotype is that of its normal cell, both of whose inputs read the images.
    """
    names = [f"{kernel}_{name}_exact" for kernel in KERNELS for name in KERNEL_SCORES]
    return _by_kernel(
        cells, setting, names, lambda digest: digest, lambda digest, *kernels: {digest: _spectra(kernels)}
    )


def exact_leave_one_out(cells: Sequence[AnyCell], setting: Setting) -> Measured:
    """Yields the leave-one-out error of kernel regression with the exact NTK of each cell's wiring.

    The targets are one-hot labels minus their mean over the images. The ridge is 1e-3 times the mean of the kernel's
    diagonal. The error is the squared distance of an image's target to the prediction from all other images, as a mean
    over images. Networks and images are those of `exact_kernels`.

    Reference: Rasmussen and Williams 2006, equation 5.12.
    """
    # A kernel is at hand once, so that the control with shuffled labels is computed with it.
    settings = setting, setting.with_shuffled_labels()
    targets = {_key_of_labels(each): centered_targets(each) for each in settings}

    def measured(digest: str, nngp: np.ndarray, ntk: np.ndarray) -> dict[str, Found]:
        del nngp
        try:
            errors = [leave_one_out_error(ntk, y) for y in targets.values()]
        except InputError as error:
            errors = [str(error)] * len(targets)
        return {f"{key} {digest}": {"leave_one_out": of} for key, of in zip(targets, errors, strict=True)}

    key = _key_of_labels(setting)
    return _by_kernel(cells, setting, ["leave_one_out"], lambda digest: f"{key} {digest}", measured)


def centered_targets(setting: Setting) -> Float[np.ndarray, "n classes"]:
    """Returns the one-hot labels minus their mean over the images, (n, classes), float64."""
    assert setting.labels is not None
    one_hot = np.eye(setting.classes)[setting.labels]
    return one_hot - one_hot.mean(axis=0)


def leave_one_out_error(ntk: Float[np.ndarray, "n n"], targets: Float[np.ndarray, "n classes"]) -> float:
    """Returns the mean over images of the squared distance to the prediction from all other images.

    The ridge is 1e-3 times the mean of the diagonal.

    Raises:
      InputError: The kernel plus the ridge is not positive definite.
    """
    with warnings.catch_warnings():
        # Kernels of float32 images resolve the ridge to a few digits, which is enough for a rank.
        warnings.simplefilter("ignore", NumericalWarning)
        found = leave_one_out(ntk, targets, _RIDGE * np.trace(ntk) / len(ntk), kind="ntk")
    return found.mean_squared_error


def _key_of_labels(setting: Setting) -> str:
    assert setting.labels is not None
    return f"leave_one_out {hashlib.sha256(np.ascontiguousarray(setting.labels, np.int64).tobytes()).hexdigest()}"


def _by_kernel(
    cells: Sequence[AnyCell],
    setting: Setting,
    names: Sequence[str],
    key: Callable[[str], str],
    measured: Callable[..., dict[str, Found]],
) -> Measured:
    """Yields numbers of the exact kernels of each cell's wiring, and computes each distinct kernel once.

    Args:
      cells: The cells.
      setting: The images, and the numbers that are known already.
      names: Names of the numbers, for cells that have no kernel.
      key: Function from the digest of a kernel to the place of its numbers in `setting.memo`.
      measured: Function of (digest, NNGP, NTK) that returns numbers by their places in `setting.memo`.
    """
    kernel_classes, networks = new_kernel_classes(), {}
    classes: dict[Dag, str] = {}
    refused: dict[Dag, str] = {}
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
    left = [digest for digest in networks if key(digest) not in setting.memo]
    if left:
        inputs = on_sphere(setting.images)
        batch = min(_BATCH, max(1, _MEMORY // (_BYTES * len(inputs) ** 2)))
        stacks = kernels_of_classes(kernel_classes, left, networks[left[0]], inputs, batch=batch)
        for stack in stacks:
            for digest, nngp, ntk in zip(stack.digests, stack.nngp, stack.ntk, strict=True):
                setting.memo.update(measured(digest, nngp, ntk))
    for cell in cells:
        if cell.dag in refused:
            missing: Found = dict.fromkeys(names, refused[cell.dag])
            yield missing
        else:
            yield setting.memo[key(classes[cell.dag])]


def paths_and_costs(cells: Sequence[AnyCell], setting: Setting) -> Measured:
    """Yields effective depth, effective width, number of parameters and FLOPs of each cell's network.

    The depth and width of a genotype are those of its normal cell.
    """
    sizes: dict[str, Any] = {**setting.sizes}
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


def _spectra(matrices: Sequence[np.ndarray]) -> Found:
    found: Found = {}
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
