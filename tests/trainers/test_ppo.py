"""ScopePPOTrainer on tiny random models: how its loss adds up, critics, estimators, gates, scores, files."""

import json
import math
import warnings

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.pytorch_utils import Conv1D

from scope_rlhf.losses import reduce_loss
from scope_rlhf.models import products
from scope_rlhf.models.products import OneDNNConv1D, OneDNNLinear
from scope_rlhf.models.value_head import save_critic, split_critic
from scope_rlhf.objectives import PolicyInputs, make_critic_loss, make_objective
from scope_rlhf.rl import group_relative, leave_one_out, whiten
from scope_rlhf.trainers import ScopePPOConfig, ScopePPOTrainer
from scope_rlhf.trainers.minibatches import reference_tokens, reshuffle
from tests.tiny import SENTENCES, length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import (
    LORA,
    disturb,
    favour,
    logged,
    loss_of,
    make_trainer,
    rollout,
    save_reward_model,
    script,
    weights,
)

HL = {"critic": "hl_gauss", "critic_kwargs": {"v_min": -2.0, "v_max": 6.0, "bins": 21}}
TWO_HOT = {"critic": "two_hot", "critic_kwargs": {"v_min": -2.0, "v_max": 6.0, "bins": 21}}


def critic_of(trainer):
    return {n: w for n, w in weights(trainer).items() if split_critic({n: w})[1]}


def policy_of(trainer):
    return {n: w for n, w in weights(trainer).items() if not split_critic({n: w})[1]}


@pytest.mark.parametrize("settings", [{}, HL, TWO_HOT], ids=["mse", "hl_gauss", "two_hot"])
def test_the_loss_is_the_objective_plus_vf_coef_times_the_critic_over_all_tokens(tmp_path, settings):
    trainer = make_trainer("ppo", tmp_path, minibatches=1, objective="scope", vf_coef=0.7, **settings)
    disturb(trainer.model, "lora_B")
    disturb(trainer.model, "value_head.weight")
    inputs = rollout(trainer)
    disturb(trainer.model, "lora_B", seed=4)  # so that the ratio is not 1
    loss, _, stats = loss_of(trainer, inputs)
    mask = inputs["completion_mask"].bool()
    with torch.no_grad():
        trainer._activate()
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        log_probs, entropy, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attention, mask.size(1), compute_entropy=True
        )
        outputs = trainer._outputs[0]
    policy = make_objective("scope")(
        PolicyInputs(log_probs, inputs["advantages"], inputs["old_per_token_logps"], None, entropy)
    ).per_decision
    kwargs = settings.get("critic_kwargs", {"cliprange_value": 0.2})
    critic = make_critic_loss(settings.get("critic", "mse"), **kwargs)
    value = critic(outputs, inputs["returns"], old_values=inputs["old_values"]).per_decision
    expected = reduce_loss(policy + 0.7 * value, mask, "token_mean")
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert stats["value/loss"] == pytest.approx(reduce_loss(value, mask, "token_mean").item(), rel=1e-5)
    assert abs(reduce_loss(value, mask, "token_mean").item()) > 1e-2


@pytest.mark.parametrize("settings", [{}, HL, TWO_HOT], ids=["mse", "hl_gauss", "two_hot"])
@pytest.mark.parametrize("lora", [True, False])
def test_every_critic_trains_with_and_without_lora_and_logs_what_it_is(tmp_path, settings, lora):
    trainer = make_trainer("ppo", tmp_path, lora=LORA if lora else None, max_steps=8, **settings)
    before = weights(trainer)
    trainer.train()
    moved = [name for name, w in weights(trainer).items() if not torch.equal(w, before[name])]
    assert len(moved) == len(before)
    row = next(r for r in reversed(trainer.state.log_history) if "value/explained_variance" in r)
    wanted = {"rollout/score", "rollout/kl", "rollout/kl_coef", "rollout/eos_rate", "rollout/length", "rollout/reward",
              "rollout/log_prob_gap", "rollout/dropped", "policy/approx_kl", "policy/normalization_sign_flip",
              "policy/advantage_std", "value/loss", "value/mean", "value/squared_error", "kl", "entropy"}  # fmt: skip
    wanted |= {"value/above_floor", "value/out_of_range"} if settings else {"value/clip_fraction"}
    assert wanted <= set(row) and all(math.isfinite(row[name]) for name in wanted)
    assert "frac_reward_zero_std" not in row


@pytest.mark.parametrize("checkpointing", [False, True])
def test_ppo_runs_in_bfloat16_and_with_gradient_checkpointing(tmp_path, checkpointing):
    model = tiny_gpt2(tiny_tokenizer()).to(torch.bfloat16)
    trainer = make_trainer(
        "ppo", tmp_path, model=model, gradient_checkpointing=checkpointing, bf16=True, **HL, max_steps=4
    )
    trainer.train()
    assert all(math.isfinite(x) for x in logged(trainer, "value/loss"))
    assert trainer.value_head.weight.dtype == torch.float32
    assert logged(trainer, "rollout/log_prob_gap")[0] < 0.05


def test_gradient_checkpointing_changes_no_weight(tmp_path):
    runs = []
    for name, on in (("off", False), ("on", True)):
        trainer = make_trainer("ppo", tmp_path / name, gradient_checkpointing=on, optim="sgd", learning_rate=0.1)
        trainer.train()
        runs.append(weights(trainer))
    assert all(torch.allclose(w, runs[1][n], atol=1e-6) for n, w in runs[0].items())


@pytest.mark.parametrize("backbone", ["adapter", "model"])
def test_a_critic_of_its_own_trains_without_a_gradient_to_the_policy(tmp_path, backbone):
    settings = {"critic_backbone": backbone, "vf_coef": 1.0}
    if backbone == "model":
        settings["critic_model_name_or_path"] = str(save_reward_model(tmp_path / "rm"))
    runs = []
    for name, coefficient in (("a", 1.0), ("b", 5.0)):
        # Plain SGD without clipping: the policy's steps depend on vf_coef only through a shared gradient.
        trainer = make_trainer(
            "ppo", tmp_path / name, optim="sgd", learning_rate=0.05, max_grad_norm=0.0, passes=1, minibatches=1,
            max_steps=1, **{**settings, "vf_coef": coefficient},
        )  # fmt: skip
        disturb(trainer.model, "value_head.weight")  # a head of zeros passes no gradient on
        before = weights(trainer)
        trainer.train()
        moved = [n for n, w in critic_of(trainer).items() if not torch.equal(w, before[n])]
        assert any("lora_B" in n or "backbone" in n for n in moved) and "base_model.model.value_head.bias" in moved
        runs.append((policy_of(trainer), critic_of(trainer)))
    assert all(torch.equal(w, runs[1][0][n]) for n, w in runs[0][0].items())
    assert any(not torch.equal(w, runs[1][1][n]) for n, w in runs[0][1].items())


@pytest.mark.parametrize("backbone", ["adapter", "model"])
def test_the_critic_of_its_own_runs_on_the_fast_kernels_too(tmp_path, monkeypatch, backbone):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    settings = {"critic_backbone": backbone}
    if backbone == "model":
        settings["critic_model_name_or_path"] = str(save_reward_model(tmp_path / "rm"))
    trainer = make_trainer("ppo", tmp_path, **settings)
    slow = [n for n, m in trainer.model.named_modules() if type(m) in (Conv1D, nn.Linear, NewGELUActivation)]
    fast = [n for n, m in trainer.model.named_modules() if isinstance(m, OneDNNConv1D | OneDNNLinear)]
    assert not slow
    assert any("backbone" in n or "lora_A.critic" in n for n in fast)


@pytest.mark.parametrize(("estimator", "scale"), [("rloo", "group"), ("group", "group"), ("group", "none")])
def test_without_a_critic_advantages_come_from_the_group_and_the_kl_is_in_them(tmp_path, estimator, scale):
    trainer = make_trainer(
        "ppo", tmp_path, advantage_estimator=estimator, num_generations=2, scale_rewards=scale, kl=0.3
    )
    assert trainer.value_head is None and not critic_of(trainer)
    disturb(trainer.model, "lora_B")
    inputs = rollout(trainer)
    mask = inputs["completion_mask"].bool()
    k1 = ((inputs["old_per_token_logps"] - inputs["ref_per_token_logps"]) * mask).sum(1)
    assert k1.abs().max() > 1e-2
    rewards = trainer._raw_rewards[:, 0] - 0.3 * k1
    if estimator == "rloo":
        expected = leave_one_out(rewards, 2).unsqueeze(1) * mask
        expected, _ = whiten(expected, mask)
    else:
        expected = group_relative(rewards, 2, scale=scale == "group").unsqueeze(1) * mask
    assert torch.allclose(inputs["advantages"], expected, atol=1e-5)
    trainer.train()
    assert all(math.isfinite(x) for x in logged(trainer, "loss"))


def test_a_pass_deals_every_row_once_and_each_pass_deals_them_anew(tmp_path):
    trainer = make_trainer("ppo", tmp_path, passes=3, max_steps=6)
    seen = []
    compute = trainer._compute_loss

    def spy(model, inputs):
        seen.append([tuple(row.tolist()) for row in torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)])
        return compute(model, inputs)

    trainer._compute_loss = spy
    trainer.train()
    passes = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(passes[2])
    assert len({tuple(order) for order in passes}) == 3


def test_minibatches_are_dealt_by_the_seed_alone():
    batches = [{"completion_ids": torch.arange(8).view(4, 2) + 8 * i, "n": torch.tensor(7.0)} for i in range(2)]
    state = torch.get_rng_state()
    first, again, other = reshuffle(batches, (1, 2)), reshuffle(batches, (1, 2)), reshuffle(batches, (1, 3))
    assert torch.equal(torch.get_rng_state(), state)
    ids = [torch.cat([b["completion_ids"] for b in x]).tolist() for x in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]
    assert sorted(ids[0]) == sorted(ids[2]) == [[2 * i, 2 * i + 1] for i in range(8)]
    assert all(b["n"] == 7 for b in first)


def test_target_kl_skips_the_rest_of_the_rollouts_updates_and_of_the_schedule(tmp_path):
    trainer = make_trainer(
        "ppo", tmp_path, passes=4, minibatches=1, max_steps=8, target_kl=1e-4, learning_rate=0.05,
        lr_scheduler_type="linear",
    )  # fmt: skip
    seen = []
    step = trainer.gate.on_step_end

    def watch(args, state, control, **kwargs):
        seen.append((weights(trainer), trainer.lr_scheduler.last_epoch, trainer.gate.stopped))
        return step(args, state, control, **kwargs)

    trainer.gate.on_step_end = watch
    trainer.train()
    # The first minibatch of a rollout is on policy; the second is found too far away.
    assert [stopped for *_, stopped in seen] == [False, True, True, True] * 2
    assert [rate for _, rate, _ in seen] == [1, 1, 1, 1, 2, 2, 2, 2]
    for row in (1, 2, 3, 5, 6, 7):
        assert all(torch.equal(w, seen[row][0][n]) for n, w in seen[row - 1][0].items())
    assert any(not torch.equal(w, seen[4][0][n]) for n, w in seen[3][0].items())
    assert logged(trainer, "policy/skipped_updates") == [0, 1, 1, 1] * 2


def test_during_the_value_warm_up_only_the_critic_moves_also_under_weight_decay(tmp_path):
    trainer = make_trainer("ppo", tmp_path, value_warmup_steps=4, weight_decay=0.1, max_steps=4)
    disturb(trainer.model, "lora_B")
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(w, before[n]) for n, w in policy_of(trainer).items())
    assert all(not torch.equal(w, before[n]) for n, w in critic_of(trainer).items())
    trainer = make_trainer("ppo", tmp_path, value_warmup_steps=2, max_steps=4)
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(w, before[n]) for n, w in policy_of(trainer).items())


def test_the_critic_has_its_own_learning_rate_where_it_is_given(tmp_path):
    trainer = make_trainer("ppo", tmp_path, critic_learning_rate=0.5, learning_rate=0.01, max_steps=4)
    trainer.create_optimizer()
    rates = {id(w): group["lr"] for group in trainer.optimizer.param_groups for w in group["params"]}
    for name, weight in trainer.model.named_parameters():
        if weight.requires_grad:
            assert rates.pop(id(weight)) == (0.5 if "value_head" in name else 0.01), name
    assert not rates
    trainer.train()


def test_an_adaptive_kl_coefficient_moves_towards_its_target(tmp_path):
    trainer = make_trainer("ppo", tmp_path, kl_target=100.0, kl_horizon=40, max_steps=12, passes=1)
    trainer.train()
    found = logged(trainer, "rollout/kl_coef")
    # Far below the target: 8 completions of a horizon of 40 take a fifth of a fifth off.
    assert found == pytest.approx([0.05 * (1 - 0.2 * 8 / 40) ** k for k in range(len(found))], rel=1e-4)


def test_scores_are_scaled_clipped_and_then_replaced_where_the_completion_was_cut(tmp_path, monkeypatch):
    end = 0
    completions = [[5, 6, end, 7], [5, end, 6, 7], [5, 6, 7, 8], [9, 9, 9, 9]]

    def score(prompts, completions, **kwargs):
        return [1.0, 2.0, 3.0, 10.0][: len(completions)]

    settings = {"use_score_scaling": True, "use_score_norm": True, "score_clip": 0.5, "missing_eos_score": -1.0}
    trainer = make_trainer("ppo", tmp_path, score, minibatches=1, probe_rewards=False, gamma=1.0, lam=1.0, **settings)
    script(trainer, monkeypatch, completions)
    inputs = rollout(trainer)
    scores = torch.tensor([1.0, 2.0, 3.0, 10.0])
    expected = ((scores - scores.mean()) / scores.std()).clamp(-0.5, 0.5)
    expected[2:] = -1.0
    # KL is 0 and gamma = lambda = 1: the return of the first token is the shaped score.
    assert torch.allclose(inputs["returns"][:, 0], expected, atol=1e-5)
    assert trainer._metrics["train"]["rollout/eos_rate"] == [0.5]
    assert trainer._metrics["train"]["rollout/score"] == [4.0]


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_nan_reward_stops_the_run_or_drops_its_row_with_a_counter(tmp_path, algorithm):
    def breaks(prompts, completions, **kwargs):
        return [math.nan if i == 1 else float(i) for i in range(len(prompts))]

    with pytest.raises(ValueError, match="nan_reward drop"):
        make_trainer(algorithm, tmp_path, breaks)
    trainer = make_trainer(algorithm, tmp_path, breaks, nan_reward="drop")
    trainer.train()
    assert logged(trainer, "rollout/dropped") == [0.125]
    assert all(math.isfinite(x) for x in logged(trainer, "loss"))


@pytest.mark.parametrize("settings", [{}, {"advantage_estimator": "rloo", "num_generations": 4}])
def test_a_dropped_row_has_no_influence_on_the_loss(tmp_path, settings):
    def breaks(prompts, completions, **kwargs):
        return [math.nan if i == 1 else float(i) for i in range(len(prompts))]

    trainer = make_trainer("ppo", tmp_path, breaks, nan_reward="drop", probe_rewards=False, minibatches=1, **settings)
    inputs = rollout(trainer)
    mask = inputs["completion_mask"] * inputs["tool_mask"]
    assert mask[1].sum() == 0 and inputs["advantages"][1].abs().sum() == 0
    assert inputs["num_items_in_batch"] == mask.sum()
    loss, gradient, _ = loss_of(trainer, inputs)
    inputs["completion_ids"][1] = 17
    inputs["old_per_token_logps"][1] -= 3.0
    changed, changed_gradient, _ = loss_of(trainer, inputs)
    assert changed == pytest.approx(loss, abs=1e-7) and torch.allclose(gradient, changed_gradient, atol=1e-7)


def test_a_rollout_with_every_row_dropped_changes_nothing_and_does_not_fail(tmp_path):
    trainer = make_trainer(
        "ppo", tmp_path, lambda prompts, completions, **kwargs: [None] * len(prompts), max_steps=4, vf_coef=1.0
    )
    before = weights(trainer)
    trainer.train()
    assert logged(trainer, "rollout/dropped") == [1.0]
    assert all(torch.equal(w, before[n]) for n, w in weights(trainer).items())


def test_returns_outside_the_support_are_warned_of_once_with_their_share(tmp_path):
    settings = {"critic": "two_hot", "critic_kwargs": {"v_min": 0.0, "v_max": 0.01}}
    trainer = make_trainer("ppo", tmp_path, max_steps=8, **settings)
    with pytest.warns(UserWarning, match=r"[\d.]+ % of the returns of a rollout lie outside .*v_min and v_max"):
        rollout(trainer)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        rollout(trainer)
    trainer.train()
    assert max(logged(trainer, "value/out_of_range")) > 0.5


def test_the_critic_is_saved_beside_the_policy_and_goes_on_from_critic_path(tmp_path):
    trainer = make_trainer("ppo", tmp_path / "run", **HL)
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    assert not any(
        "value" in name or "critic" in name for name in load_file(tmp_path / "model/adapter_model.safetensors")
    )
    assert json.loads((tmp_path / "model/critic.json").read_text())["name"] == "hl_gauss"
    again = make_trainer("ppo", tmp_path / "again", critic_path=str(tmp_path / "model"), **HL)
    assert torch.equal(again.value_head.weight, trainer.value_head.weight)
    kwargs = {**HL["critic_kwargs"], "v_max": 7.0}
    with pytest.raises(ValueError, match="v_max was 6.0, is 7.0"):
        make_trainer("ppo", tmp_path, critic_path=str(tmp_path / "model"), critic="hl_gauss", critic_kwargs=kwargs)
    with pytest.raises(ValueError, match="does not exist; set --critic_path"):
        make_trainer("ppo", tmp_path, critic_path=str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "critic.safetensors").unlink(), "holds no critic"),
        (lambda folder: (folder / "critic.json").write_text('{"name": "m'), "is damaged"),
        (lambda folder: (folder / "critic.json").write_text("{}"), "is damaged .*lacks"),
        (lambda folder: (folder / "critic.json").unlink(), "holds neither model.safetensors"),
    ],
)
def test_a_critic_path_that_cannot_serve_is_refused_by_the_config_before_anything_loads(tmp_path, damage, message):
    save_critic(tmp_path, {"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, make_critic_loss("mse"))
    ScopePPOConfig("out", use_cpu=True, report_to="none", critic_path=str(tmp_path))
    with pytest.raises(ValueError, match="as another kind .critic was 'mse', is 'hl_gauss'"):
        ScopePPOConfig("out", use_cpu=True, report_to="none", critic_path=str(tmp_path), **HL)
    damage(tmp_path)
    with pytest.raises(ValueError, match=message):
        ScopePPOConfig("out", use_cpu=True, report_to="none", critic_path=str(tmp_path))


def test_a_critic_adapter_without_lora_is_refused_before_the_model_loads(tmp_path):
    args = ScopePPOConfig(
        str(tmp_path), critic_backbone="adapter", gradient_checkpointing=False, use_cpu=True, report_to="none"
    )
    with pytest.raises(ValueError, match="needs a LoRA policy"):
        ScopePPOTrainer(object(), [lambda **kwargs: []], args)


def test_a_value_head_of_trl_1_12_is_taken_over_by_critic_path(tmp_path):
    torch.manual_seed(1)
    head = {"v_head.summary.weight": torch.randn(1, 32), "v_head.summary.bias": torch.randn(1)}
    save_file(head, tmp_path / "model.safetensors")
    trainer = make_trainer("ppo", tmp_path / "run", critic_path=str(tmp_path))
    assert torch.equal(trainer.value_head.weight, head["v_head.summary.weight"])


def test_the_reference_nll_pulls_towards_the_references_and_is_off_by_default(tmp_path):
    rows = {"prompt": SENTENCES, "completion": [" " + s for s in reversed(SENTENCES)]}
    data = Dataset.from_dict({name: column * 4 for name, column in rows.items()})

    def run(name, coefficient):
        args = ScopePPOConfig(
            str(tmp_path / name), use_cpu=True, report_to="none", per_device_train_batch_size=4, num_mini_batches=2,
            max_completion_length=8, max_steps=16, learning_rate=1e-2, save_strategy="no", logging_steps=1,
            target_coef=coefficient, gradient_checkpointing=False, disable_tqdm=True, kl_coef=0.0,
        )  # fmt: skip
        tokenizer = tiny_tokenizer()
        trainer = ScopePPOTrainer(
            tiny_gpt2(tokenizer), [lambda prompts, **kwargs: [0.0] * len(prompts)], args, train_dataset=data,
            processing_class=tokenizer, peft_config=LORA,
        )  # fmt: skip
        trainer.train()
        return logged(trainer, "policy/target_nll")

    assert run("off", 0.0) == []
    nll = run("on", 1.0)
    assert len(nll) == 16 and nll[-1] < nll[0] - 0.3
    with pytest.raises(ValueError, match=r"no column 'completion'; its columns are \['prompt'\]. Set --target_column"):
        make_trainer("ppo", tmp_path, target_coef=0.1)


def test_references_end_with_an_end_token_are_cut_without_one_and_may_be_missing():
    tokenizer = tiny_tokenizer()
    rows = [{"prompt": "a", "completion": " film"}, {"prompt": "a", "completion": SENTENCES[3]}, {"prompt": "a"}]
    found = reference_tokens(rows, "completion", tokenizer, 6)
    film = tokenizer(" film")["input_ids"]
    assert found["target_ids"][0][found["target_mask"][0].bool()].tolist() == [*film, tokenizer.eos_token_id]
    assert found["target_ids"][1].tolist() == tokenizer(SENTENCES[3])["input_ids"][:6]
    assert found["target_mask"].sum(1).tolist() == [len(film) + 1, 6, 0]


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_conversational_prompts_go_through_the_chat_template_and_rewards_see_messages(tmp_path, algorithm, monkeypatch):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    seen = []

    def score(prompts, completions, **kwargs):
        seen.extend(zip(prompts, completions, strict=True))
        return [float(len(c[0]["content"])) for c in completions]

    chat = Dataset.from_dict({"prompt": [[{"role": "user", "content": s}] for s in SENTENCES * 4]})
    monkeypatch.setattr("tests.trainers.makers.prompt_dataset", lambda repeats=4: chat)
    trainer = make_trainer(algorithm, tmp_path, score, tokenizer=tokenizer, probe_rewards=False)
    trainer.train()
    prompt, completion = seen[0]
    assert prompt[0]["role"] == "user" and completion[0]["role"] == "assistant"
    buffered = trainer._buffered_inputs[0]
    text = tokenizer.decode(buffered["prompt_ids"][0][buffered["prompt_mask"][0].bool()])
    assert text.startswith("<user>") and text.endswith("<a>")
    assert all(math.isfinite(x) for x in logged(trainer, "loss"))


def test_a_reward_model_with_another_tokenizer_reads_the_text_and_never_the_ids(tmp_path):
    """The reward model's ids mean other words: scoring ids would give other scores."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = save_reward_model(tmp_path / "rm")
    other = tiny_tokenizer(pad=True)  # every id is shifted by one against the policy's
    other.save_pretrained(folder)
    trainer = make_trainer("ppo", tmp_path, str(folder), minibatches=1)
    inputs = rollout(trainer)
    scorer = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer, reader = trainer.processing_class, AutoTokenizer.from_pretrained(folder)
    for row in range(4):
        ids = [inputs[f"{part}_ids"][row][inputs[f"{part}_mask"][row].bool()] for part in ("prompt", "completion")]
        text = "".join(tokenizer.decode(part, skip_special_tokens=True) for part in ids)
        given = reader(text, return_tensors="pt")
        assert given["input_ids"][0].tolist() != torch.cat(ids).tolist()
        with torch.no_grad():
            expected = scorer(**given).logits[0, 0]
        assert trainer._raw_rewards[row, 0] == pytest.approx(expected.item(), abs=1e-4)


def test_a_stop_token_of_several_tokens_and_one_beyond_the_vocabulary_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"stop_token='the film was' is \d tokens of this tokenizer, expected one"):
        make_trainer("ppo", tmp_path, stop_token="the film was")
    with pytest.raises(ValueError, match="stop_token_id=5000 is beyond"):
        make_trainer("ppo", tmp_path, stop_token_id=5000)


def test_args_of_another_trainer_are_refused(tmp_path):
    from scope_rlhf.trainers import ScopeGRPOConfig

    with pytest.raises(ValueError, match="must be a ScopePPOConfig, got ScopeGRPOConfig"):
        ScopePPOTrainer(None, [length_reward], ScopeGRPOConfig(str(tmp_path), use_cpu=True))


def test_scope_without_whitening_warns(tmp_path):
    with pytest.warns(UserWarning, match="whiten_advantages=False: advantages keep a scale"):
        make_trainer("ppo", tmp_path, objective="scope", whiten_advantages=False)


def test_one_update_for_each_rollout_is_on_policy_and_has_values_of_the_policy(tmp_path):
    """The parent makes no old log-probs there; the reference's pass, which runs then, must not lend its values."""
    trainer = make_trainer("ppo", tmp_path, passes=1, minibatches=1, max_steps=3)
    disturb(trainer.model, "lora_B")
    disturb(trainer.model, "value_head.weight")
    inputs = rollout(trainer)
    _, _, stats = loss_of(trainer, inputs)
    assert stats["objective/ratio"] == pytest.approx(1, abs=1e-6)
    assert stats["value/mean"] == pytest.approx(
        (inputs["old_values"] * inputs["completion_mask"]).sum().item() / inputs["completion_mask"].sum().item(),
        abs=1e-5,
    )


def test_evaluation_measures_and_trains_nothing(tmp_path):
    trainer = make_trainer("ppo", tmp_path, per_device_eval_batch_size=3, **HL)
    favour(trainer, 13)
    before = weights(trainer)
    controller = trainer.kl_controller.kl_coef
    metrics = trainer.evaluate(prompt_dataset(1))
    assert {"eval_reward", "eval_rollout/score", "eval_value/explained_variance", "eval_kl"} <= set(metrics)
    assert all(torch.equal(w, before[n]) for n, w in weights(trainer).items())
    assert trainer.kl_controller.kl_coef == controller
    trainer.train()
    assert all(math.isfinite(x) for x in logged(trainer, "value/loss"))


def test_without_a_kl_coefficient_there_is_no_reference_and_no_kl_is_claimed(tmp_path):
    trainer = make_trainer("ppo", tmp_path, kl=0.0)
    disturb(trainer.model, "lora_B")
    trainer.train()
    assert not logged(trainer, "kl") and not logged(trainer, "rollout/kl")
    assert logged(trainer, "rollout/kl_coef") == [0.0]


def test_the_policy_itself_is_refused_as_its_reference(tmp_path):
    model = tiny_gpt2(tiny_tokenizer())
    with pytest.raises(ValueError, match="give a model of its own"):
        make_trainer("ppo", tmp_path, model=model, lora=LORA, ref_model=model)
