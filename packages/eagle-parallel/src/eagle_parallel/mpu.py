"""The mesh in the words of DeepSpeed: `deepspeed.initialize(..., mpu=DeepSpeedMesh(mesh))`.

DeepSpeed then counts batches and deals samples by the axis dp, while it shards ZeRO states and averages gradients over all ranks,
dp_cp: the factor of `normalise_loss` is mesh.world, as without an mpu. No model or pipeline parallelism. Written from the source
of DeepSpeed 0.19, which is not imported here.
"""

from __future__ import annotations

import weakref

import torch.distributed as dist

from eagle_parallel.mesh import Axis, Mesh


class DeepSpeedMesh:
    """A Megatron-style `mpu`. Build it on every rank, after `init_mesh`; it makes one group that holds this rank alone.

    Its data-parallel GROUP is every rank, because that is what ZeRO-3 shards parameters over and what checkpoints are written by;
    its data-parallel rank and size are those of the axis dp, by which DeepSpeed counts batches and deals samples. It has no
    get_sequence_parallel_* methods: with them DeepSpeed 0.19.8 sums gradients over a context-parallel group in ZeRO-1 and -2 but
    averages over it in ZeRO-3 (`reduce_scatter_coalesced` divides by all ranks), and reduces in float32.

    Raises:
        ValueError: torch.distributed is not initialised.
    """

    def __init__(self, mesh: Mesh) -> None:
        if not dist.is_initialized():
            raise ValueError("DeepSpeedMesh needs process groups; call deepspeed.init_distributed() before init_mesh().")
        self.mesh = mesh
        # Where an axis has one rank DeepSpeed must be given that group: it takes None for all ranks.
        alone = dist.new_group([mesh.rank], use_local_synchronization=True)
        assert isinstance(alone, dist.ProcessGroup)
        # DeepSpeed keeps this object in a global; see Mesh for why groups are held weakly.
        self._alone = weakref.ref(alone)

    def _group(self, axis: Axis) -> dist.ProcessGroup:
        return self.mesh.group(axis) or self._alone_group()

    def _alone_group(self) -> dist.ProcessGroup:
        group = self._alone()
        if group is None:
            raise ValueError("torch.distributed was shut down since this DeepSpeedMesh was made; build a new mesh.")
        return group

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        """All ranks: over them ZeRO shards and averages."""
        return self._group("dp_cp")

    def get_data_parallel_group_ranks(self) -> list[int]:
        return dist.get_process_group_ranks(self._group("dp_cp"))

    def get_data_parallel_rank(self) -> int:
        """Place on the axis dp: ranks with the same one hold the same pack."""
        return self.mesh.dp_rank

    def get_data_parallel_world_size(self) -> int:
        return self.mesh.dp

    def get_sequence_data_parallel_group(self) -> dist.ProcessGroup:
        """All ranks, as get_data_parallel_group."""
        return self._group("dp_cp")

    def get_sequence_data_parallel_rank(self) -> int:
        return self.mesh.rank

    def get_sequence_data_parallel_world_size(self) -> int:
        return self.mesh.world

    def get_model_parallel_group(self) -> dist.ProcessGroup:
        """This rank alone, as for every axis below: parameters are not split."""
        return self._alone_group()

    def get_model_parallel_rank(self) -> int:
        return 0

    def get_model_parallel_world_size(self) -> int:
        return 1

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self._alone_group()

    def get_tensor_model_parallel_src_rank(self) -> int:
        return self.mesh.rank

    def get_tensor_model_parallel_rank(self) -> int:
        return 0

    def get_tensor_model_parallel_world_size(self) -> int:
        return 1
