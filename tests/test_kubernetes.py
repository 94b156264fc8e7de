"""What is in deploy/kubernetes: rendered by kustomize, held to Kubernetes' schemas and to what the service does, asks for and shows."""

import asyncio
import os
import re
import shutil
from functools import cache
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml
from pydantic import ValidationError

from service.http.app import create_app
from service.loading import Service
from service.settings import ServeSettings
from tests.serving import Server
from tests.test_deploy import DEPLOY, ROOT, run, yaml_of

FOLDER = DEPLOY / "kubernetes"
OVERLAYS = ["cpu", "gpu"]  # test_kuberay.py has the third
VERSIONS = ("1.30", "1.37")  # the oldest that docs/kubernetes.md promises, and the newest there are schemas of
COMPOSE = {"cpu": ROOT / "docker-compose.yml", "gpu": DEPLOY / "gpu.yml"}
DOCKERFILES = {"cpu": DEPLOY / "Dockerfile.cpu", "gpu": DEPLOY / "Dockerfile.cuda"}
CUSTOM = {"ServiceMonitor", "PrometheusRule", "ScaledObject"}  # of which kubernetes_validate has no schemas

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def rendered(overlay: str) -> list[dict[str, Any]]:
    """All objects of an overlay."""
    return list(yaml.safe_load_all(run("kubectl", "kustomize", FOLDER / "overlays" / overlay)))


def objects(overlay: str, kind: str) -> list[dict[str, Any]]:
    return [item for item in rendered(overlay) if item["kind"] == kind]


def only(overlay: str, kind: str) -> dict[str, Any]:
    """The one object of its kind."""
    (found,) = objects(overlay, kind)
    return found


def pod(overlay: str) -> Any:
    return only(overlay, "Deployment")["spec"]["template"]["spec"]


def container(overlay: str) -> Any:
    (found,) = pod(overlay)["containers"]
    return found


def environment(overlay: str) -> dict[str, str]:
    """What the container's process finds; `env` comes before `envFrom`."""
    config = only(overlay, "ConfigMap")
    assert container(overlay)["envFrom"] == [{"configMapRef": {"name": config["metadata"]["name"]}}]
    return config["data"] | {item["name"]: item["value"] for item in container(overlay)["env"]}


@pytest.fixture
def settings(overlay: str, monkeypatch: pytest.MonkeyPatch) -> ServeSettings:
    """What the service makes of its environment in a pod."""
    for name in [name for name in os.environ if name.startswith("BLSP_")]:
        monkeypatch.delenv(name)
    for name, value in environment(overlay).items():
        monkeypatch.setenv(name, value)
    return ServeSettings()


def seconds(probe: dict[str, Any]) -> int:
    """How long a probe may fail."""
    return int(probe["periodSeconds"] * probe["failureThreshold"])


def test_every_object_is_what_its_schema_asks_for(overlay: str) -> None:
    """Strictly: a misspelt field is an error."""
    kinds = {item["kind"] for item in rendered(overlay)}
    assert kinds >= CUSTOM | {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy", "PersistentVolumeClaim"}
    for item in [*rendered(overlay), yaml_of(FOLDER / "namespace.yml")]:
        for version in VERSIONS if item["kind"] not in CUSTOM else ():
            kubernetes_validate.validate(item, version, strict=True)


def test_the_custom_objects_have_the_fields_of_their_definitions(overlay: str) -> None:
    """All that are used, and none that is misspelt; what KEDA makes a HorizontalPodAutoscaler of is held to the schema of that."""
    assert {item["apiVersion"] for item in rendered(overlay) if item["kind"] in CUSTOM} == {
        "keda.sh/v1alpha1",
        "monitoring.coreos.com/v1",
    }
    monitor = only(overlay, "ServiceMonitor")["spec"]
    assert monitor.keys() == {"selector", "jobLabel", "endpoints"}
    assert monitor["endpoints"][0].keys() == {"port", "path", "interval", "relabelings"}
    scaled = only(overlay, "ScaledObject")["spec"]
    counts = {"pollingInterval", "minReplicaCount", "maxReplicaCount"}
    assert scaled.keys() == counts | {"scaleTargetRef", "advanced", "triggers"}
    assert all(isinstance(scaled[name], int) for name in counts)
    assert scaled["advanced"].keys() == {"horizontalPodAutoscalerConfig"}
    for trigger in scaled["triggers"]:
        assert trigger.keys() == {"type", "name", "metadata"}
        assert trigger["metadata"].keys() == {"serverAddress", "query", "threshold", "ignoreNullValues"}
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    autoscaler = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "spec": {
            "scaleTargetRef": {"kind": "Deployment"} | scaled["scaleTargetRef"],
            "minReplicas": scaled["minReplicaCount"],
            "maxReplicas": scaled["maxReplicaCount"],
            **scaled["advanced"]["horizontalPodAutoscalerConfig"],
        },
    }
    for version in VERSIONS:
        kubernetes_validate.validate(autoscaler, version, strict=True)


def test_all_of_it_is_in_one_namespace_which_stays_when_it_is_deleted(overlay: str) -> None:
    namespace = yaml_of(FOLDER / "namespace.yml")["metadata"]["name"]
    assert {item["metadata"]["namespace"] for item in rendered(overlay)} == {namespace}
    assert not objects(overlay, "Namespace")


def test_the_image_is_the_one_that_compose_builds(overlay: str) -> None:
    assert container(overlay)["image"] == yaml_of(COMPOSE[overlay])["services"]["blsp"]["image"]


def test_every_setting_is_one_that_the_service_knows(overlay: str, settings: ServeSettings) -> None:
    named = {name.removeprefix("BLSP_").lower() for name in environment(overlay) if name.startswith("BLSP_")}
    assert named <= ServeSettings.model_fields.keys()
    assert [port["containerPort"] for port in container(overlay)["ports"]] == [settings.port]
    assert "BLSP_HOST=0.0.0.0" in DOCKERFILES[overlay].read_text()


def test_the_service_of_that_name_is_not_taken_for_a_setting(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{only(overlay, 'Service')['metadata']['name'].upper()}_PORT", "tcp://10.0.0.1:8000")
    with pytest.raises(ValidationError):
        ServeSettings()
    assert pod(overlay)["enableServiceLinks"] is False


def test_a_pod_may_drain_before_it_is_killed(overlay: str, settings: ServeSettings) -> None:
    (margin,) = re.findall(r"Give it (\d+) s more than that before SIGKILL", (DEPLOY / "README.md").read_text())
    open_for = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert open_for > 0
    assert pod(overlay)["terminationGracePeriodSeconds"] >= open_for + settings.drain_seconds + int(margin)


def test_an_update_leaves_no_replica_out_and_waits_for_what_loads(overlay: str) -> None:
    spec = only(overlay, "Deployment")["spec"]
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert "replicas" not in spec
    (minutes,) = re.findall(r"--start-period=(\d+)m", DOCKERFILES[overlay].read_text())
    assert int(minutes) * 60 <= seconds(container(overlay)["startupProbe"]) < spec["progressDeadlineSeconds"]


def probed(overlay: str, name: str) -> str:
    """The path that a probe asks, at the service's port."""
    get = container(overlay)[f"{name}Probe"]["httpGet"]
    assert get["port"] in {port["name"] for port in container(overlay)["ports"]}
    return str(get["path"])


async def test_a_service_that_loads_is_alive_and_not_ready(overlay: str) -> None:
    async def load() -> Service:
        await asyncio.Event().wait()
        raise AssertionError

    app = create_app(ServeSettings(), load)
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        status = {
            name: (await http.get(probed(overlay, name))).status_code for name in ("startup", "readiness", "liveness")
        }
    assert status == {"startup": 503, "readiness": 503, "liveness": 200}


def test_the_probes_find_a_server_that_is_ready(overlay: str, server: Server) -> None:
    with server.client() as client:
        for name in ("startup", "readiness", "liveness"):
            assert client.get(probed(overlay, name)).status_code == 200
    assert seconds(container(overlay)["livenessProbe"]) > 4 * seconds(container(overlay)["readinessProbe"])


def test_pods_can_do_nothing_but_serve(overlay: str) -> None:
    """The restricted profile of Kubernetes, and no more to write than the image needs."""
    assert pod(overlay)["automountServiceAccountToken"] is False
    assert only(overlay, "ServiceAccount")["automountServiceAccountToken"] is False
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILES[overlay].read_text(), re.M)
    assert pod(overlay)["securityContext"] == {
        "runAsNonRoot": True,
        **dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), int(user)),
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(overlay)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def test_what_is_written_is_on_volumes(overlay: str) -> None:
    (home,) = re.findall(r"HOME=(\S+) XDG_CACHE_HOME=\1 ", DOCKERFILES[overlay].read_text())
    volumes = {volume["name"]: volume for volume in pod(overlay)["volumes"]}
    at = {mount["mountPath"]: volumes[mount["name"]] for mount in container(overlay)["volumeMounts"]}
    claim = only(overlay, "PersistentVolumeClaim")
    assert at[home]["persistentVolumeClaim"] == {"claimName": claim["metadata"]["name"]}
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]  # an update, for one, has pods on two nodes
    assert at["/tmp"]["emptyDir"]["sizeLimit"]
    assert at["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    size, limit = at["/dev/shm"]["emptyDir"]["sizeLimit"], container(overlay)["resources"]["limits"]["memory"]
    compose = yaml_of(COMPOSE["cpu"])["services"]["blsp"]["shm_size"]
    assert gib(compose) <= gib(size) <= gib(limit) / 4


def gib(size: str) -> int:
    """Of a size that is written as 1Gi or, by compose, as 1gb."""
    match = re.fullmatch(r"(\d+)(Gi|gb)", size)
    assert match is not None
    return int(match[1])


def test_threads_are_as_many_as_the_cores_that_a_pod_may_use(overlay: str, settings: ServeSettings) -> None:
    resources = container(overlay)["resources"]
    if "nvidia.com/gpu" in resources["limits"]:
        assert settings.device == "cuda:0"
        return
    cores = int(resources["limits"]["cpu"])
    assert resources["requests"] == resources["limits"]
    assert int(environment(overlay)["OMP_NUM_THREADS"]) == cores - 1  # as service/engine.py has it
    assert settings.encoder_threads == cores // 2  # as service/loading.py has it


def test_a_gpu_is_asked_for_where_the_image_needs_one(overlay: str) -> None:
    needs = "cuda" in container(overlay)["image"]
    tolerated = {item["key"] for item in pod(overlay).get("tolerations", ())}
    assert ("nvidia.com/gpu" in container(overlay)["resources"]["limits"]) is needs
    assert ("nvidia.com/gpu" in tolerated) is needs
    assert ("nvidia.com/gpu.present" in pod(overlay).get("nodeSelector", {})) is needs


def test_keys_come_from_a_secret_that_no_manifest_makes(overlay: str, settings: ServeSettings) -> None:
    assert not objects(overlay, "Secret")
    (volume,) = [volume for volume in pod(overlay)["volumes"] if "secret" in volume]
    (mount,) = [mount for mount in container(overlay)["volumeMounts"] if mount["name"] == volume["name"]]
    assert settings.keys_file is not None
    assert settings.keys_file.parent == Path(mount["mountPath"])
    assert "subPath" not in mount  # whose file would never change
    assert mount["readOnly"]
    assert not volume["secret"].get("optional")
    command = f"kubectl create secret generic {volume['secret']['secretName']} --from-file={settings.keys_file.name} "
    assert f"{command}--namespace blsp\n" in (ROOT / "docs" / "kubernetes.md").read_text()


def test_pods_hear_and_reach_only_whom_the_network_policies_name(overlay: str) -> None:
    labels = only(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in objects(overlay, "NetworkPolicy")}
    assert all(policy["podSelector"] == {"matchLabels": labels} for policy in policies.values())
    policy = policies.pop("blsp")
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    (ingress,), (egress,) = policy["ingress"], policy["egress"]
    assert [source["namespaceSelector"]["matchLabels"] for source in ingress["from"]] == [
        {"kubernetes.io/metadata.name": "ingress"},
        {"kubernetes.io/metadata.name": "monitoring"},
    ]
    assert ingress["ports"] == [{"protocol": "TCP", "port": container(overlay)["ports"][0]["name"]}]
    assert all("podSelector" in target and "namespaceSelector" in target for target in egress["to"])
    assert {port["port"] for port in egress["ports"]} == {53}
    assert policies.keys() == ({"blsp-hub"} if overlay == "gpu" else set())
    for hub in policies.values():
        assert hub["policyTypes"] == ["Egress"]
        (egress,) = hub["egress"]
        assert egress["ports"] == [{"protocol": "TCP", "port": 443}]
        for block in (target["ipBlock"] for target in egress["to"]):
            left_out = [ip_network(network) for network in block["except"]]
            assert all(network.subnet_of(ip_network(block["cidr"])) for network in left_out)  # type: ignore[arg-type]
            assert all(network.is_private or str(network) == "100.64.0.0/10" for network in left_out)


def test_a_disruption_takes_one_replica_of_two_that_are_spread(overlay: str) -> None:
    budget = only(overlay, "PodDisruptionBudget")["spec"]
    assert budget["selector"] == only(overlay, "Deployment")["spec"]["selector"]
    assert budget["maxUnavailable"] < only(overlay, "ScaledObject")["spec"]["minReplicaCount"]
    assert pod(overlay)["topologySpreadConstraints"] == [
        {
            "topologyKey": key,
            "maxSkew": 1,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": budget["selector"],
            "matchLabelKeys": ["pod-template-hash"],
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def test_the_service_and_its_monitor_find_the_pods(overlay: str, server: Server) -> None:
    service, monitor = only(overlay, "Service"), only(overlay, "ServiceMonitor")
    labels = only(overlay, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert only(overlay, "Deployment")["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    (port,) = service["spec"]["ports"]
    assert port["targetPort"] == container(overlay)["ports"][0]["name"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["port"] == port["name"]
    with server.client() as client:
        assert "\nblsp_ready 1.0\n" in client.get(endpoint["path"]).text
    job = service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
    assert job == yaml_of(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"][0]["job_name"]
    (relabeling,) = endpoint["relabelings"]
    assert relabeling["action"] == "drop"
    assert relabeling["sourceLabels"] == ["__meta_kubernetes_endpointslice_endpoint_conditions_terminating"]


def test_the_alerts_are_those_of_prometheus(overlay: str) -> None:
    assert only(overlay, "PrometheusRule")["spec"] == yaml_of(DEPLOY / "prometheus" / "alerts.yml"), "`make alerts`"


def triggers(overlay: str) -> dict[str, dict[str, str]]:
    """What the autoscaler asks Prometheus for, by name."""
    found = {item["name"]: item for item in only(overlay, "ScaledObject")["spec"]["triggers"]}
    assert {item["type"] for item in found.values()} == {"prometheus"}
    return {name: item["metadata"] for name, item in found.items()}


def test_the_autoscaler_asks_for_what_the_server_shows(overlay: str, server: Server) -> None:
    with server.client() as client:
        client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1})
        page = client.get("/metrics").text
    namespace = only(overlay, "ScaledObject")["metadata"]["namespace"]
    job = yaml_of(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"][0]["job_name"]
    for trigger in triggers(overlay).values():
        series = re.findall(r'(\w+)\{job="(.*?)", namespace="(.*?)"(?:, (\w+)=~"(.*?)")?\}', trigger["query"])
        assert len(series) == trigger["query"].count("{") > 0
        for metric, of_job, of_namespace, label, pattern in series:
            assert (of_job, of_namespace) == (job, namespace)
            assert re.search(rf'^{metric}{{{label}="{pattern}"}} ' if label else f"^{metric} ", page, re.M), metric


def test_the_autoscaler_acts_before_the_door_closes(overlay: str, settings: ServeSettings) -> None:
    """At its thresholds nobody is refused; what they are is in the docs."""
    spec = only(overlay, "ScaledObject")["spec"]
    assert spec["scaleTargetRef"] == {"name": only(overlay, "Deployment")["metadata"]["name"]}
    thresholds = {name: float(trigger["threshold"]) for name, trigger in triggers(overlay).items()}
    limits = {
        "requests": settings.max_requests,
        "audio": settings.max_queued_audio_seconds,
        "talks": settings.max_sessions,
    }
    assert thresholds.keys() == limits.keys()
    assert all(2 * thresholds[name] <= limits[name] for name in limits)
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (row,) = re.findall(r"^\| `blsp_requests_in_flight` .*?\| (\d+); with GPUs (\d+) \|", page, re.M)
    assert thresholds["requests"] == float(row[overlay == "gpu"])
    for name, metric in (("audio", "blsp_queued_audio_seconds"), ("talks", "blsp_realtime_sessions")):
        assert f"| `{metric}` | {thresholds[name]:g} |" in page


def test_the_overlay_in_the_docs_does_what_it_says(overlay: str, tmp_path: Path) -> None:
    (example,) = re.findall(
        r"```yaml\n(# kustomization.yml .*?)```", (ROOT / "docs" / "kubernetes.md").read_text(), re.S
    )
    shutil.copytree(FOLDER, tmp_path / "deploy" / "kubernetes")
    (tmp_path / "kustomization.yml").write_text(example.replace("overlays/gpu", f"overlays/{overlay}"))
    text = run("kubectl", "kustomize", tmp_path)
    for part in ("image: registry.example.com/blsp:cuda-1\n", "BLSP_MODEL: example/our-model\n"):
        assert text.count(part) == 1
    found = {item["kind"]: item for item in yaml.safe_load_all(text) if item["metadata"]["name"] == "blsp"}
    (served,) = found["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert served["args"] == ["serve", "--max-model-len", "4096"]
    (ingress,) = found["NetworkPolicy"]["spec"]["ingress"]
    assert ingress["from"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "traefik"}


def test_the_docs_name_every_overlay(overlay: str) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    assert f"\n| `{overlay}` | image `{container(overlay)['image']}`," in page
    grace, drain = pod(overlay)["terminationGracePeriodSeconds"], environment(overlay)["BLSP_DRAIN_SECONDS"]
    assert f"`BLSP_DRAIN_SECONDS` ({drain})" in page
    assert f"grace period of {grace} s" in page
