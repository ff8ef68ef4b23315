"""Loading a causal language model, with or without LoRA, from the Hub, a folder or the embedded weights."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from scope_rlhf.hub import explain_model_errors
from scope_rlhf.models.embedded import resolve_model_path
from scope_rlhf.models.positions import derive_positions

# LoRA targets where the user names none; other architectures take PEFT's own defaults.
LORA_TARGETS = {"gpt2": ["c_attn"], "gptj": ["q_proj", "v_proj"]}


@dataclass
class PolicyConfig(ModelConfig):
    """TRL's ModelConfig for a policy that is trained by RL.

    Two departures: `lora_target_modules` stays a list (TRL turns a list of one into a string, which PEFT reads as a
    regular expression over whole module names and then refuses), and `lora_dropout` is 0, because dropout makes the
    log-probs of a rollout differ from those of the update.
    """

    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout; 0 keeps the first ratio at 1."})

    def __post_init__(self):
        targets = self.lora_target_modules
        super().__post_init__()
        self.lora_target_modules = targets
        if self.load_in_4bit or self.load_in_8bit:
            setting = "load_in_4bit" if self.load_in_4bit else "load_in_8bit"
            if not self.use_peft:
                raise ValueError(f"{setting} trains adapters only: add --use_peft, or drop --{setting}.")
            if importlib.util.find_spec("bitsandbytes") is None:
                raise ValueError(f"{setting} needs bitsandbytes, which is not installed: `pip install bitsandbytes`.")
        if self.use_peft and self.lora_r < 1:
            raise ValueError(f"lora_r must be a positive rank, got {self.lora_r}; set --lora_r.")


def is_adapter(name_or_path: str) -> bool:
    """Whether it is the folder of an adapter."""
    return (Path(name_or_path).expanduser() / "adapter_config.json").exists()


def find_model(name: str, setting: str, **kwargs: Any) -> tuple[str, Any]:
    """(what `from_pretrained` takes for this name, its config; None for an adapter), before any weights are read.

    ValueError, beginning with `setting`, for a name that does not resolve: at once, where `from_pretrained` would first
    retry for minutes without a network. kwargs: revision and trust_remote_code, as for `from_pretrained`.
    """
    path = resolve_model_path(name, setting)
    if is_adapter(path):
        return path, None
    with explain_model_errors(name, setting):
        return path, AutoConfig.from_pretrained(path, **kwargs)


def load_tokenizer(name_or_path: str, **kwargs: Any) -> PreTrainedTokenizerBase:
    """The tokenizer with left padding and truncation; a missing pad token becomes EOS.

    With pad == eos nothing downstream may look for padding by id: masks come from lengths.
    """
    tokenizer = AutoTokenizer.from_pretrained(name_or_path, padding_side="left", truncation_side="left", **kwargs)
    if not tokenizer("some words", add_special_tokens=False)["input_ids"]:
        # transformers makes an empty tokenizer for a folder that has a config but no tokenizer file.
        raise ValueError(f"{name_or_path} has no tokenizer files: save the tokenizer beside the model.")
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {name_or_path} has no end-of-text token, so a completion could never end.")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def lora_config(config: PolicyConfig, model: PreTrainedModel) -> LoraConfig | None:
    """The LoRA configuration of `config`, with this architecture's targets where none are named; None without PEFT."""
    peft_config = get_peft_config(config)
    if not isinstance(peft_config, LoraConfig):
        return None
    model_type = model.config.model_type
    if config.lora_target_modules is None and config.lora_target_parameters is None:
        targets = LORA_TARGETS.get(model_type)
        peft_config.target_modules = targets
    # GPT-2 keeps its weights as (in, out).
    peft_config.fan_in_fan_out = model_type == "gpt2"
    names = {name.rsplit(".", 1)[-1] for name, _ in model.named_modules()}
    missing = [t for t in peft_config.target_modules or [] if "." not in t and t not in names and t != "all-linear"]
    if missing and not isinstance(peft_config.target_modules, str):
        raise ValueError(
            f"lora_target_modules {missing} name no module of this {model_type} model; its linear layers are "
            f"{sorted(_linear_names(model))}. Set --lora_target_modules."
        )
    return peft_config


def _linear_names(model: PreTrainedModel) -> set[str]:
    kinds = ("Linear", "Conv1D")
    return {n.rsplit(".", 1)[-1] for n, m in model.named_modules() if type(m).__name__.startswith(kinds)}


def load_policy_tokenizer(config: PolicyConfig) -> PreTrainedTokenizerBase:
    """The tokenizer that goes with the policy: of an adapter its own, or that of its base. No weights are read."""
    setting = "--model_name_or_path"
    if not config.model_name_or_path:
        raise ValueError("model_name_or_path is empty: give a Hub name, a folder or embedded/reviews-gpt2.")
    path = resolve_model_path(config.model_name_or_path, setting)
    with explain_model_errors(config.model_name_or_path, setting):
        if not is_adapter(path):
            return load_tokenizer(path, revision=config.model_revision)
        own = (Path(path) / "tokenizer_config.json").exists()
        return load_tokenizer(path if own else _base_of(path, setting))


def torch_dtype(config: PolicyConfig) -> Any:
    """config.dtype as `from_pretrained` takes it."""
    return config.dtype if config.dtype in ("auto", None) else getattr(torch, config.dtype)


def _base_of(adapter: str, setting: str) -> str:
    return resolve_model_path(PeftConfig.from_pretrained(adapter).base_model_name_or_path or "", setting)


def load_policy(
    config: PolicyConfig, tokenizer: PreTrainedTokenizerBase | None = None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase, LoraConfig | None]:
    """Model, tokenizer and the LoRA configuration for the trainer to apply (None: full fine-tuning or own adapter).

    `model_name_or_path` is a Hub name, a folder, an embedded name (`embedded/reviews-gpt2`), or the folder of a LoRA
    adapter, which is then trained further; its frozen copy is the reference. Positions follow the attention mask from
    here on (`derive_positions`). tokenizer: that of load_policy_tokenizer, where it is loaded already.
    """
    tokenizer = load_policy_tokenizer(config) if tokenizer is None else tokenizer
    setting = "--model_name_or_path"
    path = resolve_model_path(str(config.model_name_or_path), setting)
    kwargs: dict[str, Any] = {"revision": config.model_revision, "attn_implementation": config.attn_implementation}
    kwargs["dtype"] = torch_dtype(config)
    quantization = get_quantization_config(config)
    if quantization is not None:
        kwargs["quantization_config"] = quantization
    name = str(config.model_name_or_path)
    with explain_model_errors(name, setting):
        model = _load_base(path, setting, kwargs)
    _check_vocabulary(model, tokenizer, name, setting)
    derive_positions(model)
    if is_adapter(path):
        return PeftModel.from_pretrained(model, path, is_trainable=True), tokenizer, None
    return model, tokenizer, lora_config(config, model)


def load_frozen(name: str, setting: str, **kwargs: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that is only asked for log-probs, and its tokenizer; an adapter is merged into its base.

    name, setting: as for find_model. kwargs: of `from_pretrained` (revision, dtype, trust_remote_code, ...). ValueError
    for a name that does not resolve, and for a model without its tokenizer.
    """
    path = resolve_model_path(name, setting)
    shared = {key: kwargs[key] for key in ("revision", "trust_remote_code") if key in kwargs}
    with explain_model_errors(name, setting):
        own = not is_adapter(path) or (Path(path) / "tokenizer_config.json").exists()
        tokenizer = load_tokenizer(path if own else _base_of(path, setting), **shared)
        model = _load_base(path, setting, kwargs)
    _check_vocabulary(model, tokenizer, name, setting)
    if is_adapter(path):
        merged: Any = PeftModel.from_pretrained(model, path)
        model = merged.merge_and_unload()
    return model, tokenizer


def _load_base(path: str, setting: str, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The model of a folder or a name, or the one below an adapter."""
    return AutoModelForCausalLM.from_pretrained(_base_of(path, setting) if is_adapter(path) else path, **kwargs)


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, setting: str) -> None:
    vocabulary = int(model.get_input_embeddings().weight.size(0))  # pyright: ignore[reportCallIssue]
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens but the model only {vocabulary}: they do not belong "
            f"together; set {setting}."
        )
