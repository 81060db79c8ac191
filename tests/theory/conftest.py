"""Lets a wrong type through to the project's own checks."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch):
    """Turns the tests' type checker off: users do not have it, so wrong types must meet a `InputError`."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
