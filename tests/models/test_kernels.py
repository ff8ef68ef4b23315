import pytest
import torch

from scope_rlhf.models.kernels import fuse_gelu
from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_gptj])
def test_one_kernel_gives_the_logits_and_gradients_of_the_many(make):
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(SENTENCES[:1], return_tensors="pt")["input_ids"]
    plain, fused = make(tokenizer).eval(), make(tokenizer).eval()
    names = list(fused.state_dict())
    assert fuse_gelu(fused) == 2 and fuse_gelu(fused) == 0
    assert list(fused.state_dict()) == names
    logits = [model(inputs).logits for model in (plain, fused)]
    torch.testing.assert_close(*logits, rtol=1e-5, atol=1e-5)
    for each in logits:
        each.pow(2).mean().backward()
    for one, two in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_other_activations_stay():
    model = torch.nn.Sequential(torch.nn.GELU(), torch.nn.ReLU())
    assert fuse_gelu(model) == 0 and isinstance(model[1], torch.nn.ReLU)
