import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from powerclip import cli
from powerclip.errors import PowerclipError
from powerclip.recipes import RECIPES
from tests.support.images import one_colour
from tests.support.tars import write_tar


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([command, "--help"])
    assert exit_.value.code == 0
    assert f"Example: powerclip {command}" in capsys.readouterr().out


@pytest.mark.parametrize(("options", "recipe"), [((), "scenes_tiny"), (("--recipe", "cc3m_vit_s16"), "cc3m_vit_s16")])
def test_help_names_the_recipes_and_whose_defaults_it_shows(options, recipe, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help", *options])
    shown = capsys.readouterr().out
    assert f"Recipes: {', '.join(RECIPES)}. The defaults below are those of {recipe};" in shown
    assert "Named settings that this starts from. (required)" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean train?"),
        (["frobnicate"], "unknown command 'frobnicate'; commands: demo, prepare, train, compare, evaluate"),
        (["train"], "no recipe given; add --recipe NAME (recipes: scenes_tiny"),
        (["train", "--recipe", "nope"], "unknown recipe 'nope'; recipes: scenes_tiny"),
        (["train", "--output", "x", "--recipe"], "no recipe given; add --recipe NAME"),
        (["train", "--recipe", "scenes_tiny", "--output", "x"], "--data"),
        (
            ["train", "--recipe=scenes_tiny", "--data", "x", "--output", "y", "--batch-size", "big"],
            "--batch-size",
        ),
        (
            ["train", "--recipe=scenes_tiny", "--data", "x", "--output", "y", "--batch-size", "1"],
            "batch_size is 1",
        ),
        (["train", "--recipe=scenes_tiny", "--data", "no-such-place", "--output", "y"], "no-such-place"),
        (
            ["train", "--recipe=scenes_tiny", "--data", "x", "--output", "y", "--steps", "9", "--epochs", "1"],
            "give either steps or epochs; got steps=9, epochs=1",
        ),
        (
            ["compare", "--recipe=scenes_tiny", "--data", "x", "--output", "y", "--objectives", "clip", "clip"],
            "objectives are clip clip; name each once",
        ),
        (["compare", "--recipe", "scenes_tiny", "--data", "x", "--output", "y", "--objectives", "clop"], "clop"),
        (["evaluate"], "model"),
        (["evaluate", "no/such/run"], "no/such/run"),
        (["prepare", "no-such-source", "out"], "no-such-source"),
        (["prepare", "photos", "out", "--no-look"], "--no-look is for --check FOLDER; leave it out"),
        (["prepare", "--check", "out", "--count", "3"], "leave out SOURCE, OUTPUT and all options but --workers"),
        (["prepare", "scenes:train", "/proc/x"], "output /proc/x cannot be written (/proc: "),
        (["evaluate", "no/such/run", "--output", "/proc/x"], "output /proc/x cannot be written (/proc: "),
        (["demo", "--output", "/proc/x"], "output /proc/x cannot be written (/proc: "),
        (["embed", "run", "scenes:train", "--output", "e.csv"], "output e.csv is no name of a Parquet file"),
        (["embed", "run", "scenes:train", "--output", "/proc/e.parquet"], "e.parquet cannot be written (/proc: "),
        (["report"], "no run folder given"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(argv, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.strip().splitlines()) == 1
    assert not any("\u2500" <= sign <= "\u257f" for sign in captured.err), "tyro draws a box around its errors"
    assert message in captured.err
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("variables", "start"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1"}, "powerclip [process 1]: unknown command"),
        ({"WORLD_SIZE": "1", "RANK": "0"}, "powerclip: unknown command"),
        ({"WORLD_SIZE": "2"}, "powerclip: unknown command"),
        ({"WORLD_SIZE": "two", "RANK": ""}, "powerclip: unknown command"),
    ],
)
def test_an_error_names_the_process_that_a_launcher_has_numbered(variables, start, capsys, monkeypatch):
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["frobnicate"]) == 2
    assert capsys.readouterr().err.startswith(start)


def test_a_launcher_s_number_that_is_none_is_named(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "first")
    assert cli.main(["report", "no-such-run"]) == 2
    assert "the environment variable RANK is 'first'; it must be a number" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "steps", "epochs"),
    [
        ("cc12m_vit_b16", (), None, 32),
        ("cc12m_vit_b16", ("--steps", "10"), 10, None),
        ("cc12m_vit_b16", ("--steps=10",), 10, None),
        ("cc12m_vit_b16", ("--epochs", "3"), None, 3),
        ("cc12m_vit_b16", ("--steps", "None"), None, 32),
        ("scenes_tiny", ("--epochs", "3"), None, 3),
        ("scenes_tiny", ("--steps", "None", "--epochs", "3"), None, 3),
        ("scenes_tiny", ("--batch-size", "10"), 1500, None),
    ],
)
@pytest.mark.parametrize("first", ["recipe", "options"])
def test_a_length_replaces_the_recipes(name, options, steps, epochs, first):
    words = (("--recipe", name), options) if first == "recipe" else (options, ("--recipe", name))
    config = cli.parse("train", [*words[0], *words[1], "--data", "x", "--output", "y"]).config
    assert (config.recipe, config.steps, config.epochs) == (name, steps, epochs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--output", "x", "--optim.max-gradient-norm", "0"],
            r"optim: max_gradient_norm is 0\.0; it must be .*\. For full",
        ),
        (
            ["--output", "x", "--optim.lerning-rate", "1"],
            r"^unknown option --optim\.lerning-rate; did you mean --optim\.learning-rate\?$",
        ),
        (
            ["--output", "x", "--sed", "1", "--epoks", "2"],
            r"^unknown option --sed; did you mean --seed\?$",
        ),
        (["--output", "x", "--wobble=1"], r"^unknown option --wobble; powerclip train --help shows the options$"),
        (
            ["--output", "x", "--model.region-unt", "patch"],
            r"^unknown option --model\.region-unt; did you mean --model\.region-unit\?$",
        ),
        (
            ["--output", "x", "--objective.zero", "midpont"],
            r"^--objective\.zero is 'midpont'; it must be a number or none, midpoint, matched, learned, centred; "
            r"did you mean midpoint\?$",
        ),
        (
            ["--output", "x", "--objective.margin", "adaptiv"],
            r"^--objective\.margin is 'adaptiv'; it must be a number or adaptive; did you mean adaptive\?$",
        ),
        (
            ["--output", "x", "--objective.form", "ball"],
            r"^--objective\.form is 'ball'; it must be triplet, softmax, sigmoid$",
        ),
        (
            ["--output", "x", "--model.image-size", "big"],
            r"^--model\.image-size is 'big'; it must be an integer or None$",
        ),
        ([], r"^Missing from powerclip train: --output PATH The run folder\. \(required\)\. For full helptext"),
    ],
)
def test_wrong_options_are_one_readable_line(options, message):
    with pytest.raises(PowerclipError, match=message) as caught:
        cli.parse("train", ["--recipe", "scenes_tiny", "--data", "D", *options])
    assert "Value error" not in str(caught.value)


def test_overview_and_version(capsys):
    assert cli.main(["--help"]) == 0
    overview = capsys.readouterr().out
    assert all(f"  {command} " in overview for command in cli.COMMANDS)
    assert cli.main([]) == 2
    capsys.readouterr()
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("powerclip 0.")


def test_python_runs_the_package_as_the_command():
    done = subprocess.run([sys.executable, "-m", "powerclip", "trian"], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (2, "powerclip: unknown command 'trian'; did you mean train?\n")


COMMAND = "import sys; from powerclip import cli, silence; silence.AFTER_S = 1e9; {}; sys.exit(cli.main(sys.argv[1:]))"


def run_into(output, *argv, first="pass", unbuffered=False):
    """A command whose standard output is a file descriptor: its exit status, and what it says on standard error."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if unbuffered:
        variables["PYTHONUNBUFFERED"] = "1"
    command = [sys.executable, "-W", "ignore", "-c", COMMAND.format(first), *argv]
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, env=variables)
    return done.returncode, done.stderr


@pytest.fixture
def cut():
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    yield write
    os.close(write)


@pytest.mark.parametrize("unbuffered", [False, True])
@pytest.mark.parametrize("argv", [["--help"], [], ["--version"], ["report", "--help"], ["prepare", "--check", "."]])
def test_output_that_nobody_reads_ends_the_command_quietly(argv, unbuffered, cut, tmp_path):
    write_tar(tmp_path / "0.tar", [("a.jpg", one_colour()), ("a.txt", b"a dog")])
    argv = [str(tmp_path) if word == "." else word for word in argv]
    assert run_into(cut, *argv, unbuffered=unbuffered) == (cli.CUT, "")


def test_other_errors_are_reported_even_if_nobody_reads_the_output(cut):
    status, said = run_into(cut, "frobnicate", first="print('some output')")
    assert (status, len(said.splitlines())) == (2, 1)
    assert said.startswith("powerclip: unknown command 'frobnicate'")


def test_a_broken_pipe_elsewhere_is_an_error(capsys, monkeypatch):
    def write(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(cli, "parse", write)
    assert cli.main(["report"]) == 1
    assert capsys.readouterr().err == "powerclip: [Errno 32] Broken pipe\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", [False, True])
def test_output_to_a_full_disk_is_an_error_in_one_line(unbuffered):
    with Path("/dev/full").open("w") as full:
        said = run_into(full.fileno(), "--help", unbuffered=unbuffered)
    assert said == (1, "powerclip: [Errno 28] No space left on device\n")


@pytest.mark.parametrize("argv", [["train", "--help"], ["--version"], ["evaluate", "nowhere"]])
def test_streams_that_are_closed_change_no_exit_status(argv):
    code = "import os, sys; os.close(1); os.close(2); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = subprocess.run([sys.executable, "-c", code, "-m", "powerclip", *argv])
    assert done.returncode == (2 if argv[0] == "evaluate" else 0)


def test_importing_the_core_needs_no_extra_and_no_torch():
    blocked = "transformers, gradio, ray, wandb, jinja2, skimage"
    code = (
        f"import sys\nfor name in '{blocked}'.split(', '): sys.modules[name] = None\n"
        "import powerclip\nassert 'torch' not in sys.modules\n"
        "import powerclip.prepare\nassert 'torchvision' not in sys.modules\n"  # its workers start in half the time
        "powerclip.create_model, powerclip.load, powerclip.PowersetAlignmentLoss\n"
        "powerclip.alignment.similarity, powerclip.alignment.grounding\n"
        "powerclip.config.ScoringConfig, powerclip.loss.clip_loss, powerclip.model.from_open_clip\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


@pytest.mark.slow  # six commands
@pytest.mark.filterwarnings("default:not evaluated of")
def test_nothing_that_is_read_acts_on_the_terminal(tmp_path, capsys):
    """Control characters and rich's markup in keys, sources of captions, and the names of files and folders."""
    odd = "\x1b[2J[red][/b]"
    captions = json.dumps(
        [{"source": f"{odd}{number}", "text": f"a {odd} dog {number}"} for number in range(2)]
    ).encode()
    members = [
        (f"{odd}{i}.{name}", data)
        for i in range(8)
        for name, data in (("jpg", one_colour()), ("captions.json", captions))
    ]
    data, run = tmp_path / f"data{odd.replace('/', '')}", tmp_path / f"run{odd.replace('/', '')}"
    write_tar(data / "0.tar", [*members, (f"bad{odd}.jpg", b"")])
    usual = ["--recipe", "scenes_tiny", "--model.name", "tiny", "--batch-size", "8", "--steps", "1", "--device", "cpu"]
    usual += ["--data.max-bad-share", "1"]
    for command in (
        ["prepare", str(data), str(tmp_path / f"out{run.name}"), "--parser", "none", "--max-bad-share", "1"],
        ["train", *usual, "--data", str(data), "--output", str(run)],
        ["evaluate", str(run), "--suite", "pairs", "--data", str(data)],
        ["embed", str(run), str(data), "--output", str(tmp_path / f"{run.name}.parquet")],
        ["report", str(run), "--output", str(tmp_path / "report.html")],
    ):
        assert cli.main(command) == 0, command
    assert cli.main(["prepare", "--check", str(data)]) == 1  # for the bad one
    assert cli.main(["train", *usual, "--data", str(data), "--output", str(run)]) == 2  # it is there already
    said = "".join(capsys.readouterr())
    assert "\x1b" not in said
    assert said.count("[red]") > 10


def test_own_warnings_are_one_line_and_others_keep_their_place():
    def shown(text, file):
        return cli.warning_line(UserWarning(text), UserWarning, file, 7)

    assert shown("two\nlines", cli.__file__) == "powerclip: two lines\n"
    assert shown("other", __file__).startswith(f"{__file__}:7: UserWarning: other\n")
