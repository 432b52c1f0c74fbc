"""The command line: `eagle-model convert` builds an Eagle from parts, `eagle-model merge-lora` folds an adapter in.

Exit code 2 means that what was asked cannot be, with one message on stderr.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

_DTYPES = ("bfloat16", "float16", "float32")


def build_parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    parser = argparse.ArgumentParser(prog="eagle-model", description=(__doc__ or "").split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    convert = commands.add_parser("convert", help="a SigLIP tower and a Qwen2, Qwen3 or Llama model to an Eagle folder")
    convert.add_argument("--vision", required=True, help="folder or hub id of a SigLIP or SigLIP2 checkpoint of fixed resolution")
    convert.add_argument("--text", required=True, help="folder or hub id of the language model, with its tokenizer")
    convert.add_argument("--out", required=True, help="folder to write; must not exist or be empty")
    convert.add_argument("--tile-size", type=int, help="side of a tile in pixels; positions are resampled (default: the tower's)")
    convert.add_argument("--select-layer", type=int, default=-1, help="hidden state of the tower to use (default: -1, the last)")
    convert.add_argument("--connector-layers", type=int, choices=(1, 2), default=2)
    convert.add_argument("--no-pixel-shuffle", action="store_true", help="one token a patch instead of one for 2 x 2")
    convert.add_argument("--max-tiles", type=int, default=12, help="most tiles of one image (default: 12)")
    convert.add_argument("--seed", type=int, default=0, help="of the new connector (default: 0)")
    convert.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    merge = commands.add_parser("merge-lora", help="fold a LoRA adapter into its model and save an ordinary folder")
    merge.add_argument("--model", required=True, help="folder or hub id of the Eagle that the adapter was trained on")
    merge.add_argument("--adapter", help="folder that peft saved (default: the adapters inside the model's own weights)")
    merge.add_argument("--out", required=True, help="folder to write; must not exist or be empty")
    merge.add_argument("--dtype", choices=_DTYPES, help="of the saved weights (default: the model's)")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        print(_convert(options) if options.command == "convert" else _merge(options))
    except (ValueError, OSError, ImportError) as error:
        print(f"eagle-model {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _convert(options: argparse.Namespace) -> str:
    import torch

    from eagle_model.convert import EagleOptions, convert

    chosen = EagleOptions(
        tile_size=options.tile_size,
        select_layer=options.select_layer,
        mlp_connector_layers=options.connector_layers,
        use_pixel_shuffle=not options.no_pixel_shuffle,
        max_dynamic_tiles=options.max_tiles,
        seed=options.seed,
    )
    done = convert(options.vision, options.text, options.out, chosen, dtype=getattr(torch, options.dtype))
    added = f"{len(done.new_tokens)} new tokens" if done.new_tokens else "no new tokens"
    return (
        f"{options.out}: tiles of {done.tile_size[1]} pixels (the tower had {done.tile_size[0]}), {done.tokens_per_tile} tokens "
        f"each; {added}, <IMG_CONTEXT> is {done.image_token_index}; vocabulary of {done.vocabulary_rows[1]} rows (had "
        f"{done.vocabulary_rows[0]}). The connector is untrained: train it before anything else."
    )


def _merge(options: argparse.Namespace) -> str:
    import torch

    from eagle_model.lora import merge_adapter
    from eagle_model.released_lora import merge_inside

    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    if options.adapter is None:
        merged = merge_inside(options.model, options.out, dtype=dtype)
    else:
        merged = merge_adapter(options.model, options.adapter, options.out, dtype=dtype)
    return f"{options.out}: {merged} layers merged"


if __name__ == "__main__":
    raise SystemExit(main())
