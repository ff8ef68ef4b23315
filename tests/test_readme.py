"""What the README shows is what the repository holds."""

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from scope_rlhf.objectives import OBJECTIVES, make_objective
from scope_rlhf.objectives.contract import check_objective
from scope_rlhf.runtime import RunFolder
from scope_rlhf.trainers import DualPathDistillationConfig, ScopePPOConfig
from tests.trainers.makers import make_distillation, make_trainer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_objective_is_the_tested_file_and_passes_the_contract(tmp_path):
    example = re.search(r"<!-- example: (\S+) -->\n```python\n(.*?)```", README, re.DOTALL)
    assert example is not None
    path, code = example.groups()
    assert (ROOT / path).read_text(encoding="utf-8") == code
    assert len(code.splitlines()) <= 25
    (tmp_path / "copied.py").write_text(code, encoding="utf-8")
    results = check_objective(make_objective(f"{tmp_path / 'copied.py'}:QuadraticPenalty"))
    assert [r for r in results if not r.passed] == []


def test_every_objective_has_a_row_with_its_parameters():
    for name, cls in OBJECTIVES.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        for parameter in (field.name for field in fields(cls)):
            if name == "ppo" or parameter not in ("clip_low", "clip_high", "policy_coef"):
                assert f"`{parameter}`" in row, f"{name}: {parameter}"


def test_every_metric_of_ppo_is_explained(tmp_path):
    shown = set(re.findall(r"`((?:rollout|policy|value)/\w+|kl|entropy)`", README))
    hl = {"critic": "hl_gauss", "critic_kwargs": {"v_min": -2.0, "v_max": 6.0, "bins": 21}}
    logged = set()
    for settings in ({"target_kl": 1.0}, hl):
        trainer = make_trainer("ppo", tmp_path, **settings)
        trainer.train()
        logged |= {name for row in trainer.state.log_history for name in row}
    ours = {name for name in logged if name.startswith(("rollout/", "policy/", "value/")) or name in ("kl", "entropy")}
    assert len(ours) > 15
    assert ours <= shown
    assert shown - ours == {"policy/target_nll"}  # its own test is in tests/trainers/test_ppo.py


def test_the_flags_of_trls_ppo_that_the_readme_says_are_kept_are_there():
    table = README[README.index("From TRL's PPOConfig") : README.index("## Metrics")]
    kept = re.findall(r"`(\w+)`", table[: table.index("| TRL")])
    assert len(kept) == 14
    renamed = [
        "max_completion_length", "kl_target", "kl_horizon", "target_kl", "use_score_scaling", "use_score_norm",
        "score_clip", "log_completions", "whiten_advantages",
    ]  # fmt: skip
    assert {*kept, *renamed} <= {f.name for f in fields(ScopePPOConfig)}


@pytest.mark.parametrize("trainer", ["ScopeGRPOTrainer", "ScopePPOTrainer", "DualPathDistillationTrainer"])
def test_the_examples_of_the_trainers_run_as_they_stand_without_the_hub(tmp_path, monkeypatch, trainer):
    """All of the example but its length: one update of a few completions instead of three epochs."""
    code = next(c for c in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if f"trainer = {trainer}(" in c)
    short = 'per_device_train_batch_size=8, max_steps=1, use_cpu=True, report_to="none", save_strategy="no", '
    assert code.count('"out", ') == 1
    monkeypatch.chdir(tmp_path)
    found = {}
    exec(code.replace('"out", ', f'"out", {short}'), found)
    assert found["trainer"].state.global_step == 1
    assert math.isfinite(found["trainer"].state.log_history[-1]["train_loss"])


def evaluation_section():
    return README[README.index("## Evaluation") : README.index("## Embedded models")]


def test_the_commands_and_keys_of_the_evaluation_are_there():
    from scope_rlhf.experiments.evaluate import EvaluateArguments
    from scope_rlhf.experiments.passk import PassKArguments
    from scope_rlhf.experiments.win_rate import WinRateArguments

    section = evaluation_section()
    commands = (("winrate", WinRateArguments), ("evaluate", EvaluateArguments), ("passk", PassKArguments))
    for command, arguments in commands:
        assert f"scope-rlhf {command} " in section
        for line in re.findall(rf"^scope-rlhf {command} .*$", section, re.MULTILINE):
            assert set(re.findall(r"--(\w+)", line)) <= {field.name for field in fields(arguments)}
    named = set(re.findall(r"`--(\w+)", section))
    assert named and named <= {field.name for field in (*fields(WinRateArguments), *fields(PassKArguments))}


def test_the_examples_of_the_evaluation_run_as_they_stand_and_log_the_keys_that_are_named(tmp_path):
    section = evaluation_section()
    callback, module = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    trainer = make_trainer("grpo", tmp_path, max_steps=1)
    exec(callback, {"trainer": trainer})
    trainer.train()
    logged = {key for row in trainer.state.log_history for key in row if key.startswith("win_rate")}
    assert logged == set(re.findall(r"`(win_rate(?:/\w+)?)`", section))
    exec(module, {})


def distillation_section():
    return README[README.index("## Distillation") : README.index("## Control")]


def test_every_metric_and_setting_of_distillation_is_explained(tmp_path):
    section = distillation_section()
    explained = set(re.findall(r"`(distillation/\w+)`", section))
    trainer = make_distillation(tmp_path, [1, 1, 0, 0] * 2, num_generations=4, max_steps=2)
    trainer.train()
    logged = {name for row in trainer.state.log_history for name in row if name.startswith("distillation/")}
    assert explained == logged
    known = {field.name for field in fields(DualPathDistillationConfig)}
    table = section[: section.index("### What it shows")]
    settings = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
    assert {"mode", "weights", "reverse_weights", "tau", "normalization", "reduction"} <= settings <= known


def test_the_figures_of_distillation_in_the_readme_are_those_of_the_records():
    from scope_rlhf.metrics import compare
    from scope_rlhf.reports.seed_table import read_results

    results = read_results(ROOT / "benchmarks/results/distillation_letters.jsonl")
    metrics = ("accuracy", "avg", "pass@8", "kl_wrong")
    table = {metric: compare(results, metric, control="opd") for metric in metrics}
    rows = re.findall(r"\n\| `([^`]+)` \|([^\n]*)", distillation_section())
    seen = set()
    for row, cells in ((row, cells) for row, cells in rows if row in table["avg"]):
        numbers = [float(x) for x in re.findall(r"[-+]?\d*\.\d{3}", cells)]
        expected = [table[metric][row][0].value for metric in metrics if row in table[metric]]
        if row not in ("teacher", "start", "opd"):
            gaps = [table[metric][row][1] for metric in ("avg", "pass@8")]
            expected += [x for gap in gaps for x in (gap.value, gap.low, gap.high)]
        assert numbers == pytest.approx(expected, abs=6e-4), row
        seen.add(row)
    assert seen == {result.row for result in results} and len({result.seed for result in results}) == 5


def control_section():
    return README[README.index("## Control") : README.index("## Vision")]


def vision_section():
    return README[README.index("## Vision") : README.index("## Metrics")]


def test_every_flag_of_vision_in_the_readme_and_in_the_help_is_there_and_the_help_has_all():
    from scope_rlhf.cli_help import VISION_HELP
    from scope_rlhf.experiments.vision_table import _OWN
    from scope_rlhf.vision.config import VisionConfig

    known = {field.name for field in fields(VisionConfig)}
    named = set(re.findall(r"--(\w+)", vision_section())) - {"config", "steps"}
    assert len(named) > 10
    assert named <= known | set(_OWN)
    helped = set(re.findall(r"--(\w+)", VISION_HELP)) - {"flag", "config", "traceback"}
    assert helped == known | set(_OWN)


def test_the_figures_of_vision_in_the_readme_are_those_of_the_records():
    from scope_rlhf.metrics import compare
    from scope_rlhf.reports.seed_table import read_results

    tables = [read_results(ROOT / f"benchmarks/results/vision_{name}.jsonl") for name in ("ratio50", "ratio100")]
    rows = re.findall(r"\n\| `(\w+)`(?: \([^)]*\))?(?: \+ `(\w+)`)? \|([^\n]*)", vision_section())
    seen = 0
    for objective, remedy, cells in rows:
        row = f"{objective} + {remedy}" if remedy else objective
        numbers = [float(x) for x in re.findall(r"[-+]?\.\d{3}", cells)]
        expected = []
        for results in tables:
            mean, gap = compare(results, "macro_precision")[row]
            expected += [mean.value, compare(results, "precision_std")[row][0].value]
            expected += [] if gap is None else [gap.value, gap.low, gap.high]
        assert numbers == pytest.approx(expected, abs=6e-4), row
        gaps = [compare(results, "macro_precision", 1 - 0.05 / 17)[row][1] for results in tables]
        bold = [cell.strip().startswith("**") for cell in cells.split("|")[1:4:2]]
        assert bold == [gap is not None and (gap.low > 0 or gap.high < 0) for gap in gaps], row
        seen += 1
    assert seen == 10


def test_every_flag_of_control_in_the_readme_is_there():
    from scope_rlhf.control.config import DQNConfig
    from scope_rlhf.control.on_policy_config import A2CConfig, PPOConfig

    known = {field.name for config in (PPOConfig, A2CConfig, DQNConfig) for field in fields(config)} | {"algorithm"}
    named = set(re.findall(r"--(\w+)", control_section())) - {"help", "nproc_per_node", "config"}
    assert len(named) > 15
    assert named <= known


def test_every_metric_of_control_is_explained_and_every_explained_one_is_logged(tmp_path):
    import sys

    sys.path.append(str(ROOT / "tests/control"))
    from tests.control.makers import train

    support = {"v_min": -0.5, "v_max": 1.5, "bins": 21}
    runs = [
        train("ppo", tmp_path / "scope", objective="scope", total_timesteps=64, cliprange_value=0.2, eval_steps=1),
        train("ppo", tmp_path / "hl", critic="hl_gauss", critic_kwargs=support, total_timesteps=64),
        train("dqn", tmp_path / "dqn", total_timesteps=200),
    ]
    logged = {key for run in runs for row in RunFolder(run).read_metrics() for key in row} - {"step"}
    explained = set(re.findall(r"`((?:charts|losses|time|eval)/\w+)`", control_section()))
    assert explained <= logged
    of_the_objective = {"losses/factor_sign_flip", "losses/advantage_factor", "losses/scope_magnitude"}
    besides = {"charts/episodes", "eval/episodic_return_std", "eval/episodic_length"}
    assert logged - explained <= of_the_objective | besides
