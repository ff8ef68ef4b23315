from peft import LoraConfig, get_peft_model

from scope_rlhf.models.adapters import base_of
from tests.tiny import tiny_gpt2, tiny_tokenizer


def test_the_base_is_the_model_itself_with_and_without_adapters():
    model = tiny_gpt2(tiny_tokenizer())
    assert base_of(model) is model
    assert base_of(get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))) is model
