"""A build that repeats another: its plan, its options, and what has to be the same for the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from lrfc.config import trust
from lrfc.config.build import BuildConfig, parse
from lrfc.config.options import FIELDS
from lrfc.errors import UsageError
from lrfc.ir.fingerprint import model_digest
from lrfc.results import folder as artifact
from lrfc.results.manifest import Manifest
from lrfc.system.reader import kind, refused, shown

if TYPE_CHECKING:
    from lrfc.ir.graph import Graph
    from lrfc.passes.lock_layers import Choice

#: Options that say how a build runs, not what it makes.
_OWN = ("out", "resume", "print_after", "stop_after", "unsafe_load")
#: Options that the plan came of.
_PLANNED = ("methods", "keep", "only", "rank_multiple", "prune", "objective")


@dataclass(frozen=True)
class Locked:
    """The manifest that is followed. UsageError when it holds no plan: the original was kept."""

    path: Path
    manifest: Manifest

    @staticmethod
    def read(path: Path) -> Locked:
        """From a manifest.json, or the folder that it is in."""
        found = Locked(
            path, Manifest.read(path) if kind(path) == "a folder" else Manifest.read_file(path)
        )
        if not found.filters and all(layer.method is None for layer in found.manifest.layers):
            raise UsageError(
                f"{path}: no layer was factorized or pruned in that build, the original was kept;"
                " there is nothing to repeat"
            )
        return found

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The plan."""
        from lrfc.passes.lock_layers import Choice

        return tuple(
            Choice(
                layer.name,
                layer.method,
                layer.rank or (),
                1 - layer.similarity if layer.similarity is not None else 0.0,
                layer.reason,
            )
            for layer in self.manifest.layers
        )

    @property
    def filters(self) -> dict[str, tuple[int, ...]]:
        """The units that the groups of filters keep."""
        return {group.name: group.kept for group in self.manifest.filters}

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of that build, for its one target and device, and over them those that are given: budgets too, which its plan is held against.

        UsageError for what would have led to another plan.
        """
        config = {
            name: value
            for name, value in self.manifest.config.items()
            if name in BuildConfig.model_fields and name not in _OWN
        }
        try:
            before = BuildConfig.model_validate(config)
        except ValidationError as error:
            raise UsageError(
                f"{self.path}: config.{refused(error)}; that build cannot be repeated"
            ) from error
        for name in _PLANNED:
            made = getattr(before, name)
            if name in given and getattr(parse(**{name: given[name]}), name) != made:
                raise UsageError(
                    f"{_flag(name, given[name])}: the plan of {self.path} is repeated as it is, and"
                    f" was made with {_flag(name, made)}; leave out --{name.replace('_', '-')}, or"
                    " build without --locked"
                )
        kept = {name: value for name, value in before if name in config}
        names = {field: name for name, field in FIELDS.items()}
        found = {names.get(name, name): value for name, value in kept.items()}
        found["target"] = (self.manifest.target,)
        if len(found.get("device", ())) != 1 and self.manifest.device is not None:
            found["device"] = (self.manifest.device,)
        trust.refuse(
            {name: value for name, value in found.items() if name not in given}, str(self.path)
        )
        return {**found, **given}

    def model(self) -> Path:
        """The file that the manifest names, in the manifest's folder or the current one; UsageError unless one there has the SHA-256 of that build's."""
        wanted, named = self.manifest.input.sha256, Path(self.manifest.input.path)
        places = dict.fromkeys(
            [(self.path if self.path.is_dir() else self.path.parent) / named, named]
        )
        present = [place for place in places if kind(place) == "a file"]
        for place in present:
            if artifact.sha256(place) == wanted:
                return place
        found = (
            f"{shown(present[0])} is another (SHA-256 {artifact.sha256(present[0])[:12]}…)"
            if present
            else "there is none of that name here"
        )
        raise UsageError(
            f"{self.path}: that build's model is {shown(named)} with SHA-256 {wanted[:12]}…, and"
            f" {found}; name the file: lrfc build MODEL --locked"
        )

    def check(self, source: Path, original: Graph) -> None:
        """Raise UsageError unless the model is the one of that build.

        ``original``: its canonical graph.
        """
        now = digest(source, original)
        if now != self.manifest.input.sha256:
            raise UsageError(
                f"{self.path} is the plan for another model: {self.manifest.input.path} with"
                f" SHA-256 {self.manifest.input.sha256[:12]}…, and '{source}' has {now[:12]}…; give"
                " that file, or build without --locked"
            )

    def differences(self) -> list[str]:
        """What is of another version than it was, each as 'keras 3.14 → 3.15', and whether oneDNN is on where it was off, or the reverse."""
        from lrfc.ir import processor

        now = artifact.versions()
        then = self.manifest.versions
        other = [
            f"{name} {then.get(name) or 'none'} → {now.get(name) or 'none'}"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]
        with_onednn = processor.onednn()
        if self.manifest.onednn not in (None, with_onednn.on):
            other.append(f"oneDNN {'on' if self.manifest.onednn else 'off'} → {with_onednn}")
        return other

    def outcome(self, made: Manifest) -> str:
        """Whether the file is the same, byte for byte."""
        old, new = self.manifest.artifacts[0], made.artifacts[0]
        if old.sha256 == new.sha256:
            return (
                f"the same file as that of {self.path}, byte for byte (SHA-256 {new.sha256[:12]}…)"
            )
        return (
            f"not the same bytes as that of {self.path}: SHA-256 {new.sha256[:12]}… against"
            f" {old.sha256[:12]}…, by the same plan"
        )


def _flag(name: str, value: Any) -> str:
    """As on the command line."""
    shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return (
        f"no --{name.replace('_', '-')}"
        if shown in (None, "")
        else f"--{name.replace('_', '-')} {shown}"
    )


def digest(source: Path, original: Graph) -> str:
    """The SHA-256 of the model's file; of its canonical graph where it has no file."""
    return artifact.sha256(source) if source.is_file() else model_digest(original)
