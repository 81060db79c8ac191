"""A sweep on disk: what is known of each class of equal kernels as soon as it is, and the table at the end."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nngp_dag.errors import CheckpointError, OutputError
from nngp_dag.storage import Rows, as_output_error, environments, is_occupied, output_file, read_json, write_json

if TYPE_CHECKING:
    import pandas

_SHAPE = {
    "settings": {"options": dict, "inputs": dict, "bounds": bool},
    "environment": dict,
    "resumed_in?": [dict],
}
_FILES = ("config.json", "classes.csv", "sweep.csv", "sweep.parquet", "sweep.png", "correlations.csv")


class SweepDirectory:
    """The folder of a sweep.

    config.json says what is swept over; classes.csv grows by a row whenever a class of kernels is done; sweep.csv and
    sweep.parquet hold the table, at the end.
    """

    def __init__(self, path: Path, fields: Sequence[str]) -> None:
        """Touches nothing; `fields` are the columns of classes.csv beside the class."""
        self.path = path
        self._rows = Rows(path / "classes.csv", ("kernel_class", *fields))

    def prepare(self, settings: Mapping[str, Any], *, resume: bool, overwrite: bool) -> dict[str, dict[str, Any]]:
        """Begins a new sweep in the folder, which is claimed, or reads the one to resume.

        Args:
          settings: Everything on which a row of classes.csv depends beside its class.
          resume: Whether to go on.
          overwrite: Whether to replace what is there.

        Returns:
          {class: its row} of the classes that are done.

        Raises:
          OutputError: The folder is not free, or cannot be written.
          CheckpointError: There is nothing to resume, or a sweep with other settings, of other versions, or damaged.
        """
        before = None
        done: dict[str, dict[str, Any]] = {}
        if resume:
            before = self._read("leave out --resume to start one")
            self._check(before["settings"], settings)
            done = {row.pop("kernel_class"): _parsed(row) for row in self._rows.read()}
        elif is_occupied(self.path):
            if not overwrite:
                raise OutputError(
                    f"Expected the output directory {self.path} to be new or empty, got an existing one; pass --resume "
                    "to go on with its sweep, --overwrite to replace it, or choose another --out"
                )
            self._check_is_sweep()
        places = environments(before, self.path)
        with as_output_error(self.path):
            for name in () if resume else _FILES:
                (self.path / name).unlink(missing_ok=True)
        write_json(self.path / "config.json", {"settings": settings, **places})
        # Without a last line that was cut off.
        self._rows.write({"kernel_class": name, **row} for name, row in done.items())
        return done

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Adds a class."""
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

    def _read(self, remedy: str) -> dict[str, Any]:
        return read_json(self.path / "config.json", _SHAPE, "a sweep to go on with", remedy)

    def _check_is_sweep(self) -> None:
        with contextlib.suppress(CheckpointError):
            self._read("")
            return
        raise OutputError(
            f"Expected the output directory {self.path} to hold a sweep to replace, got other files; choose another "
            "--out"
        )

    def _check(self, before: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        # Options one by one, since all of them are a long text.
        now, then = ({**of, **of["options"], "options": None} for of in (settings, before))
        for name, value in now.items():
            if then.get(name) != value:
                raise CheckpointError(
                    f"Expected the sweep in {self.path} to have {name} {value}, got {then.get(name)}; resume with "
                    "that, or choose another --out"
                )


def _parsed(row: Mapping[str, str]) -> dict[str, Any]:
    return {name: _value(name, text) for name, text in row.items() if text}


def _value(name: str, text: str) -> Any:
    if name == "reason":
        return text
    return text == "True" if name.endswith("resolved") else float(text)
