"""Plans: every arrangement of one graph computes the same kernels, at a cost linear in the graph."""

import importlib
from collections import Counter

import numpy as np
import pytest
from oracles import joint_kernels

import nngp_dag as nd
from nngp_dag.architecture import Network, as_network
from nngp_dag.errors import GraphError, InputError
from nngp_dag.graph import AvgPool, Dag, Dense, Edge, Op, Scale

# By name, because `import ... as` would bind the functions of the same names.
planning = importlib.import_module("nngp_dag.architecture.program")
evaluating = importlib.import_module("nngp_dag.kernels.choose")
SKIP, WEIGHTED = Op.SKIP, Op.WEIGHTED
X = np.random.default_rng(0).normal(size=(3, 5))
PLANS = {
    "dense": planning._dense,
    "rows": lambda network: planning._Planner(network).plan_rows(),
    "pairs": lambda network: planning._Planner(network).plan_pairs(),
}
SKIPS = Dag(  # Every node is the sum of all earlier ones: multiplicities grow, and most pairs have covariances.
    6, tuple(Edge(s, t, WEIGHTED if s == t - 1 else SKIP) for t in range(1, 6) for s in range(t))
)
MIXED = Dag(6, tuple(Edge(e.source, e.target, Scale(-0.5) if e.op is SKIP else e.op) for e in SKIPS.edges))


@pytest.fixture
def plan_by(monkeypatch):
    """Makes `kernel` use one plan."""

    def choose(name):
        evaluating.plan_of.cache_clear()
        monkeypatch.setattr(evaluating, "program", PLANS[name])

    yield choose
    monkeypatch.undo()
    evaluating.plan_of.cache_clear()


@pytest.mark.sample(1, slow=2)
@pytest.mark.parametrize(
    ("dag", "plans"),
    [(Dag.from_code("1_11_212"), PLANS), (SKIPS, ("rows", "pairs")), (MIXED, ("rows",))],
    ids=["unrolled", "loop", "scales"],
)
def test_all_plans_give_the_same_kernels(dag, plans, plan_by):
    options = {"b_std": 0.2, "w_std": 1.1, "aggregation": "scaled-sum", "activation": "erf"}
    [(nngp, ntk)] = joint_kernels(as_network(dag, **options), [X])
    for name in plans:
        plan_by(name)
        k = nd.kernel(dag, X, **options)
        np.testing.assert_allclose(k.nngp, nngp, rtol=1e-12)
        np.testing.assert_allclose(k.ntk, ntk, rtol=1e-12)


@pytest.mark.sample(3)
@pytest.mark.parametrize("num_nodes", [10, 50, 200, 1000, 2000])
@pytest.mark.parametrize("step", [2, 5])
def test_ladders_cost_no_more_than_their_edges(num_nodes, step):
    edges = [*nd.zoo.chain(num_nodes - 1).edges, *(Edge(t, t + step, SKIP) for t in range(num_nodes - step))]
    dag = Dag(num_nodes, tuple(edges))
    # Skips over several nodes keep that many more covariances alive.
    assert len(planning.program(Network(dag)).weights) <= (step - 1) * (len(edges) + 1)


@pytest.mark.parametrize("num_nodes", [10, 100, pytest.param(500, marks=pytest.mark.nightly)])
def test_residual_networks_cost_no_more_than_their_edges(num_nodes):
    edges = [Edge(t, t + 1, op) for t in range(num_nodes - 1) for op in (SKIP, WEIGHTED)]
    dag = Dag(num_nodes, tuple(edges))
    assert len(planning.program(Network(dag)).weights) <= len(edges) + 1
    assert len(planning._Planner(Network(dag)).plan_rows().weights) > num_nodes**2 / 3


@pytest.mark.sample(1)
@pytest.mark.parametrize("num_nodes", [8, 20, 40])
def test_dense_skips_are_planned_by_rows(num_nodes):
    # As in DenseNet, every node is the sum of all earlier ones.
    edges = [Edge(s, t, WEIGHTED if s == t - 1 else SKIP) for t in range(1, num_nodes) for s in range(t)]
    network = Network(Dag(num_nodes, tuple(edges)))
    plan = planning.program(network)
    assert plan.structure == PLANS["rows"](network).structure
    assert len(plan.weights) <= len(edges) + num_nodes
    assert len(PLANS["pairs"](network).weights) > 2 * len(plan.weights)


def test_planning_a_ladder_takes_work_in_proportion_to_its_edges(monkeypatch):
    calls = Counter()

    def counted(name, method):
        def call(*arguments):
            calls[name] += 1
            return method(*arguments)

        return call

    for name in ("add", "_key", "_unweighted"):
        monkeypatch.setattr(planning._Planner, name, counted(name, getattr(planning._Planner, name)))
    dag = nd.zoo.ladder(1500)
    plan = planning.program.__wrapped__(Network(dag))
    assert len(plan.structure.steps) <= len(dag.edges) + 1
    assert calls.keys() == {"add", "_key", "_unweighted"}
    assert max(calls.values()) <= 4 * len(dag.edges)


@pytest.mark.parametrize("dag", [SKIPS, nd.zoo.ladder(9), nd.zoo.random_dag(8, seed=3)], ids=str)
@pytest.mark.parametrize("plan", ["rows", "pairs"])
def test_slots_are_written_once_and_before_they_are_read(dag, plan):
    program = PLANS[plan](Network(dag))
    structure = program.structure
    written = set(range(structure.num_inputs))
    for step in structure.steps:
        assert {term.slot for term in step.terms} <= written
        new = [step.slot, *(field.slot for field in step.fields)]
        assert not written & set(new)
        assert len(set(new)) == len(new)
        written |= set(new)
    assert written == set(range(structure.num_slots))
    assert set(structure.outputs) <= {step.node for step in structure.steps}
    assert len(program.weights) == sum(len(step.terms) for step in structure.steps)
    assert len(program.mean_weights) == sum(map(len, structure.means))


def test_plain_graphs_of_one_small_size_have_one_structure():
    structures = {planning.program(Network(Dag.from_code(code))).structure for code in ("2_02_002", "1_01_222")}
    assert len(structures) == 1
    assert structures != {planning.program(Network(Dag.from_code("2_02"))).structure}
    own = Dag(4, tuple(Edge(t, t + 1, Scale(2.0) if t else WEIGHTED) for t in range(3)))
    assert planning.program(Network(own)).structure not in structures


def test_pooling_is_planned_by_pairs():
    pool = AvgPool((2, 2))
    dag = Dag(4, (Edge(0, 1, pool), Edge(0, 2, SKIP), Edge(1, 2, SKIP), Edge(2, 3, WEIGHTED), Edge(1, 3, pool)))
    structure = planning.program(Network(dag, Dense(activation=None))).structure
    terms = {(term.left, term.right) for step in structure.steps for term in step.terms}
    assert {(pool, None), (pool, pool), (None, None)} <= terms


def test_multiplicities_beyond_float64_are_refused():
    edges = tuple(Edge(t, t + 1, SKIP) for t in range(1200) for _ in range(2))
    with pytest.raises(GraphError, match="skip multiplicities of node 1200 whose squares float64 can hold"):
        planning._Planner(Network(Dag(1201, edges))).plan_rows()


@pytest.mark.parametrize(
    ("num_steps", "dtype"), [pytest.param(600, "float64", marks=pytest.mark.slow), (70, "float32")]
)
def test_products_of_multiplicities_beyond_the_dtype_are_refused(num_steps, dtype):
    # A plan by pairs multiplies by 4 at every step, so that every weight stays in range.
    dag = Dag(num_steps + 1, tuple(Edge(t, t + 1, SKIP) for t in range(num_steps) for _ in range(2)))
    with pytest.raises(
        InputError, match=f"kernels that {dtype} can hold, got an NNGP .* not finite; its .* paths, through skips"
    ):
        nd.kernel(dag, X.astype(dtype))
