"""One question about each of many pictures, answered in one batch: `python answer_batch.py --model FOLDER a.jpg b.jpg c.jpg`"""

# transformers' annotations of AutoModel are too narrow:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
import argparse

import eagle_model  # noqa: F401  # makes the Auto classes know Eagle 2.5
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="nvidia/Eagle-2.5-8B")
parser.add_argument("images", nargs="+")
parser.add_argument("--question", default="Describe this image.")
parser.add_argument("--max-new-tokens", type=int, default=256)
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(options.model)

question = {"type": "text", "text": options.question}
conversations = [[{"role": "user", "content": [{"type": "image", "image": image}, question]}] for image in options.images]
# Prompts differ in length; the processor pads them on the left, where generation needs it.
inputs = processor.apply_chat_template(
    conversations, add_generation_prompt=True, tokenize=True, return_dict=True, padding=True, return_tensors="pt"
).to(device)
answers = model.generate(**inputs, max_new_tokens=options.max_new_tokens)
for image, answer in zip(options.images, processor.batch_decode(answers, skip_special_tokens=True), strict=True):
    print(f"{image}: {answer}")
