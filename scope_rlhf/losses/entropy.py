"""Entropy terms: p log p of the sampled action, the entropy of a categorical policy, and the entropy penalty."""

import torch
from torch import Tensor


def p_log_p(log_probs: Tensor) -> Tensor:
    """p log p, gradient through both factors: G = p (1 + log p). Value 0 and gradient 0 at log p = -inf.

    The clamp at the smallest finite number is what keeps exp(-inf) * -inf = NaN out of value and gradient.
    """
    finite = log_probs.clamp(min=torch.finfo(log_probs.dtype).min)
    return finite.exp() * finite


def categorical_entropy(logits: Tensor) -> Tensor:
    """H = -sum_j p_j log p_j over the last dimension, [*D, V] -> [*D]; logits of -inf (forbidden actions) add 0.

    Gradient through every logit: dH/dlogits = -probs (log probs + H).
    """
    return -p_log_p(logits.log_softmax(dim=-1)).sum(dim=-1)


def entropy_penalty(entropy: Tensor) -> Tensor:
    """-H = sum_j p_j log p_j, added with a coefficient alpha in policy + entropy (PEL).

    Gradient through H. With respect to the logits it is the vector alpha probs * (log probs + H), not a multiple of
    onehot(action) - probs: it depends on the whole distribution.
    """
    return -entropy
