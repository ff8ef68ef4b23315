"""The kinds of teacher: a model of its own, an adapter of the student's base, an endpoint; and which are refused."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file

from scope_rlhf.models.reference import head_temperature
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import (
    LORA,
    dense_log_probs,
    disturb,
    loss_of,
    make_distillation,
    plain_gpt2,
    rollout,
    script,
    sft_model,
    weights,
)
from tests.trainers.test_distillation import VERDICTS
from tests.trainers.two_process_script import COMPLETIONS

TEACHER_LORA = LoraConfig(target_modules=["c_attn", "c_fc"], fan_in_fan_out=True, r=8, lora_dropout=0.5)


def save_teacher(folder, model):
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def teacher_adapter(seed=5, config=TEACHER_LORA):
    """The student's base with a trained adapter on it, in evaluation mode."""
    model = get_peft_model(tiny_gpt2(tiny_tokenizer()), config)
    disturb(model, "lora_B", 0.2, seed)
    return model.eval()


def save_adapter(folder, seed=5):
    """The folder of an adapter for the base in the folder beside it."""
    base = save_teacher(folder.parent / "base", tiny_gpt2(tiny_tokenizer()))
    model = teacher_adapter(seed)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(folder)
    return str(folder)


def scored(trainer, monkeypatch):
    """(inputs, log-probs of the trainer's teacher, which completion tokens count) of a left-padded rollout."""
    script(trainer, monkeypatch, COMPLETIONS)
    inputs = rollout(trainer)
    return inputs, trainer.teacher.log_probs(inputs), inputs["completion_mask"].bool()


def gap(found, model, inputs, mask, temperature=1.0):
    return (found.double() - dense_log_probs(model, inputs, temperature))[mask].abs().max()


def test_a_folder_an_adapter_folder_an_instance_and_a_peft_model_are_scored_as_what_they_are(tmp_path, monkeypatch):
    folder = save_teacher(tmp_path / "teacher", tiny_gpt2(tiny_tokenizer(), seed=1))
    adapter = save_adapter(tmp_path / "adapter")
    cases = [
        ({"teacher_model_name_or_path": folder}, plain_gpt2(seed=1)),
        ({"teacher_model": folder}, plain_gpt2(seed=1)),
        ({"teacher_model_name_or_path": adapter}, teacher_adapter()),
        ({"teacher_model": tiny_gpt2(tiny_tokenizer(), seed=1)}, plain_gpt2(seed=1)),
        ({"teacher_model": teacher_adapter()}, teacher_adapter()),
        ({"teacher_model_name_or_path": folder, "teacher_model_init_kwargs": '{"dtype": "float64"}'}, plain_gpt2(1)),
    ]
    for settings, expected in cases:
        trainer = make_distillation(tmp_path / "run", VERDICTS, temperature=0.7, teacher_temperature=1.2, **settings)
        inputs, found, mask = scored(trainer, monkeypatch)
        assert gap(found, expected, inputs, mask, 1.2) < 1e-4, settings
        assert not any(w.requires_grad for w in trainer.teacher.model.parameters()), settings
    assert trainer.teacher.model.dtype == torch.float64


def test_a_teacher_is_scored_without_its_dropout_and_does_not_move(tmp_path, monkeypatch):
    teacher = teacher_adapter()
    trainer = make_distillation(tmp_path, VERDICTS, teacher_model=teacher.train(), max_steps=2)
    before = {name: weight.clone() for name, weight in teacher.named_parameters()}
    inputs, found, _ = scored(trainer, monkeypatch)
    assert torch.equal(found, trainer.teacher.log_probs(inputs))
    trainer.train()
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.named_parameters())


def by_name(folder, **settings):
    return {"teacher_model_name_or_path": save_adapter(folder), "teacher_adapter_name": "teacher", **settings}


def loaded_beside(**settings):
    """A student that comes with two adapters, of which the second is the teacher."""
    model = sft_model(tiny_tokenizer())
    model.add_adapter("teacher", TEACHER_LORA)
    disturb(model, "lora_B.teacher", 0.2, 5)
    return {"model": model, "lora": None, "teacher_adapter_name": "teacher", **settings}


@pytest.mark.parametrize("kind", ["from its folder", "loaded before"])
def test_an_adapter_teacher_is_scored_as_the_merged_model_at_its_own_temperature(tmp_path, monkeypatch, kind):
    """In training mode, where the dropout of its own configuration, .5, must not act."""
    settings = by_name(tmp_path / "adapter") if kind == "from its folder" else loaded_beside()
    trainer = make_distillation(tmp_path, VERDICTS, temperature=0.7, teacher_temperature=1.2, **settings)
    if kind == "from its folder":
        disturb(trainer.model, "lora_B.default")
        merged = teacher_adapter().merge_and_unload()
    else:
        merged = loaded_beside()["model"]
        merged.set_adapter("teacher")
        merged = merged.eval().merge_and_unload(adapter_names=["teacher"])
    inputs, found, mask = scored(trainer, monkeypatch)
    assert all(module.training for module in trainer.model.modules())
    assert gap(found, merged, inputs, mask, 1.2) < 1e-4
    assert gap(inputs["old_per_token_logps"], trainer.model, inputs, mask, 0.7) < 1e-4
    assert gap(trainer._rollout_log_probs(trainer.model, inputs), trainer.model, inputs, mask, 0.7) < 1e-4


def test_an_adapter_teacher_gives_the_gradient_of_the_same_teacher_as_a_second_model(tmp_path, monkeypatch):
    found = []
    for settings in (by_name(tmp_path / "adapter"), {"teacher_model": teacher_adapter()}):
        trainer = make_distillation(tmp_path, VERDICTS, **settings)
        disturb(trainer.model, "lora_B.default")
        inputs, _, _ = scored(trainer, monkeypatch)
        found.append(loss_of(trainer, inputs)[1])
    assert torch.allclose(*found, atol=1e-6) and found[0].norm() > 1e-2


def of_teacher(trainer):
    return {n: w for n, w in trainer.model.named_parameters() if ".teacher." in n}


def test_an_adapter_teacher_makes_no_second_model_never_moves_and_leaves_the_student_trainable(tmp_path):
    trainer = make_distillation(tmp_path / "run", VERDICTS, max_steps=3, **by_name(tmp_path / "adapter"))
    base = {n for n, _ in plain_gpt2().named_parameters()}
    others = [n for n, _ in trainer.model.named_parameters() if "lora_" not in n]
    assert len(others) == len(base) and not hasattr(trainer.teacher, "model")
    assert not any(w.requires_grad for w in of_teacher(trainer).values())
    student, teacher = weights(trainer), {n: w.clone() for n, w in of_teacher(trainer).items()}
    assert len(student) == 4 and teacher
    trainer.train()
    assert trainer.model.active_adapter == "default"
    assert not any(w.requires_grad for w in of_teacher(trainer).values())
    assert all(torch.equal(w, teacher[n]) for n, w in of_teacher(trainer).items())
    now = weights(trainer)
    assert now.keys() == student.keys() and all(not torch.equal(w, student[n]) for n, w in now.items())


def test_the_students_head_keeps_its_temperature_when_the_teachers_is_another_one():
    """Also where the teacher fails."""
    model, ids = plain_gpt2(), torch.tensor([[5, 6, 7, 8]])

    def score():
        return model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs

    def fail_within():
        with head_temperature(model, 2.0):
            assert not torch.allclose(score(), warm, atol=1e-2)
            raise RuntimeError("the teacher failed")

    with head_temperature(model, 1.0):
        inner, warm = model.forward, score()
        with pytest.raises(RuntimeError, match="the teacher failed"):
            fail_within()
        assert model.forward is inner and torch.equal(score(), warm)


@pytest.mark.parametrize("name", ["attn", "h"])
def test_a_name_that_is_also_a_modules_is_refused_because_the_student_would_be_frozen_with_it(tmp_path, name):
    """PEFT looks for names in the names of parameters, and every one of the student's holds `.attn.` and `.h.`."""
    with pytest.raises(ValueError, match=f"teacher_adapter_name='{name}' is the name of a module"):
        make_distillation(tmp_path, VERDICTS, **by_name(tmp_path / "adapter", teacher_adapter_name=name))


def test_the_teachers_adapter_is_not_saved_and_its_own_folder_stays_where_it_lies(tmp_path):
    """The folder of the teacher lies where PEFT would put the adapter of that name."""
    trainer = make_distillation(
        tmp_path, VERDICTS, max_steps=1, save_strategy="steps", save_steps=1, **by_name(tmp_path / "teacher")
    )
    before = load_file(tmp_path / "teacher" / "adapter_model.safetensors")
    trainer.train()
    trainer.save_model(str(tmp_path))
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        saved = load_file(folder / "adapter_model.safetensors")
        assert len(saved) == 4 and not any("teacher" in name for name in saved)
    assert not (tmp_path / "checkpoint-1" / "teacher").exists()
    after = load_file(tmp_path / "teacher" / "adapter_model.safetensors")
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def adapter_of(**changes):
    def make(folder):
        base = tiny_gpt2(tiny_tokenizer())
        base.config.n_layer = changes.get("layers", 2)
        model = get_peft_model(type(base)(base.config), LORA)
        disturb(model, "lora_B", 0.2)
        model.save_pretrained(folder)
        return str(folder)

    return make


@pytest.mark.parametrize("layers", [1, 3])
def test_an_adapter_for_a_base_of_another_depth_is_refused_instead_of_loaded_in_part(tmp_path, layers):
    folder = adapter_of(layers=layers)(tmp_path / "adapter")
    settings = {"teacher_model_name_or_path": folder, "teacher_adapter_name": "teacher"}
    with pytest.raises(ValueError, match="--teacher_model_name_or_path=.*does not fit the student's base model"):
        make_distillation(tmp_path / "run", VERDICTS, **settings)
