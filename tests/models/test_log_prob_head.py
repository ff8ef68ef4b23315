"""The fused log-prob head that the trainers run: float32 log-softmax under bfloat16, and equality with dense logits."""

import pytest
import torch
import trl.kernels.chunked_logprob
import trl.trainer.utils
from trl.trainer.utils import add_fused_lm_head

from scope_rlhf.models.positions import derive_positions
from scope_rlhf.models.value_head import add_value_head
from scope_rlhf.objectives import make_critic_loss
from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
UNIT = 2.0**-8  # rounding a number to bfloat16 (8 significant bits) moves it by at most this share of itself
models = pytest.mark.parametrize("make", [tiny_gpt2, tiny_gptj])


def batch():
    """Left-padded rows of unequal length, the third of which counts nowhere."""
    given = TOKENIZER(SENTENCES, return_tensors="pt", padding=True)
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels[:, :4] = -100
    labels[2] = -100
    return {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"], "labels": labels}


def fused_model(make, temperature=1.0, dtype=torch.float32, critic=False):
    model = make(TOKENIZER).eval().to(dtype)
    derive_positions(model)
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy"))
    if critic:
        add_value_head(model, make_critic_loss("mse"))
    return model


def score(log_softmax, inputs):
    """(log-probs of the labels, entropies), [B, S - 1], zeros where the label is -100."""
    labels = inputs["labels"][:, 1:]
    log_probs = log_softmax.gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    return tuple(x.masked_fill(labels == -100, 0.0) for x in (log_probs, entropy))


@models
@pytest.mark.parametrize("autocast", [False, True])
def test_log_probs_and_entropy_are_float32_under_bfloat16_within_the_error_of_rounding_the_logits(make, autocast):
    """Against float64 from the same hidden states and the same bfloat16 head.

    The product of the head is rounded to bfloat16, and the sum with a bias again: a logit errs by at most
    UNIT (|product| + |logit|), without a bias UNIT |product|. log p = logit - logsumexp(logits) errs by at most twice
    the largest of these, and float32 log-softmax adds less than 1e-5. Log-softmax in bfloat16 would add UNIT |log p|.
    """
    model = fused_model(make, dtype=torch.float32 if autocast else torch.bfloat16)
    inputs = batch()
    states = []
    handle = model.base_model.register_forward_hook(lambda module, given, out: states.append(out.last_hidden_state))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = model(**inputs, fused_lm_head=True)
    handle.remove()
    assert output.log_probs.dtype == output.entropy.dtype == torch.float32

    head = model.get_output_embeddings()
    hidden, weight = (x.detach().bfloat16() for x in (states[0][:, :-1], head.weight))
    bias = torch.zeros(len(weight)) if head.bias is None else head.bias.detach().bfloat16()
    product = hidden.double() @ weight.double().T
    exact = product + bias.double()
    log_probs, _ = score(exact.log_softmax(-1), inputs)
    counted = inputs["labels"][:, 1:] != -100
    size = product.abs() if head.bias is None else product.abs() + exact.abs()
    bound = 2 * UNIT * size.amax(-1) + 1e-5
    assert ((output.log_probs - log_probs).abs() <= bound)[counted].all()
    assert bound[counted].max() < 0.2

    rounded = (hidden.flatten(0, 1) @ weight.T).view(exact.shape)  # the logits as the head has them
    rounded = rounded if head.bias is None else rounded + bias
    same_logits, same_entropy = score(rounded.double().log_softmax(-1), inputs)
    assert (output.log_probs - same_logits)[counted].abs().max() < 1e-5
    assert (output.entropy - same_entropy)[counted].abs().max() < 1e-5
    in_half, _ = score(rounded.log_softmax(-1), inputs)
    assert (in_half - same_logits)[counted].abs().max() > 1e-3


@models
@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize(("vocabulary_chunk", "token_chunk"), [(32768, 4096), (7, 4096), (64, 5), (299, 4)])
def test_the_fused_head_equals_dense_logits_in_value_and_gradient(
    monkeypatch, make, critic, vocabulary_chunk, token_chunk
):
    """For chunks of the vocabulary and of the tokens that divide neither, GPT-J's bias included."""
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", vocabulary_chunk)
    monkeypatch.setattr(trl.kernels.chunked_logprob, "TOKEN_CHUNK_SIZE", token_chunk)
    fused, dense = fused_model(make, 0.7, critic=critic), fused_model(make, 0.7)
    inputs = batch()
    tokens = inputs["labels"][:, 1:].numel()
    assert len(TOKENIZER) % vocabulary_chunk and tokens % token_chunk
    output = fused(**inputs, fused_lm_head=True)
    logits = dense(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    log_probs, entropy = score((logits / 0.7).log_softmax(-1), inputs)
    torch.testing.assert_close(output.log_probs, log_probs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.entropy, entropy, rtol=1e-4, atol=1e-5)
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(log_probs.shape, generator=generator) for _ in range(2))
    (output.log_probs * first + output.entropy * second).sum().backward()
    (log_probs * first + entropy * second).sum().backward()
    gradients = {n: w.grad for n, w in dense.named_parameters()}
    for name, weight in fused.named_parameters():
        if "value_head" not in name:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)
    assert make is tiny_gpt2 or gradients["lm_head.bias"].abs().max() > 0.1


@models
def test_rows_that_count_nowhere_have_value_zero_and_no_gradient(make):
    model = fused_model(make)
    inputs = batch()
    output = model(**inputs, fused_lm_head=True)
    assert (output.log_probs[2] == 0).all() and (output.entropy[2] == 0).all()
    assert (output.log_probs[1].abs() > 0).any()
    others = {name: tensor[[0, 1, 3, 4, 5]] for name, tensor in inputs.items()}
    gradients = []
    for given in (inputs, others):
        model.zero_grad()
        result = model(**given, fused_lm_head=True)
        (result.log_probs.sum() + result.entropy.sum()).backward()
        gradients.append([w.grad.clone() for w in model.parameters()])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@models
def test_a_batch_that_counts_nowhere_gives_zero_with_a_graph_and_gradient_zero(make):
    model = fused_model(make)
    inputs = batch()
    inputs["labels"][:] = -100
    output = model(**inputs, fused_lm_head=True)
    total = output.log_probs.sum() + output.entropy.sum()
    assert total.item() == 0
    total.backward()
    assert all(w.grad is None or (w.grad == 0).all() for w in model.parameters())
