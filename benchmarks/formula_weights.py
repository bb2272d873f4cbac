"""Writes the weights that come with the package, without a head and in half precision, from their pre-training.

t2t-vit pretrain --steps 8000 --eval-every 500 --output runs/formulas
python benchmarks/formula_weights.py runs/formulas src/t2t_vit/models/formulas.safetensors
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from t2t_vit.models.checkpoint_formats import FORMAT, VERSION, read_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the folder of the pre-training, or a checkpoint of it")
    parser.add_argument("output", type=Path, help="the file to write")
    words = parser.parse_args()
    read = read_checkpoint(words.run)
    weights = {
        name: tensor.to(torch.float16 if tensor.ndim > 1 else torch.float32).contiguous()  # vectors take little room
        for name, tensor in read.state_dict.items()
        if not name.startswith("head.")
    }
    about = {
        "version": VERSION,
        "model": read.model,
        "model_args": {**read.model_args, "num_classes": 0},
        "data_config": read.data_config,
    }
    save_file(weights, words.output, metadata={FORMAT: json.dumps(about)})
    print(f"{words.output}: {len(weights)} tensors of {read.model}, {words.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
