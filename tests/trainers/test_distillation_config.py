"""DualPathDistillationConfig, and what the trainer refuses at construction: each names the setting."""

import json
import math

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from scope_rlhf import hub
from scope_rlhf.trainers import DualPathDistillationConfig, DualPathDistillationTrainer, ScopeGRPOConfig
from tests.tiny import prompt_dataset, tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import make_distillation, script, sft_model
from tests.trainers.test_distillation import VERDICTS

SMALL = {"per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True, "output_dir": "unused"}
URL = "http://127.0.0.1:8000/v1"


def config(**settings):
    return DualPathDistillationConfig(**{**SMALL, **settings})


def test_the_defaults_are_those_of_the_method():
    args = config()
    assert (args.mode, args.weights, args.tau, args.normalization, args.reduction) == (
        "dual_path", "both", 1.0, "mean", "token_mean",
    )  # fmt: skip
    assert (args.beta, args.num_generations, args.num_iterations, args.loss_type) == (0.0, 8, 1, "dapo")
    assert (args.signs(), config(mode="opd").weights, config(mode="opd").signs()) == ((1, 1), "none", (0, 0))


def test_eq6_sums_weights_to_one_unless_it_is_told_otherwise():
    assert config(reduction="eq6").normalization == "sum"
    assert config(reduction="eq6", normalization="mean").normalization == "mean"


@pytest.mark.parametrize(
    ("weights", "reverse", "signs"),
    [
        (None, "none", (1, 1)), ("student", "none", (1, 0)), ("teacher", "none", (0, 1)), ("none", "none", (0, 0)),
        (None, "student", (-1, 1)), ("both", "teacher", (1, -1)), ("both", "both", (-1, -1)),
        ("student", "student", (-1, 0)), ("teacher", "teacher", (0, -1)),
    ],
)  # fmt: skip
def test_weights_and_their_reversal_are_signs(weights, reverse, signs):
    assert config(weights=weights, reverse_weights=reverse).signs() == signs


@pytest.mark.parametrize("settings", [{"mode": "opd"}, {"weights": "none"}, {"mode": "opd", "weights": "none"}])
def test_one_completion_for_a_prompt_is_for_what_has_no_weights(settings):
    args = config(num_generations=1, **settings)
    assert (args.num_generations, args.num_generations_eval, args.generation_batch_size) == (1, 1, 8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "scope"}, "mode must be one of dual_path, opd, got 'scope'; set --mode"),
        ({"weights": "all"}, "weights must be one of both, student, teacher, none, got 'all'; set --weights"),
        ({"reverse_weights": "yes"}, "reverse_weights must be one of .*'yes'; set --reverse_weights"),
        ({"reduction": "dapo"}, "reduction must be one of token_mean, .* eq6, got 'dapo'; set --reduction"),
        ({"normalization": "max"}, "normalization must be one of mean, sum, got 'max'; set --normalization"),
        ({"tau": 0}, "tau must be a positive number, got 0; set --tau"),
        ({"tau": -1.0}, "tau must be a positive number, got -1.0"),
        ({"tau": math.nan}, "tau must be a positive number, got nan"),
        ({"tau": "1"}, "tau must be a positive number, got '1'"),
        ({"correct_threshold": math.nan}, "correct_threshold must be a number, got nan; set --correct_threshold"),
        ({"correct_threshold": True}, "correct_threshold must be a number, got True"),
        ({"mode": "opd", "tau": 0.5, "weights": "both"}, "weights, tau given, but mode='opd' has no weights"),
        ({"mode": "opd", "normalization": "mean"}, "normalization given, but mode='opd' has no weights"),
        ({"mode": "opd", "reverse_weights": "student"}, "reverse_weights given, but mode='opd' has no weights"),
        ({"mode": "opd", "correct_threshold": "x"}, "correct_threshold must be a number, got 'x'"),
        ({"weights": "student", "reverse_weights": "teacher"}, "set --weights both or teacher"),
        ({"weights": "none", "reverse_weights": "both"}, "reverse_weights='both' reverses weights that weights='none'"),
        ({"weights": "none", "tau": 0.5}, "tau=0.5 is the temperature of the weights, which weights='none' leaves out"),
        ({"num_generations": 1}, "num_generations=1 .* --num_generations to 2 or more, --weights none, or --mode opd"),
        ({"num_generations": 1, "weights": "teacher"}, "num_generations=1 with weights='teacher'"),
        ({"scale_rewards": "none"}, "scale_rewards shape the advantages of GRPO.*--scale_rewards out"),
        ({"multi_objective_aggregation": "normalize_then_sum"}, "Leave --multi_objective_aggregation out"),
        ({"loss_type": "dr_grpo"}, "loss_type='dr_grpo' is the reduction of GRPO; here it is --reduction fixed_hor"),
        ({"loss_type": "grpo"}, "here it is --reduction sequence_mean"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be positive, got 0.0; set --teacher_temperature"),
        ({"teacher_temperature": math.inf}, "teacher_temperature must be positive, got inf"),
        ({"teacher_api": "echo"}, "teacher_api are for a teacher behind --teacher_base_url"),
        ({"teacher_cache": False, "teacher_retries": 1}, "teacher_retries, teacher_cache are for a teacher behind"),
        ({"teacher_base_url": URL}, "needs the model's name there: set --teacher_model_name_or_path"),
        (
            {"teacher_base_url": URL, "teacher_model_name_or_path": "x", "teacher_adapter_name": "y"},
            "teacher_adapter_name are for a teacher on this machine, not behind teacher_base_url",
        ),
        (
            {"teacher_adapter_name": "x", "teacher_model_init_kwargs": {"dtype": "float32"}},
            "teacher_model_init_kwargs do not go with teacher_adapter_name",
        ),
        ({"teacher_model_revision": "v1"}, "teacher_model_revision are for a teacher that is loaded: set"),
        ({"teacher_model_name_or_path": "x", "teacher_model_init_kwargs": "{"}, "teacher_model_init_kwargs"),
    ],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        config(**settings)


def test_an_endpoint_has_the_temperature_of_the_rollout_unless_the_teacher_has_its_own():
    settings = {"teacher_base_url": URL, "teacher_model_name_or_path": "big", "temperature": 0.6}
    assert config(**settings).teacher_endpoint().temperature == 0.6
    assert config(teacher_temperature=1.0, **settings).teacher_endpoint().temperature == 1.0
    assert config().teacher_endpoint() is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher_model": None}, "there is no teacher: give exactly one of teacher_model .*--teacher_base_url"),
        ({"teacher_model": "/no/such/folder"}, "--teacher_model_name_or_path='/no/such/folder' does not"),
        ({"teacher_model": "gpt2", "teacher_model_name_or_path": "gpt2-xl"}, "'gpt2-xl' name two teachers"),
        (
            {"teacher_model": 1, "teacher_model_name_or_path": "gpt2"},
            "teacher_model and teacher_model_name_or_path name several teachers",
        ),
        ({"teacher_model": 1, "teacher_adapter_name": "a"}, "teacher_model and teacher_adapter_name name several"),
        ({"teacher_model_name_or_path": "/no/such/folder"}, "--teacher_model_name_or_path='/no/such/folder' does not"),
        ({"teacher_adapter_name": "default"}, "'default' is the adapter that is trained; the teacher is another one"),
        ({"teacher_adapter_name": "big"}, "the student has no adapter teacher_adapter_name='big'; its adapters: defau"),
        (
            {"teacher_adapter_name": "big", "lora": None},
            r"adapter of the student's model, but the student has none: train it with LoRA \(--use_peft\)",
        ),
        (
            {"mode": "dual_path", "verdicts": None},
            "mode='dual_path' needs a verifier: give reward_funcs, or set --mode",
        ),
        ({"verdicts": lambda prompts, **kwargs: [1.0]}, "returned 1 values for 2 completions"),
        ({"verdicts": lambda prompts, **kwargs: [math.nan] * len(prompts)}, "returned nan for row 0"),
    ],
)
def test_a_teacher_or_a_verifier_that_does_not_serve_is_refused(tmp_path, settings, message):
    settings = {"verdicts": VERDICTS, **settings}
    with pytest.raises(ValueError, match=message):
        make_distillation(tmp_path, **settings)


def test_a_name_that_the_hub_cannot_give_is_one_error_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "hub_reachable", lambda timeout=3.0: False)
    for settings in ({}, {"teacher_adapter_name": "teacher"}):
        with pytest.raises(ValueError, match="--teacher_model_name_or_path='no-such/teacher'"):
            make_distillation(tmp_path, VERDICTS, teacher_model_name_or_path="no-such/teacher", **settings)


def test_the_student_or_its_base_is_no_teacher(tmp_path):
    model = tiny_gpt2(tiny_tokenizer())
    with pytest.raises(ValueError, match="teacher_model is the student itself; give a model of its own"):
        make_distillation(tmp_path, VERDICTS, model=model, teacher_model=model)
    student = sft_model(tiny_tokenizer())
    with pytest.raises(ValueError, match="teacher_model has a fused head .* already; give a model of its own"):
        make_distillation(tmp_path, VERDICTS, model=student, lora=None, teacher_model=student.get_base_model())


def with_two_tokens_swapped():
    tokenizer = tiny_tokenizer()
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    words = state["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    names = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)), **names)


def test_a_teacher_with_another_tokenizer_is_refused_also_where_the_size_is_the_same(tmp_path):
    other = with_two_tokens_swapped()
    assert len(other) == len(tiny_tokenizer())
    message = r"the teacher has another tokenizer: token '[ab]' is \d+ for the student and is \d+ there"
    with pytest.raises(ValueError, match=message):
        make_distillation(tmp_path, VERDICTS, teacher_model=tiny_gpt2(other, seed=1), teacher_processing_class=other)
    folder = tmp_path / "teacher"
    tiny_gpt2(other, seed=1).save_pretrained(folder)
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match=message):
        make_distillation(tmp_path / "run", VERDICTS, teacher_model_name_or_path=str(folder))


def with_rows(rows, seed=1):
    """A tiny GPT-2 with so many rows in its embedding and head."""
    model = tiny_gpt2(tiny_tokenizer(), seed=seed)
    model.resize_token_embeddings(rows)
    return model


def test_a_teacher_with_a_smaller_vocabulary_is_refused_and_a_padded_one_is_not(tmp_path):
    size = len(tiny_tokenizer())
    with pytest.raises(ValueError, match=f"the teacher knows {size - 1} tokens, the student's tokenizer has {size}"):
        make_distillation(tmp_path, VERDICTS, teacher_model=with_rows(size - 1))
    make_distillation(tmp_path, VERDICTS, teacher_model=with_rows(size + 12), max_steps=1).train()


@pytest.mark.parametrize("masked", [False, True])
def test_a_sampled_token_beyond_the_teachers_vocabulary_stops_the_run_before_the_update(tmp_path, monkeypatch, masked):
    """The student's head is padded beyond its tokenizer, and the teacher's is not; masked: in a truncated completion,
    which the teacher would read all the same.
    """
    size = len(tiny_tokenizer())
    trainer = make_distillation(
        tmp_path, VERDICTS, model=with_rows(size + 12, seed=0), max_steps=1, mask_truncated_completions=masked
    )
    script(trainer, monkeypatch, [[5, 6, size + 3, 9]] * 8)
    with pytest.raises(ValueError, match=f"the student sampled token {size + 3}, and the teacher knows {size} tokens"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_args_of_the_parent_class_are_refused(tmp_path):
    with pytest.raises(ValueError, match="must be a DualPathDistillationConfig, got ScopeGRPOConfig"):
        DualPathDistillationTrainer(
            None, None, ScopeGRPOConfig(str(tmp_path), use_cpu=True), train_dataset=prompt_dataset()
        )


def test_an_empty_list_of_verifiers_is_none(tmp_path):
    with pytest.raises(ValueError, match="mode='dual_path' needs a verifier"):
        DualPathDistillationTrainer(None, [], config(output_dir=str(tmp_path)), train_dataset=prompt_dataset())
