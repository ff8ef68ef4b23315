"""The vocabulary head alone: forward and backward of log p of one token in each row, with the entropy as a metric.

- trl: ChunkedLogProbFunction as TRL's add_fused_lm_head calls it, all rows.
- dense: plain logits, and log p in float32 as TRL had it up to 1.12: the token's logit minus logsumexp. Not torch's
  log_softmax, for the entropy neither: on a CPU in float32 it is itself off by 1.5e-5 in log p where the vocabulary has
  50,257 tokens, and by 6e-5 in the entropy of 150,000.
- recompute, jacobian: ours.
- jacobian, oneDNN off: the second product by torch too, where ours is oneDNN's (models/products.py).
- floor: two products in chunks, those of `jacobian`, into reused buffers: the least that log p and its gradient need.

Logits have a standard deviation of 3 and the row's token stands above its fellows, so log p is about that of a language
model. Before anything is timed, all rows are compared. float32: log p to 5e-6 and entropy to 5e-5 with the float64
log-softmax of plain float32 logits, gradients to 1e-5 of their norm with plain logits in float64; `off float64` is how
far log p is from these, most of it the rounding of a float32 product, which plain logits have too. bfloat16: all with
float64, and at most twice what plain bfloat16 logits show. The floor has no result to be wrong.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from trl.trainer import utils as trl_utils

from benchmarks.speed.measure import ONEDNN_OFF, Call, Options, Row, Section, compare, offered, products_of, relative
from scope_rlhf.models.fused_head import head_log_probs
from scope_rlhf.models.products import multiply, takes_onednn

BOUNDS = {"log p": 5e-6, "entropy": 5e-5, "gradient": 1e-5, "weight gradient": 1e-5}
OFF = "jacobian" + ONEDNN_OFF
FROZEN = ("trl", "dense", "recompute", "jacobian", OFF, "floor")
TRAINED = ("trl", "dense", "recompute")
LOGIT_DEVIATION = 3.0


@dataclass(frozen=True)
class Batch:
    """hidden [N, D], weight [V, D], targets [N]; coefficients [N] of the log-probs in the loss."""

    hidden: Tensor
    weight: Tensor
    targets: Tensor
    coefficients: Tensor


@dataclass(frozen=True)
class Result:
    """log_probs, entropy [N], gradient [N, D] to the hidden states, weight_gradient [V, D] of a trained head."""

    log_probs: Tensor
    entropy: Tensor
    gradient: Tensor
    weight_gradient: Tensor | None = None


def make_batch(rows: int, vocabulary: int, width: int, options: Options, trained: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(vocabulary, width, generator=generator).mul_(LOGIT_DEVIATION * width**-0.5)
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    hidden = torch.randn(rows, width, generator=generator).add_(weight[targets])
    coefficients = torch.randn(rows, generator=generator)
    hidden, weight = (x.to(options.device, options.torch_dtype) for x in (hidden, weight))
    return Batch(hidden, weight.requires_grad_(trained), targets.to(options.device), coefficients.to(options.device))


def score_trl(batch: Batch) -> tuple[Tensor, Tensor]:
    return trl_utils._ChunkedLogProbFunction.apply(
        batch.hidden, batch.weight, None, batch.targets, 1.0, trl_utils._CHUNKED_LOGPROB_CHUNK_SIZE, None, 1.0,
        ("log_probs", "entropy"),
    )[:2]  # fmt: skip


def score_dense(batch: Batch) -> tuple[Tensor, Tensor]:
    return score_logits(batch.hidden @ batch.weight.T, batch.targets)


def score_logits(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """(log p, entropy without gradient), [N], in float32 or the dtype of float64 logits."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    log_sums = logits.logsumexp(-1)
    with torch.no_grad():  # in parts, as TRL had it: the whole would be one more copy of the logits
        parts = (part - total[:, None] for part, total in zip(logits.split(128), log_sums.split(128), strict=True))
        entropy = torch.cat([-(part.exp() * part).sum(-1) for part in parts])
    return logits.gather(-1, targets[:, None]).squeeze(-1) - log_sums, entropy


def score_ours(batch: Batch, head_impl: str) -> tuple[Tensor, Tensor | None]:
    return head_log_probs(batch.hidden, batch.weight, None, batch.targets, head_impl=head_impl, entropy="metric")


SCORES: dict[str, Callable[[Batch], tuple[Tensor, Tensor | None]]] = {
    "trl": score_trl,
    "dense": score_dense,
    "recompute": lambda batch: score_ours(batch, "recompute"),
    "jacobian": lambda batch: score_ours(batch, "jacobian"),
    OFF: lambda batch: score_ours(batch, "jacobian"),
}


def forward_and_backward(name: str, batch: Batch) -> Result:
    """Of the sum of coefficient x log p."""
    batch = replace(batch, hidden=batch.hidden.detach().requires_grad_(), weight=batch.weight)
    batch.weight.grad = None
    with products_of(name):
        log_probs, entropy = SCORES[name](batch)
        (log_probs * batch.coefficients).sum().backward()
    assert entropy is not None and batch.hidden.grad is not None
    return Result(log_probs.detach(), entropy.detach(), batch.hidden.grad, batch.weight.grad)


def multiply_twice(batch: Batch) -> None:
    """The floor."""
    rows = 2048 if batch.hidden.is_cuda else 256
    hidden, weight = batch.hidden, batch.weight.detach()
    logits, result = hidden.new_empty(min(rows, len(hidden)), len(weight)), torch.empty_like(hidden)
    for chunk, out in zip(hidden.split(rows), result.split(rows), strict=True):
        part = torch.mm(chunk, weight.T, out=logits[: len(chunk)])
        if takes_onednn(part, weight.size(1)):
            out.copy_(multiply(part, weight))
        else:
            torch.mm(part, weight, out=out)


def compute_reference(batch: Batch, chosen: Tensor | None = None) -> tuple[Result, Result]:
    """Plain logits of the chosen rows, or of all: in float64, and with log p and entropy of the batch's own logits."""
    weight = batch.weight.detach().double().requires_grad_(batch.weight.requires_grad)
    chosen = torch.arange(len(batch.hidden)) if chosen is None else chosen
    exact, plain = [], []
    for rows in chosen.to(batch.hidden.device).split(128):
        hidden, targets = batch.hidden[rows].double().requires_grad_(), batch.targets[rows]
        log_probs, entropy = score_logits(hidden @ weight.T, targets)
        (log_probs * batch.coefficients[rows]).sum().backward()
        exact.append((log_probs.detach(), entropy, hidden.grad))
        plain.append(score_logits((batch.hidden[rows] @ batch.weight.detach().T).double(), targets))
    log_probs, entropy, gradient = (torch.cat(x) for x in zip(*exact, strict=True))
    whole = Result(log_probs, entropy, gradient, weight.grad)
    log_probs, entropy = (torch.cat(x) for x in zip(*plain, strict=True))
    return whole, replace(whole, log_probs=log_probs, entropy=entropy)


def find_errors(result: Result, expected: Result) -> dict[str, float]:
    found = {
        "log p": greatest_gap(result.log_probs, expected.log_probs),
        "entropy": greatest_gap(result.entropy, expected.entropy),
        "gradient": relative(result.gradient, expected.gradient),
    }
    if expected.weight_gradient is not None:
        missing = torch.zeros_like(expected.weight_gradient)
        given = missing if result.weight_gradient is None else result.weight_gradient
        found["weight gradient"] = relative(given, expected.weight_gradient)
    return found


def greatest_gap(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max())


def compare_heads(
    suite: str, case: str, batch: Batch, names: Iterable[str], options: Options, chosen: Tensor | None = None
) -> list[Row]:
    """A row for each name, of which the chosen rows are compared. In bfloat16 plain logits are the yardstick."""
    exact, plain = compute_reference(batch, chosen)
    expected, bounds = plain, BOUNDS
    if options.dtype != "float32":
        own = find_errors(take(forward_and_backward("dense", batch), chosen), exact)
        expected, bounds = exact, {name: 2 * error + BOUNDS[name] for name, error in own.items()}
    off: dict[str, float] = {}

    def check(name: str, result: Result | None) -> dict[str, tuple[float, float]]:
        if result is None:
            return {}
        result = take(result, chosen)
        off[name] = greatest_gap(result.log_probs, exact.log_probs)
        return {each: (error, bounds[each]) for each, error in find_errors(result, expected).items()}

    rows = compare(suite, case, {name: call_of(name, batch) for name in names}, check, options)
    for row in rows:
        row.more = {"off float64": f"{off[row.variant]:.1e}"} if row.variant in off else {}
    return rows


def take(result: Result, chosen: Tensor | None) -> Result:
    """The chosen rows of a result."""
    if chosen is None:
        return result
    rows = chosen.to(result.log_probs.device)
    return Result(result.log_probs[rows], result.entropy[rows], result.gradient[rows], result.weight_gradient)


def call_of(name: str, batch: Batch) -> Call:
    return (lambda: multiply_twice(batch)) if name == "floor" else (lambda: forward_and_backward(name, batch))


def prepare(case: str, variant: str, options: Options) -> Call:
    """The call of one variant, after one with a few rows, so that what a process loads once does not count."""
    trained = case.startswith("trained")
    call_of(variant, make_batch(8, 64, 32, options, trained))()
    return call_of(variant, make_batch(options.rows, options.vocabulary, options.width, options, trained))


def run(options: Options) -> list[Section]:
    sections = []
    for trained, names in ((False, FROZEN), (True, TRAINED)):
        batch = make_batch(options.rows, options.vocabulary, options.width, options, trained)
        case = f"{'trained' if trained else 'frozen'} head, N {options.rows}, V {options.vocabulary}, D {options.width}"
        rows = compare_heads("head", case, batch, offered(names, options), options)
        title = f"forward and backward, {case}, {options.dtype}"
        sections.append(Section(title, rows, floor=None if trained else "floor"))
    return sections
