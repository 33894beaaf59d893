"""Writes `infra/work-pools/*.json`, the base job templates of the pools `cpu` and `gpu`: `python infra/work_pools.py`.

Each starts from the template that Prefect itself ships for the pool's type, so that only what this project adds is said here:
defaults, the GPUs, shared memory and the cache, each a typed variable with a description, for the form in Prefect's UI.
"""

import copy
import json
from pathlib import Path
from typing import Any

import prefect.server.api.collections_data.views as views

Template = dict[str, Any]
SHIPPED = Path(next(iter(views.__path__))) / "aggregate-worker-metadata.json"
FOLDER = Path(__file__).parent / "work-pools"
PACKAGES = {"process": "prefect", "docker": "prefect-docker", "kubernetes": "prefect-kubernetes"}
ENVIRONMENT = {
    "PREFECT_LOGGING_EXTRA_LOGGERS": "sppo,flows,tasks",
    "PREFECT_CLIENT_MAX_RETRIES": "9",  # the default gives up after two minutes without the server
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the least that Prefect allows; an automation watches it
    "PREFECT_LOGGING_COLORS": "false",
}
SCRATCH = "/cache/sppo"
"""In a container: where the cache is mounted, and what SPPO_SCRATCH says there."""
USER = 10001
"""Of the image."""
WRITABLE = ("/home/sppo", "/tmp")
"""Beside the cache and /dev/shm: everything else of a container is read-only. Compiled kernels are run from there."""


def shipped(kind: str) -> Template:
    """Prefect's own template of a pool type."""
    content = json.loads(SHIPPED.read_text(encoding="utf-8"))
    return copy.deepcopy(content[PACKAGES[kind]][kind]["default_base_job_configuration"])


def process(device: str) -> Template:
    """Flow runs as processes beside the worker, with what is installed there."""
    template = shipped("process")
    # With it on, the output goes through a pipe to the worker, and a worker that is killed breaks its flows' next line.
    _default(template, stream_output=False, env=ENVIRONMENT)
    return template


def docker(device: str) -> Template:
    """A container for each flow run, on the worker's machine."""
    template = shipped("docker")
    del template["job_configuration"]["registry_credentials"], template["variables"]["properties"]["registry_credentials"]
    del template["variables"]["definitions"]
    image = template["variables"]["properties"]["image"]
    image |= {"description": "The image with this project, built from infra/docker/Dockerfile.", "example": f"sppo:{device}"}
    _default(
        template,
        image=f"sppo:{device}",
        image_pull_policy="IfNotPresent",
        auto_remove=True,
        env={**ENVIRONMENT, "SPPO_SCRATCH": SCRATCH},
        volumes=[f"sppo-cache:{SCRATCH}"],
    )
    created: Template = {
        "user": f"{USER}:{USER}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "tmpfs": {path: f"rw,exec,nosuid,nodev,uid={USER},gid={USER},mode=0700" for path in WRITABLE},
    }
    template["job_configuration"]["container_create_kwargs"] = created
    if device == "gpu":
        request = {"driver": "nvidia", "count": "{{ gpus }}", "capabilities": [["gpu"]]}
        created |= {"device_requests": [request], "shm_size": "{{ shared_memory }}"}
        _declare(
            template,
            gpus=_integer("GPUs", "How many of the machine's GPUs a container gets; -1 for all.", -1, minimum=-1),
            shared_memory=_text("Shared memory", "Size of /dev/shm, which the ranks of a training talk through.", "16g", SIZE),
        )
    return template


def kubernetes(device: str) -> Template:
    """A Job for each flow run."""
    template = shipped("kubernetes")
    image = template["variables"]["properties"]["image"]
    image |= {"description": "The image with this project, built from infra/docker/Dockerfile.", "example": f"sppo:{device}"}
    _default(template, image=f"sppo:{device}", namespace="sppo", finished_job_ttl=86400, pod_watch_timeout_seconds=900)
    _default(template, env={**ENVIRONMENT, "SPPO_SCRATCH": SCRATCH}, service_account_name="sppo-job")
    cpu, memory = ("8", "64Gi") if device == "gpu" else ("1", "4Gi")
    _default(template, cpu_request=cpu, memory_request=memory, memory_limit=memory)

    pod = template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    pod["securityContext"] = {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "fsGroup": USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    pod["automountServiceAccountToken"] = False
    pod["nodeSelector"] = "{{ node_selector }}"
    pod["tolerations"] = "{{ tolerations }}"
    pod["volumes"] = [
        {"name": "cache", "persistentVolumeClaim": {"claimName": "{{ cache_claim }}"}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "{{ shared_memory }}"}},
        *({"name": f"writable-{number}", "emptyDir": {}} for number, _ in enumerate(WRITABLE)),
    ]
    container = pod["containers"][0]
    container["securityContext"] = {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    container["envFrom"] = [{"secretRef": {"name": "{{ credentials_secret }}"}}]
    container["volumeMounts"] = [
        {"name": "cache", "mountPath": SCRATCH},
        {"name": "shared-memory", "mountPath": "/dev/shm"},
        *({"name": f"writable-{number}", "mountPath": path} for number, path in enumerate(WRITABLE)),
    ]
    _declare(template, **_kubernetes_variables(device))
    if device == "gpu":
        container["resources"]["limits"]["nvidia.com/gpu"] = "{{ gpus }}"
        _declare(template, gpus=_integer("GPUs", "How many GPUs a pod gets, all of one node.", 1, minimum=1))
    return template


def _kubernetes_variables(device: str) -> dict[str, Template]:
    gpu = device == "gpu"
    tolerated = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}] if gpu else []
    return {
        "node_selector": {
            "title": "Node selector",
            "description": "Labels that a node must have, such as the product of its GPUs.",
            "type": "object",
            "additionalProperties": {"type": "string"},
            "default": {"nvidia.com/gpu.present": "true"} if gpu else {},
        },
        "tolerations": {
            "title": "Tolerations",
            "description": "Taints of nodes that these pods may still run on.",
            "type": "array",
            "items": {"type": "object", "additionalProperties": {"type": "string"}},
            "default": tolerated,
        },
        "cache_claim": _text(
            "Cache claim", "The PersistentVolumeClaim with downloaded weights and scratch.", "sppo-cache", NAME
        ),
        "credentials_secret": _text(
            "Credentials",
            "The Secret whose keys become environment variables: the server's password, the store's keys.",
            "sppo-credentials",
            NAME,
        ),
        "shared_memory": _text(
            "Shared memory", "Size of /dev/shm, part of the memory limit.", "16Gi" if gpu else "1Gi", QUANTITY
        ),
    }


SIZE = r"^[0-9]+[bkmg]$"
"""Docker's."""
QUANTITY = r"^[0-9]+(Mi|Gi)$"
NAME = r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"
"""Of a Kubernetes object."""


def _text(title: str, description: str, default: str, pattern: str) -> Template:
    return {"title": title, "description": description, "type": "string", "pattern": pattern, "default": default}


def _integer(title: str, description: str, default: int, minimum: int) -> Template:
    return {"title": title, "description": description, "type": "integer", "minimum": minimum, "default": default}


def _default(template: Template, **values: object) -> None:
    for name, value in values.items():
        template["variables"]["properties"][name]["default"] = value


def _declare(template: Template, **variables: Template) -> None:
    template["variables"]["properties"] |= variables


def templates() -> dict[str, Template]:
    """All of them, by file name."""
    makers = {"process": process, "docker": docker, "kubernetes": kubernetes}
    return {f"{device}-{kind}.json": make(device) for kind, make in makers.items() for device in ("cpu", "gpu")}


def written(template: Template) -> str:
    """A template as its file holds it."""
    return json.dumps(template, indent=2) + "\n"


if __name__ == "__main__":
    for name, template in templates().items():
        (FOLDER / name).write_text(written(template), encoding="utf-8")
