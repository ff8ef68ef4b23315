"""`scope-rlhf winrate`: two systems on the same prompts, a judge in both orders, a report.

Everything lies in one folder: arguments, both sets of completions, verdicts, table, picture, page of pairs. Called
again with the same arguments it goes on where it was interrupted: completions that are there are not generated again,
and an endpoint is asked only what its cache does not hold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers import pipeline

from scope_rlhf.evaluation.endpoint import EndpointConfig, EndpointJudge
from scope_rlhf.evaluation.judges import WORDING, Judge, PipelineJudge, RewardJudge, load_function_judge
from scope_rlhf.evaluation.win_rate import WinRateResult, check_invalid, compare, invalid_example
from scope_rlhf.experiments.systems import (
    PromptArguments,
    Systems,
    check_prompt_arguments,
    default_device,
    distinct_names,
    input_version,
    is_model,
    keep_config,
    option,
    parse,
)
from scope_rlhf.hub import explain_model_errors
from scope_rlhf.models.embedded import resolve_model_path
from scope_rlhf.models.reward import RewardScorer
from scope_rlhf.reports.win_rate import write_win_rate_report
from scope_rlhf.runtime import RunFolder

JUDGES = ("judge_model_name_or_path", "judge_function", "judge_pipeline", "judge_base_url")
# What may change when a comparison goes on: it decides no verdict.
FREE = ("max_invalid", "judge_retries", "judge_concurrency", "judge_timeout", "batch_size")


@dataclass
class WinRateArguments(PromptArguments):
    """A system is a file of completions (.jsonl, .parquet: prompt, completion, ended), a model (Hub name, folder,
    adapter, embedded name), `references`, the summaries of the dataset, or `shuffled-references`, those of other
    prompts, over which the win rate of the references is the judge's accuracy on such pairs.
    """

    system_a: str | None = option(None, "File of completions, model, 'references' or 'shuffled-references'.")
    system_b: str | None = option(None, "The same for the other side.")
    name_a: str | None = option(None, "What the results call it; default: its file or model.")
    name_b: str | None = option(None, "The same for the other side.")
    judge_model_name_or_path: str | None = option(None, "Judge: a reward model.")
    judge_function: str | None = option(None, "Judge: FILE.py:FUNCTION of (prompt, first, second).")
    judge_pipeline: str | None = option(None, "Judge: a local language model, by a transformers pipeline.")
    judge_base_url: str | None = option(None, "Judge: an OpenAI-compatible endpoint, up to /v1.")
    judge_model: str | None = option(None, "With judge_base_url: the model's name there.")
    judge_api: str = option("chat", "With judge_base_url: chat or completions.")
    judge_api_key_variable: str = option("OPENAI_API_KEY", "Environment variable with the key.")
    judge_wording: str | None = option(None, "File with the question: {prompt}, {first}, {second}.")
    judge_max_new_tokens: int = option(256, "Tokens of an answer.")
    judge_temperature: float = option(0.0, "Temperature of an endpoint's answers.")
    judge_timeout: float = option(60.0, "Seconds for one request.")
    judge_retries: int = option(5, "Further attempts after 429, 5xx, a timeout or a malformed answer.")
    judge_concurrency: int = option(8, "Requests at the same time.")
    price_prompt: float = option(0.0, "Price of a million tokens of questions, for the log.")
    price_completion: float = option(0.0, "Price of a million tokens of answers, for the log.")
    tie_margin: float = option(0.0, "Reward models: a difference of at most this is a tie.")
    max_invalid: float = option(0.1, "Share of pairs without a readable verdict above which the run fails.")
    output_dir: str | None = option(None, "Folder of the results; default: runs/winrate/<time>.")


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Run the comparison that the command line describes; the exit status."""
    run(parse(WinRateArguments, argv, prog))
    return 0


def run(arguments: WinRateArguments) -> WinRateResult:
    """Generate or read, judge, write, report. ValueError for what cannot work, before a model is loaded, and where more
    than max_invalid of the pairs have no verdict, after everything is written.
    """
    check_arguments(arguments)
    console = Console()
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(arguments.output_dir or f"runs/winrate/{now}")
    sources = {f"system_{side}": str(getattr(arguments, f"system_{side}")) for side in ("a", "b")}
    short = dict(zip(sources, distinct_names(list(sources.values())), strict=True))
    names = {key: getattr(arguments, key.replace("system", "name")) or short[key] for key in sources}
    inputs = dict(sources)
    for judge_model in ("judge_model_name_or_path", "judge_pipeline"):
        if getattr(arguments, judge_model) is not None:
            inputs[judge_model] = getattr(arguments, judge_model)
    with RunFolder(folder):
        keep_config(folder, arguments, inputs, FREE)
        systems = Systems(arguments, sources, names, folder)
        judge = make_judge(arguments, folder)
        a, b = (systems.system(key, console) for key in sources)
        console.print(f"judging {len(a.prompts)} pairs in both orders by {judge.name}", markup=False, highlight=False)
        result = compare(a, b, judge, arguments.confidence, seed=arguments.seed)
        if isinstance(judge, EndpointJudge):
            result.summary["requests"] = judge.cost()
        result.write(folder)
        written = write_win_rate_report([folder])
        console.print(result_table(result.summary))
        console.print("   ".join(str(file) for file in written), markup=False, highlight=False, soft_wrap=True)
        check_invalid(result.summary, arguments.max_invalid, invalid_example(result.pairs))
    return result


def check_arguments(arguments: WinRateArguments) -> None:
    """ValueError for settings that exclude or lack each other, and for numbers out of range."""
    for side in ("a", "b"):
        if getattr(arguments, f"system_{side}") is None:
            raise ValueError(
                f"give both systems by --system_a and --system_b (a file of completions, a model, references or "
                f"shuffled-references); --system_{side} is missing."
            )
    given = [name for name in JUDGES if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one judge by {', '.join(f'--{name}' for name in JUDGES)}; got {', '.join(given) or 'none'}."
        )
    if (arguments.judge_base_url is None) != (arguments.judge_model is None):
        raise ValueError("--judge_base_url and --judge_model belong together; give both or neither.")
    check_prompt_arguments(arguments)
    if not 0 <= arguments.max_invalid <= 1:
        raise ValueError(f"max_invalid must lie in [0, 1], got {arguments.max_invalid}; set --max_invalid.")
    if not arguments.tie_margin >= 0:
        raise ValueError(f"tie_margin must be at least 0, got {arguments.tie_margin}; set --tie_margin.")
    answer = arguments.judge_max_new_tokens
    if answer < 1:
        raise ValueError(f"judge_max_new_tokens must be at least 1, got {answer}; set --judge_max_new_tokens.")
    if arguments.judge_wording is not None and not Path(arguments.judge_wording).is_file():
        raise ValueError(f"--judge_wording={arguments.judge_wording!r} is not a file.")
    for name in ("system_a", "system_b", "judge_model_name_or_path", "judge_pipeline"):
        model = getattr(arguments, name)
        if model is not None and is_model(model):
            input_version(model, f"--{name}")


def make_judge(arguments: WinRateArguments, folder: Path) -> Judge:
    """The judge that the arguments name. ValueError for one that does not load."""
    wording = WORDING
    if arguments.judge_wording is not None:
        wording = Path(arguments.judge_wording).read_text(encoding="utf-8")
    if arguments.judge_model_name_or_path is not None:
        name = arguments.judge_model_name_or_path
        scorer = RewardScorer.from_pretrained(
            name, setting="--judge_model_name_or_path", device=default_device(), batch_size=arguments.batch_size
        )
        return RewardJudge(scorer, scorer.describe(name), arguments.tie_margin)
    if arguments.judge_function is not None:
        return load_function_judge(arguments.judge_function)
    if arguments.judge_pipeline is not None:
        path = resolve_model_path(arguments.judge_pipeline, "--judge_pipeline")
        with explain_model_errors(arguments.judge_pipeline, "--judge_pipeline"):
            model = pipeline("text-generation", model=path, device=default_device())
        return PipelineJudge(model, arguments.judge_pipeline, wording, arguments.judge_max_new_tokens)
    config = EndpointConfig(
        base_url=str(arguments.judge_base_url), model=str(arguments.judge_model), api=arguments.judge_api,
        api_key_variable=arguments.judge_api_key_variable, max_new_tokens=arguments.judge_max_new_tokens,
        temperature=arguments.judge_temperature, timeout=arguments.judge_timeout, retries=arguments.judge_retries,
        concurrency=arguments.judge_concurrency, wording=wording, price_prompt=arguments.price_prompt,
        price_completion=arguments.price_completion, seed=arguments.seed,
    )  # fmt: skip
    return EndpointJudge(config, folder / "verdicts.jsonl")


def result_table(summary: dict[str, Any]) -> Table:
    """The figures of one comparison for a terminal."""
    title = f"{summary['system_a']['name']} against {summary['system_b']['name']}, judge {summary['judge']}"
    table = Table("", "value", title=Text(title))
    rates = summary["win_rate"]

    def percent(interval: dict[str, Any] | None) -> str:
        if interval is None:
            return "none"
        value, bounds = f"{100 * interval['value']:.1f} %", (interval["low"], interval["high"])
        if not all(b is not None and math.isfinite(b) for b in bounds):
            return f"{value} (one pair has no interval)"
        return f"{value} [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"

    table.add_row("win rate", percent(rates and rates["rate"]))
    controlled = percent(summary["length_controlled"])
    if summary.get("lengths_overlap") is False:
        controlled += "\n(one side is nearly always the longer: extrapolated)"
    table.add_row("length-controlled", controlled)
    table.add_row("decided pairs only (Wilson)", percent(rates and rates["decided"]))
    table.add_row("pairs, invalid", f"{summary['pairs']}, {summary['invalid']}")
    if rates:
        table.add_row("wins / ties / losses", f"{rates['wins']} / {rates['ties']} / {rates['losses']}")
        table.add_row("same answer in both orders", f"{100 * rates['order_consistency']:.1f} %")
    sides = [summary["system_a"], summary["system_b"]]
    table.add_row("mean length (words)", " / ".join(f"{side['mean_length_words']:.1f}" for side in sides))
    ends = ["unknown" if s["share_without_eos"] is None else f"{100 * s['share_without_eos']:.1f} %" for s in sides]
    table.add_row("without end", " / ".join(ends))
    return table
