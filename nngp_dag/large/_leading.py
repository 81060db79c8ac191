"""`leading_eigenvalues`: the largest eigenvalues of a kernel that does not fit into memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import numpy as np
from jax.sharding import Mesh
from jaxtyping import ArrayLike, Float

from nngp_dag import forms
from nngp_dag.architecture import Architecture, Network, NetworkSource, as_network
from nngp_dag.distributed import together
from nngp_dag.errors import InputError, NumericalWarning, as_path, check_callable, warn
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_flag, check_number, check_option, check_whole
from nngp_dag.kernels.gram_files import describe_network
from nngp_dag.kernels.inputs import check_inputs, compute_dtype, precision_of
from nngp_dag.large._plan import KINDS, single_output
from nngp_dag.large.blocks import BlockKernel
from nngp_dag.large.checkpoint import EIGENVALUES, Store, opened
from nngp_dag.large.iterative import check_fits
from nngp_dag.large.mesh import Team
from nngp_dag.large.ring import Ring
from nngp_dag.large.uncertainty import diagonal_of, digest_of
from nngp_dag.sharing import check_equal

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
    out: str | Path | None = None,
    overwrite: bool = False,
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

    With `out`, the vectors and their products are kept on disk, 16 N bytes for each vector, about every 20 seconds. A
    process may be killed at any time; the same call then continues, to the same bits on the same mesh. A call whose
    work is finished returns its result. One that ended above `tolerance` goes on where `max_products` is raised. After
    one that ended below it, a lower `tolerance` starts anew.

    Args:
      network: The network, as in `kernel`, with one output.
      x: Inputs, (N, features...).
      count: Number of eigenvalues.
      kind: "ntk" or "nngp".
      tolerance: Largest error of each eigenvalue, relative to the largest one.
      max_products: Largest number of products.
      mesh: Mesh of devices with one axis; None for one device, or for all of several processes.
      out: Directory for checkpoints and the result; None keeps them in memory.
      overwrite: Whether the result of another call in `out`, or a damaged file, is replaced.
      dtype: Precision of kernel entries, as in `kernel`. Vectors are float64.
      seed: Seed of the first vectors.
      on_progress: Function that is called with ("products", done, at most).
      **architecture: Options of the architecture, as in `kernel`.

    Returns:
      A `LeadingEigenvalues`. A `NumericalWarning` is issued where the iteration ends above the tolerance.

    Raises:
      CheckpointError: `out` holds the work of another call, of other versions, or damaged files.
      DistributedError: Another process ended.
      GraphError: `kernel` would refuse the network.
      InputError: An argument is out of range, or there are fewer inputs than eigenvalues.
      OutputError: `out` cannot be written, or another process writes to it.

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
    most, tolerance = check_whole("max_products", max_products, 1), check_fits(check_number("tolerance", tolerance))
    check_callable("on_progress", on_progress)
    overwrite = check_flag("overwrite", overwrite)
    inputs = check_inputs("x", x, network, dtype)[0]
    precision, n = compute_dtype(inputs, dtype=dtype), len(inputs)
    if count > n:
        raise InputError(f"Expected `count` to be at most the number of inputs, {n}, got {count}")
    given, report = np.asarray(inputs, precision), on_progress or (lambda task, done, total: None)
    kernel, team = BlockKernel(network, kind, given.shape[1:], precision), Team(mesh)
    kernel.check(given)
    path = None if out is None else as_path("out", out).resolve()
    settings = {**describe_network(network), "kind": kind, "count": count, "seed": seed, "dtype": str(precision)}
    if team.several or path is not None:
        settings["data"] = digest_of(given)
    with together():
        if team.several:
            limits = {"tolerance": tolerance, "max_products": most}
            check_equal("leading eigenvalues", {**settings, **limits, "out": str(path)})
        with opened(path, EIGENVALUES, settings, overwrite, team) as store:
            found = store.load("eigenvalues")
            if found is not None and _goes_on(found, tolerance, most):
                found = None
            saved = store.load("basis") if found is None else None
            team.wait("loaded")  # before the first process replaces these files
            if found is None:
                found = _iterated(team, kernel, given, count, seed, tolerance, most, saved, store, report)
                store.save("eigenvalues", found)
            if not _above(found, tolerance) or found["complete"]:
                store.remove("basis")
    numbers = float(found["trace"]), int(found["products"]), int(found["entries"])
    result = LeadingEigenvalues(found["eigenvalues"], found["errors"], found["vectors"], *numbers)
    if _above(found, tolerance):
        warn(
            f"the iteration ends with an error of {result.errors.max() / result.lambda_max:.1e} of the largest "
            f"eigenvalue, above {tolerance:.1e}, after {result.products} products; raise `max_products` or `tolerance`",
            NumericalWarning,
        )
    return result


def _above(found: Mapping[str, np.ndarray], tolerance: float) -> bool:
    return bool((found["errors"] > tolerance * found["eigenvalues"][0]).any())


def _goes_on(found: Mapping[str, np.ndarray], tolerance: float, most: int) -> bool:
    """Whether a result on disk has errors above the tolerance, and another product is possible and allowed."""
    return _above(found, tolerance) and int(found["products"]) < most and not found["complete"]


def _iterated(
    team: Team,
    kernel: BlockKernel,
    x: np.ndarray,
    count: int,
    seed: int,
    tolerance: float,
    most: int,
    saved: Mapping[str, np.ndarray] | None,
    store: Store,
    report: Callable[[str, int, int], None],
) -> dict[str, np.ndarray]:
    """Multiplies until the errors are small enough, and returns the arrays of the result."""
    n = len(x)
    with precision_of(np.dtype(np.float64)):
        ring = Ring(team, kernel, x, 0.0)
        # More vectors than rows would not be independent.
        steps = _Steps(ring, min(count + _MORE, n), seed, saved)
        while True:
            if steps.done:
                values, errors, rotation = steps.estimates(count)
                above = bool((errors > tolerance * values[0]).any())
                if not above or steps.complete or steps.done >= most:
                    break
                if store.due():
                    store.save("basis", steps.state())
            steps.multiply()
            report("products", steps.done, most)
        if above:
            store.save("basis", steps.state())  # from where a call with more products goes on
        vectors, trace = steps.basis @ rotation, float(diagonal_of(kernel, x).sum())
    numbers = {"trace": trace, "products": steps.done, "entries": steps.entries + n, "complete": steps.complete}
    arrays = {"eigenvalues": values, "errors": errors, "vectors": vectors, **numbers}
    return {name: np.asarray(value) for name, value in arrays.items()}


class _Steps:
    """The basis of a block Lanczos iteration, with full orthogonalization.

    Attributes:
      basis: Orthonormal vectors, (N, columns so far).
      done: Number of products.
    """

    def __init__(self, ring: Ring, width: int, seed: int, saved: Mapping[str, np.ndarray] | None) -> None:
        """Starts from random vectors, or from the state of an earlier iteration."""
        self._ring, self._n = ring, ring.count
        if saved is None:
            self._next = np.linalg.qr(np.random.default_rng([seed, 4]).normal(size=(self._n, width)))[0]
            self.basis, self._images = np.zeros((self._n, 0)), np.zeros((self._n, 0))
            self.done, self._entries = 0, 0
        else:
            self._next, self.basis, self._images = (saved[name] for name in ("next", "basis", "images"))
            self.done, self._entries = int(saved["done"]), int(saved["entries"])

    @property
    def complete(self) -> bool:
        """Whether the basis spans a space that the matrix maps into itself, up to rounding."""
        return not self._next.shape[1]

    @property
    def entries(self) -> int:
        """Number of kernel entries that were computed."""
        return self._entries + self._ring.entries

    def state(self) -> dict[str, Any]:
        """Returns the arrays from which an iteration goes on."""
        state = {"next": self._next, "basis": self.basis, "images": self._images}
        return {**state, "done": self.done, "entries": self.entries}

    def multiply(self) -> None:
        """Multiplies the matrix with the newest vectors."""
        ring = self._ring
        image = ring.fetched(ring.product(ring.dealt(self._next)))
        self.basis = np.concatenate([self.basis, self._next], axis=1)
        self._images = np.concatenate([self._images, image], axis=1)
        self._next, self.done = self._orthogonal(image), self.done + 1

    def estimates(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns eigenvalues, the norms of their residuals, and eigenvectors in the basis."""
        inner = self.basis.T @ self._images
        values, rotation = np.linalg.eigh((inner + inner.T) / 2)
        values, rotation = values[::-1][:count], rotation[:, ::-1][:, :count]
        errors = np.linalg.norm(self._images @ rotation - self.basis @ rotation * values, axis=0)
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
