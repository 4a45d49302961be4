"""The client against a real API server."""

from __future__ import annotations

import pytest
from kubernetes.aio import client, config

from apiserver import ApiServer
from e2e.kubectl import Kubectl
from finetune_operator.constants import JOB_KIND
from finetune_operator.shell.kube import Kube, listing
from finetune_operator.shell.metrics import Metrics
from jobs import a_job

pytestmark = [pytest.mark.api, pytest.mark.usefixtures("runtime", "no_other_operator")]


async def test_a_list_of_metadata_has_nothing_else(api_server: ApiServer, kubectl: Kubectl) -> None:
    """The same objects of the same version, without what takes most of the memory."""
    kubectl.create(*(a_job(name) for name in ("first", "second")))
    configuration = client.Configuration()
    await config.load_kube_config(str(api_server.operator_kubeconfig), client_configuration=configuration)
    kube = Kube(client.ApiClient(configuration), Metrics())
    path = listing(JOB_KIND, kubectl.namespace)
    try:
        whole = await kube.get(path)
        version = whole["metadata"]["resourceVersion"]
        metadata = await kube.get_metadata(path, {"resourceVersion": version, "resourceVersionMatch": "NotOlderThan"})
    finally:
        await kube.close()
    assert [item["metadata"] for item in metadata["items"]] == [item["metadata"] for item in whole["items"]]
    assert [item["metadata"]["name"] for item in metadata["items"]] == ["first", "second"]
    assert all(item.keys() == {"apiVersion", "kind", "metadata"} for item in metadata["items"])
    assert all("spec" in item for item in whole["items"])
