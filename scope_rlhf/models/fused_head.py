"""Log-probs of given tokens, and the entropy, from hidden states and a vocabulary head, without keeping the logits.

With z = cap tanh(s y / cap) / temperature, or s y / temperature without a softcap, y = W h + b and p = softmax(z):

    log p_i   = z_i[t_i] - logsumexp(z_i)                d log p_i / d y_j = c_j (1[j = t_i] - p_j)
    entropy_i = -sum_j p_j log p_j                       d entropy_i / d y_j = -c_j p_j (log p_j + entropy_i)

where c_j = s / temperature, times 1 - tanh^2 with a softcap. Each output is one scalar per token.

`jacobian`, for a frozen head: the gradient of a token's scalar to its hidden state is one vector of the hidden size,
c (W[t_i] - E_p[W]), which the forward has at hand. It is kept, nothing is recomputed: two products with the head in
place of three. The entropy as a metric comes with it: logsumexp - (h . E_p[W] + E_p[b]) s / temperature, except with a
softcap or with products in bfloat16, which are too coarse for that: there it comes from p itself. Entropy with a
gradient costs one product more.
`recompute`, for a trainable head: the forward keeps a number per token, the backward makes the logits again.
`dense`: all logits at once by autograd; the formula that the others are checked against.

Rows are taken in chunks. Statistics are in float32 at least, whatever the dtype of the products.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from trl.trainer.utils import maybe_gather_lm_head_ctx

from scope_rlhf.models.products import multiply, takes_onednn

HEAD_IMPLS = ("auto", "jacobian", "recompute", "trl", "dense")
ENTROPIES = ("none", "metric", "gradient")
# Logits of a chunk: 256 rows of GPT-2's vocabulary on a CPU, 2048 on a GPU.
CHUNK_LOGITS = {"cpu": 256 * 51_200}
CHUNK_LOGITS_ELSEWHERE = 2048 * 51_200


class Transform(NamedTuple):
    """What lies between the product with the head and the softmax. softcap: None for none."""

    temperature: float = 1.0
    softcap: float | None = None
    logit_scale: float = 1.0


def head_log_probs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    softcap: float | None = None,
    logit_scale: float = 1.0,
    head_impl: str = "auto",
    entropy: str = "metric",
) -> tuple[Tensor, Tensor | None]:
    """(log_probs [N], entropy [N] or None) of targets [N] (token ids) under hidden [N, D], weight [V, D], bias [V].

    head_impl: auto is jacobian for a frozen head and recompute for a trainable one. entropy: "none", "metric" (no
    gradient) or "gradient". Gradient flows to hidden and, except with jacobian, to weight and bias; first order only.
    The products are in autocast's dtype where that is on, else in hidden's; results are float32 (float64 for float64).

    ValueError for an unknown head_impl or entropy, and for jacobian with a head that needs a gradient.
    """
    if entropy not in ENTROPIES:
        raise ValueError(f"entropy must be one of {', '.join(ENTROPIES)}, got {entropy!r}")
    trainable = weight.requires_grad or (bias is not None and bias.requires_grad)
    if head_impl == "auto":
        head_impl = "recompute" if trainable else "jacobian"
    transform = Transform(temperature, softcap, logit_scale)
    if head_impl == "dense":
        return logits_log_probs(torch.nn.functional.linear(hidden, weight, bias), targets, transform, entropy)
    graph = torch.is_grad_enabled()
    if head_impl == "recompute":
        outputs: Any = _Recompute.apply(hidden, weight, bias, targets, transform, entropy)
    elif head_impl == "jacobian":
        if trainable and graph:
            raise ValueError(
                "head_impl='jacobian' is for a frozen head, and this one is trained: set --head_impl recompute or auto."
            )
        needed = graph and hidden.requires_grad
        outputs = _Jacobian.apply(hidden, weight, bias, targets, transform, entropy, needed)
    else:
        raise ValueError(f"head_impl must be one of auto, jacobian, recompute, dense, got {head_impl!r}")
    return outputs


def logits_log_probs(
    logits: Tensor, targets: Tensor, transform: Transform, entropy: str
) -> tuple[Tensor, Tensor | None]:
    """(log_probs [N], entropy [N] or None) from logits [N, V] of the head itself, by autograd."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32)) * transform.logit_scale
    if transform.softcap is not None:
        z = transform.softcap * torch.tanh(z / transform.softcap)
    z = z / transform.temperature
    # Not log_softmax, whose long float32 sums on a CPU are off by 1e-5 for 50,000 tokens.
    log_sum = z.logsumexp(-1)
    log_probs = z.gather(1, targets.unsqueeze(1)).squeeze(1) - log_sum
    if entropy == "none":
        return log_probs, None
    with torch.set_grad_enabled(torch.is_grad_enabled() and entropy == "gradient"):
        log_p = z - log_sum.unsqueeze(1)
        p = log_p.exp()
        return log_probs, -(p * log_p.masked_fill(p == 0, 0.0)).sum(-1)  # 0 * -inf has no value, nor a gradient


def _product_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _multiply(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b into `out`, whose dtype may be wider: CUDA then does not round in between."""
    if out.dtype == a.dtype:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=out.dtype, out=out)
    return out.copy_(torch.mm(a, b))


class _Logits:
    """Tempered logits of a chunk of rows after another, in one buffer.

    Called with rows [n, D] of hidden, gives (z [n, V], c [n, V] or a number); z may be written to, and does not outlive
    the next call. All products are outside autocast, in dtypes chosen here.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: Transform, dtype: torch.dtype):
        self.dtype, self.statistics = dtype, torch.promote_types(dtype, torch.float32)
        self.exact = self.dtype == self.statistics  # else products round more than statistics may
        self.transform = transform
        self.slope = transform.logit_scale / transform.temperature
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(self.statistics)
        vocabulary = weight.shape[0]
        room = CHUNK_LOGITS.get(hidden.device.type, CHUNK_LOGITS_ELSEWHERE) // vocabulary
        # Even chunks: a last one of a few rows would cost almost as much as a whole one.
        chunks = max(1, -(-len(hidden) // max(16, room)))
        self.rows = max(1, -(-len(hidden) // chunks))
        self.buffer = torch.empty(self.rows, vocabulary, device=hidden.device, dtype=self.statistics)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor | float]:
        z, transform = self.buffer[: len(rows)], self.transform
        _multiply(rows.to(self.dtype), self.weight.t(), z)
        if self.bias is not None:
            z.add_(self.bias)
        if transform.softcap is None:
            return (z if self.slope == 1 else z.mul_(self.slope)), self.slope
        bent = z.mul_(transform.logit_scale / transform.softcap).tanh_()
        slope = (1 - bent * bent).mul_(self.slope)
        return z.mul_(transform.softcap / transform.temperature), slope

    def expected_rows(self, p: Tensor) -> Tensor:
        """p [n, V] @ weight -> [n, D].

        By oneDNN where that is faster. The logits are not: their rounding, twice as large there, is that of log p.
        """
        p = p.to(self.dtype)
        if takes_onednn(p, self.weight.size(1)):
            return multiply(p, self.weight)
        return _multiply(p, self.weight, p.new_empty(len(p), self.weight.size(1), dtype=self.statistics))


def _softmax(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(p, logsumexp [n], sum of p [n]) of z, over which p is written.

    torch's softmax adds a row up in few long sums: over 50,000 tokens p sums to 1 within 2e-6 only. Its exact sum,
    taken after it, gives ten times as many digits of the entropy.
    """
    top, where = z.max(dim=1)
    p = torch.softmax(z, dim=1, out=z)
    total = p.sum(dim=1)
    # The largest probability is at least 1 / V, so that its logarithm is exact enough.
    return p, top + (total / p.gather(1, where.unsqueeze(1)).squeeze(1)).log(), total


def _entropy(surprise: Tensor, total: Tensor) -> Tensor:
    """Entropy [n] from the terms -p log p [n, V] of a p that sums to `total`."""
    return surprise.sum(dim=1) / total + total.log()


def _outputs(ctx: Any, log_probs: Tensor, entropies: Tensor, entropy: str) -> tuple[Tensor, Tensor | None]:
    """What both functions return; an output without a gradient gets None in their backward."""
    ctx.set_materialize_grads(False)
    if entropy == "metric":
        ctx.mark_non_differentiable(entropies)
    return log_probs, None if entropy == "none" else entropies


class _Jacobian(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, transform: Transform, entropy: str, needed: bool):  # pyright: ignore[reportIncompatibleMethodOverride]
        dtype = _product_dtype(hidden)
        with torch.autocast(hidden.device.type, enabled=False):
            logits = _Logits(hidden, weight, bias, transform, dtype)
            log_probs = hidden.new_empty(len(hidden), dtype=logits.statistics)
            entropies = torch.empty_like(log_probs)
            jacobian = torch.empty_like(hidden) if needed else None
            entropy_jacobian = torch.empty_like(hidden) if needed and entropy == "gradient" else None
            # Finite, because 0 * -inf has no value: heads are padded with biases of -inf.
            low = torch.finfo(logits.statistics).min
            bias = None if logits.bias is None else logits.bias.clamp(min=low)
            for start in range(0, len(hidden), logits.rows):
                part = slice(start, start + logits.rows)
                rows, chosen = hidden[part], targets[part]
                z, slope = logits(rows)
                picked = z.gather(1, chosen.unsqueeze(1)).squeeze(1)
                p, log_sum, total = _softmax(z)
                log_probs[part] = picked - log_sum
                steep = isinstance(slope, Tensor)
                mean = None
                if jacobian is not None:
                    mean = logits.expected_rows(p * slope if steep else p).div_(total.unsqueeze(1))
                    own = logits.weight[chosen].to(mean.dtype)
                    own = own * slope.gather(1, chosen.unsqueeze(1)) if isinstance(slope, Tensor) else own
                    jacobian[part] = own - mean if steep else (own - mean).mul_(slope)
                if entropy == "metric" and mean is not None and not steep and logits.exact:
                    centre = (rows.to(mean.dtype) * mean).sum(dim=1)
                    centre = centre if bias is None else centre + p @ bias / total
                    entropies[part] = log_sum - slope * centre
                elif entropy != "none":
                    surprise = torch.special.entr(p, out=None if entropy_jacobian is not None else p)
                    entropies[part] = _entropy(surprise, total)
                    if entropy_jacobian is not None:  # -p (log p + H)
                        surprise.addcmul_(p, entropies[part].unsqueeze(1), value=-1)
                        entropy_jacobian[part] = logits.expected_rows(surprise.mul_(slope))
        ctx.save_for_backward(jacobian, entropy_jacobian)
        return _outputs(ctx, log_probs, entropies, entropy)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        total = None
        for jacobian, grad in zip(ctx.saved_tensors, grads, strict=True):
            if jacobian is not None and grad is not None:
                term = jacobian * grad.unsqueeze(1)  # in the statistics' dtype
                total = term if total is None else total.add_(term)
        jacobian = ctx.saved_tensors[0]
        total = None if total is None or jacobian is None else total.to(jacobian.dtype)
        return total, None, None, None, None, None, None


class _Recompute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, transform: Transform, entropy: str):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.dtype, ctx.transform, ctx.entropy = _product_dtype(hidden), transform, entropy
        with torch.autocast(hidden.device.type, enabled=False):
            logits = _Logits(hidden, weight, bias, transform, ctx.dtype)
            log_probs = hidden.new_empty(len(hidden), dtype=logits.statistics)
            log_sums, entropies = torch.empty_like(log_probs), torch.empty_like(log_probs)
            for start in range(0, len(hidden), logits.rows):
                part = slice(start, start + logits.rows)
                z, _ = logits(hidden[part])
                picked = z.gather(1, targets[part].unsqueeze(1)).squeeze(1)
                p, log_sums[part], total = _softmax(z)
                log_probs[part] = picked - log_sums[part]
                if entropy != "none":
                    entropies[part] = _entropy(torch.special.entr(p, out=p), total)
        ctx.save_for_backward(hidden, weight, bias, targets, log_sums, entropies)
        return _outputs(ctx, log_probs, entropies, entropy)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias, targets, log_sums, entropies = ctx.saved_tensors
        for_hidden, for_weight, for_bias = ctx.needs_input_grad[:3]
        grad, entropy_grad = (*grads, None)[:2]
        # Under ZeRO-3 the head was given back after the forward.
        with maybe_gather_lm_head_ctx(weight, bias), torch.autocast(hidden.device.type, enabled=False):
            logits = _Logits(hidden, weight, bias, ctx.transform, ctx.dtype)
            wide = logits.statistics
            grad_hidden = torch.empty_like(hidden) if for_hidden else None
            # Summed over the chunks in float32, because rounding each sum to bfloat16 biases training.
            grad_weight = torch.zeros_like(weight, dtype=wide) if for_weight else None
            grad_bias = torch.zeros_like(bias, dtype=wide) if for_bias else None
            for start in range(0, len(hidden), logits.rows):
                part = slice(start, start + logits.rows)
                z, slope = logits(hidden[part])
                p = z.sub_(log_sums[part].unsqueeze(1)).exp_()
                more = None
                if entropy_grad is not None and ctx.entropy == "gradient":
                    more = torch.special.entr(p).sub_(p * entropies[part].unsqueeze(1))
                    more.mul_(entropy_grad[part].to(wide).unsqueeze(1))
                own = p.new_zeros(len(p), 1) if grad is None else grad[part].to(wide).unsqueeze(1)
                to_logits = p.mul_(-own).scatter_add_(1, targets[part].unsqueeze(1), own)
                to_logits = to_logits if more is None else to_logits.add_(more)
                to_logits.mul_(slope)
                if grad_bias is not None:
                    grad_bias += to_logits.sum(dim=0)
                if grad_hidden is not None:
                    grad_hidden[part] = logits.expected_rows(to_logits)
                if grad_weight is not None:
                    rows = hidden[part].to(ctx.dtype)
                    if logits.exact:
                        grad_weight.addmm_(to_logits.t(), rows)
                    else:
                        grad_weight += _multiply(
                            to_logits.to(ctx.dtype).t(), rows, grad_weight.new_empty(grad_weight.shape)
                        )
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(bias.dtype),
            None,
            None,
            None,
        )
