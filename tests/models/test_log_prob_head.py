"""The log-prob head that the trainers run: float32 log-softmax under bfloat16, and equality with dense logits."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trl.kernels.chunked_logprob
import trl.trainer.utils
from peft import LoraConfig, get_peft_model
from torch import nn

from scope_rlhf.models import fused_head, log_prob_head
from scope_rlhf.models.log_prob_head import add_log_prob_head, check_head, read_transform
from scope_rlhf.models.positions import derive_positions
from scope_rlhf.models.value_head import add_value_head
from scope_rlhf.objectives import make_critic_loss
from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
UNIT = 2.0**-8  # rounding a number to bfloat16 (8 significant bits) moves it by at most this share of itself
models = pytest.mark.parametrize("make", [tiny_gpt2, tiny_gptj])
impls = pytest.mark.parametrize("impl", ["auto", "jacobian", "recompute", "trl", "dense"])


def batch():
    """Left-padded rows of unequal length, the third of which counts nowhere."""
    given = TOKENIZER(SENTENCES, return_tensors="pt", padding=True)
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels[:, :4] = -100
    labels[2] = -100
    return {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"], "labels": labels}


def fused_model(make, temperature=1.0, dtype=torch.float32, critic=False, impl="trl"):
    model = make(TOKENIZER).eval().to(dtype)
    derive_positions(model)
    if impl == "jacobian":
        model.get_output_embeddings().requires_grad_(False)
    add_log_prob_head(model, temperature, impl)
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
@impls
@pytest.mark.parametrize("autocast", [False, True])
def test_log_probs_and_entropy_are_float32_under_bfloat16_within_the_error_of_rounding_the_logits(make, autocast, impl):
    """Against float64 from the same hidden states and the same bfloat16 head.

    The product of the head is rounded to bfloat16, and the sum with a bias again: a logit errs by at most
    UNIT (|product| + |logit|), without a bias UNIT |product|. log p = logit - logsumexp(logits) errs by at most twice
    the largest of these, and float32 log-softmax adds less than 1e-5. Log-softmax in bfloat16 would add UNIT |log p|.
    """
    model = fused_model(make, dtype=torch.float32 if autocast else torch.bfloat16, impl=impl)
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

    # The logits as the head has them: ours add a bias in float32.
    rounded = (hidden.flatten(0, 1) @ weight.T).view(exact.shape)
    if head.bias is not None and impl in ("trl", "dense"):
        whole = torch.nn.functional.linear(hidden.flatten(0, 1), weight, bias).view(exact.shape)
        rounded = whole if impl == "dense" else rounded + bias
    elif head.bias is not None:
        rounded = rounded.float() + (head.bias.detach() if autocast else bias)
    same_logits, same_entropy = score(rounded.double().log_softmax(-1), inputs)
    assert (output.log_probs - same_logits)[counted].abs().max() < 1e-5
    assert (output.entropy - same_entropy)[counted].abs().max() < 1e-5
    in_half, _ = score(rounded.bfloat16().log_softmax(-1), inputs)
    assert (in_half - same_logits)[counted].abs().max() > 1e-3


@models
@impls
@pytest.mark.parametrize("critic", [False, True])
@pytest.mark.parametrize(("vocabulary_chunk", "token_chunk"), [(32768, 4096), (7, 4096), (64, 5), (299, 4)])
def test_the_fused_head_equals_dense_logits_in_value_and_gradient(
    monkeypatch, make, critic, vocabulary_chunk, token_chunk, impl
):
    """For chunks of the vocabulary and of the tokens that divide neither, GPT-J's bias included."""
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", vocabulary_chunk)
    monkeypatch.setattr(trl.kernels.chunked_logprob, "TOKEN_CHUNK_SIZE", token_chunk)
    monkeypatch.setitem(fused_head.CHUNK_LOGITS, "cpu", token_chunk * len(TOKENIZER))
    fused, dense = fused_model(make, 0.7, critic=critic, impl=impl), fused_model(make, 0.7, impl=impl)
    inputs = batch()
    tokens = inputs["labels"][:, 1:].numel()
    assert len(TOKENIZER) % vocabulary_chunk and tokens % token_chunk
    output = fused(**inputs, fused_lm_head=True, head_entropy="gradient")
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
        if "value_head" not in name and weight.requires_grad:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-3, atol=1e-5, msg=name)
    assert make is tiny_gpt2 or impl == "jacobian" or gradients["lm_head.bias"].abs().max() > 0.1


@models
@impls
def test_rows_that_count_nowhere_have_value_zero_and_no_gradient(make, impl):
    model = fused_model(make, impl=impl)
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
        gradients.append([w.grad.clone() for w in model.parameters() if w.requires_grad])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


@models
@impls
def test_a_batch_that_counts_nowhere_gives_zero_with_a_graph_and_gradient_zero(make, impl):
    model = fused_model(make, impl=impl)
    inputs = batch()
    inputs["labels"][:] = -100
    output = model(**inputs, fused_lm_head=True)
    total = output.log_probs.sum() + output.entropy.sum()
    assert total.item() == 0
    total.backward()
    assert all(w.grad is None or (w.grad == 0).all() for w in model.parameters())


@models
@impls
def test_only_rows_under_the_mask_are_projected(monkeypatch, make, impl):
    """TRL's on a CPU projects all; ours and dense see what counts."""
    seen = []
    linear, original = nn.Linear.forward, fused_head._Logits.__call__
    monkeypatch.setattr(fused_head._Logits, "__call__", lambda s, rows: seen.append(len(rows)) or original(s, rows))
    model = fused_model(make, impl=impl)
    head = model.get_output_embeddings()

    def counting(self, rows):
        if self is head:
            seen.append(len(rows))
        return linear(self, rows)

    monkeypatch.setattr(nn.Linear, "forward", counting)
    inputs = batch()
    with torch.no_grad():
        model(**inputs, fused_lm_head=True)
    counted = int((inputs["labels"][:, 1:] != -100).sum())
    assert sum(seen) == (0 if impl == "trl" else counted) and counted < inputs["labels"].numel()


@models
@impls
def test_the_entropy_has_a_gradient_only_where_it_is_asked_for(make, impl):
    model = fused_model(make, impl=impl)
    inputs = batch()
    if impl != "trl":  # whose entropy always has one
        assert model(**inputs, fused_lm_head=True, head_entropy="none").entropy is None
        assert not model(**inputs, fused_lm_head=True, head_entropy="metric").entropy.requires_grad
    assert model(**inputs, fused_lm_head=True, head_entropy="gradient").entropy.requires_grad


@impls
def test_generate_and_other_calls_are_as_without_the_head(impl):
    plain, model = tiny_gpt2(TOKENIZER).eval(), fused_model(tiny_gpt2, impl=impl)
    inputs = batch()
    first, second = (
        m.generate(inputs["input_ids"][:1, -3:], max_new_tokens=5, do_sample=False) for m in (plain, model)
    )
    assert torch.equal(first, second)
    labels = {"input_ids": inputs["input_ids"], "labels": inputs["labels"]}
    torch.testing.assert_close(model(**labels).loss, plain(**labels).loss)


@models
@pytest.mark.parametrize("impl", ["auto", "jacobian"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(make, impl, reentrant):
    gradients = []
    for checkpointing in (False, True):
        lora = LoraConfig(target_modules=["c_attn" if make is tiny_gpt2 else "q_proj"], r=4, init_lora_weights=False)
        torch.manual_seed(0)
        model = get_peft_model(make(TOKENIZER).eval(), lora)
        base = model.get_base_model()
        derive_positions(model)
        add_log_prob_head(base, 0.9, impl)
        if checkpointing:
            base.gradient_checkpointing_enable({"use_reentrant": reentrant})
            base.enable_input_require_grads()
            model.train()  # checkpointing works in training mode only
            for module in model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        model(**batch(), fused_lm_head=True).log_probs.sum().backward()
        gradients.append([w.grad for w in model.parameters() if w.requires_grad])
    assert any(g.abs().max() > 0 for g in gradients[0])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("impl", ["jacobian", "recompute", "dense"])
def test_cast_lm_head_to_fp32_takes_the_head_out_of_autocast(impl):
    """Against float64 of the same hidden states: bfloat16 products would err by 1e-2."""
    model = tiny_gptj(TOKENIZER).eval().bfloat16()
    model.lm_head.float()
    if impl == "jacobian":
        model.lm_head.requires_grad_(False)
    add_log_prob_head(model, 1.0, impl, cast_lm_head_to_fp32=True)
    inputs, states = batch(), []
    model.base_model.register_forward_hook(lambda module, given, out: states.append(out.last_hidden_state))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(**inputs, fused_lm_head=True).log_probs
    logits = states[0][:, :-1].double() @ model.lm_head.weight.double().T + model.lm_head.bias.double()
    expected, _ = score(logits.log_softmax(-1), inputs)
    assert (found - expected).abs().max() < 1e-5


def test_softcap_and_scale_are_read_where_the_models_of_transformers_have_them():
    def config(**settings):
        return SimpleNamespace(get_text_config=lambda: SimpleNamespace(**settings))

    assert read_transform(config(), 0.5) == (0.5, None, 1.0)
    assert read_transform(config(final_logit_softcapping=30.0), 1.0) == (1.0, 30.0, 1.0)
    assert read_transform(config(logit_scale=0.25), 1.0) == (1.0, None, 0.25)
    assert read_transform(config(logit_scale=None, lm_head_multiplier=3.0), 1.0) == (1.0, None, 3.0)
    assert read_transform(config(logits_scaling=4.0, model_type="granite"), 1.0) == (1.0, None, 0.25)
    assert read_transform(config(logits_scaling=4.0, model_type="hyperclovax"), 1.0) == (1.0, None, 4.0)


@pytest.mark.parametrize("impl", ["jacobian", "recompute", "dense", "trl"])
def test_a_model_with_a_softcap_gives_the_log_probs_of_its_own_logits(impl):
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=1.5, initializer_range=0.5,
        attn_implementation="eager",
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    inputs = batch()
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = score((model(**given).logits[:, :-1] / 0.8).log_softmax(-1), inputs)
        model.requires_grad_(impl != "jacobian")
        add_log_prob_head(model, 0.8, impl)
        output = model(**inputs, fused_lm_head=True)
    torch.testing.assert_close(output.log_probs, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(output.entropy, expected[1], rtol=1e-4, atol=1e-5)


def test_a_head_among_modules_to_save_is_trained_and_its_own_copy_is_read():
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"], r=4)
    model = get_peft_model(tiny_gptj(TOKENIZER).eval(), lora)
    base: Any = model.get_base_model()
    with pytest.raises(ValueError, match="this one is trained.*--head_impl recompute or auto"):
        add_log_prob_head(base, 1.0, "jacobian")
    add_log_prob_head(base, 1.0, "auto")
    head = base.lm_head.modules_to_save["default"]
    head.weight.data.mul_(2)
    inputs = batch()
    output = model(**inputs, fused_lm_head=True)
    output.log_probs.sum().backward()
    assert head.weight.grad.abs().max() > 0
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected, _ = score(model(**given).logits[:, :-1].log_softmax(-1), inputs)
    torch.testing.assert_close(output.log_probs, expected, rtol=1e-4, atol=1e-4)
    with model.disable_adapter():
        assert not torch.allclose(model(**inputs, fused_lm_head=True).log_probs, expected)


def lora_head():
    return get_peft_model(tiny_gptj(TOKENIZER), LoraConfig(target_modules=["lm_head"], r=2)).get_base_model().lm_head


def own_forward():
    head = nn.Linear(4, 8)
    head.forward = lambda x: x
    return head


class Doubling(nn.Linear):
    def forward(self, rows):
        return 2 * super().forward(rows)


def hooked(kind):
    head = nn.Linear(4, 8)
    getattr(head, f"register_forward_{kind}")(lambda module, given, *output: output[0] * 2 if output else given)
    return head


def quantised():
    head = nn.Linear(4, 8)
    head.weight = nn.Parameter(torch.zeros(8, 4, dtype=torch.int8), requires_grad=False)
    return head


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 8)), "is Sequential"),
        (lora_head, "carries an adapter"),
        (own_forward, "has a forward of its own"),
        (lambda: Doubling(4, 8), "is Doubling"),
        (lambda: hooked("hook"), "has forward hooks"),
        (lambda: hooked("pre_hook"), "has forward hooks"),
        (quantised, "has weights of torch.int8"),
        (lambda: None, "is NoneType"),
    ],
)
def test_a_head_that_is_not_a_plain_linear_layer_is_refused_and_told_what_to_set(make, words):
    head = make()
    for impl in ("auto", "jacobian", "recompute", "trl"):
        with pytest.raises(ValueError, match=f"{words}.*--head_impl dense"):
            check_head(head, impl)
    if head is not None:
        check_head(head, "dense")


def test_dense_scores_a_head_under_an_adapter_as_the_model_itself_does():
    """What reads the head's weight alone would leave the adapter out."""
    torch.manual_seed(0)
    lora = LoraConfig(target_modules=["lm_head", "q_proj"], r=2, init_lora_weights=False)
    model = get_peft_model(tiny_gptj(TOKENIZER).eval(), lora)
    add_log_prob_head(model.get_base_model(), 1.0, "dense")
    inputs = batch()
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    expected, _ = score(model(**given).logits[:, :-1].log_softmax(-1), inputs)
    torch.testing.assert_close(model(**inputs, fused_lm_head=True).log_probs, expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_head_impl_is_refused_with_the_names():
    with pytest.raises(ValueError, match="head_impl must be one of auto, jacobian, recompute, trl, dense, got 'fast'"):
        add_log_prob_head(tiny_gpt2(TOKENIZER), 1.0, "fast")


@pytest.mark.parametrize(("trained", "faster", "expected"), [
    (False, "jacobian", "jacobian"), (False, "trl", "trl"), (True, "recompute", "recompute"), (True, "trl", "trl"),
])  # fmt: skip
def test_on_a_gpu_auto_is_what_one_measurement_of_each_head_finds_faster(monkeypatch, trained, faster, expected):
    """The clock is replaced: the choice is made here without a GPU. Ours is jacobian where the head is frozen."""
    timed = []

    def time(name, *rest):
        timed.append(name)
        return 1.0 if name == faster else 2.0

    monkeypatch.setattr(log_prob_head, "_choices", {})
    monkeypatch.setattr(
        log_prob_head, "_time", lambda name, *rest: timed.append(name) or (1.0 if name == faster else 2.0)
    )
    rows, weight = torch.randn(3, 4), torch.randn(8, 4, requires_grad=trained)
    for _ in range(2):
        assert log_prob_head._fastest(rows, weight, None, fused_head.Transform()) == expected
    assert timed == ["recompute" if trained else "jacobian", "trl"]


@pytest.mark.parametrize("entropy", ["none", "metric", "gradient"])
def test_trls_head_that_auto_may_take_on_a_gpu_gives_the_same(entropy):
    """Its Triton kernels need a GPU; here it runs by torch."""
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(6, 8, requires_grad=True), torch.randn(20, 8), torch.randn(20)
    targets, transform = torch.arange(6), fused_head.Transform(0.7, 3.0, 1.2)
    ours = fused_head.head_log_probs(
        hidden, weight, bias, targets, temperature=0.7, softcap=3.0, logit_scale=1.2, entropy=entropy
    )
    trls = log_prob_head._trl_log_probs(hidden, weight, bias, targets, transform, entropy)
    torch.testing.assert_close(ours[0], trls[0])
    assert (trls[1] is None) == (entropy == "none")
    if trls[1] is not None:
        torch.testing.assert_close(ours[1], trls[1])
        assert trls[1].requires_grad == (entropy == "gradient")
