"""Address arithmetic of the test cluster."""

from __future__ import annotations

import ipaddress

import pytest

from e2e.cluster.addresses import POD_RANGE, SERVICE_RANGE, SLOTS, Addresses, next_index, pick_slot
from e2e.cluster.errors import ClusterError

pytestmark = pytest.mark.unit


def test_a_name_keeps_its_slot() -> None:
    """The same name gets the same network again, so a kubeconfig of yesterday still fits."""
    assert pick_slot("ftop", [], []) == pick_slot("ftop", [], [])


def test_a_taken_slot_is_passed_over() -> None:
    """Two clusters never share a network."""
    first = pick_slot("ftop", [], [])
    assert pick_slot("ftop", [first], []) == (first + 1) % SLOTS


def test_a_network_of_the_host_is_passed_over() -> None:
    """A route of the host, a VPN's say, is left alone."""
    first = pick_slot("ftop", [], [])
    assert pick_slot("ftop", [], [f"10.254.{first}.0/24"]) == (first + 1) % SLOTS


def test_no_free_slot_names_the_remedy() -> None:
    """When the host uses all of the range, the error says what to do."""
    with pytest.raises(ClusterError, match="down --name"):
        pick_slot("ftop", [], ["10.254.0.0/16"])


@pytest.mark.parametrize("index", [1, 2, 200], ids=["first", "second", "last"])
def test_nodes_and_pods_lie_in_their_networks(index: int) -> None:
    """Every node's address and pod range is inside what the components are told."""
    addresses = Addresses(63)
    assert ipaddress.ip_address(addresses.node(index)) in ipaddress.ip_network(addresses.node_network)
    assert ipaddress.ip_network(addresses.pods(index)).subnet_of(ipaddress.ip_network(POD_RANGE))
    assert addresses.node(index) != addresses.control_plane
    assert not ipaddress.ip_network(addresses.pods(index)).overlaps(ipaddress.ip_network(SERVICE_RANGE))


@pytest.mark.parametrize("index", [0, 201, -1], ids=["zero", "too many", "negative"])
def test_an_index_out_of_range_is_refused(index: int) -> None:
    """Rather an error than an address in somebody else's network."""
    with pytest.raises(ClusterError, match="between 1 and 200"):
        Addresses(1).node(index)


def test_device_name_fits_the_kernel() -> None:
    """Linux allows 15 characters."""
    assert len(Addresses(SLOTS - 1).host_link) <= 15


def test_next_index_fills_gaps() -> None:
    """An index that no node has any more is used again."""
    assert next_index([1, 3]) == 2
    assert next_index([]) == 1
