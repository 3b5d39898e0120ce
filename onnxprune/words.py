"""Figures of a record in words, for the table on the screen and for the HTML page alike."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from math import isfinite, isnan, nan
from typing import Any, NamedTuple

from onnxprune.numerals import count, milliseconds, percent, plural, size
from onnxprune.placed import fallback

Record = Mapping[str, Any]

# Names that exporters give to tensors that they made themselves.
ANONYMOUS = re.compile(r"(onnx::|const_fold_opt|val_\d)|\d+($|#)")


SESSIONS = 0.015  # by which two sessions of one model may differ, relative: no interval within a session shows it


class Verdict(NamedTuple):
    """A sentence, and whether it is good news (True), bad (False) or neither."""

    text: str
    good: bool | None = None


class Row(NamedTuple):
    """A line of the comparison: before, after, and what that means."""

    label: str
    before: str
    after: str
    note: Verdict
    kept: float | None = None  # share that remains, where that is what the note says


def rows(record: Record) -> list[Row]:
    """The comparison, a line for each figure that was measured."""
    found = []
    for key, label, show in (("params", "parameters", count), ("macs", "MACs", count), ("file_bytes", "file", size)):
        if pair := record.get(key):
            kept = pair["after"] / pair["before"] if pair["before"] else 1.0
            note = Verdict(f"{percent(kept)} kept")
            found.append(Row(label, show(pair["before"]), show(pair["after"]), note, kept))
    if latency := record.get("latency_ms"):
        before, after = (milliseconds(latency[side]["median"]) for side in ("before", "after"))
        found.append(Row("latency", before, after, speed(latency["speedup"])))
    if accuracy := record.get("accuracy"):
        drop = 100 * (accuracy["after"] - accuracy["before"])
        note = Verdict(f"{drop:+.1f} points on {accuracy['images']} labelled images")
        found.append(Row("accuracy", percent(accuracy["before"]), percent(accuracy["after"]), note))
    return [*found, *_measured(record.get("metric", {}))]


def _measured(metric: Mapping[str, Any]) -> list[Row]:
    """A line for each number of the user's own measure; nobody knows which way is better."""
    before, after = metric.get("before", {}), metric.get("after", {})
    found = []
    for name in dict.fromkeys((*before, *after)):
        a, b = before.get(name, nan), after.get(name, nan)
        note = "unchanged" if a == b else f"{b - a:+.3g}" if isfinite(b - a) else ""
        shown = ["-" if isnan(number) else f"{number:.5g}" for number in (a, b)]
        found.append(Row(name, shown[0], shown[1], Verdict(note)))
    return found


def speed(speedup: Mapping[str, float | None]) -> Verdict:
    """A measured speed-up; it is one only if its whole 95 % interval is."""
    value, low, high = (speedup[key] for key in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return Verdict("too few runs to compare: measure for longer")
    interval = f"95 %: {low:.2f} to {high:.2f}"
    if max(abs(value - 1), abs(1 / value - 1)) < SESSIONS:
        return Verdict(f"no faster: {value:.2f}x (within what sessions vary)", False)
    if low > 1:
        return Verdict(f"{value:.2f}x faster ({interval})", True)
    if high < 1:
        return Verdict(f"no faster: {1 / value:.2f}x slower (95 %: {1 / high:.2f} to {1 / low:.2f})", False)
    return Verdict(f"no faster: {value:.2f}x ({interval})", False)


def machine(bench: Record) -> str:
    """What a latency was measured on."""
    threads = plural(bench["threads"], "thread") if bench["threads"] else "default threads"
    cpus = f", {bench['cpus']} processors" if bench["cpus"] else ""
    return f"{bench['provider']}, {threads}{cpus}, ONNX Runtime {bench['onnxruntime']}"


def conditions(bench: Record) -> list[str]:
    """Under what a latency was measured, and what makes it doubtful."""
    batch = f", batches of {bench['batch']}" if bench.get("batch") else ""
    lines = [f"{machine(bench)}{batch}, {bench['turns']} turns"]
    if bench["busy"]:
        lines.append("other processes kept the processors busy: measure again, or with --threads 1")
    elif not bench["converged"]:
        lines.append("the interval did not get narrow in time: give more seconds")
    return [*lines, *fallback(bench)]


def proof(record: Record) -> Verdict:
    """Whether the result is the pruned function, as ONNX Runtime computes it."""
    parity = record.get("parity")
    if parity is None:
        return Verdict("none but fidelity" if "fidelity" in record else "none: the models were not run", False)
    apart = "beyond measure" if parity["relative"] is None else f"{parity['relative']:.1e}"
    where = f"of the largest output, on {plural(parity['feeds'], 'input')}{_of_passes(record)}"
    oracle = parity["oracle"]
    if parity.get("vacuous"):
        return Verdict(f"none for {', '.join(parity['vacuous'])}: nearly zero on these inputs; give --data", False)
    if parity["exact"]:
        return Verdict(f"exact: {oracle} to {apart} {where}", True)
    if parity.get("rounding"):
        itself = f"{oracle} is {parity['rounding']:.1e} from itself, summed in another order"
        return Verdict(f"exact up to rounding: {apart} {where}; {itself}", True)
    return Verdict(f"inexact, as allowed: {apart} {where} from {oracle}", False)


def _of_passes(record: Record) -> str:
    """In a recipe, the passes that are proved, and those that change the function."""
    if "recipe" not in record.get("options", {}):
        return ""
    proved = [each["name"] for each in record["passes"] if each["proved"]]
    others = [each["name"] for each in record["passes"] if each["changed"] and not each["proved"]]
    change = f"; {', '.join(others)} change{'s' if len(others) == 1 else ''} the function" if others else ""
    return f", for {', '.join(proved)}{change}"


def _lossless(record: Record) -> bool:
    return bool(record.get("options", {}).get("target") == "lossless")


def fidelity(record: Record) -> str | None:
    """What the outputs kept of the original's."""
    found = record.get("fidelity")
    if found is None:
        return None
    if found["max_abs"] == 0:
        return "outputs are identical to the original's"
    if found["cosine"] is None or found["max_abs"] is None:
        return "outputs cannot be compared with the original's (not finite, or of other shapes)"
    parts = [] if found["top1_agreement"] is None else [f"top-1 agreement {percent(found['top1_agreement'])}"]
    parts.append(f"cosine {found['cosine']:.4f}")
    parts += [] if found["sqnr_db"] is None else [f"SQNR {found['sqnr_db']:.1f} dB"]
    parts.append(f"max abs {found['max_abs']:.2g}")
    return ", ".join(parts)


def inputs(record: Record) -> str | None:
    """What the checks were run on."""
    found = record.get("inputs")
    if found is None:
        return None
    of = {"data": "of the data", "images": "of the images", "synthetic": "of synthetic data: they say little"}
    if found["source"] in of:
        samples = record.get("fidelity", {}).get("samples", found["feeds"])
        aside = " that were put aside" if found.get("aside") else ""
        return f"on {plural(samples, 'sample')} {of[found['source']]}{aside}"
    return f"on {found['feeds']} {found['source']}: they say little, give --data"


def recovery(record: Record) -> str | None:
    """What was done to the weights that remain."""
    if "recover" not in record:
        return None
    found = record.get("recovery")
    if found is None:
        return f"{record['recover']}: the remaining weights are as they were"
    changed = sum(layer["method"] != "none" for layer in found["layers"])
    of = f"{plural(changed, 'layer')} of {len(found['layers'])}"
    distance = found["distance"]
    if distance is None:
        done = f"expected values, without data: {of}; what it is worth was not measured"
        return done if changed else "none: without data, what was cut has no expected value; give --data"
    pair = f"answers off by {_off(distance['before'])} before, {_off(distance['after'])} after (1: as bad as none)"
    if record["recover"] == "none":
        if distance["before"] == distance["after"]:
            return f"none: it changed nothing of what the answers show ({pair}); the remaining weights are as they were"
        return f"none: it would have made the answers worse ({pair}); the remaining weights are as they were"
    given = ", variance given back" if found.get("rescaled") else ""
    refused = [f"{method} would have made the answers worse" for method in found.get("refused", ())]
    return f"{record['recover']}: {of} refitted{given}; {'; '.join([pair, *refused])}"


def _off(distance: float | None) -> str:
    return "more than can be said" if distance is None or distance != distance else f"{distance:.3g}"


def _several(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


def _stored(names: Sequence[str]) -> list[str]:
    if not names:
        return []
    which = _several(names)
    verb = "is" if len(names) == 1 else "are"
    return [f"{plural(len(names), 'weight')} that the model computed from others {verb} stored: {which}"]


def warnings(record: Record) -> list[str]:
    """Everything that the reader has to know."""
    assumed, names = record.get("inputs", {}).get("assumed", []), record.get("inlined", [])
    inside = record.get("open_inside", [])
    free = ", ".join(f"{name} {shape}".replace("'", "") for name, shape in record.get("open_inputs", {}).items())
    return [
        *record.get("warnings", []),
        *assumed,
        *([f"MACs count open sizes as 1: {free}; give --shape"] if free else []),
        *([f"MACs count what runs as often as data say once: {_several(inside)}"] if inside else []),
        *_stored(record.get("folded", [])),
        *(["local functions are written out where they are called: " + ", ".join(names)] if names else []),
    ]


def passes(record: Record) -> list[tuple[str, str]]:
    """Of every pass that says something of itself, its name and that."""
    return [(each["name"], each["said"]) for each in record.get("passes", ()) if each["said"]]


def chosen(record: Record) -> str:
    """The options that say most, in a line."""
    options: Mapping[str, Any] = record.get("options", {})
    if "recipe" in options:
        return f"{options['recipe']}: {', '.join(each['name'] for each in record.get('passes', ()))}"
    said = [str(options[key]) for key in ("target", "criterion")[: 1 if _lossless(record) else 2] if key in options]
    said += [f"{options['scope']} scope"] if "scope" in options and not _lossless(record) else []
    said += [f"multiples of {record['align']}"] if record.get("align", 1) > 1 else []
    return ", ".join(said)


def searched(record: Record) -> list[str]:
    """How the smallest model was found: the trials, the largest share first."""
    found = record.get("search")
    if found is None:
        return []
    lines = [f"{found['what']}, at most {found['max_drop']:g}:"]
    for trial in sorted(found["trials"], key=lambda t: -t["share"]):
        drop = "no such model" if trial["drop"] is None else f"{trial['drop']:.4f}"
        mark = "taken" if trial["share"] == found.get("share") else "passed" if trial["passed"] else "failed"
        lines.append(f"{found['of']}={trial['share']:<9.6g} {drop:>9}  {mark}")
    if not found["monotone"]:
        lines.append("less did not always lose more: a smaller model than this one may pass, too")
    return lines


def cut(record: Record) -> str:
    """How much was cut; nothing where no pass cuts."""
    groups = record.get("groups", ())
    if "groups" in record and not most_cut(record):
        return "nothing to remove" if _lossless(record) else "nothing"
    if not groups:
        return ""
    units = sum(g["units"]["before"] for g in groups)
    gone = units - sum(g["units"]["after"] for g in groups)
    hit = sum(g["units"]["after"] < g["units"]["before"] for g in groups)
    return f"{gone} of {plural(units, 'unit')}, in {hit} of {plural(len(groups), 'group')}"


def most_cut(record: Record) -> list[Mapping[str, Any]]:
    """The groups that were cut, those first that took most MACs along."""

    def saved(group: Mapping[str, Any]) -> float:
        units = group["units"]
        return float(group["macs"] * (1 - units["after"] / units["before"]))

    groups = [g for g in record.get("groups", ()) if g["units"]["after"] < g["units"]["before"]]
    return sorted(groups, key=saved, reverse=True)


def largest(record: Record) -> list[Mapping[str, Any]]:
    """All groups, those first in whose layers most MACs are spent."""
    return sorted(record["groups"], key=lambda group: float(group["macs"]), reverse=True)


def title(group: Mapping[str, Any]) -> str:
    """What a person calls a group: the tensor that makes its units, or the node where that has no name of its own."""
    return str(group["node"] if ANONYMOUS.match(group["name"]) and group.get("node") else group["name"])


def times(record: Record) -> str:
    """Seconds per stage."""
    return ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in record.get("seconds", {}).items())
