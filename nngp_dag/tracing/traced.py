"""A traced model: its program at infinite width, and its kernels."""

import dataclasses
import functools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError, ModelError, NumericalWarning, check_known, warn, within_memory
from nngp_dag.forms import Described
from nngp_dag.graph import Dag
from nngp_dag.graph.operations import check_option
from nngp_dag.kernels._kernel import kernel as network_kernel
from nngp_dag.kernels.inputs import DTYPES, compute_dtype, real_array
from nngp_dag.kernels.result import Kernel
from nngp_dag.kernels.source import KernelSource
from nngp_dag.tracing.blocks import in_blocks, in_parts, square
from nngp_dag.tracing.expectations import accuracy, in_series
from nngp_dag.tracing.functions import Function
from nngp_dag.tracing.lowering import NoNetworkError, network_of
from nngp_dag.tracing.models import ModelFunction
from nngp_dag.tracing.moments import Recorded
from nngp_dag.tracing.parameters import Weight
from nngp_dag.tracing.program import Program
from nngp_dag.tracing.summary import summary
from nngp_dag.tracing.tails import Strayed, sensitivity, strayed, weights_with_tails
from nngp_dag.tracing.values import Node, Nonlinear, Product, heads

# Errors of numerical expectations, relative to second moments, from which on they are stated and refused.
_STATED, _REFUSED = 1e-6, 1e-2
# Estimated errors of values that count as Gaussian and are not, relative to second moments, from which on they are
# stated.
_NOT_GAUSSIAN = 1e-2
# Bytes of temporary arrays that one block of kernels may take.
_BUDGET = 2**30
# Number of arrays of a block that live at the same time in a compiled program; an estimate.
_LIVE = 16
# Number of elementwise functions up to which a program is compiled as a whole.
_LONGEST = 8


@dataclass(frozen=True, eq=False, repr=False)
class Traced(KernelSource, Described):
    """A model's infinite-width limit, read off its program by `nngp_dag.trace`.

    Attributes:
      model: The model as a function of its parameters, with their distributions.
      program: Its program at infinite width.
      shape: The shape of one input, with a first axis of size 1 if inputs are counted.
      discrete: Whether inputs are whole numbers, such as tokens.
      batch_axis: 0 if the first axis of inputs counts them, None if an array is one input.
      units: The number of output units.
      infinite: The numbers of channels that were taken to be infinite, by place.
      digest: A digest of the program and the distributions.
      parameterization: "own" for the gradients of the model's own parameters; "ntk" for those in units of their
        standard deviations.
    """

    model: ModelFunction
    program: Program
    shape: tuple[int, ...]
    discrete: bool
    batch_axis: int | None
    units: int
    infinite: dict[str, int] = field(default_factory=dict)
    digest: str = ""
    parameterization: str = "own"

    def __eq__(self, other: object) -> bool:
        """Whether two traced models have one program."""
        return isinstance(other, Traced) and self._identity == other._identity

    def __hash__(self) -> int:
        """Returns a hash that is equal for equal models."""
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[Any, ...]:
        return self.digest, self.shape, self.batch_axis, self.parameterization

    def with_options(self, **options: Any) -> "Traced":
        """Returns the model with another parameterization.

        Raises:
          InputError: An option is unknown, or the parameterization is neither "own" nor "ntk".
        """
        check_known(options, ("parameterization",), "options of a traced model")
        wanted = options.get("parameterization", self.parameterization)
        check_option("parameterization", wanted, ("own", "ntk"))
        return self if wanted == self.parameterization else dataclasses.replace(self, parameterization=wanted)

    def read_inputs(self, name: str, x: Any) -> Any:
        """Returns checked inputs; traced ones keep their values unchecked.

        Raises:
          InputError: They do not fit the model's inputs, are no numbers or not finite.
        """
        array: Any = real_array(name, x)
        expected = self.shape[1:] if self.batch_axis == 0 else self.shape
        got = array.shape[1:] if self.batch_axis == 0 else array.shape
        if got != expected or (self.batch_axis == 0 and len(array) == 0):
            first = ("N", *expected) if self.batch_axis == 0 else expected
            shape = "(" + ", ".join(map(str, first)) + ")"
            raise InputError(
                f"Expected `{name}` to have the shape {shape} that the model was traced with, got {array.shape}"
            )
        if self.discrete != (array.dtype.kind in "iub"):
            kind = "whole numbers, such as tokens" if self.discrete else "real numbers (floats)"
            raise InputError(f"Expected `{name}` to hold {kind}, as the model was traced with, got {array.dtype}")
        if not isinstance(array, jax.core.Tracer) and not np.isfinite(np.asarray(array)).all():
            raise InputError(f"Expected `{name}` to be finite, got NaN or infinity; drop or repair these inputs")
        return array

    def kernel(
        self,
        x1: Any,
        x2: Any = None,
        *,
        get: tuple[str, ...] = ("nngp", "ntk"),
        dtype: str | None = None,
        **options: Any,
    ) -> Kernel:
        """Returns the kernels of inputs, computed in float64 and rounded to the dtype of the inputs.

        Args:
          x1: Inputs, (N1, ...).
          x2: Inputs, (N2, ...), or None for `x1`.
          get: The wanted matrices, "nngp" and "ntk".
          dtype: "float32" or "float64"; by default that of the inputs.
          **options: A parameterization, see `Traced`.

        Raises:
          InputError: Inputs do not fit, or an option is unknown.
          ModelError: The NTK is wanted and has no such limit.
          OutOfMemoryError: The covariances do not fit into memory.
        """
        if options:
            return self.with_options(**options).kernel(x1, x2, get=get, dtype=dtype)
        first = self.read_inputs("x1", x1)
        second = None if x2 is None else self.read_inputs("x2", x2)
        both = [first] if second is None else [first, second]
        if self.network is not None and not any(map(_has_zero_rows, both)):
            # The back ends of networks are faster, and more accurate for nearly equal inputs.
            self._check_tails_of(both)
            found = network_kernel(self.network, first, second, get=get, dtype=dtype)
            return dataclasses.replace(found, network=self)
        if dtype is not None:
            check_option("dtype", dtype, DTYPES)
        precision = compute_dtype(*both, dtype=dtype)
        if self.discrete and dtype is None:
            precision = np.dtype(np.float32)
        what = f"kernels of {len(first):,} x {len(both[-1]):,} inputs with covariances of {self.covariances:,} numbers"
        with within_memory(what, "`nngp_dag.gram` computes them in tiles; or average-pool earlier in the model"):
            found = self.kernels(first, second, ntk="ntk" in get)
            results = dict(zip(("nngp", "ntk"), found, strict=True))
            traced = isinstance(results["nngp"], jax.core.Tracer)
            for name, matrix in results.items():
                if matrix is None or name not in get:
                    results[name] = None
                elif traced:
                    results[name] = matrix.astype(precision)
                else:
                    results[name] = self._rounded(name, matrix, precision)
        return Kernel(**results, network=self)

    def _rounded(self, name: str, matrix: Any, precision: np.dtype) -> Any:
        array = np.asarray(matrix, precision)
        if not np.isfinite(array).all():
            raise InputError(
                f"Expected kernels that {precision} can hold, got an {name.upper()} with entries that are not finite; "
                "scale the inputs or the weights down"
            )
        wide = precision == np.float64 and not jax.config.read("jax_enable_x64")
        return array if wide else jnp.asarray(array)

    def kernels(self, x1: Any, x2: Any = None, *, ntk: bool = True) -> tuple[Any, Any]:
        """Returns NNGP and NTK of checked inputs in float64, (N1, N2) each; the NTK is None unless it is wanted."""
        if ntk:
            self.check_ntk()
        with jax.enable_x64(True), jax.transfer_guard("allow"):
            if not self.discrete:
                x1 = x1.astype(np.float64)
                x2 = None if x2 is None else x2.astype(np.float64)
            alone, between = self._compiled(ntk)
            first = alone(x1)
            second = None if x2 is None else alone(x2)
            sides = [first] if second is None else [first, second]
            if not any(isinstance(v, jax.core.Tracer) for v in jax.tree.leaves(sides)):
                self._check_accuracy(sides)
            if self.batch_axis is None:
                return square(between(first, first if second is None else second))
            return in_blocks(between, first, second, self._rows(), ntk)

    @functools.cached_property
    def _numerical(self) -> dict[tuple[Function, Function], list[tuple[Nonlinear, Nonlinear]]]:
        """The pairs of functions whose expectations have no closed form, with the nodes that apply them."""
        functions, found = self.program.functions, {}
        nodes = [node for node in self.program.nodes if isinstance(node, Nonlinear)]
        for i, one in enumerate(nodes):
            for other in nodes[: i + 1]:
                pair = functions[one.id], functions[other.id]
                if one.sources & other.sources and in_series(*pair):
                    found.setdefault(pair, []).append((one, other))
        return found

    def _check_accuracy(self, values: list[dict[str, jax.Array]]) -> None:
        """Warns of what is not exact: numerical expectations, and values that count as Gaussian and are not.

        Args:
          values: The values of inputs, with the variances of the nodes of `_numerical` and `_tails`.

        Raises:
          ModelError: The error of an expectation may exceed one per cent.
        """
        self._check_tails(values)

        def spread(nodes: list[Nonlinear]) -> np.ndarray:
            found = [np.ravel(v[f"variance {node.node.id}"]) for node in nodes for v in values]
            return np.linspace(min(v.min() for v in found), max(v.max() for v in found), 5)

        worst, place, name = 0.0, "", ""
        for (f, g), pairs in self._numerical.items():
            first, second = zip(*pairs, strict=True)
            error = accuracy(f, g, spread(list(first)), spread(list(second)))
            if error > worst:
                worst, place, name = error, first[0].place, f.name
        if worst > _REFUSED:
            raise ModelError(
                f"{place}: Expected a function whose Gaussian expectations can be computed, got {name}, with an error "
                f"of up to {worst:.1g} of its second moment; scale the inputs or weights, or use another function"
            )
        if worst > _STATED:
            warn(
                f"expectations of {name} at {place} are numerical, with an error of up to {worst:.1g} of the second "
                "moment",
                NumericalWarning,
            )

    @functools.cached_property
    def _tails(self) -> list[Strayed]:
        """The values that count as Gaussian and are not."""
        return strayed(self.program.output)

    def _check_tails_of(self, inputs: list[Any]) -> None:
        """Warns like `_check_tails`, for inputs whose kernels are those of the network."""
        if self._tails and not any(isinstance(x, jax.core.Tracer) for x in inputs):
            with jax.enable_x64(True), jax.transfer_guard("allow"):
                self._check_tails([self._tails_alone(x.astype(np.float64)) for x in inputs])

    @functools.cached_property
    def _tails_alone(self) -> Any:
        names = tuple(sorted({name for one in self._tails for name in _tail_names(one.inner)}))
        return jax.jit(jax.vmap(lambda x: self.program.values(x[None], names)))

    def _check_tails(self, values: list[dict[str, jax.Array]]) -> None:
        worst, largest, place, names = 0.0, 0.0, "", ""
        for node, inner, mean_only in self._tails:
            kurtosis, variance = (np.concatenate([np.ravel(v[name]) for v in values]) for name in _tail_names(inner))
            at = int(kurtosis.argmax())
            if isinstance(node, Nonlinear):
                rate = sensitivity(self.program.functions[node.id], float(variance[at]), mean_only=mean_only)
            else:
                rate = 1 / 3  # that of the square
            if kurtosis[at] * rate > worst:
                worst, largest, place = float(kurtosis[at] * rate), float(kurtosis[at]), getattr(node, "place", "")
                names = " and ".join(f"`{name}`" for name in weights_with_tails(inner))
        if worst > _NOT_GAUSSIAN:
            warn(
                f"values at {place} sum few random numbers that are not normal, those of {names}, and have an excess "
                f"kurtosis of up to {largest:.2g}; kernels take them as Gaussian, with an error of about {worst:.1g} "
                "of the second moment",
                NumericalWarning,
            )

    def description(self) -> dict[str, Any]:
        """Returns the model's name and digest, and the parameterization."""
        return {"model": self.model.name, "digest": self.digest, "parameterization": self.parameterization}

    @functools.cached_property
    def _lowered(self) -> Network | str:
        if self.batch_axis is None or self.discrete:
            return "its input is one array, or tokens"
        if self.program.no_ntk:
            return "it has no NTK of this kind"
        with jax.enable_x64(True):
            try:
                return network_of(
                    self.program.output, self.program.nodes, self.program.functions, self.shape, self.parameterization
                )
            except NoNetworkError as reason:
                return str(reason)

    @property
    def name(self) -> str:
        """The name of the model's class or function."""
        return self.model.name

    @property
    def network(self) -> Network | None:
        """The `Network` with these kernels, or None if the model is none; `reason` says why."""
        return self._lowered if isinstance(self._lowered, Network) else None

    @property
    def reason(self) -> str:
        """The reason why the model is no `Network`; empty if it is one."""
        return "" if isinstance(self._lowered, Network) else self._lowered

    def __str__(self) -> str:
        """Returns what was read and assumed, in lines."""
        return summary(self)

    @property
    def dag(self) -> Dag | None:
        """The graph of `network`, or None."""
        return None if self.network is None else self.network.dag

    def check_ntk(self) -> None:
        """Refuses the NTK of a model whose output weights are used elsewhere, too.

        Raises:
          ModelError: They are; the gradients are then not independent of the weights.
        """
        if self.program.no_ntk:
            raise ModelError(self.program.no_ntk)
        outer = self.program.output
        last = heads(outer)
        for node in self.program.nodes:
            if isinstance(node, Product) and node not in last:
                same = next((head for head in last if head.weight.key == node.weight.key), None)
                if same is not None:
                    raise ModelError(
                        f"Expected the weights of the output, `{same.weight.name}`, to be used once, got two uses: the "
                        "NTK then has no such limit (gradient independence, Yang 2020); add a readout with weights of "
                        "its own, or ask for the NNGP alone (get='nngp')"
                    )

    def _facts(self) -> dict[str, str]:
        return {
            "": self.model.name,
            "parameters": f"{len(self.model.leaves)}",
            "inputs": str(self.shape[1:] if self.batch_axis == 0 else self.shape),
            "outputs": str(self.units),
            "parameterization": self.parameterization,
        }

    def _seeds(self) -> Any:
        def seed(weight: Weight) -> float:
            if not weight.trained:
                return 0.0
            return 1.0 if self.parameterization == "own" else weight.distribution.std**2

        return seed

    @functools.lru_cache(maxsize=8)  # noqa: B019 - the programs live as long as the model
    def _compiled(self, ntk: bool) -> tuple[Any, Any]:
        """Returns the functions that compute the values of inputs, and kernels from two sets of values."""
        dtype = np.dtype(int) if self.discrete else np.dtype(np.float64)
        names = self.program.needed(jax.ShapeDtypeStruct(self.shape, dtype), ntk=ntk)
        numerical = {node for pairs in self._numerical.values() for pair in pairs for node in pair}
        checked = {*(f"variance {node.node.id}" for node in numerical)}
        checked |= {name for one in self._tails for name in _tail_names(one.inner)}
        names = tuple(sorted({*names, *checked}))
        seeds = self._seeds()

        def alone(x: jax.Array) -> dict[str, jax.Array]:
            found = self.program.values(x[None] if self.batch_axis == 0 else x, names)
            # Kernels that need nothing of an input (they are 0) still have a row for it.
            return found or {"nothing": jnp.zeros(())}

        def between(one: dict[str, jax.Array], other: dict[str, jax.Array]) -> tuple[Any, Any]:
            found = self.program.between((Recorded(one), Recorded(other)), seeds, ntk=ntk)
            if self.batch_axis is None:
                return found
            return found[0].reshape(()), None if found[1] is None else found[1].reshape(())

        # XLA takes more than linear time to compile long programs. Those run step by step, with compiled functions.
        compiled: Any = (lambda function: function) if self._is_long else jax.jit
        if self.batch_axis is None:
            return compiled(alone), compiled(between)
        # The covariances of pixels of one input are as large as those of a pair.
        several = compiled(jax.vmap(alone))
        size = self._rows() ** 2
        return (
            lambda xs: several(xs) if len(xs) <= size else in_parts(several, xs, size),
            compiled(jax.vmap(jax.vmap(between, (None, 0)), (0, None))),
        )

    @property
    def _is_long(self) -> bool:
        """Whether the program is too long to be compiled as a whole."""
        return len(self.program.functions) > _LONGEST

    @property
    def covariances(self) -> int:
        """The number of float64 covariances that exist at once for one pair of inputs; an estimate."""
        live = 3 * len(self.program.nodes) if self._is_long else _LIVE
        return live * max(math.prod(node.shape) for node in self.program.nodes) ** 2

    def _rows(self) -> int:
        """Returns the number of inputs in a block, so that temporary arrays stay within the budget."""
        entries = _BUDGET / (8 * self.covariances)
        return max(1, min(512, int(math.sqrt(entries))))


def _tail_names(node: Node) -> tuple[str, str]:
    return f"kurtosis {node.id}", f"variance {node.id}"


def _has_zero_rows(x: Any) -> bool:
    """Whether an input is 0; the slope of a kink there is that of the model, which networks take from a limit."""
    if isinstance(x, jax.core.Tracer):
        return False
    return not np.asarray(x).reshape(len(x), -1).any(axis=1).all()
