"""TL;DR summarisation: by Hub name, from local files, or from the installed documentation where there is no Hub.

| source                                           | rows                                                          |
|--------------------------------------------------|---------------------------------------------------------------|
| `documentation` (embedded)                       | data.documentation; its preference pairs are synthetic        |
| `trl-lib/tldr`                                   | prompt, completion                                            |
| `trl-lib/tldr-preference`                        | prompt, chosen, rejected (texts or conversations)             |
| `openai/summarize_from_feedback`                 | info, summaries, choice (the subset `comparisons`)            |
| file (.jsonl, .json, .csv, .parquet) or folder   | columns as of any row above, or post and summary              |

All become the same texts: a prompt that ends with the cue "TL;DR:", and completions that begin with one space.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from scope_rlhf.data.documentation import EMBEDDED_DOCUMENTATION, Entry, load_documentation
from scope_rlhf.data.loading import load_split

CUE = "TL;DR:"
FEEDBACK = "openai/summarize_from_feedback"
# What the rejected summary of a synthetic pair is.
SYNTHETIC_KINDS = {
    "another": "the summary of an entry of another package",
    "shuffled": "the entry's own summary, words in random order",
    "sampled": "a summary sampled from a model",
}


def format_prompt(post: str, title: str = "", group: str = "", group_name: str = "SUBREDDIT") -> str:
    """The prompt of TL;DR (Stiennon et al. 2020): group and title where there are any, the post, the cue."""
    head = [f"{group_name}: {group}"] if group else []
    head += [f"TITLE: {title}"] if title else []
    return "\n\n".join([*head, f"POST: {post}", CUE])


def cut_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """The prompt in at most max_length tokens: a longer one ends at its last line break that fits, then the cue.

    Where no line of the post fits whole, at the last white space. ValueError where not even the head fits.
    """
    if _count(prompt, tokenizer) <= max_length:
        return prompt
    body = prompt.removesuffix(CUE).rstrip()
    start = body.rfind("POST: ") + 6 if "POST: " in body else 0
    end = f"\n\n{CUE}" if prompt.endswith(CUE) else ""
    for breaks in ("\n", " "):
        cuts = [i for i, letter in enumerate(body) if letter == breaks and i > start]
        # The longest that fits, by halving: more text is not fewer tokens but for an odd merge.
        low, high = 0, len(cuts)
        while low < high:
            middle = (low + high + 1) // 2
            if _count(body[: cuts[middle - 1]].rstrip() + end, tokenizer) <= max_length:
                low = middle
            else:
                high = middle - 1
        if low:
            return body[: cuts[low - 1]].rstrip() + end
    raise ValueError(
        f"no part of a prompt fits into {max_length} tokens; raise --max_prompt_length. It begins {prompt[:120]!r}"
    )


def load_tldr(
    dataset_name: str = EMBEDDED_DOCUMENTATION,
    part: str = "train",
    *,
    split: str | None = None,
    num_rows: int | None = None,
    seed: int = 0,
    setting: str = "--dataset_name",
) -> Dataset:
    """Prompts with one reference summary each: columns prompt and completion, in a seeded order.

    part: "train" or "eval": policy or eval of the documentation, elsewhere the split `train` or `validation`. split:
    another one by its own name, of the documentation a part. num_rows: None takes all. Of preference pairs the chosen
    summary is the reference. Repeated prompts and empty summaries are left out.
    ValueError for a dataset that does not load, has other columns or too few rows.
    """
    if dataset_name == EMBEDDED_DOCUMENTATION:
        entries = load_documentation(_part(part, split))
        rows = [(documentation_prompt(entry), entry.summary) for entry in entries]
    else:
        data, where = _load_rows(dataset_name, part, split, setting)
        read = _reader(data, where, pairs=False)
        rows = [read(row, number)[:2] for number, row in enumerate(data)]
    return _dataset(rows, ("prompt", "completion"), num_rows, seed, f"{part} of {setting}={dataset_name!r}")


def load_tldr_preferences(
    dataset_name: str = EMBEDDED_DOCUMENTATION,
    part: str = "train",
    *,
    split: str | None = None,
    num_rows: int | None = None,
    seed: int = 0,
    sample: Callable[[list[str]], Sequence[str]] | None = None,
    setting: str = "--dataset_name",
) -> Dataset:
    """Preference pairs: columns prompt, chosen, rejected and kind ("human", or one of SYNTHETIC_KINDS).

    Synthetic pairs (documentation): one for each of num_rows entries, the kinds in turn; a few entries give none. See
    synthetic_pairs for `sample`. The other arguments and errors are those of load_tldr.
    """
    if dataset_name == EMBEDDED_DOCUMENTATION:
        entries = load_documentation(_part(part, split))
        if num_rows is not None and not 1 <= num_rows <= len(entries):
            raise ValueError(f"{part} of {dataset_name} has {len(entries)} entries, {num_rows} were asked for.")
        order = np.random.default_rng(seed).permutation(len(entries))[:num_rows]
        rows = synthetic_pairs([entries[i] for i in order], seed, sample)
        num_rows = None
    else:
        data, where = _load_rows(dataset_name, part, split, setting)
        read = _reader(data, where, pairs=True)
        rows = [(*read(row, number), "human") for number, row in enumerate(data)]
    names = ("prompt", "chosen", "rejected", "kind")
    return _dataset(rows, names, num_rows, seed, f"{part} of {setting}={dataset_name!r}")


def _part(part: str, split: str | None) -> str:
    return {"train": "policy"}.get(split or part, split or part)


def documentation_prompt(entry: Entry) -> str:
    return format_prompt(entry.text, title=entry.name.removeprefix(f"{entry.module}."), group=entry.package,
                         group_name="PACKAGE")  # fmt: skip


def synthetic_pairs(
    entries: Sequence[Entry], seed: int, sample: Callable[[list[str]], Sequence[str]] | None = None
) -> list[tuple[str, str, str, str]]:
    """(prompt, chosen, rejected, kind), one for each entry, the kinds in turn; chosen is what a person wrote.

    The other entry is one of another package where there are several: telling those of the same package apart is too
    much for the embedded models (accuracy .49 after 2,400 pairs). An entry whose rejected text is empty or the chosen
    one is left out. sample: summaries of a model for prompts; None leaves that kind out.
    """
    generator = np.random.default_rng(seed)
    others = {name: [e for e in entries if e.package != name] or entries for name in {e.package for e in entries}}
    kinds = [kind for kind in SYNTHETIC_KINDS if kind != "sampled" or sample is not None]
    asked = [documentation_prompt(entry) for i, entry in enumerate(entries) if kinds[i % len(kinds)] == "sampled"]
    sampled = iter(sample(asked) if sample is not None and asked else ())
    rows = []
    for i, entry in enumerate(entries):
        kind = kinds[i % len(kinds)]
        if kind == "another":
            far = others[entry.package]
            text = far[int(generator.integers(len(far)))].summary
        elif kind == "shuffled":
            words = entry.summary.split()
            text = " ".join(words[j] for j in generator.permutation(len(words)))
        else:
            text = next(sampled)
        if text.strip() and text.strip() != entry.summary:
            rows.append((documentation_prompt(entry), entry.summary, text, kind))
    return rows


def _load_rows(dataset_name: str, part: str, split: str | None, setting: str) -> tuple[Dataset, str]:
    if part not in ("train", "eval"):
        raise ValueError(f"part must be train or eval for a dataset that is not embedded, got {part!r}")
    settings: dict[str, Any] = {
        "setting": setting, "what": "posts with summaries", "example": "trl-lib/tldr",
        "embedded": EMBEDDED_DOCUMENTATION, "config_name": "comparisons" if dataset_name == FEEDBACK else None,
        "split_setting": "--dataset_train_split" if part == "train" else "--dataset_test_split",
    }  # fmt: skip
    split = split or ("train" if part == "train" else "validation")
    data = load_split(dataset_name, split, **settings)
    where = f"split {split!r} of {setting}={dataset_name!r}"
    if not len(data):
        raise ValueError(f"{where} is empty.")
    return data, where


Reader = Callable[[Mapping[str, Any], int], tuple[str, str, str]]


def _reader(data: Dataset, where: str, pairs: bool) -> Reader:
    """The function of (row, its number) -> (prompt, chosen or only summary, rejected), by the columns there are."""
    columns = set(data.column_names)
    has_prompt = bool({"prompt", "post"} & columns)
    feedback = {"info", "summaries", "choice"} <= columns
    two, one = {"chosen", "rejected"} <= columns, {"completion", "summary"} & columns
    if not (feedback or (has_prompt and (two or (one and not pairs)))):
        wanted = "prompt (or post), chosen, rejected" if pairs else "prompt and completion, or post and summary"
        raise ValueError(
            f"{where} has the columns {', '.join(sorted(columns))}; expected {wanted}, or info, summaries, choice of "
            f"{FEEDBACK}. Rename the columns, or give another dataset."
        )

    def text(row: Mapping[str, Any], name: str, number: int) -> str:
        value = row[name]
        if isinstance(value, list) and value and isinstance(value[-1], Mapping):  # a conversation: its last message
            value = value[-1].get("content")
        if not isinstance(value, str):
            raise ValueError(f"column {name!r} of {where} must hold texts, row {number} is {value!r}.")
        return value

    def read(row: Mapping[str, Any], number: int) -> tuple[str, str, str]:
        if feedback:
            info, choice = row["info"], row["choice"]
            summaries = [s["text"] for s in row["summaries"]]
            if choice not in (0, 1) or len(summaries) != 2:
                raise ValueError(f"row {number} of {where} needs two summaries and a choice of 0 or 1, got {choice!r}.")
            group = f"r/{info['subreddit']}" if info.get("subreddit") else ""
            prompt = format_prompt(info["post"] or info.get("article") or "", info.get("title") or "", group)
            return prompt, summaries[choice], summaries[1 - choice]
        if "prompt" in columns:
            prompt = text(row, "prompt", number).rstrip()
            prompt = prompt if prompt.endswith(CUE) else f"{prompt}\n\n{CUE}"
        else:
            group = str(row.get("subreddit") or "")
            prompt = format_prompt(text(row, "post", number), str(row.get("title") or ""), group and f"r/{group}")
        if two:
            return prompt, text(row, "chosen", number), text(row, "rejected", number)
        return prompt, text(row, "completion" if "completion" in columns else "summary", number), ""

    return read


def _dataset(
    rows: Sequence[tuple[str, ...]], names: tuple[str, ...], num_rows: int | None, seed: int, where: str
) -> Dataset:
    """The rows in a seeded order, completions with one space in front; no empty text and no row twice."""
    if num_rows is not None and num_rows < 1:
        raise ValueError(f"the number of rows must be at least 1, or None for all, got {num_rows}.")
    texts = [i for i, name in enumerate(names) if name in ("completion", "chosen", "rejected")]
    once = names.index("prompt") if "completion" in names else None
    kept: list[list[str]] = []
    seen: set[Any] = set()
    twice = empty = 0
    for i in np.random.default_rng(seed).permutation(len(rows)).tolist():
        row = list(rows[i])
        mark = tuple(row) if once is None else row[once]
        if any(not row[t].strip() for t in texts):
            empty += 1
            continue
        if mark in seen:
            twice += 1
            continue
        seen.add(mark)
        for t in texts:
            row[t] = " " + " ".join(row[t].split())
        kept.append(row)
        if len(kept) == num_rows:
            break
    if not kept or len(kept) < (num_rows or 0):
        without = f" ({empty} of its {len(rows)} have an empty text, {twice} repeat another)" if empty or twice else ""
        raise ValueError(
            f"{where} gives {len(kept)} rows{without}, fewer than the {num_rows or 1} asked for; "
            + ("lower the number." if kept else "give other rows.")
        )
    return Dataset.from_dict({name: [row[i] for row in kept] for i, name in enumerate(names)})


def _count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
