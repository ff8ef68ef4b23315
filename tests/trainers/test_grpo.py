"""ScopeGRPOTrainer on tiny random models: what silently goes wrong in RLHF code, and resume."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn

from scope_rlhf import hub
from scope_rlhf.trainers import ScopeGRPOConfig, ScopeGRPOTrainer
from tests.tiny import length_reward, prompt_dataset, tiny_gpt2, tiny_tokenizer


def make_config(folder: Path, **settings):
    defaults = {
        "objective": "scope", "per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 6,
        "steps_per_generation": 2, "num_iterations": 2, "max_steps": 4, "report_to": "none", "learning_rate": 1e-2,
        "gradient_checkpointing": False, "use_cpu": True, "save_strategy": "no", "logging_steps": 1,
        "disable_tqdm": True, "beta": 0.05, "seed": 7,
    }  # fmt: skip
    return ScopeGRPOConfig(str(folder), **{**defaults, **settings})


def make_trainer(folder: Path, rewards=length_reward, dataset=None, dropout=0.1, lora=True, **settings):
    tokenizer, args = tiny_tokenizer(), make_config(folder, **settings)
    model = tiny_gpt2(tokenizer, dropout=dropout)
    if not lora:
        model.save_pretrained(folder / "start")
        model = type(model).from_pretrained(folder / "start")
    peft_config = LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4) if lora else None
    return ScopeGRPOTrainer(
        model, rewards if isinstance(rewards, list) else [rewards], args, train_dataset=dataset or prompt_dataset(),
        processing_class=tokenizer, peft_config=peft_config,
    )  # fmt: skip


def logged(trainer, key):
    return [row[key] for row in trainer.state.log_history if key in row]


def weights(trainer):
    return {n: w.detach().clone() for n, w in trainer.model.named_parameters() if w.requires_grad}


def test_the_ratio_is_exactly_one_on_the_first_inner_pass_and_leaves_one_after_an_update(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.train()
    ratios = logged(trainer, "objective/ratio")
    assert abs(ratios[0] - 1) < 1e-6
    assert max(abs(r - 1) for r in ratios[1:]) > 1e-4
    assert all(math.isfinite(row.get("grad_norm", 0.0)) for row in trainer.state.log_history)


def test_lr_zero_keeps_the_ratio_at_one_in_every_minibatch_and_pass(tmp_path):
    trainer = make_trainer(tmp_path, learning_rate=0.0, max_steps=8)
    trainer.train()
    assert len(logged(trainer, "objective/ratio")) == 8
    assert max(abs(r - 1) for r in logged(trainer, "objective/ratio")) < 1e-6
    assert max(logged(trainer, "objective/clip_fraction")) == 0


@pytest.mark.parametrize("lora", [True, False])
def test_kl_is_zero_at_step_zero_and_not_later(tmp_path, lora):
    trainer = make_trainer(tmp_path, lora=lora)
    trainer.train()
    kl = logged(trainer, "kl")
    assert abs(kl[0]) < 1e-7
    assert max(kl[2:]) > 1e-6


def test_dropout_is_off_in_policy_and_lora_layers(tmp_path):
    trainer = make_trainer(tmp_path)
    assert [m.p for m in trainer.model.modules() if isinstance(m, nn.Dropout) and m.p > 0] == []


def test_reference_weights_do_not_move_while_the_adapter_does(tmp_path):
    trainer = make_trainer(tmp_path)
    frozen = {n: w.detach().clone() for n, w in trainer.model.named_parameters() if not w.requires_grad}
    before = weights(trainer)
    trainer.train()
    assert all(torch.equal(dict(trainer.model.named_parameters())[n], w) for n, w in frozen.items())
    assert any(not torch.equal(w, before[n]) for n, w in weights(trainer).items())


def test_the_same_seed_twice_gives_identical_metrics(tmp_path):
    runs = []
    for name in ("a", "b"):
        trainer = make_trainer(tmp_path / name)
        trainer.train()
        runs.append([logged(trainer, k) for k in ("loss", "kl", "entropy", "reward", "objective/scope_magnitude")])
    assert runs[0] == runs[1]


def test_logged_stats_are_masked_sums_over_counts_of_all_micro_batches(tmp_path):
    """Unequal completion lengths: a mean of micro-batch means would differ from the mean over tokens."""
    trainer = make_trainer(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=2, max_steps=1)
    seen = []
    accumulate = trainer._accumulate

    def spy(stats, mask, **count):
        if "entropy" in stats:
            seen.append((stats["entropy"][mask], mask.sum().item()))
        accumulate(stats, mask, **count)

    trainer._accumulate = spy
    trainer.train()
    counts = [count for _, count in seen]
    assert len(counts) == 2
    expected = torch.cat([values for values, _ in seen]).double().mean().item()
    assert logged(trainer, "entropy")[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("step", [4, 3, 6])
@pytest.mark.parametrize("logging_steps", [1, 4])
def test_resume_on_and_off_a_generation_boundary_equals_the_uninterrupted_run(tmp_path, step, logging_steps):
    """A rollout serves 4 steps; with logging every 4, the metrics of the steps before the kill are in the log too."""
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 8, "lr_scheduler_type": "linear"}
    settings["logging_steps"] = logging_steps
    whole = make_trainer(tmp_path / "whole", **settings)
    whole.train()
    resumed = make_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{step}"))
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(resumed)[name]), name
    # The mean loss since the last log is transformers' own and is not part of its checkpoints.
    for key in ("kl", "objective/ratio", "entropy", *(["loss"] if logging_steps == 1 else [])):
        rows = [[r[key] for r in t.state.log_history if r["step"] > step and key in r] for t in (whole, resumed)]
        assert rows[0] and rows[0] == rows[1], key


def test_resume_inside_a_generation_batch_without_its_rollout_is_refused_naming_the_steps(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 2}
    make_trainer(tmp_path, **settings).train()
    file = tmp_path / "checkpoint-2" / "rollout_rank0.pt"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"rollout_rank0.pt is damaged"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)
    file.unlink()
    with pytest.raises(ValueError, match=r"within a generation batch and holds no rollout.*multiple of 4"):
        make_trainer(tmp_path, **settings).train(resume_from_checkpoint=True)


def own_objective(file: Path, coefficient: float) -> str:
    file.write_text(
        "from dataclasses import dataclass\n"
        "from scope_rlhf.objectives import PolicyLoss\n"
        "@dataclass(frozen=True)\n"
        "class Mine:\n"
        "    scale: float = 1.0\n"
        "    def __call__(self, inputs):\n"
        f"        loss = -{coefficient} * self.scale * inputs.advantages * inputs.log_probs\n"
        "        return PolicyLoss(loss, {'my_stat': loss.detach()})\n"
    )
    return f"{file}:Mine"


def test_a_users_own_objective_trains_is_logged_and_recorded(tmp_path):
    spec = own_objective(tmp_path / "mine.py", 1.0)
    trainer = make_trainer(tmp_path / "run", objective=spec, objective_kwargs={"scale": 0.5}, save_strategy="steps",
                           save_steps=4)  # fmt: skip
    trainer.train()
    assert len(logged(trainer, "objective/my_stat")) == 4
    record = json.loads((tmp_path / "run" / "checkpoint-4" / "objective.json").read_text())
    assert record["parameters"] == {"scale": 0.5}
    assert re.fullmatch("[0-9a-f]{64}", record["sha256"])


def test_resume_with_a_changed_objective_file_is_refused_unless_said_so(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    spec = own_objective(tmp_path / "mine.py", 1.0)
    make_trainer(tmp_path / "run", objective=spec, **settings).train()
    own_objective(tmp_path / "mine.py", 2.0)
    settings["max_steps"] = 8
    with pytest.raises(ValueError, match=r"objective has changed.*sha256.*allow_objective_change"):
        make_trainer(tmp_path / "run", objective=spec, **settings).train(resume_from_checkpoint=True)
    trainer = make_trainer(tmp_path / "run", objective=spec, allow_objective_change=True, **settings)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8


def test_resume_with_the_same_objective_file_in_another_folder_goes_on(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 4, "max_steps": 4}
    make_trainer(tmp_path / "run", objective=own_objective(tmp_path / "mine.py", 1.0), **settings).train()
    (tmp_path / "elsewhere").mkdir()
    spec = own_objective(tmp_path / "elsewhere" / "moved.py", 1.0)
    trainer = make_trainer(tmp_path / "run", objective=spec, **{**settings, "max_steps": 8})
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 8


def test_a_reward_function_with_the_wrong_number_of_values_is_refused_before_training(tmp_path):
    def one_value(prompts, completions, **kwargs):
        return [1.0]

    with pytest.raises(ValueError, match="one_value returned 1 values for 2"):
        make_trainer(tmp_path, one_value)


def test_a_nan_reward_during_training_names_the_function_and_stops_before_the_update(tmp_path):
    calls = []

    def breaks_later(prompts, completions, **kwargs):
        calls.append(len(prompts))
        return [math.nan if len(calls) > 2 and i == 1 else float(i) for i in range(len(prompts))]

    trainer = make_trainer(tmp_path, breaks_later, max_steps=12)
    with pytest.raises(ValueError, match=r"breaks_later returned nan for row 1"):
        trainer.train()
    assert trainer.state.global_step == 4  # the first rollout's four updates, none of the second's


def test_none_rewards_are_legal_and_their_rows_carry_no_signal(tmp_path):
    def some(prompts, completions, **kwargs):
        return [None if i % 2 else 1.0 for i in range(len(prompts))]

    trainer = make_trainer(tmp_path, [some, length_reward])
    trainer.train()
    assert all(math.isfinite(x) for x in logged(trainer, "loss"))


@pytest.mark.parametrize(
    ("dataset", "words"),
    [(Dataset.from_dict({"text": ["a"]}), "no column 'prompt'.*text"), (Dataset.from_dict({"prompt": []}), "empty")],
)
def test_a_dataset_without_prompts_is_refused(tmp_path, dataset, words):
    with pytest.raises(ValueError, match=words):
        ScopeGRPOTrainer(None, [length_reward], ScopeGRPOConfig(str(tmp_path), use_cpu=True), train_dataset=dataset)


def test_scope_without_reward_scaling_warns(tmp_path):
    with pytest.warns(UserWarning, match="scale_rewards='none'.*alpha of scope"):
        make_trainer(tmp_path, scale_rewards="none")


def test_args_of_the_parent_class_are_refused(tmp_path):
    from trl import GRPOConfig

    with pytest.raises(ValueError, match="ScopeGRPOConfig"):
        ScopeGRPOTrainer(None, [length_reward], GRPOConfig(str(tmp_path), use_cpu=True, bf16=False))


def test_saved_adapter_gives_the_same_log_probs_when_loaded(tmp_path):
    from peft import PeftModel

    from scope_rlhf.models.positions import derive_positions

    trainer = make_trainer(tmp_path / "run")
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    base = tiny_gpt2(tiny_tokenizer())
    derive_positions(base)
    loaded = PeftModel.from_pretrained(base, tmp_path / "model").eval()
    ids = torch.tensor([[0, 5, 6, 7], [9, 10, 11, 12]])
    mask = torch.tensor([[0, 1, 1, 1], [1, 1, 1, 1]])
    trainer.model.eval()
    with torch.no_grad():
        ours, theirs = (m(input_ids=ids, attention_mask=mask).logits for m in (trainer.model, loaded))
    assert (ours - theirs).abs().max() < 1e-5


def test_fewer_prompts_than_a_generation_batch_are_refused_instead_of_training_nothing(tmp_path):
    with pytest.raises(ValueError, match=r"has 3 prompts, but one generation batch takes 4 .*8 / num_generations 2"):
        make_trainer(tmp_path, dataset=prompt_dataset(1).select(range(3)))


@pytest.mark.parametrize(
    ("reward", "message"), [(5, "reward_funcs holds 5"), ("/no/such/model", "reward_funcs='/no/such/model'")]
)
def test_what_is_no_reward_is_refused_naming_the_argument(tmp_path, reward, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(tmp_path, rewards=reward)


def test_embedded_names_serve_as_model_and_as_reward(tmp_path):
    trainer = ScopeGRPOTrainer(
        "embedded/reviews-gpt2",
        ["embedded/sentiment-reward"],
        make_config(tmp_path, max_steps=1),
        train_dataset=Dataset.from_dict({"prompt": ["This film was", "The plot is"] * 4}),
    )
    assert trainer.model.config.n_embd == 256
    reward: Any = trainer.reward_funcs[0]
    good, bad = reward(prompts=["I saw", "I saw"], completions=[" a wonderful film", " awful trash"])
    assert good > 0.6 > 0.4 > bad
    assert trainer.reward_func_names == ["sentiment-reward"]


@pytest.mark.parametrize(
    ("model", "reward", "said"),
    [("no-such/model", None, "model='no-such/model'"), (None, "no-such/model", "reward_funcs='no-such/model'")],
)
def test_a_name_that_the_hub_cannot_give_is_one_error_within_seconds(tmp_path, model, reward, said, monkeypatch):
    monkeypatch.setattr(hub, "hub_reachable", lambda timeout=3.0: False)
    started = time.perf_counter()
    with pytest.raises(ValueError, match=said):
        ScopeGRPOTrainer(
            model or "embedded/reviews-gpt2", [reward or (lambda **kwargs: [])], make_config(tmp_path),
            train_dataset=prompt_dataset(4),
        )  # fmt: skip
    assert time.perf_counter() - started < 20


def test_the_card_of_a_checkpoint_names_the_objective_and_no_base_of_none(tmp_path):
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=4)
    trainer.train()
    card = (tmp_path / "README.md").read_text()
    assert "scope(clip_low=0.2" in card
    assert "None" not in card


def test_a_reference_for_a_model_made_in_memory_is_refused_before_it_is_looked_for_on_the_hub(tmp_path):
    args = ScopeGRPOConfig(
        str(tmp_path), beta=0.1, per_device_train_batch_size=4, num_generations=2, use_cpu=True, report_to="none"
    )
    tokenizer = tiny_tokenizer()
    with pytest.raises(ValueError, match="was made in memory: save it"):
        ScopeGRPOTrainer(
            tiny_gpt2(tokenizer), [length_reward], args, train_dataset=prompt_dataset(), processing_class=tokenizer
        )
