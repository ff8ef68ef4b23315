"""Verdicts from rewards, and every distillation/* metric against a computation by hand on one given rollout."""

import math
import warnings

import pytest
import torch

from tests.trainers.makers import dense_log_probs, logged, make_distillation, plain_gpt2, rollout, script
from tests.trainers.test_distillation import VERDICTS, given_rollout
from tests.trainers.two_process_script import COMPLETIONS

NAMES = {
    "correct", "unscored", "student_perplexity", "teacher_perplexity", "student_weight_entropy",
    "teacher_weight_entropy", "log_ratio", "log_ratio_correct", "log_ratio_wrong", "groups_all_correct",
    "groups_all_wrong", "teacher_seconds",
}  # fmt: skip


def metrics_of(trainer, mode="train"):
    found = trainer._metrics[mode]
    return {name.removeprefix("distillation/"): x[-1] for name, x in found.items() if name.startswith("distillation/")}


def by_hand(student, teacher, mask, verdicts):
    """Each metric by a loop; log-probs [B, T] in float64, 0 where masked."""
    lengths = mask.sum(1).tolist()
    rows = {v: [i for i in range(8) if verdicts[i] == v] for v in (1.0, 0.0)}
    gaps = (student - teacher).sum(1).tolist()
    perplexities = [[math.exp(-x / n) for x, n in zip(p.sum(1).tolist(), lengths, strict=True)]
                    for p in (student, teacher)]  # fmt: skip

    def entropy(verdict, perplexity, exponent):
        found = []
        for group in (range(4), range(4, 8)):
            powers = [perplexity[i] ** exponent for i in group if verdicts[i] == verdict]
            if len(powers) > 1:
                shares = [power / sum(powers) for power in powers]
                found.append(-sum(share * math.log(share) for share in shares))
        return sum(found) / len(found)

    def ratio(members):
        return sum(gaps[i] for i in members) / sum(lengths[i] for i in members)

    return {
        "correct": len(rows[1.0]) / len(rows[1.0] + rows[0.0]),
        "unscored": sum(v is None for v in verdicts) / 8,
        "student_perplexity": sum(perplexities[0]) / 8,
        "teacher_perplexity": sum(perplexities[1]) / 8,
        "student_weight_entropy": entropy(1.0, perplexities[0], 1),
        "teacher_weight_entropy": entropy(0.0, perplexities[1], -1),
        "log_ratio": ratio(range(8)),
        "log_ratio_correct": ratio(rows[1.0]),
        "log_ratio_wrong": ratio(rows[0.0]),
    }


@pytest.mark.parametrize(
    ("verdicts", "all_correct", "all_wrong"),
    [
        (VERDICTS, 0.0, 0.0),
        ([1.0, 1.0, None, 1.0, 0.0, 0.0, 0.0, 1.0], 0.5, 0.0),
        ([1.0, 1.0, 1.0, 1.0, 0.0, None, 0.0, 0.0], 0.5, 0.5),
    ],
)
def test_every_metric_is_what_its_name_says(tmp_path, monkeypatch, verdicts, all_correct, all_wrong):
    trainer, inputs = given_rollout(tmp_path, monkeypatch, verdicts)
    found = metrics_of(trainer)
    mask = inputs["completion_mask"].bool()
    expected = by_hand(
        dense_log_probs(trainer.model, inputs), dense_log_probs(plain_gpt2(seed=1), inputs), mask, verdicts
    )
    expected |= {"groups_all_correct": all_correct, "groups_all_wrong": all_wrong}
    assert found.keys() == NAMES and found.pop("teacher_seconds") > 0
    assert found == pytest.approx(expected, rel=1e-4)


def test_a_group_without_any_verdict_is_neither_all_right_nor_all_wrong(tmp_path, monkeypatch):
    trainer, _ = given_rollout(tmp_path, monkeypatch, [None] * 4 + [1.0] * 4)
    found = metrics_of(trainer)
    assert (found["groups_all_correct"], found["groups_all_wrong"], found["correct"]) == (1.0, 0.0, 1.0)
    assert found["unscored"] == 0.5 and "log_ratio_wrong" not in found and "teacher_weight_entropy" not in found


def test_without_any_verdict_what_is_not_defined_is_left_out(tmp_path, monkeypatch):
    trainer, _ = given_rollout(tmp_path, monkeypatch, [None] * 8)
    found = metrics_of(trainer)
    assert found.keys() == {"unscored", "student_perplexity", "teacher_perplexity", "log_ratio", "teacher_seconds"}
    assert found["unscored"] == 1.0


@pytest.mark.parametrize("size", [1, 4])
def test_opd_without_a_verifier_logs_nothing_about_rewards_and_verdicts(tmp_path, capsys, size):
    trainer = make_distillation(
        tmp_path, mode="opd", num_generations=size, max_steps=2, eval_strategy="steps", eval_steps=1,
        log_completions=True,
    )  # fmt: skip
    trainer.train()
    assert "no_verifier" not in capsys.readouterr().out
    for prefix in ("", "eval_"):
        (row, *_) = [r for r in trainer.state.log_history if f"{prefix}distillation/log_ratio" in r]
        names = {n.removeprefix(f"{prefix}distillation/") for n in row if "distillation/" in n}
        assert names == {"student_perplexity", "teacher_perplexity", "log_ratio", "teacher_seconds"}
        assert not [n for n in row if "reward" in n or "dropped" in n]


def test_opd_with_a_verifier_logs_its_verdicts_and_takes_no_notice_of_them(tmp_path, monkeypatch):
    found = []
    for verdicts in (VERDICTS, [1 - v for v in VERDICTS]):
        trainer, inputs = given_rollout(tmp_path, monkeypatch, verdicts, mode="opd")
        found.append(inputs["advantages"])
        assert metrics_of(trainer).keys() == NAMES - {"student_weight_entropy", "teacher_weight_entropy"}
        assert metrics_of(trainer)["correct"] == 0.5
    assert torch.equal(*found) and found[0].abs().max() > 1e-2


def test_evaluation_logs_the_same_metrics_and_moves_nothing(tmp_path):
    trainer = make_distillation(tmp_path, lambda prompts, **kwargs: [0.0, 1.0] * (len(prompts) // 2))
    before = trainer.evaluate()
    assert {f"eval_distillation/{name}" for name in NAMES - {"groups_all_correct"}} <= set(before)
    assert before["eval_distillation/correct"] == 0.5 == before["eval_reward"]
    assert math.isfinite(before["eval_loss"]) and not trainer._metrics["train"]


def test_an_evaluation_has_groups_of_its_own_size(tmp_path):
    """In groups of two, half of them are all right; in groups of four as in training, none."""
    trainer = make_distillation(
        tmp_path, lambda prompts, **kwargs: [1.0, 1.0, 0.0, 0.0] * (len(prompts) // 4), num_generations_eval=2,
        probe_rewards=False, per_device_eval_batch_size=12,
    )  # fmt: skip
    found = trainer.evaluate()
    assert found["eval_distillation/groups_all_correct"] == 0.5 == found["eval_distillation/groups_all_wrong"]


def test_the_mean_of_a_metric_is_over_the_rollouts_between_two_logs(tmp_path):
    trainer = make_distillation(
        tmp_path, lambda prompts, trainer_state, **kwargs: [float(trainer_state.global_step % 2)] * len(prompts),
        max_steps=4, logging_steps=4,
    )  # fmt: skip
    trainer.train()
    assert logged(trainer, "distillation/correct") == [0.5] == logged(trainer, "distillation/groups_all_correct")


def test_rewards_that_are_no_verdicts_are_warned_of_once_and_cut_at_one_half(tmp_path, monkeypatch):
    rewards = [0.2, 0.5, 0.49, -1.0, 3.0, 1.0, 0.0, 0.51]
    trainer = make_distillation(tmp_path, rewards)
    script(trainer, monkeypatch, COMPLETIONS)
    with pytest.warns(UserWarning, match=r"gave 0\.2, which is neither 0 nor 1; .*Set --correct_threshold"):
        inputs = rollout(trainer)
    positive = [i for i in range(8) if (inputs["advantages"][i][inputs["completion_mask"][i].bool()] > 0).all()]
    assert {1, 4, 5, 7} <= set(positive)
    assert metrics_of(trainer)["correct"] == 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rollout(trainer)


def test_a_threshold_is_honoured_and_silences_the_warning(tmp_path, monkeypatch):
    trainer = make_distillation(tmp_path, [0.2, 0.5, 0.8, 0.9, 1.0, 0.79, 0.8, 7.0], correct_threshold=0.8)
    script(trainer, monkeypatch, COMPLETIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rollout(trainer)
    assert trainer._correct().tolist() == [0, 0, 1, 1, 1, 0, 1, 1]


def test_several_verifiers_count_by_their_weighted_sum_and_one_none_is_no_verdict_of_its_own(tmp_path, monkeypatch):
    def first(prompts, **kwargs):
        return [1.0, 1.0, 0.0, None, None, 0.0, 1.0, 1.0][: len(prompts)]

    def second(prompts, **kwargs):
        return [1.0, 0.0, 1.0, 1.0, None, 0.0, None, 1.0][: len(prompts)]

    trainer = make_distillation(tmp_path, [first, second], reward_weights=[0.7, 0.3], correct_threshold=0.7)
    script(trainer, monkeypatch, COMPLETIONS)
    rollout(trainer)
    assert trainer._correct().nan_to_num(-1).tolist() == [1, 1, 0, 0, -1, 0, 1, 1]


def test_a_nan_reward_stops_the_run_or_is_no_verdict(tmp_path):
    def breaks(prompts, **kwargs):
        return [math.nan if i == 1 else 1.0 for i in range(len(prompts))]

    trainer = make_distillation(tmp_path, breaks, probe_rewards=False, max_steps=1)
    with pytest.raises(ValueError, match="returned nan for row 1.*nan_reward drop"):
        trainer.train()
    trainer = make_distillation(tmp_path, breaks, nan_reward="drop", max_steps=1)
    trainer.train()
    assert logged(trainer, "distillation/unscored") == [0.125] and logged(trainer, "distillation/correct") == [1.0]
