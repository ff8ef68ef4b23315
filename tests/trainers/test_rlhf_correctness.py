"""What goes silently wrong in RLHF code, each claim for PPO and, where test_grpo.py has it not, for GRPO."""

import json
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import AutoModelForSequenceClassification, GPT2LMHeadModel, TrainerCallback

from scope_rlhf.models.positions import derive_positions
from scope_rlhf.models.reward import RewardScorer
from tests.tiny import SENTENCES, length_reward, tiny_gpt2, tiny_gptj, tiny_tokenizer
from tests.trainers.makers import (
    ALGORITHMS,
    LORA,
    LORA_GPTJ,
    dense_log_probs,
    disturb,
    favour,
    logged,
    loss_of,
    make_trainer,
    plain_gpt2,
    rollout,
    save_reward_model,
    script,
    sft_model,
    spy_ratios,
    weights,
)

END = 0  # of the tiny tokenizer: pad, bos and eos at once
both = pytest.mark.parametrize("algorithm", ALGORITHMS)
each_critic = pytest.mark.parametrize(
    ("algorithm", "backbone"), [("grpo", None), ("ppo", "shared"), ("ppo", "adapter"), ("ppo", "model")]
)
# Behind the end stands what a sampler may leave there; the last row is cut.
COMPLETIONS = [[5, 6, END, 9, 9, 9], [END, 7, END, 7, 8, 9], [5, 5, 5, 5, 5, END], [11, 12, 13, 14, 15, 16]]
LENGTHS = [3, 1, 6, 6]
ENDED = [True, True, True, False]


def critic_of(backbone, tmp_path):
    settings = {} if backbone is None else {"critic_backbone": backbone}
    if backbone == "model":
        settings["critic_model_name_or_path"] = str(save_reward_model(tmp_path / "rm"))
    return settings


def values_of(trainer, inputs):
    """The critic's values of a rollout's tokens [B, T], 0 where masked."""
    trainer._activate()
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    with torch.no_grad():
        trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, inputs["completion_ids"].size(1))
    return trainer.critic.decode(trainer._outputs[0]) * inputs["completion_mask"]


# --- Log-probabilities


@both
@pytest.mark.parametrize("make", [tiny_gpt2, tiny_gptj])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_the_rollouts_log_probs_are_those_of_the_sampler_and_of_each_row_alone(tmp_path, algorithm, make, temperature):
    """Left-padded prompts of unequal length, the temperature alike in sampler, old log-probs, update and reference."""
    model = make(tiny_tokenizer())
    lora = LORA if make is tiny_gpt2 else LORA_GPTJ
    trainer = make_trainer(algorithm, tmp_path, model=model, lora=lora, temperature=temperature)
    disturb(trainer.model, "lora_B")
    if algorithm == "grpo":  # groups of two need two of each prompt
        trainer.num_generations = 1
    inputs = rollout(trainer)
    mask = inputs["completion_mask"].bool()
    assert inputs["prompt_mask"].sum(1).unique().numel() > 3
    sampler_gap = (inputs["sampling_per_token_logps"] - inputs["old_per_token_logps"])[mask]
    assert sampler_gap.abs().max() < 1e-4
    old = dense_log_probs(trainer.model, inputs, temperature)
    with trainer.model.disable_adapter():
        reference = dense_log_probs(trainer.model, inputs, temperature)
    assert (old - reference)[mask].abs().max() > 1e-2
    assert (inputs["old_per_token_logps"] - old)[mask].abs().max() < 1e-4
    assert (inputs["ref_per_token_logps"] - reference)[mask].abs().max() < 1e-4
    ratios = spy_ratios(trainer)
    loss_of(trainer, inputs)
    assert (torch.cat(ratios) - 1).abs().max() < 1e-5
    if temperature != 1.0:
        assert (dense_log_probs(trainer.model, inputs) - old)[mask].abs().max() > 1e-2


def test_a_given_reference_model_has_the_temperature_and_the_positions_of_the_policy(tmp_path):
    other = tiny_gpt2(tiny_tokenizer(), seed=1)
    trainer = make_trainer("ppo", tmp_path, ref_model=other, temperature=0.7)
    inputs = rollout(trainer)
    expected = dense_log_probs(plain_gpt2(seed=1), inputs, 0.7)
    mask = inputs["completion_mask"].bool()
    assert (inputs["ref_per_token_logps"] - expected)[mask].abs().max() < 1e-4


@each_critic
def test_prepending_pads_changes_no_log_prob_and_no_value(tmp_path, algorithm, backbone):
    trainer = make_trainer(algorithm, tmp_path, **critic_of(backbone, tmp_path))
    if algorithm == "ppo":
        disturb(trainer.model, "value_head.weight", 1.0)
    inputs = rollout(trainer)
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    results = []
    for pads in (0, 5):
        if algorithm == "ppo":
            trainer._activate()
        padded = nn.functional.pad(ids, (pads, 0), value=END)
        with torch.no_grad():
            log_probs, _, _ = trainer._get_per_token_logps_and_entropies(
                trainer.model, padded, nn.functional.pad(mask, (pads, 0)), 6
            )
        values = trainer._outputs[0].squeeze(-1) if algorithm == "ppo" else log_probs
        results.append(torch.stack([log_probs, values])[:, inputs["completion_mask"].bool()])
    assert (results[0] - results[1]).abs().max() < 1e-5
    assert results[0].std() > 0.1


@both
@pytest.mark.parametrize(("rows", "accumulation", "minibatches"), [(4, 1, 2), (2, 2, 2), (2, 1, 4), (8, 1, 1)])
def test_lr_zero_keeps_every_ratio_at_one_for_any_size_of_chunk_and_micro_batch(
    tmp_path, algorithm, rows, accumulation, minibatches
):
    """The rollout's pass runs in chunks of `rows`, the update in micro-batches of `rows` dealt anew."""
    trainer = make_trainer(
        algorithm, tmp_path, learning_rate=0.0, per_device_train_batch_size=rows, max_steps=2 * minibatches,
        gradient_accumulation_steps=accumulation, minibatches=minibatches,
    )  # fmt: skip
    disturb(trainer.model, "lora_B")
    ratios = spy_ratios(trainer)
    trainer.train()
    assert len(ratios) == 2 * minibatches * accumulation
    assert (torch.cat(ratios) - 1).abs().max() < 1e-5


def test_ppo_starts_each_rollout_at_ratio_one_and_leaves_one_after_an_update(tmp_path):
    trainer = make_trainer("ppo", tmp_path, max_steps=8)
    ratios = spy_ratios(trainer)
    trainer.train()
    assert len(ratios) == 8
    for first in (0, 4):
        assert (ratios[first] - 1).abs().max() < 1e-5
        assert max((r - 1).abs().max() for r in ratios[first + 1 : first + 4]) > 1e-4


@each_critic
def test_dropout_is_off_in_policy_lora_layers_critic_and_reference_while_they_train(tmp_path, algorithm, backbone):
    lora = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4, lora_dropout=0.5)
    trainer = make_trainer(algorithm, tmp_path, lora=lora, **critic_of(backbone, tmp_path))
    disturb(trainer.model, "lora_B")
    if algorithm == "ppo":
        disturb(trainer.model, "value_head.weight", 1.0)
    trainer.model.train()
    ids = torch.tensor([[4, 5, 6, 7, 8, 9]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids, "fused_lm_head": True}
    first, second = trainer.model(**given), trainer.model(**given)
    assert torch.equal(first.log_probs, second.log_probs)
    if algorithm == "ppo":
        assert torch.equal(first.critic_outputs, second.critic_outputs)
    assert [n for n, m in trainer.model.named_modules() if isinstance(m, nn.Dropout) and m.p > 0] == []


@both
def test_dropout_is_off_in_a_reward_model_that_was_handed_over_in_training_mode(tmp_path, algorithm):
    folder = save_reward_model(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(folder).train()
    trainer = make_trainer(algorithm, tmp_path, [model])
    trainer.model.train()
    scores = [trainer._calculate_rewards([{}], ["a bad film"], [" I liked it"], [[1]]) for _ in range(2)]
    assert torch.equal(*scores)


def test_a_given_reference_model_has_no_dropout(tmp_path):
    reference = tiny_gpt2(tiny_tokenizer(), seed=1).train()
    trainer = make_trainer("ppo", tmp_path, ref_model=reference)
    trainer.model.train()
    assert not trainer.ref_model.training


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 50}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"generation_kwargs": {"typical_p": 0.5}}, "typical_p"),
    ],
)
def test_ppo_refuses_truncated_sampling(tmp_path, settings, word):
    with pytest.raises(ValueError, match=f"{word}.*full vocabulary"):
        make_trainer("ppo", tmp_path, **settings)


@both
@pytest.mark.parametrize(
    ("name", "value", "neutral"),
    [("typical_p", 0.2, 1.0), ("min_p", 0.3, 0.0), ("no_repeat_ngram_size", 1, 0), ("suppress_tokens", [5], None)],
)
def test_a_models_own_generation_config_does_not_truncate_the_sampling_unnoticed(
    tmp_path, algorithm, name, value, neutral
):
    """`generate` takes from the model what the run leaves at None, without a word."""
    model = tiny_gpt2(tiny_tokenizer())
    setattr(model.generation_config, name, value)
    with pytest.raises(ValueError, match=f"{name}=.*full vocabulary.*generation_config.{name} = "):
        make_trainer(algorithm, tmp_path, model=model)
    if neutral is not None:
        other = tiny_gpt2(tiny_tokenizer())
        setattr(other.generation_config, name, value)
        inputs = rollout(make_trainer(algorithm, tmp_path, model=other, generation_kwargs={name: neutral}))
        assert (inputs["sampling_per_token_logps"] - inputs["old_per_token_logps"]).abs().max() < 1e-4
    setattr(model.generation_config, name, None)
    make_trainer(algorithm, tmp_path, model=model)


# --- End tokens and padding


@both
def test_pad_equal_to_eos_keeps_the_real_end_token_in_attention_loss_value_and_reward(tmp_path, algorithm, monkeypatch):
    """Were the mask ids != pad, each of these would lose its end token."""
    trainer = make_trainer(algorithm, tmp_path, minibatches=1, kl=0.0)
    assert trainer._tokenizer.pad_token_id == trainer._tokenizer.eos_token_id == END
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    assert inputs["completion_mask"].sum(1).tolist() == LENGTHS
    before, gradient, _ = loss_of(trainer, inputs)
    changed = {**inputs, "completion_ids": inputs["completion_ids"].clone()}
    changed["completion_ids"][0, 2] = 77
    after, other, _ = loss_of(trainer, changed)
    assert abs(before - after) > 1e-4 and (gradient - other).abs().max() > 1e-5
    if algorithm == "ppo":
        disturb(trainer.model, "value_head.weight", 1.0)
        assert (values_of(trainer, inputs)[[0, 1, 2, 3], [2, 0, 5, 5]].abs() > 1e-3).all()
    # One more token in the prompt that is the end token counts too: it is text there, not padding.
    ids = trainer._tokenize_prompts(["a bad film<|endoftext|> I liked it"])[0]
    assert END in ids[0]
    row = rollout_of(trainer, "a bad film<|endoftext|> I liked it", monkeypatch)
    assert row["prompt_mask"].sum(1).tolist() == [len(ids[0])] * 4


def rollout_of(trainer, prompt, monkeypatch):
    script(trainer, monkeypatch, COMPLETIONS)
    trainer.model.train()
    return trainer._generate_and_score_completions([{"prompt": prompt}] * 4)


@both
@pytest.mark.parametrize("objective", ["ppo", "scope", "policy_entropy"])
def test_nothing_behind_the_first_end_token_counts_and_the_end_token_does(tmp_path, algorithm, monkeypatch, objective):
    trainer = make_trainer(algorithm, tmp_path, minibatches=1, objective=objective)
    disturb(trainer.model, "lora_B")
    if algorithm == "ppo":
        disturb(trainer.model, "value_head.weight", 1.0)
    runs = []
    for behind in (COMPLETIONS, [[*row[:n], *[END] * (6 - n)] for row, n in zip(COMPLETIONS, LENGTHS, strict=True)]):
        script(trainer, monkeypatch, behind)
        inputs = rollout(trainer)
        mask = inputs["completion_mask"].bool()
        junk = {"completion_ids": 9, **dict.fromkeys(("kl", "advantages", "returns", "old_values"), 1e3)}
        junk |= dict.fromkeys(("old_per_token_logps", "ref_per_token_logps"), float("nan"))
        junk |= {"advantages": None} if inputs["advantages"].dim() == 1 else {}
        filled = {k: v if junk.get(k) is None else v.masked_fill(~mask, junk[k]) for k, v in inputs.items()}
        runs += [loss_of(trainer, inputs), loss_of(trainer, filled)]
        scores = {k: v for k, v in trainer._metrics["train"].items() if k.startswith(("rollout/", "reward"))}
        runs[-1][2].update({k: v[-1] for k, v in scores.items()})
        runs[-2][2].update({k: v[-1] for k, v in scores.items()})
    for loss, gradient, stats in runs[1:]:
        assert loss == pytest.approx(runs[0][0], abs=1e-6)
        torch.testing.assert_close(gradient, runs[0][1], rtol=1e-4, atol=1e-6)
        assert stats == pytest.approx(runs[0][2], rel=1e-4, abs=1e-6)
    assert runs[0][1].abs().max() > 1e-3
    shorter = {**inputs, "tool_mask": mask.long()}
    shorter["tool_mask"][0, 2] = 0  # row 0 without its end token
    loss, _, stats = loss_of(trainer, shorter)
    assert abs(loss - runs[0][0]) > 1e-6 and stats["entropy"] != pytest.approx(runs[0][2]["entropy"], rel=1e-6)


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_the_score_sits_on_the_end_token_where_the_return_with_gamma_and_lambda_1_equals_it(tmp_path, monkeypatch, kl):
    """A cut completion has it on its last token. What the reference takes off that token is known: kl times k1."""
    scores = [3.0, -2.0, 5.0, 7.0]
    trainer = make_trainer(
        "ppo", tmp_path, lambda prompts, completions, **_: scores[: len(prompts)], kl=kl, gamma=1.0, lam=1.0,
        whiten_advantages=False, minibatches=1,
    )  # fmt: skip
    disturb(trainer.model, "lora_B")
    disturb(trainer.model, "value_head.weight", 1.0)
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    last = ([0, 1, 2, 3], [n - 1 for n in LENGTHS])
    k1 = (inputs["old_per_token_logps"] - inputs.get("ref_per_token_logps", inputs["old_per_token_logps"])).double()
    assert inputs["returns"][last].tolist() == pytest.approx((torch.tensor(scores) - kl * k1[last]).tolist(), abs=1e-5)
    for row, length in enumerate(LENGTHS):  # and each return is the score less the penalties to come
        for token in range(length):
            expected = scores[row] - kl * k1[row, token:length].sum().item()
            assert inputs["returns"][row, token].item() == pytest.approx(expected, abs=1e-5)
        assert (inputs["returns"][row, length:] == 0).all()
    assert inputs["old_values"].abs().max() > 0.1


@pytest.mark.parametrize(
    ("settings", "ended"),
    [({}, ENDED), ({"stop_token_id": 13}, [True] * 4), ({"stop_token": "eos"}, ENDED), ({"stop_token": "o"}, None)],
)
def test_the_stop_token_that_is_set_counts_as_an_end_for_the_missing_eos_penalty(
    tmp_path, monkeypatch, settings, ended
):
    """Token 13 stands inside the last completion: with it as stop the row ends there, and is not cut."""
    completions = [list(row) for row in COMPLETIONS]
    trainer = make_trainer(
        "ppo", tmp_path, lambda prompts, **_: [2.0] * len(prompts), kl=0.0, gamma=1.0, lam=1.0, minibatches=1,
        missing_eos_penalty=0.75, whiten_advantages=False, **settings,
    )  # fmt: skip
    if ended is None:
        (stop,) = trainer._tokenizer("o", add_special_tokens=False)["input_ids"]
        completions[3][3], ended = stop, [True] * 4
    script(trainer, monkeypatch, completions)
    inputs = rollout(trainer)
    assert inputs["returns"][:, 0].tolist() == [2.0 if row else 1.25 for row in ended]
    lengths = LENGTHS if not all(ended) else [*LENGTHS[:3], 3 if "stop_token_id" in settings else 4]
    assert inputs["completion_mask"].sum(1).tolist() == lengths
    assert trainer._metrics["train"]["rollout/eos_rate"] == [sum(ended) / 4]


@pytest.mark.parametrize("stop", [13, None])
def test_the_stop_token_that_is_set_ends_generation_itself(tmp_path, monkeypatch, stop):
    """Sampled for real by a model that likes token 13: no row goes on behind it, unless it is no stop."""
    trainer = make_trainer("ppo", tmp_path, stop_token_id=stop, max_completion_length=16, minibatches=4)
    favour(trainer, 13)
    sampled = []
    generate = GPT2LMHeadModel.generate
    monkeypatch.setattr(
        GPT2LMHeadModel, "generate", lambda *a, **k: (sampled.append(generate(*a, **k)), sampled[-1])[1]
    )
    inputs = rollout(trainer)
    rows = [x[m.bool()].tolist() for x, m in zip(inputs["completion_ids"], inputs["completion_mask"], strict=True)]
    assert sum(13 in row for row in rows) > 8
    assert any(13 in row[:-1] for row in rows) == (stop is None)
    ended = sum(row[-1] in (13, END) if stop else row[-1] == END for row in rows)
    assert trainer._metrics["train"]["rollout/eos_rate"] == [ended / 16]
    if stop:  # the sampler stopped too, and wrote padding only
        behind = sampled[0][:, inputs["prompt_ids"].size(1) :][~inputs["completion_mask"].bool()]
        assert len(behind) and (behind == END).all()


@both
def test_a_cut_completion_gets_no_forged_end_token(tmp_path, algorithm, monkeypatch):
    trainer = make_trainer(algorithm, tmp_path, minibatches=1)
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    assert inputs["completion_ids"][3].tolist() == COMPLETIONS[3]
    assert inputs["completion_mask"][3].all()
    assert trainer._metrics["train"]["completions/clipped_ratio"] == [0.25]


@both
def test_prompts_get_no_bos_token_and_reward_functions_see_no_end_token(tmp_path, algorithm, monkeypatch):
    seen = {}

    def reward(prompts, completions, completion_ids, **kwargs):
        seen.update(prompts=list(prompts), completions=list(completions), ids=[list(x) for x in completion_ids])
        return length_reward(prompts, completions)

    trainer = make_trainer(algorithm, tmp_path, reward, minibatches=1)
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    for prompt, ids, mask in zip(seen["prompts"], inputs["prompt_ids"], inputs["prompt_mask"], strict=True):
        assert ids[mask.bool()].tolist() == trainer._tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert prompt in SENTENCES
    texts = [trainer._tokenizer.decode([t for t in row if t != END]) for row in seen["ids"]]
    assert seen["completions"] == texts
    assert [len(row) for row in seen["ids"]] == LENGTHS  # the ids keep the end token, and nothing behind it
    assert seen["completions"][1] == "" and not any("<|" in text for text in texts)


@both
def test_the_scorer_adds_the_special_tokens_of_its_own_tokenizer_and_none_of_the_policys(
    tmp_path, algorithm, monkeypatch
):
    """The reward model here was trained with an end token behind each text; its id is not the policy's."""
    from tokenizers import processors

    tokenizer = tiny_tokenizer(pad=True)
    ends = ("<pad>", 1)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <pad>", pair=None, special_tokens=[ends]
    )
    model = AutoModelForSequenceClassification.from_pretrained(save_reward_model(tmp_path / "rm"))
    scorer, seen = RewardScorer(model, tokenizer), []
    score = scorer._score
    monkeypatch.setattr(scorer, "_score", lambda rows: (seen.extend(rows), score(rows))[1])
    trainer = make_trainer(algorithm, tmp_path, scorer.as_reward_function(), minibatches=1, probe_rewards=False)
    script(trainer, monkeypatch, COMPLETIONS)
    rollout(trainer)
    assert len(seen) == 4
    assert all(row[-1] == 1 and row.count(1) == 1 and END not in row for row in seen)


# --- Reference and adapters


def test_kl_is_zero_at_step_zero_of_ppo_and_not_later(tmp_path):
    trainer = make_trainer("ppo", tmp_path, max_steps=8)
    trainer.train()
    kl = logged(trainer, "rollout/kl")
    assert abs(kl[0]) < 1e-6 and abs(kl[1]) > 1e-4


@pytest.mark.parametrize(("algorithm", "backbone"), [("grpo", None), ("ppo", "shared"), ("ppo", "adapter")])
def test_a_policy_with_an_adapter_has_that_adapter_frozen_as_its_reference(tmp_path, algorithm, backbone):
    model = sft_model(tiny_tokenizer())
    trainer = make_trainer(algorithm, tmp_path, model=model, lora=None, **critic_of(backbone, tmp_path))
    inputs = rollout(trainer)
    mask = inputs["completion_mask"].bool()
    assert (inputs["old_per_token_logps"] - inputs["ref_per_token_logps"])[mask].abs().max() < 1e-5
    base = dense_log_probs(plain_gpt2(), inputs)
    assert (inputs["ref_per_token_logps"] - base)[mask].abs().max() > 0.1
    before = {n: w.detach().clone() for n, w in trainer.model.named_parameters()}
    trainer.train()
    moved = {n for n, w in trainer.model.named_parameters() if not torch.equal(w, before[n])}
    assert any(".default." in n for n in moved)
    assert not any(".ref." in n for n in before if n in moved)
    assert all(".default." in n or ".critic." in n or "value_head" in n for n in moved)
    assert any(".ref." in n for n in before)


@pytest.mark.parametrize("reference", ["adapter off", "a copy", "given"])
def test_the_reference_of_ppo_does_not_move_in_training(tmp_path, reference):
    given = {"ref_model": tiny_gpt2(tiny_tokenizer(), seed=1)} if reference == "given" else {}
    trainer = make_trainer("ppo", tmp_path, lora=LORA if reference != "a copy" else None, **given)
    inputs = rollout(trainer)
    frozen = trainer.ref_model if trainer.ref_model is not None else trainer.model
    before = {
        n: w.detach().clone() for n, w in frozen.named_parameters() if frozen is not trainer.model or "lora" not in n
    }
    start = weights(trainer)
    trainer.train()
    after = dict(frozen.named_parameters())
    assert all(torch.equal(after[n], w) for n, w in before.items() if "value_head" not in n)
    assert any(not torch.equal(w, start[n]) for n, w in weights(trainer).items() if "value_head" not in n)
    base = plain_gpt2(seed=1 if reference == "given" else 0)
    mask = inputs["completion_mask"].bool()
    assert (inputs["ref_per_token_logps"] - dense_log_probs(base, inputs))[mask].abs().max() < 1e-4


@both
def test_the_adapter_is_back_after_an_exception_in_the_reference_pass(tmp_path, algorithm):
    trainer = make_trainer(algorithm, tmp_path)
    disturb(trainer.model, "lora_B")
    inputs = rollout(trainer)
    before = loss_of(trainer, inputs)
    passes = []
    original = trainer._get_per_token_logps_and_entropies

    def fails_in_the_reference(*args, **kwargs):
        passes.append(trainer.model.get_base_model().transformer.h[0].attn.c_attn.disable_adapters)
        if passes[-1]:
            raise RuntimeError("out of memory")
        return original(*args, **kwargs)

    trainer._get_per_token_logps_and_entropies = fails_in_the_reference
    with pytest.raises(RuntimeError, match="out of memory"):
        rollout(trainer)
    assert passes == [False, True]
    trainer._get_per_token_logps_and_entropies = original
    after = loss_of(trainer, inputs)
    assert after[0] == before[0] and torch.equal(after[1], before[1])


@pytest.mark.parametrize("backbone", ["shared", "adapter", "model"])
def test_a_saved_adapter_and_critic_of_ppo_give_the_same_log_probs_and_values_when_loaded(tmp_path, backbone):
    settings = critic_of(backbone, tmp_path)
    trainer = make_trainer("ppo", tmp_path / "run", **settings)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    policy = PeftModel.from_pretrained(tiny_gpt2(tiny_tokenizer()), tmp_path / "model", is_trainable=True)
    inputs = rollout(trainer)
    mask = inputs["completion_mask"].bool()
    derive_positions(policy)
    assert (dense_log_probs(policy, inputs) - inputs["old_per_token_logps"])[mask].abs().max() < 1e-5
    again = make_trainer(
        "ppo", tmp_path / "again", model=policy, lora=None, critic_path=str(tmp_path / "model"), **settings
    )
    torch.testing.assert_close(values_of(again, inputs), inputs["old_values"], rtol=1e-5, atol=1e-6)
    fresh = make_trainer("ppo", tmp_path / "fresh", **settings)
    assert (values_of(fresh, inputs) - inputs["old_values"]).abs().max() > 1e-3


@pytest.mark.parametrize("merged", [False, True])
def test_the_whole_policy_of_ppo_comes_back_as_a_plain_model_without_the_critic(tmp_path, merged):
    """Full fine-tuning, and the adapter of a saved run merged into its base."""
    trainer = make_trainer("ppo", tmp_path / "run", lora=LORA if merged else None)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    folder = tmp_path / "model"
    if merged:
        policy = PeftModel.from_pretrained(tiny_gpt2(tiny_tokenizer()), folder).merge_and_unload()
        folder = tmp_path / "merged"
        policy.save_pretrained(folder)
    found: Any = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    loaded, report = found
    assert not report["unexpected_keys"] and not report["missing_keys"]
    derive_positions(loaded)
    inputs = rollout(trainer)
    mask = inputs["completion_mask"].bool()
    assert (dense_log_probs(loaded, inputs) - inputs["old_per_token_logps"])[mask].abs().max() < 1e-4
    assert (dense_log_probs(plain_gpt2(), inputs) - inputs["old_per_token_logps"])[mask].abs().max() > 1e-2


# --- Loss and normalisation


@both
def test_the_split_into_micro_batches_changes_no_weight(tmp_path, algorithm, monkeypatch):
    """One rollout of 8, one pass, one minibatch, unequal lengths. SGD: Adam would blow up the last digit."""
    results = []
    for rows, accumulation in ((8, 1), (4, 2), (2, 4)):
        trainer = make_trainer(
            algorithm, tmp_path / str(rows), per_device_train_batch_size=rows, passes=1, minibatches=1, max_steps=1,
            gradient_accumulation_steps=accumulation, optim="sgd", learning_rate=1.0,
        )  # fmt: skip
        disturb(trainer.model, "lora_B")
        if algorithm == "ppo":
            disturb(trainer.model, "value_head.weight", 1.0)
        script(trainer, monkeypatch, COMPLETIONS * 2)
        before = weights(trainer)
        trainer.train()
        after = weights(trainer)
        assert max((after[n] - before[n]).abs().max() for n in after) > 1e-2
        results.append((after, logged(trainer, "loss")[0], logged(trainer, "grad_norm")[0]))
    for after, *numbers in results[1:]:
        assert numbers == pytest.approx(results[0][1:], rel=1e-4, abs=1e-6)
        for name, weight in after.items():
            torch.testing.assert_close(weight, results[0][0][name], rtol=1e-4, atol=1e-5)


def test_advantages_of_a_rollout_are_gae_of_a_loop_over_each_row_alone(tmp_path, monkeypatch):
    """Rewards from dense log-probs, values by the head on each row's own states, gamma .9 and lambda .8."""
    scores, kl, gamma, lam = [3.0, -2.0, 5.0, 7.0], 0.3, 0.9, 0.8
    trainer = make_trainer(
        "ppo", tmp_path, lambda prompts, **_: scores[: len(prompts)], kl=kl, gamma=gamma, lam=lam, minibatches=1,
        whiten_advantages=False,
    )  # fmt: skip
    disturb(trainer.model, "lora_B")
    disturb(trainer.model, "value_head.weight", 1.0)
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    old = dense_log_probs(trainer.model, inputs)
    reference = dense_log_probs(plain_gpt2(), inputs)
    head = trainer.value_head
    for row, length in enumerate(LENGTHS):
        prompt = inputs["prompt_ids"][row][inputs["prompt_mask"][row].bool()]
        ids = torch.cat([prompt, torch.tensor(COMPLETIONS[row][:length])])[None]
        with torch.no_grad():
            states = trainer.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        values = (states @ head.weight.T + head.bias)[len(prompt) - 1 : -1, 0].tolist()
        advantage = 0.0
        for token in reversed(range(length)):
            is_last = token == length - 1
            reward = -kl * (old - reference)[row, token].item() + (scores[row] if is_last else 0.0)
            following = 0.0 if is_last else values[token + 1]
            advantage = reward + gamma * following - values[token] + gamma * lam * advantage
            assert inputs["old_values"][row, token].item() == pytest.approx(values[token], abs=1e-4)
            assert inputs["advantages"][row, token].item() == pytest.approx(advantage, abs=1e-3)
            assert inputs["returns"][row, token].item() == pytest.approx(advantage + values[token], abs=1e-3)


def test_whitened_advantages_have_mean_0_and_spread_1_over_the_counted_tokens_of_the_whole_rollout(
    tmp_path, monkeypatch
):
    trainer = make_trainer("ppo", tmp_path, minibatches=1)
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    counted = inputs["advantages"][inputs["completion_mask"].bool()]
    assert len(counted) == sum(LENGTHS)
    assert counted.mean().item() == pytest.approx(0, abs=1e-6)
    assert counted.std().item() == pytest.approx(1, abs=1e-5)
    assert (inputs["advantages"][~inputs["completion_mask"].bool()] == 0).all()


@pytest.mark.parametrize("lengths", [[1, 1, 1, 1], [6, 6, 6, 6]])
def test_a_rollout_of_equal_rewards_trains_without_nan(tmp_path, monkeypatch, lengths):
    """No spread: completions that end at once, each with the same score and value."""
    trainer = make_trainer("ppo", tmp_path, lambda prompts, **_: [1.0] * len(prompts), minibatches=1, kl=0.0, lam=1.0)
    script(trainer, monkeypatch, [[5] * (n - 1) + [END] * (7 - n) for n in lengths])
    inputs = rollout(trainer)
    assert inputs["advantages"].isfinite().all()
    loss, gradient, _ = loss_of(trainer, inputs)
    assert abs(loss) < 10 and gradient.isfinite().all()


@both
def test_the_kl_penalty_pulls_the_policy_to_the_reference(tmp_path, algorithm):
    """All rewards are equal, so only the penalty trains: k1 in the reward of PPO, k3 times the ratio in GRPO's loss."""
    trainer = make_trainer(
        algorithm, tmp_path, lambda prompts, **_: [0.0] * len(prompts), kl=1.0, max_steps=24, minibatches=1,
        per_device_train_batch_size=16, learning_rate=5e-3,
    )  # fmt: skip
    disturb(trainer.model, "lora_B", 0.2)
    ids = trainer._tokenizer(SENTENCES, return_tensors="pt", padding=True)

    def exact_kl():
        """Over the whole vocabulary at the states of the prompts."""
        with torch.no_grad():
            policy = trainer.model(**ids).logits.log_softmax(-1)
            with trainer.model.disable_adapter():
                reference = trainer.model(**ids).logits.log_softmax(-1)
        gap = (policy.exp() * (policy - reference)).sum(-1)
        return gap[ids["attention_mask"].bool()].mean().item()

    before = exact_kl()
    trainer.train()
    assert exact_kl() < 0.8 * before


def test_the_reported_kl_of_ppo_is_the_sum_of_the_k1_that_the_rewards_hold(tmp_path, monkeypatch):
    trainer = make_trainer("ppo", tmp_path, kl=0.3, gamma=1.0, lam=1.0, minibatches=1, whiten_advantages=False)
    disturb(trainer.model, "lora_B")
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    k1 = dense_log_probs(trainer.model, inputs) - dense_log_probs(plain_gpt2(), inputs)
    metrics = {k: v[0] for k, v in trainer._metrics["train"].items()}
    assert metrics["rollout/kl"] == pytest.approx(k1.sum(1).mean().item(), abs=1e-4)
    first = inputs["returns"][:, 0].mean().item()
    assert first == pytest.approx(metrics["rollout/score"] - 0.3 * metrics["rollout/kl"], abs=1e-5)
    assert metrics["rollout/reward"] == pytest.approx(first, abs=1e-5)
    _, _, stats = loss_of(trainer, inputs)
    assert stats["kl"] == pytest.approx(k1.sum().item() / sum(LENGTHS), abs=1e-5)


def test_the_reported_kl_of_grpo_is_k3_times_the_ratio_as_in_its_loss(tmp_path, monkeypatch):
    trainer = make_trainer("grpo", tmp_path, minibatches=1, kl=0.3)
    disturb(trainer.model, "lora_B")
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    disturb(trainer.model, "lora_B", seed=4)  # the policy has moved since the rollout
    inputs["advantages"] = torch.zeros(4)
    now, reference = dense_log_probs(trainer.model, inputs), dense_log_probs(plain_gpt2(), inputs)
    ratio = (now - inputs["old_per_token_logps"]).exp()
    assert (ratio - 1)[inputs["completion_mask"].bool()].abs().max() > 0.05
    k3 = ((reference - now).exp() - (reference - now) - 1) * ratio * inputs["completion_mask"]
    loss, _, stats = loss_of(trainer, inputs)
    assert stats["kl"] == pytest.approx(k3.sum().item() / sum(LENGTHS), rel=1e-4)
    assert loss == pytest.approx(0.3 * stats["kl"], rel=1e-4)


def test_ppos_stats_are_masked_sums_over_counts_of_all_micro_batches(tmp_path, monkeypatch):
    """Unequal lengths: a mean of micro-batch means would differ from the mean over tokens."""
    trainer = make_trainer(
        "ppo", tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2, minibatches=1, max_steps=2
    )  # fmt: skip
    disturb(trainer.model, "lora_B")
    script(trainer, monkeypatch, COMPLETIONS)
    seen = []
    accumulate = trainer._accumulate

    def spy(stats, mask, count="count"):
        seen.append({name: x[mask].double() for name, x in stats.items()})
        accumulate(stats, mask, count)

    trainer._accumulate = spy
    trainer.train()
    assert len(seen) == 4
    for name in ("entropy", "policy/approx_kl", "objective/clip_fraction", "objective/ratio", "value/loss", "kl"):
        first, second = (x[name] for x in seen[2:])  # the second step, where the policy has moved
        assert len(first) != len(second)
        assert logged(trainer, name)[1] == pytest.approx(torch.cat([first, second]).mean().item(), rel=1e-5), name


@pytest.mark.parametrize("backbone", ["shared", "model"])
def test_every_pass_deals_each_completion_once_with_its_own_advantages_returns_and_log_probs(
    tmp_path, monkeypatch, backbone
):
    trainer = make_trainer("ppo", tmp_path, passes=3, max_steps=6, **critic_of(backbone, tmp_path))
    completions = [[20 + row, *COMPLETIONS[row % 4][1:]] for row in range(8)]  # told apart by their first token
    script(trainer, monkeypatch, completions)
    compute, first, passes = trainer._compute_loss, {}, []

    def spy(model, inputs):
        if trainer._step % 2 == 0:
            passes.append([])
        for row, ids in enumerate(inputs["completion_ids"][:, 0].tolist()):
            passes[-1].append(ids)
            mine = {name: x[row] for name, x in inputs.items() if x.ndim}
            for name, value in first.setdefault(ids, mine).items():
                width = min(len(mine[name]), len(value)) if value.ndim else None  # padding is cut off
                part = slice(-width, None) if "prompt" in name and width else slice(width)
                assert torch.equal(*(x[part] if x.ndim else x for x in (mine[name], value))), name
        return compute(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    assert {"advantages", "returns", "old_values", "old_per_token_logps", "kl"} <= set(first[20])
    assert [sorted(order) for order in passes] == [list(range(20, 28))] * 3
    assert passes[0] != passes[1] != passes[2] != passes[0]


# --- Systems


def resumable(tmp_path, backbone):
    return {
        "save_strategy": "steps", "save_steps": 1, "max_steps": 8, "lr_scheduler_type": "linear", "kl_target": 0.5,
        "kl_horizon": 40, "use_score_scaling": True, "use_score_norm": True, **critic_of(backbone, tmp_path),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("backbone", "steps"),
    [("shared", (3, 4, 6)), ("adapter", (6,)), ("model", (3,))],
    ids=["shared", "adapter", "model"],
)
def test_ppo_resumed_on_and_off_a_rollout_boundary_is_the_uninterrupted_run(tmp_path, backbone, steps):
    """A rollout serves 4 steps: two passes over two minibatches. Weights, critic, Adam, KL coefficient, moments."""
    settings = resumable(tmp_path, backbone)
    whole = make_trainer("ppo", tmp_path / "whole", **settings)
    whole.train()
    assert whole.kl_controller.kl_coef != 0.05 and whole.moments.count == 16
    for step in steps:
        folder = tmp_path / f"resumed{step}"
        resumed = make_trainer("ppo", folder, **settings)
        torch.manual_seed(1234)  # what the process drew before must not matter
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
        ours = weights(resumed)
        assert any("value_head" in name for name in ours)
        for name, weight in weights(whole).items():
            assert torch.equal(weight, ours[name]), name
        assert resumed.kl_controller.kl_coef == whole.kl_controller.kl_coef
        assert resumed.moments.state_dict() == whole.moments.state_dict()
        for key in ("kl", "objective/ratio", "entropy", "loss", "value/loss", "rollout/kl"):
            rows = [[r[key] for r in t.state.log_history if r["step"] > step and key in r] for t in (whole, resumed)]
            assert rows[0] == rows[1] and (rows[0] or key == "rollout/kl"), key
        for name in ("optimizer.pt", "rollout_rank0.pt"):
            first, second = (
                torch.load(f / "checkpoint-8" / name, weights_only=True) for f in (tmp_path / "whole", folder)
            )
            assert_same(first["state"] if name == "optimizer.pt" else first["buffer"],
                        second["state"] if name == "optimizer.pt" else second["buffer"])  # fmt: skip
        states = [json.loads((f / "checkpoint-8" / "ppo_state.json").read_text()) for f in (tmp_path / "whole", folder)]
        assert states[0] == states[1]


def assert_same(first, second):
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys() and len(first)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for x, y in zip(first, second, strict=True):
            assert_same(x, y)
    else:
        assert first == second


def test_the_same_seed_twice_gives_ppo_identical_metrics_and_another_seed_does_not(tmp_path):
    runs = []
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        trainer = make_trainer("ppo", tmp_path / name, seed=seed)
        trainer.train()
        keys = ("loss", "kl", "entropy", "rollout/score", "value/loss", "value/explained_variance", "grad_norm")
        runs.append([logged(trainer, k) for k in keys])
    assert all(runs[0]) and runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_an_evaluation_within_a_rollout_does_not_bring_back_updates_that_target_kl_stopped(tmp_path):
    """The first step moves too far, and the other seven of the rollout are skipped: evaluated after each, or not."""
    seen, ends = [], []

    class Watch(TrainerCallback):
        def on_evaluate(self, args, state, control, **kwargs):
            seen.append(trainer.gate.stopped)

    for name in ("no", "steps"):
        trainer = make_trainer(
            "ppo", tmp_path / name, passes=4, max_steps=8, target_kl=1e-3, learning_rate=0.05, eval_strategy=name,
            eval_steps=1,
        )  # fmt: skip
        trainer.add_callback(Watch())
        trainer.train()
        ends.append(weights(trainer))
        assert logged(trainer, "policy/skipped_updates") == [0.0] + [1.0] * 7
    assert seen == [False] + [True] * 7
    assert all(torch.equal(weight, ends[1][name]) for name, weight in ends[0].items())
