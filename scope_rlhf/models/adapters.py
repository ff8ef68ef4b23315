"""The model under PEFT."""

from typing import Any


def base_of(model: Any) -> Any:
    """The model without PEFT around it, with its adapters in its layers; a model without adapters itself."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model
