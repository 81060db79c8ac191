"""A sweep on disk: what is known of each class of equal kernels as soon as it is, and the table at the end."""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.storage import as_output_error, environment, output_file

if TYPE_CHECKING:
    import pandas

_FILES = ("config.json", "classes.csv", "sweep.csv", "sweep.parquet", "sweep.png", "correlations.csv")


class SweepDirectory:
    """The folder of a sweep.

    config.json says what is swept over; classes.csv grows by a row whenever a class of kernels is done; sweep.csv and
    sweep.parquet hold the table, at the end.
    """

    def __init__(self, path: Path) -> None:
        """Touches nothing."""
        self.path = path
        self._fields: Sequence[str] = ()

    def prepare(
        self, settings: Mapping[str, Any], fields: Sequence[str], *, resume: bool, overwrite: bool
    ) -> dict[str, dict[str, Any]]:
        """Makes the folder of a new sweep, or reads the one to resume.

        Args:
          settings: Everything on which a row of classes.csv depends beside its class.
          fields: Columns of classes.csv.
          resume: Whether to go on.
          overwrite: Whether to replace what is there.

        Returns:
          {class: its row} of the classes that are done.

        Raises:
          OutputError: The folder is not free, or cannot be written.
          CheckpointError: There is nothing to resume, or a sweep with other settings.
        """
        self._fields = fields
        if self.path.exists() and not self.path.is_dir():
            raise OutputError(f"Expected the output {self.path} to be a directory, got a file; choose another --out")
        done: dict[str, dict[str, Any]] = {}
        occupied = self.path.is_dir() and any(not file.name.startswith(".") for file in self.path.iterdir())
        if resume:
            done = self._read(settings)
        elif occupied and not overwrite:
            raise OutputError(
                f"Expected the output directory {self.path} to be new or empty, got an existing one; pass --resume to "
                "go on with its sweep, --overwrite to replace it, or choose another --out"
            )
        elif occupied and not self._holds_sweep():
            raise OutputError(
                f"Expected the output directory {self.path} to hold a sweep to replace, got other files; choose "
                "another --out"
            )
        with as_output_error(self.path):
            for name in () if resume else _FILES:
                (self.path / name).unlink(missing_ok=True)
        with output_file(self.path / "config.json", overwrite=True) as file:
            document = {"settings": settings, "environment": environment()}
            if resume:
                # Where it began, and where else it went on.
                before = json.loads((self.path / "config.json").read_text())
                places = [before.get("environment"), *before.get("resumed_in", [])]
                places += [document["environment"]] * (document["environment"] not in places)
                document |= {"environment": places[0], "resumed_in": places[1:]}
            file.write_text(json.dumps(document, indent=2) + "\n")
        # Without a last line that was cut off.
        with output_file(self.path / "classes.csv", overwrite=True) as path, path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ("kernel_class", *fields))
            writer.writeheader()
            writer.writerows({"kernel_class": name, **row} for name, row in done.items())
        return done

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds a class."""
        path = self.path / "classes.csv"
        with as_output_error(path), path.open("a", newline="") as file:
            csv.DictWriter(file, ("kernel_class", *self._fields)).writerow({"kernel_class": name, **row})
            file.flush()
            os.fsync(file.fileno())

    def finish(self, table: "pandas.DataFrame") -> None:
        """Writes the table, and removes what was made of one before."""
        with as_output_error(self.path):
            for name in ("sweep.png", "correlations.csv"):
                (self.path / name).unlink(missing_ok=True)
        with output_file(self.path / "sweep.csv", overwrite=True) as path:
            table.to_csv(path, index=False)
        with output_file(self.path / "sweep.parquet", overwrite=True) as path:
            table.to_parquet(path, index=False)

    def _settings(self) -> dict[str, Any]:
        found = json.loads((self.path / "config.json").read_text())["settings"]
        if not isinstance(found, dict) or not {"inputs", "readout", "bounds"} <= set(found):
            raise ValueError("a configuration of something else")
        return found

    def _holds_sweep(self) -> bool:
        try:
            return bool(self._settings())
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _read(self, settings: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        try:
            before = self._settings()
            text = (self.path / "classes.csv").read_text() if (self.path / "classes.csv").exists() else ""
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = "none" if isinstance(error, FileNotFoundError) else str(error)
            raise CheckpointError(
                f"Expected {self.path / 'config.json'} to describe a sweep to go on with, got {reason}; leave out "
                "--resume to start one"
            ) from error
        for name, value in settings.items():
            if before.get(name) != value:
                raise CheckpointError(
                    f"Expected the sweep in {self.path} to have {name} {value}, got {before.get(name)}; resume with "
                    "that, or choose another --out"
                )
        lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        done = {}
        for row in csv.DictReader(lines):
            if None not in row.values() and tuple(row) == ("kernel_class", *self._fields):
                name = row.pop("kernel_class")
                try:
                    done[name] = {field: _parsed(field, value) for field, value in row.items() if value}
                except ValueError as error:
                    raise CheckpointError(
                        f"Expected numbers in {self.path / 'classes.csv'}, got {error} for {name}; delete that line"
                    ) from None
        return done


def _parsed(name: str, text: str) -> Any:
    if name == "reason":
        return text
    return text == "True" if name.endswith("resolved") else float(text)
