"""The project of the test bento, and its models."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.interop.homes import PART_SIZE, MiB

if TYPE_CHECKING:
    from pathlib import Path

SERVICE = """
import bentoml


@bentoml.service(name="my_service", resources={"cpu": "1"}, traffic={"timeout": 30}, labels={"team": "interop"})
class MyService:
    small = bentoml.models.BentoModel("small:m1")
    large = bentoml.models.BentoModel("large:m2")

    @bentoml.api
    def double(self, number: int) -> int:
        return 2 * number
"""

BENTOFILE = """
service: service:MyService
name: my_service
description: "file: ./notes.md"
labels: {owner: me, stage: prod, year: 2024}
include: ["*"]
envs: [{name: GREETING, value: hällo}, {name: SECRET}]
python: {lock_packages: false, packages: [bentoml]}
"""

NOTES = "# Doubles\n\nNumbers, that is: «2 × n». ☃\n"

MODELS = """
import bentoml, os, sys

with bentoml.models.create(
    "small:m1",
    labels={"stage": "prod", "wörd": "ü"},
    metadata={"accuracy": 0.5, "layers": [1, 2], "nested": {"is": True}, "note": "☃"},
) as model:
    os.mkdir(model.path_of("tools"))
    with open(model.path_of("tools/convert.sh"), "w") as file:
        file.write("#!/bin/sh\\n")
    os.chmod(model.path_of("tools/convert.sh"), 0o755)

with bentoml.models.create("large:m2", labels={}, metadata={}) as model:
    with open(model.path_of("weights.bin"), "wb") as file:
        file.write(os.urandom(int(sys.argv[1])))
    os.chmod(model.path_of("weights.bin"), 0o640)
"""

LABELS = {"owner": "me", "stage": "prod", "year": "2024", "team": "interop"}
"""The labels of the bento: those of the bentofile, as text, and those of the service."""


def write_project(project: Path) -> None:
    """Write a project for `bentoml build` with an executable, a link, a name outside ASCII and random bytes."""
    (project / "scripts").mkdir(parents=True)
    (project / "service.py").write_text(SERVICE, encoding="utf-8")
    (project / "bentofile.yaml").write_text(BENTOFILE, encoding="utf-8")
    (project / "notes.md").write_text(NOTES, encoding="utf-8")
    (project / "scripts" / "run.sh").write_text("#!/bin/sh\n")
    (project / "scripts" / "run.sh").chmod(0o755)
    (project / "scripts" / "start").symlink_to("run.sh")
    (project / "dïr").mkdir()
    (project / "dïr" / "naïve ☃.txt").write_text("ünï", encoding="utf-8")
    (project / "weights.bin").write_bytes(os.urandom(2 * PART_SIZE + MiB + 17))  # three parts, the last one short
