"""The last line of an interrupted command: the work that is kept, and the command that continues."""

from collections.abc import Callable
from pathlib import Path

from nngp_dag import interrupt
from nngp_dag.cli.screen import latest_progress
from nngp_dag.interrupt import command, given


def same_command(kept: Callable[[], str]) -> None:
    """Prepares the last line of a command that continues when it is given again."""
    interrupt.on_interrupt(lambda: f"kept: {kept()}; go on with: {command()}")


def once(*files: Path) -> None:
    """Prepares the last line of a command that starts again, and must then replace the files that it has written."""
    before = [_stamp(file) for file in files]

    def words() -> str:
        written = [str(file) for file, old in zip(files, before, strict=True) if _stamp(file) not in (None, old)]
        again = command(with_flag="--overwrite") if written else command()
        return f"written: {', '.join(written) or 'nothing'}; start again with: {again}"

    interrupt.on_interrupt(words)


class Resumable:
    """The last line of a command with --resume.

    Args:
      marker: File whose presence shows that a folder can be resumed.
      kept: Function that returns a description of the work that is kept.
      resume: Command that continues. None for the same command with --resume.
    """

    def __init__(self, marker: Path, kept: Callable[[], str], resume: str | None = None) -> None:
        """Remembers the state of the file at the start of the command."""
        self.kept = kept
        self._marker, self._before, self._resume = marker, _stamp(marker), resume
        interrupt.on_interrupt(self._words)

    def _words(self) -> str:
        if given("--resume"):
            return f"kept: {self.kept()}; go on with: {command()}"
        # A file that has not changed is from an earlier command.
        if _stamp(self._marker) in (None, self._before):
            return f"kept: nothing new; start again with: {command()}"
        resume = self._resume or command(with_flag="--resume", without_flag="--overwrite")
        return f"kept: {self.kept()}; go on with: {resume}"


def counted(what: str) -> Callable[[], str]:
    """Returns a function that describes the last reported progress, such as "3 of 9 tiles"."""
    return lambda: ", ".join(f"{done} of {total} {what}" for done, total in latest_progress.values()) or "nothing new"


def epochs_in(out: Path, total: int | None = None) -> Callable[[], str]:
    """Returns a function that describes how many epochs the checkpoints of a run hold."""

    def say() -> str:
        def newest(kind: str) -> list[int]:
            # Two may exist for a moment: a checkpoint is deleted only when the next is complete.
            return [
                max((int(number.name) for number in folder.iterdir() if number.name.isdecimal()), default=0)
                for folder in out.glob(f"checkpoints/*/{kind}")
            ]

        steps = "".join(f" and the state after step {step}" for step in newest("begun") if step)
        return f"{sum(newest('last'))}{'' if total is None else f' of {total}'} epochs{steps} in {out}"

    return say


def _stamp(file: Path) -> tuple[int, int] | None:
    """Returns a value that changes when a file is replaced or modified; None without a file."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
