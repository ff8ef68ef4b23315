"""float32 matrix products by oneDNN on the CPUs where torch's own leave half of the machine idle.

On x86 torch hands float32 products to MKL, which keeps its AVX-512 kernels for Intel's processors: on an AMD EPYC of
2025 (Zen 5) a core makes 85 GFLOP/s by its others, 200 by oneDNN, which torch has for convolutions and bfloat16. The
op is the one that torch's compiler emits for a linear layer; torch has no setting that chooses it. oneDNN rounds a
product about one and a half times as much (root mean square, K 768): one long sum where MKL adds up two or three.
"""

import functools
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

# Multiplications below which the longer way to oneDNN, 15 microseconds, is not earned back; and rows: with one or two,
# reading the weight is all the work, at which oneDNN is slower.
LEAST_WORK, LEAST_ROWS = 2**20, 4


@functools.cache
def onednn_is_faster() -> bool:
    """Whether this is an x86 CPU with AVX-512 of another maker than Intel, and torch has oneDNN's op.

    Not measured: two runs on one machine must not differ by a measurement, in a resumed run least of all.
    """
    has_op = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    wide = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return has_op and wide and torch.backends.mkl.is_available() and _maker() not in ("GenuineIntel", "")


def _maker() -> str:
    """The CPU's vendor_id, "" where nothing says it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = (line.partition(":") for line in info.read_text().splitlines())
        return next((value.strip() for name, _, value in lines if name.strip() == "vendor_id"), "")
    return next((name for name in ("GenuineIntel", "AuthenticAMD") if name in platform.processor()), "")


def takes_onednn(a: Tensor, rows: int) -> bool:
    """Whether a product of `a` [..., K] with `rows` columns is one for `multiply`.

    torch's own switch, torch.backends.mkldnn.enabled = False, turns that off; so does whatever traces or transforms the
    call: torch.compile, torch.jit.trace, torch.func.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch._C._are_functorch_transforms_active():
        return False
    large = a.numel() * rows >= LEAST_WORK and a.numel() >= LEAST_ROWS * a.size(-1)
    fits = large and a.dtype == torch.float32 and a.device.type == "cpu"
    return fits and onednn_is_faster() and bool(torch.backends.mkldnn.enabled)


def multiply(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """a [..., K] @ b [K, N] + bias [N] by oneDNN, of tensors for which takes_onednn holds; without a gradient."""
    return torch.ops.mkldnn._linear_pointwise(a, b.t(), bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return multiply(x, weight.t(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight = ctx.saved_tensors
        for_x, for_weight, for_bias = ctx.needs_input_grad
        rows = grad.reshape(-1, grad.size(-1))
        grad_weight = None
        if for_weight:
            columns = x.reshape(-1, x.size(-1))
            # In the layout of the weight, of which Conv1D gives a transposed view.
            transposed = weight.stride(0) == 1
            grad_weight = multiply(columns.t(), rows).t() if transposed else multiply(rows.t(), columns)
        return multiply(grad, weight) if for_x else None, grad_weight, rows.sum(dim=0) if for_bias else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if torch.is_grad_enabled() and (x.requires_grad or trained):
        result: Any = _Linear.apply(x, weight, bias)
        return result
    return multiply(x, weight.t(), bias)


def _fits(x: Tensor, weight: Tensor, outputs: int) -> bool:
    """Whether oneDNN takes this product. Weights that are sharded, quantised or on another device go the way of torch,
    and all under autocast.
    """
    plain = type(weight) is nn.Parameter and type(x) in (Tensor, nn.Parameter) and not hasattr(weight, "ds_id")
    same = weight.dtype == torch.float32 and weight.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return plain and same and takes_onednn(x, outputs)


class OneDNNLinear(nn.Linear):
    """nn.Linear whose large float32 products on a CPU are oneDNN's; first order only."""

    def forward(self, input: Tensor) -> Tensor:
        if _fits(input, self.weight, self.out_features):
            return _linear(input, self.weight, self.bias)
        return super().forward(input)


class OneDNNConv1D(Conv1D):
    """transformers' Conv1D, whose weight is [in, out], with the products of OneDNNLinear."""

    def forward(self, x: Tensor) -> Tensor:
        if _fits(x, self.weight, self.nf):
            return _linear(x, self.weight.t(), self.bias)
        return super().forward(x)


# A module's class changes, nothing in it. What goes by the exact type, as torch's dynamic quantisation does, leaves
# such layers out; a saved model has plain ones.
FAST: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: OneDNNLinear, Conv1D: OneDNNConv1D}


def use_fast_products(model: nn.Module) -> int:
    """Make the linear layers of `model` OneDNNLinear and OneDNNConv1D where that is faster; how many there were.

    Left as they are: subclasses, and layers with a forward of their own, such as accelerate's for offloading.
    """
    if not onednn_is_faster():
        return 0
    found = [module for module in model.modules() if type(module) in FAST and "forward" not in vars(module)]
    for module in found:
        module.__class__ = FAST[type(module)]
    return len(found)
