"""Short forms of results: a line or two of text for a terminal, and a small table of HTML for a notebook.

A class states its facts once, as {name: text} in `_facts`; `Described` makes both forms of them. Both are cheap and
work inside transformations of JAX: of an array they show shape and dtype, and no more than a few values. No JAX here.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nngp_dag.errors import shorten, shown

WIDTH = 120
"""Characters of a line of text."""

# In a page of HTML, where lines break by themselves.
_LONGEST_CELL, _SHORT_CELL = 400, 24


class Described:
    """The base class of results, which show their facts as their `repr`, and as a table in notebooks.

    A dataclass needs `repr=False`, since it would otherwise get the `repr` of dataclasses.

    Examples:
      >>> class Range(Described):
      ...     def _facts(self):
      ...         return {"low": number(0.5), "high": number(2e9)}
      >>> Range()
      Range(low=0.5, high=2e+09)
    """

    __slots__ = ()

    def _facts(self) -> dict[str, str]:
        """Returns the facts as {name: text}."""
        raise NotImplementedError

    def __repr__(self) -> str:
        """Returns the facts in one or two lines."""
        return call(type(self).__name__, self._facts())

    def _repr_html_(self) -> str:
        """Returns the facts as a table of HTML."""
        return facts_html(type(self).__name__, self._facts())


def call(name: str, facts: Mapping[str, str]) -> str:
    """Writes facts like a call, in at most two lines of `WIDTH` characters; what is longer is cut.

    A fact without a name stands there like a positional argument.
    """
    pieces = [f"{key}{'=' if key else ''}{' '.join(text.split())}" for key, text in facts.items()]
    whole = f"{name}({', '.join(pieces)})"
    if len(whole) <= WIDTH:
        return whole
    first = f"{name}("
    while pieces and len(first) + len(pieces[0]) + 2 <= WIDTH:
        first += pieces.pop(0) + ", "
    second = f"    {', '.join(pieces)})"
    if len(second) > WIDTH:
        second = second[: WIDTH - 4] + "...)"
    return f"{first.rstrip()}\n{second}"


def facts_html(title: str, facts: Mapping[str, str]) -> str:
    """Returns a table of two columns, names and values; the fact without a name is the name of the result.

    Examples:
      >>> facts_html("Bracket", {"lower": "0", "name": "<b>"})
      '<table><caption ...>Bracket</caption><tr><th ...>lower</th><td ...>0</td></tr><tr>...&lt;b&gt;</td></tr></table>'
    """
    return _table(title, (_cell("th", key or "name") + _cell("td", text) for key, text in facts.items()))


def rows_html(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table with a row of headings."""
    lines = (headings, *rows)
    return _table(title, ("".join(_cell("td" if i else "th", text) for text in line) for i, line in enumerate(lines)))


def _table(title: str, lines: Iterable[str]) -> str:
    # Notebooks would center a caption, and color it as if it were less important than the rest.
    caption = _element("caption", title, "text-align: left; font-weight: bold; color: inherit")
    return f"<table>{caption}{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def _cell(tag: str, text: str) -> str:
    # Numbers keep to one line.
    return _element(tag, text, "text-align: left" + "; white-space: nowrap" * (len(text) <= _SHORT_CELL))


def _element(tag: str, text: str, style: str) -> str:
    import html

    return f'<{tag} style="{style}">{html.escape(shorten(text, _LONGEST_CELL))}</{tag}>'


def number(value: Any) -> str:
    """Writes a number to six digits; integers in full.

    Examples:
      >>> number(1 / 3), number(12_345_678), number(True)
      ('0.333333', '12345678', 'True')
    """
    return str(value) if isinstance(value, numbers.Integral) else f"{value:.6g}"


def array(value: Any) -> str:
    """Writes dtype and shape of an array, or of a tracer; other values as they are.

    Examples:
      >>> import numpy as np
      >>> array(np.zeros((3, 2))), array(None)
      ('float64[3,2]', 'None')
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if not isinstance(shape, tuple) or dtype is None:
        return shown(value, 40)
    return f"{dtype}[{','.join(map(str, shape))}]"


def is_known(value: Any, axes: int) -> bool:
    """Whether a value is a number, or an array of numbers, with so many axes; tracers and shapes of JAX are not.

    Examples:
      >>> import numpy as np
      >>> is_known(0.5, 0), is_known(np.zeros(3), 0), is_known(None, 0)
      (True, False, False)
    """
    if any(base.__name__ == "Tracer" for base in type(value).__mro__):
        return False
    found = 0 if isinstance(value, numbers.Number) else getattr(value, "ndim", None)
    return found == axes and (isinstance(value, numbers.Number) or hasattr(value, "__array__"))


def shapes(result: Any) -> dict[str, str]:
    """Returns dtype and shape of every field of a dataclass that is not None, for results whose values are unknown."""
    fields = {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return {name: array(value) for name, value in fields.items() if value is not None}


def span(values: Any) -> str:
    """Writes the smallest and the largest of some numbers, NaN left out.

    Examples:
      >>> import numpy as np
      >>> span(np.array([2.0, 0.5, np.nan])), span(np.array([]))
      ('0.5 to 2', 'none')
    """
    import numpy as np

    known = np.asarray(values)[~np.isnan(values)]
    if not known.size:
        return "none"
    low, high = known.min(), known.max()
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def spread(mean: Any, std: Any) -> str:
    """Writes a mean and a standard deviation.

    Examples:
      >>> spread(1.5, 0.25)
      '1.5 ± 0.25'
    """
    return f"{mean:.4g} ± {std:.2g}"


def over(values: Any) -> str:
    """Writes the mean of some numbers, and their standard deviation where there are several (n - 1 below the line).

    Examples:
      >>> import numpy as np
      >>> over(np.array([1.0, 2.0, 3.0])), over(np.array([0.5]))
      ('2 ± 1', '0.5')
    """
    return spread(values.mean(), values.std(ddof=1)) if len(values) > 1 else f"{values.mean():.4g}"


def eigenvalue(value: float, floor: float, resolved: bool) -> str:
    """Writes a smallest eigenvalue, or that it lies below the floor: rounding noise is not printed.

    Examples:
      >>> eigenvalue(0.5, 1e-13, True), eigenvalue(1e-20, 1e-13, False), eigenvalue(math.nan, 1e-13, False)
      ('0.5', '< 1.0e-13 (not resolved)', 'not resolved')
    """
    # Then nothing is known about where the eigenvalue lies.
    if math.isnan(value) or math.isnan(floor):
        return "not resolved"
    return f"{value:.4g}" if resolved else f"< {floor:.1e} (not resolved)"


def count(value: int) -> str:
    """Writes an exact count, in full up to 15 digits, else its leading digits and power of ten.

    Examples:
      >>> count(12_345), count(10**20)
      ('12,345', '1.000e20')
    """
    if value < 10**15:
        return f"{value:,}"
    # Python refuses to print very long integers, and their logarithm overflows no float.
    exponent = int((value.bit_length() - 1) * 0.30102999566398119521)
    while 10 ** (exponent + 1) <= value:
        exponent += 1
    return f"{value // 10 ** (exponent - 3) / 1000:.3f}e{exponent}"


def in_bytes(count: int) -> str:
    """Writes a number of bytes.

    Examples:
      >>> in_bytes(3 * 2**30), in_bytes(700 * 2**20)
      ('3 GiB', '700 MiB')
    """
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def in_time(seconds: float) -> str:
    """Writes a time.

    Examples:
      >>> in_time(0.5), in_time(90.0), in_time(7200.0), in_time(1e6)
      ('0.5 s', '90 s', '2 h', '11.6 days')
    """
    if seconds < 120:
        return f"{seconds:.2g} s"
    for size, name in ((60, "min"), (3600, "h")):
        if seconds < 100 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds / 86400:.3g} days"


def constructor(value: Any) -> str:
    """Writes a frozen dataclass as the call that makes it, with the fields that differ from their defaults.

    Examples:
      >>> from nngp_dag.graph import Conv, Dense
      >>> constructor(Dense(activation="erf")), constructor(Conv(filter_shape=(3, 3)))
      ("Dense(activation='erf')", 'Conv(filter_shape=(3, 3))')
    """
    fields = [field for field in dataclasses.fields(value) if field.init]
    needed = {
        field.name: getattr(value, field.name)
        for field in fields
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    try:
        # What the constructor makes of the defaults, which may depend on the fields that it needs.
        plain = type(value)(**needed)
    except Exception:  # whatever the constructor of a caller's class does
        return shown(value, WIDTH)
    given = [
        f"{field.name}={getattr(value, field.name)!r}"
        for field in fields
        if field.name in needed or getattr(value, field.name) != getattr(plain, field.name)
    ]
    return f"{type(value).__name__}({', '.join(given)})"
