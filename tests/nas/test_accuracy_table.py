"""Accuracies of trained cells: reading of tables, look-ups, and refusals."""

import json
import math
import pickle

import numpy as np
import pytest

from nngp_dag.errors import DataError
from nngp_dag.nas import AccuracyTable, Cell

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
def published(nasbench201):
    return AccuracyTable.load(nasbench201)


def test_the_published_table(published):
    accuracy = published.column()
    assert len(published) == len(set(published.cells)) == 15_625
    assert accuracy.min() == 10.0
    assert accuracy.max() == pytest.approx(94.3733, abs=1e-4)
    assert accuracy.mean() == pytest.approx(87.0629, abs=1e-4)
    # The third row of the table, by number, by text and as a cell.
    text = "|avg_pool_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|avg_pool_3x3~0|avg_pool_3x3~1|avg_pool_3x3~2|"
    assert published.index(text) == 2
    assert published[2] == Cell.parse(text)
    assert published.accuracy(2) == published.accuracy(text) == published.accuracy(published[2]) == 85.74000000000001
    assert published.index(Cell.from_index(15_624)) != 15_624


def test_isomorphic_cells_are_found(write):
    table = AccuracyTable.load(
        write("arch_str,accuracy\n" + "".join(f"{cell},{90 + i}\n" for i, cell in enumerate(CELLS)))
    )
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
    table = AccuracyTable.load(write(content, name))
    assert list(table.accuracies) == ["c10", "c100"]
    assert table.accuracy(CELLS[0], "c100") == 70
    assert table.accuracy(CELLS[1], "c10") == 80
    assert math.isnan(table.accuracy(1, "c100"))


def test_objects_within_a_row_become_columns(write):
    table = AccuracyTable.load(write([{"cell": CELLS[0], "cifar10": {"test": 91.0, "valid": 89.0}}], "t.json"))
    assert list(table.accuracies) == ["cifar10.test", "cifar10.valid"]
    assert AccuracyTable.load(write({CELLS[0]: 91.0}, "u.json")).accuracy(CELLS[0]) == 91


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        ("a,b\n1,2\n", "t.csv", "a column arch_str or arch or architecture or cell or genotype, got a, b"),
        ("arch_str,accuracy\n", "t.csv", "got no rows"),
        ("arch_str,accuracy\n|none~0|,1\n", "t.csv", "a cell in row 0 of .*3 blocks"),
        ("arch_str,accuracy\n,1\n", "t.csv", "a cell in row 0"),
        (f"arch_str,accuracy\n{CELLS[0]},best\n", "t.csv", "a column of numbers beside 'arch_str', got none"),
        (f"arch_str,accuracy\n{CELLS[0]},1\n{CELLS[0]},2\n", "t.csv", "every cell once, got .* in rows 0 and 1"),
        ("[1, 2]", "t.json", "readable table of accuracies, got neither a list of objects"),
        ("{", "t.json", "readable table of accuracies"),
        ("", "t.csv", "got no rows"),
        ("", "t.json", "readable table of accuracies"),
        ("[]", "t.json", "got no rows"),
        ("[{}]", "t.json", "a column arch_str or"),
        ("[" * 100_000, "t.json", "readable table of accuracies"),
        (f"arch_str,accuracy\n{CELLS[0]},{'9' * 200_000}\n", "t.csv", "field larger than field limit"),
        (f"arch_str,accuracy\n{'x' * 100_000},1\n", "t.csv", r"a cell in row 0 of .{,500}$"),
        (f"arch_str,accuracy\n{CELLS[0]},1\n{CELLS[1]},1,2\n", "t.csv", "got 3 fields in row 1 under a header of 2"),
        (f"arch_str,accuracy\n{CELLS[0]},1\n{CELLS[1]}", "t.csv", "got 1 fields in row 1 under a header of 2"),
        (f"arch_str,accuracy,accuracy\n{CELLS[0]},1,2\n", "t.csv", "got 'accuracy' twice"),
        (f"arch_str,accuracy\n{CELLS[0]},91\n{CELLS[1]},9O\n", "t.csv", "'accuracy' of .* numbers, got '9O' in row 1"),
        (f"arch_str,accuracy\n{CELLS[0]},inf\n{CELLS[1]},9\n", "t.csv", "'accuracy' to be finite, got inf in row 0"),
        (f"arch_str,accuracy\n{CELLS[0]},91\n{CELLS[1]},9_3\n", "t.csv", "numbers, got '9_3' in row 1"),
        (f"arch_str,accuracy\n{CELLS[0]},91\n{CELLS[1]},٩٣\n", "t.csv", "numbers, got '٩٣' in row 1"),
        (f"arch_str,accuracy\n{CELLS[0]},91\n{CELLS[1]},1e5\n", "t.csv", "from 0 to 100, got 100000 in row 1; correct"),
        (f"arch_str,accuracy\n{CELLS[0]},-0.5\n{CELLS[1]},1\n", "t.csv", "from 0 to 100, got -0.5 in row 0; correct"),
        (f'{{"{CELLS[0]}": 1, "{CELLS[0]}": 2}}', "t.json", "~0.* twice"),
        (f'[{{"cell": "{CELLS[0]}", "a": 1, "a": 2}}]', "t.json", "got 'a' twice"),
        ([{"cell": CELLS[0], "a.b": 1, "a": {"b": 2}}], "t.json", r"got 'a\.b' twice"),
        ({CELLS[0]: {"arch_str": CELLS[1], "a": 1}}, "t.json", "got 'arch_str' twice"),
        ([{"cell": None, "a": 1}], "t.json", "a cell in row 0 .* got None"),
        ([{"cell": [CELLS[0]], "a": 1}], "t.json", "a cell in row 0"),
        ([{"cell": CELLS[0], "a": 1}, {"cell": CELLS[1], "a": True}], "t.json", "numbers, got True in row 1"),
        ([{"cell": CELLS[0], "a": 1}, {"cell": CELLS[1], "a": [2]}], "t.json", r"numbers, got \[2\] in row 1"),
        ([{"cell": CELLS[0], "a": 1}, {"cell": CELLS[1], "a": 10**400}], "t.json", r"numbers, got 10+\.\.\. in row 1"),
        (f'[{{"cell": "{CELLS[0]}", "a": {"1" * 5000}}}]', "t.json", "readable table of accuracies"),
    ],
)
def test_malformed_tables_are_refused(write, content, name, message, unchecked):
    with pytest.raises(DataError, match=message):
        AccuracyTable.load(write(content, name))


def test_what_spreadsheets_and_pandas_add_is_read_over(write):
    table = AccuracyTable.load(write(f"\ufeff,arch_str,a\r\n0,{CELLS[0]},1\r\n\r\n1,{CELLS[1]},NaN\r\n"))
    assert list(table.accuracies) == ["a"]
    assert math.isnan(table.accuracy(1))
    table = AccuracyTable.load(write(f'\ufeff[{{"arch_str": "{CELLS[0]}", "a": 1, "note": "x\\u2028y"}}]', "t.json"))
    assert list(table.accuracies) == ["a"]


def test_cells_without_an_accuracy_have_nan(write):
    table = AccuracyTable.load(write(f"cell,a,b\n{CELLS[0]},1,2\n{CELLS[1]},,3\n"))
    some = list(map(Cell.parse, CELLS[::-1]))
    np.testing.assert_array_equal(table.look_up(some, "a"), [np.nan, np.nan, 1])
    np.testing.assert_array_equal(table.look_up(some, "b"), [np.nan, 3, 2])
    with pytest.raises(DataError, match="`column` to be one of a, b, got None"):
        table.look_up(some)


def test_a_pickled_file_is_never_opened(tmp_path):
    path = tmp_path / "nas201.pth"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match=r"a \.csv or \.json file of accuracies, got 'nas201\.pth'; export"):
        AccuracyTable.load(path)
    with pytest.raises(DataError, match="to be a readable table"):
        AccuracyTable.load(tmp_path / "absent.csv")


def test_what_the_table_does_not_have_is_refused():
    table = AccuracyTable((Cell.parse(CELLS[0]),), {"a": np.ones(1), "b": np.ones(1)})
    for ask, message in (
        (lambda: table.accuracy(CELLS[1], "a"), "one of the table's 1 cells, got"),
        (lambda: table.accuracy(1, "a"), "a row in 0 to 0, got 1"),
        (lambda: table.accuracy(-1, "a"), "a row in 0 to 0, got -1"),
        (lambda: table.accuracy(0), "`column` to be one of a, b, got None"),
        (lambda: table.column("c"), "`column` to be one of a, b, got 'c'"),
        (lambda: AccuracyTable(table.cells, {"a": np.ones(2)}), r"column 'a' to hold 1 numbers, got \(2,\)"),
        (lambda: AccuracyTable(table.cells, {}), "cells with accuracies, got 1 cells, 0 columns"),
    ):
        with pytest.raises(DataError, match=message):
            ask()
