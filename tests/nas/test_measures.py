"""The measures of supernets: against Jacobians in float64, and by their contract."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiled import forget_programs, programs
from flax import nnx

from nngp_dag.errors import InputError
from nngp_dag.nas import get_space
from nngp_dag.nas.networks.cell_supernet import CellSupernet
from nngp_dag.nas.networks.layers import ConvNorm, convolved, normalized
from nngp_dag.nas.pruning import measures
from nngp_dag.nas.pruning.measures import Measures
from nngp_dag.nas.pruning.regions import patches
from nngp_dag.nas.scores.gradients import inner_products
from nngp_dag.nas.spaces.cells import CONVOLUTIONS, EDGES, OPERATIONS

EPSILON = 1e-5


class TinyNet(nnx.Module):
    """A network with one edge: the weighted sum of a convolution and a skip, batch norm, ReLU, mean, classifier."""

    def __init__(self, *, rngs):
        self.stem = ConvNorm(2, 3, rngs=rngs)
        self.edge = nnx.Param(jax.random.normal(rngs.params(), (3, 3, 3, 3)))
        self.scale = nnx.Param(jnp.linspace(0.5, 1.5, 3))
        self.shift = nnx.Param(jnp.linspace(-0.5, 0.5, 3))
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), (3, 4)))
        self.bias = nnx.Param(jnp.zeros(4))
        self.normalize, self.batch_norm = normalized, True

    def __call__(self, x, mixture):
        return self.observed(x, mixture)[0]

    def observed(self, x, mixture):
        x = self.stem(x, self.normalize)
        y = mixture[0, 0, 0] * convolved(nnx.relu(x), self.edge[...], 1) + mixture[0, 0, 1] * x
        y = self.normalize(y, self.scale[...], self.shift[...])
        features = nnx.relu(y).mean(axis=(1, 2))
        logits = jnp.dot(features, self.kernel[...], precision="highest") + self.bias[...][None]
        return logits, [mixture[0, 0, 0] * x, y]


def make(rngs):
    return TinyNet(rngs=rngs)


MIXTURES = np.array([[0.5, 0.5], [1, 0], [0, 1], [0, 0]], np.float32)[:, None, None]
X = np.random.default_rng(0).normal(size=(5, 4, 4, 2)).astype(np.float32)
SMALL = np.random.default_rng(1).normal(size=(2, 40, 1, 1, 2)).astype(np.float32)


def measured(**options):
    return Measures(make, make, X, SMALL, **options)


def plain_outputs(weights, x, mixture, frozen=None):
    """Returns the sum of the outputs in plain JAX, with given (frozen) statistics in order, or those of the batch."""
    seen = []

    def norm(value, scale, shift):
        mean, variance = value.mean((0, 1, 2)), value.var((0, 1, 2))
        if frozen is not None:
            mean, variance = frozen[len(seen)]
        seen.append((mean, variance))
        return (value - mean[None, None, None]) / jnp.sqrt(variance + EPSILON)[None, None, None] * scale[
            None, None, None
        ] + shift[None, None, None]

    def conv(value, kernel):
        return jax.lax.conv_general_dilated(value, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    value = norm(conv(x, weights["stem"]), weights["stem_scale"], weights["stem_shift"])
    value = mixture[0] * conv(jax.nn.relu(value), weights["edge"]) + mixture[1] * value
    value = jax.nn.relu(norm(value, weights["scale"], weights["shift"])).mean((1, 2))
    return (value @ weights["kernel"]).sum(1) + weights["bias"].sum(), seen


def expected_ntk(seed, mixture, gradients, batch_norm):
    net = make(rngs=nnx.Rngs(seed))
    with jax.enable_x64(True):
        wide = lambda value: jnp.asarray(np.asarray(value), jnp.float64)  # noqa: E731
        weights = {name: wide(getattr(net, name)[...]) for name in ("edge", "scale", "shift", "kernel", "bias")}
        weights |= {"stem": wide(net.stem.kernel[...]), "stem_scale": wide(net.stem.scale[...])}
        weights["stem_shift"] = wide(net.stem.shift[...])

        @jax.jit
        def jacobians(weights, x, mixture):
            frozen = plain_outputs(weights, x, mixture)[1] if batch_norm == "frozen" else None
            return jax.jacrev(lambda weights: plain_outputs(weights, x, mixture, frozen)[0])(weights)

        jacobian = jacobians(weights, wide(X), wide(mixture[0, 0]))
        if gradients == "reference":
            jacobian = {name: value for name, value in jacobian.items() if not name.endswith(("shift", "bias"))}
            assert len(jacobian) == 5
        rows = np.concatenate([np.asarray(value).reshape(len(X), -1) for value in jacobian.values()], axis=1)
    return rows @ rows.T


@pytest.mark.parametrize(
    ("gradients", "batch_norm"),
    [
        pytest.param("reference", "live", marks=pytest.mark.slow),
        ("all", "frozen"),
        pytest.param("all", "live", marks=pytest.mark.slow),
        pytest.param("reference", "frozen", marks=pytest.mark.slow),
    ],
)
def test_condition_numbers_are_those_of_jacobians_in_float64(gradients, batch_norm):
    found = measured(gradients=gradients, batch_norm=batch_norm).ntk_conditions(MIXTURES[:3], seed=3)
    assert found.reasons == ("", "", "")
    for value, mixture in zip(found.values, MIXTURES, strict=False):
        eigenvalues = np.linalg.eigvalsh(expected_ntk(3, mixture, gradients, batch_norm))
        assert value == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=1e-3)


@pytest.mark.slow
def test_a_candidate_is_measured_alike_alone_and_among_others():
    some = measured(batch_norm="frozen")
    together = some.ntk_conditions(MIXTURES[:3], seed=0).values
    alone = [some.ntk_conditions(MIXTURES[i : i + 1], seed=0).values[0] for i in range(3)]
    np.testing.assert_array_equal(together, alone)
    # Blocks of two candidates, of which the last is padded.
    pairs = measured(batch_norm="frozen", memory=2 * _bytes_of_one(some))
    np.testing.assert_allclose(pairs.ntk_conditions(MIXTURES[:3], seed=0).values, together, rtol=1e-3)
    before = programs(measures._ntks)
    pairs.ntk_conditions(MIXTURES[:1], seed=0)
    assert programs(measures._ntks) == before


def test_no_more_are_computed_side_by_side_than_a_search_asks_for(monkeypatch):
    sizes = []
    monkeypatch.setattr(measures, "_ntks", lambda *rest: (sizes.append(len(rest[-1])), [np.eye(5)[None]])[1])
    some = measured(batch_norm="frozen", memory=1 << 50)
    some.ntk_conditions(MIXTURES[:1], seed=0)
    assert sizes == [measures.AT_ONCE]


def _bytes_of_one(some):
    limited = measured(batch_norm=some.batch_norm, memory=1)
    limited.ntk_conditions(MIXTURES[:1], seed=0)
    [size] = limited.memo.values()
    return size


def test_all_candidates_rounds_and_seeds_share_one_compilation_per_measure():
    some = measured(batch_norm="frozen")
    forget_programs(measures._ntks)
    forget_programs(measures._patterns)
    conditions = [some.ntk_conditions(MIXTURES[:count], seed).values for count, seed in ((3, 0), (2, 0), (3, 1))]
    regions = [some.linear_regions(MIXTURES[:count], seed).values for count, seed in ((3, 0), (2, 0), (3, 1))]
    assert programs(measures._ntks) == programs(measures._patterns) == 1
    # Equal seeds give equal draws, and different seeds different ones.
    for found in (conditions, regions):
        np.testing.assert_array_equal(found[0][:2], found[1])
        assert (found[0] != found[2]).any()


def thin(rngs):
    """Returns a network of one cell with one channel, with scales other than 1 and shifts other than 0."""
    net = CellSupernet(channels=1, cells=1, stages=1, in_channels=1, stem=False, rngs=rngs)
    random = np.random.default_rng(0)
    for module in (net, *net.stages):
        module.scale[...] = jnp.asarray(random.uniform(0.5, 1.5, module.scale.shape), jnp.float32)
        module.shift[...] = jnp.asarray(random.normal(size=module.shift.shape), jnp.float32)
    return net


def plain_relu_inputs(net, x, mixture):
    """Returns the inputs of the live ReLUs of a thin net, (ReLUs, images, height, width), in plain NumPy."""
    stage, taps = net.stages[0], [(i, j) for i in range(3) for j in range(3)]
    conv1, conv3, scale, shift = (
        np.asarray(value[...], np.float64)[0] for value in (stage.conv1, stage.conv3, stage.scale, stage.shift)
    )

    def around(value):
        padded = np.pad(value, ((0, 0), (1, 1), (1, 1)), constant_values=np.nan)
        return np.stack([padded[:, i : i + x.shape[1], j : j + x.shape[2]] for i, j in taps])

    def norm(value, scale, shift):
        return (value - value.mean()) / np.sqrt(value.var() + EPSILON) * scale + shift

    leads = {3}
    for (source, target), weights in reversed(list(zip(EDGES, mixture, strict=True))):
        leads |= {source} if target in leads and weights[1:].any() else set()
    nodes, read = [x, *np.zeros((3, *x.shape))], []
    for edge, (source, target) in enumerate(EDGES):
        value = nodes[source]
        lit = np.maximum(value, 0)
        results = {
            "skip_connect": value,
            "avg_pool_3x3": np.nanmean(around(value), 0),
            "nor_conv_1x1": norm(lit * conv1[edge].item(), *scale[edge, 0], *shift[edge, 0]),
            "nor_conv_3x3": norm(
                np.nansum(around(lit) * conv3[edge].reshape(9, 1, 1, 1), 0), *scale[edge, 1], *shift[edge, 1]
            ),
        }
        for name, weight in zip(OPERATIONS, mixture[edge], strict=True):
            if weight and name != "none":
                nodes[target] = nodes[target] + weight * results[name]
                read += [value] if name in CONVOLUTIONS and target in leads else []
    return np.stack([*read, norm(nodes[3], net.scale[...].item(), net.shift[...].item())])


def test_regions_are_those_of_brute_force_on_a_plain_supernet():
    space, random = get_space("nasbench201"), np.random.default_rng(5)
    masks = np.stack([space.full_mask(), space.full_mask() & (random.random(space.shape) < 0.4)])
    # In the second mask, no path leads on from node 1, although a convolution writes it.
    masks[1, 0, [EDGES.index((1, 2)), EDGES.index((1, 3))]] = False
    masks[1, 0, EDGES.index((0, 1)), OPERATIONS.index("nor_conv_3x3")] = True
    mixtures = space.mixture(masks)
    small = random.normal(size=(2, 60, 2, 2, 1)).astype(np.float32)
    found = Measures(thin, thin, X, small).linear_regions(mixtures, seed=2)
    assert found.reasons == ("", "")
    net = thin(nnx.Rngs(2))
    for count, mixture in zip(found.values, mixtures[:, 0], strict=True):
        signs = [plain_relu_inputs(net, batch[..., 0].astype(np.float64), mixture) > 0 for batch in small]
        assert count == len({one[:, i].tobytes() for one in signs for i in range(60)})
    # Some patterns differ, and some are equal.
    assert 10 < found.values[1] < 110


def test_what_cannot_be_measured_is_flagged_not_raised():
    found = measured(batch_norm="frozen").ntk_conditions(np.stack([MIXTURES[0], np.full((1, 1, 2), np.nan)]), seed=0)
    np.testing.assert_array_equal([reason == "" for reason in found.reasons], np.isfinite(found.values))
    np.testing.assert_array_equal(np.isfinite(found.values), [True, False])
    assert "finite" in found.reasons[1]


@pytest.mark.slow
def test_reference_numbers_of_unsound_ntks_are_those_of_the_released_code():
    # With all last ReLUs off, no shift has a gradient, and all features are 0.
    dark = lambda rngs: _dark(make(rngs))  # noqa: E731
    found = Measures(dark, make, X, SMALL, "reference", "frozen").ntk_conditions(MIXTURES[:2], seed=0)
    # The reason is a note here, because the search uses the number.
    assert all("vanish" in reason for reason in found.reasons)
    np.testing.assert_array_equal(found.values, 1e5)
    sound = Measures(dark, make, X, SMALL, "all", "frozen").ntk_conditions(MIXTURES[:1], seed=0)
    assert "resolved λmin" in sound.reasons[0]
    assert np.isnan(sound.values[0])
    assert measures._reference_number(np.full((2, 2), np.inf)) == 1e5
    assert measures._reference_number(np.diag([1.0, -2.0, 4.0])) == -2.0


def _dark(net):
    """Returns a network whose last ReLUs are all off."""
    net.shift[...] = jnp.full(3, -100.0)
    return net


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradients": "weights"}, "`gradients` to be one of 'all', 'reference', got 'weights'"),
        ({"batch_norm": "train"}, "`batch_norm` to be one of 'frozen', 'live', got 'train'"),
        ({"images": X[:1]}, "`images` to hold at least 2"),
        ({"memory": -1}, "`memory` to be a number of bytes, got -1"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        Measures(**({"make_net": make, "make_thin": make, "images": X, "small": SMALL} | options))


def test_patches_are_squares_of_one_channel():
    images = np.arange(2 * 5 * 6 * 3, dtype=np.float32).reshape(2, 5, 6, 3)
    found = patches(images, 0, batches=2, size=500)
    corners = found[..., :1, :1, :]
    offsets = 18 * np.arange(3)[:, None] + 3 * np.arange(3)
    np.testing.assert_array_equal(found - corners, np.broadcast_to(offsets[..., None], found.shape).astype(np.float32))
    # All images, channels and positions occur: 2 x 3 x 3 x 4 corners.
    assert len(np.unique(corners)) == 72
    with pytest.raises(InputError, match="at least 7 x 7 pixels"):
        patches(images, 0, side=7)


@pytest.mark.nightly
def test_the_supernet_around_one_cell_has_the_published_ntk(published):
    net = functools.partial(_published_supernet, published)
    mixture = np.zeros((1, 1, 6, 5), np.float32)
    mixture[0, 0, np.arange(6), published.cell.codes] = 1
    some = Measures(net, net, np.asarray(published.x), SMALL, "reference", "live")
    found = some.ntk_conditions(mixture, seed=0)
    assert found.reasons == ("",)
    assert found.values[0] == pytest.approx(float(published.values["ntk_cond"]), rel=0.01)


def _published_supernet(published, rngs):
    """Returns the supernet whose live operations have the published weights."""
    net, macro = CellSupernet(channels=16, cells=1, rngs=rngs), published.net
    for name in ("stem", "reductions"):
        setattr(net, name, getattr(macro, name))
    for name in ("scale", "shift", "kernel", "bias"):
        getattr(net, name)[...] = getattr(macro, name)[...]
    for mine, theirs in zip(net.stages, macro.stages, strict=True):
        mine.conv1[...], mine.conv3[...] = theirs.conv1[...], theirs.conv3[...]
        for name in ("scale", "shift"):
            value = getattr(theirs, name)[...]
            getattr(mine, name)[...] = jnp.stack([value, value], axis=2)
    return net


@pytest.mark.parametrize("used", [(), (0, 4), tuple(range(6))])
def test_kernels_out_of_use_change_no_inner_product(used):
    gradients = np.zeros((4, 2, 3, 3, 1, 2, 5), np.float32)
    gradients.reshape(4, 6, -1)[:, used] = np.random.default_rng(2).normal(size=(4, len(used), 30))
    rows = gradients.reshape(4, -1).astype(np.float64)
    found = jax.jit(inner_products)(jnp.asarray(gradients))
    np.testing.assert_allclose(found, rows @ rows.T, rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        assert inner_products(jnp.asarray(gradients)).dtype == np.float32
    gradients[2, 1, 1, 0, 0, 1, 3] = np.nan
    assert np.isnan(np.asarray(inner_products(jnp.asarray(gradients)))[2]).all()
