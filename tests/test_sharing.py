"""Work that several processes share: turns, files of parts, and real processes of which one is killed."""

import csv
import shutil
import zlib

import numpy as np
import pytest
from distributed_cases import ended, start

import nngp_dag as nd
from nngp_dag import sharing
from nngp_dag.errors import CheckpointError, InputError
from nngp_dag.kernels import batch, gram_files
from nngp_dag.nas import ScoreDirectory, Setting, sample_cells
from nngp_dag.storage import Rows

X = np.random.default_rng(0).normal(size=(6, 5))
CODES = ["2_12", "2_21", "1_22", "2_02"]

SWEEP = ("sweep", "--nodes", "2", "--dataset", "sphere", "--subset", "12")
# Process 1 ends at its second class, or fails there. A process that is gone is missed after 3 seconds, not 25.
FAULTY = """
import os, sys
from nngp_dag import sharing
from nngp_dag.report import sweep_files
sharing._GONE_SECONDS = 3
add, count = sweep_files.SweepDirectory.add, []
def faulty(self, name, row):
    count.append(name)
    if sys.argv[-1] == "1" and len(count) == 2:
        {fault}
    add(self, name, row)
sweep_files.SweepDirectory.add = faulty
from nngp_dag.cli import main
main()
"""


def rows_of(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def assert_same_numbers(found, expected):
    """Compares two tables, whose kernels may be of batches of other sizes, and so differ by rounding."""
    assert len(found) == len(expected) > 0
    for row, other in zip(found, expected, strict=True):
        assert row.keys() == other.keys()
        for name in row.keys() - {"checksum"}:
            try:
                value, wanted = float(row[name]), float(other[name])
            except ValueError:
                assert row[name] == other[name]
            else:
                np.testing.assert_allclose(value, wanted, rtol=1e-9, err_msg=name)


# --- one process ---


def test_a_process_alone_does_everything():
    seen = []
    with sharing.at_work(seen.append) as crew:
        assert [i for i in range(5) if crew.takes_next()] == [0, 1, 2, 3, 4]
        crew.finished()
        crew.finished(2)
        crew.wait()
    assert seen == [1, 3]
    assert sharing.place() == (0, 1)
    assert sharing.gather(b"\0a\0") == [b"\0a\0"]


def test_processes_take_turns(monkeypatch):
    shares = []
    for process in range(3):
        monkeypatch.setattr(sharing, "place", lambda process=process: (process, 3))
        crew = sharing.Crew(lambda done: None)
        shares.append([i for i in range(8) if crew.takes_next()])
    assert shares == [[0, 3, 6], [1, 4, 7], [2, 5]]


def test_numbers_travel_with_all_bits():
    value = {"a": np.float64(0.1) * 3, "b": float("nan"), "c": np.bool_(True), "d": -0.0, "e": float("-inf")}
    [found] = sharing.gather_json(value)
    assert {name: repr(of) for name, of in found.items()} == {
        "a": "0.30000000000000004",
        "b": "nan",
        "c": "True",
        "d": "-0.0",
        "e": "-inf",
    }


def test_other_inputs_in_another_process_are_refused(monkeypatch):
    monkeypatch.setattr(sharing, "gather", lambda data: [data, data.replace(b"float64", b"float32")])
    with pytest.raises(InputError, match=r"a sweep with the same inputs and options in all .* got other dtype in proc"):
        sharing.check_equal("a sweep", {"dtype": "float64", "bounds": False})
    sharing.check_equal("a sweep", {"bounds": False})


# --- files of parts ---


def test_rows_of_parts_come_after_those_of_the_file_each_once(tmp_path):
    table = Rows(tmp_path / "classes.csv", ["name", "value"])
    table.write([{"name": "a", "value": 1}])
    for number, rows in ((10, ["d"]), (2, ["b", "a", "c"])):
        part = table.part(number)
        part.write([])
        for name in rows:
            part.add({"name": name, "value": number})
    with table.part(10).path.open("a") as file:
        file.write("e,10,cut")  # killed while it wrote
    others = [tmp_path / "part-x-classes.csv", tmp_path / "part-3-other.csv"]
    for other in others:
        other.write_text("mine")
    assert table.has_parts()
    found = table.read_with_parts()
    assert [(row["name"], row["value"]) for row in found] == [("a", "1"), ("b", "2"), ("c", "2"), ("d", "10")]
    table.write(found)
    table.remove_parts()
    assert not table.has_parts()
    assert table.read_with_parts() == table.read() == found
    assert sorted(tmp_path.iterdir()) == sorted([table.path, *others])


def test_a_damaged_row_of_a_part_is_refused(tmp_path):
    table = Rows(tmp_path / "t.csv", ["name", "value"])
    part = table.part(1)
    part.write([{"name": "a", "value": 1}])
    part.path.write_text(part.path.read_text().replace("a,1", "a,2"))
    with pytest.raises(CheckpointError, match=r"part-1-t.csv to hold what was written there, got row 1"):
        table.read_with_parts()


def test_batches_that_processes_take_in_turn_are_all_batches():
    whole, parts = nd.sweep(CODES, X), {}
    networks = [nd.Network(code) for code in CODES]
    classes = batch.new_kernel_classes()
    digests = list(dict.fromkeys(classes.add(network) for network in networks))
    for process in range(2):
        turns = iter(range(99))
        stacks = batch.kernels_of_classes(
            classes,
            digests,
            networks[0],
            X,
            batch=1,
            takes=lambda part, turns=turns, process=process: next(turns) % 2 == process,
        )
        found = {digest: ntk for stack in stacks for digest, ntk in zip(stack.digests, stack.ntk, strict=True)}
        assert found
        assert not found.keys() & parts.keys()
        parts |= found
    assert list(parts.keys() ^ set(digests)) == []
    for network, least in zip(networks, whole.ntk_lambda_min, strict=True):
        np.testing.assert_allclose(nd.spectrum(parts[classes.add(network)]).lambda_min, least, rtol=1e-9)


def test_a_sweep_goes_on_from_the_rows_of_all_processes(tmp_path, monkeypatch):
    out = tmp_path / "sweep"
    whole = nd.sweep(CODES, X, out=out)
    table = Rows(out / "classes.csv")
    header = list(table.read()[0])
    table = Rows(out / "classes.csv", header)
    first, *others = table.read()
    before = table.path.read_bytes()
    table.write([first])
    table.part(3).write(others)
    shutil.copy(table.path, table.part(1).path)

    def nothing(*args, **options):
        raise AssertionError("computed again")

    monkeypatch.setattr(nd.report._sweep, "kernels_of_classes", nothing)
    assert nd.sweep(CODES, X, out=out, resume=True).equals(whole)
    assert table.path.read_bytes() == before
    assert sorted(path.name for path in out.iterdir()) == ["classes.csv", "config.json", "sweep.csv", "sweep.parquet"]


def test_scores_go_on_from_the_rows_of_all_processes(tmp_path):
    setting = Setting(np.random.default_rng(0).normal(size=(4, 8, 8, 3)).astype(np.float32), channels=4, cells=1)
    cells = sample_cells(4, seed=0)
    list(ScoreDirectory(tmp_path, setting).score(cells, ["parameters"]))
    table = Rows(tmp_path / "scores-paths_and_costs.csv")
    table = Rows(table.path, list(table.read()[0]))
    first, *others = table.read()
    table.write([first])
    table.part(1).write(others[:2])
    assert list(ScoreDirectory(tmp_path, setting).score(cells, ["parameters"])) == [
        ("paths_and_costs", 3, 4),
        ("paths_and_costs", 4, 4),
    ]
    assert not table.has_parts()
    strip = [{name: row[name] for name in row.keys() - {"seconds"}} for row in table.read()]
    assert strip == [{name: row[name] for name in row.keys() - {"seconds"}} for row in [first, *others]]


def test_a_gram_matrix_goes_on_from_the_tiles_of_all_processes(tmp_path, monkeypatch):
    out, partial = tmp_path / "k", tmp_path / ".k.partial"
    nd.gram("2_12", X, out=out, tile=2)
    unbroken = {path.name: path.read_bytes() for path in out.iterdir()}
    lines = unbroken["tiles.crc"].splitlines(keepends=True)
    assert len(lines) == 6
    out.rename(partial)
    (partial / "tiles.crc").write_bytes(lines[0])
    (partial / "part-0-tiles.crc").write_bytes(b"%012d %s" % (4, lines[4]))
    (partial / "part-1-tiles.crc").write_bytes(b"%012d %s%012d" % (2, lines[2], 3))
    computed = []
    put = gram_files.GramFiles.commit
    monkeypatch.setattr(gram_files.GramFiles, "commit", lambda self, n: (computed.append(n), put(self, n)))
    nd.gram("2_12", X, out=out, tile=2)
    assert computed == [1, 3, 5]
    assert {path.name: path.read_bytes() for path in out.iterdir()} == unbroken
    # A tile of another process that is not what its checksum says is refused.
    out.rename(partial)
    (partial / "tiles.crc").write_bytes(lines[0])
    (partial / "part-1-tiles.crc").write_bytes(b"%012d %08x\n" % (2, zlib.crc32(b"other")))
    with pytest.raises(nd.errors.OutputError, match="a damaged tile, number 2"):
        nd.gram("2_12", X, out=out, tile=2)


# --- real processes ---


@pytest.mark.slow
def test_a_sweep_of_two_processes_of_which_one_is_killed_goes_on_alone(tmp_path):
    out = tmp_path / "two"
    code = FAULTY.format(fault="os.kill(os.getpid(), 9)")
    (status, _, err), (killed, *_) = ended(start([*SWEEP, "--out", out], 2, code=code))
    assert (status, killed) == (2, -9)
    said = [line for line in err.splitlines() if line.startswith("nngp-dag: error:")]
    assert len(said) == 1, err
    assert "Expected all 2 processes to go on, got process 1 that ended without a message" in said[0]
    assert "stack trace" not in err
    kept = [*rows_of(out / "classes.csv"), *rows_of(out / "part-1-classes.csv")]
    assert len(kept) >= 2
    one, alone = ended(start([*SWEEP, "--out", out, "--resume"], 1)), ended(start([*SWEEP, "--out", tmp_path / "1"], 1))
    assert [one[0][0], alone[0][0]] == [0, 0], (one, alone)
    assert not list(out.glob("part-*"))
    assert_same_numbers(rows_of(out / "sweep.csv"), rows_of(tmp_path / "1" / "sweep.csv"))
    keys = [[row["kernel_class"] for row in rows_of(path / "classes.csv")] for path in (out, tmp_path / "1")]
    assert sorted(keys[0]) == sorted(keys[1])


@pytest.mark.nightly
@pytest.mark.parametrize("faulty", [0, 1])
def test_an_error_in_one_process_ends_the_other_with_one_line(tmp_path, faulty):
    code = FAULTY.format(fault="raise ValueError('too bad')")
    code = code.replace('== "1"', f'== "{faulty}"').replace(
        "main()\n", "try:\n    main()\nexcept ValueError as e:\n    print(e); sys.stdout.flush(); os._exit(1)\n"
    )
    found = ended(start([*SWEEP, "--out", tmp_path / "two"], 2, code=code))
    status, _, err = found[1 - faulty]
    assert found[faulty][:2][0] == 1, found
    assert status == 2, err
    assert f"got process {faulty} that ended with an error: too bad; start all of them again" in err


@pytest.mark.nightly
def test_two_processes_write_the_files_of_one(tmp_path):
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    np.savez(tmp_path / "images.npz", x=images, y=np.arange(8) % 2)
    score = ("nas", "score", "--sample", "7", "--data", tmp_path / "images.npz", "--batch", "8", "--channels", "4")
    score = (*score, "--cells", "1", "--score", "naswot", "--score", "parameters", "--score", "ntk_lambda_min_exact")
    gram = ("gram", "--dag", "2_12", "--dataset", "sphere", "--subset", "50", "--tile", "12")
    for options in (SWEEP, score, gram):
        outs = [tmp_path / f"{options[0]}-{count}" for count in (1, 2)]
        for count, out in enumerate(outs, start=1):
            found = ended(start([*options, "--out", out], count))
            assert [status for status, *_ in found] == [0] * count, found
            assert found[-1][1] == "" or count == 1
        names = sorted(path.name for path in outs[0].iterdir())
        assert names == sorted(path.name for path in outs[1].iterdir())
        for name in names:
            if name.endswith(".csv"):
                one, two = ([{**row, "seconds": 0} for row in rows_of(out / name)] for out in outs)
                assert_same_numbers(two, one)
            elif name.endswith((".npy", ".crc")):
                assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


@pytest.mark.nightly
def test_a_sweep_without_a_folder_has_the_same_table_in_all_processes():
    code = f"""
import sys
import numpy as np
import nngp_dag as nd
from nngp_dag import distributed
if "--processes" in sys.argv:
    distributed.join(sys.argv[-5], 2, int(sys.argv[-1]))
x = np.random.default_rng(0).normal(size=(6, 5))
print(nd.sweep({CODES}, x).to_csv(index=False))
"""
    [(status, alone, err)] = ended(start([], 1, code=code))
    assert status == 0, err
    found = ended(start([], 2, code=code))
    assert [status for status, *_ in found] == [0, 0], found
    assert found[0][1] == found[1][1]
    assert_same_numbers(*(list(csv.DictReader(text.strip().splitlines())) for text in (found[0][1], alone)))
