"""Names of models: those that ship with the package, local folders, Hub repositories; errors where none fits."""

import os
from pathlib import Path

from scope_rlhf.hub import EMBEDDED_PREFIX

WEIGHTS_FOLDER = Path(__file__).parent / "weights"
# Public name -> folder below WEIGHTS_FOLDER.
EMBEDDED_MODELS = {
    "embedded/reviews-gpt2": "reviews_gpt2",
    "embedded/documentation-gpt2": "documentation_gpt2",
    "embedded/sentiment-reward": "sentiment_reward",
    "embedded/sentiment-judge": "sentiment_judge",
}
MODEL_FILES = ("config.json", "adapter_config.json")


def is_model_folder(path: str | Path) -> bool:
    """Whether the folder holds a model or an adapter."""
    return any((Path(path) / name).is_file() for name in MODEL_FILES)


def resolve_model_path(name_or_path: str, setting: str) -> str:
    """What `from_pretrained` takes for this name: an embedded model's folder, a local folder, or the Hub name as given.

    setting: where the user set the name (such as `--model_name_or_path`); errors begin with it. ValueError for an
    unknown embedded name, an existing path that holds no model, and a name that can only be a path but does not exist.
    """
    if name_or_path in EMBEDDED_MODELS:
        folder = WEIGHTS_FOLDER / EMBEDDED_MODELS[name_or_path]
        if is_model_folder(folder):
            return str(folder)
        raise ValueError(
            f"{setting}={name_or_path!r} names an embedded model, but this installation has no {folder}. "
            "Reinstall scope-rlhf, or give a local model folder or a Hub name."
        )
    embedded = ", ".join(EMBEDDED_MODELS)
    if name_or_path.startswith(EMBEDDED_PREFIX):
        raise ValueError(f"{setting}={name_or_path!r} is no embedded model. Embedded models: {embedded}.")
    path = Path(name_or_path).expanduser()
    if name_or_path and is_model_folder(path):
        return str(path)
    separators = (os.sep, os.altsep or os.sep)
    path_like = name_or_path.startswith((".", "~", *separators)) or sum(map(name_or_path.count, set(separators))) > 1
    if name_or_path and not path.exists() and not path_like:
        return name_or_path
    found = "is empty" if not name_or_path else "is not a model folder" if path.exists() else "does not exist"
    raise ValueError(
        f"{setting}={name_or_path!r} {found}: expected a folder that contains {' or '.join(MODEL_FILES)}, a Hub name "
        f"such as gpt2 or lvwerra/gpt2-imdb, or an embedded model ({embedded})."
    )
