"""A search over graphs on disk: settings, the table of starts, the weights over the steps, and a picture."""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nngp_dag.report.search_result import GraphSearch
from nngp_dag.storage import ResultDirectory, output_file

_SETTINGS = {"settings": {"objective": str, "inputs": dict, "targets": dict}, "result?": dict}
_TABLES = ("search.csv", "weights.csv", "codes.csv")


class SearchDirectory:
    """The folder of a search: search.json with settings and result, tables as CSV, and search.png.

    A search is short, so that it is not resumed. An interrupted one leaves no files.

    Args:
      path: Path of the folder.
    """

    def __init__(self, path: Path) -> None:
        """Stores the path; reads and writes no file."""
        self.path = path

    @contextlib.contextmanager
    def opened(self, settings: Mapping[str, Any], *, overwrite: bool) -> Iterator[None]:
        """Keeps other processes out of the folder while a search runs; see `ResultDirectory.opened`.

        Raises:
          OutputError: The folder is not free, or cannot be written.
        """
        self._document: dict[str, Any] = {"settings": settings}
        self._folder = ResultDirectory(
            self.path, "a graph search", _SETTINGS, (*_TABLES, "search.png"), config="search.json"
        )
        with self._folder.opened(self._document, resume=False, overwrite=overwrite):
            yield

    def finish(self, result: GraphSearch) -> None:
        """Writes all files."""
        frames = {"search.csv": result.to_frame(), "weights.csv": result.weights_frame()}
        if result.table is not None:
            frames["codes.csv"] = result.codes_frame()
        for name, frame in frames.items():
            with output_file(self.path / name, overwrite=True) as path:
                frame.to_csv(path, index=False)
        result.plot(self.path / "search.png")
        self._folder.begin()
        self._folder.begun = True
