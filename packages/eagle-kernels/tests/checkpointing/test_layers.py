"""checkpoint_layers on real transformers models: plain checkpointing's gradients to the bit, the stated bytes, no trace after."""

import copy
import gc
import weakref

import pytest
import torch
import torch.distributed as dist
from eagle_kernels.checkpointing import CheckpointPolicy, checkpoint_layers, stop_checkpointing
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipVisionModel

LAYERS, BATCH, TOKENS, HIDDEN = 3, 2, 12, 16
INPUT = BATCH * TOKENS * HIDDEN * 4
EVERYTHING = CheckpointPolicy(offload_inputs=True, keep_attention=True, keep_budget=0, offload_kept=True, smallest=0)
POLICIES = {
    "plain": CheckpointPolicy(),
    "offload": CheckpointPolicy(offload_inputs=True, smallest=0),
    "keep": CheckpointPolicy(keep_attention=True),
    "everything": EVERYTHING,
}
_FAMILIES = {
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
}


def _language_model(family="qwen2", **extra):
    model, config, own = _FAMILIES[family]
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 50,
        "hidden_size": HIDDEN,
        "intermediate_size": 24,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "use_cache": False,
    }
    return model(config(**sizes, attn_implementation="sdpa", **own, **extra)).train()


def _ids(seed=1):
    return torch.randint(50, (BATCH, TOKENS), generator=torch.Generator().manual_seed(seed))


def _gradients(model, steps=1, seed=5):
    torch.manual_seed(seed)
    model.zero_grad(set_to_none=True)
    for step in range(steps):
        ids = _ids(step)
        model(input_ids=ids, labels=ids).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def _same(ours, theirs):
    return len(ours) == len(theirs) > 0 and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def _torchs(model):
    twin = copy.deepcopy(model)
    twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return twin


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*deprecated:FutureWarning")
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("attention_dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", _FAMILIES)
def test_gradients_are_those_of_plain_checkpointing_to_the_bit(family, attention_dropout, policy):
    model = _language_model(family, attention_dropout=attention_dropout)
    expected = _gradients(_torchs(model), steps=2)
    checkpointer = checkpoint_layers(model, policy)
    assert _same(_gradients(model, steps=2), expected)
    assert checkpointer.memory.bytes_in_use == checkpointer.bytes_kept == 0
    registered = checkpointer.memory.bytes_registered
    assert registered == checkpointer.memory.peak_bytes
    assert _same(_gradients(model, steps=2), expected)
    assert checkpointer.memory.bytes_registered == registered


def test_host_bytes_are_the_sum_of_the_inputs_and_the_graph_holds_none_of_them():
    model, held = _language_model(), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args: held.append(weakref.ref(args[0].untyped_storage())))
    checkpointer = checkpoint_layers(model, POLICIES["offload"])
    gc.collect()
    gc.disable()
    try:
        loss = model(input_ids=_ids(), labels=_ids()).loss
        assert checkpointer.memory.bytes_in_use == (LAYERS - 1) * INPUT
        assert [ref() is None for ref in held] == [True] * (LAYERS - 1) + [False]
        loss.backward()
        assert checkpointer.memory.bytes_in_use == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("policy", [POLICIES["offload"], EVERYTHING], ids=["offload", "everything"])
def test_microbatches_may_run_forward_together_and_backward_in_any_order(policy):
    model = _language_model()
    losses = lambda m: [m(input_ids=_ids(seed), labels=_ids(seed)).loss for seed in (7, 8)]  # noqa: E731
    names = [name for name, _ in model.named_parameters()]
    expected = [torch.autograd.grad(loss, list(model.parameters())) for loss in losses(model)]
    checkpointer = checkpoint_layers(model, policy)
    for order in ((0, 1), (1, 0)):
        ours = losses(model)
        for which in order:
            gradients = torch.autograd.grad(ours[which], list(model.parameters()))
            for name, a, b in zip(names, gradients, expected[which], strict=True):
                assert torch.allclose(a, b, atol=1e-6), name
        assert checkpointer.memory.bytes_in_use == 0


def test_evaluation_costs_nothing():
    model = _language_model()
    checkpointer = checkpoint_layers(model, EVERYTHING)
    model.eval()
    model(input_ids=_ids())
    model.train()
    with torch.no_grad():
        model(input_ids=_ids())
    assert checkpointer.memory.peak_bytes == checkpointer.bytes_kept == 0


class _Composite(nn.Module):
    """A vision tower and a language model under the names that Eagle 2.5 gives them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        config = SiglipVisionConfig(
            hidden_size=HIDDEN, intermediate_size=20, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
        )
        self.vision_model = SiglipVisionModel(config)
        self.language_model = _language_model()
        self.train()

    def forward(self, pixels, ids):
        seen = self.vision_model(pixel_values=pixels).last_hidden_state
        words = self.language_model.get_input_embeddings()(ids)
        return self.language_model(inputs_embeds=torch.cat([seen, words], dim=1)).logits


def _loss(model):
    pixels = torch.randn(BATCH, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    return model(pixels, _ids()).square().mean()


def test_in_a_composite_model_only_the_last_layer_of_all_stays_on_the_device():
    model = _Composite()
    parameters = [p for name, p in model.named_parameters() if ".head." not in name]
    expected = torch.autograd.grad(_loss(model), parameters, allow_unused=True)
    checkpointer = checkpoint_layers(model, POLICIES["offload"])
    loss = _loss(model)
    vision, language = BATCH * 4 * HIDDEN * 4, BATCH * (4 + TOKENS) * HIDDEN * 4
    assert checkpointer.memory.bytes_in_use == 2 * vision + (LAYERS - 1) * language
    ours = torch.autograd.grad(loss, parameters, allow_unused=True)
    for a, b in zip(ours, expected, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-6)
    assert checkpointer.memory.bytes_in_use == 0


@pytest.mark.parametrize("by_name", [True, False])
def test_one_tower_alone(by_name):
    model = _Composite()
    checkpoint_layers(model, CheckpointPolicy(), only="language_model" if by_name else model.language_model)
    on = [name for name, module in model.named_modules() if getattr(module, "gradient_checkpointing", False)]
    assert on == [f"language_model.model.layers.{i}" for i in range(LAYERS)]


def test_what_cannot_be_checkpointed_is_refused_by_name():
    model = _Composite()
    with pytest.raises(ValueError, match=r"only='tower'.*vision_model, language_model"):
        checkpoint_layers(model, CheckpointPolicy(), only="tower")
    with pytest.raises(ValueError, match="not part of the model"):
        checkpoint_layers(model, CheckpointPolicy(), only=nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"Linear holds no GradientCheckpointingLayer.*Checkpointer"):
        checkpoint_layers(nn.Linear(1, 1), CheckpointPolicy())
    with pytest.raises(TypeError, match="model"):
        checkpoint_layers("model", CheckpointPolicy())  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="model"):
        stop_checkpointing(None)  # pyright: ignore[reportArgumentType]


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing_enable.*deprecated:FutureWarning")
@pytest.mark.parametrize("enabled_before", [False, True])
def test_stop_restores_what_was_there(enabled_before):
    model = _language_model()
    if enabled_before:
        model = _torchs(model)
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    before = [dict(vars(layer)) for layer in layers]
    checkpoint_layers(model, EVERYTHING)
    second = checkpoint_layers(model, POLICIES["offload"])  # replaces the first
    _gradients(model)
    assert second.memory.peak_bytes > 0
    assert stop_checkpointing(model) is model
    assert [dict(vars(layer)) for layer in layers] == before
    assert all(getattr(layer, "gradient_checkpointing", False) == enabled_before for layer in layers)


def test_a_copied_model_has_a_checkpointer_of_its_own():
    model = _language_model()
    checkpointer = checkpoint_layers(model, POLICIES["offload"])
    twin = copy.deepcopy(model)
    functions = {id(layer._gradient_checkpointing_func.checkpointer) for layer in twin.model.layers}
    assert len(functions) == 1
    assert _same(_gradients(twin), _gradients(stop_checkpointing(_torchless(model))))
    assert checkpointer.memory.peak_bytes == 0


def _torchless(model):
    return checkpoint_layers(model, CheckpointPolicy()) and model


def test_layers_of_older_transformers_that_wrap_the_call_work_too(monkeypatch):
    """Before `forward` was wrapped, GradientCheckpointingLayer checkpointed in `__call__`, through the same two attributes."""
    model = _language_model()
    expected = _gradients(_torchless(copy.deepcopy(model)))

    class Layer(type(model.model.layers[0])):
        def __call__(self, *args, **kwargs):
            if self.gradient_checkpointing and self.training:
                call = super().__call__
                return self._gradient_checkpointing_func(lambda *inner: call(*inner, **kwargs), *args)
            return super().__call__(*args, **kwargs)

    # The outermost class checkpoints in newer versions: let it be the plain forward of the layer that it derives from.
    monkeypatch.setattr(Layer, "forward", type(model.model.layers[0]).forward)
    for layer in model.model.layers:
        layer.__class__ = Layer
    checkpointer = checkpoint_layers(model, POLICIES["offload"])
    assert _same(_gradients(model), expected)
    assert checkpointer.memory.peak_bytes == (LAYERS - 1) * INPUT


@pytest.fixture
def _one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_rank")
@pytest.mark.parametrize("wrapper", ["ddp", "fsdp2"])
def test_data_parallel_wrappers(wrapper):
    model = _language_model()
    expected = _gradients(_torchless(copy.deepcopy(model)), steps=2)
    checkpointer = checkpoint_layers(model, EVERYTHING)
    if wrapper == "ddp":
        wrapped = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (1,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        wrapped = fully_shard(model, mesh=mesh)
    ours = _gradients(wrapped, steps=2)
    ours = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in ours]
    assert _same(ours, expected)
    assert checkpointer.memory.peak_bytes > 0
    assert checkpointer.memory.bytes_in_use == 0
