"""Request tables: what they may hold, and one clear line for what they may not."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finephys.generation.table import TableRow, index_driving, read_driving_clip, read_table, recipe_table, staged_table


def test_csv_and_parquet_say_the_same(driving_data: Path, tmp_path: Path) -> None:
    driving = index_driving(str(driving_data))
    (tmp_path / "a.csv").write_text('clip,prompt,seed\nsway-1,"A red leotard, please.",3\nsway-0,,\n')
    table = pa.table({"clip": ["sway-1", "sway-0"], "prompt": ["A red leotard, please.", None], "seed": [3, None]})
    pq.write_table(table, tmp_path / "a.parquet")
    expected = [
        TableRow(clip="sway-1", prompt="A red leotard, please.", seed=3),
        TableRow(clip="sway-0", prompt="A gymnast sways, number 0.", seed=0),
    ]
    assert read_table(tmp_path / "a.csv", driving) == expected
    assert read_table(tmp_path / "a.parquet", driving) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clip,colour\nsway-1,red\n", "columns clip, colour; wanted clip"),
        ("prompt\nA gymnast jumps.\n", "columns prompt; wanted clip"),
        ("clip\nsway-1\nsway-9\n", "row 2: unknown clip 'sway-9'"),
        ("clip,seed\nsway-1,1\nsway-1,-1\n", "row 2: seed is -1"),
        ("clip,seed\nsway-1,often\n", "row 1: seed is 'often'"),
        ("clip\nsway-1\nsway-2\nsway-1\n", "row 3: the same as row 1"),
        ("clip\n", "has no rows"),
    ],
)
def test_bad_tables_are_named(driving_data: Path, tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_table(tmp_path / "a.csv", index_driving(str(driving_data)))


def test_bad_files_are_named(driving_data: Path, tmp_path: Path) -> None:
    driving = index_driving(str(driving_data))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_table(tmp_path / "a.csv", driving)
    (tmp_path / "a.txt").write_text("clip\nsway-1\n")
    with pytest.raises(ValueError, match=r"wanted \.parquet or \.csv"):
        read_table(tmp_path / "a.txt", driving)
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="cannot be read"):
        read_table(tmp_path / "a.parquet", driving)


def test_a_recipe_is_a_product_and_repeats_itself(driving_data: Path) -> None:
    driving = index_driving(str(driving_data))

    def rows(seed: int) -> list[TableRow]:
        return recipe_table(
            driving, classes=("run",), split="train", clips_per_class=2, looks_per_clip=3, seeds_per_look=2, seed=seed
        )

    assert len(rows(0)) == len(set(rows(0))) == 12
    assert rows(0) == rows(0)
    assert {row.clip for row in rows(0)} == {"sway-0", "sway-2"}
    assert {row.seed for row in rows(0)} == {0, 1}
    assert {row.prompt for row in rows(0)} != {row.prompt for row in rows(5)}
    with pytest.raises(ValueError, match="no train clip of class 'flight'"):
        recipe_table(
            driving, classes=("flight",), split="train", clips_per_class=1, looks_per_clip=1, seeds_per_look=1, seed=0
        )


def test_a_recipe_of_elements_is_a_product_that_grows_without_changing() -> None:
    def rows(performers: int = 2, cameras: int = 2, seed: int = 0) -> list[TableRow]:
        return staged_table(
            classes=("split jump", "10"), performers=performers, cameras=cameras, looks_per_clip=2, seeds_per_look=3,
            seed=seed,
        )  # fmt: skip

    assert len(rows()) == 2 * 2 * 2 * 2 * 3
    assert rows() == rows()
    assert set(rows()) < set(rows(performers=3)) < set(rows(performers=3, cameras=4))
    assert not set(rows()) & set(rows(seed=1))
    # One performer is one body, whatever she does.
    heights = {(row.performer, row.staging.height_m) for row in rows() if row.staging is not None}
    assert len(heights) == 2
    assert len(staged_table(classes=(), performers=1, cameras=1, looks_per_clip=1, seeds_per_look=1, seed=0)) == 35
    with pytest.raises(ValueError, match="flip"):
        staged_table(classes=("flip",), performers=1, cameras=1, looks_per_clip=1, seeds_per_look=1, seed=0)


def test_one_clip_is_read_from_its_shard(driving_data: Path) -> None:
    driving = index_driving(str(driving_data))
    assert driving.shard["sway-2"] != driving.shard["sway-3"]
    assert read_driving_clip(driving, "sway-3")["prompt"] == "A gymnast sways, number 3."
