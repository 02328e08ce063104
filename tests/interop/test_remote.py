"""A bento pushed by bentoml: read remotely, and pulled into a directory that bentoml imports as an export."""

from __future__ import annotations

import asyncio

import pytest

from tests.interop.homes import PART_SIZE, tree

pytestmark = pytest.mark.interop

TAG = "my_service:v1"


async def test_commands_read_bentoml_push(with_bento, there, registry):
    bento, expected = await pushed_bento(with_bento, registry)

    async def run(*arguments):
        return await there.python("-m", "async_bento", *arguments, registry=registry)

    listed, notes, _ = await asyncio.gather(
        run("ls", TAG),
        run("cat", TAG, "src/notes.md"),
        run("pull", TAG, "-o", "out", "--include", "src/*", "--exclude", "*.py"),
    )

    files = {path for path, kind in expected.items() if kind[0] != "directory"}
    rows = [line.split(maxsplit=3) for line in listed.splitlines()]
    assert {path.partition(" -> ")[0] for *_, path in rows} == files
    sizes = {path: int(size) for size, _, _, path in rows}
    assert sizes["src/weights.bin"] == (bento / "src/weights.bin").stat().st_size
    assert notes == (bento / "src/notes.md").read_text(encoding="utf-8")
    await check_extracted(there.path / "out", expected)


@pytest.mark.parametrize("transmission", ["auto", "proxy"])
async def test_files_read_bentoml_push(with_bento, there, registry):
    bento, expected = await pushed_bento(with_bento, registry)
    async with there.api(registry) as api:
        files = api.files("my_service")
        assert {entry.path for entry in await files.list()} == expected.keys() - {"."}
        assert await files.read("src/dïr/naïve ☃.txt") == (bento / "src/dïr/naïve ☃.txt").read_bytes()
        await files.extract("src/*", there.path / "out", exclude="*.py")
    await check_extracted(there.path / "out", expected)


async def pushed_bento(with_bento, registry):
    """Push the bento by bentoml and return its path and its tree."""
    await with_bento.calls(["set_part_size", {"size": PART_SIZE}], ["push", {"tag": TAG}], registry=registry)
    bento = await asyncio.to_thread(lambda: with_bento.bentos.get(TAG).path)
    return bento, await asyncio.to_thread(tree, bento)


async def check_extracted(place, expected):
    """Check that the directory has the bento's `src` without its modules."""
    pulled = await asyncio.to_thread(tree, place)
    assert pulled == {
        path: kind
        for path, kind in expected.items()
        if path in {".", "src"} or (path.startswith("src/") and not path.endswith(".py"))
    }


async def test_bentoml_imports_pull_output(with_bento, there, registry):
    await with_bento.calls(["push", {"tag": TAG}], ["export", {"tag": TAG, "into": "exported"}], registry=registry)
    command = ("-m", "async_bento", "pull", TAG, "-o", "pulled", "--with-models")
    planned = await there.python(*command, "--dry-run", registry=registry)
    assert f"to {there.path}/pulled/models" in planned
    assert not (there.path / "pulled").exists()
    await there.python(*command, registry=registry)
    exported, pulled = with_bento.path / "exported", there.path / "pulled"
    expected, got = [await asyncio.to_thread(tree, path, modes=False) for path in (exported, pulled)]
    link = "src/scripts/start"  # bentoml exports the target instead of the link
    assert (got.pop(link), expected.pop(link)) == (("link", "run.sh"), got["src/scripts/run.sh"])
    assert got == expected

    models, listed, imported = [
        (await there.calls(call))[0]  # each in its own process: the first selects the store of the directory
        for call in (
            ["loaded_models", {"path": str(pulled)}],
            ["list_all", {}],
            ["import_bento", {"path": str(pulled)}],
        )
    ]
    (after,) = await there.calls(["list_all", {}])

    assert models == {"small": f"{pulled}/models/small/m1", "large": f"{pulled}/models/large/m2"}
    assert listed == {"bentos": [], "models": []}
    assert imported == TAG
    assert (after["bentos"], sorted(after["models"])) == ([TAG], ["large:m2", "small:m1"])
