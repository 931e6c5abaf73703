"""What the programs print."""

from types import SimpleNamespace

from lmm_ecr.console import LogLines, log_line, log_lines


def test_log_line_is_readable():
    logs = {"loss": 0.123456, "learning_rate": 1e-5, "clips_per_s": 12.34, "data_wait": 0.056, "epoch": 1.5}
    line = log_line(7, {**logs, "train_runtime": 3.0})
    assert line == "step 7  epoch 1.50  loss 0.1235  learning_rate 1.00e-05  clips_per_s 12.3  data_wait 6%"


def test_an_entry_without_news_prints_nothing():
    assert log_line(7, {"train_runtime": 3.0, "train_loss": 0.5, "total_flos": 1.0, "epoch": 3.0}) is None


def test_only_the_first_process_prints(capsys):
    callback = log_lines(disable_bar=True)
    assert type(callback) is LogLines
    for zero in (True, False):
        state = SimpleNamespace(is_world_process_zero=zero, global_step=1)
        callback.on_log(None, state, None, logs={"loss": 1.0})
    assert capsys.readouterr().out == "step 1  loss 1.0000\n"
