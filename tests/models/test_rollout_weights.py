"""Generation on merged and cast weights: the same policy inside the context, bitwise the same model after it."""

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer, dora
from torch import nn
from trl.trainer.utils import add_fused_lm_head

from scope_rlhf.models.critic_backbones import make_value_head
from scope_rlhf.models.positions import derive_positions
from scope_rlhf.models.rollout_weights import find_rollout_dtype, rollout_weights
from scope_rlhf.models.sampling import softmax_sampling
from scope_rlhf.objectives import make_critic_loss
from tests.tiny import SENTENCES, tiny_gpt2, tiny_gptj, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
INPUTS = dict(TOKENIZER(SENTENCES, return_tensors="pt", padding=True))
TARGETS = {tiny_gpt2: ["c_attn", "c_proj"], tiny_gptj: ["q_proj", "v_proj", "fc_in"]}
makers = pytest.mark.parametrize("make", [tiny_gpt2, tiny_gptj])


def policy(make=tiny_gpt2, adapters=("default",), **options):
    """The model in eval mode under LoRA adapters that are not zero, of which the first is active."""
    options = {"target_modules": TARGETS[make], "fan_in_fan_out": make is tiny_gpt2, "r": 4, **options}
    model = get_peft_model(make(TOKENIZER), LoraConfig(**options), adapters[0])
    for name in adapters[1:]:
        model.add_adapter(name, LoraConfig(**options))
    model.set_adapter(adapters[0])
    fill(model)
    return model.eval()


def fill(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name and "magnitude" not in name:
                weight.copy_(0.2 * torch.randn(weight.shape, generator=generator))


def layers_of(model):
    return [m for m in model.modules() if isinstance(m, LoraLayer)]


@torch.no_grad()
def logits_of(model):
    return model(**INPUTS).logits[INPUTS["attention_mask"].bool()]


def train_step(model):
    """A loss, backpropagated into `.grad`, which then holds what was there plus this gradient."""
    model(**INPUTS, labels=INPUTS["input_ids"]).loss.backward()


def picture(model):
    """Everything that must be as before: each tensor itself, its address, its bits; PEFT's notes."""
    tensors = {}
    for name, tensor in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        bits = tensor.detach().clone()
        grad = (id(tensor.grad), tensor.grad.clone()) if tensor.grad is not None else (None, None)
        tensors[name] = (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad, bits, *grad)
    notes = [
        (layer.active_adapter, layer.disable_adapters, list(layer.merged_adapters), sorted(layer._caches))
        for layer in layers_of(model)
    ]
    return tensors, notes


def assert_same(before, after):
    (tensors, notes), (now, notes_now) = before, after
    assert notes == notes_now and list(tensors) == list(now)
    for name, (*facts, bits, grad_id, grad) in tensors.items():
        *facts_now, bits_now, grad_id_now, grad_now = now[name]
        assert facts == facts_now and grad_id == grad_id_now, name
        assert torch.equal(bits, bits_now) and (grad is None or torch.equal(grad, grad_now)), name


@makers
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}, {"fan_in_fan_out": None}],
    ids=["plain", "rslora", "dora", "lora_bias", "whole"],
)
def test_the_merged_model_gives_the_logits_of_the_unmerged_one(make, options):
    if "fan_in_fan_out" in options:  # also the token embeddings, which GPT-2 shares with its head
        options = {"target_modules": [*TARGETS[make], "wte"]}
    elif "lora_bias" in options and make is tiny_gptj:
        options = {"lora_bias": True, "target_modules": ["fc_in"]}  # q_proj has no bias to merge into
    model = policy(make, **options)
    expected = logits_of(model)
    with model.disable_adapter():
        assert (logits_of(model) - expected).abs().max() > 1.0
    with rollout_weights(model):
        assert all(layer.merged for layer in layers_of(model))
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits_of(model), expected)


@makers
def test_of_several_adapters_exactly_the_active_ones_are_merged(make):
    model = policy(make, ("first", "second", "third"))
    for active in (["second"], ["first", "third"]):
        model.base_model.set_adapter(active)
        expected = logits_of(model)
        with rollout_weights(model):
            assert all(layer.merged_adapters == active for layer in layers_of(model))
            torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("backbone", ["shared", "adapter"])
def test_the_critic_stays_out_of_it(backbone):
    """Its adapter, which is not active, is not merged; its head keeps float32."""
    base = tiny_gpt2(TOKENIZER).eval()
    add_fused_lm_head(base, outputs=("log_probs",))
    model = get_peft_model(base, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, r=4)).eval()
    head = make_value_head(model, make_critic_loss("mse"), backbone)
    fill(model)
    expected = logits_of(model)
    with rollout_weights(model):
        assert all(layer.merged_adapters == ["default"] for layer in layers_of(model))
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)
    with rollout_weights(model, torch.bfloat16):
        assert head.weight.dtype == head.bias.dtype == torch.float32
        assert model.lm_head.weight.dtype == torch.bfloat16


@makers
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
def test_everything_is_bitwise_as_before_and_the_next_training_step_too(make, dtype, dora):
    """Also .grad of a step before, and a hook on the gradient accumulator, which is how DDP hears of a gradient."""
    model = policy(make, use_dora=dora)
    plain = copy.deepcopy(model)
    for each in (model, plain):
        train_step(each)
    heard = []
    trained = [w for w in model.parameters() if w.requires_grad]
    accumulators = [w.expand_as(w).grad_fn.next_functions[0][0] for w in trained]
    for accumulator in accumulators:
        accumulator.register_hook(lambda *_: heard.append(1))
    before, logits = picture(model), logits_of(model)
    with rollout_weights(model, dtype):
        model.generate(**INPUTS, max_new_tokens=3, do_sample=False)
    assert_same(before, picture(model))
    assert torch.equal(logits_of(model), logits)
    for each in (model, plain):
        train_step(each)
    gradients = [{n: w.grad for n, w in each.named_parameters() if w.grad is not None} for each in (model, plain)]
    assert list(gradients[0]) == list(gradients[1]) and len(heard) == len(gradients[0]) > 0
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]), name


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_everything_is_as_before_after_an_exception_inside(dtype):
    model = policy(use_dora=True)
    train_step(model)
    before = picture(model)

    def generate():
        with rollout_weights(model, dtype):
            assert model.transformer.h[0].attn.c_attn.merged
            raise KeyError

    with pytest.raises(KeyError):
        generate()
    assert_same(before, picture(model))


def refuse(monkeypatch, layer, error):
    """Let `layer` fail to merge after its weight has changed."""
    merge = type(layer).merge

    def failing(*args, **kwargs):
        merge(layer, *args, **kwargs)
        raise error

    monkeypatch.setattr(layer, "merge", failing)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_everything_is_as_before_when_merging_fails_half_way(monkeypatch, error):
    model = policy(use_dora=True)
    refuse(monkeypatch, layers_of(model)[2], error())
    before = picture(model)
    with pytest.raises(error), rollout_weights(model, torch.bfloat16):
        raise AssertionError("the context began")
    assert_same(before, picture(model))


def test_a_layer_that_peft_refuses_to_merge_generates_as_it_is_with_a_warning(monkeypatch):
    model = policy()
    expected, before = logits_of(model), picture(model)
    refuse(monkeypatch, layers_of(model)[1], NotImplementedError("no such merge"))
    with warnings.catch_warnings(record=True) as caught, rollout_weights(model):
        assert [layer.merged for layer in layers_of(model)].count(False) == 1
        torch.testing.assert_close(logits_of(model), expected, rtol=1e-5, atol=1e-5)
    said = [str(w.message) for w in caught if "PEFT cannot merge the adapters of 1 layers" in str(w.message)]
    assert len(said) == 1 and "--merge_for_rollout" in said[0] and "no such merge" in said[0]
    assert caught[0].filename == __file__
    assert_same(before, picture(model))


@pytest.mark.parametrize("make", [tiny_gpt2, lambda tokenizer: policy()], ids=["whole", "lora"])
def test_the_head_reads_contiguous_states_inside_and_loses_the_hook_after(make):
    model = make(TOKENIZER).eval()
    head = model.get_output_embeddings()
    forward, strides = head.forward, []
    head.forward = lambda states: (strides.append(states.is_contiguous()), forward(states))[1]
    model.generate(**INPUTS, max_new_tokens=1)
    with rollout_weights(model):
        model.generate(**INPUTS, max_new_tokens=1)
    assert strides == [False, True] and not head._forward_pre_hooks


def test_tied_weights_stay_tied():
    model = policy()
    base = model.get_base_model()
    for dtype in (None, torch.bfloat16):
        with rollout_weights(model, dtype):
            assert base.lm_head.weight is base.transformer.wte.weight
            assert base.lm_head.weight.dtype == (dtype or torch.float32)
    assert base.lm_head.weight is base.transformer.wte.weight


def test_an_adapter_of_the_embeddings_does_not_reach_the_head_that_shares_them():
    model = policy(target_modules=["wte"])
    base = model.get_base_model()
    head = base.lm_head.weight.clone()
    with rollout_weights(model):
        assert torch.equal(base.lm_head.weight, head)
        assert not torch.equal(base.transformer.wte.weight, head)


@makers
def test_generation_in_bfloat16_samples_from_nearly_the_float32_policy(make):
    """The sampler's own log-probs against those of the unmerged float32 model; without its adapters it is far away."""
    model = policy(make)
    derive_positions(model)
    base = model.get_base_model()
    torch.manual_seed(0)
    with rollout_weights(model, torch.bfloat16), softmax_sampling(base, 1.0) as recorder:
        assert {w.dtype for n, w in model.named_parameters()} == {torch.bfloat16}
        # As from_pretrained has it: the table of rotary positions is float32.
        assert all(b.dtype == torch.float32 for b in model.buffers())
        ids = base.generate(**INPUTS, max_new_tokens=12, min_new_tokens=12, do_sample=True, top_k=0)
    mask = torch.cat([INPUTS["attention_mask"], torch.ones(len(ids), 12, dtype=torch.long)], dim=1)

    @torch.no_grad()
    def gap():
        log_probs = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)[:, -13:-1]
        return (log_probs.gather(-1, ids[:, -12:, None]).squeeze(-1) - recorder.log_probs)[:, 1:].abs().mean()

    assert 0 < gap() < 0.05
    with model.disable_adapter():
        assert gap() > 0.5


def test_a_merge_is_rounded_once_whatever_the_dtype_of_the_weights():
    """float32 weights merged for bfloat16, and bfloat16 weights merged in float32, are W + B A of full precision."""
    for own, other in ((torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)):
        model = policy(tiny_gptj)
        layer = model.transformer.h[0].attn.q_proj
        layer.base_layer.weight.data = layer.base_layer.weight.data.to(own)
        exact = layer.base_layer.weight.float() + layer.get_delta_weight("default")
        with rollout_weights(model, other):
            assert torch.equal(layer.base_layer.weight, exact.to(other))


@pytest.mark.parametrize("merge", [True, False])
def test_without_an_adapter_to_merge_the_weights_are_the_models_own(merge):
    model = policy() if not merge else tiny_gpt2(TOKENIZER).eval()
    before = picture(model)
    with rollout_weights(model, merge=merge):
        assert_same(before, picture(model))
    model = policy()
    with model.disable_adapter():
        before = picture(model)
        with rollout_weights(model):
            assert_same(before, picture(model))


def test_an_adapter_that_is_merged_already_is_not_merged_twice():
    model = policy()
    with rollout_weights(model, torch.bfloat16):
        before = picture(model)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # PEFT's for a second merge
            with rollout_weights(model, torch.bfloat16):
                assert_same(before, picture(model))
        assert_same(before, picture(model))


def test_buffers_of_a_checkpoint_are_cast_and_computed_or_whole_numbered_ones_are_not():
    model = policy()
    norm = model.transformer.ln_f
    norm.register_buffer("loaded", torch.ones(2))
    norm.register_buffer("computed", torch.ones(2), persistent=False)
    norm.register_buffer("count", torch.ones(2, dtype=torch.long))
    before = picture(model)
    with rollout_weights(model, torch.bfloat16):
        found = {name.rpartition(".")[2]: buffer.dtype for name, buffer in norm.named_buffers()}
        assert found == {"loaded": torch.bfloat16, "computed": torch.float32, "count": torch.long}
    assert_same(before, picture(model))


@pytest.mark.parametrize("kind", ["ds_id", "_fsdp_flattened", "subclass", "float8", "meta"])
def test_quantised_sharded_and_offloaded_weights_are_left_alone(kind):
    model = policy()
    layer = model.transformer.h[0].attn.c_attn
    base = layer.base_layer
    if kind == "subclass":  # as those of bitsandbytes, and DTensor
        base.weight = type("Packed", (nn.Parameter,), {})(base.weight.data)
    elif kind == "float8":
        base.weight = nn.Parameter(base.weight.data.to(torch.float8_e4m3fn), requires_grad=False)
    elif kind == "meta":
        base.weight = nn.Parameter(base.weight.data.to("meta"), requires_grad=False)
    else:
        setattr(base.weight, kind, 1)
    own = base.weight
    with rollout_weights(model, torch.bfloat16):
        assert base.weight is own and not layer.merged
        assert model.transformer.h[1].attn.c_attn.merged


def test_attention_of_torch_is_left_alone_because_merging_it_loses_its_parameters():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2)

        def forward(self, x):
            return self.attention(x, x, x)[0]

    torch.manual_seed(0)
    model = get_peft_model(Model(), LoraConfig(target_modules=["attention"], init_lora_weights=False)).eval()
    x = torch.randn(3, 1, 8)
    expected, names = model(x), [n for n, _ in model.named_parameters()]
    with rollout_weights(model):
        torch.testing.assert_close(model(x), expected)
    torch.testing.assert_close(model(x), expected)
    assert {n for n, _ in model.named_parameters()} == set(names)


def test_modules_that_transformers_keeps_in_float32_keep_it():
    model = policy()
    model.get_base_model()._keep_in_fp32_modules_strict = {"ln_f"}
    with rollout_weights(model, torch.bfloat16):
        assert model.transformer.ln_f.weight.dtype == torch.float32
        assert model.transformer.h[0].ln_1.weight.dtype == torch.bfloat16


def test_weight_norms_that_dora_caches_inside_are_gone_after(monkeypatch):
    monkeypatch.setattr(dora, "ENABLE_DORA_CACHING", True)
    model = policy(use_dora=True)
    caches = [m for m in model.modules() if isinstance(m, dora.DoraLinearLayer)]
    with rollout_weights(model, torch.bfloat16, merge=False):
        logits_of(model)
        assert all(m._dora_cache for m in caches)
    assert not any(m._dora_cache for m in caches)


@pytest.mark.parametrize(("name", "dtype"), [(None, None), ("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_the_names_of_dtypes(name, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert find_rollout_dtype(name, torch.device("cpu"), has_bf16=lambda: True) == dtype


def test_another_name_is_refused_with_the_setting_and_the_valid_ones():
    with pytest.raises(ValueError, match="float32, bfloat16, got 'float16'; set --rollout_dtype"):
        find_rollout_dtype("float16", torch.device("cpu"))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bfloat16_that_would_be_emulated_is_left_out_with_a_warning(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    message = "--rollout_dtype bfloat16: this .PU has no bfloat16 instructions.*the weights' own dtype"
    with pytest.warns(UserWarning, match=message):
        assert find_rollout_dtype("bfloat16", torch.device(device), has_bf16=lambda: False) is None
    assert find_rollout_dtype("float32", torch.device(device), has_bf16=lambda: False) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert find_rollout_dtype("bfloat16", torch.device("cuda")) == torch.bfloat16
