import errno
import tempfile
from pathlib import Path

import pytest

from nngp_dag.errors import OutputError
from nngp_dag.storage import output_directory, output_file


def test_directory_appears_whole_at_the_end(tmp_path):
    target = tmp_path / "new" / "out"
    with output_directory(target) as staging:
        (staging / "a.txt").write_text("a")
        assert not target.exists()
    assert [p.name for p in target.iterdir()] == ["a.txt"]
    assert [p.name for p in target.parent.iterdir()] == ["out"]


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(RuntimeError), output_directory(tmp_path / "out") as staging:  # noqa: PT012
        (staging / "a.txt").write_text("a")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_directory_is_overwritten_only_when_asked(tmp_path):
    (tmp_path / "out").mkdir()
    with output_directory(tmp_path / "out") as staging:  # an empty folder may be replaced
        (staging / "a.txt").write_text("old")
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="to be new or empty, got an existing one; pass `overwrite=True`"):
        output_directory(tmp_path / "out").__enter__()
    with output_directory(tmp_path / "out", overwrite=True) as staging:
        (staging / "a.txt").write_text("new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"
    assert (tmp_path / "out" / "mine.txt").read_text() == "mine"


def test_a_link_to_another_file_system(tmp_path):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir():
        pytest.skip("needs a second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=elsewhere) as real:
        (tmp_path / "link").symlink_to(real)
        with output_directory(tmp_path / "link") as staging:
            (staging / "a.txt").write_text("a")
        assert [p.name for p in Path(real).iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_line_and_leaves_no_folder(tmp_path):
    with pytest.raises(OutputError, match="No space left on device"), output_file(tmp_path / "a" / "b" / "c.npz"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="to be a directory, got a file"):
        output_directory(tmp_path / "file").__enter__()
    with pytest.raises(OutputError, match=r"to be writable, got .*; choose another output"):
        output_directory(tmp_path / "file" / "out").__enter__()
    with pytest.raises(OutputError, match="to be writable"):
        output_file("/proc/nothing.npz").__enter__()


def test_file_appears_whole_and_is_overwritten_only_when_asked(tmp_path):
    target = tmp_path / "deep" / "a.txt"
    with output_file(target) as path:
        path.write_text("1")
        assert not target.exists()
    with pytest.raises(OutputError, match="to be new, got an existing one"):
        output_file(target).__enter__()
    with output_file(target, overwrite=True) as path:
        path.write_text("2")
    assert target.read_text() == "2"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
