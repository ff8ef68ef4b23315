"""ScopeGRPOConfig: the objective and its clip from one source, and refusals before anything is loaded."""

import pytest

from scope_rlhf.trainers import ScopeGRPOConfig

SMALL = {"per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True, "output_dir": "unused"}


def config(**settings):
    return ScopeGRPOConfig(**{**SMALL, **settings})


def test_objective_kwargs_are_read_from_json_as_on_the_command_line():
    args = config(objective="scope", objective_kwargs='{"alpha": 0.3, "detach_factor": false}')
    assert args.make_objective().alpha == 0.3


def test_the_clip_comes_from_epsilon_unless_objective_kwargs_set_it():
    assert config(epsilon=0.1).make_objective().clip_high == 0.1
    objective = config(epsilon=0.1, epsilon_high=0.3).make_objective()
    assert (objective.clip_low, objective.clip_high) == (0.1, 0.3)
    args = config(objective_kwargs={"clip_low": 0.15})
    assert (args.make_objective().clip_low, args.epsilon, args.epsilon_high) == (0.15, 0.15, 0.2)
    assert config().epsilon == 0.2


def test_a_clip_given_twice_and_differently_is_refused_naming_both():
    with pytest.raises(ValueError, match=r"epsilon.*clip_low"):
        config(epsilon=0.1, objective_kwargs={"clip_low": 0.2})


def test_epsilon_for_an_objective_without_a_clip_is_refused(tmp_path):
    file = tmp_path / "plain.py"
    file.write_text(
        "from dataclasses import dataclass\n"
        "from scope_rlhf.objectives import PolicyLoss\n"
        "@dataclass(frozen=True)\n"
        "class Plain:\n"
        "    def __call__(self, inputs):\n"
        "        return PolicyLoss(-inputs.advantages * inputs.log_probs, {})\n"
    )
    assert config(objective=f"{file}:Plain").epsilon is None
    with pytest.raises(ValueError, match="epsilon"):
        config(objective=f"{file}:Plain", epsilon=0.2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"objective": "scoope"}, ["scoope", "scope"]),
        ({"objective": "scope", "objective_kwargs": {"alhpa": 1.0}}, ["alhpa", "alpha"]),
        ({"objective": "scope", "objective_kwargs": {"alpha": -1.0}}, ["alpha", "-1"]),
        ({"objective_kwargs": "[1]"}, ["objective_kwargs"]),
        ({"loss_type": "cispo"}, ["loss_type", "cispo", "dapo"]),
        ({"delta": 2.0}, ["delta"]),
        ({"top_entropy_quantile": 0.5}, ["top_entropy_quantile"]),
        ({"entropy_coef": 0.1}, ["entropy_coef", "policy_entropy"]),
        ({"off_policy_mask_threshold": 0.5}, ["off_policy_mask_threshold"]),
        ({"top_p": 0.9}, ["top_p", "full vocabulary"]),
        ({"top_k": 50}, ["top_k"]),
        ({"generation_kwargs": {"top_k": 5}}, ["top_k"]),
        ({"repetition_penalty": 1.2}, ["repetition_penalty"]),
        ({"importance_sampling_level": "word"}, ["importance_sampling_level", "word"]),
        ({"num_generations": 3}, ["num_generations", "3"]),
        ({"num_generations": 0}, ["num_generations must be a whole number >= 1"]),
    ],
)
def test_bad_settings_are_refused_by_name(settings, words):
    with pytest.raises(ValueError) as error:
        config(**settings)
    for word in words:
        assert word in str(error.value)


def test_bf16_is_off_on_a_cpu_and_dropout_is_off():
    args = config()
    assert args.bf16 is False
    assert args.disable_dropout is True
