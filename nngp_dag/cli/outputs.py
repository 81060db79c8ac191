"""Commands that keep their folder to themselves until they end."""

import functools
from collections.abc import Callable
from typing import Any

from nngp_dag.storage import claimed


def claims(option: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Returns a decorator of commands that write into the folder of an option, also after the library is done."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **options: Any) -> None:
            with claimed(options[option]):
                command(*args, **options)

        return run

    return decorate
