"""Repeated searches among scored cells."""

import numpy as np
import pytest

from nngp_dag.errors import InputError
from nngp_dag.nas.studies.searches import accuracies_of, search

GOOD = np.array([1.0, 5.0, 3.0, -np.inf, 2.0])
ONES = np.ones(5)


def test_the_best_of_a_sample_is_taken():
    found = search(GOOD, seconds=ONES, sample=5, repeats=3)
    assert list(found.picked) == [1, 1, 1]
    assert list(found.seconds) == [5, 5, 5]
    kept = np.array([True, False, True, True, False])
    filtered = search(GOOD, seconds=ONES, kept=kept, sample=5, repeats=3)
    assert list(filtered.picked) == [2, 2, 2]
    np.testing.assert_allclose(filtered.skipped, 0.4)
    assert list(filtered.seconds) == [3, 3, 3]


def test_a_degenerate_cell_is_never_taken():
    only = np.array([False, False, False, True, False])
    found = search(GOOD, seconds=ONES, kept=only, sample=5, repeats=2)
    assert list(found.picked) == [-1, -1]
    assert len(accuracies_of(found, ONES)) == 0
    assert 3 not in search(GOOD, seconds=ONES, sample=2, repeats=200).picked


def test_the_best_of_so_many_draws_is_as_likely_as_combinatorics_say():
    repeats = 4000
    found = search(np.arange(20.0), seconds=np.ones(20), sample=5, repeats=repeats)
    # The best of 20 is in a sample of 5 with probability 1/4. The tolerance is 4 standard errors.
    assert abs((found.picked == 19).mean() - 0.25) < 4 * (0.25 * 0.75 / repeats) ** 0.5
    assert found.picked.min() >= 4


def test_a_seed_gives_all_methods_the_same_samples():
    first = search(np.arange(20.0), seconds=np.arange(20.0), sample=5, repeats=50, seed=1)
    other = search(-np.arange(20.0), seconds=np.arange(20.0), sample=5, repeats=50, seed=1)
    np.testing.assert_array_equal(first.seconds, other.seconds)
    assert (first.picked > other.picked).all()
    assert (search(np.arange(20.0), seconds=np.ones(20), sample=5, repeats=50, seed=2).picked != first.picked).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sample": 6}, "`sample` in 1 to the 5 scored cells, got 6"),
        ({"sample": 0}, "`sample` in 1 to the 5 scored cells, got 0"),
        ({"repeats": 0}, "`repeats` to be at least 1, got 0"),
        ({"seed": -1}, "`seed` to be at least 0, got -1"),
        ({"seconds": np.ones(4)}, "`seconds` and `kept` of 5 cells, got 4 and 5"),
        ({"kept": np.ones(6, bool)}, "`seconds` and `kept` of 5 cells, got 5 and 6"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, unchecked):
    with pytest.raises(InputError, match=message):
        search(GOOD, **({"seconds": ONES, "sample": 2} | change))
