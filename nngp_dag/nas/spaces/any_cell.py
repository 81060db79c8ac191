"""Cells of either space: read from text or from a file, and the space that they belong to."""

import contextlib
import json
import re
from collections.abc import Iterable
from pathlib import Path

from nngp_dag.errors import GraphError, InputError, shown
from nngp_dag.nas.spaces.cells import Cell
from nngp_dag.nas.spaces.darts import Genotype

AnyCell = Cell | Genotype
"""A cell of NAS-Bench-201, or a genotype of DARTS."""

_BEGINS = r"\||\{|(\w+\s*=\s*)?Genotype\s*\("


def parse_cell(text: str) -> AnyCell:
    """Returns the cell of a text.

    Args:
      text: A cell of NAS-Bench-201, `|nor_conv_3x3~0|+...`, or a genotype: `Genotype(...)`, `NAME = Genotype(...)` or
        its JSON.

    Raises:
      GraphError: The text describes no cell.

    Examples:
      >>> parse_cell("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|").operations[0]
      'nor_conv_3x3'
    """
    if not isinstance(text, str) or not re.match(_BEGINS, text.strip()):
        raise GraphError(
            "Expected `text` to be a cell of NAS-Bench-201, |nor_conv_3x3~0|+..., or a genotype, "
            f"Genotype(normal=[...], ...), got {shown(text)}"
        )
    text = text.strip()
    if text.startswith("|"):
        return Cell.parse(text)
    text = re.sub(r"^\w+\s*=\s*", "", text)
    return Genotype.from_json(text) if text.startswith("{") else Genotype.from_text(text)


def read_cell(text: str) -> AnyCell:
    """Returns the cell that a text or a file describes.

    Args:
      text: A cell of NAS-Bench-201, a genotype, the JSON of a search's result.json, or the path of a file with one of
        these. A genotype is `Genotype(...)`, `NAME = Genotype(...)` or its JSON.

    Raises:
      GraphError: The text describes no cell, or the file cannot be read.

    Examples:
      >>> read_cell("|nor_conv_3x3~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|").operations[0]
      'nor_conv_3x3'
    """
    text = text.strip()
    if not re.match(_BEGINS, text):
        try:
            text = Path(text).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            reason = "no such file" if missing else getattr(error, "strerror", None) or error
            raise GraphError(
                "Expected a cell of NAS-Bench-201, |nor_conv_3x3~0|+..., a genotype, Genotype(normal=[...], ...), or a "
                f"file with one, got {text[:60]!r}: {reason}"
            ) from None
    with contextlib.suppress(ValueError, RecursionError):
        match json.loads(text):
            case {"cell": str(found)}:
                text = found
    return parse_cell(text)


def as_cell(cell: object) -> AnyCell:
    """Returns a cell unchanged, or the cell of a text, see `read_cell`.

    Raises:
      GraphError: The text does not describe a cell.
      InputError: The argument is neither a cell nor a text.
    """
    if isinstance(cell, str):
        return read_cell(cell)
    if not isinstance(cell, (Cell, Genotype)):
        raise InputError(f"Expected `cell` to be a `Cell`, a `Genotype` or its text, got {shown(cell)}")
    return cell


def space_of(cell: AnyCell) -> str:
    """Returns the name of the space of a cell, "nasbench201" or "darts"."""
    return "nasbench201" if isinstance(cell, Cell) else "darts"


def space_of_all(cells: Iterable[AnyCell]) -> str:
    """Returns the name of the space that all cells belong to, "nasbench201" if there are none.

    Raises:
      InputError: The cells belong to several spaces.
    """
    spaces = sorted({space_of(cell) for cell in cells})
    if len(spaces) > 1:
        raise InputError(f"Expected cells of one space, got cells of {' and '.join(spaces)}; give one space at a time")
    return spaces[0] if spaces else "nasbench201"
