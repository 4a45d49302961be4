"""Configuration files, command lines and objects of the test cluster, rendered without a cluster."""

from __future__ import annotations

import json
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from e2e.cluster import config, manifests
from e2e.cluster.addresses import Addresses
from e2e.cluster.api import is_ready, object_path
from e2e.cluster.binaries import built_name, staging_modules, tools_module, tools_source
from e2e.cluster.components import control_plane_programs, node_programs
from e2e.cluster.errors import ClusterError
from e2e.cluster.machine import Program, init_script
from e2e.cluster.versions import GO_PROGRAMS

pytestmark = pytest.mark.unit

FOLDER = Path("/x/node-1")
PKI = Path("/x/pki")


def test_containerd_config_is_toml_of_the_nodes_own() -> None:
    """Root and socket lie in the node's folder: two nodes on one host must not meet."""
    parsed = tomllib.loads(config.containerd_config(FOLDER))
    assert parsed["root"].startswith(str(FOLDER))
    assert parsed["grpc"]["address"].startswith(str(FOLDER))
    assert parsed["plugins"]["io.containerd.grpc.v1.cri"]["restrict_oom_score_adj"] is True


def test_kubelet_config_keeps_to_its_cgroup_and_address() -> None:
    """What makes several kubelets on one host possible."""
    rendered = config.kubelet_config("10.255.1.11", FOLDER, PKI, "/finetune-operator-x/node-1")
    assert rendered["cgroupRoot"] == "/finetune-operator-x/node-1"
    assert rendered["address"] == "10.255.1.11"
    assert rendered["failCgroupV1"] is False
    assert rendered["authentication"]["anonymous"]["enabled"] is False


def test_cni_config_gives_a_node_its_range() -> None:
    """Two nodes hand out different addresses."""
    first, second = (config.cni_config(FOLDER, Addresses(1).pods(i))["plugins"][0]["ipam"]["ranges"] for i in (1, 2))
    assert first != second


def test_corefile_answers_on_the_control_planes_address() -> None:
    """The address that the EndpointSlice names, and the alias for the host."""
    addresses = Addresses(3)
    text = config.corefile(addresses, 1053, Path("/x/kubeconfig"))
    assert f"bind {addresses.control_plane}" in text
    assert f"{addresses.host} {config.HOST_ALIAS}" in text
    assert text.count("{") == text.count("}")
    assert addresses.control_plane in json.dumps(manifests.dns_objects(addresses))


def test_kubeconfig_names_certificates() -> None:
    """kubectl reads it as YAML, and JSON is YAML."""
    parsed = json.loads(config.kubeconfig("https://10.254.1.2:6443", "admin", PKI, PKI / "admin", "ftop"))
    assert parsed["users"][0]["user"]["client-key"] == "/x/pki/admin.key"
    assert parsed["current-context"] == "ftop"


def test_programs_have_unique_names_and_flags() -> None:
    """A program's name is its log's; a flag given twice would hide one value."""
    programs = [*control_plane_programs(FOLDER, PKI, Addresses(1)), *node_programs(FOLDER, "node-1", "10.255.1.11")]
    names = [program.name for program in programs]
    assert len(names) == len(set(names))
    for program in programs:
        given = [word.split("=")[0] for word in program.command if word.startswith("--")]
        assert len(given) == len(set(given)), program.name


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash to check its own syntax")
def test_init_script_is_valid_shell() -> None:
    """Values with blanks and quotes survive."""
    programs = [Program("a", ["a", "--x=it's", "b c"]), Program("b", ["b"], "[ -S /x/socket ]")]
    script = init_script(FOLDER, programs, {"PATH": "/a b:/c"})
    checked = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, timeout=10, check=False)
    assert checked.returncode == 0, checked.stderr
    assert "until [ -S /x/socket ]" in script


@pytest.mark.parametrize("text", ["models", "=dir", "models=", ""], ids=["no folder", "no name", "empty", "nothing"])
def test_volume_argument_must_be_name_and_folder(text: str) -> None:
    """The error shows the value and an example."""
    with pytest.raises(ClusterError, match="NAME=DIR"):
        manifests.parse_volume(text)


def test_volume_is_bound_in_advance() -> None:
    """Claim and volume name each other, so no other claim can take the folder."""
    volume, claim = manifests.volume_objects("models", Path("/srv/models"), "team")
    assert volume["spec"]["claimRef"]["name"] == claim["metadata"]["name"] == "models"
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert claim["spec"]["storageClassName"] == volume["spec"]["storageClassName"] == ""


def test_object_paths() -> None:
    """Core and named groups, with and without a namespace."""
    volume, claim = manifests.volume_objects("m", Path("/m"), "team")
    assert object_path(volume) == "/api/v1/persistentvolumes/team-m"
    assert object_path(claim) == "/api/v1/namespaces/team/persistentvolumeclaims/m"
    slices = manifests.dns_objects(Addresses(1))[1]
    assert object_path(slices) == "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices/kube-dns-host"


def test_node_without_status_is_not_ready() -> None:
    """A Node object that its kubelet has not filled yet."""
    assert not is_ready({"metadata": {"name": "node-1"}})
    assert is_ready({"status": {"conditions": [{"type": "Ready", "status": "True"}]}})


def test_staging_modules_are_replaced_by_their_releases() -> None:
    """Kubernetes 1.35.4 is made of modules 0.35.4."""
    go_mod = "replace (\n\tk8s.io/api => ./staging/src/k8s.io/api\n\tk8s.io/apimachinery => ./staging/src/x\n)\n"
    found = staging_modules(go_mod)
    assert found == ["k8s.io/api", "k8s.io/apimachinery"]
    module = tools_module({"k8s.io/kubernetes": "1.35.4"}, found)
    assert "require k8s.io/kubernetes v1.35.4" in module
    assert "replace k8s.io/api => k8s.io/api v0.35.4" in module
    assert '_ "k8s.io/kubernetes/cmd/kubelet"' in tools_source(["k8s.io/kubernetes/cmd/kubelet"])


def test_every_program_gets_a_name_of_its_own() -> None:
    """Go names a program by its package, and all are built into one folder."""
    assert built_name("go.etcd.io/etcd/server/v3") == "server"
    assert built_name("helm.sh/helm/v4/cmd/helm") == "helm"
    assert len({built_name(package) for package in GO_PROGRAMS.values()}) == len(GO_PROGRAMS)
