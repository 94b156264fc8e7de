"""deploy/ray's configurations, by Ray's own schema, and the settings in them by the service's and vLLM's."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.engine import values_of
from service.settings import ServeSettings
from tests.ray import BIN, ENVIRONMENT, FOLDER, ROOT, needs_ray

FILES = sorted(FOLDER.glob("*.yaml"))


def parts(file: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The application in a file, and its deployment."""
    (application,) = yaml.safe_load(file.read_text())["applications"]
    (deployment,) = application["deployments"]
    return application, deployment


@needs_ray
def test_ray_takes_them() -> None:
    code = (
        "import sys, yaml\n"
        "from ray.serve.schema import ServeDeploySchema\n"
        "from deploy.ray.app import RaySettings, Speech, app\n"
        "for name in sys.argv[1:]:\n"
        "    config = ServeDeploySchema.model_validate(yaml.safe_load(open(name)))\n"
        "    (one,) = config.applications\n"
        "    assert [deployment.name for deployment in one.deployments] == [Speech.name]\n"
        "    app(RaySettings.model_validate(one.args))\n"
    )
    served = yaml.safe_load((ROOT / "deploy/kubernetes/overlays/kuberay/rayservice.yml").read_text().split("---")[0])
    manifest = served["spec"]["serveConfigV2"]
    done = subprocess.run(
        [BIN / "python", "-c", code, *FILES, "/dev/stdin"],
        input=manifest,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_the_service_takes_their_settings(file: Path) -> None:
    settings = ServeSettings.model_validate(parts(file)[0]["args"])
    options = [option for option in settings.vllm if option.startswith("--")]
    assert all(values_of(option) == 1 for option in options)
    assert len(settings.vllm) == 2 * len(options)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_replica_takes_more_than_it_scales_by_and_no_more_than_the_service(file: Path) -> None:
    application, deployment = parts(file)
    settings = ServeSettings.model_validate(application["args"])
    assert deployment["autoscaling_config"]["target_ongoing_requests"] < deployment["max_ongoing_requests"]
    assert deployment["max_ongoing_requests"] <= settings.max_requests
    assert deployment["autoscaling_config"]["min_replicas"] > 1  # an update takes one at a time


def test_there_is_a_gpu_for_each_of_vllms_workers_and_one_for_the_encoder() -> None:
    application, deployment = parts(FOLDER / "parallel.yaml")
    options = application["args"]["vllm"]
    size = {name: int(options[options.index(f"--{name}-parallel-size") + 1]) for name in ("tensor", "pipeline")}
    bundles = deployment["placement_group_bundles"]
    workers = json.loads(f"[{application['runtime_env']['env_vars']['VLLM_RAY_BUNDLE_INDICES']}]")
    assert len(workers) == size["tensor"] * size["pipeline"]
    assert workers == list(range(1, len(bundles)))
    assert all(bundle["GPU"] == 1 for bundle in bundles)  # vLLM wants no more in one
    own = deployment["ray_actor_options"]
    assert bundles[0] == {"CPU": own["num_cpus"], "GPU": own["num_gpus"]}
