"""Two processes under torchrun (gloo) against one on the same batch."""

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def launch(folder: Path, processes: int) -> list[dict]:
    folder.mkdir()
    script = ["-m", "tests.trainers.two_process_script", str(folder)]
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", "0", "--standalone"]
    command = [sys.executable, *(torchrun if processes > 1 else []), *script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(processes)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return launch(folder / "one", 1), launch(folder / "two", 2)


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo"])
def test_two_processes_give_the_loss_and_gradient_of_one_on_the_same_batch(runs, loss_type):
    (one,), two = runs
    for rank in two:
        assert rank[loss_type]["loss"] == pytest.approx(one[loss_type]["loss"], abs=1e-6)
        assert rank[loss_type]["gradient"] == pytest.approx(one[loss_type]["gradient"], abs=1e-6)
    assert max(map(abs, one[loss_type]["gradient"])) > 1e-3


def test_stats_are_token_weighted_over_ranks_of_unequal_length(runs):
    (one,), two = runs
    for rank in two:
        for name, value in one["dapo"]["stats"].items():
            assert rank["dapo"]["stats"][name] == pytest.approx(value, rel=1e-5, abs=1e-7), name
    assert len(one["dapo"]["stats"]) > 4


def test_two_processes_train_without_a_hang_stay_in_step_and_draw_different_samples(runs):
    _, (first, second) = runs
    assert first["weights"] == second["weights"]
    assert [row["loss"] for row in first["trained"]] == [row["loss"] for row in second["trained"]]
    half = len(first["completions"]) // 2
    assert first["completions"][:half] != first["completions"][half:]


def joined(two, *path):
    """The rows of both processes, in their order."""
    parts = []
    for rank in two:
        for key in path:
            rank = rank[key]
        parts += rank
    return parts


def test_ppo_on_two_processes_has_the_advantages_values_and_returns_of_one(runs):
    """Whitened over the global batch; the halves differ in tokens, in width and in spread."""
    (one,), two = runs
    rows = one["ppo"]["rows"]
    for name in ("advantages", "returns", "old_values", "kl"):
        together = joined(two, "ppo", "rows", name)
        assert [len(row) for row in together] == [6, 4, 6, 6, 2, 1, 3, 2]
        for ours, theirs in zip(together, rows[name], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5), name
    assert max(abs(x) for row in rows["kl"] for x in row) > 1e-2
    first_half = [x for row in rows["advantages"][:4] for x in row]
    assert abs(sum(first_half) / len(first_half)) > 0.05  # each process by itself would have made it 0


def test_explained_variance_whitening_and_scores_are_reported_over_both_processes(runs):
    (one,), two = runs
    metrics = one["ppo"]["metrics"]
    for rank in two:
        assert rank["ppo"]["metrics"] == pytest.approx(metrics, rel=1e-4, abs=1e-5)
        assert rank["ppo"]["state"] == pytest.approx(one["ppo"]["state"], rel=1e-5)
    assert {"value/explained_variance", "policy/advantage_std", "rollout/kl", "rollout/eos_rate"} <= set(metrics)
    assert metrics["rollout/eos_rate"] == 6 / 8
    values, returns = ([x for row in one["ppo"]["rows"][k] for x in row] for k in ("old_values", "returns"))
    errors = [r - v for r, v in zip(returns, values, strict=True)]
    expected = 1 - statistics.pvariance(errors) / statistics.pvariance(returns)
    assert metrics["value/explained_variance"] == pytest.approx(expected, abs=1e-4)


def test_ppo_on_two_processes_has_the_loss_and_gradient_of_one_the_critic_included(runs):
    (one,), two = runs
    for rank in two:
        assert rank["ppo"]["loss"] == pytest.approx(one["ppo"]["loss"], abs=1e-5)
        assert rank["ppo"]["gradient"] == pytest.approx(one["ppo"]["gradient"], abs=1e-5)
    # Sorted by name, the value head's bias and weight come last.
    assert max(map(abs, one["ppo"]["gradient"][-33:])) > 1e-3
    assert max(map(abs, one["ppo"]["gradient"][:-33])) > 1e-3


def test_ppos_stats_are_token_weighted_over_ranks_of_unequal_length(runs):
    (one,), two = runs
    stats = one["ppo"]["stats"]
    assert {"value/loss", "policy/approx_kl", "objective/clip_fraction", "objective/ratio", "kl"} <= set(stats)
    assert stats["objective/clip_fraction"] > 0
    for rank in two:
        for name, value in stats.items():
            assert rank["ppo"]["stats"][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_ppo_trains_on_two_processes_without_a_hang_and_they_stay_in_step(runs):
    _, (first, second) = runs
    assert first["ppo"]["weights"] == second["ppo"]["weights"]
    assert first["ppo"]["trained"] == second["ppo"]["trained"]
    assert first["ppo"]["trained"]["completions/min_length"] < first["ppo"]["trained"]["completions/max_length"]


@pytest.mark.parametrize(("name", "size"), [("spanning", 4), ("wide", 12)])
def test_the_completions_of_a_prompt_are_adjacent_and_their_baseline_spans_the_processes(runs, name, size):
    one, two = runs
    for ranks in (one, two):
        assert len(ranks[0][name]["rollouts"]) == 2
        for turn in range(2):
            prompts, advantages = (joined(ranks, name, "rollouts", turn, k) for k in ("prompts", "advantages"))
            assert len(prompts) == 12
            groups = [prompts[i : i + size] for i in range(0, 12, size)]
            assert all(len(set(group)) == 1 for group in groups)
            scores = ranks[0][name]["rollouts"][turn]["scores"]
            assert all(rank[name]["rollouts"][turn]["scores"] == scores for rank in ranks)
            for row, score in enumerate(scores):
                group = scores[row // size * size : row // size * size + size]
                others = (sum(group) - score) / (size - 1)
                assert advantages[row] == pytest.approx(score - others, abs=1e-5)
            assert max(map(abs, advantages)) > 0.1
    prompts = [joined(ranks, name, "rollouts", 0, "prompts") for ranks in runs]
    assert prompts[0] == prompts[1]


def test_two_processes_draw_different_samples_for_the_same_prompt(runs):
    """All twelve rows have one prompt: with one random state on both processes the halves would be equal."""
    _, (first, second) = runs
    for turn in range(2):
        ours, theirs = (rank["wide"]["rollouts"][turn] for rank in (first, second))
        assert set(ours["prompts"]) == set(theirs["prompts"]) and len(set(ours["prompts"])) == 1
        assert ours["completions"] != theirs["completions"]
