"""Classification, class by class: precision and recall with their spread over classes, many / medium / few shots,
calibration. K classes, N images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# Training images of a class: many has more than the first, few fewer than the second (Liu et al., arXiv 1904.05160).
MANY, FEW = 100, 20


@dataclass(frozen=True)
class PerClass:
    """Each [K]. precision of a class that is never predicted, and recall of one without images, are 0."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray
    predicted: np.ndarray


def per_class_scores(labels: Sequence[int] | np.ndarray, predictions: Sequence[int] | np.ndarray, k: int) -> PerClass:
    """Precision, recall and F1 of each class by scikit-learn; support and predicted count true and predicted images.

    Raises:
        ValueError: no images, other lengths, or a class outside 0 ... k - 1. ImportError without scikit-learn.
    """
    true, chosen = _classes("labels", labels, k), _classes("predictions", predictions, k)
    if len(true) != len(chosen) or not len(true):
        raise ValueError(f"labels and predictions must be of the same images, got {len(true)} and {len(chosen)}")
    try:
        from sklearn.metrics import precision_recall_fscore_support
    except ImportError as error:
        raise ImportError(
            'precision and recall need scikit-learn; install the extra: pip install "scope-rlhf[vision]".'
        ) from error
    scores: Any = precision_recall_fscore_support(true, chosen, labels=np.arange(k), zero_division=0)  # type: ignore
    return PerClass(*scores[:3], support=scores[3], predicted=np.bincount(chosen, minlength=k))


def classification_metrics(
    labels: Sequence[int] | np.ndarray, log_probs: np.ndarray, train_counts: Sequence[int] | np.ndarray
) -> dict[str, float]:
    """What a table says of a classifier: log_probs [N, K] of its images, train_counts [K].

    accuracy; macro_precision and precision_std (over classes, the table of arXiv 2308.04024; population standard
    deviation); macro_recall = balanced_accuracy and recall_std; macro_f1; never_predicted classes; loss = mean -log p
    of the label; calibration_error; accuracy_many, _medium, _few: mean recall of the classes with more than 100, 20 to
    100 and fewer than 20 training images, where there are any. log_probs of NaN make loss and calibration_error NaN,
    and their image is counted as class 0.
    """
    counts = np.asarray(train_counts)
    true = _classes("labels", labels, len(counts))
    log_probs = np.asarray(log_probs, dtype=np.float64)
    if log_probs.shape != (len(true), len(counts)):
        raise ValueError(f"log_probs has shape {log_probs.shape}, expected [{len(true)}, {len(counts)}]")
    predictions = log_probs.argmax(axis=1)
    scores = per_class_scores(true, predictions, len(counts))
    present = scores.support > 0
    found = {
        "accuracy": float((predictions == true).mean()),
        "balanced_accuracy": float(scores.recall[present].mean()),
        "macro_precision": float(scores.precision[present].mean()),
        "precision_std": float(scores.precision[present].std()),
        "macro_recall": float(scores.recall[present].mean()),
        "recall_std": float(scores.recall[present].std()),
        "macro_f1": float(scores.f1[present].mean()),
        "never_predicted": int((scores.predicted[present] == 0).sum()),
        "loss": float(-log_probs[np.arange(len(true)), true].mean()),
        "calibration_error": float("nan"),
    }
    if np.isfinite(log_probs.max(axis=1)).all():
        found["calibration_error"] = expected_calibration_error(np.exp(log_probs.max(axis=1)), predictions == true)
    groups = {"many": counts > MANY, "medium": (counts >= FEW) & (counts <= MANY), "few": counts < FEW}
    for name, members in groups.items():
        if (members & present).any():
            found[f"accuracy_{name}"] = float(scores.recall[members & present].mean())
    return found


def expected_calibration_error(
    confidences: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray, bins: int = 15
) -> float:
    """sum over bins of (n_b / N) |accuracy_b - mean confidence_b|, bins of equal width on [0, 1] (Guo et al., arXiv
    1706.04599, eq. 3). confidences: the largest probability of each image.
    """
    confidence, right = np.asarray(confidences, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    if confidence.shape != right.shape or not confidence.size:
        raise ValueError(f"confidences and correct must be of the same images, got {confidence.shape}, {right.shape}")
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / confidence.size)


def confusion_matrix(labels: Sequence[int] | np.ndarray, predictions: Sequence[int] | np.ndarray, k: int) -> np.ndarray:
    """Counts [K, K], rows the true classes, columns the predicted ones."""
    true, chosen = _classes("labels", labels, k), _classes("predictions", predictions, k)
    return np.bincount(true * k + chosen, minlength=k * k).reshape(k, k)


def _classes(name: str, values: Any, k: int) -> np.ndarray:
    column = np.asarray(values)
    if column.ndim != 1 or (column.size and (column.min() < 0 or column.max() >= k)):
        raise ValueError(f"{name} must be one class from 0 to {k - 1} per image, got shape {column.shape}")
    return column.astype(np.int64)
