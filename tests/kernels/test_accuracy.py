"""float32 against float64 on the same inputs: far and close pairs, parallel and opposite ones, extreme norms, zeros."""

import numpy as np
import pytest

import nngp_dag as nd

ANGLES = (0.011, 0.03, 0.1, 0.3, 1.0, 2.0, 3.0)
GRAPHS = {"chain": nd.zoo.chain(3), "DAG#3": nd.zoo.named("DAG#3"), "ladder": nd.zoo.ladder(9)}


def at_angles(dim, angles=ANGLES, norms=(1.0, 0.3, 3.0)):
    """Returns random inputs, and inputs at given angles to the first of them, with various norms."""
    rng = np.random.default_rng(dim)
    base = rng.normal(size=(5, dim))
    length = np.linalg.norm(base[0])
    first = base[0] / length
    other = base[1] - first * (first @ base[1])
    other /= np.linalg.norm(other)
    near = [(np.cos(a) * first + np.sin(a) * other) * length * norms[i % len(norms)] for i, a in enumerate(angles)]
    return np.concatenate([base, near]).astype(np.float32)


def pair_angles(x):
    unit = x.astype(np.float64) / np.linalg.norm(x.astype(np.float64), axis=1, keepdims=True)
    apart = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    return 2 * np.arctan2(apart, np.linalg.norm(unit[:, None] + unit[None], axis=2))


def errors(dag, x, **options):
    """Returns |float32 - float64|, |float64| and the scale sqrt(K_ii K_jj), for NNGP and NTK."""
    single, double = nd.kernel(dag, x, **options), nd.kernel(dag, x.astype(np.float64), **options)
    for get in ("nngp", "ntk"):
        value, exact = np.asarray(getattr(single, get)), np.asarray(getattr(double, get))
        assert value.dtype == np.float32
        assert exact.dtype == np.float64
        assert np.isfinite(value).all()
        yield np.abs(value - exact), np.abs(exact), np.sqrt(np.outer(np.diag(exact), np.diag(exact)))


@pytest.mark.parametrize(
    ("graph", "order", "dim"),
    [
        ("chain", "linear-act", 784),
        ("DAG#3", "act-linear", 784),
        pytest.param("ladder", "linear-act", 3, marks=pytest.mark.slow),
    ],
)
def test_relu_entries_are_within_2e_6_where_the_angle_exceeds_a_hundredth(graph, order, dim):
    x = np.concatenate([np.float32(norm) * at_angles(dim) for norm in (1e-6, 1.0, 1e6)])
    far = (pair_angles(x) > 0.01) | np.eye(len(x), dtype=bool)
    for error, exact, _ in errors(GRAPHS[graph], x, order=order):
        assert (error[far] < 2e-6 * exact[far]).all(), (error[far] / exact[far]).max()


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("activation", ["erf", "abs", "leaky_relu", "gelu", "sin"])
def test_other_activations_are_within_2e_6_of_the_diagonal(activation):
    # Kernels of odd functions change their sign. Near 0 an entry has the rounding error of the product of the inputs.
    for error, _, scale in errors(GRAPHS["DAG#3"], at_angles(7), activation=activation):
        assert (error < 2e-6 * scale).all(), (error / scale).max()


@pytest.mark.sample(0, slow=1)
@pytest.mark.parametrize("activation", ["relu", "erf", "gelu"])
def test_norms_from_1e_minus_6_to_1e6_side_by_side(activation):
    x = at_angles(7) * np.float32(10.0) ** np.arange(-6, 6)[:, None]
    for error, _, scale in errors(GRAPHS["DAG#3"], x.astype(np.float32), activation=activation, b_std=0.1):
        assert (error < 2e-5 * scale).all(), (error / scale).max()


@pytest.mark.slow
def test_closer_pairs_are_as_good_as_the_rounding_of_the_inputs():
    # The derivative of the NTK with respect to the angle is at most H / pi times its scale.
    x = at_angles(784, angles=(1e-3, 1e-4, 1e-5, 1e-6))
    for error, _, scale in errors(GRAPHS["DAG#3"], x):
        assert (error < 2e-6 * scale).all(), (error / scale).max()


@pytest.mark.sample(1, slow=0)
@pytest.mark.parametrize("activation", ["relu", "erf", "abs", "gelu"])
def test_parallel_and_opposite_inputs(activation):
    base = at_angles(20)[0]
    x = np.stack([base, 2 * base, 3e-3 * base, -base, -2 * base, base * np.float32(1 / 3), np.zeros_like(base)])
    angles = {"parallel": [0, 1, 2, 5], "opposite": [3, 4]}
    for error, _, scale in errors(GRAPHS["DAG#3"], x, activation=activation):
        same = np.ix_(angles["parallel"], angles["parallel"])
        assert (error[same] < 2e-6 * scale[same]).all(), (error[same] / scale[same]).max()
        # The angle of opposite inputs comes from a correlation near -1, and has half of its digits only.
        apart = np.ix_(angles["parallel"], angles["opposite"])
        assert (error[apart] < 5e-4 * scale[apart]).all(), (error[apart] / scale[apart]).max()


@pytest.mark.nightly
def test_zero_inputs_with_biases_have_the_kernel_of_the_biases():
    x = np.zeros((3, 5), np.float32)
    x[0] = 1
    for activation in ("relu", "erf", "gelu", "cos"):
        k = nd.kernel(nd.Dag.from_code("2_12"), x, activation=activation, b_std=0.5)
        assert np.isfinite(np.asarray(k.ntk)).all()
        assert np.asarray(k.nngp)[1, 1] > 0
        np.testing.assert_array_equal(np.asarray(k.ntk)[1], np.asarray(k.ntk)[2])


@pytest.mark.slow
def test_real_images(tfds_dir):
    data = nd.data.load_dataset("mnist", data_dir=str(tfds_dir), subset=300)
    x = nd.data.normalize(data).astype(np.float32)
    far = (pair_angles(x.reshape(len(x), -1)) > 0.01) | np.eye(len(x), dtype=bool)
    for error, exact, _ in errors(GRAPHS["DAG#3"], x):
        assert (error[far] < 2e-6 * exact[far]).all(), (error[far] / exact[far]).max()
