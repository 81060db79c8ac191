"""Folders of results that grow while a command runs, with configuration, lock and resuming."""

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nngp_dag.errors import CheckpointError, InputError, OutputError
from nngp_dag.storage.documents import Shape, check_same, read_json, write_json
from nngp_dag.storage.environment import environments
from nngp_dag.storage.files import as_output_error, check_not_in_use, claimed, is_occupied

_PLACES = {"environment": dict, "resumed_in?": [dict]}


def check_exclusive(resume: bool | None, overwrite: bool) -> None:
    """Raises an `InputError` if a result is to be both resumed and replaced."""
    if resume and overwrite:
        raise InputError("Expected `resume` or `overwrite`, got both; leave one out")


class ResultDirectory:
    """A folder of a result, with a configuration that holds its settings and the versions of packages.

    Args:
      path: Path of the folder.
      what: Kind of the result, such as "a run", for messages.
      settings: Shapes of the configuration's entries on which the result depends, by name. An entry whose name ends in
        "?" may be missing, and may change when the result is resumed.
      files: Files and folders that hold the result, or patterns of them, in the order in which they are removed.
      config: Name of the configuration file.

    Attributes:
      begun: Whether the folder holds results worth keeping. Until then an error removes them.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        settings: Mapping[str, Shape],
        files: Sequence[str] = (),
        config: str = "config.json",
    ) -> None:
        """Stores the arguments; reads and writes no file."""
        self.path, self.begun = path, False
        self._what, self._settings = what, settings
        self._config, self._files = path / config, (*files, config)
        self._document: dict[str, Any] = {}
        self._before: dict[str, Any] | None = None

    def read(self, remedy: str = "leave out `resume=True` to start one") -> dict[str, Any]:
        """Returns the configuration.

        Args:
          remedy: Advice for the message if there is no configuration.

        Raises:
          CheckpointError: There is no configuration, or it has another shape.
        """
        with as_output_error(self.path):
            if self._config.exists():
                remedy = "put an intact copy there, or choose another output"
        return read_json(self._config, {**self._settings, **_PLACES}, self._what, remedy)

    def check_free(self, *, resume: bool | None = None, overwrite: bool = False) -> bool:
        """Returns whether there is a result to resume.

        Args:
          resume: Whether to resume; None resumes if there is a configuration.
          overwrite: Whether to replace an existing result.

        Raises:
          InputError: Both `resume` and `overwrite` are True.
          OutputError: The folder holds another result or other files, or another process writes to it.
        """
        check_exclusive(resume, overwrite)
        occupied = is_occupied(self.path)
        check_not_in_use(self.path)
        if resume or not occupied:
            return bool(resume)
        if resume is None and self._config.exists():
            return True
        got, wanted, remedy = "other files", f"be new, empty or hold {self._what}", "choose another `out`"
        if overwrite:
            with contextlib.suppress(CheckpointError):
                self.read()
                return False
            wanted = f"hold {self._what} to replace"
        elif resume is not None:
            got, wanted = "an existing one", "be new or empty"
            remedy = f"pass `resume=True` to go on with it, `overwrite=True` to replace it, or {remedy}"
        raise OutputError(f"Expected the output directory {self.path} to {wanted}, got {got}; {remedy}")

    @contextlib.contextmanager
    def opened(
        self,
        document: Mapping[str, Any],
        *,
        resume: bool | None = None,
        overwrite: bool = False,
        compared: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] = lambda before, now: now,
    ) -> Iterator[None]:
        """Keeps other processes out while a result is made or resumed; a resumed one stays unchanged until `begin`.

        Args:
          document: The configuration.
          resume: Whether to resume, see `check_free`.
          overwrite: Whether to replace an existing result, see `check_free`.
          compared: Function of the earlier and the new configuration. It returns the one that must equal the earlier.

        Raises:
          OutputError: The folder is not free, cannot be written, or was deleted meanwhile.
          CheckpointError: There is nothing to resume, or it has other settings or versions.
        """
        # JSON turns tuples into lists, and the configuration is compared with one that was read from JSON.
        self._document = now = json.loads(json.dumps(document))
        with claimed(self.path):
            if self.check_free(resume=resume, overwrite=overwrite):
                self._before, self.begun = self.read(), True
                names = [name for name in self._settings if not name.endswith("?")]
                then, now = ({name: of[name] for name in names} for of in (self._before, compared(self._before, now)))
                environments(self._before, self.path)
                check_same(then, now, self._config)
            else:
                self.discard()
            try:
                yield
            except BaseException:
                if not self.begun:
                    # The error of the block says more than one that follows from it.
                    with contextlib.suppress(OutputError):
                        self.discard()
                raise

    def begin(self) -> dict[str, Any]:
        """Writes the configuration, and returns the environment of a resumed result if it is a new one, else {}."""
        before = self._before or {}
        document = {**before, **self._document, **environments(self._before, self.path)}
        if document != before:
            write_json(self._config, document)
        places, known = document.get("resumed_in", []), before.get("resumed_in", [])
        return places[-1] if len(places) > len(known) else {}

    def discard(self) -> None:
        """Removes the files of the result; other files stay."""
        with as_output_error(self.path):
            for path in [path for name in self._files for path in self.path.glob(name)]:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
