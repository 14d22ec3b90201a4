"""The images of a table are found again, whichever split they were embedded from."""

from pathlib import Path

from openjepa.inference.embedding.embedding_run import embed_dataset
from openjepa.inference.embedding.table import open_table
from openjepa.inference.search.gallery import open_gallery
from openjepa.settings.inference import EmbedSettings
from openjepa.settings.sources import FolderSettings
from tests.helpers.feature_tables import save_encoder
from tests.helpers.images import shape_image


def test_every_embedded_image_is_found_again(tmp_path: Path) -> None:
    encoder, photos = save_encoder(tmp_path / "run"), tmp_path / "photos"
    names = ["train/a/0.png", "train/b/1.png", "val/a/2.png", "test/3.png"]  # the last has no label, so probes do not use it
    for number, name in enumerate(names):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        shape_image(number, 40).save(photos / name)
    data = FolderSettings(path=str(photos))
    embed_dataset(encoder, data, EmbedSettings(workers=0, device="cpu"), tmp_path / "all.npy")
    table = open_table(tmp_path / "all.npy")
    gallery = open_gallery(table)
    assert len({row.split for row in table.rows}) == 3
    found = sorted(gallery.read(row) for row in table.rows)
    assert found == sorted((photos / name).read_bytes() for name in names)
