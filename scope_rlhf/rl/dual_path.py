"""Weights and advantages of dual-path on-policy distillation (SCOPE, arXiv 2604.10688; not the Scope loss)."""

import math

import torch
from torch import Tensor

from scope_rlhf.losses import fill_masked

NORMALIZATIONS = ("mean", "sum")


def dual_path_weights(
    student_mean_log_probs: Tensor,
    teacher_mean_log_probs: Tensor,
    correct: Tensor,
    group_size: int,
    tau: float = 1.0,
    normalization: str = "mean",
    *,
    student_sign: int = 1,
    teacher_sign: int = 1,
) -> tuple[Tensor, Tensor]:
    """(student_weights, teacher_weights) of the completions of each prompt, each 0 outside its branch.

        correct:  w_i = PPL_S(y_i)^(1/tau)  / sum over the correct of PPL_S^(1/tau)       (arXiv 2604.10688, eq. 4)
        wrong:    w_i = PPL_T(y_i)^(-1/tau) / sum over the wrong of PPL_T^(-1/tau)        (eq. 5)

    PPL = exp(-mean log-prob of the completion's tokens): a correct answer that the student was unsure of weighs more,
    and so does a wrong one that the teacher is sure about. The softmax is taken in log space; a large tau makes it
    uniform (math.inf: exactly), a small one picks a single completion. normalization "sum" is the equations: a branch
    that is not empty sums to 1; "mean" multiplies by the size of the branch, so that its weights have the mean 1.

    student_sign, teacher_sign: for ablations, 1 as above, 0 uniform weights, -1 the exponent reversed.

    student_mean_log_probs, teacher_mean_log_probs [B]: the completions of one prompt are adjacent, group_size of each.
    correct [B]: true or 1, false or 0; NaN marks a completion that counts in neither branch (no verdict, no tokens),
    whatever its log-probs. An empty branch gives zeros, a branch of one its full weight. Returns [B] twice, float32 or
    float64, without gradient.

    Raises ValueError for another shape, B that is no multiple of group_size, tau <= 0, a verdict that is not 0, 1 or
    NaN, and for a log-prob of a counted completion that is not finite or is positive: a score that is missing would
    otherwise become a weight.
    """
    if normalization not in NORMALIZATIONS:
        raise ValueError(
            f"dual_path_weights: normalization must be {' or '.join(NORMALIZATIONS)}, got {normalization!r}"
        )
    if isinstance(tau, bool) or not isinstance(tau, int | float) or not tau > 0:
        raise ValueError(f"dual_path_weights: tau must be positive, got {tau!r}")
    for name, sign in (("student_sign", student_sign), ("teacher_sign", teacher_sign)):
        if sign not in (-1, 0, 1):
            raise ValueError(f"dual_path_weights: {name} must be 1, 0 (uniform) or -1 (reversed), got {sign!r}")
    counted, right = _verdicts(correct, group_size)
    weights = []
    for name, log_probs, sign, branch in (
        ("student_mean_log_probs", student_mean_log_probs, -student_sign, counted & right),
        ("teacher_mean_log_probs", teacher_mean_log_probs, teacher_sign, counted & ~right),
    ):
        log_probs = _checked(name, log_probs, counted)
        scores, outside = (sign * log_probs.double()).view(-1, group_size), ~branch.view(-1, group_size)
        # The largest is taken away before the division: a tau near 0 would make all of them infinite.
        scores = (scores - scores.masked_fill(outside, -math.inf).amax(dim=1, keepdim=True)) / tau
        # An empty branch is all NaN before the second mask.
        shares = scores.masked_fill(outside, -math.inf).softmax(dim=1).masked_fill(outside, 0.0)
        shares = shares.view(-1).to(log_probs.dtype)
        if normalization == "mean":
            shares = shares * branch.view(-1, group_size).sum(dim=1).repeat_interleave(group_size)
        weights.append(shares)
    return weights[0], weights[1]


def teacher_advantages(student_log_probs: Tensor, teacher_log_probs: Tensor, mask: Tensor) -> Tensor:
    """log pi_T - log pi_S of each sampled token, 0 where masked: the advantages of plain on-policy distillation.

    As advantages of a policy gradient they descend the reverse KL(pi_S | pi_T) (the k1 estimate): with the score
    function grad log pi_S their expectation is minus its gradient. All [B, T]; no gradient; float32 at least.
    """
    dtype = torch.promote_types(student_log_probs.dtype, torch.float32)
    student, teacher = (
        fill_masked(x.detach(), mask).to(dtype) for x in (student_log_probs, teacher_log_probs.to(student_log_probs))
    )
    return teacher - student


def dual_path_advantages(student_weights: Tensor, teacher_weights: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    """w_i on the tokens of correct completions, w_i (log pi_T - log pi_S) on those of wrong ones (arXiv 2604.10688,
    eq. 6 as a policy gradient), 0 where masked.

    student_weights, teacher_weights [B] from dual_path_weights; advantages [B, T] from teacher_advantages. [B, T].
    """
    return fill_masked(student_weights.unsqueeze(1) + teacher_weights.unsqueeze(1) * advantages, mask)


def sequence_mean_log_probs(log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean log-prob over the counted tokens of each row, [B, T] -> [B], NaN for a row without any; no gradient."""
    log_probs = fill_masked(log_probs.detach(), mask)
    return log_probs.to(torch.promote_types(log_probs.dtype, torch.float32)).sum(dim=1) / (mask != 0).sum(dim=1)


def weight_entropy(weights: Tensor, group_size: int) -> Tensor:
    """Entropy in nats of one branch's weights in each group, [B] -> [B / group_size]; NaN with fewer than two members.

    log of the size of the branch where its weights are uniform, 0 where one completion has all.
    """
    groups = weights.detach().view(-1, group_size)
    shares = groups / groups.sum(dim=1, keepdim=True).clamp(min=torch.finfo(groups.dtype).tiny)
    entropy = torch.special.entr(shares).sum(dim=1)
    return entropy.masked_fill((groups > 0).sum(dim=1) < 2, math.nan)


def _verdicts(correct: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Which completions count in a branch, and which are right, both bool [B]."""
    if correct.dim() != 1:
        raise ValueError(f"dual_path_weights: correct has shape {tuple(correct.shape)}, expected [B]")
    if not isinstance(group_size, int) or group_size < 1 or len(correct) % group_size:
        raise ValueError(f"dual_path_weights: {len(correct)} completions do not make groups of {group_size!r}")
    counted = ~correct.isnan() if correct.is_floating_point() else torch.ones_like(correct, dtype=torch.bool)
    odd = counted & (correct != 0) & (correct != 1)
    if odd.any():
        value = correct[odd][0].item()
        raise ValueError(f"dual_path_weights: correct must hold 0, 1 or NaN, got {value!r}; threshold rewards first")
    return counted, correct == 1


def _checked(name: str, log_probs: Tensor, counted: Tensor) -> Tensor:
    """The log-probs in float32 at least, 0 where they do not count."""
    if log_probs.shape != counted.shape:
        raise ValueError(f"dual_path_weights: {name} has shape {tuple(log_probs.shape)}, expected [{len(counted)}]")
    log_probs = fill_masked(log_probs.detach().to(torch.promote_types(log_probs.dtype, torch.float32)), counted)
    wrong = ~log_probs.isfinite() | (log_probs > 1e-3)  # rounding may leave a sure token just above 0
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"dual_path_weights: {name}[{row}] is {log_probs[row].item()}, expected a finite mean log-prob <= 0. A "
            "missing score must stop here: as a number it would become a weight."
        )
    return log_probs
