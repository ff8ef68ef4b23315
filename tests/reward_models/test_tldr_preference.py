"""Reward model and judge on synthetic pairs of two real packages, as the script trains them."""

import importlib.util
import json
from pathlib import Path

import pytest

from scope_rlhf.data import documentation
from scope_rlhf.models.reward import RewardScorer
from tests.tiny import tiny_gpt2, tiny_tokenizer

SCRIPT = Path(__file__).parents[2] / "reward_models" / "tldr_preference.py"


@pytest.fixture
def small_documentation(tmp_path, monkeypatch):
    monkeypatch.setattr(documentation, "DOCUMENTATION_PACKAGES", ("accelerate", "peft"))
    monkeypatch.setattr(documentation.constants, "HF_HOME", str(tmp_path / "cache"))
    documentation.all_documentation.cache_clear()
    yield
    documentation.all_documentation.cache_clear()


def train(*words: str) -> None:
    spec = importlib.util.spec_from_file_location("tldr_preference", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(list(words)) == 0


def test_both_roles_train_on_parts_that_share_no_page_and_say_that_pairs_are_synthetic(
    small_documentation, tmp_path, capsys, recwarn
):
    model, tokenizer = tmp_path / "model", tiny_tokenizer(pad=True)
    tokenizer.model_max_length = 256
    for part in (tokenizer, tiny_gpt2(tokenizer, positions=256)):
        part.save_pretrained(model)
    words = [
        "--model_name_or_path", str(model), "--sampled_from", str(model), "--dataset_name", "documentation",
        "--max_prompt_length", "200", "--max_new_tokens", "12", "--num_train_entries", "24", "--num_eval_entries", "12",
        "--max_steps", "2", "--per_device_train_batch_size", "4", "--gradient_accumulation_steps", "1",
        "--output_dir", str(tmp_path / "out"), "--disable_tqdm", "true", "--logging_steps", "1",
    ]  # fmt: skip
    folders, prompts = {}, {}
    for role in ("reward", "judge"):
        train(*words, "--role", role)
        (folders[role],) = (tmp_path / "out").glob(f"{role}-*")
        part = {"reward": "policy", "judge": "judge"}[role]
        lines = (folders[role] / f"samples-{part}.jsonl").read_text().splitlines()
        prompts[role] = {json.loads(line)["prompt"] for line in lines}
    assert prompts["reward"] and prompts["judge"] and not prompts["reward"] & prompts["judge"]
    held_out = [(folder / "samples-held_out.jsonl").read_text() for folder in folders.values()]
    assert held_out[0] == held_out[1]  # measured on the same pairs
    for folder in folders.values():
        results = json.loads((folder / "stage.json").read_text())["results"]
        assert results["synthetic"] and set(results["accuracy_by_kind"]) <= {"another", "shuffled", "sampled"}
        card = (folder / "model" / "README.md").read_text()
        assert "**The pairs are synthetic**" in card and "No person has compared them" in card
        scorer = RewardScorer.from_pretrained(str(folder / "model"))
        assert scorer.end_token and scorer.offset == pytest.approx(results["offset"])
        assert scorer.describe("judge") == "judge (trained on synthetic pairs)"  # what every result calls it
    shown = capsys.readouterr().out
    assert "(synthetic pairs)" in shown and "longer ones left out" in shown
    assert not [w for w in recwarn if "pairs are longer than" in str(w.message)]  # the table says it instead
