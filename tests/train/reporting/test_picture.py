import nibabel
import numpy as np

from train.reporting.picture import overlay


def test_structures_are_drawn_in_their_colours(tmp_path):
    from matplotlib.image import imread

    from lorkd_monailabel.departments import structure

    image = np.random.default_rng(0).normal(40, 20, (20, 18, 16)).astype(np.float32)
    labels = np.zeros(image.shape, dtype=np.uint8)
    labels[4:16, 4:14, 4:12] = 1
    for name, array in (("image", image), ("labels", labels)):
        nibabel.save(nibabel.Nifti1Image(array, np.diag([-3.0, 3.0, 3.0, 1.0])), tmp_path / f"{name}.nii.gz")
    overlay(tmp_path / "image.nii.gz", tmp_path / "labels.nii.gz", {"liver": 1}, tmp_path / "out" / "picture.png")
    picture = imread(tmp_path / "out" / "picture.png")[..., :3]
    legend = np.array(structure("liver").color) / 255
    assert np.isclose(picture, legend, atol=0.01).all(axis=-1).sum() > 50
    assert (np.linalg.norm(picture - legend, axis=-1) < 0.5).mean() > 0.1
