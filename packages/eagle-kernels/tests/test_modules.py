"""The modules load the state dicts of what they stand in for and compute the same."""

import eagle_kernels
import pytest
import torch
from transformers import Qwen2Config
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP, Qwen2RMSNorm
from transformers.models.siglip.configuration_siglip import SiglipVisionConfig
from transformers.models.siglip.modeling_siglip import SiglipMLP


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (lambda: Qwen2RMSNorm(12, eps=1e-5), lambda: eagle_kernels.RMSNorm(12, eps=1e-5)),
        (lambda: Qwen2MLP(Qwen2Config(hidden_size=12, intermediate_size=20)), lambda: eagle_kernels.SwiGLUMLP(12, 20)),
        (
            lambda: Qwen2MLP(Qwen2Config(hidden_size=12, intermediate_size=20)),
            lambda: eagle_kernels.SwiGLUMLP(12, 20, tile_tokens=3),
        ),
        (lambda: torch.nn.LayerNorm(12), lambda: eagle_kernels.LayerNorm(12)),
        (lambda: SiglipMLP(SiglipVisionConfig(hidden_size=12, intermediate_size=20)), lambda: eagle_kernels.GELUTanhMLP(12, 20)),
    ],
    ids=["RMSNorm", "SwiGLUMLP", "tiled SwiGLUMLP", "LayerNorm", "GELUTanhMLP"],
)
def test_a_module_loads_the_weights_of_what_it_stands_in_for_and_computes_the_same(theirs, ours):
    source, target = theirs(), ours()
    for parameter in source.parameters():
        torch.nn.init.normal_(parameter)
    target.load_state_dict(source.state_dict(), strict=True)
    x = torch.randn(2, 5, 12)
    torch.testing.assert_close(target(x), source(x), rtol=1e-5, atol=1e-5)


def test_own_modules_are_explained_as_torch():
    assert [row.implementation for row in eagle_kernels.explain(eagle_kernels.SwiGLUMLP(4, 8))] == ["torch"]


def test_a_tiled_mlp_with_biases_is_refused():
    with pytest.raises(ValueError, match="tile_tokens needs bias=False"):
        eagle_kernels.SwiGLUMLP(4, 8, bias=True, tile_tokens=3)
