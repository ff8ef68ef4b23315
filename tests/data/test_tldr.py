"""TL;DR rows from every kind of source become the same prompts, completions and pairs."""

import json

import pytest
from datasets import Dataset

from scope_rlhf.data import loading, tldr
from scope_rlhf.data.documentation import Entry
from scope_rlhf.data.tldr import (
    CUE,
    cut_prompt,
    format_prompt,
    load_tldr,
    load_tldr_preferences,
    synthetic_pairs,
)
from tests.tiny import tiny_tokenizer


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def entry(i, package="p"):
    return Entry(
        f"{package}.m.f{i}", package, f"{package}.m", "policy", f"Summary number {i} of it.", f"text {i} " * 20
    )


def test_the_prompt_is_that_of_tldr():
    prompt = format_prompt("My post.\nGoes on.", "A title", "r/advice")
    assert prompt == "SUBREDDIT: r/advice\n\nTITLE: A title\n\nPOST: My post.\nGoes on.\n\nTL;DR:"
    assert format_prompt("Only a post.") == "POST: Only a post.\n\nTL;DR:"


def length(text, tokenizer):
    return len(tokenizer(text)["input_ids"])


def test_a_long_prompt_ends_at_the_last_line_break_that_fits_and_keeps_the_cue():
    tokenizer = tiny_tokenizer()
    prompt = format_prompt("one film\ntwo film film\nthree film film film film film film", "t")
    whole = length(prompt, tokenizer)
    assert cut_prompt(prompt, tokenizer, whole) == prompt
    cut = cut_prompt(prompt, tokenizer, whole - 1)
    assert cut == "TITLE: t\n\nPOST: one film\ntwo film film\n\nTL;DR:"
    shorter = cut_prompt(prompt, tokenizer, length(cut, tokenizer) - 1)
    assert shorter == "TITLE: t\n\nPOST: one film\n\nTL;DR:"
    for limit in range(length(shorter, tokenizer), whole):
        assert length(cut_prompt(prompt, tokenizer, limit), tokenizer) <= limit


def test_a_post_of_one_line_is_cut_at_white_space_and_a_head_that_does_not_fit_is_an_error():
    tokenizer = tiny_tokenizer()
    prompt = format_prompt("film " * 40 + "end", "t")
    cut = cut_prompt(prompt, tokenizer, length(prompt, tokenizer) // 2)
    assert cut.startswith("TITLE: t\n\nPOST: film film") and cut.endswith(f"film\n\n{CUE}")
    with pytest.raises(ValueError, match="no part of a prompt fits into 5 tokens; raise --max_prompt_length"):
        cut_prompt(prompt, tokenizer, 5)


def test_a_file_of_prompts_and_completions_gives_each_prompt_once_in_a_seeded_order(tmp_path):
    rows = [{"prompt": f"POST: post {i}\n\nTL;DR:", "completion": f" sum\n {i} "} for i in range(20)]
    path = write(tmp_path / "a.jsonl", [*rows, rows[0], {"prompt": "POST: empty\n\nTL;DR:", "completion": "  "}])
    data = load_tldr(path, seed=1)
    assert len(data) == 20 and sorted(data["completion"])[0] == " sum 0"
    assert data["prompt"] != sorted(data["prompt"]) and load_tldr(path, seed=1)["prompt"] == data["prompt"]
    assert load_tldr(path, seed=2)["prompt"] != data["prompt"]
    assert load_tldr(path, seed=1, num_rows=5)["prompt"] == data["prompt"][:5]
    with pytest.raises(ValueError, match=r"gives 20 rows \(1 of its 22 have an empty text, 1 .* than the 21 asked for"):
        load_tldr(path, num_rows=21)


def test_posts_with_summaries_and_prompts_without_a_cue_get_the_format(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"post": "P", "title": "T", "subreddit": "x", "summary": "S"}])
    assert load_tldr(path).to_list() == [
        {"prompt": "SUBREDDIT: r/x\n\nTITLE: T\n\nPOST: P\n\nTL;DR:", "completion": " S"}
    ]
    path = write(tmp_path / "b.jsonl", [{"prompt": "Sum this up. ", "completion": "S"}])
    assert load_tldr(path)["prompt"] == ["Sum this up.\n\nTL;DR:"]


def test_preferences_are_read_as_texts_as_conversations_and_as_comparisons(tmp_path):
    texts = {"prompt": "POST: p\n\nTL;DR:", "chosen": "good", "rejected": " bad"}
    talk = {**texts, **{k: [{"role": "user", "content": "x"}, {"role": "assistant", "content": texts[k]}] for k in
                        ("chosen", "rejected")}}  # fmt: skip
    comparison = {
        "info": {"post": "p", "title": None, "subreddit": None, "article": None},
        "summaries": [{"text": "bad"}, {"text": "good"}], "choice": 1,
    }  # fmt: skip
    for number, row in enumerate((texts, talk, comparison)):
        path = write(tmp_path / f"{number}.jsonl", [row])
        expected = {"prompt": "POST: p\n\nTL;DR:", "chosen": " good", "rejected": " bad", "kind": "human"}
        assert load_tldr_preferences(path).to_list() == [expected]
        assert load_tldr(path).to_list() == [{"prompt": expected["prompt"], "completion": " good"}]


def test_missing_columns_and_wrong_rows_are_named(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": "p", "text": "t"}])
    with pytest.raises(ValueError, match="has the columns prompt, text; expected prompt and completion, or post and"):
        load_tldr(path)
    path = write(tmp_path / "b.jsonl", [{"prompt": "p", "completion": "t"}])
    with pytest.raises(ValueError, match=r"expected prompt \(or post\), chosen, rejected"):
        load_tldr_preferences(path)
    path = write(tmp_path / "c.jsonl", [{"prompt": "p", "completion": "t"}, {"prompt": None, "completion": "t"}])
    with pytest.raises(ValueError, match="column 'prompt' of .* must hold texts, row 1 is None"):
        load_tldr(path)
    rows = [{"info": {"post": "p"}, "summaries": [{"text": "one"}], "choice": 0}]
    with pytest.raises(ValueError, match="row 0 of .* needs two summaries and a choice of 0 or 1"):
        load_tldr_preferences(write(tmp_path / "d.jsonl", rows))
    with pytest.raises(ValueError, match="--data='nowhere.jsonl' does not exist"):
        load_tldr("nowhere.jsonl", setting="--data")
    with pytest.raises(ValueError, match="part must be train or eval for a dataset that is not embedded, got 'judge'"):
        load_tldr(path, "judge")


def test_the_comparisons_of_openai_are_read_from_the_hubs_own_conversion(monkeypatch):
    """Their repository is a loading script, which datasets no longer runs."""
    asked = []

    def load(name, config=None, split=None, revision=None):
        asked.append((name, config, split, revision))
        if revision is None:
            raise RuntimeError("Dataset scripts are no longer supported, but found summarize_from_feedback.py")
        info = {"post": "p", "title": "t", "subreddit": "s"}
        return Dataset.from_list([{"info": info, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 0}])

    monkeypatch.setattr(loading, "load_dataset", load)
    data = load_tldr_preferences(tldr.FEEDBACK, "eval")
    assert asked[1] == (tldr.FEEDBACK, "comparisons", "validation", "refs/convert/parquet")
    assert data[0]["prompt"] == "SUBREDDIT: r/s\n\nTITLE: t\n\nPOST: p\n\nTL;DR:" and data[0]["chosen"] == " a"


def test_synthetic_pairs_prefer_the_human_line_and_say_what_the_other_one_is():
    entries = [entry(i) for i in range(6)] + [entry(i, "q") for i in range(6, 9)]
    asked = []

    def sample(prompts):
        asked.extend(prompts)
        return [f"Sampled {number}." for number in range(len(prompts))]

    pairs = synthetic_pairs(entries, 0, sample)
    assert pairs == synthetic_pairs(entries, 0, sample) != synthetic_pairs(entries, 1, sample)
    assert [kind for *_, kind in pairs] == ["another", "shuffled", "sampled"] * 3  # one for each entry, in turn
    assert asked[:3] == [tldr.documentation_prompt(entries[i]) for i in (2, 5, 8)]
    for (prompt, chosen, rejected, kind), own in zip(pairs, entries, strict=True):
        assert prompt == tldr.documentation_prompt(own) and chosen == own.summary != rejected
        if kind == "shuffled":
            assert sorted(rejected.split()) == sorted(chosen.split())
        if kind == "another":
            assert rejected in {e.summary for e in entries if e.package != own.package}
        if kind == "sampled":
            assert rejected == f"Sampled {asked.index(prompt) % 3}."


def test_without_a_model_to_sample_from_the_other_two_kinds_take_turns():
    pairs = synthetic_pairs([entry(i) for i in range(4)], 0)
    assert [kind for *_, kind in pairs] == ["another", "shuffled"] * 2


def test_the_embedded_rows_are_the_documentation(monkeypatch):
    parts = {"policy": [entry(1), entry(2)], "eval": [entry(3)]}
    monkeypatch.setattr(tldr, "load_documentation", lambda part: parts[part])
    assert len(load_tldr()) == 2
    row = load_tldr(part="eval")[0]
    assert row["prompt"].startswith("PACKAGE: p\n\nTITLE: f3\n\nPOST: text 3 text 3")
    assert row["completion"] == " Summary number 3 of it."
    assert set(load_tldr_preferences()["kind"]) <= {"another", "shuffled"}


def test_too_few_rows_say_how_many_were_empty_or_repeated(tmp_path):
    rows = [{"prompt": "a", "completion": ""}, {"prompt": "b", "completion": "x"}, {"prompt": "b", "completion": "y"}]
    path = write(tmp_path / "d.jsonl", rows)
    with pytest.raises(
        ValueError, match=r"gives 1 rows \(1 of its 3 have an empty text, 1 repeat another\), fewer than"
    ):
        load_tldr(path, num_rows=2)
    with pytest.raises(ValueError, match=r"gives 0 rows \(1 of its 1 have an empty text, 0 .*; give other rows"):
        load_tldr(write(tmp_path / "e.jsonl", rows[:1]))


def test_a_part_of_the_documentation_is_a_split_by_its_own_name(monkeypatch):
    parts = {"policy": [entry(1), entry(2)], "held_out": [entry(3)]}
    monkeypatch.setattr(tldr, "load_documentation", lambda part: parts[part])
    assert len(load_tldr(part="eval", split="held_out")) == 1 and len(load_tldr(part="train", split="train")) == 2
