"""train.py as a user starts it: real processes, real files, every launch form."""
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.robustness.kill_and_resume import write_videos

ROOT = Path(__file__).resolve().parents[1]
SMALL = ("--net r3d10 --img_dim 32 --train_batch 2 --workers 0 --channel 8 --cluster 6 --queue 6 --queue_start 1 "
         "--split 2 --epoch 4 --lr_decay 3 --log_every 1 --save_every 2").split()
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(*flags: str, launcher: tuple[str, ...] = ()) -> list[str]:
    return [sys.executable, *launcher, str(ROOT / "train.py"), *flags]


def run(cwd: Path, *flags: str, launcher: tuple[str, ...] = (), status: int = 0) -> subprocess.CompletedProcess:
    result = subprocess.run(command(*flags, launcher=launcher), cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True,
                            timeout=240)
    assert result.returncode == status, result.stderr[-3000:] + result.stdout[-1000:]
    return result


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """A csv of eight usable videos, and one that is too short."""
    csv = write_videos(tmp_path_factory.mktemp("videos"), num_videos=9)
    csv.write_text("frame_dir,number_of_frames\n" + csv.read_text().replace("v8,40", "v8,32"))
    for frame in sorted((csv.parent / "v8").iterdir())[32:]:
        frame.unlink()
    return csv


@pytest.fixture(scope="session")
def straight(videos, tmp_path_factory) -> Path:
    """The directory of an uninterrupted run."""
    cwd = tmp_path_factory.mktemp("straight")
    result = run(cwd, "--csv_file", str(videos), "--out", "run", *SMALL)
    assert "8 videos (1 of 9 dropped" in result.stdout and "epoch 4/4" in result.stdout
    return cwd / "run"


def load(run_directory: Path, epoch: int = 4) -> dict:
    return torch.load(run_directory / "checkpoints" / f"epoch_{epoch:04d}.pt", weights_only=True)


def flatten(value, prefix=""):
    """Every leaf of a checkpoint with its path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(item, f"{prefix}/{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flatten(item, f"{prefix}/{index}")
    else:
        yield prefix, value


def assert_same_state(a: dict, b: dict) -> None:
    parts = ("model", "optimizer", "queue", "processes", "progress", "epochs_done")
    left, right = (dict(flatten({part: state[part] for part in parts})) for state in (a, b))
    assert left.keys() == right.keys()
    for name, value in left.items():
        same = torch.equal(value, right[name]) if isinstance(value, torch.Tensor) else value == right[name]
        assert same, name


def log_values(run_directory: Path) -> list[dict]:
    """Lines of the log without what depends on the clock."""
    lines = [json.loads(line) for line in (run_directory / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in ("samples_per_s", "data_wait")} for line in lines]


def test_run_directory(straight, videos):
    config = json.loads((straight / "config.json").read_text())
    assert config["flags"]["num_prototypes"] == 6 and config["command"][1].endswith("train.py")
    assert len(config["csv_sha256"]) == 64 and config["versions"]["torch"] == torch.__version__
    assert config["videos"] == 8 and config["videos_too_short"] == 1 and config["processes"] == 1
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["epoch_0002.pt", "epoch_0004.pt"]
    assert list((straight / "tensorboard").glob("events.*"))

    lines = log_values(straight)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 17))
    assert [line["lr"] for line in epochs] == [1e-3, 1e-3, 1e-3, 1e-4]
    always = {"total", "instance_high", "motion_mid", "motion_low", "timestamp_high", "timestamp_mid", "timestamp_low",
              "prototype", "accuracy_instance_high", "accuracy_motion_mid", "accuracy_timestamp_low",
              "accuracy_prototype", "prototypes_in_use", "assignment_entropy"}
    graph = {"graph_high", "graph_mid", "graph_low", "graph_edges_per_row"}
    for line in epochs:
        assert always <= line.keys()
        assert bool(graph & line.keys()) == (line["epoch"] >= 2)


def test_monitor_runs_and_changes_nothing(straight, videos, tmp_path):
    for name, numbers in (("train", range(4)), ("test", range(4, 8))):
        (tmp_path / f"{name}.csv").write_text("".join(f"{videos.parent}/v{n},40,{n % 2}\n" for n in numbers))
    result = run(tmp_path, "--csv_file", str(videos), "--out", "run", *SMALL, "--monitor_csv", "train.csv", "test.csv",
                 "--monitor_every", "3")
    lines = log_values(tmp_path / "run")
    monitored = [line for line in lines if line["kind"] == "monitor"]
    assert [(line["epoch"], line["step"]) for line in monitored] == [(2, 12), (3, 16)]
    assert all(0 <= line["monitor_R@1"] <= 1 and 0 <= line["monitor_top1"] <= 1 for line in monitored)
    assert "epoch 3/4  monitor: R@1 " in result.stdout
    assert [line for line in lines if line["kind"] != "monitor"] == log_values(straight)
    assert_same_state(load(tmp_path / "run"), load(straight))
    error = run(tmp_path, "--csv_file", str(videos), *SMALL, "--monitor_csv", "train.csv", "none.csv", status=2).stderr
    assert error.count("\n") == 1 and "none.csv" in error


def test_what_is_frozen_stays_untouched(straight, videos, tmp_path):
    """Prototypes in epoch 0 and the graph heads before --split: no step of the optimizer, no weight decay."""
    run(tmp_path, "--csv_file", str(videos), "--out", "run", *SMALL, "--wd", "0.5", "--stop_after", "1")
    from models.multilevel import MultiLevelModel
    torch.manual_seed(0)
    start = MultiLevelModel("r3d10", 8, 6)
    start.prototype_head.normalize_()
    start, after = start.state_dict(), load(tmp_path / "run", 1)["model"]
    torch.testing.assert_close(after["prototype_head.prototypes.weight"], start["prototype_head.prototypes.weight"])
    for name in start:
        if name.startswith("graph_heads."):
            assert torch.equal(start[name], after[name]), name
    assert not torch.equal(start["instance.high.0.weight"], after["instance.high.0.weight"])
    early, late = load(straight, 2)["model"], load(straight, 4)["model"]
    assert torch.equal(early["graph_heads.low.0.weight"], start["graph_heads.low.0.weight"])
    assert not torch.equal(late["graph_heads.low.0.weight"], start["graph_heads.low.0.weight"])
    assert not torch.equal(early["prototype_head.prototypes.weight"], start["prototype_head.prototypes.weight"])


def test_stopped_and_resumed_is_the_straight_run_bit_for_bit(straight, videos, tmp_path):
    flags = ("--csv_file", str(videos), "--out", "run", *SMALL)
    run(tmp_path, *flags, "--stop_after", "1")
    run(tmp_path, *flags, "--resume", "--stop_after", "2", "--workers", "2")
    result = run(tmp_path, *flags, "--resume")
    assert "resumed from run/checkpoints/epoch_0003.pt: 3 epoch(s) and 0 step(s) done" in result.stdout
    assert_same_state(load(tmp_path / "run"), load(straight))
    assert log_values(tmp_path / "run") == log_values(straight)
    assert len(json.loads((tmp_path / "run/config.json").read_text())["earlier_starts"]) == 2


def test_killed_run_resumes_from_its_newest_checkpoint(straight, videos, tmp_path):
    flags = ("--csv_file", str(videos), "--out", "run", *SMALL)
    process = subprocess.Popen(command(*flags), cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run/checkpoints/epoch_0001.pt").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    run(tmp_path, *flags, "--resume")
    assert_same_state(load(tmp_path / "run"), load(straight))
    assert log_values(tmp_path / "run") == log_values(straight)


def test_launch_forms_of_two_processes_give_the_same_run(videos, tmp_path):
    flags = ("--csv_file", str(videos), *SMALL, "--stop_after", "3")
    result = run(tmp_path, *flags, "--out", "spawn", "--multiprocessing-distributed", "--nproc", "2", "--gpu", "0,1,2,3")
    assert "no GPU here: --multiprocessing-distributed starts 2 CPU process(es) over gloo" in result.stdout
    assert "2 process(es)" in result.stdout and result.stdout.count("epoch 3/4") == 1
    run(tmp_path, *flags, "--out", "torchrun",
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"))
    assert_same_state(load(tmp_path / "spawn", 3), load(tmp_path / "torchrun", 3))
    assert log_values(tmp_path / "spawn") == log_values(tmp_path / "torchrun")
    assert sorted(path.name for path in (tmp_path / "spawn").iterdir()) == sorted(
        path.name for path in (tmp_path / "torchrun").iterdir())
    assert len(load(tmp_path / "spawn", 3)["processes"]) == 2
    # Another number of processes resumes too, and prints what that changes.
    result = run(tmp_path, "--csv_file", str(videos), *SMALL, "--out", "spawn", "--resume")
    assert "changed since: 2 process(es) with 4 videos a step -> 1 with 2" in result.stdout and "epoch 4/4" in result.stdout


def test_runs_side_by_side_on_one_machine_need_no_port(videos, tmp_path):
    """The second without graph, timestamp retrieval and prototypes, whose heads then get no gradient, or one of 0."""
    flags = command("--csv_file", str(videos), *SMALL, "--stop_after", "1", "--multiprocessing-distributed", "--nproc", "2")
    ablation = "--split 0 --loss_weights graph=0,timestamp=0,prototype=0 --reversed_negatives off".split()
    runs = [subprocess.Popen([*flags, "--out", name, *more], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True) for name, more in (("a", ()), ("b", ablation))]
    outputs = [run.communicate(timeout=240) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    for (output, errors), name in zip(outputs, ("a", "b")):
        assert "2 process(es)" in output and "epoch 1/4" in output and not errors
        assert load(tmp_path / name, 1)["epochs_done"] == 1
    epoch = log_values(tmp_path / "b")[-1]
    assert "graph_high" not in epoch and epoch["timestamp_high"] > 0
    assert epoch["total"] == pytest.approx(epoch["instance_high"] + 0.5 * epoch["motion_mid"] + 0.3 * epoch["motion_low"])


@pytest.mark.parametrize("flags, named", [
    (("--csv_file", "missing.csv"), "missing.csv: cannot read the csv file: No such file or directory"),
    (("--csv_file", "v.csv", "--monitor_csv", "v.csv", "none.csv"), "none.csv: cannot read the csv file"),
    (("--csv_file", "v.csv", "--dist-url", "localhost"), "--dist-url localhost: must be tcp://HOST:PORT"),
])
def test_what_cannot_work_is_reported_before_any_port_is_opened(tmp_path, flags, named):
    """The port is held from before the first process is started until the run ends."""
    (tmp_path / "v.csv").write_text("a,40\n")
    result = run(tmp_path, *flags, *SMALL, "--multiprocessing-distributed", "--nproc", "2", status=2)
    assert result.stderr.startswith(f"train.py: error: {named}") and result.stderr.count("\n") == 1
    assert not result.stdout  # such as the line on the processes that are started


def test_two_machines_meet_at_the_url(videos, tmp_path):
    flags = command("--csv_file", str(videos), *SMALL, "--stop_after", "1", "--world-size", "2", "--out", "run",
                    "--multiprocessing-distributed", "--dist-url", "tcp://127.0.0.1:10042")
    machines = [subprocess.Popen([*flags, "--rank", rank], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
                for rank in ("0", "1")]
    outputs = [machine.communicate(timeout=180)[0] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0]
    assert "2 process(es)" in outputs[0] and "epoch 1/4" not in outputs[1]
    assert load(tmp_path / "run", 1)["epochs_done"] == 1


def test_machines_with_other_flags_are_refused(videos, tmp_path):
    """Each would train by its own rate, and their weights would part in silence."""
    flags = ("--csv_file", str(videos), *SMALL, "--world-size", "2", "--out", "run", "--dist-url", "tcp://127.0.0.1:10045")
    machines = [subprocess.Popen(command(*flags, "--rank", rank, "--lr", lr), cwd=tmp_path, env=ENVIRONMENT,
                                 stderr=subprocess.PIPE, text=True) for rank, lr in (("0", "0.001"), ("1", "0.1"))]
    errors = [machine.communicate(timeout=180)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [2, 2]
    assert errors[0].count("\n") == 1 and "flag lr: 0.1 in process 1, 0.001 in process 0" in errors[0] and not errors[1]


def test_a_rank_that_fails_takes_the_others_down(videos, tmp_path):
    csv = tmp_path / "broken.csv"
    rows = [line for line in videos.read_text().splitlines()[1:9]]
    csv.write_text("\n".join(f"{videos.parent / row}" for row in rows).replace("v3,40", "gone,40") + "\n")
    begin = time.monotonic()
    result = run(tmp_path, "--csv_file", str(csv), *SMALL, "--multiprocessing-distributed", "--nproc", "2", "--dist-url",
                 "tcp://127.0.0.1:10043", status=2)
    assert time.monotonic() - begin < 60
    lines = [line for line in result.stderr.splitlines() if "error" in line]
    assert len(lines) == 1 and "gone" in lines[0] and "Traceback" not in result.stderr


def test_diverged_loss_stops_and_names_the_term(videos, tmp_path):
    result = run(tmp_path, "--csv_file", str(videos), *SMALL, "--lr", "1e30", status=4)
    assert result.stderr.count("\n") == 1 and "non-finite values: " in result.stderr
    assert "instance_high = nan" in result.stderr
    assert not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_dry_run_prints_figures_and_leaves_nothing(videos, tmp_path):
    for name, numbers in (("train", range(4)), ("test", range(4, 8))):
        (tmp_path / f"{name}.csv").write_text("".join(f"{videos.parent}/v{n},40,{n % 2}\n" for n in numbers))
    result = run(tmp_path, "--csv_file", str(videos), *SMALL, "--dry_run", "3", "--augment_on", "device",
                 "--swap_background", "0.5", "--checkpoint_activations", "--save_steps", "1", "--monitor_csv", "train.csv",
                 "test.csv")
    for part in (" videos/s (", "waiting for data: ", "ms a step: data ", "objective ", "peak memory of this process: ",
                 "projected: ", "suggested --workers: "):
        assert part in result.stdout, part
    assert sorted(path.name for path in tmp_path.iterdir()) == ["test.csv", "train.csv"] and not result.stderr


def test_a_dry_run_can_be_stopped(videos, tmp_path):
    process = subprocess.Popen(command("--csv_file", str(videos), *SMALL, "--dry_run", "100000"), cwd=tmp_path,
                               env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert "8 videos" in process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75 and not list(tmp_path.iterdir())


def test_bf16_runs(videos, tmp_path):
    run(tmp_path, "--csv_file", str(videos), *SMALL, "--amp", "bf16", "--channels_last", "--stop_after", "1", "--split",
        "0")
    [log] = tmp_path.glob("runs/videos_r3d10/log.jsonl")
    assert "graph_low" in log.read_text()


@pytest.mark.parametrize("content, named", [
    (None, "missing.csv"),
    ("", "lists no video"),
    ("a,32\nb,20\n", "all 2 dropped, as pretraining needs more than 32 frames"),
    ("a,40\nb,x1\n", "bad.csv:2"),
    ("a,40\n", "do not fill one batch of 2"),
    ("a,40\nb,40\n", "cannot read the frame folder"),
])
def test_bad_csv_is_one_line(tmp_path, content, named):
    name = "missing.csv"
    if content is not None:
        name = "bad.csv"
        (tmp_path / name).write_text(content)
    result = run(tmp_path, "--csv_file", name, *SMALL, status=2)
    assert result.stderr.startswith("train.py: error: ") and named in result.stderr
    assert result.stderr.count("\n") == 1


def test_training_starts_from_given_weights(straight, videos, tmp_path):
    """A whole model, with another --cluster, and a backbone with its own scale; a resumed run keeps to them."""
    weights = load(straight)
    flags = ("--csv_file", str(videos), *SMALL, "--stop_after", "1", "--lr", "1e-12", "--wd", "0", "--cluster", "7")
    given = ("--init_from", str(straight / "checkpoints/epoch_0004.pt"))
    output = run(tmp_path, *flags, "--out", "a", *given).stdout
    assert "epoch_0004.pt (model of r3d10)" in output and "random: prototype_head.prototypes\n" in output
    after = load(tmp_path / "a", 1)
    for name, value in weights["model"].items():
        if "running" not in name and "num_batches" not in name and "prototypes" not in name:
            torch.testing.assert_close(after["model"][name], value, rtol=0, atol=1e-6)
    assert after["epochs_done"] == 1 and after["input"]["mean"] == [0.485, 0.456, 0.406]
    config = json.loads((tmp_path / "a/config.json").read_text())
    assert config["init_from"] == after["init_from"] and config["init_from"]["kind"] == "model"
    run(tmp_path, *flags, "--out", "a", *given, "--resume")
    assert load(tmp_path / "a", 2)["init_from"] == after["init_from"]

    scale = {"mean": [0.4, 0.4, 0.4], "std": [0.3, 0.3, 0.3], "frames": "rgb"}
    state = {name.removeprefix("backbone."): value for name, value in weights["model"].items()
             if name.startswith("backbone.")}
    torch.save({"format": "mfo", "kind": "backbone", "net": "r3d10", "model": state, "input": scale}, tmp_path / "b.pt")
    assert "started from other weights" in run(tmp_path, *flags, "--out", "a", "--init_from", "b.pt", "--resume",
                                               status=2).stderr
    assert "b.pt: holds a r3d10, --net is r3d18" in run(
        tmp_path, *flags, "--out", "c", "--init_from", "b.pt", "--net", "r3d18", status=2).stderr
    run(tmp_path, *flags, "--out", "b", "--init_from", "b.pt")
    after = load(tmp_path / "b", 1)
    assert after["input"] == scale and after["init_from"]["loaded"] == len(state)
    torch.testing.assert_close(after["model"]["backbone.layer4.0.conv1.0.weight"], state["layer4.0.conv1.0.weight"],
                               rtol=0, atol=1e-6)


def test_resume_refuses_what_cannot_be_resumed(straight, videos, tmp_path):
    flags = ("--csv_file", str(videos), "--out", str(straight))
    assert "add --resume" in run(tmp_path, *flags, *SMALL, status=2).stderr
    assert "--cluster 7: " in run(tmp_path, *flags, *SMALL, "--cluster", "7", "--resume", status=2).stderr
    (tmp_path / "junk.pt").write_bytes(b"junk")
    error = run(tmp_path, "--csv_file", str(videos), *SMALL, "--resume", "junk.pt", status=2).stderr
    assert "junk.pt: not a whole checkpoint" in error and error.count("\n") == 1
    assert "nothing to do: 4 of 4" in run(tmp_path, *flags, *SMALL, "--resume").stdout
    early = str(straight / "checkpoints/epoch_0002.pt")  # what is later would be lost
    assert "holds epoch_0004.pt already" in run(tmp_path, *flags, *SMALL, "--resume", early, status=2).stderr
    assert sorted(path.name for path in (straight / "checkpoints").iterdir()) == ["epoch_0002.pt", "epoch_0004.pt"]


def test_a_branch_from_an_earlier_checkpoint_prints_what_changed(straight, videos, tmp_path):
    csv = tmp_path / "same_videos.csv"
    csv.write_text("\n".join(f"{videos.parent / row}" for row in videos.read_text().split()[1:]) + "\n")
    result = run(tmp_path, "--csv_file", str(csv), "--out", "branch", *SMALL, "--epoch", "3", "--wd", "0.5", "--resume",
                 str(straight / "checkpoints/epoch_0002.pt"))
    assert "changed since: weight_decay 1e-05 -> 0.5" in result.stdout
    assert "changed since: the content of the csv" in result.stdout
    assert load(tmp_path / "branch", 3)["optimizer"]["param_groups"][0]["weight_decay"] == 0.5
    # Damaged files beside the checkpoints are no obstacle.
    (tmp_path / "branch/config.json").write_text("")
    with open(tmp_path / "branch/log.jsonl", "a") as file:
        file.write("\nnot json\n")
    result = run(tmp_path, "--csv_file", str(csv), "--out", "branch", *SMALL, "--wd", "0.5", "--resume")
    assert "log.jsonl: 2 line(s) could not be read" in result.stdout and "config.json.bad" in result.stderr
    assert log_values(tmp_path / "branch")[-1]["step"] == 16
