from __future__ import annotations

from typing import Any

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session

from stream_api.storage.descriptions import Descriptions


def prose(value: Any) -> int:
    """How much of it there is."""
    if isinstance(value, dict):
        own = value.get("documentation")
        return (len(own) if isinstance(own, str) else 0) + sum(map(prose, value.values()))
    return sum(map(prose, value)) if isinstance(value, list) else 0


def test_what_is_never_asked_is_left_out() -> None:
    loader = get_session().get_component("data_loader")
    whole = loader.load_service_model("s3", "service-2")
    assert prose(whole) > 500_000
    lean = get_session().get_component("data_loader")
    lean.file_loader = Descriptions()
    model = lean.load_service_model("s3", "service-2")
    assert prose(model) == 0
    assert model["operations"].keys() == whole["operations"].keys()
    assert model["shapes"].keys() == whole["shapes"].keys()
    listed = [partition["services"].keys() for partition in lean.load_data("endpoints")["partitions"]]
    assert all("s3" in services for services in listed)
    assert all(len(services) <= 5 for services in listed)


@pytest.mark.parametrize("service", ["s3", "sts", "sso"])
@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1", "cn-north-1", "us-gov-west-1", "xx-nowhere-9"])
async def test_every_region_is_found_as_before(service: str, region: str) -> None:
    found = []
    for descriptions in (None, Descriptions()):
        session: Any = get_session()  # its overloads want literals
        if descriptions is not None:
            session.get_component("data_loader").file_loader = descriptions
        async with session.create_client(
            service,
            region_name=region,
            aws_access_key_id="k",
            aws_secret_access_key="s",
            config=AioConfig(signature_version="s3v4" if service == "s3" else None),
        ) as client:
            found.append((client.meta.endpoint_url, client.meta.region_name, client.meta.partition))
    assert found[0] == found[1]
