"""Activation checkpointing whose held tensors live in host memory, and which keeps what is dear to recompute.

Built on torch's own non-reentrant checkpoint, so gradients are the same to the bit. Not a replacement for sharding: it trades
host memory and PCIe bandwidth for device memory on one device.
"""

from eagle_kernels.checkpointing.checkpointer import Checkpointer, CheckpointPolicy
from eagle_kernels.checkpointing.host_memory import HostMemory, HostMemoryExceeded
from eagle_kernels.checkpointing.keep import ATTENTION_OPERATORS, ReplayError
from eagle_kernels.checkpointing.layers import checkpoint_layers, stop_checkpointing

__all__ = [
    "ATTENTION_OPERATORS",
    "CheckpointPolicy",
    "Checkpointer",
    "HostMemory",
    "HostMemoryExceeded",
    "ReplayError",
    "checkpoint_layers",
    "stop_checkpointing",
]
