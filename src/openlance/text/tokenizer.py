"""The tokenizer: a Qwen2-style byte-level BPE, read from a folder; special tokens are found by name. And what the
sequence asks for: its ids with the grids of a configuration."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from openlance.config.model import ModelConfig
from openlance.config.values import lines_of, path_of, read_json, read_text
from openlance.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

# How Qwen2 cuts text before merging bytes (the rule of the published tokenizer.json).
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
)  # fmt: skip


class Tokenizer:
    """Text to ids and back. `len(tokenizer)` is the effective vocabulary: logits beyond it are never chosen."""

    def __init__(self, backend: Backend) -> None:
        # A special token spelled out inside user text is text: only the chat template places special tokens.
        backend.encode_special_tokens = True
        self.backend = backend
        ids = {name: i for name in SPECIAL if (i := backend.token_to_id(name)) is not None}
        if missing := [name for name in SPECIAL if name not in ids]:
            raise UserError(f"the tokenizer lacks {', '.join(missing)}: use the tokenizer folder of the checkpoint")
        self.im_start, self.im_end = ids["<|im_start|>"], ids["<|im_end|>"]
        self.vision_start, self.vision_end = ids["<|vision_start|>"], ids["<|vision_end|>"]
        self.visual_pad = ids["<|video_pad|>"]  # of images and videos alike (released code)
        self.special = ids.__getitem__  # the id of a special token by its name
        self._cached = lru_cache(maxsize=1 << 14)(self._encode)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read tokenizer.json, or vocab.json with merges.txt and tokenizer_config.json."""
        from tokenizers import Tokenizer as Backend

        folder = path_of("the tokenizer", folder)
        if (folder / "tokenizer.json").is_file():
            text = read_text(folder / "tokenizer.json")
            try:
                backend = Backend.from_str(text)
            except Exception as error:  # noqa: BLE001  the library raises nothing narrower
                raise UserError(f"{folder / 'tokenizer.json'} is no tokenizer ({error}): restore the file") from None
            return cls(backend)
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return cls(_slow_format(folder))
        raise UserError(f"no tokenizer in {folder}: expected tokenizer.json, or vocab.json and merges.txt")

    def _encode(self, text: str) -> tuple[int, ...]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            said = f"the text {ascii(text[:40])} holds bytes that are no characters (place {error.start})"
            raise UserError(f"{said}: write it as UTF-8") from None
        return tuple(self.backend.encode(text, add_special_tokens=False).ids)

    def ids(self, text: str) -> list[int]:
        return list(self._cached(text))

    def text(self, ids: list[int]) -> str:
        """Decode; special tokens are left out."""
        return self.backend.decode(ids, skip_special_tokens=True)

    def __len__(self) -> int:
        return self.backend.get_vocab_size(with_added_tokens=True)


class SequenceCodec:
    """What a sequence asks for (`sequence.pack.Codec`), of a tokenizer and a configuration.

    Args:
        tokenizer: Gives the ids.
        config: Gives the grids: merged ViT cells and latents, (t, y, x), of (frames, height, width) in pixels.
    """

    def __init__(self, tokenizer: Tokenizer, config: ModelConfig) -> None:
        self.tokenizer, self.config, self.ids = tokenizer, config, tokenizer.ids
        self.patch_grid, self.latent_grid = config.vit.cell_grid, config.vae.latent_grid
        self.im_start, self.im_end = tokenizer.im_start, tokenizer.im_end
        self.vision_start, self.vision_end = tokenizer.vision_start, tokenizer.vision_end
        self.visual_pad = tokenizer.visual_pad


def _empty(vocab: dict[str, int] | None = None, merges: list[tuple[str, str]] | None = None) -> Backend:
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Backend

    backend = Backend(models.BPE(vocab=vocab, merges=merges, fuse_unk=False, byte_fallback=False))
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    backend.decoder = decoders.ByteLevel()
    return backend


def _slow_format(folder: Path) -> Backend:
    from tokenizers import AddedToken

    vocab = read_json(folder / "vocab.json")
    lines = lines_of(read_text(folder / "merges.txt"))
    merges = [(a, b) for a, _, b in (line.partition(" ") for line in lines if not line.startswith("#version")) if b]
    backend = _empty(vocab, merges)
    added = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    for _, entry in sorted(added.items(), key=lambda item: int(item[0])):
        backend.add_special_tokens([AddedToken(entry["content"], special=True, normalized=False)])
    return backend


def train_tokenizer(texts: list[str], vocab_size: int) -> Backend:
    """A byte-level BPE of the same kind, trained on `texts`; the special tokens come last, as in Qwen2."""
    from tokenizers import AddedToken, pre_tokenizers, trainers

    backend = _empty()
    learned, alphabet = vocab_size - len(SPECIAL), sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=learned, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(texts, trainer)
    backend.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return backend
