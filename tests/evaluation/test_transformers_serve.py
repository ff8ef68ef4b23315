"""The endpoint judge against a real server: `transformers serve` with a tiny random model, over /v1/completions."""

import json
import os
import socket
import subprocess
import sys
import time

import pytest
import requests

from scope_rlhf.evaluation.completions import System
from scope_rlhf.evaluation.endpoint import EndpointConfig, EndpointJudge
from scope_rlhf.evaluation.win_rate import compare
from scope_rlhf.trainers.remote_teacher import RemoteTeacher, TeacherEndpoint
from tests.tiny import tiny_gpt2, tiny_tokenizer

for module in ("fastapi", "uvicorn", "openai"):
    pytest.importorskip(module, reason="transformers serve needs it")

# Short, since the model has 64 positions.
WORDING = "{prompt} A {first} B {second}?"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(base URL, name of the model) of a running server."""
    folder = tmp_path_factory.mktemp("serve")
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve",
               str(folder / "tiny"), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    try:
        deadline = time.monotonic() + 150
        while True:
            assert process.poll() is None and time.monotonic() < deadline, (folder / "log.txt").read_text()[-2000:]
            try:
                if requests.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except requests.ConnectionError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder / "tiny")
    finally:
        process.terminate()
        process.wait(timeout=30)
        log.close()


def test_a_real_server_answers_and_the_answers_of_a_random_model_are_kept_and_counted_as_invalid(server, tmp_path):
    url, model = server
    config = EndpointConfig(
        url, model, api="completions", wording=WORDING, max_new_tokens=6, retries=1, concurrency=2, timeout=60
    )
    prompts = [f"film {i}" for i in range(3)]
    a, b = System("a", prompts, ["one", "two", "six"]), System("b", prompts, ["good", "bad", "great"])
    judge = EndpointJudge(config, tmp_path / "cache.jsonl")
    result = compare(a, b, judge, resamples=100)
    # A random model names no verdict.
    assert result.summary["invalid"] == 3 and result.summary["invalid_answers"] == 6
    words = [pair[f"words_{order}"] for pair in result.pairs for order in ("a_first", "b_first")]
    assert any(words) and not any(said.startswith("no answer") for said in words)
    cost = judge.cost()
    assert cost["requests"] == 6 and cost["failed"] == 0 and 6 <= cost["completion_tokens"] <= 36
    assert cost["prompt_tokens"] > 6 * 5
    rows = [json.loads(line) for line in (tmp_path / "cache.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    # Greedy answers of a server that has nothing cached are the same; this judge asks nothing.
    again = EndpointJudge(config, tmp_path / "cache.jsonl")
    assert compare(a, b, again, resamples=100).pairs == result.pairs
    assert again.cost()["requests"] == 6
    anew = EndpointJudge(config, tmp_path / "other.jsonl")
    assert compare(a, b, anew, resamples=100).pairs == result.pairs
    assert anew.cost()["requests"] == 6


def test_a_model_that_the_server_refuses_is_one_error(server, tmp_path):
    url, _ = server
    config = EndpointConfig(url, "no/such-model", api="completions", wording=WORDING, retries=0, timeout=60)
    a, b = System("a", ["p"], ["x"]), System("b", ["p"], ["y"])
    with pytest.raises((ValueError, ConnectionError), match=r"refused the request|did not answer the first question"):
        compare(a, b, EndpointJudge(config, tmp_path / "cache.jsonl"))


@pytest.mark.parametrize("api", ["prompt_logprobs", "echo"])
def test_a_teacher_needs_a_server_with_prompt_log_probs_which_this_one_is_not(server, api):
    url, model = server
    teacher = RemoteTeacher(TeacherEndpoint(url, model, api, teacher_retries=0), tiny_tokenizer())
    with pytest.raises(ValueError, match=f"gives no prompt log-probs, start one that does .`vllm serve {model}"):
        teacher.probe()
