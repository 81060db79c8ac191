"""The folder of a run: its configuration, log, curves and TensorBoard events."""

import contextlib
import csv
import hashlib
import json
import re
import shutil
import struct
import time
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nngp_dag.storage import ResultDirectory, as_output_error, output_file
from nngp_dag.training.history import FIELDS, METRICS, PARTS, History, write_csv

# Names of devices on Windows, and the empty name, which is not a valid one.
_RESERVED = re.compile(r"((con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?)?", re.IGNORECASE)
_SETTINGS = {"networks": dict, "recipe": {"epochs": int}, "seeds": [int], "data": dict, "options?": dict}
_FILES = ("checkpoints", "tensorboard", "train.log", "curves.csv", "curves.png")


def run_folder(path: Path) -> ResultDirectory:
    """Returns the result directory of a run."""
    return ResultDirectory(path, "a run", _SETTINGS, _FILES)


class RunDirectory:
    """A folder that holds all files of one run.

    It holds config.json, train.log, curves.csv, curves.png at the end, tensorboard/NAME/seed-S/, and
    checkpoints/NAME/last, best and begun. curves.csv and the events grow with every epoch. When a run resumes they are
    written again from the checkpoints, so that neither ever holds an epoch twice.

    Args:
      path: Path of the folder.
      names: Names of the networks.

    Raises:
      OutputError: The folder cannot be written.
    """

    def __init__(self, path: Path, names: Sequence[str]):
        """Chooses a folder name for every network."""
        self.path, self._folder = path, run_folder(path)
        self._folders = folder_names(names)

    @property
    def curves(self) -> Path:
        """Path of the curves as CSV."""
        return self.path / "curves.csv"

    def checkpoints(self, name: str, kind: str) -> Path:
        """Returns the checkpoint folder of a network; kind is "last", "best" or "begun"."""
        return self.path / "checkpoints" / self._folders[name] / kind

    def opened(
        self, config: Mapping[str, Any], *, resume: bool, overwrite: bool
    ) -> contextlib.AbstractContextManager[None]:
        """Opens the folder by `ResultDirectory.opened`; with a constant schedule more epochs count as equal settings.

        The learning rates of other schedules may depend on the number of epochs.
        """
        return self._folder.opened(config, resume=resume, overwrite=overwrite, compared=_with_epochs_before)

    def log(self, line: str) -> None:
        """Adds a line to train.log."""
        path = self.path / "train.log"
        with as_output_error(path), path.open("a") as file:
            file.write(line + "\n")

    def begin(self, histories: Sequence[History], lines: Sequence[str]) -> None:
        """Writes the configuration, first lines of the log, and the curves so far of networks that have begun."""
        if place := self._folder.begin():
            self.log(f"resumed with {json.dumps(place)}: bits may differ from an unbroken run")
        for line in lines:
            self.log(line)
        shutil.rmtree(self.path / "tensorboard", ignore_errors=True)
        begun = [history for history in histories if history.epochs_done >= 0]
        self.finish(begun)
        for history in begun:
            with as_output_error(self.path / "tensorboard"):
                self._add_events(history, range(history.epochs_done + 1))

    def add(self, history: History, epoch: int) -> None:
        """Adds one epoch to curves.csv, to the log and to TensorBoard."""
        self._folder.begun = True
        with as_output_error(self.curves), self.curves.open("a", newline="") as file:
            csv.DictWriter(file, fieldnames=FIELDS).writerows(history.rows([epoch]))
        with as_output_error(self.path / "tensorboard"):
            self._add_events(history, [epoch])
        means = {part: history.of(part, "loss")[epoch].mean() for part in PARTS}
        hits = {part: history.of(part, "accuracy")[epoch].mean() for part in PARTS}
        numbers = ", ".join(f"{part} loss {means[part]:.4g} accuracy {hits[part]:.2%}" for part in PARTS)
        self.log(f"{history.name} epoch {epoch}/{len(history.learning_rates)}: {numbers}")

    def finish(self, histories: Sequence[History]) -> None:
        """Writes the whole of curves.csv."""
        with output_file(self.curves, overwrite=True) as path:
            write_csv(histories, path)

    def _add_events(self, history: History, epochs: Sequence[int]) -> None:
        for s, seed in enumerate(history.seeds):
            folder = self.path / "tensorboard" / self._folders[history.name] / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            scalars = [
                (f"{metric}/{part}", float(history.values[epoch, i, j, s]), epoch)
                for epoch in epochs
                for i, part in enumerate(PARTS)
                for j, metric in enumerate(METRICS)
            ]
            scalars += [("learning_rate", float(history.learning_rates[epoch - 1]), epoch) for epoch in epochs if epoch]
            with (folder / "events.out.tfevents.0.nngp-dag").open("ab") as file:
                file.write(_records(scalars, begins=file.tell() == 0))


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """Returns a folder name for every name, valid on every system and independent of the order of names.

    This is the name itself where possible. A name that Windows reserves for devices gets a part of its digest. So do
    names whose folders differ at most in upper and lower case.
    """
    plain = {}
    for name in names:
        # NFKC replaces compatibility forms, such as a superscript 1, by the plain characters.
        plain[name] = re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFKC", name))[:60].strip("-.")
    uses = Counter(folder.casefold() for folder in plain.values())
    folders = {}
    for name, folder in plain.items():
        if uses[folder.casefold()] > 1 or _RESERVED.fullmatch(folder):
            # Windows ignores a device name's extension, the part from the first dot on.
            folder = f"{folder.replace('.', '-')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")
        folders[name] = folder
    return folders


def _records(scalars: Sequence[tuple[str, float, int]], *, begins: bool) -> bytes:
    """Returns TensorBoard's records of scalars."""
    # tensorboardX's own writer keeps files open, and its thread prints the error of a full disk instead of raising it.
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]
    from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
    from tensorboardX.record_writer import masked_crc32c

    events = [Event(wall_time=time.time(), file_version="brain.Event:2")] if begins else []
    for tag, value, step in scalars:
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        events.append(Event(wall_time=time.time(), step=step, summary=summary))
    found = b""
    for event in events:
        data = event.SerializeToString()
        size = struct.pack("<Q", len(data))
        found += size + struct.pack("<I", masked_crc32c(size)) + data + struct.pack("<I", masked_crc32c(data))
    return found


def _with_epochs_before(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """Returns the new configuration, with the earlier number of epochs if a larger one changes nothing else."""
    recipe, epochs = before["recipe"], before["recipe"]["epochs"]
    if recipe.get("schedule") == "constant" and now["recipe"]["epochs"] > epochs:
        return {**now, "recipe": {**now["recipe"], "epochs": epochs}}
    return now
