"""What the processes of a run do together: sums, and agreeing on a failure."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor

from scope_rlhf.control.rollout import EnvironmentFailure


class Processes:
    """This process among all: `rank` of `processes`."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.rank, self.processes = accelerator.process_index, accelerator.num_processes

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.processes == 1:
            return tensor
        return self.accelerator.reduce(tensor.to(self.accelerator.device), reduction="sum")  # type: ignore[return-value]

    @property
    def reduce(self) -> Callable[[Tensor], Tensor] | None:
        """all_reduce where there are several processes, else None."""
        return self.all_reduce if self.processes > 1 else None

    def agree(self, failure: EnvironmentFailure | None) -> None:
        """Raise in every process where the environments of one have failed; none is left waiting for it."""
        failed = failure is not None
        if self.processes > 1:
            failed = bool(self.all_reduce(torch.tensor(float(failed), device=self.accelerator.device)).item())
        if failed:
            raise failure or EnvironmentFailure("the environments of another process failed; see its message")
