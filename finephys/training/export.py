"""From a checkpoint to a pipeline folder: the parts that a run started from, with the trained ones replaced.

Path:    OUTPUT/checkpoints/step-... -> FOLDER/{vae, unet, ...}
Letters: none
Units:   none

Weights are the moving average, whole and in half precision, as safetensors. DeepSpeed is not needed: the average lies
in the checkpoint as plain tensors, and shards of ZeRO-3 are joined on reading. FOLDER/training.json says which run and
step the folder is of, and how the runs that led to it validated. It is the first file to go and the last to come: with
it, the folder is whole.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from finephys import __version__
from finephys.config import TrainConfig, config_hash
from finephys.data import storage
from finephys.telemetry import RECORD, read_history, read_metrics
from finephys.training.checkpoint import Checkpoint, read_average
from finephys.training.stages import Stage


def export_pipeline(checkpoint: Checkpoint, config: TrainConfig, stage: Stage, url: str) -> None:
    """Write the pipeline folder at `url` from a checkpoint of `config`; what lay there before is replaced.

    Raises ValueError where the checkpoint's weights are not those of the stage's module.
    """
    with tempfile.TemporaryDirectory(prefix="finephys-export-") as scratch:
        init = None
        folder = Path(scratch) / "pipeline"
        folder.mkdir()
        if config.init is not None:
            storage.download_folder(config.init, folder)
            init = folder
        module = rebuild(checkpoint, config, stage, init)
        module.export(folder)
        halve(folder)
        _index(folder)
        history = [*read_history(str(folder)), _validations(checkpoint, config)]
        (folder / RECORD).unlink(missing_ok=True)
        record_url = storage.join(url, RECORD)
        if storage.exists(record_url):
            storage.delete_file(record_url)
        storage.delete_folder(url)
        storage.upload_folder(folder, url)
        storage.write_bytes(record_url, json.dumps(_record(checkpoint, config) | {"history": history}).encode())


def _validations(checkpoint: Checkpoint, config: TrainConfig) -> dict[str, Any]:
    lines = [line for line in read_metrics(config.output) if line["split"] == "validation"]
    without = ("split", "seconds", "time_s")
    return {
        "stage": config.stage,
        "steps": checkpoint.step,
        "validation": [
            {name: value for name, value in line.items() if name not in without}
            for line in lines
            if line["step"] <= checkpoint.step
        ],
    }


def is_exported(checkpoint: Checkpoint, config: TrainConfig, url: str) -> bool:
    """Whether the pipeline folder at `url` is whole and of this checkpoint."""
    record_url = storage.join(url, RECORD)
    if not storage.exists(record_url):
        return False
    record = json.loads(storage.read_bytes(record_url))
    record.pop("history", None)
    return bool(record == _record(checkpoint, config))


def _record(checkpoint: Checkpoint, config: TrainConfig) -> dict[str, Any]:
    return {
        "stage": config.stage,
        "step": checkpoint.step,
        "config_hash": config_hash(config),
        "finephys_version": __version__,
    }


def _index(folder: Path) -> None:
    """Make the folder loadable as a whole, where its parts suffice for a FinePhysPipeline."""
    if {"vae", "unet", "text_encoder", "tokenizer", "guidance_encoder"} <= {part.name for part in folder.iterdir()}:
        # Imported here: the pipeline needs every hop's libraries, and most stages train without them.
        from finephys.diffusion.pipeline import read_shared_noise, write_model_index

        write_model_index(folder, read_shared_noise(folder))


def halve(folder: Path) -> None:
    """Rewrite the float32 tensors of every safetensors file below `folder` as float16."""
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        if any(tensor.dtype == torch.float32 for tensor in tensors.values()):
            halved = {name: t.half() if t.dtype == torch.float32 else t for name, t in tensors.items()}
            save_file(halved, path, metadata=header)


def rebuild(checkpoint: Checkpoint, config: TrainConfig, stage: Stage, init: Path | None) -> Any:
    """The stage's module with the averaged weights of a checkpoint; init: a local copy of config.init."""
    torch.manual_seed(config.seed)
    module: Any = stage.build(config.module, init).float()
    saved = read_average(checkpoint)
    own = dict(module.named_parameters()) | dict(module.named_buffers())
    strange = sorted(set(saved) - set(own))
    if strange:
        raise ValueError(f"checkpoint {checkpoint.url} holds {strange[0]}, which stage {config.stage} does not have")
    with torch.no_grad():
        for name, value in saved.items():
            if own[name].shape != value.shape:
                raise ValueError(
                    f"checkpoint {checkpoint.url}: {name} has shape {tuple(value.shape)}, "
                    f"wanted {tuple(own[name].shape)}"
                )
            own[name].copy_(value)
    module.eval()
    return module
