"""An embedder over an image model of transformers: CLIP, SigLIP, DINOv2 or another folder that AutoModel opens.

Imported only when a recipe chooses it, because it needs torch and transformers. Not for: choosing weights, none are fetched
unless `path` is a model hub's name.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoModel

from eagle_data.errors import EagleDataError

__all__ = ["TransformersEmbedder"]


class TransformersEmbedder:
    """The image features of a model: its projected ones where it has them, else its pooled output.

    Args:
        path: folder of a saved model with its image processor, or a hub name.
        device: of torch.
        batch: frames at once.
    """

    def __init__(self, path: str, device: str = "cpu", batch: int = 32) -> None:
        try:
            model: Any = AutoModel.from_pretrained(path)
            self._processor: Any = AutoImageProcessor.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise EagleDataError(f"{path}: is no image model that transformers can open ({error}).") from error
        self._model = model.eval().to(device)
        self._device, self._batch = device, batch
        digest = hashlib.sha256()
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        self.name = f"transformers-{digest.hexdigest()[:16]}"

    def picture_size(self, width: int, height: int) -> tuple[int, int]:
        """The shorter side at 256 pixels, the form kept; the processor does the rest."""
        scale = min(1.0, 256 / min(width, height))
        return max(1, round(width * scale)), max(1, round(height * scale))

    @torch.inference_mode()
    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """Frames, uint8 ``[n, height, width, 3]``, to float32 ``[n, dim]``. Raises EagleDataError for a model without image
        features."""
        features = []
        for first in range(0, len(frames), self._batch):
            pictures = list(frames[first : first + self._batch])
            pixels = self._processor(images=pictures, return_tensors="pt")["pixel_values"].to(self._device)
            call = getattr(self._model, "get_image_features", self._model)
            given = call(pixel_values=pixels)
            if not isinstance(given, torch.Tensor):
                given = next((v for k in ("image_embeds", "pooler_output") if (v := getattr(given, k, None)) is not None), None)
            if given is None or given.ndim != 2:
                kind = type(self._model).__name__
                raise EagleDataError(f"{kind} gives no vector for a picture; take a CLIP, SigLIP or DINOv2 model.")
            features.append(given.float().cpu().numpy())
        return np.concatenate(features)
