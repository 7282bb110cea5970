"""Who may import what (style.md 1): the maths runs without a cluster, and arrows run one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "finephys"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))

# Library -> where in finephys/ it may be imported.
ALLOWED = {
    "ray": ("data/pipeline.py", "training/ray_", "generation/batch.py", "benchmarks/"),
    "deepspeed": ("training/zero.py",),
    "mmpose": ("pose/",),
    "mmengine": ("pose/",),
    "mmcv": ("pose/",),
    "pybullet": ("gymnast/",),
    "pybullet_data": ("gymnast/",),
    "anny": ("gymnast/",),
    "embreex": ("gymnast/",),
    "torchvision": (),
    "fastapi": (),
    "jobs": (),
    "serve": (),
    "cluster": (),
    "tests": (),
}
# Folders of finephys/ that must not know of training.
MODEL_FOLDERS = ("pose", "physics", "guidance", "diffusion", "evaluation", "gymnast")


def _imported(path: Path) -> set[str]:
    """Every module that a file imports anywhere, functions included, by its full dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_the_walk_sees_imports() -> None:
    assert "ray" in {name.split(".")[0] for name in _imported(PACKAGE / "training" / "ray_trainer.py")}
    assert "deepspeed" in {name.split(".")[0] for name in _imported(PACKAGE / "training" / "zero.py")}


@pytest.mark.parametrize("library", ALLOWED)
def test_libraries_stay_where_they_belong(library: str) -> None:
    for path in FILES:
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(ALLOWED[library]) if ALLOWED[library] else False:
            continue
        roots = {imported.split(".")[0] for imported in _imported(path)}
        assert library not in roots, f"finephys/{name} imports {library}"


@pytest.mark.parametrize("folder", MODEL_FOLDERS)
def test_model_code_knows_nothing_of_the_trainer(folder: str) -> None:
    for path in (PACKAGE / folder).rglob("*.py"):
        for imported in _imported(path):
            assert not imported.startswith("finephys.training"), f"{path.relative_to(ROOT)} imports {imported}"
            assert not imported.startswith("finephys.recipes"), f"{path.relative_to(ROOT)} imports {imported}"


def test_a_task_that_decodes_does_without_torch() -> None:
    """Seconds, and 200 MB in each of Ray's processes."""
    program = "import sys, finephys.data.decoding, finephys.data.pipeline; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
