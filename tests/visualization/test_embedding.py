"""Videos as points: PCA against an SVD, determinism, the figure, and wrong flags."""
from __future__ import annotations

import cv2
import numpy as np
import pytest

import visualization.embedding as embedding
from utils.errors import InputError
from visualization.embedding import check_perplexity, main, project, project_levels

SMALL = ["--weights", "random", "--net", "r3d10", "--gpu", "none", "--workers", "0", "--batch", "4",
         "--clips", "1", "--seq", "8", "--img_dim", "32", "--perplexity", "2"]


def test_pca_is_that_of_the_svd_and_a_seed_gives_the_same_points():
    vectors = np.random.default_rng(0).normal(size=(30, 6)).astype(np.float32) * [5, 3, 1, 1, 1, 1]
    vectors = vectors.astype(np.float32)
    projected = project(vectors, 5, seed=3)
    centered = vectors - vectors.mean(axis=0)
    left, singular, _ = np.linalg.svd(centered.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.abs(projected.pca), np.abs(left[:, :2] * singular[:2]), atol=1e-5)
    np.testing.assert_allclose(projected.shares, singular[:2] ** 2 / (singular ** 2).sum(), rtol=1e-5)
    for again, there in zip(project(vectors, 5, seed=3), projected):
        assert np.array_equal(again, there)


def test_groups_stay_together():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(3), 12)
    features = {level: (10 * np.eye(16)[groups] + rng.normal(size=(36, 16))).astype(np.float32)
                for level in ("low", "mid", "high")}
    points = project_levels(features, ["low", "concat"], 5, seed=0)
    assert list(points) == ["low", "concat"]
    for drawn in points.values():
        for places in (drawn.tsne, drawn.pca):
            distances = np.linalg.norm(places[:, None] - places[None], axis=2)
            np.fill_diagonal(distances, np.inf)
            assert (groups[distances.argmin(axis=1)] == groups).all()
    features["low"][:] = 1
    with pytest.raises(InputError, match="--levels low"):
        project_levels(features, ["low"], 5, seed=0)


def test_perplexity_needs_more_videos():
    check_perplexity(7.5, 8, "a.csv")
    for perplexity, num, named in ((8, 8, "--perplexity 8"), (30, 8, "--perplexity 30"),
                                   (1, 3, "a.csv: 3 video")):
        with pytest.raises(InputError, match=named):
            check_perplexity(perplexity, num, "a.csv")


@pytest.fixture
def csv_file(tmp_path, write_coded_video):
    lines = []
    for i, n in enumerate((12, 20, 30, 40, 17, 9)):
        write_coded_video(tmp_path / f"v{i}", n)
        lines.append(f"v{i},{n},{2 * (i % 2)}")  # labels 0 and 2
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "a.csv"


def test_figure_and_names(csv_file, tmp_path, monkeypatch):
    seen = []
    draw = embedding.draw_embedding
    monkeypatch.setattr(embedding, "draw_embedding", lambda *given: seen.append(given) or draw(*given))
    flags = [*SMALL, "--csv_file", str(csv_file), "--feature_dir", str(tmp_path / "features")]
    figures = []
    for out in ("new/one.png", "two.png"):
        assert main([*flags, "--out", str(tmp_path / out)]) == 0
        figures.append((tmp_path / out).read_bytes())
        (tmp_path / "classes.txt").write_text("run\njump\nfall\n")
    points, labels, names, _ = seen[0]
    assert list(points) == ["low", "mid", "high", "concat"] and labels.tolist() == [0, 2] * 3
    assert [call[2] for call in seen] == [{0: "0", 2: "2"}, {0: "run", 2: "fall"}]
    assert figures[0] != figures[1], "the legend has other names"
    assert main([*flags, "--out", str(tmp_path / "three.png")]) == 0
    assert (tmp_path / "three.png").read_bytes() == figures[1]
    height, width, _ = cv2.imread(str(tmp_path / "three.png")).shape
    assert width > height > 500


def test_errors_are_one_line(csv_file, tmp_path, capsys):
    names, broken = tmp_path / "names.txt", tmp_path / "classes.txt"
    names.write_text("run\njump\nfall\n")
    broken.write_text("run\njump\n")
    unlabelled = tmp_path / "b.csv"
    unlabelled.write_text("v0,12\n")
    for wrong, named in ((["--perplexity", "6"], "--perplexity 6"), (["--perplexity", "0"], "--perplexity 0"),
                         (["--levels", "top"], "--levels top"), ([], "classes.txt"),
                         (["--csv_file", str(unlabelled)], "b.csv:1"),
                         (["--classes", str(names), "--net", "r3d11"], "r3d11"),
                         (["--classes", str(names), "--out", str(csv_file / "x.png")], "--out")):
        flags = [*SMALL, "--csv_file", str(csv_file), "--out", str(tmp_path / "x.png"), *wrong]
        assert main(flags) == 2, wrong
        error = capsys.readouterr().err
        assert named in error and error.count("\n") == 1, (wrong, error)
