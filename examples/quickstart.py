"""Start a registry, push a small bento and its model, pull both into a second store, and compare them.

Everything runs on this machine in a temporary directory. You need no account, no BentoML and no Docker.
"""

import asyncio
import contextlib
import os
import tempfile
from pathlib import Path

from async_bento import AsyncBentoAPI, BentoStore, Config, ModelStore
from async_bento.registry import LocalRegistry

MiB = 1024 * 1024

BENTO_YAML = """\
service: service:Greeter
name: greeter
version: v1
bentoml_version: 1.4.39
creation_time: 2026-01-02 03:04:05+00:00
entry_service: Greeter
labels: {team: quickstart}
models:
- {tag: "greetings:v1", module: "", creation_time: 2026-01-02 03:04:05+00:00}
spec: 2
"""

MODEL_YAML = """\
name: greetings
version: v1
module: ""
labels: {}
options: {}
metadata: {languages: 3}
context: {framework_name: none, framework_versions: {}, bentoml_version: 1.4.39, python_version: 3.12.0}
signatures: {}
api_version: v1
creation_time: 2026-01-02 03:04:05+00:00
"""


def build(home: Path) -> None:
    """Create a bento with a script, a link and an empty directory, and a model, as `bentoml build` does."""
    bento = home / "bentos" / "greeter" / "v1"
    (bento / "src" / "cache").mkdir(parents=True)
    (bento / "bento.yaml").write_text(BENTO_YAML)
    (bento / "README.md").write_text("# Greeter\n\nSays hello.\n")
    (bento / "src" / "service.py").write_text("class Greeter:\n    def greet(self):\n        return 'hello'\n")
    (bento / "src" / "start.sh").write_text("#!/bin/sh\nexec bentoml serve\n")
    (bento / "src" / "start.sh").chmod(0o755)
    with contextlib.suppress(OSError):  # on Windows, links need a privilege
        (bento / "src" / "grüße.txt").symlink_to("service.py")
    model = home / "models" / "greetings" / "v1"
    model.mkdir(parents=True)
    (model / "model.yaml").write_text(MODEL_YAML)
    (model / "weights.bin").write_bytes(os.urandom(64 * MiB))


def read_tree(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Return the mode and the contents or link target of each path below a directory."""
    return {
        str(path.relative_to(directory)): (
            path.lstat().st_mode,
            bytes(path.readlink()) if path.is_symlink() else b"" if path.is_dir() else path.read_bytes(),
        )
        for path in sorted(directory.rglob("*"))
    }


async def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch, "source"), Path(scratch, "target")
        build(source)
        async with LocalRegistry(Path(scratch, "registry")) as registry:
            print(f"Registry: {registry.endpoint}\n")

            def api(home: Path) -> AsyncBentoAPI:
                return AsyncBentoAPI(
                    endpoint=registry.endpoint,
                    api_token=registry.api_token,
                    bento_store=BentoStore(home / "bentos"),
                    model_store=ModelStore(home / "models"),
                    config=Config(transfer={"part_size": 16 * MiB}),
                    progress=True,
                )

            async with api(source) as client:
                result = await client.push("greeter:latest")
                for pushed in (*result.models, result):
                    print(f"Pushed {pushed.tag}: {pushed.bytes_sent:,} bytes in {pushed.parts} parts")
                print()
                again = await client.push("greeter:v1")
                print(f"Second push: skipped={again.skipped}, {again.bytes_sent} bytes\n")

            async with api(target) as client:
                for record in await client.list():
                    print(f"On the registry: {record.tag}, {record.upload_status}")
                record = await client.get("greeter", "v1")
                print(f"Labels: {', '.join(f'{label.key}={label.value}' for label in record.labels)}\n")
                bento = await client.pull("greeter", with_models=True)
                print(f"Pulled {bento.tag} to {bento.path}\n")

        for item in ("bentos/greeter/v1", "models/greetings/v1"):
            pushed_tree, pulled_tree = read_tree(source / item), read_tree(target / item)
            if pushed_tree != pulled_tree:
                raise SystemExit(f"{item} differs after the pull")
            print(f"{item}: {len(pulled_tree)} files and links are identical, bytes and modes")


if __name__ == "__main__":
    asyncio.run(main())
