"""From a name to a pipeline, or to one sentence that says which names there are."""

import pytest

import openlance
from openlance.checkpoint.formats import SHIPPED, folder_of
from openlance.errors import UserError


def test_a_folder_is_loaded_from_its_path(checkpoint):
    pipe = openlance.load(str(checkpoint.folder))
    assert isinstance(pipe, openlance.Pipeline) and pipe.folder == checkpoint.folder
    assert pipe.config == openlance.load(checkpoint.folder).config


def test_a_shipped_name_is_a_folder_of_the_package():
    for name in SHIPPED:
        assert folder_of(name).parts[-3:] == ("openlance", "assets", name)


@pytest.mark.parametrize("name", ["no-such-model", "nano2", "../nowhere"])
def test_an_unknown_model_is_one_sentence_that_names_the_known(name):
    with pytest.raises(UserError, match=f"no model '{name}'.*nano") as error:
        openlance.load(name)
    assert "\n" not in str(error.value)


def test_a_file_is_not_a_model(checkpoint):
    with pytest.raises(UserError, match="nor a folder"):
        openlance.load(str(checkpoint.folder / "model.safetensors"))


@pytest.mark.parametrize("file", ["llm_config.json", "vit_config.json", "vae_config.json", "lance_config.json"])
def test_a_folder_that_lacks_a_configuration_names_it(spoiled, file):
    (spoiled.folder / file).unlink()
    with pytest.raises(UserError, match=file):
        spoiled.load()


def test_a_folder_without_a_tokenizer_says_so(spoiled, checkpoint):
    (spoiled.folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        spoiled.load()
    assert spoiled.load(tokenizer=checkpoint.folder).tokenizer.ids("a ring")


@pytest.mark.parametrize("content", ["", "{", "[1]"])
def test_a_broken_configuration_is_one_sentence(spoiled, content):
    (spoiled.folder / "llm_config.json").write_text(content)
    with pytest.raises(UserError, match="llm_config.json") as error:
        spoiled.load()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "old, new", [('"num_attention_heads": 4', '"num_attention_heads": 3'), ("rms_norm_eps", "eps")]
)
def test_numbers_that_contradict_each_other_are_refused(spoiled, old, new):
    path = spoiled.folder / "llm_config.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match="does not fit together"):
        spoiled.load()
