"""`scope-rlhf winrate` from the command line, with real tiny models, files and a server of the test's own."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pandas as pd
import pytest
import torch
from transformers import GPT2Config, GPT2ForSequenceClassification

from scope_rlhf.cli import main
from scope_rlhf.cli_help import WINRATE_HELP
from scope_rlhf.evaluation.completions import read_system
from scope_rlhf.experiments.systems import distinct_names, find_reference, shuffle_references, space_completion
from scope_rlhf.models.reward import RewardScorer
from scope_rlhf.runtime.files import read_json_lines
from tests.tiny import tiny_gpt2, tiny_tokenizer
from tests.trainers.makers import save_reward_model

pytest.importorskip("matplotlib")

WORDS = ["film", "cast", "plot", "movie", "year", "ending", "acting", "good"]
SHORTER = "def judge(prompt, first, second):\n    return 'first' if len(first) <= len(second) else 'second'\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with two policies, a reward model, a dataset of ten posts and a judge."""
    folder = tmp_path_factory.mktemp("made")
    tokenizer = tiny_tokenizer()
    for name, seed in (("sft", 0), ("rl", 1)):
        tiny_gpt2(tokenizer, seed).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    save_reward_model(folder / "judge")
    posts = [
        {"prompt": f"POST: the {a} {b}\n\nTL;DR:", "completion": f"{b} {a}"} for a in WORDS[:2] for b in WORDS[2:7]
    ]
    (folder / "posts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in posts))
    (folder / "judge.py").write_text(SHORTER)
    return folder


def winrate(made, out, *more, a="rl", b="sft", judge=True):
    """Exit status of the command; a and b are names in `made` or what the command takes."""
    sources = [str(made / s) if (made / s).exists() else s for s in (a, b)]
    argv = ["winrate", "--system_a", sources[0], "--system_b", sources[1], "--output_dir", str(out),
            "--dataset_name", str(made / "posts.jsonl"), "--dataset_test_split", "train", "--num_prompts", "10",
            "--max_new_tokens", "8", "--max_prompt_length", "40"]  # fmt: skip
    judge_flags = ["--judge_model_name_or_path", str(made / "judge")] if judge else []
    return main([*argv, *judge_flags, *map(str, more)])


def read(folder, name="win_rate.json"):
    return json.loads((folder / name).read_text())


def rows(folder, name="pairs.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_two_models_are_generated_judged_in_both_orders_and_reported_and_a_second_run_gives_the_same(made, tmp_path):
    assert winrate(made, tmp_path / "one", "--temperature", "1") == 0
    summary = read(tmp_path / "one")
    assert (summary["pairs"], summary["invalid"]) == (10, 0)
    assert summary["win_rate"]["order_consistency"] == 1.0  # a reward model has no order
    assert summary["system_a"]["decoding"] == "temperature 1, seed 0, at most 8 tokens"
    assert summary["system_a"]["share_without_eos"] is not None
    names = {file.name for file in (tmp_path / "one").iterdir()}
    assert names == {
        "config.json", "completions_system_a.jsonl", "completions_system_b.jsonl", "win_rate.json", "pairs.jsonl",
        "report.md", "win_rate.png", "pairs.html",
    }  # fmt: skip
    before = (tmp_path / "one" / "completions_system_a.jsonl").stat().st_mtime_ns
    assert winrate(made, tmp_path / "one", "--temperature", "1") == 0  # the kept completions
    assert (tmp_path / "one" / "completions_system_a.jsonl").stat().st_mtime_ns == before
    assert winrate(made, tmp_path / "two", "--temperature", "1", "--batch_size", "64") == 0  # generated anew
    assert read(tmp_path / "one") == summary == read(tmp_path / "two")
    for name in ("pairs.jsonl", "completions_system_a.jsonl", "report.md"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert winrate(made, tmp_path / "three", "--temperature", "1", "--seed", "1") == 0
    assert rows(tmp_path / "three") != rows(tmp_path / "one")


def test_a_reward_model_with_another_tokenizer_judges_the_text(made, tmp_path):
    other = tiny_tokenizer(pad=True)
    assert other.get_vocab() != tiny_tokenizer().get_vocab()
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=len(other), n_positions=64, n_embd=16, n_layer=1, n_head=2, num_labels=1, initializer_range=0.2,
        pad_token_id=other.pad_token_id, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    GPT2ForSequenceClassification(config).save_pretrained(tmp_path / "other")
    other.save_pretrained(tmp_path / "other")
    flags = ["--judge_model_name_or_path", tmp_path / "other"]
    assert winrate(made, tmp_path / "out", *flags, b="references", judge=False) == 0
    scorer = RewardScorer.from_pretrained(str(tmp_path / "other"))
    for row in rows(tmp_path / "out"):
        a, b = scorer([row["prompt"] + row["a"], row["prompt"] + row["b"]]).tolist()
        assert row["score"] == (1.0 if a > b else 0.0 if b > a else 0.5)
        assert row["words_a_first"] == f"scores {a:.3f} and {b:.3f}"


def test_a_system_against_itself_is_one_half(made, tmp_path):
    assert winrate(made, tmp_path, a="rl", b="rl") == 0
    assert read(tmp_path)["win_rate"]["rate"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 10}


def test_a_judge_function_and_files_of_completions_in_another_order(made, tmp_path):
    prompts = [f"p {i}" for i in range(6)]
    short, long = tmp_path / "short.jsonl", tmp_path / "long.parquet"
    short.write_text("".join(json.dumps({"prompt": p, "completion": ""}) + "\n" for p in prompts))
    pd.DataFrame(
        {"prompt": prompts[::-1], "completion": ["long text"] * 6, "ended": [True] * 3 + [False] * 3}
    ).to_parquet(long)
    out = tmp_path / "out"
    function = f"{made / 'judge.py'}:judge"
    flags = ["winrate", "--system_a", str(short), "--system_b", str(long), "--name_b", "the long one"]
    assert main([*flags, "--judge_function", function, "--output_dir", str(out)]) == 0
    summary = read(out)
    assert summary["win_rate"]["rate"]["value"] == 1.0 and summary["pairs"] == 6
    assert (summary["system_a"]["name"], summary["system_a"]["empty"]) == ("short", 6)
    assert (summary["system_b"]["name"], summary["system_b"]["share_without_eos"]) == ("the long one", 0.5)
    # A model on the other side answers the prompts of the file.
    out = tmp_path / "model"
    flags = ["winrate", "--system_a", str(made / "sft"), "--system_b", str(short), "--max_new_tokens", "4"]
    assert main([*flags, "--judge_function", function, "--output_dir", str(out), "--num_prompts", "4"]) == 0
    assert [row["prompt"] for row in rows(out)] == prompts[:4]


def test_references_against_shuffled_references_measure_the_judge(made, tmp_path):
    """The judge knows which summary belongs to a post in all but two of ten pairs."""
    (tmp_path / "knows.py").write_text(
        "def knows(prompt, first, second):\n"
        "    post = set(prompt.removeprefix('POST: the ').removesuffix('\\n\\nTL;DR:').split())\n"
        "    right = 'first' if set(first.split()) == post else 'second'\n"
        "    wrong = {'first': 'second', 'second': 'first'}[right]\n"
        "    return wrong if 'year' in post else right\n"
    )
    out, spec = tmp_path / "out", f"{tmp_path / 'knows.py'}:knows"
    assert winrate(made, out, "--judge_function", spec, a="references", b="shuffled-references", judge=False) == 0
    rate = read(out)["win_rate"]["rate"]
    assert rate["value"] == 0.8 and rate["low"] < 0.8 < rate["high"]
    assert all(row["a"] != row["b"] for row in rows(out))
    assert sorted(row["a"] for row in rows(out)) == sorted(row["b"] for row in rows(out))


def test_shuffled_references_leave_no_prompt_its_own():
    texts = [f"s{i}" for i in range(7)]
    for seed in range(50):
        dealt = shuffle_references(texts, seed)
        assert sorted(dealt) == texts and all(own != other for own, other in zip(texts, dealt, strict=True))
    assert shuffle_references(texts, 1) == shuffle_references(texts, 1) != shuffle_references(texts, 2)
    with pytest.raises(ValueError, match="at least two prompts, got 1"):
        shuffle_references(["one"], 0)


def test_the_reference_of_a_cut_prompt_is_that_of_the_only_post_that_begins_so():
    references = {"POST: one two three\n\nTL;DR:": " a", "POST: one four\n\nTL;DR:": " b"}
    assert find_reference("POST: one two three\n\nTL;DR:", references) == " a"
    assert find_reference("POST: one two\n\nTL;DR:", references) == " a"
    assert find_reference("POST: one\n\nTL;DR:", references) is None  # both
    assert find_reference("POST: five\n\nTL;DR:", references) is None


def test_models_of_two_runs_are_called_after_their_runs():
    """Was: "model against model"."""
    assert distinct_names(["runs/ppo-1/model", "runs/sft/model"]) == ["ppo-1", "sft"]
    assert distinct_names(["model", "a.jsonl"]) == ["model", "a"]
    assert distinct_names(["x/sft", "y/sft"]) == ["x/sft (0)", "y/sft (1)"]


def test_posts_that_only_differ_behind_the_cut_are_one_prompt(made, tmp_path, capsys):
    """Was: an error, where the chain measures the same prompts without one."""
    tail = "good " * 60
    rows = [{"prompt": f"POST: the film\n{tail}{n}\n\nTL;DR:", "completion": f"s{n}"} for n in range(3)]
    rows += [{"prompt": f"POST: cast {word}\n\nTL;DR:", "completion": word} for word in WORDS]
    data = tmp_path / "posts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--dataset_name", data, "--num_prompts"]
    assert winrate(made, tmp_path / "out", *flags, "9", b="references") == 0
    pairs = {row["prompt"]: row["b"] for row in read_json_lines(tmp_path / "out" / "pairs.jsonl")}
    assert len(pairs) == 9 and pairs["POST: the film\n\nTL;DR:"].startswith(" s")
    assert winrate(made, tmp_path / "more", *flags, "10", b="references") == 2
    assert "has 9 prompts that differ once they are cut to 40 tokens, fewer than the 10" in capsys.readouterr().err


def test_completions_of_files_stand_one_space_behind_the_cue():
    assert space_completion("x\n\nTL;DR:", "text") == " text" == space_completion("x\n\nTL;DR:", " text")
    assert space_completion("x\n\nTL;DR:", "") == "" and space_completion("half a wo", "rd") == "rd"


class Server:
    """Answers every question after `delay` seconds, by the numbers of letters of both summaries; counts requests."""

    def __init__(self, delay=0.0, words=None):
        self.count, self.lock = 0, threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.count += 1
                time.sleep(delay)
                question = body["messages"][0]["content"]
                first, second = re.findall(r"### Summary [AB]\n(.*?)\n\n", question + "\n\n", re.DOTALL)
                said = words or f"Preferred: {'A' if len(first) < len(second) else 'B' if first != second else 'tie'}"
                data = json.dumps({"choices": [{"message": {"content": said}}]}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                with contextlib.suppress(BrokenPipeError):  # the judge was killed
                    self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.flags = ["--judge_base_url", f"http://127.0.0.1:{self.http.server_port}/v1", "--judge_model", "m"]
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(**settings):
        servers.append(Server(**settings))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def test_a_run_that_is_killed_while_it_judges_goes_on_and_gives_what_a_whole_run_gives(made, tmp_path, serve):
    server = serve(delay=0.15)
    files = ["--system_a", str(tmp_path / "a.jsonl"), "--system_b", str(tmp_path / "b.jsonl")]
    for name, lengths in (("a", (1, 4)), ("b", (2, 2))):
        texts = [{"prompt": f"p {i}", "completion": "w " * lengths[i % 2]} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))

    def flags(out):
        return ["winrate", *files, *server.flags, "--output_dir", str(tmp_path / out), "--judge_concurrency", "1"]

    code = f"from scope_rlhf.cli import main; main({flags('killed')!r})"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ, stdout=subprocess.DEVNULL)
    cache = tmp_path / "killed" / "verdicts.jsonl"
    deadline = time.monotonic() + 120
    while (not cache.exists() or cache.read_bytes().count(b"\n") < 6) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    answered = cache.read_bytes().count(b"\n")
    assert 6 <= answered < 24 and not (tmp_path / "killed" / "win_rate.json").exists()
    time.sleep(0.3)  # the request that was under way
    before = server.count
    assert main(flags("killed")) == 0
    assert server.count - before == 24 - answered  # only what was not answered
    assert main(flags("whole")) == 0
    left, right = read(tmp_path / "killed"), read(tmp_path / "whole")
    assert left.pop("requests")["requests"] >= right.pop("requests")["requests"] == 24
    assert left == right and rows(tmp_path / "killed") == rows(tmp_path / "whole")


def test_a_judge_that_answers_nonsense_is_counted_and_fails_the_run_with_everything_written(
    made, tmp_path, serve, capsys
):
    server = serve(words="I like both.")
    assert winrate(made, tmp_path / "out", *server.flags, a="rl", b="references", judge=False) == 2
    error = capsys.readouterr().err
    assert "10 of 10 pairs have an answer that names no verdict, more than the share of 0.1 that --max_invalid" in error
    assert "'I like both.'" in error.splitlines()[-1]
    summary = read(tmp_path / "out")
    assert summary["invalid_share"] == 1.0 and summary["win_rate"] is None and len(rows(tmp_path / "out")) == 10
    assert "I like both." in (tmp_path / "out" / "pairs.html").read_text()
    assert (tmp_path / "out" / "report.md").exists()
    # The stated share may change when the run goes on; nothing is asked again.
    asked = server.count
    assert (
        winrate(made, tmp_path / "out", *server.flags, "--max_invalid", "1", a="rl", b="references", judge=False) == 0
    )
    assert server.count == asked == 20


def test_a_local_pipeline_that_only_babbles_is_counted(made, tmp_path, capsys):
    """A random model names no verdict: every pair is invalid, none a loss."""
    wording = tmp_path / "w.txt"
    wording.write_text("{prompt} {first} {second} ?")
    flags = ["--judge_pipeline", made / "sft", "--judge_max_new_tokens", "4", "--judge_wording", wording]
    short = tmp_path / "short.jsonl"
    short.write_text("".join(json.dumps({"prompt": f"p {i}", "completion": f"c{i}"}) + "\n" for i in range(3)))
    assert winrate(made, tmp_path / "out", *flags, "--num_prompts", "3", a=str(short), b=str(short), judge=False) == 2
    assert "3 of 3 pairs have an answer that names no verdict" in capsys.readouterr().err
    assert read(tmp_path / "out")["invalid_answers"] == 6


def test_bad_systems_and_judges_are_one_paragraph_that_says_what_to_do(made, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    lacking = tmp_path / "lacking.jsonl"
    lacking.write_text('{"prompt": "p", "text": "x"}\n')
    other = tmp_path / "other.jsonl"
    other.write_text('{"prompt": "p", "completion": "x"}\n{"prompt": "q", "completion": "x"}\n')
    third = tmp_path / "third.jsonl"
    third.write_text('{"prompt": "p", "completion": "x"}\n{"prompt": "r", "completion": "x"}\n')
    one = ["--num_prompts", "0"]
    endpoint = ["--judge_base_url", "http://127.0.0.1:9/v1", "--judge_model", "m", "--judge_retries", "0"]
    cases = [
        (winrate, {"a": str(lacking)}, one, "--system_a=.* has no column completion; its columns: prompt, text"),
        (winrate, {"a": str(other), "b": str(third)}, one, "answer the same prompts: 1 of 2 are only in the first"),
        (winrate, {"a": str(other), "b": "references"}, one, "has no reference, or no single one, for 2 of 2 prompts"),
        (winrate, {"a": str(other)}, ["--num_prompts", "3"], "has 2 prompts, fewer than the 3 of --num_prompts"),
        (winrate, {"a": str(tmp_path / "nowhere")}, [], "--system_a='.*nowhere'"),
        (winrate, {"judge": False}, endpoint, "did not answer the first question .*Check --judge_base_url"),
        (winrate, {"judge": False}, ["--judge_base_url", "https://api.example.com/v1", "--judge_model", "m"],
         "needs a key: set the environment variable OPENAI_API_KEY"),
        (winrate, {"judge": False}, ["--judge_model_name_or_path", made / "sft"], "is no trained classifier"),
        (winrate, {"judge": False}, ["--judge_function", f"{made / 'judge.py'}:absent"], "has no function 'absent'"),
        (winrate, {"judge": False}, [], "give exactly one judge by .*; got none"),
        (winrate, {}, endpoint, "give exactly one judge by .*; got judge_model_name_or_path, judge_base_url"),
        (winrate, {"judge": False}, ["--judge_base_url", "http://x/v1"], "belong together"),
        (winrate, {}, ["--max_new_tokens", "60"], "more than the 64 positions .*max_prompt_length"),
        (winrate, {}, ["--max_prompt_length", "8"], "raise --max_prompt_length"),
    ]  # fmt: skip
    for number, (call, systems, flags, message) in enumerate(cases):
        assert call(made, tmp_path / f"out{number}", *flags, **systems) == 2, message
        error = capsys.readouterr().err.splitlines()[-1]
        assert re.search(message, error), (message, error)
        assert error.startswith("error: ")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--confidence", "1"], "confidence must lie strictly between 0 and 1"),
        (["--max_invalid", "2"], r"max_invalid must lie in \[0, 1\]"),
        (["--temperature", "-1"], "temperature must be at least 0"),
        (["--max_new_tokens", "0"], "max_new_tokens must be at least 1"),
        (["--tie_margin", "-1"], "tie_margin must be at least 0"),
        (["--judge_max_new_tokens", "0"], "judge_max_new_tokens must be at least 1"),
        (["--dtype", "int8"], "dtype must be one of float32"),
        (["--judge_wording", "nowhere.txt"], "--judge_wording='nowhere.txt' is not a file"),
        (["--max_invald", "0.2"], "what no setting takes: --max_invald 0.2, did you mean --max_invalid?"),
        (["--judge_mod", "x"], "what no setting takes: --judge_mod x, did you mean --judge_model?"),
        (["--seed", "many"], "argument --seed: invalid int value: 'many'; `--help` has the settings"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_anything_is_written(made, tmp_path, capsys, flags, message):
    assert winrate(made, tmp_path / "out", *flags) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_both_systems_are_asked_for(capsys):
    assert main(["winrate", "--system_a", "references"]) == 2
    assert "--system_b is missing" in capsys.readouterr().err


def test_a_folder_with_another_comparison_or_another_model_is_not_overwritten(made, tmp_path, capsys):
    policy = tmp_path / "policy"
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer, 2).save_pretrained(policy)
    tokenizer.save_pretrained(policy)
    out = tmp_path / "out"
    assert winrate(made, out, a=str(policy)) == 0
    before = read(out)
    assert winrate(made, out, "--seed", "1", a=str(policy)) == 2
    assert "holds results of another seed; give another --output_dir" in capsys.readouterr().err
    tiny_gpt2(tokenizer, 3).save_pretrained(policy)
    assert winrate(made, out, a=str(policy)) == 2
    assert "holds results of another content of system_a" in capsys.readouterr().err
    assert read(out) == before


def test_damaged_files_of_an_earlier_attempt_are_made_again_or_named(made, tmp_path, capsys):
    out = tmp_path / "out"
    assert winrate(made, out) == 0
    before, kept = read(out), out / "completions_system_a.jsonl"
    whole = kept.read_text()
    kept.write_text(whole[: len(whole) // 2])
    assert winrate(made, out) == 0
    assert read(out) == before and kept.read_text() == whole
    (out / "config.json").write_text("{")
    assert winrate(made, out) == 2
    assert "config.json is damaged" in capsys.readouterr().err


def test_a_single_pair_is_printed_without_an_interval(made, tmp_path, capsys):
    """Was: [-inf, inf]."""
    assert winrate(made, tmp_path / "out", "--num_prompts", "1") == 0
    shown = capsys.readouterr().out
    assert "(one pair has no interval)" in shown and "inf" not in shown


def test_the_completions_that_are_kept_can_be_read_as_a_system(made, tmp_path):
    assert winrate(made, tmp_path) == 0
    system = read_system(str(tmp_path / "completions_system_a.jsonl"), "--system_a")
    assert [row["a"] for row in rows(tmp_path)] == system.completions and system.ended is not None


def test_the_help_names_every_setting_and_no_other(capsys):
    assert main(["winrate", "--help"]) == 0
    assert capsys.readouterr().out == WINRATE_HELP
    from dataclasses import fields

    from scope_rlhf.experiments.win_rate import WinRateArguments

    named = set(re.findall(r"--([a-z_]+[a-z])\b", WINRATE_HELP)) - {"judge", "flag"}
    assert named == {field.name for field in fields(WinRateArguments)}
