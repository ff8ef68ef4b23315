"""Loading a policy: LoRA targets per architecture, quantisation, adapters, and folders that are no models."""

import json

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from scope_rlhf.models.loading import PolicyConfig, load_policy
from tests.tiny import tiny_gpt2, tiny_gptj, tiny_tokenizer


@pytest.fixture
def folder(tmp_path):
    tokenizer = tiny_tokenizer()
    tiny_gpt2(tokenizer).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_lora_target_modules_stays_a_list_of_one(folder):
    config = PolicyConfig(model_name_or_path=str(folder), use_peft=True, lora_target_modules=["c_attn"])
    assert config.lora_target_modules == ["c_attn"]
    model, _, peft_config = load_policy(config)
    assert peft_config is not None and set(peft_config.target_modules) == {"c_attn"}
    assert any("c_attn.lora_A" in name for name, _ in get_peft_model(model, peft_config).named_parameters())


def test_gpt2_and_gptj_have_targets_of_their_own_and_lora_has_no_dropout(folder, tmp_path):
    _, _, peft_config = load_policy(PolicyConfig(model_name_or_path=str(folder), use_peft=True))
    assert peft_config.target_modules == ["c_attn"] and peft_config.fan_in_fan_out and peft_config.lora_dropout == 0
    tokenizer = tiny_tokenizer()
    tiny_gptj(tokenizer).save_pretrained(tmp_path / "gptj")
    tokenizer.save_pretrained(tmp_path / "gptj")
    _, _, peft_config = load_policy(PolicyConfig(model_name_or_path=str(tmp_path / "gptj"), use_peft=True))
    assert peft_config.target_modules == ["q_proj", "v_proj"] and not peft_config.fan_in_fan_out


def test_a_target_that_the_model_does_not_have_lists_those_it_has(folder):
    with pytest.raises(ValueError, match=r"q_proj.*c_attn.*--lora_target_modules"):
        load_policy(PolicyConfig(model_name_or_path=str(folder), use_peft=True, lora_target_modules=["q_proj"]))


def test_without_peft_there_is_no_lora(folder):
    assert load_policy(PolicyConfig(model_name_or_path=str(folder)))[2] is None


def test_positions_follow_the_mask_of_a_loaded_model(folder):
    model, tokenizer, _ = load_policy(PolicyConfig(model_name_or_path=str(folder)))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id and tokenizer.padding_side == "left"
    model.eval()
    ids = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[0, 0, 5, 6, 7]])
    with torch.no_grad():
        plain = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        shifted = model(input_ids=padded, attention_mask=torch.tensor([[0, 0, 1, 1, 1]])).logits[:, 2:]
    assert (plain - shifted).abs().max() < 1e-5


def test_an_adapter_folder_is_trained_further_on_its_base(folder, tmp_path):
    base = type(tiny_gpt2(tiny_tokenizer())).from_pretrained(folder)
    adapter = get_peft_model(base, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=2))
    for name, weight in adapter.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    adapter.save_pretrained(tmp_path / "adapter")
    model, _, peft_config = load_policy(PolicyConfig(model_name_or_path=str(tmp_path / "adapter")))
    assert isinstance(model, PeftModel) and peft_config is None
    assert any(w.requires_grad for w in model.parameters())
    ids = torch.tensor([[5, 6, 7]])
    adapter.eval()
    model.eval()
    assert torch.allclose(model(input_ids=ids).logits, adapter(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"load_in_4bit": True}, "load_in_4bit.*--use_peft"),
        ({"use_peft": True, "lora_r": 0}, "lora_r.*0"),
        ({"use_peft": True, "load_in_4bit": True, "load_in_8bit": True}, "4 bit"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        PolicyConfig(model_name_or_path="x", **settings)


def test_a_folder_that_is_no_model_is_refused_naming_the_setting(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"model_name_or_path.*not a model folder"):
        load_policy(PolicyConfig(model_name_or_path=str(tmp_path / "empty")))


def test_a_hub_name_without_a_network_is_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(ValueError, match=r"--model_name_or_path='nobody-at-all/no-such-model'.*embedded"):
        load_policy(PolicyConfig(model_name_or_path="nobody-at-all/no-such-model"))


def test_a_tokenizer_larger_than_the_model_is_refused(folder):
    config = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = config["model"]["vocab"]
    for i in range(40):
        vocabulary[f"extra{i}"] = len(vocabulary)
    (folder / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="do not belong together"):
        load_policy(PolicyConfig(model_name_or_path=str(folder)))


def test_weights_that_were_cut_off_are_named_and_no_traceback_of_a_library(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"--model_name_or_path=.*no sound model folder: SafetensorError"):
        load_policy(PolicyConfig(model_name_or_path=str(folder)))


def test_a_config_that_is_no_json_is_named(folder):
    (folder / "config.json").write_text("{broken")
    with pytest.raises(ValueError, match=r"--model_name_or_path=.*config.json"):
        load_policy(PolicyConfig(model_name_or_path=str(folder)))


def test_a_model_without_a_tokenizer_is_refused_instead_of_an_empty_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer files"):
        load_policy(PolicyConfig(model_name_or_path=str(folder)))
