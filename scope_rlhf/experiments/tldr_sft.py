"""Supervised fine-tuning on summaries: the first stage of TL;DR, and recipes/tldr_sft.py.

Thin on TRL's SFTTrainer: the loss counts the summary and its end token only. The folder gets metrics.jsonl, the model
(adapters merged) with its tokenizer, and results: loss and ROUGE on summaries that were not trained on, before and
after.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from scope_rlhf.data.documentation import DOCUMENTATION_PARTS, EMBEDDED_DOCUMENTATION
from scope_rlhf.data.loading import dataset_fingerprint
from scope_rlhf.data.tldr import cut_prompt, load_tldr
from scope_rlhf.evaluation.completions import generate
from scope_rlhf.experiments.arguments import parse_stage
from scope_rlhf.experiments.policy_run import quiet_callbacks, quiet_libraries
from scope_rlhf.experiments.stages import Stage, check_stage, model_identity, run_alone, run_stage, stage_inputs
from scope_rlhf.experiments.tldr_arguments import EMBEDDED_POLICY
from scope_rlhf.experiments.tldr_results import sft_card, sft_table
from scope_rlhf.metrics.rouge import rouge_scores
from scope_rlhf.models.loading import PolicyConfig, find_model, load_policy, load_policy_tokenizer
from scope_rlhf.runtime import RunFolder, is_main_process, write_text
from scope_rlhf.trainers.checkpoints import newest_checkpoint

# No arguments: the small GPT-2, under two minutes on two CPU cores.
EMBEDDED_SFT: dict[str, Any] = {
    "model_name_or_path": EMBEDDED_POLICY,
    "max_prompt_length": 80,
    "max_new_tokens": 32,
    "num_train_rows": 1600,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 1,
    "report_to": "none",
    "seed": 0,
}
# Any other model: one epoch as in the N implementation details (arXiv 2403.17031, table 4): lr 3e-6, batch 128, cosine.
PAPER_SFT: dict[str, Any] = {
    "max_prompt_length": 512,
    "max_new_tokens": 53,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 16,
    "learning_rate": 3e-6,
    "lr_scheduler_type": "cosine",
    "gradient_checkpointing": False,
    "logging_steps": 10,
    "save_steps": 200,
    "save_total_limit": 1,
    "report_to": "none",
    "seed": 0,
}


@dataclass
class SftArguments:
    """What SFT adds to the settings of the model and of TRL's SFTConfig."""

    dataset_name: str = field(
        default=EMBEDDED_DOCUMENTATION,
        metadata={"help": "Posts with summaries: Hub name such as trl-lib/tldr, file, folder; or the embedded set."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split that is trained on."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Split that is measured; default validation (embedded: held_out)."}
    )
    max_prompt_length: int = field(
        default=512, metadata={"help": "Tokens; a longer prompt ends at its last line break that fits, then the cue."}
    )
    max_new_tokens: int = field(default=53, metadata={"help": "Tokens of a generated summary."})
    num_train_rows: int | None = field(default=None, metadata={"help": "Summaries to train on; default all."})
    num_eval_rows: int = field(default=256, metadata={"help": "Summaries for loss and ROUGE, at most."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of torch; default: all cores, or OMP_NUM_THREADS."}
    )


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Fine-tune as the command line says; the exit status."""
    quiet_libraries()
    script, policy, training = parse_sft(argv, prog)
    return run_alone(
        training, script.num_threads, lambda root, console: run_sft(script, policy, training, root, console), sft_table
    )


def parse_sft(
    argv: Sequence[str], prog: str | None = None, given: Mapping[str, Any] | None = None
) -> tuple[SftArguments, PolicyConfig, SFTConfig]:
    """Settings of the stage: the command line over `--config file.yaml` over `given` over the defaults; ValueError for
    what cannot work.
    """
    classes = (SftArguments, PolicyConfig, SFTConfig)
    script, policy, training = parse_stage(classes, EMBEDDED_SFT, PAPER_SFT, argv, prog, given)
    for name in ("max_prompt_length", "max_new_tokens", "num_eval_rows"):
        if getattr(script, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(script, name)}; set --{name}.")
    if script.num_train_rows is not None and script.num_train_rows < 1:
        raise ValueError(f"num_train_rows must be at least 1, or left out for all, got {script.num_train_rows}.")
    check_stage(training)
    training.max_length = script.max_prompt_length + script.max_new_tokens
    return script, policy, training


def run_sft(script: SftArguments, policy: PolicyConfig, training: SFTConfig, root: Path, console: Console) -> Stage:
    """The stage `sft` below root (experiments.stages)."""
    find_model(policy.model_name_or_path or "", "--model_name_or_path", revision=policy.model_revision)
    tokenizer = load_policy_tokenizer(policy)
    train, held_out = load_summaries(script, tokenizer, training.seed)
    inputs = stage_inputs(
        asdict(script), asdict(policy), training.to_dict(), model=model_identity(policy.model_name_or_path or ""),
        data=[dataset_fingerprint(train), dataset_fingerprint(held_out)],
    )  # fmt: skip

    def work(folder: Path) -> dict[str, Any]:
        return train_sft(script, policy, training, tokenizer, train, held_out, folder)

    return run_stage(root, "sft", inputs, work, console)


def load_summaries(script: SftArguments, tokenizer: PreTrainedTokenizerBase, seed: int) -> tuple[Dataset, Dataset]:
    """Prompts, cut to max_prompt_length, with their summaries: to train on, and to measure with."""
    embedded = script.dataset_name == EMBEDDED_DOCUMENTATION
    test = script.dataset_test_split or ("held_out" if embedded else "validation")
    if embedded and test not in DOCUMENTATION_PARTS:
        raise ValueError(
            f"--dataset_test_split of {EMBEDDED_DOCUMENTATION} must be one of {', '.join(DOCUMENTATION_PARTS)}, "
            f"got {test!r}."
        )
    train = load_tldr(
        script.dataset_name, "train", split=script.dataset_train_split, num_rows=script.num_train_rows, seed=seed
    )
    held_out = load_tldr(script.dataset_name, "eval", split=test)
    held_out = held_out.select(range(min(script.num_eval_rows, len(held_out))))
    return tuple(cut_prompts(data, tokenizer, script.max_prompt_length) for data in (train, held_out))  # pyright: ignore


def cut_prompts(data: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """The rows with prompts of at most max_length tokens (data.tldr.cut_prompt), without what datasets would cache."""
    columns = {name: list(data[name]) for name in data.column_names}
    columns["prompt"] = [cut_prompt(prompt, tokenizer, max_length) for prompt in columns["prompt"]]
    return Dataset.from_dict(columns)


def train_sft(
    script: SftArguments,
    policy: PolicyConfig,
    training: SFTConfig,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    held_out: Dataset,
    folder: Path,
) -> dict[str, Any]:
    """Train in the folder, from its newest checkpoint where there is one; loss and ROUGE before and after."""
    training.output_dir = str(folder)
    with RunFolder(folder) as run:
        model, _, peft_config = load_policy(policy, tokenizer)
        trainer = SFTTrainer(
            model=model, args=training, train_dataset=train, eval_dataset=held_out, processing_class=tokenizer,
            peft_config=peft_config,
        )  # fmt: skip
        quiet_callbacks(trainer, run)

        def measure(name: str) -> dict[str, Any]:
            loss = trainer.evaluate()["eval_loss"]
            unwrapped = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            system = generate(
                unwrapped, tokenizer, held_out["prompt"], name=name, max_new_tokens=script.max_new_tokens,
                show_progress=training.process_index == 0,
            )  # fmt: skip
            return {
                "loss": float(loss),
                **rouge_scores(system.completions, list(held_out["completion"])),
                "words": sum(system.lengths) / len(system.lengths),
                "ended": sum(system.ended or []) / len(system.lengths),
            }

        before = measure("before")
        checkpoint = newest_checkpoint(folder)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        after = measure("after")
        save_merged(trainer, tokenizer, folder / "model")
        results = {
            "before": before,
            "after": after,
            "reference_words": sum(len(text.split()) for text in held_out["completion"]) / len(held_out),
            "train_rows": len(train),
            "eval_rows": len(held_out),
        }
        if is_main_process():
            card = sft_card({**training.to_dict(), **asdict(policy), **asdict(script)}, results)
            for place in (folder / "model", folder):  # in the latter over TRL's own card, which has no numbers
                write_text(place / "README.md", card)
        return results


def save_merged(trainer: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Model and tokenizer as any `from_pretrained` takes them: an adapter is merged into its base first."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
        if trainer.is_world_process_zero():
            model.save_pretrained(folder)
    else:
        trainer.save_model(str(folder))  # gathers what DeepSpeed and FSDP have sharded
    if trainer.is_world_process_zero():
        tokenizer.save_pretrained(folder)
