"""A task of language models with a known optimum: two prompts, and a reward read off the first token of a completion.

Each prompt has a tenth of the vocabulary that pays its optimum. After the first prompt the other tokens pay up to a
third of it, after the second nothing. What a policy is worth, and what the critic ought to say of a prompt, is then a
sum over the vocabulary and no estimate. Three tokens are sampled, so that the score comes two tokens too late.
"""

import pytest
import torch
from datasets import Dataset

from scope_rlhf.trainers import ScopePPOConfig, ScopePPOTrainer
from tests.tiny import tiny_gpt2, tiny_tokenizer

pytestmark = pytest.mark.slow

TOKENIZER = tiny_tokenizer()
PROMPTS = ["the film was", "nothing in this"]
OPTIMUM = {PROMPTS[0]: 1.0, PROMPTS[1]: 0.5}
CATEGORICAL = {"v_min": -0.2, "v_max": 1.2, "bins": 29}
WAYS = {
    "mse": {"critic": "mse"},
    "hl_gauss": {"critic": "hl_gauss", "critic_kwargs": CATEGORICAL},
    "two_hot": {"critic": "two_hot", "critic_kwargs": CATEGORICAL},
    "rloo": {"advantage_estimator": "rloo", "num_generations": 4},
    "group": {"advantage_estimator": "group", "num_generations": 4},
}


def payments(prompt):
    """[vocabulary]: the reward of each first token. Class 3 is best after one prompt, class 7 after the other."""
    classes = torch.arange(len(TOKENIZER)) % 10
    best, others = (3, 0.04 * classes) if prompt == PROMPTS[0] else (7, torch.zeros(()))
    return OPTIMUM[prompt] * torch.where(classes == best, 1.0, others)


TABLE = {prompt: payments(prompt) for prompt in PROMPTS}


def pay_for_first_token(prompts, completions, completion_ids, **kwargs):
    return [TABLE[prompt][ids[0]].item() for prompt, ids in zip(prompts, completion_ids, strict=True)]


def make_trainer(folder, **settings):
    defaults = {
        "per_device_train_batch_size": 16, "num_mini_batches": 4, "num_ppo_epochs": 2, "max_completion_length": 3,
        "max_steps": 240, "learning_rate": 3e-3, "lr_scheduler_type": "linear", "kl_coef": 0.0, "vf_coef": 0.5,
        "use_cpu": True, "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 40,
        "gradient_checkpointing": False, "seed": 11,
    }  # fmt: skip
    args = ScopePPOConfig(str(folder), **{**defaults, **settings})
    model = tiny_gpt2(TOKENIZER)
    model.save_pretrained(folder / "start")
    model = type(model).from_pretrained(folder / "start")
    return ScopePPOTrainer(
        model, [pay_for_first_token], args, processing_class=TOKENIZER,
        train_dataset=Dataset.from_dict({"prompt": PROMPTS * 64}),
    )  # fmt: skip


@torch.no_grad()
def worth(trainer):
    """{prompt: mean reward of the policy}, exactly."""
    found = {}
    for prompt in PROMPTS:
        logits = trainer.model(**TOKENIZER(prompt, return_tensors="pt")).logits[0, -1]
        found[prompt] = (logits.double().softmax(-1) @ TABLE[prompt].double()).item()
    return found


@torch.no_grad()
def values(trainer):
    """{prompt: what the critic says before the first token}."""
    found = {}
    trainer.value_head.active = True
    for prompt in PROMPTS:
        ids = TOKENIZER(prompt + " ok", return_tensors="pt")  # the outputs are those before each token but the first
        position = len(TOKENIZER(prompt)["input_ids"]) - 1
        outputs = trainer.model(**ids, labels=ids["input_ids"], fused_lm_head=True).critic_outputs
        found[prompt] = trainer.critic.decode(outputs)[0, position].item()
    return found


def share_of_optimum(trainer):
    found = worth(trainer)
    return sum(found[prompt] / OPTIMUM[prompt] for prompt in PROMPTS) / len(PROMPTS)


@pytest.mark.parametrize("way", WAYS)
def test_ppo_reaches_95_percent_of_the_optimum_from_a_fifth_and_the_critic_knows_it(tmp_path, way):
    trainer = make_trainer(tmp_path, **WAYS[way])
    assert share_of_optimum(trainer) < 0.21
    trainer.train()
    assert share_of_optimum(trainer) >= 0.95
    if trainer.critic is not None:
        for prompt, value in values(trainer).items():
            assert value == pytest.approx(worth(trainer)[prompt], abs=0.1)


@pytest.mark.parametrize("way", ["mse", "hl_gauss", "two_hot"])
def test_a_critic_that_warms_up_comes_to_the_mean_reward_of_a_policy_that_stands_still(tmp_path, way):
    """Far from the optimum, and of two prompts that are worth unlike amounts: no constant would do."""
    trainer = make_trainer(tmp_path, value_warmup_steps=240, learning_rate=1e-2, lam=1.0, **WAYS[way])
    before = worth(trainer)
    trainer.train()
    assert worth(trainer) == before
    assert before[PROMPTS[0]] - before[PROMPTS[1]] > 0.2
    for prompt, value in values(trainer).items():
        assert value == pytest.approx(before[prompt], abs=0.08)
