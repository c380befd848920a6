"""What docker-compose.yml says about a service, translated to a machine without containers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from .paths import ROOT

FILE: Final = ROOT / "docker-compose.yml"


def services() -> dict[str, Any]:
    """Return the services as they are written."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]


class Service:
    """One service, with its paths and host names replaced.

    Args:
        name: Its name in the file.
        hosts: What to put for `http://name:port` and `name:port` of other services.
        folders: Where volumes that are no files of this repository are.
    """

    def __init__(self, name: str, hosts: dict[str, str], folders: dict[str, Path] | None = None) -> None:
        self._service = services()[name]
        self._hosts = hosts
        self._folders = folders or {}

    @property
    def command(self) -> list[str]:
        """The arguments of its command."""
        return [self._here(str(part)) for part in self._service.get("command", ())]

    @property
    def environment(self) -> dict[str, str]:
        """Its environment variables."""
        return {key: self._here(str(value)) for key, value in self._service.get("environment", {}).items()}

    def _here(self, text: str) -> str:
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
        for address, local in self._hosts.items():
            text = text.replace(address, local)
        # The longest first: /etc/prometheus/alerts lies within /etc/prometheus.
        for inside, outside in sorted(self._mounts().items(), key=lambda mount: -len(mount[0])):
            text = re.sub(rf"(?<![\w/.]){re.escape(inside)}(?![\w])", str(outside), text)
        return text

    def _mounts(self) -> dict[str, Path]:
        mounts: dict[str, Path] = {}
        for volume in self._service.get("volumes", ()):
            outside, inside, *_ = str(volume).split(":")
            mounts[inside] = ROOT / outside if outside.startswith(".") else self._folders[outside]
        return mounts
