"""The README's examples run as they are printed, on one process and on two, and its picture is that of the plan."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from eagle_parallel.testing import run_ranks

FOLDER = Path(__file__).parent.parent
README = FOLDER / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL) if README.is_file() else []
pytestmark = pytest.mark.skipif(not EXAMPLES, reason="the README is not beside the tests")


def _model():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(3)
    sizes: dict[str, Any] = {"vocab_size": 29, "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64}
    special: dict[str, Any] = {f"{token}_token_id": None for token in ("pad", "bos", "eos")}
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes, **heads, **special)).double()


def _packs():
    generator = torch.Generator().manual_seed(0)
    packs = []
    for lengths in ((7, 5, 9), (21,), (1, 20)):
        rows = {name: torch.randint(29, (1, 21), generator=generator) for name in ("input_ids", "shift_labels")}
        rows["position_ids"] = torch.cat([torch.arange(length) for length in lengths])[None]
        rows["loss_weight"] = torch.rand(1, 21, dtype=torch.float64, generator=generator)
        packs.append({**rows, "cu_seqlens": torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()])})
    return packs


class _AveragingSgd(torch.optim.SGD):
    """Gradients averaged over all ranks before the step, as data-parallel engines do."""

    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"] if dist.is_initialized() else ():
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()
        return super().step(closure)


def train_as_printed():
    """The README's loop on this world, its mesh spread over all ranks."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    code = EXAMPLES[0].replace("init_mesh(cp=1)", f"init_mesh(cp={world})")
    model = _model()
    names = {"model": model, "loader": _packs(), "optimiser": _AveragingSgd(model.parameters(), lr=0.5)}
    exec(compile(code, f"{README}:0", "exec"), names)
    return float(names["normaliser"]), {name: value.detach().clone() for name, value in model.named_parameters()}


def test_the_training_loop_takes_the_same_steps_on_one_process_and_on_two():
    before = {name: value.detach().clone() for name, value in _model().named_parameters()}
    normaliser, weights = train_as_printed()
    assert normaliser == pytest.approx(float(_packs()[-1]["loss_weight"].sum()), rel=1e-12)
    assert all(not torch.equal(weights[name], before[name]) for name in before)
    for found_normaliser, found in run_ranks(__file__, "train_as_printed", (2,))[2]:
        assert found_normaliser == pytest.approx(normaliser, rel=1e-12)
        for name, value in weights.items():
            # transformers' RMSNorm computes in float32.
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)


def test_attention_is_called_as_printed(capsys):
    exec(compile(EXAMPLES[1], f"{README}:1", "exec"), {})
    assert capsys.readouterr().out == "torch.Size([12, 3, 8])\n"


def test_the_picture_of_the_layout_is_that_of_the_plan():
    script = FOLDER / "docs" / "layout_picture.py"
    spec = importlib.util.spec_from_file_location("layout_picture", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (FOLDER / "docs" / "layout.svg").read_text(encoding="utf-8") == module.draw(), f"run {script.name}"
    assert "(docs/layout.svg)" in README.read_text(encoding="utf-8")
