"""The scores that come with the package."""

from dataclasses import replace

from nngp_dag.nas.scores.gradients import grad_norm, jacob_cov, ntk_condition, synflow
from nngp_dag.nas.scores.patterns import naswot, naswot_reference
from nngp_dag.nas.scores.registry import Score, register
from nngp_dag.nas.scores.wiring import (
    KERNEL_SCORES,
    KERNELS,
    exact_kernels,
    exact_leave_one_out,
    paths_and_costs,
)

_ABDELFATTAH = "Abdelfattah et al., Zero-Cost Proxies for Lightweight NAS, ICLR 2021"
_CHEN = "Chen et al., Deep Architecture Connectivity Matters for Its Convergence, NeurIPS 2022"
_DONG = "Dong and Yang, NAS-Bench-201, ICLR 2020"
_MELLOR = "Mellor et al., Neural Architecture Search without Training, ICML 2021"
_SPECTRA = 'Chen, Huang, Wang, "No Free Lunch" in Neural Architectures?, AutoML 2023'
_TANAKA = "Tanaka et al., Pruning Neural Networks without Any Data, NeurIPS 2020, as in " + _ABDELFATTAH

_RASMUSSEN = "Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, Eq. 5.12, with the exact NTK"

_ALL = (
    Score("naswot", True, "forward", _MELLOR, naswot),
    Score("naswot_reference", True, "forward", _MELLOR + ", counting as its code", naswot_reference),
    Score("parameters", True, "wiring", _DONG, paths_and_costs),
    Score("flops", True, "wiring", _DONG, paths_and_costs),
    Score("effective_depth", True, "wiring", _CHEN, paths_and_costs),
    Score("effective_width", True, "wiring", _CHEN, paths_and_costs),
    Score("grad_norm", True, "backward", _ABDELFATTAH, grad_norm, reads_labels=True),
    Score("synflow", True, "backward", _TANAKA, synflow),
    Score("jacob_cov", True, "backward", "Mellor et al., first version, 2020, as in " + _ABDELFATTAH, jacob_cov),
    Score("ntk_condition", False, "jacobian", "Chen, Gong, Wang, TE-NAS, ICLR 2021", ntk_condition),
    *(
        Score(f"{kernel}_{name}_exact", name != "condition", "kernel", _SPECTRA, exact_kernels)
        for kernel in KERNELS
        for name in KERNEL_SCORES
    ),
    Score("leave_one_out", False, "kernel", _RASMUSSEN, exact_leave_one_out, reads_labels=True),
)

# These take gradients of outputs summed over a batch. Without a ReLU before the classifier, as in DARTS, live batch
# norm makes that sum constant in networks without pooling.
_NOT_OF_DARTS = {"jacob_cov", "ntk_condition"}
_BOTH = "nasbench201", "darts"

BUILT_IN = tuple(
    register(score if score.name in _NOT_OF_DARTS else replace(score, spaces=_BOTH)).name for score in _ALL
)
"""Names of the scores that come with the package, without those of controls."""
