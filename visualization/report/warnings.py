"""Warnings about a run: what was seen in its numbers, what it usually means, what to try.

Values are judged by their mean over the last LAST points of the log with the same global batch, and losses, prototypes and
assignments only after EARLY epochs of them: every run starts at chance level.
"""
from __future__ import annotations

import math
from statistics import fmean
from typing import NamedTuple

from visualization.report.measure import Measurement
from visualization.report.run import MONITOR_SKIPPED, RunDirectory, chance_losses

LAST = 3   # points: one alone is noisy in small runs
EARLY = 5  # epochs: prototypes are frozen in the first, and need a few to separate
STUCK_SHARE = 0.97      # of the loss at chance level; contrasts that learn anything are below 0.9 within a few epochs
UNIFORM_SHARE = 0.97    # of ln K; assignments that prefer anything have an entropy well below ln K
FEW_PROTOTYPES = 0.25   # of min(K, N); Sinkhorn spreads a batch evenly, so that more than half are in use
DIAGONAL_EDGES = 1.05   # edges per row: one is the video itself, so that 19 of 20 videos have no other neighbor
LOW_RANK = 0.04         # of the largest possible; pretrained features are above 0.1 even on simple videos
LEAST_RANK = 1.5        # a single direction, whatever the number of videos
FEWEST_VIDEOS = 16      # the rank of fewer is bounded by their number, whatever the network
FALLEN_RANK = 0.5       # of the highest among earlier checkpoints; in healthy runs it hardly changes once trained
CONSTANT_SPREAD = 0.02  # of the features' size; 0.2 and more with random weights already
LONG_WAIT = 0.2         # fraction of the time; a fifth of the device's time is worth a check of data loading
ANY_TIME = ("graph_edges_per_row", "data_wait")  # judged before EARLY epochs too

# What is wrong -> (title, what it usually means, what to try). Those titled "Collapse ..." come first: the network
# distinguishes videos less than it must; the others hamper a run.
WARNINGS = {
    "prototype": (
        "Collapse: swapped prediction is stuck at ln K",
        "Every prototype is predicted alike: scores do not distinguish videos, or prototypes have merged.",
        "Check the prototypes in use and the effective rank; try a smaller learning rate, fewer prototypes (--cluster), a "
        "larger batch or queue."),
    "graph": (
        "Collapse: {term} is stuck at ln N",
        "The graph head gives all videos of a batch the same embedding.",
        "Start the graph constraint later (--split), when the instance contrast has learned to separate videos."),
    "motion": (
        "Collapse: {term} is stuck at the logarithm of its number of candidates",
        "At the {level} level all clips and their time reversals have about the same embedding: neither the clips of a "
        "video nor the direction of time can be recognized.",
        "Check that videos show motion: no still images or blank frames; larger strides (--rate), a smaller learning rate."),
    "instance": (
        "Collapse: {term} is stuck at the logarithm of its number of candidates",
        "All clips have about the same embedding, so that the clips of a video are not found among the others.",
        "A smaller learning rate; check that the csv lists different videos and that their frames are not blank; compare "
        "with a run on the videos of scripts/demo.sh."),
    "few prototypes": (
        "Collapse: few prototypes in use",
        "Most videos share a few cluster labels, so that the graph's semantic mask keeps nearly every edge.",
        "A longer queue (--queue) or an earlier --queue_start, more videos in a batch, a smaller learning rate."),
    "uniform": (
        "Collapse: assignments are uniform",
        "All scores are about equal: features, or prototypes, are all alike. Cluster labels are then noise.",
        "Check the effective rank of the high level; try a smaller learning rate or fewer prototypes (--cluster)."),
    "diagonal": (
        "Collapse of the graph: only diagonal edges",
        "No video is linked to another one, so that the graph constraint repeats the instance contrast and adds nothing.",
        "A lower --thres, larger batches, fewer prototypes (--cluster), or a later --split, when videos are closer."),
    "constant": (
        "Collapse: features are constant",
        "The network gives every video the same features.",
        "Check that the videos differ and are not blank; a smaller learning rate; resume from an earlier checkpoint."),
    "low rank": (
        "Collapse: effective rank of the {level} level is low",
        "Features lie along a few directions and hardly vary along others (dimensional collapse).",
        "See how it developed over the checkpoints; a smaller learning rate or weight decay; more varied videos."),
    "fallen rank": (
        "Collapse: effective rank of the {level} level is falling",
        "The network is losing directions that distinguished videos.",
        "Compare retrieval at both checkpoints; resume from the earlier one with a smaller learning rate."),
    "timestamp": (
        "No sense of time: {term} is stuck at ln {candidates:g}",
        "The {level} level has the same features at each of its {candidates:g} timestamps: it does not see when something "
        "happens. At a level of few timestamps this is common on short, simple videos.",
        "Longer clips (--seq) or larger strides (--rate), so that timestamps differ; check that videos show motion."),
    "non-finite": (
        "Non-finite values (NaN or Inf)",
        "The loss or the gradient overflowed. A few in a long run do little harm; more come before a run diverges.",
        "A smaller learning rate; --amp off, if bf16 was on; check the videos listed in not_finite/."),
    "unreadable": (
        "Unreadable videos",
        "Files are missing or broken. The rest of the run is not affected.",
        "python scripts/check_data.py CSV --decode finds all such files before a run; extract them again."),
    "monitor": (
        "The monitor leaves out videos",
        "Its metrics are those of the others. Training itself does not use these videos.",
        "python scripts/check_data.py CSV --decode, with the files of --monitor_csv, lists them."),
    "waiting": (
        "The network waits for data",
        "Reading and decoding frames is slower than the network; training is as good, and slower than it could be.",
        "More --workers (now {workers}), smaller frames on disk, packed frames (scripts/pack_frames.py), a faster disk."),
}


class RunWarning(NamedTuple):
    """One warning, in words. `collapse`: the network distinguishes videos less than it must; others hamper the run."""

    title: str
    seen: str
    means: str
    remedy: str
    collapse: bool


def find_warnings(run: RunDirectory, measurement: Measurement | None) -> list[RunWarning]:
    """Returns all warnings, collapse first. `measurement` None: nothing was computed with the network."""
    found = []

    def warn(kind: str, seen: str, **names: object) -> None:
        title, means, remedy = (text.format(**names) for text in WARNINGS[kind])
        found.append(RunWarning(title, seen, means, remedy, title.startswith("Collapse")))

    batch, num_prototypes = run.global_batch, run.flags["num_prototypes"]
    for term, chance in chance_losses(run.flags, batch).items():
        (value, _), (kind, _, level) = judge(run, term), term.partition("_")
        if value >= STUCK_SHARE * chance.loss:
            num = min(LAST, len(run.recent(term)))
            warn(kind, f"{term} is {value:.3f} over the last {num} epoch(s); chance level is {chance}.",
                 term=term, level=level, candidates=chance.candidates)
    (used, _), most = judge(run, "prototypes_in_use"), min(num_prototypes, batch)
    if used < FEW_PROTOTYPES * most:
        warn("few prototypes", f"{used:.1f} of the {most} that a batch of {batch} videos could use (--cluster "
             f"{num_prototypes}).")
    (entropy, _), most = judge(run, "assignment_entropy"), math.log(num_prototypes)
    if entropy >= UNIFORM_SHARE * most:
        warn("uniform", f"Their entropy is {entropy:.3f} nats; ln K = {most:.3f} is no preference at all.")
    edges, _ = judge(run, "graph_edges_per_row")
    if edges <= DIAGONAL_EDGES:
        warn("diagonal", f"{edges:.3f} edges per row; 1 is the video itself.")

    if measurement:
        num_videos, newest = len(measurement.records), measurement.states[-1]
        flat = [f"{level} {value:.4f}" for level, value in newest.spreads.items() if value < CONSTANT_SPREAD]
        if flat:
            warn("constant", f"Spread over {num_videos} videos as a fraction of the features' size: {', '.join(flat)}.")
        for level, rank in newest.ranks.items() if num_videos >= FEWEST_VIDEOS and newest.epochs else ():
            channels = newest.channels[level]
            most = min(num_videos - 1, channels)
            earlier = max((state.ranks[level] for state in measurement.states[:-1] if state.epochs), default=0.0)
            if rank < max(LOW_RANK * most, LEAST_RANK):
                warn("low rank", f"{rank:.1f}, of at most {most} for {num_videos} videos and {channels} channels.",
                     level=level)
            elif rank < FALLEN_RANK * earlier:
                warn("fallen rank", f"{rank:.1f} at epoch {newest.epochs:g}, {earlier:.1f} at an earlier checkpoint.",
                     level=level)

    skipped, bad = (run.events_of(kind) for kind in ("skipped_step", "bad_video"))
    if skipped or run.dumps:
        last = f"; the last: {skipped[-1].get('not_finite', '')}" if skipped else ""
        warn("non-finite", f"{len(skipped)} step(s) were skipped, {len(run.dumps)} described in not_finite/{last}.")
    if bad:
        videos = f" of {run.config['videos']}" if run.config.get("videos") else ""
        warn("unreadable", f"{len(bad)}{videos}; each is replaced by another video. The first: {bad[0].get('path', '')}.")
    unseen = run.monitored[-1].get(MONITOR_SKIPPED, 0) if run.monitored else 0
    if unseen:
        warn("monitor", f"{unseen:g} labelled video(s) could not be read when it last ran, after epoch "
             f"{run.monitored[-1]['epoch'] + 1}.")
    wait, _ = judge(run, "data_wait")
    if wait > LONG_WAIT:
        warn("waiting", f"{wait:.0%} of the time is spent waiting for the next batch.",
             workers=run.flags.get("num_workers", "unknown"))
    return sorted(found, key=lambda warning: not warning.collapse)


def judge(run: RunDirectory, name: str) -> tuple[float, str]:
    """Returns (mean of the last values of `name`, ""), or (NaN, for which no comparison holds; why it is not judged)."""
    num_logged, values = len(run.series(name)[1]), run.recent(name, first_epoch=1 if name == "data_wait" else 0)[-LAST:]
    if not num_logged:
        return math.nan, "not in the log"
    if name not in ANY_TIME and (run.unit != "epoch" or num_logged < EARLY):
        num_epochs = num_logged if run.unit == "epoch" else 0
        return math.nan, f"not judged before {EARLY} epochs; there are {num_epochs}"
    if not values:
        return math.nan, ("not judged in the first epoch, in which the DataLoader workers start" if name == "data_wait"
                          else "not judged: no finite recent value")
    return fmean(values), ""


def list_checks(run: RunDirectory, measurement: Measurement | None) -> list[str]:
    """Returns a line for each check: what it is based on, or why it could not be made."""
    lines = []
    for name in (*chance_losses(run.flags, run.global_batch), "prototypes_in_use", "assignment_entropy", *ANY_TIME):
        value, why = judge(run, name)
        lines.append(f"{name}: {why or f'{value:.3g} recently'}")
    if len(run.comparable) < len(run.points):
        lines.append(f"global batch: {run.global_batch} videos from {run.unit} {run.place(run.comparable[0])} on; what was "
                     "logged before, with another, is not judged")
    lines.append(f"events: {len(run.events_of('skipped_step'))} skipped step(s), {len(run.events_of('bad_video'))} "
                 "unreadable video(s)")
    if measurement is None:
        return [*lines, "effective rank and spread of features: not computed"]
    num_videos = len(measurement.records)
    lines.append(f"features: {num_videos} videos at {len(measurement.states)} states of the network")
    if num_videos < FEWEST_VIDEOS:
        lines.append(f"effective rank: not judged: {num_videos} video(s), of which {FEWEST_VIDEOS} are needed")
    elif sum(state.epochs > 0 for state in measurement.states) < 2:
        lines.append("falling effective rank: not judged: one checkpoint, and no earlier one to compare with")
    return lines
