"""The command line: help, errors, settings, and text that reads well without a terminal."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from txmcorrect import __version__, cli, config
from txmcorrect.cli import COMMANDS, app

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(sys.executable).with_name("txmcorrect")
POSITIONAL = {
    "info": ["scan.h5"],
    "simulate": ["scan.h5"],
    "prepare": ["raw", "refs"],
    "correct": ["scan.h5"],
    "mosaic": ["tiles"],
    "tomo": ["scan.h5"],
    "restore": ["scan.h5"],
}


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


def resolved(*arguments):
    """Return the settings that --dry-run prints."""
    result = invoke(*arguments, "--dry-run")
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.stdout)


def run(*arguments, **environment):
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    done = subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, env=env)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    result = invoke(name, "--help")
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    settings = COMMANDS[name][0]
    assert settings.summary in said
    assert f"Example: {settings.example.split()[0]}" in said
    for field in settings.model_fields.values():
        if isinstance(field.json_schema_extra, dict):  # a flag or an argument, not a YAML group
            assert field.description, "a flag without an explanation"


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_every_command_is_valid(name):
    words = shlex.split(COMMANDS[name][0].example)
    if words[:2] == ["accelerate", "launch"]:
        words = words[2:]
    assert words[:2] == ["txmcorrect", name]
    resolved(*words[1:])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_appears_in_the_readme(name):
    lines = (ROOT / "README.md").read_text().splitlines()
    assert any(re.search(rf"\btxmcorrect {name}\b", line) for line in lines)


@pytest.mark.parametrize("name", COMMANDS)
def test_dry_run_prints_every_setting(name):
    shown = resolved(name, *POSITIONAL.get(name, []))
    assert shown.keys() == COMMANDS[name][0].model_fields.keys()
    again = config.load_settings(COMMANDS[name][0], shown)
    assert again.model_dump(mode="json") == shown


def test_dry_run_does_nothing(tmp_path):
    resolved("simulate", str(tmp_path / "scan.h5"))
    resolved("train", "--out", str(tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_one_line_and_exit_1(tmp_path):
    code, out, err = run("info", str(tmp_path / "absent.h5"))
    assert (code, out) == (1, "")
    assert err.strip() == f"Error: {tmp_path / 'absent.h5'}: no such file or folder"


def test_output_is_plain_where_nobody_looks(tmp_path):
    """No escape codes in pipes, in help, results or progress."""
    small = ["--kind", "film", "--size", "32", "--frames", "2", "--bank", "1"]
    code, out, err = run("simulate", str(tmp_path / "scan.h5"), *small)
    assert code == 0, err
    assert out == f"{tmp_path / 'scan.h5'}: 2 frames of 32x32, film, medium drift\n"
    code, help_text, _ = run("correct", "--help")
    assert code == 0
    assert "\x1b" not in out + err + help_text
    assert "\\" not in help_text


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "a.h5", "--bogus"], "No such option"),
        (["simulate"], "Missing argument"),
        (["simulate", "a.h5", "--kind", "cake"], "mosaic-sparse"),
    ],
)
def test_misuse_is_exit_2(arguments, said):
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert said in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulate", "a.h5", "--counts", "-3"], "--counts: Input should be greater than 0"),
        (["simulate", "a.h5", "--grid", "4"], "--grid: expected a grid as ROWSxCOLUMNS, got '4'"),
        (["correct", "a.h5", "--memory", "much"], "--memory: expected a size such as 2GiB"),
        (["correct", "a.h5", "--roi", "5:5,0:9"], "--roi: the region '5:5,0:9' is empty"),
        (["correct", "a.h5", "--frames", "3"], "--frames: expected frames as a:b or a:b:n"),
    ],
)
def test_a_value_out_of_bounds_is_exit_2(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["txmcorrect", *arguments])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_ctrl_c_is_exit_130(monkeypatch, capsys):
    def interrupted(settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("txmcorrect.info.run", interrupted)
    monkeypatch.setattr(sys, "argv", ["txmcorrect", "info", "a.h5"])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 130
    assert "interrupted" in capsys.readouterr().err


def test_flags_win_over_yaml_and_yaml_over_defaults(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("steps: 77\nlr: 0.5\nnetwork: {channels: 8}\nseed: 5\n")
    shown = resolved("train", "--config", str(path), "--lr", "0.25", "--seed", "0")
    assert (shown["steps"], shown["lr"], shown["seed"]) == (77, 0.25, 0)
    assert shown["network"]["channels"] == 8
    assert shown["network"]["blocks"] == config.NetworkSettings().blocks
    assert shown["batch"] == config.TrainSettings().batch


@pytest.mark.parametrize("text", ["stepz: 7", "network: {chanels: 8}"])
def test_an_unknown_name_in_yaml_is_refused(tmp_path, text):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(config.UsageError, match=r"stepz|network\.chanels") as caught:
        config.load_settings(config.TrainSettings, {"config": path})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_version():
    result = invoke("--version")
    assert (result.exit_code, result.output) == (0, f"txmcorrect {__version__}\n")


def test_python_dash_m_runs_the_same_program():
    done = subprocess.run(
        [sys.executable, "-m", "txmcorrect", "--version"], capture_output=True, text=True
    )
    assert done.stdout == f"txmcorrect {__version__}\n"


def test_the_shell_completes_commands():
    code, said, _ = run(
        _TXMCORRECT_COMPLETE="complete_bash", COMP_WORDS="txmcorrect co", COMP_CWORD="1"
    )
    assert (code, said.split()) == (0, ["correct"])


def test_completion_can_be_shown():
    """As typed into a shell: Typer asks which one it runs under."""
    done = subprocess.run(
        ["bash", "-c", f"{shlex.quote(str(PROGRAM))} --show-completion; exit $?"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "_TXMCORRECT_COMPLETE=complete_bash" in done.stdout
