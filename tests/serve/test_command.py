"""What the commands say before anything is loaded."""

import subprocess
import sys

import pytest

WITHOUT = "import sys; sys.modules[sys.argv.pop(1)] = None; from openlance.cli.main import main; sys.exit(main())"


@pytest.mark.parametrize("command, missing", [("studio", "gradio"), ("serve", "fastapi")])
def test_a_missing_package_is_named_with_its_extra(command, missing, tmp_path):
    line = [sys.executable, "-c", WITHOUT, missing, command, "--port", "0", "--folder", str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert f"package {missing}: run pip install 'openlance[{command}]'" in done.stderr
