"""What the trainers save themselves changes nothing they compute: heads, sorting, trimming, the sampler's log-probs."""

import pytest
import torch
from peft.tuners.lora import LoraLayer

from scope_rlhf.models import fused_head
from scope_rlhf.models.rollout_weights import ROLLOUT_DTYPES
from scope_rlhf.trainers import lean_rollouts
from scope_rlhf.trainers.lengths import trim
from tests.tiny import tiny_gptj, tiny_tokenizer
from tests.trainers.makers import (
    LORA_GPTJ,
    TRAINERS,
    dense_log_probs,
    disturb,
    loss_of,
    make_distillation,
    make_trainer,
    rollout,
    script,
    weights,
)

# What a trainer did before: TRL's head on every position, no sorting, every pass made.
BEFORE = {
    "head_impl": "trl", "merge_for_rollout": False, "reuse_sampling_log_probs": False, "sort_by_length": False,
}  # fmt: skip
EOS = tiny_tokenizer().eos_token_id
# Eight completions of 1 to 6 tokens, ended where they are shorter; what stands behind the end is never read.
UNEQUAL = [[11 + row] * length + [EOS] * (6 - length) for row, length in enumerate([6, 1, 2, 5, 1, 4, 3, 1])]
LOGGED_ELSEWHERE = ("step_time", "epoch", "distillation/teacher_seconds", "train_runtime")


def trainer_of(kind, folder, **settings):
    """Two micro-batches of an optimizer step, with a policy that differs from its reference."""
    settings = {"gradient_accumulation_steps": 2, "minibatches": 1, **settings}
    if kind == "distillation":
        trainer = make_distillation(folder, [1.0, 0.0, 1.0, 0.0] * 2, per_device_train_batch_size=4, **settings)
    else:
        algorithm, _, critic = kind.partition("-")
        settings |= {"critic_backbone": critic} if critic else {}
        trainer = make_trainer(algorithm, folder, **settings)
    disturb(trainer.model, "lora_B", 0.3)
    if "ppo" in kind:
        disturb(trainer.model, "value_head", 0.1)
    return trainer


def run(kind, folder, monkeypatch, **settings):
    """Metrics of each step and the weights after training on the same completions."""
    trainer = trainer_of(kind, folder, optim="sgd", max_grad_norm=0.0, max_steps=2, seed=3, **settings)
    script(trainer, monkeypatch, UNEQUAL)
    trainer.train()
    rows = [{k: v for k, v in row.items() if k not in LOGGED_ELSEWHERE} for row in trainer.state.log_history[:-1]]
    return rows, weights(trainer)


@pytest.mark.parametrize("kind", ["grpo", "ppo-shared", "ppo-adapter", "distillation"])
@pytest.mark.parametrize("objective", ["ppo", "scope", "policy_entropy"])
def test_on_replayed_rollouts_every_metric_and_the_weights_equal_the_old_path(kind, objective, tmp_path, monkeypatch):
    old_rows, old = run(kind, tmp_path / "old", monkeypatch, objective=objective, **BEFORE)
    rows, now = run(kind, tmp_path / "new", monkeypatch, objective=objective)
    assert len(rows) == len(old_rows) == 2
    for before, after in zip(old_rows, rows, strict=True):
        assert set(before) == set(after) and "objective/ratio" in after and "entropy" in after
        for name, value in before.items():
            assert after[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
    for name, weight in old.items():
        assert (weight - now[name]).norm() <= 1e-4 * weight.norm() + 1e-6, name


@pytest.mark.parametrize("loss_type", ["dapo", "grpo", "dr_grpo", "bnpo"])
def test_the_gradient_of_a_step_is_that_of_unsorted_micro_batches_for_every_reduction(loss_type, tmp_path, monkeypatch):
    found = []
    for sort in (False, True):
        settings = {"loss_type": loss_type, "passes": 1, "sort_by_length": sort, "num_generations": 8}  # one prompt
        trainer = trainer_of("grpo", tmp_path / str(sort), **settings)
        script(trainer, monkeypatch, UNEQUAL)
        whole = rollout(trainer, 8)
        parts = [{k: v[i : i + 4] if v.ndim else v for k, v in whole.items()} for i in (0, 4)]
        trainer._step, trainer._buffered_inputs = 1, trainer._arrange(parts)
        ready = [trim(batch) if sort else batch for batch in trainer._buffered_inputs]
        tokens = sum(batch["prompt_ids"].numel() + batch["completion_ids"].numel() for batch in ready)
        rows = [batch["completion_ids"][:, 0].tolist() for batch in ready]
        found.append((tokens, rows, sum(loss_of(trainer, batch)[1] for batch in ready)))
    assert found[1][0] < found[0][0]
    assert (found[0][1] == found[1][1]) == (loss_type == "bnpo")
    assert found[0][2].norm() > 1e-3
    assert (found[0][2] - found[1][2]).norm() <= 1e-5 * found[0][2].norm()


def test_micro_batches_come_sorted_and_without_the_padding_that_their_rows_do_not_need(tmp_path, monkeypatch):
    seen = []
    trainer = trainer_of("grpo", tmp_path, passes=1, max_steps=1)
    script(trainer, monkeypatch, UNEQUAL)
    original = trainer._compute_loss

    def spy(model, inputs):
        masks = (inputs["prompt_mask"], inputs["completion_mask"])
        assert [mask.shape[1] for mask in masks] == [mask.sum(1).max().item() for mask in masks]
        seen.append(sum(mask.numel() for mask in masks))
        return original(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    buffer = trainer._buffered_inputs
    whole = sum(batch[name].numel() for batch in buffer for name in ("prompt_mask", "completion_mask"))
    assert len(seen) == 2 and sum(seen) < whole


@pytest.mark.parametrize("critic", ["ppo-shared", "ppo-adapter"])
def test_later_epochs_of_ppo_are_dealt_as_without_sorting(critic, tmp_path, monkeypatch):
    """Two minibatches of two micro-batches, dealt anew in the second epoch: dealing the sorted rows would put others
    into a minibatch.
    """
    settings = {"minibatches": 2, "passes": 2, "max_steps": 4, "gradient_accumulation_steps": 2}
    completions = [[*row[:-1], 40 + i] for i in range(2) for row in UNEQUAL]
    found = []
    for sort in (False, True):
        trainer = trainer_of(critic, tmp_path / str(sort), optim="sgd", sort_by_length=sort, **settings)
        script(trainer, monkeypatch, completions)
        trainer.train()
        found.append(([row["grad_norm"] for row in trainer.state.log_history[:-1]], weights(trainer)))
    assert len(found[0][0]) == 4 and len(set(found[0][0])) == 4
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-4)
    for name, weight in found[0][1].items():
        assert (weight - found[1][1][name]).norm() <= 1e-4 * weight.norm() + 1e-6, name


def counted_passes(trainer, monkeypatch):
    """Names of the passes of a rollout, in their order: (policy or reference, rows that went through the head)."""
    passes = []
    original = lean_rollouts.LeanRollouts._get_per_token_logps_and_entropies
    multiply = fused_head._Logits.__call__
    projected = []
    monkeypatch.setattr(
        fused_head._Logits, "__call__", lambda s, rows: projected.append(len(rows)) or multiply(s, rows)
    )
    base = trainer.model.get_base_model()
    forward = base.base_model.forward
    runs = []
    base.base_model.forward = lambda *args, **kwargs: runs.append(1) or forward(*args, **kwargs)

    def spy(self, model, *args, **kwargs):
        projected.clear()
        runs.clear()
        result = original(self, model, *args, **kwargs)
        layer = next(m for m in trainer.model.modules() if isinstance(m, LoraLayer))
        passes.append(("reference" if layer.disable_adapters else "policy", len(runs) > 0, sum(projected) > 0))
        return result

    monkeypatch.setattr(lean_rollouts.LeanRollouts, "_get_per_token_logps_and_entropies", spy)
    return passes


KNOWN, VALUES_ONLY, WHOLE = ("policy", False, False), ("policy", True, False), ("policy", True, True)
REFERENCE, TEACHER = ("reference", True, True), ("policy", False, True)  # the teacher is another model


@pytest.mark.parametrize(
    ("kind", "settings", "expected"),
    [
        ("grpo", {"minibatches": 2}, [KNOWN, REFERENCE]),
        ("grpo", {"passes": 1}, [REFERENCE]),  # one step a rollout: the ratio is 1 by its own detached log-probs
        ("ppo-shared", {}, [KNOWN, REFERENCE]),
        ("ppo-shared", {"passes": 1, "minibatches": 1}, [REFERENCE, KNOWN]),
        ("ppo-adapter", {}, [VALUES_ONLY, REFERENCE]),
        ("ppo-shared", {"reuse_sampling_log_probs": False}, [WHOLE, REFERENCE]),
        ("distillation", {}, [KNOWN, TEACHER]),
        ("grpo", {"minibatches": 2, "reuse_sampling_log_probs": False}, [WHOLE, REFERENCE]),
        ("grpo", {"minibatches": 2, "disable_dropout": False}, [WHOLE, REFERENCE]),
        ("grpo", {"minibatches": 2, "rollout_dtype": "bfloat16"}, [WHOLE, REFERENCE]),
        ("grpo", {"minibatches": 2, "rollout_dtype": "float32"}, [KNOWN, REFERENCE]),
        ("grpo", {"minibatches": 2, "bf16": True}, [WHOLE, REFERENCE]),
        ("distillation", {"rollout_dtype": "bfloat16"}, [WHOLE, TEACHER]),
    ],
)
def test_the_pass_for_old_log_probs_is_made_only_where_the_sampler_does_not_know_them(
    kind, settings, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(lean_rollouts, "find_rollout_dtype", lambda name, device: ROLLOUT_DTYPES.get(name))
    trainer = trainer_of(kind, tmp_path, gradient_accumulation_steps=1, **settings)
    passes = counted_passes(trainer, monkeypatch)
    inputs = rollout(trainer)
    assert passes == expected
    if kind != "grpo" or settings.get("passes") != 1:
        gap = (inputs["old_per_token_logps"] - inputs["sampling_per_token_logps"])[inputs["completion_mask"].bool()]
        assert (gap.abs().max() == 0) == (KNOWN in expected or VALUES_ONLY in expected)


@pytest.mark.parametrize("kind", ["grpo", "ppo-shared", "ppo-adapter", "distillation"])
def test_reused_log_probs_are_those_of_the_policy_row_by_row(kind, tmp_path):
    """Float64 logits of each row alone, without padding: merged weights, cache and left padding cost 1e-5 at most."""
    trainer = trainer_of(kind, tmp_path, max_completion_length=8)
    inputs = rollout(trainer)
    expected = dense_log_probs(trainer.model, inputs)
    mask = inputs["completion_mask"].bool()
    assert (inputs["old_per_token_logps"] - expected)[mask].abs().max() < 2e-5
    if "ref_per_token_logps" in inputs:
        with trainer.model.disable_adapter():
            expected = dense_log_probs(trainer.model, inputs)
        assert (inputs["ref_per_token_logps"] - expected)[mask].abs().max() < 2e-5


def test_reuse_works_for_gptj_and_its_bias(tmp_path):
    trainer = trainer_of("grpo", tmp_path, model=tiny_gptj(tiny_tokenizer()), lora=LORA_GPTJ, minibatches=2)
    inputs = rollout(trainer)
    gap = inputs["old_per_token_logps"] - dense_log_probs(trainer.model, inputs)
    assert gap[inputs["completion_mask"].bool()].abs().max() < 2e-5


@pytest.mark.parametrize("critic", ["shared", "adapter"])
@pytest.mark.parametrize("kind", ["mse", "hl_gauss"])
def test_values_taken_while_sampling_or_without_the_head_are_those_of_a_whole_pass(critic, kind, tmp_path):
    values = []
    bins = {"v_min": -2.0, "v_max": 2.0, "bins": 11} if kind == "hl_gauss" else None
    for reuse in (False, True):
        settings = {"reuse_sampling_log_probs": reuse, "critic": kind, "critic_kwargs": bins}
        trainer = trainer_of(f"ppo-{critic}", tmp_path / str(reuse), **settings)
        torch.manual_seed(5)
        inputs = rollout(trainer)
        values.append(inputs["old_values"][inputs["completion_mask"].bool()])
    assert values[0].std() > 1e-3
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_rollout_leaves_every_weight_bitwise_as_it_was(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(lean_rollouts, "find_rollout_dtype", lambda name, device: ROLLOUT_DTYPES.get(name))
    trainer = trainer_of("ppo-shared", tmp_path, rollout_dtype=dtype)
    before = {n: (w.data_ptr(), w.detach().clone()) for n, w in trainer.model.named_parameters()}
    rollout(trainer)
    for name, weight in trainer.model.named_parameters():
        assert weight.data_ptr() == before[name][0] and torch.equal(weight, before[name][1]), name


def test_a_reward_that_fails_after_sampling_leaves_every_weight_as_it_was(tmp_path):
    calls = []

    def failing(prompts, completions, **kwargs):
        calls.append(1)
        raise RuntimeError("no reward today")

    trainer = trainer_of("grpo", tmp_path, rewards=failing, probe_rewards=False)
    before = {n: w.detach().clone() for n, w in trainer.model.named_parameters()}
    with pytest.raises(RuntimeError, match="no reward today"):
        rollout(trainer)
    assert calls and all(torch.equal(w, before[n]) for n, w in trainer.model.named_parameters())


@pytest.mark.parametrize(
    ("objective", "expected"), [("ppo", "metric"), ("scope", "metric"), ("policy_entropy", "gradient")]
)
def test_the_entropy_gets_a_gradient_only_where_the_objective_needs_one(objective, expected, tmp_path, monkeypatch):
    trainer = trainer_of("grpo", tmp_path, objective=objective, kl=0.0, passes=1)
    inputs = rollout(trainer)
    seen = []
    original = fused_head._Jacobian.apply
    monkeypatch.setattr(fused_head._Jacobian, "apply", lambda *given: seen.append(given[5]) or original(*given))
    loss_of(trainer, inputs)
    assert seen == [expected]


def test_a_rollout_of_no_whole_number_of_steps_is_left_in_its_order(tmp_path):
    trainer = trainer_of("grpo", tmp_path)
    trainer.args.gradient_accumulation_steps = 2
    rows = torch.ones(3, 2, 4, dtype=torch.long)
    ended = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]])
    parts = [{"prompt_mask": x, "completion_mask": x * ended, "completion_ids": x} for x in rows]
    assert all(
        torch.equal(a["completion_mask"], b["completion_mask"])
        for a, b in zip(trainer._arrange(parts), parts, strict=True)
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"head_impl": "fast"}, "head_impl must be one of auto, jacobian.*got 'fast'; set --head_impl"),
        ({"sort_by_length": "no"}, "sort_by_length must be true or false, got 'no'; set --sort_by_length"),
        ({"rollout_dtype": "int8"}, "rollout_dtype must be one of float32, bfloat16, got 'int8'; set --rollout_dtype"),
        ({"head_impl": "jacobian", "lora": None}, "this one is trained.*--head_impl recompute or auto"),
    ],
)
def test_bad_settings_are_refused_with_the_flag_to_set(settings, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        make_trainer("grpo", tmp_path, **settings)


def test_bfloat16_rollouts_on_a_cpu_without_it_warn_naming_the_setting_and_run_in_float32(tmp_path, monkeypatch):
    original = lean_rollouts.find_rollout_dtype
    monkeypatch.setattr(
        lean_rollouts, "find_rollout_dtype", lambda name, device: original(name, device, has_bf16=lambda: False)
    )
    with pytest.warns(UserWarning, match="--rollout_dtype bfloat16: this CPU has no bfloat16"):
        trainer = trainer_of("grpo", tmp_path, rollout_dtype="bfloat16", minibatches=2)
    inputs = rollout(trainer)
    assert torch.equal(inputs["old_per_token_logps"], inputs["sampling_per_token_logps"])


@pytest.mark.parametrize("algorithm", sorted(TRAINERS))
@pytest.mark.parametrize("impl", ["recompute", "trl", "dense"])
def test_every_head_trains_all_weights_alike(algorithm, impl, tmp_path, monkeypatch):
    """Without LoRA the head is trained too: auto is recompute there."""
    found = []
    for name in ("auto", impl):
        settings = {"lora": None, "head_impl": name, "passes": 1, "kl": 0.0}
        if algorithm == "distillation":
            trainer = make_distillation(tmp_path / name, [1.0, 0.0, 1.0, 0.0] * 2, **settings)
        else:
            trainer = make_trainer(algorithm, tmp_path / name, per_device_train_batch_size=8, minibatches=1, **settings)
        script(trainer, monkeypatch, UNEQUAL)
        found.append(loss_of(trainer, rollout(trainer, 8))[1])
    assert found[0].norm() > 0
    assert (found[0] - found[1]).norm() <= 1e-5 * found[0].norm()
