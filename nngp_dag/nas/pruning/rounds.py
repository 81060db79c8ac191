"""Search by pruning a supernet: in every round each edge loses the operation with the least effect on the measures."""

import dataclasses
import itertools
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from nngp_dag.errors import CheckpointError, InputError
from nngp_dag.graph.operations import check_option
from nngp_dag.nas.pruning.measures import AT_ONCE, Found
from nngp_dag.nas.spaces.search_space import Mask, SearchSpace

# Differences of mean changes and distances below this decimal are rounding errors, and count as ties.
_TIE_DECIMALS = 9

RANKS = ("all", "edge")

# Types of the fields of a saved state.
_LISTS = {"depth": list, "width": list}
_DECISION = dict.fromkeys(("cell_type", "edge", "operation", "outcome", "reason"), str) | {
    "round": int,
    "changes": dict,
    "ranks": dict,
    "depth": float,
    "width": float,
}


class Measure(NamedTuple):
    """A measure that compares supernets.

    Attributes:
      name: Name of the measure in logs.
      evaluate: Function of (mixtures, seed) that returns a `Found`. Mixtures have shape (candidates, cell types, edges,
        operations), and the seed draws the weights.
      higher: Whether a higher number is better.
    """

    name: str
    evaluate: Callable[[np.ndarray, int], Found]
    higher: bool


@dataclass(frozen=True)
class Pruning:
    """The options of a search by pruning.

    Attributes:
      repeats: Number of draws of weights in every round. The supernet and all candidates share each draw.
      seed: Seed of these draws, and of the random order that breaks ties.
      shortcut: Whether to keep, without evaluation, operations whose removal leaves effective depth and width moderate;
        see `prune`.
      per_round: Number of operations that an edge loses in a round.
      decimals: Number of decimals to which relative changes are rounded before their mean, as in the released code.
      ranks: Group of candidates in which a candidate is ranked. "all" ranks the candidates of all edges together, as
        the released code does. "edge" ranks those of one edge, or those of one node where nodes lose edges.

    Raises:
      InputError: A number is too small, or an option is unknown.

    Examples:
      >>> Pruning(repeats=0)
      Traceback (most recent call last):
      ...
      nngp_dag.errors.InputError: Expected `repeats` to be at least 1, got 0
    """

    repeats: int = 3
    seed: int = 0
    shortcut: bool = False
    per_round: int = 1
    decimals: int = 3
    ranks: str = "all"

    def __post_init__(self) -> None:
        """Refuses numbers that are too small, and unknown options."""
        check_option("ranks", self.ranks, RANKS)
        for name, least in (("repeats", 1), ("seed", 0), ("per_round", 1), ("decimals", 1)):
            if getattr(self, name) < least:
                raise InputError(f"Expected `{name}` to be at least {least}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Decision:
    """The outcome for one operation in one round.

    Attributes:
      round: Number of the round, from 0.
      cell_type: Name of the cell type.
      edge: The edge, as "source-target".
      operation: Name of the operation.
      outcome: "pruned", "kept" after evaluation, or "skipped" (kept by the shortcut, without evaluation).
      changes: Mean relative change (before - after) / before of each measure when the operation is removed.
      ranks: Rank of the operation by each measure, from 0, the first to be pruned. Ties share a rank.
      depth: Expected effective depth of the cell without the operation.
      width: Expected effective width of the cell without the operation.
      reason: Reason of a missing change, or a note on a change. Operations with a missing change are pruned last.
    """

    round: int
    cell_type: str
    edge: str
    operation: str
    outcome: str
    changes: dict[str, float]
    ranks: dict[str, int]
    depth: float
    width: float
    reason: str


@dataclass(frozen=True)
class State:
    """The state of a search after a round: with the options, it determines the next round.

    Attributes:
      mask: The live operations, (cell types, edges, operations).
      trajectory: One row per round on the supernet before it, and a last row on the cell that the search found. A row
        has the mean of each measure, over repeats with a finite value other than 0. It also has the expected effective
        depth and width of every cell type.
      decisions: One decision per operation and round.
      evaluated: Number of networks that were measured. A network counts once for each repeat and each measure.
      skipped: Number of networks that the shortcut left out, counted in the same way.
      seconds: Time spent, in seconds.
    """

    mask: Mask
    trajectory: tuple[dict[str, Any], ...] = ()
    decisions: tuple[Decision, ...] = field(default=(), repr=False)
    evaluated: int = 0
    skipped: int = 0
    seconds: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether one cell is left, and it has been measured."""
        return bool(self.trajectory) and "final" in self.trajectory[-1]

    @property
    def round(self) -> int:
        """The number of the next round."""
        return len(self.trajectory)

    def to_json(self) -> str:
        """Returns the state as JSON, with null for missing numbers."""
        fields = dataclasses.asdict(self) | {"mask": self.mask.astype(int).tolist()}
        return json.dumps(fields, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, space: SearchSpace) -> "State":
        """Reads the output of `to_json`.

        Raises:
          CheckpointError: The text is no state, or the state of another space.
        """
        try:
            fields = json.loads(text)
            mask, trajectory = np.array(fields.pop("mask")), tuple(fields.pop("trajectory"))
            decisions = tuple(Decision(**decision) for decision in fields.pop("decisions"))
            if mask.dtype != int or not np.isin(mask, (0, 1)).all():
                raise TypeError("a mask of other numbers than 0 and 1")
            state = cls(mask.astype(bool), trajectory, decisions, **fields)
            space.check(state.mask)
            for row in trajectory:
                _check_types("a round", row, dict.fromkeys(row, float | bool | list | None) | _LISTS)
            for decision in decisions:
                _check_types("a decision", vars(decision), _DECISION)
                _check_types("a change", decision.changes, dict.fromkeys(decision.changes, float))
                _check_types("a rank", decision.ranks, dict.fromkeys(decision.ranks, int))
            _check_types("the state", fields, {"evaluated": int, "skipped": int, "seconds": float})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"Expected the state of a search of {space.name}, got {error}") from None
        return state


class _Candidate(NamedTuple):
    cell_type: int
    edge: int
    operation: int


OnProgress = Callable[[int, int, int], None]


def prune(
    space: SearchSpace,
    measures: Sequence[Measure],
    pruning: Pruning,
    state: State | None = None,
    *,
    on_progress: OnProgress = lambda *_: None,
) -> Iterator[State]:
    """Prunes the supernet round by round to one cell.

    A round removes, in turn, each live operation of every edge that has several. Each measure compares the supernet
    before and after, with the same weights. The relative changes are averaged over repeats. For each measure the
    operations are ranked: the operation whose removal improves the measure most comes first, and ties share a rank. The
    ranks of all measures are summed, and every edge loses the `per_round` operations with the lowest sums, but keeps
    one.

    Once every edge has one operation, the nodes that keep only some of their edges follow, one node per round. Each
    edge of the node is removed in turn, and the edges are ranked in the same way.

    The shortcut keeps some operations without evaluation: min(2, n - `per_round` - 1) of an edge with n live
    operations, and one edge of a node. Their removal leaves effective depth and width of the cell nearest to the mean
    over all candidates of the edge or node. With `per_round` 1, two of four operations are evaluated, two of three, and
    both of two.

    A seeded random order breaks ties of rank sums and of distances, so that no operation is favored by its place.

    Args:
      space: The search space.
      measures: The measures to rank by, at least one.
      pruning: The options.
      state: The state to continue from. None starts with the whole supernet without `none`.
      on_progress: Function of (round, networks measured in it, networks of the round).

    Yields:
      The state after every round. After the last round, `space.cell_of(state.mask)` is the cell that the search found.

    Raises:
      InputError: There is no measure, or two share a name.

    Examples:
      >>> from nngp_dag.nas import Found, Measure, Pruning, get_space, prune
      >>> space = get_space("nasbench201")
      >>> def convolutions(mixtures, seed):
      ...     return Found(1 + mixtures[..., 2:4].sum(axis=(1, 2, 3)), ("",) * len(mixtures))
      >>> *_, state = prune(space, [Measure("convolutions", convolutions, higher=True)], Pruning(repeats=1))
      >>> space.cell_of(state.mask).status, state.round
      ('connected', 4)

    Reference: Chen, Gong, Wang, TE-NAS, ICLR 2021, Algorithm 1; Chen et al., NeurIPS 2022, Section 5.2 (shortcut).
    """
    if not measures or len({measure.name for measure in measures}) < len(measures):
        raise InputError(f"Expected `measures` to be at least one, of different names, got {list(measures)}")
    state = State(space.full_mask()) if state is None else state
    space.check(state.mask)
    while not state.finished:
        yield (state := _round(space, measures, pruning, state, on_progress))


class _Contest(NamedTuple):
    """Operations of one edge, or edges of one node, of which some are pruned.

    Attributes:
      rivals: The operations, or the edges of the node with their one operation.
      losses: Number of them to prune.
      spared: Number of them that the shortcut keeps without evaluation.
    """

    rivals: list[_Candidate]
    losses: int
    spared: int


def _contests(space: SearchSpace, mask: np.ndarray, pruning: Pruning) -> list[_Contest]:
    """Returns the contests of the next round: one for every edge with several operations, else one for one node.

    There is none when the search has found its cell.
    """
    live = mask.sum(-1)
    found = []
    for t, e in np.argwhere(live > 1).tolist():
        losses = min(pruning.per_round, int(live[t, e]) - 1)
        spared = max(0, min(2, int(live[t, e]) - losses - 1)) if pruning.shortcut else 0
        found.append(_Contest(_live(mask, t, e, e + 1), losses, spared))
    if found or space.inputs_per_node is None:
        return found
    for t, (first, last) in itertools.product(range(len(mask)), space.groups):
        rivals = _live(mask, t, first, last)
        if len(rivals) > space.inputs_per_node:
            return [_Contest(rivals, len(rivals) - space.inputs_per_node, int(pruning.shortcut))]
    return []


def _live(mask: np.ndarray, cell_type: int, first: int, last: int) -> list[_Candidate]:
    return [_Candidate(cell_type, first + e, op) for e, op in np.argwhere(mask[cell_type, first:last]).tolist()]


def _round(
    space: SearchSpace, measures: Sequence[Measure], pruning: Pruning, state: State, on_progress: OnProgress
) -> State:
    started = time.perf_counter()
    # The generator depends on the round alone, so that a resumed search draws as an uninterrupted one.
    rng = np.random.default_rng([pruning.seed, state.round])
    contests = _contests(space, state.mask, pruning)
    spared = {c for contest in contests for c in _moderate(space, state.mask, contest.rivals, rng)[: contest.spared]}
    everyone = [candidate for contest in contests for candidate in contest.rivals]
    groups = [[c for c in contest.rivals if c not in spared] for contest in contests]
    chosen = [candidate for group in groups for candidate in group]
    groups = groups if pruning.ranks == "edge" else [chosen]
    # A cell without a path returns 0 for every image. Such a removal is not measured, and pruned last.
    whole = {c: bool(space.has_paths(_without(state.mask, c)).all()) for c in chosen}
    reasons = {c: "" if whole[c] else "no path leads through the cell" for c in chosen}
    measured = [candidate for candidate in chosen if whole[candidate]]
    changes: dict[_Candidate, dict[str, float]] = {candidate: {} for candidate in everyone}
    ranks: dict[_Candidate, dict[str, int]] = {candidate: {} for candidate in everyone}
    networks = pruning.repeats * (1 + len(measured))
    before: dict[str, Any] = {}
    for number, measure in enumerate(measures):

        def progress(done: int, number: int = number) -> None:
            on_progress(state.round, number * networks + done, len(measures) * networks)

        before[measure.name], rows = _changes(space, measure, pruning, state, measured, progress)
        for candidate, (change, reason) in zip(measured, rows, strict=True):
            reasons[candidate] = reasons[candidate] or reason
            if change is not None:
                changes[candidate][measure.name] = change
        for group in groups:
            places = _dense_ranks([changes[c].get(measure.name) for c in group], highest_first=not measure.higher)
            for candidate, rank in zip(group, places, strict=True):
                ranks[candidate][measure.name] = rank
    # The order of pruning: removals that keep a path first, then those with all measures, then by the sum of ranks.
    draws = dict(zip(chosen, rng.permutation(len(chosen)).tolist(), strict=True))
    chosen.sort(key=lambda c: (not whole[c], len(changes[c]) < len(measures), sum(ranks[c].values()), draws[c]))
    pruned = {c for contest in contests for c in [c for c in chosen if c in contest.rivals][: contest.losses]}
    mask = state.mask.copy()
    decisions = []
    for c in everyone:
        mask[c] &= c not in pruned
        depth, width = space.expected_depth_and_width(_without(state.mask, c))[c.cell_type].tolist()
        outcome = "skipped" if c in spared else "pruned" if c in pruned else "kept"
        names = space.cell_types[c.cell_type], "{}-{}".format(*space.edges[c.edge]), space.operations[c.operation]
        row = Decision(state.round, *names, outcome, changes[c], ranks[c], depth, width, reasons.get(c, ""))
        decisions.append(row)
    depths, widths = space.expected_depth_and_width(state.mask).T.tolist()
    summary = before | {"depth": depths, "width": widths} | ({} if contests else {"final": True})
    return State(
        mask,
        (*state.trajectory, summary),
        (*state.decisions, *decisions),
        state.evaluated + len(measures) * networks,
        state.skipped + len(measures) * pruning.repeats * len(spared),
        state.seconds + time.perf_counter() - started,
    )


def _without(mask: np.ndarray, candidate: _Candidate) -> np.ndarray:
    mask = mask.copy()
    mask[candidate] = False
    return mask


def _moderate(
    space: SearchSpace, mask: np.ndarray, rivals: list[_Candidate], rng: np.random.Generator
) -> list[_Candidate]:
    """Returns the candidates in the order of the shortcut.

    The first is the one whose removal leaves effective depth and width nearest to their means over all candidates.
    """
    left = np.stack([space.expected_depth_and_width(_without(mask, c))[c.cell_type] for c in rivals])
    distances = np.square(left - left.mean(0)).sum(1).round(_TIE_DECIMALS)
    return [rivals[i] for i in np.lexsort((rng.permutation(len(rivals)), distances))]


def _changes(
    space: SearchSpace,
    measure: Measure,
    pruning: Pruning,
    state: State,
    candidates: list[_Candidate],
    on_progress: Callable[[int], None],
) -> tuple[float | None, list[tuple[float | None, str]]]:
    """Returns the mean of a measure for the supernet, and (mean relative change, reason or note) for each candidate."""
    masks = np.stack([state.mask, *(_without(state.mask, candidate) for candidate in candidates)])
    mixtures = space.mixture(masks)
    values, reasons = np.empty((pruning.repeats, len(masks))), []
    for repeat in range(pruning.repeats):
        # The supernet and all candidates share the weights of a repeat, so that the noise of the draw cancels in their
        # differences.
        seed = int(np.random.SeedSequence([pruning.seed, state.round, repeat]).generate_state(1)[0])
        texts: list[str] = []
        for i in range(0, len(masks), AT_ONCE):
            part = slice(i, i + AT_ONCE)
            found = measure.evaluate(mixtures[part], seed)
            values[repeat, part] = found.values
            texts += found.reasons
            on_progress(repeat * len(masks) + len(texts))
        reasons.append(
            [
                text or ("" if np.isfinite(value) else f"{measure.name} is {value}")
                for text, value in zip(texts, values[repeat], strict=True)
            ]
        )
    # The supernet is the denominator of every relative change: a repeat where it is 0 or not finite has none.
    sound = np.isfinite(values[:, 0]) & (values[:, 0] != 0)
    if not sound.any():
        reason = f"the supernet: {reasons[0][0] or f'{measure.name} is 0'}"
        return None, [(None, reason)] * len(candidates)
    values = values[sound]
    reasons = [texts for texts, counts in zip(reasons, sound, strict=True) if counts]
    rows: list[tuple[float | None, str]] = []
    for i in range(1, len(masks)):
        change = None
        if np.isfinite(values[:, i]).all():
            # Rounded per repeat, before the mean, as in the released code: small changes become ties.
            changed = (values[:, 0] - values[:, i]) / values[:, 0]
            change = float(changed.round(pruning.decimals).mean())
        rows.append((change, next((texts[i] for texts in reasons if texts[i]), "")))
    return float(values[:, 0].mean()), rows


def _check_types(what: str, fields: dict[str, Any], kinds: dict[str, Any]) -> None:
    """Raises a `TypeError` where a value is of another type."""
    for name, kind in kinds.items():
        if not isinstance(fields[name], kind):
            raise TypeError(f"{what} with {name} {fields[name]!r}")


def _dense_ranks(changes: Sequence[float | None], *, highest_first: bool) -> list[int]:
    """Returns ranks from 0, where ties share a rank and missing changes come last."""
    sign = -1 if highest_first else 1
    keys = [np.inf if change is None else sign * round(change, _TIE_DECIMALS) for change in changes]
    return np.unique(np.array(keys, float), return_inverse=True)[1].tolist()
