"""Scoring texts with a sequence classifier: a Hub name, a local folder or an embedded model."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from scope_rlhf.hub import explain_model_errors
from scope_rlhf.models.embedded import resolve_model_path
from scope_rlhf.models.loading import is_adapter

OUTPUTS = ("probability", "logit")
# Settings in the config of a reward model.
END_TOKEN, OFFSET, SYNTHETIC = "reward_end_token", "reward_offset", "reward_synthetic_pairs"
# Names of the rewarded class where none is given; lvwerra/distilbert-imdb calls it LABEL_1 or POSITIVE.
POSITIVE_LABELS = ("positive", "pos", "label_1")


class RewardScorer:
    """A classifier as a function of texts: `scorer(texts)` -> float32 scores [B] on the CPU, without gradient.

    output: "probability" is softmax(logits)[label] (sigmoid for a multi-label classifier), "logit" is logits[label].
    A model with a single logit is a scalar reward model and gives that logit under both. A text longer than
    max_length tokens loses its beginning, because a completion stands at the end.

    A reward model of trainers.reward carries three more settings in its config: with END_TOKEN every text gets the
    tokenizer's end token, at which the model was trained to score; OFFSET, the mean score of reference completions, is
    subtracted, so that a score of 0 is a completion as good as these; SYNTHETIC says that no person compared its
    training pairs.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: PreTrainedTokenizerBase,
        *,
        label_id: int = 0,
        batch_size: int = 64,
        max_length: int | None = None,
        output: str = "probability",
    ):
        if output not in OUTPUTS:
            raise ValueError(f"output must be one of {', '.join(OUTPUTS)}, got {output!r}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if max_length is not None and max_length < 1:
            raise ValueError(f"max_length must be at least 1 token, got {max_length}")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.label_id = label_id
        self.batch_size = batch_size
        self.max_length = max_length
        self.output = output
        self.end_token = bool(getattr(model.config, END_TOKEN, False))
        self.offset = float(getattr(model.config, OFFSET, 0.0))
        self.synthetic = bool(getattr(model.config, SYNTHETIC, False))
        if self.end_token and tokenizer.eos_token_id is None:
            raise ValueError(f"the reward model scores at an end token ({END_TOKEN}), and its tokenizer has none")
        tokenizer.truncation_side = "left"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        *,
        setting: str = "--reward_model_name_or_path",
        batch_size: int = 64,
        max_length: int | None = None,
        label: str | int | None = None,
        output: str = "probability",
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> "RewardScorer":
        """The scorer of a sequence classifier.

        label: name or index of the rewarded class; by default the one called POSITIVE (or LABEL_1). max_length: by
        default the longest text that model and tokenizer take. device: by default the GPU where there is one.
        ValueError, beginning with `setting`, for a name that does not load, a model without a trained classification
        head, and a label that the model does not have.
        """
        path = resolve_model_path(name_or_path, setting)
        given = f"{setting}={name_or_path!r}"
        if is_adapter(path):
            raise ValueError(f"{given} is an adapter: merge it into its base model and give the folder of the result.")
        with explain_model_errors(name_or_path, setting, default="embedded/sentiment-reward"):
            tokenizer = AutoTokenizer.from_pretrained(path)
            model = _load_classifier(path, given, dtype)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return cls(
            model.to(device),
            tokenizer,
            label_id=_label_id(model.config, label, given),
            batch_size=batch_size,
            max_length=_longest(model.config, tokenizer, max_length),
            output=output,
        )

    def __call__(self, texts: Sequence[str], add_special_tokens: bool = True) -> Tensor:
        """Scores [B] of the texts, in their order. Texts of like length share a batch, to save padding.

        add_special_tokens=False is for texts that a chat template has written, which hold them already.
        """
        texts = list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"a reward model scores plain texts, got {type(text).__name__}: {str(text)[:80]!r}")
        scores = torch.empty(len(texts))
        if not texts:
            return scores
        end = [self.tokenizer.eos_token_id] if self.end_token else []
        limit = {"truncation": True, "max_length": max(self.max_length - len(end), 1)} if self.max_length else {}
        rows = self.tokenizer(texts, verbose=False, add_special_tokens=add_special_tokens, **limit)["input_ids"]
        rows = [row if row[-1:] == end else row + end for row in rows]
        # The longest first: a batch that does not fit in memory fails at once.
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            scores[batch] = self._score([rows[row] for row in batch])
        return scores

    def reward(self, prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float]:
        """A reward function in TRL's sense: the score of prompt + completion for each row, by their text.

        Conversations (lists of messages) go through the chat template of the scorer's own tokenizer; where it has
        none, the contents of the messages are scored, one below the other.
        """
        if not prompts or isinstance(prompts[0], str):
            return self([p + c for p, c in zip(prompts, completions, strict=True)]).tolist()
        talks = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
        if self.tokenizer.chat_template:
            return self([self.tokenizer.apply_chat_template(t, tokenize=False) for t in talks], False).tolist()
        return self(["\n".join(str(message["content"]) for message in talk) for talk in talks]).tolist()

    def describe(self, name: str) -> str:
        """What tables call it: the name and, where it is so, that it was trained on synthetic pairs."""
        return f"{name} (trained on synthetic pairs)" if self.synthetic else name

    def as_reward_function(self, name: str = "sentiment_reward") -> Callable[..., list[float]]:
        """`reward` as a function of its own name, which is what TRL's metrics are called after."""

        def reward_function(prompts: Sequence[Any], completions: Sequence[Any], **kwargs: Any) -> list[float]:
            return self.reward(prompts, completions)

        reward_function.__name__ = reward_function.__qualname__ = name
        return reward_function

    @torch.no_grad()
    def _score(self, rows: list[list[int]]) -> Tensor:
        pad_id = self._pad_id(rows)
        # An empty text has no token where the tokenizer adds none; a row without any would give NaN.
        rows = [row or [pad_id] for row in rows]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), pad_id)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(rows):
            ids[row, : len(tokens)] = torch.tensor(tokens, dtype=torch.long)
            mask[row, : len(tokens)] = 1
        # Decoder classifiers find the last token of a row by this id.
        self.model.config.pad_token_id = pad_id
        device = self.model.device
        logits = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float().cpu()
        if self.output == "logit" or logits.shape[-1] == 1:
            return logits[:, self.label_id] - self.offset
        multi_label = self.model.config.problem_type == "multi_label_classification"
        return (logits.sigmoid() if multi_label else logits.softmax(-1))[:, self.label_id]

    def _pad_id(self, rows: list[list[int]]) -> int:
        """The tokenizer's pad id, unless it occurs in a text (pad == eos) or is missing: then an id in no text."""
        used = {token for tokens in rows for token in tokens}
        pad_id = self.tokenizer.pad_token_id
        if isinstance(pad_id, int) and pad_id not in used:
            return pad_id
        return next(token for token in range(self.model.config.vocab_size) if token not in used)


def _load_classifier(path: str, given: str, dtype: torch.dtype) -> Any:
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, output_loading_info=True)
    except ValueError as error:
        if "AutoModelForSequenceClassification" not in str(error):
            raise
        raise ValueError(
            f"{given} is no sequence classifier: transformers has no classification head for this architecture "
            f"({str(error).splitlines()[0]})."
        ) from error
    missing = sorted(loading["missing_keys"])
    if missing:
        raise ValueError(
            f"{given} is no trained classifier: its weights lack {', '.join(missing)}, which would be random. Give a "
            "model with a trained classification head, such as lvwerra/distilbert-imdb or embedded/sentiment-reward."
        )
    return model


def _label_id(config: Any, label: str | int | None, given: str) -> int:
    names = {int(index): str(name) for index, name in config.id2label.items()}
    listed = ", ".join(f"{index}: {name}" for index, name in sorted(names.items()))
    if len(names) == 1 and label is None:
        return 0
    if label is None:
        found = [index for index, name in names.items() if name.lower() in POSITIVE_LABELS]
        if len(found) != 1:
            raise ValueError(f"{given} has no label that is plainly the rewarded one ({listed}): name it by label.")
        return found[0]
    by_name = {name.lower(): index for index, name in names.items()}
    index = label if isinstance(label, int) else by_name.get(label.lower())
    if index not in names:
        raise ValueError(f"{given} has no label {label!r}; its labels: {listed}.")
    return int(index)


def _longest(config: Any, tokenizer: PreTrainedTokenizerBase, max_length: int | None) -> int | None:
    """The least of the three limits that are known. Tokenizers without one carry a huge number."""
    limits = [max_length, getattr(config, "max_position_embeddings", None), tokenizer.model_max_length]
    return min((limit for limit in limits if limit is not None and limit < 10**6), default=None)
