"""Accuracies of trained cells: reading tables, asking them, refusing the rest."""

import json
import math
import pickle

import numpy as np
import pytest

from nngp_dag.errors import DataError
from nngp_dag.nas import Benchmark, Cell

CELLS = [
    "|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|nor_conv_1x1~2|",
    "|nor_conv_3x3~0|+|none~0|none~1|+|none~0|nor_conv_1x1~1|none~2|",
    "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|",
]


@pytest.fixture
def write(tmp_path):
    def writer(content, name="table.csv"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return writer


@pytest.fixture(scope="module")
def published(golden_dir):
    return Benchmark.load(golden_dir.parent / "data" / "nasbench201_cifar10.csv")


def test_the_published_table(published):
    accuracy = published.column()
    assert len(published) == len(set(published.cells)) == 15_625
    assert accuracy.min() == 10.0
    assert accuracy.max() == pytest.approx(94.3733, abs=1e-4)
    assert accuracy.mean() == pytest.approx(87.0629, abs=1e-4)
    # Its third row, by number, by text and as a cell.
    text = "|avg_pool_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|avg_pool_3x3~0|avg_pool_3x3~1|avg_pool_3x3~2|"
    assert published.index(text) == 2
    assert published[2] == Cell.parse(text)
    assert published.accuracy(2) == published.accuracy(text) == published.accuracy(published[2]) == 85.74000000000001
    assert published.index(Cell.from_index(15_624)) != 15_624


def test_isomorphic_cells_are_found(write):
    table = Benchmark.load(write("arch_str,accuracy\n" + "".join(f"{cell},{90 + i}\n" for i, cell in enumerate(CELLS))))
    assert table.isomorphic(CELLS[0]) == tuple(map(Cell.parse, CELLS[:2]))
    other = "|none~0|+|nor_conv_3x3~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"
    assert [table.accuracy(cell) for cell in table.isomorphic(other)] == [90, 91]


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (f"index,arch_str,note,c10,c100\n7,{CELLS[0]},x,90.5,70\n8,{CELLS[1]},y,80,\n", "t.csv"),
        ([{"arch": CELLS[0], "c10": 90.5, "c100": 70}, {"arch": CELLS[1], "c10": "80", "c100": None}], "t.json"),
        ({CELLS[0]: {"c10": 90.5, "c100": 70}, CELLS[1]: {"c10": 80}}, "t.JSON"),
    ],
)
def test_csv_and_json_say_the_same(write, content, name):
    table = Benchmark.load(write(content, name))
    assert list(table.accuracies) == ["c10", "c100"]
    assert table.accuracy(CELLS[0], "c100") == 70
    assert table.accuracy(CELLS[1], "c10") == 80
    assert math.isnan(table.accuracy(1, "c100"))


def test_objects_within_a_row_become_columns(write):
    table = Benchmark.load(write([{"cell": CELLS[0], "cifar10": {"test": 91.0, "valid": 89.0}}], "t.json"))
    assert list(table.accuracies) == ["cifar10.test", "cifar10.valid"]
    assert Benchmark.load(write({CELLS[0]: 91.0}, "u.json")).accuracy(CELLS[0]) == 91


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("a,b\n1,2\n", "t.csv", "a column arch_str or arch or architecture or cell, got a, b"),
        ("arch_str,accuracy\n", "t.csv", "got no rows"),
        ("arch_str,accuracy\n|none~0|,1\n", "t.csv", "a cell in row 0 of .*3 blocks"),
        ("arch_str,accuracy\n,1\n", "t.csv", "a cell in row 0"),
        (f"arch_str,accuracy\n{CELLS[0]},best\n", "t.csv", "a column of numbers beside 'arch_str', got none"),
        (f"arch_str,accuracy\n{CELLS[0]},1\n{CELLS[0]},2\n", "t.csv", "every cell once, got .* in rows 0 and 1"),
        ("[1, 2]", "t.json", "readable table of accuracies, got neither a list of objects"),
        ("{", "t.json", "readable table of accuracies"),
    ],
)
def test_malformed_tables_are_refused(write, content, name, message):
    with pytest.raises(DataError, match=message):
        Benchmark.load(write(content, name))


def test_a_pickled_file_is_never_opened(tmp_path):
    path = tmp_path / "nas201.pth"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match=r"a \.csv or \.json file of accuracies, got 'nas201\.pth'; export"):
        Benchmark.load(path)
    with pytest.raises(DataError, match="to be a readable table"):
        Benchmark.load(tmp_path / "absent.csv")


def test_what_the_table_does_not_have_is_refused():
    table = Benchmark((Cell.parse(CELLS[0]),), {"a": np.ones(1), "b": np.ones(1)})
    for ask, message in (
        (lambda: table.accuracy(CELLS[1], "a"), "one of the table's 1 cells, got"),
        (lambda: table.accuracy(1, "a"), "a row in 0 to 0, got 1"),
        (lambda: table.accuracy(-1, "a"), "a row in 0 to 0, got -1"),
        (lambda: table.accuracy(0), "`column` to be one of a, b, got None"),
        (lambda: table.column("c"), "`column` to be one of a, b, got 'c'"),
        (lambda: Benchmark(table.cells, {"a": np.ones(2)}), r"column 'a' to hold 1 numbers, got \(2,\)"),
        (lambda: Benchmark(table.cells, {}), "cells with accuracies, got 1 cells, 0 columns"),
    ):
        with pytest.raises(DataError, match=message):
            ask()
