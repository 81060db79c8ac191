"""Distributions of parameters: moments, what initializers say, and what samples say."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from nngp_dag.errors import InputError
from nngp_dag.tracing import distributions
from nngp_dag.tracing.distributions import Distribution, agreement, check_sample, from_given, moments_of
from nngp_dag.tracing.initializers import read_leaves
from nngp_dag.tracing.quantiles import snapped

# Tests read attributes of results that may be None.
from_sample: Any = distributions.from_sample
INIT = jax.nn.initializers


def read(draw, seed=0) -> Any:
    key = jax.random.key(seed)
    (reading,) = read_leaves(jax.make_jaxpr(draw)(key), [key])
    return reading


def cut_moments(low, high):
    """Mean, standard deviation and excess kurtosis of a standard normal variable between two cuts, by quadrature."""
    mass = integrate.quad(stats.norm.pdf, low, high)[0]

    def moment(power, center):
        return integrate.quad(lambda t: (t - center) ** power * stats.norm.pdf(t), low, high)[0] / mass

    mean = moment(1, 0.0)
    return mean, math.sqrt(moment(2, mean)), moment(4, mean) / moment(2, mean) ** 2 - 3


CUT = cut_moments(-2, 2)
WIDE_CUT = cut_moments(-3, 3)
ONE_SIDED = cut_moments(0, 1.5)
# name: (initializer of a key, shape, kind, mean, std, excess kurtosis)
CASES = {
    "lecun": (INIT.lecun_normal(), (3, 8), "truncated normal", 0, 3**-0.5, CUT[2]),
    "he": (INIT.he_normal(), (3, 3, 5, 8), "truncated normal", 0, (2 / 45) ** 0.5, CUT[2]),
    "glorot": (INIT.glorot_normal(), (3, 8), "truncated normal", 0, (2 / 11) ** 0.5, CUT[2]),
    "glorot uniform": (INIT.glorot_uniform(), (3, 8), "uniform", 0, (2 / 11) ** 0.5, -1.2),
    "he uniform": (INIT.he_uniform(), (7, 8), "uniform", 0, (2 / 7) ** 0.5, -1.2),
    "normal": (INIT.normal(0.0371), (3, 8), "normal", 0, 0.0371, 0),
    "variance": (INIT.variance_scaling(0.37, "fan_out", "normal"), (3, 8), "normal", 0, (0.37 / 8) ** 0.5, 0),
    "truncated": (INIT.truncated_normal(0.02), (3, 8), "truncated normal", 0, 0.02 * CUT[1], CUT[2]),
    "cut at 3": (INIT.truncated_normal(0.5, lower=-3, upper=3), (4, 4), "other", 0, 0.5 * WIDE_CUT[1], WIDE_CUT[2]),
    "one side": (
        INIT.truncated_normal(1.0, lower=0, upper=1.5),
        (4, 4),
        "other",
        ONE_SIDED[0],
        ONE_SIDED[1],
        ONE_SIDED[2],
    ),
    "uniform": (INIT.uniform(0.3), (3, 8), "uniform", 0.15, 0.3 / 12**0.5, -1.2),
    "orthogonal": (INIT.orthogonal(2.0), (3, 8), "orthogonal", 0, 2 / 8**0.5, -0.6),
    "zeros": (INIT.zeros, (3,), "constant", 0, 0, 0),
    "constant": (INIT.constant(0.1), (3,), "constant", 0.1, 0, 0),
    "identity": (lambda key, shape: jnp.eye(*shape), (3, 3), "fixed", 1 / 3, 2**0.5 / 3, 0),
    # An elementwise function of a uniform variable: cubes, with moments 1/7 and 1/13.
    "cube": (lambda key, shape: jax.random.uniform(key, shape, minval=-1) ** 3, (5,), "other", 0, 7**-0.5, 49 / 13 - 3),
    "signs": (lambda key, shape: jax.random.rademacher(key, shape, float), (5,), "other", 0, 1, -2),
    # Layout of any kind leaves entries independent.
    "moved": (
        lambda key, shape: INIT.normal(0.5)(key, (8, 3)).T[:, ::-1].reshape(shape),
        (6, 4),
        "normal",
        0,
        0.5,
        0,
    ),
    "joined": (
        lambda key, shape: jnp.concatenate([INIT.normal(0.5)(one, (3, 4)) for one in jax.random.split(key)], 1),
        (3, 8),
        "normal",
        0,
        0.5,
        0,
    ),
    "stacked": (
        lambda key, shape: jax.vmap(lambda one: INIT.lecun_normal()(one, shape[1:]))(jax.random.split(key, shape[0])),
        (4, 3, 8),
        "truncated normal",
        0,
        3**-0.5,
        CUT[2],
    ),
    "looped": (
        lambda key, shape: jax.lax.map(lambda one: INIT.lecun_normal()(one, shape[1:]), jax.random.split(key, 4)),
        (4, 3, 8),
        "truncated normal",
        0,
        3**-0.5,
        CUT[2],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_initializers_are_read_exactly(name):
    draw, shape, kind, mean, std, kurtosis = CASES[name]
    found = read(lambda key: draw(key, shape)).distribution
    assert found is not None
    assert found.kind == kind
    np.testing.assert_allclose([found.mean, found.std], [mean, std], rtol=1e-7, atol=1e-12)
    assert found.excess_kurtosis == pytest.approx(kurtosis, abs=1e-5)


@pytest.mark.sample(9, slow=9)
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] not in ("constant", "fixed")])
def test_initializers_agree_with_large_samples(name):
    # The second derivation: moments of many numbers, with their own standard errors.
    draw, shape, *_ = CASES[name]
    found = read(lambda key: draw(key, shape)).distribution
    keys = jax.random.split(jax.random.key(7), 20000 // math.prod(shape) + 1)
    sample = np.asarray(jax.vmap(lambda key: draw(key, shape))(keys), np.float64).ravel()
    scaled = (sample - found.mean) / found.std
    error = math.sqrt((max(found.excess_kurtosis, -2) + 2) / sample.size) + 1e-6
    assert abs(scaled.mean()) < 5 / math.sqrt(sample.size)
    assert abs((scaled**2).mean() - 1) < 5 * error
    # The fourth moment; its standard error is estimated from the sample.
    fourth = scaled**4
    assert abs(fourth.mean() - 3 - found.excess_kurtosis) < 5 * fourth.std() / math.sqrt(sample.size) + 1e-5
    # A factor of 1.05 would fail.
    assert 5 * error < 1.05**2 - 1


UNREADABLE = {
    "one number many times": (lambda key: jax.random.normal(key, (1, 3)) * jnp.ones((8, 1)), "same random number"),
    "one key twice": (
        lambda key: jnp.stack([jax.random.normal(key, (3,)), jax.random.normal(key, (3,))]),
        "same random number",
    ),
    "a sum of two": (
        lambda key: jax.random.normal(key, (3,)) + jax.random.normal(jax.random.fold_in(key, 1), (3,)),
        "several random numbers",
    ),
    "normalized": (lambda key: (lambda w: w / jnp.linalg.norm(w))(jax.random.normal(key, (8, 3))), "`reduce_sum`"),
    "a mask": (lambda key: jax.random.normal(key, (3, 3)) * jnp.tri(3), "different distributions"),
    "heavy tails": (lambda key: jax.random.exponential(key, (3,)), "none that is known"),
    "delta": (lambda key: INIT.delta_orthogonal()(key, (3, 3, 4, 8)), "orthogonal matrix is changed by `scatter`"),
    "a product with orthogonal": (
        lambda key: INIT.orthogonal()(key, (4, 4)) @ INIT.orthogonal()(jax.random.fold_in(key, 1), (4, 4)),
        "orthogonal matrix is changed",
    ),
    "the key": (lambda key: jax.random.key_data(key).astype(float), "the key itself"),
    "a random key": (
        lambda key: jax.random.normal(jax.random.key(jax.random.bits(key, (), jnp.uint32)), (3,)),
        "computed together|random itself|known",
    ),
    "padding": (lambda key: jnp.pad(jax.random.normal(key, (3,)), 1), "computed together|joined"),
    "two scales": (
        lambda key: jnp.concatenate([jax.random.normal(key, (3,)), 2 * jax.random.normal(jax.random.key(3), (3,))]),
        "different distributions",
    ),
    "a sorted sample": (lambda key: jnp.sort(jax.random.normal(key, (5,))), "computed together"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_not_independent_and_elementwise_is_not_read(name):
    draw, reason = UNREADABLE[name]
    found = read(draw)
    assert found.distribution is None
    assert any(part in found.reason for part in reason.split("|")), found.reason


def test_half_precision_is_read_as_it_is_drawn():
    # 16 random bits make floats of 7 or 8 digits, whose mean is not 0 and whose variance is smaller than asked for.
    found = read(lambda key: INIT.lecun_normal()(key, (3, 8), jnp.bfloat16)).distribution
    keys = jax.random.split(jax.random.key(1), 8000)
    sample = np.asarray(jax.vmap(lambda key: INIT.lecun_normal()(key, (3, 8), jnp.bfloat16))(keys), np.float64)
    assert abs(sample.mean() - found.mean) < 5 * found.std / math.sqrt(sample.size)
    assert abs(sample.var() / found.std**2 - 1) < 5 * math.sqrt((found.excess_kurtosis + 2) / sample.size)


def test_double_precision_is_read_alike():
    with jax.enable_x64(True):
        found = read(lambda key: INIT.he_normal()(key, (5, 8), jnp.float64)).distribution
    assert found.kind == "truncated normal"
    assert found.std == pytest.approx(math.sqrt(0.4), rel=1e-12)


def test_numbers_tell_which_leaves_share_a_key():
    def draw(key):
        first, second = jax.random.split(key)
        whole = jax.random.normal(first, (4, 4))
        return whole[:2], whole[2:], jax.random.uniform(second, (3,)), jax.random.normal(first, (2,))

    key = jax.random.key(0)
    numbers: Any = [reading.numbers for reading in read_leaves(jax.make_jaxpr(draw)(key), [key])]
    one, two, three, four = numbers
    assert not np.intersect1d(one, two).size
    assert not np.intersect1d(one, three).size
    assert np.intersect1d(one, four).size == 2


def test_only_what_is_needed_is_computed():
    # The forward pass that a linen init runs has no rule here, and needs none.
    def draw(key):
        weights = jax.random.normal(key, (3, 3))
        jnp.linalg.svd(weights)
        return weights

    assert read(draw).distribution.kind == "normal"


@pytest.mark.parametrize("std", [0.02, 1 / 3, 0.125, (2 / 7) ** 0.5, (1 / 3 / 17) ** 0.5, 1.0, 0.0371])
def test_rounding_to_float32_is_undone(std):
    rounded = float(np.float32(std) * np.float32(1 + 1e-7))
    # The shape offers 7 and 17 as numbers of inputs and outputs.
    assert snapped(rounded, (7, 17)) == pytest.approx(std, rel=1e-9)
    # Other numbers stay.
    assert abs(snapped(std * math.pi, (7, 17)) / (std * math.pi) - 1) < 2e-7


@pytest.mark.parametrize("kind", ["normal", "truncated normal", "uniform"])
def test_samples_of_all_sizes_agree_with_their_distribution(kind):
    rng = np.random.default_rng(0)
    draws = {
        "normal": lambda size: rng.normal(size=size),
        "truncated normal": lambda size: stats.truncnorm.rvs(-2, 2, size=size, random_state=rng) / CUT[1],
        "uniform": lambda size: rng.uniform(-(3**0.5), 3**0.5, size=size),
    }
    distribution = Distribution(kind, 0.0, 0.3, moments_of(kind))
    for size in (1, 2, 3, 10, 100, 1000):
        for _ in range(300):
            # 1800 tests at five sigma: one false alarm in a thousand runs.
            sample = 0.3 * draws[kind](size)
            assert agreement(distribution, sample)[0], sample
    large = 0.3 * draws[kind](40_000)
    assert abs(agreement(distribution, large)[1]) < 5
    for factor in (1.05, 1 / 1.05):
        assert not agreement(distribution, factor * large)[0]
    assert not agreement(distribution, large + 0.02)[0]


def test_the_range_of_bounded_distributions_is_checked():
    sample = np.random.default_rng(0).normal(size=300)
    sample /= np.sqrt(np.mean(sample**2))
    assert agreement(Distribution("normal", 0.0, 1.0), sample)[0]
    assert not agreement(Distribution("uniform", 0.0, 1.0, -1.2), sample)[0]
    assert not agreement(Distribution("truncated normal", 0.0, 1.0, CUT[2]), sample)[0]


@pytest.mark.parametrize("columns", [1, 30, 300])
def test_structure_that_training_leaves_is_refused(columns):
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(300, columns)) / 300**0.5
    distribution = Distribution("normal", 0.0, 300**-0.5)
    check_sample("w", distribution, weights)
    if columns == 300:
        # One step of training along one direction: the variance grows by 1.6 %, within its sampling error of 5 * 0.5 %.
        trained = weights + 2.2 * np.outer(rng.normal(size=300), rng.normal(size=columns)) / 300
        assert agreement(distribution, trained)[0]
        with pytest.raises(InputError, match=r"independent entries .* largest singular value"):
            check_sample("w", distribution, trained)


def test_refusal_of_a_sample_names_the_leaf_and_both_deviations():
    sample = np.random.default_rng(0).normal(size=(40, 50))
    with pytest.raises(
        InputError, match=r"`a.w` to be a fresh draw \(normal, std 0.5; given\).* deviation 1 and mean -0"
    ):
        check_sample("a.w", Distribution("normal", 0.0, 0.5), sample)
    with pytest.raises(InputError, match="constant 1"):
        check_sample("scale", Distribution("constant", 1.0, 0.0), np.array([1.0, 1.01]))
    sample[0, 0] = np.nan
    with pytest.raises(InputError, match="fresh draw"):
        check_sample("w", Distribution("normal", 0.0, 1.0), sample)


SCHEMES = {
    "LeCun": (INIT.lecun_normal(), (30, 70)),
    "He": (INIT.he_normal(), (30, 70)),
    "Glorot": (INIT.glorot_uniform(), (30, 70)),
    "LeCun or Glorot": (INIT.lecun_normal(), (60, 60)),
    "standard normal": (INIT.normal(1.0), (60, 60)),
    "convolution": (INIT.he_normal(), (3, 3, 16, 40)),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_samples_of_standard_schemes_are_known(name):
    draw, shape = SCHEMES[name]
    found, reason = from_sample("w", np.asarray(draw(jax.random.key(3), shape)))
    expected = read(lambda key: draw(key, shape)).distribution
    assert found is not None, reason
    assert found.kind == expected.kind
    assert found.std == pytest.approx(expected.std, rel=1e-6)
    assert name == "convolution" or f"agrees with {name} alone" in found.source


def test_samples_that_say_too_little_are_not_known():
    rng = np.random.default_rng(0)
    found, reason = from_sample("w", rng.normal(size=(50, 1)) / 50**0.5)
    assert found is None
    assert "LeCun" in reason
    assert "He" in reason
    for sample, why in (
        (0.02 * rng.normal(size=(60, 60)), "no standard scheme"),
        (rng.normal(size=20), "too few numbers to tell their scheme (the best guess is standard normal)"),
        (np.array([0.3]), "the single number"),
        (np.array([1.0, np.nan]), "not finite"),
        (np.zeros((0, 3)), "no numbers"),
    ):
        found, reason = from_sample("w", sample)
        assert found is None
        assert why in reason


@pytest.mark.parametrize("value", [0.0, 1.0, 0.25])
def test_equal_entries_are_a_constant(value):
    found, _ = from_sample("b", np.full(4, value, np.float32))
    assert (found.kind, found.mean, found.std) == ("constant", value, 0.0)
    # A single number is one only where no distribution would give it.
    assert (from_sample("b", np.full(1, value, np.float32))[0] is None) == (value == 0.25)


def test_biases_of_equinox_are_known_by_their_matrix():
    sample = np.random.default_rng(0).uniform(-1, 1, size=5) / 8
    found, _ = from_sample("b", sample, output_first=True, fan_in=64)
    assert found.kind == "uniform"
    assert found.std == pytest.approx((1 / 192) ** 0.5)
    assert from_sample("b", 3 * sample, output_first=True, fan_in=64)[0] is None
    # A single number, too: equinox draws it in one way.
    one, _ = from_sample("b", sample[:1], output_first=True, fan_in=64)
    assert (one.kind, one.std) == (found.kind, found.std)
    assert from_sample("b", np.array([0.2]), output_first=True, fan_in=64)[0] is None


def test_the_likelihood_tells_schemes_of_near_variances_apart():
    # He's and LeCun's standard deviations differ by 41 %; 150 numbers resolve 29 % by variance at five sigma.
    rng = np.random.default_rng(0)
    right = wrong = 0
    for _ in range(200):
        found, _ = from_sample("w", rng.normal(size=(50, 5)) / 50**0.5)
        right += found is not None and math.isclose(found.std, 50**-0.5)
        wrong += found is not None and not math.isclose(found.std, 50**-0.5)
    assert wrong == 0
    assert right > 100


@pytest.mark.parametrize("kind", ["normal", "truncated normal", "uniform"])
def test_the_likelihoods_are_those_of_densities(kind):
    sample = np.random.default_rng(0).uniform(-0.5, 0.5, size=20)
    std = 0.4
    density: Any = {
        "normal": stats.norm(scale=std),
        "truncated normal": stats.truncnorm(-2, 2, scale=std / CUT[1]),
        "uniform": stats.uniform(-std * 3**0.5, 2 * std * 3**0.5),
    }[kind]
    found = distributions._likelihood(Distribution(kind, 0.0, std, moments_of(kind)), sample)
    assert found == pytest.approx(density.logpdf(sample).sum(), rel=1e-10)


def test_given_distributions():
    assert from_given("w", ("uniform", 0.5), (3, 2)) == Distribution("uniform", 0.0, 0.5, -1.2, "given")
    assert from_given("w", ("truncated_normal", 0.5), (3, 2)).kind == "truncated normal"
    assert from_given("w", ["constant", 2], (3, 2)) == Distribution("constant", 2.0, 0.0)
    assert from_given("w", "fixed", (3, 2)).random is False
    assert from_given("w", ("orthogonal", 0.5), (4, 2)).excess_kurtosis == -1.0
    one = Distribution("other", 0.0, 1.0, 3.0)
    assert from_given("w", one, (3,)) is one
    for value, message in (
        (0.5, "to be a distribution, got 0.5; pass a pair"),
        (("normal",), "to be a distribution"),
        (("normal", "a"), "to be a distribution"),
        (("nromal", 1.0), "did you mean 'normal'"),
        (("normal", -1.0), "positive, got -1.0"),
        (("normal", math.inf), "positive"),
    ):
        with pytest.raises(InputError, match=message):
            from_given("w", value, (3, 2))


def test_impossible_moments_are_refused():
    with pytest.raises(InputError, match="standard deviation that is not negative"):
        Distribution("normal", 0.0, -1.0)
    with pytest.raises(InputError, match="finite mean"):
        Distribution("normal", math.nan, 1.0)
    with pytest.raises(InputError, match="at least -2"):
        Distribution("other", 0.0, 1.0, -3.0)


def test_orthogonal_samples_have_an_exact_sum_of_squares():
    sample = np.asarray(INIT.orthogonal()(jax.random.key(0), (8, 20)))
    right = Distribution("orthogonal", 0.0, 20**-0.5, moments_of("orthogonal", (8, 20)))
    check_sample("w", right, sample)
    with pytest.raises(InputError, match="fresh draw"):
        check_sample("w", right, 1.01 * sample)


def random_program(seed):
    """A random initializer of a vector: draws, elementwise functions, layouts, joins."""
    rng = np.random.default_rng(seed)
    draws = [
        lambda key, shape: jax.random.normal(key, shape),
        lambda key, shape: jax.random.uniform(key, shape, minval=-1),
        lambda key, shape: jax.random.truncated_normal(key, -2, 2, shape),
    ]
    steps = [
        lambda v, key: 0.7 * v,
        lambda v, key: v + 0.25,
        lambda v, key: v * v,
        lambda v, key: jnp.clip(v, -0.5, 2.0),
        lambda v, key: jnp.sin(v) / 2,
        lambda v, key: v[::-1],
        lambda v, key: v.reshape(2, -1).T.ravel(),
        lambda v, key: jnp.roll(v, 1),
        lambda v, key: v[1:5],
        lambda v, key: jnp.concatenate([v, v[:2]]),
        lambda v, key: jnp.concatenate([v, draw(key, v.shape)]),
        lambda v, key: v + draw(key, v.shape),
        lambda v, key: v - v[::-1],
        lambda v, key: jnp.pad(v, (0, 1)),
        lambda v, key: v[jnp.array([0, 2, 1, 3])],
        lambda v, key: v[jnp.array([0, 0, 1, 3])],
        lambda v, key: jnp.where(jnp.arange(v.size) < 2, v, 2 * v),
        lambda v, key: v * jnp.ones(v.size),
        lambda v, key: jnp.repeat(v, 2)[:6],
        lambda v, key: jax.lax.map(lambda one: 2 * one, v),
    ]
    draw = draws[rng.integers(len(draws))]
    chosen = [steps[i] for i in rng.integers(len(steps), size=rng.integers(1, 4))]

    def program(key):
        keys = jax.random.split(key, len(chosen) + 1)
        # Now and then a key is used twice.
        keys = keys.at[1].set(keys[0]) if rng_reuse else keys
        value = draw(keys[0], (6,))
        for step, one in zip(chosen, keys[1:], strict=True):
            if value.size < 5 or value.size % 2:
                value = jnp.concatenate([value, draw(jax.random.fold_in(one, 1), (8 - value.size % 8,))])
            value = step(value, one)
        return value

    rng_reuse = rng.random() < 0.2
    return program


@pytest.mark.sample(10, slow=24)
@pytest.mark.parametrize("seed", range(80))
def test_what_is_read_of_random_programs_holds(seed):
    program = random_program(seed)
    found = read(program).distribution
    if found is None:
        return
    sample = np.asarray(jax.jit(jax.vmap(program))(jax.random.split(jax.random.key(99), 20_000)), np.float64)
    count = len(sample)
    if not found.random:
        np.testing.assert_allclose(sample, found.mean, rtol=1e-6)
        return
    scaled = (sample - found.mean) / found.std
    # Each entry by itself, so that none may differ from the others.
    assert np.abs(scaled.mean(0)).max() < 6 / math.sqrt(count)
    assert np.abs((scaled**2).mean(0) - 1).max() < 6 * math.sqrt((found.excess_kurtosis + 2) / count) + 1e-6
    # Independent entries are uncorrelated, and so are their squares.
    for one in (scaled, scaled**2):
        correlations = np.corrcoef(one.T) - np.eye(one.shape[1])
        assert np.nan_to_num(np.abs(correlations)).max() < 6 / math.sqrt(count)


def test_enough_random_programs_are_read():
    readable = [read(random_program(seed)).distribution is not None for seed in range(40)]
    assert 8 <= sum(readable) <= 32
