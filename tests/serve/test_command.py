"""What the commands say before anything is loaded."""

import sys

import pytest

from openlance.cli.main import main


@pytest.mark.parametrize("command, missing, extra", [("studio", "gradio", "studio"), ("serve", "fastapi", "serve")])
def test_a_missing_package_is_named_with_its_extra(command, missing, extra, monkeypatch, capsys, tmp_path):
    for name in [name for name in sys.modules if name.startswith("openlance.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr(sys, "argv", ["openlance", command, "--port", "0", "--folder", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2 and f"package {missing}: run pip install 'openlance[{extra}]'" in said
