"""Stable Diffusion 1.5 and AnimateDiff, in diffusers' folders, as a pipeline folder that training starts from.

Path:    Stable Diffusion folder, motion adapter folder, LoRA files -> pipeline folder {vae, text_encoder, tokenizer,
         unet, guidance_encoder, scheduler}
Letters: none

The guidance encoder is fresh: its outputs are zero, so the pipeline makes what AnimateDiff would make. The UNet's input
is widened for guidance when training or generation first loads it with its guidance encoder, here. Only safetensors are
read; a weight that is missing, left over or of another shape is an error. A safety checker is not carried over.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL, DDIMScheduler, MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.loaders import StableDiffusionLoraLoaderMixin
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from finephys.diffusion.denoiser import save_half
from finephys.diffusion.lora import merge_and_drop
from finephys.diffusion.pipeline import write_model_index
from finephys.diffusion.unet import widen_conv_in
from finephys.guidance.encoder import GuidanceEncoder

# Width of the guidance encoder's own features at each scale: a tenth of the UNet's.
_HIDDEN_SHARE = 0.1


def import_stable_diffusion(
    stable_diffusion: Path, motion_adapter: Path, output: Path, loras: Sequence[Path] = ()
) -> None:
    """Write a pipeline folder, in half precision, of the parts in two folders of diffusers' layout.

    loras: safetensors files for the UNet and the text encoder, in diffusers' or kohya's names; they are merged in.
    Raises FileNotFoundError on a missing folder or part; OSError where there are no safetensors; ValueError, naming it,
    on a weight that does not fit.
    """
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if not (stable_diffusion / part).is_dir():
            raise FileNotFoundError(f"stable_diffusion {stable_diffusion} has no folder {part}")
    if not motion_adapter.is_dir():
        raise FileNotFoundError(f"motion_adapter {motion_adapter} does not exist")

    unet_2d = load_strictly(UNet2DConditionModel, stable_diffusion / "unet")
    text_encoder = load_strictly(CLIPTextModel, stable_diffusion / "text_encoder")
    for lora in loras:
        merge_lora(lora, unet_2d, text_encoder)
    adapter = load_strictly(MotionAdapter, motion_adapter)
    _check_adapter(unet_2d, adapter)
    unet = UNetMotionModel.from_unet2d(unet_2d, adapter)
    guidance_encoder = build_guidance_encoder(unet)
    widen_conv_in(unet, guidance_encoder.num_conv_in_channels)

    output.mkdir(parents=True, exist_ok=True)
    parts = {
        "unet": unet,
        "vae": load_strictly(AutoencoderKL, stable_diffusion / "vae"),
        "text_encoder": text_encoder,
        "guidance_encoder": guidance_encoder,
    }
    for name, part in parts.items():
        save_half(part, output / name)
    CLIPTokenizer.from_pretrained(stable_diffusion / "tokenizer").save_pretrained(output / "tokenizer")
    animatediff_scheduler(stable_diffusion / "scheduler").save_pretrained(output / "scheduler")
    write_model_index(output, shared_noise=0.0)


def load_strictly(kind: type[Any], folder: Path) -> Any:
    """A model of diffusers or transformers in float32, every weight of which came from `folder` and all of it used.

    Raises OSError where `folder` has no safetensors, ValueError on a weight that is missing, left over or misshapen.
    """
    model, report = kind.from_pretrained(folder, output_loading_info=True, use_safetensors=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        found = sorted(str(entry) for entry in report.get(problem) or ())
        if found:
            raise ValueError(f"{folder}: {problem.replace('_', ' ')} {found[0]} and {len(found) - 1} more")
    return model.float()


def merge_lora(file: Path, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
    """Add a LoRA's low-rank updates to the weights that they are for.

    Raises FileNotFoundError, ValueError on another format than safetensors, or on a module that neither model has.
    """
    if not file.is_file():
        raise FileNotFoundError(f"lora {file} does not exist")
    if file.suffix != ".safetensors":
        raise ValueError(f"lora {file} is no .safetensors file")
    state, alphas = StableDiffusionLoraLoaderMixin.lora_state_dict(
        str(file.parent), weight_name=file.name, unet_config=unet.config, use_safetensors=True
    )
    models: dict[str, nn.Module] = {"unet": unet, "text_encoder": text_encoder}
    for key in state:
        prefix, _, rest = key.partition(".")
        module = rest.partition(".lora")[0].replace(".processor", "")
        if prefix not in models or module not in dict(models[prefix].named_modules()):
            raise ValueError(f"lora {file} is for {key}, which {' and '.join(models)} do not have")
    for name, model in models.items():
        if not any(key.startswith(f"{name}.") for key in state):
            continue
        if name == "unet":
            StableDiffusionLoraLoaderMixin.load_lora_into_unet(state, alphas, unet, adapter_name="imported")
        else:
            StableDiffusionLoraLoaderMixin.load_lora_into_text_encoder(
                state, alphas, text_encoder, prefix=name, adapter_name="imported"
            )
        merge_and_drop(model)


def build_guidance_encoder(unet: UNetMotionModel) -> GuidanceEncoder:
    """A fresh guidance encoder for the scales of `unet`; it changes nothing yet."""
    widths = tuple(unet.config.block_out_channels)
    layers = unet.config.layers_per_block
    # GroupNorm of the encoder's own layers has groups of eight.
    hidden = tuple(max(48, 16 * round(_HIDDEN_SHARE * width / 16)) for width in widths)
    encoder: GuidanceEncoder = GuidanceEncoder(
        latent_channels=unet.config.out_channels,
        block_out_channels=widths,
        layers_per_block=layers if isinstance(layers, int) else layers[0],
        hidden_channels=hidden,
    )
    return encoder


def animatediff_scheduler(folder: Path) -> DDIMScheduler:
    """DDIM on the noise schedule of AnimateDiff's motion modules: Stable Diffusion's, but linear."""
    return DDIMScheduler.from_pretrained(
        folder, beta_schedule="linear", clip_sample=False, timestep_spacing="linspace", steps_offset=1
    )


def _check_adapter(unet: UNet2DConditionModel, adapter: MotionAdapter) -> None:
    ours, theirs = tuple(unet.config.block_out_channels), tuple(adapter.config.block_out_channels)
    if ours != theirs:
        raise ValueError(f"motion_adapter.block_out_channels is {theirs}, unet.block_out_channels is {ours}")
