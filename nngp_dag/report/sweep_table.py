"""The table of a sweep: a row for every network, with the spectra of its class of kernels."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from nngp_dag.architecture import Network
from nngp_dag.errors import InputError, NngpDagError, NumericalWarning
from nngp_dag.graph import Dag
from nngp_dag.theory import lambda_min_bracket, spectrum

if TYPE_CHECKING:
    import pandas

KERNELS = ("nngp", "ntk")
# Columns of each kernel.
SPECTRUM = ("lambda_min", "lambda_max", "condition_number", "trace", "floor", "resolved")
BOUNDS = ("lower", "upper")


@dataclass
class Row:
    """A network of the list, with the key of its class, or the reason why it has no kernel."""

    name: str
    network: Network | None = None
    kernel_class: str = ""
    reason: str = ""


def spectra_of(matrices: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns the spectra of a class's two kernels by column, and the reason if one of them has none."""
    result: dict[str, Any] = {"reason": ""}
    with warnings.catch_warnings():
        # The columns `resolved` say so instead.
        warnings.simplefilter("ignore", NumericalWarning)
        for name, matrix in zip(KERNELS, matrices, strict=True):
            try:
                s = spectrum(matrix)
            except InputError as error:
                # The message of `spectrum` does not say which of the two kernels it refuses.
                result["reason"] = str(error).replace("`matrix`", f"the {name.upper()}")
                continue
            values = (
                s.lambda_min if s.resolved else math.nan,
                s.lambda_max,
                s.condition_number,
                s.trace,
                s.floor,
                s.resolved,
            )
            result |= {f"{name}_{field}": value for field, value in zip(SPECTRUM, values, strict=True)}
    return result


def bounds_of(network: Network, x: np.ndarray) -> dict[str, float]:
    """Returns the brackets on lambda_min by column, or {} for a network that they do not cover."""
    try:
        brackets = lambda_min_bracket(network, x)
    except NngpDagError:
        return {}
    return {f"{name}_{end}": getattr(getattr(brackets, name), end) for name in KERNELS for end in BOUNDS}


def class_fields(bounds: bool) -> tuple[str, ...]:
    """Returns the columns of a class."""
    fields = (*SPECTRUM, *(BOUNDS if bounds else ()))
    return "reason", *(f"{name}_{field}" for name in KERNELS for field in fields)


def table_of(rows: Sequence[Row], found: Mapping[str, Mapping[str, Any]], bounds: bool) -> "pandas.DataFrame":
    """Returns the table of all networks, given the columns found for each class; `bounds` adds those of brackets."""
    import pandas

    sizes: dict[str, int] = {}
    for row in rows:
        sizes[row.kernel_class] = sizes.get(row.kernel_class, 0) + 1
    facts: dict[Dag, tuple[Any, ...]] = {}
    records = []
    for row in rows:
        dag, result = row.network and row.network.dag, found.get(row.kernel_class, {})
        if dag is not None and dag not in facts:
            facts[dag] = str(dag), _number(dag.num_paths), dag.effective_depth, dag.effective_width
        code, *statistics = facts[dag] if dag is not None else ("", math.nan, math.nan, math.nan)
        reason = row.reason or result.get("reason", "")
        record = {"dag": row.name, "code": code, "valid": bool(row.kernel_class) and not reason, "reason": reason}
        record |= dict(zip(("num_paths", "effective_depth", "effective_width"), statistics, strict=True))
        record |= {
            "kernel_class": row.kernel_class[:16],
            "class_size": sizes[row.kernel_class] if row.kernel_class else 0,
        }
        for field in class_fields(bounds)[1:]:
            record[field] = result.get(field, False if field.endswith("resolved") else math.nan)
        records.append(record)
    table = pandas.DataFrame.from_records(records)
    if not (table.num_paths > 2**53).any():
        table["num_paths"] = table.num_paths.astype("Int64")
    return table


def _number(count: int) -> float:
    """Returns an exact count as float64, infinite where it overflows."""
    try:
        return float(count)
    except OverflowError:
        return math.inf
