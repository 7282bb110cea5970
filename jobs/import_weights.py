"""Make a pipeline folder of Stable Diffusion and AnimateDiff weights: python jobs/import_weights.py ..."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from finephys.command_line import run


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What to take the weights from and where to write the folder."""

    stable_diffusion: Path
    """Folder of Stable Diffusion 1.5 in diffusers' layout: unet, vae, text_encoder, tokenizer, scheduler."""
    motion_adapter: Path
    """Folder of an AnimateDiff motion adapter in diffusers' layout."""
    output: Path
    """Pipeline folder to write; must not exist."""
    lora: tuple[Path, ...] = ()
    """LoRA files (.safetensors) to merge into the UNet and the text encoder."""


def main(config: ImportConfig) -> None:
    if config.output.exists():
        raise ValueError(f"output {config.output} exists, wanted a new folder")
    from finephys.diffusion.pretrained import import_stable_diffusion

    config.output.parent.mkdir(parents=True, exist_ok=True)
    writing = Path(tempfile.mkdtemp(prefix=f".{config.output.name}-", dir=config.output.parent))
    try:
        import_stable_diffusion(config.stable_diffusion, config.motion_adapter, writing, config.lora)
        os.replace(writing, config.output)
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    print(f"done: {config.output}; train it with jobs/train.py sd15_one_node --init {config.output}")


if __name__ == "__main__":
    run(
        main,
        ImportConfig,
        description="Make a pipeline folder of Stable Diffusion 1.5 and AnimateDiff weights; training starts from it.",
        examples=(
            "--stable-diffusion data/stable-diffusion-v1-5 --motion-adapter data/animatediff-v1-5-3 "
            "--output data/sd15-animatediff",
            "--stable-diffusion sd15 --motion-adapter adapter --lora style.safetensors --output data/styled",
        ),
    )
