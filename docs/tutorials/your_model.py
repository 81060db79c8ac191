# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The kernel of your model
#
# **What does theory say about a model that I wrote in flax?** Here it is a recurrent network: one matrix is used at
# every step, and the states are averaged. No layer-by-layer calculation gives its kernel, because the weights are
# shared. You see what `nd.trace` reads, compare the kernel with that of many finite networks, and see how far off a
# calculation with independent weights would be. The notebook runs in about a minute on two cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import nnx

import nngp_dag as nd

plt.rcParams.update({"figure.figsize": (7, 3.2), "figure.dpi": 120, "figure.constrained_layout.use": True})


# %%
class Recurrent(nnx.Module):
    def __init__(self, width, rngs, shared=True):
        gaussian = nnx.initializers.variance_scaling(1.5, "fan_in", "normal")
        linear = lambda d, n: nnx.Linear(d, n, use_bias=False, kernel_init=gaussian, rngs=rngs)  # noqa: E731
        self.embed = linear(4, width)
        step = linear(width, width)
        self.steps = nnx.List([step if shared else linear(width, width) for _ in range(5)])
        self.readout = linear(width, 1)

    def __call__(self, x):  # (N, 5, 4)
        h, total = jnp.zeros((len(x), self.steps[0].out_features)), 0.0
        for t, step in enumerate(self.steps):
            h = jnp.tanh(step(h) + self.embed(x[:, t]))
            total = total + h
        return self.readout(total / len(self.steps))


x = np.random.default_rng(0).normal(size=(12, 5, 4)).astype(np.float32)
traced = nd.trace(Recurrent, x, width=256)
print(traced)

# %% [markdown]
# ## Against finite networks
#
# The NNGP kernel is the mean of f(x) f(x') over initializations. Here are 10,000 networks of width 256, and the kernel
# of a network whose five steps have matrices of their own.

# %%
k = nd.kernel(traced, x)
apart = nd.kernel(nd.trace(lambda width, rngs: Recurrent(width, rngs, shared=False), x, width=256), x)


def outputs(key):
    return Recurrent(256, nnx.Rngs(key))(x)[:, 0]


f = np.array(jax.lax.map(outputs, jax.random.split(jax.random.key(1), 10_000), batch_size=50))
measured = f.T @ f / len(f)
size = np.linalg.norm(k.nngp)
expected = np.sqrt(((np.trace(k.nngp) / size) ** 2 + 1) / len(f))
print(f"sampling error expected of {len(f):,} networks: about {expected:.1%}")
print(f"measured against the exact kernel: {np.linalg.norm(measured - k.nngp) / size:.1%} apart")
print(f"independent steps against the exact kernel: {np.linalg.norm(apart.nngp - k.nngp) / size:.1%} apart")

# %% [markdown]
# ## What follows
#
# A traced kernel is a kernel: here is the largest learning rate of gradient descent, and the loss to expect.

# %%
y = np.sin(x.sum(axis=(1, 2)))[:, None].astype(np.float32)
rate = nd.largest_stable_learning_rate(k)
curve = nd.loss_curve(k, y, 0.5 * rate, 60)
steps = np.arange(61)
fig, ax = plt.subplots()
ax.plot(steps, curve.mean, label="expected loss")
ax.fill_between(steps, curve.mean - curve.std, curve.mean + curve.std, alpha=0.25, label="one standard deviation")
ax.set(xlabel="step", ylabel="loss", yscale="log", title=f"gradient descent at learning rate {0.5 * rate:.3g}")
ax.legend()
plt.show()
