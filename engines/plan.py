"""Plans: compiled networks under ``plans/`` of a bundle, each with a receipt that says what it is.

``plans/<tag>/<network>-<key>.plan`` is the builder's own bytes, for any program that runs them; the ``.json`` of the
same name is its receipt: the complete key, the SHA-256 and the length. Without one, which is
written last, it is no plan.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import EngineError, ManifestError
from .binding import Profile
from .bundle import Bundle
from .storage import atomic_write, sha256_file
from .strict import JSON, Node, parse

__all__ = [
    "FORM",
    "Plan",
    "PlanKey",
    "check_key",
    "find_plans",
    "fitting_plans",
    "preflight",
    "read_plan",
    "write_plan",
]

FORM = 1
"""Number of the receipt's form, and of how graphs are made for the builder: a change of either means other plans."""


@dataclass(frozen=True)
class PlanKey:
    """Everything that the bytes of a plan depend on.

    Arguments:
        network: Its name.
        digest: Of its graph and weights (`Bundle.digest`).
        builder: "tensorrt" or "tensorrt_rtx".
        version: The builder's full version.
        sms: The architectures.
        gpu: The GPU that it was tuned on, "" for none.
        precision: What its products compute in.
        profile: For each input, its smallest, optimal and largest shape.
        options: Workspace, flags and levels, by name.
        form: `FORM`.
    """

    network: str
    digest: str
    builder: str
    version: str
    sms: tuple[str, ...]
    gpu: str
    precision: str
    profile: Profile
    options: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    form: int = FORM

    def to_json(self) -> dict[str, JSON]:
        """One JSON object."""
        ends = {"min": self.profile.min, "opt": self.profile.opt, "max": self.profile.max}
        shapes: dict[str, Any] = {n: {end: list(s[n]) for end, s in ends.items()} for n in self.profile.opt}
        plain: dict[str, Any] = {k: v for k, v in self.__dict__.items() if k not in ("profile", "options", "sms")}
        return {**plain, "sms": list(self.sms), "profile": shapes, "options": dict(self.options)}

    @property
    def hash(self) -> str:
        """Sixteen hexadecimal digits that two plans share only if they are interchangeable."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Plan:
    """A plan on disk.

    Arguments:
        path: The plan; its receipt lies beside it.
        key: What it was built from and for, as it stands in the receipt.
        sha256: Of the plan.
        bytes: Its length.
        built: What building it took and proved: ``seconds``, ``peak_bytes``, ``half_products``, ``proof``; of a plan
            that can be refitted also ``weights``, where its weights come from.
        fresh: It was built now, not found.
    """

    path: Path
    key: Mapping[str, Any]
    sha256: str
    bytes: int
    built: Mapping[str, Any]
    fresh: bool = False


def write_plan(folder: Path, key: PlanKey, data: bytes | memoryview, built: Mapping[str, JSON]) -> Plan:
    """Write a plan and then its receipt, each whole or not at all."""
    path = folder / f"{key.network}-{key.hash}.plan"
    folder.mkdir(parents=True, exist_ok=True)
    digest, length = hashlib.sha256(data).hexdigest(), memoryview(data).nbytes
    atomic_write(path, data)
    tree = {"key": key.to_json(), "sha256": digest, "bytes": length, "built": dict(built)}
    atomic_write(path.with_suffix(".json"), json.dumps(tree, indent=2).encode() + b"\n")
    return Plan(path, key.to_json(), digest, length, built, fresh=True)


def read_plan(path: Path) -> Plan:
    """The plan at `path` with its receipt; its bytes are checked.

    Raises:
        EngineError: There is no plan or no receipt, or the plan is cut short or altered.
    """
    plan = _receipt(path)
    _check_bytes(plan)
    return plan


_AGAIN = "build it again with sfumato build"


def _receipt(path: Path) -> Plan:
    """The plan at `path` as its receipt tells it, its bytes unread."""
    try:
        receipt = parse(path.with_suffix(".json").read_bytes(), str(path.with_suffix(".json")))
        key, sha256, length, built = Node(receipt).record("key", "sha256", "bytes", "built")
        return Plan(path, _values(key), sha256.string(), length.integer(0), _values(built))
    except (OSError, ManifestError) as error:
        raise EngineError(f"{path}: has no readable receipt ({error}); {_AGAIN}") from error


def _check_bytes(plan: Plan) -> None:
    try:
        found, size = sha256_file(plan.path)
    except OSError as error:
        raise EngineError(f"{plan.path}: cannot be read ({error.strerror}); {_AGAIN}") from error
    if size != plan.bytes:
        raise EngineError(f"{plan.path}: has {size} bytes, its receipt says {plan.bytes}: it was cut short; {_AGAIN}")
    if found != plan.sha256:
        raise EngineError(f"{plan.path}: its SHA-256 is not the one in its receipt, so it was altered; {_AGAIN}")


def _values(node: Node) -> dict[str, Any]:
    return {name: item.value for name, item in node.mapping().items()}


def find_plans(bundle: Bundle, network: str) -> list[Path]:
    """The plans of a network under ``plans/``, unread."""
    bundle.network(network)
    return sorted((bundle.path / "plans").glob(f"*/{network}-{'[0-9a-f]' * 16}.plan"))


def preflight(path: Path, bundle: Bundle, network: str, *, builder: str, version: str, sm: str) -> Plan:
    """Read a plan and refuse it, with the reason, where it cannot run; nothing is deserialised.

    Arguments:
        path: The plan.
        bundle: The bundle that it must have been built from.
        network: The network that it must be.
        builder: The library that would run it, "tensorrt" or "tensorrt_rtx".
        version: Its full version.
        sm: The GPU's architecture, e.g. "sm89".

    Raises:
        EngineError: It is damaged, or of another network, bundle, library, version or architecture.
    """
    plan = _receipt(path)
    check_key(plan, bundle, network, builder=builder, version=version, sm=sm)
    _check_bytes(plan)  # the dear question last: a plan may have gigabytes
    return plan


def check_key(plan: Plan, bundle: Bundle, network: str, *, builder: str, version: str, sm: str) -> None:
    """Refuse a plan that was built from or for something else; `EngineError`. Its bytes are not looked at."""
    key = plan.key
    digest = bundle.digest(network)
    facts = (
        (key.get("network") == network, f"is of network {key.get('network')!r}, asked was {network!r}"),
        (key.get("digest") == digest, f"was built from other weights than those of {bundle.path}"),
        (key.get("form") == FORM, f"has form {key.get('form')}, this sfumato makes form {FORM}"),
        (key.get("builder") == builder, f"was built by {key.get('builder')}, it would be run by {builder}"),
        (_runs(key, version), f"was built by {builder} {key.get('version')}, installed is {version}"),
        (_fits(key, sm), f"was built for {'+'.join(key.get('sms', []))}, this GPU is {sm}"),
    )
    for right, reason in facts:
        if not right:
            raise EngineError(f"{plan.path}: {reason}; {_AGAIN} {bundle.path}")


def fitting_plans(
    bundle: Bundle, network: str, *, builder: str, version: str, sm: str
) -> tuple[list[Plan], dict[Path, str]]:
    """The plans of a network that pass `preflight`, and the reasons for which the others do not.

    Arguments:
        bundle: The bundle.
        network: Name of the network.
        builder: As `preflight`'s.
        version: As `preflight`'s.
        sm: As `preflight`'s.
    """
    passed: list[Plan] = []
    refused: dict[Path, str] = {}
    for path in find_plans(bundle, network):
        try:
            passed.append(preflight(path, bundle, network, builder=builder, version=version, sm=sm))
        except EngineError as error:
            refused[path] = str(error).removeprefix(f"{path}: ").partition(f"; {_AGAIN}")[0]
    return passed, refused


def _runs(key: Mapping[str, Any], version: str) -> bool:
    """The same version; a version-compatible plan also runs on later ones of the same major."""
    if key.get("version") == version:
        return True
    made, mine = (tuple(int(p) for p in str(v).split(".") if p.isdigit()) for v in (key.get("version"), version))
    return bool(key.get("options", {}).get("version_compatible")) and made[:1] == mine[:1] and made <= mine


def _fits(key: Mapping[str, Any], sm: str) -> bool:
    """Among its architectures; one for Ampere and later also runs on every later one."""
    sms = list(key.get("sms", []))
    if sm in sms:
        return True
    return key.get("options", {}).get("hardware") == "ampere_plus" and int(sm[2:]) >= 80
