"""The folder of a result that grows while a command runs: from what it is made, who writes it, and who may go on."""

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
    """Raises an `InputError` where a result is to go on and to be replaced."""
    if resume and overwrite:
        raise InputError("Expected `resume` or `overwrite`, got both; leave one out")


class ResultDirectory:
    """A folder with a configuration, which says from what and by which versions its result is made.

    Args:
      path: The folder.
      what: The kind of result, such as "a run", for messages.
      settings: {entry of the configuration: its shape}, of all on which the result depends; those whose names end in
        "?" may be missing, and may differ when the result goes on.
      files: Files and folders that hold the result, or patterns of them, in the order in which they are removed.
      config: The name of the configuration.

    Attributes:
      begun: Whether there is something worth keeping. Until then an error removes the result.
    """

    def __init__(
        self,
        path: Path,
        what: str,
        settings: Mapping[str, Shape],
        files: Sequence[str] = (),
        config: str = "config.json",
    ) -> None:
        """Touches nothing."""
        self.path, self.begun = path, False
        self._what, self._settings = what, settings
        self._config, self._files = path / config, (*files, config)
        self._document: dict[str, Any] = {}
        self._before: dict[str, Any] | None = None

    def read(self, remedy: str = "leave out `resume=True` to start one") -> dict[str, Any]:
        """Returns the configuration.

        Args:
          remedy: What to do where there is none, for messages.

        Raises:
          CheckpointError: There is none, or it has another shape.
        """
        with as_output_error(self.path):
            if self._config.exists():
                remedy = "put an intact copy there, or choose another output"
        return read_json(self._config, {**self._settings, **_PLACES}, self._what, remedy)

    def check_free(self, *, resume: bool | None = None, overwrite: bool = False) -> bool:
        """Says whether there is a result to go on with.

        Args:
          resume: Whether to go on; None to do so where there is something to go on with.
          overwrite: Whether to replace what is there.

        Raises:
          InputError: It is to go on and to be replaced.
          OutputError: A new result would meet another one or other files, or another process is at work.
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
        """Keeps other processes out while a result is made or goes on; of one that goes on, `begin` first writes.

        Args:
          document: The configuration.
          resume: As in `check_free`.
          overwrite: As in `check_free`.
          compared: Called with the configurations before and now, returns what must equal the one before.

        Raises:
          OutputError: The folder is not free, cannot be written, or is gone in the end.
          CheckpointError: There is nothing to go on with, or something of other settings or versions.
        """
        # As JSON has it: tuples are lists.
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
                    # The error at hand says more than what follows from it.
                    with contextlib.suppress(OutputError):
                        self.discard()
                raise

    def begin(self) -> dict[str, Any]:
        """Writes the configuration, and returns where else than before the result goes on, if it does."""
        before = self._before or {}
        document = {**before, **self._document, **environments(self._before, self.path)}
        if document != before:
            write_json(self._config, document)
        places, known = document.get("resumed_in", []), before.get("resumed_in", [])
        return places[-1] if len(places) > len(known) else {}

    def discard(self) -> None:
        """Removes the result, and leaves other files."""
        with as_output_error(self.path):
            for path in [path for name in self._files for path in self.path.glob(name)]:
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
