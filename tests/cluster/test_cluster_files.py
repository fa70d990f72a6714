"""The files of cluster/ against what reads them, all offline: Ray's own checks, what Amazon and
Google write of their machines, schemas of Kubernetes and Compose, a linter; what no schema sees.

KubeRay's resource definitions are not kept here: `KUBERAY_CRDS=folder` has them checked too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto.server import ThreadedMotoServer
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config

from psvit_ray.commands.command_line import RECIPES
from psvit_ray.runtime.cluster.config import WorkerResources
from tests.helpers import cluster_files, cluster_launcher, cluster_manifests
from tests.helpers.cluster_files import CLUSTER, ROOT
from tests.helpers.cluster_manifests import CRDS, HOW_TO_CRDS
from tests.helpers.cluster_mutations import KUBERAY_MUTATIONS, MUTATIONS

CHECKS: dict[str, Callable[[str], Iterator[str]]] = {
    "cluster/aws.yaml": cluster_launcher.launcher,
    "cluster/gcp.yaml": cluster_launcher.launcher,
    "cluster/onprem.yaml": cluster_launcher.launcher,
    "cluster/aws_access.yaml": cluster_launcher.aws_access,
    "cluster/Dockerfile": cluster_files.dockerfile,
    ".dockerignore": cluster_files.dockerignore,
    ".rayignore": cluster_files.rayignore,
    "cluster/kuberay/raycluster.yaml": cluster_manifests.kubernetes,
    "cluster/kuberay/rayjob.yaml": cluster_manifests.kubernetes,
    "cluster/kuberay/settings.yaml": cluster_manifests.settings,
    "cluster/mlflow/compose.yaml": cluster_manifests.compose,
    "cluster/mlflow/kubernetes.yaml": cluster_manifests.mlflow_on_kubernetes,
    "cluster/observability/compose.yaml": cluster_manifests.compose,
    "cluster/observability/dashboard.json": cluster_manifests.dashboard,
}
SCRIPTS = {
    "cluster/host/keep.sh",
    "cluster/host/spot_notice.py",
}  # tests/cluster/test_cluster_host.py
PAGES = {"cluster/README.md", "cluster/SCALING.md"}
needs_crds = pytest.mark.skipif(not CRDS, reason=HOW_TO_CRDS)


def cases(mutations: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(path, *change, id=f"{path.removeprefix('cluster/')}-{number}")
        for path, changes in mutations.items()
        for number, change in enumerate(changes)
    ]


def problems(path: str, text: str) -> list[str]:
    return list(CHECKS[path](text))


@pytest.mark.processes
@pytest.mark.parametrize("path", CHECKS)
def test_a_file_of_cluster_has_no_problem(path: str) -> None:
    assert problems(path, (ROOT / path).read_text()) == []


@needs_crds
@pytest.mark.parametrize("path", KUBERAY_MUTATIONS)
def test_kuberay_knows_every_field(path: str) -> None:
    assert problems(path, (ROOT / path).read_text()) == []


def test_every_file_of_cluster_is_checked_and_broken_in_three_ways() -> None:
    there = {str(path.relative_to(ROOT)) for path in CLUSTER.rglob("*") if path.is_file()}
    there = {path for path in there if "__pycache__" not in path}
    assert there - PAGES - SCRIPTS | {".dockerignore", ".rayignore"} == set(CHECKS)
    assert set(MUTATIONS) == set(CHECKS)
    assert all(len(changes) >= 3 for changes in MUTATIONS.values())


@pytest.mark.processes
@pytest.mark.parametrize(("path", "right", "wrong", "expected"), cases(MUTATIONS))
def test_a_broken_file_is_caught(path: str, right: str, wrong: str, expected: str) -> None:
    _caught(path, right, wrong, expected)


@needs_crds
@pytest.mark.parametrize(("path", "right", "wrong", "expected"), cases(KUBERAY_MUTATIONS))
def test_kuberay_catches_a_broken_file(path: str, right: str, wrong: str, expected: str) -> None:
    _caught(path, right, wrong, expected)


def _caught(path: str, right: str, wrong: str, expected: str) -> None:
    text = (ROOT / path).read_text()
    assert right in text
    found = problems(path, text.replace(right, wrong))
    assert any(expected in problem for problem in found), found


# What the recipes ask for


def worker_types(path: str) -> list[dict[str, float]]:
    """CPUs and GPUs of each type of worker, and how many of it there may be."""
    config = yaml.safe_load((CLUSTER / path).read_text())
    if config.get("kind") == "RayCluster":
        return [
            {
                "CPU": float(asked["cpu"]),
                "GPU": float(asked["nvidia.com/gpu"]),
                "hosts": group["maxReplicas"],
            }
            for group in config["spec"]["workerGroupSpecs"]
            for asked in [group["template"]["spec"]["containers"][0]["resources"]["requests"]]
        ]
    return [
        kind["resources"] | {"hosts": kind["max_workers"]}
        for name, kind in config["available_node_types"].items()
        if name != config["head_node_type"]
    ]


@pytest.mark.parametrize("path", ["aws.yaml", "gcp.yaml", "kuberay/raycluster.yaml"])
def test_the_workers_of_every_recipe_fit_the_hosts(path: str) -> None:
    """As many as its header says, each with the CPUs and the GPU that it asks for by default; and
    no GPU of a host is left over for want of CPUs."""
    asked = {"CPU": WorkerResources().cpus_per_worker, "GPU": 1}
    types = worker_types(path)
    held = [min(kind[name] // asked[name] for name in asked) for kind in types]
    assert held == [kind["GPU"] for kind in types]
    most = sum(kind["hosts"] * workers for kind, workers in zip(types, held, strict=True))
    headers = " ".join(recipe.read_text() for recipe in RECIPES.glob("*.yaml"))
    assert max(map(int, re.findall(r"--workers (\d+)", headers))) <= most


# AWS, as far as Ray's launcher goes without it


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The configuration by which Ray starts hosts, in an account with cluster/aws_access.yaml."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts the key pair it makes there
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        vpc = boto3.client("ec2").describe_vpcs()["Vpcs"][0]["VpcId"]
        given = {"Bucket": "bucket", "Vpc": vpc, "From": "203.0.113.7/32"}
        boto3.client("cloudformation").create_stack(
            StackName="psvit-access",
            TemplateBody=(CLUSTER / "aws_access.yaml").read_text(),
            Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in given.items()],
            Capabilities=["CAPABILITY_NAMED_IAM"],
        )
        ami = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
        text = (CLUSTER / "aws.yaml").read_text().replace("ami-00000000000000000", ami)
        yield bootstrap_aws(prepare_config(yaml.safe_load(text)))
    finally:
        server.stop()


def test_on_aws_only_ssh_from_one_address_is_open_and_workers_are_spot(aws: dict[str, Any]) -> None:
    provider = AWSNodeProvider(aws["provider"], aws["cluster_name"])
    for name, kind in aws["available_node_types"].items():
        role = "head" if name == aws["head_node_type"] else "worker"
        tags = {"ray-node-kind": role, "ray-user-node-type": name}
        provider.create_node(kind["node_config"], tags, 1)

    ec2 = boto3.client("ec2")
    hosts = [host for r in ec2.describe_instances()["Reservations"] for host in r["Instances"]]
    assert {host["InstanceType"]: host.get("InstanceLifecycle") for host in hosts} == {
        "m7i.2xlarge": None,
        "g6.2xlarge": "spot",
        "g6.12xlarge": "spot",
    }
    profiles = {host["IamInstanceProfile"]["Arn"].rpartition("/")[2] for host in hosts}
    assert profiles == {"psvit-head", "psvit-worker"}

    (group,) = {group["GroupId"] for host in hosts for group in host["SecurityGroups"]}
    (found,) = ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]
    from_outside = [rule for rule in found["IpPermissions"] if rule["IpRanges"]]
    assert [(r["FromPort"], r["ToPort"], r["IpRanges"]) for r in from_outside] == [
        (22, 22, [{"CidrIp": "203.0.113.7/32"}])
    ]
    within = [pair["GroupId"] for r in found["IpPermissions"] for pair in r["UserIdGroupPairs"]]
    assert within == [group]


# The page


def test_the_page_names_files_that_are_there() -> None:
    text = (CLUSTER / "README.md").read_text()
    for name in re.findall(r"(?<![\w/])cluster/[\w./]*\w", text):
        assert (ROOT / name).exists(), name
    for name in CHECKS:
        if name.startswith("cluster/"):
            assert name.removeprefix("cluster/") in text, name
