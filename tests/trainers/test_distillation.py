"""DualPathDistillationTrainer against equation 6 of arXiv 2604.10688 written by hand, on given completions."""

import pytest
import torch

from tests.trainers.makers import (
    LORA,
    dense_log_probs,
    disturb,
    loss_of,
    make_distillation,
    plain_gpt2,
    rollout,
    script,
)
from tests.trainers.two_process_script import COMPLETIONS

# Of the first prompt one is right, of the second three; the fifth completion has one token.
VERDICTS = [0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0]


def given_rollout(folder, monkeypatch, verdicts=VERDICTS, completions=COMPLETIONS, **settings):
    """(trainer, inputs) of the given completions; the student's adapter is not zero."""
    trainer = make_distillation(folder, verdicts, **settings)
    if trainer.args.gradient_accumulation_steps == 1 and settings.get("lora", LORA) is not None:
        disturb(trainer.model, "lora_B")
    script(trainer, monkeypatch, completions)
    return trainer, rollout(trainer)


def with_gradient(trainer, inputs, temperature):
    """Log-probs of each completion by a forward pass of its own, without padding; a list of [T_i], with gradient."""
    found = []
    for row in range(len(inputs["completion_ids"])):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        completion = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()]
        logits = trainer.model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
        table = (logits.double() / temperature).log_softmax(-1)
        found.append(table[torch.arange(len(completion)), completion])
    return found


def softmax_of_powers(perplexities, members, exponent):
    """{completion: PPL^exponent / sum over the members}."""
    powers = {i: perplexities[i] ** exponent for i in members}
    return {i: power / sum(powers.values()) for i, power in powers.items()}


def equation_six(trainer, inputs, teacher, verdicts, tau=1.0, temperature=1.0, teacher_temperature=1.0, mean=False):
    """The sum over completions and tokens of w_i r_t times -1, or times log pi_S - log pi_T; mean: weights times the
    number of completions on their path. One loop, and nothing of scope_rlhf.rl.
    """
    student = with_gradient(trainer, inputs, temperature)
    dense = dense_log_probs(teacher, inputs, teacher_temperature)
    perplexity_s = [(-x.detach().mean()).exp().item() for x in student]
    perplexity_t = [(-dense[i, : len(x)].mean()).exp().item() for i, x in enumerate(student)]
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(student), 4):
        group = range(start, start + 4)
        right, wrong = [i for i in group if verdicts[i] == 1], [i for i in group if verdicts[i] == 0]
        for branch, weights in (
            (right, softmax_of_powers(perplexity_s, right, 1 / tau)),
            (wrong, softmax_of_powers(perplexity_t, wrong, -1 / tau)),
        ):
            for i in branch:
                weight = weights[i] * (len(branch) if mean else 1)
                for t in range(len(student[i])):
                    ratio = (student[i][t] - student[i][t].detach()).exp()
                    factor = -1.0 if branch is right else (student[i][t].detach() - dense[i, t])
                    total = total + weight * ratio * factor
    return total


def gradient_of(trainer, loss):
    trained = [w for _, w in sorted(trainer.model.named_parameters()) if w.requires_grad]
    found = torch.autograd.grad(loss, trained, allow_unused=True)
    return torch.cat([(torch.zeros_like(w) if g is None else g).flatten() for g, w in zip(found, trained, strict=True)])


def assert_same_gradient(found, wanted, most=1e-5):
    assert wanted.norm() > 1e-2
    assert ((found - wanted).norm() / wanted.norm()).item() <= most


@pytest.mark.parametrize("lora", [LORA, None], ids=["lora", "full"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"tau": 0.5}, {"temperature": 0.6}, {"temperature": 0.6, "teacher_temperature": 1.3}],
    ids=["plain", "tau", "temperature", "two temperatures"],
)
def test_the_gradient_with_eq6_is_that_of_equation_six_by_hand(tmp_path, monkeypatch, lora, settings):
    trainer, inputs = given_rollout(tmp_path, monkeypatch, lora=lora, reduction="eq6", **settings)
    _, found, _ = loss_of(trainer, inputs)
    temperature = settings.get("temperature", 1.0)
    loss = equation_six(
        trainer, inputs, plain_gpt2(seed=1), VERDICTS, settings.get("tau", 1.0), temperature,
        settings.get("teacher_temperature", temperature),
    )  # fmt: skip
    assert_same_gradient(found, gradient_of(trainer, loss / 2))


def test_by_default_the_weights_have_the_mean_one_and_the_loss_is_the_mean_over_all_tokens(tmp_path, monkeypatch):
    trainer, inputs = given_rollout(tmp_path, monkeypatch)
    value, found, _ = loss_of(trainer, inputs)
    loss = equation_six(trainer, inputs, plain_gpt2(seed=1), VERDICTS, mean=True) / inputs["completion_mask"].sum()
    assert_same_gradient(found, gradient_of(trainer, loss))
    assert value == pytest.approx(loss.item(), abs=1e-5)


@pytest.mark.parametrize("reduction", ["sequence_mean", "fixed_horizon"])
def test_the_other_reductions_divide_by_the_tokens_of_each_completion_or_by_the_horizon(
    tmp_path, monkeypatch, reduction
):
    trainer, inputs = given_rollout(tmp_path, monkeypatch, reduction=reduction)
    value, _, _ = loss_of(trainer, inputs)
    lengths = inputs["completion_mask"].sum(1)
    scale = (1 / lengths) if reduction == "sequence_mean" else torch.full((8,), 1 / 6)
    expected = (-inputs["advantages"] * inputs["completion_mask"]).sum(1) @ scale / 8
    assert value == pytest.approx(expected.item(), rel=1e-5) and abs(value) > 1e-2


@pytest.mark.parametrize("sign", ["student", "teacher"])
def test_reversed_and_one_sided_weights_have_their_own_exponents(tmp_path, monkeypatch, sign):
    """Of the other branch the weights are uniform, where `weights` names one."""
    trainer, inputs = given_rollout(tmp_path, monkeypatch, weights=sign, reverse_weights=sign, normalization="sum")
    student = dense_log_probs(trainer.model, inputs)
    teacher = dense_log_probs(plain_gpt2(seed=1), inputs)
    lengths = inputs["completion_mask"].sum(1)
    perplexity = (-(student if sign == "student" else teacher).sum(1) / lengths).exp().tolist()
    for start in (0, 4):
        for verdict in (1, 0):
            branch = [i for i in range(start, start + 4) if VERDICTS[i] == verdict]
            own = verdict == (sign == "student")
            exponent = ({"student": -1, "teacher": 1}[sign]) if own else 0
            for i, weight in softmax_of_powers(perplexity, branch, exponent).items():
                factor = 1.0 if verdict else (teacher - student)[i, 0].item()
                assert inputs["advantages"][i, 0].item() == pytest.approx(weight * factor, rel=1e-4)


@pytest.mark.parametrize("size", [1, 4])
def test_opd_is_the_mean_of_the_ratio_times_the_log_ratio_over_all_tokens(tmp_path, monkeypatch, size):
    trainer, inputs = given_rollout(tmp_path, monkeypatch, None, mode="opd", num_generations=size)
    value, found, _ = loss_of(trainer, inputs)
    student = with_gradient(trainer, inputs, 1.0)
    dense = dense_log_probs(plain_gpt2(seed=1), inputs)
    loss = sum(
        (x - x.detach()).exp() @ (x.detach() - dense[i, : len(x)]) for i, x in enumerate(student)
    ) / inputs["completion_mask"].sum()  # fmt: skip
    assert_same_gradient(found, gradient_of(trainer, loss))
    assert value == pytest.approx(loss.item(), abs=1e-5)


def test_without_weights_a_group_of_one_is_routed_all_the_same(tmp_path, monkeypatch):
    trainer, inputs = given_rollout(tmp_path, monkeypatch, num_generations=1, weights="none")
    student, teacher = dense_log_probs(trainer.model, inputs), dense_log_probs(plain_gpt2(seed=1), inputs)
    expected = torch.where(torch.tensor(VERDICTS)[:, None] == 1, 1.0, teacher - student) * inputs["completion_mask"]
    assert torch.allclose(inputs["advantages"].double(), expected, atol=1e-4)


def test_after_a_large_step_the_ppo_objective_clips_and_on_policy_it_does_not(tmp_path, monkeypatch):
    trainer, inputs = given_rollout(tmp_path, monkeypatch, passes=2)
    _, _, before = loss_of(trainer, inputs)
    assert before["objective/ratio"] == pytest.approx(1, abs=1e-5) and before["objective/clip_fraction"] == 0
    disturb(trainer.model, "lora_B", 0.3, seed=9)
    value, found, after = loss_of(trainer, inputs)
    assert after["objective/clip_fraction"] > 0.1
    student = torch.cat(with_gradient(trainer, inputs, 1.0))
    mask = inputs["completion_mask"].bool()
    ratio, advantages = (student - inputs["old_per_token_logps"][mask]).exp(), inputs["advantages"][mask]
    clipped = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages)
    assert value == pytest.approx(-clipped.mean().item(), rel=1e-4)
    assert_same_gradient(found, gradient_of(trainer, -clipped.mean()), most=1e-4)
