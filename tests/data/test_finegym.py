"""The official files read as they are meant: times relative to the event, ids with underscores, leaks found."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from finephys.data.finegym import Element, find_leak, read_elements, read_poses
from tests.data.finegym_copy import ELEMENTS, UNANNOTATED, VIDEOS, clip_id, pyskl, write_copy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_copy(tmp_path_factory.mktemp("finegym"))


def read(files: dict[str, Path], **changed: Path) -> tuple[list[Element], list[dict[str, str]]]:
    files = files | changed
    return read_elements(files["annotation"], files["categories"], {"train": files["train"], "val": files["val"]})


def test_floor_elements_with_their_times(files: dict[str, Path]) -> None:
    elements, failures = read(files)
    assert [one.clip_id for one in elements] == sorted(clip_id(number) for number in (0, 1, 2, 4, 5, 6))
    by_id = {one.clip_id: one for one in elements}
    for number in (0, 1, 4):
        video, _, _, label, split, event_s, start_s, end_s = ELEMENTS[number]
        one = by_id[clip_id(number)]
        assert (one.video_id, one.label, one.official_split) == (video, label, split)
        assert (one.start_s, one.end_s) == (event_s + start_s, event_s + end_s)
    assert failures == [
        {"clip_id": UNANNOTATED, "error": f"event E_000050_000059 of video {VIDEOS[1]} is not annotated"}
    ]


def test_the_official_splits_leak_and_ours_cannot(files: dict[str, Path]) -> None:
    elements, _ = read(files)
    leak = find_leak(elements)
    assert (leak.num_videos, leak.num_shared_videos) == (3, 2)
    assert (leak.num_events, leak.num_shared_events) == (3, 2)
    for video in VIDEOS:
        assert len({one.split_by_video for one in elements if one.video_id == video}) == 1
    # On many videos the shares come out, and the same ones everywhere: pinned, as a change would move the test set.
    many = [
        Element(clip_id="", video_id=f"video{n:06}", label=6, official_split="train", start_s=0, end_s=1)
        for n in range(2000)
    ]
    splits = [one.split_by_video for one in many]
    assert [splits.count(split) for split in ("train", "val", "test")] == pytest.approx([1600, 200, 200], abs=60)
    assert splits[:8] == ["train", "test", "train", "train", "train", "train", "train", "train"]


def test_prompts_are_sentences_of_the_class(files: dict[str, Path]) -> None:
    elements, _ = read(files)
    for one in elements:
        assert one.prompt.startswith("A gymnast ")
        assert one.prompt.endswith(".")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("annotation", "{", "annotation .* is no JSON"),
        ("annotation", "[]", "is not FineGym's"),
        ("categories", "6: switch leap\n", "line 1: '6: switch leap' is no category"),
        ("categories", "Clabel: 6; set: 1; Glabel: 2; (BB) leap\n", r"class 6 is '\(BB\) leap', wanted gym99's \(FX\)"),
        ("train", "short_E_000000_000009_A_0000_0001 6\n", "line 1: .* is no split line"),
        ("train", f"\n{clip_id(0)} 6\n{clip_id(0)} 6\n", "line 3: clip .* is in two splits or twice"),
    ],
)
def test_other_files_are_refused_with_their_line(
    files: dict[str, Path], tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / "changed").write_text(text)
    with pytest.raises(ValueError, match=message):
        read(files, **{name: tmp_path / "changed"})
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read(files, **{name: tmp_path / "nowhere"})


# --- PYSKL's poses


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_poses_of_the_surest_person(tmp_path: Path, protocol: int) -> None:
    data = pyskl()
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps(data, protocol))
    pose = read_poses(tmp_path / "poses.pkl")[clip_id(0)]
    joints_px, confidence = pose.at(20, 50, 100)
    assert joints_px.shape == (20, 17, 2)
    # H36M's left knee (5) is COCO's (13); the picture is half as large.
    keypoint = data["annotations"][0]["keypoint"][1, :, 13].astype(np.float32)
    assert joints_px[[0, -1], 5] == pytest.approx(keypoint[[0, -1]] / 2, abs=1e-2)
    assert confidence[0, 5] == pytest.approx(0.9, abs=1e-2)


def test_numpy_1_names_load_too(tmp_path: Path) -> None:
    data = pickle.dumps(pyskl(), 2)
    assert b"numpy._core.multiarray" in data
    (tmp_path / "poses.pkl").write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert clip_id(0) in read_poses(tmp_path / "poses.pkl")


class Malicious:
    def __reduce__(self) -> tuple:
        return (eval, ("open('pwned', 'w')",))


@pytest.mark.parametrize("content", [Malicious(), {"annotations": [Malicious()]}, np.array([Malicious()], object)])
def test_a_pickle_that_asks_for_more_is_refused(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"asks for builtins\.eval"):
        read_poses(tmp_path / "poses.pkl")
    assert not (tmp_path / "pwned").exists()


def test_other_pickles_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"text", pickle.dumps([1]), pickle.dumps({"annotations": [{}]})):
        (tmp_path / "poses.pkl").write_bytes(content)
        with pytest.raises(ValueError, match="no PYSKL annotations"):
            read_poses(tmp_path / "poses.pkl")
