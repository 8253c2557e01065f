"""normbook.data: the split, the standardization, and the order and augmentation in which a run sees its images."""

import numpy as np
import pytest
import torch

from normbook import data
from normbook.data import Split, batches, dataset
from normbook.errors import InputError


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def numbered(n, size=4):
    """Images whose pixels all hold the image's number plus 1, and labels that are the numbers."""
    labels = torch.arange(n)
    return Split((labels + 1.0).view(n, 1, 1, 1).expand(n, 1, size, size).contiguous(), labels)


def pictured(n, size=4):
    """Images with a different number, none of them zero, in every pixel."""
    return Split(torch.arange(1.0, n * size * size + 1).view(n, 1, size, size), torch.arange(n))


def labels_of(epoch):
    return torch.cat([labels for _, labels in epoch])


def test_digits_have_the_documented_shapes_and_types():
    digits = data.load("digits")
    assert (digits.name, digits.classes, digits.shape, digits.pad, digits.flip) == ("digits", 10, (1, 8, 8), 1, False)
    for split, n in ((digits.train, 1000), (digits.validation, 200), (digits.test, 597)):
        assert len(split) == n and split.images.shape == (n, 1, 8, 8) and split.labels.shape == (n,)
        assert split.images.dtype == torch.float32 and split.labels.dtype == torch.int64
        assert split.images.device.type == split.labels.device.type == "cpu"


def test_standardization_uses_the_training_images_only():
    digits = data.load("digits")
    images = digits.train.images.double()
    assert abs(float(images.mean())) < 1e-6 and abs(float(images.std(correction=0)) - 1) < 1e-6
    for other in (digits.validation, digits.test):
        assert abs(float(other.images.double().mean())) > 1e-4  # would be 0 if standardized by themselves
    everything = torch.cat([s.images for s in (digits.train, digits.validation, digits.test)]).double()
    assert abs(float(everything.mean())) > 1e-4


def test_the_three_parts_hold_each_raw_image_exactly_once():
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    digits = data.load("digits")
    parts = (digits.train, digits.validation, digits.test)
    pixels = torch.cat([s.images for s in parts]).flatten(1).double()
    scale = (raw.max() - raw.min()) / float(pixels.max() - pixels.min())
    restored = ((pixels - pixels.min()) * scale).round().long().numpy()
    ours = np.column_stack([restored, torch.cat([s.labels for s in parts]).numpy()])
    theirs = np.column_stack([raw, labels]).astype(int)
    assert sorted(ours.tolist()) == sorted(theirs.tolist())


def test_every_part_has_the_classes_in_the_same_proportion():
    digits = data.load("digits")
    shares = [torch.bincount(s.labels, minlength=10) / len(s) for s in (digits.train, digits.validation, digits.test)]
    assert all(float((share - shares[0]).abs().max()) < 0.006 for share in shares)


def test_the_content_hash_is_pinned():
    assert data.load("digits").content_hash == "c5c77c19b8130a67"


def assembled(pixels, labels, parts):
    return dataset._assemble("x", pixels, labels, parts, 2, "cpu", 0, False).content_hash


def test_the_content_hash_covers_pixels_labels_and_split():
    pixels, labels = np.arange(4 * 4, dtype=np.uint8).reshape(4, 1, 2, 2), np.array([0, 1, 0, 1])
    parts = (np.array([0, 1]), np.array([2]), np.array([3]))
    base = assembled(pixels, labels, parts)
    assert base == assembled(pixels.copy(), labels.astype(np.int32), parts)
    others = [
        assembled(pixels + np.uint8(1), labels, parts),
        assembled(pixels, 1 - labels, parts),
        assembled(pixels, labels, (parts[1], parts[0], parts[2])),
        assembled(pixels.reshape(4, 1, 1, 4), labels, parts),
    ]
    assert len({base, *others}) == 5


def test_an_unknown_data_set_is_bad_input_and_the_nearest_is_named():
    with pytest.raises(InputError, match="unknown data set 'digit'; did you mean 'digits'"):
        data.load("digit")


def test_batches_have_one_column_a_run_and_leave_out_what_does_not_fill_a_batch():
    epoch = list(batches(numbered(11), 4, generators(1, 2, 3)))
    assert len(epoch) == 2
    for images, labels in epoch:
        assert images.shape == (4, 3, 1, 4, 4) and labels.shape == (4, 3)


def test_every_image_comes_at_most_once_an_epoch_and_others_are_left_out_in_the_next():
    order = generators(1)
    seen = [set(labels_of(batches(numbered(11), 4, order))[:, 0].tolist()) for _ in range(20)]
    assert all(len(s) == 8 for s in seen)
    assert set().union(*seen) == set(range(11))
    assert len(labels_of(batches(numbered(12), 4, order)).unique()) == 12


def test_orders_differ_between_runs_and_between_epochs():
    order = generators(1, 2)
    first, second = labels_of(batches(numbered(40), 8, order)), labels_of(batches(numbered(40), 8, order))
    assert not torch.equal(first[:, 0], first[:, 1])
    assert not torch.equal(first, second)
    assert not torch.equal(first[:, 0], torch.arange(40))


def test_orders_are_reproducible_and_a_run_has_the_same_order_alone_and_beside_others():
    together = labels_of(batches(numbered(40), 8, generators(1, 2)))
    assert torch.equal(together, labels_of(batches(numbered(40), 8, generators(1, 2))))
    for m, seed in enumerate((1, 2)):
        assert torch.equal(together[:, [m]], labels_of(batches(numbered(40), 8, generators(seed))))


def test_labels_stay_with_their_images_with_and_without_augmentation():
    for augmentation in (None, generators(5, 6)):
        for images, labels in batches(numbered(40), 8, generators(1, 2), augmentation, pad=1, flip=True):
            assert torch.equal(images.amax((2, 3, 4)), labels + 1.0)


def test_augmentation_does_not_change_the_order():
    plain = labels_of(batches(numbered(40), 8, generators(1, 2)))
    augmented = labels_of(batches(numbered(40), 8, generators(1, 2), generators(5, 6), pad=1, flip=True))
    assert torch.equal(plain, augmented)


def variants(image, pad, flip):
    """What augmentation may make of one image [c, h, w]: position by (row shift, column shift, mirrored)."""
    height, width = image.shape[1:]
    found = {}
    for mirrored in (False, True) if flip else (False,):
        padded = torch.nn.functional.pad(image, (pad, pad, pad, pad))
        for row in range(2 * pad + 1):
            for column in range(2 * pad + 1):
                crop = padded[:, row : row + height, column : column + width]
                crop = crop.flip(2) if mirrored else crop
                found[tuple(crop.flatten().tolist())] = (row, column, mirrored)
    return found


@pytest.mark.parametrize("pad, flip, kinds", [(1, False, 9), (1, True, 18), (2, False, 25), (0, True, 2)])
def test_augmentation_shifts_within_the_padding_and_mirrors_only_when_asked(pad, flip, kinds):
    split = pictured(60)
    order, augmentation, drawn = generators(1), generators(2), []
    for _ in range(5):
        for images, labels in batches(split, 10, order, augmentation, pad, flip):
            for image, label in zip(images[:, 0], labels[:, 0], strict=True):
                allowed = variants(split.images[label], pad, flip)
                drawn.append(allowed[tuple(image.flatten().tolist())])
    assert len(set(drawn)) == kinds  # all of them are drawn
    counts = np.unique(drawn, axis=0, return_counts=True)[1]
    assert counts.max() < 2.6 * len(drawn) / kinds  # and none is preferred


def test_augmentation_moves_and_mirrors_all_channels_together():
    split = Split(torch.arange(1.0, 97).view(2, 3, 4, 4), torch.arange(2))
    for images, labels in batches(split, 2, generators(1), generators(4), pad=1, flip=True):
        for image, label in zip(images[:, 0], labels[:, 0], strict=True):
            assert tuple(image.flatten().tolist()) in variants(split.images[label], 1, True)


def test_augmentation_differs_between_runs_and_epochs_and_is_reproducible():
    def draws(*seeds):
        augmentation = generators(*seeds)
        same_order = [generators(1, 1), generators(1, 1)]
        epochs = [list(batches(pictured(40), 8, order, augmentation, pad=1)) for order in same_order]
        return [torch.cat([images for images, _ in epoch]) for epoch in epochs]

    first, second = draws(2, 3)
    assert not torch.equal(first[:, 0], first[:, 1])
    assert not torch.equal(first, second)
    assert torch.equal(first, draws(2, 3)[0])


def test_batches_are_drawn_on_the_generators_device_without_touching_the_global_stream():
    state = torch.get_rng_state()
    for images, labels in batches(numbered(8), 4, generators(1), generators(2), pad=1, flip=True):
        assert images.device.type == labels.device.type == "cpu"
    assert torch.equal(state, torch.get_rng_state())


def test_noisy_labels_are_drawn_uniformly_over_all_classes():
    (drawn,) = data.relabel(torch.zeros(2000, dtype=torch.int64), 10, 1.0, [3]).T
    counts = torch.bincount(drawn, minlength=10)
    assert len(counts) == 10 and 140 < int(counts.min()) and int(counts.max()) < 260  # 200 each, four deviations
