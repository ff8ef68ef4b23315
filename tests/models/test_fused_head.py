"""The log-prob head as mathematics: every implementation against float64 logits, gradcheck, and what it must not do."""

from typing import Any

import pytest
import torch

from scope_rlhf.models import fused_head
from scope_rlhf.models.fused_head import ENTROPIES

IMPLS = ["jacobian", "recompute"]
head_log_probs: Any = fused_head.head_log_probs
ROWS, WIDTH, VOCABULARY = 7, 5, 11


def inputs(bias: bool = True, dtype=torch.float64, rows=ROWS, width=WIDTH, vocabulary=VOCABULARY, seed=0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, width, generator=generator, dtype=torch.float64)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64)
    offset = torch.randn(vocabulary, generator=generator, dtype=torch.float64) if bias else None
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    return hidden.to(dtype), weight.to(dtype), None if offset is None else offset.to(dtype), targets


def plain(hidden, weight, bias, targets, temperature=1.0, softcap=None, logit_scale=1.0):
    """The formula, from whole logits."""
    logits = hidden @ weight.T if bias is None else hidden @ weight.T + bias
    logits = logits * logit_scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    log_p = (logits / temperature).log_softmax(-1)
    return log_p[torch.arange(len(targets)), targets], -(log_p.exp() * log_p).sum(-1)


transforms = pytest.mark.parametrize(
    "transform", [{}, {"temperature": 0.7}, {"temperature": 1.3, "softcap": 2.0, "logit_scale": 0.6}]
)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("entropy", ["none", "gradient"])
@transforms
def test_gradcheck_passes_in_float64(impl, bias, entropy, transform):
    hidden, weight, offset, targets = inputs(bias)
    hidden.requires_grad_()
    if impl == "recompute":
        weight.requires_grad_()
        offset = None if offset is None else offset.requires_grad_()

    def outputs(hidden, weight, offset):
        found = head_log_probs(hidden, weight, offset, targets, head_impl=impl, entropy=entropy, **transform)
        return found if entropy == "gradient" else found[0]

    assert torch.autograd.gradcheck(outputs, (hidden, weight, offset))


@pytest.mark.parametrize("impl", [*IMPLS, "dense"])
@pytest.mark.parametrize("entropy", ENTROPIES)
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("chunk", [1, 3 * VOCABULARY, 10**6])
@transforms
def test_values_and_gradient_equal_the_formula_for_every_chunk(monkeypatch, impl, entropy, graph, chunk, transform):
    monkeypatch.setitem(fused_head.CHUNK_LOGITS, "cpu", chunk)
    hidden, weight, bias, targets = inputs(rows=40)
    hidden.requires_grad_()
    expected = plain(hidden, weight, bias, targets, **transform)
    with torch.set_grad_enabled(graph):
        found = head_log_probs(hidden, weight, bias, targets, head_impl=impl, entropy=entropy, **transform)
    assert (found[1] is None) == (entropy == "none")
    torch.testing.assert_close(found[0], expected[0], rtol=1e-10, atol=1e-12)
    if found[1] is not None:
        torch.testing.assert_close(found[1], expected[1], rtol=1e-10, atol=1e-12)
        assert found[1].requires_grad == (graph and entropy == "gradient")
    assert found[0].requires_grad == graph
    if graph:
        scales = torch.linspace(-1, 2, 40, dtype=torch.float64)
        total, other = (scales * found[0]).sum(), (scales * expected[0]).sum()
        if entropy == "gradient":
            total, other = total + (scales.flip(0) * found[1]).sum(), other + (scales.flip(0) * expected[1]).sum()
        one, two = (torch.autograd.grad(x, hidden)[0] for x in (total, other))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-11)


def test_chunks_are_as_even_as_they_can_be_and_within_the_limit(monkeypatch):
    """A last chunk of one row would cost almost what a whole one does."""
    monkeypatch.setitem(fused_head.CHUNK_LOGITS, "cpu", 20 * VOCABULARY)
    seen = []
    original = fused_head._Logits.__call__
    monkeypatch.setattr(
        fused_head._Logits, "__call__", lambda self, rows: seen.append(len(rows)) or original(self, rows)
    )
    hidden, weight, bias, targets = inputs(rows=41)
    head_log_probs(hidden, weight, bias, targets, head_impl="jacobian")
    assert seen == [14, 14, 13]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_float32_is_within_5e_6_of_plain_logits_and_5e_5_of_their_entropy(impl, temperature):
    """At a vocabulary where a float32 softmax sums to 1 only within 2e-6. The logits are float32 on both sides."""
    hidden, weight, _, targets = inputs(False, torch.float32, rows=32, width=256, vocabulary=50257)
    weight *= 0.15  # logits of standard deviation 2.4
    log_p = ((hidden @ weight.T).double() / temperature).log_softmax(-1)
    hidden.requires_grad_()
    if impl == "recompute":
        weight.requires_grad_()
    found = head_log_probs(hidden, weight, None, targets, head_impl=impl, temperature=temperature)
    assert (found[0].double() - log_p[torch.arange(32), targets]).abs().max() < 5e-6
    assert (found[1].double() + (log_p.exp() * log_p).sum(-1)).abs().max() < 5e-5
    found[0].sum().backward()
    own = hidden.grad.double()
    hidden.grad = None
    reference = hidden.detach().double().requires_grad_()
    plain(reference, weight.detach().double(), None, targets, temperature)[0].sum().backward()
    assert (own - reference.grad).norm() / reference.grad.norm() < 1e-6


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("autocast", [False, True])
def test_statistics_are_float32_where_the_products_are_bfloat16(impl, autocast):
    """Against the formula on the bfloat16 product: log-softmax and entropy in bfloat16 would err by 1e-2."""
    hidden, weight, bias, targets = inputs(True, torch.float32, rows=64, width=32, vocabulary=300)
    if not autocast:
        hidden, weight, bias = hidden.bfloat16(), weight.bfloat16(), bias.bfloat16()
    hidden.requires_grad_()
    if impl == "recompute":
        weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        log_probs, entropy = head_log_probs(hidden, weight, bias, targets, head_impl=impl)
    assert log_probs.dtype == entropy.dtype == torch.float32
    logits = (hidden.detach().bfloat16() @ weight.detach().bfloat16().T).double() + bias.double()
    log_p = logits.log_softmax(-1)
    assert (log_probs - log_p.gather(1, targets[:, None]).squeeze(1)).abs().max() < 1e-5
    assert (entropy + (log_p.exp() * log_p).sum(-1)).abs().max() < 1e-5
    log_probs.sum().backward()
    assert hidden.grad.dtype == hidden.dtype
    exact = hidden.detach().double().requires_grad_()
    plain(exact, weight.detach().double(), bias.double(), targets)[0].sum().backward()
    assert (hidden.grad.double() - exact.grad).norm() / exact.grad.norm() < 0.01
    if impl == "recompute":
        assert weight.grad.dtype == weight.dtype


def test_a_token_that_the_bias_rules_out_leaves_no_nan():
    """Heads are padded to a round number of tokens by a bias of -inf: 0 * -inf has no value."""
    hidden, weight, bias, targets = inputs()
    bias[-1] = -torch.inf
    targets = targets.clamp(max=VOCABULARY - 2)
    expected = plain(hidden, weight[:-1], bias[:-1], targets)
    for impl in (*IMPLS, "dense"):
        for entropy in ("metric", "gradient"):
            rows = hidden.clone().requires_grad_()
            head = weight.clone().requires_grad_(impl == "recompute")
            found = head_log_probs(rows, head, bias, targets, head_impl=impl, entropy=entropy)
            torch.testing.assert_close(found[0], expected[0])
            torch.testing.assert_close(found[1], expected[1])
            (found[0] + found[1] if entropy == "gradient" else found[0]).sum().backward()
            assert rows.grad.isfinite().all()


@pytest.mark.parametrize("impl", IMPLS)
def test_no_rows_give_no_log_probs_and_a_gradient_of_zero_rows(impl):
    hidden, weight, bias, targets = inputs()
    hidden.requires_grad_()
    weight.requires_grad_(impl == "recompute")
    log_probs, entropy = head_log_probs(hidden[:0], weight, bias, targets[:0], head_impl=impl)
    assert log_probs.shape == entropy.shape == (0,)
    log_probs.sum().backward()
    assert (hidden.grad == 0).all()


def test_auto_takes_the_jacobian_for_a_frozen_head_and_recomputes_for_a_trained_one():
    hidden, weight, bias, targets = inputs()
    hidden.requires_grad_()
    assert "Jacobian" in type(head_log_probs(hidden, weight, bias, targets)[0].grad_fn).__name__
    assert "Recompute" in type(head_log_probs(hidden, weight.requires_grad_(), bias, targets)[0].grad_fn).__name__


def test_the_jacobian_keeps_one_vector_a_token_and_no_logits():
    hidden, weight, bias, targets = inputs(rows=64, vocabulary=500)
    hidden.requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        head_log_probs(hidden, weight, bias, targets, head_impl="jacobian")
    assert sum(kept) == hidden.numel()
    kept.clear()
    weight.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        head_log_probs(hidden, weight, bias, targets, head_impl="recompute")
    assert max(kept) < 64 * 500  # hidden, the head itself, and numbers of a token


def test_a_pass_without_gradient_makes_one_product_and_one_with_it_two(monkeypatch):
    products = []
    original = fused_head._multiply
    monkeypatch.setattr(fused_head, "_multiply", lambda *given: products.append(1) or original(*given))
    hidden, weight, bias, targets = inputs()
    hidden.requires_grad_()
    for graph, entropy, expected in [
        (False, "metric", 1),
        (True, "metric", 2),
        (True, "none", 2),
        (True, "gradient", 3),
    ]:
        products.clear()
        with torch.set_grad_enabled(graph):
            found = head_log_probs(hidden, weight, bias, targets, head_impl="jacobian", entropy=entropy)
        if graph:
            (found[0].sum() + (found[1].sum() if entropy == "gradient" else 0)).backward()
        assert len(products) == expected


def test_unknown_names_and_a_jacobian_of_a_trained_head_are_refused_by_name():
    hidden, weight, bias, targets = inputs()
    with pytest.raises(ValueError, match="head_impl must be one of .*jacobian.*'fast'"):
        head_log_probs(hidden, weight, bias, targets, head_impl="fast")
    with pytest.raises(ValueError, match="entropy must be one of none, metric, gradient, got 'yes'"):
        head_log_probs(hidden, weight, bias, targets, entropy="yes")
    with pytest.raises(ValueError, match="frozen head.*--head_impl recompute"):
        head_log_probs(hidden, weight.requires_grad_(), bias, targets, head_impl="jacobian")


@pytest.mark.parametrize("impl", IMPLS)
def test_a_second_derivative_is_refused_not_wrong(impl):
    hidden, weight, bias, targets = inputs()
    hidden.requires_grad_()
    weight.requires_grad_(impl == "recompute")
    log_probs, _ = head_log_probs(hidden, weight, bias, targets, head_impl=impl)
    (first,) = torch.autograd.grad((log_probs**2).sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
