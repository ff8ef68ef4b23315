"""Summaries without the Hub: what the installed packages say about their own functions and classes.

A docstring begins with one line that a person wrote as its summary; the prose below is the text that it summarises.
Source files are parsed and never imported, in a fixed order. The pairs are the same wherever the same versions of
DOCUMENTATION_PACKAGES, all of them dependencies of this package, are installed; other versions give a few others, so
that versions and a fingerprint belong to every result. The texts are under the licences of their packages (BSD,
Apache 2.0), are read at run time, and are copied nowhere but into the cache on this machine.

| part     | share | who reads it                                                                    |
|----------|-------|---------------------------------------------------------------------------------|
| policy   | 60 %  | the base model, SFT, the training reward model, prompts of RL                    |
| judge    | 24 %  | the held-out judge                                                              |
| eval     |  8 %  | prompts of the win rate; no model has seen them                                  |
| held_out |  8 %  | accuracy of reward model and judge, held-out loss; no model has seen them         |

A module falls into one part by the hash of its name, so that parts share the domain and no page. Entries that share a
summary or a run of NEAR_DUPLICATE words are near duplicates: those outside the part of the first one are left out.
"""

import ast
import functools
import gc
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from huggingface_hub import constants
from tqdm import tqdm

EMBEDDED_DOCUMENTATION = "documentation"
DOCUMENTATION_PACKAGES = (
    "torch", "transformers", "sympy", "pandas", "networkx", "numpy", "huggingface_hub", "trl", "peft", "datasets",
    "accelerate",
)  # fmt: skip
# Upper bound (exclusive) of the hash bucket, out of 100.
DOCUMENTATION_PARTS = {"policy": 60, "judge": 84, "eval": 92, "held_out": 100}
LICENCE_NOTE = "docstrings of installed packages under their own licences (BSD, Apache-2.0); not redistributed"

SUMMARY_WORDS = (3, 30)
MIN_TEXT_WORDS = 25
# Decontamination of language-model data takes runs of 13 words (Brown et al. 2020, appendix C).
NEAR_DUPLICATE = 13
# A paragraph in more entries than this is boilerplate ("This model inherits from ...").
MAX_REPEATS = 3
# Counts up whenever the rules below change, so that no older cache is read.
_RULES = 1

_LEFT_OUT = {"tests", "test", "testing", "_vendor", "vendor", "third_party"}
_UNDERLINE = re.compile(r"[=\-~^*#]{3,}")
_TECHNICAL = re.compile(
    r"(other |keyword )?(args?|arguments?|params?|parameters?)|returns?|yields?|raises?|receives|warns?|examples?|"
    r"references?|see also|attributes?|methods?|shape|inputs?|outputs?|usage|todo|doctest",
    re.IGNORECASE,
)
# Code, tables, directives, formulas: no prose.
_NO_PROSE = (">>>", "...", "```", ".. ", "|", "+--", "$", "\\", "@", "#", "[`~")


@dataclass(frozen=True)
class Entry:
    """One function or class: its dotted name, the part and package it belongs to, summary line and prose below it."""

    name: str
    package: str
    module: str
    part: str
    summary: str
    text: str


def documentation_part(module: str) -> str:
    """The part of a module such as `torch.nn.functional` (a key of DOCUMENTATION_PARTS), by the hash of its name."""
    bucket = int(hashlib.sha256(module.encode()).hexdigest()[:8], 16) % 100
    return next(part for part, bound in DOCUMENTATION_PARTS.items() if bucket < bound)


def documentation_versions() -> dict[str, str]:
    """Package -> installed version, of those of DOCUMENTATION_PACKAGES that are installed."""
    found = {}
    for package in DOCUMENTATION_PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def read_docstring(docstring: str) -> tuple[str, str] | None:
    """(summary, text): the first paragraph on one line, and the prose below it with its line breaks.

    Sections of parameters, results, examples and references are left out, as are code, tables, directives and indented
    blocks; sections of notes and explanations stay. None without a summary of 3 to 30 words.
    """
    paragraphs = [p.split("\n") for p in re.split(r"\n\s*\n", inspect.cleandoc(docstring)) if p.strip()]
    if not paragraphs or len(paragraphs[0]) > 3:
        return None
    summary = " ".join(line.strip() for line in paragraphs[0])
    if not SUMMARY_WORDS[0] <= len(summary.split()) <= SUMMARY_WORDS[1] or summary.startswith(_NO_PROSE):
        return None
    prose, skipping = [], False
    for lines in paragraphs[1:]:
        if len(lines) > 1 and _UNDERLINE.fullmatch(lines[1].strip()):  # numpy style: a section until the next one
            skipping = _TECHNICAL.fullmatch(lines[0].strip()) is not None
            lines = lines[2:]
        elif _TECHNICAL.fullmatch(lines[0].strip().rstrip(":")) or re.match(r"(Args|Returns|Raises):", lines[0]):
            continue  # Google style: what belongs to the section is indented
        if skipping or not lines or lines[0].startswith("    ") or lines[0].lstrip().startswith(_NO_PROSE):
            continue
        prose.append("\n".join(line.strip() for line in lines))
    return summary, "\n\n".join(prose)


def read_package(package: str) -> Iterator[tuple[str, str, str]]:
    """(module, dotted name, docstring) of all functions, classes and methods of an installed package, in file order.

    Tests and vendored packages are left out. ImportError for a package that is not installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ImportError(f"the package {package!r}, which {EMBEDDED_DOCUMENTATION!r} reads, is not installed")
    root = Path(spec.submodule_search_locations[0])
    for file in sorted(root.rglob("*.py"), key=lambda f: f.as_posix()):
        parts = file.relative_to(root.parent).with_suffix("").parts
        if _LEFT_OUT & set(parts) or parts[-1].startswith("test_"):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for name, docstring in _read_file(file):
            yield module, f"{module}.{name}", docstring


def _read_file(file: Path) -> list[tuple[str, str]]:
    """(name, docstring) of what a file defines; nothing of templates and files for another Python."""
    collecting = gc.isenabled()
    gc.disable()  # a syntax tree has no cycles, and beside a loaded torch collections took more than half of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's strings
            return list(_docstrings(ast.parse(file.read_text(encoding="utf-8"))))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return []
    finally:
        if collecting:
            gc.enable()


def _docstrings(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, str]]:
    for node in getattr(tree, "body", ()):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield prefix + node.name, docstring
            if isinstance(node, ast.ClassDef):
                yield from _docstrings(node, f"{prefix}{node.name}.")


def load_documentation(part: str) -> list[Entry]:
    """The entries of a part, in a fixed order. ValueError for an unknown part and for one that is empty."""
    if part not in DOCUMENTATION_PARTS:
        raise ValueError(
            f"unknown part {part!r} of {EMBEDDED_DOCUMENTATION}; valid parts: {', '.join(DOCUMENTATION_PARTS)}"
        )
    entries = [entry for entry in all_documentation() if entry.part == part]
    if not entries:
        raise ValueError(
            f"part {part!r} of {EMBEDDED_DOCUMENTATION} is empty; of its {len(DOCUMENTATION_PACKAGES)} packages these "
            f"versions were found: {documentation_versions()}. Were they installed without their sources?"
        )
    return entries


@functools.cache
def all_documentation() -> tuple[Entry, ...]:
    """All entries that are left, from the cache where these versions were read before."""
    versions = documentation_versions()
    key = hashlib.sha256(json.dumps([_RULES, versions, sys.version_info[:2]]).encode()).hexdigest()[:16]
    cache = Path(constants.HF_HOME) / "scope_rlhf" / f"documentation-{key}.json"
    try:
        return tuple(Entry(**row) for row in json.loads(cache.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # none yet, or a damaged one: read again
        pass
    packages = tqdm(versions, desc=f"reading {EMBEDDED_DOCUMENTATION}", leave=False, dynamic_ncols=True)
    entries = select_entries([(package, *row) for package in packages for row in read_package(package)])
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        draft = cache.with_suffix(f".{os.getpid()}.tmp")
        draft.write_text(json.dumps([asdict(entry) for entry in entries]), encoding="utf-8")
        draft.replace(cache)
    except OSError as error:
        warnings.warn(f"the documentation could not be cached in {cache.parent} ({error})", stacklevel=2)
    return entries


def select_entries(rows: list[tuple[str, str, str, str]]) -> tuple[Entry, ...]:
    """Entries out of (package, module, name, docstring): boilerplate, short texts and near duplicates are taken out."""
    read = [(row, found) for row in rows if (found := read_docstring(row[3])) is not None]
    repeats: dict[str, int] = {}
    for _, (_, text) in read:
        for paragraph in set(_paragraphs(text)):
            repeats[paragraph] = repeats.get(paragraph, 0) + 1
    entries = []
    for (package, module, name, _), (summary, text) in read:
        kept = "\n\n".join(p for p in _paragraphs(text) if repeats[p] <= MAX_REPEATS)
        if len(kept.split()) >= MIN_TEXT_WORDS:
            entries.append(Entry(name, package, module, documentation_part(module), summary, kept))
    groups = near_duplicates([entry.summary for entry in entries], [entry.text for entry in entries])
    first: dict[int, Entry] = {}
    summaries: set[str] = set()
    chosen = []
    for entry, group in zip(entries, groups, strict=True):
        words = _normal(entry.summary)
        if first.setdefault(group, entry).part == entry.part and words not in summaries:
            summaries.add(words)
            chosen.append(entry)
    return tuple(chosen)


def documentation_corpus(part: str) -> list[str]:
    """Whole docstrings of the modules of a part, for a language model: all of them but copies, and but those that share
    a run of NEAR_DUPLICATE words with an entry of another part.
    """
    load_documentation(part)  # names an unknown part
    elsewhere = {mark for entry in all_documentation() if entry.part != part for mark in _runs(entry.text)}
    elsewhere |= {_normal(entry.summary) for entry in all_documentation() if entry.part != part}
    texts: dict[str, str] = {}
    for package in tqdm(documentation_versions(), desc=f"reading {EMBEDDED_DOCUMENTATION}", leave=False):
        for module, _, docstring in read_package(package):
            if documentation_part(module) == part and _normal(docstring) not in texts:
                summary = _normal(docstring.split("\n\n")[0])
                if summary not in elsewhere and not elsewhere & _runs(docstring):
                    texts[_normal(docstring)] = inspect.cleandoc(docstring)
    return list(texts.values())


def near_duplicates(summaries: list[str], texts: list[str], run: int = NEAR_DUPLICATE) -> list[int]:
    """A group number for each entry: those that share a summary, or `run` words in a row of text, share the group."""
    parent = list(range(len(texts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    seen: dict[int | str, int] = {}
    for i, (summary, text) in enumerate(zip(summaries, texts, strict=True)):
        for mark in (_normal(summary), *_runs(text, run)):
            parent[root(i)] = root(seen.setdefault(mark, i))
    return [root(i) for i in range(len(texts))]


def _runs(text: str, run: int = NEAR_DUPLICATE) -> set[int | str]:
    """Hashes of all runs of words; of a text that is shorter, of the whole."""
    words = re.findall(r"\w+", text.lower())
    return {hash(tuple(words[start : start + run])) for start in range(max(1, len(words) - run + 1))}


def _paragraphs(text: str) -> list[str]:
    return text.split("\n\n")


def _normal(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())
