import re
import subprocess
import sys
import time

import pytest

from scope_rlhf import __version__
from scope_rlhf.cli import build_parser, main
from scope_rlhf.cli_help import GRPO_HELP

MINE = """\
from dataclasses import dataclass

from scope_rlhf.objectives import PolicyInputs, PolicyLoss


@dataclass(frozen=True)
class Mine:
    scale: float = 1.0

    def __call__(self, inputs: PolicyInputs) -> PolicyLoss:
        loss = -self.scale * inputs.advantages * inputs.log_probs
        return PolicyLoss({result}, {{"log_prob": inputs.log_probs.detach()}})
"""


@pytest.fixture
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")


def test_help_and_grpo_help_import_nothing_heavy():
    heavy = "{'torch', 'numpy', 'transformers', 'trl', 'rich', 'matplotlib'}"
    for arguments in (["--help"], ["grpo", "--help"], ["winrate", "--help"], ["objectives", "check", "--help"]):
        code = (
            "import sys; from scope_rlhf.cli import main\n"
            f"try: main({arguments})\n"
            "except SystemExit: pass\n"
            f"print(*({heavy} & sys.modules.keys()), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert "usage: scope-rlhf" in done.stdout
        assert done.stderr.split() == []


@pytest.mark.parametrize("arguments", [["--help"], ["grpo", "--help"]])
def test_help_takes_under_a_second_of_this_machine(arguments):
    command = [sys.executable, "-c", f"from scope_rlhf.cli import main; main({arguments})"]
    times = []
    for _ in range(3):  # the best of three: the test shares the machine
        started = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - started)
    assert min(times) < 1.0


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("grpo", "ppo", "winrate", "passk", "objectives", "env", "report", "frontier"):
        assert f"  {command}" in text


def test_the_short_help_of_grpo_names_only_flags_that_exist(capsys):
    assert main(["grpo", "--help"]) == 0
    short = capsys.readouterr().out
    assert short == GRPO_HELP
    with pytest.raises(SystemExit, match="0"):
        main(["grpo", "--help-all"])
    long = capsys.readouterr().out
    assert long.startswith("usage: scope-rlhf grpo ")
    every = set(re.findall(r"--\w+", long))
    named = set(re.findall(r"--[a-z_]\w*(?![\w-])", short)) - {"--help", "--traceback", "--flag"}
    assert {"--objective", "--beta", "--output_dir", "--resume_from_checkpoint"} <= named
    assert named - every - {"--config"} == set()


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"scope-rlhf {__version__}\n"


def test_an_unknown_command_is_a_usage_error(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["gpro"])
    assert "invalid choice: 'gpro'" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        build_parser().parse_args([])


@pytest.mark.usefixtures("wide")
def test_objectives_are_listed_with_parameters_and_formula(capsys):
    from scope_rlhf.objectives import OBJECTIVES

    assert main(["objectives"]) == 0
    text = capsys.readouterr().out
    for name, objective in OBJECTIVES.items():
        assert name in text
        assert objective.formula
        assert objective.formula in text
    for parameter in ("clip_low=0.2", "alpha=0.01", "gamma=2.0", "log_zero=-1.0"):
        assert parameter in text


@pytest.mark.usefixtures("wide")
def test_a_good_objective_of_ones_own_passes_the_contract(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(result="loss"))
    assert main(["objectives", "check", f"{file}:Mine", "--objective_kwargs", '{"scale": 0.5}']) == 0
    text = capsys.readouterr().out
    assert "FAILED" not in text
    assert re.search(r"all \d+ checks passed", text)


@pytest.mark.usefixtures("wide")
def test_an_objective_that_reduces_fails_the_contract_by_name(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text(MINE.format(result="loss.mean()"))
    assert main(["objectives", "check", f"{file}:Mine"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"FAILED\W+output", text)
    assert re.search(r"\d+ of \d+ checks failed", text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scoop"], "unknown objective 'scoop'"),
        (["no/such/file.py:Mine"], "no file"),
        (["scope", "--objective_kwargs", '{"alpah": 1}'], "alpah"),
        (["scope", "--objective_kwargs", "alpha=1"], "objective_kwargs must be a JSON object"),
        (["scope", "--objective_kwargs", "[1]"], "objective_kwargs must be a JSON object"),
    ],
)
def test_a_wrong_spec_is_one_paragraph_and_status_2(arguments, message, capsys):
    assert main(["objectives", "check", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_module_in_the_working_directory_is_found(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_own_objective_module.py").write_text(MINE.format(result="loss"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    assert main(["objectives", "check", "my_own_objective_module:Mine"]) == 0
    assert "checks passed" in capsys.readouterr().out


def test_env_reports_versions_without_the_network(capsys, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("the network was used")

    monkeypatch.setattr("socket.socket.connect", refuse)
    assert main(["env"]) == 0
    lines = dict(line.removeprefix("- ").split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert lines["scope-rlhf"] == __version__
    assert {"python", "torch", "trl", "commit", "device"} <= lines.keys()


def test_report_rewrites_the_report_and_curves_of_each_run(make_run, capsys):
    pytest.importorskip("matplotlib")
    runs = [make_run("one", steps=4), make_run("two", steps=4)]
    assert main(["report", *map(str, runs)]) == 0
    written = capsys.readouterr().out.splitlines()
    assert written == [str(run / name) for run in runs for name in ("curves.png", "report.md")]
    assert "](curves.png)" in (runs[0] / "report.md").read_text()


def test_frontier_draws_the_runs(make_run, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    runs = [make_run(f"b{beta}", steps=2, beta=beta, kl=1 / beta) for beta in (0.1, 0.3)]
    path = tmp_path / "frontier.png"
    assert main(["frontier", *map(str, runs), "--output", str(path), "--metric", "reward"]) == 0
    assert capsys.readouterr().out == f"{path}\n"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_folder_without_a_run_is_one_paragraph(tmp_path, capsys):
    for command in ("report", "frontier"):
        assert main([command, str(tmp_path / "nowhere")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: run folder")
        assert "Traceback" not in error


def test_ppo_has_its_own_help_and_names_its_own_flags(capsys):
    assert main(["ppo", "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: scope-rlhf ppo")
    for flag in ("--critic", "--kl_coef", "--num_ppo_epochs", "--advantage_estimator", "--objective", "--config"):
        assert flag in text
    assert "--beta" not in text
    assert main(["ppo", "--kl_coef", "-1"]) == 2
    assert "kl_coef must be a finite number >= 0, got -1.0; set --kl_coef" in capsys.readouterr().err
