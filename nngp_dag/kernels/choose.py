"""The planner: it chooses the back end that computes a kernel, and states the reason.

This is the only module with conditions on device, size, activation and tracing. Four back ends compute the same kernel,
up to rounding:

- Chebyshev series in the angle, for kernels that are functions of the angle between two inputs. The time for a pair of
  inputs does not grow with the graph, and all graphs share one compiled program.
- A loop over the nodes. Its time to compile does not grow with the graph, and graphs of about equal size with equal
  operations share the compiled program.
- Unrolled steps. They are up to twice as fast as the loop, but every graph compiles for itself.
- Pallas: the unrolled steps as one GPU kernel, which keeps all values in registers.
"""

import functools
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import jax
import numpy as np

from nngp_dag.activations import Activation, Quadrature, get_activation
from nngp_dag.architecture import Network
from nngp_dag.architecture.program import Program, program, program_by_rows
from nngp_dag.graph import Dense
from nngp_dag.kernels.backends.chebyshev import series_of, spec_of_series, together
from nngp_dag.kernels.backends.loop_tables import loop_structure
from nngp_dag.kernels.backends.unrolled import Spec
from nngp_dag.kernels.device import BlockSizes, block_sizes, compiles_triton
from nngp_dag.kernels.layer_rules import Layers, layers_of
from nngp_dag.kernels.pixel_layout import PixelLayout

# A program of at most 4 steps may be unrolled. That takes a second more to compile, which pays off for kernels of at
# least half a million entries.
_UNROLLED_STEPS = 4
_UNROLLED_ENTRIES = 1 << 19


class Problem(NamedTuple):
    """The properties of a requested kernel on which the choice of a back end depends.

    Attributes:
      rows: Number of inputs.
      columns: Number of second inputs.
      symmetric: Whether the second inputs are the first ones.
      features: Features, or channels, of the first input node's data.
      dtype: Precision of the computation.
      with_ntk: Whether the NTK is requested.
      one_array: Whether all input nodes read one array.
      traced: Whether a transformation such as `jax.jit` traces the inputs, or numbers of the network.
      by_rows: Whether weights of edges are traced. Their signs are then unknown, and only a program by rows adds up
        terms with weights that are never negative.
    """

    rows: int
    columns: int
    symmetric: bool
    features: int
    dtype: np.dtype
    with_ntk: bool = True
    one_array: bool = True
    traced: bool = False
    by_rows: bool = False


class Plan(NamedTuple):
    """The chosen computation of kernels.

    Attributes:
      program: The network's steps and numbers.
      layers: The network's weighted operations.
      spec: The structure of the compiled program.
      layout: The axes of covariances.
      quadrature: Whether some activation is a `Quadrature`.
      series: The Chebyshev series of all outputs, which replace the steps; None for the other back ends.
      way: The name of the computation in `explain`.
      reason: The reason for the choice in `explain`.
    """

    program: Program
    layers: Layers
    spec: Spec
    layout: PixelLayout
    quadrature: bool
    series: np.ndarray | None = None
    way: str = ""
    reason: str = ""


def choose(network: Network, problem: Problem) -> Plan:
    """Chooses the back end that computes the kernels of a network.

    Raises:
      GraphError: An activation acts on a node that is not Gaussian.
      InputError: An activation is unknown.
    """
    blocks = block_sizes()
    network.check_gaussian(input_is_gaussian=True, reads_out=True)
    large = problem.rows * problem.columns >= _UNROLLED_ENTRIES
    unrolled = large and _may_be_unrolled(network, problem.by_rows)
    tiles = problem.symmetric and not network.image_operations and problem.rows >= 2 * blocks.tile
    loop = not (unrolled or network.image_operations)
    plan = plan_of(network, problem.with_ntk, loop, blocks, by_rows=problem.by_rows)
    obstacle = _obstacle_to_series(plan, problem)
    if not obstacle:
        found = _series(network, problem.with_ntk, problem.features, problem.dtype)
        if found is not None:
            spec = spec_of_series(len(network.dag.outputs), problem.with_ntk, blocks)
            way = f"Chebyshev series in the angle, {found.shape[-1]} terms"
            reason = "ReLU-type activations without biases, one input array"
            return _named(plan._replace(spec=spec, series=found), way, reason, problem, tiles)
        obstacle = "no short Chebyshev series is known for it"
    if network.image_operations:
        return _named(plan, "unrolled steps", "convolutions or pooling", problem, tiles)
    steps = len(plan.program.structure.steps)
    if not unrolled:
        return _named(plan, f"loop over {steps} steps", obstacle, problem, tiles)
    reason = f"{problem.rows:,} x {problem.columns:,} entries, and a graph of {steps} steps"
    if tiles and compiles_triton():
        fused = plan._replace(spec=plan.spec._replace(fused=True))
        return _named(fused, f"{steps} unrolled steps in one Pallas kernel", f"a GPU, {reason}", problem, tiles)
    return _named(plan, f"{steps} unrolled steps", reason, problem, tiles)


def _named(plan: Plan, way: str, reason: str, problem: Problem, tiles: bool) -> Plan:
    parts = f"symmetric tiles of about {plan.spec.blocks.tile} rows" if tiles else "blocks of rows"
    return plan._replace(way=f"{way}, {problem.dtype}; {parts}", reason=reason)


def _obstacle_to_series(plan: Plan, problem: Problem) -> str:
    """Says why Chebyshev series in the angle cannot be used; returns an empty text if they can."""
    if plan.layout.ndim:
        return "convolutions or pooling"
    if not plan.spec.homogeneous:
        return "biases, layer norm, or an activation that is not of ReLU type"
    if not problem.one_array:
        return "several input arrays"
    if problem.traced:
        return "inputs inside a transformation of JAX"
    # On a GPU a few steps run in one GPU kernel, which is even faster than series.
    return "few steps on a GPU" if plan.spec.blocks.gpu and not plan.spec.loop else ""


def _may_be_unrolled(network: Network, by_rows: bool) -> bool:
    if network.image_operations or len(_steps(network, by_rows).structure.steps) > _UNROLLED_STEPS:
        return False
    return not any(phi.compiles_slowly for phi in _activations(network))


def _steps(network: Network, by_rows: bool) -> Program:
    return program_by_rows(network) if by_rows else program(network)


def _activations(network: Network) -> list[Activation]:
    operations = [*network.weighted_operations, network.readout_op]
    return [get_activation(op.activation) for op in operations]  # type: ignore[arg-type]


@functools.lru_cache(maxsize=4096)
def plan_of(
    network: Network,
    with_ntk: bool,
    loop: bool,
    blocks: BlockSizes,
    *,
    keeps_pixels: bool = False,
    by_rows: bool = False,
) -> Plan:
    """Returns a plan that evaluates a network's steps, as a loop or unrolled.

    Args:
      network: The network.
      with_ntk: Whether the NTK is requested.
      loop: Whether the steps run as a loop.
      blocks: The sizes of blocks.
      keeps_pixels: Whether the pixels of the last node are kept for layers that follow.
      by_rows: Whether the program must be one by rows, see `Problem`.
    """
    operations, images = network.weighted_operations, network.image_operations
    steps = _steps(network, by_rows)
    layers = layers_of(network, steps.operations, reads_out=bool(network.readout))
    spec = Spec(
        structure=loop_structure(steps.structure) if loop else steps.structure,
        layers=jax.tree.structure(layers),
        pixels=network.image_readout if images and not keeps_pixels else None,
        with_ntk=with_ntk,
        homogeneous=is_homogeneous((*operations, network.readout_op)),
        loop=loop,
        blocks=blocks,
    )
    # The check of inputs makes sure that all windows have as many axes as the images, so any window will do.
    window = images[0].window if images else None
    ndim = len(window.shape) if window else 0
    layout = PixelLayout(ndim, network.pools or network.image_readout == "global-average")
    return Plan(steps, layers, spec, layout, any(isinstance(phi, Quadrature) for phi in _activations(network)))


def plan_of_layer(network: Network, with_ntk: bool) -> Plan:
    """Returns the plan for a network without readout that other layers follow, given the kernels of its inputs."""
    return plan_of(network, with_ntk, not network.image_operations, block_sizes(), keeps_pixels=True)


def plan_of_stack(steps: Program, network: Network) -> Plan:
    """Returns the plan of one loop for many networks, with stacked kernels; `network` gives the shared options."""
    layers = layers_of(network, steps.operations, reads_out=False)
    spec = Spec(
        structure=loop_structure(steps.structure),
        layers=jax.tree.structure(layers),
        pixels=None,
        with_ntk=True,
        homogeneous=is_homogeneous([network.stem_op, *steps.operations]),
        loop=True,
        blocks=block_sizes(),
        stacked=True,
    )
    return Plan(steps, layers, spec, PixelLayout(), False)


def series_of_stack(plan: Plan, features: int, dtype: np.dtype) -> list[np.ndarray | None]:
    """Returns the Chebyshev series of each of many networks, or None where the plan's loop has to compute a kernel.

    Args:
      plan: A plan of `plan_of_stack`.
      features: Features of the input.
      dtype: Precision of the computation.
    """
    return series_of(plan.program, plan.layers, features, dtype)


def spec_of_stacked_series(outputs: int) -> Spec:
    """Returns the structure of the compiled program that sums the Chebyshev series of many kernels."""
    return spec_of_series(outputs, True, block_sizes(), stacked=True)


def is_homogeneous(operations: Iterable[Dense | Hashable]) -> bool:
    """Whether all layers and activations are homogeneous: scaling the input by c > 0 scales the output by c."""
    for op in operations:
        if isinstance(op, Dense) and (op.b_std is not None or op.layer_norm):
            return False
        if not get_activation(op.activation if isinstance(op, Dense) else op).homogeneous:  # type: ignore[arg-type]
            return False
    return True


@functools.lru_cache(maxsize=4096)
def _series(network: Network, with_ntk: bool, features: int, dtype: np.dtype) -> np.ndarray | None:
    plan = plan_of(network, with_ntk, True, block_sizes())
    found = [v for v in series_of(plan.program, plan.layers, features, dtype) if v is not None]
    return together(found) if len(found) == len(network.dag.outputs) else None
