"""Rows, settings and what is refused before anything is trained."""

from pathlib import Path

import pytest

from scope_rlhf.experiments.distillation_arguments import (
    ABLATIONS,
    DEFAULT_ROWS,
    parse_distillation,
    row_flags,
    settings_of,
)

CONFIGS = Path(__file__).parents[2] / "recipes" / "configs"


def test_the_embedded_table_has_the_controls_and_the_full_one_the_papers_ablations_over_five_seeds():
    script = parse_distillation([])[3][0]
    assert (tuple(script.methods), script.seeds) == (DEFAULT_ROWS, 1)
    full = parse_distillation(["--full_table"])[3][0]
    assert (tuple(full.methods), full.seeds) == ((*DEFAULT_ROWS, *ABLATIONS), 5)
    # Facts: no weights, student only, teacher only, each reversed, tau .5 and 2 (1 is `scope`).
    assert len(ABLATIONS) == 7


def test_every_row_of_the_full_table_has_the_same_number_of_completions_and_updates():
    sizes, kinds = set(), []
    for row in (*DEFAULT_ROWS, *ABLATIONS):
        _, _, training = settings_of([], {}, None, row, 3)
        sizes.add((training.generation_batch_size, training.max_steps, training.seed))
        kinds.append((training.mode, training.num_generations, training.signs(), training.tau))
    assert len(sizes) == 1
    assert kinds[:2] == [("opd", 8, (0, 0), 1.0), ("opd", 1, (0, 0), 1.0)]
    assert kinds[3] == ("dual_path", 8, (1, 1), 1.0)
    assert [kind[2] for kind in kinds[4:9]] == [(0, 0), (1, 0), (0, 1), (-1, 1), (1, -1)]
    assert [kind[3] for kind in kinds[9:]] == [0.5, 2.0]


def test_a_row_is_a_method_with_settings():
    assert row_flags("scope  tau=0.5 weights=student") == [
        "--mode",
        "dual_path",
        "--tau",
        "0.5",
        "--weights",
        "student",
    ]
    assert row_flags("grpo") == []


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--methods", "scop"], "did you mean scope"),
        (["--methods", "scope tau"], "must be setting=value"),
        (["--methods", "scope seed=3"], "other than seed"),
        (["--methods", "scope taau=3"], "did you mean tau"),
        (["--methods", "scope tau=0"], "row 'scope tau=0': tau must be a positive number"),
        (["--methods", "opd tau=2"], "row 'opd tau=2': tau given, but mode='opd'"),
        (["--methods", "scope num_generations=1"], "in a group of one every weight is 1"),
        (["--k", "9"], "k must lie between 1 and the 8"),
        (["--seeds", "0"], "seeds must be at least 1"),
        (["--teacher_model_name_or_path", "x"], "student and teacher belong together"),
        (["--model_name_or_path", "x"], "student and teacher belong together"),
        (["--dataset_name", "zwhe99/DeepMath-103K"], "give --model_name_or_path and --teacher_model_name_or_path"),
        (["--eval_temperature", "0"], "eval_temperature must be positive"),
        (["--hub_model_id", "me/x"], "a table has no model to push"),
        (["--tow", "1"], "--tow"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_trained(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_distillation(argv)


@pytest.mark.parametrize(
    ("name", "student", "teacher"),
    [
        ("distill_qwen3_1.7b", "Qwen/Qwen3-1.7B-Base", "Qwen/Qwen3-8B"),
        ("distill_r1_1.5b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "Skywork/Skywork-OR1-7B"),
    ],
)
def test_the_files_of_the_published_pairs_have_the_settings_of_the_paper(name, student, teacher):
    # bf16 and vLLM are not on every machine that runs this test.
    flags = ["--config", str(CONFIGS / f"{name}.yaml"), "--use_vllm", "false", "--bf16", "false"]
    script, policy, training = parse_distillation(flags)[3]
    assert (policy.model_name_or_path, training.teacher_model_name_or_path) == (student, teacher)
    assert (training.num_generations, training.tau, training.temperature) == (8, 1.0, 0.6)
    assert (training.learning_rate, training.weight_decay) == (5e-5, 0.01)
    assert training.lr_scheduler_type == "constant" and training.num_iterations == 1
    # 8 processes: 256 prompts of 8 completions.
    assert 8 * training.per_device_train_batch_size * training.gradient_accumulation_steps == 256 * 8
    assert script.dataset_name == "zwhe99/DeepMath-103K" and script.verifier == "math_answer"
    assert name in (CONFIGS / f"{name}.yaml").read_text().split("#     accelerate launch")[1].splitlines()[0]
