"""Dual activations: Gaussian expectations of a nonlinearity.

For (u, v) ~ N(0, [[q1, k], [k, q2]]) and an activation phi:

    F   = E[phi(u) phi(v)]                        second moment of its output
    Fd  = E[phi'(u) phi'(v)] = dF / dk            what multiplies the NTK (Price's theorem)
    D_F = E[(phi(u) - phi(v))^2] / 2              half distance of its outputs, (F11 + F22) / 2 - F
    mu  = E[phi(u)]                               mean of its output

Beside k goes the half distance D = E[(u - v)^2] / 2 = (q1 + q2) / 2 - k. For two inputs that nearly coincide, k has
rounded their angle away, and D still holds it. So every formula here takes small differences from D, and returns a
D_F that is 0 exactly where D is and no difference of nearly equal numbers close to it: a next layer with a kink is
linear in the angle, the square root of D_F. Signs of the terms are such that sums do not cancel, and roots come before
products, so that scales from 1e-12 to 1e12 pass in float32.

Everything is elementwise in k: `k`, `half_distance`, `q1` and `q2` have equal ranks and broadcast to the shape of `k`.
"""

# Importing a module registers its activations.
from nngp_dag.kernels.dual import kinked, sigmoidal, smooth
from nngp_dag.kernels.dual.base import dual, mean, root
from nngp_dag.kernels.dual.quadrature_error import quadrature_error

__all__ = ["dual", "kinked", "mean", "quadrature_error", "root", "sigmoidal", "smooth"]
