"""Complete small searches by networks: compiled programs, degenerate candidates, and resumption."""

from typing import Any

import numpy as np
import pytest
from compiled import programs

from nngp_dag.errors import InputError
from nngp_dag.nas import Cell, get_space
from nngp_dag.nas.pruning import measures
from nngp_dag.nas.pruning.measures import darts_measures, nasbench201_measures
from nngp_dag.nas.pruning.regions import patches
from nngp_dag.nas.pruning.rounds import Measure, Pruning, State, prune
from nngp_dag.nas.pruning.tenas import batch_sizes, tenas_measures

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32)
MAKERS = {"nasbench201": nasbench201_measures, "darts": darts_measures}


def small_measures(name):
    found = MAKERS[name](IMAGES, patches(IMAGES, 0, batches=1, size=20), batch_norm="frozen")
    return [Measure("ntk", found.ntk_conditions, False), Measure("regions", found.linear_regions, True)]


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["nasbench201", "darts"])
def test_a_search_compiles_one_program_per_measure_and_goes_on(name):
    space, pruning = get_space(name), Pruning(repeats=2, shortcut=True, per_round=3)
    before = programs(measures._ntks), programs(measures._patterns)
    states = list(prune(space, small_measures(name), pruning))
    after = programs(measures._ntks), programs(measures._patterns)
    assert (after[0] - before[0], after[1] - before[1]) == (1, 1)
    space.cell_of(states[-1].mask)
    again = State.from_json(states[0].to_json(), space)
    np.testing.assert_array_equal(list(prune(space, small_measures(name), pruning, again))[-1].mask, states[-1].mask)


@pytest.mark.nightly
def test_a_cell_without_a_path_or_weights_is_flagged_and_never_preferred():
    space = get_space("nasbench201")
    mask = np.zeros(space.shape, bool)
    mask[..., 0] = True
    # Edge 0-3 alone: none, a skip or a convolution.
    mask[0, 3, [1, 3]] = True
    *_, found = prune(space, small_measures("nasbench201"), Pruning(repeats=1), State(mask))
    cell = space.cell_of(found.mask)
    assert isinstance(cell, Cell)
    assert cell.status != "disconnected"
    one = np.zeros(space.shape, bool)
    one[..., 0] = True
    one[0, 3, 3] = True
    first = next(prune(space, small_measures("nasbench201"), Pruning(repeats=1), State(one)))
    [flagged] = [d for d in first.decisions if d.operation == "nor_conv_3x3"]
    assert (flagged.outcome, flagged.reason) == ("kept", "no path leads through the cell")


def test_measures_by_name():
    space = get_space("nasbench201")
    found = tenas_measures(space, IMAGES, ["regions", "exact", "ntk"])
    assert [(measure.name, measure.higher) for measure in found] == [("regions", True), ("exact", True), ("ntk", False)]
    for names, message in (
        ([], "`measures` out of ntk, regions, exact, got none"),
        (["ntk", "luck"], "`measures` to be one of 'ntk', 'regions', 'exact', got 'luck'"),
        (["ntk", "ntk"], "`measures` to be different ones, got ntk, ntk"),
    ):
        with pytest.raises(InputError, match=message):
            tenas_measures(space, IMAGES, names)
    choices: tuple[dict[str, Any], ...] = ({"gradients": "some"}, {"batch_norm": "train"})
    for options in choices:
        with pytest.raises(InputError, match=f"`{next(iter(options))}` to be one of"):
            tenas_measures(space, IMAGES, ["exact"], **options)
    with pytest.raises(InputError, match=r"`images` to be .n, height, width, channels. for networks, got .4, 192."):
        tenas_measures(space, IMAGES.reshape(4, -1), ["ntk"])


def test_every_measure_has_a_batch_of_its_own():
    space = get_space("darts")
    assert batch_sizes(space, ["ntk", "exact"]) == {"ntk": 14, "exact": 64}
    assert batch_sizes(space, ["ntk", "exact"], 8) == {"ntk": 8, "exact": 8}
    images = np.random.default_rng(0).normal(size=(70, 4, 4, 1)).astype(np.float32)
    evaluate: list[Any] = [measure.evaluate for measure in tenas_measures(space, images, ["ntk", "exact"])]
    assert evaluate[0].__self__.images.shape[0] == 14
    assert evaluate[1].__self__._inputs.shape[0] == 64
