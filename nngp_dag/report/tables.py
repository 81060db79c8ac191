"""Tables of results for the screen."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nngp_dag import forms
from nngp_dag.errors import GraphError
from nngp_dag.graph import Dag, as_dag
from nngp_dag.graph.codes import NASBENCH201_OPS, nasbench201_operations
from nngp_dag.report.comparison import Comparison
from nngp_dag.report.search_result import GraphSearch
from nngp_dag.theory import Spectrum

if TYPE_CHECKING:
    import pandas

_MOST_ROWS = 40
_MOST_CLASSES = 20


def compare_table(results: Sequence[Comparison]) -> RenderableType:
    """Returns tables of theory and measured training, with a verdict on each network and notes on flagged numbers."""
    graphs = _table("Graphs", "paths P", "depth d", "width w", "η", "λmax NTK")
    smallest = _table(
        "λmin, exact, between bounds that always hold", "kernel", "lower", "exact", "upper", "path formula"
    )
    steps = len(results[0].mean) - 1
    training = _table(
        f"Training loss ½‖y − f‖² after {steps} steps", "start", "rate bound", "expected", "measured", "violations"
    )
    deviations = number_table(
        "Mean loss against infinite width, at the last trusted step and at the last one",
        ["DAG"], ["step", "predicted", "90 % interval", "measured", "prediction"],
    )  # fmt: skip
    verdicts = []
    flagged: dict[str, list[str]] = {}  # {why a path formula may not be a bound: where}
    codes = Counter(result.code for result in results)
    # `Comparison.unmet` knows two reasons, so two marks suffice.
    marks = {"": ""} | dict(zip(dict.fromkeys(result.unmet for result in results if result.unmet), "†‡", strict=False))
    for result in results:
        code, dag = result.code, result.dag
        # The code replaces a long name, unless several networks have that code.
        short = result.name if len(result.name) <= 12 or codes[code] > 1 or not code else code
        name = code if short == code else f"{short} {code}".strip()
        verdicts.append(f"{short}: {result.verdict}")
        for row in _deviation_rows(result):
            deviations.add_row(short, *row)
        if result.width_verdict:
            verdicts.append(f"{short}: {result.width_verdict}")
        for kernel, formula in (("K(H)", result.path_bound), ("NTK", result.ntk_path_bound)):
            if formula is not None and not formula.is_bound:
                flagged.setdefault("; ".join(formula.violated_assumptions), []).append(f"{name}, {kernel}")
        graphs.add_row(
            name,
            *([""] * 3 if dag is None else _shape(dag)),
            f"{result.learning_rate:.2g}",
            f"{result.ntk.lambda_max:.4g}",
        )
        for kernel, s, bracket, formula in (
            ("K(H)", result.nngp, result.nngp_bracket, result.path_bound),
            ("NTK", result.ntk, result.ntk_bracket, result.ntk_path_bound),
        ):
            published = "n/a" if formula is None else f"{formula.value:.3g}" + ("" if formula.is_bound else "*")
            lower, upper = f"{bracket.lower:.3g}", f"{bracket.upper:.3g}"
            smallest.add_row(short, kernel, lower, format_lambda_min(s), upper, published)
        training.add_row(
            short,
            format_loss(result.mean[0]),
            format_loss(result.bound[-1]) + marks[result.unmet],
            f"{format_loss(float(result.expected.mean[-1]))} ± {result.expected.std[-1]:.2g}",
            f"{format_loss(result.mean[-1])} ± {result.std[-1]:.2g}",
            str(result.bound_violations),
        )
    notes = [f"* {'; '.join(where)}: the path formula may not be a bound: {why}" for why, where in flagged.items()]
    notes += [result.remark for result in results if result.remark]
    notes += [f"{mark} {reason} to be a theorem" for reason, mark in marks.items() if reason]
    tables = [graphs, smallest, training, *([deviations] if deviations.row_count else [])]
    return Group(*tables, *map(Text, verdicts), *(Text(note, style="dim") for note in notes))


def _deviation_rows(result: Comparison) -> list[tuple[str, ...]]:
    """Returns the deviations at the last step whose prediction is trusted, and at the last step."""
    if (effects := result.width_effects) is None:
        return []
    last = len(result.bound) - 1
    rows = []
    for step in dict.fromkeys([last if effects.last_trusted is None else effects.last_trusted, last]):
        at = result.deviation(step)
        assert at is not None
        if math.isnan(at.predicted):
            continue
        rows.append(
            (str(step), f"{at.predicted:+.1%}", f"{at.low:+.1%} to {at.high:+.1%}",
             f"{at.measured:+.1%} ± {at.error:.1%}", at.verdict)
        )  # fmt: skip
    return rows


def _shape(dag: Dag) -> tuple[str, str, str]:
    """Returns number of paths, effective depth and effective width."""
    return forms.count(dag.num_paths), f"{dag.effective_depth:.2f}", f"{dag.effective_width:.2f}"


def _table(title: str, *numbers: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("DAG", overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def number_table(title: str, names: Sequence[str], numbers: Sequence[str]) -> Table:
    """Returns an empty compact table; on a narrow screen names are broken into lines, and numbers never.

    Args:
      title: Title of the table.
      names: Headings of columns of names.
      numbers: Headings of columns of numbers.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in names:
        table.add_column(heading, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def spectrum_table(spectra: Mapping[str, Spectrum]) -> Table:
    """Returns a table of the extreme eigenvalues of matrices, by name."""
    table = Table()
    table.add_column("kernel")
    for heading in ("λmin", "λmax", "condition number", "resolution floor"):
        table.add_column(heading, justify="right")
    for name, s in spectra.items():
        condition = f"{s.condition_number:.4g}" if s.resolved else "not resolved"
        table.add_row(name, format_lambda_min(s), f"{s.lambda_max:.6g}", condition, f"{s.floor:.1e}")
    return table


def spectrum_facts(spectra: Mapping[str, Spectrum]) -> dict[str, dict[str, Any]]:
    """Returns the numbers that `spectrum_table` shows; an eigenvalue that is not resolved is None."""
    return {
        name: {
            "lambda_min": s.lambda_min if s.resolved else None,
            "lambda_max": s.lambda_max,
            "condition_number": s.condition_number if s.resolved else None,
            "floor": s.floor,
        }
        for name, s in spectra.items()
    }


def dag_facts(dag: Dag, cell: str | None = None) -> dict[str, Any]:
    """Returns the numbers that `dag_table` shows; counts from 2^53 on are texts, since float64 does not hold them."""
    operations = _operations(dag, cell)

    def exact(number: int) -> int | str:
        return number if number < 2**53 else forms.count(number)

    return {
        "dag": str(dag),
        "nodes": dag.num_nodes,
        "inputs": dag.num_inputs,
        "outputs": list(dag.outputs),
        "edges": [[edge.source, edge.target, operation] for edge, operation in zip(dag.edges, operations, strict=True)],
        "num_paths": exact(dag.num_paths),
        "effective_depth": dag.effective_depth,
        "effective_width": dag.effective_width,
        "depth_histogram": {depth: exact(paths) for depth, paths in dag.depth_histogram.items()},
    }


def _operations(dag: Dag, cell: str | None) -> list[str]:
    """Returns the names of the operations on the edges; those of a NAS-Bench-201 cell are the cell's own."""
    if cell is None:
        return [edge.op.describe() for edge in dag.edges]
    blocks = nasbench201_operations(cell)
    return [blocks[edge.target - 1][edge.source] for edge in dag.edges]


def dag_table(dag: Dag | str, cell: str | None = None) -> RenderableType:
    """Returns a graph's edges, path statistics and depth histogram.

    Args:
      dag: The graph.
      cell: Text of the NAS-Bench-201 cell that the graph represents; its operations are shown.
    """
    dag = as_dag(dag)
    operations = _operations(dag, cell)
    facts = Table(title=f"{dag!r}", show_header=False)
    inputs = "input 0" if dag.num_inputs == 1 else f"inputs 0 to {dag.num_inputs - 1}"
    outputs = f"output{'s' * (len(dag.outputs) > 1)} {', '.join(map(str, dag.outputs))}"
    facts.add_row("nodes", f"{dag.num_nodes} ({inputs}, {outputs})")
    for name, weighted in (("skip", False), ("weighted", True)):
        facts.add_row(f"{name} edges", str(sum(edge.weighted is weighted for edge in dag.edges)))
    facts.add_row("edges on no path", str(len(dag.edges) - len(dag.live_edges)))
    facts.add_row("paths P", forms.count(dag.num_paths))
    facts.add_row("effective depth", f"{dag.effective_depth:.6g}")
    width = dag.path_counts.effective_width
    facts.add_row("effective width", f"{float(width):.6g}" if width < 10**15 else forms.count(int(width)))

    pooled = any(operation == "avg_pool_3x3" for operation in operations)
    # Chen et al. (2022) count pooling as a skip, and so does `Dag.from_nasbench201`.
    edges = Table(title="Edges into each node", caption="avg_pool_3x3 counts as a skip" if pooled else None)
    edges.add_column("node", justify="right")
    edges.add_column("from")
    for node in range(1, min(dag.num_nodes, _MOST_ROWS + 1)):
        into = [f"{e.source} ({op})" for e, op in zip(dag.edges, operations, strict=True) if e.target == node]
        edges.add_row(str(node), ", ".join(into) or "nothing: zero")
    if dag.num_nodes > _MOST_ROWS + 1:
        edges.add_row("...", f"{dag.num_nodes - _MOST_ROWS - 1} more nodes")

    histogram = Table(title="Paths by depth (weighted edges on the path)")
    histogram.add_column("depth", justify="right")
    histogram.add_column("paths", justify="right")
    counts = list(dag.depth_histogram.items())
    for depth, count in counts[:_MOST_ROWS]:
        histogram.add_row(str(depth), forms.count(count))
    if len(counts) > _MOST_ROWS:
        histogram.add_row("...", f"{len(counts) - _MOST_ROWS} more depths")
    return Group(facts, edges, histogram)


def format_lambda_min(s: Spectrum) -> str:
    """Returns the smallest eigenvalue as text, or "< resolution floor" where it is rounding noise."""
    return forms.eigenvalue(s.lambda_min, s.floor, s.resolved)


def format_loss(loss: float) -> str:
    """Returns a loss to four digits, without an exponent below 10^7."""
    return f"{loss:,.0f}" if 1000 <= loss < 1e7 else f"{loss:.4g}"


_SHORT = dict(zip(NASBENCH201_OPS, ("-", "s", "1", "3", "p"), strict=True))
_LEGEND = "cells by node: 3, 1 convolutions; p avg_pool; s skip; - none"


def short_name(name: str) -> str:
    """Returns the name of a network for a table; a NAS-Bench-201 cell has a letter for each operation.

    Examples:
      >>> short_name("|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_1x1~2|")
      '3|-p|s-1'
    """
    try:
        return "|".join("".join(_SHORT[op] for op in block) for block in nasbench201_operations(name))
    except GraphError:
        return name


def _best_classes(frame: Any) -> tuple[Any, str]:
    """Returns one network per class, with the largest lambda_min first, up to the size of a table, and a count."""
    classes = frame[frame.valid].drop_duplicates("kernel_class")
    classes = classes.sort_values("nngp_lambda_min", ascending=False, na_position="last", kind="stable")
    shown = classes.head(_MOST_CLASSES)
    count = f"the first {len(shown)} of {len(classes):,}" if len(shown) < len(classes) else f"{len(classes):,}"
    return shown, count


def bounds_table(table: "pandas.DataFrame") -> Table:
    """Returns a table of the brackets on lambda_min of a sweep's kernels, in the order of `sweep_table`."""
    shown, count = _best_classes(table)
    headings = [f"{kernel} {what}" for kernel in ("NNGP", "NTK") for what in ("lower", "λmin", "upper")]
    found = number_table(f"λmin between bounds that always hold, {count}", ["DAG"], headings)
    for _, row in shown.iterrows():
        values = (row[f"{name}_{field}"] for name in ("nngp", "ntk") for field in ("lower", "lambda_min", "upper"))
        found.add_row(short_name(row["dag"]), *(f"{value:.3g}" if value == value else "–" for value in values))
    return found


def sweep_table(table: "pandas.DataFrame") -> Table:
    """Returns a table of the different kernels of a sweep, with the largest lambda_min of the NNGP first."""
    shown, count = _best_classes(table)
    headings = ("DAGs", "paths", "depth", "width", "NNGP λmin", "cond.", "NTK λmin", "cond.")
    found = number_table(f"Different kernels by λmin of the NNGP, {count}", ["DAG"], headings)
    for _, row in shown.iterrows():
        numbers = []
        for name in ("nngp", "ntk"):
            value, condition = row[f"{name}_lambda_min"], row[f"{name}_condition_number"]
            resolved = row[f"{name}_resolved"]
            shortly = f"{condition:,.0f}" if condition < 1e5 else f"{condition:.0e}"
            numbers += [f"{value:.3g}", shortly] if resolved else [f"< {row[f'{name}_floor']:.0e}", "?"]
        depth, width = f"{row['effective_depth']:.3g}", f"{row['effective_width']:.3g}"
        found.add_row(
            short_name(row["dag"]), f"{row['class_size']:,}", f"{row['num_paths']:.6g}", depth, width, *numbers
        )
    if shown.dag.str.startswith("|").any():
        found.caption, found.caption_justify = _LEGEND, "left"
    return found


def correlation_table(found: "pandas.DataFrame") -> Table:
    """Returns a table of rank correlations, one row for each pair of columns."""
    frame: Any = found
    table = Table(title="Rank correlations over DAGs", title_justify="left")
    for heading, justify in (("", "left"), ("with", "left"), ("Kendall", "right"), ("Spearman", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    table.add_column("DAGs", justify="right")
    for _, row in frame.iterrows():
        numbers = (f"{value:+.3f}" if value == value else "–" for value in (row["kendall"], row["spearman"]))
        table.add_row(row["first"], row["second"], *numbers, f"{row['rows']:,}")
    return table


def sweep_summary(table: "pandas.DataFrame") -> str:
    """Returns the numbers of networks, kernels and unresolved eigenvalues of a sweep, in one or two lines."""
    frame: Any = table
    valid, refused = frame[frame.valid], frame[~frame.valid]
    unresolved = {name: int((~valid[f"{name}_resolved"]).sum()) for name in ("nngp", "ntk")}
    text = (
        f"{len(frame):,} DAGs, {valid.kernel_class.nunique():,} different kernels; λmin not resolved: "
        f"{unresolved['nngp']:,} NNGP, {unresolved['ntk']:,} NTK"
    )
    if len(refused):
        text += f"\n{len(refused):,} without a kernel, such as {refused.dag.iloc[0]}: {refused.reason.iloc[0]}"
    return text


def search_table(found: GraphSearch) -> Table:
    """Returns a table of the best ends of a search: their objective, and from how many starts they were reached."""
    frame: Any = found.to_frame()
    ranked = found.table is not None
    ends = frame.groupby("code").agg(
        value=("value", "first"), starts=("start", "size"), alone=("gradient_code", list), **_rank_column(ranked)
    )
    ends = ends.sort_values("value", ascending=not found.maximized, kind="stable")
    shown = f", the best {_MOST_ROWS} of {len(ends)}" if len(ends) > _MOST_ROWS else ""
    table = _table(
        f"Ends of the search{shown}", "objective", "starts", "of these by the gradient alone", *["rank"] * ranked
    )
    for code, row in ends.head(_MOST_ROWS).iterrows():
        alone = sum(one == code for one in row.alone)
        table.add_row(
            short_name(str(code)), f"{row.value:.6g}", str(row.starts), str(alone), *[str(row["rank"])] * ranked
        )
    return table


def _rank_column(ranked: bool) -> dict[str, Any]:
    return {"rank": ("rank", "first")} if ranked else {}


def search_summary(found: GraphSearch, inputs: str) -> str:
    """Returns the best code of a search, and with ranks the share of starts among the best 2 %, in one or two lines."""
    text = f"best: {found.code}, {found.objective} {found.value:.6g}, on {inputs}"
    if found.table is not None:
        before, after = (round(100 * found.share_within(polished=polished)) for polished in (False, True))
        text += (
            f"\nwithin the best 2 % of {len(found.table)} codes: {before} % of the starts by the gradient alone, "
            f"{after} % after the discrete descent"
        )
    return text
