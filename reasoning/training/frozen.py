"""What is frozen stays frozen while TRL switches adapters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen_as_before(model: nn.Module) -> Iterator[None]:
    """Parameters that need no gradient before need none afterwards.

    To come back from its reference adapter, TRL 1.16 calls PEFT's set_adapter, which lets all of the default adapter
    learn: a projector that was frozen too. No optimizer holds it, but its gradient would count in the norm that
    gradients are clipped by.
    """
    frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
