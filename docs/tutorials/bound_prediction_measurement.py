# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bound, prediction and measurement
#
# **How fast does a network of this graph train, and which formula may I believe?** For the three graphs of Figure 3 of
# Chen et al. (NeurIPS 2022) you see three curves each: a proven bound on the loss, its exact expectation at infinite
# width, and the losses of real networks. You see which curve is loose and why, and where real networks leave the
# expectation. The notebook runs in about 40 seconds on two cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nngp_dag as nd

plt.rcParams.update({"figure.figsize": (7, 3.5), "figure.dpi": 120, "figure.constrained_layout.use": True})

data = nd.data.load_dataset("digits", subset=64)
x = nd.data.scale_to_sphere(nd.data.normalize(data)).astype(np.float64)
y = nd.data.one_hot(data.labels, 10)

# %% [markdown]
# ## Three graphs
#
# DAG#1 is a chain, DAG#2 has three short paths, and DAG#3 mixes depths.

# %%
for name in ("DAG#1", "DAG#2", "DAG#3"):
    dag = nd.Dag.parse(name)
    print(f"{name}  code {dag.code}  paths by depth {dag.depth_histogram}")

# %% [markdown]
# ## One call for all three curves
#
# `nd.compare` computes the kernels, the bound and the expectation, and trains five networks of width 256 for each graph
# by full-batch gradient descent. The loss is L = ½‖y − f‖², summed over 64 images and 10 outputs. Each graph has its
# own learning rate η = 1 / λmax(NTK).

# %%
results = nd.compare(["DAG#1", "DAG#2", "DAG#3"], x, y, width=256, seeds=5, steps=50, predict_width=False)

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 3.6), sharey=True)
steps = np.arange(51)
for axes, r in zip(panels, results, strict=True):
    axes.fill_between(steps, r.curves.min(axis=0), r.curves.max(axis=0), color="C0", alpha=0.3)
    axes.semilogy(steps, r.mean, color="C0", label="measured: mean, range of 5 networks")
    axes.semilogy(steps, r.expected.mean, "k--", label="exact expectation")
    axes.semilogy(steps, r.bound, color="C3", linestyle="-.", label="rate bound")
    axes.set(title=r.name, xlabel="step of gradient descent")
panels[0].set_ylabel("training loss ½‖y − f‖²")
handles, names = panels[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=3, fontsize=8)
plt.show()

# %%
print("share of the loss that is left after 50 steps")
print("       rate bound  expectation  measured  steps above the bound")
for r in results:
    left = [curve[-1] / curve[0] for curve in (r.bound, r.expected.mean, r.mean)]
    print(f"{r.name} {left[0]:10.1%} {left[1]:12.1%} {left[2]:9.1%} {r.bound_violations:12}")
    assert left[0] > 0.9
    assert max(left[1:]) < 0.1
    assert r.bound_violations == 0

# %% [markdown]
# No network breaks the bound, and none comes near it. It is correct and says almost nothing.
#
# ## Why the bound is loose
#
# The rate bound is (1 − η λmin(K(H)) / 2)^k L(0). Here K(H) is the NNGP at the last node, before the readout. Two facts
# are lost on the way to it.
#
# 1. Training follows the NTK. The readout's own weights contribute 2 K(H) to it; the weights of all other layers
#    contribute the rest. The bound counts K(H) alone.
# 2. The bound treats the whole error as if it lay in the slowest mode. In truth each mode shrinks at its own rate, and
#    the large modes hold most of the error.
#
# So put a curve in between: the slowest mode of the NTK, which shrinks by (1 − η λmin(NTK))² in a step. It repairs the
# first fact and keeps the second.

# %%
print("       share left after 50 steps, if all modes were as slow as")
print("       the rate bound  the slowest mode of the NTK  what all modes do together")
for r in results:
    slowest = (1 - r.learning_rate * r.ntk.lambda_min) ** 100
    bound, expected = r.bound_rate**50, r.expected.mean[-1] / r.expected.mean[0]
    print(f"{r.name} {bound:14.1%} {slowest:28.1%} {expected:27.1%}")
    assert bound > slowest > expected
    assert bound / slowest < slowest / expected

# %% [markdown]
# Both facts count, and the second counts most. The next picture shows it for DAG#3. Each point is a mode of the error,
# and its height is the part of the expected initial loss that lies in it. The loss in a mode shrinks by (1 − ηλ)² in a
# step, about 1 − 2 ηλ. So the bound's factor, 1 − η λmin(K(H)) / 2, is that of a mode with λ = λmin(K(H)) / 4.

# %%
r = results[2]
k = nd.kernel(r.network, x)
eigenvalues, vectors = np.linalg.eigh(k.ntk)
parts = 0.5 * (((vectors.T @ y) ** 2).sum(axis=1) + y.shape[1] * np.diag(vectors.T @ k.nngp @ vectors))
np.testing.assert_allclose(parts.sum(), r.expected.mean[0])
plt.loglog(eigenvalues, parts / parts.sum(), "o", markersize=4)
counted = r.nngp.lambda_min / 4
plt.axvline(counted, color="C3", linestyle="-.", label="λ that the rate bound counts, λmin(K(H)) / 4")
plt.xlabel("eigenvalue λ of the NTK (DAG#3)")
plt.ylabel("share of the initial loss")
plt.legend()
plt.show()
largest, smallest = parts[-1] / parts.sum(), parts[0] / parts.sum()
print(f"the mode of λmax holds {largest:.0%} of the initial loss, that of λmin {smallest:.2%}")
print(f"λmin(NTK) is {eigenvalues[0] / counted:.0f} times the λ that the bound counts")

# %% [markdown]
# ## Where networks leave the expectation
#
# The expectation is exact for training that is linear in the weights, which infinite width brings. A network of finite
# width changes its own NTK while it trains. Five networks also differ from their mean by chance; the band shows that
# *sampling error*, one standard deviation of the mean of five at infinite width.

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 3.2), sharey=True)
for axes, r in zip(panels, results, strict=True):
    error = r.expected.std / r.expected.mean / len(r.curves) ** 0.5
    axes.fill_between(steps, -100 * error, 100 * error, color="lightgray", label="sampling error")
    axes.plot(steps, 100 * r.gaps, label="measured mean over expectation − 1")
    axes.axhline(0, color="k", linewidth=0.8)
    axes.set(title=r.name, xlabel="step of gradient descent")
panels[0].set_ylabel("gap (%)")
handles, names = panels[0].get_legend_handles_labels()
figure.legend(handles, names, loc="outside lower center", ncols=2, fontsize=8)
plt.show()

# %%
for r in results:
    error = r.expected.std[-1] / r.expected.mean[-1] / len(r.curves) ** 0.5
    print(f"{r.name}: gap {r.gaps[10]:+.1%} at step 10, {r.gaps[-1]:+.1%} at step 50, sampling error there {error:.1%}")
    ratio = r.mean / r.expected.mean
    assert 0.5 < ratio.min() < ratio.max() < 2

# %% [markdown]
# At first the sampling error is large, since the initial loss varies much between networks. Later it is small. If the
# gap that remains comes from the finite width, then it must be smaller for wider networks. So train the chain, DAG#1,
# again, narrower and wider.

# %%
gaps = {256: results[0].gaps}
for width in (64, 512):
    [gap_result] = nd.compare("DAG#1", x, y, width=width, seeds=5, steps=50, predict_width=False)
    gaps[width] = gap_result.gaps
for width, style in ((64, ":"), (256, "--"), (512, "-")):
    plt.plot(steps, 100 * gaps[width], style, label=f"width {width}")
    print(f"width {width:3}: largest gap from step 20 on {np.abs(gaps[width][20:]).max():.1%}")
plt.axhline(0, color="k", linewidth=0.8)
plt.xlabel("step of gradient descent")
plt.ylabel("DAG#1: measured mean over expectation − 1 (%)", fontsize=8)
plt.legend()
plt.show()
assert np.abs(gaps[64][20:]).max() > np.abs(gaps[512][20:]).max()

# %% [markdown]
# ## What to remember
#
# 1. The rate bound is never broken here, and it is loose: it knows one eigenvalue, and only the readout's share of it.
# 2. The exact expectation uses all modes. Here it stays within a factor of 2 of networks of width 256, while the loss
#    falls by a factor of more than 10.
# 3. Networks leave the expectation late in training, and wide ones less than narrow ones. Judge a gap beside its
#    sampling error.
# 4. Left to its default, `nd.compare` also predicts that gap, from networks that are smaller than those it trains. This
#    notebook turned that off; the guide "How far is my network from infinity?" shows it.
#
# Next: [a space of 729 graphs](space_of_729_graphs.py). Guides: [theory](../guides/theory.md),
# [training](../guides/training.md).
