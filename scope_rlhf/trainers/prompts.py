"""Prompts that cannot be trained on are refused at construction, by their row."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

# Rows whose tokens are counted: the longest by characters. The rest cannot be longer by much.
COUNTED = 256


def check_dataset(dataset: Any, setting: str) -> None:
    """ValueError for a dataset without rows or prompts, and for a prompt that is no text, no conversation, or empty."""
    if isinstance(dataset, dict):
        for name, part in dataset.items():
            check_dataset(part, f"{setting}[{name!r}]")
    elif isinstance(dataset, Dataset):
        if "prompt" not in dataset.column_names:
            raise ValueError(f"{setting} has no column 'prompt'; its columns are {dataset.column_names}.")
        if len(dataset) == 0:
            raise ValueError(f"{setting} is empty.")
        for row, prompt in enumerate(dataset["prompt"]):
            if not isinstance(prompt, str | list) or not prompt or (isinstance(prompt, str) and not prompt.strip()):
                raise ValueError(
                    f"{setting}: the prompt of row {row} is {prompt!r}; expected a text or a list of messages, and not "
                    "an empty one."
                )


def check_batches(dataset: Any, args: Any) -> None:
    """ValueError for fewer prompts than one generation batch takes: the sampler drops it, and nothing would train."""
    wanted = (args.generation_batch_size or 1) // (args.num_generations or 1)
    if isinstance(dataset, Dataset) and len(dataset) < wanted:
        raise ValueError(
            f"the training set has {len(dataset)} prompts, but one generation batch takes {wanted} "
            f"(generation_batch_size {args.generation_batch_size} / num_generations {args.num_generations}), so no "
            "update would be made. Give more prompts (--num_train_prompts, --dataset_name), or lower "
            "--per_device_train_batch_size or --steps_per_generation."
        )


def check_templates(dataset: Any, names: Sequence[str], tokenizers: Sequence[Any]) -> None:
    """ValueError for conversations where a reward model's tokenizer (None for a function) has no chat template."""
    if isinstance(dataset, dict):
        dataset = next(iter(dataset.values()), None)
    if isinstance(dataset, Dataset) and isinstance(dataset[0]["prompt"], list):
        for name, tokenizer in zip(names, tokenizers, strict=True):
            if tokenizer is not None and not tokenizer.chat_template:
                raise ValueError(
                    f"the prompts are conversations, but the tokenizer of the reward model {name} has no chat template;"
                    " set it (reward_processing_classes), or score texts by RewardScorer(...).as_reward_function()."
                )


def check_lengths(dataset: Any, setting: str, tokenizer: Any, positions: int | None, completion: int | None) -> None:
    """ValueError for a prompt that leaves no room for a whole completion in the model's positions, of the longest
    COUNTED rows by characters; and for conversations where the tokenizer has no chat template.
    """
    if isinstance(dataset, dict):
        for name, part in dataset.items():
            check_lengths(part, f"{setting}[{name!r}]", tokenizer, positions, completion)
    if not isinstance(dataset, Dataset):
        return
    prompts = list(dataset["prompt"])
    if isinstance(prompts[0], list) and not tokenizer.chat_template:
        raise ValueError(
            f"{setting} holds conversations, but the policy's tokenizer has no chat template: set "
            "processing_class.chat_template, or give prompts as texts."
        )
    if positions is None:
        return
    room = positions - (completion or 0)
    characters = [len(p) if isinstance(p, str) else sum(len(str(m.get("content"))) for m in p) for p in prompts]
    for row in sorted(range(len(prompts)), key=lambda i: -characters[i])[:COUNTED]:
        prompt = prompts[row]
        if isinstance(prompt, str):
            tokens = len(tokenizer(prompt, verbose=False)["input_ids"])
        else:
            text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            tokens = len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if tokens > room:
            raise ValueError(
                f"{setting}: the prompt of row {row} has {tokens} tokens and max_completion_length is {completion}, "
                f"together more than the {positions} positions of the model; cut the prompt, or lower "
                "--max_completion_length."
            )
