import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from scope_rlhf.vision.long_tail import METHODS, effective_number_weights, make_method

COUNTS = torch.tensor([100, 20, 4])
LOGITS = torch.tensor([[1.0, 0.5, -0.3], [0.2, 0.1, 2.0]], dtype=torch.float64)
LABELS = torch.tensor([2, 0])


def test_class_balanced_weights_are_those_of_the_effective_number():
    beta = 0.99
    expected = [(1 - beta) / (1 - beta**n) for n in (100, 20, 4)]
    expected = [3 * w / sum(expected) for w in expected]
    weights: Any = make_method("class_balanced", {"beta": beta}).class_weights(COUNTS, 0.0)
    assert weights.tolist() == pytest.approx(expected)


def test_the_ends_of_beta_are_no_weight_and_inverse_counts():
    assert effective_number_weights(COUNTS, 0.0).tolist() == pytest.approx([1, 1, 1])
    inverse = [1 / 100, 1 / 20, 1 / 4]
    expected = [3 * w / sum(inverse) for w in inverse]
    assert effective_number_weights(COUNTS, 1 - 1e-9).tolist() == pytest.approx(expected, rel=1e-5)


def test_balanced_softmax_is_logit_adjustment_at_tau_one():
    one = make_method("balanced_softmax").adjust(LOGITS, LABELS, COUNTS)
    other = make_method("logit_adjustment").adjust(LOGITS, LABELS, COUNTS)
    torch.testing.assert_close(one.log_softmax(1), other.log_softmax(1))
    by_hand = [100 * math.exp(1.0), 20 * math.exp(0.5), 4 * math.exp(-0.3)]
    assert one.softmax(1)[0].tolist() == pytest.approx([x / sum(by_hand) for x in by_hand])


def test_the_fixed_point_of_balanced_softmax_on_equal_likelihoods_is_flat():
    """Where the data say nothing, the balanced classifier's own logits are equal: the adjustment carries the prior."""
    logits: Any = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    method = make_method("balanced_softmax")
    labels = torch.arange(3).repeat_interleave(COUNTS)
    loss = F.cross_entropy(method.adjust(logits.expand(len(labels), 3), labels, COUNTS), labels)
    loss.backward()
    assert logits.grad.abs().max() < 1e-12


def test_ldam_takes_the_margin_off_the_label_alone():
    method = make_method("ldam_drw", {"max_margin": 0.5, "scale": 10.0})
    changed = LOGITS - method.adjust(LOGITS, LABELS, COUNTS)
    margins = [n**-0.25 * 0.5 / 4**-0.25 for n in (100, 20, 4)]
    expected = torch.tensor([[0, 0, 10 * margins[2]], [10 * margins[0], 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(changed, expected)
    assert margins[2] == pytest.approx(0.5)  # the rarest class has the largest


def test_ldam_weighs_only_after_its_share_of_the_epochs():
    method = make_method("ldam_drw")
    assert method.class_weights(COUNTS, 0.79) is None
    torch.testing.assert_close(method.class_weights(COUNTS, 0.8), effective_number_weights(COUNTS, 0.9999))


def test_balanced_sampling_draws_the_classes_alike():
    weights: Any = make_method("balanced_sampling").sampling_weights(COUNTS)
    assert (weights * COUNTS).tolist() == pytest.approx([1, 1, 1])
    root: Any = make_method("balanced_sampling", {"power": 0.5}).sampling_weights(COUNTS)
    assert (root * COUNTS).tolist() == pytest.approx([10, 20**0.5, 2])


@pytest.mark.parametrize("name", METHODS)
def test_no_remedy_changes_the_gradient_of_another_row(name):
    method = make_method(name)
    logits: Any = LOGITS.clone().requires_grad_()
    F.cross_entropy(method.adjust(logits, LABELS, COUNTS), LABELS, reduction="none")[0].backward()
    assert logits.grad[1].abs().max() == 0 < logits.grad[0].abs().max()


@pytest.mark.parametrize(
    ("name", "kwargs", "message"),
    [
        ("ldam", {}, "long_tail 'ldam' is unknown; valid: none, class_balanced"),
        ("ldam_drw", {"margin": 1}, "has no parameter 'margin'; valid: max_margin, scale, drw_start, beta"),
        ("balanced_softmax", {"tau": 1}, "it takes none"),
        ("class_balanced", {"beta": 1.0}, "beta must be a number >= 0 and < 1, got 1.0"),
        ("logit_adjustment", {"tau": "x"}, "tau must be a number"),
        ("ldam_drw", {"scale": 0}, "scale must be a number > 0"),
        ("balanced_sampling", {"power": 2}, "power must be a number >= 0 and <= 1"),
    ],
)
def test_settings_of_a_remedy_that_cannot_work_are_refused(name, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make_method(name, kwargs)
