"""CSV tables that grow row by row; a checksum in every row reveals damage."""

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nngp_dag.errors import CheckpointError, shorten
from nngp_dag.storage.documents import reason_of
from nngp_dag.storage.files import as_output_error, output_file

_CHECKSUM = "checksum"


class Rows:
    """A CSV file whose last column is a checksum of the other columns and of their names.

    Args:
      path: Path of the file.
      fields: Names of the columns before the checksum. Without them the file can only be read, with any columns.
    """

    def __init__(self, path: Path, fields: Sequence[str] = ()) -> None:
        """Stores the arguments; reads and writes no file."""
        self.path, self._fields = path, list(fields)

    def read(self) -> list[dict[str, str]]:
        """Returns all rows without an incomplete last one; an empty list if there is no file.

        Raises:
          CheckpointError: The file cannot be read, has other columns, or holds a row that does not match its checksum.
        """
        try:
            # Without newline="" Python would change line ends within a field.
            with self.path.open(encoding="utf-8", newline="") as file:
                text = file.read()
            lines = list(csv.reader(io.StringIO(text, newline="")))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, csv.Error) as error:
            raise self._damaged(reason_of(error)) from None
        if text and not text.endswith("\n"):
            lines.pop()
        [*fields, last], *rows = lines or [[*self._fields, _CHECKSUM]]
        if last != _CHECKSUM or (self._fields and fields != self._fields):
            found, wanted = (", ".join(names) for names in ([*fields, last], [*self._fields, _CHECKSUM]))
            raise self._damaged(f"columns {shorten(found, 200)}, not {shorten(wanted, 200)}")
        for number, row in enumerate(rows, start=1):
            if len(row) != len(fields) + 1 or row[-1] != _checksum(fields, row[:-1]):
                raise self._damaged(f"row {number} that does not match its checksum")
        return [dict(zip(fields, row, strict=False)) for row in rows]

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes the whole file, which replaces an existing one.

        Raises:
          OutputError: The file cannot be written.
        """
        with output_file(self.path, overwrite=True) as path, path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([[*self._fields, _CHECKSUM], *map(self._line, rows)])

    def add(self, row: Mapping[str, Any]) -> None:
        """Adds a row to the file, which must exist, and waits until it is on the disk.

        Raises:
          OutputError: The file cannot be written.
        """
        # Mode "a" would create the file again after the folder was deleted and made anew.
        with as_output_error(self.path), self.path.open("r+", encoding="utf-8", newline="") as file:
            file.seek(0, os.SEEK_END)
            csv.writer(file).writerow(self._line(row))
            file.flush()
            os.fsync(file.fileno())

    def part(self, number: int) -> "Rows":
        """Returns the file beside this one to which another process adds its rows."""
        return Rows(self.path.with_name(f"part-{number}-{self.path.name}"), self._fields)

    def read_with_parts(self) -> list[dict[str, str]]:
        """Returns the rows of this file, and after them those of all parts whose first column has new values.

        Raises:
          CheckpointError: A file cannot be read, has other columns, or holds a damaged row.
        """
        tables = [self, *(Rows(path, self._fields) for path in self._parts())]
        found: dict[str, dict[str, str]] = {}
        for table in tables:
            for row in table.read():
                found.setdefault(next(iter(row.values())), row)
        return list(found.values())

    def has_parts(self) -> bool:
        """Returns whether other processes have left parts."""
        return bool(self._parts())

    def remove_parts(self) -> None:
        """Removes the parts, whose rows must be in this file.

        Raises:
          OutputError: A part cannot be removed.
        """
        for path in self._parts():
            with as_output_error(path):
                path.unlink(missing_ok=True)

    def _parts(self) -> list[Path]:
        with as_output_error(self.path):
            found = list(self.path.parent.glob(f"part-*-{self.path.name}"))
        numbers = {path: path.name.removeprefix("part-").removesuffix(f"-{self.path.name}") for path in found}
        # Files of other names, such as part-1-of-classes.csv, are none of ours.
        return sorted((p for p in found if numbers[p].isdecimal()), key=lambda path: int(numbers[path]))

    def _line(self, row: Mapping[str, Any]) -> list[str]:
        values = ["" if (value := row.get(field)) is None else str(value) for field in self._fields]
        return [*values, _checksum(self._fields, values)]

    def _damaged(self, reason: str) -> CheckpointError:
        return CheckpointError(
            f"Expected {self.path} to hold what was written there, got {reason}; delete that row, or the file"
        )


def _checksum(fields: Sequence[str], values: Sequence[str]) -> str:
    return hashlib.blake2b(json.dumps([fields, values]).encode(), digest_size=6).hexdigest()
