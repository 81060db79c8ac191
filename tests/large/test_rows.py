"""Rows from arrays, memory maps and batches: equal rows, equal samples, and one clear line for what does not fit."""

import numpy as np
import pytest

from nngp_dag import Network
from nngp_dag.errors import InputError
from nngp_dag.large import rows as rows_module
from nngp_dag.large.rows import rows_of

_RNG = np.random.default_rng(0)
_X, _Y = _RNG.normal(size=(103, 4)), _RNG.normal(size=(103, 2))
_NETWORK = Network("2")


class Batches:
    """Batches that can be read several times."""

    def __init__(self, sizes=(7, 40, 1, 55), lost=0):
        self.sizes, self.lost, self.passes = sizes, lost, 0

    def __iter__(self):
        self.passes += 1
        ends = np.cumsum(self.sizes)
        for start, end in zip([0, *ends[:-1]], ends, strict=True):
            if self.passes <= 2 or start:
                yield _X[start:end], _Y[start:end]
            else:
                yield _X[start : end - self.lost], _Y[start : end - self.lost]


def _files(tmp_path):
    np.save(tmp_path / "x.npy", _X)
    np.save(tmp_path / "y.npy", _Y)
    return str(tmp_path / "x.npy"), tmp_path / "y.npy"


@pytest.mark.parametrize("size", [10, 50, 103, 200])
@pytest.mark.parametrize("start", [0, 20, 55])
def test_batches_are_put_together_to_the_blocks_of_an_array(size, start, tmp_path):
    sources = [rows_of(_NETWORK, _X, _Y), rows_of(_NETWORK, Batches(), None), rows_of(_NETWORK, *_files(tmp_path))]
    expected = [(i, len(_X[i : i + size])) for i in range(start, 103, size)]
    for rows in sources:
        found = list(rows.blocks(size, start))
        assert [(first, len(x)) for first, x, _ in found] == expected
        np.testing.assert_array_equal(np.concatenate([x for _, x, _ in found]), _X[start:])
        np.testing.assert_array_equal(np.concatenate([y for _, _, y in found]), _Y[start:])
        # The parts of two processes are the blocks, also where the last one has rows for the first process alone.
        parts = [list(rows.blocks(size, start, part)) for part in (slice(0, size // 2), slice(size // 2, size))]
        for (first, x, _), *halves in zip(found, *parts, strict=True):
            assert [half[0] for half in halves] == [first, first]
            np.testing.assert_array_equal(np.concatenate([half[1] for half in halves]), x)


def test_samples_of_arrays_and_batches_are_equal(tmp_path):
    first, *others = (
        rows.sampled(30, 0.1, 1000, seed=3)
        for rows in (
            rows_of(_NETWORK, _X, _Y),
            rows_of(_NETWORK, Batches(), None),
            rows_of(_NETWORK, Batches((100, 3)), None),
            rows_of(_NETWORK, *_files(tmp_path)),
        )
    )
    assert (first.total, len(first.candidates), len(first.held_out)) == (103, 30, 10)
    assert not set(first.candidates) & set(first.held_out)
    np.testing.assert_array_equal(first.x, _X[first.candidates])
    np.testing.assert_array_equal(first.y_held_out, _Y[first.held_out])
    for other in others:
        assert other.digest == first.digest
        np.testing.assert_array_equal(other.x, first.x)
    assert rows_of(_NETWORK, _X + 1e-9, _Y).sampled(30, 0.1, 1000, seed=3).digest != first.digest


def test_samples_are_uniform():
    rows = rows_of(_NETWORK, _X, _Y)
    counts = np.zeros(103)
    for seed in range(400):
        counts[rows.sampled(30, 0.1, 1000, seed).candidates] += 1
    # Every row is drawn with probability 30 / 103.
    share = 30 / 103
    assert abs(counts / 400 - share).max() < 4.5 * np.sqrt(share * (1 - share) / 400)
    assert np.var(counts) == pytest.approx(400 * share * (1 - share), rel=0.5)


def test_the_precision_is_that_of_the_inputs():
    assert rows_of(_NETWORK, _X, _Y).dtype == np.float64
    assert rows_of(_NETWORK, _X.astype(np.float32), _Y).dtype == np.float32
    assert rows_of(_NETWORK, _X, _Y, "float32").dtype == np.float32


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (_X, None, "Expected `y` beside an array"),
        (_X, _Y[:-1], r"\(103,\) or \(103, C\), got \(102, 2\)"),
        (_X, np.float64(3), r"\(103,\) or \(103, C\), got \(\)"),
        (_X, _Y[:, :, None], r"\(103,\) or \(103, C\), got \(103, 2, 1\)"),
        (
            [(_X[:9], _Y[:9]), (_X[9:, :3], _Y[9:])],
            None,
            r"rows of the shapes \(4,\) and \(2,\), got \(3,\) and \(2,\)",
        ),
        ((pair for pair in [(_X, _Y)]), None, "read several times"),
        (3, None, "an array or an iterable of batches"),
        ([], None, "at least one batch"),
        ([_X], None, "a pair \\(inputs, targets\\)"),
        ([(_X, _Y[:2])], None, "one target per input"),
        (_X[:, 0], _Y, "shape \\(N, features"),
        (_X, np.arange(103), "class labels"),
        ("absent.npy", _Y, "`x` to be a file .npy"),
    ],
)
def test_refusals(x, y, message):
    with pytest.raises(InputError, match=message):
        rows_of(_NETWORK, x, y).sampled(10, 0.1, 10, 0)  # which reads all rows


@pytest.mark.parametrize("in_batches", [False, True])
def test_labels_are_told_from_numbers_by_all_of_them(in_batches):
    def sampled(y):
        given = ([(_X[:50], y[:50]), (_X[50:], y[50:])], None) if in_batches else (_X, y)
        return rows_of(_NETWORK, *given).sampled(10, 0.1, 10, 0)

    labels = np.r_[[1, 0, 2], np.ones(100, int)]
    with pytest.raises(InputError, match=r"integers from 0 to 2, .*one_hot\(y, 3\)"):
        sampled(labels)
    # Numbers, of which the first are positive.
    assert sampled(np.r_[labels[:-1], -1]).total == sampled(labels.astype(float)).total == 103


@pytest.mark.parametrize("change", ["order", "inputs", "targets", "more"])
def test_rows_that_are_read_again_must_be_those_that_were_drawn(change):
    sampled = rows_of(_NETWORK, _X, _Y).sampled(60, 0.1, 10, 0)
    sampled.check_again(20, _X[20:70], _Y[20:70])
    x, y = _X[20:].copy(), _Y[20:].copy()
    at = sampled.held_out[sampled.held_out >= 20][0] - 20
    if change == "order":
        x, y = x[::-1], y[::-1]
    elif change == "inputs":
        x[sampled.candidates[-1] - 20] += 1e-9
    elif change == "targets":
        y[at] += 1e-9
    else:
        x, y = np.concatenate([x, x]), np.concatenate([y, y])
    with pytest.raises(InputError, match=r"same rows in every pass, got others from row 20 on; .* do not shuffle"):
        sampled.check_again(20, x, y)


def test_the_digest_is_that_of_all_rows():
    def digest(x, y):
        return rows_of(_NETWORK, x, y).sampled(10, 0.1, 10, 0).digest

    found = digest(_X, _Y)
    for row in range(0, 103, 20):
        for other in ((_X, _Y.copy()), (_X.copy(), _Y)):
            next(v for v in other if v is not _X and v is not _Y)[row, 0] += 1e-9
            assert digest(*other) != found


def test_a_bad_row_is_named():
    x = _X.copy()
    x[77, 1] = np.nan
    rows = rows_of(_NETWORK, x, _Y)
    _, block, _ = rows.blocks(50)
    with pytest.raises(InputError, match=r"row 27; .*block that begins with row 50"):
        rows.checked(*block)


def test_batches_must_be_the_same_in_every_pass():
    rows = rows_of(_NETWORK, Batches(lost=2), None)
    assert rows.sampled(10, 0.1, 10, 0).total == 103
    with pytest.raises(InputError, match="103 rows in every pass, got 101"):
        list(rows.blocks(20))


def test_processes_that_share_the_rows_find_the_digest_of_one(monkeypatch):
    monkeypatch.setattr(rows_module, "_READ", 20)
    alone, read = rows_of(_NETWORK, _X, _Y).sampled(10, 0.1, 10, 0), []

    def gathered(value):
        read.append(value)
        return read

    monkeypatch.setattr(rows_module, "gather_json", gathered)
    for process in range(2):
        monkeypatch.setattr(rows_module, "place", lambda process=process: (process, 2))
        found = rows_of(_NETWORK, _X, _Y).sampled(10, 0.1, 10, 0, shared=True)
        # The first one has read every second block.
        assert (found.digest == alone.digest) == (process == 1)
        assert found.drawn() == alone.drawn()
    assert [sorted(map(int, blocks)) for blocks, _ in read] == [[0, 40, 80], [20, 60, 100]]
