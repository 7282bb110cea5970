"""Import mmpose's models where only their pure-Python requirements are installed.

Path:    used by rtmpose.py, nothing else imports mmpose

`import mmpose.models` imports compiled mmcv ops, mmdet, torchvision and xtcocotools, none of which RTMPose calls.
While the import runs, a module that is missing is stood in for by an empty one (xtcocotools by pycocotools, which is
the same code built for today's numpy); afterwards the stand-ins leave sys.modules, because transformers and diffusers
look there to learn what is installed. A real module that imports is used as it is.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import ModuleType
from typing import Any

_import_lock = Lock()


def import_mmpose_models() -> ModuleType:
    """The module mmpose.models, with all its classes registered.

    Raises ModuleNotFoundError naming the install line where mmpose or mmengine are not installed.
    """
    with _import_lock:
        if "mmpose.models" in sys.modules:
            return sys.modules["mmpose.models"]
        try:
            # This imports transformers, which looks for torchvision: before there is a stand-in for it.
            importlib.import_module("mmengine.model")
            with _stand_ins():
                return importlib.import_module("mmpose.models")
        except ModuleNotFoundError as error:
            message = (
                f"RTMPose needs mmpose, but {error.name} is not installed: "
                "pip install 'finephys[mmpose]' && pip install --no-deps mmpose==1.3.2"
            )
            raise ModuleNotFoundError(message, name=error.name) from error


def official_config(config_name: str) -> Any:
    """The mmengine Config called `config_name` (file name without .py) among the RTMPose ones that mmpose ships.

    Raises ValueError where there is none, listing those that there are.
    """
    models = import_mmpose_models()
    assert models.__file__ is not None
    folder = Path(models.__file__).parents[1] / ".mim/configs/body_2d_keypoint/rtmpose"
    paths = {path.stem: path for path in sorted(folder.glob("*/rtmpose-*.py"))}
    if config_name not in paths:
        raise ValueError(f"config_name is {config_name!r}, mmpose ships {', '.join(paths) or 'none'}")
    from mmengine.config import Config

    return Config.fromfile(paths[config_name])


@contextmanager
def _stand_ins() -> Iterator[None]:
    added: dict[str, ModuleType] = {}

    def stand_in(name: str, **attributes: Any) -> None:
        _drop_half_imported(name)
        module = ModuleType(name)
        module.__dict__.update(attributes)
        sys.modules[name] = added[name] = module

    if not _imports("mmcv.ops"):
        stand_in("mmcv.ops", MultiScaleDeformableAttention=_absent("MultiScaleDeformableAttention"))
    if not _imports("mmdet.utils"):
        stand_in("mmdet", __path__=[])
        stand_in("mmdet.utils", ConfigType=dict, reduce_mean=_absent("reduce_mean"))
    if not _imports("torchvision.transforms"):
        stand_in("torchvision", __path__=[])
        stand_in("torchvision.transforms", ToPILImage=_absent("ToPILImage"))
    if not _imports("xtcocotools.coco") or not _imports("xtcocotools.mask"):
        from pycocotools import coco, cocoeval, mask

        stand_in("xtcocotools", __path__=[])
        stand_in("xtcocotools.coco", COCO=coco.COCO)
        stand_in("xtcocotools.cocoeval", COCOeval=cocoeval.COCOeval)
        stand_in("xtcocotools.mask", **{name: getattr(mask, name) for name in ("encode", "decode", "frPyObjects")})
    try:
        yield
    finally:
        for name, module in added.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _imports(name: str) -> bool:
    """Whether `name` can be used: a build for another numpy or torch raises ValueError or RuntimeError."""
    try:
        importlib.import_module(name)
    except (ImportError, RuntimeError, ValueError):
        return False
    return True


def _drop_half_imported(name: str) -> None:
    """Take what a failed import left behind out of sys.modules."""
    for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        del sys.modules[loaded]


def _absent(name: str) -> type:
    """A class that says so when something calls it after all."""

    def refuse(self: object, *_: object, **__: object) -> None:
        raise ImportError(f"{name} is not available: finephys imports mmpose without its compiled requirements")

    return type(name, (), {"__init__": refuse})
