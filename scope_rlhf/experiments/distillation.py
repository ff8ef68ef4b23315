"""Distillation on a verifiable task: a teacher, a student, and every method from the same start at equal rollouts.

Stages of one folder, each done once (experiments.stages): the teacher and for each seed the student, where none are
named; what both can do; one run for each row and seed; the table.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from rich.console import Console

from scope_rlhf.data.verifiable import TASKS, load_verifiable
from scope_rlhf.evaluation.pass_at_k import make_verifier, sample_and_verify
from scope_rlhf.evaluation.teacher_kl import kl_to_teacher
from scope_rlhf.experiments.distillation_arguments import (
    DistillationArguments,
    parse_distillation,
    settings_of,
)
from scope_rlhf.experiments.jobs import run_jobs
from scope_rlhf.experiments.policy_run import quiet_callbacks, quiet_libraries
from scope_rlhf.experiments.stages import model_identity, run_stage, stage_inputs
from scope_rlhf.experiments.task_models import TaskModel, train_task_model
from scope_rlhf.metrics import SeedResult
from scope_rlhf.metrics.pass_at_k import pass_at_k_estimates
from scope_rlhf.models.loading import PolicyConfig, find_model, load_frozen, load_policy
from scope_rlhf.reports.distillation import distillation_table, write_distillation_table
from scope_rlhf.runtime import RunFolder, is_main_process
from scope_rlhf.runtime.environment import command_line
from scope_rlhf.runtime.files import read_json_lines, write_json_lines
from scope_rlhf.runtime.threads import set_threads
from scope_rlhf.trainers.checkpoints import newest_checkpoint
from scope_rlhf.trainers.distillation import DualPathDistillationTrainer
from scope_rlhf.trainers.distillation_config import DualPathDistillationConfig
from scope_rlhf.trainers.grpo import ScopeGRPOTrainer

TEACHER, START = "teacher", "start"
TEACHER_SETTING = "--teacher_model_name_or_path"
# Wrong completions of the start on which the KL to the teacher is measured, at most.
NUM_STATES = 512
# Settings that say nothing about a single run.
OF_TABLE = ("methods", "full_table", "seeds", "first_seed", "jobs", "num_threads")
# Settings of training that the measurement of the teacher and of the start depends on.
OF_SAMPLES = ("temperature", "max_completion_length", "correct_threshold")


@dataclass(frozen=True)
class Comparison:
    """What a table is made of: results, the run folder of each row and seed, the ks of Pass@k, its title and place."""

    results: list[SeedResult]
    folders: dict[tuple[str, int], Path]
    ks: list[int]
    title: str
    root: Path


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Make the table that the command line describes; the exit status."""
    made = compare_methods(argv, prog)
    if is_main_process():
        console = Console()
        console.print(distillation_table(made.results, made.ks))
        written = write_distillation_table(
            made.results, made.root, made.folders, title=made.title, note=f"`{command_line()}`", ks=made.ks
        )
        console.print(f"table: {written}", highlight=False, soft_wrap=True)
    return 0


def compare_methods(argv: Sequence[str], prog: str | None = None) -> Comparison:
    """Train and measure what is not done yet. ValueError for what cannot work, before anything is trained."""
    quiet_libraries()
    argv, config, config_file, (script, policy, training) = parse_distillation(argv, prog)
    root = Path(training.output_dir if training.output_dir not in (None, "", "trainer_output") else "runs/distillation")
    console = Console(quiet=training.process_index != 0)
    make_verifier(verifier_name(script))
    _, problems = load_problems(script, training)
    longest = training.max_completion_length
    console.print(
        f"{script.dataset_name}: {len(script.methods or [])} rows x {script.seeds} seeds, {script.jobs} at a time, "
        f"completions of at most {longest} tokens, measured on {len(problems)} problems, into {root}",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    seeds = range(script.first_seed, script.first_seed + int(script.seeds or 1))
    # One thread each: on models of this size a second one costs more than it gives, ten times more on a busy machine.
    small = policy.model_name_or_path is None or int(script.jobs or 1) > 1
    threads = script.num_threads or (1 if small else None)
    set_threads(threads)
    teacher = training.teacher_model_name_or_path
    for name, setting in ((policy.model_name_or_path, "--model_name_or_path"), (teacher, TEACHER_SETTING)):
        if name is not None and training.teacher_base_url is None:
            find_model(name, setting)
    students = dict.fromkeys(seeds, str(policy.model_name_or_path))
    if policy.model_name_or_path is None:
        teacher, students = _train_models(script, root, seeds, console, training.process_index != 0)
    shared = (list(argv), config, config_file, str(root), teacher)
    here = teacher is not None and training.teacher_base_url is None
    calls = [(*shared, TEACHER, seeds[0], None, None)] if here else []
    # A student that is named is the start of every seed.
    own = seeds if policy.model_name_or_path is None else seeds[:1]
    calls += [(*shared, START, seed, students[seed], None) for seed in own]
    jobs, quiet = int(script.jobs or 1), training.process_index != 0
    console.print("[bold]what teacher and students can do[/]")
    measured = run_jobs(run_cell, [(*call, threads) for call in calls], jobs, quiet)
    results = [SeedResult(call[5], call[6], found) for call, found in zip(calls, measured, strict=True)]
    starts = dict.fromkeys(seeds, str(results[-1].metrics["folder"]))
    starts |= {result.seed: str(result.metrics["folder"]) for result in results if result.row == START}
    console.print(f"[bold]training[/] {', '.join(script.methods or [])}", highlight=False)
    cells = [(*shared, row, seed, students[seed], starts[seed]) for seed in seeds for row in script.methods or []]
    trained = run_jobs(run_cell, [(*call, threads) for call in cells], jobs, quiet)
    results += [SeedResult(call[5], call[6], found) for call, found in zip(cells, trained, strict=True)]
    folders = {(r.row, r.seed): Path(str(r.metrics["folder"])) for r in results}
    results = [SeedResult(r.row, r.seed, {k: v for k, v in r.metrics.items() if k != "folder"}) for r in results]
    rows = training.generation_batch_size
    title = f"{script.dataset_name}, {training.max_steps} updates of {rows} completions"
    return Comparison(results, folders, script.k, title, root)


def _train_models(
    script: DistillationArguments, root: Path, seeds: Sequence[int], console: Console, quiet: bool
) -> tuple[str, dict[int, str]]:
    """Folders of the teacher and of the student of each seed."""
    shapes = [
        TaskModel(*(getattr(script, f"{name}_{part}") for part in ("n_layer", "n_embd", "sft_steps")))
        for name in (TEACHER, "student")
    ]
    count = script.num_train_prompts or 20_000
    kinds = [(TEACHER, shapes[0], 0), *(("student", shapes[1], seed) for seed in seeds)]
    models = [
        train_task_model(
            name, shape, script.dataset_name, script.task_settings, root, console, num_problems=count, seed=seed,
            quiet=quiet,
        ).model
        for name, shape, seed in kinds
    ]  # fmt: skip
    return str(models[0]), {seed: str(model) for seed, model in zip(seeds, models[1:], strict=True)}


def verifier_name(script: DistillationArguments) -> str:
    return script.verifier or ("exact_answer" if script.dataset_name in TASKS else "math_answer")


def load_problems(script: DistillationArguments, training: DualPathDistillationConfig) -> tuple[Dataset, Dataset]:
    """Problems to train on, in the order of the run's seed, and to measure with, the same for all runs."""
    found = []
    for name, part, split, number, seed in (
        (script.dataset_name, "train", script.dataset_train_split, script.num_train_prompts, training.seed),
        (script.eval_dataset_name or script.dataset_name, "test", script.dataset_test_split, script.num_eval_prompts,
         script.eval_seed),
    ):  # fmt: skip
        if name in TASKS:
            number = number or 8192
            found.append(load_verifiable(name, part, number, seed, task_kwargs=script.task_settings))
        else:
            found.append(load_verifiable(name, part, number, seed, split=split, instruction=script.instruction))
    return found[0], found[1]


def run_cell(
    argv: list[str],
    config: dict[str, Any],
    config_file: str | None,
    root: str,
    teacher: str | None,
    row: str,
    seed: int,
    student: str | None,
    start: str | None,
    threads: int | None,
) -> dict[str, Any]:
    """Metrics and `folder` of one run, or of the teacher, or of the start, whose wrong completions it keeps."""
    quiet_libraries()
    set_threads(threads)
    trained = row not in (TEACHER, START)
    script, policy, training = settings_of(argv, config, config_file, row if trained else None, seed)
    policy.model_name_or_path = student
    training.teacher_model_name_or_path = teacher
    settings = {name: value for name, value in asdict(script).items() if name not in OF_TABLE}
    names = {"teacher": teacher, "student": student, "start": start}
    used = training.to_dict() if trained else {name: getattr(training, name) for name in OF_SAMPLES}
    inputs = stage_inputs(
        settings, {**asdict(policy), "model_name_or_path": None}, used, row=row, seed=seed,
        teacher_model_name_or_path=None,
        **{name: model_identity(value) for name, value in names.items() if value and name != "start"},
    )  # fmt: skip
    slug = "".join(c if c.isalnum() or c in "._" else "-" for c in (row if trained else f"measured-{row}"))

    def work(folder: Path) -> dict[str, Any]:
        if not trained:
            return _measure_given(script, policy, training, folder, row)
        return _train(script, policy, training, folder, row, str(start))

    stage = run_stage(root, f"{slug}-seed{seed}", inputs, work, Console(quiet=True))
    return {**stage.results, "folder": str(stage.folder)}


def _train(
    script: DistillationArguments,
    policy: PolicyConfig,
    training: DualPathDistillationConfig,
    folder: Path,
    row: str,
    start: str,
) -> dict[str, Any]:
    training.output_dir = str(folder)
    training.disable_tqdm = training.disable_tqdm or int(script.jobs or 1) > 1
    with RunFolder(folder) as run:
        model, tokenizer, peft_config = load_policy(policy)
        problems, test = load_problems(script, training)
        if script.use_chat_template:
            problems = problems.map(lambda example: {"prompt": [{"role": "user", "content": example["prompt"]}]})
        kind = ScopeGRPOTrainer if row.split()[0] == "grpo" else DualPathDistillationTrainer
        trainer = kind(
            model, [make_verifier(verifier_name(script))], training, train_dataset=problems,
            processing_class=tokenizer, peft_config=peft_config,
        )  # fmt: skip
        quiet_callbacks(trainer, run)
        checkpoint = newest_checkpoint(folder)
        run.write_config(
            {**training.to_dict(), **asdict(policy), **asdict(script), "row": row}, trainer.describe(), training.seed,
            resumed=checkpoint is not None, data={"train_prompts": len(problems), "eval_prompts": len(test)},
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        unwrapped = trainer.accelerator.unwrap_model(trainer.model_wrapped)
        results = _measure(script, training, unwrapped, tokenizer, test, row)[0]
        states = read_json_lines(Path(start, "wrong.jsonl"))
        results |= _distance(training, unwrapped, tokenizer, states, script.eval_batch_size)
        trainer.save_model(str(folder / "model"))
        if trainer.is_world_process_zero():
            tokenizer.save_pretrained(folder / "model")
        log = [entry for entry in trainer.state.log_history if "step_time" in entry]
        for name, key in (("seconds_per_step", "step_time"), ("teacher_seconds", "distillation/teacher_seconds")):
            values = [entry[key] for entry in log if key in entry]
            results |= {name: float(np.median(values))} if values else {}
    return results


def _measure_given(
    script: DistillationArguments, policy: PolicyConfig, training: DualPathDistillationConfig, folder: Path, row: str
) -> dict[str, Any]:
    """Of the teacher, or of the start: its wrong completions are kept, and its distance to the teacher there."""
    if row == TEACHER:
        policy.model_name_or_path = training.teacher_model_name_or_path
    model, tokenizer, _ = load_policy(policy)
    test = load_problems(script, training)[1]
    results, samples = _measure(script, training, model, tokenizer, test, row)
    wrong = [
        {"prompt": prompt, "completion": text}
        for prompt, texts, right in zip(samples.prompts, samples.completions, samples.correct, strict=True)
        for text, good in zip(texts, right, strict=True)
        if not good
    ][:NUM_STATES]
    write_json_lines(folder / "wrong.jsonl", wrong)
    if row == START:
        results |= _distance(training, model, tokenizer, wrong, script.eval_batch_size)
    return results


def _measure(
    script: DistillationArguments, training: DualPathDistillationConfig, model: Any, tokenizer: Any, test: Dataset,
    name: str,
) -> tuple[dict[str, Any], Any]:  # fmt: skip
    """Greedy accuracy, Avg@k and Pass@k; and the samples."""
    verifier = make_verifier(verifier_name(script))
    shared: dict[str, Any] = {
        "name": name, "max_new_tokens": training.max_completion_length, "seed": script.eval_seed,
        "batch_size": script.eval_batch_size, "use_chat_template": script.use_chat_template,
        "correct_threshold": training.correct_threshold, "show_progress": False,
    }  # fmt: skip
    greedy = sample_and_verify(model, tokenizer, test, verifier, 1, temperature=0.0, **shared)
    temperature = training.temperature if script.eval_temperature is None else script.eval_temperature
    drawn = sample_and_verify(model, tokenizer, test, verifier, script.num_samples, temperature=temperature, **shared)
    assert greedy.correct is not None and drawn.correct is not None
    results = {"accuracy": float(greedy.correct.mean()), "avg": float(drawn.correct.mean())}
    results |= {f"pass@{k}": float(pass_at_k_estimates(drawn.correct, k).mean()) for k in script.k}
    return results, drawn


def _distance(
    training: DualPathDistillationConfig, model: Any, tokenizer: Any, states: list[dict[str, Any]], batch_size: int
) -> dict[str, float]:
    """kl_wrong: KL to the teacher on the wrong completions of the start; none for a teacher that is not here."""
    if not states or training.teacher_base_url or training.teacher_adapter_name:
        return {}
    teacher, _ = load_frozen(str(training.teacher_model_name_or_path), TEACHER_SETTING)
    teacher.to(model.device)
    texts = ([state[key] for state in states] for key in ("prompt", "completion"))
    found = kl_to_teacher(
        model, teacher, tokenizer, *texts, temperature=training.temperature, batch_size=max(1, batch_size // 4)
    )
    return {"kl_wrong": float(found.mean())}
