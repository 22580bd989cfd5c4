import io

from rich.console import Console

from powerclip.train.log import MetricsLog, progress_bar, read_metrics


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1, "loss": 2.0}]


def test_a_resumed_log_holds_every_step_once(tmp_path):
    log = MetricsLog(tmp_path)
    for step in range(1, 6):
        log.write({"step": step, "loss": 1.0})
    log.close()
    log = MetricsLog(tmp_path, first_step=3)
    for step in (4, 5):
        log.write({"step": step, "loss": 2.0})
    log.close()
    lines = read_metrics(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["loss"]) for line in lines] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
        (5, 2.0),
    ]
    assert list((tmp_path / "tensorboard").iterdir())


def test_without_a_terminal_progress_is_ten_lines():
    out = io.StringIO()
    with progress_bar("run", steps=50, console=Console(file=out, width=200)) as reporter:
        for step in range(1, 51):
            reporter.update(step, "loss 1")
    assert out.getvalue().splitlines()[0] == "run: 5/50 steps, loss 1"
    assert len(out.getvalue().splitlines()) == 10
