"""Where the teacher of a distillation scores completions: a model here, an adapter of the student, an endpoint."""

from pathlib import Path
from typing import Any, Protocol

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase
from trl.trainer.utils import use_adapter

from scope_rlhf.models.embedded import resolve_model_path
from scope_rlhf.models.loading import find_model, is_adapter, load_frozen
from scope_rlhf.models.reference import head_temperature, prepare_reference
from scope_rlhf.trainers.distillation_config import DualPathDistillationConfig
from scope_rlhf.trainers.remote_teacher import RemoteTeacher

SETTING = "--teacher_model_name_or_path"


class Teacher(Protocol):
    """log_probs(rollout) -> log p_T of the completions' tokens [B, T], what stands at masked ones means nothing."""

    def log_probs(self, rollout: dict[str, Tensor]) -> Tensor: ...


class ModelTeacher:
    """A model of its own, frozen, with a log-prob head at the teacher's temperature."""

    def __init__(self, trainer: Any, model: nn.Module, temperature: float):
        self.trainer = trainer
        self.model = prepare_reference(
            model, trainer.accelerator, temperature, trainer.args.cast_lm_head_to_fp32, "teacher_model",
            trainer.args.head_impl,
        )  # fmt: skip

    def log_probs(self, rollout: dict[str, Tensor]) -> Tensor:
        return self.trainer._rollout_log_probs(self.model, rollout)


class AdapterTeacher:
    """Another adapter on the student's base: no second model."""

    def __init__(self, trainer: Any, name: str, path: str | None, temperature: float):
        self.trainer, self.name, self.temperature = trainer, name, temperature
        model = trainer.model
        if not isinstance(model, PeftModel):
            raise ValueError(
                f"teacher_adapter_name={name!r} is an adapter of the student's model, but the student has none: train "
                "it with LoRA (--use_peft), or give the teacher by --teacher_model_name_or_path."
            )
        if name == model.active_adapter:
            raise ValueError(
                f"teacher_adapter_name={name!r} is the adapter that is trained; the teacher is another one."
            )
        if path is not None:
            _load_adapter(model, name, path)
        elif name not in model.peft_config:
            raise ValueError(
                f"the student has no adapter teacher_adapter_name={name!r}; its adapters: "
                f"{', '.join(model.peft_config)}. Set --teacher_adapter_name, or the adapter's folder by {SETTING}."
            )
        model.set_adapter(model.active_adapter)  # which also freezes the others

    def log_probs(self, rollout: dict[str, Tensor]) -> Tensor:
        model = self.trainer.accelerator.unwrap_model(self.trainer.model)
        base, args = model.get_base_model(), self.trainer.args
        head = head_temperature(base, self.temperature, args.cast_lm_head_to_fp32, args.head_impl)
        base.eval()  # an adapter from a folder comes with its own dropout, after the parent's turn at it
        try:
            with use_adapter(model, self.name), head:
                return self.trainer._rollout_log_probs(self.trainer.model, rollout)
        finally:
            base.train(model.training)


class EndpointTeacher:
    """A model behind an OpenAI-compatible endpoint; each process sends the token ids of its own completions."""

    def __init__(self, trainer: Any, remote: RemoteTeacher):
        self.trainer, self.remote = trainer, remote

    def log_probs(self, rollout: dict[str, Tensor]) -> Tensor:
        completions, masks = rollout["completion_ids"], rollout["completion_mask"].bool()
        prompts, prompt_masks = rollout["prompt_ids"], rollout["prompt_mask"].bool()
        sequences = [
            prompt[attended].tolist() + completion[mask].tolist()
            for prompt, attended, completion, mask in zip(prompts, prompt_masks, completions, masks, strict=True)
        ]
        result = torch.zeros(masks.shape)
        for row, found in enumerate(self.remote.log_probs(sequences, prompt_masks.sum(dim=1).tolist())):
            result[row, masks[row].cpu()] = torch.tensor(found, dtype=torch.float32)
        return result.to(completions.device)


def find_teacher(
    args: DualPathDistillationConfig, model: Any, tokenizer: PreTrainedTokenizerBase | None, given: Any
) -> tuple[nn.Module | None, PreTrainedTokenizerBase | None]:
    """(teacher model, its tokenizer) of a teacher on this machine, None for another kind, before the trainer is built.

    model: the student's. given: teacher_model of the trainer. ValueError for none, for two, and for the student itself.
    """
    settings = {
        "teacher_model": given, "teacher_base_url": args.teacher_base_url,
        "teacher_adapter_name": args.teacher_adapter_name,
    }  # fmt: skip
    named = [name for name, value in settings.items() if value is not None]
    if args.teacher_model_name_or_path is not None and named in ([], ["teacher_model"]):
        named.append("teacher_model_name_or_path")
    if len(named) != 1:
        said = f"{' and '.join(named)} name several teachers" if named else "there is no teacher"
        raise ValueError(
            f"{said}: give exactly one of teacher_model (an instance), --teacher_model_name_or_path, "
            "--teacher_adapter_name and --teacher_base_url."
        )
    if given is not None:
        if given is model:
            raise ValueError("teacher_model is the student itself; give a model of its own.")
        return given, tokenizer
    if named == ["teacher_model_name_or_path"]:
        kwargs: dict[str, Any] = dict(args._dict_of("teacher_model_init_kwargs") or {})
        kwargs |= {"revision": args.teacher_model_revision} if args.teacher_model_revision else {}
        kwargs |= {"trust_remote_code": True} if args.trust_remote_code else {}
        teacher, own = load_frozen(str(args.teacher_model_name_or_path), SETTING, **kwargs)
        return teacher, tokenizer or own
    if args.teacher_adapter_name is not None and args.teacher_model_name_or_path is not None:
        find_model(args.teacher_model_name_or_path, SETTING)
    return None, tokenizer


def vocabulary_size(teacher: Any) -> int | None:
    """Tokens of a teacher on this machine; None without one."""
    return None if teacher is None else teacher.config.get_text_config().vocab_size


def check_vocabulary(
    student: PreTrainedTokenizerBase, teacher: nn.Module | None, tokenizer: PreTrainedTokenizerBase | None
) -> None:
    """ValueError where the teacher would read the student's token ids as other tokens, or not know some of them."""
    if tokenizer is not None:
        ours, theirs = student.get_vocab(), tokenizer.get_vocab()
        other = next((token for token, number in ours.items() if theirs.get(token) != number), None)
        if other is not None:
            where = f"is {theirs[other]} there" if other in theirs else "is not there"
            raise ValueError(
                f"the teacher has another tokenizer: token {other!r} is {ours[other]} for the student and {where}. "
                "Completions go to the teacher as token ids, so both need one vocabulary; set "
                f"{SETTING} to a model of the student's family."
            )
    size = vocabulary_size(teacher)
    if size is not None and size < len(student):
        raise ValueError(
            f"the teacher knows {size} tokens, the student's tokenizer has {len(student)}: the teacher could not score "
            f"what the student writes; set {SETTING}."
        )


def _load_adapter(model: PeftModel, name: str, path: str) -> None:
    """Load the adapter of a folder beside the student's; ValueError for one that belongs to another base."""
    found = resolve_model_path(path, SETTING)
    if name in model.peft_config:
        raise ValueError(
            f"the student has an adapter teacher_adapter_name={name!r} already; leave {SETTING} out to take it, or "
            "give the one that is loaded another name."
        )
    if any(name in module.split(".") for module, _ in model.named_modules()):
        raise ValueError(
            f"teacher_adapter_name={name!r} is the name of a module of the student's model too, and PEFT takes one for "
            "the other; choose another name."
        )
    if Path(found).exists() and not is_adapter(found):
        raise ValueError(
            f"{SETTING}={path!r} is no adapter, which teacher_adapter_name={name!r} asks for; leave the name out for a "
            "model of its own."
        )
    base = PeftConfig.from_pretrained(found).base_model_name_or_path
    wrong = f"{SETTING}={path!r} is an adapter for {base}, and does not fit the student's base model: "
    try:
        result = model.load_adapter(found, adapter_name=name, is_trainable=False)
    except (RuntimeError, ValueError) as error:
        raise ValueError(wrong + " ".join(str(error).split())[:300]) from error
    odd = [*result.unexpected_keys, *result.missing_keys]
    if odd:  # PEFT loads what fits and leaves the rest
        raise ValueError(f"{wrong}one of them lacks {odd[0]}")
