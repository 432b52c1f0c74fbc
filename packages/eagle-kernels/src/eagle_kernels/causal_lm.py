"""The training loss of Qwen2, Qwen3 and Llama causal language models without their logits.

It runs in training mode, when labels are given and no logits were asked for; every other call is the class's own forward. The
loss is that of transformers' ForCausalLMLoss: the same shift, ignored labels and division.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from eagle_kernels.arguments import FLOATS
from eagle_kernels.forwards import as_autocast
from eagle_kernels.instance import is_applied, is_plain_linear, own_forward
from eagle_kernels.ops.linear_cross_entropy import linear_cross_entropy

# A weight of another tensor class (quantised) computes in a way of its own; FSDP2 holds weights as DTensor between calls.
_PLAIN_WEIGHTS = ("Parameter", "Tensor", "DTensor")


def causal_lm_forward(
    model: Any,
    input_ids: Tensor | None = None,
    attention_mask: Any = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    labels: Tensor | None = None,
    use_cache: bool | None = None,
    logits_to_keep: int | Tensor = 0,
    *,
    shift_labels: Tensor | None = None,
    loss_rows: Tensor | None = None,
    loss_weight: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The class's forward, with the loss computed from hidden states while training.

    With labels or shift_labels, in training mode, logits_to_keep 0 and dictionary output, the returned output has the loss,
    `logits=None`, and past_key_values, hidden_states and attentions as the class's own. The loss is the sum over supervised
    rows divided by `num_items_in_batch` if given, else by the number of supervised rows, or by the sum of their weights
    where `loss_weight` is given; nan, with zero gradients, where that is 0, as transformers has it. A float64 model gets a
    float64 loss, where transformers would round its logits to float32.

    Args:
        model: the causal language model.
        input_ids: as the class's, like all arguments up to logits_to_keep.
        attention_mask: as the class's.
        position_ids: as the class's.
        past_key_values: as the class's.
        inputs_embeds: as the class's.
        labels: int64 [batch, tokens], not shifted, -100 where no loss is.
        use_cache: as the class's.
        logits_to_keep: as the class's.
        shift_labels: int64 [batch, tokens], shifted already: entry i is the label that token i predicts. Replaces labels.
        loss_rows: int64 [supervised], the supervised rows of the flattened shifted labels, ascending; known on the host they
            spare one synchronisation. Unused where the class's own forward runs.
        loss_weight: float [batch, tokens], the weight of each row's loss. Only for the loss without logits.
        kwargs: as the class's, `num_items_in_batch` and `ignore_index` among them.

    Raises:
        ValueError: loss_weight is given where the class's own forward runs, which would ignore it; shapes do not fit.
    """
    supervised = labels is not None or shift_labels is not None
    as_dict = kwargs["return_dict"] if kwargs.get("return_dict") is not None else getattr(model.config, "return_dict", True)
    keeps_all = isinstance(logits_to_keep, int) and logits_to_keep == 0
    inputs = {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": position_ids,
        "past_key_values": past_key_values,
        "inputs_embeds": inputs_embeds,
        "use_cache": use_cache,
    }
    if not (supervised and model.training and keeps_all and as_dict) or loss_obstacle(model) or not is_applied(model.lm_head):
        if loss_weight is not None:
            raise ValueError(
                "loss_weight is for the loss without logits, which runs in training mode with labels, logits_to_keep=0 and "
                "return_dict=True (explain(model) says what else is in the way); call model.train() or leave it out."
            )
        if shift_labels is not None:
            kwargs["shift_labels"] = shift_labels
        return own_forward(model, **inputs, labels=labels, logits_to_keep=logits_to_keep, **kwargs)
    kwargs.pop("return_dict", None)
    outputs = model.model(**inputs, **kwargs)
    hidden = outputs.last_hidden_state
    ignore_index = kwargs.get("ignore_index", -100)
    if shift_labels is None:
        assert labels is not None
        shift_labels = F.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets = shift_labels.reshape(-1).to(hidden.device)
    weights = None if loss_weight is None else loss_weight.reshape(-1).to(hidden.device)
    through = partial(_loss_sum, shift_labels=targets, loss_weight=weights, loss_rows=loss_rows, ignore_index=ignore_index)
    total = model.lm_head(hidden.flatten(0, -2), through=through)
    normaliser = kwargs.get("num_items_in_batch")
    if normaliser is None:
        counted = targets != ignore_index
        normaliser = counted.sum() if weights is None else weights.where(counted, 0).sum()
    # The output class, from the file of the model's class: transformers itself is never imported here.
    output = inspect.unwrap(type(model).forward).__globals__["CausalLMOutputWithPast"]
    return output(
        loss=_divided(total, normaliser),
        logits=None,
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def loss_obstacle(model: Any) -> str | None:
    """Why the loss of a causal language model has to go through its logits; None if it has not to."""
    head = model.lm_head
    if not is_plain_linear(head):
        return "lm_head is no plain torch.nn.Linear"
    if head.bias is not None:
        return "lm_head has a bias"
    if head.weight.dtype not in FLOATS or type(head.weight).__name__ not in _PLAIN_WEIGHTS:
        return f"the weight of lm_head is a {type(head.weight).__name__} of {head.weight.dtype}"
    if "_loss_function" in model.__dict__:
        return "loss_function of this instance was replaced"
    if model.loss_type != "ForCausalLM":
        return f"its loss type is {model.loss_type}, not ForCausalLM"
    if (getattr(model, "_tp_size", None) or 1) > 1:
        return "lm_head is sharded by tensor parallelism"
    return None


def _loss_sum(hidden: Tensor, weight: Tensor, bias: None, **options: Any) -> Tensor:
    hidden, weight = as_autocast(hidden, weight)
    return linear_cross_entropy(hidden, weight, **options)


def _divided(total: Tensor, normaliser: Tensor | float) -> Tensor:
    """total / normaliser; where that is a division by 0, its value with zero gradients, which would be nan otherwise."""
    if not isinstance(normaliser, Tensor):
        normaliser = total.new_full((), normaliser)
    normaliser = normaliser.to(total.device)
    present = normaliser != 0
    return (total / normaliser.where(present, 1)).where(present, total.detach() / normaliser)
