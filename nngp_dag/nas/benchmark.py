"""Accuracies of trained cells, from a table on disk."""

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from nngp_dag.errors import DataError, GraphError
from nngp_dag.nas.cells import Cell

_NAMES = ("arch_str", "arch", "architecture", "cell")
_NUMBERS = ("index", "arch_index")


@dataclass(frozen=True, eq=False)
class Benchmark:
    """What trained cells reached, in per cent; any cells, in any order.

    A cell is asked for as a `Cell`, by its text, or by its row, which is its number in the published benchmark where
    the table is in that order and whole.

    Attributes:
      cells: The cells, without repetition.
      accuracies: {column: (cells,)}.

    Raises:
      DataError: A cell stands there twice, a column has the wrong length, or there are none.

    Example:
      >>> text = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
      >>> table = Benchmark((Cell.parse(text),), {"cifar10": np.array([88.5])})
      >>> table.accuracy(text), table.accuracy(0), table.index(text), table[0] == Cell.parse(text)
      (88.5, 88.5, 0, True)
    """

    cells: tuple[Cell, ...]
    accuracies: Mapping[str, Float[np.ndarray, " cells"]]
    _rows: dict[Cell, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses what would give wrong answers."""
        if not self.cells or not self.accuracies:
            raise DataError(
                f"Expected cells with accuracies, got {len(self.cells)} cells, {len(self.accuracies)} columns"
            )
        for name, column in self.accuracies.items():
            if np.shape(column) != (len(self.cells),):
                raise DataError(f"Expected column {name!r} to hold {len(self.cells)} numbers, got {np.shape(column)}")
        rows: dict[Cell, int] = {}
        for row, cell in enumerate(self.cells):
            if rows.setdefault(cell, row) != row:
                raise DataError(f"Expected every cell once, got {cell} in rows {rows[cell]} and {row}")
        object.__setattr__(self, "_rows", rows)

    @classmethod
    def load(cls, path: str | Path) -> "Benchmark":
        """Reads a CSV or JSON file; pickled files are never opened.

        CSV has a head, a column with the cell's text (`arch_str`, `arch`, `architecture` or `cell`), and numbers. JSON
        is a list of such rows, or an object from the cell's text to a number or a row; objects within a row become
        columns `outer.inner`. Rows without a number in a column have NaN there, and columns of text are left out.

        Raises:
          DataError: The file is absent, of another kind, or malformed; a cell is none or stands there twice.
        """
        path = Path(path)
        if path.suffix.lower() not in (".csv", ".json"):
            raise DataError(
                f"Expected a .csv or .json file of accuracies, got {path.name!r}; export the benchmark to one of them, "
                "since reading a pickled file can run any code"
            )
        try:
            text = path.read_text(encoding="utf-8")
            rows = list(csv.DictReader(text.splitlines())) if path.suffix.lower() == ".csv" else _json_rows(text)
        except (OSError, ValueError) as error:
            raise DataError(f"Expected {path} to be a readable table of accuracies, got {error}") from None
        return cls._from_rows(rows, path)

    @classmethod
    def _from_rows(cls, rows: Sequence[Mapping[str, Any]], path: Path) -> "Benchmark":
        name = next((name for name in _NAMES if rows and name in rows[0]), None)
        if name is None:
            found = ", ".join(map(str, rows[0])) if rows else "no rows"
            raise DataError(f"Expected {path} to have a column {' or '.join(_NAMES)}, got {found}")
        cells = []
        for number, row in enumerate(rows):
            try:
                cells.append(Cell.parse(row.get(name, "")))
            except GraphError as error:
                raise DataError(f"Expected a cell in row {number} of {path}: {error}") from None
        columns = {
            key: [_number(row.get(key)) for row in rows] for key in dict.fromkeys(k for row in rows for k in row)
        }
        accuracies = {
            key: np.array(values)
            for key, values in columns.items()
            if key not in (name, *_NUMBERS) and any(map(math.isfinite, values))
        }
        if not accuracies:
            raise DataError(f"Expected {path} to have a column of numbers beside {name!r}, got none")
        return cls(tuple(cells), accuracies)

    def __len__(self) -> int:
        """Returns the number of cells."""
        return len(self.cells)

    def __getitem__(self, index: int) -> Cell:
        """Returns the cell of a row."""
        if not 0 <= index < len(self):
            raise DataError(f"Expected a row in 0 to {len(self) - 1:,}, got {index}")
        return self.cells[index]

    def index(self, cell: Cell | str) -> int:
        """Returns the row of a cell.

        Raises:
          DataError: The table does not have it.
        """
        cell = Cell.parse(cell) if isinstance(cell, str) else cell
        if cell not in self._rows:
            raise DataError(f"Expected one of the table's {len(self):,} cells, got {cell}")
        return self._rows[cell]

    def column(self, name: str | None = None) -> Float[np.ndarray, " cells"]:
        """Returns the accuracies of all cells; `name` may be left out where there is one column.

        Raises:
          DataError: There is no such column, or several to choose from.
        """
        if name is None and len(self.accuracies) == 1:
            return next(iter(self.accuracies.values()))
        if name is None or name not in self.accuracies:
            raise DataError(f"Expected `column` to be one of {', '.join(self.accuracies)}, got {name!r}")
        return self.accuracies[name]

    def accuracy(self, cell: Cell | str | int, column: str | None = None) -> float:
        """Returns the accuracy of a cell, in per cent; NaN where the table has none.

        Raises:
          DataError: The table has no such cell, row or column.
        """
        row = self.index(self[cell] if isinstance(cell, int) else cell)
        return float(self.column(column)[row])

    def isomorphic(self, cell: Cell | str) -> tuple[Cell, ...]:
        """Returns the cells of the table that are the same network as `cell`, which need not be in it, by row.

        Their accuracies differ only by the randomness of training.
        """
        network = (Cell.parse(cell) if isinstance(cell, str) else cell).network
        return tuple(other for other in self.cells if other.network == network)


def _json_rows(text: str) -> list[dict[str, Any]]:
    document = json.loads(text)
    if isinstance(document, dict):
        document = [
            {"arch_str": cell, **(row if isinstance(row, dict) else {"accuracy": row})}
            for cell, row in document.items()
        ]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise ValueError("neither a list of objects nor an object of cells")
    return [dict(_flat(row.items())) for row in document]


def _flat(items: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    for key, value in items:
        if isinstance(value, dict):
            yield from _flat((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def _number(value: Any) -> float:
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
