"""Tiny models that speak bytes, small tasks, and options for runs of a second."""

from __future__ import annotations

from pathlib import Path

from steerscope.experiments.tasks import get_task
from steerscope.experiments.training.options import TrainOptions
from steerscope.models import load_model
from tests.byte_models import byte_model, byte_tokenizer
from tests.experiments.tasks.rows import write_task

METHODS = (
    "post-block", "post-mlp", "attn-out", "mlp-in", "vector", "nonlinear", "loreft", "direft", "noreft", "lofit",
    "lora", "sft", "bitfit", "joint",
)  # fmt: skip


def make_place(folder: Path) -> Path:
    """Write a model with tied weights, one with biases, and two tasks."""
    byte_model(tie_word_embeddings=True).save_pretrained(folder / "model")
    byte_model("gpt2").save_pretrained(folder / "gpt2")
    for name in ("model", "gpt2"):
        byte_tokenizer().save_pretrained(folder / name)
    (folder / "data").mkdir()
    for task in ("listops", "boolq"):
        write_task(folder / "data", task)
    return folder


def options(place: Path, method: str = "post-block", **changes) -> TrainOptions:
    own = {
        "task": "listops",
        "model": str(place / "model"),
        "rank": 2 if method not in ("vector", "lofit", "sft", "bitfit", "none") else None,
        "steps": 4,
        "batch_size": 4,
        "test_examples": 6,
        "validation_examples": 6,
        "max_new_tokens": 24,
        "likelihoods": False,
        "learning_rate": 0.01,
    }
    return TrainOptions(method=method, **(own | changes))


def task_of(place: Path, name: str = "listops"):
    return get_task(name, place / "data")


def loaded(place: Path, name: str = "model", **options):
    return load_model(str(place / name), **options)
