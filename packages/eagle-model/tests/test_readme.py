"""The README's examples run as they are printed."""

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
