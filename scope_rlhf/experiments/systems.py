"""The systems that an evaluation compares on one set of prompts: files of completions, models, references of a dataset.

A file says which prompts; without one they are the dataset's, cut so that every model that answers them takes them.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console

from scope_rlhf.data.documentation import EMBEDDED_DOCUMENTATION, documentation_versions
from scope_rlhf.data.loading import DATA_FILES
from scope_rlhf.data.tldr import CUE, cut_prompt, load_tldr
from scope_rlhf.evaluation.completions import System, describe_decoding, generate, read_system
from scope_rlhf.experiments.command_line import SettingsParser
from scope_rlhf.models.loading import PolicyConfig, find_model, load_policy, load_policy_tokenizer
from scope_rlhf.runtime.environment import command_line, package_versions, source_commit
from scope_rlhf.runtime.files import content_digest, write_json
from scope_rlhf.runtime.settings import did_you_mean, option

REFERENCES, SHUFFLED = "references", "shuffled-references"
DTYPES = ("float32", "bfloat16", "float16", "auto")
NUM_PROMPTS = 256
Arguments = TypeVar("Arguments")


@dataclass
class SamplingArguments:
    """How many prompts, and how models complete them."""

    num_prompts: int | None = option(None, f"Prompts; default: {NUM_PROMPTS} of a dataset, all of a file. 0: all.")
    max_new_tokens: int = option(48, "Tokens of a completion.")
    temperature: float = option(0.0, "Temperature of the completions; 0 is greedy.")
    batch_size: int = option(64, "Completions that are generated at once.")
    dtype: str = option("float32", f"Of the models: {', '.join(DTYPES)}.")
    confidence: float = option(0.95, "Of the intervals.")
    seed: int = option(0, "Order of the prompts, sampling and bootstrap.")


@dataclass
class PromptArguments(SamplingArguments):
    """Prompts of a summarisation dataset, and how models complete them."""

    dataset_name: str = option(EMBEDDED_DOCUMENTATION, "Prompts for models, and references.")
    dataset_test_split: str | None = option(None, "Split; default: validation (documentation: its part eval).")
    max_prompt_length: int = option(192, "Tokens; a longer prompt of a dataset ends at its last line break that fits.")


def parse(kind: type[Arguments], argv: Sequence[str], prog: str | None) -> Arguments:
    """The settings of a command line. ValueError, with the nearest flag, for what no setting takes."""
    parser = SettingsParser(kind, prog=prog, allow_abbrev=False)  # pyright: ignore[reportArgumentType]
    arguments, rest = parser.parse_args_into_dataclasses(list(argv), return_remaining_strings=True)
    if rest:
        flags = [flag for action in parser._actions for flag in action.option_strings if "-" not in flag[2:]]
        meant = did_you_mean(rest[0].partition("=")[0].replace("-", "_").replace("__", "--", 1), flags)
        raise ValueError(f"the command line has what no setting takes: {' '.join(rest)}{meant}")
    return arguments


def check_prompt_arguments(arguments: PromptArguments) -> None:
    """ValueError for numbers out of range."""
    length = arguments.max_prompt_length
    if length < 1:
        raise ValueError(f"max_prompt_length must be at least 1, got {length}; set --max_prompt_length.")
    check_sampling_arguments(arguments)


def check_sampling_arguments(arguments: SamplingArguments) -> None:
    """ValueError for numbers out of range."""
    for name, least in (("max_new_tokens", 1), ("num_prompts", 0), ("batch_size", 1)):
        value = getattr(arguments, name)
        if value is not None and value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}; set --{name}.")
    if not arguments.temperature >= 0:
        raise ValueError(f"temperature must be at least 0, got {arguments.temperature}; set --temperature.")
    if not 0 < arguments.confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, got {arguments.confidence}; set --confidence.")
    if arguments.dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {arguments.dtype!r}; set --dtype.")


def is_file(source: str) -> bool:
    return Path(source).suffix in DATA_FILES


def is_model(source: str) -> bool:
    return source not in (REFERENCES, SHUFFLED) and not is_file(source)


def system_name(source: str) -> str:
    """What results call a system: the name of its file or folder; of the folder `model` of a run, the run's."""
    path = Path(source)
    if is_file(source):
        return path.stem
    return path.parent.name if path.name == "model" and path.parent.name else path.name


def distinct_names(sources: Sequence[str]) -> list[str]:
    """Names of files or folders, in full where two would be the same."""
    short = [system_name(source) for source in sources]
    return [
        s if short.count(s) == 1 else f"{source} ({i})"
        for i, (s, source) in enumerate(zip(short, sources, strict=True))
    ]


def input_version(name: str, setting: str) -> str | None:
    """What tells two contents of the same name apart: a hash over the files of a local one, the commit of a Hub model.

    ValueError, beginning with `setting`, for a model that does not exist. None for references.
    """
    if name in (REFERENCES, SHUFFLED):
        return None
    path = Path(name).expanduser()
    config = None
    if not is_file(name):
        found, config = find_model(name, setting)
        path = Path(found).expanduser()
    if not path.exists():
        return getattr(config, "_commit_hash", None)
    return content_digest(path)


def keep_config(folder: Path, arguments: Any, inputs: dict[str, str], free: Sequence[str]) -> None:
    """config.json: command, arguments, versions. ValueError where the folder holds results of other arguments (but the
    `free` ones) or of other contents of the `inputs` (setting -> name).
    """
    file = folder / "config.json"
    versions = {setting: input_version(name, f"--{setting}") for setting, name in inputs.items()}
    now: dict[str, Any] = {
        "arguments": asdict(arguments), "inputs": versions, "command": command_line(), "source": source_commit(),
        "versions": package_versions(),
    }  # fmt: skip
    if getattr(arguments, "dataset_name", None) == EMBEDDED_DOCUMENTATION:
        now["documentation"] = documentation_versions()
    if file.exists():
        try:
            before = json.loads(file.read_text(encoding="utf-8"))
            arguments_before, inputs_before = before["arguments"], before["inputs"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is damaged ({error}), so that it cannot be known what the results in this folder are of; give "
                "another --output_dir, or delete the folder."
            ) from error
        plain = json.loads(json.dumps(now["arguments"]))
        changed = [n for n in plain if plain[n] != arguments_before.get(n) and n not in ("output_dir", *free)]
        changed += [f"content of {n}" for n in versions if versions[n] != inputs_before.get(n) and n not in changed]
        changed += ["documentation"] if now.get("documentation") != before.get("documentation") else []
        if changed:
            raise ValueError(
                f"{folder} holds results of another {', '.join(changed)}; give another --output_dir, or the same "
                "settings to go on with it."
            )
    write_json(file, now)


class Systems:
    """Reads and generates the systems of one evaluation. `sources`: setting without its dashes -> file, model,
    "references" or "shuffled-references"; `names`: the same keys, what results call them.
    """

    def __init__(self, arguments: PromptArguments, sources: dict[str, str], names: dict[str, str], folder: Path):
        self.arguments, self.sources, self.names, self.folder = arguments, sources, names, folder
        self.read = {key: self._read(key) for key, source in sources.items() if is_file(source)}
        self._references: dict[str, str] | None = None
        self.prompts = next(iter(self.read.values())).prompts if self.read else self._dataset_prompts()

    def system(self, key: str, console: Console) -> System:
        """The completions: as read, looked up, or generated once and kept in the folder."""
        source, name = self.sources[key], self.names[key]
        if key in self.read:
            return self.read[key]
        if source == REFERENCES:
            return System(name, self.prompts, self.references(), [True] * len(self.prompts))
        if source == SHUFFLED:
            texts = shuffle_references(self.references(), self.arguments.seed)
            return System(
                name, self.prompts, texts, [True] * len(self.prompts), f"as given, seed {self.arguments.seed}"
            )
        a = self.arguments
        kept = self.folder / f"completions_{key}.jsonl"
        if kept.exists():
            before = self._kept(kept, name)
            if before is not None and before.prompts == self.prompts:
                how = describe_decoding(a.max_new_tokens, a.temperature, a.seed)
                return System(name, self.prompts, before.completions, before.ended, how)
        console.print(f"{name}: generating {len(self.prompts)} completions", markup=False, highlight=False)
        model, tokenizer = load_model(source, f"--{key}", a.dtype)
        system = generate(
            model, tokenizer, self.prompts, name=name, max_new_tokens=a.max_new_tokens, temperature=a.temperature,
            seed=a.seed, batch_size=a.batch_size,
        )  # fmt: skip
        system.write(kept)
        return system

    def _kept(self, file: Path, name: str) -> System | None:
        """Completions of an earlier attempt; None for a damaged file, so that they are generated again."""
        try:
            return read_system(str(file), "completions", name)
        except ValueError:
            return None

    def references(self) -> list[str]:
        """The dataset's summary of each prompt, also where the prompt is a cut one. ValueError for prompts that the
        dataset does not have.
        """
        if self._references is None:
            data = self._load()
            self._references = dict(zip(data["prompt"], data["completion"], strict=True))
        found = [find_reference(prompt, self._references) for prompt in self.prompts]
        missing = [prompt for prompt, text in zip(self.prompts, found, strict=True) if text is None]
        if missing:
            raise ValueError(
                f"--dataset_name={self.arguments.dataset_name!r} has no reference, or no single one, for "
                f"{len(missing)} of {len(found)} prompts, such as {missing[0][:120]!r}. Give the dataset that the "
                "prompts are from (--dataset_name, --dataset_test_split)."
            )
        return [text for text in found if text is not None]

    def _read(self, key: str) -> System:
        system = read_system(self.sources[key], f"--{key}", self.names[key])
        number = self.arguments.num_prompts or len(system.prompts)
        if number > len(system.prompts):
            raise ValueError(f"--{key} has {len(system.prompts)} prompts, fewer than the {number} of --num_prompts.")
        ended = None if system.ended is None else system.ended[:number]
        texts = [space_completion(p, t) for p, t in zip(system.prompts, system.completions, strict=True)]
        return System(system.name, system.prompts[:number], texts[:number], ended, system.decoding)

    def _dataset_prompts(self) -> list[str]:
        """The first prompts that every model here takes, cut by the tokenizer of each in turn. One that is the same as
        an earlier one once it is cut is passed over.
        """
        a = self.arguments
        number = NUM_PROMPTS if a.num_prompts is None else a.num_prompts
        tokenizers = [
            _explain(f"--{key}", lambda source=source: load_policy_tokenizer(_policy(source)))
            for key, source in self.sources.items()
            if is_model(source)
        ]
        data, found = self._load(), {}
        for prompt, completion in zip(data["prompt"], data["completion"], strict=True):
            for tokenizer in tokenizers:
                prompt = cut_prompt(prompt, tokenizer, a.max_prompt_length)
            found.setdefault(prompt, completion)
            if len(found) == number:
                break
        if a.num_prompts and len(found) < number:
            raise ValueError(
                f"--dataset_name={a.dataset_name!r} has {len(found)} prompts that differ once they are cut to "
                f"{a.max_prompt_length} tokens, fewer than the {number} of --num_prompts."
            )
        self._references = found
        return list(found)

    def _load(self) -> Any:
        a = self.arguments
        return load_tldr(a.dataset_name, "eval", split=a.dataset_test_split, seed=a.seed)


def space_completion(prompt: str, completion: str) -> str:
    """The completion with a space between it and the cue, as models write it and reward models were trained on it."""
    return f" {completion}" if prompt.endswith(CUE) and completion[:1].strip() else completion


def find_reference(prompt: str, references: dict[str, str]) -> str | None:
    """The reference of a prompt, or of the only whole prompt that it is the beginning of; None where there is none."""
    if prompt in references:
        return references[prompt]
    start = prompt.removesuffix(CUE).rstrip()
    found = [text for whole, text in references.items() if whole.startswith(start)]
    return found[0] if len(found) == 1 else None


def shuffle_references(references: Sequence[str], seed: int) -> list[str]:
    """Each prompt gets the reference of another one: of the next one in a random circle.

    ValueError for fewer than two.
    """
    n = len(references)
    if n < 2:
        raise ValueError(f"{SHUFFLED} needs at least two prompts, got {n}")
    circle = np.random.default_rng(seed).permutation(n)
    dealt = [""] * n
    for place, source in zip(circle, np.roll(circle, 1), strict=True):
        dealt[place] = references[source]
    return dealt


def load_model(source: str, setting: str, dtype: str = "float32") -> tuple[Any, Any]:
    """Model on its device and tokenizer. ValueError that begins with `setting` for one that does not load."""
    model, tokenizer, _ = _explain(setting, lambda: load_policy(_policy(source, dtype)))
    return model.to(default_device()), tokenizer


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() and not os.environ.get("ACCELERATE_USE_CPU") else "cpu"


def _policy(source: str, dtype: str = "float32") -> PolicyConfig:
    return PolicyConfig(model_name_or_path=source, dtype=dtype)


def _explain(setting: str, load: Any) -> Any:
    """load(), whose errors name the setting of training, with this one in its place."""
    try:
        return load()
    except ValueError as error:
        raise ValueError(str(error).replace("--model_name_or_path", setting)) from error
