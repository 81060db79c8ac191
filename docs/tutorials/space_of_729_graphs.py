# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A space of 729 graphs
#
# **Which of all graphs with a code of three blocks is best?** There are 729 codes, and `nd.sweep` computes the
# kernels of all of them. You see that they have only 77 different kernels, how the smallest eigenvalue goes with depth
# and paths, and that the answer depends on the question. At the end you see what these numbers cannot say. The notebook
# runs in about 40 seconds on two cores.

# %%
import matplotlib.pyplot as plt
import numpy as np

import nngp_dag as nd

plt.rcParams.update({"figure.figsize": (7, 3.5), "figure.dpi": 120, "figure.constrained_layout.use": True})

data, test = nd.data.load_dataset("digits"), nd.data.load_dataset("digits", split="test")
images = nd.data.scale_to_sphere(nd.data.normalize(data)).astype(np.float64)
x, labels = images[:100], data.labels[:100]
x_test = nd.data.scale_to_sphere(nd.data.normalize(test)).astype(np.float64)

# %% [markdown]
# ## One row for each code
#
# A code of three blocks has six digits, each 0, 1 or 2. So there are 3⁶ = 729. Some have no path from the input to
# the output. The table says so in a column of its own.

# %%
codes = list(nd.zoo.codes(3))
table = nd.sweep(codes, x)
valid = table[table.valid]
print(f"{len(table)} codes, {len(valid)} with a path, {valid.kernel_class.nunique()} different kernels")
print("a code without:", table[~table.valid].iloc[0].reason.split(";")[0])
assert (len(table), len(valid), valid.kernel_class.nunique()) == (729, 662, 77)

# %% [markdown]
# ## Why only 77 kernels
#
# Many codes describe the same network. Edges that lie on no path change nothing, and neither does the numbering of
# nodes. Here are some codes of the largest class. We compute their kernels one by one, as a check.

# %%
largest = valid[valid.class_size == valid.class_size.max()]
some = largest.code.iloc[::20]
print(f"the largest class has {len(largest)} codes, such as", ", ".join(some))
reference = nd.kernel(some.iloc[0], x)
for code in some.iloc[1:]:
    np.testing.assert_allclose(nd.kernel(code, x).ntk, reference.ntk, rtol=1e-12)

# %% [markdown]
# ## Depth, paths and the smallest eigenvalue
#
# From here on each kernel counts once. λmin is the smallest eigenvalue of the NTK: the pace of the slowest mode at a
# given learning rate.

# %%
kernels = valid.drop_duplicates("kernel_class").reset_index(drop=True)
assert kernels.ntk_resolved.all()
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
for paths, marker in zip((1, 2, 3, 4), "osD^", strict=True):
    group = kernels[kernels.num_paths == paths]
    panels[0].semilogy(group.effective_depth, group.ntk_lambda_min, marker, label=f"{paths} path{'s' * (paths > 1)}")
panels[0].set(xlabel="effective depth (mean weighted edges of a path)", ylabel="λmin of the NTK, 100 digits")
panels[0].legend(fontsize=8)
panels[1].semilogy(kernels.num_paths, kernels.ntk_lambda_min, "o", alpha=0.5)
panels[1].set(xlabel="number of paths", xticks=(1, 2, 3, 4))
panels[0].set_yticks([0.2, 0.5, 1, 2], ["0.2", "0.5", "1", "2"])
panels[0].minorticks_off()
plt.show()
assert set(kernels.num_paths) == {1, 2, 3, 4}

# %% [markdown]
# More paths, and deeper ones, raise λmin. But a sum over more paths also makes all entries of the kernel larger. A
# kernel that is twice as large trains as fast with half of the learning rate. The **condition number** λmax / λmin does
# not depend on such a factor. Rank correlations show how much the choice matters: +1 means the same order, −1 the
# opposite one.

# %%
shape = ["num_paths", "effective_depth", "effective_width"]
values = ["nngp_lambda_min", "ntk_lambda_min", "ntk_condition_number"]
correlations = kernels[shape + values].astype(float).corr("spearman").loc[shape, values]
correlations.round(2)

# %%
assert correlations.loc["num_paths", "ntk_lambda_min"] > 0.5
assert correlations.loc["num_paths", "ntk_condition_number"] > 0.3
assert correlations.loc["effective_depth", "ntk_condition_number"] < -0.7

# %% [markdown]
# Paths raise λmin, which is good, and also the condition number, which is bad. Depth lowers the condition number. These
# are rank correlations over 77 small graphs with ReLU, He initialization and sums; they are no law.
#
# ## Which graph would you take?
#
# For training with the best fixed learning rate of each graph, the condition number counts. For one learning rate that
# all graphs share, λmin counts, as long as it stays below 2 / λmax for each. The loss that is expected after 100 steps
# is a third answer, for all modes together. Here are the best three of each.

# %%
y = nd.data.one_hot(labels, 10)
shared = 1 / kernels.ntk_lambda_max.max()
left, left_shared = [], []
for row in kernels.itertuples():
    k = nd.kernel(row.code, x)
    for found, rate in ((left, 1 / row.ntk_lambda_max), (left_shared, shared)):
        loss = nd.expected_loss(k, y, rate, 100)
        found.append(loss[-1] / loss[0])
kernels = kernels.assign(left=left, left_shared=left_shared)


def best(column, largest=False):
    """Returns the three best codes in a column."""
    return "  ".join(kernels.sort_values(column, ascending=not largest).code[:3])


print("largest λmin of the NTK                     ", best("ntk_lambda_min", largest=True))
print("smallest condition number                   ", best("ntk_condition_number"))
print("least loss after 100 steps, own η = 1 / λmax", best("left"))
print("least loss after 100 steps, one η for all   ", best("left_shared"))
assert best("ntk_condition_number").startswith("2_02_002")  # DAG#1, the chain
assert best("ntk_lambda_min", largest=True).startswith("2_22_222")  # all edges weighted

# %% [markdown]
# The chain of weighted edges wins where each graph has its own learning rate, and the graph with all edges wins where
# they share one. Neither is wrong. State your learning rate before you rank.
#
# ## What the data do not say
#
# **Generalization.** A graph that trains fast need not predict well. Here is the accuracy on 297 test images of kernel
# regression with the NTK, which is where training at infinite width ends (in the mean over initializations). We take
# every sixth kernel, in the order of the condition number.


# %%
def part(k, rows, columns):
    """Returns the kernel between some of the inputs."""
    return nd.Kernel(k.nngp[rows, columns], k.ntk[rows, columns])


some = kernels.sort_values("ntk_condition_number").iloc[::6]
old, new = slice(len(x)), slice(len(x), None)
hits = []
for code in some.code:
    k = nd.kernel(code, np.concatenate([x, x_test]))  # one program for all three parts
    mean = nd.posterior(part(k, old, old), part(k, new, old), part(k, new, new), y - 0.1, kind="ntk").mean
    hits.append(mean.argmax(axis=1) == test.labels)
hits = np.array(hits)
accuracy = hits.mean(axis=1)
error = np.sqrt(accuracy.mean() * (1 - accuracy.mean()) / len(test.labels))
plt.errorbar(some.ntk_condition_number, 100 * accuracy, 100 * error, fmt="o", markersize=4, capsize=2)
plt.xlabel("condition number of the NTK")
plt.ylabel("test accuracy (%)")
plt.show()
print(f"accuracy from {accuracy.min():.1%} to {accuracy.max():.1%}")
print(f"standard error of one of them, by the choice of {len(test.labels)} images: {error:.1%}")
assert np.ptp(accuracy) < 2 * error

# %% [markdown]
# All graphs see the same images, so differences between them are more certain than one value is. Compare the two
# extreme graphs image by image: only images count on which one is right and the other is wrong.

# %%
low, high = hits[accuracy.argmin()], hits[accuracy.argmax()]
names = some.code.iloc[accuracy.argmin()], some.code.iloc[accuracy.argmax()]
print(f"only {names[1]} is right on {(high & ~low).sum()} images, only {names[0]} on {(low & ~high).sum()}")

# %% [markdown]
# Even this comparison is too kind: the two were picked because they are extreme on these very images.
#
# **Other images.** Is the order a property of the graphs, or of these 100 images? Sweep once more, over 100 others.

# %%
again = nd.sweep(list(kernels.code), images[100:200])
for column in ("ntk_lambda_min", "ntk_condition_number"):
    same = kernels[column].corr(again[column], method="spearman")
    print(f"{column}: rank correlation between the two sets of images {same:.3f}")
    assert same > 0.9

# %% [markdown]
# The order of the spectra carries over to other digits. It may not carry over to other kinds of data, other activations
# or networks of small width; each is another sweep, or a comparison with trained networks.
#
# ## What to remember
#
# 1. `nd.sweep` finds networks with equal kernels, computes each kernel once, and gives every code its row.
# 2. λmin depends on the scale of the kernel; the condition number does not. They rank graphs in different ways.
# 3. A spectrum speaks about training speed at infinite width. It does not say which graph generalizes.
#
# Next: [digits with a posterior](digits_posterior.py). Guides: [sweeps](../guides/sweeps.md),
# [search](../guides/search.md), [theory](../guides/theory.md).
