# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A graph found by gradient
#
# **Can we follow the gradient to the best graph?** The exact kernel of a graph is differentiable in a weight of every
# edge. `nd.search_graph` starts from random mixtures of all graphs and lets an objective pull them apart. With three
# nodes there are so few codes that we can also score them all. You see where the gradient ends, and how good that is.
# The notebook takes about a minute of processor time, most of it for compilation.

# %%
import io

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

import nngp_dag as nd

data = nd.data.load_dataset("digits", subset=60)
images = nd.data.scale_to_sphere(nd.data.normalize(data)).reshape(60, -1).astype(np.float64)
x, x_new = images[:30], images[30:]

# %% [markdown]
# ## One network for all graphs
#
# Between two nodes there is no edge, a skip, or a weighted edge: the digits 0, 1 and 2 of a code. A graph with a skip
# **and** a weighted edge holds all of them. Two weights decide. With the weights 0 and 1 its kernel is exactly that of
# the code.

# %%
both = nd.Network(nd.Dag.from_edges([(0, 1, "skip"), (0, 1, "weighted"), (1, 2, "weighted")]))
for skip, weighted, code in ((1.0, 0.0, "1_02"), (0.0, 1.0, "2_02")):
    weights = {"0->1:skip": {"weight": skip}, "0->1:weighted": {"weight": weighted}}
    mixed = nd.kernel(both, x, parameters={"edges": weights})
    np.testing.assert_allclose(mixed.ntk, nd.kernel(code, x).ntk, rtol=1e-10)
print("the mixture holds both codes")

# %% [markdown]
# ## The search
#
# The objective is the smallest eigenvalue of the NTK at equal trace, which decides about the slowest mode of training.
# Twelve random mixtures follow its gradient for 60 steps, all in one compiled program. `exhaustive=True` scores all
# codes, too.

# %%
found = nd.search_graph(x, objective="ntk-lambda-min", num_nodes=3, starts=12, steps=60, exhaustive=True)
found

# %%
found.to_frame()[["gradient_code", "gradient_value", "gradient_rank", "code", "value", "rank"]].round(4)

# %% [markdown]
# `gradient_code` is the end of the gradient, rounded to a code. `code` is the end of a discrete descent from there,
# which changes one pair of nodes at a time, or deepens an edge by an unused node. The table of all codes says how good
# these are.

# %%
table = found.codes_frame()
print(f"{len(table)} codes; the first of them:")
print(table.head(4).to_string(index=False))
by_gradient = (found.to_frame().gradient_rank == 1).mean()
print(f"the gradient alone finds the best code from {by_gradient:.0%} of the starts, the descent from there brings")
print(f"{(found.to_frame()['rank'] == 1).mean():.0%} of them to it")
assert found.code == table.code[0]

# %% [markdown]
# ## Weights over the steps
#
# Each panel is a pair of nodes. Its three lines are the shares of no edge, skip and weighted edge. They sum to 1. The
# temperature falls from 4 to 0.1, and one of the three remains. Below are the objectives of all mixtures.

# %%
picture = io.BytesIO()
found.plot().savefig(picture, dpi=100)
Image(picture.getvalue())

# %% [markdown]
# ## Does the result hold for other inputs?
#
# The search saw 30 images. Here are all codes on 30 others.

# %%
again = nd.sweep(list(table.code), x_new)
other = again.ntk_lambda_min / (again.ntk_trace / len(x_new))
plt.figure(figsize=(5, 3.5), dpi=120, layout="constrained")
plt.plot(table.value, other, "o", alpha=0.6)
plt.plot(table.value[0], other[0], "D", markersize=9, label=f"found: {found.code}")
plt.xlabel("λmin of the NTK at equal trace, 30 images")
plt.ylabel("the same, 30 other images")
plt.legend()
plt.show()
same = table.value.corr(other, method="spearman")
print(f"rank correlation over all codes: {same:.3f}")
assert same > 0.9
assert other[0] == other.max()

# %% [markdown]
# The order holds for other digits. It says how fast the slowest mode trains at infinite width, and nothing about
# generalization.
#
# ## What to remember
#
# 1. The kernel is differentiable in every edge, so that a graph can be found along a gradient.
# 2. The gradient ends at local optima. Take several starts; they share one compiled program.
# 3. Up to four nodes the table of all codes is cheap, and shows how far the search came.
#
# Next: [a space of 729 graphs](space_of_729_graphs.py). Guide: [search by gradient](../guides/graph_search.md).
