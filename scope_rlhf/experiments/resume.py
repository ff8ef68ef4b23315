"""Where a run writes, which checkpoint it goes on from, and what a resumed run must keep."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from scope_rlhf.runtime import RunFolder
from scope_rlhf.runtime.files import json_line
from scope_rlhf.trainers.checkpoints import STATE, is_json, newest_checkpoint
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig

# What a resumed run must keep: its data, its place in them, its model, and how it is measured.
FIXED = frozenset(
    (
        "algorithm", "seed", "data_seed", "eval_seed", "dataset_name", "dataset_train_split", "dataset_test_split",
        "text_column",
        "prompt_length", "min_prompt_length", "num_train_prompts", "num_eval_prompts", "num_validation_prompts",
        "max_completion_length",
        "model_name_or_path", "model_revision", "reward_model_name_or_path", "judge_model_name_or_path", "use_peft",
        "lora_r", "lora_alpha", "lora_target_modules", "temperature", "dtype",
        "per_device_train_batch_size", "gradient_accumulation_steps",
        "steps_per_generation", "generation_batch_size", "num_generations", "num_iterations",
        "num_ppo_epochs", "num_mini_batches", "advantage_estimator", "critic", "critic_kwargs", "critic_backbone",
        "critic_model_name_or_path", "value_warmup_steps", "stop_token", "stop_token_id",
    )
)  # fmt: skip
# What says nothing about the result.
MAY_CHANGE = frozenset(
    (
        "output_dir", "resume_from_checkpoint", "save_steps", "save_strategy",
        "save_total_limit", "logging_steps", "logging_dir", "disable_tqdm", "num_threads", "report_to", "hub_model_id",
        "hub_token", "push_to_hub", "run_name", "allow_objective_change", "objective", "objective_kwargs", "eval_steps",
    )
)  # fmt: skip


def choose_output(training: ScopeGRPOConfig, resumed: str | None, task: str = "imdb", algorithm: str = "grpo") -> Path:
    """The given output_dir, or a fresh runs/<task>-<name>/<time>. An earlier run is never written over."""
    if training.output_dir and training.output_dir != "trainer_output":
        path = Path(training.output_dir)
        if path.exists() and not path.is_dir():
            raise ValueError(f"output_dir {path} is a file; set --output_dir to a folder.")
        if (path / "metrics.jsonl").exists() and resumed is None:
            raise ValueError(
                f"output_dir {path} already holds a run; give another --output_dir, delete it, or go on with "
                f"--resume_from_checkpoint {path}."
            )
        return path
    if resumed is not None:
        return Path(resumed).parent
    name = Path(training.objective.rsplit(":", 1)[-1]).name
    name = name if algorithm == "grpo" else f"{algorithm}-{name}"
    return Path("runs") / f"{task}-{name}" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def find_checkpoint(training: ScopeGRPOConfig) -> str | None:
    """The checkpoint folder to resume from: given itself, as the run folder, or "true" for the newest of output_dir."""
    given = training.resume_from_checkpoint
    if not given:
        return None
    path = Path(training.output_dir or ".") if str(given).lower() in ("true", "last", "latest") else Path(str(given))
    if not path.is_dir():
        raise ValueError(f"--resume_from_checkpoint {given!r}: {path} is not a folder.")
    path = path.resolve()
    if (path / STATE).exists():
        if not is_json(path / STATE):
            raise ValueError(f"--resume_from_checkpoint {given!r}: its {STATE} is damaged; take an earlier one.")
        return str(path)
    newest = newest_checkpoint(path)
    if newest is None:
        raise ValueError(f"--resume_from_checkpoint {given!r}: {path} holds no complete checkpoint-<step> folder.")
    return str(newest)


def check_same_run(folder: Path, now: dict[str, Any], console: Console) -> None:
    """ValueError where a resumed run would be measured on other samples than its own start, or stand elsewhere in its
    data. Other changes are the user's right, and are named.
    """
    run = RunFolder(folder)
    try:
        before = run.read_config().get("arguments", {})
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--resume_from_checkpoint: {run.config_file}, which says how the run was started, is missing or damaged."
        ) from error
    now = json.loads(json_line(now))  # as write_config writes it
    changed = {
        name: f"{name} was {before[name]!r}, is {now[name]!r}"
        for name in now
        if name in before and before[name] != now[name] and name not in MAY_CHANGE
    }
    fixed = [text for name, text in changed.items() if name in FIXED]
    if fixed:
        raise ValueError(
            f"{folder} was started with other settings that a resumed run must keep: {'; '.join(fixed)}. Set them as "
            "they were, or start a new run."
        )
    if changed:
        console.print(f"[yellow]changed since {folder} was started:[/] {'; '.join(changed.values())}")
