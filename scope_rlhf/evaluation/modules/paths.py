"""Where the local modules lie. They need no network: each calls a function of scope_rlhf.metrics."""

from pathlib import Path

METRIC_MODULES = (
    "distinct_n",
    "length_controlled_win_rate",
    "paired_difference",
    "preference_accuracy",
    "rouge",
    "win_rate",
)


def metric_path(name: str) -> str:
    """What evaluate.load takes for a metric of METRIC_MODULES; ValueError for another name."""
    if name not in METRIC_MODULES:
        raise ValueError(f"unknown metric {name!r}; valid names: {', '.join(METRIC_MODULES)}")
    return str(Path(__file__).parent / name / f"{name}.py")
