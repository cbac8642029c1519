"""What can befall one HTTP exchange: drawn from a seed, named so that a trace can be read."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Final

import httpx2

NEVER_SENT: Final = (httpx2.ConnectError, httpx2.ConnectTimeout)
LOST: Final = (httpx2.ReadTimeout, httpx2.ReadError, httpx2.RemoteProtocolError)

HALT_MESSAGE: Final = "Your credit balance is too low to access the Anthropic API."


@dataclass(frozen=True)
class Refusal:
    """An answer with an error status."""

    status: int
    error: str
    message: str = "Simulated."
    headers: tuple[tuple[str, str], ...] = ()

    def response(self) -> httpx2.Response:
        body = {"type": "error", "error": {"type": self.error, "message": self.message}}
        return httpx2.Response(self.status, json=body, headers=dict(self.headers))


@dataclass(frozen=True)
class Fault:
    """What happens to an exchange.

    ``arrives``: whether the call has its effect now; ``delay``: it has it so many seconds later.
    Then an error is raised, an error status or garbage is answered, or the true answer, perhaps
    damaged.
    """

    kind: str
    arrives: bool = True
    delay: float | None = None
    error: type[httpx2.TransportError] | None = None
    refusal: Refusal | None = None
    twice: bool = False
    garbage: bytes | None = None
    damage: "Damage | None" = None
    crash: bool = False
    is_stray: bool = False


@dataclass(frozen=True)
class Damage:
    """How a download comes out: its bytes, the ids whose line cannot be read, how it breaks off."""

    kind: str
    seed: int
    change: Callable[[list[bytes], Random], "Damaged"] = field(repr=False)

    def apply(self, content: bytes) -> "Damaged":
        lines = content.splitlines(keepends=True)
        return self.change(lines, Random(self.seed)) if lines else Damaged([])


@dataclass(frozen=True)
class Damaged:
    """``garbled`` lines are there and unreadable, ``absent`` ones are not there."""

    lines: list[bytes]
    garbled: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    breaks_off: bool = False


def id_of(line: bytes) -> str:
    return str(json.loads(line)["custom_id"])


def _cut_between(lines: list[bytes], random: Random) -> Damaged:
    kept = random.randrange(len(lines))
    return Damaged(lines[:kept], absent=frozenset(map(id_of, lines[kept:])))


def _break_off(lines: list[bytes], random: Random) -> Damaged:
    return Damaged(_cut_within(lines, random).lines, breaks_off=True)


def _cut_within(lines: list[bytes], random: Random) -> Damaged:
    kept = random.randrange(len(lines))
    part = lines[kept][: random.randrange(1, max(2, len(lines[kept]) - 2))]
    cut, after = id_of(lines[kept]), frozenset(map(id_of, lines[kept + 1 :]))
    if cut.encode() not in part:  # nobody can say whose line this was
        return Damaged([*lines[:kept], part], absent=after | {cut})
    return Damaged([*lines[:kept], part], garbled=frozenset({cut}), absent=after)


def _garble(lines: list[bytes], random: Random) -> Damaged:
    which = random.randrange(len(lines))
    line = lines[which]
    start = line.index(b'"result"')
    spoilt = random.choice(
        [b'"result":{\xff\xfe\x00', b'"result":oops', b'"result":{"type":["succeeded"', b'"result'],
    )
    broken = [*lines[:which], line[:start] + spoilt + b"\n", *lines[which + 1 :]]
    return Damaged(broken, garbled=frozenset({id_of(line)}))


def _double(lines: list[bytes], random: Random) -> Damaged:
    doubled = [*lines, *random.sample(lines, random.randint(1, len(lines)))]
    random.shuffle(doubled)
    return Damaged(doubled)


def _foreign(lines: list[bytes], random: Random) -> Damaged:
    own = id_of(random.choice(lines))
    nonce, _, ordinal = own.rpartition("-")
    strange = [f"{'f' * len(nonce)}-{ordinal}", f"{nonce}-x", f"{nonce}-99999", "stranger"]
    made = [
        json.dumps({"custom_id": name, "result": {"type": "canceled"}}).encode() + b"\n"
        for name in random.sample(strange, random.randint(1, len(strange)))
    ]
    return Damaged([*made, *lines, b"\n"])


def _take_out(lines: list[bytes], random: Random) -> Damaged:
    out = random.sample(range(len(lines)), random.randint(1, len(lines)))
    kept = [line for number, line in enumerate(lines) if number not in out]
    return Damaged(kept, absent=frozenset(id_of(lines[number]) for number in out))


DAMAGES: Final[dict[str, Callable[[list[bytes], Random], Damaged]]] = {
    "cut between lines": _cut_between,
    "cut within a line": _cut_within,
    "broken off": _break_off,
    "garbled": _garble,
    "doubled lines": _double,
    "foreign lines": _foreign,
    "missing lines": _take_out,
}

_DOUBTFUL: Final = (
    Refusal(500, "api_error"),
    Refusal(502, "api_error"),
    Refusal(503, "api_error"),
    Refusal(504, "timeout_error"),
    Refusal(529, "overloaded_error"),
    Refusal(408, "timeout_error"),
    Refusal(409, "invalid_request_error"),
)
_CERTAIN: Final = (
    Refusal(429, "rate_limit_error"),
    Refusal(429, "rate_limit_error", headers=(("retry-after", "7"),)),
    Refusal(429, "rate_limit_error", headers=(("retry-after", "4000"),)),
    Refusal(413, "request_too_large"),
    Refusal(413, "request_too_large"),
)
_HALTS: Final = (
    Refusal(402, "billing_error"),
    Refusal(400, "invalid_request_error", HALT_MESSAGE),
    Refusal(403, "permission_error"),
    Refusal(401, "authentication_error"),
)


_DRAWS: Final = 100
"""So often is drawn before a favourite is taken for one that such a call cannot meet."""


def draw(
    random: Random, call: str, *, max_delay: float, strays: bool, favourite: str = ""
) -> Fault:
    """A fault that an exchange of this kind can meet; ``strays`` break the engine's assumptions.

    ``favourite``: it is one whose name begins so, if this call can meet such a one.
    """
    drawn = [_draw(random, call, max_delay=max_delay, strays=strays)]
    while not drawn[-1].kind.startswith(favourite) and len(drawn) < _DRAWS:
        drawn.append(_draw(random, call, max_delay=max_delay, strays=strays))
    is_met = drawn[-1].kind.startswith(favourite)
    return drawn[-1] if is_met else drawn[0]


def _draw(random: Random, call: str, *, max_delay: float, strays: bool) -> Fault:
    makers: list[Callable[[], Fault]] = [
        lambda: _lost_call(random),
        lambda: _lost_answer(random),
        lambda: _refused(random, call),
    ]
    if call in {"create", "cancel"}:
        makers.append(lambda: _delayed(random, max_delay))
    if call == "create" and strays:
        makers += [lambda: _astray(random)] * 4
    if call != "create":
        makers.append(lambda: Fault("duplicate delivery", twice=True))
    if call == "results":
        makers += [lambda: _damaged(random)] * 4
    else:
        makers.append(lambda: _garbage(random))
    return random.choice(makers)()


def _lost_call(random: Random) -> Fault:
    error = random.choice((*NEVER_SENT, *LOST))
    return Fault(f"call lost ({error.__name__})", arrives=False, error=error)


def _lost_answer(random: Random) -> Fault:
    error = random.choice(LOST)
    return Fault(f"answer lost ({error.__name__})", error=error)


def _delayed(random: Random, max_delay: float) -> Fault:
    error = random.choice(LOST)
    return Fault(
        "call delayed",
        arrives=False,
        delay=random.uniform(0, max_delay),
        error=error,
        crash=random.random() < 0.2,
    )


def _astray(random: Random) -> Fault:
    """One call that makes two batches, or arrives long after everybody has given it up."""
    error = random.choice((*LOST, None))
    if error is None or random.random() < 0.5:
        return Fault("create delivered twice", twice=True, error=error)
    delay = random.uniform(0.5, 10) * 3_600
    return Fault("create long delayed", arrives=False, delay=delay, error=error, is_stray=True)


_GARBAGE: Final = (b"", b"{}", b"null", b"[]", b'{"id": 5}', b"<html>Sign in</html>", b'{"data": [')


def _garbage(random: Random) -> Fault:
    """Something on the way has swallowed the answer, and says what it likes."""
    garbage = random.choice(_GARBAGE)
    return Fault(f"answered with garbage ({garbage.decode()})", garbage=garbage)


def _refused(random: Random, call: str) -> Fault:
    if call != "create":
        refusal = random.choice((*_DOUBTFUL, *_CERTAIN[:2]))
        return Fault(f"answered {refusal.status}", arrives=False, refusal=refusal)
    kind = random.random()
    if kind < 0.5:
        refusal, arrives = random.choice(_DOUBTFUL), random.random() < 0.5
        arrived = "created" if arrives else "not created"
        return Fault(f"answered {refusal.status}, {arrived}", arrives=arrives, refusal=refusal)
    refusal = random.choice(_CERTAIN if kind < 0.9 else _HALTS)
    wait = dict(refusal.headers).get("retry-after")
    named = f"answered {refusal.status}" + (f" retry-after {wait}" if wait else "")
    return Fault(named, arrives=False, refusal=refusal)


def _damaged(random: Random) -> Fault:
    kind = random.choice(sorted(DAMAGES))
    return Fault(f"results: {kind}", damage=Damage(kind, random.getrandbits(32), DAMAGES[kind]))
