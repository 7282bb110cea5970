"""Low-rank updates in place of whole weights: what full-scale training learns of a pretrained UNet.

Path:    UNet -> the same UNet with LoRA on every attention -> the plain UNet again, updates folded in
Letters: r rank

W + B A with B zero at first (arXiv:2106.09685), scaled by 1: a fresh LoRA changes nothing. Spatial layers and motion
modules get one each; the input layer, which guidance widened, is new and trains whole.
"""

from typing import Any

import torch
from diffusers import UNetMotionModel

# The four maps of every attention, spatial, textual and temporal.
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


def add_lora(unet: UNetMotionModel, rank: int) -> None:
    """Freeze the UNet but for its input layer, and add trainable updates of that rank to its attention."""
    from peft import LoraConfig

    unet.add_adapter(
        LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS), init_lora_weights="gaussian"), "trained"
    )
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith("conv_in."))


@torch.no_grad()
def merge_and_drop(model: Any) -> None:
    """Fold PEFT's LoRA layers into the layers that they wrap, and leave those as they were named before."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=True)
            parent = model.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], module.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
    model._hf_peft_config_loaded = False
