"""ScopePPOConfig: sizes, what excludes what, and what is refused before anything is loaded."""

import warnings

import pytest

from scope_rlhf.rl import AdaptiveKLController
from scope_rlhf.trainers import ScopePPOConfig


def config(folder, **settings):
    return ScopePPOConfig(str(folder), use_cpu=True, report_to="none", **settings)


def test_one_rollout_is_the_product_of_batch_accumulation_and_minibatches(tmp_path):
    args = config(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=3, num_mini_batches=2)
    assert (args.generation_batch_size, args.steps_per_generation, args.num_iterations) == (24, 6, 4)
    assert args.num_generations == args.num_generations_eval == 1
    args = config(tmp_path, per_device_train_batch_size=3, num_generations=3, num_ppo_epochs=2)
    assert (args.generation_batch_size, args.num_generations, args.num_iterations) == (3, 3, 2)


def test_total_episodes_sets_max_steps(tmp_path):
    sizes = {"per_device_train_batch_size": 4, "num_mini_batches": 2, "num_ppo_epochs": 3}
    assert config(tmp_path, total_episodes=40, **sizes).max_steps == 5 * 6
    with pytest.raises(ValueError, match="total_episodes=7 is less than the 8 completions of one rollout"):
        config(tmp_path, total_episodes=7, **sizes)
    with pytest.raises(ValueError, match="total_episodes and max_steps"):
        config(tmp_path, total_episodes=40, max_steps=3)


def test_the_clip_has_one_source_by_any_of_its_names(tmp_path):
    assert config(tmp_path, cliprange=0.1).make_objective().clip_low == 0.1
    assert config(tmp_path, epsilon=0.3).make_objective().clip_high == 0.3
    with pytest.raises(ValueError, match=r"cliprange=0.1 and epsilon=0.2 are one clip"):
        config(tmp_path, cliprange=0.1, epsilon=0.2)
    with pytest.raises(ValueError, match=r"cliprange=0.1 and objective parameter clip_low=0.3"):
        config(tmp_path, cliprange=0.1, objective_kwargs={"clip_low": 0.3})


def test_a_config_of_a_config_is_the_same(tmp_path):
    """transformers and TRL copy configurations by their fields; what __post_init__ has set must be accepted again."""
    first = config(
        tmp_path, per_device_train_batch_size=4, num_mini_batches=2, kl_coef=0.1, critic="mse", cliprange=0.1
    )
    fields = {f: getattr(first, f) for f in ("kl_coef", "beta", "num_iterations", "steps_per_generation", "epsilon")}
    again = config(
        tmp_path, per_device_train_batch_size=4, num_mini_batches=2, critic="mse", cliprange=0.1,
        whiten_advantages=first.whiten_advantages, **fields,
    )  # fmt: skip
    assert again.make_critic() == first.make_critic() and again.make_objective() == first.make_objective()


def test_a_stop_token_is_in_the_record_of_a_run_and_the_tokens_of_the_hub_are_not(tmp_path):
    record = config(tmp_path, stop_token="end", hub_token="secret").to_dict()
    assert record["stop_token"] == "end" and "secret" not in str(record)
    assert config(tmp_path).to_dict()["stop_token"] is None


def test_a_fixed_support_under_scores_that_are_rescaled_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="fixed support, and use_score_scaling moves the scale"):
        config(tmp_path, use_score_scaling=True, **HL)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        config(tmp_path, use_score_scaling=True)


def test_value_clipping_is_on_at_a_fifth_and_goes_off_by_its_parameter(tmp_path):
    assert config(tmp_path).make_critic().cliprange_value == 0.2
    assert config(tmp_path, cliprange_value=0.5).make_critic().cliprange_value == 0.5
    assert config(tmp_path, critic_kwargs='{"cliprange_value": null}').make_critic().cliprange_value is None
    with pytest.raises(ValueError, match=r"cliprange_value=0.4 and cliprange_value=0.3 in critic_kwargs are one clip"):
        config(tmp_path, cliprange_value=0.4, critic_kwargs={"cliprange_value": 0.3})


def test_advantages_are_whitened_unless_the_group_has_scaled_them(tmp_path):
    assert config(tmp_path).whiten_advantages and config(tmp_path).unscaled_advantages() is None
    group = {"advantage_estimator": "group", "num_generations": 2}
    assert config(tmp_path, **group).whiten_advantages is False
    assert config(tmp_path, **group).unscaled_advantages() is None
    assert config(tmp_path, whiten_advantages=False).unscaled_advantages() == "whiten_advantages=False"
    assert config(tmp_path, scale_rewards="none", **group).unscaled_advantages() == "whiten_advantages=False"


def test_the_kl_coefficient_is_adaptive_where_it_has_a_target(tmp_path):
    assert type(config(tmp_path, kl_target=6.0).make_kl_controller()) is AdaptiveKLController


HL = {"critic": "hl_gauss", "critic_kwargs": {"v_min": 0, "v_max": 1}}
REFUSED = [
    ({"kl_coef": -0.1}, "kl_coef must be a finite number >= 0, got -0.1; set --kl_coef"),
    ({"kl_coef": float("nan")}, "kl_coef must be a finite number"),
    ({"vf_coef": -1}, "vf_coef must be"),
    ({"gamma": 1.1}, r"gamma must be a finite number in \[0, 1\], got 1.1"),
    ({"lam": -0.1}, r"lam must be a finite number in \[0, 1\]"),
    ({"num_ppo_epochs": 0}, "num_ppo_epochs must be a whole number >= 1, got 0"),
    ({"num_mini_batches": 1.5}, "num_mini_batches must be a whole number >= 1"),
    ({"num_generations": 0}, "num_generations must be a whole number >= 1"),
    ({"value_warmup_steps": -1}, "value_warmup_steps must be a whole number >= 0"),
    ({"target_kl": 0}, "target_kl must be positive"),
    ({"score_clip": 0}, "score_clip must be positive"),
    ({"missing_eos_penalty": -1}, "missing_eos_penalty must be"),
    ({"missing_eos_penalty": 1, "missing_eos_score": -1}, "two ways to score a cut completion"),
    ({"use_score_norm": True}, "use_score_norm acts with --use_score_scaling"),
    ({"beta": 0.1}, "PPO has it in the reward: set --kl_coef"),
    ({"num_generations": 3}, r"the 8 completions of a rollout are no multiple of num_generations=3; .* 2 or 4\."),
    ({"steps_per_generation": 3, "num_mini_batches": 2}, "nearest valid value: --num_mini_batches 3"),
    ({"generation_batch_size": 16}, "PPO has no generation_batch_size"),
    ({"num_iterations": 2}, "set --num_ppo_epochs"),
    ({"per_device_train_batch_size": 1}, "nearest valid values: --per_device_train_batch_size 2"),
    ({"advantage_estimator": "td"}, "advantage_estimator must be one of gae, rloo, group"),
    ({"advantage_estimator": "rloo"}, "set --num_generations to 2 or more"),
    ({"advantage_estimator": "rloo", "num_generations": 2, "critic": "mse"}, "critic given, but .* has no critic"),
    ({"advantage_estimator": "group", "num_generations": 2, "gamma": 0.9}, "gamma given, but"),
    ({"advantage_estimator": "rloo", "num_generations": 2, "whiten_rewards": True, "vf_coef": 1.0}, "vf_coef, whiten_"),
    ({"critic": "c51", "critic_kwargs": {"v_min": 0, "v_max": 1}}, "with them it is two_hot"),
    ({"critic": "hl_gaus"}, "did you mean hl_gauss?"),
    ({"critic": "hl_gauss"}, "needs v_min and v_max: .*; set --critic and --critic_kwargs"),
    ({"critic": "two_hot", "critic_kwargs": {"v_min": 1, "v_max": 0}}, "v_min must be below v_max"),
    ({"critic": "two_hot", "critic_kwargs": {"v_min": 0, "v_max": 1, "sigma": 2}}, "no parameter 'sigma'"),
    ({"critic_kwargs": "{v_min: 0}"}, "critic_kwargs must be a JSON object"),
    ({"critic_kwargs": [1]}, "critic_kwargs must be a JSON object or a dict"),
    ({**HL, "cliprange_value": 0.2}, "where clipping a value has no meaning"),
    ({**HL, "initial_value": 1.5}, "inside the critic's support"),
    ({"critic_backbone": "other"}, "critic_backbone must be one of shared, adapter, model"),
    ({"critic_backbone": "model"}, "critic_model_name_or_path NAME"),
    ({"critic_model_name_or_path": "x"}, "needs both"),
    ({"critic_backbone": "adapter"}, "--gradient_checkpointing false"),
    ({"stop_token": "a", "stop_token_id": 3}, "stop_token and stop_token_id are one setting"),
    ({"scale_rewards": "none"}, "scale_rewards acts with advantage_estimator='group' only"),
    ({"multi_objective_aggregation": "normalize_then_sum"}, "scores are weighted sums"),
    ({"kl_target": 6.0, "kl_coef": 0.0}, "kl_coef must be positive for the adaptive"),
    ({"nan_reward": "ignore"}, "nan_reward must be error or drop"),
    ({"critic_learning_rate": -1.0}, "critic_learning_rate must be"),
    ({"whiten_advantages": "maybe"}, "whiten_advantages must be true or false, got 'maybe'"),
    ({"max_steps": -5}, "max_steps=-5 trains nothing"),
    ({"load_best_model_at_end": True}, "load_best_model_at_end needs evaluations: set --eval_strategy steps"),
    ({"cliprange": 0.0}, r"cliprange=0.0 must lie in \(0, 1\); set --cliprange"),
    ({"cliprange": 1.0}, r"cliprange=1.0 must lie in \(0, 1\)"),
    ({"cliprange_value": 0.0}, "cliprange_value must be positive, got 0"),
    ({"cliprange_value": -1.0}, "cliprange_value must be a finite number >= 0, got -1.0; set --cliprange_value"),
    ({"critic_path": "/no/critic"}, "critic_path '/no/critic' does not exist; set --critic_path"),
]


@pytest.mark.parametrize(("settings", "words"), REFUSED)
def test_what_cannot_work_is_refused_at_construction_naming_the_setting(tmp_path, settings, words):
    with pytest.raises(ValueError, match=words):
        config(tmp_path, **settings)
