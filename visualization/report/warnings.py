"""What a run's numbers warn of, in plain words: what was seen, what it usually means, what to try.

Each threshold stands with its reason. Values are judged by their mean over the last LAST points of the log that have
the same global batch, and losses only where there are EARLY epochs of them: every run begins at the level of chance.
"""
from __future__ import annotations

import math
from statistics import fmean
from typing import NamedTuple

from visualization.report.measure import Measured
from visualization.report.run import MONITOR_SKIPPED, Run, chance_losses

LAST = 3   # points: one alone is noisy in small runs
EARLY = 5  # epochs: prototypes are frozen in the first, and need a few to part
STUCK_SHARE = 0.97      # of the loss by chance; contrasts that learn anything are below 0.9 within a few epochs
UNIFORM_SHARE = 0.97    # of ln K; assignments that prefer anything have an entropy well below ln K
FEW_PROTOTYPES = 0.25   # of min(K, N); Sinkhorn spreads a batch evenly, so that more than half are in use
DIAGONAL_EDGES = 1.05   # edges per row: one is the video itself, so that 19 of 20 videos have no other neighbor
LOW_RANK = 0.04         # of the largest possible; pretrained features lie above 0.1 even on simple videos
LEAST_RANK = 1.5        # one direction alone, whatever the number of videos
FEWEST_VIDEOS = 16  # the rank of fewer is bounded by their number, whatever the network
FALLEN_RANK = 0.5       # of the highest among earlier checkpoints; in healthy runs it hardly moves once trained
FROM_EARLY = ("prototypes_in_use", "assignment_entropy")  # judged after EARLY epochs, as prototypes are
CONSTANT_SPREAD = 0.02  # of the features' size; 0.2 and more with random weights already
LONG_WAIT = 0.2         # share of time; a fifth of the device's time is worth a look at the loader


class Finding(NamedTuple):
    """One warning. `collapse`: the network tells videos apart less than it must; else the run is hampered."""

    title: str
    seen: str
    means: str
    remedy: str
    collapse: bool = False


def find_warnings(run: Run, measured: Measured | None) -> list[Finding]:
    """All warnings, collapse first. `measured` None: nothing was computed with the network."""
    found = [*stuck_losses(run), *unused_prototypes(run), *uniform_assignments(run), *diagonal_graph(run)]
    if measured:
        found += [*constant_features(measured), *low_rank(measured)]
    found += [*not_finite(run), *bad_videos(run), *unseen_by_monitor(run), *waiting_for_data(run)]
    return sorted(found, key=lambda finding: not finding.collapse)


def what_was_checked(run: Run, measured: Measured | None) -> list[str]:
    """A line for each kind of check: on what it stands, or why it could not be made."""
    judged, terms = judged_terms(run), chance_losses(run.flags, run.global_batch)
    epochs = f"{run.epochs_done} finished epoch(s)"
    lines = [f"losses against chance: {', '.join(judged)} over {epochs}"] if judged else []
    if len(judged) < len(terms):
        lines.append(f"losses against chance: not judged before {EARLY} epochs of a term; there are {epochs}: "
                     f"{', '.join(name for name in terms if name not in judged)}")
    if len(run.alike) < len(run.points):
        lines.append(f"global batch: {run.global_batch} videos from {run.unit} "
                     f"{run.alike[0]['epoch' if run.unit == 'epoch' else 'step'] + (run.unit == 'epoch')} on; what was "
                     "logged before, with another, is not judged")
    for name, what in (("prototypes_in_use", "prototypes in use"), ("assignment_entropy", "assignment entropy"),
                       ("graph_edges_per_row", "graph edges"), ("data_wait", "waiting for data")):
        value = last_mean(run, name)
        lines.append(f"{what}: {unjudged(run, name) if value is None else f'{value:.3g} of late'}")
    if measured:
        lines.append(f"features: {len(measured.records)} videos at {len(measured.states)} states of the network")
        lines += [f"{what}: not judged: {why}" for what, why in rank_unjudged(measured).items()]
    else:
        lines.append("effective rank and spread of features: not computed")
    lines.append(f"events: {len(run.events_of('skipped_step'))} skipped step(s), {len(run.events_of('bad_video'))} "
                 "unreadable video(s)")
    return lines


def judged_terms(run: Run) -> list[str]:
    """Loss terms that the log holds for long enough."""
    return [name for name in chance_losses(run.flags, run.global_batch)
            if run.unit == "epoch" and len(run.series(name)[1]) >= EARLY and run.recent(name)]


def last_mean(run: Run, name: str) -> float | None:
    """Mean of the last values of `name`; None where there are none that can be judged, which `unjudged` explains."""
    if name in FROM_EARLY and run.epochs_done < EARLY:
        return None
    values = run.recent(name, skipped_epochs=name == "data_wait")[-LAST:]
    return fmean(values) if values else None


def unjudged(run: Run, name: str) -> str:
    """Why there is nothing to judge `name` by."""
    if not run.series(name)[1]:
        return "not in the log"
    if name in FROM_EARLY and run.epochs_done < EARLY:
        return f"not judged before {EARLY} epochs; there are {run.epochs_done}"
    if name == "data_wait":
        return "not judged in the first epoch, in which the loader starts"
    return "not judged: no finite value of late"


def stuck_losses(run: Run) -> list[Finding]:
    """Losses that stay at the logarithm of their number of candidates."""
    chances = chance_losses(run.flags, run.global_batch)
    findings = []
    for name in judged_terms(run):
        value, chance, num = last_mean(run, name), chances[name], min(LAST, len(run.recent(name)))
        if value < STUCK_SHARE * chance.loss:
            continue
        seen = f"{name} is {value:.3f} over the last {num} epoch(s); by chance it is {chance}."
        if name == "prototype":
            findings.append(Finding(
                "Collapse: swapped prediction is stuck at ln K", seen,
                "Every prototype is predicted alike: scores do not tell videos apart, or prototypes have merged.",
                "Look at prototypes in use and at the effective rank; try a smaller learning rate, fewer prototypes "
                "(--cluster), a larger batch or queue.", True))
        elif name.startswith("timestamp"):
            findings.append(Finding(
                f"No sense of time: {name} is stuck at ln {chance.candidates:g}", seen,
                f"The {name.removeprefix('timestamp_')} level has the same features at each of its "
                f"{chance.candidates:g} moments: it does not see when something happens.",
                "Longer clips (--seq) or larger strides (--rate), so that moments differ; check that videos are not "
                "still pictures. At a level of few moments it is common on short, simple videos."))
        elif name.startswith("graph"):
            findings.append(Finding(
                f"Collapse: {name} is stuck at ln N", seen,
                "The graph head gives all videos of a batch the same embedding.",
                "Begin the graph constraint later (--split), when the instance contrast has learned to part videos.",
                True))
        elif name.startswith("motion"):
            level = name.removeprefix("motion_")
            findings.append(Finding(
                f"Collapse: {name} is stuck at the logarithm of its number of candidates", seen,
                f"At the {level} level all clips, and their time reversals, have about the same embedding: neither a "
                "video's own clip nor the direction of time is told.",
                "Check that videos show motion: no still pictures, no blank frames; larger strides (--rate), a smaller "
                "learning rate.", True))
        else:
            findings.append(Finding(
                f"Collapse: {name} is stuck at the logarithm of its number of candidates", seen,
                "All clips have about the same embedding, so that a video's own clip is not found among the others.",
                "A smaller learning rate; check that the csv names different videos and that their frames are not "
                "blank; compare with a run on scripts/demo.sh's videos.", True))
    return findings


def unused_prototypes(run: Run) -> list[Finding]:
    """Too few cluster labels in a batch."""
    used, most = last_mean(run, "prototypes_in_use"), min(run.flags["num_prototypes"], run.global_batch)
    if used is None or used >= FEW_PROTOTYPES * most:
        return []
    return [Finding(
        "Collapse: few prototypes in use",
        f"{used:.1f} of the {most} that a batch of {run.global_batch} videos could use (--cluster "
        f"{run.flags['num_prototypes']}).",
        "Most videos share a few cluster labels, so that the graph's semantic mask lets nearly everything through.",
        "A longer queue (--queue) or an earlier --queue_start, more videos in a batch, a smaller learning rate.", True)]


def uniform_assignments(run: Run) -> list[Finding]:
    """Assignments without preference."""
    entropy, most = last_mean(run, "assignment_entropy"), math.log(run.flags["num_prototypes"])
    if entropy is None or entropy < UNIFORM_SHARE * most:
        return []
    return [Finding(
        "Collapse: assignments are uniform",
        f"Their entropy is {entropy:.3f} nats; ln K = {most:.3f} is no preference at all.",
        "All scores are about equal: features, or prototypes, are all alike. Cluster labels are then noise.",
        "Look at the effective rank of the high level; try a smaller learning rate or fewer prototypes (--cluster).",
        True)]


def diagonal_graph(run: Run) -> list[Finding]:
    """Graphs of single videos."""
    edges = last_mean(run, "graph_edges_per_row")
    if edges is None or edges > DIAGONAL_EDGES:
        return []
    return [Finding(
        "Collapse of the graph: only diagonal edges", f"{edges:.3f} edges per row; 1 is the video itself.",
        "No video is linked to another one, so that the graph constraint repeats the instance contrast and teaches "
        "nothing of its own.",
        "A lower --thres, more videos in a batch, fewer prototypes (--cluster), or a later --split, when similar "
        "videos have come together.", True)]


def constant_features(measured: Measured) -> list[Finding]:
    """Levels at which all videos look the same to the newest checkpoint."""
    newest = measured.states[-1]
    flat = [f"{level} {spread:.4f}" for level, spread in newest.spreads.items() if spread < CONSTANT_SPREAD]
    if not flat:
        return []
    return [Finding(
        "Collapse: features are constant", f"Spread over {len(measured.records)} videos, as a share of the features' "
        f"size: {', '.join(flat)}.", "The network gives every video the same features.",
        "Check that the videos differ and are not blank; a smaller learning rate; go on from an earlier checkpoint.",
        True)]


def rank_unjudged(measured: Measured) -> dict[str, str]:
    """Which checks of the effective rank cannot be made -> why."""
    if len(measured.records) < FEWEST_VIDEOS:
        return {"effective rank": f"{len(measured.records)} video(s), of which {FEWEST_VIDEOS} are needed: their number "
                                  "bounds it"}
    if sum(state.epochs > 0 for state in measured.states) < 2:
        return {"falling effective rank": "one checkpoint, and no earlier one to compare with"}
    return {}


def low_rank(measured: Measured) -> list[Finding]:
    """Levels whose features lie in few directions, or in far fewer than before."""
    findings, trained = [], [state for state in measured.states if state.epochs > 0]
    if not trained or len(measured.records) < FEWEST_VIDEOS:
        return []
    newest = trained[-1]
    for level, rank in newest.ranks.items():
        most = min(len(measured.records) - 1, newest.channels[level])
        earlier = max((state.ranks[level] for state in trained[:-1]), default=0.0)
        if rank < max(LOW_RANK * most, LEAST_RANK):
            findings.append(Finding(
                f"Collapse: effective rank of the {level} level is low",
                f"{rank:.1f}, of at most {most} for {len(measured.records)} videos and {newest.channels[level]} "
                "channels.",
                "Features lie along a few directions and tell little beside them (dimensional collapse).",
                "Look at how it came about over the checkpoints; a smaller learning rate or weight decay; more varied "
                "videos.", True))
        elif rank < FALLEN_RANK * earlier:
            findings.append(Finding(
                f"Collapse: effective rank of the {level} level is falling",
                f"{rank:.1f} at epoch {newest.epochs:g}, {earlier:.1f} at an earlier checkpoint.",
                "The network is giving up directions that told videos apart.",
                "Compare retrieval at both checkpoints; go on from the earlier one with a smaller learning rate.",
                True))
    return findings


def not_finite(run: Run) -> list[Finding]:
    """Steps with NaN or infinite numbers."""
    skipped = run.events_of("skipped_step")
    if not skipped and not run.dumps:
        return []
    last = f"; the last: {skipped[-1].get('not_finite', '')}" if skipped else ""
    return [Finding(
        "Numbers that are not finite", f"{len(skipped)} step(s) were skipped, {len(run.dumps)} described in "
        f"not_finite/{last}.",
        "The loss or the gradient overflowed. A few in a long run do little harm; more come before a run breaks down.",
        "A smaller learning rate; --amp off, if bf16 was on; look at the videos named in not_finite/.")]


def bad_videos(run: Run) -> list[Finding]:
    """Videos that could not be read."""
    bad, videos = run.events_of("bad_video"), run.config.get("videos")
    if not bad:
        return []
    return [Finding(
        "Unreadable videos", f"{len(bad)}{f' of {videos}' if videos else ''}; another video stands in for each. "
        f"The first: {bad[0].get('path', '')}.", "Files are missing or broken. The rest of the run is as it should be.",
        "python scripts/check_data.py CSV --decode finds all such files before a run; extract them again.")]


def unseen_by_monitor(run: Run) -> list[Finding]:
    """Labelled videos that the monitor could not read."""
    num = run.monitored[-1].get(MONITOR_SKIPPED, 0) if run.monitored else 0
    if not num:
        return []
    return [Finding(
        "The monitor leaves out videos", f"{num:g} labelled video(s) could not be read at its last look, after epoch "
        f"{run.monitored[-1]['epoch'] + 1}.",
        "Its figures are those of the others. Training itself does not see these videos.",
        "python scripts/check_data.py CSV --decode, with the files of --monitor_csv, names them.")]


def waiting_for_data(run: Run) -> list[Finding]:
    """A device that waits for the loader."""
    wait = last_mean(run, "data_wait")
    if wait is None or wait <= LONG_WAIT:
        return []
    return [Finding(
        "The network waits for data", f"{wait:.0%} of the time is spent waiting for the next batch.",
        "Reading and decoding frames is slower than the network; training is as good, and slower than it could be.",
        f"More --workers (now {run.flags.get('num_workers', 'unknown')}), smaller pictures on disk, packed frames "
        "(scripts/pack_frames.py), a faster disk.")]
