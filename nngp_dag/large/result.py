"""The result of `solve`: predictions, and how far they can be trusted."""

import dataclasses
import math
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from nngp_dag import forms
from nngp_dag.architecture import Network
from nngp_dag.errors import InputError
from nngp_dag.forms import Described
from nngp_dag.kernels.inputs import check_inputs, host_array, precision_of
from nngp_dag.large.blocks import BlockKernel, Entries
from nngp_dag.theory import Posterior

if TYPE_CHECKING:
    import pandas

# Rows and columns of the kernel that predictions compute at once.
_ROWS, _COLUMNS = 2048, 8192


@dataclass(frozen=True)
class HeldOut:
    """Errors on rows that were held out.

    Attributes:
      rows: Number of rows.
      rmse: Root of the mean squared error, over rows and outputs.
      rmse_std: Standard error of `rmse` over the draw of these rows.
      accuracy: Share of rows whose largest output is that of their largest target; None for one output.
    """

    rows: int
    rmse: float
    rmse_std: float
    accuracy: float | None


@dataclass(frozen=True, repr=False)
class Solution(Described):
    """Predictions of kernel ridge regression, and how far they can be trusted.

    Attributes:
      method: "dense", "landmarks" or "iterative".
      kind: "nngp" or "ntk".
      ridge: The ridge.
      network: The network.
      rows: Number of training rows N.
      basis: Inputs of the kernel functions that predictions combine: all training inputs, or the landmarks, (B, ...).
      coefficients: Their coefficients, (B, C).
      residual: Largest relative residual of the linear system over outputs and test inputs, recomputed after the
        solution. For "landmarks", that of the system of the landmarks for the outputs.
      effective_dimension: tr(K (K + ridge I)^-1), of the kernel that was solved; see `effective_dimension_std`.
      effective_dimension_std: Standard error of an estimate by random vectors; 0 where it is exact.
      training_rmse: Root of the mean squared error on the training rows, over rows and outputs.
      approximated: A text that says what was approximated; empty for exact solutions.
      unexplained: Share of the trace of the kernel that the landmarks leave unexplained; 0 for exact solutions.
      posterior: Mean and covariance of the outputs on the test inputs `x_test` of `solve`; None without them.
      variance_errors: How far each variance of `posterior` may be off, (Nt,): a bound from the residual, and an
        estimate for the rounding of kernel entries. For landmarks an indication: the variance that they leave
        unexplained, of the test input or of a row in the mean.
      held_out: Errors of a solution without some rows, on these; None for exact solutions. The result itself has
        seen them all.
      iterations: Number of iterations; 0 for other methods.
      entries: Number of kernel entries that were computed.
      seconds: Times of the parts of the work, by name; those of a resumed call count from its last start.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(50, 3))
      >>> solution = nd.solve("2_12", x, x[:, 0], ridge=0.1)
      >>> solution.method, solution.predict(x[:4]).shape
      ('dense', (4, 1))
    """

    method: str
    kind: str
    ridge: float
    network: Network
    rows: int
    basis: Float[np.ndarray, "b *features"]
    coefficients: Float[np.ndarray, "b c"]
    residual: float
    effective_dimension: float
    effective_dimension_std: float
    training_rmse: float
    approximated: str = ""
    unexplained: float = 0.0
    held_out: HeldOut | None = None
    posterior: Posterior | None = None
    variance_errors: Float[np.ndarray, " nt"] | None = None
    iterations: int = 0
    entries: int = 0
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    def predict(self, x_test: Any) -> np.ndarray:
        """Returns predictions, one row per test input and one column per output, (Nt, C), in float64.

        The memory does not grow with Nt N: the kernel of test and training inputs is computed in blocks.

        Args:
          x_test: Test inputs, (Nt, features...).

        Raises:
          InputError: The inputs do not fit the network, or have another number of features.

        Examples:
          >>> import numpy as np, nngp_dag as nd
          >>> x = np.random.default_rng(0).normal(size=(50, 3))
          >>> nd.solve("2_12", x, x[:, 0], ridge=1e-6).predict(x[:2]).round(3).tolist() == x[:2, :1].round(3).tolist()
          True
        """
        test = np.asarray(check_inputs("x_test", host_array("x_test", x_test), self.network, str(self.basis.dtype))[0])
        if test.shape[1:] != self.basis.shape[1:]:
            raise InputError(
                f"Expected `x_test` to have rows of shape {self.basis.shape[1:]}, got {test.shape[1:]}; pass inputs of "
                "the kind that the solution was trained on"
            )
        kernel = BlockKernel(self.network, self.kind, self.basis.shape[1:], self.basis.dtype)
        return predicted(kernel, test, self.basis, self.coefficients)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with one row, with a column for every number and text of the result.

        Examples:
          >>> import numpy as np, nngp_dag as nd
          >>> x = np.random.default_rng(0).normal(size=(50, 3))
          >>> nd.solve("2_12", x, x[:, 0], ridge=0.1).to_frame()[["method", "rows", "basis"]]
            method  rows  basis
          0  dense    50     50
        """
        import pandas

        row: dict[str, Any] = {}
        for one in dataclasses.fields(self):
            value = getattr(self, one.name)
            if one.name == "basis":
                row["basis"] = len(value)
            elif one.name == "held_out":
                row |= {
                    f"held_out_{part.name}": None if value is None else getattr(value, part.name)
                    for part in dataclasses.fields(HeldOut)
                }
            elif one.name == "seconds":
                row["seconds"] = sum(value.values())
            elif one.name not in ("coefficients", "network", "posterior", "variance_errors"):
                row[one.name] = value
        return pandas.DataFrame([row])

    def _facts(self) -> dict[str, str]:
        outputs = self.coefficients.shape[1]
        facts = {"": self.method, "rows": forms.count(self.rows), "outputs": str(outputs), "kind": repr(self.kind)}
        facts |= {"ridge": forms.number(self.ridge), "residual": f"{self.residual:.1e}"}
        dimension, std = self.effective_dimension, self.effective_dimension_std
        facts["effective_dimension"] = forms.spread(dimension, std) if std else f"{dimension:.4g}"
        facts["training_rmse"] = f"{self.training_rmse:.4g}"
        if self.iterations:
            facts["iterations"] = str(self.iterations)
        if self.approximated:
            facts |= {"landmarks": forms.count(len(self.basis)), "unexplained": f"{self.unexplained:.2g}"}
        if self.posterior is not None:
            facts["test_std"] = forms.span(self.posterior.std)
        if self.held_out is not None:
            facts["held_out_rmse"] = forms.spread(self.held_out.rmse, self.held_out.rmse_std)
            if self.held_out.accuracy is not None:
                facts["held_out_accuracy"] = f"{self.held_out.accuracy:.4f}"
        return facts


def predicted(kernel: BlockKernel, test: np.ndarray, basis: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Returns the kernel of test inputs and a basis, times coefficients, in float64, (Nt, C)."""
    with precision_of(np.dtype(np.float64)):
        size, outputs = min(_ROWS, len(test)), coefficients.shape[1]
        result = np.zeros((len(test), outputs))
        parts = -(-len(basis) // _COLUMNS)
        width = -(-len(basis) // parts)
        for j in range(0, len(basis), width):
            # All parts have one shape. Coefficients of 0 leave out the rows that fill up the last one.
            z, a = basis[j : j + width], coefficients[j : j + width]
            missing = width - len(z)
            z = jnp.asarray(np.concatenate([z, basis[:missing]]), kernel.dtype)
            a = jnp.asarray(np.concatenate([a, np.zeros((missing, outputs))]))
            for i in range(0, len(test), size):
                taken = np.minimum(np.arange(i, i + size), len(test) - 1)
                found = np.asarray(
                    _part(kernel.weights, jnp.asarray(test[taken], kernel.dtype), z, a, kernel=kernel.entries)
                )
                result[i : i + size] += found[: len(test) - i]
    return result


@partial(jax.jit, static_argnames="kernel")
def _part(weights: Any, x: jax.Array, z: jax.Array, a: jax.Array, *, kernel: Entries) -> jax.Array:
    return kernel.between(weights, x, z).astype(jnp.float64) @ a


def held_out_errors(outputs: np.ndarray, targets: np.ndarray) -> HeldOut:
    """Returns the errors of outputs on held-out rows, (H, C) each, H >= 2."""
    squares = np.mean((outputs - targets) ** 2, axis=1)
    rmse = math.sqrt(squares.mean())
    # The standard error of a mean, carried through the root.
    std = float(squares.std(ddof=1) / math.sqrt(len(squares)) / (2 * rmse)) if rmse else 0.0
    accuracy = None
    if targets.shape[1] > 1:
        accuracy = float(np.mean(outputs.argmax(axis=1) == targets.argmax(axis=1)))
    return HeldOut(len(targets), rmse, std, accuracy)
