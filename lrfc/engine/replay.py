"""Repeat a build from its manifest: the plan, the options, and the versions of packages."""

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
from lrfc.results import folder as artifact
from lrfc.results.manifest import Manifest
from lrfc.system.reader import kind, refused, shown

if TYPE_CHECKING:
    from lrfc.ir.graph import Graph
    from lrfc.passes.lock_layers import Choice

#: Options of a run, without effect on the files; they are not repeated.
_OWN = ("out", "resume", "print_after", "stop_after", "unsafe_load", "profile", "log_dir")
#: Options that determine the plan.
_PLANNED = ("methods", "keep", "only", "rank_multiple", "prune", "heads", "objective")


@dataclass(frozen=True)
class Locked:
    """The manifest of a build to repeat."""

    path: Path
    manifest: Manifest

    @staticmethod
    def read(path: Path) -> Locked:
        """Read a manifest.json, or the one in a folder.

        UsageError when it has no plan, because the original was kept.
        """
        manifest = Manifest.read(path) if kind(path) == "a folder" else Manifest.read_file(path)
        if not manifest.filters and all(layer.method is None for layer in manifest.layers):
            raise UsageError(
                f"{path}: no layer was factorized or pruned in that build, the original was kept;"
                " there is nothing to repeat"
            )
        return Locked(path, manifest)

    @property
    def choices(self) -> tuple[Choice, ...]:
        """The method and ranks of each layer."""
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
    def filters(self) -> dict[str, tuple[int, tuple[int, ...]]]:
        """The number of units of each dependency group that was cut, and those that it keeps."""
        return {group.name: (group.units, group.kept) for group in self.manifest.filters}

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The options of that build for its target and device, overridden by ``given``.

        Budgets may be given too: the files are tested against them. UsageError for an option that
        would have led to another plan.
        """
        original = self._config()
        self._check_plan(original, given)
        names = {field: name for name, field in FIELDS.items()}
        recorded = {
            names.get(field, field): value for field, value in original if self._records(field)
        }
        recorded["target"] = (self.manifest.target,)
        if len(recorded.get("device", ())) != 1 and self.manifest.device is not None:
            recorded["device"] = (self.manifest.device,)
        trust.refuse(
            {name: value for name, value in recorded.items() if name not in given}, str(self.path)
        )
        return {**recorded, **given}

    def _records(self, field: str) -> bool:
        """Whether the manifest records this field of the configuration, and it is repeated."""
        return field in self.manifest.config and field not in _OWN

    def _config(self) -> BuildConfig:
        """The recorded configuration, validated."""
        recorded = {
            field: value
            for field, value in self.manifest.config.items()
            if field in BuildConfig.model_fields and self._records(field)
        }
        try:
            return BuildConfig.model_validate(recorded)
        except ValidationError as error:
            raise UsageError(
                f"{self.path}: config.{refused(error)}; that build cannot be repeated"
            ) from error

    def _check_plan(self, original: BuildConfig, given: Mapping[str, Any]) -> None:
        """Raise UsageError for a given option that would have led to another plan."""
        for name in _PLANNED:
            planned = getattr(original, name)
            if name in given and getattr(parse(**{name: given[name]}), name) != planned:
                raise UsageError(
                    f"{_flag(name, given[name])}: the plan of {self.path} is repeated as it is, and"
                    f" was made with {_flag(name, planned)}; leave out --{name.replace('_', '-')},"
                    " or build without --locked"
                )

    def model(self) -> Path:
        """The model file that the manifest names, in its folder or the current one.

        UsageError unless a file there has the recorded SHA-256.
        """
        sha256, named = self.manifest.input.sha256, Path(self.manifest.input.path)
        folder = self.path if self.path.is_dir() else self.path.parent
        present = [
            path for path in dict.fromkeys([folder / named, named]) if kind(path) == "a file"
        ]
        for path in present:
            if artifact.sha256(path) == sha256:
                return path
        other = (
            f"{shown(present[0])} is another (SHA-256 {artifact.sha256(present[0])[:12]}…)"
            if present
            else "there is none of that name here"
        )
        raise UsageError(
            f"{self.path}: that build's model is {shown(named)} with SHA-256 {sha256[:12]}…, and"
            f" {other}; name the file: lrfc build MODEL --locked"
        )

    def check(self, source: Path, original: Graph) -> None:
        """Raise UsageError unless the model is the one of that build.

        ``original``: the model's canonical graph.
        """
        now = digest(source, original)
        if now != self.manifest.input.sha256:
            raise UsageError(
                f"{self.path} is the plan for another model: {self.manifest.input.path} with"
                f" SHA-256 {self.manifest.input.sha256[:12]}…, and '{source}' has {now[:12]}…; give"
                " that file, or build without --locked"
            )

    def differences(self) -> list[str]:
        """Packages of other versions, as 'keras 3.14 → 3.15', and another state of oneDNN."""
        from lrfc.ir import processor

        now = artifact.versions()
        then = self.manifest.versions
        changes = [
            f"{name} {then.get(name) or 'none'} → {now.get(name) or 'none'}"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]
        onednn = processor.onednn()
        if self.manifest.onednn not in (None, onednn.on):
            changes.append(f"oneDNN {'on' if self.manifest.onednn else 'off'} → {onednn}")
        return changes

    def outcome(self, repeated: Manifest) -> str:
        """One line: whether the repeated build has the same file, byte for byte."""
        old, new = self.manifest.artifacts[0], repeated.artifacts[0]
        if old.sha256 == new.sha256:
            return (
                f"the same file as that of {self.path}, byte for byte (SHA-256 {new.sha256[:12]}…)"
            )
        return (
            f"not the same bytes as that of {self.path}: SHA-256 {new.sha256[:12]}… against"
            f" {old.sha256[:12]}…, by the same plan"
        )


def _flag(name: str, value: Any) -> str:
    """An option with its value, as on the command line."""
    shown = ",".join(map(str, value)) if isinstance(value, list | tuple) else value
    return (
        f"no --{name.replace('_', '-')}"
        if shown in (None, "")
        else f"--{name.replace('_', '-')} {shown}"
    )


def digest(source: Path, original: Graph) -> str:
    """SHA-256 of the model file; for a model in memory, of the canonical graph and its weights."""
    if source.is_file():
        return artifact.sha256(source)
    from lrfc.ir.fingerprint import model_digest

    return model_digest(original)
