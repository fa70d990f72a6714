"""What is wrong with a file for Kubernetes, for Compose, or with the dashboard."""

from __future__ import annotations

import functools
import gzip
import json
import os
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from psvit_ray.runtime.tracking.gauges import DESCRIPTIONS
from tests.helpers.cluster_files import CLUSTER, SETTINGS, header, image, required, values
from tests.helpers.cluster_launcher import machine

CRDS = os.environ.get("KUBERAY_CRDS")
HOW_TO_CRDS = (
    "set KUBERAY_CRDS to a folder with ray.io_rayclusters.yaml and ray.io_rayjobs.yaml (or .gz), "
    "which are KubeRay's in helm-chart/kuberay-operator/crds"
)
KUBERNETES = ("1.31", "1.37")
# On which machines of both clouds the pods with so many GPUs are to fit, and what is left for pods.
NODES = {1: ("g6.2xlarge", "g2-standard-8"), 4: ("g6.12xlarge", "g2-standard-48")}
FOR_PODS = 0.9
GAUGES = {f"ray_psvit_{key}" for key in DESCRIPTIONS}  # Ray puts `ray_` before
SECRET = re.compile(r"(PASSWORD|SECRET|TOKEN|KEY)")


def kubernetes(text: str) -> Iterator[str]:
    yield from header(text)
    documents = list(yaml.safe_load_all(text))
    if wrong := [line for document in documents for line in _schema(document)]:
        yield from wrong
        return
    for document in documents:
        if document["apiVersion"].startswith("ray.io/"):
            yield from _ray(document)
        for name in values(document, "image"):
            yield from image(name)
        for pod in _pods(document):
            yield from _pod(pod)
    yield from _reach(documents)


def _schema(document: dict[str, Any]) -> Iterator[str]:
    if document["kind"] == "Secret":
        yield "a Secret must not be in a file"
    if document["apiVersion"].startswith("ray.io/"):
        if CRDS:
            validator = jsonschema.Draft7Validator(_kuberay(document["kind"]))
            for error in validator.iter_errors(document):
                yield f"KubeRay says: {'.'.join(map(str, error.path))}: {error.message}"
        return
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            yield f"Kubernetes {version} says: {error.message}"


def _pods(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "containers" in tree:
            yield tree
        for value in tree.values():
            yield from _pods(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _pods(value)


def _pod(pod: dict[str, Any]) -> Iterator[str]:
    user = pod.get("securityContext", {})
    if not user.get("runAsNonRoot") or not user.get("runAsUser"):
        yield "a pod must run as a user who is not root"
    if pod.get("hostNetwork") or pod.get("hostPID"):
        yield "a pod must not share the host's network or processes"
    for container in pod["containers"]:
        name, asked = container["name"], container.get("resources", {})
        if not asked.get("requests") or asked["requests"] != asked.get("limits"):
            yield f"{name}: requests must be the limits"
        if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation must be false"
        if not {"livenessProbe", "readinessProbe"} & container.keys():
            yield f"{name}: without a probe nobody sees that it hangs"
        for variable in container.get("env", []):
            if SECRET.search(variable["name"]) and "value" in variable:
                yield f"{name}: {variable['name']} must come from a Secret"


def _reach(documents: list[dict[str, Any]]) -> Iterator[str]:
    """Who may reach what: services inside only, and a policy for all that listens."""
    chosen = [d["spec"]["podSelector"] for d in documents if d["kind"] == "NetworkPolicy"]
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            if spec.get("type", "ClusterIP") != "ClusterIP":
                yield f"Service {document['metadata']['name']} must be a ClusterIP"
            if {"matchLabels": spec["selector"]} not in chosen:
                yield f"Service {document['metadata']['name']} must have a NetworkPolicy"
        if document["kind"] == "NetworkPolicy":
            for rule in spec["ingress"]:
                if not rule.get("from") or any("ipBlock" in peer for peer in rule["from"]):
                    yield "a NetworkPolicy must say which pods may come"
            if "Ingress" not in spec["policyTypes"]:
                yield "a NetworkPolicy must be for Ingress"


def settings(text: str) -> Iterator[str]:
    if wrong := list(kubernetes(text)):
        yield from wrong
        return
    documents = list(yaml.safe_load_all(text))
    shared = [d["data"] for d in documents if d["kind"] == "ConfigMap"]
    for name in SETTINGS:
        if not shared or name not in shared[0]:
            yield f"the ConfigMap must set {name}"
    ray = {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    if ray not in [d["spec"]["podSelector"] for d in documents if d["kind"] == "NetworkPolicy"]:
        yield "Ray's pods must have a NetworkPolicy"


def _ray(document: dict[str, Any]) -> Iterator[str]:
    spec = document["spec"]
    if document["kind"] == "RayJob":
        yield from _job(spec)
        spec = spec["rayClusterSpec"]
    if spec.get("rayVersion") not in required("ray"):
        yield f"rayVersion must be {required('ray')}, got {spec.get('rayVersion')}"
    if spec.get("authOptions", {}).get("mode") != "token":
        yield "authOptions must have mode: token"
    scaler = spec.get("autoscalerOptions", {})
    if not spec.get("enableInTreeAutoscaling") or scaler.get("version") != "v2":
        yield "enableInTreeAutoscaling, and autoscalerOptions version: v2"
    if not 60 <= scaler.get("idleTimeoutSeconds", 0) <= 900:
        yield "idleTimeoutSeconds must be 60 to 900"
    if scaler.get("resources", {}).get("requests") != scaler.get("resources", {}).get("limits"):
        yield "autoscaler: requests must be the limits"
    head = spec["headGroupSpec"]
    if head["rayStartParams"].get("num-cpus") != "0":
        yield 'the head must have num-cpus: "0", or it runs trials'
    affinity = str(head["template"]["spec"].get("affinity"))
    if "required" not in affinity or "NotIn" not in affinity:
        yield "the head must be kept off spot nodes"
    if not list(values(head["template"], "storage")):
        yield "the head must have a disk"
    for group in spec["workerGroupSpecs"]:
        yield from _group(group)


def _group(group: dict[str, Any]) -> Iterator[str]:
    name, pod = group["groupName"], group["template"]["spec"]
    if not 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield f"{name}: minReplicas <= replicas <= maxReplicas must hold"
    for taint in ("nvidia.com/gpu", "cloud.google.com/gke-spot"):
        if taint not in [toleration["key"] for toleration in pod.get("tolerations", [])]:
            yield f"{name}: must tolerate {taint}"
    if "RAY_ADDRESS=$FQ_RAY_IP:6379 ray drain-node" not in str(pod["containers"][0]["lifecycle"]):
        yield f"{name}: a pod that is evicted must drain, and its own cluster"
    asked = pod["containers"][0]["resources"]["requests"]
    gpus = int(asked.get("nvidia.com/gpu", 0))
    for node in NODES.get(gpus, ()):
        kind = "machineType" if "standard" in node else "InstanceType"
        cpus, has, gib = machine({kind: node})
        memory = int(asked["memory"].removesuffix("Gi"))
        if int(asked["cpu"]) > FOR_PODS * cpus or memory > FOR_PODS * gib or gpus > has:
            yield f"{name}: does not fit {node}, of which {FOR_PODS:.0%} is for pods"
    if gpus not in NODES:
        yield f"{name}: no node has {gpus} GPUs"


def _job(spec: dict[str, Any]) -> Iterator[str]:
    if not spec.get("shutdownAfterJobFinishes"):
        yield "shutdownAfterJobFinishes must be true"
    if not spec.get("backoffLimit") or not spec.get("activeDeadlineSeconds"):
        yield "backoffLimit and activeDeadlineSeconds must be given"
    for part in ("--name ", "--resume auto", *(f"${name}" for name in SETTINGS)):
        if part not in spec["entrypoint"]:
            yield f"the entrypoint must have {part}"
    home = re.search(r"^WORKDIR (\S+)", (CLUSTER / "Dockerfile").read_text(), re.M)
    script = re.search(r"python (\S+)/(jobs/\w+\.py)", spec["entrypoint"])
    if not home or not script or script[1] != home[1] or not (CLUSTER.parent / script[2]).exists():
        yield "the entrypoint must be a job that is in the image"
    cluster = yaml.safe_load((CLUSTER / "kuberay" / "raycluster.yaml").read_text())
    if spec["rayClusterSpec"] != cluster["spec"]:
        yield "rayClusterSpec must be the spec of raycluster.yaml"


@functools.cache
def _kuberay(kind: str) -> Any:
    """KubeRay's own schema, made strict: a field that it does not know is an error."""
    name = f"ray.io_{kind.lower()}s.yaml"
    plain, packed = Path(CRDS or "", name), Path(CRDS or "", f"{name}.gz")
    text = plain.read_bytes() if plain.exists() else gzip.decompress(packed.read_bytes())
    versions = yaml.load(text, yaml.CSafeLoader)["spec"]["versions"]
    (v1,) = (version for version in versions if version["name"] == "v1")
    schema = v1["schema"]["openAPIV3Schema"]
    for part in _objects(schema):
        part.setdefault("additionalProperties", False)
    return schema


def _objects(schema: Any) -> Iterator[dict[str, Any]]:
    if isinstance(schema, dict):
        if isinstance(schema.get("properties"), dict):
            yield schema
        for value in schema.values():
            yield from _objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _objects(value)


def compose(text: str) -> Iterator[str]:
    yield from header(text)
    config = yaml.safe_load(text)
    vendored = files("check_jsonschema.builtin_schemas.vendor") / "compose-spec.json"
    validator = jsonschema.Draft202012Validator(json.loads(vendored.read_text()))
    for error in validator.iter_errors(config):
        yield f"Compose says: {'.'.join(map(str, error.path))}: {error.message}"
        return
    if bare := re.findall(r"\$\{\w+(?:\}|:-[^}]*\})", text):
        yield f"{bare[0]} must be ${{...:?}}: given by its user, without a default"
    for name, service in config["services"].items():
        yield from image(service["image"])
        for port in service.get("ports", []):
            if not re.match(r"(\$\{\w+:\?[^}]*\}|127\.0\.0\.1):\d+:\d+$", str(port)):
                yield f"{name}: port {port} must be published on one address"
        said = f"{service.get('command')} {service.get('environment')}"
        if service.get("network_mode") == "host" and "127.0.0.1" not in said:
            yield f"{name}: on the host's network it must listen on 127.0.0.1"
        for variable, value in service.get("environment", {}).items():
            if SECRET.search(variable) and not str(value).startswith("${"):
                yield f"{name}: {variable} must not be in the file"
        if service["image"].startswith("grafana/") and "ADMIN_CREATION" not in said:
            yield f"{name}: has its well-known user admin"
    if "mlflow" in config["services"]:
        yield from mlflow(config["services"]["mlflow"]["command"], text)


def mlflow_on_kubernetes(text: str) -> Iterator[str]:
    yield from kubernetes(text)
    (server,) = (
        words for words in values(list(yaml.safe_load_all(text)), "command") if len(words) > 4
    )
    yield from mlflow(server, text)


def mlflow(command: list[str], text: str) -> Iterator[str]:
    flags = dict(word.partition("=")[::2] for word in command)
    if flags.get("--app-name") != "basic-auth":
        yield "MLflow must have --app-name=basic-auth"
    if flags.get("--backend-store-uri") != "postgresql:///mlflow":
        yield "MLflow must be on PostgreSQL, and the password in no URI"
    if "*" in flags.get("--allowed-hosts", "*"):
        yield "MLflow must have --allowed-hosts"
    if "database_uri = postgresql:///mlflow" not in text:
        yield "MLflow's users must be on PostgreSQL too"


def dashboard(text: str) -> Iterator[str]:
    board = json.loads(text)
    for word in ("Gives:", "Command:", "When idle:"):
        if word not in board["description"]:
            yield f"the description must say `{word}`"
    shown = set(re.findall(r"ray_psvit_\w+", " ".join(values(board["panels"], "expr"))))
    if shown != GAUGES:
        yield f"it must show {sorted(GAUGES)}, got {sorted(shown)}"
    for query in values(board["panels"], "expr"):
        if "ray_psvit_" in query and not re.match(r"(sum|max) by \(name\) ", query):
            yield f"{query}: what is there is by name"
    if len({panel["id"] for panel in board["panels"]}) < len(board["panels"]):
        yield "two panels have one id"
    variables = {variable["name"] for variable in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?([a-z]\w*)", text))
    if used != variables:
        yield f"variables used and defined differ: {sorted(used ^ variables)}"
