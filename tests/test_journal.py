"""The journal of a prediction and the record of a finished one: what survives a kill at any moment."""

import json

import pytest

from lmm_ecr.errors import ConfigError
from lmm_ecr.journal import CompletionRecord, Journal


def test_round_trip(tmp_path):
    journal = Journal(tmp_path / "out.csv", {"model": "m"})
    journal.open()
    journal.append(0, [{"row": 2, "scores": [0.1 + 0.2]}])
    journal.append(1, [{"row": 0, "scores": [1 / 3]}])
    journal.append(0, [{"row": 1, "scores": [0.5]}])
    assert {k: v["scores"][0] for k, v in journal.read().items()} == {2: 0.1 + 0.2, 1: 0.5, 0: 1 / 3}
    assert json.loads((tmp_path / "out.csv.partial/meta.json").read_text()) == {"model": "m"}
    journal.remove()
    assert not journal.directory.exists()


def test_another_runs_results_are_refused_and_the_difference_is_named(tmp_path):
    first = Journal(tmp_path / "out.csv", {"model": "m", "videos": "/data/v2 1f"})
    first.open()
    Journal(tmp_path / "out.csv", {"model": "n", "videos": "/data/v2 1f"}).open()  # nothing was scored: replaced
    second = Journal(tmp_path / "out.csv", {"model": "m", "videos": "/data/v3 2e", "dtype": "float32"})
    first.open()
    first.append(0, [{"row": 1, "scores": [0.5]}])
    with pytest.raises(ConfigError, match=r"dtype .*, videos \('/data/v2 1f' there, '/data/v3 2e' now\)"):
        second.open()
    assert first.read() == {1: {"row": 1, "scores": [0.5]}}


def test_the_record_knows_its_output(tmp_path):
    output, identity = tmp_path / "out.csv", {"model": "m"}
    record = CompletionRecord(output, identity)
    assert not record.is_finished()
    journal = Journal(output, identity)
    journal.open()
    record.write_output(journal, lambda path: path.write_text("Id,ECR\na,0.5\n"), num_rows=1, num_scored=1)
    assert output.read_text() == "Id,ECR\na,0.5\n"
    assert record.is_finished()
    assert record.read()["num_scored"] == 1
    with pytest.raises(
        ConfigError, match=r"out.csv: .*another run \(different: model \('m' there, 'n' now\)\).*--force"
    ):
        CompletionRecord(output, {"model": "n"}).is_finished()
    output.write_text("Id,ECR\na,0.6\n")
    with pytest.raises(ConfigError, match=r"out.csv: .*changed since.*--force"):
        record.is_finished()
    output.unlink()
    assert not record.is_finished()


def test_a_kill_between_record_and_output_is_repaired(tmp_path):
    """The record is written first: without the output, or with an older one, it does not count."""
    output, identity = tmp_path / "out.csv", {"model": "m"}
    journal, record = Journal(output, identity), CompletionRecord(output, identity)
    journal.open()
    journal.append(0, [{"row": 1, "scores": [0.5]}])

    def killed(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.write_output(journal, killed, num_rows=1, num_scored=1)
    assert not output.exists()
    assert not record.is_finished()
    assert journal.read()


def test_a_file_that_is_no_record_is_none(tmp_path):
    record = CompletionRecord(tmp_path / "out.csv", {"model": "m"})
    for text in ("", "{", "[]", "{}", '{"identity": 1}'):
        record.path.write_text(text)
        assert record.read() is None
        assert not record.is_of_this_run()
