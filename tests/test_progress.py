"""Progress bars off a terminal, as logs see them."""

import pytest

from lmm_ecr.progress import progress_bar


def test_bar_counts_to_the_end(capsys):
    with progress_bar("Reading", unit="clips") as update:
        for done in range(5):
            update(done, 4)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "Reading: 100%" in printed.err
    assert "4/4" in printed.err
    assert "clips/s" in printed.err


def test_resumed_work_starts_where_it_was(capsys):
    with progress_bar("Reading") as update:
        update(6, 8)
        update(8, 8)
    assert "6/8" in capsys.readouterr().err


def test_nothing_is_drawn_when_nothing_is_left(capsys):
    with progress_bar("Reading") as update:
        update(8, 8)
    with progress_bar("Reading") as update:
        update(0, 0)
    with progress_bar("Reading"):
        pass
    assert capsys.readouterr().err == ""


def test_bar_is_closed_when_the_work_fails(capsys):
    def work():
        with progress_bar("Reading") as update:
            update(1, 8)
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        work()
    assert capsys.readouterr().err.endswith("\n")
