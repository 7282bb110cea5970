"""Stable Diffusion and AnimateDiff folders, small, as diffusers itself writes them; and the full sizes."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AutoencoderKL,
    MotionAdapter,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNetMotionModel,
)
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from finephys.diffusion.denoiser import DenoiserConfig, build_denoiser
from finephys.diffusion.pipeline import FinePhysPipeline
from finephys.diffusion.pretrained import build_guidance_encoder, import_stable_diffusion, merge_lora
from finephys.diffusion.text import TextConfig, build_text_encoder, build_tokenizer
from finephys.diffusion.unet import widen_conv_in
from tests.diffusion.conftest import standing

# The configuration of stable-diffusion-v1-5's unet/ and of animatediff-motion-adapter-v1-5-3.
SD15_UNET = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
SD15_ADAPTER = {
    "block_out_channels": (320, 640, 1280, 1280),
    "motion_layers_per_block": 2,
    "motion_num_attention_heads": 8,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": False,
}
SMALL = {"block_out_channels": (16, 32), "norm_num_groups": 8}
SIDE = 32


def shaken(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(Stable Diffusion folder, motion adapter folder), all weights random."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("pretrained")
    text = TextConfig(max_length=24, hidden_size=32, intermediate_size=32)
    tokenizer = build_tokenizer(text, ["A gymnast jumps."])
    unet = UNet2DConditionModel(
        sample_size=SIDE // 2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=2,
        cross_attention_dim=32,
        attention_head_dim=2,
        **SMALL,
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        sample_size=SIDE,
        **SMALL,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=shaken(build_text_encoder(text, tokenizer)),
        tokenizer=tokenizer,
        unet=shaken(unet),
        scheduler=PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(root / "sd")
    adapter = MotionAdapter(
        block_out_channels=(16, 32), motion_norm_num_groups=8, motion_num_attention_heads=2, use_motion_mid_block=False
    )
    shaken(adapter).save_pretrained(root / "adapter")
    return root / "sd", root / "adapter"


@pytest.fixture(scope="module")
def imported(folders, tmp_path_factory):
    output = tmp_path_factory.mktemp("imported") / "pipeline"
    import_stable_diffusion(*folders, output)
    return output


def test_an_untrained_guide_leaves_animatediff_as_it_is(folders, imported):
    """The same noise and prompt through diffusers' own AnimateDiff pipeline: the same latents."""
    ours = FinePhysPipeline.from_pretrained(imported)
    theirs = AnimateDiffPipeline.from_pretrained(
        folders[0],
        motion_adapter=MotionAdapter.from_pretrained(folders[1]),
        scheduler=ours.scheduler,
        torch_dtype=torch.float32,
    )
    theirs.unet.to(torch.float16).to(torch.float32)  # what the imported half precision rounds
    theirs.text_encoder.to(torch.float16).to(torch.float32)
    noise = torch.randn(1, 4, 4, SIDE // 2, SIDE // 2, generator=torch.Generator().manual_seed(0))
    wanted = theirs(
        "A gymnast jumps.", num_frames=4, height=SIDE, width=SIDE, num_inference_steps=3, guidance_scale=3.0,
        latents=noise, output_type="latent",
    ).frames  # fmt: skip
    found = ours(
        "A gymnast jumps.", joints_cam_m=standing(8), num_frames=4, num_inference_steps=3, guidance_scale=3.0,
        latents=noise.transpose(1, 2), output_type="latent",
    ).frames  # fmt: skip
    torch.testing.assert_close(found.transpose(1, 2), wanted, atol=2e-4, rtol=2e-4)


def test_it_trains_as_the_noise_predictor_that_it_is(imported):
    denoiser = build_denoiser(DenoiserConfig(), imported)
    assert denoiser.scheduler.config.prediction_type == "epsilon"
    assert denoiser.scheduler.config.beta_schedule == "linear"
    torch.manual_seed(0)
    denoiser.config.__dict__.update(reference_dropout=1.0)
    joints = torch.from_numpy(standing(2))[None]
    for parameter in denoiser.unet.parameters():
        torch.nn.init.zeros_(parameter)
    # A UNet that says zero misses unit noise by one, whatever the noise level; v would differ.
    losses = [
        denoiser(
            torch.full((1, 2, 4, 16, 16), 3.0), ["A gymnast"], joints[..., :2] * 5 + 16, joints[..., 2] - 3.5,
            joints[..., :2] * 5 + 16, (SIDE, SIDE),
            _reference(),
        )["mse"].item()
        for _ in range(8)
    ]  # fmt: skip
    assert np.mean(losses) == pytest.approx(1, abs=0.1)


def _reference():
    from finephys.guidance.reference import Reference

    return Reference(torch.zeros(1, 4, 16, 16), torch.zeros(1, 17, 2), torch.tensor([True]))


def lora_file(folder: Path, unet_folder: Path) -> Path:
    """A LoRA as diffusers' training scripts save it."""
    unet = UNet2DConditionModel.from_pretrained(unet_folder)
    unet.add_adapter(LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_v"]))
    from diffusers.utils import convert_state_dict_to_diffusers

    StableDiffusionPipeline.save_lora_weights(
        folder, unet_lora_layers=convert_state_dict_to_diffusers(get_peft_model_state_dict(unet))
    )
    return folder / "pytorch_lora_weights.safetensors"


def test_a_lora_is_merged_as_diffusers_merges_it(folders, tmp_path):
    torch.manual_seed(1)
    lora = lora_file(tmp_path, folders[0] / "unet")
    reference = StableDiffusionPipeline.from_pretrained(folders[0])
    plain = {name: value.clone() for name, value in reference.unet.state_dict().items()}
    reference.load_lora_weights(tmp_path)
    reference.fuse_lora()
    reference.unload_lora_weights()
    pipeline = StableDiffusionPipeline.from_pretrained(folders[0])
    merge_lora(lora, pipeline.unet, pipeline.text_encoder)
    merged, wanted = pipeline.unet.state_dict(), reference.unet.state_dict()
    assert merged.keys() == wanted.keys() == plain.keys()
    for name, value in merged.items():
        torch.testing.assert_close(value, wanted[name], atol=1e-6, rtol=1e-5)
    assert sum(not torch.equal(value, plain[name]) for name, value in merged.items()) >= 8


def test_a_lora_for_something_else_is_refused(folders, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(folders[0])
    state = load_file(lora_file(tmp_path, folders[0] / "unet"))
    wrong = {key.replace("down_blocks.0", "down_blocks.7"): value for key, value in state.items()}
    save_file(wrong, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"down_blocks\.7"):
        merge_lora(tmp_path / "wrong.safetensors", pipeline.unet, pipeline.text_encoder)
    (tmp_path / "pickled.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        merge_lora(tmp_path / "pickled.bin", pipeline.unet, pipeline.text_encoder)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_that_do_not_fit_are_named(folders, tmp_path, change):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "config.json").write_text((folders[1] / "config.json").read_text())
    state = load_file(folders[1] / "diffusion_pytorch_model.safetensors")
    name = sorted(state)[0]
    if change == "missing":
        del state[name]
    else:
        name = "something.else"
        state[name] = torch.zeros(3)
    save_file(state, adapter / "diffusion_pytorch_model.safetensors")
    with pytest.raises(ValueError, match=f"{change} keys {name}"):
        import_stable_diffusion(folders[0], adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_full_size_widths_of_every_part_fit_together():
    """The exact configurations of Stable Diffusion 1.5 and its motion adapter, without the memory: on torch's meta."""
    with torch.device("meta"):
        unet_2d = UNet2DConditionModel(**SD15_UNET)
        unet = UNetMotionModel.from_unet2d(unet_2d, MotionAdapter(**SD15_ADAPTER))
        encoder = build_guidance_encoder(unet)
        widen_conv_in(unet, encoder.num_conv_in_channels)
        assert sum(parameter.numel() for parameter in unet_2d.parameters()) == 859_520_964
        guidance = encoder([torch.zeros(2, 49, 64 >> scale, 64 >> scale) for scale in range(4)])
        sample = torch.zeros(1, unet.config.in_channels, 2, 64, 64)
        prediction = unet(
            sample,
            torch.zeros(1, dtype=torch.long),
            encoder_hidden_states=torch.zeros(2, 77, 768),
            down_block_additional_residuals=guidance.down_residuals,
            mid_block_additional_residual=guidance.mid_residual,
        ).sample
    assert prediction.shape == (1, 4, 2, 64, 64)
    # A thirtieth of the UNet at most.
    assert sum(parameter.numel() for parameter in encoder.parameters()) < 1.3e9 / 30


def test_the_job_writes_the_folder_whole_or_not_at_all(folders, tmp_path, monkeypatch, capsys):
    def job(*arguments):
        monkeypatch.setattr(sys, "argv", ["jobs/import_weights.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            runpy.run_path("jobs/import_weights.py", run_name="__main__")
        return leaving.value.code, capsys.readouterr().err

    given = ["--stable-diffusion", folders[0], "--motion-adapter", folders[1], "--output", tmp_path / "new"]
    code, stderr = job(*given, "--lora", tmp_path / "none.safetensors")
    assert code == 2
    assert "none.safetensors does not exist" in stderr
    assert list(tmp_path.iterdir()) == []
    assert job(*given)[0] == 0
    assert json.loads((tmp_path / "new" / "model_index.json").read_text())["shared_noise"] == 0.0
    code, stderr = job(*given)
    assert code == 2
    assert "exists" in stderr
