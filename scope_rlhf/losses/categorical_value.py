"""Value functions by classification: target distributions of a return, cross-entropy, and the decoded value.

HL-Gauss and two-hot are those of Stop Regressing (arXiv 2403.03950), the projection that of C51 (arXiv 1707.06887).
[*D] are decisions, M atoms or bins. Everything is computed in float32, or in float64 where an input is: in bfloat16 the
decoded value is wrong by up to .03 of a support of 20. Targets carry no gradient.
"""

import math

import torch
from torch import Tensor


def hl_gauss_probs(targets: Tensor, edges: Tensor, sigma: float) -> Tensor:
    """Share of a Gaussian around the target in each bin, of what lies inside the support: [*D] -> [*D, M].

        p_i(y) = (F(e_{i+1}) - F(e_i)) / (F(e_M) - F(e_0)),   F the distribution function of Normal(y, sigma)

    edges [M + 1] ascend. y is clamped to the support first: 5 sigma outside, the quotient is 0/0. sigma -> 0 gives the
    bin of y (one-hot, not two-hot).
    """
    y, edges = _wide(targets.detach(), edges)
    y = y.clamp(edges[0], edges[-1])
    below = torch.erf((edges - y.unsqueeze(-1)) / (math.sqrt(2) * sigma))
    return (below[..., 1:] - below[..., :-1]) / (below[..., -1:] - below[..., :1])


def two_hot_probs(targets: Tensor, atoms: Tensor) -> Tensor:
    """Two neighbouring atoms share the target so that the mean is kept: [*D] -> [*D, M].

    p_i = (z_{i+1} - y) / d and p_{i+1} = (y - z_i) / d for z_i <= y <= z_{i+1}, atoms [M] evenly spaced by d; y is
    clamped to the atoms first. The projection of a point mass, so sum_i p_i z_i = y.
    """
    y, atoms = _wide(targets.detach(), atoms)
    return _triangles(y.clamp(atoms[0], atoms[-1]).unsqueeze(-1), atoms).squeeze(-2)


def project_probs(probs: Tensor, positions: Tensor, atoms: Tensor) -> Tensor:
    """Distribution on moved atoms, brought back to `atoms` (C51, algorithm 1): probs, positions [*D, M] -> [*D, M].

    p_i = sum_j q_j max(0, 1 - |clip(x_j) - z_i| / d). Keeps the mass, and the mean of what is not clipped.
    """
    probs, positions, atoms = _wide(probs.detach(), positions.detach(), atoms)
    return (probs.unsqueeze(-1) * _triangles(positions.clamp(atoms[0], atoms[-1]), atoms)).sum(dim=-2)


def categorical_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """-sum_i p_i log softmax(logits)_i in nats, [*D, M] -> [*D]; dL/dlogits = softmax(logits) - p.

    |gradient|_1 <= 2 whatever the error. At best it is the entropy of the target, not 0.
    """
    logits, target = _wide(logits, target.detach())
    return -(target * logits.log_softmax(dim=-1)).sum(dim=-1)


def distribution_entropy(probs: Tensor) -> Tensor:
    """-sum_i p_i log p_i in nats, [*D, M] -> [*D], 0 log 0 = 0: the floor of the cross-entropy with target probs."""
    return torch.special.entr(*_wide(probs)).sum(dim=-1)


def expected_value(logits: Tensor, centres: Tensor) -> Tensor:
    """sum_i softmax(logits)_i z_i, [*D, M] -> [*D], gradient through the logits."""
    logits, centres = _wide(logits, centres)
    return logits.softmax(dim=-1) @ centres


def _triangles(x: Tensor, atoms: Tensor) -> Tensor:
    """max(0, 1 - |x - z_i| / d) for every x and every atom: [*D, J] -> [*D, J, M]."""
    spacing = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    return (1 - (x.unsqueeze(-1) - atoms).abs() / spacing).clamp(min=0)


def _wide(*tensors: Tensor) -> list[Tensor]:
    """In their common type, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return [tensor.to(dtype) for tensor in tensors]
