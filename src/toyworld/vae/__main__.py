"""Train the decoder of nano's VAE further on images, most of them texts and small things; latents stay as they are.

python -m toyworld.vae --model nano -o runs/vae      # goes on where it was stopped; the result is runs/vae/final
"""

from __future__ import annotations

import argparse
from pathlib import Path

from openlance.checkpoint.formats import folder_of
from openlance.errors import UserError
from openlance.training.interrupt import Interrupted
from toyworld.vae.clips import ClipVAERecipe, train_clip_vae

# As from nothing, but for the rate, which is lower, and for what is looked at. Steps without clips leave what sees the
# past untouched.
RECIPE = ClipVAERecipe(
    encoder_learns=False, pictures_every=1, kinds={"text": 6.0, "attribute": 1.5, "count": 1.5, "mixed": 1.5},
    decoder_steps=1100, decoder_lr=2e-4, decoder_end=0.03, muon_scale=10.0, ema=0.995, latent_noise=0.2, compile=True,
    save_every=200, seed=3,
)  # fmt: skip


def main() -> None:
    about = " ".join(__doc__.split("\n\n", maxsplit=1)[0].split())
    parser = argparse.ArgumentParser(prog="python -m toyworld.vae", description=about)
    parser.add_argument("--model", default="nano", help="where it starts: a shipped model, or a folder")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the run")
    args = parser.parse_args()
    try:
        print(train_clip_vae(RECIPE, folder_of(args.model), args.out))
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    except Interrupted as stopped:
        parser.exit(128 + stopped.number, f"{stopped}\n")


if __name__ == "__main__":
    main()
