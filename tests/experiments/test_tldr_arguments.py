"""Defaults of the TL;DR chain, and the published settings that ship as files."""

from pathlib import Path

import pytest
import transformers
import yaml

from scope_rlhf.experiments import imdb_arguments
from scope_rlhf.experiments.arguments import parse_arguments
from scope_rlhf.experiments.policy_run import quiet_libraries
from scope_rlhf.experiments.tldr_arguments import EMBEDDED_CRITICS, EXPERIMENT
from scope_rlhf.experiments.tldr_reward import parse_reward
from scope_rlhf.experiments.tldr_sft import parse_sft

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def parse(*words: str):
    return parse_arguments(EXPERIMENT, list(words))


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
@pytest.mark.parametrize("objective", ["scope", "symmetric", "focal", "policy_entropy", "ppo"])
def test_no_arguments_but_algorithm_and_objective_are_the_embedded_run(algorithm, objective):
    script, policy, training = parse("--algorithm", algorithm, "--objective", objective)
    assert script.dataset_name == "documentation" and policy.model_name_or_path == "embedded/documentation-gpt2"
    assert policy.use_peft and training.objective == objective and training.temperature == 0.7
    assert script.max_prompt_length + training.max_completion_length <= 256


def test_training_has_a_progress_line_although_transformers_is_quiet():
    """Was: transformers turned it off for the messages that quiet_libraries had turned off."""
    before = transformers.logging.get_verbosity()
    quiet_libraries()
    try:
        for experiment in (EXPERIMENT, imdb_arguments.EXPERIMENT):
            assert parse_arguments(experiment, [])[2].disable_tqdm is False
        assert parse_reward([])[2].disable_tqdm is False and parse_sft([])[2].disable_tqdm is False
        assert parse_sft(["--disable_tqdm", "true"])[2].disable_tqdm is True
    finally:
        transformers.logging.set_verbosity(before)
        transformers.logging.enable_progress_bar()


def test_ppo_is_the_default_and_every_critic_has_its_support():
    assert parse()[0].algorithm == "ppo"
    for critic in EMBEDDED_CRITICS:
        assert parse("--critic", critic)[2].critic == critic


def test_a_model_of_the_hub_takes_the_n_implementation_details():
    script, _, training = parse("--model_name_or_path", "EleutherAI/pythia-1b-deduped")
    assert (training.learning_rate, training.kl_coef, training.vf_coef) == (3e-6, 0.05, 0.1)
    assert (training.gamma, training.lam, training.num_ppo_epochs) == (1.0, 0.95, 4)
    assert (training.max_completion_length, script.max_prompt_length, training.temperature) == (53, 512, 0.7)
    assert training.missing_eos_score == -1.0 and not training.whiten_rewards
    assert script.critic_from_reward_model and script.dataset_name == "trl-lib/tldr"
    rollout = training.per_device_train_batch_size * training.gradient_accumulation_steps * training.num_mini_batches
    assert rollout == 512


def test_the_file_of_the_n_implementation_details_is_a_million_episodes_of_512():
    script, policy, training = parse("--config", str(CONFIGS / "tldr_n_details.yaml"))
    assert (training.total_episodes, training.objective, training.adam_epsilon) == (1_000_000, "ppo", 1e-5)
    assert script.win_rate_temperature == 0.01 and policy.model_name_or_path == "EleutherAI/pythia-1b-deduped"


def test_the_file_of_the_symmetric_paper_is_gptj_by_lora_in_4_bit(tmp_path):
    content = yaml.safe_load((CONFIGS / "tldr_gptj_paper.yaml").read_text())
    assert content.pop("load_in_4bit") is True  # needs bitsandbytes, which tests do not install
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    script, policy, training = parse("--config", str(tmp_path / "config.yaml"))
    assert (policy.lora_r, policy.lora_alpha, policy.lora_dropout) == (8, 64, 0.1)
    assert script.sft_model_name_or_path == "CarperAI/openai_summarize_tldr_sft"
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 64
    assert (training.max_steps, training.num_ppo_epochs, training.kl_coef) == (800, 4, 0.002)  # 200 rollouts
    assert (script.max_prompt_length, training.max_completion_length) == (500, 50)
    reward = parse_reward(
        ["--model_name_or_path", script.sft_model_name_or_path, "--config", str(CONFIGS / "tldr_gptj_reward.yaml")]
    )
    assert reward[1].use_peft and reward[0].dataset_name == "trl-lib/tldr-preference"


def test_a_stage_takes_the_defaults_of_its_kind_of_model():
    assert parse_sft([])[1].model_name_or_path == "embedded/documentation-gpt2"
    script, _, training = parse_sft(["--model_name_or_path", "EleutherAI/gpt-j-6b"])
    assert training.learning_rate == 3e-6 and script.max_prompt_length == 512
    assert training.per_device_train_batch_size * training.gradient_accumulation_steps == 128


def test_the_file_of_a_stage_goes_over_what_the_chain_has_settled_and_that_over_the_defaults(tmp_path):
    (tmp_path / "sft.yaml").write_text("max_prompt_length: 40\n")
    given = {"model_name_or_path": "gpt2", "max_prompt_length": 60, "dataset_name": "me/mine"}
    script, policy, training = parse_sft(["--config", str(tmp_path / "sft.yaml")], given=given)
    assert (script.max_prompt_length, script.dataset_name, policy.model_name_or_path) == (40, "me/mine", "gpt2")
    assert training.learning_rate == 3e-6  # gpt2 is no embedded model
    assert parse_sft([], given=given)[0].max_prompt_length == 60


def test_the_judge_has_another_seed_than_the_reward_model():
    assert parse_reward(["--role", "judge"])[2].seed == parse_reward([])[2].seed + 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--role", "critic"], "role must be reward or judge, got 'critic'"),
        (["--sampling_temperature", "0"], "sampling_temperature must be positive"),
        (["--num_train_entries", "0"], "num_train_entries must be at least 1"),
        (["--push_to_hub"], "push_to_hub needs the repository"),
        (["--sampled_from", "gpt2", "--dataset_name", "trl-lib/tldr-preference"], "only documentation has"),
        (["--resume_from_checkpoint", "x"], "a stage goes on by itself"),
        (["--learning_rat", "1"], "did you mean --learning_rate"),
    ],
)
def test_settings_of_a_reward_model_that_cannot_work_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_reward(words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_prompt_length", "0"], "max_prompt_length must be at least 1"),
        (["--num_train_rows", "0"], "num_train_rows must be at least 1"),
        (["--push_to_hub"], "push_to_hub needs the repository"),
        (["--resume_from_checkpoint", "x"], "a stage goes on by itself"),
    ],
)
def test_settings_of_sft_that_cannot_work_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        parse_sft(words)
