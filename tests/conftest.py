"""What the tests of several folders share."""

from pathlib import Path

import pytest

SHIPPED = Path(__file__).parents[1] / "finephys" / "assets" / "pipeline"


@pytest.fixture(scope="session")
def quick_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped detector, lifter and Phys-Net before an untrained denoiser and VAE, of a tenth of the work.

    For what is done with videos; how good they are is not its matter.
    """
    from finephys.benchmarks.tiny import write_tiny_pipeline
    from finephys.diffusion.pipeline import FinePhysPipeline

    folder = tmp_path_factory.mktemp("quick")
    write_tiny_pipeline(folder / "tiny")
    tiny, shipped = (FinePhysPipeline.from_pretrained(path).components for path in (folder / "tiny", SHIPPED))
    trained = {name: shipped[name] for name in ("pose_estimator", "lifter", "phys_net")}
    FinePhysPipeline(**tiny | trained).save_pretrained(folder / "pipeline")
    return folder / "pipeline"
