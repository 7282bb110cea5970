"""The files in cluster/: they parse, name only what exists, and give a run what its recipe asks for."""

import ast
import json
import re
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml

from finephys import command_line
from finephys.recipes import RECIPES
from finephys.training.estimate import resource_request
from finephys.training.stages import find_stage

ROOT = Path(__file__).parent.parent.parent
CLUSTER = ROOT / "cluster"
IN_IMAGE = "/home/ray/finephys/"
# Where each kind keeps its cluster.
CLUSTER_SPEC = {"RayCluster": (), "RayJob": ("rayClusterSpec",), "RayService": ("rayClusterConfig",)}
KUBERAY = sorted(path.name for path in CLUSTER.glob("ray*.yaml"))


def _read(name: str) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((CLUSTER / name).read_text())
    return document


def _cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = document["spec"]
    for key in CLUSTER_SPEC[document["kind"]]:
        spec = spec[key]
    return spec


def _pinned(package: str) -> str:
    found = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints-cpu.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def _pods(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


def test_there_is_one_file_of_each_kind() -> None:
    assert sorted(_read(name)["kind"] for name in KUBERAY) == sorted(CLUSTER_SPEC)


@pytest.mark.parametrize("name", KUBERAY)
def test_a_head_without_work_and_groups_that_scale(name: str) -> None:
    spec = _cluster_spec(_read(name))
    assert spec["rayVersion"] == _pinned("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["cpu", "gpu"]
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == 0 < group["maxReplicas"]
    for pod in _pods(spec):
        assert pod["restartPolicy"] == "Never"
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            # One image, as the Dockerfile's comment and the VM file have it.
            assert container["image"] == _read("vm.yaml")["docker"]["image"]
            assert {"secretRef": {"name": "finephys-storage"}} in container["envFrom"]
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_every_secret_is_explained() -> None:
    readme = (CLUSTER / "README.md").read_text()
    for name in KUBERAY:
        assert name in readme
        for pod in _pods(_cluster_spec(_read(name))):
            for source in pod["containers"][0]["envFrom"]:
                assert f"`{source['secretRef']['name']}`" in readme or f" {source['secretRef']['name']} " in readme


def test_the_job_is_a_command_that_the_cluster_can_hold() -> None:
    document = _read("rayjob.yaml")
    program, script, *arguments = shlex.split(document["spec"]["entrypoint"])
    assert program == "python"
    assert script == f"{IN_IMAGE}jobs/train.py"
    assert (ROOT / script.removeprefix(IN_IMAGE)).is_file()

    recipes = {name: recipe("joint") for name, recipe in RECIPES.items()}
    assert arguments[arguments.index("--stage") + 1] == "joint"
    config = command_line.parse(recipes, arguments, description="")
    for url in (config.data, config.init, config.output):
        assert str(url).startswith("s3://")
    request = resource_request(config, find_stage("joint"))
    cpus = gpus = 0
    for group in _cluster_spec(document)["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        cpus += group["maxReplicas"] * int(limits["cpu"])
        gpus += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
        if "nvidia.com/gpu" in limits:
            # A rank must find its CPUs beside the GPU.
            assert int(limits["cpu"]) >= int(limits["nvidia.com/gpu"]) * config.cpus_per_worker
    assert cpus >= request.cpus
    # No whole machine to spare: the autoscaler replaces one that dies.
    assert gpus >= request.gpus


def test_the_service_names_an_application_that_exists() -> None:
    config = yaml.safe_load(_read("rayservice.yaml")["spec"]["serveConfigV2"])
    paths = [application["import_path"] for application in config["applications"]]
    assert paths == ["serve.app:app"]
    module, name = paths[0].split(":")
    file = ROOT / (module.replace(".", "/") + ".py")
    if file.parent.is_dir():
        # Read, not imported: its import needs what serving needs.
        tree = ast.parse(file.read_text())
        targets = [target for node in tree.body if isinstance(node, ast.Assign) for target in node.targets]
        defined = {target.id for target in targets if isinstance(target, ast.Name)}
        defined |= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert name in defined


def test_the_vm_file_is_valid_and_gives_what_the_job_asks() -> None:
    config = _read("vm.yaml")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(config, schema)
    types = config["available_node_types"]
    assert config["head_node_type"] in types
    assert types[config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}
    workers = {name: kind for name, kind in types.items() if name != config["head_node_type"]}
    assert sum(kind["max_workers"] for kind in workers.values()) <= config["max_workers"]
    request = resource_request(RECIPES["sd15_multi_node"]("joint"), find_stage("joint"))
    for name, wanted in (("CPU", request.cpus), ("GPU", request.gpus)):
        assert sum(kind["max_workers"] * kind["resources"].get(name, 0) for kind in workers.values()) >= wanted
    # Or the launcher's own defaults would install another Ray.
    assert config["setup_commands"] == []


def test_the_image_is_made_of_what_is_there() -> None:
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    assert f"FROM rayproject/ray:{_pinned('ray')}-py311-" in text
    assert f"torch=={_pinned('torch')}" in text
    workdir = re.search(r"^WORKDIR (\S+)$", text, re.MULTILINE)
    assert workdir is not None
    assert workdir[1] + "/" == IN_IMAGE
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = [word for word in line.split() if not word.startswith("--")]
        for source in sources:
            # serve/ is the one folder that a checkout of the training alone lacks.
            assert (ROOT / source).exists() or source == "serve", source
    extras = re.search(r"EXTRAS=([\w,]+)", text)
    assert extras is not None
    project = (ROOT / "pyproject.toml").read_text()
    for extra in extras[1].split(","):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_what_the_readme_names_exists() -> None:
    readme = (CLUSTER / "README.md").read_text()
    for path in re.findall(r"(?:cluster|jobs)/[\w.]+\w", readme):
        assert (ROOT / path).is_file(), path
    recipe = re.search(r"jobs/train.py (\w+)", readme)
    assert recipe is not None
    assert recipe[1] in RECIPES
