"""The command line, called in this process, and a tiny MNIST. One thread: waiting ones cost more than work this small."""

from __future__ import annotations

import pytest
from dataset_files import write_mnist

from reversible_hypergrad.cli import main


@pytest.fixture(autouse=True)
def one_thread(set_num_threads):
    set_num_threads(1)


@pytest.fixture
def command(capsys):
    """Runs a command; returns its exit status, stdout and stderr."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def mnist(tmp_path):
    directory = tmp_path / "mnist"
    directory.mkdir()
    write_mnist(directory)
    return directory
