"""A second derivation of kernels with 50 digits, for each pair of inputs and each pair of nodes."""

import mpmath as mp
import numpy as np
from test_activations import CASES

from nngp_dag.activations import ABRelu, RectifiedMonomial, Sign, get_activation
from nngp_dag.architecture import Network
from nngp_dag.graph import Dense, Op, Scale
from nngp_dag.kernels.layer_rules import LAYER_NORM_EPS

EXACT = {case.phi: case.exact for case in CASES if case.exact is not None}
DIGITS = 50


def _second_moment(phi, k, q1, q2):
    if isinstance(phi, (ABRelu, RectifiedMonomial, Sign)) and q1 * q2 == 0:
        return mp.mpf(0)
    # Rounding may make |k| larger than sqrt(q1 q2).
    r = mp.sqrt(q1 * q2)
    return mp.re(EXACT[phi](max(-r, min(r, k)), q1, q2))


def _slope(phi, k, q1, q2):
    """Returns E[phi'(u) phi'(v)]."""
    if isinstance(phi, Sign) or phi == RectifiedMonomial(0):
        return mp.mpf(0)
    if isinstance(phi, (ABRelu, RectifiedMonomial)):
        r = mp.sqrt(q1 * q2)
        # A zero input counts as orthogonal to others, and as equal to another zero input.
        cos = max(-1, min(1, k / r)) if r else mp.mpf(q1 == q2)
        if isinstance(phi, ABRelu):
            a, b = mp.mpf(phi.a), mp.mpf(phi.b)
            return a * b + (b - a) ** 2 / 2 * (1 - mp.acos(cos) / mp.pi)
        lower = RectifiedMonomial(phi.degree - 1)
        step = (mp.pi - mp.acos(cos)) / (2 * mp.pi)
        return phi.degree**2 * (step if phi.degree == 1 else _second_moment(lower, k, q1, q2))
    width = mp.mpf(10) ** -15 * (1 + abs(k))
    higher, lower = (EXACT[phi](k + step, q1, q2) for step in (width, -width))
    return mp.re(higher - lower) / (2 * width)


def _mean(phi, q):
    """Returns the mean: the root of the second moment of independent inputs, because no mean here is negative."""
    return mp.sqrt(_second_moment(phi, mp.mpf(0), q, q))


class _Moments:
    """Covariance, NTK and means of two random fields at two inputs, by pairs (i, j)."""

    def __init__(self, k, t, m):
        self.k, self.t, self.m = k, t, m


_PAIRS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def _weigh(op, k, t, readout=False):
    w, b = mp.mpf(op.w_std) ** 2, mp.mpf(op.b_std or 0) ** 2
    return {p: w * k[p] + b for p in _PAIRS}, {p: w * k[p] + b + w * t[p] for p in _PAIRS}


def _activated(activation, k, t):
    phi = get_activation(activation)
    f = {(i, j): _second_moment(phi, k[i, j], k[i, i], k[j, j]) for i, j in _PAIRS}
    slope = {(i, j): _slope(phi, k[i, j], k[i, i], k[j, j]) for i, j in _PAIRS}
    return f, {p: slope[p] * t[p] for p in _PAIRS}, [_mean(phi, k[i, i]) for i in (0, 1)]


def _applied(op, k, t, m):
    """Returns second moments, NTK and means of the output of an edge, from those of its input."""
    if op.layer_norm:
        c = {(i, j): k[i, j] - m[i] * m[j] for i, j in _PAIRS}
        std = [mp.sqrt(c[i, i] + mp.mpf(LAYER_NORM_EPS)) for i in (0, 1)]
        k, t = ({(i, j): v[i, j] / (std[i] * std[j]) for i, j in _PAIRS} for v in (c, t))
    if op.order == "act-linear" and op.activation is not None:
        k, t, _ = _activated(op.activation, k, t)
    k, t = _weigh(op, k, t)
    if op.order == "linear-act" and op.activation is not None:
        return _activated(op.activation, k, t)
    return k, t, [mp.mpf(0)] * 2


def pair_kernels(network: Network, x, z, *, readout: bool = True) -> tuple[dict, dict]:
    """Returns NNGP and NTK of two inputs (d,) with themselves and each other: {(i, j): number} each.

    All input nodes read the same inputs. The parameterization is "ntk", and the graph has one output.
    """
    with mp.workdps(DIGITS):
        inputs = [[mp.mpf(float(v)) for v in np.ravel(of)] for of in (x, z)]
        k = {(i, j): mp.fdot(inputs[i], inputs[j]) / len(inputs[0]) for i, j in _PAIRS}
        nothing = {p: mp.mpf(0) for p in _PAIRS}
        dag = network.dag
        K, T, M = {}, {}, {}
        for node in range(dag.num_inputs):
            K[node, node], T[node, node], M[node] = _applied(network.stem_op, k, nothing, [mp.mpf(0)] * 2)
            for other in range(node):
                for a, b in ((node, other), (other, node)):
                    K[a, b], T[a, b] = {(i, j): M[a][i] * M[b][j] for i, j in _PAIRS}, nothing
        for node in range(dag.num_inputs, dag.num_nodes):
            into = network.into[node]
            if not into:
                continue
            a = {"sum": mp.mpf(1), "scaled-sum": 1 / mp.sqrt(len(into)), "mean": mp.mpf(1) / len(into)}
            a = a[network.aggregation]
            linear, weighted = [], []
            for edge in into:
                if isinstance(edge.op, Dense):
                    s = edge.source
                    weighted.append(_applied(edge.op, K[s, s], T[s, s], M[s]))
                else:
                    linear.append((edge.source, a * (mp.mpf(edge.op.factor) if isinstance(edge.op, Scale) else 1)))
            M[node] = [sum(f * M[s][i] for s, f in linear) + a * sum(m[i] for *_, m in weighted) for i in (0, 1)]
            fresh = [a * sum(m[i] for *_, m in weighted) for i in (0, 1)]
            earlier = [u for u in range(node) if (u, u) in K]
            for u in earlier:
                K[node, u] = {(i, j): sum(f * K[s, u][i, j] for s, f in linear) + fresh[i] * M[u][j] for i, j in _PAIRS}
                T[node, u] = {p: sum((f * T[s, u][p] for s, f in linear), mp.mpf(0)) for p in _PAIRS}
                for values in (K, T):
                    values[u, node] = {(j, i): values[node, u][i, j] for i, j in _PAIRS}
            own = [(w, t, m) for w, t, m in weighted]
            K[node, node] = {
                (i, j): sum(f * K[s, node][i, j] for s, f in linear)
                + fresh[i] * (M[node][j])
                + a**2 * sum(w[i, j] - m[i] * m[j] for w, _, m in own)
                for i, j in _PAIRS
            }
            T[node, node] = {
                p: sum((f * T[s, node][p] for s, f in linear), mp.mpf(0)) + a**2 * sum(t[p] for _, t, _ in own)
                for p in _PAIRS
            }
        [output] = dag.outputs
        k, t = K[output, output], T[output, output]
        if readout:
            if network.reads_out_activated:
                k, t, _ = _activated(network.layer.activation, k, t)
            k, t = _weigh(network.layer, k, t)
        return k, t


__all__ = ["DIGITS", "EXACT", "Op", "pair_kernels"]
