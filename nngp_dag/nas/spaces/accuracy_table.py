"""Accuracies of trained cells, from a table on disk."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from nngp_dag import forms
from nngp_dag.errors import DataError, GraphError, InputError, did_you_mean, shorten
from nngp_dag.forms import Described
from nngp_dag.nas.spaces.any_cell import AnyCell, parse_cell, space_of_all
from nngp_dag.nas.spaces.cells import Cell

if TYPE_CHECKING:
    import pandas

_NAMES = ("arch_str", "arch", "architecture", "cell", "genotype")
# The last two are the names that pandas gives to a column of row numbers.
_NUMBERS = ("index", "arch_index", "", "Unnamed: 0")
_NUMBER = r"[+-]?((\d+\.?\d*|\.\d+)(e[+-]?\d+)?|inf|infinity)"
_MISSING = ("", "nan", "na", "n/a", "none", "null")


@dataclass(frozen=True, eq=False, repr=False)
class AccuracyTable(Described):
    """Accuracies of trained cells, in per cent, for any cells of one space in any order.

    A cell is looked up as a `Cell` or a `Genotype`, by its text, or by its row. The row is the number of the cell in
    NAS-Bench-201, if the table holds all its cells in its order.

    Attributes:
      cells: The cells of NAS-Bench-201, or the genotypes of DARTS, without repetition.
      accuracies: Accuracies by column, (cells,) each; NaN where a cell has none.

    Raises:
      DataError: There are no cells or no columns, cells belong to both spaces, a cell occurs twice, a column has the
        wrong length, or a number is not a percentage.

    Examples:
      >>> text = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
      >>> table = AccuracyTable((Cell.parse(text),), {"cifar10": np.array([88.5])})
      >>> table.accuracy(text), table.accuracy(0), table.index(text), table[0] == Cell.parse(text)
      (88.5, 88.5, 0, True)
    """

    cells: tuple[AnyCell, ...]
    accuracies: Mapping[str, Float[np.ndarray, " cells"]]
    _rows: dict[AnyCell, int] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuses cells that occur twice, and columns that are not accuracies."""
        if not self.cells or not self.accuracies:
            raise DataError(
                f"Expected cells with accuracies, got {len(self.cells)} cells, {len(self.accuracies)} columns"
            )
        for name, column in self.accuracies.items():
            if np.shape(column) != (len(self.cells),):
                raise DataError(f"Expected column {name!r} to hold {len(self.cells)} numbers, got {np.shape(column)}")
            if np.isinf(column).any():
                raise DataError(f"Expected column {name!r} to be finite, got inf in row {np.isinf(column).argmax()}")
            if (outside := (np.asarray(column) < 0) | (np.asarray(column) > 100)).any():
                row = int(outside.argmax())
                raise DataError(
                    f"Expected column {name!r} to hold accuracies in per cent, from 0 to 100, got {column[row]:g} in "
                    f"row {row}; correct it, or remove a column of other numbers"
                )
        try:
            space_of_all(self.cells)
        except InputError as error:
            raise DataError(str(error)) from None
        rows: dict[AnyCell, int] = {}
        for row, cell in enumerate(self.cells):
            if rows.setdefault(cell, row) != row:
                raise DataError(f"Expected every cell once, got {cell} in rows {rows[cell]} and {row}")
        object.__setattr__(self, "_rows", rows)

    @classmethod
    def load(cls, path: str | Path) -> "AccuracyTable":
        r"""Reads a CSV or JSON file. Pickled files are never opened, because reading one can run any code.

        A CSV file has a header, a column with the text of the cell (`arch_str`, `arch`, `architecture`, `cell` or
        `genotype`), and columns of numbers. The text of a genotype is `Genotype(normal=[...], reduce=[...])` or its
        JSON. It holds commas, so that a CSV file has it in quotes. A JSON file holds a list of such rows, or an object
        that maps the text of a cell to a number or a row. A genotype may also be an object, as `Genotype.to_json`
        writes it. Other objects within a row become columns `outer.inner`. Empty fields, NaN, NA and null are read as
        NaN. Columns without any number, and columns of row numbers, are left out.

        Args:
          path: The file, .csv or .json.

        Raises:
          DataError: The file is absent, of another kind, or malformed; a cell is invalid or occurs twice; or a column
            holds numbers and something else.

        Examples:
          >>> import tempfile
          >>> from nngp_dag.nas import AccuracyTable
          >>> text = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
          >>> with tempfile.TemporaryDirectory() as folder:
          ...     file = Path(folder, "accuracy.csv")
          ...     _ = file.write_text(f"cell,cifar10\n{text},88.5\n")
          ...     table = AccuracyTable.load(file)
          >>> table.accuracy(text)
          88.5
        """
        path = Path(path)
        if path.suffix.lower() not in (".csv", ".json"):
            raise DataError(
                f"Expected a .csv or .json file of accuracies, got {path.name!r}; export the table to one of them, "
                "because reading a pickled file can run any code"
            )
        try:
            # Spreadsheets write a byte order mark, which is not part of the first name.
            text = path.read_bytes().decode("utf-8-sig")
            rows = _csv_rows(text) if path.suffix.lower() == ".csv" else _json_rows(text)
        except (OSError, ValueError, csv.Error, RecursionError) as error:
            raise DataError(f"Expected {path} to be a readable table of accuracies, got {error}") from None
        return cls._from_rows(rows, path)

    @classmethod
    def _from_rows(cls, rows: Sequence[Mapping[str, Any]], path: Path) -> "AccuracyTable":
        name = next((name for name in _NAMES if rows and name in rows[0]), None)
        if name is None:
            found = shorten(", ".join(rows[0])) if rows else "no rows"
            raise DataError(f"Expected {path} to have a column {' or '.join(_NAMES)}, got {found}")
        cells = []
        for number, row in enumerate(rows):
            try:
                cells.append(parse_cell(row.get(name, "")))
            except GraphError as error:
                raise DataError(f"Expected a cell in row {number} of {path}: {error}") from None
        accuracies = {}
        for key in dict.fromkeys(key for row in rows for key in row if key not in (name, *_NUMBERS)):
            column = [row.get(key) for row in rows]
            numbers = list(map(_number, column))
            if not any(number is not None and math.isfinite(number) for number in numbers):
                continue
            if None in numbers:
                row = numbers.index(None)
                raise DataError(
                    f"Expected column {key!r} of {path} to hold numbers, got {shorten(repr(column[row]))} in row {row}"
                )
            accuracies[key] = np.array(numbers, np.float64)
        if not accuracies:
            raise DataError(f"Expected {path} to have a column of numbers beside {name!r}, got none")
        return cls(tuple(cells), accuracies)

    @property
    def space(self) -> str:
        """Name of the space of the cells, "nasbench201" or "darts"."""
        return space_of_all(self.cells)

    def __len__(self) -> int:
        """Returns the number of cells."""
        return len(self.cells)

    def __getitem__(self, index: int) -> AnyCell:
        """Returns the cell of a row."""
        if not 0 <= index < len(self):
            raise DataError(f"Expected a row in 0 to {len(self) - 1:,}, got {index}")
        return self.cells[index]

    def index(self, cell: AnyCell | str) -> int:
        """Returns the row of a cell.

        Raises:
          DataError: The table does not have the cell.
        """
        cell = parse_cell(cell) if isinstance(cell, str) else cell
        if cell not in self._rows:
            raise DataError(f"Expected one of the table's {len(self):,} cells, got {cell}")
        return self._rows[cell]

    def column(self, name: str | None = None) -> Float[np.ndarray, " cells"]:
        """Returns the accuracies of all cells, in per cent.

        Args:
          name: Name of the column. None where the table has one column.

        Raises:
          DataError: There is no such column, or `name` is None and there are several.
        """
        if name is None and len(self.accuracies) == 1:
            return next(iter(self.accuracies.values()))
        if name is None or name not in self.accuracies:
            raise DataError(
                f"Expected `column` to be one of {', '.join(self.accuracies)}, got {name!r}"
                f"{did_you_mean(name, self.accuracies)}"
            )
        return self.accuracies[name]

    def accuracy(self, cell: AnyCell | str | int, column: str | None = None) -> float:
        """Returns the accuracy of a cell, in per cent; NaN where the table has none.

        Args:
          cell: The cell, its text, or its row.
          column: Name of the column. None where the table has one column.

        Raises:
          DataError: The table has no such cell, row or column.
        """
        row = self.index(self[cell] if isinstance(cell, int) else cell)
        return float(self.column(column)[row])

    def look_up(self, cells: Sequence[AnyCell], column: str | None = None) -> Float[np.ndarray, " asked"]:
        """Returns the accuracies of some cells, in per cent; NaN for cells without an accuracy, or not in the table.

        Args:
          cells: The cells.
          column: Name of the column. None where the table has one column.

        Raises:
          DataError: There is no such column.
        """
        known = self.column(column)
        rows = (self._rows.get(cell) for cell in cells)
        return np.array([math.nan if row is None else known[row] for row in rows], np.float64)

    def isomorphic(self, cell: Cell | str) -> tuple[Cell, ...]:
        """Returns the cells of the table that are the same network as `cell`, by row.

        Their accuracies differ only by the randomness of training. The cell itself need not be in the table.

        Args:
          cell: The cell of NAS-Bench-201, or its text.

        Raises:
          DataError: The table holds genotypes.
        """
        if self.space != "nasbench201":
            raise DataError(f"Expected a table of cells of NAS-Bench-201, got one of {self.space}")
        form = (Cell.parse(cell) if isinstance(cell, str) else cell).canonical_form
        return tuple(other for other in self.cells if isinstance(other, Cell) and other.canonical_form == form)

    def to_frame(self) -> "pandas.DataFrame":
        """Returns a table with the column `cell`, the text of each, and the columns of accuracies, in per cent.

        What its `to_csv(path, index=False)` writes, `load` reads.

        Examples:
          >>> text = "|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|"
          >>> AccuracyTable((Cell.parse(text),), {"cifar10": np.array([88.5])}).to_frame().values.tolist()
          [['|none~0|+|none~0|none~1|+|nor_conv_3x3~0|none~1|none~2|', 88.5]]
        """
        import pandas

        return pandas.DataFrame({"cell": list(map(str, self.cells)), **self.accuracies})

    def _facts(self) -> dict[str, str]:
        return {"cells": str(len(self)), **{name: forms.span(column) for name, column in self.accuracies.items()}}


def _csv_rows(text: str) -> list[dict[str, Any]]:
    lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    head, *rows = lines or [[]]
    for number, row in enumerate(rows):
        if len(row) != len(head):
            raise ValueError(f"{len(row)} fields in row {number} under a header of {len(head)}")
    return [_unique(zip(head, row, strict=True)) for row in rows]


def _json_rows(text: str) -> list[dict[str, Any]]:
    document = json.loads(text, object_pairs_hook=_unique)
    if isinstance(document, dict):
        document = [
            _unique([(_NAMES[0], cell), *(row.items() if isinstance(row, dict) else [("accuracy", row)])])
            for cell, row in document.items()
        ]
    if not isinstance(document, list) or not all(isinstance(row, dict) for row in document):
        raise ValueError("neither a list of objects nor an object of cells")
    return [_unique(_flat((key, _as_text(key, value)) for key, value in row.items())) for row in document]


def _as_text(key: str, value: Any) -> Any:
    """Returns a genotype that is an object as its JSON, and anything else unchanged."""
    return json.dumps(value) if key in _NAMES and isinstance(value, dict) else value


def _unique(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in items:
        if key in found:
            raise ValueError(f"{shorten(key)!r} twice")
        found[key] = value
    return found


def _flat(items: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, Any]]:
    for key, value in items:
        if isinstance(value, dict):
            yield from _flat((f"{key}.{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def _number(value: Any) -> float | None:
    """Returns a number, NaN for a missing number, or None for anything else."""
    if value is None or (isinstance(value, str) and value.strip().lower() in _MISSING):
        return math.nan
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    # Python's `float` also reads "9_3" and digits of other scripts, which are mistakes in a table.
    if isinstance(value, str) and not re.fullmatch(_NUMBER, value.strip(), re.ASCII | re.IGNORECASE):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
