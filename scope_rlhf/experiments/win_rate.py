"""`scope-rlhf winrate`: two systems on the same prompts, a judge in both orders, a report.

Everything lies in one folder: arguments, both sets of completions, verdicts, table, picture, page of pairs. Called
again with the same arguments it goes on where it was interrupted: completions that are there are not generated again,
and an endpoint is asked only what its cache does not hold.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import HfArgumentParser, pipeline

from scope_rlhf.data.documentation import EMBEDDED_DOCUMENTATION
from scope_rlhf.data.loading import DATA_FILES
from scope_rlhf.data.tldr import cut_prompt, load_tldr
from scope_rlhf.evaluation.completions import System, generate, read_system
from scope_rlhf.evaluation.endpoint import EndpointConfig, EndpointJudge
from scope_rlhf.evaluation.judges import WORDING, Judge, PipelineJudge, RewardJudge, load_function_judge
from scope_rlhf.evaluation.win_rate import WinRateResult, check_invalid, compare, invalid_example
from scope_rlhf.models.embedded import resolve_model_path
from scope_rlhf.models.loading import PolicyConfig, find_model, load_policy, load_policy_tokenizer
from scope_rlhf.models.reward import RewardScorer
from scope_rlhf.reports.win_rate import write_win_rate_report
from scope_rlhf.runtime.files import write_json

REFERENCES = "references"
JUDGES = ("judge_model_name_or_path", "judge_function", "judge_pipeline", "judge_base_url")


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class WinRateArguments:
    """A system is a file of completions (.jsonl, .parquet: prompt, completion, ended), a model (Hub name, folder,
    adapter, embedded name), or `references`, the summaries of the dataset.
    """

    system_a: str = field(metadata={"help": "File of completions, model, or 'references'."})
    system_b: str = field(metadata={"help": "The same for the other side."})
    name_a: str | None = _option(None, "What the results call it; default: its file or model.")
    name_b: str | None = _option(None, "The same for the other side.")
    judge_model_name_or_path: str | None = _option(None, "Judge: a reward model.")
    judge_function: str | None = _option(None, "Judge: FILE.py:FUNCTION of (prompt, first, second).")
    judge_pipeline: str | None = _option(None, "Judge: a local language model, by a transformers pipeline.")
    judge_base_url: str | None = _option(None, "Judge: an OpenAI-compatible endpoint, up to /v1.")
    judge_model: str | None = _option(None, "With judge_base_url: the model's name there.")
    judge_api: str = _option("chat", "With judge_base_url: chat or completions.")
    judge_api_key_variable: str = _option("OPENAI_API_KEY", "Environment variable with the key.")
    judge_wording: str | None = _option(None, "File with the question: {prompt}, {first}, {second}.")
    judge_max_new_tokens: int = _option(256, "Tokens of an answer.")
    judge_temperature: float = _option(0.0, "Temperature of an endpoint's answers.")
    judge_timeout: float = _option(60.0, "Seconds for one request.")
    judge_retries: int = _option(5, "Further attempts after 429, 5xx, a timeout or a malformed answer.")
    judge_concurrency: int = _option(8, "Requests at the same time.")
    price_prompt: float = _option(0.0, "Price of a million tokens of questions, for the log.")
    price_completion: float = _option(0.0, "Price of a million tokens of answers, for the log.")
    tie_margin: float = _option(0.0, "Reward models: a difference of at most this is a tie.")
    max_invalid: float = _option(0.1, "Share of pairs without a readable verdict above which the run fails.")
    dataset_name: str = _option(EMBEDDED_DOCUMENTATION, "Prompts for systems that generate, and references.")
    dataset_test_split: str | None = _option(None, "Split of a dataset that is not embedded; default: validation.")
    num_prompts: int | None = _option(256, "Prompts; 0 takes all.")
    max_prompt_length: int = _option(192, "Tokens; a longer prompt ends at its last line break that fits.")
    max_new_tokens: int = _option(48, "Tokens of a completion.")
    temperature: float = _option(0.0, "Temperature of the completions; 0 is greedy.")
    confidence: float = _option(0.95, "Of the intervals.")
    seed: int = _option(0, "Order of the prompts, sampling and bootstrap.")
    output_dir: str | None = _option(None, "Folder of the results; default: runs/winrate/<time>.")


def main(argv: Sequence[str], prog: str | None = None) -> int:
    """Run the comparison that the command line describes; the exit status."""
    parser = HfArgumentParser(WinRateArguments, prog=prog, allow_abbrev=False)  # pyright: ignore
    (arguments,) = parser.parse_args_into_dataclasses(list(argv))
    run(arguments)
    return 0


def run(arguments: WinRateArguments) -> WinRateResult:
    """Generate or read, judge, write, report. ValueError for what cannot work, before a model is loaded, and where more
    than max_invalid of the pairs have no verdict, after everything is written.
    """
    check_arguments(arguments)
    console = Console()
    now = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = Path(arguments.output_dir or f"runs/winrate/{now}")
    _keep_arguments(folder, arguments)
    judge = make_judge(arguments, folder)
    systems = [_system(arguments, side, folder, console) for side in ("a", "b")]
    console.print(f"judging {len(systems[0].prompts)} pairs in both orders by {judge.name}")
    result = compare(systems[0], systems[1], judge, arguments.confidence, seed=arguments.seed)
    if isinstance(judge, EndpointJudge):
        result.summary["requests"] = judge.cost()
    result.write(folder)
    written = write_win_rate_report([folder])
    console.print(result_table(result.summary))
    console.print("   ".join(str(file) for file in written))
    check_invalid(result.summary, arguments.max_invalid, invalid_example(result.pairs))
    return result


def check_arguments(arguments: WinRateArguments) -> None:
    """ValueError for settings that exclude or lack each other, and for numbers out of range."""
    given = [name for name in JUDGES if getattr(arguments, name) is not None]
    if len(given) != 1:
        raise ValueError(
            f"give exactly one judge by {', '.join(f'--{name}' for name in JUDGES)}; got {', '.join(given) or 'none'}."
        )
    if (arguments.judge_base_url is None) != (arguments.judge_model is None):
        raise ValueError("--judge_base_url and --judge_model belong together; give both or neither.")
    for name, least in (("max_new_tokens", 1), ("max_prompt_length", 1), ("num_prompts", 0), ("temperature", 0)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}; set --{name}.")
    for name in ("max_invalid", "confidence"):
        if not 0 <= getattr(arguments, name) <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {getattr(arguments, name)}; set --{name}.")
    if arguments.judge_wording is not None and not Path(arguments.judge_wording).is_file():
        raise ValueError(f"--judge_wording={arguments.judge_wording!r} is not a file.")
    for side in ("a", "b"):
        name = getattr(arguments, f"system_{side}")
        if name != REFERENCES and Path(name).suffix not in DATA_FILES:
            find_model(name, f"--system_{side}")
    if arguments.judge_model_name_or_path is not None:
        find_model(arguments.judge_model_name_or_path, "--judge_model_name_or_path")


def make_judge(arguments: WinRateArguments, folder: Path) -> Judge:
    """The judge that the arguments name. ValueError for one that does not load."""
    wording = WORDING
    if arguments.judge_wording is not None:
        wording = Path(arguments.judge_wording).read_text(encoding="utf-8")
    if arguments.judge_model_name_or_path is not None:
        name = arguments.judge_model_name_or_path
        scorer = RewardScorer.from_pretrained(name, setting="--judge_model_name_or_path")
        return RewardJudge(scorer, name, arguments.tie_margin)
    if arguments.judge_function is not None:
        return load_function_judge(arguments.judge_function)
    if arguments.judge_pipeline is not None:
        path = resolve_model_path(arguments.judge_pipeline, "--judge_pipeline")
        model = pipeline("text-generation", model=path)
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
    table = Table("", "value", title=title)
    rates = summary["win_rate"]

    def percent(interval: dict[str, Any] | None) -> str:
        if interval is None:
            return "none"
        bounds = [b if b is not None else float("nan") for b in (interval["low"], interval["high"])]
        return f"{100 * interval['value']:.1f} % [{100 * bounds[0]:.1f}, {100 * bounds[1]:.1f}]"

    table.add_row("win rate", percent(rates and rates["rate"]))
    table.add_row("length-controlled", percent(summary["length_controlled"]))
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


def _keep_arguments(folder: Path, arguments: WinRateArguments) -> None:
    """Write the arguments; ValueError where the folder holds a comparison of others."""
    file, now = folder / "arguments.json", asdict(arguments)
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        free = ("output_dir", "max_invalid", "judge_retries", "judge_concurrency", "judge_timeout")
        changed = [name for name in now if now[name] != before.get(name) and name not in free]
        if changed:
            raise ValueError(
                f"{folder} holds a comparison with another {', '.join(changed)}; give another --output_dir, or "
                "the same arguments to go on with it."
            )
    elif folder.exists() and not folder.is_dir():
        raise ValueError(f"--output_dir {folder} is a file; give a folder.")
    write_json(file, now)


def _system(arguments: WinRateArguments, side: str, folder: Path, console: Console) -> System:
    """Completions of one side: read, or generated once and kept in the folder."""
    source, setting = getattr(arguments, f"system_{side}"), f"--system_{side}"
    name = getattr(arguments, f"name_{side}") or Path(source).stem or source
    if Path(source).suffix in DATA_FILES:
        return read_system(source, setting, name)
    kept = folder / f"completions_{side}.jsonl"
    if kept.exists():
        return read_system(str(kept), setting, name)
    data = load_tldr(
        arguments.dataset_name, "eval", split=arguments.dataset_test_split, num_rows=arguments.num_prompts or None,
        seed=arguments.seed,
    )  # fmt: skip
    policy = next(
        (PolicyConfig(model_name_or_path=getattr(arguments, f"system_{s}"), dtype="float32") for s in (side, "b", "a")
         if _is_model(getattr(arguments, f"system_{s}"))), None,
    )  # fmt: skip
    prompts = list(data["prompt"])
    if policy is not None:  # references answer the prompts that the model on the other side sees
        tokenizer = load_policy_tokenizer(policy)
        prompts = [cut_prompt(prompt, tokenizer, arguments.max_prompt_length) for prompt in prompts]
    if source == REFERENCES:
        system = System(name, prompts, [text.strip() for text in data["completion"]], [True] * len(prompts))
    else:
        assert policy is not None
        console.print(f"{name}: generating {len(prompts)} completions")
        model, tokenizer, _ = load_policy(policy)
        system = generate(
            model.to(_device()), tokenizer, prompts, name=name, max_new_tokens=arguments.max_new_tokens,
            temperature=arguments.temperature, seed=arguments.seed,
        )  # fmt: skip
    system.write(kept)
    return system


def _is_model(source: str) -> bool:
    return source != REFERENCES and Path(source).suffix not in DATA_FILES


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() and not os.environ.get("ACCELERATE_USE_CPU") else "cpu"
