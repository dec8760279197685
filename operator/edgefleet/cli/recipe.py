"""What a release is made of, as a person writes it: `--variant` words, or a YAML file.

name: digits
version: "1.0"
seq: 1                          # orders releases: each new one is higher
variants:
  - name: fp32
    arch: amd64
    precision: fp32
    files: {model.onnx: build/fp32.onnx}      # path in the model: file, relative to this YAML
  - name: int8
    arch: amd64
    precision: int8
    features: [avx512_vnni]     # the site must have all of them
    minMemory: 512Mi
    priority: 10                # highest wins where several fit
    files: {model.onnx: build/int8.onnx}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from edgefleet.api.model import Accelerator, Arch, Variant
from edgefleet.api.quantities import Name, Size, parse_size
from edgefleet.cli.output import CommandFailed
from edgefleet.oci.push import VariantFiles

_NOT_PUSHED = "sha256:" + "0" * 64
_WORDS = ("name", "arch", "accelerator", "features", "minMemory", "precision", "priority", "file")


class _Strict(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid")


class VariantRecipe(_Strict):
    """One variant. `files` maps the path in the model's folder to a file here."""

    name: Name
    arch: Arch
    accelerator: Accelerator | None = None
    features: Annotated[tuple[Accelerator, ...], Field(max_length=16)] = ()
    min_memory: Size = "0"
    precision: Annotated[str, Field(max_length=16)] = ""
    priority: Annotated[int, Field(ge=0, le=1000)] = 0
    files: Annotated[dict[str, Path], Field(min_length=1, max_length=64)]

    def to_files(self, folder: Path) -> VariantFiles:
        """As push takes it; files are relative to `folder`. Raises CommandFailed for one that is not there."""
        found = {path: folder / file for path, file in self.files.items()}
        for file in found.values():
            if not file.is_file():
                raise CommandFailed("FileNotFound", f"variant {self.name}: {file} is not a file")
        facts = Variant(
            name=self.name,
            digest=_NOT_PUSHED,
            size=0,
            arch=self.arch,
            accelerator=self.accelerator,
            features=tuple(sorted(self.features)),
            min_memory=parse_size(self.min_memory),
            precision=self.precision,
            priority=self.priority,
        )
        return VariantFiles(facts, found)


class Recipe(_Strict):
    """A release."""

    name: Name
    version: Annotated[str, Field(min_length=1, max_length=64)]
    seq: Annotated[int, Field(ge=0, le=1_000_000_000)]
    variants: Annotated[tuple[VariantRecipe, ...], Field(min_length=1, max_length=32)]


def read_recipe(path: Path | None, words: Sequence[str], overrides: dict[str, Any]) -> tuple[Recipe, Path]:
    """The recipe, and the folder that its files are relative to. `overrides` (name, version, seq) win where they are not None.

    Raises CommandFailed, typer.BadParameter, OSError.
    """
    document: Any = {}
    if path is not None:
        try:
            document = yaml.safe_load(path.read_bytes())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise CommandFailed("RecipeInvalid", f"{path}: not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(document, dict):
            raise CommandFailed("RecipeInvalid", f"{path}: a map with name, version, seq and variants was expected")
    if words:
        document["variants"] = [_read_words(text) for text in words]
    document |= {key: value for key, value in overrides.items() if value is not None}
    try:
        return Recipe.model_validate(document), path.parent if path else Path()
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        if path is None:
            raise typer.BadParameter(f"{where}: {first['msg']} (options --name, --version, --seq, --variant, or a file)") from error
        raise CommandFailed("RecipeInvalid", f"{path}: {where}: {first['msg']} (see `edgefleet model push --help`)") from error


def _read_words(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {"files": {}}
    for word in text.split(","):
        key, equals, value = word.partition("=")
        if not equals or not value or key not in _WORDS:
            raise typer.BadParameter(f"--variant {text}: {word!r} is not one of {', '.join(f'{known}=...' for known in _WORDS)}")
        if key == "file":
            file = Path(value)
            if file.name in found["files"]:
                raise typer.BadParameter(f"--variant {text}: two files called {file.name}: give them paths with --from")
            found["files"][file.name] = file
        elif key == "features":
            found["features"] = value.split("+")
        elif key in found:
            raise typer.BadParameter(f"--variant {text}: {key} is given twice")
        else:
            found[key] = value
    return found
