"""The examples run, and do what they say."""

import importlib.util
import re
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *arguments):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(list(arguments))


def test_warm_up_and_cosine_learns(capsys, set_num_threads):
    set_num_threads(1)
    run("warm_up_and_cosine", "--steps", "60", "--meta-steps", "12", "--starts", "2")
    out = capsys.readouterr().out
    before, after = map(float, re.search(r"test loss before (\S+), after (\S+)", out).groups())
    assert after < 0.8 * before
