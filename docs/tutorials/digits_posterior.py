# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Digits with a posterior
#
# **How well does an infinitely wide network classify digits, and does it know when it is unsure?** With the kernels in
# hand, prediction is linear algebra: no network is trained. You see mean and standard deviation of predictions for both
# kernels, how to choose the noise term without the test set, whether the uncertainty is calibrated, and how the error
# falls with the number of images N. The notebook runs in about 20 seconds on two cores.

# %%
import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import norm

import nngp_dag as nd

plt.rcParams.update({"figure.figsize": (7, 3.5), "figure.dpi": 120, "figure.constrained_layout.use": True})

data, test = nd.data.load_dataset("digits"), nd.data.load_dataset("digits", split="test")
x, x_test = (nd.data.scale_to_sphere(nd.data.normalize(part)).astype(np.float64) for part in (data, test))
print(len(x), "images to train on,", len(x_test), "to test on")

# %% [markdown]
# Three kernels are needed: of the training images with themselves, of the test images with the training images, and of
# the test images with themselves. The graph is DAG#3 of Chen et al. (NeurIPS 2022).

# %%
DAG = "DAG#3"
k_train, k_cross, k_test = nd.kernel(DAG, x), nd.kernel(DAG, x_test, x), nd.kernel(DAG, x_test)
k_train.ntk.shape, k_cross.ntk.shape, k_test.nngp.shape


# %%
def part(n):
    """Returns the kernels of the first n training images."""
    first, cross = (nd.Kernel(k.nngp[..., :n], k.ntk[..., :n]) for k in (k_train, k_cross))
    return nd.Kernel(first.nngp[:n], first.ntk[:n]), cross


# %% [markdown]
# ## Targets and two ways to predict
#
# Classes become numbers: the target of output *c* is 0.9 for images of class *c* and −0.1 for others. So the ten
# targets of an image sum to zero. `nd.posterior` answers two questions.
#
# - `kind="nngp"`: all layers are drawn from the prior, and we condition on the targets (Bayes). The result is a
#   Gaussian process.
# - `kind="ntk"`: the network is trained for infinite time by gradient descent. The mean and the spread are those over
#   random initializations.
#
# Both means are **kernel regression**, K(test, train) K⁻¹ y, with the NNGP or the NTK as K. We begin with 500 images.

# %%
y, y_test = nd.data.one_hot(data.labels, 10) - 0.1, nd.data.one_hot(test.labels, 10) - 0.1
first, cross = part(500)
for kind in ("nngp", "ntk"):
    result = nd.posterior(first, cross, k_test, y[:500], kind=kind)
    hits = result.mean.argmax(axis=1) == test.labels
    error = np.sqrt(hits.mean() * (1 - hits.mean()) / len(hits))
    print(f"{kind:4}  accuracy {hits.mean():.1%} ± {error:.1%} (s.e.), standard deviation of an output", end=" ")
    print(f"{result.std.min():.2f} to {result.std.max():.2f}")
    assert hits.mean() > 0.85

# %% [markdown]
# The standard error (s.e.) is that of a share counted on 297 images. A difference of one or two of them can be chance.
# The standard deviations of the outputs are large beside targets of 0.9 and −0.1, and there is a reason: the prior of
# this graph has the variance K(x, x).

# %%
print(f"prior: standard deviation {np.sqrt(k_test.nngp[0, 0]):.2f} of an output before any data")

# %% [markdown]
# ## Choose the scale and the noise
#
# A Gaussian process has two numbers left to choose: a factor on the kernel, s, and the variance of noise on the
# targets, σ². The mean depends on the ratio σ² / s alone; the uncertainty depends on both. The *marginal likelihood* is
# the density of the training targets under the prior. It needs no test image. For a given ratio the best s has a closed
# form.
#
# To see when noise is needed, we do this twice: with the labels as they are, and with a fifth of them drawn anew at
# random.

# %%
rng = np.random.default_rng(0)
labels = {"labels as they are": data.labels[:500], "a fifth of them random": data.labels[:500].copy()}
labels["a fifth of them random"][rng.permutation(500)[:100]] = rng.integers(10, size=100)
eigenvalues, vectors = np.linalg.eigh(first.nngp)
ratios = np.logspace(-4, 2, 13)


def evidence(targets, ratio):
    """Returns the best scale s at the noise s * ratio, and the log marginal likelihood per target."""
    shifted = eigenvalues + ratio
    squares = ((vectors.T @ targets) ** 2).mean(axis=1)
    scale = (squares / shifted).mean()
    return scale, -0.5 * (np.log(2 * np.pi * scale * shifted).mean() + 1)


figure, panels = plt.subplots(1, 2, figsize=(9, 3.5))
chosen = {}
for (name, given), style in zip(labels.items(), ("o-", "s--"), strict=True):
    found = [evidence(nd.data.one_hot(given, 10) - 0.1, ratio) for ratio in ratios]
    right = [nd.kernel_regression_accuracy(first, cross, given, test.labels, 10, noise=ratio) for ratio in ratios]
    best = int(np.argmax([log for _, log in found]))
    chosen[name] = found[best][0], ratios[best]
    panels[0].semilogx(ratios, [log for _, log in found], style, markersize=4, label=name)
    panels[1].semilogx(ratios, 100 * (1 - np.array(right)), style, markersize=4, label=name)
    panels[1].plot(ratios[best], 100 * (1 - right[best]), "k*", markersize=12)
    print(f"{name}: best ratio {ratios[best]:.2g}, test error {1 - right[best]:.1%}; least noise {1 - right[0]:.1%}")
panels[0].set(xlabel="noise over scale, σ² / s", ylabel="log marginal likelihood per target")
panels[1].set(xlabel="noise over scale, σ² / s", ylabel="test error of the NNGP (%)")
panels[0].legend(fontsize=8)
plt.show()
assert chosen["labels as they are"][1] < 1e-2 < chosen["a fifth of them random"][1]

# %% [markdown]
# The stars mark the ratio that the training targets choose. Digits have clean labels: no noise is needed, and a little
# of it costs nothing. With random labels it is needed, and the marginal likelihood notices. For the NTK, `noise` is a
# ridge: training minimizes ½‖y − f‖² + ½ · noise · ‖θ − θ(0)‖², with θ(0) the weights at the start.
#
# ## Is the uncertainty calibrated?
#
# Calibrated means: of all test targets, 90 % lie in the central interval to which the posterior gives 90 %, and so on
# for every level. We compare the raw prior without noise with the chosen scale and noise. Scaling is easy: the kernels
# are arrays.


# %%
def scaled(k, factor):
    return nd.Kernel(factor * k.nngp, factor * k.ntk)


levels = np.linspace(0.05, 0.99, 40)


def coverage(mean, std):
    """Returns which share of the test targets lies in the central interval of each level."""
    z = np.abs(y_test - mean) / std[:, None]
    return np.array([(z < norm.ppf(0.5 + level / 2)).mean() for level in levels])


scale, ratio = chosen["labels as they are"]
noise = scale * ratio
print(f"scale s = {scale:.3g}, noise variance σ² = {noise:.2g}")
raw = nd.posterior(first, cross, k_test, y[:500])
fitted = nd.posterior(*(scaled(k, scale) for k in (first, cross, k_test)), y[:500], noise=noise)
np.testing.assert_allclose(fitted.mean, nd.posterior(first, cross, k_test, y[:500], noise=ratio).mean, atol=1e-9)
curves = {
    "as it is, no noise": coverage(raw.mean, raw.std),
    "scale chosen": coverage(fitted.mean, np.sqrt(fitted.variance + noise)),
}
plt.plot(100 * levels, 100 * levels, "k:", label="calibrated")
for (name, values), style in zip(curves.items(), ("--", "-"), strict=True):
    plt.plot(100 * levels, 100 * values, style, label=name)
    print(f"{name}: mean distance from calibration {np.abs(values - levels).mean():.1%}")
plt.xlabel("level of the interval (%)")
plt.ylabel("targets inside (%)")
plt.legend()
plt.show()
off = [np.abs(values - levels).mean() for values in curves.values()]
assert off[1] < off[0] / 2

# %% [markdown]
# The predictive variance is that of the output plus that of the noise; `nd.posterior` leaves the noise out, since it
# describes outputs. The raw prior is far too wide. Targets of classes are not Gaussian, so no choice is perfect.
#
# Does the model know on which images it fails? Sort the test images by the lead of the largest output over the second,
# in standard deviations, and give up on the least certain ones.

# %%
ordered = np.sort(fitted.mean, axis=1)
lead = (ordered[:, -1] - ordered[:, -2]) / np.sqrt(fitted.variance + noise)
hits = (fitted.mean.argmax(axis=1) == test.labels)[np.argsort(-lead)]
for share in (1.0, 0.9, 0.75, 0.5):
    kept = hits[: round(share * len(hits))]
    print(f"keep {share:4.0%} of the images: {(~kept).sum()} errors on {len(kept)}")
assert hits[: len(hits) // 2].mean() > hits[len(hits) // 2 :].mean()

# %% [markdown]
# ## How the error falls with N
#
# More images, same kernel. The subsets are nested, and the noise is the one chosen above.

# %%
sizes = (50, 100, 200, 400, 800, 1500)
learned = {kind: [] for kind in ("nngp", "ntk")}
for n in sizes:
    first_n, cross_n = part(n)
    for kind in learned:
        right = nd.kernel_regression_accuracy(
            first_n, cross_n, data.labels[:n], test.labels, 10, kind=kind, noise=ratio
        )
        learned[kind].append(100 * (1 - right))
print("N:        ", *(f"{n:6}" for n in sizes))
for (kind, values), style in zip(learned.items(), ("o-", "s--"), strict=True):
    spread = [100 * np.sqrt(v / 100 * (1 - v / 100) / len(x_test)) for v in values]
    plt.errorbar(sizes, values, spread, fmt=style, markersize=4, capsize=2, label=kind.upper())
    print(f"{kind.upper():4} error %", *(f"{v:6.1f}" for v in values))
    assert values[-1] < values[0] / 2
assert sum(abs(a - b) < s for a, b, s in zip(*learned.values(), spread, strict=True)) >= 4
plt.xscale("log")
plt.xticks(sizes, sizes)
plt.minorticks_off()
plt.xlabel("number of training images N")
plt.ylabel("test error (%), ± s.e.")
plt.legend()
plt.show()

# %% [markdown]
# The bars are standard errors. At most sizes NNGP and NTK differ by less than one of them, so these data hardly say
# which is better. The cost of a posterior grows as N³, its memory as N².
#
# ## What to remember
#
# 1. `nd.posterior` gives mean and covariance of predictions: Bayes with the NNGP, infinite training with the NTK.
# 2. The marginal likelihood chooses scale and noise from the training targets. Clean labels need no noise; the
#    uncertainty needs the scale.
# 3. Give the standard error beside an accuracy. On 297 images many differences are chance.
#
# Next: [your own data, activation and graph](your_own.py). Guides: [prediction](../guides/prediction.md),
# [Gaussian processes](../guides/gaussian_processes.md), [questions](../faq.md).
