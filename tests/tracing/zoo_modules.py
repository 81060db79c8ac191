"""Models of flax nnx, flax linen and equinox."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from zoo import Case, Net, add, numbers

# Entries of a truncated normal or uniform first layer sum to Gaussian values only over many features of equal size.
X = np.sign(numbers(3, 48))
IMAGES = numbers(3, 4, 4, 2)
D = X.shape[1]


def nnx_net(kind, width):
    def init(key):
        graph, params, rest = nnx.split(kind(width, rngs=nnx.Rngs(key)), nnx.Param, ...)
        del graph
        return nnx.to_pure_dict(params), nnx.to_pure_dict(rest)

    template = nnx.eval_shape(lambda: kind(width, rngs=nnx.Rngs(0)))
    template.eval()
    graph, params, rest = nnx.split(template, nnx.Param, ...)

    def apply(leaves, others, x):
        for state, values in ((params, leaves), (rest, others)):
            nnx.replace_by_pure_dict(state, values)
        return nnx.merge(graph, params, rest)(x)

    return Net(kind, {"width": width}, init, apply)


def module(x=X, head=("*readout.kernel",), **options):
    """Registers a class of nnx modules as a case."""

    def register(kind):
        add(Case(f"nnx_{kind.__name__}", lambda width: nnx_net(kind, width), x, head, **options))
        return kind

    return register


# Truncated weights on few features have an excess kurtosis that kernels neglect.
GAUSSIAN = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")


class Base(nnx.Module):
    readout: Any

    def output(self, x):
        return self.readout(x)


@module()
class Mlp(Base):
    def __init__(self, width, *, rngs):
        self.first = nnx.Linear(D, width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.second(nnx.silu(self.first(x)))))


@module()
class LayerNormMlp(Base):
    def __init__(self, width, *, rngs):
        self.first = nnx.Linear(D, width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.second = nnx.Linear(width, width, rngs=rngs)
        self.final = nnx.RMSNorm(width, rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.final(nnx.gelu(self.second(self.norm(self.first(x))))))


@module()
class DropoutAndBatchNorm(Base):
    def __init__(self, width, *, rngs):
        self.first = nnx.Linear(D, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.second = nnx.Linear(width, width, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.second(self.drop(nnx.relu(self.norm(self.first(x)))))))


@module(IMAGES, width=32)
class GroupNormCnn(Base):
    def __init__(self, width, *, rngs):
        self.first = nnx.Conv(2, width, (3, 3), rngs=rngs)
        self.norm = nnx.GroupNorm(width, num_groups=2, rngs=rngs)
        self.second = nnx.Conv(width, width, (3, 3), strides=2, padding="SAME", rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.relu(self.second(nnx.relu(self.norm(self.first(x))))).mean(axis=(1, 2)))


@module(IMAGES, width=32)
class TransposedConvolutions(Base):
    def __init__(self, width, *, rngs):
        self.first = nnx.Conv(2, width, (3, 3), padding="CIRCULAR", kernel_init=GAUSSIAN, rngs=rngs)
        self.up = nnx.ConvTranspose(width, width, (2, 2), strides=(2, 2), rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        h = nnx.avg_pool(nnx.tanh(self.first(x)), (2, 2), (2, 2))
        return self.readout(nnx.relu(self.up(h))).mean(axis=(1, 2))


@module(np.array([[0, 1, 2], [2, 2, 1], [4, 3, 0]]))
class Embedded(Base):
    def __init__(self, width, *, rngs):
        self.table = nnx.Embed(6, width, rngs=rngs)
        self.mix = nnx.LinearGeneral((3, width), width, axis=(1, 2), rngs=rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        return self.readout(nnx.tanh(self.mix(self.table(x))))


@module()
class Sequential(Base):
    def __init__(self, width, *, rngs):
        self.body = nnx.Sequential(
            nnx.Linear(D, width, rngs=rngs), nnx.relu, nnx.Linear(width, 2 * width, rngs=rngs), nnx.relu
        )
        self.readout = nnx.Linear(2 * width, 1, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return self.readout(self.body(x))


@module()
class UniformResidual(Base):
    def __init__(self, width, *, rngs):
        uniform = nnx.initializers.variance_scaling(1.5, "fan_in", "uniform")
        self.first = nnx.Linear(D, width, kernel_init=nnx.initializers.normal(0.5), rngs=rngs)
        self.blocks = nnx.List([nnx.Linear(width, width, kernel_init=uniform, rngs=rngs) for _ in range(2)])
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + 0.7 * block(nnx.leaky_relu(h))
        return self.readout(nnx.elu(h))


@module()
class ScannedBlocks(Base):
    def __init__(self, width, *, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap(in_axes=(0,), out_axes=0)
        def blocks(rngs):
            return nnx.Linear(width, width, rngs=rngs)

        self.first = nnx.Linear(D, width, rngs=rngs)
        self.blocks = blocks(rngs)
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        def run(h, block):
            return h + 0.5 * block(nnx.relu(h))

        return self.readout(run(self.first(x), self.blocks))


@module(np.sign(numbers(3, 4, 48)))
class SimpleRnn(Base):
    def __init__(self, width, *, rngs):
        self.cell = nnx.RNN(nnx.SimpleCell(48, width, recurrent_kernel_init=nnx.initializers.lecun_normal(), rngs=rngs))
        self.readout = nnx.Linear(width, 1, rngs=rngs)

    def __call__(self, x):
        states: Any = self.cell(x)
        return self.readout(states.mean(axis=1))


def linen_net(make, width, x):
    model = make(width)

    def init(key):
        variables = dict(model.init(key, jnp.asarray(x, jnp.float32 if x.dtype.kind == "f" else x.dtype)))
        return variables.pop("params"), variables

    return Net(model, {}, init, lambda p, rest, x: model.apply({"params": p, **rest}, x))


def linen_case(x=X, head=("readout.kernel",), **options):
    def register(make):
        add(Case(f"linen_{make.__name__}", lambda width: linen_net(make, width, x), x, head, **options))
        return make

    return register


class LinenMlp(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        h = linen.relu(linen.Dense(self.width)(x))
        h = linen.LayerNorm()(linen.Dense(self.width)(h))
        h = linen.Dropout(0.3, deterministic=True)(linen.gelu(h))
        return linen.Dense(1, name="readout")(h)


@linen_case(draws=1024)
def mlp(width):
    return LinenMlp(width)


class LinenCnn(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        h = linen.Conv(self.width, (3, 3))(x)
        h = linen.BatchNorm(use_running_average=True)(h)
        h = linen.avg_pool(linen.relu(h), (2, 2), (2, 2))
        h = linen.relu(linen.Conv(self.width, (2, 2), padding="VALID")(h))
        return linen.Dense(1, name="readout")(h.reshape(len(x), -1))


@linen_case(IMAGES, width=32)
def cnn(width):
    return LinenCnn(width)


class LinenTied(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        shared = linen.Dense(self.width)
        h = jnp.tanh(linen.Dense(self.width)(x))
        for _ in range(2):
            h = jnp.tanh(shared(h))
        return linen.Dense(1, name="readout")(h)


@linen_case()
def tied(width):
    return LinenTied(width)


class LinenGlu(linen.Module):
    width: int

    @linen.compact
    def __call__(self, x):
        h = linen.Dense(self.width)(x)
        h = h + linen.Dense(self.width)(linen.glu(linen.Dense(2 * self.width)(linen.RMSNorm()(h))))
        return linen.Dense(1, name="readout")(linen.swish(h))


@linen_case()
def glu(width):
    return LinenGlu(width)


def equinox_cases():
    """Registers the models of equinox, if it is installed."""
    try:
        import equinox as eqx
    except ImportError:
        return

    def equinox_net(make, width):
        def init(key):
            return eqx.partition(make(width=width, key=key), eqx.is_inexact_array)[0], None

        fixed = eqx.partition(make(width=width, key=jax.random.key(0)), eqx.is_inexact_array)[1]
        return Net(make, {"width": width}, init, lambda p, _, x: jax.vmap(eqx.combine(p, fixed))(x))

    def case(name, make, x=X, head=("readout.weight",), **options):
        bound = options.pop("head_std", lambda shape: (3 * shape[-1]) ** -0.5)
        add(Case(f"equinox_{name}", lambda width: equinox_net(make, width), x, head, bound, **options))

    class EqxMlp(eqx.Module):
        first: eqx.nn.Linear
        norm: eqx.nn.LayerNorm
        second: eqx.nn.Linear
        readout: eqx.nn.Linear

        def __init__(self, width, *, key):
            a, b, c = jax.random.split(key, 3)
            self.first = eqx.nn.Linear(D, width, use_bias=False, key=a)
            self.norm = eqx.nn.LayerNorm(width)
            self.second = eqx.nn.Linear(width, width, use_bias=False, key=b)
            self.readout = eqx.nn.Linear(width, 1, use_bias=False, key=c)

        def __call__(self, x):
            return self.readout(jax.nn.relu(self.second(jnp.tanh(self.norm(self.first(x))))))

    case("mlp", EqxMlp, draws=1400)

    class EqxCnn(eqx.Module):
        first: eqx.nn.Conv2d
        pool: eqx.nn.AvgPool2d
        second: eqx.nn.Conv2d
        readout: eqx.nn.Linear

        def __init__(self, width, *, key):
            a, b, c = jax.random.split(key, 3)
            self.first = eqx.nn.Conv2d(2, width, 3, padding=1, use_bias=False, key=a)
            self.pool = eqx.nn.AvgPool2d(2, 2)
            self.second = eqx.nn.Conv2d(width, width, 2, use_bias=False, key=b)
            self.readout = eqx.nn.Linear(width, 1, use_bias=False, key=c)

        def __call__(self, x):
            h = jax.nn.relu(self.second(self.pool(jax.nn.relu(self.first(x)))))
            return self.readout(h.reshape(-1))

    case("cnn", EqxCnn, IMAGES.transpose(0, 3, 1, 2), width=32)

    def library_mlp(width, key):
        return eqx.nn.MLP(D, 1, width, 2, activation=jax.nn.tanh, use_bias=False, use_final_bias=False, key=key)

    case("library_mlp", library_mlp, head=("layers.2.weight",))


equinox_cases()
