"""Kernels of all models of the zoo against Monte Carlo, `nngp_dag.kernel` and neural-tangents."""

import dataclasses

import jax
import numpy as np
import pytest
import zoo_images
import zoo_modules
import zoo_plain
import zoo_sequences
from zoo import CASES, Agreement, Case, agreement, dag_kernels, exact, plain_net, samples

del zoo_images, zoo_modules, zoo_plain, zoo_sequences  # imported so that they register their models

# A deviation beyond this many standard errors fails.
SIGMA = 3.0
# The largest standard error. A kernel that is off by 5 % deviates by more than three of them.
MOST_ERROR = 0.015
DEFAULT = ("rms_norm_residual",)
SLOW = ("mlp_tied",)


def marked():
    def marks(name):
        return () if name in DEFAULT else pytest.mark.slow if name in SLOW else pytest.mark.nightly

    return [pytest.param(case, id=name, marks=marks(name)) for name, case in CASES.items()]


def with_oracle(name):
    """Returns the models with an oracle; the first one is in the default tier."""
    cases = [case for case in CASES.values() if getattr(case, name) is not None]
    return [pytest.param(case, id=case.name, marks=pytest.mark.slow if i else ()) for i, case in enumerate(cases)]


def measured(case: Case, kernels, draws: int, seed: int) -> list[Agreement]:
    """Returns how each kernel agrees with fresh draws."""
    widths = case.width, 2 * case.width
    drawn = [samples(case, width, draws, seed + i) for i, width in enumerate(widths)]
    return [
        agreement([(found[i], expected[i]) for found, expected in zip(drawn, kernels, strict=True)])
        for i, kernel in enumerate(("nngp", "ntk"))
        if kernel in case.kernels
    ]


def assert_agrees(case: Case, kernels) -> None:
    """Asserts agreement within three standard errors, which an error of 5 % would fail.

    The zoo has a thousand entries of kernels, a few of which deviate by three standard errors by chance. Those get four
    times as many fresh draws, and have to agree then. An error of 5 % fails both.
    """
    found = measured(case, kernels, case.draws, seed=0)
    assert max(one.standard_error.max() for one in found) < MOST_ERROR, "too few draws to see a factor of 1.05"
    if max(one.sigma for one in found) > SIGMA:
        found = measured(case, kernels, 4 * case.draws, seed=2)
    worst = max(found, key=lambda one: one.sigma)
    assert worst.sigma < SIGMA, f"off by {worst.sigma:.2f} standard errors of {worst.standard_error.max():.4f}"


@pytest.fixture(autouse=True)
def promotion():
    """Lets models promote ranks, as they may."""
    with jax.numpy_rank_promotion("allow"):
        yield


# Some models neglect the tails of their first weights, or have numerical expectations, and say so; both are small.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:expectations of:nngp_dag.errors.NumericalWarning")
@pytest.mark.filterwarnings("ignore:values at:nngp_dag.errors.NumericalWarning")
@pytest.mark.parametrize("case", marked())
def test_monte_carlo(case):
    assert_agrees(case, [exact(case, width) for width in (case.width, 2 * case.width)])


@pytest.mark.parametrize("case", with_oracle("dag"))
def test_equals_the_kernel_of_a_dag(case):
    for found, expected in zip(exact(case, case.width, parameterization="ntk"), dag_kernels(case), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("case", with_oracle("stax"))
def test_equals_neural_tangents(case):
    _, _, kernel_fn = case.stax()
    with jax.enable_x64(True):
        expected = [np.asarray(kernel_fn(case.x, None, name)) for name in ("nngp", "ntk")]
    for found, wanted in zip(exact(case, case.width, parameterization="ntk"), expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


@pytest.mark.nightly
@pytest.mark.parametrize("factor", [1.05, 1 / 1.05])
def test_an_error_of_five_per_cent_fails(factor):
    case = CASES["deep_equilibrium"]
    kernels = [exact(case, width) for width in (case.width, 2 * case.width)]
    for which in (0, 1):
        wrong = [tuple(k * (factor if i == which else 1) for i, k in enumerate(pair)) for pair in kernels]
        with pytest.raises(AssertionError, match="off by"):
            assert_agrees(case, wrong)


@pytest.mark.nightly
def test_weights_that_are_not_tied_are_another_kernel():
    """The check tells a tied network from the one with weights of its own for each step."""
    case = CASES["rnn_scanned_pooled"]
    kernels = [exact(case, width) for width in (case.width, 2 * case.width)]

    def untied(p, x):
        hs = []
        h = np.zeros((len(x), len(p["v"])))
        for t in range(x.shape[1]):
            h = jax.nn.relu(x[:, t] @ p[f"u{t}"] + h @ p[f"w{t}"] + p[f"b{t}"])
            hs.append(h)
        return sum(hs) / len(hs) @ p["v"]

    def table(n):
        of_step = {"u": (5, n), "w": (n, n), "b": ((n,), 0.3)}
        return {f"{name}{t}": one for t in range(4) for name, one in of_step.items()} | {"v": (n, 1)}

    other = dataclasses.replace(case, net=lambda n: plain_net(table(n), untied))
    wrong = [exact(other, width) for width in (case.width, 2 * case.width)]
    assert np.abs(wrong[0][0] / kernels[0][0] - 1).max() > 0.1
    with pytest.raises(AssertionError, match="off by"):
        assert_agrees(case, wrong)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["mlp_tied", "gated_by_split"])
def test_single_networks_converge_with_the_root_of_the_width(name):
    """The deviation of one network falls as width^-1/2; that of the mean over networks faster."""
    case = CASES[name]
    widths = np.array([32, 64, 128, 256])
    spread = []
    for width in widths:
        kernels, drawn = exact(case, int(width)), samples(case, int(width), 256, seed=7)
        spread.append(
            [
                np.sqrt(np.mean([np.sum((k - expected) ** 2) / np.sum(expected**2) for k in found]))
                for found, expected in zip(drawn, kernels, strict=True)
            ]
        )
    for errors in np.transpose(spread):
        slope = np.polyfit(np.log(widths), np.log(errors), 1)[0]
        assert -1.0 < slope < -0.4, slope
