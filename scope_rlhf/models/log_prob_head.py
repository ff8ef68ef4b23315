"""The one place where policy, reference and teacher score tokens: a model that returns log-probs in place of logits."""

import functools
import types
from contextlib import nullcontext
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.utils import is_triton_available
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput, add_fused_lm_head, maybe_gather_lm_head_ctx

from scope_rlhf.models.fused_head import HEAD_IMPLS, Transform, head_log_probs, logits_log_probs
from scope_rlhf.models.products import OneDNNLinear

# Of a measurement on a GPU: rows of hidden states, and calls of each candidate.
TIMED_ROWS, TIMED_CALLS = 1024, 5
PLAIN_FORWARDS = (nn.Linear.forward, OneDNNLinear.forward)
TRL_VOCABULARY_CHUNK = 32768  # as add_fused_lm_head calls it


def check_head_impl(head_impl: str) -> None:
    """ValueError for a name that is none of HEAD_IMPLS."""
    if head_impl not in HEAD_IMPLS:
        raise ValueError(f"head_impl must be one of {', '.join(HEAD_IMPLS)}, got {head_impl!r}; set --head_impl.")


def check_head(head: Any, head_impl: str, cast_to_fp32: bool = False) -> None:
    """ValueError where the head is not the plain linear layer whose weight every implementation but dense reads."""
    if head_impl == "dense" and head is not None:
        return
    heads = [head]
    if isinstance(head, ModulesToSaveWrapper):
        heads = [head.original_module, *head.modules_to_save.values()]
    for each in heads:
        odd, instead = None, ""
        if isinstance(each, BaseTunerLayer):
            odd = f"carries an adapter ({type(each).__module__.split('.')[-2]}), which would be left out"
            instead = ", or leave the head out of --lora_target_modules"
        elif not isinstance(each, nn.Linear) or type(each).forward not in PLAIN_FORWARDS:
            odd = f"is {type(each).__name__}"
        elif not each.weight.is_floating_point():
            odd = f"has weights of {each.weight.dtype}"
        elif "forward" in vars(each) and not cast_to_fp32 and not hasattr(each, "_hf_hook"):
            odd = "has a forward of its own"
        elif each._forward_hooks or each._forward_pre_hooks:
            odd = "has forward hooks, which would be left out"
        if odd:
            raise ValueError(
                f"head_impl={head_impl!r} needs an output head that is a plain linear layer, and this model's {odd}. "
                f"Set --head_impl dense, which calls the head itself and keeps all logits{instead}."
            )


def read_transform(config: Any, temperature: float) -> Transform:
    """Softcap and scale of a model's logits; the names of the scale are those that TRL's add_fused_lm_head knows."""
    text = config.get_text_config()
    found = [getattr(text, name, None) for name in ("logit_scale", "output_multiplier", "lm_head_multiplier")]
    scaling = getattr(text, "logits_scaling", None)
    found.append(scaling if scaling is None or text.model_type == "hyperclovax" else 1 / scaling)
    scale = next((value for value in found if value is not None), 1.0)
    return Transform(temperature, getattr(text, "final_logit_softcapping", None), scale)


def add_log_prob_head(
    model: Any,
    temperature: float = 1.0,
    head_impl: str = "auto",
    cast_lm_head_to_fp32: bool = False,
    frozen: bool = False,
) -> None:
    """Make `model(..., labels=labels, fused_lm_head=True)` return TRL's FusedCausalLMOutput with log_probs [B, S - 1]
    and entropy of the labels that are not -100, 0 at the others; the vocabulary is projected for those rows only.

    A further argument, head_entropy, says what the entropy is for: "none" (None is returned), "metric" (no gradient) or
    "gradient". Other calls are as before. The head is looked up at each call, since FSDP and PEFT replace it.

    head_impl: jacobian, recompute and dense are those of models.fused_head (dense calls the head as a module); trl is
    TRL's own (Triton kernels on a GPU; positions outside the labels are projected too on a CPU). auto on a CPU is
    jacobian for a frozen head and recompute for a trained one; on a GPU that or trl, whichever a short measurement of
    the first call finds faster, the same in all processes. `model` is without PEFT or DDP around it; frozen: it is
    only scored.

    ValueError for an unknown head_impl, a head that is not linear, and jacobian for a head that is trained.
    """
    check_head_impl(head_impl)
    head = model.get_output_embeddings()
    check_head(head, head_impl, cast_lm_head_to_fp32)
    if head_impl == "jacobian" and not frozen and head.weight.requires_grad:
        raise ValueError(
            "head_impl='jacobian' is for a frozen head, and this one is trained (there is no LoRA, or the head is "
            "among its modules_to_save): set --head_impl recompute or auto."
        )
    other_calls = model.forward
    add_fused_lm_head(model, temperature, cast_lm_head_to_fp32, outputs=("log_probs", "entropy"))
    trl_forward = model.forward
    transform = read_transform(model.config, temperature)

    @functools.wraps(type(model).forward)  # generate validates its arguments against the signature
    def forward(
        self,
        *args,
        fused_lm_head: bool = False,
        head_entropy: str = "metric",
        labels: Any = None,
        shift_labels=None,
        num_items_in_batch=None,
        **kwargs,
    ):
        given = {"labels": labels, "shift_labels": shift_labels, "num_items_in_batch": num_items_in_batch}
        given = {name: value for name, value in given.items() if value is not None}
        if not fused_lm_head:
            return other_calls(*args, **given, **kwargs)
        if head_impl == "trl":
            return trl_forward(*args, fused_lm_head=True, **given, **kwargs)
        kwargs["use_cache"] = False
        hidden = self.base_model(*args, **kwargs).last_hidden_state
        if shift_labels is None:
            hidden, labels = hidden[:, :-1], labels[:, 1:]
        else:
            labels = shift_labels
        head = self.get_output_embeddings()
        hidden, labels = hidden.to(head.weight.device), labels.to(head.weight.device)
        mask = labels != -100
        rows, targets = hidden[mask], labels[mask]
        with torch.autocast(rows.device.type, enabled=False) if cast_lm_head_to_fp32 else nullcontext():
            rows = rows.float() if cast_lm_head_to_fp32 else rows
            if head_impl == "dense":
                found = logits_log_probs(head(rows), targets, transform, head_entropy)
            else:
                found = _project(head, rows, targets, transform, head_impl, head_entropy)
        # masked_scatter keeps a graph where no label counts, so that such a micro-batch has a gradient of zero.
        log_probs, entropy = (None if x is None else x.new_zeros(mask.shape).masked_scatter(mask, x) for x in found)
        assert log_probs is not None
        count = mask.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        return FusedCausalLMOutput(loss=-log_probs.sum() / count, log_probs=log_probs, entropy=entropy, label_mask=mask)

    model.forward = types.MethodType(forward, model)


def _project(
    head: Any, rows: Tensor, targets: Tensor, transform: Transform, head_impl: str, entropy: str
) -> tuple[Tensor, Tensor | None]:
    weight, bias = head.weight, head.bias
    if isinstance(weight, DTensor):  # FSDP2 shards parameters, the hidden states are whole
        weight, bias = weight.full_tensor(), None if bias is None else bias.full_tensor()
    with maybe_gather_lm_head_ctx(weight, bias):
        if head_impl == "auto" and rows.is_cuda and is_triton_available():
            head_impl = _fastest(rows, weight, bias, transform)
        if head_impl == "trl":
            return _trl_log_probs(rows, weight, bias, targets, transform, entropy)
        return head_log_probs(rows, weight, bias, targets, **transform._asdict(), head_impl=head_impl, entropy=entropy)


def _trl_log_probs(rows, weight, bias, targets, transform: Transform, entropy: str) -> tuple[Tensor, Tensor | None]:
    names = ("log_probs",) if entropy == "none" else ("log_probs", "entropy")
    log_probs, found, *_ = ChunkedLogProbFunction.apply(
        rows, weight, bias, targets, transform.temperature, TRL_VOCABULARY_CHUNK, transform.softcap,
        transform.logit_scale, names,
    )  # fmt: skip
    return log_probs, found.detach() if entropy == "metric" else found


_choices: dict[tuple[Any, ...], str] = {}


def _fastest(rows: Tensor, weight: Tensor, bias: Tensor | None, transform: Transform) -> str:
    """What of ours and TRL's takes less time here, measured once for each head; process 0 decides for all of them.

    The processes must agree: under ZeRO-3 the backward of one of the two gathers the head again.
    """
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    key = (rows.device, weight.shape, weight.dtype, torch.is_autocast_enabled("cuda"), trained)
    if key not in _choices:
        ours = "recompute" if trained else "jacobian"
        seconds = {name: _time(name, rows, weight, bias, transform) for name in (ours, "trl")}
        choice = [min(seconds, key=lambda name: seconds[name])]
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast_object_list(choice, src=0)
        _choices[key] = choice[0]
    return _choices[key]


def _time(head_impl: str, rows: Tensor, weight: Tensor, bias: Tensor | None, transform: Transform) -> float:
    """Milliseconds of forward and backward, the least of several calls."""
    times = []
    inputs = (weight, bias) if bias is not None else (weight,)
    with torch.enable_grad():
        for _ in range(TIMED_CALLS):
            hidden = torch.randn(TIMED_ROWS, rows.shape[1], device=rows.device, dtype=rows.dtype, requires_grad=True)
            targets = torch.zeros(TIMED_ROWS, device=rows.device, dtype=torch.long)
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record(torch.cuda.current_stream())
            if head_impl == "trl":
                found = _trl_log_probs(hidden, weight, bias, targets, transform, "metric")
            else:
                found = head_log_probs(hidden, weight, bias, targets, **transform._asdict(), head_impl=head_impl)
            torch.autograd.grad(found[0].sum(), (hidden, *(x for x in inputs if x.requires_grad)))
            end.record(torch.cuda.current_stream())
            end.synchronize()
            times.append(start.elapsed_time(end))
    return min(times)
