"""`scope-rlhf evaluate`: rewards, KL, perplexity, diversity, length and ROUGE of systems on the same prompts; and the
over-optimisation curve of run folders.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from peft import PeftModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scope_rlhf.evaluation.rewards import Scored, Scorers, score_policy, score_system, summarise
from scope_rlhf.experiments.systems import (
    PromptArguments,
    Systems,
    check_prompt_arguments,
    default_device,
    distinct_names,
    input_version,
    is_model,
    keep_config,
    load_model,
    option,
    parse,
)
from scope_rlhf.models.reward import RewardScorer
from scope_rlhf.reports.over_optimisation import plot_over_optimisation
from scope_rlhf.reports.rewards import SUMMARY_FILE, mean_rows, write_rewards_report
from scope_rlhf.runtime import RunFolder
from scope_rlhf.runtime.files import write_json

SCORERS = {"reward": "training reward", "judge": "held-out judge"}


@dataclass
class EvaluateArguments(PromptArguments):
    """Systems are those of `scope-rlhf winrate`; the first is the baseline of the paired differences."""

    systems: list[str] | None = field(
        default=None, metadata={"help": "Files of completions, models, 'references', 'shuffled-references'."}
    )
    names: list[str] | None = field(
        default=None, metadata={"help": "What the results call them, as many; default: their files or models."}
    )
    reward_model_name_or_path: str | None = option(None, "Reward model that was trained against.")
    judge_model_name_or_path: str | None = option(None, "Held-out reward model.")
    reference_model_name_or_path: str | None = option(None, "For KL and perplexity; default: a model's own base.")
    temperature: float = option(1.0, "Temperature of the completions; 0 is greedy and has no KL.")
    run_dir: list[str] | None = field(
        default=None, metadata={"help": "Run folders: draw their over-optimisation curve."}
    )
    output_dir: str | None = option(None, "Folder of the results; default: runs/evaluate/<time>.")


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Run the evaluation that the command line describes; the exit status."""
    run(parse(EvaluateArguments, argv, prog))
    return 0


def run(arguments: EvaluateArguments) -> dict[str, Any] | None:
    """Measure the systems, draw the curve of the runs; the summary of the systems, where there are any.

    Called again with the same arguments and folder it measures no system twice. ValueError for what cannot work.
    """
    check_arguments(arguments)
    console = Console()
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(arguments.output_dir or f"runs/evaluate/{now}")
    written: list[Path] = []
    summary = None
    with RunFolder(folder):
        if arguments.run_dir:
            written.append(plot_over_optimisation(arguments.run_dir, folder / "over_optimisation.png"))
        if arguments.systems:
            summary = _evaluate(arguments, folder, console)
            written += write_rewards_report(folder)
            header, *rows = mean_rows(summary)
            table = Table(*map(escape, header), title=f"{summary['prompts']} prompts")
            for row in rows:
                table.add_row(*map(escape, row))
            console.print(table)
        console.print("   ".join(str(file) for file in written), markup=False, highlight=False, soft_wrap=True)
    return summary


def check_arguments(arguments: EvaluateArguments) -> None:
    """ValueError for settings that lack or contradict each other, before anything is loaded."""
    if not arguments.systems and not arguments.run_dir:
        raise ValueError(
            "give --systems (files of completions or models) to measure, or --run_dir with run folders for their "
            "over-optimisation curve."
        )
    check_prompt_arguments(arguments)
    systems, names = arguments.systems or [], arguments.names
    if names is not None and len(names) != len(systems):
        raise ValueError(f"--names has {len(names)} names for {len(systems)} systems; give one for each.")
    if names is not None and len(set(names)) < len(names):
        raise ValueError(f"--names must be different ones, got {' '.join(names)}.")
    for run in arguments.run_dir or []:
        if not RunFolder(run).metrics_file.is_file():
            raise ValueError(f"--run_dir={run!r} is no run folder: it has no {RunFolder(run).metrics_file.name}.")
    for name in systems:
        if is_model(name):
            input_version(name, "--systems")
    for setting in _models(arguments):
        input_version(getattr(arguments, setting), f"--{setting}")


def _models(arguments: EvaluateArguments) -> list[str]:
    names = ("reward_model_name_or_path", "judge_model_name_or_path", "reference_model_name_or_path")
    return [name for name in names if getattr(arguments, name) is not None]


def _evaluate(arguments: EvaluateArguments, folder: Path, console: Console) -> dict[str, Any]:
    given = arguments.systems or []
    sources = {f"systems_{number}": source for number, source in enumerate(given)}
    names = dict(zip(sources, arguments.names or distinct_names(given), strict=True))
    inputs = {**sources, **{name: getattr(arguments, name) for name in _models(arguments)}}
    keep_config(folder, arguments, inputs, ("batch_size", "run_dir"))
    systems = Systems(arguments, sources, names, folder)
    notes: list[str] = []
    references = None
    try:
        references = systems.references()
    except ValueError as error:
        notes.append(f"No ROUGE: {error}")
    scorers: Scorers = {}
    used = {}
    for scorer, label in SCORERS.items():
        name = getattr(arguments, f"{scorer}_model_name_or_path")
        if name is not None:
            scorers[scorer] = RewardScorer.from_pretrained(
                name, setting=f"--{scorer}_model_name_or_path", device=default_device(), batch_size=arguments.batch_size
            )
            used[label] = scorers[scorer].describe(name)
    reference = None
    if arguments.reference_model_name_or_path is not None:
        name = arguments.reference_model_name_or_path
        reference = load_model(name, "--reference_model_name_or_path", arguments.dtype)
    scored = [_score(arguments, systems, key, scorers, reference, console, notes) for key in sources]
    summary = summarise(scored, SCORERS, references, arguments.confidence, arguments.seed)
    summary |= {"scorers": used, "notes": notes}
    write_json(folder / SUMMARY_FILE, summary)
    return summary


def _score(
    arguments: EvaluateArguments, systems: Systems, key: str, scorers: Scorers, reference: tuple[Any, Any] | None,
    console: Console, notes: list[str],
) -> Scored:  # fmt: skip
    """One system, measured or as kept in the folder."""
    kept = systems.folder / f"scored_{key}.json"
    if kept.exists():
        before = Scored.from_json(json.loads(kept.read_text(encoding="utf-8")))
        if before.system.prompts == systems.prompts:
            return before
    name, source = systems.names[key], systems.sources[key]
    scored = None
    if is_model(source) and arguments.temperature > 0:
        model, tokenizer = load_model(source, "--systems", arguments.dtype)
        if reference is not None and tokenizer.get_vocab() != reference[1].get_vocab():
            raise ValueError(
                f"--systems {source} and --reference_model_name_or_path have different tokenizers, so that no KL is "
                "defined; leave the reference out, or give the model's completions as a file."
            )
        if reference is not None or isinstance(model, PeftModel):
            console.print(f"{name}: sampling {len(systems.prompts)} completions", markup=False, highlight=False)
            scored = score_policy(
                model, tokenizer, systems.prompts, scorers, name=name, max_new_tokens=arguments.max_new_tokens,
                reference=None if reference is None else reference[0], temperature=arguments.temperature,
                seed=arguments.seed, batch_size=arguments.batch_size,
            )  # fmt: skip
        else:
            notes.append(f"No KL and perplexity of {name}: it has no adapter; give --reference_model_name_or_path.")
    if scored is None:
        model, tokenizer = reference or (None, None)
        system = systems.system(key, console)
        temperature = arguments.temperature or 1.0
        scored = score_system(system, scorers, model, tokenizer, temperature, arguments.batch_size)
    write_json(kept, scored.as_json())
    return scored
