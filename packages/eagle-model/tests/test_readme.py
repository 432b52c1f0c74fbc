"""The README's examples run as they are printed, and its list of the contract names every test file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

README = Path(__file__).parent.parent / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL) if README.is_file() else []


@pytest.mark.skipif(not EXAMPLES, reason="the README is not beside the tests")
@pytest.mark.parametrize("number", range(max(len(EXAMPLES), 1)))
def test_every_example_runs(number: int, make_model: Any, processor: Any, tmp_path: Any, monkeypatch: Any):
    folder = tmp_path / "runs" / "quickstart" / "checkpoint-final"
    make_model(dtype=torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    Image.new("RGB", (96, 32)).save(tmp_path / "strip.png")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(EXAMPLES[number], f"{README}:{number}", "exec"), names)
    if "output" in names:
        assert torch.isfinite(names["output"].loss)
        assert names["model"].mlp1[1].weight.grad.any()


@pytest.mark.skipif(not EXAMPLES, reason="the README is not beside the tests")
def test_the_contract_lists_every_test_file_and_no_other():
    contract = README.read_text(encoding="utf-8").split("## Tests: the contract")[1]
    table = "\n".join(line for line in contract.splitlines() if line.startswith("|"))
    here = {path.name for path in Path(__file__).parent.glob("test_*.py")}
    assert set(re.findall(r"`(test_\w+\.py)`", table)) == here
    behaviours = [
        name for name in here for name in re.findall(r"^def (test_\w+)", (Path(__file__).parent / name).read_text(), re.M)
    ]
    assert len(set(behaviours)) >= 80
