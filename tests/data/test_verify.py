from ssl_ray.data.source import open_dataset
from ssl_ray.data.verify import verify
from tests.data.test_source import encoded


def test_every_image_is_decoded_and_broken_ones_are_named(tmp_path):
    import cv2
    import numpy as np

    for i in range(150):
        (tmp_path / f"{i:03d}.png").write_bytes(encoded(i, height=10, width=20 + i % 2))
    whole = encoded(0, height=60, width=60, suffix=".jpg")
    (tmp_path / "100.png").write_bytes(cv2.imencode(".png", np.zeros((5, 6), np.uint8))[1].tobytes())
    (tmp_path / "101.png").write_bytes(b"")
    (tmp_path / "102.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "103.png").write_text("no image at all")
    progress = []
    source = open_dataset(str(tmp_path)).train
    report = verify(source, lambda done, total: progress.append((done, total)), workers=3)
    assert report.checked == 150
    assert [(index, path) for index, path, _ in report.broken] == [
        (i, str(tmp_path / f"{i}.png")) for i in (101, 102, 103)
    ]
    assert all(reason for _, _, reason in report.broken)
    assert report.sizes == {(10, 20): 73, (10, 21): 73, (5, 6): 1}
    assert report.modes == {"RGB": 146, "L": 1}
    assert progress == [(64, 150), (128, 150), (150, 150)]


def test_the_embedded_images_are_whole():
    report = verify(open_dataset("fashion").val)
    assert report.checked == 3000
    assert report.broken == []
    assert report.sizes == {(28, 28): 3000}
    assert report.modes == {"L": 3000}
