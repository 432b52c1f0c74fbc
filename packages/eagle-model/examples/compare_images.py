"""Ask about several pictures at once: `python compare_images.py --model FOLDER a.jpg b.jpg --question "What differs?"`"""

# transformers' annotations of AutoModel are too narrow:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
import argparse

import eagle_model  # noqa: F401  # makes the Auto classes know Eagle 2.5
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="nvidia/Eagle-2.5-8B")
parser.add_argument("images", nargs="+")
parser.add_argument("--question", default="What differs between these images?")
parser.add_argument("--max-tiles", type=int, default=12, help="tiles of one image; fewer take less memory and show less detail")
parser.add_argument("--max-new-tokens", type=int, default=256)
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(options.model)

# The pictures are numbered in the prompt, so that the question may speak of "image 2".
content = [{"type": "image", "image": image} for image in options.images]
messages = [{"role": "user", "content": [*content, {"type": "text", "text": options.question}]}]
inputs = processor.apply_chat_template(
    messages,
    add_generation_prompt=True,
    tokenize=True,
    return_dict=True,
    return_tensors="pt",
    images_kwargs={"max_dynamic_tiles": options.max_tiles},
).to(device)
answer = model.generate(**inputs, max_new_tokens=options.max_new_tokens)
print(processor.decode(answer[0], skip_special_tokens=True))
