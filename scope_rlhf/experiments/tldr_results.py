"""What the stages of TL;DR have found, as tables for a terminal and as cards beside the saved models."""

from typing import Any

from rich.table import Column, Table

from scope_rlhf.data.documentation import LICENCE_NOTE, documentation_versions
from scope_rlhf.data.tldr import SYNTHETIC_KINDS
from scope_rlhf.experiments.stages import Stage
from scope_rlhf.reports.markdown import markdown_table


def sft_card(settings: dict[str, Any], results: dict[str, Any]) -> str:
    """README.md beside the saved model: data, settings, figures."""
    batch = f"{settings['per_device_train_batch_size']} x {settings['gradient_accumulation_steps']}"
    names = ("loss", "rouge1", "rouge2", "rougeL", "words", "ended")
    rows = [(name, f"{results['before'][name]:.3f}", f"{results['after'][name]:.3f}") for name in names]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [sft, summarization, scope-rlhf, trl]
---
# Summaries by supervised fine-tuning

Base: `{settings["model_name_or_path"]}`{", by LoRA, merged" if settings["use_peft"] else ""}. Trained on
{results["train_rows"]:,} summaries of `{settings["dataset_name"]}`: {settings["num_train_epochs"]:g} epoch(s), learning
rate {settings["learning_rate"]:g}, batches of {batch}, seed {settings["seed"]}. Prompts have at most
{settings["max_prompt_length"]} tokens and end with "TL;DR:".

On {results["eval_rows"]} summaries that were not trained on (loss per token of the summary; ROUGE is F1 of greedy
summaries of at most {settings["max_new_tokens"]} tokens; references have {results["reference_words"]:.1f} words):

{markdown_table(("", "before", "after"), rows)}
"""


def sft_table(results: dict[str, Any]) -> Table:
    """Before and after for a terminal."""
    table = Table(
        "", "before", "after", title=f"SFT, {results['eval_rows']} summaries that were not trained on", min_width=64
    )
    for name in ("loss", "rouge1", "rouge2", "rougeL", "words", "ended"):
        table.add_row(name, f"{results['before'][name]:.3f}", f"{results['after'][name]:.3f}")
    table.caption = f"ROUGE is F1 of greedy summaries; references have {results['reference_words']:.1f} words"
    return table


def reward_table(role: str, results: dict[str, Any]) -> Table:
    """Accuracy for a terminal."""
    synthetic = " (synthetic pairs)" if results["synthetic"] else ""
    table = Table("pairs", "n", "accuracy", title=f"{role}: held-out accuracy{synthetic}", min_width=64)
    rows = {"all": results["accuracy"], **results["accuracy_by_kind"]}
    for kind, found in rows.items():
        table.add_row(kind, str(found["n"]), f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
    table.caption = (
        f"trained on {results['train_pairs']:,} pairs, {results['left_out']:,} longer ones left out\n"
        f"calibration error {results['calibration_error']:.3f}, mean score of references {results['offset']:.3f}"
    )
    return table


def reward_card(settings: dict[str, Any], base: str, results: dict[str, Any]) -> str:
    """README.md beside the saved model: purpose, data, accuracy, limits."""
    rows = [
        (kind, str(found["n"]), f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]")
        for kind, found in {"all": results["accuracy"], **results["accuracy_by_kind"]}.items()
    ]
    purpose = (
        "the reward of RL" if settings["role"] == "reward" else "the held-out judge of what was trained on another"
    )
    synthetic = ""
    if results["synthetic"]:
        kinds = "; ".join(f"{kind}: {text}" for kind, text in SYNTHETIC_KINDS.items())
        versions = ", ".join(f"{name} {version}" for name, version in documentation_versions().items())
        synthetic = (
            f"\n**The pairs are synthetic**: the chosen summary is the first line of a docstring, the rejected one was "
            f"made ({kinds}). No person has compared them. {LICENCE_NOTE[0].upper()}{LICENCE_NOTE[1:]}; {versions}.\n"
        )
    return f"""---
library_name: transformers
pipeline_tag: text-classification
tags: [reward-model, scope-rlhf, trl]
---
# {settings["role"]} model of summaries

Base: `{base}`. It is {purpose}, trained on {results["train_pairs"]:,} pairs
({results["left_out"]:,} longer ones left out) of
`{settings["dataset_name"]}` with seed {results["seed"]} (Bradley-Terry). It scores prompt + completion + end token;
the mean score of reference completions, {results["offset"]:.3f}, is in its config (`reward_offset`) and subtracted by
`scope_rlhf.models.reward.RewardScorer`.
{synthetic}
## Accuracy on held-out pairs, with its 95 % Wilson interval

{markdown_table(("pairs", "n", "accuracy"), rows)}

Calibration error {results["calibration_error"]:.3f}. The chosen summary is the longer one in
{100 * results["chosen_is_longer"]:.0f} % of the pairs.
"""


def summary_table(stages: dict[str, Stage]) -> Table:
    """Stage, seconds, main figure and folder, for a terminal."""
    table = Table("stage", "seconds", "result", Column("folder", overflow="fold"), title="TL;DR")
    for name, stage in stages.items():
        seconds = "done before" if stage.cached else f"{stage.seconds:.0f}"
        table.add_row(name, seconds, _headline(name, stage.results), str(stage.folder))
    return table


def _headline(name: str, results: dict[str, Any]) -> str:
    if name == "sft":
        return f"loss {results['before']['loss']:.2f} -> {results['after']['loss']:.2f}"
    if name in ("reward", "judge"):
        found = results["accuracy"]
        return f"accuracy {found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    if name == "winrate":
        rate = (results["comparisons"][0]["win_rate"] or {}).get("rate")
        if rate is None:
            return "no valid pair"
        return f"{100 * rate['value']:.1f} % over SFT [{100 * rate['low']:.1f}, {100 * rate['high']:.1f}]"
    judge = (results.get("metrics") or {}).get("judge")
    return "" if judge is None else f"judge {judge['before']:.2f} -> {judge['after']:.2f}"
