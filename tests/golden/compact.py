"""Make the compact copy of the golden vectors that travels with the repository.

    python tests/golden/compact.py ../shared/golden tests/golden

Two things make it small. Tensors that repeat what others prove are left out (`LEFT_OUT`). Numbers are rounded: weights
to the significant bits in `WEIGHT_BITS`, results to `RESULT_BITS` or to steps of 2**-17, whatever is finer; inputs and
everything whose tolerance is 1e-5 stay as they are. That costs at most half a tolerance, and it lets xz take two thirds
of each number where it took nine tenths. Ids, positions, masks and pixels are exact. Of the vectors in bfloat16 there
are two cases (`HALVES`), and of their rows every `STEP`th.
"""

import json
import lzma
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save

WEIGHT_BITS = {"model": 19, "vit": 19, "vae": 17}
RESULT_BITS, RESULT_STEP = 16, -17
# Read by the model, or compared to 1e-5: not rounded.
AS_IS = re.compile(
    r"in\.|.*\.(eps\d?|timesteps|noise|mean|std|inv_std)$|(mrope|latent_pos_embed|time_embedder|vae2llm|llm2vae)\."
)
LEFT_OUT = {
    "modules": r"vit\.(image_large|two|video)\..*|vae\.video9\..*|vit\.image\.patches",
    "preproc": r"case[012]\..*",
    "case_image_edit_pub": r"gen\.(noise|x_init|nocache\.x_steps)|in\.media0\.rgb",
    "case_image_idip_pub": r"gen\.(noise|x_init|vae_embed_step0|nocache\.x_steps)|in\.media0\.rgb",
    "case_video_edit_pub": r"gen\.(noise|x_init|vae_embed_step0|nocache\.x_steps)|in\.media0\.rgb",
    "case_t2v_pub": r"gen\.(noise|x_init|nocache\.x_steps)",
    "case_i2v_pub": r"gen\.(noise|nocache\.x_steps)",
    "case_x2t_image_pub": r"in\.media0\.rgb",
    "case_x2t_video_pub": r"in\.media0\.rgb",
    "train_mixed_pub": r"out\.input_sequence|grad\.language_model\.model\.layers\.1\.self_attn\.v_proj_moe_gen\.weight",
    "train_und_only_pub": r"out\.(input_sequence|last_hidden_state)",
}
HALVES = {
    "case_image_edit_pub": r"gen\.noise|layer0\.q|unrounded\.(?!layer0\.k).*|float32\.prefix.*|vae\.decoded_u8",
    "case_x2t_image_pub": r"layer0\.q|unrounded\.(?!layer0\.k|und).*|float32\.prefix.*|.*prefix\.hidden_layer0",
}
STEP = 8
# Which list of row numbers a tensor goes by.
ROWS = {
    "rows.joined": re.compile(r"(.*\.)?(rope\.(cos|sin)|layer0\.[qk])"),
    "rows.prefix": re.compile(r"(.*\.)?prefix\..*"),
}
# Aligned 4-byte numbers: the compressor is told so.
FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "lp": 2, "pb": 2}]


def rounded(x: torch.Tensor, bits: int, step: int | None = None) -> torch.Tensor:
    """To so many significant bits, or to multiples of 2**step where that is finer."""
    if not x.is_floating_point():
        return x
    _, exponent = torch.frexp(x.double())
    power = exponent - bits if step is None else (exponent - bits).clamp(max=step)
    unit = torch.ldexp(torch.ones_like(power, dtype=torch.float64), power)
    return torch.where(torch.isfinite(x), (x.double() / unit).round() * unit, x.double()).to(x.dtype)


def thinned(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every STEPth row of what goes by a list of rows, and of that list."""
    by_rows = {n for n in tensors if n in ROWS or any(pattern.fullmatch(n) for pattern in ROWS.values())}
    return {n: t[::STEP].contiguous() if n in by_rows else t for n, t in tensors.items()}


def packed(tensors: dict[str, torch.Tensor]) -> bytes:
    plain, best = save(tensors), []
    for settings in ({"filters": FILTERS}, {"preset": 9 | lzma.PRESET_EXTREME}):
        best.append(lzma.compress(plain, **settings))
    return min(best, key=len)


def compact_json(source: Path, target: Path, kept: dict[str, torch.Tensor]) -> None:
    facts = json.loads(source.read_text(encoding="utf-8"))
    facts["tensors"] = {n: e | {"shape": list(kept[n].shape)} for n, e in facts["tensors"].items() if n in kept}
    facts.pop("distances_rel_l2", None)
    target.write_text(json.dumps(facts, ensure_ascii=False) + "\n", encoding="utf-8")


def main(source: Path, target: Path) -> None:
    for folder in ("weights", "tokenizer", "cases", "bf16"):
        (target / folder).mkdir(parents=True, exist_ok=True)
    for path in [*(source / "tokenizer").iterdir(), *(source / "weights").glob("*.json")]:
        (target / path.relative_to(source)).write_bytes(path.read_bytes())
    for stem, bits in WEIGHT_BITS.items():
        weights = {n: rounded(t, bits) for n, t in load_file(source / "weights" / f"{stem}.safetensors").items()}
        (target / "weights" / f"{stem}.safetensors.xz").write_bytes(packed(weights))
    for path in [*source.glob("*.safetensors"), *(source / "cases").glob("*.safetensors")]:
        place = target / path.relative_to(source).parent
        out = re.compile(LEFT_OUT.get(path.stem, ""))
        kept = {n: t for n, t in load_file(path).items() if not out.fullmatch(n)}
        numbers = {n: t if AS_IS.match(n) else rounded(t, RESULT_BITS, RESULT_STEP) for n, t in kept.items()}
        (place / f"{path.stem}.safetensors.xz").write_bytes(packed(numbers))
        compact_json(path.with_suffix(".json"), place / f"{path.stem}.json", kept)
    for stem, out in HALVES.items():
        tensors = load_file(source / "bf16" / f"{stem}.safetensors")
        kept = thinned({n: t for n, t in tensors.items() if not re.fullmatch(out, n)})
        numbers = {n: rounded(t, RESULT_BITS, RESULT_STEP) if t.dtype == torch.float32 else t for n, t in kept.items()}
        (target / "bf16" / f"{stem}.safetensors.xz").write_bytes(packed(numbers))
        compact_json(source / "bf16" / f"{stem}.json", target / "bf16" / f"{stem}.json", kept)
    total = sum(p.stat().st_size for p in target.rglob("*") if p.is_file())
    print(f"{target}: {total / 1e6:.2f} MB")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
