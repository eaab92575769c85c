"""The rendered data set: the same pixels everywhere, balanced, no image in both sets."""

from __future__ import annotations

import hashlib

import numpy as np

from examples import shapes


def test_shapes_and_types() -> None:
    images, labels = shapes.render(37, seed=1)
    assert images.shape == (37, 3, 32, 32)
    assert images.dtype == np.float32
    assert labels.shape == (37,)
    assert labels.dtype == np.int64
    assert len(shapes.CLASSES) == 10


def test_the_seed_decides_every_pixel() -> None:
    first, again, other = (shapes.render(60, seed)[0] for seed in (5, 5, 6))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_pixels_are_those_of_the_machine_that_trained_the_models() -> None:
    images, labels = shapes.test_set(500)
    levels = np.round((images * shapes.STD + shapes.MEAN) * 255).astype(np.uint8)
    assert levels.min() == 0
    assert levels.max() == 255
    assert hashlib.sha256(levels.tobytes()).hexdigest()[:16] == "df0860092584abf9"
    assert hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:16] == "58485094bce25868"


def test_a_shorter_rendering_is_a_prefix() -> None:
    images, labels = shapes.test_set(600)
    fewer_images, fewer_labels = shapes.test_set(333)
    assert np.array_equal(images[:333], fewer_images)
    assert np.array_equal(labels[:333], fewer_labels)


def test_classes_are_balanced() -> None:
    labels = shapes.test_set()[1]
    assert np.array_equal(np.bincount(labels), np.full(10, 200))
    assert np.array_equal(np.sort(labels[:10]), np.arange(10))


def test_no_image_is_in_both_sets() -> None:
    train, test = shapes.train_set(2000)[0], shapes.test_set(2000)[0]
    seen = {image.tobytes() for image in train}
    assert len(seen) == len(train)
    assert seen.isdisjoint(image.tobytes() for image in test)
