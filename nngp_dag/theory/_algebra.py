"""Linear algebra in NumPy for known values and in JAX for traced ones, so that each formula is written once."""

import contextlib
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import scipy.linalg

from nngp_dag.theory._cholesky import cholesky, inverse_diagonal
from nngp_dag.theory.symmetric import row_blocks


class Algebra:
    """NumPy and SciPy in float64.

    Attributes:
      xp: The module NumPy, or for traced values `jax.numpy`.
      traced: Whether values are traced by a transformation of JAX.
      dtype: The precision of all results.
    """

    xp: Any = np
    traced = False
    dtype = np.dtype(np.float64)

    def array(self, values: Any) -> Any:
        """Returns values in the precision of all results."""
        return values.astype(self.dtype) if isinstance(values, np.ndarray) else self.xp.asarray(values, self.dtype)

    def with_noise(self, matrix: Any, noise: Any) -> Any:
        """Returns a new matrix with noise, a number or one per row, added to the diagonal."""
        # LAPACK overwrites a matrix only if it is in Fortran order.
        result = np.array(matrix, np.float64, order="F")
        result[np.diag_indices_from(result)] += noise
        return result

    def cholesky(self, matrix: Any) -> Any:
        """Returns the lower Cholesky factor, in the place of the matrix; entries above the diagonal are arbitrary."""
        return cholesky(matrix)

    def solve(self, factor: Any, vectors: Any) -> Any:
        """Returns A^-1 times vectors, for the factor of A."""
        return scipy.linalg.cho_solve((factor, True), vectors)

    def inverse_diagonal(self, factor: Any) -> Any:
        """Returns the diagonal of A^-1 for the factor of A, which is overwritten."""
        return inverse_diagonal(factor)

    def applied(self, matrix: Any, vectors: Any, noise: Any = 0.0) -> Any:
        """Returns (K + diag(noise)) times vectors, (N, k); a large matrix is read by blocks of rows."""
        result, diagonal = np.empty(vectors.shape), np.broadcast_to(noise, len(matrix))
        for rows in row_blocks(matrix):
            block = matrix[rows].astype(np.float64)
            np.einsum("ii->i", block[:, rows])[...] += diagonal[rows]
            result[rows] = block @ vectors
        return result


class TracedAlgebra(Algebra):
    """JAX in the precision of the traced kernels; matrices that have no Cholesky factor give NaN."""

    xp = jnp
    traced = True

    def __init__(self, dtype: np.dtype) -> None:
        """Takes the precision of all results."""
        self.dtype = dtype

    def array(self, values: Any) -> jax.Array:
        """Returns values in the precision of all results."""
        return jnp.asarray(values, self.dtype)

    def with_noise(self, matrix: Any, noise: Any) -> jax.Array:
        """Returns a new matrix with noise, a number or one per row, added to the diagonal."""
        part = self.symmetric(matrix)
        return part + jnp.diag(jnp.broadcast_to(self.array(noise), len(part)))

    def symmetric(self, matrix: Any) -> jax.Array:
        """Returns (K + K^T) / 2, so that derivatives in the entries of a kernel are symmetric, too."""
        part = self.array(matrix)
        return (part + part.T) / 2

    def cholesky(self, matrix: Any) -> jax.Array:
        """Returns the lower Cholesky factor; entries above the diagonal are arbitrary."""
        return jax.scipy.linalg.cho_factor(matrix, lower=True)[0]

    def solve(self, factor: Any, vectors: Any) -> jax.Array:
        """Returns A^-1 times vectors, for the factor of A."""
        return jax.scipy.linalg.cho_solve((factor, True), vectors)

    def inverse_diagonal(self, factor: Any) -> jax.Array:
        """Returns the diagonal of A^-1 for the factor of A."""
        return jnp.diagonal(self.solve(factor, jnp.eye(len(factor), dtype=self.dtype)))

    def applied(self, matrix: Any, vectors: Any, noise: Any = 0.0) -> jax.Array:
        """Returns (K + diag(noise)) times vectors, (N, k)."""
        return self.with_noise(matrix, noise) @ vectors


def is_traced(*values: Any) -> bool:
    """Whether a transformation of JAX, such as `jax.grad`, traces one of the arrays, numbers or kernels."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(values))


def algebra_for(*values: Any, kernels: Any) -> Any:
    """Returns the algebra for some arguments: that of JAX if one of them or of the kernels is traced."""
    if not is_traced(values, kernels):
        return Algebra()
    # Traced kernels decide, since NumPy constants beside them are float64 only by default.
    leaves = jax.tree.leaves(kernels)
    dtype = jnp.result_type(*([leaf for leaf in leaves if is_traced(leaf)] or leaves))
    return TracedAlgebra(dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.result_type(float))


def full_precision() -> contextlib.AbstractContextManager:
    """Returns a context in which traced products have the precision of their dtype on every device."""
    return jax.default_matmul_precision("highest")


def safe_sqrt(xp: Any, values: Any) -> Any:
    """Returns roots of values, with 0 for negative ones; their derivative is 0 where the root is 0, not infinite."""
    if xp is np:
        return np.sqrt(np.maximum(values, 0.0))
    positive = values > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1)), 0)


def module_of(values: Any) -> Any:
    """Returns `jax.numpy` for arrays of JAX, traced or not, else NumPy."""
    return jnp if isinstance(values, jax.Array) else np
