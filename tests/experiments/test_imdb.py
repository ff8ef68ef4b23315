"""What the IMDB experiment refuses before it loads a policy."""

import pytest

from scope_rlhf.experiments import imdb, policy_run


@pytest.fixture(autouse=True)
def nothing_may_load(monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError("a policy was loaded")

    monkeypatch.setattr(policy_run, "load_policy", load)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--critic_backbone", "adapter", "--use_peft", "false"], "needs a LoRA policy"),
        (["--critic_path", "/nonexistent"], "critic_path '/nonexistent' does not exist"),
        (["--critic_path", "."], "holds neither model.safetensors"),
        (
            ["--critic_backbone", "model", "--critic_model_name_or_path", "/nonexistent"],
            "--critic_model_name_or_path='/nonexistent'",
        ),
        (["--reward_model_name_or_path", "/nonexistent"], "--reward_model_name_or_path='/nonexistent'"),
        (["--reward_model_name_or_path", "embedded/foo"], "is no embedded model"),
        (["--judge_model_name_or_path", "/nonexistent"], "--judge_model_name_or_path='/nonexistent'"),
        (["--model_name_or_path", "/nonexistent"], "--model_name_or_path='/nonexistent'"),
        (["--prompt_length", "0"], "need 1 <= min_prompt_length <= prompt_length"),
        (["--min_prompt_length", "20"], "--min_prompt_length 20 and --prompt_length 16"),
        (["--num_train_prompts", "0"], "num_train_prompts must be at least 1"),
        (["--eval_strategy", "steps", "--eval_steps", "2", "--num_validation_prompts", "-3"], "num_validation_prompts"),
        (["--dataset_name", "nofile.csv"], "--dataset_name='nofile.csv' does not exist"),
        (["--stop_token", "two words of it"], "is . tokens of this tokenizer|is .. tokens"),
        (["--cliprange_value", "0.4", "--critic_kwargs", '{"cliprange_value": 0.3}'], "are one clip"),
        (["--total_episodes", "3"], "total_episodes=3 is less than the 128 completions"),
        (["--max_steps", "-5"], "max_steps=-5 trains nothing"),
    ],
)
def test_what_the_flags_or_the_disk_decide_is_refused_before_the_policy_loads(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        imdb.main([*words, "--output_dir", str(tmp_path / "run")], algorithm="ppo")
