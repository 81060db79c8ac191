"""Search by pruning with known measures: rankings, shortcut, groups, resumption and degenerate cases."""

import itertools
import json
from typing import Any

import numpy as np
import pytest

from nngp_dag.errors import CheckpointError, InputError
from nngp_dag.nas import Cell, Genotype, get_space
from nngp_dag.nas.pruning.measures import Found
from nngp_dag.nas.pruning.rounds import Measure, Pruning, State, prune

NASBENCH201, DARTS = get_space("nasbench201"), get_space("darts")
WORTH = np.random.default_rng(7)
WORTHS = {
    space.name: WORTH.permutation(np.prod(space.shape)).reshape(space.shape) + 1.0 for space in (NASBENCH201, DARTS)
}


def additive(space, *, higher=True, name="worth", noise=0.0, bad=None):
    """Returns a measure that sums the worths of live operations, so that removing the best one loses most.

    Its values are not finite for masks that `bad` accepts.
    """
    calls = []

    def evaluate(mixtures, seed):
        calls.append((len(mixtures), seed))
        masks = mixtures > 0
        values = np.array([1000 + (mask * WORTHS[space.name]).sum() for mask in masks])
        values += noise * np.random.default_rng(seed).normal(size=1)
        values = values if higher else 1e6 / values
        reasons = ["broken" if bad is not None and bad(mask) else "" for mask in masks]
        return Found(np.where(np.array(reasons) == "", values, np.nan), tuple(reasons))

    return Measure(name, evaluate, higher), calls


def last(states):
    return list(states)[-1]


def best_of(space, mask):
    """Returns the live operation of each edge with the largest worth."""
    worth = np.where(mask, WORTHS[space.name], -1)
    return worth.argmax(-1)


@pytest.mark.parametrize("higher", [True, False])
@pytest.mark.parametrize("per_round", [1, 2, 9])
def test_the_best_operation_of_every_edge_stays(higher, per_round):
    measure, _ = additive(NASBENCH201, higher=higher)
    state = last(prune(NASBENCH201, [measure], Pruning(repeats=1, per_round=per_round, decimals=9)))
    expected = best_of(NASBENCH201, NASBENCH201.full_mask())
    np.testing.assert_array_equal(state.mask.argmax(-1), expected)
    assert (state.mask.sum(-1) == 1).all()
    # Rounds evaluate 4 live operations on each of 6 edges, then 3, then 2, each time with the supernet; then the cell.
    rounds = {1: [24, 18, 12], 2: [24, 12], 9: [24]}[per_round]
    assert state.evaluated == sum(rounds) + len(rounds) + 1
    assert state.round == len(rounds) + 1
    assert state.skipped == 0
    assert "final" in state.trajectory[-1]
    assert isinstance(NASBENCH201.cell_of(state.mask), Cell)


def test_darts_keeps_two_edges_of_every_node():
    measure, _ = additive(DARTS)
    pruning = Pruning(repeats=1, per_round=3, decimals=9)
    states = list(prune(DARTS, [measure], pruning))
    state = states[-1]
    single = next(s for s in states if (s.mask.sum(-1) == 1).all())
    np.testing.assert_array_equal(single.mask.argmax(-1), best_of(DARTS, DARTS.full_mask()))
    worth = (single.mask * WORTHS["darts"]).sum(-1)
    for t, (first, stop) in itertools.product(range(2), DARTS.groups):
        kept = set(first + np.argsort(worth[t, first:stop])[-2:])
        assert set(first + np.flatnonzero(state.mask[t, first:stop].any(-1))) == kept
    genotype = DARTS.cell_of(state.mask)
    assert isinstance(genotype, Genotype)
    # Rounds evaluate 7 operations on 28 edges, then 4; then 3, 4 and 5 edges of each cell, each with the supernet.
    assert state.evaluated == 28 * (7 + 4) + 2 + 2 * (3 + 4 + 5) + 6 + 1
    assert state.finished


def test_ranks_are_dense_and_summed_over_measures():
    one, _ = additive(NASBENCH201, name="one")
    other, _ = additive(NASBENCH201, name="other", higher=False)
    state = next(prune(NASBENCH201, [one, other], Pruning(repeats=2, decimals=9)))
    assert len(state.decisions) == 24
    worth = {(d.edge, d.operation): WORTHS["nasbench201"][0, i // 4, 1 + i % 4] for i, d in enumerate(state.decisions)}
    order = sorted(worth, key=worth.__getitem__)
    total = 1000 + sum(worth.values())
    for d in state.decisions:
        value = worth[d.edge, d.operation]
        # Removing the operation with the smallest worth lowers `one` least, and raises `other` least, of which lower is
        # better.
        assert d.ranks == {"one": order.index((d.edge, d.operation)), "other": order.index((d.edge, d.operation))}
        assert d.changes["one"] == pytest.approx(value / total, abs=1e-9)
        assert d.changes["other"] == pytest.approx(1 - total / (total - value), abs=1e-9)
    assert state.evaluated == 2 * 2 * 25


def test_ranks_of_an_edge_are_among_its_own_operations():
    one, _ = additive(NASBENCH201, name="one")
    other, _ = additive(NASBENCH201, name="other", higher=False)
    state = next(prune(NASBENCH201, [one, other], Pruning(repeats=1, decimals=9, ranks="edge")))
    for edge in range(6):
        places = WORTHS["nasbench201"][0, edge, 1:].argsort().argsort().tolist()
        rows = state.decisions[4 * edge : 4 * edge + 4]
        assert [d.ranks for d in rows] == [{"one": place, "other": place} for place in places]
        assert [d.outcome == "pruned" for d in rows] == [place == 0 for place in places]


@pytest.mark.slow
def test_where_measures_disagree_it_matters_among_whom_they_rank():
    """Two measures rank the operations of edge 0-1 in opposite order.

    By ranks within the edge all four tie. By ranks among all edges, the favorite of the first measure comes first.
    """
    worths = np.zeros((2, *NASBENCH201.shape))
    worths[:, 0, 1:, 1:] = 1 + np.arange(20).reshape(5, 4)
    worths[:, 0, 0, 1:] = (0, 30, 40, 50), (8.5, 5.5, 3.5, 0.5)

    def measure(name, worth):
        def evaluate(mixtures, seed):
            values = np.array([1000 + (mask * worth).sum() for mask in mixtures > 0])
            return Found(values, ("",) * len(values))

        return Measure(name, evaluate, True)

    measures = [measure("first", worths[0]), measure("second", worths[1])]
    for ranks, expected in (("all", ["skip_connect"]), ("edge", sorted(NASBENCH201.operations[1:]))):
        states = [next(prune(NASBENCH201, measures, Pruning(1, seed, decimals=9, ranks=ranks))) for seed in range(24)]
        assert sorted({d.operation for s in states for d in s.decisions[:4] if d.outcome == "pruned"}) == expected


def test_rounded_changes_tie_and_ties_are_drawn():
    flat = Measure("flat", lambda m, seed: Found(np.ones(len(m)), ("",) * len(m)), True)
    found = {
        str(NASBENCH201.cell_of(last(prune(NASBENCH201, [flat], Pruning(repeats=1, seed=s))).mask)) for s in range(8)
    }
    assert len(found) == 8
    state = next(prune(NASBENCH201, [flat], Pruning(repeats=1)))
    assert {tuple(d.ranks.values()) for d in state.decisions} == {(0,)}


def test_a_repeat_draws_its_own_weights_which_all_candidates_share():
    measure, calls = additive(DARTS, noise=1.0)
    search = prune(DARTS, [measure], Pruning(repeats=3, seed=5, per_round=6))
    next(search)
    next(search)
    seeds = [seed for _, seed in calls]
    # The 197 masks are evaluated in several parts.
    parts = 7
    assert [seeds[i * parts : (i + 1) * parts] for i in range(3)] == [[seeds[i * parts]] * parts for i in range(3)]
    assert len(set(seeds)) == 6
    assert sum(count for count, _ in calls[: 3 * parts]) == 3 * 197


def test_the_shortcut_keeps_moderate_operations_unmeasured():
    measure, _ = additive(NASBENCH201)
    states = list(prune(NASBENCH201, [measure], Pruning(repeats=2, decimals=9, shortcut=True)))
    state = states[-1]
    by_round = [[d for d in state.decisions if d.round == r] for r in range(3)]
    for rows, live, spared in zip(by_round, (4, 3, 2), (2, 1, 0), strict=True):
        for _, edge in itertools.groupby(rows, key=lambda d: d.edge):
            edge = list(edge)
            assert [d.outcome for d in edge].count("skipped") == spared
            assert [d.outcome for d in edge].count("pruned") == 1
            assert len(edge) == live
            assert all(not d.ranks and not d.changes for d in edge if d.outcome == "skipped")
            places = np.array([(d.depth, d.width) for d in edge])
            far = np.square(places - places.mean(0)).sum(1)
            skipped = [d.outcome == "skipped" for d in edge]
            if spared:
                assert far[skipped].max() <= far[~np.array(skipped)].min() + 1e-9
    assert state.skipped == 2 * 6 * (2 + 1)
    assert state.evaluated == 2 * (6 * (2 + 2 + 2) + 3 + 1)


def test_the_shortcut_keeps_one_edge_of_every_node():
    measure, _ = additive(DARTS)
    state = last(prune(DARTS, [measure], Pruning(repeats=1, decimals=9, shortcut=True, per_round=3)))
    # The shortcut skips 2 of 7 operations, none of 4 when 3 are pruned, and then one edge of each of six nodes.
    assert state.skipped == 28 * 2 + 6
    assert isinstance(DARTS.cell_of(state.mask), Genotype)


@pytest.mark.sample(1)
@pytest.mark.parametrize("shortcut", [False, True])
def test_a_search_goes_on_where_it_was(shortcut):
    pruning = Pruning(repeats=2, seed=3, shortcut=shortcut, per_round=2)
    whole = list(prune(DARTS, [additive(DARTS, noise=3.0)[0]], pruning))
    for cut in (0, 2, len(whole) - 2):
        again = State.from_json(whole[cut].to_json(), DARTS)
        rest = list(prune(DARTS, [additive(DARTS, noise=3.0)[0]], pruning, again))
        np.testing.assert_array_equal(rest[-1].mask, whole[-1].mask)
        assert len(rest) == len(whole) - cut - 1
        assert rest[-1].decisions == whole[-1].decisions
        assert (rest[-1].evaluated, rest[-1].skipped) == (whole[-1].evaluated, whole[-1].skipped)
    assert list(prune(DARTS, [additive(DARTS)[0]], pruning, whole[-1])) == []


def test_what_is_not_sound_goes_last():
    # The measure fails without the two worst operations of edge 0, which would otherwise be pruned first.
    worst = np.argsort(WORTHS["nasbench201"][0, 0, 1:])[:2] + 1
    measure, _ = additive(NASBENCH201, bad=lambda mask: not mask[0, 0, worst].all())
    state = next(prune(NASBENCH201, [measure], Pruning(repeats=1, decimals=9)))
    rows = {d.operation: d for d in state.decisions if d.edge == "0-1"}
    flagged = [rows[NASBENCH201.operations[op]] for op in worst]
    assert all(d.reason == "broken" and d.outcome == "kept" and not d.changes for d in flagged)
    assert [d.outcome for d in rows.values()].count("pruned") == 1
    # The search also ends where the measure fails for every removal, or is 0.
    for broken in (lambda mask: True, lambda mask: mask.sum() > 12):
        state = last(prune(NASBENCH201, [additive(NASBENCH201, bad=broken)[0]], Pruning(repeats=1)))
        assert (state.mask.sum(-1) == 1).all()
        assert state.trajectory[0]["worth"] is None
        State.from_json(state.to_json(), NASBENCH201)
    zero = Measure("zero", lambda m, seed: Found(np.zeros(len(m)), ("",) * len(m)), True)
    state = last(prune(NASBENCH201, [zero], Pruning(repeats=1)))
    assert state.decisions[0].reason == "the supernet: zero is 0"
    endless = Measure("inf", lambda m, s: Found(np.full(len(m), np.inf), ("",) * len(m)), True)
    assert next(prune(NASBENCH201, [endless], Pruning(repeats=1))).decisions[0].reason == "the supernet: inf is inf"


def test_a_draw_in_which_the_supernet_is_not_sound_does_not_count():
    measure, _ = additive(NASBENCH201, noise=3.0)
    seeds = []

    def evaluate(mixtures, seed):
        seeds.append(seed)
        found = measure.evaluate(mixtures, seed)
        # All values of the second draw fail. In the other draws, the failure of one candidate counts.
        return found if seed == seeds[0] else Found(found.values * np.nan, ("dark",) * 25)

    first = next(prune(NASBENCH201, [Measure("worth", evaluate, True)], Pruning(repeats=2, decimals=9)))
    alone = next(prune(NASBENCH201, [measure], Pruning(repeats=1, decimals=9)))
    assert first.trajectory == alone.trajectory
    assert first.decisions == alone.decisions
    assert len(set(seeds)) == 2


def test_a_note_on_a_finite_number_is_logged_and_ranked():
    measure, _ = additive(NASBENCH201)
    noted = Measure("worth", lambda m, s: Found(measure.evaluate(m, s).values, ("x",) * 25), True)
    with_notes, without = (next(prune(NASBENCH201, [some], Pruning(repeats=1))) for some in (noted, measure))
    np.testing.assert_array_equal(with_notes.mask, without.mask)
    assert {d.reason for d in with_notes.decisions} == {"x"}


def test_a_cell_without_a_path_goes_last_even_where_a_measure_says_nothing():
    mask = np.zeros(NASBENCH201.shape, bool)
    mask[..., 0] = True
    mask[0, 3, [1, 3]] = [False, True]
    measure, _ = additive(NASBENCH201, bad=lambda mask: True)
    for seed in range(4):
        state = next(prune(NASBENCH201, [measure], Pruning(repeats=1, seed=seed), State(mask)))
        assert state.trajectory[0]["worth"] is None
        cell = NASBENCH201.cell_of(state.mask)
        assert isinstance(cell, Cell)
        assert cell.status != "disconnected"


def test_what_leads_nowhere_is_not_measured():
    mask = np.zeros(NASBENCH201.shape, bool)
    mask[..., 0] = True
    mask[0, 3, 3] = True
    measure, calls = additive(NASBENCH201)
    state = next(prune(NASBENCH201, [measure], Pruning(repeats=1), State(mask)))
    rows = {d.operation: d for d in state.decisions}
    assert rows["nor_conv_3x3"].reason == "no path leads through the cell"
    assert (rows["nor_conv_3x3"].outcome, rows["none"].outcome) == ("kept", "pruned")
    assert calls[0][0] == 2


def test_refusals():
    measure, _ = additive(NASBENCH201)
    for measures in ([], [measure, measure]):
        with pytest.raises(InputError, match="`measures` to be at least one, of different names"):
            next(prune(NASBENCH201, measures, Pruning()))
    for name in ("repeats", "per_round", "decimals"):
        sizes: dict[str, Any] = {name: 0}
        with pytest.raises(InputError, match=f"`{name}` to be at least 1, got 0"):
            Pruning(**sizes)
    with pytest.raises(InputError, match="`ranks` to be one of 'all', 'edge', got 'node'"):
        Pruning(ranks="node")
    with pytest.raises(InputError, match="`mask` to be bool"):
        next(prune(NASBENCH201, [measure], Pruning(), State(DARTS.full_mask())))
    state = next(prune(NASBENCH201, [measure], Pruning(repeats=1)))
    for text in ("", "[]", "{}", '{"mask": 1}', state.to_json().replace('"seconds"', '"other"')):
        with pytest.raises(CheckpointError, match="Expected the state of a search of nasbench201, got"):
            State.from_json(text, NASBENCH201)
    whole = json.loads(state.to_json())
    for damage in (
        {"mask": np.full(NASBENCH201.shape, 2).tolist()},
        {"evaluated": "25"},
        {"seconds": None},
        {"trajectory": [3]},
        {"trajectory": [{"worth": 1.0, "depth": [1.0]}]},
        {"trajectory": [{"worth": "1", "depth": [1.0], "width": [1.0]}]},
        {"decisions": [whole["decisions"][0] | {"changes": {"worth": "much"}}]},
        {"decisions": [whole["decisions"][0] | {"depth": None}]},
    ):
        with pytest.raises(CheckpointError, match="Expected the state of a search of nasbench201, got"):
            State.from_json(json.dumps(whole | damage), NASBENCH201)
    with pytest.raises(CheckpointError, match="Expected the state of a search of darts, got"):
        State.from_json(state.to_json(), DARTS)
