# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fit hyperparameters
#
# **Which standard deviations of weights and biases suit my data, and how noisy are the targets?** The exact kernel can
# be differentiated in all of these numbers, so a Gaussian process with this kernel is fitted like any other. You see
# the numbers of a network by name, a fit by marginal likelihood with its standard errors, and what
# the fit does to predictions. The notebook runs in about 40 seconds on two cores; most of that is compilation.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nngp_dag as nd

plt.rcParams.update({"figure.figsize": (7, 3.2), "figure.dpi": 120, "figure.constrained_layout.use": True})
NET = nd.Network("2_12", layer=nd.Dense(activation="erf", order="act-linear", w_std=1.0, b_std=0.1))

# %% [markdown]
# The data are a sine with noise, on both sides of a gap. A column of ones is not needed, since the network has biases.

# %%
rng = np.random.default_rng(0)
x = np.concatenate([rng.uniform(-3, -0.5, 14), rng.uniform(1, 3, 10)])[:, None]
y = np.sin(1.3 * x[:, 0] + 0.8) + 0.15 * rng.normal(size=len(x))
grid = np.linspace(-4.5, 4.5, 200)[:, None]

# %% [markdown]
# ## Numbers by name
#
# `parameters` returns the numbers of a network. `kernel` takes them back as `parameters`, and JAX may trace them there:
# `jax.grad` of a kernel, or of anything that follows from it, reaches every one of them.

# %%
NET.parameters()

# %% [markdown]
# ## A fit
#
# `fit` follows these gradients to a maximum of the marginal likelihood. The program compiles once for
# all steps and both starts.

# %%
fitted = nd.fit(NET, x, y, noise=0.05, restarts=2)
print(fitted.message)
fitted.to_frame()

# %% [markdown]
# The noise was drawn with variance 0.15² = 0.0225. With 24 samples the network explains some of the noise, too.
# Standard errors come from the curvature at the maximum.

# %%
print("noise", round(fitted.noise, 4), "+-", round(float(fitted.std[-1]), 4))
print("both runs reached", fitted.restarts.round(4))

# %% [markdown]
# ## Predictions before and after
#
# With the numbers of the start the network cannot follow the data. After the fit it does, and its band widens in
# the gap and beyond the data.

# %%
figure, axes = plt.subplots(1, 2, sharey=True)
for axis, title, net, noise in zip(axes, ("before", "after"), (NET, fitted.network), (0.05, fitted.noise), strict=True):
    whole = nd.kernel(net, np.concatenate([x, grid]), get="nngp").nngp  # one program for both networks
    train, test = np.arange(len(x)), len(x) + np.arange(len(grid))
    kernels = [nd.Kernel(whole[np.ix_(*ends)], None) for ends in ((train, train), (test, train), (test, test))]
    posterior = nd.posterior(*kernels, y, noise=noise)
    mean, std = posterior.mean[:, 0], posterior.std
    value = nd.log_marginal_likelihood(kernels[0], y, noise)
    axis.fill_between(grid[:, 0], mean - 2 * std, mean + 2 * std, alpha=0.25, label="mean ± 2 std")
    axis.plot(grid[:, 0], mean)
    axis.plot(x[:, 0], y, "k.", label="data")
    axis.set(title=f"{title}: log p(y) = {value:.1f}", xlabel="x", ylim=(-3, 3))
axes[0].set_ylabel("y")
axes[1].legend(loc="upper right")
plt.show()
