"""From a name to files: a shipped model, a repository of the hub, or a checkpoint folder with its configuration and its
parts in each of the forms that it can have.

    openlance   one folder with four JSON files, model, vit and vae .safetensors, tokenizer.json
    released    Lance_3B/, Lance_3B_Video/, Qwen2.5-VL-ViT/, Wan2.2_VAE.pth; or one of the first two, or the output of
                its trainer, with the others beside or above it
    diffusers   model_index.json with transformer/, vae/, vision_tower/ and tokenizer/, the latter three as diffusers
                and transformers write them

Each decoder is one file or an index of shards; it may bring its vision tower along as `vit_model.*`, which then counts.
nano ships in the first form; what the release does not know (the exact form of guidance, say) are extra keys of
`lance_config.json` with the released behavior as their default.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from openlance.checkpoint import hub as network
from openlance.checkpoint.tensors import first, first_file, listed_files, open_tensors, weight_map, weights_in
from openlance.config.model import ModelConfig, VAEConfig
from openlance.config.sampling import DISTILLED, GenerationConfig
from openlance.config.values import as_data, brief, flag, path_of, read_json
from openlance.errors import UserError
from openlance.media.files import write_json


def read_config(folder: str | Path) -> ModelConfig:
    """Read the configuration of a checkpoint folder.

    Raises:
        UserError: If a file is missing or its values contradict each other.
    """
    folder = Path(folder)
    return model_config(folder, *(read_json(folder / f"{name}_config.json") for name in ("llm", "lance", "vit", "vae")))


def model_config(folder: Path, llm: dict, lance: dict, vit: dict, vae: dict) -> ModelConfig:
    """Make the configuration that the JSON files of a folder mean; an empty `vae` is the published VAE."""
    try:
        return ModelConfig.of(llm, lance, vit, vae)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the configuration in {folder} does not fit together: {error}") from error


def write_config(folder: str | Path, c: ModelConfig) -> None:
    """Write the four JSON files of a folder."""
    for name, content in c.files().items():
        write_json(Path(folder) / name, content)


# Names in the release.
IMAGES, CLIPS, TOWER, CODEC = "Lance_3B", "Lance_3B_Video", "Qwen2.5-VL-ViT", "Wan2.2_VAE"
INSIDE = "vit_model."
# What a released folder leaves to the code (released code).
PUBLISHED = {"max_latent_size": 64, "max_num_frames": 121}
CODECS = (f"{CODEC}.safetensors", "vae.safetensors", f"{CODEC}.pth")
REVISION = re.compile(r"[\w./-]{1,200}")
REPOSITORY = re.compile(r"(?!\.)[\w.-]+/[\w.-]+")
SHA256 = re.compile(r"[0-9a-f]{64}")
SHIPPED = ("nano",)
ABOVE = 4  # folders above a decoder in which its vision tower and VAE are looked for: a run lies deep


@dataclass(frozen=True, kw_only=True)
class Hub:
    """How a repository of the hub is read.

    Args:
        revision: A branch, tag or commit.
        cache_dir: Where its files are kept.
        local_files_only: Without asking the network.
        token: As whom.
        subfolder: The folder in it.

    Raises:
        UserError: For what is none of these.
    """

    revision: str | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    token: str | bool | None = field(default=None, repr=False)
    subfolder: str | None = None

    def __post_init__(self) -> None:
        if self.revision is not None and not (isinstance(self.revision, str) and REVISION.fullmatch(self.revision)):
            raise UserError(f"revision is {brief(self.revision)}: expected a branch, a tag or a commit, such as main")
        if self.cache_dir is not None:
            path_of("cache_dir", self.cache_dir)
        flag("local_files_only", self.local_files_only)
        if not (self.token is None or isinstance(self.token, (str, bool))):
            raise UserError(f"the token is of type {type(self.token).__name__}: expected a text, or leave it out")
        inside = self.subfolder
        plain = isinstance(inside, str) and REVISION.fullmatch(inside) and ".." not in inside and inside[0] != "/"
        if inside is not None and not plain:
            raise UserError(f"subfolder is {brief(inside)}: expected the name of a folder inside the model's")

    def below(self, folder: Path) -> Path:
        """Find the folder that is meant, inside that of the repository or model."""
        return folder / (self.subfolder or "")


@dataclass(frozen=True)
class Files:
    """A checkpoint as it lies on disk. Paths of weights are files, or what is missing where there is none.

    Args:
        form: "openlance", "released" or "diffusers".
        root: Its folder.
        decoders: Folder of the one for images, and of the one for videos if that is another.
        vit: Weights of the vision tower.
        vae: Weights of the VAE.
        tokenizer: Its folder.
        config: What the JSON files say.
        repo: The repository of the hub that what is missing comes from, if any.
        hub: How.
    """

    form: str
    root: Path
    decoders: tuple[Path, ...]
    vit: Path
    vae: Path
    tokenizer: Path
    config: ModelConfig
    repo: str | None = None
    hub: Hub = Hub()

    def decoder(self, clips: bool = False) -> Path:
        """Find the decoder's file for images and questions about them, or for videos."""
        return weights_in(self.decoders[-1 if clips else 0])

    @property
    def distilled(self) -> Path:
        """The generation side that takes the place of guidance, where there is one (`training.distillation`)."""
        return self.root / DISTILLED

    @property
    def defaults(self) -> GenerationConfig:
        """How requests run unless told otherwise. UserError for a damaged file."""
        fetches = self.repo is not None and self.form == "openlance"
        return GenerationConfig.read(self.tokenizer, few=fetches or self.distilled.is_file())

    def vit_of(self, clips: bool = False, allow_pickle: bool = False) -> tuple[Path, str]:
        """Find the vision tower's weights, and the prefix of their names there."""
        decoder = self.decoder(clips)
        if decoder.is_file() and any(n.startswith(INSIDE) for n in tensor_names(decoder, allow_pickle)):
            return decoder, INSIDE
        return self.vit, ""

    def missing(self, *parts: Path) -> list[Path]:
        """List the files that these parts (left out: all) need and that are not there, shards included."""
        wanted = parts or (*(weights_in(d) for d in self.decoders), self.vit_of()[0], self.vae)
        return [file for part in wanted for file in listed_files(part) if not file.is_file()]

    def require(self, *parts: Path) -> None:
        """Raise UserError if something of these parts is missing; it names the command that completes the folder."""
        if lost := self.missing(*parts):
            root = self.root
            names = first(p.relative_to(root).as_posix() if p.is_relative_to(root) else str(p) for p in lost)
            raise UserError(f"{self.root} is incomplete (missing: {names}): {self.remedy}")

    @property
    def remedy(self) -> str:
        """How an incomplete folder is completed."""
        if self.repo is not None:
            return f"run `openlance download {self.repo}`"
        if self.form == "released":
            return f"run `openlance download -o {self.root}`, or put them there"
        return "copy them from where the folder came from"

    def completed(self, part: Path) -> Files:
        """Fetch what is missing of a part (a path of these files), if they come from the hub, and look again; the
        revision stays the same."""
        if self.repo is None or not self.missing(part):
            return self
        deep = len(Path(self.hub.subfolder or "").parts)
        root = self.root.parents[deep - 1] if deep else self.root
        inside = part.parent.relative_to(root).as_posix()
        stems = (CODEC, "vae") if part == self.vae else (part.name.split(".")[0],)
        patterns = [f"{inside}/*"] if inside != "." else [f"{stem}*" for stem in stems]
        folder = network.fetch(self.repo, patterns, hub=replace(self.hub, revision=root.name))
        return replace(find(self.hub.below(folder)), repo=self.repo, hub=self.hub)


def folder_of(model: str | Path) -> Path:
    """Find the folder of a shipped model or of a path; UserError if there is none."""
    if isinstance(model, str) and model in SHIPPED:
        return Path(str(resources("openlance"))) / "assets" / model
    path = path_of("the model", model)
    if path.is_file():
        raise UserError(f"{path} is a file, neither a name nor a folder: give its folder, {path.absolute().parent}")
    if not path.is_dir():
        good = f"{', '.join(SHIPPED)} (shipped), a folder, or owner/name on the hub"
        raise UserError(f"no model {brief(str(model))} here: use {good}")
    return path


def find_model(model: str | Path, *, base: str | Path | None = None, hub: Hub = Hub()) -> Files:  # noqa: B008
    """Find the parts of a model; of a repository of the hub the small files are fetched, weights when they are needed.

    Args:
        model: A shipped one, a folder, or owner/name on the hub.
        base: Another one that has what the folder lacks.
        hub: How the hub is read.

    Raises:
        UserError: If there is no such model, or it is incomplete in what says what it is.
    """
    if isinstance(model, str) and REPOSITORY.fullmatch(model) and not path_of("the model", model).exists():
        return replace(find(hub.below(network.small_files(model, hub))), repo=model, hub=hub)
    return find(hub.below(folder_of(model)), base=None if base is None else folder_of(base))


def find(path: str | Path, *, base: str | Path | None = None) -> Files:
    """Find the parts of a checkpoint folder of any form.

    Args:
        path: The folder.
        base: Another one that has what this one lacks (a trainer's output has no VAE).

    Raises:
        UserError: If it is none, lacks a configuration, or mixes models of two kinds.
    """
    folder = path_of("the checkpoint", path)
    if (folder / "model_index.json").is_file():
        files = _diffusers(folder)
    elif decoders := tuple(folder / n for n in (IMAGES, CLIPS) if (folder / n / "llm_config.json").is_file()):
        files = _released(folder, decoders, [folder])
    elif any((folder / f"{name}_config.json").is_file() for name in ("vit", "vae")):
        files = _openlance(folder)
    elif (folder / "llm_config.json").is_file():
        above = list(folder.absolute().parents)[:ABOVE]
        files = _released(folder, (folder,), [folder, *above, *(place / "downloads" for place in above)])
    elif steps := _steps(folder):
        return find(steps[-1], base=base)
    else:
        fix = f"run `openlance download -o {folder}` for the released one"
        raise UserError(f"{folder} is no checkpoint: it lacks llm_config.json; {fix}, or give another folder")
    if base is not None:
        files = _filled(files, find(base))
    width, given = files.config.width, files.config.vit.out_hidden_size
    if width != given:
        parts = f"its vision tower gives {given} channels per cell and its decoder takes {width}"
        raise UserError(f"{files.root} mixes models of different kinds: {parts}; use parts that belong together")
    return files


def _filled(files: Files, base: Files) -> Files:
    """Vision tower and VAE that are not there are those of another checkpoint, with its configuration of them."""
    config = files.config
    if not files.vit_of()[0].is_file():
        files, config = replace(files, vit=base.vit), replace(config, vit=base.config.vit)
    if not files.vae.is_file():
        vae = base.config.vae
        files, config = replace(files, vae=base.vae), replace(config, vae=vae, latent_channels=vae.z_dim)
    return replace(files, config=config)


def _openlance(folder: Path) -> Files:
    vit, vae = weights_in(folder, ("vit",)), first_file(folder, "vae.safetensors", f"{CODEC}.pth")
    return Files("openlance", folder, (folder,), vit, vae, folder, read_config(folder))


def _released(root: Path, decoders: tuple[Path, ...], places: list[Path]) -> Files:
    """places: where the vision tower and the VAE may be, nearest first."""
    usual = places[-1] if len(places) == 1 else places[1]
    near = next((p for p in places if any((p / name).is_file() for name in CODECS)), usual)
    tower = next((p / TOWER for p in places if (p / TOWER).is_dir()), usual / TOWER)
    configs = [_released_config(decoder, tower, near) for decoder in decoders]
    if configs[0] != configs[-1]:
        raise UserError(f"{root} mixes models of different kinds: {decoders[0].name} and {decoders[1].name} differ in "
                        f"their configurations; keep one of them")  # fmt: skip
    vae = next((near / name for name in CODECS if (near / name).is_file()), near / CODECS[-1])
    return Files("released", root, decoders, weights_in(tower, ("vit", "model")), vae, decoders[0], configs[0])


def _released_config(decoder: Path, tower: Path, near: Path) -> ModelConfig:
    llm = read_json(decoder / "llm_config.json")
    vit = read_json(tower / "config.json") if (tower / "config.json").is_file() else llm
    own = (decoder / "lance_config.json", near / "vae_config.json")
    lance, vae = (read_json(path) if path.is_file() else {} for path in own)
    return model_config(decoder, llm, PUBLISHED | lance, vit.get("vision_config", vit), vae)


def _diffusers(folder: Path) -> Files:
    transformer, tower = folder / "transformer", folder / "vision_tower"
    own, vae = read_json(transformer / "config.json"), config_of_diffusers(read_json(folder / "vae" / "config.json"))
    if lacking := [name for name in ("llm", "lance") if name not in own]:
        raise UserError(f"{transformer / 'config.json'} has no {lacking[0]!r}: it is of another model; use one that "
                        f"`openlance convert` wrote")  # fmt: skip
    config = model_config(folder, own["llm"], own["lance"], read_json(tower / "config.json"), vae)
    parts = weights_in(tower), weights_in(folder / "vae")
    return Files("diffusers", folder, (transformer,), *parts, folder / "tokenizer", config)


def _steps(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first: folders with a decoder that are named by the number of their step."""
    places = (p.parent for depth in ("*", "*/*", "*/*/*") for p in folder.glob(f"{depth}/llm_config.json"))
    found = {place: place.name.rpartition("-")[2] for place in places}
    return sorted((p for p, number in found.items() if number.isdigit()), key=lambda p: int(found[p]))


def tensor_names(weights: Path, allow_pickle: bool = False) -> Iterable[str]:
    """List the names of the tensors of a file or an index; of an index without opening a shard."""
    if weights.suffix == ".json":
        return weight_map(weights)
    return open_tensors(weights, allow_pickle=allow_pickle).shapes


def known_hash(path: Path) -> str | None:
    """Find the sha256 that the hub has for a file: in the name of the cached blob, or in what it wrote beside a folder
    that it filled. None for files from elsewhere and small ones, which have no such hash."""
    if path.is_symlink() and SHA256.fullmatch(name := Path(os.readlink(path)).name):
        return name
    for folder in path.absolute().parents:
        notes = folder / ".cache" / "huggingface" / "download"
        if notes.is_dir():
            note = notes / f"{path.absolute().relative_to(folder)}.metadata"
            lines = note.read_text(encoding="utf-8").split("\n") if note.is_file() else []
            return lines[1].strip() if len(lines) > 1 and SHA256.fullmatch(lines[1].strip()) else None
    return None


def check_hashes(weights: Path) -> int:
    """Compare a file, or an index and its shards, with what the hub has, where that is known.

    Returns:
        How many were compared.

    Raises:
        UserError: If one differs.
    """
    hashes = {path: wanted for path in listed_files(weights) if (wanted := known_hash(path)) is not None}
    for path, wanted in hashes.items():
        network.check_hash(path, wanted)
    return len(hashes)


# Names.

FIXED = {
    "embed": "language_model.model.embed_tokens",
    "head": "language_model.lm_head",
    "norm.und": "language_model.model.norm",
    "norm.gen": "language_model.model.norm_moe_gen",
    "time.up": "time_embedder.mlp.0",
    "time.out": "time_embedder.mlp.2",
    "latent_in": "vae2llm",
    "latent_out": "llm2vae",
}
IN_LAYER = {
    "attention_norm": "input_layernorm@",
    "mlp_norm": "post_attention_layernorm@",
    "gate": "mlp@.gate_proj",
    "up": "mlp@.up_proj",
    "down": "mlp@.down_proj",
    **{name: f"self_attn.{name}_proj@" for name in "qkvo"},
    **{f"{name}_norm": f"self_attn.{name}_norm@" for name in "qk"},
}
SUFFIX = {"und": "", "gen": "_moe_gen"}
# Modules of the decoder both ways; `*` is the number of a layer.
RELEASED_MODULES = FIXED | {
    f"layers.*.{stream}.{name}": f"language_model.model.layers.*.{part.replace('@', suffix)}"
    for name, part in IN_LAYER.items()
    for stream, suffix in SUFFIX.items()
}
_OURS = {released: name for name, released in RELEASED_MODULES.items()}
_NUMBER = re.compile(r"(?<=layers\.)\d+")

# A fixed table that some checkpoints carry; we compute it.
COMPUTED = ("latent_pos_embed.pos_embed",)


def _renamed(name: str, modules: Mapping[str, str]) -> str | None:
    module, _, leaf = name.rpartition(".")
    number, found = _NUMBER.search(module), modules.get(_NUMBER.sub("*", module, count=1))
    return None if found is None else f"{found.replace('*', number[0] if number else '')}.{leaf}"


def released_name(name: str) -> str:
    """Translate the name of one of our parameters, `layers.3.gen.q.bias`, say; KeyError if it has no released one."""
    found = _renamed(name, RELEASED_MODULES)
    if found is None:
        raise KeyError(f"{name} has no released name")
    return found


def our_name(released: str) -> str | None:
    """Translate the name of a released parameter; None for one that the decoder does not have."""
    return _renamed(released, _OURS)


# Released module -> ours, for the modules outside of the two halves, with the half that needs them.
_JOINTS = {"conv1": ("quant_conv", "encoder"), "conv2": ("post_quant_conv", "decoder")}
_RESIDUAL = {f"residual.{n}": name for n, name in ((0, "norm1"), (2, "conv1"), (3, "norm2"), (6, "conv2"))}
_RESIDUAL["shortcut"] = "conv_shortcut"


@dataclass(frozen=True)
class ReleasedNames:
    """Both ways between the tensor names of `Wan2.2_VAE.pth` and those of diffusers' modules."""

    ours: dict[str, str]  # released module path -> our module path

    def to_ours(self, name: str, parts: Iterable[str] = ("encoder", "decoder")) -> str | None:
        """Translate the name of a released tensor, or keep one that diffusers wrote.

        Returns:
            Our name, None if it belongs to a half that is not wanted, and a marked name if it is of neither, so that
            strict loading reports it as unexpected.
        """
        module, _, leaf = name.rpartition(".")
        released = self._theirs.get(module, module)
        if released not in self.ours:
            return f"unknown:{name}"
        half = _JOINTS[released][1] if released in _JOINTS else released.partition(".")[0]
        return f"{self.ours[released]}.{leaf}" if half in parts else None

    def to_released(self, name: str) -> str:
        """Translate the name of one of our tensors; KeyError if it has no released one."""
        module, _, leaf = name.rpartition(".")
        return f"{self._theirs[module]}.{leaf}"

    @cached_property
    def _theirs(self) -> dict[str, str]:
        return {ours: released for released, ours in self.ours.items()}


def released_names(config: VAEConfig) -> ReleasedNames:
    """Make the table of module names for a VAE."""
    blocks = config.num_res_blocks
    ours = {released: mine for released, (mine, _) in _JOINTS.items()}
    for half, theirs, mine, sampler, count in (
        ("encoder", "downsamples", "down_blocks", "downsampler", blocks),
        ("decoder", "upsamples", "up_blocks", "upsampler", blocks + 1),
    ):
        table = {"conv1": "conv_in", "head.0": "norm_out", "head.2": "conv_out"}
        residuals = {"middle.0": "mid_block.resnets.0", "middle.2": "mid_block.resnets.1"}
        for level in range(len(config.dim_mult)):
            inside, ours_inside = f"{theirs}.{level}.{theirs}", f"{mine}.{level}"
            residuals |= {f"{inside}.{n}": f"{ours_inside}.resnets.{n}" for n in range(count)}
            for leaf in ("resample.1", "time_conv"):
                table[f"{inside}.{count}.{leaf}"] = f"{ours_inside}.{sampler}.{leaf}"
        for released, block in residuals.items():
            table |= {f"{released}.{a}": f"{block}.{b}" for a, b in _RESIDUAL.items()}
        for leaf in ("norm", "to_qkv", "proj"):
            table[f"middle.1.{leaf}"] = f"mid_block.attentions.0.{leaf}"
        ours |= {f"{half}.{a}": f"{half}.{b}" for a, b in table.items()}
    return ReleasedNames(ours)


# Ours -> diffusers', for the hyper-parameters of AutoencoderKLWan that differ between models.
_SAME = ("z_dim", "dim_mult", "num_res_blocks", "temperal_downsample", "patch_size")
_SETTINGS = {"dim": "base_dim", "dec_dim": "decoder_base_dim", "mean": "latents_mean", "std": "latents_std"}
_SETTINGS |= {name: name for name in _SAME}


def config_of_diffusers(values: Mapping[str, Any]) -> dict[str, Any]:
    """Turn the config.json of diffusers' AutoencoderKLWan into what a released vae_config.json says."""
    return {mine: values[theirs] for mine, theirs in _SETTINGS.items() if theirs in values}


def config_for_diffusers(config: VAEConfig) -> dict[str, Any]:
    """Make the arguments of diffusers' AutoencoderKLWan for a VAE."""
    values = {"temperal_downsample": config.temporal_downsample, **vars(config)}
    channels = 3 * config.patch_size**2
    return as_data({theirs: values[mine] for mine, theirs in _SETTINGS.items()}) | {
        "is_residual": True, "in_channels": channels, "out_channels": channels,
        "scale_factor_temporal": config.temporal_stride, "scale_factor_spatial": config.stride,
    }  # fmt: skip
