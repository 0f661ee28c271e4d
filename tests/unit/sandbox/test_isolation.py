"""What REWARM_ISOLATION may say."""

from __future__ import annotations

import pytest

from rewarm.errors import BadDefinition
from rewarm.sandbox.isolation import Isolation, wanted


def test_what_is_wanted() -> None:
    assert wanted({}) == wanted({"REWARM_ISOLATION": "all"}) == Isolation(cgroups=True, namespaces=True)
    assert wanted({"REWARM_ISOLATION": "none"}) == Isolation(cgroups=False, namespaces=False)
    assert wanted({"REWARM_ISOLATION": "cgroups"}) == Isolation(cgroups=True, namespaces=False)
    assert wanted({"REWARM_ISOLATION": "namespaces"}) == Isolation(cgroups=False, namespaces=True)


@pytest.mark.parametrize("value", ["", "off", "ALL", "x" * 1000])
def test_nonsense_is_refused_with_what_would_do(value: str) -> None:
    with pytest.raises(BadDefinition, match="all, cgroups, namespaces, none") as caught:
        wanted({"REWARM_ISOLATION": value})
    assert len(caught.value.message) < 200
