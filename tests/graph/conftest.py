"""Lets a wrong type through to the project's own checks."""

import jaxtyping
import numpy as np
import pytest


@pytest.fixture
def unchecked(monkeypatch):
    """Turns the tests' type checker off: users do not have it, so wrong types must meet a `GraphError`."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def drawn_inputs() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(3, 4))
