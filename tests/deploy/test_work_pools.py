"""infra/work-pools: each template is current, and Prefect could use it as it is."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.utilities.schema_tools import is_valid_schema, validate
from prefect.utilities.templating import find_placeholders

INFRA = Path(__file__).resolve().parents[2] / "infra"
FILES = sorted((INFRA / "work-pools").glob("*.json"))


def _writer() -> Any:
    spec = importlib.util.spec_from_file_location("work_pools", INFRA / "work_pools.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WRITER = _writer()


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


def variables(template: dict[str, Any]) -> dict[str, Any]:
    return dict(template["variables"]["properties"])


def pod(device: str) -> dict[str, Any]:
    template = read(INFRA / "work-pools" / f"{device}-kubernetes.json")
    return dict(template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"])


def test_the_files_are_what_the_script_writes_from_prefects_own_templates() -> None:
    written = {name: WRITER.written(template) for name, template in WRITER.templates().items()}
    assert {path.name: path.read_text() for path in FILES} == written, "run: python infra/work_pools.py"
    assert len(FILES) == 6


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_prefect_takes_the_template_and_every_variable_in_it_is_declared(path: Path) -> None:
    template = read(path)
    assert WorkPoolCreate(name="gpu", type=path.stem.split("-")[1], base_job_template=template)
    is_valid_schema(template["variables"], preprocess=False)
    used = {placeholder.name for placeholder in find_placeholders(template["job_configuration"])}
    assert used == set(variables(template))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_default_is_valid_by_its_own_schema_and_every_variable_is_explained(path: Path) -> None:
    template = read(path)
    defaults = {name: schema["default"] for name, schema in variables(template).items() if "default" in schema}
    assert validate(defaults, template["variables"], raise_on_error=False, ignore_required=True) == []
    assert all(schema["title"] and schema["description"] for schema in variables(template).values())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_all_of_prefects_own_settings_are_kept_save_the_registrys_password(path: Path) -> None:
    shipped = WRITER.shipped(path.stem.split("-")[1])
    assert set(shipped["job_configuration"]) - {"registry_credentials"} <= set(read(path)["job_configuration"])
    assert "docker.io" not in path.read_text()  # a template names no registry


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_flow_run_logs_this_projects_loggers_survives_the_servers_absence_and_beats(path: Path) -> None:
    environment = variables(read(path))["env"]["default"]
    assert environment["PREFECT_LOGGING_EXTRA_LOGGERS"] == "sppo,flows,tasks"
    assert environment["PREFECT_CLIENT_MAX_RETRIES"] == "9"
    assert environment["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "30"


def test_a_process_does_not_write_through_its_worker_which_may_die_first() -> None:
    assert variables(read(INFRA / "work-pools" / "gpu-process.json"))["stream_output"]["default"] is False
    assert variables(read(INFRA / "work-pools" / "cpu-process.json"))["stream_output"]["default"] is False


def test_a_docker_container_gets_gpus_and_shared_memory() -> None:
    created = read(INFRA / "work-pools" / "gpu-docker.json")["job_configuration"]["container_create_kwargs"]
    assert created["device_requests"] == [{"driver": "nvidia", "count": "{{ gpus }}", "capabilities": [["gpu"]]}]
    assert created["shm_size"] == "{{ shared_memory }}"
    without = read(INFRA / "work-pools" / "cpu-docker.json")["job_configuration"]["container_create_kwargs"]
    assert not {"device_requests", "shm_size"} & set(without)


def test_a_kubernetes_pod_gets_gpus_as_a_limit_shared_memory_the_cache_and_no_root() -> None:
    container = pod("gpu")["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert {"name": "shared-memory", "mountPath": "/dev/shm"} in container["volumeMounts"]
    assert pod("gpu")["volumes"][1]["emptyDir"] == {"medium": "Memory", "sizeLimit": "{{ shared_memory }}"}
    assert pod("gpu")["nodeSelector"] == "{{ node_selector }}"
    assert pod("gpu")["tolerations"] == "{{ tolerations }}"
    assert pod("gpu")["securityContext"]["runAsNonRoot"] is True
    assert "nvidia.com/gpu" not in pod("cpu")["containers"][0]["resources"]["limits"]


def test_what_a_pod_refers_to_is_what_infra_k8s_makes() -> None:
    made = {
        (each["kind"], each["metadata"]["name"])
        for path in sorted((INFRA / "k8s").glob("*.yaml"))
        for each in yaml.safe_load_all(path.read_text())
    }
    defaults = {
        name: schema.get("default") for name, schema in variables(read(INFRA / "work-pools/gpu-kubernetes.json")).items()
    }
    assert ("Namespace", defaults["namespace"]) in made
    assert ("PersistentVolumeClaim", defaults["cache_claim"]) in made
    assert ("ServiceAccount", defaults["service_account_name"]) in made
    # the secret is made by a command, docs/operate.md: it is in no file
    assert ("Secret", defaults["credentials_secret"]) not in made
    assert defaults["credentials_secret"] in (INFRA / "k8s" / "workers.yaml").read_text()
