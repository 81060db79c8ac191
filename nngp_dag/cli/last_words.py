"""What the commands say when they are interrupted: what is kept, and the command that goes on."""

from collections.abc import Callable
from pathlib import Path

from nngp_dag import interrupt
from nngp_dag.cli.screen import latest_progress
from nngp_dag.interrupt import command, given


def same_command(kept: Callable[[], str]) -> None:
    """For commands that go on where they were when they are given again."""
    interrupt.on_interrupt(lambda: f"kept: {kept()}; go on with: {command()}")


def once(*files: Path) -> None:
    """For commands that start again; files that they have written by then must be replaced."""
    before = [_stamp(file) for file in files]

    def words() -> str:
        written = [str(file) for file, old in zip(files, before, strict=True) if _stamp(file) not in (None, old)]
        again = command(with_flag="--overwrite") if written else command()
        return f"written: {', '.join(written) or 'nothing'}; start again with: {again}"

    interrupt.on_interrupt(words)


class Resumable:
    """For commands with --resume.

    Args:
      marker: The file whose presence makes a folder one that can be resumed.
      kept: Says what is kept there.
      resume: The command that goes on; by default the same with --resume.
    """

    def __init__(self, marker: Path, kept: Callable[[], str], resume: str | None = None) -> None:
        """From now on the file is looked at."""
        self.kept = kept
        self._marker, self._before, self._resume = marker, _stamp(marker), resume
        interrupt.on_interrupt(self._words)

    def _words(self) -> str:
        if given("--resume"):
            return f"kept: {self.kept()}; go on with: {command()}"
        # What lay there before is not of this command.
        if _stamp(self._marker) in (None, self._before):
            return f"kept: nothing new; start again with: {command()}"
        resume = self._resume or command(with_flag="--resume", without_flag="--overwrite")
        return f"kept: {self.kept()}; go on with: {resume}"


def counted(what: str) -> Callable[[], str]:
    """Returns what says how many are done by the progress that was last shown."""
    return lambda: ", ".join(f"{done} of {total} {what}" for done, total in latest_progress.values()) or "nothing new"


def epochs_in(out: Path, total: int | None = None) -> Callable[[], str]:
    """Returns what says how many epochs the checkpoints of a run hold."""

    def say() -> str:
        done = 0
        for folder in out.glob("checkpoints/*/last"):
            # The one before goes when the next is whole.
            done += max((int(epoch.name) for epoch in folder.iterdir() if epoch.name.isdecimal()), default=0)
        return f"{done}{'' if total is None else f' of {total}'} epochs in {out}"

    return say


def _stamp(file: Path) -> tuple[int, int] | None:
    """What changes when a file is written anew."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
