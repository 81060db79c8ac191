"""Kernels of a network in GPyTorch and BoTorch, where they are installed: values, gradients and training."""

import copy
from typing import Any

import numpy as np
import pytest

import nngp_dag as nd
from nngp_dag.errors import InputError

gpytorch: Any = pytest.importorskip("gpytorch", reason="GPyTorch is not installed; the extra `gpytorch` brings it")
import torch  # noqa: E402  # pyright: ignore[reportMissingImports]

from nngp_dag.estimators import gpytorch as of_gpytorch  # noqa: E402
from nngp_dag.estimators.gpytorch import NNGP, NTK  # noqa: E402

pytestmark = pytest.mark.slow

RNG = np.random.default_rng(2)
KERNELS: dict[str, Any] = {"nngp": NNGP, "ntk": NTK}
X, Z = np.random.default_rng(0).normal(size=(9, 3)), np.random.default_rng(1).normal(size=(4, 3))
OPTIONS: dict[str, Any] = {"w_std": 1.2, "b_std": 0.3, "activation": "erf"}


def tensor(array: Any) -> Any:
    return torch.tensor(np.asarray(array), dtype=torch.float64)


def made(kind: str, **options: Any) -> Any:
    kernel = KERNELS[kind]("2", **{**OPTIONS, **options}).double()
    # The numbers were rounded to the default precision of PyTorch.
    kernel.w_std, kernel.b_std = 1.2, 0.3
    return kernel


def array_of(covariance: Any) -> np.ndarray:
    dense = covariance.to_dense() if hasattr(covariance, "to_dense") else covariance
    return dense.detach().numpy()


@pytest.mark.parametrize("kind", KERNELS)
def test_values_are_those_of_the_network(kind):
    kernel = made(kind)
    k, cross = (getattr(nd.kernel("2", *x, **OPTIONS), kind) for x in ((X,), (Z, X)))
    np.testing.assert_allclose(array_of(kernel(tensor(X))), k, rtol=1e-10)
    np.testing.assert_allclose(array_of(kernel(tensor(Z), tensor(X))), cross, rtol=1e-10)
    np.testing.assert_allclose(array_of(kernel(tensor(X), diag=True)), np.diag(k), rtol=1e-10)
    batch = np.stack([Z, 2 * Z])
    of_batch = array_of(kernel(tensor(batch), tensor(X)))
    assert of_batch.shape == (2, 4, 9)
    np.testing.assert_allclose(of_batch[1], getattr(nd.kernel("2", 2 * Z, X, **OPTIONS), kind), rtol=1e-10)
    assert kernel(tensor(X).float()).to_dense().dtype == torch.float32


@pytest.mark.parametrize("kind", KERNELS)
def test_gradients_are_central_differences(kind):
    kernel = made(kind)

    def value(x1, x2, w_std, b_std, diag=False):
        with torch.no_grad():
            raw = {name: getattr(kernel, f"raw_{name}_constraint").inverse_transform for name in ("w_std", "b_std")}
        parameters = {"raw_w_std": raw["w_std"](w_std), "raw_b_std": raw["b_std"](b_std)}
        return torch.func.functional_call(kernel, parameters, (x1, x2), {"diag": diag})

    def dense(*arguments):
        found = value(*arguments)
        return found.to_dense() if hasattr(found, "to_dense") else found

    numbers = [tensor([v]).requires_grad_() for v in (1.2, 0.3)]
    z = tensor(Z).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, *n: dense(a, tensor(X), *n), (z, *numbers))
    assert torch.autograd.gradcheck(lambda *n: dense(tensor(X), tensor(X), *n), tuple(numbers))


def test_training_ends_where_that_of_scikit_learn_does():
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import WhiteKernel

    # With targets of mean 1 the maximum lies inside the bounds of scikit-learn: biases without one would shrink to 0.
    y = 1 + np.sin(X[:, 0]) + 0.1 * np.random.default_rng(2).normal(size=9)

    class Model(gpytorch.models.ExactGP):
        def __init__(self, likelihood):
            super().__init__(tensor(X), tensor(y), likelihood)
            self.mean_module, self.covar_module = gpytorch.means.ZeroMean(), NNGP("2", **OPTIONS)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=gpytorch.constraints.GreaterThan(1e-6))
    model = Model(likelihood).double()
    likelihood.noise = 0.1
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-8)

    def closure():
        optimizer.zero_grad()
        loss = -objective(model(tensor(X)), tensor(y))
        loss.backward()
        return loss

    model.train()
    optimizer.step(closure)
    reached = -9 * closure().item()
    kernel = nd.estimators.NNGPKernel("2", **OPTIONS) + WhiteKernel(0.1)
    theirs = GaussianProcessRegressor(kernel).fit(X, y)
    assert reached == pytest.approx(theirs.log_marginal_likelihood_value_, abs=1e-3)


def test_an_acquisition_function_of_botorch_is_optimized():
    models = pytest.importorskip("botorch.models", reason="BoTorch is not installed")
    acquisition, optim = (pytest.importorskip(f"botorch.{name}") for name in ("acquisition", "optim"))
    model = models.SingleTaskGP(tensor(X), tensor(X[:, :1] ** 2), covar_module=NNGP("2", **OPTIONS))
    best = acquisition.LogExpectedImprovement(model, best_f=2.0)
    bounds = tensor([[-2.0] * 3, [2.0] * 3])
    point, value = optim.optimize_acqf(best, bounds, q=1, num_restarts=2, raw_samples=8, options={"maxiter": 20})
    random = best(tensor(np.random.default_rng(5).uniform(-2, 2, size=(8, 1, 3))))
    assert value.item() >= random.max().item()
    assert ((point >= -2) & (point <= 2)).all()


def test_growing_data_and_batches_of_all_sizes_compile_few_programs():
    kernel = made("nngp", activation="relu")
    program: Any = of_gpytorch._value(kernel.network, "nngp", "pairs")
    options: dict[str, Any] = {**OPTIONS, "activation": "relu"}
    for rows, batch in ((5, 2), (9, 3), (12, 8), (16, 5)):
        x, z = RNG.normal(size=(batch, 1, 3)), np.broadcast_to(RNG.normal(size=(rows, 3)), (batch, rows, 3))
        found = array_of(kernel(tensor(x), tensor(z)))
        k = nd.kernel("2", x[:, 0], z[0], **options).nngp
        np.testing.assert_allclose(found[:, 0], k, rtol=1e-9)
    assert program._cache_size() == 1


def test_parameters_are_those_of_a_module():
    kernel = NNGP("2", b_std=0.5, b_std_prior=gpytorch.priors.GammaPrior(2.0, 2.0))
    assert {name for name, _ in kernel.named_parameters()} == {"raw_w_std", "raw_b_std"}
    other = copy.deepcopy(NNGP("2", w_std=3.0, b_std=0.1))
    other.load_state_dict({name: v for name, v in kernel.state_dict().items() if name in other.state_dict()})
    assert other.b_std.item() == pytest.approx(0.5)
    plain = NNGP("2")
    assert plain.b_std is None
    with pytest.raises(InputError, match="a kernel with biases to set `b_std`, got one without"):
        plain.b_std = 0.1
    with pytest.raises(InputError, match="`last_dim_is_batch` to be False, got True"):
        plain.forward(tensor(X), tensor(X), last_dim_is_batch=True)
