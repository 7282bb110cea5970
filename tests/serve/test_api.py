"""What clients get: the API as OpenAI's clients use it, and every refusal."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from finephys.data.uploads import decode_upload, probe_upload
from finephys.data.video import decode_video
from serve.dispatch import batches
from serve.settings import TOKENS_FILE_VARIABLE, TOKENS_VARIABLE, Settings, Tokens, refuse_open_address
from tests.serve.conftest import QUICK, TOKENS, Service

ADA = {"Authorization": f"Bearer {TOKENS['ada']}"}
BOB = {"Authorization": f"Bearer {TOKENS['bob']}"}


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    with TestClient(service.api, headers=ADA) as client:
        yield client


def _wait(client: TestClient, video_id: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        video: dict[str, Any] = client.get(f"/v1/videos/{video_id}").json()
        assert (video["progress"] == 100) == (video["status"] == "completed")
        if video["status"] in ("completed", "failed"):
            return video
        time.sleep(0.05)
    raise AssertionError(f"{video_id} did not end")


def test_a_clip_from_order_to_deletion(client: TestClient, service: Service) -> None:
    created = client.post("/v1/videos", json={**QUICK, "prompt": "A gymnast leaps.", "size": "64x64"})
    assert created.status_code == 200, created.text
    assert created.json()["status"] == "queued"
    assert created.json()["class"] == "switch leap"
    video = _wait(client, created.json()["id"])
    assert video["status"] == "completed", video
    content = client.get(f"/v1/videos/{video['id']}/content")
    assert content.headers["content-type"] == "video/mp4"
    assert decode_video(content.content).frames_THWC.shape == (2, 64, 64, 3)
    assert [one["id"] for one in client.get("/v1/videos").json()["data"]] == [video["id"]]
    # What is Ada's is nobody else's.
    assert client.get("/v1/videos", headers=BOB).json()["data"] == []
    for path in ("", "/content"):
        assert client.get(f"/v1/videos/{video['id']}{path}", headers=BOB).status_code == 404
    assert client.delete(f"/v1/videos/{video['id']}", headers=BOB).status_code == 404
    assert client.delete(f"/v1/videos/{video['id']}").json()["deleted"]
    assert client.get(f"/v1/videos/{video['id']}").status_code == 404
    assert client.get("/readyz").status_code == 200
    text = client.get("/metrics").text
    assert "finephys_clips_total 1.0" in text
    assert 'finephys_hop_seconds_count{hop="unet"} 1.0' in text


def test_what_waits_behind_others_is_to_be_asked_for_less_often(client: TestClient, service: Service) -> None:
    service.is_paused = True
    ids = [client.post("/v1/videos", json={**QUICK, "seed": seed}).json()["id"] for seed in range(4)]

    def waits_ms() -> list[str | None]:
        return [client.get(f"/v1/videos/{one}").headers.get("openai-poll-after-ms") for one in ids]

    # One is in the worker's hands, the next lies there. The others wait for one and for two that take two seconds, as
    # is assumed before the first was seen.
    end = time.monotonic() + 10
    while waits_ms() != ["1000", "1000", "1000", "2000"]:
        assert time.monotonic() < end, waits_ms()
        time.sleep(0.05)
    service.is_paused = False
    for one in ids:
        assert _wait(client, one)["status"] == "completed"
    assert waits_ms() == [None] * 4


def test_a_key_gives_one_job_and_equal_requests_equal_clips(client: TestClient, service: Service) -> None:
    service.is_paused = True
    first = client.post("/v1/videos", json=QUICK, headers={"Idempotency-Key": "k"}).json()
    again = client.post("/v1/videos", json=QUICK, headers={"Idempotency-Key": "k"}).json()
    assert first["id"] == again["id"]
    other = client.post("/v1/videos", json={**QUICK, "seed": 1}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422
    twin = client.post("/v1/videos", json=QUICK).json()
    differs = client.post("/v1/videos", json={**QUICK, "seed": 1}).json()
    # All three are of one motion: one batch.
    (batch,) = batches(service.journal.waiting()[0], 4)
    assert [job_id for job_id, _ in batch] == [first["id"], twin["id"], differs["id"]]
    # On a CPU each is generated alone nevertheless, which is faster, and equal to the bit.
    service.is_paused = False
    for video in (first, twin, differs):
        assert _wait(client, video["id"])["status"] == "completed"
    videos = [client.get(f"/v1/videos/{one['id']}/content").content for one in (first, twin, differs)]
    assert videos[0] == videos[1] != videos[2]


def test_a_batch_is_generated_together(client: TestClient, service: Service) -> None:
    service.is_paused = True
    ids = [client.post("/v1/videos", json={**QUICK, "seed": seed}).json()["id"] for seed in (0, 0, 1)]
    service.run([(one, 1) for one in ids])
    assert [client.get(f"/v1/videos/{one}").json()["status"] for one in ids] == ["completed"] * 3
    videos = [decode_video(service.journal.video(one)).frames_THWC.astype(int) for one in ids]
    assert abs(videos[0] - videos[1]).mean() < 1 < abs(videos[0] - videos[2]).mean()
    assert 'finephys_batch_size_bucket{le="2.0"} 0.0' in client.get("/metrics").text


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": "sora-2"}, "model"), ({"class": "cartwheel"}, "cartwheel"), ({"class": "41"}, "41"),
        ({"size": "63x64"}, "size"), ({"size": "9999x9999"}, "size"), ({"num_frames": 1}, "num_frames"),
        ({"num_frames": 10**9}, "num_frames"), ({"num_inference_steps": 51}, "num_inference_steps"),
        ({"guidance_scale": "NaN"}, "guidance_scale"), ({"seed": -1}, "seed"), ({"seed": True}, "seed"),
        ({"prompt": "x" * 1001}, "prompt"), ({"seconds": "0.1"}, "seconds"), ({"body_height_m": 2}, "body_height_m"),
        ({"video": "/etc/passwd"}, "video"), ({"input_reference": {"image_url": "http://a"}}, "input_reference"),
        ({"reference": "first"}, "reference"), ({"prompt": "\ud800"}, "JSON"),
    ],
)  # fmt: skip
def test_the_impossible_is_refused_by_name(
    client: TestClient, service: Service, change: dict[str, Any], param: str
) -> None:
    import json

    refused = client.post("/v1/videos", content=json.dumps({**QUICK, **change}).encode())
    assert refused.status_code == 422
    assert param in refused.json()["error"]["message"]
    assert service.journal.open_ids() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[" * 60000, b'{"guidance_scale": NaN}', b"\xff"])
def test_what_is_no_request_is_refused(client: TestClient, body: bytes) -> None:
    assert client.post("/v1/videos", content=body).status_code == 422


def test_doors_limits(client: TestClient, service: Service) -> None:
    assert client.post("/v1/videos", content=b" " * 70000).status_code == 413
    too_large = {"input_reference": ("a.mp4", b"x" * (2**20 + 70000), "video/mp4")}
    assert client.post("/v1/videos", data={"prompt": "a"}, files=too_large).status_code == 413
    service.is_paused = True
    for _ in range(8):
        assert client.post("/v1/videos", json=QUICK).status_code == 200
    full = client.post("/v1/videos", json=QUICK)
    assert full.status_code == 429
    assert int(full.headers["retry-after"]) > 0
    for number in range(5):
        answer = client.post("/v1/videos", json=QUICK, headers=BOB)
        assert answer.status_code == (200 if number < 4 else 429)


def test_a_client_that_asks_too_often_is_told_to_wait(settings: Settings) -> None:
    service = Service(settings.model_copy(update={"max_requests_per_minute": 5}), Tokens(TOKENS))
    with TestClient(service.api, headers=ADA) as client:
        answers = [client.get("/v1/models") for _ in range(6)]
        assert [answer.status_code for answer in answers] == [200] * 5 + [429]
        assert 1 <= int(answers[-1].headers["retry-after"]) <= 13
        # Bob's allowance is his own.
        assert client.get("/v1/models", headers=BOB).status_code == 200


@pytest.mark.parametrize(("header", "status"), [({"Authorization": ""}, 401), ({"Authorization": "Bearer x"}, 403)])
def test_tokens(client: TestClient, header: dict[str, str], status: int) -> None:
    for path in ("/v1/videos", "/v1/models", "/v1/skeleton?class=10"):
        assert client.get(path, headers=header).status_code == status
    assert client.post("/v1/videos", json=QUICK, headers=header).status_code == status
    assert client.get("/healthz", headers=header).status_code == 200


def test_an_uploaded_video_must_be_one(client: TestClient, driving_video: bytes) -> None:
    def post(upload: bytes, **fields: str) -> Any:
        return client.post("/v1/videos", data={"prompt": "a", **fields}, files={"input_reference": ("v", upload)})

    # FFmpeg would open what these name.
    for playlist in (b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n", b"ffconcat version 1.0"):
        assert "neither mp4" in post(playlist).json()["error"]["message"]
    assert post(b"\0\0\0\x18ftypmp42" + b"<MPD" * 9).status_code == 422
    # The tiny pipeline has no lifter.
    assert "no driving video" in post(driving_video).json()["error"]["message"]
    # A text is no file.
    assert client.post("/v1/videos", data={"input_reference": "/etc/passwd"}).status_code == 422
    assert probe_upload(driving_video, max_duration_s=3).duration_s == pytest.approx(1, abs=0.1)
    assert len(decode_upload(driving_video, max_duration_s=3, seconds=0.5).frames_THWC) in (6, 7)
    with pytest.raises(ValueError, match=r"at most 0\.5 s"):
        probe_upload(driving_video, max_duration_s=0.5)


def test_the_page_and_its_skeleton(client: TestClient) -> None:
    page = client.get("/")
    assert "script-src 'sha256-" in page.headers["content-security-policy"]
    assert "innerHTML" not in page.text
    assert len(client.get("/v1/elements").json()["data"]) == 35
    skeleton = client.get("/v1/skeleton?class=12&body_height_m=1.4").json()
    assert len(skeleton["joints"][0]) == 17
    assert all(0 <= side <= 1 for frame in skeleton["joints"] for joint in frame for side in joint)
    assert client.get("/v1/skeleton?class=99").status_code == 422


def test_nobody_serves_the_world_by_mistake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody = Tokens({})
    refuse_open_address(Settings(), nobody, "127.0.0.1")
    refuse_open_address(Settings(), Tokens(TOKENS), "0.0.0.0")
    refuse_open_address(Settings(open_to_anybody=True), nobody, "0.0.0.0")
    with pytest.raises(ValueError, match="knows no tokens"):
        refuse_open_address(Settings(), nobody, "0.0.0.0")
    monkeypatch.setenv(TOKENS_VARIABLE, "ada:0123456789abcdef")
    assert Tokens.from_environment().client_of("0123456789abcdef") == "ada"
    (tmp_path / "tokens").write_text("# of 2026\nbob: fedcba9876543210\n")
    monkeypatch.setenv(TOKENS_FILE_VARIABLE, str(tmp_path / "tokens"))
    assert Tokens.from_environment().client_of("fedcba9876543210") == "bob"
    monkeypatch.setenv(TOKENS_VARIABLE, "ada:short")
    with pytest.raises(ValueError, match="16 characters") as raised:
        Tokens.from_environment()
    assert "short" not in str(raised.value)
