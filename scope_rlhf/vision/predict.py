"""What a classifier says of images."""

import contextlib
import warnings

import numpy as np
import torch
from torch import Tensor

from scope_rlhf.vision.data import ImageData, evaluation_batches
from scope_rlhf.vision.networks import Classifier


@torch.no_grad()
def predict_log_probs(
    classifier: Classifier,
    data: ImageData,
    positions: np.ndarray,
    *,
    image_size: int,
    batch_size: int = 128,
    bf16: bool = False,
) -> Tensor:
    """log softmax [N, K] float32 of the images at these positions, in order, on the classifier's device.

    The classifier is in evaluation mode afterwards; no gradient. bf16: autocast in the network.
    """
    device = classifier.mean.device
    context = torch.autocast(device.type, torch.bfloat16) if bf16 else contextlib.nullcontext()
    classifier.eval()
    rows = []
    with context:
        for images, _ in evaluation_batches(data, positions, image_size, batch_size):
            rows.append(torch.log_softmax(classifier(images.to(device)), dim=-1))
    log_probs = torch.cat(rows)
    if broken := int((~log_probs.isfinite()).any(dim=1).sum()):
        warnings.warn(
            f"{broken} of {len(positions)} images have logits that are NaN or infinite in evaluation; after few "
            "updates the running statistics of batch normalisation are not yet those of the data.",
            stacklevel=2,
        )
    return log_probs
