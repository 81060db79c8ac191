"""Classes of networks with equal kernels, and one program for many of them."""

import itertools

import numpy as np
import pytest

from nngp_dag.architecture import Network, as_network
from nngp_dag.architecture.equivalence import KernelClasses
from nngp_dag.errors import GraphError
from nngp_dag.graph import AvgPool, Dag, Dense, Scale, zoo


def laws_of(dags, **options):
    kernel_classes = KernelClasses()
    return [kernel_classes.add(as_network(dag, **options)) for dag in dags]


def test_all_codes_of_three_blocks():
    networks = {}
    for code in zoo.codes(3):
        try:
            networks[code] = Network(Dag.from_code(code))
        except GraphError:
            continue
    kernel_classes = KernelClasses()
    found = {code: kernel_classes.add(network) for code, network in networks.items()}
    assert (len(found), len(set(found.values()))) == (662, 83)
    # The digest of a network depends neither on the order nor on the other networks.
    again = KernelClasses()
    assert {code: again.add(networks[code]) for code in reversed(networks)} == found
    assert KernelClasses().add(networks["2_21_112"]) == found["2_21_112"]


def test_homogeneous_operations_move_factors():
    """A factor, from a sum of two skips, may come before a homogeneous layer or after it."""
    one, other = (as_network(Dag.from_code(code)) for code in ("1_11_112", "2_11_111"))
    strict, loose = KernelClasses(), KernelClasses(lambda op: True)
    assert strict.add(one) != strict.add(other)
    assert loose.add(one) == loose.add(other)
    # With one operation that is not homogeneous, such as one with biases, factors do not move.
    partly = KernelClasses(lambda op: op.b_std is None)
    one, other = (as_network(Dag.from_code(code), b_std=0.1) for code in ("1_11_112", "2_11_111"))
    assert partly.add(one) != partly.add(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        # A skip on the way, edges on no path, and the same graph with its middle nodes renamed.
        ("2", "1_02"),
        ("2_02", "2_02_001"),
        ("2_12", "2_12_001"),
        ("2_21_022", "2_21_222"),
        ("2_20_022", "2_20_202"),
    ],
)
def test_equal_and_different_laws(one, other):
    equal = one not in ("2_21_022", "2_20_022")
    first, second = laws_of([Dag.from_code(one), Dag.from_code(other)])
    assert (first == second) == equal


def test_two_branches_alike_are_one_law_twice():
    """Two independent branches of equal digest add up to the weight A = 2. A shared branch would have A = 4."""
    apart = Dag.from_edges([(0, 1, "weighted"), (0, 2, "weighted"), (1, 3, "skip"), (2, 3, "skip")])
    together = Dag.from_edges([(0, 1, "weighted"), (1, 2, "skip"), (1, 3, "skip"), (2, 3, "skip")])
    scaled = Dag.from_edges([(0, 1, "weighted"), (1, 2, Scale(2.0))])
    first, second, third = laws_of([apart, together, scaled])
    assert first != second
    assert second == third


def test_means_count_only_where_there_are_any():
    """The weights (A, B) = (4, 2) of one edge twice and (4, 4) of four edges differ in the means only."""
    twice = Dag.from_edges([(0, 1, "weighted"), (1, 2, Scale(2.0))])
    four = Dag.from_edges([(0, 1, "weighted")] * 4)
    assert len(set(laws_of([twice, four]))) == 2
    assert len(set(laws_of([twice, four], order="act-linear"))) == 1


def test_operations_are_told_apart():
    dags = [
        Dag.from_edges([(0, 1, Dense(activation=activation, w_std=w_std, b_std=b_std))])
        for activation, w_std, b_std in itertools.product(("relu", "erf"), (1.0, 1.5), (None, 0.0, 0.1))
    ]
    assert len(set(laws_of(dags))) == len(dags)


class Named:
    """An operation whose description does not distinguish it from others."""

    def __repr__(self):
        return "Named()"


def test_operations_that_read_alike_are_told_apart():
    first, second = (Dense(activation=activation) for activation in (Named(), Named()))
    kernel_classes = KernelClasses()
    assert kernel_classes._text(first) != kernel_classes._text(second)


def test_aggregation_counts():
    dag = Dag.from_code("2_12")
    assert len({laws_of([dag], aggregation=name)[0] for name in ("sum", "scaled-sum", "mean")}) == 3


def test_what_no_table_describes():
    with pytest.raises(GraphError, match=r"one output and no pooling, got pooling; use `nngp_dag.kernel`"):
        KernelClasses().add(Network(Dag.from_edges([(0, 1, AvgPool((2, 2)))])))
    with pytest.raises(GraphError, match="one output and no pooling, got 2 outputs"):
        KernelClasses().add(Network(Dag.from_edges([(0, 1, "skip"), (0, 2, "weighted")], output=[1, 2])))


def test_the_program_evaluates_every_law_once():
    kernel_classes = KernelClasses()
    dags = [Dag.from_code(code) for code in ("2_02_002", "2_02", "2", "2_02_002")]
    outputs = [kernel_classes.add(Network(dag)) for dag in dags]
    structure = kernel_classes.program(outputs).structure
    # The steps are nodes 0 to 3 of the longest chain, which contains the shorter chains.
    assert len(structure.steps) == 4
    assert structure.outputs == (3, 2, 1, 3)
    with_readout = kernel_classes.program(outputs, Dense(activation=None))
    assert len(with_readout.structure.steps) == 7
    assert len(set(with_readout.structure.outputs)) == 3
    assert with_readout.structure.outputs[0] == with_readout.structure.outputs[3]
    np.testing.assert_array_equal(with_readout.weights, np.ones(7))


def test_a_program_holds_only_what_its_outputs_need():
    kernel_classes = KernelClasses()
    chain, wide = (kernel_classes.add(Network(Dag.from_code(code))) for code in ("2_02_002", "2_22_222"))
    assert len(kernel_classes.program([chain]).structure.steps) == 4
    assert len(kernel_classes.program([wide]).structure.steps) == 4
    # Nodes 0 and 1 are shared.
    assert len(kernel_classes.program([chain, wide]).structure.steps) == 6
