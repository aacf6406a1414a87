"""Adapters: merged equals unmerged, PEFT's layout both ways, and wrong ones are named."""

import json

import pytest
import torch

from openlance.checkpoint.adapters import CONFIG
from openlance.config.lora import Lora
from openlance.errors import UserError
from openlance.model.lora import inject, read_adapter, trained, write_adapter


@pytest.fixture
def adapted(tiny, tmp_path):
    """A decoder with a random update, the same without, and the adapter's folder."""
    tuned, plain, lora = tiny.build(), tiny.build(), Lora(rank=3, alpha=6.0)
    inject(tuned.model, lora)
    generator = torch.Generator().manual_seed(1)
    for name, p in tuned.model.named_parameters():
        if name.endswith("lora_B"):
            p.data = torch.randn(p.shape, generator=generator) * 0.1
    write_adapter(tmp_path, trained(dict(tuned.model.named_parameters()), lora), lora, "tiny")
    return tuned, plain, tmp_path


def test_merged_equals_unmerged(adapted):
    tuned, plain, folder = adapted
    packed = plain.pack(plain.samples())
    noise = plain.noised(packed)
    with torch.no_grad():
        before, wanted = plain.hidden(packed, noise), tuned.hidden(packed, noise)
        read_adapter(folder).merge(plain.model)
        merged = plain.hidden(packed, noise)
    assert (before - wanted).abs().max() > 1e-2
    assert torch.allclose(merged, wanted, atol=1e-5)


def test_a_fresh_adapter_changes_nothing_and_only_it_is_trained(tiny):
    plain, tuned = tiny.build(), tiny.build()
    inject(tuned.model, Lora(rank=2))
    packed = plain.pack([plain.draw()])
    noise = plain.noised(packed)
    with torch.no_grad():
        assert torch.equal(plain.hidden(packed, noise), tuned.hidden(packed, noise))
    trained = [n for n, p in tuned.model.named_parameters() if p.requires_grad]
    assert trained and all(".lora_" in n for n in trained)


def test_an_adapter_fits_a_decoder_without_the_generation_expert(adapted, tiny):
    _, _, folder = adapted
    small = tiny.build(streams=("und",))
    before = small.model.layers[0].und.q.weight.clone()
    read_adapter(folder).merge(small.model)
    assert not torch.equal(before, small.model.layers[0].und.q.weight)


def test_half_an_adapter_is_half_the_update(adapted, tiny):
    _, _, folder = adapted
    start, half, whole = (tiny.build().model for _ in range(3))
    read_adapter(folder, 0.5).merge(half)
    read_adapter(folder).merge(whole)
    a, b, c = (m.layers[1].gen.up.weight for m in (start, half, whole))
    assert torch.allclose(b - a, (c - a) / 2, atol=1e-6)


def test_what_is_no_adapter_or_one_of_another_model_is_named(adapted, tiny, tmp_path):
    _, _, folder = adapted
    with pytest.raises(UserError, match="holds no adapter"):
        read_adapter(tmp_path / "nowhere")
    other = tiny.build(width=32, layers=1, mlp_width=32)
    with pytest.raises(UserError, match="does not fit"):
        read_adapter(folder).merge(other.model)
    said = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(said | {"peft_type": "IA3"}))
    with pytest.raises(UserError, match="not a plain LoRA"):
        read_adapter(folder)


def test_peft_reads_and_writes_the_same_folders(adapted, tiny, tmp_path):
    peft = pytest.importorskip("peft")
    tuned, _, folder = adapted
    theirs = peft.PeftModel.from_pretrained(tiny.build().model, str(folder))
    packed = tuned.pack(tuned.samples())
    noise = tuned.noised(packed)
    with torch.no_grad():
        wanted = tuned.hidden(packed, noise)
        again = type(tuned)(theirs.base_model.model, tuned.codec)
        assert torch.allclose(again.hidden(packed, noise), wanted, atol=1e-5)
        theirs.save_pretrained(str(tmp_path / "written"))
        merged = tiny.build()
        read_adapter(tmp_path / "written").merge(merged.model)
        assert torch.allclose(merged.hidden(packed, noise), wanted, atol=1e-5)
