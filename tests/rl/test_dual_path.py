"""Dual-path weights and advantages: the paper's numbers, what the weights are invariant to, and the KL gradient."""

import itertools
import math

import pytest
import torch

from scope_rlhf.losses import reduce_loss
from scope_rlhf.objectives import PolicyInputs, make_objective
from scope_rlhf.rl import (
    dual_path_advantages,
    dual_path_weights,
    sequence_mean_log_probs,
    teacher_advantages,
    weight_entropy,
)

STUDENT_PPL, TEACHER_PPL = (1.2, 2.6, 3.8), (4.5, 2.9, 1.7)


def mean_log_probs(*perplexities):
    return -torch.tensor(perplexities, dtype=torch.float64).log()


def random_groups(groups=5, size=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (-3 * torch.rand(groups * size, generator=generator, dtype=torch.float64) for _ in range(2))
    correct = torch.rand(groups * size, generator=generator) < 0.5
    correct[:size], correct[size : 2 * size] = True, False  # one group all right, one all wrong
    return student, teacher, correct


@pytest.mark.parametrize(
    ("tau", "expected"),
    [(1.0, (0.157895, 0.342105, 0.5)), (0.5, (0.064, 0.299, 0.638)), (2.0, (0.235, 0.346, 0.419))],
)
def test_student_weights_are_those_of_the_paper(tau, expected):
    weights, other = dual_path_weights(
        mean_log_probs(*STUDENT_PPL), mean_log_probs(*TEACHER_PPL), torch.ones(3), 3, tau, "sum"
    )
    assert weights.tolist() == pytest.approx(expected, abs=5e-7 if tau == 1 else 5e-4)
    assert other.tolist() == [0, 0, 0]


def test_teacher_weights_are_those_of_the_paper():
    other, weights = dual_path_weights(
        mean_log_probs(*STUDENT_PPL), mean_log_probs(*TEACHER_PPL), torch.zeros(3), 3, normalization="sum"
    )
    assert weights.tolist() == pytest.approx((0.19235, 0.29848, 0.50917), abs=5e-6)
    assert other.tolist() == [0, 0, 0]


def test_each_branch_that_is_not_empty_sums_to_one_or_has_the_mean_one_and_an_empty_one_is_zero():
    student, teacher, correct = random_groups()
    for normalization in ("sum", "mean"):
        weights = dual_path_weights(student, teacher, correct, 6, normalization=normalization)
        for branch, w in zip((correct, ~correct), weights, strict=True):
            assert (w[~branch] == 0).all() and (w[branch] > 0).all() and w.isfinite().all()
            sizes = branch.view(-1, 6).sum(1)
            expected = (sizes > 0).double() if normalization == "sum" else sizes.double()
            assert torch.allclose(w.view(-1, 6).sum(1), expected)


@pytest.mark.parametrize("signs", [(1, 1), (0, 1), (-1, 1), (1, 0), (1, -1)])
def test_weights_equal_the_powers_of_perplexity_taken_one_by_one(signs):
    student, teacher, correct = random_groups(seed=3)
    tau = 0.7
    ours = dual_path_weights(student, teacher, correct, 6, tau, "sum", student_sign=signs[0], teacher_sign=signs[1])
    for i in range(len(student)):
        group = range(i // 6 * 6, i // 6 * 6 + 6)
        branch, log_probs, exponent = (0, student, signs[0] / tau) if correct[i] else (1, teacher, -signs[1] / tau)
        power = [math.exp(-log_probs[j]) ** exponent if correct[j] == correct[i] else 0.0 for j in group]
        assert ours[branch][i].item() == pytest.approx(power[i % 6] / sum(power), rel=1e-9)


def test_a_permutation_within_a_group_permutes_the_weights():
    student, teacher, correct = random_groups()
    order = torch.cat([6 * g + torch.randperm(6, generator=torch.Generator().manual_seed(g)) for g in range(5)])
    before = dual_path_weights(student, teacher, correct, 6)
    after = dual_path_weights(student[order], teacher[order], correct[order], 6)
    for w, permuted in zip(before, after, strict=True):
        assert torch.allclose(w[order], permuted, rtol=1e-12)


def test_a_large_tau_is_uniform_and_a_small_one_picks_the_extreme_of_each_branch():
    student, teacher, correct = random_groups()
    for tau in (1e9, math.inf):
        for branch, w in zip((correct, ~correct), dual_path_weights(student, teacher, correct, 6, tau), strict=True):
            assert torch.allclose(w, branch.double(), atol=1e-7)
    right, wrong = dual_path_weights(student, teacher, correct, 6, 1e-4, "sum")
    for g in range(5):
        rows = slice(6 * g, 6 * g + 6)
        if correct[rows].any():  # the least likely to the student
            assert right[rows].argmax() == student[rows].masked_fill(~correct[rows], 1).argmin()
            assert right[rows].max() == pytest.approx(1, abs=1e-6)
        if (~correct[rows]).any():  # the likeliest to the teacher
            assert wrong[rows].argmax() == teacher[rows].masked_fill(correct[rows], -9).argmax()


def test_extreme_perplexities_stay_finite():
    """exp(2000) overflows; the softmax never leaves log space."""
    log_probs = torch.tensor([-2000.0, -1999.0, -1.0])
    right, _ = dual_path_weights(log_probs, log_probs, torch.ones(3), 3, normalization="sum")
    assert right.tolist() == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e), 0], abs=1e-6)


def test_a_completion_without_a_verdict_has_no_weight_and_leaves_the_others_theirs():
    student, teacher, correct = random_groups()
    verdicts = correct.double()
    verdicts[::6] = math.nan
    student, teacher = student.clone(), teacher.clone()
    student[::6] = teacher[::6] = math.nan  # as of an empty completion
    kept = [i for i in range(30) if i % 6]
    whole = dual_path_weights(student, teacher, verdicts, 6)
    without = dual_path_weights(student[kept], teacher[kept], correct[kept], 5)
    for w, expected in zip(whole, without, strict=True):
        assert torch.allclose(w[kept], expected) and (w[::6] == 0).all()


def test_a_group_of_one_has_its_full_weight():
    right, wrong = dual_path_weights(torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -4.0]), torch.tensor([1, 0]), 1)
    assert (right.tolist(), wrong.tolist()) == ([1, 0], [0, 1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tau": 0}, "tau must be positive"),
        ({"tau": math.nan}, "tau must be positive"),
        ({"tau": "1"}, "tau must be positive"),
        ({"group_size": 3.0}, "do not make groups of 3.0"),
        ({"normalization": "max"}, "normalization must be mean or sum"),
        ({"student_sign": 2}, "student_sign must be"),
        ({"group_size": 2}, "3 completions do not make groups of 2"),
        ({"correct": torch.tensor([0.3, 1, 0])}, "threshold rewards first"),
        ({"correct": torch.ones(3, 1)}, "expected \\[B\\]"),
        ({"student_mean_log_probs": torch.ones(4)}, "student_mean_log_probs has shape"),
        ({"teacher_mean_log_probs": torch.tensor([-1.0, math.nan, -1.0])}, "missing score"),
        ({"teacher_mean_log_probs": torch.tensor([-1.0, -math.inf, -1.0])}, "missing score"),
        ({"student_mean_log_probs": torch.tensor([2.6, -1.0, -1.0])}, "expected a finite mean log-prob <= 0"),
    ],
)
def test_what_cannot_be_weighed_is_refused(change, message):
    given = {
        "student_mean_log_probs": -torch.ones(3), "teacher_mean_log_probs": -torch.ones(3),
        "correct": torch.tensor([1, 0, 1]), "group_size": 3, **change,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        dual_path_weights(**given)


def test_means_and_advantages_do_not_depend_on_padding():
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(5) < torch.tensor([5, 2, 0, 3])[:, None]
    student, teacher = (-torch.rand(4, 5, generator=generator) for _ in range(2))
    rubbish = torch.where(mask, student, math.nan)
    means = sequence_mean_log_probs(rubbish, mask)
    assert means[0].item() == pytest.approx(student[0].mean().item())
    assert means[1].item() == pytest.approx(student[1, :2].mean().item())
    assert means[2].isnan()
    wider = torch.nn.functional.pad(rubbish, (0, 3), value=7.0)
    assert torch.equal(
        sequence_mean_log_probs(wider, torch.nn.functional.pad(mask, (0, 3))).nan_to_num(), means.nan_to_num()
    )
    advantages = teacher_advantages(rubbish, torch.where(mask, teacher, math.inf), mask)
    assert torch.allclose(advantages, torch.where(mask, teacher - student, 0.0))
    whole = dual_path_advantages(torch.tensor([2.0, 0, 0, 0]), torch.tensor([0, 3.0, 0, 0]), advantages, mask)
    assert torch.allclose(whole[0], torch.full((5,), 2.0))
    assert torch.allclose(whole[1], 3 * advantages[1]) and (whole[2:] == 0).all() and (whole[1, 2:] == 0).all()


def test_the_entropy_of_weights_is_that_of_their_distribution():
    weights = torch.tensor([1.0, 1, 1, 1, 2, 0, 0, 0, 3, 1, 0, 0])
    entropy = weight_entropy(weights, 4)
    assert entropy[0].item() == pytest.approx(math.log(4))
    assert entropy[1].isnan()
    assert entropy[2].item() == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    student, teacher, correct = random_groups()
    by_mean, by_sum = (
        weight_entropy(dual_path_weights(student, teacher, correct, 6, normalization=name)[0], 6)
        for name in ("mean", "sum")
    )
    assert torch.allclose(by_mean, by_sum, equal_nan=True) and (by_sum.nan_to_num() > 0).any()


def test_the_token_log_ratio_as_advantage_gives_the_gradient_of_the_exact_reverse_kl():
    """Sequences of two tokens over four: the expectation is a sum over all sixteen."""
    generator = torch.Generator().manual_seed(5)
    vocabulary = 4
    logits = [torch.randn(vocabulary, generator=generator, dtype=torch.float64).requires_grad_()]
    logits += [torch.randn(vocabulary, vocabulary, generator=generator, dtype=torch.float64).requires_grad_()]
    teacher = [torch.randn_like(x) for x in logits]

    def log_probs(tables, first, second):
        return torch.stack([tables[0].log_softmax(-1)[first], tables[1].log_softmax(-1)[first, second]])

    objective, estimate, exact = make_objective("ppo"), 0.0, 0.0
    for first, second in itertools.product(range(vocabulary), repeat=2):
        ours, theirs = log_probs(logits, first, second), log_probs(teacher, first, second).detach()
        chance = ours.sum().exp()
        exact = exact + chance * (ours - theirs).sum()
        mask = torch.ones(1, 2, dtype=torch.bool)
        # The advantage of a token is that of all that follows it: gamma = 1 to the end of the completion.
        advantages = teacher_advantages(ours[None], theirs[None], mask).flip(1).cumsum(1).flip(1)
        loss = objective(PolicyInputs(ours[None], advantages, ours[None].detach())).per_decision
        estimate = estimate + chance.detach() * loss.sum()
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(exact, logits, retain_graph=True)])
    found = torch.cat([g.flatten() for g in torch.autograd.grad(estimate, logits)])
    assert torch.allclose(found, wanted, atol=1e-12) and wanted.abs().max() > 1e-2


def test_the_token_log_ratio_gives_the_gradient_of_each_tokens_own_exact_kl():
    """What eq. 6 optimises: at every state the KL of the next token, future tokens left out."""
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(3, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 7, generator=generator, dtype=torch.float64).log_softmax(-1)
    student = logits.log_softmax(-1)
    (wanted,) = torch.autograd.grad((student.exp() * (student - teacher)).sum(), logits)
    student = logits.log_softmax(-1)  # every token of the vocabulary as one sampled decision, weighted by its chance
    mask = torch.ones(3, 7, dtype=torch.bool)
    advantages = teacher_advantages(student, teacher, mask)
    loss = make_objective("ppo")(PolicyInputs(student, advantages, student.detach())).per_decision
    (found,) = torch.autograd.grad((student.detach().exp() * loss).sum(), logits)
    assert torch.allclose(found, wanted, atol=1e-12) and wanted.abs().max() > 1e-2


def eq6(student, teacher, mask, correct, weights, rows_per_prompt):
    """Equation 6 written by hand: a loop over completions and tokens, r_t = exp(log pi - log pi detached)."""
    total = 0.0
    for i in range(len(student)):
        for t in range(student.shape[1]):
            if not mask[i, t]:
                continue
            ratio = (student[i, t] - student[i, t].detach()).exp()
            if correct[i]:
                total = total - weights[0][i] * ratio
            else:
                total = total + weights[1][i] * ratio * (student[i, t].detach() - teacher[i, t])
    return total / (len(student) / rows_per_prompt)


def test_equation_six_by_hand_has_the_gradient_of_the_objective_on_dual_path_advantages():
    generator = torch.Generator().manual_seed(8)
    logits = torch.randn(12, 6, 20, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(0, 20, (12, 6, 1), generator=generator)
    student = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
    teacher = torch.randn(12, 6, 20, generator=generator).double().log_softmax(-1).gather(-1, tokens).squeeze(-1)
    mask = torch.arange(6) < torch.randint(1, 7, (12, 1), generator=generator)
    correct = torch.tensor([1, 0, 0, 1] * 2 + [0, 0, 0, 0], dtype=torch.bool)
    weights = dual_path_weights(
        sequence_mean_log_probs(student, mask), sequence_mean_log_probs(teacher, mask), correct, 4, normalization="sum"
    )
    (wanted,) = torch.autograd.grad(eq6(student, teacher, mask, correct, weights, 4), logits, retain_graph=True)
    advantages = dual_path_advantages(*weights, teacher_advantages(student, teacher, mask), mask)
    loss = make_objective("ppo")(PolicyInputs(student, advantages, student.detach())).per_decision
    (found,) = torch.autograd.grad(reduce_loss(loss, mask, "token_mean", normalizer=3), logits)
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tau_next_to_zero_gives_weights_and_no_nan(dtype):
    log_probs = torch.tensor([-1.0, -2.0, -3.0], dtype=dtype)
    for tau in (1e-45, 1e-310):
        right, _ = dual_path_weights(log_probs, log_probs, torch.ones(3), 3, tau, "sum")
        _, wrong = dual_path_weights(log_probs, log_probs, torch.zeros(3), 3, tau, "sum")
        assert (right.tolist(), wrong.tolist()) == ([0, 0, 1], [1, 0, 0])
        assert right.dtype == dtype
