"""What infra/ and `sppo serve` set up: no server without a password, nothing beyond loopback unasked, no container as root."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

INFRA = Path(__file__).resolve().parents[2] / "infra"
K8S = [each for path in sorted((INFRA / "k8s").glob("*.yaml")) for each in yaml.safe_load_all(path.read_text())]
DEPLOYMENTS = [each for each in K8S if each["kind"] == "Deployment"]
WRITABLE = {"/home/sppo", "/tmp"}


def names(each: dict[str, Any]) -> str:
    return str(each["metadata"]["name"])


def pod_of(deployment: dict[str, Any]) -> dict[str, Any]:
    return dict(deployment["spec"]["template"]["spec"])


def template(name: str) -> dict[str, Any]:
    return dict(json.loads((INFRA / "work-pools" / f"{name}.json").read_text())["job_configuration"])


def kubernetes_pod(device: str) -> dict[str, Any]:
    return dict(template(f"{device}-kubernetes")["job_manifest"]["spec"]["template"]["spec"])


PODS = {names(each): pod_of(each) for each in DEPLOYMENTS} | {f"job {each}": kubernetes_pod(each) for each in ("cpu", "gpu")}


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS.keys())
def test_every_pod_runs_as_nobody_in_particular_on_a_read_only_root(pod: dict[str, Any]) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "readOnlyRootFilesystem": True,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted.values()) >= WRITABLE
        assert set(mounted) <= {volume["name"] for volume in pod["volumes"]}
        assert not container.get("privileged", False)


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS.keys())
def test_no_pod_shares_its_hosts_network_files_or_processes(pod: dict[str, Any]) -> None:
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all("hostPath" not in volume for volume in pod["volumes"])


def test_only_the_workers_that_make_jobs_may_ask_kubernetes_for_anything() -> None:
    [server] = [pod for name, pod in PODS.items() if name == "sppo-server"]
    assert server["automountServiceAccountToken"] is False
    assert all(kubernetes_pod(device)["automountServiceAccountToken"] is False for device in ("cpu", "gpu"))
    [role] = [each for each in K8S if each["kind"] == "Role"]
    assert "secrets" not in [resource for rule in role["rules"] for resource in rule["resources"]]
    assert not [each for each in K8S if each["kind"].startswith("ClusterRole")]


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_docker_container_runs_as_a_user_on_a_read_only_root_without_capabilities(device: str) -> None:
    created = template(f"{device}-docker")["container_create_kwargs"]
    assert created["user"] == "10001:10001"
    assert created["read_only"] is True
    assert created["cap_drop"] == ["ALL"]
    assert created["security_opt"] == ["no-new-privileges"]
    assert set(created["tmpfs"]) == WRITABLE
    assert all("nosuid" in options and "nodev" in options for options in created["tmpfs"].values())
    variables = json.loads((INFRA / "work-pools" / f"{device}-docker.json").read_text())["variables"]["properties"]
    assert variables["privileged"]["default"] is False
    assert not [volume for volume in variables["volumes"]["default"] if volume.startswith("/")]


def test_the_image_ends_as_a_user_with_a_number_and_holds_no_secret() -> None:
    lines = (INFRA / "docker" / "Dockerfile").read_text().splitlines()
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert users[-1] == "10001:10001"  # Kubernetes can only tell from a number that it is not root
    assert not [line for line in lines if line.startswith("ADD ")]
    told = [line for line in lines if line.startswith(("ENV ", "ARG "))]
    assert not [line for line in told if any(word in line.upper() for word in ("TOKEN", "SECRET", "PASSWORD", "KEY"))]
    ignored = (INFRA / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "**"  # what goes in is listed, so var/ with its password does not


def environment(name: str) -> dict[str, Any]:
    [container] = PODS[name]["containers"]
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_the_servers_password_comes_from_a_secret_and_its_answers_go_to_its_own_ui() -> None:
    told = environment("sppo-server")
    assert told["PREFECT_SERVER_API_AUTH_STRING"] == {
        "secretKeyRef": {"name": "sppo-credentials", "key": "PREFECT_API_AUTH_STRING"}
    }
    assert told["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://localhost:4200,http://127.0.0.1:4200"
    assert told["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert not [each for each in K8S if each["kind"] == "Secret"]
    literal = [value for name in ("sppo-server", "sppo-worker-cpu", "sppo-worker-gpu") for value in environment(name).values()]
    assert not [value for value in literal if isinstance(value, str) and "@" in value]


def test_the_server_is_reached_from_its_namespace_alone() -> None:
    [service] = [each for each in K8S if each["kind"] == "Service"]
    assert service["spec"].get("type", "ClusterIP") == "ClusterIP"
    [policy] = [each for each in K8S if each["kind"] == "NetworkPolicy"]
    assert policy["spec"]["podSelector"]["matchLabels"] == service["spec"]["selector"]
    assert policy["spec"]["ingress"] == [{"from": [{"podSelector": {}}], "ports": [{"port": 4200}]}]
    assert not [each for each in K8S if each["kind"] == "Ingress"]


# --- `sppo serve`


def test_a_served_api_answers_nobody_without_the_password_and_no_other_page(prefect_server: Any) -> None:
    elsewhere = {"Origin": "https://elsewhere.example"}
    asked = f"{prefect_server.url}/api/flow_runs/filter"
    assert httpx.post(asked, json={}).status_code == 401
    user, _, password = prefect_server.password.partition(":")
    answer = httpx.post(asked, json={}, auth=(user, password), headers=elsewhere)
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers
    own = httpx.post(asked, json={}, auth=(user, password), headers={"Origin": prefect_server.url})
    assert own.headers["access-control-allow-origin"] == prefect_server.url
    asked_before = {**elsewhere, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert "access-control-allow-origin" not in httpx.options(asked, headers=asked_before).headers


def test_the_temporary_server_of_a_run_has_a_password_and_no_open_door(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.server import TEMPORARY

    assert TEMPORARY["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1"
    source = (INFRA.parent / "flows" / "server.py").read_text()
    assert '"PREFECT_SERVER_API_AUTH_STRING": password' in source


# --- results


def test_no_flow_or_task_keeps_a_result_that_could_be_read_back() -> None:
    import importlib
    import pkgutil

    from prefect import Flow, Task
    from prefect.cache_policies import NO_CACHE

    import flows
    import tasks

    modules = [
        importlib.import_module(f"{package.__name__}.{found.name}")
        for package in (flows, tasks)
        for found in pkgutil.iter_modules(package.__path__)
        if found.name not in ("command_line",)
    ]
    found = {id(each): each for module in modules for each in vars(module).values() if isinstance(each, Flow | Task)}
    assert len(found) > 20
    for each in found.values():
        assert each.persist_result is False, each.name
        assert each.result_storage is None, each.name
        if isinstance(each, Flow):
            assert each.result_serializer == "json", each.name
        if isinstance(each, Task):
            assert each.cache_policy == NO_CACHE, each.name


def test_no_flow_or_task_asks_for_the_result_of_another_flow_run() -> None:
    """`State.result()` would read a record whose own metadata names the serializer: one changed to pickle is executed."""
    asked = [
        f"{path.name}: {ast.unparse(node)}"
        for package in ("flows", "tasks")
        for path in sorted((INFRA.parent / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("result", "aresult")
    ]
    assert asked == ["iteration.py: making_base.result()"]  # of a task of this very process, from its memory


def test_every_test_that_security_md_rests_on_is_there() -> None:
    named = set(re.findall(r"`(tests/[\w/.]+)`", (INFRA.parent / "SECURITY.md").read_text()))
    assert len(named) > 6
    assert [name for name in named if not (INFRA.parent / name).is_file()] == []
