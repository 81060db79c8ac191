"""The unrolled steps: evaluation of the kernels of a network from its program (`nngp_dag.architecture.program`).

Cov(t, u) is the covariance of two nodes, m(t) the mean of a node, and C = F - mu mu^T the covariance of a field:

    Cov(t, u) = sum of A C over fields, or of a Cov(s, u) over edges s -> t without weights
    K(t) = Cov(t, t) + m(t) m(t)^T,   m(t) = sum of B mu over fields, or of a m(s)

These are Equations (5) and (6) of docs/mathematics.md. The NTK has the recursion of Cov. Variances and means of all
inputs are computed first. Every other entry of a matrix depends only on the same entry of the input kernel and on these
vectors. So `nngp_dag.kernels.blocking` can compute the matrices in blocks.

The same recursion carries the gap of Cov, sqrt(v_i v_j) - |Cov_ij| with the variances v of both inputs, Equation (10)
of docs/mathematics.md (see `layer_rules.add_up`). It keeps the angle of nearly parallel or opposite inputs, at any
norms. From Cov alone, half of the digits of that angle would be lost, and the NTK is linear in the angle.
"""

import abc
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from nngp_dag.architecture.interpreter import Algebra, Sum, run
from nngp_dag.architecture.program import Step, Structure, Term
from nngp_dag.graph import EdgeOperation
from nngp_dag.kernels import layer_rules
from nngp_dag.kernels.backends.loop import marginals_of_outputs, run_loop, run_loop_moments
from nngp_dag.kernels.backends.loop_tables import Tables
from nngp_dag.kernels.device import BlockSizes
from nngp_dag.kernels.layer_rules import KernelState, Layers, Marginals, Summand
from nngp_dag.kernels.pixel_layout import PixelLayout
from nngp_dag.kernels.pixel_layout import pool as pooled

# NNGP of every output, and its NTK or None.
Kernels = list[tuple[jax.Array, jax.Array | None]]


class Spec(NamedTuple):
    """The hashable structure of a compiled program.

    Attributes:
      structure: The order of evaluation.
      layers: The pytree structure of `Layers`, whose numbers are in `Weights`.
      pixels: The readout's average over pixels, "flatten" or "global-average"; None keeps the pixels.
      with_ntk: Whether the NTK is requested.
      homogeneous: Whether the network is homogeneous: scaling both inputs by c > 0 scales their kernels by c^2.
      loop: Whether the steps run as a loop.
      blocks: The sizes of blocks.
      stacked: Whether the kernels of all outputs form one array; possible for loops and series without readout.
      fused: Whether the steps of a tile run in one Pallas kernel.
    """

    structure: Structure
    layers: Any
    pixels: str | None
    with_ntk: bool
    homogeneous: bool
    loop: bool
    blocks: BlockSizes
    stacked: bool = False
    fused: bool = False

    @property
    def equal_norms(self) -> bool:
        """Whether all inputs, divided by their norms, have the same variances at every node."""
        return self.homogeneous and self.structure.num_inputs == 1 and self.pixels is None

    def layers_with(self, weights: "Weights") -> Layers:
        """Returns the operations with their numbers."""
        return jax.tree.unflatten(self.layers, [weights.layers[i] for i in range(self.layers.num_leaves)])


class Weights(NamedTuple):
    """The numbers of a program.

    Attributes:
      terms: Weights of the terms of all steps; empty for a loop.
      means: Weights of the terms of all means; empty for a loop.
      layers: Numbers of the layers.
      tables: The tables of a loop, or None.
      true: The value True as an input of the compiled program, so that XLA cannot know it; see `evaluated_once`. None
        on GPUs without pixels.
      series: The Chebyshev series of `nngp_dag.kernels.backends.chebyshev`, which replace the steps; or None.
    """

    terms: jax.Array | np.ndarray
    means: jax.Array | np.ndarray
    layers: jax.Array | np.ndarray
    tables: Tables | None
    true: jax.Array | np.ndarray | None
    series: jax.Array | np.ndarray | None = None


class Moments(NamedTuple):
    """Variances and means of inputs: vectors (N, *pixels), or (1,) for a value that all inputs share.

    Attributes:
      v: A dictionary of variances by slot; for a loop, one array of variances by place (see `loop_tables.Turns`).
      m: A dictionary of means by node, of the nodes whose mean may differ from 0; for a loop, one array or None.
    """

    v: Any
    m: Any


def evaluated_once(true: jax.Array | np.ndarray | None, compute: Callable[..., Any], *operands: Any) -> Any:
    """Returns `compute(*operands)`, and keeps XLA from computing it again for every later use.

    XLA would fuse all steps into one loop and compute shared values again for each of their uses. Its time to compile
    would then grow explosively with the number of steps. A condition whose value XLA does not know keeps steps apart.
    On a GPU, XLA fuses steps with shared inputs into one kernel with several outputs, and access to memory costs more.
    So there the steps of vectors are not kept apart.

    Args:
      true: The condition, see `Weights`; None leaves fusion to XLA.
      compute: The function.
      operands: Its arguments, pytrees of arrays.
    """
    if true is None:
        return compute(*operands)
    compute = jax.jit(compute)  # so that `eval_shape` and `cond` share one trace
    shapes = jax.eval_shape(compute, *operands)
    nothing = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    return lax.cond(true, compute, lambda *operands: nothing, *operands)


def _stems(
    spec: Spec,
    weights: Weights,
    layers: Layers,
    inputs: Sequence[KernelState],
    marginals: Sequence[Marginals],
    layout: PixelLayout,
    channels: Sequence[int],
    with_ntk: bool = False,
) -> list[tuple[KernelState, Marginals]]:
    """Applies the stems; returns the covariances and marginals of every input node. A missing NTK counts as 0."""

    def stem(value: KernelState, side: Marginals, fan_in: int) -> tuple[KernelState, Marginals]:
        if with_ntk and value.ntk is None:
            value = value._replace(ntk=jnp.zeros_like(value.k))
        if layers.stem is None:
            return value, side
        return layer_rules.apply(layers.stem, value, side, layout, layers.rules, fan_in)

    # A loop reads the stems' fields from memory, so XLA does not compute them twice.
    apart = layers.stem is not None and not spec.loop
    once = functools.partial(evaluated_once, weights.true) if apart else lambda f, *args: f(*args)
    return [
        once(functools.partial(stem, fan_in=fan_in), value, side)
        for value, side, fan_in in zip(inputs, marginals, channels, strict=True)
    ]


class _Covariances(Algebra):
    """The algebra of covariances, for `run`; subclasses supply variances and means."""

    def __init__(self, weights: Weights, layers: Layers, layout: PixelLayout) -> None:
        """Keeps the layers, the layout, and the condition of `evaluated_once`."""
        self.layers, self.layout, self._true = layers, layout, weights.true

    @abc.abstractmethod
    def marginals(self, step: Step, mean: jax.Array | None) -> Marginals:
        """Returns the variances and means of a node."""

    def add(self, of: Sum) -> KernelState:
        """Adds up the terms of a step."""
        return self._total(of.step.terms, of.weights, of.values, *self._shares(of.step))

    def apply(
        self, operation: int, slot: int, of: Sum, node: KernelState, mean: jax.Array | None
    ) -> tuple[KernelState, jax.Array | None]:
        """Applies a weighted operation."""
        del slot
        # Every field computes its node's sum again, which is faster than reading it from memory. Images read the sum,
        # because pooling is expensive.
        terms, numbers, read = of.step.terms, of.weights, (of.values, *self._shares(of.step))
        if self.layout.ndim:
            terms, numbers, read = [Term(of.step.slot)], [np.ones((), node.k.dtype)], ([node], None, None)

        def field(marginals: Marginals, read: tuple) -> tuple[KernelState, Marginals]:
            total = self._total(terms, numbers, *read)
            return layer_rules.apply(self.layers.edges[operation], total, marginals, self.layout, self.layers.rules)

        value, marginals = evaluated_once(self._true, field, self.marginals(of.step, mean), read)
        return value, None if marginals.m1 is None else self.layout.vector(marginals.m1)

    def pool(self, mean: jax.Array, pool: EdgeOperation) -> jax.Array:
        """Pools a mean, (N, *pixels)."""
        return pooled(pool, mean, range(1, mean.ndim))

    def _shares(self, step: Step) -> tuple[list[Marginals] | None, Marginals | None]:
        """Returns the variances of a step's terms and of its sum, or None if both inputs have the same shares."""
        del step
        return None, None

    def _total(
        self,
        terms: Sequence[Term],
        weights: Sequence[Any],
        values: Sequence[KernelState],
        shares: Sequence[Marginals] | None,
        of_sum: Marginals | None,
    ) -> KernelState:
        """Adds up pooled values with weights; see `layer_rules.add_up` for the role of the variances."""
        summands = []
        for i, (term, weight, value) in enumerate(zip(terms, weights, values, strict=True)):
            k, ntk = (
                None if v is None else self.layout.pool(self.layout.pool(v, term.left, "left"), term.right, "right")
                for v in (value.k, value.ntk)
            )
            assert k is not None
            v1, v2 = (None, None) if shares is None else shares[i][:2]
            summands.append(Summand(weight, KernelState(k, value.gap, ntk), v1, v2))
        return layer_rules.add_up(summands, *(of_sum[:2] if of_sum is not None else ()))


class _OwnCovariances(_Covariances):
    """The algebra for inputs with themselves: the values are the variances, and are kept by slot."""

    def __init__(self, weights: Weights, layers: Layers, layout: PixelLayout) -> None:
        """Starts without variances and means."""
        super().__init__(weights, layers, layout)
        self.v: dict[int, jax.Array] = {}
        self.m: dict[int, jax.Array] = {}

    def keep(self, slot: int, value: KernelState) -> None:
        """Keeps the variances of a slot."""
        self.v[slot] = self.layout.diagonal(value.k)

    def add(self, of: Sum) -> KernelState:
        """Adds up the terms of a step."""
        total = super().add(of)
        self.keep(of.step.slot, total)
        return total

    def at_node(self, step: Any, total: KernelState, mean: jax.Array | None) -> KernelState:
        """Keeps the node's mean."""
        if mean is not None and step.node is not None:
            self.m[step.node] = mean
        return total

    def apply(
        self, operation: int, slot: int, of: Sum, node: KernelState, mean: jax.Array | None
    ) -> tuple[KernelState, jax.Array | None]:
        """Applies a weighted operation."""
        value, mean = super().apply(operation, slot, of, node, mean)
        self.keep(slot, value)
        return value, mean

    def marginals(self, step: Step, mean: jax.Array | None) -> Marginals:
        """Returns the variances and means of a node."""
        vectors = [self.v[step.slot]] if mean is None else [self.v[step.slot], mean]
        return Marginals(*(side(of) for of in vectors for side in (self.layout.left, self.layout.right)))


class _Block(_Covariances):
    """The algebra for a block of the kernel, given the variances and means of its rows and columns."""

    def __init__(
        self, weights: Weights, layers: Layers, layout: PixelLayout, moments: tuple[Moments, Moments], add_shares: bool
    ) -> None:
        """Keeps the moments of rows and columns; `add_shares` says whether shares differ, see `_shares`."""
        super().__init__(weights, layers, layout)
        (self._first, self._second), self._add_shares = moments, add_shares

    def _shares(self, step: Step) -> tuple[list[Marginals] | None, Marginals | None]:
        if not self._add_shares or len(step.terms) == 1:
            return None, None
        return [self._variances(term.slot) for term in step.terms], self._variances(step.slot)

    def _variances(self, slot: int) -> Marginals:
        return Marginals(self.layout.left(self._first.v[slot]), self.layout.right(self._second.v[slot]))

    def marginals(self, step: Step, mean: jax.Array | None) -> Marginals:
        """Returns the variances and means of a node."""
        del mean
        variances, node = self._variances(step.slot), step.node
        if node not in self._first.m:
            return variances
        return Marginals(*variances[:2], self.layout.left(self._first.m[node]), self.layout.right(self._second.m[node]))


def _run(
    spec: Spec, weights: Weights, stems: Sequence[tuple[KernelState, Marginals]], algebra: _Covariances, means: bool
) -> dict[int, KernelState]:
    numbers, mean_numbers = ([of[i] for i in range(len(of))] for of in (weights.terms, weights.means))
    mu = [None if marginals.m1 is None else algebra.layout.vector(marginals.m1) for _, marginals in stems]
    return run(spec.structure, numbers, mean_numbers if means else None, [value for value, _ in stems], mu, algebra)


def moments_of(
    spec: Spec, weights: Weights, inputs: Sequence[KernelState], layout: PixelLayout, channels: Sequence[int]
) -> tuple[Moments, Callable[[int], jax.Array]]:
    """Runs the recursion for inputs with themselves.

    Args:
      spec: The structure of the program.
      weights: The numbers of the program.
      inputs: The second moments of every input node's data, (N, *pixels), with two axes per spatial axis if the layout
        is full.
      layout: The axes of covariances, which must be paired.
      channels: Fan-in of every stem.

    Returns:
      Variances and means of all nodes, and a function from an output node to the covariances of inputs with themselves.
    """
    layers = spec.layers_with(weights)
    q_in = [layout.diagonal(value.k) for value in inputs]
    marginals_in = [Marginals(layout.left(q), layout.right(q)) for q in q_in]
    stems = _stems(spec, weights, layers, inputs, marginals_in, layout, channels)
    if spec.loop:
        assert weights.tables is not None
        fields = [field for field, _ in stems]
        means = [jnp.zeros_like(v) if s.m1 is None else s.m1 for v, (_, s) in zip(q_in, stems, strict=True)]
        v_of_places, m_of_nodes = run_loop_moments(
            weights.tables, fields, means if spec.structure.means else None, layers
        )
        places = jnp.asarray(weights.tables.output_places)
        return Moments(v_of_places, m_of_nodes), lambda output: v_of_places[places[output]]
    algebra = _OwnCovariances(weights, layers, layout)
    for slot, (field, _) in enumerate(stems):
        algebra.keep(slot, field)
    nodes = _run(spec, weights, stems, algebra, means=True)
    v = algebra.v
    if spec.equal_norms or layout.full:
        # Then sums need no shares, and only the variances of nodes are read later.
        v = {step.slot: v[step.slot] for step in spec.structure.steps if step.node is not None}
    return Moments(v, algebra.m), lambda output: nodes[output].k


def second_moments_of(spec: Spec, weights: Weights, moments: Moments) -> Any:
    """Returns E[X^2] of inputs at every computed node: a dictionary of (N, *pixels), or for a loop (nodes, N)."""
    if spec.loop:
        assert weights.tables is not None
        v = moments.v[jnp.asarray(weights.tables.node_places)]
        return v if moments.m is None else v + moments.m**2
    slots = {step.node: step.slot for step in spec.structure.steps if step.node is not None}
    return {
        node: moments.v[slot] + moments.m[node] ** 2 if node in moments.m else moments.v[slot]
        for node, slot in slots.items()
    }


def _read_out(
    spec: Spec, layers: Layers, value: KernelState, marginals: Marginals, layout: PixelLayout
) -> tuple[jax.Array, jax.Array | None]:
    """Applies the readout to a node's covariances, Equation (8) of docs/mathematics.md; returns second moments."""
    readout, width = layers.readout, layers.rules.width
    if readout is not None and readout.activation is not None:
        value, marginals = layer_rules.activate(readout.activation, *layer_rules.uncenter(value, marginals), layout)
    if spec.pixels is not None:
        if spec.pixels == "flatten" and width is not None:
            width *= math.prod(layout.vector(marginals.v1).shape[1:])
        value, marginals = layer_rules.uncenter(value, marginals)
        k, ntk = (None if v is None else layout.read_out(v, spec.pixels) for v in (value.k, value.ntk))
        assert k is not None
        value, marginals, layout = KernelState(k, None, ntk), Marginals(k, k), PixelLayout()
    if readout is not None:
        value, marginals = layer_rules.linear(readout, value, marginals, layout, layers.rules, width)
    value, _ = layer_rules.uncenter(value, marginals)
    return value.k, value.ntk


def propagate(
    spec: Spec,
    weights: Weights,
    inputs: Sequence[KernelState],
    q_in: tuple[Sequence[jax.Array], Sequence[jax.Array]],
    moments: tuple[Moments, Moments],
    layout: PixelLayout,
    channels: Sequence[int],
) -> Kernels:
    """Runs the recursion for a block of the kernel.

    Args:
      spec: The structure of the program.
      weights: The numbers of the program.
      inputs: The block of the data's second moments for every input node; an NTK of None counts as 0.
      q_in: The second moments of the rows' data and of the columns' data, for every input node.
      moments: The moments of the rows and of the columns at every node.
      layout: The axes of covariances.
      channels: Fan-in of every stem.

    Returns:
      NNGP and NTK of every output; stacked, one pair of arrays (outputs, N1, N2).
    """
    layers = spec.layers_with(weights)
    marginals_in = [Marginals(layout.left(q1), layout.right(q2)) for q1, q2 in zip(*q_in, strict=True)]
    stems = _stems(spec, weights, layers, inputs, marginals_in, layout, channels, spec.with_ntk)
    first, second = moments
    if spec.loop:
        assert weights.tables is not None
        fields = [field for field, _ in stems]
        outputs = run_loop(weights.tables, fields, first, second, layers, spec.equal_norms)
        marginals = marginals_of_outputs(weights.tables, first, second)
        if spec.stacked:
            value, _ = layer_rules.uncenter(outputs, marginals)
            return [(value.k, value.ntk)]
        one_by_one = [jax.tree.map(lambda v, i=i: v[i], (outputs, marginals)) for i in spec.structure.outputs]
        return [_read_out(spec, layers, of_output, of_both, layout) for of_output, of_both in one_by_one]
    algebra = _Block(weights, layers, layout, moments, not spec.equal_norms and inputs[0].gap is not None)
    nodes = _run(spec, weights, stems, algebra, means=False)
    steps = {step.node: step for step in spec.structure.steps}
    return [
        _read_out(spec, layers, nodes[output], algebra.marginals(steps[output], None), layout)
        for output in spec.structure.outputs
    ]
