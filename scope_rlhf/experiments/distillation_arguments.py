"""Settings of the distillation experiment: methods as rows, the small models of its task, and the embedded defaults."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from scope_rlhf.data.verifiable import TASKS
from scope_rlhf.experiments.arguments import check_push
from scope_rlhf.experiments.command_line import parse_settings, read_config, spell, take_config
from scope_rlhf.models.loading import PolicyConfig
from scope_rlhf.runtime.settings import did_you_mean, json_object, option
from scope_rlhf.runtime.threads import available_cores
from scope_rlhf.trainers.distillation_config import DualPathDistillationConfig

# A row is one of these with `setting=value` behind it. The first row of a table is the control.
METHODS: dict[str, list[str]] = {"opd": ["--mode", "opd"], "grpo": [], "scope": ["--mode", "dual_path"]}
DEFAULT_ROWS = ("opd", "opd num_generations=1", "grpo", "scope")
ABLATIONS = (
    "scope weights=none", "scope weights=student", "scope weights=teacher", "scope reverse_weights=student",
    "scope reverse_weights=teacher", "scope tau=0.5", "scope tau=2",
)  # fmt: skip
# What a row may not set, because the table does.
OF_TABLE = ("seed", "output_dir", "mode", "resume_from_checkpoint", "max_steps")
# No arguments: sorting letters, a few minutes on two CPU cores.
EMBEDDED_DEFAULTS: dict[str, Any] = {
    "num_generations": 8,
    "per_device_train_batch_size": 512,
    "max_steps": 150,
    "max_completion_length": 12,
    # The best of 2e-4, 5e-4 and 1e-3 for the control and for scope on seed 101, which no table has; all rows have it.
    "learning_rate": 5e-4,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "gradient_checkpointing": False,
    "ddp_find_unused_parameters": False,
    "dataloader_pin_memory": False,
    "logging_steps": 5,
    "save_steps": 50,
    "save_total_limit": 1,
    "report_to": "none",
}
# The paper's (arXiv 2604.10688): N = 8, temperature .6, a constant rate of 5e-5, weight decay .01.
PAPER_DEFAULTS: dict[str, Any] = {
    "num_generations": 8,
    "learning_rate": 5e-5,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.01,
    "temperature": 0.6,
    "logging_steps": 1,
    "report_to": "none",
}


@dataclass
class DistillationArguments:
    """What the experiment adds to the settings of the student and of training."""

    methods: list[str] | None = field(
        default=None,
        metadata={
            "help": "Rows: opd, grpo or scope, with settings behind it, such as 'scope tau=0.5'; the first is the "
            f"control. Default: {', '.join(DEFAULT_ROWS)}."
        },
    )
    full_table: bool = option(False, "Also the ablations, over five seeds.")
    seeds: int | None = option(None, "Runs of each row; default 1, or 5 with full_table.")
    first_seed: int = option(1, "Seed of the first run of a row; the next have the next ones.")
    jobs: int | None = option(None, "Runs at a time; default: one for each CPU core, or 1 on an accelerator.")
    dataset_name: str = option("letters", f"Problems: {', '.join(TASKS)}, a Hub math set, a file or folder.")
    dataset_train_split: str = option("train", "Split of the training problems of a Hub set or files.")
    dataset_test_split: str = option("test", "Split of the evaluation problems of a Hub set or files.")
    eval_dataset_name: str | None = option(None, "Problems of the evaluation; default: dataset_name.")
    task_kwargs: str | None = option(None, "Settings of a generated task, as JSON; letters: '{\"length\": [3, 8]}'.")
    instruction: str = option("", "What stands behind each prompt of a Hub set or files.")
    use_chat_template: bool = option(False, "The models see a prompt as a user's message.")
    verifier: str | None = option(None, "Default: exact_answer for generated tasks, math_answer for others.")
    num_train_prompts: int | None = option(
        None, "Training problems; default: 8192 of a generated task (20,000 for the small models), all of others."
    )
    num_eval_prompts: int = option(256, "Problems that every row is measured on.")
    num_samples: int = option(8, "Completions of each of them.")
    k: list[int] = field(default_factory=lambda: [8], metadata={"help": "Of Pass@k; at most num_samples."})
    eval_temperature: float | None = option(None, "Temperature of these completions; default: temperature.")
    eval_seed: int = option(1234, "Seed of these completions.")
    eval_batch_size: int = option(256, "Completions that are generated at once for them.")
    teacher_n_layer: int = option(2, "Layers of the teacher that is trained where none is named.")
    teacher_n_embd: int = option(64, "Its width, a multiple of 32.")
    teacher_sft_steps: int = option(3000, "Its updates.")
    student_n_layer: int = option(2, "The same for the student.")
    student_n_embd: int = option(32, "The same for the student.")
    student_sft_steps: int = option(800, "The same for the student.")
    num_threads: int | None = option(
        None, "CPU threads of each run; default: 1 with several jobs and for the small models, else all cores."
    )

    def __post_init__(self):
        if self.methods is None:
            self.methods = [*DEFAULT_ROWS, *(ABLATIONS if self.full_table else ())]
        self.seeds = (5 if self.full_table else 1) if self.seeds is None else self.seeds
        if self.jobs is None:
            alone = torch.accelerator.is_available() or int(os.environ.get("WORLD_SIZE", 1)) > 1
            self.jobs = 1 if alone else available_cores()
        least = {
            "seeds": 1, "first_seed": 0, "jobs": 1, "num_train_prompts": 1, "num_eval_prompts": 2, "num_samples": 1,
            "eval_batch_size": 1, "num_threads": 1,
        }  # fmt: skip
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}; set --{name}.")
        if self.eval_temperature is not None and not self.eval_temperature > 0:
            raise ValueError(f"eval_temperature must be positive, got {self.eval_temperature}; set --eval_temperature.")
        wrong = [k for k in self.k if not 1 <= k <= self.num_samples]
        if wrong or not self.k:
            raise ValueError(f"k must lie between 1 and the {self.num_samples} of num_samples, got {self.k}; set --k.")
        if self.jobs > 1 and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"jobs={self.jobs} starts processes of its own; with several processes set --jobs 1.")

    @property
    def task_settings(self) -> dict[str, Any]:
        """task_kwargs with the defaults of this experiment."""
        given = json_object("task_kwargs", self.task_kwargs) or {}
        return {"length": [3, 8], **given} if self.dataset_name == "letters" else given


def parse_distillation(
    argv: Sequence[str], prog: str | None = None
) -> tuple[list[str], dict[str, Any], str | None, tuple[DistillationArguments, PolicyConfig, Any]]:
    """(command line, settings of the file, the file, settings of the table). ValueError for what cannot work."""
    argv, config_file = take_config(spell(argv))
    config = read_config(config_file) if config_file else {}
    settings = settings_of(argv, config, config_file, prog=prog)
    script = settings[0]
    for row in script.methods or []:
        settings_of(argv, config, config_file, row, prog=prog)
    return argv, config, config_file, settings


def settings_of(
    argv: Sequence[str],
    config: Mapping[str, Any],
    config_file: str | None,
    row: str | None = None,
    seed: int | None = None,
    prog: str | None = None,
) -> tuple[DistillationArguments, PolicyConfig, DualPathDistillationConfig]:
    """Settings of the whole table, or of one of its rows. ValueError, naming the row, for what cannot work."""
    flags = [] if row is None else row_flags(row)
    flags += [] if seed is None else ["--seed", str(seed)]
    words = [word.partition("=")[0] for word in argv]
    named = "--model_name_or_path" in words or config.get("model_name_or_path") is not None
    defaults = {**(PAPER_DEFAULTS if named else EMBEDDED_DEFAULTS), "use_cpu": not torch.accelerator.is_available()}
    classes = (DistillationArguments, PolicyConfig, DualPathDistillationConfig)
    try:
        script, policy, training = parse_settings(classes, defaults, [*argv, *flags], config, config_file, prog)
    except ValueError as error:
        if row is None:
            raise
        raise ValueError(f"row {row!r}: {error}") from error
    check_push(training)
    if training.hub_model_id:
        raise ValueError("a table has no model to push: leave --hub_model_id out and push a row's folder.")
    if (policy.model_name_or_path is None) != (not _names_teacher(training)):
        raise ValueError(
            "student and teacher belong together: give --model_name_or_path and the teacher "
            "(--teacher_model_name_or_path, --teacher_adapter_name or --teacher_base_url), or neither for the small "
            "models of a generated task."
        )
    if policy.model_name_or_path is None and script.dataset_name not in TASKS:
        raise ValueError(
            f"the small models are of {' and '.join(TASKS)}; for --dataset_name {script.dataset_name} give "
            "--model_name_or_path and --teacher_model_name_or_path."
        )
    return script, policy, training


def _names_teacher(training: DualPathDistillationConfig) -> bool:
    return any((training.teacher_model_name_or_path, training.teacher_adapter_name, training.teacher_base_url))


def row_flags(row: str) -> list[str]:
    """The flags of a row such as `scope tau=0.5 weights=student`. ValueError for anything else."""
    method, *settings = row.split() or [""]
    if method not in METHODS:
        raise ValueError(
            f"row {row!r} begins with {method!r}, which is no method{did_you_mean(method, METHODS)}; valid: "
            f"{', '.join(METHODS)}. Set --methods."
        )
    known = {f.name for f in fields(DualPathDistillationConfig)} - set(OF_TABLE)
    flags = list(METHODS[method])
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            raise ValueError(
                f"row {row!r}: {setting!r} must be setting=value, with a setting of DualPathDistillationConfig other "
                f"than {', '.join(OF_TABLE)}{'' if name in OF_TABLE else did_you_mean(name, known)}; set --methods."
            )
        flags += [f"--{name}", value]
    return flags
