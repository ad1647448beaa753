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
    "prototype": ("Collapse: swapped prediction is stuck at ln K",
                  "Every prototype is predicted alike: scores do not distinguish videos, or prototypes have merged.",
                  "A smaller learning rate, fewer prototypes (--cluster), a larger batch or queue."),
    "graph": ("Collapse: {term} is stuck at ln N",
              "The graph head gives all videos of a batch the same embedding.",
              "Start the graph constraint later (--split), when the instance contrast has learned to separate videos."),
    "motion": ("Collapse: {term} is stuck at the logarithm of its number of candidates",
               "At the {level} level all clips and their time reversals have about the same embedding.",
               "Check that videos show motion, not still or blank frames; larger strides (--rate), smaller learning rate."),
    "instance": ("Collapse: {term} is stuck at the logarithm of its number of candidates",
                 "All clips have about the same embedding, so that those of a video are not found among the others.",
                 "A smaller learning rate; check that the csv lists different videos and that their frames are not blank."),
    "few prototypes": ("Collapse: few prototypes in use",
                       "Most videos share a few cluster labels, so that the graph's semantic mask keeps nearly every edge.",
                       "A longer queue (--queue), an earlier --queue_start, a larger batch, a smaller learning rate."),
    "uniform": ("Collapse: assignments are uniform",
                "Features, or prototypes, are all alike, and cluster labels are noise.",
                "Check the effective rank of the high level; a smaller learning rate, fewer prototypes (--cluster)."),
    "diagonal": ("Collapse of the graph: only diagonal edges",
                 "No video is linked to another one, so that the graph constraint adds nothing to the instance contrast.",
                 "A lower --thres, larger batches, fewer prototypes (--cluster), a later --split, when videos are closer."),
    "constant": ("Collapse: features are constant",
                 "The network gives every video the same features.",
                 "Check that the videos differ and are not blank; a smaller learning rate from an earlier checkpoint."),
    "low rank": ("Collapse: effective rank of the {level} level is low",
                 "Features lie along a few directions and hardly vary along others (dimensional collapse).",
                 "A smaller learning rate or weight decay; more varied videos."),
    "fallen rank": ("Collapse: effective rank of the {level} level is falling",
                    "The network is losing directions that distinguished videos.",
                    "Compare retrieval at both checkpoints; resume from the earlier one with a smaller learning rate."),
    "timestamp": ("No sense of time: {term} is stuck at ln {candidates:g}",
                  "The {level} level has the same features at each of its {candidates:g} timestamps. At a level of few "
                  "timestamps this is common on short, simple videos.",
                  "Longer clips (--seq), larger strides (--rate); check that videos show motion."),
    "non-finite": ("Non-finite values (NaN or Inf)",
                   "The loss or the gradient overflowed. A few in a long run do little harm; more precede divergence.",
                   "A smaller learning rate; --amp off, if bf16 was on; check the videos listed in not_finite/."),
    "unreadable": ("Unreadable videos", "Files are missing or broken. The rest of the run is not affected.",
                   "python scripts/check_data.py CSV --decode finds all such files; extract them again."),
    "monitor": ("The monitor leaves out videos",
                "Its metrics are those of the others. Training itself does not use these videos.",
                "python scripts/check_data.py CSV --decode, with the files of --monitor_csv, lists them."),
    "waiting": ("The network waits for data", "Reading and decoding frames is slower than the network.",
                "More --workers (now {workers}), smaller frames on disk, packed frames (scripts/pack_frames.py)."),
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
    most_used, uniform = min(num_prototypes, batch), math.log(num_prototypes)
    for term, chance in chance_losses(run.flags, batch).items():
        value, (kind, _, level) = judge(run, term), term.partition("_")
        if value >= STUCK_SHARE * chance.loss:
            warn(kind, f"{term} is {value:.3f} recently; chance level is {chance}.", term=term, level=level,
                 candidates=chance.candidates)
    if (used := judge(run, "prototypes_in_use")) < FEW_PROTOTYPES * most_used:
        warn("few prototypes", f"{used:.1f} of the {most_used} that a batch of {batch} videos could use.")
    if (entropy := judge(run, "assignment_entropy")) >= UNIFORM_SHARE * uniform:
        warn("uniform", f"Their entropy is {entropy:.3f} nats; ln K = {uniform:.3f} is no preference at all.")
    if (edges := judge(run, "graph_edges_per_row")) <= DIAGONAL_EDGES:
        warn("diagonal", f"{edges:.3f} edges per row; 1 is the video itself.")

    if measurement:
        num_videos, newest = len(measurement.records), measurement.states[-1]
        flat = [f"{level} {value:.4f}" for level, value in newest.spreads.items() if value < CONSTANT_SPREAD]
        if flat:
            warn("constant", f"Spread over {num_videos} videos as a fraction of the features' size: {', '.join(flat)}.")
        for level, rank in newest.ranks.items() if num_videos >= FEWEST_VIDEOS else ():
            most = min(num_videos - 1, newest.channels[level])
            earlier = max((state.ranks[level] for state in measurement.states[:-1] if state.epochs), default=0.0)
            if rank < max(LOW_RANK * most, LEAST_RANK):
                warn("low rank", f"{rank:.1f}, of at most {most} for {num_videos} videos.", level=level)
            elif rank < FALLEN_RANK * earlier:
                warn("fallen rank", f"{rank:.1f} at epoch {newest.epochs:g}, {earlier:.1f} at an earlier checkpoint.",
                     level=level)

    skipped, bad = ([line for line in run.events if line["kind"] == kind] for kind in ("skipped_step", "bad_video"))
    if skipped or run.dumps:
        last = f"; the last: {skipped[-1]['not_finite']}" if skipped else ""
        warn("non-finite", f"{len(skipped)} step(s) were skipped, {len(run.dumps)} described in not_finite/{last}.")
    if bad:
        warn("unreadable", f"{len(bad)} of {run.config['videos']}; each is replaced by another video. The first: "
             f"{bad[0]['path']}.")
    if run.monitored and (unseen := run.monitored[-1].get(MONITOR_SKIPPED)):
        warn("monitor", f"{unseen:g} labelled video(s) could not be read after epoch {run.monitored[-1]['epoch'] + 1}.")
    if (wait := judge(run, "data_wait")) > LONG_WAIT:
        warn("waiting", f"{wait:.0%} of the time is spent waiting for the next batch.", workers=run.flags["num_workers"])
    return sorted(found, key=lambda warning: not warning.collapse)


def judge(run: RunDirectory, name: str) -> float:
    """Returns the mean of the last finite values of `name`; NaN, for which no comparison holds, where it is too early.

    The wait for data is not judged in the first epoch, in which the DataLoader workers start.
    """
    lines = [line for line in run.comparable if line["epoch"] > 0 or name != "data_wait"]
    values = [value for value in run.series(name, lines)[1] if math.isfinite(value)][-LAST:]
    enough = name in ANY_TIME or run.unit == "epoch" and len(run.series(name)[1]) >= EARLY
    return fmean(values) if values and enough else math.nan


def list_checks(run: RunDirectory, measurement: Measurement | None) -> list[str]:
    """Returns a line for each value that was judged, and what the others lack."""
    names = (*chance_losses(run.flags, run.global_batch), "prototypes_in_use", "assignment_entropy", *ANY_TIME)
    values = {name: judge(run, name) for name in names}
    lines = [f"{name}: {value:.3g} recently" for name, value in values.items() if not math.isnan(value)]
    if waiting := [name for name, value in values.items() if math.isnan(value)]:
        lines.append(f"not judged, without {EARLY} epochs (edges 1, data_wait 2) of finite values: {', '.join(waiting)}")
    if len(run.comparable) < len(run.points):
        lines.append(f"global batch: the last {len(run.comparable)} {run.unit}(s), of {run.global_batch} videos, are judged")
    if measurement is None:
        return [*lines, "effective rank and spread of features: not computed"]
    return [*lines, f"features: {len(measurement.records)} videos at {len(measurement.states)} states of the network; "
                    f"effective rank needs {FEWEST_VIDEOS} videos, its fall two checkpoints"]
