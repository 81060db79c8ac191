# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Where neural-tangents goes wrong
#
# **May I write my graph in `neural_tangents.stax` and trust its kernel?** neural-tangents computes kernels of networks
# that are built from `FanOut`, `parallel` and `FanInSum`. You see three kinds of graph where that fails: one is
# refused, one gets a wrong number, and one takes exponential time. Finite networks, drawn at random, decide who is
# right. The notebook runs in about 40 seconds on two cores.
#
# The last release of neural-tangents, 0.6.5, does not import on current JAX. Importing `nngp_dag.stax` first mends
# that.

# %%
from nngp_dag.stax import DagLayer  # isort: skip

import time
import warnings
from itertools import pairwise

import jax
import matplotlib.pyplot as plt
import numpy as np
from neural_tangents import stax

import nngp_dag as nd

plt.rcParams.update({"figure.figsize": (7, 3.5), "figure.dpi": 120, "figure.constrained_layout.use": True})
HE = 2**0.5
WIDTH = 128

# %% [markdown]
# ## The referee: finite networks
#
# A layer of stax is a triple: `init_fn` and `apply_fn` are the finite network, `kernel_fn` is its kernel at infinite
# width. So one can check the other. We draw 400 networks of width 128 with 64 outputs each, and average products of
# outputs. Their standard error (s.e.) says how far the average may be off by chance. All inputs have |x|² = d, so that
# the diagonal of a kernel is one number.

# %%
x = nd.data.load_dataset("sphere", subset=3, dimension=6).images


def monte_carlo(layer, draws=400):
    """Returns the mean of f(x) f(x') over finite networks and its standard error, (N, N) each."""
    init_fn, apply_fn, _ = layer

    def draw(key):
        _, params = init_fn(key, x.shape)
        outputs = apply_fn(params, x)
        return outputs @ outputs.T / outputs.shape[1]

    samples = jax.jit(lambda keys: jax.lax.map(draw, keys))(jax.random.split(jax.random.key(0), draws))
    return np.asarray(samples.mean(axis=0)), np.asarray(samples.std(axis=0, ddof=1)) / draws**0.5


def distance(kernel, mean, error):
    """Returns the largest distance of a kernel from the measured one, in standard errors."""
    return np.abs((np.asarray(kernel) - mean) / error).max()


# %% [markdown]
# ## 1. Sums of activated branches are refused
#
# Two layers with ReLU read the same node, and their outputs are added. A third layer reads the sum.


# %%
def weighted():
    return stax.serial(stax.Dense(WIDTH, W_std=HE), stax.Relu())


two_branches = stax.serial(
    weighted(),
    stax.FanOut(2),
    stax.parallel(weighted(), weighted()),
    stax.FanInSum(),
    weighted(),
    stax.Dense(64, W_std=HE),
)
warnings.filterwarnings("ignore", message="`FanIn` layers assume independent inputs")  # more on it below
try:
    two_branches[2](x, None, "nngp")
except NotImplementedError as error:
    print("NotImplementedError:", str(error).split(", i.e.")[0])
else:
    raise AssertionError("this version of neural-tangents accepts the graph")

# %% [markdown]
# The outputs of ReLU are not Gaussian, and their mean is not zero. The kernel of the sum needs these means. nngp_dag
# carries them along.

# %%
dag = nd.Dag.from_edges([(0, 1, "weighted"), (0, 1, "weighted"), (1, 2, "weighted")])
exact = nd.kernel(dag, x).nngp
mean, error = monte_carlo(two_branches)
print(f"finite networks  {mean[0, 0]:6.2f} ± {error[0, 0]:.2f} (s.e.)")
print(f"nngp_dag         {exact[0, 0]:6.2f}")
print(f"largest distance over all entries: {distance(exact, mean, error):.1f} standard errors")
assert distance(exact, mean, error) < 4

# %% [markdown]
# ## 2. Skips that share an ancestor get a wrong number
#
# Now ReLU comes before the weights, which stax accepts. Node 1 is X1 = X0 + g(X0), with a layer g. Node 2 is
# X2 = X0 + X1. Both terms contain X0: in truth X2 = 2 X0 + g(X0), and 2 X0 has four times the variance of X0. stax adds
# the variances of the two branches as if these were independent.


# %%
def residual():
    """X0 + g(X0)."""
    layer = stax.serial(stax.Relu(), stax.Dense(WIDTH, W_std=HE))
    return stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), layer), stax.FanInSum())


def skip_around(layer):
    """X0 + layer(X0)."""
    return stax.serial(stax.FanOut(2), stax.parallel(stax.Identity(), layer), stax.FanInSum())


def with_stem_and_readout(layer):
    return stax.serial(stax.Dense(WIDTH, W_std=HE), layer, stax.Relu(), stax.Dense(64, W_std=HE))


right, wrong = with_stem_and_readout(residual()), with_stem_and_readout(skip_around(residual()))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    right_nngp, wrong_nngp = right[2](x, None, "nngp"), wrong[2](x, None, "nngp")
messages = [str(warning.message) for warning in caught if "FanIn" in str(warning.message)]
print(messages[0])
print(f"{len(messages)} warnings, {len(set(messages))} different")
assert len(set(messages)) == 1

# %% [markdown]
# stax warns at each `FanInSum`, and the text is the same whether the sum is right or wrong. Its advice does not part
# them either: both sums have a branch without a `Dense`. So the warning cannot tell you which one you have. Finite
# networks can.

# %%
print("graph             finite networks         stax    nngp_dag")
edges = [(0, 1, "skip"), (0, 1, "weighted")]
shared = [*edges, (0, 2, "skip"), (1, 2, "skip")]
far = {}
for name, layer, stax_nngp, graph in (
    ("X0 + g(X0)", right, right_nngp, edges),
    ("X0 + X0 + g(X0)", wrong, wrong_nngp, shared),
):
    exact = nd.kernel(nd.Dag.from_edges(graph), x, order="act-linear").nngp
    mean, error = monte_carlo(layer)
    print(f"{name:16} {mean[0, 0]:6.2f} ± {error[0, 0]:.2f} (s.e.) {stax_nngp[0, 0]:12.2f} {exact[0, 0]:11.2f}")
    far[name] = distance(stax_nngp, mean, error), distance(exact, mean, error)
for name, (of_stax, of_ours) in far.items():
    print(f"{name}: stax is {of_stax:.1f} standard errors away, nngp_dag {of_ours:.1f}")
assert far["X0 + g(X0)"][0] < 4
assert far["X0 + X0 + g(X0)"][0] > 20
assert max(ours for _, ours in far.values()) < 4

# %% [markdown]
# The same network may stay in stax: `DagLayer` is a layer of stax that knows the whole graph.

# %%
dag_layer = DagLayer(nd.Dag.from_edges(shared), order="act-linear", width=WIDTH)
as_layer = stax.serial(dag_layer, stax.Relu(), stax.Dense(64, W_std=HE))
print(f"DagLayer in stax: {as_layer[2](x, None, 'nngp')[0, 0]:.2f}")
np.testing.assert_allclose(as_layer[2](x, None, "nngp"), exact, rtol=1e-4)

# %% [markdown]
# ## 3. Nested graphs take exponential time
#
# A *ladder* has a weighted edge into each node from the one before, and a skip from the one before that. Its two
# branches are independent, so stax is right. But stax has no nodes that two others can read. A ladder must be nested,
# and each node is written once for each path that leaves it.


# %%
def nested(node):
    """Node `node` of a ladder."""
    if node == 0:
        return stax.Dense(1, W_std=HE)
    layer = stax.serial(nested(node - 1), stax.Relu(), stax.Dense(1, W_std=HE))
    if node == 1:
        return layer
    return stax.serial(stax.FanOut(2), stax.parallel(layer, nested(node - 2)), stax.FanInSum())


def seconds(function):
    start = time.perf_counter()
    result = jax.block_until_ready(function())
    return time.perf_counter() - start, result


# %% [markdown]
# We time NNGP and NTK of three inputs, each as one program compiled by `jax.jit` in the case of stax. The first call
# compiles, so it has a column of its own. What JAX has compiled before is cleared first, on both sides. The number of
# operations in the program of stax depends on no machine.

# %%
sizes = (3, 5, 7)
rows = []
for nodes in sizes:
    kernel_fn = stax.serial(nested(nodes - 1), stax.Relu(), stax.Dense(1, W_std=HE))[2]
    ladder = nd.zoo.ladder(nodes)

    def theirs(inputs, kernel_fn=kernel_fn):
        k = kernel_fn(inputs, None, ("nngp", "ntk"))
        return k.nngp, k.ntk

    def ours(ladder=ladder):
        k = nd.kernel(ladder, x, order="act-linear")
        return k.nngp, k.ntk

    operations = len(jax.make_jaxpr(theirs)(x).jaxpr.eqns)
    compiled = jax.jit(theirs)
    times = []
    for function in (lambda compiled=compiled: compiled(x), ours):
        jax.clear_caches()
        first, result = seconds(function)
        times += [first, min(seconds(function)[0] for _ in range(3))]
        if function is ours:
            np.testing.assert_allclose(result[0], reference[0], rtol=1e-3)
        reference = result
    rows.append((nodes, ladder.num_paths, operations, *times))

print("                          stax, seconds    nngp_dag, seconds")
print("nodes  paths  operations  first     later    first     later")
for nodes, paths, operations, *times in rows:
    print(f"{nodes:5} {paths:6} {operations:11} {times[0]:6.2f} {times[1]:9.4f} {times[2]:8.2f} {times[3]:9.4f}")
growth = [after[2] / before[2] for before, after in pairwise(rows)]
print("two more nodes multiply the operations of stax by", ", ".join(f"{factor:.2f}" for factor in growth))
assert min(growth) > 2.3

# %%
found = np.array(rows)
plt.semilogy(found[:, 0], found[:, 3], "s--", label="stax, first call")
plt.semilogy(found[:, 0], found[:, 5], "o-", label="nngp_dag, first call")
plt.semilogy(found[:, 0], found[:, 4], "s:", fillstyle="none", label="stax, later calls")
plt.semilogy(found[:, 0], found[:, 6], "o-.", fillstyle="none", label="nngp_dag, later calls")
plt.xlabel("nodes of the ladder")
plt.ylabel("time of one call (seconds)")
plt.xticks(sizes)
plt.legend(fontsize=8)
plt.show()

# %% [markdown]
# Later calls take far less than a second on both sides. Those of stax are faster here: a compiled function checks
# nothing. But the number of paths is a Fibonacci number, and the program of stax grows like it. It must be traced and
# compiled for each new graph. nngp_dag walks over the nodes. A ladder of 80 nodes is far out of reach of any method
# that walks over paths.

# %%
tall = nd.zoo.ladder(80)
first, k = seconds(lambda: nd.kernel(tall, x, order="act-linear"))
print(f"80 nodes, {tall.num_paths:.2g} paths: {first:.2f} s")
assert tall.num_paths > 1e16
assert np.isfinite(k.ntk).all()

# %% [markdown]
# ## What to remember
#
# 1. `FanInSum` of stax adds kernels. That is right only for branches that are independent and Gaussian.
# 2. Activated branches are refused. Skips that share an ancestor get a wrong number, under a warning that is always
#    there.
# 3. nngp_dag computes each node once, for the whole graph, and agrees with finite networks. `DagLayer` brings it to
#    stax.
#
# Next: [bound, prediction and measurement](bound_prediction_measurement.py). Guides: [kernels](../guides/kernels.md),
# [which tool to choose](../choose.md), [mathematics](../mathematics.md).
