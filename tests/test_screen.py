import io
import re
import sys

from nngp_dag.cli import screen


def test_off_a_terminal_lines_say_how_far_it_is_also_where_it_stands_still(monkeypatch):
    monkeypatch.setattr(screen, "_OFTEN", 0.01)
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)

    def wait_for(text):
        while text not in told.getvalue():
            pass

    with screen.progress() as update:
        wait_for(": at work\n")
        update("kernels", 1, 4)
        wait_for(": kernels 1/4\n")
        update("kernels", 3, 4)
        wait_for(": kernels 3/4, 0 s left\n")
        update("training", 1, 2, 0.123456)
        wait_for(": training 1/2, loss 0.1235\n")
        assert screen.latest_progress == {"kernels": (3, 4), "training": (1, 2)}
        update("rows", 1234567, 2000000)
        wait_for(": rows 1234567/2000000\n")
        update("training", 2, 2, 0.1)
    lines = told.getvalue().splitlines()
    assert lines[-1].endswith("s: training 2/2, loss 0.1")
    assert all(re.match(r"nngp-dag: \d+ s: ", line) for line in lines)
    with screen.progress():
        assert screen.latest_progress == {}


def test_what_takes_no_time_says_nothing(capsys):
    with screen.progress() as update:
        update("kernels", 0, 1)
        update("kernels", 1, 1)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_bars_show_the_loss(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    with screen.progress() as update:
        update("2_12", 1, 3, 0.5)
    assert "1/3" in re.sub(r"\x1b\[[\d;]*m", "", told.getvalue())
    assert "loss 0.5" in told.getvalue()


def test_durations():
    assert [screen._duration(seconds) for seconds in (0.4, 59.6, 3725.0, 90_000.0)] == [
        "0 s",
        "1 min 00 s",
        "1 h 02 min",
        "25 h 00 min",
    ]
