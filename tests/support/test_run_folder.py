"""What may be replaced in --out, and what may not."""

import shutil
from pathlib import Path

WEIGHTS = "best/adapter_model.safetensors"


def test_a_finished_or_unfinished_run_is_kept(quick, refused, some_reviews, tmp_path):
    out, table = tmp_path / "out", Path(shutil.copy(some_reviews, tmp_path))
    quick(out, "--data", table)
    kept, again = (out / WEIGHTS).read_bytes(), ["--config", out / "config.toml"]
    assert "finished run: --overwrite" in refused(*again)
    assert "finished run: --overwrite" in refused(*again, "--resume")
    shutil.rmtree(out / "final")  # what a run looks like that was killed at its end
    assert "unfinished run: --resume" in refused(*again)
    for other in "lr=1e-4", "seed=7", "rank=4", "max_length=12":
        assert f"started with {other.split('=')[0]} " in refused(*again, "--resume", f"--{other}")
    table.write_text(some_reviews.read_text().replace(" the ", " a "))
    assert "other weights or data" in refused(*again, "--resume")
    shutil.copy(some_reviews, table)
    assert (out / WEIGHTS).read_bytes() == kept
    quick(out, "--data", table, "--resume")
    assert (out / "final").exists() and (out / WEIGHTS).read_bytes() == kept
    quick(out, "--data", table, "--overwrite", "--seed", 7)
    assert (out / WEIGHTS).read_bytes() != kept
