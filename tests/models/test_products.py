import copy
import pickle

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from scope_rlhf.models import products
from scope_rlhf.models.kernels import use_fast_kernels
from scope_rlhf.models.log_prob_head import check_head
from scope_rlhf.models.products import OneDNNConv1D, OneDNNLinear, onednn_is_faster, use_fast_products
from scope_rlhf.models.rollout_weights import rollout_weights
from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer

pytestmark = pytest.mark.skipif(
    not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this torch has no oneDNN op for linear layers"
)


@pytest.fixture
def taken(monkeypatch):
    """oneDNN takes products of every size here; the shapes of those that it made."""
    shapes, original = [], products.multiply
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "LEAST_WORK", 0)
    monkeypatch.setattr(products, "LEAST_ROWS", 0)
    monkeypatch.setattr(products, "multiply", lambda *given: shapes.append(given[0].shape) or original(*given))
    return shapes


def views(name):
    """A tensor [..., 48] of 3 x 10 rows or fewer, made from one [3, 10, 48] that has a gradient."""
    return {
        "whole": lambda x: x,
        "rows": lambda x: x.flatten(0, 1),
        "last": lambda x: x[:, -1:],
        "strided": lambda x: x[:, ::2],
        "transposed": lambda x: x.transpose(0, 1),
    }[name]


@pytest.mark.parametrize("view", ["whole", "rows", "last", "strided", "transposed"])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("kind", ["linear", "no bias", "conv1d"])
def test_values_and_gradients_are_those_of_torchs_layers(taken, kind, trained, view):
    torch.manual_seed(0)
    plain = Conv1D(96, 48) if kind == "conv1d" else nn.Linear(48, 96, bias=kind == "linear")
    plain.requires_grad_(trained)
    fast = copy.deepcopy(plain)
    assert use_fast_products(fast) == 1
    plain = plain.double()
    x = torch.randn(3, 10, 48)
    found = []
    for layer in (fast, plain):
        inputs = x.clone().to(layer.weight.dtype).requires_grad_()
        viewed = views(view)(inputs)
        output = layer(viewed if layer is fast else viewed.contiguous())
        (output.square().sum() + output.sum()).backward()
        grads = [inputs.grad, *(weight.grad for weight in layer.parameters())]
        found.append([output.detach(), *(grad for grad in grads if grad is not None)])
    assert len(found[0]) == len(found[1]) == (2 + len(list(plain.parameters())) if trained else 2)
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), two, rtol=1e-5, atol=1e-4)
    assert len(taken) == (3 if trained else 2)
    if trained:
        assert fast.weight.grad.stride() == fast.weight.stride()


def test_a_gradient_that_is_one_number_for_all_is_multiplied_right(taken):
    layer = OneDNNLinear(48, 96)
    x = torch.randn(5, 48, requires_grad=True)
    layer(x).sum().backward()  # an expanded gradient, of stride 0
    torch.testing.assert_close(x.grad, layer.weight.detach().sum(0).expand(5, 48))
    torch.testing.assert_close(layer.weight.grad, x.detach().sum(0).expand(96, 48))
    assert len(taken) == 3


def test_a_frozen_layer_keeps_no_input(taken):
    layer, kept = OneDNNLinear(48, 96).requires_grad_(False), []
    x = torch.randn(5, 48, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        layer(x)
    assert kept == [(96, 48)] and taken


@pytest.mark.parametrize("kind", [OneDNNLinear, OneDNNConv1D])
def test_a_trained_bias_of_a_frozen_weight_keeps_its_gradient(taken, kind):
    """LoRA with bias="lora_only", in a first layer whose input has no gradient."""
    layer = kind(48, 48).requires_grad_(False)
    layer.bias.requires_grad_(True)
    layer(torch.randn(5, 48)).sum().backward()
    assert taken and torch.equal(layer.bias.grad, torch.full((48,), 5.0))
    assert layer.weight.grad is None


def test_what_traces_or_transforms_a_call_goes_the_way_of_torch(taken):
    """torch.compile and torch.jit.trace do not know oneDNN's op in this form, nor torch.func its backward."""
    torch.manual_seed(0)
    layer, x = OneDNNLinear(48, 96), torch.randn(5, 48)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    compiled = torch.compile(layer, backend="aot_eager")(x)
    traced = torch.jit.trace(layer, (x,), check_trace=False)(x)
    mapped = torch.func.vmap(layer)(x.expand(2, 5, 48))
    for found in (compiled, traced, mapped[1]):
        torch.testing.assert_close(found, expected)
    weights = dict(layer.named_parameters())
    grads = torch.func.grad(lambda w: torch.func.functional_call(layer, w, (x,)).sum())(weights)
    torch.testing.assert_close(grads["bias"], torch.full((96,), 5.0))
    assert not taken


def test_a_second_derivative_is_refused_not_wrong(taken):
    x = torch.randn(5, 48, requires_grad=True)
    (grad,) = torch.autograd.grad(OneDNNLinear(48, 96)(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_gptj])
def test_a_model_and_its_adapter_have_the_logits_and_gradients_of_before(taken, make):
    tokenizer = tiny_tokenizer()
    inputs = tokenizer(SENTENCES[:1], return_tensors="pt")["input_ids"]
    found = []
    for fast in (False, True):
        torch.manual_seed(0)
        target = "c_attn" if make is tiny_gpt2 else "q_proj"
        lora = LoraConfig(r=4, target_modules=[target], init_lora_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(make(tokenizer), lora).eval()
        names = list(model.state_dict())
        if fast:
            use_fast_kernels(model)
            assert list(model.state_dict()) == names and use_fast_products(model) == 0
        logits = model(inputs).logits
        logits.square().mean().backward()
        with torch.no_grad(), rollout_weights(model):
            merged = model(inputs).logits
        found.append([logits.detach(), merged, *(w.grad for w in model.parameters() if w.requires_grad)])
        assert bool(taken) == fast
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_an_adapter_can_be_added_to_fast_layers(taken):
    model = tiny_gpt2(tiny_tokenizer())
    use_fast_kernels(model)
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True))
    assert sum("lora_A" in name for name in adapted.state_dict()) == 6
    assert sum(isinstance(module, OneDNNConv1D) for module in adapted.modules()) == 8


def test_a_fast_head_is_a_plain_linear_layer_to_the_log_prob_head():
    check_head(OneDNNLinear(4, 8), "auto")
    with pytest.raises(ValueError, match="is _Own"):
        check_head(_Own(4, 8), "auto")


def test_copies_and_pickles_are_fast_layers_with_the_same_weights(taken):
    model = nn.Sequential(nn.Linear(48, 96), Conv1D(8, 96))
    use_fast_products(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert [type(layer) for layer in twin] == [OneDNNLinear, OneDNNConv1D]
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
        assert isinstance(twin[0], nn.Linear) and isinstance(twin[1], Conv1D)


class _Own(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


def test_subclasses_and_layers_with_a_forward_of_their_own_stay(taken):
    offloaded = nn.Linear(4, 4)
    offloaded.forward = lambda x: x
    model = nn.Sequential(_Own(4, 4), offloaded)
    assert use_fast_products(model) == 0
    assert [type(layer) for layer in model] == [_Own, nn.Linear]


def test_other_dtypes_autocast_gathered_weights_and_all_with_mkldnn_off_go_the_way_of_torch(taken):
    layer = OneDNNLinear(48, 96)
    x = torch.randn(5, 48)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    for dtype in (torch.float64, torch.bfloat16):
        assert copy.deepcopy(layer).to(dtype)(x.to(dtype)).dtype == dtype
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x.double())
    layer.weight.ds_id = 0  # DeepSpeed's mark of ZeRO-3
    layer(x)
    assert not taken
    del layer.weight.ds_id
    torch.backends.mkldnn.enabled = False
    try:
        layer(x)
    finally:
        torch.backends.mkldnn.enabled = True
    assert not taken
    layer(x)
    assert taken == [(5, 48)]


def test_small_products_and_no_rows_go_the_way_of_torch(monkeypatch, taken):
    monkeypatch.setattr(products, "LEAST_WORK", 5 * 48 * 96)
    layer = OneDNNLinear(48, 96)
    assert layer(torch.randn(4, 48)).shape == (4, 96) and layer(torch.randn(0, 48)).shape == (0, 96)
    assert not taken
    layer(torch.randn(5, 48))
    assert taken == [(5, 48)]
    monkeypatch.setattr(products, "LEAST_ROWS", 6)
    layer(torch.randn(5, 48))
    assert taken == [(5, 48)]
    layer(torch.randn(2, 3, 48))
    assert taken == [(5, 48), (2, 3, 48)]


@pytest.mark.parametrize(
    ("maker", "capability", "faster"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("AuthenticAMD", "AVX512_VNNI", True),
        ("AuthenticAMD", "AVX2", False),
        ("GenuineIntel", "AVX512", False),
        ("", "AVX512", False),  # nobody knows
        ("", "DEFAULT", False),
    ],
)
def test_onednn_is_for_avx512_of_others_than_intel(monkeypatch, maker, capability, faster):
    monkeypatch.setattr(products, "_maker", lambda: maker)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    onednn_is_faster.cache_clear()
    try:
        assert onednn_is_faster() is faster
    finally:
        onednn_is_faster.cache_clear()


def test_nothing_changes_where_torchs_own_products_are_as_fast(monkeypatch):
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    model = nn.Sequential(nn.Linear(48, 96))
    assert use_fast_products(model) == 0 and type(model[0]) is nn.Linear
