"""Context parallelism in models of transformers: one language model attends by `cp_attention`, and nothing else changes.

`apply` chooses the registered attention for one model's decoder and gives that decoder a hook, which joins the call's `cp_plan`
with the mesh; both then travel in keyword arguments to every layer, also when gradient checkpointing computes a layer again.
Vision towers, other models and other calls see nothing. For training and scoring of packs; not for generation over ranks.
Needs transformers, which is imported when a function here is called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from eagle_parallel.attention.compose import cp_attention
from eagle_parallel.errors import NotYetSupported
from eagle_parallel.mesh import Mesh
from eagle_parallel.plan import Plan, make_plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Without "flash": transformers looks for a kernel to download behind a name that holds it.
NAME = "eagle_parallel"
_APPLIED = "_eagle_parallel_applied"

Model = TypeVar("Model", bound=torch.nn.Module)


@dataclass(frozen=True)
class _Attention:
    """How the layers of one call attend: by this plan, or as plain `sdpa` where plan is None."""

    plan: Plan | None
    mesh: Mesh
    algorithm: str
    kernel: str

    @property
    def is_empty(self) -> bool:
        """Whether this rank owns no token. Models cannot run on none, so one row that counts for nothing stands in for them."""
        return self.plan is not None and self.plan.local_tokens(self.mesh.cp_rank) == 0

    def __deepcopy__(self, memo: object) -> _Attention:
        return self


@dataclass(frozen=True)
class _Applied:
    hooks: tuple[torch.utils.hooks.RemovableHandle, ...]
    previous: str | None


def register() -> None:
    """Make `attn_implementation="eagle_parallel"` known to transformers. Harmless when repeated; `apply` calls it.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ImportError as error:
        raise ImportError("eagle_parallel.hf needs transformers: pip install 'eagle-parallel[transformers]'.") from error
    AttentionInterface.register(NAME, _attend)
    # Asked only for calls without a plan: the hook gives the others an empty mask, which transformers passes on as it is.
    AttentionMaskInterface.register(NAME, sdpa_mask)


def apply(
    model: Model,
    mesh: Mesh,
    *,
    algorithm: Literal["auto", "gather_kv", "ring"] = "auto",
    kernel: str = "auto",
) -> Model:
    """Let the language model of `model` attend over the ranks of a mesh; `revert` undoes it. Applying again replaces the mesh.

    Afterwards call the model with this rank's tokens, `shard_batch(batch, plan, mesh.cp_rank)`, with their position_ids, and
    with `cp_plan=plan`. With mesh.cp = 1 the plan may be left out: documents are then those of `cu_seqlens` where the call has
    it, and any other call, `generate` among them, is answered as by `sdpa`.

    Args:
        model: a model of transformers with a decoder (`get_decoder`): Qwen2, Qwen3, Llama and their kin, alone or inside a
            composite model. Before it is wrapped by DDP or DeepSpeed.
        mesh: from `init_mesh`.
        algorithm: as in `cp_attention`.
        kernel: as in `cp_attention`.

    Returns:
        The model itself.

    Raises:
        ImportError: transformers is not installed.
        TypeError: the model is not one of transformers.
        ValueError: its attention cannot be chosen.
        NotYetSupported: mesh.cp > 1 and some of its layers use sliding windows or other than full attention.
    """
    register()
    decoder = _decoder(model)
    others = {*(getattr(decoder.config, "layer_types", None) or ())} - {"full_attention"}
    if others and mesh.cp > 1:
        raise NotYetSupported(
            f"{type(decoder).__name__} has layers of type {', '.join(sorted(others))}; over ranks only full attention is "
            f"supported. Set use_sliding_window=False in its config where the model allows it, or use cp=1."
        )
    revert(model)
    previous = decoder.config._attn_implementation
    decoder.set_attn_implementation(NAME)
    if decoder.config._attn_implementation != NAME:
        raise ValueError(
            f"{type(decoder).__name__} does not let its attention be chosen; use one built on transformers' AttentionInterface."
        )
    before = decoder.register_forward_pre_hook(_hook(mesh, algorithm, kernel), with_kwargs=True)
    after = decoder.register_forward_hook(_drop_stand_in, with_kwargs=True)
    setattr(decoder, _APPLIED, _Applied((before, after), previous))
    return model


def revert(model: Model) -> Model:
    """Give the language model back the attention it had before `apply`. Harmless where nothing was applied."""
    decoder = _decoder(model)
    applied: _Applied | None = getattr(decoder, _APPLIED, None)
    if applied is not None:
        for hook in applied.hooks:
            hook.remove()
        delattr(decoder, _APPLIED)
        decoder.set_attn_implementation(applied.previous)  # pyright: ignore[reportArgumentType]
    return model


def _decoder(model: torch.nn.Module) -> PreTrainedModel:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"model must be a transformers model, got {type(model).__name__}; apply it before wrapping the model.")
    decoder = model
    while (inner := cast("PreTrainedModel", decoder.get_decoder())) is not decoder:
        decoder = inner
    if decoder.config.get_text_config() is not decoder.config:
        raise ValueError(f"{type(model).__name__}.get_decoder() is no language model; pass the language model inside it.")
    return decoder


def _hook(mesh: Mesh, algorithm: str, kernel: str) -> Callable[..., tuple[tuple[Any, ...], dict[str, Any]]]:
    def join(decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        attention = _Attention(_plan_of(kwargs, mesh), mesh, algorithm, kernel)
        kwargs = {**kwargs, "cp_plan": attention}
        if attention.plan is None:
            return args, kwargs
        if args:  # input_ids, the only one that models pass by position
            args, kwargs["input_ids"] = (), args[0]
        name = "input_ids" if kwargs.get("input_ids") is not None else "inputs_embeds"
        tokens = kwargs[name]
        _check_call(kwargs, tokens, mesh)
        if attention.is_empty:
            kwargs[name] = pad(tokens, (0, 1) if tokens.dim() == 2 else (0, 0, 0, 1))
            kwargs["position_ids"] = pad(kwargs["position_ids"], (0, 1))
        # Four dimensions: taken for a finished mask, so that none of tokens x tokens is built.
        kwargs["attention_mask"] = torch.empty(1, 1, 0, 0, dtype=torch.bool, device=tokens.device)
        kwargs["use_cache"] = False
        return args, kwargs

    return join


def _drop_stand_in(decoder: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
    if not kwargs["cp_plan"].is_empty:
        return output
    if isinstance(output, tuple):
        return (output[0][:, :0], *output[1:])
    output.last_hidden_state = output.last_hidden_state[:, :0]
    return output


def _plan_of(kwargs: dict[str, Any], mesh: Mesh) -> Plan | None:
    plan, cu_seqlens = kwargs.get("cp_plan"), kwargs.get("cu_seqlens")
    if plan is None and mesh.cp > 1:
        raise ValueError(
            f"the model attends over {mesh.cp} ranks but was called without cp_plan; pass cp_plan=make_plan(cu_seqlens, mesh) "
            f"and the tokens that shard_batch cuts by it, or eagle_parallel.hf.revert(model) for calls on one rank."
        )
    if plan is None and cu_seqlens is not None:
        return make_plan(cu_seqlens.cpu(), mesh)
    if plan is not None and not isinstance(plan, Plan):
        raise TypeError(f"cp_plan must be the Plan that make_plan returns, got {type(plan).__name__}.")
    return plan


def _check_call(kwargs: dict[str, Any], tokens: Tensor, mesh: Mesh) -> None:
    if tokens.shape[0] != 1:
        raise ValueError(f"a pack is one row of tokens, but the call has {tokens.shape[0]} rows; pack them into one.")
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.numel():
        raise ValueError(
            f"attention_mask of shape {list(mask.shape)} cannot be honoured: document borders are those of cp_plan, and packs "
            f"have no padding. Leave attention_mask out."
        )
    if kwargs.get("past_key_values") is not None:
        raise ValueError("a pack takes no past_key_values; call eagle_parallel.hf.revert(model) before generating.")
    positions = kwargs.get("position_ids")
    if mesh.cp > 1 and (positions is None or positions.shape[-1] != tokens.shape[1]):
        given = "are missing" if positions is None else f"have shape {list(positions.shape)}"
        raise ValueError(
            f"position_ids {given}, but this rank's {tokens.shape[1]} tokens are not consecutive; pass their position_ids within "
            f"each document, as shard_batch cuts them."
        )


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    cp_plan: _Attention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """The registered attention: query [batch, heads, tokens, head_dim] to [batch, tokens, heads, head_dim] and None."""
    if not isinstance(cp_plan, _Attention):
        raise ValueError("attention 'eagle_parallel' has no mesh; call eagle_parallel.hf.apply(model, mesh) on the model first.")
    if cp_plan.plan is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    refused = {name: kwargs.get(name) for name in ("sliding_window", "softcap", "s_aux")}
    refused["dropout"] = dropout or None
    for name, given in refused.items():
        if given is not None:
            raise NotYetSupported(f"{name} of {type(module).__name__} is not supported over ranks; turn it off in the config.")
    q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    if cp_plan.is_empty:
        q, k, v = q[:0], k[:0], v[:0]
    options: dict[str, Any] = {"algorithm": cp_plan.algorithm, "kernel": cp_plan.kernel}
    out = cp_attention(q, k, v, cp_plan.plan, cp_plan.mesh, scale=scaling, **options)
    return pad(out, (0, 0, 0, 0, 0, query.shape[2] - out.shape[0]))[None], None
