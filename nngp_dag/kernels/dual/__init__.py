"""Dual activations: Gaussian expectations of an activation, Equation (4) of docs/mathematics.md.

For (u, v) ~ N(0, [[q1, k], [k, q2]]) and an activation phi:

    mu  = E[phi(u)]                               mean of the output
    C   = E[phi(u) phi(v)] - mu1 mu2              covariance of the outputs
    F'  = E[phi'(u) phi'(v)] = dC / dk            factor of the NTK (Price's theorem)

The gap sqrt(q1 q2) - |k| is an argument beside k. For nearly parallel or opposite inputs, k has rounded their angle
away, but the gap still holds it. So every formula takes small differences from the gap, and returns the gap of the
outputs, sqrt(C11 C22) - |C|. A later layer with a kink needs its digits: it is linear in the angle, which is the root
of twice the relative gap.

Three rules keep the formulas accurate. Means are left out of C, because a covariance that the product of means
dominates could not be recovered from second moments. Sums have terms of one sign, so that they do not cancel. Roots are
taken before products, so that variances from 1e-30 to 1e30 are possible in float32.

For smooth phi, most formulas yield half distances, D_C = (C11 + C22) / 2 - C. That is the gap of the outputs plus half
the squared difference of their norms. This has limits:

- Parallel inputs of unequal norms have nearly parallel outputs where phi is nearly linear, at small variances q. Their
  angle then has a relative error of about eps / q.
- gelu and silu are nearly ReLU at large variances. Their distances are those of outputs over the norms of the inputs,
  which loses nothing there.
- The distance of softplus is accurate everywhere.
- The distance of elu is accurate, except for opposite inputs at variances q at which elu is nearly odd. The gap of
  their outputs then has a relative error of about eps / sqrt(q).

All functions are elementwise in k: `k`, `gap`, `q1` and `q2` have equal ranks and broadcast to the shape of `k`.
"""

# The import of a module registers the duals of its activations.
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
