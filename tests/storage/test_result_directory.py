"""Result directories: who may begin in one, who may continue, and which files remain after an error."""

import json

import pytest

from nngp_dag.errors import CheckpointError, InputError, OutputError
from nngp_dag.storage import LOCK, ResultDirectory, check_same, difference, read_sealed, write_sealed


def folder(path):
    return ResultDirectory(path, "a run", {"settings": {"seed": int}, "note?": str}, ["rows.csv", "parts-*", "log"])


def begin(path, seed=0, note="", **options):
    made = folder(path)
    with made.opened({"settings": {"seed": seed}, "note": note}, **options):
        place = made.begin()
        made.begun = True
    return place


def config(path):
    return json.loads((path / "config.json").read_text())


@pytest.fixture
def out(tmp_path):
    begin(tmp_path / "out")
    (tmp_path / "out" / "rows.csv").write_text("rows")
    return tmp_path / "out"


def test_a_new_one_goes_on_and_is_replaced_when_asked(out):
    assert config(out)["settings"] == {"seed": 0}
    assert config(out)["environment"]["jax"]
    for resume in (None, True):
        assert begin(out, note=f"resumed by {resume}", resume=resume) == {}
        assert config(out)["note"] == f"resumed by {resume}"
        assert (out / "rows.csv").exists()
    (out / "parts-1").mkdir()
    (out / "mine.txt").write_text("mine")
    begin(out, seed=1, resume=False, overwrite=True)
    assert {file.name for file in out.iterdir()} == {"config.json", "mine.txt"}
    assert config(out)["settings"] == {"seed": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"resume": False},
            "got an existing one; pass `resume=True` to go on with it, `overwrite=True` to",
        ),
        ({"seed": 1}, r"same settings as in .*out/config\.json, got others: settings\.seed 0 before, 1 now; pass the"),
        ({"seed": 1, "resume": True}, r"got others: settings\.seed 0 before, 1 now; pass the old ones, or another"),
    ],
)
def test_others_are_refused_and_nothing_is_touched(out, options, message):
    before = {file: file.read_bytes() for file in out.iterdir()}
    with pytest.raises((OutputError, CheckpointError), match=message):
        begin(out, **options)
    assert {file: file.read_bytes() for file in out.iterdir()} == before


def test_what_may_differ_is_left_to_the_caller(out):
    with folder(out).opened({"settings": {"seed": 1}}, compared=lambda before, now: before):
        pass


def test_folders_of_something_else(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match="to be new, empty or hold a run, got other files; choose another `out`"):
        begin(tmp_path)
    with pytest.raises(OutputError, match="to hold a run to replace, got other files; choose another `out`"):
        begin(tmp_path, resume=False, overwrite=True)
    with pytest.raises(InputError, match="Expected `resume` or `overwrite`, got both; leave one out"):
        begin(tmp_path, resume=True, overwrite=True)
    with pytest.raises(CheckpointError, match="to describe a run, got none; leave out `resume=True` to start one"):
        begin(tmp_path, resume=True)
    (tmp_path / "config.json").write_text('{"settings": {"seed": "0"}}')
    with pytest.raises(CheckpointError, match=r'a run, got "0" for settings\.seed, not an integer; put an intact copy'):
        begin(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("kept", [False, True])
def test_after_an_error_stays_what_is_worth_it(tmp_path, kept):
    made = folder(tmp_path / "new" / "out")
    with pytest.raises(KeyboardInterrupt), made.opened({"settings": {"seed": 0}}):  # noqa: PT012
        made.begin()
        (made.path / "log").write_text("begun")
        made.begun = kept
        raise KeyboardInterrupt
    assert {file.name for file in tmp_path.rglob("*")} == ({"new", "out", "config.json", "log"} if kept else set())


def test_one_writer_at_a_time(out):
    with folder(out).opened({"settings": {"seed": 0}}):
        assert (out / LOCK).exists()
        # The thread that holds the claim may check.
        assert folder(out).check_free()
    assert not (out / LOCK).exists()


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ({"a": 1, "b": {"c": [1]}}, {"b": {"c": [1]}, "a": 1}, ""),
        ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b 1 before, 2 now"),
        ({"a": {"b": "x"}}, {"a": 5}, 'a {"b": "x"} before, 5 now'),
        ({"a": [1]}, {"a": [1, 2]}, "a [1] before, [1, 2] now"),
        ({"a": 1, "b": True}, {"a": 1}, "b true before, none now"),
        ({}, {"a": None}, ""),
    ],
)
def test_differences(tmp_path, before, now, found):
    assert difference(before, now) == found
    if found:
        with pytest.raises(
            CheckpointError, match=r"^Expected the same settings as in .*, got others: .* now; pass the"
        ):
            check_same(before, now, tmp_path)


def test_a_seal_shows_damage(tmp_path):
    file = tmp_path / "state.json"
    write_sealed(file, "state", {"a": (1, 2)})
    assert read_sealed(file, "state", {"a": [int]}, "a state", "delete it") == {"a": [1, 2]}
    file.write_text(file.read_text().replace("2", "3", 1))
    with pytest.raises(CheckpointError, match=r"state\.json to hold what was written there, got something else; dele"):
        read_sealed(file, "state", {"a": [int]}, "a state", "delete it")
