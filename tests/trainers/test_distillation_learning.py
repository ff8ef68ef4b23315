"""Whole runs of DualPathDistillationTrainer: it learns, with every objective, LoRA, evaluation and GPT-J."""

import math

import pytest
import torch
from peft import PeftModel

from scope_rlhf.models.positions import derive_positions
from scope_rlhf.objectives import OBJECTIVES
from tests.tiny import tiny_gpt2, tiny_gptj, tiny_tokenizer
from tests.trainers.makers import (
    LORA_GPTJ,
    dense_log_probs,
    disturb,
    logged,
    loss_of,
    make_distillation,
    plain_gpt2,
    rollout,
    script,
    weights,
)
from tests.trainers.test_distillation import VERDICTS, given_rollout
from tests.trainers.two_process_script import COMPLETIONS

TOKEN = 65
LEARNING = {"max_completion_length": 3, "per_device_train_batch_size": 16, "lora": None, "max_steps": 40}


def teacher_that_prefers(token, strength):
    """The student's start with a bias towards one token."""
    model = tiny_gpt2(tiny_tokenizer())
    model.transformer.ln_f.bias.data += strength * model.lm_head.weight.data[token]
    return model


@torch.no_grad()
def share(trainer, token=TOKEN):
    """The chance of the token as the first of a completion."""
    ids = tiny_tokenizer()("a bad film", return_tensors="pt")
    return trainer.model.eval()(**ids).logits[0, -1].softmax(-1)[token].item()


@pytest.mark.parametrize("size", [1, 4])
def test_opd_moves_the_student_to_the_teacher_and_the_log_ratio_to_zero(tmp_path, size):
    trainer = make_distillation(
        tmp_path, mode="opd", num_generations=size, teacher_model=teacher_that_prefers(TOKEN, 10.0), learning_rate=1e-2,
        **LEARNING,
    )  # fmt: skip
    assert share(trainer) < 1e-3
    trainer.train()
    ratios = logged(trainer, "distillation/log_ratio")
    assert sum(ratios[:5]) / 5 > 4 and abs(sum(ratios[-5:]) / 5) < 0.5
    assert share(trainer) > 0.9


def test_dual_path_raises_the_verifiers_reward(tmp_path):
    """From next to nothing: what is right is first learnt from the teacher, then from the verifier."""

    def holds_the_token(prompts, completion_ids, **kwargs):
        return [float(TOKEN in ids) for ids in completion_ids]

    trainer = make_distillation(
        tmp_path, holds_the_token, teacher_model=teacher_that_prefers(TOKEN, 6.0), learning_rate=5e-3, **LEARNING
    )
    trainer.train()
    correct = logged(trainer, "distillation/correct")
    assert correct == logged(trainer, "reward")
    assert sum(correct[:5]) / 5 < 0.1 and sum(correct[-5:]) / 5 > 0.7


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.filterwarnings("ignore:distillation. advantages keep a scale")
def test_every_objective_of_the_catalogue_takes_a_second_step_on_the_same_rollout(tmp_path, objective):
    trainer = make_distillation(tmp_path, VERDICTS, objective=objective, passes=2, max_steps=2)
    before = weights(trainer)
    trainer.train()
    assert all(math.isfinite(row.get("grad_norm", 0.0)) for row in trainer.state.log_history)
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(trainer).items())
    assert abs(logged(trainer, "objective/ratio")[0] - 1) < 1e-5 < abs(logged(trainer, "objective/ratio")[1] - 1)


@pytest.mark.parametrize(("objective", "parameters"), [("symmetric", {"alpha": 1.0}), ("focal", {})])
@pytest.mark.filterwarnings("ignore:distillation. advantages keep a scale")
def test_another_objective_gives_a_gradient_of_its_own(tmp_path, monkeypatch, objective, parameters):
    found = []
    for name, kwargs in (("ppo", {}), (objective, parameters)):
        trainer, inputs = given_rollout(tmp_path, monkeypatch, objective=name, objective_kwargs=kwargs, passes=2)
        disturb(trainer.model, "lora_B", 0.2, seed=9)
        found.append(loss_of(trainer, inputs)[1])
    assert (found[0] - found[1]).norm() > 1e-2 * found[0].norm()


def test_gptj_with_lora_is_scored_and_trained(tmp_path, monkeypatch):
    tokenizer = tiny_tokenizer()
    trainer = make_distillation(
        tmp_path, VERDICTS, model=tiny_gptj(tokenizer), lora=LORA_GPTJ, teacher_model=tiny_gptj(tokenizer, seed=1),
        max_steps=1,
    )  # fmt: skip
    before = weights(trainer)
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    found, mask = trainer.teacher.log_probs(inputs), inputs["completion_mask"].bool()
    assert (found.double() - dense_log_probs(tiny_gptj(tokenizer, seed=1), inputs))[mask].abs().max() < 1e-4
    trainer.train()
    assert any(not torch.equal(weight, before[name]) for name, weight in weights(trainer).items())


def test_a_saved_student_has_the_log_probs_of_the_trained_one_and_nothing_of_the_teacher(tmp_path, monkeypatch):
    trainer = make_distillation(tmp_path / "run", VERDICTS, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    loaded = PeftModel.from_pretrained(plain_gpt2(), tmp_path / "model").eval()
    derive_positions(loaded)
    assert torch.allclose(dense_log_probs(trainer.model, inputs), dense_log_probs(loaded, inputs), atol=1e-5)
    assert not torch.allclose(dense_log_probs(loaded, inputs), dense_log_probs(plain_gpt2(), inputs), atol=1e-2)
    assert not [path for path in (tmp_path / "model").iterdir() if path.is_dir()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_runs_in_bfloat16_and_with_gradient_checkpointing(tmp_path, checkpointing):
    model, teacher = (tiny_gpt2(tiny_tokenizer(), seed=seed).to(torch.bfloat16) for seed in (0, 1))
    trainer = make_distillation(
        tmp_path, VERDICTS, model=model, teacher_model=teacher, bf16=True, gradient_checkpointing=checkpointing,
        max_steps=2, passes=2,
    )  # fmt: skip
    trainer.train()
    assert all(math.isfinite(x) for x in logged(trainer, "loss"))
    assert abs(logged(trainer, "objective/ratio")[0] - 1) < 0.05


def test_a_reference_kl_is_added_where_beta_is_set(tmp_path, monkeypatch):
    trainer, inputs = given_rollout(tmp_path, monkeypatch, kl=0.5)
    plain, _, _ = loss_of(given_rollout(tmp_path, monkeypatch)[0], inputs)
    value, _, stats = loss_of(trainer, inputs)
    assert stats["kl"] > 1e-3 and value == pytest.approx(plain + 0.5 * stats["kl"], rel=1e-4)


def test_the_best_checkpoint_is_chosen_by_the_reward_or_refused_where_no_verifier_gives_one(tmp_path):
    settings = {
        "load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
        "save_steps": 2, "max_steps": 4,
    }  # fmt: skip
    trainer = make_distillation(tmp_path / "dual", VERDICTS, **settings)
    trainer.train()
    assert trainer.state.best_metric == pytest.approx(0.5)
    with pytest.raises(ValueError, match="metric_for_best_model='reward' needs a verifier.*--metric_for_best_model"):
        make_distillation(tmp_path / "opd", mode="opd", **settings)
    trainer = make_distillation(
        tmp_path / "opd",
        mode="opd",
        metric_for_best_model="distillation/log_ratio",
        greater_is_better=False,
        **settings,
    )
    trainer.train()
    assert trainer.state.best_metric is not None


def test_a_threshold_without_a_verifier_is_refused(tmp_path):
    with pytest.raises(ValueError, match="correct_threshold=0.5 needs a verifier: give reward_funcs, or leave --corr"):
        make_distillation(tmp_path, mode="opd", correct_threshold=0.5)
