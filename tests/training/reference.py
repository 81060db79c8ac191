"""A trainer of plain DAG networks in float64 NumPy: forward pass, backward pass and optimizer by hand.

It uses nothing of the package but the names of its parameters.
"""

import jax
import numpy as np

EPSILON, MOMENTUM_OF_AVERAGES = 1e-5, 0.9


def flat(state, seed):
    """Returns the arrays of one seed, such as {("edges", 0, "linear", "kernel"): float64 array}."""

    def name(path):
        keys = [getattr(key, "key", getattr(key, "idx", getattr(key, "name", None))) for key in path]
        return tuple(int(key) if str(key).isdigit() else key for key in keys if key not in ("value", None))

    return {name(path): np.array(leaf[seed], np.float64) for path, leaf in jax.tree_util.tree_leaves_with_path(state)}


def edges_of(code):
    """Returns the edges (source, target, weighted) on a path from node 0 to the last, ordered by source and target."""
    blocks = code.split("_")
    found = [
        (s, t + 1, digit == "2") for t, block in enumerate(blocks) for s, digit in enumerate(block) if digit != "0"
    ]
    last = len(blocks)
    forth, back = {0}, {last}
    for _ in blocks:
        forth |= {t for s, t, _ in found if s in forth}
        back |= {s for s, t, _ in found if t in back}
    return sorted(edge for edge in found if edge[0] in forth and edge[1] in back)


def softmax(outputs):
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


class Reference:
    """One network of linear-act edges with ReLU and sums at the nodes, trained step by step.

    `w_std` and `b_std` of the layer scale the trained weights and biases in the parameterization "ntk". Biases have no
    effect where b_std is 0, and do not exist where it is None.
    """

    def __init__(self, network, params, stats, *, recipe):
        code = network.dag.code
        self.edges, self.last = edges_of(code), code.count("_") + 1
        self.params = {name: leaf.copy() for name, leaf in params.items()}
        self.stats = {name: leaf.copy() for name, leaf in stats.items()}
        self.velocity = {name: np.zeros_like(leaf) for name, leaf in params.items()}
        self.network, self.recipe = network, recipe

    def scales(self, layer):
        if self.network.parameterization == "standard":
            return 1.0, 1.0
        op = self.network.layer
        return op.w_std / len(self.params[*layer, "linear", "kernel"]) ** 0.5, op.b_std

    def affine(self, layer, x):
        w_scale, b_scale = self.scales(layer)
        y = w_scale * x @ self.params[*layer, "linear", "kernel"]
        return y if self.network.layer.b_std is None else y + b_scale * self.params[*layer, "linear", "bias"]

    def layer(self, layer, x, training):
        """Returns relu(BN(W x + b)) and the arrays of its backward pass; in training it updates the averages."""
        z = self.affine(layer, x)
        if not self.recipe.batch_norm:
            return np.maximum(z, 0), (x, z, None, None)
        mean, var = z.mean(axis=0), z.var(axis=0)
        if training:
            for key, value in (("mean", mean), ("var", var)):
                old = self.stats[*layer, "norm", key]
                self.stats[*layer, "norm", key] = MOMENTUM_OF_AVERAGES * old + (1 - MOMENTUM_OF_AVERAGES) * value
        else:
            mean, var = self.stats[*layer, "norm", "mean"], self.stats[*layer, "norm", "var"]
        deviation = np.sqrt(var + EPSILON)
        normed = (z - mean) / deviation
        y = self.params[*layer, "norm", "scale"] * normed + self.params[*layer, "norm", "bias"]
        return np.maximum(y, 0), (x, y, normed, deviation)

    def forward(self, x, training=False):
        """Returns the outputs, and the arrays that each layer keeps for the backward pass."""
        x = np.asarray(x, np.float64).reshape(len(x), -1)
        nodes, memory = {}, {}
        nodes[0], memory["stems", 0] = self.layer(("stems", 0), x, training)
        weighted = [edge for edge in self.edges if edge[2]]
        for edge in sorted(self.edges, key=lambda edge: edge[1]):
            source, target, has_weights = edge
            value = nodes[source]
            if has_weights:
                name = ("edges", weighted.index(edge))
                value, memory[name] = self.layer(name, value, training)
            nodes[target] = nodes.get(target, 0) + value
        memory["last"] = nodes[self.last]
        return self.affine(("readouts", 0), nodes[self.last]), memory

    def losses(self, outputs, labels):
        if self.recipe.loss == "squared":
            return 0.5 * ((np.eye(outputs.shape[1])[labels] - outputs) ** 2).sum(axis=1)
        top = outputs.max(axis=1)
        return np.log(np.exp(outputs - top[:, None]).sum(axis=1)) + top - outputs[np.arange(len(labels)), labels]

    def gradient(self, x, labels):
        """Returns the outputs in training, the mean loss, and its gradient with respect to every parameter."""
        outputs, memory = self.forward(x, training=True)
        found = {}

        def back_affine(layer, x, change):
            w_scale, b_scale = self.scales(layer)
            found[*layer, "linear", "kernel"] = w_scale * x.T @ change
            if self.network.layer.b_std is not None:
                found[*layer, "linear", "bias"] = b_scale * change.sum(axis=0)
            return w_scale * change @ self.params[*layer, "linear", "kernel"].T

        def back(layer, change):
            x, before, normed, deviation = memory[layer]
            change = change * (before > 0)
            if normed is not None:
                found[*layer, "norm", "scale"] = (change * normed).sum(axis=0)
                found[*layer, "norm", "bias"] = change.sum(axis=0)
                change = change * self.params[*layer, "norm", "scale"]
                change = (change - change.mean(axis=0) - normed * (change * normed).mean(axis=0)) / deviation
            return back_affine(layer, x, change)

        hot = np.eye(outputs.shape[1])[labels]
        change = (outputs if self.recipe.loss == "squared" else softmax(outputs)) - hot
        changes = {self.last: back_affine(("readouts", 0), memory["last"], change / len(labels))}
        weighted = [edge for edge in self.edges if edge[2]]
        for edge in sorted(self.edges, key=lambda edge: -edge[1]):
            source, target, has_weights = edge
            change = changes[target]
            if has_weights:
                change = back(("edges", weighted.index(edge)), change)
            changes[source] = changes.get(source, 0) + change
        back(("stems", 0), changes[0])
        return outputs, self.losses(outputs, labels).mean(), found

    def step(self, x, labels, learning_rate):
        """Takes one step of SGD, and returns the outputs and the mean loss before it."""
        outputs, loss, gradient = self.gradient(x, labels)
        for name, of_loss in gradient.items():
            whole = of_loss + self.recipe.weight_decay * self.params[name]
            self.velocity[name] = self.recipe.momentum * self.velocity[name] + whole
            ahead = whole + self.recipe.momentum * self.velocity[name]
            self.params[name] -= learning_rate * (ahead if self.recipe.nesterov else self.velocity[name])
        return outputs, loss


def metrics(losses, outputs, labels):
    """Returns mean loss, accuracy, and class accuracy: the mean, over classes that occur, of their accuracies."""
    hits = outputs.argmax(axis=1) == labels
    return [losses.mean(), hits.mean(), np.mean([hits[labels == c].mean() for c in np.unique(labels)])]


def close(result, expected, tolerance=1e-6):
    """Asserts that the error of every entry is at most a fraction of the largest entry."""
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance * np.abs(expected).max())
