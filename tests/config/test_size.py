"""Counts made from numbers alone equal those of the modules and of the published tensors."""

import pytest
import torch

from openlance.config.model import ModelConfig, nano
from openlance.model.lance import lance_parameters
from openlance.model.vit import ViT
from openlance.planning.hardware import DEVICES, parse_devices
from openlance.planning.size import decoder_half, encoder_half, vit_size
from openlance.vae.autoencoder import Wan


def test_the_published_3b():
    c = ModelConfig()
    assert sum(n for _, n in lance_parameters(c)) == 6_176_817_200
    assert vit_size(c.vit) == 668_684_288
    # the manifest counts the joints apart from the halves: 96 * 96 + 96 and 48 * 48 + 48
    assert encoder_half(c.vae).size + decoder_half(c.vae).size == 704_688_668


def test_the_tower_and_the_vae_of_nano():
    c = nano()
    with torch.device("meta"):
        tower, wan = ViT(c.vit), Wan(c.vae)
    assert vit_size(c.vit) == sum(p.numel() for p in tower.parameters())
    encoder = sum(p.numel() for part in (wan.encoder, wan.quant_conv) for p in part.parameters())
    decoder = sum(p.numel() for part in (wan.decoder, wan.post_quant_conv) for p in part.parameters())
    assert (encoder_half(c.vae).size, decoder_half(c.vae).size) == (encoder, decoder)


def test_devices_by_their_usual_names():
    names = {
        "128xA100-80GB": (128, "A100-80GB"), "a100": (1, "A100-80GB"), "A100-40GB": (1, "A100-40GB"),
        "8 x h100": (8, "H100-80GB"), "4090": (1, "RTX4090"), "2x4090": (2, "RTX4090"), "cpu": (1, "CPU"),
    }  # fmt: skip
    assert {text: (parse_devices(text)[0], parse_devices(text)[1].name) for text in names} == names
    assert all(parse_devices(device.name) == (1, device) for device in DEVICES)


@pytest.mark.parametrize("text", ["", "0xA100", "A10", "8x", "x"])
def test_an_unknown_device_is_refused(text):
    with pytest.raises(ValueError):
        parse_devices(text)
