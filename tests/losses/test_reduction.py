"""Reductions against TRL's formulas, under masks, and under splits of a batch."""

import pytest
import torch

from scope_rlhf.losses import REDUCTIONS, TRL_REDUCTIONS, fill_masked, masked_mean, reduce_loss

HORIZON = 7
ALL = [*REDUCTIONS, *TRL_REDUCTIONS]


def normalizer_of(reduction: str, count: float = 6.0):
    return {"fixed_horizon": HORIZON, "dr_grpo": HORIZON, "dapo": count}.get(reduction)


def batch(dtype=torch.float64):
    losses = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    return losses, mask


def trl(per_token_loss, mask, loss_type, num_items_in_batch, num_processes=1):
    """The reductions of GRPOTrainer._compute_loss, as its source writes them."""
    mask = mask.to(per_token_loss.dtype)
    if loss_type == "grpo":
        return ((per_token_loss * mask).sum(-1) / mask.sum(-1).clamp(min=1.0)).mean()
    if loss_type == "bnpo":
        return (per_token_loss * mask).sum() / mask.sum().clamp(min=1.0)
    if loss_type == "dr_grpo":
        return (per_token_loss * mask).sum() / (per_token_loss.size(0) * HORIZON)
    return (per_token_loss * mask).sum() / (num_items_in_batch / num_processes)


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_each_trl_name_reduces_as_trl_does(loss_type):
    losses, mask = batch()
    expected = trl(losses, mask, loss_type, num_items_in_batch=34, num_processes=2)
    total = reduce_loss(losses, mask, loss_type, normalizer=normalizer_of(loss_type, count=17.0))
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("trl_name", "own"), TRL_REDUCTIONS.items())
def test_trl_names_are_other_names_of_our_reductions(trl_name, own):
    losses, mask = batch()
    normalizer = normalizer_of(trl_name)
    assert torch.equal(reduce_loss(losses, mask, trl_name, normalizer), reduce_loss(losses, mask, own, normalizer))


def test_token_mean_without_a_mask_is_the_mean():
    losses, _ = batch()
    torch.testing.assert_close(reduce_loss(losses, None, "token_mean"), losses.mean(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(masked_mean(losses, None), losses.mean(), rtol=1e-12, atol=1e-12)


def test_sequence_mean_gives_zero_to_a_row_without_a_counted_decision():
    losses, mask = batch()
    rows = [losses[i][mask[i]].mean().item() if mask[i].any() else 0.0 for i in range(4)]
    assert reduce_loss(losses, mask, "sequence_mean").item() == pytest.approx(sum(rows) / 4, abs=1e-12)


def test_sequence_mean_of_single_decisions_is_their_mean_with_masked_ones_as_zero():
    losses = torch.tensor([1.0, 5.0, 3.0])
    assert reduce_loss(losses, torch.tensor([True, False, True]), "sequence_mean").item() == pytest.approx(4 / 3)
    assert reduce_loss(losses, None, "sequence_mean").item() == pytest.approx(3.0)


@pytest.mark.parametrize("reduction", ALL)
def test_masked_positions_change_neither_value_nor_gradient(reduction):
    losses, mask = batch()
    spoilt = losses.masked_fill(~mask, torch.nan)
    spoilt[0, 3], spoilt[2, 0] = torch.inf, -torch.inf
    results = []
    for values in (losses, spoilt):
        leaf = values.clone().requires_grad_()
        total = reduce_loss(leaf, mask, reduction, normalizer_of(reduction))
        results.append((total, torch.autograd.grad(total, leaf)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert torch.equal(results[1][1] != 0, mask)


@pytest.mark.parametrize("reduction", ALL)
def test_all_masked_gives_zero_with_a_graph_and_gradient_zero(reduction):
    leaf = torch.full((3, 4), torch.nan, requires_grad=True)
    total = reduce_loss(leaf, torch.zeros(3, 4, dtype=torch.bool), reduction, normalizer_of(reduction))
    assert total.item() == 0.0
    total.backward()
    assert leaf.grad is not None
    assert torch.equal(leaf.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("zero", [0, 0.0, torch.tensor(0), torch.tensor(0.0)])
def test_a_global_count_of_zero_gives_zero_not_nan(zero):
    leaf = torch.ones(2, 2, requires_grad=True)
    total = reduce_loss(leaf, torch.zeros(2, 2, dtype=torch.bool), "dapo", normalizer=zero)
    total.backward()
    assert total.item() == 0.0


def test_the_gradient_under_a_global_count_does_not_depend_on_the_split():
    losses, mask = batch()
    whole, parts = losses.clone().requires_grad_(), losses.clone().requires_grad_()
    reduce_loss(whole, mask, "token_mean").backward()
    for rows in (slice(0, 1), slice(1, 4)):
        reduce_loss(parts[rows], mask[rows], "token_mean", normalizer=mask.sum()).backward()
    torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("normalizer", [17, 17.0, torch.tensor(17), torch.tensor(17.0)])
def test_the_normalizer_may_be_a_number_or_a_scalar_tensor(normalizer):
    losses, mask = batch()
    expected = losses[mask].sum() / 17
    torch.testing.assert_close(reduce_loss(losses, mask, "token_mean", normalizer), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask_dtype", [torch.float32, torch.int64, torch.bfloat16])
def test_a_numeric_mask_counts_where_it_is_not_zero(mask_dtype):
    losses, mask = batch()
    assert torch.equal(reduce_loss(losses, mask.to(mask_dtype), "bnpo"), reduce_loss(losses, mask, "bnpo"))


def test_bfloat16_is_reduced_in_float32_where_counts_above_256_are_exact():
    losses = torch.ones(1, 257, dtype=torch.bfloat16, requires_grad=True)
    total = reduce_loss(losses, None, "token_mean")
    assert total.dtype == torch.float32
    assert total.item() == 1.0
    total.backward()
    assert losses.grad is not None
    assert losses.grad.dtype == torch.bfloat16


def test_an_empty_batch_reduces_to_zero():
    for reduction in ALL:
        assert reduce_loss(torch.zeros(0, 3), None, reduction, normalizer_of(reduction)).item() == 0.0


def test_masked_mean_ignores_what_masked_positions_hold():
    x = torch.tensor([1.0, torch.nan, 5.0])
    assert masked_mean(x, torch.tensor([True, False, True])).item() == 3.0
    assert masked_mean(x, torch.zeros(3, dtype=torch.bool)).item() == 0.0


def test_fill_masked_stops_a_nan_before_it_enters_the_graph():
    x = torch.tensor([0.5, -torch.inf], requires_grad=True)
    mask = torch.tensor([True, False])
    filled = fill_masked(x, mask)
    (gradient,) = torch.autograd.grad((filled.exp() * filled).sum(), x)
    assert gradient[1].item() == 0.0
    assert gradient[0].isfinite()
    assert fill_masked(x, mask, value=-3.0).tolist() == [0.5, -3.0]
    assert fill_masked(x, None) is x


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reduction": "mean"}, r"unknown reduction 'mean'; expected one of token_mean"),
        ({"mask": torch.ones(4, 1, dtype=torch.bool)}, r"mask has shape \(4, 1\), expected \(4, 5\)"),
        ({"mask": torch.ones(5, dtype=torch.bool)}, r"mask has shape \(5,\), expected \(4, 5\)"),
        ({"reduction": "fixed_horizon"}, r"fixed_horizon needs normalizer = the horizon"),
        ({"reduction": "dr_grpo"}, r"dr_grpo needs normalizer = the horizon"),
        ({"reduction": "dapo"}, r"dapo needs normalizer = the global count"),
        ({"reduction": "grpo", "normalizer": 3}, r"grpo takes no normalizer, given 3"),
        ({"reduction": "bnpo", "normalizer": 3}, r"bnpo takes no normalizer"),
        ({"normalizer": -1.0}, r"normalizer=-1.0 given, expected a positive number"),
        ({"reduction": "fixed_horizon", "normalizer": 0}, r"normalizer=0 given, expected a positive number"),
        ({"normalizer": float("nan")}, r"normalizer=nan given"),
        ({"normalizer": torch.ones(4, 1)}, r"normalizer has shape \(4, 1\), expected a number"),
        ({"per_decision": torch.tensor(1.0), "mask": None}, r"per_decision is a scalar"),
    ],
)
def test_what_cannot_be_reduced_is_a_clear_error(arguments, message):
    losses, mask = batch()
    with pytest.raises(ValueError, match=message):
        reduce_loss(**{"per_decision": losses, "mask": mask, "reduction": "token_mean", **arguments})
