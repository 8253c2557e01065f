"""normbook.figures.COLORS: methods that stand in one figure stay apart in every common colour-vision deficiency."""

import base64
import io
import itertools

import matplotlib.image
import numpy as np
import pytest

from normbook import chapters, claims, figures

# Machado, Oliveira & Fernandes 2009, severity 1.0; for linear RGB
SEEN = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    "all cones": np.eye(3).tolist(),
}
# Ottosson 2020: linear RGB to cone responses, their cube roots to OKLab
CONES = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
         [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
OKLAB = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
         [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
APART = 0.05  # in OKLab; 0.02 is about the smallest difference that is seen
# the grey of the arm `noisy`, which one chapter draws, and black: letters and axes have such pixels in every figure
LETTERS = {figures.COLORS["noisy"], figures.COLORS["theory"]}
NOISY = "01_internal_covariate_shift"


def oklab(color, kind, dark=False):
    """An sRGB colour (#rrggbb) as it is seen, in OKLab; in the dark the theme filters pictures."""
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    if dark:  # filter: brightness(.8) contrast(1.2)
        rgb = np.clip((0.8 * rgb - 0.5) * 1.2 + 0.5, 0, 1)
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return OKLAB @ np.cbrt(CONES @ np.clip(SEEN[kind] @ linear, 0, 1))


def distance(one, other, kind, dark=False):
    return float(np.linalg.norm(oklab(one, kind, dark) - oklab(other, kind, dark)))


def drawn(picture):
    """The house's colours that a PNG (base64) holds, at least 30 pixels of each."""
    pixels = np.round(255 * matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)))[..., :3]).astype(int)
    codes = pixels.reshape(-1, 3) @ [65536, 256, 1]
    return {color for color in figures.COLORS.values() if (codes == int(color[1:], 16)).sum() >= 30}


@pytest.fixture(scope="module")
def together():
    """Pairs of colours that stand in one figure, and the figures (chapter, number)."""
    found = {}
    for slug, path in claims.chapters().items():
        outputs = [o for cell in chapters.read(path).notebook.cells for o in cell.get("outputs", [])]
        pictures = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
        for number, picture in enumerate(pictures, 1):
            methods = drawn(picture) - LETTERS | ({figures.COLORS["noisy"]} if slug == NOISY else set())
            for pair in itertools.combinations(sorted(methods), 2):
                found.setdefault(pair, []).append(f"{slug[:2]}, figure {number}")
    return found


def test_methods_of_one_figure_stay_apart(together):
    assert len(together) > 40
    near = [
        f"{one} and {other}, {kind}, {'dark' if dark else 'light'}: {found:.3f} ({places[0]})"
        for (one, other), places in together.items()
        for kind, dark in itertools.product(SEEN, (False, True))
        if (found := distance(one, other, kind, dark)) < APART
    ]
    assert near == []


def test_the_check_can_fail_and_the_simulation_does_what_it_should():
    assert distance("#CC79A7", "#999999", "all cones") > 0.1 > APART > distance("#CC79A7", "#999999", "deuteranopia")
    for kind, matrix in SEEN.items():
        assert np.sum(matrix, axis=1) == pytest.approx(1, abs=1e-5)  # greys stay grey
        assert distance("#000000", "#FFFFFF", kind) == pytest.approx(1, abs=1e-3)
        assert oklab("#808080", kind)[1:] == pytest.approx(0, abs=1e-3)


def test_colours_are_found_in_a_picture():
    buffer = io.BytesIO()
    picture = np.ones((20, 20, 3))
    picture[:5, :, :] = np.array([0x00, 0x72, 0xB2]) / 255
    picture[5, :5, :] = np.array([0xD5, 0x5E, 0x00]) / 255  # too few
    matplotlib.image.imsave(buffer, picture, format="png")
    assert drawn(base64.b64encode(buffer.getvalue()).decode()) == {figures.COLORS["batch_norm"]}
