"""The events of a case, drawn only from a seed and the number of the case."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Literal

KiB = 1024
MiB = 1024 * KiB

KINDS = {  # faults of the proxy, with their relative frequency
    "reset": 4,  # before the request is forwarded
    "reset body": 4,  # after a part of the request body
    "lose answer": 4,  # the request is forwarded, its response is not
    "truncate": 4,  # the response ends early, by a close
    "truncate reset": 3,  # the response ends early, by a reset
    "shorten": 2,  # the response ends early, with a matching Content-Length
    "stall": 3,  # a pause before the request is forwarded
    "stall answer": 3,  # a pause in the middle of the response
    "hang": 1,  # no response at all
    "slow": 3,
    "flip": 12,  # one bit of a body to or from the storage
    "429": 2,
    "429 retry-after": 2,
    "429 long": 1,  # longer than a client waits
    "500": 3,
    "502": 3,
    "503": 3,
    "502 page": 2,
    "200 page": 2,
}


@dataclass(frozen=True)
class Moment:
    """A moment in a call: `delay` seconds after the request with this number."""

    request: int
    delay: float


@dataclass(frozen=True)
class Weather:
    """The faults on the network during a call.

    Attributes:
        key: The seed of every draw.
        rate: The share of requests that meet a fault, from 0 to 1.
        first: The first request that may meet a fault.
        last: The last request that may meet a fault.
        kinds: The possible faults.
    """

    key: str
    rate: float = 0.0
    first: int = 1
    last: int = 1_000_000
    kinds: tuple[str, ...] = tuple(KINDS)

    def draw(self, ordinal: int, step: str, nth: int) -> tuple[str | None, Random]:
        """Draw the fault of a request.

        The draw depends on the request and on its number of earlier tries, not on the order of arrival.

        Args:
            ordinal: The number of the request in the call.
            step: The method and the target of the request.
            nth: The number of earlier requests for the same step.
        """
        random = Random(f"{self.key}/{step}/{nth}")
        if not self.first <= ordinal <= self.last or random.random() >= self.rate:
            return None, random
        return random.choices(self.kinds, [KINDS[kind] for kind in self.kinds])[0], random


@dataclass(frozen=True)
class Silence:
    """The connections that the client's proxy accepts and never answers.

    Attributes:
        key: The seed of every draw.
        rate: The share of silent connections, from 0 to 1.
        last: The last connection that may be silent.
    """

    key: str
    rate: float
    last: int

    def draw(self, ordinal: int) -> bool:
        """Draw whether a connection is silent, by its number in the call."""
        return ordinal <= self.last and Random(f"{self.key}/{ordinal}").random() < self.rate


@dataclass(frozen=True)
class Turn:
    """The events during one call; None for an event that does not happen.

    Attributes:
        weather: The faults on the network.
        silence: The silent connections of the client's proxy.
        kill_client: When the client is killed.
        terminate: When the client gets SIGTERM; the client is the command then.
        fork: When the client forks a process that also uses the client's API.
        kill_registry: When the registry is killed.
        down_for: How long the registry stays down, in seconds.
        fill: Whose disk fills up.
        fill_at: When the disk fills up.
        room: The free space on the full disk, in bytes.
        full_for: How long the disk stays full, in seconds.
        side: The registry whose requests define the moments, and that is killed or gets a full disk.
    """

    weather: Weather
    silence: Silence | None = None
    kill_client: Moment | None = None
    terminate: Moment | None = None
    fork: Moment | None = None
    kill_registry: Moment | None = None
    down_for: float = 0.0
    fill: Literal["client", "registry"] | None = None
    fill_at: Moment = Moment(0, 0.0)
    room: int = 0
    full_for: float = 0.0
    side: Literal["registry", "source", "target"] = "registry"

    @property
    def weathers(self) -> dict[str, Weather]:
        """The weather between the client and each registry, by side."""
        return {"registry": self.weather}

    @property
    def is_calm(self) -> bool:
        """Whether the network, the registry and the disks have no faults."""
        has_weather = any(weather.rate for weather in self.weathers.values())
        return not (has_weather or self.silence or self.kill_registry or self.fill)


@dataclass(frozen=True)
class CopyTurn(Turn):
    """The events during one copy; `weather` is that of the source.

    Attributes:
        target_weather: The faults between the client and the target.
        push_again: When the item is pushed to the source again, with other bytes: at the latest when the copy ends.
    """

    target_weather: Weather = Weather("")
    push_again: Moment | None = None

    @property
    def weathers(self) -> dict[str, Weather]:
        """See `Turn`."""
        return {"source": self.weather, "target": self.target_weather}


@dataclass(frozen=True)
class CopyPlan:
    """The copies of a case to a second registry.

    Attributes:
        transmission: The transmission strategy of the target.
        url_expiry: The lifetime of presigned URLs of the target, in seconds.
        streams: Whether downloads through the source have no ranges and no size, as those of a Yatai.
        copied_before: Whether the target already has another item under the tag; the copy is forced then.
        turns: The events during each copy, until one succeeds.
    """

    transmission: Literal["presigned_url", "proxy", "auto"]
    url_expiry: float
    streams: bool
    copied_before: bool
    turns: tuple[CopyTurn, ...]


@dataclass(frozen=True)
class Case:
    """A bento or a model that is pushed and pulled.

    Attributes:
        number: The number of the case.
        kind: The kind of the item.
        transmission: The transmission strategy of the registry.
        sizes: The sizes of the item's files, in bytes.
        models: The number of the bento's models.
        url_expiry: The lifetime of presigned URLs, in seconds.
        range_size: The range size of the pull, in bytes.
        threads: The threads of the push.
        pushed_before: Whether the registry already has another item under the tag; the push is forced then.
        pulled_before: The content of the store before the pull.
        changed: Whether the files change after each incomplete push.
        replaced: Whether the item is pushed again, with other files, after each incomplete pull.
        pushes: The events during each push, until one succeeds.
        pulls: The events during each pull, until one succeeds.
        copy: The copies to a second registry, after the pulls; None for a case without copies.
    """

    number: int
    kind: Literal["bento", "model"]
    transmission: Literal["presigned_url", "proxy", "auto"]
    sizes: tuple[int, ...]
    models: int
    url_expiry: float
    range_size: int
    threads: int
    pushed_before: bool
    pulled_before: Literal["nothing", "same tag", "older version"]
    changed: bool
    replaced: bool
    pushes: tuple[Turn, ...]
    pulls: tuple[Turn, ...]
    copy: CopyPlan | None = None


def draw(seed: int, number: int) -> Case:
    """Draw a case."""
    random = Random(f"{seed}/{number}")
    extent = random.choices(["small", "medium", "large"], [55, 30, 15])[0]
    if extent == "small":
        sizes = [random.randint(0, 60 * KiB) for _ in range(random.randint(1, 6))]
    elif extent == "medium":
        sizes = [random.randint(100 * KiB, 900 * KiB) for _ in range(random.randint(1, 4))]
    else:
        sizes = [random.randint(5 * MiB, 15 * MiB), random.randint(0, MiB)]
    kind = random.choice(["bento", "model"])
    transmission = random.choices(["presigned_url", "auto", "proxy"], [6, 2, 2])[0]
    range_size = random.choice([64 * KiB, 256 * KiB] if extent != "large" else [256 * KiB, MiB])
    size = sum(sizes)
    push_requests = 10 + 2 * size // (5 * MiB)
    pull_requests = 3 + size // range_size
    return Case(
        number=number,
        kind=kind,
        transmission=transmission,
        sizes=tuple(sizes),
        models=random.choice([0, 0, 1, 2]) if kind == "bento" else 0,
        url_expiry=random.choice([0.3, 1.0, 2.0, 3600.0]),
        range_size=range_size,
        threads=random.randint(1, 8),
        pushed_before=random.random() < 0.3,
        pulled_before=random.choice(["nothing", "same tag", "older version"]),
        changed=random.random() < 0.35,
        replaced=random.random() < 0.35,
        pushes=tuple(_turn(random, f"{seed}/{number}/push {n}", push_requests, size) for n in range(_turns(random))),
        pulls=tuple(_turn(random, f"{seed}/{number}/pull {n}", pull_requests, size) for n in range(_turns(random))),
        copy=_copy(f"{seed}/{number}/copy", size, 0.8 if extent == "large" else 0.3),  # only large items have parts
    )


def draw_copies(seed: int, number: int) -> Case:
    """Draw a case with copies, whose pushes and pulls meet no faults."""
    case, random = draw(seed, number), Random(f"{seed}/{number}/copies")
    if random.random() < 0.5:  # only large items have parts
        case = replace(case, sizes=(random.randint(5 * MiB, 15 * MiB), random.randint(0, MiB)), range_size=MiB)
    return replace(case, pushes=(), pulls=(), copy=_copy(f"{seed}/{number}/copy", sum(case.sizes), share=1))


def _turns(random: Random) -> int:
    return random.choice([1, 1, 2, 3])


def _turn(random: Random, key: str, requests: int, size: int) -> Turn:
    def moment() -> Moment:
        return Moment(random.randint(0, requests), random.uniform(0, random.choice([0.02, 0.1, 0.3])))

    happens = random.choices(
        ["network", "client killed", "registry killed", "client full", "registry full"], [50, 20, 14, 8, 8]
    )[0]
    fill: Literal["client", "registry"] | None = None
    if happens == "client full":
        fill = "client"
    elif happens == "registry full":
        fill = "registry"
    terminate, fork = (None, None) if happens == "client killed" else _signals(key, requests)
    return Turn(
        weather=_weather(random, key, requests, calm=happens != "network" and random.random() < 0.5),
        silence=_silence(key),
        kill_client=moment() if happens == "client killed" else None,
        terminate=terminate,
        fork=fork,
        kill_registry=moment() if happens == "registry killed" else None,
        down_for=random.choice([0.0, 0.0, 0.3, 1.0]),
        fill=fill,
        fill_at=moment(),
        room=random.choice([0, random.randint(0, 64 * KiB), random.randint(0, max(size, 1))]),
        full_for=random.choice([0.2, 1.0, 60.0]),
    )


def _signals(key: str, requests: int) -> tuple[Moment | None, Moment | None]:
    random = Random(f"{key}/signals")  # a separate generator, so that the other draws of a case stay the same
    moment = Moment(random.randint(1, requests), random.uniform(0, random.choice([0.02, 0.1, 0.3])))
    signal = random.choices(["terminate", "fork", None], [12, 12, 76])[0]
    return (moment if signal == "terminate" else None, moment if signal == "fork" else None)


def _silence(key: str) -> Silence | None:
    random = Random(f"{key}/silence")  # a separate generator, so that the other draws of a case stay the same
    if random.random() >= 0.15:
        return None
    return Silence(f"{key}/silence", random.choice([0.3, 1.0]), random.choice([1, 3, 1_000_000]))


def _copy(key: str, size: int, share: float) -> CopyPlan | None:
    random = Random(key)  # a separate generator, so that the other draws of a case stay the same
    if random.random() >= share:
        return None
    requests = 10 + 2 * size // (5 * MiB)
    transmission = random.choices(["presigned_url", "auto", "proxy"], [6, 2, 2])[0]
    url_expiry = random.choice([0.3, 1.0, 2.0, 3600.0])
    return CopyPlan(
        transmission=transmission,
        # An upload in one PUT sends its request with the first bytes, which the source has to send before.
        url_expiry=max(url_expiry, 2.0) if transmission == "auto" else url_expiry,
        streams=random.random() < 0.5,
        copied_before=random.random() < 0.3,
        turns=tuple(_copy_turn(random, f"{key} {n}", requests, size) for n in range(_turns(random))),
    )


def _copy_turn(random: Random, key: str, requests: int, size: int) -> CopyTurn:
    moment = Moment(random.randint(1, requests), random.uniform(0, random.choice([0.02, 0.1, 0.3])))
    happens = random.choices(
        [
            "network",
            "client killed",
            "client terminated",
            "registry killed",
            "pushed again",
            "client full",
            "target full",
        ],
        [40, 18, 12, 14, 14, 4, 6],
    )[0]
    side: Literal["source", "target"] = random.choice(["source", "target"])
    if happens == "target full":
        side = "target"
    is_pushed_again = happens == "pushed again"
    if happens.startswith("client"):  # covers a changed source between an interrupted copy and its resume
        is_pushed_again = random.random() < 0.3
    disturbed = random.choice([("source",), ("target",), ("source", "target")])
    if happens != "network" and random.random() < 0.5:
        disturbed = ()
    weathers = {
        one: _weather(random, f"{key}/{one}", requests, calm=one not in disturbed) for one in ("source", "target")
    }
    return CopyTurn(
        weather=weathers["source"],
        target_weather=weathers["target"],
        kill_client=moment if happens == "client killed" else None,
        terminate=moment if happens == "client terminated" else None,
        kill_registry=moment if happens == "registry killed" else None,
        down_for=random.choice([0.0, 0.0, 0.3, 1.0]),
        push_again=moment if is_pushed_again else None,
        fill={"client full": "client", "target full": "registry"}.get(happens),
        fill_at=moment,
        room=random.choice([0, random.randint(0, 64 * KiB), random.randint(0, max(size, 1))]),
        full_for=random.choice([0.2, 1.0, 60.0]),
        side=side,
    )


def _weather(random: Random, key: str, requests: int, *, calm: bool) -> Weather:
    if calm:
        return Weather(key)
    kinds = tuple(KINDS)
    if random.random() < 0.3:
        kinds = (random.choice(kinds),)
    first = random.randint(1, requests)
    return random.choice(
        [
            Weather(key, 0.15, kinds=kinds),
            Weather(key, 0.4, kinds=kinds),
            Weather(key, 1.0, first, first + random.randint(0, 5), kinds=kinds),  # a burst
            Weather(key, 1.0, first, kinds=kinds),  # an outage that does not end
        ]
    )
