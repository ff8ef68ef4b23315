"""Settings that are refused, each with its message, and those that are taken."""

import math
from pathlib import Path

import pytest

from scope_rlhf.control.config import ControlConfig, DQNConfig
from scope_rlhf.control.on_policy_config import A2CConfig, PPOConfig
from scope_rlhf.objectives import PPO

OWN = f"{Path(__file__).parents[1] / 'data' / 'quadratic_penalty.py'}:QuadraticPenalty"
SUPPORT = {"v_min": -10, "v_max": 10}

NEEDS_RATIO = """
from dataclasses import dataclass
from typing import ClassVar
from scope_rlhf.objectives import PolicyLoss

@dataclass(frozen=True)
class NeedsRatio:
    needs_old_log_probs: ClassVar[bool] = True

    def __call__(self, inputs):
        if inputs.resolve_log_ratio() is None:
            raise ValueError("needs old log-probs")
        return PolicyLoss(-inputs.resolve_log_ratio().exp() * inputs.advantages, {})
"""
NEEDS_SCORE = """
from dataclasses import dataclass
from scope_rlhf.objectives import PolicyLoss

@dataclass(frozen=True)
class NeedsScore:
    def __call__(self, inputs):
        if inputs.resolve_log_ratio() is not None:
            raise ValueError("takes no old log-probs")
        return PolicyLoss(-inputs.log_probs * inputs.advantages, {})
"""

COMMON = [
    ({"num_envs": 0}, "num_envs must be a whole number >= 1, got 0; set --num_envs."),
    ({"num_envs": 2.0}, "num_envs must be a whole number >= 1, got 2.0"),
    ({"num_envs": True}, "num_envs must be a whole number >= 1, got True"),
    ({"total_timesteps": 0}, "total_timesteps must be a whole number >= 1, got 0"),
    ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
    ({"learning_rate": 0}, "learning_rate must be a number > 0, got 0; set --learning_rate."),
    ({"learning_rate": math.inf}, "learning_rate must be a number > 0, got inf"),
    ({"learning_rate": "1e-3"}, "learning_rate must be a number > 0, got '1e-3'"),
    ({"lr_scheduler_type": "cosine"}, "lr_scheduler_type must be linear or constant, got 'cosine'"),
    ({"max_grad_norm": -1}, "max_grad_norm must be a number >= 0, got -1"),
    ({"gamma": 1.01}, "gamma must be a number from 0 to 1, got 1.01"),
    ({"gamma": True}, "gamma must be a number from 0 to 1, got True"),
    ({"gamma": math.nan}, "gamma must be a number from 0 to 1, got nan"),
    ({"reward_flip_probability": 1.5}, "reward_flip_probability must be a number from 0 to 1, got 1.5"),
    ({"reward_noise_std": -0.1}, "reward_noise_std must be a number >= 0, got -0.1"),
    ({"repeat_action_probability": 2}, "repeat_action_probability must be a number from 0 to 1, got 2"),
    ({"save_steps": -1}, "save_steps must be a whole number >= 0, got -1"),
    ({"eval_steps": -1}, "eval_steps must be a whole number >= 0, got -1"),
    ({"num_eval_episodes": -1}, "num_eval_episodes must be a whole number >= 0, got -1"),
    ({"eval_seed": -1}, "eval_seed must be a whole number >= 0, got -1"),
    ({"logging_steps": 0}, "logging_steps must be a whole number >= 1, got 0"),
    ({"save_total_limit": 0}, "save_total_limit must be a whole number >= 1, got 0"),
    ({"num_threads": 0}, "num_threads must be a whole number >= 1, got 0"),
    ({"hidden_sizes": []}, "hidden_sizes must be widths >= 1, got []"),
    ({"hidden_sizes": [64, "x"]}, "hidden_sizes must be widths >= 1, got [64, 'x']"),
    ({"hidden_sizes": [64, None]}, "hidden_sizes must be widths >= 1, got [64, None]"),
    ({"hidden_sizes": [64.5]}, "hidden_sizes must be widths >= 1, got [64.5]"),
    ({"output_dir": " "}, "output_dir is empty; set --output_dir to a folder, or leave it out."),
    ({"resume_from_checkpoint": ""}, "resume_from_checkpoint is empty; set --resume_from_checkpoint to a folder"),
    ({"resume": True}, "resume needs the run folder to go on with; set --output_dir."),
    ({"hidden_sizes": [64, 0]}, "hidden_sizes must be widths >= 1, got [64, 0]"),
    ({"video": "avi"}, "video must be mp4 or gif, got 'avi'"),
    ({"video": "mp4", "num_eval_episodes": 0}, "video='mp4' films an evaluation, and num_eval_episodes is 0"),
    ({"eval_steps": 5, "num_eval_episodes": 0}, "eval_steps=5 with num_eval_episodes=0 evaluates nothing"),
    ({"report_to": ["mlflow"]}, "report_to 'mlflow' is unknown; valid: tensorboard, wandb, trackio, none."),
    ({"resume": True, "resume_from_checkpoint": "x"}, "resume and resume_from_checkpoint are two ways to go on"),
    ({"env_kwargs": "{length: 3}"}, "env_kwargs must be a JSON object such as '{\"name\": 1}', got '{length: 3}'"),
    ({"env_kwargs": "[1, 2]"}, "got '[1, 2]'; set --env_kwargs"),
    ({"critic_kwargs": "0.5"}, "got '0.5'; set --critic_kwargs"),
    ({"critic": "l1"}, "l1"),
    ({"critic": "hl_gauss"}, "v_min"),
    ({"critic": "mse", "critic_kwargs": {"v_max": 3}}, "v_max"),
]
ON_POLICY = [
    ({"num_steps": 0}, "num_steps must be a whole number >= 1, got 0"),
    ({"lam": 1.5}, "lam must be a number from 0 to 1, got 1.5"),
    ({"vf_coef": -0.5}, "vf_coef must be a number >= 0, got -0.5"),
    ({"ent_coef": -0.01}, "ent_coef must be a number >= 0, got -0.01"),
    ({"bins": 1}, "bins must be a whole number >= 2, got 1"),
    ({"critic": "c51", "critic_kwargs": SUPPORT}, "critic 'c51' needs the next state's distribution"),
    ({"num_envs": 8, "num_steps": 100, "total_timesteps": 799}, "total_timesteps=799 is less than one rollout"),
    ({"ent_coef": 0.01, "objective": "policy_entropy"}, "with objective policy_entropy counts the entropy twice"),
    ({"objective": "scoop"}, "unknown objective 'scoop' (did you mean 'scope'?)"),
    ({"objective": "scope", "objective_kwargs": {"alhpa": 1}}, "objective 'scope' has no parameter 'alhpa'"),
    (
        {"objective_kwargs": "alpha=1"},
        "objective_kwargs must be a JSON object such as '{\"name\": 1}', got 'alpha=1'",
    ),
]
PPO_ONLY = [
    ({"num_ppo_epochs": 0}, "num_ppo_epochs must be a whole number >= 1, got 0"),
    ({"num_mini_batches": 0}, "num_mini_batches must be a whole number >= 1, got 0"),
    ({"num_envs": 2, "num_steps": 4, "num_mini_batches": 9}, "num_mini_batches=9 is more than the 2 x 4 steps"),
    ({"clip_scheduler_type": "cosine"}, "clip_scheduler_type must be linear or constant, got 'cosine'"),
    (
        {"clip_scheduler_type": "linear", "objective": OWN},
        "clip_scheduler_type=linear needs an objective with clip_low",
    ),
    ({"whiten_advantages": "yes"}, "whiten_advantages must be minibatch or rollout or no, got 'yes'"),
    ({"adam_epsilon": 0}, "adam_epsilon must be a number > 0, got 0"),
    ({"target_kl": 0}, "target_kl must be a number > 0, got 0"),
    ({"cliprange_value": 0}, "cliprange_value must be a number > 0, got 0"),
    ({"cliprange_value": 0.2, "critic": "two_hot", "critic_kwargs": SUPPORT}, "cross-entropy has no clip of values"),
    (
        {"cliprange": 0.1, "objective_kwargs": {"clip_low": 0.2}},
        "cliprange=0.1 and objective parameter clip_low=0.2 are two values for one clip; set one of them",
    ),
    ({"cliprange": 0.1, "objective": OWN}, "cliprange=0.1 given, but objective"),
]
A2C_ONLY = [
    ({"whiten_advantages": "minibatch"}, "whiten_advantages must be rollout or no, got 'minibatch'"),
    ({"optimizer": "sgd"}, "optimizer must be rmsprop or adam, got 'sgd'"),
    ({"optimizer_epsilon": 0}, "optimizer_epsilon must be a number > 0, got 0"),
]
DQN_ONLY = [
    ({"buffer_size": 0}, "buffer_size must be a whole number >= 1, got 0"),
    ({"train_frequency": 0}, "train_frequency must be a whole number >= 1, got 0"),
    ({"target_update_frequency": 0}, "target_update_frequency must be a whole number >= 1, got 0"),
    ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
    ({"learning_starts": -1}, "learning_starts must be a whole number >= 0, got -1"),
    ({"exploration_steps": -1}, "exploration_steps must be a whole number >= 0, got -1"),
    ({"exploration_initial": 1.1}, "exploration_initial must be a number from 0 to 1, got 1.1"),
    ({"exploration_final": -0.1}, "exploration_final must be a number from 0 to 1, got -0.1"),
    ({"eval_epsilon": 2}, "eval_epsilon must be a number from 0 to 1, got 2"),
    ({"adam_epsilon": 0}, "adam_epsilon must be a number > 0, got 0"),
    ({"buffer_size": 16}, "buffer_size=16 is less than batch_size=32"),
    ({"learning_starts": 500, "total_timesteps": 500}, "learning_starts=500 leaves no update"),
    ({"normalize_rewards": True}, "move while a replayed transition does not; leave them out with DQN"),
    ({"normalize_observations": True}, "move while a replayed transition does not; leave them out with DQN"),
    ({"eval_sampling": True}, "eval_sampling is for policies; DQN has --eval_epsilon."),
    ({"critic": "c51"}, "v_min"),
]
TABLE = [
    *((kind, *row) for kind in (PPOConfig, A2CConfig, DQNConfig) for row in COMMON),
    *((kind, *row) for kind in (PPOConfig, A2CConfig) for row in ON_POLICY),
    *((PPOConfig, *row) for row in PPO_ONLY),
    *((A2CConfig, *row) for row in A2C_ONLY),
    *((DQNConfig, *row) for row in DQN_ONLY),
]


@pytest.mark.parametrize(("kind", "given", "message"), TABLE, ids=lambda x: getattr(x, "__name__", None))
def test_a_bad_setting_is_refused_with_its_name_and_its_value(kind, given, message):
    kind()  # without it all is well
    with pytest.raises(ValueError) as error:
        kind(**given)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("kind", "text", "name", "message"),
    [(A2CConfig, NEEDS_RATIO, "NeedsRatio", "old log-probs"), (PPOConfig, NEEDS_SCORE, "NeedsScore", "old log-probs")],
)
def test_an_objective_without_the_form_of_the_algorithm_is_refused(tmp_path, kind, text, name, message):
    path = tmp_path / "objective.py"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        kind(objective=f"{path}:{name}")
    other = PPOConfig if kind is A2CConfig else A2CConfig
    assert type(other(objective=f"{path}:{name}").make_objective()).__name__ == name


@pytest.mark.parametrize("kind", [PPOConfig, A2CConfig])
def test_an_objective_of_ones_own_is_taken_with_its_parameters(kind):
    config = kind(objective=OWN, objective_kwargs='{"penalty_coef": 3.0}')
    objective = config.make_objective()
    assert type(objective).__name__ == "QuadraticPenalty" and objective.penalty_coef == 3.0


@pytest.mark.parametrize("kind", [PPOConfig, A2CConfig])
@pytest.mark.parametrize("objective", ["ppo", "scope", "focal", "symmetric", "policy_entropy"])
def test_every_objective_of_the_catalogue_is_taken(kind, objective):
    assert type(kind(objective=objective).make_objective()).__name__.lower() == objective.replace("_", "")


def test_json_text_and_dictionaries_are_the_same_settings():
    one = PPOConfig(env_kwargs='{"length": 3}', objective_kwargs='{"clip_low": 0.3}')
    assert one.env_kwargs == {"length": 3} and one.make_objective() == PPO(clip_low=0.3)
    assert PPOConfig(env_kwargs={"length": 3}, objective_kwargs={"clip_low": 0.3}) == one


def test_cliprange_is_both_clips_of_the_objective_and_without_it_the_objectives_own_stays():
    assert PPOConfig(cliprange=0.1).make_objective() == PPO(clip_low=0.1, clip_high=0.1)
    assert PPOConfig().make_objective() == PPO()
    assert PPOConfig(cliprange=0.1, objective_kwargs={"clip_low": 0.1}).make_objective() == PPO(
        clip_low=0.1, clip_high=0.1
    )


def test_a_value_clip_given_twice_is_refused_and_not_overwritten():
    with pytest.raises(ValueError, match=r"cliprange_value=0.2 and 0.5 in critic_kwargs are two values for one clip"):
        PPOConfig(cliprange_value=0.2, critic_kwargs={"cliprange_value": 0.5})
    for given in (
        {"cliprange_value": 0.5},
        {"critic_kwargs": {"cliprange_value": 0.5}},
        {"cliprange_value": 0.5, "critic_kwargs": {"cliprange_value": 0.5}},
    ):
        assert PPOConfig(**given).make_critic().cliprange_value == 0.5


def test_the_critic_has_its_support_and_only_dqn_takes_c51():
    for name in ("hl_gauss", "two_hot"):
        critic = PPOConfig(critic=name, critic_kwargs='{"v_min": -10, "v_max": 10, "bins": 51}').make_critic()
        assert critic.output_size == 51
    assert DQNConfig(critic="c51", critic_kwargs={**SUPPORT, "bins": 21}).make_critic().output_size == 21


def test_the_number_of_updates_is_that_of_whole_rollouts():
    assert PPOConfig(num_envs=8, num_steps=128, total_timesteps=10_000).num_updates == 9
    assert A2CConfig(num_envs=16, num_steps=5, total_timesteps=80).num_updates == 1


def test_report_to_none_is_no_reporter_and_configs_share_no_lists():
    assert PPOConfig(report_to=["none", "wandb"]).report_to == ["wandb"]
    one, other = PPOConfig(), PPOConfig()
    one.hidden_sizes.append(3)
    assert other.hidden_sizes == [64, 64]


def test_every_option_has_a_help_text():
    from dataclasses import fields

    for kind in (ControlConfig, PPOConfig, A2CConfig, DQNConfig):
        for option in fields(kind):
            assert option.metadata["help"].endswith((".", "...")), option.name
