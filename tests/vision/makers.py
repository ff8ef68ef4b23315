"""Short runs on digits, in this process."""

from scope_rlhf.vision.config import VisionConfig
from scope_rlhf.vision.session import Session

DIGITS = {
    "network": "cnn",
    "image_size": 8,
    "imbalance_ratio": 20.0,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "disable_tqdm": True,
}


def make_config(folder, **more):
    return VisionConfig(output_dir=None if folder is None else str(folder), **{**DIGITS, **more})


def started(folder, **more):
    """A session whose network, data and optimizer are made; without a run folder."""
    session = Session(make_config(folder, **more))
    session.start()
    return session
