"""What dual-path distillation must not depend on, and what every branch contributes, at the level of the trainer."""

import math

import pytest
import torch

from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import (
    dense_log_probs,
    disturb,
    loss_of,
    make_distillation,
    plain_gpt2,
    rollout,
    script,
    weights,
)
from tests.trainers.test_distillation import VERDICTS, given_rollout
from tests.trainers.two_process_script import COMPLETIONS


def teacher_of(seed):
    return tiny_gpt2(tiny_tokenizer(), seed=seed)


def test_the_gradient_of_correct_completions_does_not_depend_on_the_teacher(tmp_path, monkeypatch):
    found = []
    for seed in (1, 2):
        trainer, inputs = given_rollout(tmp_path, monkeypatch, [1.0] * 8, teacher_model=teacher_of(seed))
        found.append(loss_of(trainer, inputs)[1])
    assert torch.equal(*found) and found[0].norm() > 1e-2
    mixed = [given_rollout(tmp_path, monkeypatch, teacher_model=teacher_of(seed))[1] for seed in (1, 2)]
    same = [bool(torch.equal(*rows)) for rows in zip(*(x["advantages"] for x in mixed), strict=True)]
    assert same == [verdict == 1 for verdict in VERDICTS]


def test_a_teacher_that_is_the_student_gives_no_gradient_on_wrong_completions(tmp_path, monkeypatch):
    trainer, inputs = given_rollout(tmp_path, monkeypatch, [0.0] * 8, lora=None, teacher_model=teacher_of(0))
    assert loss_of(trainer, inputs)[1].norm() < 1e-5
    other, inputs = given_rollout(tmp_path, monkeypatch, [0.0] * 8, lora=None)
    assert loss_of(other, inputs)[1].norm() > 1e-1


def test_log_probs_of_student_and_teacher_in_a_left_padded_batch_are_those_of_each_row_alone(tmp_path, monkeypatch):
    trainer, inputs = given_rollout(tmp_path, monkeypatch)
    assert inputs["prompt_mask"].sum(1).unique().numel() == 2
    mask = inputs["completion_mask"].bool()
    for found, model in (
        (inputs["old_per_token_logps"], trainer.model),
        (trainer.teacher.log_probs(inputs), plain_gpt2(seed=1)),
    ):
        assert (found.double() - dense_log_probs(model, inputs))[mask].abs().max() < 1e-4


@pytest.mark.parametrize("reduction", ["token_mean", "eq6", "sequence_mean", "fixed_horizon"])
def test_more_padding_on_either_side_changes_nothing(tmp_path, monkeypatch, reduction):
    found = []
    for multiple in (None, 16):
        trainer, inputs = given_rollout(
            tmp_path, monkeypatch, reduction=reduction, pad_to_multiple_of=multiple, temperature=0.7
        )
        mask = inputs["completion_mask"].bool()
        found.append((inputs["completion_ids"].shape, inputs["advantages"][mask], *loss_of(trainer, inputs)[:2]))
    (narrow, *ours), (wide, *padded) = found
    assert narrow[1] == 6 and wide[1] == 16
    assert torch.allclose(ours[0], padded[0], atol=1e-5)
    assert ours[1] == pytest.approx(padded[1], rel=1e-5) and torch.allclose(ours[2], padded[2], atol=1e-5)


def test_completions_permuted_within_their_group_keep_their_advantages_and_the_gradient(tmp_path, monkeypatch):
    order = [2, 0, 3, 1, 7, 5, 4, 6]
    trainer, inputs = given_rollout(tmp_path, monkeypatch)
    other, permuted = given_rollout(
        tmp_path, monkeypatch, [VERDICTS[i] for i in order], [COMPLETIONS[i] for i in order]
    )
    assert torch.allclose(inputs["advantages"][order], permuted["advantages"], atol=1e-6)
    assert torch.allclose(loss_of(trainer, inputs)[1], loss_of(other, permuted)[1], atol=1e-6)


@pytest.mark.parametrize("verdict", [0.0, 1.0])
def test_groups_of_one_verdict_count_and_their_empty_branch_adds_nothing(tmp_path, monkeypatch, verdict):
    """GRPO takes nothing from a group of zero spread."""
    trainer, inputs = given_rollout(tmp_path, monkeypatch, [verdict] * 4 + VERDICTS[4:])
    value, gradient, _ = loss_of(trainer, inputs)
    assert math.isfinite(value) and gradient.isfinite().all()
    mask = inputs["completion_mask"].bool()
    if verdict == 1:
        assert inputs["advantages"][:4, 0].sum().item() == pytest.approx(4)
    assert (inputs["advantages"][:4][mask[:4]].abs() > 1e-4).all()
    inputs["advantages"][4:] = 0
    assert loss_of(trainer, inputs)[1].norm() > 1e-2


@pytest.mark.parametrize("reduction", ["token_mean", "eq6", "sequence_mean", "fixed_horizon"])
def test_two_accumulated_micro_batches_make_the_step_of_one_batch(tmp_path, monkeypatch, reduction):
    moved = []
    for rows, accumulation in ((8, 1), (4, 2)):
        trainer = make_distillation(
            tmp_path, VERDICTS, reduction=reduction, per_device_train_batch_size=rows, max_steps=1, optim="sgd",
            gradient_accumulation_steps=accumulation, learning_rate=1.0, max_grad_norm=0.0,
        )  # fmt: skip
        disturb(trainer.model, "lora_B")
        before = weights(trainer)
        script(trainer, monkeypatch, COMPLETIONS)
        trainer.train()
        moved.append({name: weight - before[name] for name, weight in weights(trainer).items()})
    assert max(x.abs().max() for x in moved[0].values()) > 1e-3
    for name, change in moved[0].items():
        assert torch.allclose(change, moved[1][name], atol=1e-6), name


def test_completions_without_a_verdict_have_no_influence_on_the_gradient(tmp_path, monkeypatch):
    verdicts = [None, *VERDICTS[1:7], None]
    trainer, inputs = given_rollout(tmp_path, monkeypatch, verdicts)
    assert inputs["advantages"][[0, 7]].abs().sum() == 0
    assert (inputs["advantages"][1:7].abs().sum(1) > 0).all()
    _, gradient, _ = loss_of(trainer, inputs)
    inputs["completion_ids"][0] = 17
    inputs["old_per_token_logps"][0] -= 3.0
    assert torch.allclose(loss_of(trainer, inputs)[1], gradient, atol=1e-7) and gradient.norm() > 1e-2


@pytest.mark.parametrize("mode", ["dual_path", "opd"])
def test_an_empty_completion_has_no_weight_whatever_the_log_probs_behind_its_mask(tmp_path, monkeypatch, mode):
    """Truncated completions are masked whole: the first and the fourth have no end."""
    trainer = make_distillation(tmp_path, VERDICTS, mode=mode, mask_truncated_completions=True)
    disturb(trainer.model, "lora_B")
    script(trainer, monkeypatch, COMPLETIONS)
    score = trainer.teacher.log_probs

    def rubbish_where_masked(given):
        return score(given).masked_fill(given["completion_mask"] == 0, math.nan)

    trainer.teacher.log_probs = rubbish_where_masked
    inputs = rollout(trainer)
    assert [i for i in range(8) if inputs["completion_mask"][i].sum() == 0] == [0, 3]
    assert inputs["advantages"][[0, 3]].abs().sum() == 0 and inputs["advantages"].isfinite().all()
    value, gradient, _ = loss_of(trainer, inputs)
    assert math.isfinite(value) and gradient.isfinite().all() and gradient.norm() > 1e-2
    assert trainer._metrics["train"]["distillation/unscored"] == [0.25]


def test_a_rollout_without_any_verdict_moves_nothing_and_is_no_error(tmp_path):
    trainer = make_distillation(tmp_path, lambda prompts, **kwargs: [None] * len(prompts), max_steps=2)
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    assert all(math.isfinite(row.get("loss", 0.0)) for row in trainer.state.log_history)


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_missing_score_of_the_teacher_stops_the_run_before_the_update(tmp_path, monkeypatch, value):
    trainer = make_distillation(tmp_path, VERDICTS, max_steps=1)
    before, score = weights(trainer), trainer.teacher.log_probs

    def one_missing(given):
        found = score(given)
        found[5, 0] = value
        return found

    trainer.teacher.log_probs = one_missing
    with pytest.raises(ValueError, match=r"no finite log-prob for 1 of 8 completions \(the first is completion 5"):
        trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
