"""What tests of traced models share."""

import jax
import pytest


@pytest.fixture
def promotion():
    """Lets models promote ranks, as users' models may."""
    with jax.numpy_rank_promotion("allow"):
        yield
