"""Settings every test shares. Set before torch is imported, and without importing it: fast tests never load it."""

import json
import math
import os
import random
import sys
from pathlib import Path

import pytest

# Tiny models run 10 to 50 times faster on one thread. Subprocesses of tests inherit these.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["WANDB_MODE"] = "disabled"
os.environ["MPLBACKEND"] = "Agg"


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """torch was told by OMP_NUM_THREADS; a test that raised the count does not slow the next one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.get_num_threads() != 1:
        torch.set_num_threads(1)


@pytest.fixture
def serve():
    """serve(answer) starts a server on this machine (tests/servers.py) that is stopped after the test."""
    from tests.servers import Server

    servers = []

    def start(answer):
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def make_run(tmp_path):
    """make_run("name", ...) writes a run folder as a finished IMDB run leaves it, and returns its path."""

    def make(
        name: str = "imdb-scope",
        *,
        objective: dict | None = None,
        beta: float = 0.05,
        seed: int = 0,
        steps: int = 120,
        gain: float = 0.32,
        kl: float = 9.5,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        noise = random.Random(seed)
        objective = objective or {
            "name": "scope",
            "class": "scope_rlhf.objectives.scope.Scope",
            "parameters": {"clip_low": 0.2, "clip_high": 0.2, "policy_coef": 1.0, "alpha": 0.3, "detach_factor": False},
            "formula": "-min(r A, clip(r) A) + alpha p log p",
        }
        config = {
            "command": ["recipes/imdb_scope.py", "--beta", str(beta), "--seed", str(seed)],
            "arguments": {
                "model_name_or_path": "embedded/reviews-gpt2",
                "dataset_name": "movie-reviews",
                "reward_model_name_or_path": "embedded/sentiment-reward",
                "judge_model_name_or_path": "embedded/sentiment-judge",
                "beta": beta,
                "learning_rate": 0.001,
                "max_steps": steps,
                "num_generations": 8,
                "use_peft": True,
                "lora_target_modules": ["c_attn"],
                "seed": seed,
            },
            "objective": objective,
            "seed": seed,
            "source": {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": True},
            "versions": {"scope-rlhf": "0.1.0", "python": "3.11.7", "torch": "2.13.0", "trl": "1.16.0"},
            "platform": "Linux-x86_64",
            "cpu_count": 2,
            "device": "cpu",
            "processes": 1,
            "started": "2025-01-01T12:00:00+00:00",
        }
        (folder / "config.json").write_text(json.dumps(config))
        with (folder / "metrics.jsonl").open("w") as file:
            for step in range(1, steps + 1):
                done = 1 - math.exp(-3 * step / steps)
                jitter = noise.gauss
                row = {
                    "step": step,
                    "loss": jitter(0.01 * done, 0.01),
                    "grad_norm": abs(jitter(0.6 + 0.5 * done, 0.15)),
                    "learning_rate": 0.001,
                    "reward": 0.52 + (gain + 0.08) * done + jitter(0, 0.04),
                    "reward_std": 0.2,
                    "rewards/sentiment_reward/mean": 0.52 + (gain + 0.08) * done + jitter(0, 0.04),
                    "rewards/sentiment_judge/mean": 0.50 + gain * done + jitter(0, 0.05),
                    "entropy": 4.3 - 0.9 * done + jitter(0, 0.05),
                    "completions/mean_length": 46 + jitter(0, 0.8),
                    "clip_ratio/region_mean": abs(jitter(0.06 * done, 0.01)),
                    "step_time": 1.2,
                    "objective/approx_kl": abs(jitter(0.004 * done, 0.001)),
                    "objective/clip_fraction": abs(jitter(0.06 * done, 0.01)),
                    "objective/entropy": 4.3,
                    "objective/ratio": 1 + jitter(0, 0.004),
                    "objective/scope_magnitude": 0.031 + 0.012 * done + jitter(0, 0.001),
                    "objective/surrogate": jitter(0.01, 0.01),
                    "objective/constant": 1.0,
                }
                if beta:
                    row["kl"] = kl / 46 * done + jitter(0, 0.004)
                file.write(json.dumps(row) + "\n")

        def metric(label: str, before: float, after: float, half: float) -> dict:
            change = after - before
            return {
                "label": label,
                "before": before,
                "after": after,
                "difference": change,
                "low": change - half,
                "high": change + half,
            }

        evaluation = {
            "prompts": 256,
            "temperature": 1.0,
            "max_new_tokens": 48,
            "seed": 0,
            "seconds": 21.4,
            "metrics": {
                "reward": metric("training reward, P(positive)", 0.5213, 0.5213 + gain + 0.08, 0.031),
                "judge": metric("held-out judge, P(positive)", 0.5042, 0.5042 + gain, 0.034),
                "kl": metric("KL to the reference (nats per sequence)", 0.0, kl, 0.4),
                "perplexity": metric("perplexity under the reference", 44.31, 51.87, 3.2),
                "length": metric("length (tokens)", 46.2, 45.8, 0.9),
                "distinct_2": metric("distinct-2", 0.6812, 0.6409, 0.021),
                "eos_rate": metric("ended by itself", 0.08, 0.09, 0.03),
            },
        }
        (folder / "evaluation.json").write_text(json.dumps(evaluation))
        texts = [
            (
                "I watched this film | twice and",
                " it was *dull*.\n\nThe end <br /> drags on",
                " it was wonderful, a real gem",
            ),
            ("The plot of this movie", " makes no sense at all, `even` to me", " is clever and the cast is superb"),
            ("Having read the book, I", " expected more than this", " loved every minute of it"),
            ("My wife and I", " left after an hour", " were moved to tears, 10/10"),
            ("There are few actors who", " would have agreed to this", " bring so much warmth to a part"),
            ("Sixth prompt that", " is not shown", " is not shown either"),
        ]
        with (folder / "samples.jsonl").open("w") as file:
            for prompt, before, after in texts:
                scores = {"reward_before": 0.31, "reward_after": 0.97, "judge_before": 0.28, "judge_after": 0.934}
                file.write(json.dumps({"prompt": prompt, "before": before, "after": after, **scores}) + "\n")
        return folder

    return make
