"""A classifier on held-out images: class by class, with the confusions of its worst classes. Writes evaluation.json and
predictions.npz of a run folder.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scope_rlhf.metrics import classification_metrics, confusion_matrix, per_class_scores, wilson_interval
from scope_rlhf.runtime.run_folder import RunFolder
from scope_rlhf.vision.config import VisionConfig
from scope_rlhf.vision.data import ImageData
from scope_rlhf.vision.networks import Classifier, load_classifier
from scope_rlhf.vision.predict import predict_log_probs

WORST = 12


def evaluate_run(run_dir: str | Path, config: VisionConfig, data: ImageData, part: str = "test") -> dict[str, Any]:
    """Measure the best model of a run on a part of its split; the record that is written to evaluation.json.

    ValueError where the run folder holds no model.
    """
    run = RunFolder(run_dir)
    classifier, record = load_classifier(run.path / "model")
    if record["classes"] != data.classes:
        raise ValueError(
            f"{run.path / 'model'} has {len(record['classes'])} classes, {data.source.name} has {len(data.classes)}; "
            "set --dataset_name to the data it was trained on."
        )
    positions = data.split.part(part)
    log_probs = evaluate_classifier(classifier, data, positions, config)
    labels = data.labels[positions]
    found = {"part": part, "best_epoch": record.get("epoch")}
    found |= describe_classification(labels, log_probs, data.classes, data.counts)
    np.savez_compressed(run.path / "predictions.npz", labels=labels, log_probs=log_probs.astype(np.float16))
    run.write_evaluation(found)
    return found


def evaluate_classifier(
    classifier: Classifier, data: ImageData, positions: np.ndarray, config: VisionConfig
) -> np.ndarray:
    """log-probabilities [N, K] of the images, on the accelerator where there is one."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    log_probs = predict_log_probs(
        classifier.to(device), data, positions, image_size=config.image_size,
        batch_size=config.per_device_eval_batch_size, bf16=config.bf16,
    )  # fmt: skip
    return log_probs.float().cpu().numpy()


def describe_classification(
    labels: np.ndarray, log_probs: np.ndarray, classes: list[str], train_counts: np.ndarray
) -> dict[str, Any]:
    """Metrics (classification_metrics), Wilson's interval of the accuracy, scores of every class, and the confusion
    matrix of the worst classes by F1 with those they are mostly taken for, at most WORST.
    """
    k, predictions = len(classes), log_probs.argmax(axis=1)
    scores = per_class_scores(labels, predictions, k)
    interval = wilson_interval(int((predictions == labels).sum()), len(labels))
    matrix = confusion_matrix(labels, predictions, k)
    shown = worst_classes(matrix, scores.f1, scores.support)
    return {
        "task": "classification",
        "images": len(labels),
        "metrics": classification_metrics(labels, log_probs, train_counts),
        "accuracy_interval": {"low": interval.low, "high": interval.high},
        "per_class": [
            {
                "class": classes[i],
                "train_images": int(train_counts[i]),
                "test_images": int(scores.support[i]),
                "predicted": int(scores.predicted[i]),
                "precision": float(scores.precision[i]),
                "recall": float(scores.recall[i]),
                "f1": float(scores.f1[i]),
            }
            for i in range(k)
        ],
        "confusion": {"classes": [classes[i] for i in shown], "counts": matrix[np.ix_(shown, shown)].tolist()},
    }


def worst_classes(matrix: np.ndarray, f1: np.ndarray, support: np.ndarray, most: int = WORST) -> list[int]:
    """The classes to show: by ascending F1, each with the one it is mostly taken for, until `most`; in their order."""
    if len(f1) <= most:
        return list(range(len(f1)))
    chosen: list[int] = []
    for i in np.argsort(f1, kind="stable"):
        if not support[i]:
            continue
        wrong = matrix[i].copy()
        wrong[i] = 0
        for member in (int(i), int(wrong.argmax())) if wrong.any() else (int(i),):
            if member not in chosen and len(chosen) < most:
                chosen.append(member)
        if len(chosen) == most:
            break
    return sorted(chosen)
