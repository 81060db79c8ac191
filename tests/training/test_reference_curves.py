"""The curves of the authors' network lie among those of our seeds, for the three DAGs.

One of their curves is known, that of seed 0. Curves of one DAG differ by their initial function. After six epochs the
spread of losses is 5 %: 48 draws of the infinitely wide network, trained by its kernel on 700 images, have standard
deviations of 0.067, 0.059 and 0.047 in the logarithm. So a loss that is wrong by a factor of 1.05 lies within the
spread for any number of seeds. The decrease of the loss in the sixth epoch has less spread, and reveals such an error.
"""

import json

import numpy as np
import pytest
import scipy.stats
from training_cases import authors_network

from nngp_dag import Recipe, kernel, linearized_sgd, train
from nngp_dag.data import Splits, load_splits

SEEDS, EPOCHS = 4, 6
CODES = ("2_02_002", "1_01_222", "2_21_112")
# Standard deviation over draws of log(loss of epoch 6 / loss of epoch 5), from the simulation above.
SPREAD = {"2_02_002": 0.0057, "1_01_222": 0.0114, "2_21_112": 0.0132}
# Level of the prediction interval of one further draw. 45 numbers are compared, but all depend on the initial function,
# so that few of them are independent.
LEVEL = 0.99


@pytest.fixture(scope="module")
def golden(golden_dir):
    found = json.loads((golden_dir / "mlp_training_mnist.json").read_text())
    assert (found["width"], found["batch_size"], found["lr"], found["n_train"]) == (1024, 128, 1e-5, 12_800)
    return found["runs"]


@pytest.fixture(scope="module")
def data(tfds_dir):
    """Returns the first 12,800 images of our training part. Its order is our own; the authors take the original one."""
    whole = load_splits("mnist", subset=12_800, data_dir=tfds_dir)
    # Few images to evaluate, because only training is compared.
    validation, test = (
        part._replace(x=part.x[:128], labels=part.labels[:128]) for part in (whole.validation, whole.test)
    )
    return Splits("mnist", whole.train, validation, test, 10)


@pytest.mark.nightly
@pytest.mark.parametrize("code", CODES)
def test_the_authors_curve_lies_among_ours(golden, data, code):
    theirs = golden[code]
    recipe = Recipe(epochs=EPOCHS, batch_size=128, learning_rate=1e-5, loss="cross-entropy")
    [run] = train(authors_network(code, width=1024), data, recipe, seeds=SEEDS)
    assert run.summary.parameters == theirs["n_params"]
    assert run.history.steps_per_epoch == theirs["steps_per_epoch"]
    t = scipy.stats.t.ppf((1 + LEVEL) / 2, SEEDS - 1) * (1 + 1 / SEEDS) ** 0.5
    # Epoch 0 of the authors is our epoch 1: means over the batches of the first pass.
    for metric, key, unit in (("loss", "train_loss", 1.0), ("class_accuracy", "train_acc", 0.01)):
        ours = run.history.of("train", metric)
        initial = theirs["init_" + key] * unit
        expected = np.array([initial, *(epoch[key] * unit for epoch in theirs["epochs"][:EPOCHS])])
        # Losses are compared by their logarithms, because their spread is a factor.
        scale = np.log if metric == "loss" else np.asarray
        middle, spread = scale(ours).mean(axis=1), scale(ours).std(axis=1, ddof=1)
        assert (np.abs(scale(expected) - middle) < t * spread).all(), (metric, expected, ours)

    fall = np.log(run.history.of("train", "loss")[-1] / run.history.of("train", "loss")[-2])
    reference = np.log(theirs["epochs"][EPOCHS - 1]["train_loss"] / theirs["epochs"][EPOCHS - 2]["train_loss"])
    bound = scipy.stats.norm.ppf((1 + LEVEL) / 2) * SPREAD[code] * (1 + 1 / SEEDS) ** 0.5
    # An error of a factor of 1.05 in the sixth loss moves it from the middle of the interval to outside.
    assert bound < np.log(1.05)
    assert abs(reference - fall.mean()) < bound


@pytest.mark.nightly
@pytest.mark.parametrize("code", CODES)
def test_the_authors_curve_lies_among_draws_at_infinite_width(golden, data, code):
    """Loss and accuracy of every epoch lie within the prediction interval of the learning curves of the kernel."""
    x, epochs, draws = data.train.x.reshape(12_800, -1), 10, 30
    k = kernel(authors_network(code, width=1024), x)
    runs = linearized_sgd(
        k, data.train.labels, 1e-5, batch_size=128, epochs=epochs, num_classes=10, draws=draws, seed=1
    )
    theirs = golden[code]
    for values, key, unit in ((runs.losses, "train_loss", 1.0), (runs.accuracies, "train_acc", 0.01)):
        expected = unit * np.array([theirs["init_" + key], *(epoch[key] for epoch in theirs["epochs"][:epochs])])
        scores = (expected - values.mean(axis=1)) / values.std(axis=1, ddof=1)
        t = scipy.stats.t.ppf((1 + LEVEL) / 2, draws - 1) * (1 + 1 / draws) ** 0.5
        assert (np.abs(scores) < t).all(), (key, scores)
