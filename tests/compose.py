"""docker-compose.yml as tests read it: each service's command and environment, as they stand in the file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
IMAGE = "headrace"


@dataclass(frozen=True)
class Service:
    name: str
    image: str
    command: list[str]
    environment: dict[str, str]
    ports: list[str]
    volumes: list[str]
    depends_on: list[str]
    healthcheck: list[str]

    @property
    def ours(self) -> bool:
        return self.image == IMAGE


def services() -> dict[str, Service]:
    file: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))
    return {
        name: Service(
            name=name,
            image=service["image"],
            command=list(service.get("command", [])),
            environment=dict(service.get("environment", {})),
            ports=list(service.get("ports", [])),
            volumes=list(service.get("volumes", [])),
            depends_on=list(service.get("depends_on", [])),
            healthcheck=list(service.get("healthcheck", {}).get("test", []))[1:],  # without the word CMD
        )
        for name, service in file["services"].items()
    }
