"""The filter that compares a JVM's heap with a pod's memory."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.citadelbuy.platform.plugins.filter.heap_fits import FilterModule, heap_fits


@pytest.mark.parametrize(
    ("heap", "memory", "fits"),
    [
        ("1g", "2Gi", True),
        ("1G", "2Gi", True),
        ("1025m", "2Gi", False),
        ("1g", "2G", False),
        ("953m", "2G", True),
        ("954m", "2G", False),
        ("512M", "1024Mi", True),
        ("524288k", "1Gi", True),
        ("536870912", "1Gi", True),
        ("536870913", "1Gi", False),
        (536870912, 1073741824, True),
        ("1t", "2Ti", True),
        ("3g", "4Gi", False),
    ],
)
def test_half_of_the_memory(heap: object, memory: object, fits: bool) -> None:
    assert heap_fits(heap, memory) is fits


@pytest.mark.parametrize("heap", ["", "1Gi", "0", "-1g", "1.5g", "g", "1gb", None])
def test_what_java_would_not_take(heap: object) -> None:
    with pytest.raises(AnsibleFilterError, match="no size of a JVM's heap: write it as 512m or 1g"):
        heap_fits(heap, "2Gi")


def test_a_limit_that_is_none() -> None:
    with pytest.raises(AnsibleFilterError, match="'2GiB' is not a quantity"):
        heap_fits("1g", "2GiB")


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"heap_fits": heap_fits}
