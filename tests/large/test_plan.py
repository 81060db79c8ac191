"""Plans: the chosen method and its reason, memory, and kernel entries."""

from typing import Any

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError
from nngp_dag.forms import in_time
from nngp_dag.large._plan import planned
from nngp_dag.large.mesh import Team

_NET = nd.Network("2_21_112")


def _plan(rows, features=784, **options: Any):
    return nd.plan(_NET, rows, features, calibrate=False, **options)


@pytest.mark.parametrize(
    ("rows", "options", "method", "reason"),
    [
        (5000, {}, "dense", "exact, and the kernel of 5,000 rows and its factor fit into 4 GiB"),
        (20_000, {}, "iterative", "exact, and the dense method takes 5.15 GiB, above the budget of 4 GiB"),
        (20_000, {"memory_budget": "8 GiB"}, "dense", "exact, and the kernel of 20,000 rows"),
        (150_000, {}, "landmarks", "over 100,000 rows"),
        (10**9, {}, "landmarks", "the exact method takes"),
        (5000, {"method": "landmarks"}, "landmarks", "asked for"),
    ],
)
def test_the_method_and_its_reason(rows, options, method, reason):
    found = _plan(rows, **options)
    assert found.method == method
    assert reason in found.reason
    assert found.cost.memory <= found.budget


def test_memory_and_entries_of_landmarks():
    found = _plan(1_000_000, landmarks=4096, memory_budget="6 GiB")
    assert found.candidates == 65_536
    assert found.cost.entries == 65_536 * 4097 + 4096 * 10**6
    assert found.cost.memory == sum(found.cost.parts.values()) < 3 * 2**30
    assert found.block == 4096
    # The sums do not grow with the rows.
    assert _plan(10**8, landmarks=4096, memory_budget="6 GiB").cost.memory == found.cost.memory
    small = _plan(1_000_000, memory_budget="1 GiB")
    assert small.landmarks < 4096
    assert small.cost.memory <= 2**30


def test_the_dense_memory_is_that_of_the_kernel_and_its_factor():
    more, less = (_plan(rows, method="dense", memory_budget="8 GiB").cost.memory for rows in (10_000, 5_000))
    assert more - less == pytest.approx(12 * (10_000**2 - 5_000**2) + 3 * 4 * 784 * 5000)


def test_covariances_of_pixels_count():
    options: dict[str, Any] = {"layer": nd.Conv(filter_shape=(3, 3)), "calibrate": False, "memory_budget": "4 GiB"}
    flat, average = (
        nd.plan("2", 10_000, (32, 32, 3), image_readout=readout, method="landmarks", landmarks=512, **options)
        for readout in ("flatten", "global-average")
    )
    # One row and one column take (14 + 3 L) P^2 numbers for all pairs of P = 1024 pixels, where L = 2 nodes live.
    assert average.cost.parts["pixels"] >= 20 * 1024**2 * 4 > flat.cost.parts["pixels"]
    assert average.cost.memory <= average.budget
    with pytest.raises(InputError, match="'landmarks', which takes"):
        nd.plan("2", 10_000, (256, 256, 3), image_readout="global-average", method="landmarks", **options)


def test_several_devices_share_the_dense_factor():
    team = Team()
    team.size = 4
    found = planned(_NET, 5000, (784,), 1, 0, "ntk", "auto", None, "4 GiB", team, np.dtype(np.float32))
    assert (found.method, found.cost.parts["factor in float64"]) == ("dense", 8 * 5000**2)
    # The kernel goes into the factor, and is computed once more for the residual.
    assert (found.cost.parts["kernel"], found.cost.entries) == (0, 5000**2)


@pytest.mark.slow
def test_rates_are_measured():
    found = nd.plan(_NET, 10_000, 64)
    assert found.seconds is not None
    assert found.rates is not None
    assert found.seconds > 0
    frame = found.to_frame()
    assert frame["method"].tolist() == ["dense", "iterative", "landmarks"]
    assert min(frame["seconds"].tolist()) > 0
    # The expected time is that of the counts and the rates.
    cost = found.costs["landmarks"]
    rates = found.rates
    expected = cost.entries / rates.entries + cost.products / rates.products + cost.algebra / rates.algebra
    assert frame["seconds"].tolist()[2] == pytest.approx(expected)
    assert "time=" in repr(found)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"features": 0}, "`features`"), ({"rows": 0}, "`rows`"), ({"dtype": "float16"}, "`dtype`")],
)
def test_refusals(options, message):
    given: dict[str, Any] = {"rows": 10, "features": 3, "calibrate": False, **options}
    with pytest.raises(InputError, match=message):
        nd.plan(_NET, **given)


def test_times_are_written_for_people():
    assert [in_time(s) for s in (3.0, 600.0, 7200.0, 1e7)] == ["3 s", "10 min", "2 h", "116 days"]
    assert np.isfinite(nd.plan(_NET, 10, 3, calibrate=False).cost.memory)
