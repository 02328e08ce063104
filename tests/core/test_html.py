"""The HTML of lists, records, items and results in a notebook."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import pytest

from async_bento import (
    Bento,
    BentoAPI,
    BentoSchema,
    BentoWithRepositoryListSchema,
    Model,
    ModelWithRepositoryListSchema,
    PushResult,
    Tag,
)
from tests.builders import make_bento, make_model

if TYPE_CHECKING:
    from pathlib import Path

    from async_bento.registry.server import LocalRegistry

SECRET = "https://storage.example.com/svc?X-Amz-Signature=5ec4e7"


class Page(HTMLParser):
    """A page as a browser reads it: rows of cells, and the text outside of them.

    Every opened element must be closed, in the reverse order.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in {"table", "thead", "tbody", "tr", "th", "td", "p"}
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"th", "td"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1] in {"th", "td"}:
            self.rows[-1][-1] += data
        else:
            self.text += data


def record(version: str = "v1", **fields: object) -> dict[str, object]:
    return {
        "uid": version,
        "version": version,
        "repository": {"name": "svc"},
        "upload_status": "success",
        "build_at": "2024-05-06T07:08:09Z",
        "presigned_download_url": SECRET,
        "presigned_upload_url": SECRET,
        **fields,
    }


def bentos(*records: dict[str, object]) -> BentoWithRepositoryListSchema:
    return BentoWithRepositoryListSchema.model_validate({"items": records})


def test_html_list_is_counted_table() -> None:
    page = Page(bentos(record("v2", manifest={"size_bytes": 2048}), record("v1"))._repr_html_())
    assert page.rows == [
        ["TAG", "SIZE", "BUILT (UTC)", "UPLOAD"],
        ["svc:v2", "2.0 KiB", "2024-05-06 07:08", "success"],
        ["svc:v1", "", "2024-05-06 07:08", "success"],
    ]
    assert page.text == "2 bentos"


def test_html_list_over_20_is_cut() -> None:
    page = Page(bentos(*(record(f"v{number}") for number in range(1000)))._repr_html_())
    assert [row[0] for row in page.rows[1:]] == [f"svc:v{number}" for number in range(20)]
    assert page.text == "the first 20 of 1,000 bentos"


def test_html_list_of_20_is_complete() -> None:
    page = Page(bentos(*(record(f"v{number}") for number in range(20)))._repr_html_())
    assert len(page.rows) == 21
    assert page.text == "20 bentos"


def test_html_list_of_one_is_singular() -> None:
    models = ModelWithRepositoryListSchema.model_validate({"items": [record()]})
    assert Page(models._repr_html_()).text == "1 model"


@pytest.mark.parametrize(
    ("found", "text"),
    [(BentoWithRepositoryListSchema(), "no bentos"), (ModelWithRepositoryListSchema(), "no models")],
)
def test_html_empty_list_is_sentence(
    found: BentoWithRepositoryListSchema | ModelWithRepositoryListSchema, text: str
) -> None:
    page = Page(found._repr_html_())
    assert (page.rows, page.text) == ([], text)


def test_html_record_shows_its_facts() -> None:
    shown = BentoSchema.model_validate(
        record(
            manifest={"name": "svc", "size_bytes": 10, "bentoml_version": "1.4.39", "models": ["a:1", "b:2"]},
            labels=[{"key": "team", "value": "nlp"}],
        )
    )
    assert Page(shown._repr_html_()).rows == [
        ["Tag", "svc:v1"],
        ["Upload", "success"],
        ["Built (UTC)", "2024-05-06 07:08:09"],
        ["Size", "10 B with its models"],
        ["BentoML", "1.4.39"],
        ["Models", "a:1, b:2"],
        ["Labels", "team=nlp"],
    ]


def test_html_store_item_shows_facts(tmp_path: Path) -> None:
    bento = make_bento(tmp_path, "svc:v1", models=["mod:m1"], labels={"team": "nlp"})
    model = make_model(tmp_path, "mod:m1")
    assert Page(Bento.from_path(bento)._repr_html_()).rows == [
        ["Tag", "svc:v1"],
        ["Directory", str(bento)],
        ["Built (UTC)", "2024-05-06 07:08:09"],
        ["BentoML", "1.4.39"],
        ["Models", "mod:m1"],
        ["Labels", "team=nlp"],
    ]
    assert ["Tag", "mod:m1"] in Page(Model.from_path(model)._repr_html_()).rows


def test_html_push_result_lists_models() -> None:
    result = PushResult(
        Tag("svc", "v1"),
        resumed=True,
        bytes_sent=2048,
        parts=2,
        seconds=1.26,
        models=(
            PushResult(Tag("a", "1"), skipped=True, seconds=0.04),
            PushResult(Tag("b", "2"), bytes_sent=10, parts=1, seconds=0.1),
            PushResult(Tag("c", "3"), seconds=0.1),
        ),
    )
    assert Page(result._repr_html_()).rows == [
        ["TAG", "OUTCOME", "SENT", "PARTS", "SECONDS"],
        ["svc:v1", "resumed", "2.0 KiB", "2", "1.3"],
        ["a:1", "already pushed", "", "", "0.0"],
        ["b:2", "pushed", "10 B", "1", "0.1"],
        ["c:3", "record only", "", "", "0.1"],
    ]


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (PushResult(Tag("svc", "v1"), bytes_sent=2048, parts=2, seconds=1.26), "pushed svc:v1: 2.0 KiB in 1.3 s"),
        (PushResult(Tag("svc", "v1"), seconds=0.1), "pushed the record of svc:v1"),
        (PushResult(Tag("svc", "v1"), skipped=True), "skipped svc:v1: already pushed"),
        (
            PushResult(Tag("svc", "v1"), models=(PushResult(Tag("a", "1"), bytes_sent=10, parts=1),), skipped=True),
            "pushed svc:v1 and 1 model: 10 B in 0.0 s",
        ),
        (
            PushResult(Tag("svc", "v1"), models=(PushResult(Tag("a", "1"), bytes_sent=10, parts=1),) * 2, skipped=True),
            "pushed svc:v1 and 2 models: 20 B in 0.0 s",
        ),
        (
            PushResult(Tag("svc", "v1"), models=(PushResult(Tag("a", "1"), skipped=True),) * 30, skipped=True),
            "skipped svc:v1 and 30 models: already pushed; the first 20 of 31 items",
        ),
    ],
)
def test_html_push_result_has_summary(result: PushResult, text: str) -> None:
    assert Page(result._repr_html_()).text == text


def shown(tmp_path: Path) -> list[str]:
    """All displayable objects, with texts that must be missing and texts that must be escaped."""
    hostile = "<script>alert('&')</script>"
    one = record(
        f"v1{hostile}", upload_status=hostile, upload_finished_reason=hostile, labels=[{"key": hostile, "value": "<b>"}]
    )
    bento = make_bento(tmp_path / "<i>", "svc:v1", labels={"<b>": hostile})
    return [
        bentos(one)._repr_html_(),
        BentoSchema.model_validate(one)._repr_html_(),
        Bento.from_path(bento)._repr_html_(),
    ]


@pytest.mark.parametrize(("status", "shows"), [("failed", True), ("success", False), ("uploading", False)])
def test_html_failure_shows_reason(status: str, shows: bool) -> None:
    """Yatai keeps the reason of an earlier failure in the record of a later success."""
    one = BentoSchema.model_validate(record("v1", upload_status=status, upload_finished_reason="cancelled"))

    assert status in one._repr_html_()
    assert ("cancelled" in one._repr_html_()) is shows


@pytest.mark.posix("angle brackets in names")
def test_html_escapes_hostile_values(tmp_path: Path) -> None:
    for text in shown(tmp_path):
        cells = "".join(cell for row in Page(text).rows for cell in row)
        assert "<script>alert('&')</script>" in cells


@pytest.mark.posix("angle brackets in names")
def test_html_shows_no_secret(tmp_path: Path) -> None:
    for text in shown(tmp_path):
        assert "5ec4e7" not in text
        assert "storage.example.com" not in text


@pytest.mark.posix("angle brackets in names")
def test_html_sets_no_colour(tmp_path: Path) -> None:
    for text in shown(tmp_path):
        assert set(re.findall(r'style="([^"]*)"', text)) == {"text-align: left; vertical-align: top"}
        assert not re.search(r"<style|class=|bgcolor|\bcolor=", text)


def test_html_of_registry_lists_bento(served: LocalRegistry, home: Path) -> None:
    make_bento(home, "svc:v1", models=["mod:m1"])
    make_model(home, "mod:m1")
    with BentoAPI() as api:
        pushed = api.push("svc:v1")
        assert [row[:2] for row in Page(pushed._repr_html_()).rows[1:]] == [["svc:v1", "pushed"], ["mod:m1", "pushed"]]
        assert [row[0] for row in Page(api.list()._repr_html_()).rows] == ["TAG", "svc:v1"]
        assert [row[0] for row in Page(api.models.list()._repr_html_()).rows] == ["TAG", "mod:m1"]
        for name, record_of in (("svc:v1", api.get("svc")), ("mod:m1", api.models.get("mod"))):
            assert Page(record_of._repr_html_()).rows[0] == ["Tag", name]
