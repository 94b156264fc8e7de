"""What is in deploy/kubernetes/overlays/kuberay: held to Kubernetes' schemas, to deploy/ray, and to itself.

There is no schema of KubeRay's own objects here; their fields are those of its v1 API.
"""

import re
from functools import cache
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.settings import ServeSettings
from tests.test_deploy import DEPLOY, ROOT, run, yaml_of
from tests.test_kubernetes import FOLDER, VERSIONS

CUSTOM = {"RayService", "PodMonitor", "PrometheusRule"}
RAY = DEPLOY / "ray"


@cache
def rendered() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(run("kubectl", "kustomize", FOLDER / "overlays" / "kuberay")))


def only(kind: str, name: str = "blsp") -> dict[str, Any]:
    (found,) = [item for item in rendered() if (item["kind"], item["metadata"]["name"]) == (kind, name)]
    return found


def cluster() -> Any:
    return only("RayService")["spec"]["rayClusterConfig"]


def workers() -> Any:
    (group,) = cluster()["workerGroupSpecs"]
    return group


def pods() -> dict[str, Any]:
    """What the pods of Ray's two kinds of nodes are made of."""
    return {"head": cluster()["headGroupSpec"]["template"]["spec"], "worker": workers()["template"]["spec"]}


def container(node: str) -> Any:
    (found,) = pods()[node]["containers"]
    return found


def application() -> tuple[dict[str, Any], dict[str, Any]]:
    """The one application in the configuration of Serve, and its one deployment."""
    (application,) = yaml.safe_load(only("RayService")["spec"]["serveConfigV2"])["applications"]
    (deployment,) = application["deployments"]
    return application, deployment


def test_every_object_is_what_its_schema_asks_for() -> None:
    """Strictly: a misspelt field is an error."""
    kinds = {item["kind"] for item in rendered()}
    assert kinds == CUSTOM | {"PersistentVolumeClaim", "NetworkPolicy", "PodDisruptionBudget"}
    made = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node}, "spec": spec} for node, spec in pods().items()
    ]
    for item in [*made, *(item for item in rendered() if item["kind"] not in CUSTOM)]:
        for version in VERSIONS:
            kubernetes_validate.validate(item, version, strict=True)


def test_kuberays_objects_have_the_fields_of_their_definitions() -> None:
    """All that are used, and none that is misspelt."""
    service = only("RayService")
    assert service["apiVersion"] == "ray.io/v1"
    assert service["spec"].keys() == {
        *("upgradeStrategy", "rayClusterDeletionDelaySeconds", "excludeHeadPodFromServeSvc"),
        *("serveConfigV2", "rayClusterConfig"),
    }
    assert service["spec"]["upgradeStrategy"] == {"type": "NewCluster"}
    assert cluster().keys() == {
        *("rayVersion", "enableInTreeAutoscaling", "autoscalerOptions", "headGroupSpec", "workerGroupSpecs"),
    }
    assert cluster()["autoscalerOptions"].keys() == {"idleTimeoutSeconds", "securityContext", "resources"}
    assert cluster()["headGroupSpec"].keys() == {"rayStartParams", "template"}
    assert workers().keys() == {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    }
    for group in (cluster()["headGroupSpec"], workers()):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    monitor = only("PodMonitor")["spec"]
    assert monitor.keys() == {"selector", "podMetricsEndpoints"}
    assert monitor["podMetricsEndpoints"][0].keys() == {"port", "path", "interval", "relabelings"}


def test_it_is_in_the_namespace_of_the_other_overlays() -> None:
    namespace = yaml_of(FOLDER / "namespace.yml")["metadata"]["name"]
    assert {item["metadata"]["namespace"] for item in rendered()} == {namespace}


def test_it_serves_what_deploy_ray_serves() -> None:
    """But for addresses, keys and memory."""
    own = yaml.safe_load(only("RayService")["spec"]["serveConfigV2"])
    theirs = yaml_of(RAY / "serve.yaml")
    assert own["http_options"].pop("host") == "0.0.0.0"
    theirs["http_options"].pop("host")
    arguments = own["applications"][0]["args"]
    assert arguments.pop("host") == "0.0.0.0"
    assert arguments.pop("keys_file").startswith("/etc/blsp/")
    own["applications"][0]["runtime_env"]["env_vars"].pop("VLLM_CPU_KVCACHE_SPACE")
    assert own == theirs


def test_every_setting_is_one_that_the_service_knows() -> None:
    ServeSettings.model_validate(application()[0]["args"])


def test_a_worker_holds_one_replica_and_there_may_be_as_many() -> None:
    scaling, cores = application()[1]["autoscaling_config"], application()[1]["ray_actor_options"]["num_cpus"]
    resources = container("worker")["resources"]
    assert resources["requests"] == resources["limits"]
    assert int(resources["limits"]["cpu"]) == cores
    assert (workers()["minReplicas"], workers()["maxReplicas"]) == (scaling["min_replicas"], scaling["max_replicas"])
    assert workers()["replicas"] == workers()["minReplicas"]
    assert cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert only("PodDisruptionBudget")["spec"]["maxUnavailable"] < workers()["minReplicas"]


def test_a_pod_may_answer_what_runs_before_it_is_killed() -> None:
    (seconds,) = re.findall(r"graceful_shutdown_timeout_s=(\d+)", (RAY / "app.py").read_text())
    assert pods()["worker"]["terminationGracePeriodSeconds"] > int(seconds)
    assert only("RayService")["spec"]["rayClusterDeletionDelaySeconds"] > int(seconds)


def test_the_versions_are_one() -> None:
    (version,) = re.findall(r"^ray\[serve\]==(\S+)$", (RAY / "requirements.txt").read_text(), re.M)
    assert cluster()["rayVersion"] == version
    (name,) = re.findall(r"docker build -f deploy/ray/Dockerfile .*-t (\S+) \.", (RAY / "Dockerfile").read_text())
    assert {container(node)["image"] for node in pods()} == {name}


def test_the_image_is_a_good_one_and_finds_its_files() -> None:
    run("hadolint", "--ignore", "DL3006", RAY / "Dockerfile")  # which image it stands on is an argument
    text = (RAY / "Dockerfile").read_text()
    assert re.findall(r"^USER (\d+)$", text, re.M)[-1] == "10001"
    let_in = (ROOT / ".dockerignore").read_text().splitlines()
    for source in re.findall(r"^COPY (\S+) ", text, re.M):
        assert (ROOT / source).exists()
        assert f"!{source}" in let_in


def test_pods_can_do_nothing_but_serve() -> None:
    for node, spec in pods().items():
        assert spec["securityContext"] == {
            "runAsNonRoot": True,
            **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 10001),
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container(node)["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["enableServiceLinks"] is False
    assert cluster()["autoscalerOptions"]["securityContext"] == container("head")["securityContext"]
    assert pods()["worker"]["automountServiceAccountToken"] is False


def test_keys_come_from_the_secret_of_the_other_overlays() -> None:
    volumes = {volume["name"]: volume for volume in pods()["worker"]["volumes"]}
    at = {mount["mountPath"]: volumes[mount["name"]] for mount in container("worker")["volumeMounts"]}
    assert at["/etc/blsp"]["secret"]["secretName"] == "blsp-keys"
    assert (
        at["/var/cache/blsp"]["persistentVolumeClaim"]["claimName"]
        == only("PersistentVolumeClaim", "blsp-cache")["metadata"]["name"]
    )


@pytest.mark.parametrize(("port", "asks"), [("serve", "ingress"), ("metrics", "monitoring")])
def test_who_may_ask_may_ask_at_the_right_port(port: str, asks: str) -> None:
    ports = {item["name"]: item["containerPort"] for item in container("worker")["ports"]}
    (rule,) = [
        rule
        for rule in only("NetworkPolicy")["spec"]["ingress"]
        if asks in str(rule["from"][0].get("namespaceSelector"))
    ]
    assert rule["ports"] == [{"protocol": "TCP", "port": ports[port]}]


def test_prometheus_finds_the_replicas() -> None:
    (endpoint,) = only("PodMonitor")["spec"]["podMetricsEndpoints"]
    ports = {item["name"]: item["containerPort"] for item in container("worker")["ports"]}
    (first,) = re.findall(r"metrics_port: int = Field\(\s*(\d+)", (RAY / "app.py").read_text())
    assert ports[endpoint["port"]] == int(first)
    assert only("PodMonitor")["spec"]["selector"]["matchLabels"] == {"ray.io/group": workers()["groupName"]}
    assert only("PrometheusRule")["spec"] == yaml_of(DEPLOY / "prometheus" / "alerts.yml")
    (job,) = [item["replacement"] for item in endpoint["relabelings"] if item["targetLabel"] == "job"]
    assert job == yaml_of(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"][0]["job_name"]
