"""The official client of OpenAI's videos works against this service by a change of its base URL."""

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from finephys.data.video import decode_video
from tests.serve.conftest import QUICK, TOKENS, Service, served

# Its methods are marked as deprecated since their vendor closed its own service.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def url(service: Service) -> Iterator[str]:
    with served(service) as url:
        yield url


@pytest.fixture
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=TOKENS["ada"], max_retries=0)


def test_a_video_from_creation_to_deletion(client: openai.OpenAI, tmp_path: Path) -> None:
    created = client.videos.create(
        prompt="A gymnast in a red leotard does a split jump.", model="finephys", seconds="4", size="64x64",
        extra_body={"class": "split jump", "num_frames": 2, "num_inference_steps": 2, "seed": 3},
    )  # fmt: skip
    assert created.status == "queued"
    assert created.progress == 0
    assert client.videos.retrieve(created.id).id == created.id
    video = client.videos.poll(created.id)
    assert (video.status, video.progress, video.size, video.error) == ("completed", 100, "64x64", None)
    assert video.completed_at is not None
    assert video.completed_at >= video.created_at
    assert float(video.seconds) <= 4
    path = tmp_path / "video.mp4"
    client.videos.download_content(created.id).write_to_file(path)
    assert decode_video(path.read_bytes()).frames_THWC.shape == (2, 64, 64, 3)
    # Three more, listed by pages.
    more = [
        client.videos.create(prompt="A gymnast jumps.", extra_body={**QUICK, "motion": motion}).id
        for motion in range(3)
    ]
    assert [one.id for one in client.videos.list(limit=2)] == [*more[::-1], created.id]
    assert [one.id for one in client.videos.list(limit=3, order="asc")] == [created.id, *more]
    assert client.videos.delete(created.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(created.id)
    assert client.videos.create_and_poll(prompt="A gymnast jumps.", extra_body=QUICK).status == "completed"
    assert [model.id for model in client.models.list()] == ["finephys"]


def test_refusals_are_the_clients_own_errors(client: openai.OpenAI, url: str, driving_video: bytes) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.videos.create(prompt="A gymnast jumps.", model="sora-2")
    assert refused.value.code == "invalid"
    assert "finephys" in refused.value.message
    # The upload arrives; the tiny pipeline cannot lift it.
    with pytest.raises(openai.UnprocessableEntityError, match="takes no driving video"):
        client.videos.create(prompt="A gymnast jumps.", input_reference=("a.mp4", driving_video, "video/mp4"))
    for key, error in (("", openai.AuthenticationError), ("nobody's", openai.PermissionDeniedError)):
        with pytest.raises((error, openai.OpenAIError)):
            openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0).videos.list()


def test_a_full_queue_makes_the_client_wait(service: Service, client: openai.OpenAI) -> None:
    service.is_paused = True
    for _ in range(8):
        client.videos.create(prompt="A gymnast jumps.", extra_body=QUICK)
    with pytest.raises(openai.RateLimitError) as refused:
        client.videos.create(prompt="A gymnast jumps.", extra_body=QUICK)
    assert int(refused.value.response.headers["retry-after"]) > 0
    service.is_paused = False
