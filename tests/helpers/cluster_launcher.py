"""What is wrong with a file of Ray's launcher, and with the rights and the firewall on AWS."""

from __future__ import annotations

import functools
import gzip
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import botocore.session
import botocore.validate
import googleapiclient
import jsonschema
import moto
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.helpers.cluster_files import CLUSTER, ROOT, SETTINGS, header, image, values

# Or a host that was taken for dead while its link was cut stays away.
STARTED = "keep.sh ray start --block"
# CPUs, GPUs, GiB. Of AWS, moto has Amazon's own table.
GOOGLE_MACHINES = {
    "e2-standard-8": (8, 0, 32),
    "g2-standard-8": (8, 1, 32),
    "g2-standard-48": (48, 4, 192),
}
PROVIDER_COMMANDS = (
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
)


def launcher(text: str) -> Iterator[str]:
    yield from header(text)
    config = yaml.safe_load(text)
    missing = [name for name in PROVIDER_COMMANDS if name not in config]
    if missing:
        yield f"{', '.join(missing)} must be given, or Ray's defaults install things"
    cloud = config["provider"].get("type")
    if cloud not in ("aws", "gcp", "local"):
        yield f"provider type must be aws, gcp or local, got {cloud}"
        return
    try:
        prepared = prepare_config(config)
        validate_config(prepared)
    except Exception as error:
        yield f"Ray says: {getattr(error, 'message', error)}"
        return
    yield from image(config["docker"]["image"])
    yield from _options(config)
    yield from _mounts(config)
    yield from _start(config)
    if cloud != "local":
        yield from _cloud(config, cloud)


def _options(config: dict[str, Any]) -> Iterator[str]:
    docker = config["docker"]
    shared = dict(_env(docker["run_options"]))
    if shared.get("RAY_AUTH_MODE") != "token":
        yield "run_options must set RAY_AUTH_MODE=token"
    token = shared.get("RAY_AUTH_TOKEN_PATH", "")
    mounts = [path.replace("~", "/home/ray") for path in config["file_mounts"]]
    if not any(token.startswith(f"{path}/") for path in mounts):
        yield f"RAY_AUTH_TOKEN_PATH must be in a folder of file_mounts, got {token!r}"
    for name in SETTINGS:
        if name not in shared:
            yield f"run_options must set {name}"
    secrets = [name for name in shared if name.endswith(("TOKEN", "PASSWORD", "SECRET", "KEY"))]
    if secrets:
        yield f"{', '.join(secrets)} must not be in the file"
    if int(dict(_env(docker["head_run_options"])).get("RAY_JOB_STOP_WAIT_TIME_S", 3)) < 60:
        yield "head_run_options must set RAY_JOB_STOP_WAIT_TIME_S to 60 or more"
    every = [option for name in values(docker, "run_options") for option in name]
    if any(option.startswith(("-p ", "--publish")) for option in every):
        yield "run_options must publish no port"


def _env(options: list[str]) -> Iterator[tuple[str, str]]:
    for option in options:
        flag, _, value = option.partition(" ")
        if flag in ("--env", "-e"):
            name, _, setting = value.partition("=")
            yield name, setting


def _mounts(config: dict[str, Any]) -> Iterator[str]:
    for source in config["file_mounts"].values():
        if not source.startswith("~/") and not (ROOT / source).is_dir():
            yield f"file_mounts source {source} must be a folder of the repository"


def _start(config: dict[str, Any]) -> Iterator[str]:
    for role in ("head", "worker"):
        commands = config[f"{role}_start_ray_commands"]
        ray = [command for command in commands if "ray start" in command]
        if len(ray) != 1 or STARTED not in ray[0]:
            yield f"the {role} must start by `{STARTED}`"
            continue
        flags = dict(word.partition("=")[::2] for word in shlex.split(ray[0]) if word[:2] == "--")
        if role == "head" and flags.get("--dashboard-host") != "127.0.0.1":
            yield "the head must have --dashboard-host=127.0.0.1"
        if role == "head" and flags.get("--autoscaling-config") != "~/ray_bootstrap_config.yaml":
            yield "the head must have --autoscaling-config=~/ray_bootstrap_config.yaml"
        if role == "worker" and flags.get("--address") != "$RAY_HEAD_IP:6379":
            yield "a worker must have --address=$RAY_HEAD_IP:6379"
        if not any("healthz" in command for command in commands):
            yield f"the {role} must wait until Ray is up, or `ray up` ends well where it is not"
        for script in re.findall(r"~/psvit/(\S+)", " ".join(commands)):
            if not (CLUSTER / script).is_file():
                yield f"the {role} runs ~/psvit/{script}, which is not there"


def _cloud(config: dict[str, Any], cloud: str) -> Iterator[str]:
    if not config["provider"].get("region"):
        yield "provider must have a region"
    if not 1 <= config["idle_timeout_minutes"] <= 15:
        yield "idle_timeout_minutes must be 1 to 15"
    types = config["available_node_types"]
    if types[config["head_node_type"]]["resources"] != {"CPU": 0}:
        yield "the head must have resources {CPU: 0}, or it runs trials"
    for name, kind in types.items():
        node, is_head = kind["node_config"], name == config["head_node_type"]
        if unknown := (_amazon if cloud == "aws" else _google)(node):
            yield f"{name}: {unknown}"
            continue
        yield from (aws_node if cloud == "aws" else gcp_node)(name, node, is_head)
        least, most = kind.get("min_workers", 0), kind.get("max_workers", 0)
        if not 0 <= least <= most <= config["max_workers"]:
            yield f"{name}: min_workers <= max_workers <= {config['max_workers']} must hold"
        cpus, gpus, _ = machine(node)
        if not is_head and kind["resources"] != {"CPU": cpus, "GPU": gpus}:
            yield f"{name}: resources must be what the machine has, CPU {cpus} and GPU {gpus}"
    notice = f"spot_notice.py {cloud} env RAY_ADDRESS=$RAY_HEAD_IP:6379 ray drain-node"
    if notice not in str(config["worker_start_ray_commands"]):  # else it would start a Ray to drain
        yield f"workers must run {notice}"


def machine(node: dict[str, Any]) -> tuple[int, int, int]:
    """CPUs, GPUs and GiB of what is rented; zeros where there is no such machine."""
    if "machineType" in node:
        return GOOGLE_MACHINES.get(node["machineType"], (0, 0, 0))
    found = _amazon_machines().get(node["InstanceType"])
    if not found:
        return 0, 0, 0
    gpus = sum(gpu["Count"] for gpu in found.get("GpuInfo", {}).get("Gpus", []))
    return found["VCpuInfo"]["DefaultVCpus"], gpus, found["MemoryInfo"]["SizeInMiB"] // 1024


@functools.cache
def _amazon_machines() -> dict[str, Any]:
    path = Path(moto.__file__).parent / "ec2" / "resources" / "instance_types.json.gz"
    return dict(json.loads(gzip.decompress(path.read_bytes())))


def _amazon(node: dict[str, Any]) -> str:
    """What its client would say of a field."""
    service = botocore.session.get_session().get_service_model("ec2")
    shape = service.operation_model("RunInstances").input_shape
    asked = node | {"MinCount": 1, "MaxCount": 1}
    report = botocore.validate.ParamValidator().validate(asked, shape)
    return f"Amazon says: {report.generate_report()}" if report.has_errors() else ""


def _google(node: dict[str, Any]) -> str:
    schema = {"$ref": "#/definitions/Instance", "definitions": _google_schemas()}
    errors = list(jsonschema.Draft7Validator(schema).iter_errors(node))
    return f"Google says: {errors[0].message}" if errors else ""


def aws_node(name: str, node: dict[str, Any], is_head: bool) -> Iterator[str]:
    if not machine(node)[0]:
        yield f"{name}: Amazon has no {node['InstanceType']}"
    spot = node.get("InstanceMarketOptions", {}).get("MarketType") == "spot"
    if spot == is_head:
        yield f"{name}: the head must be on demand and workers must be spot"
    if node.get("MetadataOptions", {}).get("HttpTokens") != "required":
        yield f"{name}: HttpTokens must be required"
    if "IamInstanceProfile" not in node:
        yield f"{name}: without IamInstanceProfile it cannot reach the bucket"
    if not all(disk["Ebs"].get("Encrypted") for disk in node["BlockDeviceMappings"]):
        yield f"{name}: disks must be Encrypted"


def gcp_node(name: str, node: dict[str, Any], is_head: bool) -> Iterator[str]:
    if not machine(node)[0]:
        yield f"{name}: no known {node.get('machineType')}"
    scheduling = node.get("scheduling", {})
    spot = isinstance(scheduling, dict) and scheduling.get("provisioningModel") == "SPOT"
    if spot == is_head:
        yield f"{name}: the head must be on demand and workers must be spot"
    if spot and scheduling.get("onHostMaintenance") != "TERMINATE":
        yield f"{name}: a machine with GPUs must have onHostMaintenance: TERMINATE"
    if not node.get("tags"):
        yield f"{name}: without tags the firewall's rules are not for it"
    if not is_head and not node.get("serviceAccounts"):
        yield f"{name}: without serviceAccounts it cannot reach the bucket"


@functools.cache
def _google_schemas() -> dict[str, Any]:
    """Google's description of its own interface, made strict."""
    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    document = json.loads((folder / "compute.v1.json").read_text())
    return {name: _strict(schema) for name, schema in document["schemas"].items()}


def _strict(schema: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in schema:
        return {"$ref": f"#/definitions/{schema['$ref']}"}
    made: dict[str, Any] = {key: schema[key] for key in ("type", "enum") if key in schema}
    if "properties" in schema:
        fields = schema["properties"]
        made["properties"] = {name: _strict(field) for name, field in fields.items()}
        made["additionalProperties"] = False
    for key in ("items", "additionalProperties"):
        if key in schema:
            made[key] = _strict(schema[key])
    if schema.get("format") in ("int64", "uint64"):
        made["type"] = ["string", "integer"]
    return made


def aws_access(text: str) -> Iterator[str]:
    yield from header(text)
    resources = yaml.load(text, _Tags)["Resources"]
    for rule in _ingress(resources):
        reached = [rule.get(name) for name in ("CidrIp", "IpProtocol", "FromPort", "ToPort")]
        if reached != ["From", "tcp", 22, 22] and rule.get("SourceSecurityGroupId") is None:
            yield f"only SSH from the address given may be open, got {rule}"
    for policy in values(resources, "PolicyDocument"):
        for rule in policy["Statement"]:
            actions = [rule["Action"]] if isinstance(rule["Action"], str) else rule["Action"]
            if any(action in ("*", "s3:*", "ec2:*", "iam:*") for action in actions):
                yield f"rights must be named one by one, got {actions}"
    if resources["WorkerRole"]["Properties"]["ManagedPolicyArns"] != ["Storage"]:
        yield "a worker may use the bucket and nothing else"
    named = {*values(resources, "InstanceProfileName"), *values(resources, "GroupName")}
    if named != {"psvit-head", "psvit-worker", "psvit"}:
        yield f"aws.yaml asks for psvit-head, psvit-worker and the group psvit, not {sorted(named)}"


def _ingress(resources: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for resource in resources.values():
        if resource["Type"] == "AWS::EC2::SecurityGroup":
            yield from resource["Properties"]["SecurityGroupIngress"]
        if resource["Type"] == "AWS::EC2::SecurityGroupIngress":
            yield resource["Properties"]


class _Tags(yaml.SafeLoader):
    """CloudFormation's: `!Ref Bucket` reads as "Bucket"."""


_Tags.add_multi_constructor(
    "!",
    lambda loader, _, node: (
        loader.construct_scalar(node)
        if isinstance(node, yaml.ScalarNode)
        else loader.construct_sequence(node)
    ),
)
