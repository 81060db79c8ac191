"""Helpers of the tests of training: synthetic data, comparisons of states, and commands in their own processes."""

import os
import re
import struct
import subprocess
import sys

import jax
import numpy as np

from nngp_dag.architecture import as_network
from nngp_dag.data import Splits
from nngp_dag.data.splits import Part
from nngp_dag.training import Recipe

CODE, EPOCHS = "2_12", 6
# A quick run of the command: points of the sphere are drawn, not loaded.
OPTIONS = (
    *("train", "--dag", CODE, "--dataset", "sphere", "--subset", "40", "--batch-size", "16", "--width", "8"),
    *("--parameterization", "standard", "--b-std", "0"),
    *("--momentum", "0.9", "--nesterov", "--lr", "0.01", "--epochs", str(EPOCHS)),
)


def authors_network(dag, **architecture):
    """Returns a network as the authors train it: standard parameterization, with biases that start at 0."""
    return as_network(dag, **{"parameterization": "standard", "b_std": 0.0, "width": 8} | architecture)


def splits(train=20, validation=7, test=9, *, classes=3, features=6, seed=0, absent=()):
    """Returns random inputs with random labels. Only the training part holds the classes in `absent`."""
    rng = np.random.default_rng(seed)

    def part(size, labels):
        return Part(rng.normal(size=(size, features)).astype(np.float32), rng.choice(labels, size))

    present = [c for c in range(classes) if c not in absent]
    return Splits(
        "mine",
        part(train, np.arange(classes)),
        part(validation, present),
        part(test, present),
        classes,
        "mine: random numbers",
    )


PARTIAL_DATA = splits(train=22, validation=7, test=9, classes=4, absent=(2,))
PARTIAL = Recipe(
    epochs=4,
    batch_size=8,
    learning_rate=0.05,
    momentum=0.5,
    nesterov=True,
    weight_decay=0.01,
    warmup=1,
    schedule="cosine",
    batch_norm=True,
)
"""A recipe with all that an optimizer remembers, and data whose last batch is a part of one."""


def assert_same_bits(first, second):
    """Asserts that two trees of arrays are equal to the last bit."""
    ours, theirs = (jax.tree.map(np.asarray, jax.tree.leaves(tree)) for tree in (first, second))
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert a.tobytes() == b.tobytes()


def assert_same_run(first, second):
    """Asserts that two results of training are equal to the last bit: curves, last and best states."""
    for a, b in zip(first, second, strict=True):
        assert (a.name, a.history.seeds, a.summary) == (b.name, b.history.seeds, b.summary)
        assert a.history.values.tobytes() == b.history.values.tobytes()
        assert_same_bits((a.params, a.best_params, a.best_epoch), (b.params, b.best_params, b.best_epoch))
        if jax.tree.leaves(a.stats):
            assert_same_bits((a.stats, a.best_stats), (b.stats, b.best_stats))


def command(arguments, cache, *, code="from nngp_dag.cli import main; main()"):
    """Starts nngp-dag in a process of its own. The process uses the compiled programs in the folder `cache`, if any."""
    environment = dict(os.environ, PYTHONWARNINGS="ignore")
    if cache is not None:
        environment |= {
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def error_line(text):
    """Returns the only line of an error stream, which must be a message of the command."""
    progress = re.compile(r"nngp-dag: (\d+ h )?(\d+ min )?\d+ s: ")
    lines = [line for line in text.strip().splitlines() if not progress.match(line)]
    assert len(lines) == 1, text
    assert lines[0].startswith("nngp-dag: error: ")
    return lines[0]


def scalars(folder):
    """Returns every scalar of a folder of TensorBoard events, {(tag, step): value}; none may occur twice."""
    from tensorboardX.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]

    found = {}
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            # A record is its length, a checksum of 4 bytes, the event, and another checksum.
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += size + 16
            for value in event.summary.value:
                assert (value.tag, event.step) not in found
                found[value.tag, event.step] = value.simple_value
    return found
