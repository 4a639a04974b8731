"""results/where.py on features and networks of which it is known what their slots tell."""

import pytest
import torch
from conftest import blobs

from results import where


def test_the_share_of_the_slot_is_that_of_known_features():
    """z = a of the slot + b of the image and slot, with variances 3 and 1: three quarters."""
    torch.manual_seed(0)
    a, b = 3**0.5 * torch.randn(1, 8, 400), torch.randn(500, 8, 400)
    assert where.explained(a + b) == pytest.approx(75, abs=3)
    assert where.explained(b) == pytest.approx(100 / 500, rel=0.2)  # chance: one over the images
    assert where.explained(a.expand(3, -1, -1)) == pytest.approx(100)
    a[:, 0] = 0  # one channel without a slot, however large, and one that does not vary
    size = torch.tensor([100.0, 0, 1, 1, 1, 1, 1, 1]).view(8, 1)
    assert where.explained((a + b) * size) == pytest.approx(75 * 6 / 7, abs=3)


def test_rolled_images_keep_their_pixels_and_each_has_its_own_shift():
    x = torch.rand(1, 3, 29, 29).expand(50, -1, -1, -1)
    y = where.rolled(x, torch.Generator().manual_seed(0))
    assert torch.equal(y.flatten(1).sort(1).values, x.flatten(1).sort(1).values)
    assert len({image.numpy().tobytes() for image in y}) > 40
    spots = torch.zeros(2000, 1, 9, 9)
    spots[..., 4, 4] = 1  # in the middle of all; rolled, everywhere as often
    mean = where.rolled(spots, torch.Generator().manual_seed(0)).mean(0)
    assert mean.max() < 2.5 / 81 and mean.min() > 0.2 / 81


@pytest.mark.parametrize("border, least, most", [("circular", 0, 1), ("zeros", 5, 100)])
def test_a_network_knows_its_slots_by_its_border_alone(border, least, most):
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(1, 16, 5, padding=2, padding_mode=border, bias=False)
    x = 0.5 + blobs(500, 29, dtype=torch.float32)  # no black border of their own
    assert least <= where.share(conv, x) <= most
