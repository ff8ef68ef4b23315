"""`scope-rlhf passk`: Avg@k and Pass@k of systems on the same verifiable problems, with paired differences.

Everything lies in one folder: arguments, samples with their verdicts, numbers, table, picture. Called again with the
same arguments it goes on with the systems that are not sampled yet; what is kept is verified anew.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from scope_rlhf.data.verifiable import TASKS, load_verifiable
from scope_rlhf.data.verifiers import VERIFIERS
from scope_rlhf.evaluation.completions import describe_decoding
from scope_rlhf.evaluation.pass_at_k import (
    Samples,
    group_rows,
    make_verifier,
    problem_columns,
    read_samples,
    sample,
    summarise,
    verify,
)
from scope_rlhf.experiments.systems import (
    NUM_PROMPTS,
    SamplingArguments,
    check_sampling_arguments,
    distinct_names,
    input_version,
    is_file,
    is_model,
    keep_config,
    load_model,
    parse,
)
from scope_rlhf.reports.pass_at_k import SUMMARY_FILE, pass_at_k_table, write_pass_at_k_report
from scope_rlhf.runtime import RunFolder
from scope_rlhf.runtime.files import read_json_lines, write_json, write_json_lines
from scope_rlhf.runtime.settings import json_object, option

SETTING = "--model_name_or_path"
DEFAULT_K = (1, 8, 32)
# What may change when an evaluation goes on: it decides no completion.
FREE = ("verifier", "correct_threshold", "k", "confidence", "batch_size")


@dataclass
class PassKArguments(SamplingArguments):
    """A system is a model (Hub name, folder, adapter, embedded name) or a file of completions (.jsonl, .json, .csv,
    .parquet: prompt, completion, and correct where it is verified); the first is the baseline of the differences.
    """

    model_name_or_path: list[str] | None = field(
        default=None, metadata={"help": "Models or files of completions; the first is the baseline."}
    )
    names: list[str] | None = field(
        default=None, metadata={"help": "What the results call them, as many; default: their files or models."}
    )
    dataset_name: str = option("arithmetic", f"Problems: {', '.join(TASKS)}, a Hub math set, a file or folder.")
    dataset_test_split: str | None = option(None, "Split of a Hub set or files; default: test.")
    dataset_config: str | None = option(None, "Subset of a Hub set.")
    task_kwargs: str | None = option(None, "Settings of a generated task, as JSON.")
    prompt_column: str | None = option(None, "Column of the problems; default: prompt, problem or question.")
    answer_column: str | None = option(None, "Column of the answers; default: answer, final_answer or solution.")
    instruction: str = option("", "What stands behind each prompt of a Hub set or files.")
    use_chat_template: bool = option(False, "Models see the prompt as a user's message.")
    verifier: str | None = option(None, "Default: exact_answer for generated tasks, math_answer for others.")
    correct_threshold: float | None = option(None, "From which on a number of the verifier counts as right.")
    num_samples: int = option(32, "Completions of each prompt.")
    k: list[int] | None = field(default=None, metadata={"help": "Default: those of 1, 8, 32 that the samples allow."})
    temperature: float = option(1.0, "Temperature of the completions; 0 with num_samples 1: greedy accuracy.")
    output_dir: str | None = option(None, "Folder of the results; default: runs/passk/<time>.")


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Run the evaluation that the command line describes; the exit status."""
    run(parse(PassKArguments, argv, prog))
    return 0


def run(arguments: PassKArguments) -> dict[str, Any]:
    """Sample or read, verify, write, report; the summary. ValueError for what cannot work."""
    check_arguments(arguments)
    console = Console()
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(arguments.output_dir or f"runs/passk/{now}")
    sources = arguments.model_name_or_path or []
    names = arguments.names or distinct_names(sources)
    verifier = make_verifier(_verifier_name(arguments))
    inputs = {f"model_name_or_path {number}": source for number, source in enumerate(sources)}
    if is_file(arguments.dataset_name):
        inputs["dataset_name"] = arguments.dataset_name
    with RunFolder(folder) as run_folder:
        problems, given = _problems(arguments, names)
        as_given = [name for name, s in given.items() if s.correct is not None and arguments.verifier is None]
        ks = _ks(arguments, given)
        keep_config(folder, arguments, inputs, FREE)
        kept = _kept(run_folder.samples_file)
        done: list[Samples] = []
        for name, source in zip(names, sources, strict=True):
            samples = given.get(name) or _sample(arguments, name, source, list(problems), kept, console)
            # Before the verifier, which may raise: what is sampled is kept.
            waiting = [row for other in names[len(done) + 1 :] for row in kept.get(other, [])]
            write_json_lines(run_folder.samples_file, [*_rows([*done, samples]), *waiting])
            if name not in as_given:
                samples = verify(samples, problems, verifier, arguments.correct_threshold)
            done.append(samples)
        write_json_lines(run_folder.samples_file, _rows(done))
        summary = summarise(done, ks, arguments.confidence, arguments.seed)
        summary |= {
            "dataset": next((source for source in sources if is_file(source)), arguments.dataset_name),
            "verifier": _described_verifier(arguments, as_given),
        }
        write_json(folder / SUMMARY_FILE, summary)
        written = write_pass_at_k_report(folder)
        console.print(pass_at_k_table(summary))
        console.print("   ".join(str(file) for file in written), markup=False, highlight=False, soft_wrap=True)
    return summary


def check_arguments(arguments: PassKArguments) -> None:
    """ValueError for settings that lack or contradict each other, before anything is loaded."""
    sources, names = arguments.model_name_or_path, arguments.names
    if not sources:
        raise ValueError(f"give {SETTING} with one or several models or files of completions to measure.")
    if names is not None and (len(names) != len(sources) or len(set(names)) < len(names)):
        raise ValueError(f"--names must be {len(sources)} different names, one for each system, got {' '.join(names)}.")
    check_sampling_arguments(arguments)
    n = arguments.num_samples
    if n < 1:
        raise ValueError(f"num_samples must be at least 1, got {n}; set --num_samples.")
    models = [source for source in sources if is_model(source)]
    for k in arguments.k or []:
        if k < 1 or (models and k > n):
            raise ValueError(f"k must be from 1 to the {n} of --num_samples, got {k}; set --k or --num_samples.")
    if models and arguments.temperature == 0 and n > 1:
        raise ValueError(
            f"temperature 0 gives the same completion {n} times; set --num_samples 1 for the greedy accuracy, or a "
            "positive --temperature."
        )
    json_object("task_kwargs", arguments.task_kwargs)
    make_verifier(_verifier_name(arguments))
    for source in models:
        input_version(source, SETTING)


def _verifier_name(arguments: PassKArguments) -> str:
    return arguments.verifier or ("exact_answer" if arguments.dataset_name in TASKS else "math_answer")


def _described_verifier(arguments: PassKArguments, as_given: Sequence[str]) -> str:
    """The verifier, and the systems whose verdicts are those of their files."""
    label = _verifier_name(arguments)
    if arguments.correct_threshold is not None:
        label += f", right from {arguments.correct_threshold:g} on"
    return f"{label} ({', '.join(as_given)}: as given)" if as_given else label


def _problems(arguments: PassKArguments, names: Sequence[str]) -> tuple[dict[str, dict[str, Any]], dict[str, Samples]]:
    """prompt -> columns, and the systems that are files, on these prompts: those of the first file, else the dataset's.

    The columns of a prompt of a file are those of the file where it has an answer, else those of the dataset.
    """
    given: dict[str, Samples] = {}
    own: dict[str, dict[str, Any]] = {}
    for name, source in zip(names, arguments.model_name_or_path or [], strict=True):
        if is_file(source):
            given[name], columns = read_samples(source, SETTING, name, arguments.correct_threshold)
            own |= {p: row for p, row in columns.items() if p not in own or "answer" not in own[p]}
    number = arguments.num_prompts
    if not given:
        return _load(arguments, NUM_PROMPTS if number is None else number), given
    prompts = next(iter(given.values())).prompts
    if number and number > len(prompts):
        raise ValueError(f"{SETTING}: the file has {len(prompts)} prompts, fewer than the {number} of --num_prompts.")
    prompts = prompts[: number or None]
    given = {name: samples.select(prompts) for name, samples in given.items()}
    if arguments.verifier is None and len(given) == len(names) and all(s.correct is not None for s in given.values()):
        return {prompt: {} for prompt in prompts}, given
    problems = {prompt: own[prompt] for prompt in prompts}
    lacking = [prompt for prompt in prompts if "answer" not in own[prompt]]
    if lacking:
        loaded = _load(arguments, len(prompts) if arguments.dataset_name in TASKS else 0)
        problems |= {prompt: loaded[prompt] for prompt in lacking if prompt in loaded}
        lacking = [prompt for prompt in lacking if prompt not in loaded]
    if lacking and _verifier_name(arguments) in VERIFIERS:
        raise ValueError(
            f"{SETTING}: no answer is known to {len(lacking)} of {len(prompts)} prompts of the file, such as "
            f"{lacking[0][:120]!r}: it has no column answer, and --dataset_name={arguments.dataset_name!r} with its "
            "settings does not have them."
        )
    shared = set.intersection(*map(set, problems.values()))
    return {p: {name: value for name, value in row.items() if name in shared} for p, row in problems.items()}, given


def _load(arguments: PassKArguments, number: int) -> dict[str, dict[str, Any]]:
    """The problems of the dataset; number 0: all."""
    a = arguments
    data = load_verifiable(
        a.dataset_name, "test", number or None, a.seed, task_kwargs=json_object("task_kwargs", a.task_kwargs),
        split=a.dataset_test_split, config_name=a.dataset_config, prompt_column=a.prompt_column,
        answer_column=a.answer_column, instruction=a.instruction,
    )  # fmt: skip
    return problem_columns(data.to_list())


def _ks(arguments: PassKArguments, given: Mapping[str, Samples]) -> list[int]:
    """The ks; ValueError where a system has fewer samples than the largest."""
    sizes = {name: samples.num_samples for name, samples in given.items()}
    if len(given) < len(arguments.model_name_or_path or []):
        sizes["--num_samples"] = arguments.num_samples
    few = min(sizes, key=lambda name: sizes[name])
    ks = arguments.k or [k for k in DEFAULT_K if k <= sizes[few]]
    if max(ks) > sizes[few]:
        raise ValueError(f"k is at most the number of samples, got {max(ks)} for the {sizes[few]} of {few}; set --k.")
    return ks


def _rows(systems: Sequence[Samples]) -> list[dict[str, Any]]:
    return [row for samples in systems for row in samples.rows()]


def _kept(file: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows of an earlier attempt by system."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in read_json_lines(file) if file.exists() else []:
        rows.setdefault(row["system"], []).append(row)
    return rows


def _sample(
    arguments: PassKArguments, name: str, source: str, prompts: list[str], kept: Mapping[str, Any], console: Console
) -> Samples:
    """The completions of a model, as kept in the folder or sampled."""
    a = arguments
    if name in kept:
        before = group_rows(kept[name], "samples.jsonl", name)
        if before.prompts == prompts and before.num_samples == a.num_samples:
            return replace(before, decoding=describe_decoding(a.max_new_tokens, a.temperature, a.seed))
    total = len(prompts) * a.num_samples
    console.print(f"{name}: sampling {total} completions of {len(prompts)} prompts", markup=False, highlight=False)
    model, tokenizer = load_model(source, SETTING, a.dtype)
    samples = sample(
        model, tokenizer, prompts, a.num_samples, name=name, max_new_tokens=a.max_new_tokens, seed=a.seed,
        temperature=a.temperature, batch_size=a.batch_size, use_chat_template=a.use_chat_template,
    )  # fmt: skip
    if torch.cuda.is_available():
        del model
        torch.cuda.empty_cache()  # room for the next system
    return samples
