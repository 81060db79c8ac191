"""Theory computed from the kernels: spectra, bounds on eigenvalues, exact loss curves and predictions."""

from nngp_dag.theory._fit import Fit, fit
from nngp_dag.theory._modes import Modes, modes
from nngp_dag.theory._posterior import Posterior, classification_accuracy, kernel_regression_accuracy, posterior
from nngp_dag.theory._spectrum import Spectrum, spectra, spectrum
from nngp_dag.theory.bounds import rate_bound, rate_bound_holds_for
from nngp_dag.theory.bracket import Bracket, Brackets, lambda_min_bracket, principal_minor_bound
from nngp_dag.theory.dynamics import LossCurve, expected_loss, largest_stable_learning_rate, loss_curve
from nngp_dag.theory.evidence import LeaveOneOut, leave_one_out, log_marginal_likelihood
from nngp_dag.theory.paths import PathBound, ntk_path_bound, path_bound
from nngp_dag.theory.prediction import linearized_prediction
from nngp_dag.theory.sgd import LinearizedRuns, linearized_sgd

__all__ = [
    "Bracket",
    "Brackets",
    "Fit",
    "LeaveOneOut",
    "LinearizedRuns",
    "LossCurve",
    "Modes",
    "PathBound",
    "Posterior",
    "Spectrum",
    "classification_accuracy",
    "expected_loss",
    "fit",
    "kernel_regression_accuracy",
    "lambda_min_bracket",
    "largest_stable_learning_rate",
    "leave_one_out",
    "linearized_prediction",
    "linearized_sgd",
    "log_marginal_likelihood",
    "loss_curve",
    "modes",
    "ntk_path_bound",
    "path_bound",
    "posterior",
    "principal_minor_bound",
    "rate_bound",
    "rate_bound_holds_for",
    "spectra",
    "spectrum",
]
