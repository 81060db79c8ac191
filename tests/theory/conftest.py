"""A fixture that lets arguments of a wrong type reach the checks of the package."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch):
    """Turns the type checker of the tests off. Users do not have it, so that wrong types must raise an `InputError`."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
