"""A language model from its folder to a smaller folder, which transformers loads without graphprune.

    python -m examples.llm [FOLDER --text FILE] [--params 0.7x] [--out DIR]

Without a folder it is the Llama of stories260K where ../shared/data has that, else a small one of random weights.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import graphprune as gp


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="with config.json, safetensors and a tokeniser")
    parser.add_argument("--text", help="what it is calibrated with")
    parser.add_argument("--params", default="0.7x", help="what of its parameters may stay")
    parser.add_argument("--out", type=Path, help="where the smaller one goes")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        folder, data = options.folder, options.text
        if folder is None:
            folder = Path(place) / "whole"
            data = {"input_ids": made(folder)}
        out = options.out or Path(place) / "smaller"

        # The one line: layers are kept alike, so that config.json can say what is left.
        artifact = gp.compile(f"hf:{folder}", params=options.params, data=data, out=out, measure=False)

        before, after = (load(where) for where in (folder, out))
        print(f"{size(before)} parameters before, {size(after)} after")
        changed = {key: (getattr(before.config, key, None), value) for key, value in after.config.to_dict().items()}
        print("config.json:", {key: pair for key, pair in changed.items() if key in SAID and pair[0] != pair[1]})
        ids = torch.from_numpy(artifact.program.data[0][0][:1])
        for name, model in (("before", before), ("after", after)):
            told = model.generate(ids[:, :4], max_new_tokens=12, do_sample=False)
            print(f"{name}: loss {loss(model, ids):.3f}, tokens {told[0, 4:].tolist()}")


SAID = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")


def made(folder: Path) -> Any:
    """Write a folder; token numbers, (samples, length), to calibrate it with."""
    try:
        from benchmarks import stories

        llama: Any = stories.network().llama
        llama.save_pretrained(folder)
        return stories.real()[:32]
    except (ImportError, OSError, AttributeError):  # no such data here
        config = transformers.LlamaConfig(
            vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        torch.manual_seed(0)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        return np.random.default_rng(0).integers(3, 128, (8, 60))


def load(folder: Path) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    return model.eval()


def size(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def loss(model: Any, ids: torch.Tensor) -> float:
    return float(model(ids, labels=ids).loss)


if __name__ == "__main__":
    main()
