"""The contact sheets show every floor class once, and say which one is missing."""

from pathlib import Path

import pytest
from PIL import Image

from finephys.data.clips import read_shard, write_shard
from finephys.gymnast.contact_sheet import ContactSheetConfig, main

CLIPS = Path("finephys/assets/clips")


def test_a_row_for_each_class(tmp_path):
    main(ContactSheetConfig(output=tmp_path))
    rows = {path.stem: Image.open(path).height // (128 + 18) for path in tmp_path.iterdir()}
    assert rows == {"FX-JUMP": 11, "FX-TURN": 7, "FX-SALTO": 17}
    assert all(Image.open(path).width == 10 * 128 for path in tmp_path.iterdir())


def test_a_missing_class_is_named(tmp_path):
    clips = [clip for clip in read_shard(CLIPS / "train-00000.parquet") if clip.label == 6]
    write_shard(clips, tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no train clip of class 7, switch leap with 1 turn"):
        main(ContactSheetConfig(output=tmp_path / "sheets", data=str(tmp_path)))
    assert not (tmp_path / "sheets").exists()
