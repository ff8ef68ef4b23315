"""Reward models from preference pairs: TRL's RewardTrainer, a pad token that is not the end token, and centring."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from scope_rlhf.hub import explain_model_errors
from scope_rlhf.models.embedded import resolve_model_path
from scope_rlhf.models.loading import LORA_TARGETS, is_adapter
from scope_rlhf.models.reward import END_TOKEN, OFFSET, SYNTHETIC, RewardScorer

PAD = "<|pad|>"


class ScopeRewardTrainer(RewardTrainer):
    """RewardTrainer (Bradley-Terry: -log sigmoid(score of chosen - score of rejected)) for models of `load_classifier`.

    Beside the parent's, `centre` and `save_scorer`. Raises ValueError for a pad token that is the end token: the
    classifier reads the last token that is not padding, and would never see that a text has ended; for pairs without
    the columns prompt, chosen and rejected; and where max_length leaves no pair. A longer pair is left out by the
    parent, which is warned of with the number.
    """

    def __init__(self, model: Any, args: RewardConfig, *, processing_class: PreTrainedTokenizerBase, **kwargs: Any):
        tokenizer = processing_class
        if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
            raise ValueError(
                f"the tokenizer pads with {tokenizer.pad_token!r}, its end token: load model and tokenizer by "
                "load_classifier, or give the tokenizer a pad token of its own"
            )
        pairs = {"train_dataset": kwargs.get("train_dataset"), "eval_dataset": kwargs.get("eval_dataset")}
        for name, data in pairs.items():
            if isinstance(data, Dataset):
                check_pairs(data, name)
        super().__init__(model, args, processing_class=tokenizer, **kwargs)
        for name, data in pairs.items():
            kept = getattr(self, name)
            if isinstance(data, Dataset) and isinstance(kept, Dataset) and len(kept) < len(data):
                if not len(kept):
                    raise ValueError(f"{name}: every pair has more than max_length={args.max_length} tokens; raise it")
                warnings.warn(
                    f"{name}: {len(data) - len(kept)} of {len(data)} pairs are longer than {args.max_length} tokens "
                    "and left out; cut their prompts or raise max_length",
                    stacklevel=2,
                )

    def centre(self, texts: Sequence[str], batch_size: int = 64) -> float:
        """Store the mean score of `texts` (reference completions behind their prompts) in the model's config, so that
        a RewardScorer of it gives 0 on average there; that mean. The scale is left as it is.
        """
        config = self._classifier().config
        setattr(config, END_TOKEN, True)
        setattr(config, OFFSET, 0.0)
        offset = float(self.scorer(batch_size)(list(texts)).mean())
        setattr(config, OFFSET, offset)
        return offset

    def scorer(self, batch_size: int = 64) -> RewardScorer:
        """The model as it is now, as a function of texts."""
        model: Any = self.accelerator.unwrap_model(self.model)
        tokenizer: Any = self.processing_class
        args: Any = self.args
        longest = min(args.max_length or 10**6, getattr(model.config, "max_position_embeddings", None) or 10**6)
        return RewardScorer(model, tokenizer, batch_size=batch_size, max_length=longest if longest < 10**6 else None)

    def save_scorer(self, folder: str | Path, synthetic: bool = False) -> None:
        """Model and tokenizer as RewardScorer.from_pretrained takes them: an adapter is merged into its base first.

        synthetic: no person has compared the pairs; it is kept in the config, and every result then says so.
        """
        setattr(self._classifier().config, SYNTHETIC, synthetic)
        model: Any = self.accelerator.unwrap_model(self.model)
        if isinstance(model, PeftModel):
            settings = {
                name: getattr(model.config, name)
                for name in (END_TOKEN, OFFSET, SYNTHETIC)
                if hasattr(model.config, name)
            }
            model = model.merge_and_unload()
            model.config.update(settings)
        if self.is_world_process_zero():
            model.save_pretrained(folder)
            tokenizer: Any = self.processing_class
            tokenizer.save_pretrained(folder)

    def _classifier(self) -> Any:
        model: Any = self.accelerator.unwrap_model(self.model)
        return model.get_base_model() if isinstance(model, PeftModel) else model


def check_pairs(pairs: Dataset, name: str) -> None:
    """ValueError for preference pairs that lack a column or hold no row."""
    missing = [column for column in ("prompt", "chosen", "rejected") if column not in pairs.column_names]
    if missing:
        raise ValueError(f"{name} has no column {', '.join(missing)}; its columns are {pairs.column_names}")
    if not len(pairs):
        raise ValueError(f"{name} is empty")


def load_classifier(
    name_or_path: str, setting: str = "--model_name_or_path", dtype: torch.dtype | str = torch.float32
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal model or its adapter as a classifier with one score, and its tokenizer with a pad token of its own.

    The score layer is new (normal, 1 / (hidden + 1) as variance: Stiennon et al. 2020) unless the model is a reward
    model already. An embedding row is added for the pad token only where the matrix has none to spare. An adapter is
    merged into its base model. ValueError, beginning with `setting`, for a name that does not load.
    """
    path = resolve_model_path(name_or_path, setting)
    if is_adapter(path):
        raise ValueError(
            f"{setting}={name_or_path!r} is an adapter: merge it into its base model and give that folder."
        )
    with explain_model_errors(name_or_path, setting):
        tokenizer = AutoTokenizer.from_pretrained(path)
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            path, dtype=dtype, num_labels=1, output_loading_info=True
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{setting}={name_or_path!r}: its tokenizer has no end token, at which a text is scored")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
        if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    if any("score" in key for key in loading["missing_keys"]):
        torch.nn.init.normal_(model.score.weight, std=(model.score.weight.shape[1] + 1) ** -0.5)
    return model, tokenizer


def reward_lora(model: Any, r: int, alpha: int, targets: Sequence[str] | None = None) -> LoraConfig:
    """LoRA for a reward model: the score layer is trained whole and saved with the adapter."""
    kind = model.config.model_type
    return LoraConfig(
        r=r, lora_alpha=alpha, target_modules=list(targets) if targets else LORA_TARGETS.get(kind), task_type="SEQ_CLS",
        fan_in_fan_out=kind == "gpt2", modules_to_save=["score"],
    )  # fmt: skip
