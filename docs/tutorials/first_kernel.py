# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first kernel, and what it says
#
# **What can be said about a wide network before it is trained?** You write a graph as a short text and compute its two
# exact kernels on 64 images of digits. Then you read from them how outputs are spread, how hard training is, and how
# fast the loss falls. The notebook runs in about 15 seconds on two cores.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import nngp_dag as nd

plt.rcParams.update({"figure.figsize": (7, 3.5), "figure.dpi": 120, "figure.constrained_layout.use": True})

# %% [markdown]
# ## From a text to a graph
#
# The layers of a network often form more than a chain: values are copied, added, passed on. A *directed acyclic graph*
# (DAG) says how. Its **code** is a text such as `2_21_112`. Block *t* lists the edges into node *t*, from nodes 0, 1,
# up to *t* − 1. The digit 0 stands for no edge, 1 for a *skip* (the values are copied), and 2 for a *weighted edge* (a
# layer with weights and an activation, here ReLU). A node adds up all that enters it.
#
# A graph at the end of a cell shows itself. Its edges, in words:

# %%
dag = nd.Dag.from_code("2_21_112")
for edge in dag.edges:
    print(f"{edge.source} → {edge.target}: {edge.op.describe()}")
dag

# %% [markdown]
# The code has three blocks, so there are nodes 1 to 3, and node 0 before them. The **stem**, a layer with weights and
# ReLU, maps the data to node 0. The **readout**, a linear layer, maps the last node to the outputs. Both are part of
# the network and belong to no code.
#
# A path leads from node 0 to the last node. Its depth is the number of its weighted edges.

# %%
print("paths:", dag.num_paths)
print("paths by depth:", dag.depth_histogram)
print("effective depth (mean over paths):", dag.effective_depth)

# %% [markdown]
# ## The data
#
# `digits` comes with scikit-learn: images of 8 × 8 pixels, in ten classes. We take 64 of them and sort them by class,
# so that pictures are easy to read. Each image is scaled to |x|² = 64, the number of its pixels.

# %%
data = nd.data.load_dataset("digits", subset=64)
order = np.argsort(data.labels, kind="stable")
labels = data.labels[order]
x = nd.data.scale_to_sphere(nd.data.normalize(data))[order].astype(np.float64)
y = nd.data.one_hot(labels, 10)
print(x.shape, y.shape, x.dtype)

# %% [markdown]
# ## Two kernels
#
# Make every layer infinitely wide, and draw all weights at random. Two matrices then describe the network on this data.
#
# - The **NNGP** (neural network Gaussian process) kernel K holds E[f(x) f(x′)], the covariance of one output on two
#   inputs. The mean E runs over random weights. The outputs are Gaussian in this limit, so K says all about them.
# - The **NTK** (neural tangent kernel) Θ holds the inner products of the gradients of f(x) and f(x′) with respect to
#   the weights. It says how a step of training on x′ changes the output on x.
#
# `nd.kernel` computes both exactly, without drawing a weight.

# %%
k = nd.kernel(dag, x)
k

# %%
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4))
starts = np.searchsorted(labels, np.arange(10))
middles = (starts + np.append(starts[1:], len(labels)) - 1) / 2
for axes, matrix, name in zip(panels, (k.nngp, k.ntk), ("NNGP", "NTK"), strict=True):
    image = axes.imshow(matrix, cmap="viridis")
    axes.set(title=name, xlabel="class of input x′", ylabel="class of input x")
    axes.set_xticks(middles, range(10))
    axes.set_yticks(middles, range(10))
    figure.colorbar(image, ax=axes, shrink=0.8, label=f"{name}(x, x′)")
plt.show()

# %% [markdown]
# The blocks along the diagonal are brighter: images of one class are more alike for the network than images of two
# classes. This follows from the inputs and the graph. No label went into the kernels.

# %%
same = labels[:, None] == labels
off_diagonal = ~np.eye(len(x), dtype=bool)
for name, matrix in (("NNGP", k.nngp), ("NTK", k.ntk)):
    within, between = matrix[same & off_diagonal].mean(), matrix[~same].mean()
    print(f"{name}: mean {within:.1f} within classes, {between:.1f} between, {matrix[0, 0]:.1f} on the diagonal")
    assert within > between

# %% [markdown]
# ## Is it true of real networks?
#
# Draw 400 networks of width 256, each with 8 outputs, and look at the outputs on one image. The kernel predicts a
# Gaussian distribution of mean 0 and variance K(x, x). The standard error (s.e.) says how far off a mean over 400
# networks may be by chance.

# %%
one = x[:1].astype(np.float32)


def draw(key):
    return nd.nets.DagNet(dag, 64, 8, width=256, rngs=nnx.Rngs(key))(one)[0]


keys = jax.random.split(jax.random.key(0), 400)
outputs = np.asarray(jax.jit(lambda keys: jax.lax.map(draw, keys))(keys))
squares = (outputs**2).mean(axis=1)
error = squares.std(ddof=1) / len(squares) ** 0.5
print(f"variance: {squares.mean():.2f} ± {error:.2f} (s.e.) measured, {k.nngp[0, 0]:.2f} at infinite width")
assert abs(squares.mean() - k.nngp[0, 0]) < 4 * error

# %%
grid = np.linspace(-16, 16, 200)
density = np.exp(-(grid**2) / (2 * k.nngp[0, 0])) / np.sqrt(2 * np.pi * k.nngp[0, 0])
plt.hist(outputs.ravel(), bins=40, density=True, color="lightgray", edgecolor="gray", label="400 networks")
plt.plot(grid, density, "k--", label="Gaussian of variance K(x, x)")
plt.xlabel("output f(x) of an untrained network")
plt.ylabel("density")
plt.legend()
plt.show()

# %% [markdown]
# ## The spectrum says how hard training is
#
# Full-batch gradient descent with the learning rate η multiplies each mode of the error by 1 − ηλ in a step. The λ are
# the eigenvalues of the NTK. A large λ is learned fast; the smallest one, λmin, is learned last. Their ratio is the
# *condition number*. The *floor* is the smallest eigenvalue that rounding lets us tell from zero.

# %%
s = nd.spectrum(k.ntk, eigenvalues=True)
s

# %%
plt.semilogy(np.arange(1, 65), s.eigenvalues[::-1], "o-", markersize=3)
plt.xlabel("rank of the eigenvalue")
plt.ylabel("eigenvalue λ of the NTK")
plt.show()

# %%
share = s.eigenvalues[-1] / s.trace
print(f"λmax {s.lambda_max:.4g}, λmin {s.lambda_min:.4g}, condition number {s.condition_number:.0f}")
print(f"floor {s.floor:.1g}: every eigenvalue is far above it")
print(f"the largest eigenvalue holds {share:.0%} of the trace")
assert s.lambda_min > 1e6 * s.floor

# %% [markdown]
# ## The loss curve, before training
#
# The loss is L = ½‖y − f‖², summed over images and outputs. For wide networks training is nearly linear in the weights.
# The mean and the standard deviation of the loss over random initializations then follow from the two kernels in closed
# form. Here η = 1 / λmax, half of the largest stable learning rate.

# %%
curve = nd.loss_curve(k, y, 1 / s.lambda_max, 100)
assert np.allclose(curve.mean, nd.expected_loss(k, y, 1 / s.lambda_max, 100))
assert np.isclose(curve.learning_rate, curve.stable_learning_rate / 2)

plt.semilogy(curve.steps, curve.mean, "k", label="mean over initializations")
plt.fill_between(curve.steps, curve.mean - curve.std, curve.mean + curve.std, alpha=0.3, label="± standard deviation")
plt.xlabel("steps of gradient descent")
plt.ylabel("training loss ½‖y − f‖²")
plt.legend()
plt.show()

# %%
for step in (0, 1, 10, 100):
    print(f"step {step:3d}: {curve.mean[step]:8.2f} ± {curve.std[step]:.2f}")

# %% [markdown]
# The loss falls quickly at first and slowly later. One step removes the part in the mode of λmax; the many small
# eigenvalues decide the rest.
#
# ## Another graph is another text
#
# Functions that take a graph take its code, too. So a comparison is a loop.

# %%
print("code       paths  depth  condition number  loss left after 100 steps")
for code in ("2", "2_02", "2_02_002", "2_21_112"):
    other, kernels = nd.Dag.from_code(code), nd.kernel(code, x)
    spectrum = nd.spectrum(kernels.ntk)
    loss = nd.expected_loss(kernels, y, 1 / spectrum.lambda_max, 100)
    left = loss[-1] / loss[0]
    print(f"{code:10} {other.num_paths:5} {other.effective_depth:6.2f} {spectrum.condition_number:17.0f} {left:13.2%}")

# %% [markdown]
# ## What to remember
#
# 1. A graph is a short text, and `nd.kernel(text, x)` is the exact kernel of the infinitely wide network.
# 2. The NNGP describes untrained outputs; the NTK describes how training changes them.
# 3. The eigenvalues of the NTK set the pace of training, and `nd.loss_curve` turns them into the mean loss and its
#    spread.
#
# Next: [where neural-tangents goes wrong](neural_tangents.py). Guides: [networks](../guides/networks.md),
# [kernels](../guides/kernels.md), [theory](../guides/theory.md).
