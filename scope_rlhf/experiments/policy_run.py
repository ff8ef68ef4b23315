"""One RL run of a language model on any task: data -> model -> trainer -> evaluation -> report.

Everything a run leaves is in one folder (runtime.RunFolder); the reward model is optimised, the held-out judge only
measures.
"""

import copy
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from huggingface_hub import HfApi
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase, ProgressCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from scope_rlhf.data.loading import dataset_fingerprint
from scope_rlhf.evaluation.policy import Sample, compare_samples, sample_policy
from scope_rlhf.experiments.arguments import RunArguments
from scope_rlhf.experiments.resume import check_same_run, choose_output, find_checkpoint
from scope_rlhf.hub import explain_push_errors
from scope_rlhf.models.loading import PolicyConfig, find_model, load_policy, load_policy_tokenizer
from scope_rlhf.models.reward import RewardScorer
from scope_rlhf.objectives import describe_objective
from scope_rlhf.reports import evaluation_table, find_panels, plot_curves, write_model_card, write_report
from scope_rlhf.runtime import RunFolder, is_main_process, write_json
from scope_rlhf.runtime.threads import set_threads
from scope_rlhf.trainers.callbacks import MetricsFile, ProgressLine
from scope_rlhf.trainers.grpo import ScopeGRPOTrainer
from scope_rlhf.trainers.grpo_config import ScopeGRPOConfig
from scope_rlhf.trainers.ppo import ScopePPOTrainer
from scope_rlhf.trainers.ppo_checks import find_stop_token
from scope_rlhf.trainers.ppo_config import ScopePPOConfig

TRAINERS: dict[str, type[ScopeGRPOTrainer]] = {"grpo": ScopeGRPOTrainer, "ppo": ScopePPOTrainer}


@dataclass(frozen=True)
class Task:
    """What a task gives to an RL run.

    name: begins the name of a fresh folder. reward, judge: names of the scorers in the metrics; labels: what the table
    of results calls their scores. output: see RewardScorer. prompt_length: tokens of the longest prompt, from the
    settings. load_prompts: (settings, training, tokenizer) -> prompts of training and of evaluation.
    """

    name: str
    reward: str
    judge: str
    labels: tuple[str, str]
    prompt_length: Callable[[Any], int]
    load_prompts: Callable[[Any, ScopeGRPOConfig, PreTrainedTokenizerBase], tuple[Dataset, Dataset]]
    output: str = "probability"


def run_policy(
    task: Task, script: RunArguments, policy: PolicyConfig, training: ScopeGRPOConfig, alone: bool = True
) -> Path:
    """Train and measure; returns the run folder. ValueError for what cannot work, before anything is trained.

    alone: whether nothing comes after it: the model is pushed, and trackers and process group are ended. A stage is not
    alone; its folder says by a hash that a resumed run has the same settings, also where models have moved.
    """
    set_threads(script.num_threads)
    console = Console(quiet=training.process_index != 0)
    resumed = find_checkpoint(training)
    if resumed is not None and alone:
        check_same_run(Path(resumed).parent, _arguments(script, policy, training), console)
    _check_names(task, script, policy, training)
    if training.hub_model_id:
        make_hub_repository(training)
    # One folder for all ranks: its name is the time, which two processes read apart.
    folder = RunFolder(broadcast_object_list([choose_output(training, resumed, task.name, script.algorithm)])[0])
    training.output_dir = str(folder.path)
    with folder:
        started = time.perf_counter()
        console.print(f"[bold]1/5[/] data and models -> {folder.path}")
        # What is cheap to read comes first: a wrong name must not cost the loading of a large policy.
        tokenizer = load_policy_tokenizer(policy)
        if isinstance(training, ScopePPOConfig):
            find_stop_token(training, tokenizer)
        train_prompts, eval_prompts = task.load_prompts(script, training, tokenizer)
        validation = None
        if training.eval_strategy != "no":
            train_prompts, validation = _keep_back(train_prompts, script.num_validation_prompts)
        scorers = _load_scorers(task, script)
        model, _, peft_config = load_policy(policy, tokenizer)
        reference = None if peft_config or isinstance(model, PeftModel) else copy.deepcopy(model).eval()
        if training.reward_weights is None:
            # The judge is read on every rollout and never enters an advantage.
            training.reward_weights = [1.0 if name == task.reward else 0.0 for name in scorers]
        trainer = TRAINERS[script.algorithm](
            model,
            [scorer.as_reward_function(name) for name, scorer in scorers.items()],
            training,
            train_dataset=train_prompts,
            eval_dataset=validation,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        if resumed is not None:
            trainer.check_checkpoint(Path(resumed))
        quiet_callbacks(trainer, folder)
        folder.write_config(
            _arguments(script, policy, training),
            describe_objective(trainer.objective),
            training.seed,
            resumed=resumed is not None,
            data={
                "train_prompts": len(train_prompts),
                "eval_prompts": len(eval_prompts),
                "train_fingerprint": dataset_fingerprint(train_prompts),
                "eval_fingerprint": dataset_fingerprint(eval_prompts),
            },
        )
        settings = {
            "max_new_tokens": training.max_completion_length, "temperature": training.temperature,
            "reference": reference, "seed": script.eval_seed,
            "show_progress": training.process_index == 0,
        }  # fmt: skip

        def measure(description: str) -> list[Sample]:
            # Every rank draws the same samples; sharding is not worth a collective at this size.
            unwrapped = trainer.accelerator.unwrap_model(trainer.model_wrapped)
            return sample_policy(
                unwrapped, tokenizer, eval_prompts["prompt"], scorers, description=description, **settings
            )

        console.print(f"[bold]2/5[/] measuring the start on {len(eval_prompts)} held-out prompts")
        before = _before(folder, resumed, lambda: measure("before"))
        console.print(f"[bold]3/5[/] training with {trainer.objective}")
        trainer.train(resume_from_checkpoint=resumed)
        trained = time.perf_counter() - started
        console.print("[bold]4/5[/] measuring the result on the same prompts")
        after = measure("after")
        console.print("[bold]5/5[/] report, model and card")
        model_dir = folder.path / "model"
        trainer.save_model(str(model_dir))
        if trainer.is_world_process_zero():
            named = zip((task.reward, task.judge), task.labels, strict=True)
            labels = {name: scorers[name].describe(label) for name, label in named if name in scorers}
            seconds = time.perf_counter() - started
            _write_results(folder, task, script, training, labels, before, after, seconds, trained)
            tokenizer.save_pretrained(model_dir)
            _name_the_base(model_dir, policy.model_name_or_path)
            if find_panels(folder.read_metrics()):
                plot_curves(folder.path)
            write_report(folder.path)
            write_model_card(folder.path, model_dir, load_path=training.hub_model_id)
            evaluation = folder.read_evaluation()
            assert evaluation is not None
            console.print(evaluation_table(evaluation))
            written = [folder.path / name for name in ("report.md", "curves.png")]
            console.print("   ".join(f"{file.name}: {file}" for file in written if file.exists()))
            if training.hub_model_id and alone:
                push_model(model_dir, training)
                console.print(f"pushed to {training.hub_model_id}")
        trainer.accelerator.wait_for_everyone()
        if alone:
            trainer.accelerator.end_training()
    return folder.path


def make_hub_repository(training: TrainingArguments) -> None:
    """The repository of hub_model_id, made before training: a missing login shows now and not hours later."""
    if training.process_index == 0:
        repo_id = str(training.hub_model_id)
        with explain_push_errors(repo_id, "--hub_model_id"):
            HfApi(token=training.hub_token).create_repo(repo_id, private=training.hub_private_repo, exist_ok=True)


def push_model(model_dir: Path, training: TrainingArguments) -> None:
    """Upload the model folder with its card to hub_model_id."""
    repo_id = str(training.hub_model_id)
    with explain_push_errors(repo_id, "--hub_model_id"):
        HfApi(token=training.hub_token).upload_folder(
            repo_id=repo_id, folder_path=model_dir, commit_message="scope-rlhf: model, card and numbers"
        )


def quiet_callbacks(trainer: Any, run: RunFolder) -> None:
    """One progress line and metrics.jsonl in place of the printed dictionaries."""
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    trainer.add_callback(ProgressLine())
    trainer.add_callback(MetricsFile(run))


def quiet_libraries() -> None:
    """Deprecations between transformers and TRL, and bars of half a second, are no news to the user of a run."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    if not torch.cuda.is_available():
        warnings.filterwarnings("ignore", message=".*pin_memory.*", module=r"torch\.utils\.data")


def _check_names(task: Task, script: RunArguments, policy: PolicyConfig, training: ScopeGRPOConfig) -> None:
    """ValueError for a name that leads to no model, and for lengths that the policy does not have."""
    names = {"--reward_model_name_or_path": script.reward_model_name_or_path}
    if script.judge_model_name_or_path.lower() != "none":
        names["--judge_model_name_or_path"] = script.judge_model_name_or_path
    if isinstance(training, ScopePPOConfig) and training.critic_model_name_or_path is not None:
        names["--critic_model_name_or_path"] = training.critic_model_name_or_path
    for setting, name in names.items():
        find_model(name, setting)
    name = policy.model_name_or_path or ""
    config = find_model(name, "--model_name_or_path", revision=policy.model_revision)[1]
    if config is None:
        return  # the base model's config is read with the adapter
    check_positions(name, config, task.prompt_length(script), training.max_completion_length or 0)


def check_positions(name: str, config: Any, prompt_length: int, completion_length: int) -> None:
    """ValueError where prompt and completion have more tokens than the model positions."""
    longest, wanted = getattr(config, "max_position_embeddings", None), prompt_length + completion_length
    if longest is not None and wanted > longest:
        raise ValueError(
            f"prompts of up to {prompt_length} tokens + max_completion_length {completion_length} = {wanted} tokens, "
            f"but {name} has {longest} positions; lower one of the two."
        )


def _keep_back(prompts: Dataset, count: int) -> tuple[Dataset, Dataset]:
    """The training prompts without their last `count`, and these: the evaluation's prompts are not chosen by."""
    if count >= len(prompts):
        raise ValueError(
            f"num_validation_prompts={count} leaves nothing of the {len(prompts)} training prompts; lower it."
        )
    rest = len(prompts) - count
    return prompts.select(range(rest)), prompts.select(range(rest, len(prompts)))


def _load_scorers(task: Task, script: RunArguments) -> dict[str, RewardScorer]:
    scorers = {task.reward: RewardScorer.from_pretrained(script.reward_model_name_or_path, output=task.output)}
    if script.judge_model_name_or_path.lower() != "none":
        scorers[task.judge] = RewardScorer.from_pretrained(
            script.judge_model_name_or_path, setting="--judge_model_name_or_path", output=task.output
        )
    return scorers


def _name_the_base(model_dir: Path, name: str | None) -> None:
    """The adapter names its base as the user did, not the folder that it resolved to: it is to load elsewhere too.

    Written after saving, because PEFT looks the name up on the Hub while it saves.
    """
    file = model_dir / "adapter_config.json"
    if file.exists():
        write_json(file, {**json.loads(file.read_text(encoding="utf-8")), "base_model_name_or_path": name})


def _before(folder: RunFolder, resumed: str | None, measure: Any) -> list[Sample]:
    """The measurement of the untrained policy: kept on disk, so that a resumed run compares with its own start."""
    file = folder.path / "before.json"
    if resumed is not None and file.exists():
        return [Sample(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
    samples = measure()
    if is_main_process():
        write_json(file, [asdict(sample) for sample in samples])
    return samples


def _arguments(script: RunArguments, policy: PolicyConfig, training: ScopeGRPOConfig) -> dict[str, Any]:
    return {**training.to_dict(), **asdict(policy), **asdict(script)}


def _write_results(
    folder: RunFolder,
    task: Task,
    script: RunArguments,
    training: ScopeGRPOConfig,
    labels: dict[str, str],
    before: list[Sample],
    after: list[Sample],
    seconds: float,
    trained: float,
) -> None:
    metrics = compare_samples(before, after, labels)
    short = {task.reward: "reward", task.judge: "judge"}
    folder.write_evaluation(
        {
            "prompts": len(before),
            "temperature": training.temperature,
            "max_new_tokens": training.max_completion_length,
            "seed": script.eval_seed,
            "seconds": round(seconds, 1),
            "seconds_until_trained": round(trained, 1),
            "metrics": {short.get(name, name): row for name, row in metrics.items()},
        }
    )
    rows = []
    for first, second in zip(before, after, strict=True):
        row: dict[str, Any] = {"prompt": first.prompt, "before": first.completion, "after": second.completion}
        for name in labels:
            row[f"{short[name]}_before"], row[f"{short[name]}_after"] = first.scores[name], second.scores[name]
        rows.append(row)
    folder.write_samples(rows)
