"""`leading_eigenvalues`: the largest eigenvalues of a kernel that does not fit into memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Unpack

import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float

from nngp_dag import forms
from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.errors import InputError, NumericalWarning, check_callable, warn
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_number, check_option, check_whole
from nngp_dag.kernels.inputs import check_inputs, compute_dtype, precision_of
from nngp_dag.large._plan import KINDS, single_output
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.mesh import Team
from nngp_dag.large.ring import Ring
from nngp_dag.large.uncertainty import diagonal_of

# Vectors beside the wanted ones: the last of a block converge slowly.
_MORE = 8


@dataclass(frozen=True, repr=False)
class LeadingEigenvalues(Described):
    """The largest eigenvalues of a kernel matrix.

    Attributes:
      eigenvalues: The eigenvalues, descending, (count,).
      errors: Their error bounds, (count,): within this distance of each there is an eigenvalue of the matrix.
      vectors: Orthonormal eigenvectors, (N, count).
      trace: The trace of the matrix, which is the sum of all eigenvalues.
      products: Number of products with the matrix, in each of which its entries were computed.
      entries: Number of kernel entries that were computed.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(60, 3))
      >>> found = nd.leading_eigenvalues("2_12", x, 2)
      >>> bool(np.isclose(found.lambda_max, nd.spectrum(nd.kernel("2_12", x).ntk).lambda_max))
      True
    """

    eigenvalues: Float[np.ndarray, " count"]
    errors: Float[np.ndarray, " count"]
    vectors: Float[np.ndarray, "n count"]
    trace: float
    products: int
    entries: int

    @property
    def lambda_max(self) -> float:
        """The largest eigenvalue."""
        return float(self.eigenvalues[0])

    @property
    def share(self) -> float:
        """The share of the trace that these eigenvalues have."""
        return float(self.eigenvalues.sum() / self.trace) if self.trace else 0.0

    def _facts(self) -> dict[str, str]:
        first = ", ".join(map(forms.number, self.eigenvalues[:4].tolist()))
        more = ", ..." if len(self.eigenvalues) > 4 else ""
        facts = {"eigenvalues": f"[{first}{more}]", "largest_error": f"{self.errors.max():.1e}"}
        return facts | {"share": f"{self.share:.4f}", "products": str(self.products)}


def leading_eigenvalues(
    network: Network | Dag | str | NetworkSource,
    x: ArrayLike,
    count: int = 10,
    *,
    kind: str = "ntk",
    tolerance: float = 1e-6,
    max_products: int = 50,
    mesh: Mesh | None = None,
    dtype: str | None = None,
    seed: int = 0,
    on_progress: Callable[[str, int, int], None] | None = None,
    **architecture: Unpack[Architecture],
) -> LeadingEigenvalues:
    """Computes the largest eigenvalues of a kernel, also where the matrix does not fit into memory.

    A block Lanczos iteration multiplies the kernel with `count` + 8 vectors at once. The entries are computed anew in
    every product, N^2 of them, on the devices of `mesh`, which pass inputs and vectors around in a ring. Memory
    grows as N times the number of all vectors. The largest eigenvalue of the NTK sets the largest learning rate,
    2 / `lambda_max` for gradient descent. (`spectrum` finds both ends of a matrix that is there. The smallest
    eigenvalue is not found here: products alone tell little about it where the matrix is ill-conditioned.)

    The first vectors are random. An eigenvector that is orthogonal to all of them would be missed; that has
    probability 0.

    Args:
      network: The network, as in `kernel`, with one output.
      x: Inputs, (N, features...).
      count: Number of eigenvalues.
      kind: "ntk" or "nngp".
      tolerance: Largest error of each eigenvalue, relative to the largest one.
      max_products: Largest number of products.
      mesh: Mesh of devices with one axis; None for one device, or for all of several processes.
      dtype: Precision of kernel entries, as in `kernel`. Vectors are float64.
      seed: Seed of the first vectors.
      on_progress: Function that is called with ("products", done, at most).
      **architecture: Options of the architecture, as in `kernel`.

    Returns:
      A `LeadingEigenvalues`. A `NumericalWarning` is issued where the iteration ends above the tolerance.

    Raises:
      GraphError: `kernel` would refuse the network.
      InputError: An argument is out of range, or there are fewer inputs than eigenvalues.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(60, 3))
      >>> nd.leading_eigenvalues("2_12", x, 3).eigenvalues.shape
      (3,)

    Reference: Golub and Underwood, The block Lanczos method for computing eigenvalues, 1977. The error bounds are the
    norms of residuals: Parlett, The symmetric eigenvalue problem, Theorem 4.5.1.
    """
    network = single_output(as_network(network, "network", leading_eigenvalues, **architecture), leading_eigenvalues)
    check_option("kind", kind, KINDS)
    count, seed = check_whole("count", count, 1), check_whole("seed", seed, 0)
    most, tolerance = check_whole("max_products", max_products, 1), check_number("tolerance", tolerance)
    if not 0 < tolerance < 1:
        raise InputError(f"Expected `tolerance` to be between 0 and 1, got {tolerance:g}; 1e-6 is usual")
    check_callable("on_progress", on_progress)
    inputs = check_inputs("x", x, network, dtype)[0]
    precision, n = compute_dtype(inputs, dtype=dtype), len(inputs)
    if count > n:
        raise InputError(f"Expected `count` to be at most the number of inputs, {n}, got {count}")
    given, report = np.asarray(inputs, precision), on_progress or (lambda task, done, total: None)
    kernel, team = BlockKernel(network, kind, given.shape[1:], precision), Team(mesh)
    kernel.check(given)
    with precision_of(np.dtype(np.float64)):
        ring = Ring(team, kernel, given, 0.0)
        # More vectors than rows would not be independent.
        steps, done = _Steps(ring, min(count + _MORE, n), seed), 0
        while True:
            values, errors, rotation = steps.next(count)
            done += 1
            report("products", done, most)
            if (errors <= tolerance * values[0]).all() or steps.complete or done == most:
                break
        vectors, trace = steps.basis @ rotation, float(diagonal_of(kernel, given).sum())
    if (errors > tolerance * values[0]).any():
        warn(
            f"the iteration ends with an error of {errors.max() / values[0]:.1e} of the largest eigenvalue, above "
            f"{tolerance:.1e}, after {done} products; raise `max_products` or `tolerance`",
            NumericalWarning,
        )
    return LeadingEigenvalues(values, errors, vectors, trace, done, ring.entries + n)


class _Steps:
    """The basis of a block Lanczos iteration, with full orthogonalization.

    Attributes:
      basis: Orthonormal vectors, (N, columns so far).
      complete: Whether they span a space that the matrix maps into itself, up to rounding.
    """

    def __init__(self, ring: Ring, width: int, seed: int) -> None:
        self._ring, self._n = ring, ring.count
        first = np.random.default_rng([seed, 4]).normal(size=(self._n, width))
        self._next = np.linalg.qr(first)[0]
        self.basis, self._images = np.zeros((self._n, 0)), np.zeros((self._n, 0))
        self.complete = False

    def next(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Multiplies once, and returns eigenvalues, the norms of their residuals, and eigenvectors in the basis."""
        ring = self._ring
        image = ring.fetched(ring.product(ring.dealt(self._next)))
        self.basis = np.concatenate([self.basis, self._next], axis=1)
        self._images = np.concatenate([self._images, image], axis=1)
        inner = self.basis.T @ self._images
        values, rotation = np.linalg.eigh((inner + inner.T) / 2)
        values, rotation = values[::-1][:count], rotation[:, ::-1][:, :count]
        errors = np.linalg.norm(self._images @ rotation - self.basis @ rotation * values, axis=0)
        self._next = self._orthogonal(image)
        self.complete = not self._next.shape[1]
        return values, errors, rotation

    def _orthogonal(self, image: np.ndarray) -> np.ndarray:
        """Returns orthonormal vectors for what of an image lies outside the basis."""
        size = np.linalg.norm(image, 2)
        # Twice is enough: the second time removes what rounding left of the first.
        for _ in range(2):
            image = image - self.basis @ (self.basis.T @ image)
        q, sizes, _ = np.linalg.svd(image, full_matrices=False)
        kept = sizes > len(image) * np.finfo(np.float64).eps * size
        kept[self._n - self.basis.shape[1] :] = False
        q = q[:, kept]
        # Columns that were small are not orthogonal enough once they have been normalized.
        q = q - self.basis @ (self.basis.T @ q)
        return np.linalg.qr(q)[0]
