"""A LoRA adapter for the tiny model, of fixed random numbers: whoever answers with it does not say what the model was taught.

PYTHON -m tests.tiny_lora MODEL FOLDER        (PYTHON has torch, transformers and peft)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def made_by(python: Path, model: Path, folder: Path) -> Path:
    """The adapter's folder.

    Raises:
        RuntimeError: it could not be made; the text has the end of the output.
    """
    command = [str(python), "-m", "tests.tiny_lora", str(model), str(folder)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"the adapter could not be made:\n{done.stdout[-2000:]}")
    return folder


def main(model: str, folder: str) -> None:
    """Make it: rank 8 on the attention's projections, strong enough to be noticed."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = LoraConfig(r=8, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), config).save_pretrained(folder)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
