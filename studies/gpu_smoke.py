"""Does everything that works on the CPU work on a GPU, and what does it cost there?

    python studies/gpu_smoke.py --device cuda --minutes 12 --out gpu_smoke.json
    python studies/gpu_smoke.py --device cpu --shapes tiny --minutes 5 --out smoke.json    # the same on a CPU, small

Parts, in this order: every command and every family of edits with float32, bfloat16 and float16 bases on the device
against float32 on the CPU; the cost of a ranking beside its bare passes; time and peak memory of capture on random
weights of several shapes. The file is written after every part, and a second call goes on with what is missing. Parts
that the minutes do not allow are named in it.

A deviation counts as a failure above the tolerance stated beside it. Tolerances are those of the arithmetic: a float16
number has 11 significant bits, a bfloat16 number 8, and scores of tiny random models amplify both.
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import math
import os
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from steerscope.experiments.tasks import get_task
from studies.programs import parser_of
from tests.byte_models import VOCAB, byte_model, byte_tokenizer
from tests.steering.cases import SETTINGS, randomise

DTYPES = ("float32", "bfloat16", "float16")
# Largest accepted deviation from float32 on the CPU: of logits and losses relative to their size, of shares (from 0 to
# 1) absolute, of accuracies absolute (greedy decoding of near ties may turn out otherwise).
LOGITS = {"float32": 1e-3, "bfloat16": 0.15, "float16": 0.03}
SHARES = {"float32": 0.02, "bfloat16": 0.25, "float16": 0.1}
LOSSES = {"float32": 1e-3, "bfloat16": 0.1, "float16": 0.02}
# d_model, layers, heads, key/value heads, MLP width, vocabulary: Llama 3.2 1B and Llama 3.1 8B; SmolLM2-135M.
SHAPES = {
    "tiny": (32, 2, 4, 2, 64, VOCAB),
    "135M": (576, 30, 9, 3, 1536, 49152),
    "1B": (2048, 16, 32, 8, 8192, 128256),
    "8B": (4096, 32, 32, 8, 14336, 128256),
}


class Budget:
    """How much of the minutes is left."""

    def __init__(self, minutes: float) -> None:
        self.ends = time.monotonic() + 60 * minutes

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()


class Record:
    """What was found, kept in a file after every part."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.parts = path, dict[str, Any]()
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["about"] != about:
                sys.exit(f"{path} was made with {kept['about']}, this is {about}. Name another --out.")
            self.parts = kept["parts"]
        self.about, self.skipped = about, list[str]()

    def run(self, name: str, part: Callable[[], dict[str, Any]], budget: Budget, least: float) -> None:
        """Run a part unless it was run before or fewer than ``least`` seconds are left; failures are results."""
        if self.parts.get(name, {}).get("failed") is False:
            return
        if budget.left < least:
            self.skipped.append(name)
            self.write()
            return
        print(f"{name} ...", file=sys.stderr, flush=True)
        since = time.perf_counter()
        try:
            found = part()
        except Exception as error:  # a failure of one part must not cost the results of the others
            traceback.print_exc()
            found = {"failed": True, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        found.setdefault("failed", False)
        self.parts[name] = found | {"seconds": round(time.perf_counter() - since, 2)}
        print(f"{name}: {json.dumps(self.parts[name])}", file=sys.stderr, flush=True)
        self.write()

    def write(self) -> None:
        """Replace the file."""
        text = json.dumps({"about": self.about, "parts": self.parts, "skipped": self.skipped}, indent=1)
        beside = self.path.with_suffix(".new")
        beside.write_text(text + "\n", encoding="utf-8")
        os.replace(beside, self.path)


def about(device: str) -> dict[str, Any]:
    """Say on what this ran."""
    import transformers

    import steerscope

    name = torch.cuda.get_device_name(0) if device.startswith("cuda") else platform.machine()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": name, "python": platform.python_version(), "steerscope": steerscope.__version__, **versions}


# --- commands ---


def command(*arguments: object) -> None:
    """Run the command line in this process; its output is shown only when it fails."""
    from steerscope.cli import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = main([str(argument) for argument in arguments])
    if code:
        raise RuntimeError(f"steerscope {' '.join(map(str, arguments))} exited with {code}: {said.getvalue()[-400:]}")


def make_place(folder: Path) -> Path:
    """Save a tiny model that reads bytes."""
    byte_model("llama").save_pretrained(folder / "model")
    byte_tokenizer().save_pretrained(folder / "model")
    return folder


def ranked(place: Path, device: str, dtype: str) -> dict[str, Any]:
    """Rank the tiny model."""
    out = place / f"rank-{device.replace(':', '')}-{dtype}.json"
    options = ("--json", out, "--max-examples", 32, "--device", device, "--dtype", dtype, "--quiet")
    command("rank", place / "model", *options)
    return json.loads(out.read_text(encoding="utf-8"))


def compare_rank(place: Path, device: str, dtype: str) -> dict[str, Any]:
    """Rank on the device and on the CPU in float32: the largest difference of a share."""
    scores = [
        {f"{s['layer']}.{s['kind']} {s['family']}": s["score"] for s in ranked(place, *where)["sites"]}
        for where in (("cpu", "float32"), (device, dtype))
    ]
    worst = max(abs(scores[0][site] - scores[1][site]) for site in scores[0])
    tolerance = SHARES[dtype]
    return {"sites": len(scores[0]), "worst_share": worst, "tolerance": tolerance, "failed": not worst <= tolerance}


# Training computes in these data types never, and full fine-tuning's updates would be lost in bfloat16.
NOT_TRAINED = {"float16"}
NOT_FINE_TUNED = {"float16", "bfloat16"}
TASK = ("--task", "listops", "--max-new-tokens", 8)


def trained(place: Path, method: str, device: str, dtype: str) -> Path:
    """Train for a few steps, once."""
    run = place / f"train-{method}-{device.replace(':', '')}-{dtype}"
    if not (run / "results.json").exists():
        options = ("--steps", 4, "--batch-size", 8, "--max-examples", 16, "--learning-rate", 1e-3, "--quiet")
        where = ("--device", device, "--dtype", dtype)
        command("train", place / "model", *TASK, "--method", method, *options, *where, "--out", run)
    return run


def test_loss(run: Path) -> float:
    """Return the loss that a run or an evaluation found on the test questions."""
    return float(json.loads((run / "results.json").read_text(encoding="utf-8"))["loss"])


def compare_train(place: Path, method: str, device: str, dtype: str) -> dict[str, Any]:
    """Train on the device and on the CPU in float32: losses on the test questions."""
    expected, loss = (test_loss(trained(place, method, *where)) for where in (("cpu", "float32"), (device, dtype)))
    return judged_loss(expected, loss, dtype)


def compare_evaluate(place: Path, method: str, device: str, dtype: str) -> dict[str, Any]:
    """Evaluate what was trained on the CPU, or the model as it is (``none``): losses on the test questions."""
    adapter = () if method == "none" else ("--adapter", trained(place, method, "cpu", "float32"))
    losses = []
    for where, kind in (("cpu", "float32"), (device, dtype)):
        out = place / f"evaluate-{method}-{where.replace(':', '')}-{kind}"
        if not (out / "results.json").exists():
            options = ("--max-examples", 16, "--quiet", "--device", where, "--dtype", kind, "--out", out)
            command("evaluate", place / "model", *TASK, *adapter, *options)
        losses.append(test_loss(out))
    return judged_loss(losses[0], losses[1], dtype)


def judged_loss(expected: float, loss: float, dtype: str) -> dict[str, Any]:
    """Say whether a loss is within the tolerance of a data type."""
    relative, tolerance = abs(loss - expected) / expected, LOSSES[dtype]
    found = {"cpu_loss": expected, "loss": loss, "relative": relative, "tolerance": tolerance}
    return found | {"failed": not relative <= tolerance}


def run_validate(place: Path, device: str) -> dict[str, Any]:
    """Validate a ranking on the device and on the CPU: the largest difference of a trained loss."""
    losses = []
    for where in ("cpu", device):
        out = place / f"validate-{where.replace(':', '')}"
        sizes = ("--sites", 6, "--seeds", 2, "--steps", 3, "--batch-size", 4, "--max-examples", 24)
        more = ("--test-examples", 32, "--rank", 2, "--no-references", "--quiet", "--device", where, "--out", out)
        command("validate", place / "model", *sizes, *more, *(("--resume",) if out.exists() else ()))
        found = json.loads((out / "validation.json").read_text(encoding="utf-8"))
        losses.append({site["method"]: site["losses"][0] for site in found["sites"]})
    worst = max(abs(losses[0][site] - losses[1][site]) / losses[0][site] for site in losses[0])
    return {"worst_loss": worst, "tolerance": LOSSES["float32"], "failed": not worst <= LOSSES["float32"]}


def run_without_device(place: Path) -> dict[str, Any]:
    """Run the commands that know no device: they must run with the versions that are here."""
    command("sites", place / "model")
    command("verify", "--quick", "--only", "P1,P7,P16,P32", "--quiet")
    runs = [path for path in place.glob("train-post-block-*") if (path / "results.json").exists()]
    command("compare", *runs, "--out", place / "comparison", "--overwrite")
    return {"commands": ["sites", "verify", "compare"], "compared": len(runs)}


# --- edits ---


def compare_family(family: str, device: str, dtype: str) -> dict[str, Any]:
    """Three steps of a random edit on the device and on the CPU in float32; logits afterwards, saved and loaded."""
    from steerscope.steering import SteeringConfig, SteeringModel, get_steering_model

    found = []
    for where, kind in (("cpu", "float32"), (device, dtype)):
        base = byte_model("llama").to(device=where, dtype=getattr(torch, kind))
        model = randomise(get_steering_model(base, SteeringConfig(family=family, **SETTINGS[family])), size=0.05)
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(3, VOCAB, (4, 24), generator=generator).to(where)
        mask = torch.ones_like(ids)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=ids, attention_mask=mask, labels=ids).loss.float().backward()
            optimizer.step()
        with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
            logits = model(input_ids=ids, attention_mask=mask).logits.float().cpu()
            model.save_pretrained(folder)
            model.unload()
            again = SteeringModel.from_pretrained(base, folder)(input_ids=ids, attention_mask=mask).logits.float().cpu()
        found.append(logits)
    relative = float((found[1] - found[0]).norm() / found[0].norm())
    tolerance, same = LOGITS[dtype], bool(torch.equal(logits, again))
    return {
        "logits": relative,
        "tolerance": tolerance,
        "reloaded_equal": same,
        "failed": not (relative <= tolerance and same),
    }


# --- cost ---


def random_model(shape: str, device: str, dtype: str) -> Any:
    """A Llama of a shape with random weights, made on the device itself; the tokenizer reads bytes."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from steerscope.models.load import wrap_model

    width, layers, heads, kv_heads, inner, vocab = SHAPES[shape]
    config = AutoConfig.for_model(
        "llama",
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=inner,
        vocab_size=vocab,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return wrap_model(model, byte_tokenizer(), name=f"random {shape}", sha256="0" * 64)


def synchronised(device: str) -> float:
    """Return the time once the device has done what it was asked to."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter()


@contextlib.contextmanager
def peak_memory(device: str, found: dict[str, Any]) -> Iterator[None]:
    """Measure the most memory that tensors on the device held inside, in gigabytes."""
    if not device.startswith("cuda"):
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found["weights_gb"] = torch.cuda.memory_allocated() / 1e9
    yield
    found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9


def bare_passes(loaded: Any, encoded: Any, probes: Any, batch_size: int) -> None:
    """One forward pass, and one backward pass to the embeddings per direction: what no ranking can do without."""
    from steerscope.analysis.capture.outputs import batch_outputs
    from steerscope.analysis.data.encoding import batches

    source: list[torch.Tensor] = []

    def keep(module: Any, arguments: Any, output: torch.Tensor) -> torch.Tensor:
        source.append(output.detach().requires_grad_())
        return source[-1]

    hook = loaded.model.get_input_embeddings().register_forward_hook(keep)
    try:
        for batch in batches(encoded, batch_size=batch_size, pad_id=0, device=loaded.device):
            source.clear()
            outputs = batch_outputs(loaded.model, batch, encoded, probes)
            scalars = [outputs.probes[:, p].sum() for p in range(probes.num_probes)]
            scalars += [] if probes.spans else [outputs.log_likelihood.sum()]
            for done, scalar in enumerate(scalars):
                torch.autograd.grad(scalar, source[0], retain_graph=done + 1 < len(scalars))
    finally:
        hook.remove()


def cost(shape: str, device: str, dtype: str, num_examples: int) -> dict[str, Any]:
    """Time and peak memory of a ranking and of its bare passes, in one process, after one warm-up of each."""
    from steerscope import RankOptions, rank_sites
    from steerscope.analysis.capture.outputs import make_probes
    from steerscope.analysis.data.encoding import encode

    loaded = random_model(shape, device, dtype)
    examples = get_task("listops").split("train", num_examples, 0)
    options = RankOptions(max_examples=num_examples, batch_size=16)
    encoded = encode(examples, loaded.tokenizer, loaded.max_length)
    probes = make_probes(encoded, options.num_probes, SHAPES[shape][-1], 0, torch.float32)
    found: dict[str, Any] = {"shape": shape, "dtype": dtype, "examples": num_examples, "tokens": encoded.num_tokens}
    found["parameters"] = loaded.identity.n_params
    bare_passes(loaded, encoded, probes, 16)
    with peak_memory(device, passes := dict[str, Any]()):
        since = synchronised(device)
        bare_passes(loaded, encoded, probes, 16)
        passes["seconds"] = synchronised(device) - since
    with peak_memory(device, ranking := dict[str, Any]()):
        since = synchronised(device)
        result = rank_sites(loaded, examples, options)
        ranking["seconds"] = synchronised(device) - since
    found |= {"passes": passes, "ranking": ranking, "stages": {k: round(v, 3) for k, v in result.timing.items()}}
    found |= {
        "time_ratio": ranking["seconds"] / passes["seconds"],
        "capture_ratio": result.timing["capture"] / passes["seconds"],
        "failed": not all(math.isfinite(site.score) for site in result.sites),
    }
    del loaded
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
    return found


def main() -> None:
    """Run all parts that the minutes allow."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--out", type=Path, default=Path("gpu_smoke.json"))
    parser.add_argument("--dtypes", default=",".join(DTYPES))
    parser.add_argument("--shapes", default="135M,1B,8B", help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--methods", default="post-block,lora,sft", help="methods of training")
    parser.add_argument("--examples", type=int, default=64, help="prompts of a ranking whose cost is measured")
    options = parser.parse_args()
    budget = Budget(options.minutes)
    record = Record(options.out, about(options.device))
    device, dtypes, shapes = options.device, options.dtypes.split(","), options.shapes.split(",")
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder))
        for dtype in dtypes:
            record.run(f"rank {dtype}", partial(compare_rank, place, device, dtype), budget, 10)
        for family, dtype in product(SETTINGS, dtypes):
            record.run(f"edit {family} {dtype}", partial(compare_family, family, device, dtype), budget, 5)
        for shape in shapes:
            # A float32 copy of the largest would not fit; bfloat16 is what it is used in.
            for dtype in ("bfloat16",) if shape == "8B" else ("float32", "bfloat16"):
                part = partial(cost, shape, device, dtype, options.examples)
                record.run(f"cost {shape} {dtype}", part, budget, 60 if shape == "8B" else 20)
        for method in options.methods.split(","):
            # An adapter belongs to its base model's weights, and float16 holds others.
            taken = NOT_FINE_TUNED if method == "sft" else NOT_TRAINED
            for dtype in (dtype for dtype in dtypes if dtype not in taken):
                record.run(f"train {method} {dtype}", partial(compare_train, place, method, device, dtype), budget, 15)
                part = partial(compare_evaluate, place, method, device, dtype)
                record.run(f"evaluate {method} {dtype}", part, budget, 15)
        for dtype in dtypes:
            record.run(f"evaluate {dtype}", partial(compare_evaluate, place, "none", device, dtype), budget, 10)
        record.run("validate", partial(run_validate, place, device), budget, 30)
        record.run("commands without a device", partial(run_without_device, place), budget, 20)
    failed = [name for name, part in record.parts.items() if part["failed"]]
    record.write()
    print(f"{len(record.parts)} parts, {len(failed)} failed {failed}, {len(record.skipped)} not run {record.skipped}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
