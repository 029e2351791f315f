"""What botocore knows of AWS, less what this service never asks it: 5 MB that would stay for ever."""

from __future__ import annotations

from typing import Any, Final

from botocore.loaders import JSONFileLoader

#: Services that the client asks: the store, and those that credentials come from (roles, web identities, sign-on). What
#: is not in the list of endpoints is found by the partition's own pattern, which all of these have in common with it.
_SERVICES: Final = frozenset({"s3", "sts", "sso", "sso-oidc", "signin"})


class Descriptions(JSONFileLoader):
    """Reads botocore's files, in place of botocore's own reader.

    The list of endpoints describes some 300 services, of which a handful remains; a third of the model of S3 is prose.
    """

    def load_file(self, file_path: str) -> Any:
        """As botocore's own.

        :param file_path: without its extension.
        """
        found = super().load_file(file_path)
        if isinstance(found, dict):
            for partition in found.get("partitions", ()):
                if "services" in partition:
                    partition["services"] = {
                        name: service for name, service in partition["services"].items() if name in _SERVICES
                    }
            _drop_prose(found)
        return found


def _drop_prose(value: Any) -> None:
    if isinstance(value, list):
        for each in value:
            _drop_prose(each)
    elif isinstance(value, dict):
        # A shape's member of that name is a dictionary; and botocore looks some of the texts up.
        if isinstance(value.get("documentation"), str):
            value["documentation"] = ""
        for each in value.values():
            _drop_prose(each)
