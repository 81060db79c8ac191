"""Regression and classification with the kernels of a network, as estimators of scikit-learn."""

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import scipy.linalg
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from nngp_dag.architecture import Network, as_network
from nngp_dag.errors import InputError, within_memory
from nngp_dag.estimators._matrices import check_noise, check_shape, diagonal, factorized, matrix
from nngp_dag.graph.operations import check_flag, check_option, check_whole
from nngp_dag.large import plan, solve
from nngp_dag.large._plan import METHODS
from nngp_dag.theory._cholesky import outer

OPTIONS = ("activation", "order", "w_std", "b_std", "aggregation")


class _KernelEstimator(BaseEstimator):
    """Parameters, inputs and the solution that regressors and classifiers have in common."""

    _kind: ClassVar[str]

    network: Any
    noise: Any
    image_shape: Any
    dtype: Any
    block_size: Any
    method: Any
    landmarks: Any
    memory_budget: Any

    def _network(self) -> Network:
        given = {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}
        network = as_network(self.network, "network", type(self), **given)
        if (outputs := len(network.dag.outputs)) > 1:
            raise InputError(f"Expected `network` to have one output node, got {outputs}; fit one estimator per output")
        return network

    def _inputs(self, X: np.ndarray, network: Network) -> np.ndarray:
        if self.image_shape is not None:
            return X.reshape(len(X), *check_shape(self.image_shape, X.shape[1]))
        if network.image_operations:
            raise InputError(
                "Expected `image_shape` for a network with convolutions or pooling, got None; pass (height, width, "
                "channels), the shape of the image in a row of `X`"
            )
        return X

    def _solve(self, X: np.ndarray, targets: np.ndarray) -> None:
        """Stores what predictions need: inputs and their coefficients, and where there is one, the Cholesky factor."""
        check_whole("block_size", self.block_size, 1)
        check_option("method", self.method, METHODS)
        network, noise = self._network(), check_noise(self.noise)
        inputs = self._inputs(X, network)
        rows = len(inputs)
        options = {"kind": self._kind, "landmarks": self.landmarks, "memory_budget": self.memory_budget}
        method, self.solution_ = self.method, None
        if method == "auto":
            shape, outputs = inputs.shape[1:], targets.shape[1]
            dtype = str(inputs.dtype) if self.dtype is None else self.dtype
            method = plan(network, rows, shape, outputs=outputs, dtype=dtype, calibrate=False, **options).method
        if method == "dense":
            with within_memory(
                f"the kernel of {rows:,} inputs and its factor, {2 * rows**2 * 8 / 2**30:.3g} GiB,",
                "pass `method='auto'`, or take fewer inputs",
            ):
                self.factor_ = factorized(matrix(network, inputs, None, self._kind, self.dtype), noise)
                self.dual_coef_ = scipy.linalg.cho_solve((self.factor_, True), targets, check_finite=False)
            self.X_fit_ = inputs
        else:
            if not noise:
                raise InputError(f"Expected `noise` to be above 0 for the method {method!r}, got 0; raise it")
            self.factor_ = None
            options |= {"method": method, "dtype": self.dtype}
            self.solution_ = solve(network, inputs, targets, noise, **options)
            self._options = options
            self.X_fit_, self.dual_coef_ = self.solution_.basis, self.solution_.coefficients
        self.network_ = network

    def _blocks(self, X: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the rows of a block of test inputs, and these inputs."""
        inputs = self._inputs(X, self.network_)
        size = check_whole("block_size", self.block_size, 1)  # it may have been set after `fit`
        for start in range(0, len(inputs), size):
            rows = slice(start, start + size)
            yield rows, inputs[rows]

    def _cross(self, inputs: np.ndarray, kind: str) -> np.ndarray:
        return matrix(self.network_, inputs, self.X_fit_, kind, self.dtype).astype(np.float64, copy=False)

    def _outputs(self, X: np.ndarray) -> np.ndarray:
        """Returns the means of the outputs, (Nt, C); no array is larger than N times the rows of a block."""
        return np.concatenate([self._cross(inputs, self._kind) @ self.dual_coef_ for _, inputs in self._blocks(X)])

    def _checked(self, X: Any) -> Any:
        check_is_fitted(self)
        return validate_data(self, X, dtype=(np.float64, np.float32), reset=False)


class _Regressor(RegressorMixin, _KernelEstimator):
    """Kernel regression, its parameters and its uncertainty."""

    def __init__(
        self,
        network: Any = "2_21_112",
        *,
        noise: Any = 0.1,
        activation: Any = None,
        order: Any = None,
        w_std: Any = None,
        b_std: Any = None,
        aggregation: Any = None,
        normalize_y: Any = True,
        image_shape: Any = None,
        dtype: Any = "float64",
        block_size: Any = 1024,
        method: Any = "dense",
        landmarks: Any = None,
        memory_budget: Any = "4 GiB",
    ) -> None:
        """Keeps the parameters; `fit` validates them."""
        self.network = network
        self.noise = noise
        self.activation = activation
        self.order = order
        self.w_std = w_std
        self.b_std = b_std
        self.aggregation = aggregation
        self.normalize_y = normalize_y
        self.image_shape = image_shape
        self.dtype = dtype
        self.block_size = block_size
        self.method = method
        self.landmarks = landmarks
        self.memory_budget = memory_budget

    def fit(self, X: Any, y: Any) -> Any:
        """Computes the kernel of the training inputs, its Cholesky factor, and the solution of the targets.

        Args:
          X: Training inputs, (N, d). A row holds the pixels of one image if `image_shape` is given.
          y: Targets, (N,) or (N, C). Integers are taken as numbers: for classes there are the classifiers.

        Returns:
          The estimator itself.

        Raises:
          InputError: A parameter is refused, or the kernel is singular.
          ValueError: scikit-learn refuses `X` or `y`, for example sparse matrices or missing values.
        """
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32), multi_output=True, y_numeric=True)
        normalize = check_flag("normalize_y", self.normalize_y)
        targets = np.asarray(y, np.float64).reshape(len(y), -1)
        self._y_mean = targets.mean(axis=0) if normalize else np.zeros(targets.shape[1])
        std = targets.std(axis=0) if normalize else np.ones(targets.shape[1])
        # A constant column has no scale of its own. Rounding may leave it a tiny one.
        constant = std <= 10 * np.finfo(np.float64).eps * np.abs(targets).max(axis=0)
        self._y_std = np.where(constant, 1.0, std)
        scaled = (targets - self._y_mean) / self._y_std
        self._solve(X, scaled)
        self._one_column = y.ndim == 1
        if self._kind == "nngp" and self.factor_ is not None:
            fits = -0.5 * np.sum(scaled * self.dual_coef_)
            volume = np.log(np.diag(self.factor_)).sum() + 0.5 * len(X) * math.log(2 * math.pi)
            self.log_marginal_likelihood_ = float(fits - scaled.shape[1] * volume)
        return self

    def predict(self, X: Any, return_std: bool = False, return_cov: bool = False) -> Any:
        """Returns the mean of the outputs, and on request their standard deviation or covariance.

        Test inputs are taken in blocks of `block_size` rows, so that memory is of order N times `block_size`. A
        covariance takes the square of the number of test inputs. The method "iterative" keeps no factor: there standard
        deviations and covariances take a solution of their own, with all test inputs at once, within `memory_budget`.

        Args:
          X: Test inputs, (Nt, d).
          return_std: Whether the standard deviation is returned, too.
          return_cov: Whether the covariance is returned, too.

        Returns:
          The mean, (Nt,) or (Nt, C) like the targets; or a tuple of the mean and the standard deviation, of the same
          shape; or a tuple of the mean and the covariance, (Nt, Nt) or (Nt, Nt, C). They describe outputs without
          noise.

        Raises:
          InputError: Both `return_std` and `return_cov` are true; or either is, after a fit by landmarks or
            where all test inputs do not fit into `memory_budget`.
          NotFittedError: `fit` has not been called.
        """
        if check_flag("return_std", return_std) and check_flag("return_cov", return_cov):
            raise InputError("Expected `return_std` or `return_cov`, got both; the covariance holds the variances")
        X = self._checked(X)
        if (return_std or return_cov) and self.solution_ is not None and self.solution_.method == "landmarks":
            raise InputError(
                f"Expected `{'return_std' if return_std else 'return_cov'}` after a fit by 'dense' or 'iterative', got "
                "one by 'landmarks'; fit with `method='iterative'`"
            )
        mean = self._shaped(self._outputs(X) * self._y_std + self._y_mean)
        if return_std:
            return mean, self._shaped(np.sqrt(self._variance(X))[:, None] * self._y_std)
        if return_cov:
            return mean, self._shaped(self._covariance(X)[..., None] * self._y_std**2)
        return mean

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        return values[..., 0] if self._one_column else values

    def _k_train(self) -> np.ndarray:
        """Returns the NNGP of the training inputs, which the covariance of trained networks needs."""
        # It is not kept: the factor of N^2 numbers is, and few predictions ask for a covariance.
        return matrix(self.network_, self.X_fit_, None, "nngp", self.dtype).astype(np.float64, copy=False)

    def _variance(self, X: np.ndarray) -> np.ndarray:
        """Returns the variances of normalized outputs, (Nt,)."""
        if self.solution_ is not None:
            return np.maximum(np.diag(self._covariance(X)), 0.0)
        variances = np.empty(len(X))
        k_train = self._k_train() if self._kind == "ntk" else None
        for rows, inputs in self._blocks(X):
            prior = diagonal(self.network_, inputs, "nngp", self.dtype).astype(np.float64)
            cross = self._cross(inputs, "nngp")
            if k_train is None:
                half = scipy.linalg.solve_triangular(self.factor_, cross.T, lower=True, check_finite=False)
                variances[rows] = prior - np.sum(half**2, axis=0)
            else:
                weights = self._weights(inputs)
                variances[rows] = prior + np.sum((weights @ k_train - 2 * cross) * weights, axis=1)
        # Where the data leave no uncertainty, rounding may make a variance negative.
        return np.maximum(variances, 0.0)

    def _covariance(self, X: np.ndarray) -> np.ndarray:
        """Returns the covariance of normalized outputs, (Nt, Nt)."""
        inputs = self._inputs(X, self.network_)
        if self.solution_ is not None:
            # It does not depend on the targets.
            zeros, noise = np.zeros(len(self.X_fit_)), self.solution_.ridge
            found = solve(self.network_, self.X_fit_, zeros, noise, x_test=inputs, **self._options).posterior
            assert found is not None
            return np.asarray(found.covariance)
        with within_memory(f"covariances of {len(X):,} test inputs", "ask for `return_std`, or take fewer inputs"):
            prior = matrix(self.network_, inputs, None, "nngp", self.dtype).astype(np.float64)
            cross = self._cross(inputs, "nngp")
            if self._kind == "nngp":
                half = scipy.linalg.solve_triangular(self.factor_, cross.T, lower=True, check_finite=False)
                return prior - outer(half.T)
            weights = self._weights(inputs)
            half = weights @ (0.5 * self._k_train() @ weights.T - cross.T)
            return prior + (half + half.T)

    def _weights(self, inputs: np.ndarray) -> np.ndarray:
        """Returns the weights of the targets, Theta_tx (Theta + noise I)^-1, (Nt, N)."""
        return scipy.linalg.cho_solve((self.factor_, True), self._cross(inputs, "ntk").T, check_finite=False).T

    def __sklearn_tags__(self) -> Any:
        """Returns the tags of scikit-learn: several targets are accepted."""
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


class NNGPRegressor(_Regressor):
    """Gaussian-process regression with the NNGP of a network: all its layers drawn from the prior, given the targets.

    With K the NNGP, the mean is K_tx (K + noise I)^-1 y and the covariance K_tt - K_tx (K + noise I)^-1 K_xt, as in
    `nngp_dag.posterior` with kind="nngp". The Cholesky factor of `fit` serves all predictions. `fit` takes O(N^3) time
    and memory for two matrices of N^2 numbers; it keeps one of them. Other methods serve more inputs.

    Args:
      network: The network: a text such as "2_21_112", a `Dag` or a `Network`.
      noise: Variance of the noise of the targets, after their normalization.
      activation: The activation of the layer, such as "erf"; None for that of `network`, by default ReLU. The identity
        is "identity".
      order: "linear-act" or "act-linear"; None for that of `network`.
      w_std: Standard deviation of the weights; None for that of `network`, by default that of He initialization.
      b_std: Standard deviation of the biases; None for that of `network`, by default no biases.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.
      normalize_y: Whether targets are shifted to mean 0 and scaled to variance 1 in `fit`. Predictions are in the units
        of `y` in either case.
      image_shape: The shape (height, width, channels) of the image in a row of `X`; networks with convolutions or
        pooling need it. They are passed as a `Network`.
      dtype: Precision of the kernels, "float64" or "float32". The factor is in float64.
      block_size: Largest number of test inputs that are predicted at once.
      method: "dense" for the Cholesky factor of all inputs; "iterative" or "landmarks" for many inputs, as in
        `nngp_dag.solve`, the latter without standard deviations; "auto" for the first that fits into `memory_budget`.
      landmarks: Number of landmarks, as in `nngp_dag.solve`.
      memory_budget: Largest memory for other methods than "dense", in bytes or as a text such as "6 GiB".

    Attributes:
      network_: The `Network` whose kernel is used.
      X_fit_: The training inputs, (N, d), or as images; the landmarks for that method.
      solution_: The `nngp_dag.Solution` of other methods than "dense", with its errors; else None.
      factor_: The lower Cholesky factor of the kernel with noise, (N, N); entries above the diagonal are arbitrary.
        None for other methods than "dense".
      dual_coef_: The solution (K + noise I)^-1 y of the normalized targets, (N, C).
      log_marginal_likelihood_: Log density of the normalized targets under the prior with noise, summed over columns;
        for the method "dense".
      n_features_in_: Number of features d.

    Raises:
      InputError: A parameter is refused in `fit`, or the kernel is singular.

    Examples:
      >>> import numpy as np
      >>> X = np.linspace(-1, 1, 20)[:, None]
      >>> model = NNGPRegressor("2_21_112", activation="erf", b_std=0.5, noise=1e-3).fit(X, np.sin(3 * X[:, 0]))
      >>> mean, std = model.predict([[0.5]], return_std=True)
      >>> bool(abs(mean[0] - np.sin(1.5)) < 0.1), bool(std[0] < 0.2)
      (True, True)

    Reference: Lee et al., ICLR 2018 (NNGP); Rasmussen and Williams 2006, Algorithm 2.1.
    """

    _kind = "nngp"


class NTKRegressor(_Regressor):
    """Kernel regression with the NTK of a network: the mean over wide networks trained for infinite time.

    With Theta the NTK, K the NNGP and W = Theta_tx (Theta + noise I)^-1, the mean is W y. The standard deviation is
    that over random initializations, the root of the diagonal of K_tt + W K W^T - W K_xt - K_tx W^T. Both are as in
    `nngp_dag.posterior` with kind="ntk". `noise` is a ridge: training minimizes
    0.5 ||y - f||^2 + 0.5 noise ||theta - theta(0)||^2.

    Args:
      network: The network, as in `NNGPRegressor`.
      noise: The ridge, for normalized targets.
      activation: The activation of the layer, as in `NNGPRegressor`.
      order: "linear-act" or "act-linear"; None for that of `network`.
      w_std: Standard deviation of the weights; None for that of `network`.
      b_std: Standard deviation of the biases; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.
      normalize_y: Whether targets are shifted to mean 0 and scaled to variance 1 in `fit`.
      image_shape: The shape (height, width, channels) of the image in a row of `X`, as in `NNGPRegressor`.
      dtype: Precision of the kernels, "float64" or "float32".
      block_size: Largest number of test inputs that are predicted at once.
      method: "dense", "iterative", "landmarks" or "auto", as in `NNGPRegressor`.
      landmarks: Number of landmarks, as in `nngp_dag.solve`.
      memory_budget: Largest memory for other methods than "dense".

    Attributes:
      network_: The `Network` whose kernel is used.
      X_fit_: The training inputs, (N, d), or as images; the landmarks for that method.
      solution_: The `nngp_dag.Solution` of other methods than "dense", with its errors; else None.
      factor_: The lower Cholesky factor of the NTK with noise, (N, N); entries above the diagonal are arbitrary.
        None for other methods than "dense".
      dual_coef_: The solution (Theta + noise I)^-1 y of the normalized targets, (N, C).
      n_features_in_: Number of features d.

    Raises:
      InputError: A parameter is refused in `fit`, or the kernel is singular.

    Examples:
      >>> import numpy as np
      >>> X = np.linspace(-1, 1, 20)[:, None]
      >>> model = NTKRegressor("2_21_112", activation="erf", b_std=0.5, noise=1e-3).fit(X, np.sin(3 * X[:, 0]))
      >>> bool(abs(model.predict([[0.5]])[0] - np.sin(1.5)) < 0.1)
      True

    Reference: Jacot et al., NeurIPS 2018 (NTK); Lee et al., NeurIPS 2019, Corollary 1 at infinite time.
    """

    _kind = "ntk"


class _Classifier(ClassifierMixin, _KernelEstimator):
    """Classification by regression on centered one-hot targets."""

    def __init__(
        self,
        network: Any = "2_21_112",
        *,
        noise: Any = 0.1,
        activation: Any = None,
        order: Any = None,
        w_std: Any = None,
        b_std: Any = None,
        aggregation: Any = None,
        image_shape: Any = None,
        dtype: Any = "float64",
        block_size: Any = 1024,
        method: Any = "dense",
        landmarks: Any = None,
        memory_budget: Any = "4 GiB",
    ) -> None:
        """Keeps the parameters; `fit` validates them."""
        self.network = network
        self.noise = noise
        self.activation = activation
        self.order = order
        self.w_std = w_std
        self.b_std = b_std
        self.aggregation = aggregation
        self.image_shape = image_shape
        self.dtype = dtype
        self.block_size = block_size
        self.method = method
        self.landmarks = landmarks
        self.memory_budget = memory_budget

    def fit(self, X: Any, y: Any) -> Any:
        """Computes the kernel of the training inputs, its Cholesky factor, and the solution of the one-hot targets.

        Args:
          X: Training inputs, (N, d). A row holds the pixels of one image if `image_shape` is given.
          y: Classes, (N,): numbers or texts, of at least two classes.

        Returns:
          The estimator itself.

        Raises:
          InputError: A parameter is refused, there is only one class, or the kernel is singular.
          ValueError: scikit-learn refuses `X` or `y`, for example sparse matrices or targets that are no classes.
        """
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_, codes = np.unique(column_or_1d(y, warn=True), return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError("Expected `y` to hold at least 2 classes, got 1 class; there is nothing to tell apart")
        # The prior has mean 0. Centered targets keep it neutral: an output of 0 prefers no class.
        self._solve(X, np.eye(len(self.classes_))[codes] - 1 / len(self.classes_))
        return self

    def decision_function(self, X: Any) -> Any:
        """Returns the outputs of the regression, which are no probabilities.

        Args:
          X: Test inputs, (Nt, d).

        Returns:
          One column per class of `classes_`, (Nt, C); the largest is the predicted class. For two classes the second
          output minus the first, (Nt,), whose sign decides.

        Raises:
          NotFittedError: `fit` has not been called.
        """
        outputs = self._outputs(self._checked(X))
        return outputs[:, 1] - outputs[:, 0] if len(self.classes_) == 2 else outputs

    def predict(self, X: Any) -> Any:
        """Returns the classes whose outputs are largest, (Nt,).

        Args:
          X: Test inputs, (Nt, d).

        Raises:
          NotFittedError: `fit` has not been called.
        """
        outputs = self._outputs(self._checked(X))
        return self.classes_[outputs.argmax(axis=1)]


class NNGPClassifier(_Classifier):
    """Classification by regression on centered one-hot targets, one_hot - 1 / C, with the NNGP of a network.

    This is the posterior mean of a Gaussian process whose targets are real numbers, not a likelihood of classes. So
    there are outputs and classes, but no probabilities. The accuracy is that of `nngp_dag.kernel_regression_accuracy`.

    Args:
      network: The network: a text such as "2_21_112", a `Dag` or a `Network`.
      noise: Variance of the noise of the one-hot targets.
      activation: The activation of the layer, such as "erf"; None for that of `network`, by default ReLU.
      order: "linear-act" or "act-linear"; None for that of `network`.
      w_std: Standard deviation of the weights; None for that of `network`.
      b_std: Standard deviation of the biases; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.
      image_shape: The shape (height, width, channels) of the image in a row of `X`; networks with convolutions or
        pooling need it.
      dtype: Precision of the kernels, "float64" or "float32". The factor is in float64.
      block_size: Largest number of test inputs that are predicted at once.
      method: "dense", "iterative", "landmarks" or "auto", as in `NNGPRegressor`.
      landmarks: Number of landmarks, as in `nngp_dag.solve`.
      memory_budget: Largest memory for other methods than "dense".

    Attributes:
      classes_: The classes, sorted, (C,).
      network_: The `Network` whose kernel is used.
      X_fit_: The training inputs, (N, d), or as images; the landmarks for that method.
      solution_: The `nngp_dag.Solution` of other methods than "dense", with its errors; else None.
      factor_: The lower Cholesky factor of the kernel with noise, (N, N); entries above the diagonal are arbitrary.
        None for other methods than "dense".
      dual_coef_: The solution of the centered one-hot targets, (N, C).
      n_features_in_: Number of features d.

    Raises:
      InputError: A parameter is refused in `fit`, there is one class, or the kernel is singular.

    Examples:
      >>> from sklearn.datasets import load_wine
      >>> from sklearn.model_selection import cross_val_score
      >>> from sklearn.preprocessing import StandardScaler
      >>> X, y = load_wine(return_X_y=True)
      >>> bool(cross_val_score(NNGPClassifier(), StandardScaler().fit_transform(X), y).mean() > 0.9)
      True

    Reference: Lee et al., ICLR 2018, Section 3 (regression on one-hot targets).
    """

    _kind = "nngp"


class NTKClassifier(_Classifier):
    """Classification by regression on centered one-hot targets, one_hot - 1 / C, with the NTK of a network.

    The outputs are the mean over wide networks that are trained for infinite time on these targets by the squared loss.
    They are no probabilities. The accuracy is that of `nngp_dag.kernel_regression_accuracy` with kind="ntk".

    Args:
      network: The network, as in `NNGPClassifier`.
      noise: The ridge, see `NTKRegressor`.
      activation: The activation of the layer; None for that of `network`, by default ReLU.
      order: "linear-act" or "act-linear"; None for that of `network`.
      w_std: Standard deviation of the weights; None for that of `network`.
      b_std: Standard deviation of the biases; None for that of `network`.
      aggregation: "sum", "scaled-sum" or "mean"; None for that of `network`.
      image_shape: The shape (height, width, channels) of the image in a row of `X`.
      dtype: Precision of the kernels, "float64" or "float32".
      block_size: Largest number of test inputs that are predicted at once.
      method: "dense", "iterative", "landmarks" or "auto", as in `NNGPRegressor`.
      landmarks: Number of landmarks, as in `nngp_dag.solve`.
      memory_budget: Largest memory for other methods than "dense".

    Attributes:
      classes_: The classes, sorted, (C,).
      network_: The `Network` whose kernel is used.
      X_fit_: The training inputs, (N, d), or as images; the landmarks for that method.
      solution_: The `nngp_dag.Solution` of other methods than "dense", with its errors; else None.
      factor_: The lower Cholesky factor of the NTK with noise, (N, N); entries above the diagonal are arbitrary.
        None for other methods than "dense".
      dual_coef_: The solution of the centered one-hot targets, (N, C).
      n_features_in_: Number of features d.

    Raises:
      InputError: A parameter is refused in `fit`, there is one class, or the kernel is singular.

    Examples:
      >>> import numpy as np
      >>> X, y = np.array([[1.0, 0.0], [0.9, 0.2], [0.0, 1.0], [0.1, 0.8]]), ["cat", "cat", "dog", "dog"]
      >>> NTKClassifier("2").fit(X, y).predict([[1.0, 0.1], [0.2, 1.0]]).tolist()
      ['cat', 'dog']

    Reference: Jacot et al., NeurIPS 2018 (NTK); Lee et al., ICLR 2018, Section 3 (regression on one-hot targets).
    """

    _kind = "ntk"
