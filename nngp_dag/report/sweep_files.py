"""A sweep on disk: the spectra of every class of networks with equal kernels, and the table at the end."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nngp_dag.storage import ResultDirectory, Rows, as_output_error, output_file

if TYPE_CHECKING:
    import pandas

_SETTINGS = {"settings": {"options": dict, "inputs": dict, "bounds": bool}}
_FILES = ("classes.csv", "part-*-classes.csv", "sweep.csv", "sweep.parquet", "sweep.png", "correlations.csv")


class SweepDirectory:
    """The folder of a sweep.

    The settings are in config.json. A row is added to classes.csv for every finished class of networks with equal
    kernels. The table at the end is in sweep.csv and sweep.parquet. Where several processes share the work, process 0
    opens the folder, and each of the others adds rows to a file part-NUMBER-classes.csv.

    Args:
      path: Path of the folder.
      fields: Columns of classes.csv besides the class.
    """

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        """Stores the arguments; reads and writes no file."""
        self.path = path
        self._folder = ResultDirectory(path, "a sweep", _SETTINGS, _FILES)
        self._rows = Rows(path / "classes.csv", ("kernel_class", *fields))

    @contextlib.contextmanager
    def opened(
        self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> Iterator[dict[str, dict[str, Any]]]:
        """Yields the rows of finished classes by class, inside `ResultDirectory.opened`.

        Args:
          settings: All settings on which a row of classes.csv depends, besides its class.
          resume: Whether to resume.
          overwrite: Whether to replace an existing sweep.

        Raises:
          OutputError: The folder is not free, or cannot be written.
          CheckpointError: There is nothing to resume, it has other settings or versions, or it is damaged.
        """
        with self._folder.opened({"settings": settings}, resume=resume, overwrite=overwrite):
            rows = self._rows.read_with_parts()
            self._folder.begin()
            # This removes an incomplete last line.
            self._rows.write(rows)
            self._rows.remove_parts()
            try:
                yield {row.pop("kernel_class"): _parsed(row) for row in rows}
            except BaseException:
                # Other processes may have finished classes, while this one has not.
                self._folder.begun = self._folder.begun or bool(self._rows.read_with_parts())
                raise

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds the row of a finished class."""
        self._folder.begun = True
        self._rows.add({"kernel_class": name, **row})

    def share(self, process: int) -> None:
        """Prepares the file of another process than the first, to which `add` then adds its rows."""
        self._rows = self._rows.part(process)
        self._rows.write([])

    def merge(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Replaces classes.csv by the rows of all processes, by class, and removes the files of the others."""
        self._rows.write({"kernel_class": name, **row} for name, row in found.items())
        self._rows.remove_parts()

    def finish(self, table: "pandas.DataFrame") -> None:
        """Writes the table, and removes the plot and the correlations of an earlier one."""
        with as_output_error(self.path):
            for name in ("sweep.png", "correlations.csv"):
                (self.path / name).unlink(missing_ok=True)
        with output_file(self.path / "sweep.csv", overwrite=True) as path:
            table.to_csv(path, index=False)
        with output_file(self.path / "sweep.parquet", overwrite=True) as path:
            table.to_parquet(path, index=False)


def _parsed(row: Mapping[str, str]) -> dict[str, Any]:
    return {name: _value(name, text) for name, text in row.items() if text}


def _value(name: str, text: str) -> Any:
    if name == "reason":
        return text
    return text == "True" if name.endswith("resolved") else float(text)
