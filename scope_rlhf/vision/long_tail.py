"""Remedies against imbalanced classes, beside which an objective is measured. Each goes with every objective.

A remedy changes what the objective is given: the logits that make the log-probs (training only), a factor on the loss
of each image, or how often an image is drawn. n_k is the number of training images of class k, K that of classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class LongTailMethod:
    """No remedy: logits, losses and sampling as they are."""

    cosine_head: ClassVar[bool] = False

    def adjust(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        """Logits [B, K] as the loss sees them; gradient through the logits."""
        return logits

    def class_weights(self, counts: Tensor, progress: float) -> Tensor | None:
        """Factor on the loss of an image of each class, [K], mean 1; None for 1. progress: share of the epochs done."""
        return None

    def sampling_weights(self, counts: Tensor) -> Tensor | None:
        """How often an image of each class is drawn, [K], up to a factor; None: each image once an epoch."""
        return None


@dataclass(frozen=True, kw_only=True)
class ClassBalanced(LongTailMethod):
    """w_k proportional to (1 - beta) / (1 - beta^n_k), sum_k w_k = K (Cui et al., arXiv 1901.05555): the loss of
    an image is multiplied by it. beta 0 is no weight, beta -> 1 is 1 / n_k.
    """

    beta: float = 0.9999

    def __post_init__(self) -> None:
        _check("class_balanced", "beta", self.beta, 0, 1, open_high=True)

    def class_weights(self, counts: Tensor, progress: float) -> Tensor:
        return effective_number_weights(counts, self.beta)


@dataclass(frozen=True, kw_only=True)
class LogitAdjustment(LongTailMethod):
    """log-probs of z_k + tau log(n_k / n) in training, of z_k in evaluation (Menon et al., arXiv 2007.07314)."""

    tau: float = 1.0

    def __post_init__(self) -> None:
        _check("logit_adjustment", "tau", self.tau, 0, float("inf"))

    def adjust(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        return logits + self.tau * (counts.to(logits.dtype) / counts.sum()).log()


@dataclass(frozen=True, kw_only=True)
class BalancedSoftmax(LongTailMethod):
    """log-probs n_k e^(z_k) / sum_j n_j e^(z_j) in training (Ren et al., arXiv 2007.10740): with cross-entropy
    it is logit_adjustment at tau 1, which the tests hold.
    """

    def adjust(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        return logits + counts.to(logits.dtype).log()


@dataclass(frozen=True, kw_only=True)
class LDAM(LongTailMethod):
    """Label-distribution-aware margins, with deferred re-weighting (Cao et al., arXiv 1906.07413).

    The head is a cosine: z_k = scale cos(w_k, x). The label's logit becomes scale (cos - m_y) with m_k proportional to
    n_k^(-1/4) and the largest of them max_margin. From the share drw_start of the epochs on, losses have the weights of
    class_balanced with `beta`; drw_start 1 is LDAM alone. Defaults are the authors' (160 of 200 epochs).
    """

    max_margin: float = 0.5
    scale: float = 30.0
    drw_start: float = 0.8
    beta: float = 0.9999

    cosine_head: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check("ldam_drw", "max_margin", self.max_margin, 0, 2)
        _check("ldam_drw", "scale", self.scale, 0, float("inf"), open_low=True)
        _check("ldam_drw", "drw_start", self.drw_start, 0, 1)
        _check("ldam_drw", "beta", self.beta, 0, 1, open_high=True)

    def adjust(self, logits: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
        margins = counts.to(logits.dtype) ** -0.25
        margins = margins * (self.max_margin / margins.max())
        return logits.scatter_add(1, labels[:, None], -self.scale * margins[labels][:, None])

    def class_weights(self, counts: Tensor, progress: float) -> Tensor | None:
        return effective_number_weights(counts, self.beta) if progress >= self.drw_start else None


@dataclass(frozen=True, kw_only=True)
class BalancedSampling(LongTailMethod):
    """Images are drawn with replacement, those of class k with probability proportional to n_k^(-power): power 1 draws
    the classes alike (class-balanced sampling, as in Kang et al., arXiv 1910.09217, eq. 1 with q = 1 - power).
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        _check("balanced_sampling", "power", self.power, 0, 1)

    def sampling_weights(self, counts: Tensor) -> Tensor:
        return counts.double() ** -self.power


METHODS: Mapping[str, type[LongTailMethod]] = {
    "none": LongTailMethod,
    "class_balanced": ClassBalanced,
    "logit_adjustment": LogitAdjustment,
    "balanced_softmax": BalancedSoftmax,
    "ldam_drw": LDAM,
    "balanced_sampling": BalancedSampling,
}


def make_method(name: str, kwargs: Mapping[str, Any] | None = None) -> LongTailMethod:
    """The remedy of that name. ValueError for an unknown name or parameter, or a value out of range."""
    if name not in METHODS:
        raise ValueError(f"long_tail {name!r} is unknown; valid: {', '.join(METHODS)}; set --long_tail.")
    valid = [field.name for field in fields(METHODS[name])]
    for key in kwargs or {}:
        if key not in valid:
            listed = f"valid: {', '.join(valid)}" if valid else "it takes none"
            raise ValueError(f"long_tail {name} has no parameter {key!r}; {listed}; set --long_tail_kwargs.")
    return METHODS[name](**(kwargs or {}))


def check_method(name: str, kwargs: Any) -> None:
    """Raise what make_method raises."""
    if name in METHODS:  # an unknown one is told with the other choices
        make_method(name, kwargs)


def effective_number_weights(counts: Tensor, beta: float) -> Tensor:
    """(1 - beta) / (1 - beta^n_k), scaled to mean 1: [K] float32. In float64 on the CPU, since beta^n is close to 1 and
    not every device has float64.
    """
    weights = (1 - beta) / (1 - beta ** counts.cpu().double())
    return (weights * (len(weights) / weights.sum())).float().to(counts.device)


def _check(
    method: str, name: str, value: Any, low: float, high: float, open_low: bool = False, open_high: bool = False
) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = number and low <= value <= high and not (open_low and value == low) and not (open_high and value == high)
    if not inside or value == float("inf"):
        bounds = f"{'>' if open_low else '>='} {low:g} and {'<' if open_high else '<='} {high:g}"
        raise ValueError(
            f"long_tail {method}: {name} must be a number {bounds}, got {value!r}; set it in --long_tail_kwargs."
        )
