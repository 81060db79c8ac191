"""Dual activations: Gaussian expectations of a nonlinearity.

For (u, v) ~ N(0, [[q1, k], [k, q2]]) and an activation phi:

    mu  = E[phi(u)]                               mean of its output
    C   = E[phi(u) phi(v)] - mu1 mu2              covariance of its outputs
    Fd  = E[phi'(u) phi'(v)] = dC / dk            what multiplies the NTK (Price's theorem)

Beside k goes the gap sqrt(q1 q2) - |k|. For two inputs that are nearly parallel or opposite, k has rounded their angle
away, and the gap still holds it. So every formula here takes small differences from it, and returns the gap of the
outputs, sqrt(C11 C22) - |C|: a next layer with a kink is linear in the angle, which is the root of twice the gap, over
sqrt(q1 q2). Means are left out, since a covariance that they dominate could not be had back from second moments. Signs
of the terms are such that sums do not cancel, and roots come before products, so that variances from 1e-30 to 1e30 pass
in float32.

Where phi is smooth, most formulas are those of half distances, D_C = (C11 + C22) / 2 - C: the gap of the outputs plus
half the squared difference of their norms. Parallel inputs of unequal norms, of variances q at which phi is nearly
linear, give outputs that are nearly parallel, too: of that angle a share of about eps / q is lost. The distances of
gelu and silu are over the norms of inputs, so that nothing is lost at large variances, where they are nearly ReLUs;
that of softplus is good at all. So is that of elu, but for opposite inputs of variances q, at which it is nearly odd:
of the small gap of their outputs a share of about eps / sqrt(q) is lost.

Everything is elementwise in k: `k`, `gap`, `q1` and `q2` have equal ranks and broadcast to the shape of `k`.
"""

# Importing a module registers its activations.
from nngp_dag.kernels.dual import elu, gated, kinked, sigmoidal, smooth
from nngp_dag.kernels.dual.base import dual, gap_of, mean, ratio, root, size, traced_variance
from nngp_dag.kernels.dual.quadrature_error import quadrature_error

__all__ = [
    "dual",
    "elu",
    "gap_of",
    "gated",
    "kinked",
    "mean",
    "quadrature_error",
    "ratio",
    "root",
    "sigmoidal",
    "size",
    "smooth",
    "traced_variance",
]
