"""Settings of the classification experiments: command line over --config over the defaults of the data."""

from collections.abc import Sequence
from typing import Any

from scope_rlhf.experiments.command_line import parse_settings, read_config, spell, take_config, value_of
from scope_rlhf.vision.config import VisionConfig

# The learning rate is the best of 3e-4, 1e-3, 3e-3 and 5e-3 for cross-entropy on the seeds 101 to 104, which no table
# has; every objective has it.
DIGITS: dict[str, Any] = {
    "network": "cnn",
    "image_size": 8,
    "imbalance_ratio": 50.0,
    "num_train_epochs": 40,
    "per_device_train_batch_size": 32,
    "learning_rate": 3e-3,
}


def parse_vision(argv: Sequence[str], prog: str | None = None) -> VisionConfig:
    """ValueError for an unknown flag or key, and for settings that cannot work."""
    argv, config_file = take_config(spell(argv))
    config = read_config(config_file) if config_file else {}
    return settings_of(argv, config, config_file, prog)


def settings_of(
    argv: Sequence[str], config: dict[str, Any], config_file: str | None, prog: str | None = None
) -> VisionConfig:
    """The settings of a command line over a file's: an objective or remedy on the command line leaves the parameters of
    the file's one behind.
    """
    config = dict(config)
    for name in ("objective", "long_tail"):
        named = value_of(argv, f"--{name}")
        if named is not None and named != config.get(name):
            config.pop(f"{name}_kwargs", None)
    data = value_of(argv, "--dataset_name") or config.get("dataset_name") or "digits"
    defaults = DIGITS if data == "digits" else {}
    (settings,) = parse_settings((VisionConfig,), defaults, argv, config, config_file, prog)
    return settings
