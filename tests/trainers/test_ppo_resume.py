"""Resume of ScopePPOTrainer and ScopeGRPOTrainer inside one process, and the best checkpoint at the end of a run."""

import json

import pytest
import torch
from safetensors.torch import load_file

from scope_rlhf.models.value_head import split_critic
from tests.tiny import length_reward
from tests.trainers.resume_script import make_trainer, trained_weights

NO_CRITIC = {"critic": None, "critic_kwargs": None}
CASES = {
    "target_kl": {"target_kl": 3e-3, "value_warmup_steps": 6, "learning_rate": 3e-2},
    "rloo": {**NO_CRITIC, "advantage_estimator": "rloo", "num_generations": 2},
    "adapter": {"critic_backbone": "adapter"},
    "full": {"lora": False, "learning_rate": 1e-3},
}


def run(folder, kind="ppo", checkpoint=None, **settings):
    trainer = make_trainer(kind, folder, **settings)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """whole_run(case) -> (folder, weights, log) of the run that nothing interrupts."""
    done = {}

    def get(case):
        if case not in done:
            folder = tmp_path_factory.mktemp(case)
            trainer = run(folder, **CASES[case])
            done[case] = folder, trained_weights(trainer), trainer.state.log_history
        return done[case]

    return get


def state_of(folder, step):
    return json.loads((folder / f"checkpoint-{step}" / "ppo_state.json").read_text())


# A rollout serves 4 updates and the prompts last for 12.
@pytest.mark.parametrize("step", [4, 6, 11, 12])
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_run_has_the_weights_and_the_log_of_the_uninterrupted_one(tmp_path, whole_run, case, step):
    folder, weights, log = whole_run(case)
    resumed = run(tmp_path, checkpoint=folder / f"checkpoint-{step}", **CASES[case])
    found = trained_weights(resumed)
    assert found.keys() == weights.keys()
    assert bool(split_critic(weights)[1]) == (case != "rloo")
    for name, weight in weights.items():
        assert torch.equal(weight, found[name]), name
    for key in ("kl", "rollout/kl_coef", "rollout/score", "policy/approx_kl", "entropy"):
        rows = [[r[key] for r in rows if r["step"] > step and key in r] for rows in (log, resumed.state.log_history)]
        assert rows[0] and rows[0] == rows[1], key
    assert len({row["rollout/kl_coef"] for row in log if "kl" in row}) > 1  # or its state would not matter
    assert state_of(folder, step)["moments"]["count"] == 8 * -(-step // 4)


def test_the_run_with_target_kl_is_resumed_where_updates_are_skipped_and_where_the_critic_warms_up(whole_run):
    """What the cases above rest on: the gate is shut at step 11, open at 4, and the warm-up ends within a rollout."""
    folder, _, log = whole_run("target_kl")
    assert [state_of(folder, step)["stopped"] for step in (4, 6, 11)] == [False, False, True]
    assert any(row.get("policy/skipped_updates", 0) > 0 for row in log)
    policies = [load_file(folder / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (1, 6, 7)]
    assert all(torch.equal(policies[0][name], weight) for name, weight in policies[1].items())
    assert any(not torch.equal(policies[0][name], weight) for name, weight in policies[2].items())
    critics = [load_file(folder / f"checkpoint-{step}" / "critic.safetensors")["weight"] for step in (1, 6)]
    assert not torch.equal(*critics)


@pytest.mark.parametrize(("kind", "step"), [("ppo", 12), ("ppo", 17), ("grpo", 24), ("grpo", 26)])
def test_a_run_resumed_in_a_later_data_epoch_goes_on_in_that_epochs_order_of_prompts(tmp_path, kind, step):
    seen: list[str] = []
    settings = {"max_steps": 32, "save_steps": step, "save_total_limit": None}

    def watch(prompts, completions, **kwargs):
        seen.extend(prompts)
        return length_reward(prompts, completions)

    whole = make_trainer(kind, tmp_path / "whole", watch, **settings)
    seen.clear()
    whole.train()
    expected = seen[:]
    resumed = make_trainer(kind, tmp_path / "resumed", watch, **settings)
    seen.clear()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    assert len(seen) >= 8 and seen == expected[-len(seen) :]
    first, found = trained_weights(whole), trained_weights(resumed)
    assert all(torch.equal(weight, found[name]) for name, weight in first.items())


def test_a_resumed_run_takes_another_fixed_kl_coefficient_and_goes_on_with_an_adaptive_one(tmp_path, whole_run):
    folder, _, log = whole_run("target_kl")
    checkpoint = folder / "checkpoint-4"
    fixed = run(tmp_path / "fixed", checkpoint=checkpoint, kl_coef=0.5, kl_target=None, **CASES["target_kl"])
    assert {row["rollout/kl_coef"] for row in fixed.state.log_history if row["step"] > 4 and "kl" in row} == {0.5}
    moved = next(row["rollout/kl_coef"] for row in log if row["step"] > 4 and "rollout/kl_coef" in row)
    assert moved not in (0.05, 0.5)
    adaptive = run(tmp_path / "adaptive", checkpoint=checkpoint, **CASES["target_kl"])
    assert moved in {row.get("rollout/kl_coef") for row in adaptive.state.log_history if row["step"] > 4}


@pytest.mark.parametrize("case", ["shared", "adapter", "full"])
def test_the_best_checkpoint_by_eval_reward_comes_back_at_the_end_with_its_own_critic(tmp_path, case):
    def best_at_step_4(prompts, completions, trainer_state, **kwargs):
        better = 5.0 if not trainer.model.training and trainer_state.global_step == 4 else 0.0
        return [x + better for x in length_reward(prompts, completions)]

    settings = {"max_steps": 8, "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2, "probe_rewards": False}
    settings |= {"load_best_model_at_end": True, "metric_for_best_model": "eval_reward", "greater_is_better": True}
    trainer = make_trainer("ppo", tmp_path, best_at_step_4, **settings, **CASES.get(case, {}))
    trainer.train()
    assert trainer.state.best_global_step == 4
    trainer.save_model(str(tmp_path / "saved"))
    for file in ("model.safetensors" if case == "full" else "adapter_model.safetensors", "critic.safetensors"):
        now, best, last = (
            load_file(folder / file)
            for folder in (tmp_path / "saved", tmp_path / "checkpoint-4", tmp_path / "checkpoint-8")
        )
        assert now.keys() == best.keys()
        assert all(torch.equal(now[name], weight) for name, weight in best.items()), file
        assert any(not torch.equal(last[name], weight) for name, weight in best.items()), file


def test_an_evaluation_within_a_rollout_does_not_reopen_the_updates_that_target_kl_skips(tmp_path):
    """One rollout of 8 updates: what evaluation samples cannot matter, so the weights must not know of it."""
    settings = {"target_kl": 4e-3, "num_mini_batches": 4, "per_device_train_batch_size": 2, "max_steps": 8}
    settings |= {"save_strategy": "no", "logging_steps": 1}
    plain = run(tmp_path, **settings)
    evaluated = run(tmp_path, eval_strategy="steps", eval_steps=2, **settings)
    skipped, seen = (
        [row["policy/skipped_updates"] for row in t.state.log_history if "policy/skipped_updates" in row]
        for t in (plain, evaluated)
    )
    assert 0 < sum(skipped) < 8 and seen == skipped
    assert sum("eval_reward" in row for row in evaluated.state.log_history) == 4
    found = trained_weights(evaluated)
    assert all(torch.equal(weight, found[name]) for name, weight in trained_weights(plain).items())
