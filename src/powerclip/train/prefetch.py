"""Batches on their way to a device: the next one's images are copied while it computes with the last one's."""

from dataclasses import replace

import torch
from torch import Tensor

from powerclip.types import Batch


class Prefetch:
    """Copies batches to a device; a batch is usable until the one after the next is asked for.

    A GPU's copies go through a stream of their own into two buffers in turn. A copy waits only until the GPU has done
    what was queued for the batch that was in the buffer. So it overlaps with what is queued for the batch in between,
    if the host is ahead of the GPU and the batch is in page-locked memory.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: list[Tensor] = []  # the one that is used next comes first
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._unused: torch.cuda.Event | None = None

    def __call__(self, batch: Batch) -> Batch:
        """The batch on the device."""
        if self._stream is None:
            return batch.to(self.device)
        compute = torch.cuda.current_stream(self.device)
        now = compute.record_event()  # what uses the last batch's images comes before this
        fits = len(self._buffers) == 2 and len(self._buffers[0]) >= len(batch)
        if not fits:
            self._buffers = [torch.empty_like(batch.images, device=self.device) for _ in range(2)]
        free = self._unused if fits and self._unused is not None else now
        images = self._buffers[0][: len(batch)]
        with torch.cuda.stream(self._stream):
            self._stream.wait_event(free)
            images.copy_(batch.images, non_blocking=True)
        self._buffers.reverse()
        self._unused = now
        compute.wait_stream(self._stream)
        return replace(batch.to(self.device, non_blocking=True), images=images)
