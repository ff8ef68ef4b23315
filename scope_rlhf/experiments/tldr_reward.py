"""Reward models of summaries from preference pairs: a stage of TL;DR, and reward_models/tldr_preference.py.

role "reward" trains the model that RL optimises, role "judge" the held-out one that only measures: another seed and,
of the embedded set, another part of the documentation, so that the two share no page. Accuracy, agreement by kind of
pair and calibration are measured on a part that neither has seen.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich.console import Console
from trl import RewardConfig

from scope_rlhf.data.documentation import EMBEDDED_DOCUMENTATION, load_documentation
from scope_rlhf.data.loading import dataset_fingerprint
from scope_rlhf.data.tldr import SYNTHETIC_KINDS, load_tldr, load_tldr_preferences
from scope_rlhf.evaluation.completions import System, generate, read_system
from scope_rlhf.experiments.arguments import parse_stage
from scope_rlhf.experiments.policy_run import quiet_callbacks, quiet_libraries
from scope_rlhf.experiments.stages import Stage, check_stage, model_identity, run_alone, run_stage, stage_inputs
from scope_rlhf.experiments.systems import load_model
from scope_rlhf.experiments.tldr_arguments import EMBEDDED_POLICY
from scope_rlhf.experiments.tldr_results import reward_card, reward_table
from scope_rlhf.experiments.tldr_sft import cut_prompts
from scope_rlhf.metrics.calibration import accuracy_by_kind, calibration_error, preference_accuracy
from scope_rlhf.models.loading import PolicyConfig, find_model, torch_dtype
from scope_rlhf.reports.calibration import plot_calibration
from scope_rlhf.runtime import RunFolder, is_main_process, write_text
from scope_rlhf.trainers.checkpoints import newest_checkpoint
from scope_rlhf.trainers.reward import ScopeRewardTrainer, load_classifier, reward_lora

ROLES = ("reward", "judge")
# Parts of the documentation; measured on `held_out`, seeds 0 and 1.
PARTS = {"reward": "policy", "judge": "judge"}
HELD_OUT = "held_out"
# Of other pairs the judge takes the prompts whose hash is from here on, out of 100: no prompt is in both.
JUDGE_SHARE = 70
# No arguments: one epoch over three kinds of pairs, about two minutes on two CPU cores. The judge's part has 1,736.
EMBEDDED_REWARD: dict[str, Any] = {
    "model_name_or_path": EMBEDDED_POLICY,
    "max_prompt_length": 80,
    "max_new_tokens": 32,
    "num_train_entries": 2400,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 16,
    "learning_rate": 5e-4,
    "lr_scheduler_type": "linear",
    "warmup_steps": 10,
    "gradient_checkpointing": False,
    "dataloader_pin_memory": False,
    "logging_steps": 10,
    "save_steps": 100,
    "save_total_limit": 1,
    "report_to": "none",
}
# Any other model: the N implementation details (arXiv 2403.17031, table 5): lr 3e-6, batch 64, one epoch, cosine.
PAPER_REWARD: dict[str, Any] = {
    "dataset_name": "trl-lib/tldr-preference",
    "max_prompt_length": 512,
    "max_new_tokens": 169,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 8,
    "learning_rate": 3e-6,
    "lr_scheduler_type": "cosine",
    "gradient_checkpointing": False,
    "logging_steps": 10,
    "save_steps": 200,
    "save_total_limit": 1,
    "report_to": "none",
}


@dataclass
class RewardArguments:
    """What a reward model adds to the settings of its base model and of TRL's RewardConfig."""

    role: str = field(default="reward", metadata={"help": "reward (optimised by RL) or judge (only measures)."})
    dataset_name: str = field(
        default=EMBEDDED_DOCUMENTATION,
        metadata={"help": "Preference pairs: Hub name such as trl-lib/tldr-preference, file, folder; or embedded."},
    )
    dataset_train_split: str = field(default="train", metadata={"help": "Split that is trained on."})
    dataset_test_split: str = field(default="validation", metadata={"help": "Split that is measured."})
    max_prompt_length: int = field(
        default=512, metadata={"help": "Tokens; a longer prompt ends at its last line break that fits, then the cue."}
    )
    max_new_tokens: int = field(default=169, metadata={"help": "Tokens of a summary; longer pairs are left out."})
    num_train_entries: int | None = field(default=None, metadata={"help": "Prompts to train on, at most; default all."})
    num_eval_entries: int | None = field(default=None, metadata={"help": "Prompts to measure on; default all."})
    sampled_from: str | None = field(
        default=None,
        metadata={"help": "Model whose samples are rejected summaries of synthetic pairs; without it no such pairs."},
    )
    sampling_temperature: float = field(default=0.7, metadata={"help": "Temperature of these samples."})
    num_threads: int | None = field(
        default=None, metadata={"help": "CPU threads of torch; default: all cores, or OMP_NUM_THREADS."}
    )


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Train as the command line says; the exit status."""
    quiet_libraries()
    script, policy, training = parse_reward(argv, prog)
    return run_alone(
        training, script.num_threads, lambda root, console: run_reward(script, policy, training, root, console),
        lambda results: reward_table(script.role, results),
    )  # fmt: skip


def parse_reward(
    argv: Sequence[str], prog: str | None = None, given: Mapping[str, Any] | None = None
) -> tuple[RewardArguments, PolicyConfig, RewardConfig]:
    """Settings of the stage: the command line over `--config file.yaml` over `given` over the defaults; ValueError for
    what cannot work.
    """
    classes = (RewardArguments, PolicyConfig, RewardConfig)
    script, policy, training = parse_stage(classes, EMBEDDED_REWARD, PAPER_REWARD, argv, prog, given)
    if script.role not in ROLES:
        raise ValueError(f"role must be {' or '.join(ROLES)}, got {script.role!r}; set --role.")
    for name in ("max_prompt_length", "max_new_tokens", "num_train_entries", "num_eval_entries"):
        value = getattr(script, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; set --{name}.")
    if not script.sampling_temperature > 0:
        raise ValueError(f"sampling_temperature must be positive, got {script.sampling_temperature}.")
    if script.sampled_from is not None and script.dataset_name != EMBEDDED_DOCUMENTATION:
        raise ValueError(
            f"sampled_from makes synthetic pairs, which only {EMBEDDED_DOCUMENTATION} has; leave it out for "
            f"--dataset_name={script.dataset_name!r}."
        )
    if policy.load_in_4bit or policy.load_in_8bit:
        raise ValueError("a reward model is saved whole: quantised weights cannot be; use LoRA on bfloat16 weights.")
    check_stage(training)
    # Two end tokens to spare: TRL adds one, and a tokenizer may add its own in front.
    training.max_length = script.max_prompt_length + script.max_new_tokens + 2
    if script.role == "judge":
        training.seed += 1
    return script, policy, training


def run_reward(
    script: RewardArguments, policy: PolicyConfig, training: RewardConfig, root: Path, console: Console, **upstream: Any
) -> Stage:
    """The stage `reward` or `judge` below root. upstream: what stands for the names of models that other stages of the
    same root have made (model, sampled_from): their folders.
    """
    name = policy.model_name_or_path or ""
    find_model(name, "--model_name_or_path", revision=policy.model_revision)
    identities = {"model": model_identity(name), "sampled_from": model_identity(script.sampled_from or "none")}
    if script.dataset_name == EMBEDDED_DOCUMENTATION:
        data: Any = [dataset_fingerprint(load_tldr(part=part)) for part in (PARTS[script.role], HELD_OUT)]
        pairs = None  # made of samples, in the stage
    else:
        pairs = human_pairs(script, training.seed)
        data = [dataset_fingerprint(part) for part in pairs]
    settings = {**asdict(script), **asdict(policy), **training.to_dict()}
    settings |= {name: None for name in ("sampled_from", "model_name_or_path") if name in settings}
    inputs = stage_inputs(settings, data=data, models={**identities, **upstream})

    def work(folder: Path) -> dict[str, Any]:
        return train_reward(script, policy, training, folder, pairs)

    return run_stage(root, script.role, inputs, work, console)


def train_reward(
    script: RewardArguments,
    policy: PolicyConfig,
    training: RewardConfig,
    folder: Path,
    pairs: tuple[Dataset, Dataset] | None,
) -> dict[str, Any]:
    """Train in the folder, from its newest checkpoint where there is one; what held-out pairs show.

    pairs: to train on and to measure with; None: the synthetic ones.
    """
    training.output_dir = str(folder)
    with RunFolder(folder) as run:
        train, held_out = pairs or make_pairs(script, training.seed, folder)
        model, tokenizer = load_classifier(policy.model_name_or_path or "", dtype=torch_dtype(policy))
        train, held_out = (cut_prompts(data, tokenizer, script.max_prompt_length) for data in (train, held_out))
        peft_config = None
        if policy.use_peft:
            peft_config = reward_lora(model, policy.lora_r, policy.lora_alpha, policy.lora_target_modules)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* pairs are longer than")  # table and card say it
            trainer = ScopeRewardTrainer(
                model, training, processing_class=tokenizer, train_dataset=train, peft_config=peft_config
            )
        quiet_callbacks(trainer, run)
        checkpoint = newest_checkpoint(folder)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        references = dict(zip(train["prompt"], train["chosen"], strict=True))
        offset = trainer.centre([prompt + text for prompt, text in list(references.items())[:512]])
        scorer = trainer.scorer()
        scores = [
            scorer([p + c for p, c in zip(held_out["prompt"], held_out[side], strict=True)])
            for side in ("chosen", "rejected")
        ]
        margins = (scores[0] - scores[1]).tolist()
        longer = [
            len(c.split()) > len(r.split()) for c, r in zip(held_out["chosen"], held_out["rejected"], strict=True)
        ]
        results = {
            "accuracy": asdict(preference_accuracy(margins)),
            "accuracy_by_kind": {
                kind: asdict(found) for kind, found in accuracy_by_kind(margins, held_out["kind"]).items()
            },
            "calibration_error": calibration_error(margins),
            "chosen_is_longer": sum(longer) / len(longer),
            "offset": offset,
            "train_pairs": len(trainer.train_dataset),
            "left_out": len(train) - len(trainer.train_dataset),
            "held_out_pairs": len(held_out),
            "synthetic": any(kind in SYNTHETIC_KINDS for kind in held_out["kind"]),
            "seed": training.seed,
        }
        trainer.save_scorer(folder / "model", results["synthetic"])
        if is_main_process():
            title = f"{script.role}: {len(held_out)} held-out pairs" + (", synthetic" if results["synthetic"] else "")
            plot_calibration(margins, folder / "calibration.png", title)
            card = reward_card(asdict(script), policy.model_name_or_path or "", results)
            for place in (folder / "model", folder):  # in the latter over TRL's own card, which has no numbers
                write_text(place / "README.md", card)
        return results


def make_pairs(script: RewardArguments, seed: int, folder: Path) -> tuple[Dataset, Dataset]:
    """Synthetic pairs to train on and to measure with; samples of `sampled_from` are drawn once and kept."""
    found = []
    for part, entries in ((PARTS[script.role], script.num_train_entries), (HELD_OUT, script.num_eval_entries)):
        # The same held-out pairs whatever the role: the accuracies of reward model and judge compare.
        part_seed = 0 if part == HELD_OUT else seed

        def sample(prompts: list[str], part: str = part, part_seed: int = part_seed) -> list[str]:
            return draw_samples(script, prompts, part_seed, folder / f"samples-{part}.jsonl")

        drawn = sample if script.sampled_from is not None else None
        there = len(load_documentation(part))
        rows = there if entries is None else min(entries, there)
        found.append(load_tldr_preferences(part=part, seed=part_seed, num_rows=rows, sample=drawn))
    return found[0], found[1]


def draw_samples(script: RewardArguments, prompts: list[str], seed: int, file: Path) -> list[str]:
    """A summary sampled from the model for each prompt as cut; read where the file has them already."""
    if not file.exists():
        model, tokenizer = load_model(str(script.sampled_from), "--sampled_from")
        cut = cut_prompts(Dataset.from_dict({"prompt": prompts}), tokenizer, script.max_prompt_length)["prompt"]
        system = generate(
            model, tokenizer, list(cut), name=f"samples of {file.stem.removeprefix('samples-')}",
            max_new_tokens=script.max_new_tokens, temperature=script.sampling_temperature, seed=seed,
            show_progress=is_main_process(),
        )  # fmt: skip
        if is_main_process():
            System("samples", prompts, system.completions, system.ended).write(file)
        return system.completions
    return read_system(str(file), "samples").completions


def human_pairs(script: RewardArguments, seed: int, setting: str = "--dataset_name") -> tuple[Dataset, Dataset]:
    """The role's share of the training split, by the hash of the prompt, and pairs of the other split."""
    name = script.dataset_name
    train = load_tldr_preferences(name, "train", split=script.dataset_train_split, seed=seed, setting=setting)
    own = [i for i, prompt in enumerate(train["prompt"]) if _is_judges(prompt) == (script.role == "judge")]
    if not own:
        raise ValueError(
            f"{setting}={name!r} leaves the {script.role} no pair: of its {len(train)} training pairs the reward model "
            f"takes the prompts whose hash is below {JUDGE_SHARE} %, the judge the others. Give more pairs."
        )
    own = own[: script.num_train_entries]
    test = load_tldr_preferences(
        name, "eval", split=script.dataset_test_split, num_rows=script.num_eval_entries, seed=0, setting=setting
    )
    trained = {train["prompt"][i] for i in own}
    rest = [i for i, prompt in enumerate(test["prompt"]) if prompt not in trained]
    if not rest:
        raise ValueError(
            f"{setting}={name!r}: every prompt of --dataset_test_split={script.dataset_test_split!r} is trained on too."
        )
    return train.select(own), test.select(rest)


def _is_judges(prompt: str) -> bool:
    return int(hashlib.sha256(prompt.encode()).hexdigest()[:8], 16) % 100 >= JUDGE_SHARE
