"""A sweep on disk: what is known of each class of equal kernels as soon as it is, and the table at the end."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nngp_dag.storage import ResultDirectory, Rows, as_output_error, output_file

if TYPE_CHECKING:
    import pandas

_SETTINGS = {"settings": {"options": dict, "inputs": dict, "bounds": bool}}
_FILES = ("classes.csv", "sweep.csv", "sweep.parquet", "sweep.png", "correlations.csv")


class SweepDirectory:
    """The folder of a sweep.

    config.json says what is swept over; classes.csv grows by a row whenever a class of kernels is done; sweep.csv and
    sweep.parquet hold the table, at the end.
    """

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        """Touches nothing; `fields` are the columns of classes.csv beside the class."""
        self.path = path
        self._folder = ResultDirectory(path, "a sweep", _SETTINGS, _FILES)
        self._rows = Rows(path / "classes.csv", ("kernel_class", *fields))

    @contextlib.contextmanager
    def opened(
        self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> Iterator[dict[str, dict[str, Any]]]:
        """Yields {class: its row} of the classes that are done, as `ResultDirectory.opened` does.

        Args:
          settings: Everything on which a row of classes.csv depends beside its class.
          resume: Whether to go on.
          overwrite: Whether to replace what is there.

        Raises:
          OutputError: The folder is not free, or cannot be written.
          CheckpointError: There is nothing to resume, or a sweep with other settings, of other versions, or damaged.
        """
        with self._folder.opened({"settings": settings}, resume=resume, overwrite=overwrite):
            rows = self._rows.read()
            self._folder.begin()
            # Without a last line that was cut off.
            self._rows.write(rows)
            yield {row.pop("kernel_class"): _parsed(row) for row in rows}

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds a class."""
        self._folder.begun = True
        self._rows.add({"kernel_class": name, **row})

    def finish(self, table: "pandas.DataFrame") -> None:
        """Writes the table, and removes what was made of one before."""
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
