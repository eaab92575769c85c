"""The text: the standard library's own, split by file, the same on every call."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest

from examples import text


def test_the_files_are_the_library_and_no_file_is_on_both_sides() -> None:
    train, validation = text.files(validation=False), text.files(validation=True)
    assert set(train).isdisjoint(validation)
    assert len(train) > 200
    assert len(train) // 20 < len(validation) < len(train) // 5
    library = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(library).as_posix() for path in (*train, *validation)]
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not [name for name in names if name.startswith(("test/", "site-packages/", "_sysconf"))]
    assert train == sorted(train, key=lambda path: path.relative_to(library).as_posix())


def test_there_is_enough_of_it_and_all_of_it_is_in_the_vocabulary() -> None:
    train, validation = text.train_set(), text.validation_set()
    assert len(train) > 5_000_000
    assert len(validation) > 300_000
    assert (train.min(), train.max()) == (0, len(text.VOCABULARY) - 1)
    assert np.array_equal(validation, text.validation_set())


def test_encoding_keeps_printable_ascii_and_newlines_only() -> None:
    assert len(text.VOCABULARY) == len(set(text.VOCABULARY)) == 96
    assert text.decode(text.encode("def f(x):\r\n\treturn 'é~ '\n")) == "def f(x):\nreturn '~ '\n"
    assert text.encode("\n ~").tolist() == [0, 1, 95]


def test_windows_are_pieces_and_what_follows() -> None:
    ids = np.arange(1000)
    inputs, targets = text.windows(ids, count=7, context=20)
    assert inputs.shape == targets.shape == (7, 20)
    assert np.array_equal(targets, inputs + 1)
    assert (inputs[0, 0], targets[-1, -1]) == (0, 999)


def test_perplexity_of_a_guess_is_the_size_of_the_vocabulary() -> None:
    def guess(ids: text.Ids) -> text.Logits:
        return np.zeros((*ids.shape, 96), np.float32)

    assert text.perplexity(guess, count=60, context=9) == pytest.approx(96)


def test_perplexity_of_a_bigram_table_is_that_of_its_probabilities() -> None:
    counts = np.ones((96, 96))
    ids = text.validation_set()
    np.add.at(counts, (ids[:-1], ids[1:]), 1)
    logits = np.log(counts).astype(np.float32)  # not normalised: perplexity has to do that
    inputs, targets = text.windows(ids, count=60)
    chosen = (counts / counts.sum(1, keepdims=True))[inputs, targets]
    expected = np.exp(-np.log(chosen).mean())
    assert text.perplexity(lambda rows: logits[rows], count=60) == pytest.approx(expected)
    assert 5 < expected < 20
