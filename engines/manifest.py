"""The manifest: what a bundle holds, read strictly from ``manifest.json``.

The format is written down in ``docs/bundle.md``; a record here has the fields of the JSON object there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from ..errors import ManifestError
from .reader import (
    read_artifact,
    read_filled,
    read_identifier,
    read_network,
    read_path,
    read_schedule,
    read_table,
)
from .spec import Artifact, Betas, NetworkSpec, PredictionKind, ScheduleSpec, relative_path
from .strict import JSON, Node, parse

__all__ = [
    "MANIFEST_LIMIT",
    "MANIFEST_NAME",
    "SCHEMA",
    "Artifact",
    "Betas",
    "Manifest",
    "NetworkSpec",
    "PredictionKind",
    "ScheduleSpec",
    "relative_path",
]

SCHEMA = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_LIMIT = 4 << 20
"""Largest manifest in bytes: it is read whole before anything has been checked."""

_KEYS = ("schema", "system", "name", "license", "producer", "networks", "schedule", "assets", "settings", "files")


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Arguments:
        system: Which of sfumato's systems runs it, e.g. "latent-diffusion".
        name: Its name for people.
        license: SPDX expression or a sentence on the weights.
        producer: Versions of what wrote it, e.g. ``{"sfumato": "0.1.0", "torch": "2.13.0"}``.
        networks: Network by name.
        schedule: The noise schedule, if the system has one.
        assets: Path by role, e.g. ``{"tokenizer": "tokenizer.json"}``.
        settings: The system's own record, read strictly by the system.
        files: Every file of the bundle but the manifest itself.
        schema: Version of the format.
    """

    system: str
    name: str
    license: str
    producer: Mapping[str, str]
    networks: Mapping[str, NetworkSpec]
    schedule: ScheduleSpec | None = None
    assets: Mapping[str, str] = field(default_factory=dict[str, str])
    settings: Mapping[str, JSON] = field(default_factory=dict[str, JSON])
    files: Mapping[str, Artifact] = field(default_factory=dict[str, Artifact])
    schema: int = SCHEMA

    @classmethod
    def read(cls, path: Path | str) -> Manifest:
        """The manifest in the file `path`; `ManifestError` says what is wrong with it."""
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(MANIFEST_LIMIT + 1)
        except OSError as error:
            raise ManifestError(f"{path}: cannot be read ({error.strerror}); pass the folder of a bundle") from error
        if len(data) > MANIFEST_LIMIT:
            raise ManifestError(f"{path}: longer than {MANIFEST_LIMIT} bytes, the most a manifest may have; is it one?")
        try:
            return cls.from_json(parse(data, str(path)))
        except ManifestError as error:
            text = str(error)
            raise ManifestError(f"{path}: {text}" if text.startswith("$") else text) from None

    @classmethod
    def from_json(cls, value: JSON) -> Manifest:
        """The manifest of a parsed JSON object; `ManifestError` names the JSON path that is wrong."""
        root = Node(value)
        schema = root.mapping().get("schema")
        if schema is None:
            root.fail("lacks the key 'schema'; is it a bundle's manifest?")
        if schema.integer() != SCHEMA:
            schema.fail(
                f"is {schema.value}, this sfumato reads {SCHEMA}; use the sfumato that wrote it, or export again"
            )
        _, system, name, licence, producer, networks, schedule, assets, settings, files = root.record(*_KEYS)
        listed = files.mapping().items()
        manifest = cls(
            system=read_filled(system),
            name=read_filled(name),
            license=read_filled(licence),
            producer=read_table(producer, Node.string),
            networks={key: read_network(read_identifier(key, item), item) for key, item in networks.mapping().items()},
            schedule=None if schedule.is_null else read_schedule(schedule),
            assets=read_table(assets, read_path),
            settings=cast("dict[str, JSON]", {key: item.value for key, item in settings.mapping().items()}),
            files={read_path(Node(key, f"{files.path}.{key}")): read_artifact(item) for key, item in listed},
        )
        _check_files(root, manifest)
        return manifest

    def to_json(self) -> dict[str, JSON]:
        """The JSON object that `from_json` reads."""
        tree: dict[str, Any] = asdict(self)
        tree["networks"] = {
            name: {k: v for k, v in net.items() if k != "name"} for name, net in tree["networks"].items()
        }
        return cast("dict[str, JSON]", _plain({key: tree[key] for key in _KEYS}))

    def to_bytes(self) -> bytes:
        """The text of ``manifest.json``: UTF-8, two-space indent, a newline at the end."""
        try:
            return json.dumps(self.to_json(), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise ManifestError(f"the manifest is not JSON ({error}); use finite numbers and plain types") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in cast("Mapping[object, object]", value).items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in cast("Sequence[object]", value)]
    return value


def _check_files(root: Node, manifest: Manifest) -> None:
    """Every path that the manifest uses is listed, and no two listed paths fold to one or nest in a file."""
    used = {f"assets.{role}": path for role, path in manifest.assets.items()}
    if manifest.schedule is not None and manifest.schedule.alphas_bar is not None:
        used["schedule.alphas_bar"] = manifest.schedule.alphas_bar
    for net in manifest.networks.values():
        folder = net.graph.rpartition("/")[0]
        for i, path in enumerate(net.weights):
            used[f"networks.{net.name}.weights[{i}]"] = path
            if path.rpartition("/")[0] != folder:
                Node(None, f"$.networks.{net.name}.weights[{i}]").fail(
                    f"{path!r} is not beside {net.graph!r}; move it there"
                )
        used[f"networks.{net.name}.graph"] = net.graph
        if net.reference is not None:
            used[f"networks.{net.name}.reference"] = net.reference
    for where, path in used.items():
        if path not in manifest.files:
            Node(None, f"$.{where}").fail(f"{path!r} is not listed under 'files'; list it with its hash")
    folded: dict[str, str] = {}
    for path in manifest.files:
        other = folded.setdefault(path.lower(), path)
        if other != path:
            root.fail(f"files: {path!r} and {other!r} are one file where case is not told apart; rename one")
        if path.split("/")[0].lower() in (MANIFEST_NAME, "plans"):
            root.fail(f"files: {path!r} is a reserved name; rename it")
    for path in folded:
        parts = path.split("/")
        for i in range(1, len(parts)):
            if "/".join(parts[:i]) in folded:
                root.fail(f"files: {path!r} lies under another file; rename one")
