"""The examples run, and do what they say."""

import importlib.util
import re
import struct
from pathlib import Path

import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name, *arguments, **constants):
    """With some of the module's constants changed."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module).update(constants)
    module.main(list(arguments))


def test_warm_up_and_cosine_learns(capsys, set_num_threads):
    set_num_threads(1)
    run("warm_up_and_cosine", "--steps", "60", "--meta-steps", "12", "--starts", "2")
    out = capsys.readouterr().out
    before, after = map(float, re.search(r"test loss before (\S+), after (\S+)", out).groups())
    assert after < 0.8 * before


def write_digits(folder, part, count, generator):
    """Ten patterns of 28x28 pixels, with noise, as MNIST's files."""
    patterns = torch.rand(10, 28, 28, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(10, (count,), generator=generator)
    images = (0.3 * patterns[labels] + 0.25 * torch.rand(count, 28, 28, generator=generator)).mul(255).to(torch.uint8)
    for name, tensor in (("images-idx3", images), ("labels-idx1", labels.to(torch.uint8))):
        head = struct.pack(f">BBBB{tensor.dim()}I", 0, 0, 8, tensor.dim(), *tensor.shape)
        (folder / f"{part}-{name}-ubyte").write_bytes(head + tensor.numpy().tobytes())


def test_hyper_cleaning_finds_changed_labels(tmp_path, capsys, set_num_threads):
    set_num_threads(1)
    generator = torch.Generator().manual_seed(1)
    write_digits(tmp_path, "train", 200, generator)
    write_digits(tmp_path, "t10k", 100, generator)
    short = ["--seeds", "1", "--hypergradients", "12", "--examples", "100", "--out", str(tmp_path / "out")]
    run("hyper_cleaning", "--data", str(tmp_path), *short, STEPS={"linear": 30}, STEPS_ANEW=20)
    out = capsys.readouterr().out
    f1 = {way: float(re.search(rf"^{way} +(\S+)", out, re.MULTILINE)[1]) for way in ("whole run, exact", "last 10 steps")}
    assert min(f1.values()) > 0.85  # 0.67 is what calling all labels wrong has
    assert len((tmp_path / "out" / "results.csv").read_text().splitlines()) == 1 + 6
    assert (tmp_path / "out" / "weights.png").stat().st_size > 1000
