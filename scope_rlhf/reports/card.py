"""The model card: README.md beside the saved model, with the numbers of the run."""

import json
import os
from pathlib import Path
from typing import Any

import yaml

from scope_rlhf.reports.labels import algorithm_name, command_text, commit_text, format_parameter, objective_label
from scope_rlhf.reports.markdown import code_block, escape_cell, inline_code, markdown_table
from scope_rlhf.reports.run_report import honest_notes, objective_section, result_section, samples_section
from scope_rlhf.reports.win_rate import win_rate_section
from scope_rlhf.runtime import RunFolder, write_text

# What a reader needs to judge the training, in this order, where the run's arguments have it.
HYPERPARAMETERS = (
    "learning_rate",
    "lr_scheduler_type",
    "beta",
    "kl_coef",
    "kl_target",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_generations",
    "num_iterations",
    "num_ppo_epochs",
    "num_mini_batches",
    "advantage_estimator",
    "gamma",
    "lam",
    "critic",
    "critic_kwargs",
    "critic_backbone",
    "vf_coef",
    "max_completion_length",
    "temperature",
    "loss_type",
    "scale_rewards",
    "max_grad_norm",
    "use_peft",
    "lora_r",
    "lora_alpha",
    "lora_dropout",
    "lora_target_modules",
    "seed",
)
# Of the parent's settings, those that PPO sets from its own.
NOT_OF_PPO = ("beta", "num_iterations", "scale_rewards")


def write_model_card(
    run_dir: str | os.PathLike[str],
    model_dir: str | os.PathLike[str],
    *,
    title: str | None = None,
    license: str | None = None,
    load_path: str | None = None,
) -> Path:
    """Write README.md into model_dir from the files of the run folder, and return its path.

    license: an identifier of the Hub such as "apache-2.0". None says that the base model's licence applies.
    load_path: what the snippet loads, the Hub name after a push; default: model_dir as given.
    A folder with adapter_config.json is described as an adapter.
    """
    run, model_dir = RunFolder(run_dir), Path(model_dir)
    config, evaluation = run.read_config(), run.read_evaluation() or {}
    arguments, objective = config.get("arguments") or {}, config.get("objective") or {}
    adapter = (model_dir / "adapter_config.json").exists()
    name = Path(str(arguments.get("model_name_or_path") or "policy")).name
    algorithm = algorithm_name(arguments)
    title = title or f"{name} after {algorithm.upper()} with {objective_label(objective, brief=True)}"
    header = card_header(config, evaluation, title, adapter, license)
    base = arguments.get("model_name_or_path")
    kind = "A LoRA adapter for" if adapter else "A fine-tuned version of"
    trained_on = f" on prompts of {inline_code(arguments['dataset_name'])}" if arguments.get("dataset_name") else ""
    reward = arguments.get("reward_model_name_or_path")
    rewarded = f" to raise the score of {inline_code(reward)}" if reward else ""
    hyperparameters = [
        (inline_code(name), inline_code(_value(arguments[name])))
        for name in HYPERPARAMETERS
        if arguments.get(name) is not None
        and not (name == "num_train_epochs" and arguments.get("max_steps", -1) > 0)
        and not (name in NOT_OF_PPO and algorithm == "ppo")
    ]
    parts = [
        f"# {escape_cell(title)}",
        f"{kind} {inline_code(base) if base else 'its base model'}, trained with reinforcement learning{trained_on}"
        f"{rewarded}. Policy objective: {inline_code(objective_label(objective))}. Trained by scope-rlhf on TRL.",
        "## Results",
        result_section(evaluation),
        "\n".join(f"- {note}" for note in honest_notes(evaluation, run.read_metrics(), arguments)),
        *(["## Win rate", win_rate_section(evaluation["win_rates"])] if evaluation.get("win_rates") else []),
        "## Load",
        code_block(load_snippet(load_path or str(model_dir), adapter, base, _first_prompt(run)), "python"),
        critic_section(model_dir),
        "## Objective",
        objective_section(objective),
        "## Training",
        markdown_table(("hyperparameter", "value"), hyperparameters),
        f"Hardware: {escape_cell(config.get('device', 'unknown'))}, {config.get('cpu_count', '?')} CPU cores, "
        f"{config.get('processes', 1)} process(es). Started {config.get('started', 'at an unknown time')}. Versions: "
        + ", ".join(f"{name} {version}" for name, version in (config.get("versions") or {}).items() if version)
        + ".",
        "## Reproduce",
    ]
    command = command_text(config)
    if command:
        parts.append(code_block(command, "bash"))
    parts.append(f"Commit of scope-rlhf: {commit_text(config)}.")
    samples = run.read_samples()
    if samples:
        parts += ["## Samples", samples_section(samples)]
    parts += ["## Limits", _limits(license)]
    path = model_dir / "README.md"
    front_matter = f"---\n{yaml.safe_dump(header, sort_keys=False, allow_unicode=True)}---"
    write_text(path, "\n\n".join([front_matter, *filter(None, parts)]) + "\n")
    return path


def critic_section(model_dir: Path) -> str:
    """What lies beside the policy where PPO has trained a critic; else empty."""
    if not (model_dir / "critic.json").exists():
        return ""
    return (
        "`critic.safetensors` and `critic.json` hold the critic (value head, its backbone where it has one, and its "
        "support). The policy does not need them; `--critic_path` starts another PPO run from them."
    )


def card_header(
    config: dict[str, Any], evaluation: dict[str, Any], title: str, adapter: bool, license: str | None
) -> dict[str, Any]:
    """The YAML header: names that are no Hub names (embedded models, local folders) stay out of it."""
    arguments, objective = config.get("arguments") or {}, config.get("objective") or {}
    header: dict[str, Any] = {}
    base, dataset = arguments.get("model_name_or_path"), arguments.get("dataset_name")
    if is_hub_name(base):
        header["base_model"] = base
        header["base_model_relation"] = "adapter" if adapter else "finetune"
    if is_hub_name(dataset):
        header["datasets"] = [dataset]
    header |= {
        "language": "en",
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "text-generation",
    }
    if license:
        header["license"] = license
    else:
        header |= {"license": "other", "license_name": "license-of-the-base-model"}
    own = bool(objective.get("file"))
    header["tags"] = [
        "rlhf",
        algorithm_name(arguments),
        "trl",
        "scope-rlhf",
        *([] if own else [str(objective.get("name"))]),
    ]
    results = [
        {
            "type": name,
            "name": f"{metric.get('label') or name} ({side} training)",
            "value": round(float(metric[side]), 4),
        }
        for name, metric in (evaluation.get("metrics") or {}).items()
        for side in ("before", "after")
        if isinstance(metric.get(side), int | float)
    ]
    results += [
        {
            "type": "win_rate",
            "name": f"win rate of {rate['system_a']['name']} over {rate['system_b']['name']}, judge {rate['judge']}, "
            f"95 % interval {100 * found['low']:.1f} to {100 * found['high']:.1f} %",
            "value": round(found["value"], 4),
        }
        for rate in evaluation.get("win_rates") or []
        if (found := (rate["win_rate"] or {}).get("rate")) and None not in (found["low"], found["high"])
    ]
    if results:
        data = str(dataset or "prompts of the run")
        header["model-index"] = [
            {
                "name": title,
                "results": [
                    {
                        "task": {"type": "text-generation", "name": "Text generation"},
                        "dataset": {"name": f"{data}, {evaluation.get('prompts', '?')} held-out prompts", "type": data},
                        "metrics": results,
                    }
                ],
            }
        ]
    return header


def is_hub_name(name: Any) -> bool:
    """Whether a setting can be a Hub name: not empty, not ours, and not a path that exists here."""
    if not isinstance(name, str) or not name or name.startswith(("embedded/", ".", "/", "~")) or name.count("/") > 1:
        return False
    # The package's own sets have a dataset name without being on the Hub.
    return name not in ("movie-reviews", "documentation") and not Path(name).exists()


def _first_prompt(run: RunFolder) -> str:
    samples = run.read_samples()
    return str(samples[0]["prompt"]) if samples else "This movie"


def load_snippet(path: str, adapter: bool, base: str | None = None, prompt: str = "This movie") -> str:
    """Python that samples from the model. An adapter of an embedded model loads by this package: PEFT asks the Hub."""
    sample = [
        f'inputs = tokenizer({json.dumps(prompt)}, return_tensors="pt")',
        "output = model.generate(**inputs, do_sample=True, top_k=0, max_new_tokens=48)",
        "print(tokenizer.decode(output[0], skip_special_tokens=True))",
    ]
    if adapter and str(base).startswith("embedded/"):
        load = "from scope_rlhf.models.loading import PolicyConfig, load_policy"
        return "\n".join(
            [load, "", f'model, tokenizer, _ = load_policy(PolicyConfig(model_name_or_path="{path}"))', *sample]
        )
    kind = "peft" if adapter else "transformers"
    loader = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    imports = [f"from {kind} import {loader}", "from transformers import AutoTokenizer"]
    if not adapter:
        imports = ["from transformers import AutoModelForCausalLM, AutoTokenizer"]
    return "\n".join(
        [
            *imports,
            "",
            f'model = {loader}.from_pretrained("{path}")',
            f'tokenizer = AutoTokenizer.from_pretrained("{path}")',
            *sample,
        ]
    )


def _limits(license: str | None) -> str:
    lines = [
        "The model was trained to raise the score of a reward model, which stands for a preference and is not one. It "
        "has not been evaluated for accuracy, safety or bias, and inherits those of its base model and data.",
        "Numbers hold for the sampling settings named above; other settings give other text.",
    ]
    if not license:
        lines.append("The licence of the base model applies.")
    return "\n".join(f"- {line}" for line in lines)


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else format_parameter(value)
