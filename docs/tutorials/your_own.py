# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own data, activation and graph
#
# **How do I bring what I have?** You write a file with data and load it. You use an activation that the package does
# not know, first by quadrature and then with a formula of its own. You build a graph like a ResNet and one like a
# DenseNet, and put convolutions on their edges. The notebook runs in about 50 seconds on two cores.

# %%
import dataclasses
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np

import nngp_dag as nd

plt.rcParams.update({"figure.figsize": (7, 3.5), "figure.dpi": 120, "figure.constrained_layout.use": True})

# %% [markdown]
# ## Your own data
#
# A file `.npz` holds `x` and `y`, and if there are any `x_test` and `y_test`. Labels may be texts. Here are three arms
# of a spiral, with noise.

# %%
rng = np.random.default_rng(0)


def spiral(n):
    label = rng.integers(3, size=n)
    radius = rng.uniform(0.2, 1, size=n)
    angle = 6 * radius + 2 * np.pi / 3 * label
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return points + 0.1 * rng.normal(size=(n, 2)), np.array(["arm A", "arm B", "arm C"])[label]


(x, y), (x_test, y_test) = spiral(150), spiral(150)
with TemporaryDirectory() as folder:
    path = Path(folder) / "spiral.npz"
    np.savez(path, x=x, y=y, x_test=x_test, y_test=y_test)
    samples = nd.data.load_file(path)
print(samples.statement)

# %% [markdown]
# Nothing is normalized or scaled. `samples.y` holds numbers, and `samples.classes` says what they stand for.

# %%
for c, (name, marker) in enumerate(zip(samples.classes, "o^s", strict=True)):
    plt.plot(*samples.x[samples.y == c].T, marker, markersize=4, label=f"class {c}, {name}")
plt.gca().set_aspect("equal")
plt.xlabel("feature 0")
plt.ylabel("feature 1")
plt.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## Your own activation, by quadrature
#
# `Quadrature` takes any elementwise function of JAX, such as `jax.nn.mish`. Here it takes φ(x) = x + 0.2 x², because
# that has a short formula to compare with. (`nd.activations.Polynomial` has it too; we act as if it did not.) The
# layers have biases, since classes of a spiral depend on more than the direction of an input. `nd.Network` holds the
# graph and all options as one value.


# %%
def accuracy(network, x, labels, x_test, test_labels, noise=1e-3):
    """Returns test accuracy of regression with the NTK, its standard error, the NTK, and the seconds of the kernel."""
    start = time.perf_counter()
    k = nd.kernel(network, np.concatenate([x, x_test]))
    seconds, n = time.perf_counter() - start, len(x)
    train, cross = nd.Kernel(k.nngp[:n, :n], k.ntk[:n, :n]), nd.Kernel(k.nngp[n:, :n], k.ntk[n:, :n])
    classes = int(labels.max()) + 1
    right = nd.kernel_regression_accuracy(train, cross, labels, test_labels, classes, kind="ntk", noise=noise)
    return right, (right * (1 - right) / len(x_test)) ** 0.5, k.ntk, seconds


spirals = samples.x, samples.y, samples.x_test, samples.y_test
by_quadrature = nd.activations.Quadrature(lambda x: x + 0.2 * x**2, label="bent")
layer = nd.Dense(activation=by_quadrature, order="act-linear", w_std=1.5, b_std=0.5)
right, error, reference, seconds = accuracy(nd.Network("2_02", layer), *spirals)
print(f"{by_quadrature.name}: accuracy {right:.1%} ± {error:.1%} (s.e.), kernel in {seconds:.1f} s")

# %% [markdown]
# Most of the time of a first call is compilation.
#
# ## Your own activation, with a formula
#
# A formula compiles faster and is exact. For φ(x) = x + a x² and Gaussian inputs u and v with variances q₁, q₂ and
# covariance k it has
#
# - the mean E φ(u) = a q₁,
# - the covariance C = k + 2 a² k², with the product of the means taken off,
# - the slope E φ′(u) φ′(v) = 1 + 4 a² k.
#
# The formula also returns how far the two outputs are apart, (C₁₁ + C₂₂) / 2 − C. Nearby inputs keep their digits if
# this is computed without a difference of large numbers. A `Pair` offers what that needs: `difference` is √q₁ − √q₂,
# `below` and `above` are √(q₁ q₂) − k and √(q₁ q₂) + k.

# %%
from nngp_dag.activations import Activation
from nngp_dag.kernels.dual import mean
from nngp_dag.kernels.dual.base import register_smooth


@dataclasses.dataclass(frozen=True)
class Bent(Activation):
    """x + a x^2."""

    a: float = 0.1

    def _apply(self, x):
        return x + self.a * x**2


@register_smooth(Bent)
def _dual_of_bent(phi, pair):
    linear = pair.difference**2 / 2 + pair.below
    squares = (pair.q1 - pair.q2) ** 2 + 2 * pair.below * pair.above
    covariance = pair.k + 2 * phi.a**2 * pair.k**2
    return covariance, linear + phi.a**2 * squares, 1 + 4 * phi.a**2 * pair.k


@mean.register(Bent)
def _mean_of_bent(phi, q):
    return phi.a * q


# %% [markdown]
# Check a formula before you use it. Quadrature is a second way to the same kernel.

# %%
layer = nd.Dense(activation=Bent(0.2), order="act-linear", w_std=1.5, b_std=0.5)
right, error, by_formula, seconds = accuracy(nd.Network("2_02", layer), *spirals)
off = np.abs(by_formula - reference).max() / by_formula.max()
print(f"Bent(0.2): accuracy {right:.1%} ± {error:.1%} (s.e.), kernel in {seconds:.1f} s")
print(f"largest difference of the two NTKs, over the largest entry: {off:.1e}")
assert off < 1e-9

# %% [markdown]
# [Extending nngp_dag](../extending.md) says more, and checks a kernel against finite networks.
#
# ## Your own graph: like a ResNet
#
# Nodes of `Dag.from_edges` may have any names. A *pre-activation residual block* adds to its input the output of two
# layers, times a factor. The order `act-linear` puts the activation before the weights. An edge may carry a whole
# graph; its nodes are then put in the place of the edge.


# %%
def resnet(blocks, factor):
    block = nd.Dag.from_edges(
        [
            ("in", "out", "skip"),
            ("in", "hidden", "weighted"),
            ("hidden", "branch", "weighted"),
            ("branch", "out", nd.Scale(factor)),
        ]
    )
    return nd.Dag.from_edges([(t, t + 1, block) for t in range(blocks)])


two_blocks = resnet(2, 0.5)
print(f"{two_blocks.num_nodes} nodes, {two_blocks.num_paths} paths, by depth {two_blocks.depth_histogram}")
two_blocks

# %% [markdown]
# The factor matters when the network is deep. With ReLU and He initialization, each branch has the variance of its
# input, so each block multiplies the variance by 1 + factor².

# %%
point = nd.data.load_dataset("sphere", subset=1, dimension=8).images.astype(np.float64)
counts = (1, 2, 4, 8, 16, 32)
for name, marker in (("1", "o-"), ("0.5", "s--"), ("1 / √blocks", "^:")):
    variances = []
    for blocks in counts:
        factor = blocks**-0.5 if "√" in name else float(name)
        k = nd.kernel(resnet(blocks, factor), point, order="act-linear", readout=False)
        np.testing.assert_allclose(k.nngp[0, 0], 2 * (1 + factor**2) ** blocks)
        variances.append(k.nngp[0, 0])
    plt.loglog(counts, variances, marker, markersize=4, label=f"factor {name}")
plt.xlabel("number of residual blocks")
plt.ylabel("variance at the last node")
plt.xticks(counts, counts)
plt.minorticks_off()
plt.legend()
plt.show()

# %% [markdown]
# With the factor 1 / √blocks, the variance stays bounded for any depth.
#
# ## Your own graph: like a DenseNet
#
# In a DenseNet each layer reads the concatenation of all earlier ones. A dense layer on a concatenation is a sum of
# dense layers, one for each part. Its fan-in counts all parts, so the sum of *m* parts is divided by √m. That is
# `aggregation="scaled-sum"`.
#
# ReLU without biases needs no new compilation for a new graph. We compare on digits of scikit-learn.


# %%
def densenet(layers):
    return nd.Dag.from_edges([(s, t, "weighted") for t in range(1, layers + 1) for s in range(t)])


graphs = {
    "like a ResNet": (resnet(2, 0.5), "sum"),
    "like a DenseNet": (densenet(4), "scaled-sum"),
}
digits, digits_test = nd.data.load_dataset("digits", subset=300), nd.data.load_dataset("digits", split="test")
flat, flat_test = (nd.data.scale_to_sphere(nd.data.normalize(part)) for part in (digits, digits_test))
for name, (dag, aggregation) in graphs.items():
    network = nd.Network(dag, nd.Dense(order="act-linear"), aggregation)
    right, error, *_ = accuracy(network, flat, digits.labels, flat_test, digits_test.labels)
    print(f"{name:16} {dag.num_paths:2} paths, accuracy {right:.1%} ± {error:.1%} (s.e.)")

# %% [markdown]
# ## Convolutions on images
#
# With `nd.Conv` as the layer, the same graphs act on images (N, height, width, channels). `image_readout` says what
# becomes of the pixels of the last node: "flatten" gives each a weight of its own, "global-average" takes their mean
# first. The mean needs the covariances of all pairs of pixels, so memory grows with the square of the pixels. Digits
# have 64 pixels, which is small.

# %%
images, images_test = flat[:60].reshape(-1, 8, 8, 1), flat_test[:60].reshape(-1, 8, 8, 1)
edges = [("in", "out", "skip"), ("in", "branch", "weighted"), ("branch", "out", nd.Scale(0.5))]
one_block, conv = nd.Dag.from_edges(edges), nd.Conv(filter_shape=(3, 3), order="act-linear")
networks = {
    "dense": nd.Network(one_block, nd.Dense(order="act-linear")),
    "convolutions, flatten": nd.Network(one_block, conv),
    "convolutions, global-average": nd.Network(one_block, conv, image_readout="global-average"),
}
for name, network in networks.items():
    right, error, _, seconds = accuracy(network, images, digits.labels[:60], images_test, digits_test.labels[:60])
    print(f"{name:29} accuracy {right:.0%} ± {error:.0%} (s.e.), kernel in {seconds:.1f} s")
    assert right > 0.5

# %% [markdown]
# 60 images to train and 60 to test are few, as the standard errors say. `nd.explain` says how a kernel is computed,
# and why, before you ask for many images.

# %%
for name, network in networks.items():
    print(f"{name}: {nd.explain(network, images)}")

# %% [markdown]
# ## What to remember
#
# 1. `nd.data.load_file` reads your arrays and says what it found; nothing is scaled behind your back.
# 2. `Quadrature(fn)` is an activation in one line. A class with a formula compiles faster; check it by quadrature.
# 3. `Dag.from_edges` takes nodes with names, operations on edges, and whole graphs as edges. A `Network` adds the rest.
#
# Back to the start: [a first kernel](first_kernel.py). Guides: [networks](../guides/networks.md),
# [kernels](../guides/kernels.md), [training](../guides/training.md), [questions](../faq.md).
