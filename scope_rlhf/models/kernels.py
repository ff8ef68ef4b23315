"""The kernels that a model's layers run on, which leave its weights, their names and its config as they are."""

from torch import nn
from transformers.activations import NewGELUActivation

from scope_rlhf.models.products import use_fast_products


def use_fast_kernels(model: nn.Module) -> None:
    """GELU in one kernel, and float32 products of linear layers by oneDNN where that is faster (models.products)."""
    fuse_gelu(model)
    use_fast_products(model)


def fuse_gelu(model: nn.Module) -> int:
    """Put torch's GELU in place of transformers' `gelu_new`, that of GPT-2 and GPT-J; how many there were.

    The formula is the same, 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), in one pass over the tensor in place of
    eight; values differ by float32 rounding, 1e-7 of x.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is NewGELUActivation
    ]
    for parent, name in places:
        setattr(parent, name, nn.GELU(approximate="tanh"))
    return len(places)
