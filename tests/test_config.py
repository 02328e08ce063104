"""The sources of settings, invalid values, and the registry that a token may be sent to."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given, strategies as st
from pydantic import ValidationError

from async_bento import Config, ConfigError, Limits, RestApiClient, RetryPolicy, Timeouts, Transfer
from async_bento._core.urls import check_endpoint, origin
from async_bento.config import MiB, _warn_of_misspelling, bentoml_home
from async_bento.rest.contexts import read_contexts
from async_bento.rest.credentials import DEFAULT_ENDPOINT, find_credentials, needs_contexts
from tests.properties import unhurried

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETTINGS = {
    "ASYNC_BENTO_TIMEOUTS_CONNECT": ("3.5", "timeouts", "connect", 3.5),
    "ASYNC_BENTO_TIMEOUTS_STALL": ("5", "timeouts", "stall", 5.0),
    "ASYNC_BENTO_TIMEOUTS_API": ("7", "timeouts", "api", 7.0),
    "ASYNC_BENTO_TIMEOUTS_COMPLETE": ("70", "timeouts", "complete", 70.0),
    "ASYNC_BENTO_RETRY_ATTEMPTS": ("2", "retry", "attempts", 2),
    "ASYNC_BENTO_RETRY_WAIT_INITIAL": ("0", "retry", "wait_initial", 0.0),
    "ASYNC_BENTO_RETRY_WAIT_MAX": ("1", "retry", "wait_max", 1.0),
    "ASYNC_BENTO_RETRY_RETRY_AFTER_CAP": ("9", "retry", "retry_after_cap", 9.0),
    "ASYNC_BENTO_TRANSFER_PART_SIZE": ("8388608", "transfer", "part_size", 8 * MiB),
    "ASYNC_BENTO_TRANSFER_CONCURRENCY": ("4", "transfer", "concurrency", 4),
    "ASYNC_BENTO_TRANSFER_IO_CHUNK": ("65536", "transfer", "io_chunk", 65536),
    "ASYNC_BENTO_TRANSFER_WINDOW": ("1048576", "transfer", "window", MiB),
    "ASYNC_BENTO_TRANSFER_RANGE_SIZE": ("1048576", "transfer", "range_size", MiB),
    "ASYNC_BENTO_TRANSFER_RESUME": ("0", "transfer", "resume", False),
    "ASYNC_BENTO_TRANSFER_VERIFY": ("0", "transfer", "verify", False),
    "ASYNC_BENTO_TRANSFER_RATE_LIMIT": ("1048576", "transfer", "rate_limit", MiB),
    "ASYNC_BENTO_LIMITS_MEMBERS": ("10", "limits", "members", 10),
    "ASYNC_BENTO_LIMITS_DEPTH": ("7", "limits", "depth", 7),
    "ASYNC_BENTO_LIMITS_PATH": ("255", "limits", "path", 255),
    "ASYNC_BENTO_LIMITS_HEADER": ("1024", "limits", "header", 1024),
    "ASYNC_BENTO_LIMITS_NAMES": ("1048576", "limits", "names", MiB),
    "ASYNC_BENTO_LIMITS_SIZE": ("1000000", "limits", "size", 1_000_000),
    "ASYNC_BENTO_LIMITS_MAX_RATIO": ("3", "limits", "max_ratio", 3),
    "ASYNC_BENTO_LIMITS_ALLOWANCE": ("0", "limits", "allowance", 0),
}


# Settings


def test_every_setting_has_variable() -> None:
    groups = {"timeouts": Timeouts, "retry": RetryPolicy, "transfer": Transfer, "limits": Limits}
    fields = {f"ASYNC_BENTO_{group}_{field}".upper() for group, model in groups.items() for field in model.model_fields}
    assert fields == set(SETTINGS)


@pytest.mark.parametrize("variable", SETTINGS)
def test_variable_sets_one_setting(variable: str) -> None:
    text, group, field, value = SETTINGS[variable]
    expected = Config.model_validate({group: {field: value}})
    assert expected != Config()
    assert Config.from_env({variable: text}) == expected


def test_empty_variable_is_ignored() -> None:
    assert Config.from_env(dict.fromkeys(SETTINGS, "")) == Config()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("ASYNC_BENTO_TIMEOUTS_API", "soon"),
        ("ASYNC_BENTO_TIMEOUTS_API", "0"),
        ("ASYNC_BENTO_TIMEOUTS_API", "-1"),
        ("ASYNC_BENTO_TIMEOUTS_API", "inf"),
        ("ASYNC_BENTO_TIMEOUTS_CONNECT", "nan"),
        ("ASYNC_BENTO_RETRY_ATTEMPTS", "0"),
        ("ASYNC_BENTO_RETRY_ATTEMPTS", "1.5"),
        ("ASYNC_BENTO_RETRY_WAIT_INITIAL", "-1"),
        ("ASYNC_BENTO_TRANSFER_PART_SIZE", "5242879"),
        ("ASYNC_BENTO_TRANSFER_PART_SIZE", "32MiB"),
        ("ASYNC_BENTO_TRANSFER_PART_SIZE", "5368709121"),
        ("ASYNC_BENTO_TRANSFER_CONCURRENCY", "0"),
        ("ASYNC_BENTO_TRANSFER_VERIFY", "maybe"),
        ("ASYNC_BENTO_LIMITS_MEMBERS", "0"),
        ("ASYNC_BENTO_LIMITS_SIZE", "-1"),
        ("ASYNC_BENTO_LIMITS_DEPTH", "501"),
    ],
)
def test_invalid_value_names_variable(variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config.from_env({variable: value})
    assert str(caught.value).startswith(f"{variable}='{value}': ")


def test_client_config_reads_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_BENTO_TIMEOUTS_API", "7")
    assert RestApiClient("https://r.example", "t").config.timeouts.api == 7


def test_config_argument_overrides_env(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASYNC_BENTO_TIMEOUTS_API", "7")
    assert RestApiClient("https://r.example", "t", config=Config()).config == Config()


def test_config_group_may_be_a_dict() -> None:
    assert Config(transfer={"verify": False}) == Config(transfer=Transfer(verify=False))


@pytest.mark.parametrize(
    "wrong", [{"transfr": {}}, {"transfer": {"verfy": False}}, {"timeouts": {"api": float("inf")}}]
)
def test_invalid_setting_is_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        Config(**wrong)
    assert "pydantic" not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Config(transfer={"part_siz": 3}), "Transfer has no setting 'part_siz'. Did you mean 'part_size'?"),
        (lambda: Transfer(part_siz=3), "Transfer has no setting 'part_siz'. Did you mean 'part_size'?"),
        (lambda: Config(transfr={}), "Config has no setting 'transfr'. Did you mean 'transfer'?"),
        (
            lambda: Config(part_size=3),
            (
                "Config has no setting 'part_size'. "
                "Did you mean 'part_size' of `transfer`, as in Config(transfer={'part_size': ...})?"
            ),
        ),
        (lambda: Config(speed=3), "Config has no setting 'speed'. Its settings are timeouts, retry, transfer, limits."),
        (lambda: Config(retry={"attempts": 0}), "RetryPolicy.attempts=0: Input should be greater than or equal to 1"),
    ],
)
def test_misspelled_setting_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("ASYNC_BENTO_TRANSFER_CONCURENCY", "ASYNC_BENTO_TRANSFER_CONCURRENCY"),
        ("ASYNC_BENTO_PART_SIZE", "ASYNC_BENTO_TRANSFER_PART_SIZE"),
        ("ASYNC_BENTO_API_TOKN", "ASYNC_BENTO_API_TOKEN"),
    ],
)
def test_variable_typo_warns_once(variable: str, meant: str, caplog: pytest.LogCaptureFixture) -> None:
    _warn_of_misspelling.cache_clear()
    for _ in range(2):
        assert Config.from_env({variable: "5ecret"}) == Config()
    message = f"ignored the variable {variable}: there is no such setting. Did you mean {meant}?"
    assert caplog.messages == [message]


@pytest.mark.parametrize(
    ("limits", "announced", "content"),
    [
        ({"max_ratio": 3, "allowance": 10}, 100, 310),
        ({"max_ratio": 3, "allowance": 10}, 1, 13),
        ({"allowance": 10}, 0, None),
        ({"allowance": 10}, -5, None),
        ({"size": 7}, 0, 7),
        ({"size": 7}, 100, 7),
        ({"size": 10**30}, 10**400, 10**30),
        ({"allowance": 0, "size": 500}, 100, 200),
    ],
)
def test_content_limit_follows_size(limits: dict[str, Any], announced: int, content: int | None) -> None:
    assert Limits(**limits).content(announced) == content


def test_config_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Config().transfer.verify = False  # type: ignore[misc]


def test_default_retry_outlasts_20_s() -> None:
    policy = RetryPolicy()
    waits = [min(policy.wait_max, policy.wait_initial * 2**number) for number in range(policy.attempts - 1)]
    assert sum(waits) >= 15  # 15 seconds, without the jitter


# The home


def set_home(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):  # the latter is that of Windows
        monkeypatch.setenv(name, "/home/ada")


@pytest.mark.parametrize(
    ("value", "found"),
    [("/data/bentos", "/data/bentos"), ("$WHERE/bentos", "/there/bentos"), ("~/b", "/home/ada/b"), ("", "bentoml")],
)
def test_bentoml_home_is_expanded(value: str, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "/there")
    set_home(monkeypatch)
    assert bentoml_home({"BENTOML_HOME": value}).as_posix().endswith(found)


def test_bentoml_home_has_default(monkeypatch: pytest.MonkeyPatch) -> None:
    set_home(monkeypatch)
    assert bentoml_home({}).as_posix() == "/home/ada/bentoml"


# Contexts, as `bentoml cloud login` of BentoML 1.4.39 writes them


def written_by_bentoml(*contexts: tuple[str, str, str], current: str = "default") -> str:
    entries = [{"name": name, "endpoint": url, "api_token": token, "email": None} for name, url, token in contexts]
    return yaml.dump({"contexts": entries, "current_context_name": current})


@pytest.fixture
def log_in(home: Path) -> Callable[..., None]:
    def write(*contexts: tuple[str, str, str], current: str = "default", text: str | None = None) -> None:
        home.mkdir(exist_ok=True)
        (home / ".yatai.yaml").write_text(written_by_bentoml(*contexts, current=current) if text is None else text)

    return write


PROD = ("prod", "https://prod.example", "tk-prod")
STAGING = ("staging", "https://staging.example", "tk-staging")
LAB = ("lab", "http://lab.example:3000", "tk-lab")


def environ(home: Path, **variables: str) -> dict[str, str]:
    return {"BENTOML_HOME": str(home), **variables}


def test_current_context_is_default(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, LAB, current="lab")
    found = find_credentials(environ=environ(home))
    assert (found.endpoint, found.api_token.get_secret_value()) == ("http://lab.example:3000", "tk-lab")
    assert found.source == f"context 'lab' in {home / '.yatai.yaml'}"


def test_named_context_is_used(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, LAB, current="lab")
    found = find_credentials(context="prod", environ=environ(home))
    assert (found.endpoint, found.api_token.get_secret_value()) == ("https://prod.example", "tk-prod")


def test_unknown_context_lists_known(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, LAB)
    with pytest.raises(ConfigError) as caught:
        find_credentials(context="staging", environ=environ(home))
    assert str(caught.value) == (
        f"no context 'staging' in {home / '.yatai.yaml'}: the file has only lab, prod. "
        "Use one of these, or run `async-bento login --name staging`."
    )


def test_context_variable_beats_current(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, LAB, current="lab")
    found = find_credentials(environ=environ(home, BENTOML_CLOUD_CONTEXT="prod"))
    assert (found.endpoint, found.api_token.get_secret_value()) == ("https://prod.example", "tk-prod")
    assert found.source == f"context 'prod' in {home / '.yatai.yaml'}"


def test_empty_context_variable_ignored(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, LAB, current="lab")
    assert find_credentials(environ=environ(home, BENTOML_CLOUD_CONTEXT="")).endpoint == "http://lab.example:3000"


def test_context_variable_unknown_raises(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, LAB)
    with pytest.raises(ConfigError) as caught:
        find_credentials(environ=environ(home, BENTOML_CLOUD_CONTEXT="staging"))
    assert str(caught.value) == (
        f"BENTOML_CLOUD_CONTEXT=staging: no context 'staging' in {home / '.yatai.yaml'}: the file has only lab, prod. "
        "Use one of these, or run `async-bento login --name staging`."
    )


def test_token_beats_context_variable(home: Path) -> None:
    variables = {"BENTO_CLOUD_API_KEY": "t", "BENTOML_CLOUD_CONTEXT": "staging"}
    assert find_credentials(environ=environ(home, **variables)).source == "BENTO_CLOUD_API_KEY"


def test_context_variable_token_is_bound(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD)
    with pytest.raises(ConfigError, match=r"to https://evil\.example: it is for https://prod\.example\."):
        find_credentials("https://evil.example", environ=environ(home, BENTOML_CLOUD_CONTEXT="prod"))


def test_unknown_context_fails_with_token(home: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"no context 'staging' in .*: the file has no contexts\. Run `async-bento login"
    ):
        find_credentials(api_token="t", context="staging", environ=environ(home))


@pytest.mark.parametrize(
    "text",
    ["", "{}", "contexts: []", "contexts: []\ncurrent_context_name: default", "contexts: []\nsomething_new: 1"],
)
def test_empty_context_file_is_valid(text: str, log_in: Callable[..., None], home: Path) -> None:
    log_in(text=text)
    assert read_contexts(home / ".yatai.yaml").contexts == []


def test_missing_context_file_is_empty(home: Path) -> None:
    assert read_contexts(home / ".yatai.yaml").contexts == []


def test_unknown_context_field_ignored(log_in: Callable[..., None], home: Path) -> None:
    log_in(text="contexts:\n- {name: default, endpoint: 'https://r.example', api_token: t, email: a@b, role: admin}\n")
    (context,) = read_contexts(home / ".yatai.yaml").contexts
    assert (context.name, context.email) == ("default", "a@b")


BROKEN = [
    "contexts: [{api_token: tk-5ecret",
    "api_token: tk-5ecret\n\tbad: tab",
    "api_token: tk-5ecret\nwhen: 2024-13-45",
    "api_token: !!int tk-5ecret",
    "api_token: !!python/object:os.system tk-5ecret",
    "api_token: tk-5ecret\x00",
    "api_token: tk-5ecret\nx: " + "[" * 5000,
]


@pytest.mark.parametrize("text", BROKEN)
def test_broken_yaml_hides_content(text: str, log_in: Callable[..., None], home: Path) -> None:
    log_in(text=text)
    with pytest.raises(ConfigError, match=r"is not valid YAML\. Repair the file, or delete it and log in") as caught:
        read_contexts(home / ".yatai.yaml")
    assert "5ecret" not in f"{caught.value!r} {caught.value.__cause__!r}"
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("text", ["tk-5ecret", "- tk-5ecret", "5"])
def test_yaml_without_contexts_raises(text: str, log_in: Callable[..., None], home: Path) -> None:
    log_in(text=text)
    with pytest.raises(ConfigError) as caught:
        read_contexts(home / ".yatai.yaml")
    assert str(caught.value) == (
        f"cannot read {home / '.yatai.yaml'}: the file has no contexts. Repair the file, or delete it and log in again."
    )


@pytest.mark.parametrize(
    ("entry", "field"),
    [
        ("{name: a, api_token: tk-5ecret}", "contexts.0.endpoint"),
        ("{name: a, endpoint: 'https://r.example'}", "contexts.0.api_token"),
        ("{name: a, endpoint: 'https://r.example', api_token: [tk-5ecret]}", "contexts.0.api_token"),
        ("{name: 5, endpoint: 'https://r.example', api_token: tk-5ecret}", "contexts.0.name"),
    ],
)
def test_context_names_missing_field(entry: str, field: str, log_in: Callable[..., None], home: Path) -> None:
    log_in(text=f"contexts: [{entry}]")
    with pytest.raises(ConfigError, match=f"{field}: ") as caught:
        read_contexts(home / ".yatai.yaml")
    assert "5ecret" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_unreadable_contexts_raise(home: Path) -> None:
    (home / ".yatai.yaml").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"cannot read .*: Is a directory"):
        read_contexts(home / ".yatai.yaml")


def test_contexts_repr_hides_token(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD)
    contexts = read_contexts(home / ".yatai.yaml")
    found = find_credentials(context="prod", environ=environ(home))
    assert "tk-prod" not in f"{contexts!r} {contexts} {contexts.model_dump()} {contexts.model_dump_json()} {found!r}"


# Which source wins

SOURCES: dict[str, dict[str, Any]] = {
    "argument": {"api_token": "tk-argument"},
    "named": {"context": "prod"},
    "own": {"ASYNC_BENTO_API_TOKEN": "tk-own"},
    "bentoml": {"BENTO_CLOUD_API_KEY": "tk-bentoml"},
    "in use": {"BENTOML_CLOUD_CONTEXT": "staging"},
    "current": {},
}
TOKENS = dict(zip(SOURCES, ["tk-argument", "tk-prod", "tk-own", "tk-bentoml", "tk-staging", "tk-lab"], strict=True))


@pytest.mark.parametrize(("stronger", "weaker"), list(itertools.combinations(SOURCES, 2)))
def test_token_source_precedence(stronger: str, weaker: str, log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, STAGING, LAB, current="lab")
    values = {**SOURCES[weaker], **SOURCES[stronger]}
    arguments = {name: value for name, value in values.items() if name.islower()}
    variables = {name: value for name, value in values.items() if name.isupper()}
    found = find_credentials(**arguments, environ=environ(home, **variables))
    assert found.api_token.get_secret_value() == TOKENS[stronger]


def test_endpoint_argument_wins(home: Path) -> None:
    variables = {
        "BENTO_CLOUD_API_KEY": "t",
        "ASYNC_BENTO_ENDPOINT": "https://own.example",
    }
    assert find_credentials("https://argument.example", environ=environ(home, **variables)).endpoint == (
        "https://argument.example"
    )


def test_own_endpoint_beats_bentoml(home: Path) -> None:
    variables = {
        "ASYNC_BENTO_API_TOKEN": "t",
        "ASYNC_BENTO_ENDPOINT": "https://own.example",
        "BENTO_CLOUD_API_ENDPOINT": "https://bentoml.example",
    }
    assert find_credentials(environ=environ(home, **variables)).endpoint == "https://own.example"


@pytest.mark.parametrize("arguments", [{"api_token": "t"}, {}])
def test_bentoml_endpoint_beats_default(arguments: dict[str, str], home: Path) -> None:
    variables = {"BENTO_CLOUD_API_KEY": "t", "BENTO_CLOUD_API_ENDPOINT": "https://bentoml.example/"}
    assert find_credentials(**arguments, environ=environ(home, **variables)).endpoint == "https://bentoml.example"


def test_token_defaults_to_bentocloud(log_in: Callable[..., None], home: Path) -> None:
    log_in(LAB, current="lab")
    assert find_credentials(environ=environ(home, BENTO_CLOUD_API_KEY="t")).endpoint == DEFAULT_ENDPOINT


def test_token_uses_context_endpoint(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD)
    found = find_credentials(api_token="t", context="prod", environ=environ(home))
    assert (found.endpoint, found.source) == ("https://prod.example", "the api_token argument")


def test_missing_token_lists_sources(home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_credentials(environ=environ(home))
    assert str(caught.value) == (
        f"no API token: no variable and no context of {home / '.yatai.yaml'} has one. Log in with `async-bento login`, "
        "or set BENTO_CLOUD_API_KEY, and BENTO_CLOUD_API_ENDPOINT for a registry other than https://cloud.bentoml.com."
    )


def test_removed_context_has_no_token(log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, current="lab")
    with pytest.raises(ConfigError, match="no API token"):
        find_credentials(environ=environ(home))


@pytest.mark.parametrize(
    ("arguments", "variables", "needed"),
    [
        ({}, {}, True),
        ({"context": "prod"}, {}, True),
        ({"api_token": "t", "context": "prod"}, {}, True),
        ({"api_token": "t"}, {}, False),
        ({}, {"ASYNC_BENTO_API_TOKEN": "t"}, False),
        ({}, {"BENTO_CLOUD_API_KEY": "t"}, False),
        ({}, {"BENTO_CLOUD_API_KEY": ""}, True),
    ],
)
def test_context_file_read_if_needed(
    arguments: dict[str, str], variables: dict[str, str], needed: bool, log_in: Callable[..., None], home: Path
) -> None:
    assert needs_contexts(**arguments, environ=variables) is needed
    if not needed:
        log_in(text="[")  # so that reading it would raise
        assert find_credentials(**arguments, environ=environ(home, **variables)).api_token


# A token is sent only to its endpoint


@pytest.mark.parametrize(
    "variables",
    [
        {"ASYNC_BENTO_API_TOKEN": "tk-5ecret", "ASYNC_BENTO_ENDPOINT": "https://prod.example"},
        {"BENTO_CLOUD_API_KEY": "tk-5ecret", "BENTO_CLOUD_API_ENDPOINT": "https://prod.example"},
    ],
)
@pytest.mark.parametrize(
    "elsewhere", ["https://evil.example", "http://prod.example", "https://prod.example:8443", "https://x.prod.example"]
)
def test_variable_token_bound_to_endpoint(elsewhere: str, variables: dict[str, str], home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_credentials(elsewhere, environ=environ(home, **variables))
    assert str(caught.value) == (
        f"cannot send the token from {next(iter(variables))} to {elsewhere}: it is for https://prod.example. "
        f"Log in with `async-bento login --endpoint {elsewhere} --name NAME`, or leave the endpoint out."
    )


@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ({"endpoint": "https://evil.example"}, {}),
        ({"endpoint": "https://evil.example", "context": "prod"}, {}),
        ({}, {"ASYNC_BENTO_ENDPOINT": "https://evil.example"}),
        ({}, {"BENTO_CLOUD_API_ENDPOINT": "https://evil.example"}),
    ],
)
def test_context_token_bound_to_endpoint(
    arguments: dict[str, str], variables: dict[str, str], log_in: Callable[..., None], home: Path
) -> None:
    log_in(PROD, current="prod")
    with pytest.raises(ConfigError, match=r"to https://evil\.example: it is for https://prod\.example\."):
        find_credentials(**arguments, environ=environ(home, **variables))


def test_bentoml_token_bound_to_endpoint(home: Path) -> None:
    variables = {
        "BENTO_CLOUD_API_KEY": "t",
        "BENTO_CLOUD_API_ENDPOINT": "https://prod.example",
        "ASYNC_BENTO_ENDPOINT": "https://lab.example",
    }
    with pytest.raises(ConfigError, match=r"to https://lab\.example: it is for https://prod\.example\."):
        find_credentials(environ=environ(home, **variables))


@pytest.mark.parametrize("same", ["https://PROD.example", "https://prod.example:443/", "https://prod.example/yatai"])
def test_same_origin_is_accepted(same: str, log_in: Callable[..., None], home: Path) -> None:
    log_in(PROD, current="prod")
    assert find_credentials(same, environ=environ(home)).endpoint == same.rstrip("/")


def test_invalid_stored_endpoint_raises(log_in: Callable[..., None], home: Path) -> None:
    log_in(("prod", "https://prod.example:99999", "t"), current="prod")
    with pytest.raises(ConfigError, match=r"invalid endpoint 'https://prod\.example:99999'"):
        find_credentials("https://prod.example", environ=environ(home))


@pytest.mark.parametrize("token", ["tk-\n5ecret", "tk\x7f5ecret", "tk-5ecret-é"])
def test_invalid_token_is_hidden(token: str, home: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        find_credentials(environ=environ(home, BENTO_CLOUD_API_KEY=token))
    assert str(caught.value) == (
        "invalid API token from BENTO_CLOUD_API_KEY: it has a line break or a character outside ASCII. Copy it again."
    )


@pytest.mark.parametrize("ends", ["\n", "\r\n", " \n", "\t"])
def test_credentials_are_stripped(ends: str, home: Path, log_in: Callable[..., None]) -> None:
    def found(endpoint: str | None = None, token: str | None = None, **variables: str) -> tuple[str, str]:
        credentials = find_credentials(endpoint, token, environ=environ(home, **variables))
        return credentials.endpoint, credentials.api_token.get_secret_value()

    url, token = f"https://r.example{ends}", f" tk-5ecret{ends}"
    expected = ("https://r.example", "tk-5ecret")
    assert found(BENTO_CLOUD_API_ENDPOINT=url, BENTO_CLOUD_API_KEY=token) == expected
    assert found(ASYNC_BENTO_ENDPOINT=url, ASYNC_BENTO_API_TOKEN=token) == expected
    assert found(url, token) == expected
    log_in(("default", url, token))
    assert found() == expected
    assert found(BENTO_CLOUD_API_KEY=ends) == expected  # an empty secret is no token


def test_kubernetes_variables_ignored(caplog: pytest.LogCaptureFixture) -> None:
    service = {  # of a Service named async-bento
        "ASYNC_BENTO_SERVICE_HOST": "10.0.0.1",
        "ASYNC_BENTO_SERVICE_PORT": "3000",
        "ASYNC_BENTO_SERVICE_PORT_HTTP": "3000",
        "ASYNC_BENTO_PORT": "tcp://10.0.0.1:3000",
        "ASYNC_BENTO_PORT_3000_TCP_ADDR": "10.0.0.1",
    }
    of_groups = {name.replace("BENTO_", f"BENTO_{group}_") for name in service for group in ("TRANSFER", "LIMITS")}
    others = {"ASYNC_BENTO_ENDPOINT", "ASYNC_BENTO_API_TOKEN", "ASYNC_BENTO_PROGRESS", "ASYNC_BENTO_ACCELERATE"}
    assert Config.from_env(service | dict.fromkeys(of_groups | others, "x")) == Config()
    assert not caplog.messages


# Endpoints


@pytest.mark.parametrize(
    ("endpoint", "read"),
    [
        ("https://cloud.bentoml.com", "https://cloud.bentoml.com"),
        ("http://127.0.0.1:3000/", "http://127.0.0.1:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("https://r.example/yatai//", "https://r.example/yatai"),
        ("https://r.example/api/v1/", "https://r.example"),
        ("https://r.example/yatai/api/v1", "https://r.example/yatai"),
        ("HTTPS://R.example", "HTTPS://R.example"),
        ("http://yatai_1", "http://yatai_1"),
    ],
)
def test_endpoint_is_normalized(endpoint: str, read: str) -> None:
    assert check_endpoint(endpoint) == read


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "cloud.bentoml.com",
        "localhost:3000",
        "/api",
        "ftp://r.example",
        "https://",
        "https://:3000",
        "https://r.example:0",
        "https://r.example:99999",
        "https://r.example:http",
        "https://[::1",
        "https://.",
        "https://r..example",
        f"https://{'a' * 64}.example",
        " https://r.example",
        "https://r.example\n",
        "https://r.exa\nmple",
        "https://r.exa mple",
        "https://bücher.example",
        "https://r.example\\api",
    ],
)
def test_invalid_endpoint_has_example(wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_endpoint(wrong)
    assert (
        str(caught.value)
        == f"invalid endpoint {wrong!r}: it is not the URL of a server. Use a URL like https://registry.example.com."
    )


@pytest.mark.parametrize(
    "wrong",
    [
        "https://ada:5ecret@r.example",
        "https://5ecret@r.example",
        "https://r.example?key=5ecret",
        "https://r.example#5ecret",
        "https://ada:5ecret@r.example:99999",
        "ftp://ada:5ecret@r.example",
    ],
)
def test_endpoint_secret_is_hidden(wrong: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_endpoint(wrong)
    assert "5ecret" not in f"{caught.value} {caught.value.__cause__}"


@pytest.mark.parametrize("end", ["?", "#", "/?", "?#"])
def test_endpoint_with_empty_query_raises(end: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_endpoint(f"https://r.example{end}")
    assert str(caught.value) == (
        "invalid endpoint on r.example: it has a user name, a query or a fragment. Remove that part."
    )


@unhurried
@given(st.text(max_size=30) | st.from_regex(r"https?://[\x00-\x7f]{0,20}", fullmatch=True))
def test_any_endpoint_parses_or_raises(text: str) -> None:
    try:
        assert origin(check_endpoint(text)).startswith("http")
    except ConfigError:
        return


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://R.example:443/a?b#c", "https://r.example"),
        ("http://r.example:80", "http://r.example"),
        ("https://r.example:80", "https://r.example:80"),
        ("http://[::1]:3000/x", "http://[::1]:3000"),
        ("https://ada:pw@r.example", "https://r.example"),
    ],
)
def test_origin_has_scheme_host_port(url: str, expected: str) -> None:
    assert origin(url) == expected


def test_range_size_within_window() -> None:
    assert Transfer(window=MiB).range_in_window == MiB
    assert Transfer(range_size=MiB).range_in_window == MiB
