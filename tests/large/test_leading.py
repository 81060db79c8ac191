"""The largest eigenvalues against NumPy, and kernels on several devices against `kernel`."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import CheckpointError, InputError, NumericalWarning
from nngp_dag.large.checkpoint import Store

_X = np.random.default_rng(0).normal(size=(300, 6))
_ERF = nd.Network("2_12", layer=nd.Dense(activation="erf", b_std=0.1))


@pytest.mark.parametrize(("net", "kind"), [("2_21_112", "ntk"), pytest.param(_ERF, "nngp", marks=pytest.mark.slow)])
def test_eigenvalues_and_vectors_are_those_of_the_matrix(net, kind):
    found = nd.leading_eigenvalues(net, _X, 5, kind=kind, tolerance=1e-9)
    matrix = np.asarray(getattr(nd.kernel(net, _X, get=kind), kind))
    values, vectors = np.linalg.eigh(matrix)
    np.testing.assert_allclose(found.eigenvalues, values[::-1][:5], rtol=1e-11)
    assert (found.errors <= 1e-9 * found.lambda_max).all()
    overlap = np.abs(np.sum(found.vectors * vectors[:, ::-1][:, :5], axis=0))
    np.testing.assert_allclose(overlap, 1, atol=1e-6)
    np.testing.assert_allclose(found.trace, np.trace(matrix), rtol=1e-12)
    assert found.share == pytest.approx(values[-5:].sum() / values.sum())
    assert found.products < 20


def test_the_errors_are_bounds_while_the_iteration_has_not_converged():
    with pytest.warns(NumericalWarning, match="after 2 products; raise `max_products`"):
        found = nd.leading_eigenvalues("2_21_112", _X, 5, tolerance=1e-9, max_products=2)
    values = np.linalg.eigvalsh(np.asarray(nd.kernel("2_21_112", _X).ntk))
    distances = np.abs(found.eigenvalues[:, None] - values).min(axis=1)
    assert (distances <= found.errors + 1e-12 * values[-1]).all()
    # Without convergence they are no empty statement.
    assert found.errors.max() > 1e-6 * values[-1]


def test_all_eigenvalues_and_equal_inputs():
    x = np.concatenate([_X[:4], _X[:4]])
    found = nd.leading_eigenvalues("2_21_112", x, 8, tolerance=1e-10)
    values = np.linalg.eigvalsh(np.asarray(nd.kernel("2_21_112", x).ntk))[::-1]
    np.testing.assert_allclose(found.eigenvalues, values, atol=1e-12 * values[0])
    assert found.share == pytest.approx(1)
    assert "eigenvalues=[" in repr(found)


def test_a_stopped_iteration_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr("nngp_dag.large.checkpoint.EVERY", 0.0)
    call: dict[str, Any] = {"count": 5, "tolerance": 1e-9}
    seen: list[int] = []

    def stopping(task, done, total):
        seen.append(done)
        if done == 3 and len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        nd.leading_eigenvalues("2_21_112", _X, **call, out=tmp_path / "out", on_progress=stopping)
    found = nd.leading_eigenvalues("2_21_112", _X, **call, out=tmp_path / "out", on_progress=stopping)
    # The product that was not saved is computed again.
    assert seen == [1, 2, 3, *range(3, found.products + 1)]
    again = nd.leading_eigenvalues("2_21_112", _X, **call, out=tmp_path / "out", on_progress=stopping)
    whole = nd.leading_eigenvalues("2_21_112", _X, **call)
    assert len(seen) == 1 + found.products
    for one in (found, again):
        for field in dataclasses.fields(one):
            np.testing.assert_array_equal(getattr(one, field.name), getattr(whole, field.name))
    assert not (tmp_path / "out" / "basis.npz").exists()
    with pytest.raises(CheckpointError, match=r"leading_eigenvalues.count 5 before, 4 now"):
        nd.leading_eigenvalues("2_21_112", _X, 4, out=tmp_path / "out")
    assert len(nd.leading_eigenvalues("2_21_112", _X, 4, out=tmp_path / "out", overwrite=True).eigenvalues) == 4


@pytest.mark.slow
def test_an_iteration_that_ended_too_early_warns_again_and_goes_on(tmp_path, monkeypatch):
    def ended(store, name, arrays, save=Store.save):
        if name == "eigenvalues":
            raise KeyboardInterrupt
        save(store, name, arrays)

    # A process that ends before it has written the result computes no further product.
    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", ended)
        with pytest.raises(KeyboardInterrupt):
            nd.leading_eigenvalues("2_21_112", _X, 5, max_products=2, out=tmp_path)
    for _ in range(2):
        with pytest.warns(NumericalWarning, match="after 2 products"):
            nd.leading_eigenvalues("2_21_112", _X, 5, max_products=2, out=tmp_path)
    seen: list[int] = []
    found = nd.leading_eigenvalues(
        "2_21_112", _X, 5, out=tmp_path, on_progress=lambda task, done, most: seen.append(done)
    )
    assert seen[0] == 3
    whole = nd.leading_eigenvalues("2_21_112", _X, 5)
    np.testing.assert_array_equal(found.eigenvalues, whole.eigenvalues)
    assert found.entries == whole.entries
    assert not (tmp_path / "basis.npz").exists()


@pytest.mark.slow
def test_damaged_files_are_named_and_computed_again_if_asked(tmp_path):
    nd.leading_eigenvalues("2_21_112", _X, 2, out=tmp_path)
    path = tmp_path / "eigenvalues.npz"
    whole = path.read_bytes()
    np.savez(tmp_path / "other.npz", trace=1.0)
    other = (tmp_path / "other.npz").read_bytes()
    (tmp_path / "other.npz").unlink()
    for damaged, got in (
        (whole[:-500], "another kind of file"),
        (b"text", "another kind of file"),
        (other, "no errors"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"eigenvalues.npz to hold what was written there, got {got}; delete"):
            nd.leading_eigenvalues("2_21_112", _X, 2, out=tmp_path)
    path.write_bytes(whole[:-500])
    assert len(nd.leading_eigenvalues("2_21_112", _X, 2, out=tmp_path, overwrite=True).eigenvalues) == 2
    assert path.stat().st_size == len(whole)


@pytest.mark.slow
def test_a_sharded_kernel_is_that_of_one_device():
    x = _X.astype(np.float32)
    for other in (None, x[:7]):
        wanted = np.asarray(nd.kernel(_ERF, x, other).ntk)
        np.testing.assert_allclose(nd.sharded_kernel(_ERF, x, other), wanted, rtol=2e-6)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (nd.leading_eigenvalues, {"count": 301}, "`count` to be at most the number of inputs, 300, got 301"),
        (nd.leading_eigenvalues, {"tolerance": 2.0}, "`tolerance` to be between 0 and 1, got 2"),
        (nd.leading_eigenvalues, {"kind": "nnpg"}, "did you mean"),
        (nd.sharded_kernel, {}, "float32 inputs while `jax_enable_x64` is off, got float64"),
        (nd.sharded_kernel, {"x2": _X[:, :3]}, "`x2` to have rows of shape"),
    ],
)
def test_refusals(function, options, message):
    with pytest.raises(InputError, match=message):
        function("2_21_112", _X, **options)
