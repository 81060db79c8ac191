"""How graphs and networks draw themselves."""

import re
import xml.etree.ElementTree as ET

import matplotlib
import matplotlib.style
import pytest
from matplotlib.figure import Figure
from pictures import check

import nngp_dag as nd
from nngp_dag import style
from nngp_dag.errors import InputError
from nngp_dag.graph import drawing, zoo
from nngp_dag.graph.codes import nasbench201_edges

CELL = "|nor_conv_3x3~0|+|avg_pool_3x3~0|skip_connect~1|+|none~0|nor_conv_1x1~1|avg_pool_3x3~2|"
GRAPHS = {
    "two nodes": nd.Dag.from_code("2"),
    "mixed": nd.Dag.from_code("2_21_112"),
    "dead edges": nd.Dag.from_code("2_02_200"),
    "parallel": nd.Dag.from_edges([(0, 1, 2), (0, 1, 2), (0, 1, 1), (1, 2, nd.Scale(0.5))]),
    "no path": nd.Dag(3, (), allow_disconnected=True),
    "60 nodes": zoo.ladder(60),
}


def ids(svg):
    return re.findall(r'id="((?:dead-)?edge-\d+)"', svg)


def labels(axes):
    """Returns the texts of the legend."""
    return [text.get_text() for text in axes.get_legend().get_texts()]


def rows_of(value):
    """Returns {name: text} of the table that a notebook shows instead of a picture."""
    table = value._repr_html_()
    assert table is not None
    return {row[0].text: row[1].text for row in ET.fromstring(table).findall("tr")}


@pytest.mark.parametrize("name", GRAPHS)
def test_notebooks_show_an_arc_for_every_edge(name):
    dag = GRAPHS[name]
    svg = dag._repr_svg_()
    assert svg is not None
    root = ET.fromstring(svg.encode())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    live = set(dag.live_edges)
    expected = [f"edge-{i}" if edge in live else f"dead-edge-{i}" for i, edge in enumerate(dag.edges)]
    assert sorted(ids(svg)) == sorted(expected)
    assert dag._repr_html_() is None
    assert len(svg) < 500_000


def test_pictures_are_white_and_always_the_same():
    dag = GRAPHS["mixed"]
    svg = dag._repr_svg_()
    assert svg is not None
    background = next(part for part in svg.split("<path")[1:])
    assert "fill: #ffffff" in background
    assert "dc:date" not in svg
    # Whatever the user has set, as for dark slides; their settings stay.
    with matplotlib.rc_context({"text.color": "white", "font.size": 30, "svg.fonttype": "none", "svg.hashsalt": "own"}):
        assert dag._repr_svg_() == svg
        assert matplotlib.rcParams["text.color"] == "white"
        assert matplotlib.rcParams["svg.hashsalt"] == "own"


def test_no_figure_stays_open():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    GRAPHS["mixed"]._repr_svg_()
    assert plt.get_fignums() == before


def test_large_graphs_are_shown_as_numbers():
    long, dense = zoo.chain(60), nd.Dag.from_edges([(i, j, 1) for i in range(17) for j in range(i + 1, 18)])
    assert long.num_nodes == 61
    assert len(dense.edges) == 153
    for dag in (long, dense):
        assert dag._repr_svg_() is None
        assert nd.Network(dag)._repr_svg_() is None
        rows = rows_of(dag)
        assert rows["nodes"] == f"{dag.num_nodes}"
        assert rows["edges"] == f"{len(dag.edges)}"
    assert rows["paths"] == f"{dense.num_paths:,}"
    assert rows_of(nd.Network(long, width=8))["width"] == "8"
    assert re.fullmatch(r".*e104", rows_of(zoo.ladder(501))["paths"] or "")


NOTE = "layer=Dense(activation='erf', order='act-linear', w_std=1.5), aggregation='mean', readout=False, width=64"


@pytest.mark.parametrize(
    ("name", "note"),
    [
        ("two nodes", "all options at their defaults"),
        ("mixed", NOTE),
        pytest.param("parallel", "", marks=pytest.mark.slow),
        pytest.param("no path", "", marks=pytest.mark.slow),
        pytest.param("60 nodes", NOTE, marks=pytest.mark.slow),
    ],
)
def test_pictures_of_notebooks_can_be_read(name, note):
    figure = drawing._figure(GRAPHS[name], (), note, most=drawing._NOTEBOOK_WIDTH)
    style.settle(figure)
    check(figure)


def test_networks_state_their_options_below_the_picture(monkeypatch):
    figures = []
    monkeypatch.setattr(style, "as_svg", lambda figure: figures.append(figure) or "")
    nd.Network("2_12", aggregation="mean", width=64)._repr_svg_()
    nd.Network("2_12")._repr_svg_()
    titles = [figure.legends[0].get_title().get_text() for figure in figures]
    assert titles == ["aggregation='mean', width=64", "all options at their defaults"]
    assert nd.Network("2_12")._repr_html_() is None


def test_nodes_of_large_graphs_are_numbered_now_and_then():
    figure = drawing._figure(GRAPHS["60 nodes"], (), most=drawing._NOTEBOOK_WIDTH)
    [axes] = figure.axes
    assert [text.get_text() for text in axes.texts] == [str(node) for node in range(0, 60, 2)]


def test_graphs_are_drawn_on_axes():
    figure = Figure(figsize=(6, 4), layout="constrained")
    first, second = figure.subplots(1, 2)
    assert GRAPHS["mixed"].plot(first) is first
    nd.Dag.from_nasbench201(CELL).plot(second, operations=nasbench201_edges(CELL))
    check(figure)
    assert len(first.patches) == 6
    assert labels(first) == ["weighted edge", "skip"]
    assert any("pooling" in label for label in labels(second))


def test_graphs_are_drawn_on_a_new_figure():
    import matplotlib.pyplot as plt

    axes = GRAPHS["mixed"].plot()
    try:
        figure = plt.figure(plt.get_fignums()[-1])
        assert axes.figure is figure
        check(figure)
    finally:
        plt.close()


def test_networks_are_drawn_as_their_graphs():
    axes = nd.Network(nd.Dag.from_nasbench201(CELL), width=64).plot(
        Figure().add_subplot(), operations=nasbench201_edges(CELL)
    )
    assert len(axes.patches) == 5
    assert any("pooling" in label for label in labels(axes))


def test_texts_on_white_are_black_whatever_the_style():
    with matplotlib.style.context("dark_background"):
        axes = nd.Dag.from_nasbench201(CELL).plot(Figure((9, 5)).add_subplot(), operations=nasbench201_edges(CELL))
    found = {text.get_text(): text.get_color() for text in axes.texts}
    assert {"0", "3", "conv 3x3", "skip"} <= set(found)
    assert set(found.values()) == {"#000000"}


def test_the_legend_lists_the_kinds_of_edges_on_paths():
    # The only skip leads to a node that no edge leaves.
    dag = nd.Dag.from_nasbench201("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|nor_conv_1x1~1|none~2|")
    axes = dag.plot(Figure().add_subplot())
    assert labels(axes) == ["weighted edge", "on no path"]


def test_names_find_their_edges():
    dag = nd.Dag.from_edges([(0, 1, 2), (0, 1, 1), (1, 2, nd.Dense()), (1, 2, 2), (0, 2, 1)])
    operations = [(0, 1, "concat"), (0, 1, "nor_conv_1x1"), (1, 2, "mine"), (0, 2, "none")]
    named = {str(edge): name for edge, name in zip(dag.edges, drawing.edge_names(dag, operations), strict=True)}
    assert (named["0->1:skip"], named["0->1:weighted"], named["0->2:skip"]) == ("concat", "nor_conv_1x1", "")
    assert sorted(name for edge, name in named.items() if edge.startswith("1->2")) == ["", "mine"]


@pytest.mark.parametrize("axes", ["x", 3, [Figure().add_subplot()], "3d", "polar"])
def test_pictures_need_axes_of_two_dimensions(axes, unchecked):
    if axes in ("3d", "polar"):
        axes = Figure().add_subplot(projection=axes)
    with pytest.raises(InputError, match=r"Expected `axes` to be two-dimensional axes of matplotlib, got .*; pass"):
        GRAPHS["mixed"].plot(axes)
    with pytest.raises(InputError, match="Expected `axes`"):
        nd.Network(GRAPHS["mixed"]).plot(axes)


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        (3, r"a list of \(source, target, name\), got 3; write"),
        ("skip", r"a list of \(source, target, name\), got 'skip'; write"),
        ([(0, 1)], r"\(source, target, name\) of edges, got \(0, 1\); write"),
        ([3], r"\(source, target, name\) of edges, got 3; write"),
        ([(0, 1, 2)], r"\(source, target, name\) of edges, got \(0, 1, 2\); write"),
        ([("a", 1, "skip_connect")], r"\(source, target, name\) of edges, got \('a', 1, "),
        ([(0, 9, "mine")], r"got \(0, 9, 'mine'\), for which there is no edge left; pass"),
        ([(0, 1, "skip_connect")], r"got \(0, 1, 'skip_connect'\), for which there is no edge without weights left"),
        ([(1, 2, "nor_conv_1x1")], r"got \(1, 2, 'nor_conv_1x1'\), for which there is no edge with weights left"),
        ([(0, 1, "mine")] * 2, r"got \(0, 1, 'mine'\), for which there is no edge left"),
    ],
)
def test_operations_name_edges(operations, message, unchecked):
    axes = Figure().add_subplot()
    with pytest.raises(InputError, match=rf"Expected `operations` to .*{message}"):
        GRAPHS["mixed"].plot(axes, operations=operations)
    assert not axes.patches
