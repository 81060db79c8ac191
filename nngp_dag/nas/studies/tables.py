"""Tables that compare scores with the accuracies of trained cells: results of searches, and rank correlations."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from nngp_dag.errors import DataError, InputError
from nngp_dag.nas.scores.registry import SCORES, control_of, get_score, goodness, with_controls
from nngp_dag.nas.spaces.accuracy_table import AccuracyTable
from nngp_dag.nas.spaces.any_cell import parse_cell, space_of_all
from nngp_dag.nas.spaces.filters import get_filter
from nngp_dag.nas.studies.controls import difference_error
from nngp_dag.nas.studies.searches import accuracies_of, search
from nngp_dag.report.ranking import rank_correlations
from nngp_dag.report.tables import number_table

if TYPE_CHECKING:
    import pandas


def search_table(
    scores: "pandas.DataFrame",
    table: AccuracyTable,
    names: Sequence[str],
    *,
    column: str | None = None,
    filters: Sequence[str] | None = None,
    sample: int = 100,
    repeats: int = 500,
    seed: int = 0,
) -> "pandas.DataFrame":
    """Repeats searches by each score, with and without each filter, and returns the accuracies of the cells they take.

    Args:
      scores: Scores of cells, as `read_scores` returns them. Searches draw from the cells that have been scored by all
        of `names` and have an accuracy.
      table: Accuracies of the cells.
      names: Names of the scores to search by. Scores that read labels bring their controls.
      column: Column of the accuracy table. None where it has one column.
      filters: Names of filters, "paper" or "released-code"; see `get_filter`. None for "paper" in NAS-Bench-201, and
        "released-code" in DARTS.
      sample: Number of cells that one search draws.
      repeats: Number of searches per row.
      seed: Seed of the draws, which all rows share.

    Returns:
      One row for random choice, and one for each score without and with each filter. Two more rows are the best cell of
      each sample, and the best cell of the accuracy table. The columns are: `method` and `filter`; `mean` and `std` of
      the accuracy, in per cent; `seconds` of one search; `skipped`, the share of drawn cells that the filter skipped;
      `found`, the number of searches that took a cell, of `repeats`; `cells`, the number of cells that searches draw
      from; `left_out`, the number of scored cells without an accuracy; and `column`.

    Raises:
      InputError: A score or filter is unknown, or a score was not computed.
      DataError: No scored cell has an accuracy, or there is no such column.

    Examples:
      >>> import pandas
      >>> from nngp_dag.nas import AccuracyTable, sample_cells, search_table
      >>> cells = tuple(sample_cells(4, seed=0))
      >>> table = AccuracyTable(cells, {"cifar10": np.array([90.0, 91.0, 92.0, 93.0])})
      >>> columns = {"cell": [str(cell) for cell in cells], "flops": [1.0, 2.0, 3.0, 4.0]}
      >>> scores = pandas.DataFrame(columns | {"seconds_paths_and_costs": 0.1})
      >>> found = search_table(scores, table, ["flops"], filters=(), sample=4, repeats=2)
      >>> list(found["method"]), float(found["mean"].iloc[-1])
      (['random', 'flops', 'best of the sample', 'best of all'], 93.0)

    Reference: Chen et al., Deep Architecture Connectivity Matters for Its Convergence, NeurIPS 2022, Section 5.
    """
    import pandas

    frame: Any = scores
    names = with_controls(names)
    # All methods draw from the same cells: those that every score has seen.
    for name in names:
        if name not in frame:
            known = get_score(name).name
            raise InputError(f"Expected scores that were computed, got {known!r}; run nngp-dag nas score with it first")
        frame = frame[frame[f"seconds_{get_score(name).measure.__name__}"].notna()]
    accuracy = table.look_up([parse_cell(text) for text in frame.cell], column)
    known = np.isfinite(accuracy)
    left_out = int((~known).sum())
    if left_out and not known.any():
        raise DataError(
            f"Expected an accuracy table with scored cells, got none of the {left_out:,}; score cells of the table"
        )
    frame, accuracy = frame[known], accuracy[known]
    cells = [parse_cell(text) for text in frame.cell]
    space = space_of_all(cells)
    if filters is None:
        filters = ("paper",) if space == "nasbench201" else ("released-code",)
    nothing = np.zeros(len(cells))
    ways: list[tuple[str, str, np.ndarray, np.ndarray, np.ndarray | None]] = [
        # Equal goodness everywhere takes the first cell that is drawn, which is a random choice.
        ("random", "", nothing, nothing, None)
    ]
    kept = {name: np.array([get_filter(name, space).keeps(cell.dag) for cell in cells]) for name in filters}
    for name in names:
        score = get_score(name)
        good = goodness(score, np.asarray(frame[name], np.float64), cells)
        seconds = np.asarray(frame[f"seconds_{score.measure.__name__}"], np.float64)
        ways.append((name, "", good, seconds, None))
        ways += [(name, filter_, good, seconds, keep) for filter_, keep in kept.items()]
    ways.append(("best of the sample", "", accuracy, nothing, None))
    records = []
    for method, filter_, good, seconds, keep in ways:
        runs = search(good, seconds=seconds, kept=keep, sample=sample, repeats=repeats, seed=seed)
        reached = accuracies_of(runs, accuracy)
        records.append(
            {
                "method": method,
                "filter": filter_,
                "mean": float(reached.mean()) if len(reached) else np.nan,
                "std": float(reached.std()) if len(reached) else np.nan,
                "seconds": float(runs.seconds.mean()),
                "skipped": float(runs.skipped.mean()),
                "found": len(reached),
                "repeats": repeats,
            }
        )
    best = {"method": "best of all", "filter": "", "mean": float(np.nanmax(table.column(column))), "std": 0.0}
    records.append(best | {"seconds": 0.0, "skipped": 0.0, "found": repeats, "repeats": repeats})
    facts = {"cells": len(cells), "left_out": left_out, "column": column or next(iter(table.accuracies))}
    return pandas.DataFrame.from_records(records).assign(**facts)


def accuracy_correlations(
    scores: "pandas.DataFrame", table: AccuracyTable, *, column: str | None = None
) -> "pandas.DataFrame":
    """Returns the rank correlations of every score with the accuracy.

    They are over the cells with a path, a finite score and an accuracy. Cells without a weighted edge count too, as in
    published correlations, although searches never take them. A positive sign means that the better cells by the score
    have the higher accuracy, whatever the direction of the score.

    Args:
      scores: Scores of cells, as `read_scores` returns them.
      table: Accuracies of cells.
      column: Column of the accuracy table. None where it has one column.

    Returns:
      One row per score, with the rank correlations, the number of cells, and `column`. For scores that read labels,
      `kendall_control` and `spearman_control` are those of the control with shuffled labels, and `difference_error` is
      the standard error of the difference of both Spearman correlations over samples of cells; else these are NaN. See
      `control_remarks`.

    Raises:
      DataError: There is no such column.

    Examples:
      >>> import pandas
      >>> from nngp_dag.nas import AccuracyTable, accuracy_correlations, sample_cells
      >>> cells = tuple(sample_cells(4, seed=0))
      >>> table = AccuracyTable(cells, {"cifar10": np.array([90.0, 91.0, 92.0, 93.0])})
      >>> columns = {"cell": [str(cell) for cell in cells], "flops": [1.0, 2.0, 3.0, 4.0]}
      >>> scores = pandas.DataFrame(columns | {"status": "connected"})
      >>> float(accuracy_correlations(scores, table)["spearman"].iloc[0])
      1.0
    """
    frame: Any = scores[scores.status != "disconnected"].copy()
    frame["accuracy"] = table.look_up([parse_cell(text) for text in frame.cell], column)
    names = [name for name in SCORES if name in frame]
    for name in names:
        if not get_score(name).higher_is_better:
            frame[name] = -frame[name]
    ranks: Any = rank_correlations(frame, names, ("accuracy",)).set_index("first", drop=False)
    found = ranks.loc[[name for name in names if not get_score(name).control_of]]
    controls = ranks.reindex([control_of(name) for name in found["first"]])
    for kind in ("kendall", "spearman"):
        found = found.assign(**{f"{kind}_control": np.asarray(controls[kind], np.float64)})
    errors = np.full(len(found), np.nan)
    for i, name in enumerate(found["first"]):
        if control_of(name) in frame:
            values = (np.asarray(frame[each], np.float64) for each in (name, control_of(name), "accuracy"))
            errors[i] = difference_error(*values)
    found = found.assign(difference_error=errors)
    return found.reset_index(drop=True).assign(column=column or next(iter(table.accuracies)))


def accuracy_correlations_table(found: "pandas.DataFrame") -> Table:
    """Returns the rows of `accuracy_correlations` as a table for the terminal.

    Args:
      found: Result of `accuracy_correlations`.

    Examples:
      >>> import pandas
      >>> row = {"first": "flops", "kendall": 0.6, "spearman": 0.8, "spearman_control": np.nan, "rows": 90}
      >>> accuracy_correlations_table(pandas.DataFrame([row | {"column": "cifar10"}])).row_count
      1
    """
    frame: Any = found
    table = number_table(
        f"Rank correlations with the accuracy; {frame.column.iloc[0]}",
        ["score"],
        ["Kendall", "Spearman", "Spearman, shuffled labels", "cells"],
    )
    for _, row in frame.iterrows():
        values = (row[name] for name in ("kendall", "spearman", "spearman_control"))
        numbers = (f"{value:+.3f}" if value == value else "–" for value in values)
        table.add_row(row["first"], *numbers, f"{row['rows']:,}")
    return table


def search_summary(found: "pandas.DataFrame", sample: int) -> Table:
    """Returns the rows of `search_table` as a table for the terminal.

    Args:
      found: Result of `search_table`.
      sample: Number of cells that one search drew, for the title.

    Examples:
      >>> import pandas
      >>> row = {"method": "random", "filter": "", "mean": 90.0, "std": 1.0, "seconds": 0.0, "skipped": 0.0, "found": 2}
      >>> facts = {"repeats": 2, "cells": 4, "left_out": 0, "column": "cifar10"}
      >>> search_summary(pandas.DataFrame([row | facts]), sample=4).row_count
      1
    """
    frame: Any = found
    table = number_table(
        f"Searches that draw {sample} of {frame.cells[0]:,} cells, {frame.repeats[0]:,} times; {frame.column[0]}",
        ["method", "filter"],
        ["accuracy in %", "seconds", "skipped", "found"],
    )
    for _, row in frame.iterrows():
        accuracy = f"{row['mean']:.2f} ± {row['std']:.2f}"
        table.add_row(
            row["method"],
            row["filter"],
            accuracy,
            f"{row['seconds']:.3g}",
            f"{row['skipped']:.1%}",
            f"{row['found']:,}",
        )
    return table
