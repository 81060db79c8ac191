"""The finite network of a DAG, as a flax nnx module and as a pure function."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, ArrayLike, Float

from nngp_dag.errors import InputError
from nngp_dag.graph import Dag, Op

ORDERS = ("linear-act", "act-linear")
PARAMETERISATIONS = ("ntk", "standard")
Params = nnx.State


class HeLinear(nnx.Module):
    """x -> x W without bias, Var(x W) = 2 mean(x^2): He initialisation in either parameterisation.

    Parameterisation "ntk": W = sqrt(2 / fan_in) omega with trained omega ~ N(0, 1). "standard": W itself is trained,
    W ~ N(0, 2 / fan_in).
    """

    def __init__(self, fan_in: int, fan_out: int, parameterisation: str, *, rngs: nnx.Rngs):
        """Draws the weights."""
        std = (2 / fan_in) ** 0.5
        init_std, self.scale = (1.0, std) if parameterisation == "ntk" else (std, 1.0)
        self.linear = nnx.Linear(
            fan_in, fan_out, use_bias=False, kernel_init=nnx.initializers.normal(init_std), rngs=rngs
        )

    def __call__(self, x: Float[Array, "n fan_in"]) -> Float[Array, "n fan_out"]:
        """Applies the layer."""
        return self.scale * self.linear(x)


class DagNet(nnx.Module):
    """A fully connected ReLU network with the connectivity of a DAG.

    Stem, nodes X(t) = sum over edges s -> t of op(X(s)), readout: the network whose infinite-width kernel is
    `nngp_dag.kernel` with the same `order`, in the parameterisation "ntk". A node without incoming edges is zero.

    Attributes:
      dag: The connectivity.
      stem: The layer from the input to node 0.
      edges: One layer per weighted edge that lies on a path to the output, in the order of `dag.edges`.
      readout: The layer from node H to the output.

    Raises:
      GraphError: No path leads through `dag`.
      InputError: A size is below 1, or an option is unknown.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> net = DagNet(Dag.from_code("2_21_112"), 64, 10, width=128, rngs=nnx.Rngs(0))
      >>> net(jnp.ones((5, 64))).shape
      (5, 10)

    Reference: Chen et al., NeurIPS 2022, Section 3 (the architecture); He et al., ICCV 2015 (initialisation); Jacot
    et al., NeurIPS 2018 (NTK parameterisation).
    """

    def __init__(
        self,
        dag: Dag,
        in_features: int,
        out_features: int,
        *,
        width: int,
        order: str = "linear-act",
        parameterisation: str = "ntk",
        rngs: nnx.Rngs,
    ):
        """Draws all weights from `rngs.params`."""
        dag.require_connected()
        for name, size in (("in_features", in_features), ("out_features", out_features), ("width", width)):
            if size < 1:
                raise InputError(f"Expected `{name}` to be at least 1, got {size}")
        for name, value, known in (
            ("order", order, ORDERS),
            ("parameterisation", parameterisation, PARAMETERISATIONS),
        ):
            if value not in known:
                raise InputError(f"Expected `{name}` to be one of {', '.join(map(repr, known))}, got {value!r}")
        self.dag, self.order = dag, order
        self.stem = HeLinear(in_features, width, parameterisation, rngs=rngs)
        self.edges = nnx.List(
            [HeLinear(width, width, parameterisation, rngs=rngs) for e in dag.live_edges if e.op is Op.WEIGHTED]
        )
        self.readout = HeLinear(width, out_features, parameterisation, rngs=rngs)

    def features(self, x: Float[Array, "n d"]) -> Float[Array, "n width"]:
        """Returns X(H), the last node, for inputs (N, d)."""
        node0 = self.stem(x)
        nodes = [jax.nn.relu(node0) if self.order == "linear-act" else node0]
        nodes += [jnp.zeros_like(node0)] * (self.dag.num_nodes - 1)
        layers = iter(self.edges)
        for edge in self.dag.live_edges:
            value = nodes[edge.source]
            if edge.op is Op.WEIGHTED:
                layer = next(layers)
                value = jax.nn.relu(layer(value)) if self.order == "linear-act" else layer(jax.nn.relu(value))
            nodes[edge.target] = nodes[edge.target] + value
        return nodes[-1]

    def __call__(self, x: Float[Array, "n d"]) -> Float[Array, "n out"]:
        """Returns the network's outputs, (N, out_features), for inputs (N, d)."""
        last = self.features(x)
        return self.readout(last if self.order == "linear-act" else jax.nn.relu(last))


def as_functions(
    create: Callable[[nnx.Rngs], nnx.Module],
) -> tuple[Callable[[Array], Params], Callable[[Params, ArrayLike], Array]]:
    """Turns a model into pure functions, for `jax.vmap`, `jax.grad` and the like.

    Args:
      create: Builds the model from random number streams, such as
        `lambda rngs: DagNet(dag, 64, 10, width=128, rngs=rngs)`.

    Returns:
      `init(key) -> params` and `apply(params, x) -> outputs`; `params` holds every `nnx.Param`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> init, apply = as_functions(lambda rngs: DagNet(Dag.from_code("2"), 3, 1, width=8, rngs=rngs))
      >>> params = jax.vmap(init)(jax.random.split(jax.random.key(0), 5))
      >>> jax.vmap(apply, in_axes=(0, None))(params, jnp.ones((2, 3))).shape
      (5, 2, 1)
    """
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: create(nnx.Rngs(0))))

    def init(key: Array) -> Params:
        return nnx.state(create(nnx.Rngs(params=key)), nnx.Param)

    def apply(params: Params, x: ArrayLike) -> Array:
        return nnx.merge(graphdef, params)(jnp.asarray(x))

    return init, apply
