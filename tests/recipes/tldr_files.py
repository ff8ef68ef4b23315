"""A tiny model and 60 preference pairs on disk: the TL;DR chain on them takes seconds."""

import json
import random
from pathlib import Path

from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer

WORDS = sorted({word for sentence in SENTENCES for word in sentence.split()})


def write_files(folder: Path, kind: str = "gpt2") -> tuple[Path, Path]:
    """(model folder, JSONL file with the columns post, chosen, rejected)."""
    tokenizer = tiny_tokenizer(pad=kind == "gpt2")
    model = tiny_gpt2(tokenizer, dropout=0.0) if kind == "gpt2" else tiny_gptj(tokenizer)
    model.save_pretrained(folder / kind)
    tokenizer.save_pretrained(folder / kind)
    generator = random.Random(0)
    rows = []
    for number in range(60):
        words = generator.choices(WORDS, k=6)
        rejected = " ".join(generator.choices(WORDS, k=2))
        rows.append({"post": " ".join([*words, str(number)]), "chosen": " ".join(words[:2]), "rejected": rejected})
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / kind, data


def write_stage_configs(folder: Path) -> tuple[Path, Path]:
    """YAML for two steps of SFT and of the reward models."""
    sft, reward = folder / "sft.yaml", folder / "reward.yaml"
    common = "max_steps: 2\nlogging_steps: 1\nper_device_train_batch_size: 4\ngradient_accumulation_steps: 1\n"
    sft.write_text(common + "num_eval_rows: 8\nmax_new_tokens: 8\nlearning_rate: 1.0e-3\nsave_steps: 1\n")
    splits = "dataset_train_split: 'train[:50%]'\ndataset_test_split: 'train[50%:]'\n"
    reward.write_text(common + splits + "max_new_tokens: 16\nlearning_rate: 1.0e-3\nsave_steps: 1\n")
    return sft, reward


def chain_words(model: Path, data: Path, sft: Path, reward: Path, output: str | Path) -> list[str]:
    """Flags of a chain of seconds on them."""
    return [
        "--model_name_or_path", str(model), "--dataset_name", str(data), "--preference_dataset_name", str(data),
        "--dataset_train_split", "train[:50%]", "--dataset_test_split", "train[50%:]", "--sft_config", str(sft),
        "--reward_config", str(reward), "--output_dir", str(output), "--max_prompt_length", "44",
        "--max_completion_length", "8", "--max_steps", "2", "--per_device_train_batch_size", "4",
        "--gradient_accumulation_steps", "1", "--logging_steps", "1", "--save_steps", "1", "--num_eval_prompts", "8",
        "--num_win_rate_prompts", "12", "--learning_rate", "1e-3", "--disable_tqdm", "true", "--num_threads", "1",
    ]  # fmt: skip
