"""Errors carry what is wrong, what was expected and a fix, and read as one sentence."""

import pickle

import pytest

from openlance.config import values
from openlance.errors import UserError

DATA = {"expected": "a multiple of 8", "fix": {"height": 8}}


@pytest.mark.parametrize(
    "error, said",
    [
        (UserError("height is 7", **DATA), "height is 7: expected a multiple of 8, such as height=8"),
        (UserError("height is 7", expected="a multiple of 8"), "height is 7: expected a multiple of 8"),
        (
            UserError("dtype 'half' is unknown", fix={"dtype": "float16"}),
            "dtype 'half' is unknown: use dtype='float16'",
        ),
        (UserError("there is no file x.png: check the path"), "there is no file x.png: check the path"),
    ],
)
def test_the_sentence(error, said):
    assert str(error) == said and isinstance(error, ValueError)
    assert error.param == next(iter(error.fix), None)


def test_an_error_comes_whole_from_another_process():
    error = pickle.loads(pickle.dumps(UserError("height is 7", **DATA)))
    assert (error.what, error.expected, error.fix, error.param) == (
        "height is 7",
        "a multiple of 8",
        {"height": 8},
        "height",
    )
    assert str(error) == "height is 7: expected a multiple of 8, such as height=8"


@pytest.mark.parametrize(
    "call, param",
    [
        (lambda: values.whole("height", 0), "height"),
        (lambda: values.whole("height", "tall"), "height"),
        (lambda: values.one_of("solver", "x", ["euler"]), "solver"),
        (lambda: values.no_others(["hight"], ["height"]), "hight"),
        (lambda: values.convert(tuple[float, float], 1, "interval"), "interval"),
    ],
)
def test_a_value_that_is_refused_is_named(call, param):
    with pytest.raises(UserError) as caught:
        call()
    assert caught.value.param == param and param in str(caught.value)
