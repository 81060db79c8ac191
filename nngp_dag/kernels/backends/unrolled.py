"""Evaluation of the kernels of a network, from its program (THEORY section 3; `nngp_dag.architecture.program`).

Cov(t, u) are covariances of nodes, m(t) means, and with C = F - mu mu^T the covariance of a weighted edge's output:

    Cov(t, u) = sum of A C over fields, or of a Cov(s, u) over edges s -> t without weights
    K(t) = Cov(t, t) + m(t) m(t)^T,   m(t) = sum of B mu over fields, or of a m(s)

The NTK obeys the recursion of Cov. Variances and means of every input come first, since every other entry is a function
of the same entry of the input kernel and of those vectors: `nngp_dag.kernels.blocking` then computes the matrices in
blocks.

Beside Cov goes its gap, sqrt(v_i v_j) - |Cov_ij| with the variances v of both inputs, by the same recursion (see
`layer_rules.add_up`). It keeps the angle of inputs that are nearly parallel or opposite, whatever their norms:
Cov alone would lose half of its digits, and the NTK is linear in that angle.
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
from nngp_dag.kernels.backends.loop import run_loop, run_loop_moments, sides_of_outputs
from nngp_dag.kernels.backends.loop_tables import Tables
from nngp_dag.kernels.device import BlockSizes
from nngp_dag.kernels.layer_rules import KernelState, Layers, Marginals, Summand
from nngp_dag.kernels.pixel_layout import PixelLayout
from nngp_dag.kernels.pixel_layout import pool as pooled

# NNGP and, where it is wanted, NTK of every output.
Kernels = list[tuple[jax.Array, jax.Array | None]]


class Spec(NamedTuple):
    """What a compiled evaluation depends on; hashable.

    Attributes:
      structure: The order of evaluation.
      layers: The structure of `Layers`, whose numbers are in `Weights`.
      pixels: How the readout averages over pixels, "flatten" or "global-average"; None leaves them.
      with_ntk: Whether the NTK is wanted.
      homogeneous: Whether scaling an input scales its rows of the kernels by as much, squared for itself.
      loop: Whether the steps run as a loop.
      blocks: How much is computed at once.
      stacked: Whether the kernels of all outputs come as one array; for loops and series without readout.
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
        """Whether all inputs, over their norms, have the same variances at every node."""
        return self.homogeneous and self.structure.num_inputs == 1 and self.pixels is None

    def layers_with(self, weights: "Weights") -> Layers:
        """Returns the operations, with their numbers."""
        return jax.tree.unflatten(self.layers, [weights.layers[i] for i in range(self.layers.num_leaves)])


class Weights(NamedTuple):
    """The numbers of a program: those of its terms, means and layers, and of the loop's tables where there is one.

    `true` is the truth, but XLA does not know; None without pixels on GPUs, see `evaluated_once`. `series` are those of
    `nngp_dag.kernels.backends.chebyshev`, which take the place of the steps.
    """

    terms: jax.Array | np.ndarray
    means: jax.Array | np.ndarray
    layers: jax.Array | np.ndarray
    tables: Tables | None
    true: jax.Array | np.ndarray | None
    series: jax.Array | np.ndarray | None = None


class Moments(NamedTuple):
    """Variances and means of inputs, vectors (N, *pixels), or (1,) for what all inputs share.

    Attributes:
      v: Variances by slot; of a loop, one above the other, by place (see `backends.loop_tables.Turns`).
      m: Means of every node that needs them, by node; none where all are 0.
    """

    v: Any
    m: Any


def evaluated_once(true: jax.Array | np.ndarray | None, compute: Callable[..., Any], *operands: Any) -> Any:
    """Returns `compute(*operands)`, arrays that XLA does not compute again for each of their readers.

    It would fuse all steps into one, compute what several share once for each, and take time to compile that explodes
    with their number. A condition that it cannot foresee keeps them apart. On a GPU, where XLA fuses what shares
    results into kernels with several outputs, memory counts more: few steps without pixels stay together.

    Args:
      true: See `Weights`.
      compute: What to compute.
      operands: Its arguments, pytrees of arrays.
    """
    if true is None:
        return compute(*operands)
    compute = jax.jit(compute)  # traced once, for the shapes of its results and for the condition
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
    """Applies the stems; returns every input node's covariance and its marginals. An NTK that is not given is 0."""

    def stem(value: KernelState, side: Marginals, fan_in: int) -> tuple[KernelState, Marginals]:
        if with_ntk and value.ntk is None:
            value = value._replace(ntk=jnp.zeros_like(value.k))
        if layers.stem is None:
            return value, side
        return layer_rules.apply(layers.stem, value, side, layout, layers.rules, fan_in)

    # A loop reads what is in memory.
    apart = layers.stem is not None and not spec.loop
    once = functools.partial(evaluated_once, weights.true) if apart else lambda f, *args: f(*args)
    return [
        once(functools.partial(stem, fan_in=fan_in), value, side)
        for value, side, fan_in in zip(inputs, marginals, channels, strict=True)
    ]


class _Covariances(Algebra):
    """The algebra of covariances, for `run`; where variances and means come from, subclasses know."""

    def __init__(self, weights: Weights, layers: Layers, layout: PixelLayout) -> None:
        """Keeps what is given; of the weights only the condition."""
        self.layers, self.layout, self._true = layers, layout, weights.true

    @abc.abstractmethod
    def marginals(self, step: Step, mean: jax.Array | None) -> Marginals:
        """Returns the variances of a node, and its means."""

    def add(self, of: Sum) -> KernelState:
        """Adds up what a step reads."""
        return self._total(of.step.terms, of.weights, of.values, *self._shares(of.step))

    def apply(
        self, operation: int, slot: int, of: Sum, node: KernelState, mean: jax.Array | None
    ) -> tuple[KernelState, jax.Array | None]:
        """Applies a weighted operation."""
        del slot
        # Every field adds up for itself, which costs less than reading the sum from memory; but not pooling.
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
        """Returns the variances of a step's terms and of its sum, where the terms' shares differ between two inputs."""
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
        """Adds up values with weights; see `layer_rules.add_up` for the variances of terms and sum."""
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
    """Those of inputs with themselves: variances are the values themselves, and are kept by slot."""

    def __init__(self, weights: Weights, layers: Layers, layout: PixelLayout) -> None:
        """Starts with no variance."""
        super().__init__(weights, layers, layout)
        self.v: dict[int, jax.Array] = {}
        self.m: dict[int, jax.Array] = {}

    def keep(self, slot: int, value: KernelState) -> None:
        """Keeps the variances of a slot."""
        self.v[slot] = self.layout.diagonal(value.k)

    def add(self, of: Sum) -> KernelState:
        """Adds up what a step reads."""
        total = super().add(of)
        self.keep(of.step.slot, total)
        return total

    def at_node(self, step: Any, total: KernelState, mean: jax.Array | None) -> KernelState:
        """Keeps the mean."""
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
        """Returns the variances of a node, and its means."""
        vectors = [self.v[step.slot]] if mean is None else [self.v[step.slot], mean]
        return Marginals(*(side(of) for of in vectors for side in (self.layout.left, self.layout.right)))


class _Block(_Covariances):
    """Those of a block of the kernel: variances and means of rows and columns are known."""

    def __init__(
        self, weights: Weights, layers: Layers, layout: PixelLayout, moments: tuple[Moments, Moments], add_shares: bool
    ) -> None:
        """`moments` are those of rows and columns; `add_shares` says whether shares differ, see `_shares`."""
        super().__init__(weights, layers, layout)
        (self._first, self._second), self._add_shares = moments, add_shares

    def _shares(self, step: Step) -> tuple[list[Marginals] | None, Marginals | None]:
        if not self._add_shares or len(step.terms) == 1:
            return None, None
        return [self._variances(term.slot) for term in step.terms], self._variances(step.slot)

    def _variances(self, slot: int) -> Marginals:
        return Marginals(self.layout.left(self._first.v[slot]), self.layout.right(self._second.v[slot]))

    def marginals(self, step: Step, mean: jax.Array | None) -> Marginals:
        """Returns the variances of a node, and its means."""
        del mean
        variances, node = self._variances(step.slot), step.node
        if node not in self._first.m:
            return variances
        return Marginals(*variances[:2], self.layout.left(self._first.m[node]), self.layout.right(self._second.m[node]))


def _run(
    spec: Spec, weights: Weights, stems: Sequence[tuple[KernelState, Marginals]], algebra: _Covariances, means: bool
) -> dict[int, KernelState]:
    numbers, mean_numbers = ([of[i] for i in range(len(of))] for of in (weights.terms, weights.means))
    mu = [None if sides.m1 is None else algebra.layout.vector(sides.m1) for _, sides in stems]
    return run(spec.structure, numbers, mean_numbers if means else None, [value for value, _ in stems], mu, algebra)


def moments_of(
    spec: Spec, weights: Weights, inputs: Sequence[KernelState], layout: PixelLayout, channels: Sequence[int]
) -> tuple[Moments, Callable[[int], jax.Array]]:
    """Runs the recursion for inputs with themselves.

    Args:
      spec: The program.
      weights: Its numbers.
      inputs: For every input node the data's second moments (N, *pixels), twice the pixels where the layout is full.
      layout: How axes lie; paired.
      channels: Fan-in of every stem.

    Returns:
      Variances and means, and the function that gives an output node's covariance of inputs with themselves.
    """
    layers = spec.layers_with(weights)
    q_in = [layout.diagonal(value.k) for value in inputs]
    sides_in = [Marginals(layout.left(q), layout.right(q)) for q in q_in]
    stems = _stems(spec, weights, layers, inputs, sides_in, layout, channels)
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
        # Sums need no more than what their nodes have.
        v = {step.slot: v[step.slot] for step in spec.structure.steps if step.node is not None}
    return Moments(v, algebra.m), lambda output: nodes[output].k


def second_moments_of(spec: Spec, weights: Weights, moments: Moments) -> Any:
    """Returns E[X^2] of inputs at every node that is computed, (N, *pixels) each: by node, or one above the other."""
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
    """Applies the readout to a node's covariances; returns second moments."""
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
      spec: The program.
      weights: Its numbers.
      inputs: For every input node the block of the data's second moments; an NTK of None is 0.
      q_in: Second moments of the rows' and of the columns' data, for every input node.
      moments: Those of the rows and of the columns at every node.
      layout: How axes lie.
      channels: Fan-in of every stem.

    Returns:
      NNGP and NTK of every output; stacked, they are (outputs, N1, N2).
    """
    layers = spec.layers_with(weights)
    sides_in = [Marginals(layout.left(q1), layout.right(q2)) for q1, q2 in zip(*q_in, strict=True)]
    stems = _stems(spec, weights, layers, inputs, sides_in, layout, channels, spec.with_ntk)
    first, second = moments
    if spec.loop:
        assert weights.tables is not None
        fields = [field for field, _ in stems]
        outputs = run_loop(weights.tables, fields, first, second, layers, spec.equal_norms)
        marginals = sides_of_outputs(weights.tables, first, second)
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
