"""Ask about one picture: `python describe_image.py --model FOLDER photo.jpg "Describe it."`"""

# transformers' annotations of AutoModel are too narrow:
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false
import argparse

import eagle_model  # noqa: F401  # makes the Auto classes know Eagle 2.5
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="nvidia/Eagle-2.5-8B")
parser.add_argument("image")
parser.add_argument("question", nargs="?", default="Describe this image.")
parser.add_argument("--max-new-tokens", type=int, default=256)
options = parser.parse_args()

device = "cuda" if torch.cuda.is_available() else "cpu"
model = AutoModelForImageTextToText.from_pretrained(options.model, dtype="auto").to(device)
processor = AutoProcessor.from_pretrained(options.model)

messages = [{"role": "user", "content": [{"type": "image", "image": options.image}, {"type": "text", "text": options.question}]}]
prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
images, videos = processor.process_vision_info(messages)
inputs = processor(text=[prompt], images=images, videos=videos, return_tensors="pt").to(device)
answer = model.generate(**inputs, max_new_tokens=options.max_new_tokens)
print(processor.decode(answer[0], skip_special_tokens=True))
