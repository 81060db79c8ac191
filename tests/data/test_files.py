import jaxtyping
import numpy as np
import pytest

from nngp_dag.data import load_file, load_source
from nngp_dag.errors import DataError, InputWarning

X = np.random.default_rng(0).normal(size=(40, 3))
LABELS = np.arange(40) % 3


def npz(folder, **arrays):
    np.savez(folder / "my.npz", **arrays)
    return folder / "my.npz"


def csv(folder, text):
    (folder / "my.csv").write_text(text)
    return folder / "my.csv"


@pytest.mark.parametrize(
    ("y", "numbers", "classes"),
    [
        (LABELS, LABELS, ("0", "1", "2")),
        (LABELS * 5 - 1, LABELS, ("-1", "4", "9")),
        (LABELS[:, None].astype(np.uint8), LABELS, ("0", "1", "2")),
        (np.array(["b", "c", "a"])[LABELS], np.array([1, 2, 0])[LABELS], ("a", "b", "c")),
        (LABELS == 1, (LABELS == 1).astype(int), ("False", "True")),
        (np.eye(3)[LABELS], LABELS, ("0", "1", "2")),
    ],
)
def test_labels_are_numbered(tmp_path, y, numbers, classes):
    samples = load_file(npz(tmp_path, x=X, y=y, x_test=X[:4], y_test=y[:4]))
    np.testing.assert_array_equal(samples.y, numbers)
    np.testing.assert_array_equal(samples.y_test, numbers[:4])
    assert samples.classes == classes
    assert ("renumbered" in samples.statement) == (classes[0] != "0")
    np.testing.assert_array_equal(samples.targets, np.eye(3 if len(classes) == 3 else 2)[numbers])
    np.testing.assert_array_equal(samples.x, X)


@pytest.mark.parametrize("y", [X[:, 0], X[:, :2], X[:, :1].astype(np.float32)])
def test_floats_are_targets_of_a_regression(tmp_path, y):
    samples = load_file(npz(tmp_path, x=X, y=y))
    assert samples.classes == ()
    np.testing.assert_array_equal(samples.targets, y.reshape(40, -1))
    with pytest.raises(DataError, match="to hold labels to train on, got real targets"):
        samples.splits()


@pytest.mark.parametrize(("dtype", "expected"), [("u1", "f4"), ("f2", "f4"), ("f4", "f4"), ("i8", "f8"), (">f8", "f8")])
def test_inputs_keep_their_values_and_digits(tmp_path, dtype, expected):
    x = (X * 50 + 128).astype(dtype)
    samples = load_file(npz(tmp_path, x=x))
    assert samples.x.dtype == np.dtype(expected)
    np.testing.assert_array_equal(samples.x, x)
    with pytest.raises(DataError, match="got `x` alone"):
        samples.targets  # noqa: B018


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": X}, "Expected an array `x` in .*, got X"),
        ({"x": X, "labels": LABELS}, "got 'labels' too"),
        ({"x": X, "ytest": LABELS}, "did you mean 'y_test'"),
        ({"x": X[0]}, "give it a second axis"),
        ({"x": X.reshape(10, 4, 3)}, "a last axis, of channels"),
        ({"x": X * 1j}, "to hold real numbers, got dtype complex128"),
        ({"x": np.where(X > 2, np.nan, X)}, "to be finite, got NaN or infinity in row"),
        ({"x": X, "y": LABELS[:5]}, r"to have shape \(40,\) or \(40, C\), got \(5,\)"),
        ({"x": X, "y": np.where(X > 2, np.inf, X)}, "to be finite"),
        ({"x": X, "y": np.arange(40) ** 2}, "Expected labels that repeat in .*, got 40 different ones"),
        ({"x": X, "y": np.arange(80).reshape(40, 2)}, "one label each or one-hot rows"),
        ({"x": X, "y": LABELS, "x_test": X}, "both or neither"),
        ({"x": X, "y": LABELS, "x_test": X[:, :2], "y_test": LABELS}, "to have inputs of shape"),
        ({"x": X, "y": LABELS, "x_test": X, "y_test": LABELS + 1}, "to occur in `y`, got 3 in row 2"),
        ({"x": X, "y": LABELS, "x_test": X, "y_test": X[:, 0]}, "to be of one kind, got integers and real targets"),
        ({"x": X, "y": np.array([None] * 40)}, "got an array of objects"),
    ],
)
def test_a_bad_npz_is_one_clear_line(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message):
        load_file(npz(tmp_path, **arrays))


@pytest.mark.parametrize(
    ("text", "x", "y", "classes"),
    [
        ("1,2,0\n3,4,1\n5,6,1\n", [[1, 2], [3, 4], [5, 6]], [0, 1, 1], ("0", "1")),
        ("a,label,b\n1,7,2\n3,9,4\n", [[1, 2], [3, 4]], [0, 1], ("7", "9")),
        ("0,1,y\n1,2,.5\n3,4,1.5\n", [[1, 2], [3, 4]], [[0.5], [1.5]], ()),
        ("1.5,2,cat\n3,4,dog\n", [[1.5, 2], [3, 4]], [0, 1], ("cat", "dog")),
        ("0,1,kind\n1,2,b\n3,4,a\n5,6,b\n", [[1, 2], [3, 4], [5, 6]], [1, 0, 1], ("a", "b")),
        ("1" * 30 + ",2,cat\n3,4,dog\n", [[float("1" * 30), 2], [3, 4]], [0, 1], ("cat", "dog")),
        ('\ufeff"a, b", kind\n1,ä\n2,b\n', [[1], [2]], [1, 0], ("b", "ä")),
    ],
)
def test_csv(tmp_path, text, x, y, classes):
    samples = load_file(csv(tmp_path, text))
    np.testing.assert_array_equal(samples.x, x)
    np.testing.assert_array_equal(samples.y, y)
    assert samples.classes == classes


def test_classes_stored_as_floats_are_warned_of(tmp_path):
    np.savetxt(tmp_path / "my.csv", np.column_stack([X, LABELS]), delimiter=",")
    for path in (tmp_path / "my.csv", npz(tmp_path, x=X, y=LABELS.astype(float))):
        with pytest.warns(InputWarning, match=r"to be integers, got floats with 3 different whole values, .*; store"):
            assert load_file(path).classes == ()
    # These targets give no warning.
    for y in (LABELS[:, None] + 0.5, (LABELS == 1) * 2.0 - 1, np.arange(40.0), np.eye(3)[LABELS] * 2):
        assert load_file(npz(tmp_path, x=X, y=y)).classes == ()


def test_the_target_of_a_csv_is_named(tmp_path):
    with pytest.warns(InputWarning, match=r"in its last column, 'price', .*, got column 2, named 'y', .*; rename"):
        assert "; target: y; 1 real target each" in load_file(csv(tmp_path, "x,y,price\n1,.5,2\n2,1.5,3\n")).statement
    assert "; target: label; 2 classes" in load_file(csv(tmp_path, "a,label,b\n1,0,2\n3,1,4\n")).statement
    assert "; target: column 3; 2 classes" in load_file(csv(tmp_path, "1,2,0\n3,4,1\n")).statement


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "got an empty one"),
        ("\n1,2,0\n", "got a blank first line; delete it"),
        ("# mine\n1,2,0\n", "got a comment as its first line; delete it"),
        ("# mine, of 2020\n1,2,0\n", "to have the 2 entries of its first line, got 3; delete the comment there"),
        ("1\n2\n", "fewer than two columns"),
        ("1;2;0\n", "fewer than two columns"),
        ("a,y\n", "Expected inputs below the names of columns in .*, got none"),
        ("1,2\n1,2,3\n", "readable .csv file|entries"),
        ("1,2,0\n1,nan,1\n", "to be finite, got NaN or infinity in line 2; leave it out"),
        ("a,b,y\n1,2,0\n\n1,inf,1\n", "to be finite, got NaN or infinity in line 4"),
        ("1,2,0\n" + "1" * 200_000 + ",2,1\n", "to be finite, got NaN or infinity in row 1"),
        ("1,2,0\n1_0,2,1\n", "Expected numbers in 'column 1' of .*, got '1_0'"),
        ("1,2,0\n1,2,\n", "Expected a target on every line of .*, got none in line 2"),
        ("a,b,y\n1,red,0\n", "Expected numbers in 'b' of .*, got 'red'"),
        (",b,y\n1,2,0\n", "Expected a name for every column of .*, got none for column 1"),
        ("a,y,label\n1,2,0\n", "Expected one column of targets in .*, got y, label"),
    ],
)
def test_a_bad_csv_is_one_clear_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        load_file(csv(tmp_path, text))


def test_a_file_that_is_none(tmp_path):
    for name, content, got in (
        ("a.npz", b"text", "a file of another kind; save it with"),
        ("b.npz", b"PK\x03\x04" + b"\0" * 40, ""),
        ("c.npz", b"", ""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"to be a readable \.npz file, got {got}"):
            load_file(tmp_path / name)
    np.save(tmp_path / "d.npy", X)
    (tmp_path / "d.npy").rename(tmp_path / "d.npz")
    for name, message in (
        ("d.npz", "a single array"),
        ("x.npz", "none of that name"),
        ("x.mat", "file .npz or"),
    ):
        with pytest.raises(DataError, match=message):
            load_file(tmp_path / name)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (3, "Expected `path` to be a path, got 3"),
        (f"{'x' * 300}.npz", r"Expected xxx.*\.\.\. to be a file, got File name too long"),
        ("a\0b.csv", "to be a path, got 'a"),
    ],
)
def test_what_is_no_path(monkeypatch, path, message):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # the tests' checks of types
    with pytest.raises(DataError, match=message):
        load_file(path)


def test_splits(tmp_path):
    samples = load_file(npz(tmp_path, x=X, y=LABELS))
    splits = samples.splits(subset=20, eval_subset=3, scale_inputs=True)
    assert [len(part.labels) for part in splits.parts.values()] == [20, 3, 3]
    np.testing.assert_allclose((splits.train.x**2).sum(axis=1), 3, rtol=1e-6)
    whole = samples.splits()
    assert [len(part.labels) for part in whole.parts.values()] == [32, 4, 4]
    together = np.concatenate([part.x for part in whole.parts.values()])
    assert sorted(map(tuple, together)) == sorted(map(tuple, X.astype(np.float32)))
    np.testing.assert_array_equal(whole.validation.x[:3].shape, splits.validation.x.shape)
    assert load_source(splits.source).fingerprint == splits.fingerprint
    tested = load_file(npz(tmp_path, x=X, y=LABELS, x_test=X[:7], y_test=LABELS[:7])).splits()
    assert [len(part.labels) for part in tested.parts.values()] == [36, 4, 7]
    with pytest.raises(DataError, match="Expected `subset` from 1 to 32"):
        samples.splits(subset=33)
    with pytest.raises(DataError, match="at least 10 inputs"):
        load_file(npz(tmp_path, x=X[:9], y=LABELS[:9])).splits()
