"""Command line over `--config file.yaml` over the defaults of an experiment, for everything that trains a policy."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainingArguments

from scope_rlhf.experiments.command_line import is_given, parse_settings, read_config, spell, take_config, value_of
from scope_rlhf.models.embedded import EMBEDDED_MODELS
from scope_rlhf.models.loading import PolicyConfig, is_adapter
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig
from scope_rlhf.trainers.ppo_checks import CRITIC_ONLY, check_adapter
from scope_rlhf.trainers.ppo_config import ScopePPOConfig

MODEL = "model_name_or_path"


@dataclass
class RunArguments:
    """Settings of every RL run beside those of the policy and of training. A task adds its own, and gives the names of
    data and models its defaults.
    """

    algorithm: str = field(default="grpo", metadata={"help": "grpo or ppo."})
    dataset_name: str = field(default="", metadata={"help": "Prompts: Hub name, file, folder or embedded set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of the training prompts."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split of the evaluation prompts."})
    reward_model_name_or_path: str = field(default="", metadata={"help": "Scorer that is optimised."})
    judge_model_name_or_path: str = field(default="none", metadata={"help": "Held-out scorer that only measures."})
    num_train_prompts: int | None = field(default=None, metadata={"help": "Training prompts; default all."})
    num_eval_prompts: int = field(default=256, metadata={"help": "Held-out prompts measured before and after."})
    num_validation_prompts: int = field(
        default=64,
        metadata={"help": "Training prompts kept back to measure while training, where eval_strategy asks for it."},
    )
    eval_seed: int = field(default=1234, metadata={"help": "Seed of the evaluation's sampling."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of torch; default: all cores, or OMP_NUM_THREADS."}
    )


@dataclass(frozen=True)
class Experiment:
    """What parse_arguments needs to know of an experiment.

    script: the dataclass of its own settings, with `algorithm`. algorithms: name -> (config class, defaults of the
    embedded run, defaults of any other policy). critics: what the embedded run changes for each critic. check: refuses
    settings that cannot work together, by ValueError. policy: the embedded policy.
    """

    script: type
    algorithms: Mapping[str, tuple[type[ScopeGRPOConfig], dict[str, Any], dict[str, Any]]]
    critics: Mapping[str, dict[str, Any]]
    check: Callable[[Any, PolicyConfig, Any], None]
    policy: str
    algorithm: str = "grpo"


def parse_arguments(
    experiment: Experiment, argv: Sequence[str], prog: str | None = None, algorithm: str | None = None
) -> tuple[Any, PolicyConfig, ScopeGRPOConfig]:
    """(settings of the experiment, of the policy, of training). Unknown keys, and what cannot work, are ValueErrors.

    The defaults are the embedded run's where the policy is an embedded one, else the paper's; `algorithm` is the one
    of the command (`scope-rlhf ppo`), otherwise --algorithm or the file says it, or else the experiment.
    """
    argv, config_file = take_config(spell(argv))
    config = read_config(config_file) if config_file else {}
    chosen = value_of(argv, "--algorithm") or config.get("algorithm") or algorithm or experiment.algorithm
    if chosen not in experiment.algorithms:
        raise ValueError(f"algorithm must be {' or '.join(experiment.algorithms)}, got {chosen!r}; set --algorithm.")
    if algorithm not in (None, chosen):
        raise ValueError(f"`scope-rlhf {algorithm}` with algorithm {chosen!r}: use `scope-rlhf {chosen}`.")
    training_class, embedded, paper = experiment.algorithms[chosen]
    model = value_of(argv, "--model_name_or_path") or config.get("model_name_or_path") or experiment.policy
    defaults = dict(embedded if model in EMBEDDED_MODELS else paper)
    defaults["algorithm"] = chosen
    if chosen == "ppo":
        critics = experiment.critics if model in EMBEDDED_MODELS else {}
        _fit_to_critic(defaults, critics, lambda name: value_of(argv, f"--{name}") or config.get(name))
    # Without it torchrun on CPUs starts processes that never join.
    defaults["use_cpu"] = not torch.accelerator.is_available()
    if any(is_given(argv, config, name) for name in ("steps_per_generation", "generation_batch_size")):
        defaults.pop("steps_per_generation", None)
    if is_given(argv, config, "total_episodes"):
        defaults.pop("max_steps")
    script, policy, training = parse_settings(
        (experiment.script, PolicyConfig, training_class), defaults, argv, config, config_file, prog
    )
    experiment.check(script, policy, training)
    return script, policy, training


def parse_stage(
    classes: tuple[type, ...],
    embedded: Mapping[str, Any],
    paper: Mapping[str, Any],
    argv: Sequence[str],
    prog: str | None = None,
    given: Mapping[str, Any] | None = None,
) -> tuple[Any, ...]:
    """parse_settings for supervised stages: `embedded` are the defaults where the model is an embedded one or none is
    named, `paper` those of any other; `given`, what a chain has settled, goes over both.
    """
    given = given or {}
    argv, config_file = take_config(spell(argv))
    config = read_config(config_file) if config_file else {}
    name = value_of(argv, "--model_name_or_path") or config.get("model_name_or_path") or given.get(MODEL)
    defaults = {**(embedded if not name or name in EMBEDDED_MODELS else paper)}
    defaults["use_cpu"] = not torch.accelerator.is_available()
    # TRL's own default is bf16 wherever fp16 is off, also on CPUs that emulate it.
    defaults["bf16"] = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    defaults |= given
    return parse_settings(classes, defaults, argv, config, config_file, prog)


def _fit_to_critic(
    defaults: dict[str, Any], critics: Mapping[str, dict[str, Any]], given: Callable[[str], Any]
) -> None:
    """Defaults of the critic that is asked for; without a critic none of its settings."""
    if given("advantage_estimator") not in (None, "gae"):
        for name in CRITIC_ONLY:
            defaults.pop(name, None)
        if (given("num_generations") or defaults["num_generations"]) == 1:
            defaults["num_generations"] = 4
    elif critics:
        defaults |= critics.get(given("critic") or "mse", {})
        if given("critic_kwargs") is not None:
            defaults.pop("critic_kwargs", None)


def check_run(script: RunArguments, policy: PolicyConfig, training: ScopeGRPOConfig) -> None:
    """ValueError for sizes and settings of an RL run that cannot work together, before anything is loaded."""
    if isinstance(training, ScopePPOConfig):
        check_adapter(training, policy.use_peft or is_adapter(policy.model_name_or_path or ""))
    if script.num_train_prompts is not None and script.num_train_prompts < 1:
        raise ValueError(f"num_train_prompts must be at least 1, or left out for all, got {script.num_train_prompts}.")
    if script.num_eval_prompts < 2:
        raise ValueError(f"num_eval_prompts must be at least 2 for an interval, got {script.num_eval_prompts}.")
    if training.eval_strategy != "no" and script.num_validation_prompts < 1:
        raise ValueError(
            f"eval_strategy={training.eval_strategy!s} needs validation prompts, got num_validation_prompts="
            f"{script.num_validation_prompts}; set --num_validation_prompts."
        )
    if training.max_completion_length is None or training.max_completion_length < 1:
        raise ValueError(f"max_completion_length must be at least 1, got {training.max_completion_length}.")
    if script.num_threads is not None and script.num_threads < 1:
        raise ValueError(f"num_threads must be at least 1, got {script.num_threads}.")
    check_push(training)


def check_push(training: TrainingArguments) -> None:
    """ValueError for push_to_hub without a repository."""
    if training.push_to_hub and not training.hub_model_id:
        raise ValueError(
            "push_to_hub needs the repository: set --hub_model_id, which alone pushes the final model with its card."
        )
