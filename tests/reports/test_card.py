import ast
import re
from typing import Any

import pytest
from huggingface_hub import ModelCard

from scope_rlhf.reports import write_model_card
from scope_rlhf.reports.card import is_hub_name, load_snippet

pytestmark = pytest.mark.usefixtures("known_defaults")


def hub_data(card: str) -> Any:
    """The header as the Hub's own library reads it."""
    return ModelCard(card).data


@pytest.fixture
def model(make_run):
    folder = make_run() / "model"
    folder.mkdir()
    return folder


def test_the_hub_reads_the_numbers_of_the_run_from_the_card(model):
    data = hub_data(write_model_card(model.parent, model, license="mit").read_text())
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.license == "mit"
    assert {"rlhf", "grpo", "scope"} <= set(data.tags or [])
    results = {(r.metric_type, r.metric_name.rsplit("(", 1)[1]): r.metric_value for r in data.eval_results or []}
    assert results["judge", "before training)"] == 0.5042
    assert results["judge", "after training)"] == 0.8242
    assert results["kl", "after training)"] == 9.5


def test_names_that_are_not_on_the_hub_stay_out_of_the_header(model, edit):
    header = hub_data(write_model_card(model.parent, model).read_text()).to_dict()
    assert "base_model" not in header
    assert "datasets" not in header
    assert header["license"] == "other"
    edit(
        model.parent / "config.json",
        lambda config: config["arguments"].update(model_name_or_path="gpt2", dataset_name="stanfordnlp/imdb"),
    )
    header = hub_data(write_model_card(model.parent, model).read_text()).to_dict()
    assert (header["base_model"], header["base_model_relation"]) == ("gpt2", "finetune")
    assert header["datasets"] == ["stanfordnlp/imdb"]


def test_an_adapter_is_described_and_loaded_as_one(model):
    (model / "adapter_config.json").write_text("{}")
    text = write_model_card(model.parent, model, load_path="me/mine").read_text()
    assert hub_data(text).library_name == "peft"
    # The fixture's base is the embedded model, which PEFT would look for on the Hub.
    assert 'load_policy(PolicyConfig(model_name_or_path="me/mine"))' in text
    assert "A LoRA adapter for" in text


def test_the_card_holds_what_a_rerun_needs(model, markdown_tables):
    text = write_model_card(model.parent, model).read_text()
    tables = markdown_tables(text.split("---", 2)[2])
    assert ["learning_rate", "0.001"] in tables[2]
    assert ["lora_target_modules", "c_attn"] in tables[2]
    assert ["held-out judge, P(positive)", "0.504", "0.824", "+0.320", "[+0.286, +0.354]"] in tables[0]
    for part in (
        "--beta 0.05",
        "0123456789abcdef",
        "torch 2.13.0",
        "seed",
        "licence of the base model",
        "not selected",
    ):
        assert part in text


def test_a_users_own_objective_is_named_with_its_hash_and_gives_no_tag(model, edit):
    own = {"name": "mine.py:Mine", "class": "Mine", "parameters": {}, "file": "mine.py", "sha256": "cd" * 32}
    edit(model.parent / "config.json", lambda config: config.update(objective=own))
    text = write_model_card(model.parent, model).read_text()
    assert "cd" * 32 in text
    assert "mine.py:Mine" not in (hub_data(text).tags or [])


def test_a_run_without_evaluation_has_a_card_without_results(model):
    (model.parent / "evaluation.json").unlink()
    assert "model-index" not in write_model_card(model.parent, model).read_text()


@pytest.mark.parametrize("adapter", [True, False])
def test_the_snippet_is_python_that_names_real_classes(adapter):
    snippet = load_snippet("me/mine", adapter)
    names = {
        alias.name for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert set(re.findall(r"Auto\w+", snippet)) == names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", True),
        ("lvwerra/gpt2-imdb", True),
        ("embedded/reviews-gpt2", False),
        ("movie-reviews", False),
        ("runs/imdb/model", False),
        ("/tmp", False),
        ("", False),
        (None, False),
    ],
)
def test_hub_names_are_told_from_paths(name, expected):
    assert is_hub_name(name) is expected


def test_an_adapter_of_an_embedded_model_loads_by_this_package_because_peft_would_ask_the_hub():
    snippet = load_snippet("runs/x/model", True, "embedded/reviews-gpt2")
    assert 'load_policy(PolicyConfig(model_name_or_path="runs/x/model"))' in snippet
    compile(snippet, "snippet", "exec")
