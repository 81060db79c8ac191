"""Parameter counts against those of the authors' networks, and floating-point operations against formulas."""

import json

import jax
import pytest
from flax import nnx

from nngp_dag.errors import GraphError
from nngp_dag.graph import Conv, Dag
from nngp_dag.nets import DagNet, summarize

CODES = ("2_02_002", "1_01_222", "2_21_112", "1_11_111", "2_22_222", "0_02_002", "2_00_200")
# Two intended differences: no path leads through the first code, for which the authors' network crashes and ours is
# refused. The authors' network of the second code has blocks that no path reaches, which ours leaves out.
NO_PATH, DEAD = "0_02_002", {"2_00_200": {False: (59_210, 55_050), True: (59_594, 55_306)}}


def abstract(code, batch_norm):
    """Returns the authors' network without arrays of weights; its biases start at 0 and are trained."""
    return nnx.eval_shape(
        lambda: DagNet(
            Dag.from_code(code),
            784,
            10,
            width=64,
            b_std=0.0,
            parameterization="standard",
            batch_norm=batch_norm,
            rngs=nnx.Rngs(0),
        )
    )


@pytest.fixture(scope="module")
def theirs(golden_dir):
    rows = json.loads((golden_dir / "mlp_dag_params.json").read_text())
    return {(row["dag"], row["bn"]): row for row in rows}


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_reference_holds_what_is_compared(theirs):
    assert set(theirs) == {(code, bn) for code in CODES for bn in (False, True)}
    assert {(row["width"], row["in_dim"], row["out_dim"]) for row in theirs.values()} == {(64, 784, 10)}
    assert {code for (code, _), row in theirs.items() if row["forward_raises"]} == {NO_PATH}
    unreached = {
        code for (code, _), row in theirs.items() if row["n_params_reached_by_gradient"] not in (None, row["n_params"])
    }
    assert unreached == set(DEAD)


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("code", [code for code in CODES if code != NO_PATH])
def test_counts_are_those_of_the_authors(theirs, code, batch_norm):
    row = theirs[code, batch_norm]
    if code in DEAD:
        assert (row["n_params"], row["n_params_reached_by_gradient"]) == DEAD[code][batch_norm]
    expected = row["n_params_reached_by_gradient"]
    model = abstract(code, batch_norm)
    summary = summarize(model)
    assert summary.parameters == size(nnx.state(model, nnx.Param)) == expected
    groups = [
        summary.layers[0].parameters,
        sum(layer.parameters for layer in summary.layers[1:-1]),
        summary.layers[-1].parameters,
    ]
    if code not in DEAD:
        assert groups == list(row["by_group"].values())
        # Their count includes, for every norm, its number of batches.
        norms = len(summary.layers) - 1
        assert size(nnx.state(model, nnx.BatchStat)) == (row["n_buffers"] - norms if batch_norm else 0)


def test_a_graph_without_a_path_is_refused(theirs):
    for batch_norm in (False, True):
        assert theirs[NO_PATH, batch_norm]["forward_raises"]
        with pytest.raises(GraphError, match="Expected a path from node 0 to the output node 3"):
            abstract(NO_PATH, batch_norm)


def test_flops_of_dense_layers():
    summary = summarize(abstract("2_21_112", True))
    assert [layer.name for layer in summary.layers] == ["stem", "0 -> 1", "0 -> 2", "2 -> 3", "readout"]
    stem, edge, readout = 2 * 784 * 64 + 64, 2 * 64 * 64 + 64, 2 * 64 * 10 + 10
    assert [layer.flops for layer in summary.layers] == [stem, edge, edge, edge, readout]
    assert summary.flops == stem + 3 * edge + readout
    assert [layer.output_shape for layer in summary.layers] == [(64,)] * 4 + [(10,)]
    assert ["with batch norm" in layer.operation for layer in summary.layers] == [True] * 4 + [False]


@pytest.mark.parametrize(("readout", "weights"), [("flatten", 7 * 5 * 8), ("global-average", 8)])
def test_flops_of_convolutions_count_every_place(readout, weights):
    model = nnx.eval_shape(
        lambda: DagNet(
            Dag.from_code("2_12"),
            3,
            10,
            width=8,
            layer=Conv(filter_shape=(3, 3)),
            image_shape=(7, 5),
            image_readout=readout,
            rngs=nnx.Rngs(0),
        )
    )
    summary = summarize(model)
    assert [layer.parameters for layer in summary.layers] == [9 * 3 * 8, 9 * 64, 9 * 64, weights * 10]
    assert [layer.flops for layer in summary.layers] == [
        35 * 2 * 9 * 3 * 8,
        35 * 2 * 9 * 64,
        35 * 2 * 9 * 64,
        2 * weights * 10,
    ]
    assert [layer.output_shape for layer in summary.layers] == [(7, 5, 8)] * 3 + [(10,)]
